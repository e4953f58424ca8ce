/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of a job against naive versions written here: matching by the whole float32 matrix, cross-entropy in
 * double, mining by a sort. Then what must not change a bit: how a block is cut into ranges, the order of the blocks,
 * the order of the images, the split of a batch.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"

static void *get(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    HOLDS(memory, "no memory");
    memset(memory, 0xa5, (bytes + 64) / 64 * 64);
    return memory;
}

/* ---- a batch and its job ----------------------------------------------------------------------------------------- */

typedef struct scene {
    bx_priors *priors;
    float *prior_boxes, *boxes, *loc, *conf;
    int64_t *labels;
    int32_t *first;
    bx_batch batch;
    bx_plan plan;
    bx_job job;
    void *work;
    bx_context *context;
} scene;

static void scene_plan(scene *s) {
    bx_error error = {0};
    HOLDS(bx_priors_new(&s->priors, s->prior_boxes, s->batch.n_priors, &error) == BX_OK, "%s", error.text);
    HOLDS(bx_plan_init(&s->plan, bx_criterion_preset("ssd-multibox"), s->priors, &s->batch, &error) == BX_OK, "%s: %s",
          error.path, error.text);
    s->work = get(s->plan.work_bytes);
    bx_job_init(&s->job, &s->plan, &s->batch, s->work);
    HOLDS(bx_context_open(&s->context, "cpu", NULL, &error) == BX_OK, "%s", error.text);
}

/* Room for N images of P priors, C columns and the given objects per image; contents are the caller's to fill. */
static void scene_open(scene *s, int32_t n, int32_t p, int32_t c, const int32_t *objects) {
    memset(s, 0, sizeof *s);
    s->first = get(((size_t)n + 1) * sizeof *s->first);
    s->first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        s->first[i + 1] = s->first[i] + objects[i];
    }
    const size_t g = (size_t)s->first[n], rows = (size_t)n * (size_t)p;
    s->prior_boxes = get((size_t)p * 16);
    s->boxes = get(g * 16);
    s->labels = get(g * sizeof *s->labels);
    s->loc = get(rows * 16);
    s->conf = get(rows * (size_t)c * 4);
    s->batch = (bx_batch){
        .n_images = n,
        .n_priors = p,
        .n_columns = c,
        .loc = {BX_F32, s->loc},
        .conf = {BX_F32, s->conf},
        .boxes = s->boxes,
        .labels = s->labels,
        .first = s->first,
    };
}

static void scene_close(scene *s) {
    bx_context_close(s->context);
    bx_priors_free(s->priors);
    free(s->prior_boxes);
    free(s->boxes);
    free(s->loc);
    free(s->conf);
    free(s->labels);
    free(s->first);
    free(s->work);
}

static void corners(const float prior[4], float box[4]) {
    for (int i = 0; i < 2; i++) {
        box[i] = prior[i] - prior[i + 2] / 2;
        box[i + 2] = prior[i] + prior[i + 2] / 2;
    }
}

/* Coordinates on a coarse grid, with copies and mirror images among the priors, objects that are priors or lie between
 * or beside them, repeated objects, and equal rows of logits: ties everywhere. */
static void fill_with_ties(scene *s) {
    const int32_t p = s->batch.n_priors, c = s->batch.n_columns, g = s->first[s->batch.n_images];
    const size_t rows = (size_t)s->batch.n_images * (size_t)p;
    for (int32_t i = 0; i < p; i++) {
        float *box = s->prior_boxes + 4 * (size_t)i;
        const float *other = s->prior_boxes + 4 * (size_t)below(i ? i : 1);
        switch (i ? below(4) : 3) {
        case 0:
            memmove(box, other, 16);
            break;
        case 1:
            memcpy(box, (float[4]){1 - other[0], other[1], other[2], other[3]}, 16);
            break;
        default:
            memcpy(box,
                   (float[4]){(float)below(20) * .05f, (float)below(20) * .05f, .05f * (float)(1 + below(8)),
                              .05f * (float)(1 + below(8))},
                   16);
        }
    }
    for (int32_t i = 0; i < g; i++) {
        float *box = s->boxes + 4 * (size_t)i;
        corners(s->prior_boxes + 4 * (size_t)below(p), box);
        switch (below(5)) {
        case 0:
            memmove(box, s->boxes + 4 * (size_t)below(i + 1), 16);
            break;
        case 1: /* far away */
            memcpy(box, (float[4]){-1, -1, -.95f, -.95f}, 16);
            break;
        case 2: /* half of a prior */
            box[2] = (box[0] + box[2]) / 2;
            break;
        case 3:
            box[2] += .05f;
            break;
        default:
            break;
        }
        s->labels[i] = below(c - 1);
    }
    for (size_t i = 0; i < rows; i++) {
        bool again = i > 0 && below(3) == 0;
        size_t from = again ? (size_t)below((int32_t)i) : i;
        for (int32_t k = 0; k < c; k++) {
            float x = uniform(-4, 4) + (k == 0 ? 2 : 0);
            s->conf[i * (size_t)c + (size_t)k] = again ? s->conf[from * (size_t)c + (size_t)k] : x;
        }
        for (int k = 0; k < 4; k++) {
            s->loc[4 * i + (size_t)k] = uniform(-3, 3);
        }
    }
}

static int32_t block_end(const scene *s, int32_t block) {
    return (block + 1) * BX_BLOCK < s->plan.n_priors ? (block + 1) * BX_BLOCK : s->plan.n_priors;
}

static void run_blocks(scene *s, int32_t image) {
    for (int32_t b = 0; b < s->plan.n_blocks; b++) {
        bx_run_block(s->context, &s->job, image, b);
    }
}

static void run_all(scene *s) {
    for (int32_t i = 0; i < s->plan.n_images; i++) {
        run_blocks(s, i);
        bx_run_image(s->context, &s->job, i);
    }
}

/* ---- comparing two jobs of one shape ----------------------------------------------------------------------------- */

static void same_bytes(const void *a, const void *b, size_t n, size_t element, size_t used, const char *what) {
    for (size_t i = 0; i < n; i++) {
        HOLDS(!memcmp((const char *)a + i * element, (const char *)b + i * element, used), "%s[%zu] differs", what, i);
    }
}

#define SAME(member, at_a, at_b, n, used)                                                                              \
    same_bytes(a->member + (at_a), b->member + (at_b), n, sizeof *a->member, used, #member)

/* Image i of job a and image j of job b hold the same bits (padding aside). */
static void same_image(const bx_job *a, int32_t i, const bx_job *b, int32_t j) {
    const bx_plan *plan = a->plan;
    const size_t p = (size_t)plan->n_priors, k = (size_t)plan->n_classes, l = (size_t)plan->priors->n_levels;
    const size_t blocks = (size_t)plan->n_blocks, x = (size_t)i, y = (size_t)j;
    const size_t ga = (size_t)a->batch->first[i], gb = (size_t)b->batch->first[j];
    const size_t objects = (size_t)a->batch->first[i + 1] - ga;
    SAME(overlap, x * p, y * p, p, 4);
    SAME(owner, x * p, y * p, p, 4);
    SAME(state, x * p, y * p, p, 1);
    SAME(bad, x * blocks, y * blocks, blocks, sizeof(bx_bad));
    SAME(images, x, y, 1, offsetof(bx_image_row, unmatched_objects) + 4);
    SAME(classes, x * k, y * k, k, sizeof(bx_class_row));
    SAME(levels, x * l, y * l, l, sizeof(bx_level_row));
    SAME(objects, ga, gb, objects, offsetof(bx_object_row, collided) + 1);
    if (plan->with_predictions) {
        SAME(score, x * p, y * p, p, 4);
    }
}

/* ---- matching ---------------------------------------------------------------------------------------------------- */

/* The whole matrix and three passes over it, as the origins do. Expects run_blocks and bx_stage_assign to have run. */
static void check_matching(const scene *s, int32_t image) {
    const bx_job *job = &s->job;
    const int32_t p = s->plan.n_priors, g0 = s->first[image], n = s->first[image + 1] - g0;
    const size_t base = (size_t)image * (size_t)p;
    float *matrix = get(((size_t)n * (size_t)p + 1) * 4), *lifted = get((size_t)p * 4);
    int32_t *owner = get((size_t)p * 4), *best = get(((size_t)n + 1) * 4), *count = get(((size_t)n + 1) * 4);
    for (int32_t g = 0; g < n; g++) {
        const float *box = s->boxes + 4 * (size_t)(g0 + g);
        best[g] = 0;
        for (int32_t i = 0; i < p; i++) {
            float prior[4];
            corners(s->prior_boxes + 4 * (size_t)i, prior);
            float w = fminf(box[2], prior[2]) - fmaxf(box[0], prior[0]);
            float h = fminf(box[3], prior[3]) - fmaxf(box[1], prior[1]);
            float inter = fmaxf(w, 0) * fmaxf(h, 0);
            float box_area = (box[2] - box[0]) * (box[3] - box[1]);
            float prior_area = (prior[2] - prior[0]) * (prior[3] - prior[1]);
            float iou = inter / ((box_area + prior_area) - inter);
            matrix[(size_t)g * (size_t)p + (size_t)i] = iou;
            best[g] = iou > matrix[(size_t)g * (size_t)p + (size_t)best[g]] ? i : best[g];
        }
    }
    for (int32_t i = 0; i < p; i++) {
        lifted[i] = 0;
        owner[i] = -1;
        for (int32_t g = 0; g < n; g++) {
            float iou = matrix[(size_t)g * (size_t)p + (size_t)i];
            owner[i] = iou > lifted[i] ? g : owner[i];
            lifted[i] = iou > lifted[i] ? iou : lifted[i];
        }
        HOLDS(job->overlap[base + (size_t)i] == lifted[i], "overlap of prior %d", i);
    }
    for (int32_t g = 0; g < n; g++) {
        lifted[best[g]] = 2;
        owner[best[g]] = g;
        count[g] = 0;
    }
    bx_image_row row = {.objects = n};
    for (int32_t i = 0; i < p; i++) {
        bool positive = lifted[i] >= 0.5f, forced = positive && job->overlap[base + (size_t)i] < 0.5f;
        int state = job->state[base + (size_t)i] & (BX_POSITIVE | BX_FORCED);
        HOLDS(state == (positive ? BX_POSITIVE : 0) + (forced ? BX_FORCED : 0), "state of prior %d", i);
        HOLDS(!positive || job->owner[base + (size_t)i] == owner[i], "owner of prior %d", i);
        row.positives += positive;
        row.forced += forced;
        if (positive) {
            count[owner[i]]++;
        }
    }
    for (int32_t g = 0; g < n; g++) {
        const bx_object_row *object = &job->objects[g0 + g];
        bool collided = owner[best[g]] != g;
        HOLDS(object->best_prior == best[g], "object %d: prior %d, not %d", g, object->best_prior, best[g]);
        HOLDS(object->best_iou == matrix[(size_t)g * (size_t)p + (size_t)best[g]], "best IoU of object %d", g);
        HOLDS(object->positives == count[g], "positives of object %d", g);
        HOLDS(object->collided == collided, "collision of object %d", g);
        HOLDS(object->forced == (!collided && job->overlap[base + (size_t)best[g]] < 0.5f), "forcing of object %d", g);
        row.collided += collided;
        row.unmatched_objects += count[g] == 0;
    }
    const bx_image_row *got = &job->images[image];
    HOLDS(got->objects == n && got->positives == row.positives && got->negatives == p - row.positives, "counts");
    HOLDS(got->forced == row.forced && got->collided == row.collided, "forced and collided");
    HOLDS(got->unmatched_objects == row.unmatched_objects, "unmatched objects");
    free(matrix);
    free(lifted);
    free(owner);
    free(best);
    free(count);
}

START_TEST(matching_with_ties) {
    static const int32_t objects[] = {0, 1, 2, 5, 17, 40, 3};
    static const int32_t priors[] = {1, 2, 7, 31, 64, 127, 128, 129, 300, 1000};
    random_state = (uint64_t)_i;
    for (size_t i = 0; i < sizeof priors / sizeof *priors; i++) {
        scene s;
        scene_open(&s, 7, priors[i], 4, objects);
        fill_with_ties(&s);
        scene_plan(&s);
        for (int32_t image = 0; image < 7; image++) {
            run_blocks(&s, image);
            bx_stage_assign(&s.job, image);
            check_matching(&s, image);
        }
        scene_close(&s);
    }
}
END_TEST

START_TEST(matching_across_blocks) {
    static const int32_t objects[] = {30, 0, 6};
    random_state = 99;
    scene s;
    scene_open(&s, 3, 2 * BX_BLOCK + 77, 2, objects);
    fill_with_ties(&s);
    for (int32_t i = 0; i < 40; i++) { /* copies in other blocks: the lowest must win */
        int32_t from = below(BX_BLOCK), to = (1 + below(2)) * BX_BLOCK + below(77);
        memcpy(s.prior_boxes + 4 * (size_t)to, s.prior_boxes + 4 * (size_t)from, 16);
    }
    scene_plan(&s);
    ck_assert_int_eq(s.plan.n_blocks, 3);
    for (int32_t image = 0; image < 3; image++) {
        run_blocks(&s, image);
        bx_stage_assign(&s.job, image);
        check_matching(&s, image);
    }
    scene_close(&s);
}
END_TEST

/* One image; priors and objects as given, without predictions. */
static void scene_match(scene *s, int32_t p, const float (*prior_boxes)[4], int32_t n, const float (*boxes)[4]) {
    scene_open(s, 1, p, 3, &n);
    memcpy(s->prior_boxes, prior_boxes, (size_t)p * 16);
    memcpy(s->boxes, boxes, (size_t)n * 16);
    memset(s->labels, 0, (size_t)n * sizeof *s->labels);
    s->batch.conf.data = NULL;
    scene_plan(s);
    run_all(s);
    check_matching(s, 0);
}

START_TEST(iou_of_exactly_a_half) {
    scene s;
    scene_match(&s, 3, (const float[][4]){{.25f, .25f, .5f, .5f}, {.75f, .75f, .5f, .5f}, {.25f, .25f, .25f, .5f}}, 1,
                (const float[][4]){{0, 0, .5f, .25f}});
    ck_assert(s.job.overlap[0] == .5f);
    ck_assert_int_eq(s.job.state[0], BX_POSITIVE);
    scene_close(&s);
    /* the next object's best prior is another, so only the threshold decides on prior 0 */
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.25f, .125f, .5f, .25f}}, 1,
                (const float[][4]){{0, 0, .5f, .25f}});
    ck_assert_int_eq(s.job.objects[0].best_prior, 1);
    ck_assert_int_eq(s.job.state[0], BX_POSITIVE);
    ck_assert_int_eq(s.job.objects[0].positives, 2);
    scene_close(&s);
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.25f, .125f, .5f, .25f}}, 1,
                (const float[][4]){{0, 0, .5f, .249999f}});
    ck_assert_int_eq(s.job.state[0], 0);
    scene_close(&s);
}
END_TEST

START_TEST(no_overlap_claims_prior_0) {
    scene s;
    scene_match(&s, 3, (const float[][4]){{.8f, .8f, .1f, .1f}, {.5f, .5f, .2f, .2f}, {.2f, .8f, .2f, .2f}}, 2,
                (const float[][4]){{.4f, .4f, .6f, .6f}, {0, 0, .1f, .1f}});
    ck_assert_int_eq(s.job.state[0], BX_POSITIVE | BX_FORCED);
    ck_assert_int_eq(s.job.owner[0], 1);
    ck_assert_int_eq(s.job.objects[1].best_prior, 0);
    ck_assert(s.job.objects[1].best_iou == 0);
    ck_assert(s.job.objects[1].forced && !s.job.objects[1].collided);
    ck_assert_int_eq(s.job.images[0].forced, 1);
    scene_close(&s);
}
END_TEST

START_TEST(the_last_object_wins) {
    scene s; /* both objects are nearest to prior 0; the second takes it and the first is left with nothing */
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.8f, .8f, .2f, .2f}}, 2,
                (const float[][4]){{0, 0, .5f, .5f}, {0, 0, .5f, .45f}});
    ck_assert_int_eq(s.job.owner[0], 1);
    ck_assert_int_eq(s.job.state[0], BX_POSITIVE);
    ck_assert(s.job.objects[0].collided && !s.job.objects[1].collided);
    ck_assert_int_eq(s.job.objects[0].positives, 0);
    ck_assert_int_eq(s.job.images[0].collided, 1);
    ck_assert_int_eq(s.job.images[0].unmatched_objects, 1);
    ck_assert_int_eq(s.job.images[0].forced, 0);
    scene_close(&s);
}
END_TEST

/* ---- scores and mining ------------------------------------------------------------------------------------------- */

static double cross_entropy(const float *row, int32_t c, int32_t label) {
    double max = -INFINITY, sum = 0;
    for (int32_t k = 0; k < c; k++) {
        max = fmax(max, (double)row[k]);
    }
    for (int32_t k = 0; k < c; k++) {
        sum += exp((double)row[k] - max);
    }
    return log(sum) + (max - (double)row[label]);
}

START_TEST(scores) {
    static const int32_t columns[] = {2, 3, 4, 5, 21, 91, 257};
    static const int32_t objects[] = {9};
    const int32_t p = 137;
    random_state = (uint64_t)_i;
    const int32_t c = columns[_i];
    scene s;
    scene_open(&s, 1, p, c, objects);
    fill_with_ties(&s);
    memset(s.conf, 0, (size_t)c * 4); /* equal logits */
    s.conf[c] = 88;                   /* and extreme ones */
    s.conf[c + 1] = -88;
    scene_plan(&s);
    run_blocks(&s, 0);
    for (int32_t i = 0; i < p; i++) {
        double owed = cross_entropy(s.conf + i * c, c, 0);
        HOLDS(fabs((double)s.job.score[i] - owed) <= 1e-6 * owed + 1e-7, "score of %d: %.9g, not %.9g", i,
              (double)s.job.score[i], owed);
    }
    bx_run_image(s.context, &s.job, 0);
    for (int32_t i = 0; i < p; i++) {
        int32_t label = s.job.state[i] & BX_POSITIVE ? 1 + (int32_t)s.labels[s.job.owner[i]] : 0;
        double owed = cross_entropy(s.conf + i * c, c, label);
        HOLDS(fabs((double)s.job.score[i] - owed) <= 1e-6 * owed + 1e-7, "own score of %d", i);
        int32_t largest = 0;
        for (int32_t k = 1; k < c; k++) {
            largest = s.conf[i * c + k] > s.conf[i * c + largest] ? k : largest;
        }
        HOLDS(!(s.job.state[i] & BX_CORRECT) == !(label > 0 && largest == label), "correctness of %d", i);
    }
    scene_close(&s);
}
END_TEST

static const float *ranked;

static int by_loss(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    return ranked[i] != ranked[j] ? (ranked[i] < ranked[j] ? 1 : -1) : (i > j) - (i < j);
}

/* Runs one image up to mining and compares the mined set with a sort. */
static void check_mining(scene *s, int32_t image, double ratio) {
    const int32_t p = s->plan.n_priors;
    const size_t base = (size_t)image * (size_t)p;
    float *loss = get((size_t)p * 4);
    int32_t *order = get((size_t)p * 4), n = 0;
    run_blocks(s, image);
    bx_stage_assign(&s->job, image);
    memcpy(loss, s->job.score + base, (size_t)p * 4);
    for (int32_t i = 0; i < p; i++) {
        if (!(s->job.state[base + (size_t)i] & BX_POSITIVE)) {
            order[n++] = i;
        }
    }
    ranked = loss;
    qsort(order, (size_t)n, sizeof *order, by_loss);
    bx_stage_mine(s->context, &s->job, image);
    int32_t rank = 0; /* rank < ratio x positives */
    for (; rank < n && (double)rank < ratio * s->job.images[image].positives; rank++) {
        HOLDS(s->job.state[base + (size_t)order[rank]] == BX_HARD_NEGATIVE, "prior %d of rank %d", order[rank], rank);
    }
    HOLDS(s->job.images[image].hard_negatives == rank, "%d mined", s->job.images[image].hard_negatives);
    for (; rank < n; rank++) {
        HOLDS(s->job.state[base + (size_t)order[rank]] == 0, "prior %d of rank %d", order[rank], rank);
    }
    free(loss);
    free(order);
}

START_TEST(mining) {
    static const double ratios[] = {3, 0, 1, 1.5, 0.25, 1e9, 2.999};
    static const int32_t objects[] = {0, 1, 3, 12, 60};
    static const int32_t priors[] = {1, 8, 33, 500, BX_BLOCK + 50};
    bx_criterion criterion = *bx_criterion_preset("ssd-multibox");
    criterion.mining.ratio = ratios[_i];
    random_state = 7 + (uint64_t)_i;
    for (size_t i = 0; i < sizeof priors / sizeof *priors; i++) {
        scene s;
        scene_open(&s, 5, priors[i], 3, objects);
        fill_with_ties(&s);
        scene_plan(&s);
        s.plan.criterion = &criterion;
        for (int32_t image = 0; image < 5; image++) {
            check_mining(&s, image, ratios[_i]);
        }
        scene_close(&s);
    }
}
END_TEST

START_TEST(mining_of_equal_losses) {
    static const int32_t objects[] = {2};
    scene s;
    scene_open(&s, 1, 200, 3, objects);
    random_state = 3;
    fill_with_ties(&s);
    memset(s.conf, 0, 200 * 3 * 4);
    scene_plan(&s);
    check_mining(&s, 0, 3);
    ck_assert_int_gt(s.job.images[0].hard_negatives, 0);
    scene_close(&s);
}
END_TEST

/* ---- what must not change a bit ---------------------------------------------------------------------------------- */

/* A second job over the same plan and batch, its workspace poisoned. */
static void *second_job(bx_job *job, const scene *s) {
    void *work = get(s->plan.work_bytes);
    bx_job_init(job, &s->plan, &s->batch, work);
    return work;
}

/* Calls `stage` over a block's priors in ascending random ranges. */
static void in_ranges(scene *s, bx_job *job, int32_t image, int32_t block,
                      void (*stage)(bx_context *, bx_job *, int32_t, int32_t, int32_t)) {
    const int32_t end = block_end(s, block), longest = below(3) ? 700 : 70;
    for (int32_t at = block * BX_BLOCK; at < end;) {
        int32_t n = below(5) ? 1 + below(longest) : 1;
        n = n < end - at ? n : end - at;
        stage(s->context, job, image, at, n);
        at += n;
    }
}

static void reduce_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    (void)context;
    bx_stage_reduce(job, image, first, count);
}

START_TEST(ranges) {
    static const int32_t objects[] = {5, 0, 33};
    static const int32_t priors[] = {1, 63, 64, 65, 700, BX_BLOCK - 1, BX_BLOCK + 1, 2 * BX_BLOCK + 300};
    random_state = (uint64_t)_i;
    scene s;
    scene_open(&s, 3, priors[_i], 5, objects);
    fill_with_ties(&s);
    scene_plan(&s);
    run_all(&s);
    for (int round = 0; round < 3; round++) {
        bx_job cut;
        void *work = second_job(&cut, &s);
        for (int32_t image = 2; image >= 0; image--) {
            for (int32_t b = s.plan.n_blocks - 1; b >= 0; b--) { /* blocks in any order, scores before matches */
                bx_stage_begin(&cut, image, b);
                in_ranges(&s, &cut, image, b, round ? bx_stage_score : bx_stage_match);
                in_ranges(&s, &cut, image, b, round ? bx_stage_match : bx_stage_score);
            }
            bx_stage_assign(&cut, image);
            bx_stage_mine(s.context, &cut, image);
            for (int32_t b = s.plan.n_blocks - 1; b >= 0; b--) {
                in_ranges(&s, &cut, image, b, bx_stage_positives);
            }
            for (int32_t b = 0; b < s.plan.n_blocks; b++) {
                in_ranges(&s, &cut, image, b, reduce_range);
            }
        }
        for (int32_t image = 0; image < 3; image++) {
            same_image(&s.job, image, &cut, image);
        }
        free(work);
    }
    scene_close(&s);
}
END_TEST

/* Image `from[i]` of s becomes image i of a new scene. */
static void scene_select(scene *to, const scene *s, int32_t n, const int32_t *from) {
    int32_t objects[16];
    const size_t p = (size_t)s->plan.n_priors, c = (size_t)s->plan.n_columns;
    for (int32_t i = 0; i < n; i++) {
        objects[i] = s->first[from[i] + 1] - s->first[from[i]];
    }
    scene_open(to, n, s->plan.n_priors, s->plan.n_columns, objects);
    memcpy(to->prior_boxes, s->prior_boxes, p * 16);
    for (int32_t i = 0; i < n; i++) {
        size_t x = (size_t)i, y = (size_t)from[i], g = (size_t)objects[i];
        size_t gx = (size_t)to->first[i], gy = (size_t)s->first[from[i]];
        memcpy(to->boxes + 4 * gx, s->boxes + 4 * gy, g * 16);
        memcpy(to->labels + gx, s->labels + gy, g * sizeof *s->labels);
        memcpy(to->loc + x * p * 4, s->loc + y * p * 4, p * 16);
        memcpy(to->conf + x * p * c, s->conf + y * p * c, p * c * 4);
    }
    scene_plan(to);
    run_all(to);
}

static const int32_t six[] = {4, 0, 21, 1, 9, 2};

START_TEST(permuted_images) {
    static const int32_t permutation[] = {5, 2, 0, 4, 1, 3};
    random_state = 41;
    scene s, other;
    scene_open(&s, 6, 600, 7, six);
    fill_with_ties(&s);
    scene_plan(&s);
    run_all(&s);
    scene_select(&other, &s, 6, permutation);
    for (int32_t i = 0; i < 6; i++) {
        same_image(&s.job, permutation[i], &other.job, i);
    }
    scene_close(&other);
    scene_close(&s);
}
END_TEST

START_TEST(split_batch) {
    static const int32_t head[] = {0, 1, 2}, tail[] = {3, 4, 5};
    random_state = 42;
    scene s, parts[2];
    scene_open(&s, 6, 600, 7, six);
    fill_with_ties(&s);
    scene_plan(&s);
    run_all(&s);
    scene_select(&parts[0], &s, 3, head);
    scene_select(&parts[1], &s, 3, tail);
    bx_sums sums = {0};
    int64_t positives = 0, hard_negatives = 0;
    for (int32_t i = 0; i < 6; i++) { /* image by image, in order: to the bit */
        const bx_image_row *row = &parts[i / 3].job.images[i % 3];
        same_image(&s.job, i, &parts[i / 3].job, i % 3);
        sums.loc += row->sums.loc;
        sums.conf_positive += row->sums.conf_positive;
        sums.conf_negative += row->sums.conf_negative;
        positives += row->positives;
        hard_negatives += row->hard_negatives;
    }
    bx_result whole, part[2];
    ck_assert_int_eq(bx_finish(&whole, &s.job, NULL), BX_OK);
    ck_assert_int_eq(bx_finish(&part[0], &parts[0].job, NULL), BX_OK);
    ck_assert_int_eq(bx_finish(&part[1], &parts[1].job, NULL), BX_OK);
    ck_assert(!memcmp(&whole.sums, &sums, sizeof sums));
    ck_assert_int_eq(whole.positives, positives);
    ck_assert_int_eq(whole.hard_negatives, hard_negatives);
    ck_assert_int_eq(part[0].positives + part[1].positives, positives);
    double loc = part[0].sums.loc + part[1].sums.loc; /* half by half: up to the order of additions */
    ck_assert_double_eq_tol(loc, whole.sums.loc, 1e-12 * whole.sums.loc);
    scene_close(&parts[0]);
    scene_close(&parts[1]);
    scene_close(&s);
}
END_TEST

START_TEST(a_job_runs_again) {
    random_state = 43;
    scene s;
    scene_open(&s, 6, 600, 7, six);
    fill_with_ties(&s);
    scene_plan(&s);
    run_all(&s);
    bx_job again;
    void *work = second_job(&again, &s);
    bx_job first = s.job;
    s.job = again;
    run_all(&s);
    run_all(&s); /* over its own results */
    for (int32_t i = 0; i < 6; i++) {
        same_image(&first, i, &again, i);
    }
    free(work);
    scene_close(&s);
}
END_TEST

/* ---- without predictions ----------------------------------------------------------------------------------------- */

START_TEST(matching_alone) {
    random_state = 44;
    scene s;
    scene_open(&s, 6, BX_BLOCK + 600, 7, six);
    fill_with_ties(&s);
    scene_plan(&s);
    run_all(&s);
    bx_batch batch = s.batch;
    batch.loc.data = batch.conf.data = NULL;
    bx_plan plan;
    bx_job job;
    ck_assert_int_eq(bx_plan_init(&plan, s.plan.criterion, s.priors, &batch, NULL), BX_OK);
    void *work = get(plan.work_bytes);
    bx_job_init(&job, &plan, &batch, work);
    for (int32_t i = 0; i < 6; i++) {
        for (int32_t b = 0; b < plan.n_blocks; b++) {
            bx_run_block(s.context, &job, i, b);
        }
        bx_run_image(s.context, &job, i);
    }
    bx_result with, without;
    ck_assert_int_eq(bx_finish(&with, &s.job, NULL), BX_OK);
    ck_assert_int_eq(bx_finish(&without, &job, NULL), BX_OK);
    ck_assert_int_eq(with.positives, without.positives);
    ck_assert_int_eq(without.hard_negatives, 0);
    ck_assert_int_eq(with.forced, without.forced);
    ck_assert(without.sums.loc == 0 && without.loss.total == 0);
    for (size_t i = 0; i < 6 * (size_t)plan.n_priors; i++) {
        HOLDS((s.job.state[i] & (BX_POSITIVE | BX_FORCED)) == job.state[i], "state %zu", i);
        HOLDS(!job.state[i] || s.job.owner[i] == job.owner[i], "owner %zu", i);
    }
    for (int32_t k = 0; k < plan.n_classes; k++) {
        ck_assert_int_eq(bx_result_class(&with, k).positives, bx_result_class(&without, k).positives);
        ck_assert_int_eq(bx_result_class(&with, k).objects, bx_result_class(&without, k).objects);
    }
    ck_assert_int_eq(bx_result_level(&without, 0).positives, without.positives);
    free(work);
    scene_close(&s);
}
END_TEST

#ifdef __SSE__
#include <xmmintrin.h>

START_TEST(changed_arithmetic_is_refused) {
    static const unsigned changes[] = {0x8000, 0x0040, 0x2000, 0x4000, 0x6000}; /* FTZ, DAZ, other roundings */
    unsigned before = _mm_getcsr();
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        bx_context *context = NULL;
        bx_error error = {0};
        _mm_setcsr(before | changes[i]);
        bx_status status = bx_context_open(&context, "cpu", NULL, &error);
        _mm_setcsr(before);
        ck_assert_int_eq(status, BX_INTERNAL);
        ck_assert_str_eq(error.code, "floating_point");
        ck_assert_ptr_null(context);
    }
}
END_TEST
#endif

int main(void) {
    Suite *suite = suite_create("stages");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, matching_with_ties, 0, 8);
    tcase_add_test(tests, matching_across_blocks);
    tcase_add_test(tests, iou_of_exactly_a_half);
    tcase_add_test(tests, no_overlap_claims_prior_0);
    tcase_add_test(tests, the_last_object_wins);
    tcase_add_loop_test(tests, scores, 0, 7);
    tcase_add_loop_test(tests, mining, 0, 7);
    tcase_add_test(tests, mining_of_equal_losses);
    tcase_add_loop_test(tests, ranges, 0, 8);
    tcase_add_test(tests, permuted_images);
    tcase_add_test(tests, split_batch);
    tcase_add_test(tests, a_job_runs_again);
    tcase_add_test(tests, matching_alone);
#ifdef __SSE__
    tcase_add_test(tests, changed_arithmetic_is_refused);
#endif
    return suite_run(suite);
}
