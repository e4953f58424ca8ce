/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool: one mutex, one condition variable, a ring of requests that have something to do.
 *
 * A worker takes one unit of the request at the head and moves the request to the tail, so a small request never waits
 * behind all of a large one. A request is in the ring exactly while it has a unit that may run (`queued`), and the ring
 * holds one reference. Its units, in the order they are taken: what the whole body is for, finish an image whose blocks
 * are done, run the next block whose rows have arrived; then the second round of each image. The queue is bounded
 * because every request in it was admitted.
 */
#include <stdlib.h>

#include "server.h"

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    request *head, *tail;
    bool stopping;
    size_t n_workers, n_started;
    pthread_t *threads;
    bx_context **contexts; /* (n_workers + n_spares) */
    bx_context **spares;   /* those not lent, a stack */
    size_t n_contexts, n_spares;
};

typedef struct worker {
    pool *pool;
    bx_context *context;
} worker;

/* ---- the ring, under the lock ------------------------------------------------------------------------------------ */

static bool has_work(const request *r) {
    return r->body_ready || r->images_head < r->images_tail || r->next_unit < r->ready_units ||
           r->next_row < r->ready_rows;
}

static void append(pool *p, request *r) {
    r->next = NULL;
    r->previous = p->tail;
    *(p->tail ? &p->tail->next : &p->head) = r;
    p->tail = r;
    r->queued = true;
}

static void unlink_request(pool *p, request *r) {
    *(r->previous ? &r->previous->next : &p->head) = r->next;
    *(r->next ? &r->next->previous : &p->tail) = r->previous;
    r->queued = false;
}

/* Something of r became ready. */
static void enqueue(pool *p, request *r) {
    if (!r->queued && has_work(r) && !atomic_load(&r->cancelled)) {
        request_ref(r);
        append(p, r);
    }
    pthread_cond_signal(&p->work);
}

typedef struct unit {
    enum { BODY, IMAGE, BLOCK, ROWS } kind;
    int64_t index;
} unit;

/* Take a unit of the head; the caller gets a reference. */
static request *take(pool *p, unit *out) {
    request *r = p->head;
    if (r->body_ready) {
        r->body_ready = false;
        *out = (unit){BODY, 0};
    } else if (r->images_head < r->images_tail) {
        *out = (unit){IMAGE, r->images_ready[r->images_head++]};
    } else if (r->next_unit < r->ready_units) {
        *out = (unit){BLOCK, r->next_unit++};
    } else {
        *out = (unit){ROWS, r->next_row++};
    }
    unlink_request(p, r);
    if (has_work(r)) {
        request_ref(r); /* the ring keeps its own; this one is the unit's */
        append(p, r);
        pthread_cond_signal(&p->work);
    }
    return r;
}

/* ---- workers ----------------------------------------------------------------------------------------------------- */

static void run(request *r, bx_context *context, unit u) {
    switch (u.kind) {
    case BODY:
        request_run_body(r);
        break;
    case IMAGE:
        batch_run_image(r, context, (int32_t)u.index);
        break;
    case BLOCK:
        batch_run_unit(r, context, u.index);
        break;
    case ROWS:
        batch_run_rows(r, context, (int32_t)u.index);
        break;
    }
}

static void *worker_main(void *argument) {
    worker w = *(worker *)argument;
    free(argument);
    pool *p = w.pool;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->head && !p->stopping) {
            pthread_cond_wait(&p->work, &p->lock);
        }
        if (!p->head) {
            break;
        }
        unit u;
        request *r = take(p, &u);
        pthread_mutex_unlock(&p->lock);
        if (!atomic_load(&r->cancelled)) {
            run(r, w.context, u);
        }
        request_unref(r);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static bx_status start_workers(pool *p, bx_error *error) {
    for (size_t i = 0; i < p->n_workers; i++) {
        worker *w = malloc(sizeof *w);
        if (!w) {
            return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for worker %zu", i);
        }
        *w = (worker){p, p->contexts[i]};
        if (pthread_create(&p->threads[i], NULL, worker_main, w)) {
            free(w);
            return bx_fail(error, BX_BUSY, "threads", "cannot start worker thread %zu", i);
        }
        p->n_started++;
    }
    return BX_OK;
}

bx_status pool_start(pool **out, size_t n_workers, size_t n_spares, const char *level, bx_error *error) {
    pool *p = calloc(1, sizeof *p);
    if (!p) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the worker pool");
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    p->n_workers = n_workers;
    p->threads = calloc(n_workers, sizeof *p->threads);
    p->contexts = calloc(n_workers + n_spares, sizeof(bx_context *));
    p->spares = calloc(n_spares + 1, sizeof(bx_context *)); /* none is no failure */
    bx_status status = BX_OK;
    if (!p->threads || !p->contexts || !p->spares) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the worker pool");
    }
    for (; status == BX_OK && level && p->n_contexts < n_workers + n_spares; p->n_contexts++) {
        status = bx_context_open(&p->contexts[p->n_contexts], "cpu", level, error);
        if (status != BX_OK) {
            break;
        }
        if (p->n_contexts >= n_workers) {
            p->spares[p->n_spares++] = p->contexts[p->n_contexts];
        }
    }
    status = status == BX_OK ? start_workers(p, error) : status;
    if (status != BX_OK) {
        pool_stop(p);
        return status;
    }
    *out = p;
    return BX_OK;
}

void pool_stop(pool *p) {
    if (!p) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 0; i < p->n_started; i++) {
        pthread_join(p->threads[i], NULL);
    }
    for (size_t i = 0; i < p->n_contexts; i++) {
        bx_context_close(p->contexts[i]);
    }
    free(p->threads);
    free(p->contexts);
    free(p->spares);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

const char *pool_level(const pool *p) {
    return bx_context_level(p->contexts[0]);
}

/* ---- what requests ask for --------------------------------------------------------------------------------------- */

void pool_push_body(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    r->body_ready = true;
    enqueue(p, r);
    pthread_mutex_unlock(&p->lock);
}

void pool_advance(pool *p, request *r, int64_t ready) {
    pthread_mutex_lock(&p->lock);
    if (ready > r->ready_units) {
        r->ready_units = ready;
        enqueue(p, r);
    }
    pthread_mutex_unlock(&p->lock);
}

void pool_push_image(pool *p, request *r, int32_t image) {
    pthread_mutex_lock(&p->lock);
    r->images_ready[r->images_tail++] = image;
    enqueue(p, r);
    pthread_mutex_unlock(&p->lock);
}

void pool_push_rows(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    r->ready_rows = r->plan.n_images;
    enqueue(p, r);
    pthread_mutex_unlock(&p->lock);
}

void pool_cancel(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    bool was_queued = r->queued;
    if (was_queued) {
        unlink_request(p, r);
    }
    atomic_store(&r->cancelled, true);
    pthread_mutex_unlock(&p->lock);
    if (was_queued) {
        request_unref(r);
    }
}

bx_context *pool_borrow(pool *p) {
    pthread_mutex_lock(&p->lock);
    bx_context *context = p->n_spares > 0 ? p->spares[--p->n_spares] : NULL;
    pthread_mutex_unlock(&p->lock);
    return context;
}

void pool_return(pool *p, bx_context *context) {
    pthread_mutex_lock(&p->lock);
    p->spares[p->n_spares++] = context;
    pthread_mutex_unlock(&p->lock);
}
