/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The read of the predictions on a GPU: score, check. Each byte of conf is read once, but for rows that are too long.
 */
#include "cuda_kernels.h"
#include "loss/prob_ce.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"

namespace {

constexpr size_t SHARED_MOST = 48 << 10; /* every device has as much without asking */

/* ---- score ------------------------------------------------------------------------------------------------------- */

/* A row of conf: in shared memory as float32, or where it lies. */
struct tile_row {
    const float *x;
    __device__ float operator[](int32_t c) const {
        return x[c];
    }
};

template <bx_dtype TYPE> struct far_row {
    const void *data;
    int64_t begin;
    __device__ float operator[](int32_t c) const {
        return element<TYPE>(data, begin + c);
    }
};

/* The skeletons of the classification losses, as in ref.c: loss of the row x as column y; *bad when an element of it
 * cannot be used. */
template <float (*FORMULA)(float log_rest, float gap), class ROW>
__device__ float softmax_row(const bx_cuda_args &a, const ROW &x, int32_t y, bool *bad) {
    const int32_t n = a.n_columns;
    float max = x[0];
    bx_row_sum sum = {}, all = {};
    int32_t below = 0, magnitude = bx_bits(max) & 0x7fffffff;
    for (int32_t c = 1; c < n; c++) {
        const float v = x[c];
        const int32_t size = bx_bits(v) & 0x7fffffff;
        magnitude = size > magnitude ? size : magnitude;
        max = v > max ? v : max;
    }
    *bad = magnitude >= 0x7f800000;
#pragma unroll 4
    for (int32_t c = 0; c < n; c++) {
        bx_row_add(&sum, bx_softmax_term(x[c], max, &below));
    }
    const float log_rest = bx_log1p(bx_softmax_rest(bx_row_total(sum.whole, sum.run), below, n));
    const float own = FORMULA(log_rest, max - x[y]);
    if (a.plain) {
        return own;
    }
    for (int32_t c = 0; a.smoothing > 0 && c < n; c++) {
        bx_row_add(&all, a.job.hard[c] * FORMULA(log_rest, max - x[c]));
    }
    return (1 - a.smoothing) * (a.job.hard[y] * own) + a.smoothing / (float)n * bx_row_total(all.whole, all.run);
}

template <float (*FORMULA)(float p, float *slope), class ROW>
__device__ float probability_row(const bx_cuda_args &a, const ROW &p, int32_t y, bool *bad) {
    const int32_t n = a.n_columns;
    bool probable = true;
    for (int32_t c = 0; c < n; c++) {
        probable &= bx_is_probability(p[c]);
    }
    *bad = !probable;
    float slope, own = FORMULA(p[y], &slope);
    bx_row_sum all = {};
    if (a.plain) {
        return own;
    }
    for (int32_t c = 0; a.smoothing > 0 && c < n; c++) {
        bx_row_add(&all, a.job.hard[c] * FORMULA(p[c], &slope));
    }
    return (1 - a.smoothing) * (a.job.hard[y] * own) + a.smoothing / (float)n * bx_row_total(all.whole, all.run);
}

template <float (*FORMULA)(float x, int32_t hard, float gamma, float smoothing, float *slope), class ROW>
__device__ float sigmoid_sum(const bx_cuda_args &a, const ROW &x, int32_t y, float gamma, float smoothing, bool *bad) {
    bx_row_sum sum = {};
    float slope;
    int32_t magnitude = 0;
#pragma unroll 2
    for (int32_t c = 0; c < a.n_columns; c++) {
        const float v = x[c];
        const int32_t size = bx_bits(v) & 0x7fffffff;
        magnitude = size > magnitude ? size : magnitude;
        const float value = FORMULA(v, c == y, gamma, smoothing, &slope);
        bx_row_add(&sum, (c == y ? a.job.hard[c] : a.job.soft[c]) * value);
    }
    *bad = magnitude >= 0x7f800000;
    return bx_row_total(sum.whole, sum.run);
}

/* The usual parameters are known to the compiler. */
template <float (*FORMULA)(float x, int32_t hard, float gamma, float smoothing, float *slope), class ROW>
__device__ float sigmoid_row(const bx_cuda_args &a, const ROW &x, int32_t y, bool *bad) {
    return a.gamma == 2 && a.smoothing == 0 ? sigmoid_sum<FORMULA>(a, x, y, 2, 0, bad)
                                            : sigmoid_sum<FORMULA>(a, x, y, a.gamma, a.smoothing, bad);
}

template <bx_classification_kind KIND, class ROW>
__device__ float row_loss(const bx_cuda_args &a, const ROW &x, int32_t y, bool *bad) {
#define SOFTMAX(formula)     softmax_row<formula>(a, x, y, bad)
#define PROBABILITY(formula) probability_row<formula>(a, x, y, bad)
#define SIGMOID(formula)     sigmoid_row<formula>(a, x, y, bad)
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    if constexpr (KIND == BX_CLASSIFICATION_##id) {                                                                    \
        return skeleton(formula);                                                                                      \
    }
#include "loss.def"
#undef SOFTMAX
#undef PROBABILITY
#undef SIGMOID
}

template <class ROW> __device__ bool is_largest(const ROW &x, int32_t n, int32_t y) {
    int32_t largest = 0;
    for (int32_t c = 1; c < n; c++) {
        largest = x[c] > x[largest] ? c : largest;
    }
    return largest == y;
}

template <class ROW> __device__ void note_row(const bx_cuda_args &a, const ROW &x, int64_t at, bool probabilities) {
    const int32_t image = (int32_t)(at / a.n_priors), prior = (int32_t)(at % a.n_priors);
    bx_bad *bad = &a.job.bad[(int64_t)image * a.n_blocks + prior / BX_BLOCK];
    int32_t conf = 0, range = 0;
    for (int32_t c = 0; c < a.n_columns; c++) {
        conf += !is_finite(x[c]);
        range += probabilities && !bx_is_probability(x[c]);
    }
    if (conf > 0) {
        note(&bad->conf, &bad->first_conf, conf, prior);
    }
    if (range > 0) {
        note(&bad->range, &bad->first_range, range, prior);
    }
}

/* One row: as the background, or as its class where the prior is positive. The sign bit says what may not be mined. */
template <bx_classification_kind KIND, class ROW>
__device__ void score_row(const bx_cuda_args &a, const ROW &x, int64_t at) {
    const uint8_t state = a.job.state[at];
    const bool positive = (state & BX_POSITIVE) != 0;
    int32_t y = a.background;
    if (positive) {
        y = a.first_class + class_of(a, (int32_t)(at / a.n_priors), at);
        if (is_largest(x, a.n_columns, y)) {
            a.job.state[at] = (uint8_t)(state | BX_CORRECT);
        }
    }
    bool bad;
    const float loss = bx_rank(row_loss<KIND>(a, x, y, &bad));
    if (bad) {
        note_row(a, x, at, KIND == BX_CLASSIFICATION_PROB_CE);
    }
    a.job.score[at] = positive ? -loss : state & BX_IGNORED ? -1 : loss;
}

/* Rows in shared memory are apart by an odd number of floats, so that a warp's rows lie in different banks. */
__host__ __device__ inline int32_t tile_stride(int32_t n_columns) {
    return n_columns | 1;
}

/* A warp's n_rows rows from row `first` on, whose bytes follow each other: read once, and side by side. */
template <bx_dtype TYPE> __device__ void load_tile(const bx_cuda_args &a, float *tile, int64_t first, int32_t n_rows) {
    const unsigned n_columns = (unsigned)a.n_columns, n = (unsigned)n_rows * n_columns;
    const unsigned pad = (unsigned)tile_stride(a.n_columns) - n_columns;
    const int64_t begin = first * a.n_columns; /* first is a multiple of WARP: aligned for all that follows */
    unsigned done = 0;
    if (TYPE == BX_F32 && pad == 0) {
        const uint4 *from = (const uint4 *)((const float *)a.conf.data + begin);
        uint4 *to = (uint4 *)tile;
#pragma unroll 4
        for (unsigned i = (unsigned)lane(); i < n / 4; i += WARP) {
            to[i] = __ldcs(from + i);
        }
        done = n / 4 * 4;
    } else if (TYPE == BX_F16 || TYPE == BX_BF16) {
        const uint32_t *from = (const uint32_t *)((const uint16_t *)a.conf.data + begin);
        const unsigned reciprocal = pad ? UINT_MAX / n_columns + 1 : 0; /* exact for the n of a tile */
#pragma unroll 4
        for (unsigned i = (unsigned)lane(); i < n / 2; i += WARP) {
            const uint32_t two = __ldcs(from + i);
            const uint16_t halves[2] = {(uint16_t)two, (uint16_t)(two >> 16)};
            tile[2 * i + pad * __umulhi(2 * i, reciprocal)] = element<TYPE>(halves, 0);
            tile[2 * i + 1 + pad * __umulhi(2 * i + 1, reciprocal)] = element<TYPE>(halves, 1);
        }
        done = n / 2 * 2;
    }
    const unsigned reciprocal = pad ? UINT_MAX / n_columns + 1 : 0;
#pragma unroll 4
    for (unsigned i = done + (unsigned)lane(); i < n; i += WARP) {
        tile[i + pad * __umulhi(i, reciprocal)] = element<TYPE>(a.conf.data, begin + i);
    }
}

constexpr int SCORE_THREADS = 128;

/* A warp has WARP rows, a thread one of them, which it sums in the order of the columns as every lane of the cpu does.
 * TILED: by way of shared memory; rows too long for that are read where they lie, the second time from a cache. */
template <bx_classification_kind KIND, bx_dtype TYPE, bool TILED>
__global__ void __launch_bounds__(SCORE_THREADS) score_kernel(const bx_cuda_args a) {
    const int64_t tile = (int64_t)blockIdx.x * (threads() / WARP) + thread() / WARP;
    const int64_t first = a.first_row + tile * WARP, left = a.first_row + a.n_rows - first;
    const int32_t n_rows = left < 0 ? 0 : left < WARP ? (int32_t)left : WARP;
    const int64_t at = first + lane();
    if (TILED) {
        const int32_t stride = tile_stride(a.n_columns);
        float *rows = (float *)bx_shared + (int64_t)(thread() / WARP) * WARP * stride;
        load_tile<TYPE>(a, rows, first, n_rows);
        __syncwarp();
        if (lane() < n_rows) {
            score_row<KIND>(a, tile_row{rows + lane() * stride}, at);
        }
    } else if (lane() < n_rows) {
        score_row<KIND>(a, far_row<TYPE>{a.conf.data, at * a.n_columns}, at);
    }
}

/* ---- check ------------------------------------------------------------------------------------------------------- */

constexpr int CHECK_THREADS = 256;

__global__ void __launch_bounds__(CHECK_THREADS) check_kernel(const bx_cuda_args a) {
    const int64_t row = (int64_t)blockIdx.x * CHECK_THREADS + thread(), at = a.first_row + row;
    if (row >= a.n_rows) {
        return;
    }
    float x[4];
    if (a.loc.dtype == BX_F32) {
        const float4 row = __ldcs((const float4 *)a.loc.data + at);
        x[0] = row.x, x[1] = row.y, x[2] = row.z, x[3] = row.w;
    } else {
        for (int i = 0; i < 4; i++) {
            x[i] = element(a.loc, 4 * at + i);
        }
    }
    const int32_t bad = !is_finite(x[0]) + !is_finite(x[1]) + !is_finite(x[2]) + !is_finite(x[3]);
    if (bad > 0) {
        const int32_t image = (int32_t)(at / a.n_priors), prior = (int32_t)(at % a.n_priors);
        bx_bad *of = &a.job.bad[(int64_t)image * a.n_blocks + prior / BX_BLOCK];
        note(&of->loc, &of->first_loc, bad, prior);
    }
}

template <bx_classification_kind KIND, bool TILED> kernel pick_score(bx_dtype type) {
    switch (type) {
    case BX_F16:
        return score_kernel<KIND, BX_F16, TILED>;
    case BX_BF16:
        return score_kernel<KIND, BX_BF16, TILED>;
    case BX_F64:
        return score_kernel<KIND, BX_F64, TILED>;
    default:
        return score_kernel<KIND, BX_F32, TILED>;
    }
}

} // namespace

/* ---- launchers --------------------------------------------------------------------------------------------------- */

cudaError_t bx_cuda_score(const bx_cuda_args *args, cudaStream_t stream) {
    const size_t tile = (size_t)WARP * (size_t)tile_stride(args->n_columns) * sizeof(float);
    const bool tiled = tile <= SHARED_MOST;
    size_t warps = SCORE_THREADS / WARP;
    while (tiled && warps * tile > SHARED_MOST) {
        warps--;
    }
    kernel k = nullptr;
    switch (args->classification) {
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    case BX_CLASSIFICATION_##id:                                                                                       \
        k = tiled ? pick_score<BX_CLASSIFICATION_##id, true>(args->conf.dtype)                                         \
                  : pick_score<BX_CLASSIFICATION_##id, false>(args->conf.dtype);                                       \
        break;
#include "loss.def"
    }
    return launch(k, blocks_of(args->n_rows, (int64_t)warps * WARP), (int)warps * WARP, tiled ? warps * tile : 0, args,
                  stream);
}

cudaError_t bx_cuda_check(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(check_kernel, blocks_of(args->n_rows, CHECK_THREADS), CHECK_THREADS, 0, args, stream);
}
