/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is counted where: buckets, outcomes, the store's commits, and many threads at a time. The page is that of a
 * daemon which serves nobody.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "server.h"
#include "../support/suite.h"

/* ---- help -------------------------------------------------------------------------------------------------------- */

static server s;
static char *text; /* the page */
static char directory[32];

static void setup(void) {
    char message[256], data[64];
    strcpy(directory, "/tmp/lossd-metrics-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(data, sizeof data, "--data-dir=%s", directory);
    char *arguments[] = {(char[]){"lossd"}, (char[]){"--listen=127.0.0.1:0"}, (char[]){"--workers=1"}, data, NULL};
    bx_error error = {0};
    log_setup(LOG_ERROR, false);
    proto_init();
    ck_assert(options_parse(&s.options, 4, arguments, message));
    ck_assert_msg(server_start(&s, &error) == BX_OK, "%s", error.text);
}

static void teardown(void) {
    free(text);
    text = NULL;
    server_stop(&s);
    char command[64];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static void read_page(void) {
    answer a = get_metrics(&(route_call){.server = &s});
    ck_assert_int_eq(a.status, 200);
    ck_assert(!a.body.failed);
    free(text);
    text = malloc(a.body.bytes + 2);
    text[0] = '\n';
    memcpy(text + 1, a.body.data, a.body.bytes);
    text[a.body.bytes + 1] = '\0';
    answer_free(&a);
}

/* The page has this line. */
static void must_say(const char *format, ...) {
    char line[256] = "\n";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + 1, sizeof line - 2, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    ck_assert_msg(strstr(text, line) != NULL, "there is no line \"%s\"", line);
}

static const route *route_of(const char *path) {
    char name[ROUTE_NAME], allow[40];
    const route *found = route_find("POST", path, name, allow);
    ck_assert_ptr_nonnull(found);
    return found;
}

static void take(double ms) {
    metrics_count(s.metrics, &(measured){.route = route_of("/v1/loss"),
                                         .admitted = true,
                                         .encoding = PROTO_JSON,
                                         .timed = true,
                                         .timing = {.compute_ms = ms},
                                         .ns = (int64_t)(ms * NS_PER_MS)});
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

START_TEST(test_buckets) {
    take(0);
    take(0.05); /* a bound belongs to its bucket */
    take(0.050001);
    take(30000);
    take(30001);
    read_page();
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"0.00005\"} 2");
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"0.0001\"} 3");
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"10\"} 3");
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"30\"} 4");
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"+Inf\"} 5");
    must_say("lossd_compute_seconds_sum{route=\"/v1/loss\"} 60.001100001");
    must_say("lossd_compute_seconds_count{route=\"/v1/loss\"} 5");
    must_say("lossd_answer_seconds_bucket{route=\"/v1/loss\",le=\"0.00005\"} 5");
    must_say("lossd_answer_seconds_sum{route=\"/v1/loss\"} 0.000000000");
    must_say("lossd_compute_seconds_count{route=\"/v1/match\"} 0");
}
END_TEST

START_TEST(test_outcomes) {
    static const struct {
        int status;
        outcome outcome;
    } table[] = {
        {200, OUTCOME_OK},      {201, OUTCOME_OK},      {204, OUTCOME_OK},      {304, OUTCOME_OK},
        {400, OUTCOME_REFUSED}, {404, OUTCOME_REFUSED}, {405, OUTCOME_REFUSED}, {412, OUTCOME_REFUSED},
        {422, OUTCOME_REFUSED}, {431, OUTCOME_REFUSED}, {501, OUTCOME_REFUSED}, {408, OUTCOME_TIMEOUT},
        {504, OUTCOME_TIMEOUT}, {503, OUTCOME_BUSY},    {507, OUTCOME_BUSY},    {500, OUTCOME_FAILED},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        ck_assert_int_eq(outcome_of(table[i].status, NULL), table[i].outcome);
        metrics_count(s.metrics, &(measured){.outcome = table[i].outcome, .bytes_out = 10});
    }
    ck_assert_int_eq(outcome_of(503, "queue_full"), OUTCOME_BUSY);
    ck_assert_int_eq(outcome_of(503, "device_unavailable"), OUTCOME_REFUSED);
    metrics_count(s.metrics, &(measured){.outcome = OUTCOME_GONE,
                                         .admitted = true,
                                         .bytes_in = 7,
                                         .images = 3,
                                         .encoding = PROTO_SAFETENSORS,
                                         .route = route_of("/v1/match")});
    read_page();
    must_say("lossd_requests_total{route=\"other\",outcome=\"ok\"} 4");
    must_say("lossd_requests_total{route=\"other\",outcome=\"refused\"} 7");
    must_say("lossd_requests_total{route=\"other\",outcome=\"timeout\"} 2");
    must_say("lossd_requests_total{route=\"other\",outcome=\"busy\"} 2");
    must_say("lossd_requests_total{route=\"other\",outcome=\"failed\"} 1");
    must_say("lossd_requests_total{route=\"other\",outcome=\"gone\"} 0");
    must_say("lossd_requests_total{route=\"/v1/match\",outcome=\"gone\"} 1");
    must_say("lossd_images_total{route=\"/v1/match\",outcome=\"gone\"} 3");
    must_say("lossd_request_body_bytes_total{encoding=\"safetensors\"} 7");
    must_say("lossd_response_body_bytes_total 160");
}
END_TEST

START_TEST(test_store) {
    metrics_store_commit(s.metrics, 0.004, 12, 0);
    metrics_store_commit(s.metrics, 0.25, 0, 3);
    read_page();
    must_say("lossd_store_results_total{outcome=\"stored\"} 12");
    must_say("lossd_store_results_total{outcome=\"failed\"} 3");
    must_say("lossd_store_commit_seconds_bucket{le=\"0.0025\"} 0");
    must_say("lossd_store_commit_seconds_bucket{le=\"0.005\"} 1");
    must_say("lossd_store_commit_seconds_bucket{le=\"0.25\"} 2");
    must_say("lossd_store_commit_seconds_sum 0.254000000");
    must_say("lossd_store_commit_seconds_count 2");
}
END_TEST

/* Methods of one path have one series, that of the path. */
START_TEST(test_paths) {
    for (size_t i = 0; route_at(i); i++) {
        ck_assert_uint_eq(route_index(route_at(i)), i);
        metrics_count(s.metrics, &(measured){.route = route_at(i)});
    }
    read_page();
    must_say("lossd_requests_total{route=\"/v1/priors/{name}\",outcome=\"ok\"} 3");
    must_say("lossd_requests_total{route=\"/v1/priors\",outcome=\"ok\"} 1");
    must_say("lossd_requests_total{route=\"/v2\",outcome=\"ok\"} 1");
    must_say("lossd_requests_total{route=\"/v2/\",outcome=\"ok\"} 1");
    for (size_t i = 0; route_at(i); i++) {
        char series[128];
        int n = 0;
        snprintf(series, sizeof series, "\nlossd_requests_total{route=\"%s\",outcome=\"ok\"}", route_at(i)->path);
        for (const char *at = text; (at = strstr(at, series)); at++) {
            n++;
        }
        ck_assert_int_eq(n, 1);
    }
}
END_TEST

enum { THREADS = 4, EACH = 20000 };

static void *count_many(void *unused) {
    (void)unused;
    for (int i = 0; i < EACH; i++) {
        take(1);
    }
    return NULL;
}

/* None is lost, and each page agrees with itself while they count. */
START_TEST(test_threads) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ck_assert(!pthread_create(&threads[i], NULL, count_many, NULL));
    }
    for (int i = 0; i < 20; i++) {
        read_page();
        const char *all = strstr(text, "lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"+Inf\"} ");
        const char *count = strstr(text, "lossd_compute_seconds_count{route=\"/v1/loss\"} ");
        ck_assert_int_eq(atoi(strchr(all, ' ')), atoi(strchr(count, ' ')));
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    read_page();
    must_say("lossd_requests_total{route=\"/v1/loss\",outcome=\"ok\"} %d", THREADS * EACH);
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"0.0005\"} 0");
    must_say("lossd_compute_seconds_bucket{route=\"/v1/loss\",le=\"0.001\"} %d", THREADS * EACH);
    must_say("lossd_compute_seconds_sum{route=\"/v1/loss\"} %d.000000000", THREADS * EACH / 1000);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("metrics");
    TCase *c = tcase_create("counted");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_buckets);
    tcase_add_test(c, test_outcomes);
    tcase_add_test(c, test_store);
    tcase_add_test(c, test_paths);
    tcase_add_test(c, test_threads);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
