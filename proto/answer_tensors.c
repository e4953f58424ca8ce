/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tensors of an answer: what exists, its order in the file, its data.
 */
#include "internal.h"

#define MAX_SLOTS 10

static bool given_up(const proto_answer *answer) {
    return bx_job_cancelled(answer->result->job);
}

/* The data of one tensor. */
typedef void (*emit)(proto_buffer *out, const proto_answer *answer);

static void emit_total(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, &answer->result->loss.total, sizeof(double));
}

static void emit_loc(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, &answer->result->loss.loc, sizeof(double));
}

static void emit_conf(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, &answer->result->loss.conf, sizeof(double));
}

static void emit_positives(proto_buffer *out, const proto_answer *answer) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        proto_buffer_add(out, &answer->result->job->images[i].positives, sizeof(int32_t));
}

/* As many priors from `first` on as are written at a time. */
static int32_t chunk(const proto_answer *answer, int32_t first) {
    int32_t left = answer->plan->n_priors - first;
    return left < PROTO_CHUNK ? left : PROTO_CHUNK;
}

int32_t proto_answer_cells(const proto_answer *answer, proto_prior_value value, int32_t image, int32_t first,
                           int32_t cells[PROTO_CHUNK]) {
    const int32_t n = chunk(answer, first);
    for (int32_t k = 0; k < n; k++)
        cells[k] = value(answer->result, image, first + k);
    return n;
}

static void emit_map(proto_buffer *out, const proto_answer *answer, proto_prior_value value) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer); p += PROTO_CHUNK) {
            int32_t cells[PROTO_CHUNK], n = proto_answer_cells(answer, value, i, p, cells);
            proto_buffer_add(out, cells, (size_t)n * sizeof *cells);
        }
}

static void emit_target_classes(proto_buffer *out, const proto_answer *answer) {
    emit_map(out, answer, bx_result_prior_class);
}

static void emit_target_objects(proto_buffer *out, const proto_answer *answer) {
    emit_map(out, answer, bx_result_prior_object);
}

static void emit_target_loc(proto_buffer *out, const proto_answer *answer) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer); p += PROTO_CHUNK) {
            float cells[PROTO_CHUNK][4];
            int32_t n = chunk(answer, p);
            for (int32_t k = 0; k < n; k++) {
                double target[4];
                bx_result_target(answer->result, i, p + k, target);
                for (int c = 0; c < 4; c++)
                    cells[k][c] = (float)target[c];
            }
            proto_buffer_add(out, cells, (size_t)n * sizeof *cells);
        }
}

static void emit_grad_index(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, answer->result->job->grad_index, (size_t)answer->n_rows * 2 * sizeof(int32_t));
}

static void emit_grad_loc(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, answer->result->job->grad_loc, (size_t)answer->n_rows * 4 * sizeof(float));
}

static void emit_grad_conf(proto_buffer *out, const proto_answer *answer) {
    proto_buffer_add(out, answer->result->job->grad_conf,
                     (size_t)answer->n_rows * (size_t)answer->plan->n_columns * sizeof(float));
}

/* The tensors of an answer, in the order the usual writers give: widest dtype first, then by name. */
static int list_slots(const proto_answer *answer, proto_slot slots[MAX_SLOTS], emit emits[MAX_SLOTS]) {
    const int64_t n = answer->plan->n_images, p = answer->plan->n_priors, c = answer->plan->n_columns,
                  m = answer->n_rows;
    const bool sparse = answer->plan->gradients == BX_GRADIENTS_SPARSE,
               dense = answer->plan->gradients == BX_GRADIENTS_DENSE && m > 0,
               targets = proto_answer_wants(answer, PROTO_INCLUDE_TARGETS),
               maps = targets || proto_answer_wants(answer, PROTO_INCLUDE_ASSIGNMENT);
    const struct {
        bool present;
        emit data;
        proto_slot slot;
    } all[] = {
        {answer->loss, emit_conf, {"conf_loss", BX_F64, 1, {1}}},
        {answer->loss, emit_loc, {"loc_loss", BX_F64, 1, {1}}},
        {answer->loss, emit_total, {"loss", BX_F64, 1, {1}}},
        {sparse, emit_grad_conf, {"grad_conf", BX_F32, 2, {m, c}}},
        {dense, emit_grad_conf, {"grad_conf", BX_F32, 3, {n, p, c}}},
        {sparse, emit_grad_loc, {"grad_loc", BX_F32, 2, {m, 4}}},
        {dense, emit_grad_loc, {"grad_loc", BX_F32, 3, {n, p, 4}}},
        {targets, emit_target_loc, {"target_loc", BX_F32, 3, {n, p, 4}}},
        {sparse, emit_grad_index, {"grad_index", BX_I32, 2, {m, 2}}},
        {true, emit_positives, {"positives", BX_I32, 1, {n}}},
        {maps, emit_target_classes, {"target_classes", BX_I32, 2, {n, p}}},
        {maps && answer->objects, emit_target_objects, {"target_objects", BX_I32, 2, {n, p}}},
    };
    int n_slots = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].present) {
            slots[n_slots] = all[i].slot;
            emits[n_slots++] = all[i].data;
        }
    return n_slots;
}

size_t proto_answer_tensor_bytes(const proto_answer *answer) {
    proto_slot slots[MAX_SLOTS];
    emit emits[MAX_SLOTS];
    int n_slots = list_slots(answer, slots, emits);
    size_t bytes = 0;
    for (int i = 0; i < n_slots; i++)
        bytes += proto_slot_bytes(&slots[i]);
    return bytes;
}

void proto_answer_tensors(proto_buffer *out, const proto_answer *answer, const char *text) {
    proto_slot slots[MAX_SLOTS];
    emit emits[MAX_SLOTS];
    int n_slots = list_slots(answer, slots, emits);
    proto_container_write_header(out, slots, n_slots, "result", text);
    for (int i = 0; i < n_slots && !given_up(answer); i++)
        emits[i](out, answer);
}
