/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of an inference are made of: the protocol's datatypes and JSON values, the parameters of tensors, and
 * places in shared memory with the documents that register them. See infer.h.
 */
#include "infer.h"

#include <stdio.h>
#include <string.h>

/* ---- datatypes --------------------------------------------------------------------------------------------------- */

/* What numbers in JSON of each datatype are stored as: whole ones as I64, where they can be checked. Of the two short
 * ones there are none in JSON, as in Triton. */
static const proto_datatype datatypes[] = {
    {"FP32", BX_F32, BX_F32, 0, 0},
    {"INT64", BX_I64, BX_I64, INT64_MIN, INT64_MAX},
    {"INT32", BX_I32, BX_I64, INT32_MIN, INT32_MAX},
    {"FP16", BX_F16, BX_N_DTYPES, 0, 0},
    {"BF16", BX_BF16, BX_N_DTYPES, 0, 0},
    {"FP64", BX_F64, BX_F64, 0, 0},
    {"BOOL", BX_BOOL, BX_BOOL, 0, 0},
    {"UINT8", BX_U8, BX_I64, 0, UINT8_MAX},
    {"INT16", BX_I16, BX_I64, INT16_MIN, INT16_MAX},
    {"INT8", BX_I8, BX_I64, INT8_MIN, INT8_MAX},
};

enum { N_DATATYPES = sizeof datatypes / sizeof datatypes[0] };

const char *proto_datatype_name(bx_dtype dtype) {
    size_t i = 0;
    while (i < N_DATATYPES - 1 && datatypes[i].dtype != dtype)
        i++;
    return datatypes[i].name;
}

const proto_datatype *proto_datatype_find(const char *name) {
    for (size_t i = 0; i < N_DATATYPES; i++)
        if (proto_same(datatypes[i].name, name))
            return &datatypes[i];
    return NULL;
}

/* Of the text of a JSON string; where it is none of ours it does not matter, the input will be refused. */
bx_dtype proto_datatype_stored(const char *begin, const char *end) {
    for (size_t i = 0; begin && i < N_DATATYPES; i++)
        if (datatypes[i].stored != BX_N_DTYPES && proto_key_is(begin, end, datatypes[i].name))
            return datatypes[i].stored;
    return BX_F64;
}

/* ---- JSON values of the protocol --------------------------------------------------------------------------------- */

bx_status proto_infer_refuse(bx_error *error, const char *path, const char *expected, const proto_node *got) {
    if (got)
        bx_fail(error, BX_MALFORMED, "infer_request", "expected %s, got %s", expected, proto_json_kind_name(got));
    else
        bx_fail(error, BX_MALFORMED, "infer_request", "%s is missing here", expected);
    return bx_at(error, "%s", path);
}

bx_status proto_infer_need(const proto_node **value, const proto_node *object, const char *path, const char *name,
                           proto_kind kind, const char *expected, bx_error *error) {
    char at[80];
    *value = proto_json_get(object, name);
    if (*value && proto_json_kind(*value) == kind)
        return BX_OK;
    snprintf(at, sizeof at, "%s%s%s", path, *path ? "." : "", name);
    return proto_infer_refuse(error, *value ? at : path, *value ? expected : name, *value);
}

bx_status proto_infer_members(const proto_node *object, const char *path, proto_names known, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(object, &iterator, &name, &value)) {
        size_t i = 0;
        while (known(i) && strcmp(known(i), name) != 0)
            i++;
        if (!known(i)) {
            proto_refuse(error, "unknown_member", "member", name, known);
            return proto_at_member(error, path, name);
        }
    }
    return BX_OK;
}

/* ---- parameters of tensors --------------------------------------------------------------------------------------- */

/* Where a tensor lies in shared memory, and in front of that what an input or an output has besides. */
enum { OWN, REGION, BYTES, OFFSET, N_PARAMETERS };

static bx_status read_tensor_parameters(proto_parameter parameters[N_PARAMETERS], const proto_node *tensor,
                                        const char *path, bx_error *error) {
    const proto_node *object = proto_json_get(tensor, "parameters"), *value;
    void *iterator = NULL;
    const char *name;
    char at[80];
    snprintf(at, sizeof at, "%s.parameters", path);
    if (object && proto_json_kind(object) != PROTO_OBJECT)
        return proto_infer_refuse(error, at, "an object", object);
    while (object && proto_json_next(object, &iterator, &name, &value)) {
        int i = 0;
        while (i < N_PARAMETERS && strcmp(parameters[i].name, name) != 0)
            i++;
        if (i == N_PARAMETERS) {
            bx_fail(error, BX_INVALID, "unknown_member",
                    "there is no parameter \"%.64s\" here; there are %s, shared_memory_region, shared_memory_byte_size "
                    "and shared_memory_offset",
                    name, parameters[OWN].name);
            return proto_at_member(error, at, name);
        }
        if (proto_json_kind(value) != parameters[i].kind) {
            proto_infer_refuse(error, "", parameters[i].expected, value);
            return bx_at(error, "%s.%s", at, name);
        }
        parameters[i].value = value;
    }
    return BX_OK;
}

/* The place in shared memory that the parameters name, and its bytes; where they name none, place->bytes stays 0. */
static bx_status find_place(proto_shared *place, const void **data, const proto_parameter parameters[N_PARAMETERS],
                            const char *path, const proto_limits *limits, bx_error *error) {
    const proto_node *region = parameters[REGION].value, *bytes = parameters[BYTES].value;
    const proto_node *offset = parameters[OFFSET].value;
    *place = (proto_shared){.index = -1};
    if (!region && !bytes && !offset)
        return BX_OK;
    const int64_t n = bytes ? proto_json_int(bytes) : 0, from = offset ? proto_json_int(offset) : 0;
    const char *name = region ? proto_json_string(region) : "";
    if (!region || !bytes)
        bx_fail(error, BX_MALFORMED, "infer_request",
                "shared memory is named by shared_memory_region and shared_memory_byte_size, both");
    else if (n < 1 || from < 0)
        bx_fail(error, BX_MALFORMED, "infer_request", "%lld bytes of shared memory from byte %lld on", (long long)n,
                (long long)from);
    else if (!limits->region)
        bx_fail(error, BX_INVALID, "unsupported_option", "this daemon maps no shared memory (--shared-memory)");
    else if (strlen(name) >= sizeof place->region)
        bx_fail(error, BX_INVALID, "unknown_region", "there is no shared memory region \"%.64s\"", name);
    else
        limits->region(limits->context, name, (size_t)from, (size_t)n, &place->index, data, error);
    if (error->status)
        return bx_at(error, "%s", path);
    memcpy(place->region, name, strlen(name) + 1);
    place->offset = (size_t)from;
    place->bytes = (size_t)n;
    return BX_OK;
}

bx_status proto_infer_parameters(proto_parameter *own, proto_shared *place, const void **data, const proto_node *tensor,
                                 const char *path, const proto_limits *limits, bx_error *error) {
    proto_parameter parameters[] = {*own,
                                    {"shared_memory_region", PROTO_STRING, "a string", NULL},
                                    {"shared_memory_byte_size", PROTO_INTEGER, "an integer", NULL},
                                    {"shared_memory_offset", PROTO_INTEGER, "an integer", NULL}};
    bx_status status = read_tensor_parameters(parameters, tensor, path, error);
    if (!status)
        status = find_place(place, data, parameters, path, limits, error);
    if (!status)
        own->value = parameters[OWN].value;
    return status;
}

/* ---- registrations of shared memory ------------------------------------------------------------------------------ */

static const char *registration_member_at(size_t i) {
    static const char *const names[] = {"key", "offset", "byte_size", NULL};
    return names[i];
}

static bx_status read_registration(proto_registration *registration, const proto_node *root, bx_error *error) {
    const proto_node *key, *bytes, *offset = proto_json_get(root, "offset");
    bx_status status = proto_infer_members(root, "", registration_member_at, error);
    if (!status)
        status = proto_infer_need(&key, root, "", "key", PROTO_STRING, "a string", error);
    if (!status)
        status = proto_infer_need(&bytes, root, "", "byte_size", PROTO_INTEGER, "an integer", error);
    if (status)
        return status;
    if (offset && proto_json_kind(offset) != PROTO_INTEGER)
        return proto_infer_refuse(error, "offset", "an integer", offset);
    const int64_t n = proto_json_int(bytes), from = offset ? proto_json_int(offset) : 0;
    if (n < 0 || from < 0)
        return bx_fail(error, BX_MALFORMED, "infer_request", "byte_size is %lld, offset %lld", (long long)n,
                       (long long)from);
    snprintf(registration->key, sizeof registration->key, "%s", proto_json_string(key));
    registration->offset = (size_t)from;
    registration->bytes = (size_t)n;
    return BX_OK;
}

bx_status proto_registration_read(proto_registration *registration, const void *body, size_t bytes,
                                  const proto_limits *limits, bx_error *error) {
    static const proto_place none[] = {{{NULL}, BX_F32, 0, 0, 0}};
    proto_document document = {0};
    bx_status status = proto_document_read(&document, body, bytes, NULL, none, limits, error);
    if (!status)
        status = read_registration(registration, document.root, error);
    proto_document_fini(&document);
    return status;
}
