/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tensors of an answer: what exists, its order in the file, its data.
 */
#include "internal.h"

static bool given_up(const proto_answer *answer) {
    return bx_job_cancelled(answer->result->job);
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

/* Numbers of one dtype go to a sink in pieces, as bytes or as elements of the JSON array that is open. */
static void put(proto_sink *sink, bx_dtype dtype, const void *data, size_t n) {
    if (!sink->writer)
        proto_buffer_add(sink->out, data, n * bx_dtype_bytes(dtype));
    else if (dtype == BX_F32)
        proto_write_floats(sink->writer, data, n);
    else if (dtype == BX_I32)
        proto_write_ints(sink->writer, data, n);
    else
        for (size_t i = 0; i < n; i++)
            proto_write_real(sink->writer, NULL, ((const double *)data)[i]);
}

static void emit_total(proto_sink *sink, const proto_answer *answer) {
    put(sink, BX_F64, &answer->result->loss.total, 1);
}

static void emit_loc(proto_sink *sink, const proto_answer *answer) {
    put(sink, BX_F64, &answer->result->loss.loc, 1);
}

static void emit_conf(proto_sink *sink, const proto_answer *answer) {
    put(sink, BX_F64, &answer->result->loss.conf, 1);
}

static void emit_positives(proto_sink *sink, const proto_answer *answer) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        put(sink, BX_I32, &answer->result->job->images[i].positives, 1);
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

static void emit_map(proto_sink *sink, const proto_answer *answer, proto_prior_value value) {
    for (int32_t i = 0; i < answer->plan->n_images; i++)
        for (int32_t p = 0; p < answer->plan->n_priors && !given_up(answer); p += PROTO_CHUNK) {
            int32_t cells[PROTO_CHUNK], n = proto_answer_cells(answer, value, i, p, cells);
            put(sink, BX_I32, cells, (size_t)n);
        }
}

static void emit_target_classes(proto_sink *sink, const proto_answer *answer) {
    emit_map(sink, answer, bx_result_prior_class);
}

static void emit_target_objects(proto_sink *sink, const proto_answer *answer) {
    emit_map(sink, answer, bx_result_prior_object);
}

static void emit_target_loc(proto_sink *sink, const proto_answer *answer) {
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
            put(sink, BX_F32, cells, (size_t)n * 4);
        }
}

/* (n_rows,width), which can be most of an answer. */
static void emit_rows(proto_sink *sink, const proto_answer *answer, bx_dtype dtype, const void *rows, int32_t width) {
    const size_t row = (size_t)width * bx_dtype_bytes(dtype);
    for (int64_t i = 0; i < answer->n_rows && !given_up(answer); i += PROTO_CHUNK) {
        const int64_t left = answer->n_rows - i, n = left < PROTO_CHUNK ? left : PROTO_CHUNK;
        put(sink, dtype, (const char *)rows + (size_t)i * row, (size_t)n * (size_t)width);
    }
}

static void emit_grad_index(proto_sink *sink, const proto_answer *answer) {
    emit_rows(sink, answer, BX_I32, answer->result->job->grad_index, 2);
}

static void emit_grad_loc(proto_sink *sink, const proto_answer *answer) {
    emit_rows(sink, answer, BX_F32, answer->result->job->grad_loc, 4);
}

static void emit_grad_conf(proto_sink *sink, const proto_answer *answer) {
    emit_rows(sink, answer, BX_F32, answer->result->job->grad_conf, answer->plan->n_columns);
}

/* ---- which ------------------------------------------------------------------------------------------------------- */

#define WORD(id)  PROTO_INCLUDE_##id
#define GRADIENTS (WORD(GRADIENTS) | WORD(DENSE_GRADIENTS))
#define MAPS      (WORD(ASSIGNMENT) | WORD(TARGETS))

/* In the order the usual writers give: widest dtype first, then by name. */
static const proto_output outputs[PROTO_N_OUTPUTS] = {
    {"conf_loss", BX_F64, "1", NULL, 0, PROTO_OUTPUT_OF_LOSS, emit_conf},
    {"loc_loss", BX_F64, "1", NULL, 0, PROTO_OUTPUT_OF_LOSS, emit_loc},
    {"loss", BX_F64, "1", NULL, 0, PROTO_OUTPUT_OF_LOSS, emit_total},
    {"grad_conf", BX_F32, "MC", "NPC", GRADIENTS, PROTO_OUTPUT_OF_ALL, emit_grad_conf},
    {"grad_loc", BX_F32, "M4", "NP4", GRADIENTS, PROTO_OUTPUT_OF_ALL, emit_grad_loc},
    {"target_loc", BX_F32, "NP4", NULL, WORD(TARGETS), PROTO_OUTPUT_OF_ALL, emit_target_loc},
    {"grad_index", BX_I32, "M2", NULL, GRADIENTS, PROTO_OUTPUT_OF_ALL, emit_grad_index},
    {"positives", BX_I32, "N", NULL, 0, PROTO_OUTPUT_OF_ALL, emit_positives},
    {"target_classes", BX_I32, "NP", NULL, MAPS, PROTO_OUTPUT_OF_ALL, emit_target_classes},
    {"target_objects", BX_I32, "NP", NULL, MAPS, PROTO_OUTPUT_OF_OBJECTS, emit_target_objects},
};

const proto_output *proto_output_at(size_t i) {
    return i < PROTO_N_OUTPUTS ? &outputs[i] : NULL;
}

/* Its shape in this answer; NULL: the answer does not have it. */
static const char *shape_of(const proto_output *output, const proto_answer *answer) {
    if ((output->of == PROTO_OUTPUT_OF_LOSS && !answer->loss) ||
        (output->of == PROTO_OUTPUT_OF_OBJECTS && !answer->objects))
        return NULL;
    if (output->include != GRADIENTS)
        return output->include == 0 || proto_answer_wants(answer, output->include) ? output->shape : NULL;
    switch (answer->plan->gradients) {
    case BX_GRADIENTS_SPARSE:
        return output->shape;
    case BX_GRADIENTS_DENSE:
        return answer->n_rows > 0 ? output->dense : NULL;
    default:
        return NULL;
    }
}

static int64_t dimension(const proto_answer *answer, char letter) {
    switch (letter) {
    case 'N':
        return answer->plan->n_images;
    case 'P':
        return answer->plan->n_priors;
    case 'C':
        return answer->plan->n_columns;
    case 'M':
        return answer->n_rows;
    default:
        return letter - '0';
    }
}

int proto_answer_slots(const proto_answer *answer, proto_slot slots[PROTO_N_OUTPUTS], int ids[PROTO_N_OUTPUTS]) {
    const unsigned wanted = answer->request->infer.outputs;
    const int n_wanted = wanted ? __builtin_popcount(wanted) : PROTO_N_OUTPUTS;
    int n = 0;
    for (int k = 0; k < n_wanted; k++) {
        const int i = wanted ? answer->request->infer.order[k] : k;
        const char *shape = shape_of(&outputs[i], answer);
        if (!shape)
            continue;
        proto_slot slot = {.name = outputs[i].name, .dtype = outputs[i].dtype};
        for (; *shape; shape++)
            slot.shape[slot.rank++] = dimension(answer, *shape);
        slots[n] = slot;
        ids[n++] = i;
    }
    return n;
}

size_t proto_answer_tensor_bytes(const proto_answer *answer) {
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS], n_slots = proto_answer_slots(answer, slots, ids);
    size_t bytes = 0;
    for (int i = 0; i < n_slots; i++)
        bytes += proto_slot_bytes(&slots[i]);
    return bytes;
}

void proto_answer_tensors(proto_buffer *out, const proto_answer *answer, const char *text) {
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS], n_slots = proto_answer_slots(answer, slots, ids);
    proto_sink sink = {.out = out};
    proto_container_write_header(out, slots, n_slots, "result", text);
    for (int i = 0; i < n_slots && !given_up(answer); i++)
        outputs[ids[i]].emit(&sink, answer);
}
