/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sigmoid focal loss of one logit x (Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5):
 *
 *   a_t (1 - p_t)^gamma bce
 *
 * hard: the column is the row's class. u = x if hard, else -x; p_t = sigmoid(u). The caller multiplies by
 * a_t = alpha if hard, else 1 - alpha. 1 - p_t = sigmoid(-u) is taken as the opposite sigmoid, not as a difference, and
 * (1 - p_t)^gamma as exp(-gamma softplus(u)), or as a square for the usual gamma = 2. bce is the binary cross-entropy
 * against the smoothed target: with e = smoothing / 2, (1 - e) softplus(-u) + e softplus(u).
 *
 * Slope with respect to x, with q = 1 - p_t, up to a_t:
 *   +-q^gamma (-gamma p_t bce - (1 - e) q + e p_t), + if hard.
 */
#ifndef BX_LOSS_SIGMOID_FOCAL_H
#define BX_LOSS_SIGMOID_FOCAL_H

#include "../real.h"

/* The loss of u and its slope with respect to u, given e = exp(-|u|) and log_rest = log(1 + e). */
BX_INLINE float bx_focal_of(float u, float e, float log_rest, float gamma, float smoothing, float *along) {
    int32_t up = u > 0;
    float most = 1.0f / (1.0f + e), least = e * most;
    float p = up ? most : least, q = up ? least : most;
    float softplus_minus = log_rest + (up ? 0.0f : -u), softplus = log_rest + (up ? u : 0.0f);
    float half = 0.5f * smoothing;
    float bce = smoothing > 0 ? (1.0f - half) * softplus_minus + half * softplus : softplus_minus;
    float modulator = gamma == 2.0f ? q * q : bx_exp_minus(gamma * softplus);
    *along = modulator * ((half * p - (1.0f - half) * q) - gamma * p * bce);
    return modulator * bce;
}

BX_INLINE float bx_sigmoid_focal(float x, int32_t hard, float gamma, float smoothing, float *slope) {
    float e = bx_exp_minus(bx_abs(x)), along;
    float value = bx_focal_of(hard ? x : -x, e, bx_log1p_unit(e), gamma, smoothing, &along);
    *slope = hard ? along : -along;
    return value;
}

#endif
