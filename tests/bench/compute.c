/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library alone: computes one safetensors batch again and again on some threads, from so many copies of the body
 * that they do not stay in the cache, and prints one JSON line of milliseconds. With `match` the assignment alone.
 *
 * Usage: compute FILE LEVEL THREADS REPEATS [match]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "compute.h"
#include "proto.h"

#define FOOTPRINT ((size_t)80 << 20) /* of all copies: well beyond the last-level cache */
enum { MAX_THREADS = 64, WARM_UP = 3, READ_UNITS = 256 };

/* What a round does. */
typedef enum round_kind {
    FIRST_ROUND,  /* blocks and images */
    SECOND_ROUND, /* what needed the whole batch */
    READ          /* the least that any program must do: look at every byte once */
} round_kind;

typedef struct copy {
    void *body;
    proto_request request;
} copy;

typedef struct bench {
    bx_job job;
    const void *body; /* what READ reads */
    size_t bytes;
    int n_threads, units;
    round_kind kind;
    atomic_int next, *blocks_left;
    atomic_ullong sink; /* so that reading cannot be left out */
    pthread_barrier_t start, end;
    bool stop;
    bx_context *contexts[MAX_THREADS];
} bench;

typedef struct seat {
    bench *bench;
    int index;
} seat;

typedef struct buffer {
    void *data;
    size_t bytes;
} buffer;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void die(const char *what) {
    fprintf(stderr, "compute: %s\n", what);
    exit(1);
}

static void read_share(bench *b, int unit) {
    const size_t words = b->bytes / 8 / READ_UNITS / 8 * 8;
    const uint64_t *at = (const uint64_t *)b->body + (size_t)unit * words;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < words; i += 8) {
        for (size_t j = 0; j < 8; j++) {
            sum[j] += at[i + j];
        }
    }
    atomic_fetch_xor(&b->sink, sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7]);
}

static void work(bench *b, int index) {
    const int n_blocks = b->job.plan->n_blocks;
    for (int unit; (unit = atomic_fetch_add(&b->next, 1)) < b->units;) {
        if (b->kind == READ) {
            read_share(b, unit);
            continue;
        }
        if (b->kind == SECOND_ROUND) {
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
static void run_round(bench *b, round_kind kind) {
    const bx_plan *plan = b->job.plan;
    b->kind = kind;
    b->units = kind == READ ? READ_UNITS : kind == SECOND_ROUND ? plan->n_images : plan->n_images * plan->n_blocks;
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

/* The whole computation of one copy. */
static void compute(bench *b, const proto_request *q, bx_plan *plan, void *memory, buffer *gradients,
                    bx_result *result) {
    bx_error error = {0};
    if (bx_plan_init(plan, q->criterion, q->priors, &q->batch, q->gradients, &error)) {
        die(error.text);
    }
    bx_job_init(&b->job, plan, &q->batch, memory);
    run_round(b, FIRST_ROUND);
    if (bx_run_batch(b->contexts[0], &b->job, &error)) {
        die(error.text);
    }
    if (plan->second_round) {
        size_t owed = bx_gradient_bytes(plan, bx_job_gradient_rows(&b->job));
        if (owed > gradients->bytes) { /* the first time */
            free(gradients->data);
            *gradients = (buffer){aligned_alloc(64, owed), owed};
        }
        if (owed > 0 && !gradients->data) {
            die("no memory");
        }
        bx_job_place_gradients(&b->job, gradients->data);
        run_round(b, SECOND_ROUND);
    }
    if (bx_finish(result, &b->job, &error)) {
        die(error.text);
    }
}

/* Decode as many copies of the body as overflow the cache. */
static copy *make_copies(const char *path, proto_task task, size_t *bytes, int *n_copies) {
    const proto_limits limits = {.json_memory = 1 << 24};
    void *body = read_file(path, bytes);
    *n_copies = (int)(FOOTPRINT / (*bytes + 4096)) + 2;
    copy *copies = calloc((size_t)*n_copies, sizeof *copies);
    if (!copies) {
        die("no memory");
    }
    for (int c = 0; c < *n_copies; c++) {
        bx_error error = {0};
        copies[c].body = c ? aligned_alloc(64, (*bytes + 63) / 64 * 64) : body;
        if (!copies[c].body) {
            die("no memory");
        }
        if (c) {
            memcpy(copies[c].body, body, *bytes);
        }
        if (proto_request_decode(&copies[c].request, task, PROTO_SAFETENSORS, copies[c].body, *bytes, NULL, 0,
                                 &proto_catalog_builtin, &limits, &error)) {
            die(error.text);
        }
    }
    return copies;
}

static void start_threads(bench *b, seat seats[], pthread_t threads[], const char *level) {
    bx_error error = {0};
    pthread_barrier_init(&b->start, NULL, (unsigned)b->n_threads);
    pthread_barrier_init(&b->end, NULL, (unsigned)b->n_threads);
    for (int t = 0; t < b->n_threads; t++) {
        if (bx_context_open(&b->contexts[t], "cpu", level, &error)) {
            die(error.text);
        }
        seats[t] = (seat){b, t};
        if (t > 0 && pthread_create(&threads[t], NULL, thread_main, &seats[t])) {
            die("cannot start a thread");
        }
    }
}

static void stop_threads(bench *b, pthread_t threads[]) {
    b->stop = true;
    pthread_barrier_wait(&b->start);
    for (int t = 1; t < b->n_threads; t++) {
        pthread_join(threads[t], NULL);
    }
    for (int t = 0; t < b->n_threads; t++) {
        bx_context_close(b->contexts[t]);
    }
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) {
        die("usage: compute FILE LEVEL THREADS REPEATS [match]");
    }
    proto_init();
    bx_error error = {0};
    bench b = {.n_threads = atoi(argv[3])};
    const int repeats = atoi(argv[4]);
    if (b.n_threads < 1 || b.n_threads > MAX_THREADS || repeats < 1) {
        die("threads 1 to 64, repeats at least 1");
    }
    int n_copies;
    copy *copies = make_copies(argv[1], argc == 6 ? PROTO_MATCH : PROTO_LOSS, &b.bytes, &n_copies);
    const proto_request *first = &copies[0].request;
    bx_plan plan;
    if (bx_plan_init(&plan, first->criterion, first->priors, &first->batch, first->gradients, &error)) {
        die(error.text);
    }
    void *memory = aligned_alloc(64, plan.work_bytes);
    double *times = calloc((size_t)repeats, sizeof *times), *reads = calloc((size_t)repeats, sizeof *reads);
    b.blocks_left = calloc((size_t)plan.n_images, sizeof *b.blocks_left);
    if (!memory || !times || !reads || !b.blocks_left) {
        die("no memory");
    }
    pthread_t threads[MAX_THREADS];
    seat seats[MAX_THREADS];
    start_threads(&b, seats, threads, argv[2]);
    buffer gradients = {0};
    bx_result result = {0};
    for (int r = -WARM_UP; r < repeats; r++) {
        double t = now_ms();
        compute(&b, &copies[(r + WARM_UP) % n_copies].request, &plan, memory, &gradients, &result);
        if (r >= 0) {
            times[r] = now_ms() - t;
        }
    }
    for (int r = 0; r < repeats; r++) {
        b.body = copies[(r + WARM_UP + repeats) % n_copies].body;
        double t = now_ms();
        run_round(&b, READ);
        reads[r] = now_ms() - t;
    }
    qsort(times, (size_t)repeats, sizeof *times, by_value);
    qsort(reads, (size_t)repeats, sizeof *reads, by_value);
    printf("{\"level\": \"%s\", \"threads\": %d, \"min_ms\": %.4f, \"median_ms\": %.4f, \"max_ms\": %.4f, "
           "\"read_once_ms\": %.4f, \"total\": %.17g, \"positives\": %lld}\n",
           bx_context_level(b.contexts[0]), b.n_threads, times[0], times[repeats / 2], times[repeats - 1],
           reads[repeats / 2], result.loss.total, (long long)result.positives);
    stop_threads(&b, threads);
    for (int c = 0; c < n_copies; c++) {
        proto_request_free(&copies[c].request);
        free(copies[c].body);
    }
    free(copies);
    free(memory);
    free(gradients.data);
    free(times);
    free(reads);
    free(b.blocks_left);
    return 0;
}
