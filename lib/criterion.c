/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The presets and the names of every stage's choices, from loss.def.
 */
#include <string.h>

#include "internal.h"
#include "loss/l1.h"
#include "loss/smooth_l1.h"

static const bx_criterion presets[] = {
#define BX_PRESET(name_, text_, priors_, positive_iou_, force_, classification_, mining_, ratio_, localization_,       \
                  beta_, reduction_)                                                                                   \
    {.name = name_,                                                                                                    \
     .text = text_,                                                                                                    \
     .priors = priors_,                                                                                                \
     .matcher = {positive_iou_, BX_FORCE_##force_},                                                                    \
     .coder = {{0.1, 0.1, 0.2, 0.2}},                                                                                  \
     .classification = {BX_CLASSIFICATION_##classification_},                                                          \
     .mining = {BX_MINING_##mining_, ratio_},                                                                          \
     .localization = {BX_LOCALIZATION_##localization_, beta_, BX_REDUCTION_##reduction_},                              \
     .weights = {1, 1}},
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

#define BX_FORCE(id, name) name,
const char *bx_force_name(bx_force kind) {
    static const char *const names[] = {
#include "loss.def"
    };
    return names[kind];
}

#define BX_CLASSIFICATION(id, name) name,
const char *bx_classification_name(bx_classification kind) {
    static const char *const names[] = {
#include "loss.def"
    };
    return names[kind];
}

#define BX_MINING(id, name) name,
const char *bx_mining_name(bx_mining kind) {
    static const char *const names[] = {
#include "loss.def"
    };
    return names[kind];
}

#define BX_LOCALIZATION(id, name, value) name,
const char *bx_localization_name(bx_localization kind) {
    static const char *const names[] = {
#include "loss.def"
    };
    return names[kind];
}

#define BX_REDUCTION(id, name) name,
const char *bx_reduction_name(bx_reduction kind) {
    static const char *const names[] = {
#include "loss.def"
    };
    return names[kind];
}

double bx_localization_value(const bx_criterion *criterion, const float predicted[4], const double target[4]) {
#define BX_LOCALIZATION(id, name, value) value,
    static double (*const values[])(double, double) = {
#include "loss.def"
    };
    double (*value)(double, double) = values[criterion->localization.kind];
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += value((double)predicted[i] - target[i], criterion->localization.beta);
    }
    return sum;
}
