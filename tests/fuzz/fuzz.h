/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every fuzz target shares. A target is one file with LLVMFuzzerTestOneInput: libFuzzer calls it (make fuzz), or
 * replay.c with what is kept in corpus/ and regressions/ (make fuzz-regress). A target fails by a sanitizer's finding
 * or by CHECK; whatever the bytes are, it returns 0.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- an input as choices ----------------------------------------------------------------------------------------- */

/* What is left of an input; past its end there are zeros. */
typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

static inline uint32_t take(bytes *b) {
    return b->at < b->end ? *b->at++ : 0;
}
/* 0 .. n-1, n <= 256 */
static inline int32_t take_below(bytes *b, int32_t n) {
    return (int32_t)(take(b) % (uint32_t)n);
}

static inline uint32_t next_number(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u;
}

/* Where something is cut: behind a few bytes, or up to a quarter of the whole, in turns; what is `left` of the cuts 0,
 * behind the rest. Returns the length of the next piece of what has `n` bytes and more than `at` of them to come. */
typedef struct cuts {
    uint32_t state;
    int left;
} cuts;

static inline size_t cut(cuts *c, size_t n, size_t at) {
    const uint32_t made = next_number(&c->state) >> 8;
    const size_t piece = c->left-- > 0 ? 1 + made / 4 % (made & 3 ? 8 : n / 4 + 1) : n;
    return piece < n - at ? piece : n - at;
}

/* A copy of a part of an input in memory of exactly its size, so that a sanitizer sees a read beyond it. Free it. */
static inline char *exact(const void *data, size_t n) {
    char *copy = malloc(n > 0 ? n : 1);
    CHECK(copy, "no memory");
    if (n > 0) {
        memcpy(copy, data, n);
    }
    return copy;
}

/* The same as text: up to its first NUL. */
static inline char *exact_text(const void *data, size_t n) {
    char *copy = malloc(n + 1);
    CHECK(copy, "no memory");
    memcpy(copy, data, n);
    copy[n] = '\0';
    char *text = exact(copy, strlen(copy) + 1);
    free(copy);
    return text;
}

/* ---- jansson as an oracle ---------------------------------------------------------------------------------------- */

/* Between these two jansson allocates as it likes; whatever it made must be freed there. Proto reads nothing then. */
static inline void oracle_begin(void) {
    json_set_alloc_funcs(malloc, free);
}
static inline void oracle_end(void) {
    proto_init();
}

/* All of a text must be JSON of any kind. */
static inline void check_json(const char *text, size_t n) {
    json_error_t cause;
    oracle_begin();
    json_t *root = json_loadb(text, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &cause);
    CHECK(root, "no JSON at byte %d (%s): %.*s", cause.position, cause.text, (int)n, text);
    json_decref(root);
    oracle_end();
}

/* ---- what decoding may use --------------------------------------------------------------------------------------- */

#define FUZZ_MEMORY ((size_t)8 << 20)

/* An allowance like the daemon's budget. */
static inline bx_status fuzz_reserve(void *context, size_t bytes, bx_error *error) {
    size_t *left = context;
    if (bytes > *left) {
        return bx_fail(error, BX_BUSY, "memory_full", "%zu bytes are not left", bytes);
    }
    *left -= bytes;
    return BX_OK;
}

static inline proto_limits fuzz_limits(size_t *left) {
    *left = FUZZ_MEMORY;
    return (proto_limits){.json_memory = (size_t)1 << 20, .reserve = fuzz_reserve, .context = left};
}

/* Shared memory: a region "r" of 4 KiB. */
static inline bx_status fuzz_region(void *context, const char *name, size_t offset, size_t bytes, int *index,
                                    const void **data, bx_error *error) {
    static uint8_t region[4096];
    (void)context;
    for (size_t i = 0; region[2] == 0 && i < sizeof region; i += 4) {
        memcpy(region + i, &(float){0.5f}, 4);
    }
    if (strcmp(name, "r") != 0 || offset > sizeof region || bytes > sizeof region - offset) {
        return bx_fail(error, BX_INVALID, "shared_memory", "no such place: \"%.64s\" %zu %zu", name, offset, bytes);
    }
    *index = 0;
    *data = region + offset;
    return BX_OK;
}

/* Every name of a built-in set is the same small one: making the real ones again and again would take all the time. */
static inline bx_status fuzz_priors(void *context, const char *name, const bx_priors **out, bx_error *error) {
    static const float boxes[4][4] = {
        {.25f, .25f, .5f, .5f}, {.75f, .25f, .5f, .5f}, {.5f, .5f, .5f, .75f}, {.5f, .75f, .25f, .25f}};
    static bx_priors *set;
    (void)context;
    if (strncmp(name, "ssd300", 6) != 0) {
        return strlen(name) <= 10 ? proto_catalog_builtin.priors(NULL, name, out, error)
                                  : bx_fail(error, BX_INVALID, "unknown_priors", "no set \"%.64s\"", name);
    }
    if (!set) {
        CHECK(bx_priors_new(&set, boxes, 4, NULL) == BX_OK, "no priors");
    }
    *out = bx_priors_ref(set);
    return BX_OK;
}

static inline bx_status fuzz_criterion(void *context, const char *name, bx_criterion **out, bx_error *error) {
    (void)context;
    return proto_catalog_builtin.criterion(NULL, name, out, error);
}

static const proto_catalog fuzz_catalog = {.priors = fuzz_priors, .criterion = fuzz_criterion};

/* ---- outcomes ---------------------------------------------------------------------------------------------------- */

/* A refusal says what is wrong, and never that we are. */
static inline void check_refusal(bx_status status, const bx_error *error, const proto_request *request,
                                 proto_encoding encoding) {
    char pointer[160];
    CHECK(status != BX_INTERNAL, "internal: %s", error->text);
    CHECK(status == error->status && error->code[0] && error->text[0], "status %d, error %d \"%s\" \"%s\"", (int)status,
          (int)error->status, error->code, error->text);
    CHECK(strcmp(error->code, "internal") != 0, "internal: %s", error->text);
    memset(pointer, 'x', sizeof pointer);
    proto_pointer(pointer, request, encoding, error);
    CHECK(memchr(pointer, '\0', sizeof pointer), "a pointer without end");
    proto_buffer out = {0};
    proto_problem_encode(&out, &(proto_problem){400, "Bad Request", error->code, error->text, pointer, "id"});
    CHECK(!out.failed, "no memory");
    check_json(out.data, out.bytes);
    proto_infer_problem(&out);
    CHECK(!out.failed, "no memory");
    check_json(out.data, out.bytes);
    proto_buffer_free(&out);
}

/* How a request is to be decoded. */
typedef struct decoding {
    proto_task task;
    proto_encoding encoding;
    const char *model;  /* of an inference */
    int64_t json_bytes; /* the same */
    const proto_option *query;
    size_t n_query;
    proto_limits limits;
} decoding;

/* Decode, and hold it to what proto.h says of failures. The caller frees the request when this is true. */
static inline bool decodes(proto_request *request, const decoding *how, const void *body, size_t n) {
    proto_request before;
    bx_error error = {0};
    memset(&before, 0x5a, sizeof before);
    memcpy(request, &before, sizeof before);
    bx_status status = how->encoding == PROTO_INFER
                           ? proto_infer_decode(request, how->model, how->json_bytes, body, n, how->query, how->n_query,
                                                &fuzz_catalog, &how->limits, &error)
                           : proto_request_decode(request, how->task, how->encoding, body, n, how->query, how->n_query,
                                                  &fuzz_catalog, &how->limits, &error);
    if (status != BX_OK) {
        CHECK(memcmp(&before, request, sizeof before) == 0, "a failure changed the request");
        check_refusal(status, &error, NULL, how->encoding);
    }
    return status == BX_OK;
}

/* Look at all a decoded request has, so that a sanitizer sees what is not there. */
static inline void look_at(const proto_request *r) {
    const bx_batch *b = &r->batch;
    const size_t rows = (size_t)b->n_images * (size_t)b->n_priors;
    volatile float sum = 0;
    float value;
    CHECK(b->n_images > 0 && r->priors && r->criterion, "%d images", (int)b->n_images);
    for (size_t i = 0; b->loc.data && i < rows * 4; i++) {
        bx_tensor_to_f32(&value, b->loc, i, 1);
        sum = sum + value;
    }
    for (size_t i = 0; b->conf.data && i < rows * (size_t)b->n_columns; i++) {
        bx_tensor_to_f32(&value, b->conf, i, 1);
        sum = sum + value;
    }
    CHECK(!b->first || b->first[0] == 0, "first");
    for (int32_t i = 0; b->first && i < b->n_images; i++) {
        CHECK(b->first[i] <= b->first[i + 1], "objects of image %d", (int)i);
        for (int32_t g = b->first[i]; g < b->first[i + 1]; g++) {
            sum = sum + b->boxes[4 * g] + b->boxes[4 * g + 3] + (float)b->labels[g];
        }
    }
}

#endif
