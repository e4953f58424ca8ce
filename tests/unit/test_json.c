/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON bodies: what is accepted and what each refusal says and points at.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto.h"
#include "../support/suite.h"

static bx_status decode(proto_request *request, proto_task task, const char *body, size_t bytes, size_t memory,
                        bx_error *error) {
    const proto_limits limits = {.json_memory = memory};
    *error = (bx_error){0};
    return proto_request_decode(request, task, PROTO_JSON, body, bytes, NULL, 0, &proto_catalog_builtin, &limits,
                                error);
}

static void refused(proto_task task, const char *body, bx_status status, const char *code, const char *pointer) {
    proto_request request;
    bx_error error;
    char where[160];
    bx_status got = decode(&request, task, body, strlen(body), 1 << 20, &error);
    proto_pointer(where, NULL, PROTO_JSON, &error);
    ck_assert_msg(got == status && got == error.status, "%.200s: status %d (%s: %s)", body, got, error.code,
                  error.text);
    ck_assert_msg(strcmp(error.code, code) == 0, "%.200s: %s: %s", body, error.code, error.text);
    ck_assert_msg(strcmp(where, pointer) == 0, "%.200s: %s at \"%s\"", body, error.text, where);
    ck_assert_str_ne(error.text, "");
}

static void malformed(const char *body, const char *code) {
    refused(PROTO_LOSS, body, BX_MALFORMED, code, "");
}

/* A loss body of two images, two priors, three columns; `extra` goes before it. */
#define LOC   "[[[1,2,3,4],[5,6,7,8]],[[9,10,11,12],[13,14,15,16]]]"
#define CONF  "[[[0.5,1,2],[3,4,5]],[[6,7,8],[9,10,11]]]"
#define NOTES "[{\"boxes\":[[0.1,0.2,0.3,0.4],[0,0,1,1]],\"labels\":[1,0]},{\"boxes\":[],\"labels\":[]}]"
#define BODY(extra, loc, conf, notes)                                                                                  \
    "{" extra "\"predictions\":{\"loc\":" loc ",\"conf\":" conf "},\"annotations\":" notes "}"
#define ONE_NOTE(boxes, labels) "[{\"boxes\":" boxes ",\"labels\":" labels "},{\"boxes\":[],\"labels\":[]}]"

START_TEST(a_batch) {
    static const char *const bodies[] = {
        BODY("", LOC, CONF, NOTES),
        BODY("", "{\"shape\":[2,2,4],\"data\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}",
             "{\"data\":[0.5,1,2,3,4,5,6,7,8,9,10,11],\"shape\":[2,2,3]}", NOTES),
        " \t\r\n" BODY("\"device\":\"cuda:1\",\"criterion\":\"ssd-multibox\",\"label_base\":0,", LOC, CONF, NOTES) "\n",
    };
    for (size_t b = 0; b < 3; b++) {
        proto_request r;
        bx_error error;
        ck_assert_msg(decode(&r, PROTO_LOSS, bodies[b], strlen(bodies[b]), 1 << 20, &error) == BX_OK, "%s", error.text);
        const float *loc = r.batch.loc.data, *conf = r.batch.conf.data;
        ck_assert_int_eq(r.batch.n_images, 2);
        ck_assert_int_eq(r.batch.n_priors, 2);
        ck_assert_int_eq(r.batch.n_columns, 3);
        for (int i = 0; i < 16; i++)
            ck_assert(loc[i] == (float)(i + 1));
        for (int i = 1; i < 12; i++)
            ck_assert(conf[i] == (float)i);
        ck_assert(conf[0] == 0.5f && r.batch.boxes[0] == 0.1f && r.batch.boxes[7] == 1);
        ck_assert(r.batch.labels[0] == 1 && r.batch.labels[1] == 0);
        ck_assert(r.batch.first[0] == 0 && r.batch.first[1] == 2 && r.batch.first[2] == 2);
        ck_assert_str_eq(r.criterion->name, "ssd-multibox");
        ck_assert_str_eq(r.priors->name, "ssd300");
        ck_assert_str_eq(r.device, b == 2 ? "cuda:1" : "auto");
        proto_request_free(&r);
    }
}
END_TEST

START_TEST(numbers) {
    proto_request r;
    bx_error error;
    const char *body = BODY("", LOC, "[[[1e39,-1e400,1e-999],[-0.0,16777217,0.1]],[[6,7,8],[9,10,11]]]", NOTES);
    ck_assert_int_eq(decode(&r, PROTO_LOSS, body, strlen(body), 1 << 20, &error), BX_OK);
    const float *conf = r.batch.conf.data;
    ck_assert(isinf(conf[0]) && conf[0] > 0 && isinf(conf[1]) && conf[1] < 0 && conf[2] == 0);
    ck_assert(conf[3] == 0 && signbit(conf[3]) && conf[4] == 16777216 && conf[5] == 0.1f);
    proto_request_free(&r);
}
END_TEST

START_TEST(syntax) {
    malformed("", "json_empty");
    malformed(" \n\t", "json_empty");
    static const char *const not_objects[] = {"[]", "1", "\"a\"", "null", "true", "nonsense"};
    for (size_t i = 0; i < sizeof not_objects / sizeof *not_objects; i++)
        malformed(not_objects[i], "json_not_object");
    static const char *const bad[] = {"{",
                                      "{\"a\":01}",
                                      "{\"a\":+1}",
                                      "{\"a\":.5}",
                                      "{\"a\":1.}",
                                      "{\"a\":0x10}",
                                      "{\"a\":-}",
                                      "{\"a\":1,}",
                                      "{'a':1}",
                                      "{}x",
                                      "{}{}",
                                      "{/**/}",
                                      "{\"\xff\":1}",
                                      "{\"a\":\"\\ud800\"}",
                                      "{\"a\":\"\\u0000\"}",
                                      "{\"\\u0000\":1}",
                                      "\xEF\xBB\xBF{}",
                                      "\xFF\xFE{",
                                      "{\"a\":tru}",
                                      "{\"\xc0\xaf\":1}",
                                      "{\"NaN\":x}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        malformed(bad[i], "json_syntax");
    proto_request r;
    bx_error error;
    ck_assert_int_eq(decode(&r, PROTO_LOSS, "{}\0", 3, 1 << 20, &error), BX_MALFORMED);
    ck_assert_int_eq(decode(&r, PROTO_LOSS, "{\n \"a\": tru}", 12, 1 << 20, &error), BX_MALFORMED);
    ck_assert_msg(strstr(error.text, "line 2") && strstr(error.text, "column") && strstr(error.text, "byte"), "%s",
                  error.text);
    static const char *const words[] = {"{\n \"a\": [0, NaN]}", "{\n \"a\": [0, Infinity]}"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) { /* where the word begins */
        ck_assert_int_eq(decode(&r, PROTO_LOSS, words[i], strlen(words[i]), 1 << 20, &error), BX_MALFORMED);
        ck_assert_str_eq(error.code, "json_nan");
        ck_assert_msg(strstr(error.text, "line 2, column 10, byte 12: ") != NULL, "%s", error.text);
    }
    ck_assert_int_eq(decode(&r, PROTO_LOSS, "\x40\0\0\0\0\0\0\0{\"a\"", 12, 1 << 20, &error), BX_MALFORMED);
    ck_assert_ptr_nonnull(strstr(error.text, "safetensors"));
    const char *body = BODY("\"criterion\":\"ssd-multibox\",", LOC, CONF, NOTES);
    for (size_t n = 0; n < strlen(body); n++)
        ck_assert_int_eq(decode(&r, PROTO_LOSS, body, n, 1 << 20, &error), BX_MALFORMED);
}
END_TEST

START_TEST(special_words) {
    static const char *const bad[] = {"{\"a\":NaN}", "{\"a\":Infinity}", "{\"a\":-Infinity}", "{\"a\":[1, -NaN]}",
                                      "{\"\\\"NaN\":[NaN]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        malformed(bad[i], "json_nan");
    static const char *const range[] = {"{\"a\":1e999}", "{\"a\":-1e999}", "{\"a\":9223372036854775808}"};
    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        malformed(range[i], "json_number_range");
    malformed("{\"a\":1,\"a\":2}", "json_duplicate_key");
    malformed("{\"a\":1,\"\\u0061\":2}", "json_duplicate_key");
    malformed("{\"a\":{\"b\":1,\"b\":1}}", "json_duplicate_key");
}
END_TEST

START_TEST(depth) {
    size_t n = 200000;
    char *body = malloc(n + 1);
    memset(body, '[', n);
    body[n] = '\0';
    malformed(body, "json_depth");
    for (size_t i = 0; i < n; i++)
        memcpy(body + i, i % 5 ? "[" : "{\"a\":[", i + 6 < n ? (i % 5 ? 1 : 6) : 1);
    malformed(body, "json_depth");
    free(body);
    /* 32 levels pass the scan, 33 do not; brackets in strings are no levels */
    char nested[128] = "{\"a\":";
    for (int i = 0; i < 31; i++)
        strcat(nested, "[");
    malformed(nested, "json_syntax");
    strcat(nested, "[");
    malformed(nested, "json_depth");
    refused(PROTO_LOSS, "{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[[[[[[[[\"}", BX_INVALID,
            "unknown_member", "/a");
}
END_TEST

START_TEST(budget) {
    enum { N = 100000 };
    char *body = malloc(3 * N + 64);
    size_t bytes = 0;
    bytes += (size_t)sprintf(body, "{\"a\":[{}");
    for (int i = 0; i < N; i++, bytes += 3)
        memcpy(body + bytes, ",{}", 3);
    memcpy(body + bytes, "]}", 2);
    bytes += 2;
    proto_request r;
    bx_error error;
    ck_assert_int_eq(decode(&r, PROTO_LOSS, body, bytes, 1 << 20, &error), BX_TOO_LARGE);
    ck_assert_str_eq(error.code, "json_too_complex");
    free(body);
    /* every budget either suffices or is refused cleanly */
    const char *good = BODY("", LOC, CONF, NOTES);
    bx_status status = BX_TOO_LARGE;
    for (size_t memory = 0; status == BX_TOO_LARGE; memory += 16) {
        ck_assert_uint_lt(memory, 100000);
        status = decode(&r, PROTO_LOSS, good, strlen(good), memory, &error);
        ck_assert(status == BX_OK || strcmp(error.code, "json_too_complex") == 0);
    }
    ck_assert_int_eq(status, BX_OK);
    proto_request_free(&r);
}
END_TEST

START_TEST(arrays) {
    static const struct {
        const char *body;
        bx_status status;
        const char *code, *pointer;
    } rows[] = {
        {BODY("", LOC, "[[[1,2,3],[1,2]],[[1,2,3],[1,2,3]]]", NOTES), BX_SHAPE, "ragged_array",
         "/predictions/conf/0/1"},
        {BODY("", LOC, "[[[1,2,3],[1,2,3]],[[1,2,3]]]", NOTES), BX_SHAPE, "ragged_array", "/predictions/conf/1"},
        {BODY("", LOC, "[[[1,2,3],7],[[1,2,3],[1,2,3]]]", NOTES), BX_SHAPE, "ragged_array", "/predictions/conf/0/1"},
        {BODY("", "[1]", CONF, NOTES), BX_INVALID, "type_mismatch", "/predictions/loc/0"},
        {BODY("", "3", CONF, NOTES), BX_INVALID, "type_mismatch", "/predictions/loc"},
        {BODY("", LOC, "[[[1,2,3],[1,null,3]],[[1,2,3],[1,2,3]]]", NOTES), BX_INVALID, "type_mismatch",
         "/predictions/conf/0/1/1"},
        {BODY("", LOC, "[[[1,2,3],[1,2,3]],[[1,2,3],[1,2,\"3\"]]]", NOTES), BX_INVALID, "type_mismatch",
         "/predictions/conf/1/1/2"},
        {BODY("", LOC, "[[[1,2,3],[1,2,3]],[[1,2,3],[1,2,[3]]]]", NOTES), BX_INVALID, "type_mismatch",
         "/predictions/conf/1/1/2"},
        {BODY("", "{\"shape\":[2,2],\"data\":[]}", CONF, NOTES), BX_SHAPE, "shape", "/predictions/loc/shape"},
        {BODY("", "{\"shape\":[2,2,4],\"data\":[1]}", CONF, NOTES), BX_SHAPE, "shape", "/predictions/loc/data"},
        {BODY("", "{\"shape\":[4294967296,4294967296,4],\"data\":[]}", CONF, NOTES), BX_SHAPE, "shape",
         "/predictions/loc/data"},
        {BODY("", "{\"shape\":[2,-2,4],\"data\":[]}", CONF, NOTES), BX_INVALID, "type_mismatch",
         "/predictions/loc/shape/1"},
        {BODY("", "{\"shape\":[2,2.0,4],\"data\":[]}", CONF, NOTES), BX_INVALID, "type_mismatch",
         "/predictions/loc/shape/1"},
        {BODY("", "{\"shape\":7,\"data\":[]}", CONF, NOTES), BX_INVALID, "type_mismatch", "/predictions/loc/shape"},
        {BODY("", "{\"shape\":[]}", CONF, NOTES), BX_INVALID, "missing_member", "/predictions/loc/data"},
        {BODY("", "{\"shape\":[],\"data\":[],\"x\":1}", CONF, NOTES), BX_INVALID, "unknown_member",
         "/predictions/loc/x"},
        {BODY("", LOC, "{\"shape\":[2,2,3],\"data\":[0,1,2,3,4,true,6,7,8,9,10,11]}", NOTES), BX_INVALID,
         "type_mismatch", "/predictions/conf/data/5"},
        /* dims that disagree */
        {BODY("", LOC, "[[[1,2,3]],[[1,2,3]]]", NOTES), BX_SHAPE, "shape", "/predictions/loc"},
        {BODY("", "[[[1,2,3],[1,2,3]],[[1,2,3],[1,2,3]]]", CONF, NOTES), BX_SHAPE, "shape", "/predictions/loc"},
        {BODY("", LOC, CONF, "[]"), BX_SHAPE, "shape", "/annotations"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"labels\":[]}]"), BX_SHAPE, "shape", "/annotations"},
        {BODY("", "[]", "[]", "[]"), BX_SHAPE, "shape", "/annotations"},
        {BODY("", LOC, "[[[],[]],[[],[]]]", NOTES), BX_SHAPE, "shape", "/predictions/conf"},
        {BODY("", "{\"shape\":[2,0,4],\"data\":[]}", "{\"shape\":[2,0,3],\"data\":[]}", NOTES), BX_SHAPE, "shape",
         "/predictions/conf"},
        /* annotations */
        {BODY("", LOC, CONF, "7"), BX_INVALID, "type_mismatch", "/annotations"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"labels\":[]},[]]"), BX_INVALID, "type_mismatch", "/annotations/1"},
        {BODY("", LOC, CONF, ONE_NOTE("7", "[]")), BX_INVALID, "type_mismatch", "/annotations/0/boxes"},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3]]", "[1]")), BX_SHAPE, "ragged_array", "/annotations/0/boxes/0"},
        {BODY("", LOC, CONF, ONE_NOTE("[7]", "[1]")), BX_INVALID, "type_mismatch", "/annotations/0/boxes/0"},
        {BODY("", LOC, CONF, ONE_NOTE("[1,2,3,4]", "[1]")), BX_INVALID, "type_mismatch", "/annotations/0/boxes/0"},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,null]]", "[1]")), BX_INVALID, "type_mismatch",
         "/annotations/0/boxes/0/3"},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,4]]", "[1.5]")), BX_INVALID, "type_mismatch", "/annotations/0/labels/0"},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,4]]", "[true]")), BX_INVALID, "type_mismatch",
         "/annotations/0/labels/0"},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,4]]", "[1,2]")), BX_SHAPE, "shape", "/annotations/0"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"labels\":[]},{\"boxes\":[]}]"), BX_INVALID, "missing_member",
         "/annotations/1/labels"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"lables\":[]},{}]"), BX_INVALID, "unknown_member",
         "/annotations/0/lables"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"labels\":[],\"ignore\":7},{}]"), BX_INVALID, "type_mismatch",
         "/annotations/0/ignore"},
        {BODY("", LOC, CONF, "[{\"boxes\":[],\"labels\":[],\"ignore\":[0]},{}]"), BX_SHAPE, "shape",
         "/annotations/0/ignore"},
        /* numbers that no type holds */
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,4]]", "[1e400]")), BX_MALFORMED, "json_number_range", ""},
        {BODY("", LOC, CONF, ONE_NOTE("[[1,2,3,4]]", "[9223372036854775808]")), BX_MALFORMED, "json_number_range", ""},
        {BODY(
             "", LOC, CONF,
             "[{\"boxes\":[[1,2,3,4]],\"labels\":[1],\"ignore\":[99999999999999999999]},{\"boxes\":[],\"labels\":[]}]"),
         BX_MALFORMED, "json_number_range", ""},
        {"{\"predictions\":{\"loc\":" LOC ",\"conf\":" CONF
         "},\"targets\":{\"classes\":[[0,1],[0,-99999999999999999999]],"
         "\"loc\":" LOC "}}",
         BX_MALFORMED, "json_number_range", ""},
        {"{\"predictions\":{\"loc\":" LOC ",\"conf\":" CONF "},\"targets\":{\"classes\":[[0,1],[0,-9999999999]],"
         "\"loc\":" LOC "}}",
         BX_INVALID, "label_range", "/targets/classes/1/1"},
        {BODY("\"priors\":[[0.5,0.5,1,1],[0,0,1e400,1]],", LOC, CONF, NOTES), BX_INVALID, "prior_degenerate",
         "/priors/1"},
        /* priors */
        {BODY("\"priors\":[[0,0,1]],", LOC, CONF, NOTES), BX_SHAPE, "shape", "/priors"},
        {BODY("\"priors\":[],", LOC, CONF, NOTES), BX_SHAPE, "shape", "/priors"},
        {BODY("\"priors\":[[0,0,1,1],[0,0,1]],", LOC, CONF, NOTES), BX_SHAPE, "ragged_array", "/priors/1"},
        {BODY("\"priors\":[[0,0,1,1],[0,0,1,null]],", LOC, CONF, NOTES), BX_INVALID, "type_mismatch", "/priors/1/3"},
        {BODY("\"priors\":[[0.5,0.5,1,1],[0,0,-1,1]],", LOC, CONF, NOTES), BX_INVALID, "prior_degenerate", "/priors/1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        refused(PROTO_LOSS, rows[i].body, rows[i].status, rows[i].code, rows[i].pointer);
}
END_TEST

START_TEST(members) {
#define WITH(extra) BODY(extra ",", LOC, CONF, NOTES)
    static const struct {
        const char *body, *code, *pointer;
    } rows[] = {
        {"{}", "missing_member", "/annotations"},
        {"{\"annotations\":[]}", "missing_member", "/predictions"},
        {"{\"annotations\":[],\"predictions\":[]}", "type_mismatch", "/predictions"},
        {"{\"annotations\":[],\"predictions\":{\"loc\":[]}}", "missing_member", "/predictions/conf"},
        {"{\"annotations\":[],\"predictions\":{\"locs\":[]}}", "unknown_member", "/predictions/locs"},
        {WITH("\"a/b\":1"), "unknown_member", ""},
        {WITH("\"includes\":1"), "unknown_member", "/includes"},
        {WITH("\"classes\":3"), "unknown_member", "/classes"},
        {WITH("\"include\":1"), "type_mismatch", "/include"},
        {WITH("\"label_base\":\"0\""), "type_mismatch", "/label_base"},
        {WITH("\"device\":null"), "type_mismatch", "/device"},
        {WITH("\"priors\":7"), "type_mismatch", "/priors"},
        {WITH("\"criterion\":\"ssd-multibx\""), "unknown_criterion", "/criterion"},
        {WITH("\"priors\":\"ssd30\""), "unknown_priors", "/priors"},
        {WITH("\"device\":\"gpu\""), "invalid_option", "/device"},
        {WITH("\"device\":\"cuda:1x\""), "invalid_option", "/device"},
        {WITH("\"include\":\"images,class\""), "invalid_option", "/include"},
        {WITH("\"box_format\":\"yxyx\""), "invalid_option", "/box_format"},
        {WITH("\"label_base\":2"), "invalid_option", "/label_base"},
        {WITH("\"invalid_boxes\":\"keep\""), "invalid_option", "/invalid_boxes"},
        {WITH("\"run\":\"a\""), "missing_member", "/step"},
        {WITH("\"step\":1"), "missing_member", "/run"},
        {WITH("\"run\":\"a\",\"step\":\"1\""), "type_mismatch", "/step"},
        {WITH("\"run\":\"a b\",\"step\":1"), "invalid_option", "/run"},
        {WITH("\"run\":\"a\",\"step\":-1"), "invalid_option", "/step"},
        {WITH("\"targets\":{}"), "targets_twice", "/targets"},
        {WITH("\"include\":\"images,gradients,dense_gradients\""), "invalid_option", "/include"},
        {WITH("\"criterion\":[]"), "type_mismatch", "/criterion"},
        {WITH("\"priors\":{}"), "missing_member", "/priors/generator"},
        {WITH("\"image_size\":\"[1,1]\""), "type_mismatch", "/image_size"},
        {WITH("\"box_format\":[]"), "type_mismatch", "/box_format"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        refused(PROTO_LOSS, rows[i].body, BX_INVALID, rows[i].code, rows[i].pointer);
    proto_request r;
    bx_error error;
    const char *typo = WITH("\"incldue\":1");
    ck_assert_int_eq(decode(&r, PROTO_LOSS, typo, strlen(typo), 1 << 20, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "did you mean \"include\"?"));
    const char *misplaced = BODY("", LOC, CONF, NOTES);
    ck_assert_int_eq(decode(&r, PROTO_MATCH, misplaced, strlen(misplaced), 1 << 20, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "it belongs to the body of /v1/loss"));
    const char *stages[] = {"matcher", "coder", "classification", "mining", "localization", "normalizer", "weights"};
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        char body[64], says[128];
        snprintf(body, sizeof body, "{\"%s\":{}}", stages[i]);
        snprintf(says, sizeof says, "\"%s\" is a stage of the criterion: {\"criterion\": {\"%s\": ...}}", stages[i],
                 stages[i]);
        ck_assert_int_eq(decode(&r, PROTO_MATCH, body, strlen(body), 1 << 20, &error), BX_INVALID);
        ck_assert_str_eq(error.text, says);
        ck_assert_str_eq(error.code, "unknown_member");
    }
}
END_TEST

START_TEST(match) {
    refused(PROTO_MATCH, BODY("", LOC, CONF, NOTES), BX_INVALID, "unknown_member", "/predictions");
    refused(PROTO_MATCH, "{\"annotations\":[],\"classes\":3}", BX_SHAPE, "shape", "/annotations");
    refused(PROTO_MATCH, "{\"annotations\":" NOTES ",\"classes\":0}", BX_INVALID, "invalid_option", "/classes");
    refused(PROTO_MATCH, "{\"annotations\":" NOTES ",\"classes\":16384}", BX_INVALID, "invalid_option", "/classes");
    refused(PROTO_MATCH, "{\"annotations\":" NOTES ",\"classes\":1.5}", BX_INVALID, "type_mismatch", "/classes");
    static const struct {
        const char *body;
        int columns;
    } rows[] = {
        {"{\"annotations\":" NOTES "}", 3},
        {"{\"annotations\":" NOTES ",\"classes\":20}", 21},
        {"{\"annotations\":[{\"boxes\":[],\"labels\":[]}]}", 2},
        {"{\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[-5]}]}", 2},
        {"{\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[9223372036854775807]}]}", BX_MAX_COLUMNS},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_request r;
        bx_error error;
        ck_assert_msg(decode(&r, PROTO_MATCH, rows[i].body, strlen(rows[i].body), 1 << 20, &error) == BX_OK, "%s",
                      error.text);
        ck_assert_int_eq(r.batch.n_columns, rows[i].columns);
        ck_assert_ptr_null(r.batch.conf.data);
        proto_request_free(&r);
    }
}
END_TEST

START_TEST(query) {
    const char *body = WITH("\"include\":\"images\",\"priors\":[[0.5,0.5,1,1],[0.5,0.5,1,1]]");
    const proto_limits limits = {.json_memory = 1 << 20};
    proto_request r;
    bx_error error = {0};
    const proto_option good[] = {{"include", "objects,,targets,"}, {"priors", "ssd300"}, {"device", "cpu"}};
    ck_assert_int_eq(proto_request_decode(&r, PROTO_LOSS, PROTO_JSON, body, strlen(body), NULL, 0,
                                          &proto_catalog_builtin, &limits, &error),
                     BX_OK);
    ck_assert_uint_eq(r.include, PROTO_INCLUDE_IMAGES);
    ck_assert(!r.batch.explained);
    ck_assert_str_eq(r.priors->name, "inline");
    proto_request_free(&r);
    ck_assert_int_eq(proto_request_decode(&r, PROTO_LOSS, PROTO_JSON, body, strlen(body), good, 3,
                                          &proto_catalog_builtin, &limits, &error),
                     BX_OK);
    ck_assert_uint_eq(r.include, PROTO_INCLUDE_OBJECTS | PROTO_INCLUDE_TARGETS);
    ck_assert(r.batch.explained);
    ck_assert_str_eq(r.priors->name, "ssd300");
    ck_assert_str_eq(r.device, "cpu");
    proto_request_free(&r);

    static const struct {
        proto_option options[2];
        const char *code, *path;
    } bad[] = {
        {{{"device", "cpu"}, {"device", "cpu"}}, "duplicate_option", "device"},
        {{{"device", "cpu"}, {"predictions", "x"}}, "unknown_member", "predictions"},
        {{{"device", "cpu"}, {"run", "x"}}, "missing_member", "step"},
        {{{"device", "cpu"}, {"criterion", "{\"bas\":1}"}}, "unknown_member", "criterion.bas"},
        {{{"device", "cpu"}, {"criterion", "{"}}, "invalid_option", "criterion"},
        {{{"device", "cpu"}, {"priors", "{\"kind\":1}"}}, "missing_member", "priors.generator"},
        {{{"device", "cpu"}, {"priors", ""}}, "unknown_priors", "priors"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error = (bx_error){0};
        ck_assert_int_eq(proto_request_decode(&r, PROTO_LOSS, PROTO_JSON, body, strlen(body), bad[i].options, 2,
                                              &proto_catalog_builtin, &limits, &error),
                         BX_INVALID);
        ck_assert_str_eq(error.code, bad[i].code);
        ck_assert_str_eq(error.path, bad[i].path);
    }
    /* nobody need want the error */
    ck_assert_int_eq(proto_request_decode(&r, PROTO_LOSS, PROTO_JSON, body, strlen(body), bad[0].options, 2,
                                          &proto_catalog_builtin, &limits, NULL),
                     BX_INVALID);
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("json");
    tcase_add_test(cases, a_batch);
    tcase_add_test(cases, numbers);
    tcase_add_test(cases, syntax);
    tcase_add_test(cases, special_words);
    tcase_add_test(cases, depth);
    tcase_add_test(cases, budget);
    tcase_add_test(cases, arrays);
    tcase_add_test(cases, members);
    tcase_add_test(cases, match);
    tcase_add_test(cases, query);
    Suite *suite = suite_create("json");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
