/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request that is not answered at once, from its first byte to its answer.
 *
 * What is in memory is counted, from admission on. A request is decoded as early as it can be (batch.c), or handed to a
 * worker whole; whoever settles it first wins (the last unit of work, a deadline, a drain), and only the winner resumes
 * a waiting connection.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define EARLY_BYTES         ((size_t)256 << 10) /* smaller bodies are decoded when complete */
#define HEAD_BYTES          ((size_t)64 << 10)  /* kept of larger ones until it is known what they are */
#define DECODE_BYTES        ((size_t)1 << 20)   /* decoding more than this is a worker's job */
#define JSON_DECODE_BYTES   ((size_t)32 << 10)  /* and more than this of JSON */
#define JSON_SHARE          8                   /* of --memory-limit, for the tree of one document */
#define FIRST_CHUNKED_BYTES ((size_t)64 << 10)  /* none of the small buffers, whose bytes stay with the lease */
#define BASE_BYTES          ((size_t)256 << 10)
#define LATER_BYTES         ((size_t)1 << 20)  /* of prior boxes or JSON texts: a worker makes them */
#define MOST_AT_CLERK       8                  /* requests that wait for the disk, however slow it is */
#define MOST_AT_READER      64                 /* and that look at what was recorded */
#define CRITERION_BYTES     (4L << 20)         /* lists with a number for each class, however they are written */
#define INFLATED_BYTES      ((size_t)16 << 10) /* at a time */

/* ---- admission --------------------------------------------------------------------------------------------------- */

/* What a body of `bytes` will need: itself, and its work. A prior's row of predictions is at least 12 bytes on the wire
 * and 13 in the workspace; what JSON holds in 6 characters or more is less. */
static size_t needed_bytes(const route *route, size_t bytes) {
    if (route->how != ROUTE_BATCH) {
        return route->has_body ? bytes + BASE_BYTES : 0;
    }
    return bytes / 2 * 5 + BASE_BYTES;
}

long request_body_limit(const options *o, const route *route, proto_encoding encoding, const char **why) {
    long limit = o->max_body;
    *why = "--max-body";
    if (encoding == PROTO_JSON && o->max_json > 0 && o->max_json < limit) {
        limit = o->max_json;
        *why = "--max-json; send larger ones as binary tensors";
    }
    if (route->has_body && route->kind == DEFINITION_CRITERION && CRITERION_BYTES < limit) {
        limit = CRITERION_BYTES;
        *why = "of a criterion";
    }
    return limit;
}

/* Whether the beginning of a body tells what follows. */
static bool tells_early(proto_encoding encoding, int64_t json_bytes) {
    return encoding == PROTO_SAFETENSORS ||
           (encoding == PROTO_INFER && json_bytes > 0 && (size_t)json_bytes <= JSON_DECODE_BYTES);
}

static answer refuse(int status, int retry, const char *code, const char *detail, const char *id) {
    answer a = answer_problem(status, code, detail, "", id);
    a.retry_after = retry;
    return a;
}

/* Who works on a request, and how many may wait for that. What waits for the disk has tickets of its own, so that it
 * never takes those of what computes. What computes does so while its body comes, and has its ticket from the head on;
 * the others take theirs when they are complete, so that who sends nothing waits for nobody. */
typedef struct lane {
    pool *pool;
    atomic_long *tickets;
    long most;
    const char *full; /* what is said then */
} lane;

#define AGAIN "Ask again after Retry-After seconds."

static lane lane_of(server *server, const route *route) {
    const lane disk = {server->clerk, &server->at_clerk, MOST_AT_CLERK,
                       "As many registrations and deletions as are possible at a time wait for the disk. " AGAIN};
    switch (route->how) {
    case ROUTE_BY_CLERK:
        return disk;
    case ROUTE_BY_WRITER: /* whose queue is not a pool's */
        return (lane){server->pool, disk.tickets, disk.most, disk.full};
    case ROUTE_BY_READER:
        return (lane){server->reader, &server->at_reader, MOST_AT_READER,
                      "As many requests for runs as are possible at a time are being served. " AGAIN};
    default:
        return (lane){server->pool, &server->tickets, server->options.queue_limit,
                      "As many requests as --queue-limit allows are being served. " AGAIN};
    }
}

static request *new_request(server *server, const admission *a, size_t need, answer *refusal) {
    request *r = calloc(1, sizeof *r);
    if (!r) {
        *refusal = refuse(503, 1, "out_of_memory", "No memory for another request.", a->id);
        return NULL;
    }
    if (!lease_begin(&r->lease, server->memory, need)) {
        free(r);
        *refusal = refuse(503, 1, "memory_full", "The memory for bodies in flight is full; try again soon.", a->id);
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->advanced, NULL);
    atomic_init(&r->refs, 1);
    r->server = server;
    r->pool = lane_of(server, a->route).pool;
    r->route = a->route;
    r->encoding = a->encoding;
    r->guess = a->guess;
    r->right = a->right;
    r->accept = a->accept;
    r->condition = a->condition;
    r->expected = a->expected;
    r->json_bytes = a->json_bytes;
    r->reply = a->reply;
    r->began_ns = now_ns();
    copy_text(r->name, sizeof r->name, a->name ? a->name : "");
    copy_text(r->id, sizeof r->id, a->id);
    copy_text(r->if_none_match, sizeof r->if_none_match, a->if_none_match ? a->if_none_match : "");
    return r;
}

static bool computes(const route *route) {
    return route->how == ROUTE_BATCH || route->how == ROUTE_BY_WORKER;
}

static bool take_ticket(server *server, const route *route, const char *id, answer *refusal) {
    const lane lane = lane_of(server, route);
    if (atomic_fetch_add(lane.tickets, 1) < lane.most) {
        return true;
    }
    atomic_fetch_sub(lane.tickets, 1);
    *refusal = refuse(503, 1, "queue_full", lane.full, id);
    return false;
}

static void give_ticket(server *server, const route *route) {
    atomic_fetch_sub(lane_of(server, route).tickets, 1);
}

request *request_admit(server *server, const admission *a, answer *refusal) {
    if (atomic_load(&server->closing)) {
        *refusal = refuse(503, 5, "draining", "This daemon is shutting down.", a->id);
        return NULL;
    }
    const bool head_only = a->route->how == ROUTE_BATCH && a->expected >= server_from(server, EARLY_BYTES) &&
                           (tells_early(a->encoding, a->json_bytes) || a->guess);
    const size_t first = head_only            ? server_from(server, HEAD_BYTES)
                         : a->expected        ? a->expected
                         : a->route->has_body ? FIRST_CHUNKED_BYTES
                                              : 0;
    const size_t need = needed_bytes(a->route, first) + (a->coding ? PROTO_INFLATER_BYTES : 0);
    if (need > memory_limit(server->memory)) {
        *refusal = refuse(413, 0, "body_too_large", "A body of this size may need more than --memory-limit.", a->id);
        return NULL;
    }
    const bool ticket = computes(a->route);
    if (ticket && !take_ticket(server, a->route, a->id, refusal)) {
        return NULL;
    }
    request *r = new_request(server, a, need, refusal);
    if (!r) {
        if (ticket) {
            give_ticket(server, a->route);
        }
        return NULL;
    }
    atomic_init(&r->has_ticket, ticket);
    r->head_only = head_only;
    bool fine = first == 0 || lease_take(&r->lease, first, &r->body) == BX_OK;
    if (fine && a->coding) {
        r->inflater = proto_inflater_new(a->coding);
        fine = r->inflater && lease_promise(&r->lease, PROTO_INFLATER_BYTES);
    }
    if (!fine) {
        *refusal = refuse(503, 1, "out_of_memory", "No memory for this body.", a->id);
        request_unref(r);
        return NULL;
    }
    return r;
}

void request_ref(request *r) {
    atomic_fetch_add(&r->refs, 1);
}

static void return_ticket(request *r) {
    if (atomic_exchange(&r->has_ticket, false)) {
        give_ticket(r->server, r->route);
    }
}

static void return_memory(request *r) {
    if (r->decoded) {
        proto_request_free(&r->decoded_request);
        r->decoded = false;
    }
    lease_give(&r->lease, &r->body);
    lease_give(&r->lease, &r->work);
    lease_give(&r->lease, &r->gradients);
}

void request_unref(request *r) {
    if (atomic_fetch_sub(&r->refs, 1) != 1) {
        return;
    }
    return_ticket(r);
    return_memory(r);
    lease_give(&r->lease, &r->stages);
    request_drop_regions(r);
    proto_inflater_free(r->inflater);
    for (size_t i = 0; i < r->n_query; i++) {
        free((char *)r->query[i].name);
    }
    free(r->query);
    answer_free(&r->answer);
    lease_end(&r->lease);
    pthread_cond_destroy(&r->advanced);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* Every unit is done, or is left over and looks at nothing but the stages. Under the lock. */
static void keep_answer(request *r, size_t bytes) {
    if (r->plan.streamed) {
        pool_forget(r->pool, r); /* what waits there waits in memory that goes now */
    }
    return_memory(r);
    lease_keep(&r->lease, bytes + r->stages.bytes);
}

void request_computed(request *r, size_t bytes) {
    pthread_mutex_lock(&r->lock);
    r->recorded = true;
    r->done_bytes = bytes;
    if (r->state != REQUEST_RECEIVING && r->state != REQUEST_EXPIRED) {
        keep_answer(r, bytes);
    } /* otherwise the receiving thread may still be looking; it does this when it waits */
    pthread_mutex_unlock(&r->lock);
    return_ticket(r);
}

/* ---- settling ---------------------------------------------------------------------------------------------------- */

/* The one place where an answer becomes final; `finished`: every unit is done. Takes the answer; returns whether it was
 * taken up. */
static bool settle(request *r, answer given, bool finished) {
    pthread_mutex_lock(&r->lock);
    r->finished |= finished;
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

answer request_error(request *r, const bx_error *error) {
    return answer_error(error, r->decoded ? &r->decoded_request : NULL, r->encoding, r->id);
}

void request_settle(request *r, answer given) {
    settle(r, given, true);
}

/* Nobody wants the result. */
static void cancel(request *r) {
    pool_cancel(r->pool, r);
    device_forget(r);
}

void request_fail(request *r, int status, const char *code, const char *detail) {
    answer a = answer_problem(status, code, detail, "", r->id);
    a.retry_after = status == 503 ? 5 : 0;
    if (settle(r, a, false)) {
        cancel(r);
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
    if (wait && r->recorded) {
        keep_answer(r, r->done_bytes);
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
            keep_answer(r, out->body.bytes);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return ready;
}

void request_abandon(request *r) {
    if (!r->alone) {
        cancel(r);
    }
    request_unref(r);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

bx_status request_no_memory(const request *r, bx_status status, size_t bytes, bx_error *error) {
    const size_t limit = memory_limit(r->server->memory);
    if (status == BX_BUSY && bytes > limit - r->lease.held) {
        return bx_fail(error, BX_TOO_LARGE, "too_expensive",
                       "the request needs %zu bytes besides the %zu it holds, more than --memory-limit (%zu)", bytes,
                       r->lease.held, limit);
    }
    return bx_fail(error, status, status == BX_BUSY ? "memory_full" : "out_of_memory",
                   "no memory for this request at the moment (%zu bytes)", bytes);
}

/* ---- receiving --------------------------------------------------------------------------------------------------- */

/* Nothing of a failed body is needed any more; a planned one cannot fail here. */
static void drop_body(request *r) {
    lease_give(&r->lease, &r->body);
}

/* A larger buffer for the body, of `most` bytes if there is room for them. */
static bx_status move_body(request *r, size_t least, size_t most) {
    buffer larger;
    bx_status status = lease_take(&r->lease, most, &larger);
    if (status == BX_BUSY && most > least) {
        status = lease_take(&r->lease, least, &larger);
    }
    if (status != BX_OK) {
        return request_no_memory(r, status, least, &r->error);
    }
    memcpy(larger.data, r->body.data, r->received);
    lease_give(&r->lease, &r->body);
    r->body = larger;
    return BX_OK;
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
    return move_body(r, wanted, 2 * wanted);
}

/* Of a guessed encoding, or an unknown length. */
static bx_status check_size(request *r, size_t bytes) {
    const char *why;
    const bool all_json = r->encoding == PROTO_INFER && r->json_bytes < 0;
    const long limit = request_body_limit(&r->server->options, r->route, all_json ? PROTO_JSON : r->encoding, &why);
    if (bytes > (size_t)limit) {
        return bx_fail(&r->error, BX_TOO_LARGE, "body_too_large", "a body of %zu bytes is larger than %ld (%s)", bytes,
                       limit, why);
    }
    return BX_OK;
}

/* Into the buffer, which has room. */
static void keep(request *r, const char *data, size_t bytes) {
    memcpy((char *)r->body.data + r->received, data, bytes);
    r->received += bytes;
}

/* The second half of the admission of a body that is not streamed: memory for all of it and for its work. */
bx_status request_reserve_whole(request *r, bx_error *error) {
    const size_t need = needed_bytes(r->route, r->expected);
    if (need > memory_limit(r->server->memory)) {
        return bx_fail(error, BX_TOO_LARGE, "body_too_large", "a body of %zu bytes may need more than --memory-limit",
                       r->expected);
    }
    const size_t have = r->lease.reserved + r->lease.held;
    if (need > have && !lease_reserve(&r->lease, need - have)) {
        return request_no_memory(r, BX_BUSY, need - have, error);
    }
    return BX_OK;
}

static bx_status keep_whole(request *r) {
    bx_status status = request_reserve_whole(r, &r->error);
    r->head_only = false;
    return status == BX_OK ? move_body(r, r->expected, r->expected) : status;
}

/* How much must be in before it can be decoded; 0: not known yet. */
static size_t prefix_of(const request *r) {
    return r->encoding == PROTO_INFER ? proto_infer_prefix(r->body.data, r->received, r->expected, r->json_bytes)
                                      : proto_request_prefix(r->body.data, r->received, r->expected);
}

/* What the beginning of a long body tells. Once its annotations are in, its predictions are streamed if they can be;
 * where that is not possible or not known soon enough, all of it is kept. */
static bx_status look_at_head(request *r) {
    if (tells_early(r->encoding, r->json_bytes) && !r->prefix) {
        r->prefix = prefix_of(r);
        if (!r->prefix && r->received < r->body.bytes) {
            return BX_OK;
        }
    }
    if (!r->prefix || r->prefix > server_from(r->server, DECODE_BYTES) || r->prefix == r->expected) {
        return keep_whole(r);
    }
    if (r->prefix > r->received) {
        return r->prefix > r->body.bytes ? move_body(r, r->prefix, r->prefix) : BX_OK;
    }
    bx_status status = batch_prepare_stream(r);
    if (status != BX_OK) {
        return status;
    }
    if (!r->planned) {
        return keep_whole(r);
    }
    r->head_only = false;
    stream_receive(r, r->prefix, (const char *)r->body.data + r->prefix, r->received - r->prefix);
    return BX_OK;
}

/* What of a body that is kept may be computed already. */
static bx_status look_at_body(request *r) {
    const size_t most = server_from(r->server, DECODE_BYTES);
    const bool early = r->route->how == ROUTE_BATCH && r->expected >= server_from(r->server, EARLY_BYTES) &&
                       tells_early(r->encoding, r->json_bytes);
    if (early && !r->planned && !r->later) {
        if (!r->prefix) {
            r->prefix = prefix_of(r);
        }
        if (r->prefix && r->prefix <= r->received && r->prefix <= most && r->received < r->expected) {
            bx_status status = batch_prepare_here(r, r->expected);
            if (status != BX_OK) {
                return status;
            }
        }
    }
    if (r->planned && !r->small) {
        batch_progress(r);
    }
    return BX_OK;
}

/* From the body's first bytes, whatever pieces they come in. Whether there are enough of them. */
static bool guess(request *r, const char *data, size_t bytes) {
    char first[PROTO_GUESS_BYTES];
    const size_t missing = sizeof first - r->received, more = bytes < missing ? bytes : missing;
    const size_t n = r->received + more;
    memcpy(first, r->body.data, r->received);
    memcpy(first + r->received, data, more);
    r->encoding = proto_encoding_guess(first, n);
    return n == sizeof first || n == r->expected;
}

static bx_status receive(request *r, const char *data, size_t bytes) {
    bx_status status = r->expected ? BX_OK : grow(r, bytes);
    if (status != BX_OK) {
        return status;
    }
    if (r->expected && bytes > r->expected - r->received) {
        return bx_fail(&r->error, BX_INTERNAL, "internal", "more bytes than Content-Length");
    }
    if (r->guess && r->received < PROTO_GUESS_BYTES && !guess(r, data, bytes)) {
        keep(r, data, bytes);
        return BX_OK;
    }
    if (r->received + bytes == r->expected) {
        r->received_ns = now_ns(); /* before the workers can see the last rows */
    }
    status = check_size(r, r->expected ? r->expected : r->received + bytes);
    while (status == BX_OK && r->head_only && bytes > 0) {
        const size_t room = r->body.bytes - r->received, n = bytes < room ? bytes : room;
        keep(r, data, n);
        data += n;
        bytes -= n;
        status = look_at_head(r);
    }
    if (status != BX_OK || r->head_only) {
        return status;
    }
    if (r->planned && r->plan.streamed) {
        stream_receive(r, r->received, data, bytes);
        r->received += bytes;
        return BX_OK;
    }
    keep(r, data, bytes);
    return look_at_body(r);
}

/* The same of a body that has a coding: as much as there is room for. */
static bx_status receive_coded(request *r, const char *data, size_t bytes) {
    char piece[INFLATED_BYTES];
    size_t n;
    bx_status status = BX_OK;
    proto_inflater_give(r->inflater, data, bytes);
    do {
        status = proto_inflater_take(r->inflater, piece, sizeof piece, &n, &r->error);
        if (status == BX_OK && n > 0) {
            status = receive(r, piece, n);
        }
    } while (status == BX_OK && n == sizeof piece);
    return status;
}

bool request_receive(request *r, const void *data, size_t bytes) {
    bool wanted = r->error.status == BX_OK && r->route->has_body;
    if (wanted && (r->inflater ? receive_coded : receive)(r, data, bytes) != BX_OK) {
        drop_body(r);
    }
    return wanted;
}

answer request_refusal(request *r) {
    const answer none = {.status = 0};
    return r->error.status == BX_OK ? none : request_error(r, &r->error);
}

static bool is_settled(request *r) {
    pthread_mutex_lock(&r->lock);
    bool settled = r->settled;
    pthread_mutex_unlock(&r->lock);
    return settled;
}

/* How much of the body is JSON. */
static size_t json_bytes(const request *r) {
    const bool all = r->encoding == PROTO_JSON || (r->encoding == PROTO_INFER && r->json_bytes < 0);
    return all ? r->received : r->encoding == PROTO_INFER ? (size_t)r->json_bytes : 0;
}

/* To whoever works on a whole body. False: too many wait for them, which is settled as the answer. */
static bool hand_over(request *r) {
    if (!computes(r->route)) {
        answer refusal;
        if (!take_ticket(r->server, r->route, r->id, &refusal)) {
            request_settle(r, refusal);
            return false;
        }
        atomic_store(&r->has_ticket, true);
    }
    if (r->route->how == ROUTE_BY_WRITER) {
        runs_put(r->server->runs, r);
    } else {
        pool_push_body(r->pool, r, r->route->how == ROUTE_BY_WORKER);
    }
    return true;
}

bool request_complete(request *r) {
    if (!r->expected) {
        r->received_ns = now_ns();
    }
    bool ok = r->error.status == BX_OK && (!r->inflater || proto_inflater_end(r->inflater, &r->error) == BX_OK);
    proto_inflater_free(r->inflater);
    r->inflater = NULL;
    if (ok && !r->planned) {
        bool here = r->route->how == ROUTE_BATCH && !r->later &&
                    json_bytes(r) <= server_from(r->server, JSON_DECODE_BYTES) &&
                    r->received <= server_from(r->server, DECODE_BYTES);
        ok = !here || batch_prepare_here(r, r->received) == BX_OK;
        if (ok && !r->planned) {
            return !hand_over(r);
        }
    }
    if (!ok && r->planned) { /* units of it may be under way */
        cancel(r);
        settle(r, request_error(r, &r->error), false);
        return true;
    }
    if (!ok) {
        request_settle(r, request_error(r, &r->error));
        return true;
    }
    if (r->plan.streamed) {
        return is_settled(r);
    }
    if (r->small && batch_run_inline(r)) {
        r->alone = !r->decoded_request.run[0]; /* otherwise it is being recorded */
        return r->alone || is_settled(r);
    }
    batch_progress(r);
    return false;
}

/* ---- the whole body ---------------------------------------------------------------------------------------------- */

void request_mark_begun(request *r) {
    long long none = 0;
    if (atomic_load(&r->first_unit_ns) == none) {
        atomic_compare_exchange_strong(&r->first_unit_ns, &none, now_ns());
    }
}

proto_timing request_timing(const request *r) {
    int64_t first = atomic_load(&r->first_unit_ns);
    int64_t start = first > r->received_ns ? first : r->received_ns;
    return (proto_timing){
        .receive_ms = (double)(r->received_ns - r->began_ns) / NS_PER_MS,
        .queue_ms = (double)(start - r->received_ns) / NS_PER_MS,
        .compute_ms = (double)(now_ns() - start) / NS_PER_MS,
    };
}

static bx_status request_reserve(void *context, size_t bytes, bx_error *error) {
    reservation *v = context;
    if (!v->by_worker && bytes > LATER_BYTES) {
        return bx_fail(error, BX_BUSY, REGISTRY_LATER, "%zu bytes have to be made first", bytes);
    }
    if (!lease_borrow(&v->request->lease, bytes)) {
        return request_no_memory(v->request, BX_BUSY, bytes, error);
    }
    v->bytes += bytes;
    return BX_OK;
}

/* Shared memory that its inference names, for as long as it is there. */
static bx_status request_region(void *context, const char *name, size_t offset, size_t bytes, int *index,
                                const void **data, bx_error *error) {
    request *r = ((reservation *)context)->request;
    region *found;
    if (bytes > (size_t)r->server->options.max_body - r->region_bytes) {
        return bx_fail(error, BX_TOO_LARGE, "body_too_large",
                       "the tensors in shared memory are larger than --max-body (%ld bytes)",
                       r->server->options.max_body);
    }
    if (r->n_regions == MOST_REGIONS) {
        return bx_fail(error, BX_INVALID, "shared_memory", "a request has at most %d places in shared memory",
                       MOST_REGIONS);
    }
    bx_status status = shm_use(r->server->shm, name, offset, bytes, &found, error);
    if (status == BX_OK) {
        *data = region_data(found, offset);
        *index = (int)r->n_regions;
        r->regions[r->n_regions++] = found;
        r->region_bytes += bytes;
    }
    return status;
}

void request_drop_regions(request *r) {
    while (r->n_regions > 0) {
        region_unref(r->regions[--r->n_regions]);
    }
    r->region_bytes = 0;
}

proto_limits request_limits(reservation *v) {
    const server *s = v->request->server;
    return (proto_limits){.json_memory = memory_limit(s->memory) / JSON_SHARE,
                          .reserve = request_reserve,
                          .region = s->shm ? request_region : NULL,
                          .context = v};
}

/* What the route's handler makes of the body. What decoding takes is counted while it stands; so is the copy that goes
 * to the disk, which is smaller than the body. */
static answer handle(request *r) {
    const size_t copy = r->received;
    if (!lease_borrow(&r->lease, copy)) {
        request_no_memory(r, BX_BUSY, copy, &r->error);
        return request_error(r, &r->error);
    }
    reservation own = {.request = r, .by_worker = true};
    registration body = {.encoding = r->encoding,
                         .body = r->body.data,
                         .bytes = r->received,
                         .limits = request_limits(&own),
                         .cancelled = &r->cancelled,
                         .condition = r->condition};
    answer a = r->route->handler(&(route_call){.server = r->server,
                                               .route = r->route,
                                               .name = r->name,
                                               .accept = r->accept,
                                               .request_id = r->id,
                                               .if_none_match = r->if_none_match,
                                               .query = r->query,
                                               .n_query = r->n_query,
                                               .lease = &r->lease,
                                               .body = &body});
    lease_return(&r->lease, copy + own.bytes);
    a.timing = request_timing(r);
    return a;
}

void request_run_body(request *r, bool makes) {
    request_mark_begun(r);
    if (r->route->how != ROUTE_BATCH) {
        request_settle(r, handle(r));
    } else if (batch_prepare(r, r->received, true, makes) == BX_OK) {
        batch_progress(r);
    } else if (!makes && !strcmp(r->error.code, REGISTRY_LATER)) {
        r->error = (bx_error){0};
        pool_push_body(r->pool, r, true);
    } else {
        request_settle(r, request_error(r, &r->error));
    }
}
