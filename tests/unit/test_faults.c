/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole daemon where the system refuses: the k-th thread cannot be had, the clock is set, the data directory lies
 * on a network's file system. The linker redirects our own calls to the wrappers below.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "server.h"
#include "../support/suite.h"

/* ---- what is redirected ------------------------------------------------------------------------------------------ */

static atomic_long threads_left = -1; /* until none can be had; negative: there are always more */
static atomic_llong wall_offset;      /* seconds by which the wall clock was set */
static atomic_long wall_asked;        /* how often */
static atomic_long network;           /* what statfs says; 0: the truth */

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __real_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
int __real_statfs(const char *path, struct statfs *out);
int __wrap_statfs(const char *path, struct statfs *out);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    if (atomic_load(&threads_left) == 0) {
        return EAGAIN;
    }
    atomic_fetch_sub(&threads_left, 1);
    return __real_pthread_create(thread, attributes, start, argument);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *out) {
    const int rc = __real_clock_gettime(clock, out);
    if (clock == CLOCK_REALTIME) {
        out->tv_sec += atomic_load(&wall_offset);
        atomic_fetch_add(&wall_asked, 1);
    }
    return rc;
}

int __wrap_statfs(const char *path, struct statfs *out) {
    const int rc = __real_statfs(path, out);
    if (atomic_load(&network)) {
        out->f_type = atomic_load(&network);
    }
    return rc;
}

/* ---- a daemon ---------------------------------------------------------------------------------------------------- */

static server s;
static char directory[64];

static void setup(void) {
    strcpy(directory, "/tmp/lossd-faults-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void teardown(void) {
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static bx_status start(const char *more, bx_error *error) {
    static char data[96], flag[96], message[256];
    char *arguments[] = {(char[]){"lossd"}, (char[]){"--listen=127.0.0.1:0"}, (char[]){"--drain-timeout=0"}, data,
                         flag};
    memset(&s, 0, sizeof s);
    *error = (bx_error){0};
    snprintf(data, sizeof data, "--data-dir=%s", directory);
    snprintf(flag, sizeof flag, "%s", more);
    proto_init();
    log_setup(LOG_ERROR, false);
    ck_assert_msg(options_parse(&s.options, *more ? 5 : 4, arguments, message), "%s", message);
    return server_start(&s, error);
}

static void must_start(const char *more) {
    bx_error error;
    ck_assert_msg(start(more, &error) == BX_OK, "%s", error.text);
}

static int dial(void) {
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)s.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {20, 0};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static char answer_text[1 << 16];

/* The status of what comes until the connection is closed; 0: nothing. */
static int hear(int fd) {
    size_t got = 0;
    ssize_t n;
    while ((n = recv(fd, answer_text + got, sizeof answer_text - 1 - got, 0)) > 0) {
        got += (size_t)n;
    }
    close(fd);
    answer_text[got] = '\0';
    return got > 12 ? atoi(answer_text + 9) : 0;
}

static const char body[] = "{\"priors\":[[0.25,0.25,0.5,0.5],[0.75,0.75,0.5,0.5]],\"predictions\":{\"loc\":"
                           "[[[0.5,-0.25,0,2],[1,1,1,1]]],\"conf\":[[[0,1,0],[0.5,0,2]]]},\"annotations\":"
                           "[{\"boxes\":[[0,0,0.5,0.5]],\"labels\":[0]}]}";

static int ask(const char *method, const char *target, const char *text) {
    static char request[2048];
    int fd = dial();
    int n = snprintf(request, sizeof request,
                     "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     method, target, strlen(text), text);
    ck_assert_int_eq(send(fd, request, (size_t)n, MSG_NOSIGNAL), n);
    return hear(fd);
}

static int record_step(int step) {
    char target[64];
    snprintf(target, sizeof target, "/v1/loss?run=r&step=%d", step);
    return ask("POST", target, body);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

START_TEST(R02_every_thread) {
    bx_error error;
    for (long k = 0;; k++) {
        atomic_store(&threads_left, k);
        const bx_status status = start("--workers=3", &error);
        const bool enough = atomic_load(&threads_left) != 0;
        atomic_store(&threads_left, -1);
        if (status == BX_OK) {
            ck_assert_int_eq(ask("POST", "/v1/loss", body), 200);
            server_stop(&s);
            ck_assert(enough || k > 6); /* exactly as many as it needs */
            ck_assert_int_gt(k, 6);
            break;
        }
        ck_assert_int_eq(status, BX_BUSY);
        ck_assert_str_eq(error.code, "threads");
        ck_assert_ptr_nonnull(strstr(error.text, "thread"));
    }
    must_start(""); /* nothing of these is in its way */
    ck_assert_int_eq(record_step(1), 200);
    server_stop(&s);
}
END_TEST

/* ---- the clock --------------------------------------------------------------------------------------------------- */

#define DAY 86400LL

static const long long jumps[] = {DAY, -DAY, 3650 * DAY, 0, -3600, 1};
enum { N_JUMPS = sizeof jumps / sizeof *jumps };

/* Records keep their order, which is that of their steps, and no duration is negative. */
START_TEST(R20_records) {
    must_start("");
    for (int i = 0; i < N_JUMPS; i++) {
        atomic_store(&wall_offset, jumps[i]);
        ck_assert_int_eq(record_step(i), 200);
        const char *times = strstr(answer_text, "\"timing_ms\":{");
        ck_assert_ptr_nonnull(times);
        ck_assert_msg(!memchr(times, '-', strcspn(times, "}")), "%s", times);
    }
    ck_assert_int_eq(ask("GET", "/v1/runs/r/steps?format=csv", ""), 200);
    const char *at = answer_text;
    for (int i = 0; i < N_JUMPS; i++) {
        char line[16];
        snprintf(line, sizeof line, "\n%d,", i);
        at = strstr(at, line);
        ck_assert_msg(at != NULL, "step %d is not in its place: %s", i, answer_text);
    }
    ck_assert_int_eq(ask("GET", "/v1/runs/r", ""), 200);
    ck_assert_ptr_nonnull(strstr(answer_text, "\"steps\":6"));
    ck_assert_int_ge(atomic_load(&wall_asked), N_JUMPS); /* when each was recorded */
    server_stop(&s);
    atomic_store(&wall_offset, 0);
}
END_TEST

/* How long a body may take is not told by the wall. */
START_TEST(R20_deadlines) {
    static const char head[] = "POST /v1/loss HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: "
                               "application/json\r\nContent-Length: 4000\r\n\r\n{";
    must_start("--request-timeout=2");
    int fd = dial();
    ck_assert_int_eq(send(fd, head, sizeof head - 1, MSG_NOSIGNAL), sizeof head - 1);
    const int64_t began = now_ns();
    for (int i = 0; i < N_JUMPS; i++) {
        atomic_store(&wall_offset, jumps[i]);
        usleep(100000);
        ck_assert_int_eq(ask("POST", "/v1/loss", body), 200);
        ck_assert_int_eq(send(fd, " ", 1, MSG_NOSIGNAL), 1); /* nobody has ended it */
    }
    ck_assert_int_eq(hear(fd), 408);
    const int64_t took = now_ns() - began;
    ck_assert_int_gt(took, 3 * NS_PER_S / 2);
    ck_assert_int_lt(took, 10 * NS_PER_S);
    server_stop(&s);
    atomic_store(&wall_offset, 0);
}
END_TEST

/* ---- a network's file system ------------------------------------------------------------------------------------- */

/* A write-ahead log is memory that the processes of one machine share. */
START_TEST(L11_network) {
    static const long types[] = {0x6969, 0x517B, 0xFF534D42, 0x00C36400};
    bx_error error;
    must_start("");
    ck_assert_int_eq(record_step(1), 200);
    server_stop(&s);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        atomic_store(&network, types[i]);
        ck_assert_int_ne(start("", &error), BX_OK); /* with a run in it */
        ck_assert_str_eq(error.code, "store_read_only");
        ck_assert_ptr_nonnull(strstr(error.text, "network file system"));
        atomic_store(&network, 0);
    }
    must_start("");
    ck_assert_int_eq(ask("GET", "/v1/runs/r", ""), 200);
    server_stop(&s);
    teardown();
    setup();
    must_start(""); /* nothing in it: losses are computed, nothing is recorded */
    atomic_store(&network, 0x6969);
    ck_assert_int_eq(record_step(1), 503);
    ck_assert_ptr_nonnull(strstr(answer_text, "network file system"));
    ck_assert_int_eq(ask("POST", "/v1/loss", body), 200);
    atomic_store(&network, 0);
    ck_assert_int_eq(record_step(1), 200);
    server_stop(&s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("faults");
    TCase *c = tcase_create("faults");
    tcase_set_timeout(c, 60);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, R02_every_thread);
    tcase_add_test(c, R20_records);
    tcase_add_test(c, R20_deadlines);
    tcase_add_test(c, L11_network);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
