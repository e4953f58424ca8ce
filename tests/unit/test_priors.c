/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Built-in prior sets against their published checksums and against generators written again here; the columns that
 * matching reads; caller-given sets.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"

static bx_priors *builtin(const char *name) {
    bx_priors *priors = NULL;
    bx_error error = {0};
    ck_assert_msg(bx_priors_builtin(&priors, name, &error) == BX_OK, "%s: %s", name, error.text);
    ck_assert_str_eq(priors->name, name);
    ck_assert_str_ne(priors->text, "");
    ck_assert(priors->relative);
    return priors;
}

/* ---- checksums --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int32_t n, n_levels, first[6];
    double sum[4], weighted[4]; /* of value, of i x value with i from 1 */
} sums[] = {
    {"ssd300",
     8732,
     6,
     {0, 5776, 7942, 8542, 8692, 8728},
     {4443.146675, 4443.146675, 1510.147981, 1510.147981},
     {19574203.059, 22719618.049, 8310284.780, 8310620.189}},
    {"ssd300-coco",
     8732,
     6,
     {0, 5776, 7942, 8542, 8692, 8728},
     {4443.146675, 4443.146675, 1171.967678, 1171.967678},
     {19574203.059, 22719618.049, 6706153.981, 6706416.226}},
    {"ssd300-efficientnet",
     3106,
     6,
     {0, 1944, 2430, 2916, 3066, 3102},
     {1552.999993, 1552.999993, 849.983512, 850.128083},
     {2434739.484, 2767317.483, 1551469.719, 1552195.715}},
};
#define N_SETS (sizeof sums / sizeof *sums)

START_TEST(checksums) {
    bx_priors *priors = builtin(sums[_i].name);
    ck_assert_int_eq(priors->n, sums[_i].n);
    for (int c = 0; c < 4; c++) {
        double sum = 0, weighted = 0;
        for (int32_t i = 0; i < priors->n; i++) {
            sum += (double)priors->boxes[4 * i + c];
            weighted += (i + 1.0) * (double)priors->boxes[4 * i + c];
        }
        ck_assert_double_eq_tol(sum, sums[_i].sum[c], 0.51e-6);
        ck_assert_double_eq_tol(weighted, sums[_i].weighted[c], 0.51e-3);
    }
    bx_priors_free(priors);
}
END_TEST

START_TEST(levels) {
    static const char *const names[][6] = {
        {"38x38", "19x19", "10x10", "5x5", "3x3", "1x1"},
        {"38x38", "19x19", "10x10", "5x5", "3x3", "1x1"},
        {"mid", "end", "a", "b", "c", "d"},
    };
    bx_priors *priors = builtin(sums[_i].name);
    ck_assert_int_eq(priors->n_levels, sums[_i].n_levels);
    for (int l = 0; l < 6; l++) {
        int32_t end = l < 5 ? sums[_i].first[l + 1] : priors->n;
        ck_assert_str_eq(priors->levels[l].name, names[_i][l]);
        ck_assert_int_eq(priors->levels[l].first, sums[_i].first[l]);
        ck_assert_int_eq(priors->levels[l].first + priors->levels[l].count, end);
    }
    bx_priors_free(priors);
}
END_TEST

START_TEST(names) {
    size_t n = 0;
    for (const char *name; (name = bx_priors_name(n)); n++) {
        ck_assert_str_eq(name, sums[n].name);
    }
    ck_assert_uint_eq(n, N_SETS);
    ck_assert_ptr_null(bx_priors_name(n + 1));
}
END_TEST

/* ---- the generators again ---------------------------------------------------------------------------------------- */

/* Boxes in double before the clamp: (8732,4) of ssd.pytorch's loop. */
static int32_t ssd300_boxes(double (*out)[4], const double min[6], const double max[6]) {
    static const int maps[6] = {38, 19, 10, 5, 3, 1}, steps[6] = {8, 16, 32, 64, 100, 300};
    static const int n_ratios[6] = {1, 2, 2, 2, 1, 1};
    int32_t n = 0;
    for (int k = 0; k < 6; k++) {
        for (int i = 0; i < maps[k]; i++) {
            for (int j = 0; j < maps[k]; j++) {
                double f = 300.0 / steps[k], cx = (j + 0.5) / f, cy = (i + 0.5) / f;
                double s = min[k] / 300, extra = sqrt(s * (max[k] / 300));
                memcpy(out[n++], (double[4]){cx, cy, s, s}, 32);
                memcpy(out[n++], (double[4]){cx, cy, extra, extra}, 32);
                for (int r = 0; r < n_ratios[k]; r++) {
                    double root = sqrt(r + 2);
                    memcpy(out[n++], (double[4]){cx, cy, s * root, s / root}, 32);
                    memcpy(out[n++], (double[4]){cx, cy, s / root, s * root}, 32);
                }
            }
        }
    }
    return n;
}

/* (3106,4) of the tutorial's form. */
static int32_t efficientnet_boxes(double (*out)[4]) {
    static const int maps[6] = {18, 9, 9, 5, 3, 1};
    static const double scales[7] = {.2, .2, .375, .55, .725, .9, 0};
    static const double many[] = {1, 2, 3, .5, .333}, few[] = {1, 2, .5};
    int32_t n = 0;
    for (int k = 0; k < 6; k++) {
        for (int cell = 0; cell < maps[k] * maps[k]; cell++) {
            double cx = (cell % maps[k] + 0.5) / maps[k], cy = (cell / maps[k] + 0.5) / maps[k];
            for (int r = 0; r < (k < 4 ? 5 : 3); r++) {
                double root = sqrt(k < 4 ? many[r] : few[r]);
                memcpy(out[n++], (double[4]){cx, cy, scales[k] * root, scales[k] / root}, 32);
            }
            double extra = k < 5 ? sqrt(scales[k] * scales[k + 1]) : 1;
            memcpy(out[n++], (double[4]){cx, cy, extra, extra}, 32);
        }
    }
    return n;
}

/* Each box is its generator's, clamped; counts what the clamp changed. */
static void compare_boxes(const char *name, double (*raw)[4], int32_t n, int32_t clamped, int32_t centres,
                          int32_t first_clamped) {
    bx_priors *priors = builtin(name);
    int32_t changed = 0, moved = 0, first = -1;
    ck_assert_int_eq(priors->n, n);
    for (int32_t i = 0; i < n; i++) {
        bool box = false, centre = false;
        for (int c = 0; c < 4; c++) {
            float f = (float)raw[i][c], owed = f > 1 ? 1 : f;
            HOLDS(priors->boxes[4 * i + c] == owed, "%s[%d][%d]: %a, not %a", name, i, c,
                  (double)priors->boxes[4 * i + c], (double)owed);
            box |= f > 1;
            centre |= c < 2 && f > 1;
        }
        first = box && first < 0 ? i : first;
        changed += box;
        moved += centre;
    }
    ck_assert_int_eq(changed, clamped);
    ck_assert_int_eq(moved, centres);
    ck_assert_int_eq(first, first_clamped);
    bx_priors_free(priors);
}

START_TEST(every_box) {
    static double raw[8732][4];
    static const double voc_min[6] = {30, 60, 111, 162, 213, 264}, voc_max[6] = {60, 111, 162, 213, 264, 315};
    static const double coco_min[6] = {21, 45, 99, 153, 207, 261}, coco_max[6] = {45, 99, 153, 207, 261, 315};
    int32_t n = ssd300_boxes(raw, voc_min, voc_max);
    compare_boxes("ssd300", raw, n, 134, 114, 7942 + 9 * 6); /* the last cell of the 10x10 map's first row */
    n = ssd300_boxes(raw, coco_min, coco_max);
    compare_boxes("ssd300-coco", raw, n, 116, 114, 7942 + 9 * 6);
    n = efficientnet_boxes(raw);
    compare_boxes("ssd300-efficientnet", raw, n, 20, 0, 3067);
}
END_TEST

static void box_is(const bx_priors *priors, int32_t i, float cx, float cy, float w, float h) {
    const float owed[4] = {cx, cy, w, h};
    i = i < 0 ? priors->n + i : i;
    for (int c = 0; c < 4; c++) {
        HOLDS(priors->boxes[4 * i + c] == owed[c], "%s[%d][%d] is %.9g", priors->name, i, c,
              (double)priors->boxes[4 * i + c]);
    }
}

START_TEST(first_and_last) {
    const float c = 0.0133333337f, a = 0.141421363f, b = 0.0707106814f;
    bx_priors *priors = builtin("ssd300");
    box_is(priors, 0, c, c, .1f, .1f);
    box_is(priors, 1, c, c, a, a);
    box_is(priors, 2, c, c, a, b);
    box_is(priors, 3, c, c, b, a);
    box_is(priors, 4, 3 * 4 / 300.0f, c, .1f, .1f); /* columns run faster than rows */
    box_is(priors, -1, .5f, .5f, 0.622253954f, 1);
    bx_priors_free(priors);
    priors = builtin("ssd300-efficientnet");
    box_is(priors, 0, 0.027777778f, 0.027777778f, .2f, .2f);
    box_is(priors, -1, .5f, .5f, 1, 1);
    bx_priors_free(priors);
}
END_TEST

START_TEST(duplicates) {
    bx_priors *priors = builtin("ssd300-efficientnet");
    int equal = 0;
    for (int32_t i = 0; i < priors->n; i++) {
        for (int32_t j = i + 1; j < priors->n; j++) {
            if (!memcmp(priors->boxes + 4 * i, priors->boxes + 4 * j, 16)) {
                equal++;
                ck_assert_int_eq(i % 6, 0);
                ck_assert_int_eq(j, i + 5);
                ck_assert_int_lt(i, 6 * 324);
            }
        }
    }
    ck_assert_int_eq(equal, 324);
    bx_priors_free(priors);
}
END_TEST

/* ---- columns ----------------------------------------------------------------------------------------------------- */

static void check_columns(const bx_priors *priors) {
    for (int32_t i = 0; i < priors->n; i++) {
        const float *box = priors->boxes + 4 * i;
        volatile float half_w = box[2] / 2, half_h = box[3] / 2; /* each step rounded to float32 */
        volatile float x1 = box[0] - half_w, y1 = box[1] - half_h, x2 = box[0] + half_w, y2 = box[1] + half_h;
        volatile float w = x2 - x1, h = y2 - y1;
        volatile float area = w * h;
        HOLDS(priors->x1[i] == x1 && priors->y1[i] == y1 && priors->x2[i] == x2 && priors->y2[i] == y2 &&
                  priors->area[i] == area,
              "%s: prior %d", priors->name, i);
    }
    for (int32_t run = 0; run * BX_CULL < priors->n; run++) {
        const float *around = priors->extent + 4 * run;
        float tight[4] = {INFINITY, INFINITY, -INFINITY, -INFINITY};
        for (int32_t i = run * BX_CULL; i < (run + 1) * BX_CULL && i < priors->n; i++) {
            tight[0] = fminf(tight[0], priors->x1[i]);
            tight[1] = fminf(tight[1], priors->y1[i]);
            tight[2] = fmaxf(tight[2], priors->x2[i]);
            tight[3] = fmaxf(tight[3], priors->y2[i]);
        }
        HOLDS(!memcmp(around, tight, sizeof tight), "%s: run %d", priors->name, run);
    }
}

START_TEST(columns) {
    for (size_t i = 0; i < N_SETS; i++) {
        bx_priors *priors = builtin(sums[i].name);
        check_columns(priors);
        bx_priors_free(priors);
    }
}
END_TEST

/* ---- caller-given sets ------------------------------------------------------------------------------------------- */

/* `n` boxes with distinct coordinates. */
static float *some_boxes(int32_t n) {
    float *boxes = malloc((size_t)n * 16);
    ck_assert_ptr_nonnull(boxes);
    for (int32_t i = 0; i < n; i++) {
        boxes[4 * i] = (float)(i % 97) / 97;
        boxes[4 * i + 1] = (float)(i % 89) / 89;
        boxes[4 * i + 2] = .1f + (float)(i % 11) / 30;
        boxes[4 * i + 3] = .1f + (float)(i % 13) / 30;
    }
    return boxes;
}

START_TEST(own_boxes_are_copied) {
    static const int32_t counts[] = {1, 2, 127, 128, 129, 256, 4097};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int32_t n = counts[c];
        float *boxes = some_boxes(n), *again = some_boxes(n);
        bx_priors *priors = NULL;
        ck_assert_int_eq(bx_priors_new(&priors, boxes, n, NULL), BX_OK);
        memset(boxes, 0xff, (size_t)n * 16);
        free(boxes);
        ck_assert(!memcmp(priors->boxes, again, (size_t)n * 16));
        ck_assert_str_eq(priors->name, "inline");
        ck_assert_str_eq(priors->text, "");
        ck_assert_int_eq(priors->n, n);
        ck_assert_int_eq(priors->n_levels, 1);
        ck_assert_str_eq(priors->levels[0].name, "all");
        ck_assert_int_eq(priors->levels[0].first, 0);
        ck_assert_int_eq(priors->levels[0].count, n);
        ck_assert(priors->relative);
        check_columns(priors);
        ck_assert_uint_ge(bx_priors_bytes(n, 1), sizeof *priors + sizeof(bx_level) + (size_t)n * 36);
        bx_priors_free(priors);
        free(again);
    }
    bx_priors_free(NULL);
}
END_TEST

START_TEST(refused_boxes) {
    static const float boxes[][4] = {
        {.5f, .5f, 0, .1f},         {.5f, .5f, .1f, 0},     {.5f, .5f, -.1f, .1f},   {.5f, .5f, -.1f, -.1f},
        {NAN, .5f, .1f, .1f},       {.5f, NAN, .1f, .1f},   {.5f, .5f, NAN, .1f},    {.5f, .5f, .1f, NAN},
        {INFINITY, .5f, .1f, .1f},  {.5f, -INFINITY, 1, 1}, {.5f, .5f, INFINITY, 1}, {.5f, .5f, 1, INFINITY},
        {0, 0, 1e-30f, 1e-30f},     {.5f, .5f, 1e-9f, .1f}, {0, 0, 1e20f, 1e20f},    {1e30f, 0, 1, 1},
        {.5f, .5f, .1f, 0x1p-149f}, {0, 0, 3e38f, 3e38f},
    };
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++) {
        float set[200][4];
        bx_priors *priors = (bx_priors *)(void *)set; /* to be left alone */
        bx_error error = {0};
        for (int p = 0; p < 200; p++) {
            memcpy(set[p], (float[4]){.5f, .5f, .2f, .2f}, 16);
        }
        memcpy(set[131], boxes[i], 16);
        memcpy(set[150], boxes[i], 16); /* the first is named */
        ck_assert_msg(bx_priors_new(&priors, set[0], 200, &error) == BX_INVALID, "row %zu", i);
        ck_assert_int_eq(error.status, BX_INVALID);
        ck_assert_str_eq(error.code, "prior_degenerate");
        ck_assert_str_eq(error.path, "priors[131]");
        ck_assert_ptr_eq(priors, set);
    }
}
END_TEST

START_TEST(refused_counts) {
    static const int32_t counts[] = {0, -1, INT32_MIN, BX_MAX_PRIORS + 1, INT32_MAX};
    const float box[4] = {.5f, .5f, .1f, .1f};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bx_priors *priors = NULL;
        bx_error error = {0};
        ck_assert_int_eq(bx_priors_new(&priors, box, counts[i], &error), BX_SHAPE);
        ck_assert_str_eq(error.code, "shape");
        ck_assert_str_eq(error.path, "priors");
        ck_assert_ptr_null(priors);
    }
}
END_TEST

START_TEST(relative_or_pixels) {
    static const struct {
        float box[4];
        bool relative;
    } rows[] = {
        {{.5f, .5f, 1, 1}, true},       {{.5f, .5f, 3, 3}, true}, /* corners at -1 and 2 exactly */
        {{.5f, .5f, 3.001f, 1}, false}, {{.5f, .5f, 1, 3.001f}, false}, {{-.6f, .5f, 1, 1}, false},
        {{1.6f, .5f, 1, 1}, false},     {{.5f, -.6f, 1, 1}, false},     {{.5f, 1.6f, 1, 1}, false},
        {{150, 150, 30, 30}, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float set[2][4] = {{.5f, .5f, .1f, .1f}};
        bx_priors *priors = NULL;
        memcpy(set[1], rows[i].box, 16);
        ck_assert_int_eq(bx_priors_new(&priors, set[0], 2, NULL), BX_OK);
        ck_assert_msg(priors->relative == rows[i].relative, "row %zu", i);
        bx_priors_free(priors);
    }
}
END_TEST

START_TEST(unknown_sets) {
    bx_priors *priors = NULL;
    bx_error error = {0};
    ck_assert_int_eq(bx_priors_builtin(&priors, "ssd300-cocoa", &error), BX_INVALID);
    ck_assert_str_eq(error.code, "unknown_priors");
    ck_assert_str_eq(error.path, "priors");
    ck_assert_ptr_nonnull(strstr(error.text, "did you mean \"ssd300-coco\""));
    ck_assert_ptr_null(priors);
    error = (bx_error){0};
    ck_assert_int_eq(bx_priors_builtin(&priors, "zzzz", &error), BX_INVALID);
    ck_assert_ptr_null(strstr(error.text, "did you mean"));
    ck_assert_int_eq(bx_priors_builtin(&priors, "", NULL), BX_INVALID);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("priors");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, checksums, 0, N_SETS);
    tcase_add_loop_test(tests, levels, 0, N_SETS);
    tcase_add_test(tests, names);
    tcase_add_test(tests, every_box);
    tcase_add_test(tests, first_and_last);
    tcase_add_test(tests, duplicates);
    tcase_add_test(tests, columns);
    tcase_add_test(tests, own_boxes_are_copied);
    tcase_add_test(tests, refused_boxes);
    tcase_add_test(tests, refused_counts);
    tcase_add_test(tests, relative_or_pixels);
    tcase_add_test(tests, unknown_sets);
    return suite_run(suite);
}
