/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared inside lib only: the kernel table, the context and small helpers.
 */
#ifndef BX_INTERNAL_H
#define BX_INTERNAL_H

#include "boxloss.h"

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

/*
 * Row kernels, where instructions differ. Every level computes the same bits. ref.c is the specification; the levels
 * in cpu_simd.c are plain loops compiled once per instruction set.
 */
typedef struct bx_kernels {
    const char *level;
    bool (*runs_here)(void);
    /* n elements of a floating-point dtype at any alignment -> float32 */
    void (*load)(float *out, const void *in, bx_dtype dtype, size_t n);
    /* How many of n floats are not finite. */
    size_t (*count_bad)(const float *x, size_t n);
    /* Priors [first, first + count) against one box (x1 y1 x2 y2): where the IoU exceeds overlap[p] (indexed from the
     * range's start), take it and set owner[p] = object. Raises *best to the first prior with the greatest IoU, when it
     * exceeds best->iou. */
    void (*iou_row)(const bx_priors *priors, int32_t first, int32_t count, const float box[4], int32_t object,
                    float *overlap, int32_t *owner, bx_best *best);
    /* Cross-entropy of n rows (n,C) against label[i], or against column 0 when label is NULL, to ce (n). Rows with an
     * element that is not finite give any value. tile: BX_TILE_FLOATS floats, 64-byte aligned. n <= bx_tile_rows(C).
     * Returns false when some element of the rows is not finite. */
    bool (*score_rows)(const float *rows, int32_t n, int32_t n_columns, const int32_t *label, float *ce, float *tile);
    /* state[i] |= mark for the k largest of n values, the lowest index first among equals. Values are >= 0 or exactly
     * -1, which marks what may not be chosen; 1 <= k <= number of values >= 0. */
    void (*mark_largest)(const float *x, uint8_t *state, size_t n, size_t k, uint8_t mark);
} bx_kernels;

extern const bx_kernels bx_kernels_ref;
extern const bx_kernels bx_kernels_baseline;
#ifdef __x86_64__
extern const bx_kernels bx_kernels_avx2;
#endif

/* The i-th level this CPU can run, slowest first; NULL past the end. */
const bx_kernels *bx_kernels_at(size_t i);

struct bx_context {
    const struct bx_backend *backend;
    const bx_kernels *kernels;
    float *rows;    /* (BX_TILE_FLOATS) rows loaded as float32 */
    float *tile;    /* (BX_TILE_FLOATS) the same, transposed */
    int32_t *label; /* (BX_LANES) */
};

/* Where memory lives. A row of the list in backend.c. */
typedef struct bx_backend {
    const char *name;
    bx_status (*open)(bx_context *context, const char *level, bx_error *error);
    void (*close)(bx_context *context);
    void (*run_block)(bx_context *context, bx_job *job, int32_t image, int32_t block);
    void (*run_image)(bx_context *context, bx_job *job, int32_t image);
} bx_backend;

extern const bx_backend bx_backend_cpu;

/* Encoded offsets of a box (x1 y1 x2 y2) against a prior (cx cy w h), in double. */
void bx_encode(const float box[4], const float prior[4], const double variances[4], double target[4]);
/* Localization loss of one positive prior: predicted offsets against the target. */
double bx_localization_value(const bx_criterion *criterion, const float predicted[4], const double target[4]);

#endif
