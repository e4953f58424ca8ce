/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps where the file system, the memory or the power fails: what was acknowledged is there afterwards,
 * what was refused is there as a whole or not at all, and nothing needs a restart.
 */
#include <signal.h>
#include <sys/wait.h>

#include "../support/failing.h"
#include "../support/power.h"
#include "../support/recording.h"

/* The log is copied into the database now and then, not only after thousands of rows. */
static int checkpoint_often(sqlite3 *db, const char **message, const struct sqlite3_api_routines *api) {
    (void)message;
    (void)api;
    return sqlite3_wal_autocheckpoint(db, 30);
}

static void use_checkpoints(void) {
    sqlite3_auto_extension((void (*)(void))checkpoint_often);
}

/* ---- the k-th call fails ----------------------------------------------------------------------------------------- */

enum { EACH = 66, BATCHES = 8 };

static long failing_at; /* for messages */

static bx_status put_batch(int64_t first, double total) {
    static record records[EACH];
    for (int i = 0; i < EACH; i++) {
        records[i] = make_record("r", first + i, total);
    }
    bx_error error = {0};
    bx_status status = write_all(records, EACH, &error);
    HOLDS(status == BX_OK || !strcmp(error.code, "store_unavailable") || !strcmp(error.code, "store_full") ||
              !strcmp(error.code, "store_busy") || !strcmp(error.code, "out_of_memory"),
          "%ld: %s: %s", failing_at, error.code, error.text);
    return status;
}

/* What was done, and whether that was acknowledged. */
typedef struct deeds {
    bool batches[BATCHES], replaced, other, deleted;
} deeds;

static void do_all(deeds *d) {
    bx_error error = {0};
    bool found = false, more;
    char seen[256] = "";
    *d = (deeds){0};
    for (int i = 0; i < BATCHES; i++) {
        d->batches[i] = put_batch(i * EACH, 1) == BX_OK;
        if (i == 1) { /* a reader comes and stays */
            (void)!history_list(h, "", 10, add_run, seen, NULL);
        }
    }
    d->replaced = put_batch(0, 2) == BX_OK; /* a part of a chunk */
    d->other = put("other", 1, 1, NULL) == BX_OK;
    d->deleted = history_delete(h, "other", &found, &error) == BX_OK && d->other;
    (void)!history_tidy(h, &more, NULL);
    (void)!history_probe(h, NULL);
    close_history();
    (void)!open_in(directory, (history_options){0}, NULL);
}

static void must_be_done(const deeds *d) {
    told t, other;
    read_all(&t, "r");
    for (int i = 0; i < BATCHES; i++) {
        size_t n = 0, old = 0;
        for (size_t k = 0; k < t.n; k++) {
            const record one = make_record("r", t.rows[k].step, 1), two = make_record("r", t.rows[k].step, 2);
            if (t.rows[k].step / EACH == i) {
                const bool as_first = same_step(&t.rows[k], &one.step);
                HOLDS(as_first || (i == 0 && same_step(&t.rows[k], &two.step)), "%ld: step %lld", failing_at,
                      (long long)t.rows[k].step);
                n++;
                old += as_first;
            }
        }
        HOLDS(n == EACH || (n == 0 && !d->batches[i]), "%ld: %zu rows of batch %d", failing_at, n, i);
        HOLDS(old == n || old == 0, "%ld: %zu old rows of batch %d", failing_at, old, i);
        HOLDS(i > 0 || !d->replaced || old == 0, "%ld: the old rows of batch %d", failing_at, i);
    }
    told_free(&t);
    read_all(&other, "other");
    HOLDS(!d->deleted || other.n == 0, "%ld: what was deleted is there", failing_at);
    told_free(&other);
}

/* False when it did not fail. */
static bool fail_at(long k) {
    deeds d;
    failing_at = k;
    setup();
    (void)!open_in(directory, (history_options){0}, NULL);
    countdown = k;
    fired = false;
    do_all(&d);
    countdown = -1;
    must_be_done(&d);
    HOLDS(put_batch(10000, 1) == BX_OK, "%ld: it works no more", k);
    HOLDS(history_get_state(h) == HISTORY_FINE, "%ld: its state is %d", k, history_get_state(h));
    must_be_done(&d);
    tidy_all();
    close_history();
    must_open((history_options){0});
    must_be_done(&d);
    close_history();
    must_be_consistent();
    teardown();
    return fired;
}

START_TEST(R04_every_call_fails) {
    static const int codes[] = {SQLITE_IOERR_WRITE, SQLITE_FULL, SQLITE_IOERR_FSYNC,
                                SQLITE_READONLY,    SQLITE_BUSY, SQLITE_CORRUPT};
    use_checkpoints();
    use_shim();
    failure = codes[_i / 2];
    for_ever = _i % 2;
    hurried = failure == SQLITE_BUSY;
    const bool dense = failure == SQLITE_IOERR_WRITE || failure == SQLITE_BUSY;
    long k = 1;
    while (fail_at(k)) {
        k += k < 60 && dense ? 2 : 7; /* what follows is like what came before */
    }
    ck_assert_int_gt(k, failure == SQLITE_BUSY ? 80 : 200); /* there are as many calls, or the shim is not in use */
}
END_TEST

START_TEST(R01_every_allocation_of_sqlite_fails) {
    use_failing_memory();
    for_ever = _i;
    long k = 1;
    while (fail_at(k)) {
        k += k < 100 ? 4 : 1 + k / 8;
    }
    ck_assert_int_gt(k, 1000);
}
END_TEST

/* ---- the power fails --------------------------------------------------------------------------------------------- */

enum { RUNS = 3, STEPS = 700, OPERATIONS = 60, MOST = 50, DEADLY = 14 };

/* Which version of each step there is; 0: none. */
typedef int32_t versions[RUNS][STEPS];

static versions now, then[OPERATIONS + 2]; /* `then`: as of each acknowledged operation */
static const char *const run_names[RUNS] = {"a", "b", "c"};

/* One more operation, by random_state; `now` is what comes of it. */
static bx_status operate(history_options options, int version) {
    static record records[MOST];
    const int what = below(12), run = below(RUNS), n = 1 + below(MOST), first = below(STEPS - MOST);
    bool found, more;
    if (what == 0) {
        memset(now[run], 0, sizeof now[run]);
        return history_delete(h, run_names[run], &found, NULL);
    }
    if (what == 1) {
        return history_tidy(h, &more, NULL);
    }
    if (what == 2) { /* a reader comes */
        char seen[512] = "";
        return history_list(h, "", 10, add_run, seen, NULL);
    }
    if (what == 3) {
        close_history();
        return open_in(directory, options, NULL);
    }
    for (int i = 0; i < n; i++) {
        const int step = what < 8 ? first + i : below(STEPS), to = what < 10 ? run : below(RUNS);
        records[i] = make_record(run_names[to], step, version);
        now[to][step] = version;
    }
    return write_all(records, (size_t)n, NULL);
}

/* Run until something fails: how many operations were acknowledged. */
static int operate_until_cut(history_options options) {
    memset(now, 0, sizeof now);
    (void)!open_in(directory, options, NULL);
    int n = 0;
    memcpy(then[0], now, sizeof now);
    while (n < OPERATIONS && operate(options, n + 1) == BX_OK) {
        memcpy(then[++n], now, sizeof now);
    }
    memcpy(then[n + 1], now, sizeof now); /* that of the one that failed */
    close_history();
    return n;
}

/* What there is. */
static void read_versions(versions v) {
    memset(v, 0, sizeof(versions));
    for (int i = 0; i < RUNS; i++) {
        told t;
        read_all(&t, run_names[i]);
        for (size_t k = 0; k < t.n; k++) {
            const proto_step *step = &t.rows[k];
            const record want = make_record(run_names[i], step->step, step->values[PROTO_STEP_TOTAL]);
            HOLDS(step->step < STEPS && same_step(step, &want.step), "step %lld", (long long)step->step);
            v[i][step->step] = (int32_t)step->values[PROTO_STEP_TOTAL];
        }
        told_free(&t);
    }
}

/* After how many operations it was like this; -1: never. */
static int look_up(const versions v, int n) {
    while (n >= 0 && memcmp(then[n], v, sizeof(versions)) != 0) {
        n--;
    }
    return n;
}

START_TEST(L05_power_cuts) {
    enum { CUTS = 100 };
    const history_options options = {.weak = _i};
    int lost = 0, whole = 0;
    use_checkpoints();
    use_power();
    setup();
    operate_until_cut(options);
    const int32_t calls = (int32_t)power.calls; /* another run makes about as many */
    power_leave(directory);
    teardown();
    for (int cut = 0; cut < CUTS; cut++) {
        versions found;
        char before[sizeof directory];
        const uint64_t seed = (uint64_t)(1000 * _i + cut);
        setup();
        random_state = seed;
        power.cut = below(calls);
        const int n = operate_until_cut(options);
        ck_assert_int_le(n, OPERATIONS);
        strcpy(before, directory);
        setup(); /* another directory */
        random_state = seed;
        power_leave(directory);
        use_no_power();
        bx_error error = {0};
        HOLDS(open_in(directory, options, &error) == BX_OK, "cut %d: %s", cut, error.text);
        read_versions(found);
        const int state = look_up(found, n + 1);
        HOLDS(state >= 0, "cut %d: it was never like this", cut);
        HOLDS(options.weak || state >= n || !memcmp(then[state], then[n], sizeof found),
              "cut %d: %d operations were acknowledged, but only %d are there", cut, n, state);
        lost += state < n;
        whole += n == OPERATIONS;
        must_put("new", 1, 1);
        tidy_all();
        close_history();
        must_be_consistent();
        teardown();
        strcpy(directory, before);
        teardown();
        sqlite3_vfs_register(&power.vfs, 1);
    }
    ck_assert(options.weak == (lost > 10)); /* or the power is never cut */
    ck_assert_int_lt(whole, CUTS / 4);
}
END_TEST

/* What is acknowledged in the weak mode survives the process at least. */
START_TEST(L03_killed) {
    const history_options options = {.weak = _i};
    use_checkpoints();
    for (int round = 0; round < 8; round++) {
        int ready[2], n = 0, got = 0;
        versions found;
        setup();
        ck_assert_int_eq(pipe(ready), 0);
        pid_t child = fork();
        if (child == 0) {
            random_state = (uint64_t)round;
            (void)!open_in(directory, options, NULL);
            for (n = 1; n <= OPERATIONS && operate(options, n) == BX_OK; n++) {
                (void)!write(ready[1], &n, sizeof n);
            }
            pause();
        }
        close(ready[1]);
        while (n < 5 + round * 6 && read(ready[0], &got, sizeof got) == sizeof got) {
            n = got;
        }
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(ready[0], &got, sizeof got) == sizeof got) {
            n = got;
        }
        close(ready[0]);
        ck_assert_int_ge(n, 5);

        char place_of_child[sizeof directory]; /* the same again, to know what must be there */
        strcpy(place_of_child, directory);
        setup();
        random_state = (uint64_t)round;
        memset(now, 0, sizeof now);
        (void)!open_in(directory, options, NULL);
        for (int i = 1; i <= n + 1 && i <= OPERATIONS; i++) {
            ck_assert_int_eq(operate(options, i), BX_OK);
            memcpy(then[i], now, sizeof now);
        }
        close_history();
        teardown();
        strcpy(directory, place_of_child);
        snprintf(file, sizeof file, "%s/lossd-runs.sqlite3", directory);
        must_open(options);
        read_versions(found);
        ck_assert(!memcmp(found, then[n], sizeof found) ||
                  (n < OPERATIONS && !memcmp(found, then[n + 1], sizeof found)));
        close_history();
        must_be_consistent();
        teardown();
    }
}
END_TEST

/* The child that dies in its k-th call, and what it had acknowledged; false: it did not die. */
static bool die_at(long k, int *acknowledged) {
    int told[2], n;
    *acknowledged = 0;
    ck_assert_int_eq(pipe(told), 0);
    const pid_t child = fork();
    if (child == 0) {
        random_state = 7;
        deadly = true;
        countdown = k;
        (void)!open_in(directory, (history_options){0}, NULL);
        for (n = 1; n <= DEADLY && operate((history_options){0}, n) == BX_OK; n++) {
            (void)!write(told[1], &n, sizeof n);
        }
        close_history();
        _exit(0);
    }
    close(told[1]);
    while (read(told[0], &n, sizeof n) == sizeof n) {
        *acknowledged = n;
    }
    close(told[0]);
    int status;
    waitpid(child, &status, 0);
    ck_assert(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

/* Killed in any call: while the tables are made, in the middle of a transaction, in its commit and right after it, in a
 * checkpoint, at the end. What was acknowledged is there; what was under way is there or not, and when it is done again
 * it is there once. */
START_TEST(L04_killed_in_every_call) {
    long k = 1;
    use_checkpoints();
    use_shim();
    setup();
    random_state = 7;
    memset(now, 0, sizeof now);
    must_open((history_options){0});
    memcpy(then[0], now, sizeof now);
    for (int n = 1; n <= DEADLY; n++) { /* to know what must be there */
        ck_assert_int_eq(operate((history_options){0}, n), BX_OK);
        memcpy(then[n], now, sizeof now);
    }
    close_history();
    teardown();
    for (bool died = true; died; k += k < 30 ? 1 : 7) { /* what follows is like what came before */
        versions found;
        int n;
        setup();
        died = die_at(k, &n);
        must_open((history_options){0});
        read_versions(found);
        const int state = look_up(found, n < DEADLY ? n + 1 : n);
        HOLDS(state >= n, "call %ld: %d operations were acknowledged, %d are there", k, n, state);
        random_state = 7;
        for (int i = 1; i <= DEADLY; i++) { /* again: each step replaces itself */
            ck_assert_int_eq(operate((history_options){0}, i), BX_OK);
        }
        read_versions(found);
        HOLDS(!memcmp(found, then[DEADLY], sizeof found), "call %ld: done again, it is not the same", k);
        close_history();
        must_be_consistent();
        teardown();
    }
    ck_assert_int_gt(k, 150);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("history faults");
    TCase *c = tcase_create("failing");
    tcase_set_timeout(c, 300);
    tcase_add_loop_test(c, R04_every_call_fails, 0, 12);
    tcase_add_loop_test(c, R01_every_allocation_of_sqlite_fails, 0, 2);
    tcase_add_loop_test(c, L05_power_cuts, 0, 2);
    tcase_add_loop_test(c, L03_killed, 0, 2);
    TCase *alone = tcase_create("L04");
    tcase_set_timeout(alone, 300);
    tcase_add_test(alone, L04_killed_in_every_call);
    suite_add_tcase(suite, alone);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
