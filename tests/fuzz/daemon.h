/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole daemon in this process, as main() starts it, with a data directory in memory that goes with the process.
 */
#ifndef DAEMON_H
#define DAEMON_H

#include <ftw.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../server/http.h"
#include "fuzz.h"

static char daemon_directory[64];

static int daemon_remove(const char *path, const struct stat *status, int type, struct FTW *where) {
    (void)status, (void)type, (void)where;
    return remove(path);
}

static void daemon_clean(void) {
    nftw(daemon_directory, daemon_remove, 8, FTW_DEPTH | FTW_PHYS);
}

/* `option`: one more. */
static void start_daemon(server *s, const char *option) {
    static int n;
    static char options[8][96];
    char message[256];
    bx_error error = {0};
    signal(SIGPIPE, SIG_IGN);
    if (!daemon_directory[0]) {
        strcpy(daemon_directory, access("/dev/shm", W_OK) ? "/tmp/lossd-fuzz-XXXXXX" : "/dev/shm/lossd-fuzz-XXXXXX");
        CHECK(mkdtemp(daemon_directory), "no directory");
        atexit(daemon_clean);
    }
    snprintf(options[n], sizeof *options, "--data-dir=%s/%d", daemon_directory, n);
    snprintf(options[n + 1], sizeof *options, "%s", option);
    char *arguments[] = {(char[]){"lossd"},
                         (char[]){"--listen=127.0.0.1:0"},
                         (char[]){"--device=cpu"},
                         (char[]){"--max-body=4M"},
                         (char[]){"--memory-limit=96M"},
                         options[n],
                         options[n + 1],
                         NULL};
    n += 2;
    CHECK(options_parse(&s->options, 7, arguments, message), "%s", message);
    CHECK(server_start(s, &error) == BX_OK, "%s", error.text);
}

/* Nothing may stay behind, whatever was asked; now and then what is kept warm is given back, as main() does it. */
static inline void come_to_rest(server *s) {
    static unsigned inputs;
    const int64_t until = now_ns() + 10 * NS_PER_S;
    while (atomic_load(&s->tickets) || atomic_load(&s->at_clerk) || atomic_load(&s->at_reader) ||
           atomic_load(&s->http->main.exchanges) || http_connections(s)) {
        CHECK(now_ns() < until, "%ld tickets, %ld and %ld others, %ld exchanges, %ld connections stay",
              atomic_load(&s->tickets), atomic_load(&s->at_clerk), atomic_load(&s->at_reader),
              atomic_load(&s->http->main.exchanges), http_connections(s));
        usleep(20);
    }
    if (++inputs % 128 == 0) {
        server_tend(s);
    }
}

/* The same, and of the budget no more is taken than that. */
static inline void give_all_back(server *s, size_t memory) {
    const int64_t until = now_ns() + 10 * NS_PER_S;
    come_to_rest(s);
    while (memory_used(s->memory) != memory) {
        CHECK(now_ns() < until, "%zu bytes stay taken, not %zu", memory_used(s->memory), memory);
        usleep(20);
    }
}

#endif
