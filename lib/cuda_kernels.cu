/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages on a GPU, and their launchers. Formulas and decisions are the inline ones that the cpu compiles too
 * (real.h, match.h, localization.h, loss/); what is here is who computes which prior, and in which order partial
 * results are folded.
 *
 * Nothing depends on which thread comes first: atomics are of integers only, and sums of floating point are folded in
 * fixed places. Every kernel has one-dimensional blocks of whole warps, takes bx_cuda_args by value, and keeps what its
 * block shares in the one array of dynamic shared memory.
 */
#include <cuda_runtime.h>

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda.h"
#include "localization.h"
#include "loss/prob_ce.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"
#include "match.h"

extern __shared__ __align__(16) unsigned char bx_shared[];

namespace {

using word = unsigned long long;

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr size_t SHARED_MOST = 48 << 10; /* every device has as much without asking */

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

template <class T> __device__ T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL, x, step);
    }
    return x;
}

template <class T> __device__ T warp_max(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(ALL, x, step);
        x = other > x ? other : x;
    }
    return x;
}

/* The same sum for all threads of the block. scratch: one T per warp. */
template <class T> __device__ T block_sum(T x, T *scratch) {
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

template <class T> __device__ T block_max(T x, T *scratch) {
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
__device__ unsigned block_scan(unsigned x, unsigned *scratch, unsigned *total) {
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

__device__ inline bool counts(const bx_cuda_args &a, uint8_t state) {
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

/* Count n bad elements of a prior. */
__device__ inline void note(int32_t *count, int32_t *first, int32_t n, int32_t prior) {
    atomicAdd(count, n);
    atomicMin(first, prior);
}

/* ---- match ------------------------------------------------------------------------------------------------------- */

constexpr int MATCH_THREADS = 128;

/* IoU and prior of a pair as one number, which is greater for the greater IoU, and for the lower prior where they are
 * equal; 0 for none. The greatest IoU and the lowest prior are what every order of atomicMax ends with. */
__device__ inline word pair_key(float iou, int32_t prior) {
    return iou > 0 ? (word)(uint32_t)bx_bits(iou) << 32 | (uint32_t)(INT32_MAX - prior) : 0;
}

__device__ inline float key_iou(word key) {
    return bx_float((int32_t)(key >> 32));
}

__device__ inline int32_t key_prior(word key) {
    return key ? INT32_MAX - (int32_t)(uint32_t)key : 0;
}

/* Raise *best to the greatest key of a warp's neighbouring priors. */
__device__ void raise(word *best, float iou, int32_t prior) {
    if (!__any_sync(ALL, iou > 0)) {
        return;
    }
    const int32_t bits = iou > 0 ? bx_bits(iou) : 0, top = warp_max(bits);
    const int leader = __ffs((int)__ballot_sync(ALL, bits == top)) - 1;
    if (lane() == leader) {
        const word key = pair_key(iou, prior);
        if (key > *(volatile word *)best) { /* most are not: spare the atomic */
            atomicMax(best, key);
        }
    }
}

struct match_shared {
    bx_object object[MATCH_THREADS];
    uint8_t use[MATCH_THREADS];
};

/* A thread has a prior of an image, and looks at the objects in order: the first of the greatest IoU is its own. */
__global__ void __launch_bounds__(MATCH_THREADS) match_kernel(const bx_cuda_args a) {
    match_shared *shared = (match_shared *)bx_shared;
    const int tiles = (a.n_priors + MATCH_THREADS - 1) / MATCH_THREADS;
    const int32_t image = (int32_t)(blockIdx.x / (unsigned)tiles);
    const int32_t prior = (int32_t)(blockIdx.x % (unsigned)tiles) * MATCH_THREADS + thread();
    const bool here = prior < a.n_priors;
    const int32_t p = here ? prior : a.n_priors - 1;
    const float x1 = a.x1[p], y1 = a.y1[p], x2 = a.x2[p], y2 = a.y2[p], area = a.area[p];
    const bx_matcher &m = a.matcher;
    const int sizes = m.iou == BX_IOU_SIZES;
    const float negative = m.negative_iou < 0 ? m.positive_iou : m.negative_iou;
    float overlap = negative > 0 ? bx_float(bx_bits(negative) - 1) : 0; /* too little to mean anything */
    int32_t owner = -1;
    bool covered = false;
    const int32_t begin = a.first[image], end = a.first[image + 1];
    for (int32_t from = begin; from < end; from += MATCH_THREADS) {
        const int32_t n = end - from < MATCH_THREADS ? end - from : MATCH_THREADS;
        __syncthreads();
        if (thread() < n) {
            const int32_t g = from + thread();
            shared->object[thread()] = bx_object_of(a.boxes + 4 * (int64_t)g, sizes);
            shared->use[thread()] = a.use ? a.use[g] : (uint8_t)BX_OBJECT_USED;
        }
        __syncthreads();
        for (int32_t i = 0; i < n; i++) {
            const bx_object object = shared->object[i];
            const float inter = bx_intersection(&object, x1, y1, x2, y2);
            if (shared->use[i] == BX_OBJECT_USED) {
                const float iou = bx_iou_of(inter, object.area, area, sizes);
                owner = iou > overlap ? from - begin + i : owner;
                overlap = iou > overlap ? iou : overlap;
                raise(a.best + from + i, here ? iou : 0, prior);
            } else if (shared->use[i] == BX_OBJECT_IGNORED) {
                const bool by_iof = m.ignore_iof > 0;
                const float share = by_iof ? inter / area : bx_iou_of(inter, object.area, area, sizes);
                covered |= share >= (by_iof ? m.ignore_iof : m.positive_iou);
            }
        }
    }
    if (here) {
        const int64_t at = (int64_t)image * a.n_priors + prior;
        const int between = overlap >= negative ? BX_IGNORED : 0;
        a.job.state[at] = (uint8_t)(overlap >= m.positive_iou ? BX_POSITIVE : (covered ? BX_IGNORED : 0) | between);
        a.job.owner[at] = owner;
    }
}

/* The caller's targets were checked by the plan. */
__global__ void __launch_bounds__(MATCH_THREADS) targets_kernel(const bx_cuda_args a) {
    const int64_t at = (int64_t)blockIdx.x * MATCH_THREADS + thread();
    if (at < (int64_t)a.n_images * a.n_priors) {
        const int32_t k = (int32_t)integer(a.target_classes, at);
        a.job.state[at] = (uint8_t)(k >= 0 ? BX_POSITIVE : k == -2 ? BX_IGNORED : 0);
        a.job.owner[at] = k >= 0 ? k : -1;
    }
}

/* ---- assign ------------------------------------------------------------------------------------------------------ */

constexpr int ASSIGN_THREADS = 256;

struct assign_shared {
    word key[ASSIGN_THREADS];
    int32_t object[ASSIGN_THREADS];
    word words[ASSIGN_THREADS / WARP];
    int32_t ints[ASSIGN_THREADS / WARP];
};

__device__ void force(const bx_cuda_args &a, int32_t image, int32_t g, int32_t prior, int marks) {
    const int64_t at = (int64_t)image * a.n_priors + prior;
    const uint8_t state = a.job.state[at];
    a.job.state[at] = (uint8_t)(state | marks | (state & BX_POSITIVE ? 0 : BX_POSITIVE | BX_FORCED));
    a.job.owner[at] = g - a.first[image];
}

/* Whether another object that comes later (last), or earlier (first), wants the same prior. */
__device__ bool yields(const bx_cuda_args &a, int32_t g, int32_t begin, int32_t end) {
    const bool last = a.matcher.force == BX_FORCE_LAST;
    const int32_t prior = a.job.objects[g].best_prior;
    for (int32_t h = last ? g + 1 : begin; h < (last ? end : g); h++) {
        if (is_used(a, h) && a.job.objects[h].best_prior == prior) {
            return true;
        }
    }
    return false;
}

__device__ void force_best(const bx_cuda_args &a, int32_t image, int32_t begin, int32_t end) {
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        if (is_used(a, g) && !yields(a, g, begin, end)) {
            force(a, image, g, a.job.objects[g].best_prior, 0);
        }
    }
}

/* The object whose pair comes first: the greatest key, then the lowest object. */
__device__ int32_t first_pair(const bx_cuda_args &a, assign_shared *shared, int32_t begin, int32_t end, word *top) {
    word key = 0;
    int32_t object = begin;
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        if (is_used(a, g) && a.best[g] > key) {
            key = a.best[g];
            object = g;
        }
    }
    __syncthreads();
    shared->key[thread()] = key;
    shared->object[thread()] = object;
    for (int step = threads() / 2; step > 0; step /= 2) {
        __syncthreads();
        if (thread() < step) {
            const word other = shared->key[thread() + step], own = shared->key[thread()];
            const int32_t with = shared->object[thread() + step];
            if (other > own || (other == own && with < shared->object[thread()])) {
                shared->key[thread()] = other;
                shared->object[thread()] = with;
            }
        }
    }
    __syncthreads();
    *top = shared->key[0];
    return shared->object[0];
}

__device__ word best_untaken(const bx_cuda_args &a, assign_shared *shared, int32_t image, int32_t g) {
    const int sizes = a.matcher.iou == BX_IOU_SIZES;
    const bx_object object = bx_object_of(a.boxes + 4 * (int64_t)g, sizes);
    const uint8_t *state = a.job.state + (int64_t)image * a.n_priors;
    word best = 0;
    for (int32_t p = thread(); p < a.n_priors; p += threads()) {
        const float inter = bx_intersection(&object, a.x1[p], a.y1[p], a.x2[p], a.y2[p]);
        const word key = pair_key(bx_iou_of(inter, object.area, a.area[p], sizes), p);
        best = !(state[p] & BX_TAKEN) && key > best ? key : best;
    }
    return block_max(best, shared->words);
}

/* As on the cpu (assign.c): an object's best free prior is looked for again only when it turns out to be taken. */
__device__ void force_greedily(const bx_cuda_args &a, assign_shared *shared, int32_t image, int32_t begin,
                               int32_t end) {
    for (;;) {
        word key;
        const int32_t g = first_pair(a, shared, begin, end, &key);
        if (key == 0) {
            return;
        }
        const int32_t prior = key_prior(key);
        const bool taken = (a.job.state[(int64_t)image * a.n_priors + prior] & BX_TAKEN) != 0;
        const word next = taken ? best_untaken(a, shared, image, g) : 0;
        __syncthreads(); /* all have seen the state */
        if (thread() == 0) {
            if (!taken) {
                force(a, image, g, prior, BX_TAKEN);
            }
            a.best[g] = next;
        }
        __syncthreads();
    }
}

/* Every prior's last marks, and the image's counts of priors. */
__device__ void count_priors(const bx_cuda_args &a, assign_shared *shared, int32_t image, bx_image_row *row) {
    const int64_t base = (int64_t)image * a.n_priors;
    const int32_t begin = a.first[image];
    int32_t positives = 0, ignored = 0, forced = 0;
    for (int32_t p = thread(); p < a.n_priors; p += threads()) {
        uint8_t state = a.job.state[base + p];
        state &= (uint8_t) ~(state & BX_POSITIVE ? BX_IGNORED | BX_TAKEN : BX_TAKEN);
        a.job.state[base + p] = state;
        positives += (state & BX_POSITIVE) != 0;
        ignored += (state & BX_IGNORED) != 0;
        forced += (state & BX_FORCED) != 0;
        if (state & BX_POSITIVE && !a.with_targets) {
            bx_object_row *object = &a.job.objects[begin + a.job.owner[base + p]];
            atomicAdd(&object->positives, 1);
            if (state & BX_FORCED) {
                object->forced = true;
            }
        }
    }
    row->positives = block_sum(positives, shared->ints);
    row->ignored = block_sum(ignored, shared->ints);
    row->forced = block_sum(forced, shared->ints);
    row->negatives = a.n_priors - row->positives - row->ignored;
}

/* What became of each object, and the image's counts of objects. */
__device__ void count_objects(const bx_cuda_args &a, assign_shared *shared, int32_t image, bx_image_row *row) {
    const int64_t base = (int64_t)image * a.n_priors;
    const int32_t begin = a.first[image], end = a.first[image + 1];
    const bool anyway = a.matcher.force == BX_FORCE_LAST || a.matcher.force == BX_FORCE_FIRST;
    int32_t used = 0, collided = 0, unmatched = 0;
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        if (is_used(a, g)) {
            bx_object_row *object = &a.job.objects[g];
            const int64_t at = base + object->best_prior;
            const bool claims = object->best_iou > 0 || anyway;
            object->collided = claims && a.job.state[at] & BX_POSITIVE && a.job.owner[at] != g - begin;
            used++;
            collided += object->collided;
            unmatched += object->positives == 0;
        }
    }
    row->objects = block_sum(used, shared->ints);
    row->collided = block_sum(collided, shared->ints);
    row->unmatched_objects = block_sum(unmatched, shared->ints);
}

/* A block has an image. */
__global__ void __launch_bounds__(ASSIGN_THREADS) assign_kernel(const bx_cuda_args a) {
    assign_shared *shared = (assign_shared *)bx_shared;
    const int32_t image = (int32_t)blockIdx.x, begin = a.first[image], end = a.first[image + 1];
    for (int32_t b = thread(); b < a.n_blocks; b += threads()) {
        a.job.bad[(int64_t)image * a.n_blocks + b] = bx_bad{0, 0, 0, INT32_MAX, INT32_MAX, INT32_MAX};
    }
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        bx_object_row row = {};
        if (is_used(a, g)) {
            row.best_iou = key_iou(a.best[g]);
            row.best_prior = key_prior(a.best[g]);
        }
        a.job.objects[g] = row;
    }
    __syncthreads();
    if (a.matcher.force == BX_FORCE_GREEDY) {
        force_greedily(a, shared, image, begin, end);
    } else if (a.matcher.force != BX_FORCE_NONE) {
        force_best(a, image, begin, end);
    }
    __syncthreads();
    bx_image_row row = {};
    count_priors(a, shared, image, &row);
    __syncthreads(); /* each object's positives are counted */
    count_objects(a, shared, image, &row);
    if (thread() == 0) {
        a.job.images[image] = row;
    }
}

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
    float max = x[0], sum = 0;
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
        sum += bx_softmax_term(x[c], max, &below);
    }
    const float log_rest = bx_log1p(bx_softmax_rest(sum, below, n));
    const float own = FORMULA(log_rest, max - x[y]);
    if (a.plain) {
        return own;
    }
    float all = 0;
    for (int32_t c = 0; a.smoothing > 0 && c < n; c++) {
        all += a.job.hard[c] * FORMULA(log_rest, max - x[c]);
    }
    return (1 - a.smoothing) * (a.job.hard[y] * own) + a.smoothing / (float)n * all;
}

template <float (*FORMULA)(float p, float *slope), class ROW>
__device__ float probability_row(const bx_cuda_args &a, const ROW &p, int32_t y, bool *bad) {
    const int32_t n = a.n_columns;
    bool probable = true;
    for (int32_t c = 0; c < n; c++) {
        probable &= bx_is_probability(p[c]);
    }
    *bad = !probable;
    float slope, all = 0, own = FORMULA(p[y], &slope);
    if (a.plain) {
        return own;
    }
    for (int32_t c = 0; a.smoothing > 0 && c < n; c++) {
        all += a.job.hard[c] * FORMULA(p[c], &slope);
    }
    return (1 - a.smoothing) * (a.job.hard[y] * own) + a.smoothing / (float)n * all;
}

template <float (*FORMULA)(float x, int32_t hard, float gamma, float smoothing, float *slope), class ROW>
__device__ float sigmoid_sum(const bx_cuda_args &a, const ROW &x, int32_t y, float gamma, float smoothing, bool *bad) {
    float sum = 0, slope;
    int32_t magnitude = 0;
#pragma unroll 2
    for (int32_t c = 0; c < a.n_columns; c++) {
        const float v = x[c];
        const int32_t size = bx_bits(v) & 0x7fffffff;
        magnitude = size > magnitude ? size : magnitude;
        const float value = FORMULA(v, c == y, gamma, smoothing, &slope);
        sum += (c == y ? a.job.hard[c] : a.job.soft[c]) * value;
    }
    *bad = magnitude >= 0x7f800000;
    return sum;
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
    int32_t bad = 0;
    for (int i = 0; i < 4; i++) {
        bad += !is_finite(element(a.loc, 4 * at + i));
    }
    if (bad > 0) {
        const int32_t image = (int32_t)(at / a.n_priors), prior = (int32_t)(at % a.n_priors);
        bx_bad *of = &a.job.bad[(int64_t)image * a.n_blocks + prior / BX_BLOCK];
        note(&of->loc, &of->first_loc, bad, prior);
    }
}

/* ---- mine -------------------------------------------------------------------------------------------------------- */

constexpr int MINE_THREADS = 1024;
constexpr int DIGIT = 11, BINS = 1 << DIGIT;

struct mine_shared {
    unsigned bins[BINS];
    unsigned scratch[MINE_THREADS / WARP];
    word words[MINE_THREADS / WARP];
    int32_t digit;
    word left;
};

/* How many negatives to mine: the cpu's wanted_negatives, in its very steps. */
__device__ double wanted_negatives(const bx_mining &mining, double positives, double negatives) {
    double wanted = (double)((float)mining.ratio * (float)positives), least = (double)mining.min_negatives;
    wanted = wanted > least ? wanted : least;
    return wanted < negatives ? wanted : negatives;
}

/* Of the values that agree with `cut` above the digit, count each digit; then take the one that the shared->left-th
 * largest has, and leave how many of its own are wanted. */
__device__ int32_t next_digit(mine_shared *shared, const float *score, int64_t n, int32_t cut, int shift, int bits) {
    const int32_t mask = (1 << bits) - 1;
    for (int d = thread(); d < BINS; d += threads()) {
        shared->bins[d] = 0;
    }
    __syncthreads();
    for (int64_t i = thread(); i < n; i += threads()) {
        const int32_t x = bx_bits(score[i]);
        if (x >= 0 && (x ^ cut) >> shift >> bits == 0) {
            atomicAdd(&shared->bins[x >> shift & mask], 1u);
        }
    }
    __syncthreads();
    const int high = BINS - 1 - 2 * thread(); /* two digits a thread, the greatest first */
    const unsigned own = shared->bins[high], both = own + shared->bins[high - 1];
    unsigned total;
    const word above = block_scan(both, shared->scratch, &total), left = shared->left;
    __syncthreads(); /* all have read it */
    if (above < left && left <= above + both) {
        const bool first = left <= above + own;
        shared->digit = first ? high : high - 1;
        shared->left = left - above - (first ? 0 : own);
    }
    __syncthreads();
    return cut | shared->digit << shift;
}

/* The k largest of n values, the lowest index first among equals; the sign bit says what may not be chosen. */
__device__ void mark_largest(mine_shared *shared, const float *score, uint8_t *state, int64_t n, word k) {
    if (thread() == 0) {
        shared->left = k;
    }
    __syncthreads();
    int32_t cut = next_digit(shared, score, n, 0, 2 * DIGIT - 2, DIGIT);
    cut = next_digit(shared, score, n, cut, DIGIT - 2, DIGIT);
    cut = next_digit(shared, score, n, cut, 0, DIGIT - 2);
    const word equals = shared->left;
    word found = 0; /* of those that equal the cut */
    for (int64_t from = 0; from < n; from += threads()) {
        const int64_t i = from + thread();
        const int32_t x = i < n ? bx_bits(score[i]) : -1;
        bool chosen = x > cut;
        if (found < equals) { /* the same for all threads */
            unsigned total;
            const word before = found + block_scan(x == cut, shared->scratch, &total);
            chosen |= x == cut && before < equals;
            found += total;
        }
        if (chosen) {
            state[i] |= BX_HARD_NEGATIVE;
        }
    }
}

/* A block has an image, or the only one the batch. */
__global__ void __launch_bounds__(MINE_THREADS) mine_kernel(const bx_cuda_args a) {
    mine_shared *shared = (mine_shared *)bx_shared;
    const int32_t image = (int32_t)blockIdx.x;
    word positives = 0, negatives = 0;
    if (a.mines_across) {
        for (int32_t i = thread(); i < a.n_images; i += threads()) {
            positives += (word)a.job.images[i].positives;
            negatives += (word)a.job.images[i].negatives;
        }
        positives = block_sum(positives, shared->words);
        negatives = block_sum(negatives, shared->words);
    } else {
        positives = (word)a.job.images[image].positives;
        negatives = (word)a.job.images[image].negatives;
    }
    const double wanted = wanted_negatives(a.mining, (double)positives, (double)negatives);
    if (thread() == 0) {
        a.job.images[image].mined = wanted; /* in image 0 of the whole batch */
    }
    /* within an image rank < ratio x positives: a fraction takes one more; the origin of the other truncates */
    const word k = (word)(a.mines_across ? wanted : ceil(wanted));
    const int64_t base = a.mines_across ? 0 : (int64_t)image * a.n_priors;
    const int64_t n = a.mines_across ? (int64_t)a.n_images * a.n_priors : a.n_priors;
    if (k > 0) {
        mark_largest(shared, a.job.score + base, a.job.state + base, n, k);
    }
}

/* ---- list -------------------------------------------------------------------------------------------------------- */

constexpr int LIST_THREADS = 1024;

/* A block has an image. */
__global__ void __launch_bounds__(LIST_THREADS) list_kernel(const bx_cuda_args a) {
    unsigned *scratch = (unsigned *)bx_shared;
    const int64_t base = (int64_t)blockIdx.x * a.n_priors;
    unsigned done = 0;
    for (int32_t from = 0; from < a.n_priors; from += LIST_THREADS) {
        const int32_t p = from + thread();
        const uint8_t state = p < a.n_priors ? a.job.state[base + p] : (uint8_t)BX_IGNORED;
        const bool listed = p < a.n_priors && (a.marks ? (state & a.marks) != 0 : counts(a, state));
        unsigned total;
        const unsigned at = done + block_scan(listed, scratch, &total);
        if (listed) {
            a.list[base + at] = p;
        }
        done += total;
    }
}

/* ---- reduce ------------------------------------------------------------------------------------------------------ */

constexpr int REDUCE_THREADS = 256;

/* A positive prior's part. */
struct reduce_part {
    double loc, conf;
    int32_t k, level;
    bool correct;
};

struct reduce_shared {
    reduce_part part[REDUCE_THREADS];
    double sums[REDUCE_THREADS / WARP];
    int32_t ints[REDUCE_THREADS / WARP];
    int32_t too_far;
};

__device__ void target_of(const bx_cuda_args &a, int32_t image, int32_t prior, double target[4]) {
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
__device__ double localize(const bx_cuda_args &a, int32_t prior, int64_t at, const double target[4], double slope[4]) {
    float predicted[4];
    for (int i = 0; i < 4; i++) {
        predicted[i] = element(a.loc, 4 * at + i);
    }
    const float *box = a.prior_boxes ? a.prior_boxes + 4 * (int64_t)prior : nullptr;
    return bx_localize(&a.localization, a.variances, box, predicted, target, slope);
}

__device__ reduce_part part_of(const bx_cuda_args &a, reduce_shared *shared, int32_t image, int32_t prior) {
    const int64_t at = (int64_t)image * a.n_priors + prior;
    reduce_part part = {0, 0, class_of(a, image, at), 0, false};
    double target[4], slope[4];
    while (prior >= a.level_end[part.level]) {
        part.level++;
    }
    target_of(a, image, prior, target);
    for (int i = 0; i < 4; i++) {
        if (!is_finite((float)target[i])) {
            atomicMin(&shared->too_far, prior);
        }
    }
    if (a.with_predictions) {
        part.loc = localize(a, prior, at, target, slope);
        part.conf = -(double)a.job.score[at];
        part.correct = (a.job.state[at] & BX_CORRECT) != 0;
    }
    return part;
}

__device__ inline void add_part(bx_sums *sums, const reduce_part &part) {
    sums->loc += part.loc;
    sums->conf_positive += part.conf;
}

/* Fold the parts of m positives in their order: into their classes, their levels, the image. A thread has one of these
 * at a time. */
__device__ void fold_parts(const bx_cuda_args &a, const reduce_part *parts, int m, int32_t image) {
    bx_class_row *classes = a.job.classes + (int64_t)image * a.n_classes;
    bx_level_row *levels = a.job.levels + (int64_t)image * a.n_levels;
    for (int32_t slot = thread(); slot < a.n_classes + a.n_levels + 1; slot += threads()) {
        const int32_t k = slot, level = slot - a.n_classes;
        bx_sums sums = {};
        int64_t n = 0, correct = 0;
        bx_sums *to = k < a.n_classes      ? &classes[k].sums
                      : level < a.n_levels ? &levels[level].sums
                                           : &a.job.images[image].sums;
        sums = *to;
        for (int i = 0; i < m; i++) {
            const reduce_part &part = parts[i];
            if (k < a.n_classes ? part.k == k : level == a.n_levels || part.level == level) {
                add_part(&sums, part);
                n++;
                correct += part.correct;
            }
        }
        *to = sums;
        if (k < a.n_classes) {
            classes[k].positives += n;
            classes[k].correct += correct;
        } else if (level < a.n_levels) {
            levels[level].positives += n;
        }
    }
}

/* The negatives that count, by level and then of the image. */
__device__ void fold_negatives(const bx_cuda_args &a, reduce_shared *shared, int32_t image) {
    const int64_t base = (int64_t)image * a.n_priors;
    double sum = 0;
    int32_t mined = 0;
    for (int32_t l = 0, first = 0; l < a.n_levels; first = a.level_end[l++]) {
        double part = 0;
        int32_t hard = 0;
        for (int32_t p = first + thread(); p < a.level_end[l]; p += threads()) {
            const uint8_t state = a.job.state[base + p];
            if (counts(a, state) && !(state & BX_POSITIVE)) {
                part += (double)a.job.score[base + p];
                hard += (state & BX_HARD_NEGATIVE) != 0;
            }
        }
        part = block_sum(part, shared->sums);
        hard = block_sum(hard, shared->ints);
        if (thread() == 0) {
            bx_level_row *level = &a.job.levels[(int64_t)image * a.n_levels + l];
            level->sums.conf_negative = part;
            level->hard_negatives = hard;
        }
        sum += part;
        mined += hard;
    }
    if (thread() == 0) {
        a.job.images[image].sums.conf_negative = sum;
        a.job.images[image].hard_negatives = mined;
    }
}

/* A block has an image. */
__global__ void __launch_bounds__(REDUCE_THREADS) reduce_kernel(const bx_cuda_args a) {
    reduce_shared *shared = (reduce_shared *)bx_shared;
    const int32_t image = (int32_t)blockIdx.x, n = a.job.images[image].positives;
    const int64_t base = (int64_t)image * a.n_priors;
    bx_class_row *classes = a.job.classes + (int64_t)image * a.n_classes;
    for (int32_t k = thread(); k < a.n_classes; k += threads()) {
        classes[k] = bx_class_row{};
    }
    for (int32_t l = thread(); l < a.n_levels; l += threads()) {
        a.job.levels[(int64_t)image * a.n_levels + l] = bx_level_row{};
    }
    if (thread() == 0) {
        shared->too_far = INT32_MAX;
    }
    __syncthreads();
    for (int32_t g = a.first[image] + thread(); g < a.first[image + 1]; g += threads()) {
        if (is_used(a, g)) {
            atomicAdd((word *)&classes[a.labels[g]].objects, (word)1);
        }
    }
    for (int32_t from = 0; from < n; from += REDUCE_THREADS) {
        const int32_t left = n - from, m = left < REDUCE_THREADS ? left : REDUCE_THREADS;
        if (thread() < m) {
            shared->part[thread()] = part_of(a, shared, image, a.list[base + from + thread()]);
        }
        __syncthreads();
        fold_parts(a, shared->part, m, image);
        __syncthreads();
    }
    if (a.with_predictions) {
        fold_negatives(a, shared, image);
    }
    if (thread() == 0) {
        a.job.images[image].too_far = shared->too_far < INT32_MAX ? shared->too_far + 1 : 0;
    }
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */

constexpr int SLOPES_THREADS = 128;

/* The skeletons of gradients.c, a lane having every WARP-th column: slopes of the row's loss as column y, times scale.
 */
__device__ void softmax_slopes(const bx_cuda_args &a, int64_t begin, int32_t y, double scale, float *out) {
    const int32_t n = a.n_columns;
    float max = -INFINITY, others = 0, own = 0;
    for (int32_t c = lane(); c < n; c += WARP) {
        const float x = element(a.conf, begin + c);
        max = x > max ? x : max;
    }
    max = warp_max(max);
    for (int32_t c = lane(); c < n; c += WARP) {
        const float e = bx_exp_minus(max - element(a.conf, begin + c));
        others += c == y ? 0 : e;
        own += c == y ? e : 0;
    }
    others = warp_sum(others);
    own = warp_sum(own);
    const double whole = (double)others + (double)own, factor = scale / whole;
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
            out[c] = (float)(factor * (double)(c == y ? -others : e));
            continue;
        }
        const double p = (double)e / whole, from_label = c == y ? -(double)others / whole : p;
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
    } else if (counts(a, state)) {
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

/* ---- launchers --------------------------------------------------------------------------------------------------- */

using kernel = void (*)(const bx_cuda_args);

cudaError_t launch(kernel k, int64_t blocks, int n_threads, size_t shared, const bx_cuda_args *args,
                   cudaStream_t stream) {
    if (blocks == 0) {
        return cudaSuccess;
    }
    bx_cuda_args copy = *args;
    void *arguments[] = {&copy};
    return cudaLaunchKernel((const void *)k, dim3((unsigned)blocks, 1, 1), dim3((unsigned)n_threads, 1, 1), arguments,
                            shared, stream);
}

int64_t blocks_of(int64_t n, int64_t each) {
    return (n + each - 1) / each;
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

cudaError_t bx_cuda_match(const bx_cuda_args *args, cudaStream_t stream) {
    const int64_t blocks = args->n_images * blocks_of(args->n_priors, MATCH_THREADS);
    return launch(match_kernel, blocks, MATCH_THREADS, sizeof(match_shared), args, stream);
}

cudaError_t bx_cuda_targets(const bx_cuda_args *args, cudaStream_t stream) {
    const int64_t blocks = blocks_of((int64_t)args->n_images * args->n_priors, MATCH_THREADS);
    return launch(targets_kernel, blocks, MATCH_THREADS, 0, args, stream);
}

cudaError_t bx_cuda_assign(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(assign_kernel, args->n_images, ASSIGN_THREADS, sizeof(assign_shared), args, stream);
}

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

cudaError_t bx_cuda_mine(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(mine_kernel, args->mines_across ? 1 : args->n_images, MINE_THREADS, sizeof(mine_shared), args,
                  stream);
}

cudaError_t bx_cuda_list(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(list_kernel, args->n_images, LIST_THREADS, LIST_THREADS / WARP * sizeof(unsigned), args, stream);
}

cudaError_t bx_cuda_reduce(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(reduce_kernel, args->n_images, REDUCE_THREADS, sizeof(reduce_shared), args, stream);
}

cudaError_t bx_cuda_slopes(const bx_cuda_args *args, cudaStream_t stream) {
    return launch(slopes_kernel, blocks_of(args->n_rows, SLOPES_THREADS / WARP), SLOPES_THREADS, 0, args, stream);
}
