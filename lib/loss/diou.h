/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Distance IoU loss of two boxes x1 y1 x2 y2 (Zheng et al. 2020), as fvcore has it: 1 - IoU + the squared distance of
 * the centres over the squared diagonal of the box around both. slope: by the corners of a.
 */
#ifndef BX_LOSS_DIOU_H
#define BX_LOSS_DIOU_H

#include "overlap.h"

BX_INLINE double bx_diou(const double a[4], const double b[4], double slope[4]) {
    bx_overlap o = bx_overlap_of(a, b);
    return bx_distance_iou(&o, slope);
}

#endif
