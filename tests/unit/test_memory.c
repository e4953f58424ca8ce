/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers that are kept: which ones go, and when; those that are pinned for GPUs are unpinned once, before they go.
 */
#include "server.h"
#include "../support/suite.h"

#define LIMIT ((size_t)64 << 20)
#define LARGE ((size_t)2 << 20)
#define KEPT  ((size_t)64 << 10) /* smaller ones are not */

static memory *budget;
static struct {
    void *data[64];
    int n;
    bool refuses;
} pinned;

static bool pin(void *data, size_t bytes) {
    ck_assert_uint_ge(bytes, LARGE);
    for (int i = 0; i < pinned.n; i++) {
        ck_assert_ptr_ne(pinned.data[i], data);
    }
    if (!pinned.refuses) {
        pinned.data[pinned.n++] = data;
    }
    return !pinned.refuses;
}

/* It is there and may be looked at. */
static void unpin(void *data) {
    int i = 0;
    while (i < pinned.n && pinned.data[i] != data) {
        i++;
    }
    ck_assert_int_lt(i, pinned.n);
    ((volatile char *)data)[LARGE - 1]++;
    pinned.data[i] = pinned.data[--pinned.n];
}

static void setup(void) {
    budget = memory_new(LIMIT);
    ck_assert_ptr_nonnull(budget);
    memset(&pinned, 0, sizeof pinned);
}

static void teardown(void) {
    memory_free(budget);
    ck_assert_int_eq(pinned.n, 0);
}

static lease begin(void) {
    lease l;
    ck_assert(lease_begin(&l, budget, 0));
    return l;
}

static buffer take(lease *l, size_t bytes) {
    buffer b;
    ck_assert_int_eq(lease_take(l, bytes, &b), BX_OK);
    return b;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

START_TEST(nobody_to_pin_for) {
    lease l = begin();
    buffer b = take(&l, LARGE);
    buffer_pin(budget, &b);
    ck_assert(!b.pinned);
    lease_give(&l, &b);
    lease_end(&l);
}
END_TEST

START_TEST(stays_pinned_while_it_is_warm) {
    memory_on_pin(budget, pin, unpin);
    lease l = begin();
    buffer b = take(&l, LARGE), small = take(&l, 4096);
    void *const where = b.data;
    buffer_pin(budget, &small);
    buffer_pin(budget, &b);
    buffer_pin(budget, &b);
    ck_assert_int_eq(pinned.n, 1);
    lease_give(&l, &b);
    b = take(&l, LARGE);
    ck_assert_ptr_eq(b.data, where);
    ck_assert(b.pinned);
    buffer_pin(budget, &b);
    ck_assert_int_eq(pinned.n, 1);
    lease_give(&l, &b);
    lease_give(&l, &small);
    lease_end(&l);
}
END_TEST

START_TEST(refused) {
    memory_on_pin(budget, pin, unpin);
    pinned.refuses = true;
    lease l = begin();
    buffer b = take(&l, LARGE);
    buffer_pin(budget, &b);
    ck_assert(!b.pinned);
    lease_give(&l, &b);
    lease_end(&l);
}
END_TEST

/* Idle buffers go for want of a place among them, and for want of room. */
START_TEST(goes_unpinned) {
    memory_on_pin(budget, pin, unpin);
    lease l = begin();
    buffer held[32], all;
    for (size_t i = 0; i < 24; i++) {
        held[i] = take(&l, LARGE);
        buffer_pin(budget, &held[i]);
    }
    for (size_t i = 0; i < 24; i++) {
        lease_give(&l, &held[i]);
    }
    ck_assert_int_eq(pinned.n, 24);
    all = take(&l, LIMIT / 4 * 3);
    ck_assert_int_eq(pinned.n, 8);
    lease_give(&l, &all);
    for (size_t i = 0; i < 32; i++) {
        held[i] = take(&l, KEPT);
    }
    for (size_t i = 0; i < 32; i++) {
        lease_give(&l, &held[i]);
    }
    ck_assert_int_eq(pinned.n, 0);
    lease_end(&l);
}
END_TEST

/* What is used again in time stays, be there ever so many others. */
START_TEST(goes_when_nobody_needs_it) {
    memory_on_pin(budget, pin, unpin);
    lease l = begin();
    buffer many[6];
    for (int i = 0; i < 6; i++) {
        many[i] = take(&l, LARGE);
        buffer_pin(budget, &many[i]);
    }
    for (int i = 0; i < 6; i++) {
        lease_give(&l, &many[i]);
    }
    for (int round = 0; round < 4; round++) {
        memory_tend(budget);
        ck_assert_int_eq(pinned.n, round == 0 ? 6 : 1);
        buffer b = take(&l, LARGE);
        ck_assert(b.pinned);
        lease_give(&l, &b);
    }
    memory_tend(budget);
    memory_tend(budget);
    ck_assert_int_eq(pinned.n, 0);
    lease_end(&l);
}
END_TEST

/* Among the old ones, too, and whoever takes them for want of room. */
START_TEST(old_ones_may_go_otherwise) {
    memory_on_pin(budget, pin, unpin);
    lease l = begin();
    buffer a = take(&l, LARGE), b = take(&l, 2 * LARGE), all;
    buffer_pin(budget, &a);
    buffer_pin(budget, &b);
    lease_give(&l, &a);
    lease_give(&l, &b);
    memory_tend(budget);
    a = take(&l, LARGE); /* not the last one */
    ck_assert(a.pinned);
    lease_give(&l, &a);
    all = take(&l, LIMIT - 2 * LARGE); /* takes the old one's room */
    ck_assert_int_eq(pinned.n, 1);
    memory_tend(budget);
    ck_assert_int_eq(pinned.n, 1); /* the other one is not old yet */
    lease_give(&l, &all);
    memory_tend(budget);
    ck_assert_int_eq(pinned.n, 0);
    lease_end(&l);
}
END_TEST

/* A small one is the C library's. What it counted stays reserved, and is enough for another when the budget is full. */
START_TEST(small_ones_count_until_the_end) {
    lease l, rest;
    ck_assert(lease_begin(&l, budget, 8192));
    ck_assert(lease_begin(&rest, budget, LIMIT - 8192));
    for (int round = 0; round < 3; round++) {
        buffer a = take(&l, 4000), b = take(&l, 4096);
        ck_assert_uint_eq((uintptr_t)a.data % 64, 0);
        ck_assert_uint_eq(memory_used(budget), LIMIT);
        buffer more;
        ck_assert_int_eq(lease_take(&l, 1, &more), BX_BUSY);
        lease_give(&l, &a);
        lease_give(&l, &b);
        ck_assert_ptr_null(a.data);
        ck_assert_uint_eq(l.reserved, 8192);
        ck_assert_uint_eq(memory_used(budget), LIMIT);
    }
    lease_keep(&l, 100);
    ck_assert_uint_eq(memory_used(budget), LIMIT - 8192 + 100);
    lease_end(&l);
    lease_end(&rest);
    ck_assert_uint_eq(memory_used(budget), 0);
}
END_TEST

int main(void) {
    TCase *cases = tcase_create("memory");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, nobody_to_pin_for);
    tcase_add_test(cases, stays_pinned_while_it_is_warm);
    tcase_add_test(cases, refused);
    tcase_add_test(cases, goes_unpinned);
    tcase_add_test(cases, goes_when_nobody_needs_it);
    tcase_add_test(cases, old_ones_may_go_otherwise);
    tcase_add_test(cases, small_ones_count_until_the_end);
    Suite *suite = suite_create("memory");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
