/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L1 of one difference d: |d| (torch.nn.L1Loss).
 */
#ifndef BX_LOSS_L1_H
#define BX_LOSS_L1_H

#include "../real.h"

BX_INLINE double bx_l1(double d, double beta) {
    (void)beta;
    return d < 0 ? -d : d;
}

#endif
