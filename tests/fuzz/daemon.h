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

/* With more options, of which `other` may be NULL. */
static void start_daemon(server *s, const char *option, const char *other) {
    static int n;
    static char options[2][3][96];
    char message[256];
    bx_error error = {0};
    signal(SIGPIPE, SIG_IGN);
    if (!daemon_directory[0]) {
        strcpy(daemon_directory, access("/dev/shm", W_OK) ? "/tmp/lossd-fuzz-XXXXXX" : "/dev/shm/lossd-fuzz-XXXXXX");
        CHECK(mkdtemp(daemon_directory), "no directory");
        atexit(daemon_clean);
    }
    char(*more)[96] = options[n];
    snprintf(more[0], sizeof *more, "--data-dir=%s/%d", daemon_directory, n++);
    snprintf(more[1], sizeof *more, "%s", option);
    snprintf(more[2], sizeof *more, "%s", other ? other : "");
    char *arguments[] = {(char[]){"lossd"},
                         (char[]){"--listen=127.0.0.1:0"},
                         (char[]){"--device=cpu"},
                         (char[]){"--max-body=4M"},
                         (char[]){"--memory-limit=96M"},
                         more[0],
                         more[1],
                         more[2],
                         NULL};
    CHECK(options_parse(&s->options, other ? 8 : 7, arguments, message), "%s", message);
    CHECK(server_start(s, &error) == BX_OK, "%s", error.text);
}

/* Looks at what is waited for; counted, since a clock goes on while a busy machine does not. */
enum { MOST_LOOKS = 200000 };

/* Nothing may stay behind, whatever was asked; now and then what is kept warm is given back, as main() does it. */
static inline void come_to_rest(server *s) {
    static unsigned inputs;
    for (int looks = 0; atomic_load(&s->tickets) || atomic_load(&s->at_clerk) || atomic_load(&s->at_reader) ||
                        atomic_load(&s->http->main.exchanges) || http_connections(s);
         looks++) {
        CHECK(looks < MOST_LOOKS, "%ld tickets, %ld and %ld others, %ld exchanges, %ld connections stay",
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
    come_to_rest(s);
    for (int looks = 0; memory_used(s->memory) != memory; looks++) {
        CHECK(looks < MOST_LOOKS, "%zu bytes stay taken, not %zu", memory_used(s->memory), memory);
        usleep(20);
    }
}

#endif
