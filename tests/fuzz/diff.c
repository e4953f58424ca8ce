/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One batch in every form, at every level of the cpu, and passing by in pieces: the answers are the same to the last
 * digit, or all are refused for the same reason.
 */
#include "../support/job.h"
#include "case.h"

static scene s;
static bx_context *levels[8]; /* open for good, ref first */
static int n_levels;
static const proto_timing timing = {1, 2, 3};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    for (; n_levels < 8 && bx_level_name((size_t)n_levels); n_levels++) {
        CHECK(bx_context_open(&levels[n_levels], "cpu", bx_level_name((size_t)n_levels), NULL) == BX_OK, "no context");
    }
    return 0;
}

/* ---- one outcome ------------------------------------------------------------------------------------------------- */

/* An answer's text, or "refused: " and the code. */
static char *text_of(const proto_request *r, const bx_result *result) {
    proto_buffer out = {0};
    bx_error error = {0};
    proto_request asked = *r;
    strcpy(asked.device, "cpu");
    CHECK(proto_answer_encode(&out, PROTO_JSON, &asked, result, &timing, "id", SIZE_MAX, &error) == BX_OK, "%s",
          error.text);
    proto_buffer_add(&out, "", 1);
    CHECK(!out.failed, "no memory");
    return out.data;
}

static char *refused(const bx_error *error) {
    char text[128];
    snprintf(text, sizeof text, "refused: %s", error->code);
    return exact_text(text, strlen(text));
}

static char *compute_at(const proto_request *r, bx_context *level) {
    computation c;
    bx_error error = {0};
    bx_status status = compute_in(&c, level, r->criterion, r->priors, &r->batch, r->gradients, &error);
    char *text = status == BX_OK ? text_of(r, &c.result) : refused(&error);
    computation_free(&c);
    return text;
}

static void stream_rows(bx_context *context, bx_job *job, int32_t image, bx_tensor tensor, size_t width, bytes *b,
                        void (*pass)(bx_context *, bx_job *, int32_t, int32_t, int32_t, const void *)) {
    const int32_t n = job->plan->n_priors;
    const size_t row = width * bx_dtype_bytes(tensor.dtype);
    for (int32_t p = 0, count; p < n; p += count) {
        count = 1 + (int32_t)take(b) * (n > 256 ? 8 : 1);
        count = count < n - p ? count : n - p;
        char *copy =
            exact((const char *)tensor.data + ((size_t)image * (size_t)n + (size_t)p) * row, (size_t)count * row);
        pass(context, job, image, p, count, copy);
        free(copy);
    }
}

static void stream_image(bx_context *context, bx_job *job, const bx_batch *batch, int32_t image, bytes *b) {
    const bool loc_first = take(b) & 1;
    bx_stream_assign(context, job, image);
    if (loc_first) {
        stream_rows(context, job, image, batch->loc, 4, b, bx_stream_loc);
    }
    stream_rows(context, job, image, batch->conf, (size_t)job->plan->n_columns, b, bx_stream_conf);
    bx_stream_mine(context, job, image);
    if (!loc_first) {
        stream_rows(context, job, image, batch->loc, 4, b, bx_stream_loc);
    }
    bx_run_image(context, job, image);
}

/* The same while the predictions pass by. */
static char *compute_streamed(const proto_request *r, bytes *b) {
    computation c = {0};
    bx_context *context = levels[take_below(b, n_levels)];
    bx_error error = {0};
    bx_batch batch = r->batch;
    batch.streamed = true;
    bx_status status = bx_plan_init(&c.plan, r->criterion, r->priors, &batch, BX_GRADIENTS_NONE, &error);
    if (status == BX_OK) {
        c.work = poisoned(c.plan.work_bytes);
        bx_job_init(&c.job, &c.plan, &batch, c.work);
        for (int32_t image = 0; image < c.plan.n_images; image++) {
            stream_image(context, &c.job, &batch, image, b);
        }
        status = compute_rest(&c, context, &error);
    }
    char *text = status == BX_OK ? text_of(r, &c.result) : refused(&error);
    computation_free(&c);
    return text;
}

/* ---- all of them ------------------------------------------------------------------------------------------------- */

static void hold(const char *owed, char *text, const char *what) {
    CHECK(!strcmp(owed, text), "%s is not the same as JSON at ref:\n%s\n%s", what, text, owed);
    free(text);
}

/* What a body comes to at ref; with `owed`, it is held against that and the other ways to compute it are too. */
static char *outcome_of(const decoding *how, const proto_buffer *body, const char *owed, const char *what, bytes *b) {
    char *copy = exact(body->data, body->bytes), *text;
    proto_request r;
    bx_error error = {0};
    bx_status status = how->encoding == PROTO_INFER
                           ? proto_infer_decode(&r, how->model, how->json_bytes, copy, body->bytes, NULL, 0,
                                                &fuzz_catalog, &how->limits, &error)
                           : proto_request_decode(&r, PROTO_LOSS, how->encoding, copy, body->bytes, NULL, 0,
                                                  &fuzz_catalog, &how->limits, &error);
    if (status != BX_OK) {
        free(copy);
        return refused(&error);
    }
    text = compute_at(&r, levels[0]);
    for (int i = 1; owed && i < n_levels; i++) {
        hold(owed, compute_at(&r, levels[i]), bx_level_name((size_t)i));
    }
    if (owed && r.gradients == BX_GRADIENTS_NONE) {
        hold(owed, compute_streamed(&r, b), "streamed");
    }
    if (owed) {
        hold(owed, exact_text(text, strlen(text)), what);
    }
    proto_request_free(&r);
    free(copy);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    size_t left = (size_t)1 << 28;
    decoding how = {.model = s.criterion,
                    .json_bytes = -1,
                    .limits = {.json_memory = (size_t)1 << 26, .reserve = fuzz_reserve, .context = &left}};
    const char *what[] = {"flat JSON", "safetensors", "safetensors in another order", "an inference",
                          "an inference in JSON"};
    scene_make(&s, &b, false);
    proto_buffer body = {0};
    scene_json(&s, false, &body);
    char *owed = outcome_of(&how, &body, NULL, "JSON", &b);
    for (int form = 0; form < (s.plain ? 5 : 3); form++) {
        body.bytes = 0;
        left = (size_t)1 << 28;
        how.encoding = form == 0 ? PROTO_JSON : form <= 2 ? PROTO_SAFETENSORS : PROTO_INFER;
        how.json_bytes = -1;
        if (form == 0) {
            scene_json(&s, true, &body);
        } else if (form <= 2) {
            scene_tensors(&s, &b, form == 2, &body);
        } else {
            const int64_t end = scene_infer(&s, &b, form == 3, &body);
            how.json_bytes = form == 3 ? end : -1;
        }
        CHECK(!body.failed, "no memory");
        char *text = outcome_of(&how, &body, owed, what[form], &b);
        hold(owed, text, what[form]);
    }
    proto_buffer_free(&body);
    free(owed);
    return 0;
}
