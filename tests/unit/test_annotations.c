/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Annotations as sent to objects of the batch: forms of boxes, image sizes, numbers of labels, what is ignored and what
 * is dropped; alike in both encodings.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto.h"
#include "../support/suite.h"
#include "../support/tensors.h"

static const proto_limits limits = {.json_memory = 1 << 20};

/* ---- bodies of /v1/match ----------------------------------------------------------------------------------------- */

#define SIZES "\"criterion\":{\"matcher\":{\"iou\":\"sizes\"}},"

static bx_status decode_json(proto_request *r, const char *body, bx_error *error) {
    *error = (bx_error){0};
    return proto_request_decode(r, PROTO_MATCH, PROTO_JSON, body, strlen(body), NULL, 0, &proto_catalog_builtin,
                                &limits, error);
}

static void accept_json(proto_request *r, const char *body) {
    bx_error error;
    ck_assert_msg(decode_json(r, body, &error) == BX_OK, "%s: %s", body, error.text);
}

static void refuse_json(const char *body, bx_status status, const char *code, const char *pointer) {
    proto_request r;
    bx_error error;
    char where[160];
    ck_assert_msg(decode_json(&r, body, &error) == status, "%s: %s", body, error.text);
    ck_assert_msg(strcmp(error.code, code) == 0, "%s: %s: %s", body, error.code, error.text);
    proto_pointer(where, NULL, PROTO_JSON, &error);
    ck_assert_msg(strcmp(where, pointer) == 0, "%s: %s at %s", body, error.text, where);
}

static char *decode_tensors(proto_request *r, const struct tensors *t, bx_status *status, bx_error *error) {
    size_t bytes;
    char *file = tensors_file(t, &bytes);
    *error = (bx_error){0};
    *status = proto_request_decode(r, PROTO_MATCH, PROTO_SAFETENSORS, file, bytes, NULL, 0, &proto_catalog_builtin,
                                   &limits, error);
    return file;
}

/* Nothing that a match needs views the body, so it can go. */
static void accept_tensors(proto_request *r, const struct tensors *t) {
    bx_error error;
    bx_status status;
    free(decode_tensors(r, t, &status, &error));
    ck_assert_msg(status == BX_OK, "%s: %s", t->options, error.text);
}

static void refuse_tensors(const struct tensors *t, bx_status status, const char *code, const char *pointer) {
    proto_request r;
    bx_error error;
    bx_status got;
    char where[160];
    free(decode_tensors(&r, t, &got, &error));
    ck_assert_msg(got == status, "%s%s: %s", t->options, t->entries, error.text);
    ck_assert_msg(strcmp(error.code, code) == 0, "%s: %s", error.code, error.text);
    proto_pointer(where, NULL, PROTO_SAFETENSORS, &error);
    ck_assert_msg(strcmp(where, pointer) == 0, "%s at %s", error.text, where);
}

/* Counts, labels 0 .. and boxes. */
static struct tensors annotations(const int64_t *counts, size_t n_images, const char *dtype, const void *boxes,
                                  size_t n_objects, size_t box_bytes) {
    struct tensors t = {0};
    uint8_t labels[16];
    char shape[32];
    for (size_t i = 0; i < n_objects; i++)
        labels[i] = (uint8_t)i;
    snprintf(shape, sizeof shape, "[%zu]", n_images);
    tensors_add(&t, "counts", "I64", shape, counts, n_images * 8);
    snprintf(shape, sizeof shape, "[%zu]", n_objects);
    tensors_add(&t, "labels", "U8", shape, labels, n_objects);
    snprintf(shape, sizeof shape, "[%zu,4]", n_objects);
    tensors_add(&t, "boxes", dtype, shape, boxes, n_objects * box_bytes); /* not aligned */
    return t;
}

static void check_boxes(const proto_request *r, const float *expect, size_t n, const char *what) {
    for (size_t i = 0; i < 4 * n; i++)
        ck_assert_msg(r->batch.boxes[i] == expect[i], "%s: %zu is %.9g, not %.9g", what, i, (double)r->batch.boxes[i],
                      (double)expect[i]);
}

/* ---- forms of boxes ---------------------------------------------------------------------------------------------- */

/* Each number was chosen so that float32 arithmetic gives another one. */
START_TEST(formats) {
    static const struct {
        const char *format, *size;
        bool sizes;
        double sent[4];
        float expect[4];
    } rows[] = {
        {"xyxy", NULL, false, {0.1, 0.2, 0.7, 0.8}, {0.1f, 0.2f, 0.7f, 0.8f}},
        {"xywh", NULL, false, {0.01, 0.01, 0.45, 0.15}, {0.01f, 0.01f, (float)(0.01 + 0.45), (float)(0.01 + 0.15)}},
        {"cxcywh",
         NULL,
         false,
         {0.45, 0.5, 0.18, 0.2},
         {(float)(0.45 - 0.18 / 2), (float)(0.5 - 0.2 / 2), (float)(0.45 + 0.18 / 2), (float)(0.5 + 0.2 / 2)}},
        {"xyxy",
         NULL,
         true,
         {0.37, 0.1, 0.71, 0.3},
         {(float)((0.37 + 0.71) / 2), (float)((0.1 + 0.3) / 2), (float)(0.71 - 0.37), (float)(0.3 - 0.1)}},
        {"xywh", NULL, true, {0.01, 0.2, 0.45, 0.3}, {(float)(0.01 + 0.45 / 2), (float)(0.2 + 0.3 / 2), 0.45f, 0.3f}},
        {"cxcywh", NULL, true, {0.45, 0.5, 1.1e-11, 0.2}, {0.45f, 0.5f, 1.1e-11f, 0.2f}}, /* not by way of corners */
        {"xyxy",
         "[640,480]",
         false,
         {109.8, 20, 400.3, 333.3},
         {(float)(109.8 / 640), (float)(20.0 / 480), (float)(400.3 / 640), (float)(333.3 / 480)}},
        {"xywh",
         "[640,480]",
         false,
         {109.8, 20.1, 40.7, 33.3},
         {(float)(109.8 / 640), (float)(20.1 / 480), (float)((109.8 + 40.7) / 640), (float)((20.1 + 33.3) / 480)}},
        {"cxcywh",
         "[640,480]",
         false,
         {109.8, 60.1, 40.7, 33.3},
         {(float)((109.8 - 40.7 / 2) / 640), (float)((60.1 - 33.3 / 2) / 480), (float)((109.8 + 40.7 / 2) / 640),
          (float)((60.1 + 33.3 / 2) / 480)}},
        {"xyxy",
         "[640,480]",
         true,
         {109.8, 20.1, 400.3, 333.3},
         {(float)((109.8 + 400.3) / 2 / 640), (float)((20.1 + 333.3) / 2 / 480), (float)((400.3 - 109.8) / 640),
          (float)((333.3 - 20.1) / 480)}},
        {"cxcywh",
         "[640.5,480.25]",
         true,
         {109.8, 60.1, 40.7, 33.3},
         {(float)(109.8 / 640.5), (float)(60.1 / 480.25), (float)(40.7 / 640.5), (float)(33.3 / 480.25)}},
    };
    ck_assert((float)(0.01 + 0.45) != 0.01f + 0.45f && (float)(0.45 - 0.18 / 2) != 0.45f - 0.18f / 2 &&
              (float)(109.8 / 640) != 109.8f / 640);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[512], size[64] = "";
        const double *b = rows[i].sent;
        const int64_t counts[] = {1};
        proto_request r;
        if (rows[i].size)
            snprintf(size, sizeof size, "\"image_size\":%s,", rows[i].size);
        snprintf(body, sizeof body,
                 "{%s%s\"box_format\":\"%s\",\"annotations\":[{\"boxes\":[[%.17g,%.17g,%.17g,%.17g]],\"labels\":[0]}]}",
                 rows[i].sizes ? SIZES : "", size, rows[i].format, b[0], b[1], b[2], b[3]);
        accept_json(&r, body);
        check_boxes(&r, rows[i].expect, 1, body);
        proto_request_free(&r);

        struct tensors t = annotations(counts, 1, "F64", b, 1, 32);
        tensors_option(&t, "box_format", rows[i].format);
        if (rows[i].size)
            tensors_option(&t, "image_size", rows[i].size);
        if (rows[i].sizes)
            tensors_option(&t, "criterion", "{\"matcher\":{\"iou\":\"sizes\"}}");
        accept_tensors(&r, &t);
        check_boxes(&r, rows[i].expect, 1, body);
        proto_request_free(&r);
    }
}
END_TEST

/* Narrow dtypes are exact as doubles: what they hold is converted as well. */
START_TEST(narrow_dtypes) {
    const float f32[4] = {0.01f, 0.01f, 0.45f, 0.15f};
    const uint16_t f16[4] = {0x3800, 0x3400, 0x3000, 0x2e66}, bf16[4] = {0x3f00, 0x3e80, 0x3e00, 0x3dcd};
    const int64_t counts[] = {0, 1};
    const struct {
        const char *dtype;
        const void *boxes;
        size_t bytes;
        double values[4];
    } rows[] = {{"F32", f32, 16, {(double)0.01f, (double)0.01f, (double)0.45f, (double)0.15f}},
                {"F16", f16, 8, {0.5, 0.25, 0.125, 0.0999755859375}},
                {"BF16", bf16, 8, {0.5, 0.25, 0.125, 0.10009765625}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const double *v = rows[i].values;
        const float expect[4] = {(float)(v[0] / 3), (float)(v[1] / 7), (float)((v[0] + v[2]) / 3),
                                 (float)((v[1] + v[3]) / 7)};
        proto_request r;
        struct tensors t = annotations(counts, 2, rows[i].dtype, rows[i].boxes, 1, rows[i].bytes);
        tensors_option(&t, "box_format", "xywh");
        tensors_option(&t, "image_size", "[3,7]");
        accept_tensors(&r, &t);
        check_boxes(&r, expect, 1, rows[i].dtype);
        proto_request_free(&r);
    }
}
END_TEST

/* A native form without image size is rounded and otherwise left alone, whatever it is. */
START_TEST(native) {
    proto_request r;
    accept_json(&r, "{\"annotations\":[{\"boxes\":[[0.1,-0.0,1e-46,1e39]],\"labels\":[0]}]}");
    ck_assert(r.batch.boxes[0] == 0.1f && r.batch.boxes[2] == 0 && isinf(r.batch.boxes[3]));
    ck_assert(r.batch.boxes[1] == 0 && signbit(r.batch.boxes[1]));
    proto_request_free(&r);
}
END_TEST

/* ---- image sizes ------------------------------------------------------------------------------------------------- */

#define TWO_IMAGES                                                                                                     \
    "\"annotations\":[{\"boxes\":[[1,2,3,4],[2,2,3,3]],\"labels\":[0,1]},{\"boxes\":[[1,2,3,4]],\"labels\":[2]}]"

START_TEST(a_size_per_image) {
    static const float expect[12] = {1.f / 10, 2.f / 20, 3.f / 10, 4.f / 20, 2.f / 10, 2.f / 20,
                                     3.f / 10, 3.f / 20, 1.f / 30, 2.f / 40, 3.f / 30, 4.f / 40};
    static const double boxes[12] = {1, 2, 3, 4, 2, 2, 3, 3, 1, 2, 3, 4};
    static const int64_t counts[2] = {2, 1};
    const float pairs[4] = {10, 20, 30, 40};
    const proto_option text = {"image_size", "[[10,20],[30,40.0]]"}, one = {"image_size", "[10,20]"};
    const char *body = "{\"image_size\":[[1,2],[3,4]]," TWO_IMAGES "}";
    proto_request r;
    bx_error error = {0};
    accept_json(&r, "{\"image_size\":[[10,20],[30,40]]," TWO_IMAGES "}");
    check_boxes(&r, expect, 3, "member");
    proto_request_free(&r);
    /* the query overrides the member */
    ck_assert_int_eq(proto_request_decode(&r, PROTO_MATCH, PROTO_JSON, body, strlen(body), &text, 1,
                                          &proto_catalog_builtin, &limits, &error),
                     BX_OK);
    check_boxes(&r, expect, 3, "query");
    proto_request_free(&r);
    ck_assert_int_eq(proto_request_decode(&r, PROTO_MATCH, PROTO_JSON, body, strlen(body), &one, 1,
                                          &proto_catalog_builtin, &limits, &error),
                     BX_OK);
    check_boxes(&r, expect, 2, "query");
    ck_assert(r.batch.boxes[8] == 1.f / 10 && r.batch.boxes[11] == 4.f / 20);
    proto_request_free(&r);

    struct tensors t = annotations(counts, 2, "F64", boxes, 3, 32);
    tensors_add(&t, "image_sizes", "F32", "[2,2]", pairs, 16);
    accept_tensors(&r, &t);
    check_boxes(&r, expect, 3, "tensor");
    proto_request_free(&r);
    /* a float32 width is what it is, not the decimal it came from */
    const float third[4] = {10.1f, 20, 30, 40};
    t = annotations(counts, 2, "F64", boxes, 3, 32);
    tensors_add(&t, "image_sizes", "F32", "[2,2]", third, 16);
    accept_tensors(&r, &t);
    ck_assert(r.batch.boxes[0] == (float)(1 / (double)10.1f));
    proto_request_free(&r);
}
END_TEST

START_TEST(refused_sizes) {
#define SIZED(size) "{\"image_size\":" size "," TWO_IMAGES "}"
    refuse_json(SIZED("[]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[1]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[1,2,3]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[[1,2]]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[[1,2],[1,2],[1,2]]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[[],[]]"), BX_SHAPE, "shape", "/image_size");
    refuse_json(SIZED("[[1,2],[1]]"), BX_SHAPE, "ragged_array", "/image_size/1");
    refuse_json(SIZED("[[1,2],3]"), BX_SHAPE, "ragged_array", "/image_size/1");
    refuse_json(SIZED("[1,[2]]"), BX_INVALID, "type_mismatch", "/image_size/1");
    refuse_json(SIZED("[1,null]"), BX_INVALID, "type_mismatch", "/image_size/1");
    refuse_json(SIZED("[[1,2],[1,\"2\"]]"), BX_INVALID, "type_mismatch", "/image_size/1/1");
    refuse_json(SIZED("[0,1]"), BX_INVALID, "invalid_option", "/image_size");
    refuse_json(SIZED("[1,-1]"), BX_INVALID, "invalid_option", "/image_size");
    refuse_json(SIZED("[[1,2],[1,0]]"), BX_INVALID, "invalid_option", "/image_size/1");
    refuse_json(SIZED("\"[1,2]\""), BX_INVALID, "type_mismatch", "/image_size");
    refuse_json(SIZED("{}"), BX_INVALID, "type_mismatch", "/image_size");
    refuse_json("{\"priors\":\"retinanet-64x64\",\"image_size\":[64,64]," TWO_IMAGES "}", BX_INVALID, "invalid_option",
                "/image_size");

    static const double boxes[4] = {1, 2, 3, 4};
    static const int64_t counts[2] = {0, 1};
    static const struct {
        const char *text;
        bx_status status;
        const char *code, *pointer;
    } texts[] = {{"640x480", BX_INVALID, "invalid_option", "image_size"},
                 {"", BX_INVALID, "invalid_option", "image_size"},
                 {"[640,480", BX_INVALID, "invalid_option", "image_size"},
                 {"[640,480]]", BX_INVALID, "invalid_option", "image_size"},
                 {"[640,NaN]", BX_INVALID, "invalid_option", "image_size"},
                 {"[640,0]", BX_INVALID, "invalid_option", "image_size"},
                 {"[[640,480]]", BX_SHAPE, "shape", "image_size"},
                 {"{\"a\":1}", BX_INVALID, "type_mismatch", "image_size"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct tensors t = annotations(counts, 2, "F64", boxes, 1, 32);
        tensors_option(&t, "image_size", texts[i].text);
        refuse_tensors(&t, texts[i].status, texts[i].code, texts[i].pointer);
    }
    static const struct {
        const char *shape;
        size_t n;
        float values[6];
        bx_status status;
        const char *code, *pointer;
    } pairs[] = {{"[1,2]", 1, {1, 2}, BX_SHAPE, "shape", "image_sizes"},
                 {"[3,2]", 3, {1, 2, 1, 2, 1, 2}, BX_SHAPE, "shape", "image_sizes"},
                 {"[0,2]", 0, {0}, BX_SHAPE, "shape", "image_sizes"},
                 {"[2,2]", 2, {1, 2, 1, 0}, BX_INVALID, "invalid_option", "image_sizes[1]"},
                 {"[2,2]", 2, {NAN, 2, 1, 2}, BX_INVALID, "invalid_option", "image_sizes[0]"},
                 {"[2,2]", 2, {1, 2, 1, INFINITY}, BX_INVALID, "invalid_option", "image_sizes[1]"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct tensors t = annotations(counts, 2, "F64", boxes, 1, 32);
        tensors_add(&t, "image_sizes", "F32", pairs[i].shape, pairs[i].values, pairs[i].n * 8);
        refuse_tensors(&t, pairs[i].status, pairs[i].code, pairs[i].pointer);
    }
    const float good[4] = {1, 2, 1, 2};
    struct tensors t = annotations(counts, 2, "F64", boxes, 1, 32);
    tensors_add(&t, "image_sizes", "F32", "[2,2]", good, 16);
    tensors_option(&t, "image_size", "[1,2]");
    refuse_tensors(&t, BX_INVALID, "image_size_twice", "image_sizes");
    t = annotations(counts, 2, "F64", boxes, 1, 32);
    tensors_add(&t, "image_sizes", "F32", "[2,2]", good, 16);
    tensors_option(&t, "priors", "grid-64x64");
    refuse_tensors(&t, BX_INVALID, "invalid_option", "image_sizes");
}
END_TEST

/* ---- labels ------------------------------------------------------------------------------------------------------ */

#define LABELLED(base, label)                                                                                          \
    "{\"label_base\":" base ",\"annotations\":[{\"boxes\":[],\"labels\":[]},"                                          \
    "{\"boxes\":[[0,0,1,1],[0,0,1,1]],\"labels\":[2," label "]}]}"

START_TEST(label_base) {
    proto_request r;
    accept_json(&r, LABELLED("0", "0"));
    ck_assert(r.label_base == 0 && r.batch.labels[0] == 2 && r.batch.labels[1] == 0 && r.batch.n_columns == 4);
    proto_request_free(&r);
    accept_json(&r, LABELLED("1", "1"));
    ck_assert(r.label_base == 1 && r.batch.labels[0] == 1 && r.batch.labels[1] == 0 && r.batch.n_columns == 3);
    proto_request_free(&r);
    refuse_json(LABELLED("2", "1"), BX_INVALID, "invalid_option", "/label_base");
    refuse_json(LABELLED("-1", "1"), BX_INVALID, "invalid_option", "/label_base");
    refuse_json(LABELLED("1.0", "1"), BX_INVALID, "type_mismatch", "/label_base");
    refuse_json(LABELLED("true", "1"), BX_INVALID, "type_mismatch", "/label_base");
    /* told as it was sent */
    refuse_json(LABELLED("1", "0"), BX_INVALID, "label_range", "/annotations/1/labels/1");
    refuse_json(LABELLED("1", "-9223372036854775808"), BX_INVALID, "label_range", "/annotations/1/labels/1");
    refuse_json(LABELLED("1,\"classes\":2", "3"), BX_INVALID, "label_range", "/annotations/1/labels/1");
    bx_error error;
    ck_assert_int_eq(decode_json(&r, LABELLED("1,\"classes\":2", "3"), &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "is 3, which is not in 1 to 2"));
    accept_json(&r, LABELLED("1,\"classes\":2", "2"));
    proto_request_free(&r);

    static const float boxes[8] = {0, 0, 1, 1, 0, 0, 1, 1};
    static const int64_t counts[2] = {0, 2};
    struct tensors t = annotations(counts, 2, "F32", boxes, 2, 16); /* labels 0 and 1 */
    tensors_option(&t, "label_base", "1");
    refuse_tensors(&t, BX_INVALID, "label_range", "labels[0]");
    /* nobody minds what is ignored or dropped */
    tensors_add(&t, "ignore", "U8", "[2]", "\1", 2);
    accept_tensors(&r, &t);
    ck_assert(r.batch.labels[0] == -1 && r.batch.labels[1] == 0);
    proto_request_free(&r);
}
END_TEST

/* ---- what becomes of objects ------------------------------------------------------------------------------------- */

#define THREE(extra)                                                                                                   \
    "{\"annotations\":[{\"boxes\":[[0,0,1,1],[0,0,1,1]],\"labels\":[0,5]" extra "},"                                   \
    "{\"boxes\":[[0,0,1,1]],\"labels\":[2]}]}"

START_TEST(ignored) {
    static const float boxes[12] = {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1};
    static const int64_t counts[2] = {2, 1};
    proto_request r;
    accept_json(&r, THREE(""));
    ck_assert(!r.batch.use && r.batch.n_columns == 7);
    proto_request_free(&r);
    accept_json(&r, THREE(",\"ignore\":[0,false]"));
    ck_assert(!r.batch.use && r.batch.n_columns == 7);
    proto_request_free(&r);
    static const char *const bodies[] = {THREE(",\"ignore\":[0,1]"), THREE(",\"ignore\":[false,true]")};
    for (int i = 0; i < 2; i++) {
        accept_json(&r, bodies[i]);
        ck_assert(r.batch.use[0] == BX_OBJECT_USED && r.batch.use[1] == BX_OBJECT_IGNORED &&
                  r.batch.use[2] == BX_OBJECT_USED);
        ck_assert_int_eq(r.batch.n_columns, 4); /* its label does not count */
        ck_assert(r.batch.first[1] == 2 && r.batch.first[2] == 3);
        proto_request_free(&r);
    }
    refuse_json(THREE(",\"ignore\":[0]"), BX_SHAPE, "shape", "/annotations/0/ignore");
    refuse_json(THREE(",\"ignore\":[0,2]"), BX_INVALID, "type_mismatch", "/annotations/0/ignore/1");
    refuse_json(THREE(",\"ignore\":[-1,0]"), BX_INVALID, "type_mismatch", "/annotations/0/ignore/0");
    refuse_json(THREE(",\"ignore\":[0,1.0]"), BX_INVALID, "type_mismatch", "/annotations/0/ignore/1");
    refuse_json(THREE(",\"ignore\":[0,null]"), BX_INVALID, "type_mismatch", "/annotations/0/ignore/1");
    refuse_json(THREE(",\"ignore\":1"), BX_INVALID, "type_mismatch", "/annotations/0/ignore");
    refuse_json(THREE(",\"ignored\":[0,1]"), BX_INVALID, "unknown_member", "/annotations/0/ignored");

    static const char *const dtypes[] = {"BOOL", "U8"};
    for (int i = 0; i < 2; i++) {
        struct tensors t = annotations(counts, 2, "F32", boxes, 3, 16);
        tensors_add(&t, "ignore", dtypes[i], "[3]", "\0\1\0", 3);
        accept_tensors(&r, &t);
        ck_assert(r.batch.use[0] == BX_OBJECT_USED && r.batch.use[1] == BX_OBJECT_IGNORED &&
                  r.batch.use[2] == BX_OBJECT_USED);
        proto_request_free(&r);
        t = annotations(counts, 2, "F32", boxes, 3, 16);
        tensors_add(&t, "ignore", dtypes[i], "[3]", "\0\1\2", 3);
        refuse_tensors(&t, BX_INVALID, "type_mismatch", "ignore[2]");
        t = annotations(counts, 2, "F32", boxes, 3, 16);
        tensors_add(&t, "ignore", dtypes[i], "[2]", "\0\1", 2);
        refuse_tensors(&t, BX_SHAPE, "shape", "ignore");
    }
}
END_TEST

START_TEST(dropped) {
    /* inverted, empty, good, ignored and empty, not finite, with an area that vanishes in float32 */
#define DUBIOUS                                                                                                        \
    "\"annotations\":[{\"boxes\":[[0.5,0,0.1,1],[0.1,0.1,0.1,0.5],[0,0,1,1],[0.1,0.1,0.5,0.1],[0,0,1,1e39],"           \
    "[0,0,1e-30,1e-30]],\"labels\":[7,0,0,0,1,0],\"ignore\":[0,0,0,1,0,0]}]}"
    static const uint8_t expect[] = {BX_OBJECT_DROPPED, BX_OBJECT_DROPPED, BX_OBJECT_USED,
                                     BX_OBJECT_DROPPED, BX_OBJECT_USED,    BX_OBJECT_DROPPED};
    static const uint8_t refused[] = {0, 0, 0, BX_OBJECT_IGNORED, 0, 0};
    proto_request r;
    accept_json(&r, "{\"invalid_boxes\":\"drop\"," DUBIOUS);
    ck_assert_mem_eq(r.batch.use, expect, sizeof expect);
    ck_assert_int_eq(r.batch.n_columns, 3); /* label 7 was dropped, label 1 was not */
    ck_assert_int_eq(r.batch.first[1], 6);
    proto_request_free(&r);
    accept_json(&r, "{\"invalid_boxes\":\"refuse\"," DUBIOUS); /* the plan will say what is wrong */
    ck_assert_mem_eq(r.batch.use, refused, sizeof refused);
    proto_request_free(&r);
    /* the same in the other native form, where an inverted box has a negative size */
    accept_json(&r, "{" SIZES "\"invalid_boxes\":\"drop\"," DUBIOUS);
    ck_assert_mem_eq(r.batch.use, expect, sizeof expect);
    proto_request_free(&r);
    /* after the conversion: a width that the division makes vanish */
    accept_json(&r, "{\"invalid_boxes\":\"drop\",\"image_size\":[1e30,1e30],"
                    "\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[0]}]}");
    ck_assert_int_eq(r.batch.use[0], BX_OBJECT_DROPPED);
    proto_request_free(&r);
    accept_json(&r, "{\"invalid_boxes\":\"drop\",\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[0]}]}");
    ck_assert_ptr_null(r.batch.use);
    proto_request_free(&r);
}
END_TEST

/* ---- both encodings ---------------------------------------------------------------------------------------------- */

START_TEST(alike) {
    static const double boxes[16] = {10.1, 20.2, 5.5, 7.7, 1, 2, 0, 4, 3.3, 4.4, 100, 50, 8, 8, 8, 8};
    static const int64_t counts[3] = {1, 0, 3};
    static const float pairs[6] = {640, 480, 320, 240, 500, 375};
    const char *json =
        "{\"criterion\":\"retinanet-focal\",\"priors\":\"ssd300\",\"box_format\":\"xywh\",\"label_base\":1,"
        "\"invalid_boxes\":\"drop\",\"image_size\":[[640,480],[320,240],[500,375]],\"annotations\":["
        "{\"boxes\":[[10.1,20.2,5.5,7.7]],\"labels\":[1],\"ignore\":[1]},{\"boxes\":[],\"labels\":[],\"ignore\":[]},"
        "{\"boxes\":[[1,2,0,4],[3.3,4.4,100,50],[8,8,8,8]],\"labels\":[2,3,4]}]}";
    struct tensors t = {0};
    tensors_option(&t, "criterion", "retinanet-focal");
    tensors_option(&t, "priors", "ssd300");
    tensors_option(&t, "box_format", "xywh");
    tensors_option(&t, "label_base", "1");
    tensors_option(&t, "invalid_boxes", "drop");
    tensors_add(&t, "ignore", "BOOL", "[4]", "\1\0\0\0", 4);
    tensors_add(&t, "labels", "I8", "[4]", "\1\2\3\4", 4);
    tensors_add(&t, "boxes", "F64", "[4,4]", boxes, sizeof boxes);
    tensors_add(&t, "image_sizes", "F32", "[3,2]", pairs, sizeof pairs);
    tensors_add(&t, "counts", "I64", "[3]", counts, sizeof counts);
    proto_request a, b;
    accept_json(&a, json);
    accept_tensors(&b, &t);
    ck_assert_int_eq(a.batch.n_images, b.batch.n_images);
    ck_assert_int_eq(a.batch.n_columns, b.batch.n_columns);
    ck_assert_int_eq(a.batch.n_columns, 4); /* four classes, no background */
    ck_assert_int_eq(a.label_base, b.label_base);
    ck_assert_mem_eq(a.batch.first, b.batch.first, 4 * sizeof *a.batch.first);
    ck_assert_mem_eq(a.batch.labels, b.batch.labels, 4 * sizeof *a.batch.labels);
    ck_assert_mem_eq(a.batch.boxes, b.batch.boxes, 16 * sizeof *a.batch.boxes);
    ck_assert_mem_eq(a.batch.use, b.batch.use, 4);
    ck_assert(a.batch.use[0] == BX_OBJECT_IGNORED && a.batch.use[1] == BX_OBJECT_DROPPED &&
              a.batch.use[2] == BX_OBJECT_USED);
    ck_assert_str_eq(a.criterion->name, b.criterion->name);
    proto_request_free(&a);
    proto_request_free(&b);
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("annotations");
    tcase_add_test(cases, formats);
    tcase_add_test(cases, narrow_dtypes);
    tcase_add_test(cases, native);
    tcase_add_test(cases, a_size_per_image);
    tcase_add_test(cases, refused_sizes);
    tcase_add_test(cases, label_base);
    tcase_add_test(cases, ignored);
    tcase_add_test(cases, dropped);
    tcase_add_test(cases, alike);
    Suite *suite = suite_create("annotations");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
