/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small documents: problems and prior sets.
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

static void write_summary(proto_writer *w, const bx_priors *priors) {
    proto_write_string(w, "name", priors->name);
    proto_write_string(w, "text", priors->text);
    proto_write_int(w, "count", priors->n);
    proto_write_string(w, "units", priors->relative ? "relative" : "pixels");
}

void proto_priors_row(proto_writer *w, const bx_priors *priors) {
    proto_write_open(w, NULL, '{');
    write_summary(w, priors);
    proto_write_bool(w, "relative", priors->relative);
    proto_write_int(w, "levels", priors->n_levels);
    proto_write_close(w, '}');
}

void proto_priors_describe(proto_buffer *out, const bx_priors *priors) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    write_summary(w, priors);
    proto_write_open(w, "levels", '[');
    for (int32_t i = 0; i < priors->n_levels; i++) {
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", priors->levels[i].name);
        proto_write_int(w, "first", priors->levels[i].first);
        proto_write_int(w, "count", priors->levels[i].count);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
    if (priors->generator)
        proto_generator_write(w, "generator", priors->generator);
    proto_write_close(w, '}');
    proto_write_end(w);
}

void proto_priors_tensor(proto_buffer *out, const bx_priors *priors) {
    const proto_slot slot = {"priors", BX_F32, 2, {priors->n, 4}};
    proto_container_write_header(out, &slot, 1, NULL, NULL);
    proto_buffer_add(out, priors->boxes, proto_slot_bytes(&slot));
}
