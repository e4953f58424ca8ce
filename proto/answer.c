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
#define SUMS_BYTES        144  /* "normalizer":{"loc":..., ...}: three of them */
#define IMAGE_BYTES       (LOSS_BYTES + 2 * SUMS_BYTES + 288)
#define CLASS_BYTES       (LOSS_BYTES + SUMS_BYTES + 128)
#define LEVEL_BYTES       (LOSS_BYTES + SUMS_BYTES + 224)
#define OBJECT_BYTES      256
#define CLASS_CELL_BYTES  7  /* -2 .. 16383 and a comma */
#define OBJECT_CELL_BYTES 12 /* an int32 and a comma */
#define FLOAT_BYTES       16 /* -1.23456789e-38 and a comma */
#define LOC_ROW_BYTES     (4 * FLOAT_BYTES + 3)
#define INDEX_ROW_BYTES   (2 * OBJECT_CELL_BYTES + 3)

proto_answer proto_answer_of(const proto_request *request, const bx_plan *plan, const bx_result *result,
                             int64_t n_rows) {
    return (proto_answer){request, result, plan, n_rows, plan->with_predictions, !plan->with_targets};
}

/* Nobody waits for the answer any more. Looked at now and then: a single image can have millions of priors. */
static bool given_up(const proto_answer *answer, int32_t i) {
    return i % 1024 == 0 && bx_job_cancelled(answer->result->job);
}

/* ---- JSON members ------------------------------------------------------------------------------------------------ */

static void write_loss(proto_writer *w, const proto_answer *answer, bx_loss loss) {
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

/* `sums` NULL: there are none, which is said. */
static void write_sums(proto_writer *w, const proto_answer *answer, const char *key, const bx_sums *sums) {
    if (!answer->loss)
        return;
    if (!sums) {
        proto_write_null(w, key);
        return;
    }
    proto_write_open(w, key, '{');
    proto_write_real(w, "loc", sums->loc);
    proto_write_real(w, "conf_positive", sums->conf_positive);
    proto_write_real(w, "conf_negative", sums->conf_negative);
    proto_write_close(w, '}');
}

/* A member that only a loss has. */
static void write_loss_int(proto_writer *w, const proto_answer *answer, const char *key, int64_t value) {
    if (answer->loss)
        proto_write_int(w, key, value);
}

/* A count of objects, or of what became of them: null when there were no annotations. */
static void write_object_int(proto_writer *w, const proto_answer *answer, const char *key, int64_t value) {
    if (answer->objects)
        proto_write_int(w, key, value);
    else
        proto_write_null(w, key);
}

/* A statistic over objects: null when there are none. */
static void write_statistic(proto_writer *w, const proto_answer *answer, const char *key, double value) {
    if (answer->result->objects > 0)
        proto_write_real(w, key, value);
    else
        proto_write_null(w, key);
}

static void write_best_iou(proto_writer *w, const proto_answer *answer) {
    const bx_result *r = answer->result;
    proto_write_open(w, "best_iou", '{');
    write_statistic(w, answer, "min", r->best_iou_min);
    write_statistic(w, answer, "mean", r->best_iou_mean);
    proto_write_open(w, "histogram", '[');
    for (size_t i = 0; i < sizeof r->best_iou_histogram / sizeof r->best_iou_histogram[0]; i++)
        proto_write_int(w, NULL, r->best_iou_histogram[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');
}

static void write_positives_per_object(proto_writer *w, const proto_answer *answer) {
    const bx_result *r = answer->result;
    proto_write_open(w, "positives_per_object", '{');
    write_statistic(w, answer, "min", r->positives_per_object_min);
    write_statistic(w, answer, "mean", r->positives_per_object_mean);
    write_statistic(w, answer, "max", r->positives_per_object_max);
    proto_write_close(w, '}');
}

static void write_assignment(proto_writer *w, const proto_answer *answer) {
    const bx_result *r = answer->result;
    proto_write_open(w, "assignment", '{');
    proto_write_int(w, "images", answer->plan->n_images);
    proto_write_int(w, "priors", answer->plan->n_priors);
    write_object_int(w, answer, "objects", r->objects);
    write_object_int(w, answer, "ignored_objects", r->ignored_objects);
    write_object_int(w, answer, "dropped_boxes", r->dropped_boxes);
    proto_write_int(w, "positives", r->positives);
    proto_write_int(w, "negatives", r->negatives);
    proto_write_int(w, "ignored", r->ignored);
    write_loss_int(w, answer, "hard_negatives", r->hard_negatives);
    write_object_int(w, answer, "forced", r->forced);
    write_object_int(w, answer, "collided", r->collided);
    write_object_int(w, answer, "unmatched_objects", r->unmatched_objects);
    write_object_int(w, answer, "objects_without_overlap", r->objects_without_overlap);
    if (answer->objects) {
        write_best_iou(w, answer);
        write_positives_per_object(w, answer);
    } else {
        proto_write_null(w, "best_iou");
        proto_write_null(w, "positives_per_object");
    }
    proto_write_close(w, '}');
}

static void write_images(proto_writer *w, const proto_answer *answer) {
    const bx_result *r = answer->result;
    proto_write_open(w, "images", '[');
    for (int32_t i = 0; i < answer->plan->n_images && !given_up(answer, i); i++) {
        const bx_image_row *row = &r->job->images[i];
        proto_write_open(w, NULL, '{');
        write_loss(w, answer, bx_result_share(r, i, row->sums));
        write_sums(w, answer, "sums", &row->sums);
        if (r->own_normalizers)
            write_sums(w, answer, "normalizer", &r->job->normalizers[i]);
        proto_write_int(w, "positives", row->positives);
        proto_write_int(w, "negatives", row->negatives);
        proto_write_int(w, "ignored", row->ignored);
        write_loss_int(w, answer, "hard_negatives", row->hard_negatives);
        write_object_int(w, answer, "objects", row->objects);
        write_object_int(w, answer, "forced", row->forced);
        write_object_int(w, answer, "collided", row->collided);
        write_object_int(w, answer, "unmatched_objects", row->unmatched_objects);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
}

static void write_class(proto_writer *w, const proto_answer *answer, int32_t class, const bx_class_row *row,
                        bx_loss share) {
    proto_write_open(w, NULL, '{');
    proto_write_int(w, "class", class);
    write_object_int(w, answer, "objects", row->objects);
    proto_write_int(w, "positives", row->positives);
    write_loss_int(w, answer, "correct", row->correct);
    write_loss(w, answer, share);
    write_sums(w, answer, "sums", &row->sums);
    proto_write_close(w, '}');
}

static void write_classes(proto_writer *w, const proto_answer *answer) {
    bx_loss share;
    proto_write_open(w, "classes", '[');
    for (int32_t k = 0; k < answer->plan->n_classes && !bx_job_cancelled(answer->result->job); k++) {
        bx_class_row row = bx_result_class(answer->result, k, &share);
        write_class(w, answer, k + answer->request->label_base, &row, share);
    }
    bx_class_row background = {.sums = bx_result_background(answer->result, &share)};
    write_class(w, answer, -1, &background, share);
    proto_write_close(w, ']');
}

static void write_levels(proto_writer *w, const proto_answer *answer) {
    const bx_priors *priors = answer->plan->priors;
    proto_write_open(w, "levels", '[');
    for (int32_t i = 0; i < priors->n_levels; i++) {
        bx_loss share;
        bx_level_row row = bx_result_level(answer->result, i, &share);
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", priors->levels[i].name);
        proto_write_int(w, "priors", priors->levels[i].count);
        proto_write_int(w, "positives", row.positives);
        write_loss_int(w, answer, "hard_negatives", row.hard_negatives);
        write_loss(w, answer, share);
        write_sums(w, answer, "sums", &row.sums);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
}

/* What was ignored or dropped has no row; the others keep their index. */
static void write_objects(proto_writer *w, const proto_answer *answer) {
    const bx_job *job = answer->result->job;
    const bx_batch *batch = job->batch;
    if (!answer->objects) {
        proto_write_null(w, "objects");
        return;
    }
    proto_write_open(w, "objects", '[');
    for (int32_t image = 0; image < answer->plan->n_images; image++)
        for (int32_t g = batch->first[image]; g < batch->first[image + 1] && !given_up(answer, g); g++) {
            const bx_object_row *row = &job->objects[g];
            if (batch->use && batch->use[g] != BX_OBJECT_USED)
                continue;
            proto_write_open(w, NULL, '{');
            proto_write_int(w, "image", image);
            proto_write_int(w, "object", g - batch->first[image]);
            proto_write_int(w, "label", batch->labels[g] + answer->request->label_base);
            proto_write_int(w, "best_prior", row->best_prior);
            proto_write_float(w, "best_iou", row->best_iou);
            proto_write_int(w, "positives", row->positives);
            proto_write_bool(w, "forced", row->forced);
            proto_write_bool(w, "collided", row->collided);
            proto_write_close(w, '}');
        }
    proto_write_close(w, ']');
}

/* An [N,P] array. */
static void write_map(proto_writer *w, const proto_answer *answer, const char *key, proto_prior_value value) {
    proto_write_open(w, key, '[');
    for (int32_t i = 0; i < answer->plan->n_images; i++) {
        proto_write_open(w, NULL, '[');
        for (int32_t p = 0; p < answer->plan->n_priors && !bx_job_cancelled(answer->result->job); p += PROTO_CHUNK) {
            int32_t cells[PROTO_CHUNK], n = proto_answer_cells(answer, value, i, p, cells);
            proto_write_ints(w, cells, (size_t)n);
        }
        proto_write_close(w, ']');
    }
    proto_write_close(w, ']');
}

static void write_row(proto_writer *w, const float *row, int32_t width) {
    proto_write_open(w, NULL, '[');
    proto_write_floats(w, row, (size_t)width);
    proto_write_close(w, ']');
}

static void write_target_loc(proto_writer *w, const proto_answer *answer) {
    proto_write_open(w, "loc", '[');
    for (int32_t i = 0; i < answer->plan->n_images; i++) {
        proto_write_open(w, NULL, '[');
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer, p); p++) {
            double target[4];
            float row[4];
            bx_result_target(answer->result, i, p, target);
            for (int c = 0; c < 4; c++)
                row[c] = (float)target[c];
            write_row(w, row, 4);
        }
        proto_write_close(w, ']');
    }
    proto_write_close(w, ']');
}

/* (n_rows,width) */
static void write_rows(proto_writer *w, const proto_answer *answer, const char *key, const float *rows, int64_t n_rows,
                       int32_t width) {
    proto_write_open(w, key, '[');
    for (int64_t row = 0; row < n_rows && !bx_job_cancelled(answer->result->job); row++) {
        write_row(w, rows + row * width, width);
    }
    proto_write_close(w, ']');
}

static void write_gradients(proto_writer *w, const proto_answer *answer) {
    const bx_job *job = answer->result->job;
    proto_write_open(w, "gradients", '{');
    proto_write_open(w, "index", '[');
    for (int64_t row = 0; row < answer->n_rows && !bx_job_cancelled(job); row++) {
        proto_write_open(w, NULL, '[');
        proto_write_ints(w, job->grad_index + 2 * row, 2);
        proto_write_close(w, ']');
    }
    proto_write_close(w, ']');
    write_rows(w, answer, "loc", job->grad_loc, answer->n_rows, 4);
    write_rows(w, answer, "conf", job->grad_conf, answer->n_rows, answer->plan->n_columns);
    proto_write_close(w, '}');
}

/* (N,P,width) */
static void write_dense(proto_writer *w, const proto_answer *answer, const char *key, const float *rows,
                        int32_t width) {
    const int32_t n_priors = answer->plan->n_priors;
    proto_write_open(w, key, '[');
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        write_rows(w, answer, NULL, rows + (size_t)i * (size_t)n_priors * (size_t)width, n_priors, width);
    proto_write_close(w, ']');
}

static void write_dense_gradients(proto_writer *w, const proto_answer *answer) {
    const bx_job *job = answer->result->job;
    proto_write_open(w, "dense_gradients", '{');
    write_dense(w, answer, "loc", job->grad_loc, 4);
    write_dense(w, answer, "conf", job->grad_conf, answer->plan->n_columns);
    proto_write_close(w, '}');
}

static void write_arrays(proto_writer *w, const proto_answer *answer) {
    if (proto_answer_wants(answer, PROTO_INCLUDE_ASSIGNMENT)) {
        proto_write_open(w, "assignment_map", '{');
        write_map(w, answer, "classes", bx_result_prior_class);
        if (answer->objects)
            write_map(w, answer, "objects", bx_result_prior_object);
        else
            proto_write_null(w, "objects");
        proto_write_close(w, '}');
    }
    if (proto_answer_wants(answer, PROTO_INCLUDE_TARGETS)) {
        proto_write_open(w, "targets", '{');
        write_map(w, answer, "classes", bx_result_prior_class);
        write_target_loc(w, answer);
        proto_write_close(w, '}');
    }
    if (answer->plan->gradients == BX_GRADIENTS_SPARSE)
        write_gradients(w, answer);
    if (answer->plan->gradients == BX_GRADIENTS_DENSE)
        write_dense_gradients(w, answer);
}

static void write_answer(proto_buffer *out, const proto_answer *answer, const proto_timing *timing,
                         const char *request_id, bool arrays) {
    proto_writer writer = {.out = out}, *w = &writer;
    const char *device = answer->request->device;
    const bx_priors *priors = answer->plan->priors;
    const bx_result *result = answer->result;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "criterion", answer->plan->criterion->name);
    if (priors->boxes)
        proto_write_string(w, "priors", priors->name);
    else
        proto_write_null(w, "priors");
    proto_write_string(w, "device", strcmp(device, "auto") == 0 ? "cpu" : device);
    proto_write_int(w, "classes_total", answer->plan->n_classes);
    proto_write_int(w, "label_base", answer->request->label_base);
    write_loss(w, answer, result->loss);
    write_sums(w, answer, "sums", &result->sums);
    write_sums(w, answer, "normalizer", result->own_normalizers ? NULL : &result->normalizer);
    write_assignment(w, answer);
    proto_write_bool(w, "no_positives", result->no_positives);
    if (proto_answer_wants(answer, PROTO_INCLUDE_IMAGES))
        write_images(w, answer);
    if (proto_answer_wants(answer, PROTO_INCLUDE_CLASSES))
        write_classes(w, answer);
    if (proto_answer_wants(answer, PROTO_INCLUDE_LEVELS))
        write_levels(w, answer);
    if (proto_answer_wants(answer, PROTO_INCLUDE_OBJECTS))
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

void proto_answer_text(proto_buffer *out, const proto_answer *answer, const proto_timing *timing,
                       const char *request_id) {
    write_answer(out, answer, timing, request_id, false);
    proto_buffer_add(out, "", 1);
}

static void write_file(proto_buffer *out, const proto_answer *answer, const proto_timing *timing,
                       const char *request_id) {
    proto_buffer text = {0};
    proto_answer_text(&text, answer, timing, request_id);
    if (text.failed)
        out->failed = true;
    else
        proto_answer_tensors(out, answer, text.data);
    proto_buffer_free(&text);
}

/* ---- the answer -------------------------------------------------------------------------------------------------- */

size_t proto_answer_text_bytes(const proto_answer *answer) {
    const bx_plan *plan = answer->plan;
    size_t text = HEAD_BYTES;
    if (proto_answer_wants(answer, PROTO_INCLUDE_IMAGES))
        text += (size_t)plan->n_images * IMAGE_BYTES;
    if (proto_answer_wants(answer, PROTO_INCLUDE_CLASSES))
        text += ((size_t)plan->n_classes + 1) * CLASS_BYTES;
    if (proto_answer_wants(answer, PROTO_INCLUDE_LEVELS))
        text += (size_t)plan->priors->n_levels * LEVEL_BYTES;
    if (proto_answer_wants(answer, PROTO_INCLUDE_OBJECTS))
        text += (size_t)plan->n_objects * OBJECT_BYTES;
    return text;
}

size_t proto_answer_bytes(const proto_request *request, const bx_plan *plan, int64_t n_rows, proto_encoding accept) {
    const proto_answer answer = proto_answer_of(request, plan, NULL, n_rows);
    const size_t images = (size_t)plan->n_images, cells = images * (size_t)plan->n_priors;
    if (accept == PROTO_INFER)
        return proto_infer_answer_bytes(&answer);
    size_t text = proto_answer_text_bytes(&answer);
    if (accept == PROTO_SAFETENSORS) /* inside a string every quote gets its backslash */
        return 2048 + 2 * text + proto_answer_tensor_bytes(&answer);
    if (proto_answer_wants(&answer, PROTO_INCLUDE_ASSIGNMENT))
        text += cells * (CLASS_CELL_BYTES + OBJECT_CELL_BYTES) + images * 8;
    if (proto_answer_wants(&answer, PROTO_INCLUDE_TARGETS))
        text += cells * (CLASS_CELL_BYTES + LOC_ROW_BYTES) + images * 8;
    if (plan->gradients != BX_GRADIENTS_NONE)
        text +=
            (size_t)n_rows * (INDEX_ROW_BYTES + LOC_ROW_BYTES + (size_t)plan->n_columns * FLOAT_BYTES + 3) + images * 8;
    return text;
}

bx_status proto_answer_encode(proto_buffer *out, proto_encoding accept, const proto_request *request,
                              const bx_result *result, const proto_timing *timing, const char *request_id,
                              size_t max_bytes, bx_error *error) {
    const bx_plan *plan = result->job->plan;
    const proto_answer answer = proto_answer_of(request, plan, result, bx_job_gradient_rows(result->job));
    const size_t bytes = proto_answer_bytes(request, plan, answer.n_rows, accept), start = out->bytes;
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
