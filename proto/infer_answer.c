/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of the Open Inference Protocol: a JSON object that names tensors, whose numbers stand in it or follow it as
 * bytes; and its errors.
 */
#include "internal.h"

#include <string.h>

/* Upper bounds, in bytes of JSON text. */
#define HEAD_BYTES   512 /* what is there once */
#define OUTPUT_BYTES 320 /* what an output has besides its numbers */
#define ESCAPED      6   /* of one byte in a string */

/* What of the answer's text has no tensor. */
#define WORDS (PROTO_INCLUDE_IMAGES | PROTO_INCLUDE_CLASSES | PROTO_INCLUDE_LEVELS | PROTO_INCLUDE_OBJECTS)

static bool is_shared(const proto_answer *answer, int id) {
    return answer->request->infer.shared >> id & 1;
}

/* Sent as bytes. */
static bool is_binary(const proto_answer *answer, int id) {
    return answer->request->infer.binary >> id & 1;
}

/* A number as text, and its comma. */
static size_t number_bytes(bx_dtype dtype) {
    return dtype == BX_F64 ? 25 : dtype == BX_F32 ? 16 : 12;
}

size_t proto_infer_answer_bytes(const proto_answer *answer) {
    const char *id = answer->request->infer.id;
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS], n_slots = proto_answer_slots(answer, slots, ids);
    size_t bytes = HEAD_BYTES + (id ? ESCAPED * strlen(id) : 0) + ESCAPED * strlen(answer->plan->criterion->name);
    if (proto_answer_wants(answer, WORDS)) /* a string, in which every quote gets its backslash */
        bytes += 2 * proto_answer_text_bytes(answer);
    for (int i = 0; i < n_slots; i++) {
        const size_t size = proto_slot_bytes(&slots[i]);
        bytes += OUTPUT_BYTES;
        bytes += is_binary(answer, ids[i]) || is_shared(answer, ids[i])
                     ? size
                     : size / bx_dtype_bytes(slots[i].dtype) * number_bytes(slots[i].dtype);
    }
    return bytes;
}

static void write_output(proto_writer *w, const proto_answer *answer, const proto_slot *slot, int id) {
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", slot->name);
    proto_write_string(w, "datatype", proto_datatype_name(slot->dtype));
    proto_write_open(w, "shape", '[');
    for (int i = 0; i < slot->rank; i++)
        proto_write_int(w, NULL, slot->shape[i]);
    proto_write_close(w, ']');
    if (is_shared(answer, id)) {
        const proto_shared *place = &answer->request->infer.places[id];
        proto_write_open(w, "parameters", '{');
        proto_write_string(w, "shared_memory_region", place->region);
        proto_write_int(w, "shared_memory_offset", (int64_t)place->offset);
        proto_write_int(w, "shared_memory_byte_size", (int64_t)proto_slot_bytes(slot));
        proto_write_close(w, '}');
    } else if (is_binary(answer, id)) {
        proto_write_open(w, "parameters", '{');
        proto_write_int(w, "binary_data_size", (int64_t)proto_slot_bytes(slot));
        proto_write_close(w, '}');
    } else {
        proto_sink sink = {.out = w->out, .writer = w};
        proto_write_open(w, "data", '[');
        proto_output_at((size_t)id)->emit(&sink, answer);
        proto_write_close(w, ']');
    }
    proto_write_close(w, '}');
}

/* The JSON, then the bytes that are sent, then those that are not. */
static void write_answer(proto_buffer *out, proto_infer_layout *layout, const proto_answer *answer, const char *text) {
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS], n_slots = proto_answer_slots(answer, slots, ids);
    proto_writer writer = {.out = out}, *w = &writer;
    proto_sink sink = {.out = out};
    const size_t start = out->bytes;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "model_name", answer->plan->criterion->name);
    proto_write_string(w, "model_version", PROTO_MODEL_VERSION);
    if (answer->request->infer.id)
        proto_write_string(w, "id", answer->request->infer.id);
    if (text) {
        proto_write_open(w, "parameters", '{');
        proto_write_string(w, "result", text);
        proto_write_close(w, '}');
    }
    proto_write_open(w, "outputs", '[');
    for (int i = 0; i < n_slots; i++)
        write_output(w, answer, &slots[i], ids[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');
    const size_t end = out->bytes;
    for (int i = 0; i < n_slots; i++)
        if (is_binary(answer, ids[i]))
            proto_output_at((size_t)ids[i])->emit(&sink, answer);
    *layout = (proto_infer_layout){.json_bytes = out->bytes > end ? end - start : 0, .sent_bytes = out->bytes - start};
    for (int i = 0; i < n_slots; i++)
        if (is_shared(answer, ids[i])) {
            const size_t at = out->bytes;
            proto_output_at((size_t)ids[i])->emit(&sink, answer);
            layout->shared[layout->n_shared].at = at;
            layout->shared[layout->n_shared].place = answer->request->infer.places[ids[i]];
            layout->shared[layout->n_shared++].place.bytes = out->bytes - at;
        }
}

/* Shared memory must have room for what goes there. */
static bx_status check_places(const proto_answer *answer, bx_error *error) {
    proto_slot slots[PROTO_N_OUTPUTS];
    int ids[PROTO_N_OUTPUTS], n_slots = proto_answer_slots(answer, slots, ids);
    for (int i = 0; i < n_slots; i++) {
        const size_t size = proto_slot_bytes(&slots[i]), room = answer->request->infer.places[ids[i]].bytes;
        if (is_shared(answer, ids[i]) && size > room) {
            bx_fail(error, BX_INVALID, "shared_memory",
                    "the output %s has %zu bytes, its shared_memory_byte_size is %zu", slots[i].name, size, room);
            return bx_at(error, "%s", slots[i].name);
        }
    }
    return BX_OK;
}

bx_status proto_infer_encode(proto_buffer *out, proto_infer_layout *layout, const proto_request *request,
                             const bx_result *result, const proto_timing *timing, const char *request_id,
                             size_t max_bytes, bx_error *error) {
    const proto_answer answer = proto_answer_of(request, result->job->plan, result, bx_job_gradient_rows(result->job));
    const size_t bytes = proto_infer_answer_bytes(&answer), start = out->bytes;
    proto_buffer text = {0};
    bx_status status = check_places(&answer, error);
    if (status)
        return status;
    if (bytes > max_bytes)
        return bx_fail(error, BX_TOO_LARGE, "answer_too_large",
                       "the answer may need %zu bytes, %zu are allowed; ask for less", bytes, max_bytes);
    if (proto_answer_wants(&answer, WORDS))
        proto_answer_text(&text, &answer, timing, request_id);
    out->failed |= text.failed;
    if (!out->failed && proto_buffer_reserve(out, bytes))
        write_answer(out, layout, &answer, text.data);
    proto_buffer_free(&text);
    if (!out->failed)
        return BX_OK;
    out->bytes = start;
    return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the answer");
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

void proto_infer_error(proto_buffer *out, const char *pointer, const char *detail) {
    proto_buffer text = {0};
    proto_writer w = {.out = out};
    if (*pointer) {
        proto_buffer_add(&text, pointer, strlen(pointer));
        proto_buffer_add(&text, ": ", 2);
    }
    proto_buffer_add(&text, detail, strlen(detail) + 1);
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "error", text.failed ? detail : text.data);
    proto_write_close(&w, '}');
    proto_buffer_free(&text);
}

/* A problem document is ours, so it can be read unless there is no memory. */
void proto_infer_problem(proto_buffer *problem) {
    proto_buffer out = {0};
    proto_node *root;
    out.failed = problem->failed || proto_json_parse(&root, problem->data, problem->bytes, SIZE_MAX, NULL) != BX_OK;
    if (!out.failed) {
        const proto_node *pointer = proto_json_get(root, "pointer");
        proto_infer_error(&out, pointer ? proto_json_string(pointer) : "",
                          proto_json_string(proto_json_get(root, "detail")));
        proto_json_free(root);
    }
    proto_buffer_free(problem);
    *problem = out;
}
