/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bx_plan_init: every refusal with its status, code and path; the sizes of what is accepted; the layout of a job and of
 * its gradients.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
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
static bx_criterion mine; /* what `criterion` points to, unless a test says otherwise */
static const bx_criterion *criterion;
static bx_gradients gradients;

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
    mine = *bx_criterion_preset("ssd-multibox");
    criterion = &mine;
    gradients = BX_GRADIENTS_NONE;
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
    return bx_plan_init(plan, criterion, priors, &batch, gradients, error);
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

/* Without a background column one column is a class already. */
START_TEST(columns_without_background) {
    static const int32_t wrong[] = {0, -1, INT32_MIN, BX_MAX_COLUMNS + 1};
    criterion = bx_criterion_preset("retinanet-focal");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        batch.n_columns = wrong[i];
        refused(relative, BX_SHAPE, "shape", "predictions.conf");
    }
    memset(labels, 0, sizeof labels);
    batch.n_columns = 1;
    accepted(relative);
    labels[2] = 1;
    refused(relative, BX_INVALID, "label_range", "annotations[1].labels[1]");
    batch.n_columns = 2;
    accepted(relative);
}
END_TEST

START_TEST(classes) {
    static const bx_background places[] = {BX_BACKGROUND_FIRST, BX_BACKGROUND_LAST, BX_BACKGROUND_NONE};
    for (int i = 0; i < 3; i++) {
        mine = *bx_criterion_preset("retinanet-focal");
        mine.classification.background = places[i];
        int32_t owed = places[i] == BX_BACKGROUND_NONE ? 5 : 4;
        bx_plan plan;
        ck_assert_int_eq(bx_criterion_classes(criterion, 5), owed);
        ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
        ck_assert_int_eq(plan.n_classes, owed);
        labels[0] = owed;
        refused(relative, BX_INVALID, "label_range", "annotations[0].labels[0]");
        labels[0] = owed - 1;
        accepted(relative);
    }
}
END_TEST

START_TEST(class_weights) {
    static const float weights[6] = {1, 2, 0, 4, 5, 6};
    mine.classification.class_weights = weights;
    for (int32_t n = 0; n <= 6; n++) {
        mine.classification.n_class_weights = n;
        batch.conf.data = predictions;
        if (n == 5) {
            accepted(relative);
        } else {
            refused(relative, BX_SHAPE, "shape", "criterion.classification.class_weights");
        }
        batch.conf.data = NULL; /* nothing to weigh */
        accepted(relative);
    }
}
END_TEST

START_TEST(alphas) {
    static const float list[6] = {.1f, .2f, .3f, .4f, .5f, .6f};
    mine = *bx_criterion_preset("retinanet-focal");
    mine.classification.alphas = list;
    for (int32_t n = 0; n <= 6; n++) {
        mine.classification.n_alphas = n;
        batch.conf.data = predictions;
        if (n == 5) {
            accepted(relative);
        } else {
            refused(relative, BX_SHAPE, "shape", "criterion.classification.alpha");
        }
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

/* cx cy w h: the native form of iou = sizes. */
START_TEST(boxes_as_sizes) {
    mine.matcher.iou = BX_IOU_SIZES;
    accepted_box(relative, .5f, .5f, .2f, .3f);
    refused_box(relative, .5f, .5f, -.2f, .3f, "box_inverted");
    refused_box(relative, .5f, .5f, .2f, -.3f, "box_inverted");
    refused_box(relative, .5f, .5f, -.2f, -.3f, "box_inverted"); /* the area would be positive */
    refused_box(relative, .5f, .5f, 0, .3f, "box_degenerate");
    refused_box(relative, .5f, .5f, .2f, 0, "box_degenerate");
    refused_box(relative, .5f, .5f, 1e-23f, 1e-23f, "box_degenerate");
    refused_box(relative, .5f, .5f, 1e-9f, .3f, "box_degenerate"); /* the corners coincide */
    refused_box(pixels, 1e9f, 0, 10, 10, "box_degenerate");
    refused_box(pixels, 0, 0, 1e20f, 1e20f, "box_degenerate");
    refused_box(relative, NAN, .5f, .2f, .3f, "box_not_finite");
    refused_box(relative, .5f, .5f, .2f, INFINITY, "box_not_finite");
    refused_box(relative, -.9f, .5f, .3f, .3f, "box_range");
    refused_box(relative, .5f, .5f, 3.1f, .3f, "box_range");
    accepted_box(relative, .5f, .5f, 3, 3);
    accepted_box(relative, 0, 0, 1e-22f, 1e-22f);
    accepted_box(pixels, 500, 500, 200, 300);
    boxes[2][2] = -2; /* named by its corners */
    boxes[2][0] = 5;
    bx_plan plan;
    bx_error error = {0};
    ck_assert_int_eq(plan_it(&plan, pixels, &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "[6, 350, 4, 650] as corners"));
}
END_TEST

START_TEST(box_faults) {
    static const struct {
        float box[4];
        bx_box_fault corners, sizes;
    } rows[] = {
        {{.1f, .2f, .3f, .4f}, BX_BOX_GOOD, BX_BOX_GOOD},
        {{.5f, .5f, .3f, .4f}, BX_BOX_INVERTED, BX_BOX_GOOD},
        {{-.5f, -.5f, -.3f, .4f}, BX_BOX_GOOD, BX_BOX_INVERTED},
        {{.3f, .2f, .3f, .4f}, BX_BOX_DEGENERATE, BX_BOX_GOOD},
        {{-1, -1, 0, .4f}, BX_BOX_GOOD, BX_BOX_DEGENERATE},
        {{0, 0, 1e-23f, 1e-23f}, BX_BOX_DEGENERATE, BX_BOX_DEGENERATE},
        {{0, 0, 1e20f, 1e20f}, BX_BOX_DEGENERATE, BX_BOX_DEGENERATE},
        {{NAN, .2f, .3f, .4f}, BX_BOX_NOT_FINITE, BX_BOX_NOT_FINITE},
        {{.5f, .2f, .3f, -INFINITY}, BX_BOX_NOT_FINITE, BX_BOX_NOT_FINITE}, /* before inverted */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ck_assert_int_eq(bx_box_check(rows[i].box, BX_IOU_CORNERS), rows[i].corners);
        ck_assert_int_eq(bx_box_check(rows[i].box, BX_IOU_SIZES), rows[i].sizes);
    }
}
END_TEST

/* Labels of ignored objects and all of dropped ones are not looked at. */
START_TEST(objects_that_are_not_used) {
    uint8_t use[3] = {BX_OBJECT_USED, BX_OBJECT_USED, BX_OBJECT_IGNORED};
    batch.use = use;
    labels[2] = 99;
    accepted(relative);
    refused_box(relative, .3f, .2f, .1f, .4f, "box_inverted");
    refused_box(relative, .3f, .2f, .3f, .4f, "box_degenerate");
    refused_box(relative, NAN, .2f, .3f, .4f, "box_not_finite");
    use[2] = BX_OBJECT_DROPPED;
    accepted_box(relative, .3f, .2f, .1f, .4f);
    accepted_box(relative, .3f, .2f, .3f, .4f);
    accepted_box(relative, 0, 0, 1e20f, 1e20f);
    use[2] = BX_OBJECT_USED;
    memcpy(boxes[2], boxes[0], 16);
    refused(relative, BX_INVALID, "label_range", "annotations[1].labels[1]");
    bx_plan plan;
    memset(use, BX_OBJECT_DROPPED, sizeof use);
    ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
    ck_assert_int_eq(plan.n_objects, 3); /* all as sent */
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

/* Which column is the background is the criterion's matter. */
START_TEST(label_range_says_where_the_classes_are) {
    static const struct {
        bx_background background;
        int32_t columns, classes;
        bool predicted;
        const char *text;
    } rows[] = {
        {BX_BACKGROUND_FIRST, 2, 1, true, "conf has 2 columns: 1 class, numbered 0 to 0, after the background"},
        {BX_BACKGROUND_LAST, 5, 4, true, "conf has 5 columns: 4 classes, numbered 0 to 3, before the background"},
        {BX_BACKGROUND_NONE, 5, 5, true, "conf has 5 columns: 5 classes, numbered 0 to 4, there being no background"},
        {BX_BACKGROUND_FIRST, 2, 1, false, "there is 1 class, numbered 0 to 0, the background not counted"},
        {BX_BACKGROUND_LAST, 5, 4, false, "there are 4 classes, numbered 0 to 3, the background not counted"},
    };
    memset(labels, 0, sizeof labels);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bx_plan plan;
        bx_error error = {0};
        char text[sizeof error.text];
        mine.classification.background = rows[i].background;
        batch.n_columns = rows[i].columns;
        batch.conf.data = rows[i].predicted ? predictions : NULL;
        labels[2] = 7;
        snprintf(text, sizeof text, "label 1 of image 1 is 7, but %s", rows[i].text);
        ck_assert_int_eq(plan_it(&plan, relative, &error), BX_INVALID);
        ck_assert_str_eq(error.text, text);
        error = (bx_error){0};
        labels[2] = rows[i].classes; /* the one that zero-based labels cannot have, and others have */
        snprintf(text, sizeof text, "label 1 of image 1 is %d, but %s (from 1? label_base 1)", rows[i].classes,
                 rows[i].text);
        ck_assert_int_eq(plan_it(&plan, relative, &error), BX_INVALID);
        ck_assert_str_eq(error.text, text);
    }
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

/* ---- targets ----------------------------------------------------------------------------------------------------- */

START_TEST(targets) {
    static const int32_t none[3] = {0, 0, 0};
    static float loc[6][4];
    int32_t small[6] = {-1, 3, -2, 0, -1, -1};
    int64_t large[6] = {-1, 3, -2, 0, -1, -1};
    bx_priors *boxless = NULL;
    ck_assert_int_eq(bx_priors_new(&boxless, NULL, 3, NULL), BX_OK);
    const bx_priors *sets[] = {relative, boxless};
    batch.boxes = NULL;
    batch.labels = NULL;
    batch.first = none;
    batch.target_loc = (bx_tensor){BX_F32, loc};
    for (int round = 0; round < 4; round++) {
        const bx_priors *priors = sets[round / 2];
        static const int64_t wrong[] = {-3, 4, INT32_MIN, INT32_MAX};
        batch.target_classes = round % 2 ? (bx_tensor){BX_I64, large} : (bx_tensor){BX_I32, small};
        bx_plan plan;
        ck_assert_int_eq(plan_it(&plan, priors, NULL), BX_OK);
        ck_assert(plan.with_targets && plan.with_predictions);
        ck_assert_int_eq(plan.n_objects, 0);
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            small[4] = (int32_t)wrong[i];
            large[4] = wrong[i];
            refused(priors, BX_INVALID, "label_range", "targets.classes[1][1]");
        }
        large[4] = (INT64_C(1) << 32) + 1;
        if (round % 2) {
            refused(priors, BX_INVALID, "label_range", "targets.classes[1][1]");
        }
        small[4] = -1;
        large[4] = -1;
        for (int c = 0; c < 4; c++) {
            loc[1][c] = c % 2 ? NAN : INFINITY; /* prior 1 is positive */
            refused(priors, BX_INVALID, "target_not_finite", "targets.loc[0][1]");
            loc[1][c] = 0;
            loc[0][c] = loc[2][c] = loc[5][c] = c % 2 ? -INFINITY : NAN; /* these are not */
            accepted(priors);
        }
        batch.n_priors = 4;
        refused(priors, BX_SHAPE, "shape", "predictions.loc");
        batch.conf.data = NULL; /* the targets alone have priors too */
        refused(priors, BX_SHAPE, "shape", "predictions.loc");
        batch.n_priors = 3;
        accepted(priors);
        batch.conf.data = predictions;
    }
    bx_priors_free(boxless);
}
END_TEST

/* ---- rounds and gradients ---------------------------------------------------------------------------------------- */

START_TEST(second_round) {
    static const bx_gradients wanted[] = {BX_GRADIENTS_NONE, BX_GRADIENTS_SPARSE, BX_GRADIENTS_DENSE};
    for (int i = 0; i < 3 * 2 * 2 * 2; i++) {
        bool predicted = i / 3 % 2, across = i / 6 % 2, mined = i / 12;
        bx_plan plan;
        gradients = wanted[i % 3];
        batch.conf.data = predicted ? predictions : NULL;
        mine.mining.scope = across ? BX_SCOPE_BATCH : BX_SCOPE_IMAGE;
        mine.mining.kind = mined ? BX_MINING_HARD_NEGATIVE : BX_MINING_NONE;
        ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
        ck_assert_int_eq(plan.gradients, gradients);
        ck_assert_int_eq(plan.mines_across, predicted && across && mined);
        ck_assert_int_eq(plan.second_round, predicted && (i % 3 != 0 || (across && mined)));
    }
}
END_TEST

/* Where a job keeps its gradients: index, loc and conf in order, apart, aligned, within the memory. */
START_TEST(the_layout_of_gradients) {
    static const int64_t counts[] = {0, 1, 3, 1000};
    for (int i = 0; i < 8; i++) {
        bx_plan plan;
        bx_job job;
        int64_t listed[3] = {0, 0, counts[i / 2]};
        bool dense = i % 2;
        gradients = dense ? BX_GRADIENTS_DENSE : BX_GRADIENTS_SPARSE;
        ck_assert_int_eq(plan_it(&plan, relative, NULL), BX_OK);
        char *work = aligned_alloc(64, plan.work_bytes);
        bx_job_init(&job, &plan, &batch, work);
        job.listed = listed;
        const int64_t n = bx_job_gradient_rows(&job);
        ck_assert_int_eq(n, dense ? 6 : counts[i / 2]);
        const size_t bytes = bx_gradient_bytes(&plan, n);
        ck_assert_uint_eq(bytes % 64, 0);
        ck_assert_uint_ge(bytes, (size_t)n * (4 * 4 + 5 * 4 + (dense ? 0 : 8)));
        ck_assert_uint_le(bytes, (size_t)n * (4 * 4 + 5 * 4 + (dense ? 0 : 8)) + 3 * 64);
        char *memory = aligned_alloc(64, bytes + 64);
        bx_job_place_gradients(&job, memory);
        char *index = (char *)job.grad_index, *loc = (char *)job.grad_loc, *conf = (char *)job.grad_conf;
        ck_assert(dense ? index == NULL && loc == memory : index == memory && loc >= index + 8 * n);
        ck_assert(conf >= loc + 16 * n && conf + 20 * n <= memory + bytes);
        ck_assert_uint_eq((size_t)(loc - memory) % 64, 0);
        ck_assert_uint_eq((size_t)(conf - memory) % 64, 0);
        free(memory);
        plan.gradients = BX_GRADIENTS_NONE;
        ck_assert_int_eq(bx_job_gradient_rows(&job), 0);
        free(work);
    }
}
END_TEST

/* Dearer work is estimated to take longer. */
START_TEST(estimates) {
    bx_priors *priors = NULL;
    ck_assert_int_eq(bx_priors_builtin(&priors, "ssd300", NULL), BX_OK);
    batch.n_priors = priors->n;
    batch.n_columns = 21;
    bx_plan plain, other;
    ck_assert_int_eq(plan_it(&plain, priors, NULL), BX_OK);
    gradients = BX_GRADIENTS_DENSE;
    ck_assert_int_eq(plan_it(&other, priors, NULL), BX_OK);
    ck_assert(other.cost_us > plain.cost_us);
    gradients = BX_GRADIENTS_NONE;
    batch.n_columns = 91;
    ck_assert_int_eq(plan_it(&other, priors, NULL), BX_OK);
    ck_assert(other.cost_us > plain.cost_us);
    batch.n_columns = 21;
    batch.conf.data = NULL;
    ck_assert_int_eq(plan_it(&other, priors, NULL), BX_OK);
    ck_assert(other.cost_us < plain.cost_us);
    bx_priors_free(priors);
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
        ck_assert_ptr_eq(plan.criterion, criterion);
        ck_assert_int_eq(plan.n_images, 2);
        ck_assert_int_eq(plan.n_priors, rows[i].n);
        ck_assert_int_eq(plan.n_columns, 5);
        ck_assert_int_eq(plan.n_classes, 4);
        ck_assert_int_eq(plan.n_objects, 3);
        ck_assert_int_eq(plan.n_blocks, rows[i].blocks);
        ck_assert(plan.with_predictions && !plan.with_targets && !plan.second_round);
        ck_assert(plan.cost_us > 0 && isfinite(plan.cost_us));
        ck_assert_uint_eq(plan.work_bytes % 64, 0);
        size_t prior_rows = 2 * (size_t)rows[i].n;
        size_t owed = prior_rows * 13 + (size_t)rows[i].blocks * (3 * 8 + 2 * sizeof(bx_bad)) +
                      2 * sizeof(bx_image_row) + 8 * sizeof(bx_class_row) + 2 * sizeof(bx_level_row) +
                      3 * sizeof(bx_object_row) + 2 * 5 * sizeof(float) + 2 * sizeof(bx_sums) + 3 * sizeof(int64_t);
        ck_assert_uint_ge(plan.work_bytes, owed);
        ck_assert_uint_le(plan.work_bytes, owed + 15 * 64);
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
    mine.matcher.force = _i ? BX_FORCE_GREEDY : BX_FORCE_LAST;
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
        {job.hard, 5 * sizeof(float)},
        {job.soft, 5 * sizeof(float)},
        {job.normalizers, 2 * sizeof(bx_sums)},
        {job.listed, 3 * sizeof(int64_t)},
        {job.heap, 3 * sizeof(int32_t)},
    };
    ck_assert(!job.grad_index && !job.grad_loc && !job.grad_conf && !job.cancel);
    const size_t n = sizeof arrays / sizeof *arrays - (_i == 0); /* only greedy forcing has a heap */
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
    tcase_add_test(tests, columns_without_background);
    tcase_add_test(tests, classes);
    tcase_add_test(tests, class_weights);
    tcase_add_test(tests, alphas);
    tcase_add_test(tests, priors_of_the_predictions);
    tcase_add_test(tests, box_inverted);
    tcase_add_test(tests, box_degenerate);
    tcase_add_test(tests, box_not_finite);
    tcase_add_test(tests, box_range);
    tcase_add_test(tests, boxes_as_sizes);
    tcase_add_test(tests, box_faults);
    tcase_add_test(tests, objects_that_are_not_used);
    tcase_add_test(tests, label_range);
    tcase_add_test(tests, label_range_says_where_the_classes_are);
    tcase_add_test(tests, the_first_culprit_is_named);
    tcase_add_test(tests, numbers_in_the_text);
    tcase_add_test(tests, targets);
    tcase_add_test(tests, second_round);
    tcase_add_test(tests, the_layout_of_gradients);
    tcase_add_test(tests, estimates);
    tcase_add_test(tests, too_large);
    tcase_add_test(tests, dimensions);
    tcase_add_test(tests, a_batch_without_objects);
    tcase_add_loop_test(tests, the_layout_of_a_job, 0, 2);
    return suite_run(suite);
}
