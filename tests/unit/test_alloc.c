/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of the daemon fails once, and every one after it fails too: over whole requests through the real
 * HTTP server, its workers and its decoders.
 *
 * The linker redirects our own calls (not those inside libmicrohttpd) to the wrappers below. For k = 1, 2, ... the k-th
 * call while armed fails. Each time the client must see a whole answer (the good one, or 503 as a problem document) or
 * a closed connection, the next clean request must be answered as ever, and no ticket or byte may stay taken. Ends when
 * a request finishes before its k-th allocation. What was acknowledged as recorded must be told afterwards. The leak
 * sanitizer looks at what remains. The start and the stop of the daemon fail likewise. (Allocations of SQLite's own
 * fail in test_store.c and test_history_faults.c.)
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "access.h"
#include "../support/batch.h"

/* ---- failing allocators ------------------------------------------------------------------------------------------ */

static atomic_long countdown = -1; /* calls left until the failing one; negative: disarmed */
static atomic_bool for_ever, fired;

static bool fails(void) {
    long left = atomic_load(&countdown);
    while (left >= 0) {
        long next = left > 1 ? left - 1 : atomic_load(&for_ever) ? 1 : -1;
        if (atomic_compare_exchange_weak(&countdown, &left, next)) {
            if (left <= 1) {
                atomic_store(&fired, true);
            }
            return left <= 1;
        }
    }
    return false;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t a, size_t n);
char *__real_strdup(const char *s);
void *__real_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t a, size_t n);
char *__wrap_strdup(const char *s);
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t m) {
    return fails() ? NULL : __real_calloc(n, m);
}
void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}
void *__wrap_aligned_alloc(size_t a, size_t n) {
    return fails() ? NULL : __real_aligned_alloc(a, n);
}
char *__wrap_strdup(const char *s) {
    return fails() ? NULL : __real_strdup(s);
}
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    return fails() ? MAP_FAILED : __real_mmap(at, n, protection, flags, fd, offset);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

typedef struct scenario {
    const char *name;
    char *bytes; /* a whole HTTP request */
    size_t n;
    const struct scenario *before; /* to be sent first; NULL: nothing */
    /* what a clean request comes to: its status, its loss as text (empty: none, or compressed), and the memory that
     * stays taken */
    int status;
    char loss[64];
    size_t memory;
    bool records; /* the run's only step, which "told" tells */
} scenario;

static char answer_text[1 << 20];

static int dial(int port) {
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval patience = {20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return connect(fd, (struct sockaddr *)&to, sizeof to) ? -1 : fd;
}

/* The status of one exchange on a connection of its own; 0 when the connection was closed instead, -1 on a timeout or a
 * broken answer. The text is in answer_text. */
static int exchange_once(int port, const scenario *s) {
    int fd = dial(port);
    if (fd < 0) {
        return -1;
    }
    size_t sent = 0, got = 0;
    while (sent < s->n) {
        ssize_t n = send(fd, s->bytes + sent, s->n - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        sent += (size_t)n;
    }
    ssize_t n;
    while ((n = recv(fd, answer_text + got, sizeof answer_text - 1 - got, 0)) > 0) {
        got += (size_t)n;
    }
    int cause = n < 0 ? errno : 0;
    close(fd);
    answer_text[got] = '\0';
    if (got == 0) {
        return cause == EAGAIN ? -1 : 0;
    }
    return strncmp(answer_text, "HTTP/1.1 ", 9) ? -1 : atoi(answer_text + 9);
}

static void copy_loss(char out[64]) {
    static const char output[] = "\"name\":\"loss\",\"datatype\":\"FP64\",\"shape\":[1],";
    const char *at = strstr(answer_text, "\"total\":");
    at = at ? at : strstr(answer_text, output) ? strstr(answer_text, output) + sizeof output - 1 : NULL;
    size_t n = at ? strcspn(at, ",}") : 0;
    memcpy(out, at ? at : "", n < 63 ? n : 63);
    out[n < 63 ? n : 63] = '\0';
}

/* `what`: method and target. */
static scenario make_scenario(const char *name, const char *what, const char *type, const char *body, size_t n) {
    scenario s = {.name = name, .bytes = malloc(n + 512)};
    int head = snprintf(
        s.bytes, 512, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
        what, type, n);
    memcpy(s.bytes + head, body, n);
    s.n = (size_t)head + n;
    return s;
}

static scenario tensors(const char *name, const char *what, int images) {
    size_t n;
    char *body = batch_tensors(images, &n);
    scenario s = make_scenario(name, what, PROTO_TYPE_SAFETENSORS, body, n);
    free(body);
    return s;
}

/* The same batch as an inference, which asks for gradients; compressed or not. */
static scenario inference(const char *name, int images, proto_coding coding) {
    size_t n;
    char *file = batch_tensors(images, &n), text[2048], type[200];
    uint64_t length;
    memcpy(&length, file, 8);
    int used = snprintf(
        text, sizeof text,
        "{\"id\":\"x\",\"parameters\":{\"include\":\"images,gradients\"},\"inputs\":["
        "{\"name\":\"counts\",\"datatype\":\"INT64\",\"shape\":[%d],\"parameters\":{\"binary_data_size\":%d}},"
        "{\"name\":\"labels\",\"datatype\":\"INT64\",\"shape\":[%d],\"parameters\":{\"binary_data_size\":%d}},"
        "{\"name\":\"boxes\",\"datatype\":\"FP32\",\"shape\":[%d,4],\"parameters\":{\"binary_data_size\":%d}},"
        "{\"name\":\"priors\",\"datatype\":\"FP32\",\"shape\":[3000,4],\"parameters\":{\"binary_data_size\":48000}},"
        "{\"name\":\"conf\",\"datatype\":\"FP32\",\"shape\":[%d,3000,8],\"parameters\":{\"binary_data_size\":%d}},"
        "{\"name\":\"loc\",\"datatype\":\"FP32\",\"shape\":[%d,3000,4],\"parameters\":{\"binary_data_size\":%d}}]}",
        images, 8 * images, images, 8 * images, images, 16 * images, images, 96000 * images, images, 48000 * images);
    proto_buffer body = {0}, coded = {0};
    const size_t behind = n - 8 - (size_t)length;
    body.data = malloc((size_t)used + behind);
    body.bytes = body.capacity = (size_t)used + behind;
    memcpy(body.data, text, (size_t)used);
    memcpy(body.data + used, file + 8 + length, behind);
    if (coding != PROTO_IDENTITY && proto_deflate(&coded, coding, body.data, body.bytes, 2 * body.bytes)) {
        proto_buffer_free(&body);
        body = coded;
    }
    snprintf(type, sizeof type, "x\r\nInference-Header-Content-Length: %d\r\nAccept-Encoding: deflate%s%s", used,
             coding != PROTO_IDENTITY ? "\r\nContent-Encoding: " : ";q=0",
             coding != PROTO_IDENTITY ? proto_coding_name(coding) : "");
    scenario s = make_scenario(name, "POST /v2/models/ssd-multibox/infer", type, body.data, body.bytes);
    proto_buffer_free(&body);
    free(file);
    return s;
}

static scenario small_inference(void) {
    static const char body[] =
        "{\"id\":\"x\",\"inputs\":[{\"name\":\"counts\",\"datatype\":\"INT64\",\"shape\":[1],\"data\":[1]},"
        "{\"name\":\"labels\",\"datatype\":\"INT64\",\"shape\":[1],\"data\":[0]},"
        "{\"name\":\"boxes\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[[0,0,0.5,0.5]]},"
        "{\"data\":[0.25,0.25,0.5,0.5,0.75,0.75,0.5,0.5],\"name\":\"priors\",\"datatype\":\"FP64\",\"shape\":[2,4]},"
        "{\"name\":\"conf\",\"datatype\":\"FP32\",\"shape\":[1,2,3],\"data\":[0,1,0,0.5,0,2]},"
        "{\"name\":\"loc\",\"datatype\":\"FP64\",\"shape\":[1,2,4],\"data\":[0.5,-0.25,0,2,1,1,1,1]}]}";
    return make_scenario("an inference in JSON", "POST /v2/models/ssd-multibox/infer", "x", body, sizeof body - 1);
}

static scenario small_json(void) {
    static const char body[] =
        "{\"priors\":[[0.2,0.2,0.4,0.4],[0.7,0.7,0.4,0.4],[0.5,0.5,0.2,0.2]],"
        "\"predictions\":{\"loc\":[[[0,0,0,0],[0.1,0,0,0],[0,0,0.2,0]]],\"conf\":[[[1,0,0],[0,2,0],[0,0,1]]]},"
        "\"annotations\":[{\"boxes\":[[0,0,0.4,0.4]],\"labels\":[1]}],\"include\":\"images,classes,levels,objects,"
        "targets,gradients\",\"criterion\":{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":[0.1,0.2,0.3]}}"
        "}";
    return make_scenario("json", "POST /v1/loss", PROTO_TYPE_JSON, body, sizeof body - 1);
}

static scenario json_scenario(const char *name, const char *what, const char *body) {
    return make_scenario(name, what, PROTO_TYPE_JSON, body, strlen(body));
}

static scenario put_tensor(void) {
    enum { P = 2000 };
    static char body[128 + P * 16];
    int n =
        snprintf(body + 8, 120, "{\"priors\":{\"dtype\":\"F32\",\"shape\":[%d,4],\"data_offsets\":[0,%d]}}", P, P * 16);
    memcpy(body, &(uint64_t){(uint64_t)n}, 8);
    for (int i = 0; i < P; i++) {
        memcpy(body + 8 + n + 16 * i, (float[]){.5f, .5f, .1f, .1f + (float)i / P / 2}, 16);
    }
    return make_scenario("put a tensor", "PUT /v1/priors/tensor", PROTO_TYPE_SAFETENSORS, body, 8 + (size_t)n + P * 16);
}

/* Computed by the receiving thread, and recorded. */
static scenario small_recorded(void) {
    scenario s = small_json(), recorded = {0};
    const char *body = (const char *)memmem(s.bytes, s.n, "\r\n\r\n", 4) + 4;
    recorded = make_scenario("record json", "POST /v1/loss?run=alloc&step=7", PROTO_TYPE_JSON, body,
                             s.n - (size_t)(body - s.bytes));
    recorded.records = true;
    free(s.bytes);
    return recorded;
}

/* Long enough to be decoded by a worker. */
static scenario large_json(void) {
    enum { P = 1500 };
    char *body = malloc(P * 80), *to = body;
    to += sprintf(to, "{\"priors\":[");
    for (int i = 0; i < P; i++) {
        to += sprintf(to, "%s[%g,%g,0.2,0.2]", i ? "," : "", (i % 50) / 50.0, (i / 50) / 40.0);
    }
    to += sprintf(to, "],\"predictions\":{\"loc\":{\"shape\":[1,%d,4],\"data\":[", P);
    for (int i = 0; i < 4 * P; i++) {
        to += sprintf(to, "%s0.%d", i ? "," : "", i % 10);
    }
    to += sprintf(to, "]},\"conf\":{\"shape\":[1,%d,2],\"data\":[", P);
    for (int i = 0; i < 2 * P; i++) {
        to += sprintf(to, "%s0.%d", i ? "," : "", i % 7);
    }
    to += sprintf(to, "]}},\"annotations\":[{\"boxes\":[[0.1,0.1,0.3,0.3]],\"labels\":[0]}]}");
    scenario s = make_scenario("json by a worker", "POST /v1/loss", PROTO_TYPE_JSON, body, (size_t)(to - body));
    free(body);
    return s;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

/* Sets of patterns are kept while there is room: let there be none. */
static void forget_patterns(server *s) {
    lease all;
    if (lease_begin(&all, s->memory, memory_limit(s->memory))) {
        lease_end(&all);
    }
}

static bool at_rest(server *s, size_t memory) {
    for (int i = 0; i < 2000; i++) {
        if (atomic_load(&s->tickets) == 0 && atomic_load(&s->at_clerk) == 0 && atomic_load(&s->at_reader) == 0 &&
            memory_used(s->memory) == memory) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

static bool prepare(server *s, const scenario *scenario) {
    forget_patterns(s);
    return !scenario->before || exchange_once(s->port, scenario->before) / 100 == 2;
}

/* What was answered with 200 is told, with the loss that was answered. */
static bool is_kept(server *s, const scenario *scenario) {
    static char ask[] = "GET /v1/runs/alloc/steps HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    static const struct scenario told = {.bytes = ask, .n = sizeof ask - 1};
    char loss[64];
    const bool there = exchange_once(s->port, &told) == 200 && strstr(answer_text, "{\"step\":7,");
    copy_loss(loss);
    return there && !strcmp(loss, scenario->loss);
}

/* What the client may see of a request one of whose allocations failed. */
static bool is_fine(const scenario *scenario, int status) {
    char loss[64];
    copy_loss(loss);
    if (status == 503) {
        return memmem(scenario->bytes, scenario->n, " /v2/", 5)
                   ? strstr(answer_text, "{\"error\":\"") != NULL
                   : strstr(answer_text, "application/problem+json") && strstr(answer_text, "\"code\":\"");
    }
    return status == 0 || (status == scenario->status && (!*scenario->loss || !strcmp(loss, scenario->loss)));
}

/* One injection; false (with a line on stderr) when an outcome is wrong. *done when nothing failed any more. */
static bool inject(server *s, const scenario *scenario, long k, bool ever, bool *done) {
    if (!prepare(s, scenario)) {
        fprintf(stderr, "%s, before allocation %ld: what comes first fails\n", scenario->name, k);
        return false;
    }
    atomic_store(&for_ever, ever);
    atomic_store(&fired, false);
    atomic_store(&countdown, k);
    int status = exchange_once(s->port, scenario);
    atomic_store(&countdown, -1);
    *done = !atomic_load(&fired);
    if (!is_fine(scenario, status)) {
        fprintf(stderr, "%s, allocation %ld%s: status %d\n%.600s\n", scenario->name, k, ever ? " and all later" : "",
                status, answer_text);
        return false;
    }
    if (status == 200 && scenario->records && !is_kept(s, scenario)) {
        fprintf(stderr, "%s, allocation %ld: what was acknowledged is not told\n%.600s\n", scenario->name, k,
                answer_text);
        return false;
    }
    status = prepare(s, scenario) ? exchange_once(s->port, scenario) : -1;
    if (status != scenario->status || !is_fine(scenario, status)) {
        fprintf(stderr, "%s, after allocation %ld: status %d\n%.600s\n", scenario->name, k, status, answer_text);
        return false;
    }
    if (!at_rest(s, scenario->memory)) {
        fprintf(stderr, "%s, allocation %ld: %ld tickets, %zu bytes stay taken, not %zu\n", scenario->name, k,
                atomic_load(&s->tickets), memory_used(s->memory), scenario->memory);
        return false;
    }
    return true;
}

/* Sent again, it has to come to the same. */
static bool learn(server *s, scenario *scenario) {
    for (int i = 0; i < 2; i++) {
        scenario->status = prepare(s, scenario) ? exchange_once(s->port, scenario) : -1;
        if (scenario->status / 100 != 2) {
            fprintf(stderr, "%s: the clean request fails\n%.800s\n", scenario->name, answer_text);
            return false;
        }
        while (atomic_load(&s->tickets) > 0 || atomic_load(&s->at_clerk) > 0) {
            usleep(1000);
        }
        usleep(20000); /* memory comes back a little after the answer */
        scenario->memory = memory_used(s->memory);
        copy_loss(scenario->loss);
    }
    return true;
}

static void run_scenario(server *s, scenario *scenario, int *passed, int *failed) {
    if (!learn(s, scenario)) {
        ++*failed;
        return;
    }
    for (int ever = 0; ever < 2; ever++) {
        bool done = false;
        /* large trees: every allocation at first, then every 7th; beyond, a tree of numbers fails as it did before */
        for (long k = 1; !done && k <= 400 && *failed < 5; k += k < 100 ? 1 : 7) {
            if (inject(s, scenario, k, ever, &done)) {
                ++*passed;
            } else {
                ++*failed;
            }
        }
    }
}

/* The start fails at every allocation, leaving nothing behind, or goes on without; nor does the stop need any. */
static void fail_starts(const options *options, int *passed, int *failed) {
    for (int ever = 0; ever < 2; ever++) {
        bool hit = true;
        for (long k = 1; hit && *failed < 5; k++) {
            static server s;
            bx_error error = {0};
            memset(&s, 0, sizeof s);
            s.options = *options;
            atomic_store(&for_ever, ever);
            atomic_store(&fired, false);
            atomic_store(&countdown, k);
            const bx_status status = server_start(&s, &error);
            if (status == BX_OK) {
                server_stop(&s);
            }
            atomic_store(&countdown, -1);
            hit = atomic_load(&fired);
            if (status == BX_OK || (error.status == status && *error.code && *error.text)) {
                ++*passed;
            } else {
                fprintf(stderr, "the start, allocation %ld: %d \"%s\" \"%s\"\n", k, (int)status, error.code,
                        error.text);
                ++*failed;
            }
        }
    }
}

/* ---- what no request does ---------------------------------------------------------------------------------------- */

/* Reading tokens, as at the start and after SIGHUP: they are all there, or nothing is. */
static bool read_tokens(const char *path, long k, bool ever, bool *done) {
    tokens *t = NULL;
    bx_error error = {0};
    char name[TOKEN_NAME];
    atomic_store(&fired, false);
    atomic_store(&for_ever, ever);
    atomic_store(&countdown, k);
    const bx_status status = tokens_read(&t, path, &error);
    atomic_store(&countdown, -1);
    *done = !atomic_load(&fired);
    const bool fine = status == BX_OK ? tokens_role(t, "a-token", name) == RIGHT_WRITE : status == BX_NOMEM && !t;
    tokens_free(t);
    return fine && (status == BX_OK) == *done;
}

static void run_tokens(const char *directory, int *passed, int *failed) {
    char path[64];
    snprintf(path, sizeof path, "%s/tokens", directory);
    const int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    static const char line[] = "write a a-token\n";
    const bool written = fd >= 0 && write(fd, line, sizeof line - 1) == (ssize_t)sizeof line - 1;
    close(fd);
    for (int ever = 0; ever < 2; ever++) {
        bool done = !written;
        for (long k = 1; !done; k++) {
            const bool fine = read_tokens(path, k, ever, &done);
            *passed += fine;
            *failed += !fine;
        }
    }
    *failed += !written;
}

int main(void) {
    static server s;
    char message[256], directory[] = "/tmp/lossd-alloc-XXXXXX", data[64], command[64];
    if (!mkdtemp(directory)) {
        return 1;
    }
    snprintf(data, sizeof data, "--data-dir=%s", directory);
    char *arguments[] = {(char[]){"lossd"},
                         (char[]){"--listen=127.0.0.1:0"},
                         (char[]){"--workers=2"},
                         data,
                         (char[]){"--drain-timeout=0"},
                         NULL};
    bx_error error = {0};
    log_setup(LOG_ERROR, false);
    proto_init();
    if (!options_parse(&s.options, 5, arguments, message) || server_start(&s, &error)) {
        fprintf(stderr, "cannot start: %s %s\n", message, error.text);
        return 1;
    }
    int passed = 0, failed = 0;
    scenario recorded = tensors("record", "POST /v1/loss?run=alloc&step=7", 4);
    recorded.records = true;
    scenario criterion = json_scenario("put a criterion", "PUT /v1/criteria/mine",
                                       "{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":[0.1,0.2]}}");
    scenario scenarios[] = {
        tensors("safetensors", "POST /v1/loss?include=images,levels", 4),
        tensors("gradients", "POST /v1/loss?include=gradients", 4),
        tensors("dense gradients, batch mining",
                "POST /v1/loss?include=dense_gradients&criterion=%7B%22mining%22:%7B%22scope%22:%22batch%22%7D%7D", 2),
        small_json(),
        large_json(),
        inference("an inference", 4, PROTO_IDENTITY),
        inference("a compressed inference", 2, PROTO_GZIP),
        small_inference(),
        json_scenario("the statistics", "GET /v2/models/stats", ""),
        json_scenario("the metrics", "GET /metrics", ""),
        json_scenario("load", "POST /v2/repository/models/ssd-multibox/load", "{}"),
        json_scenario("a set of a pattern", "POST /v1/match?priors=grid-40x50",
                      "{\"annotations\":[{\"boxes\":[[1,1,9,9]],\"labels\":[0]}]}"),
        json_scenario("look up a pattern", "GET /v1/priors/grid-40x60", ""),
        json_scenario("look up a criterion", "GET /v1/criteria/retinanet-focal", ""),
        criterion,
        json_scenario("put a generator", "PUT /v1/priors/mine", "{\"generator\":\"grid\",\"image_size\":[64,64]}"),
        put_tensor(),
        json_scenario("use a criterion", "POST /v1/match?criterion=mine&priors=mine",
                      "{\"classes\":2,\"annotations\":[{\"boxes\":[[1,1,9,9]],\"labels\":[0]}]}"),
        json_scenario("delete a criterion", "DELETE /v1/criteria/mine", ""),
        recorded,
        small_recorded(),
        json_scenario("runs", "GET /v1/runs?limit=5", ""),
        json_scenario("a run", "GET /v1/runs/alloc", ""),
        json_scenario("steps", "GET /v1/runs/alloc/steps", ""),
        json_scenario("points", "GET /v1/runs/alloc/steps?points=10", ""),
        json_scenario("steps as CSV", "GET /v1/runs/alloc/steps?format=csv", ""),
        json_scenario("the dashboard", "GET /web/app.js", ""),
        json_scenario("what there is", "GET /openapi.yaml", ""),
        json_scenario("ready", "GET /readyz", ""),
        json_scenario("versions", "GET /version", ""),
        make_scenario("priors as a tensor", "GET /v1/priors/ssd300", "x\r\nAccept: " PROTO_TYPE_SAFETENSORS, "", 0),
        json_scenario("a model's configuration", "GET /v2/models/ssd-multibox/config", ""),
        json_scenario("forget a run", "DELETE /v1/runs/alloc", ""),
    };
    const size_t n = sizeof scenarios / sizeof *scenarios;
    for (size_t i = 0; i < n; i++) {
        const char *what = scenarios[i].name;
        scenarios[i].before = !strcmp(what, "delete a criterion") ? &criterion
                              : !strcmp(what, "forget a run")     ? &recorded
                                                                  : NULL;
    }
    for (size_t i = 0; i < n; i++) {
        run_scenario(&s, &scenarios[i], &passed, &failed);
    }
    run_tokens(directory, &passed, &failed);
    for (size_t i = 0; i < n; i++) {
        if (scenarios[i].bytes != recorded.bytes) {
            free(scenarios[i].bytes);
        }
    }
    free(recorded.bytes);
    server_stop(&s);
    fail_starts(&s.options, &passed, &failed);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    failed += system(command) != 0;
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
