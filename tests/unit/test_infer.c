/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inferences of the Open Inference Protocol: the batch that every form of one becomes, what the protocol does not
 * allow, how much of a body must be in, answers in both forms; the codings of bodies.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/job.h"
#include "../support/suite.h"
#include "../support/tree.h"

static const proto_limits limits = {.json_memory = 1 << 20};
static const proto_timing timing = {1.5, 0, 0.25};

/* 1 image, 2 priors, 3 columns, 1 object that is the first prior. */
static const struct data {
    int64_t counts[1], labels[1];
    float boxes[4], priors[8], conf[6], loc[8];
} good = {{1},
          {0},
          {0, 0, 0.5f, 0.5f},
          {0.25f, 0.25f, 0.5f, 0.5f, 0.75f, 0.75f, 0.5f, 0.5f},
          {0, 1, 0, 0.5f, 0, 2},
          {0.5f, -0.25f, 0, 2, 1, 1, 1, 1}};

#define IN(name, type, shape, rest) "{\"name\":\"" name "\",\"datatype\":\"" type "\",\"shape\":" shape "," rest "}"
#define BYTES(n)                    "\"parameters\":{\"binary_data_size\":" #n "}"
#define DATA(numbers)               "\"data\":" numbers
#define FIRST                                                                                                          \
    IN("counts", "INT64", "[1]", BYTES(8))                                                                             \
    "," IN("labels", "INT64", "[1]", BYTES(8)) "," IN("boxes", "FP32", "[1,4]", BYTES(16)) "," IN("priors", "FP32",    \
                                                                                                  "[2,4]", BYTES(32))
#define CONF       IN("conf", "FP32", "[1,2,3]", BYTES(24))
#define LOC        IN("loc", "FP32", "[1,2,4]", BYTES(32))
#define ALL_BYTES  FIRST "," CONF "," LOC
#define COUNTS_J   IN("counts", "INT64", "[1]", DATA("[1]"))
#define LABELS_J   IN("labels", "INT64", "[1]", DATA("[0]"))
#define BOXES_J    IN("boxes", "FP32", "[1,4]", DATA("[[0,0,0.5,0.5]]"))
#define PRIORS_J   IN("priors", "FP32", "[2,4]", DATA("[0.25,0.25,0.5,0.5,0.75,0.75,0.5,0.5]"))
#define CONF_J     IN("conf", "FP32", "[1,2,3]", DATA("[[[0,1,0],[0.5,0,2]]]"))
#define LOC_J      "{\"data\":[0.5,-0.25,0,2,1,1,1,1],\"shape\":[1,2,4],\"datatype\":\"FP32\",\"name\":\"loc\"}"
#define ALL_JSON   COUNTS_J "," LABELS_J "," BOXES_J "," PRIORS_J "," CONF_J "," LOC_J
#define JSON(list) "{\"inputs\":[" list "]}"

/* JSON and some of the good data, in memory of exactly their size. */
struct body {
    char *bytes;
    size_t n;
    int64_t json_bytes;
};

static struct body make(const char *json, const void *data, size_t bytes) {
    struct body body = {malloc(strlen(json) + bytes + 1), strlen(json) + bytes, (int64_t)strlen(json)};
    memcpy(body.bytes, json, strlen(json));
    if (bytes > 0)
        memcpy(body.bytes + strlen(json), data, bytes);
    body.bytes = realloc(body.bytes, body.n > 0 ? body.n : 1);
    return body;
}

static bx_status decode(proto_request *request, const struct body *body, int64_t json_bytes, bx_error *error) {
    *error = (bx_error){0};
    return proto_infer_decode(request, "ssd-multibox", json_bytes, body->bytes, body->n, NULL, 0,
                              &proto_catalog_builtin, &limits, error);
}

static void check_good(const proto_request *r) {
    float values[8];
    ck_assert(r->batch.n_images == 1 && r->batch.n_priors == 2 && r->batch.n_columns == 3);
    bx_tensor_to_f32(values, r->batch.conf, 0, 6);
    ck_assert(memcmp(values, good.conf, sizeof good.conf) == 0);
    bx_tensor_to_f32(values, r->batch.loc, 0, 8);
    ck_assert(memcmp(values, good.loc, sizeof good.loc) == 0);
    ck_assert(memcmp(r->batch.boxes, good.boxes, sizeof good.boxes) == 0);
    ck_assert(r->batch.labels[0] == 0 && r->batch.first[0] == 0 && r->batch.first[1] == 1);
    ck_assert(memcmp(r->priors->boxes, good.priors, sizeof good.priors) == 0);
}

/* ---- bodies ------------------------------------------------------------------------------------------------------ */

START_TEST(every_form) {
    static const struct {
        const char *json;
        size_t skipped; /* of the good data */
        bool header;
    } forms[] = {
        {JSON(ALL_BYTES), 0, true},
        {JSON(ALL_JSON), sizeof good, true},
        {JSON(ALL_JSON), sizeof good, false},
        {" \n" JSON(ALL_JSON) "\t ", sizeof good, false},
        {JSON(COUNTS_J "," LABELS_J "," BOXES_J "," PRIORS_J "," CONF "," LOC), offsetof(struct data, conf), true},
        {JSON(CONF "," PRIORS_J "," COUNTS_J "," LOC "," BOXES_J "," LABELS_J), offsetof(struct data, conf), true},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct body body = make(forms[i].json, (const char *)&good + forms[i].skipped, sizeof good - forms[i].skipped);
        proto_request r;
        bx_error error;
        ck_assert_msg(decode(&r, &body, forms[i].header ? body.json_bytes : -1, &error) == BX_OK, "%zu: %s at %s", i,
                      error.text, error.path);
        check_good(&r);
        const char *conf = r.batch.conf.data;
        const bool views = conf >= body.bytes && conf < body.bytes + body.n;
        ck_assert_int_eq(views, forms[i].skipped < sizeof good); /* bytes are not copied */
        ck_assert(r.infer.id == NULL && r.infer.outputs == 0 && r.infer.binary == 0);
        proto_request_free(&r);
        free(body.bytes);
    }
}
END_TEST

/* Bytes at every alignment: the JSON can have any length. */
START_TEST(any_alignment) {
    for (int pad = 0; pad < 8; pad++) {
        char json[2048];
        snprintf(json, sizeof json, "%*s%s", pad, "", JSON(ALL_BYTES));
        struct body body = make(json, &good, sizeof good);
        proto_request r;
        bx_error error;
        ck_assert_msg(decode(&r, &body, body.json_bytes, &error) == BX_OK, "%s", error.text);
        check_good(&r);
        proto_request_free(&r);
        free(body.bytes);
    }
}
END_TEST

/* What the text of each refused body is, with all of the good data behind it or none; where it is refused. */
static const struct refusal {
    const char *json;
    bool data;
    bx_status status;
    const char *code, *path;
} refusals[] = {
    {"", false, BX_MALFORMED, "json_empty", ""},
    {"[]", false, BX_MALFORMED, "json_not_object", ""},
    {"{}", false, BX_MALFORMED, "infer_request", ""},
    {"{\"inputs\":3}", false, BX_MALFORMED, "infer_request", "inputs"},
    {"{\"inputs\":[3]}", false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {"{\"inputs\":[{}]}", false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {"{\"inputs\":[],\"outptus\":[]}", false, BX_INVALID, "unknown_member", "outptus"},
    {"{\"inputs\":[{\"data\":[NaN]}]}", false, BX_MALFORMED, "json_nan", ""},
    {JSON(ALL_BYTES), false, BX_MALFORMED, "bin_size", "inputs[0]"},
    {JSON(ALL_BYTES), true, BX_OK, "", ""},
    {JSON(FIRST "," CONF), true, BX_MALFORMED, "bin_layout", ""},
    {JSON(FIRST "," LOC "," CONF), true, BX_OK, "", ""},
    {JSON(FIRST "," CONF "," CONF), true, BX_MALFORMED, "infer_request", "inputs[5]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", BYTES(31))), true, BX_MALFORMED, "bin_size", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", BYTES(-1))), true, BX_MALFORMED, "bin_size", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", BYTES(9223372036854775807))), true, BX_MALFORMED, "bin_size", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", BYTES(9223372036854775808))), true, BX_MALFORMED, "json_number_range", ""},
    {JSON(IN("loc", "FP32", "[4611686018427387904,4611686018427387904,4]", BYTES(0))), false, BX_MALFORMED,
     "bin_shape_overflow", "inputs[0].shape"},
    {JSON(IN("loc", "FP32", "[0,4]", BYTES(0))), false, BX_SHAPE, "shape", "loc"},
    {JSON(IN("loc", "FP32", "[1,-2,4]", BYTES(0))), false, BX_MALFORMED, "infer_request", "inputs[0].shape[1]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", "\"x\":1")), false, BX_INVALID, "unknown_member", "inputs[0].x"},
    {JSON(IN("loc", "FP32", "[1,2,4]", "\"parameters\":{}")), false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", DATA("[]") "," BYTES(0))), false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]", DATA("[1,2,3]"))), false, BX_SHAPE, "shape", "inputs[0].data"},
    {JSON(IN("loc", "FP32", "[1,2,2]", DATA("[[1,2],[3,4]]"))), false, BX_SHAPE, "shape", "inputs[0].data"},
    {JSON(IN("loc", "FP32", "[1,2,2]", DATA("[[[1,2],[3]]]"))), false, BX_SHAPE, "ragged_array",
     "inputs[0].data[0][1]"},
    {JSON(IN("loc", "FP32", "[1]", DATA("[\"1\"]"))), false, BX_INVALID, "type_mismatch", "inputs[0].data[0]"},
    {JSON(IN("loc", "FP16", "[1]", DATA("[1]"))), false, BX_INVALID, "dtype", "inputs[0]"},
    {JSON(IN("loc", "INT8", "[1]", DATA("[128]"))), false, BX_INVALID, "type_mismatch", "inputs[0].data[0]"},
    {JSON(IN("loc", "INT64", "[1]", DATA("[1.5]"))), false, BX_INVALID, "type_mismatch", "inputs[0].data[0]"},
    {JSON(IN("loc", "BYTES", "[1,2,4]", BYTES(5))), true, BX_MALFORMED, "bin_layout", ""},
    {JSON(IN("loc", "BYTES", "[1]", DATA("[1]"))), false, BX_INVALID, "dtype", "loc"},
    {JSON(IN("loc", "FP32", "[1,2,4]", "\"parameters\":{\"shared_memory_region\":\"r\"}")), false, BX_MALFORMED,
     "infer_request", "inputs[0]"},
    {JSON(IN("loc", "FP32", "[1,2,4]",
             "\"parameters\":{\"shared_memory_region\":\"r\",\"shared_memory_byte_size\":32}")),
     false, BX_INVALID, "unsupported_option", "inputs[0]"},
    {JSON("{\"name\":\"loc\",\"shape\":[1],\"data\":[1]}"), false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {JSON("{\"name\":\"loc\",\"datatype\":\"FP32\",\"data\":[1]}"), false, BX_MALFORMED, "infer_request", "inputs[0]"},
    {"{\"inputs\":[],\"id\":1}", false, BX_MALFORMED, "infer_request", "id"},
    {"{\"inputs\":[],\"parameters\":1}", false, BX_MALFORMED, "infer_request", "parameters"},
    {"{\"inputs\":[],\"parameters\":{\"criterion\":\"x\"}}", false, BX_INVALID, "invalid_option",
     "parameters.criterion"},
    {"{\"inputs\":[],\"parameters\":{\"device\":1.5}}", false, BX_INVALID, "type_mismatch", "parameters.device"},
    {"{\"inputs\":[],\"parameters\":{\"priority\":1,\"timeout\":2,\"sequence_id\":3}}", false, BX_INVALID,
     "missing_member", "counts"},
    {"{\"inputs\":[],\"outputs\":[{\"name\":\"x\"}]}", false, BX_INVALID, "unknown_member", "outputs[0]"},
    {"{\"inputs\":[],\"outputs\":[{\"name\":\"loss\"},{\"name\":\"loss\"}]}", false, BX_MALFORMED, "infer_request",
     "outputs[1]"},
    {"{\"inputs\":[],\"outputs\":[{\"name\":\"loss\",\"parameters\":{\"binary_data\":1}}]}", false, BX_MALFORMED,
     "infer_request", "outputs[0].parameters.binary_data"},
};

START_TEST(test_refusals) {
    const struct refusal *row = &refusals[_i];
    struct body body = make(row->json, &good, row->data ? sizeof good : 0);
    proto_request r;
    bx_error error;
    bx_status status = decode(&r, &body, body.json_bytes, &error);
    ck_assert_msg(status == row->status, "%s: %d (%s: %s)", row->json, status, error.code, error.text);
    ck_assert_msg(strcmp(status ? error.code : "", row->code) == 0, "%s: %s: %s", row->json, error.code, error.text);
    ck_assert_msg(strcmp(error.path, row->path) == 0, "%s: %s at \"%s\"", row->json, error.text, error.path);
    if (!status)
        proto_request_free(&r);
    free(body.bytes);
}
END_TEST

/* A JSON that is said to be shorter or longer than it is. */
START_TEST(lengths) {
    struct body body = make(JSON(ALL_BYTES), &good, sizeof good);
    for (int64_t length = 1; length <= (int64_t)body.n + 1; length++) {
        proto_request r;
        bx_error error;
        bx_status status = decode(&r, &body, length, &error);
        ck_assert_int_eq(status, length == body.json_bytes ? BX_OK : BX_MALFORMED);
        if (!status)
            proto_request_free(&r);
    }
    proto_request r;
    bx_error error;
    ck_assert_int_eq(decode(&r, &body, -1, &error), BX_MALFORMED);
    ck_assert_ptr_nonnull(strstr(error.text, "Inference-Header-Content-Length"));
    free(body.bytes);
}
END_TEST

START_TEST(what_is_asked) {
    static const char json[] =
        "{\"id\":\"a\\u00e4\",\"inputs\":[" ALL_JSON
        "],\"outputs\":[{\"name\":\"grad_loc\"},{\"name\":\"loss\",\"parameters\":"
        "{\"binary_data\":false}}],\"parameters\":{\"binary_data_output\":true,\"label_base\":0}}";
    struct body body = make(json, NULL, 0);
    proto_request r;
    bx_error error;
    ck_assert_msg(decode(&r, &body, -1, &error) == BX_OK, "%s", error.text);
    ck_assert_str_eq(r.infer.id, "a\xc3\xa4");
    unsigned loc = 0, loss = 0;
    for (size_t i = 0; proto_output_at(i); i++) {
        loc |= strcmp(proto_output_at(i)->name, "grad_loc") ? 0 : 1u << i;
        loss |= strcmp(proto_output_at(i)->name, "loss") ? 0 : 1u << i;
    }
    ck_assert_uint_eq(r.infer.outputs, loc | loss);
    ck_assert_uint_eq(r.infer.binary, loc);
    ck_assert_int_eq(r.gradients, BX_GRADIENTS_SPARSE); /* nobody said include */
    ck_assert(!r.batch.explained);
    ck_assert_str_eq(r.criterion->name, "ssd-multibox");
    proto_request_free(&r);
    free(body.bytes);
}
END_TEST

/* Outputs that tell of every prior. */
START_TEST(what_is_explained) {
    static const char *const names[] = {"target_classes", "target_objects", "target_loc"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char json[2048];
        snprintf(json, sizeof json, "{\"inputs\":[" ALL_JSON "],\"outputs\":[{\"name\":\"%s\"}]}", names[i]);
        struct body body = make(json, NULL, 0);
        proto_request r;
        bx_error error;
        ck_assert_msg(decode(&r, &body, -1, &error) == BX_OK, "%s", error.text);
        ck_assert_msg(r.batch.explained, "%s", names[i]);
        proto_request_free(&r);
        free(body.bytes);
    }
}
END_TEST

START_TEST(prefixes) {
    static const size_t annotations = offsetof(struct data, conf);
    static const struct {
        const char *json;
        size_t skipped;
        int64_t behind; /* bytes of data that must be in; -1: all of the body */
    } rows[] = {
        {JSON(ALL_BYTES), 0, (int64_t)annotations},
        {JSON(FIRST "," LOC "," CONF), 0, (int64_t)annotations},
        {JSON(CONF "," FIRST "," LOC), 0, 24 + (int64_t)annotations},
        {JSON(COUNTS_J "," LABELS_J "," BOXES_J "," CONF "," LOC), offsetof(struct data, conf), 0},
        {JSON(FIRST "," CONF_J "," LOC), 0, -1},
        {JSON("3"), 0, 0},
        {"{\"inputs\":", 0, 0},
        {JSON(IN("boxes", "FP32", "[1]", BYTES(9223372036854775807)) "," FIRST), 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct body body = make(rows[i].json, (const char *)&good + rows[i].skipped, sizeof good - rows[i].skipped);
        const size_t head = (size_t)body.json_bytes;
        const size_t want = rows[i].behind < 0 ? body.n : head + (size_t)rows[i].behind;
        for (size_t received = 0; received <= body.n; received++) {
            char *part = malloc(received ? received : 1);
            memcpy(part, body.bytes, received);
            const size_t got = proto_infer_prefix(part, received, body.n, body.json_bytes);
            ck_assert_msg(got == (received < head ? 0 : want), "%zu: %zu of %zu", i, got, received);
            free(part);
        }
        free(body.bytes);
    }
}
END_TEST

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* Numbers of an answer's output, from its JSON or from the bytes. */
static void check_output(const proto_node *output, const proto_slot *slot, const char **bytes, const char *want) {
    const size_t size = proto_slot_bytes(slot);
    ck_assert_str_eq(get_string(output, "name"), slot->name);
    ck_assert_str_eq(get_string(output, "datatype"), proto_datatype_name(slot->dtype));
    ck_assert_uint_eq(proto_json_size(get(output, "shape")), (size_t)slot->rank);
    const proto_node *data = get(output, "data");
    if (!data) {
        ck_assert_int_eq(get_int(output, "parameters.binary_data_size"), (int64_t)size);
        ck_assert(memcmp(*bytes, want, size) == 0);
        *bytes += size;
        return;
    }
    const size_t n = size / bx_dtype_bytes(slot->dtype);
    ck_assert_uint_eq(proto_json_size(data), n);
    for (size_t i = 0; i < n; i++) {
        const double value = proto_json_number(proto_json_at(data, i));
        const void *at = want + i * bx_dtype_bytes(slot->dtype);
        ck_assert(slot->dtype == BX_F64   ? value == *(const double *)at
                  : slot->dtype == BX_F32 ? (float)value == *(const float *)at
                                          : value == *(const int32_t *)at);
    }
}

/* The same answer with these outputs, of which some are bytes. */
static void check_answer(const computation *c, proto_request *r, unsigned outputs, unsigned binary) {
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS];
    proto_buffer out = {0};
    bx_error error = {0}, small = {0};
    proto_infer_layout layout;
    r->infer.outputs = outputs;
    for (int i = PROTO_N_OUTPUTS, k = 0; i-- > 0;)
        if (outputs >> i & 1)
            r->infer.order[k++] = (uint8_t)i;
    r->infer.binary = binary;
    const int64_t rows = bx_job_gradient_rows(&c->job);
    const size_t bound = proto_answer_bytes(r, &c->plan, rows, PROTO_INFER);
    ck_assert_int_eq(proto_infer_encode(&out, &layout, r, &c->result, &timing, "id", bound, &error), BX_OK);
    ck_assert_uint_le(out.bytes, bound);
    ck_assert_uint_eq(out.bytes, layout.sent_bytes);
    ck_assert_int_eq(layout.n_shared, 0);
    ck_assert_int_eq(proto_infer_encode(&out, &layout, r, &c->result, &timing, "id", bound - 1, &small), BX_TOO_LARGE);
    const size_t text = layout.json_bytes > 0 ? layout.json_bytes : out.bytes;
    proto_node *root = parse(out.data, text);
    const proto_answer answer = proto_answer_of(r, &c->plan, &c->result, rows);
    const int n = proto_answer_slots(&answer, slots, ids);
    const char *bytes = out.data + text;
    ck_assert_uint_eq(proto_json_size(get(root, "outputs")), (size_t)n);
    for (int i = 0; i < n; i++) {
        proto_buffer want = {0};
        proto_sink sink = {.out = &want};
        proto_output_at((size_t)ids[i])->emit(&sink, &answer);
        ck_assert_uint_eq(want.bytes, proto_slot_bytes(&slots[i]));
        check_output(proto_json_at(get(root, "outputs"), (size_t)i), &slots[i], &bytes, want.data);
        proto_buffer_free(&want);
    }
    ck_assert_ptr_eq(bytes, out.data + out.bytes);
    proto_json_free(root);
    proto_buffer_free(&out);
}

START_TEST(answers) {
    static const char json[] = "{\"id\":\"\\\"\\n\",\"inputs\":[" ALL_JSON "],\"parameters\":{\"include\":\"%s\"}}";
    static const char *const words[] = {"", "gradients,targets", "dense_gradients,assignment", "images,objects"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        char text[2048];
        proto_request r;
        computation c;
        bx_context *context;
        bx_error error = {0};
        snprintf(text, sizeof text, json, words[i]);
        struct body body = make(text, NULL, 0);
        ck_assert_msg(decode(&r, &body, -1, &error) == BX_OK, "%s", error.text);
        ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, &error), BX_OK);
        ck_assert_int_eq(compute_images(&c, context, r.criterion, r.priors, &r.batch, r.gradients, &error), BX_OK);
        ck_assert_int_eq(compute_rest(&c, context, &error), BX_OK);
        for (unsigned outputs = 0; outputs < 1u << PROTO_N_OUTPUTS; outputs += outputs < 4 ? 1 : 37) {
            check_answer(&c, &r, outputs, 0);
            check_answer(&c, &r, outputs, ~0u);
            check_answer(&c, &r, outputs, 0x155);
        }
        bx_context_close(context);
        computation_free(&c);
        proto_request_free(&r);
        free(body.bytes);
    }
}
END_TEST

START_TEST(errors) {
    proto_buffer out = {0};
    proto_problem_encode(&out, &(proto_problem){422, "x", "label_range", "label \"9\" is not", "labels[3]", "id"});
    proto_infer_problem(&out);
    ck_assert_uint_eq(out.bytes, strlen("{\"error\":\"labels[3]: label \\\"9\\\" is not\"}"));
    ck_assert(memcmp(out.data, "{\"error\":\"labels[3]: label \\\"9\\\" is not\"}", out.bytes) == 0);
    proto_buffer_free(&out);
    proto_problem_encode(&out, &(proto_problem){404, "x", "not_found", "Nothing.", "", "id"});
    proto_infer_problem(&out);
    ck_assert(out.bytes == 20 && memcmp(out.data, "{\"error\":\"Nothing.\"}", 20) == 0);
    proto_buffer_free(&out);
    out.failed = true;
    proto_infer_problem(&out);
    ck_assert(out.failed && !out.data);
}
END_TEST

/* ---- shared memory ----------------------------------------------------------------------------------------------- */

#define SHARED(name, type, shape, n, from)                                                                             \
    IN(name, type, shape,                                                                                              \
       "\"parameters\":{\"shared_memory_region\":\"r\",\"shared_memory_byte_size\":" #n                                \
       ",\"shared_memory_offset\":" #from "}")

/* A region that anybody may write to. */
static char region[256];

static bx_status find_region(void *context, const char *name, size_t offset, size_t bytes, int *index,
                             const void **data, bx_error *error) {
    int *n = context;
    if (strcmp(name, "r") || offset + bytes > sizeof region)
        return bx_fail(error, BX_INVALID, "unknown_region", "no");
    *data = region + offset;
    *index = (*n)++;
    return BX_OK;
}

static bx_status decode_shared(proto_request *r, const char *json, int *n, bx_error *error) {
    const proto_limits with = {.json_memory = 1 << 20, .region = find_region, .context = n};
    *error = (bx_error){0};
    *n = 0;
    return proto_infer_decode(r, "ssd-multibox", -1, json, strlen(json), NULL, 0, &proto_catalog_builtin, &with, error);
}

#define ALL_SHARED                                                                                                     \
    SHARED("counts", "INT64", "[1]", 8, 0)                                                                             \
    "," SHARED("labels", "INT64", "[1]", 8, 8) "," SHARED("boxes", "FP32", "[1,4]", 16, 16) "," SHARED(                \
        "priors", "FP32", "[2,4]", 32, 32) "," SHARED("conf", "FP32", "[1,2,3]", 24, 64) "," SHARED("loc", "FP32",     \
                                                                                                    "[1,2,4]", 32, 88)

/* What is written afterwards changes predictions, and nothing else. */
START_TEST(copies_what_must_not_change) {
    proto_request r;
    bx_error error;
    int n;
    memcpy(region, &good, sizeof good);
    ck_assert_msg(decode_shared(&r, JSON(ALL_SHARED), &n, &error) == BX_OK, "%s", error.text);
    ck_assert_int_eq(n, 6);
    check_good(&r);
    ck_assert_ptr_eq(r.batch.conf.data, region + offsetof(struct data, conf));
    ck_assert_ptr_eq(r.batch.loc.data, region + offsetof(struct data, loc));
    memset(region, 0x7f, offsetof(struct data, conf));
    check_good(&r);
    proto_request_free(&r);

    static const char targets[] = JSON(SHARED("target_classes", "INT64", "[1,2]", 16, 200) "," SHARED(
        "target_loc", "FP32", "[1,2,4]", 32, 216) "," SHARED("conf", "FP32", "[1,2,3]", 24,
                                                             64) "," SHARED("loc", "FP32", "[1,2,4]", 32, 88));
    memset(region + 200, 0, 48);
    ck_assert_msg(decode_shared(&r, targets, &n, &error) == BX_OK, "%s", error.text);
    memset(region + 200, 0x7f, 48);
    ck_assert_int_eq(bx_tensor_int(r.batch.target_classes, 1), 0);
    proto_request_free(&r);
}
END_TEST

START_TEST(places_of_outputs) {
    static const char json[] = "{\"inputs\":[" ALL_JSON "],\"outputs\":[{\"name\":\"loss\"},{\"name\":\"positives\","
                               "\"parameters\":{\"binary_data\":true}},{\"name\":\"loc_loss\",\"parameters\":"
                               "{\"shared_memory_region\":\"r\",\"shared_memory_byte_size\":%d,"
                               "\"shared_memory_offset\":40}}]}";
    for (int room = 7; room <= 9; room++) {
        char text[2048];
        proto_request r;
        computation c;
        bx_context *context;
        bx_error error;
        proto_buffer out = {0};
        proto_infer_layout layout;
        int n;
        snprintf(text, sizeof text, json, room);
        ck_assert_msg(decode_shared(&r, text, &n, &error) == BX_OK, "%s", error.text);
        ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, &error), BX_OK);
        ck_assert_int_eq(compute_images(&c, context, r.criterion, r.priors, &r.batch, r.gradients, &error), BX_OK);
        ck_assert_int_eq(compute_rest(&c, context, &error), BX_OK);
        bx_status status = proto_infer_encode(&out, &layout, &r, &c.result, &timing, "id", 1 << 20, &error);
        ck_assert_int_eq(status, room < 8 ? BX_INVALID : BX_OK);
        if (status == BX_OK) {
            ck_assert_int_eq(layout.n_shared, 1);
            ck_assert_uint_eq(layout.sent_bytes, layout.json_bytes + 4);
            ck_assert_uint_eq(layout.shared[0].at, layout.sent_bytes);
            ck_assert_uint_eq(layout.shared[0].place.bytes, 8);
            ck_assert_uint_eq(layout.shared[0].place.offset, 40);
            ck_assert_uint_eq(out.bytes, layout.sent_bytes + 8);
            ck_assert(memcmp(out.data + layout.shared[0].at, &c.result.loss.loc, 8) == 0);
            proto_node *root = parse(out.data, layout.json_bytes);
            ck_assert_str_eq(get_string(root, "outputs.2.parameters.shared_memory_region"), "r");
            ck_assert_int_eq(get_int(root, "outputs.2.parameters.shared_memory_byte_size"), 8);
            proto_json_free(root);
        }
        proto_buffer_free(&out);
        bx_context_close(context);
        computation_free(&c);
        proto_request_free(&r);
    }
}
END_TEST

START_TEST(registrations) {
    static const struct {
        const char *json;
        bx_status status;
    } rows[] = {
        {"{\"key\":\"/k\",\"offset\":4,\"byte_size\":9}", BX_OK},
        {"{\"key\":\"/k\",\"byte_size\":9}", BX_OK},
        {"{\"key\":\"/k\"}", BX_MALFORMED},
        {"{\"byte_size\":9}", BX_MALFORMED},
        {"{\"key\":1,\"byte_size\":9}", BX_MALFORMED},
        {"{\"key\":\"/k\",\"offset\":-4,\"byte_size\":9}", BX_MALFORMED},
        {"{\"key\":\"/k\",\"offset\":\"4\",\"byte_size\":9}", BX_MALFORMED},
        {"{\"key\":\"/k\",\"bytes\":9,\"byte_size\":9}", BX_INVALID},
        {"", BX_MALFORMED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_registration wanted;
        bx_error error = {0};
        bx_status status = proto_registration_read(&wanted, rows[i].json, strlen(rows[i].json), &limits, &error);
        ck_assert_msg(status == rows[i].status, "%zu: %s", i, error.text);
        if (status == BX_OK)
            ck_assert(!strcmp(wanted.key, "/k") && wanted.offset == (i ? 0 : 4) && wanted.bytes == 9);
    }
}
END_TEST

/* ---- models ------------------------------------------------------------------------------------------------------ */

START_TEST(models) {
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_model_statistics_row(&w, "m", &(proto_model_statistics){1000, 2, 1, 10, 20, 30, 40, 5});
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_int_eq(get_int(root, "inference_stats.success.ns"), 100);
    ck_assert_int_eq(get_int(root, "inference_stats.fail.count"), 1);
    ck_assert_int_eq(get_int(root, "batch_stats.0.compute_infer.ns"), 30);
    proto_json_free(root);
    proto_buffer_free(&out);
    proto_model_configure(&out, "m", 5);
    root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "parameters.max_request_bytes.string_value"), "5");
    ck_assert_str_eq(get_string(root, "output.2.data_type"), "TYPE_FP64");
    proto_json_free(root);
    proto_buffer_free(&out);
    for (int dtype = 0; dtype < BX_N_DTYPES; dtype++) {
        const char *name = proto_datatype_name((bx_dtype)dtype);
        for (int other = 0; other < dtype; other++)
            ck_assert_str_ne(name, proto_datatype_name((bx_dtype)other));
    }
}
END_TEST

/* ---- codings ----------------------------------------------------------------------------------------------------- */

/* Inflate in pieces into small room, and count what comes out. */
static bx_status inflate_all(proto_coding coding, const char *data, size_t bytes, size_t piece, proto_buffer *out) {
    proto_inflater *inflater = proto_inflater_new(coding);
    bx_error error = {0};
    bx_status status = BX_OK;
    for (size_t at = 0; !status && at < bytes; at += piece) {
        char room[64];
        size_t n = sizeof room;
        proto_inflater_give(inflater, data + at, bytes - at < piece ? bytes - at : piece);
        while (!status && n == sizeof room) {
            status = proto_inflater_take(inflater, room, sizeof room, &n, &error);
            proto_buffer_add(out, room, status ? 0 : n);
        }
    }
    if (!status)
        status = proto_inflater_end(inflater, &error);
    proto_inflater_free(inflater);
    return status;
}

START_TEST(codings) {
    char text[5000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i * i % 7);
    for (int coding = PROTO_GZIP; coding <= PROTO_DEFLATE; coding++) {
        proto_buffer coded = {0}, tight = {0};
        ck_assert(proto_deflate(&coded, (proto_coding)coding, text, sizeof text, sizeof text / 8 * 7));
        ck_assert(!proto_deflate(&tight, (proto_coding)coding, text, sizeof text, coded.bytes - 1));
        ck_assert_uint_eq(tight.bytes, 0);
        for (size_t piece = 1; piece < 300; piece += piece < 4 ? 1 : 97) {
            proto_buffer out = {0};
            ck_assert_int_eq(inflate_all((proto_coding)coding, coded.data, coded.bytes, piece, &out), BX_OK);
            ck_assert(out.bytes == sizeof text && memcmp(out.data, text, sizeof text) == 0);
            proto_buffer_free(&out);
        }
        for (size_t cut = 0; cut < coded.bytes; cut++) {
            proto_buffer out = {0};
            ck_assert_int_eq(inflate_all((proto_coding)coding, coded.data, cut, 50, &out), BX_MALFORMED);
            proto_buffer_free(&out);
        }
        const size_t once = coded.bytes; /* twice: gzip may, deflate may not */
        proto_buffer twice = {0};
        proto_buffer_add(&twice, coded.data, once);
        proto_buffer_add(&twice, coded.data, once);
        proto_buffer out = {0};
        ck_assert_int_eq(inflate_all((proto_coding)coding, twice.data, twice.bytes, 33, &out),
                         coding == PROTO_GZIP ? BX_OK : BX_MALFORMED);
        ck_assert(coding != PROTO_GZIP || out.bytes == 2 * sizeof text);
        proto_buffer_free(&out);
        proto_buffer_free(&twice);
        proto_buffer_free(&tight);
        proto_buffer_free(&coded);
    }
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("infer");
    tcase_add_test(cases, every_form);
    tcase_add_test(cases, any_alignment);
    tcase_add_loop_test(cases, test_refusals, 0, (int)(sizeof refusals / sizeof *refusals));
    tcase_add_test(cases, lengths);
    tcase_add_test(cases, what_is_asked);
    tcase_add_test(cases, what_is_explained);
    tcase_add_test(cases, prefixes);
    tcase_add_test(cases, answers);
    tcase_add_test(cases, errors);
    tcase_add_test(cases, copies_what_must_not_change);
    tcase_add_test(cases, places_of_outputs);
    tcase_add_test(cases, registrations);
    tcase_add_test(cases, models);
    tcase_add_test(cases, codings);
    Suite *suite = suite_create("infer");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
