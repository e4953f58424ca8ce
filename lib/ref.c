/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every row kernel in plain C, one element at a time: the specification that runs (level "ref"). The other levels must
 * give the same bits.
 */
#include <math.h>
#include <string.h>

#include "internal.h"
#include "loss/prob_ce.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"

static bool always(void) {
    return true;
}

static void load(float *out, const void *in, bx_dtype dtype, size_t n) {
    const char *at = in;
    switch (dtype) {
    case BX_F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, at + 2 * i, 2);
            out[i] = bx_half(h);
        }
        break;
    case BX_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, at + 2 * i, 2);
            out[i] = bx_float((int32_t)((uint32_t)h << 16));
        }
        break;
    case BX_F64:
        for (size_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, at + 8 * i, 8);
            /* the cast is undefined beyond float32's range only in letter: IEEE rounds to infinity */
            out[i] = (float)d;
        }
        break;
    default:
        memcpy(out, at, n * sizeof(float));
        break;
    }
}

static size_t count_bad(const void *x, size_t n) {
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, (const char *)x + i * sizeof value, sizeof value);
        bad += !isfinite(value);
    }
    return bad;
}

static void iou_row(const bx_priors *priors, int32_t first, int32_t count, const bx_object *object, bx_iou iou,
                    float least, int32_t index, float *overlap, int32_t *owner, bx_best *best) {
    (void)least;
    const float *areas = iou == BX_IOU_SIZES ? priors->size : priors->area;
    for (int32_t i = 0; i < count; i++) {
        int32_t p = first + i;
        float inter = bx_intersection(object, priors->x1[p], priors->y1[p], priors->x2[p], priors->y2[p]);
        float v = bx_iou_of(inter, object->area, areas[p], iou == BX_IOU_SIZES);
        if (v > overlap[i]) {
            overlap[i] = v;
            owner[i] = index;
        }
        if (v > best->iou) {
            *best = (bx_best){v, p};
        }
    }
}

/* ---- skeletons of the classification losses: inlined, so that each knows its formula ------------------------------
 */

/* -log of each column's softmax is log_rest + (max - x_c). */
BX_INLINE float softmax_row(const bx_scoring *s, const float *x, int32_t y,
                            float (*formula)(float log_rest, float gap)) {
    float max = x[0];
    bx_row_sum sum = {0}, all = {0};
    int32_t below = 0;
    for (int32_t c = 1; c < s->n_columns; c++) {
        max = x[c] > max ? x[c] : max;
    }
    for (int32_t c = 0; c < s->n_columns; c++) {
        bx_row_add(&sum, bx_softmax_term(x[c], max, &below));
    }
    float log_rest = bx_log1p(bx_softmax_rest(bx_row_total(sum.whole, sum.run), below, s->n_columns));
    float own = formula(log_rest, max - x[y]);
    if (s->plain) {
        return own;
    }
    for (int32_t c = 0; s->smoothing > 0 && c < s->n_columns; c++) {
        bx_row_add(&all, s->hard[c] * formula(log_rest, max - x[c]));
    }
    return (1 - s->smoothing) * (s->hard[y] * own) +
           s->smoothing / (float)s->n_columns * bx_row_total(all.whole, all.run);
}

BX_INLINE float probability_row(const bx_scoring *s, const float *p, int32_t y,
                                float (*formula)(float p, float *slope)) {
    float slope, own = formula(p[y], &slope);
    bx_row_sum all = {0};
    if (s->plain) {
        return own;
    }
    for (int32_t c = 0; s->smoothing > 0 && c < s->n_columns; c++) {
        bx_row_add(&all, s->hard[c] * formula(p[c], &slope));
    }
    return (1 - s->smoothing) * (s->hard[y] * own) +
           s->smoothing / (float)s->n_columns * bx_row_total(all.whole, all.run);
}

BX_INLINE float sigmoid_row(const bx_scoring *s, const float *x, int32_t y,
                            float (*formula)(float x, int32_t hard, float gamma, float smoothing, float *slope)) {
    bx_row_sum sum = {0};
    float slope;
    for (int32_t c = 0; c < s->n_columns; c++) {
        float value = formula(x[c], c == y, s->gamma, s->smoothing, &slope);
        bx_row_add(&sum, (c == y ? s->hard[c] : s->soft[c]) * value);
    }
    return bx_row_total(sum.whole, sum.run);
}

static bool finite_row(const float *x, int32_t n) {
    bool finite = true;
    for (int32_t c = 0; c < n; c++) {
        finite &= isfinite(x[c]) != 0;
    }
    return finite;
}

static bool probable_row(const float *p, int32_t n) {
    bool probable = true;
    for (int32_t c = 0; c < n; c++) {
        probable &= bx_is_probability(p[c]);
    }
    return probable;
}

#define SOFTMAX(formula)                                                                                               \
    usable &= finite_row(x, s->n_columns);                                                                             \
    loss = softmax_row(s, x, y, formula)
#define PROBABILITY(formula)                                                                                           \
    usable &= probable_row(x, s->n_columns);                                                                           \
    loss = probability_row(s, x, y, formula)
#define SIGMOID(formula)                                                                                               \
    usable &= finite_row(x, s->n_columns);                                                                             \
    loss = sigmoid_row(s, x, y, formula)

static bool score_rows(const bx_scoring *s, const void *rows, int32_t n, const int32_t *label, float *out,
                       float *tile) {
    const size_t stride = (size_t)s->n_columns * sizeof(float);
    const float *x = tile; /* the row, aligned */
    bool usable = true;
    for (int32_t i = 0; i < n; i++) {
        memcpy(tile, (const char *)rows + (size_t)i * stride, stride);
        int32_t y = label ? label[i] : s->background;
        float loss = 0;
        switch (s->kind) {
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    case BX_CLASSIFICATION_##id:                                                                                       \
        skeleton(formula);                                                                                             \
        break;
#include "loss.def"
        }
        out[i] = bx_rank(loss);
    }
    return usable;
}

/* Builds the k-th largest value's bits from the top: a bit stays when at least k values are as large as that. */
static int32_t kth_largest(const float *x, size_t n, size_t k) {
    int32_t cut = 0;
    for (int bit = 30; bit >= 0; bit--) {
        int32_t candidate = cut | (int32_t)(1u << bit);
        size_t reach = 0;
        for (size_t i = 0; i < n; i++) {
            reach += bx_bits(x[i]) >= candidate;
        }
        cut = reach >= k ? candidate : cut;
    }
    return cut;
}

static void mark_largest(const float *x, uint8_t *state, size_t n, size_t k, uint8_t mark) {
    int32_t cut = kth_largest(x, n, k);
    size_t marked = 0;
    for (size_t i = 0; i < n; i++) {
        if (bx_bits(x[i]) > cut) {
            state[i] |= mark;
            marked++;
        }
    }
    for (size_t i = 0; marked < k && i < n; i++) {
        if (bx_bits(x[i]) == cut) {
            state[i] |= mark;
            marked++;
        }
    }
}

const bx_kernels bx_kernels_ref = {"ref", always, load, count_bad, iou_row, score_rows, mark_largest};
