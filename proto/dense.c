/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense numeric arrays in JSON, nested or as {"shape", "data"}. They are measured before anything is allocated, so a
 * body cannot claim more memory than it has values; then every number is read once.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

/* Locate a failure at the first `axes` indices of dense->at. */
static bx_status dense_at(const proto_dense *dense, int axes, bx_error *error) {
    char where[80] = "";
    size_t used = 0;
    for (int i = 0; i < axes; i++)
        used += (size_t)snprintf(where + used, sizeof where - used, "[%zu]", dense->at[i]);
    return bx_at(error, "%s%s", dense->path, where);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* Check that all arrays at one depth are equally long. */
static bx_status measure(proto_dense *dense, const proto_node *node, int axis, bx_error *error) {
    int64_t *length = &dense->shape[axis];
    if (proto_json_kind(node) != PROTO_ARRAY) {
        if (*length < 0)
            proto_mismatch(error, "an array", node);
        else
            bx_fail(error, BX_SHAPE, "ragged_array", "%s stands where the first array beside it has %lld elements",
                    proto_json_kind_name(node), (long long)*length);
        return dense_at(dense, axis, error);
    }
    size_t n = proto_json_size(node);
    if (*length < 0)
        *length = (int64_t)n;
    if (n != (size_t)*length) {
        bx_fail(error, BX_SHAPE, "ragged_array", "this array has %zu elements, the first one beside it has %lld", n,
                (long long)*length);
        return dense_at(dense, axis, error);
    }
    for (size_t i = 0; axis + 1 < dense->axes && i < n; i++) {
        dense->at[axis] = i;
        bx_status status = measure(dense, proto_json_at(node, i), axis + 1, error);
        if (status)
            return status;
    }
    return BX_OK;
}

/* {"shape": [...], "data": [...]} */
static bx_status measure_flat(proto_dense *dense, const proto_node *object, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(object, &iterator, &name, &value))
        if (strcmp(name, "shape") != 0 && strcmp(name, "data") != 0) {
            bx_fail(error, BX_INVALID, "unknown_member", "a dense array has shape and data, not \"%.64s\"", name);
            return proto_at_member(error, dense->path, name);
        }
    const proto_node *shape = proto_json_get(object, "shape"), *data = proto_json_get(object, "data");
    if (!shape || !data) {
        bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", shape ? "data" : "shape");
        return bx_at(error, "%s.%s", dense->path, shape ? "data" : "shape");
    }
    if (proto_json_kind(shape) != PROTO_ARRAY || proto_json_kind(data) != PROTO_ARRAY) {
        bool first = proto_json_kind(shape) != PROTO_ARRAY;
        proto_mismatch(error, "an array", first ? shape : data);
        return bx_at(error, "%s.%s", dense->path, first ? "shape" : "data");
    }
    if (proto_json_size(shape) != (size_t)dense->axes) {
        bx_fail(error, BX_SHAPE, "shape", "shape has %zu dimensions, %d are needed", proto_json_size(shape),
                dense->axes);
        return bx_at(error, "%s.shape", dense->path);
    }
    int64_t product = 1;
    for (int i = 0; i < dense->axes; i++) {
        const proto_node *dim = proto_json_at(shape, (size_t)i);
        if (proto_json_kind(dim) != PROTO_INTEGER || proto_json_int(dim) < 0) {
            proto_mismatch(error, "an integer, not negative", dim);
            return bx_at(error, "%s.shape[%d]", dense->path, i);
        }
        dense->shape[i] = proto_json_int(dim);
        if (__builtin_mul_overflow(product, dense->shape[i], &product))
            product = -1;
        if (product < 0)
            break;
    }
    if (product < 0 || (size_t)product != proto_json_size(data)) {
        bx_fail(error, BX_SHAPE, "shape", "data has %zu numbers, which is not what its shape says",
                proto_json_size(data));
        return bx_at(error, "%s.data", dense->path);
    }
    dense->node = data;
    dense->flat = true;
    return BX_OK;
}

bx_status proto_dense_measure(proto_dense *dense, const proto_node *node, bx_error *error) {
    for (int i = 0; i < dense->axes; i++)
        dense->shape[i] = -1;
    dense->node = node;
    if (proto_json_kind(node) == PROTO_OBJECT)
        return measure_flat(dense, node, error);
    bx_status status = measure(dense, node, 0, error);
    for (int i = 0; i < dense->axes; i++)
        if (dense->shape[i] < 0)
            dense->shape[i] = 0;
    return status;
}

size_t proto_dense_count(const proto_dense *dense) {
    int64_t count = 1;
    for (int i = 0; i < dense->axes; i++)
        count *= dense->shape[i]; /* no overflow: every value is a node of the tree */
    return (size_t)count;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static size_t read_numbers(const proto_dense *dense, const proto_node *array, char *out) {
    if (dense->dtype == BX_F64)
        return proto_json_doubles(array, (double *)(void *)out);
    if (dense->dtype == BX_I32)
        return proto_json_ints(array, (int32_t *)(void *)out);
    return proto_json_floats(array, (float *)(void *)out);
}

static bx_status refuse_number(const proto_dense *dense, const proto_node *node, bx_error *error) {
    if (dense->dtype == BX_I32 && proto_json_kind(node) == PROTO_INTEGER)
        return bx_fail(error, BX_INVALID, "label_range", "no class has the number %lld",
                       (long long)proto_json_int(node));
    return proto_mismatch(error, dense->dtype == BX_I32 ? "an integer" : "a number", node);
}

/* Read the numbers below `node` to *out, and move it on. */
static bx_status fill(proto_dense *dense, const proto_node *node, int axis, char **out, bx_error *error) {
    size_t n = proto_json_size(node);
    if (dense->flat || axis + 1 == dense->axes) {
        size_t read = read_numbers(dense, node, *out);
        *out += n * bx_dtype_bytes(dense->dtype);
        if (read == n)
            return BX_OK;
        refuse_number(dense, proto_json_at(node, read), error);
        if (dense->flat)
            return bx_at(error, "%s.data[%zu]", dense->path, read);
        dense->at[axis] = read;
        return dense_at(dense, axis + 1, error);
    }
    for (size_t i = 0; i < n; i++) {
        dense->at[axis] = i;
        bx_status status = fill(dense, proto_json_at(node, i), axis + 1, out, error);
        if (status)
            return status;
    }
    return BX_OK;
}

bx_status proto_dense_read(proto_dense *dense, void *out, bx_error *error) {
    char *at = out;
    return fill(dense, dense->node, 0, &at, error);
}
