/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the Open Inference Protocol tells of a server and of its models, which are criteria: metadata, configuration,
 * statistics. All models take and give the same tensors.
 */
#include "internal.h"

#include <string.h>

/* Those of Triton's extensions that there are. */
static const char *const extensions[] = {"binary_tensor_data", "model_configuration", "model_repository",
                                         "parameters",         "statistics",          "system_shared_memory"};

void proto_server_describe(proto_buffer *out, const char *version, bool shared_memory) {
    const size_t n = sizeof extensions / sizeof extensions[0];
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", "lossd");
    proto_write_string(w, "version", version);
    proto_write_open(w, "extensions", '[');
    for (size_t i = 0; i < (shared_memory ? n : n - 1); i++)
        proto_write_string(w, NULL, extensions[i]);
    proto_write_close(w, ']');
    proto_write_close(w, '}');
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* How the two documents differ where they list tensors. */
struct form {
    const char *inputs, *outputs, *type, *prefix, *shape;
    bool optional; /* inputs that may be left out are marked */
};

static void write_tensor(proto_writer *w, const struct form *form, const proto_slot *slot, bool optional) {
    char type[16] = "";
    strcat(strcat(type, form->prefix), proto_datatype_name(slot->dtype));
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", slot->name);
    proto_write_string(w, form->type, type);
    proto_write_open(w, form->shape, '[');
    for (int i = 0; i < slot->rank; i++)
        proto_write_int(w, NULL, slot->shape[i]);
    proto_write_close(w, ']');
    if (optional)
        proto_write_bool(w, "optional", true);
    proto_write_close(w, '}');
}

static void write_inputs(proto_writer *w, const struct form *form) {
    proto_slot slot;
    bool optional;
    proto_write_open(w, form->inputs, '[');
    for (size_t i = 0; proto_input_at(i, &slot, &optional); i++)
        write_tensor(w, form, &slot, optional && form->optional);
    proto_write_close(w, ']');
}

static void write_outputs(proto_writer *w, const struct form *form) {
    const proto_output *output;
    proto_write_open(w, form->outputs, '[');
    for (size_t i = 0; (output = proto_output_at(i)); i++) {
        proto_slot slot = {.name = output->name, .dtype = output->dtype};
        for (const char *letter = output->shape; *letter; letter++)
            slot.shape[slot.rank++] = *letter >= '0' && *letter <= '9' ? *letter - '0' : -1;
        write_tensor(w, form, &slot, false);
    }
    proto_write_close(w, ']');
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

void proto_model_describe(proto_buffer *out, const char *name) {
    static const struct form form = {"inputs", "outputs", "datatype", "", "shape", false};
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", name);
    proto_write_open(w, "versions", '[');
    proto_write_string(w, NULL, PROTO_MODEL_VERSION);
    proto_write_close(w, ']');
    proto_write_string(w, "platform", "lossd");
    write_inputs(w, &form);
    write_outputs(w, &form);
    proto_write_close(w, '}');
}

void proto_model_configure(proto_buffer *out, const char *name, int64_t max_request_bytes) {
    static const struct form form = {"input", "output", "data_type", "TYPE_", "dims", true};
    char digits[PROTO_NUMBER_ROOM];
    digits[proto_number_write_int(digits, max_request_bytes)] = '\0';
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", name);
    proto_write_string(w, "platform", "lossd");
    proto_write_string(w, "backend", "lossd");
    proto_write_open(w, "version_policy", '{');
    proto_write_open(w, "latest", '{');
    proto_write_int(w, "num_versions", 1);
    proto_write_close(w, '}');
    proto_write_close(w, '}');
    proto_write_int(w, "max_batch_size", 0);
    write_inputs(w, &form);
    write_outputs(w, &form);
    proto_write_open(w, "parameters", '{');
    proto_write_open(w, "max_request_bytes", '{');
    proto_write_string(w, "string_value", digits);
    proto_write_close(w, '}');
    proto_write_close(w, '}');
    proto_write_close(w, '}');
}

static void write_duration(proto_writer *w, const char *key, int64_t count, int64_t ns) {
    proto_write_open(w, key, '{');
    proto_write_int(w, "count", count);
    proto_write_int(w, "ns", ns);
    proto_write_close(w, '}');
}

/* Where the time of what succeeded went. */
static void write_compute(proto_writer *w, const proto_model_statistics *s) {
    write_duration(w, "compute_input", s->successes, s->input_ns);
    write_duration(w, "compute_infer", s->successes, s->infer_ns);
    write_duration(w, "compute_output", s->successes, s->output_ns);
}

void proto_model_statistics_row(proto_writer *w, const char *name, const proto_model_statistics *s) {
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", name);
    proto_write_string(w, "version", PROTO_MODEL_VERSION);
    proto_write_int(w, "last_inference", s->last_ms);
    proto_write_int(w, "inference_count", s->successes);
    proto_write_int(w, "execution_count", s->successes);
    proto_write_open(w, "inference_stats", '{');
    write_duration(w, "success", s->successes, s->queue_ns + s->input_ns + s->infer_ns + s->output_ns);
    write_duration(w, "fail", s->failures, s->fail_ns);
    write_duration(w, "queue", s->successes, s->queue_ns);
    write_compute(w, s);
    write_duration(w, "cache_hit", 0, 0);
    write_duration(w, "cache_miss", 0, 0);
    proto_write_close(w, '}');
    proto_write_open(w, "response_stats", '{');
    proto_write_close(w, '}');
    proto_write_open(w, "batch_stats", '[');
    if (s->successes > 0) {
        proto_write_open(w, NULL, '{');
        proto_write_int(w, "batch_size", 1);
        write_compute(w, s);
        proto_write_close(w, '}');
    }
    proto_write_close(w, ']');
    proto_write_open(w, "memory_usage", '[');
    proto_write_close(w, ']');
    proto_write_close(w, '}');
}
