/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text to a tree of values. The only file that knows jansson.
 *
 * A document costs constant stack and at most the heap it was given: the scan before the parser refuses deep nesting,
 * since the parser recurses, and every allocation is charged to the budget of the thread that parses.
 */
#include "internal.h"

#include <jansson.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory budget ----------------------------------------------------------------------------------------------- */

#define SIZE_HEADER 32 /* keeps what follows aligned for any type */
#define STEP        ((size_t)64 << 10)
#define LARGE_TREE  ((size_t)8 << 20)

/* Before each allocation of the parser's. */
struct block {
    struct block *next, *previous;
    size_t bytes;
};

_Static_assert(sizeof(struct block) <= SIZE_HEADER, "a block has room for its header");

/* Of the document that was read last. The parser must not see that it got no memory: it would go on without the
 * character it wanted it for, and may abort where it looks for that again. So it is left by a jump, and what it had is
 * freed. */
static _Thread_local struct {
    struct block *blocks; /* what it has, while it is parsing */
    jmp_buf refused;
    bool parsing;
    const proto_limits *limits;
    size_t left;      /* asked for */
    size_t rest;      /* may still be asked for */
    bool exceeded;    /* refused for want of budget */
    bool failed;      /* refused by malloc */
    bx_error refusal; /* refused when asked for */
} budget;

static void budget_begin(const proto_limits *limits) {
    budget.limits = limits;
    budget.left = 0;
    budget.rest = limits->json_memory;
    budget.blocks = NULL;
    budget.parsing = false;
    budget.exceeded = budget.failed = false;
    budget.refusal = (bx_error){0};
}

static bool budget_kept(void) {
    return !budget.exceeded && !budget.failed && budget.refusal.status == BX_OK;
}

static bool charge(size_t bytes) {
    if (bytes > budget.left) {
        size_t more = bytes - budget.left;
        if (more > budget.rest) {
            budget.exceeded = true;
            return false;
        }
        if (more < STEP)
            more = budget.rest < STEP ? budget.rest : STEP;
        if (proto_reserve(budget.limits, more, &budget.refusal))
            return false;
        budget.left += more;
        budget.rest -= more;
    }
    budget.left -= bytes;
    return true;
}

static void *budget_malloc(size_t bytes) {
    bool fine = bytes <= SIZE_MAX - SIZE_HEADER && charge(bytes + SIZE_HEADER);
    bytes += SIZE_HEADER;
    struct block *block = fine ? malloc(bytes) : NULL;
    if (!block) {
        budget.failed |= fine;
        if (budget.parsing)
            longjmp(budget.refused, 1);
        return NULL;
    }
    *block = (struct block){.next = budget.blocks, .bytes = bytes};
    if (budget.blocks)
        budget.blocks->previous = block;
    budget.blocks = block;
    return (char *)block + SIZE_HEADER;
}

static void budget_free(void *data) {
    if (!data)
        return;
    struct block *block = (struct block *)(void *)((char *)data - SIZE_HEADER);
    if (block->next)
        block->next->previous = block->previous;
    if (block->previous)
        block->previous->next = block->next;
    else
        budget.blocks = block->next;
    budget.left += block->bytes;
    free(block);
}

/* The C library keeps what is freed in small pieces, in each thread's own heap; after a large tree it is told not to.
 */
static void give_back(size_t tree_bytes) {
    if (tree_bytes > LARGE_TREE)
        malloc_trim(0);
}

static size_t budget_used(void) {
    return budget.limits->json_memory - budget.rest;
}

/* By a quarter, so that what is never filled stays small. */
void *proto_json_grow(void *list, size_t n, size_t *capacity, size_t element, bool numbers) {
    if (n < *capacity)
        return list;
    const size_t more = *capacity / 4 + 64;
    if (numbers ? proto_reserve(budget.limits, more * element, &budget.refusal) != BX_OK : !charge(more * element))
        return NULL;
    void *larger = realloc(list, (*capacity + more) * element);
    if (larger)
        *capacity += more;
    else
        budget.failed = true;
    return larger;
}

void proto_init(void) {
    json_set_alloc_funcs(budget_malloc, budget_free);
    json_object_seed(0);
}

/* ---- parse ------------------------------------------------------------------------------------------------------- */

/* What can be told from the first bytes. */
static bx_status check_start(const char *text, size_t bytes, bx_error *error) {
    const char *end = text + bytes;
    const size_t i = (size_t)(proto_skip_space(text, end) - text);
    if (i == bytes)
        return bx_fail(error, BX_MALFORMED, "json_empty", "the body is empty, a JSON object was expected");
    if (proto_begins(text, end, "\xEF\xBB\xBF") || proto_begins(text, end, "\xFF\xFE") ||
        proto_begins(text, end, "\xFE\xFF") ||
        (bytes > 1 && (text[0] == '\0' || text[1] == '\0') && (text[0] == '{' || text[1] == '{')))
        return bx_fail(error, BX_MALFORMED, "json_syntax",
                       "the body starts with a byte order mark or is UTF-16; JSON is UTF-8 without BOM");
    if (text[i] == '{')
        return BX_OK;
    if (bytes > 8 && text[8] == '{')
        return bx_fail(
            error, BX_MALFORMED, "json_not_object",
            "the body is not JSON; it looks like safetensors, whose Content-Type is " PROTO_TYPE_SAFETENSORS);
    if (text[i] == '[')
        return bx_fail(error, BX_MALFORMED, "json_not_object",
                       "the body must be a JSON object with this array as a member; it begins with '[' at byte %zu", i);
    return bx_fail(error, BX_MALFORMED, "json_not_object",
                   "the body must be a JSON object, but its first character at byte %zu is 0x%02x, not '{'", i,
                   (unsigned)(unsigned char)text[i]);
}

/* Hands the pieces of a scan to the parser. */
struct feed {
    const proto_scan *scan;
    size_t piece, at; /* and the bytes of the piece that are read */
};

static size_t piece_bytes(const proto_piece *piece) {
    return strlen(piece->before) + (size_t)(piece->end - piece->begin);
}

static size_t feed(void *out, size_t room, void *context) {
    struct feed *feed = context;
    size_t given = 0;
    while (given < room && feed->piece < feed->scan->n) {
        const proto_piece *piece = &feed->scan->pieces[feed->piece];
        const size_t before = strlen(piece->before);
        const char *from = feed->at < before ? piece->before + feed->at : piece->begin + (feed->at - before);
        size_t n = feed->at < before ? before - feed->at : (size_t)(piece->end - from);
        n = n < room - given ? n : room - given;
        memcpy((char *)out + given, from, n);
        given += n;
        feed->at += n;
        if (feed->at == piece_bytes(piece)) {
            feed->piece++;
            feed->at = 0;
        }
    }
    return given;
}

/* The byte of the text at which the parser was after so many bytes of the pieces. */
static size_t text_position(const proto_scan *scan, const char *text, size_t position) {
    const char *at = text;
    for (size_t i = 0; i < scan->n; i++) {
        const proto_piece *piece = &scan->pieces[i];
        const size_t before = strlen(piece->before), bytes = piece_bytes(piece);
        if (position <= bytes)
            return (size_t)((position > before ? piece->begin + (position - before) : piece->begin) - text);
        position -= bytes;
        at = piece->end;
    }
    return (size_t)(at - text);
}

/* jansson's complaint in our words. */
static bx_status parse_failure(const json_error_t *cause, const proto_scan *scan, const char *text, bx_error *error) {
    size_t position = text_position(scan, text, cause->position > 0 ? (size_t)cause->position : 0);
    const char *code = "json_syntax", *why = cause->text;
    switch (json_error_code(cause)) {
    case json_error_duplicate_key:
        code = "json_duplicate_key";
        break;
    case json_error_numeric_overflow:
        code = "json_number_range";
        break;
    case json_error_null_character:
    case json_error_null_byte_in_key:
        why = "no string may hold \\u0000";
        break;
    case json_error_invalid_syntax:
        /* the parser stops inside or just behind the word, and every earlier one is its reason to stop */
        if (scan->not_a_number && scan->not_a_number <= text + position + 1) {
            code = "json_nan";
            why = "JSON has no NaN and no Infinity, and numbers must be finite here";
            position = (size_t)(scan->not_a_number - text);
        }
        break;
    default:
        break;
    }
    int line = 1, column = 0;
    for (const char *at = text; at < text + position; at++) {
        column = *at == '\n' ? 0 : column + ((*at & 0xC0) != 0x80);
        line += *at == '\n';
    }
    return bx_fail(error, BX_MALFORMED, code, "line %d, column %d, byte %zu: %s", line, column, position, why);
}

static bx_status budget_failure(const proto_limits *limits, bx_error *error) {
    if (budget.failed)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the JSON document");
    if (budget.refusal.status)
        return bx_fail(error, budget.refusal.status, budget.refusal.code, "%s", budget.refusal.text);
    return bx_fail(error, BX_TOO_LARGE, "json_too_complex",
                   "the JSON document needs more than the %zu bytes of memory it may use; " PROTO_TYPE_SAFETENSORS
                   " carries the same in a fraction",
                   limits->json_memory);
}

static bx_status load(proto_document *document, const proto_scan *scan, const char *text, bx_error *error) {
    json_error_t cause = {0};
    struct feed from = {.scan = scan};
    if (setjmp(budget.refused) == 0) {
        budget.parsing = true;
        document->root = json_load_callback(feed, &from, JSON_REJECT_DUPLICATES, &cause);
        budget.parsing = false;
    } else {
        budget.parsing = false;
        while (budget.blocks)
            budget_free((char *)budget.blocks + SIZE_HEADER);
    }
    if (!budget_kept())
        return budget_failure(budget.limits, error);
    if (!document->root)
        return parse_failure(&cause, scan, text, error);
    if (scan->stopped)
        return bx_fail(error, BX_INTERNAL, "internal", "JSON was read in two ways");
    return BX_OK;
}

static bx_status read_document(proto_document *document, const char *text, size_t bytes, const char *member,
                               const proto_place *places, const proto_limits *limits, proto_scan *scan,
                               bx_error *error) {
    if (!proto_scan_text(scan, document, text, bytes, member, places))
        return budget_failure(limits, error);
    if (scan->too_deep)
        return bx_fail(error, BX_MALFORMED, "json_depth", "nested deeper than %d at byte %zu", PROTO_JSON_DEPTH,
                       (size_t)(scan->too_deep - text));
    bx_status status = member ? BX_OK : check_start(text, bytes, error);
    return status ? status : load(document, scan, text, error);
}

/* Give back what growing left over; it does no harm where it cannot. */
static void fit_stores(proto_document *document) {
    for (int i = 0; i < BX_N_DTYPES; i++) {
        proto_store *store = &document->stores[i];
        void *smaller = store->n > 0 ? realloc(store->data, store->n * bx_dtype_bytes((bx_dtype)i)) : NULL;
        if (smaller) {
            store->data = smaller;
            store->capacity = store->n;
        }
    }
}

bx_status proto_document_read(proto_document *document, const char *text, size_t bytes, const char *member,
                              const proto_place *places, const proto_limits *limits, bx_error *error) {
    proto_document read = {0};
    proto_scan scan = {0};
    if (!member && bytes > 8 && text[8] == '{' && memchr(text, '\0', 8))
        return bx_fail(error, BX_MALFORMED, "json_syntax",
                       "this looks like safetensors, whose Content-Type is " PROTO_TYPE_SAFETENSORS);
    budget_begin(limits);
    bx_status status = read_document(&read, text, bytes, member, places, limits, &scan, error);
    free(scan.pieces);
    read.tree_bytes = budget_used();
    if (status) {
        proto_document_fini(&read);
        return status;
    }
    fit_stores(&read);
    *document = read;
    return BX_OK;
}

void proto_document_fini(proto_document *document) {
    proto_json_free(document->root);
    free(document->arrays);
    for (int i = 0; i < BX_N_DTYPES; i++)
        free(document->stores[i].data);
    give_back(document->tree_bytes);
    *document = (proto_document){0};
}

const proto_numbers *proto_document_numbers(const proto_document *document, const proto_node *node) {
    return &document->arrays[json_integer_value(json_array_get(node, 0))];
}

const proto_node *proto_document_culprit(const proto_node *node) {
    return json_array_get(node, 1);
}

bx_status proto_json_parse(proto_node **root, const char *text, size_t bytes, size_t memory, bx_error *error) {
    proto_document document;
    bx_status status =
        proto_document_read(&document, text, bytes, NULL, NULL, &(proto_limits){.json_memory = memory}, error);
    if (!status)
        *root = document.root;
    return status;
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
        [PROTO_REAL] = "a number with a fraction or exponent",
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

bool proto_json_next(const proto_node *object, void **iterator, const char **name, const proto_node **value) {
    json_t *tree = (json_t *)object; /* jansson's iterators also serve writers */
    *iterator = *iterator ? json_object_iter_next(tree, *iterator) : json_object_iter(tree);
    if (!*iterator)
        return false;
    *name = json_object_iter_key(*iterator);
    *value = json_object_iter_value(*iterator);
    return true;
}
