/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A criterion as JSON, stage by stage. Members that a kind does not use are left out: what is written is accepted again
 * and reads back as the same criterion.
 */
#include "internal.h"

static void write_name(proto_writer *w, const char *key, bx_menu menu, unsigned choice) {
    proto_write_string(w, key, bx_menu_name(menu, choice));
}

/* Null where there is none. */
static void write_priors(proto_writer *w, const bx_criterion *criterion) {
    if (criterion->priors[0])
        proto_write_string(w, "priors", criterion->priors);
    else
        proto_write_null(w, "priors");
}

/* A share that is switched off by a negative value. */
static void write_optional(proto_writer *w, const char *key, float value) {
    if (value < 0)
        proto_write_null(w, key);
    else
        proto_write_float(w, key, value);
}

static void write_floats(proto_writer *w, const char *key, const float *values, int32_t n) {
    proto_write_open(w, key, '[');
    for (int32_t i = 0; i < n; i++)
        proto_write_float(w, NULL, values[i]);
    proto_write_close(w, ']');
}

static void write_matcher(proto_writer *w, const bx_matcher *matcher) {
    proto_write_open(w, "matcher", '{');
    proto_write_float(w, "positive_iou", matcher->positive_iou);
    write_optional(w, "negative_iou", matcher->negative_iou);
    write_name(w, "force", BX_MENU_FORCE, matcher->force);
    write_name(w, "iou", BX_MENU_IOU, matcher->iou);
    write_optional(w, "ignore_iof", matcher->ignore_iof);
    proto_write_close(w, '}');
}

static void write_coder(proto_writer *w, const bx_coder *coder) {
    proto_write_open(w, "coder", '{');
    proto_write_open(w, "variances", '[');
    for (int i = 0; i < 4; i++)
        proto_write_real(w, NULL, coder->variances[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');
}

static void write_classification(proto_writer *w, const bx_classification *classification) {
    proto_write_open(w, "classification", '{');
    write_name(w, "kind", BX_MENU_CLASSIFICATION, classification->kind);
    write_name(w, "background", BX_MENU_BACKGROUND, classification->background);
    if (bx_classification_is_focal(classification->kind)) {
        if (classification->alphas)
            write_floats(w, "alpha", classification->alphas, classification->n_alphas);
        else
            proto_write_real(w, "alpha", classification->alpha);
        proto_write_real(w, "gamma", classification->gamma);
    }
    if (classification->class_weights)
        write_floats(w, "class_weights", classification->class_weights, classification->n_class_weights);
    else
        proto_write_null(w, "class_weights");
    proto_write_real(w, "label_smoothing", classification->label_smoothing);
    proto_write_close(w, '}');
}

static void write_mining(proto_writer *w, const bx_mining *mining) {
    proto_write_open(w, "mining", '{');
    write_name(w, "kind", BX_MENU_MINING, mining->kind);
    if (mining->kind != BX_MINING_NONE) {
        proto_write_real(w, "ratio", mining->ratio);
        write_name(w, "scope", BX_MENU_SCOPE, mining->scope);
        proto_write_int(w, "min_negatives", mining->min_negatives);
    }
    proto_write_close(w, '}');
}

static void write_localization(proto_writer *w, const bx_localization *localization) {
    proto_write_open(w, "localization", '{');
    write_name(w, "kind", BX_MENU_LOCALIZATION, localization->kind);
    if (bx_localization_has_beta(localization->kind))
        proto_write_real(w, "beta", localization->beta);
    if (bx_localization_has_delta(localization->kind))
        proto_write_real(w, "delta", localization->delta);
    if (!bx_localization_needs_boxes(localization->kind))
        write_name(w, "reduction", BX_MENU_REDUCTION, localization->reduction);
    proto_write_close(w, '}');
}

static void write_normalizer(proto_writer *w, const bx_normalizer *normalizer) {
    proto_write_open(w, "normalizer", '{');
    write_name(w, "kind", BX_MENU_NORMALIZER, normalizer->kind);
    if (normalizer->kind == BX_NORMALIZER_VALUE)
        proto_write_real(w, "value", normalizer->value);
    proto_write_close(w, '}');
}

void proto_criterion_row(proto_writer *w, const bx_criterion *criterion) {
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", criterion->name);
    proto_write_string(w, "text", criterion->text);
    write_priors(w, criterion);
    proto_write_close(w, '}');
}

void proto_criterion_describe(proto_buffer *out, const bx_criterion *criterion) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", criterion->name);
    proto_write_string(w, "text", criterion->text);
    write_priors(w, criterion);
    write_matcher(w, &criterion->matcher);
    write_coder(w, &criterion->coder);
    write_classification(w, &criterion->classification);
    write_mining(w, &criterion->mining);
    write_localization(w, &criterion->localization);
    write_normalizer(w, &criterion->normalizer);
    proto_write_open(w, "weights", '{');
    proto_write_real(w, "loc", criterion->weights.loc);
    proto_write_real(w, "conf", criterion->weights.conf);
    proto_write_close(w, '}');
    proto_write_close(w, '}');
    proto_write_end(w);
}
