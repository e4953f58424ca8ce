/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proto: bytes to structs and back. JSON (jansson, in json.c only) and safetensors in; JSON and safetensors out; the
 * problem documents; the descriptions of priors and criteria.
 *
 * No sockets, no threads. Every function may be called from any thread; an object belongs to one thread at a time.
 * Errors are bx_error as in boxloss.h, with paths in one canonical form that proto_pointer translates to the wire.
 */
#ifndef PROTO_H
#define PROTO_H

#include "boxloss.h"

/* ---- encodings --------------------------------------------------------------------------------------------------- */

typedef enum proto_encoding { PROTO_JSON, PROTO_SAFETENSORS } proto_encoding;

#define PROTO_TYPE_JSON        "application/json"
#define PROTO_TYPE_SAFETENSORS "application/vnd.safetensors"
#define PROTO_TYPE_PROBLEM     "application/problem+json"

/* Guess from the first byte: white space or '{' is JSON. */
proto_encoding proto_encoding_guess(const void *body, size_t bytes);

/* A growing text or byte buffer. Zero-initialise it; a failed growth sets `failed` and drops what follows, so that a
 * writer checks once at the end. The memory is malloc's; free with proto_buffer_free or hand `data` to free(). */
typedef struct proto_buffer {
    char *data;
    size_t bytes, capacity;
    bool failed;
} proto_buffer;

void proto_buffer_free(proto_buffer *buffer);

/* ---- options: one name everywhere -------------------------------------------------------------------------------- */

/* Rows are in request.def: PROTO_OPTION(id, name, text), PROTO_INCLUDE(id, name) and PROTO_LATER(place, name, text). */
enum {
#define PROTO_INCLUDE(id, name) PROTO_INCLUDE_BIT_##id,
#include "request.def"
};
enum {
#define PROTO_INCLUDE(id, name) PROTO_INCLUDE_##id = 1u << PROTO_INCLUDE_BIT_##id,
#include "request.def"
};

/* One `name=value` of a query string, decoded. */
typedef struct proto_option {
    const char *name, *value;
} proto_option;

/* ---- request ----------------------------------------------------------------------------------------------------- */

typedef enum proto_task { PROTO_LOSS, PROTO_MATCH } proto_task;

/* Prior sets that requests may name. The sets must outlive every request decoded with it. */
typedef struct proto_catalog {
    const bx_priors *const *priors;
    size_t n_priors;
} proto_catalog;

/* What a body may cost to decode. */
typedef struct proto_limits {
    size_t json_memory; /* heap bytes of one JSON document's tree */
} proto_limits;

/* A decoded request. `batch` views the body (binary predictions) and `memory` (everything that had to be converted),
 * so the body must outlive the request. */
typedef struct proto_request {
    proto_task task;
    proto_encoding encoding;
    const bx_criterion *criterion;
    const bx_priors *priors;
    char device[16];  /* "auto", "cpu", "cuda", "cuda:N" */
    unsigned include; /* PROTO_INCLUDE_... */
    bx_batch batch;
    bx_priors *own_priors; /* the caller's own boxes, when `priors` is not a named set */
    void *memory;
} proto_request;

/* Decode a body; `query` options override those in the body. On success the caller frees with proto_request_free; on
 * failure *request is untouched. Errors: BX_MALFORMED (not JSON, not safetensors), BX_INVALID (unknown or unsupported
 * members and options, wrong types), BX_SHAPE, BX_TOO_LARGE (json_memory exceeded), BX_NOMEM. */
BX_MUST_USE bx_status proto_request_decode(proto_request *request, proto_task task, proto_encoding encoding,
                                           const void *body, size_t bytes, const proto_option *query, size_t n_query,
                                           const proto_catalog *catalog, const proto_limits *limits, bx_error *error);
void proto_request_free(proto_request *request);

/* How much of a safetensors body of `bytes` must be in before proto_request_decode may be called on it: everything but
 * the predictions, which it does not read. 0 when too little has been received to tell. */
size_t proto_request_prefix(const void *body, size_t received, size_t bytes);

/* The wire form of error->path for this encoding: a JSON pointer ("/annotations/3/boxes/7") or a tensor and index
 * ("boxes[19]"). `request` is NULL when decoding failed, else it turns an image's object into the batch's. Empty when
 * there is no path. */
void proto_pointer(char out[160], const proto_request *request, proto_encoding encoding, const bx_error *error);

/* ---- answers ----------------------------------------------------------------------------------------------------- */

typedef struct proto_timing {
    double receive_ms, queue_ms, compute_ms;
} proto_timing;

/* Encode the result of a request (API answer of /v1/loss or /v1/match) as JSON or as a safetensors file. Appends to
 * `out`, or leaves its bytes as they were. request->device is answered as it is, "auto" as "cpu".
 * Errors: BX_NOMEM, and BX_TOO_LARGE when proto_answer_bytes exceeds max_bytes. */
BX_MUST_USE bx_status proto_answer_encode(proto_buffer *out, proto_encoding accept, const proto_request *request,
                                          const bx_result *result, const proto_timing *timing, const char *request_id,
                                          size_t max_bytes, bx_error *error);
/* An upper bound of its size, known before any work is done; for a request_id of at most 256 bytes. */
size_t proto_answer_bytes(const proto_request *request, const bx_plan *plan, proto_encoding accept);

typedef struct proto_problem {
    int http_status;
    const char *title;   /* the HTTP reason phrase */
    const char *code;    /* stable machine-readable word */
    const char *detail;  /* a sentence */
    const char *pointer; /* may be empty */
    const char *request_id;
} proto_problem;

/* RFC 9457 problem document. Appends to `out`; check out->failed. */
void proto_problem_encode(proto_buffer *out, const proto_problem *problem);

/* GET /v1/priors, GET /v1/priors/{name} in JSON, and its tensor file. */
void proto_priors_list(proto_buffer *out, const proto_catalog *catalog);
void proto_priors_describe(proto_buffer *out, const bx_priors *priors);
void proto_priors_tensor(proto_buffer *out, const bx_priors *priors);
/* GET /v1/criteria, GET /v1/criteria/{name}. */
void proto_criteria_list(proto_buffer *out);
void proto_criterion_describe(proto_buffer *out, const bx_criterion *criterion);

/* ---- JSON text --------------------------------------------------------------------------------------------------- */

/* A writer of JSON text. Keys are NULL inside arrays. Doubles are written in the shortest of %.15g, %.16g, %.17g that
 * reads back the same; what is not finite is written as null. */
typedef struct proto_writer {
    proto_buffer *out;
    bool comma; /* the next member needs a comma before it */
} proto_writer;

void proto_write_open(proto_writer *writer, const char *key, char bracket);
void proto_write_close(proto_writer *writer, char bracket);
/* The line feed that ends a whole text. */
void proto_write_end(proto_writer *writer);
void proto_write_string(proto_writer *writer, const char *key, const char *value);
void proto_write_int(proto_writer *writer, const char *key, int64_t value);
void proto_write_real(proto_writer *writer, const char *key, double value);
void proto_write_float(proto_writer *writer, const char *key, float value);
void proto_write_bool(proto_writer *writer, const char *key, bool value);
void proto_write_null(proto_writer *writer, const char *key);

/* Process-wide set-up: JSON allocation budget and hash seed. Call once, before any thread starts and any decoding;
 * without it json_memory bounds nothing. */
void proto_init(void);

#endif
