/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The derivative of the total with respect to loc and conf, one image at a time, once the normalisers are known.
 *
 * The assignment, the mined set, weights and normalisers are constants, as they are for autograd. Each row is the slope
 * of its own loss times weight / normaliser, rounded to float32 once. One implementation for every level: the rows that
 * count are few, and the same bits are promised on all levels.
 */
#include "internal.h"
#include "loss/prob_ce.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"

/* ---- slopes of the classification skeletons: n_columns slopes of one row's loss as column y, times scale ----------
 */

/* d(-log softmax_y)/dx_c = softmax_c - [c = y]; with smoothing and class weights the sum of such terms over y. The
 * label's own slope is minus the share of the others, which keeps its precision where that share is small. */
static void softmax_slopes(const bx_scoring *s, const float *x, int32_t y, double scale, float *out) {
    const int32_t n = s->n_columns;
    float max = x[0];
    double others = 0, own = 0; /* smoothing takes them from each other */
    for (int32_t c = 1; c < n; c++) {
        max = x[c] > max ? x[c] : max;
    }
    for (int32_t c = 0; c < n; c++) {
        out[c] = bx_exp_minus(max - x[c]);
    }
    for (int32_t c = 0; c < n; c++) {
        others += c == y ? 0 : (double)out[c];
        own += c == y ? (double)out[c] : 0;
    }
    double whole = others + own;
    if (s->plain) {
        double factor = scale / whole;
        for (int32_t c = 0; c < n; c++) {
            out[c] = (float)(factor * (c == y ? -others : (double)out[c]));
        }
        return;
    }
    const double share = (double)s->smoothing / n, hard = (1 - (double)s->smoothing) * (double)s->hard[y];
    double weights = 0;
    for (int32_t c = 0; s->smoothing > 0 && c < n; c++) {
        weights += (double)s->hard[c];
    }
    for (int32_t c = 0; c < n; c++) {
        double p = (double)out[c] / whole, from_label = c == y ? -others / whole : p;
        double from_all = s->smoothing > 0 ? share * (weights * p - (double)s->hard[c]) : 0;
        out[c] = (float)(scale * (hard * from_label + from_all));
    }
}

BX_INLINE void probability_slopes(const bx_scoring *s, const float *p, int32_t y, double scale, float *out,
                                  float (*formula)(float p, float *slope)) {
    const double share = (double)s->smoothing / s->n_columns, hard = 1 - (double)s->smoothing;
    for (int32_t c = 0; c < s->n_columns; c++) {
        float slope;
        (void)formula(p[c], &slope);
        double factor = s->plain ? c == y : (double)s->hard[c] * ((c == y ? hard : 0) + share);
        out[c] = (float)(scale * factor * (double)slope);
    }
}

typedef float (*sigmoid_formula)(float x, int32_t hard, float gamma, float smoothing, float *slope);

/* A plain loop that the compiler vectorises, as if no column were the row's class. */
BX_INLINE void soft_slopes(const float *restrict x, int32_t n, float gamma, float smoothing, float *restrict out,
                           sigmoid_formula formula) {
    for (int32_t c = 0; c < n; c++) {
        (void)formula(x[c], 0, gamma, smoothing, &out[c]);
    }
}

BX_INLINE void sigmoid_slopes(const bx_scoring *s, const float *x, int32_t y, double scale, float *out,
                              sigmoid_formula formula) {
    const float *restrict factors = s->soft;
    if (s->gamma == 2 && s->smoothing == 0) {
        soft_slopes(x, s->n_columns, 2, 0, out, formula);
    } else {
        soft_slopes(x, s->n_columns, s->gamma, s->smoothing, out, formula);
    }
    for (int32_t c = 0; c < s->n_columns; c++) {
        out[c] = (float)(scale * (double)factors[c] * (double)out[c]);
    }
    if (y >= 0) {
        float slope;
        (void)formula(x[y], 1, s->gamma, s->smoothing, &slope);
        out[y] = (float)(scale * (double)s->hard[y] * (double)slope);
    }
}

static void conf_slopes(const bx_scoring *s, const float *row, int32_t y, double scale, float *out) {
#define SOFTMAX(formula)     softmax_slopes(s, row, y, scale, out)
#define PROBABILITY(formula) probability_slopes(s, row, y, scale, out, formula)
#define SIGMOID(formula)     sigmoid_slopes(s, row, y, scale, out, formula)
    switch (s->kind) {
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    case BX_CLASSIFICATION_##id:                                                                                       \
        skeleton(formula);                                                                                             \
        break;
#include "loss.def"
    }
}

/* ---- one prior --------------------------------------------------------------------------------------------------- */

static void loc_slopes(const bx_job *job, int32_t image, int32_t prior, double scale, float out[4]) {
    const bx_plan *plan = job->plan;
    const float *box = plan->priors->boxes ? plan->priors->boxes + 4 * (size_t)prior : NULL;
    float predicted[4];
    double target[4], slope[4];
    bx_tensor_to_f32(predicted, job->batch->loc, 4 * bx_row_index(job, image, prior), 4);
    bx_target(job, image, prior, target);
    (void)bx_localization_loss(plan->criterion, box, predicted, target, slope);
    for (int i = 0; i < 4; i++) {
        out[i] = (float)(scale * slope[i]);
    }
}

static void put_row(bx_context *context, bx_job *job, const bx_scoring *scoring, int32_t image, int32_t prior,
                    size_t to) {
    const bx_plan *plan = job->plan;
    const bx_weights *weights = &plan->criterion->weights;
    const bx_sums *normalizer = &job->normalizers[image];
    const size_t at = bx_row_index(job, image, prior), width = (size_t)plan->n_columns;
    const float *row = bx_floats(context->kernels, job->batch->conf, at * width, width, context->rows);
    float *loc = job->grad_loc + 4 * to, *conf = job->grad_conf + width * to;
    if (job->state[at] & BX_POSITIVE) {
        int32_t y = bx_class_column(plan->criterion, bx_positive_class(job, image, at));
        loc_slopes(job, image, prior, weights->loc / normalizer->loc, loc);
        conf_slopes(scoring, row, y, weights->conf / normalizer->conf_positive, conf);
    } else {
        memset(loc, 0, 4 * sizeof *loc);
        conf_slopes(scoring, row, scoring->background, weights->conf / normalizer->conf_negative, conf);
    }
}

/* ---- the stage --------------------------------------------------------------------------------------------------- */

void bx_stage_gradients(bx_context *context, bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    const bool dense = plan->gradients == BX_GRADIENTS_DENSE;
    const size_t n = (size_t)plan->n_priors, base = bx_row_index(job, image, 0), width = (size_t)plan->n_columns;
    const bx_scoring scoring = bx_scoring_of(job);
    const uint8_t *state = job->state + base;
    size_t to = dense ? base : (size_t)job->listed[image];
    if (dense) {
        memset(job->grad_loc + 4 * base, 0, 4 * n * sizeof *job->grad_loc);
        memset(job->grad_conf + width * base, 0, width * n * sizeof *job->grad_conf);
    }
    for (size_t p = 0, done = 0; (p = bx_next_counted(job, state, p, n)) < n; p++, done++) {
        if (done % 1024 == 0 && bx_job_cancelled(job)) {
            return;
        }
        if (!dense) {
            job->grad_index[2 * to] = image;
            job->grad_index[2 * to + 1] = (int32_t)p;
        }
        size_t row = dense ? base + p : to;
        put_row(context, job, &scoring, image, (int32_t)p, row);
        size_t bad = context->kernels->count_bad(job->grad_loc + 4 * row, 4) +
                     context->kernels->count_bad(job->grad_conf + width * row, width);
        if (bad > 0 && job->images[image].too_far == 0) {
            job->images[image].too_far = (int32_t)p + 1;
        }
        to += !dense;
    }
}
