/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense numeric arrays of a document, nested or as {"shape", "data"}: their shape, or what is wrong with them.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

static bx_status refuse_element(const proto_numbers *numbers, const proto_node *culprit, bx_error *error) {
    const bool integer = proto_json_kind(culprit) == PROTO_INTEGER;
    switch (numbers->dtype) {
    case BX_I32:
        if (integer)
            return bx_fail(error, BX_INVALID, "label_range", "no class has the number %lld",
                           (long long)proto_json_int(culprit));
        return proto_mismatch(error, "an integer", culprit);
    case BX_I64:
        return proto_mismatch(error, "an integer", culprit);
    case BX_BOOL:
        if (integer)
            return bx_fail(error, BX_INVALID, "type_mismatch", "expected 0, 1, true or false, got %lld",
                           (long long)proto_json_int(culprit));
        return proto_mismatch(error, "0, 1, true or false", culprit);
    default:
        return proto_mismatch(error, "a number", culprit);
    }
}

/* `node` is what the tree has instead of the array. */
static bx_status refuse(const proto_dense *dense, const proto_numbers *numbers, const proto_node *node,
                        bx_error *error) {
    const proto_fault *fault = &numbers->fault;
    const int64_t last = numbers->flat ? 0 : numbers->place->last;
    char where[80] = "";
    size_t used = 0;
    for (int i = 0; i < fault->axes; i++)
        used += (size_t)snprintf(where + used, sizeof where - used, "[%zu]", fault->at[i]);
    if (fault->kind == PROTO_FAULT_RAGGED && last)
        bx_fail(error, BX_SHAPE, "ragged_array", "this array has %lld elements, and %lld are needed",
                (long long)fault->length, (long long)last);
    else if (fault->kind == PROTO_FAULT_RAGGED)
        bx_fail(error, BX_SHAPE, "ragged_array", "this array has %lld elements, the first one beside it has %lld",
                (long long)fault->length, (long long)fault->wanted);
    else if (fault->axes == numbers->axes)
        refuse_element(numbers, proto_document_culprit(node), error);
    else if (fault->wanted < 0 || last)
        proto_mismatch(error, "an array", proto_document_culprit(node));
    else
        bx_fail(error, BX_SHAPE, "ragged_array", "%s stands where the first array beside it has %lld elements",
                proto_json_kind_name(proto_document_culprit(node)), (long long)fault->wanted);
    return bx_at(error, "%s%s%s", dense->path, numbers->flat ? ".data" : "", where);
}

static bx_status read_array(proto_dense *dense, const proto_document *document, const proto_node *array,
                            bx_error *error) {
    const proto_numbers *numbers = proto_document_numbers(document, array);
    const proto_store *store = &document->stores[numbers->dtype];
    if (numbers->fault.kind != PROTO_FAULT_NONE)
        return refuse(dense, numbers, array, error);
    dense->axes = numbers->axes;
    for (int i = 0; i < numbers->axes; i++)
        dense->shape[i] = numbers->shape[i] < 0 ? 0 : numbers->shape[i];
    dense->dtype = numbers->dtype;
    if (store->data)
        dense->data = (const char *)store->data + numbers->first * bx_dtype_bytes(numbers->dtype);
    return BX_OK;
}

/* The shape that the data, whose own is its length, are said to have. */
static bx_status read_shape(proto_dense *dense, const proto_node *shape, int axes, bx_error *error) {
    const int64_t n = dense->shape[0];
    int64_t product = 1;
    if (proto_json_size(shape) != (size_t)axes) {
        bx_fail(error, BX_SHAPE, "shape", "shape has %zu dimensions, %d are needed", proto_json_size(shape), axes);
        return bx_at(error, "%s.shape", dense->path);
    }
    dense->axes = axes;
    for (int i = 0; i < axes && product >= 0; i++) {
        const proto_node *dim = proto_json_at(shape, (size_t)i);
        if (proto_json_kind(dim) != PROTO_INTEGER || proto_json_int(dim) < 0) {
            proto_mismatch(error, "an integer, not negative", dim);
            return bx_at(error, "%s.shape[%d]", dense->path, i);
        }
        dense->shape[i] = proto_json_int(dim);
        if (__builtin_mul_overflow(product, dense->shape[i], &product))
            product = -1;
    }
    if (product == n)
        return BX_OK;
    bx_fail(error, BX_SHAPE, "shape", "data has %lld numbers, which is not what its shape says", (long long)n);
    return bx_at(error, "%s.data", dense->path);
}

/* {"shape": [...], "data": [...]} */
static bx_status read_flat(proto_dense *dense, const proto_document *document, const proto_node *object,
                           bx_error *error) {
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
    const int axes = proto_document_numbers(document, data)->place->axes;
    bx_status status = read_array(dense, document, data, error);
    return status ? status : read_shape(dense, shape, axes, error);
}

bx_status proto_dense_read(proto_dense *dense, const proto_document *document, const proto_node *node,
                           bx_error *error) {
    proto_dense read = {.path = dense->path};
    bx_status status;
    if (proto_json_kind(node) == PROTO_OBJECT) {
        status = read_flat(&read, document, node, error);
    } else if (proto_json_kind(node) == PROTO_ARRAY) {
        status = read_array(&read, document, node, error);
    } else {
        proto_mismatch(error, "an array", node);
        status = bx_at(error, "%s", dense->path);
    }
    if (!status)
        *dense = read;
    return status;
}

size_t proto_dense_count(const proto_dense *dense) {
    int64_t count = 1;
    for (int i = 0; i < dense->axes; i++)
        count *= dense->shape[i]; /* no overflow: there are so many numbers */
    return (size_t)count;
}
