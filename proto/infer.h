/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the reading of inferences: what infer.c, which reads their inputs and outputs, finds in infer_tensor.c.
 * Failures have the path of the culprit in the document; what the protocol does not allow is BX_MALFORMED
 * "infer_request".
 */
#ifndef PROTO_INFER_H
#define PROTO_INFER_H

#include "internal.h"

typedef struct proto_datatype {
    const char *name;
    bx_dtype dtype, stored; /* stored BX_N_DTYPES: bytes only */
    int64_t least, most;    /* of whole numbers */
} proto_datatype;

/* NULL: one that no tensor here can have. */
const proto_datatype *proto_datatype_find(const char *name);

/* Something else was expected at `path` than `got`; NULL: than nothing. */
bx_status proto_infer_refuse(bx_error *error, const char *path, const char *expected, const proto_node *got);
/* A member that must be there and of that kind; `expected`: in words. */
BX_MUST_USE bx_status proto_infer_need(const proto_node **value, const proto_node *object, const char *path,
                                       const char *name, proto_kind kind, const char *expected, bx_error *error);
/* Refuse members that are not in the list, which ends with NULL. Errors: BX_INVALID "unknown_member". */
BX_MUST_USE bx_status proto_infer_members(const proto_node *object, const char *path, proto_names known,
                                          bx_error *error);

/* What a tensor's parameters may say. */
typedef struct proto_parameter {
    const char *name;
    proto_kind kind;
    const char *expected;
    const proto_node *value; /* NULL: it does not say it */
} proto_parameter;

/* The parameters of an input or an output: `own`, which the other does not have, and the place in shared memory that
 * they name, with its bytes; where they name none, place->bytes is 0. Errors: BX_INVALID "unknown_member",
 * "unsupported_option", "unknown_region", "shared_memory". */
BX_MUST_USE bx_status proto_infer_parameters(proto_parameter *own, proto_shared *place, const void **data,
                                             const proto_node *tensor, const char *path, const proto_limits *limits,
                                             bx_error *error);

#endif
