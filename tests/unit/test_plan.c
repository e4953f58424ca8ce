/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bx_plan_init: every refusal with its status, code and path; the sizes of what is accepted; the layout of a job.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"

/* Two images, three objects and five columns; a test spoils one thing of it. */
static bx_priors *relative, *pixels;
static float boxes[3][4];
static int64_t labels[3];
static int32_t first[3];
static float predictions[1];
static bx_batch batch;

static void set_up(void) {
    static const float unit[3][4] = {{.5f, .5f, .2f, .2f}, {.2f, .2f, .2f, .2f}, {.7f, .7f, .3f, .2f}};
    static const float large[3][4] = {{50, 50, 20, 20}, {20, 20, 20, 20}, {70, 70, 30, 20}};
    ck_assert_int_eq(bx_priors_new(&relative, unit[0], 3, NULL), BX_OK);
    ck_assert_int_eq(bx_priors_new(&pixels, large[0], 3, NULL), BX_OK);
    ck_assert(relative->relative && !pixels->relative);
    for (int g = 0; g < 3; g++) {
        memcpy(boxes[g], (float[4]){.1f, .2f, .3f, .4f}, 16);
        labels[g] = g;
    }
    memcpy(first, (int32_t[3]){0, 1, 3}, sizeof first);
    batch = (bx_batch){
        .n_images = 2,
        .n_priors = 3,
        .n_columns = 5,
        .loc = {BX_F32, predictions},
        .conf = {BX_F32, predictions},
        .boxes = boxes[0],
        .labels = labels,
        .first = first,
    };
}

static void tear_down(void) {
    bx_priors_free(relative);
    bx_priors_free(pixels);
}

static bx_status plan_it(bx_plan *plan, const bx_priors *priors, bx_error *error) {
    return bx_plan_init(plan, bx_criterion_preset("ssd-multibox"), priors, &batch, error);
}

static void accepted(const bx_priors *priors) {
    bx_plan plan;
    bx_error error = {0};
    ck_assert_msg(plan_it(&plan, priors, &error) == BX_OK, "%s: %s", error.path, error.text);
}

static void refused(const bx_priors *priors, bx_status status, const char *code, const char *path) {
    bx_plan plan, untouched;
    bx_error error = {0};
    memset(&plan, 0xa5, sizeof plan);
    memset(&untouched, 0xa5, sizeof untouched);
    ck_assert_int_eq(plan_it(&plan, priors, &error), status);
    ck_assert_int_eq(error.status, status);
    ck_assert_str_eq(error.code, code);
    ck_assert_str_eq(error.path, path);
    ck_assert_str_ne(error.text, "");
    ck_assert(!memcmp(&plan, &untouched, sizeof plan));
    ck_assert_int_eq(plan_it(&plan, priors, NULL), status);
}

/* ---- dimensions -------------------------------------------------------------------------------------------------- */

START_TEST(no_images) {
    batch.n_images = 0;
    refused(relative, BX_SHAPE, "shape", "");
    batch.n_images = -1;
    refused(relative, BX_SHAPE, "shape", "");
    batch.n_images = INT32_MIN;
    refused(relative, BX_SHAPE, "shape", "");
}
END_TEST

START_TEST(columns) {
    static const int32_t wrong[] = {0, 1, -1, INT32_MIN, BX_MAX_COLUMNS + 1, INT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        batch.n_columns = wrong[i];
        refused(relative, BX_SHAPE, "shape", "predictions.conf");
    }
    batch.n_columns = BX_MAX_COLUMNS;
    accepted(relative);
    memset(labels, 0, sizeof labels);
    batch.n_columns = 2;
    accepted(relative);
}
END_TEST

START_TEST(priors_of_the_predictions) {
    static const int32_t wrong[] = {0, 2, 4, -1, INT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        batch.n_priors = wrong[i];
        batch.conf.data = predictions;
        refused(relative, BX_SHAPE, "shape", "predictions.loc");
        batch.conf.data = NULL;
        accepted(relative);
    }
}
END_TEST

/* ---- annotations ------------------------------------------------------------------------------------------------- */

/* Puts the box at the batch's last object: image 1, object 1. */
static void refused_box(const bx_priors *priors, float x1, float y1, float x2, float y2, const char *code) {
    memcpy(boxes[2], (float[4]){x1, y1, x2, y2}, 16);
    refused(priors, BX_INVALID, code, "annotations[1].boxes[1]");
}

static void accepted_box(const bx_priors *priors, float x1, float y1, float x2, float y2) {
    memcpy(boxes[2], (float[4]){x1, y1, x2, y2}, 16);
    accepted(priors);
}

START_TEST(box_inverted) {
    refused_box(relative, .3f, .2f, .1f, .4f, "box_inverted");
    refused_box(relative, .1f, .4f, .3f, .2f, "box_inverted");
    refused_box(relative, .3f, .4f, .1f, .2f, "box_inverted"); /* both: the area would be positive */
    refused_box(pixels, 30, 20, 10, 40, "box_inverted");
    refused_box(relative, nextafterf(.3f, 1), .2f, .3f, .4f, "box_inverted");
}
END_TEST

START_TEST(box_degenerate) {
    refused_box(relative, .3f, .2f, .3f, .4f, "box_degenerate");
    refused_box(relative, .1f, .4f, .3f, .4f, "box_degenerate");
    refused_box(relative, 0, 0, 0, 0, "box_degenerate");
    refused_box(relative, 0, 0, 1e-23f, 1e-23f, "box_degenerate"); /* the area underflows */
    refused_box(pixels, 0, 0, 1e20f, 1e20f, "box_degenerate");     /* the area overflows */
    refused_box(pixels, -FLT_MAX, 0, FLT_MAX, 1, "box_degenerate");
    accepted_box(relative, 0, 0, 1e-22f, 1e-22f); /* subnormal, but positive */
    accepted_box(relative, .3f, .2f, nextafterf(.3f, 1), .4f);
    accepted_box(pixels, 0, 0, 1e19f, 1e19f);
}
END_TEST

START_TEST(box_not_finite) {
    for (int c = 0; c < 4; c++) {
        static const float wrong[] = {NAN, INFINITY, -INFINITY};
        for (int w = 0; w < 3; w++) {
            float box[4] = {.1f, .2f, .3f, .4f};
            box[c] = wrong[w];
            refused_box(relative, box[0], box[1], box[2], box[3], "box_not_finite");
            refused_box(pixels, box[0], box[1], box[2], box[3], "box_not_finite");
        }
    }
}
END_TEST

START_TEST(box_range) {
    refused_box(relative, 10, 20, 110, 120, "box_range"); /* pixels */
    refused_box(relative, -1.001f, 0, 1, 1, "box_range");
    refused_box(relative, 0, -1.001f, 1, 1, "box_range");
    refused_box(relative, 0, 0, 2.001f, 1, "box_range");
    refused_box(relative, 0, 0, 1, 2.001f, "box_range");
    accepted_box(relative, -1, -1, 2, 2);
    accepted_box(pixels, -10, -20, 110, 120);
}
END_TEST

START_TEST(label_range) {
    static const int64_t wrong[] = {-1,
                                    4,
                                    5,
                                    INT64_MIN,
                                    INT64_MAX,
                                    INT64_C(1) << 32,
                                    INT32_MIN,
                                    INT32_MAX,
                                    -(INT64_C(1) << 32),
                                    (INT64_C(1) << 32) + 1};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        labels[1] = wrong[i];
        refused(relative, BX_INVALID, "label_range", "annotations[1].labels[0]");
    }
    labels[1] = 3; /* five columns are four classes */
    accepted(relative);
    labels[0] = 9;
    refused(relative, BX_INVALID, "label_range", "annotations[0].labels[0]");
}
END_TEST

START_TEST(the_first_culprit_is_named) {
    memcpy(boxes[1], (float[4]){.3f, .2f, .1f, .4f}, 16);
    memcpy(boxes[2], (float[4]){NAN, .2f, .1f, .4f}, 16);
    labels[0] = 77;
    refused(relative, BX_INVALID, "label_range", "annotations[0].labels[0]");
    labels[0] = 0;
    refused(relative, BX_INVALID, "box_inverted", "annotations[1].boxes[0]");
}
END_TEST

START_TEST(numbers_in_the_text) {
    bx_plan plan;
    bx_error error = {0};
    labels[2] = INT64_MIN;
    ck_assert_int_eq(plan_it(&plan, relative, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "-9223372036854775808"));
    labels[2] = 0;
    memcpy(boxes[2], (float[4]){.75f, .2f, .25f, .4f}, 16);
    error = (bx_error){0};
    ck_assert_int_eq(plan_it(&plan, relative, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "[0.75, 0.2"));
    memcpy(boxes[2], (float[4]){-FLT_MAX, -FLT_MAX, FLT_MAX, FLT_MAX}, 16);
    error = (bx_error){0};
    ck_assert_int_eq(plan_it(&plan, pixels, &error), BX_INVALID);
    ck_assert_str_eq(error.code, "box_degenerate");
}
END_TEST

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

static bx_priors *many_priors(int32_t n) {
    bx_priors *priors = NULL;
    float *some = malloc((size_t)n * 16);
    ck_assert_ptr_nonnull(some);
    for (int32_t i = 0; i < n; i++) {
        memcpy(some + 4 * i, (float[4]){.5f, .5f, .2f, .2f}, 16);
    }
    ck_assert_int_eq(bx_priors_new(&priors, some, n, NULL), BX_OK);
    free(some);
    return priors;
}

START_TEST(too_large) {
    /* 2^24 images of 65536 priors: more rows than 2^40 with the classes */
    bx_priors *priors = many_priors(65536);
    int32_t *none = calloc((1 << 24) + 1, sizeof *none);
    ck_assert_ptr_nonnull(none);
    batch.n_images = 1 << 24;
    batch.n_priors = 65536;
    batch.first = none;
    refused(priors, BX_TOO_LARGE, "too_large", "");
    batch.n_images = 1 << 20; /* only large */
    bx_plan plan;
    ck_assert_int_eq(plan_it(&plan, priors, NULL), BX_OK);
    ck_assert_uint_ge(plan.work_bytes, ((size_t)1 << 36) * 13);
    free(none);
    bx_priors_free(priors);
}
END_TEST

START_TEST(dimensions) {
    static const struct { int32_t n, blocks; } rows[] = {{1, 1}, {4095, 1}, {4096, 1}, {4097, 2}, {8192, 2}, {8193, 3}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bx_priors *priors = many_priors(rows[i].n);
        bx_plan plan;
        batch.n_priors = rows[i].n;
        ck_assert_int_eq(plan_it(&plan, priors, NULL), BX_OK);
        ck_assert_ptr_eq(plan.priors, priors);
        ck_assert_ptr_eq(plan.criterion, bx_criterion_preset("ssd-multibox"));
        ck_assert_int_eq(plan.n_images, 2);
        ck_assert_int_eq(plan.n_priors, rows[i].n);
        ck_assert_int_eq(plan.n_columns, 5);
        ck_assert_int_eq(plan.n_classes, 4);
        ck_assert_int_eq(plan.n_objects, 3);
        ck_assert_int_eq(plan.n_blocks, rows[i].blocks);
        ck_assert(plan.with_predictions);
        ck_assert(plan.cost_us > 0 && isfinite(plan.cost_us));
        ck_assert_uint_eq(plan.work_bytes % 64, 0);
        size_t prior_rows = 2 * (size_t)rows[i].n;
        size_t owed = prior_rows * 13 + (size_t)rows[i].blocks * (3 * 8 + 2 * sizeof(bx_bad)) +
                      2 * sizeof(bx_image_row) + 8 * sizeof(bx_class_row) + 2 * sizeof(bx_level_row) +
                      3 * sizeof(bx_object_row);
        ck_assert_uint_ge(plan.work_bytes, owed);
        ck_assert_uint_le(plan.work_bytes, owed + 11 * 64);
        bx_priors_free(priors);
    }
    batch.conf.data = NULL;
    bx_plan plan;
    ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
    ck_assert(!plan.with_predictions);
}
END_TEST

START_TEST(a_batch_without_objects) {
    bx_plan plan;
    memset(first, 0, sizeof first);
    batch.boxes = NULL;
    batch.labels = NULL;
    ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
    ck_assert_int_eq(plan.n_objects, 0);
}
END_TEST

/* The arrays of a job lie in order, do not meet, are aligned, and end within the workspace. */
START_TEST(the_layout_of_a_job) {
    bx_priors *priors = many_priors(4099);
    bx_plan plan;
    bx_job job;
    batch.n_priors = 4099;
    ck_assert_int_eq(plan_it(&plan, priors, NULL), BX_OK);
    char *work = aligned_alloc(64, plan.work_bytes);
    ck_assert_ptr_nonnull(work);
    bx_job_init(&job, &plan, &batch, work);
    ck_assert_ptr_eq(job.plan, &plan);
    ck_assert_ptr_eq(job.batch, &batch);
    const size_t rows = 2 * 4099;
    const struct {
        const void *at;
        size_t bytes;
    } arrays[] = {
        {job.overlap, rows * 4},
        {job.owner, rows * 4},
        {job.score, rows * 4},
        {job.state, rows},
        {job.block_iou, 2 * 3 * 4},
        {job.block_prior, 2 * 3 * 4},
        {job.bad, 2 * 2 * sizeof(bx_bad)},
        {job.images, 2 * sizeof(bx_image_row)},
        {job.classes, 2 * 4 * sizeof(bx_class_row)},
        {job.levels, 2 * sizeof(bx_level_row)},
        {job.objects, 3 * sizeof(bx_object_row)},
    };
    const size_t n = sizeof arrays / sizeof *arrays;
    for (size_t i = 0; i < n; i++) {
        const char *at = arrays[i].at;
        const char *end = i + 1 < n ? arrays[i + 1].at : work + plan.work_bytes;
        ck_assert_msg(at >= work && at + arrays[i].bytes <= end, "array %zu", i);
        ck_assert_uint_eq((size_t)(at - work) % 64, 0);
    }
    free(work);
    bx_priors_free(priors);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("plan");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, no_images);
    tcase_add_test(tests, columns);
    tcase_add_test(tests, priors_of_the_predictions);
    tcase_add_test(tests, box_inverted);
    tcase_add_test(tests, box_degenerate);
    tcase_add_test(tests, box_not_finite);
    tcase_add_test(tests, box_range);
    tcase_add_test(tests, label_range);
    tcase_add_test(tests, the_first_culprit_is_named);
    tcase_add_test(tests, numbers_in_the_text);
    tcase_add_test(tests, too_large);
    tcase_add_test(tests, dimensions);
    tcase_add_test(tests, a_batch_without_objects);
    tcase_add_test(tests, the_layout_of_a_job);
    return suite_run(suite);
}
