/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matching and assignment on a GPU: match, targets, assign. The IoU matrix is never there.
 */
#include "cuda_kernels.h"

namespace {

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
        if (key > __ldcg(best)) { /* most are not: spare the atomic */
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

constexpr int ASSIGN_THREADS = 512;

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

/* A prior that objects want goes to the last of them, or to the first: the most, or the least, of their numbers is what
 * every order of the atomics leaves in the prior's place of the list, which is not made yet. */
__device__ void force_best(const bx_cuda_args &a, int32_t image, int32_t begin, int32_t end) {
    const bool last = a.matcher.force == BX_FORCE_LAST;
    int32_t *claims = a.list + (int64_t)image * a.n_priors;
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        if (is_used(a, g)) {
            claims[a.job.objects[g].best_prior] = last ? -1 : INT32_MAX;
        }
    }
    __syncthreads();
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        if (is_used(a, g)) {
            int32_t *claim = &claims[a.job.objects[g].best_prior];
            (void)(last ? atomicMax(claim, g) : atomicMin(claim, g));
        }
    }
    __syncthreads();
    for (int32_t g = begin + thread(); g < end; g += threads()) {
        const int32_t prior = a.job.objects[g].best_prior;
        if (is_used(a, g) && claims[prior] == g) {
            force(a, image, g, prior, 0);
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
    const int64_t base = (int64_t)image * a.n_priors, end = base + a.n_priors;
    const int32_t first = a.first[image];
    int32_t positives = 0, ignored = 0, forced = 0;
    for (int64_t at = base / 16 * 16 + 16 * thread(); at < end; at += 16 * threads()) {
        const states found = load_states(a.job.state, at, base, end, 0);
        for (int i = 0; i < 16; i++) {
            const uint8_t old = found.of[i];
            const uint8_t state = (uint8_t)(old & ~(old & BX_POSITIVE ? BX_IGNORED | BX_TAKEN : BX_TAKEN));
            if (state != old) {
                a.job.state[at + i] = state;
            }
            ignored += (state & BX_IGNORED) != 0;
            if (state & BX_POSITIVE) {
                positives++;
                forced += (state & BX_FORCED) != 0;
                if (!a.with_targets) {
                    bx_object_row *object = &a.job.objects[first + a.job.owner[at + i]];
                    atomicAdd(&object->positives, 1);
                    if (state & BX_FORCED) { /* by whoever; never taken back */
                        object->forced = true;
                    }
                }
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

} // namespace

/* ---- launchers --------------------------------------------------------------------------------------------------- */

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
