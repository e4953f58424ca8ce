/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sets of prior boxes: their one allocation, the columns that matching reads, and who holds them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- memory ------------------------------------------------------------------------------------------------------ */

enum { STRUCT, GENERATOR, LEVELS, BOXES, X1, Y1, X2, Y2, AREA, SIZE, EXTENT, N_PARTS };

/* Where each part of the allocation begins; returns its bytes. A set without boxes ends after LEVELS. */
static size_t layout(int32_t n, int32_t n_levels, size_t at[N_PARTS]) {
    const size_t count = (size_t)n, runs = (size_t)bx_runs(n);
    const size_t bytes[N_PARTS] = {
        [STRUCT] = sizeof(bx_priors),
        [GENERATOR] = sizeof(bx_generator),
        [LEVELS] = (size_t)n_levels * sizeof(bx_level),
        [BOXES] = count * 16,
        [X1] = count * 4,
        [Y1] = count * 4,
        [X2] = count * 4,
        [Y2] = count * 4,
        [AREA] = count * 4,
        [SIZE] = count * 4,
        [EXTENT] = runs * 24,
    };
    size_t end = 0;
    for (int i = 0; i < N_PARTS; i++) {
        at[i] = end;
        end += bx_round_up(bytes[i]);
    }
    return end;
}

size_t bx_priors_bytes(int32_t n, int32_t n_levels) {
    size_t at[N_PARTS];
    return layout(n, n_levels, at);
}

/* A set to be filled: generator, levels, boxes, then derive_columns. */
static bx_status allocate(bx_priors **priors, int32_t n, int32_t n_levels, bool with_boxes, bx_error *error) {
    size_t at[N_PARTS];
    size_t bytes = layout(n, n_levels, at);
    char *block = aligned_alloc(BX_ALIGN, with_boxes ? bytes : at[BOXES]);
    if (!block) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for %d priors", (int)n);
    }
    bx_priors *p = (bx_priors *)(void *)block;
    memset(p, 0, sizeof *p);
    p->n = n;
    p->n_levels = n_levels;
    p->generator = (const bx_generator *)(void *)(block + at[GENERATOR]);
    p->levels = (const bx_level *)(void *)(block + at[LEVELS]);
    if (with_boxes) {
        const float **const columns[] = {&p->boxes, &p->x1, &p->y1, &p->x2, &p->y2, &p->area, &p->size, &p->extent};
        for (int i = BOXES; i <= EXTENT; i++) {
            *columns[i - BOXES] = (const float *)(void *)(block + at[i]);
        }
    }
    atomic_init(&p->references, 1);
    *priors = p;
    return BX_OK;
}

const bx_priors *bx_priors_ref(const bx_priors *priors) {
    atomic_fetch_add_explicit((atomic_int *)&priors->references, 1, memory_order_relaxed);
    return priors;
}

void bx_priors_free(const bx_priors *priors) {
    if (priors && atomic_fetch_sub_explicit((atomic_int *)&priors->references, 1, memory_order_acq_rel) == 1) {
        free((void *)priors);
    }
}

/* ---- columns ----------------------------------------------------------------------------------------------------- */

static bool usable(float area) {
    return area > 0 && area < INFINITY;
}

/* Corners and areas in the origins' float32 order of operations, and the extents of the culling runs. Returns the
 * first prior that cannot be matched, or -1. */
static int32_t derive_columns(bx_priors *p) {
    float *x1 = (float *)p->x1, *y1 = (float *)p->y1, *x2 = (float *)p->x2, *y2 = (float *)p->y2;
    float *area = (float *)p->area, *size = (float *)p->size, *extent = (float *)p->extent;
    const size_t runs = (size_t)bx_runs(p->n);
    for (int32_t first = 0; first < p->n; first += BX_CULL) {
        float left = INFINITY, top = INFINITY, right = -INFINITY, bottom = -INFINITY, least = INFINITY, most = 0;
        for (int32_t i = first; i < bx_run_end(first, p->n); i++) {
            const float *box = p->boxes + 4 * (size_t)i, cx = box[0], cy = box[1], w = box[2], h = box[3];
            const float l = cx - w / 2, t = cy - h / 2, r = cx + w / 2, b = cy + h / 2;
            const float of_corners = (r - l) * (b - t), of_sides = w * h;
            if (!(w > 0 && h > 0 && usable(of_corners) && usable(of_sides))) {
                return i;
            }
            x1[i] = l, y1[i] = t, x2[i] = r, y2[i] = b, area[i] = of_corners, size[i] = of_sides;
            left = l < left ? l : left;
            top = t < top ? t : top;
            right = r > right ? r : right;
            bottom = b > bottom ? b : bottom;
            least = of_corners < least ? of_corners : least;
            most = of_corners > most ? of_corners : most;
        }
        float *around = extent + first / BX_CULL;
        around[0] = left, around[runs] = top, around[2 * runs] = right, around[3 * runs] = bottom;
        around[4 * runs] = least, around[5 * runs] = most;
    }
    return -1;
}

static bx_status fail_degenerate(const bx_priors *p, int32_t bad, bx_error *error) {
    const float *box = p->boxes + 4 * (size_t)bad;
    return bx_fail(error, BX_INVALID, "prior_degenerate",
                   "prior %d is [cx %g, cy %g, w %g, h %g]: width, height and float32 area must be positive and finite",
                   (int)bad, (double)box[0], (double)box[1], (double)box[2], (double)box[3]);
}

/* ---- sets -------------------------------------------------------------------------------------------------------- */

bx_status bx_priors_new(bx_priors **priors, const void *boxes, int32_t n, bx_error *error) {
    if (n < 1 || n > BX_MAX_PRIORS) {
        bx_fail(error, BX_SHAPE, "shape", "%d priors; between 1 and %d are possible", (int)n, BX_MAX_PRIORS);
        bx_at(error, "priors");
        return BX_SHAPE;
    }
    bx_priors *p = NULL;
    bx_status status = allocate(&p, n, 1, boxes != NULL, error);
    if (status) {
        return status;
    }
    p->generator = NULL;
    *(bx_level *)p->levels = (bx_level){"all", 0, n};
    p->relative = true;
    if (boxes) {
        strcpy(p->name, "inline");
        memcpy((float *)p->boxes, boxes, (size_t)n * 16);
        int32_t bad = derive_columns(p);
        if (bad >= 0) {
            fail_degenerate(p, bad, error);
            bx_at(error, "priors[%d]", (int)bad);
            bx_priors_free(p);
            return BX_INVALID;
        }
        for (int32_t i = 0; i < n; i++) {
            const float *box = p->boxes + 4 * (size_t)i; /* a large prior may reach beyond */
            p->relative &= (box[0] >= -1) & (box[1] >= -1) & (box[0] <= 2) & (box[1] <= 2);
        }
    }
    *priors = p;
    return BX_OK;
}

/* The name of the parameter that `sizes` is to this kind. */
static const char *sizes_name(bx_generator_kind kind) {
    size_t i = 0;
    while (bx_generator_parameter(kind, i)->offset != offsetof(bx_generator, sizes)) {
        i++;
    }
    return bx_generator_parameter(kind, i)->name;
}

bx_status bx_priors_generate(bx_priors **priors, const bx_generator *generator, bx_error *error) {
    int32_t n = 0;
    bx_priors *p = NULL;
    bx_status status = bx_generator_check(generator, &n, error);
    if (!status) {
        status = allocate(&p, n, generator->n_levels, true, error);
    }
    if (status) {
        return status;
    }
    *(bx_generator *)p->generator = *generator;
    p->relative = generator->kind == BX_GENERATOR_SSD || generator->kind == BX_GENERATOR_SSD_SCALES;
    snprintf(p->name, sizeof p->name, "inline");
    bx_generator_fill(generator, (float *)p->boxes, (bx_level *)p->levels);
    int32_t bad = derive_columns(p);
    if (bad >= 0) {
        int32_t level = 0;
        while (bad >= p->levels[level].first + p->levels[level].count) {
            level++;
        }
        fail_degenerate(p, bad, error);
        bx_at(error, "priors.%s[%d]", sizes_name(generator->kind), (int)level);
        bx_priors_free(p);
        return BX_INVALID;
    }
    *priors = p;
    return BX_OK;
}

bx_status bx_priors_rename(bx_priors *priors, const char *name, bx_error *error) {
    size_t length = strlen(name);
    if (length < 1 || length >= sizeof priors->name) {
        return bx_fail(error, BX_INVALID, "invalid_name", "a name has 1 to %zu characters, \"%.64s\" has %zu",
                       sizeof priors->name - 1, name, length);
    }
    memcpy(priors->name, name, length + 1);
    return BX_OK;
}
