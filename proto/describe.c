/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small documents: problems, prior sets, criteria.
 */
#include "internal.h"

void proto_problem_encode(proto_buffer *out, const proto_problem *problem) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "type", "about:blank");
    proto_write_string(w, "title", problem->title);
    proto_write_int(w, "status", problem->http_status);
    proto_write_string(w, "detail", problem->detail);
    proto_write_string(w, "code", problem->code);
    if (problem->pointer && problem->pointer[0])
        proto_write_string(w, "pointer", problem->pointer);
    proto_write_string(w, "request_id", problem->request_id);
    proto_write_close(w, '}');
    proto_write_end(w);
}

/* ---- priors ------------------------------------------------------------------------------------------------------ */

void proto_priors_list(proto_buffer *out, const proto_catalog *catalog) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_open(w, "priors", '[');
    for (size_t i = 0; i < catalog->n_priors; i++) {
        const bx_priors *priors = catalog->priors[i];
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", priors->name);
        proto_write_string(w, "text", priors->text);
        proto_write_int(w, "count", priors->n);
        proto_write_bool(w, "relative", priors->relative);
        proto_write_int(w, "levels", priors->n_levels);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
    proto_write_close(w, '}');
    proto_write_end(w);
}

void proto_priors_describe(proto_buffer *out, const bx_priors *priors) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", priors->name);
    proto_write_string(w, "text", priors->text);
    proto_write_int(w, "count", priors->n);
    proto_write_string(w, "units", priors->relative ? "relative" : "pixels");
    proto_write_open(w, "levels", '[');
    for (int32_t i = 0; i < priors->n_levels; i++) {
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", priors->levels[i].name);
        proto_write_int(w, "first", priors->levels[i].first);
        proto_write_int(w, "count", priors->levels[i].count);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
    proto_write_close(w, '}');
    proto_write_end(w);
}

void proto_priors_tensor(proto_buffer *out, const bx_priors *priors) {
    const proto_slot slot = {"priors", BX_F32, 2, {priors->n, 4}};
    proto_container_write_header(out, &slot, 1, NULL, NULL);
    proto_buffer_add(out, priors->boxes, proto_slot_bytes(&slot));
}

/* ---- criteria ---------------------------------------------------------------------------------------------------- */

void proto_criteria_list(proto_buffer *out) {
    proto_writer writer = {.out = out}, *w = &writer;
    const bx_criterion *criterion;
    proto_write_open(w, NULL, '{');
    proto_write_open(w, "criteria", '[');
    for (size_t i = 0; (criterion = bx_criterion_at(i)) != NULL; i++) {
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", criterion->name);
        proto_write_string(w, "text", criterion->text);
        proto_write_string(w, "priors", criterion->priors);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
    proto_write_close(w, '}');
    proto_write_end(w);
}

void proto_criterion_describe(proto_buffer *out, const bx_criterion *criterion) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", criterion->name);
    proto_write_string(w, "text", criterion->text);
    proto_write_string(w, "priors", criterion->priors);

    proto_write_open(w, "matcher", '{');
    proto_write_float(w, "positive_iou", criterion->matcher.positive_iou);
    proto_write_null(w, "negative_iou");
    proto_write_string(w, "force", bx_force_name(criterion->matcher.force));
    proto_write_string(w, "iou", "corners");
    proto_write_null(w, "ignore_iof");
    proto_write_close(w, '}');

    proto_write_open(w, "coder", '{');
    proto_write_open(w, "variances", '[');
    for (int i = 0; i < 4; i++)
        proto_write_real(w, NULL, criterion->coder.variances[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');

    proto_write_open(w, "classification", '{');
    proto_write_string(w, "kind", bx_classification_name(criterion->classification.kind));
    proto_write_string(w, "background", "first");
    proto_write_close(w, '}');

    proto_write_open(w, "mining", '{');
    proto_write_string(w, "kind", bx_mining_name(criterion->mining.kind));
    proto_write_real(w, "ratio", criterion->mining.ratio);
    proto_write_string(w, "scope", "image");
    proto_write_int(w, "min_negatives", 0);
    proto_write_close(w, '}');

    proto_write_open(w, "localization", '{');
    proto_write_string(w, "kind", bx_localization_name(criterion->localization.kind));
    if (criterion->localization.kind == BX_LOCALIZATION_SMOOTH_L1)
        proto_write_real(w, "beta", criterion->localization.beta);
    proto_write_string(w, "reduction", bx_reduction_name(criterion->localization.reduction));
    proto_write_close(w, '}');

    proto_write_open(w, "normalizer", '{');
    proto_write_string(w, "kind", "positives");
    proto_write_close(w, '}');

    proto_write_open(w, "weights", '{');
    proto_write_real(w, "loc", criterion->weights.loc);
    proto_write_real(w, "conf", criterion->weights.conf);
    proto_write_close(w, '}');
    proto_write_close(w, '}');
    proto_write_end(w);
}
