/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: what it keeps, what it refuses, and that every call to the file system may fail.
 *
 * The k-th call that writes, syncs, resizes or opens fails (support/failing.h). What was acknowledged must be there
 * afterwards, whole; what was refused may be there or not, but never in part.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server.h"
#include "../support/failing.h"
#include "../support/suite.h"

/* ---- help -------------------------------------------------------------------------------------------------------- */

static char directory[64], file[96];

static void setup(void) {
    strcpy(directory, "/tmp/lossd-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(file, sizeof file, "%s/lossd.sqlite3", directory);
}

static void teardown(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

/* A store in a directory of its own, as a daemon has them. */
static struct {
    store *store;
    data_dir *directory;
} opened[4];

static store *open_in(const char *path) {
    size_t i = 0;
    while (opened[i].store) {
        i++;
    }
    opened[i].directory = data_dir_new(path);
    ck_assert_ptr_nonnull(opened[i].directory);
    opened[i].store = store_open(opened[i].directory);
    ck_assert_ptr_nonnull(opened[i].store);
    return opened[i].store;
}

static store *open_store(void) {
    return open_in(directory);
}

static void close_store(store *s) {
    size_t i = 0;
    while (opened[i].store != s) {
        i++;
    }
    store_close(s);
    data_dir_free(opened[i].directory);
    opened[i].store = NULL;
}

static bx_status put(store *s, const char *kind, const char *name, const char *body, bx_error *error) {
    return store_put(s, &(store_row){kind, name, "text/plain", body, strlen(body)}, error);
}

static void must_put(store *s, const char *kind, const char *name, const char *body) {
    bx_error error = {0};
    ck_assert_msg(put(s, kind, name, body, &error) == BX_OK, "%s", error.text);
}

static void must_refuse(bx_status status, const bx_error *error, const char *code, const char *text) {
    ck_assert_int_ne(status, BX_OK);
    ck_assert_int_eq(status, error->status);
    ck_assert_str_eq(error->code, code);
    ck_assert_msg(strstr(error->text, text) != NULL, "%s", error->text);
}

/* "kind/name=body;" of every row */
static void add_row(void *context, const store_row *row) {
    char *to = (char *)context + strlen(context);
    sprintf(to, "%s/%s=%.*s;", row->kind, row->name, (int)row->n_bytes, (const char *)row->bytes);
}

static const char *rows(store *s) {
    static char text[1 << 16];
    bx_error error = {0};
    *text = '\0';
    ck_assert_msg(store_each(s, add_row, text, &error) == BX_OK, "%s", error.text);
    return text;
}

/* By a connection of our own, which fails when the file is damaged. */
static void query(const char *sql, char out[256]) {
    sqlite3 *db;
    sqlite3_stmt *statement;
    ck_assert_int_eq(sqlite3_open(file, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(statement), SQLITE_ROW);
    snprintf(out, 256, "%s", (const char *)sqlite3_column_text(statement, 0));
    ck_assert_int_eq(sqlite3_finalize(statement), SQLITE_OK);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
}

static void must_answer(const char *sql, const char *want) {
    char got[256];
    query(sql, got);
    ck_assert_str_eq(got, want);
}

static void write_file(const char *text, size_t n) {
    int fd = open(file, O_WRONLY | O_CREAT, 0644);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, n), (ssize_t)n);
    close(fd);
}

/* ---- what it keeps ----------------------------------------------------------------------------------------------- */

START_TEST(test_nothing_is_made_for_nothing) {
    char deeper[80];
    bool found = true;
    bx_error error = {0};
    struct stat state;
    snprintf(deeper, sizeof deeper, "%s/data", directory);
    store *s = open_in(deeper);
    ck_assert_str_eq(rows(s), "");
    ck_assert_int_eq(store_delete(s, "a", "b", &found, &error), BX_OK);
    ck_assert(!found);
    ck_assert_int_eq(stat(deeper, &state), -1);
    must_put(s, "a", "b", "c");
    ck_assert_int_eq(stat(deeper, &state), 0);
    ck_assert_int_eq(state.st_mode & 0777, 0700);
    close_store(s);
}
END_TEST

START_TEST(test_rows) {
    store *s = open_store();
    bool found;
    must_put(s, "priors", "b", "1");
    must_put(s, "criterion", "b", "2");
    must_put(s, "priors", "a", "");
    ck_assert_str_eq(rows(s), "criterion/b=2;priors/a=;priors/b=1;");
    must_put(s, "priors", "b", "one");
    ck_assert_str_eq(rows(s), "criterion/b=2;priors/a=;priors/b=one;");
    ck_assert_int_eq(store_delete(s, "priors", "b", &found, NULL), BX_OK);
    ck_assert(found);
    ck_assert_int_eq(store_delete(s, "priors", "b", &found, NULL), BX_OK);
    ck_assert(!found);
    close_store(s);
    s = open_store();
    ck_assert_str_eq(rows(s), "criterion/b=2;priors/a=;");
    must_put(s, "priors", "c", "'; DROP TABLE definition; --");
    close_store(s);
    must_answer("PRAGMA journal_mode", "delete");
    must_answer("PRAGMA user_version", "1");
    must_answer("SELECT count(*) FROM definition", "3");
}
END_TEST

static char large[3 << 20];

static void compare_large(void *context, const store_row *row) {
    ck_assert_uint_eq(row->n_bytes, sizeof large);
    ck_assert_int_eq(memcmp(row->bytes, large, sizeof large), 0);
    ++*(int *)context;
}

START_TEST(test_large_binary_rows) {
    store *s = open_store();
    int n = 0;
    struct stat state;
    char name[112];
    for (size_t i = 0; i < sizeof large; i++) {
        large[i] = (char)(i * 2654435761u >> 13);
    }
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "%d", i % 2);
        ck_assert_int_eq(store_put(s, &(store_row){"k", name, "t", large, sizeof large}, NULL), BX_OK);
    }
    ck_assert_int_eq(store_each(s, compare_large, &n, NULL), BX_OK);
    ck_assert_int_eq(n, 2);
    snprintf(name, sizeof name, "%s-journal", file);
    ck_assert_int_eq(stat(name, &state), -1);
    ck_assert_int_eq(stat(file, &state), 0);
    ck_assert_int_le(state.st_size, 16 << 20);
    close_store(s);
}
END_TEST

START_TEST(test_killed_without_closing) {
    int ready[2];
    char byte;
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        store *s = open_store();
        must_put(s, "k", "a", "1");
        must_put(s, "k", "b", "2");
        ck_assert_int_eq(write(ready[1], "x", 1), 1);
        pause();
    }
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    store *s = open_store();
    ck_assert_str_eq(rows(s), "k/a=1;k/b=2;");
    close_store(s);
    must_answer("PRAGMA integrity_check", "ok");
}
END_TEST

/* ---- several at a time ------------------------------------------------------------------------------------------- */

enum { THREADS = 4, EACH = 25 };
static store *shared[THREADS];

static void *write_many(void *argument) {
    int me = *(int *)argument;
    for (int i = 0; i < EACH; i++) {
        char name[32];
        bx_error error = {0};
        snprintf(name, sizeof name, "%d-%d", me, i);
        bx_status status = BX_BUSY;
        for (int attempt = 0; attempt < 20 && status == BX_BUSY; attempt++) {
            error = (bx_error){0};
            status = put(shared[me], "k", name, "x", &error);
        }
        HOLDS(status == BX_OK, "%s", error.text);
    }
    return NULL;
}

static void write_together(void) {
    pthread_t threads[THREADS];
    int numbers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, write_many, &numbers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
}

START_TEST(test_one_store_many_threads) {
    store *s = open_store();
    for (int i = 0; i < THREADS; i++) {
        shared[i] = s;
    }
    write_together();
    close_store(s);
    must_answer("SELECT count(*) FROM definition", "100");
    must_answer("PRAGMA integrity_check", "ok");
}
END_TEST

/* As two daemons would: the second is told so, whenever it comes. */
START_TEST(test_a_directory_is_one_store_s) {
    store *early = open_store(), *s = open_store();
    bx_error error[4] = {{0}};
    bool found;
    ck_assert_int_eq(store_claim(early, NULL), BX_OK);
    ck_assert_int_eq(store_claim(s, NULL), BX_OK); /* there is nothing to claim */
    must_put(s, "k", "a", "1");
    must_refuse(put(early, "k", "b", "2", &error[0]), &error[0], "store_unavailable", "another daemon");
    must_refuse(store_delete(early, "k", "a", &found, &error[1]), &error[1], "store_unavailable", "another daemon");
    must_refuse(store_claim(early, &error[2]), &error[2], "store_unavailable", directory);
    must_refuse(store_each(early, add_row, NULL, &error[3]), &error[3], "store_unavailable", "another daemon");
    close_store(s);
    ck_assert_int_eq(store_claim(early, NULL), BX_OK);
    ck_assert_str_eq(rows(early), "k/a=1;");
    close_store(early);
}
END_TEST

START_TEST(test_locked_by_another) {
    store *s = open_store();
    sqlite3 *other;
    bx_error error = {0};
    must_put(s, "k", "a", "1");
    ck_assert_int_eq(sqlite3_open(file, &other), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    must_refuse(put(s, "k", "b", "2", &error), &error, "store_busy", "lock");
    ck_assert_str_eq(rows(s), "k/a=1;"); /* readers do not wait */
    ck_assert_int_eq(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    must_put(s, "k", "b", "2");
    ck_assert_int_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    store_hurry(s);
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    error = (bx_error){0};
    must_refuse(put(s, "k", "b", "3", &error), &error, "store_busy", "lock");
    clock_gettime(CLOCK_MONOTONIC, &end);
    ck_assert_int_le(end.tv_sec - begin.tv_sec, 1);
    ck_assert_int_eq(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(other);
    close_store(s);
}
END_TEST

/* ---- what it refuses --------------------------------------------------------------------------------------------- */

/* Neither read nor written, and left as it is. */
static void must_be_left_alone(const char *text) {
    static char before[1 << 16], after[1 << 16];
    bx_error error = {0}, again = {0};
    bool found;
    int fd = open(file, O_RDONLY);
    ssize_t n = read(fd, before, sizeof before);
    close(fd);
    store *s = open_store();
    must_refuse(store_each(s, add_row, NULL, &error), &error, "store_unavailable", text);
    must_refuse(put(s, "k", "a", "1", &again), &again, "store_unavailable", text);
    error = (bx_error){0};
    must_refuse(store_delete(s, "k", "a", &found, &error), &error, "store_unavailable", text);
    close_store(s);
    fd = open(file, O_RDONLY);
    ck_assert_int_eq(read(fd, after, sizeof after), n);
    close(fd);
    ck_assert_int_eq(memcmp(before, after, (size_t)n), 0);
}

START_TEST(test_newer_version) {
    store *s = open_store();
    must_put(s, "k", "a", "1");
    close_store(s);
    sqlite3 *db;
    ck_assert_int_eq(sqlite3_open(file, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db, "PRAGMA user_version=2", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    must_be_left_alone("newer version");
}
END_TEST

START_TEST(test_not_a_database) {
    write_file("this is not a database, however long it may be looked at, and it has to be long enough .......", 90);
    must_be_left_alone("not a database");
}
END_TEST

static void ignore_row(void *context, const store_row *row) {
    (void)context;
    (void)row;
}

START_TEST(test_damaged_pages) {
    store *s = open_store();
    char name[16];
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "%d", i);
        must_put(s, "k", name, "some text that fills pages, some text that fills pages, some text that fills pages");
    }
    close_store(s);
    struct stat state;
    ck_assert_int_eq(stat(file, &state), 0);
    char *junk = malloc((size_t)state.st_size - 4096);
    memset(junk, 0xa5, (size_t)state.st_size - 4096);
    int fd = open(file, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, junk, (size_t)state.st_size - 4096, 4096), state.st_size - 4096);
    close(fd);
    free(junk);
    bx_error error = {0};
    s = open_store();
    must_refuse(store_each(s, ignore_row, NULL, &error), &error, "store_unavailable", "malformed");
    close_store(s);
}
END_TEST

START_TEST(test_made_a_log_by_another) {
    store *s = open_store();
    char mode[256];
    must_put(s, "k", "a", "1");
    close_store(s);
    query("PRAGMA journal_mode=WAL", mode);
    ck_assert_str_eq(mode, "wal");
    s = open_store();
    must_put(s, "k", "b", "2");
    ck_assert_str_eq(rows(s), "k/a=1;k/b=2;");
    close_store(s);
    must_answer("PRAGMA journal_mode", "delete");
}
END_TEST

/* What cannot be read is not the same as nothing. */
START_TEST(test_without_its_table) {
    sqlite3 *db;
    bx_error error = {0};
    ck_assert_int_eq(sqlite3_open(file, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db, "PRAGMA user_version=1", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    store *s = open_store();
    must_refuse(store_each(s, ignore_row, NULL, &error), &error, "store_unavailable", "SQL");
    close_store(s);
}
END_TEST

START_TEST(test_empty_file) {
    write_file("", 0);
    store *s = open_store();
    ck_assert_str_eq(rows(s), "");
    must_put(s, "k", "a", "1");
    ck_assert_str_eq(rows(s), "k/a=1;");
    close_store(s);
}
END_TEST

START_TEST(test_no_place_for_a_directory) {
    bx_error error = {0};
    store *s = open_in("/proc/lossd");
    ck_assert_str_eq(rows(s), "");
    must_refuse(put(s, "k", "a", "1", &error), &error, "store_unavailable", "data directory");
    close_store(s);
    write_file("x", 1);
    s = open_in(file); /* a file is in its place */
    error = (bx_error){0};
    ck_assert_int_ne(put(s, "k", "a", "1", &error), BX_OK);
    ck_assert_str_eq(error.code, "store_unavailable");
    close_store(s);
}
END_TEST

/* As a user whom permissions bind. */
static void become_nobody(void) {
    if (geteuid() == 0) {
        ck_assert_int_eq(setgid(65532), 0);
        ck_assert_int_eq(setuid(65532), 0);
    }
}

START_TEST(test_read_only) {
    bx_error error = {0};
    store *s = open_store();
    must_put(s, "k", "a", "1");
    close_store(s);
    ck_assert_int_eq(chmod(file, 0444), 0);
    ck_assert_int_eq(chmod(directory, _i ? 0555 : 0777), 0);
    pid_t child = fork();
    if (child == 0) {
        become_nobody();
        s = open_store();
        ck_assert_str_eq(rows(s), "k/a=1;");
        must_refuse(put(s, "k", "b", "2", &error), &error, "store_unavailable", "read-only");
        ck_assert_str_eq(rows(s), "k/a=1;");
        close_store(s);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(chmod(directory, 0755), 0);
    ck_assert_int_eq(chmod(file, 0644), 0);
    s = open_store();
    must_put(s, "k", "b", "2"); /* it was a matter of permissions */
    ck_assert_str_eq(rows(s), "k/a=1;k/b=2;");
    close_store(s);
}
END_TEST

START_TEST(test_moved_away) {
    char other[112];
    bx_error error = {0};
    store *s = open_store();
    must_put(s, "k", "a", "1");
    snprintf(other, sizeof other, "%s.old", file);
    ck_assert_int_eq(rename(file, other), 0);
    must_refuse(put(s, "k", "b", "2", &error), &error, "store_unavailable", "moved or deleted");
    ck_assert_int_eq(rename(other, file), 0);
    must_put(s, "k", "b", "2");
    close_store(s);
    s = open_store();
    ck_assert_str_eq(rows(s), "k/a=1;k/b=2;");
    close_store(s);
}
END_TEST

START_TEST(test_full_disk) {
    static char body[200000];
    struct rlimit limit;
    store *s = open_store();
    bx_error error = {0};
    memset(body, 'x', sizeof body - 1);
    must_put(s, "k", "a", "1");
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 100000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    must_refuse(put(s, "k", "b", body, &error), &error, "store_full", "full");
    limit.rlim_cur = before;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_str_eq(rows(s), "k/a=1;");
    must_put(s, "k", "b", "2"); /* without a restart */
    close_store(s);
    must_answer("PRAGMA integrity_check", "ok");
}
END_TEST

/* ---- the file system fails --------------------------------------------------------------------------------------- */

/* From nothing to three rows, one of them replaced and one deleted, with the k-th call failing. False when it did not.
 */
static bool fail_at(long k) {
    bx_error error = {0};
    bool a, replaced, deleted, found = false;
    char want[256] = "";
    setup();
    store *s = open_store();
    if (failure == SQLITE_BUSY) {
        store_hurry(s); /* nobody waits for a lock */
    }
    countdown = k;
    fired = false;
    a = put(s, "k", "a", "1", &error) == BX_OK;
    bool b = put(s, "k", "b", "2", NULL) == BX_OK;
    replaced = put(s, "k", "a", "one", NULL) == BX_OK;
    deleted = store_delete(s, "k", "b", &found, NULL) == BX_OK && b;
    countdown = -1;
    if (!a) {
        HOLDS(!strcmp(error.code, "store_unavailable") || !strcmp(error.code, "store_full") ||
                  !strcmp(error.code, "store_busy") || !strcmp(error.code, "out_of_memory"),
              "%ld: %s", k, error.code);
    }
    for (int opened = 0; opened < 2; opened++) {
        const char *got = rows(s);
        HOLDS(!replaced || strstr(got, "k/a=one;"), "%ld: the replaced row is lost: %s", k, got);
        HOLDS(!a || strstr(got, "k/a="), "%ld: the first row is lost: %s", k, got);
        HOLDS(!deleted || !strstr(got, "k/b="), "%ld: a deleted row is there: %s", k, got);
        must_put(s, "k", "c", "3"); /* it works again */
        strcpy(want, rows(s));
        HOLDS(strstr(want, "k/c=3;"), "%ld: %s", k, want);
        if (opened == 0) {
            close_store(s);
            s = open_store();
        }
    }
    close_store(s);
    must_answer("PRAGMA integrity_check", "ok");
    teardown();
    return fired;
}

START_TEST(test_R04_every_call_fails) {
    static const int codes[] = {SQLITE_IOERR_WRITE, SQLITE_FULL, SQLITE_IOERR_FSYNC,
                                SQLITE_READONLY,    SQLITE_BUSY, SQLITE_CORRUPT};
    use_shim();
    failure = codes[_i];
    for (int ever = 0; ever < 2; ever++) {
        for_ever = ever;
        long k = 1;
        while (fail_at(k)) {
            k++;
        }
        ck_assert_int_gt(k, failure == SQLITE_BUSY ? 15 : 30); /* there are as many calls, or the shim is not in use */
    }
}
END_TEST

/* What has been answered survives the power. */
START_TEST(test_every_write_is_synced) {
    bool found;
    use_shim();
    store *s = open_store();
    for (int i = 0; i < 10; i++) {
        long before = syncs;
        must_put(s, "k", i % 2 ? "a" : "b", "1");
        ck_assert_int_gt(syncs, before);
    }
    long before = syncs;
    ck_assert_int_eq(store_delete(s, "k", "a", &found, NULL), BX_OK);
    ck_assert_int_gt(syncs, before);
    close_store(s);
}
END_TEST

/* What could not be synced is not there, not even for one who opens the file after a crash. */
START_TEST(test_refused_is_not_kept) {
    bx_error error = {0};
    int status;
    failure = SQLITE_IOERR_FSYNC;
    store *first = open_store();
    must_put(first, "k", "a", "1");
    close_store(first);
    pid_t child = fork();
    if (child == 0) {
        use_shim();
        store *s = open_store();
        ck_assert_str_eq(rows(s), "k/a=1;");
        for_ever = true;
        countdown = 1;
        must_refuse(put(s, "k", "lost", "2", &error), &error, "store_unavailable", "");
        kill(getpid(), SIGKILL);
    }
    waitpid(child, &status, 0);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    store *s = open_store();
    ck_assert_str_eq(rows(s), "k/a=1;");
    close_store(s);
    must_answer("PRAGMA integrity_check", "ok");
}
END_TEST

START_TEST(test_R01_every_allocation_of_sqlite_fails) {
    use_failing_memory();
    for_ever = _i;
    long k = 1;
    while (fail_at(k)) {
        k += k < 200 ? 1 : 13;
    }
    ck_assert_int_gt(k, 100);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *c = tcase_create("store");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_nothing_is_made_for_nothing);
    tcase_add_test(c, test_rows);
    tcase_add_test(c, test_large_binary_rows);
    tcase_add_test(c, test_killed_without_closing);
    tcase_add_test(c, test_one_store_many_threads);
    tcase_add_test(c, test_a_directory_is_one_store_s);
    tcase_add_test(c, test_locked_by_another);
    tcase_add_test(c, test_newer_version);
    tcase_add_test(c, test_not_a_database);
    tcase_add_test(c, test_damaged_pages);
    tcase_add_test(c, test_made_a_log_by_another);
    tcase_add_test(c, test_without_its_table);
    tcase_add_test(c, test_empty_file);
    tcase_add_test(c, test_no_place_for_a_directory);
    tcase_add_loop_test(c, test_read_only, 0, 2);
    tcase_add_test(c, test_moved_away);
    tcase_add_test(c, test_full_disk);
    tcase_add_test(c, test_every_write_is_synced);
    tcase_add_test(c, test_refused_is_not_kept);
    suite_add_tcase(suite, c);
    TCase *failing = tcase_create("failing file system");
    tcase_set_timeout(failing, 300);
    tcase_add_loop_test(failing, test_R04_every_call_fails, 0, 6);
    tcase_add_loop_test(failing, test_R01_every_allocation_of_sqlite_fails, 0, 2);
    suite_add_tcase(suite, failing);
    return suite_run(suite);
}
