/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library alone: computes one safetensors batch again and again on some threads, from several copies of the body so
 * that they do not stay in the cache, and prints one JSON line of milliseconds.
 *
 * Usage: compute FILE LEVEL THREADS REPEATS
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto.h"

enum { COPIES = 4, MAX_THREADS = 64 };

typedef struct bench {
    bx_job job;
    int units, n_threads;
    bool rows; /* what is being run: the blocks and images, or the second round */
    atomic_int next, *blocks_left;
    pthread_barrier_t start, end;
    bool stop;
    bx_context *contexts[MAX_THREADS];
} bench;

typedef struct seat {
    bench *bench;
    int index;
} seat;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void die(const char *what) {
    fprintf(stderr, "compute: %s\n", what);
    exit(1);
}

static void work(bench *b, int index) {
    const int n_blocks = b->job.plan->n_blocks;
    for (int unit; (unit = atomic_fetch_add(&b->next, 1)) < b->units;) {
        if (b->rows) {
            bx_run_rows(b->contexts[index], &b->job, unit);
            continue;
        }
        bx_run_block(b->contexts[index], &b->job, unit / n_blocks, unit % n_blocks);
        if (atomic_fetch_sub(&b->blocks_left[unit / n_blocks], 1) == 1) {
            bx_run_image(b->contexts[index], &b->job, unit / n_blocks);
        }
    }
}

/* One round on all threads, this one among them. */
static void run_round(bench *b, bool rows) {
    const bx_plan *plan = b->job.plan;
    b->rows = rows;
    b->units = rows ? plan->n_images : plan->n_images * plan->n_blocks;
    for (int i = 0; i < plan->n_images; i++) {
        atomic_store(&b->blocks_left[i], plan->n_blocks);
    }
    atomic_store(&b->next, 0);
    pthread_barrier_wait(&b->start);
    work(b, 0);
    pthread_barrier_wait(&b->end);
}

static void *thread_main(void *argument) {
    seat *s = argument;
    for (;;) {
        pthread_barrier_wait(&s->bench->start);
        if (s->bench->stop) {
            return NULL;
        }
        work(s->bench, s->index);
        pthread_barrier_wait(&s->bench->end);
    }
}

static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        die("cannot read the file");
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *data = aligned_alloc(64, (*bytes + 63) / 64 * 64);
    if (!data || fread(data, 1, *bytes, file) != *bytes) {
        die("cannot read the file");
    }
    fclose(file);
    return data;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The least that any program must do: look at every prediction once. */
static double read_once_ms(const void *data, size_t bytes) {
    const uint64_t *words = data;
    uint64_t sum[8] = {0};
    double t = now_ms();
    for (size_t i = 0; i + 8 <= bytes / 8; i += 8) {
        for (int j = 0; j < 8; j++) {
            sum[j] += words[i + (size_t)j];
        }
    }
    t = now_ms() - t;
    volatile uint64_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    (void)sink;
    return t;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        die("usage: compute FILE LEVEL THREADS REPEATS");
    }
    proto_init();
    bx_error error = {0};
    proto_limits limits = {.json_memory = 1 << 24};
    proto_request requests[COPIES];
    void *bodies[COPIES];
    size_t bytes = 0;
    for (int c = 0; c < COPIES; c++) {
        bodies[c] = read_file(argv[1], &bytes);
        if (proto_request_decode(&requests[c], PROTO_LOSS, PROTO_SAFETENSORS, bodies[c], bytes, NULL, 0,
                                 &proto_catalog_builtin, &limits, &error)) {
            die(error.text);
        }
    }
    bench b = {.n_threads = atoi(argv[3])};
    int repeats = atoi(argv[4]);
    if (b.n_threads < 1 || b.n_threads > MAX_THREADS || repeats < 1) {
        die("threads 1 to 64, repeats at least 1");
    }
    bx_plan plan;
    if (bx_plan_init(&plan, requests[0].criterion, requests[0].priors, &requests[0].batch, requests[0].gradients,
                     &error)) {
        die(error.text);
    }
    void *memory = aligned_alloc(64, plan.work_bytes), *gradients = NULL;
    size_t gradient_bytes = 0;
    double *times = calloc((size_t)repeats, sizeof *times);
    b.blocks_left = calloc((size_t)plan.n_images, sizeof *b.blocks_left);
    if (!memory || !times || !b.blocks_left) {
        die("no memory");
    }
    pthread_barrier_init(&b.start, NULL, (unsigned)b.n_threads);
    pthread_barrier_init(&b.end, NULL, (unsigned)b.n_threads);
    pthread_t threads[MAX_THREADS];
    seat seats[MAX_THREADS];
    for (int t = 0; t < b.n_threads; t++) {
        if (bx_context_open(&b.contexts[t], "cpu", argv[2], &error)) {
            die(error.text);
        }
        seats[t] = (seat){&b, t};
        if (t > 0 && pthread_create(&threads[t], NULL, thread_main, &seats[t])) {
            die("cannot start a thread");
        }
    }
    bx_result result;
    for (int r = -3; r < repeats; r++) { /* three to warm up */
        const proto_request *q = &requests[(unsigned)(r + 3) % COPIES];
        double t = now_ms();
        if (bx_plan_init(&plan, q->criterion, q->priors, &q->batch, q->gradients, &error)) {
            die(error.text);
        }
        bx_job_init(&b.job, &plan, &q->batch, memory);
        run_round(&b, false);
        if (bx_run_batch(b.contexts[0], &b.job, &error)) {
            die(error.text);
        }
        if (plan.second_round) {
            size_t owed = bx_gradient_bytes(&plan, bx_job_gradient_rows(&b.job));
            if (owed > gradient_bytes) { /* the first time */
                free(gradients);
                gradients = aligned_alloc(64, owed);
                gradient_bytes = owed;
            }
            if (owed > 0 && !gradients) {
                die("no memory");
            }
            bx_job_place_gradients(&b.job, gradients);
            run_round(&b, true);
        }
        if (bx_finish(&result, &b.job, &error)) {
            die(error.text);
        }
        if (r >= 0) {
            times[r] = now_ms() - t;
        }
    }
    b.stop = true;
    pthread_barrier_wait(&b.start);
    for (int t = 1; t < b.n_threads; t++) {
        pthread_join(threads[t], NULL);
    }
    double read_ms = 1e9;
    for (int c = 0; c < COPIES; c++) {
        double t = read_once_ms(bodies[c], bytes);
        read_ms = t < read_ms ? t : read_ms;
    }
    qsort(times, (size_t)repeats, sizeof *times, by_value);
    printf("{\"level\": \"%s\", \"threads\": %d, \"min_ms\": %.4f, \"median_ms\": %.4f, \"max_ms\": %.4f, "
           "\"read_once_ms\": %.4f, \"total\": %.17g}\n",
           bx_context_level(b.contexts[0]), b.n_threads, times[0], times[repeats / 2], times[repeats - 1], read_ms,
           result.loss.total);
    for (int t = 0; t < b.n_threads; t++) {
        bx_context_close(b.contexts[t]);
    }
    for (int c = 0; c < COPIES; c++) {
        proto_request_free(&requests[c]);
        free(bodies[c]);
    }
    free(memory);
    free(gradients);
    free(times);
    free(b.blocks_left);
    return 0;
}
