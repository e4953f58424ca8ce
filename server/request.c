/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One posted batch, from its first byte to its answer.
 *
 * The thread that receives the body decodes it as soon as the annotations are in (a safetensors body whose tensors come
 * in the usual order) and lets the workers run each block of priors when its conf rows have arrived and finish each
 * image when its loc rows have. Other bodies are decoded once they are complete. The last image reduces, encodes the
 * answer and settles the request; whoever settles first wins (the last image, a deadline, a drain), and only the winner
 * resumes a waiting connection. What costs less than INLINE_US is computed by the receiving thread itself.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define INLINE_US           200.0
#define US_PER_ANSWER_BYTE  0.01                /* of the answer */
#define EARLY_BYTES         ((size_t)256 << 10) /* smaller bodies are decoded when complete */
#define DECODE_BYTES        ((size_t)1 << 20)   /* decoding more than this is a worker's job */
#define JSON_DECODE_BYTES   ((size_t)32 << 10)  /* and more than this of JSON */
#define JSON_TREE           64 /* bytes of tree per byte of text, at worst; half of --memory-limit at most */
#define FIRST_CHUNKED_BYTES ((size_t)64 << 10)
#define BASE_BYTES          ((size_t)256 << 10)

/* ---- admission --------------------------------------------------------------------------------------------------- */

/* What a body of `bytes` will need besides the tree of a JSON text: itself, and its work. A prior's row of predictions
 * is at least 12 bytes on the wire and 13 in the workspace; a number in JSON is at least 2 characters and 4 bytes as a
 * float. */
static size_t needed_bytes(proto_encoding encoding, bool guess, size_t bytes) {
    return bytes / 2 * (encoding == PROTO_JSON || guess ? 8 : 5) + BASE_BYTES;
}

static answer refuse(int status, int retry, const char *code, const char *detail, const char *id) {
    answer a = answer_problem(status, code, detail, "", id);
    a.retry_after = retry;
    return a;
}

static request *new_request(server *server, size_t need, const char *id, answer *refusal) {
    request *r = calloc(1, sizeof *r);
    if (!r) {
        *refusal = refuse(503, 1, "out_of_memory", "No memory for another request.", id);
        return NULL;
    }
    if (!lease_begin(&r->lease, server->memory, need)) {
        free(r);
        *refusal = refuse(503, 1, "memory_full", "The memory for bodies in flight is full; try again soon.", id);
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    atomic_init(&r->refs, 1);
    r->server = server;
    return r;
}

request *request_admit(server *server, proto_task task, proto_encoding encoding, bool guess, proto_encoding accept,
                       size_t expected, const char *id, answer *refusal) {
    if (atomic_load(&server->closing)) {
        *refusal = refuse(503, 5, "draining", "This daemon is shutting down.", id);
        return NULL;
    }
    size_t first = expected ? expected : FIRST_CHUNKED_BYTES, need = needed_bytes(encoding, guess, first);
    if (need > memory_limit(server->memory)) {
        *refusal = refuse(413, 0, "body_too_large", "A body of this size may need more than --memory-limit.", id);
        return NULL;
    }
    if (atomic_fetch_add(&server->tickets, 1) >= server->options.queue_limit) {
        atomic_fetch_sub(&server->tickets, 1);
        *refusal = refuse(503, 1, "queue_full", "As many requests as --queue-limit allows are being served.", id);
        return NULL;
    }
    request *r = new_request(server, need, id, refusal);
    if (!r) {
        atomic_fetch_sub(&server->tickets, 1);
        return NULL;
    }
    r->task = task;
    r->encoding = encoding;
    r->guess = guess;
    r->accept = accept;
    r->expected = expected;
    r->began_ns = now_ns();
    strncpy(r->id, id, sizeof r->id - 1);
    if (lease_take(&r->lease, first, &r->body) != BX_OK) {
        *refusal = refuse(503, 1, "out_of_memory", "No memory for this body.", id);
        request_unref(r);
        return NULL;
    }
    return r;
}

void request_ref(request *r) {
    atomic_fetch_add(&r->refs, 1);
}

static void return_ticket(request *r) {
    if (!atomic_exchange(&r->ticket_returned, true)) {
        atomic_fetch_sub(&r->server->tickets, 1);
    }
}

static void return_memory(request *r) {
    if (r->decoded) {
        proto_request_free(&r->decoded_request);
        r->decoded = false;
    }
    lease_give(&r->lease, &r->body);
    lease_give(&r->lease, &r->work);
}

void request_unref(request *r) {
    if (atomic_fetch_sub(&r->refs, 1) != 1) {
        return;
    }
    return_ticket(r);
    return_memory(r);
    for (size_t i = 0; i < r->n_query; i++) {
        free((char *)r->query[i].name);
    }
    free(r->query);
    answer_free(&r->answer);
    lease_end(&r->lease);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- settling ---------------------------------------------------------------------------------------------------- */

/* The one place where an answer becomes final. Takes the answer; returns whether it was taken up. */
static bool settle(request *r, answer given) {
    pthread_mutex_lock(&r->lock);
    bool wins = !r->settled && r->state != REQUEST_EXPIRED;
    bool waiting = wins && r->state == REQUEST_WAITING;
    if (wins) {
        r->answer = given;
        r->settled = true;
    }
    if (waiting) {
        r->state = REQUEST_RESUMING;
    }
    pthread_mutex_unlock(&r->lock);
    if (waiting) {
        r->resume(r->connection, r->resume_argument); /* suspended until now, so it cannot have gone */
    }
    if (!wins) {
        answer_free(&given);
    }
    return wins;
}

static answer error_answer(request *r, const bx_error *error) {
    return answer_error(error, r->decoded ? &r->decoded_request : NULL, r->encoding, r->id);
}

/* For the last unit, and for what never had one. */
static void settle_finished(request *r, answer given) {
    pthread_mutex_lock(&r->lock);
    r->finished = true;
    pthread_mutex_unlock(&r->lock);
    settle(r, given);
}

void request_fail(request *r, int status, const char *code, const char *detail) {
    answer a = answer_problem(status, code, detail, "", r->id);
    a.retry_after = status == 503 ? 5 : 0;
    if (settle(r, a)) {
        pool_cancel(r->server->pool, r);
    }
}

bool request_expire(request *r) {
    pthread_mutex_lock(&r->lock);
    bool expired = r->state == REQUEST_RECEIVING && !r->settled;
    r->state = expired ? REQUEST_EXPIRED : r->state;
    pthread_mutex_unlock(&r->lock);
    return expired;
}

bool request_expired(request *r) {
    pthread_mutex_lock(&r->lock);
    bool expired = r->state == REQUEST_EXPIRED;
    pthread_mutex_unlock(&r->lock);
    return expired;
}

bool request_wait(request *r, bool (*suspend)(void *connection, void *argument), void *argument) {
    pthread_mutex_lock(&r->lock);
    bool wait = !r->settled && r->state == REQUEST_RECEIVING;
    if (wait) {
        wait = suspend(r->connection, argument);
        r->state = wait ? REQUEST_WAITING : r->state;
    }
    pthread_mutex_unlock(&r->lock);
    return wait;
}

bool request_answer(request *r, answer *out) {
    pthread_mutex_lock(&r->lock);
    bool ready = r->settled && r->state != REQUEST_EXPIRED;
    if (ready) {
        *out = r->answer;
        r->answer = (answer){0};
        r->state = REQUEST_ANSWERED;
        /* before the client can read the answer and send its next request */
        return_ticket(r);
        if (r->finished) {
            return_memory(r);
            lease_keep(&r->lease, out->body.bytes);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return ready;
}

void request_abandon(request *r) {
    pool_cancel(r->server->pool, r);
    request_unref(r);
}

/* ---- decoding and planning --------------------------------------------------------------------------------------- */

static bx_status check_device(request *r) {
    if (!strncmp(r->decoded_request.device, "cuda", 4)) {
        bx_fail(&r->error, BX_DEVICE, "device_unavailable", "this daemon has no device \"%s\"",
                r->decoded_request.device);
        bx_at(&r->error, "device");
        return BX_DEVICE;
    }
    return BX_OK;
}

/* No room for `bytes` more: for now, or (since this request alone would need more than there is) for ever. */
static bx_status no_memory(request *r, bx_status status, size_t bytes) {
    const size_t limit = memory_limit(r->server->memory);
    if (status == BX_BUSY && bytes > limit - r->lease.held) {
        return bx_fail(&r->error, BX_TOO_LARGE, "too_expensive",
                       "the request needs %zu bytes besides the %zu it holds, more than --memory-limit (%zu)", bytes,
                       r->lease.held, limit);
    }
    return bx_fail(&r->error, status, status == BX_BUSY ? "memory_full" : "out_of_memory",
                   "no memory for this request at the moment (%zu bytes)", bytes);
}

/* What a batch is not allowed to ask for, whoever asks. */
static bx_status check_cost(request *r) {
    r->answer_bytes = proto_answer_bytes(&r->decoded_request, &r->plan, r->accept);
    const double seconds = (r->plan.cost_us + US_PER_ANSWER_BYTE * (double)r->answer_bytes) * 1e-6;
    if (seconds > (double)r->server->options.request_timeout) {
        return bx_fail(
            &r->error, BX_TOO_LARGE, "too_expensive",
            "the work is estimated at %.0f s on one core, more than --request-timeout (%ld s); send less at once",
            seconds, r->server->options.request_timeout);
    }
    return BX_OK;
}

/* Memory for the work and the answer. The common case fits what admission reserved. */
static bx_status take_work(request *r) {
    const size_t n = (size_t)r->plan.n_images;
    size_t counters = n * (sizeof(atomic_int) + sizeof(int32_t));
    bx_status status = lease_take(&r->lease, r->plan.work_bytes + counters, &r->work);
    if (status == BX_OK && !lease_promise(&r->lease, r->answer_bytes)) {
        status = BX_BUSY;
        lease_give(&r->lease, &r->work);
    }
    if (status != BX_OK) {
        return no_memory(r, status, r->plan.work_bytes + r->answer_bytes);
    }
    bx_job_init(&r->job, &r->plan, &r->decoded_request.batch, r->work.data);
    r->job.cancel = &r->cancelled;
    r->blocks_left = (atomic_int *)(void *)((char *)r->work.data + r->plan.work_bytes);
    r->images_ready = (int32_t *)(void *)(r->blocks_left + n);
    for (size_t i = 0; i < n; i++) {
        atomic_init(&r->blocks_left[i], r->plan.n_blocks + 1);
    }
    atomic_init(&r->images_left, r->plan.n_images);
    return BX_OK;
}

/* Heap memory that the decoded request keeps. */
static size_t decoded_bytes(const request *r) {
    const proto_request *q = &r->decoded_request;
    const bx_batch *b = &q->batch;
    size_t bytes = ((size_t)b->n_images + 1) * 4 + (size_t)b->first[b->n_images] * 24;
    if (q->own_priors) {
        bytes += bx_priors_bytes(q->own_priors->n, q->own_priors->n_levels);
    }
    if (r->encoding == PROTO_JSON && b->conf.data) {
        bytes += (size_t)b->n_images * (size_t)b->n_priors * ((size_t)b->n_columns + 4) * 4;
    }
    return bytes;
}

/* A JSON tree is counted while it stands: it is gone when the batch is decoded. The most it could take is asked for
 * first; when that is not free, what a document of ordinary numbers takes. */
static bx_status borrow_tree(request *r, size_t *tree) {
    static const size_t per_byte[] = {JSON_TREE, JSON_TREE / 4};
    const size_t most = memory_limit(r->server->memory) / 2;
    for (size_t i = 0; i < sizeof per_byte / sizeof *per_byte; i++) {
        size_t wanted = r->received * per_byte[i] + BASE_BYTES;
        *tree = wanted < most ? wanted : most;
        if (lease_borrow(&r->lease, *tree)) {
            return BX_OK;
        }
    }
    return no_memory(r, BX_BUSY, *tree);
}

static bx_status decode(request *r, size_t bytes) {
    size_t tree = 0;
    bx_status status = r->encoding == PROTO_JSON ? borrow_tree(r, &tree) : BX_OK;
    if (status != BX_OK) {
        return status;
    }
    status = proto_request_decode(&r->decoded_request, r->task, r->encoding, r->body.data, bytes, r->query, r->n_query,
                                  &r->server->catalog, &(proto_limits){tree}, &r->error);
    lease_return(&r->lease, tree);
    r->decoded = status == BX_OK;
    if (r->decoded && !lease_promise(&r->lease, decoded_bytes(r))) {
        status = no_memory(r, BX_BUSY, decoded_bytes(r));
    }
    return status;
}

/* Body -> batch -> plan -> job. `bytes` is the body's full length, of which the annotations at least are there. */
static bx_status prepare(request *r, size_t bytes) {
    bx_status status = decode(r, bytes);
    if (status == BX_OK) {
        status = check_device(r);
    }
    if (status == BX_OK) {
        const proto_request *q = &r->decoded_request;
        status = bx_plan_init(&r->plan, q->criterion, q->priors, &q->batch, &r->error);
    }
    if (status == BX_OK) {
        status = check_cost(r);
    }
    if (status == BX_OK) {
        status = take_work(r);
    }
    r->planned = status == BX_OK;
    return status;
}

/* Small enough for the receiving thread. */
static bool is_small(const request *r) {
    return r->plan.cost_us + US_PER_ANSWER_BYTE * (double)r->answer_bytes < INLINE_US;
}

/* ---- progress: what of a planned request may run ----------------------------------------------------------------- */

/* Rows of a prediction tensor that are in, from 0 to N*P. */
static int64_t rows_in(const request *r, bx_tensor tensor, size_t width) {
    const size_t row = width * bx_dtype_bytes(tensor.dtype);
    const int64_t all = (int64_t)r->plan.n_images * r->plan.n_priors;
    const char *data = tensor.data, *body = r->body.data;
    if (!data || data < body || data >= body + r->body.bytes) {
        return all; /* decoded into memory of its own */
    }
    size_t at = (size_t)(data - body);
    int64_t rows = r->received > at ? (int64_t)((r->received - at) / row) : 0;
    return rows < all ? rows : all;
}

static void progress(request *r) {
    const bx_plan *plan = &r->plan;
    const bx_batch *batch = &r->decoded_request.batch;
    int64_t rows = rows_in(r, batch->conf, (size_t)plan->n_columns);
    int64_t blocks = rows / plan->n_priors * plan->n_blocks + rows % plan->n_priors / BX_BLOCK;
    int64_t images = rows_in(r, batch->loc, 4) / plan->n_priors;
    for (; r->images_arrived < images; r->images_arrived++) {
        if (atomic_fetch_sub(&r->blocks_left[r->images_arrived], 1) == 1) { /* its blocks were done first */
            pool_push_image(r->server->pool, r, r->images_arrived);
        }
    }
    pool_advance(r->server->pool, r, blocks);
}

static void mark_begun(request *r) {
    long long none = 0;
    atomic_compare_exchange_strong(&r->first_unit_ns, &none, now_ns());
}

/* The whole of a small request, by the receiving thread. False when no context is free. */
static bool run_inline(request *r) {
    bx_context *context = pool_borrow(r->server->pool);
    if (!context) {
        return false;
    }
    mark_begun(r);
    for (int32_t i = 0; i < r->plan.n_images; i++) {
        atomic_fetch_sub(&r->blocks_left[i], 1); /* its loc rows */
        for (int32_t b = 0; b < r->plan.n_blocks; b++) {
            request_run_unit(r, context, (int64_t)i * r->plan.n_blocks + b);
        }
    }
    pool_return(r->server->pool, context);
    return true;
}

/* ---- receiving --------------------------------------------------------------------------------------------------- */

/* Nothing of a failed body is needed any more; a planned one cannot fail here. */
static void drop_body(request *r) {
    lease_give(&r->lease, &r->body);
}

/* Room for `bytes` more of a body of unknown length. */
static bx_status grow(request *r, size_t bytes) {
    size_t wanted = r->received + bytes;
    if (wanted > (size_t)r->server->options.max_body) {
        return bx_fail(&r->error, BX_TOO_LARGE, "body_too_large", "the body is larger than --max-body (%ld bytes)",
                       r->server->options.max_body);
    }
    if (wanted <= r->body.bytes) {
        return BX_OK;
    }
    buffer larger;
    bx_status status = lease_take(&r->lease, 2 * wanted, &larger);
    if (status == BX_BUSY) {
        status = lease_take(&r->lease, wanted, &larger);
    }
    if (status != BX_OK) {
        return no_memory(r, status, wanted);
    }
    memcpy(larger.data, r->body.data, r->received);
    lease_give(&r->lease, &r->body);
    r->body = larger;
    return BX_OK;
}

static bx_status check_json_size(request *r, size_t bytes) {
    if (r->encoding == PROTO_JSON && bytes > (size_t)r->server->options.max_json) {
        return bx_fail(&r->error, BX_TOO_LARGE, "body_too_large",
                       "a JSON body of %zu bytes is larger than --max-json (%ld); send it as safetensors", bytes,
                       r->server->options.max_json);
    }
    return BX_OK;
}

static bx_status receive(request *r, const void *data, size_t bytes) {
    bx_status status = r->expected ? BX_OK : grow(r, bytes);
    if (status != BX_OK) {
        return status;
    }
    if (r->received + bytes > r->body.bytes) {
        return bx_fail(&r->error, BX_INTERNAL, "internal", "more bytes than Content-Length");
    }
    if (r->guess && r->received == 0) {
        r->encoding = proto_encoding_guess(data, bytes);
    }
    memcpy((char *)r->body.data + r->received, data, bytes);
    r->received += bytes;
    if (r->received == r->expected) {
        r->received_ns = now_ns(); /* before the workers can see the last rows */
    }
    status = check_json_size(r, r->expected ? r->expected : r->received);
    if (status != BX_OK) {
        return status;
    }
    if (r->expected >= EARLY_BYTES && r->encoding == PROTO_SAFETENSORS && !r->planned) {
        if (!r->prefix) {
            r->prefix = proto_request_prefix(r->body.data, r->received, r->expected);
        }
        if (r->prefix && r->prefix <= r->received && r->prefix <= DECODE_BYTES && r->received < r->expected) {
            status = prepare(r, r->expected);
        }
    }
    if (r->planned && !is_small(r)) {
        progress(r);
    }
    return status;
}

bool request_receive(request *r, const void *data, size_t bytes) {
    bool wanted = r->error.status == BX_OK;
    if (wanted && receive(r, data, bytes) != BX_OK) {
        drop_body(r);
    }
    return wanted;
}

bool request_complete(request *r) {
    if (!r->expected) {
        r->received_ns = now_ns();
    }
    bool ok = r->error.status == BX_OK;
    if (ok && !r->planned) {
        if (r->received > (r->encoding == PROTO_JSON ? JSON_DECODE_BYTES : DECODE_BYTES)) {
            pool_push_decode(r->server->pool, r);
            return false;
        }
        ok = prepare(r, r->received) == BX_OK;
    }
    if (!ok) {
        settle_finished(r, error_answer(r, &r->error));
        return true;
    }
    if (is_small(r) && run_inline(r)) {
        return true;
    }
    progress(r);
    return false;
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* Where the time after the last byte went; what ran while bytes arrived cost the client nothing. */
static proto_timing timing(const request *r) {
    int64_t first = atomic_load(&r->first_unit_ns);
    int64_t start = first > r->received_ns ? first : r->received_ns;
    return (proto_timing){
        .receive_ms = (double)(r->received_ns - r->began_ns) / NS_PER_MS,
        .queue_ms = (double)(start - r->received_ns) / NS_PER_MS,
        .compute_ms = (double)(now_ns() - start) / NS_PER_MS,
    };
}

static void finish(request *r) {
    if (atomic_load(&r->cancelled)) {
        return; /* units that were cut short left nothing to reduce, and nobody waits */
    }
    bx_result result;
    bx_error error = {0};
    answer done = {.status = 200, .type = r->accept == PROTO_JSON ? PROTO_TYPE_JSON : PROTO_TYPE_SAFETENSORS};
    done.timing = timing(r);
    bx_status status = bx_finish(&result, &r->job, &error);
    if (status == BX_OK) {
        status = proto_answer_encode(&done.body, r->accept, &r->decoded_request, &result, &done.timing, r->id,
                                     memory_limit(r->server->memory), &error);
    }
    if (status != BX_OK) {
        answer_free(&done);
        done = error_answer(r, &error);
    }
    settle_finished(r, done);
}

void request_run_image(request *r, bx_context *context, int32_t image) {
    mark_begun(r);
    bx_run_image(context, &r->job, image);
    if (atomic_fetch_sub(&r->images_left, 1) == 1) {
        finish(r);
    }
}

void request_run_unit(request *r, bx_context *context, int64_t unit) {
    int32_t image = (int32_t)(unit / r->plan.n_blocks), block = (int32_t)(unit % r->plan.n_blocks);
    mark_begun(r);
    bx_run_block(context, &r->job, image, block);
    if (atomic_fetch_sub(&r->blocks_left[image], 1) == 1) {
        request_run_image(r, context, image);
    }
}

void request_run_decode(request *r) {
    mark_begun(r);
    if (prepare(r, r->received) == BX_OK) {
        progress(r);
    } else {
        settle_finished(r, error_answer(r, &r->error));
    }
}
