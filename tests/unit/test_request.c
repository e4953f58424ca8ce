/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests without HTTP: bytes go in, and at any moment the deadline passes, the daemon drains or the client has gone.
 *
 * Whatever the order, there is at most one answer, the connection is resumed exactly when it waits, and in the end no
 * ticket and no byte stays taken. The sanitizers see the rest.
 */
#include "../support/batch.h"
#include "../support/posted.h"

static void setup(void) {
    bx_error error = {0};
    open_server(3);
    ck_assert_int_eq(pool_start(&s.clerk, "lossd-clerk", 1, 0, NULL, &error), BX_OK);
}

static void teardown(void) {
    pool_stop(s.clerk);
    close_server();
}

/* ---- what is asked ----------------------------------------------------------------------------------------------- */

static const char *const asked[][2] = {
    {NULL, NULL},
    {"include", "gradients"},
    {"include", "dense_gradients"},
    {"criterion", "{\"mining\":{\"scope\":\"batch\"}}"},
    {"criterion", "retinanet-focal"},
};
enum { N_ASKED = sizeof asked / sizeof *asked };

static char *body;
static size_t body_bytes;

/* One batch to its answer. */
static answer compute(const char *option, const char *value) {
    connection c;
    request *r = admit(&s, &c, "POST", "/v1/loss", option, value, PROTO_SAFETENSORS, body_bytes);
    answer a = {0};
    receive_in_pieces(r, body, 0, body_bytes, 1 << 17);
    answer_of(r, &c, &a);
    end(r, &c);
    return a;
}

START_TEST(test_answers) {
    body = batch_tensors(4, &body_bytes);
    for (int i = 0; i < N_ASKED; i++) {
        char first[512], again[512];
        for (int turn = 0; turn < 5; turn++) {
            answer a = compute(asked[i][0], asked[i][1]);
            HOLDS(a.status == 200, "%d: %d %.300s", i, a.status, a.body.data);
            copy_numbers(turn ? again : first, &a);
            answer_free(&a);
            HOLDS(turn == 0 || !strcmp(first, again), "%d: %s\n%s", i, first, again);
        }
    }
    ck_assert(at_rest());
    free(body);
}
END_TEST

/* ---- what may happen at any moment ------------------------------------------------------------------------------- */

START_TEST(test_cut_short_at_any_moment) {
    enum { TURNS = 400 };
    unsigned seed = 1, statuses[3] = {0};
    body = batch_tensors(3, &body_bytes);
    for (int turn = 0; turn < TURNS; turn++) {
        connection c;
        const char *const *option = asked[turn % N_ASKED];
        request *r = admit(&s, &c, "POST", "/v1/loss", option[0], option[1], PROTO_SAFETENSORS, body_bytes);
        seed = seed * 1664525u + 1013904223u;
        const bool vanishes = turn % 7 == 0;
        fate f = {r, (seed >> 16) % 12000, turn % 2 ? 504 : 503};
        pthread_t thread;
        request_ref(r);
        ck_assert_int_eq(pthread_create(&thread, NULL, strike, &f), 0);
        receive_in_pieces(r, body, 0, vanishes ? (seed >> 8) % body_bytes : body_bytes, 1 << 17);
        if (!vanishes) {
            answer a = {0};
            answer_of(r, &c, &a);
            HOLDS(a.status == 200 || a.status == f.status, "turn %d: %d %.200s", turn, a.status, a.body.data);
            statuses[a.status == 200 ? 0 : a.status - 502]++;
            answer_free(&a);
        }
        end(r, &c);
        pthread_join(thread, NULL);
    }
    HOLDS(at_rest(), "%ld tickets, %zu bytes stay taken", atomic_load(&s.tickets), memory_used(s.memory));
    HOLDS(statuses[0] > 0 && statuses[1] > 0 && statuses[2] > 0, "%u ended well, %u were drained, %u too late",
          statuses[0], statuses[1], statuses[2]);
    free(body);
}
END_TEST

/* Registrations that are cut short were stored or not, and say so to at most one. */
START_TEST(test_registrations_cut_short) {
    static const char text[] = "{\"weights\":{\"loc\":2}}";
    for (int turn = 0; turn < 100; turn++) {
        connection c;
        request *r = admit(&s, &c, turn % 4 == 3 ? "DELETE" : "PUT", "/v1/criteria/c", NULL, NULL, PROTO_JSON,
                           turn % 4 == 3 ? 0 : sizeof text - 1);
        fate f = {r, (unsigned)(turn * 37 % 1500), 504};
        pthread_t thread;
        answer a = {0};
        request_ref(r);
        ck_assert_int_eq(pthread_create(&thread, NULL, strike, &f), 0);
        request_receive(r, text, sizeof text - 1);
        answer_of(r, &c, &a);
        HOLDS(a.status / 100 == 2 || a.status == 404 || a.status == 504, "turn %d: %d %.200s", turn, a.status,
              a.body.data);
        answer_free(&a);
        end(r, &c);
        pthread_join(thread, NULL);
    }
    for (int i = 0; i < 5000 && atomic_load(&s.tickets) > 0; i++) {
        usleep(1000);
    }
    bx_error error = {0};
    bx_status status = registry_delete(s.registry, DEFINITION_CRITERION, "c", &error);
    HOLDS(status == BX_OK || !strcmp(error.code, "unknown_criterion"), "%s", error.text);
    HOLDS(at_rest(), "%ld tickets, %zu bytes stay taken", atomic_load(&s.tickets), memory_used(s.memory));
}
END_TEST

/* The gradients' memory is asked for between the rounds. */
START_TEST(test_no_memory_for_gradients) {
    body = batch_tensors(4, &body_bytes);
    unsigned refused = 0, answered = 0;
    for (size_t left = 1 << 20; left < 24 << 20; left += 1 << 20) {
        lease others;
        connection c;
        ck_assert(lease_begin(&others, s.memory, memory_limit(s.memory) - left));
        answer a = {0}, refusal;
        char name[ROUTE_NAME];
        char allow[40];
        admission wanted = {.route = route_find("POST", "/v1/loss", name, allow),
                            .right = RIGHT_WRITE,
                            .encoding = PROTO_SAFETENSORS,
                            .expected = body_bytes,
                            .id = "x"};
        request *r = request_admit(&s, &wanted, &refusal);
        if (!r) {
            answer_free(&refusal);
        } else {
            request_abandon(r);
            r = admit(&s, &c, "POST", "/v1/loss", "include", "dense_gradients", PROTO_SAFETENSORS, body_bytes);
            receive_in_pieces(r, body, 0, body_bytes, 1 << 17);
            answer_of(r, &c, &a);
            HOLDS(a.status == 200 || (a.status == 503 && strstr(a.body.data, "memory_full")), "%zu left: %d %.300s",
                  left, a.status, a.body.data);
            refused += a.status == 503;
            answered += a.status == 200;
            answer_free(&a);
            end(r, &c);
        }
        lease_end(&others);
        HOLDS(at_rest(), "%zu left: %ld tickets, %zu bytes stay taken", left, atomic_load(&s.tickets),
              memory_used(s.memory));
    }
    ck_assert_uint_gt(refused, 0);
    ck_assert_uint_gt(answered, 0);
    free(body);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("request");
    TCase *c = tcase_create("request");
    tcase_set_timeout(c, 240);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_answers);
    tcase_add_test(c, test_cut_short_at_any_moment);
    tcase_add_test(c, test_registrations_cut_short);
    tcase_add_test(c, test_no_memory_for_gradients);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
