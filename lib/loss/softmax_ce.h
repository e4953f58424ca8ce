/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Softmax cross-entropy of one row of logits x against the class t.
 *
 *   ce = log(sum_j exp(x_j)) - x_t = log1p(rest) + (max - x_t)
 *
 * where `rest` is the sum of exp(x_j - max), columns in order, over the columns below the maximum, plus one for each
 * further column that equals it. Leaving the maximum's own 1 out of the sum keeps the full precision of a confident
 * row, whose loss is far smaller than one ulp of 1. Both terms are >= 0, hence so is the loss. Its derivative with
 * respect to x_j is softmax_j - [j = t].
 *
 * Source: the cross-entropy of Liu et al., SSD (2016), equation 3, in the max-shifted form of PyTorch's log_softmax.
 */
#ifndef BX_LOSS_SOFTMAX_CE_H
#define BX_LOSS_SOFTMAX_CE_H

#include "../real.h"

/* One column's part in the row's sum, as bx_exp_series takes it: 0 for a column at the maximum, which *below does not
 * count. */
BX_INLINE float bx_softmax_reduce(float x, float max, int32_t *below, int32_t *scale) {
    float d = max - x;
    int32_t is_below = bx_bits(d) > 0; /* d is +0 at the maximum */
    float r = bx_exp_reduce(d, scale);
    *below += is_below;
    *scale = is_below ? *scale : BX_EXP_NOTHING;
    return r;
}

BX_INLINE float bx_softmax_term(float x, float max, int32_t *below) {
    int32_t scale;
    float r = bx_softmax_reduce(x, max, below, &scale);
    return bx_exp_series(r, scale);
}

/* The rest of a row: sum of the terms, and how many of the C columns are below the maximum. */
BX_INLINE float bx_softmax_rest(float sum, int32_t below, int32_t n_columns) {
    return sum + (float)(n_columns - 1 - below);
}

/* log_rest: log1p(rest); gap: max - x_t. */
BX_INLINE float bx_softmax_ce(float log_rest, float gap) {
    return log_rest + gap;
}

#endif
