/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: options, log, memory budget, worker pool, store, registry, requests, HTTP. Everything that sockets,
 * threads and files touch.
 *
 * Threads: the main thread waits for signals; one for each listener accepts; libmicrohttpd's threads receive, score
 * what is streamed, and answer; workers compute; a GPU has threads of its own; the clerk, a worker of its own, waits
 * for the disk; the writer records results and the reader, a worker of its own, reads them; the reaper enforces
 * deadlines.
 *
 * Locks, in the order in which they may be held together:
 *   peers (peers.c)  ->  request->lock  ->  pool lock, devices lock, history writing, or
 *   registry writing  ->  store lock  ->  catalog making  ->  catalog lock;
 *   any of these  ->  memory lock; but nothing is reserved under the catalog lock, which a full budget asks for
 */
#ifndef SERVER_H
#define SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "compute.h"
#include "proto.h"

/* ---- options ----------------------------------------------------------------------------------------------------- */

#define OPTION_MOST 16 /* of an option that may be given several times */

typedef struct options {
#define OPTION_TEXT(field, name, argument, value, help)                const char *field;
#define OPTION_NUMBER(field, name, argument, value, least, most, help) long field;
#define OPTION_SWITCH(field, name, help)                               bool field;
#define OPTION_LIST(field, name, argument, help)                       const char *field[OPTION_MOST + 1];
#include "options.def"
} options;

/* Defaults, then the environment, then the arguments. Texts point into argv, the environment or static storage. On
 * failure `message` says what is wrong in one line. */
BX_MUST_USE bool options_parse(options *options, int argc, char **argv, char message[256]);
/* Say of each variable LOSSD_... that it is no option; of its name only, the value may be a secret. */
void options_warn(void);
/* What --help prints. */
void options_help(FILE *out);

/* ---- log --------------------------------------------------------------------------------------------------------- */

typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;

/* One key and value of a line; text is escaped and cut to 256 bytes. */
typedef struct log_field {
    const char *key;  /* NULL: left out */
    const char *text; /* NULL: the number counts */
    double number;
} log_field;

/* Set once before threads start. */
void log_setup(log_level level, bool json);
bool log_level_from_name(const char *name, log_level *level);
bool log_wants(log_level level);
/* One line on stderr, written whole or dropped. LOG makes its fields only where they are wanted. */
void log_line(log_level level, const char *event, const log_field *fields, size_t n_fields);
/* How many lines nobody took. */
long log_dropped(void);
#define LOG(level, event, ...)                                                                                         \
    do {                                                                                                               \
        if (log_wants(level)) {                                                                                        \
            log_line(level, event, (const log_field[]){__VA_ARGS__},                                                   \
                     sizeof((const log_field[]){__VA_ARGS__}) / sizeof(log_field));                                    \
        }                                                                                                              \
    } while (0)

/* As much of a text as `size` bytes hold, with its NUL. */
static inline void copy_text(char *out, size_t size, const char *text) {
    const size_t n = strnlen(text, size - 1);
    memcpy(out, text, n);
    out[n] = '\0';
}

/* Monotonic time in nanoseconds. */
int64_t now_ns(void);
#define NS_PER_MS 1000000LL
#define NS_PER_S  1000000000LL

/* ---- memory: one budget for bodies, work and answers ------------------------------------------------------------- */

typedef struct memory memory;

/* What one request may use; give it back with lease_end. */
typedef struct lease {
    memory *memory;
    size_t reserved; /* not yet turned into buffers */
    size_t held;     /* in buffers and promises */
} lease;

typedef struct buffer {
    void *data; /* 64-byte aligned */
    size_t bytes;
    bool pinned; /* by buffer_pin */
} buffer;

memory *memory_new(size_t limit);
void memory_free(memory *memory);
/* Whenever there is no room, `reclaim` is asked to give something back, until it says that it has nothing left. It is
 * called without the budget's lock, by any thread; set it before there are any. */
void memory_on_full(memory *memory, bool (*reclaim)(void *context), void *context);
/* How buffers are pinned, so that GPUs read and write them at full speed; without this none is. Set it before there are
 * other threads. */
void memory_on_pin(memory *memory, bool (*pin)(void *data, size_t bytes), void (*unpin)(void *data));
/* Now and then: what has been kept since the last time and not been needed is given back to the machine; so is the
 * heap, once little is going on. */
void memory_tend(memory *memory);
size_t memory_limit(const memory *memory);
size_t memory_used(memory *memory);

/* Reserve `bytes` of the budget. False when there is no room now. */
BX_MUST_USE bool lease_begin(lease *lease, memory *memory, size_t bytes);
/* Reserve `bytes` more. */
BX_MUST_USE bool lease_reserve(lease *lease, size_t bytes);
/* Count `bytes` of memory that is not a buffer: from the reservation first, then from the budget. */
BX_MUST_USE bool lease_promise(lease *lease, size_t bytes);
/* Count `bytes` of memory for a while, leaving the reservation alone, and with it what small buffers have left there;
 * and the end of it. */
BX_MUST_USE bool lease_borrow(lease *lease, size_t bytes);
void lease_return(lease *lease, size_t bytes);
/* Return all but `bytes`; buffers must have been given back. */
void lease_keep(lease *lease, size_t bytes);
/* What a buffer of at least `bytes` counts as. */
size_t buffer_size(size_t bytes);
/* A pooled buffer of at least `bytes`, counted against the lease. BX_BUSY when the budget is full, BX_NOMEM when the
 * machine is. Contents are arbitrary. */
BX_MUST_USE bx_status lease_take(lease *lease, size_t bytes, buffer *out);
/* Small ones go back to the C library, and what they counted to the reservation. */
void lease_give(lease *lease, buffer *buffer);
/* Pin a buffer, if it is large enough to gain from it; it stays pinned as long as it is kept warm. A wish. */
void buffer_pin(const memory *memory, buffer *buffer);
/* Return everything; buffers must have been given back. */
void lease_end(lease *lease);

/* ---- cores --------------------------------------------------------------------------------------------------------
 */

/* Those that this process may use, at least 1. /proc and /sys are below `root`, which is empty but in tests. */
long usable_cores(const char *root);

/* ---- threads ------------------------------------------------------------------------------------------------------
 */

/* How long a turn of the processor is that this thread, and those which it begins from now on, ask for; 0: the usual
 * one. Who asks for short ones has one sooner when something comes. A wish that Linux has heard since 6.12; of threads
 * whose scheduling somebody has chosen otherwise, nothing is changed. */
void turn_set(uint64_t ns);
/* What they take from each other at a time: what every request writes lies apart from what is only read. */
#define CACHE_LINE 64
/* Memory of zeros on cache lines of its own, for free(); NULL: there is none. */
void *lines_new(size_t bytes);
/* This thread's, from 1 in the order in which they first ask, for what there are several of so that threads seldom
 * write to the same one. */
size_t thread_number(void);

/* ---- worker pool ------------------------------------------------------------------------------------------------- */

typedef struct request request;
typedef struct pool pool;

/* `spares` further contexts are kept for threads that compute a small request themselves. The workers of a pool without
 * a level compute nothing. Its threads are called `name`, which is kept and has at most 15 characters. */
BX_MUST_USE bx_status pool_start(pool **pool, const char *name, size_t n_workers, size_t spares, const char *level,
                                 bx_error *error);
/* Finish what is queued, then stop the workers. */
void pool_stop(pool *pool);
const char *pool_level(const pool *pool);
/* Hand work to the workers; none of these can fail. What the whole body is for, which may be `slow` where the pool
 * computes (a set has to be made: one thread of its own does that); the answer of a batch that a GPU has computed; run
 * the block units below `ready`; finish an image whose blocks are done and whose loc rows are in; the second round of
 * every image. */
void pool_push_body(pool *pool, request *request, bool slow);
void pool_push_result(pool *pool, request *request);
void pool_advance(pool *pool, request *request, int64_t ready);
void pool_push_image(pool *pool, request *request, int32_t image);
void pool_push_rows(pool *pool, request *request);
/* Score a slab; and take one back that no worker has begun (-1: there is none). */
void pool_push_slab(pool *pool, request *request, int slab);
int pool_take_slab(pool *pool, request *request);
/* Whether some worker seems to have nothing to do; how many compute, and how many of them have something to do. */
bool pool_is_idle(pool *pool);
size_t pool_workers(const pool *pool);
size_t pool_busy(pool *pool);
/* Forget what no worker has begun; or what may still be handed in too, and units under way return early. */
void pool_forget(pool *pool, request *request);
void pool_cancel(pool *pool, request *request);
/* A spare context for a thread that computes a small request itself, which gives it back before it takes another; never
 * NULL for as many threads as there are spares, and perhaps for more. */
bx_context *pool_borrow(pool *pool);
void pool_return(pool *pool, bx_context *context);

/* ---- devices: GPUs, and how they come to compute a request ------------------------------------------------------- */

#define MOST_DEVICES 16

typedef struct devices devices;

/* A GPU that is used. */
typedef struct gpu {
    bx_device device;
    char level[16]; /* its compute capability */
    size_t taken;   /* bytes of its memory */
} gpu;

/* What a request is to a GPU; under the devices' lock. */
typedef struct placement {
    enum { NOT_PLACED, WAITING_FOR_DEVICE, ON_DEVICE, OFF_DEVICE } state;
    int wanted;                  /* which GPU; -1: any */
    struct runner *runner;       /* ON_DEVICE: the thread that computes it, as long as it does */
    request *next;               /* WAITING_FOR_DEVICE: the next one */
    int64_t conf_rows, loc_rows; /* that are in */
    int64_t conf_fed, loc_fed;   /* that the GPU was told of */
    bool complete;               /* all are in */
} placement;

/* Whether --device can be that. */
bool devices_are_named_well(const char *option);
/* The GPUs that --device names, each with its memory taken, and threads that wait for requests; *devices is NULL where
 * there are none. What `auto` makes do without is told in `missing`: there is no GPU, or ("device_failed") one cannot
 * be used. Errors: BX_DEVICE "device_unavailable": one that is named cannot be used; BX_NOMEM; BX_BUSY "threads". */
BX_MUST_USE bx_status devices_start(devices **devices, const options *options, bx_error *missing, bx_error *error);
/* When every request was answered or abandoned. False: a thread does not come back from the driver; what it works on
 * must stay. All of these take NULL for no devices. */
bool devices_stop(devices *devices);
/* Once they have stopped, and the pool has too: its workers ask about them to the end. */
void devices_free(devices *devices);
/* The i-th, NULL past the end; how many threads each has, and how many of the i-th's have something to do. */
const gpu *devices_at(const devices *devices, size_t i);
size_t devices_threads(const devices *devices);
size_t devices_busy(devices *devices, size_t i);
/* Whether there were any, and none will ever work again; whether nothing may stand in for them. */
bool devices_lost(devices *devices);
bool devices_are_required(const devices *devices);
/* What a job may take of a GPU's memory. */
size_t devices_job_bytes(const devices *devices);

/* Which GPUs a request's option `device` names: none, or those that may compute it. Errors: BX_DEVICE
 * "device_unavailable". */
BX_MUST_USE bx_status device_choose(request *request, bool *named, bx_error *error);
/* So many rows of a planned request are in: a GPU computes it as soon as one is free for it. False when it is the
 * cpu's, because no GPU could. */
BX_MUST_USE bool device_progress(request *request, int64_t conf_rows, int64_t loc_rows);
/* For the thread that computed it: no GPU does so any more. Whether all rows were in, and the caller sees to the rest.
 */
BX_MUST_USE bool device_leave(request *request);
/* It was cancelled. */
void device_forget(request *request);

/* ---- store: what survives a restart ------------------------------------------------------------------------------ */

typedef struct data_dir data_dir;
typedef struct store store;

/* The data directory (its text must outlive it), which is not touched yet. NULL when out of memory. */
data_dir *data_dir_new(const char *path);
/* NULL is accepted. */
void data_dir_free(data_dir *directory);
/* Whether something is or may be kept in it. Errors: BX_BUSY "store_read_only": it is no directory, or it is there,
 * empty, and not this user's to write. */
BX_MUST_USE bx_status data_dir_check(const data_dir *directory, bx_error *error);
/* Why nothing could be kept in it as things are, as errno has it; 0: no reason is seen. Nothing is made or opened. */
int data_dir_obstacle(const data_dir *directory);
/* Make it this process's own, if it is there. Errors: BX_BUSY "store_unavailable": it is another's. */
BX_MUST_USE bx_status data_dir_claim(data_dir *directory, bx_error *error);

/* One stored definition; texts and bytes belong to whoever made the row. */
typedef struct store_row {
    const char *kind, *name; /* unique together */
    const char *type;        /* media type of the bytes */
    const void *bytes;
    size_t n_bytes;
} store_row;

/* The database of registered things in a directory that outlives it, not touched yet. NULL when out of memory. */
store *store_open(data_dir *directory);
void store_close(store *store);
const char *store_file(const store *store);
/* Make the directory this process's own if there is a database in it; otherwise the first call that stores does.
 * Errors: BX_BUSY "store_unavailable": it is another's. */
BX_MUST_USE bx_status store_claim(store *store, bx_error *error);
/* From now on nobody waits for a database that another process has locked. */
void store_hurry(store *store);
/* Any thread; each is on the disk when it returns. *found: whether there was such a row. Errors: BX_BUSY
 * "store_unavailable", "store_busy" or "store_full", BX_TOO_LARGE, BX_NOMEM; nothing has changed then. */
BX_MUST_USE bx_status store_put(store *store, const store_row *row, bx_error *error);
BX_MUST_USE bx_status store_delete(store *store, const char *kind, const char *name, bool *found, bx_error *error);
/* Every row, by kind and name; none, and nothing is created, where nothing was ever stored. `each` must not use the
 * store. */
BX_MUST_USE bx_status store_each(store *store, void (*each)(void *context, const store_row *row), void *context,
                                 bx_error *error);

/* ---- history: runs and their steps, on the disk ------------------------------------------------------------------ */

/*
 * The store of runs: the only interface between the daemon and the database that keeps them. One thread at a time
 * writes and one reads; each call is a transaction. Errors of all: BX_BUSY "store_unavailable", "store_busy" or
 * "store_full", BX_NOMEM; nothing has changed then.
 */
typedef struct history history;

typedef struct history_options {
    bool weak;          /* what is written survives the process; the machine's end only mostly */
    int64_t keep_steps; /* of each run; 0: all */
    int64_t keep_days;  /* of a run to which nothing comes; 0: for ever */
} history_options;

/* A result to be kept. */
typedef struct record {
    char run[PROTO_RUN_LENGTH + 1];
    proto_step step;
} record;

/* What is wrong with the store. */
typedef enum history_state {
    HISTORY_FINE,
    HISTORY_FULL, /* its disk is; it can be read */
    HISTORY_READ_ONLY,
    HISTORY_GONE,   /* it cannot be used */
    HISTORY_BROKEN, /* nor will it ever be: damaged */
    HISTORY_NEWER   /* or a newer version's */
} history_state;

/* Nothing on the disk is touched. NULL when out of memory. */
history *history_new(data_dir *directory, const history_options *options);
/* NULL is accepted. */
void history_free(history *history);
const char *history_file(const history *history);
/* Open what is there, if anything is, and look whether it is sound. */
BX_MUST_USE bx_status history_open(history *history, bx_error *error);
/* From now on nobody waits for a database that another process has locked. Any thread. */
void history_hurry(history *history);
/* As of the last call; and whether anything was ever kept here. Any thread. */
history_state history_get_state(const history *history);
bool history_exists(const history *history);

/* For the thread that writes. All of these records, or none; a step that is there is replaced. */
BX_MUST_USE bx_status history_write(history *history, const record *const *records, size_t n, bx_error *error);
/* Some of what is to go: of deleted runs, and of what is not to be kept. *more: call again. */
BX_MUST_USE bx_status history_tidy(history *history, bool *more, bx_error *error);
/* Look whether the store can be used (again). */
BX_MUST_USE bx_status history_probe(history *history, bx_error *error);

/* Any thread. *found: whether there was one. */
BX_MUST_USE bx_status history_delete(history *history, const char *run, bool *found, bx_error *error);

/* For the thread that reads. Entity tags change whenever what is told does. */
#define HISTORY_TAG 48
/* Runs whose names come after that one, in order. */
BX_MUST_USE bx_status history_list(history *history, const char *after, int64_t limit,
                                   void (*each)(void *context, const proto_run *run), void *context, bx_error *error);
/* A run and its last step. Errors also: BX_INVALID "unknown_run". */
BX_MUST_USE bx_status history_describe(history *history, const char *name, proto_run *run, proto_step *latest,
                                       char tag[HISTORY_TAG], bx_error *error);
/* Its steps after one, in order: the first `limit`, or (points > 0) at most so many of all, with the minima and maxima
 * among them. `begin` sees the run first and says whether the steps are wanted; *next: the step after which there are
 * more, -1: none. Errors also: BX_INVALID "unknown_run". */
typedef struct history_steps {
    const char *run;
    int64_t after, limit, points;
    const atomic_bool *cancelled; /* nobody wants them any more */
    bool (*begin)(void *context, const proto_run *run, const char *tag);
    void (*each)(void *context, const proto_step *step);
    void *context;
} history_steps;
BX_MUST_USE bx_status history_read(history *history, const history_steps *wanted, int64_t *next, bx_error *error);

/* ---- registry: what requests may name ---------------------------------------------------------------------------- */

typedef enum definition { DEFINITION_PRIORS, DEFINITION_CRITERION, N_DEFINITIONS } definition;

typedef struct registry registry;
typedef struct models models;
typedef struct runs runs;
typedef struct metrics metrics;

/* Whether the name must be new or known; If-None-Match and If-Match. */
typedef enum condition { CONDITION_NONE, CONDITION_NEW, CONDITION_KNOWN } condition;

/* What a client defines. */
typedef struct registration {
    definition kind;
    const char *name;
    proto_encoding encoding; /* of the body; criteria are JSON */
    const void *body;
    size_t bytes;
    proto_limits limits;
    const atomic_bool *cancelled; /* nobody wants it any more; NULL: never */
    condition condition;
} registration;

/* The built-in sets and presets, and what is stored in `directory`; a store that cannot be used is logged and leaves
 * the rest working. Errors: BX_NOMEM; BX_BUSY "store_unavailable" when another daemon uses the directory. */
BX_MUST_USE bx_status registry_open(registry **registry, memory *memory, data_dir *directory, bx_error *error);
void registry_close(registry *registry);
/* Let nobody wait for the disk longer than it works. */
void registry_hurry(registry *registry);
/* Whether what is stored could be read. Until it is, a name that is not known is BX_BUSY "store_unavailable". */
bool registry_ready(registry *registry);
/* As long as it could not, `ask` is called when something is looked for in vain, at most once a second: it has another
 * thread call registry_load. Set it before there are others. */
void registry_on_unread(registry *registry, void (*ask)(void *context), void *context);
void registry_load(registry *registry);
/* What requests may name, for proto_request_decode. One that `makes` makes the sets of patterns, which can take long;
 * the other fails with this code instead. */
#define REGISTRY_LATER "registry_later"
const proto_catalog *registry_catalog(const registry *registry, bool makes);
/* Rows of everything that has a name of its own. */
void registry_list(registry *registry, definition kind, proto_writer *writer);
/* Whether there is a criterion of that name. Errors: BX_INVALID "unknown_criterion"; BX_BUSY "store_unavailable". */
BX_MUST_USE bx_status registry_has_criterion(registry *registry, const char *name, bx_error *error);
/* Every criterion's name. `each` must not use the registry. */
void registry_each_criterion(registry *registry, void (*each)(void *context, const char *name), void *context);
/* Whether clients may register that name. Errors: BX_INVALID "invalid_name", "name_reserved". */
BX_MUST_USE bx_status registry_check_name(definition kind, const char *name, bx_error *error);
/* Register, on the disk when it returns; *created, set on success only, when the name was new. Appends what GET answers
 * to `description`. Errors: those of registry_check_name, of reading the body and of the store; BX_BUSY "registry_full"
 * or "memory_full"; BX_INVALID "precondition_failed"; nothing has changed then. */
BX_MUST_USE bx_status registry_put(registry *registry, const registration *registration, bool *created,
                                   proto_buffer *description, bx_error *error);
/* Requests that use it go on with it. Errors: those of registry_check_name and of the store; BX_INVALID
 * "unknown_priors" or "unknown_criterion". */
BX_MUST_USE bx_status registry_delete(registry *registry, definition kind, const char *name, bx_error *error);

/* ---- shared memory that clients on this machine registered ------------------------------------------------------- */

typedef struct shm shm;
typedef struct region region;

#define MOST_REGIONS 32 /* places in them that one request names */

/* One in a process: it takes the signal SIGBUS. NULL when out of memory. Any thread may call what follows. */
shm *shm_new(void);
/* NULL is accepted. */
void shm_free(shm *shm);
/* `bytes` bytes of the POSIX shared memory object `key` from `offset` on, under a name of the client's. Errors:
 * BX_INVALID "invalid_name", "shared_memory"; BX_BUSY "shared_memory_full"; BX_NOMEM. */
BX_MUST_USE bx_status shm_register(shm *shm, const char *name, const char *key, size_t offset, size_t bytes,
                                   bx_error *error);
/* That of the name, if there is one, or all (NULL). Requests that use it go on. */
void shm_unregister(shm *shm, const char *name);
/* An array with an object for that of the name, or for all (NULL). Errors: BX_INVALID "unknown_region". */
BX_MUST_USE bx_status shm_status(shm *shm, const char *name, proto_writer *writer, bx_error *error);
/* A reference to a region of which so many bytes from `offset` on will be used: they are there now. Errors: BX_INVALID
 * "unknown_region", "shared_memory". */
BX_MUST_USE bx_status shm_use(shm *shm, const char *name, size_t offset, size_t bytes, region **region,
                              bx_error *error);
void region_unref(region *region);
/* The bytes, which the client may change at any time; what else depends on them than a number must be copied first. */
const void *region_data(const region *region, size_t offset);
/* Whether the bytes were there all the time. Errors: BX_INVALID "shared_memory". */
BX_MUST_USE bx_status region_check(const region *region, bx_error *error);
/* Write bytes that shm_use found. Errors: BX_INVALID "shared_memory". */
BX_MUST_USE bx_status region_write(const region *region, size_t offset, const void *data, size_t bytes,
                                   bx_error *error);

/* ---- roles ------------------------------------------------------------------------------------------------------- */

/* What a token allows, and a route asks for: nothing; to look and to compute; to record, register and delete too. */
typedef enum right { RIGHT_NONE, RIGHT_READ, RIGHT_WRITE } right;
typedef struct gate gate; /* access.h */

/* ---- server ------------------------------------------------------------------------------------------------------ */

typedef struct server {
    options options;
    memory *memory;
    pool *pool, *clerk; /* computing, and waiting for the disk */
    pool *reader;       /* looking after what was recorded */
    devices *devices;   /* NULL: the cpu computes everything */
    bx_error missing;   /* why there are no more; nothing where none were looked for */
    data_dir *directory;
    registry *registry;
    runs *runs;
    models *models;
    metrics *metrics;
    shm *shm;             /* NULL: clients may register none */
    atomic_bool draining; /* /readyz says 503 */
    atomic_bool closing;  /* no more work is admitted */
    gate *gate;
    struct http *http;
    int port, ops_port;
    bool local, ops_local; /* only this machine reaches the port */
    int sooner; /* tests: batches 2^sooner times smaller than the usual ones are streamed and shared among workers */
    _Alignas(CACHE_LINE) atomic_long tickets; /* admitted requests that compute; apart from what is only read */
    atomic_long at_clerk;                     /* and complete ones for the clerk */
    atomic_long at_reader;
} server;

/* A size from which on a batch is worked on in another way. */
static inline size_t server_from(const server *s, size_t usual) {
    return usual >> s->sooner;
}

BX_MUST_USE bx_status server_start(server *server, bx_error *error);
/* Why /readyz says 503, and with which code (NULL is accepted); NULL: it does not. */
const char *server_readiness(server *server, const char **code);
/* Read tokens and TLS again; when any of it cannot be used, all of it stays as it is, which is logged. */
void server_reload(server *server);
/* What the process can take of the machine's memory at most, GPUs' drivers not counted. */
size_t server_most_bytes(server *server);
/* To be called every SERVER_TEND_S: what is kept warm for nobody is given back. */
#define SERVER_TEND_S 10
void server_tend(server *server);
/* Stop accepting, answer what was accepted within the drain time, stop. */
void server_stop(server *server);

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* RECEIVING -> WAITING -> RESUMING -> ANSWERED, or RECEIVING -> ANSWERED when nothing is outstanding; EXPIRED when the
 * body came too late. Under request->lock. */
typedef enum request_state {
    REQUEST_RECEIVING,
    REQUEST_WAITING,
    REQUEST_RESUMING,
    REQUEST_ANSWERED,
    REQUEST_EXPIRED
} request_state;

/* An HTTP answer. The body belongs to the answer until it is sent. */
typedef struct answer {
    proto_timing timing;
    int status;
    const char *code; /* of a refusal, static storage; NULL: none */
    const char *type;
    proto_buffer body;
    int retry_after;       /* seconds; 0: no header */
    char etag[48];         /* with its quotes; empty: no header, and nobody may keep the answer */
    char allow[40];        /* for 405 */
    size_t json_bytes;     /* of an inference's answer, where bytes of tensors follow; 0: no header */
    proto_coding coding;   /* of the body */
    bool tells_codings;    /* it names those that bodies may have */
    const char *challenge; /* WWW-Authenticate, of a 401; NULL: no header */
    bool allows_origin;    /* it says what the page of another origin may send */
} answer;

typedef struct route route;

/* A tensor of predictions that passes by: its place in the body. */
typedef struct flow {
    bool conf; /* or loc */
    size_t begin, end, row_bytes;
} flow;

/* Rows of conf that were copied for a worker. */
typedef struct slab {
    char *rows;
    int32_t image, first, count, wanted;
} slab;

#define N_SLABS 4

/* Predictions that are scored as they arrive (stream.c). */
typedef struct stream {
    flow flows[2];
    slab slabs[N_SLABS];
    atomic_uint free_slabs; /* a bit for each */
    slab *filling;          /* NULL: none */
    bool conf_first;
    bool alone;            /* there is no memory for slabs */
    bool light;            /* what follows the last row is little enough for the receiving thread */
    size_t carried;        /* bytes of a row whose end has not arrived */
    char *carry;           /* a row */
    atomic_int *stages;    /* (N) */
    atomic_int *rows_left; /* (N) of conf, to be scored */
} stream;

/* What the head of a request says. */
typedef struct admission {
    const route *route;
    const char *name; /* the {name} part of the path; NULL: none */
    proto_encoding encoding, accept;
    right right;     /* of whoever asks */
    bool guess;      /* the first byte decides the encoding */
    size_t expected; /* bytes of the body; 0: not known (chunked), or the route takes none */
    condition condition;
    const char *if_none_match; /* of a GET; NULL: none */
    const char *id;
    /* of an inference */
    int64_t json_bytes;         /* where its JSON ends; -1: with the body */
    proto_coding coding, reply; /* of the body, and of the answer if that is worth it */
} admission;

/*
 * What is not answered at once: bytes in, work by other threads, one answer. Mostly a batch of predictions, with units
 * of work; also what touches the disk or takes long. Reference-counted: one for the connection, one while it is queued,
 * one for each unit running; the last returns the memory. Its ticket is returned when it is answered.
 */
struct request {
    server *server;
    pool *pool; /* whose workers do it */
    const route *route;
    char name[PROTO_RUN_LENGTH + 2]; /* cut: no name is that long */
    char id[136];
    proto_encoding encoding, accept;
    right right; /* of whoever asks */
    bool guess;  /* the first byte decides the encoding */
    condition condition;
    char if_none_match[128]; /* cut; empty: none */
    proto_option *query;
    size_t n_query;
    int64_t json_bytes;       /* of an inference: where its JSON ends; -1: with the body */
    proto_inflater *inflater; /* of a body that has a coding, as long as it comes */
    proto_coding reply;

    pthread_mutex_t lock;
    request_state state;
    bool settled; /* `answer` is final */
    answer answer;
    void (*resume)(void *connection, void *argument);
    void *connection, *resume_argument;
    atomic_int refs;
    atomic_bool cancelled; /* nobody wants the result any more; units return early */
    atomic_bool has_ticket;

    lease lease;
    buffer body;
    bool head_only;                  /* it is for the beginning of the body, until that says what follows */
    size_t received, expected;       /* expected 0: not known (chunked) */
    size_t prefix;                   /* how much must be in before it can be decoded; 0: not known yet */
    bool later;                      /* decoding it would take long: it is a worker's job */
    bool small;                      /* enough for the receiving thread */
    bool alone;                      /* which has done all of it: no other thread knows of it */
    bool on_device;                  /* a GPU is to compute it; set when it is planned */
    int device;                      /* what computed it: 0 the cpu, i + 1 the i-th GPU */
    placement placement;             /* where on_device */
    bool decoded, planned, finished; /* finished: every unit is done, `answer` is all that is needed */
    proto_request decoded_request;
    bx_plan plan;
    atomic_int n_images; /* once they are known; for whoever counts */
    size_t answer_bytes; /* an upper bound, without gradients */
    buffer work, gradients;
    buffer stages; /* of a stream; outlives the work */
    bx_job job;
    stream stream;                     /* where plan.streamed */
    pthread_cond_t advanced;           /* one of its images, under the lock */
    atomic_int *blocks_left;           /* (N) blocks of each image, and one for its loc rows */
    atomic_int images_left, rows_left; /* in the first round, and in the second */
    int32_t images_arrived;            /* images whose loc rows are in */
    region *regions[MOST_REGIONS];     /* references; of shared memory that it uses */
    size_t n_regions, region_bytes;
    bx_error error;

    /* of a result that is recorded: what, the answer once it is, and the next one of the queue */
    record record;
    answer done;
    request *next_record;
    bool recorded;     /* or about to be: its answer is all that is needed */
    size_t done_bytes; /* of it */

    int64_t began_ns, received_ns; /* headers, last byte */
    atomic_llong first_unit_ns;    /* 0: none yet */

    /* the pool's, under its lock */
    request *next, *previous;
    bool queued;
    int64_t next_unit, ready_units;
    int32_t *images_ready; /* (2N) first in, first out; ~image: to be mined */
    unsigned ready_slabs;  /* a bit for each */
    int32_t images_head, images_tail;
    int32_t next_row, ready_rows; /* images of the second round */
    bool body_ready, result_ready;
    bool slow; /* it waits in the ring for what is slow */
};

/* Admit a request: memory for its body, if it has one, and a ticket if it computes. On failure *refusal is the answer.
 */
BX_MUST_USE request *request_admit(server *server, const admission *admission, answer *refusal);
void request_ref(request *request);
void request_unref(request *request);
/* Bytes of the body, in order. False when they are ignored because of an earlier failure; the answer will say why. */
bool request_receive(request *request, const void *data, size_t bytes);
/* Why bytes are ignored; status 0: the route takes none. */
answer request_refusal(request *request);
/* The body is complete: what does not compute takes its ticket. Returns true when `answer` is ready now; false when the
 * caller must suspend: it does so by request_wait, which is atomic with the last unit. */
BX_MUST_USE bool request_complete(request *request);
/* Under the lock: if the answer is still to come, call suspend and return what it returned (false: it would not). */
BX_MUST_USE bool request_wait(request *request, bool (*suspend)(void *connection, void *argument), void *argument);
/* Move the settled answer out; false when the request expired or is not settled. */
BX_MUST_USE bool request_answer(request *request, answer *out);
/* Settle with a problem unless settled, resume a waiting connection, cancel the work. */
void request_fail(request *request, int status, const char *code, const char *detail);
/* The body came too late: true when the request was still receiving, and now nobody will answer it. */
BX_MUST_USE bool request_expire(request *request);
bool request_expired(request *request);
/* The connection is gone or answered: drops its reference. */
void request_abandon(request *request);
/* It does not compute any more, and its answer will have so many bytes: the rest of its memory is given back as soon as
 * nobody receives it, and its ticket at once. Both is done when it is answered, at the latest. */
void request_computed(request *request, size_t bytes);
/* The shared memory it uses is not needed any more; done by the last reference. */
void request_drop_regions(request *request);
/* Called by workers: what the whole body is for. Only one that `makes` makes the sets of patterns. */
void request_run_body(request *request, bool makes);
/* For whoever works on it. The last unit, and what never had one, settles; other answers lose against an earlier one.
 */
void request_settle(request *request, answer given);
answer request_error(request *request, const bx_error *error);
/* The first unit begins. */
void request_mark_begun(request *request);
/* Where the time after the last byte went; what ran while bytes arrived cost the client nothing. */
proto_timing request_timing(const request *request);
/* Fails for want of `bytes` more: for now, or (since this request alone would need more than there is) for ever. */
bx_status request_no_memory(const request *request, bx_status status, size_t bytes, bx_error *error);
/* Reserve what it takes to keep all of a body of which only the beginning is kept. Errors: BX_TOO_LARGE, BX_BUSY. */
BX_MUST_USE bx_status request_reserve_whole(request *request, bx_error *error);
/* What decoding has taken. */
typedef struct reservation {
    request *request;
    bool by_worker;
    size_t bytes; /* to be returned with lease_return when the body is decoded */
} reservation;
/* Decoding asks for what it takes step by step, and is refused for much in a thread that is not a worker's, with
 * REGISTRY_LATER. */
proto_limits request_limits(reservation *reservation);
/* The largest body, and which limit that is. */
long request_body_limit(const options *options, const route *route, proto_encoding encoding, const char **why);

/* ---- batches: decoding, planning, units of work ------------------------------------------------------------------ */

/* Body -> batch -> plan -> job. `bytes` is the body's full length, of which the annotations at least are there. Done
 * here, by the receiving thread, it leaves to a worker what takes long: then request->later is set. A worker that does
 * not make the sets of patterns fails with REGISTRY_LATER. Errors are in request->error. */
BX_MUST_USE bx_status batch_prepare(request *request, size_t bytes, bool by_worker, bool makes);
BX_MUST_USE bx_status batch_prepare_here(request *request, size_t bytes);
/* The same of a body of which only the beginning is kept: done only if the rest can be streamed, else it is as before.
 */
BX_MUST_USE bx_status batch_prepare_stream(request *request);
/* Hand the workers what may run, of a batch that has been prepared. */
void batch_progress(request *request);
/* The whole of a small one, by the receiving thread. False when no context is free. */
bool batch_run_inline(request *request);
/* Called by a GPU's thread. Memory for the gradients and for their part of the answer, now that their size is known;
 * the whole batch once more, by the cpu; the answer of a computed batch, which may also be made by a worker. */
BX_MUST_USE bx_status batch_take_gradients(request *request, bx_error *error);
void batch_redo(request *request);
void batch_finish(request *request);
/* Called by workers. */
void batch_run_unit(request *request, bx_context *context, int64_t unit);
void batch_run_image(request *request, bx_context *context, int32_t image);
void batch_run_rows(request *request, bx_context *context, int32_t image);

/* ---- streams: predictions scored as they arrive ------------------------------------------------------------------ */

/* Whether a decoded request, whose predictions are the end of the body, can be streamed. */
BX_MUST_USE bool stream_fits(const request *request);
/* Memory besides the work, of which the second is request->stages; and the place of the first (aligned for doubles),
 * once the plan is made. */
size_t stream_bytes(const request *request);
size_t stream_stage_bytes(const bx_plan *plan);
void stream_begin(request *request, void *memory);
/* Bytes of the body from its byte `at`, in order. */
void stream_receive(request *request, size_t at, const char *data, size_t bytes);
/* Called by workers: match an image unless that has been done; mine one; score a slab. */
void stream_assign(request *request, bx_context *context, int32_t image);
void stream_mine(request *request, bx_context *context, int32_t image);
void stream_run_slab(request *request, bx_context *context, int slab);

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* A problem document; never fails (a static one when memory is gone). Under /v2 it becomes what the protocol says when
 * it is sent. */
answer answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *request_id);
const char *http_reason(int status);
answer answer_error(const bx_error *error, const proto_request *request, proto_encoding encoding,
                    const char *request_id);
/* 200 with a JSON text, which it takes. */
answer answer_json(proto_buffer body);
void answer_free(answer *answer);

/* What besides the answer its headers say. */
typedef struct reply {
    bool protocol;      /* errors are as the Open Inference Protocol says them */
    bool close;         /* the connection, afterwards */
    bool head;          /* it is of a HEAD, and has headers only */
    const char *id;     /* of the request */
    const char *origin; /* whose page may read it; empty: none but ours */
    bool has_origins;   /* pages of other origins may ask at all */
} reply;
/* Every header of an answer but Content-Length, in turn, whoever writes it. */
typedef void header_taker(void *context, const char *name, const char *value);
void reply_headers(const answer *answer, const reply *reply, header_taker *take, void *context);

/* ---- request heads: the framing guard and what the headers ask for ----------------------------------------------- */

/* What the guard needs of a request's head; texts belong to the HTTP library. Zero-initialise, then add each header. */
typedef struct head {
    const char *method; /* NULL: not looked at */
    bool malformed_uri, long_uri, http_1_0;
    int n_query;              /* parameters of the query string */
    bool bad_name, bad_value; /* a byte that no header may have */
    int n_headers, n_length, n_transfer, n_host;
    size_t bytes;
    const char *host, *length, *transfer, *expect, *type, *encoding, *accept, *id;
    const char *if_match, *if_none_match, *content_range; /* of a PUT; the second of a GET too */
    int n_infer;
    bool from_browser;         /* by what it says besides */
    const char *site, *origin; /* Sec-Fetch-Site and Origin: whose page of a browser asks */
    const char *wanted_method; /* Access-Control-Request-Method */
    const char *authorization;
    int n_origin, n_authorization;
    const char *infer, *accept_encoding; /* Inference-Header-Content-Length; of an inference */
    /* known after head_check */
    int64_t content_length; /* -1: none */
    bool chunked, expects_continue;
} head;

typedef struct refusal {
    int status;
    const char *code, *detail;
} refusal;

void head_add(head *head, const char *name, const char *value);
/* False when the request may not even be parsed further: the connection must be closed after the answer. */
BX_MUST_USE bool head_check(head *head, refusal *why);
/* Raw request target: no %00 or other encoded control bytes, no broken escapes, printable ASCII only, and no encoded
 * slash in its path, which is not the slash that separates. */
bool uri_is_sane(const char *uri);
bool uri_is_long(const char *uri);
/* So many more parameters than are possible that none of them should be looked at. */
bool uri_floods(const char *uri);
/* Whether an If-None-Match (NULL: none) names this entity tag: what the client has is still right. */
bool etag_matches(const char *if_none_match, const char *etag);
/* On what condition a PUT is to be done. */
BX_MUST_USE bool head_condition(const head *head, condition *condition, refusal *why);
/* The encoding of a posted body, which may have to be JSON; *guess when its first byte decides. */
BX_MUST_USE bool head_body_encoding(const head *head, bool json_only, proto_encoding *encoding, bool *guess,
                                    refusal *why);
/* JSON or safetensors by Accept; JSON when both are equally welcome. */
BX_MUST_USE bool head_accept(const head *head, proto_encoding *accept, refusal *why);

/* Where the JSON of an inference ends, the coding of its body and the one its answer may have; any Content-Type will
 * do.
 */
BX_MUST_USE bool head_infer(const head *head, admission *admission, refusal *why);

/* ---- peers: total deadlines of connections ----------------------------------------------------------------------- */

typedef enum phase { PHASE_HEAD, PHASE_BODY, PHASE_COMPUTE, PHASE_ANSWER, PHASE_IDLE } phase;

typedef struct peers peers;
typedef struct peer peer;

/* Starts the reaper thread. Where connections are `encrypted` it cannot write on them. */
BX_MUST_USE bx_status peers_start(peers **peers, bool encrypted, bx_error *error);
void peers_stop(peers *peers);
/* A new connection in its first phase; NULL when out of memory: it must then be closed. */
peer *peer_add(peers *peers, int fd, int64_t seconds);
/* Before the socket is closed. NULL is accepted. */
void peer_remove(peer *peer);
/* More time in this phase: until `seconds` after it began. */
void peer_extend(peer *peer, int64_t seconds);
/* The next phase and its time. `post` (may be NULL) and `how`, what an answer of ours is to say, must stay until the
 * next call. */
void peer_phase(peer *peer, phase phase, int64_t seconds, request *post, const reply *how);
/* Answer a request in the middle of its body, after which its connection must be closed. False: it is over already. The
 * answer stays the caller's. */
bool peer_refuse(peer *peer, answer *problem);
#define MOST_LINGERING 64 /* sockets at most that outlive their connections for a while */
/* Its client may still be sending what nobody will read; only that its socket goes on a while, and what comes is
 * dropped, lets it see its answer before the connection ends. To be called before the socket is closed. */
void peer_linger(peer *peer);
/* What a client has not taken of its answer in all its time goes when its socket is closed: otherwise it would stay in
 * the kernel's buffer, megabytes of it, for minutes. */
void peer_forget_unsent(const peer *peer);
/* Why its connection is over, if it is: the reaper ended it because a phase took too long, or the client left. */
typedef enum peer_end { PEER_HERE, PEER_LATE, PEER_LEFT } peer_end;
peer_end peer_ended(peer *peer);
/* Fail every request that waits for its computation. */
void peers_fail(peers *peers, int status, const char *code, const char *detail);

/* ---- HTTP -------------------------------------------------------------------------------------------------------- */

/* Take the ports, and set server->port and ops_port; clients wait until http_start, which starts libmicrohttpd and the
 * reaper. After a failure of either: http_stop. */
BX_MUST_USE bx_status http_listen(server *server, bx_error *error);
BX_MUST_USE bx_status http_start(server *server, bx_error *error);
/* HOST:PORT or [HOST]:PORT; free with freeaddrinfo. */
struct addrinfo;
BX_MUST_USE bool address_resolve(const char *listen, struct addrinfo **out);
struct sockaddr;
bool address_is_loopback(const struct sockaddr *address);
/* Of --listen; that of --ops-listen answers until http_stop has stopped everything else. */
void http_close_listener(server *server);
/* Wait until nothing is being answered, at most until the deadline. */
void http_finish(server *server, int64_t deadline_ns);
/* Those open at --listen. */
long http_connections(server *server);
/* How many there may be. */
long http_connection_limit(server *server);
/* What connections can take of the machine's memory at most. */
size_t http_most_bytes(server *server);
/* Everything that still waits gets 503; then stop. */
void http_stop(server *server);

/* ---- routes ------------------------------------------------------------------------------------------------------ */

/* What a handler may look at. */
typedef struct route_call {
    server *server;
    const route *route;
    const char *name; /* the {name} part of the path, or NULL */
    proto_encoding accept;
    const char *request_id;
    const char *if_none_match; /* of a GET; NULL or empty: none */
    /* where it runs as a request */
    const proto_option *query;
    size_t n_query;
    lease *lease;
    const registration *body; /* without kind and name */
} route_call;

/* A path of the HTTP interface with one of its methods. */
struct route {
    const char *method, *path; /* {name} stands for one segment, {version} for that of a model */
    right right;               /* at least, of whoever asks */
    enum {
        ROUTE_AT_ONCE,   /* the receiving thread calls the handler */
        ROUTE_OPS,       /* the same, and --ops-listen has it too */
        ROUTE_BY_WORKER, /* the worker for what is slow does, when its answer without a lease has status 0 */
        ROUTE_BY_CLERK,  /* the clerk does, because of the disk */
        ROUTE_BY_READER, /* the thread that looks after what was recorded does; the query is the handler's */
        ROUTE_BY_WRITER, /* the thread that records does */
        ROUTE_BATCH,     /* predictions: no handler, but units of work */
    } how;
    bool has_body;
    bool negotiates; /* JSON or safetensors by Accept */
    proto_task task; /* of a batch */
    definition kind; /* of what {name} names */
    answer (*handler)(const route_call *call);
};

/* The i-th route and its path, NULL past the end; and which one a route of the table is. */
const route *route_at(size_t i);
const char *route_path(size_t i);
size_t route_index(const route *route);
/* What a path says for {name}, cut: no name is that long. Empty: nothing. */
#define ROUTE_NAME 256
/* The route of a method and path; without one, `allow` lists the methods the path has (none: empty). */
const route *route_find(const char *method, const char *path, char name[ROUTE_NAME], char allow[40]);
/* Whether a path or target is the Open Inference Protocol's, which has its own way of saying errors. */
static inline bool is_protocol(const char *path) {
    return !strncmp(path, "/v2", 3) && (path[3] == '\0' || path[3] == '/' || path[3] == '?');
}
static inline bool route_infers(const route *route) {
    return route->how == ROUTE_BATCH && is_protocol(route->path);
}
/* What /readyz answers. */
answer get_readyz(const route_call *call);

/* ---- runs: results that are recorded, and how they are told ------------------------------------------------------ */

/* Open what is there and start the thread that writes; `directory` and `metrics` outlive it. Errors: BX_NOMEM, BX_BUSY
 * "threads"; what is there cannot be used: BX_BUSY "store_broken" or "store_read_only". */
BX_MUST_USE bx_status runs_start(runs **runs, data_dir *directory, const history_options *options, metrics *metrics,
                                 bx_error *error);
/* Write what waits, then stop. NULL is accepted. */
void runs_stop(runs *runs);
void runs_hurry(runs *runs);
/* What is wrong with what was recorded; and whether it is there, if anything ever was. */
history_state runs_state(const runs *runs);
bool runs_ready(const runs *runs);
/* Record request->record, then settle the request with request->done; or with what failed. Of ROUTE_BY_WRITER: let the
 * thread that records call the handler. Never waits. */
void runs_put(runs *runs, request *request);
/* Handlers. */
answer get_runs(const route_call *call);
answer get_run(const route_call *call);
answer get_steps(const route_call *call);
answer delete_run(const route_call *call);

/* ---- models: criteria, as the Open Inference Protocol sees them -------------------------------------------------- */

models *models_new(void);
void models_free(models *models);
/* Count an inference: where its time went, of `ns` in all. */
void models_record(models *models, const char *name, bool success, const proto_timing *timing, int64_t ns);
/* The criterion is deleted. */
void models_forget(models *models, const char *name);
/* Otherwise *refused is the answer. */
BX_MUST_USE bool model_is_known(server *server, const char *name, const char *request_id, answer *refused);
/* Handlers. */
answer get_server(const route_call *call);
answer get_live(const route_call *call);
answer get_ready(const route_call *call);
answer get_model(const route_call *call);
answer get_model_config(const route_call *call);
answer get_model_statistics(const route_call *call);
answer post_index(const route_call *call);
answer post_load(const route_call *call);
answer post_unload(const route_call *call);
answer get_regions(const route_call *call);
answer post_register(const route_call *call);
answer post_unregister(const route_call *call);

/* ---- metrics ----------------------------------------------------------------------------------------------------- */

/* How a request ended: with 2xx or 3xx, another 4xx (or 501, or a device that is not there), 408 or 504, 503 or 507,
 * 500; GONE: without its answer, because the client left. */
typedef enum outcome {
    OUTCOME_OK,
    OUTCOME_REFUSED,
    OUTCOME_TIMEOUT,
    OUTCOME_BUSY,
    OUTCOME_FAILED,
    OUTCOME_GONE,
    N_OUTCOMES
} outcome;

/* What is counted of a request that is over. */
typedef struct measured {
    const route *route; /* of the table; NULL: none */
    outcome outcome;
    size_t bytes_out; /* of the body of its answer, if that was sent */
    bool admitted;    /* what follows is known */
    proto_encoding encoding;
    size_t bytes_in;
    int32_t images;
    bool timed; /* what follows is known too */
    proto_timing timing;
    int64_t ns; /* from its headers to the last byte of its answer */
} measured;

/* Why a request was not let in: it has no token, or a wrong one; its token's role; too many wrong ones before. */
typedef enum denial { DENIED_MISSING, DENIED_WRONG, DENIED_ROLE, DENIED_GUESSING, N_DENIALS } denial;

/* NULL when out of memory. Any thread may count. */
metrics *metrics_new(void);
void metrics_free(metrics *metrics);
/* `code` of the problem, or NULL. */
outcome outcome_of(int status, const char *code);
void metrics_count(metrics *metrics, const measured *request);
/* A batch was computed by that device (request->device); one was computed by the cpu because a GPU could not. */
void metrics_computed(metrics *metrics, int device);
void metrics_fallback(metrics *metrics);
/* The store has committed so many results, or failed to. */
void metrics_store_commit(metrics *metrics, double seconds, long stored, long failed);
void metrics_denied(metrics *metrics, denial how);
/* Tokens and TLS were read again, or could not be. */
void metrics_reloaded(metrics *metrics, bool fine);
/* What /metrics answers. */
answer get_metrics(const route_call *call);

/* ---- assets: files embedded in the binary ------------------------------------------------------------------------ */

/* Handler: the file at the route's path, or of the dashboard the one that {name} names. */
answer get_asset(const route_call *call);

#endif
