/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Built-in prior sets against their published checksums and against generators written again here; the columns that
 * matching reads; caller-given sets; references and names.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
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
    return priors;
}

/* ---- checksums --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    bool relative;
    int32_t n, n_levels;
    struct {
        const char *name;
        int32_t first;
    } levels[6];
    double sum[4], weighted[4]; /* of value, of i x value with i from 1 */
} sums[] = {
    {"ssd300",
     true,
     8732,
     6,
     {{"38x38", 0}, {"19x19", 5776}, {"10x10", 7942}, {"5x5", 8542}, {"3x3", 8692}, {"1x1", 8728}},
     {4443.146675, 4443.146675, 1510.147981, 1510.147981},
     {19574203.059, 22719618.049, 8310284.780, 8310620.189}},
    {"ssd300-coco",
     true,
     8732,
     6,
     {{"38x38", 0}, {"19x19", 5776}, {"10x10", 7942}, {"5x5", 8542}, {"3x3", 8692}, {"1x1", 8728}},
     {4443.146675, 4443.146675, 1171.967678, 1171.967678},
     {19574203.059, 22719618.049, 6706153.981, 6706416.226}},
    {"ssd300-unit",
     true,
     8732,
     6,
     {{"38x38", 0}, {"19x19", 5776}, {"10x10", 7942}, {"5x5", 8542}, {"3x3", 8692}, {"1x1", 8728}},
     {4365.999995, 4365.999995, 1516.328621, 1516.471257},
     {19161132.968, 22263870.950, 8361053.653, 8362686.813}},
    {"ssd300-efficientnet",
     true,
     3106,
     6,
     {{"mid", 0}, {"end", 1944}, {"a", 2430}, {"b", 2916}, {"c", 3066}, {"d", 3102}},
     {1552.999993, 1552.999993, 849.983512, 850.128083},
     {2434739.484, 2767317.483, 1551469.719, 1552195.715}},
    {"retinanet-640x640",
     false,
     76725,
     5,
     {{"p3", 0}, {"p4", 57600}, {"p5", 72000}, {"p6", 75600}, {"p7", 76500}},
     {24552000, 24552000, 4765061.933, 4765061.933},
     {944415446400, 1130595048000, 231052288978.066, 231045812089.021}},
    {"grid-128x128",
     false,
     4032,
     3,
     {{"s4", 0}, {"s8", 3072}, {"s16", 3840}},
     {258048, 258048, 49984, 69440},
     {521548032, 556093440, 130918816, 165134240}},
};
#define N_SETS (sizeof sums / sizeof *sums)

START_TEST(checksums) {
    bx_priors *priors = builtin(sums[_i].name);
    const double tolerance = sums[_i].relative ? 0.51e-6 : 0.51e-3; /* half of the last digit given */
    ck_assert_int_eq(priors->n, sums[_i].n);
    ck_assert(priors->relative == sums[_i].relative);
    for (int c = 0; c < 4; c++) {
        double sum = 0, weighted = 0;
        for (int32_t i = 0; i < priors->n; i++) {
            sum += (double)priors->boxes[4 * i + c];
            weighted += (i + 1.0) * (double)priors->boxes[4 * i + c];
        }
        ck_assert_double_eq_tol(sum, sums[_i].sum[c], tolerance);
        ck_assert_double_eq_tol(weighted, sums[_i].weighted[c], 0.51e-3);
    }
    bx_priors_free(priors);
}
END_TEST

START_TEST(levels) {
    bx_priors *priors = builtin(sums[_i].name);
    ck_assert_int_eq(priors->n_levels, sums[_i].n_levels);
    for (int l = 0; l < priors->n_levels; l++) {
        int32_t end = l + 1 < priors->n_levels ? sums[_i].levels[l + 1].first : priors->n;
        ck_assert_str_eq(priors->levels[l].name, sums[_i].levels[l].name);
        ck_assert_int_eq(priors->levels[l].first, sums[_i].levels[l].first);
        ck_assert_int_eq(priors->levels[l].first + priors->levels[l].count, end);
    }
    bx_priors_free(priors);
}
END_TEST

START_TEST(names) {
    size_t n = 0;
    for (const char *name; (name = bx_priors_name(n)); n++) {
        ck_assert_str_eq(name, sums[n].name);
        ck_assert(bx_priors_is_builtin(name));
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

/* Boxes in double of the tutorial's loop: the extra box follows ratio 1, or it is appended. */
static int32_t tutorial_boxes(double (*out)[4], const int maps[6], const double scales[6], const int n_ratios[6],
                              bool append) {
    static const double many[] = {1, 2, 3, .5, .333}, few[] = {1, 2, .5};
    int32_t n = 0;
    for (int k = 0; k < 6; k++) {
        for (int cell = 0; cell < maps[k] * maps[k]; cell++) {
            double cx = (cell % maps[k] + 0.5) / maps[k], cy = (cell / maps[k] + 0.5) / maps[k];
            double extra = k < 5 ? sqrt(scales[k] * scales[k + 1]) : 1;
            for (int r = 0; r < n_ratios[k]; r++) {
                double ratio = n_ratios[k] == 5 ? many[r] : few[r], root = sqrt(ratio);
                memcpy(out[n++], (double[4]){cx, cy, scales[k] * root, scales[k] / root}, 32);
                if (ratio == 1 && !append) {
                    memcpy(out[n++], (double[4]){cx, cy, extra, extra}, 32);
                }
            }
            if (append) {
                memcpy(out[n++], (double[4]){cx, cy, extra, extra}, 32);
            }
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

    static const int unit_maps[6] = {38, 19, 10, 5, 3, 1}, unit_ratios[6] = {3, 5, 5, 5, 3, 3};
    static const double unit_scales[6] = {.1, .2, .375, .55, .725, .9};
    n = tutorial_boxes(raw, unit_maps, unit_scales, unit_ratios, false);
    compare_boxes("ssd300-unit", raw, n, 20, 0, 8694);

    static const int maps[6] = {18, 9, 9, 5, 3, 1}, ratios[6] = {5, 5, 5, 5, 3, 3};
    static const double scales[6] = {.2, .2, .375, .55, .725, .9};
    n = tutorial_boxes(raw, maps, scales, ratios, true);
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

/* What the clamp changes in ssd300-unit lies in two levels. */
START_TEST(clamped_levels) {
    bx_priors *priors = builtin("ssd300-unit");
    int32_t ones[6] = {0};
    for (int l = 0; l < 6; l++) {
        for (int32_t i = priors->levels[l].first; i < priors->levels[l].first + priors->levels[l].count; i++) {
            const float *box = priors->boxes + 4 * i;
            ones[l] += (box[2] == 1) != (box[3] == 1); /* one of them; the extra box of the last level has both */
        }
    }
    ck_assert(ones[0] + ones[1] + ones[2] + ones[3] == 0 && ones[4] == 18 && ones[5] == 2);
    bx_priors_free(priors);
}
END_TEST

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
    priors = builtin("ssd300-unit");
    box_is(priors, 0, (float)(.5 / 38), (float)(.5 / 38), .1f, .1f);
    box_is(priors, 1, (float)(.5 / 38), (float)(.5 / 38), (float)sqrt(.1 * .2), (float)sqrt(.1 * .2));
    box_is(priors, 4, (float)(1.5 / 38), (float)(.5 / 38), .1f, .1f);
    box_is(priors, 5776 + 5, (float)(.5 / 19), (float)(.5 / 19), (float)(.2 * sqrt(.333)), (float)(.2 / sqrt(.333)));
    box_is(priors, -3, .5f, .5f, 1, 1);
    box_is(priors, -1, .5f, .5f, (float)(.9 * sqrt(.5)), 1);
    bx_priors_free(priors);
}
END_TEST

/* The numbers of one cell as they were published, to their last digit. */
START_TEST(retinanet_cell) {
    static const double cell[9][2] = {{22.6274, 45.2548}, {28.5088, 57.0175}, {35.9188, 71.8376},
                                      {32, 32},           {40.3175, 40.3175}, {50.7968, 50.7968},
                                      {45.2548, 22.6274}, {57.0175, 28.5088}, {71.8376, 35.9188}};
    bx_priors *priors = builtin("retinanet-640x640");
    for (int i = 0; i < 9; i++) {
        const float *box = priors->boxes + 4 * i;
        HOLDS(box[0] == 4 && box[1] == 4, "box %d", i);
        HOLDS(fabs((double)box[2] - cell[i][0]) < 0.51e-4 && fabs((double)box[3] - cell[i][1]) < 0.51e-4, "box %d", i);
    }
    ck_assert(priors->boxes[4 * 9] == 12 && priors->boxes[4 * 9 + 1] == 4);
    ck_assert(priors->boxes[4 * 720] == 4 && priors->boxes[4 * 720 + 1] == 12);
    box_is(priors, 57600 + 3, 8, 8, 64, 64);
    box_is(priors, 76725 - 6, 576, 576, 512, 512); /* ratio 1 of the last cell */
    bx_priors_free(priors);
}
END_TEST

START_TEST(grid_order) {
    static const float shapes[3][3][2] = {
        {{6, 16}, {9, 11}, {11, 9}}, {{16, 40}, {22, 28}, {27, 23}}, {{25, 63}, {36, 45}, {44, 37}}};
    bx_priors *priors = builtin("grid-128x128");
    int32_t i = 0;
    for (int l = 0; l < 3; l++) {
        for (int r = 0; r < 3; r++) {
            for (int cell = 0, side = 32 >> l; cell < side * side; cell++, i++) {
                const int stride = 4 << l;
                box_is(priors, i, (float)(stride / 2 + stride * (cell % side)),
                       (float)(stride / 2 + stride * (cell / side)), shapes[l][r][0], shapes[l][r][1]);
            }
        }
    }
    ck_assert_int_eq(i, priors->n);
    bx_priors_free(priors);
}
END_TEST

/* Sets of any size, and where the last cells of an image that no stride divides are. */
START_TEST(any_size) {
    static const struct {
        const char *name;
        int32_t n, first_level;
        float last_cx, last_cy;
    } rows[] = {
        {"retinanet-512x512", 49104, 36864, 448, 448},
        {"retinanet-1344x800", 201600, 151200, 1344, 832},
        {"retinanet-800x1344", 201600, 151200, 832, 1344},
        {"retinanet-1x1", 45, 9, 64, 64},
        {"retinanet-129x8", 9 * (17 + 9 + 5 + 3 + 2), 9 * 17, 192, 64},
        {"grid-128x64", 2016, 1536, 120, 56},
        {"grid-1x1", 9, 3, 8, 8},
        {"grid-13x6", 3 * (4 * 2 + 2 * 1 + 1), 3 * 8, 8, 8},
        {"grid-16384x1", 3 * (4096 + 2048 + 1024), 3 * 4096, 16376, 8},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bx_priors *priors = builtin(rows[i].name);
        const float *last = priors->boxes + 4 * (priors->n - 1);
        ck_assert(!priors->relative && bx_priors_is_builtin(rows[i].name));
        ck_assert_int_eq(priors->n, rows[i].n);
        ck_assert_int_eq(priors->levels[0].count, rows[i].first_level);
        ck_assert_msg(last[0] == rows[i].last_cx && last[1] == rows[i].last_cy, "%s: %g %g", rows[i].name,
                      (double)last[0], (double)last[1]);
        bx_priors_free(priors);
    }
}
END_TEST

START_TEST(refused_sizes) {
    static const struct {
        const char *name, *code;
        bx_status status;
        bool reserved;
    } rows[] = {
        {"retinanet-0x640", "priors_range", BX_INVALID, true},
        {"retinanet-640x0", "priors_range", BX_INVALID, true},
        {"grid-16385x1", "priors_range", BX_INVALID, true},
        {"grid-1x99999999999999999999999", "priors_range", BX_INVALID, true},
        {"retinanet-4294967297x1", "priors_range", BX_INVALID, true},
        {"retinanet-16384x16384", "shape", BX_SHAPE, true},
        {"grid-16384x16384", "shape", BX_SHAPE, true},
        {"retinanet-", "unknown_priors", BX_INVALID, false},
        {"retinanet-640", "unknown_priors", BX_INVALID, false},
        {"retinanet-640x", "unknown_priors", BX_INVALID, false},
        {"retinanet-x640", "unknown_priors", BX_INVALID, false},
        {"retinanet-640x640x", "unknown_priors", BX_INVALID, false},
        {"retinanet-640x640 ", "unknown_priors", BX_INVALID, false},
        {"retinanet-0640x640", "unknown_priors", BX_INVALID, false}, /* one name for one set */
        {"retinanet-640x00", "unknown_priors", BX_INVALID, false},
        {"retinanet--640x640", "unknown_priors", BX_INVALID, false},
        {"retinanet-640X640", "unknown_priors", BX_INVALID, false},
        {"ssd300-640x640", "unknown_priors", BX_INVALID, false},
        {"ssd-300x300", "unknown_priors", BX_INVALID, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bx_priors *priors = NULL;
        bx_error error = {0};
        ck_assert_msg(bx_priors_builtin(&priors, rows[i].name, &error) == rows[i].status, "%s", rows[i].name);
        ck_assert_str_eq(error.code, rows[i].code);
        ck_assert_str_eq(error.path, "priors");
        ck_assert_ptr_null(priors);
        ck_assert_msg(bx_priors_is_builtin(rows[i].name) == rows[i].reserved, "%s", rows[i].name);
    }
    bx_error error = {0};
    bx_priors *priors = NULL;
    ck_assert_int_eq(bx_priors_builtin(&priors, "retinanet-640x20000", &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "height must be between 1 and 16384"));
    error = (bx_error){0};
    ck_assert_int_eq(bx_priors_builtin(&priors, "retinanet-16384x16384", &error), BX_SHAPE);
    ck_assert_ptr_nonnull(strstr(error.text, "50282496")); /* how many there would be: 9 (2048^2 + ... + 128^2) */
    error = (bx_error){0};
    ck_assert_int_eq(bx_priors_builtin(&priors, "retinanet640x640", &error), BX_INVALID);
    ck_assert_ptr_nonnull(strstr(error.text, "did you mean \"retinanet-640x640\""));
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
        volatile float area = w * h, size = box[2] * box[3];
        HOLDS(priors->x1[i] == x1 && priors->y1[i] == y1 && priors->x2[i] == x2 && priors->y2[i] == y2 &&
                  priors->area[i] == area && priors->size[i] == size,
              "%s: prior %d", priors->name, i);
    }
    for (int32_t run = 0; run * BX_CULL < priors->n; run++) {
        const int32_t runs = (priors->n + BX_CULL - 1) / BX_CULL;
        float around[6], tight[6] = {INFINITY, INFINITY, -INFINITY, -INFINITY, INFINITY, -INFINITY};
        for (int32_t i = 0; i < 6; i++) {
            around[i] = priors->extent[i * runs + run];
        }
        for (int32_t i = run * BX_CULL; i < (run + 1) * BX_CULL && i < priors->n; i++) {
            tight[0] = fminf(tight[0], priors->x1[i]);
            tight[1] = fminf(tight[1], priors->y1[i]);
            tight[2] = fmaxf(tight[2], priors->x2[i]);
            tight[3] = fmaxf(tight[3], priors->y2[i]);
            tight[4] = fminf(tight[4], priors->area[i]);
            tight[5] = fmaxf(tight[5], priors->area[i]);
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
        ck_assert_ptr_null(priors->generator);
        ck_assert_uint_ge(bx_priors_bytes(n, 1), sizeof *priors + sizeof(bx_level) + (size_t)n * 40);
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

/* Matching may use either area, so neither may vanish. */
START_TEST(either_area) {
    static const struct {
        float box[4];
        bool area, size; /* which one is usable */
    } rows[] = {
        {{65536, 65536, 0x1p-10f, .5f}, false, true},                   /* the corners round together */
        {{0x1p-50f, 0, 1.01f * 0x1p-73f, .9f * 0x1p-77f}, true, false}, /* the corners round apart, w x h is lost */
        {{0, 0, 0x1p-75f, 0x1p-75f}, false, false},
        {{0, 0, 0x1p70f, 0x1p70f}, false, false},
        {{0x1p-50f, 0, 1.01f * 0x1p-73f, .9f * 0x1p-75f}, true, true},
        {{0, 0, 0x1.fffffep+63f, 0x1p64f}, true, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const float *box = rows[i].box;
        volatile float x1 = box[0] - box[2] / 2, x2 = box[0] + box[2] / 2;
        volatile float y1 = box[1] - box[3] / 2, y2 = box[1] + box[3] / 2;
        volatile float w = x2 - x1, h = y2 - y1, area = w * h, size = box[2] * box[3];
        ck_assert_msg((area > 0 && isfinite(area)) == rows[i].area, "row %zu is not what it says", i);
        ck_assert_msg((size > 0 && isfinite(size)) == rows[i].size, "row %zu is not what it says", i);
        bx_priors *priors = NULL;
        bx_error error = {0};
        bx_status status = bx_priors_new(&priors, box, 1, &error);
        ck_assert_msg(status == (rows[i].area && rows[i].size ? BX_OK : BX_INVALID), "row %zu", i);
        ck_assert(!status || !strcmp(error.code, "prior_degenerate"));
        bx_priors_free(priors);
    }
}
END_TEST

START_TEST(without_boxes) {
    static const int32_t counts[] = {1, 129, BX_MAX_PRIORS};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bx_priors *priors = NULL;
        ck_assert_int_eq(bx_priors_new(&priors, NULL, counts[i], NULL), BX_OK);
        ck_assert_str_eq(priors->name, "");
        ck_assert_str_eq(priors->text, "");
        ck_assert_int_eq(priors->n, counts[i]);
        ck_assert_int_eq(priors->n_levels, 1);
        ck_assert_str_eq(priors->levels[0].name, "all");
        ck_assert(priors->levels[0].first == 0 && priors->levels[0].count == counts[i]);
        ck_assert(!priors->boxes && !priors->x1 && !priors->y1 && !priors->x2 && !priors->y2);
        ck_assert(!priors->area && !priors->size && !priors->extent && !priors->generator);
        bx_priors_free(priors);
    }
    bx_priors *priors = NULL;
    bx_error error = {0};
    ck_assert_int_eq(bx_priors_new(&priors, NULL, 0, &error), BX_SHAPE);
    ck_assert_str_eq(error.path, "priors");
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
        {{.5f, .5f, 1, 1}, true},    {{.5f, .5f, 4, 4}, true}, /* a large prior may reach beyond the image */
        {{-1, -1, 1, 1}, true},      {{2, 2, 1, 1}, true},         {{-1.01f, .5f, 1, 1}, false},
        {{2.01f, .5f, 1, 1}, false}, {{.5f, -1.01f, 1, 1}, false}, {{.5f, 2.01f, 1, 1}, false},
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

/* ---- references and names ---------------------------------------------------------------------------------------- */

enum { N_THREADS = 4, N_ROUNDS = 20000 };

/* Takes and drops references; the set it was given is its own to drop in the end. */
static void *share(void *set) {
    const bx_priors *priors = set;
    for (int i = 0; i < N_ROUNDS; i++) {
        const bx_priors *again = bx_priors_ref(priors);
        if (again != priors || again->n != 3106) {
            return NULL;
        }
        bx_priors_free(again);
    }
    float last = priors->boxes[4 * 3105];
    bx_priors_free(priors);
    return last == .5f ? set : NULL;
}

/* The sanitizers see a set that is freed early, twice or never. */
START_TEST(references) {
    bx_priors *priors = builtin("ssd300-efficientnet");
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, share, (void *)bx_priors_ref(priors)), 0);
    }
    bx_priors_free(priors); /* a thread frees it */
    for (int i = 0; i < N_THREADS; i++) {
        void *fine = NULL;
        ck_assert_int_eq(pthread_join(threads[i], &fine), 0);
        ck_assert_ptr_nonnull(fine);
    }
    priors = builtin("grid-128x128");
    ck_assert_int_eq(atomic_load(&priors->references), 1);
    const bx_priors *second = bx_priors_ref(priors);
    ck_assert_ptr_eq(second, priors);
    ck_assert_int_eq(atomic_load(&priors->references), 2);
    bx_priors_free(priors);
    ck_assert(second->boxes[0] == 2 && atomic_load(&second->references) == 1);
    bx_priors_free(second);
}
END_TEST

START_TEST(renamed) {
    static const char longest[] = "sixty-three.characters_are_allowed.in.the.name-of-a-set.of.prior";
    char name[80];
    bx_priors *priors = builtin("ssd300");
    bx_error error = {0};
    snprintf(name, sizeof name, "%.63s", longest);
    ck_assert_int_eq(bx_priors_rename(priors, name, NULL), BX_OK);
    ck_assert_str_eq(priors->name, name);
    ck_assert_int_eq(bx_priors_rename(priors, "a", NULL), BX_OK);
    ck_assert_str_eq(priors->name, "a");
    ck_assert_int_eq(bx_priors_rename(priors, "", &error), BX_INVALID);
    ck_assert_str_eq(error.code, "invalid_name");
    error = (bx_error){0};
    snprintf(name, sizeof name, "%.63s!", longest);
    ck_assert_int_eq(bx_priors_rename(priors, name, &error), BX_INVALID);
    ck_assert_str_eq(error.code, "invalid_name");
    ck_assert_str_eq(priors->name, "a");
    bx_priors_free(priors);
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
    tcase_add_test(tests, clamped_levels);
    tcase_add_test(tests, first_and_last);
    tcase_add_test(tests, retinanet_cell);
    tcase_add_test(tests, grid_order);
    tcase_add_test(tests, any_size);
    tcase_add_test(tests, refused_sizes);
    tcase_add_test(tests, duplicates);
    tcase_add_test(tests, columns);
    tcase_add_test(tests, own_boxes_are_copied);
    tcase_add_test(tests, refused_boxes);
    tcase_add_test(tests, either_area);
    tcase_add_test(tests, without_boxes);
    tcase_add_test(tests, refused_counts);
    tcase_add_test(tests, relative_or_pixels);
    tcase_add_test(tests, unknown_sets);
    tcase_add_test(tests, references);
    tcase_add_test(tests, renamed);
    return suite_run(suite);
}
