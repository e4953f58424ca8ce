/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assignment under every rule: cases small enough to check by hand, then random ones against a naive version written
 * here, which holds the whole float32 matrix and looks through it again and again.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"
#include "../support/job.h"

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

static void scene_open(scene *s, int32_t p, int32_t n, bx_matcher matcher) {
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

static void open_contexts(void) {
    for (size_t l = 0; l < MAX_LEVELS && bx_level_name(l); l++) {
        ck_assert_int_eq(bx_context_open(&contexts[l], "cpu", bx_level_name(l), NULL), BX_OK);
    }
}

static void close_contexts(void) {
    for (size_t l = 0; l < MAX_LEVELS; l++) {
        bx_context_close(contexts[l]);
    }
}

/* Matching and assignment again, each block in ranges as short as rows may arrive. */
static void match_in_ranges(scene *s, bx_context *context) {
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

static void scene_run(scene *s, bx_context *context) {
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

static void scene_close(scene *s) {
    computation_free(&s->c);
    bx_priors_free(s->priors);
    free(s->prior_boxes);
    free(s->boxes);
    free(s->use);
    free(s->labels);
}

static void corners_of(const float sizes[4], float corners[4]) {
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

static void naive_matrix(const scene *s, verdict *v) {
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

static void naive_take(const scene *s, verdict *v, int32_t g, int32_t p) {
    v->forced[p] = v->best[p] < s->criterion.matcher.positive_iou;
    v->owner[p] = g;
    v->taken[p] = true;
}

static void naive_greedy(const scene *s, verdict *v) {
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

static void naive_force(const scene *s, verdict *v) {
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

static void naive_assign(const scene *s, verdict *v) {
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

static void compare_priors(const scene *s, const verdict *v, bx_image_row *row) {
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

static void compare_objects(const scene *s, const verdict *v, bx_image_row *row) {
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
static void check(scene *s) {
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

/* ---- by hand ----------------------------------------------------------------------------------------------------- */

static void scene_of(scene *s, bx_matcher matcher, int32_t p, const float (*priors)[4], int32_t n,
                     const float (*boxes)[4]) {
    scene_open(s, p, n, matcher);
    memcpy(s->prior_boxes, priors, (size_t)p * 16);
    memcpy(s->boxes, boxes, (size_t)n * 16);
}

/* Objects A and B are both nearest to P0; A-P0 .95, A-P2 .59, B-P0 .82, B-P2 .61, all others 0. */
static void scene_shared(scene *s, bx_force force) {
    static const float corners[10][4] = {
        {0, 0, .4f, .4f}, {.5f, .5f, .9f, .9f}, {.05f, .05f, .45f, .45f}, {.6f, .1f, .9f, .4f}, {.5f, 0, .7f, .2f},
        {.8f, .8f, 1, 1}, {.1f, .6f, .3f, .8f}, {.3f, .7f, .5f, .9f},     {.7f, .5f, 1, .7f},   {0, .8f, .2f, 1},
    };
    static const float boxes[2][4] = {{0, 0, .4f, .38f}, {.02f, 0, .42f, .36f}};
    float priors[10][4];
    for (int p = 0; p < 10; p++) {
        const float *b = corners[p];
        memcpy(priors[p], (float[4]){(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]}, 16);
    }
    scene_of(s, (bx_matcher){.5f, -1, force, BX_IOU_CORNERS, -1}, 10, (const float(*)[4])priors, 2, boxes);
}

START_TEST(a_shared_best_prior) {
    static const struct {
        bx_force force;
        int32_t p0, p2; /* who holds them */
        bool a_collides, b_collides;
        int32_t positives[2];
    } rows[] = {
        {BX_FORCE_LAST, 1, 1, true, false, {0, 2}}, /* A is orphaned */
        {BX_FORCE_FIRST, 0, 1, false, true, {1, 1}},
        {BX_FORCE_GREEDY, 0, 1, false, true, {1, 1}},
        {BX_FORCE_NONE, 0, 1, false, true, {1, 1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        scene s;
        scene_shared(&s, rows[i].force);
        check(&s);
        const bx_job *job = &s.c.job;
        ck_assert_int_eq(job->owner[0], rows[i].p0);
        ck_assert_int_eq(job->owner[2], rows[i].p2);
        ck_assert_int_eq(job->state[0], BX_POSITIVE);
        ck_assert_int_eq(job->state[2], BX_POSITIVE);
        ck_assert_int_eq(job->images[0].positives, 2);
        ck_assert_int_eq(job->images[0].negatives, 8);
        for (int g = 0; g < 2; g++) {
            ck_assert_int_eq(job->objects[g].best_prior, 0);
            ck_assert_int_eq(job->objects[g].positives, rows[i].positives[g]);
            ck_assert(!job->objects[g].forced);
        }
        ck_assert_int_eq(job->objects[0].collided, rows[i].a_collides);
        ck_assert_int_eq(job->objects[1].collided, rows[i].b_collides);
        ck_assert_double_eq_tol((double)job->objects[0].best_iou, .95, 1e-6);
        ck_assert_double_eq_tol((double)job->objects[1].best_iou, .8181818182, 1e-6);
        ck_assert_double_eq_tol((double)job->overlap[2], .6059165346, 1e-6);
        scene_close(&s);
    }
}
END_TEST

/* As above with a threshold that only forcing meets: greedy serves both, first leaves B with nothing. */
START_TEST(a_shared_best_prior_below_the_threshold) {
    static const int32_t holders[4][2] = {
        [BX_FORCE_LAST] = {1, -1}, [BX_FORCE_FIRST] = {0, -1}, [BX_FORCE_GREEDY] = {0, 1}, [BX_FORCE_NONE] = {-1, -1}};
    for (int force = 0; force < 4; force++) {
        scene s;
        scene_shared(&s, (bx_force)force);
        s.criterion.matcher.positive_iou = .99f;
        check(&s);
        for (int i = 0; i < 2; i++) {
            int32_t holder = holders[force][i];
            ck_assert_int_eq(bx_result_prior_object(&s.c.result, 0, 2 * i), holder);
            ck_assert_int_eq(s.c.job.state[2 * i], holder < 0 ? 0 : BX_POSITIVE | BX_FORCED);
        }
        ck_assert_int_eq(s.c.job.images[0].unmatched_objects, force == BX_FORCE_NONE ? 2 : force != BX_FORCE_GREEDY);
        scene_close(&s);
    }
}
END_TEST

/* IoU exactly at a threshold: positive at the upper, ignored at the lower, background only below it. */
START_TEST(exact_thresholds) {
    static const float priors[3][4] = {{.25f, .125f, .5f, .25f}, {.25f, .25f, .5f, .5f}, {.5f, .25f, 1, .5f}};
    static const float box[1][4] = {{0, 0, .5f, .25f}}; /* IoU 1, 1/2, 1/4 */
    static const struct {
        float positive, negative;
        uint8_t states[3];
    } rows[] = {
        {.5f, -1, {BX_POSITIVE, BX_POSITIVE, 0}},
        {.5f, .5f, {BX_POSITIVE, BX_POSITIVE, 0}},
        {.5f, .25f, {BX_POSITIVE, BX_POSITIVE, BX_IGNORED}},
        {.5f, .3f, {BX_POSITIVE, BX_POSITIVE, 0}},
        {.75f, .5f, {BX_POSITIVE, BX_IGNORED, 0}},
        {.75f, .25f, {BX_POSITIVE, BX_IGNORED, BX_IGNORED}},
        {1, 0, {BX_POSITIVE, BX_IGNORED, BX_IGNORED}},
        {1, -1, {BX_POSITIVE, 0, 0}},
        {.25f, -1, {BX_POSITIVE, BX_POSITIVE, BX_POSITIVE}},
    };
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        scene s;
        bx_matcher matcher = {rows[i / 2].positive, rows[i / 2].negative, BX_FORCE_NONE, (bx_iou)(i % 2), -1};
        scene_of(&s, matcher, 3, priors, 1, box);
        if (matcher.iou == BX_IOU_SIZES) {
            memcpy(s.boxes, priors[0], 16);
        }
        check(&s);
        ck_assert(s.c.job.overlap[0] == 1 && s.c.job.objects[0].best_iou == 1);
        for (int p = 0; p < 3; p++) {
            ck_assert_int_eq(s.c.job.state[p], rows[i / 2].states[p]);
        }
        scene_close(&s);
    }
}
END_TEST

/* A forced prior is positive even between the thresholds. */
START_TEST(forced_out_of_the_band) {
    static const float priors[3][4] = {{.25f, .25f, .5f, .5f}, {.5f, .25f, 1, .5f}, {.9f, .9f, .1f, .1f}};
    static const float box[1][4] = {{0, 0, .5f, .25f}}; /* IoU 1/2, 1/4, 0 */
    for (int force = 0; force < 4; force++) {
        scene s;
        scene_of(&s, (bx_matcher){.6f, .2f, (bx_force)force, BX_IOU_CORNERS, -1}, 3, priors, 1, box);
        check(&s);
        ck_assert_int_eq(s.c.job.state[0], force == BX_FORCE_NONE ? BX_IGNORED : BX_POSITIVE | BX_FORCED);
        ck_assert_int_eq(s.c.job.state[1], BX_IGNORED);
        ck_assert_int_eq(s.c.job.state[2], 0);
        ck_assert_int_eq(s.c.job.objects[0].forced, force != BX_FORCE_NONE);
        ck_assert_int_eq(s.c.job.images[0].ignored, force == BX_FORCE_NONE ? 2 : 1);
        scene_close(&s);
    }
}
END_TEST

/* An object that overlaps nothing claims prior 0 under last and first, even from one that is better placed; under the
 * other rules it is left alone, and that is no collision. */
START_TEST(no_overlap) {
    static const float priors[2][4] = {{.25f, .25f, .5f, .5f}, {.8f, .8f, .2f, .2f}};
    static const float boxes[3][4] = {{0, .9f, .1f, 1}, {0, 0, .5f, .5f}, {.6f, 0, .7f, .1f}};
    static const int32_t holders[4] = {
        [BX_FORCE_LAST] = 2, [BX_FORCE_FIRST] = 0, [BX_FORCE_GREEDY] = 1, [BX_FORCE_NONE] = 1};
    static const int32_t collided[4] = {
        [BX_FORCE_LAST] = 2, [BX_FORCE_FIRST] = 2, [BX_FORCE_GREEDY] = 0, [BX_FORCE_NONE] = 0};
    for (int force = 0; force < 4; force++) {
        scene s;
        scene_of(&s, (bx_matcher){.5f, -1, (bx_force)force, BX_IOU_CORNERS, -1}, 2, priors, 3, boxes);
        check(&s);
        ck_assert_int_eq(s.c.job.owner[0], holders[force]);
        ck_assert_int_eq(s.c.job.state[0], BX_POSITIVE); /* IoU 1 with the second: not because it was forced */
        ck_assert_int_eq(s.c.job.images[0].collided, collided[force]);
        ck_assert_int_eq(s.c.job.images[0].unmatched_objects, 2);
        ck_assert_int_eq(s.c.result.objects_without_overlap, 2);
        ck_assert(s.c.job.objects[0].best_prior == 0 && s.c.job.objects[0].best_iou == 0);
        scene_close(&s);
    }
}
END_TEST

/* Ties of greedy: the lowest prior, then the lowest object. Two pairs of equal objects over three equal priors. */
START_TEST(greedy_ties) {
    static const float priors[4][4] = {
        {.8f, .8f, .2f, .2f}, {.25f, .25f, .5f, .5f}, {.25f, .25f, .5f, .5f}, {.25f, .25f, .5f, .5f}};
    static const float boxes[4][4] = {{0, 0, .5f, .5f}, {0, 0, .5f, .5f}, {0, 0, .5f, .25f}, {0, 0, .5f, .25f}};
    scene s;
    scene_of(&s, (bx_matcher){.9f, -1, BX_FORCE_GREEDY, BX_IOU_CORNERS, -1}, 4, priors, 4, boxes);
    check(&s);
    ck_assert_int_eq(s.c.job.owner[1], 0);
    ck_assert_int_eq(s.c.job.owner[2], 1);
    ck_assert_int_eq(s.c.job.owner[3], 2);
    ck_assert_int_eq(s.c.job.images[0].unmatched_objects, 1);
    ck_assert(!s.c.job.objects[0].collided && s.c.job.objects[1].collided); /* best prior 1 of all four */
    ck_assert_int_eq(s.c.job.images[0].collided, 3);
    ck_assert_int_eq(s.c.job.images[0].forced, 0); /* priors 1 to 3 are positive anyway */
    scene_close(&s);
}
END_TEST

/* The first and the second object tie for prior 0, the second and the third for prior 1. The lowest prior comes first:
 * it goes to the first object, then the second has prior 1 before the third. */
START_TEST(greedy_takes_the_lowest_prior_first) {
    static const float priors[2][4] = {{.25f, .25f, .5f, .5f}, {.75f, .25f, .5f, .5f}};
    static const float boxes[3][4] = {{-.25f, 0, .25f, .5f}, {.25f, 0, .75f, .5f}, {.75f, 0, 1.25f, .5f}};
    scene s;
    scene_of(&s, (bx_matcher){.9f, -1, BX_FORCE_GREEDY, BX_IOU_CORNERS, -1}, 2, priors, 3, boxes);
    check(&s);
    ck_assert(s.c.job.objects[0].best_iou == s.c.job.objects[2].best_iou && s.c.job.objects[0].best_iou > .33f);
    ck_assert_int_eq(s.c.job.owner[0], 0);
    ck_assert_int_eq(s.c.job.owner[1], 1);
    ck_assert_int_eq(s.c.job.images[0].unmatched_objects, 1);
    ck_assert(s.c.job.objects[1].collided); /* its own best was prior 0 */
    ck_assert(s.c.job.objects[2].collided);
    scene_close(&s);
}
END_TEST

/* What an ignored object does: by IoU, and by the share of the prior that lies inside. */
START_TEST(ignored_objects) {
    static const float priors[4][4] = {
        {.25f, .25f, .5f, .5f}, {.125f, .125f, .25f, .25f}, {.75f, .25f, .5f, .5f}, {.75f, .75f, .5f, .5f}};
    /* an ignored crowd over the left half; a used object on prior 2; another on prior 1, inside the crowd */
    static const float boxes[3][4] = {{0, 0, .5f, 1}, {.5f, 0, 1, .5f}, {0, 0, .25f, .25f}};
    static const struct {
        float iof;
        bool second; /* whether the object inside the crowd is used */
        uint8_t states[4];
    } rows[] = {
        {-1, false, {BX_IGNORED, 0, BX_POSITIVE, 0}}, /* IoU of prior 0 with the crowd is 1/2, of prior 1 1/8 */
        {1, false, {BX_IGNORED, BX_IGNORED, BX_POSITIVE, 0}},
        {1, true, {BX_IGNORED, BX_POSITIVE, BX_POSITIVE, 0}},
        {-1, true, {BX_IGNORED, BX_POSITIVE, BX_POSITIVE, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        scene s;
        scene_of(&s, (bx_matcher){.5f, -1, BX_FORCE_LAST, BX_IOU_CORNERS, rows[i].iof}, 4, priors, 3, boxes);
        s.use[0] = BX_OBJECT_IGNORED;
        s.labels[0] = -77; /* not looked at */
        s.use[2] = rows[i].second ? BX_OBJECT_USED : BX_OBJECT_DROPPED;
        check(&s);
        for (int p = 0; p < 4; p++) {
            ck_assert_int_eq(s.c.job.state[p], rows[i].states[p]);
        }
        ck_assert_int_eq(s.c.result.ignored_objects, 1);
        ck_assert_int_eq(s.c.result.dropped_boxes, !rows[i].second);
        ck_assert_int_eq(s.c.result.objects, 1 + rows[i].second);
        scene_close(&s);
    }
}
END_TEST

/* The share is exact at the threshold: half of each prior lies inside. */
START_TEST(ignored_share_at_the_threshold) {
    static const float priors[2][4] = {{.25f, .25f, .5f, .5f}, {.5f, .25f, .25f, .5f}};
    static const float box[1][4] = {{.25f, 0, .5f, 1}};
    static const float iofs[3] = {.5f, .50001f, .49999f};
    for (int i = 0; i < 6; i++) {
        scene s;
        scene_of(&s, (bx_matcher){1, -1, BX_FORCE_LAST, (bx_iou)(i % 2), iofs[i / 2]}, 2, priors, 1, box);
        if (i % 2) {
            memcpy(s.boxes, (float[4]){.375f, .5f, .25f, 1}, 16);
        }
        s.use[0] = BX_OBJECT_IGNORED;
        check(&s);
        ck_assert_int_eq(s.c.job.state[0], i / 2 == 1 ? 0 : BX_IGNORED);
        ck_assert_int_eq(s.c.job.state[1], i / 2 == 1 ? 0 : BX_IGNORED);
        ck_assert_int_eq(s.c.result.objects, 0);
        scene_close(&s);
    }
}
END_TEST

/* Two boxes that corners and sizes judge differently: 1e-8 is the least union of sizes. */
START_TEST(tiny_boxes) {
    static const float prior[1][4] = {{0, 0, 5e-5f, 5e-5f}};
    for (int i = 0; i < 2; i++) {
        scene s;
        scene_of(&s, (bx_matcher){.5f, -1, BX_FORCE_NONE, (bx_iou)i, -1}, 1, prior, 1, prior);
        if (i == BX_IOU_CORNERS) {
            memcpy(s.boxes, (float[4]){-2.5e-5f, -2.5e-5f, 2.5e-5f, 2.5e-5f}, 16);
        }
        check(&s);
        ck_assert_int_eq(s.c.job.state[0], i == BX_IOU_CORNERS ? BX_POSITIVE : 0); /* IoU 1 or 1/4 */
        scene_close(&s);
    }
}
END_TEST

/* ---- at random --------------------------------------------------------------------------------------------------- */

/* On a coarse grid, with copies and mirror images: equal overlaps everywhere. */
static void random_priors(scene *s, float scale) {
    for (int32_t p = 0; p < s->p; p++) {
        float *box = s->prior_boxes + 4 * p;
        const float *other = s->prior_boxes + 4 * (p ? below(p) : 0);
        int kind = p ? below(6) : 5;
        float fresh[4] = {(float)below(20) * .05f, (float)below(20) * .05f, .05f * (float)(1 + below(8)),
                          .05f * (float)(1 + below(8))};
        fresh[0] = p ? fresh[0] : .5f; /* where pixels cannot be taken for shares */
        if (kind == 4) {
            for (int i = 0; i < 4; i++) {
                fresh[i] = uniform(.02f, .9f);
            }
        }
        for (int i = 0; i < 4; i++) {
            box[i] = kind == 0             ? other[i]
                     : kind == 1 && i == 0 ? scale - other[0]
                     : kind == 1           ? other[i]
                                           : fresh[i] * scale;
        }
    }
}

static void random_object(const scene *s, int32_t g, float scale, float corners[4]) {
    corners_of(s->prior_boxes + 4 * below(s->p), corners);
    switch (below(7)) {
    case 0: /* as another */
        if (g > 0) {
            memcpy(corners, s->boxes + 4 * below(g), 16);
        }
        break;
    case 1: /* far away */
        memcpy(corners, (float[4]){-scale, -scale, -.95f * scale, -.95f * scale}, 16);
        break;
    case 2: /* half of a prior */
        corners[2] = (corners[0] + corners[2]) / 2;
        break;
    case 3: /* more than a prior */
        corners[2] += .05f * scale;
        break;
    case 4: { /* anywhere */
        float x = uniform(0, .8f), y = uniform(0, .8f);
        memcpy(corners,
               (float[4]){x * scale, y * scale, (x + uniform(.01f, .6f)) * scale, (y + uniform(.01f, .6f)) * scale},
               16);
        break;
    }
    default: /* a prior */
        break;
    }
}

static void random_objects(scene *s, float scale) {
    for (int32_t g = 0; g < s->n; g++) {
        random_object(s, g, scale, s->boxes + 4 * g);
    }
    for (int32_t g = 0; g < s->n && s->criterion.matcher.iou == BX_IOU_SIZES; g++) {
        float *b = s->boxes + 4 * g;
        memcpy(b, (float[4]){(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]}, 16);
    }
}

/* kind: which objects are used, 0 all, 1 most, 2 few, 3 none. */
static void random_use(scene *s, int kind) {
    for (int32_t g = 0; g < s->n; g++) {
        bool used = kind == 0 || (kind == 1 && below(4) > 0) || (kind == 2 && below(4) == 0);
        s->use[g] = used ? BX_OBJECT_USED : below(3) ? BX_OBJECT_IGNORED : BX_OBJECT_DROPPED;
        if (s->use[g] == BX_OBJECT_DROPPED && below(2)) { /* what it looks like does not matter */
            memcpy(s->boxes + 4 * g, (float[4]){.5f, .5f, -.5f, 0}, 16);
        }
        if (s->use[g] != BX_OBJECT_USED) {
            s->labels[g] = below(2) ? -1 : 1000;
        }
    }
}

enum { N_BANDS = 4, N_RULES = 4 * 2 * N_BANDS * 2 };

/* Each force rule, each IoU, several bands, both rules of ignoring. */
static bx_matcher matcher_of(int rule) {
    static const float bands[N_BANDS][2] = {{.5f, -1}, {.5f, .4f}, {.7f, .3f}, {.25f, 0}};
    const float *band = bands[rule / 8 % N_BANDS];
    return (bx_matcher){band[0], band[1], (bx_force)(rule % 4), (bx_iou)(rule / 4 % 2),
                        rule / (8 * N_BANDS) ? (rule % 3 ? .5f : 1) : -1};
}

START_TEST(every_rule) {
    static const int32_t priors[] = {1, 2, 127, 128, 129, 257, 600};
    random_state = 1000 + (uint64_t)_i;
    for (size_t i = 0; i < sizeof priors / sizeof *priors; i++) {
        for (int32_t round = 0; round < 6; round++) {
            static const int32_t counts[] = {0, 1, 3, 12, 40, 0};
            int32_t n = round == 5 ? priors[i] % 200 + 5 : counts[round]; /* more objects than priors, often */
            scene s;
            float scale = below(3) ? 1 : 300;
            scene_open(&s, priors[i], n, matcher_of(_i));
            random_priors(&s, scale);
            random_objects(&s, scale);
            random_use(&s, below(4));
            check(&s);
            scene_close(&s);
        }
    }
}
END_TEST

/* Priors on a lattice and objects of their size half a step away: the same few overlaps again and again. */
START_TEST(lattices) {
    random_state = 4000 + (uint64_t)_i;
    for (int round = 0; round < 40; round++) {
        scene s;
        scene_open(&s, 1 + below(30), 1 + below(20), matcher_of(_i));
        for (int32_t p = 0; p < s.p; p++) {
            memcpy(s.prior_boxes + 4 * p, (float[4]){.25f * (float)below(5), .25f * (float)below(3), .25f, .25f}, 16);
        }
        for (int32_t g = 0; g < s.n; g++) {
            float x = .125f * (float)below(10), y = .125f * (float)below(6);
            bool sizes = s.criterion.matcher.iou == BX_IOU_SIZES;
            memcpy(s.boxes + 4 * g, (float[4]){x, y, sizes ? .25f : x + .25f, sizes ? .25f : y + .25f}, 16);
        }
        random_use(&s, below(2));
        check(&s);
        scene_close(&s);
    }
}
END_TEST

/* Neighbours lie together, so that objects meet few culling runs; what is matched begins and ends anywhere. */
START_TEST(ranges_of_neighbours) {
    static const int32_t priors[] = {300, 1000, BX_BLOCK + 700};
    random_state = 6000 + (uint64_t)_i;
    for (size_t i = 0; i < 3; i++) {
        scene s;
        scene_open(&s, priors[i], 12, matcher_of(_i));
        for (int32_t p = 0; p < s.p; p++) {
            float x = (float)(p / 4) / (float)(s.p / 4);
            memcpy(s.prior_boxes + 4 * p, (float[4]){x, .5f, .02f + .02f * (float)(p % 4), .25f}, 16);
        }
        random_objects(&s, 1);
        random_use(&s, 1 + below(2));
        s.in_ranges = true;
        check(&s);
        scene_close(&s);
    }
}
END_TEST

/* Ties across blocks: copies of priors of the first block in the later ones, and the other way round. */
START_TEST(across_blocks) {
    static const int32_t priors[] = {BX_BLOCK - 1, BX_BLOCK, BX_BLOCK + 1, 2 * BX_BLOCK, 2 * BX_BLOCK + 129};
    const int32_t p = priors[_i / 8];
    random_state = 5000 + (uint64_t)_i;
    bx_matcher matcher = matcher_of(_i % 8);
    matcher.negative_iou = _i % 3 ? -1 : .3f;
    scene s;
    scene_open(&s, p, 25, matcher);
    for (int32_t i = 0; i < p; i++) { /* few different ones */
        float *box = s.prior_boxes + 4 * i;
        memcpy(box, (float[4]){.1f * (float)(i / 64 % 10), .1f * (float)(i % 10), .2f, .1f + .05f * (float)(i % 3)},
               16);
    }
    for (int32_t i = 0; i < 40; i++) {
        memcpy(s.prior_boxes + 4 * below(p), s.prior_boxes + 4 * below(p), 16);
    }
    random_objects(&s, 1);
    random_use(&s, 1);
    check(&s);
    scene_close(&s);
}
END_TEST

START_TEST(identical_everything) {
    for (int rule = 0; rule < N_RULES; rule++) {
        scene s;
        scene_open(&s, 300, 7, matcher_of(rule));
        for (int32_t p = 0; p < 300; p++) {
            memcpy(s.prior_boxes + 4 * p, (float[4]){.5f, .5f, .5f, .5f}, 16);
        }
        for (int32_t g = 0; g < 7; g++) {
            memcpy(s.boxes + 4 * g, (float[4]){.25f, .25f, .75f, .75f}, 16);
            if (s.criterion.matcher.iou == BX_IOU_SIZES) {
                memcpy(s.boxes + 4 * g, s.prior_boxes, 16);
            }
        }
        check(&s);
        ck_assert_int_eq(s.c.job.images[0].positives, 300);
        ck_assert_int_eq(s.c.job.images[0].unmatched_objects, rule % 4 == BX_FORCE_GREEDY ? 0
                                                              : rule % 4 == BX_FORCE_LAST ? 5
                                                                                          : 6);
        scene_close(&s);
    }
}
END_TEST

/* Objects that are not used change nothing but their own counts and what they cover. */
START_TEST(unused_objects_do_not_matter) {
    random_state = 7000 + (uint64_t)_i;
    scene all, rest;
    scene_open(&all, 500, 30, matcher_of(_i));
    random_priors(&all, 1);
    random_objects(&all, 1);
    int32_t kept = 0;
    scene_open(&rest, 500, 30, matcher_of(_i));
    memcpy(rest.prior_boxes, all.prior_boxes, 500 * 16);
    for (int32_t g = 0; g < 30; g++) {
        all.use[g] = below(2) ? BX_OBJECT_USED : BX_OBJECT_DROPPED;
        if (all.use[g] == BX_OBJECT_USED) {
            rest.labels[kept] = all.labels[g];
            memcpy(rest.boxes + 4 * kept++, all.boxes + 4 * g, 16);
        }
    }
    rest.n = rest.first[1] = kept;
    check(&all);
    check(&rest);
    for (int32_t p = 0; p < 500; p++) {
        HOLDS(all.c.job.state[p] == rest.c.job.state[p], "state of prior %d", p);
        HOLDS(bx_result_prior_class(&all.c.result, 0, p) == bx_result_prior_class(&rest.c.result, 0, p), "class of %d",
              p);
    }
    ck_assert_int_eq(all.c.result.collided, rest.c.result.collided);
    ck_assert_int_eq(all.c.result.unmatched_objects, rest.c.result.unmatched_objects);
    ck_assert(all.c.result.best_iou_mean == rest.c.result.best_iou_mean);
    ck_assert(all.c.result.positives_per_object_mean == rest.c.result.positives_per_object_mean);
    ck_assert(!memcmp(all.c.result.best_iou_histogram, rest.c.result.best_iou_histogram,
                      sizeof rest.c.result.best_iou_histogram));
    scene_close(&all);
    scene_close(&rest);
}
END_TEST

/* ---- targets instead of annotations ------------------------------------------------------------------------------ */

START_TEST(targets) {
    enum { P = BX_BLOCK + 9 };
    static const int32_t none[3] = {0, 0, 0};
    static int64_t classes[2][P];
    static float loc[2][P][4];
    random_state = 9000;
    bx_image_row owed[2] = {{.objects = 0}, {.objects = 0}};
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < P; p++) {
            classes[i][p] = below(4) - 2;
            owed[i].positives += classes[i][p] >= 0;
            owed[i].ignored += classes[i][p] == -2;
            owed[i].negatives += classes[i][p] == -1;
            for (int c = 0; c < 4; c++) {
                loc[i][p][c] = classes[i][p] >= 0 ? uniform(-3, 3) : NAN;
            }
        }
    }
    bx_priors *priors = NULL;
    ck_assert_int_eq(bx_priors_new(&priors, NULL, P, NULL), BX_OK);
    const bx_batch batch = {.n_images = 2,
                            .n_priors = P,
                            .n_columns = 3,
                            .first = none,
                            .target_classes = {BX_I64, classes},
                            .target_loc = {BX_F32, loc}};
    computation c;
    bx_error error = {0};
    bx_status status =
        compute(&c, NULL, bx_criterion_preset("ssd-multibox"), priors, &batch, BX_GRADIENTS_NONE, &error);
    ck_assert_msg(status == BX_OK, "%s", error.text);
    for (int i = 0; i < 2; i++) {
        const bx_image_row *row = &c.job.images[i];
        ck_assert_int_eq(row->positives, owed[i].positives);
        ck_assert_int_eq(row->ignored, owed[i].ignored);
        ck_assert_int_eq(row->negatives, owed[i].negatives);
        ck_assert(row->forced == 0 && row->collided == 0 && row->objects == 0 && row->unmatched_objects == 0);
        for (int p = 0; p < P; p++) {
            double target[4];
            HOLDS(bx_result_prior_class(&c.result, i, p) == classes[i][p], "class of prior %d", p);
            HOLDS(bx_result_prior_object(&c.result, i, p) == -1, "object of prior %d", p);
            bx_result_target(&c.result, i, p, target);
            for (int k = 0; k < 4; k++) {
                double value = classes[i][p] >= 0 ? (double)loc[i][p][k] : 0;
                HOLDS(target[k] == value, "target of prior %d", p);
            }
        }
    }
    ck_assert(c.result.objects == 0 && c.result.objects_without_overlap == 0 && c.result.best_iou_mean == 0);
    for (int32_t k = 0; k < 2; k++) {
        bx_loss share;
        bx_class_row row = bx_result_class(&c.result, k, &share);
        int64_t positives = 0;
        for (int i = 0; i < 2; i++) {
            for (int p = 0; p < P; p++) {
                positives += classes[i][p] == k;
            }
        }
        ck_assert(row.positives == positives && row.objects == 0);
    }
    computation_free(&c);
    bx_priors_free(priors);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("assign");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, open_contexts, close_contexts);
    tcase_add_test(tests, a_shared_best_prior);
    tcase_add_test(tests, a_shared_best_prior_below_the_threshold);
    tcase_add_test(tests, exact_thresholds);
    tcase_add_test(tests, forced_out_of_the_band);
    tcase_add_test(tests, no_overlap);
    tcase_add_test(tests, greedy_ties);
    tcase_add_test(tests, greedy_takes_the_lowest_prior_first);
    tcase_add_test(tests, ignored_objects);
    tcase_add_test(tests, ignored_share_at_the_threshold);
    tcase_add_test(tests, tiny_boxes);
    tcase_add_loop_test(tests, every_rule, 0, N_RULES);
    tcase_add_loop_test(tests, lattices, 0, N_RULES);
    tcase_add_loop_test(tests, ranges_of_neighbours, 0, N_RULES);
    tcase_add_loop_test(tests, across_blocks, 0, 5 * 8);
    tcase_add_test(tests, identical_everything);
    tcase_add_loop_test(tests, unused_objects_do_not_matter, 0, N_RULES);
    tcase_add_test(tests, targets);
    return suite_run(suite);
}
