/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assignment under every rule: random images against the naive version.
 */
#include "../support/assign.h"

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

int main(void) {
    Suite *suite = suite_create("assign at random");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, open_contexts, close_contexts);
    tcase_add_loop_test(tests, every_rule, 0, N_RULES);
    tcase_add_loop_test(tests, lattices, 0, N_RULES);
    tcase_add_loop_test(tests, ranges_of_neighbours, 0, N_RULES);
    tcase_add_loop_test(tests, across_blocks, 0, 5 * 8);
    tcase_add_test(tests, identical_everything);
    tcase_add_loop_test(tests, unused_objects_do_not_matter, 0, N_RULES);
    return suite_run(suite);
}
