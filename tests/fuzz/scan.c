/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our JSON reader against jansson alone: both take the same texts, and what ours has taken out of the tree (numbers at
 * the places that have arrays of them) is what the tree would have had.
 */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

/* ---- an array at a place ----------------------------------------------------------------------------------------- */

/* What the tree's array is as a dense one. */
typedef struct dense {
    const proto_numbers *numbers;
    const proto_document *document;
    int64_t shape[PROTO_MAX_AXES];
    bool regular;
    size_t n;
} dense;

/* Whether the i-th number in the store is the tree's. */
static bool same_number(const dense *d, size_t i, const json_t *value) {
    const proto_numbers *numbers = d->numbers;
    const void *data = d->document->stores[numbers->dtype].data;
    const size_t at = numbers->first + i;
    double real = json_number_value(value);
    const int64_t integer = json_integer_value(value);
    const bool is_real = numbers->dtype == BX_F32 || numbers->dtype == BX_F64;
    if (is_real && json_is_integer(value) && integer == 0) { /* the sign is lost there */
        real = numbers->dtype == BX_F32 ? (double)((const float *)data)[at] : ((const double *)data)[at];
        real = real == 0 ? real : 0; /* then it is not the same */
    }
    switch (numbers->dtype) {
    case BX_F32:
        return memcmp((const float *)data + at, &(float){(float)real}, sizeof(float)) == 0;
    case BX_F64:
        return memcmp((const double *)data + at, &real, sizeof real) == 0;
    case BX_I64:
        return ((const int64_t *)data)[at] == integer;
    case BX_I32:
        return ((const int32_t *)data)[at] == integer;
    default:
        return ((const uint8_t *)data)[at] == (json_is_boolean(value) ? json_is_true(value) : integer);
    }
}

static bool is_number(const dense *d, const json_t *value) {
    const int64_t integer = json_integer_value(value);
    switch (d->numbers->dtype) {
    case BX_F32:
    case BX_F64:
        return json_is_number(value);
    case BX_I64:
        return json_is_integer(value);
    case BX_I32:
        return json_is_integer(value) && integer == (int32_t)integer;
    default:
        return json_is_boolean(value) || (json_is_integer(value) && integer >> 1 == 0);
    }
}

static void flatten(dense *d, const json_t *value, int axis) {
    if (!d->regular) {
        return;
    }
    if (axis == d->numbers->axes) {
        d->regular = is_number(d, value);
        CHECK(!d->regular || d->numbers->fault.kind != PROTO_FAULT_NONE || same_number(d, d->n, value),
              "another number at element %zu", d->n);
        d->n++;
        return;
    }
    const int64_t size = (int64_t)json_array_size(value);
    d->regular = json_is_array(value) && (d->shape[axis] < 0 || d->shape[axis] == size);
    d->shape[axis] = size;
    for (size_t i = 0; i < json_array_size(value); i++) {
        flatten(d, json_array_get(value, i), axis + 1);
    }
}

static void check_array(const proto_document *document, const proto_node *ours, const json_t *theirs) {
    CHECK(proto_json_kind(ours) == PROTO_ARRAY && proto_json_size(ours) >= 1, "an array without its place");
    const int64_t index = proto_json_int(proto_json_at(ours, 0));
    CHECK(index >= 0 && (size_t)index < document->n_arrays, "array %lld", (long long)index);
    dense d = {.numbers = proto_document_numbers(document, ours), .document = document, .shape = {-1, -1, -1}};
    const proto_numbers *numbers = d.numbers;
    d.regular = true;
    if (numbers->place->last && !numbers->flat) {
        d.shape[numbers->axes - 1] = numbers->place->last;
    }
    flatten(&d, theirs, 0);
    CHECK(d.regular == (numbers->fault.kind == PROTO_FAULT_NONE), "fault %d of what is%s regular",
          (int)numbers->fault.kind, d.regular ? "" : " not");
    for (int i = 0; d.regular && i < numbers->axes; i++) {
        CHECK(numbers->shape[i] == d.shape[i], "axis %d: %lld, not %lld", i, (long long)numbers->shape[i],
              (long long)d.shape[i]);
    }
}

/* ---- two trees --------------------------------------------------------------------------------------------------- */

/* Which of the places a value is at or on the way to, as scan.c has it: bit i of `here`. */
static uint32_t step_to(uint32_t here, int depth, const char *key) {
    uint32_t next = 0;
    for (int i = 0; proto_places[i].steps[0]; i++) {
        const char *name = depth < PROTO_MAX_STEPS ? proto_places[i].steps[depth] : NULL;
        if (here >> i & 1 && name && (key ? *name && !strcmp(name, key) : !*name)) {
            next |= 1u << i;
        }
    }
    return next;
}

static bool is_place(uint32_t here, int depth) {
    for (int i = 0; proto_places[i].steps[0]; i++) {
        if (here >> i & 1 && (depth == PROTO_MAX_STEPS || !proto_places[i].steps[depth])) {
            return true;
        }
    }
    return false;
}

/* `flat`: the value of `data` in an object at a place. */
static void compare(const proto_document *document, const proto_node *ours, const json_t *theirs, uint32_t here,
                    int depth, bool flat) {
    const bool place = flat || is_place(here, depth);
    const char *key;
    json_t *value;
    if (json_is_array(theirs) && place) {
        check_array(document, ours, theirs);
        return;
    }
    CHECK(json_typeof(theirs) == json_typeof(ours), "type %d, not %d", json_typeof(ours), json_typeof(theirs));
    if (json_is_object(theirs)) {
        CHECK(json_object_size(ours) == json_object_size(theirs), "members");
        json_object_foreach((json_t *)theirs, key, value) {
            const json_t *other = json_object_get(ours, key);
            CHECK(other, "%s is missing", key);
            const bool data = is_place(here, depth) && !strcmp(key, "data");
            compare(document, other, value, step_to(flat ? 0 : here, depth, key), depth + 1, data);
        }
    } else if (json_is_array(theirs)) {
        CHECK(json_array_size(ours) == json_array_size(theirs), "elements");
        for (size_t i = 0; i < json_array_size(theirs); i++) {
            compare(document, json_array_get(ours, i), json_array_get(theirs, i), step_to(here, depth, NULL), depth + 1,
                    false);
        }
    } else {
        CHECK(json_equal(ours, theirs), "another value");
    }
}

/* ---- one text ---------------------------------------------------------------------------------------------------- */

/* What ours refuses and jansson may not. */
static bool is_our_own(const bx_error *error) {
    static const char *const codes[] = {"json_depth", "json_empty", "json_not_object", "json_too_complex",
                                        "memory_full"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (!strcmp(codes[i], error->code)) {
            return true;
        }
    }
    return false;
}

static void read_it(const char *text, size_t n, const proto_place *places, const json_t *tree,
                    const json_error_t *cause) {
    size_t left;
    proto_document document;
    bx_error error = {0};
    const proto_limits limits = fuzz_limits(&left);
    if (proto_document_read(&document, text, n, NULL, places, &limits, &error) != BX_OK) {
        CHECK(!tree || is_our_own(&error) || (n > 0 && memchr(text, '\0', n)), "refused: %s %s", error.code,
              error.text);
        CHECK(error.status != BX_INTERNAL, "internal: %s", error.text);
        return;
    }
    /* at a place, numbers of any size are read */
    CHECK(tree || (places && json_error_code(cause) == json_error_numeric_overflow), "taken, though %s", cause->text);
    CHECK(n == 0 || !memchr(text, '\0', n), "taken with a NUL");
    if (tree && places) {
        compare(&document, document.root, tree, 0x3ff, 0, false);
    } else if (tree) {
        CHECK(json_equal(document.root, tree), "another tree");
    }
    proto_document_fini(&document);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_error_t cause = {0};
    const char *text = (const char *)data;
    oracle_begin();
    json_t *tree = json_loadb(text, size, JSON_REJECT_DUPLICATES, &cause);
    oracle_end();
    read_it(text, size, NULL, tree, &cause);
    read_it(text, size, proto_places, tree, &cause);
    oracle_begin();
    json_decref(tree);
    oracle_end();
    return 0;
}
