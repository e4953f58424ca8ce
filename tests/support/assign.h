/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image whose priors are assigned on every level of this CPU, and compared with a naive version written here, which
 * holds the whole float32 matrix and looks through it again and again.
 */
#ifndef ASSIGN_H
#define ASSIGN_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "job.h"
#include "random.h"
#include "suite.h"

/* ---- a batch of one image, without predictions ------------------------------------------------------------------- */

typedef struct scene {
    bx_criterion criterion;
    int32_t p, n, first[2]; /* priors, objects */
    float *prior_boxes;     /* (p,4) cx cy w h */
    float *boxes;           /* (n,4) native form of criterion.matcher.iou */
    uint8_t *use;           /* (n) */
    int64_t *labels;        /* (n) */
    bool in_ranges;         /* match in random ranges */
    bx_priors *priors;
    bx_batch batch;
    computation c;
} scene;

static inline void scene_open(scene *s, int32_t p, int32_t n, bx_matcher matcher) {
    memset(s, 0, sizeof *s);
    s->criterion = *bx_criterion_preset("ssd-multibox");
    s->criterion.matcher = matcher;
    s->p = p;
    s->n = n;
    s->first[1] = n;
    s->prior_boxes = poisoned((size_t)p * 16);
    s->boxes = poisoned((size_t)n * 16);
    s->use = poisoned((size_t)n);
    s->labels = poisoned((size_t)n * sizeof *s->labels);
    for (int32_t g = 0; g < n; g++) {
        s->use[g] = BX_OBJECT_USED;
        s->labels[g] = g % 5;
    }
}

enum { MAX_LEVELS = 8 };

static bx_context *contexts[MAX_LEVELS]; /* one for each level of this CPU */

static inline void open_contexts(void) {
    for (size_t l = 0; l < MAX_LEVELS && bx_level_name(l); l++) {
        ck_assert_int_eq(bx_context_open(&contexts[l], "cpu", bx_level_name(l), NULL), BX_OK);
    }
}

static inline void close_contexts(void) {
    for (size_t l = 0; l < MAX_LEVELS; l++) {
        bx_context_close(contexts[l]);
    }
}

/* Matching and assignment again, each block in ranges as short as rows may arrive. */
static inline void match_in_ranges(scene *s, bx_context *context) {
    bx_job *job = &s->c.job;
    for (int32_t first = 0; first < s->p; first += BX_BLOCK) {
        const int32_t end = first + BX_BLOCK < s->p ? first + BX_BLOCK : s->p;
        bx_stage_begin(job, 0, first / BX_BLOCK);
        for (int32_t at = first, n; at < end; at += n) {
            n = 1 + below(below(2) ? 300 : 30);
            n = n < end - at ? n : end - at;
            bx_stage_match(context, job, 0, at, n);
        }
    }
    bx_stage_assign(job, 0);
    bx_stage_reduce(job, 0, 0, s->p);
}

static inline void scene_run(scene *s, bx_context *context) {
    bx_error error = {0};
    s->batch = (bx_batch){
        .n_images = 1, .n_columns = 6, .boxes = s->boxes, .labels = s->labels, .use = s->use, .first = s->first};
    if (!s->priors) {
        HOLDS(bx_priors_new(&s->priors, s->prior_boxes, s->p, &error) == BX_OK, "%s %s", error.path, error.text);
    }
    computation_free(&s->c);
    bx_status status = compute_images(&s->c, context, &s->criterion, s->priors, &s->batch, BX_GRADIENTS_NONE, &error);
    if (s->in_ranges) {
        match_in_ranges(s, context);
    }
    status = status == BX_OK ? compute_rest(&s->c, context, &error) : status;
    HOLDS(status == BX_OK, "%s: %s", error.path, error.text);
}

static inline void scene_close(scene *s) {
    computation_free(&s->c);
    bx_priors_free(s->priors);
    free(s->prior_boxes);
    free(s->boxes);
    free(s->use);
    free(s->labels);
}

static inline void corners_of(const float sizes[4], float corners[4]) {
    for (int i = 0; i < 2; i++) {
        corners[i] = sizes[i] - sizes[i + 2] / 2;
        corners[i + 2] = sizes[i] + sizes[i + 2] / 2;
    }
}

/* ---- the naive version ------------------------------------------------------------------------------------------- */

enum { BACKGROUND = -1, IGNORED = -2 };

typedef struct verdict {
    float *iou;     /* (n,p) */
    float *covered; /* (n,p) share of the prior inside the object */
    float *best;    /* (p) greatest IoU */
    int32_t *owner; /* (p) object of a positive, BACKGROUND or IGNORED */
    bool *forced;   /* (p) */
    int32_t *claim; /* (n) each object's best prior */
    bool *taken;    /* (p) */
    bool *served;   /* (n) */
} verdict;

static inline void naive_matrix(const scene *s, verdict *v) {
    const bool sizes = s->criterion.matcher.iou == BX_IOU_SIZES;
    for (int32_t g = 0; g < s->n; g++) {
        const float *native = s->boxes + 4 * g;
        float a[4], b[4];
        memcpy(a, native, 16);
        float area_a = (a[2] - a[0]) * (a[3] - a[1]);
        if (sizes) {
            corners_of(native, a);
            area_a = native[2] * native[3];
        }
        for (int32_t p = 0; p < s->p; p++) {
            const float *prior = s->prior_boxes + 4 * p;
            corners_of(prior, b);
            float area_b = sizes ? prior[2] * prior[3] : (b[2] - b[0]) * (b[3] - b[1]);
            float w = fminf(a[2], b[2]) - fmaxf(a[0], b[0]), h = fminf(a[3], b[3]) - fmaxf(a[1], b[1]);
            float inter = fmaxf(w, 0) * fmaxf(h, 0), both = (area_a + area_b) - inter;
            v->iou[g * s->p + p] = sizes ? fminf(fmaxf(inter / fmaxf(both, 1e-8f), 0), 1) : inter / both;
            v->covered[g * s->p + p] = inter / area_b;
        }
    }
}

static inline void naive_take(const scene *s, verdict *v, int32_t g, int32_t p) {
    v->forced[p] = v->best[p] < s->criterion.matcher.positive_iou;
    v->owner[p] = g;
    v->taken[p] = true;
}

static inline void naive_greedy(const scene *s, verdict *v) {
    for (;;) { /* the greatest of all that is left; among equals the lowest prior, then the lowest object */
        int32_t best_g = -1, best_p = -1;
        float best = 0;
        for (int32_t p = 0; p < s->p; p++) {
            for (int32_t g = 0; g < s->n && !v->taken[p]; g++) {
                if (s->use[g] == BX_OBJECT_USED && !v->served[g] && v->iou[g * s->p + p] > best) {
                    best = v->iou[g * s->p + p];
                    best_g = g;
                    best_p = p;
                }
            }
        }
        if (best_g < 0) {
            return;
        }
        v->served[best_g] = true;
        naive_take(s, v, best_g, best_p);
    }
}

static inline void naive_force(const scene *s, verdict *v) {
    const bx_force rule = s->criterion.matcher.force;
    if (rule == BX_FORCE_GREEDY) {
        naive_greedy(s, v);
    }
    for (int32_t g = 0; g < s->n && (rule == BX_FORCE_LAST || rule == BX_FORCE_FIRST); g++) {
        if (s->use[g] == BX_OBJECT_USED && (rule == BX_FORCE_LAST || !v->taken[v->claim[g]])) {
            naive_take(s, v, g, v->claim[g]);
        }
    }
}

static inline void naive_assign(const scene *s, verdict *v) {
    const bx_matcher *m = &s->criterion.matcher;
    const float negative = m->negative_iou < 0 ? m->positive_iou : m->negative_iou;
    naive_matrix(s, v);
    for (int32_t g = 0; g < s->n; g++) {
        v->claim[g] = 0;
        v->served[g] = false;
        for (int32_t p = 1; p < s->p && s->use[g] == BX_OBJECT_USED; p++) {
            v->claim[g] = v->iou[g * s->p + p] > v->iou[g * s->p + v->claim[g]] ? p : v->claim[g];
        }
    }
    for (int32_t p = 0; p < s->p; p++) {
        int32_t nearest = BACKGROUND;
        v->best[p] = 0;
        v->forced[p] = v->taken[p] = false;
        for (int32_t g = 0; g < s->n; g++) {
            if (s->use[g] == BX_OBJECT_USED && v->iou[g * s->p + p] > v->best[p]) {
                v->best[p] = v->iou[g * s->p + p];
                nearest = g;
            }
        }
        bool positive = v->best[p] >= m->positive_iou, background = v->best[p] < negative;
        v->owner[p] = positive ? nearest : background ? BACKGROUND : IGNORED;
    }
    naive_force(s, v);
    for (int32_t p = 0; p < s->p; p++) {
        for (int32_t g = 0; g < s->n; g++) {
            if (v->owner[p] == BACKGROUND && s->use[g] == BX_OBJECT_IGNORED) {
                bool by_share = m->ignore_iof > 0;
                bool covers =
                    by_share ? v->covered[g * s->p + p] >= m->ignore_iof : v->iou[g * s->p + p] >= m->positive_iou;
                v->owner[p] = covers ? IGNORED : BACKGROUND;
            }
        }
    }
}

static inline void compare_priors(const scene *s, const verdict *v, bx_image_row *row) {
    const bx_job *job = &s->c.job;
    const bx_matcher *m = &job->plan->criterion->matcher;
    const float least = m->negative_iou < 0 ? m->positive_iou : m->negative_iou; /* below, all overlaps are the same */
    for (int32_t p = 0; p < s->p; p++) {
        bool positive = v->owner[p] >= 0;
        int state = (positive ? BX_POSITIVE : v->owner[p] == IGNORED ? BX_IGNORED : 0) | (v->forced[p] ? BX_FORCED : 0);
        HOLDS(v->best[p] < least ? job->overlap[p] < least : job->overlap[p] == v->best[p], "overlap of prior %d", p);
        HOLDS(job->state[p] == state, "state of prior %d is %d, not %d", p, job->state[p], state);
        HOLDS(!positive || job->owner[p] == v->owner[p], "owner of prior %d", p);
        HOLDS(bx_result_prior_object(&s->c.result, 0, p) == (positive ? v->owner[p] : -1), "object of prior %d", p);
        int32_t class = positive ? (int32_t)s->labels[v->owner[p]] : v->owner[p];
        HOLDS(bx_result_prior_class(&s->c.result, 0, p) == class, "class of prior %d", p);
        row->positives += positive;
        row->ignored += v->owner[p] == IGNORED;
        row->negatives += v->owner[p] == BACKGROUND;
        row->forced += v->forced[p];
    }
}

static inline void compare_objects(const scene *s, const verdict *v, bx_image_row *row) {
    const bx_force rule = s->criterion.matcher.force;
    for (int32_t g = 0; g < s->n; g++) {
        const bx_object_row *object = &s->c.job.objects[g];
        bx_object_row owed = {0};
        if (s->use[g] == BX_OBJECT_USED) {
            owed.best_prior = v->claim[g];
            owed.best_iou = v->iou[g * s->p + v->claim[g]];
            for (int32_t p = 0; p < s->p; p++) {
                owed.positives += v->owner[p] == g;
                owed.forced |= v->owner[p] == g && v->forced[p];
            }
            int32_t holder = v->owner[v->claim[g]];
            bool claims = owed.best_iou > 0 || rule == BX_FORCE_LAST || rule == BX_FORCE_FIRST;
            owed.collided = claims && holder >= 0 && holder != g;
            row->objects++;
            row->collided += owed.collided;
            row->unmatched_objects += owed.positives == 0;
        }
        HOLDS(object->best_prior == owed.best_prior, "best prior of object %d", g);
        HOLDS(object->best_iou == owed.best_iou, "best IoU of object %d", g);
        HOLDS(object->positives == owed.positives, "positives of object %d", g);
        HOLDS(object->forced == owed.forced, "forcing of object %d", g);
        HOLDS(object->collided == owed.collided, "collision of object %d", g);
    }
}

/* The scene, on every level. */
static inline void check(scene *s) {
    const size_t p = (size_t)s->p, n = (size_t)s->n;
    verdict v = {poisoned(n * p * 4), poisoned(n * p * 4), poisoned(p * 4), poisoned(p * 4),
                 poisoned(p),         poisoned(n * 4),     poisoned(p),     poisoned(n)};
    naive_assign(s, &v);
    for (size_t l = 0; l < MAX_LEVELS && contexts[l]; l++) {
        const char *level = bx_context_level(contexts[l]);
        bx_image_row row = {0};
        scene_run(s, contexts[l]);
        compare_priors(s, &v, &row);
        compare_objects(s, &v, &row);
        const bx_image_row *got = &s->c.job.images[0];
        HOLDS(got->positives == row.positives && got->negatives == row.negatives && got->ignored == row.ignored,
              "%s: %d positive, %d background, %d ignored; not %d, %d, %d", level, got->positives, got->negatives,
              got->ignored, row.positives, row.negatives, row.ignored);
        HOLDS(got->objects == row.objects && got->forced == row.forced && got->collided == row.collided,
              "%s: %d objects, %d forced, %d collided; not %d, %d, %d", level, got->objects, got->forced, got->collided,
              row.objects, row.forced, row.collided);
        HOLDS(got->unmatched_objects == row.unmatched_objects, "%s: %d unmatched", level, got->unmatched_objects);
        int64_t ignored = 0, dropped = 0;
        for (int32_t g = 0; g < s->n; g++) {
            ignored += s->use[g] == BX_OBJECT_IGNORED;
            dropped += s->use[g] == BX_OBJECT_DROPPED;
        }
        const bx_result *r = &s->c.result;
        HOLDS(r->objects == row.objects && r->ignored_objects == ignored && r->dropped_boxes == dropped, "objects");
        HOLDS(r->positives == row.positives && r->ignored == row.ignored && r->forced == row.forced, "the result");
    }
    free(v.iou);
    free(v.covered);
    free(v.best);
    free(v.owner);
    free(v.forced);
    free(v.claim);
    free(v.taken);
    free(v.served);
}

#endif
