/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The box loss of the keras-io RetinaNet example, of one difference d: d^2 / 2 inside |d| < delta, |d| - 1/2 outside.
 * For delta = 1 it is smooth L1; for any other delta it jumps at |d| = delta (at 15 from 112.5 to 14.5), and it is
 * neither Huber's loss nor smooth L1. Slope: that of the branch taken, d inside, sign(d) outside.
 */
#ifndef BX_LOSS_JUMP_L1_H
#define BX_LOSS_JUMP_L1_H

#include "../real.h"

BX_INLINE double bx_jump_l1(double d, double delta, double *slope) {
    double a = d < 0 ? -d : d;
    *slope = a < delta ? d : (double)((d > 0) - (d < 0));
    return a < delta ? 0.5 * d * d : a - 0.5;
}

#endif
