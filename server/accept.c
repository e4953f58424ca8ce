/* SPDX-License-Identifier: Apache-2.0 */
#include "accept.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "server.h"

#define PAUSE_MS   100  /* after a failure that only others can end, such as no descriptor left */
#define RECOUNT_MS 1000 /* nobody that was given away is still on the way after so long */

static bool has_room(acceptor *a) {
    return atomic_load(&a->open) < a->most;
}

/* Everybody who waits, while there is room; an errno, or 0 when that was all. */
static int accept_all(acceptor *a) {
    while (has_room(a)) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        const int fd = accept4(a->fd, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == ECONNABORTED) {
            continue; /* left while waiting */
        }
        if (fd < 0) {
            return errno == EAGAIN ? 0 : errno;
        }
        atomic_fetch_add(&a->open, 1);
        if (!a->to.take(a->to.cls, fd, (const struct sockaddr *)&address, size)) {
            atomic_fetch_sub(&a->open, 1);
        }
    }
    return 0;
}

/* A connection that was taken and then found no memory ends without a word. */
static void recount(acceptor *a) {
    long open = atomic_load(&a->open);
    const long counted = a->to.count(a->to.cls);
    if (counted < open) {
        atomic_compare_exchange_strong(&a->open, &open, counted);
    }
}

static void *acceptor_main(void *argument) {
    acceptor *a = argument;
    int failed = 0;
    while (!atomic_load(&a->stopping)) {
        const bool room = has_room(a);
        struct pollfd on[] = {{.fd = a->wake, .events = POLLIN},
                              {.fd = room && !failed ? a->fd : -1, .events = POLLIN}};
        const int n = poll(on, 2, failed ? PAUSE_MS : room ? -1 : RECOUNT_MS);
        eventfd_t ignored;
        if (on[0].revents) {
            eventfd_read(a->wake, &ignored);
        }
        if (n == 0 && !room) {
            recount(a);
        }
        const int why = accept_all(a);
        if (why && !failed) {
            LOG(LOG_WARN, "accept", {"text", "connections wait until there is room for them", 0},
                {"why", strerror(why), 0});
        }
        failed = why;
    }
    accept_all(a);
    return NULL;
}

bx_status acceptor_start(acceptor *a, int fd, long most, connection_taker to, bx_error *error) {
    a->fd = fd;
    a->most = most;
    a->to = to;
    a->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const int flags = fcntl(fd, F_GETFL);
    if (a->wake < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
        pthread_create(&a->thread, NULL, acceptor_main, a)) {
        if (a->wake >= 0) {
            close(a->wake);
        }
        return bx_fail(error, BX_BUSY, "threads", "cannot start the thread that accepts connections");
    }
    a->started = a->running = true;
    return BX_OK;
}

void acceptor_release(acceptor *a) {
    if (atomic_fetch_sub(&a->open, 1) == a->most) {
        eventfd_write(a->wake, 1);
    }
}

void acceptor_stop(acceptor *a) {
    if (!a->running) {
        return;
    }
    atomic_store(&a->stopping, true);
    eventfd_write(a->wake, 1);
    pthread_join(a->thread, NULL);
    close(a->fd);
    a->running = false;
}

void acceptor_fini(acceptor *a) {
    acceptor_stop(a);
    if (a->started) {
        close(a->wake);
        a->started = false;
    }
}
