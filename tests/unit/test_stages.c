/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of a job against naive versions written here: matching by the whole float32 matrix, cross-entropy in
 * double, mining by a sort. Then what must not change a bit: how a block is cut into ranges, the order of the units,
 * the order of the images, the split of a batch. (Every rule of matching is in test_assign*.c, every formula in
 * test_gradients.c.)
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"
#include "../support/random.h"
#include "../support/job.h"

/* ---- a batch and its job ----------------------------------------------------------------------------------------- */

typedef struct scene {
    bx_priors *priors;
    float *prior_boxes, *boxes, *loc, *conf;
    int64_t *labels;
    int32_t *first;
    uint8_t *use;
    const bx_criterion *criterion;
    bx_gradients gradients;
    bx_batch batch;
    computation c;
    bx_context *context;
} scene;

static void scene_plan(scene *s) {
    bx_error error = {0};
    HOLDS(bx_priors_new(&s->priors, s->prior_boxes, s->batch.n_priors, &error) == BX_OK, "%s", error.text);
    HOLDS(bx_plan_init(&s->c.plan, s->criterion, s->priors, &s->batch, s->gradients, &error) == BX_OK, "%s: %s",
          error.path, error.text);
    s->c.work = poisoned(s->c.plan.work_bytes);
    bx_job_init(&s->c.job, &s->c.plan, &s->batch, s->c.work);
    HOLDS(bx_context_open(&s->context, "cpu", NULL, &error) == BX_OK, "%s", error.text);
}

/* Room for N images of P priors, C columns and the given objects per image; contents are the caller's to fill. */
static void scene_open(scene *s, int32_t n, int32_t p, int32_t c, const int32_t *objects) {
    memset(s, 0, sizeof *s);
    s->first = poisoned(((size_t)n + 1) * sizeof *s->first);
    s->first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        s->first[i + 1] = s->first[i] + objects[i];
    }
    const size_t g = (size_t)s->first[n], rows = (size_t)n * (size_t)p;
    s->prior_boxes = poisoned((size_t)p * 16);
    s->boxes = poisoned(g * 16);
    s->labels = poisoned(g * sizeof *s->labels);
    s->loc = poisoned(rows * 16);
    s->conf = poisoned(rows * (size_t)c * 4);
    s->use = poisoned(g);
    s->criterion = bx_criterion_preset("ssd-multibox");
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
    free(s->use);
    computation_free(&s->c);
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

/* What must not change is tried with these. */
enum { N_MIXTURES = 6 };

static bx_criterion mixture(int i) {
    static const char *const presets[N_MIXTURES] = {"ssd-multibox", "ssd-multibox-l1", "retinanet-focal",
                                                    "ssd-keras",    "ssd-multibox",    "retinanet-focal"};
    bx_criterion c = *bx_criterion_preset(presets[i]);
    if (i == 4) {
        c.matcher = (bx_matcher){.5f, .3f, BX_FORCE_GREEDY, BX_IOU_CORNERS, -1};
        c.classification.label_smoothing = .1;
        c.mining.ratio = 1.5;
        c.mining.min_negatives = 5;
        c.localization = bx_localization_default(BX_LOCALIZATION_CIOU);
        c.normalizer.kind = BX_NORMALIZER_IMAGE_POSITIVES;
        c.weights = (bx_weights){2, .5};
    } else if (i == 5) {
        c.matcher = (bx_matcher){.6f, .5f, BX_FORCE_FIRST, BX_IOU_CORNERS, .7f};
        c.classification.background = BX_BACKGROUND_LAST;
        c.classification.gamma = 1.5;
        c.mining = (bx_mining){BX_MINING_HARD_NEGATIVE, 2.5, BX_SCOPE_BATCH, 20};
        c.localization = bx_localization_default(BX_LOCALIZATION_GIOU);
        c.normalizer.kind = BX_NORMALIZER_POSITIVES_AND_MINED;
    }
    return c;
}

static bool mines_across(const bx_criterion *criterion) {
    return criterion->mining.kind == BX_MINING_HARD_NEGATIVE && criterion->mining.scope == BX_SCOPE_BATCH;
}

/* As fill_with_ties, in the form that the criterion takes; with some, not all objects are used. */
static void fill_for(scene *s, const bx_criterion *criterion) {
    const int32_t n = s->batch.n_images, p = s->batch.n_priors, c = s->batch.n_columns;
    fill_with_ties(s);
    s->criterion = criterion;
    for (int32_t g = 0; g < s->first[n]; g++) {
        float *box = s->boxes + 4 * (size_t)g;
        if (criterion->matcher.iou == BX_IOU_SIZES) {
            memcpy(box, (float[4]){(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]}, 16);
        }
        s->use[g] = (uint8_t)(below(3) ? BX_OBJECT_USED : 1 + below(2));
    }
    s->batch.use = criterion->matcher.force == BX_FORCE_LAST ? NULL : s->use;
    for (size_t i = 0; criterion->classification.kind == BX_CLASSIFICATION_PROB_CE && i < (size_t)(n * p * c); i++) {
        s->conf[i] = 1 / (1 + expf(-s->conf[i]));
    }
}

static int32_t block_end(const scene *s, int32_t block) {
    return (block + 1) * BX_BLOCK < s->c.plan.n_priors ? (block + 1) * BX_BLOCK : s->c.plan.n_priors;
}

static void run_blocks(scene *s, int32_t image) {
    for (int32_t b = 0; b < s->c.plan.n_blocks; b++) {
        bx_run_block(s->context, &s->c.job, image, b);
    }
}

static void run_all(scene *s) {
    for (int32_t i = 0; i < s->c.plan.n_images; i++) {
        run_blocks(s, i);
        bx_run_image(s->context, &s->c.job, i);
    }
}

/* And what follows them. */
static void finish_all(scene *s) {
    bx_error error = {0};
    bx_status status = compute_rest(&s->c, s->context, &error);
    HOLDS(status == BX_OK, "%s: %s", error.path, error.text);
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
    const bx_job *job = &s->c.job;
    const int32_t p = s->c.plan.n_priors, g0 = s->first[image], n = s->first[image + 1] - g0;
    const size_t base = (size_t)image * (size_t)p;
    float *matrix = poisoned(((size_t)n * (size_t)p + 1) * 4), *lifted = poisoned((size_t)p * 4);
    int32_t *owner = poisoned((size_t)p * 4), *best = poisoned(((size_t)n + 1) * 4),
            *count = poisoned(((size_t)n + 1) * 4);
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
        const float overlap = job->overlap[base + (size_t)i]; /* too little to be positive is all the same */
        HOLDS(lifted[i] < 0.5f ? overlap < 0.5f : overlap == lifted[i], "overlap of prior %d", i);
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
            bx_stage_assign(&s.c.job, image);
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
    ck_assert_int_eq(s.c.plan.n_blocks, 3);
    for (int32_t image = 0; image < 3; image++) {
        run_blocks(&s, image);
        bx_stage_assign(&s.c.job, image);
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
    ck_assert(s.c.job.overlap[0] == .5f);
    ck_assert_int_eq(s.c.job.state[0], BX_POSITIVE);
    scene_close(&s);
    /* the next object's best prior is another, so only the threshold decides on prior 0 */
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.25f, .125f, .5f, .25f}}, 1,
                (const float[][4]){{0, 0, .5f, .25f}});
    ck_assert_int_eq(s.c.job.objects[0].best_prior, 1);
    ck_assert_int_eq(s.c.job.state[0], BX_POSITIVE);
    ck_assert_int_eq(s.c.job.objects[0].positives, 2);
    scene_close(&s);
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.25f, .125f, .5f, .25f}}, 1,
                (const float[][4]){{0, 0, .5f, .249999f}});
    ck_assert_int_eq(s.c.job.state[0], 0);
    scene_close(&s);
}
END_TEST

START_TEST(no_overlap_claims_prior_0) {
    scene s;
    scene_match(&s, 3, (const float[][4]){{.8f, .8f, .1f, .1f}, {.5f, .5f, .2f, .2f}, {.2f, .8f, .2f, .2f}}, 2,
                (const float[][4]){{.4f, .4f, .6f, .6f}, {0, 0, .1f, .1f}});
    ck_assert_int_eq(s.c.job.state[0], BX_POSITIVE | BX_FORCED);
    ck_assert_int_eq(s.c.job.owner[0], 1);
    ck_assert_int_eq(s.c.job.objects[1].best_prior, 0);
    ck_assert(s.c.job.objects[1].best_iou == 0);
    ck_assert(s.c.job.objects[1].forced && !s.c.job.objects[1].collided);
    ck_assert_int_eq(s.c.job.images[0].forced, 1);
    scene_close(&s);
}
END_TEST

START_TEST(the_last_object_wins) {
    scene s; /* both objects are nearest to prior 0; the second takes it and the first is left with nothing */
    scene_match(&s, 2, (const float[][4]){{.25f, .25f, .5f, .5f}, {.8f, .8f, .2f, .2f}}, 2,
                (const float[][4]){{0, 0, .5f, .5f}, {0, 0, .5f, .45f}});
    ck_assert_int_eq(s.c.job.owner[0], 1);
    ck_assert_int_eq(s.c.job.state[0], BX_POSITIVE);
    ck_assert(s.c.job.objects[0].collided && !s.c.job.objects[1].collided);
    ck_assert_int_eq(s.c.job.objects[0].positives, 0);
    ck_assert_int_eq(s.c.job.images[0].collided, 1);
    ck_assert_int_eq(s.c.job.images[0].unmatched_objects, 1);
    ck_assert_int_eq(s.c.job.images[0].forced, 0);
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
        HOLDS(fabs((double)s.c.job.score[i] - owed) <= 1e-6 * owed + 1e-7, "score of %d: %.9g, not %.9g", i,
              (double)s.c.job.score[i], owed);
    }
    bx_run_image(s.context, &s.c.job, 0);
    for (int32_t i = 0; i < p; i++) {
        int32_t label = s.c.job.state[i] & BX_POSITIVE ? 1 + (int32_t)s.labels[s.c.job.owner[i]] : 0;
        double owed = cross_entropy(s.conf + i * c, c, label);
        double sign = label > 0 ? -1 : 1; /* so that it is not mined */
        HOLDS(fabs(sign * (double)s.c.job.score[i] - owed) <= 1e-6 * owed + 1e-7, "own score of %d", i);
        int32_t largest = 0;
        for (int32_t k = 1; k < c; k++) {
            largest = s.conf[i * c + k] > s.conf[i * c + largest] ? k : largest;
        }
        HOLDS(!(s.c.job.state[i] & BX_CORRECT) == !(label > 0 && largest == label), "correctness of %d", i);
    }
    scene_close(&s);
}
END_TEST

static const float *ranked;

static int by_loss(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    return ranked[i] != ranked[j] ? (ranked[i] < ranked[j] ? 1 : -1) : (i > j) - (i < j);
}

/* Negatives to mine for so many positives, were there no end of them. The product is float32, as in the origins. */
static double wanted_of(const bx_mining *mining, int32_t positives) {
    double wanted = (double)((float)mining->ratio * (float)positives), least = (double)mining->min_negatives;
    return wanted > least ? wanted : least;
}

/* Runs one image up to mining and compares the mined set with a sort. */
static void check_mining(scene *s, int32_t image) {
    const bx_mining *mining = &s->c.plan.criterion->mining;
    const int32_t p = s->c.plan.n_priors;
    const size_t base = (size_t)image * (size_t)p;
    float *loss = poisoned((size_t)p * 4);
    int32_t *order = poisoned((size_t)p * 4), n = 0;
    run_blocks(s, image);
    bx_stage_assign(&s->c.job, image);
    memcpy(loss, s->c.job.score + base, (size_t)p * 4);
    for (int32_t i = 0; i < p; i++) {
        if (!s->c.job.state[base + (size_t)i]) { /* neither positive nor ignored */
            order[n++] = i;
        }
    }
    ranked = loss;
    qsort(order, (size_t)n, sizeof *order, by_loss);
    bx_stage_positives(s->context, &s->c.job, image, 0, p);
    for (int32_t i = 0; i < p; i++) {
        HOLDS(!signbit(s->c.job.score[base + (size_t)i]) == !s->c.job.state[base + (size_t)i], "sign of prior %d", i);
        s->c.job.state[base + (size_t)i] &= (uint8_t)~BX_CORRECT;
    }
    bx_stage_mine(s->context, &s->c.job, image);
    const bx_image_row *row = &s->c.job.images[image];
    double wanted = wanted_of(mining, row->positives);
    HOLDS(row->negatives == n && row->mined == (wanted < n ? wanted : n), "%g of %d wanted", row->mined, n);
    int32_t rank = 0; /* rank < ratio x positives */
    for (; rank < n && (double)rank < wanted; rank++) {
        HOLDS(s->c.job.state[base + (size_t)order[rank]] == BX_HARD_NEGATIVE, "prior %d of rank %d", order[rank], rank);
    }
    HOLDS(row->hard_negatives == rank, "%d mined", row->hard_negatives);
    for (; rank < n; rank++) {
        HOLDS(s->c.job.state[base + (size_t)order[rank]] == 0, "prior %d of rank %d", order[rank], rank);
    }
    free(loss);
    free(order);
}

START_TEST(mining) {
    static const double ratios[] = {3, 0, 1, 1.5, 0.25, 1e6, 2.999, 0, 1, 2.5};
    static const int64_t least[] = {0, 0, 0, 0, 0, 0, 0, 7, INT64_MAX, 30};
    static const int32_t objects[] = {0, 1, 3, 12, 60};
    static const int32_t priors[] = {1, 8, 33, 500, BX_BLOCK + 50};
    bx_criterion criterion = *bx_criterion_preset("ssd-multibox");
    criterion.mining.ratio = ratios[_i];
    criterion.mining.min_negatives = least[_i];
    criterion.matcher.negative_iou = _i % 2 ? .2f : -1;
    random_state = 7 + (uint64_t)_i;
    for (size_t i = 0; i < sizeof priors / sizeof *priors; i++) {
        scene s;
        scene_open(&s, 5, priors[i], 3, objects);
        fill_with_ties(&s);
        s.criterion = &criterion;
        scene_plan(&s);
        for (int32_t image = 0; image < 5; image++) {
            check_mining(&s, image);
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
    check_mining(&s, 0);
    ck_assert_int_gt(s.c.job.images[0].hard_negatives, 0);
    scene_close(&s);
}
END_TEST

/* Across the batch: the floor of the wanted number, ties to the lowest image and prior. */
START_TEST(mining_across_the_batch) {
    static const double ratios[] = {3, 0, 1, 1.5, 0.25, 1e6, 2.999, 0, .01, 2.5};
    static const int64_t least[] = {0, 0, 0, 0, 0, 0, 0, 7, INT64_MAX, 300};
    static const int32_t objects[] = {0, 1, 3, 0, 12, 60}, none[6] = {0};
    static const int32_t priors[] = {1, 8, 33, 500, BX_BLOCK + 50};
    bx_criterion criterion = *bx_criterion_preset("ssd-multibox");
    criterion.mining = (bx_mining){BX_MINING_HARD_NEGATIVE, ratios[_i], BX_SCOPE_BATCH, least[_i]};
    criterion.matcher.negative_iou = _i % 2 ? .2f : -1;
    random_state = 70 + (uint64_t)_i;
    for (size_t round = 0; round < 6; round++) {
        scene s;
        const int32_t n = 6, p = priors[round % 5];
        scene_open(&s, n, p, 3, round < 5 ? objects : none);
        fill_with_ties(&s);
        s.criterion = &criterion;
        scene_plan(&s);
        run_all(&s);
        const size_t rows = (size_t)n * (size_t)p;
        float *loss = poisoned(rows * 4);
        int32_t *order = poisoned(rows * 4), candidates = 0, positives = 0;
        memcpy(loss, s.c.job.score, rows * 4);
        for (int32_t i = 0; i < (int32_t)rows; i++) {
            positives += (s.c.job.state[i] & BX_POSITIVE) != 0;
            if (!s.c.job.state[i]) {
                order[candidates++] = i;
            }
        }
        ranked = loss;
        qsort(order, (size_t)candidates, sizeof *order, by_loss);
        finish_all(&s);
        double wanted = wanted_of(&criterion.mining, positives);
        wanted = wanted < candidates ? wanted : candidates;
        for (int32_t rank = 0; rank < candidates; rank++) {
            int state = (double)rank < floor(wanted) ? BX_HARD_NEGATIVE : 0;
            HOLDS(s.c.job.state[order[rank]] == state, "prior %d of rank %d", order[rank], rank);
        }
        double mined = 0;
        int64_t found = 0;
        for (int32_t i = 0; i < n; i++) {
            int32_t in_image = 0;
            for (int32_t j = 0; j < p; j++) {
                in_image += (s.c.job.state[i * p + j] & BX_HARD_NEGATIVE) != 0;
            }
            HOLDS(s.c.job.images[i].hard_negatives == in_image, "mined in image %d", i);
            mined += s.c.job.images[i].mined;
            found += in_image;
        }
        HOLDS(mined == wanted && (double)found == floor(wanted), "%g mined, not %g", mined, wanted);
        HOLDS(s.c.result.hard_negatives == found, "%lld in the result", (long long)s.c.result.hard_negatives);
        free(loss);
        free(order);
        scene_close(&s);
    }
}
END_TEST

/* ---- what must not change a bit ---------------------------------------------------------------------------------- */

/* A second job over the same plan and batch, its workspace poisoned. */
static void second_job(computation *c, const scene *s) {
    bx_plan plan = s->c.plan;
    memset(c, 0, sizeof *c);
    c->plan = plan;
    c->work = poisoned(c->plan.work_bytes);
    bx_job_init(&c->job, &c->plan, &s->batch, c->work);
}

/* Both jobs of one batch: every image, and the gradients if there are any. */
static void same_computation(const computation *a, const computation *b) {
    for (int32_t i = 0; i < a->plan.n_images; i++) {
        same_image(&a->job, i, &b->job, i);
    }
    HOLDS(!a->gradients == !b->gradients, "gradients of one only");
    if (a->gradients) {
        int64_t n = bx_job_gradient_rows(&a->job);
        HOLDS(n == bx_job_gradient_rows(&b->job), "another number of rows");
        HOLDS(!memcmp(a->gradients, b->gradients, bx_gradient_bytes(&a->plan, n)), "gradients differ");
    }
    HOLDS(!memcmp(&a->result.loss, &b->result.loss, sizeof a->result.loss), "losses differ");
    HOLDS(!memcmp(&a->result.sums, &b->result.sums, sizeof a->result.sums), "sums differ");
    HOLDS(!memcmp(&a->result.normalizer, &b->result.normalizer, sizeof a->result.normalizer), "normalisers differ");
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

/* What follows an image's choice of negatives, in ranges. */
static void end_image_in_ranges(scene *s, bx_job *job, int32_t image) {
    for (int32_t b = 0; b < s->c.plan.n_blocks; b++) {
        in_ranges(s, job, image, b, reduce_range);
    }
}

START_TEST(ranges) {
    static const int32_t objects[] = {5, 0, 33};
    static const int32_t priors[] = {1, 63, 64, 65, 700, BX_BLOCK - 1, BX_BLOCK + 1, 2 * BX_BLOCK + 300};
    const bx_criterion criterion = mixture(_i / 8);
    random_state = (uint64_t)_i;
    scene s;
    scene_open(&s, 3, priors[_i % 8], 5, objects);
    fill_for(&s, &criterion);
    s.gradients = BX_GRADIENTS_SPARSE;
    scene_plan(&s);
    run_all(&s);
    finish_all(&s);
    for (int round = 0; round < 3; round++) {
        computation cut;
        second_job(&cut, &s);
        for (int32_t image = 2; image >= 0; image--) {
            for (int32_t b = s.c.plan.n_blocks - 1; b >= 0; b--) { /* blocks in any order, scores before matches */
                bx_stage_begin(&cut.job, image, b);
                in_ranges(&s, &cut.job, image, b, round ? bx_stage_score : bx_stage_match);
                in_ranges(&s, &cut.job, image, b, round ? bx_stage_match : bx_stage_score);
                in_ranges(&s, &cut.job, image, b, bx_stage_check);
            }
            bx_stage_assign(&cut.job, image);
            for (int32_t b = s.c.plan.n_blocks - 1; b >= 0; b--) {
                in_ranges(&s, &cut.job, image, b, bx_stage_positives);
            }
            bx_stage_mine(s.context, &cut.job, image);
            if (!mines_across(&criterion)) {
                end_image_in_ranges(&s, &cut.job, image);
            }
        }
        ck_assert_int_eq(bx_run_batch(s.context, &cut.job, NULL), BX_OK);
        cut.gradients = poisoned(bx_gradient_bytes(&cut.plan, bx_job_gradient_rows(&cut.job)));
        bx_job_place_gradients(&cut.job, cut.gradients);
        for (int32_t image = 0; image < 3; image++) {
            if (mines_across(&criterion)) {
                end_image_in_ranges(&s, &cut.job, image);
            }
            bx_stage_gradients(s.context, &cut.job, image);
        }
        ck_assert_int_eq(bx_finish(&cut.result, &cut.job, NULL), BX_OK);
        same_computation(&s.c, &cut);
        computation_free(&cut);
    }
    scene_close(&s);
}
END_TEST

/* Blocks of all images in a random order, each image once its last block has run, then its rows in a random order. */
START_TEST(units_in_any_order) {
    static const int32_t objects[] = {5, 0, 33, 2, 11};
    enum { N = 5, B = 3 };
    const bx_criterion criterion = mixture(_i);
    random_state = 300 + (uint64_t)_i;
    scene s;
    scene_open(&s, N, 2 * BX_BLOCK + 77, 4, objects);
    fill_for(&s, &criterion);
    s.gradients = BX_GRADIENTS_DENSE;
    scene_plan(&s);
    run_all(&s);
    finish_all(&s);
    for (int round = 0; round < 4; round++) {
        computation c;
        int32_t units[N * B], images[N], left[N];
        for (int32_t u = 0; u < N * B; u++) {
            int32_t other = below(u + 1);
            units[u] = units[other];
            units[other] = u;
        }
        for (int32_t i = 0; i < N; i++) {
            int32_t other = below(i + 1);
            images[i] = images[other];
            images[other] = i;
            left[i] = B;
        }
        second_job(&c, &s);
        for (int32_t u = 0; u < N * B; u++) {
            int32_t image = units[u] / B;
            bx_run_block(s.context, &c.job, image, units[u] % B);
            if (--left[image] == 0) {
                bx_run_image(s.context, &c.job, image);
            }
        }
        ck_assert_int_eq(bx_run_batch(s.context, &c.job, NULL), BX_OK);
        c.gradients = poisoned(bx_gradient_bytes(&c.plan, bx_job_gradient_rows(&c.job)));
        bx_job_place_gradients(&c.job, c.gradients);
        for (int32_t i = 0; i < N; i++) {
            bx_run_rows(s.context, &c.job, images[i]);
        }
        ck_assert_int_eq(bx_finish(&c.result, &c.job, NULL), BX_OK);
        same_computation(&s.c, &c);
        computation_free(&c);
    }
    scene_close(&s);
}
END_TEST

/* Image `from[i]` of s becomes image i of a new scene. */
static void scene_select(scene *to, const scene *s, int32_t n, const int32_t *from) {
    int32_t objects[16];
    const size_t p = (size_t)s->c.plan.n_priors, c = (size_t)s->c.plan.n_columns;
    for (int32_t i = 0; i < n; i++) {
        objects[i] = s->first[from[i] + 1] - s->first[from[i]];
    }
    scene_open(to, n, s->c.plan.n_priors, s->c.plan.n_columns, objects);
    memcpy(to->prior_boxes, s->prior_boxes, p * 16);
    for (int32_t i = 0; i < n; i++) {
        size_t x = (size_t)i, y = (size_t)from[i], g = (size_t)objects[i];
        size_t gx = (size_t)to->first[i], gy = (size_t)s->first[from[i]];
        memcpy(to->boxes + 4 * gx, s->boxes + 4 * gy, g * 16);
        memcpy(to->labels + gx, s->labels + gy, g * sizeof *s->labels);
        memcpy(to->use + gx, s->use + gy, g);
        memcpy(to->loc + x * p * 4, s->loc + y * p * 4, p * 16);
        memcpy(to->conf + x * p * c, s->conf + y * p * c, p * c * 4);
    }
    to->criterion = s->criterion;
    to->batch.use = s->batch.use ? to->use : NULL;
    scene_plan(to);
    run_all(to);
    finish_all(to);
}

static const int32_t six[] = {4, 0, 21, 1, 9, 2};

static void scene_of_six(scene *s, const bx_criterion *criterion, uint64_t seed) {
    random_state = seed;
    scene_open(s, 6, 600, 7, six);
    fill_for(s, criterion);
    scene_plan(s);
    run_all(s);
    finish_all(s);
}

/* Sums of another order of images, or of the parts of a batch. */
static void close_sums(bx_sums a, bx_sums b) {
    ck_assert_double_eq_tol(a.loc, b.loc, 1e-12 * b.loc);
    ck_assert_double_eq_tol(a.conf_positive, b.conf_positive, 1e-12 * b.conf_positive);
    ck_assert_double_eq_tol(a.conf_negative, b.conf_negative, 1e-12 * b.conf_negative);
}

START_TEST(permuted_images) {
    static const int32_t permutation[] = {5, 2, 0, 4, 1, 3};
    const bx_criterion criterion = mixture(_i);
    scene s, other;
    scene_of_six(&s, &criterion, 41);
    scene_select(&other, &s, 6, permutation);
    for (int32_t i = 0; i < 6 && !mines_across(&criterion); i++) {
        same_image(&s.c.job, permutation[i], &other.c.job, i);
    }
    const bx_result *a = &s.c.result, *b = &other.c.result;
    close_sums(b->sums, a->sums); /* across the batch other priors may be mined, of the same losses */
    ck_assert_double_eq_tol(b->loss.total, a->loss.total, 1e-12 * a->loss.total);
    ck_assert_int_eq(b->positives, a->positives);
    ck_assert_int_eq(b->ignored, a->ignored);
    ck_assert_int_eq(b->hard_negatives, a->hard_negatives);
    ck_assert_int_eq(b->objects, a->objects);
    ck_assert_int_eq(b->collided, a->collided);
    scene_close(&other);
    scene_close(&s);
}
END_TEST

START_TEST(split_batch) {
    static const int32_t head[] = {0, 1, 2}, tail[] = {3, 4, 5};
    const bx_criterion criterion = mixture(_i);
    scene s, parts[2];
    if (mines_across(&criterion)) {
        return; /* which negatives count is the batch's choice */
    }
    scene_of_six(&s, &criterion, 42);
    scene_select(&parts[0], &s, 3, head);
    scene_select(&parts[1], &s, 3, tail);
    bx_sums sums = {0}, halves = {0};
    int64_t positives = 0, hard_negatives = 0, ignored = 0;
    for (int32_t i = 0; i < 6; i++) { /* image by image, in order: to the bit */
        const bx_image_row *row = &parts[i / 3].c.job.images[i % 3];
        same_image(&s.c.job, i, &parts[i / 3].c.job, i % 3);
        sums.loc += row->sums.loc;
        sums.conf_positive += row->sums.conf_positive;
        sums.conf_negative += row->sums.conf_negative;
        positives += row->positives;
        ignored += row->ignored;
        hard_negatives += row->hard_negatives;
    }
    const bx_result *whole = &s.c.result;
    ck_assert(!memcmp(&whole->sums, &sums, sizeof sums));
    ck_assert_int_eq(whole->positives, positives);
    ck_assert_int_eq(whole->ignored, ignored);
    ck_assert_int_eq(whole->hard_negatives, hard_negatives);
    ck_assert_int_eq(parts[0].c.result.positives + parts[1].c.result.positives, positives);
    for (int i = 0; i < 2; i++) { /* half by half: up to the order of additions */
        halves.loc += parts[i].c.result.sums.loc;
        halves.conf_positive += parts[i].c.result.sums.conf_positive;
        halves.conf_negative += parts[i].c.result.sums.conf_negative;
    }
    close_sums(halves, whole->sums);
    scene_close(&parts[0]);
    scene_close(&parts[1]);
    scene_close(&s);
}
END_TEST

START_TEST(a_job_runs_again) {
    const bx_criterion criterion = mixture(_i);
    scene s;
    scene_of_six(&s, &criterion, 43);
    computation first = s.c;
    first.job.plan = &first.plan;
    second_job(&s.c, &s);
    run_all(&s);
    finish_all(&s);
    free(s.c.gradients);
    s.c.gradients = NULL;
    run_all(&s); /* over its own results */
    finish_all(&s);
    same_computation(&first, &s.c);
    computation_free(&first);
    scene_close(&s);
}
END_TEST

/* ---- without predictions ----------------------------------------------------------------------------------------- */

START_TEST(matching_alone) {
    const bx_criterion criterion = mixture(_i);
    const uint8_t assigned = BX_POSITIVE | BX_FORCED | BX_IGNORED;
    random_state = 44;
    scene s;
    scene_open(&s, 6, BX_BLOCK + 600, 7, six);
    fill_for(&s, &criterion);
    scene_plan(&s);
    run_all(&s);
    finish_all(&s);
    bx_batch batch = s.batch;
    batch.loc.data = batch.conf.data = NULL;
    computation alone;
    ck_assert_int_eq(compute(&alone, NULL, &criterion, s.priors, &batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    ck_assert(!alone.plan.second_round);
    const bx_result *with = &s.c.result, *without = &alone.result;
    ck_assert_int_eq(with->positives, without->positives);
    ck_assert_int_eq(with->ignored, without->ignored);
    ck_assert_int_eq(without->hard_negatives, 0);
    ck_assert_int_eq(with->forced, without->forced);
    ck_assert(without->sums.loc == 0 && without->loss.total == 0);
    for (size_t i = 0; i < 6 * (size_t)alone.plan.n_priors; i++) {
        uint8_t state = alone.job.state[i];
        HOLDS((s.c.job.state[i] & assigned) == state, "state %zu", i);
        HOLDS(!(state & BX_POSITIVE) || s.c.job.owner[i] == alone.job.owner[i], "owner %zu", i);
    }
    for (int32_t k = 0; k < alone.plan.n_classes; k++) {
        bx_loss share;
        ck_assert_int_eq(bx_result_class(with, k, &share).positives, bx_result_class(without, k, &share).positives);
        ck_assert_int_eq(bx_result_class(with, k, &share).objects, bx_result_class(without, k, &share).objects);
        ck_assert(share.total == 0);
    }
    bx_loss share;
    ck_assert_int_eq(bx_result_level(without, 0, &share).positives, without->positives);
    ck_assert(share.total == 0);
    computation_free(&alone);
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
    tcase_add_loop_test(tests, mining, 0, 10);
    tcase_add_test(tests, mining_of_equal_losses);
    tcase_add_loop_test(tests, mining_across_the_batch, 0, 10);
    tcase_add_loop_test(tests, ranges, 0, 8 * N_MIXTURES);
    tcase_add_loop_test(tests, units_in_any_order, 0, N_MIXTURES);
    tcase_add_loop_test(tests, permuted_images, 0, N_MIXTURES);
    tcase_add_loop_test(tests, split_batch, 0, N_MIXTURES);
    tcase_add_loop_test(tests, a_job_runs_again, 0, N_MIXTURES);
    tcase_add_loop_test(tests, matching_alone, 0, N_MIXTURES);
#ifdef __SSE__
    tcase_add_test(tests, changed_arithmetic_is_refused);
#endif
    return suite_run(suite);
}
