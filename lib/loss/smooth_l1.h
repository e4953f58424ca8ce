/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Smooth L1 of one difference d: d^2 / (2 beta) inside |d| < beta, |d| - beta/2 outside (Girshick, Fast R-CNN 2015,
 * beta = 1; torch.nn.SmoothL1Loss for other values, 0 being L1). Slope: d / beta inside, sign(d) outside.
 */
#ifndef BX_LOSS_SMOOTH_L1_H
#define BX_LOSS_SMOOTH_L1_H

#include "../real.h"

BX_INLINE double bx_smooth_l1(double d, double beta, double *slope) {
    double a = d < 0 ? -d : d;
    *slope = a < beta ? d / beta : (double)((d > 0) - (d < 0));
    return a < beta ? 0.5 * d * d / beta : a - 0.5 * beta;
}

#endif
