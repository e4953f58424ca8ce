/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon counts, and the page that tells it in Prometheus' text format.
 *
 * Any thread counts, without a lock: a counter is one relaxed addition, and a route's counters lie at its place in the
 * table of routes. There are several of each, so that threads seldom share a cache line, and their sum counts. The page
 * is put together when it is asked for; what it says of one histogram agrees with itself, because the count is the sum
 * of the buckets that were read. Everything has its size from the start.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "access.h"

/* The upper bounds of buckets: from a small request to one that takes all of its time. */
static const struct {
    int64_t ns;
    const char *le;
} bounds[] = {
    {50000, "0.00005"},  {100000, "0.0001"},  {250000, "0.00025"}, {500000, "0.0005"},  {1000000, "0.001"},
    {2500000, "0.0025"}, {5000000, "0.005"},  {10000000, "0.01"},  {25000000, "0.025"}, {50000000, "0.05"},
    {100000000, "0.1"},  {250000000, "0.25"}, {500000000, "0.5"},  {1000000000, "1"},   {2500000000, "2.5"},
    {5000000000, "5"},   {10000000000, "10"}, {30000000000, "30"}, {INT64_MAX, "+Inf"},
};
enum { N_BOUNDS = sizeof bounds / sizeof *bounds };

typedef atomic_llong counter;

typedef struct histogram {
    counter buckets[N_BOUNDS]; /* not cumulative */
    counter sum_ns;
} histogram;

enum { RECEIVE, QUEUE, COMPUTE, ANSWER, N_TIMES };
enum { N_ENCODINGS = PROTO_INFER + 1 };

static const char *const outcomes[N_OUTCOMES] = {
    [OUTCOME_OK] = "ok",     [OUTCOME_REFUSED] = "refused", [OUTCOME_TIMEOUT] = "timeout",
    [OUTCOME_BUSY] = "busy", [OUTCOME_FAILED] = "failed",   [OUTCOME_GONE] = "gone",
};
static const char *const encodings[N_ENCODINGS] = {
    [PROTO_JSON] = "json", [PROTO_SAFETENSORS] = "safetensors", [PROTO_INFER] = "infer"};

enum { N_SHARDS = 8 };

typedef struct counters {
    counter request_bytes[N_ENCODINGS], response_bytes;
    counter stored, not_stored;
    counter computed[1 + MOST_DEVICES], fallbacks; /* by request->device */
    counter denied[N_DENIALS], reloaded[2];        /* fine, or not */
    histogram commits;
    struct route_counters {
        counter requests[N_OUTCOMES], images[N_OUTCOMES];
        histogram times[N_TIMES];
    } routes[]; /* (n_routes + 1) the last is of no route */
} counters;

struct metrics {
    int64_t began_ns; /* the process, since 1970 */
    size_t n_routes;
    size_t shard_bytes; /* of the counters, and then there are the same again */
    counters *shards;   /* (N_SHARDS) */
};

/* ---- counting ---------------------------------------------------------------------------------------------------- */

static void add(counter *c, int64_t n) {
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

/* The counters of this thread, which it may share. */
static counters *mine(const metrics *m) {
    return (counters *)(void *)((char *)m->shards + thread_number() % N_SHARDS * m->shard_bytes);
}

/* The sum of a counter, one of the first shard's. */
static int64_t get(const metrics *m, const counter *c) {
    int64_t sum = 0;
    for (size_t i = 0; i < N_SHARDS; i++) {
        sum += atomic_load_explicit((const counter *)(const void *)((const char *)c + i * m->shard_bytes),
                                    memory_order_relaxed);
    }
    return sum;
}

static void observe(histogram *h, int64_t ns) {
    size_t i = 0;
    ns = ns > 0 ? ns : 0;
    while (ns > bounds[i].ns) {
        i++;
    }
    add(&h->buckets[i], 1);
    add(&h->sum_ns, ns);
}

outcome outcome_of(int status, const char *code) {
    if (code && !strcmp(code, "device_unavailable")) {
        return OUTCOME_REFUSED; /* more room would not help; lossd_device_healthy says when a GPU was lost */
    }
    switch (status) {
    case 408:
    case 504:
        return OUTCOME_TIMEOUT;
    case 503:
    case 507:
        return OUTCOME_BUSY;
    case 500:
        return OUTCOME_FAILED;
    default:
        return status < 400 ? OUTCOME_OK : OUTCOME_REFUSED;
    }
}

void metrics_count(metrics *m, const measured *x) {
    counters *all = mine(m);
    struct route_counters *c = &all->routes[x->route ? route_index(x->route) : m->n_routes];
    add(&c->requests[x->outcome], 1);
    add(&all->response_bytes, (int64_t)x->bytes_out);
    if (x->admitted) {
        add(&all->request_bytes[x->encoding], (int64_t)x->bytes_in);
        add(&c->images[x->outcome], x->images);
    }
    if (x->timed) {
        const int64_t receive = (int64_t)(x->timing.receive_ms * NS_PER_MS),
                      queue = (int64_t)(x->timing.queue_ms * NS_PER_MS),
                      compute = (int64_t)(x->timing.compute_ms * NS_PER_MS);
        observe(&c->times[RECEIVE], receive);
        observe(&c->times[QUEUE], queue);
        observe(&c->times[COMPUTE], compute);
        observe(&c->times[ANSWER], x->ns - receive - queue - compute);
    }
}

void metrics_computed(metrics *m, int device) {
    add(&mine(m)->computed[device], 1);
}

void metrics_fallback(metrics *m) {
    add(&mine(m)->fallbacks, 1);
}

void metrics_store_commit(metrics *m, double seconds, long stored, long failed) {
    observe(&mine(m)->commits, (int64_t)(seconds * NS_PER_S));
    add(&mine(m)->stored, stored);
    add(&mine(m)->not_stored, failed);
}

void metrics_denied(metrics *m, denial how) {
    add(&mine(m)->denied[how], 1);
}

void metrics_reloaded(metrics *m, bool fine) {
    add(&mine(m)->reloaded[!fine], 1);
}

/* ---- the process, as /proc tells --------------------------------------------------------------------------------- */

typedef struct figures {
    int64_t virtual_bytes, resident_bytes, threads, open_files;
} figures;

/* The beginning of a short file; an empty text where it cannot be read. */
static void read_file(const char *path, char *text, size_t size) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd >= 0 ? read(fd, text, size - 1) : 0;
    text[n > 0 ? n : 0] = '\0';
    if (fd >= 0) {
        close(fd);
    }
}

/* A number of /proc/self/stat, whose second field, in parentheses, may hold anything; the third one has index 3. */
static int64_t stat_field(int index) {
    char text[1024];
    read_file("/proc/self/stat", text, sizeof text);
    const char *at = strrchr(text, ')');
    for (int i = 2; at && i < index; i++) {
        at = strchr(at + 1, ' ');
    }
    return at ? strtoll(at, NULL, 10) : 0;
}

/* opendir would allocate. */
static int64_t count_files(void) {
    _Alignas(8) char entries[4096]; /* 8 bytes each of inode and offset, 2 of length, 1 of type, the name */
    const int fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int64_t n_files = -1; /* this one */
    for (long n; fd >= 0 && (n = syscall(SYS_getdents64, fd, entries, sizeof entries)) > 0;) {
        for (long at = 0; at < n;) {
            uint16_t length;
            memcpy(&length, entries + at + 16, sizeof length);
            n_files += entries[at + 19] != '.';
            at += length;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return n_files > 0 ? n_files : 0;
}

static figures look_at_process(void) {
    char text[256], *resident;
    read_file("/proc/self/statm", text, sizeof text);
    const long page = sysconf(_SC_PAGESIZE);
    figures f = {.threads = stat_field(20), .open_files = count_files()};
    f.virtual_bytes = strtoll(text, &resident, 10) * page;
    f.resident_bytes = strtoll(resident, NULL, 10) * page;
    return f;
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

/* Since 1970. The kernel counts from its own start, in ticks. */
static int64_t began_ns(void) {
    const int64_t ticks = stat_field(22), second = sysconf(_SC_CLK_TCK), now = clock_ns(CLOCK_REALTIME);
    return ticks > 0 ? now - clock_ns(CLOCK_BOOTTIME) + ticks * (NS_PER_S / second) : now;
}

/* ---- the page ---------------------------------------------------------------------------------------------------- */

typedef struct page {
    proto_buffer out;
    server *server;
    const metrics *metrics;
    figures process;
} page;

typedef struct row {
    const char *name, *type, *labels, *help;
    void (*write)(page *page, const struct row *row);
} row;

static void put(page *p, const char *text) {
    proto_buffer_add(&p->out, text, strlen(text));
}

/* In quotes. */
static void put_value(page *p, const char *value) {
    put(p, "\"");
    for (const char *c = value; *c; c++) {
        const char escaped[] = {'\\', *c == '\n' ? 'n' : *c, '\0'}, plain[] = {*c, '\0'};
        put(p, *c == '\\' || *c == '"' || *c == '\n' ? escaped : plain);
    }
    put(p, "\"");
}

/* A sample up to its number: the row's labels with these values, and `le` unless that is NULL. */
static void put_name(page *p, const row *r, const char *suffix, const char *const *values, const char *le) {
    const char *separator = "{";
    put(p, r->name);
    put(p, suffix);
    for (const char *label = r->labels; *label; values++) {
        const size_t n = strcspn(label, ",");
        put(p, separator);
        proto_buffer_add(&p->out, label, n);
        put(p, "=");
        put_value(p, *values);
        separator = ",";
        label += n + (label[n] == ',');
    }
    if (le) {
        put(p, separator);
        put(p, "le=");
        put_value(p, le);
        separator = ",";
    }
    put(p, *separator == ',' ? "} " : " ");
}

static void put_number(page *p, int64_t number) {
    char text[24];
    snprintf(text, sizeof text, "%lld\n", (long long)number);
    put(p, text);
}

/* Without the detour over a double. */
static void put_seconds(page *p, int64_t ns) {
    char text[48];
    snprintf(text, sizeof text, "%lld.%09lld\n", (long long)(ns / NS_PER_S), (long long)(ns % NS_PER_S));
    put(p, text);
}

static void put_counters(page *p, const row *r, const char *const *values, size_t n_values, const int64_t *counters,
                         const char *first) {
    for (size_t i = 0; i < n_values; i++) {
        const char *labels[] = {first ? first : values[i], values[i]};
        put_name(p, r, "", labels, NULL);
        put_number(p, counters[i]);
    }
}

/* A histogram as it was read, and may be added to another. */
typedef struct reading {
    int64_t buckets[N_BOUNDS], sum_ns;
} reading;

static void read_histogram(reading *to, const metrics *m, const histogram *h) {
    for (size_t i = 0; i < N_BOUNDS; i++) {
        to->buckets[i] += get(m, &h->buckets[i]);
    }
    to->sum_ns += get(m, &h->sum_ns);
}

static void put_histogram(page *p, const row *r, const char *label, const reading *h) {
    int64_t n = 0;
    for (size_t i = 0; i < N_BOUNDS; i++) {
        n += h->buckets[i];
        put_name(p, r, "_bucket", &label, bounds[i].le);
        put_number(p, n);
    }
    put_name(p, r, "_sum", &label, NULL);
    put_seconds(p, h->sum_ns);
    put_name(p, r, "_count", &label, NULL);
    put_number(p, n);
}

/* ---- by path ----------------------------------------------------------------------------------------------------- */

/* The methods of a path are counted as one. */
static bool same_path(size_t i, size_t j) {
    const route *a = route_at(i), *b = route_at(j);
    return a == b || (a && b && !strcmp(a->path, b->path));
}

static bool is_first(size_t i) {
    size_t first = 0;
    while (!same_path(first, i)) {
        first++;
    }
    return first == i;
}

static const char *path_label(size_t i) {
    return route_at(i) ? route_at(i)->path : "other";
}

static void put_by_path(page *p, const row *r, bool images) {
    const metrics *m = p->metrics;
    for (size_t i = 0; i <= m->n_routes; i++) {
        int64_t sums[N_OUTCOMES] = {0};
        const bool has_images = i < m->n_routes && route_at(i)->how == ROUTE_BATCH;
        if (!is_first(i) || (images && !has_images)) {
            continue;
        }
        for (size_t j = i; j <= m->n_routes; j++) {
            for (int k = 0; k < N_OUTCOMES && same_path(i, j); k++) {
                const struct route_counters *c = &m->shards->routes[j];
                sums[k] += get(m, images ? &c->images[k] : &c->requests[k]);
            }
        }
        put_counters(p, r, outcomes, N_OUTCOMES, sums, path_label(i));
    }
}

static void put_times(page *p, const row *r, int time) {
    const metrics *m = p->metrics;
    for (size_t i = 0; i < m->n_routes; i++) {
        if (route_at(i)->how == ROUTE_BATCH) { /* a path of which there is one method */
            reading h = {.sum_ns = 0};
            read_histogram(&h, m, &m->shards->routes[i].times[time]);
            put_histogram(p, r, route_at(i)->path, &h);
        }
    }
}

/* ---- the samples of each metric ---------------------------------------------------------------------------------- */

static bool is_store_healthy(server *s) {
    return registry_ready(s->registry) && runs_state(s->runs) == HISTORY_FINE;
}

static int64_t depth(server *s) {
    const int64_t n = atomic_load(&s->tickets), most = s->options.queue_limit;
    return n < most ? n : most; /* who is refused had counted itself first */
}

static void write_requests_total(page *p, const row *r) {
    put_by_path(p, r, false);
}

static void write_images_total(page *p, const row *r) {
    put_by_path(p, r, true);
}

static void write_request_body_bytes_total(page *p, const row *r) {
    int64_t bytes[N_ENCODINGS];
    for (int i = 0; i < N_ENCODINGS; i++) {
        bytes[i] = get(p->metrics, &p->metrics->shards->request_bytes[i]);
    }
    put_counters(p, r, encodings, N_ENCODINGS, bytes, NULL);
}

static void write_store_results_total(page *p, const row *r) {
    static const char *const ends[] = {"stored", "failed"};
    put_counters(p, r, ends, 2,
                 (const int64_t[]){get(p->metrics, &p->metrics->shards->stored),
                                   get(p->metrics, &p->metrics->shards->not_stored)},
                 NULL);
}

static void write_auth_refusals_total(page *p, const row *r) {
    static const char *const reasons[N_DENIALS] = {
        [DENIED_MISSING] = "missing", [DENIED_WRONG] = "wrong", [DENIED_ROLE] = "role", [DENIED_GUESSING] = "guessing"};
    int64_t denied[N_DENIALS];
    for (int i = 0; i < N_DENIALS; i++) {
        denied[i] = get(p->metrics, &p->metrics->shards->denied[i]);
    }
    put_counters(p, r, reasons, N_DENIALS, denied, NULL);
}

static void write_reloads_total(page *p, const row *r) {
    static const char *const ends[] = {"ok", "failed"};
    const counter *c = p->metrics->shards->reloaded;
    put_counters(p, r, ends, 2, (const int64_t[]){get(p->metrics, &c[0]), get(p->metrics, &c[1])}, NULL);
}

static void write_receive_seconds(page *p, const row *r) {
    put_times(p, r, RECEIVE);
}

static void write_queue_seconds(page *p, const row *r) {
    put_times(p, r, QUEUE);
}

static void write_compute_seconds(page *p, const row *r) {
    put_times(p, r, COMPUTE);
}

static void write_answer_seconds(page *p, const row *r) {
    put_times(p, r, ANSWER);
}

static void write_store_commit_seconds(page *p, const row *r) {
    reading h = {.sum_ns = 0};
    read_histogram(&h, p->metrics, &p->metrics->shards->commits);
    put_histogram(p, r, NULL, &h);
}

static void write_build_info(page *p, const row *r) {
    put_name(p, r, "", (const char *const[]){LOSSD_VERSION, __VERSION__}, NULL);
    put_number(p, 1);
}

/* A row of the cpu, and one of each GPU that is used, which is its i-th. */
static void put_by_device(page *p, const row *r, int64_t cpu, int64_t (*value)(const page *page, size_t i)) {
    const char *device = "cpu";
    put_name(p, r, "", &device, NULL);
    put_number(p, cpu);
    for (size_t i = 0; devices_at(p->server->devices, i); i++) {
        device = devices_at(p->server->devices, i)->device.name;
        put_name(p, r, "", &device, NULL);
        put_number(p, value(p, i));
    }
}

static int64_t gpu_computed(const page *p, size_t i) {
    return get(p->metrics, &p->metrics->shards->computed[i + 1]);
}

static int64_t gpu_healthy(const page *p, size_t i) {
    (void)i;
    return !devices_lost(p->server->devices);
}

static int64_t gpu_memory(const page *p, size_t i) {
    return (int64_t)devices_at(p->server->devices, i)->taken;
}

static int64_t gpu_threads(const page *p, size_t i) {
    (void)i;
    return (int64_t)devices_threads(p->server->devices);
}

static int64_t gpu_threads_busy(const page *p, size_t i) {
    return (int64_t)devices_busy(p->server->devices, i);
}

static void write_device_info(page *p, const row *r) {
    put_name(p, r, "", (const char *const[]){"cpu", pool_level(p->server->pool)}, NULL);
    put_number(p, 1);
    for (size_t i = 0; devices_at(p->server->devices, i); i++) {
        const gpu *g = devices_at(p->server->devices, i);
        put_name(p, r, "", (const char *const[]){g->device.name, g->level}, NULL);
        put_number(p, 1);
    }
}

static void write_process_max_fds(page *p, const row *r) {
    struct rlimit most = {0};
    const bool known = !getrlimit(RLIMIT_NOFILE, &most);
    put_name(p, r, "", NULL, NULL);
    if (known && most.rlim_cur == RLIM_INFINITY) {
        put(p, "+Inf\n");
    } else {
        put_number(p, (int64_t)most.rlim_cur);
    }
}

#define NUMBER(name, value)                                                                                            \
    static void write_##name(page *p, const row *r) {                                                                  \
        put_name(p, r, "", NULL, NULL);                                                                                \
        put_number(p, (int64_t)(value));                                                                               \
    }
#define BY_DEVICE(name, cpu, value)                                                                                    \
    static void write_##name(page *p, const row *r) {                                                                  \
        put_by_device(p, r, (int64_t)(cpu), value);                                                                    \
    }
#define SECONDS(name, ns)                                                                                              \
    static void write_##name(page *p, const row *r) {                                                                  \
        put_name(p, r, "", NULL, NULL);                                                                                \
        put_seconds(p, ns);                                                                                            \
    }

NUMBER(response_body_bytes_total, get(p->metrics, &p->metrics->shards->response_bytes))
NUMBER(queue_depth, depth(p->server))
NUMBER(queue_limit, p->server->options.queue_limit)
NUMBER(inflight_bytes, memory_used(p->server->memory))
NUMBER(memory_limit_bytes, memory_limit(p->server->memory))
NUMBER(memory_bound_bytes, server_most_bytes(p->server))
NUMBER(workers, pool_workers(p->server->pool))
NUMBER(workers_busy, pool_busy(p->server->pool))
NUMBER(connections, http_connections(p->server))
NUMBER(connection_limit, http_connection_limit(p->server))
NUMBER(ready, server_readiness(p->server, NULL) == NULL)
NUMBER(log_dropped_total, log_dropped())
NUMBER(store_healthy, is_store_healthy(p->server))
NUMBER(device_fallbacks_total, get(p->metrics, &p->metrics->shards->fallbacks))
BY_DEVICE(device_requests_total, get(p->metrics, &p->metrics->shards->computed[0]), gpu_computed)
BY_DEVICE(device_healthy, 1, gpu_healthy)
BY_DEVICE(device_memory_bytes, memory_limit(p->server->memory), gpu_memory)
BY_DEVICE(device_threads, pool_workers(p->server->pool), gpu_threads)
BY_DEVICE(device_threads_busy, pool_busy(p->server->pool), gpu_threads_busy)
NUMBER(tls_not_after_seconds, tls_not_after())
NUMBER(process_resident_memory_bytes, p->process.resident_bytes)
NUMBER(process_virtual_memory_bytes, p->process.virtual_bytes)
NUMBER(process_open_fds, p->process.open_files)
NUMBER(process_threads, p->process.threads)
SECONDS(process_cpu_seconds_total, clock_ns(CLOCK_PROCESS_CPUTIME_ID))
SECONDS(process_start_time_seconds, p->metrics->began_ns)

static const row rows[] = {
#define METRIC(name, type, labels, help) {"lossd_" #name, type, labels, help, write_##name},
#include "metrics.def"
};

answer get_metrics(const route_call *call) {
    page p = {.server = call->server, .metrics = call->server->metrics, .process = look_at_process()};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i];
        const char *const head[] = {"# HELP ", r->name, " ", r->help, "\n# TYPE ", r->name, " ", r->type, "\n"};
        for (size_t j = 0; j < sizeof head / sizeof *head; j++) {
            put(&p, head[j]);
        }
        r->write(&p, r);
    }
    return (answer){.status = 200, .type = "text/plain; version=0.0.4; charset=utf-8", .body = p.out};
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

metrics *metrics_new(void) {
    size_t n = 0;
    while (route_at(n)) {
        n++;
    }
    metrics *m = malloc(sizeof *m);
    const size_t bytes =
        (sizeof(counters) + (n + 1) * sizeof(struct route_counters) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    counters *shards = m ? lines_new(N_SHARDS * bytes) : NULL;
    if (!shards) {
        free(m);
        return NULL;
    }
    *m = (metrics){.began_ns = began_ns(), .n_routes = n, .shard_bytes = bytes, .shards = shards};
    return m;
}

void metrics_free(metrics *m) {
    if (m) {
        free(m->shards);
        free(m);
    }
}
