/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criteria: the presets and menus of loss.def, what a kind starts from, and which combinations make sense.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- menus and presets ------------------------------------------------------------------------------------------- */

const char *bx_menu_name(bx_menu menu, size_t i) {
    static const struct {
        bx_menu menu;
        const char *name;
    } rows[] = {
#define BX_FORCE(id, name)                                         {BX_MENU_FORCE, name},
#define BX_IOU(id, name)                                           {BX_MENU_IOU, name},
#define BX_CLASSIFICATION(id, name, background, skeleton, formula) {BX_MENU_CLASSIFICATION, name},
#define BX_BACKGROUND(id, name)                                    {BX_MENU_BACKGROUND, name},
#define BX_MINING(id, name)                                        {BX_MENU_MINING, name},
#define BX_SCOPE(id, name)                                         {BX_MENU_SCOPE, name},
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula)    {BX_MENU_LOCALIZATION, name},
#define BX_REDUCTION(id, name)                                     {BX_MENU_REDUCTION, name},
#define BX_NORMALIZER(id, name)                                    {BX_MENU_NORMALIZER, name},
#include "loss.def"
    };
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        if (rows[row].menu == menu && i-- == 0) {
            return rows[row].name;
        }
    }
    return NULL;
}

static const bx_criterion presets[] = {
#define BX_PRESET(name_, text_, priors_, ...)                                                                          \
    {.name = name_, .text = text_, .priors = priors_, .weights = {1, 1}, __VA_ARGS__},
#include "loss.def"
};

const bx_criterion *bx_criterion_at(size_t i) {
    return i < sizeof presets / sizeof *presets ? &presets[i] : NULL;
}

const bx_criterion *bx_criterion_preset(const char *name) {
    const bx_criterion *preset = NULL;
    for (size_t i = 0; (preset = bx_criterion_at(i)) && strcmp(preset->name, name); i++) {
    }
    return preset;
}

/* ---- kinds ------------------------------------------------------------------------------------------------------- */

static bx_background default_background(bx_classification_kind kind) {
    static const bx_background homes[] = {
#define BX_CLASSIFICATION(id, name, background, skeleton, formula) BX_BACKGROUND_##background,
#include "loss.def"
    };
    return homes[kind];
}

bx_classification bx_classification_default(bx_classification_kind kind) {
    return (bx_classification){.kind = kind, .background = default_background(kind), .alpha = 0.25, .gamma = 2};
}

bx_mining bx_mining_default(bx_mining_kind kind) {
    return (bx_mining){.kind = kind, .ratio = 3, .scope = BX_SCOPE_IMAGE};
}

bx_localization bx_localization_default(bx_localization_kind kind) {
    return (bx_localization){.kind = kind, .beta = 1, .delta = 1, .reduction = BX_REDUCTION_SUM};
}

bx_normalizer bx_normalizer_default(bx_normalizer_kind kind) {
    return (bx_normalizer){.kind = kind, .value = 1};
}

bool bx_classification_is_focal(bx_classification_kind kind) {
    return kind == BX_CLASSIFICATION_SIGMOID_FOCAL;
}

enum { NONE, BETA, DELTA };    /* a localization loss's parameter */
enum { BX_OFFSETS, BX_BOXES }; /* and its skeleton */

static const struct {
    int parameter, skeleton;
} localizations[] = {
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula) {parameter, BX_##skeleton},
#include "loss.def"
};

bool bx_localization_has_beta(bx_localization_kind kind) {
    return localizations[kind].parameter == BETA;
}

bool bx_localization_has_delta(bx_localization_kind kind) {
    return localizations[kind].parameter == DELTA;
}

bool bx_localization_needs_boxes(bx_localization_kind kind) {
    return localizations[kind].skeleton == BX_BOXES;
}

int32_t bx_criterion_classes(const bx_criterion *criterion, int32_t n_columns) {
    return criterion->classification.background == BX_BACKGROUND_NONE ? n_columns : n_columns - 1;
}

int32_t bx_class_column(const bx_criterion *criterion, int32_t k) {
    return criterion->classification.background == BX_BACKGROUND_FIRST ? k + 1 : k;
}

int32_t bx_background_column(const bx_criterion *criterion, int32_t n_columns) {
    static const int32_t none = -1;
    switch (criterion->classification.background) {
    case BX_BACKGROUND_FIRST:
        return 0;
    case BX_BACKGROUND_LAST:
        return n_columns - 1;
    case BX_BACKGROUND_NONE:
        break;
    }
    return none;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

/* Within [least, most]; `open`: not `least` itself. False for NaN. */
static bool within(double x, double least, double most, bool open) {
    return (open ? x > least : x >= least) && x <= most;
}

static bool list_within(const float *list, int32_t n, double most) {
    for (int32_t i = 0; i < n; i++) {
        if (!within((double)list[i], 0, most, false)) {
            return false;
        }
    }
    return true;
}

static bx_status check_ranges(const bx_criterion *c, bx_error *error) {
    const double least = 1e-6, most = 1e6; /* generous, and no product of them leaves float32 */
    const bx_classification *cls = &c->classification;
    const struct {
        bool fine;
        const char *member, *range;
    } rows[] = {
        {within((double)c->matcher.positive_iou, 0, 1, true), "matcher.positive_iou", "above 0 and at most 1"},
        {c->matcher.negative_iou < 0 || within((double)c->matcher.negative_iou, 0, 1, false), "matcher.negative_iou",
         "0 to 1, or null"},
        {c->matcher.ignore_iof < 0 || within((double)c->matcher.ignore_iof, 0, 1, true), "matcher.ignore_iof",
         "above 0 and at most 1, or null"},
        {within(c->coder.variances[0], least, most, false) && within(c->coder.variances[1], least, most, false) &&
             within(c->coder.variances[2], least, most, false) && within(c->coder.variances[3], least, most, false),
         "coder.variances", "four numbers of 1e-6 to 1e6"},
        {within(cls->alpha, 0, 1, false) && list_within(cls->alphas, cls->n_alphas, 1), "classification.alpha",
         "0 to 1, or a list of such numbers"},
        {within(cls->gamma, 0, 100, false), "classification.gamma", "0 to 100"},
        {within(cls->label_smoothing, 0, 1, false), "classification.label_smoothing", "0 to 1"},
        {list_within(cls->class_weights, cls->n_class_weights, most), "classification.class_weights",
         "a list of numbers of 0 to 1e6, or null"},
        {within(c->mining.ratio, 0, most, false), "mining.ratio", "0 to 1e6"},
        {c->mining.min_negatives >= 0, "mining.min_negatives", "a whole number, not negative"},
        {within(c->localization.beta, 0, most, false), "localization.beta", "0 to 1e6"},
        {within(c->localization.delta, least, most, false), "localization.delta", "1e-6 to 1e6"},
        {within(c->normalizer.value, least, 1e12, false), "normalizer.value", "1e-6 to 1e12"},
        {within(c->weights.loc, 0, most, false), "weights.loc", "0 to 1e6"},
        {within(c->weights.conf, 0, most, false), "weights.conf", "0 to 1e6"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!rows[i].fine) {
            bx_fail(error, BX_INVALID, "criterion_range", "%s must be %s", rows[i].member, rows[i].range);
            bx_at(error, "criterion.%s", rows[i].member);
            return BX_INVALID;
        }
    }
    return BX_OK;
}

static bx_status check_combinations(const bx_criterion *c, bx_error *error) {
    const bx_classification *cls = &c->classification;
    bool focal = bx_classification_is_focal(cls->kind);
    const struct {
        bool wrong;
        const char *member, *text;
    } rows[] = {
        {c->matcher.negative_iou > c->matcher.positive_iou, "matcher.negative_iou",
         "matcher.negative_iou is above matcher.positive_iou: what lies between would be background and positive"},
        {!focal && cls->background == BX_BACKGROUND_NONE, "classification.background",
         "classification.background \"none\" goes with a classification.kind of independent columns (sigmoid_focal), "
         "not with this one: background priors need a column"},
        {focal && cls->n_alphas > 0 && cls->background != BX_BACKGROUND_NONE, "classification.alpha",
         "classification.alpha as a list has a number for each class and none for the column that "
         "classification.background asks for"},
        {bx_localization_needs_boxes(c->localization.kind) && c->localization.reduction == BX_REDUCTION_MEAN,
         "localization.reduction",
         "localization.reduction \"mean\" is over four coordinates, and localization.kind is one number per box"},
        {c->normalizer.kind == BX_NORMALIZER_POSITIVES_AND_MINED && c->mining.kind == BX_MINING_NONE, "normalizer.kind",
         "normalizer.kind \"positives_and_mined\" needs a mining.kind that mines, not \"none\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].wrong) {
            bx_fail(error, BX_INVALID, "criterion_conflict", "%s", rows[i].text);
            bx_at(error, "criterion.%s", rows[i].member);
            return BX_INVALID;
        }
    }
    return BX_OK;
}

bx_status bx_criterion_check(const bx_criterion *criterion, bx_error *error) {
    bx_status status = check_ranges(criterion, error);
    return status == BX_OK ? check_combinations(criterion, error) : status;
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */

bx_criterion *bx_criterion_copy(const bx_criterion *criterion) {
    const bx_classification *from = &criterion->classification;
    size_t alphas = (size_t)from->n_alphas * sizeof(float), weights = (size_t)from->n_class_weights * sizeof(float);
    bx_criterion *copy = malloc(sizeof *copy + alphas + weights);
    if (!copy) {
        return NULL;
    }
    *copy = *criterion;
    float *lists = (float *)(void *)(copy + 1);
    if (alphas > 0) {
        copy->classification.alphas = memcpy(lists, from->alphas, alphas);
    }
    if (weights > 0) {
        copy->classification.class_weights = memcpy(lists + from->n_alphas, from->class_weights, weights);
    }
    return copy;
}

void bx_criterion_free(bx_criterion *criterion) {
    free(criterion);
}
