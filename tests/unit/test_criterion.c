/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criteria: the names of the menus, the presets, what a kind starts from, every range and every combination that is
 * refused, and copies.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "../support/suite.h"

/* ---- menus and presets ------------------------------------------------------------------------------------------- */

/* The words of the wire format. Choices may be added; these must stay, each under its own name. */
START_TEST(menus) {
    static const struct {
        bx_menu menu;
        const char *names[8];
    } rows[] = {
        {BX_MENU_FORCE, {"last", "first", "greedy", "none"}},
        {BX_MENU_IOU, {"corners", "sizes"}},
        {BX_MENU_CLASSIFICATION, {"softmax_ce", "prob_ce", "sigmoid_focal"}},
        {BX_MENU_BACKGROUND, {"first", "last", "none"}},
        {BX_MENU_MINING, {"hard_negative", "none"}},
        {BX_MENU_SCOPE, {"image", "batch"}},
        {BX_MENU_LOCALIZATION, {"smooth_l1", "l1", "huber", "jump_l1", "giou", "diou", "ciou"}},
        {BX_MENU_REDUCTION, {"sum", "mean"}},
        {BX_MENU_NORMALIZER, {"positives", "positives_and_mined", "image_positives", "value"}},
    };
    for (size_t m = 0; m < sizeof rows / sizeof *rows; m++) {
        for (size_t i = 0; rows[m].names[i]; i++) {
            size_t found = 0;
            for (size_t j = 0; bx_menu_name(rows[m].menu, j); j++) {
                found += !strcmp(bx_menu_name(rows[m].menu, j), rows[m].names[i]);
            }
            ck_assert_msg(found == 1, "%s is %zu times in its menu", rows[m].names[i], found);
        }
    }
    ck_assert_ptr_null(bx_menu_name(BX_MENU_IOU, 2));
    ck_assert_ptr_null(bx_menu_name(BX_MENU_NORMALIZER, SIZE_MAX));
}
END_TEST

/* A name's place in its menu is the enumerator's value. */
START_TEST(names_of_enumerators) {
    static const struct {
        bx_menu menu;
        int value;
        const char *name;
    } rows[] = {
#define BX_FORCE(id, name) {BX_MENU_FORCE, BX_FORCE_##id, name},
#define BX_IOU(id, name)   {BX_MENU_IOU, BX_IOU_##id, name},
#define BX_CLASSIFICATION(id, name, background, skeleton, formula)                                                     \
    {BX_MENU_CLASSIFICATION, BX_CLASSIFICATION_##id, name},
#define BX_BACKGROUND(id, name)                                 {BX_MENU_BACKGROUND, BX_BACKGROUND_##id, name},
#define BX_MINING(id, name)                                     {BX_MENU_MINING, BX_MINING_##id, name},
#define BX_SCOPE(id, name)                                      {BX_MENU_SCOPE, BX_SCOPE_##id, name},
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula) {BX_MENU_LOCALIZATION, BX_LOCALIZATION_##id, name},
#define BX_REDUCTION(id, name)                                  {BX_MENU_REDUCTION, BX_REDUCTION_##id, name},
#define BX_NORMALIZER(id, name)                                 {BX_MENU_NORMALIZER, BX_NORMALIZER_##id, name},
#include "loss.def"
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ck_assert_str_eq(bx_menu_name(rows[i].menu, (size_t)rows[i].value), rows[i].name);
    }
}
END_TEST

START_TEST(presets) {
    static const char *const names[] = {"ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras"};
    static const char *const priors[] = {"ssd300", "ssd300-efficientnet", "", ""};
    for (size_t i = 0; i < 4; i++) {
        const bx_criterion *c = bx_criterion_preset(names[i]);
        bx_error error = {0};
        ck_assert_ptr_nonnull(c);
        ck_assert_ptr_eq(c, bx_criterion_at(i));
        ck_assert_str_eq(c->name, names[i]);
        ck_assert_str_eq(c->priors, priors[i]);
        ck_assert_str_ne(c->text, "");
        ck_assert_msg(bx_criterion_check(c, &error) == BX_OK, "%s: %s", names[i], error.text);
        ck_assert(c->weights.loc == 1 && c->weights.conf == 1);
        ck_assert(c->matcher.positive_iou == .5f && c->matcher.ignore_iof < 0);
        ck_assert(!c->classification.alphas && !c->classification.class_weights);
        ck_assert(c->classification.label_smoothing == 0);
    }
    ck_assert_ptr_null(bx_criterion_at(4));
    ck_assert_ptr_null(bx_criterion_at(SIZE_MAX));
    ck_assert_ptr_null(bx_criterion_preset(""));
    ck_assert_ptr_null(bx_criterion_preset("ssd"));
    ck_assert_ptr_null(bx_criterion_preset("SSD-multibox"));
}
END_TEST

START_TEST(ssd_multibox) {
    for (int l1 = 0; l1 < 2; l1++) {
        const bx_criterion *c = bx_criterion_preset(l1 ? "ssd-multibox-l1" : "ssd-multibox");
        ck_assert(c->matcher.negative_iou < 0);
        ck_assert_int_eq(c->matcher.force, BX_FORCE_LAST);
        ck_assert_int_eq(c->matcher.iou, BX_IOU_CORNERS);
        ck_assert(c->coder.variances[0] == .1 && c->coder.variances[1] == .1);
        ck_assert(c->coder.variances[2] == .2 && c->coder.variances[3] == .2);
        ck_assert_int_eq(c->classification.kind, BX_CLASSIFICATION_SOFTMAX_CE);
        ck_assert_int_eq(c->classification.background, BX_BACKGROUND_FIRST);
        ck_assert_int_eq(c->mining.kind, BX_MINING_HARD_NEGATIVE);
        ck_assert_int_eq(c->mining.scope, BX_SCOPE_IMAGE);
        ck_assert(c->mining.ratio == 3 && c->mining.min_negatives == 0);
        ck_assert_int_eq(c->localization.kind, l1 ? BX_LOCALIZATION_L1 : BX_LOCALIZATION_SMOOTH_L1);
        ck_assert_int_eq(c->localization.reduction, l1 ? BX_REDUCTION_MEAN : BX_REDUCTION_SUM);
        ck_assert(l1 || c->localization.beta == 1);
        ck_assert_int_eq(c->normalizer.kind, BX_NORMALIZER_POSITIVES);
    }
}
END_TEST

START_TEST(retinanet_focal) {
    const bx_criterion *c = bx_criterion_preset("retinanet-focal");
    ck_assert(c->matcher.negative_iou == .4f);
    ck_assert_int_eq(c->matcher.force, BX_FORCE_NONE);
    ck_assert_int_eq(c->matcher.iou, BX_IOU_SIZES);
    ck_assert(c->coder.variances[0] == .1 && c->coder.variances[3] == .2);
    ck_assert_int_eq(c->classification.kind, BX_CLASSIFICATION_SIGMOID_FOCAL);
    ck_assert_int_eq(c->classification.background, BX_BACKGROUND_NONE);
    ck_assert(c->classification.alpha == .25 && c->classification.gamma == 2);
    ck_assert_int_eq(c->mining.kind, BX_MINING_NONE);
    ck_assert_int_eq(c->localization.kind, BX_LOCALIZATION_JUMP_L1);
    ck_assert(c->localization.delta == 1);
    ck_assert_int_eq(c->localization.reduction, BX_REDUCTION_SUM);
    ck_assert_int_eq(c->normalizer.kind, BX_NORMALIZER_IMAGE_POSITIVES);
}
END_TEST

START_TEST(ssd_keras) {
    const bx_criterion *c = bx_criterion_preset("ssd-keras");
    for (int i = 0; i < 4; i++) {
        ck_assert(c->coder.variances[i] == 1);
    }
    ck_assert(c->matcher.negative_iou < 0);
    ck_assert_int_eq(c->matcher.force, BX_FORCE_LAST);
    ck_assert_int_eq(c->classification.kind, BX_CLASSIFICATION_PROB_CE);
    ck_assert_int_eq(c->classification.background, BX_BACKGROUND_LAST);
    ck_assert_int_eq(c->mining.kind, BX_MINING_HARD_NEGATIVE);
    ck_assert_int_eq(c->mining.scope, BX_SCOPE_BATCH);
    ck_assert(c->mining.ratio == 3);
    ck_assert_int_eq(c->localization.kind, BX_LOCALIZATION_SMOOTH_L1);
    ck_assert(c->localization.beta == 1);
    ck_assert_int_eq(c->normalizer.kind, BX_NORMALIZER_POSITIVES_AND_MINED);
}
END_TEST

/* ---- kinds ------------------------------------------------------------------------------------------------------- */

START_TEST(defaults) {
    static const bx_background homes[] = {
        [BX_CLASSIFICATION_SOFTMAX_CE] = BX_BACKGROUND_FIRST,
        [BX_CLASSIFICATION_PROB_CE] = BX_BACKGROUND_LAST,
        [BX_CLASSIFICATION_SIGMOID_FOCAL] = BX_BACKGROUND_NONE,
    };
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++) {
        bx_classification c = bx_classification_default((bx_classification_kind)i);
        ck_assert_int_eq(c.kind, i);
        ck_assert_int_eq(c.background, homes[i]);
        ck_assert(c.alpha == .25 && c.gamma == 2 && c.label_smoothing == 0);
        ck_assert(!c.alphas && !c.class_weights && c.n_alphas == 0 && c.n_class_weights == 0);
        ck_assert_int_eq(bx_classification_is_focal(c.kind), c.kind == BX_CLASSIFICATION_SIGMOID_FOCAL);
    }
    for (size_t i = 0; bx_menu_name(BX_MENU_MINING, i); i++) {
        bx_mining m = bx_mining_default((bx_mining_kind)i);
        ck_assert_int_eq(m.kind, i);
        ck_assert(m.ratio == 3 && m.scope == BX_SCOPE_IMAGE && m.min_negatives == 0);
    }
    for (size_t i = 0; bx_menu_name(BX_MENU_LOCALIZATION, i); i++) {
        bx_localization l = bx_localization_default((bx_localization_kind)i);
        ck_assert_int_eq(l.kind, i);
        ck_assert(l.beta == 1 && l.delta == 1 && l.reduction == BX_REDUCTION_SUM);
    }
    for (size_t i = 0; bx_menu_name(BX_MENU_NORMALIZER, i); i++) {
        bx_normalizer n = bx_normalizer_default((bx_normalizer_kind)i);
        ck_assert_int_eq(n.kind, i);
        ck_assert(n.value == 1);
    }
}
END_TEST

START_TEST(members_of_localization) {
    static const char *const beta = "smooth_l1", *const delta = "huber jump_l1", *const boxes = "giou diou ciou";
    for (size_t i = 0; bx_menu_name(BX_MENU_LOCALIZATION, i); i++) {
        const char *name = bx_menu_name(BX_MENU_LOCALIZATION, i);
        bx_localization_kind kind = (bx_localization_kind)i;
        ck_assert_msg(bx_localization_has_beta(kind) == (strstr(beta, name) && strcmp(name, "l1")), "%s: beta", name);
        ck_assert_msg(bx_localization_has_delta(kind) == (strstr(delta, name) && strcmp(name, "l1")), "%s: delta",
                      name);
        ck_assert_msg(bx_localization_needs_boxes(kind) == (strstr(boxes, name) != NULL), "%s: boxes", name);
    }
}
END_TEST

START_TEST(columns_of_classes) {
    static const struct {
        bx_background place;
        int32_t classes, first, background;
    } rows[] = {{BX_BACKGROUND_FIRST, 20, 1, 0}, {BX_BACKGROUND_LAST, 20, 0, 20}, {BX_BACKGROUND_NONE, 21, 0, -1}};
    for (size_t i = 0; i < 3; i++) {
        bx_criterion c = *bx_criterion_preset("retinanet-focal");
        c.classification.background = rows[i].place;
        ck_assert_int_eq(bx_criterion_classes(&c, 21), rows[i].classes);
        ck_assert_int_eq(bx_class_column(&c, 0), rows[i].first);
        ck_assert_int_eq(bx_class_column(&c, 7), rows[i].first + 7);
        ck_assert_int_eq(bx_background_column(&c, 21), rows[i].background);
    }
}
END_TEST

/* ---- ranges ------------------------------------------------------------------------------------------------------ */

static bx_criterion c; /* a test changes one member of a preset */

static void set_up(void) {
    c = *bx_criterion_preset("ssd-multibox");
}

static void accepted(const char *member) {
    bx_error error = {0};
    ck_assert_msg(bx_criterion_check(&c, &error) == BX_OK, "%s: %s %s", member, error.path, error.text);
}

static void refused(const char *code, const char *member) {
    bx_error error = {0};
    char path[128];
    snprintf(path, sizeof path, "criterion.%s", member);
    ck_assert_msg(bx_criterion_check(&c, &error) == BX_INVALID, "%s is accepted", member);
    ck_assert_int_eq(error.status, BX_INVALID);
    ck_assert_str_eq(error.code, code);
    ck_assert_str_eq(error.path, path);
    ck_assert_msg(strstr(error.text, member) != NULL, "\"%s\" does not name %s", error.text, member);
    ck_assert_int_eq(bx_criterion_check(&c, NULL), BX_INVALID);
}

/* Tries values on one member of a preset. */
#define TRY(member, ...)                                                                                               \
    do {                                                                                                               \
        static const struct {                                                                                          \
            double value;                                                                                              \
            bool fine;                                                                                                 \
        } rows[] = {__VA_ARGS__};                                                                                      \
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {                                                      \
            set_up();                                                                                                  \
            c.member = (__typeof__(c.member))rows[i].value;                                                            \
            if (rows[i].fine) {                                                                                        \
                accepted(#member);                                                                                     \
            } else {                                                                                                   \
                refused("criterion_range", #member);                                                                   \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

START_TEST(ranges) {
    TRY(matcher.positive_iou, {1e-9, true}, {.5, true}, {1, true}, {0, false}, {-.1, false}, {1.0001, false},
        {NAN, false}, {INFINITY, false});
    TRY(matcher.negative_iou, {-1, true}, {0, true}, {.4, true}, {.5, true}, {1.0001, false}, {NAN, false},
        {INFINITY, false});
    TRY(matcher.ignore_iof, {-1, true}, {1e-9, true}, {.5, true}, {1, true}, {0, false}, {1.0001, false}, {NAN, false},
        {INFINITY, false});
    TRY(classification.alpha, {0, true}, {1, true}, {-1e-9, false}, {1.0001, false}, {NAN, false});
    TRY(classification.gamma, {0, true}, {100, true}, {-1e-9, false}, {100.001, false}, {NAN, false},
        {INFINITY, false});
    TRY(classification.label_smoothing, {0, true}, {1, true}, {-1e-9, false}, {1.0001, false}, {NAN, false});
    TRY(mining.ratio, {0, true}, {1e6, true}, {-1e-9, false}, {1000001, false}, {NAN, false}, {INFINITY, false});
    TRY(mining.min_negatives, {0, true}, {1e15, true}, {-1, false});
    TRY(localization.beta, {0, true}, {1e6, true}, {-1e-9, false}, {1000001, false}, {NAN, false}, {INFINITY, false});
    TRY(localization.delta, {1e-6, true}, {15, true}, {1e6, true}, {9e-7, false}, {1000001, false}, {0, false},
        {-1, false}, {NAN, false}, {INFINITY, false});
    TRY(normalizer.value, {1e-6, true}, {1e12, true}, {9e-7, false}, {1.1e12, false}, {0, false}, {-1, false},
        {NAN, false}, {INFINITY, false});
    TRY(weights.loc, {0, true}, {1e6, true}, {-1e-9, false}, {1000001, false}, {NAN, false}, {INFINITY, false});
    TRY(weights.conf, {0, true}, {1e6, true}, {-1e-9, false}, {1000001, false}, {NAN, false}, {INFINITY, false});
}
END_TEST

START_TEST(variances) {
    static const double wrong[] = {0, 9e-7, 1000001, -1, NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++) {
        for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
            set_up();
            c.coder.variances[i] = wrong[w];
            refused("criterion_range", "coder.variances");
        }
        c.coder.variances[i] = 1e-6;
        accepted("variances");
        c.coder.variances[i] = 1e6;
        accepted("variances");
    }
}
END_TEST

START_TEST(lists) {
    const float wrong[] = {-1e-6f, NAN, INFINITY, 1000001};
    for (int at = 0; at < 3; at++) {
        for (int w = 0; w < 4; w++) {
            float list[3] = {0, 1, .5f};
            set_up();
            c.classification.class_weights = list;
            c.classification.n_class_weights = 3;
            accepted("class_weights");
            list[at] = 1e6f;
            accepted("class_weights");
            list[at] = wrong[w];
            refused("criterion_range", "classification.class_weights");
        }
        for (int w = 0; w < 4; w++) {
            float list[3] = {0, 1, .5f};
            c = *bx_criterion_preset("retinanet-focal");
            c.classification.alphas = list;
            c.classification.n_alphas = 3;
            accepted("alpha");
            list[at] = w < 3 ? wrong[w] : 1.0001f;
            refused("criterion_range", "classification.alpha");
        }
    }
}
END_TEST

/* ---- combinations ------------------------------------------------------------------------------------------------ */

/* The text names both members that disagree. */
static void conflict(const char *member, const char *other) {
    bx_error error = {0};
    refused("criterion_conflict", member);
    ck_assert_int_eq(bx_criterion_check(&c, &error), BX_INVALID);
    ck_assert_msg(strstr(error.text, other) != NULL, "\"%s\" does not name %s", error.text, other);
}

START_TEST(overlapping_thresholds) {
    c.matcher.positive_iou = .4f;
    c.matcher.negative_iou = nextafterf(.4f, 1);
    conflict("matcher.negative_iou", "matcher.positive_iou");
    c.matcher.negative_iou = .4f;
    accepted("equal thresholds");
}
END_TEST

START_TEST(background_of_kinds) {
    for (size_t kind = 0; bx_menu_name(BX_MENU_CLASSIFICATION, kind); kind++) {
        for (size_t place = 0; bx_menu_name(BX_MENU_BACKGROUND, place); place++) {
            c.classification.kind = (bx_classification_kind)kind;
            c.classification.background = (bx_background)place;
            if (place == BX_BACKGROUND_NONE && kind != BX_CLASSIFICATION_SIGMOID_FOCAL) {
                conflict("classification.background", "classification.kind");
            } else {
                accepted(bx_menu_name(BX_MENU_CLASSIFICATION, kind));
            }
        }
    }
}
END_TEST

START_TEST(alphas_and_background) {
    static const float list[2] = {.1f, .9f};
    c = *bx_criterion_preset("retinanet-focal");
    c.classification.alphas = list;
    c.classification.n_alphas = 2;
    accepted("alpha");
    c.classification.background = BX_BACKGROUND_FIRST;
    conflict("classification.alpha", "classification.background");
    c.classification.background = BX_BACKGROUND_LAST;
    conflict("classification.alpha", "classification.background");
    c.classification.alphas = NULL;
    c.classification.n_alphas = 0;
    accepted("one alpha");
}
END_TEST

START_TEST(means_of_boxes) {
    for (size_t kind = 0; bx_menu_name(BX_MENU_LOCALIZATION, kind); kind++) {
        c.localization = bx_localization_default((bx_localization_kind)kind);
        accepted("sum");
        c.localization.reduction = BX_REDUCTION_MEAN;
        if (bx_localization_needs_boxes(c.localization.kind)) {
            conflict("localization.reduction", "localization.kind");
        } else {
            accepted("mean");
        }
    }
}
END_TEST

START_TEST(normalisers_of_mining) {
    for (size_t kind = 0; bx_menu_name(BX_MENU_NORMALIZER, kind); kind++) {
        for (size_t mining = 0; bx_menu_name(BX_MENU_MINING, mining); mining++) {
            c.normalizer.kind = (bx_normalizer_kind)kind;
            c.mining.kind = (bx_mining_kind)mining;
            if (kind == BX_NORMALIZER_POSITIVES_AND_MINED && mining == BX_MINING_NONE) {
                conflict("normalizer.kind", "mining.kind");
            } else {
                accepted(bx_menu_name(BX_MENU_NORMALIZER, kind));
            }
        }
    }
}
END_TEST

/* A range is told before a combination, the first member in the order of the stages before a later one. */
START_TEST(the_first_fault_is_named) {
    c.weights.conf = -1;
    c.classification.gamma = -1;
    c.matcher.positive_iou = .2f;
    c.matcher.negative_iou = .3f;
    refused("criterion_range", "classification.gamma");
    c.classification.gamma = 2;
    refused("criterion_range", "weights.conf");
    c.weights.conf = 1;
    refused("criterion_conflict", "matcher.negative_iou");
}
END_TEST

/* ---- copies ------------------------------------------------------------------------------------------------------ */

START_TEST(copies) {
    for (int round = 0; round < 4; round++) {
        float *weights = NULL, *alphas = NULL;
        c = *bx_criterion_preset("retinanet-focal");
        snprintf(c.name, sizeof c.name, "mine");
        if (round & 1) {
            weights = malloc(3 * sizeof *weights);
            memcpy(weights, (float[3]){1, 2, 3}, 12);
            c.classification.class_weights = weights;
            c.classification.n_class_weights = 3;
        }
        if (round & 2) {
            alphas = malloc(5 * sizeof *alphas);
            memcpy(alphas, (float[5]){.1f, .2f, .3f, .4f, .5f}, 20);
            c.classification.alphas = alphas;
            c.classification.n_alphas = 5;
        }
        bx_criterion *copy = bx_criterion_copy(&c), *again = bx_criterion_copy(copy);
        ck_assert_ptr_nonnull(copy);
        ck_assert_ptr_nonnull(again);
        free(weights); /* what remains is the copy's own; the sanitizer watches */
        free(alphas);
        memset(&c, 0x5a, sizeof c);
        bx_criterion_free(copy);
        ck_assert_str_eq(again->name, "mine");
        ck_assert_int_eq(again->matcher.iou, BX_IOU_SIZES);
        const bx_classification *made = &again->classification;
        ck_assert(!made->class_weights == !(round & 1) && !made->alphas == !(round & 2));
        for (int i = 0; i < 3 && round & 1; i++) {
            ck_assert(made->class_weights[i] == (float)(i + 1));
        }
        for (int i = 0; i < 5 && round & 2; i++) {
            ck_assert(made->alphas[i] == (float)(i + 1) / 10);
        }
        ck_assert_int_eq(made->n_class_weights, round & 1 ? 3 : 0);
        ck_assert_int_eq(made->n_alphas, round & 2 ? 5 : 0);
        ck_assert_int_eq(bx_criterion_check(again, NULL), BX_OK);
        bx_criterion_free(again);
    }
    bx_criterion_free(NULL);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("criterion");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_add_checked_fixture(tests, set_up, NULL);
    tcase_add_test(tests, menus);
    tcase_add_test(tests, names_of_enumerators);
    tcase_add_test(tests, presets);
    tcase_add_test(tests, ssd_multibox);
    tcase_add_test(tests, retinanet_focal);
    tcase_add_test(tests, ssd_keras);
    tcase_add_test(tests, defaults);
    tcase_add_test(tests, members_of_localization);
    tcase_add_test(tests, columns_of_classes);
    tcase_add_test(tests, ranges);
    tcase_add_test(tests, variances);
    tcase_add_test(tests, lists);
    tcase_add_test(tests, overlapping_thresholds);
    tcase_add_test(tests, background_of_kinds);
    tcase_add_test(tests, alphas_and_background);
    tcase_add_test(tests, means_of_boxes);
    tcase_add_test(tests, normalisers_of_mining);
    tcase_add_test(tests, the_first_fault_is_named);
    tcase_add_test(tests, copies);
    return suite_run(suite);
}
