/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens, wrong ones by address, who is let in, and origins.
 */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "access.h"
#include "../support/suite.h"

static char path[] = "/tmp/lossd-tokens-XXXXXX";

static const char *write_file(const char *text) {
    strcpy(path + sizeof path - 7, "XXXXXX");
    int fd = mkstemp(path);
    ck_assert(fd >= 0);
    ck_assert(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    return path;
}

static tokens *read_tokens(const char *text) {
    tokens *t = NULL;
    bx_error error = {0};
    ck_assert_msg(tokens_read(&t, write_file(text), &error) == BX_OK, "%s", error.text);
    unlink(path);
    return t;
}

/* SHA-256 of "abc", as FIPS 180-2 has it. */
#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

START_TEST(test_roles) {
    char name[TOKEN_NAME] = "";
    tokens *t = read_tokens("read a one-token # and so on\n write\tb two-token\r\nread c sha256:" ABC);
    ck_assert_int_eq(tokens_role(t, "one-token", name), RIGHT_READ);
    ck_assert_str_eq(name, "a");
    ck_assert_int_eq(tokens_role(t, "two-token", name), RIGHT_WRITE);
    ck_assert_str_eq(name, "b");
    ck_assert_int_eq(tokens_role(t, "abc", name), RIGHT_READ);
    ck_assert_str_eq(name, "c");
    for (const char *const *wrong =
             (const char *const[]){"", "a", "one-toke", "one-token ", "One-token", ABC, "sha256:" ABC, "#", NULL};
         *wrong; wrong++) {
        ck_assert_int_eq(tokens_role(t, *wrong, name), RIGHT_NONE);
    }
    tokens_free(t);
    tokens_free(NULL);
}
END_TEST

START_TEST(test_files) {
    static const struct {
        const char *text, *says;
    } rows[] = {{"", "no token"},
                {"read a\n", "line 1"},
                {"\n\nread a b c\n", "line 3"},
                {"other a b\n", "line 1"},
                {"read a sha256:00\n", "line 1"},
                {"read a x\nread b x\n", "line 2"},
                {"read a x\nread a y\n", "line 2"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokens *t = NULL;
        bx_error error = {0};
        ck_assert_int_eq(tokens_read(&t, write_file(rows[i].text), &error), BX_MALFORMED);
        ck_assert_ptr_null(t);
        ck_assert_ptr_nonnull(strstr(error.text, rows[i].says));
        ck_assert_str_eq(error.code, CONFIGURATION);
        unlink(path);
    }
    secret s = {0};
    bx_error error = {0};
    ck_assert_int_eq(secret_read(&s, "--x", write_file("text"), true, &error), BX_OK);
    ck_assert_str_eq(s.text, "text");
    ck_assert_uint_eq(s.bytes, 4);
    secret_wipe(&s);
    ck_assert_ptr_null(s.text);
    ck_assert_int_eq(chmod(path, 0644), 0);
    ck_assert_int_eq(secret_read(&s, "--x", path, true, &error), BX_MALFORMED);
    ck_assert_int_eq(secret_read(&s, "--x", path, false, &error), BX_OK);
    secret_wipe(&s);
    unlink(path);
}
END_TEST

/* Of this thread, in nanoseconds: what others take of the processor is not in it. */
static int64_t processor_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

/* Whichever token it is, all of them are looked at: the first, the last and none of a file take the same, where leaving
 * off at the first would take a hundredth. What disturbs a try makes it longer, so the shortest ones are compared. */
START_TEST(test_S03_every_token_is_compared) {
    enum { TOKENS = 1000, TRIES = 301 };
    static char text[64 * TOKENS];
    int64_t least[3] = {INT64_MAX, INT64_MAX, INT64_MAX};
    size_t n = 0;
    for (int i = 0; i < TOKENS; i++) {
        n += (size_t)snprintf(text + n, sizeof text - n, "read n%d token-number-%d\n", i, i);
    }
    tokens *t = read_tokens(text);
    static const char *const asked[] = {"token-number-0", "token-number-999", "token-number-x"};
    char name[TOKEN_NAME];
    for (int i = 0; i < TRIES; i++) {
        for (int k = 0; k < 3; k++) {
            const int64_t begin = processor_ns();
            const right found = tokens_role(t, asked[k], name);
            const int64_t took = processor_ns() - begin;
            least[k] = took < least[k] ? took : least[k];
            ck_assert_int_eq(found, k < 2 ? RIGHT_READ : RIGHT_NONE);
        }
    }
    for (int k = 1; k < 3; k++) {
        ck_assert_msg(least[0] < 2 * least[k] && least[k] < 2 * least[0], "%lld and %lld ns", (long long)least[0],
                      (long long)least[k]);
    }
    tokens_free(t);
}
END_TEST

static struct sockaddr_in address(uint32_t number) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(number)};
}

static bool exceeded(guesses *g, uint32_t number, int64_t now) {
    const struct sockaddr_in from = address(number);
    return guesses_exceeded(g, (const struct sockaddr *)&from, now);
}

static void guess(guesses *g, uint32_t number, int64_t now) {
    const struct sockaddr_in from = address(number);
    guesses_count(g, (const struct sockaddr *)&from, now);
}

/* Ten at once, and then ten in each second. */
START_TEST(test_S05_rate) {
    guesses *g = guesses_new();
    int64_t now = 5 * NS_PER_S;
    int wrong = 0;
    ck_assert(!exceeded(g, 1, now));
    for (int i = 0; i < 100; i++) {
        if (!exceeded(g, 1, now)) {
            guess(g, 1, now);
            wrong++;
        }
    }
    ck_assert_int_eq(wrong, GUESSES_PER_S);
    ck_assert(!exceeded(g, 2, now));
    for (int i = 0; i < 30000; i++) { /* three seconds */
        now += NS_PER_MS / 10;
        if (!exceeded(g, 1, now)) {
            guess(g, 1, now);
            wrong++;
        }
    }
    ck_assert_int_eq(wrong, 4 * GUESSES_PER_S);
    ck_assert(exceeded(g, 1, now));
    ck_assert(!exceeded(g, 1, now + 2 * NS_PER_S));
    guesses_free(g);
    guesses_free(NULL);
}
END_TEST

/* A table of a fixed size: the address whose last guess is the oldest makes room, and no other. */
START_TEST(test_S05_bounded) {
    guesses *g = guesses_new();
    const int64_t now = NS_PER_S;
    for (int i = 0; i < GUESSES_PER_S; i++) {
        guess(g, 1, now);
        guess(g, 2, now);
    }
    for (uint32_t i = 0; i < GUESSERS - 2; i++) {
        guess(g, 1000 + i, now);
    }
    ck_assert(exceeded(g, 1, now));
    ck_assert(exceeded(g, 2, now));
    guess(g, 1, now); /* it is not the oldest any more */
    guess(g, 7, now);
    ck_assert(exceeded(g, 1, now));
    ck_assert(!exceeded(g, 2, now));
    for (uint32_t i = 0; i < 50000; i++) {
        guess(g, 100000 + i * 2654435761u, now);
        guess(g, 1, now);
    }
    ck_assert(exceeded(g, 1, now));
    for (uint32_t i = 0; i < GUESSERS; i++) {
        guess(g, 900000 + i, now);
    }
    ck_assert(!exceeded(g, 1, now));
    guesses_free(g);
}
END_TEST

START_TEST(test_S05_networks) {
    guesses *g = guesses_new();
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    const struct sockaddr *from = (const struct sockaddr *)&six;
    memcpy(&six.sin6_addr, "\x20\x01\x0d\xb8\0\0\0\1\0\0\0\0\0\0\0\1", 16);
    for (int i = 0; i < GUESSES_PER_S; i++) {
        six.sin6_addr.s6_addr[15] = (uint8_t)i; /* a host has as many addresses as it likes */
        guesses_count(g, from, 0);
    }
    ck_assert(guesses_exceeded(g, from, 0));
    six.sin6_addr.s6_addr[7] = 2; /* another network */
    ck_assert(!guesses_exceeded(g, from, 0));
    memcpy(&six.sin6_addr, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 16); /* IPv4 */
    for (int i = 0; i < GUESSES_PER_S; i++) {
        guesses_count(g, from, 0);
    }
    ck_assert(exceeded(g, INADDR_LOOPBACK, 0));
    six.sin6_addr.s6_addr[15] = 2;
    ck_assert(!guesses_exceeded(g, from, 0));
    ck_assert(!guesses_exceeded(g, NULL, 0));
    guesses_free(g);
}
END_TEST

/* method, path, Authorization, whether it records -> status (0: let in) */
static const struct {
    const char *method, *path, *authorization;
    bool records;
    int status;
} rows[] = {
    {"GET", "/healthz", NULL, false, 0},
    {"GET", "/healthz", "Bearer nonsense", false, 0},
    {"GET", "/", NULL, false, 0},
    {"GET", "/web/app.js", NULL, false, 0},
    {"GET", "/metrics", NULL, false, 401},
    {"GET", "/metrics", "Bearer reader", false, 0},
    {"GET", "/metrics", "bearer    reader", false, 0},
    {"GET", "/metrics", "Bearerreader", false, 401},
    {"GET", "/metrics", "reader", false, 401},
    {"POST", "/v1/loss", "Bearer reader", false, 0},
    {"POST", "/v1/loss", "Bearer reader", true, 403},
    {"POST", "/v1/loss", "Bearer writer", true, 0},
    {"POST", "/v1/loss", "Bearer wrong", true, 401},
    {"DELETE", "/v1/runs/x", "Bearer reader", false, 403},
    {"DELETE", "/v1/runs/x", "Bearer writer", false, 0},
    {"DELETE", "/v1/runs/x", NULL, false, 401},
    {"GET", "/nowhere", NULL, false, 401},
    {"GET", "/nowhere", "Bearer reader", false, 0},
    {"DELETE", "/healthz", NULL, false, 401},
};

static int ask(gate *g, metrics *m, size_t i, right *right) {
    char name[ROUTE_NAME], allow[40], who[TOKEN_NAME];
    const struct sockaddr_in from = address(INADDR_LOOPBACK);
    const credentials c = {rows[i].authorization, (const struct sockaddr *)&from, rows[i].records};
    refusal why = {0};
    const route *route = route_find(rows[i].method, rows[i].path, name, allow);
    return gate_check(g, m, route, &c, right, who, &why) ? 0 : why.status;
}

START_TEST(test_S02_gate) {
    const size_t n = sizeof rows / sizeof *rows;
    right right;
    metrics *m = metrics_new();
    gate *g = gate_new();
    for (size_t i = 0; i < n; i++) { /* without tokens */
        ck_assert_int_eq(ask(g, m, i, &right), 0);
        ck_assert_int_eq(right, RIGHT_WRITE);
    }
    gate_use(g, read_tokens("read a reader\nwrite b writer\n"));
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(ask(g, m, i, &right) == rows[i].status, "row %zu", i);
    }
    gate_use(g, read_tokens("write b another\n"));
    ck_assert_int_eq(ask(g, m, 5, &right), 401);
    gate_free(g);
    gate_free(NULL);
    metrics_free(m);
}
END_TEST

START_TEST(test_S08_origins) {
    static const char *const good[] = {"https://a.example",
                                       "http://a:8080,http://b",
                                       "http://[::1]:3000",
                                       "https://10.0.0.1",
                                       "http://localhost:443, https://x:80",
                                       NULL};
    static const char *const bad[] = {
        "*",           "null",        "a.example",   "https://a/",    "https://A.example", "https://a:",  "https://",
        "ftp://a",     "https://a:0", "http://a:80", "https://a:443", "https://a:123456",  "https://a@b", "https://a?b",
        "https://a,*", "https://a,",  "https://*.a", "https://a b",   "https://:80",       "http://a:b"};
    const char *wrong = NULL;
    ck_assert_msg(origins_check(good, &wrong), "%s", wrong);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const list[] = {bad[i], NULL};
        ck_assert_msg(!origins_check(list, &wrong), "%s", bad[i]);
    }
    for (const char *const *yes =
             (const char *const[]){"https://a.example", "http://b", "http://[::1]:3000", "https://x:80", NULL};
         *yes; yes++) {
        ck_assert_msg(origins_have(good, *yes), "%s", *yes);
    }
    for (const char *const *no = (const char *const[]){"", "null", "*", "https://a.exampl", "https://a.example.org",
                                                       "http://a", "http://a.example", "https://a.example:443",
                                                       "HTTPS://a.example", "http://a:8080,http://b", NULL};
         *no; no++) {
        ck_assert_msg(!origins_have(good, *no), "%s", *no);
    }
    ck_assert(origins_check((const char *const[]){NULL}, &wrong));
    ck_assert(!origins_have((const char *const[]){NULL}, "https://a"));
}
END_TEST

int main(void) {
    log_setup(LOG_ERROR, false);
    Suite *s = suite_create("tokens");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_roles);
    tcase_add_test(t, test_files);
    tcase_add_test(t, test_S03_every_token_is_compared);
    tcase_add_test(t, test_S05_rate);
    tcase_add_test(t, test_S05_bounded);
    tcase_add_test(t, test_S05_networks);
    tcase_add_test(t, test_S02_gate);
    tcase_add_test(t, test_S08_origins);
    suite_add_tcase(s, t);
    return suite_run(s);
}
