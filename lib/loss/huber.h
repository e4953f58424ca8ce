/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huber's loss of one difference d: d^2 / 2 inside |d| < delta, delta (|d| - delta/2) outside (Huber 1964;
 * torch.nn.HuberLoss). Slope: d inside, delta sign(d) outside.
 */
#ifndef BX_LOSS_HUBER_H
#define BX_LOSS_HUBER_H

#include "../real.h"

BX_INLINE double bx_huber(double d, double delta, double *slope) {
    double a = d < 0 ? -d : d;
    *slope = a < delta ? d : delta * (double)((d > 0) - (d < 0));
    return a < delta ? 0.5 * d * d : delta * (a - 0.5 * delta);
}

#endif
