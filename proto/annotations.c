/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Annotations as they were sent to objects of the batch. Coordinates are converted in double and rounded to float32
 * once; what needs no conversion is only rounded.
 */
#include "internal.h"

#include <string.h>

/* Elements [first, first + 4) of a floating-point tensor, exactly. */
static void read_tensor(double out[4], bx_tensor tensor, size_t first) {
    if (tensor.dtype == BX_F64) {
        memcpy(out, (const char *)tensor.data + first * sizeof *out, 4 * sizeof *out);
        return;
    }
    float values[4];
    bx_tensor_to_f32(values, tensor, first, 4);
    for (int i = 0; i < 4; i++)
        out[i] = values[i];
}

/* To corners, or to centre, width and height. */
static void convert(double box[4], proto_box_format format, bx_iou iou) {
    for (int axis = 0; axis < 2; axis++) {
        const double first = box[axis], second = box[axis + 2];
        if (format == PROTO_BOX_FORMAT_XYXY && iou == BX_IOU_SIZES) {
            box[axis] = (first + second) / 2;
            box[axis + 2] = second - first;
        } else if (format == PROTO_BOX_FORMAT_XYWH && iou == BX_IOU_SIZES) {
            box[axis] = first + second / 2;
        } else if (format == PROTO_BOX_FORMAT_XYWH) {
            box[axis + 2] = first + second;
        } else if (format == PROTO_BOX_FORMAT_CXCYWH && iou == BX_IOU_CORNERS) {
            box[axis] = first - second / 2;
            box[axis + 2] = first + second / 2;
        }
    }
}

/* `size` is NULL, or the width and height that coordinates become shares of. */
static void place(float out[4], double box[4], proto_box_format format, const double *size, bx_iou iou) {
    convert(box, format, iou);
    for (int i = 0; i < 4; i++)
        out[i] = (float)(size ? box[i] / size[i % 2] : box[i]);
}

static bool is_invalid(const float box[4], bx_iou iou) {
    bx_box_fault fault = bx_box_check(box, iou);
    return fault == BX_BOX_INVERTED || fault == BX_BOX_DEGENERATE;
}

void proto_draft_place_objects(proto_draft *draft, const proto_notation *notation, bx_iou iou) {
    bool all_used = true;
    for (int32_t image = 0; image < draft->batch.n_images; image++) {
        const size_t first = (size_t)draft->first[image], end = (size_t)draft->first[image + 1];
        const double *size = notation->sizes;
        if (size && notation->n_sizes > 1)
            size += 2 * (size_t)image;
        for (size_t i = first; i < end; i++) {
            double box[4];
            read_tensor(box, draft->boxes_sent, 4 * i);
            place(draft->boxes + 4 * i, box, notation->format, size, iou);
            if (notation->drop && is_invalid(draft->boxes + 4 * i, iou))
                draft->use[i] = BX_OBJECT_DROPPED;
            all_used &= draft->use[i] == BX_OBJECT_USED;
            if (draft->labels[i] > INT64_MIN) /* no class either way */
                draft->labels[i] -= notation->label_base;
        }
    }
    draft->batch.use = all_used ? NULL : draft->use;
}
