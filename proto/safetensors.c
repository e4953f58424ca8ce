/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The safetensors container: 8 bytes of little-endian header length, a JSON header, raw data. Whether a file is one,
 * and where its tensors lie; what they mean is not known here.
 *
 * Nothing in a file is believed before it is checked: a file that passes has tensors that cover its data exactly, in
 * some order, without holes, overlaps or trailing bytes. Nothing is allocated by a size the file claims.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES 8
#define MAX_HEADER   (1u << 20)
#define MAX_NAME     128
#define USUAL_PAIRS  32 /* of metadata */
/* Heap for the header's tree: room for a megabyte of metadata in a few long strings. */
#define HEADER_MEMORY (8u << 20)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is used as it lies in the file");

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static bx_status header_fault(bx_error *error, const char *tensor, const char *what) {
    return bx_fail(error, BX_MALFORMED, "bin_header", "tensor \"%.64s\": %s", tensor, what);
}

/* Nothing has been read of the header. */
static void start(proto_container *container) {
    container->metadata = container->metadata_end = NULL;
    container->n_tensors = 0;
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

/* List a tensor whose name, dtype_name, rank and shape have been read; no number of it is negative. */
static bx_status add_tensor(proto_container *container, proto_tensor *tensor, const int64_t range[2], bx_error *error) {
    if (!bx_dtype_from_name(tensor->dtype_name, &tensor->dtype))
        tensor->dtype = BX_N_DTYPES;
    tensor->view.dtype = tensor->dtype;
    if (range[0] > range[1] || (uint64_t)range[1] > container->data_bytes)
        return bx_fail(error, BX_MALFORMED, "bin_offset",
                       "tensor \"%s\": data_offsets [%lld,%lld] do not lie within the %zu bytes of data (cut short?)",
                       tensor->name, (long long)range[0], (long long)range[1], container->data_bytes);
    tensor->begin = (size_t)range[0];
    tensor->end = (size_t)range[1];
    tensor->view.data = container->data + tensor->begin;
    container->n_tensors++;
    return check_size(tensor, error);
}

/* The place of the next tensor; NULL when its name is too long or there are too many. */
static proto_tensor *next_tensor(proto_container *container, const char *name, bx_error *error) {
    if (container->n_tensors == PROTO_MAX_TENSORS) {
        bx_fail(error, BX_MALFORMED, "bin_header", "more than %d tensors", PROTO_MAX_TENSORS);
        return NULL;
    }
    if (strlen(name) > MAX_NAME) {
        header_fault(error, name, "the name is longer than 128 bytes");
        return NULL;
    }
    proto_tensor *tensor = &container->tensors[container->n_tensors];
    *tensor = (proto_tensor){.name = name};
    return tensor;
}

/* Tensors in file order must follow one another from 0 to the end. */
static bx_status check_layout(const proto_container *container, bx_error *error) {
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
    if (end != container->data_bytes)
        return bx_fail(error, BX_MALFORMED, "bin_layout", "%zu bytes follow the last tensor",
                       container->data_bytes - end);
    return BX_OK;
}

/* ---- headers as they are usually written ------------------------------------------------------------------------- */

/* A header's text that is being read, and where its strings go: a string is shorter than its text with the quotes. */
typedef struct cursor {
    const char *at, *end;
    char *strings;
} cursor;

/* The next character but white space, if it is that one. */
static inline bool take(cursor *c, char expected) {
    if (c->at < c->end && *c->at != expected)
        c->at = proto_skip_space(c->at, c->end);
    const bool found = c->at < c->end && *c->at == expected;
    c->at += found;
    return found;
}

/* A string of printable ASCII without escapes, or NULL. */
static const char *take_string(cursor *c) {
    if (!take(c, '"'))
        return NULL;
    const char *at = c->at, *string = c->strings;
    char *to = c->strings;
    for (; at < c->end && *at != '"'; at++) {
        if (*at < 0x20 || *at > 0x7e || *at == '\\')
            return NULL;
        *to++ = *at;
    }
    *to++ = '\0';
    c->strings = to;
    c->at = at;
    return take(c, '"') ? string : NULL;
}

static bool take_integer(cursor *c, int64_t *out) {
    int digits = 0;
    int64_t value = 0;
    c->at = proto_skip_space(c->at, c->end);
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9' && digits < 18; c->at++, digits++)
        value = 10 * value + (*c->at - '0');
    *out = value;
    return digits == 1 || (digits > 1 && c->at[-digits] != '0');
}

/* Their number, or -1. */
static int take_integers(cursor *c, int64_t *out, int max) {
    int n = 0;
    if (!take(c, '['))
        return -1;
    if (take(c, ']'))
        return 0;
    do {
        if (n == max || !take_integer(c, &out[n++]))
            return -1;
    } while (take(c, ','));
    return take(c, ']') ? n : -1;
}

static bool take_tensor(cursor *c, proto_container *container, const char *name) {
    proto_tensor *tensor = next_tensor(container, name, NULL);
    bool dtype = false, shape = false, offsets = false;
    int64_t range[2];
    for (int i = 0; i < container->n_tensors; i++)
        if (proto_same(container->tensors[i].name, name))
            return false;
    for (int i = 0; tensor && i < 3; i++) {
        const char *member = take(c, i == 0 ? '{' : ',') ? take_string(c) : NULL;
        if (!member || !take(c, ':'))
            return false;
        if (!dtype && proto_same(member, "dtype"))
            dtype = (tensor->dtype_name = take_string(c));
        else if (!shape && proto_same(member, "shape"))
            shape = (tensor->rank = take_integers(c, tensor->shape, PROTO_MAX_RANK)) >= 0;
        else if (!offsets && proto_same(member, "data_offsets"))
            offsets = take_integers(c, range, 2) == 2;
        else
            return false;
    }
    return dtype && shape && offsets && take(c, '}') && !add_tensor(container, tensor, range, NULL);
}

static bool take_metadata(cursor *c, proto_container *container) {
    int pairs = 0;
    if (container->metadata || !take(c, '{'))
        return false;
    container->metadata = container->metadata_end = c->strings;
    if (take(c, '}'))
        return true;
    do {
        const char *name = take_string(c), *earlier = NULL, *value;
        if (!name || pairs++ == USUAL_PAIRS || !take(c, ':') || !take_string(c))
            return false;
        while (proto_container_next(container, &earlier, &value))
            if (proto_same(earlier, name))
                return false;
        container->metadata_end = c->strings;
    } while (take(c, ','));
    return take(c, '}');
}

/* Read a header of the small part of JSON that writers of this format need. False: it holds something else or something
 * wrong; which of them, and how to say it, is for the JSON parser. */
static bool read_usual(proto_container *container, const char *text, size_t bytes) {
    cursor c = {.at = text, .end = text + bytes, .strings = container->strings};
    start(container);
    if (*text != '{' || !take(&c, '{'))
        return false;
    do {
        const char *name = take_string(&c);
        if (!name || !take(&c, ':'))
            return false;
        if (!(proto_same(name, "__metadata__") ? take_metadata(&c, container) : take_tensor(&c, container, name)))
            return false;
    } while (take(&c, ','));
    if (!take(&c, '}'))
        return false;
    while (c.at < c.end && *c.at == ' ')
        c.at++;
    return c.at == c.end && !check_layout(container, NULL);
}

/* ---- any other header -------------------------------------------------------------------------------------------- */

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

static const char *keep(char **strings, const char *string) {
    const size_t bytes = strlen(string) + 1;
    const char *kept = memcpy(*strings, string, bytes);
    *strings += bytes;
    return kept;
}

static bx_status read_tensor(proto_container *container, char **strings, const char *name, const proto_node *entry,
                             bx_error *error) {
    proto_tensor *tensor = next_tensor(container, name, error);
    if (!tensor)
        return BX_MALFORMED;
    if (proto_json_kind(entry) != PROTO_OBJECT)
        return header_fault(error, name, "its entry must be an object");
    const proto_node *dtype = proto_json_get(entry, "dtype"), *shape = proto_json_get(entry, "shape");
    const proto_node *offsets = proto_json_get(entry, "data_offsets");
    if (!dtype || !shape || !offsets || proto_json_size(entry) != 3)
        return header_fault(error, name, "its entry must have dtype, shape and data_offsets and nothing else");
    if (proto_json_kind(dtype) != PROTO_STRING)
        return header_fault(error, name, "dtype must be a string");

    tensor->name = keep(strings, name);
    tensor->dtype_name = keep(strings, proto_json_string(dtype));
    tensor->rank = read_integers(shape, tensor->shape, PROTO_MAX_RANK);
    if (tensor->rank < 0)
        return header_fault(error, name, "shape must be an array of at most 8 integers, none negative");
    int64_t range[2];
    if (read_integers(offsets, range, 2) != 2)
        return bx_fail(error, BX_MALFORMED, "bin_offset",
                       "tensor \"%s\": data_offsets must be two integers, none negative", name);
    return add_tensor(container, tensor, range, error);
}

static bx_status read_metadata(proto_container *container, char **strings, const proto_node *metadata,
                               bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(metadata) != PROTO_OBJECT)
        return bx_fail(error, BX_MALFORMED, "bin_header", "__metadata__ must be an object of strings, not %s",
                       proto_json_kind_name(metadata));
    container->metadata = *strings;
    while (proto_json_next(metadata, &iterator, &name, &value)) {
        if (proto_json_kind(value) != PROTO_STRING)
            return bx_fail(error, BX_MALFORMED, "bin_header", "__metadata__: \"%.64s\" must be a string, not %s", name,
                           proto_json_kind_name(value));
        keep(strings, name);
        keep(strings, proto_json_string(value));
    }
    container->metadata_end = *strings;
    return BX_OK;
}

/* The header's JSON; its bytes are text[0 .. bytes). */
static bx_status parse_header(proto_node **tree, const char *text, size_t bytes, bx_error *error) {
    size_t end = bytes;
    while (end > 0 && text[end - 1] == ' ')
        end--;
    if (end == 0 || text[0] != '{' || text[end - 1] != '}')
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

static bx_status read_any(proto_container *container, const char *text, size_t bytes, bx_error *error) {
    void *iterator = NULL;
    char *strings = container->strings;
    const char *name;
    const proto_node *value;
    proto_node *tree;
    start(container);
    bx_status status = parse_header(&tree, text, bytes, error);
    if (status)
        return status;
    while (!status && proto_json_next(tree, &iterator, &name, &value))
        status = strcmp(name, "__metadata__") == 0 ? read_metadata(container, &strings, value, error)
                                                   : read_tensor(container, &strings, name, value, error);
    proto_json_free(tree);
    return status ? status : check_layout(container, error);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

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
    container->data = header + length;
    container->data_bytes = bytes - LENGTH_BYTES - (size_t)length;
    container->strings = malloc(length);
    if (!container->strings)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the header");
    bx_status status = BX_OK;
    if (!read_usual(container, header, (size_t)length))
        status = read_any(container, header, (size_t)length, error);
    if (status)
        proto_container_fini(container);
    return status;
}

bool proto_container_next(const proto_container *container, const char **name, const char **value) {
    const char *next = *name ? *value + strlen(*value) + 1 : container->metadata;
    if (next == container->metadata_end)
        return false;
    *name = next;
    *value = next + strlen(next) + 1;
    return true;
}

void proto_container_fini(proto_container *container) {
    free(container->strings);
    container->strings = NULL;
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
