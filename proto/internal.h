/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared inside proto only. Two formats (a JSON tree, a safetensors file) know nothing of losses; two readers turn them
 * into one draft of a request; request.c resolves the names a draft holds.
 */
#ifndef PROTO_INTERNAL_H
#define PROTO_INTERNAL_H

#include "proto.h"

/* ---- buffer (writer.c) ------------------------------------------------------------------------------------------- */

/* Room for `bytes` more; false and buffer->failed when there is none. */
bool proto_buffer_reserve(proto_buffer *buffer, size_t bytes);
void proto_buffer_add(proto_buffer *buffer, const void *data, size_t bytes);

/* ---- JSON tree (json.c) ------------------------------------------------------------------------------------------ */

#define PROTO_JSON_DEPTH 32

typedef enum proto_kind {
    PROTO_OBJECT,
    PROTO_ARRAY,
    PROTO_STRING,
    PROTO_INTEGER,
    PROTO_REAL,
    PROTO_BOOLEAN,
    PROTO_NULL
} proto_kind;

/* A value of a parsed document; it lives as long as the document's root. */
typedef struct json_t proto_node;

/* Parse one JSON object that is all of `text`, in at most `memory` heap bytes. Errors: BX_MALFORMED json_*,
 * BX_TOO_LARGE json_too_complex, BX_NOMEM. The caller frees the root in the same thread. */
BX_MUST_USE bx_status proto_json_parse(proto_node **root, const char *text, size_t bytes, size_t memory,
                                       bx_error *error);
void proto_json_free(proto_node *root);

proto_kind proto_json_kind(const proto_node *node);
/* "an object", "a string", ... for messages. */
const char *proto_json_kind_name(const proto_node *node);
/* Elements of an array, members of an object, 0 for anything else. */
size_t proto_json_size(const proto_node *node);
const proto_node *proto_json_at(const proto_node *array, size_t i);
/* NULL when there is no such member. */
const proto_node *proto_json_get(const proto_node *object, const char *name);
/* NUL-terminated and free of inner NULs. */
const char *proto_json_string(const proto_node *string);
int64_t proto_json_int(const proto_node *integer);
/* Read an array of numbers; stops at the first element that is not one. Returns how many were read. */
size_t proto_json_floats(const proto_node *array, float *out);

/* Iterate an object: start from *iterator == NULL; false at the end. */
bool proto_json_next(const proto_node *object, void **iterator, const char **name, const proto_node **value);

/* ---- safetensors (safetensors.c) --------------------------------------------------------------------------------- */

#define PROTO_MAX_TENSORS 32
#define PROTO_MAX_RANK    8

typedef struct proto_tensor {
    const char *name;
    bx_tensor view;         /* into the body, at any alignment; dtype BX_N_DTYPES: one we have no name for */
    const char *dtype_name; /* as written */
    int rank;
    int64_t shape[PROTO_MAX_RANK];
    size_t begin, end;
} proto_tensor;

typedef struct proto_container {
    proto_node *tree;           /* the header; names and metadata live in it */
    const proto_node *metadata; /* NULL, or an object of strings */
    proto_tensor tensors[PROTO_MAX_TENSORS];
    int n_tensors;
} proto_container;

/* Check a whole file and list its tensors. Errors: BX_MALFORMED bin_*, BX_NOMEM. On success free with
 * proto_container_fini, in the same thread. */
BX_MUST_USE bx_status proto_container_read(proto_container *container, const void *body, size_t bytes, bx_error *error);
void proto_container_fini(proto_container *container);

/* A tensor to be written; its data follows the header, in the order of the list. */
typedef struct proto_slot {
    const char *name;
    bx_dtype dtype;
    int rank;
    int64_t shape[3];
} proto_slot;

size_t proto_slot_bytes(const proto_slot *slot);
/* Append length and header. The metadata string is left out when `key` is NULL. */
void proto_container_write_header(proto_buffer *out, const proto_slot *slots, int n_slots, const char *key,
                                  const char *value);

/* ---- drafts (request.c, decode_json.c, decode_tensors.c) --------------------------------------------------------- */

enum {
#define PROTO_OPTION(id, name, text) PROTO_OPTION_##id,
#include "request.def"
    PROTO_N_OPTIONS
};

/* A request while it is being read: shapes are checked, names are not resolved yet. */
typedef struct proto_draft {
    proto_task task;
    proto_encoding encoding;
    const char *options[PROTO_N_OPTIONS]; /* borrowed; NULL: not given */
    char digits[PROTO_N_OPTIONS][24];     /* the text of options given as JSON integers */
    float *prior_boxes;                   /* (n_prior_boxes,4) malloc's; NULL: not given */
    size_t n_prior_boxes;
    bx_batch batch;
    void *memory; /* malloc's; what the batch views besides the body */
    /* the writable parts of `memory` */
    int32_t *first;  /* (N+1) */
    int64_t *labels; /* (G) */
    float *boxes;    /* (G,4) */
    float *dense;    /* n_dense values */
    proto_node *tree;
    proto_container container;
} proto_draft;

/* Fill the draft from a body. What was allocated stays in the draft, also on failure. */
BX_MUST_USE bx_status proto_draft_json(proto_draft *draft, const void *body, size_t bytes, size_t memory,
                                       bx_error *error);
BX_MUST_USE bx_status proto_draft_tensors(proto_draft *draft, const void *body, size_t bytes, bx_error *error);

/* Allocate the draft's arrays and let the batch see them. */
BX_MUST_USE bx_status proto_draft_allocate(proto_draft *draft, size_t n_images, size_t n_objects, size_t n_dense,
                                           bx_error *error);
/* Allocate prior_boxes for n boxes. */
BX_MUST_USE bx_status proto_draft_allocate_priors(proto_draft *draft, size_t n, bx_error *error);
/* Check what loc (N,P,4), conf (N,P,C) and the n_images of the annotations must have in common; sets the batch's dims.
 */
BX_MUST_USE bx_status proto_draft_set_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3],
                                           size_t n_images, bx_error *error);

/* The option of that name for this task, or -1. */
int proto_option_find(proto_task task, const char *name);
const char *proto_option_name(int option);
/* List names until NULL, for bx_nearest: the options of a task, and all its top-level JSON members. */
typedef const char *(*proto_names)(size_t i);
proto_names proto_options(proto_task task);
proto_names proto_members(proto_task task);

/* Refuse a name that `place` does not have: "unsupported_option" when this version merely lacks it, otherwise `code`
 * with the nearest of `known` (NULL: no suggestion). */
bx_status proto_refuse(bx_error *error, const char *code, const char *place, const char *name, proto_names known);
/* `name` as the last part of a path after `parent`; left out when it is not a plain word. */
bx_status proto_at_member(bx_error *error, const char *parent, const char *name);

#endif
