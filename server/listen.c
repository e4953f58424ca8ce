/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses, listeners, and the start and the stop of libmicrohttpd.
 *
 * The port is taken first, so that nothing else is touched when it is not free. Stopping while a connection is
 * suspended would abort the process: whatever waits is answered before.
 */
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http.h"

#define READ_POOL ((size_t)512 << 10) /* half of it is read at a time; with 256 KiB uploads are 7 % slower */

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

static bx_status open_listener(server *server, bx_error *error) {
    const char *text = server->options.listen;
    struct addrinfo *address;
    if (!address_resolve(text, &address)) {
        return bx_fail(error, BX_INVALID, "listen",
                       "--listen: \"%s\" is not HOST:PORT of this machine, such as 127.0.0.1:8080", text);
    }
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    bool ok = fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) &&
              !bind(fd, address->ai_addr, address->ai_addrlen) && !listen(fd, 1024);
    int cause = errno;
    freeaddrinfo(address);
    if (!ok) {
        if (fd >= 0) {
            close(fd);
        }
        return bx_fail(error, BX_BUSY, "listen", "cannot listen on %s: %s (--listen or LOSSD_LISTEN chooses another)",
                       text, strerror(cause));
    }
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char port[16] = "0";
    if (!getsockname(fd, (struct sockaddr *)&bound, &size)) {
        getnameinfo((struct sockaddr *)&bound, size, NULL, 0, port, sizeof port, NI_NUMERICSERV);
    }
    server->port = atoi(port);
    server->http->listener = fd;
    return BX_OK;
}

/* The library's own timeout only backs up the reaper's, which answers where it can. */
static bx_status start_daemon(server *server, bx_error *error) {
    const options *o = &server->options;
    server->http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, http_on_request,
        server, MHD_OPTION_EXTERNAL_LOGGER, on_message, NULL, MHD_OPTION_LISTEN_SOCKET, server->http->listener,
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->http_threads, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)o->connection_limit, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)(o->idle_timeout + o->request_timeout + o->header_timeout), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        READ_POOL, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_URI_LOG_CALLBACK,
        http_on_target, server, MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, server, MHD_OPTION_NOTIFY_CONNECTION,
        http_on_connection, server, MHD_OPTION_END);
    return server->http->daemon ? BX_OK : bx_fail(error, BX_INTERNAL, "http", "libmicrohttpd does not start");
}

bx_status http_listen(server *server, bx_error *error) {
    http *h = calloc(1, sizeof *h);
    if (!h) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the HTTP server");
    }
    server->http = h;
    h->listener = -1;
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) {
        random = (uint64_t)now_ns();
    }
    snprintf(h->id_prefix, sizeof h->id_prefix, "%016llx", (unsigned long long)random);
    return open_listener(server, error);
}

bx_status http_start(server *server, bx_error *error) {
    bx_status status = peers_start(&server->http->peers, error);
    return status == BX_OK ? start_daemon(server, error) : status;
}

void http_close_listener(server *server) {
    http *h = server->http;
    int fd = MHD_quiesce_daemon(h->daemon);
    if (fd >= 0) {
        shutdown(fd, SHUT_RDWR); /* new connections are refused at once instead of hanging in the backlog */
    }
}

long http_connections(server *server) {
    return atomic_load(&server->http->connections);
}

void http_finish(server *server, int64_t deadline_ns) {
    http *h = server->http;
    while (atomic_load(&h->exchanges) > 0 && now_ns() < deadline_ns) {
        usleep(2000);
    }
}

void http_stop(server *server) {
    http *h = server->http;
    if (!h) {
        return;
    }
    if (h->daemon) {
        atomic_store(&h->stopping, true);
        while (atomic_load(&h->suspended) > 0) {
            peers_fail(h->peers, 503, "draining", "This daemon is shutting down.");
            usleep(1000);
        }
        usleep(20000); /* for these answers to leave */
        MHD_stop_daemon(h->daemon);
    }
    peers_stop(h->peers);
    if (h->listener >= 0) {
        close(h->listener);
    }
    free(h);
    server->http = NULL;
}
