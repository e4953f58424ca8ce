/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Predictions that are scored as they arrive, by the thread that receives them, straight from the HTTP library's
 * buffer.
 *
 * It takes annotations that precede the predictions. Each image is matched before its rows come: the workers are ahead,
 * and where they are not the receiving thread does it itself. The workers also mine each image when its rows of conf
 * have passed. What is left is small, so that the answer is mostly there with the last byte.
 */
#include <string.h>

#include "server.h"

/* Pairs of an object and a prior in one image: what the receiving thread may have to match, or to wait for. */
#define MOST_PAIRS ((int64_t)8 << 20)
/* The receiving thread finishes images of so few priors, and encodes answers of so few bytes. */
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
    for (int32_t i = 0; i < batch->n_images; i++) {
        if ((int64_t)(batch->first[i + 1] - batch->first[i]) * n_priors > MOST_PAIRS) {
            return false;
        }
    }
    return true;
}

/* The longest row there can be, of either tensor. */
static size_t carry_bytes(const bx_plan *plan) {
    return (size_t)(plan->n_columns > 4 ? plan->n_columns : 4) * sizeof(double);
}

size_t stream_bytes(const bx_plan *plan) {
    return (size_t)plan->n_images * sizeof(atomic_int) + carry_bytes(plan);
}

void stream_begin(request *r, void *memory) {
    stream *s = &r->stream;
    const bx_plan *plan = &r->plan;
    const bx_batch *batch = &r->decoded_request.batch;
    const int64_t rows = (int64_t)plan->n_images * plan->n_priors;
    const bx_tensor tensors[2] = {batch->conf, batch->loc};
    s->carry = memory;
    s->stages = (atomic_int *)(void *)(s->carry + carry_bytes(plan));
    s->light = !plan->second_round && plan->n_priors <= FEW_PRIORS && r->answer_bytes <= FEW_BYTES;
    s->conf_first = (uintptr_t)batch->conf.data < (uintptr_t)batch->loc.data;
    for (int i = 0; i < 2; i++) {
        const bool conf = i == (s->conf_first ? 0 : 1);
        const bx_tensor tensor = tensors[conf ? 0 : 1];
        const size_t bytes = (size_t)(conf ? plan->n_columns : 4) * bx_dtype_bytes(tensor.dtype);
        const size_t begin = begin_of(r, tensor);
        s->flows[i] = (flow){.conf = conf, .begin = begin, .end = begin + (size_t)rows * bytes, .row_bytes = bytes};
    }
    for (int32_t i = 0; i < plan->n_images; i++) {
        atomic_init(&s->stages[i], NEW);
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

/* Be at stage `to`; whoever is on the way there has begun, and will not be long. */
static void reach(request *r, bx_context *context, int32_t image, int to) {
    atomic_int *stage = &r->stream.stages[image];
    if (atomic_load(stage) >= to || advance(r, context, image, to)) {
        return;
    }
    pthread_mutex_lock(&r->lock);
    while (atomic_load(stage) < to) {
        pthread_cond_wait(&r->advanced, &r->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

void stream_run_unit(request *r, bx_context *context, int64_t unit) {
    const int32_t n = r->plan.n_images, image = (int32_t)(unit % n);
    const int to = unit < n ? ASSIGNED : MINED;
    if (advance(r, context, image, to) && to == MINED && !r->stream.conf_first) {
        batch_run_image(r, context, image); /* its offsets have passed before */
    }
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Every row of an image has passed. */
static void image_passed(request *r, bx_context *context, const flow *f, int32_t image) {
    if (f->conf) {
        pool_advance(r->pool, r, (int64_t)r->plan.n_images + image + 1);
    } else if (r->stream.conf_first && r->stream.light) {
        batch_run_image(r, context, image);
    } else if (r->stream.conf_first) {
        pool_push_image(r->pool, r, image);
    }
}

static void take_rows(request *r, bx_context *context, const flow *f, int64_t row, int64_t n, const char *data) {
    const int32_t n_priors = r->plan.n_priors;
    while (n > 0) {
        const int32_t image = (int32_t)(row / n_priors), first = (int32_t)(row % n_priors);
        const int32_t count = n < n_priors - first ? (int32_t)n : n_priors - first;
        if (f->conf) {
            reach(r, context, image, ASSIGNED);
            bx_stream_conf(context, &r->job, image, first, count, data);
        } else {
            reach(r, context, image, r->stream.conf_first ? MINED : ASSIGNED); /* mining marks what is read here */
            bx_stream_loc(context, &r->job, image, first, count, data);
        }
        if (first + count == n_priors) {
            image_passed(r, context, f, image);
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
