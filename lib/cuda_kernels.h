/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels share. Formulas and decisions are the inline ones that the cpu compiles too (real.h, match.h,
 * localization.h, loss/); the kernels say who computes which prior, and in which order partial results are folded.
 *
 * Nothing depends on which thread comes first: atomics are of integers only, and sums of floating point are folded in
 * fixed places. Every kernel has one-dimensional blocks of whole warps, takes bx_cuda_args by value, and keeps what its
 * block shares in the one array of dynamic shared memory.
 */
#ifndef BX_CUDA_KERNELS_H
#define BX_CUDA_KERNELS_H

#include <cuda_runtime.h>

#include <limits.h>
#include <math.h>
#include <stdint.h>

#include "cuda.h"
#include "localization.h"
#include "match.h"

extern __shared__ __align__(16) unsigned char bx_shared[];

namespace {

using word = unsigned long long;

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

__device__ inline int thread() {
    return (int)threadIdx.x;
}

__device__ inline int threads() {
    return (int)blockDim.x;
}

__device__ inline int lane() {
    return (int)threadIdx.x % WARP;
}

/* ---- sums over a warp and a block: fixed trees ------------------------------------------------------------------- */

template <class T> __device__ inline T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL, x, step);
    }
    return x;
}

template <class T> __device__ inline T warp_max(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(ALL, x, step);
        x = other > x ? other : x;
    }
    return x;
}

/* The same sum for all threads of the block. scratch: one T per warp. */
template <class T> __device__ inline T block_sum(T x, T *scratch) {
    T sum = 0;
    x = warp_sum(x);
    __syncthreads(); /* scratch may still be read from the last time */
    if (lane() == 0) {
        scratch[thread() / WARP] = x;
    }
    __syncthreads();
    for (int w = 0; w < threads() / WARP; w++) {
        sum += scratch[w];
    }
    return sum;
}

template <class T> __device__ inline T block_max(T x, T *scratch) {
    x = warp_max(x);
    __syncthreads();
    if (lane() == 0) {
        scratch[thread() / WARP] = x;
    }
    __syncthreads();
    T most = scratch[0];
    for (int w = 1; w < threads() / WARP; w++) {
        most = scratch[w] > most ? scratch[w] : most;
    }
    return most;
}

/* The sum of the threads before this one; *total is that of all. */
__device__ inline unsigned block_scan(unsigned x, unsigned *scratch, unsigned *total) {
    unsigned before = x;
    for (int step = 1; step < WARP; step *= 2) {
        unsigned other = __shfl_up_sync(ALL, before, step);
        before += lane() >= step ? other : 0;
    }
    __syncthreads();
    if (lane() == WARP - 1) {
        scratch[thread() / WARP] = before;
    }
    __syncthreads();
    unsigned sum = 0, base = 0;
    for (int w = 0; w < threads() / WARP; w++) {
        base += w < thread() / WARP ? scratch[w] : 0;
        sum += scratch[w];
    }
    *total = sum;
    return base + before - x;
}

/* ---- priors and elements ----------------------------------------------------------------------------------------- */

__device__ inline bool is_used(const bx_cuda_args &a, int32_t g) {
    return !a.use || a.use[g] == BX_OBJECT_USED;
}

/* Whether the loss of a prior counts, or whether it is a positive. */
__device__ inline bool counts(const bx_cuda_args &a, uint8_t state, bool positives_only) {
    if (positives_only) {
        return (state & BX_POSITIVE) != 0;
    }
    return a.mining.kind == BX_MINING_NONE ? !(state & BX_IGNORED) : (state & (BX_POSITIVE | BX_HARD_NEGATIVE)) != 0;
}

/* Class of the positive prior in row `at`. */
__device__ inline int32_t class_of(const bx_cuda_args &a, int32_t image, int64_t at) {
    const int32_t owner = a.job.owner[at];
    return a.with_targets ? owner : (int32_t)a.labels[a.first[image] + owner];
}

template <bx_dtype TYPE> __device__ inline float element(const void *data, int64_t i);
template <> __device__ inline float element<BX_F32>(const void *data, int64_t i) {
    return ((const float *)data)[i];
}
template <> __device__ inline float element<BX_F16>(const void *data, int64_t i) {
    return bx_half(((const uint16_t *)data)[i]);
}
template <> __device__ inline float element<BX_BF16>(const void *data, int64_t i) {
    return bx_float((int32_t)((uint32_t)((const uint16_t *)data)[i] << 16));
}
template <> __device__ inline float element<BX_F64>(const void *data, int64_t i) {
    return (float)((const double *)data)[i];
}

__device__ inline float element(bx_tensor tensor, int64_t i) {
    switch (tensor.dtype) {
    case BX_F16:
        return element<BX_F16>(tensor.data, i);
    case BX_BF16:
        return element<BX_BF16>(tensor.data, i);
    case BX_F64:
        return element<BX_F64>(tensor.data, i);
    default:
        return element<BX_F32>(tensor.data, i);
    }
}

__device__ inline int64_t integer(bx_tensor tensor, int64_t i) {
    switch (tensor.dtype) {
    case BX_I64:
        return ((const int64_t *)tensor.data)[i];
    case BX_I16:
        return ((const int16_t *)tensor.data)[i];
    case BX_I8:
        return ((const int8_t *)tensor.data)[i];
    case BX_U8:
    case BX_BOOL:
        return ((const uint8_t *)tensor.data)[i];
    default:
        return ((const int32_t *)tensor.data)[i];
    }
}

__device__ inline bool is_finite(float x) {
    return (bx_bits(x) & 0x7fffffff) < 0x7f800000;
}

/* Sixteen states as they lie in memory, the first at a multiple of 16; those outside [begin, end) read as `none`. The
 * states lie in the midst of other things, so that it can be read on both sides. */
struct __align__(16) states {
    uint8_t of[16];
};

__device__ inline states load_states(const uint8_t *state, int64_t at, int64_t begin, int64_t end, uint8_t none) {
    states found;
    *(uint4 *)found.of = *(const uint4 *)(state + at);
    for (int i = 0; i < 16; i++) {
        found.of[i] = at + i >= begin && at + i < end ? found.of[i] : none;
    }
    return found;
}

/* Count n bad elements of a prior. */
__device__ inline void note(int32_t *count, int32_t *first, int32_t n, int32_t prior) {
    atomicAdd(count, n);
    atomicMin(first, prior);
}

__device__ inline void target_of(const bx_cuda_args &a, int32_t image, int32_t prior, double target[4]) {
    const int64_t at = (int64_t)image * a.n_priors + prior;
    if (a.with_targets) {
        for (int i = 0; i < 4; i++) {
            target[i] = (double)((const float *)a.target_loc.data)[4 * at + i];
        }
        return;
    }
    const int64_t g = (int64_t)a.first[image] + a.job.owner[at];
    bx_encode_box(a.boxes + 4 * g, a.matcher.iou == BX_IOU_SIZES, a.prior_boxes + 4 * (int64_t)prior, a.variances,
                  target);
}

/* Localization loss of a positive prior and its slope. */
__device__ inline double localize(const bx_cuda_args &a, int32_t prior, int64_t at, const double target[4],
                                  double slope[4]) {
    float predicted[4];
    for (int i = 0; i < 4; i++) {
        predicted[i] = element(a.loc, 4 * at + i);
    }
    const float *box = a.prior_boxes ? a.prior_boxes + 4 * (int64_t)prior : nullptr;
    return bx_localize(&a.localization, a.variances, box, predicted, target, slope);
}

/* ---- launching --------------------------------------------------------------------------------------------------- */

using kernel = void (*)(const bx_cuda_args);

inline cudaError_t launch(kernel k, int64_t blocks, int n_threads, size_t shared, const bx_cuda_args *args,
                          cudaStream_t stream) {
    if (blocks == 0) {
        return cudaSuccess;
    }
    bx_cuda_args copy = *args;
    void *arguments[] = {&copy};
    return cudaLaunchKernel((const void *)k, dim3((unsigned)blocks, 1, 1), dim3((unsigned)n_threads, 1, 1), arguments,
                            shared, stream);
}

inline int64_t blocks_of(int64_t n, int64_t each) {
    return (n + each - 1) / each;
}

} // namespace

#endif
