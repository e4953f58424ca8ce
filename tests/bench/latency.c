/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kept-alive connection that sends the same request again and again, a millisecond after each answer, and prints
 * one JSON line of latencies in microseconds, from before the first byte sent until the last byte received. Runs with
 * real-time priority where it may, so that what waits for a core is the service and not the clock.
 *
 * Usage: latency PORT FILE SECONDS        FILE: the whole request, headers and body
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { MOST_SAMPLES = 1 << 20, THINK_US = 1000 };

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void die(const char *what) {
    fprintf(stderr, "latency: %s\n", what);
    exit(1);
}

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        die("cannot read the file");
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    if (!data || fread(data, 1, *bytes, file) != *bytes) {
        die("cannot read the file");
    }
    fclose(file);
    return data;
}

static int connect_to(const char *port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        die("cannot connect");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

/* One request and its whole answer, which must be a 200 with a Content-Length. */
static void ask(int fd, const char *request, size_t bytes) {
    static char answer[1 << 16];
    for (size_t sent = 0; sent < bytes;) {
        ssize_t n = write(fd, request + sent, bytes - sent);
        if (n <= 0) {
            die("cannot send");
        }
        sent += (size_t)n;
    }
    size_t have = 0, whole = 0;
    while (!whole || have < whole) {
        ssize_t n = read(fd, answer + have, sizeof answer - 1 - have);
        if (n <= 0) {
            die("the answer was cut off");
        }
        have += (size_t)n;
        answer[have] = '\0';
        const char *end = whole ? NULL : strstr(answer, "\r\n\r\n");
        if (end) {
            const char *length = strcasestr(answer, "content-length:");
            if (strncmp(answer, "HTTP/1.1 200", 12) || !length) {
                die(answer);
            }
            whole = (size_t)(end + 4 - answer) + strtoul(length + 15, NULL, 10);
        }
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        die("usage: latency PORT FILE SECONDS");
    }
    size_t bytes;
    char *request = read_file(argv[2], &bytes);
    double *samples = malloc(MOST_SAMPLES * sizeof *samples);
    if (!samples) {
        die("no memory");
    }
    int realtime = !sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    int fd = connect_to(argv[1]);
    for (int i = 0; i < 20; i++) { /* to warm up */
        ask(fd, request, bytes);
    }
    size_t n = 0;
    for (double end = now_us() + atof(argv[3]) * 1e6; n < MOST_SAMPLES && now_us() < end; n++) {
        double t = now_us();
        ask(fd, request, bytes);
        samples[n] = now_us() - t;
        usleep(THINK_US);
    }
    if (!n) {
        die("no time");
    }
    qsort(samples, n, sizeof *samples, by_value);
    printf("{\"count\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"realtime\": %s}\n", n,
           samples[n / 2], samples[n * 99 / 100], samples[n - 1], realtime ? "true" : "false");
    close(fd);
    free(request);
    free(samples);
    return 0;
}
