/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests at a rate of their own, whether or not the service keeps up (an open loop: what is late counts from when it
 * was due), or as fast as its answers come (RATE 0: how much it can do). One thread, one epoll set, kept-alive
 * connections; wakes once a tick, so that requests leave and answers are seen up to that late, several at a time.
 * Prints one JSON line, with the share of a processor that it took itself.
 *
 * Usage: overload PORT FILE SECONDS RATE CONNECTIONS        FILE: the whole request, headers and body
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 4096, MOST_SAMPLES = 1 << 22, EVENTS = 256, ANSWER = 1 << 16 };
#define WAIT_US   2e6 /* for what is still under way at the end */
#define PROMPTLY  50e3
#define SECOND_US 1e6
#define TICK_US   2e3 /* it sends what is due and reads what has come, then sleeps */

typedef struct connection {
    int fd; /* -1: none */
    bool busy;
    double due_us;
    size_t sent, got, whole;
    int status;
    bool retry; /* it said when to come again */
    char answer[ANSWER];
} connection;

static char *request;
static size_t request_bytes;
static struct sockaddr_in service;
static int poller;
static connection *connections;
static int n_connections, idle[MOST_CONNECTIONS], n_idle;
static double *due; /* those that wait for a connection, a ring */
static size_t first_due, n_due, most_due;
static float *good, *busy; /* microseconds */
static size_t n_good, n_busy, n_promptly, n_unfit, n_other, n_broken, n_begun;
static bool open_loop, over;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void die(const char *what) {
    fprintf(stderr, "overload: %s\n", what);
    exit(1);
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        die("cannot read the file");
    }
    request_bytes = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_bytes);
    if (!request || fread(request, 1, request_bytes, file) != request_bytes) {
        die("cannot read the file");
    }
    fclose(file);
}

static void dial(connection *c) {
    int yes = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&service, sizeof service)) {
        die("cannot connect");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) {
        die("cannot watch a connection");
    }
}

static void hang_up(connection *c) {
    close(c->fd);
    c->fd = -1;
}

static void begin(connection *c, double due_us);

/* The connection is free: for who waits longest, or for the next. */
static void end(connection *c) {
    c->busy = false;
    if (c->fd < 0) {
        dial(c);
    }
    if (over) {
        return;
    }
    if (!open_loop) {
        begin(c, now_us());
    } else if (n_due > 0) {
        const double at = due[first_due];
        first_due = (first_due + 1) % MOST_SAMPLES;
        n_due--;
        begin(c, at);
    } else {
        idle[n_idle++] = (int)(c - connections);
    }
}

static void count(connection *c) {
    const double took = now_us() - c->due_us;
    if (c->status == 200 && n_good < MOST_SAMPLES) {
        good[n_good++] = (float)took;
    } else if (c->status == 503 && n_busy < MOST_SAMPLES) {
        busy[n_busy++] = (float)took;
        n_unfit += !c->retry;
        n_promptly += c->retry && took <= PROMPTLY;
    } else {
        n_other++;
    }
}

/* Whether all of the answer is there. */
static bool is_whole(connection *c) {
    const char *stop = c->whole ? NULL : strstr(c->answer, "\r\n\r\n");
    if (stop) {
        const char *length = strcasestr(c->answer, "content-length:"), *retry = strcasestr(c->answer, "retry-after:");
        if (!length || length > stop) {
            die("an answer without a length");
        }
        c->status = atoi(c->answer + 9);
        c->retry = retry && retry < stop;
        c->whole = (size_t)(stop + 4 - c->answer) + strtoul(length + 15, NULL, 10);
        if (c->whole >= ANSWER) {
            die("an answer that is too long");
        }
    }
    return c->whole && c->got >= c->whole;
}

static void receive(connection *c) {
    ssize_t n;
    while ((n = recv(c->fd, c->answer + c->got, ANSWER - 1 - c->got, 0)) > 0) {
        c->got += (size_t)n;
        c->answer[c->got] = '\0';
        if (c->busy && is_whole(c)) {
            const bool closes = strcasestr(c->answer, "\r\nconnection: close") || c->sent < request_bytes;
            count(c);
            if (closes) {
                hang_up(c);
            }
            end(c);
            return;
        }
    }
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        n_broken += c->busy;
        hang_up(c);
        if (c->busy) {
            end(c);
        } else {
            dial(c);
        }
    }
}

static void send_more(connection *c) {
    while (c->sent < request_bytes) {
        const ssize_t n = send(c->fd, request + c->sent, request_bytes - c->sent, MSG_NOSIGNAL);
        if (n <= 0) {
            return; /* room or an answer will come, or the end */
        }
        c->sent += (size_t)n;
    }
}

static void begin(connection *c, double due_us) {
    c->busy = true;
    c->due_us = due_us;
    c->sent = c->got = c->whole = 0;
    c->status = 0;
    n_begun++;
    send_more(c);
}

static void arrive(double at) {
    if (n_idle > 0) {
        begin(&connections[idle[--n_idle]], at);
    } else if (n_due < MOST_SAMPLES) {
        due[(first_due + n_due++) % MOST_SAMPLES] = at;
        most_due = n_due > most_due ? n_due : most_due;
    }
}

/* What has happened by the next tick, all at once: awake for each event, this program would take from the daemon the
 * processors that it measures. */
static void look(void) {
    struct epoll_event events[EVENTS];
    usleep((useconds_t)(TICK_US - fmod(now_us(), TICK_US)));
    const int n = epoll_wait(poller, events, EVENTS, 0);
    for (int i = 0; i < n; i++) {
        connection *c = events[i].data.ptr;
        if (c->fd >= 0 && c->busy) {
            send_more(c);
        }
        if (c->fd >= 0) {
            receive(c);
        }
    }
}

static bool any_busy(void) {
    for (int i = 0; i < n_connections; i++) {
        if (connections[i].busy) {
            return true;
        }
    }
    return false;
}

/* Arrivals are independent of each other (exponential gaps), and the same in each run. */
static double gap_us(double rate) {
    static unsigned long long state = 88172645463325252ULL;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return -log(((double)(state >> 11) + 0.5) / 9007199254740992.0) / rate * SECOND_US;
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double share(float *samples, size_t n, double part) {
    qsort(samples, n, sizeof *samples, by_value);
    return n > 0 ? samples[(size_t)((double)(n - 1) * part)] / 1e3 : 0;
}

static double processor_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        die("usage: overload PORT FILE SECONDS RATE CONNECTIONS");
    }
    const double seconds = atof(argv[3]), rate = atof(argv[4]);
    n_connections = atoi(argv[5]);
    open_loop = rate > 0;
    service = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    read_request(argv[2]);
    poller = epoll_create1(0);
    connections = calloc((size_t)n_connections, sizeof *connections);
    due = malloc(MOST_SAMPLES * sizeof *due);
    good = malloc(MOST_SAMPLES * sizeof *good);
    busy = malloc(MOST_SAMPLES * sizeof *busy);
    if (poller < 0 || !connections || !due || !good || !busy || n_connections < 1 || n_connections > MOST_CONNECTIONS) {
        die("no memory, or no such number of connections");
    }
    for (int i = 0; i < n_connections; i++) {
        dial(&connections[i]);
        idle[n_idle++] = i;
    }
    const double start = now_us(), stop = start + seconds * SECOND_US, own = processor_us();
    double next = start;
    size_t arrived = 0;
    for (int i = 0; !open_loop && i < n_connections; i++) {
        begin(&connections[i], now_us());
    }
    double latest = 0; /* how late this program itself was */
    for (double now = start; now < stop; now = now_us()) {
        for (; open_loop && next <= now; next += gap_us(rate)) {
            latest = now - next > latest ? now - next : latest;
            arrived++;
            arrive(next);
        }
        look();
    }
    const double took = now_us() - start, used = processor_us() - own;
    const size_t in_time = n_good;
    over = true;
    for (double until = now_us() + WAIT_US; any_busy() && now_us() < until;) {
        look();
    }
    size_t left = n_due;
    for (int i = 0; i < n_connections; i++) {
        left += connections[i].busy;
    }
    printf(
        "{\"seconds\": %.3f, \"offered\": %zu, \"good\": %zu, \"good_per_s\": %.2f, \"busy\": %zu, \"busy_promptly\": "
        "%zu, \"busy_without_retry_after\": %zu, \"other\": %zu, \"broken\": %zu, \"left\": %zu, \"most_waiting\": "
        "%zu, "
        "\"good_p50_ms\": %.2f, \"good_p99_ms\": %.2f, \"busy_p50_ms\": %.2f, \"busy_p95_ms\": %.2f, \"busy_p99_ms\": "
        "%.2f, \"late_ms\": %.2f, \"processor\": %.3f}\n",
        took / SECOND_US, open_loop ? arrived : n_begun, n_good, (double)in_time / took * SECOND_US, n_busy, n_promptly,
        n_unfit, n_other, n_broken, left, most_due, share(good, n_good, .5), share(good, n_good, .99),
        share(busy, n_busy, .5), share(busy, n_busy, .95), share(busy, n_busy, .99), latest / 1e3, used / took);
    return 0;
}
