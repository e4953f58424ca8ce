/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mining and sums on a GPU: mine, list, reduce.
 */
#include "cuda_kernels.h"

namespace {

/* ---- mine -------------------------------------------------------------------------------------------------------- */

constexpr int MINE_THREADS = 1024;
constexpr int DIGIT = 11, BINS = 1 << DIGIT;
constexpr int AHEAD = 4; /* loads of a thread that wait together */

struct mine_shared {
    unsigned bins[BINS];
    unsigned scratch[MINE_THREADS / WARP];
    word words[MINE_THREADS / WARP];
    int32_t digit;
    word left; /* of those that agree with the cut so far, how many are wanted */
    word all;  /* and how many there are */
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
    for (int64_t from = thread(); from < n; from += AHEAD * threads()) {
        int32_t x[AHEAD];
        for (int i = 0; i < AHEAD; i++) { /* on their way together */
            const int64_t at = from + i * threads();
            x[i] = at < n ? bx_bits(score[at]) : -1;
        }
        for (int i = 0; i < AHEAD; i++) {
            if (x[i] >= 0 && (x[i] ^ cut) >> shift >> bits == 0) {
                atomicAdd(&shared->bins[x[i] >> shift & mask], 1u);
            }
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
        shared->all = first ? own : both - own;
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
    const bool chosen_all = equals == shared->all; /* the usual case: nobody has to be counted */
    word found = 0;                                /* of those that equal the cut */
    for (int64_t from = 0; from < n; from += threads()) {
        const int64_t i = from + thread();
        const int32_t x = i < n ? bx_bits(score[i]) : -1;
        bool chosen = chosen_all ? x >= cut : x > cut;
        if (!chosen_all && found < equals) { /* the same for all threads */
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

/* A block has an image; a thread looks at 16 neighbours at a time. */
__global__ void __launch_bounds__(LIST_THREADS) list_kernel(const bx_cuda_args a) {
    unsigned *scratch = (unsigned *)bx_shared;
    const int64_t base = (int64_t)blockIdx.x * a.n_priors, end = base + a.n_priors;
    unsigned done = 0;
    for (int64_t from = base / 16 * 16; from < end; from += 16 * LIST_THREADS) {
        const int64_t at = from + 16 * thread();
        unsigned marks = 0, total;
        if (at < end) {
            const states found = load_states(a.job.state, at, base, end, BX_IGNORED);
            for (int i = 0; i < 16; i++) {
                marks |= (unsigned)counts(a, found.of[i], a.positives_only) << i;
            }
        }
        int32_t *to = a.list + base + done + block_scan((unsigned)__popc(marks), scratch, &total);
        for (int i = 0; i < 16; i++) {
            if (marks >> i & 1) {
                *to++ = (int32_t)(at + i - base);
            }
        }
        done += total;
    }
    if (thread() == 0) {
        a.n_listed[blockIdx.x] = (int32_t)done;
    }
}

/* ---- reduce ------------------------------------------------------------------------------------------------------ */

constexpr int REDUCE_THREADS = 256;

/* What a listed prior adds. */
struct reduce_part {
    double loc, conf;
    int32_t k, level; /* k: -1 of a negative */
    bool correct;
};

struct reduce_shared {
    reduce_part part[REDUCE_THREADS];
    double sums[REDUCE_THREADS / WARP];
    int32_t too_far;
};

__device__ reduce_part part_of(const bx_cuda_args &a, reduce_shared *shared, int32_t image, int32_t prior) {
    const int64_t at = (int64_t)image * a.n_priors + prior;
    const uint8_t state = a.job.state[at];
    reduce_part part = {0, 0, -1, 0, false};
    double target[4], slope[4];
    while (prior >= a.level_end[part.level]) {
        part.level++;
    }
    if (!(state & BX_POSITIVE)) {
        part.conf = (double)a.job.score[at];
        return part;
    }
    part.k = class_of(a, image, at);
    target_of(a, image, prior, target);
    for (int i = 0; i < 4; i++) {
        if (!is_finite((float)target[i])) {
            atomicMin(&shared->too_far, prior);
        }
    }
    if (a.with_predictions) {
        part.loc = localize(a, prior, at, target, slope);
        part.conf = -(double)a.job.score[at];
        part.correct = (state & BX_CORRECT) != 0;
    }
    return part;
}

/* Fold the parts of m priors in their order: into their classes, their levels, the image. A thread has one of these at
 * a time. */
__device__ void fold_parts(const bx_cuda_args &a, const reduce_part *parts, int m, int32_t image) {
    bx_class_row *classes = a.job.classes + (int64_t)image * a.n_classes;
    bx_level_row *levels = a.job.levels + (int64_t)image * a.n_levels;
    bx_image_row *row = &a.job.images[image];
    for (int32_t slot = thread(); slot < a.n_classes + a.n_levels + 1; slot += threads()) {
        const int32_t k = slot < a.n_classes ? slot : -1, level = slot - a.n_classes;
        bx_sums *to = k >= 0 ? &classes[k].sums : level < a.n_levels ? &levels[level].sums : &row->sums;
        bx_sums sums = *to;
        int32_t positives = 0, negatives = 0, correct = 0;
        for (int i = 0; i < m; i++) {
            const reduce_part &part = parts[i];
            if (k >= 0 ? part.k != k : level < a.n_levels && part.level != level) {
                continue;
            }
            sums.loc += part.loc;
            *(part.k >= 0 ? &sums.conf_positive : &sums.conf_negative) += part.conf;
            positives += part.k >= 0;
            negatives += part.k < 0;
            correct += part.correct;
        }
        *to = sums;
        if (k >= 0) {
            classes[k].positives += positives;
            classes[k].correct += correct;
        } else if (level < a.n_levels) {
            levels[level].positives += positives;
            levels[level].hard_negatives += negatives;
        } else {
            row->hard_negatives += negatives;
        }
    }
}

/* Where nothing is mined: all the negatives that count, by level and then of the image. */
__device__ void fold_negatives(const bx_cuda_args &a, reduce_shared *shared, int32_t image) {
    const int64_t base = (int64_t)image * a.n_priors;
    double sum = 0;
    for (int32_t l = 0, first = 0; l < a.n_levels; first = a.level_end[l++]) {
        double part = 0;
#pragma unroll 4
        for (int32_t p = first + thread(); p < a.level_end[l]; p += threads()) {
            const bool counted = !(a.job.state[base + p] & (BX_POSITIVE | BX_IGNORED));
            const float loss = a.job.score[base + p];
            part += counted ? (double)loss : 0;
        }
        part = block_sum(part, shared->sums);
        if (thread() == 0) {
            a.job.levels[(int64_t)image * a.n_levels + l].sums.conf_negative = part;
        }
        sum += part;
    }
    if (thread() == 0) {
        a.job.images[image].sums.conf_negative = sum;
    }
}

/* A block has an image. */
__global__ void __launch_bounds__(REDUCE_THREADS) reduce_kernel(const bx_cuda_args a) {
    reduce_shared *shared = (reduce_shared *)bx_shared;
    const int32_t image = (int32_t)blockIdx.x, n = a.n_listed[image];
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
    if (a.with_predictions && a.mining.kind == BX_MINING_NONE) {
        fold_negatives(a, shared, image);
    }
    if (thread() == 0) {
        a.job.images[image].too_far = shared->too_far < INT32_MAX ? shared->too_far + 1 : 0;
    }
}

} // namespace

/* ---- launchers --------------------------------------------------------------------------------------------------- */

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
