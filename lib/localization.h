/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The box coder, and the localization loss of one positive prior with its derivative: compiled by gcc and by nvcc. All
 * in double: positives are few.
 */
#ifndef BX_LOCALIZATION_H
#define BX_LOCALIZATION_H

#include <math.h>

#include "boxloss.h"
#include "loss/ciou.h"
#include "loss/diou.h"
#include "loss/giou.h"
#include "loss/huber.h"
#include "loss/jump_l1.h"
#include "loss/l1.h"
#include "loss/smooth_l1.h"

/* dw and dh of a predicted box count as at most this before exp: ln(1000/16), Detectron's and torchvision's bound. */
#define BX_LARGEST_SCALE 4.1351665567423557

/* SSD's box coder: ((c_box - c_prior) / wh_prior) / v_xy and log(wh_box / wh_prior) / v_wh. `sizes`: the box is
 * cx cy w h, else x1 y1 x2 y2. */
BX_INLINE void bx_encode_box(const float box[4], int sizes, const float prior[4], const double variances[4],
                             double target[4]) {
    for (int i = 0; i < 2; i++) {
        double a = (double)box[i], b = (double)box[i + 2];
        double centre = sizes ? a : (a + b) / 2, size = sizes ? b : b - a;
        target[i] = (centre - (double)prior[i]) / (double)prior[i + 2] / variances[i];
        target[i + 2] = log(size / (double)prior[i + 2]) / variances[i + 2];
    }
}

/* Offsets to x1 y1 x2 y2. */
BX_INLINE void bx_decode_box(const double offsets[4], const float prior[4], const double variances[4], double largest,
                             double box[4]) {
    for (int i = 0; i < 2; i++) {
        double scale = offsets[i + 2] * variances[i + 2], side = (double)prior[i + 2];
        double centre = (double)prior[i] + offsets[i] * variances[i] * side;
        double half = side * exp(scale < largest ? scale : largest) / 2;
        box[i] = centre - half;
        box[i + 2] = centre + half;
    }
}

/* ---- skeletons: inlined, so that each knows its formula ---------------------------------------------------------- */

BX_INLINE double bx_compare_boxes(double (*formula)(const double a[4], const double b[4], double slope[4]),
                                  const double variances[4], const float prior[4], const double predicted[4],
                                  const double target[4], double slope[4]) {
    double a[4], b[4], corners[4];
    bx_decode_box(predicted, prior, variances, BX_LARGEST_SCALE, a);
    bx_decode_box(target, prior, variances, (double)INFINITY, b);
    double loss = formula(a, b, corners);
    for (int i = 0; i < 2; i++) {
        bool clamped = predicted[i + 2] * variances[i + 2] > BX_LARGEST_SCALE;
        slope[i] = (corners[i] + corners[i + 2]) * variances[i] * (double)prior[i + 2];
        slope[i + 2] = clamped ? 0 : (corners[i + 2] - corners[i]) * (a[i + 2] - a[i]) / 2 * variances[i + 2];
    }
    return loss;
}

BX_INLINE double bx_sum_offsets(double (*formula)(double d, double parameter, double *slope), double parameter,
                                const double predicted[4], const double target[4], double slope[4]) {
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += formula(predicted[i] - target[i], parameter, &slope[i]);
    }
    return sum;
}

/* The loss of predicted offsets (4) against the target (4), and its slope by the former. prior: cx cy w h, read by the
 * IoU losses only. */
BX_INLINE double bx_localize(const bx_localization *localization, const double variances[4], const float *prior,
                             const float predicted[4], const double target[4], double slope[4]) {
    const double p[4] = {(double)predicted[0], (double)predicted[1], (double)predicted[2], (double)predicted[3]};
#define NONE                        0
#define BETA                        localization->beta
#define DELTA                       localization->delta
#define OFFSETS(formula, parameter) bx_sum_offsets(formula, parameter, p, target, slope)
#define BOXES(formula, parameter)   bx_compare_boxes(formula, variances, prior, p, target, slope)
    switch (localization->kind) {
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula)                                                        \
    case BX_LOCALIZATION_##id:                                                                                         \
        return skeleton(formula, parameter);
#include "loss.def"
    }
#undef NONE
#undef BETA
#undef DELTA
#undef OFFSETS
#undef BOXES
    return 0;
}

#endif
