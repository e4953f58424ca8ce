/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The overlap of one prior and one object, in float32 and in the origins' order of operations, without contraction:
 * it decides, so every level and device must compute these very bits.
 */
#ifndef BX_MATCH_H
#define BX_MATCH_H

#include "real.h"

/* An object as matching sees it. */
typedef struct bx_object {
    float box[4]; /* x1 y1 x2 y2 */
    float area;
} bx_object;

/* From the native form (boxloss.h): corners keep their corners and take their area from them; sizes (cx cy w h) take
 * corners c -/+ wh/2 and the area w h. */
BX_INLINE bx_object bx_object_of(const float box[4], int sizes) {
    bx_object o = {{box[0], box[1], box[2], box[3]}, (box[2] - box[0]) * (box[3] - box[1])};
    if (sizes) {
        o.box[0] = box[0] - box[2] / 2;
        o.box[1] = box[1] - box[3] / 2;
        o.box[2] = box[0] + box[2] / 2;
        o.box[3] = box[1] + box[3] / 2;
        o.area = box[2] * box[3];
    }
    return o;
}

/* Area of the intersection with the prior x1 y1 x2 y2. */
BX_INLINE float bx_intersection(const bx_object *o, float x1, float y1, float x2, float y2) {
    float left = o->box[0] > x1 ? o->box[0] : x1;
    float top = o->box[1] > y1 ? o->box[1] : y1;
    float right = o->box[2] < x2 ? o->box[2] : x2;
    float bottom = o->box[3] < y2 ? o->box[3] : y2;
    right = right > left ? right : left; /* nothing, where they do not meet */
    bottom = bottom > top ? bottom : top;
    return (right - left) * (bottom - top);
}

/* corners (ssd.pytorch, the PyTorch tutorial): inter / ((area + area) - inter). sizes (keras-io RetinaNet): the same
 * with the union at least 1e-8 and the result at most 1; areas are then w h. */
BX_INLINE float bx_iou_of(float inter, float object_area, float prior_area, int sizes) {
    float over = (object_area + prior_area) - inter;
    if (!sizes) {
        return inter / over;
    }
    /* as integers, which order against a positive number as floats do */
    const int32_t least = 0x322bcc77 /* 1e-8f */, most = 0x3f800000 /* 1.0f */;
    int32_t divisor = bx_bits(over) > least ? bx_bits(over) : least;
    int32_t iou = bx_bits(inter / bx_float(divisor));
    return bx_float(iou < most ? iou : most);
}

#endif
