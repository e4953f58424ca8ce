/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boxloss: matches annotations to prior boxes, computes detection losses and explains the assignment.
 *
 * Pure computation. Nothing here reads a file, starts a thread, prints or exits. A function may be called from any
 * thread; an object may be used by one thread at a time unless its comment says otherwise. Functions that can fail
 * return a bx_status, leave their outputs untouched on failure and describe it in a caller-owned bx_error (NULL is
 * accepted everywhere; the first error wins).
 *
 * Shape letters, used on every pointer:
 *   N images   P priors   C columns of conf   G objects in the whole batch   K foreground classes   L prior levels
 *   B blocks of priors per image
 */
#ifndef BOXLOSS_H
#define BOXLOSS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BX_MUST_USE     __attribute__((warn_unused_result))
#define BX_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* ---- status and error -------------------------------------------------------------------------------------------- */

/* Whose fault it is decides the row: malformed .. too_large are the caller's, nomem .. busy are ours to lack,
 * internal is a bug. */
#define BX_STATUS_ROWS(X)                                                                                              \
    X(OK, "ok")                                                                                                        \
    X(MALFORMED, "not well-formed")                                                                                    \
    X(INVALID, "well-formed but meaningless")                                                                          \
    X(SHAPE, "shapes disagree")                                                                                        \
    X(NONFINITE, "a prediction is not finite")                                                                         \
    X(TOO_LARGE, "larger than the configured limit")                                                                   \
    X(NOMEM, "out of memory")                                                                                          \
    X(DEVICE, "the device cannot be used")                                                                             \
    X(BUSY, "no capacity at the moment")                                                                               \
    X(INTERNAL, "internal error")

typedef enum bx_status {
#define BX_ROW(id, text) BX_##id,
    BX_STATUS_ROWS(BX_ROW)
#undef BX_ROW
} bx_status;

/* The row's text; static storage. */
const char *bx_status_text(bx_status status);

typedef struct bx_error {
    bx_status status;
    const char *code; /* stable machine-readable word such as "box_inverted"; static storage */
    char path[128];   /* the culprit, such as "annotations[3].boxes[7]"; empty when there is none */
    char text[320];   /* one sentence with the offending numbers */
} bx_error;

/* Record a failure unless one is recorded already; returns `status`. */
bx_status bx_fail(bx_error *error, bx_status status, const char *code, const char *format, ...) BX_PRINTF(4, 5);
/* Say where, for the failure just recorded; does nothing when its path is already set. Returns error->status. */
bx_status bx_at(bx_error *error, const char *format, ...) BX_PRINTF(2, 3);

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* id, wire name (safetensors), bytes per element */
#define BX_DTYPE_ROWS(X)                                                                                               \
    X(F32, "F32", 4)                                                                                                   \
    X(F16, "F16", 2)                                                                                                   \
    X(BF16, "BF16", 2)                                                                                                 \
    X(F64, "F64", 8)                                                                                                   \
    X(I64, "I64", 8)                                                                                                   \
    X(I32, "I32", 4)                                                                                                   \
    X(I16, "I16", 2)                                                                                                   \
    X(I8, "I8", 1)                                                                                                     \
    X(U8, "U8", 1)                                                                                                     \
    X(BOOL, "BOOL", 1)

typedef enum bx_dtype {
#define BX_ROW(id, name, bytes) BX_##id,
    BX_DTYPE_ROWS(BX_ROW)
#undef BX_ROW
        BX_N_DTYPES
} bx_dtype;

size_t bx_dtype_bytes(bx_dtype dtype);
const char *bx_dtype_name(bx_dtype dtype);
bool bx_dtype_from_name(const char *name, bx_dtype *dtype);
bool bx_dtype_is_float(bx_dtype dtype);

/* A view of row-major little-endian elements at any alignment; the memory belongs to whoever made the view. */
typedef struct bx_tensor {
    bx_dtype dtype;
    const void *data; /* NULL: absent */
} bx_tensor;

/* `n` elements of a floating-point tensor from element `first`, rounded to float32 (nearest even; F16 and BF16 are
 * exact, F64 beyond float32's range becomes infinite). */
void bx_tensor_to_f32(float *out, bx_tensor tensor, size_t first, size_t n);
/* Element `i` of an integer tensor. */
int64_t bx_tensor_int(bx_tensor tensor, size_t i);

/* ---- priors ------------------------------------------------------------------------------------------------------ */

typedef struct bx_level {
    char name[16];
    int32_t first, count; /* its priors are [first, first + count) */
} bx_level;

/* An immutable set of prior boxes: may be shared by any number of threads. One allocation. */
typedef struct bx_priors {
    char name[64];                  /* "inline" when the caller gave the boxes */
    char text[96];                  /* where a built-in set comes from; empty otherwise */
    int32_t n;                      /* P */
    int32_t n_levels;               /* L, at least 1 */
    bool relative;                  /* coordinates are shares of the image, not pixels */
    const bx_level *levels;         /* (L) */
    const float *boxes;             /* (P,4) cx cy w h */
    const float *x1, *y1, *x2, *y2; /* (P) corners, c -/+ w/2 in float32 */
    const float *area;              /* (P) (x2-x1)*(y2-y1) in float32 */
    const float *extent;            /* (ceil(P/BX_CULL),4) x1 y1 x2 y2 around each run of BX_CULL priors */
} bx_priors;

#define BX_CULL       128     /* priors per culling run */
#define BX_MAX_PRIORS 4194304 /* per image */

/* A set of `n` caller-given boxes (n,4) cx cy w h, copied. Refuses boxes that are not finite or whose float32 area is
 * not positive (path "priors[i]"). The caller frees with bx_priors_free. */
BX_MUST_USE bx_status bx_priors_new(bx_priors **priors, const float *boxes, int32_t n, bx_error *error);
/* A built-in set by name. The caller frees. Unknown names are BX_INVALID with the nearest known one in the text. */
BX_MUST_USE bx_status bx_priors_builtin(bx_priors **priors, const char *name, bx_error *error);
void bx_priors_free(bx_priors *priors);
/* The i-th built-in name, NULL past the end. */
const char *bx_priors_name(size_t i);
/* Heap bytes of a set of n priors. */
size_t bx_priors_bytes(int32_t n, int32_t n_levels);

/* ---- criterion: one choice per stage ----------------------------------------------------------------------------- */

/* The rows of each stage's menu, and the presets, are in loss.def. */
#define BX_FORCE(id, name) BX_FORCE_##id,
typedef enum bx_force {
#include "loss.def"
} bx_force;
#define BX_CLASSIFICATION(id, name) BX_CLASSIFICATION_##id,
typedef enum bx_classification {
#include "loss.def"
} bx_classification;
#define BX_MINING(id, name) BX_MINING_##id,
typedef enum bx_mining {
#include "loss.def"
} bx_mining;
#define BX_LOCALIZATION(id, name, value) BX_LOCALIZATION_##id,
typedef enum bx_localization {
#include "loss.def"
} bx_localization;
#define BX_REDUCTION(id, name) BX_REDUCTION_##id,
typedef enum bx_reduction {
#include "loss.def"
} bx_reduction;

const char *bx_force_name(bx_force kind);
const char *bx_classification_name(bx_classification kind);
const char *bx_mining_name(bx_mining kind);
const char *bx_localization_name(bx_localization kind);
const char *bx_reduction_name(bx_reduction kind);

/* A complete description of one loss. Presets are immutable and live for the process. */
typedef struct bx_criterion {
    const char *name;
    const char *text;   /* one line: what it is and where it comes from */
    const char *priors; /* the prior set used when the caller names none */
    struct {
        float positive_iou; /* a prior is positive when its best IoU reaches this */
        bx_force force;     /* who keeps a prior that is the best of several objects */
    } matcher;
    struct {
        double variances[4]; /* divisors of the encoded offsets: x y w h */
    } coder;
    struct {
        bx_classification kind;
    } classification;
    struct {
        bx_mining kind;
        double ratio; /* mined negatives per positive of the same image */
    } mining;
    struct {
        bx_localization kind;
        double beta; /* smooth_l1: where the quadratic part ends */
        bx_reduction reduction;
    } localization;
    struct {
        double loc, conf;
    } weights;
} bx_criterion;

/* NULL when there is no such preset. */
const bx_criterion *bx_criterion_preset(const char *name);
/* The i-th preset, NULL past the end. */
const bx_criterion *bx_criterion_at(size_t i);

/* ---- batch: what the caller brings ------------------------------------------------------------------------------- */

/* All memory is the caller's and must outlive the job. Without predictions (conf.data NULL) only the assignment is
 * computed. */
typedef struct bx_batch {
    int32_t n_images;      /* N */
    int32_t n_priors;      /* P of the predictions; ignored without predictions */
    int32_t n_columns;     /* C: K foreground classes and the background first */
    bx_tensor loc;         /* (N,P,4) encoded offsets */
    bx_tensor conf;        /* (N,P,C) logits */
    const float *boxes;    /* (G,4) x1 y1 x2 y2, in the priors' units */
    const int64_t *labels; /* (G) 0 .. K-1 */
    const int32_t *first;  /* (N+1) objects of image i are [first[i], first[i+1]) */
} bx_batch;

/* ---- plan: criterion + priors + dims, validated ------------------------------------------------------------------ */

#define BX_MAX_COLUMNS 16384
#define BX_BLOCK       4096 /* priors per block; a unit of work is (image, block) */

/* Plain data; the criterion and the priors must outlive it. */
typedef struct bx_plan {
    const bx_criterion *criterion;
    const bx_priors *priors;
    int32_t n_images, n_priors, n_columns, n_classes, n_objects; /* N P C K G */
    int32_t n_blocks;                                            /* B */
    bool with_predictions;
    size_t work_bytes; /* memory a job needs, 64-byte aligned */
    double cost_us;    /* a rough estimate of the work on one core */
} bx_plan;

/* Check every dimension and every annotation of `batch` against the criterion and the priors, and size the work.
 * Predictions are not read here. Errors: BX_SHAPE, BX_INVALID with a path into the annotations. */
BX_MUST_USE bx_status bx_plan_init(bx_plan *plan, const bx_criterion *criterion, const bx_priors *priors,
                                   const bx_batch *batch, bx_error *error);

/* ---- job: one batch being computed ------------------------------------------------------------------------------- */

/* What is known of one prior of one image, after the assign, mine and positives stages. */
enum {
    BX_POSITIVE = 1,      /* has a foreground class */
    BX_FORCED = 2,        /* positive only because it is an object's best prior */
    BX_HARD_NEGATIVE = 4, /* mined */
    BX_CORRECT = 8,       /* positive, and its largest column is its class */
};

/* Unweighted sums of one group of priors. */
typedef struct bx_sums {
    double loc, conf_positive, conf_negative;
} bx_sums;

typedef struct bx_image_row {
    bx_sums sums;
    int32_t objects, positives, negatives, hard_negatives, forced, collided, unmatched_objects;
} bx_image_row;

typedef struct bx_class_row {
    bx_sums sums;
    int64_t objects, positives, correct;
} bx_class_row;

typedef struct bx_level_row {
    bx_sums sums;
    int64_t positives, hard_negatives;
} bx_level_row;

typedef struct bx_object_row {
    float best_iou;
    int32_t best_prior; /* lowest index on ties; 0 when best_iou is 0 */
    int32_t positives;
    bool forced, collided;
} bx_object_row;

/* Predictions that are not finite, per block. */
typedef struct bx_bad {
    int32_t conf, loc;             /* how many */
    int32_t first_conf, first_loc; /* the first prior with one; valid when the count is not 0 */
} bx_bad;

/* Arrays live in the workspace. Different (image, block) units may run in different threads at the same time; the
 * image's finish must happen after all its blocks, the batch's after all images (the caller orders them). */
typedef struct bx_job {
    const bx_plan *plan;
    const bx_batch *batch;
    const atomic_bool *cancel; /* NULL, or: once true, units return early and the results mean nothing */
    float *overlap;            /* (N,P) best IoU of each prior */
    int32_t *owner;            /* (N,P) image-local object of that IoU, -1 none; after assign, of every positive */
    float *score;              /* (N,P) cross-entropy: of the background, and of its own class for a positive */
    uint8_t *state;            /* (N,P) BX_POSITIVE | ... */
    float *block_iou;          /* (B,G) best IoU of each object within each block */
    int32_t *block_prior;      /* (B,G) and its prior */
    bx_bad *bad;               /* (N,B) */
    bx_image_row *images;      /* (N) */
    bx_class_row *classes;     /* (N,K) */
    bx_level_row *levels;      /* (N,L) */
    bx_object_row *objects;    /* (G) */
} bx_job;

/* Lay a job out in `work` (plan->work_bytes, 64-byte aligned, contents arbitrary). */
void bx_job_init(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work);
static inline bool bx_job_cancelled(const bx_job *job) {
    return job->cancel && atomic_load_explicit(job->cancel, memory_order_relaxed);
}

/* ---- backend: where the work runs -------------------------------------------------------------------------------- */

/* A context belongs to one thread at a time: its scratch memory and its choice of kernels. */
typedef struct bx_context bx_context;

/* Kernel levels, slowest first; each gives the same bits. Returns NULL past the end; levels this CPU cannot run are
 * not listed. */
const char *bx_level_name(size_t i);

/* Open a context on the named backend. `level` NULL or "auto" is the best level of this CPU; otherwise a name from
 * bx_level_name. Errors: BX_INVALID for names, BX_DEVICE when it cannot run here, BX_NOMEM. */
BX_MUST_USE bx_status bx_context_open(bx_context **context, const char *backend, const char *level, bx_error *error);
void bx_context_close(bx_context *context);
const char *bx_context_level(const bx_context *context);

/* Everything of priors [block * BX_BLOCK, ...) of one image that does not depend on other blocks; reads their conf
 * rows only. */
void bx_run_block(bx_context *context, bx_job *job, int32_t image, int32_t block);
/* The rest of one image, once all its blocks have run; reads its loc rows, and the conf rows of positives again. */
void bx_run_image(bx_context *context, bx_job *job, int32_t image);

/* ---- stages, one by one: each over a range of an image's priors -------------------------------------------------- */

/* bx_run_block is begin, match, score; bx_run_image is check, assign, mine, positives, reduce. The ranges of match,
 * score and check lie within one block; all ranges come in ascending order.
 *   match      each prior's best object and each object's best prior
 *   score      the cross-entropy of the background, for every prior
 *   check      counts localization predictions that are not finite
 *   assign     thresholds and forced matches -> positives
 *   mine       hard negatives
 *   positives  the cross-entropy of each positive's own class
 *   reduce     sums by image, class and level; localization of positives */
void bx_stage_begin(bx_job *job, int32_t image, int32_t block);
void bx_stage_match(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_score(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_check(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_assign(bx_job *job, int32_t image);
void bx_stage_mine(bx_context *context, bx_job *job, int32_t image);
void bx_stage_positives(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_reduce(bx_job *job, int32_t image, int32_t first, int32_t count);

/* ---- result ------------------------------------------------------------------------------------------------------ */

typedef struct bx_loss {
    double total, loc, conf, conf_positive, conf_negative;
} bx_loss;

typedef struct bx_result {
    const bx_job *job;
    bx_loss loss; /* weighted, normalised; total = loc + conf, conf = conf_positive + conf_negative */
    bx_sums sums; /* before weights and normalisers */
    bx_sums normalizer;
    bool no_positives;
    int64_t positives, negatives, hard_negatives, forced, collided, unmatched_objects, objects_without_overlap;
    double best_iou_min, best_iou_mean, best_iou_max; /* over objects; valid when G > 0 */
    int64_t best_iou_histogram[10];
    int32_t positives_per_object_min, positives_per_object_max;
    double positives_per_object_mean;
} bx_result;

/* Fold the images in index order. Fails with BX_NONFINITE when a prediction was not finite (path
 * "predictions.conf[image][prior]"), or when finite predictions lie so far apart that a loss is beyond float32. The job
 * must outlive the result. */
BX_MUST_USE bx_status bx_finish(bx_result *result, const bx_job *job, bx_error *error);

/* The share of a group of priors in the batch's loss. */
bx_loss bx_result_share(const bx_result *result, bx_sums sums);
/* Class k of 0..K-1 over all images. */
bx_class_row bx_result_class(const bx_result *result, int32_t k);
bx_level_row bx_result_level(const bx_result *result, int32_t level);
/* Encoded regression target of a positive prior, in double; zeros for any other prior. */
void bx_result_target(const bx_result *result, int32_t image, int32_t prior, double target[4]);

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* The candidate nearest to `name` by edit distance, or NULL when none is near. `at(i)` lists candidates until NULL. */
const char *bx_nearest(const char *name, const char *(*at)(size_t i));

#ifdef __cplusplus
}
#endif
#endif
