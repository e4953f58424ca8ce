/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON documents against jansson itself, which parses the same bytes whole: what is JSON and where it ends to be,
 * byte for byte; every number, bit for bit; and what the first fault of an array is, by a walk over jansson's tree.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/random.h"
#include "../support/suite.h"

/* ---- jansson's word ---------------------------------------------------------------------------------------------- */

/* jansson allocates as the tree that is freed did. */
static json_t *reference_load(const char *text, size_t bytes, json_error_t *cause) {
    json_set_alloc_funcs(malloc, free);
    *cause = (json_error_t){0};
    json_t *tree = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, cause);
    proto_init();
    return tree;
}

static void reference_free(json_t *tree) {
    json_set_alloc_funcs(malloc, free);
    json_decref(tree);
    proto_init();
}

/* ---- arrays ------------------------------------------------------------------------------------------------------ */

/* A walk over one array of jansson's tree: the first fault in the order of the text, and the numbers before it. */
struct walk {
    const proto_place *place;
    int axes;
    int64_t shape[PROTO_MAX_AXES];
    size_t at[PROTO_MAX_AXES];
    proto_fault fault;
    const char *next; /* in the document's store */
};

static void walk_fault(struct walk *w, proto_fault_kind kind, int axes, int64_t length, int64_t wanted) {
    if (w->fault.kind != PROTO_FAULT_NONE)
        return;
    w->fault = (proto_fault){.kind = kind, .axes = axes, .length = length, .wanted = wanted};
    memcpy(w->fault.at, w->at, (size_t)axes * sizeof *w->at);
}

static bool is_element(const json_t *value, bx_dtype dtype) {
    const json_int_t integer = json_integer_value(value);
    switch (dtype) {
    case BX_I64:
        return json_is_integer(value);
    case BX_I32:
        return json_is_integer(value) && integer >= INT32_MIN && integer <= INT32_MAX;
    case BX_BOOL:
        return json_is_boolean(value) || (json_is_integer(value) && (integer == 0 || integer == 1));
    default:
        return json_is_number(value);
    }
}

/* jansson's integers have no -0, which has the value that it has not. */
static void compare_element(struct walk *w, const json_t *value) {
    const double number = json_number_value(value);
    const float narrow = (float)number;
    const json_int_t integer = json_is_boolean(value) ? json_is_true(value) : json_integer_value(value);
    const int32_t small = (int32_t)integer;
    const uint8_t flag = (uint8_t)integer;
    const void *expected = w->place->dtype == BX_F32   ? (const void *)&narrow
                           : w->place->dtype == BX_F64 ? (const void *)&number
                           : w->place->dtype == BX_I64 ? (const void *)&integer
                           : w->place->dtype == BX_I32 ? (const void *)&small
                                                       : (const void *)&flag;
    const size_t bytes = bx_dtype_bytes(w->place->dtype);
    const bool minus_zero = json_is_integer(value) && integer == 0 && bx_dtype_is_float(w->place->dtype);
    HOLDS(minus_zero || memcmp(expected, w->next, bytes) == 0, "%.17g is another number", number);
    w->next += bytes;
}

static void walk(struct walk *w, const json_t *array, int axis) {
    const size_t n = json_array_size(array);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        w->at[axis] = i;
        if (axis + 1 < w->axes && json_is_array(value))
            walk(w, value, axis + 1);
        else if (axis + 1 < w->axes)
            walk_fault(w, PROTO_FAULT_MISPLACED, axis + 1, 0, w->shape[axis + 1]);
        else if (!is_element(value, w->place->dtype))
            walk_fault(w, PROTO_FAULT_MISPLACED, axis + 1, 0, -1);
        else if (w->fault.kind == PROTO_FAULT_NONE)
            compare_element(w, value);
    }
    if (axis == 0 || w->shape[axis] < 0)
        w->shape[axis] = (int64_t)n;
    else if (w->shape[axis] != (int64_t)n)
        walk_fault(w, PROTO_FAULT_RAGGED, axis, (int64_t)n, w->shape[axis]);
}

static bool like(const json_t *value, const proto_node *culprit) {
    static const proto_kind kinds[] = {
        [JSON_OBJECT] = PROTO_OBJECT,   [JSON_ARRAY] = PROTO_ARRAY, [JSON_STRING] = PROTO_STRING,
        [JSON_INTEGER] = PROTO_INTEGER, [JSON_REAL] = PROTO_REAL,   [JSON_TRUE] = PROTO_BOOLEAN,
        [JSON_FALSE] = PROTO_BOOLEAN,   [JSON_NULL] = PROTO_NULL};
    return kinds[json_typeof(value)] == proto_json_kind(culprit) &&
           (!json_is_integer(value) || json_integer_value(value) == proto_json_int(culprit));
}

static size_t n_arrays, n_faults;

static void compare_array(const proto_place *place, bool flat, const json_t *array, const proto_document *document,
                          const proto_node *node) {
    const proto_numbers *got = proto_document_numbers(document, node);
    struct walk w = {.place = place, .axes = place->axes, .shape = {-1, -1, -1}};
    if (flat || (place->fewest_axes == 1 && !json_is_array(json_array_get(array, 0))))
        w.axes = 1;
    if (place->last && !flat)
        w.shape[w.axes - 1] = place->last;
    w.next = document->stores[place->dtype].data;
    w.next += w.next ? got->first * bx_dtype_bytes(place->dtype) : 0;
    walk(&w, array, 0);
    HOLDS(got->place == place && got->flat == flat && got->axes == w.axes, "another place");
    HOLDS(got->shape[0] == w.shape[0], "%lld elements, not %lld", (long long)got->shape[0], (long long)w.shape[0]);
    HOLDS(got->fault.kind == w.fault.kind && got->fault.axes == w.fault.axes &&
              !memcmp(got->fault.at, w.fault.at, sizeof w.fault.at) && got->fault.length == w.fault.length &&
              got->fault.wanted == w.fault.wanted,
          "fault %d, not %d", got->fault.kind, w.fault.kind);
    n_arrays++;
    n_faults += w.fault.kind != PROTO_FAULT_NONE;
    if (w.fault.kind == PROTO_FAULT_MISPLACED) {
        const json_t *culprit = array;
        for (int i = 0; i < w.fault.axes; i++)
            culprit = json_array_get(culprit, w.fault.at[i]);
        HOLDS(like(culprit, proto_document_culprit(node)), "another culprit");
    } else if (w.fault.kind == PROTO_FAULT_NONE) {
        HOLDS(!memcmp(got->shape, w.shape, (size_t)w.axes * sizeof *w.shape), "another shape");
    }
}

/* What is at the place, below these values. */
static void compare_place(const proto_place *place, int step, const json_t *value, const proto_document *document,
                          const proto_node *node) {
    const char *name = step < PROTO_MAX_STEPS ? place->steps[step] : NULL;
    if (!name && json_is_array(value)) {
        compare_array(place, false, value, document, node);
    } else if (!name && json_is_array(json_object_get(value, "data"))) {
        compare_array(place, true, json_object_get(value, "data"), document, proto_json_get(node, "data"));
    } else if (name && *name && json_object_get(value, name)) {
        compare_place(place, step + 1, json_object_get(value, name), document, proto_json_get(node, name));
    } else if (name && !*name && json_is_array(value)) {
        HOLDS(json_array_size(value) == proto_json_size(node), "another size");
        for (size_t i = 0; i < json_array_size(value); i++)
            compare_place(place, step + 1, json_array_get(value, i), document, proto_json_at(node, i));
    }
}

/* ---- documents --------------------------------------------------------------------------------------------------- */

static bool holds(const char *text, size_t bytes, const char *word) {
    return memmem(text, bytes, word, strlen(word)) != NULL;
}

/* Levels of brackets, whatever they mean. */
static int levels(const char *text, size_t bytes) {
    int depth = 0, most = 0;
    for (size_t i = 0; i < bytes; i++) {
        depth += text[i] == '[' || text[i] == '{';
        depth -= depth > 0 && (text[i] == ']' || text[i] == '}');
        most = depth > most ? depth : most;
    }
    return most;
}

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static size_t n_accepted, n_refused;

/* Both read the text, and must agree. */
static void agree(const char *given, size_t bytes) {
    const proto_limits limits = {.json_memory = 1 << 24};
    char *text = malloc(bytes + (bytes == 0)); /* so that the sanitizer sees its end */
    json_error_t cause;
    bx_error error = {0};
    proto_document document;
    memcpy(text, given, bytes);
    json_t *tree = reference_load(text, bytes, &cause);
    bx_status status = proto_document_read(&document, text, bytes, NULL, proto_places, &limits, &error);
    const char *code = error.code ? error.code : "";
    size_t first = 0;
    while (first < bytes && is_space(text[first]))
        first++;
    if (bytes > 0 && memchr(text, '\0', bytes)) {
        HOLDS(status == BX_MALFORMED, "a NUL is accepted"); /* also behind a number, where jansson overlooks it */
        json_error_t none = {0};
        cause = none;
    } else if (!strcmp(code, "json_depth")) {
        HOLDS(levels(text, bytes) > PROTO_JSON_DEPTH, "%.*s: %s", (int)bytes, text, error.text);
    } else if (first < bytes && text[first] == '{' && !tree && json_error_code(&cause) == json_error_numeric_overflow) {
        HOLDS(!status || status == BX_MALFORMED, "%.*s: %s", (int)bytes, text, error.text); /* it may be in an array */
    } else if (tree && json_is_object(tree)) {
        HOLDS(!status, "%.*s: %s: %s", (int)bytes, text, code, error.text);
        for (const proto_place *place = proto_places; place->steps[0]; place++)
            compare_place(place, 0, tree, &document, document.root);
        n_accepted++;
    } else {
        HOLDS(status == BX_MALFORMED, "%.*s is accepted", (int)bytes, text);
        n_refused++;
    }
    if (status && cause.text[0] && (!strcmp(code, "json_syntax") || !strcmp(code, "json_duplicate_key")) &&
        strstr(error.text, ": ")) {
        char place[96];
        snprintf(place, sizeof place, "byte %d: ", cause.position);
        const bool duplicate = json_error_code(&cause) == json_error_duplicate_key;
        HOLDS(duplicate == !strcmp(code, "json_duplicate_key") ||
                  json_error_code(&cause) == json_error_numeric_overflow,
              "%.*s: %s, but %s", (int)bytes, text, code, cause.text);
        HOLDS(strstr(error.text, place) || json_error_code(&cause) == json_error_numeric_overflow, "%.*s: %s, but %s%s",
              (int)bytes, text, error.text, place, cause.text);
    }
    if (!strcmp(code, "json_nan"))
        HOLDS(holds(text, bytes, "NaN") || holds(text, bytes, "Infinity"), "%.*s", (int)bytes, text);
    if (!status)
        proto_document_fini(&document);
    reference_free(tree);
    free(text);
}

/* ---- values that are JSON, or nearly ----------------------------------------------------------------------------- */

static const char *const values[] = {
    /* numbers */
    "0", "-0", "1", "-1", "-0.0", "0e1", "0E+1", "1e-2", "20e1", "123e65", "1E22", "123.456e78", "-9223372036854775808",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "123123123123123123123123", "1e400", "-1e400",
    "1e-400", "0.4e00669999999999999999999999999999999999999999999999999999999999999999999999999969999999006", "01",
    "-01", "-2.", "2.", "2.e3", ".5", "-.5", "0.e1", "0.3e", "0.3e+", "0.3E", "0e", "0e+", "0E", "1.0e", "1.0e-",
    "1eE2", "1+2", "1 000", "0x1", "0x42", "+1", "++1", "+Inf", "-", "--1", "-1x", "-foo", "- 1", "1_0", "1a", "1e1.5",
    "1..2", "\xef\xbc\x91", "Infinity", "-Infinity", "NaN", "-NaN", "nan", "Inf", "N", "I", "1e-324", "4.9e-324",
    "2.2250738585072011e-308", "0.1", "3.4028235677973366e38", "3.4028235677973362e38",
    "1.00000005960464477539062500001", "100000000000000000000000000000000000000000000000000e-40", "16777217",
    /* words */
    "null", "true", "false", "nul", "nulll", "True", "tru", "truex", "fals", "nu ll", "null1", "nullnull", "undefined",
    "a", "\xc3\xa5", "*", "'a'", "&", "\\u0031",
    /* strings */
    "\"\"", "\"a\"", "\"0.1\"", "\"a", "\"", "\"\\\"\"", "\"\\\\\"", "\"\\/\\b\\f\\n\\r\\t\"", "\"\\a\"", "\"\\",
    "\"\\\"", "\"\\u", "\"\\u12\"", "\"\\u0041\"", "\"\\u0000\"", "\"\\ud800\"", "\"\\ud83d\\ude00\"",
    "\"\\ude00\\ud83d\"", "\"\\ud83d\\u0041\"", "\"\\uD834\\uDD1E\"", "\"\xc3\xa9\"", "\"\xff\"", "\"\xc0\xaf\"",
    "\"\xe0\x80\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xf0\x9f\x98\x80\"", "\"\xe2\x80\xa8\"",
    "\"\x7f\"", "\"a\nb\"", "\"a\tb\"", "\"\x1f\"", "\"[\"", "\"]\"", "\"NaN\"", "\"\\\"NaN\"", "\"x\"\"y\"", "\"x\":1",
    /* arrays */
    "[]", "[ ]", "[1]", "[1,2]", "[1,]", "[,]", "[,1]", "[1,,2]", "[1 2]", "[1", "[1,", "[", "]", "[1]]", "[[1]", "[1}",
    "[1,2}", "[1:2]", "[-]", "[1,-]", "[1,null,2]", "[null]", "[null,null]", "[true,false]", "[1,\"a\",2]", "[\"a\"]",
    "[\"a\",1]", "[\"\",]", "[{}]", "[{\"a\":1}]", "[{\"a\":1,\"a\":2}]", "[1,{\"a\":1,\"a\":2}]",
    "[null,{\"a\":1,\"\\u0061\":2}]", "[{]", "[{}", "[{},{\"x\":[1]}]", "[NaN]", "[1,NaN]", "[-Infinity]", "[1,nul]",
    "[nul l]", "[tru e]", "[1,\"a]", "[\"\xff\"]", "[null,\"\xff\"]", "[null,\"\\ud800\"]", "[1.5]", "[1,2.0]", "[2]",
    "[-1]", "[0,1]", "[1,0,2]", "[99999999999]", "[3,99999999999]", "[1 ,2 ]", "[ 1\t,\n2\r]", "[1,\f2]",
    "[\xef\xbb\xbf]", "[1,/**/2]", "[1]x", "[\"\\u0000\"]", "[[]]", "[[],[]]", "[[],[1]]", "[[1],[]]", "[[1],[2]]",
    "[[1],2]", "[2,[1]]", "[[1,2],[3]]", "[[1],[2,3]]", "[[1],null]", "[null,[1]]", "[[1],[null]]", "[[1],[2]]]",
    "[[1][2]]", "[[1],[2]", "[[1],,[2]]", "[[1],[2],]", "[[1,2,3,4],[5,6,7,8]]", "[[1,2,3,4],[5,6,7]]",
    "[[1,2,3,4],[5,6,7,8,9]]", "[[1,2,3,4],5]", "[[1,2,3],[1,2,3,4]]", "[[1,2,3,4],{}]", "[[1,2,\"3\",4]]",
    "[[1,2,3,[4]]]", "[[[1,2],[3,4]],[[5,6],[7,8]]]", "[[[1,2],[3]],[[5,6],[7,8]]]", "[[[1,2],[3,4]],[[5,6]]]",
    "[[[1,2],[3,4]],[[5],[6],[7]]]", "[[[1,2],3],[[5,6],[7,8]]]", "[[[1,2],[3,4]],7]", "[[[1,2],[3,null]]]",
    "[[[1,2],[3,[4]]]]", "[[[[1]]]]", "[[[[1,null,{\"a\":1}]]]]", "[[[[1,null,{\"a\":1,\"a\":1}]]]]",
    "[[[[[[[[1]]]]]]]]", "[[[]]]", "[[[],[]],[[],[]]]", "[[],[[]]]", "[[[]],[]]", "[[[1]],[[2]],[[3]]]",
    "[[[1 , 2 ] , [3,4]]\n]", "[[[[]],[1]]]", "[[[1],[[]]]]",
    /* objects */
    "{}", "{\"a\":1}", "{\"a\":1,\"a\":2}", "{\"a\":1,}", "{,}", "{\"a\"}", "{\"a\":}", "{\"a\" 1}", "{a:1}", "{1:1}",
    "{\"a\":1 \"b\":2}", "{\"a\":1", "{", "}", "{\"a\":[1,2}", "{\"\\u0000\":1}", "{\"a\":\"b\"}#", "{\"a\":1e400}",
    "{\"a\":99999999999999999999}", "{null:1}", "{[1]:2}", "{\"shape\":[1,1,1],\"data\":[1]}",
    "{\"data\":[1,2,3,4],\"shape\":[1,4]}", "{\"data\":[1,2,null,4]}", "{\"data\":[[1]]}", "{\"data\":[1,NaN]}",
    "{\"data\":[1,]}", "{\"d\\u0061ta\":[1,2]}", "{\"data\":{\"data\":[1]}}", "{\"data\":1}",
    "{\"data\":[],\"data\":[]}", "{\"data\"[1]}", "{\"data\",[1]}", "{\"x\":[[1]],\"data\":[5e-1]}"};
enum { N_VALUES = sizeof values / sizeof *values };

static const char *const contexts[] = {
    "{\"a\":%s}",
    "{\"a\":[%s],\"b\":7}",
    "{\"predictions\":{\"loc\":%s}}",
    "{\"predictions\":{\"conf\":[%s],\"loc\":[[[1.5]]]}}",
    "{\"predictions\":{\"loc\":[[[1,2],[3,4]],%s]}}",
    "{\"predictions\":{\"loc\":[[[1,2],[3,%s]]]}}",
    "{\"predictions\":{\"loc\":[[[1, %s, 2]]]},\"predictions\":1}",
    "{\"predictions\":{\"l\\u006Fc\":%s,\"conf\":{\"data\":%s}}}",
    "{\"predictions\":%s}",
    "{\"targets\":{\"classes\":%s,\"loc\":[]}}",
    "{\"targets\":{\"classes\":[[1,2],[3,%s]],\"loc\":[%s]}}",
    "{\"annotations\":%s}",
    "{\"annotations\":[%s]}",
    "{\"annotations\":[{\"boxes\":%s,\"labels\":%s,\"ignore\":%s}]}",
    "{\"annotations\":[{\"boxes\":[[1,2,3,4],%s],\"labels\":[1,%s],\"ignore\":[true,%s]},{\"boxes\":[]}]}",
    "{\"priors\":%s,\"image_size\":%s}",
    "{\"priors\":[%s],\"image_size\":[%s]}",
    "{\"image_size\":[[1,2],%s],\"x\":{\"priors\":[%s]}}",
    "{\"predictions\"%s:{\"loc\":[1]}}",
    "{\"predictions\":{\"loc\":[[[1]]]%s}}",
    "{\"predictions\":{\"loc\":[[[1]]%s]}}",
    "%s",
    "{%s}",
    "{\"priors\":[[1]]}%s",
};
enum { N_CONTEXTS = sizeof contexts / sizeof *contexts };

static size_t fill(char *out, size_t size, const char *context, const char *value) {
    return (size_t)snprintf(out, size, context, value, value, value);
}

START_TEST(conformance) {
    char text[1024];
    for (int i = 0; i < N_VALUES; i++)
        for (int j = 0; j < N_CONTEXTS; j++)
            agree(text, fill(text, sizeof text, contexts[j], values[i]));
    ck_assert_uint_gt(n_accepted, 1000);
    ck_assert_uint_gt(n_refused, 1000);
    ck_assert_uint_gt(n_faults, 500);
}
END_TEST

/* ---- documents that are damaged ---------------------------------------------------------------------------------- */

#define DOCUMENT_PREDICTIONS                                                                                           \
    "{\"predictions\": {\"loc\": [[[1.5, -2, 3e0, 4], [5, 6, 7, 8]], [[0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]]], "          \
    "\"conf\": [[[0.5, 1], [3, 4]], [[6, 7], [9, 10]]]}, \"annotations\": [{\"boxes\": [[0.1, 0.2, 0.3, 0.4], "        \
    "[0, 0, 1, 1]], \"labels\": [1, 0], \"ignore\": [true, 0]}, {\"boxes\": [], \"labels\": []}], \"criterion\": "     \
    "{\"base\": \"ssd-multibox\", \"weights\": {\"loc\": 2}}, \"device\": \"c\\u0070u\", \"image_size\": "             \
    "[[300, 300], [200, 100]]}"
#define DOCUMENT_TARGETS                                                                                               \
    "\n{\"targets\":{\"classes\":{\"shape\":[1,3],\"data\":[1,2,3]},\n\"loc\":[[[1,2,3,4],[1,2,3,4],[1,2,3,4]]]},"     \
    "\"priors\":[[0.5,0.5,1,1],[0.25,0.25,0.5,0.5]],\"image_size\":[300,400],\"x\":[[1,2],\"\xc3\xa9\",null,"          \
    "{\"k\":[true,false]}]}"
#define DOCUMENT_OF_FAULTS                                                                                             \
    "{\"predictions\":{\"loc\":[[null,{\"a\":[1,{}]},[1,\"\\ud83d\\ude00\"]],\"x\",[[[2]]]],\"conf\":7},"              \
    "\"priors\":{\"data\":[1,2]}}"

static const char *const documents[] = {DOCUMENT_PREDICTIONS, DOCUMENT_TARGETS, DOCUMENT_OF_FAULTS};

START_TEST(truncations) {
    for (size_t i = 0; i < sizeof documents / sizeof *documents; i++)
        for (size_t n = 0; n <= strlen(documents[i]); n++)
            agree(documents[i], n);
}
END_TEST

/* One edit; the room is for twice the bytes and a value. */
static size_t damage(char *text, size_t n) {
    static const char bytes[] = "[]{},:\"\\ \n-+.0123456789eEtfnNuI\x01\x80\xc3\xff";
    const size_t at = (size_t)below((int)n + 1), length = (size_t)below((int)(n - at) + 1) % 12;
    const char *value = values[below(N_VALUES)];
    switch (below(6)) {
    case 0: /* another byte */
        if (at < n)
            text[at] = bytes[below(sizeof bytes)];
        return n;
    case 1: /* one more */
        memmove(text + at + 1, text + at, n - at);
        text[at] = bytes[below(sizeof bytes)];
        return n + 1;
    case 2: /* some less */
        memmove(text + at, text + at + length, n - at - length);
        return n - length;
    case 3: /* some twice */
        memmove(text + at + length, text + at, n - at);
        return n + length;
    case 4: /* a bit */
        if (at < n)
            text[at] = (char)(text[at] ^ 1 << below(8));
        return n;
    default: /* a value */
        memmove(text + at + strlen(value), text + at, n - at);
        memcpy(text + at, value, strlen(value));
        return n + strlen(value);
    }
}

START_TEST(mutations) {
    char text[4096];
    random_state = 1;
    n_accepted = n_refused = n_faults = 0;
    for (int i = 0; i < 60000; i++) {
        const char *document = documents[below(3)];
        size_t n = strlen(document);
        memcpy(text, document, n);
        for (int edits = 1 + below(3); edits > 0; edits--)
            n = damage(text, n);
        agree(text, n);
    }
    ck_assert_uint_gt(n_accepted, 5000);
    ck_assert_uint_gt(n_refused, 20000);
    ck_assert_uint_gt(n_faults, 1500);
}
END_TEST

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* A number as some writer may write it. */
static void write_number(char text[64]) {
    static const char *const formats[] = {"%.17g", "%.9g", "%.3f", "%g", "%.16e", "%.0f", "%.25g"};
    double value;
    float single;
    const uint64_t bits = random_bits();
    const uint32_t some = (uint32_t)random_bits();
    memcpy(&single, &some, sizeof single);
    memcpy(&value, &bits, sizeof value);
    value = below(2) ? single : below(2) ? value : (double)single / 3;
    if (!isfinite(value) || fabs(value) > 1e40)
        value = below(1000) / 7.0;
    snprintf(text, 64, formats[below(sizeof formats / sizeof *formats)], value);
}

START_TEST(every_bit) {
    enum { N = 20000 };
    static char body[N * 64 + 256], number[N][64];
    const proto_limits limits = {.json_memory = 1 << 24};
    proto_document document;
    bx_error error = {0};
    random_state = 2;
    size_t n = (size_t)sprintf(body, "{\"predictions\":{\"loc\":[[[");
    for (int i = 0; i < N; i++) {
        write_number(number[i]);
        n += (size_t)sprintf(body + n, "%s%s", i ? below(2) ? "," : " , " : "", number[i]);
    }
    n += (size_t)sprintf(body + n, "]]]},\"annotations\":[{\"boxes\":[[%s,%s,1e400,-1e999]],", number[0], number[1]);
    n += (size_t)sprintf(body + n, "\"labels\":[9223372036854775807,-9223372036854775808]}]}");
    ck_assert_msg(proto_document_read(&document, body, n, NULL, proto_places, &limits, &error) == BX_OK, "%s",
                  error.text);
    const float *floats = document.stores[BX_F32].data;
    const double *doubles = document.stores[BX_F64].data;
    const int64_t *labels = document.stores[BX_I64].data;
    ck_assert_uint_eq(document.stores[BX_F32].n, N);
    for (int i = 0; i < N; i++) {
        const float expected = (float)strtod(number[i], NULL);
        HOLDS(!memcmp(&expected, &floats[i], sizeof expected), "%s: %a, not %a", number[i], (double)floats[i],
              (double)expected);
    }
    ck_assert(doubles[0] == strtod(number[0], NULL) && doubles[1] == strtod(number[1], NULL));
    ck_assert(isinf(doubles[2]) && isinf(doubles[3]) && doubles[2] > doubles[3]);
    ck_assert(labels[0] == INT64_MAX && labels[1] == INT64_MIN);
    proto_document_fini(&document);
}
END_TEST

/* ---- memory ------------------------------------------------------------------------------------------------------ */

struct purse {
    size_t left, spent;
};

static bx_status spend(void *context, size_t bytes, bx_error *error) {
    struct purse *purse = context;
    if (bytes > purse->left)
        return bx_fail(error, BX_BUSY, "memory_full", "no more");
    purse->left -= bytes;
    purse->spent += bytes;
    return BX_OK;
}

/* What reading costs, and the end of it; the code is of the failure. */
static size_t cost(const char *text, size_t bytes, size_t memory, size_t left, const char **code) {
    struct purse purse = {left, 0};
    const proto_limits limits = {.json_memory = memory, .reserve = spend, .context = &purse};
    proto_document document;
    bx_error error = {0};
    bx_status status = proto_document_read(&document, text, bytes, NULL, proto_places, &limits, &error);
    *code = status ? error.code : "";
    if (!status)
        proto_document_fini(&document);
    return purse.spent;
}

/* {"<member>": [<item>,<item>...]} of so many bytes, and closed. */
static char *repeat(const char *head, const char *item, const char *tail, size_t bytes, size_t *n) {
    char *text = malloc(bytes + strlen(head) + strlen(item) + strlen(tail) + 2);
    *n = (size_t)sprintf(text, "%s%s", head, item);
    while (*n < bytes)
        *n += (size_t)sprintf(text + *n, ",%s", item);
    *n += (size_t)sprintf(text + *n, "%s", tail);
    return text;
}

START_TEST(bombs) {
    enum { BYTES = 4 << 20 };
    static const struct {
        const char *head, *item, *tail;
        size_t most; /* heap per 100 bytes of text; 0: more than the text may have */
    } rows[] = {
        {"{\"predictions\":{\"loc\":[", "[[0.12345678901234567, 0.12345678901234567]]", "]}}", 25},
        {"{\"predictions\":{\"loc\":[[[", "1", "]]]}}", 260},
        {"{\"predictions\":{\"loc\":[", "[]", "]}}", 5},
        {"{\"predictions\":{\"loc\":[", "[[]]", "]}}", 5},
        {"{\"predictions\":{\"loc\":[", "[[[[]]]]", "]}}", 5},
        {"{\"predictions\":{\"loc\":[", "null", "]}}", 5},
        {"{\"predictions\":{\"loc\":[", "\"0.1\"", "]}}", 5},
        {"{\"predictions\":{\"loc\":{\"data\":[", "7", "]}}}", 260},
        {"{\"annotations\":[{\"boxes\":[", "[1,2,3,4]", "]}]}", 420},
        {"{\"annotations\":[{\"labels\":[", "1", "]}]}", 520},
        {"{\"predictions\":{\"loc\":[", "{}", "]}}", 0},
        {"{\"predictions\":{\"loc\":[", "\"\\n\"", "]}}", 0},
        {"{\"annotations\":[", "{\"boxes\":[],\"labels\":[]}", "]}", 0},
        {"{\"x\":[", "{}", "]}", 0},
        {"{\"x\":[", "[]", "]}", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t n;
        const char *code;
        char *text = repeat(rows[i].head, rows[i].item, rows[i].tail, BYTES, &n);
        size_t spent = cost(text, n, 12 * (size_t)BYTES, SIZE_MAX, &code);
        if (rows[i].most)
            ck_assert_msg(!*code && spent < n / 100 * rows[i].most + (256 << 10), "%s%s: %zu bytes for %zu, %s",
                          rows[i].head, rows[i].item, spent, n, code);
        else
            ck_assert_msg(!strcmp(code, "json_too_complex") && spent <= 12 * (size_t)BYTES, "%s%s: %zu bytes, %s",
                          rows[i].head, rows[i].item, spent, code);
        free(text);
    }
}
END_TEST

START_TEST(budgets) {
    for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
        const char *code;
        const size_t n = strlen(documents[i]);
        size_t memory = 0;
        do {
            ck_assert_uint_lt(memory, 200000);
            cost(documents[i], n, memory, SIZE_MAX, &code);
            ck_assert_msg(!*code || !strcmp(code, "json_too_complex"), "%s", code);
            memory += 40;
        } while (*code);
        for (size_t left = 0; left < 4096; left += 512) {
            cost(documents[i], n, 1 << 20, left, &code);
            ck_assert_str_eq(code, "memory_full");
        }
    }
}
END_TEST

/* Memory that ends anywhere, also within a number or a word, which the parser would not survive. */
START_TEST(refused_in_a_token) {
    enum { LONG = 150000 };
    static const char *const rows[][2] = {
        {"{\"label_base\":1", "}"}, {"{\"criterion\":x", "}"}, {"{\"run\":\"y", "\"}"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *code;
        const size_t head = strlen(rows[i][0]), n = head + LONG + strlen(rows[i][1]);
        char *text = malloc(n + 1);
        memcpy(text, rows[i][0], head);
        memset(text + head, text[head - 1], LONG);
        strcpy(text + head + LONG, rows[i][1]);
        for (size_t memory = 256; memory < 1 << 19; memory += memory < 16384 ? 24 : 4096) {
            cost(text, n, memory, SIZE_MAX, &code);
            cost(text, n, 1 << 20, memory, &code);
        }
        free(text);
    }
}
END_TEST

/* A value by itself is read as the member of that name. */
START_TEST(members) {
    const proto_limits limits = {.json_memory = 1 << 20};
    const char *text = "[[1,2],[3,4]]";
    proto_document document;
    bx_error error = {0};
    ck_assert_int_eq(proto_document_read(&document, text, strlen(text), "priors", proto_places, &limits, &error),
                     BX_OK);
    const proto_numbers *numbers = proto_document_numbers(&document, document.root);
    ck_assert(numbers->axes == 2 && numbers->shape[0] == 2 && numbers->shape[1] == 2);
    ck_assert_str_eq(numbers->place->steps[0], "priors");
    proto_document_fini(&document);
    ck_assert_int_eq(proto_document_read(&document, text, strlen(text), "criterion", proto_places, &limits, &error),
                     BX_OK);
    ck_assert_uint_eq(proto_json_size(document.root), 2);
    ck_assert_uint_eq(document.n_arrays, 0);
    proto_document_fini(&document);
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("document");
    tcase_set_timeout(cases, 240);
    tcase_add_test(cases, conformance);
    tcase_add_test(cases, truncations);
    tcase_add_test(cases, mutations);
    tcase_add_test(cases, every_bit);
    tcase_add_test(cases, bombs);
    tcase_add_test(cases, budgets);
    tcase_add_test(cases, refused_in_a_token);
    tcase_add_test(cases, members);
    Suite *suite = suite_create("document");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
