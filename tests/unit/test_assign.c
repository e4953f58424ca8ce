/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assignment under every rule: cases small enough to check by hand, and targets instead of annotations.
 */
#include "../support/assign.h"

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
    tcase_add_test(tests, targets);
    return suite_run(suite);
}
