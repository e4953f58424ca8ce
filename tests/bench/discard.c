/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The limit to compare with: the same libmicrohttpd with the same flags, timeout, read pool, turns and accepting
 * thread as lossd and the same headers in its answers, which throws every upload away and answers with a constant of so
 * many bytes. Prints its address, runs until it is told to stop.
 *
 * Usage: discard [BYTES]
 */
#include "http.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONNECTIONS = 512 };

static struct MHD_Daemon *library;
static acceptor accepting;
static char *constant;
static size_t answer_bytes = 20;
static const struct {
    const char *name, *value;
} headers[] = {{"Content-Type", "application/json"},
               {"X-Request-Id", "0123456789abcdef-0123456789"},
               {"Cache-Control", "no-store"},
               {"X-Content-Type-Options", "nosniff"},
               {"Cross-Origin-Resource-Policy", "same-origin"}};

static void *on_target(void *cls, const char *uri, struct MHD_Connection *connection) {
    (void)cls, (void)uri, (void)connection;
    return NULL;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code) {
    (void)cls, (void)connection, (void)code;
    *context = NULL;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *bytes, void **context) {
    static int seen;
    (void)cls, (void)url, (void)method, (void)version, (void)data;
    if (!*context) {
        *context = &seen;
        return MHD_YES;
    }
    if (*bytes) {
        *bytes = 0;
        return MHD_YES;
    }
    struct MHD_Response *response = MHD_create_response_from_buffer(answer_bytes, constant, MHD_RESPMEM_PERSISTENT);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        MHD_add_response_header(response, headers[i].name, headers[i].value);
    }
    enum MHD_Result result = MHD_queue_response(connection, 200, response);
    MHD_destroy_response(response);
    return result;
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code) {
    (void)cls, (void)connection, (void)context;
    (code == MHD_CONNECTION_NOTIFY_STARTED ? acceptor_begin : acceptor_release)(&accepting);
}

static bool take(void *cls, int fd, const struct sockaddr *address, socklen_t size) {
    (void)cls;
    return MHD_add_connection(library, fd, address, size) == MHD_YES;
}

int main(int argc, char **argv) {
    if (argc > 1) {
        answer_bytes = (size_t)strtoul(argv[1], NULL, 10);
    }
    constant = malloc(answer_bytes + 1);
    if (!constant) {
        return 1;
    }
    memset(constant, ' ', answer_bytes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    turn_set(TURN_NS);
    library = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_NO_LISTEN_SOCKET |
                                   MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG,
                               0, NULL, NULL, on_request, NULL, MHD_OPTION_THREAD_POOL_SIZE, 2u,
                               MHD_OPTION_CONNECTION_LIMIT, 2u * (CONNECTIONS + 1), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                               READ_POOL, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
                               MHD_OPTION_CONNECTION_TIMEOUT, 200u, MHD_OPTION_URI_LOG_CALLBACK, on_target, NULL,
                               MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION,
                               on_connection, NULL, MHD_OPTION_END);
    turn_set(0);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof address;
    bx_error error = {0};
    if (!library || fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, SOMAXCONN) ||
        getsockname(fd, (struct sockaddr *)&address, &size) ||
        acceptor_start(&accepting, fd, CONNECTIONS, (connection_taker){take, NULL}, &error) != BX_OK) {
        return 1;
    }
    printf("discard listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int received;
    sigwait(&signals, &received);
    acceptor_stop(&accepting);
    MHD_stop_daemon(library);
    acceptor_fini(&accepting);
    free(constant);
    return 0;
}
