/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon as one object: start and stop of its parts, in order.
 */
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "access.h"

#define BASE_BYTES   ((size_t)48 << 20) /* code, the built-in sets, the caches of SQLite, a heap with holes */
#define THREAD_BYTES ((size_t)2 << 20)  /* stack, context and share of the heap of each that computes or receives */

static void free_parts(server *s) {
    http_stop(s);
    if (!devices_stop(s->devices)) { /* which may leave something to the pool */
        LOG(LOG_ERROR, "stop", {"text", "a GPU's driver does not come back; the process ends without it", 0});
        _exit(0);
    }
    pool_stop(s->pool); /* whose lookups may call the clerk */
    pool_stop(s->clerk);
    pool_stop(s->reader);
    s->clerk = s->pool = s->reader = NULL;
    devices_free(s->devices);
    s->devices = NULL;
    runs_stop(s->runs);
    s->runs = NULL;
    registry_close(s->registry);
    s->registry = NULL;
    data_dir_free(s->directory);
    s->directory = NULL;
    memory_free(s->memory);
    s->memory = NULL;
    shm_free(s->shm);
    s->shm = NULL;
    models_free(s->models);
    s->models = NULL;
    metrics_free(s->metrics);
    s->metrics = NULL;
    gate_free(s->gate);
    s->gate = NULL;
    tls_use(NULL);
}

/* ---- what could not be read at the start ------------------------------------------------------------------------- */

static answer read_again(const route_call *call) {
    registry_load(call->server->registry);
    return (answer){.status = 204};
}

/* A request of nobody's. When it is refused, the next one that finds something missing asks again. */
static void ask_clerk(void *context) {
    static const route reading = {.method = "", .path = "", .how = ROUTE_BY_CLERK, .handler = read_again};
    server *s = context;
    answer refused = {0};
    request *r = request_admit(s, &(admission){.route = &reading, .id = ""}, &refused);
    if (r) {
        const bool answered = request_complete(r);
        (void)answered;
        request_unref(r);
    } else {
        answer_free(&refused);
    }
}

/* A history that cannot be used is no place to go on from: that is said at the start, where somebody looks. */
static bx_status start_runs(server *s, bx_error *error) {
    const options *o = &s->options;
    const history_options wanted = {
        .weak = !strcmp(o->durability, "process"), .keep_steps = o->keep_steps, .keep_days = o->keep_days};
    return runs_start(&s->runs, s->directory, &wanted, s->metrics, error);
}

const char *server_readiness(server *s, const char **code) {
    const struct {
        bool is_so;
        const char *code, *text;
    } reasons[] = {
        {atomic_load(&s->draining), "draining", "This daemon is shutting down."},
        {!registry_ready(s->registry), "store_unavailable", "What is registered could not be read."},
        {!runs_ready(s->runs), "store_unavailable", "What was recorded cannot be used."},
        {devices_are_required(s->devices) && devices_lost(s->devices), "device_lost",
         "The GPUs that --device names were lost; they can be used again when this daemon is started again."},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (reasons[i].is_so) {
            *(code ? code : &(const char *){NULL}) = reasons[i].code;
            return reasons[i].text;
        }
    }
    return NULL;
}

/* ---- tokens and TLS ---------------------------------------------------------------------------------------------- */

static bool is_public(const char *listen) {
    struct addrinfo *address;
    if (!*listen || !address_resolve(listen, &address)) {
        return false;
    }
    const bool loopback = address_is_loopback(address->ai_addr);
    freeaddrinfo(address);
    return !loopback;
}

/* All of it, or nothing of it is taken up. */
static bx_status read_secrets(server *s, bx_error *error) {
    const options *o = &s->options;
    tokens *tokens = NULL;
    certificate *certificate = NULL;
    bx_status status = *o->token_file ? tokens_read(&tokens, o->token_file, error) : BX_OK;
    if (status == BX_OK && *o->tls_cert) {
        status = certificate_read(&certificate, o->tls_cert, o->tls_key, error);
    }
    if (status != BX_OK) {
        tokens_free(tokens);
        return status;
    }
    if (tokens && tokens_are_short(tokens)) {
        LOG(LOG_WARN, "tokens", {"text", "a token of less than 16 characters can be guessed", 0});
    }
    gate_use(s->gate, tokens);
    tls_use(certificate);
    return BX_OK;
}

static void warn_of_access(const server *s) {
    const options *o = &s->options;
    if (!*o->token_file && !s->local) {
        LOG(LOG_WARN, "tokens",
            {"text", "--allow-anonymous: whoever reaches the port may read, record, register and delete", 0});
    }
    if (*o->token_file && o->allow_anonymous) {
        LOG(LOG_WARN, "tokens", {"text", "--allow-anonymous means nothing beside --token-file", 0});
    }
    if (*o->token_file && !*o->tls_cert && (!s->local || !s->ops_local)) {
        LOG(LOG_WARN, "tokens",
            {"text", "tokens cross the network in clear text; --tls-cert and --tls-key, or a proxy, would hide them",
             0});
    }
}

/* It is made when it is needed: who records is told then, who starts the daemon would not be. */
static void warn_of_directory(const server *s) {
    const int cause = data_dir_obstacle(s->directory);
    if (cause) {
        LOG(LOG_WARN, "data_dir", {"data_dir", s->options.data_dir, 0},
            {"text", "nothing can be recorded or registered: it cannot be made or written", 0},
            {"cause", strerror(cause), 0});
    }
}

void server_reload(server *s) {
    bx_error error = {0};
    const bool fine = read_secrets(s, &error) == BX_OK;
    metrics_reloaded(s->metrics, fine);
    if (fine) {
        LOG(LOG_INFO, "reload", {"token_file", s->options.token_file, 0}, {"tls_cert", s->options.tls_cert, 0});
    } else {
        LOG(LOG_ERROR, "reload", {"text", error.text, 0}, {"kept", "tokens and TLS as they were", 0});
    }
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static void log_devices(const devices *d, const bx_error *missing) {
    for (size_t i = 0; devices_at(d, i); i++) {
        const gpu *g = devices_at(d, i);
        LOG(LOG_INFO, "device", {"device", g->device.name, 0}, {"text", g->device.text, 0},
            {"memory_bytes", NULL, (double)g->taken});
    }
    if (missing->status != BX_OK) {
        LOG(strcmp(missing->code, "device_failed") ? LOG_INFO : LOG_WARN, "device", {"device", d ? "cuda" : "cpu", 0},
            {"text", missing->text, 0});
    }
}

bx_status server_start(server *s, bx_error *error) {
    const options *o = &s->options;
    size_t workers = (size_t)(o->workers > 0 ? o->workers : usable_cores(""));
    s->missing = (bx_error){0};
    atomic_init(&s->draining, false);
    atomic_init(&s->closing, false);
    atomic_init(&s->tickets, 0);
    atomic_init(&s->at_clerk, 0);
    atomic_init(&s->at_reader, 0);
    s->memory = memory_new((size_t)o->memory_limit);
    s->models = models_new();
    s->directory = data_dir_new(o->data_dir);
    s->metrics = metrics_new();
    s->shm = o->shared_memory ? shm_new() : NULL;
    s->gate = gate_new();
    s->local = !is_public(o->listen);
    s->ops_local = !is_public(o->ops_listen);
    bx_status status = s->memory && s->models && s->directory && s->metrics && s->gate && (s->shm || !o->shared_memory)
                           ? BX_OK
                           : bx_fail(error, BX_NOMEM, "out_of_memory", "no memory to start");
    status = status == BX_OK ? read_secrets(s, error) : status;
    status = status == BX_OK ? devices_start(&s->devices, o, &s->missing, error) : status;
    if (s->devices) {
        memory_on_pin(s->memory, bx_pin, bx_unpin);
    }
    status = status == BX_OK ? http_listen(s, error) : status; /* before anything on the disk is opened */
    if (status == BX_OK) {
        status = registry_open(&s->registry, s->memory, s->directory, error);
    }
    status = status == BX_OK ? start_runs(s, error) : status;
    if (status == BX_OK) {
        status = pool_start(&s->pool, "lossd-worker", workers, (size_t)o->http_threads, o->cpu_level, error);
    }
    status = status == BX_OK ? pool_start(&s->clerk, "lossd-clerk", 1, 0, NULL, error) : status;
    status = status == BX_OK ? pool_start(&s->reader, "lossd-reader", 1, 0, NULL, error) : status;
    if (status == BX_OK) {
        registry_on_unread(s->registry, ask_clerk, s);
        status = http_start(s, error);
    }
    if (status != BX_OK) {
        free_parts(s);
        return status;
    }
    if (o->max_body > o->memory_limit / 5 * 2) {
        LOG(LOG_WARN, "start",
            {"text", "--max-body needs two and a half times as much of --memory-limit; larger bodies get 413", 0});
    }
    warn_of_access(s);
    warn_of_directory(s);
    LOG(LOG_INFO, "start", {"version", LOSSD_VERSION, 0}, {"listen", o->listen, 0}, {"port", NULL, s->port},
        {"workers", NULL, (double)workers}, {"cpu_level", pool_level(s->pool), 0}, {"data_dir", o->data_dir, 0});
    log_devices(s->devices, &s->missing);
    return BX_OK;
}

size_t server_most_bytes(server *s) {
    const size_t threads = pool_workers(s->pool) + (size_t)s->options.http_threads;
    return memory_limit(s->memory) + http_most_bytes(s) + threads * THREAD_BYTES + BASE_BYTES;
}

void server_tend(server *s) {
    memory_tend(s->memory);
}

void server_stop(server *s) {
    const options *o = &s->options;
    atomic_store(&s->draining, true);
    LOG(LOG_INFO, "drain", {"delay_s", NULL, (double)o->drain_delay}, {"timeout_s", NULL, (double)o->drain_timeout});
    for (int64_t until = now_ns() + o->drain_delay * NS_PER_S; now_ns() < until;) {
        usleep(10000);
    }
    http_close_listener(s);
    atomic_store(&s->closing, true);
    http_finish(s, now_ns() + o->drain_timeout * NS_PER_S);
    registry_hurry(s->registry);
    runs_hurry(s->runs);
    free_parts(s);
    LOG(LOG_INFO, "stop", {"version", LOSSD_VERSION, 0});
}
