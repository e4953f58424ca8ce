/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every row kernel in plain C, one element at a time: the specification that runs (level "ref"). The other levels must
 * give the same bits.
 */
#include <math.h>
#include <string.h>

#include "internal.h"
#include "loss/softmax_ce.h"

static bool always(void) {
    return true;
}

/* IEEE half precision, exactly. */
static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31) {
        return bx_float((int32_t)(sign | 0x7f800000 | fraction << 13));
    }
    float magnitude =
        exponent ? bx_float((int32_t)((exponent + 112) << 23 | fraction << 13)) : (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

static void load(float *out, const void *in, bx_dtype dtype, size_t n) {
    const char *at = in;
    switch (dtype) {
    case BX_F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, at + 2 * i, 2);
            out[i] = half_to_float(h);
        }
        break;
    case BX_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, at + 2 * i, 2);
            out[i] = bx_float((int32_t)((uint32_t)h << 16));
        }
        break;
    case BX_F64:
        for (size_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, at + 8 * i, 8);
            /* the cast is undefined beyond float32's range only in letter: IEEE rounds to infinity */
            out[i] = (float)d;
        }
        break;
    default:
        memcpy(out, at, n * sizeof(float));
        break;
    }
}

static size_t count_bad(const float *x, size_t n) {
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        bad += !isfinite(x[i]);
    }
    return bad;
}

static void iou_row(const bx_priors *priors, int32_t first, int32_t count, const float box[4], int32_t object,
                    float *overlap, int32_t *owner, bx_best *best) {
    float box_area = (box[2] - box[0]) * (box[3] - box[1]);
    for (int32_t i = 0; i < count; i++) {
        int32_t p = first + i;
        float left = box[0] > priors->x1[p] ? box[0] : priors->x1[p];
        float top = box[1] > priors->y1[p] ? box[1] : priors->y1[p];
        float right = box[2] < priors->x2[p] ? box[2] : priors->x2[p];
        float bottom = box[3] < priors->y2[p] ? box[3] : priors->y2[p];
        float width = right - left > 0 ? right - left : 0;
        float height = bottom - top > 0 ? bottom - top : 0;
        float inter = width * height;
        float iou = inter / ((box_area + priors->area[p]) - inter);
        if (iou > overlap[i]) {
            overlap[i] = iou;
            owner[i] = object;
        }
        if (iou > best->iou) {
            *best = (bx_best){iou, p};
        }
    }
}

static bool score_rows(const float *rows, int32_t n, int32_t n_columns, const int32_t *label, float *ce, float *tile) {
    (void)tile;
    bool finite = true;
    for (int32_t i = 0; i < n; i++) {
        const float *x = rows + (size_t)i * (size_t)n_columns;
        float max = x[0];
        for (int32_t c = 0; c < n_columns; c++) {
            finite &= isfinite(x[c]) != 0;
            max = x[c] > max ? x[c] : max;
        }
        float sum = 0;
        int32_t below = 0;
        for (int32_t c = 0; c < n_columns; c++) {
            sum += bx_softmax_term(x[c], max, &below);
        }
        ce[i] = bx_softmax_ce(sum, below, n_columns, max, x[label ? label[i] : 0]);
    }
    return finite;
}

/* Builds the k-th largest value's bits from the top: a bit stays when at least k values are as large as that. */
static float kth_largest(const float *x, size_t n, size_t k) {
    int32_t cut = 0;
    for (int bit = 30; bit >= 0; bit--) {
        int32_t candidate = cut | (int32_t)(1u << bit);
        size_t reach = 0;
        for (size_t i = 0; i < n; i++) {
            reach += bx_bits(x[i]) >= candidate;
        }
        cut = reach >= k ? candidate : cut;
    }
    return bx_float(cut);
}

static void mark_largest(const float *x, uint8_t *state, size_t n, size_t k, uint8_t mark) {
    float cut = kth_largest(x, n, k);
    size_t marked = 0;
    for (size_t i = 0; i < n; i++) {
        if (x[i] > cut) {
            state[i] |= mark;
            marked++;
        }
    }
    for (size_t i = 0; marked < k; i++) {
        if (x[i] == cut) {
            state[i] |= mark;
            marked++;
        }
    }
}

const bx_kernels bx_kernels_ref = {"ref", always, load, count_bad, iou_row, score_rows, mark_largest};
