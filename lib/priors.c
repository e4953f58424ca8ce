/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prior boxes: the built-in sets, caller-given sets, and the columns that matching reads.
 *
 * Generators compute in double and store float32, as the originals do; then cx, cy, w and h are clamped to [0, 1].
 * Checksums of every set are in tests/unit/test_priors.c.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAX_LEVELS 8
#define MAX_RATIOS 6

/* One level of a generator: `map` x `map` cells with centres (index + 0.5) / divisor, and per cell a square of side
 * `size`, one of side `extra`, and a pair or a single box per ratio. */
typedef struct level_recipe {
    const char *name;
    int map;
    double divisor;
    double size, extra;
    int n_ratios;
    double ratios[MAX_RATIOS];
} level_recipe;

typedef struct recipe {
    const char *name, *text;
    int n_levels;
    bool pairs; /* squares first, then each ratio a and 1/a (ssd.pytorch); else ratios in order, extra last */
    level_recipe levels[MAX_LEVELS];
} recipe;

#define SSD300_LEVEL(name, map, step, min, max, n, ...)                                                                \
    {                                                                                                                  \
        name, map, 300.0 / (step), (min) / 300.0, (max) / 300.0, n, {                                                  \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    }
/* extra is the next scale here; the square root of the product is taken when the boxes are made */

static const recipe recipes[] = {
    {"ssd300",
     "SSD300 with the VOC sizes of ssd.pytorch and pytorch_advanced",
     6,
     true,
     {SSD300_LEVEL("38x38", 38, 8, 30, 60, 1, 2), SSD300_LEVEL("19x19", 19, 16, 60, 111, 2, 2, 3),
      SSD300_LEVEL("10x10", 10, 32, 111, 162, 2, 2, 3), SSD300_LEVEL("5x5", 5, 64, 162, 213, 2, 2, 3),
      SSD300_LEVEL("3x3", 3, 100, 213, 264, 1, 2), SSD300_LEVEL("1x1", 1, 300, 264, 315, 1, 2)}},
    {"ssd300-coco",
     "SSD300 with the COCO sizes of ssd.pytorch",
     6,
     true,
     {SSD300_LEVEL("38x38", 38, 8, 21, 45, 1, 2), SSD300_LEVEL("19x19", 19, 16, 45, 99, 2, 2, 3),
      SSD300_LEVEL("10x10", 10, 32, 99, 153, 2, 2, 3), SSD300_LEVEL("5x5", 5, 64, 153, 207, 2, 2, 3),
      SSD300_LEVEL("3x3", 3, 100, 207, 261, 1, 2), SSD300_LEVEL("1x1", 1, 300, 261, 315, 1, 2)}},
    {"ssd300-efficientnet",
     "EfficientNet-b0 at 300x300, six maps, in the PyTorch detection tutorial's form",
     6,
     false,
     {{"mid", 18, 18, .2, .2, 5, {1, 2, 3, .5, .333}},
      {"end", 9, 9, .2, .375, 5, {1, 2, 3, .5, .333}},
      {"a", 9, 9, .375, .55, 5, {1, 2, 3, .5, .333}},
      {"b", 5, 5, .55, .725, 5, {1, 2, 3, .5, .333}},
      {"c", 3, 3, .725, .9, 3, {1, 2, .5}},
      {"d", 1, 1, .9, 0, 3, {1, 2, .5}}}},
};
enum { N_RECIPES = sizeof recipes / sizeof *recipes };

const char *bx_priors_name(size_t i) {
    return i < N_RECIPES ? recipes[i].name : NULL;
}

static int boxes_per_cell(const recipe *r, const level_recipe *level) {
    return r->pairs ? 2 + 2 * level->n_ratios : level->n_ratios + 1;
}

static float clamped(double x) {
    float f = (float)x;
    return f < 0 ? 0 : f > 1 ? 1 : f;
}

static float *put_box(float *out, double cx, double cy, double w, double h) {
    out[0] = clamped(cx);
    out[1] = clamped(cy);
    out[2] = clamped(w);
    out[3] = clamped(h);
    return out + 4;
}

static float *put_cell(float *out, const recipe *r, const level_recipe *level, double cx, double cy) {
    double s = level->size;
    double extra = level->extra > 0 ? sqrt(s * level->extra) : 1.0;
    if (r->pairs) {
        out = put_box(out, cx, cy, s, s);
        out = put_box(out, cx, cy, extra, extra);
    }
    for (int i = 0; i < level->n_ratios; i++) {
        double root = sqrt(level->ratios[i]);
        out = put_box(out, cx, cy, s * root, s / root);
        if (r->pairs) {
            out = put_box(out, cx, cy, s / root, s * root);
        }
    }
    return r->pairs ? out : put_box(out, cx, cy, extra, extra);
}

/* One allocation: the struct, its levels, then the columns. */
static size_t layout(int32_t n, int32_t n_levels, size_t at[9]) {
    size_t runs = ((size_t)n + BX_CULL - 1) / BX_CULL;
    const size_t parts[9] = {sizeof(bx_priors), (size_t)n_levels * sizeof(bx_level),
                             (size_t)n * 16,    (size_t)n * 4,
                             (size_t)n * 4,     (size_t)n * 4,
                             (size_t)n * 4,     (size_t)n * 4,
                             runs * 16};
    size_t bytes = 0;
    for (int i = 0; i < 9; i++) {
        at[i] = bytes;
        bytes += bx_round_up(parts[i]);
    }
    return bytes;
}

size_t bx_priors_bytes(int32_t n, int32_t n_levels) {
    size_t at[9];
    return layout(n, n_levels, at);
}

/* NULL when out of memory. The caller fills levels and boxes, then calls derive_columns. */
static bx_priors *allocate(int32_t n, int32_t n_levels) {
    size_t at[9];
    size_t bytes = layout(n, n_levels, at);
    char *block = aligned_alloc(BX_ALIGN, bytes);
    if (!block) {
        return NULL;
    }
    bx_priors *p = (bx_priors *)(void *)block;
    memset(p, 0, sizeof *p);
    p->n = n;
    p->n_levels = n_levels;
    p->levels = (const bx_level *)(void *)(block + at[1]);
    p->boxes = (const float *)(void *)(block + at[2]);
    p->x1 = (const float *)(void *)(block + at[3]);
    p->y1 = (const float *)(void *)(block + at[4]);
    p->x2 = (const float *)(void *)(block + at[5]);
    p->y2 = (const float *)(void *)(block + at[6]);
    p->area = (const float *)(void *)(block + at[7]);
    p->extent = (const float *)(void *)(block + at[8]);
    return p;
}

/* Corners and areas in the origins' float32 order of operations, and the extents of the culling runs. Returns the
 * first prior whose area is not positive and finite, or -1. */
static int32_t derive_columns(bx_priors *p) {
    float *x1 = (float *)p->x1, *y1 = (float *)p->y1, *x2 = (float *)p->x2, *y2 = (float *)p->y2;
    float *area = (float *)p->area, *extent = (float *)p->extent;
    for (int32_t i = 0; i < p->n; i++) {
        const float *box = p->boxes + 4 * (size_t)i;
        x1[i] = box[0] - box[2] / 2;
        y1[i] = box[1] - box[3] / 2;
        x2[i] = box[0] + box[2] / 2;
        y2[i] = box[1] + box[3] / 2;
        area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
        if (!(box[2] > 0 && box[3] > 0 && area[i] > 0 && isfinite(area[i]))) {
            return i;
        }
        float *around = extent + 4 * (size_t)(i / BX_CULL);
        if (i % BX_CULL == 0) {
            around[0] = x1[i], around[1] = y1[i], around[2] = x2[i], around[3] = y2[i];
        }
        around[0] = fminf(around[0], x1[i]);
        around[1] = fminf(around[1], y1[i]);
        around[2] = fmaxf(around[2], x2[i]);
        around[3] = fmaxf(around[3], y2[i]);
    }
    return -1;
}

bx_status bx_priors_new(bx_priors **priors, const float *boxes, int32_t n, bx_error *error) {
    if (n < 1 || n > BX_MAX_PRIORS) {
        bx_fail(error, BX_SHAPE, "shape", "%d priors; between 1 and %d are possible", (int)n, BX_MAX_PRIORS);
        bx_at(error, "priors");
        return BX_SHAPE;
    }
    bx_priors *p = allocate(n, 1);
    if (!p) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for %d priors", (int)n);
    }
    snprintf(p->name, sizeof p->name, "inline");
    *(bx_level *)p->levels = (bx_level){"all", 0, n};
    memcpy((float *)p->boxes, boxes, (size_t)n * 16);
    int32_t bad = derive_columns(p);
    if (bad >= 0) {
        const float *box = boxes + 4 * (size_t)bad;
        bx_fail(error, BX_INVALID, "prior_degenerate",
                "prior %d is [cx %g, cy %g, w %g, h %g]: width, height and float32 area must be positive and finite",
                (int)bad, (double)box[0], (double)box[1], (double)box[2], (double)box[3]);
        bx_at(error, "priors[%d]", (int)bad);
        bx_priors_free(p);
        return BX_INVALID;
    }
    p->relative = true;
    for (int32_t i = 0; i < n; i++) {
        p->relative &= p->x1[i] >= -1 && p->y1[i] >= -1 && p->x2[i] <= 2 && p->y2[i] <= 2;
    }
    *priors = p;
    return BX_OK;
}

bx_status bx_priors_builtin(bx_priors **priors, const char *name, bx_error *error) {
    const recipe *r = NULL;
    for (size_t i = 0; i < N_RECIPES; i++) {
        r = strcmp(name, recipes[i].name) ? r : &recipes[i];
    }
    if (!r) {
        const char *near = bx_nearest(name, bx_priors_name);
        bx_fail(error, BX_INVALID, "unknown_priors", "there is no prior set \"%.64s\"%s%s%s", name,
                near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        bx_at(error, "priors");
        return BX_INVALID;
    }
    int32_t n = 0;
    for (int l = 0; l < r->n_levels; l++) {
        n += r->levels[l].map * r->levels[l].map * boxes_per_cell(r, &r->levels[l]);
    }
    bx_priors *p = allocate(n, r->n_levels);
    if (!p) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for %d priors", (int)n);
    }
    snprintf(p->name, sizeof p->name, "%s", r->name);
    snprintf(p->text, sizeof p->text, "%s", r->text);
    p->relative = true;
    float *out = (float *)p->boxes;
    int32_t first = 0;
    for (int l = 0; l < r->n_levels; l++) {
        const level_recipe *level = &r->levels[l];
        for (int cell = 0; cell < level->map * level->map; cell++) {
            double cx = (cell % level->map + 0.5) / level->divisor, cy = (cell / level->map + 0.5) / level->divisor;
            out = put_cell(out, r, level, cx, cy);
        }
        int32_t count = level->map * level->map * boxes_per_cell(r, level);
        bx_level *to = (bx_level *)p->levels + l;
        snprintf(to->name, sizeof to->name, "%s", level->name);
        to->first = first;
        to->count = count;
        first += count;
    }
    if (derive_columns(p) >= 0) {
        bx_priors_free(p);
        return bx_fail(error, BX_INTERNAL, "internal", "prior set %s has a degenerate box", name);
    }
    *priors = p;
    return BX_OK;
}

void bx_priors_free(bx_priors *priors) {
    free(priors);
}
