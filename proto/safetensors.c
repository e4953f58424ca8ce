/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The safetensors container: 8 bytes of little-endian header length, a JSON header, raw data. Whether a file is one,
 * and where its tensors lie; what they mean is not known here.
 *
 * Nothing in a file is believed before it is checked: a file that passes has tensors that cover its data exactly, in
 * some order, without holes, overlaps or trailing bytes. Nothing is allocated by a size the file claims.
 */
#include "internal.h"

#include <string.h>

#define LENGTH_BYTES 8
#define MAX_HEADER   (1u << 20)
#define MAX_NAME     128
/* Heap for the header's tree: room for a megabyte of metadata in a few long strings. */
#define HEADER_MEMORY (8u << 20)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is used as it lies in the file");

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bx_status header_fault(bx_error *error, const char *tensor, const char *what) {
    return bx_fail(error, BX_MALFORMED, "bin_header", "tensor \"%.64s\": %s", tensor, what);
}

/* A list of non-negative integers of a tensor's entry. Returns its length, or -1. */
static int read_integers(const proto_node *list, int64_t *out, int max) {
    if (!list || proto_json_kind(list) != PROTO_ARRAY || proto_json_size(list) > (size_t)max)
        return -1;
    int n = (int)proto_json_size(list);
    for (int i = 0; i < n; i++) {
        const proto_node *value = proto_json_at(list, (size_t)i);
        if (proto_json_kind(value) != PROTO_INTEGER || proto_json_int(value) < 0)
            return -1;
        out[i] = proto_json_int(value);
    }
    return n;
}

/* shape x dtype must be what the offsets say. */
static bx_status check_size(const proto_tensor *tensor, bx_error *error) {
    size_t size = tensor->view.dtype == BX_N_DTYPES ? 1 : bx_dtype_bytes(tensor->view.dtype);
    for (int i = 0; i < tensor->rank; i++)
        if (__builtin_mul_overflow(size, (size_t)tensor->shape[i], &size))
            return bx_fail(error, BX_MALFORMED, "bin_shape_overflow", "tensor \"%s\": its shape overflows 64 bits",
                           tensor->name);
    if (tensor->view.dtype != BX_N_DTYPES && size != tensor->end - tensor->begin)
        return bx_fail(error, BX_MALFORMED, "bin_size",
                       "tensor \"%s\": shape and dtype make %zu bytes, data_offsets [%zu,%zu] hold %zu", tensor->name,
                       size, tensor->begin, tensor->end, tensor->end - tensor->begin);
    return BX_OK;
}

static bx_status read_tensor(proto_tensor *tensor, const char *name, const proto_node *entry, const char *data,
                             size_t data_bytes, bx_error *error) {
    if (strlen(name) > MAX_NAME)
        return header_fault(error, name, "the name is longer than 128 bytes");
    if (proto_json_kind(entry) != PROTO_OBJECT)
        return header_fault(error, name, "its entry must be an object");
    const proto_node *dtype = proto_json_get(entry, "dtype"), *shape = proto_json_get(entry, "shape");
    const proto_node *offsets = proto_json_get(entry, "data_offsets");
    if (!dtype || !shape || !offsets || proto_json_size(entry) != 3)
        return header_fault(error, name, "its entry must have dtype, shape and data_offsets and nothing else");
    if (proto_json_kind(dtype) != PROTO_STRING)
        return header_fault(error, name, "dtype must be a string");

    *tensor = (proto_tensor){.name = name, .dtype_name = proto_json_string(dtype)};
    if (!bx_dtype_from_name(tensor->dtype_name, &tensor->view.dtype))
        tensor->view.dtype = BX_N_DTYPES;
    tensor->rank = read_integers(shape, tensor->shape, PROTO_MAX_RANK);
    if (tensor->rank < 0)
        return header_fault(error, name, "shape must be an array of at most 8 integers, none negative");

    int64_t range[2];
    if (read_integers(offsets, range, 2) != 2)
        return bx_fail(error, BX_MALFORMED, "bin_offset",
                       "tensor \"%s\": data_offsets must be two integers, none negative", name);
    if (range[0] > range[1] || (uint64_t)range[1] > data_bytes)
        return bx_fail(error, BX_MALFORMED, "bin_offset",
                       "tensor \"%s\": data_offsets [%lld,%lld] do not lie within the %zu bytes of data (cut short?)",
                       name, (long long)range[0], (long long)range[1], data_bytes);
    tensor->begin = (size_t)range[0];
    tensor->end = (size_t)range[1];
    tensor->view.data = data + tensor->begin;
    return check_size(tensor, error);
}

/* Tensors in file order must follow one another from 0 to the end. */
static bx_status check_layout(const proto_container *container, size_t data_bytes, bx_error *error) {
    const proto_tensor *order[PROTO_MAX_TENSORS];
    for (int i = 0; i < container->n_tensors; i++) {
        const proto_tensor *t = &container->tensors[i];
        int at = i;
        for (; at > 0 &&
               (order[at - 1]->begin > t->begin || (order[at - 1]->begin == t->begin && order[at - 1]->end > t->end));
             at--)
            order[at] = order[at - 1];
        order[at] = t;
    }
    size_t end = 0;
    for (int i = 0; i < container->n_tensors; i++) {
        if (order[i]->begin != end)
            return bx_fail(error, BX_MALFORMED, "bin_layout", "tensor \"%s\" begins at byte %zu of the data, %s %zu",
                           order[i]->name, order[i]->begin,
                           order[i]->begin > end ? "leaving a hole behind" : "overlapping the one that ends at", end);
        end = order[i]->end;
    }
    if (end != data_bytes)
        return bx_fail(error, BX_MALFORMED, "bin_layout", "%zu bytes follow the last tensor", data_bytes - end);
    return BX_OK;
}

static bx_status check_metadata(const proto_node *metadata, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(metadata) != PROTO_OBJECT)
        return bx_fail(error, BX_MALFORMED, "bin_header", "__metadata__ must be an object of strings, not %s",
                       proto_json_kind_name(metadata));
    while (proto_json_next(metadata, &iterator, &name, &value))
        if (proto_json_kind(value) != PROTO_STRING)
            return bx_fail(error, BX_MALFORMED, "bin_header", "__metadata__: \"%.64s\" must be a string, not %s", name,
                           proto_json_kind_name(value));
    return BX_OK;
}

/* The header's JSON; its bytes are text[0 .. bytes). */
static bx_status parse_header(proto_node **tree, const char *text, size_t bytes, bx_error *error) {
    size_t end = bytes;
    while (end > 0 && text[end - 1] == ' ')
        end--;
    if (text[0] != '{' || text[end - 1] != '}')
        return bx_fail(error, BX_MALFORMED, "bin_header",
                       "the header must be a JSON object, with nothing before it and only spaces after it");
    bx_error cause = {0};
    bx_status status = proto_json_parse(tree, text, end, HEADER_MEMORY, &cause);
    if (status == BX_NOMEM)
        return bx_fail(error, BX_NOMEM, cause.code, "%s", cause.text);
    if (status)
        return bx_fail(error, BX_MALFORMED, "bin_header", "the header, %s", cause.text);
    return BX_OK;
}

static bx_status read_entries(proto_container *container, const char *data, size_t data_bytes, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(container->tree, &iterator, &name, &value)) {
        bx_status status;
        if (strcmp(name, "__metadata__") == 0) {
            container->metadata = value;
            status = check_metadata(value, error);
        } else if (container->n_tensors == PROTO_MAX_TENSORS) {
            status = bx_fail(error, BX_MALFORMED, "bin_header", "more than %d tensors", PROTO_MAX_TENSORS);
        } else {
            status = read_tensor(&container->tensors[container->n_tensors], name, value, data, data_bytes, error);
            container->n_tensors++;
        }
        if (status)
            return status;
    }
    return check_layout(container, data_bytes, error);
}

bx_status proto_container_read(proto_container *container, const void *body, size_t bytes, bx_error *error) {
    const char *file = body;
    uint64_t length;
    if (bytes < LENGTH_BYTES)
        return bx_fail(error, BX_MALFORMED, "bin_truncated", "%zu bytes are too few for a safetensors file%s", bytes,
                       bytes ? "" : "; the body is empty");
    memcpy(&length, file, sizeof length);
    if (length == 0 || length > MAX_HEADER || length > bytes - LENGTH_BYTES)
        return bx_fail(
            error, BX_MALFORMED, "bin_header_length",
            "this is not a whole safetensors file: its first 8 bytes give a header length of %llu, which must be "
            "1 to %u and within the %zu bytes that follow%s",
            (unsigned long long)length, MAX_HEADER, bytes - LENGTH_BYTES,
            file[0] == '{' ? "; it looks like JSON, whose Content-Type is " PROTO_TYPE_JSON
                           : " (curl sends files unchanged with --data-binary @FILE)");

    const char *header = file + LENGTH_BYTES;
    proto_container read = {0};
    bx_status status = parse_header(&read.tree, header, (size_t)length, error);
    if (status)
        return status;
    status = read_entries(&read, header + length, bytes - LENGTH_BYTES - (size_t)length, error);
    if (status)
        proto_container_fini(&read);
    else
        *container = read;
    return status;
}

void proto_container_fini(proto_container *container) {
    proto_json_free(container->tree);
    *container = (proto_container){0};
}

size_t proto_request_prefix(const void *body, size_t received, size_t bytes) {
    uint64_t length;
    if (received < LENGTH_BYTES || bytes < received)
        return 0;
    memcpy(&length, body, sizeof length);
    if (length == 0 || length > MAX_HEADER || length > bytes - LENGTH_BYTES)
        return LENGTH_BYTES; /* enough to be refused */
    size_t head = LENGTH_BYTES + (size_t)length, end = 0;
    if (received < head)
        return 0;
    proto_container container;
    bx_status status = proto_container_read(&container, body, bytes, NULL);
    if (status)
        return status == BX_NOMEM ? bytes : head; /* it is read again, and may be well-formed */
    for (int i = 0; i < container.n_tensors; i++) {
        const proto_tensor *tensor = &container.tensors[i];
        bool predictions = !strcmp(tensor->name, "loc") || !strcmp(tensor->name, "conf");
        end = !predictions && tensor->end > end ? tensor->end : end;
    }
    proto_container_fini(&container);
    return head + end;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

size_t proto_slot_bytes(const proto_slot *slot) {
    size_t bytes = bx_dtype_bytes(slot->dtype);
    for (int i = 0; i < slot->rank; i++)
        bytes *= (size_t)slot->shape[i];
    return bytes;
}

void proto_container_write_header(proto_buffer *out, const proto_slot *slots, int n_slots, const char *key,
                                  const char *value) {
    uint64_t length = 0;
    size_t start = out->bytes;
    proto_buffer_add(out, &length, sizeof length); /* the place of the length, known below */
    proto_writer writer = {.out = out};
    proto_write_open(&writer, NULL, '{');
    if (key) {
        proto_write_open(&writer, "__metadata__", '{');
        proto_write_string(&writer, key, value);
        proto_write_close(&writer, '}');
    }
    size_t offset = 0;
    for (int i = 0; i < n_slots; i++) {
        proto_write_open(&writer, slots[i].name, '{');
        proto_write_string(&writer, "dtype", bx_dtype_name(slots[i].dtype));
        proto_write_open(&writer, "shape", '[');
        for (int j = 0; j < slots[i].rank; j++)
            proto_write_int(&writer, NULL, slots[i].shape[j]);
        proto_write_close(&writer, ']');
        proto_write_open(&writer, "data_offsets", '[');
        proto_write_int(&writer, NULL, (int64_t)offset);
        offset += proto_slot_bytes(&slots[i]);
        proto_write_int(&writer, NULL, (int64_t)offset);
        proto_write_close(&writer, ']');
        proto_write_close(&writer, '}');
    }
    proto_write_close(&writer, '}');
    while (!out->failed && (out->bytes - start) % 8 != 0)
        proto_buffer_add(out, " ", 1);
    if (out->failed)
        return;
    length = out->bytes - start - LENGTH_BYTES;
    memcpy(out->data + start, &length, sizeof length);
}
