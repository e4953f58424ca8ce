/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections and their deadlines.
 *
 * libmicrohttpd's timeout is for silent connections only: a client that sends a byte a second outlives it for ever. So
 * a reaper thread holds every phase of a connection to a total deadline: headers, body, computation, answer, the pause
 * between two requests. A socket is shut down only under the lock that also guards its removal, so never after it was
 * closed. Requests are failed outside the locks, with a reference.
 *
 * Locks: `all->lock` is of the list, and is taken first; a peer's own is of what is asked and said at every request, so
 * that requests of different connections never wait for each other, nor for the reaper's look at all of them. Who comes
 * or goes does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "server.h"

#define LOOK_NS  (50 * NS_PER_MS)
#define AGAIN_NS (60 * NS_PER_S) /* after acting on a peer */

#define LINGER_NS    (10 * NS_PER_S)
#define LINGER_LOOK  (5 * NS_PER_MS)
#define LINGER_BYTES ((int64_t)64 << 20)

enum { AT_ONCE = 64 };

struct peer {
    peers *all;
    peer *next, *previous;
    int fd;
    pthread_mutex_t lock; /* of what follows */
    phase phase;
    int64_t began_ns, deadline_ns;
    request *post;
    const reply *how; /* it is answered */
    peer_end end;
    int hung_up; /* looks in a row that found the sending side closed */
};

/* A socket whose connection is over but for what its client still sends; no deadline: none. */
typedef struct lingerer {
    int fd;
    int64_t deadline_ns, left;
} lingerer;

struct peers {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t reaper;
    peer *first;
    bool started, stopping;
    pthread_mutex_t linger_lock; /* never held for longer than one of them takes */
    lingerer lingering[MOST_LINGERING];
    atomic_size_t n_lingering;
    bool encrypted; /* nothing may be written behind TLS' back */
};

/* ---- connections come and go ------------------------------------------------------------------------------------- */

peer *peer_add(peers *all, int fd, int64_t seconds) {
    peer *p = calloc(1, sizeof *p);
    if (!p) {
        return NULL;
    }
    p->all = all;
    p->fd = fd;
    p->phase = PHASE_HEAD;
    p->began_ns = now_ns();
    p->deadline_ns = p->began_ns + seconds * NS_PER_S;
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_lock(&all->lock);
    p->next = all->first;
    if (p->next) {
        p->next->previous = p;
    }
    all->first = p;
    pthread_mutex_unlock(&all->lock);
    return p;
}

void peer_remove(peer *p) {
    if (!p) {
        return;
    }
    peers *all = p->all;
    pthread_mutex_lock(&all->lock);
    *(p->previous ? &p->previous->next : &all->first) = p->next;
    if (p->next) {
        p->next->previous = p->previous;
    }
    pthread_mutex_unlock(&all->lock);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void peer_extend(peer *p, int64_t seconds) {
    pthread_mutex_lock(&p->lock);
    p->deadline_ns = p->began_ns + seconds * NS_PER_S;
    pthread_mutex_unlock(&p->lock);
}

void peer_phase(peer *p, phase phase, int64_t seconds, request *post, const reply *how) {
    const int64_t now = now_ns();
    pthread_mutex_lock(&p->lock);
    p->phase = phase;
    p->hung_up = 0;
    p->began_ns = now;
    p->deadline_ns = now + seconds * NS_PER_S;
    p->post = post;
    p->how = how;
    pthread_mutex_unlock(&p->lock);
}

/* Whether its client reset the connection or ended it first, which libmicrohttpd does not tell from other errors; by
 * now it may have ended its own side too. */
static bool has_left(int fd) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) &&
           (info.tcpi_state == TCP_CLOSE || info.tcpi_state == TCP_CLOSE_WAIT || info.tcpi_state == TCP_LAST_ACK);
}

peer_end peer_ended(peer *p) {
    pthread_mutex_lock(&p->lock);
    const peer_end end = p->end;
    pthread_mutex_unlock(&p->lock);
    return end == PEER_HERE && has_left(p->fd) ? PEER_LEFT : end;
}

/* ---- the reaper -------------------------------------------------------------------------------------------------- */

/* An answer as it goes over the wire. */
typedef struct message {
    char text[4096];
    size_t bytes;
    bool failed; /* it has no room */
} message;

static void append(message *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(message *m, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const size_t room = sizeof m->text - m->bytes;
    const int n = vsnprintf(m->text + m->bytes, room, format, arguments);
    va_end(arguments);
    m->failed |= n < 0 || (size_t)n >= room;
    m->bytes += m->failed ? 0 : (size_t)n;
}

static void append_header(void *message, const char *name, const char *value) {
    append(message, "%s: %s\r\n", name, value);
}

/* libmicrohttpd cannot answer in mid-body, but nothing has been written on this socket for this request, so we may; not
 * where TLS is spoken. */
static void write_problem(const peer *p, answer *a) {
    message m = {.bytes = 0};
    if (p->all->encrypted || a->body.failed) {
        return;
    }
    if (p->how->protocol) {
        proto_infer_problem(&a->body);
        a->type = PROTO_TYPE_JSON;
    }
    reply last = *p->how;
    last.close = true;
    append(&m, "HTTP/1.1 %d %s\r\n", a->status, http_reason(a->status));
    reply_headers(a, &last, append_header, &m);
    append(&m, "Content-Length: %zu\r\n\r\n%.*s", a->body.bytes, last.head ? 0 : (int)a->body.bytes, a->body.data);
    if (!m.failed && !a->body.failed) {
        ssize_t ignored = send(p->fd, m.text, m.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)ignored;
    }
}

bool peer_refuse(peer *p, answer *problem) {
    pthread_mutex_lock(&p->lock);
    const bool here = p->end == PEER_HERE && p->phase == PHASE_BODY && !p->all->encrypted;
    if (here) {
        p->phase = PHASE_ANSWER; /* so that the reaper writes nothing */
        write_problem(p, problem);
    }
    pthread_mutex_unlock(&p->lock);
    return here;
}

/* libmicrohttpd misses a client that closes its sending side in mid-body, or together with a request whose answer has
 * been read since; both would be kept until their deadline. What has just been sent looks the same for as long as it
 * takes to be read: hence two looks. */
static bool has_hung_up(peer *p) {
    char byte;
    bool reading = p->phase == PHASE_HEAD || p->phase == PHASE_BODY || p->phase == PHASE_IDLE;
    bool closed = reading && recv(p->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
    p->hung_up = closed ? p->hung_up + 1 : 0;
    return p->hung_up >= 2;
}

void peer_forget_unsent(const peer *p) {
    const struct linger none = {.l_onoff = 1, .l_linger = 0};
    int unsent = 0;
    if (!ioctl(p->fd, SIOCOUTQ, &unsent) && unsent > 0) {
        setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
}

/* Deal with one overdue peer; a request whose computation is overdue is returned with a reference. */
static request *reap(peer *p) {
    p->deadline_ns += AGAIN_NS;
    if (p->phase == PHASE_COMPUTE && p->post) {
        request_ref(p->post);
        return p->post;
    }
    if (p->phase == PHASE_BODY && p->post && request_expire(p->post)) {
        answer late = answer_problem(408, "body_timeout", "The body did not arrive in time.", "", p->how->id);
        write_problem(p, &late);
        answer_free(&late);
    } else {
        peer_forget_unsent(p);
    }
    shutdown(p->fd, SHUT_RDWR);
    p->end = PEER_LATE;
    return NULL;
}

static size_t look_at_all(peers *all, request *late[AT_ONCE]) {
    size_t n = 0;
    int64_t now = now_ns();
    for (peer *p = all->first; p && n < AT_ONCE; p = p->next) {
        pthread_mutex_lock(&p->lock);
        if (has_hung_up(p)) {
            shutdown(p->fd, SHUT_RDWR);
            p->end = p->end == PEER_HERE ? PEER_LEFT : p->end; /* what we shut down looks the same */
        }
        request *r = p->deadline_ns <= now ? reap(p) : NULL;
        pthread_mutex_unlock(&p->lock);
        if (r) {
            late[n++] = r;
        }
    }
    return n;
}

static void fail_all(request **requests, size_t n, int status, const char *code, const char *detail) {
    for (size_t i = 0; i < n; i++) {
        request_fail(requests[i], status, code, detail);
        request_unref(requests[i]);
    }
}

/* ---- lingering --------------------------------------------------------------------------------------------------- */

/* libmicrohttpd ends the sending side, by TLS' own way where that is spoken. When all places are taken, whoever has had
 * one the longest has had enough: nobody keeps them from those who come later. */
void peer_linger(peer *p) {
    peers *all = p->all;
    const int fd = fcntl(p->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return;
    }
    pthread_mutex_lock(&all->linger_lock);
    lingerer *first = &all->lingering[0];
    for (size_t i = 1; i < MOST_LINGERING; i++) {
        first = all->lingering[i].deadline_ns < first->deadline_ns ? &all->lingering[i] : first;
    }
    if (first->deadline_ns) {
        close(first->fd);
    } else if (atomic_fetch_add(&all->n_lingering, 1) == 0) {
        pthread_cond_signal(&all->wake);
    }
    *first = (lingerer){fd, now_ns() + LINGER_NS, LINGER_BYTES};
    pthread_mutex_unlock(&all->linger_lock);
}

/* Whether more may come. What is there is dropped by the kernel, once a look. */
static bool drop_what_came(lingerer *l, int64_t now) {
    const ssize_t n = recv(l->fd, NULL, (size_t)l->left, MSG_TRUNC | MSG_DONTWAIT);
    l->left -= n > 0 ? n : 0;
    return (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) && l->left > 0 && now < l->deadline_ns;
}

static void look_at_lingering(peers *all, int64_t now) {
    for (size_t i = 0; i < MOST_LINGERING && atomic_load(&all->n_lingering) > 0; i++) {
        lingerer *l = &all->lingering[i];
        pthread_mutex_lock(&all->linger_lock);
        if (l->deadline_ns && !drop_what_came(l, now)) {
            close(l->fd);
            *l = (lingerer){0};
            atomic_fetch_sub(&all->n_lingering, 1);
        }
        pthread_mutex_unlock(&all->linger_lock);
    }
}

static void wait_until(peers *all, int64_t until) {
    const struct timespec t = {.tv_sec = until / NS_PER_S, .tv_nsec = until % NS_PER_S};
    if (!all->stopping) {
        pthread_cond_timedwait(&all->wake, &all->lock, &t);
    }
}

static void *reaper_main(void *argument) {
    pthread_setname_np(pthread_self(), "lossd-reaper");
    peers *all = argument;
    int64_t next = 0;
    pthread_mutex_lock(&all->lock);
    while (!all->stopping) {
        request *late[AT_ONCE];
        const int64_t now = now_ns();
        const bool due = now >= next;
        const size_t n = due ? look_at_all(all, late) : 0;
        next = due ? now + LOOK_NS : next;
        pthread_mutex_unlock(&all->lock);
        fail_all(late, n, 504, "timeout", "The computation took longer than --request-timeout.");
        look_at_lingering(all, now);
        pthread_mutex_lock(&all->lock);
        const int64_t soon = now + LINGER_LOOK;
        wait_until(all, atomic_load(&all->n_lingering) > 0 && soon < next ? soon : next);
    }
    pthread_mutex_unlock(&all->lock);
    return NULL;
}

void peers_fail(peers *all, int status, const char *code, const char *detail) {
    request *waiting[AT_ONCE];
    size_t n = 0;
    pthread_mutex_lock(&all->lock);
    for (peer *p = all->first; p && n < AT_ONCE; p = p->next) {
        pthread_mutex_lock(&p->lock);
        if (p->phase == PHASE_COMPUTE && p->post) {
            request_ref(p->post);
            waiting[n++] = p->post;
        }
        pthread_mutex_unlock(&p->lock);
    }
    pthread_mutex_unlock(&all->lock);
    fail_all(waiting, n, status, code, detail);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

bx_status peers_start(peers **out, bool encrypted, bx_error *error) {
    peers *all = calloc(1, sizeof *all);
    if (!all) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the list of connections");
    }
    all->encrypted = encrypted;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&all->lock, NULL);
    pthread_mutex_init(&all->linger_lock, NULL);
    pthread_cond_init(&all->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    all->started = !pthread_create(&all->reaper, NULL, reaper_main, all);
    if (!all->started) {
        peers_stop(all);
        return bx_fail(error, BX_BUSY, "threads", "cannot start the deadline thread");
    }
    *out = all;
    return BX_OK;
}

void peers_stop(peers *all) {
    if (!all) {
        return;
    }
    if (all->started) {
        pthread_mutex_lock(&all->lock);
        all->stopping = true;
        pthread_cond_signal(&all->wake);
        pthread_mutex_unlock(&all->lock);
        pthread_join(all->reaper, NULL);
    }
    look_at_lingering(all, INT64_MAX);
    pthread_cond_destroy(&all->wake);
    pthread_mutex_destroy(&all->lock);
    pthread_mutex_destroy(&all->linger_lock);
    free(all);
}
