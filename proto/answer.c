/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A result as JSON or as a safetensors file. Both hold the same members; in the second the long arrays travel as
 * tensors and the rest is the metadata string `result`.
 *
 * An answer's size is bounded before any work is done (proto_answer_bytes), and its memory is taken in one piece.
 */
#include "internal.h"

#include <string.h>

/* Upper bounds, in bytes of JSON text. */
#define HEAD_BYTES        6144 /* everything that is there once, its strings escaped */
#define LOSS_BYTES        224  /* {"total":..., ...}: five doubles of at most 24 */
#define IMAGE_BYTES       (LOSS_BYTES + 288)
#define CLASS_BYTES       (LOSS_BYTES + 128)
#define LEVEL_BYTES       (LOSS_BYTES + 224)
#define OBJECT_BYTES      256
#define CLASS_CELL_BYTES  7  /* -1 .. 16383 and a comma */
#define OBJECT_CELL_BYTES 12 /* an int32 and a comma */
#define TARGET_CELL_BYTES 68 /* [,,,], and four floats of at most 15 */

#define MAX_SLOTS 7

/* What is being answered. */
struct answer {
    const proto_request *request;
    const bx_result *result; /* NULL while only sizes are wanted */
    const bx_plan *plan;
    bool loss; /* there were predictions */
};

static bool wants(const struct answer *answer, unsigned include) {
    return (answer->request->include & include) != 0;
}

/* Nobody waits for the answer any more. Looked at now and then: a single image can have millions of priors. */
static bool given_up(const struct answer *answer, int32_t i) {
    return i % 1024 == 0 && bx_job_cancelled(answer->result->job);
}

/* ---- values of one prior ----------------------------------------------------------------------------------------- */

/* The image-local object a prior belongs to, -1 for background. */
static int32_t prior_object(const bx_job *job, int32_t image, int32_t prior) {
    size_t at = (size_t)image * (size_t)job->plan->n_priors + (size_t)prior;
    return job->state[at] & BX_POSITIVE ? job->owner[at] : -1;
}

static int32_t prior_class(const bx_job *job, int32_t image, int32_t prior) {
    int32_t object = prior_object(job, image, prior);
    return object < 0 ? -1 : (int32_t)job->batch->labels[job->batch->first[image] + object];
}

/* ---- JSON members ------------------------------------------------------------------------------------------------ */

static void write_loss(proto_writer *w, const struct answer *answer, bx_loss loss) {
    if (!answer->loss)
        return;
    proto_write_open(w, "loss", '{');
    proto_write_real(w, "total", loss.total);
    proto_write_real(w, "loc", loss.loc);
    proto_write_real(w, "conf", loss.conf);
    proto_write_real(w, "conf_positive", loss.conf_positive);
    proto_write_real(w, "conf_negative", loss.conf_negative);
    proto_write_close(w, '}');
}

static void write_sums(proto_writer *w, const struct answer *answer, const char *key, bx_sums sums) {
    if (!answer->loss)
        return;
    proto_write_open(w, key, '{');
    proto_write_real(w, "loc", sums.loc);
    proto_write_real(w, "conf_positive", sums.conf_positive);
    proto_write_real(w, "conf_negative", sums.conf_negative);
    proto_write_close(w, '}');
}

/* A member that only a loss has. */
static void write_loss_int(proto_writer *w, const struct answer *answer, const char *key, int64_t value) {
    if (answer->loss)
        proto_write_int(w, key, value);
}

/* A statistic over objects: null when there are none. */
static void write_statistic(proto_writer *w, const struct answer *answer, const char *key, double value) {
    if (answer->plan->n_objects > 0)
        proto_write_real(w, key, value);
    else
        proto_write_null(w, key);
}

static void write_assignment(proto_writer *w, const struct answer *answer) {
    const bx_result *r = answer->result;
    const bx_plan *plan = answer->plan;
    proto_write_open(w, "assignment", '{');
    proto_write_int(w, "images", plan->n_images);
    proto_write_int(w, "priors", plan->n_priors);
    proto_write_int(w, "objects", plan->n_objects);
    proto_write_int(w, "ignored_objects", 0);
    proto_write_int(w, "dropped_boxes", 0);
    proto_write_int(w, "positives", r->positives);
    proto_write_int(w, "negatives", r->negatives);
    proto_write_int(w, "ignored", 0);
    write_loss_int(w, answer, "hard_negatives", r->hard_negatives);
    proto_write_int(w, "forced", r->forced);
    proto_write_int(w, "collided", r->collided);
    proto_write_int(w, "unmatched_objects", r->unmatched_objects);
    proto_write_int(w, "objects_without_overlap", r->objects_without_overlap);
    proto_write_open(w, "best_iou", '{');
    write_statistic(w, answer, "min", r->best_iou_min);
    write_statistic(w, answer, "mean", r->best_iou_mean);
    proto_write_open(w, "histogram", '[');
    for (size_t i = 0; i < sizeof r->best_iou_histogram / sizeof r->best_iou_histogram[0]; i++)
        proto_write_int(w, NULL, r->best_iou_histogram[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');
    proto_write_open(w, "positives_per_object", '{');
    write_statistic(w, answer, "min", r->positives_per_object_min);
    write_statistic(w, answer, "mean", r->positives_per_object_mean);
    write_statistic(w, answer, "max", r->positives_per_object_max);
    proto_write_close(w, '}');
    proto_write_close(w, '}');
}

static void write_images(proto_writer *w, const struct answer *answer) {
    proto_write_open(w, "images", '[');
    for (int32_t i = 0; i < answer->plan->n_images && !given_up(answer, i); i++) {
        const bx_image_row *row = &answer->result->job->images[i];
        proto_write_open(w, NULL, '{');
        write_loss(w, answer, bx_result_share(answer->result, row->sums));
        proto_write_int(w, "positives", row->positives);
        proto_write_int(w, "negatives", row->negatives);
        proto_write_int(w, "ignored", 0);
        write_loss_int(w, answer, "hard_negatives", row->hard_negatives);
        proto_write_int(w, "objects", row->objects);
        proto_write_int(w, "forced", row->forced);
        proto_write_int(w, "collided", row->collided);
        proto_write_int(w, "unmatched_objects", row->unmatched_objects);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
}

static void write_class(proto_writer *w, const struct answer *answer, int32_t class, const bx_class_row *row) {
    proto_write_open(w, NULL, '{');
    proto_write_int(w, "class", class);
    proto_write_int(w, "objects", row->objects);
    proto_write_int(w, "positives", row->positives);
    write_loss_int(w, answer, "correct", row->correct);
    write_loss(w, answer, bx_result_share(answer->result, row->sums));
    proto_write_close(w, '}');
}

static void write_classes(proto_writer *w, const struct answer *answer) {
    proto_write_open(w, "classes", '[');
    for (int32_t k = 0; k < answer->plan->n_classes && !bx_job_cancelled(answer->result->job); k++) {
        bx_class_row row = bx_result_class(answer->result, k);
        write_class(w, answer, k, &row);
    }
    bx_class_row background = {.sums.conf_negative = answer->result->sums.conf_negative};
    write_class(w, answer, -1, &background);
    proto_write_close(w, ']');
}

static void write_levels(proto_writer *w, const struct answer *answer) {
    const bx_priors *priors = answer->plan->priors;
    proto_write_open(w, "levels", '[');
    for (int32_t i = 0; i < priors->n_levels; i++) {
        bx_level_row row = bx_result_level(answer->result, i);
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", priors->levels[i].name);
        proto_write_int(w, "priors", priors->levels[i].count);
        proto_write_int(w, "positives", row.positives);
        write_loss_int(w, answer, "hard_negatives", row.hard_negatives);
        write_loss(w, answer, bx_result_share(answer->result, row.sums));
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
}

static void write_objects(proto_writer *w, const struct answer *answer) {
    const bx_job *job = answer->result->job;
    proto_write_open(w, "objects", '[');
    for (int32_t image = 0; image < answer->plan->n_images; image++)
        for (int32_t g = job->batch->first[image]; g < job->batch->first[image + 1] && !given_up(answer, g); g++) {
            const bx_object_row *row = &job->objects[g];
            proto_write_open(w, NULL, '{');
            proto_write_int(w, "image", image);
            proto_write_int(w, "object", g - job->batch->first[image]);
            proto_write_int(w, "label", job->batch->labels[g]);
            proto_write_int(w, "best_prior", row->best_prior);
            proto_write_float(w, "best_iou", row->best_iou);
            proto_write_int(w, "positives", row->positives);
            proto_write_bool(w, "forced", row->forced);
            proto_write_bool(w, "collided", row->collided);
            proto_write_close(w, '}');
        }
    proto_write_close(w, ']');
}

/* An [N,P] array of a value of each prior. */
static void write_map(proto_writer *w, const struct answer *answer, const char *key,
                      int32_t (*value)(const bx_job *, int32_t, int32_t)) {
    proto_write_open(w, key, '[');
    for (int32_t i = 0; i < answer->plan->n_images; i++) {
        proto_write_open(w, NULL, '[');
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer, p); p++)
            proto_write_int(w, NULL, value(answer->result->job, i, p));
        proto_write_close(w, ']');
    }
    proto_write_close(w, ']');
}

static void write_target_loc(proto_writer *w, const struct answer *answer) {
    proto_write_open(w, "loc", '[');
    for (int32_t i = 0; i < answer->plan->n_images; i++) {
        proto_write_open(w, NULL, '[');
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer, p); p++) {
            double target[4];
            bx_result_target(answer->result, i, p, target);
            proto_write_open(w, NULL, '[');
            for (int c = 0; c < 4; c++)
                proto_write_float(w, NULL, (float)target[c]);
            proto_write_close(w, ']');
        }
        proto_write_close(w, ']');
    }
    proto_write_close(w, ']');
}

static void write_arrays(proto_writer *w, const struct answer *answer) {
    if (wants(answer, PROTO_INCLUDE_ASSIGNMENT)) {
        proto_write_open(w, "assignment_map", '{');
        write_map(w, answer, "classes", prior_class);
        write_map(w, answer, "objects", prior_object);
        proto_write_close(w, '}');
    }
    if (wants(answer, PROTO_INCLUDE_TARGETS)) {
        proto_write_open(w, "targets", '{');
        write_map(w, answer, "classes", prior_class);
        write_target_loc(w, answer);
        proto_write_close(w, '}');
    }
}

static void write_answer(proto_buffer *out, const struct answer *answer, const proto_timing *timing,
                         const char *request_id, bool arrays) {
    proto_writer writer = {.out = out}, *w = &writer;
    const char *device = answer->request->device;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "criterion", answer->plan->criterion->name);
    proto_write_string(w, "priors", answer->plan->priors->name);
    proto_write_string(w, "device", strcmp(device, "auto") == 0 ? "cpu" : device);
    proto_write_int(w, "classes_total", answer->plan->n_classes);
    proto_write_int(w, "label_base", 0);
    write_loss(w, answer, answer->result->loss);
    write_sums(w, answer, "sums", answer->result->sums);
    write_sums(w, answer, "normalizer", answer->result->normalizer);
    write_assignment(w, answer);
    proto_write_bool(w, "no_positives", answer->result->no_positives);
    if (wants(answer, PROTO_INCLUDE_IMAGES))
        write_images(w, answer);
    if (wants(answer, PROTO_INCLUDE_CLASSES))
        write_classes(w, answer);
    if (wants(answer, PROTO_INCLUDE_LEVELS))
        write_levels(w, answer);
    if (wants(answer, PROTO_INCLUDE_OBJECTS))
        write_objects(w, answer);
    if (arrays)
        write_arrays(w, answer);
    proto_write_open(w, "timing_ms", '{');
    proto_write_real(w, "receive", timing->receive_ms);
    proto_write_real(w, "queue", timing->queue_ms);
    proto_write_real(w, "compute", timing->compute_ms);
    proto_write_close(w, '}');
    proto_write_string(w, "request_id", request_id);
    proto_write_close(w, '}');
    if (arrays) /* a text of its own, not a string within a file */
        proto_write_end(w);
}

/* ---- safetensors ------------------------------------------------------------------------------------------------- */

/* The data of one tensor. */
typedef void (*emit)(proto_buffer *out, const struct answer *answer);

static void emit_total(proto_buffer *out, const struct answer *answer) {
    proto_buffer_add(out, &answer->result->loss.total, sizeof(double));
}

static void emit_loc(proto_buffer *out, const struct answer *answer) {
    proto_buffer_add(out, &answer->result->loss.loc, sizeof(double));
}

static void emit_conf(proto_buffer *out, const struct answer *answer) {
    proto_buffer_add(out, &answer->result->loss.conf, sizeof(double));
}

static void emit_positives(proto_buffer *out, const struct answer *answer) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        proto_buffer_add(out, &answer->result->job->images[i].positives, sizeof(int32_t));
}

static void emit_map(proto_buffer *out, const struct answer *answer,
                     int32_t (*value)(const bx_job *, int32_t, int32_t)) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer, p); p++) {
            int32_t cell = value(answer->result->job, i, p);
            proto_buffer_add(out, &cell, sizeof cell);
        }
}

static void emit_target_classes(proto_buffer *out, const struct answer *answer) {
    emit_map(out, answer, prior_class);
}

static void emit_target_objects(proto_buffer *out, const struct answer *answer) {
    emit_map(out, answer, prior_object);
}

static void emit_target_loc(proto_buffer *out, const struct answer *answer) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer, p); p++) {
            double target[4];
            bx_result_target(answer->result, i, p, target);
            float cell[4] = {(float)target[0], (float)target[1], (float)target[2], (float)target[3]};
            proto_buffer_add(out, cell, sizeof cell);
        }
}

/* The tensors of an answer, in the order the usual writers give: widest dtype first, then by name. */
static int list_slots(const struct answer *answer, proto_slot slots[MAX_SLOTS], emit emits[MAX_SLOTS]) {
    const int64_t n = answer->plan->n_images, p = answer->plan->n_priors;
    const bool targets = wants(answer, PROTO_INCLUDE_TARGETS),
               maps = targets || wants(answer, PROTO_INCLUDE_ASSIGNMENT);
    const struct {
        bool present;
        emit data;
        proto_slot slot;
    } all[MAX_SLOTS] = {
        {answer->loss, emit_conf, {"conf_loss", BX_F64, 1, {1}}},
        {answer->loss, emit_loc, {"loc_loss", BX_F64, 1, {1}}},
        {answer->loss, emit_total, {"loss", BX_F64, 1, {1}}},
        {targets, emit_target_loc, {"target_loc", BX_F32, 3, {n, p, 4}}},
        {true, emit_positives, {"positives", BX_I32, 1, {n}}},
        {maps, emit_target_classes, {"target_classes", BX_I32, 2, {n, p}}},
        {maps, emit_target_objects, {"target_objects", BX_I32, 2, {n, p}}},
    };
    int n_slots = 0;
    for (int i = 0; i < MAX_SLOTS; i++)
        if (all[i].present) {
            slots[n_slots] = all[i].slot;
            emits[n_slots++] = all[i].data;
        }
    return n_slots;
}

static void write_file(proto_buffer *out, const struct answer *answer, const proto_timing *timing,
                       const char *request_id) {
    proto_slot slots[MAX_SLOTS];
    emit emits[MAX_SLOTS];
    int n_slots = list_slots(answer, slots, emits);
    proto_buffer text = {0};
    write_answer(&text, answer, timing, request_id, false);
    proto_buffer_add(&text, "", 1);
    if (text.failed)
        out->failed = true;
    else
        proto_container_write_header(out, slots, n_slots, "result", text.data);
    proto_buffer_free(&text);
    for (int i = 0; i < n_slots; i++)
        emits[i](out, answer);
}

/* ---- the answer -------------------------------------------------------------------------------------------------- */

size_t proto_answer_bytes(const proto_request *request, const bx_plan *plan, proto_encoding accept) {
    const struct answer answer = {.request = request, .plan = plan, .loss = plan->with_predictions};
    const size_t images = (size_t)plan->n_images, cells = images * (size_t)plan->n_priors;
    size_t text = HEAD_BYTES;
    if (wants(&answer, PROTO_INCLUDE_IMAGES))
        text += images * IMAGE_BYTES;
    if (wants(&answer, PROTO_INCLUDE_CLASSES))
        text += ((size_t)plan->n_classes + 1) * CLASS_BYTES;
    if (wants(&answer, PROTO_INCLUDE_LEVELS))
        text += (size_t)plan->priors->n_levels * LEVEL_BYTES;
    if (wants(&answer, PROTO_INCLUDE_OBJECTS))
        text += (size_t)plan->n_objects * OBJECT_BYTES;
    if (accept == PROTO_SAFETENSORS) {
        proto_slot slots[MAX_SLOTS];
        emit emits[MAX_SLOTS];
        int n_slots = list_slots(&answer, slots, emits);
        size_t bytes = 2048 + 2 * text; /* inside a string every quote gets its backslash */
        for (int i = 0; i < n_slots; i++)
            bytes += proto_slot_bytes(&slots[i]);
        return bytes;
    }
    if (wants(&answer, PROTO_INCLUDE_ASSIGNMENT))
        text += cells * (CLASS_CELL_BYTES + OBJECT_CELL_BYTES) + images * 8;
    if (wants(&answer, PROTO_INCLUDE_TARGETS))
        text += cells * (CLASS_CELL_BYTES + TARGET_CELL_BYTES) + images * 8;
    return text;
}

bx_status proto_answer_encode(proto_buffer *out, proto_encoding accept, const proto_request *request,
                              const bx_result *result, const proto_timing *timing, const char *request_id,
                              size_t max_bytes, bx_error *error) {
    const bx_plan *plan = result->job->plan;
    const struct answer answer = {.request = request, .result = result, .plan = plan, .loss = plan->with_predictions};
    const size_t bytes = proto_answer_bytes(request, plan, accept), start = out->bytes;
    if (bytes > max_bytes)
        return bx_fail(error, BX_TOO_LARGE, "answer_too_large",
                       "the answer may need %zu bytes, %zu are allowed; include less", bytes, max_bytes);
    if (proto_buffer_reserve(out, bytes)) {
        if (accept == PROTO_SAFETENSORS)
            write_file(out, &answer, timing, request_id);
        else
            write_answer(out, &answer, timing, request_id, true);
    }
    if (!out->failed)
        return BX_OK;
    out->bytes = start;
    return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the answer");
}
