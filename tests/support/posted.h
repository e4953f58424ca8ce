/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests without HTTP, for tests: what the HTTP library does with them, and what may happen to one at any moment.
 */
#ifndef POSTED_H
#define POSTED_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server.h"
#include "suite.h"

/* ---- a daemon without HTTP --------------------------------------------------------------------------------------- */

static server s;
static size_t memory_at_rest;
static char directory[64], data[80]; /* the options view them */

static inline void open_server(size_t n_workers) {
    char message[256];
    bx_error error = {0};
    strcpy(directory, "/tmp/lossd-posted-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(data, sizeof data, "--data-dir=%s", directory);
    char *arguments[] = {(char[]){"lossd"}, data, (char[]){"--memory-limit=64M"}, (char[]){"--max-body=16M"}, NULL};
    log_setup(LOG_ERROR, false);
    proto_init();
    ck_assert_msg(options_parse(&s.options, 4, arguments, message), "%s", message);
    s.memory = memory_new((size_t)s.options.memory_limit);
    s.models = models_new();
    s.directory = data_dir_new(s.options.data_dir);
    s.metrics = metrics_new();
    ck_assert_int_eq(registry_open(&s.registry, s.memory, s.directory, &error), BX_OK);
    ck_assert_int_eq(pool_start(&s.pool, "lossd-worker", n_workers, 1, "auto", &error), BX_OK);
    memory_at_rest = memory_used(s.memory);
}

static inline void close_server(void) {
    pool_stop(s.pool);
    registry_close(s.registry);
    data_dir_free(s.directory);
    ck_assert_uint_eq(memory_used(s.memory), 0);
    memory_free(s.memory);
    models_free(s.models);
    metrics_free(s.metrics);
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

/* Whether within seconds no ticket and no byte stays taken. */
static inline bool at_rest(void) {
    for (int i = 0; i < 5000; i++) {
        if (atomic_load(&s.tickets) == 0 && atomic_load(&s.at_clerk) == 0 && memory_used(s.memory) == memory_at_rest) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* ---- a connection ------------------------------------------------------------------------------------------------ */

typedef struct connection {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool waits;
    int resumed;
} connection;

static inline bool suspend(void *given, void *argument) {
    (void)argument;
    ((connection *)given)->waits = true; /* under the request's lock */
    return true;
}

static inline void resume(void *given, void *argument) {
    connection *c = given;
    (void)argument;
    pthread_mutex_lock(&c->lock);
    c->resumed++;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static inline void wait_resumed(connection *c) {
    pthread_mutex_lock(&c->lock);
    while (!c->resumed) {
        pthread_cond_wait(&c->changed, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

#define MOST_ASKED 4

/* An option of its query; NULL: none. */
static inline void ask(request *r, const char *option, const char *value) {
    if (option) {
        char *text = malloc(strlen(option) + strlen(value) + 2);
        strcpy(text, option);
        strcpy(text + strlen(option) + 1, value);
        r->query[r->n_query++] = (proto_option){text, text + strlen(option) + 1};
    }
}

static inline request *admit(server *s, connection *c, const char *method, const char *path, const char *option,
                             const char *value, proto_encoding encoding, size_t bytes) {
    answer refused;
    char name[ROUTE_NAME], allow[40];
    admission a = {.route = route_find(method, path, name, allow),
                   .right = RIGHT_WRITE,
                   .encoding = encoding,
                   .expected = bytes,
                   .id = "x"};
    a.name = name;
    request *r = request_admit(s, &a, &refused);
    ck_assert_ptr_nonnull(r);
    *c = (connection){.waits = false};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    r->connection = c;
    r->resume = resume;
    r->query = calloc(MOST_ASKED, sizeof *r->query);
    ask(r, option, value);
    return r;
}

static inline void end(request *r, connection *c) {
    request_abandon(r);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
}

static inline void receive_in_pieces(request *r, const char *body, size_t from, size_t to, size_t piece) {
    for (size_t at = from; at < to; at += piece) {
        request_receive(r, body + at, to - at < piece ? to - at : piece);
    }
}

/* To its answer; whether it had to be waited for. */
static inline bool answer_of(request *r, connection *c, answer *a) {
    const bool waited = !request_complete(r) && request_wait(r, suspend, NULL);
    if (waited) {
        wait_resumed(c);
    }
    HOLDS(request_answer(r, a), "not settled");
    HOLDS(c->resumed == waited, "resumed %d times", c->resumed);
    return waited;
}

/* What of an answer does not change from run to run; all of a problem. */
static inline void copy_numbers(char out[512], const answer *a) {
    static const char first[] = "\"loss\"";
    const char *from = memmem(a->body.data, a->body.bytes, first, sizeof first - 1),
               *end = a->body.data + a->body.bytes;
    from = from ? from : a->body.data;
    snprintf(out, 512, "%.*s", (int)(end - from < 500 ? end - from : 500), from);
}

/* ---- what may happen at any moment ------------------------------------------------------------------------------- */

typedef struct fate {
    request *r;
    unsigned delay_us;
    int status;
} fate;

/* A deadline or a drain, from a thread of its own. */
static inline void *strike(void *argument) {
    fate *f = argument;
    usleep(f->delay_us);
    request_fail(f->r, f->status, f->status == 504 ? "timeout" : "draining", "by the test");
    request_unref(f->r);
    return NULL;
}

#endif
