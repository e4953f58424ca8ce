/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Complete IoU loss of two boxes x1 y1 x2 y2 (Zheng et al. 2020), as fvcore has it: the distance IoU loss plus alpha v,
 *
 *   v = 4/pi^2 (atan(w_b / h_b) - atan(w_a / h_a))^2,   alpha = v / (1 - IoU + v + epsilon),
 *
 * where alpha is a constant for the slope (by the corners of a).
 */
#ifndef BX_LOSS_CIOU_H
#define BX_LOSS_CIOU_H

#include <math.h>

#include "overlap.h"

BX_INLINE double bx_ciou(const double a[4], const double b[4], double slope[4]) {
    const double scale = 0.40528473456935109; /* 4 / pi^2 */
    bx_overlap o = bx_overlap_of(a, b);
    double loss = bx_distance_iou(&o, slope);
    double w = a[2] - a[0], h = a[3] - a[1];
    double turn = atan2(b[2] - b[0], b[3] - b[1]) - atan2(w, h); /* of a vanished box: 0 */
    double v = scale * turn * turn;
    double alpha = v / (1 - o.iou + v + BX_OVERLAP_EPSILON);
    double around = w * w + h * h, along = around > 0 ? -2 * scale * turn * alpha / around : 0;
    slope[0] -= along * h;
    slope[2] += along * h;
    slope[1] += along * w;
    slope[3] -= along * w;
    return loss + alpha * v;
}

#endif
