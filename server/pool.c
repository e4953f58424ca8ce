/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool: one mutex, a ring of requests that have something to do, and another of what takes long at a time.
 *
 * A worker takes one unit of the request at the head and moves the request to the tail, so a small request never waits
 * behind all of a large one. A request is in the ring exactly while it has a unit that may run (`queued`), and the ring
 * holds one reference. Its units, in the order they are taken: what the whole body is for, score a slab, mine or finish
 * an image, run the next block whose rows have arrived (of a stream: match the next image); then the second round of
 * each image. What a GPU has computed comes for its answer only. The queue is bounded because every request in it was
 * admitted.
 *
 * Bodies that need the set of a pattern made, which cannot be cut into units, wait in a ring of their own for a worker
 * of their own (`slow`), so that the others never wait for it.
 */
#include <sched.h>
#include <stdlib.h>

#include "server.h"

typedef struct ring {
    request *head, *tail;
    pthread_cond_t work;
} ring;

/* Where a context is kept that nobody has; NULL: it is lent. A cache line each, for the thread that used it last. */
typedef struct spare {
    _Alignas(CACHE_LINE) _Atomic(bx_context *) context;
} spare;

struct pool {
    pthread_mutex_t lock;
    const char *name; /* of a worker's thread */
    ring rings[2];    /* of the workers, and of the one for what is slow */
    bool stopping;
    atomic_long idle; /* workers that wait for something to compute */
    size_t n_workers, n_started;
    pthread_t *threads;
    bx_context **contexts; /* (n_workers + n_spares) */
    spare *spares;         /* (n_spares) */
    size_t n_contexts, n_spares;
};

typedef struct worker {
    pool *pool;
    ring *ring;
    bx_context *context; /* NULL: it takes bodies only */
} worker;

/* ---- the ring, under the lock ------------------------------------------------------------------------------------ */

static bool has_work(const request *r) {
    return r->body_ready || r->result_ready || r->ready_slabs || r->images_head < r->images_tail ||
           r->next_unit < r->ready_units || r->next_row < r->ready_rows;
}

static void append(ring *g, request *r) {
    r->next = NULL;
    r->previous = g->tail;
    *(g->tail ? &g->tail->next : &g->head) = r;
    g->tail = r;
    r->queued = true;
}

static void unlink_request(ring *g, request *r) {
    *(r->previous ? &r->previous->next : &g->head) = r->next;
    *(r->next ? &r->next->previous : &g->tail) = r->previous;
    r->queued = false;
}

/* Something of r became ready. */
static void enqueue(pool *p, request *r) {
    ring *g = &p->rings[r->slow];
    if (!r->queued && has_work(r) && !atomic_load(&r->cancelled)) {
        request_ref(r);
        append(g, r);
    }
    pthread_cond_signal(&g->work);
}

typedef struct unit {
    enum { BODY, SLOW_BODY, RESULT, SLAB, IMAGE, BLOCK, ROWS } kind;
    int64_t index;
} unit;

static int take_slab(request *r) {
    int slab = r->ready_slabs ? __builtin_ctz(r->ready_slabs) : -1;
    r->ready_slabs &= r->ready_slabs - 1;
    return slab;
}

/* Take a unit of the head; the caller gets a reference. */
static request *take(ring *g, unit *out) {
    request *r = g->head;
    if (r->body_ready) {
        r->body_ready = false;
        *out = (unit){r->slow ? SLOW_BODY : BODY, 0};
    } else if (r->result_ready) {
        r->result_ready = false;
        *out = (unit){RESULT, 0};
    } else if (r->ready_slabs) {
        *out = (unit){SLAB, take_slab(r)};
    } else if (r->images_head < r->images_tail) {
        *out = (unit){IMAGE, r->images_ready[r->images_head++]};
    } else if (r->next_unit < r->ready_units) {
        *out = (unit){BLOCK, r->next_unit++};
    } else {
        *out = (unit){ROWS, r->next_row++};
    }
    unlink_request(g, r);
    r->slow = false; /* what comes of it is as fast as any */
    if (has_work(r)) {
        request_ref(r); /* the ring keeps its own; this one is the unit's */
        append(g, r);
        pthread_cond_signal(&g->work);
    }
    return r;
}

/* ---- workers ----------------------------------------------------------------------------------------------------- */

static void run(request *r, bx_context *context, unit u) {
    switch (u.kind) {
    case BODY:
    case SLOW_BODY:
        request_run_body(r, u.kind == SLOW_BODY);
        break;
    case RESULT:
        batch_finish(r);
        break;
    case SLAB:
        stream_run_slab(r, context, (int)u.index);
        break;
    case IMAGE:
        if (u.index < 0) {
            stream_mine(r, context, (int32_t)~u.index);
        } else {
            batch_run_image(r, context, (int32_t)u.index);
        }
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
    pthread_setname_np(pthread_self(), w.ring == p->rings ? p->name : "lossd-slow");
    /* Waking a worker never takes the processor from a thread that receives. A wish; nothing depends on it. */
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &(struct sched_param){0});
    pthread_mutex_lock(&p->lock);
    for (;;) {
        atomic_fetch_add(&p->idle, w.context != NULL);
        while (!w.ring->head && !p->stopping) {
            pthread_cond_wait(&w.ring->work, &p->lock);
        }
        atomic_fetch_sub(&p->idle, w.context != NULL);
        if (!w.ring->head) {
            break;
        }
        unit u;
        request *r = take(w.ring, &u);
        pthread_mutex_unlock(&p->lock);
        if (!atomic_load(&r->cancelled) || u.kind == SLAB) { /* for a slab someone may wait */
            run(r, w.context, u);
        }
        request_unref(r);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* And one more for what is slow, where there is such a thing. */
static bx_status start_workers(pool *p, bool slow, bx_error *error) {
    for (size_t i = 0; i < p->n_workers + slow; i++) {
        worker *w = malloc(sizeof *w);
        if (!w) {
            return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for worker %zu", i);
        }
        *w = i < p->n_workers ? (worker){p, &p->rings[0], p->contexts[i]} : (worker){p, &p->rings[1], NULL};
        if (pthread_create(&p->threads[i], NULL, worker_main, w)) {
            free(w);
            return bx_fail(error, BX_BUSY, "threads", "cannot start worker thread %zu", i);
        }
        p->n_started++;
    }
    return BX_OK;
}

bx_status pool_start(pool **out, const char *name, size_t n_workers, size_t n_spares, const char *level,
                     bx_error *error) {
    pool *p = calloc(1, sizeof *p);
    if (!p) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the worker pool");
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->rings[0].work, NULL);
    pthread_cond_init(&p->rings[1].work, NULL);
    p->name = name;
    p->n_workers = n_workers;
    p->threads = calloc(n_workers + 1, sizeof *p->threads);
    p->contexts = calloc(n_workers + n_spares, sizeof(bx_context *));
    p->spares = lines_new((n_spares + 1) * sizeof *p->spares); /* none is no failure */
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
            atomic_init(&p->spares[p->n_spares++].context, p->contexts[p->n_contexts]);
        }
    }
    status = status == BX_OK ? start_workers(p, level != NULL, error) : status;
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
    pthread_cond_broadcast(&p->rings[0].work);
    pthread_cond_broadcast(&p->rings[1].work);
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
    pthread_cond_destroy(&p->rings[0].work);
    pthread_cond_destroy(&p->rings[1].work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

const char *pool_level(const pool *p) {
    return bx_context_level(p->contexts[0]);
}

/* ---- what requests ask for --------------------------------------------------------------------------------------- */

void pool_push_body(pool *p, request *r, bool slow) {
    pthread_mutex_lock(&p->lock);
    r->body_ready = true;
    r->slow = slow;
    enqueue(p, r);
    pthread_mutex_unlock(&p->lock);
}

void pool_push_result(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    r->result_ready = true;
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

void pool_push_slab(pool *p, request *r, int slab) {
    pthread_mutex_lock(&p->lock);
    r->ready_slabs |= 1u << slab;
    enqueue(p, r);
    pthread_mutex_unlock(&p->lock);
}

int pool_take_slab(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    int slab = take_slab(r);
    bool done = r->queued && !has_work(r);
    if (done) {
        unlink_request(&p->rings[r->slow], r);
    }
    pthread_mutex_unlock(&p->lock);
    if (done) {
        request_unref(r);
    }
    return slab;
}

bool pool_is_idle(pool *p) {
    return atomic_load(&p->idle) > 0;
}

size_t pool_workers(const pool *p) {
    return p->n_workers;
}

size_t pool_busy(pool *p) {
    const long idle = atomic_load(&p->idle);
    return p->n_workers - (size_t)(idle > 0 ? idle : 0);
}

void pool_forget(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    bool was_queued = r->queued;
    if (was_queued) {
        unlink_request(&p->rings[r->slow], r);
    }
    pthread_mutex_unlock(&p->lock);
    if (was_queued) {
        request_unref(r);
    }
}

void pool_cancel(pool *p, request *r) {
    pthread_mutex_lock(&p->lock);
    atomic_store(&r->cancelled, true); /* from now on it is not queued again */
    pthread_mutex_unlock(&p->lock);
    pool_forget(p, r);
}

/* The place of the spare that this thread had, where it looks first. It puts a spare back where it took it: so a thread
 * that finds every place empty has met as many others as there are spares. */
static _Thread_local size_t latest;

bx_context *pool_borrow(pool *p) {
    for (size_t i = 0; i < p->n_spares; i++) {
        const size_t n = (latest + i) % p->n_spares;
        bx_context *context = atomic_exchange(&p->spares[n].context, NULL);
        if (context) {
            latest = n;
            return context;
        }
    }
    return NULL;
}

void pool_return(pool *p, bx_context *context) {
    for (size_t n = latest % p->n_spares;; n = (n + 1) % p->n_spares) { /* as many places as contexts */
        bx_context *none = NULL;
        if (atomic_compare_exchange_strong(&p->spares[n].context, &none, context)) {
            return;
        }
    }
}
