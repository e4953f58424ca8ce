/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accepting: one thread for each listening socket, which gives connections away as they come.
 *
 * libmicrohttpd's threads could accept for themselves, but whichever wakes first takes all of a burst, and the others
 * have nothing to do for as long as these connections are kept.
 */
#ifndef ACCEPT_H
#define ACCEPT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "../lib/boxloss.h"

/* Where connections go; called by the accepting thread. */
typedef struct connection_taker {
    /* Takes the descriptor, whatever it returns; false: it has been closed. */
    bool (*take)(void *cls, int fd, const struct sockaddr *address, socklen_t size);
    void *cls;
} connection_taker;

typedef struct acceptor {
    int fd;   /* listening */
    int wake; /* an eventfd: there is room again, or it is to stop */
    long most;
    connection_taker to;
    pthread_mutex_t lock;
    /* under the lock: given away and not begun with, and the least that this was for a second; those not over yet */
    long coming, least, here;
    atomic_bool stopping;
    bool started, running;
    pthread_t thread;
} acceptor;

/* Accept from fd, which is the acceptor's from now on unless this fails; at most so many at a time: who comes then
 * waits in the kernel's queue. */
BX_MUST_USE bx_status acceptor_start(acceptor *a, int fd, long most, connection_taker to, bx_error *error);
/* A connection that was taken has begun; it is over. Any thread. Who was taken and has not begun after two
 * seconds is not counted any more: such a connection has ended without a word, for want of memory. */
void acceptor_begin(acceptor *a);
void acceptor_release(acceptor *a);
/* How many are there, and how many of them have not begun. Any thread. */
long acceptor_open(acceptor *a);
long acceptor_coming(acceptor *a);
/* Accept what has already come, as far as there is room, then close the socket: who comes now is refused by the kernel.
 * Nothing if it was not started, or is stopped already. */
void acceptor_stop(acceptor *a);
/* Stops it, too; when no other thread calls any of these any more. */
void acceptor_fini(acceptor *a);

#endif
