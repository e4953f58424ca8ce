/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared inside lib only: the kernel table, the context and small helpers.
 */
#ifndef BX_INTERNAL_H
#define BX_INTERNAL_H

#include <endian.h>
#include <string.h>

#include "compute.h"
#include "match.h"

#define BX_ALIGN 64
/* Rows scored at a time: their transposed tile stays in the first-level cache for C up to about a hundred. */
#define BX_LANES 64
/* A tile is BX_LANES x C floats for small C; for large C fewer rows, never below BX_MIN_LANES. */
#define BX_MIN_LANES   16
#define BX_TILE_FLOATS (BX_MIN_LANES * BX_MAX_COLUMNS)

static inline size_t bx_round_up(size_t n) {
    return (n + (BX_ALIGN - 1)) & ~(size_t)(BX_ALIGN - 1);
}

/* Rows of C columns that fit a tile. */
static inline int32_t bx_tile_rows(int32_t n_columns) {
    int32_t rows = BX_TILE_FLOATS / n_columns;
    rows = rows > BX_LANES ? BX_LANES : rows;
    return n_columns > 256 && rows > BX_MIN_LANES ? BX_MIN_LANES : rows;
}

static inline void bx_sums_add(bx_sums *to, bx_sums part) {
    to->loc += part.loc;
    to->conf_positive += part.conf_positive;
    to->conf_negative += part.conf_negative;
}

/* The best prior of one object so far. */
typedef struct bx_best {
    float iou;
    int32_t prior;
} bx_best;

/* How rows of conf are scored. */
typedef struct bx_scoring {
    bx_classification_kind kind;
    int32_t n_columns, background; /* -1: no background column */
    bool plain;                    /* no class weights, no smoothing */
    float gamma, smoothing;
    const float *hard, *soft; /* (C) as in bx_job */
} bx_scoring;

/*
 * Row kernels, where instructions differ. Every level computes the same bits. ref.c is the specification; the levels
 * in cpu_simd.c are plain loops compiled once per instruction set.
 */
typedef struct bx_kernels {
    const char *level;
    bool (*runs_here)(void);
    /* n elements of a floating-point dtype at any alignment -> float32 */
    void (*load)(float *out, const void *in, bx_dtype dtype, size_t n);
    /* How many of n floats, at any alignment, are not finite. */
    size_t (*count_bad)(const void *x, size_t n);
    /* Priors [first, first + count) against one object: where the IoU exceeds overlap[p] (indexed from the range's
     * start), take it and set owner[p] = index. Raises *best to the first prior with the greatest IoU, when it exceeds
     * best->iou. No IoU below `least` exceeds any overlap, so that one which is not above best->iou either need not be
     * known. */
    void (*iou_row)(const bx_priors *priors, int32_t first, int32_t count, const bx_object *object, bx_iou iou,
                    float least, int32_t index, float *overlap, int32_t *owner, bx_best *best);
    /* Classification loss of n rows, (n,C) float32 at any alignment, as class column label[i], or as background when
     * label is NULL, to out (n): >= 0, or infinity where it overflows. Rows with an element that cannot be used give
     * any value. tile: BX_TILE_FLOATS floats, 64-byte aligned. n <= bx_tile_rows(C). Returns false when some element of
     * the rows cannot be used: is not finite, or no probability (prob_ce). */
    bool (*score_rows)(const bx_scoring *scoring, const void *rows, int32_t n, const int32_t *label, float *out,
                       float *tile);
    /* state[i] |= mark for the k largest of n values, the lowest index first among equals. The sign bit
     * marks what may not be chosen; 1 <= k <= number of values without it. */
    void (*mark_largest)(const float *x, uint8_t *state, size_t n, size_t k, uint8_t mark);
} bx_kernels;

extern const bx_kernels bx_kernels_ref;
extern const bx_kernels bx_kernels_baseline;
#ifdef __x86_64__
extern const bx_kernels bx_kernels_avx2;
extern const bx_kernels bx_kernels_avx512;
#endif

/* The i-th level this CPU can run, slowest first; NULL past the end. */
const bx_kernels *bx_kernels_at(size_t i);

struct bx_context {
    const struct bx_backend *backend;
    /* of the cpu */
    const bx_kernels *kernels;
    float *rows;    /* (BX_TILE_FLOATS) rows loaded as float32 */
    float *tile;    /* (BX_TILE_FLOATS) the same, transposed */
    int32_t *label; /* (BX_LANES) */
    /* of a GPU: cuda.c */
    struct bx_cuda *cuda;
};

/* How many culling runs n priors make. */
static inline int32_t bx_runs(int32_t n) {
    return (n + BX_CULL - 1) / BX_CULL;
}

/* Where the culling run of prior p ends, within [p, end). */
static inline int32_t bx_run_end(int32_t p, int32_t end) {
    int32_t stop = (p / BX_CULL + 1) * BX_CULL;
    return stop < end ? stop : end;
}

/* The first prior of [p, end) in a culling run that the object meets: with any other its IoU is 0. p is where a run, or
 * the range, begins; returns end when there is none. */
static inline int32_t bx_next_meeting(const bx_priors *priors, int32_t p, int32_t end, const bx_object *object) {
    const float *box = object->box;
    const size_t runs = (size_t)bx_runs(priors->n);
    for (; p < end; p = bx_run_end(p, end)) {
        const float *around = priors->extent + p / BX_CULL;
        if (box[2] > around[0] && box[3] > around[runs] && box[0] < around[2 * runs] && box[1] < around[3 * runs]) {
            return p;
        }
    }
    return end;
}

/* Where memory lives. A row of the list in backend.c; what the functions do is said in compute.h. */
typedef struct bx_backend {
    const char *name; /* of the device, up to ":" */
    bx_status (*open)(bx_context *context, const char *device, const char *level, bx_error *error);
    void (*close)(bx_context *context);
    const char *(*level)(const bx_context *context);
    bx_status (*reserve)(bx_context *context, size_t bytes, bx_error *error);
    bx_status (*begin)(bx_context *context, bx_job *job, bx_error *error);
    bx_status (*feed)(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error);
    bx_status (*run)(bx_context *context, bx_job *job, bx_error *error);
    bx_status (*rows)(bx_context *context, bx_job *job, bx_error *error);
    void (*end)(bx_context *context, bx_job *job);
} bx_backend;

extern const bx_backend bx_backend_cpu;
extern const bx_backend bx_backend_cuda;

/* What bx_run_batch is made of: refuse predictions that cannot be used; mine across the batch, on the cpu; normalisers
 * and the rows of gradients. */
bx_status bx_check_predictions(const bx_job *job, bx_error *error);
void bx_mine_batch(bx_context *context, bx_job *job);
void bx_normalize(bx_job *job);

/* Lay a job's arrays out in `work`, which need not be memory that can be looked at. */
void bx_job_place(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work);

/* ---- one prior of a job ------------------------------------------------------------------------------------------ */

static inline size_t bx_row_index(const bx_job *job, int32_t image, int32_t prior) {
    return (size_t)image * (size_t)job->plan->n_priors + (size_t)prior;
}

/* Class of a positive prior. */
static inline int32_t bx_positive_class(const bx_job *job, int32_t image, size_t at) {
    return job->plan->with_targets ? job->owner[at]
                                   : (int32_t)job->batch->labels[job->batch->first[image] + job->owner[at]];
}

static inline bool bx_is_used(const bx_batch *batch, int32_t object) {
    return !batch->use || batch->use[object] == BX_OBJECT_USED;
}

/* The first of [p, n) whose state has one of the marks; n when there is none. Most are 0: eight at a time. */
static inline size_t bx_next_marked(const uint8_t *state, size_t p, size_t n, uint8_t marks) {
    const uint64_t wanted = marks * UINT64_C(0x0101010101010101);
    for (uint64_t eight; p + 8 <= n; p += 8) {
        memcpy(&eight, state + p, 8);
        eight = le64toh(eight) & wanted;
        if (eight) {
            return p + (size_t)__builtin_ctzll(eight) / 8;
        }
    }
    while (p < n && !(state[p] & marks)) {
        p++;
    }
    return p;
}

static inline size_t bx_next_state(const uint8_t *state, size_t p, size_t n) {
    return bx_next_marked(state, p, n, 0xff);
}

/* The next of [p, n) whose loss counts: positives and mined negatives, or without mining whatever is not ignored. */
static inline size_t bx_next_counted(const bx_job *job, const uint8_t *state, size_t p, size_t n) {
    if (job->plan->criterion->mining.kind == BX_MINING_NONE) {
        while (p < n && state[p] & BX_IGNORED) {
            p++;
        }
        return p;
    }
    return bx_next_marked(state, p, n, BX_POSITIVE | BX_HARD_NEGATIVE);
}

bx_scoring bx_scoring_of(const bx_job *job);
/* Priors of a block; the last may be shorter. */
int32_t bx_block_size(const bx_plan *plan, int32_t block);
/* The stages score, positives and check on the rows of these priors wherever they lie: rows of conf, or of loc. */
void bx_score_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor conf);
void bx_positives_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor conf);
void bx_check_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor loc);
/* What the stage begin does for scoring. */
void bx_begin_score(bx_job *job, int32_t image, int32_t block);
/* What it does for matching, and the stage match, on all blocks of an image. */
void bx_match_image(bx_context *context, bx_job *job, int32_t image);
/* Whether no prediction of the image that was looked at is bad. */
bool bx_image_is_usable(const bx_job *job, int32_t image);
/* Column of class k, and of the background (-1: none), among n_columns. */
int32_t bx_class_column(const bx_criterion *criterion, int32_t k);
int32_t bx_background_column(const bx_criterion *criterion, int32_t n_columns);

/* Elements [at, at + n) of a tensor as float32 at any alignment: in place when they are float32, else loaded into
 * `scratch`. bx_floats: aligned, in place when they already are. */
const void *bx_float32(const bx_kernels *kernels, bx_tensor tensor, size_t at, size_t n, float *scratch);
const float *bx_floats(const bx_kernels *kernels, bx_tensor tensor, size_t at, size_t n, float *scratch);

/* ---- localization ------------------------------------------------------------------------------------------------ */

/* Encoded offsets of an object (native form of iou) against a prior (cx cy w h), in double. */
void bx_encode(const float box[4], bx_iou iou, const float prior[4], const double variances[4], double target[4]);
/* The regression target of the positive prior at row `at`. */
void bx_target(const bx_job *job, int32_t image, int32_t prior, double target[4]);
/* Localization loss of one positive prior: predicted offsets against the target; slope (4) by the offsets, or NULL.
 * prior: cx cy w h, read by the IoU losses only. */
double bx_localization_loss(const bx_criterion *criterion, const float *prior, const float predicted[4],
                            const double target[4], double *slope);
#endif
