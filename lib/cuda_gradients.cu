/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gradients on a GPU: slopes.
 */
#include "cuda_kernels.h"
#include "loss/prob_ce.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"

namespace {

/* ---- gradients --------------------------------------------------------------------------------------------------- */

constexpr int SLOPES_THREADS = 128;

/* The skeletons of gradients.c, a lane having every WARP-th column: slopes of the row's loss as column y, times scale.
 */
__device__ void softmax_slopes(const bx_cuda_args &a, int64_t begin, int32_t y, double scale, float *out) {
    const int32_t n = a.n_columns;
    float max = -INFINITY;
    double others = 0, own = 0;
    for (int32_t c = lane(); c < n; c += WARP) {
        const float x = element(a.conf, begin + c);
        max = x > max ? x : max;
    }
    max = warp_max(max);
    for (int32_t c = lane(); c < n; c += WARP) {
        const float e = bx_exp_minus(max - element(a.conf, begin + c));
        others += c == y ? 0 : (double)e;
        own += c == y ? (double)e : 0;
    }
    others = warp_sum(others);
    own = warp_sum(own);
    const double whole = others + own, factor = scale / whole;
    const double share = (double)a.smoothing / n;
    double weights = 0;
    for (int32_t c = lane(); a.smoothing > 0 && c < n; c += WARP) {
        weights += (double)a.job.hard[c];
    }
    weights = warp_sum(weights);
    const double hard = a.plain ? 1 : (1 - (double)a.smoothing) * (double)a.job.hard[y];
    for (int32_t c = lane(); c < n; c += WARP) {
        const float e = bx_exp_minus(max - element(a.conf, begin + c));
        if (a.plain) {
            out[c] = (float)(factor * (c == y ? -others : (double)e));
            continue;
        }
        const double p = (double)e / whole, from_label = c == y ? -others / whole : p;
        const double from_all = a.smoothing > 0 ? share * (weights * p - (double)a.job.hard[c]) : 0;
        out[c] = (float)(scale * (hard * from_label + from_all));
    }
}

template <float (*FORMULA)(float p, float *slope)>
__device__ void probability_slopes(const bx_cuda_args &a, int64_t begin, int32_t y, double scale, float *out) {
    const double share = (double)a.smoothing / a.n_columns, hard = 1 - (double)a.smoothing;
    for (int32_t c = lane(); c < a.n_columns; c += WARP) {
        float slope;
        (void)FORMULA(element(a.conf, begin + c), &slope);
        const double factor = a.plain ? c == y : (double)a.job.hard[c] * ((c == y ? hard : 0) + share);
        out[c] = (float)(scale * factor * (double)slope);
    }
}

template <float (*FORMULA)(float x, int32_t hard, float gamma, float smoothing, float *slope)>
__device__ void sigmoid_slopes(const bx_cuda_args &a, int64_t begin, int32_t y, double scale, float *out) {
    for (int32_t c = lane(); c < a.n_columns; c += WARP) {
        float slope;
        (void)FORMULA(element(a.conf, begin + c), c == y, a.gamma, a.smoothing, &slope);
        out[c] = (float)(scale * (double)(c == y ? a.job.hard[c] : a.job.soft[c]) * (double)slope);
    }
}

__device__ void conf_slopes(const bx_cuda_args &a, int64_t begin, int32_t y, double scale, float *out) {
#define SOFTMAX(formula)     softmax_slopes(a, begin, y, scale, out)
#define PROBABILITY(formula) probability_slopes<formula>(a, begin, y, scale, out)
#define SIGMOID(formula)     sigmoid_slopes<formula>(a, begin, y, scale, out)
    switch (a.classification) {
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    case BX_CLASSIFICATION_##id:                                                                                       \
        skeleton(formula);                                                                                             \
        break;
#include "loss.def"
    }
#undef SOFTMAX
#undef PROBABILITY
#undef SIGMOID
}

/* The image whose rows of the sparse gradient hold row r: listed[image] <= r < listed[image + 1]. */
__device__ int32_t image_of(const bx_cuda_args &a, int64_t r) {
    int32_t low = 0, high = a.n_images - 1;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (a.job.listed[middle + 1] > r) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* A warp has a row. */
__global__ void __launch_bounds__(SLOPES_THREADS) slopes_kernel(const bx_cuda_args a) {
    const int64_t row = (int64_t)blockIdx.x * (SLOPES_THREADS / WARP) + thread() / WARP, r = a.first_row + row;
    if (row >= a.n_rows) {
        return;
    }
    const bool sparse = a.job.grad_index != nullptr;
    const int32_t image = sparse ? image_of(a, r) : (int32_t)(r / a.n_priors);
    const int64_t base = (int64_t)image * a.n_priors;
    const int32_t prior = sparse ? a.list[base + (r - a.job.listed[image])] : (int32_t)(r - base);
    const int64_t at = base + prior, begin = at * a.n_columns;
    const uint8_t state = a.job.state[at];
    const bx_sums normalizer = a.job.normalizers[image];
    float *loc = a.job.grad_loc + 4 * row, *conf = a.job.grad_conf + a.n_columns * row;
    double slope[4] = {0, 0, 0, 0};
    if (sparse && lane() < 2) {
        a.job.grad_index[2 * row + lane()] = lane() ? prior : image;
    }
    if (state & BX_POSITIVE) {
        double target[4];
        const double scale = a.loc_weight / normalizer.loc;
        target_of(a, image, prior, target);
        (void)localize(a, prior, at, target, slope);
        for (int i = 0; i < 4; i++) {
            slope[i] *= scale;
        }
        conf_slopes(a, begin, a.first_class + class_of(a, image, at), a.conf_weight / normalizer.conf_positive, conf);
    } else if (counts(a, state, false)) {
        conf_slopes(a, begin, a.background, a.conf_weight / normalizer.conf_negative, conf);
    } else {
        for (int32_t c = lane(); c < a.n_columns; c += WARP) {
            conf[c] = 0;
        }
    }
    bool far = false;
    for (int i = 0; i < 4; i++) {
        const float value = (float)slope[i];
        far |= !is_finite(value);
        if (lane() == i) {
            loc[i] = value;
        }
    }
    for (int32_t c = lane(); c < a.n_columns; c += WARP) { /* what this lane has just written */
        far |= !is_finite(conf[c]);
    }
    if (far) {
        atomicMin(&a.too_far[image], prior);
    }
}

} // namespace

/* ---- launchers --------------------------------------------------------------------------------------------------- */

cudaError_t bx_cuda_slopes(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(slopes_kernel, blocks_of(args->n_rows, SLOPES_THREADS / WARP), SLOPES_THREADS, 0, args, stream);
}
