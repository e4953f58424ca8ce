/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text to a tree of values. The only file that knows jansson.
 *
 * A document costs constant stack and at most the heap it was given: a scan refuses deep nesting before the parser,
 * which recurses, sees it, and every allocation of the parser is charged to the budget of the thread that parses.
 */
#include "internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory budget ----------------------------------------------------------------------------------------------- */

#define SIZE_HEADER 16 /* keeps what follows aligned for any type */

static _Thread_local struct {
    size_t left;
    bool exceeded; /* refused for want of budget */
    bool failed;   /* refused by malloc */
} budget;

static void *budget_malloc(size_t bytes) {
    if (bytes > SIZE_MAX - SIZE_HEADER || bytes + SIZE_HEADER > budget.left) {
        budget.exceeded = true;
        return NULL;
    }
    bytes += SIZE_HEADER;
    char *block = malloc(bytes);
    if (!block) {
        budget.failed = true;
        return NULL;
    }
    budget.left -= bytes;
    memcpy(block, &bytes, sizeof bytes);
    return block + SIZE_HEADER;
}

static void budget_free(void *data) {
    if (!data)
        return;
    char *block = (char *)data - SIZE_HEADER;
    size_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    budget.left += bytes;
    free(block);
}

void proto_init(void) {
    json_set_alloc_funcs(budget_malloc, budget_free);
    json_object_seed(0);
}

/* ---- parse ------------------------------------------------------------------------------------------------------- */

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool begins(const char *text, size_t bytes, const char *word) {
    size_t n = strlen(word);
    return bytes >= n && memcmp(text, word, n) == 0;
}

/* Find the first NaN or Infinity outside strings (SIZE_MAX when there is none); false where nesting gets too deep. */
static bool scan(const char *text, size_t bytes, size_t *not_a_number, size_t *too_deep) {
    size_t depth = 0;
    bool quoted = false;
    *not_a_number = SIZE_MAX;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > PROTO_JSON_DEPTH) {
                *too_deep = i;
                return false;
            }
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if ((c == 'N' || c == 'I') && *not_a_number == SIZE_MAX &&
                   (begins(text + i, bytes - i, "NaN") || begins(text + i, bytes - i, "Infinity"))) {
            *not_a_number = i;
        }
    }
    return true;
}

/* What can be told from the first bytes. */
static bx_status check_start(const char *text, size_t bytes, bx_error *error) {
    size_t i = 0;
    while (i < bytes && is_space(text[i]))
        i++;
    if (i == bytes)
        return bx_fail(error, BX_MALFORMED, "json_empty", "the body is empty, a JSON object was expected");
    if (begins(text, bytes, "\xEF\xBB\xBF") || begins(text, bytes, "\xFF\xFE") || begins(text, bytes, "\xFE\xFF") ||
        (bytes > 1 && (text[0] == '\0' || text[1] == '\0') && (text[0] == '{' || text[1] == '{')))
        return bx_fail(error, BX_MALFORMED, "json_syntax",
                       "the body starts with a byte order mark or is UTF-16; JSON is UTF-8 without BOM");
    if (text[i] == '{')
        return BX_OK;
    if (bytes > 8 && text[8] == '{')
        return bx_fail(
            error, BX_MALFORMED, "json_not_object",
            "the body is not JSON; it looks like safetensors, whose Content-Type is " PROTO_TYPE_SAFETENSORS);
    return bx_fail(error, BX_MALFORMED, "json_not_object",
                   "the body must be a JSON object, but its first character at byte %zu is 0x%02x, not '{'", i,
                   (unsigned)(unsigned char)text[i]);
}

/* jansson's complaint in our words. */
static bx_status parse_failure(const json_error_t *cause, size_t not_a_number, size_t memory, bx_error *error) {
    if (budget.failed)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the JSON document");
    if (budget.exceeded)
        return bx_fail(error, BX_TOO_LARGE, "json_too_complex",
                       "the JSON document needs more than the %zu bytes of memory it may use; " PROTO_TYPE_SAFETENSORS
                       " carries the same in a fraction",
                       memory);

    size_t position = cause->position > 0 ? (size_t)cause->position : 0;
    const char *code = "json_syntax";
    switch (json_error_code(cause)) {
    case json_error_duplicate_key:
        code = "json_duplicate_key";
        break;
    case json_error_numeric_overflow:
        code = "json_number_range";
        break;
    case json_error_invalid_syntax:
        /* the parser stops inside or just behind the word, and every earlier one is its reason to stop */
        if (not_a_number != SIZE_MAX && not_a_number <= position + 1)
            return bx_fail(error, BX_MALFORMED, "json_nan",
                           "JSON has no NaN and no Infinity, and numbers must be finite here: line %d, column %d, byte "
                           "%zu",
                           cause->line, cause->column, not_a_number);
        break;
    default:
        break;
    }
    return bx_fail(error, BX_MALFORMED, code, "line %d, column %d, byte %zu: %s", cause->line, cause->column, position,
                   cause->text);
}

static bx_status load(proto_node **root, const char *text, size_t bytes, size_t not_a_number, size_t memory,
                      bx_error *error) {
    budget.left = memory;
    budget.exceeded = budget.failed = false;
    json_error_t cause = {0};
    json_t *tree = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &cause);
    if (tree && (budget.failed || budget.exceeded)) {
        json_decref(tree); /* jansson goes on without the characters that it found no room for */
        tree = NULL;
    }
    if (!tree)
        return parse_failure(&cause, not_a_number, memory, error);
    *root = tree;
    return BX_OK;
}

bx_status proto_json_parse(proto_node **root, const char *text, size_t bytes, size_t memory, bx_error *error) {
    size_t not_a_number, too_deep;
    if (bytes > 8 && text[8] == '{' && memchr(text, '\0', 8))
        return bx_fail(error, BX_MALFORMED, "json_syntax",
                       "this looks like safetensors, whose Content-Type is " PROTO_TYPE_SAFETENSORS);
    if (!scan(text, bytes, &not_a_number, &too_deep))
        return bx_fail(error, BX_MALFORMED, "json_depth", "nested deeper than %d at byte %zu", PROTO_JSON_DEPTH,
                       too_deep);
    bx_status status = check_start(text, bytes, error);
    if (status)
        return status;

    return load(root, text, bytes, not_a_number, memory, error);
}

bx_status proto_json_parse_text(proto_node **root, const char *text, size_t memory, bx_error *error) {
    size_t not_a_number, too_deep, bytes = strlen(text);
    if (!scan(text, bytes, &not_a_number, &too_deep))
        return bx_fail(error, BX_MALFORMED, "json_depth", "nested deeper than %d at byte %zu", PROTO_JSON_DEPTH,
                       too_deep);
    return load(root, text, bytes, not_a_number, memory, error);
}

void proto_json_free(proto_node *root) {
    json_decref(root);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

proto_kind proto_json_kind(const proto_node *node) {
    switch (json_typeof(node)) {
    case JSON_OBJECT:
        return PROTO_OBJECT;
    case JSON_ARRAY:
        return PROTO_ARRAY;
    case JSON_STRING:
        return PROTO_STRING;
    case JSON_INTEGER:
        return PROTO_INTEGER;
    case JSON_REAL:
        return PROTO_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return PROTO_BOOLEAN;
    case JSON_NULL:
        break;
    }
    return PROTO_NULL;
}

const char *proto_json_kind_name(const proto_node *node) {
    static const char *const names[] = {
        [PROTO_OBJECT] = "an object",
        [PROTO_ARRAY] = "an array",
        [PROTO_STRING] = "a string",
        [PROTO_INTEGER] = "an integer",
        [PROTO_REAL] = "a number with a fraction",
        [PROTO_BOOLEAN] = "a boolean",
        [PROTO_NULL] = "null",
    };
    return names[proto_json_kind(node)];
}

size_t proto_json_size(const proto_node *node) {
    return json_is_array(node) ? json_array_size(node) : json_object_size(node);
}

const proto_node *proto_json_at(const proto_node *array, size_t i) {
    return json_array_get(array, i);
}

const proto_node *proto_json_get(const proto_node *object, const char *name) {
    return json_object_get(object, name);
}

const char *proto_json_string(const proto_node *string) {
    return json_string_value(string);
}

int64_t proto_json_int(const proto_node *integer) {
    return json_integer_value(integer);
}

double proto_json_number(const proto_node *number) {
    return json_number_value(number);
}

bool proto_json_bool(const proto_node *boolean) {
    return json_is_true(boolean);
}

size_t proto_json_floats(const proto_node *array, float *out) {
    size_t n = json_array_size(array);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_number(value))
            return i;
        out[i] = (float)json_number_value(value);
    }
    return n;
}

size_t proto_json_doubles(const proto_node *array, double *out) {
    size_t n = json_array_size(array);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_number(value))
            return i;
        out[i] = json_number_value(value);
    }
    return n;
}

size_t proto_json_ints(const proto_node *array, int32_t *out) {
    size_t n = json_array_size(array);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_integer(value) || json_integer_value(value) < INT32_MIN || json_integer_value(value) > INT32_MAX)
            return i;
        out[i] = (int32_t)json_integer_value(value);
    }
    return n;
}

bool proto_json_next(const proto_node *object, void **iterator, const char **name, const proto_node **value) {
    json_t *tree = (json_t *)object; /* jansson's iterators also serve writers */
    *iterator = *iterator ? json_object_iter_next(tree, *iterator) : json_object_iter(tree);
    if (!*iterator)
        return false;
    *name = json_object_iter_key(*iterator);
    *value = json_object_iter_value(*iterator);
    return true;
}
