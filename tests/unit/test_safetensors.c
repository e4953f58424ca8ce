/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors bodies: the container's checks, the tensors of a request, and that both encodings of a batch decode
 * alike.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/random.h"
#include "../support/suite.h"

/* A body under construction: header text, then data. */
struct body {
    char bytes[8192];
    size_t n;
};

static struct body build(const char *header, const void *data, size_t data_bytes) {
    struct body body = {.n = 8 + strlen(header) + data_bytes};
    uint64_t length = strlen(header);
    ck_assert_uint_le(body.n, sizeof body.bytes);
    memcpy(body.bytes, &length, 8);
    memcpy(body.bytes + 8, header, length);
    if (data_bytes)
        memcpy(body.bytes + 8 + length, data, data_bytes);
    return body;
}

static bx_status decode(proto_request *request, proto_task task, const void *bytes, size_t n, bx_error *error) {
    const proto_limits limits = {.json_memory = 0};
    *error = (bx_error){0};
    return proto_request_decode(request, task, PROTO_SAFETENSORS, bytes, n, NULL, 0, &proto_catalog_builtin, &limits,
                                error);
}

static void refused(proto_task task, const struct body *body, bx_status status, const char *code, const char *where) {
    proto_request request;
    bx_error error;
    char pointer[160], *copy = malloc(body->n); /* exact, so that the sanitizer sees a read past the end */
    memcpy(copy, body->bytes, body->n);
    bx_status got = decode(&request, task, copy, body->n, &error);
    proto_pointer(pointer, NULL, PROTO_SAFETENSORS, &error);
    ck_assert_msg(got == status && got == error.status, "%.200s: status %d (%s: %s)", body->bytes + 8, got, error.code,
                  error.text);
    ck_assert_msg(strcmp(error.code, code) == 0, "%.200s: %s: %s", body->bytes + 8, error.code, error.text);
    ck_assert_msg(strcmp(pointer, where) == 0, "%.200s: %s at \"%s\"", body->bytes + 8, error.text, pointer);
    free(copy);
}

/* The batch of the tests: 2 images, 2 priors, 3 columns, 2 objects, both in the second image. */
struct data {
    int64_t counts[2], labels[2];
    float boxes[8], conf[12], loc[16];
};
static const struct data good = {{0, 2},
                                 {1, 0},
                                 {0.1f, 0.2f, 0.3f, 0.4f, 0, 0, 1, 1},
                                 {0.5f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
                                 {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
#define T(name, dtype, shape, begin, end)                                                                              \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define COUNTS T("counts", "I64", "[2]", 0, 16)
#define LABELS T("labels", "I64", "[2]", 16, 32)
#define BOXES  T("boxes", "F32", "[2,4]", 32, 64)
#define CONF   T("conf", "F32", "[2,2,3]", 64, 112)
#define LOC    T("loc", "F32", "[2,2,4]", 112, 176)
#define ALL    COUNTS "," LABELS "," BOXES "," CONF "," LOC

static struct body with_header(const char *header) {
    return build(header, &good, sizeof good);
}

static void header_refused(const char *header, bx_status status, const char *code, const char *where) {
    struct body body = with_header(header);
    refused(PROTO_LOSS, &body, status, code, where);
}

static void check_good(const proto_request *r) {
    ck_assert_int_eq(r->batch.n_images, 2);
    ck_assert_int_eq(r->batch.n_priors, 2);
    ck_assert_int_eq(r->batch.n_columns, 3);
    ck_assert(r->batch.conf.dtype == BX_F32 && memcmp(r->batch.conf.data, good.conf, sizeof good.conf) == 0);
    ck_assert(r->batch.loc.dtype == BX_F32 && memcmp(r->batch.loc.data, good.loc, sizeof good.loc) == 0);
    ck_assert(memcmp(r->batch.boxes, good.boxes, sizeof good.boxes) == 0);
    ck_assert(memcmp(r->batch.labels, good.labels, sizeof good.labels) == 0);
    ck_assert(r->batch.first[0] == 0 && r->batch.first[1] == 0 && r->batch.first[2] == 2);
}

START_TEST(both_encodings) {
    static const char json[] =
        "{\"predictions\":{\"loc\":[[[1,2,3,4],[5,6,7,8]],[[9,10,11,12],[13,14,15,16]]],"
        "\"conf\":{\"shape\":[2,2,3],\"data\":[0.5,1,2,3,4,5,6,7,8,9,10,11]}},"
        "\"annotations\":[{\"boxes\":[],\"labels\":[]},{\"boxes\":[[0.1,0.2,0.3,0.4],[0,0,1,1]],\"labels\":[1,0]}]}";
    const proto_limits limits = {.json_memory = 1 << 20};
    struct body body = with_header("{" ALL "}");
    proto_request r;
    bx_error error;
    ck_assert_msg(decode(&r, PROTO_LOSS, body.bytes, body.n, &error) == BX_OK, "%s", error.text);
    check_good(&r);
    const char *data = r.batch.conf.data;
    ck_assert(data > body.bytes && data < body.bytes + body.n); /* not copied */
    proto_request_free(&r);
    ck_assert_int_eq(proto_request_decode(&r, PROTO_LOSS, PROTO_JSON, json, strlen(json), NULL, 0,
                                          &proto_catalog_builtin, &limits, &error),
                     BX_OK);
    check_good(&r);
    proto_request_free(&r);
    ck_assert_int_eq(proto_encoding_guess(json, sizeof json), PROTO_JSON);
    ck_assert_int_eq(proto_encoding_guess("\n{", 2), PROTO_JSON);
    ck_assert_int_eq(proto_encoding_guess(body.bytes, 4), PROTO_SAFETENSORS);
    ck_assert_int_eq(proto_encoding_guess("", 0), PROTO_SAFETENSORS);
    ck_assert_int_eq(proto_encoding_guess("\0", 1), PROTO_SAFETENSORS);
    static const char lengths[] = "{ \t\r\n"; /* as the low byte of a header length they are no JSON */
    for (size_t i = 0; lengths[i]; i++) {
        const char file[9] = {lengths[i], 1, 0, 0, 0, 0, 0, 0, '{'};
        ck_assert_int_eq(proto_encoding_guess(file, sizeof file), PROTO_SAFETENSORS);
        ck_assert_int_eq(proto_encoding_guess(lengths + i, 1), PROTO_JSON);
    }
}
END_TEST

START_TEST(any_alignment) {
    struct body body = with_header("{" ALL "}");
    char *room = malloc(body.n + 8);
    for (size_t shift = 0; shift < 8; shift++) {
        proto_request r;
        bx_error error;
        memcpy(room + shift, body.bytes, body.n);
        ck_assert_int_eq(decode(&r, PROTO_LOSS, room + shift, body.n, &error), BX_OK);
        check_good(&r);
        proto_request_free(&r);
    }
    free(room);
    /* spaces after the header move the data by single bytes */
    for (int pad = 0; pad < 9; pad++) {
        char header[1024];
        snprintf(header, sizeof header, "{" ALL "}%*s", pad, "");
        body = with_header(header);
        proto_request r;
        bx_error error;
        ck_assert_int_eq(decode(&r, PROTO_LOSS, body.bytes, body.n, &error), BX_OK);
        check_good(&r);
        proto_request_free(&r);
    }
}
END_TEST

START_TEST(any_order) {
    struct body body =
        with_header("{" LOC "," CONF ",\"__metadata__\":{\"format\":\"pt\",\"include\":\"images\"}," BOXES "," LABELS
                    "," COUNTS "}");
    proto_request r;
    bx_error error;
    ck_assert_int_eq(decode(&r, PROTO_LOSS, body.bytes, body.n, &error), BX_OK);
    check_good(&r);
    ck_assert_uint_eq(r.include, PROTO_INCLUDE_IMAGES);
    proto_request_free(&r);
}
END_TEST

START_TEST(prefixes) {
    struct body body = with_header("{" ALL "}");
    for (size_t n = 0; n < body.n; n++) {
        char *copy = malloc(n + 1);
        memcpy(copy, body.bytes, n);
        proto_request r;
        bx_error error;
        ck_assert_int_eq(decode(&r, PROTO_LOSS, copy, n, &error), BX_MALFORMED);
        ck_assert_str_eq(error.code, n < 8                      ? "bin_truncated"
                                     : n < body.n - sizeof good ? "bin_header_length"
                                                                : "bin_offset");
        free(copy);
    }
    body.n++;
    refused(PROTO_LOSS, &body, BX_MALFORMED, "bin_layout", "");
}
END_TEST

START_TEST(header_length) {
    struct body body = with_header("{" ALL "}");
    const uint64_t length = body.n - 8 - sizeof good;
    const uint64_t bad[] = {0, body.n - 7, 1 << 21, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7, length << 48};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(body.bytes, &bad[i], 8);
        refused(PROTO_LOSS, &body, BX_MALFORMED, "bin_header_length", "");
    }
    struct body json = {.n = 20};
    memcpy(json.bytes, "{\"predictions\":{\"loc", 20);
    refused(PROTO_LOSS, &json, BX_MALFORMED, "bin_header_length", "");
}
END_TEST

START_TEST(header) {
    char name[400], many[4096] = "{";
    memset(name, 'n', 129);
    strcpy(name + 129, "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    char long_name[420] = "{\"";
    strcat(long_name, name);
    for (int i = 0; i < 33; i++)
        sprintf(many + strlen(many), "%s\"t%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "",
                i);
    strcat(many, "}");
    const char *const bad[] = {
        " {" ALL "}",
        "{" ALL "}\n",
        "{" ALL "}x",
        "[]",
        "7",
        "\xff",
        "{\"\xff\":1}",
        "{" ALL "," LOC "}",
        "{" ALL ",\"l\\u006fc\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
        "{\"a\":NaN}",
        long_name,
        many,
        "{\"__metadata__\":7," ALL "}",
        "{\"__metadata__\":{\"a\":1}," ALL "}",
        "{\"a\":{\"b\":{\"c\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}}}",
        "{\"a\":7}",
        "{\"a\":{}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}",
        "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}",
        "{" T("a", "F32", "[-1]", 0, 4) "}",
        "{" T("a", "F32", "[1.0]", 0, 4) "}",
        "{" T("a", "F32", "[\"1\"]", 0, 4) "}",
        "{" T("a", "F32", "[null]", 0, 4) "}",
        "{" T("a", "F32", "1", 0, 4) "}",
        "{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}",
        "{" T("a", "F32", "[1]", 0, 18446744073709551616) "}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        header_refused(bad[i], BX_MALFORMED, "bin_header", "");
}
END_TEST

START_TEST(offsets_and_layout) {
    static const char *const offsets[] = {
        "[4,0]", "[0,177]", "[0,9007199254740993]", "[-4,0]", "[0,4.0]", "[0]", "[0,1,2]", "7", "null"};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":%s}}", offsets[i]);
        header_refused(text, BX_MALFORMED, "bin_offset", "");
    }
    static const char *const layouts[] = {
        "{" T("a", "U8", "[16]", 0, 16) "}",                                     /* unreferenced tail */
        "{" T("a", "U8", "[172]", 4, 176) "}",                                   /* hole at the start */
        "{" T("a", "U8", "[16]", 0, 16) "," T("b", "U8", "[156]", 20, 176) "}",  /* hole between */
        "{" T("a", "U8", "[16]", 0, 16) "," T("b", "U8", "[161]", 15, 176) "}",  /* overlap */
        "{" T("a", "U8", "[176]", 0, 176) "," T("b", "U8", "[176]", 0, 176) "}", /* twice the same */
        "{" T("a", "U8", "[176]", 0, 176) "," T("b", "U8", "[0]", 8, 8) "}",     /* empty, within another */
        "{}"};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        header_refused(layouts[i], BX_MALFORMED, "bin_layout", "");
    static const char *const overflows[] = {"[16,1152921504606846978]", "[4,1152921504606846978]",
                                            "[4294967296,4294967296]", "[9223372036854775807,9223372036854775807]"};
    for (size_t i = 0; i < sizeof overflows / sizeof *overflows; i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"a\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[0,32]}}", overflows[i]);
        header_refused(text, BX_MALFORMED, "bin_shape_overflow", "");
    }
    header_refused("{" T("a", "F32", "[43]", 0, 176) "}", BX_MALFORMED, "bin_size", "");
    header_refused("{" T("a", "F32", "[44]", 0, 175) "}", BX_MALFORMED, "bin_size", "");
    header_refused("{" T("a", "F32", "[]", 0, 176) "}", BX_MALFORMED, "bin_size", "");
}
END_TEST

START_TEST(tensors) {
    static const struct {
        const char *header;
        bx_status status;
        const char *code, *where;
    } rows[] = {
        {"{" COUNTS "," LABELS "," T("boxes", "I64", "[1,4]", 32, 64) "," CONF "," LOC "}", BX_INVALID, "dtype",
         "boxes"},
        {"{" COUNTS "," T("labels", "F64", "[2]", 16, 32) "," BOXES "," CONF "," LOC "}", BX_INVALID, "dtype",
         "labels"},
        {"{" COUNTS "," LABELS "," BOXES "," T("conf", "U8", "[2,2,12]", 64, 112) "," LOC "}", BX_INVALID, "dtype",
         "conf"},
        {"{" COUNTS "," LABELS "," BOXES "," T("conf", "F8_E4M3", "[2,2,12]", 64, 112) "," LOC "}", BX_INVALID, "dtype",
         "conf"},
        {"{" T("counts", "I16", "[8]", 0, 16) "," LABELS "," BOXES "," CONF "," LOC "}", BX_INVALID, "dtype", "counts"},
        {"{" COUNTS "," LABELS "," T("boxes", "F32", "[4,2]", 32, 64) "," CONF "," LOC "}", BX_SHAPE, "shape", "boxes"},
        {"{" COUNTS "," T("labels", "I64", "[2,1]", 16, 32) "," BOXES "," CONF "," LOC "}", BX_SHAPE, "shape",
         "labels"},
        {"{" COUNTS "," LABELS "," BOXES "," T("conf", "F32", "[4,3]", 64, 112) "," LOC "}", BX_SHAPE, "shape", "conf"},
        {"{" COUNTS "," T("labels", "I32", "[4]", 16, 32) "," BOXES "," CONF "," LOC "}", BX_SHAPE, "shape", "labels"},
        {"{" COUNTS "," LABELS "," BOXES "," T("conf", "F32", "[1,2,6]", 64, 112) "," LOC "}", BX_SHAPE, "shape",
         "counts"},
        {"{" COUNTS "," LABELS "," BOXES "," T("conf", "F32", "[2,1,6]", 64, 112) "," LOC "}", BX_SHAPE, "shape",
         "loc"},
        {"{" T("counts", "I32", "[4]", 0, 16) "," LABELS "," BOXES "," CONF "," LOC "}", BX_SHAPE, "shape", "counts"},
        {"{" COUNTS "," LABELS "," BOXES "," T("rest", "U8", "[112]", 64, 176) "}", BX_INVALID, "unknown_member",
         "rest"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("locs", "F32", "[2,2,4]", 112, 176) "}", BX_INVALID,
         "unknown_member", "locs"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("ignore", "F32", "[16]", 112, 176) "}", BX_INVALID, "dtype",
         "ignore"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("image_sizes", "F64", "[4,2]", 112, 176) "}", BX_INVALID,
         "dtype", "image_sizes"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("image_sizes", "F32", "[4,4]", 112, 176) "}", BX_SHAPE, "shape",
         "image_sizes"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("target_loc", "F32", "[2,2,4]", 112, 176) "}", BX_INVALID,
         "targets_twice", "target_loc"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("target_classes", "I64", "[2,4]", 112, 176) "}", BX_INVALID,
         "targets_twice", "target_classes"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("target_classes", "I64", "[8]", 112, 176) "}", BX_SHAPE,
         "shape", "target_classes"},
        {"{" COUNTS "," LABELS "," BOXES "," CONF "," T("priors", "F32", "[4,4]", 112, 176) "}", BX_INVALID,
         "missing_member", "loc"},
        {"{\"__metadata__\":{\"includes\":\"\"}," ALL "}", BX_INVALID, "unknown_member", "__metadata__.includes"},
        {"{\"__metadata__\":{\"run\":\"a\"}," ALL "}", BX_INVALID, "missing_member", "step"},
        {"{\"__metadata__\":{\"run\":\"\",\"step\":\"1\"}," ALL "}", BX_INVALID, "invalid_option", "run"},
        {"{\"__metadata__\":{\"include\":\"x\"}," ALL "}", BX_INVALID, "invalid_option", "include"},
        {"{\"__metadata__\":{\"criterion\":\"{\"}," ALL "}", BX_INVALID, "invalid_option", "criterion"},
        {"{\"__metadata__\":{\"label_base\":\"2\"}," ALL "}", BX_INVALID, "invalid_option", "label_base"},
        {"{\"__metadata__\":{\"targets\":\"{}\"}," ALL "}", BX_INVALID, "unknown_member", "__metadata__.targets"},
        {"{\"__metadata__\":{\"classes\":\"3\"}," ALL "}", BX_INVALID, "unknown_member", "__metadata__.classes"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        header_refused(rows[i].header, rows[i].status, rows[i].code, rows[i].where);
    proto_request r;
    bx_error error;
    struct body body = with_header("{" COUNTS "," LABELS "," T("boxes", "I64", "[1,4]", 32, 64) "," CONF "," LOC "}");
    ck_assert_int_eq(decode(&r, PROTO_LOSS, body.bytes, body.n, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "F32, F16, BF16, F64"));
}
END_TEST

START_TEST(counts) {
    static const struct {
        int64_t counts[2];
        const char *where, *text;
    } rows[] = {{{1, 0}, "counts", "counts add up to 1, and there are 2 boxes"},
                {{1, 2}, "counts[1]", "counts add up to 3 by image 1, and there are 2 boxes"},
                {{-1, 3}, "counts[0]", "image 0 has -1 objects"},
                {{3, -1}, "counts[0]", "counts add up to 3 by image 0, and there are 2 boxes"},
                {{INT64_MAX, 3}, "counts[0]", "counts add up to 9223372036854775807 by image 0, and there are 2 boxes"},
                {{2, INT64_MAX}, "counts[1]", "counts add up to 9223372036854775809 by image 1, and there are 2 boxes"},
                {{2, -1}, "counts[1]", "image 1 has -1 objects"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct data data = good;
        memcpy(data.counts, rows[i].counts, sizeof data.counts);
        struct body body = build("{" ALL "}", &data, sizeof data);
        refused(PROTO_LOSS, &body, BX_SHAPE, "counts", rows[i].where);
        proto_request r;
        bx_error error;
        ck_assert_int_eq(decode(&r, PROTO_LOSS, body.bytes, body.n, &error), BX_SHAPE);
        ck_assert_str_eq(error.text, rows[i].text);
    }
    /* hostile labels arrive as they are */
    struct data data = good;
    data.labels[0] = INT64_MIN;
    struct body body = build("{" ALL "}", &data, sizeof data);
    proto_request r;
    bx_error error;
    ck_assert_int_eq(decode(&r, PROTO_LOSS, body.bytes, body.n, &error), BX_OK);
    ck_assert(r.batch.labels[0] == INT64_MIN);
    proto_request_free(&r);
}
END_TEST

START_TEST(empty_and_match) {
    proto_request r;
    bx_error error;
    int32_t none[3] = {0, 0, 0};
    struct body body = build("{" T("counts", "I32", "[3]", 0, 12) "," T("labels", "U8", "[0]", 12,
                                                                        12) "," T("boxes", "F64", "[0,4]", 12, 12) "}",
                             none, sizeof none);
    ck_assert_msg(decode(&r, PROTO_MATCH, body.bytes, body.n, &error) == BX_OK, "%s", error.text);
    ck_assert(r.batch.n_images == 3 && r.batch.n_columns == 2 && r.batch.first[3] == 0 && !r.batch.conf.data);
    proto_request_free(&r);
    refused(PROTO_LOSS, &body, BX_INVALID, "missing_member", "loc");
    body = with_header("{" ALL "}");
    refused(PROTO_MATCH, &body, BX_INVALID, "unknown_member", "conf");
    body = build(
        "{" T("counts", "I32", "[0]", 0, 0) "," T("labels", "U8", "[0]", 0, 0) "," T("boxes", "F64", "[0,4]", 0, 0) "}",
        NULL, 0);
    refused(PROTO_MATCH, &body, BX_SHAPE, "shape", "counts");
    /* no priors in conf */
    body = build("{" T("counts", "I32", "[3]", 0, 12) "," T("labels", "U8", "[0]", 12, 12) "," T(
                     "boxes", "F64", "[0,4]", 12, 12) "," T("conf", "F32", "[3,0,3]", 12,
                                                            12) "," T("loc", "F32", "[3,0,4]", 12, 12) "}",
                 none, sizeof none);
    refused(PROTO_LOSS, &body, BX_SHAPE, "shape", "conf");
    body = build("{" T("counts", "I32", "[3]", 0, 12) "," T("labels", "U8", "[0]", 12, 12) "," T(
                     "boxes", "F64", "[0,4]", 12, 12) "," T("conf", "F32", "[3,0,0]", 12,
                                                            12) "," T("loc", "F32", "[3,0,4]", 12, 12) "}",
                 none, sizeof none);
    refused(PROTO_LOSS, &body, BX_SHAPE, "shape", "conf");
}
END_TEST

START_TEST(priors_tensor) {
    struct {
        int64_t counts[1];
        float priors[8];
    } data = {{0}, {0.5f, 0.5f, 1, 1, 0.25f, 0.25f, 0.5f, 0.5f}};
#define EMPTY  T("counts", "I64", "[1]", 0, 8) "," T("labels", "U8", "[0]", 8, 8) "," T("boxes", "F32", "[0,4]", 8, 8)
#define PRIORS T("priors", "F32", "[2,4]", 8, 40)
    proto_request r;
    bx_error error;
    struct body body = build("{" EMPTY "," PRIORS "}", &data, sizeof data);
    ck_assert_msg(decode(&r, PROTO_MATCH, body.bytes, body.n, &error) == BX_OK, "%s", error.text);
    ck_assert(!strcmp(r.priors->name, "inline") && r.priors->n == 2 && r.priors->boxes[5] == 0.25f);
    proto_request_free(&r);
    body = build("{\"__metadata__\":{\"priors\":\"ssd300\"}," EMPTY "," PRIORS "}", &data, sizeof data);
    refused(PROTO_MATCH, &body, BX_INVALID, "priors_twice", "priors");
    data.priors[6] = -1;
    body = build("{" EMPTY "," PRIORS "}", &data, sizeof data);
    refused(PROTO_MATCH, &body, BX_INVALID, "prior_degenerate", "priors[1]");
    body = build("{" EMPTY "," T("priors", "F32", "[0,4]", 8, 8) "}", &data, 8);
    refused(PROTO_MATCH, &body, BX_SHAPE, "shape", "priors");
}
END_TEST

/* ---- the two readers of a header --------------------------------------------------------------------------------- */

/* A header under mutation; it may hold any byte. */
struct text {
    char bytes[2048];
    size_t n;
};

static void splice(struct text *text, size_t at, size_t removed, const char *piece, size_t n) {
    if (text->n - removed + n > 1024)
        return;
    memmove(text->bytes + at + n, text->bytes + at + removed, text->n - at - removed);
    memcpy(text->bytes + at, piece, n);
    text->n += n - removed;
}

/* A further member, perhaps twice, at the beginning of some object. */
static void add_member(struct text *text) {
    static const char *const members[] = {"\"x\":\"y\",", "\"format\":\"np\",", "\"__metadata__\":{},",
                                          "\"dtype\":\"U8\",",
                                          "\"loc\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0,0]},"};
    const char *member = members[below(5)];
    size_t at = (size_t)below((int32_t)text->n + 1);
    while (at > 0 && text->bytes[at - 1] != '{')
        at--;
    for (int32_t n = 1 + below(2); n > 0; n--)
        splice(text, at, 0, member, strlen(member));
}

static void mutate(struct text *text) {
    static const char bytes[] = "\"\\{}[],: \n\t\r\v0-19.eA\x01\x1f\x7f\x80\0";
    static const char *const words[] = {"00", "1e2", "\\u0041", "é", "null", "[ ]", "\"\":1", "18446744073709551616"};
    const size_t at = (size_t)below((int32_t)text->n + 1), left = text->n - at;
    const size_t some = (size_t)below(left < 40 ? (int32_t)left + 1 : 40);
    const char *word = words[below(8)];
    char copy[64];
    switch (below(8)) {
    case 0:
    case 1:
        splice(text, at, left > 0 ? random_bits() % 2 : 0, bytes + below(sizeof bytes - 1), 1);
        break;
    case 2:
        splice(text, at, 0, word, strlen(word));
        break;
    case 3:
        splice(text, at, some, "", 0);
        break;
    case 4: /* repeat it elsewhere */
        memcpy(copy, text->bytes + at, some);
        splice(text, (size_t)below((int32_t)text->n + 1), 0, copy, some);
        break;
    case 5:
        add_member(text);
        break;
    default: /* white space harms only within a string or a number */
        splice(text, at, 0, &" \n"[below(2)], 1);
    }
}

/* The same with the first character of its first string as an escape, which leaves it to the JSON parser. */
static bool respell(struct text *out, const struct text *text) {
    *out = *text;
    const char *quote = memchr(text->bytes, '"', text->n);
    size_t at = quote ? (size_t)(quote - text->bytes) + 1 : text->n;
    char escape[8];
    if (at >= text->n || text->bytes[at] < 0x20 || text->bytes[at] > 0x7e || strchr("\"\\", text->bytes[at]))
        return false;
    snprintf(escape, sizeof escape, "\\u%04x", (unsigned)text->bytes[at]);
    memmove(out->bytes + at + 6, text->bytes + at + 1, text->n - at - 1);
    memcpy(out->bytes + at, escape, 6);
    out->n = text->n + 5;
    return true;
}

/* A file of its own, exact, so that the sanitizer sees a read past the end. */
static bx_status read_container(proto_container *container, char **file, const struct text *header, bx_error *error) {
    const uint64_t length = header->n;
    const size_t bytes = 8 + header->n + sizeof good;
    *file = malloc(bytes);
    memcpy(*file, &length, 8);
    memcpy(*file + 8, header->bytes, header->n);
    memcpy(*file + 8 + header->n, &good, sizeof good);
    *error = (bx_error){0};
    return proto_container_read(container, *file, bytes, error);
}

static bool same_tensors(const proto_tensor *a, const proto_tensor *b) {
    return !strcmp(a->name, b->name) && !strcmp(a->dtype_name, b->dtype_name) && a->view.dtype == b->view.dtype &&
           a->rank == b->rank && memcmp(a->shape, b->shape, sizeof a->shape) == 0 && a->begin == b->begin &&
           a->end == b->end;
}

static bool same_containers(const proto_container *a, const proto_container *b) {
    const char *name[2] = {NULL, NULL}, *value[2];
    bool same = a->n_tensors == b->n_tensors;
    for (int i = 0; same && i < a->n_tensors; i++) {
        const proto_tensor *s = &a->tensors[i], *t = &b->tensors[i];
        same = same_tensors(s, t) && (const char *)s->view.data == a->data + s->begin &&
               (const char *)t->view.data == b->data + t->begin;
    }
    while (same && proto_container_next(a, &name[0], &value[0]))
        same = proto_container_next(b, &name[1], &value[1]) && !strcmp(name[0], name[1]) && !strcmp(value[0], value[1]);
    return same && !proto_container_next(b, &name[1], &value[1]);
}

/* A header means the same, and is wrong for the same reason, whichever reader it is for. */
START_TEST(both_readers) {
    static const char *const headers[] = {
        "{" ALL "}",
        "{" LOC "," CONF ",\"__metadata__\":{\"format\":\"pt\",\"include\":\"images\",\"\":\"\"}," BOXES "," LABELS
        "," COUNTS "}   ",
        "{\"__metadata__\": {}, \"a\": {\"shape\": [8, 22], \"data_offsets\": [0, 176], \"dtype\": \"U8\"}}",
        "{\"a\":{\"data_offsets\":[ 0 , 176 ],\"dtype\":\"F8_E4M3\" ,\"shape\":[]\n},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[176,176]}}",
    };
    int accepted = 0, refused = 0;
    random_state = 5;
    for (int i = 0; i < 30000; i++) {
        const char *header = headers[i % 4];
        struct text text = {.n = strlen(header)}, other;
        memcpy(text.bytes, header, text.n);
        for (int32_t n = below(4); n > 0; n--)
            mutate(&text);
        if (text.n == 0 || !respell(&other, &text))
            continue;
        proto_container container[2];
        bx_error error[2];
        char *file[2];
        bx_status status = read_container(&container[0], &file[0], &text, &error[0]);
        ck_assert_msg(read_container(&container[1], &file[1], &other, &error[1]) == status, "%.*s: \"%s\", \"%s\"",
                      (int)text.n, text.bytes, error[0].text, error[1].text);
        if (status) {
            ck_assert_msg(!strcmp(error[0].code, error[1].code), "%.*s: %s, %s", (int)text.n, text.bytes, error[0].text,
                          error[1].text);
            refused++;
        } else {
            ck_assert(same_containers(&container[0], &container[1]));
            proto_container_fini(&container[0]);
            proto_container_fini(&container[1]);
            accepted++;
        }
        free(file[0]);
        free(file[1]);
    }
    ck_assert_msg(accepted > 5000 && refused > 5000, "%d accepted, %d refused", accepted, refused);
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("safetensors");
    tcase_add_test(cases, both_encodings);
    tcase_add_test(cases, any_alignment);
    tcase_add_test(cases, any_order);
    tcase_add_test(cases, prefixes);
    tcase_add_test(cases, header_length);
    tcase_add_test(cases, header);
    tcase_add_test(cases, offsets_and_layout);
    tcase_add_test(cases, tensors);
    tcase_add_test(cases, counts);
    tcase_add_test(cases, empty_and_match);
    tcase_add_test(cases, priors_tensor);
    tcase_add_test(cases, both_readers);
    Suite *suite = suite_create("safetensors");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
