/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contexts that a pool lends to threads which compute a small request themselves.
 */
#include "server.h"
#include "../support/suite.h"

enum { SPARES = 3, THREADS = 8, ROUNDS = 20000 };

static pool *lender;

static void start(size_t n_spares) {
    bx_error error = {0};
    ck_assert_int_eq(pool_start(&lender, "lossd-worker", 1, n_spares, "ref", &error), BX_OK);
}

static void teardown(void) {
    pool_stop(lender);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

START_TEST(each_is_lent_once) {
    start(SPARES);
    for (int round = 0; round < 3; round++) {
        bx_context *lent[SPARES];
        for (int i = 0; i < SPARES; i++) {
            lent[i] = pool_borrow(lender);
            ck_assert_ptr_nonnull(lent[i]);
            for (int j = 0; j < i; j++) {
                ck_assert_ptr_ne(lent[i], lent[j]);
            }
        }
        ck_assert_ptr_null(pool_borrow(lender));
        for (int i = 0; i < SPARES; i++) {
            pool_return(lender, lent[i]);
        }
    }
}
END_TEST

START_TEST(there_are_none) {
    start(0);
    ck_assert_ptr_null(pool_borrow(lender));
}
END_TEST

typedef struct holder {
    bx_context *context;
    atomic_int holders;
} holder;

static holder known[SPARES];
static atomic_int twice, lent, refused;

/* Nobody else has what this thread was lent. */
static void *borrow(void *unused) {
    for (int round = 0; round < ROUNDS; round++) {
        bx_context *context = pool_borrow(lender);
        for (int i = 0; context && i < SPARES; i++) {
            if (known[i].context == context) {
                atomic_fetch_add(&twice, atomic_fetch_add(&known[i].holders, 1) != 0);
                atomic_fetch_add(&lent, 1);
                atomic_fetch_sub(&known[i].holders, 1);
            }
        }
        atomic_fetch_add(&refused, !context);
        if (context) {
            pool_return(lender, context);
        }
    }
    return unused;
}

/* As many threads as there are spares never find none. */
START_TEST(by_many_threads) {
    const int n_threads = _i == 0 ? SPARES : THREADS;
    pthread_t threads[THREADS];
    start(SPARES);
    for (int i = 0; i < SPARES; i++) {
        known[i].context = pool_borrow(lender);
    }
    for (int i = 0; i < SPARES; i++) {
        pool_return(lender, known[i].context);
    }
    for (int i = 0; i < n_threads; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, borrow, NULL), 0);
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_gt(atomic_load(&lent), 0);
    ck_assert_int_eq(atomic_load(&twice), 0);
    ck_assert(n_threads > SPARES || atomic_load(&refused) == 0);
    for (int i = 0; i < SPARES; i++) { /* none is lost */
        ck_assert_ptr_nonnull(pool_borrow(lender));
    }
    ck_assert_ptr_null(pool_borrow(lender));
}
END_TEST

int main(void) {
    TCase *cases = tcase_create("pool");
    tcase_add_checked_fixture(cases, NULL, teardown);
    tcase_add_test(cases, each_is_lent_once);
    tcase_add_test(cases, there_are_none);
    tcase_add_loop_test(cases, by_many_threads, 0, 2);
    Suite *suite = suite_create("pool");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
