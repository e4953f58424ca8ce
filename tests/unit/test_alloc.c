/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of the daemon fails once, and every one after it fails too: over whole requests through the real
 * HTTP server, its workers and its decoders.
 *
 * The linker redirects our own calls (not those inside libmicrohttpd) to the wrappers below. For k = 1, 2, ... the k-th
 * call while armed fails. Each time the client must see a whole answer (200, or 503 as a problem document) or a closed
 * connection, the next clean request must be answered 200 with the same loss, and no ticket or byte may stay taken.
 * Ends when a request finishes before its k-th allocation. The leak sanitizer looks at what remains.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

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
    char loss[64]; /* what a clean request answers, `"total":...` */
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
    const char *at = strstr(answer_text, "\"total\":");
    size_t n = at ? strcspn(at, ",}") : 0;
    memcpy(out, at ? at : "", n < 63 ? n : 63);
    out[n < 63 ? n : 63] = '\0';
}

static scenario make_scenario(const char *name, const char *target, const char *type, const char *body, size_t n) {
    scenario s = {.name = name, .bytes = malloc(n + 512)};
    int head =
        snprintf(s.bytes, 512,
                 "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                 target, type, n);
    memcpy(s.bytes + head, body, n);
    s.n = (size_t)head + n;
    return s;
}

/* Random-looking predictions of `images` images on 3000 inline priors as safetensors: large enough for the early path.
 */
static scenario tensors(const char *target, int images) {
    enum { P = 3000, C = 8 };
    const size_t conf = (size_t)images * P * C * 4, loc = (size_t)images * P * 16, priors = P * 16;
    size_t at = 16 * (size_t)images;
    char header[1024];
    int n = snprintf(header, sizeof header,
                     "{\"counts\":{\"dtype\":\"I64\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
                     "\"labels\":{\"dtype\":\"I64\",\"shape\":[%d],\"data_offsets\":[%d,%d]},",
                     images, images * 8, images, images * 8, images * 16);
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"boxes\":{\"dtype\":\"F32\",\"shape\":[%d,4],\"data_offsets\":[%zu,%zu]},", images, at,
                  at + 16 * (size_t)images);
    at += 16 * (size_t)images;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"priors\":{\"dtype\":\"F32\",\"shape\":[%d,4],\"data_offsets\":[%zu,%zu]},", P, at, at + priors);
    at += priors;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"conf\":{\"dtype\":\"F32\",\"shape\":[%d,%d,%d],\"data_offsets\":[%zu,%zu]},", images, P, C, at,
                  at + conf);
    at += conf;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"loc\":{\"dtype\":\"F32\",\"shape\":[%d,%d,4],\"data_offsets\":[%zu,%zu]}}", images, P, at,
                  at + loc);
    at += loc;
    char *body = calloc(1, 8 + (size_t)n + at), *to = body;
    uint64_t length = (uint64_t)n;
    memcpy(to, &length, 8);
    memcpy(to + 8, header, (size_t)n);
    to += 8 + n;
    for (int i = 0; i < images; i++, to += 8) {
        memcpy(to, &(int64_t){1}, 8);
    }
    for (int i = 0; i < images; i++, to += 8) {
        memcpy(to, &(int64_t){i % (C - 1)}, 8);
    }
    for (int i = 0; i < images; i++, to += 16) {
        memcpy(to, (float[]){.1f, .1f, .3f, .35f}, 16);
    }
    for (int i = 0; i < P; i++, to += 16) {
        memcpy(to, (float[]){(float)(i % 50) / 50, (float)(i / 50) / 60, .2f, .25f}, 16);
    }
    uint32_t seed = 1;
    for (size_t i = 0; i < (conf + loc) / 4; i++, to += 4) {
        seed = seed * 1664525u + 1013904223u;
        memcpy(to, &(float){(float)(seed >> 8) / 8388608.0f - 1}, 4);
    }
    scenario s = make_scenario("safetensors", target, PROTO_TYPE_SAFETENSORS, body, (size_t)(to - body));
    free(body);
    return s;
}

static scenario small_json(void) {
    static const char body[] =
        "{\"priors\":[[0.2,0.2,0.4,0.4],[0.7,0.7,0.4,0.4],[0.5,0.5,0.2,0.2]],"
        "\"predictions\":{\"loc\":[[[0,0,0,0],[0.1,0,0,0],[0,0,0.2,0]]],\"conf\":[[[1,0,0],[0,2,0],[0,0,1]]]},"
        "\"annotations\":[{\"boxes\":[[0,0,0.4,0.4]],\"labels\":[1]}],\"include\":\"images,classes,levels,objects,"
        "targets\"}";
    return make_scenario("json", "/v1/loss", PROTO_TYPE_JSON, body, sizeof body - 1);
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
    scenario s = make_scenario("json by a worker", "/v1/loss", PROTO_TYPE_JSON, body, (size_t)(to - body));
    free(body);
    return s;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static bool at_rest(server *s) {
    for (int i = 0; i < 2000; i++) {
        if (atomic_load(&s->tickets) == 0 && memory_used(s->memory) == 0) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* One injection; false (with a line on stderr) when an outcome is wrong. *done when nothing failed any more. */
static bool inject(server *s, const scenario *scenario, long k, bool ever, bool *done) {
    atomic_store(&for_ever, ever);
    atomic_store(&fired, false);
    atomic_store(&countdown, k);
    int status = exchange_once(s->port, scenario);
    atomic_store(&countdown, -1);
    *done = !atomic_load(&fired);
    bool fine = status == 0 || status == 200 || status == 503;
    char loss[64] = "";
    if (status == 200) {
        copy_loss(loss);
        fine = !strcmp(loss, scenario->loss);
    } else if (status == 503) {
        fine = strstr(answer_text, "application/problem+json") && strstr(answer_text, "\"code\":\"");
    }
    if (!fine) {
        fprintf(stderr, "%s, allocation %ld%s: status %d\n%.600s\n", scenario->name, k, ever ? " and all later" : "",
                status, answer_text);
        return false;
    }
    if (!at_rest(s)) {
        fprintf(stderr, "%s, allocation %ld: %ld tickets, %zu bytes stay taken\n", scenario->name, k,
                atomic_load(&s->tickets), memory_used(s->memory));
        return false;
    }
    status = exchange_once(s->port, scenario);
    copy_loss(loss);
    if (status != 200 || strcmp(loss, scenario->loss)) {
        fprintf(stderr, "%s, after allocation %ld: status %d, %s\n", scenario->name, k, status, loss);
        return false;
    }
    return true;
}

int main(void) {
    static server s;
    char message[256];
    char *arguments[] = {(char[]){"lossd"}, (char[]){"--listen=127.0.0.1:0"}, (char[]){"--workers=2"}, NULL};
    bx_error error = {0};
    log_setup(LOG_ERROR, false);
    proto_init();
    if (!options_parse(&s.options, 3, arguments, message) || server_start(&s, &error)) {
        fprintf(stderr, "cannot start: %s %s\n", message, error.text);
        return 1;
    }
    int passed = 0, failed = 0;
    scenario scenarios[] = {tensors("/v1/loss?include=images,levels", 4), small_json(), large_json()};
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        if (exchange_once(s.port, &scenarios[i]) != 200) {
            fprintf(stderr, "%s: the clean request fails\n%.800s\n", scenarios[i].name, answer_text);
            failed++;
            continue;
        }
        copy_loss(scenarios[i].loss);
        for (int ever = 0; ever < 2; ever++) {
            bool done = false;
            long k = 1;
            /* large trees: every allocation at first, then every 7th */
            for (; !done && failed < 5; k += k < 100 ? 1 : 7) {
                if (inject(&s, &scenarios[i], k, ever, &done)) {
                    passed++;
                } else {
                    failed++;
                }
                done |= k > 400; /* beyond, a tree of numbers fails as it did before */
            }
        }
        free(scenarios[i].bytes);
    }
    server_stop(&s);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
