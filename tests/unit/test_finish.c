/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a finished job says: numbers worked out by hand or by the origins' own code, totals that are the sums of their
 * parts under every normaliser, the statistics over objects, targets instead of annotations, and the refusal of
 * predictions that cannot be used.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"
#include "../support/job.h"

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

static bx_priors *ten_priors(void) {
    bx_priors *made = NULL;
    float sizes[10][4];
    for (int p = 0; p < 10; p++) {
        const float *c = shared_priors[p];
        memcpy(sizes[p], (float[4]){(c[0] + c[2]) / 2, (c[1] + c[3]) / 2, c[2] - c[0], c[3] - c[1]}, 16);
    }
    ck_assert_int_eq(bx_priors_new(&made, sizes[0], 10, NULL), BX_OK);
    return made;
}

/* last: B takes prior 0 from A. first: A keeps it. */
static void shared_prior(const char *preset, bx_force force, double loc, double conf) {
    static const int32_t first[2] = {0, 2};
    const bool last = force == BX_FORCE_LAST;
    bx_criterion criterion = *bx_criterion_preset(preset);
    criterion.matcher.force = force;
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
    bx_priors *priors = ten_priors();
    computation c;
    ck_assert_int_eq(compute(&c, NULL, &criterion, priors, &batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    const bx_job *const job = &c.job;
    const bx_result *const r = &c.result;

    close_to((double)job->objects[0].best_iou, .95, 1e-6, "A's best");
    close_to((double)job->objects[1].best_iou, .8181818182, 1e-6, "B's best");
    close_to((double)job->overlap[2], .6059165346, 1e-6, "P2");
    ck_assert_int_eq(job->objects[0].best_prior, 0);
    ck_assert_int_eq(job->objects[1].best_prior, 0);
    for (int p = 0; p < 10; p++) {
        bool positive = p == 0 || p == 2, mined = p == 4 || p == 6 || p == 7 || p == 9 || p == 3 || p == 8;
        ck_assert_int_eq(job->state[p] & BX_POSITIVE, positive ? BX_POSITIVE : 0);
        ck_assert_int_eq(job->state[p] & BX_HARD_NEGATIVE, mined ? BX_HARD_NEGATIVE : 0);
        ck_assert(!positive || job->owner[p] == (p || last));
    }
    ck_assert(job->score[3] == job->score[8]); /* the tied pair */
    close_to((double)job->score[3], .4076059644, 1e-7, "tied loss");
    ck_assert_int_eq(r->positives, 2);
    ck_assert_int_eq(r->hard_negatives, 6);
    ck_assert_int_eq(r->collided, 1);
    ck_assert_int_eq(r->unmatched_objects, last);

    double target[4];
    static const double p0s[2][4] = {{0, -.25, 0, -.2564664719}, {.5, -.5, 0, -.5268025783}};
    static const double p2[4] = {-.75, -1.75, 0, -.5268025783};
    for (int k = 0; k < 4; k++) {
        bx_result_target(r, 0, 0, target);
        close_to(target[k], p0s[last][k], 2e-6, "target of P0");
        bx_result_target(r, 0, 2, target);
        close_to(target[k], p2[k], 2e-6, "target of P2");
        bx_result_target(r, 0, 1, target);
        ck_assert(target[k] == 0);
    }
    close_to(r->sums.conf_positive, last ? 1.5062182531 : 2.5062182531, 1e-7, "conf of positives");
    close_to(r->sums.conf_negative, 8.3371807940, 4e-7, "conf of negatives");
    close_to(r->loss.conf, conf, 2e-7, "conf");
    close_to(r->loss.loc, loc, 1e-6, "loc");
    close_to(r->loss.total, loc + conf, 1e-6, "total");
    computation_free(&c);
    bx_priors_free(priors);
}

START_TEST(shared_prior_smooth_l1) {
    shared_prior("ssd-multibox", BX_FORCE_LAST, 1.8576848337, 4.9216995235);
    shared_prior("ssd-multibox", BX_FORCE_FIRST, 1.7453733574, 5.4216995235);
    shared_prior("ssd-multibox", BX_FORCE_GREEDY, 1.7453733574, 5.4216995235);
}
END_TEST

START_TEST(shared_prior_l1) {
    shared_prior("ssd-multibox-l1", BX_FORCE_LAST, .7567006446, 4.9216995235);
    shared_prior("ssd-multibox-l1", BX_FORCE_FIRST, .6541586313, 5.4216995235);
    shared_prior("ssd-multibox-l1", BX_FORCE_NONE, .6541586313, 5.4216995235);
}
END_TEST

/* The same objects with the loss of the Keras SSD tutorial, whose conf are probabilities with the background last: one
 * image, then with a second one without objects, then that one alone. Its negatives are mined across the batch. */
START_TEST(shared_prior_probabilities) {
    static const int32_t firsts[3][3] = {{0, 2}, {0, 2, 2}, {0, 0}};
    static const struct {
        int32_t n_images;
        double positive, negative, loc;
    } rows[] = {
        {1, 1.2531090639, 2.4227974363, 1.1843664810}, {2, 1.2531090639, 3.0351466429, 1.1843664810}, {1, 0, 0, 0}};
    static const float empty_loc[10][4];
    float conf[2][10][3], loc[2][10][4];
    memcpy(loc[0], shared_loc, sizeof loc[0]);
    memcpy(loc[1], empty_loc, sizeof loc[1]);
    for (int p = 0; p < 10; p++) {
        double e[3], sum = 0;
        for (int k = 0; k < 3; k++) {
            sum += e[k] = exp((double)shared_conf[p][k]);
        }
        for (int k = 0; k < 3; k++) {
            conf[0][p][k] = (float)(e[k] / sum);
            conf[1][p][k] = (float)(e[2 - k] / sum); /* each row reversed */
        }
    }
    bx_priors *priors = ten_priors();
    for (int i = 0; i < 3; i++) {
        const int from = i == 2;
        const bx_batch batch = {
            .n_images = rows[i].n_images,
            .n_priors = 10,
            .n_columns = 3,
            .loc = {BX_F32, loc[from]},
            .conf = {BX_F32, conf[from]},
            .boxes = shared_boxes[0],
            .labels = shared_labels,
            .first = firsts[i],
        };
        computation c;
        ck_assert_int_eq(compute(&c, NULL, bx_criterion_preset("ssd-keras"), priors, &batch, BX_GRADIENTS_NONE, NULL),
                         BX_OK);
        const bx_loss *loss = &c.result.loss;
        close_to(loss->conf_positive, rows[i].positive, 1e-6, "positives");
        close_to(loss->conf_negative, rows[i].negative, 1e-6, "negatives");
        close_to(loss->loc, rows[i].loc, 1e-6, "loc");
        close_to(loss->total, rows[i].positive + rows[i].negative + rows[i].loc, 2e-6, "total");
        ck_assert_int_eq(c.result.hard_negatives, i == 2 ? 0 : 6);
        ck_assert(c.result.normalizer.conf_negative == (i == 2 ? 1e-7 : 6 + 1e-7));
        ck_assert(c.result.normalizer.loc == (i == 2 ? 1e-7 : 2 + 1e-7));
        computation_free(&c);
    }
    bx_priors_free(priors);
}
END_TEST

/* ---- the tests of the keras-io RetinaNet losses, by targets -------------------------------------------------------
 */

static const int32_t no_first[3] = {0, 0, 0};
static const float focal_logits[2][2] = {{.3f, .4f}, {.7f, .4f}};
static const float box_predicted[2][4] = {{65, 66, 70, 50}, {120, 125, 30, 50}};
static const float box_targets[2][4] = {{65, 80, 50, 64}, {90, 150, 20, 40}};

/* One image of two priors without boxes. */
static void two_rows(computation *c, const bx_criterion *criterion, const int32_t classes[2]) {
    const bx_batch batch = {
        .n_images = 1,
        .n_priors = 2,
        .n_columns = 2,
        .loc = {BX_F32, box_predicted},
        .conf = {BX_F32, focal_logits},
        .first = no_first,
        .target_classes = {BX_I32, classes},
        .target_loc = {BX_F32, box_targets},
    };
    bx_priors *priors = NULL;
    bx_error error = {0};
    ck_assert_int_eq(bx_priors_new(&priors, NULL, 2, NULL), BX_OK);
    bx_status status = compute(c, NULL, criterion, priors, &batch, BX_GRADIENTS_NONE, &error);
    ck_assert_msg(status == BX_OK, "%s: %s", error.path, error.text);
    bx_priors_free(priors);
}

START_TEST(focal_rows) {
    static const struct {
        int32_t classes[2];
        double positive, negative, normalizer, loc;
    } rows[] = {
        {{0, 1}, .2705352486 + .3900641408, 0, 2, 184.75},
        {{-1, 1}, .3900641408, .4568797319, 1, 154},
        {{-2, 1}, .3900641408, 0, 1, 154},
        {{0, -1}, .2705352486, .6148455895, 1, 215.5},
        {{-1, -1}, 0, .4568797319 + .6148455895, 1, 0},
        {{-1, -2}, 0, .4568797319, 1, 0},
        {{-2, -2}, 0, 0, 1, 0},
    };
    bx_criterion criterion = *bx_criterion_preset("retinanet-focal");
    criterion.localization.delta = 15;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        computation c;
        two_rows(&c, &criterion, rows[i].classes);
        const bx_result *r = &c.result;
        close_to(r->sums.conf_positive, rows[i].positive, 2e-7, "positives");
        close_to(r->sums.conf_negative, rows[i].negative, 2e-7, "negatives");
        close_to(r->loss.conf, (rows[i].positive + rows[i].negative) / rows[i].normalizer, 2e-7, "conf");
        ck_assert(r->loss.loc == rows[i].loc);
        ck_assert(c.job.normalizers[0].conf_positive == rows[i].normalizer && r->own_normalizers);
        ck_assert_int_eq(r->no_positives, rows[i].loc == 0);
        ck_assert_int_eq(r->hard_negatives, 0);
        computation_free(&c);
    }
}
END_TEST

START_TEST(box_rows) {
    static const struct {
        const char *kind;
        double parameter, loc;
    } rows[] = {
        {"jump_l1", 15, 184.75},
        {"jump_l1", 1, 59.75},
        {"smooth_l1", 15, 36.1166666667},
        {"huber", 15, 541.75},
        {"huber", 1, 59.75},
        {"smooth_l1", 1, 59.75},
        {"l1", 0, (48 + 75) / 2.},
        {"smooth_l1", 0, (48 + 75) / 2.},
    };
    static const int32_t classes[2] = {0, 1};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bx_criterion criterion = *bx_criterion_preset("retinanet-focal");
        const char *name;
        size_t kind = 0;
        while ((name = bx_menu_name(BX_MENU_LOCALIZATION, kind)) && strcmp(name, rows[i].kind)) {
            kind++;
        }
        ck_assert_ptr_nonnull(name);
        criterion.localization = bx_localization_default((bx_localization_kind)kind);
        criterion.localization.beta = criterion.localization.delta = rows[i].parameter;
        computation c;
        two_rows(&c, &criterion, classes);
        close_to(c.result.loss.loc, rows[i].loc, 1e-9, rows[i].kind);
        computation_free(&c);
        criterion.localization.reduction = BX_REDUCTION_MEAN;
        two_rows(&c, &criterion, classes);
        close_to(c.result.loss.loc, rows[i].loc / 4, 1e-9, rows[i].kind);
        ck_assert(c.result.normalizer.loc == 8);
        computation_free(&c);
    }
}
END_TEST

/* ---- random batches over a built-in set -------------------------------------------------------------------------- */

static bx_priors *priors;
static float *loc, *conf, *boxes;
static int64_t *labels;
static uint8_t *use;
static int32_t *first;
static bx_batch batch;
static computation done;
static bx_criterion criterion;
static bx_plan *const plan = &done.plan;
static bx_job *const job = &done.job;
static bx_result *const result = &done.result;

enum { C = 5, MOST_IMAGES = 4 };

static void batch_open(int32_t n, const int32_t *objects) {
    ck_assert_int_eq(bx_priors_builtin(&priors, "ssd300-efficientnet", NULL), BX_OK);
    const size_t rows = (size_t)n * (size_t)priors->n;
    first = poisoned(((size_t)n + 1) * 4);
    first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        first[i + 1] = first[i] + objects[i];
    }
    const size_t g = (size_t)first[n];
    loc = poisoned(rows * 16);
    conf = poisoned(rows * C * 4);
    boxes = poisoned(g * 16);
    labels = poisoned(g * sizeof *labels);
    use = poisoned(g);
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
    batch = (bx_batch){
        .n_images = n,
        .n_priors = priors->n,
        .n_columns = C,
        .loc = {BX_F32, loc},
        .conf = {BX_F32, conf},
        .boxes = boxes,
        .labels = labels,
        .first = first,
    };
}

/* Computes the batch with `criterion`. */
static void batch_compute(bx_gradients gradients) {
    bx_error error = {0};
    bx_status status = compute(&done, NULL, &criterion, priors, &batch, gradients, &error);
    ck_assert_msg(status == BX_OK, "%s: %s", error.path, error.text);
}

static void batch_run(const char *preset) {
    criterion = *bx_criterion_preset(preset);
    batch_compute(BX_GRADIENTS_NONE);
}

/* Annotations and conf of batch_open in the form that the criterion takes; a third of the objects is not used. */
static void batch_adapt(void) {
    const size_t g = (size_t)first[batch.n_images];
    for (size_t i = 0; i < g; i++) {
        float *b = boxes + 4 * i;
        if (criterion.matcher.iou == BX_IOU_SIZES) {
            memcpy(b, (float[4]){(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]}, 16);
        }
        use[i] = (uint8_t)(below(3) ? BX_OBJECT_USED : 1 + below(2));
    }
    batch.use = use;
    const size_t n = (size_t)batch.n_images * (size_t)batch.n_priors * C;
    for (size_t i = 0; i < n && criterion.classification.kind == BX_CLASSIFICATION_PROB_CE; i++) {
        conf[i] = 1 / (1 + expf(-conf[i]));
    }
}

static void batch_close(void) {
    bx_priors_free(priors);
    computation_free(&done);
    free(first);
    free(use);
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
    const bx_loss *loss = &result->loss;
    const bool mines = criterion.mining.kind != BX_MINING_NONE;
    ck_assert(loss->total == loss->loc + loss->conf);
    ck_assert(loss->conf == loss->conf_positive + loss->conf_negative);
    ck_assert(isfinite(loss->total));
    bx_loss images = {0}, classes = {0}, levels = {0}, share;
    int64_t positives[3] = {0}, hard_negatives[2] = {0}, negatives = 0, ignored = 0, objects = 0;
    for (int32_t i = 0; i < plan->n_images; i++) {
        const bx_image_row *row = &job->images[i];
        add(&images, bx_result_share(result, i, row->sums));
        positives[0] += row->positives;
        hard_negatives[0] += row->hard_negatives;
        negatives += row->negatives;
        ignored += row->ignored;
        ck_assert_int_eq(row->positives + row->negatives + row->ignored, plan->n_priors);
        ck_assert(mines || row->hard_negatives == 0);
    }
    for (int32_t k = 0; k < plan->n_classes; k++) {
        bx_class_row row = bx_result_class(result, k, &share);
        ck_assert(share.total == share.loc + share.conf && share.conf_negative == 0);
        add(&classes, share);
        positives[1] += row.positives;
        objects += row.objects;
        ck_assert(row.correct <= row.positives && row.sums.conf_negative == 0);
        if (!result->own_normalizers) {
            same_loss(bx_result_share(result, 0, row.sums), share, "share of a class");
        }
    }
    bx_sums background = bx_result_background(result, &share);
    ck_assert(background.conf_negative == result->sums.conf_negative);
    ck_assert(background.loc == 0 && background.conf_positive == 0 && share.conf == share.total);
    ck_assert(share.conf_negative == loss->conf_negative);
    add(&classes, share);
    for (int32_t l = 0; l < priors->n_levels; l++) {
        bx_level_row row = bx_result_level(result, l, &share);
        add(&levels, share);
        positives[2] += row.positives;
        hard_negatives[1] += row.hard_negatives;
    }
    same_loss(images, *loss, "images");
    same_loss(classes, *loss, "classes");
    same_loss(levels, *loss, "levels");
    ck_assert_int_eq(positives[0], result->positives);
    ck_assert_int_eq(positives[1], result->positives);
    ck_assert_int_eq(positives[2], result->positives);
    ck_assert_int_eq(hard_negatives[0], result->hard_negatives);
    ck_assert_int_eq(hard_negatives[1], result->hard_negatives);
    ck_assert_int_eq(negatives, result->negatives);
    ck_assert_int_eq(ignored, result->ignored);
    ck_assert_int_eq(objects, result->objects);
    ck_assert_int_eq(result->objects + result->ignored_objects + result->dropped_boxes, plan->n_objects);
}

START_TEST(parts_add_up) {
    static const int32_t objects[][MOST_IMAGES] = {{3, 7, 0, 12}, {1}, {40, 1}, {0, 0, 5}, {2, 2, 2, 2}};
    static const int32_t n[] = {4, 1, 2, 3, 4};
    const char *preset = _i % 2 ? "ssd-multibox-l1" : "ssd-multibox";
    random_state = 100 + (uint64_t)_i;
    batch_open(n[_i / 2], objects[_i / 2]);
    batch_run(preset);
    check_parts();
    ck_assert(!result->no_positives && !result->own_normalizers);
    double normalizer = (double)result->positives;
    ck_assert(result->normalizer.loc == (_i % 2 ? 4 : 1) * normalizer);
    ck_assert(result->normalizer.conf_positive == normalizer && result->normalizer.conf_negative == normalizer);
    ck_assert(result->loss.loc == result->sums.loc / result->normalizer.loc);
    batch_close();
}
END_TEST

/* Each normaliser, over each mining: what it is, and that parts and wholes agree. */
START_TEST(normalizers) {
    static const int32_t objects[] = {3, 0, 12};
    const bx_normalizer_kind kind = (bx_normalizer_kind)(_i % 4);
    const bool mean = _i / 4 % 2, mined = kind == BX_NORMALIZER_POSITIVES_AND_MINED;
    random_state = 150 + (uint64_t)_i;
    criterion = *bx_criterion_preset("ssd-multibox");
    criterion.normalizer = (bx_normalizer){kind, 12.5};
    criterion.localization.reduction = mean ? BX_REDUCTION_MEAN : BX_REDUCTION_SUM;
    criterion.matcher.negative_iou = .3f;
    criterion.mining.ratio = 2.3;
    criterion.mining.min_negatives = 3; /* the image without objects has some, too */
    criterion.mining.scope = _i / 8 % 2 ? BX_SCOPE_BATCH : BX_SCOPE_IMAGE;
    criterion.mining.kind = _i / 16 && !mined ? BX_MINING_NONE : BX_MINING_HARD_NEGATIVE;
    criterion.weights = (bx_weights){.5, 3};
    batch_open(3, objects);
    batch_adapt();
    batch_compute(BX_GRADIENTS_NONE);
    check_parts();
    ck_assert(result->ignored > 0 && result->positives > 0);
    double k = 0, total = 0;
    for (int i = 0; i < 3; i++) {
        k += fmax((double)(2.3f * (float)job->images[i].positives), 3);
    }
    k = criterion.mining.scope == BX_SCOPE_BATCH ? (double)(2.3f * (float)result->positives) : k;
    for (int i = 0; i < 3; i++) {
        const bx_image_row *row = &job->images[i];
        double by = kind == BX_NORMALIZER_VALUE             ? 12.5
                    : kind == BX_NORMALIZER_IMAGE_POSITIVES ? 3 * fmax(1, row->positives)
                                                            : (double)result->positives + (mined ? 1e-7 : 0);
        const bx_sums *got = &job->normalizers[i];
        ck_assert(got->conf_positive == by);
        ck_assert(got->loc == (mean ? 4 : 1) * by);
        ck_assert_double_eq_tol(got->conf_negative, mined ? k + 1e-7 : by, 1e-12 * got->conf_negative);
        total += .5 * row->sums.loc / got->loc + 3 * row->sums.conf_positive / got->conf_positive +
                 3 * row->sums.conf_negative / got->conf_negative;
    }
    ck_assert_double_eq_tol(total, result->loss.total, 1e-12 * total);
    ck_assert_int_eq(result->own_normalizers, kind == BX_NORMALIZER_IMAGE_POSITIVES);
    if (criterion.mining.kind == BX_MINING_NONE) {
        ck_assert(result->hard_negatives == 0 && result->sums.conf_negative > 0);
    } else {
        ck_assert(criterion.mining.scope == BX_SCOPE_BATCH || job->images[1].hard_negatives == 3);
    }
    batch_close();
}
END_TEST

/* The sums once more, prior by prior, from the job's own scores and bx_result_target. */
START_TEST(sums_of_priors) {
    static const int32_t objects[3] = {3, 0, 8};
    static const char *const presets[] = {"ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras"};
    random_state = 200 + (uint64_t)_i;
    criterion = *bx_criterion_preset(presets[_i]);
    batch_open(3, objects);
    batch_adapt();
    batch_compute(BX_GRADIENTS_NONE);
    check_parts();
    double sums[3] = {0};
    for (int32_t i = 0; i < 3; i++) {
        for (int32_t p = 0; p < plan->n_priors; p++) {
            size_t at = (size_t)i * (size_t)plan->n_priors + (size_t)p;
            double target[4];
            bx_result_target(result, i, p, target);
            if (job->state[at] & BX_POSITIVE) {
                for (int c = 0; c < 4; c++) {
                    double d = fabs((double)loc[4 * at + (size_t)c] - target[c]);
                    sums[0] += _i == 1 ? d : d < 1 ? d * d / 2 : d - .5;
                }
                sums[1] -= (double)job->score[at];
            } else if (_i == 2 ? !(job->state[at] & BX_IGNORED) : job->state[at] & BX_HARD_NEGATIVE) {
                sums[2] += (double)job->score[at];
            }
            if (!(job->state[at] & BX_POSITIVE) &&
                (target[0] != 0 || target[1] != 0 || target[2] != 0 || target[3] != 0)) {
                ck_abort_msg("a target for a prior that is not positive");
            }
        }
    }
    ck_assert_double_eq_tol(sums[0], result->sums.loc, 1e-11 * sums[0]);
    ck_assert_double_eq_tol(sums[1], result->sums.conf_positive, 1e-11 * sums[1]);
    ck_assert_double_eq_tol(sums[2], result->sums.conf_negative, 1e-11 * sums[2]);
    batch_close();
}
END_TEST

START_TEST(weights) {
    static const int32_t objects[1] = {6};
    batch_open(1, objects);
    batch_run("ssd-multibox");
    bx_loss plain = result->loss;
    criterion.weights.loc = 2; /* the plan reads it again */
    criterion.weights.conf = .25;
    ck_assert_int_eq(bx_finish(result, job, NULL), BX_OK);
    ck_assert(result->loss.loc == 2 * plain.loc);
    ck_assert(result->loss.conf_positive == plain.conf_positive / 4);
    ck_assert(result->loss.conf_negative == plain.conf_negative / 4);
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
    ck_assert(result->no_positives);
    ck_assert(result->loss.total == 0 && result->sums.loc == 0 && result->sums.conf_negative == 0);
    ck_assert(result->normalizer.loc == 1 && result->normalizer.conf_positive == 1 &&
              result->normalizer.conf_negative == 1);
    ck_assert_int_eq(result->positives, 0);
    ck_assert_int_eq(result->hard_negatives, 0);
    ck_assert_int_eq(result->negatives, (int64_t)n * plan->n_priors);
    ck_assert_int_eq(result->objects_without_overlap, 0);
    for (int b = 0; b < 10; b++) {
        ck_assert_int_eq(result->best_iou_histogram[b], 0);
    }
    ck_assert(result->best_iou_mean == 0 && result->positives_per_object_mean == 0);
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
        job->objects[g] = (bx_object_row){.best_iou = rows[g].iou, .positives = g};
        bins[rows[g].bin]++;
        sum += (double)rows[g].iou;
    }
    job->objects[N] = (bx_object_row){.best_iou = nextafterf(.5f, 0), .positives = 50};
    job->objects[N + 1] = (bx_object_row){.best_iou = nextafterf(1, 0), .positives = 7};
    job->objects[N + 2] = (bx_object_row){.best_iou = 0, .positives = 1};
    bins[4]++;
    bins[9]++;
    bins[0]++;
    sum += (double)nextafterf(.5f, 0) + (double)nextafterf(1, 0);
    ck_assert_int_eq(bx_finish(result, job, NULL), BX_OK);
    for (int b = 0; b < 10; b++) {
        ck_assert_msg(result->best_iou_histogram[b] == bins[b], "bin %d", b);
    }
    ck_assert(result->best_iou_min == 0 && result->best_iou_max == 1);
    ck_assert_double_eq_tol(result->best_iou_mean, sum / (N + 3), 1e-15);
    ck_assert_int_eq(result->objects_without_overlap, 2);
    ck_assert_int_eq(result->positives_per_object_min, 0);
    ck_assert_int_eq(result->positives_per_object_max, 50);
    ck_assert_double_eq_tol(result->positives_per_object_mean, (N * (N - 1) / 2 + 58.0) / (N + 3), 1e-15);
    batch_close();
}
END_TEST

START_TEST(one_object) {
    static const int32_t objects[2] = {0, 1};
    batch_open(2, objects);
    batch_run("ssd-multibox");
    ck_assert(result->best_iou_min == result->best_iou_max && result->best_iou_mean == result->best_iou_min);
    ck_assert(result->best_iou_min == (double)job->objects[0].best_iou);
    ck_assert_int_eq(result->positives_per_object_min, job->objects[0].positives);
    ck_assert_int_eq(result->positives_per_object_max, job->objects[0].positives);
    batch_close();
}
END_TEST

/* Objects that are not used are only counted. */
START_TEST(statistics_of_used_objects) {
    static const int32_t objects[2] = {4, 3};
    static const uint8_t uses[7] = {BX_OBJECT_IGNORED, BX_OBJECT_USED,    BX_OBJECT_DROPPED, BX_OBJECT_USED,
                                    BX_OBJECT_DROPPED, BX_OBJECT_DROPPED, BX_OBJECT_USED};
    batch_open(2, objects);
    memcpy(use, uses, sizeof uses);
    batch.use = use;
    batch_run("ssd-multibox");
    check_parts();
    ck_assert_int_eq(result->objects, 3);
    ck_assert_int_eq(result->ignored_objects, 1);
    ck_assert_int_eq(result->dropped_boxes, 3);
    ck_assert_int_eq(job->images[0].objects, 2);
    ck_assert_int_eq(job->images[1].objects, 1);
    double sum = 0;
    int64_t positives = 0, bins = 0;
    for (int g = 0; g < 7; g++) {
        const bx_object_row *row = &job->objects[g];
        ck_assert(uses[g] == BX_OBJECT_USED ? row->positives > 0 : row->positives == 0 && row->best_iou == 0);
        sum += (double)row->best_iou;
        positives += row->positives;
    }
    for (int b = 0; b < 10; b++) {
        bins += result->best_iou_histogram[b];
    }
    ck_assert_int_eq(bins, 3);
    ck_assert_int_eq(positives, result->positives);
    ck_assert(result->best_iou_mean == sum / 3 && result->best_iou_min > 0);
    ck_assert(result->positives_per_object_min > 0);
    ck_assert(result->positives_per_object_mean == (double)positives / 3);
    memset(use, BX_OBJECT_DROPPED, 7);
    computation_free(&done);
    batch_run("ssd-multibox");
    check_parts();
    ck_assert(result->objects == 0 && result->dropped_boxes == 7 && result->no_positives);
    batch_close();
}
END_TEST

/* ---- targets instead of annotations ------------------------------------------------------------------------------ */

/* What the annotations lead to, given back as targets in float32: classification to the bit, localization but for the
 * rounding of its targets. */
START_TEST(targets_of_annotations) {
    static const int32_t objects[3] = {3, 0, 8}, none[4] = {0};
    static const char *const presets[] = {"ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras"};
    random_state = 400 + (uint64_t)_i;
    criterion = *bx_criterion_preset(presets[_i % 4]);
    if (_i >= 4) { /* decoded boxes */
        static const bx_localization_kind kinds[] = {BX_LOCALIZATION_GIOU, BX_LOCALIZATION_DIOU, BX_LOCALIZATION_CIOU};
        criterion.localization = bx_localization_default(kinds[_i % 3]);
    }
    batch_open(3, objects);
    batch_adapt();
    batch_compute(BX_GRADIENTS_SPARSE);
    const size_t rows = 3 * (size_t)plan->n_priors;
    int32_t *classes = poisoned(rows * 4);
    float *targets = poisoned(rows * 16);
    for (size_t at = 0; at < rows; at++) {
        double target[4];
        int32_t image = (int32_t)(at / (size_t)plan->n_priors), prior = (int32_t)(at % (size_t)plan->n_priors);
        classes[at] = bx_result_prior_class(result, image, prior);
        bx_result_target(result, image, prior, target);
        for (int k = 0; k < 4; k++) {
            targets[4 * at + (size_t)k] = (float)target[k];
        }
    }
    bx_batch given = batch;
    given.boxes = NULL;
    given.labels = NULL;
    given.use = NULL;
    given.first = none;
    given.target_classes = (bx_tensor){BX_I32, classes};
    given.target_loc = (bx_tensor){BX_F32, targets};
    computation again;
    bx_error error = {0};
    bx_status status = compute(&again, NULL, &criterion, priors, &given, BX_GRADIENTS_SPARSE, &error);
    ck_assert_msg(status == BX_OK, "%s: %s", error.path, error.text);
    const bx_result *r = &again.result;
    ck_assert(r->sums.conf_positive == result->sums.conf_positive &&
              r->sums.conf_negative == result->sums.conf_negative);
    ck_assert(!memcmp(&r->normalizer, &result->normalizer, sizeof r->normalizer));
    ck_assert(r->loss.conf == result->loss.conf);
    ck_assert_double_eq_tol(r->loss.loc, result->loss.loc, 1e-6 * result->loss.loc);
    ck_assert_int_eq(r->positives, result->positives);
    ck_assert_int_eq(r->ignored, result->ignored);
    ck_assert_int_eq(r->negatives, result->negatives);
    ck_assert_int_eq(r->hard_negatives, result->hard_negatives);
    ck_assert(r->objects == 0 && r->forced == 0 && r->collided == 0 && r->unmatched_objects == 0);
    for (int32_t i = 0; i < 3; i++) {
        const bx_sums *a = &again.job.images[i].sums, *b = &job->images[i].sums;
        ck_assert(a->conf_positive == b->conf_positive && a->conf_negative == b->conf_negative);
        ck_assert(fabs(a->loc - b->loc) <= 1e-6 * b->loc);
    }
    for (int32_t k = 0; k < plan->n_classes; k++) {
        bx_loss x, y;
        bx_class_row a = bx_result_class(r, k, &x), b = bx_result_class(result, k, &y);
        ck_assert(a.sums.conf_positive == b.sums.conf_positive && x.conf == y.conf);
        ck_assert(a.positives == b.positives && a.correct == b.correct && a.objects == 0);
    }
    for (int32_t l = 0; l < priors->n_levels; l++) {
        bx_loss x, y;
        bx_level_row a = bx_result_level(r, l, &x), b = bx_result_level(result, l, &y);
        ck_assert(a.sums.conf_negative == b.sums.conf_negative && x.conf == y.conf);
        ck_assert(a.positives == b.positives && a.hard_negatives == b.hard_negatives);
    }
    int64_t listed = bx_job_gradient_rows(job);
    ck_assert_int_eq(bx_job_gradient_rows(&again.job), listed);
    ck_assert(!memcmp(again.job.grad_index, job->grad_index, (size_t)listed * 8));
    ck_assert(!memcmp(again.job.grad_conf, job->grad_conf, (size_t)listed * C * 4));
    for (int64_t i = 0; i < 4 * listed; i++) {
        double a = (double)again.job.grad_loc[i], b = (double)job->grad_loc[i];
        /* a target of up to 30 moves by up to 1e-6; slopes are at most the offsets' own change */
        HOLDS(fabs(a - b) <= 1e-5 * fabs(b) + 2e-6, "slope %lld: %.9g, not %.9g", (long long)i, a, b);
    }
    computation_free(&again);
    free(classes);
    free(targets);
    batch_close();
}
END_TEST

/* ---- predictions that cannot be used ------------------------------------------------------------------------------
 */

static void refused_as(bx_status status, const char *code, const char *path, const char *numbers) {
    bx_error error = {0};
    bx_context *context = NULL;
    ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, NULL), BX_OK);
    ck_assert_int_eq(compute_images(&done, context, &criterion, priors, &batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    ck_assert_int_eq(bx_run_batch(context, job, &error), status);
    ck_assert_int_eq(error.status, status);
    ck_assert_str_eq(error.code, code);
    ck_assert_str_eq(error.path, path);
    ck_assert_msg(strstr(error.text, numbers) != NULL, "%s", error.text);
    ck_assert_int_eq(bx_run_batch(context, job, NULL), status);
    bx_context_close(context);
    computation_free(&done);
}

static void refused(const char *path, const char *numbers) {
    criterion = *bx_criterion_preset("ssd-multibox");
    refused_as(BX_NONFINITE, "prediction_not_finite", path, numbers);
}

static const int32_t two_images[2] = {2, 3};

START_TEST(not_finite) {
    static const float wrong[] = {NAN, INFINITY, -INFINITY, -NAN};
    const float bad = wrong[_i];
    batch_open(2, two_images);
    const size_t p = (size_t)priors->n;
    conf[(p + 1234) * C + 3] = bad; /* one, in the second image */
    refused("predictions.conf[1][1234]", "image 1 has 1 predictions that are not finite in float32 (conf 1, loc 0)");
    conf[(p + 77) * C] = bad; /* an earlier one, at the background, and its whole row */
    conf[(p + 77) * C + 1] = conf[(p + 77) * C + 4] = bad;
    refused("predictions.conf[1][77]", "(conf 4, loc 0), the first at prior 77 of conf");
    loc[(p + 5) * 4 + 2] = bad; /* conf is named first */
    loc[(p + 3105) * 4] = bad;
    refused("predictions.conf[1][77]", "has 6 predictions that are not finite in float32 (conf 4, loc 2)");
    loc[3] = bad; /* the first image comes first */
    refused("predictions.loc[0][0]", "image 0 has 1 predictions that are not finite in float32 (conf 0, loc 1)");
    batch_close();
}
END_TEST

START_TEST(not_finite_positive) {
    batch_open(2, two_images);
    batch_run("ssd-multibox");
    int32_t positive = job->objects[1].best_prior;
    computation_free(&done);
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
    uint16_t *small = poisoned(2 * p * C * 2), *small_loc = poisoned(2 * p * 4 * 2);
    double *large = poisoned(2 * p * C * 8);
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
    refused("predictions.loc[1][8]", "image 1 has 1 predictions that are not finite in float32 (conf 0, loc 1)");
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
    float *many = poisoned((size_t)p * 16), *row = poisoned((size_t)p * 16), *two = poisoned((size_t)p * 8);
    for (int32_t i = 0; i < p; i++) {
        memcpy(many + 4 * i, (float[4]){.5f, .5f, .5f, .5f}, 16);
        memset(row + 4 * i, 0, 16);
        memset(two + 2 * i, 0, 8);
    }
    ck_assert_int_eq(bx_priors_new(&priors, many, p, NULL), BX_OK);
    batch = (bx_batch){
        .n_images = 1, .n_priors = p, .n_columns = 2, .loc = {BX_F32, row}, .conf = {BX_F32, two}, .first = none};
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

/* Every criterion looks at every prediction, mined or not. */
START_TEST(not_finite_under_each_criterion) {
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; bx_criterion_at(i); i++) {
        criterion = *bx_criterion_at(i);
        batch_open(2, two_images);
        batch_adapt();
        const size_t p = (size_t)priors->n;
        conf[(p + 1234) * C + 3] = wrong[i % 3];
        refused_as(BX_NONFINITE, "prediction_not_finite", "predictions.conf[1][1234]", "(conf 1, loc 0)");
        loc[(p + 70) * 4 + 3] = wrong[i % 3];
        refused_as(BX_NONFINITE, "prediction_not_finite", "predictions.conf[1][1234]", "(conf 1, loc 1)");
        conf[(p + 1234) * C + 3] = .5f;
        refused_as(BX_NONFINITE, "prediction_not_finite", "predictions.loc[1][70]", "(conf 0, loc 1)");
        batch_close();
    }
}
END_TEST

/* prob_ce takes what is outside [0,1] by no more than 1e-3. */
START_TEST(not_probabilities) {
    static const float fine[] = {-1e-3f, 0, -0.0f, 1, 1.001f, 1e-30f}, wrong[] = {-1.01e-3f, 1.0011f, 7, -88, 3e38f};
    random_state = 800;
    criterion = *bx_criterion_preset("ssd-keras");
    batch_open(2, two_images);
    batch_adapt();
    const size_t p = (size_t)priors->n;
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        conf[i * C + i % C] = fine[i];
        conf[(p + 600 * i) * C + 4] = fine[i];
    }
    batch_compute(BX_GRADIENTS_NONE);
    check_parts();
    computation_free(&done);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        conf[(p + 3000) * C + 2] = wrong[i];
        refused_as(BX_INVALID, "not_probability", "predictions.conf[1][3000]", "image 1 has 1 values of conf outside");
        conf[(p + 77) * C] = conf[(p + 77) * C + 4] = wrong[i]; /* another tile */
        refused_as(BX_INVALID, "not_probability", "predictions.conf[1][77]", "image 1 has 3 values of conf outside");
        conf[9 * C] = NAN; /* what is not finite is told first, and the first image before the second */
        refused_as(BX_NONFINITE, "prediction_not_finite", "predictions.conf[0][9]", "(conf 1, loc 0)");
        conf[9 * C] = 2;
        refused_as(BX_INVALID, "not_probability", "predictions.conf[0][9]", "image 0 has 1 values of conf outside");
        conf[(p + 77) * C] = conf[(p + 77) * C + 4] = conf[9 * C] = .5f;
    }
    batch_close();
}
END_TEST

/* Finite predictions whose loss is not: refused at the end, and what is mined is ranked all the same. */
START_TEST(losses_beyond_float32) {
    random_state = 900;
    batch_open(2, two_images);
    batch_run("ssd-multibox");
    int32_t positive = job->objects[1].best_prior;
    computation_free(&done);
    conf[C * positive + 1] = conf[C * positive + 2] = conf[C * positive + 3] = conf[C * positive + 4] = -3e38f;
    conf[C * positive] = 3e38f;
    bx_error error = {0};
    ck_assert_int_eq(compute(&done, NULL, &criterion, priors, &batch, BX_GRADIENTS_SPARSE, &error), BX_NONFINITE);
    ck_assert_str_eq(error.code, "loss_overflow");
    ck_assert_str_eq(error.path, "predictions.conf");
    bx_result untouched;
    memset(&untouched, 0, sizeof untouched);
    ck_assert(!memcmp(result, &untouched, sizeof untouched));
    ck_assert_int_eq(job->images[0].hard_negatives, 3 * job->images[0].positives);
    batch_close();
}
END_TEST

/* What has no weight may be infinite. */
START_TEST(no_weight_no_overflow) {
    random_state = 901;
    batch_open(2, two_images);
    criterion = *bx_criterion_preset("ssd-multibox");
    for (int k = 0; k < C; k++) {
        conf[k] = k ? -3e38f : 3e38f;
        conf[C + k] = k ? 3e38f : -3e38f;
    }
    bx_error error = {0};
    ck_assert_int_eq(compute(&done, NULL, &criterion, priors, &batch, BX_GRADIENTS_SPARSE, &error), BX_NONFINITE);
    ck_assert_str_eq(error.code, "loss_overflow");
    computation_free(&done);
    criterion.weights.conf = 0;
    batch_compute(BX_GRADIENTS_SPARSE);
    check_parts();
    ck_assert(result->loss.conf == 0 && result->loss.total == result->loss.loc && isinf(result->sums.conf_negative));
    for (int64_t i = 0; i < C * bx_job_gradient_rows(job); i++) {
        HOLDS(job->grad_conf[i] == 0, "slope %lld", (long long)i);
    }
    batch_close();
}
END_TEST

/* A target beyond float32 is refused whether there are predictions or not. */
START_TEST(targets_beyond_float32) {
    static const float prior[2][4] = {{0, 0, 1e-30f, 1e10f}, {500, 500, 10, 10}}, box[4] = {9e3f, -1, 1.1e4f, 1};
    static const float some_loc[2][4] = {{0}}, some_conf[2][2] = {{0}};
    static const int64_t label[1] = {0};
    static const int32_t one[2] = {0, 1};
    criterion = *bx_criterion_preset("ssd-multibox");
    criterion.coder.variances[0] = 1e-6;
    ck_assert_int_eq(bx_priors_new(&priors, prior[0], 2, NULL), BX_OK);
    for (int i = 0; i < 2; i++) {
        bx_error error = {0};
        batch = (bx_batch){.n_images = 1, .n_priors = 2, .n_columns = 2, .boxes = box, .labels = label, .first = one};
        if (i) {
            batch.loc = (bx_tensor){BX_F32, some_loc};
            batch.conf = (bx_tensor){BX_F32, some_conf};
        }
        ck_assert_int_eq(compute(&done, NULL, &criterion, priors, &batch, BX_GRADIENTS_NONE, &error), BX_NONFINITE);
        ck_assert_str_eq(error.code, "loss_overflow");
        ck_assert_ptr_nonnull(strstr(error.text, "image 0, prior 0"));
        computation_free(&done);
    }
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
    tcase_add_test(tests, shared_prior_probabilities);
    tcase_add_test(tests, focal_rows);
    tcase_add_test(tests, box_rows);
    tcase_add_loop_test(tests, parts_add_up, 0, 10);
    tcase_add_loop_test(tests, normalizers, 0, 32);
    tcase_add_loop_test(tests, sums_of_priors, 0, 4);
    tcase_add_test(tests, weights);
    tcase_add_loop_test(tests, no_objects, 0, 2);
    tcase_add_test(tests, object_statistics);
    tcase_add_test(tests, one_object);
    tcase_add_test(tests, statistics_of_used_objects);
    tcase_add_loop_test(tests, targets_of_annotations, 0, 10);
    tcase_add_loop_test(tests, not_finite, 0, 4);
    tcase_add_test(tests, not_finite_positive);
    tcase_add_test(tests, everything_is_not_finite);
    tcase_add_loop_test(tests, not_finite_elsewhere, 0, 4);
    tcase_add_test(tests, not_finite_in_blocks);
    tcase_add_test(tests, not_finite_under_each_criterion);
    tcase_add_test(tests, not_probabilities);
    tcase_add_test(tests, losses_beyond_float32);
    tcase_add_test(tests, no_weight_no_overflow);
    tcase_add_test(tests, targets_beyond_float32);
    tcase_add_loop_test(tests, extremes_are_finite, 0, 2);
    return suite_run(suite);
}
