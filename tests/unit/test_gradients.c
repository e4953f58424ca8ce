/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every formula and its slope. Each row's loss is written here once more, in double and from its definition; its slope
 * is that loss differentiated numerically, so that no derivation is shared. Then the gradients as a whole: sparse
 * against dense, which rows they list, the total's own central differences, and the same bits on every level and in any
 * order of the images.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"
#include "../support/job.h"

enum { N = 3, P = 70, C = 4, OBJECTS = 9 };

/* ---- criteria ---------------------------------------------------------------------------------------------------- */

static const float class_weights[C] = {.5f, 2, 1.25f, .75f};
static const float alphas[C] = {.25f, .9f, 0, .6f};

/* 12 of softmax_ce, 12 of prob_ce, 80 of sigmoid_focal */
enum { N_CLASSIFICATIONS = 104 };

static bx_classification classification_of(int i) {
    static const double smoothings[3] = {0, .1, 1}, gammas[5] = {0, 1, 1.5, 2, 3};
    bx_classification c;
    if (i < 24) {
        c = bx_classification_default(i < 12 ? BX_CLASSIFICATION_SOFTMAX_CE : BX_CLASSIFICATION_PROB_CE);
        c.background = i % 2 ? BX_BACKGROUND_LAST : BX_BACKGROUND_FIRST;
        c.label_smoothing = smoothings[i / 2 % 3];
        c.class_weights = i / 6 % 2 ? class_weights : NULL;
    } else {
        static const bx_background places[4] = {BX_BACKGROUND_NONE, BX_BACKGROUND_FIRST, BX_BACKGROUND_LAST,
                                                BX_BACKGROUND_NONE};
        i -= 24;
        c = bx_classification_default(BX_CLASSIFICATION_SIGMOID_FOCAL);
        c.background = places[i % 4];
        c.alpha = i % 4 == 1 ? 1 : .25;
        c.alphas = i % 4 == 3 ? alphas : NULL;
        c.n_alphas = c.alphas ? C : 0;
        c.gamma = gammas[i / 4 % 5];
        c.label_smoothing = smoothings[i / 20 % 2];
        c.class_weights = i / 40 ? class_weights : NULL;
    }
    c.n_class_weights = c.class_weights ? C : 0;
    return c;
}

enum { N_LOCALIZATIONS = 19 };

static bx_localization localization_of(int i) {
    static const struct {
        const char *kind;
        double parameter;
    } rows[] = {{"l1", 0},       {"smooth_l1", 0}, {"smooth_l1", .5}, {"smooth_l1", 1}, {"huber", .5}, {"huber", 1},
                {"jump_l1", .7}, {"jump_l1", 1},   {"giou", 0},       {"diou", 0},      {"ciou", 0}};
    const int row = i < 16 ? i / 2 : i - 8;
    const char *name;
    size_t kind = 0;
    while ((name = bx_menu_name(BX_MENU_LOCALIZATION, kind)) && strcmp(name, rows[row].kind)) {
        kind++;
    }
    HOLDS(name, "no %s", rows[row].kind);
    bx_localization l = bx_localization_default((bx_localization_kind)kind);
    l.beta = bx_localization_has_beta(l.kind) ? rows[row].parameter : 1;
    l.delta = bx_localization_has_delta(l.kind) ? rows[row].parameter : 1;
    l.reduction = i < 16 && i % 2 ? BX_REDUCTION_MEAN : BX_REDUCTION_SUM;
    return l;
}

/* Each normaliser with each mining, but for the pair that makes no sense. */
enum { N_REDUCTIONS = 11 };

static void reduction_of(int i, bx_criterion *c) {
    static const bx_normalizer_kind kinds[4] = {BX_NORMALIZER_POSITIVES_AND_MINED, BX_NORMALIZER_POSITIVES,
                                                BX_NORMALIZER_IMAGE_POSITIVES, BX_NORMALIZER_VALUE};
    const int mining = i % 3; /* of the image, of the batch, none */
    i = i == 2 ? N_REDUCTIONS : i;
    c->normalizer = (bx_normalizer){kinds[i / 3], 7.5};
    c->mining = (bx_mining){mining == 2 ? BX_MINING_NONE : BX_MINING_HARD_NEGATIVE, 2.5,
                            mining == 1 ? BX_SCOPE_BATCH : BX_SCOPE_IMAGE, 4};
}

static bx_criterion criterion_of(int i) {
    bx_criterion c = *bx_criterion_preset("ssd-multibox");
    c.matcher = (bx_matcher){.5f, .3f, (bx_force)(i % 4), (bx_iou)(i / 2 % 2), -1};
    c.classification = classification_of(i % N_CLASSIFICATIONS);
    c.localization = localization_of(i % N_LOCALIZATIONS);
    reduction_of(i % N_REDUCTIONS, &c);
    c.weights = (bx_weights){i % 5 ? 1 : .5, i % 3 ? 1 : 2};
    return c;
}

/* ---- a batch ----------------------------------------------------------------------------------------------------- */

static float prior_boxes[P][4], boxes[OBJECTS][4], loc[N * P][4], conf[N * P][C];
static int64_t labels[OBJECTS];
static uint8_t use[OBJECTS];
static const int32_t first[N + 1] = {0, 6, 6, OBJECTS};
static bx_priors *priors;
static bx_batch batch;
static bx_criterion criterion;

static void batch_open(int i) {
    random_state = (uint64_t)i;
    criterion = criterion_of(i);
    for (int p = 0; p < P; p++) {
        memcpy(prior_boxes[p], (float[4]){uniform(.1f, .9f), uniform(.1f, .9f), uniform(.1f, .5f), uniform(.1f, .5f)},
               16);
    }
    for (int g = 0; g < OBJECTS; g++) {
        const float *prior = prior_boxes[below(P)];
        for (int k = 0; k < 4; k++) {
            boxes[g][k] = prior[k] + uniform(-.03f, .03f);
        }
        if (criterion.matcher.iou == BX_IOU_CORNERS) {
            float w = boxes[g][2], h = boxes[g][3];
            memcpy(boxes[g],
                   (float[4]){boxes[g][0] - w / 2, boxes[g][1] - h / 2, boxes[g][0] + w / 2, boxes[g][1] + h / 2}, 16);
        }
        labels[g] = below(C - 1);
        use[g] = g == 4 ? BX_OBJECT_IGNORED : BX_OBJECT_USED;
    }
    for (int row = 0; row < N * P; row++) {
        for (int k = 0; k < 4; k++) {
            loc[row][k] = uniform(-1.5f, 1.5f);
        }
        for (int k = 0; k < C; k++) {
            float x = uniform(-5, 5);
            bool given = criterion.classification.kind == BX_CLASSIFICATION_PROB_CE;
            conf[row][k] = given ? 1 / (1 + expf(-x)) : x;
        }
    }
    bx_error error = {0};
    HOLDS(bx_priors_new(&priors, prior_boxes[0], P, &error) == BX_OK, "%s", error.text);
    batch = (bx_batch){
        .n_images = N,
        .n_priors = P,
        .n_columns = C,
        .loc = {BX_F32, loc},
        .conf = {BX_F32, conf},
        .boxes = boxes[0],
        .labels = labels,
        .use = use,
        .first = first,
    };
}

static void batch_close(void) {
    bx_priors_free(priors);
}

static void run(computation *c, const char *level, bx_gradients gradients) {
    bx_error error = {0};
    bx_status status = compute(c, level, &criterion, priors, &batch, gradients, &error);
    HOLDS(status == BX_OK, "%s: %s %s", error.path, error.code, error.text);
}

/* ---- the losses once more, in double ----------------------------------------------------------------------------- */

static double softplus(double x) {
    return log1p(exp(-fabs(x))) + fmax(x, 0);
}

static double cross_entropy_of(const bx_classification *m, const double x[C], int column) {
    double sum = 0;
    if (m->kind == BX_CLASSIFICATION_PROB_CE) {
        return -log(fmin(fmax(x[column], (double)1e-7f), (double).99999988f));
    }
    double most = fmax(fmax(x[0], x[1]), fmax(x[2], x[3]));
    for (int k = 0; k < C; k++) {
        sum += exp(x[k] - most);
    }
    return log(sum) + (most - x[column]);
}

/* y: the label's column, or the background's; -1 none. */
static double row_loss(const double x[C], int y, const void *context) {
    const bx_classification *m = context;
    const double s = (double)(float)m->label_smoothing, gamma = m->gamma;
    double loss = 0;
    for (int k = 0; k < C; k++) {
        double w = m->class_weights ? (double)m->class_weights[k] : 1;
        if (m->kind == BX_CLASSIFICATION_SIGMOID_FOCAL) {
            double z = k == y, a = m->alphas ? (double)m->alphas[k] : m->alpha, soft = z * (1 - s) + s / 2;
            double bce = soft * softplus(-x[k]) + (1 - soft) * softplus(x[k]);
            double rest = k == y ? softplus(x[k]) : softplus(-x[k]); /* -log(1 - p_t) */
            loss += w * (k == y ? a : 1 - a) * exp(-gamma * rest) * bce;
        } else {
            loss += ((k == y ? 1 - s : 0) + s / C) * w * cross_entropy_of(m, x, k);
        }
    }
    return loss;
}

static double offset_loss(const bx_localization *m, double d) {
    const char *kind = bx_menu_name(BX_MENU_LOCALIZATION, (size_t)m->kind);
    double a = fabs(d);
    if (!strcmp(kind, "smooth_l1")) {
        return a < m->beta ? d * d / (2 * m->beta) : a - m->beta / 2;
    }
    if (!strcmp(kind, "huber")) {
        return a < m->delta ? d * d / 2 : m->delta * (a - m->delta / 2);
    }
    if (!strcmp(kind, "jump_l1")) {
        return a < m->delta ? d * d / 2 : a - .5;
    }
    HOLDS(!strcmp(kind, "l1"), "%s is not written here", kind);
    return a;
}

typedef struct regression {
    const bx_localization *localization;
    const double *variances;
    const float *prior;
    double target[4], alpha; /* ciou's, a constant of the slope */
} regression;

static void decode(const regression *r, const double offsets[4], bool clamp, double box[4]) {
    for (int i = 0; i < 2; i++) {
        double side = (double)r->prior[i + 2], scale = offsets[i + 2] * r->variances[i + 2];
        double length = side * exp(clamp ? fmin(scale, log(1000. / 16)) : scale);
        double centre = offsets[i] * r->variances[i] * side + (double)r->prior[i];
        box[i] = centre - length / 2;
        box[i + 2] = centre + length / 2;
    }
}

static double square(double x) {
    return x * x;
}

/* As fvcore writes them. alpha < 0: ciou's own; it is told in *own. */
static double boxes_loss(const regression *r, const double offsets[4], double alpha, double *own) {
    const char *kind = bx_menu_name(BX_MENU_LOCALIZATION, (size_t)r->localization->kind);
    const double eps = 1e-7;
    double a[4], b[4];
    decode(r, offsets, true, a);
    decode(r, r->target, false, b);
    double w = fmin(a[2], b[2]) - fmax(a[0], b[0]), h = fmin(a[3], b[3]) - fmax(a[1], b[1]);
    double inter = w > 0 && h > 0 ? w * h : 0;
    double both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter, iou = inter / (both + eps);
    double W = fmax(a[2], b[2]) - fmin(a[0], b[0]), H = fmax(a[3], b[3]) - fmin(a[1], b[1]);
    if (!strcmp(kind, "giou")) {
        return 1 - (iou - (W * H - both) / (W * H + eps));
    }
    double apart = square((a[0] + a[2] - b[0] - b[2]) / 2) + square((a[1] + a[3] - b[1] - b[3]) / 2);
    double loss = 1 - iou + apart / (W * W + H * H + eps);
    if (!strcmp(kind, "ciou")) {
        double v =
            4 / (M_PI * M_PI) * square(atan((b[2] - b[0]) / (b[3] - b[1])) - atan((a[2] - a[0]) / (a[3] - a[1])));
        *own = v / (1 - iou + v + eps);
        loss += (alpha < 0 ? *own : alpha) * v;
    }
    return loss;
}

static double regression_loss(const double x[4], int y, const void *context) {
    const regression *r = context;
    double sum = 0, unused;
    (void)y;
    if (bx_localization_needs_boxes(r->localization->kind)) {
        return boxes_loss(r, x, r->alpha, &unused);
    }
    for (int i = 0; i < 4; i++) {
        sum += offset_loss(r->localization, x[i] - r->target[i]);
    }
    return sum;
}

/* The slope along element k of n, by five points; NAN where two step widths disagree: a kink or a jump lies between. */
static double slope_of(double (*f)(const double *, int, const void *), const double *x, int n, int k, int y,
                       const void *context) {
    double at[C > 4 ? C : 4], slopes[2];
    memcpy(at, x, (size_t)n * sizeof *x);
    for (int i = 0; i < 2; i++) {
        double h = i ? 5e-4 : 1e-3, f4[4];
        if (criterion.classification.kind == BX_CLASSIFICATION_PROB_CE && f == row_loss) {
            h *= fmax(fabs(x[k]), 1e-7); /* -log p bends with 1/p */
        }
        for (int j = 0; j < 4; j++) {
            at[k] = x[k] + (j < 2 ? j - 2 : j - 1) * h;
            f4[j] = f(at, y, context);
        }
        slopes[i] = (8 * (f4[2] - f4[1]) - (f4[3] - f4[0])) / (12 * h);
    }
    return fabs(slopes[0] - slopes[1]) <= 1e-7 * fabs(slopes[1]) + 1e-9 ? slopes[1] : NAN;
}

/* ---- each row ---------------------------------------------------------------------------------------------------- */

static int32_t column_of(const bx_result *result, int32_t image, int32_t prior) {
    int32_t class = bx_result_prior_class(result, image, prior);
    switch (criterion.classification.background) {
    case BX_BACKGROUND_FIRST:
        return class + 1;
    case BX_BACKGROUND_LAST:
        return class < 0 ? C - 1 : class;
    case BX_BACKGROUND_NONE:
        break;
    }
    return class;
}

/* Float32 gives a row's loss and slopes to some ulp of the row's largest term; a focal row's to some more, because
 * gamma * softplus is rounded before exp: at most 15 * 2^-24 for gamma = 3 and logits up to 5. With smoothing a slope
 * is the difference of two shares, and may be far smaller than both. */
#define TOLERANCE 2e-6

static void check_conf_row(const computation *c, int32_t image, int32_t prior, const float *got) {
    const bx_classification *m = &criterion.classification;
    const size_t at = (size_t)image * P + (size_t)prior;
    const bool positive = c->job.state[at] & BX_POSITIVE;
    const bx_sums *by = &c->job.normalizers[image];
    const double scale = criterion.weights.conf / (positive ? by->conf_positive : by->conf_negative);
    const int32_t y = column_of(&c->result, image, prior);
    double x[C], owed[C], largest = 0;
    for (int k = 0; k < C; k++) {
        x[k] = (double)conf[at][k];
    }
    double loss = row_loss(x, y, m);
    const double got_loss = fabs((double)c->job.score[at]);
    HOLDS(fabs(got_loss - loss) <= TOLERANCE * loss, "loss of row %d, %d: %.9g, not %.9g", image, prior, got_loss,
          loss);
    for (int k = 0; k < C; k++) {
        owed[k] = scale * slope_of(row_loss, x, C, k, y, m);
        HOLDS(!isnan(owed[k]), "slope %d of row %d, %d is nowhere", k, image, prior);
        largest = fmax(largest, fabs(owed[k]));
    }
    double least = m->label_smoothing > 0 ? fmax(largest, scale) : largest;
    for (int k = 0; k < C; k++) {
        HOLDS(fabs((double)got[k] - owed[k]) <= TOLERANCE * fabs(owed[k]) + TOLERANCE / 10 * least,
              "slope %d of row %d, %d as column %d: %.9g, not %.9g", k, image, prior, y, (double)got[k], owed[k]);
    }
}

static void encode(int32_t object, int32_t prior, double target[4]) {
    const float *b = boxes[object], *anchor = prior_boxes[prior];
    for (int i = 0; i < 2; i++) {
        bool sizes = criterion.matcher.iou == BX_IOU_SIZES;
        double centre = sizes ? (double)b[i] : ((double)b[i] + (double)b[i + 2]) / 2;
        double side = sizes ? (double)b[i + 2] : (double)b[i + 2] - (double)b[i];
        target[i] = (centre - (double)anchor[i]) / (double)anchor[i + 2] / criterion.coder.variances[i];
        target[i + 2] = log(side / (double)anchor[i + 2]) / criterion.coder.variances[i + 2];
    }
}

/* Returns how many slopes lie at a kink. */
static int check_loc_row(const computation *c, int32_t image, int32_t prior, const float *got, double *loss) {
    const size_t at = (size_t)image * P + (size_t)prior;
    const double scale = criterion.weights.loc / c->job.normalizers[image].loc;
    regression r = {&criterion.localization, criterion.coder.variances, prior_boxes[prior], .alpha = -1};
    double x[4], target[4];
    int kinks = 0;
    encode(first[image] + c->job.owner[at], prior, r.target);
    bx_result_target(&c->result, image, prior, target);
    for (int k = 0; k < 4; k++) {
        HOLDS(fabs(target[k] - r.target[k]) <= 1e-14 * (1 + fabs(target[k])), "target of %d, %d", image, prior);
        x[k] = (double)loc[at][k];
    }
    *loss += regression_loss(x, 0, &r);
    if (bx_localization_needs_boxes(criterion.localization.kind)) {
        (void)boxes_loss(&r, x, -1, &r.alpha);
    }
    for (int k = 0; k < 4; k++) {
        double owed = scale * slope_of(regression_loss, x, 4, k, 0, &r);
        kinks += isnan(owed);
        HOLDS(isnan(owed) || fabs((double)got[k] - owed) <= 3e-7 * fabs(owed) + 1e-9 * scale,
              "slope %d of row %d, %d: %.9g, not %.9g", k, image, prior, (double)got[k], owed);
    }
    return kinks;
}

START_TEST(slopes_of_rows) {
    computation c;
    batch_open(_i);
    run(&c, NULL, BX_GRADIENTS_SPARSE);
    int positives = 0, kinks = 0;
    double losses[N] = {0};
    for (int64_t row = 0; row < bx_job_gradient_rows(&c.job); row++) {
        int32_t image = c.job.grad_index[2 * row], prior = c.job.grad_index[2 * row + 1];
        check_conf_row(&c, image, prior, c.job.grad_conf + row * C);
        const float *got = c.job.grad_loc + 4 * row;
        if (c.job.state[image * P + prior] & BX_POSITIVE) {
            kinks += check_loc_row(&c, image, prior, got, &losses[image]);
            positives++;
        } else {
            HOLDS(got[0] == 0 && got[1] == 0 && got[2] == 0 && got[3] == 0, "a background prior's loc");
        }
    }
    for (int i = 0; i < N; i++) {
        double sum = c.job.images[i].sums.loc;
        HOLDS(fabs(sum - losses[i]) <= 1e-12 * losses[i], "loc of image %d: %.17g, not %.17g", i, sum, losses[i]);
    }
    HOLDS(positives >= 4 && kinks <= positives / 2, "%d positives, %d kinks", positives, kinks);
    computation_free(&c);
    batch_close();
}
END_TEST

/* ---- rows of gradients ------------------------------------------------------------------------------------------- */

START_TEST(sparse_and_dense) {
    static const float zeros[C > 4 ? C : 4];
    computation none, sparse, dense;
    batch_open(_i);
    run(&none, NULL, BX_GRADIENTS_NONE);
    run(&sparse, NULL, BX_GRADIENTS_SPARSE);
    run(&dense, NULL, BX_GRADIENTS_DENSE);
    ck_assert(!memcmp(&none.result.loss, &sparse.result.loss, sizeof none.result.loss));
    ck_assert(!memcmp(&none.result.loss, &dense.result.loss, sizeof none.result.loss));
    ck_assert(!memcmp(&none.result.sums, &sparse.result.sums, sizeof none.result.sums));
    ck_assert(!memcmp(none.job.state, dense.job.state, N * P));
    ck_assert(!memcmp(none.job.score, dense.job.score, N * P * 4));
    ck_assert(dense.job.grad_index == NULL && bx_job_gradient_rows(&dense.job) == N * P);
    int64_t row = 0;
    for (int32_t at = 0; at < N * P; at++) {
        uint8_t state = none.job.state[at];
        bool all = criterion.mining.kind == BX_MINING_NONE;
        bool counts = all ? !(state & BX_IGNORED) : (state & (BX_POSITIVE | BX_HARD_NEGATIVE)) != 0;
        const float *grad_loc = dense.job.grad_loc + 4 * at, *grad_conf = dense.job.grad_conf + C * at;
        if (counts) {
            HOLDS(sparse.job.grad_index[2 * row] == at / P && sparse.job.grad_index[2 * row + 1] == at % P,
                  "row %lld is not %d, %d", (long long)row, at / P, at % P);
            HOLDS(!memcmp(sparse.job.grad_loc + 4 * row, grad_loc, 16), "loc of row %lld", (long long)row);
            HOLDS(!memcmp(sparse.job.grad_conf + C * row, grad_conf, C * 4), "conf of row %lld", (long long)row);
            row++;
        } else {
            HOLDS(!memcmp(grad_loc, zeros, 16) && !memcmp(grad_conf, zeros, C * 4), "a slope at %d, %d", at / P,
                  at % P);
        }
    }
    ck_assert_int_eq(bx_job_gradient_rows(&sparse.job), row);
    ck_assert_int_eq(row,
                     none.result.positives + (criterion.mining.kind == BX_MINING_NONE ? none.result.negatives
                                                                                      : none.result.hard_negatives));
    computation_free(&none);
    computation_free(&sparse);
    computation_free(&dense);
    batch_close();
}
END_TEST

START_TEST(levels) {
    const char *level;
    computation ref;
    batch_open(_i);
    run(&ref, bx_level_name(0), BX_GRADIENTS_SPARSE);
    size_t bytes = bx_gradient_bytes(&ref.plan, bx_job_gradient_rows(&ref.job));
    for (size_t l = 1; (level = bx_level_name(l)); l++) {
        computation c;
        run(&c, level, BX_GRADIENTS_SPARSE);
        ck_assert_int_eq(bx_job_gradient_rows(&c.job), bx_job_gradient_rows(&ref.job));
        HOLDS(!memcmp(c.gradients, ref.gradients, bytes), "%s: gradients", level);
        HOLDS(!memcmp(&c.result.loss, &ref.result.loss, sizeof c.result.loss), "%s: loss", level);
        computation_free(&c);
    }
    computation_free(&ref);
    batch_close();
}
END_TEST

/* The images in another order: the same rows in another order, where each image chooses its own negatives. */
START_TEST(permuted_images) {
    static const int32_t order[N] = {2, 0, 1}, firsts[N + 1] = {0, 3, 9, 9};
    static float other_loc[N * P][4], other_conf[N * P][C], other_boxes[OBJECTS][4];
    computation a, b;
    int64_t other_labels[OBJECTS];
    uint8_t other_use[OBJECTS];
    batch_open(_i);
    run(&a, NULL, BX_GRADIENTS_DENSE);
    for (int i = 0; i < N; i++) {
        int32_t from = order[i], g = first[from], n = first[from + 1] - g;
        memcpy(other_loc[i * P], loc[from * P], P * sizeof *loc);
        memcpy(other_conf[i * P], conf[from * P], P * sizeof *conf);
        memcpy(other_boxes[firsts[i]], boxes[g], (size_t)n * 16);
        memcpy(other_labels + firsts[i], labels + g, (size_t)n * sizeof *labels);
        memcpy(other_use + firsts[i], use + g, (size_t)n);
    }
    batch.loc.data = other_loc;
    batch.conf.data = other_conf;
    batch.boxes = other_boxes[0];
    batch.labels = other_labels;
    batch.use = other_use;
    batch.first = firsts;
    run(&b, NULL, BX_GRADIENTS_DENSE);
    bool same = criterion.normalizer.kind != BX_NORMALIZER_POSITIVES_AND_MINED; /* which adds up in another order */
    for (int i = 0; i < N; i++) {
        const float *x = a.job.grad_conf + order[i] * P * C, *y = b.job.grad_conf + i * P * C;
        for (int k = 0; k < P * C; k++) {
            HOLDS(same ? x[k] == y[k] : fabsf(x[k] - y[k]) <= 2e-7f * fabsf(x[k]), "conf of image %d", i);
        }
        HOLDS(!memcmp(a.job.grad_loc + order[i] * P * 4, b.job.grad_loc + i * P * 4, P * 16), "loc of image %d", i);
    }
    computation_free(&a);
    computation_free(&b);
    batch_close();
}
END_TEST

/* ---- the total --------------------------------------------------------------------------------------------------- */

/* The total with one prediction moved by about h; *moved is by how much float32 really moved it. NAN when that changes
 * which priors count. */
static double total_at(bx_context *context, const computation *base, float *element, double h, double *moved) {
    const uint8_t chosen = (uint8_t)~BX_CORRECT;
    const float before = *element;
    computation c;
    bx_error error = {0};
    *element = (float)((double)before + h);
    *moved = (double)*element - (double)before;
    bx_status status = compute_images(&c, context, &criterion, priors, &batch, BX_GRADIENTS_NONE, &error);
    status = status ? status : compute_rest(&c, context, &error);
    HOLDS(status == BX_OK, "%s: %s %s", error.path, error.code, error.text);
    double total = c.result.loss.total;
    for (int i = 0; i < N * P; i++) {
        total = (c.job.state[i] & chosen) == (base->job.state[i] & chosen) ? total : NAN;
    }
    *element = before;
    computation_free(&c);
    return total;
}

/* (4 D(h) - D(2h)) / 3, each D over the distance that float32 moved. */
static double total_slope(bx_context *context, const computation *base, float *element, double h) {
    double slopes[2];
    for (int i = 0; i < 2; i++) {
        double up, down, high, low;
        high = total_at(context, base, element, (i + 1) * h, &up);
        low = total_at(context, base, element, -(i + 1) * h, &down);
        slopes[i] = (high - low) / (up - down);
    }
    return (4 * slopes[0] - slopes[1]) / 3;
}

/*
 * A row's float32 loss is off by some ulp, say 6 * 2^-24 of it, and by 15 * 2^-24 more where gamma * softplus goes into
 * an exp. In Richardson's slope that is 1.5 times as much over h: with h = .02 up to 1e-4 of the row's loss. What
 * Richardson leaves is h^4/30 of the fifth derivative, which for gamma = 3 is 4^5 of the loss: 6e-6 of it. A tiny
 * row's part in the total is also rounded to the total's double.
 * The step of a probability is a part of its distance from 0 and 1, because its loss bends as 1/p does. Losses of
 * offsets are in double; their steps only have to stay clear of kinks. ciou is left out: its slope takes alpha for a
 * constant, the total does not (slopes_of_rows has it).
 */
START_TEST(differences_of_the_total) {
    bx_context *context = NULL;
    computation c;
    batch_open(_i);
    run(&c, NULL, BX_GRADIENTS_SPARSE);
    ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, NULL), BX_OK);
    const int64_t rows = bx_job_gradient_rows(&c.job);
    const bool given = criterion.classification.kind == BX_CLASSIFICATION_PROB_CE;
    const bool ciou = criterion.localization.kind == BX_LOCALIZATION_CIOU;
    const double noise = 1.5 * 0x1p-24 * (bx_classification_is_focal(criterion.classification.kind) ? 21 : 6);
    int tried = 0, skipped = 0;
    for (int64_t row = 0; row < rows; row += 1 + below(4)) {
        int32_t image = c.job.grad_index[2 * row], prior = c.job.grad_index[2 * row + 1], k = below(C);
        const int32_t at = image * P + prior;
        const bool positive = c.job.state[at] & BX_POSITIVE;
        const bx_sums *by = &c.job.normalizers[image];
        const double factor = criterion.weights.conf / (positive ? by->conf_positive : by->conf_negative);
        const double x = (double)conf[at][k], h = given ? .05 * fmin(x, 1 - x) : .02;
        double got = (double)c.job.grad_conf[row * C + k], owed = total_slope(context, &c, &conf[at][k], h);
        double tolerance = factor * noise * fabs((double)c.job.score[at]) / h;
        tolerance += 1e-5 * fabs(got) + 4 * DBL_EPSILON * c.result.loss.total / h;
        HOLDS(isnan(owed) || fabs(got - owed) <= tolerance, "conf %d of row %d, %d: %.9g, not %.9g +- %.2g", k, image,
              prior, got, owed, tolerance);
        tried++;
        skipped += isnan(owed);
        if (positive && !ciou) {
            const double share = criterion.weights.loc / by->loc;
            got = (double)c.job.grad_loc[row * 4 + k % 4];
            owed = total_slope(context, &c, &loc[at][k % 4], 1e-3);
            double again = total_slope(context, &c, &loc[at][k % 4], 5e-4);
            bool smooth = fabs(owed - again) <= 1e-6 * share; /* no kink between */
            HOLDS(!smooth || fabs(got - owed) <= 2e-6 * fabs(got) + 1e-6 * share,
                  "loc %d of row %d, %d: %.9g, not %.9g", k % 4, image, prior, got, owed);
            tried++;
            skipped += !smooth;
        }
    }
    HOLDS(tried >= 8 && skipped <= tried / 3, "%d of %d slopes skipped", skipped, tried);
    bx_context_close(context);
    computation_free(&c);
    batch_close();
}
END_TEST

/* A prior that does not count has no slope: the total does not move. */
START_TEST(what_does_not_count) {
    bx_context *context = NULL;
    computation c;
    batch_open(_i);
    run(&c, NULL, BX_GRADIENTS_DENSE);
    ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, NULL), BX_OK);
    for (int32_t at = 0; at < N * P; at += 1 + below(20)) {
        double moved;
        uint8_t state = c.job.state[at];
        if (!(state & BX_POSITIVE)) {
            ck_assert(total_at(context, &c, &loc[at][below(4)], .5, &moved) == c.result.loss.total);
        }
        if (state & BX_IGNORED) {
            ck_assert(total_at(context, &c, &conf[at][below(C)], -.001, &moved) == c.result.loss.total);
        }
    }
    bx_context_close(context);
    computation_free(&c);
    batch_close();
}
END_TEST

/* ---- points of their own ----------------------------------------------------------------------------------------- */

/* One prior of class 0 with a target, alone in its batch. */
static void one_row(computation *c, const float x[C], const float offsets[4], const float target[4]) {
    static const int32_t class[1] = {0}, none[2] = {0, 0};
    static const float box[4] = {.5f, .5f, .25f, .5f};
    const bx_batch one = {
        .n_images = 1,
        .n_priors = 1,
        .n_columns = C,
        .loc = {BX_F32, offsets},
        .conf = {BX_F32, x},
        .first = none,
        .target_classes = {BX_I32, class},
        .target_loc = {BX_F32, target},
    };
    bx_error error = {0};
    HOLDS(bx_priors_new(&priors, box, 1, &error) == BX_OK, "%s", error.text);
    bx_status status = compute(c, NULL, &criterion, priors, &one, BX_GRADIENTS_SPARSE, &error);
    HOLDS(status == BX_OK, "%s: %s", error.path, error.text);
    ck_assert_int_eq(bx_job_gradient_rows(&c->job), 1);
    bx_priors_free(priors);
}

static const float nothing[4] = {0, 0, 0, 0};

/* At a difference of 0 and of exactly beta or delta: the branches that torch and the origins take. */
START_TEST(kinks_of_offsets) {
    static const float offsets[4] = {0, .5f, -.5f, .25f};
    static const struct {
        const char *kind;
        double parameter, loss;
        float slopes[4];
    } rows[] = {
        {"l1", 0, 1.25, {0, 1, -1, 1}},
        {"smooth_l1", 0, 1.25, {0, 1, -1, 1}},
        {"smooth_l1", .5, .5625, {0, 1, -1, .5f}},
        {"huber", .5, .28125, {0, .5f, -.5f, .25f}},
        {"jump_l1", .5, .03125, {0, 1, -1, .25f}}, /* it has jumped from 1/8 to 0 */
        {"jump_l1", 15, .28125, {0, .5f, -.5f, .25f}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        computation c;
        criterion = *bx_criterion_preset("ssd-multibox");
        for (int l = 0; l < N_LOCALIZATIONS; l++) {
            bx_localization some = localization_of(l);
            if (!strcmp(bx_menu_name(BX_MENU_LOCALIZATION, (size_t)some.kind), rows[i].kind)) {
                criterion.localization = some;
            }
        }
        criterion.localization.beta = criterion.localization.delta = rows[i].parameter;
        criterion.localization.reduction = BX_REDUCTION_SUM;
        one_row(&c, nothing, offsets, nothing);
        HOLDS(c.result.sums.loc == rows[i].loss, "%s: %.17g", rows[i].kind, c.result.sums.loc);
        for (int k = 0; k < 4; k++) {
            HOLDS(c.job.grad_loc[k] == rows[i].slopes[k], "%s: slope %d is %g", rows[i].kind, k,
                  (double)c.job.grad_loc[k]);
        }
        computation_free(&c);
    }
}
END_TEST

/* Boxes that are equal, apart, inside one another, or far too large; only predictions are clamped, not targets. Where
 * corners coincide, half of the slope passes, and so the central difference is met there too. */
static void check_boxes(bx_localization_kind kind, const float offsets[4], const float target[4]) {
    static const float box[4] = {.5f, .5f, .25f, .5f};
    computation c;
    criterion = *bx_criterion_preset("ssd-multibox");
    criterion.localization = bx_localization_default(kind);
    one_row(&c, nothing, offsets, target);
    regression r = {&criterion.localization, criterion.coder.variances, box, .alpha = -1};
    double x[4];
    for (int k = 0; k < 4; k++) {
        x[k] = (double)offsets[k];
        r.target[k] = (double)target[k];
    }
    double owed = boxes_loss(&r, x, -1, &r.alpha), got = c.result.sums.loc;
    HOLDS(fabs(got - owed) <= 1e-12 * fmax(owed, 1e-3), "loss is %.17g, not %.17g", got, owed);
    for (int k = 0; k < 4; k++) {
        const double h = 1e-5, slope = (double)c.job.grad_loc[k];
        double at[4];
        memcpy(at, x, sizeof at);
        at[k] = x[k] + h;
        double up = regression_loss(at, 0, &r);
        at[k] = x[k] - h;
        double along = (up - regression_loss(at, 0, &r)) / (2 * h);
        HOLDS(fabs(slope - along) <= 1e-5 * fabs(along) + 1e-6, "kind %d, slope %d: %.9g, not %.9g", (int)kind, k,
              slope, along);
        bool clamped = k >= 2 && offsets[k] > 20.7f; /* ln(1000/16) / .2 */
        HOLDS(!clamped || slope == 0, "a slope beyond the clamp");
    }
    computation_free(&c);
}

START_TEST(boxes_of_their_own) {
    static const float offsets[][4] = {
        {0, 0, 0, 0},    {30, 0, 0, 0}, {0, -25, 1, 1}, {0, 0, -3, -3}, {0, 0, 2, 0},
        {20, 20, -2, 2}, {0, 0, 30, 0}, {0, 0, 30, 25}, {9, 0, 0, 0},   {-80, 60, 3, -3},
    };
    static const float targets[][4] = {{0, 0, 0, 0}, {1, -2, .5f, 1}, {3, 0, 25, 22}, {0, 0, -6, 24}};
    static const bx_localization_kind kinds[] = {BX_LOCALIZATION_GIOU, BX_LOCALIZATION_DIOU, BX_LOCALIZATION_CIOU};
    for (int i = 0; i < 3; i++) {
        for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
            for (size_t t = 0; t < sizeof targets / sizeof *targets; t++) {
                check_boxes(kinds[i], offsets[o], targets[t]);
            }
        }
    }
}
END_TEST

/* A predicted box that exp has made a point still has a loss and slopes. */
START_TEST(vanished_boxes) {
    static const bx_localization_kind kinds[] = {BX_LOCALIZATION_GIOU, BX_LOCALIZATION_DIOU, BX_LOCALIZATION_CIOU};
    static const float offsets[][4] = {
        {0, 0, -4000, -4000}, {0, 0, -4000, 0}, {1, 1, 0, -1e30f}, {50, 0, -1e30f, -1e30f}};
    for (int i = 0; i < 3; i++) {
        for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
            computation c;
            criterion = *bx_criterion_preset("ssd-multibox");
            criterion.localization = bx_localization_default(kinds[i]);
            one_row(&c, nothing, offsets[o], nothing);
            HOLDS(c.result.sums.loc > .5 && c.result.sums.loc < 3, "loss %g", c.result.sums.loc);
            for (int k = 0; k < 4; k++) {
                HOLDS(fabsf(c.job.grad_loc[k]) < 10, "slope %d of %zu, kind %d", k, o, i);
            }
            computation_free(&c);
        }
    }
}
END_TEST

/* Outside the clip of a probability nothing moves; at its very ends it does. */
START_TEST(clipped_probabilities) {
    static const struct {
        float p, slope;
    } rows[] = {{0, 0},    {-1e-3f, 0},   {1, 0}, {1.001f, 0}, {9e-8f, 0}, {1e-7f, -1e7f}, {.99999988f, -1.00000012f},
                {.5f, -2}, {1e-3f, -1000}};
    criterion = *bx_criterion_preset("ssd-keras");
    criterion.normalizer.kind = BX_NORMALIZER_POSITIVES;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const float x[C] = {rows[i].p, .25f, .25f, .25f};
        computation c;
        one_row(&c, x, nothing, nothing);
        HOLDS(fabsf(c.job.grad_conf[0] - rows[i].slope) <= 1e-6f * fabsf(rows[i].slope), "p = %g: %.9g",
              (double)rows[i].p, (double)c.job.grad_conf[0]);
        for (int k = 1; k < C; k++) {
            ck_assert(c.job.grad_conf[k] == 0);
        }
        computation_free(&c);
    }
}
END_TEST

/* Logits as large as they come: slopes are finite, of the right sign, and a confident row keeps its own precision. */
START_TEST(extreme_logits) {
    static const float logits[][C] = {{88, -88, 88, -88},  {-88, -88, -88, -88}, {0, 88, 0, 0}, {-88, 30, 20, 10},
                                      {1e4f, -1e4f, 0, 1}, {0, 20, 0, 0},        {0, 0, 40, 0}};
    for (int i = 0; i < N_CLASSIFICATIONS; i++) {
        criterion = *bx_criterion_preset("ssd-multibox");
        criterion.classification = classification_of(i);
        if (criterion.classification.kind == BX_CLASSIFICATION_PROB_CE) {
            continue;
        }
        bool plain = criterion.classification.kind == BX_CLASSIFICATION_SOFTMAX_CE;
        for (size_t row = 0; row < sizeof logits / sizeof *logits; row++) {
            computation c;
            double x[C], sum = 0, largest = 0;
            one_row(&c, logits[row], nothing, nothing);
            const int32_t y = column_of(&c.result, 0, 0);
            for (int k = 0; k < C; k++) {
                x[k] = (double)logits[row][k];
            }
            double owed = row_loss(x, y, &criterion.classification), got = fabs((double)c.job.score[0]);
            HOLDS(fabs(got - owed) <= 1e-5 * owed + 1e-36, "loss of %zu under %d: %.9g, not %.9g", row, i, got, owed);
            for (int k = 0; k < C; k++) {
                double slope = (double)c.job.grad_conf[k];
                HOLDS(isfinite(slope), "slope %d of %zu under %d", k, row, i);
                sum += slope;
                largest = fmax(largest, fabs(slope));
            }
            HOLDS(!plain || fabs(sum) <= 3e-7 * largest, "slopes of %zu under %d add up to %g", row, i, sum);
            computation_free(&c);
        }
    }
    criterion = *bx_criterion_preset("ssd-multibox"); /* the label's column leads by 20: 1 - p is 3 exp(-20) */
    computation c;
    one_row(&c, logits[5], nothing, nothing);
    ck_assert_double_eq_tol((double)c.job.grad_conf[1], -3 * exp(-20), 1e-6 * exp(-20));
    computation_free(&c);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("gradients");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, slopes_of_rows, 0, N_CLASSIFICATIONS);
    tcase_add_loop_test(tests, sparse_and_dense, 0, N_CLASSIFICATIONS);
    tcase_add_loop_test(tests, levels, 0, N_CLASSIFICATIONS);
    tcase_add_loop_test(tests, permuted_images, 0, N_CLASSIFICATIONS);
    tcase_add_loop_test(tests, differences_of_the_total, 0, N_CLASSIFICATIONS);
    tcase_add_loop_test(tests, what_does_not_count, 0, N_CLASSIFICATIONS);
    tcase_add_test(tests, kinks_of_offsets);
    tcase_add_test(tests, boxes_of_their_own);
    tcase_add_test(tests, vanished_boxes);
    tcase_add_test(tests, clipped_probabilities);
    tcase_add_test(tests, extreme_logits);
    return suite_run(suite);
}
