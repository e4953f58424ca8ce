/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Predictions that are scored as they arrive, by the thread that receives them, straight from the HTTP library's
 * buffer.
 *
 * It takes annotations that precede the predictions. Each image is matched before its rows come: the workers are ahead,
 * and where they are not the receiving thread does it itself. The workers also mine each image when its rows of conf
 * have passed. A worker that has nothing to do gets a copy of some rows to score (a slab), so that it is not the
 * receiving thread alone that keeps the client waiting. What is left is small: the answer is mostly there with the last
 * byte.
 *
 * Nothing here waits for a worker that has not begun: what is still queued, the receiving thread takes back. So units
 * may be left over when the answer is made and the work's memory is given back; all they look at is their image's
 * stage, which has memory of its own until the last of them is gone.
 */
#include <string.h>

#include "server.h"

/* Pairs of an object and a prior in one image, as often as they are looked at: what the receiving thread may have to
 * match, or to wait for. */
#define MOST_PAIRS ((int64_t)8 << 20)
/* Rows are handed over in slabs of so many bytes at most, so few of them not at all, nor any of so short a stream. */
#define SLAB_BYTES  ((size_t)512 << 10)
#define FEW_ROWS    256
#define SHORT_BYTES ((size_t)1 << 20)
/* The receiving thread finishes the last image if it has so few priors, and encodes answers of so few bytes. */
#define FEW_PRIORS (8 * BX_BLOCK)
#define FEW_BYTES  ((size_t)64 << 10)

/* Of an image. What lies between two of these is being done by the thread that set it. */
enum { NEW, ASSIGNING, ASSIGNED, MINING, MINED };

/* ---- whether and how --------------------------------------------------------------------------------------------- */

/* Where in the body a tensor begins. Most of it is yet to come, so this is a place and not an address to follow. */
static size_t begin_of(const request *r, bx_tensor tensor) {
    return (size_t)((uintptr_t)tensor.data - (uintptr_t)r->body.data);
}

bool stream_fits(const request *r) {
    const proto_request *q = &r->decoded_request;
    const bx_batch *batch = &q->batch;
    const int32_t n_priors = q->priors->n;
    if (q->gradients != BX_GRADIENTS_NONE || !batch->conf.data) {
        return false;
    }
    if (begin_of(r, batch->conf) < r->prefix || begin_of(r, batch->loc) < r->prefix) {
        return false; /* they are in already, before something else */
    }
    const bool greedy =
        q->criterion->matcher.force == BX_FORCE_GREEDY; /* an object may look again for each other one */
    for (int32_t i = 0; i < batch->n_images; i++) {
        const int64_t objects = batch->first[i + 1] - batch->first[i], looks = greedy ? 1 + objects : 1;
        if (objects * n_priors > MOST_PAIRS / looks) {
            return false;
        }
    }
    return true;
}

/* The longest row there can be, of either tensor. */
static size_t carry_bytes(const bx_plan *plan) {
    return (size_t)(plan->n_columns > 4 ? plan->n_columns : 4) * sizeof(double);
}

static size_t slab_bytes(const request *r) {
    if (r->stream.alone) {
        return 0;
    }
    const size_t columns = (size_t)r->plan.n_columns * bx_dtype_bytes(r->decoded_request.batch.conf.dtype);
    return (size_t)r->plan.n_images * (size_t)r->plan.n_priors * columns < server_from(r->server, SHORT_BYTES)
               ? 0
               : N_SLABS * SLAB_BYTES;
}

size_t stream_bytes(const request *r) {
    return slab_bytes(r) + carry_bytes(&r->plan);
}

size_t stream_stage_bytes(const bx_plan *plan) {
    return 2 * (size_t)plan->n_images * sizeof(atomic_int);
}

void stream_begin(request *r, void *memory) {
    stream *s = &r->stream;
    const bx_plan *plan = &r->plan;
    const bx_batch *batch = &r->decoded_request.batch;
    const int64_t rows = (int64_t)plan->n_images * plan->n_priors;
    for (int i = 0; i < N_SLABS; i++) {
        s->slabs[i].rows = (char *)memory + (size_t)i * SLAB_BYTES;
    }
    atomic_init(&s->free_slabs, slab_bytes(r) > 0 ? (1u << N_SLABS) - 1 : 0);
    s->carry = (char *)memory + slab_bytes(r);
    s->stages = r->stages.data;
    s->rows_left = s->stages + plan->n_images;
    s->light = !plan->second_round && plan->n_priors <= FEW_PRIORS && r->answer_bytes <= FEW_BYTES;
    s->conf_first = (uintptr_t)batch->conf.data < (uintptr_t)batch->loc.data;
    for (int i = 0; i < 2; i++) {
        const bool conf = (i == 0) == s->conf_first;
        const bx_tensor tensor = conf ? batch->conf : batch->loc;
        const size_t bytes = (size_t)(conf ? plan->n_columns : 4) * bx_dtype_bytes(tensor.dtype);
        const size_t begin = begin_of(r, tensor);
        s->flows[i] = (flow){.conf = conf, .begin = begin, .end = begin + (size_t)rows * bytes, .row_bytes = bytes};
    }
    for (int32_t i = 0; i < plan->n_images; i++) {
        atomic_init(&s->stages[i], NEW);
        atomic_init(&s->rows_left[i], plan->n_priors);
    }
    pool_advance(r->pool, r, plan->n_images);
}

/* ---- stages of an image ------------------------------------------------------------------------------------------ */

/* Do what leads to stage `to`, unless another thread does or has done it. */
static bool advance(request *r, bx_context *context, int32_t image, int to) {
    atomic_int *stage = &r->stream.stages[image];
    int from = to - 2;
    if (!atomic_compare_exchange_strong(stage, &from, to - 1)) {
        return false;
    }
    (to == ASSIGNED ? bx_stream_assign : bx_stream_mine)(context, &r->job, image);
    pthread_mutex_lock(&r->lock);
    atomic_store(stage, to);
    pthread_cond_broadcast(&r->advanced);
    pthread_mutex_unlock(&r->lock);
    return true;
}

void stream_assign(request *r, bx_context *context, int32_t image) {
    (void)advance(r, context, image, ASSIGNED);
}

void stream_mine(request *r, bx_context *context, int32_t image) {
    if (advance(r, context, image, MINED) && !r->stream.conf_first) {
        batch_run_image(r, context, image); /* its offsets have passed before */
    }
}

/* Wait until another thread has come to stage `to`; it is on its way. */
static void await(request *r, int32_t image, int to) {
    pthread_mutex_lock(&r->lock);
    while (atomic_load(&r->stream.stages[image]) < to) {
        pthread_cond_wait(&r->advanced, &r->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

static void be_assigned(request *r, bx_context *context, int32_t image) {
    if (atomic_load(&r->stream.stages[image]) < ASSIGNED && !advance(r, context, image, ASSIGNED)) {
        await(r, image, ASSIGNED);
    }
}

/* The same when the image's rows of conf have passed. Whoever scores the last of them while we wait mines it. */
static void be_mined(request *r, bx_context *context, int32_t image) {
    if (atomic_load(&r->stream.stages[image]) == MINED) {
        return;
    }
    for (int slab; (slab = pool_take_slab(r->pool, r)) >= 0;) {
        stream_run_slab(r, context, slab);
    }
    if (atomic_load(&r->stream.rows_left[image]) > 0 || !advance(r, context, image, MINED)) {
        await(r, image, MINED);
    }
}

/* ---- rows of conf ------------------------------------------------------------------------------------------------ */

/* Score rows; true when they were the last of their image. */
static bool score(request *r, bx_context *context, int32_t image, int32_t first, int32_t count, const void *rows) {
    bx_stream_conf(context, &r->job, image, first, count, rows);
    return atomic_fetch_sub(&r->stream.rows_left[image], count) == count;
}

void stream_run_slab(request *r, bx_context *context, int slab) {
    const struct slab *s = &r->stream.slabs[slab];
    const int32_t image = s->image;
    const bool last = score(r, context, image, s->first, s->count, s->rows);
    atomic_fetch_or(&r->stream.free_slabs, 1u << slab);
    if (last) {
        stream_mine(r, context, image);
    }
}

/* Priors from `first` to the end of their block. */
static int32_t left_of_block(const request *r, int32_t first) {
    const int32_t end = (first / BX_BLOCK + 1) * BX_BLOCK, n_priors = r->plan.n_priors;
    return (end < n_priors ? end : n_priors) - first;
}

/* Begin to copy rows for a worker if there is one that has nothing to do. */
static void begin_slab(request *r, int32_t image, int32_t first, size_t row_bytes) {
    stream *s = &r->stream;
    const unsigned unused = atomic_load(&s->free_slabs);
    const size_t most = SLAB_BYTES / row_bytes;
    const int32_t left = left_of_block(r, first), wanted = (size_t)left < most ? left : (int32_t)most;
    if (unused && (size_t)wanted >= server_from(r->server, FEW_ROWS) && pool_is_idle(r->pool)) {
        s->filling = &s->slabs[__builtin_ctz(unused)];
        s->filling->image = image;
        s->filling->first = first;
        s->filling->count = 0;
        s->filling->wanted = wanted;
        atomic_fetch_and(&s->free_slabs, ~(unused & -unused));
    }
}

/* Returns how many of the rows were copied. */
static int32_t fill_slab(request *r, int32_t count, const char *rows, size_t row_bytes) {
    slab *to = r->stream.filling;
    const int32_t missing = to->wanted - to->count, n = count < missing ? count : missing;
    memcpy(to->rows + (size_t)to->count * row_bytes, rows, (size_t)n * row_bytes);
    to->count += n;
    if (n == missing) {
        r->stream.filling = NULL;
        pool_push_slab(r->pool, r, (int)(to - r->stream.slabs));
    }
    return n;
}

static int32_t take_conf(request *r, bx_context *context, int32_t image, int32_t first, int32_t count, const char *rows,
                         size_t row_bytes) {
    be_assigned(r, context, image);
    if (!r->stream.filling) {
        begin_slab(r, image, first, row_bytes);
    }
    if (r->stream.filling) {
        return fill_slab(r, count, rows, row_bytes);
    }
    if (score(r, context, image, first, count, rows)) {
        pool_push_image(r->pool, r, ~image); /* to be mined */
    }
    return count;
}

/* ---- rows of loc ------------------------------------------------------------------------------------------------- */

static void take_loc(request *r, bx_context *context, int32_t image, int32_t first, int32_t count, const char *rows) {
    if (r->stream.conf_first) {
        be_mined(r, context, image); /* mining marks what is read here */
    } else {
        be_assigned(r, context, image);
    }
    bx_stream_loc(context, &r->job, image, first, count, rows);
    if (first + count == r->plan.n_priors && r->stream.conf_first) {
        if (r->stream.light && image + 1 == r->plan.n_images) { /* the last: it would cost more to wake a worker */
            batch_run_image(r, context, image);
        } else {
            pool_push_image(r->pool, r, image);
        }
    }
}

/* ---- bytes to rows ----------------------------------------------------------------------------------------------- */

static void take_rows(request *r, bx_context *context, const flow *f, int64_t row, int64_t n, const char *data) {
    const int32_t n_priors = r->plan.n_priors;
    while (n > 0) {
        const int32_t image = (int32_t)(row / n_priors), first = (int32_t)(row % n_priors);
        int32_t count = n < n_priors - first ? (int32_t)n : n_priors - first;
        if (f->conf) {
            count = take_conf(r, context, image, first, count, data, f->row_bytes);
        } else {
            take_loc(r, context, image, first, count, data);
        }
        row += count;
        n -= count;
        data += (size_t)count * f->row_bytes;
    }
}

/* The bytes [at, at + n) of the body, all of one flow. */
static void take_bytes(request *r, bx_context *context, const flow *f, size_t at, size_t n, const char *data) {
    stream *s = &r->stream;
    int64_t row = (int64_t)((at - f->begin) / f->row_bytes);
    if (s->carried > 0) {
        const size_t missing = f->row_bytes - s->carried, more = n < missing ? n : missing;
        memcpy(s->carry + s->carried, data, more);
        s->carried += more;
        data += more;
        n -= more;
        if (s->carried < f->row_bytes) {
            return;
        }
        take_rows(r, context, f, row++, 1, s->carry);
        s->carried = 0;
    }
    const size_t whole = n / f->row_bytes;
    take_rows(r, context, f, row, (int64_t)whole, data);
    s->carried = n - whole * f->row_bytes;
    memcpy(s->carry, data + whole * f->row_bytes, s->carried);
}

void stream_receive(request *r, size_t at, const char *data, size_t bytes) {
    bx_context *context = pool_borrow(r->pool); /* there is one for each receiving thread */
    request_mark_begun(r);
    while (bytes > 0) {
        const flow *f = &r->stream.flows[at >= r->stream.flows[0].end];
        const size_t left = f->end - at, n = bytes < left ? bytes : left;
        take_bytes(r, context, f, at, n, data);
        at += n;
        data += n;
        bytes -= n;
    }
    pool_return(r->pool, context);
}
