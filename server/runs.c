/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results that are recorded, and how they are told.
 *
 * A request whose result is to be recorded waits in a queue for the writer, which takes all that waits, writes it in
 * one transaction and only then lets the answers go: the more wait, the fewer times the disk is synced. Whoever waits
 * here is not counted among those who compute; as many can as there are connections. In between the writer tidies up,
 * and looks every CHECK_S whether the store can (still) be used.
 * The handlers run in the reader's thread, which never waits for the disk to take something; deleting is the writer's.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "server.h"

#define MOST_AT_ONCE 256
#define CHECK_S      3 /* seconds */
#define LEAST_POINTS 4 /* the first step, the last one, and two */
#define MOST_POINTS  2000
#define DEFAULT_ROWS 500
#define MOST_ROWS    1000
#define ROW_BYTES    640 /* of JSON, at most: a step with 14 numbers; or a run */

struct runs {
    history *history;
    metrics *metrics;
    pthread_t writer;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    request *first, *last; /* the queue */
    bool stopping;
    atomic_int state;         /* history_state that was logged last */
    unsigned long long birth; /* of this process */
    atomic_ullong changes;    /* of the list of runs */
};

/* ---- the writer -------------------------------------------------------------------------------------------------- */

/* Log what has become of the store, once. */
static void log_state(runs *q, const bx_error *error) {
    const history_state now = history_get_state(q->history), before = atomic_exchange(&q->state, (int)now);
    if (now != before && now == HISTORY_FINE) {
        LOG(LOG_INFO, "store", {"file", history_file(q->history), 0}, {"text", "results can be recorded again", 0});
    } else if (now != before) {
        LOG(LOG_WARN, "store", {"file", history_file(q->history), 0}, {"text", error->text, 0});
    }
}

/* The oldest of the queue. */
static size_t take(runs *q, request *taken[MOST_AT_ONCE]) {
    size_t n = 0;
    while (q->first && n < MOST_AT_ONCE) {
        taken[n++] = q->first;
        q->first = q->first->next_record;
    }
    q->last = q->first ? q->last : NULL;
    return n;
}

static void let_go(request *r) {
    answer_free(&r->done);
    request_unref(r);
}

static void write_all(runs *q, request *taken[], size_t n_taken) {
    const record *records[MOST_AT_ONCE];
    size_t n = 0;
    bx_error error = {0};
    for (size_t i = 0; i < n_taken; i++) {
        if (atomic_load(&taken[i]->cancelled)) {
            let_go(taken[i]);
        } else if (taken[i]->route->how == ROUTE_BY_WRITER) {
            request_run_body(taken[i], false);
            let_go(taken[i]);
        } else {
            records[n] = &taken[i]->record;
            taken[n++] = taken[i];
        }
    }
    if (n == 0) {
        return;
    }
    const int64_t began = now_ns();
    bx_status status = history_write(q->history, records, n, &error);
    const double seconds = (double)(now_ns() - began) / NS_PER_S;
    metrics_store_commit(q->metrics, seconds, status == BX_OK ? (long)n : 0, status == BX_OK ? 0 : (long)n);
    if (status == BX_OK) {
        atomic_fetch_add(&q->changes, 1);
    }
    log_state(q, &error);
    for (size_t i = 0; i < n; i++) {
        request *r = taken[i];
        if (status == BX_OK) {
            request_settle(r, r->done);
            r->done = (answer){0};
        } else {
            request_settle(r, answer_error(&error, NULL, r->encoding, r->id));
        }
        let_go(r);
    }
}

/* Whether there is more to be done before anything comes. */
static bool tend(runs *q) {
    bx_error error = {0};
    bool more = false;
    bx_status status = history_probe(q->history, &error);
    const bool full = status != BX_OK && history_get_state(q->history) == HISTORY_FULL;
    if (status == BX_OK || full) { /* what is deleted makes room */
        status = history_tidy(q->history, &more, &error);
    }
    const bool again = status == BX_OK && more;
    if (full && status == BX_OK) { /* enough of it? */
        status = history_probe(q->history, &error);
    }
    if (more) {
        atomic_fetch_add(&q->changes, 1);
    }
    log_state(q, &error);
    return again;
}

/* Wait until something comes, or the store is to be looked after. */
static void wait_for_more(runs *q, const struct timespec *until) {
    int rc = 0;
    while (!q->first && !q->stopping && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&q->changed, &q->lock, until);
    }
}

static void *write_on(void *argument) {
    pthread_setname_np(pthread_self(), "lossd-recorder");
    runs *q = argument;
    request *taken[MOST_AT_ONCE];
    struct timespec next = {0}; /* at once */
    pthread_mutex_lock(&q->lock);
    for (;;) {
        wait_for_more(q, &next);
        if (!q->first && q->stopping) {
            break;
        }
        const size_t n = take(q, taken);
        pthread_mutex_unlock(&q->lock);
        write_all(q, taken, n);
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > next.tv_sec || (now.tv_sec == next.tv_sec && now.tv_nsec >= next.tv_nsec)) {
            next = now;
            next.tv_sec += tend(q) ? 0 : CHECK_S;
        }
        pthread_mutex_lock(&q->lock);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

void runs_put(runs *q, request *r) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    r->record.step.time_us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    r->next_record = NULL;
    request_ref(r);
    if (r->route->how == ROUTE_BATCH) {
        request_computed(r, r->done.body.bytes); /* whoever computes does not wait for the disk */
    }
    pthread_mutex_lock(&q->lock);
    if (q->last) {
        q->last->next_record = r;
    } else {
        q->first = r;
    }
    q->last = r;
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

history_state runs_state(const runs *q) {
    return history_get_state(q->history);
}

bool runs_ready(const runs *q) {
    const history_state state = history_get_state(q->history);
    return state == HISTORY_FINE || state == HISTORY_FULL || !history_exists(q->history);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

/* What is there must be sound and must be ours to write. */
static bx_status open_history(runs *q, data_dir *directory, bx_error *error) {
    bx_error why = {0};
    bx_status status = data_dir_check(directory, error);
    if (status != BX_OK) {
        return status;
    }
    if (history_open(q->history, &why) == BX_OK) {
        return BX_OK;
    }
    const history_state state = history_get_state(q->history);
    if (state == HISTORY_NEWER) {
        return bx_fail(error, BX_BUSY, "store_broken",
                       "%s: %s. It was left as it is. Run that version, or name another --data-dir",
                       history_file(q->history), why.text);
    }
    if (state == HISTORY_BROKEN) {
        return bx_fail(error, BX_BUSY, "store_broken",
                       "%s: %s. It was left as it is. Put a copy in its place (and no -wal and -shm besides it), or "
                       "what a sqlite3 with a working .recover (Debian 12's has none) reads of it; another --data-dir "
                       "begins anew",
                       history_file(q->history), why.text);
    }
    if (state == HISTORY_GONE && data_dir_claim(directory, error) != BX_OK) {
        return error->status; /* another daemon's */
    }
    if (state == HISTORY_GONE || state == HISTORY_READ_ONLY) {
        return bx_fail(error, BX_BUSY, "store_read_only",
                       "%s: %s; make it this user's to write, or name another --data-dir", history_file(q->history),
                       why.text);
    }
    if (why.status == BX_NOMEM) {
        return bx_fail(error, why.status, why.code, "%s: %s", history_file(q->history), why.text);
    }
    log_state(q, &why); /* a disk that is full, a lock that is held: this passes */
    return BX_OK;
}

bx_status runs_start(runs **out, data_dir *directory, const history_options *options, metrics *metrics,
                     bx_error *error) {
    runs *q = calloc(1, sizeof *q);
    pthread_condattr_t monotonic;
    if (!q || !(q->history = history_new(directory, options))) {
        free(q);
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the runs");
    }
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&q->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    q->metrics = metrics;
    atomic_init(&q->state, HISTORY_FINE);
    atomic_init(&q->changes, 0);
    if (getrandom(&q->birth, sizeof q->birth, 0) != sizeof q->birth) {
        q->birth = (unsigned long long)now_ns();
    }
    bx_status status = open_history(q, directory, error);
    if (status == BX_OK) {
        q->started = !pthread_create(&q->writer, NULL, write_on, q);
        status = q->started ? BX_OK : bx_fail(error, BX_BUSY, "threads", "cannot start the thread that records runs");
    }
    if (status != BX_OK) {
        runs_stop(q);
        return status;
    }
    *out = q;
    return BX_OK;
}

void runs_hurry(runs *q) {
    history_hurry(q->history);
}

void runs_stop(runs *q) {
    if (!q) {
        return;
    }
    if (q->started) {
        pthread_mutex_lock(&q->lock);
        q->stopping = true;
        pthread_cond_signal(&q->changed);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->writer, NULL);
    }
    history_free(q->history);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

/* ---- handlers ---------------------------------------------------------------------------------------------------- */

static answer failed(const route_call *call, const bx_error *error) {
    return answer_error(error, NULL, PROTO_JSON, call->request_id);
}

/* Reserve what so many rows may take. */
static bx_status reserve_rows(const route_call *call, int64_t n, bx_error *error) {
    const size_t bytes = (size_t)n * ROW_BYTES + 4096;
    return lease_promise(call->lease, bytes)
               ? BX_OK
               : bx_fail(error, BX_BUSY, "memory_full", "no memory for %lld rows at the moment", (long long)n);
}

static answer not_modified(const char *tag) {
    answer a = {.status = 304};
    copy_text(a.etag, sizeof a.etag, tag);
    return a;
}

/* A list that is being written. */
typedef struct listing {
    const route_call *call;
    answer answer;
    proto_writer writer;
    int64_t n, limit;
    bool csv, unchanged;
    char last[PROTO_RUN_LENGTH + 1];
} listing;

static const char *option_of(const route_call *call, const char *name) {
    for (size_t i = 0; i < call->n_query; i++) {
        if (!strcmp(call->query[i].name, name)) {
            return call->query[i].value;
        }
    }
    return NULL;
}

static void list_run(void *context, const proto_run *run) {
    listing *l = context;
    if (l->n++ < l->limit) {
        proto_run_row(&l->writer, run);
        copy_text(l->last, sizeof l->last, run->name);
    }
}

answer get_runs(const route_call *call) {
    static const char *const known[] = {"after", "limit", NULL};
    runs *q = call->server->runs;
    listing l = {.call = call, .answer = {.status = 200, .type = PROTO_TYPE_JSON}, .limit = DEFAULT_ROWS};
    bx_error error = {0};
    const char *after = option_of(call, "after");
    const unsigned long long changes = atomic_load(&q->changes); /* before what it is the tag of is read */
    bx_status status = proto_query_check(call->query, call->n_query, known, &error);
    if (status == BX_OK) {
        status = proto_query_integer(call->query, call->n_query, "limit", 1, MOST_ROWS, &l.limit, &error);
    }
    if (status != BX_OK) {
        return failed(call, &error);
    }
    snprintf(l.answer.etag, sizeof l.answer.etag, "\"%llx-%llx\"", q->birth, changes);
    if (etag_matches(call->if_none_match, l.answer.etag)) {
        return not_modified(l.answer.etag);
    }
    l.writer.out = &l.answer.body;
    proto_write_open(&l.writer, NULL, '{');
    proto_write_open(&l.writer, "runs", '[');
    status = reserve_rows(call, l.limit, &error);
    if (status == BX_OK) {
        status = history_list(q->history, after ? after : "", l.limit + 1, list_run, &l, &error);
    }
    if (status != BX_OK) {
        answer_free(&l.answer);
        return failed(call, &error);
    }
    proto_write_close(&l.writer, ']');
    if (l.n > l.limit) {
        proto_write_string(&l.writer, "next", l.last);
    } else {
        proto_write_null(&l.writer, "next");
    }
    proto_write_close(&l.writer, '}');
    proto_write_end(&l.writer);
    return l.answer;
}

answer get_run(const route_call *call) {
    static const char *const known[] = {NULL};
    answer a = {.status = 200, .type = PROTO_TYPE_JSON};
    bx_error error = {0};
    proto_run run;
    proto_step latest;
    bx_status status = proto_query_check(call->query, call->n_query, known, &error);
    if (status == BX_OK) {
        status = history_describe(call->server->runs->history, call->name, &run, &latest, a.etag, &error);
    }
    if (status != BX_OK) {
        return failed(call, &error);
    }
    if (etag_matches(call->if_none_match, a.etag)) {
        return not_modified(a.etag);
    }
    proto_run_describe(&a.body, &run, &latest);
    return a;
}

/* Begin the answer unless the client has it. */
static bool begin_steps(void *context, const proto_run *run, const char *tag) {
    listing *l = context;
    (void)run;
    copy_text(l->answer.etag, sizeof l->answer.etag, tag);
    l->unchanged = etag_matches(l->call->if_none_match, tag);
    if (l->unchanged) {
        return false;
    }
    l->writer.out = &l->answer.body;
    if (l->csv) {
        proto_steps_csv_head(&l->answer.body);
    } else {
        proto_write_open(&l->writer, NULL, '{');
        proto_write_open(&l->writer, "steps", '[');
    }
    return true;
}

static void list_step(void *context, const proto_step *step) {
    listing *l = context;
    if (l->csv) {
        proto_step_csv(&l->answer.body, step);
    } else {
        proto_step_row(&l->writer, step);
    }
}

/* What is wanted of a run's steps. */
static bx_status read_wanted(const route_call *call, history_steps *wanted, bool *csv, bx_error *error) {
    static const char *const known[] = {"after", "limit", "points", "format", NULL};
    const proto_option *query = call->query;
    const char *format = option_of(call, "format");
    bx_status status = proto_query_check(query, call->n_query, known, error);
    if (status == BX_OK) {
        status = proto_query_integer(query, call->n_query, "after", -1, PROTO_MOST_STEP, &wanted->after, error);
    }
    if (status == BX_OK) {
        status = proto_query_integer(query, call->n_query, "limit", 1, MOST_ROWS, &wanted->limit, error);
    }
    if (status == BX_OK) {
        status = proto_query_integer(query, call->n_query, "points", LEAST_POINTS, MOST_POINTS, &wanted->points, error);
    }
    if (status == BX_OK && wanted->points > 0 && option_of(call, "limit")) {
        bx_fail(error, BX_INVALID, "invalid_option", "points are of all steps; limit is for the first of them");
        status = bx_at(error, "limit");
    }
    if (status == BX_OK && format && strcmp(format, "csv") && strcmp(format, "json")) {
        bx_fail(error, BX_INVALID, "invalid_option", "a format is csv or json, not \"%.64s\"", format);
        status = bx_at(error, "format");
    }
    *csv = format && !strcmp(format, "csv");
    wanted->limit = wanted->points > 0 ? wanted->points : wanted->limit;
    return status;
}

answer get_steps(const route_call *call) {
    listing l = {.call = call, .answer = {.status = 200}};
    history_steps wanted = {.run = call->name,
                            .after = -1,
                            .limit = DEFAULT_ROWS,
                            .cancelled = call->body->cancelled,
                            .begin = begin_steps,
                            .each = list_step,
                            .context = &l};
    bx_error error = {0};
    int64_t next;
    bx_status status = read_wanted(call, &wanted, &l.csv, &error);
    if (status == BX_OK) {
        status = reserve_rows(call, wanted.limit, &error);
    }
    if (status == BX_OK) {
        status = history_read(call->server->runs->history, &wanted, &next, &error);
    }
    if (status != BX_OK) {
        answer_free(&l.answer);
        return failed(call, &error);
    }
    if (l.unchanged) {
        return not_modified(l.answer.etag);
    }
    l.answer.type = l.csv ? "text/csv; charset=utf-8; header=present" : PROTO_TYPE_JSON;
    if (!l.csv) {
        proto_write_close(&l.writer, ']');
        if (next >= 0) {
            proto_write_int(&l.writer, "next", next);
        } else {
            proto_write_null(&l.writer, "next");
        }
        proto_write_close(&l.writer, '}');
        proto_write_end(&l.writer);
    }
    return l.answer;
}

answer delete_run(const route_call *call) {
    static const char *const known[] = {NULL};
    bx_error error = {0};
    bool found;
    runs *q = call->server->runs;
    bx_status status = proto_query_check(call->query, call->n_query, known, &error);
    if (status == BX_OK) {
        status = history_delete(q->history, call->name, &found, &error);
    }
    if (status == BX_OK && !found) {
        status = bx_fail(&error, BX_INVALID, "unknown_run", "there is no run \"%.64s\"", call->name);
    }
    if (status != BX_OK) {
        return failed(call, &error);
    }
    atomic_fetch_add(&q->changes, 1);
    return (answer){.status = 204};
}
