/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generalized IoU loss of two boxes x1 y1 x2 y2 (Rezatofighi et al. 2019), as fvcore has it:
 * 1 - IoU + (around - union) / around, `around` being the area of the box around both. slope: by the corners of a.
 */
#ifndef BX_LOSS_GIOU_H
#define BX_LOSS_GIOU_H

#include "overlap.h"

BX_INLINE double bx_giou(const double a[4], const double b[4], double slope[4]) {
    bx_overlap o = bx_overlap_of(a, b);
    double around = o.width * o.height, divisor = around + BX_OVERLAP_EPSILON;
    double empty = (around - o.over) / divisor;
    const double d_around[4] = {-o.height * o.d_around[0], -o.width * o.d_around[1], o.height * o.d_around[2],
                                o.width * o.d_around[3]};
    for (int i = 0; i < 4; i++) {
        slope[i] = (d_around[i] - o.d_over[i] - empty * d_around[i]) / divisor - o.d_iou[i];
    }
    return 1 - o.iou + empty;
}

#endif
