/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs on the wire: how a request says where its result is recorded, in every encoding; what is recorded of it; how
 * runs and steps are told as JSON and CSV; queries.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"

/* ---- where a result is recorded ---------------------------------------------------------------------------------- */

/* One image, one prior, one class, one object that is the prior. */
static const struct data {
    int64_t counts[1], labels[1];
    float boxes[4], priors[4], conf[2], loc[4];
} good = {{1}, {0}, {0, 0, 1, 1}, {0.5f, 0.5f, 1, 1}, {0, 1}, {0.5f, 0, 0, 0}};

#define T(name, type, shape, from, to)                                                                                 \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define TENSORS                                                                                                        \
    T("counts", "I64", "[1]", 0, 8)                                                                                    \
    "," T("labels", "I64", "[1]", 8, 16) "," T("boxes", "F32", "[1,4]", 16, 32) "," T(                                 \
        "priors", "F32", "[1,4]", 32, 48) "," T("conf", "F32", "[1,1,2]", 48, 56) "," T("loc", "F32", "[1,1,4]", 56,   \
                                                                                        72)
#define PARTS                                                                                                          \
    "\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[0]}],\"priors\":[[0.5,0.5,1,1]],"                             \
    "\"predictions\":{\"conf\":[[[0,1]]],\"loc\":[[[0.5,0,0,0]]]}"
#define IN(name, type, shape, data)                                                                                    \
    "{\"name\":\"" name "\",\"datatype\":\"" type "\",\"shape\":" shape ",\"data\":" data "}"
#define INPUTS                                                                                                         \
    "\"inputs\":[" IN("counts", "INT64", "[1]", "[1]") "," IN("labels", "INT64", "[1]", "[0]") "," IN(                 \
        "boxes", "FP32", "[1,4]",                                                                                      \
        "[0,0,1,1]") "," IN("priors", "FP32", "[1,4]",                                                                 \
                            "[0.5,0.5,1,1]") "," IN("conf", "FP32", "[1,1,2]",                                         \
                                                    "[0,1]") "," IN("loc", "FP32", "[1,1,4]", "[0.5,0,0,0]") "]"

enum { AS_JSON, AS_METADATA, AS_PARAMETERS, N_FORMS };

/* Decode a batch whose body has these options, as they stand in JSON, besides those of the query. */
static bx_status decode(proto_request *r, int form, const char *options, const proto_option *query, size_t n_query,
                        bx_error *error) {
    const proto_limits limits = {.json_memory = 1 << 20};
    char body[4096];
    bx_status status;
    *error = (bx_error){0};
    if (form == AS_METADATA) {
        const int n = snprintf(body + 8, sizeof body - 8, "{\"__metadata__\":{%s}," TENSORS "}", options);
        const uint64_t length = (uint64_t)n;
        memcpy(body, &length, 8);
        memcpy(body + 8 + n, &good, sizeof good);
        status = proto_request_decode(r, PROTO_LOSS, PROTO_SAFETENSORS, body, (size_t)n + 8 + sizeof good, query,
                                      n_query, &proto_catalog_builtin, &limits, error);
    } else if (form == AS_PARAMETERS) {
        snprintf(body, sizeof body, "{\"parameters\":{%s}," INPUTS "}", options);
        status = proto_infer_decode(r, "ssd-multibox", -1, body, strlen(body), query, n_query, &proto_catalog_builtin,
                                    &limits, error);
    } else {
        snprintf(body, sizeof body, "{%s%s" PARTS "}", options, *options ? "," : "");
        status = proto_request_decode(r, PROTO_LOSS, PROTO_JSON, body, strlen(body), query, n_query,
                                      &proto_catalog_builtin, &limits, error);
    }
    return status;
}

static void must_be(int form, const char *options, const proto_option *query, size_t n_query, const char *run,
                    int64_t step) {
    proto_request r;
    bx_error error;
    ck_assert_msg(decode(&r, form, options, query, n_query, &error) == BX_OK, "%d: %s: %s: %s", form, options,
                  error.code, error.text);
    ck_assert_str_eq(r.run, run);
    ck_assert_int_eq(r.step, step);
    proto_request_free(&r);
}

static void refused(int form, const char *options, const proto_option *query, size_t n_query, const char *code,
                    const char *path) {
    proto_request r;
    bx_error error;
    ck_assert_msg(decode(&r, form, options, query, n_query, &error) == BX_INVALID, "%d: %s", form, options);
    ck_assert_msg(!strcmp(error.code, code), "%d: %s: %s: %s", form, options, error.code, error.text);
    ck_assert_msg(!strcmp(error.path, path), "%d: %s: at \"%s\"", form, options, error.path);
}

#define A64 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

START_TEST(in_the_body) {
    for (int form = 0; form < N_FORMS; form++) {
        const bool text = form == AS_METADATA; /* where every option is a string */
        must_be(form, "", NULL, 0, "", 0);
        must_be(form, text ? "\"run\":\"a\",\"step\":\"7\"" : "\"run\":\"a\",\"step\":7", NULL, 0, "a", 7);
        must_be(form, text ? "\"step\":\"0\",\"run\":\"-.\"" : "\"step\":0,\"run\":\"-.\"", NULL, 0, "-.", 0);
        must_be(form,
                text ? "\"run\":\"" A64 "\",\"step\":\"9007199254740992\""
                     : "\"run\":\"" A64 "\",\"step\":9007199254740992",
                NULL, 0, A64, (int64_t)1 << 53);
        refused(form, "\"run\":\"a\"", NULL, 0, "missing_member", "step");
        refused(form, text ? "\"step\":\"7\"" : "\"step\":7", NULL, 0, "missing_member", "run");
        static const char *const names[] = {"", ".", "..", "a b", "a/b", "\\u00e9", A64 "a"};
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            char options[200];
            snprintf(options, sizeof options, "\"run\":\"%s\",\"step\":%s", names[i], text ? "\"1\"" : "1");
            refused(form, options, NULL, 0, "invalid_option", "run");
        }
    }
}
END_TEST

/* Numbers that are no steps, as a number of the body and as text. */
START_TEST(steps) {
    static const char *const numbers[] = {"-1", "9007199254740993", "9223372036854775807", "1000000000000000000"},
                             *const texts[] = {"-1",
                                               "+1",
                                               "1.5",
                                               "",
                                               " 1",
                                               "1 ",
                                               "1e3",
                                               "0x1",
                                               "9007199254740993",
                                               "99999999999999999999",
                                               "1000000000000000000",
                                               "nan"};
    char options[200];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(options, sizeof options, "\"run\":\"a\",\"step\":%s", numbers[i]);
        refused(AS_JSON, options, NULL, 0, "invalid_option", "step");
        refused(AS_PARAMETERS, options, NULL, 0, "invalid_option", "step");
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const proto_option query[] = {{"run", "a"}, {"step", texts[i]}};
        snprintf(options, sizeof options, "\"run\":\"a\",\"step\":\"%s\"", texts[i]);
        refused(AS_METADATA, options, NULL, 0, "invalid_option", "step");
        refused(AS_JSON, "", query, 2, "invalid_option", "step");
    }
    must_be(AS_PARAMETERS, "\"run\":\"a\",\"step\":\"7\"", NULL, 0, "a", 7); /* parameters may be text */
    refused(AS_JSON, "\"run\":\"a\",\"step\":\"7\"", NULL, 0, "type_mismatch", "step");
    static const char *const others[] = {"1.5", "1.0", "1e3", "99999999999999999999", "null", "true", "[7]"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        proto_request r;
        bx_error error;
        snprintf(options, sizeof options, "\"run\":\"a\",\"step\":%s", others[i]);
        for (int form = AS_JSON; form < N_FORMS; form += AS_PARAMETERS - AS_JSON) {
            bx_status status = decode(&r, form, options, NULL, 0, &error);
            ck_assert_msg(status == BX_INVALID || status == BX_MALFORMED, "%s: %d", options, status);
            ck_assert_str_eq(error.code, strlen(others[i]) < 20 ? "type_mismatch" : "json_number_range");
        }
    }
}
END_TEST

START_TEST(in_the_query) {
    static const proto_option both[] = {{"run", "q"}, {"step", "9"}}, run[] = {{"run", "q"}}, step[] = {{"step", "9"}},
                              twice[] = {{"run", "q"}, {"run", "q"}}, leading[] = {{"run", "q"}, {"step", "007"}};
    for (int form = 0; form < N_FORMS; form++) {
        const char *body = form == AS_METADATA ? "\"run\":\"a\",\"step\":\"7\"" : "\"run\":\"a\",\"step\":7";
        must_be(form, "", both, 2, "q", 9);
        must_be(form, body, both, 2, "q", 9); /* it overrides the body */
        must_be(form, body, run, 1, "q", 7);
        must_be(form, body, step, 1, "a", 9);
        must_be(form, "", leading, 2, "q", 7);
        refused(form, "", run, 1, "missing_member", "step");
        refused(form, "", step, 1, "missing_member", "run");
        refused(form, "", twice, 2, "duplicate_option", "run");
        refused(form, "\"run\":\"a b\"", both, 0, "missing_member", "step");
    }
}
END_TEST

/* A match is not a result. */
START_TEST(not_of_a_match) {
    static const proto_option query[] = {{"run", "a"}, {"step", "7"}};
    static const char *const bodies[] = {
        "{\"run\":\"a\",\"annotations\":[{\"boxes\":[],\"labels\":[]}]}",
        "{\"step\":1,\"annotations\":[{\"boxes\":[],\"labels\":[]}]}",
        "{\"annotations\":[{\"boxes\":[],\"labels\":[]}]}",
    };
    const proto_limits limits = {.json_memory = 1 << 20};
    for (int i = 0; i < 3; i++) {
        proto_request r;
        bx_error error = {0};
        ck_assert_int_eq(proto_request_decode(&r, PROTO_MATCH, PROTO_JSON, bodies[i], strlen(bodies[i]), query,
                                              i < 2 ? 0 : 2, &proto_catalog_builtin, &limits, &error),
                         BX_INVALID);
        ck_assert_str_eq(error.code, "unknown_member");
        ck_assert_ptr_nonnull(strstr(error.text, "/v1/loss"));
    }
}
END_TEST

/* ---- how it is told ---------------------------------------------------------------------------------------------- */

static const proto_step full = {
    .step = 7,
    .time_us = 1796029200123999,
    .values = {4.5, 1.25, 3.25, 2, 1.25, 8, 24, 60, 69000, 180, 3, 1, 0.7109375, 12.5},
    .has_objects = true,
    .best_iou = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
};

static proto_step without_objects(void) {
    proto_step step = full;
    step.has_objects = false;
    step.values[PROTO_STEP_OBJECTS] = step.values[PROTO_STEP_FORCED] = NAN;
    step.values[PROTO_STEP_UNMATCHED_OBJECTS] = step.values[PROTO_STEP_BEST_IOU_MEAN] = NAN;
    return step;
}

static void must_write(const proto_buffer *out, const char *want) {
    ck_assert(!out->failed);
    ck_assert_msg(out->bytes == strlen(want) && !memcmp(out->data, want, out->bytes), "%.*s\nnot\n%s", (int)out->bytes,
                  out->data, want);
}

#define FULL                                                                                                           \
    "\"step\":7,\"time\":\"2026-11-30T09:00:00.123Z\",\"total\":4.5,\"loc\":1.25,\"conf\":3.25,\"conf_positive\":2,"   \
    "\"conf_negative\":1.25,\"images\":8,\"objects\":24,\"positives\":60,\"negatives\":69000,\"hard_negatives\":180,"  \
    "\"forced\":3,\"unmatched_objects\":1,\"best_iou_mean\":0.7109375,\"compute_ms\":12.5"
#define WITHOUT                                                                                                        \
    "\"step\":7,\"time\":\"2026-11-30T09:00:00.123Z\",\"total\":4.5,\"loc\":1.25,\"conf\":3.25,\"conf_positive\":2,"   \
    "\"conf_negative\":1.25,\"images\":8,\"objects\":null,\"positives\":60,\"negatives\":69000,"                       \
    "\"hard_negatives\":180,\"forced\":null,\"unmatched_objects\":null,\"best_iou_mean\":null,\"compute_ms\":12.5"

START_TEST(as_json) {
    const proto_run run = {.name = "a-1.b_2",
                           .steps = 120,
                           .first_step = 0,
                           .last_step = (int64_t)1 << 53,
                           .first_us = 1796029200000000,
                           .last_us = 1796029200999999,
                           .last_loss = 4.5};
#define RUN                                                                                                            \
    "\"name\":\"a-1.b_2\",\"steps\":120,\"first_step\":0,\"last_step\":9007199254740992,"                              \
    "\"first_time\":\"2026-11-30T09:00:00.000Z\",\"last_time\":\"2026-11-30T09:00:00.999Z\",\"last_loss\":4.5"
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    const proto_step without = without_objects();
    proto_write_open(&w, NULL, '[');
    proto_run_row(&w, &run);
    proto_step_row(&w, &full);
    proto_step_row(&w, &without);
    proto_write_close(&w, ']');
    must_write(&out, "[{" RUN "},{" FULL "},{" WITHOUT "}]");
    out.bytes = 0;
    proto_run_describe(&out, &run, &full);
    must_write(&out, "{" RUN ",\"latest\":{" FULL ",\"best_iou_histogram\":[0,1,2,3,4,5,6,7,8,9]}}\n");
    out.bytes = 0;
    proto_run_describe(&out, &run, &without);
    must_write(&out, "{" RUN ",\"latest\":{" WITHOUT ",\"best_iou_histogram\":null}}\n");
    proto_buffer_free(&out);
}
END_TEST

START_TEST(as_csv) {
    proto_buffer out = {0};
    proto_step strange = without_objects();
    strange.step = 0;
    strange.time_us = 0;
    strange.values[PROTO_STEP_TOTAL] = INFINITY;
    strange.values[PROTO_STEP_LOC] = -1.7976931348623157e308;
    proto_steps_csv_head(&out);
    proto_step_csv(&out, &full);
    proto_step_csv(&out, &strange);
    must_write(&out, "step,time,total,loc,conf,conf_positive,conf_negative,images,objects,positives,negatives,"
                     "hard_negatives,forced,unmatched_objects,best_iou_mean,compute_ms\r\n"
                     "7,2026-11-30T09:00:00.123Z,4.5,1.25,3.25,2,1.25,8,24,60,69000,180,3,1,0.7109375,12.5\r\n"
                     "0,1970-01-01T00:00:00.000Z,,-1.7976931348623157e+308,3.25,2,1.25,8,,60,69000,180,,,,12.5\r\n");
    proto_buffer_free(&out);
}
END_TEST

START_TEST(times) {
    static const struct {
        int64_t us;
        const char *text;
    } rows[] = {
        {0, "1970-01-01T00:00:00.000Z"},
        {999, "1970-01-01T00:00:00.000Z"},
        {1000, "1970-01-01T00:00:00.001Z"},
        {951782399999999, "2000-02-28T23:59:59.999Z"},
        {951782400000000, "2000-02-29T00:00:00.000Z"},
        {253402300799999999, "9999-12-31T23:59:59.999Z"},
        {-1, "1969-12-31T23:59:59.999Z"}, /* of a clock that was set to nonsense */
        {-1000, "1969-12-31T23:59:59.999Z"},
        {-1000000, "1969-12-31T23:59:59.000Z"},
        {-999999, "1969-12-31T23:59:59.000Z"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_buffer out = {0};
        proto_step step = full;
        step.time_us = rows[i].us;
        proto_step_csv(&out, &step);
        char want[64];
        snprintf(want, sizeof want, "7,%s,", rows[i].text);
        ck_assert_msg(out.bytes > strlen(want) && !memcmp(out.data, want, strlen(want)), "%lld: %.*s",
                      (long long)rows[i].us, (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
    static const int64_t far[] = {INT64_MAX, INT64_MIN, 253402300800000000};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) { /* no such time, but a text all the same */
        proto_buffer out = {0};
        proto_step step = full;
        step.time_us = far[i];
        proto_step_csv(&out, &step);
        ck_assert(!out.failed && out.bytes > 40 && memchr(out.data, 'Z', out.bytes));
        proto_buffer_free(&out);
    }
}
END_TEST

/* ---- what is recorded -------------------------------------------------------------------------------------------- */

START_TEST(made_of_a_result) {
    bx_plan plan = {.n_images = 8};
    bx_job job = {.plan = &plan};
    bx_result result = {.job = &job,
                        .loss = {.total = 4.5, .loc = 1.25, .conf = 3.25, .conf_positive = 2, .conf_negative = 1.25},
                        .objects = 24,
                        .positives = 60,
                        .negatives = 69000,
                        .hard_negatives = 180,
                        .forced = 3,
                        .unmatched_objects = 1,
                        .best_iou_mean = 0.7109375,
                        .best_iou_histogram = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}};
    const proto_request request = {.step = 7};
    const proto_timing timing = {1, 2, 12.5};
    proto_step step;
    proto_step_make(&step, &request, &result, &timing);
    step.time_us = full.time_us;
    ck_assert_int_eq(step.step, 7);
    ck_assert(step.has_objects);
    ck_assert_int_eq(memcmp(step.values, full.values, sizeof full.values), 0);
    ck_assert_int_eq(memcmp(step.best_iou, full.best_iou, sizeof full.best_iou), 0);
    result.objects = 0;
    proto_step_make(&step, &request, &result, &timing);
    ck_assert(isnan(step.values[PROTO_STEP_BEST_IOU_MEAN])); /* of nothing */
    ck_assert_double_eq(step.values[PROTO_STEP_OBJECTS], 0);
    plan.with_targets = true;
    proto_step_make(&step, &request, &result, &timing);
    ck_assert(!step.has_objects);
    const proto_step want = without_objects();
    for (int i = 0; i < PROTO_N_STEP; i++) {
        ck_assert_msg(step.values[i] == want.values[i] || (isnan(step.values[i]) && isnan(want.values[i])), "%d", i);
    }
}
END_TEST

/* ---- queries ----------------------------------------------------------------------------------------------------- */

START_TEST(queries) {
    static const char *const known[] = {"after", "limit", NULL}, *const none[] = {NULL};
    static const proto_option fine[] = {{"limit", "5"}, {"after", "x"}}, typo[] = {{"limit", "5"}, {"limits", "5"}},
                              twice[] = {{"limit", "5"}, {"limit", "5"}};
    bx_error error[3] = {{0}};
    ck_assert_int_eq(proto_query_check(fine, 2, known, NULL), BX_OK);
    ck_assert_int_eq(proto_query_check(NULL, 0, known, NULL), BX_OK);
    ck_assert_int_eq(proto_query_check(NULL, 0, none, NULL), BX_OK);
    ck_assert_int_eq(proto_query_check(typo, 2, known, &error[0]), BX_INVALID);
    ck_assert_str_eq(error[0].code, "unknown_member");
    ck_assert_str_eq(error[0].path, "limits");
    ck_assert_str_eq(error[0].text, "there is no option \"limits\"; there are after, limit");
    ck_assert_int_eq(proto_query_check(twice, 2, known, &error[1]), BX_INVALID);
    ck_assert_str_eq(error[1].code, "duplicate_option");
    ck_assert_str_eq(error[1].path, "limit");
    ck_assert_int_eq(proto_query_check(fine, 1, none, &error[2]), BX_INVALID);
    ck_assert_str_eq(error[2].code, "unknown_member");
    ck_assert_str_eq(error[2].text, "there is no option \"limit\"");
}
END_TEST

START_TEST(query_integers) {
    static const struct {
        const char *text;
        int64_t least, most, value; /* least - 1: refused */
    } rows[] = {
        {"1", 1, 1000, 1},
        {"1000", 1, 1000, 1000},
        {"0001", 1, 1000, 1},
        {"0", 1, 1000, 0},
        {"1001", 1, 1000, 0},
        {"-1", 1, 1000, 0},
        {"-1", -1, 1000, -1},
        {"-2", -1, 1000, -2},
        {"-0", -1, 1000, 0},
        {"--1", -1, 1000, -2},
        {"-", -1, 1000, -2},
        {"+1", 1, 1000, 0},
        {"", 1, 1000, 0},
        {" 1", 1, 1000, 0},
        {"1 ", 1, 1000, 0},
        {"1.0", 1, 1000, 0},
        {"1e2", 1, 1000, 0},
        {"0x10", 1, 1000, 0},
        {"9007199254740992", -1, (int64_t)1 << 53, (int64_t)1 << 53},
        {"9007199254740993", -1, (int64_t)1 << 53, -2},
        {"9223372036854775808", 0, INT64_MAX, -1},
        {"18446744073709551617", 0, INT64_MAX, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const proto_option query[] = {{"other", "x"}, {"n", rows[i].text}};
        bx_error error = {0};
        int64_t value = 4711;
        bx_status status = proto_query_integer(query, 2, "n", rows[i].least, rows[i].most, &value, &error);
        if (rows[i].value < rows[i].least) {
            ck_assert_msg(status == BX_INVALID, "\"%s\"", rows[i].text);
            ck_assert_str_eq(error.code, "invalid_option");
            ck_assert_str_eq(error.path, "n");
            ck_assert_int_eq(value, 4711);
        } else {
            ck_assert_msg(status == BX_OK && value == rows[i].value, "\"%s\": %lld", rows[i].text, (long long)value);
        }
    }
    int64_t value = 4711;
    ck_assert_int_eq(proto_query_integer(NULL, 0, "n", 1, 2, &value, NULL), BX_OK);
    ck_assert_int_eq(value, 4711);
}
END_TEST

int main(void) {
    proto_init();
    Suite *suite = suite_create("runs");
    TCase *c = tcase_create("runs");
    tcase_add_test(c, in_the_body);
    tcase_add_test(c, steps);
    tcase_add_test(c, in_the_query);
    tcase_add_test(c, not_of_a_match);
    tcase_add_test(c, as_json);
    tcase_add_test(c, as_csv);
    tcase_add_test(c, times);
    tcase_add_test(c, made_of_a_result);
    tcase_add_test(c, queries);
    tcase_add_test(c, query_integers);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
