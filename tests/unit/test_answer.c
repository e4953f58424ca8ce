/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers and the small documents: valid, complete, never larger than promised; and the pointers of failures.
 */
#define _POSIX_C_SOURCE 200809L

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"

#define EVERYTHING                                                                                                     \
    (PROTO_INCLUDE_IMAGES | PROTO_INCLUDE_CLASSES | PROTO_INCLUDE_LEVELS | PROTO_INCLUDE_OBJECTS |                     \
     PROTO_INCLUDE_ASSIGNMENT | PROTO_INCLUDE_TARGETS)

static const proto_timing timing = {1.5, 0, 0.25};

/* ---- a small batch, computed ------------------------------------------------------------------------------------- */

#define NOTES                                                                                                          \
    "\"annotations\":[{\"boxes\":[[0,0,0.5,0.5],[0.5,0.5,1,1]],\"labels\":[1,0]},{\"boxes\":[],\"labels\":[]}],"       \
    "\"priors\":[[0.25,0.25,0.5,0.5],[0.75,0.75,0.5,0.5],[0.5,0.5,0.2,0.2]]"
#define LOSS                                                                                                           \
    "{\"predictions\":{\"loc\":{\"shape\":[2,3,4],\"data\":[1,0,0,0,0,2,0,0,0,0,3,0,0,0,0,0,0,0,0,0,0,0,0,0]},"        \
    "\"conf\":{\"shape\":[2,3,3],\"data\":[1,2,3,0,0,0,1,0,0,3,2,1,0,0,0,0,1,0]}}," NOTES "}"
#define MATCH "{" NOTES "}"

struct run {
    proto_request request;
    bx_plan plan;
    bx_job job;
    bx_result result;
    void *work;
};

static void run(struct run *run, proto_task task, const char *body, const char *include) {
    const proto_limits limits = {1 << 20};
    const proto_catalog none = {NULL, 0};
    const proto_option query = {"include", include};
    bx_error error = {0};
    bx_context *context;
    ck_assert_msg(proto_request_decode(&run->request, task, PROTO_JSON, body, strlen(body), &query, 1, &none, &limits,
                                       &error) == BX_OK,
                  "%s", error.text);
    ck_assert_msg(bx_plan_init(&run->plan, run->request.criterion, run->request.priors, &run->request.batch, &error) ==
                      BX_OK,
                  "%s", error.text);
    run->work = aligned_alloc(64, (run->plan.work_bytes + 63) / 64 * 64);
    bx_job_init(&run->job, &run->plan, &run->request.batch, run->work);
    ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, &error), BX_OK);
    for (int32_t i = 0; i < run->plan.n_images; i++) {
        for (int32_t b = 0; b < run->plan.n_blocks; b++)
            bx_run_block(context, &run->job, i, b);
        bx_run_image(context, &run->job, i);
    }
    bx_context_close(context);
    ck_assert_int_eq(bx_finish(&run->result, &run->job, &error), BX_OK);
}

static void done(struct run *run) {
    free(run->work);
    proto_request_free(&run->request);
}

static proto_buffer encode(const struct run *run, proto_encoding accept) {
    proto_buffer out = {0};
    bx_error error = {0};
    size_t bound = proto_answer_bytes(&run->request, &run->plan, accept);
    ck_assert_int_eq(proto_answer_encode(&out, accept, &run->request, &run->result, &timing, "id", bound, &error),
                     BX_OK);
    ck_assert_uint_le(out.bytes, bound);
    bx_error small = {0};
    ck_assert_int_eq(proto_answer_encode(&out, accept, &run->request, &run->result, &timing, "id", bound - 1, &small),
                     BX_TOO_LARGE);
    return out;
}

/* ---- reading JSON back ------------------------------------------------------------------------------------------- */

static proto_node *parse(const char *text, size_t bytes) {
    proto_node *root;
    bx_error error = {0};
    ck_assert_msg(proto_json_parse(&root, text, bytes, 1 << 24, &error) == BX_OK, "%s in %.*s", error.text, (int)bytes,
                  text);
    return root;
}

/* Follow "a.b.0.c". NULL when it leads nowhere. */
static const proto_node *get(const proto_node *node, const char *path) {
    char copy[128];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *word = strtok(copy, "."); word && node; word = strtok(NULL, "."))
        node =
            proto_json_kind(node) == PROTO_ARRAY ? proto_json_at(node, (size_t)atoi(word)) : proto_json_get(node, word);
    return node;
}

static int64_t get_int(const proto_node *node, const char *path) {
    const proto_node *value = get(node, path);
    ck_assert_msg(value && proto_json_kind(value) == PROTO_INTEGER, "%s", path);
    return proto_json_int(value);
}

static const char *get_string(const proto_node *node, const char *path) {
    const proto_node *value = get(node, path);
    ck_assert_msg(value && proto_json_kind(value) == PROTO_STRING, "%s", path);
    return proto_json_string(value);
}

static bool is_null(const proto_node *node, const char *path) {
    return get(node, path) && proto_json_kind(get(node, path)) == PROTO_NULL;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

START_TEST(loss_json) {
    struct run r;
    run(&r, PROTO_LOSS, LOSS, "images,classes,levels,objects,assignment,targets");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);

    static const char *const order[] = {"\"criterion\"",  "\"priors\"",       "\"device\"",    "\"classes_total\"",
                                        "\"label_base\"", "\"loss\"",         "\"sums\"",      "\"normalizer\"",
                                        "\"assignment\"", "\"no_positives\"", "\"timing_ms\"", "\"request_id\""};
    char *text = malloc(out.bytes + 1), *at = text;
    memcpy(text, out.data, out.bytes);
    text[out.bytes] = '\0';
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        at = strstr(at, order[i]);
        ck_assert_msg(at != NULL, "%s", order[i]);
    }
    char expect[64]; /* doubles round-trip */
    snprintf(expect, sizeof expect, "\"loss\":{\"total\":");
    ck_assert(strtod(strstr(text, expect) + strlen(expect), NULL) == r.result.loss.total);
    free(text);

    ck_assert_str_eq(get_string(root, "criterion"), "ssd-multibox");
    ck_assert_str_eq(get_string(root, "priors"), "inline");
    ck_assert_str_eq(get_string(root, "device"), "cpu");
    ck_assert_str_eq(get_string(root, "request_id"), "id");
    ck_assert_int_eq(get_int(root, "classes_total"), 2);
    ck_assert_int_eq(get_int(root, "assignment.positives"), 2);
    ck_assert_int_eq(get_int(root, "assignment.priors"), 3);
    ck_assert_int_eq(get_int(root, "assignment.hard_negatives"), r.result.hard_negatives);
    ck_assert_int_eq(get_int(root, "assignment.best_iou.histogram.9"), 2);
    ck_assert_uint_eq(proto_json_size(get(root, "images")), 2);
    ck_assert_int_eq(get_int(root, "images.0.positives"), 2);
    ck_assert_ptr_nonnull(get(root, "images.1.loss.conf_negative"));
    ck_assert_uint_eq(proto_json_size(get(root, "classes")), 3);
    ck_assert_int_eq(get_int(root, "classes.2.class"), -1);
    ck_assert_int_eq(get_int(root, "classes.2.objects"), 0);
    ck_assert_int_eq(get_int(root, "classes.1.objects"), 1);
    ck_assert_str_eq(get_string(root, "levels.0.name"), "all");
    ck_assert_int_eq(get_int(root, "levels.0.priors"), 3);
    ck_assert_int_eq(get_int(root, "objects.1.best_prior"), 1);
    ck_assert_int_eq(get_int(root, "objects.0.label"), 1);
    static const int classes[2][3] = {{1, 0, -1}, {-1, -1, -1}}, objects[2][3] = {{0, 1, -1}, {-1, -1, -1}};
    for (int i = 0; i < 2; i++)
        for (int p = 0; p < 3; p++) {
            char path[64];
            snprintf(path, sizeof path, "assignment_map.classes.%d.%d", i, p);
            ck_assert_int_eq(get_int(root, path), classes[i][p]);
            snprintf(path, sizeof path, "assignment_map.objects.%d.%d", i, p);
            ck_assert_int_eq(get_int(root, path), objects[i][p]);
            snprintf(path, sizeof path, "targets.classes.%d.%d", i, p);
            ck_assert_int_eq(get_int(root, path), classes[i][p]);
            snprintf(path, sizeof path, "targets.loc.%d.%d", i, p);
            ck_assert_uint_eq(proto_json_size(get(root, path)), 4);
        }
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

START_TEST(match_json) {
    struct run r;
    run(&r, PROTO_MATCH, MATCH, "images,classes,levels,objects,assignment,targets");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    static const char *const absent[] = {"loss",           "sums",
                                         "normalizer",     "assignment.hard_negatives",
                                         "images.0.loss",  "images.0.hard_negatives",
                                         "classes.0.loss", "classes.0.correct",
                                         "levels.0.loss",  "levels.0.hard_negatives"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        ck_assert_msg(get(root, absent[i]) == NULL, "%s", absent[i]);
    ck_assert_int_eq(get_int(root, "assignment.positives"), 2);
    ck_assert_int_eq(get_int(root, "assignment_map.objects.0.1"), 1);
    ck_assert_ptr_nonnull(get(root, "no_positives"));
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

START_TEST(no_objects) {
    struct run r;
    run(&r, PROTO_MATCH, "{\"annotations\":[{\"boxes\":[],\"labels\":[]}],\"priors\":[[0.5,0.5,1,1]]}", "");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    ck_assert(is_null(root, "assignment.best_iou.min") && is_null(root, "assignment.best_iou.mean"));
    ck_assert(is_null(root, "assignment.positives_per_object.min") &&
              is_null(root, "assignment.positives_per_object.mean") &&
              is_null(root, "assignment.positives_per_object.max"));
    ck_assert_uint_eq(proto_json_size(get(root, "assignment.best_iou.histogram")), 10);
    ck_assert_ptr_null(get(root, "images"));
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

static const proto_tensor *find(const proto_container *file, const char *name) {
    for (int i = 0; i < file->n_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

START_TEST(safetensors) {
    struct run r;
    proto_container file;
    bx_error error = {0};
    run(&r, PROTO_LOSS, LOSS, "images,assignment,targets");
    proto_buffer out = encode(&r, PROTO_SAFETENSORS);
    ck_assert_msg(proto_container_read(&file, out.data, out.bytes, &error) == BX_OK, "%s", error.text);
    ck_assert_int_eq(file.n_tensors, 7);
    ck_assert(memcmp(find(&file, "loss")->view.data, &r.result.loss.total, 8) == 0);
    ck_assert(memcmp(find(&file, "loc_loss")->view.data, &r.result.loss.loc, 8) == 0);
    ck_assert(memcmp(find(&file, "conf_loss")->view.data, &r.result.loss.conf, 8) == 0);
    ck_assert_int_eq((char *)find(&file, "target_loc")->view.data - out.data, (long)(out.bytes - 96 - 8 - 24 - 24));
    ck_assert_int_eq(bx_tensor_int(find(&file, "positives")->view, 0), 2);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_classes")->view, 0), 1);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_classes")->view, 2), -1);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_objects")->view, 1), 1);
    ck_assert_int_eq(find(&file, "target_loc")->shape[2], 4);
    uint64_t length;
    memcpy(&length, out.data, 8);
    ck_assert_uint_eq(length % 8, 0);

    /* proto_json_* read one document per thread at a time, so the text is copied and the file let go */
    char *text = strdup(get_string(file.metadata, "result"));
    proto_container_fini(&file);
    proto_node *root = parse(text, strlen(text));
    ck_assert_ptr_null(get(root, "assignment_map"));
    ck_assert_ptr_null(get(root, "targets"));
    ck_assert_int_eq(get_int(root, "images.0.positives"), 2);
    proto_json_free(root);
    free(text);
    proto_buffer_free(&out);
    done(&r);

    run(&r, PROTO_MATCH, MATCH, "");
    out = encode(&r, PROTO_SAFETENSORS);
    ck_assert_int_eq(proto_container_read(&file, out.data, out.bytes, &error), BX_OK);
    ck_assert_int_eq(file.n_tensors, 1);
    ck_assert_ptr_nonnull(find(&file, "positives"));
    proto_container_fini(&file);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

/* The longest numbers and names there can be still fit the bound. */
START_TEST(bound) {
    enum { N = 40, P = 50, K = 30, L = 20, G = 60 };
    static bx_level levels[L];
    static bx_priors priors = {.n = P, .n_levels = L, .levels = levels};
    static bx_criterion criterion;
    static bx_image_row images[N];
    static bx_class_row classes[N * K];
    static bx_level_row level_rows[N * L];
    static bx_object_row objects[G];
    static int64_t labels[G];
    static int32_t first[N + 1], owner[N * P];
    static uint8_t state[N * P];
    const bx_sums most = {-DBL_MAX, -2.2250738585072014e-308, -DBL_MAX};
    char id[257];
    memset(id, 1, 256);
    id[256] = '\0';
    criterion = *bx_criterion_at(0);
    memset(priors.name, '\\', 63);
    for (int i = 0; i < L; i++)
        memset(levels[i].name, 1, 15), levels[i].count = INT32_MIN;
    for (int i = 0; i < N; i++)
        images[i] = (bx_image_row){most, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
    for (int i = 0; i < N * K; i++)
        classes[i] = (bx_class_row){most, INT64_MIN / N, INT64_MIN / N, INT64_MIN / N};
    for (int i = 0; i < N * L; i++)
        level_rows[i] = (bx_level_row){most, INT64_MIN / N, INT64_MIN / N};
    for (int i = 0; i < G; i++) {
        objects[i] = (bx_object_row){-1.17549435e-38f, INT32_MIN, INT32_MIN, false, false};
        labels[i] = 16382;
    }
    for (int i = 1; i <= N; i++)
        first[i] = G;
    const bx_plan plan = {.criterion = &criterion,
                          .priors = &priors,
                          .n_images = N,
                          .n_priors = P,
                          .n_columns = K + 1,
                          .n_classes = K,
                          .n_objects = G,
                          .with_predictions = true};
    const bx_batch batch = {.n_images = N, .n_priors = P, .n_columns = K + 1, .labels = labels, .first = first};
    const bx_job job = {.plan = &plan,
                        .batch = &batch,
                        .owner = owner,
                        .state = state,
                        .images = images,
                        .classes = classes,
                        .levels = level_rows,
                        .objects = objects};
    const bx_result result = {.job = &job,
                              .loss = {-DBL_MAX, -DBL_MAX, -DBL_MAX, -DBL_MAX, -DBL_MAX},
                              .sums = most,
                              .normalizer = {1, 1, 1},
                              .positives = INT64_MIN,
                              .best_iou_min = -DBL_MAX};
    const proto_request request = {.task = PROTO_LOSS,
                                   .device = "cuda:123",
                                   .include = EVERYTHING,
                                   .criterion = &criterion,
                                   .priors = &priors,
                                   .batch = batch};
    const proto_timing times = {-DBL_MAX, -DBL_MAX, -DBL_MAX};
    for (proto_encoding accept = PROTO_JSON; accept <= PROTO_SAFETENSORS; accept++) {
        proto_buffer out = {0};
        size_t bytes = proto_answer_bytes(&request, &plan, accept);
        ck_assert_int_eq(proto_answer_encode(&out, accept, &request, &result, &times, id, bytes, NULL), BX_OK);
        ck_assert_uint_le(out.bytes, bytes);
        ck_assert_uint_eq(out.capacity, bytes); /* taken in one piece */
        proto_buffer_free(&out);
    }
}
END_TEST

/* ---- the writer -------------------------------------------------------------------------------------------------- */

START_TEST(numbers) {
    static const struct {
        double value;
        const char *text;
    } reals[] = {{0.1, "0.1"},
                 {1692, "1692"},
                 {1.0 / 3, "0.3333333333333333"},
                 {4.504262, "4.504262"},
                 {5e-324, "4.94065645841247e-324"},
                 {-0.0, "-0"},
                 {INFINITY, "null"},
                 {NAN, "null"}},
      floats[] = {{0.1f, "0.1"},
                  {0.333333343f, "0.33333334"},
                  {1.17549449e-38f, "1.1754945e-38"},
                  {33554436.f * 3, "1.0066331e+08"},
                  {1e-45f, "1.4013e-45"},
                  {16777216, "16777216"},
                  {INFINITY, "null"}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_real(&writer, NULL, reals[i].value);
        ck_assert_msg(out.bytes == strlen(reals[i].text) && memcmp(out.data, reals[i].text, out.bytes) == 0, "%.*s",
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_float(&writer, NULL, (float)floats[i].value);
        ck_assert_msg(out.bytes == strlen(floats[i].text) && memcmp(out.data, floats[i].text, out.bytes) == 0, "%.*s",
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
}
END_TEST

START_TEST(strings) {
    static const struct {
        const char *in, *out;
    } rows[] = {{"", "\"\""},
                {"a\"b\\c", "\"a\\\"b\\\\c\""},
                {"\n\x01\x1f", "\"\\u000a\\u0001\\u001f\""},
                {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""},
                {"a\xC3", "\"a\xEF\xBF\xBD\""},
                {"\xC0\xAF", "\"\xEF\xBF\xBD\xEF\xBF\xBD\""},
                {"\xED\xA0\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
                {"\xFFz", "\"\xEF\xBF\xBDz\""},
                {"\xF0\x9F\x98", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_string(&writer, NULL, rows[i].in);
        ck_assert_msg(out.bytes == strlen(rows[i].out) && memcmp(out.data, rows[i].out, out.bytes) == 0, "%zu: %.*s", i,
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
}
END_TEST

/* ---- documents --------------------------------------------------------------------------------------------------- */

START_TEST(problem) {
    proto_buffer out = {0};
    proto_problem_encode(&out, &(proto_problem){422, "Unprocessable Content", "label_range", "label 7\xff", "", "r"});
    static const char expect[] =
        "{\"type\":\"about:blank\",\"title\":\"Unprocessable Content\",\"status\":422,\"detail\":"
        "\"label 7\xEF\xBF\xBD\",\"code\":\"label_range\",\"request_id\":\"r\"}\n";
    ck_assert(out.bytes == sizeof expect - 1 && memcmp(out.data, expect, out.bytes) == 0);
    proto_buffer_free(&out);
    proto_problem_encode(&out, &(proto_problem){422, "t", "c", "d", "/annotations/3", "r"});
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "pointer"), "/annotations/3");
    proto_json_free(root);
    proto_buffer_free(&out);
}
END_TEST

START_TEST(descriptions) {
    bx_priors *ssd300;
    ck_assert_int_eq(bx_priors_builtin(&ssd300, "ssd300", NULL), BX_OK);
    const bx_priors *sets[] = {ssd300};
    proto_buffer out = {0};
    proto_priors_list(&out, &(proto_catalog){sets, 1});
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "priors.0.name"), "ssd300");
    ck_assert_int_eq(get_int(root, "priors.0.count"), 8732);
    ck_assert_int_eq(get_int(root, "priors.0.levels"), 6);
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_priors_describe(&out, ssd300);
    root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "units"), "relative");
    ck_assert_int_eq(get_int(root, "levels.1.first"), 38 * 38 * 4);
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_container file;
    proto_priors_tensor(&out, ssd300);
    ck_assert_int_eq(proto_container_read(&file, out.data, out.bytes, NULL), BX_OK);
    ck_assert(file.n_tensors == 1 && file.tensors[0].shape[0] == 8732 && !file.metadata);
    ck_assert(memcmp(file.tensors[0].view.data, ssd300->boxes, 8732 * 16) == 0);
    proto_container_fini(&file);
    proto_buffer_free(&out);
    bx_priors_free(ssd300);

    proto_criteria_list(&out);
    root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "criteria.0.name"), "ssd-multibox");
    ck_assert_str_eq(get_string(root, "criteria.1.name"), "ssd-multibox-l1");
    proto_json_free(root);
    proto_buffer_free(&out);

    for (int i = 0; i < 2; i++) {
        proto_criterion_describe(&out, bx_criterion_at((size_t)i));
        root = parse(out.data, out.bytes);
        ck_assert(is_null(root, "matcher.negative_iou") && is_null(root, "matcher.ignore_iof"));
        ck_assert_str_eq(get_string(root, "matcher.force"), "last");
        ck_assert_str_eq(get_string(root, "mining.scope"), "image");
        ck_assert_int_eq(get_int(root, "mining.ratio"), 3);
        ck_assert_uint_eq(proto_json_size(get(root, "coder.variances")), 4);
        ck_assert_str_eq(get_string(root, "localization.kind"), i ? "l1" : "smooth_l1");
        ck_assert_int_eq(get(root, "localization.beta") != NULL, i == 0);
        ck_assert_str_eq(get_string(root, "normalizer.kind"), "positives");
        ck_assert_int_eq(get_int(root, "weights.conf"), 1);
        proto_json_free(root);
        proto_buffer_free(&out);
    }
}
END_TEST

START_TEST(pointers) {
    static const int32_t first[] = {0, 2, 5, 9, 20};
    const proto_request request = {.encoding = PROTO_SAFETENSORS, .batch = {.n_images = 4, .first = first}};
    static const struct {
        const char *path, *json, *tensor;
    } rows[] = {
        {"", "", ""},
        {"annotations", "/annotations", "counts"},
        {"annotations[3]", "/annotations/3", "counts[3]"},
        {"annotations[3].boxes[7]", "/annotations/3/boxes/7", "boxes[16]"},
        {"annotations[3].boxes[7][2]", "/annotations/3/boxes/7/2", "boxes[16,2]"},
        {"annotations[1].labels[0]", "/annotations/1/labels/0", "labels[2]"},
        {"predictions.conf", "/predictions/conf", "conf"},
        {"predictions.conf[2][55]", "/predictions/conf/2/55", "conf[2,55]"},
        {"predictions.loc[2][55]", "/predictions/loc/2/55", "loc[2,55]"},
        {"priors[5]", "/priors/5", "priors[5]"},
        {"include", "/include", "include"},
        {"__metadata__.x", "/__metadata__/x", "__metadata__.x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char out[160];
        bx_error error = {.status = BX_INVALID};
        strcpy(error.path, rows[i].path);
        proto_pointer(out, NULL, PROTO_JSON, &error);
        ck_assert_str_eq(out, rows[i].json);
        proto_pointer(out, &request, PROTO_SAFETENSORS, &error);
        ck_assert_str_eq(out, rows[i].tensor);
    }
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("answer");
    tcase_add_test(cases, loss_json);
    tcase_add_test(cases, match_json);
    tcase_add_test(cases, no_objects);
    tcase_add_test(cases, safetensors);
    tcase_add_test(cases, bound);
    tcase_add_test(cases, numbers);
    tcase_add_test(cases, strings);
    tcase_add_test(cases, problem);
    tcase_add_test(cases, descriptions);
    tcase_add_test(cases, pointers);
    Suite *suite = suite_create("answer");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
