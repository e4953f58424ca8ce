/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding alone: reads one JSON body of /v1/loss again and again, by proto and by jansson's json_loadb in turn, from
 * several copies of the body so that they do not stay in the cache. Prints one JSON line: medians in milliseconds,
 * bytes of the body and of the tensors in it, and the most bytes of heap that each had besides the body.
 *
 * Usage: json FILE REPEATS
 */
#include <jansson.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto.h"

enum { COPIES = 4, MAX_REPEATS = 1001 };

/* ---- heap -------------------------------------------------------------------------------------------------------- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *data, size_t bytes);
void __libc_free(void *data);

static size_t held, most;

static void *hold(void *data) {
    held += data ? malloc_usable_size(data) : 0;
    most = held > most ? held : most;
    return data;
}

/* These stand in for the C library's. */
void *malloc(size_t bytes) {
    return hold(__libc_malloc(bytes));
}
void *calloc(size_t n, size_t bytes) {
    return hold(__libc_calloc(n, bytes));
}
void *realloc(void *data, size_t bytes) {
    const size_t old = data ? malloc_usable_size(data) : 0;
    void *made = __libc_realloc(data, bytes);
    held -= made ? old : 0;
    return hold(made);
}
void free(void *data) {
    held -= data ? malloc_usable_size(data) : 0;
    __libc_free(data);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times, int n) {
    qsort(times, (size_t)n, sizeof *times, by_value);
    return times[n / 2];
}

static void die(const char *what) {
    fprintf(stderr, "json: %s\n", what);
    exit(1);
}

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        die(path);
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes);
    if (!data || fread(data, 1, *bytes, file) != *bytes) {
        die(path);
    }
    fclose(file);
    return data;
}

/* ---- the two ----------------------------------------------------------------------------------------------------- */

typedef struct side {
    double times[MAX_REPEATS];
    size_t peak;
} side;

/* Returns the bytes of the tensors. */
static size_t run_proto(side *s, int turn, const char *body, size_t bytes) {
    const proto_limits limits = {.json_memory = SIZE_MAX / 2};
    proto_request request;
    bx_error error = {0};
    proto_init();
    const size_t before = most = held;
    const double start = now_ms();
    bx_status status = proto_request_decode(&request, PROTO_LOSS, PROTO_JSON, body, bytes, NULL, 0,
                                            &proto_catalog_builtin, &limits, &error);
    s->times[turn] = now_ms() - start;
    s->peak = most - before;
    if (status) {
        die(error.text);
    }
    const bx_batch *batch = &request.batch;
    const size_t row = (4 + (size_t)batch->n_columns) * sizeof(float);
    const size_t tensors = (size_t)batch->n_images * (size_t)batch->n_priors * row;
    proto_request_free(&request);
    return tensors;
}

static void run_jansson(side *s, int turn, const char *body, size_t bytes) {
    json_set_alloc_funcs(malloc, free);
    const size_t before = most = held;
    const double start = now_ms();
    json_t *root = json_loadb(body, bytes, JSON_REJECT_DUPLICATES, NULL);
    s->times[turn] = now_ms() - start;
    s->peak = most - before;
    if (!root) {
        die("jansson refuses the body");
    }
    json_decref(root);
}

int main(int n, char **arguments) {
    static side proto, jansson;
    const int repeats = n == 3 ? atoi(arguments[2]) : 0;
    if (repeats < 1 || repeats > MAX_REPEATS) {
        die("usage: json FILE REPEATS");
    }
    size_t bytes, tensors = 0;
    char *copies[COPIES];
    for (int i = 0; i < COPIES; i++) {
        copies[i] = read_file(arguments[1], &bytes);
    }
    for (int turn = 0; turn < repeats; turn++) {
        tensors = run_proto(&proto, turn, copies[turn % COPIES], bytes);
        run_jansson(&jansson, turn, copies[turn % COPIES], bytes);
    }
    printf("{\"bytes\": %zu, \"tensor_bytes\": %zu, \"decode_ms\": %.3f, \"jansson_ms\": %.3f, \"peak_bytes\": %zu, "
           "\"jansson_peak_bytes\": %zu}\n",
           bytes, tensors, median(proto.times, repeats), median(jansson.times, repeats), proto.peak, jansson.peak);
    for (int i = 0; i < COPIES; i++) {
        free(copies[i]);
    }
    return 0;
}
