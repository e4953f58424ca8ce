/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the harness computes: memory between guards, random boxes, rows of logits or probabilities, and whole batches
 * with a criterion put together from the menus.
 */
#ifndef SCENE_H
#define SCENE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "real.h"
#include "../support/random.h"

enum { GUARD = 64, POISON = 0xa5 };

/* ---- random numbers and dimensions ------------------------------------------------------------------------------- */

static bool one_in(int32_t n) {
    return below(n) == 0;
}

static int32_t pick(const int32_t *from, size_t n) {
    return from[below((int32_t)n)];
}

#define PICK(...) pick((const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static int32_t pick_priors(void) {
    return PICK(1, 7, 8, 9, 31, 33, 64, 65, 127, 128, 129, 255, 257, 4095, 4096, 4097, 8732);
}

static int32_t pick_columns(void) {
    return PICK(1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 20, 21, 33, 63, 64, 65, 91, 256, 257, 300, 383, 384, 700);
}

/* ---- memory between guards --------------------------------------------------------------------------------------- */

/* `bytes` at `at`, poisoned, with GUARD bytes on both sides; `skew` moves `at` off its alignment of 64. */
typedef struct guarded {
    unsigned char *memory, *at;
    size_t bytes;
} guarded;

static void *checked(void *memory) {
    if (!memory) {
        fprintf(stderr, "harness: no memory\n");
        exit(2);
    }
    return memory;
}

static guarded guarded_new(size_t bytes, size_t skew) {
    size_t all = bx_round_up(bytes + 2 * GUARD + skew);
    guarded g = {checked(aligned_alloc(BX_ALIGN, all)), NULL, bytes};
    memset(g.memory, POISON, all);
    g.at = g.memory + GUARD + skew;
    return g;
}

/* Whether nothing was written outside; an int, so that several calls may be joined by & and none is skipped. */
static int guarded_free(guarded *g) {
    bool intact = true;
    for (size_t i = 0; i < GUARD; i++) {
        intact &= g->at[-1 - (ptrdiff_t)i] == POISON && g->at[g->bytes + i] == POISON;
    }
    free(g->memory);
    return intact;
}

/* ---- boxes ------------------------------------------------------------------------------------------------------- */

static void random_prior(float box[4]) {
    if (one_in(2)) { /* on a grid: ties and touching edges */
        const float grid[4] = {.05f * (float)below(21), .05f * (float)below(21), .05f * (float)(1 + below(12)),
                               .05f * (float)(1 + below(12))};
        memcpy(box, grid, 16);
    } else {
        const float free_box[4] = {uniform(0, 1), uniform(0, 1), uniform(.01f, .6f), uniform(.01f, .6f)};
        memcpy(box, free_box, 16);
    }
}

/* In the native form of iou. `scale` 1 gives relative coordinates, more gives pixels. */
static void random_object(const bx_priors *priors, float scale, bx_iou iou, float box[4]) {
    int32_t p = below(priors->n);
    const float own[4] = {priors->x1[p], priors->y1[p], priors->x2[p], priors->y2[p]};
    switch (below(6)) {
    case 0: /* a prior exactly */
        memcpy(box, own, 16);
        break;
    case 1: /* half of one */
        memcpy(box, own, 16);
        box[2] = own[0] + (own[2] - own[0]) / 2;
        break;
    case 2: /* it touches one from the right */
        memcpy(box, (float[4]){own[2], own[1], own[2] + scale * .1f, own[3]}, 16);
        break;
    case 3: /* nowhere near */
        memcpy(box, (float[4]){scale * -1, scale * -1, scale * -.9f, scale * -.9f}, 16);
        break;
    default: {
        float x = uniform(-.1f, .9f), y = uniform(-.1f, .9f);
        memcpy(box,
               (float[4]){scale * x, scale * y, scale * (x + uniform(.01f, .8f)), scale * (y + uniform(.01f, .8f))},
               16);
    }
    }
    if (scale > 2 && box[2] <= 2 && box[3] <= 2) { /* which may be taken for shares of the image */
        memcpy(box, (float[4]){scale * .2f, scale * .2f, scale * .5f, scale * .5f}, 16);
    }
    if (iou == BX_IOU_SIZES) {
        memcpy(box, (float[4]){(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]}, 16);
    }
    if (bx_box_check(box, iou) != BX_BOX_GOOD) {
        memcpy(box, (float[4]){scale * .2f, scale * .2f, scale * .5f, scale * .5f}, 16);
    }
}

static bx_priors *random_priors(int32_t n, float scale) {
    bx_priors *priors = NULL;
    bx_error error = {0};
    float *boxes = malloc((size_t)n * 16);
    bool identical = one_in(10), local = one_in(2); /* local: neighbours lie together, so that culling skips runs */
    for (int32_t i = 0; boxes && i < n; i++) {
        float *box = boxes + 4 * (size_t)i;
        if (i && (identical || one_in(4))) {
            memcpy(box, boxes + 4 * (size_t)(identical ? 0 : below(i)), 16);
            continue;
        }
        random_prior(box);
        if (local) {
            box[0] = (float)i / (float)n;
            box[2] = uniform(.01f, .1f);
        }
        box[0] = i || scale == 1 ? box[0] : .5f; /* where pixels cannot be taken for shares */
        for (int c = 0; c < 4; c++) {
            box[c] *= scale;
        }
    }
    if (!boxes || bx_priors_new(&priors, boxes, n, &error) != BX_OK) {
        fprintf(stderr, "harness: priors: %s\n", error.text);
        exit(2);
    }
    free(boxes);
    return priors;
}

/* Small built-in sets of several levels, in pixels of an image of LEVELS_SIDE. */
enum { LEVELS_SIDE = 32 };

static bx_priors *levelled_priors(void) {
    bx_priors *priors = NULL;
    if (bx_priors_builtin(&priors, one_in(2) ? "retinanet-32x32" : "grid-32x32", NULL) != BX_OK) {
        fprintf(stderr, "harness: no built-in priors\n");
        exit(2);
    }
    return priors;
}

/* ---- rows of conf ------------------------------------------------------------------------------------------------ */

/* Anything that may pass as a probability, above all the ends of the clip and of what is let in. */
static float random_probability(int kind) {
    static const float ends[] = {0, 1, -1e-3f, 1.001f, 1e-7f, 9.9999e-8f, .99999988f, .99999994f, -0.0f, 1e-45f};
    return kind < 3 ? ends[below(10)] : kind < 5 ? expf(uniform(-20, 0)) : uniform(0, 1);
}

/* One row of logits or probabilities; kinds cover what exp, log1p and log can meet. */
static void random_row(float *row, int32_t n_columns, bool probabilities) {
    int kind = below(9);
    int32_t top = below(n_columns);
    for (int32_t c = 0; c < n_columns; c++) {
        if (probabilities) {
            row[c] = random_probability(kind);
            continue;
        }
        switch (kind) {
        case 0: /* all equal */
            row[c] = 1.25f;
            break;
        case 1:
            row[c] = one_in(2) ? 88 : -88;
            break;
        case 2: /* denormals and both zeros */
            row[c] = one_in(4) ? (one_in(2) ? -0.0f : 0.0f) : bx_float((int32_t)(random_bits() & 0x807fffff));
            break;
        case 3: /* certain */
            row[c] = c == top ? 40 : uniform(-10, 10);
            break;
        case 4: /* a few values, so that the maximum repeats */
            row[c] = (float)below(3) - 1;
            break;
        case 5: /* beyond exp's cut, still finite after the subtraction */
            row[c] = uniform(-1e37f, 1e37f);
            break;
        default:
            row[c] = uniform(-9, 9);
        }
    }
}

/* ---- criteria ---------------------------------------------------------------------------------------------------- */

static double pick_number(const double *from, size_t n) {
    return from[below((int32_t)n)];
}

#define PICK_NUMBER(...)                                                                                               \
    pick_number((const double[]){__VA_ARGS__}, sizeof((const double[]){__VA_ARGS__}) / sizeof(double))

/* A random choice of a menu. */
static int pick_kind(bx_menu menu) {
    int32_t n = 0;
    while (bx_menu_name(menu, (size_t)n)) {
        n++;
    }
    return below(n);
}

static bx_classification random_classification(void) {
    bx_classification c = bx_classification_default((bx_classification_kind)pick_kind(BX_MENU_CLASSIFICATION));
    c.background = one_in(2) ? c.background : (bx_background)pick_kind(BX_MENU_BACKGROUND);
    c.alpha = PICK_NUMBER(.25, .25, 0, 1, .9);
    c.gamma = PICK_NUMBER(2, 2, 2, 0, 1, 1.5, 3, 100);
    c.label_smoothing = PICK_NUMBER(0, 0, 0, .1, 1);
    return c;
}

/* How rows of n_columns are scored under a random classification; its factors to hard and soft (n_columns). */
static inline bx_scoring random_scoring(int32_t n_columns, float *hard, float *soft) {
    bx_criterion criterion = *bx_criterion_at(0);
    bool weighted = one_in(3);
    do {
        criterion.classification = random_classification();
    } while (bx_criterion_check(&criterion, NULL) != BX_OK);
    const bx_classification *c = &criterion.classification;
    for (int32_t i = 0; i < n_columns; i++) {
        float weight = weighted ? uniform(0, 3) : 1, alpha = one_in(3) ? uniform(0, 1) : (float)c->alpha;
        hard[i] = bx_classification_is_focal(c->kind) ? weight * alpha : weight;
        soft[i] = weight * (1 - alpha);
    }
    return (bx_scoring){c->kind,
                        n_columns,
                        bx_background_column(&criterion, n_columns),
                        !weighted && c->label_smoothing == 0,
                        (float)c->gamma,
                        (float)c->label_smoothing,
                        hard,
                        soft};
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

typedef struct scene {
    bx_criterion criterion;
    bx_gradients gradients;
    bx_priors *priors;
    int32_t first[8];
    float *boxes, *class_weights, *alphas, *target_loc;
    int64_t *labels, *target_classes;
    uint8_t *use;
    guarded loc, conf;
    bx_batch batch;
    bx_plan plan;
    char text[400]; /* its dimensions and choices */
} scene;

/* Any combination that is accepted. */
static void random_criterion(scene *s, int32_t n_columns) {
    bx_criterion *c = &s->criterion;
    do {
        *c = *bx_criterion_at((size_t)below(4));
        if (one_in(8)) {
            continue; /* a preset */
        }
        float positive = (float)PICK_NUMBER(.5, .5, .35, .7, 1);
        c->matcher = (bx_matcher){positive, one_in(2) ? -1 : positive * (float)PICK_NUMBER(0, .5, .8, 1),
                                  (bx_force)pick_kind(BX_MENU_FORCE), (bx_iou)pick_kind(BX_MENU_IOU),
                                  one_in(2) ? -1 : (float)PICK_NUMBER(.1, .5, 1)};
        c->classification = random_classification();
        c->mining = (bx_mining){(bx_mining_kind)pick_kind(BX_MENU_MINING), PICK_NUMBER(3, 3, 0, .25, 1.5, 1e9),
                                (bx_scope)pick_kind(BX_MENU_SCOPE), PICK(0, 0, 5, 1000000)};
        c->localization = bx_localization_default((bx_localization_kind)pick_kind(BX_MENU_LOCALIZATION));
        c->localization.beta = PICK_NUMBER(1, 0, .11);
        c->localization.delta = PICK_NUMBER(1, .1, 15);
        c->localization.reduction = (bx_reduction)pick_kind(BX_MENU_REDUCTION);
        c->normalizer = (bx_normalizer){(bx_normalizer_kind)pick_kind(BX_MENU_NORMALIZER), PICK_NUMBER(1, 12.5)};
        c->weights = (bx_weights){PICK_NUMBER(1, 1, 0, 2.5), PICK_NUMBER(1, 1, 0, .3)};
        if (one_in(3)) {
            c->classification.class_weights = s->class_weights;
            c->classification.n_class_weights = n_columns;
        }
        if (bx_classification_is_focal(c->classification.kind) && one_in(3)) {
            c->classification.alphas = s->alphas;
            c->classification.n_alphas = n_columns;
        }
    } while (bx_criterion_check(c, NULL) != BX_OK || bx_criterion_classes(c, n_columns) < 1);
}

/* n floats in `dtype`, possibly at an odd address. */
static guarded encoded(const float *x, size_t n, bx_dtype dtype, size_t skew) {
    const size_t width = bx_dtype_bytes(dtype);
    guarded out = guarded_new(n * width, skew);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)bx_bits(x[i]);
        double d = (double)x[i] * (1 + 0x1p-30);
        uint16_t brain = (uint16_t)(bits >> 16);
        /* a half near enough: sign, exponent clamped to its range, the fraction's upper bits */
        int32_t exponent = (int32_t)(bits >> 23 & 255) - 112;
        exponent = exponent < 0 ? 0 : exponent > 30 ? 30 : exponent;
        uint16_t half = (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 1023));
        const void *from = dtype == BX_F64    ? (const void *)&d
                           : dtype == BX_BF16 ? (const void *)&brain
                           : dtype == BX_F16  ? (const void *)&half
                                              : (const void *)&x[i];
        memcpy(out.at + i * width, from, width);
    }
    return out;
}

/* Objects of all images, copies and identical ones among them; some are not used. */
static void random_annotations(scene *s, float scale) {
    const int32_t n = s->batch.n_images, k = bx_criterion_classes(&s->criterion, s->batch.n_columns);
    for (int32_t i = 0; i < n; i++) {
        const int32_t many = s->priors->n < 1000 && one_in(12) ? 100 + below(200) : 30;
        s->first[i + 1] = s->first[i] + (one_in(3) ? 0 : one_in(3) ? many : 1 + below(5));
    }
    const int32_t g = s->first[n];
    s->boxes = checked(malloc((size_t)g * 16 + 1));
    s->labels = checked(malloc((size_t)g * sizeof *s->labels + 1));
    s->use = checked(malloc((size_t)g + 1));
    const bool identical = one_in(6), some = one_in(2);
    for (int32_t i = 0; i < g; i++) {
        random_object(s->priors, scale, s->criterion.matcher.iou, s->boxes + 4 * (size_t)i);
        if (i && (identical || one_in(4))) {
            memcpy(s->boxes + 4 * (size_t)i, s->boxes + 4 * (size_t)(identical ? 0 : below(i)), 16);
        }
        s->labels[i] = below(k);
        s->use[i] = (uint8_t)(some && one_in(3) ? 1 + below(2) : BX_OBJECT_USED);
    }
    s->batch.boxes = s->boxes;
    s->batch.labels = s->labels;
    s->batch.use = some ? s->use : NULL;
}

static void random_targets(scene *s) {
    const size_t rows = (size_t)s->batch.n_images * (size_t)s->batch.n_priors;
    const int32_t k = bx_criterion_classes(&s->criterion, s->batch.n_columns), rare = PICK(1, 3, 50);
    s->target_classes = checked(malloc(rows * sizeof *s->target_classes));
    s->target_loc = checked(malloc(rows * 16));
    for (size_t i = 0; i < rows; i++) {
        s->target_classes[i] = one_in(rare) ? below(k) : one_in(4) ? -2 : -1;
        for (int c = 0; c < 4; c++) {
            s->target_loc[4 * i + (size_t)c] = s->target_classes[i] >= 0 ? uniform(-4, 4) : NAN;
        }
    }
    s->batch.target_classes = (bx_tensor){BX_I64, s->target_classes};
    s->batch.target_loc = (bx_tensor){BX_F32, s->target_loc};
}

static void random_predictions(scene *s, bx_dtype loc_type, size_t loc_skew, bx_dtype conf_type, size_t conf_skew) {
    const size_t rows = (size_t)s->batch.n_images * (size_t)s->batch.n_priors, columns = (size_t)s->batch.n_columns;
    const bool probabilities = s->criterion.classification.kind == BX_CLASSIFICATION_PROB_CE;
    float *x = checked(malloc(rows * (columns > 4 ? columns : 4) * sizeof *x));
    for (size_t i = 0; i < rows * 4; i++) {
        x[i] = uniform(-4, 4);
    }
    s->loc = encoded(x, rows * 4, loc_type, loc_skew);
    for (size_t i = 0; i < rows; i++) {
        if (i && one_in(4)) {
            memcpy(x + i * columns, x + (size_t)below((int32_t)i) * columns, columns * sizeof *x);
        } else {
            random_row(x + i * columns, (int32_t)columns, probabilities);
        }
    }
    s->conf = encoded(x, rows * columns, conf_type, conf_skew);
    free(x);
    s->batch.loc = (bx_tensor){loc_type, s->loc.at};
    s->batch.conf = (bx_tensor){conf_type, s->conf.at};
}

/* A random batch: N up to 3, P and C from the edges (P at most `most`, C small where P is large), objects that may be
 * none, or targets. */
static void scene_open(scene *s, int32_t most) {
    static const bx_dtype dtypes[] = {BX_F32, BX_F32, BX_F16, BX_BF16, BX_F64};
    const int32_t n = PICK(1, 2, 3);
    bx_priors *levelled = one_in(6) ? levelled_priors() : NULL;
    int32_t p = levelled ? levelled->n : pick_priors(), c = pick_columns();
    while (p > most) {
        p = pick_priors();
    }
    while ((int64_t)n * p * c > 400000) {
        c = pick_columns();
    }
    const float scale = levelled ? LEVELS_SIDE : one_in(5) ? 300 : 1;
    const bool targets = one_in(6);
    const bx_dtype loc_type = dtypes[below(5)], conf_type = dtypes[below(5)];
    const size_t loc_skew = one_in(2) ? 0 : (size_t)below(8), conf_skew = one_in(2) ? 0 : (size_t)below(8);
    memset(s, 0, sizeof *s);
    s->class_weights = checked(malloc(2 * (size_t)c * sizeof(float)));
    s->alphas = s->class_weights + c;
    for (int32_t i = 0; i < c; i++) {
        s->class_weights[i] = one_in(5) ? 0 : uniform(0, 3);
        s->alphas[i] = one_in(5) ? 1 : uniform(0, 1);
    }
    random_criterion(s, c);
    s->gradients = (bx_gradients)below(3);
    s->priors = levelled ? levelled : random_priors(p, scale);
    s->batch = (bx_batch){.n_images = n, .n_priors = p, .n_columns = c, .first = s->first};
    if (targets) {
        random_targets(s);
    } else {
        random_annotations(s, scale);
    }
    random_predictions(s, loc_type, loc_skew, conf_type, conf_skew);
    const bx_criterion *k = &s->criterion;
    snprintf(s->text, sizeof s->text,
             "N %d, P %d, L %d, C %d, G %d, loc %s+%zu, conf %s+%zu%s, force %s, iou %s, %s background %s gamma %g "
             "smoothing "
             "%g%s%s, "
             "mining %s %s, %s, by %s, gradients %d",
             n, p, s->priors->n_levels, c, s->first[n], bx_dtype_name(loc_type), loc_skew, bx_dtype_name(conf_type),
             conf_skew, targets ? ", targets" : "", bx_menu_name(BX_MENU_FORCE, k->matcher.force),
             bx_menu_name(BX_MENU_IOU, k->matcher.iou), bx_menu_name(BX_MENU_CLASSIFICATION, k->classification.kind),
             bx_menu_name(BX_MENU_BACKGROUND, k->classification.background), k->classification.gamma,
             k->classification.label_smoothing, k->classification.class_weights ? " weighted" : "",
             k->classification.alphas ? " alphas" : "", bx_menu_name(BX_MENU_MINING, k->mining.kind),
             bx_menu_name(BX_MENU_SCOPE, k->mining.scope), bx_menu_name(BX_MENU_LOCALIZATION, k->localization.kind),
             bx_menu_name(BX_MENU_NORMALIZER, k->normalizer.kind), (int)s->gradients);
}

static void scene_close(scene *s) {
    bx_priors_free(s->priors);
    free(s->boxes);
    free(s->labels);
    free(s->use);
    free(s->class_weights);
    free(s->target_classes);
    free(s->target_loc);
    free(s->loc.memory);
    free(s->conf.memory);
}

#endif
