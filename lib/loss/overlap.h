/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the IoU losses share: two boxes x1 y1 x2 y2, a (predicted, decoded) and b (its target), and the derivatives of
 * everything with respect to a's corners. Denominators get BX_OVERLAP_EPSILON, as in fvcore. Where a corner of both
 * boxes is the same, a maximum or minimum passes half of its slope to each, as autograd does.
 */
#ifndef BX_LOSS_OVERLAP_H
#define BX_LOSS_OVERLAP_H

#include "../real.h"

#define BX_OVERLAP_EPSILON 1e-7

typedef struct bx_overlap {
    double iou, d_iou[4];
    double over, d_over[4];   /* union without epsilon */
    double width, height;     /* of the box around both */
    double d_around[4];       /* of its x1 y1 x2 y2, each by a's same corner */
    double apart, d_apart[4]; /* squared distance of the centres */
} bx_overlap;

/* 1 where a decides over b, 1/2 where both do, else 0. */
BX_INLINE double bx_decides(double a, double b) {
    return a > b ? 1 : a < b ? 0 : 0.5;
}

BX_INLINE bx_overlap bx_overlap_of(const double a[4], const double b[4]) {
    bx_overlap o;
    double left = a[0] > b[0] ? a[0] : b[0], top = a[1] > b[1] ? a[1] : b[1];
    double right = a[2] < b[2] ? a[2] : b[2], bottom = a[3] < b[3] ? a[3] : b[3];
    double w = right - left, h = bottom - top;
    int32_t meet = w > 0 && h > 0;
    double inter = meet ? w * h : 0;
    const double d_inter[4] = {
        meet ? -h * bx_decides(a[0], b[0]) : 0,
        meet ? -w * bx_decides(a[1], b[1]) : 0,
        meet ? h * bx_decides(b[2], a[2]) : 0,
        meet ? w * bx_decides(b[3], a[3]) : 0,
    };
    double wide = a[2] - a[0], high = a[3] - a[1];
    const double d_area[4] = {-high, -wide, high, wide};
    o.over = wide * high + (b[2] - b[0]) * (b[3] - b[1]) - inter;
    double divisor = o.over + BX_OVERLAP_EPSILON;
    o.iou = inter / divisor;
    for (int i = 0; i < 4; i++) {
        o.d_over[i] = d_area[i] - d_inter[i];
        o.d_iou[i] = (d_inter[i] - o.iou * o.d_over[i]) / divisor;
    }
    o.width = (a[2] > b[2] ? a[2] : b[2]) - (a[0] < b[0] ? a[0] : b[0]);
    o.height = (a[3] > b[3] ? a[3] : b[3]) - (a[1] < b[1] ? a[1] : b[1]);
    o.d_around[0] = bx_decides(b[0], a[0]);
    o.d_around[1] = bx_decides(b[1], a[1]);
    o.d_around[2] = bx_decides(a[2], b[2]);
    o.d_around[3] = bx_decides(a[3], b[3]);
    double dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2;
    o.apart = dx * dx + dy * dy;
    o.d_apart[0] = o.d_apart[2] = dx;
    o.d_apart[1] = o.d_apart[3] = dy;
    return o;
}

/* 1 - IoU + squared distance of the centres over the squared diagonal around both, and its slope. */
BX_INLINE double bx_distance_iou(const bx_overlap *o, double slope[4]) {
    double diagonal = o->width * o->width + o->height * o->height + BX_OVERLAP_EPSILON;
    double share = o->apart / diagonal;
    const double d_diagonal[4] = {-2 * o->width * o->d_around[0], -2 * o->height * o->d_around[1],
                                  2 * o->width * o->d_around[2], 2 * o->height * o->d_around[3]};
    for (int i = 0; i < 4; i++) {
        slope[i] = (o->d_apart[i] - share * d_diagonal[i]) / diagonal - o->d_iou[i];
    }
    return 1 - o->iou + share;
}

#endif
