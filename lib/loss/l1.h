/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L1 of one difference d: |d|, slope sign(d), 0 at 0 (torch.nn.L1Loss and its gradient).
 */
#ifndef BX_LOSS_L1_H
#define BX_LOSS_L1_H

#include "../real.h"

BX_INLINE double bx_l1(double d, double parameter, double *slope) {
    (void)parameter;
    *slope = (double)((d > 0) - (d < 0));
    return d < 0 ? -d : d;
}

#endif
