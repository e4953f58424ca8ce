/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of one connection to a daemon in this process. Whatever they are, what comes back are whole answers with
 * statuses that we know, each with the body that it announces; the daemon goes on answering others; and nothing stays
 * behind. The first byte says where the bytes are cut.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "daemon.h"

enum { MOST_CUTS = 6 }; /* of what is sent */

static server daemon_here;
static char answers[8 << 20];
static size_t taken; /* of the budget, at rest */

/* ---- shared memory ----------------------------------------------------------------------------------------------- */

#define OBJECT "/lossd-fuzz" /* as inputs name it */
enum { OBJECT_FLOATS = 1024 };

static float *shared;

static void remove_object(void) {
    shm_unlink(OBJECT);
}

static void make_object(void) {
    const size_t bytes = OBJECT_FLOATS * sizeof *shared;
    const int fd = shm_open(OBJECT, O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0 && !ftruncate(fd, (off_t)bytes), "no " OBJECT);
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(shared != MAP_FAILED, "no " OBJECT);
    close(fd);
    atexit(remove_object);
}

static void fill_object(void) {
    for (int i = 0; i < OBJECT_FLOATS; i++) {
        shared[i] = 0.5f;
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    log_setup(LOG_ERROR, false);
    proto_init();
    start_daemon(&daemon_here, "--workers=2", "--shared-memory");
    make_object();
    taken = memory_used(daemon_here.memory);
    return 0;
}

/* ---- a connection ------------------------------------------------------------------------------------------------ */

/* libFuzzer's clock is a signal: what it interrupts is begun again. */
#define AGAIN(call)                                                                                                    \
    ({                                                                                                                 \
        ssize_t result;                                                                                                \
        while ((result = (call)) < 0 && errno == EINTR) {                                                              \
        }                                                                                                              \
        result;                                                                                                        \
    })

/* A connection cannot be begun again: the signal has to wait. */
static int dial(void) {
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)daemon_here.port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    sigset_t clock, before;
    sigemptyset(&clock);
    sigaddset(&clock, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &clock, &before);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && !connect(fd, (const struct sockaddr *)&to, sizeof to), "no connection: %s", strerror(errno));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return fd;
}

static void send_all(int fd, const char *data, size_t n) {
    for (ssize_t sent; n > 0; data += sent, n -= (size_t)sent) {
        sent = AGAIN(send(fd, data, n, MSG_NOSIGNAL));
        if (sent <= 0) {
            return;
        }
    }
}

/* Whether the daemon may still have something to say: milliseconds that it is given for it. libmicrohttpd may keep a
 * connection whose other side has ended, and the body that was announced may never come. */
static int patience(int least) {
    const server *s = &daemon_here;
    const bool works = atomic_load(&s->tickets) || atomic_load(&s->at_clerk) || atomic_load(&s->at_reader);
    return works && least < 1000 ? 1000 : least;
}

/* Everything that comes until the end, or until nothing has come for so many milliseconds. *whole: it was the daemon
 * that ended it, in order. */
static size_t receive_all(int fd, int least, char *to, size_t room, bool *whole) {
    size_t n = 0;
    *whole = false;
    for (int idle = 0; n < room && idle < patience(least); idle++) {
        if (AGAIN(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 1)) < 1) {
            continue;
        }
        const ssize_t got = AGAIN(recv(fd, to + n, room - n, 0));
        if (got <= 0) {
            *whole = got == 0;
            return n;
        }
        n += (size_t)got;
        idle = 0;
    }
    return n;
}

/* The daemon answers others; until it has, it had the time to read what was sent before. Who is slow because the
 * machine is may have to ask again. */
static void check_readiness(void) {
    static const char ask[] = "GET /readyz HTTP/1.0\r\n\r\n";
    char answer[1024];
    bool whole = false;
    size_t n = 0;
    for (int tries = 0; !whole && tries < 3; tries++) {
        const int fd = dial();
        send_all(fd, ask, sizeof ask - 1);
        n = receive_all(fd, 10000, answer, sizeof answer, &whole);
        close(fd);
    }
    CHECK(whole && n > 12 && !memcmp(answer, "HTTP/1.1 200", 12), "%.*s", (int)n, answer);
}

static size_t exchange(const char *data, size_t n, cuts c, bool *whole) {
    const int fd = dial();
    for (size_t at = 0, piece; at < n; at += piece) {
        piece = cut(&c, n, at);
        if (at > 0) {
            usleep(200); /* so that what was sent is read by itself, mostly */
        }
        send_all(fd, data + at, piece);
    }
    shutdown(fd, SHUT_WR);
    check_readiness();
    const size_t got = receive_all(fd, 3, answers, sizeof answers, whole);
    if (!*whole) { /* it waits for more, which the daemon is to notice at once */
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    }
    close(fd);
    return got;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* The value of a header, NULL: it is not there. `head` ends in an empty line. */
static const char *header(const char *head, const char *end, const char *name) {
    const size_t n = strlen(name);
    for (const char *line = head; line < end; line = strstr(line, "\r\n") + 2) {
        if (!strncasecmp(line, name, n) && line[n] == ':') {
            return line + n + 1 + strspn(line + n + 1, " ");
        }
    }
    return NULL;
}

static bool is_known(int status) {
    static const int known[] = {200, 201, 204, 304, 400, 403, 404, 405, 406, 408, 409, 411,
                                412, 413, 414, 415, 417, 422, 431, 501, 503, 505, 507};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i] == status) {
            return true;
        }
    }
    return false;
}

/* Read by our own reader, since jansson works for the daemon meanwhile; it wants an object. */
static proto_node *parse(const char *text, size_t n) {
    char *object = malloc(n + 16);
    proto_node *root;
    bx_error error = {0};
    CHECK(object, "no memory");
    const int begin = sprintf(object, "{\"a\":");
    memcpy(object + begin, text, n);
    object[(size_t)begin + n] = '}';
    CHECK(proto_json_parse(&root, object, (size_t)begin + n + 1, (size_t)64 << 20, &error) == BX_OK, "%s in %.*s",
          error.text, (int)n, text);
    free(object);
    return root;
}

static void check_json_here(const char *text, size_t n) {
    proto_json_free(parse(text, n));
}

static void check_problem(const char *text, size_t n, int status) {
    static const char *const needed[] = {"type", "title", "detail", "code", "request_id"};
    proto_node *root = parse(text, n);
    const proto_node *problem = proto_json_get(root, "a"), *number = proto_json_get(problem, "status");
    CHECK(number && proto_json_int(number) == status, "status %d: %.*s", status, (int)n, text);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        const proto_node *value = proto_json_get(problem, needed[i]);
        CHECK(value && proto_json_kind(value) == PROTO_STRING, "no %s: %.*s", needed[i], (int)n, text);
    }
    CHECK(strcmp(proto_json_string(proto_json_get(problem, "code")), "internal") != 0, "%.*s", (int)n, text);
    proto_json_free(root);
}

/* Prometheus' text format: a name, labels, a number. */
static void check_page(const char *text, size_t n) {
    CHECK(n > 0 && text[n - 1] == '\n', "no end");
    for (const char *line = text, *end = text + n; line < end;
         line = (const char *)memchr(line, '\n', (size_t)(end - line)) + 1) {
        double value;
        if (*line != '#') {
            const size_t name = strspn(line, "abcdefghijklmnopqrstuvwxyz_0123456789");
            CHECK(name > 0 && (line[name] == '{' || line[name] == ' '), "%.80s", line);
            const char *space = line[name] == '{' ? strstr(line, "} ") : line + name - 1;
            CHECK(space && sscanf(space + 1, " %lf", &value) == 1, "%.80s", line);
        }
    }
}

static void check_body(const char *type, int status, const char *body, size_t n, const char *json_end) {
    proto_container c;
    bx_error error = {0};
    if (!strncmp(type, PROTO_TYPE_PROBLEM, strlen(PROTO_TYPE_PROBLEM))) {
        check_problem(body, n, status);
    } else if (json_end) {
        CHECK((size_t)atol(json_end) <= n, "JSON of %.20s bytes in %zu", json_end, n);
        check_json_here(body, (size_t)atol(json_end));
    } else if (!strncmp(type, PROTO_TYPE_JSON, strlen(PROTO_TYPE_JSON))) {
        check_json_here(body, n);
    } else if (!strncmp(type, PROTO_TYPE_SAFETENSORS, strlen(PROTO_TYPE_SAFETENSORS))) {
        CHECK(proto_container_read(&c, body, n, &error) == BX_OK, "%s", error.text);
        proto_container_fini(&c);
    } else if (!strncmp(type, "text/plain", 10)) {
        check_page(body, n);
    }
}

/* What is coded, decoded; the caller frees it. */
static char *decode(const char *coding, const char *body, size_t *n) {
    proto_inflater *inflater = proto_inflater_new(*coding == 'g' ? PROTO_GZIP : PROTO_DEFLATE);
    char *out = malloc(sizeof answers);
    size_t got = 0;
    bx_error error = {0};
    CHECK(inflater && out, "no memory");
    proto_inflater_give(inflater, body, *n);
    CHECK(proto_inflater_take(inflater, out, sizeof answers, &got, &error) == BX_OK &&
              proto_inflater_end(inflater, &error) == BX_OK,
          "%s", error.text);
    proto_inflater_free(inflater);
    *n = got;
    return out;
}

/* The answer at the beginning of a text, of which there is no more; returns where the next one begins, NULL: it is cut
 * off. `headless`: HEAD was asked perhaps. */
static const char *check_answer(const char *text, const char *end, bool headless) {
    int status = 0, used = 0;
    const char *head_end = memmem(text, (size_t)(end - text), "\r\n\r\n", 4);
    if (!head_end) {
        return NULL;
    }
    CHECK(sscanf(text, "HTTP/1.1 %3d %n", &status, &used) == 1 && used == 13, "%.80s", text);
    const char *head = strstr(text, "\r\n") + 2, *body = head_end + 4;
    if (status == 100) {
        return body;
    }
    const char *length = header(head, body, "Content-Length"), *type = header(head, body, "Content-Type");
    const char *coding = header(head, body, "Content-Encoding");
    /* the library's own answers; of some it sends the head twice */
    const bool own = !header(head, body, "X-Request-Id");
    const char *second =
        own && !strncmp(body, "HTTP/1.1 ", 9) ? memmem(body, (size_t)(end - body), "\r\n\r\n", 4) : NULL;
    body = second ? second + 4 : body;
    CHECK(!own || (status >= 400 && !strncmp(body, "<html>", end - body > 6 ? 6 : (size_t)(end - body))), "%.400s",
          text);
    CHECK(is_known(status) || (own && status == 500), "status %d: %.400s", status, text);
    CHECK(status != 503 || header(head, body, "Retry-After") || own, "503 without Retry-After: %.400s", text);
    CHECK(status != 405 || header(head, body, "Allow"), "405 without Allow: %.400s", text);
    CHECK(!header(head, body, "Transfer-Encoding"), "chunked: %.400s", text);
    if (status == 304 || status == 204) {
        return body;
    }
    CHECK(length, "no length: %.400s", text);
    size_t n = (size_t)strtoul(length, NULL, 10);
    if (headless && (body == end || !strncmp(body, "HTTP/1.1 ", 9))) {
        return body;
    }
    if (n > (size_t)(end - body)) {
        return NULL;
    }
    char *decoded = coding ? decode(coding, body, &n) : NULL;
    if (type) {
        check_body(type, status, decoded ? decoded : body, n, header(head, body, "Inference-Header-Content-Length"));
    }
    free(decoded);
    const char *next = body + (decoded ? strtoul(length, NULL, 10) : n), *connection = header(head, body, "Connection");
    CHECK(!connection || strncasecmp(connection, "close", 5) || next == end, "behind the last: %.400s", text);
    return next;
}

/* ---- afterwards -------------------------------------------------------------------------------------------------- */

/* What was registered, so that the next input finds the daemon as this one did. */
static void delete_all(definition kind) {
    proto_buffer text = {0};
    proto_writer w = {.out = &text};
    bx_error error = {0};
    proto_write_open(&w, NULL, '[');
    registry_list(daemon_here.registry, kind, &w);
    proto_write_close(&w, ']');
    CHECK(!text.failed, "no memory");
    proto_node *root = parse(text.data, text.bytes);
    const proto_node *list = proto_json_get(root, "a");
    for (size_t i = 0; i < proto_json_size(list); i++) {
        const char *name = proto_json_string(proto_json_get(proto_json_at(list, i), "name"));
        if (registry_check_name(kind, name, &error) == BX_OK) {
            CHECK(registry_delete(daemon_here.registry, kind, name, &error) == BX_OK, "%s", error.text);
        }
    }
    proto_json_free(root);
    proto_buffer_free(&text);
}

/* Of the budget nothing is taken that cannot be reclaimed. */
static void check_memory(void) {
    const size_t all = memory_limit(daemon_here.memory) - taken;
    lease l;
    for (int looks = 0; !lease_begin(&l, daemon_here.memory, all); looks++) {
        CHECK(looks < MOST_LOOKS, "%zu bytes stay taken, not %zu", memory_used(daemon_here.memory), taken);
        usleep(20);
    }
    lease_end(&l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) {
        return 0;
    }
    bool whole;
    fill_object();
    const size_t n = exchange((const char *)data + 1, size - 1, (cuts){data[0], data[0] ? MOST_CUTS : 0}, &whole);
    const bool headless = memmem(data, size, "HEAD", 4);
    const char *end = answers + n;
    answers[n < sizeof answers ? n : sizeof answers - 1] = '\0';
    for (const char *at = answers; at && at < end;) {
        const char *next = check_answer(at, end, headless);
        CHECK(next || !whole, "cut off: %.400s", at);
        at = next;
    }
    come_to_rest(&daemon_here);
    if (memmem(data, size, "PUT", 3)) {
        delete_all(DEFINITION_PRIORS);
        delete_all(DEFINITION_CRITERION);
    }
    shm_unregister(daemon_here.shm, NULL);
    check_memory();
    return 0;
}
