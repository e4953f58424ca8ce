/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line per event on stderr, as logfmt or JSON. A line is built on the stack and written with one write(2), so lines
 * of different threads do not mix; control bytes and quotes are escaped, so one event is one line whatever it names.
 * Nobody waits for whoever reads the log: a line for which a pipe has no room is dropped and counted.
 */
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server.h"

static log_level threshold = LOG_INFO;
static bool as_json = false;
static const char *const names[] = {"error", "warn", "info", "debug"};
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;
static atomic_long dropped;

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

void log_setup(log_level level, bool json) {
    threshold = level;
    as_json = json;
}

bool log_level_from_name(const char *name, log_level *level) {
    for (int i = 0; i < 4; i++) {
        if (!strcmp(name, names[i])) {
            *level = (log_level)i;
            return true;
        }
    }
    return false;
}

typedef struct line {
    char text[2048];
    size_t n;
} line;

static void add(line *to, const char *text) {
    size_t n = strlen(text), room = sizeof to->text - 2 - to->n;
    n = n < room ? n : room;
    memcpy(to->text + to->n, text, n);
    to->n += n;
}

static void add_quoted(line *to, const char *text) {
    add(to, "\"");
    for (size_t i = 0; i < 256 && text[i]; i++) {
        unsigned char c = (unsigned char)text[i];
        char piece[8] = {(char)c};
        if (c == '"' || c == '\\') {
            snprintf(piece, sizeof piece, "\\%c", c);
        } else if (c < 0x20 || c >= 0x7f) {
            snprintf(piece, sizeof piece, "\\u%04x", c);
        }
        add(to, piece);
    }
    add(to, "\"");
}

static void add_field(line *to, const char *key, const char *text, double number) {
    if (as_json) {
        add(to, to->n > 1 ? ",\"" : "\"");
        add(to, key);
        add(to, "\":");
    } else {
        add(to, to->n > 0 ? " " : "");
        add(to, key);
        add(to, "=");
    }
    if (!text) {
        char digits[32];
        snprintf(digits, sizeof digits, number == floor(number) && fabs(number) < 1e15 ? "%.0f" : "%.3f", number);
        add(to, digits);
    } else if (!as_json && *text &&
               strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+") == strlen(text) &&
               strlen(text) <= 256) {
        add(to, text);
    } else {
        add_quoted(to, text);
    }
}

bool log_wants(log_level level) {
    return level <= threshold;
}

/* A pipe that poll says can be written takes a line (PIPE_BUF) without waiting, as long as we are the only ones. */
static void write_line(const line *out) {
    struct pollfd log = {.fd = STDERR_FILENO, .events = POLLOUT};
    pthread_mutex_lock(&writing);
    const bool room = poll(&log, 1, 0) == 1 && (log.revents & POLLOUT);
    if (!room || write(STDERR_FILENO, out->text, out->n) < 0) { /* which must not stop a request */
        atomic_fetch_add(&dropped, 1);
    }
    pthread_mutex_unlock(&writing);
}

long log_dropped(void) {
    return atomic_load(&dropped);
}

void log_line(log_level level, const char *event, const log_field *fields, size_t n_fields) {
    line out = {.n = 0};
    struct timespec t;
    struct tm utc;
    char stamp[64];
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &utc);
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", t.tv_nsec / 1000000);
    add(&out, as_json ? "{" : "");
    add_field(&out, "time", stamp, 0);
    add_field(&out, "level", names[level], 0);
    add_field(&out, "event", event, 0);
    for (size_t i = 0; i < n_fields; i++) {
        if (fields[i].key) {
            add_field(&out, fields[i].key, fields[i].text, fields[i].number);
        }
    }
    add(&out, as_json ? "}" : "");
    out.text[out.n++] = '\n';
    write_line(&out);
}
