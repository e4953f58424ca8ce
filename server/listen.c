/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses, listeners, and the start and the stop of libmicrohttpd.
 *
 * The ports are taken first, so that nothing else is touched when one is not free. Stopping while a connection is
 * suspended would abort the process: whatever waits is answered before. The listener for operations (--ops-listen) has
 * threads of its own, answers at once whatever it is asked, one request a connection so that none is kept, and stops
 * last.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "access.h"
#include "http.h"

#define REST_BYTES      ((size_t)128 << 10) /* besides, of a connection: its state, and an answer that is not counted */
#define TLS_BYTES       ((size_t)64 << 10)  /* and the state of TLS */
#define OPS_POOL        ((size_t)16 << 10)
#define OPS_CONNECTIONS 64
#define OPS_FINISH_NS   (NS_PER_S / 10)
#define SPARE_FILES     32 /* descriptors for the files of the store, and what libraries open for a moment */
#define LEAST           4  /* connections */
#define SETTLE_US       20000

static void on_message(void *cls, const char *format, va_list arguments) {
    (void)cls;
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\r\n")] = '\0';
    LOG(LOG_DEBUG, "libmicrohttpd", {"text", text, 0});
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static bool split_address(const char *listen, char host[256], const char **port) {
    const char *colon = strrchr(listen, ':');
    if (!colon || colon == listen || (size_t)(colon - listen) >= 256) {
        return false;
    }
    bool brackets = listen[0] == '[' && colon[-1] == ']';
    size_t n = (size_t)(colon - listen) - (brackets ? 2 : 0);
    memcpy(host, listen + brackets, n);
    host[n] = '\0';
    *port = colon + 1;
    size_t digits = strspn(*port, "0123456789");
    return digits > 0 && digits <= 5 && !(*port)[digits] && atoi(*port) <= 65535;
}

bool address_resolve(const char *listen, struct addrinfo **out) {
    char host[256];
    const char *port;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    return split_address(listen, host, &port) && !getaddrinfo(host, port, &hints, out);
}

bool address_is_loopback(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) {
        return (ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24) == 127;
    }
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

static bx_status open_listener(listener *l, const char *text, int *port, bx_error *error) {
    const char *flag = l->ops ? "--ops-listen" : "--listen", *variable = l->ops ? "LOSSD_OPS_LISTEN" : "LOSSD_LISTEN";
    struct addrinfo *address;
    if (!address_resolve(text, &address)) {
        return bx_fail(error, BX_INVALID, "listen",
                       "%s: \"%s\" is not HOST:PORT of this machine, such as 127.0.0.1:8080", flag, text);
    }
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    bool ok = fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) &&
              !bind(fd, address->ai_addr, address->ai_addrlen) && !listen(fd, SOMAXCONN);
    int cause = errno;
    freeaddrinfo(address);
    if (!ok) {
        if (fd >= 0) {
            close(fd);
        }
        return bx_fail(error, BX_BUSY, "listen", "cannot listen on %s: %s (%s or %s chooses another)", text,
                       strerror(cause), flag, variable);
    }
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char digits[16] = "0";
    if (!getsockname(fd, (struct sockaddr *)&bound, &size)) {
        getnameinfo((struct sockaddr *)&bound, size, NULL, 0, digits, sizeof digits, NI_NUMERICSERV);
    }
    *port = atoi(digits);
    l->fd = fd;
    return BX_OK;
}

static bool take(void *cls, int fd, const struct sockaddr *address, socklen_t size) {
    return MHD_add_connection(cls, fd, address, size) == MHD_YES;
}

/* The library's own timeout only backs up the reaper's, which answers where it can; and so does its limit, which is one
 * for each thread and counts a connection a little longer than we do. */
static bx_status start_daemon(listener *l, unsigned threads, unsigned connections, size_t pool, bx_error *error) {
    const options *o = &l->server->options;
    const bool encrypted = *o->tls_cert;
    struct MHD_OptionItem tls[] = {{MHD_OPTION_HTTPS_CERT_CALLBACK2, 0, (void *)tls_retrieve()},
                                   {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)TLS_PRIORITIES},
                                   {MHD_OPTION_END, 0, NULL}};
    turn_set(TURN_NS);
    l->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_NO_LISTEN_SOCKET |
                                     MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | (encrypted ? MHD_USE_TLS : 0),
                                 0, NULL, NULL, http_on_request, l, MHD_OPTION_EXTERNAL_LOGGER, on_message, NULL,
                                 MHD_OPTION_THREAD_POOL_SIZE, threads, MHD_OPTION_CONNECTION_LIMIT,
                                 (threads > 0 ? threads : 1) * (connections + 1), MHD_OPTION_CONNECTION_TIMEOUT,
                                 (unsigned)(o->idle_timeout + o->request_timeout + o->header_timeout),
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, pool, MHD_OPTION_STRICT_FOR_CLIENT, 1,
                                 MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_URI_LOG_CALLBACK, http_on_target, l,
                                 MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, l, MHD_OPTION_NOTIFY_CONNECTION,
                                 http_on_connection, l, MHD_OPTION_ARRAY, encrypted ? tls : &tls[2], MHD_OPTION_END);
    turn_set(0);
    if (!l->daemon) {
        return bx_fail(error, BX_BUSY, "threads", "libmicrohttpd does not get its threads");
    }
    const bx_status status =
        acceptor_start(&l->acceptor, l->fd, connections, (connection_taker){take, l->daemon}, error);
    l->fd = status == BX_OK ? -1 : l->fd;
    return status;
}

bx_status http_listen(server *server, bx_error *error) {
    const options *o = &server->options;
    http *h = lines_new(sizeof *h);
    if (!h) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the HTTP server");
    }
    server->http = h;
    h->main = (listener){.server = server, .fd = -1};
    h->ops = (listener){.server = server, .fd = -1, .ops = true};
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) {
        random = (uint64_t)now_ns();
    }
    snprintf(h->id_prefix, sizeof h->id_prefix, "%016llx", (unsigned long long)random);
    bx_status status = open_listener(&h->main, o->listen, &server->port, error);
    if (status == BX_OK && *o->ops_listen) {
        status = open_listener(&h->ops, o->ops_listen, &server->ops_port, error);
    }
    return status;
}

/* Connections never take the descriptors that the rest needs: there are as many as the limit of open files has room
 * for, once that has been raised as far as we may. */
static bx_status fit_connections(http *h, const options *o, bx_error *error) {
    struct rlimit files;
    const int next = dup(STDERR_FILENO); /* the lowest that is free */
    if (next >= 0) {
        close(next);
    }
    const rlim_t others = (rlim_t)(next >= 0 ? next : 0) + SPARE_FILES + MOST_LINGERING + 3 * (rlim_t)o->http_threads +
                          (h->ops.fd >= 0 ? OPS_CONNECTIONS : 0);
    const rlim_t wanted = others + (rlim_t)o->connection_limit;
    h->most = (unsigned)o->connection_limit;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= wanted) {
        return BX_OK;
    }
    files.rlim_cur = files.rlim_max < wanted ? files.rlim_max : wanted;
    if (setrlimit(RLIMIT_NOFILE, &files) || next < 0 || files.rlim_cur < others + LEAST) {
        return bx_fail(error, BX_BUSY, "threads",
                       "of %llu open files that are allowed too few are left for connections; raise the limit (ulimit "
                       "-n) to %llu",
                       (unsigned long long)files.rlim_cur, (unsigned long long)wanted);
    }
    if (files.rlim_cur < wanted) {
        h->most = (unsigned)(files.rlim_cur - others);
        LOG(LOG_WARN, "start", {"text", "the limit of open files has no room for --connection-limit; there may be", 0},
            {"connections", NULL, h->most});
    }
    return BX_OK;
}

bx_status http_start(server *server, bx_error *error) {
    const options *o = &server->options;
    http *h = server->http;
    bx_status status = fit_connections(h, o, error);
    status = status == BX_OK ? peers_start(&h->peers, *o->tls_cert, error) : status;
    if (status == BX_OK) {
        status = start_daemon(&h->main, (unsigned)o->http_threads, h->most, READ_POOL, error);
    }
    if (status == BX_OK && h->ops.fd >= 0) {
        status = start_daemon(&h->ops, 0, OPS_CONNECTIONS, OPS_POOL, error);
    }
    return status;
}

/* What was accepted last is read meanwhile, so that it counts. */
void http_close_listener(server *server) {
    listener *l = &server->http->main;
    acceptor_stop(&l->acceptor);
    for (int64_t until = now_ns() + NS_PER_S; acceptor_coming(&l->acceptor) > 0 && now_ns() < until;) {
        usleep(1000);
    }
    usleep(SETTLE_US);
}

size_t http_most_bytes(server *server) {
    const size_t rest = REST_BYTES + (*server->options.tls_cert ? TLS_BYTES : 0);
    return server->http->most * (READ_POOL + rest) + OPS_CONNECTIONS * (OPS_POOL + rest);
}

long http_connections(server *server) {
    return acceptor_open(&server->http->main.acceptor);
}

long http_connection_limit(server *server) {
    return server->http->most;
}

static void finish(listener *l, int64_t deadline_ns) {
    while (atomic_load(&l->exchanges) > 0 && now_ns() < deadline_ns) {
        usleep(2000);
    }
}

void http_finish(server *server, int64_t deadline_ns) {
    finish(&server->http->main, deadline_ns);
}

static void stop_listener(listener *l) {
    acceptor_stop(&l->acceptor);
    if (l->daemon) {
        MHD_stop_daemon(l->daemon);
    }
    if (l->fd >= 0) {
        close(l->fd);
    }
}

void http_stop(server *server) {
    http *h = server->http;
    if (!h) {
        return;
    }
    acceptor_stop(&h->main.acceptor);
    if (h->main.daemon) {
        atomic_store(&h->stopping, true);
        while (atomic_load(&h->suspended) > 0) {
            peers_fail(h->peers, 503, "draining", "This daemon is shutting down.");
            usleep(1000);
        }
        usleep(SETTLE_US); /* for these answers to leave */
    }
    stop_listener(&h->main);
    finish(&h->ops, now_ns() + OPS_FINISH_NS); /* it has said to the end how things are */
    stop_listener(&h->ops);
    acceptor_fini(&h->main.acceptor); /* how many are there could be asked until now */
    acceptor_fini(&h->ops.acceptor);
    peers_stop(h->peers);
    free(h);
    server->http = NULL;
}
