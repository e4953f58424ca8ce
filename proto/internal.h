/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared inside proto only. Two formats (a JSON tree, a safetensors file) know nothing of losses; two readers turn them
 * into one draft of a request; request.c resolves the names a draft holds.
 */
#ifndef PROTO_INTERNAL_H
#define PROTO_INTERNAL_H

#include <string.h>

#include "proto.h"

/* ---- buffer (writer.c) ------------------------------------------------------------------------------------------- */

/* Room for `bytes` more; false and buffer->failed when there is none. */
bool proto_buffer_reserve(proto_buffer *buffer, size_t bytes);

/* ---- numbers as text (number.c) ---------------------------------------------------------------------------------- */

typedef enum proto_number_kind {
    PROTO_NUMBER_REAL,    /* with a fraction or an exponent */
    PROTO_NUMBER_INTEGER, /* without, and it is one of int64_t */
    PROTO_NUMBER_LONG,    /* without, and it is not */
} proto_number_kind;

typedef struct proto_number {
    double value;    /* the nearest; infinite beyond the largest; -0 keeps its sign */
    int64_t integer; /* of PROTO_NUMBER_INTEGER; otherwise untouched */
    proto_number_kind kind;
} proto_number;

/* Read the JSON number (RFC 8259) that begins at `text`; never looks at `end` or beyond. Returns where it ends, and
 * what may stand there is for the caller to say; NULL when there is none. Linear in the text's length. */
const char *proto_number_read(const char *text, const char *end, proto_number *number);

/* Room that the following need: they store more than the text. That has at most 24 bytes (a double), 15 (a float) or 20
 * (an integer), and no terminator. */
#define PROTO_NUMBER_ROOM 32

/* Write a finite number with the fewest digits that read back the same, the nearest to it of those, set as by %g with
 * that precision, but not less than 15 for a double and 6 for a float; returns the size of the text. A float's reads
 * back as (float)strtod. */
size_t proto_number_write_double(char *out, double value);
size_t proto_number_write_float(char *out, float value);
size_t proto_number_write_int(char *out, int64_t value);

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
/* Of an integer or a real. */
double proto_json_number(const proto_node *number);
bool proto_json_bool(const proto_node *boolean);
/* Read an array of numbers; stops at the first element that is not one. Returns how many were read. */
size_t proto_json_floats(const proto_node *array, float *out);
size_t proto_json_doubles(const proto_node *array, double *out);

/* Iterate an object: start from *iterator == NULL; false at the end. */
bool proto_json_next(const proto_node *object, void **iterator, const char **name, const proto_node **value);

/* ---- JSON text (json.c, scan.c, safetensors.c) ------------------------------------------------------------------- */

static inline bool proto_is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static inline const char *proto_skip_space(const char *at, const char *end) {
    while (at < end && proto_is_space(*at))
        at++;
    return at;
}

/* Whether the text goes on with `word`. */
static inline bool proto_begins(const char *at, const char *end, const char *word) {
    const size_t n = strlen(word);
    return (size_t)(end - at) >= n && memcmp(at, word, n) == 0;
}

/* ---- JSON documents: a tree, and arrays of numbers beside it (json.c, scan.c) -------------------------------------
 */

#define PROTO_MAX_AXES  3
#define PROTO_MAX_STEPS 3

/* Where documents have an array of numbers, nested or as {"shape": [...], "data": [numbers]}. */
typedef struct proto_place {
    const char *steps[PROTO_MAX_STEPS]; /* members from the root on; "": every element of an array; NULL: the end */
    /* what numbers become: F32, F64, I64, I32, or BOOL, which true and false are; BX_N_DTYPES: what the string says
     * that is the member `datatype` of the same object, wherever in it (proto_datatype_stored) */
    bx_dtype dtype;
    int axes, fewest_axes; /* if fewer are possible, the brackets it begins with tell */
    int64_t last;          /* the length of the innermost arrays; 0: of the first one */
} proto_place;

/* The first thing wrong with an array, in the order of the text. */
typedef enum proto_fault_kind {
    PROTO_FAULT_NONE,
    PROTO_FAULT_RAGGED,   /* an array of another length than the first at its depth */
    PROTO_FAULT_MISPLACED /* what is no array where there should be one, or no number of the type at the last axis */
} proto_fault_kind;

typedef struct proto_fault {
    proto_fault_kind kind;
    int axes; /* where: at[0 .. axes) */
    size_t at[PROTO_MAX_AXES];
    int64_t length, wanted; /* of ragged arrays; wanted -1: none was there before */
} proto_fault;

/* An array at a place. */
typedef struct proto_numbers {
    const proto_place *place;
    bx_dtype dtype; /* of the numbers */
    bool flat;      /* the data of {"shape", "data"} */
    int axes;
    int64_t shape[PROTO_MAX_AXES]; /* -1: no array is that deep. After a fault only the first is what it should be */
    size_t first;                  /* element in the store of its type */
    proto_fault fault;
} proto_numbers;

/* Elements of one type, of all arrays in the order of the text. */
typedef struct proto_store {
    void *data; /* malloc's */
    size_t n, capacity;
} proto_store;

typedef struct proto_document {
    proto_node *root;
    proto_numbers *arrays; /* malloc's */
    size_t n_arrays, capacity;
    proto_store stores[BX_N_DTYPES];
    size_t tree_bytes; /* of heap, at most, that root has */
} proto_document;

/* Read the JSON object that is all of `text`; or, with the name of a member that bodies may have, its value. `places`
 * end with one without steps; NULL: none. Numbers at the places become what strtod makes of them, infinite where it
 * does; elsewhere they must be in range. What is JSON is jansson's to say everywhere. All heap is asked for in steps.
 * Errors: as proto_json_parse, and what limits->reserve says. */
BX_MUST_USE bx_status proto_document_read(proto_document *document, const char *text, size_t bytes, const char *member,
                                          const proto_place *places, const proto_limits *limits, bx_error *error);
/* In the thread that read it. */
void proto_document_fini(proto_document *document);
/* What is instead of the array `node`, which is at a place. */
const proto_numbers *proto_document_numbers(const proto_document *document, const proto_node *node);
/* The culprit of a misplaced fault. */
const proto_node *proto_document_culprit(const proto_node *node);

/* A piece of the text for the parser, and what it is to read before it. */
typedef struct proto_piece {
    char before[24];
    const char *begin, *end;
} proto_piece;

/* What the parser is to read instead of a text: arrays at the places become [index, what is no number...]. */
typedef struct proto_scan {
    proto_piece *pieces; /* malloc's */
    size_t n, capacity;
    const char *not_a_number; /* the first NaN or Infinity outside strings, or NULL */
    const char *too_deep;     /* the bracket that opens one level more than PROTO_JSON_DEPTH, or NULL */
    bool stopped;             /* the last piece begins with what is not JSON there */
} proto_scan;

/* Fill the document's arrays and stores. False when there is no memory (proto_json_grow). */
BX_MUST_USE bool proto_scan_text(proto_scan *scan, proto_document *document, const char *text, size_t bytes,
                                 const char *member, const proto_place *places);
/* Whether the text of a JSON string, as it is written between its quotes, is `name`, which has only plain characters.
 */
bool proto_key_is(const char *key, const char *end, const char *name);
/* A list of the document that this thread reads, with room for one more element; NULL when there is none, and then the
 * old one is as it was. Numbers are not in the tree's budget. */
void *proto_json_grow(void *list, size_t n, size_t *capacity, size_t element, bool numbers);

/* ---- safetensors (safetensors.c) --------------------------------------------------------------------------------- */

#define PROTO_MAX_TENSORS 32
#define PROTO_MAX_RANK    8

typedef struct proto_tensor {
    const char *name;
    bx_dtype dtype;         /* BX_N_DTYPES: one we have no name for */
    bx_tensor view;         /* into the body, at any alignment; of that dtype, or of numbers in a wider one */
    size_t shared_bytes;    /* it lies in shared memory, which may change; 0: it does not */
    const char *dtype_name; /* as written */
    int rank;
    int64_t shape[PROTO_MAX_RANK];
    size_t begin, end;
} proto_tensor;

typedef struct proto_container {
    char *strings;                       /* the names of all tensors and dtypes, and the metadata */
    const char *metadata, *metadata_end; /* names and values in turn, each with its NUL; NULL: there is none */
    const char *data;
    size_t data_bytes;
    int n_tensors;
    proto_tensor tensors[PROTO_MAX_TENSORS];
} proto_container;

/* Check a whole file and list its tensors. Errors: BX_MALFORMED bin_*, BX_NOMEM. On success free with
 * proto_container_fini. */
BX_MUST_USE bx_status proto_container_read(proto_container *container, const void *body, size_t bytes, bx_error *error);
void proto_container_fini(proto_container *container);
/* The metadata's next pair, from *name == NULL; false at the end. */
bool proto_container_next(const proto_container *container, const char **name, const char **value);

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

/* ---- generators (generator.c) ------------------------------------------------------------------------------------ */

/* Read a generator object such as {"generator": "ssd", "image_size": 512, ...}; what is left out is the kind's default.
 * Types and lengths are checked here, values by bx_priors_generate. Errors: BX_INVALID "unknown_generator",
 * "unknown_member", "missing_member", "type_mismatch", "priors_conflict" (lists disagree about the number of levels),
 * BX_SHAPE; path "priors.<member>...". On failure *out is untouched. */
BX_MUST_USE bx_status proto_generator_read(bx_generator *out, const proto_node *object, bx_error *error);
/* The whole object; it reads back as the same recipe. */
void proto_generator_write(proto_writer *writer, const char *key, const bx_generator *generator);

/* ---- answers (answer.c, answer_tensors.c, infer_answer.c) -------------------------------------------------------- */

/* What is being answered. */
typedef struct proto_answer {
    const proto_request *request;
    const bx_result *result; /* NULL while only sizes are wanted */
    const bx_plan *plan;
    int64_t n_rows; /* of the gradients */
    bool loss;      /* there were predictions */
    bool objects;   /* there were annotations: statistics of objects mean something */
} proto_answer;

proto_answer proto_answer_of(const proto_request *request, const bx_plan *plan, const bx_result *result,
                             int64_t n_rows);

static inline bool proto_answer_wants(const proto_answer *answer, unsigned include) {
    return (answer->request->include & include) != 0;
}

/* A number of each prior: its class or its object. */
typedef int32_t (*proto_prior_value)(const bx_result *result, int32_t image, int32_t prior);

#define PROTO_CHUNK 1024 /* priors written at a time, between two looks at whether anybody still waits */

/* The numbers of an image's priors from `first` on; how many. */
int32_t proto_answer_cells(const proto_answer *answer, proto_prior_value value, int32_t image, int32_t first,
                           int32_t cells[PROTO_CHUNK]);

/* Where an output's numbers go. */
typedef struct proto_sink {
    proto_buffer *out;
    proto_writer *writer; /* NULL: as bytes; else as elements of the array that is open */
} proto_sink;

/* A tensor that answers may have. Shapes are of the letters N, P, C, M (rows of sparse gradients) and digits. */
typedef struct proto_output {
    const char *name;
    bx_dtype dtype;
    const char *shape, *dense; /* the second with dense gradients; NULL: it is not there then */
    unsigned include; /* any of these words brings it, the lowest where it is named itself; 0: it is always there */
    enum { PROTO_OUTPUT_OF_ALL, PROTO_OUTPUT_OF_LOSS, PROTO_OUTPUT_OF_OBJECTS } of; /* what it needs */
    void (*emit)(proto_sink *sink, const proto_answer *answer);
} proto_output;

/* The i-th, NULL past the end. */
const proto_output *proto_output_at(size_t i);
/* The tensors of this answer and which outputs they are; how many. */
int proto_answer_slots(const proto_answer *answer, proto_slot slots[PROTO_N_OUTPUTS], int ids[PROTO_N_OUTPUTS]);
/* Bytes of the tensors' data. */
size_t proto_answer_tensor_bytes(const proto_answer *answer);
/* The answer's text without its arrays, with its NUL, and at most how much that is. */
void proto_answer_text(proto_buffer *out, const proto_answer *answer, const proto_timing *timing,
                       const char *request_id);
size_t proto_answer_text_bytes(const proto_answer *answer);
/* An upper bound of the answer of an inference (infer_answer.c). */
size_t proto_infer_answer_bytes(const proto_answer *answer);
/* Append a whole safetensors file whose metadata string `result` is `text`. */
void proto_answer_tensors(proto_buffer *out, const proto_answer *answer, const char *text);

/* ---- dense arrays in JSON (dense.c) ------------------------------------------------------------------------------ */

/* A numeric array of a document, nested or flat. */
typedef struct proto_dense {
    const char *path;
    int axes;
    int64_t shape[PROTO_MAX_AXES];
    bx_dtype dtype;   /* of the numbers */
    const void *data; /* in the document's store */
} proto_dense;

/* The array that `node`, which is at a place, stands for; the path is the caller's. Errors: BX_INVALID "type_mismatch",
 * "label_range", "missing_member", "unknown_member"; BX_SHAPE "ragged_array", "shape". */
BX_MUST_USE bx_status proto_dense_read(proto_dense *dense, const proto_document *document, const proto_node *node,
                                       bx_error *error);
size_t proto_dense_count(const proto_dense *dense);

/* ---- inferences (infer.c, infer_tensor.c) ------------------------------------------------------------------------ */

/* What numbers in JSON become, of the datatype that the text of a string names; not I32. NULL: there is no such string.
 */
bx_dtype proto_datatype_stored(const char *begin, const char *end);
/* The protocol's name of a dtype. */
const char *proto_datatype_name(bx_dtype dtype);
/* Add to `include` what the outputs that are named need. Errors: BX_INVALID "invalid_option": they cannot be had so. */
BX_MUST_USE bx_status proto_infer_include(unsigned *include, unsigned outputs, bool with_targets, bx_error *error);
/* An input that a request may have, in the order of a list; false past the end. */
bool proto_input_at(size_t i, proto_slot *input, bool *optional);

/* ---- drafts (request.c, decode_json.c, decode_tensors.c, infer.c) ------------------------------------------------ */

enum {
#define PROTO_OPTION(id, name, tasks, kinds, text) PROTO_OPTION_##id,
#include "request.def"
    PROTO_N_OPTIONS
};

/* Where bodies have arrays of numbers. */
extern const proto_place proto_places[];

/* Options that may be JSON values and can be given as text. */
#define PROTO_MAX_TEXTS 3

/* What an option was given as: text, or a JSON value of a document; neither: not given. Borrowed. */
typedef struct proto_value {
    const char *text;
    const proto_node *node;
    const proto_document *document;
} proto_value;

/* A request while it is being read: shapes are checked, options are not resolved yet. */
typedef struct proto_draft {
    proto_task task;
    proto_encoding encoding;
    const proto_limits *limits;
    proto_value options[PROTO_N_OPTIONS];
    char digits[PROTO_N_OPTIONS][24];          /* the text of options given as JSON integers */
    proto_document documents[PROTO_MAX_TEXTS]; /* of options given as JSON text */
    int n_documents;
    const proto_tensor *priors;      /* (P,4); NULL: not given */
    const proto_tensor *image_sizes; /* (N,2); NULL: not given */
    bool with_targets;               /* instead of annotations */
    bx_tensor boxes_sent;            /* (G,4) */
    bx_batch batch;
    void *memory; /* malloc's; what the batch views of annotations */
    size_t memory_bytes;
    /* the writable parts of `memory` */
    int32_t *first;          /* (N+1) */
    int64_t *labels;         /* (G) as sent until proto_draft_place_objects */
    float *boxes;            /* (G,4) set by it */
    uint8_t *use;            /* (G) BX_OBJECT_USED, BX_OBJECT_IGNORED */
    proto_document document; /* of a JSON body, or part of one; predictions and targets are in its stores */
    proto_container container;
    void *copies;       /* of tensors in shared memory */
    proto_infer infer;  /* id: borrowed from the document */
    const char *model;  /* the criterion that the path names; NULL: the options name it */
    int64_t json_bytes; /* of an inference's body; -1: all of it */
} proto_draft;

/* Fill the draft from a body. What was allocated stays in the draft, also on failure. */
BX_MUST_USE bx_status proto_draft_json(proto_draft *draft, const void *body, size_t bytes, bx_error *error);
BX_MUST_USE bx_status proto_draft_tensors(proto_draft *draft, const void *body, size_t bytes, bx_error *error);
BX_MUST_USE bx_status proto_draft_infer(proto_draft *draft, const void *body, size_t bytes, bx_error *error);
/* From the draft's container: what the tensors are, in whatever body they came. */
BX_MUST_USE bx_status proto_draft_bind(proto_draft *draft, bx_error *error);

/* Allocate the draft's arrays and let the batch see them. */
BX_MUST_USE bx_status proto_draft_allocate(proto_draft *draft, size_t n_images, size_t n_objects, bx_error *error);
/* Check what loc (N,P,4) and conf (N,P,C), NULL in /v1/match, and the n_images of the annotations must have in common;
 * sets the batch's dims. */
BX_MUST_USE bx_status proto_draft_set_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3],
                                           size_t n_images, bx_error *error);
/* The same without annotations: targets are classes (N,P) and loc (N,P,4). */
BX_MUST_USE bx_status proto_draft_set_target_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3],
                                                  const int64_t target_classes[2], const int64_t target_loc[3],
                                                  bx_error *error);

/* ---- options (options.c, annotations.c) -------------------------------------------------------------------------- */

/* How boxes are written: two corners; a corner, width and height; centre, width and height. */
#define PROTO_BOX_FORMAT_ROWS(X)                                                                                       \
    X(XYXY, "xyxy")                                                                                                    \
    X(XYWH, "xywh")                                                                                                    \
    X(CXCYWH, "cxcywh")

typedef enum proto_box_format {
#define ROW(id, name) PROTO_BOX_FORMAT_##id,
    PROTO_BOX_FORMAT_ROWS(ROW)
#undef ROW
} proto_box_format;

/* How the annotations of a request are written. */
typedef struct proto_notation {
    proto_box_format format;
    bool drop;           /* boxes that are inverted or degenerate; otherwise they are refused later on */
    int32_t label_base;  /* the number of the first class */
    const double *sizes; /* (n_sizes,2) width and height that coordinates are shares of; NULL: of nothing */
    size_t n_sizes;      /* 1: of all images; or N */
} proto_notation;

/* The option of that name, which this request may have. Errors: BX_INVALID; the path is for the caller to say. */
BX_MUST_USE bx_status proto_draft_option(int *option, const proto_draft *draft, const char *name, bx_error *error);
/* Take the options of the query into the draft; they override those of the body. */
BX_MUST_USE bx_status proto_draft_query(proto_draft *draft, const proto_option *query, size_t n_query, bx_error *error);
/* Resolve what the draft's options say, and place its annotations. What was made stays in the request, also on failure,
 * for proto_request_free. */
BX_MUST_USE bx_status proto_draft_resolve(proto_draft *draft, proto_request *request, const proto_catalog *catalog,
                                          bx_error *error);
/* Turn the annotations as sent into objects of the batch: boxes in the native form of `iou`, zero-based labels, and
 * what becomes of each. */
void proto_draft_place_objects(proto_draft *draft, const proto_notation *notation, bx_iou iou);

/* Whether two words are the same; most words that are not differ in their first letters. */
static inline bool proto_same(const char *a, const char *b) {
    return *a == *b && strcmp(a, b) == 0;
}

/* The option of that name for this task, or -1. */
int proto_option_find(proto_task task, const char *name);
const char *proto_option_name(int option);
/* List names until NULL, for bx_nearest: the options of a task, and all its top-level JSON members. */
typedef const char *(*proto_names)(size_t i);
proto_names proto_options(proto_task task);
proto_names proto_members(proto_task task);

/* Refuse a name that `place` does not have: `code`,
 * with the nearest of `known` (NULL: no suggestion). */
bx_status proto_refuse(bx_error *error, const char *code, const char *place, const char *name, proto_names known);
/* Refuse a JSON value of another type: "type_mismatch". */
bx_status proto_mismatch(bx_error *error, const char *expected, const proto_node *got);
/* `name` as the last part of a path after `parent`; left out when it is not a plain word. */
bx_status proto_at_member(bx_error *error, const char *parent, const char *name);

/* Whether a text is an integer from `least` to `most`, in decimal digits; otherwise *value stays. */
bool proto_integer(const char *text, int64_t least, int64_t most, int64_t *value);

/* ---- definitions (definitions.c, criterion.c) -------------------------------------------------------------------- */

/* Whether a criterion object has a stage of that name. */
bool proto_is_stage(const char *name);
/* A criterion object; the caller frees it with bx_criterion_free. Paths begin with "criterion". */
BX_MUST_USE bx_status proto_criterion_object(bx_criterion **criterion, const char *name, const proto_node *object,
                                             const proto_catalog *catalog, bx_error *error);
/* A generator object, or boxes [[cx,cy,w,h],...]. The caller drops the reference. Paths begin with "priors". */
BX_MUST_USE bx_status proto_priors_from_value(bx_priors **priors, const proto_value *value, const proto_limits *limits,
                                              bx_error *error);
/* The tensor `priors` of a file that holds nothing else. */
BX_MUST_USE bx_status proto_find_priors(const proto_tensor **priors, const proto_container *container, bx_error *error);
/* The tensor (P,4). */
BX_MUST_USE bx_status proto_priors_from_tensor(bx_priors **priors, const proto_tensor *tensor,
                                               const proto_limits *limits, bx_error *error);
/* Ask whether so many bytes may be taken (proto_limits). */
BX_MUST_USE bx_status proto_reserve(const proto_limits *limits, size_t bytes, bx_error *error);

#endif
