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

/* The last one: JSON that names tensors and may be followed by them, of the Open Inference Protocol (/v2). */
typedef enum proto_encoding { PROTO_JSON, PROTO_SAFETENSORS, PROTO_INFER } proto_encoding;

#define PROTO_TYPE_JSON        "application/json"
#define PROTO_TYPE_SAFETENSORS "application/vnd.safetensors"
#define PROTO_TYPE_PROBLEM     "application/problem+json"
#define PROTO_TYPE_BYTES       "application/octet-stream"
#define PROTO_TYPE_HTML        "text/html; charset=utf-8"

/* The only version of a model, which is a criterion. */
#define PROTO_MODEL_VERSION "1"

/* Guess from the first bytes: JSON begins with white space or '{', and has no NUL, of which a safetensors header length
 * (8 bytes, little-endian) has several. Fewer than PROTO_GUESS_BYTES tell it for sure where there are no more. */
#define PROTO_GUESS_BYTES 8
proto_encoding proto_encoding_guess(const void *body, size_t bytes);

/* A growing text or byte buffer. Zero-initialise it; a failed growth sets `failed` and drops what follows, so that a
 * writer checks once at the end. The memory is malloc's; free with proto_buffer_free or hand `data` to free(). */
typedef struct proto_buffer {
    char *data;
    size_t bytes, capacity;
    bool failed;
} proto_buffer;

void proto_buffer_free(proto_buffer *buffer);
void proto_buffer_add(proto_buffer *buffer, const void *data, size_t bytes);
/* Keep the first bytes only, and give back the memory of the others. */
void proto_buffer_trim(proto_buffer *buffer, size_t bytes);

/* ---- options: one name everywhere -------------------------------------------------------------------------------- */

/* Rows are in request.def: PROTO_OPTION and PROTO_INCLUDE. */
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

/* What requests may name: the built-in sets and presets, and whatever else the caller knows. */
typedef struct proto_catalog {
    void *context;
    /* A new reference to the set of that name. Errors: BX_INVALID "unknown_priors" with the nearest known name, and
     * whatever making it may say. */
    bx_status (*priors)(void *context, const char *name, const bx_priors **out, bx_error *error);
    /* A copy of the criterion of that name, the caller's. Errors: BX_INVALID "unknown_criterion", BX_NOMEM. */
    bx_status (*criterion)(void *context, const char *name, bx_criterion **out, bx_error *error);
} proto_catalog;

/* The built-in sets (made anew each time) and the presets. */
extern const proto_catalog proto_catalog_builtin;

/* What a body may cost to decode, and what it may use. */
typedef struct proto_limits {
    size_t json_memory; /* heap bytes of one JSON document besides its numbers */
    /* Asked before so many bytes more are taken for a JSON document or a caller's prior boxes, for as long as the call
     * lasts; what it returns but BX_OK is the call's failure. NULL: nobody is asked. */
    bx_status (*reserve)(void *context, size_t bytes, bx_error *error);
    /* Shared memory that an inference names: `bytes` bytes from `offset` on of a region of the caller's are at *data,
     * and the region is the *index-th of this request's, as long as the request is. Somebody else may write to them at
     * any time. NULL: there is no shared memory. */
    bx_status (*region)(void *context, const char *name, size_t offset, size_t bytes, int *index, const void **data,
                        bx_error *error);
    void *context;
} proto_limits;

#define PROTO_N_OUTPUTS 10

/* A place in shared memory. */
typedef struct proto_shared {
    char region[64];
    int index; /* of the region, as proto_limits says it */
    size_t offset, bytes;
} proto_shared;

/* What an inference wants besides the options. */
typedef struct proto_infer {
    char *id;                       /* to be echoed; malloc's; NULL: none */
    unsigned outputs;               /* a bit for each that is named; 0: all there are */
    uint8_t order[PROTO_N_OUTPUTS]; /* as they are named */
    unsigned binary;                /* those that are sent as bytes, not as JSON */
    unsigned shared;                /* those that are written to shared memory; `places` says where */
    proto_shared places[PROTO_N_OUTPUTS];
} proto_infer;

#define PROTO_RUN_LENGTH 64                 /* characters of a run's name */
#define PROTO_MOST_STEP  ((int64_t)1 << 53) /* beyond it not every reader of JSON tells two integers apart */

/* A decoded request. `batch` views the body (binary predictions) and `memory` (everything that had to be converted),
 * so the body must outlive the request. */
typedef struct proto_request {
    proto_task task;
    proto_encoding encoding;
    bx_criterion *criterion;
    const bx_priors *priors;        /* a reference */
    char device[16];                /* "auto", "cpu", "cuda", "cuda:N" */
    unsigned include;               /* PROTO_INCLUDE_... */
    bx_gradients gradients;         /* what `include` asks for */
    char run[PROTO_RUN_LENGTH + 1]; /* where the result is to be recorded; empty: nowhere */
    int64_t step;                   /* of the run */
    int32_t label_base;             /* of the annotations and of the answer; labels in `batch` are zero-based */
    bx_batch batch;
    proto_infer infer;
    void *memory[6];     /* malloc's */
    size_t memory_bytes; /* heap bytes of this request, besides a prior set it shares */
} proto_request;

/* Decode a body; `query` options override those in the body. On success the caller frees with proto_request_free; on
 * failure *request is untouched. Errors: BX_MALFORMED (not JSON, not safetensors), BX_INVALID (unknown or unsupported
 * members and options, wrong types), BX_SHAPE, BX_TOO_LARGE (json_memory exceeded), BX_NOMEM. */
BX_MUST_USE bx_status proto_request_decode(proto_request *request, proto_task task, proto_encoding encoding,
                                           const void *body, size_t bytes, const proto_option *query, size_t n_query,
                                           const proto_catalog *catalog, const proto_limits *limits, bx_error *error);
/* The same of an inference with the criterion `model`; the JSON is the first `json_bytes` bytes of the body (-1: all of
 * it), tensors follow it. Errors also: BX_MALFORMED for what the protocol does not allow. */
BX_MUST_USE bx_status proto_infer_decode(proto_request *request, const char *model, int64_t json_bytes,
                                         const void *body, size_t bytes, const proto_option *query, size_t n_query,
                                         const proto_catalog *catalog, const proto_limits *limits, bx_error *error);
void proto_request_free(proto_request *request);

/* How much of a safetensors body of `bytes` must be in before proto_request_decode may be called on it: everything but
 * the predictions, which it does not read. 0 when too little has been received to tell. */
size_t proto_request_prefix(const void *body, size_t received, size_t bytes);

/* The same of an inference whose JSON ends there; all of the body when some of the predictions stand in the JSON. */
size_t proto_infer_prefix(const void *body, size_t received, size_t bytes, int64_t json_bytes);

/* The wire form of error->path for this encoding: a JSON pointer ("/annotations/3/boxes/7") or a tensor and index
 * ("boxes[19]"). `request` is NULL when decoding failed, else it turns an image's object into the batch's. Empty when
 * there is no path. */
void proto_pointer(char out[160], const proto_request *request, proto_encoding encoding, const bx_error *error);

/* ---- JSON text --------------------------------------------------------------------------------------------------- */

/* A writer of JSON text. Keys are NULL inside arrays, and otherwise words without anything to escape. Numbers are
 * written with the fewest digits that read back the same; what is not finite is written as null. */
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
/* Elements of the array that is open. */
void proto_write_floats(proto_writer *writer, const float *values, size_t n);
void proto_write_ints(proto_writer *writer, const int32_t *values, size_t n);
void proto_write_bool(proto_writer *writer, const char *key, bool value);
void proto_write_null(proto_writer *writer, const char *key);

/* ---- answers ----------------------------------------------------------------------------------------------------- */

typedef struct proto_timing {
    double receive_ms, queue_ms, compute_ms;
} proto_timing;

/* Encode the result of a request (API answer of /v1/loss or /v1/match) as JSON or as a safetensors file. Appends to
 * `out`, or leaves its bytes as they were. request->device, where the caller puts what computed it, is answered as it
 * is; "auto" as "cpu". Errors: BX_NOMEM, and BX_TOO_LARGE when proto_answer_bytes exceeds max_bytes. */
BX_MUST_USE bx_status proto_answer_encode(proto_buffer *out, proto_encoding accept, const proto_request *request,
                                          const bx_result *result, const proto_timing *timing, const char *request_id,
                                          size_t max_bytes, bx_error *error);
/* An upper bound of its size with gradients of n_rows rows (bx_job_gradient_rows; 0 is known before any work is done);
 * for a request_id of at most 256 bytes. */
size_t proto_answer_bytes(const proto_request *request, const bx_plan *plan, int64_t n_rows, proto_encoding accept);

/* How an inference's answer lies in a buffer. */
typedef struct proto_infer_layout {
    size_t json_bytes; /* the JSON's where bytes of tensors follow it, else 0 */
    size_t sent_bytes; /* to be sent; what follows them is for shared memory */
    int n_shared;
    struct {
        proto_shared place;
        size_t at; /* in the buffer; place.bytes are as many as there are */
    } shared[PROTO_N_OUTPUTS];
} proto_infer_layout;

/* The same for an inference. Errors also: BX_INVALID "shared_memory": a place is too small. */
BX_MUST_USE bx_status proto_infer_encode(proto_buffer *out, proto_infer_layout *layout, const proto_request *request,
                                         const bx_result *result, const proto_timing *timing, const char *request_id,
                                         size_t max_bytes, bx_error *error);

/* What POST /v2/systemsharedmemory/region/{name}/register asks for. */
typedef struct proto_registration {
    char key[256]; /* cut if it is longer */
    size_t offset, bytes;
} proto_registration;

/* Errors: BX_MALFORMED, BX_INVALID, BX_TOO_LARGE, BX_NOMEM. */
BX_MUST_USE bx_status proto_registration_read(proto_registration *registration, const void *body, size_t bytes,
                                              const proto_limits *limits, bx_error *error);

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
/* The same as the Open Inference Protocol has it: {"error": "..."}. */
void proto_infer_error(proto_buffer *out, const char *pointer, const char *detail);
/* Turn a problem document into that form; failed when there is no memory. */
void proto_infer_problem(proto_buffer *problem);

/* One row of the lists of GET /v1/priors and GET /v1/criteria, and what GET .../{name} answers. */
void proto_priors_row(proto_writer *writer, const bx_priors *priors);
void proto_priors_describe(proto_buffer *out, const bx_priors *priors);
void proto_priors_tensor(proto_buffer *out, const bx_priors *priors);
void proto_criterion_row(proto_writer *writer, const bx_criterion *criterion);
/* The whole object; proto_criterion_read takes it back. */
void proto_criterion_describe(proto_buffer *out, const bx_criterion *criterion);

/* ---- definitions ------------------------------------------------------------------------------------------------- */

/* [A-Za-z0-9._-]{1,64}. Errors: BX_INVALID "invalid_option". */
BX_MUST_USE bx_status proto_run_check(const char *name, bx_error *error);
/* [A-Za-z0-9][A-Za-z0-9._-]{0,62}. Errors: BX_INVALID "invalid_name". */
BX_MUST_USE bx_status proto_name_check(const char *name, bx_error *error);
/* The body of PUT /v1/criteria/{name}: a criterion object, its base taken from the catalog. The caller frees it with
 * bx_criterion_free. Errors: BX_MALFORMED json_*, BX_INVALID, BX_TOO_LARGE, BX_NOMEM. */
BX_MUST_USE bx_status proto_criterion_read(bx_criterion **criterion, const char *name, const void *body, size_t bytes,
                                           const proto_catalog *catalog, const proto_limits *limits, bx_error *error);
/* The body of PUT /v1/priors/{name}: a generator object or {"priors": [[cx,cy,w,h],...]} as JSON, or a safetensors file
 * with the tensor `priors`. The caller drops the reference with bx_priors_free. */
BX_MUST_USE bx_status proto_priors_read(const bx_priors **priors, const char *name, proto_encoding encoding,
                                        const void *body, size_t bytes, const proto_limits *limits, bx_error *error);

/* ---- runs -------------------------------------------------------------------------------------------------------- */

enum {
#define PROTO_STEP(id, name, type) PROTO_STEP_##id,
#include "step.def"
    PROTO_N_STEP
};

#define PROTO_IOU_BINS 10

/* A step of a run. What is not known is NaN; counts are whole numbers, exact in doubles. */
typedef struct proto_step {
    int64_t step, time_us; /* since 1970 */
    double values[PROTO_N_STEP];
    bool has_objects; /* the next member is known */
    int32_t best_iou[PROTO_IOU_BINS];
} proto_step;

/* A run, as lists have it. */
typedef struct proto_run {
    char name[PROTO_RUN_LENGTH + 1];
    int64_t steps, first_step, last_step; /* steps > 0 */
    int64_t first_us, last_us;            /* when the first result came, and the last one */
    double last_loss;                     /* of the last step */
} proto_run;

/* What a result is recorded as; the time is the caller's to set. */
void proto_step_make(proto_step *step, const proto_request *request, const bx_result *result,
                     const proto_timing *timing);
/* An element of an array of runs; and the whole document of one with its last step. */
void proto_run_row(proto_writer *writer, const proto_run *run);
void proto_run_describe(proto_buffer *out, const proto_run *run, const proto_step *latest);
/* An element of an array of steps; the first line of the CSV file (RFC 4180) and one more. */
void proto_step_row(proto_writer *writer, const proto_step *step);
void proto_steps_csv_head(proto_buffer *out);
void proto_step_csv(proto_buffer *out, const proto_step *step);
/* An integer option of a query, from `least` to `most`; *value stays when it is not given. Errors: BX_INVALID. */
BX_MUST_USE bx_status proto_query_integer(const proto_option *query, size_t n_query, const char *name, int64_t least,
                                          int64_t most, int64_t *value, bx_error *error);
/* Whether every option of a query is one of `known` (until NULL), and none is given twice. Errors: BX_INVALID
 * "unknown_member", "duplicate_option". */
BX_MUST_USE bx_status proto_query_check(const proto_option *query, size_t n_query, const char *const *known,
                                        bx_error *error);

/* ---- models: what the Open Inference Protocol tells of criteria -------------------------------------------------- */

/* Since the start. Times are of what succeeded, but the last. */
typedef struct proto_model_statistics {
    int64_t last_ms; /* since 1970; 0: never */
    int64_t successes, failures;
    int64_t queue_ns, input_ns, infer_ns, output_ns, fail_ns;
} proto_model_statistics;

/* Each appends a document, but the last, which is one element of an array; check out->failed. */
void proto_server_describe(proto_buffer *out, const char *version, bool shared_memory);
void proto_model_describe(proto_buffer *out, const char *name);
void proto_model_configure(proto_buffer *out, const char *name, int64_t max_request_bytes);
void proto_model_statistics_row(proto_writer *writer, const char *name, const proto_model_statistics *statistics);

/* ---- content codings --------------------------------------------------------------------------------------------- */

typedef enum proto_coding { PROTO_IDENTITY, PROTO_GZIP, PROTO_DEFLATE } proto_coding;

/* As HTTP writes it; NULL for identity. */
const char *proto_coding_name(proto_coding coding);

typedef struct proto_inflater proto_inflater;

#define PROTO_INFLATER_BYTES ((size_t)48 << 10) /* of heap, at most */

/* NULL: no memory. Free it with proto_inflater_free. */
proto_inflater *proto_inflater_new(proto_coding coding);
void proto_inflater_free(proto_inflater *inflater);
/* The next bytes of the body, which must stay until they are taken: until it comes to less than `room`. */
void proto_inflater_give(proto_inflater *inflater, const void *data, size_t bytes);
/* Errors: BX_MALFORMED "content_encoding", BX_NOMEM. */
BX_MUST_USE bx_status proto_inflater_take(proto_inflater *inflater, void *out, size_t room, size_t *bytes,
                                          bx_error *error);
/* Whether the body may end here. */
BX_MUST_USE bx_status proto_inflater_end(const proto_inflater *inflater, bx_error *error);

#define PROTO_DEFLATER_BYTES ((size_t)272 << 10) /* of heap, at most, besides the room */

/* Append the coded form if it has at most `room` bytes; false: it has more, or there is no memory, and nothing is
 * appended. */
BX_MUST_USE bool proto_deflate(proto_buffer *out, proto_coding coding, const void *data, size_t bytes, size_t room);

/* Process-wide set-up: JSON allocation budget and hash seed. Call once, before any thread starts and any decoding;
 * without it json_memory bounds nothing. */
void proto_init(void);

#endif
