/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a finished job says: numbers worked out by hand, totals that are the sums of their parts, the statistics over
 * objects, and the refusal of predictions that are not finite.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"

static void *get(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory) {
        ck_abort_msg("no memory");
    }
    memset(memory, 0xa5, (bytes + 64) / 64 * 64);
    return memory;
}

/* Plans and runs a batch; the caller frees the workspace. */
static void *run(bx_plan *plan, bx_job *job, const char *criterion, const bx_priors *priors, const bx_batch *batch) {
    bx_context *context = NULL;
    bx_error error = {0};
    if (bx_plan_init(plan, bx_criterion_preset(criterion), priors, batch, &error) != BX_OK ||
        bx_context_open(&context, "cpu", NULL, &error) != BX_OK) {
        ck_abort_msg("%s: %s", error.path, error.text);
    }
    void *work = get(plan->work_bytes);
    bx_job_init(job, plan, batch, work);
    for (int32_t i = 0; i < plan->n_images; i++) {
        for (int32_t b = 0; b < plan->n_blocks; b++) {
            bx_run_block(context, job, i, b);
        }
        bx_run_image(context, job, i);
    }
    bx_context_close(context);
    return work;
}

/* ---- two objects that share their best prior --------------------------------------------------------------------- */

static const float shared_priors[10][4] = {
    {0, 0, .4f, .4f}, {.5f, .5f, .9f, .9f}, {.05f, .05f, .45f, .45f}, {.6f, .1f, .9f, .4f}, {.5f, 0, .7f, .2f},
    {.8f, .8f, 1, 1}, {.1f, .6f, .3f, .8f}, {.3f, .7f, .5f, .9f},     {.7f, .5f, 1, .7f},   {0, .8f, .2f, 1},
};
static const float shared_boxes[2][4] = {{0, 0, .4f, .38f}, {.02f, 0, .42f, .36f}};
static const int64_t shared_labels[2] = {0, 1};
static const float shared_conf[10][3] = {{0, 1, 2}, {2, 0, -1}, {.5f, .5f, .5f}, {1, -1, 0}, {0, 3, 0},
                                         {4, 0, 0}, {-1, 0, 1}, {0, 0, 0},       {3, 1, 2},  {.2f, .1f, -.3f}};
static const float shared_loc[10][4] = {
    {.1f, -.2f, .3f, 0},  {0, 0, 0, 0},         {-1, 2, .5f, -.5f},   {.2f, .2f, .2f, .2f}, {.2f, .2f, .2f, .2f},
    {.2f, .2f, .2f, .2f}, {.2f, .2f, .2f, .2f}, {.2f, .2f, .2f, .2f}, {.2f, .2f, .2f, .2f}, {.2f, .2f, .2f, .2f},
};

/* The golden numbers hold for exact decimals; the inputs are float32, so the offsets may be off by a few 1e-7. */
static void close_to(double got, double owed, double tolerance, const char *what) {
    ck_assert_msg(fabs(got - owed) <= tolerance, "%s: %.10f, not %.10f", what, got, owed);
}

static void shared_prior(const char *criterion, double loc, double conf) {
    static const int32_t first[2] = {0, 2};
    float boxes[10][4];
    for (int p = 0; p < 10; p++) {
        const float *c = shared_priors[p];
        memcpy(boxes[p], (float[4]){(c[0] + c[2]) / 2, (c[1] + c[3]) / 2, c[2] - c[0], c[3] - c[1]}, 16);
    }
    const bx_batch batch = {
        .n_images = 1,
        .n_priors = 10,
        .n_columns = 3,
        .loc = {BX_F32, shared_loc},
        .conf = {BX_F32, shared_conf},
        .boxes = shared_boxes[0],
        .labels = shared_labels,
        .first = first,
    };
    bx_priors *priors = NULL;
    bx_plan plan;
    bx_job job;
    bx_result r;
    ck_assert_int_eq(bx_priors_new(&priors, boxes[0], 10, NULL), BX_OK);
    void *work = run(&plan, &job, criterion, priors, &batch);
    ck_assert_int_eq(bx_finish(&r, &job, NULL), BX_OK);

    close_to((double)job.objects[0].best_iou, .95, 1e-6, "A's best");
    close_to((double)job.objects[1].best_iou, .8181818182, 1e-6, "B's best");
    close_to((double)job.overlap[2], .6059165346, 1e-6, "P2");
    ck_assert_int_eq(job.objects[0].best_prior, 0);
    ck_assert_int_eq(job.objects[1].best_prior, 0);
    for (int p = 0; p < 10; p++) {
        bool positive = p == 0 || p == 2, mined = p == 4 || p == 6 || p == 7 || p == 9 || p == 3 || p == 8;
        ck_assert_int_eq(job.state[p] & BX_POSITIVE, positive ? BX_POSITIVE : 0);
        ck_assert_int_eq(job.state[p] & BX_HARD_NEGATIVE, mined ? BX_HARD_NEGATIVE : 0);
        ck_assert(!positive || job.owner[p] == 1);
    }
    ck_assert(job.score[3] == job.score[8]); /* the tied pair */
    close_to((double)job.score[3], .4076059644, 1e-7, "tied loss");
    ck_assert_int_eq(r.positives, 2);
    ck_assert_int_eq(r.hard_negatives, 6);
    ck_assert_int_eq(r.collided, 1);
    ck_assert_int_eq(r.unmatched_objects, 1);

    double target[4];
    static const double p0[4] = {.5, -.5, 0, -.5268025783}, p2[4] = {-.75, -1.75, 0, -.5268025783};
    for (int c = 0; c < 4; c++) {
        bx_result_target(&r, 0, 0, target);
        close_to(target[c], p0[c], 2e-6, "target of P0");
        bx_result_target(&r, 0, 2, target);
        close_to(target[c], p2[c], 2e-6, "target of P2");
        bx_result_target(&r, 0, 1, target);
        ck_assert(target[c] == 0);
    }
    close_to(r.sums.conf_positive, 1.5062182531, 1e-7, "conf of positives");
    close_to(r.sums.conf_negative, 8.3371807940, 4e-7, "conf of negatives");
    close_to(r.loss.conf, conf, 2e-7, "conf");
    close_to(r.loss.loc, loc, 1e-6, "loc");
    close_to(r.loss.total, loc + conf, 1e-6, "total");
    free(work);
    bx_priors_free(priors);
}

START_TEST(shared_prior_smooth_l1) {
    shared_prior("ssd-multibox", 1.8576848337, 4.9216995235);
}
END_TEST

START_TEST(shared_prior_l1) {
    shared_prior("ssd-multibox-l1", .7567006446, 4.9216995235);
}
END_TEST

/* ---- random batches over a built-in set -------------------------------------------------------------------------- */

static bx_priors *priors;
static float *loc, *conf, *boxes;
static int64_t *labels;
static int32_t *first;
static bx_batch batch;
static bx_plan plan;
static bx_job job;
static bx_result result;
static void *work;

enum { C = 5, MOST_IMAGES = 4 };

static void batch_open(int32_t n, const int32_t *objects) {
    ck_assert_int_eq(bx_priors_builtin(&priors, "ssd300-efficientnet", NULL), BX_OK);
    const size_t rows = (size_t)n * (size_t)priors->n;
    first = get(((size_t)n + 1) * 4);
    first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        first[i + 1] = first[i] + objects[i];
    }
    const size_t g = (size_t)first[n];
    loc = get(rows * 16);
    conf = get(rows * C * 4);
    boxes = get(g * 16);
    labels = get(g * sizeof *labels);
    for (size_t i = 0; i < rows * 4; i++) {
        loc[i] = uniform(-3, 3);
    }
    for (size_t i = 0; i < rows * C; i++) {
        conf[i] = uniform(-5, 5);
    }
    for (size_t i = 0; i < g; i++) {
        float x = uniform(0, .8f), y = uniform(0, .8f);
        memcpy(boxes + 4 * i, (float[4]){x, y, x + uniform(.05f, .5f), y + uniform(.05f, .5f)}, 16);
        labels[i] = below(C - 1);
    }
    batch = (bx_batch){n, priors->n, C, {BX_F32, loc}, {BX_F32, conf}, boxes, labels, first};
}

static void batch_run(const char *criterion) {
    bx_error error = {0};
    work = run(&plan, &job, criterion, priors, &batch);
    ck_assert_msg(bx_finish(&result, &job, &error) == BX_OK, "%s: %s", error.path, error.text);
}

static void batch_close(void) {
    bx_priors_free(priors);
    free(work);
    free(first);
    free(loc);
    free(conf);
    free(boxes);
    free(labels);
}

static void add(bx_loss *to, bx_loss part) {
    to->total += part.total;
    to->loc += part.loc;
    to->conf += part.conf;
    to->conf_positive += part.conf_positive;
    to->conf_negative += part.conf_negative;
}

static void same_loss(bx_loss a, bx_loss b, const char *what) {
    const double x[5] = {a.total, a.loc, a.conf, a.conf_positive, a.conf_negative};
    const double y[5] = {b.total, b.loc, b.conf, b.conf_positive, b.conf_negative};
    for (int i = 0; i < 5; i++) {
        ck_assert_msg(fabs(x[i] - y[i]) <= 1e-12 * fabs(y[i]), "%s[%d]: %.17g, not %.17g", what, i, x[i], y[i]);
    }
}

/* Every total is the sum of its parts. */
static void check_parts(void) {
    const bx_loss *loss = &result.loss;
    ck_assert(loss->total == loss->loc + loss->conf);
    ck_assert(loss->conf == loss->conf_positive + loss->conf_negative);
    ck_assert(isfinite(loss->total));
    bx_loss images = {0}, classes = {0}, levels = {0};
    int64_t positives[3] = {0}, hard_negatives[2] = {0}, negatives = 0, objects = 0;
    for (int32_t i = 0; i < plan.n_images; i++) {
        add(&images, bx_result_share(&result, job.images[i].sums));
        positives[0] += job.images[i].positives;
        hard_negatives[0] += job.images[i].hard_negatives;
        negatives += job.images[i].negatives;
        ck_assert_int_eq(job.images[i].positives + job.images[i].negatives, plan.n_priors);
    }
    for (int32_t k = 0; k < plan.n_classes; k++) {
        bx_class_row row = bx_result_class(&result, k);
        add(&classes, bx_result_share(&result, row.sums));
        positives[1] += row.positives;
        objects += row.objects;
        ck_assert(row.correct <= row.positives && row.sums.conf_negative == 0);
    }
    add(&classes, bx_result_share(&result, (bx_sums){.conf_negative = result.sums.conf_negative}));
    for (int32_t l = 0; l < priors->n_levels; l++) {
        bx_level_row row = bx_result_level(&result, l);
        add(&levels, bx_result_share(&result, row.sums));
        positives[2] += row.positives;
        hard_negatives[1] += row.hard_negatives;
    }
    same_loss(images, *loss, "images");
    same_loss(classes, *loss, "classes");
    same_loss(levels, *loss, "levels");
    ck_assert_int_eq(positives[0], result.positives);
    ck_assert_int_eq(positives[1], result.positives);
    ck_assert_int_eq(positives[2], result.positives);
    ck_assert_int_eq(hard_negatives[0], result.hard_negatives);
    ck_assert_int_eq(hard_negatives[1], result.hard_negatives);
    ck_assert_int_eq(negatives, result.negatives);
    ck_assert_int_eq(objects, plan.n_objects);
}

START_TEST(parts_add_up) {
    static const int32_t objects[][MOST_IMAGES] = {{3, 7, 0, 12}, {1}, {40, 1}, {0, 0, 5}, {2, 2, 2, 2}};
    static const int32_t n[] = {4, 1, 2, 3, 4};
    const char *criterion = _i % 2 ? "ssd-multibox-l1" : "ssd-multibox";
    random_state = 100 + (uint64_t)_i;
    batch_open(n[_i / 2], objects[_i / 2]);
    batch_run(criterion);
    check_parts();
    ck_assert(!result.no_positives);
    double normalizer = (double)result.positives;
    ck_assert(result.normalizer.loc == (_i % 2 ? 4 : 1) * normalizer);
    ck_assert(result.normalizer.conf_positive == normalizer && result.normalizer.conf_negative == normalizer);
    ck_assert(result.loss.loc == result.sums.loc / result.normalizer.loc);
    batch_close();
}
END_TEST

/* The sums once more, prior by prior, from the job's own scores and bx_result_target. */
START_TEST(sums_of_priors) {
    static const int32_t objects[3] = {3, 0, 8};
    random_state = 200 + (uint64_t)_i;
    batch_open(3, objects);
    batch_run(_i ? "ssd-multibox-l1" : "ssd-multibox");
    double sums[3] = {0};
    for (int32_t i = 0; i < 3; i++) {
        for (int32_t p = 0; p < plan.n_priors; p++) {
            size_t at = (size_t)i * (size_t)plan.n_priors + (size_t)p;
            double target[4];
            bx_result_target(&result, i, p, target);
            if (job.state[at] & BX_POSITIVE) {
                for (int c = 0; c < 4; c++) {
                    double d = fabs((double)loc[4 * at + (size_t)c] - target[c]);
                    sums[0] += _i ? d : d < 1 ? d * d / 2 : d - .5;
                }
                sums[1] += (double)job.score[at];
            } else if (job.state[at] & BX_HARD_NEGATIVE) {
                sums[2] += (double)job.score[at];
            }
            if (!(job.state[at] & BX_POSITIVE) &&
                (target[0] != 0 || target[1] != 0 || target[2] != 0 || target[3] != 0)) {
                ck_abort_msg("a target for a background prior");
            }
        }
    }
    ck_assert_double_eq_tol(sums[0], result.sums.loc, 1e-11 * sums[0]);
    ck_assert_double_eq_tol(sums[1], result.sums.conf_positive, 1e-11 * sums[1]);
    ck_assert_double_eq_tol(sums[2], result.sums.conf_negative, 1e-11 * sums[2]);
    batch_close();
}
END_TEST

START_TEST(weights) {
    static const int32_t objects[1] = {6};
    batch_open(1, objects);
    batch_run("ssd-multibox");
    bx_loss plain = result.loss;
    bx_criterion criterion = *plan.criterion;
    criterion.weights.loc = 2;
    criterion.weights.conf = .25;
    plan.criterion = &criterion;
    ck_assert_int_eq(bx_finish(&result, &job, NULL), BX_OK);
    ck_assert(result.loss.loc == 2 * plain.loc);
    ck_assert(result.loss.conf_positive == plain.conf_positive / 4);
    ck_assert(result.loss.conf_negative == plain.conf_negative / 4);
    check_parts();
    batch_close();
}
END_TEST

START_TEST(no_objects) {
    static const int32_t objects[3] = {0, 0, 0};
    const int32_t n = _i ? 1 : 3;
    batch_open(n, objects);
    batch_run("ssd-multibox");
    check_parts();
    ck_assert(result.no_positives);
    ck_assert(result.loss.total == 0 && result.sums.loc == 0 && result.sums.conf_negative == 0);
    ck_assert(result.normalizer.loc == 1 && result.normalizer.conf_positive == 1 &&
              result.normalizer.conf_negative == 1);
    ck_assert_int_eq(result.positives, 0);
    ck_assert_int_eq(result.hard_negatives, 0);
    ck_assert_int_eq(result.negatives, (int64_t)n * plan.n_priors);
    ck_assert_int_eq(result.objects_without_overlap, 0);
    for (int b = 0; b < 10; b++) {
        ck_assert_int_eq(result.best_iou_histogram[b], 0);
    }
    ck_assert(result.best_iou_mean == 0 && result.positives_per_object_mean == 0);
    batch_close();
}
END_TEST

/* ---- statistics over objects ------------------------------------------------------------------------------------- */

START_TEST(object_statistics) {
    /* IoU and the bin it belongs to: edges as float32 has them, the last bin closed */
    static const struct {
        float iou;
        int bin;
    } rows[] = {
        {0, 0},   {0x1p-149f, 0}, {.1f, 1}, /* 0.1f is above a tenth */
        {.2f, 2}, {.3f, 3},                 /* above */
        {.4f, 4}, {.5f, 5},       {.6f, 6}, /* above */
        {.7f, 6},                           /* 0.7f is below seven tenths */
        {.8f, 8}, {.9f, 8},                 /* 0.9f is below */
        {1, 9},   {.95f, 9},
    };
    enum { N = sizeof rows / sizeof *rows };
    static const int32_t objects[1] = {N + 3};
    batch_open(1, objects);
    batch_run("ssd-multibox");
    int64_t bins[10] = {0};
    double sum = 0;
    for (int32_t g = 0; g < N; g++) {
        job.objects[g] = (bx_object_row){.best_iou = rows[g].iou, .positives = g};
        bins[rows[g].bin]++;
        sum += (double)rows[g].iou;
    }
    job.objects[N] = (bx_object_row){.best_iou = nextafterf(.5f, 0), .positives = 50};
    job.objects[N + 1] = (bx_object_row){.best_iou = nextafterf(1, 0), .positives = 7};
    job.objects[N + 2] = (bx_object_row){.best_iou = 0, .positives = 1};
    bins[4]++;
    bins[9]++;
    bins[0]++;
    sum += (double)nextafterf(.5f, 0) + (double)nextafterf(1, 0);
    ck_assert_int_eq(bx_finish(&result, &job, NULL), BX_OK);
    for (int b = 0; b < 10; b++) {
        ck_assert_msg(result.best_iou_histogram[b] == bins[b], "bin %d", b);
    }
    ck_assert(result.best_iou_min == 0 && result.best_iou_max == 1);
    ck_assert_double_eq_tol(result.best_iou_mean, sum / (N + 3), 1e-15);
    ck_assert_int_eq(result.objects_without_overlap, 2);
    ck_assert_int_eq(result.positives_per_object_min, 0);
    ck_assert_int_eq(result.positives_per_object_max, 50);
    ck_assert_double_eq_tol(result.positives_per_object_mean, (N * (N - 1) / 2 + 58.0) / (N + 3), 1e-15);
    batch_close();
}
END_TEST

START_TEST(one_object) {
    static const int32_t objects[2] = {0, 1};
    batch_open(2, objects);
    batch_run("ssd-multibox");
    ck_assert(result.best_iou_min == result.best_iou_max && result.best_iou_mean == result.best_iou_min);
    ck_assert(result.best_iou_min == (double)job.objects[0].best_iou);
    ck_assert_int_eq(result.positives_per_object_min, job.objects[0].positives);
    ck_assert_int_eq(result.positives_per_object_max, job.objects[0].positives);
    batch_close();
}
END_TEST

/* ---- predictions that are not finite ----------------------------------------------------------------------------- */

static void refused(const char *path, const char *numbers) {
    bx_error error = {0};
    bx_result untouched;
    memset(&result, 0x5a, sizeof result);
    memset(&untouched, 0x5a, sizeof untouched);
    work = run(&plan, &job, "ssd-multibox", priors, &batch);
    ck_assert_int_eq(bx_finish(&result, &job, &error), BX_NONFINITE);
    ck_assert_int_eq(error.status, BX_NONFINITE);
    ck_assert_str_eq(error.code, "prediction_not_finite");
    ck_assert_str_eq(error.path, path);
    ck_assert_msg(strstr(error.text, numbers) != NULL, "%s", error.text);
    ck_assert(!memcmp(&result, &untouched, sizeof result));
    ck_assert_int_eq(bx_finish(&result, &job, NULL), BX_NONFINITE);
    free(work);
    work = NULL;
}

static const int32_t two_images[2] = {2, 3};

START_TEST(not_finite) {
    static const float wrong[] = {NAN, INFINITY, -INFINITY, -NAN};
    const float bad = wrong[_i];
    batch_open(2, two_images);
    const size_t p = (size_t)priors->n;
    conf[(p + 1234) * C + 3] = bad; /* one, in the second image */
    refused("predictions.conf[1][1234]", "image 1 has 1 predictions that are not finite (conf 1, loc 0)");
    conf[(p + 77) * C] = bad; /* an earlier one, at the background, and its whole row */
    conf[(p + 77) * C + 1] = conf[(p + 77) * C + 4] = bad;
    refused("predictions.conf[1][77]", "(conf 4, loc 0), the first at prior 77 of conf");
    loc[(p + 5) * 4 + 2] = bad; /* conf is named first */
    loc[(p + 3105) * 4] = bad;
    refused("predictions.conf[1][77]", "has 6 predictions that are not finite (conf 4, loc 2)");
    loc[3] = bad; /* the first image comes first */
    refused("predictions.loc[0][0]", "image 0 has 1 predictions that are not finite (conf 0, loc 1)");
    batch_close();
}
END_TEST

START_TEST(not_finite_positive) {
    batch_open(2, two_images);
    batch_run("ssd-multibox");
    int32_t positive = job.objects[1].best_prior;
    free(work);
    loc[4 * positive] = NAN;
    conf[C * positive + 1] = INFINITY;
    char path[64];
    snprintf(path, sizeof path, "predictions.conf[0][%d]", positive);
    refused(path, "(conf 1, loc 1)");
    batch_close();
}
END_TEST

START_TEST(everything_is_not_finite) {
    batch_open(2, two_images);
    for (size_t i = 0; i < 2 * (size_t)priors->n * C; i++) {
        conf[i] = NAN;
    }
    refused("predictions.conf[0][0]", "(conf 15530, loc 0)");
    batch_close();
}
END_TEST

/* Half precision's infinity and NaN, bfloat's, and doubles that overflow float32. */
START_TEST(not_finite_elsewhere) {
    static const uint16_t half[] = {0x7c00, 0xfc00, 0x7e00, 0xfc01}, brain[] = {0x7f80, 0xff80, 0x7fc0, 0xff81};
    static const double wide[] = {INFINITY, -1e300, NAN, 3.5e38};
    batch_open(2, two_images);
    const size_t p = (size_t)priors->n;
    uint16_t *small = get(2 * p * C * 2), *small_loc = get(2 * p * 4 * 2);
    double *large = get(2 * p * C * 8);
    memset(small, 0, 2 * p * C * 2);
    memset(small_loc, 0, 2 * p * 4 * 2);
    memset(large, 0, 2 * p * C * 8);
    batch.conf = (bx_tensor){BX_F16, small};
    small[99 * C + 2] = half[_i];
    refused("predictions.conf[0][99]", "(conf 1, loc 0)");
    batch.conf.dtype = BX_BF16;
    small[99 * C + 2] = brain[_i];
    refused("predictions.conf[0][99]", "(conf 1, loc 0)");
    small[99 * C + 2] = 0;
    batch.loc = (bx_tensor){BX_F16, small_loc};
    small_loc[(p + 8) * 4 + 3] = half[_i];
    refused("predictions.loc[1][8]", "image 1 has 1 predictions that are not finite (conf 0, loc 1)");
    batch.conf = (bx_tensor){BX_F64, large};
    large[(p + 3) * C + 2] = wide[_i];
    refused("predictions.conf[1][3]", "(conf 1, loc 1)");
    free(small);
    free(small_loc);
    free(large);
    batch_close();
}
END_TEST

/* More than a block of priors: counts fold and the first one is found whatever block it is in. */
START_TEST(not_finite_in_blocks) {
    static const int32_t none[2] = {0, 0};
    const int32_t p = 2 * BX_BLOCK + 10;
    float *many = get((size_t)p * 16), *row = get((size_t)p * 16), *two = get((size_t)p * 8);
    for (int32_t i = 0; i < p; i++) {
        memcpy(many + 4 * i, (float[4]){.5f, .5f, .5f, .5f}, 16);
        memset(row + 4 * i, 0, 16);
        memset(two + 2 * i, 0, 8);
    }
    ck_assert_int_eq(bx_priors_new(&priors, many, p, NULL), BX_OK);
    batch = (bx_batch){1, p, 2, {BX_F32, row}, {BX_F32, two}, NULL, NULL, none};
    two[2 * (p - 1)] = NAN;
    refused("predictions.conf[0][8201]", "(conf 1, loc 0)");
    two[2 * (BX_BLOCK + 4) + 1] = INFINITY;
    refused("predictions.conf[0][4100]", "(conf 2, loc 0)");
    row[4 * (BX_BLOCK - 1)] = NAN;
    refused("predictions.conf[0][4100]", "(conf 2, loc 1)");
    two[2 * (p - 1)] = two[2 * (BX_BLOCK + 4) + 1] = 0;
    refused("predictions.loc[0][4095]", "(conf 0, loc 1)");
    free(many);
    free(row);
    free(two);
    bx_priors_free(priors);
}
END_TEST

START_TEST(extremes_are_finite) {
    static const float large[] = {88, -88, 1e30f, -1e30f, 3.4e38f, 1e-45f};
    batch_open(2, two_images);
    for (size_t i = 0; i < 2 * (size_t)priors->n * C; i++) {
        conf[i] = large[i % (_i ? 2 : 6)];
    }
    batch_run("ssd-multibox");
    check_parts();
    batch_close();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("finish");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, shared_prior_smooth_l1);
    tcase_add_test(tests, shared_prior_l1);
    tcase_add_loop_test(tests, parts_add_up, 0, 10);
    tcase_add_loop_test(tests, sums_of_priors, 0, 2);
    tcase_add_test(tests, weights);
    tcase_add_loop_test(tests, no_objects, 0, 2);
    tcase_add_test(tests, object_statistics);
    tcase_add_test(tests, one_object);
    tcase_add_loop_test(tests, not_finite, 0, 4);
    tcase_add_test(tests, not_finite_positive);
    tcase_add_test(tests, everything_is_not_finite);
    tcase_add_loop_test(tests, not_finite_elsewhere, 0, 4);
    tcase_add_test(tests, not_finite_in_blocks);
    tcase_add_loop_test(tests, extremes_are_finite, 0, 2);
    return suite_run(suite);
}
