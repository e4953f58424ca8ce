/* SPDX-License-Identifier: Apache-2.0 */
#include "accept.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "server.h"

#define PAUSE_MS    100  /* after a failure that only others can end, such as no descriptor left */
#define PATIENCE_MS 1000 /* between looks at those that are coming */

long acceptor_open(acceptor *a) {
    pthread_mutex_lock(&a->lock);
    const long open = a->coming + a->here;
    pthread_mutex_unlock(&a->lock);
    return open;
}

long acceptor_coming(acceptor *a) {
    pthread_mutex_lock(&a->lock);
    const long coming = a->coming;
    pthread_mutex_unlock(&a->lock);
    return coming;
}

static bool has_room(acceptor *a) {
    return acceptor_open(a) < a->most;
}

static void expect(acceptor *a) {
    pthread_mutex_lock(&a->lock);
    a->coming++;
    pthread_mutex_unlock(&a->lock);
}

/* One less is coming, and perhaps one more is here; not if it was given up before. */
static void arrive(acceptor *a, bool here) {
    pthread_mutex_lock(&a->lock);
    a->coming -= a->coming > 0;
    a->least = a->coming < a->least ? a->coming : a->least;
    a->here += here;
    pthread_mutex_unlock(&a->lock);
}

/* So many were coming all the time since the last look: as many have ended without a word. */
static void give_up_lost(acceptor *a) {
    pthread_mutex_lock(&a->lock);
    a->coming -= a->least;
    a->least = a->coming;
    pthread_mutex_unlock(&a->lock);
}

/* Those who wait, while there is room, but no more at a time than there can be: there may be no end to them. An errno,
 * or 0. */
static int accept_some(acceptor *a) {
    for (long n = 0; n < a->most && has_room(a); n++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        const int fd = accept4(a->fd, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == ECONNABORTED) {
            continue; /* left while waiting */
        }
        if (fd < 0) {
            return errno == EAGAIN ? 0 : errno;
        }
        expect(a);
        if (!a->to.take(a->to.cls, fd, (const struct sockaddr *)&address, size)) {
            arrive(a, false);
        }
    }
    return 0;
}

static void *acceptor_main(void *argument) {
    pthread_setname_np(pthread_self(), "lossd-accept");
    acceptor *a = argument;
    int64_t looked_ns = now_ns();
    int failed = 0;
    while (!atomic_load(&a->stopping)) {
        const bool room = has_room(a);
        struct pollfd on[] = {{.fd = a->wake, .events = POLLIN},
                              {.fd = room && !failed ? a->fd : -1, .events = POLLIN}};
        poll(on, 2, failed ? PAUSE_MS : acceptor_coming(a) > 0 ? PATIENCE_MS : -1);
        eventfd_t ignored;
        if (on[0].revents) {
            eventfd_read(a->wake, &ignored);
        }
        const int64_t now = now_ns();
        if (now - looked_ns >= PATIENCE_MS * NS_PER_MS) {
            give_up_lost(a);
            looked_ns = now;
        }
        const int why = accept_some(a);
        if (why && !failed) {
            LOG(LOG_WARN, "accept", {"text", "connections wait until there is room for them", 0},
                {"why", strerror(why), 0});
        }
        failed = why;
    }
    accept_some(a);
    return NULL;
}

bx_status acceptor_start(acceptor *a, int fd, long most, connection_taker to, bx_error *error) {
    a->fd = fd;
    a->most = most;
    a->to = to;
    a->coming = a->least = a->here = 0;
    pthread_mutex_init(&a->lock, NULL);
    a->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const int flags = fcntl(fd, F_GETFL);
    if (a->wake < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
        pthread_create(&a->thread, NULL, acceptor_main, a)) {
        if (a->wake >= 0) {
            close(a->wake);
        }
        pthread_mutex_destroy(&a->lock);
        return bx_fail(error, BX_BUSY, "threads", "cannot start the thread that accepts connections");
    }
    a->started = a->running = true;
    return BX_OK;
}

void acceptor_begin(acceptor *a) {
    arrive(a, true);
}

void acceptor_release(acceptor *a) {
    pthread_mutex_lock(&a->lock);
    const bool was_full = a->coming + a->here == a->most;
    a->here--;
    pthread_mutex_unlock(&a->lock);
    if (was_full) {
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
        pthread_mutex_destroy(&a->lock);
        a->started = false;
    }
}
