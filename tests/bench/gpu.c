/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels on a GPU: computes one safetensors batch again and again, from so many copies of the predictions in the
 * GPU's memory that they do not stay in its cache, each copy's kernels launched as one graph; then end to end, from
 * pinned memory of the host. Prints one JSON line. Times are of the GPU's own events, medians of rounds; the bandwidth
 * they are measured by is that of a large copy within the GPU's memory, which reads and writes every byte.
 *
 * Usage: gpu FILE ROUNDS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"
#include "internal.h"
#include "proto.h"

#define FOOTPRINT ((size_t)512 << 20) /* of all copies: beyond four times the cache of any GPU there is */
#define COPIED    ((size_t)1 << 30)
enum { MOST_COPIES = 256, REPLAYS = 20 };

static void die(const char *what) {
    fprintf(stderr, "gpu: %s\n", what);
    exit(1);
}

static void check(cudaError_t code) {
    if (code != cudaSuccess) {
        die(cudaGetErrorString(code));
    }
}

static void sound(bx_status status, const bx_error *error) {
    if (status != BX_OK) {
        die(error->text);
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times, int n) {
    qsort(times, (size_t)n, sizeof *times, by_value);
    return times[n / 2];
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        die("cannot read the file");
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *data = aligned_alloc(4096, (*bytes + 4095) / 4096 * 4096);
    if (!data || fread(data, 1, *bytes, file) != *bytes) {
        die("cannot read the file");
    }
    fclose(file);
    return data;
}

/* Everything that a loss takes, when its inputs are there. */
static cudaError_t launch_all(const bx_cuda_args *args, size_t n_objects, cudaStream_t stream) {
    cudaError_t (*const kernels[])(const bx_cuda_args *, cudaStream_t) = {
        bx_cuda_match,
        bx_cuda_assign,
        bx_cuda_score,
        bx_cuda_check,
        args->mining.kind == BX_MINING_NONE ? NULL : bx_cuda_mine,
        bx_cuda_list,
        bx_cuda_reduce,
    };
    cudaError_t code = cudaMemsetAsync(args->best, 0, n_objects * sizeof *args->best, stream);
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels && code == cudaSuccess; i++) {
        code = kernels[i] ? kernels[i](args, stream) : code;
    }
    return code;
}

/* The kernels of one copy of the predictions, as a graph. */
static cudaGraphExec_t capture(bx_cuda_args args, size_t n_objects, cudaStream_t stream) {
    cudaGraph_t graph;
    cudaGraphExec_t whole;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    check(launch_all(&args, n_objects, stream));
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&whole, graph, 0));
    check(cudaGraphDestroy(graph));
    return whole;
}

static double elapsed_us(cudaEvent_t from, cudaEvent_t to) {
    float ms;
    check(cudaEventSynchronize(to));
    check(cudaEventElapsedTime(&ms, from, to));
    return 1e3 * (double)ms;
}

typedef struct copies {
    int n;
    void *conf[MOST_COPIES], *loc[MOST_COPIES];
    cudaGraphExec_t whole[MOST_COPIES];
} copies;

static void make_copies(copies *c, const bx_cuda_args *args, const bx_plan *plan, size_t conf, size_t loc,
                        cudaStream_t stream) {
    c->n = (int)(FOOTPRINT / (conf + loc)) + 2;
    c->n = c->n < MOST_COPIES ? c->n : MOST_COPIES;
    for (int i = 0; i < c->n; i++) {
        bx_cuda_args own = *args;
        check(cudaMalloc(&c->conf[i], conf));
        check(cudaMalloc(&c->loc[i], loc));
        check(cudaMemcpyAsync(c->conf[i], args->conf.data, conf, cudaMemcpyDeviceToDevice, stream));
        check(cudaMemcpyAsync(c->loc[i], args->loc.data, loc, cudaMemcpyDeviceToDevice, stream));
        check(cudaStreamSynchronize(stream));
        own.conf.data = c->conf[i];
        own.loc.data = c->loc[i];
        own.first_row = 0;
        own.n_rows = (int64_t)plan->n_images * plan->n_priors;
        own.positives_only = own.mining.kind == BX_MINING_NONE;
        c->whole[i] = capture(own, (size_t)plan->n_objects, stream);
    }
}

static void free_copies(copies *c) {
    for (int i = 0; i < c->n; i++) {
        check(cudaGraphExecDestroy(c->whole[i]));
        check(cudaFree(c->conf[i]));
        check(cudaFree(c->loc[i]));
    }
}

/* Microseconds of one batch, the copies taking turns. */
static double time_kernels(const copies *c, cudaStream_t stream, cudaEvent_t events[2], double *times, int rounds) {
    int turn = 0;
    for (int r = -3; r < rounds; r++) {
        check(cudaEventRecord(events[0], stream));
        for (int i = 0; i < REPLAYS; i++) {
            check(cudaGraphLaunch(c->whole[turn++ % c->n], stream));
        }
        check(cudaEventRecord(events[1], stream));
        const double us = elapsed_us(events[0], events[1]) / REPLAYS;
        if (r >= 0) {
            times[r] = us;
        }
    }
    return median(times, rounds);
}

/* Bytes per microsecond that the GPU's memory moves. */
static double time_memory(cudaStream_t stream, cudaEvent_t events[2], double *times, int rounds) {
    void *from, *to;
    check(cudaMalloc(&from, COPIED));
    check(cudaMalloc(&to, COPIED));
    check(cudaMemsetAsync(from, 1, COPIED, stream));
    for (int r = -3; r < rounds; r++) {
        check(cudaEventRecord(events[0], stream));
        check(cudaMemcpyAsync(to, from, COPIED, cudaMemcpyDeviceToDevice, stream));
        check(cudaEventRecord(events[1], stream));
        const double us = elapsed_us(events[0], events[1]);
        if (r >= 0) {
            times[r] = us;
        }
    }
    check(cudaFree(from));
    check(cudaFree(to));
    return 2.0 * (double)COPIED / median(times, rounds);
}

/* The whole job from pinned memory, and the copies of its predictions alone. */
static void time_whole(bx_context *context, bx_job *job, size_t conf, size_t loc, double *times, int rounds,
                       double *whole_us, double *copy_us) {
    bx_error error = {0};
    const bx_cuda *c = context->cuda;
    for (int r = 0; r < rounds; r++) {
        const double begin = now_us();
        sound(bx_job_begin(context, job, &error), &error);
        sound(bx_job_run(context, job, &error), &error);
        bx_job_end(context, job);
        times[r] = now_us() - begin;
    }
    *whole_us = median(times, rounds);
    for (int r = 0; r < rounds; r++) {
        const double begin = now_us();
        check(cudaMemcpyAsync((void *)(uintptr_t)c->args.conf.data, job->batch->conf.data, conf, cudaMemcpyHostToDevice,
                              c->stream));
        check(cudaMemcpyAsync((void *)(uintptr_t)c->args.loc.data, job->batch->loc.data, loc, cudaMemcpyHostToDevice,
                              c->stream));
        check(cudaStreamSynchronize(c->stream));
        times[r] = now_us() - begin;
    }
    *copy_us = median(times, rounds);
}

int main(int argc, char **argv) {
    const int rounds = argc == 3 ? atoi(argv[2]) : 0;
    if (rounds < 1) {
        die("usage: gpu FILE ROUNDS");
    }
    bx_error error = {0};
    bx_device device;
    size_t bytes;
    if (bx_devices(&device, 1, &error) == 0) {
        die(error.text);
    }
    proto_init();
    void *body = read_file(argv[1], &bytes);
    const bool pinned = bx_pin(body, bytes);
    proto_request q;
    const proto_limits limits = {.json_memory = 1 << 24};
    sound(proto_request_decode(&q, PROTO_LOSS, PROTO_SAFETENSORS, body, bytes, NULL, 0, &proto_catalog_builtin, &limits,
                               &error),
          &error);
    bx_plan plan;
    sound(bx_plan_init(&plan, q.criterion, q.priors, &q.batch, BX_GRADIENTS_NONE, &error), &error);
    bx_context *context;
    sound(bx_context_open(&context, device.name, NULL, &error), &error);
    sound(bx_context_reserve(context, bx_plan_device_bytes(&plan, &q.batch), &error), &error);
    void *work = aligned_alloc(64, bx_round_up(plan.work_bytes));
    double *times = calloc((size_t)rounds, sizeof *times);
    if (!work || !times) {
        die("no memory");
    }
    bx_job job;
    bx_job_init(&job, &plan, &q.batch, work);
    const size_t rows = (size_t)plan.n_images * (size_t)plan.n_priors;
    const size_t conf = rows * (size_t)plan.n_columns * bx_dtype_bytes(q.batch.conf.dtype);
    const size_t loc = rows * 4 * bx_dtype_bytes(q.batch.loc.dtype);
    double whole_us, copy_us;
    time_whole(context, &job, conf, loc, times, rounds, &whole_us, &copy_us);
    bx_result result;
    sound(bx_finish(&result, &job, &error), &error);
    const bx_cuda *c = context->cuda;
    cudaEvent_t events[2];
    check(cudaEventCreate(&events[0]));
    check(cudaEventCreate(&events[1]));
    static copies all;
    make_copies(&all, &c->args, &plan, conf, loc, c->stream);
    const double kernels_us = time_kernels(&all, c->stream, events, times, rounds);
    const double bandwidth = time_memory(c->stream, events, times, rounds);
    printf("{\"device\": \"%s\", \"kernels_us\": %.3f, \"read_once_us\": %.3f, \"copy_gb_s\": %.1f, "
           "\"whole_us\": %.1f, \"copy_us\": %.1f, \"pinned\": %s, \"copies\": %d, \"total\": %.17g, \"positives\": "
           "%lld}\n",
           device.text, kernels_us, (double)(conf + loc) / bandwidth, bandwidth * 1e-3, whole_us, copy_us,
           pinned ? "true" : "false", all.n, result.loss.total, (long long)result.positives);
    free_copies(&all);
    bx_context_close(context);
    free(times);
    free(work);
    proto_request_free(&q);
    if (pinned) {
        bx_unpin(body);
    }
    free(body);
    return 0;
}
