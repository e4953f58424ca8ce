/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boxloss: matches annotations to prior boxes, computes detection losses and explains the assignment. This is what goes
 * in, what comes out and the job in between; compute.h has what computes one, on the cpu or a GPU.
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

#ifdef __cplusplus
#include <atomic>
using std::atomic_bool;
using std::atomic_int;
using std::atomic_load_explicit;
using std::memory_order_relaxed;
#else
#include <stdatomic.h>
#endif
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

#define BX_CULL       64      /* priors per culling run */
#define BX_MAX_PRIORS 4194304 /* per image */

/* An immutable set of prior boxes, shared by reference between any number of threads. One allocation. A set without
 * boxes says how many priors there are and nothing else: its columns are NULL. */
typedef struct bx_priors {
    char name[64];                        /* "inline" when the caller gave the boxes; empty without boxes */
    char text[96];                        /* where a built-in set comes from; empty otherwise */
    int32_t n;                            /* P */
    int32_t n_levels;                     /* L, at least 1 */
    bool relative;                        /* coordinates are shares of the image, not pixels */
    const struct bx_generator *generator; /* what made the boxes; NULL: the caller gave them, or there are none */
    const bx_level *levels;               /* (L) */
    const float *boxes;                   /* (P,4) cx cy w h */
    const float *x1, *y1, *x2, *y2;       /* (P) corners, c -/+ w/2 in float32 */
    const float *area;                    /* (P) (x2-x1)*(y2-y1) in float32 */
    const float *size;                    /* (P) w*h in float32 */
    const float *extent;                  /* (6,ceil(P/BX_CULL)) x1 y1 x2 y2 around each run of BX_CULL priors, and
                                             their least and greatest area */
    atomic_int references;
} bx_priors;

/* A set of `n` caller-given boxes (n,4) cx cy w h, float32 at any alignment, copied; NULL: a set without boxes. Refuses
 * boxes that are not finite or of which a float32 area is not positive and finite (path "priors[i]"). The caller holds
 * the one reference. */
BX_MUST_USE bx_status bx_priors_new(bx_priors **priors, const void *boxes, int32_t n, bx_error *error);
/* A built-in set by name; retinanet-WxH and grid-WxH are made for any image size. The caller holds the one reference.
 * Errors: BX_INVALID (unknown names, with the nearest known one in the text; sizes out of range), BX_SHAPE (too many
 * priors), BX_NOMEM. */
BX_MUST_USE bx_status bx_priors_builtin(bx_priors **priors, const char *name, bx_error *error);
/* Name a set that nobody else holds yet; 1 to 63 bytes, or BX_INVALID "invalid_name". */
BX_MUST_USE bx_status bx_priors_rename(bx_priors *priors, const char *name, bx_error *error);
/* One more reference to the same set; any thread. */
const bx_priors *bx_priors_ref(const bx_priors *priors);
/* Drop a reference; the last one frees. NULL is accepted; any thread. */
void bx_priors_free(const bx_priors *priors);
/* The i-th built-in name, with one example for each pattern; NULL past the end. */
const char *bx_priors_name(size_t i);
/* Whether `name` is built in, or has the form of a pattern that is. */
bool bx_priors_is_builtin(const char *name);
/* Heap bytes of a set of n priors, at most. */
size_t bx_priors_bytes(int32_t n, int32_t n_levels);

/* ---- generators: recipes of prior sets --------------------------------------------------------------------------- */

#define BX_MAX_LEVELS 16    /* of one generator */
#define BX_MAX_RATIOS 16    /* and scales, of one level */
#define BX_MAX_SIDE   16384 /* of images, maps and strides */

/* Kinds, with their wire names:
 *   ssd         ssd.pytorch: squares of min and sqrt(min * max), then each ratio a and 1/a; centres (j+.5) * step
 *   ssd-scales  the PyTorch detection tutorial by sgrvinod: a box per ratio, and the geometric mean with the next
 *               level's scale (1 on the last); centres (j+.5) / map
 *   retinanet   keras-io: ratios, each with all scales, of the area size^2; centres (j+.5) * stride
 *   grid        the Keras SSD tutorial: whole numbers, one scale per stride; centres stride/2 + stride * j
 * The first two make shares of the image, the others pixels. */
#define BX_GENERATOR_ROWS(X)                                                                                           \
    X(SSD, "ssd")                                                                                                      \
    X(SSD_SCALES, "ssd-scales")                                                                                        \
    X(RETINANET, "retinanet")                                                                                          \
    X(GRID, "grid")

typedef enum bx_generator_kind {
#define BX_ROW(id, name) BX_GENERATOR_##id,
    BX_GENERATOR_ROWS(BX_ROW)
#undef BX_ROW
        BX_N_GENERATORS
} bx_generator_kind;

typedef struct bx_numbers {
    int32_t n;
    double at[BX_MAX_RATIOS];
} bx_numbers;

/* A recipe: plain data. A kind reads the members that bx_generator_parameter lists for it. */
typedef struct bx_generator {
    bx_generator_kind kind;
    int32_t n_levels;                       /* L */
    int32_t image_size[2];                  /* width, height */
    int32_t feature_maps[BX_MAX_LEVELS][2]; /* (L) columns, rows; the other kinds divide the image by the stride */
    int32_t strides[BX_MAX_LEVELS];         /* (L) pixels from cell to cell */
    double steps[BX_MAX_LEVELS];            /* (L) the same of ssd, where it need not be whole */
    double sizes[BX_MAX_LEVELS];            /* (L) sides of the squares: pixels, with ssd-scales shares */
    double max_sizes[BX_MAX_LEVELS];        /* (L) */
    bx_numbers level_ratios[BX_MAX_LEVELS]; /* (L) width / height */
    bx_numbers ratios, scales;              /* of every level */
    bool clip;                              /* cx, cy, w and h are clamped to [0,1] */
    bool extra_last;                        /* the geometric mean follows all ratios, not the first */
    bool by_cell;                           /* row, column, ratio; not ratio, row, column */
    char level_names[BX_MAX_LEVELS][16];    /* (L) empty: made of the map or the stride */
} bx_generator;

/* How a parameter is held in bx_generator, and so how it is written. */
typedef enum bx_form {
    BX_FORM_SIZE,    /* int32_t[2] width, height */
    BX_FORM_MAPS,    /* int32_t[L][2] columns, rows */
    BX_FORM_STRIDES, /* int32_t[L] */
    BX_FORM_SIZES,   /* double[L] */
    BX_FORM_RATIOS,  /* bx_numbers[L] */
    BX_FORM_NAMES,   /* char[L][16]; may be left out */
    BX_FORM_NUMBERS, /* bx_numbers */
    BX_FORM_FLAG,    /* bool */
    BX_FORM_WORD,    /* bool, written as one of two words */
} bx_form;

typedef struct bx_parameter {
    const char *name;
    bx_form form;
    size_t offset;        /* in bx_generator */
    const char *words[2]; /* of false and true */
} bx_parameter;

/* The wire name of kind `i`, NULL past the end. */
const char *bx_generator_name(size_t i);
/* The i-th parameter of a kind, NULL past the end. The first of a kind with an entry per level decides L. */
const bx_parameter *bx_generator_parameter(bx_generator_kind kind, size_t i);
/* The recipe of the first built-in set of that kind. */
const bx_generator *bx_generator_default(bx_generator_kind kind);
/* Check every parameter; *n is the number of priors it makes. Errors: BX_INVALID "priors_range", path
 * "priors.<parameter>[i]"; BX_SHAPE when there would be more than BX_MAX_PRIORS. */
BX_MUST_USE bx_status bx_generator_check(const bx_generator *generator, int32_t *n, bx_error *error);
/* The generator of a built-in set. Errors: those of bx_priors_builtin for its name. */
BX_MUST_USE bx_status bx_generator_builtin(bx_generator *generator, const char *name, bx_error *error);
/* Make the boxes (P,4) and levels (L) of a generator that bx_generator_check has accepted. */
void bx_generator_fill(const bx_generator *generator, float *boxes, bx_level *levels);
/* The set a generator makes, named "inline". The caller holds the one reference. Errors: those of bx_generator_check,
 * BX_INVALID "prior_degenerate", BX_NOMEM. */
BX_MUST_USE bx_status bx_priors_generate(bx_priors **priors, const bx_generator *generator, bx_error *error);

/* ---- criterion: one choice per stage ----------------------------------------------------------------------------- */

/* The rows of each stage's menu, and the presets, are in loss.def. */
#define BX_FORCE(id, name) BX_FORCE_##id,
typedef enum bx_force {
#include "loss.def"
} bx_force;
#define BX_IOU(id, name) BX_IOU_##id,
typedef enum bx_iou {
#include "loss.def"
} bx_iou;
#define BX_CLASSIFICATION(id, name, background, skeleton, formula) BX_CLASSIFICATION_##id,
typedef enum bx_classification_kind {
#include "loss.def"
} bx_classification_kind;
#define BX_BACKGROUND(id, name) BX_BACKGROUND_##id,
typedef enum bx_background {
#include "loss.def"
} bx_background;
#define BX_MINING(id, name) BX_MINING_##id,
typedef enum bx_mining_kind {
#include "loss.def"
} bx_mining_kind;
#define BX_SCOPE(id, name) BX_SCOPE_##id,
typedef enum bx_scope {
#include "loss.def"
} bx_scope;
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula) BX_LOCALIZATION_##id,
typedef enum bx_localization_kind {
#include "loss.def"
} bx_localization_kind;
#define BX_REDUCTION(id, name) BX_REDUCTION_##id,
typedef enum bx_reduction {
#include "loss.def"
} bx_reduction;
#define BX_NORMALIZER(id, name) BX_NORMALIZER_##id,
typedef enum bx_normalizer_kind {
#include "loss.def"
} bx_normalizer_kind;

typedef enum bx_menu {
    BX_MENU_FORCE,
    BX_MENU_IOU,
    BX_MENU_CLASSIFICATION,
    BX_MENU_BACKGROUND,
    BX_MENU_MINING,
    BX_MENU_SCOPE,
    BX_MENU_LOCALIZATION,
    BX_MENU_REDUCTION,
    BX_MENU_NORMALIZER,
} bx_menu;

/* The wire name of choice `i` (an enumerator's value); NULL past the end. */
const char *bx_menu_name(bx_menu menu, size_t i);

typedef struct bx_matcher {
    float positive_iou; /* (0,1]: a prior is positive when its best IoU reaches this */
    float negative_iou; /* background below this, ignored between; negative: the same as positive_iou */
    bx_force force;     /* who keeps a prior that is the best of several objects */
    bx_iou iou;         /* the origin's arithmetic, and with it the native form of boxes */
    float ignore_iof;   /* (0,1]: a background prior is ignored when this share of it lies in an ignored object;
                           negative: when its IoU with one reaches positive_iou */
} bx_matcher;

typedef struct bx_coder {
    double variances[4]; /* divisors of the encoded offsets: x y w h */
} bx_coder;

typedef struct bx_classification {
    bx_classification_kind kind;
    bx_background background; /* where its column is */
    double alpha, gamma;      /* sigmoid_focal */
    double label_smoothing;   /* [0,1] */
    const float *alphas;      /* (n_alphas = K) instead of alpha; NULL: none */
    int32_t n_alphas;
    const float *class_weights; /* (n_class_weights = C); NULL: all one */
    int32_t n_class_weights;
} bx_classification;

typedef struct bx_mining {
    bx_mining_kind kind;
    double ratio; /* mined negatives per positive */
    bx_scope scope;
    int64_t min_negatives; /* at least this many, where there are as many */
} bx_mining;

typedef struct bx_localization {
    bx_localization_kind kind;
    double beta;  /* smooth_l1: where the quadratic part ends; 0: none */
    double delta; /* huber, jump_l1: the same */
    bx_reduction reduction;
} bx_localization;

typedef struct bx_normalizer {
    bx_normalizer_kind kind;
    double value;
} bx_normalizer;

typedef struct bx_weights {
    double loc, conf;
} bx_weights;

/* A complete description of one loss. Immutable once shared. */
typedef struct bx_criterion {
    char name[64];   /* "inline" when the caller gave it as an object */
    char text[200];  /* one line: what it is and where it comes from */
    char priors[64]; /* the prior set used when the caller names none; empty: must be named */
    bx_matcher matcher;
    bx_coder coder;
    bx_classification classification;
    bx_mining mining;
    bx_localization localization;
    bx_normalizer normalizer;
    bx_weights weights;
} bx_criterion;

/* NULL when there is no such preset. Presets live for the process. */
const bx_criterion *bx_criterion_preset(const char *name);
/* The i-th preset, NULL past the end. */
const bx_criterion *bx_criterion_at(size_t i);
/* What a stage starts from when its kind is chosen. */
bx_classification bx_classification_default(bx_classification_kind kind);
bx_mining bx_mining_default(bx_mining_kind kind);
bx_localization bx_localization_default(bx_localization_kind kind);
bx_normalizer bx_normalizer_default(bx_normalizer_kind kind);
/* Which members a kind has. */
bool bx_classification_is_focal(bx_classification_kind kind);
bool bx_localization_has_beta(bx_localization_kind kind);
bool bx_localization_has_delta(bx_localization_kind kind);
bool bx_localization_needs_boxes(bx_localization_kind kind); /* the IoU losses: priors are needed to decode */
/* Check every range and combination. Errors: BX_INVALID "criterion_range" or "criterion_conflict" (the text names the
 * two members), path "criterion.<stage>.<member>". */
BX_MUST_USE bx_status bx_criterion_check(const bx_criterion *criterion, bx_error *error);
/* A copy with its lists in one allocation; NULL when out of memory. Free with bx_criterion_free. */
bx_criterion *bx_criterion_copy(const bx_criterion *criterion);
void bx_criterion_free(bx_criterion *criterion);

/* ---- batch: what the caller brings ------------------------------------------------------------------------------- */

/* What becomes of an object. */
enum { BX_OBJECT_USED, BX_OBJECT_IGNORED, BX_OBJECT_DROPPED };

/* All memory is the caller's and must outlive the job. Without predictions (conf.data NULL) only the assignment is
 * computed. With targets (target_classes.data not NULL) there are no annotations: G is 0 and `first` all zeros. */
typedef struct bx_batch {
    int32_t n_images;         /* N */
    int32_t n_priors;         /* P of the predictions or the targets; ignored without either */
    int32_t n_columns;        /* C: K foreground classes and, where the criterion has one, the background */
    bx_tensor loc;            /* (N,P,4) encoded offsets */
    bx_tensor conf;           /* (N,P,C) logits or probabilities */
    const float *boxes;       /* (G,4) in the priors' units and the native form of matcher.iou: corners x1 y1 x2 y2,
                                 sizes cx cy w h */
    const int64_t *labels;    /* (G) 0 .. K-1 */
    const uint8_t *use;       /* (G) BX_OBJECT_...; NULL: all are used */
    const int32_t *first;     /* (N+1) objects of image i are [first[i], first[i+1]) */
    bool streamed;            /* loc and conf are not in memory: their rows pass by once (bx_stream_...). Their data is
                                 not NULL and never followed */
    bool explained;           /* bx_result_prior_class, _object and bx_result_target will be asked: a device other than
                                 the cpu brings what they need back only then */
    bx_tensor target_classes; /* (N,P) integers: 0 .. K-1, -1 background, -2 ignored */
    bx_tensor target_loc;     /* (N,P,4) encoded offsets, F32; read where the class is not negative */
} bx_batch;

typedef enum bx_box_fault { BX_BOX_GOOD, BX_BOX_NOT_FINITE, BX_BOX_INVERTED, BX_BOX_DEGENERATE } bx_box_fault;

/* What is wrong with a box in the native form of `iou`: degenerate when its float32 area is not positive and finite. */
bx_box_fault bx_box_check(const float box[4], bx_iou iou);

/* ---- plan: criterion + priors + dims, validated ------------------------------------------------------------------ */

#define BX_MAX_COLUMNS 16384
#define BX_BLOCK       4096 /* priors per block; a unit of work is (image, block) */

typedef enum bx_gradients { BX_GRADIENTS_NONE, BX_GRADIENTS_SPARSE, BX_GRADIENTS_DENSE } bx_gradients;

/* Plain data; the criterion and the priors must outlive it. */
typedef struct bx_plan {
    const bx_criterion *criterion;
    const bx_priors *priors;
    bx_gradients gradients;
    int32_t n_images, n_priors, n_columns, n_classes, n_objects; /* N P C K G */
    int32_t n_blocks;                                            /* B */
    bool with_predictions, with_targets;
    bool mines_across; /* hard negatives are those of the whole batch */
    bool second_round; /* bx_run_rows must follow bx_run_batch */
    bool streamed;     /* as the batch is; without gradients, which need the predictions again */
    size_t work_bytes; /* memory a job needs, 64-byte aligned */
    double cost_us;    /* a rough estimate of the work on one core */
} bx_plan;

/* Classes of conf with `n_columns` columns: K. */
int32_t bx_criterion_classes(const bx_criterion *criterion, int32_t n_columns);

/* Check every dimension and every annotation or target of `batch` against the criterion and the priors, and size the
 * work. Predictions are not read here. Errors: BX_SHAPE, BX_INVALID with a path into the annotations or targets. */
BX_MUST_USE bx_status bx_plan_init(bx_plan *plan, const bx_criterion *criterion, const bx_priors *priors,
                                   const bx_batch *batch, bx_gradients gradients, bx_error *error);

/* ---- job: one batch being computed ------------------------------------------------------------------------------- */

/* What is known of one prior of one image, after the assign, mine and positives stages. */
enum {
    BX_POSITIVE = 1,      /* has a foreground class */
    BX_FORCED = 2,        /* positive only because it was forced on an object */
    BX_HARD_NEGATIVE = 4, /* mined */
    BX_CORRECT = 8,       /* positive, and its largest column is its class */
    BX_IGNORED = 16,      /* neither positive nor background */
    BX_COVERED = 32,      /* by an ignored object: until the assign stage has looked */
    BX_TAKEN = 64,        /* by a greedily forced object: within the assign stage */
};

/* Unweighted sums of one group of priors. */
typedef struct bx_sums {
    double loc, conf_positive, conf_negative;
} bx_sums;

/* Weighted and normalised; total = loc + conf, conf = conf_positive + conf_negative. */
typedef struct bx_loss {
    double total, loc, conf, conf_positive, conf_negative;
} bx_loss;

typedef struct bx_image_row {
    bx_sums sums;
    int32_t objects, positives, negatives, ignored, hard_negatives, forced, collided, unmatched_objects;
    int32_t too_far; /* 1 + the first prior whose target or gradient is beyond float32; 0: none */
    double mined;    /* the real number of negatives wanted: of this image, or in image 0 of the whole batch */
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

/* Predictions that cannot be used, per block. */
typedef struct bx_bad {
    int32_t conf, loc, range;                   /* how many: not finite, not finite, not a probability */
    int32_t first_conf, first_loc, first_range; /* the first prior with one; valid when the count is not 0 */
} bx_bad;

/* Arrays live in the workspace. Different (image, block) units may run in different threads at the same time; the
 * image's run must happen after all its blocks, the batch's after all images, the rows' after that (the caller orders
 * them). */
typedef struct bx_job {
    const bx_plan *plan;
    const bx_batch *batch;
    const atomic_bool *cancel; /* NULL, or: once true, units return early and the results mean nothing */
    float *overlap;         /* (N,P) best IoU of each prior; where it is too little to mean anything, less than that */
    int32_t *owner;         /* (N,P) image-local object of that IoU, -1 none; after assign, of every positive. With
                               targets: the class of every positive */
    float *score;           /* (N,P) classification loss as background; after positives, with the sign bit of what may
                               not be mined: minus the loss as its own class of a positive, -1 of what is ignored */
    uint8_t *state;         /* (N,P) BX_POSITIVE | ... */
    float *block_iou;       /* (B,G) best IoU of each object within each block */
    int32_t *block_prior;   /* (B,G) and its prior */
    bx_bad *bad;            /* (N,B) */
    bx_image_row *images;   /* (N) */
    bx_class_row *classes;  /* (N,K) */
    bx_level_row *levels;   /* (N,L) */
    bx_object_row *objects; /* (G) */
    float *offsets;         /* (N,P,4) predicted, of positives; NULL unless streamed */
    float *hard, *soft;     /* (C) factor of each column where it is the row's class and, in sigmoid rows, where not */
    bx_sums *normalizers;   /* (N) of each image's sums; all the same unless normalizer is image_positives */
    int32_t *heap;          /* (G) of greedy forcing */
    int64_t *listed;        /* (N+1) rows of the sparse gradient of image i are [listed[i], listed[i+1]) */
    /* placed by bx_job_place_gradients, between bx_run_batch and bx_run_rows */
    int32_t *grad_index; /* (M,2) image and prior, ascending; sparse only */
    float *grad_loc;     /* (M,4), dense (N,P,4) */
    float *grad_conf;    /* (M,C), dense (N,P,C) */
} bx_job;

/* Lay a job out in `work` (plan->work_bytes, 64-byte aligned, contents arbitrary). */
void bx_job_init(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work);
static inline bool bx_job_cancelled(const bx_job *job) {
    return job->cancel && atomic_load_explicit(job->cancel, memory_order_relaxed);
}

/* Rows of the gradients: M of the sparse one (after bx_run_batch), N x P of the dense one, else 0. */
int64_t bx_job_gradient_rows(const bx_job *job);
/* Memory for that many rows of the plan's gradients. */
size_t bx_gradient_bytes(const bx_plan *plan, int64_t n_rows);
/* Lay the gradients out in `memory` (bx_gradient_bytes, 64-byte aligned, contents arbitrary). */
void bx_job_place_gradients(bx_job *job, void *memory);

/* ---- result ------------------------------------------------------------------------------------------------------ */

typedef struct bx_result {
    const bx_job *job;
    bx_loss loss;
    bx_sums sums;         /* before weights and normalisers */
    bx_sums normalizer;   /* valid unless own_normalizers */
    bool own_normalizers; /* each image's sums are divided by its own: job->normalizers */
    bool no_positives;
    int64_t positives, negatives, ignored, hard_negatives;
    /* of annotations; all 0 with targets */
    int64_t objects, ignored_objects, dropped_boxes;
    int64_t forced, collided, unmatched_objects, objects_without_overlap;
    double best_iou_min, best_iou_mean, best_iou_max; /* over used objects; valid when objects > 0 */
    int64_t best_iou_histogram[10];
    int32_t positives_per_object_min, positives_per_object_max;
    double positives_per_object_mean;
} bx_result;

/* Fold the images in index order. Fails with BX_NONFINITE "loss_overflow" when the classification loss of a prior, a
 * target or a gradient of numbers that are finite is beyond float32. The job must outlive the result. */
BX_MUST_USE bx_status bx_finish(bx_result *result, const bx_job *job, bx_error *error);

/* The share of a group of one image's priors in the batch's loss. */
bx_loss bx_result_share(const bx_result *result, int32_t image, bx_sums sums);
/* Class k of 0..K-1 over all images, level l over all images, the background of the batch: counts, sums, and their
 * share of the loss. */
bx_class_row bx_result_class(const bx_result *result, int32_t k, bx_loss *share);
bx_level_row bx_result_level(const bx_result *result, int32_t level, bx_loss *share);
bx_sums bx_result_background(const bx_result *result, bx_loss *share);
/* The class of a prior: 0 .. K-1, -1 background, -2 ignored; and its image-local object, -1 when it has none. */
int32_t bx_result_prior_class(const bx_result *result, int32_t image, int32_t prior);
int32_t bx_result_prior_object(const bx_result *result, int32_t image, int32_t prior);
/* Encoded regression target of a positive prior, in double; zeros for any other prior. */
void bx_result_target(const bx_result *result, int32_t image, int32_t prior, double target[4]);

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* The candidate nearest to `name` by edit distance, or NULL when none is near. `at(i)` lists candidates until NULL. */
const char *bx_nearest(const char *name, const char *(*at)(size_t i));

#ifdef __cplusplus
}
#endif
#endif
