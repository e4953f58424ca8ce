/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An inference of the Open Inference Protocol to a draft: a JSON object that names tensors, whose numbers stand in it
 * or follow it as bytes (the binary tensor data extension). They become the table of tensors that a safetensors body
 * becomes, so what a request may hold is decided in one place (decode_tensors.c). Datatypes, parameters of tensors and
 * shared memory: infer_tensor.c.
 *
 * What the protocol does not allow is BX_MALFORMED; what a request of this service cannot mean is refused as in every
 * other body.
 */
#include "infer.h"

#include <stdio.h>
#include <string.h>

#define PREFIX_MEMORY ((size_t)8 << 20) /* of heap, for the tree of a short JSON */

/* ---- members ----------------------------------------------------------------------------------------------------- */

static const char *request_member_at(size_t i) {
    /* some clients repeat what the path says */
    static const char *const names[] = {"inputs", "outputs", "parameters", "id", "model_name", "model_version", NULL};
    return names[i];
}

static const char *input_member_at(size_t i) {
    static const char *const names[] = {"name", "shape", "datatype", "data", "parameters", NULL};
    return names[i];
}

static const char *output_member_at(size_t i) {
    static const char *const names[] = {"name", "parameters", NULL};
    return names[i];
}

static const char *output_name_at(size_t i) {
    const proto_output *output = proto_output_at(i);
    return output ? output->name : NULL;
}

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

/* The bytes behind the JSON that no input has taken yet. */
struct rest {
    const char *at;
    size_t bytes;
};

/* Of an input that is being read. */
struct input {
    const proto_node *node;
    const char *path;
    const proto_datatype *datatype; /* NULL: none of ours */
    proto_tensor *tensor;
};

static bx_status read_shape(const struct input *in, const proto_node *shape, bx_error *error) {
    proto_tensor *tensor = in->tensor;
    if (proto_json_size(shape) > PROTO_MAX_RANK) {
        bx_fail(error, BX_MALFORMED, "infer_request", "%zu dimensions; at most %d are possible", proto_json_size(shape),
                PROTO_MAX_RANK);
        return bx_at(error, "%s.shape", in->path);
    }
    tensor->rank = (int)proto_json_size(shape);
    for (int i = 0; i < tensor->rank; i++) {
        const proto_node *dim = proto_json_at(shape, (size_t)i);
        char at[80];
        snprintf(at, sizeof at, "%s.shape[%d]", in->path, i);
        if (proto_json_kind(dim) != PROTO_INTEGER)
            return proto_infer_refuse(error, at, "an integer", dim);
        tensor->shape[i] = proto_json_int(dim);
        if (tensor->shape[i] < 0) {
            bx_fail(error, BX_MALFORMED, "infer_request", "a dimension of %lld; none is negative",
                    (long long)tensor->shape[i]);
            return bx_at(error, "%s", at);
        }
    }
    return BX_OK;
}

/* Elements of the shape times so many bytes. */
static bx_status measure(size_t *size, const struct input *in, size_t element, bx_error *error) {
    *size = element;
    for (int i = 0; i < in->tensor->rank; i++)
        if (__builtin_mul_overflow(*size, (size_t)in->tensor->shape[i], size) || *size > SIZE_MAX / 2) {
            bx_fail(error, BX_MALFORMED, "bin_shape_overflow", "the shape overflows 64 bits");
            return bx_at(error, "%s.shape", in->path);
        }
    return BX_OK;
}

/* So many bytes, of which `what` speaks, are what the shape says. */
static bx_status check_bytes(const struct input *in, const char *what, size_t bytes, bx_error *error) {
    size_t size = 0;
    bx_status status = measure(&size, in, in->datatype ? bx_dtype_bytes(in->datatype->dtype) : 1, error);
    if (!status && in->datatype && size != bytes) {
        bx_fail(error, BX_MALFORMED, "bin_size", "shape and datatype make %zu bytes, %s is %zu", size, what, bytes);
        return bx_at(error, "%s", in->path);
    }
    return status;
}

/* Bytes behind the JSON: the next so many. */
static bx_status take_bytes(const struct input *in, const proto_node *given, struct rest *rest, bx_error *error) {
    const int64_t bytes = proto_json_int(given);
    if (bytes < 0)
        bx_fail(error, BX_MALFORMED, "bin_size", "binary_data_size is %lld", (long long)bytes);
    else if ((uint64_t)bytes > rest->bytes)
        bx_fail(error, BX_MALFORMED, "bin_size",
                "binary_data_size is %lld, but only %zu bytes are left behind the JSON; its length is what "
                "Inference-Header-Content-Length says",
                (long long)bytes, rest->bytes);
    if (error->status)
        return bx_at(error, "%s", in->path);
    bx_status status = check_bytes(in, "binary_data_size", (size_t)bytes, error);
    if (status)
        return status;
    in->tensor->view = (bx_tensor){in->tensor->dtype, rest->at};
    rest->at += bytes;
    rest->bytes -= (size_t)bytes;
    return BX_OK;
}

/* Bytes that are somewhere else. */
static bx_status take_shared(const struct input *in, const proto_shared *place, const void *data, bx_error *error) {
    in->tensor->view = (bx_tensor){in->tensor->dtype, data};
    in->tensor->shared_bytes = place->bytes;
    return check_bytes(in, "shared_memory_byte_size", place->bytes, error);
}

/* Whole numbers are checked against the range of their datatype. */
static bx_status check_range(const struct input *in, const proto_dense *dense, bx_error *error) {
    const int64_t *values = dense->data;
    const size_t n = proto_dense_count(dense);
    for (size_t i = 0; in->datatype->stored == BX_I64 && i < n; i++)
        if (values[i] < in->datatype->least || values[i] > in->datatype->most) {
            bx_fail(error, BX_INVALID, "type_mismatch", "%lld is no %s", (long long)values[i], in->datatype->name);
            return bx_at(error, "%s.data[%zu]", in->path, i);
        }
    return BX_OK;
}

/* Numbers in the JSON, nested as the shape says or flat. */
static bx_status take_numbers(const struct input *in, const proto_document *document, const proto_node *data,
                              bx_error *error) {
    char at[80];
    proto_dense dense = {.path = at};
    size_t size = 0;
    snprintf(at, sizeof at, "%s.data", in->path);
    if (!in->datatype)
        return BX_OK; /* to be refused by whoever knows what it should be */
    if (in->datatype->stored == BX_N_DTYPES) {
        bx_fail(error, BX_INVALID, "dtype", "%s is not taken from JSON: send it as binary data, or the numbers as FP32",
                in->datatype->name);
        return bx_at(error, "%s", in->path);
    }
    bx_status status = proto_json_kind(data) == PROTO_ARRAY ? measure(&size, in, 1, error)
                                                            : proto_infer_refuse(error, at, "an array", data);
    if (!status)
        status = proto_dense_read(&dense, document, data, error);
    if (status)
        return status;
    if (dense.dtype != in->datatype->stored)
        return bx_fail(error, BX_INTERNAL, "internal", "numbers of another type than their datatype's");
    bool fits = proto_dense_count(&dense) == size;
    for (int i = 0; dense.axes > 1 && i < dense.axes; i++)
        fits &= dense.axes == in->tensor->rank && dense.shape[i] == in->tensor->shape[i];
    if (!fits) {
        bx_fail(error, BX_SHAPE, "shape", "the data of \"%.64s\" are %zu numbers%s, its shape says %zu",
                in->tensor->name, proto_dense_count(&dense), dense.axes > 1 ? " in nested arrays" : "", size);
        return bx_at(error, "%s", at);
    }
    in->tensor->view = (bx_tensor){in->datatype->stored, dense.data};
    return check_range(in, &dense, error);
}

static bx_status take_data(const struct input *in, const proto_draft *draft, struct rest *rest, bx_error *error) {
    proto_parameter own = {"binary_data_size", PROTO_INTEGER, "an integer", NULL};
    const proto_node *data = proto_json_get(in->node, "data");
    const void *shared = NULL;
    proto_shared place = {.bytes = 0};
    bx_status status = proto_infer_parameters(&own, &place, &shared, in->node, in->path, draft->limits, error);
    if (status)
        return status;
    const proto_node *size = own.value;
    if (!!data + !!size + (place.bytes > 0) != 1) {
        bx_fail(error, BX_MALFORMED, "infer_request",
                data || size ? "of data and binary_data_size and shared memory there may be only one"
                             : "there is neither data nor binary_data_size nor shared memory");
        return bx_at(error, "%s", in->path);
    }
    return data   ? take_numbers(in, &draft->document, data, error)
           : size ? take_bytes(in, size, rest, error)
                  : take_shared(in, &place, shared, error);
}

static bx_status read_input(proto_draft *draft, const proto_node *node, size_t i, struct rest *rest, bx_error *error) {
    proto_container *container = &draft->container;
    proto_tensor *tensor = &container->tensors[container->n_tensors];
    const proto_node *name, *shape, *datatype;
    char path[32];
    snprintf(path, sizeof path, "inputs[%zu]", i);
    if (proto_json_kind(node) != PROTO_OBJECT)
        return proto_infer_refuse(error, path, "an object", node);
    bx_status status = proto_infer_members(node, path, input_member_at, error);
    if (!status)
        status = proto_infer_need(&name, node, path, "name", PROTO_STRING, "a string", error);
    if (!status)
        status = proto_infer_need(&datatype, node, path, "datatype", PROTO_STRING, "a string", error);
    if (!status)
        status = proto_infer_need(&shape, node, path, "shape", PROTO_ARRAY, "an array", error);
    if (status)
        return status;
    *tensor = (proto_tensor){.name = proto_json_string(name), .dtype_name = proto_json_string(datatype)};
    const struct input in = {node, path, proto_datatype_find(tensor->dtype_name), tensor};
    tensor->dtype = in.datatype ? in.datatype->dtype : BX_N_DTYPES;
    for (int k = 0; k < container->n_tensors; k++)
        if (proto_same(container->tensors[k].name, tensor->name)) {
            bx_fail(error, BX_MALFORMED, "infer_request", "the input \"%.64s\" is there twice", tensor->name);
            return bx_at(error, "%s", path);
        }
    status = read_shape(&in, shape, error);
    if (!status)
        status = take_data(&in, draft, rest, error);
    container->n_tensors += !status;
    return status;
}

static bx_status read_inputs(proto_draft *draft, struct rest rest, bx_error *error) {
    const proto_node *inputs = proto_json_get(draft->document.root, "inputs");
    bx_status status = BX_OK;
    if (!inputs || proto_json_kind(inputs) != PROTO_ARRAY)
        return proto_infer_refuse(error, inputs ? "inputs" : "", inputs ? "an array" : "\"inputs\"", inputs);
    if (proto_json_size(inputs) > PROTO_MAX_TENSORS) {
        bx_fail(error, BX_MALFORMED, "infer_request", "more than %d inputs", PROTO_MAX_TENSORS);
        return bx_at(error, "inputs");
    }
    for (size_t i = 0; !status && i < proto_json_size(inputs); i++)
        status = read_input(draft, proto_json_at(inputs, i), i, &rest, error);
    if (!status && rest.bytes > 0)
        return bx_fail(error, BX_MALFORMED, "bin_layout", "%zu bytes follow the last input", rest.bytes);
    return status;
}

/* ---- parameters and outputs -------------------------------------------------------------------------------------- */

/* What Triton's clients may send to any model and means nothing here. */
static bool is_reserved(const char *name) {
    static const char *const names[] = {
        "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output", NULL};
    size_t i = 0;
    while (names[i] && strcmp(names[i], name) != 0)
        i++;
    return names[i] != NULL;
}

static bx_status read_option(proto_draft *draft, const char *name, const proto_node *value, bx_error *error) {
    int option;
    char digits[24];
    if (proto_draft_option(&option, draft, name, error))
        return proto_at_member(error, "parameters", name);
    switch (proto_json_kind(value)) {
    case PROTO_STRING:
        draft->options[option].text = proto_json_string(value);
        return BX_OK;
    case PROTO_INTEGER:
        snprintf(digits, sizeof digits, "%lld", (long long)proto_json_int(value));
        memcpy(draft->digits[option], digits, sizeof digits);
        draft->options[option].text = draft->digits[option];
        return BX_OK;
    default:
        proto_mismatch(error, "a string (of JSON text for an object or an array) or an integer", value);
        return proto_at_member(error, "parameters", name);
    }
}

static bx_status read_parameters(proto_draft *draft, bool *binary, bx_error *error) {
    const proto_node *parameters = proto_json_get(draft->document.root, "parameters"), *value;
    void *iterator = NULL;
    const char *name;
    bx_status status = BX_OK;
    *binary = false;
    if (!parameters)
        return BX_OK;
    if (proto_json_kind(parameters) != PROTO_OBJECT)
        return proto_infer_refuse(error, "parameters", "an object", parameters);
    while (!status && proto_json_next(parameters, &iterator, &name, &value)) {
        const bool output = strcmp(name, "binary_data_output") == 0;
        if (output && proto_json_kind(value) != PROTO_BOOLEAN)
            return proto_infer_refuse(error, "parameters.binary_data_output", "a boolean", value);
        if (output)
            *binary = proto_json_bool(value);
        else if (!is_reserved(name))
            status = read_option(draft, name, value, error);
    }
    return status;
}

static bx_status read_output(proto_draft *draft, const proto_node *node, size_t i, bool binary, bx_error *error) {
    proto_parameter own = {"binary_data", PROTO_BOOLEAN, "a boolean", NULL};
    proto_infer *infer = &draft->infer;
    const proto_node *name, *bytes;
    const void *unread;
    proto_shared place = {.bytes = 0};
    size_t output = 0;
    char path[32];
    snprintf(path, sizeof path, "outputs[%zu]", i);
    if (proto_json_kind(node) != PROTO_OBJECT)
        return proto_infer_refuse(error, path, "an object", node);
    bx_status status = proto_infer_members(node, path, output_member_at, error);
    if (!status)
        status = proto_infer_need(&name, node, path, "name", PROTO_STRING, "a string", error);
    if (!status)
        status = proto_infer_parameters(&own, &place, &unread, node, path, draft->limits, error);
    if (status)
        return status;
    bytes = own.value;
    while (output_name_at(output) && strcmp(output_name_at(output), proto_json_string(name)) != 0)
        output++;
    if (!output_name_at(output))
        proto_refuse(error, "unknown_member", "output", proto_json_string(name), output_name_at);
    else if (infer->outputs >> output & 1)
        bx_fail(error, BX_MALFORMED, "infer_request", "the output \"%s\" is there twice", output_name_at(output));
    if (error->status)
        return bx_at(error, "%s", path);
    infer->order[__builtin_popcount(infer->outputs)] = (uint8_t)output;
    infer->outputs |= 1u << output;
    infer->places[output] = place;
    if (place.bytes > 0)
        infer->shared |= 1u << output;
    else if (bytes ? proto_json_bool(bytes) : binary)
        infer->binary |= 1u << output;
    return BX_OK;
}

static bx_status read_outputs(proto_draft *draft, bool binary, bx_error *error) {
    const proto_node *outputs = proto_json_get(draft->document.root, "outputs");
    bx_status status = BX_OK;
    if (outputs && proto_json_kind(outputs) != PROTO_ARRAY)
        return proto_infer_refuse(error, "outputs", "an array", outputs);
    for (size_t i = 0; !status && outputs && i < proto_json_size(outputs); i++)
        status = read_output(draft, proto_json_at(outputs, i), i, binary, error);
    if (!status && draft->infer.outputs == 0)
        draft->infer.binary = binary ? ~0u : 0;
    return status;
}

static bx_status read_id(proto_draft *draft, bx_error *error) {
    const proto_node *id = proto_json_get(draft->document.root, "id");
    if (!id)
        return BX_OK;
    if (proto_json_kind(id) != PROTO_STRING)
        return proto_infer_refuse(error, "id", "a string", id);
    if (*proto_json_string(id)) /* the C++ client always sends one, which may be empty */
        draft->infer.id = (char *)proto_json_string(id);
    return BX_OK;
}

/* ---- the whole body ---------------------------------------------------------------------------------------------- */

/* Where an inference has arrays of numbers. */
static const proto_place places[] = {
    {{"inputs", "", "data"}, BX_N_DTYPES, PROTO_MAX_AXES, 1, 0},
    {{NULL}, BX_F32, 0, 0, 0},
};

/* Whoever sends tensors behind the JSON without saying so gets to know what is missing. */
static bx_status read_document(proto_draft *draft, const char *text, size_t bytes, bx_error *error) {
    bx_error cause = {0};
    bx_status status = proto_document_read(&draft->document, text, bytes, NULL, places, draft->limits, &cause);
    if (!status)
        return BX_OK;
    const bool perhaps = draft->json_bytes < 0 && strcmp(cause.code, "json_syntax") == 0;
    return bx_fail(error, status, cause.code, "%s%s", cause.text,
                   perhaps ? " (where tensors follow the JSON, Inference-Header-Content-Length must give its length)"
                           : "");
}

bx_status proto_draft_infer(proto_draft *draft, const void *body, size_t bytes, bx_error *error) {
    const char *text = body;
    const size_t length = draft->json_bytes < 0 ? bytes : (size_t)draft->json_bytes;
    bool binary;
    if (length > bytes)
        return bx_fail(error, BX_MALFORMED, "infer_header_length",
                       "Inference-Header-Content-Length is %zu, but the body has %zu bytes", length, bytes);
    bx_status status = read_document(draft, text, length, error);
    if (!status)
        status = proto_infer_members(draft->document.root, "", request_member_at, error);
    if (!status)
        status = read_id(draft, error);
    if (!status)
        status = read_inputs(draft, (struct rest){text + length, bytes - length}, error);
    if (!status)
        status = read_parameters(draft, &binary, error);
    if (!status)
        status = read_outputs(draft, binary, error);
    return status ? status : proto_draft_bind(draft, error);
}

/* An input's bytes behind the JSON; false when it is not as it should be. */
static bool prefix_input(const proto_node *input, size_t *end, bool *prediction, bool *in_json) {
    const proto_node *name, *parameters, *size;
    if (proto_json_kind(input) != PROTO_OBJECT || !(name = proto_json_get(input, "name")) ||
        proto_json_kind(name) != PROTO_STRING)
        return false;
    *prediction = proto_same(proto_json_string(name), "loc") || proto_same(proto_json_string(name), "conf");
    parameters = proto_json_get(input, "parameters");
    size = parameters && proto_json_kind(parameters) == PROTO_OBJECT ? proto_json_get(parameters, "binary_data_size")
                                                                     : NULL;
    *in_json = !size;
    return !size || (proto_json_kind(size) == PROTO_INTEGER && proto_json_int(size) >= 0 &&
                     !__builtin_add_overflow(*end, (size_t)proto_json_int(size), end));
}

size_t proto_infer_prefix(const void *body, size_t received, size_t bytes, int64_t json_bytes) {
    const size_t head = (size_t)json_bytes;
    const proto_limits limits = {.json_memory = PREFIX_MEMORY};
    proto_document document;
    size_t end = head, prefix = head;
    if (received < head || bytes < received)
        return 0;
    bx_status status = proto_document_read(&document, body, head, NULL, places, &limits, NULL);
    if (status)
        return status == BX_MALFORMED ? head : bytes; /* enough to be refused; or it is read again */
    const proto_node *inputs = proto_json_get(document.root, "inputs");
    const size_t n = inputs && proto_json_kind(inputs) == PROTO_ARRAY ? proto_json_size(inputs) : 0;
    for (size_t i = 0; i < n && prefix < bytes; i++) {
        bool prediction, in_json;
        if (!prefix_input(proto_json_at(inputs, i), &end, &prediction, &in_json) || end > bytes) {
            prefix = head;
            break;
        }
        prefix = prediction && in_json ? bytes : prediction ? prefix : end;
    }
    proto_document_fini(&document);
    return prefix;
}

bx_status proto_infer_include(unsigned *include, unsigned outputs, bool with_targets, bx_error *error) {
    const unsigned dense = PROTO_INCLUDE_DENSE_GRADIENTS;
    const proto_output *output;
    for (size_t i = 0; (output = proto_output_at(i)); i++) {
        if (!(outputs >> i & 1))
            continue;
        if (output->include && !(*include & output->include))
            *include |= output->include & -output->include;
        const bool gone = output->include & dense && *include & dense && !output->dense;
        if (gone)
            bx_fail(error, BX_INVALID, "invalid_option", "dense gradients have no %s", output->name);
        else if (output->of == PROTO_OUTPUT_OF_OBJECTS && with_targets)
            bx_fail(error, BX_INVALID, "invalid_option", "there is no %s where targets are sent: there are no objects",
                    output->name);
        if (error->status)
            return bx_at(error, "outputs");
    }
    return BX_OK;
}
