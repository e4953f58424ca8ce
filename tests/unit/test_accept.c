/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that accepts: never more than there is room for, nobody forgotten, and room that was lost is found again.
 */
#include "accept.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../support/suite.h"
#include "server.h"

enum { MOST = 4, CLIENTS = 64, PATIENCE_MS = 10000 };

static acceptor a;
static struct sockaddr_in address;
static int clients[CLIENTS], n_clients;
static atomic_int taken[CLIENTS], n_taken; /* descriptors */
static atomic_bool refuses, begins, flooded;
static int whose;

/* And it is gone at once. */
static void knock(void) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
}

static bool take(void *cls, int fd, const struct sockaddr *from, socklen_t size) {
    ck_assert_ptr_eq(cls, &whose);
    ck_assert_int_eq(from->sa_family, AF_INET);
    ck_assert_uint_eq(size, sizeof(struct sockaddr_in));
    ck_assert_int_ne(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    if (flooded) {
        knock();
    }
    if (refuses || flooded) {
        close(fd);
        return false;
    }
    if (begins) {
        acceptor_begin(&a);
    }
    taken[n_taken] = fd;
    n_taken++;
    return true;
}

static void start(long most) {
    socklen_t size = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, size), 0);
    ck_assert_int_eq(listen(fd, CLIENTS), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    bx_error error = {0};
    ck_assert_int_eq(acceptor_start(&a, fd, most, (connection_taker){take, &whose}, &error), BX_OK);
}

static void setup(void) {
    a = (acceptor){0};
    n_clients = n_taken = 0;
    refuses = flooded = false;
    begins = true;
}

static void teardown(void) {
    acceptor_fini(&a);
    for (int i = 0; i < n_clients; i++) {
        close(clients[i]);
    }
    for (int i = 0; i < n_taken; i++) {
        close(taken[i]);
    }
}

static int dial(void) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    clients[n_clients++] = fd;
    return fd;
}

static bool reach(atomic_int *what, int n) {
    for (int ms = 0; *what < n && ms < PATIENCE_MS; ms++) {
        usleep(1000);
    }
    return *what == n;
}

START_TEST(waits_for_room) {
    start(MOST);
    for (int i = 0; i < 3 * MOST; i++) {
        dial();
    }
    for (int n = MOST; n < 3 * MOST; n++) {
        ck_assert(reach(&n_taken, n));
        usleep(5000);
        ck_assert_int_eq(n_taken, n);
        acceptor_release(&a);
    }
    ck_assert(reach(&n_taken, 3 * MOST));
}
END_TEST

START_TEST(who_is_not_taken_takes_no_room) {
    start(1);
    refuses = true;
    for (int i = 0; i < 3; i++) {
        char byte;
        ck_assert_int_eq(recv(dial(), &byte, 1, 0), 0);
    }
    refuses = false;
    dial();
    ck_assert(reach(&n_taken, 1));
    ck_assert_int_eq(acceptor_open(&a), 1);
}
END_TEST

/* Taken, then ended without a word. */
START_TEST(finds_lost_room) {
    start(1);
    begins = false;
    dial();
    ck_assert(reach(&n_taken, 1));
    ck_assert_int_eq(acceptor_coming(&a), 1);
    dial();
    ck_assert(reach(&n_taken, 2));
    ck_assert_int_eq(acceptor_open(&a), 1);
}
END_TEST

/* However many come and go meanwhile, and though there is room. */
START_TEST(finds_lost_room_while_others_come) {
    start(2);
    begins = false;
    dial();
    ck_assert(reach(&n_taken, 1));
    begins = true;
    for (int n = 2; acceptor_coming(&a) > 0 && n < CLIENTS; n++) {
        dial();
        ck_assert(reach(&n_taken, n));
        acceptor_release(&a);
        usleep(100000);
    }
    ck_assert_int_eq(acceptor_coming(&a), 0);
    ck_assert_int_eq(acceptor_open(&a), 0);
}
END_TEST

/* And at rest. */
START_TEST(forgets_who_ended_at_once) {
    start(MOST);
    begins = false;
    dial();
    ck_assert(reach(&n_taken, 1));
    for (int n = 0; acceptor_open(&a) > 0 && n < 100; n++) {
        usleep(100000);
    }
    ck_assert_int_eq(acceptor_open(&a), 0);
}
END_TEST

/* Given up, and then it begins after all: the room for it is lost, and found again when it ends. */
START_TEST(begins_late) {
    start(1);
    begins = false;
    dial();
    ck_assert(reach(&n_taken, 1));
    dial();
    ck_assert(reach(&n_taken, 2));
    begins = true;
    acceptor_begin(&a);
    acceptor_begin(&a);
    ck_assert_int_eq(acceptor_open(&a), 2);
    dial();
    acceptor_release(&a);
    usleep(5000);
    ck_assert_int_eq(n_taken, 2);
    acceptor_release(&a);
    ck_assert(reach(&n_taken, 3));
    acceptor_release(&a);
    ck_assert_int_eq(acceptor_open(&a), 0);
}
END_TEST

/* Whoever comes is followed by another one. */
START_TEST(stops_under_a_flood) {
    start(CLIENTS);
    flooded = true;
    knock();
    usleep(50000);
    acceptor_stop(&a);
    ck_assert_int_eq(acceptor_open(&a), 0);
}
END_TEST

START_TEST(stop_forgets_nobody) {
    for (int round = 0; round < 20; round++) {
        start(CLIENTS);
        for (int i = 0; i < MOST; i++) {
            dial();
        }
        acceptor_stop(&a);
        ck_assert_int_eq(n_taken, MOST);
        const int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ck_assert_int_eq(connect(late, (struct sockaddr *)&address, sizeof address), -1);
        ck_assert_int_eq(errno, ECONNREFUSED);
        close(late);
        acceptor_release(&a); /* later than the stop */
        teardown();
        setup();
    }
}
END_TEST

START_TEST(stops_when_full) {
    start(1);
    dial();
    ck_assert(reach(&n_taken, 1));
    const int waits = dial();
    acceptor_stop(&a);
    ck_assert_int_eq(n_taken, 1);
    char byte;
    ck_assert_int_eq(recv(waits, &byte, 1, 0), -1);
    ck_assert_int_eq(errno, ECONNRESET);
}
END_TEST

START_TEST(no_descriptor_left) {
    struct rlimit before, none;
    start(MOST);
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    none = (struct rlimit){0, before.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    clients[n_clients++] = fd;
    usleep(50000);
    ck_assert_int_eq(n_taken, 0);
    ck_assert_int_eq(acceptor_open(&a), 0);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert(reach(&n_taken, 1));
}
END_TEST

int main(void) {
    log_setup(LOG_ERROR, false);
    TCase *cases = tcase_create("accept");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, waits_for_room);
    tcase_add_test(cases, who_is_not_taken_takes_no_room);
    tcase_add_test(cases, finds_lost_room);
    tcase_add_test(cases, finds_lost_room_while_others_come);
    tcase_add_test(cases, forgets_who_ended_at_once);
    tcase_add_test(cases, begins_late);
    tcase_add_test(cases, stops_under_a_flood);
    tcase_add_test(cases, stop_forgets_nobody);
    tcase_add_test(cases, stops_when_full);
    tcase_add_test(cases, no_descriptor_left);
    Suite *suite = suite_create("accept");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
