/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps where the store is locked, full, damaged, not ours, or taken away: what is said of it, that it
 * is left as it is, and that it works again once it can.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "../support/recording.h"

static const history_options plain = {0};

static void put_many(const char *run, int64_t first, int64_t n) {
    static record records[500];
    for (int64_t i = 0; i < n; i += 500) {
        for (int64_t j = 0; j < 500; j++) {
            records[j] = make_record(run, first + i + j, (double)(first + i + j));
        }
        must_write_all(records, 500);
    }
}

/* ---- locked ------------------------------------------------------------------------------------------------------ */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void run_sql(sqlite3 *db, const char *sql) {
    ck_assert_msg(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK, "%s", sqlite3_errmsg(db));
}

START_TEST(locked_by_another) {
    sqlite3 *other;
    bx_error error[4] = {{0}};
    bool found, more;
    must_open(plain);
    must_put("a", 1, 1);
    ck_assert_int_eq(sqlite3_open(file, &other), SQLITE_OK);
    run_sql(other, "BEGIN IMMEDIATE");
    double begin = seconds();
    must_refuse(put("a", 2, 2, &error[0]), &error[0], "store_busy", "lock");
    ck_assert_double_gt(seconds() - begin, 1); /* it may be a matter of a moment */
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;");
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    run_sql(other, "COMMIT");
    must_put("a", 2, 2);
    run_sql(other, "BEGIN IMMEDIATE");
    history_hurry(h);
    begin = seconds();
    must_refuse(put("a", 3, 3, &error[1]), &error[1], "store_busy", "lock");
    must_refuse(history_delete(h, "a", &found, &error[2]), &error[2], "store_busy", "lock");
    must_refuse(history_tidy(h, &more, &error[3]), &error[3], "store_busy", "lock");
    ck_assert(!found);
    ck_assert(!more);
    ck_assert_double_lt(seconds() - begin, 1);
    run_sql(other, "COMMIT");
    must_put("a", 3, 3);
    ck_assert_str_eq(list("", 10), "a:3[1..3]=3;");
    sqlite3_close(other);
    close_history();
    must_be_consistent();
}
END_TEST

START_TEST(another_daemon_s) {
    bx_error error[4] = {{0}};
    bool more;
    history *early;
    data_dir *early_place;
    must_open(plain);
    early = h;
    early_place = place;
    must_open(plain);
    must_put("a", 1, 1);
    history *first = h;
    h = early;
    must_refuse(put("a", 2, 2, &error[0]), &error[0], "store_unavailable", "another daemon");
    ck_assert_int_eq(history_get_state(h), HISTORY_GONE);
    must_refuse(history_probe(h, &error[1]), &error[1], "store_unavailable", "another daemon");
    must_refuse(history_tidy(h, &more, &error[2]), &error[2], "store_unavailable", "another daemon");
    must_refuse(history_open(h, &error[3]), &error[3], "store_unavailable", directory);
    h = first;
    must_put("a", 2, 2);
    close_history();
    h = early;
    place = early_place;
    ck_assert_int_eq(history_probe(h, NULL), BX_OK);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    must_put("a", 3, 3);
    ck_assert_str_eq(list("", 10), "a:3[1..3]=3;");
    close_history();
}
END_TEST

/* The size of the log. */
static off_t log_bytes(void) {
    char log[160];
    struct stat state;
    snprintf(log, sizeof log, "%s-wal", file);
    ck_assert_int_eq(stat(log, &state), 0);
    return state.st_size;
}

/* As many results as are recorded at once, each of another run. */
static bx_status put_wide(int64_t step, bx_error *error) {
    static record records[256];
    for (int i = 0; i < 256; i++) {
        char run[16];
        snprintf(run, sizeof run, "run-%d", i);
        records[i] = make_record(run, step, (double)step);
    }
    return write_all(records, 256, error);
}

/* As many runs as are written at once, one step short of being sealed all together, with rows as long as they get. */
static void fill_runs(void) {
    bx_error error = {0};
    sqlite3 *other;
    must_open(plain);
    ck_assert_int_eq(put_wide(0, &error), BX_OK);
    close_history();
    ck_assert_int_eq(sqlite3_open(file, &other), SQLITE_OK);
    run_sql(other, "BEGIN; WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 510)"
                   " INSERT INTO step SELECT run, i, time_us"
#define PROTO_STEP(id, name, type) ", random()"
#include "step.def"
                   ", best_iou, notable FROM step, n;"
                   " UPDATE run SET steps = 511, unsealed = 511, last_step = 510,"
                   " last_loss = (SELECT total FROM step WHERE run = id AND step = 510); COMMIT");
    sqlite3_close(other);
    must_be_consistent();
}

/* What the log may grow to while it is kept leaves room for the largest transaction. */
START_TEST(R09_log_has_room_for_a_transaction) {
    sqlite3 *other;
    bx_error error = {0};
    int64_t step = 0;
    fill_runs();
    must_open(plain);
    ck_assert_int_eq(sqlite3_open(file, &other), SQLITE_OK);
    ck_assert_int_eq(put_wide(511, &error), BX_OK);
    const off_t largest = log_bytes();
    run_sql(other, "BEGIN; SELECT * FROM run");
    while (step < 20000 && put("a", step, 1, &error) == BX_OK) {
        step++;
    }
    ck_assert_int_lt(step, 20000);
    ck_assert_msg(log_bytes() + largest <= 64 << 20, "%ld + %ld bytes", (long)log_bytes(), (long)largest);
    sqlite3_close(other);
    close_history();
    must_be_consistent();
}
END_TEST

/* A reader in another process keeps the log from being emptied; it must not fill the disk. */
START_TEST(R09_log_kept_by_a_reader) {
    sqlite3 *other;
    bx_error error = {0};
    must_open(plain);
    must_put("a", 1, 1);
    ck_assert_int_eq(sqlite3_open(file, &other), SQLITE_OK);
    run_sql(other, "BEGIN; SELECT * FROM run");
    must_put("a", 2, 2); /* that snapshot is not the last one */
    int64_t step = 0;
    while (step < 1000 && put_wide(step, &error) == BX_OK) {
        step++;
        ck_assert_int_le(log_bytes(), 64 << 20);
    }
    must_refuse(put("a", 3, 3, &error), &error, "store_busy", "");
    ck_assert_int_gt(log_bytes(), 32 << 20); /* a backup that takes its time is no reason to refuse */
    ck_assert_int_gt(step, 10);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    run_sql(other, "COMMIT");
    must_put("a", 3, 3);
    ck_assert_int_lt(log_bytes(), 1 << 20);
    ck_assert_int_eq(put_wide(step, &error), BX_OK);
    sqlite3_close(other);
    close_history();
    must_be_consistent();
}
END_TEST

static void grow_log_and_put(void *context, const proto_step *step) {
    char log[160];
    (void)context;
    snprintf(log, sizeof log, "%s-wal", file);
    if (step->step == 1) {
        must_put("a", 3, 3); /* what is read is not the last snapshot */
        ck_assert_int_eq(truncate(log, (32 << 20) + 4096), 0);
    }
    must_put("a", 3 + step->step, 3);
}

/* Nor does a read of our own that takes long: whoever records does not wait for it, and the log is emptied behind it.
 */
START_TEST(R09_log_kept_by_a_long_read) {
    bx_error error = {0};
    told t = {0};
    int64_t next;
    must_open(plain);
    must_put("a", 1, 1);
    must_put("a", 2, 2);
    const history_steps wanted = {
        .run = "a", .after = -1, .limit = 10, .begin = told_begin, .each = grow_log_and_put, .context = &t};
    ck_assert_msg(history_read(h, &wanted, &next, &error) == BX_OK, "%s", error.text);
    ck_assert_int_lt(log_bytes(), 1 << 20);
    ck_assert_str_eq(list("", 10), "a:5[1..5]=3;");
    close_history();
    must_be_consistent();
}
END_TEST

/* ---- full -------------------------------------------------------------------------------------------------------- */

START_TEST(file_too_large) {
    struct rlimit limit;
    bx_error error[2] = {{0}};
    must_open(plain);
    must_put("a", 1, 1);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    const rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 50000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    record records[500];
    for (int i = 0; i < 500; i++) {
        records[i] = make_record("b", i, 1);
    }
    must_refuse(write_all(records, 500, &error[0]), &error[0], "store_full", "full");
    ck_assert_int_eq(history_get_state(h), HISTORY_FULL);
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;"); /* it can be read */
    must_refuse(write_all(records, 500, &error[1]), &error[1], "store_full", "full");
    limit.rlim_cur = before;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(history_probe(h, NULL), BX_OK);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    must_write_all(records, 500);
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;b:500[0..499]=1;");
    close_history();
    must_be_consistent();
}
END_TEST

/* Write until the disk is full: how many steps were acknowledged. */
static int64_t fill(const char *run, int64_t first, bx_error *error) {
    static record records[64];
    int64_t n = first;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            records[i] = make_record(run, n + i, 1);
        }
        if (write_all(records, 64, error) != BX_OK) {
            return n;
        }
        n += 64;
    }
}

/* On a disk of a few MiB: what was acknowledged stays, and something can be deleted even then. */
START_TEST(full_disk) {
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("none", directory, "tmpfs", 0, "size=6m")) {
        ck_assert_msg(errno == EPERM || errno == EACCES || errno == ENOSYS, "%s", strerror(errno));
        printf("full_disk: skipped, no file system can be mounted here\n");
        return;
    }
    bx_error error = {0};
    told t;
    must_open(plain);
    must_put("small", 1, 1);
    int64_t n = fill("a", 0, &error);
    for (int round = 0; round < 3; round++) {
        ck_assert_str_eq(error.code, "store_full");
        ck_assert_int_eq(history_get_state(h), HISTORY_FULL);
        ck_assert_int_gt(n, 1000);
        read_all(&t, "a");
        ck_assert_uint_eq(t.n, (size_t)n);
        told_free(&t);
        if (round == 1) {
            close_history(); /* it can be started so, too */
            must_open(plain);
        }
        must_delete("a");
        tidy_all();
        ck_assert_int_eq(history_probe(h, NULL), BX_OK);
        ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
        error = (bx_error){0};
        n = fill("a", 0, &error);
    }
    read_all(&t, "small");
    ck_assert_uint_eq(t.n, 1);
    told_free(&t);
    close_history();
    must_be_consistent();
    ck_assert_int_eq(umount2(directory, MNT_DETACH), 0);
}
END_TEST

/* ---- damaged, or not for us -------------------------------------------------------------------------------------- */

static size_t read_file(const char *path, char *out, size_t room) {
    int fd = open(path, O_RDONLY);
    const ssize_t n = fd < 0 ? 0 : read(fd, out, room);
    close(fd);
    ck_assert_int_ge(n, 0);
    return (size_t)n;
}

static void write_at(const char *path, const void *bytes, size_t n, off_t at) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, bytes, n, at), (ssize_t)n);
    close(fd);
}

/* Refused from the start, and left as it is. */
static void must_be_left_alone(history_state state, const char *text) {
    static char before[2][1 << 20], after[1 << 20];
    char log[160];
    bx_error error[4] = {{0}};
    bool found;
    snprintf(log, sizeof log, "%s-wal", file);
    const size_t n = read_file(file, before[0], sizeof *before), n_log = read_file(log, before[1], sizeof *before);
    must_refuse(open_in(directory, plain, &error[0]), &error[0], "store_unavailable", text);
    ck_assert_int_eq(history_get_state(h), state);
    ck_assert(history_exists(h));
    must_refuse(put("a", 1, 1, &error[1]), &error[1], "store_unavailable", text);
    must_refuse(history_delete(h, "a", &found, &error[2]), &error[2], "store_unavailable", text);
    must_refuse(history_probe(h, &error[3]), &error[3], "store_unavailable", text);
    ck_assert_int_eq(history_get_state(h), state);
    close_history();
    ck_assert_uint_eq(read_file(file, after, sizeof after), n);
    ck_assert_int_eq(memcmp(before[0], after, n), 0);
    ck_assert_uint_eq(read_file(log, after, sizeof after), n_log);
    ck_assert_int_eq(memcmp(before[1], after, n_log), 0);
}

START_TEST(not_a_database) {
    write_at(file, "this is not a database, however long it may be looked at, and it has to be long enough .......", 90,
             0);
    must_be_left_alone(HISTORY_BROKEN, "not a database");
}
END_TEST

START_TEST(damaged_header) {
    must_open(plain);
    put_many("a", 0, 1000);
    close_history();
    write_at(file, "garbage garbage garbage", 23, 0);
    must_be_left_alone(HISTORY_BROKEN, "not a database");
}
END_TEST

/* As a child that was killed leaves it: with a log. */
static void leave_a_log(void) {
    int ready[2];
    char byte;
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        must_open(plain);
        put_many("a", 0, 1000);
        must_put("a", 1000, 1);
        must_put("a", 1001, 1);
        if (write(ready[1], "x", 1) == 1) {
            pause();
        }
    }
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(ready[0]);
    close(ready[1]);
}

START_TEST(newer_version) {
    sqlite3 *db;
    must_open(plain);
    put_many("a", 0, 1000);
    close_history();
    ck_assert_int_eq(sqlite3_open(file, &db), SQLITE_OK);
    run_sql(db, "PRAGMA user_version=2");
    sqlite3_close(db);
    must_be_left_alone(HISTORY_NEWER, "newer version");
}
END_TEST

/* The newer version was killed, too. */
START_TEST(newer_version_with_a_log) {
    int ready[2];
    char byte;
    leave_a_log();
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        sqlite3 *db;
        sqlite3_open(file, &db);
        run_sql(db, "PRAGMA user_version=2");
        if (write(ready[1], "x", 1) == 1) {
            pause();
        }
    }
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    must_be_left_alone(HISTORY_NEWER, "newer version");
}
END_TEST

static void spoil(int from, int to) {
    char junk[4096];
    memset(junk, 0xa5, sizeof junk);
    for (int page = from; page < to; page++) {
        write_at(file, junk, sizeof junk, 4096L * page);
    }
}

/* The index of the run's rows; the row's own pages. */
START_TEST(damaged_pages) {
    char pages[256];
    must_open(plain);
    put_many("a", 0, 3000);
    close_history();
    query("PRAGMA page_count", pages);
    ck_assert_int_gt(atoi(pages), 60);
    spoil(_i ? 1 : 50, _i ? atoi(pages) : 51);
    must_be_left_alone(HISTORY_BROKEN, "malformed");
}
END_TEST

/* After it was opened: it is not called sound again before it is. */
START_TEST(damaged_meanwhile) {
    static char good[1 << 21];
    bx_error error[4] = {{0}};
    int64_t next;
    told t;
    must_open(plain);
    put_many("a", 0, 5000);
    close_history();
    const size_t n = read_file(file, good, sizeof good);
    ck_assert_uint_lt(n, sizeof good);
    must_open(plain);
    spoil(30, (int)(n / 4096));
    must_refuse(read_steps(&t, "a", -1, 10000, 0, &next, &error[0]), &error[0], "store_unavailable", "malformed");
    told_free(&t);
    ck_assert_int_eq(history_get_state(h), HISTORY_BROKEN);
    must_refuse(history_probe(h, &error[1]), &error[1], "store_unavailable", "malformed");
    ck_assert_int_eq(history_get_state(h), HISTORY_BROKEN);
    write_at(file, good, n, 0);
    ck_assert_int_eq(history_probe(h, NULL), BX_OK);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    must_put("a", 5000, 1);
    ck_assert_str_eq(list("", 10), "a:5001[0..5000]=1;");
    close_history();
    must_be_consistent();
}
END_TEST

START_TEST(without_its_tables) {
    sqlite3 *db;
    ck_assert_int_eq(sqlite3_open(file, &db), SQLITE_OK);
    run_sql(db, "PRAGMA journal_mode=WAL; PRAGMA user_version=1");
    sqlite3_close(db);
    must_be_left_alone(HISTORY_BROKEN, "");
}
END_TEST

static void *keep_reading(void *argument) {
    (void)argument;
    for (int i = 0; i < 100; i++) {
        bx_error error = {0};
        int64_t next;
        told t;
        must_refuse(read_steps(&t, "a", -1, 10000, 0, &next, &error), &error, "store_unavailable", "malformed");
        told_free(&t);
    }
    return NULL;
}

/* While one reads and fails, another one looks after it. */
START_TEST(damaged_for_two) {
    pthread_t reader;
    must_open(plain);
    put_many("a", 0, 5000);
    close_history();
    must_open(plain);
    spoil(30, 100);
    ck_assert_int_eq(pthread_create(&reader, NULL, keep_reading, NULL), 0);
    for (int i = 0; i < 100; i++) {
        bool more;
        (void)!history_probe(h, NULL);
        (void)!history_tidy(h, &more, NULL);
    }
    pthread_join(reader, NULL);
    ck_assert_int_eq(history_get_state(h), HISTORY_BROKEN);
    close_history();
}
END_TEST

/* What was not synced may be missing at the end, but nothing else. */
START_TEST(truncated_log) {
    struct stat state;
    char log[160];
    told t;
    leave_a_log();
    snprintf(log, sizeof log, "%s-wal", file);
    ck_assert_int_eq(stat(log, &state), 0);
    ck_assert_int_eq(truncate(log, state.st_size - 1000), 0);
    must_open(plain);
    read_all(&t, "a");
    ck_assert_uint_ge(t.n, 1001); /* but for the last one */
    ck_assert_uint_le(t.n, 1002);
    told_free(&t);
    must_put("a", 1002, 1);
    close_history();
    must_be_consistent();
}
END_TEST

START_TEST(empty_file) {
    write_at(file, "", 0, 0);
    must_open(plain);
    ck_assert_str_eq(list("", 10), "");
    must_put("a", 1, 1);
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;");
    close_history();
    must_be_consistent();
}
END_TEST

/* ---- not there, not ours ----------------------------------------------------------------------------------------- */

START_TEST(no_place_for_a_directory) {
    bx_error error[3] = {{0}};
    ck_assert_int_eq(open_in("/proc/lossd", plain, NULL), BX_OK);
    ck_assert_str_eq(list("", 10), "");
    must_refuse(put("a", 1, 1, &error[0]), &error[0], "store_unavailable", "data directory");
    ck_assert_int_eq(history_get_state(h), HISTORY_GONE);
    must_refuse(history_probe(h, &error[1]), &error[1], "store_unavailable", "data directory");
    close_history();
    write_at(file, "x", 1, 0);
    ck_assert_int_eq(open_in(file, plain, NULL), BX_OK); /* a file is in its place */
    must_refuse(put("a", 1, 1, &error[2]), &error[2], "store_unavailable", "");
    close_history();
}
END_TEST

START_TEST(a_directory_comes_into_being) {
    char deeper[2][128];
    bx_error error = {0};
    snprintf(deeper[0], sizeof *deeper, "%s/a", directory);
    snprintf(deeper[1], sizeof *deeper, "%s/a/b/", directory);
    ck_assert_int_eq(open_in(deeper[1], plain, NULL), BX_OK);
    must_refuse(put("a", 1, 1, &error), &error, "store_unavailable", "data directory");
    ck_assert_int_eq(mkdir(deeper[0], 0755), 0);
    ck_assert_int_eq(history_probe(h, NULL), BX_OK); /* without a restart */
    must_put("a", 1, 1);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;");
    close_history();
}
END_TEST

/* As a user whom permissions bind; the file, its directory, or both cannot be written. */
START_TEST(read_only) {
    bx_error error[4] = {{0}};
    bool found;
    must_open(plain);
    must_put("a", 1, 1);
    close_history();
    ck_assert_int_eq(chmod(file, _i & 1 ? 0444 : 0666), 0);
    ck_assert_int_eq(chmod(directory, _i & 2 ? 0555 : 0777), 0);
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0) {
            ck_assert_int_eq(setgid(65532), 0);
            ck_assert_int_eq(setuid(65532), 0);
        }
        must_refuse(open_in(directory, plain, &error[0]), &error[0], "store_unavailable", "");
        ck_assert_int_eq(history_get_state(h), HISTORY_READ_ONLY);
        must_refuse(put("a", 2, 2, &error[1]), &error[1], "store_unavailable", "");
        must_refuse(history_delete(h, "a", &found, &error[2]), &error[2], "store_unavailable", "");
        must_refuse(history_probe(h, &error[3]), &error[3], "store_unavailable", "");
        ck_assert_int_eq(history_get_state(h), HISTORY_READ_ONLY);
        if (!(_i & 2)) {
            ck_assert_str_eq(list("", 10), "a:1[1..1]=1;");
        }
        close_history();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(chmod(directory, 0755), 0);
    ck_assert_int_eq(chmod(file, 0644), 0);
    must_open(plain);
    must_put("a", 2, 2); /* it was a matter of permissions */
    ck_assert_str_eq(list("", 10), "a:2[1..2]=2;");
    close_history();
}
END_TEST

/* ---- taken away -------------------------------------------------------------------------------------------------- */

enum { MOVED, DELETED, REPLACED, WITHOUT_LOG, N_WAYS };

/* Nothing is written where nobody will find it. */
START_TEST(taken_away) {
    char other[160], log[160], copy[160], command[512];
    bx_error error[4] = {{0}};
    proto_run run;
    proto_step latest;
    char tag[HISTORY_TAG];
    must_open(plain);
    must_put("a", 1, 1);
    ck_assert_str_eq(list("", 10), "a:1[1..1]=1;"); /* a reader has it open, too */
    snprintf(other, sizeof other, "%s.old", file);
    snprintf(copy, sizeof copy, "%s.new", file);
    snprintf(log, sizeof log, "%s-wal", file);
    if (_i == REPLACED) {
        snprintf(command, sizeof command, "cp '%s' '%s'", file, copy);
        ck_assert_int_eq(system(command), 0);
        ck_assert_int_eq(rename(file, other), 0);
        ck_assert_int_eq(rename(copy, file), 0);
    } else {
        const char *from = _i == WITHOUT_LOG ? log : file;
        ck_assert_int_eq(_i == DELETED ? unlink(from) : rename(from, other), 0);
    }
    must_refuse(history_probe(h, &error[0]), &error[0], "store_unavailable", "moved or deleted");
    ck_assert_int_eq(history_get_state(h), HISTORY_GONE);
    must_refuse(put("a", 2, 2, &error[1]), &error[1], "store_unavailable", "moved or deleted");
    if (_i != WITHOUT_LOG) {
        must_refuse(history_describe(h, "a", &run, &latest, tag, &error[2]), &error[2], "store_unavailable",
                    "moved or deleted");
    }
    if (_i == MOVED || _i == WITHOUT_LOG) {
        ck_assert_int_eq(rename(other, _i == MOVED ? file : log), 0);
        ck_assert_int_eq(history_probe(h, NULL), BX_OK);
        must_put("a", 2, 2);
        ck_assert_str_eq(list("", 10), "a:2[1..2]=2;");
        close_history();
        must_be_consistent();
    } else {
        close_history();
    }
}
END_TEST

/* The whole directory; a new one is not mistaken for it. */
START_TEST(directory_taken_away) {
    char data[80], other[96];
    bx_error error = {0};
    snprintf(data, sizeof data, "%s/data", directory);
    snprintf(other, sizeof other, "%s/other", directory);
    ck_assert_int_eq(open_in(data, plain, NULL), BX_OK);
    must_put("a", 1, 1);
    ck_assert_int_eq(rename(data, other), 0);
    must_refuse(history_probe(h, &error), &error, "store_unavailable", "moved or deleted");
    ck_assert_int_eq(history_get_state(h), HISTORY_GONE);
    ck_assert_int_eq(rename(other, data), 0);
    must_put("a", 2, 2);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    close_history();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("history states");
    TCase *c = tcase_create("history states");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, locked_by_another);
    tcase_add_test(c, another_daemon_s);
    tcase_add_test(c, R09_log_has_room_for_a_transaction);
    tcase_add_test(c, R09_log_kept_by_a_reader);
    tcase_add_test(c, R09_log_kept_by_a_long_read);
    tcase_add_test(c, file_too_large);
    tcase_add_test(c, full_disk);
    tcase_add_test(c, not_a_database);
    tcase_add_test(c, damaged_header);
    tcase_add_test(c, newer_version);
    tcase_add_test(c, newer_version_with_a_log);
    tcase_add_loop_test(c, damaged_pages, 0, 2);
    tcase_add_test(c, damaged_meanwhile);
    tcase_add_test(c, without_its_tables);
    tcase_add_test(c, damaged_for_two);
    tcase_add_test(c, truncated_log);
    tcase_add_test(c, empty_file);
    tcase_add_test(c, no_place_for_a_directory);
    tcase_add_test(c, a_directory_comes_into_being);
    tcase_add_loop_test(c, read_only, 1, 4);
    tcase_add_loop_test(c, taken_away, 0, N_WAYS);
    tcase_add_test(c, directory_taken_away);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
