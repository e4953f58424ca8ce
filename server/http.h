/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What http.c, reply.c and listen.c share; nobody else knows libmicrohttpd.
 */
#ifndef HTTP_H
#define HTTP_H

#include <microhttpd.h>

#include "accept.h"
#include "server.h"

/* What libmicrohttpd holds for a connection. Half of it is read at a time, and all of it is cleared after every
 * request: with 512 KiB that is most of what a small request costs; with 64 KiB one image of 0.9 MB takes 4 % longer.
 */
#define READ_POOL ((size_t)128 << 10)
/* Threads that answer small requests too need not wait until what computes, or another client, has ended its turn. */
#define TURN_NS   100000
#define ID_PREFIX 16 /* characters of the ids we give */

/* An address with threads of its own. */
typedef struct listener {
    server *server;
    bool ops; /* for whoever operates the daemon: it has the routes of ROUTE_OPS only */
    int fd;   /* listening, until the acceptor has it; -1: none */
    acceptor acceptor;
    struct MHD_Daemon *daemon;
    _Alignas(CACHE_LINE) atomic_long exchanges; /* in progress; apart from what is only read */
} listener;

typedef struct http {
    listener main, ops;
    peers *peers;
    unsigned most; /* connections at main */
    atomic_long suspended;
    atomic_bool stopping; /* nothing may be suspended any more */
    char id_prefix[ID_PREFIX + 1];
    _Alignas(CACHE_LINE) atomic_ulong next_id;
} http;

/* Takes the answer's body, leaving its length; NULL when out of memory: the answer is still the caller's. */
struct MHD_Response *http_response(answer *answer, const reply *reply);

/* Called by libmicrohttpd, in its threads; cls is the listener. A connection begins or ends; a request's first line is
 * read; its head, its body, its end; its answer is sent, or it is over without one. */
void http_on_connection(void *cls, struct MHD_Connection *connection, void **context,
                        enum MHD_ConnectionNotificationCode code);
void *http_on_target(void *cls, const char *uri, struct MHD_Connection *connection);
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *data, size_t *bytes, void **context);
void http_on_completed(void *cls, struct MHD_Connection *connection, void **context,
                       enum MHD_RequestTerminationCode code);

#endif
