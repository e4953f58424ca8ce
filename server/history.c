/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps in a SQLite database with a write-ahead log: one connection writes, another one reads.
 *
 * A long run is drawn from few of its rows. Steps are sealed in chunks of CHUNK rows: of a sealed chunk only the rows
 * are notable that are a minimum or a maximum of one of the charted values; all others are, as every row is at first.
 * So the minima and maxima of all notable rows are those of all rows, whatever is replaced or comes late, and an index
 * holds the notable ones only. A run that is deleted loses its name; its rows go bit by bit (history_tidy).
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "database.h"

#define CHUNK         256 /* rows */
#define N_CHARTED     6
#define N_EXTREMES    (2 * N_CHARTED)
#define SLICE         500                 /* rows deleted at a time; their pages, in the log, fit in half of SPARE */
#define SPARE         ((size_t)256 << 10) /* bytes of the disk for deletions */
#define RECORD_BYTES  1024                /* of a record in the log, roughly */
#define LOG_LIMIT     ((off_t)64 << 20)   /* then it is emptied, as soon as nobody reads */
#define LOG_MOST      ((off_t)256 << 20)  /* a reader has kept it from being emptied for too long */
#define CHECK_LIMIT   ((off_t)64 << 20)   /* a larger file is not read through at the start */
#define CANCEL_PERIOD 10000               /* instructions of SQLite's machine */
#define US_PER_DAY    (86400LL * 1000000)
#define KEEP_SLACK    16 /* a run may have a sixteenth more than it is to keep, CHUNK at most */
#define COLUMNS       (2 + PROTO_N_STEP + 1)

struct history {
    history_options options;
    pthread_mutex_t writing; /* the first database; the second one is the reading thread's */
    database writer, reader;
    atomic_int fault; /* database_fault */
    atomic_bool exists;
};

/* ---- schema and statements --------------------------------------------------------------------------------------- */

static const char *const migrations[] = {
    "CREATE TABLE run (id INTEGER PRIMARY KEY, name TEXT UNIQUE, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,"
    " steps INTEGER NOT NULL, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, last_loss REAL,"
    " sealed INTEGER NOT NULL, unsealed INTEGER NOT NULL, revision INTEGER NOT NULL);"
    "CREATE TABLE step (run INTEGER NOT NULL, step INTEGER NOT NULL, time_us INTEGER NOT NULL,"
#define PROTO_STEP(id, name, type) " " #name " " #type ","
#include "step.def"
    " best_iou BLOB, notable INTEGER NOT NULL, PRIMARY KEY (run, step)) WITHOUT ROWID;"
    "CREATE INDEX notable_step ON step (run, step) WHERE notable = 1;"
    "CREATE TABLE chunk (run INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,"
    " PRIMARY KEY (run, first)) WITHOUT ROWID",
};

#define STEP_COLUMNS                                                                                                   \
    "step, time_us, total, loc, conf, conf_positive, conf_negative, images, objects, positives, negatives, "           \
    "hard_negatives, forced, unmatched_objects, best_iou_mean, compute_ms, best_iou"
#define RUN_COLUMNS "id, name, first_us, last_us, steps, first_step, last_step, last_loss, sealed, unsealed, revision"
#define CHARTED     "total, loc, conf, positives, unmatched_objects, best_iou_mean"
#define EXTREMES    "(step IN (?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15))"

enum {
    FIND_RUN,
    ADD_RUN,
    UPDATE_RUN,
    FIND_STEP,
    PUT_STEP,
    READ_CHARTED,
    MARK_NOTABLE,
    FIND_CHUNK,
    ADD_CHUNK,
    NTH_AFTER,
    COUNT_AFTER,
    FIRST_STEP,
    DELETE_UP_TO,
    DELETE_CHUNKS,
    CUT_CHUNK,
    FORGET_RUN,
    FORGET_OLD,
    FIND_FORGOTTEN,
    DELETE_RUN,
    FIND_LONG,
    LIST_RUNS,
    READ_STEP,
    READ_STEPS,
    READ_NOTABLE,
    N_STATEMENTS
};

static const char *const sql[] = {
    [FIND_RUN] = "SELECT " RUN_COLUMNS " FROM run WHERE name = ?1",
    [ADD_RUN] = "INSERT INTO run (" RUN_COLUMNS ") VALUES (NULL, ?1, ?2, ?2, 0, ?3, ?3, NULL, -1, 0, 0)",
    [UPDATE_RUN] = "UPDATE run SET last_us = ?2, steps = ?3, first_step = ?4, last_step = ?5, last_loss = ?6,"
                   " sealed = ?7, unsealed = ?8, revision = ?9 WHERE id = ?1",
    [FIND_STEP] = "SELECT 1 FROM step WHERE run = ?1 AND step = ?2",
    [PUT_STEP] = "REPLACE INTO step (" STEP_COLUMNS ", run, notable)"
                 " VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,1)",
    [READ_CHARTED] = "SELECT step, " CHARTED " FROM step WHERE run = ?1 AND step BETWEEN ?2 AND ?3",
    [MARK_NOTABLE] =
        "UPDATE step SET notable = " EXTREMES " WHERE run = ?1 AND step BETWEEN ?2 AND ?3 AND notable <> " EXTREMES,
    [FIND_CHUNK] = "SELECT first, last FROM chunk WHERE run = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1",
    [ADD_CHUNK] = "INSERT INTO chunk (run, first, last) VALUES (?1, ?2, ?3)",
    [NTH_AFTER] = "SELECT step FROM step WHERE run = ?1 AND step > ?2 ORDER BY step LIMIT 1 OFFSET ?3",
    [COUNT_AFTER] = "SELECT count(*) FROM step WHERE run = ?1 AND step > ?2",
    [FIRST_STEP] = "SELECT min(step) FROM step WHERE run = ?1",
    [DELETE_UP_TO] = "DELETE FROM step WHERE run = ?1 AND step <= ?2",
    [DELETE_CHUNKS] = "DELETE FROM chunk WHERE run = ?1 AND last <= ?2",
    [CUT_CHUNK] = "UPDATE chunk SET first = ?2 WHERE run = ?1 AND first < ?2 AND last >= ?2",
    [FORGET_RUN] = "UPDATE run SET name = NULL WHERE name = ?1",
    [FORGET_OLD] = "UPDATE run SET name = NULL WHERE name IS NOT NULL AND last_us < ?1",
    [FIND_FORGOTTEN] = "SELECT id FROM run WHERE name IS NULL LIMIT 1",
    [DELETE_RUN] = "DELETE FROM run WHERE id = ?1",
    [FIND_LONG] = "SELECT " RUN_COLUMNS " FROM run WHERE name IS NOT NULL AND steps >= ?1 LIMIT 1",
    [LIST_RUNS] = "SELECT " RUN_COLUMNS " FROM run WHERE name > ?1 ORDER BY name LIMIT ?2",
    [READ_STEP] = "SELECT " STEP_COLUMNS " FROM step WHERE run = ?1 AND step = ?2",
    [READ_STEPS] = "SELECT " STEP_COLUMNS " FROM step WHERE run = ?1 AND step > ?2 ORDER BY step LIMIT ?3",
    [READ_NOTABLE] = "SELECT " STEP_COLUMNS " FROM step INDEXED BY notable_step"
                     " WHERE run = ?1 AND notable = 1 AND step > ?2 ORDER BY step LIMIT ?3",
};

_Static_assert(N_STATEMENTS < MOST_STATEMENTS, "a place for each");

static const database_kind kind = {.file = "lossd-runs.sqlite3",
                                   .migrations = migrations,
                                   .version = sizeof migrations / sizeof *migrations,
                                   .log = true,
                                   .sql = sql,
                                   .spare = SPARE};

/* Prepare a statement and bind so many integers to it. */
static int bind(database *d, int which, sqlite3_stmt **out, int n, const int64_t *values) {
    int rc = database_prepare(d, which, out);
    for (int i = 0; rc == SQLITE_OK && i < n; i++) {
        rc = sqlite3_bind_int64(*out, i + 1, values[i]);
    }
    return rc;
}
#define BIND(d, which, out, ...)                                                                                       \
    bind(d, which, out, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (const int64_t[]){__VA_ARGS__})

/* Step a statement that was bound with this code, and reset it: SQLITE_OK or what failed. */
static int run_bound(int rc, sqlite3_stmt *statement) {
    if (rc == SQLITE_OK) {
        sqlite3_step(statement);
        rc = sqlite3_reset(statement); /* the step's own code */
    }
    return rc;
}

/* The same of one that answers one integer; *found: whether it did. */
static int read_bound(int rc, sqlite3_stmt *statement, int64_t *value, bool *found) {
    *found = false;
    if (rc == SQLITE_OK) {
        *found = sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_type(statement, 0) != SQLITE_NULL;
        *value = *found ? sqlite3_column_int64(statement, 0) : *value;
        rc = sqlite3_reset(statement);
    }
    return rc;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* A run as it is kept. */
typedef struct run {
    proto_run told;
    int64_t id;               /* 0: there is none */
    int64_t sealed, unsealed; /* the last sealed step; rows after it, at least */
    int64_t revision;
} run;

/* What is not known is NULL. */
static double take_real(sqlite3_stmt *s, int column) {
    return sqlite3_column_type(s, column) == SQLITE_NULL ? (double)NAN : sqlite3_column_double(s, column);
}

static void take_run(sqlite3_stmt *s, run *r) {
    const unsigned char *name = sqlite3_column_text(s, 1);
    *r = (run){.id = sqlite3_column_int64(s, 0),
               .told = {.first_us = sqlite3_column_int64(s, 2),
                        .last_us = sqlite3_column_int64(s, 3),
                        .steps = sqlite3_column_int64(s, 4),
                        .first_step = sqlite3_column_int64(s, 5),
                        .last_step = sqlite3_column_int64(s, 6),
                        .last_loss = take_real(s, 7)},
               .sealed = sqlite3_column_int64(s, 8),
               .unsealed = sqlite3_column_int64(s, 9),
               .revision = sqlite3_column_int64(s, 10)};
    copy_text(r->told.name, sizeof r->told.name, name ? (const char *)name : "");
}

static int find_run(database *d, const char *name, run *r) {
    sqlite3_stmt *s;
    *r = (run){0};
    int rc = database_prepare(d, FIND_RUN, &s);
    rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC) : rc;
    if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        take_run(s, r);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

static void take_step(sqlite3_stmt *s, proto_step *step) {
    *step = (proto_step){.step = sqlite3_column_int64(s, 0), .time_us = sqlite3_column_int64(s, 1)};
    for (int i = 0; i < PROTO_N_STEP; i++) {
        step->values[i] = take_real(s, 2 + i);
    }
    const void *bins = sqlite3_column_blob(s, 2 + PROTO_N_STEP);
    step->has_objects = bins && sqlite3_column_bytes(s, 2 + PROTO_N_STEP) == sizeof step->best_iou;
    if (step->has_objects) {
        memcpy(step->best_iou, bins, sizeof step->best_iou);
    }
}

static int put_step(database *d, int64_t id, const proto_step *step) {
    static const bool real[] = {
#define REAL                       true
#define INTEGER                    false
#define PROTO_STEP(id, name, type) type,
#include "step.def"
#undef REAL
#undef INTEGER
    };
    sqlite3_stmt *s;
    int rc = BIND(d, PUT_STEP, &s, step->step, step->time_us);
    for (int i = 0; rc == SQLITE_OK && i < PROTO_N_STEP; i++) {
        const double value = step->values[i];
        rc = isnan(value) ? sqlite3_bind_null(s, 3 + i)
             : real[i]    ? sqlite3_bind_double(s, 3 + i, value)
                          : sqlite3_bind_int64(s, 3 + i, (int64_t)value);
    }
    if (rc == SQLITE_OK) {
        rc = step->has_objects ? sqlite3_bind_blob(s, COLUMNS, step->best_iou, sizeof step->best_iou, SQLITE_STATIC)
                               : sqlite3_bind_null(s, COLUMNS);
    }
    rc = rc == SQLITE_OK ? sqlite3_bind_int64(s, COLUMNS + 1, id) : rc;
    return run_bound(rc, s);
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */

/* The values whose minima and maxima are kept. */
static const int charted[N_CHARTED] = {
    PROTO_STEP_TOTAL,        PROTO_STEP_LOC, PROTO_STEP_CONF, PROTO_STEP_POSITIVES, PROTO_STEP_UNMATCHED_OBJECTS,
    PROTO_STEP_BEST_IOU_MEAN};

/* Mark the minima and maxima of the rows from `first` to `last` as notable, and no others. */
static int seal(database *d, int64_t id, int64_t first, int64_t last) {
    double most[N_EXTREMES]; /* maxima, and minima times -1 */
    int64_t steps[N_EXTREMES];
    sqlite3_stmt *s;
    for (int i = 0; i < N_EXTREMES; i++) {
        steps[i] = -1;
    }
    int rc = BIND(d, READ_CHARTED, &s, id, first, last);
    while (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        for (int i = 0; i < N_EXTREMES; i++) {
            if (sqlite3_column_type(s, 1 + i / 2) == SQLITE_NULL) {
                continue;
            }
            const double value = sqlite3_column_double(s, 1 + i / 2) * (i % 2 ? -1 : 1);
            if (steps[i] < 0 || value > most[i]) {
                most[i] = value;
                steps[i] = sqlite3_column_int64(s, 0);
            }
        }
    }
    rc = rc == SQLITE_OK ? sqlite3_reset(s) : rc;
    rc = rc == SQLITE_OK ? BIND(d, MARK_NOTABLE, &s, id, first, last) : rc;
    for (int i = 0; rc == SQLITE_OK && i < N_EXTREMES; i++) {
        rc = sqlite3_bind_int64(s, 4 + i, steps[i]);
    }
    return run_bound(rc, s);
}

/* The chunk in which this step lies; where there is none *last is not more than that. */
static int find_chunk(database *d, int64_t id, int64_t step, int64_t *first, int64_t *last) {
    sqlite3_stmt *s;
    *first = *last = -1;
    int rc = BIND(d, FIND_CHUNK, &s, id, step);
    if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        *first = sqlite3_column_int64(s, 0);
        *last = sqlite3_column_int64(s, 1);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

/* A row of a sealed chunk has changed. */
static int seal_again(database *d, int64_t id, int64_t step) {
    int64_t first, last;
    int rc = find_chunk(d, id, step, &first, &last);
    return rc == SQLITE_OK && step <= last ? seal(d, id, first, last) : rc;
}

/* Seal what is behind the last chunk, as long as so much follows that hardly a row will still come late. */
static int seal_more(database *d, run *r) {
    int rc = SQLITE_OK;
    while (rc == SQLITE_OK && r->unsealed >= 2 * CHUNK) {
        sqlite3_stmt *s;
        int64_t first = 0, last = 0;
        bool begins = false, ends = false;
        rc = BIND(d, NTH_AFTER, &s, r->id, r->sealed, 0);
        rc = read_bound(rc, s, &first, &begins);
        if (rc == SQLITE_OK) {
            rc = BIND(d, NTH_AFTER, &s, r->id, r->sealed, CHUNK - 1);
            rc = read_bound(rc, s, &last, &ends);
        }
        if (rc == SQLITE_OK && !(begins && ends)) { /* rows were deleted since they were counted */
            rc = BIND(d, COUNT_AFTER, &s, r->id, r->sealed);
            return read_bound(rc, s, &r->unsealed, &ends);
        }
        if (rc == SQLITE_OK) {
            rc = BIND(d, ADD_CHUNK, &s, r->id, first, last);
            rc = run_bound(rc, s);
        }
        rc = rc == SQLITE_OK ? seal(d, r->id, first, last) : rc;
        r->sealed = last;
        r->unsealed -= CHUNK;
    }
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int update_run(database *d, const run *r) {
    sqlite3_stmt *s;
    const proto_run *t = &r->told;
    int rc = BIND(d, UPDATE_RUN, &s, r->id, t->last_us, t->steps, t->first_step, t->last_step, 0, r->sealed,
                  r->unsealed, r->revision);
    rc = rc == SQLITE_OK ? sqlite3_bind_double(s, 6, t->last_loss) : rc;
    return run_bound(rc, s);
}

static int64_t slack(const history *h) {
    const int64_t part = h->options.keep_steps / KEEP_SLACK;
    return part < 1 ? 1 : part < CHUNK ? part : CHUNK;
}

/* Delete the lowest steps of a run that has too many, SLICE at most. */
static int trim(history *h, run *r) {
    database *d = &h->writer;
    sqlite3_stmt *s;
    const int64_t many = r->told.steps - h->options.keep_steps, n = many < SLICE ? many : SLICE;
    int64_t cut = -1;
    bool found;
    int rc = BIND(d, NTH_AFTER, &s, r->id, -1, n - 1);
    rc = read_bound(rc, s, &cut, &found);
    rc = rc == SQLITE_OK ? BIND(d, DELETE_UP_TO, &s, r->id, cut) : rc;
    rc = run_bound(rc, s);
    r->told.steps -= rc == SQLITE_OK ? sqlite3_changes(d->db) : 0;
    rc = rc == SQLITE_OK ? BIND(d, DELETE_CHUNKS, &s, r->id, cut) : rc;
    rc = run_bound(rc, s);
    rc = rc == SQLITE_OK ? BIND(d, CUT_CHUNK, &s, r->id, cut + 1) : rc;
    rc = run_bound(rc, s);
    rc = rc == SQLITE_OK ? seal_again(d, r->id, cut + 1) : rc;
    rc = rc == SQLITE_OK ? BIND(d, FIRST_STEP, &s, r->id) : rc;
    r->revision++;
    return read_bound(rc, s, &r->told.first_step, &found);
}

static bool is_long(const history *h, const run *r) {
    return h->options.keep_steps > 0 && r->told.steps >= h->options.keep_steps + slack(h);
}

static int find_or_add(database *d, const record *record, run *r) {
    sqlite3_stmt *s;
    const proto_step *step = &record->step;
    int rc = find_run(d, record->run, r);
    if (rc != SQLITE_OK || r->id) {
        return rc;
    }
    rc = BIND(d, ADD_RUN, &s, 0, step->time_us, step->step);
    rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, record->run, -1, SQLITE_STATIC) : rc;
    rc = run_bound(rc, s);
    return rc == SQLITE_OK ? find_run(d, record->run, r) : rc;
}

static int write_record(history *h, const record *record) {
    database *d = &h->writer;
    const proto_step *step = &record->step;
    sqlite3_stmt *s;
    run r;
    int64_t one;
    bool known = false;
    int rc = find_or_add(d, record, &r);
    rc = rc == SQLITE_OK ? BIND(d, FIND_STEP, &s, r.id, step->step) : rc;
    rc = rc == SQLITE_OK ? read_bound(rc, s, &one, &known) : rc;
    rc = rc == SQLITE_OK ? put_step(d, r.id, step) : rc;
    if (rc != SQLITE_OK) {
        return rc;
    }
    proto_run *t = &r.told;
    t->last_us = step->time_us;
    t->steps += !known;
    t->first_step = step->step < t->first_step ? step->step : t->first_step;
    if (step->step >= t->last_step) {
        t->last_step = step->step;
        t->last_loss = step->values[PROTO_STEP_TOTAL];
    }
    r.revision++;
    if (step->step > r.sealed) {
        r.unsealed += !known;
        rc = seal_more(d, &r);
    } else if (known) {
        rc = seal_again(d, r.id, step->step);
    }
    if (rc == SQLITE_OK && is_long(h, &r)) {
        rc = trim(h, &r);
    }
    return rc == SQLITE_OK ? update_run(d, &r) : rc;
}

/* What the last call has come to, for whoever asks. Damage that another thread has seen meanwhile is not covered. */
static bx_status note(history *h, const database *d, bx_status status) {
    int known = atomic_load(&h->fault);
    if (status == BX_OK) {
        atomic_store(&h->exists, true);
    }
    if (status == BX_OK || status == BX_BUSY) {
        const int fault = status == BX_OK ? DATABASE_FINE : (int)d->fault;
        while (known != DATABASE_DAMAGED && !atomic_compare_exchange_weak(&h->fault, &known, fault)) {
        }
    }
    return status;
}

static int stat_log(const history *h, struct stat *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s-wal", h->writer.file);
    return stat(path, file);
}

/* Readers can keep the log from being emptied: ours for as long as they read, those of other processes for ever; then
 * nothing more is written into it. Nor when it is not where the next one to open the database will look for it. */
static bx_status check_log(history *h, bx_error *error) {
    database *d = &h->writer;
    struct stat file;
    if (stat_log(h, &file)) {
        return errno == ENOENT ? database_moved(d, error) : BX_OK;
    }
    if (file.st_size <= LOG_LIMIT) {
        return BX_OK;
    }
    int rc = database_empty_log(d);
    const bool later = (rc & 0xff) == SQLITE_BUSY && file.st_size <= LOG_MOST;
    return rc == SQLITE_OK || later ? BX_OK : database_failed(d, rc, error);
}

/* What was found damaged stays so until a probe finds it sound. */
static bx_status open_writer(history *h, bx_error *error) {
    database *d = &h->writer;
    database_begin(d);
    bx_status status = database_open(d, true, error);
    if (status == BX_OK && atomic_load(&h->fault) == DATABASE_DAMAGED) {
        status = database_failed(d, SQLITE_CORRUPT, error);
    }
    return status == BX_OK ? check_log(h, error) : status;
}

static bx_status begin(history *h, size_t bytes, bx_error *error) {
    database *d = &h->writer;
    bx_status status = open_writer(h, error);
    if (status == BX_OK) {
        const bx_status room = database_check_room(d, bytes, bytes > 0 ? error : NULL);
        status = bytes > 0 ? room : BX_OK; /* what deletes may still find enough */
    }
    if (status == BX_OK) {
        int rc = database_run(d, "BEGIN IMMEDIATE");
        status = rc == SQLITE_OK ? BX_OK : database_failed(d, rc, error);
    }
    return status;
}

/* Commit, or undo what was begun. */
static bx_status end(history *h, int rc, bx_error *error) {
    database *d = &h->writer;
    rc = rc == SQLITE_OK ? database_run(d, "COMMIT") : rc;
    if (rc == SQLITE_OK) {
        return BX_OK;
    }
    if (!sqlite3_get_autocommit(d->db)) {
        const int cause = errno;
        database_run(d, "ROLLBACK");
        errno = cause;
    }
    return database_failed(d, rc, error);
}

bx_status history_write(history *h, const record *const *records, size_t n, bx_error *error) {
    pthread_mutex_lock(&h->writing);
    bx_status status = begin(h, n * RECORD_BYTES, error);
    if (status == BX_OK) {
        int rc = SQLITE_OK;
        for (size_t i = 0; rc == SQLITE_OK && i < n; i++) {
            rc = write_record(h, records[i]);
        }
        status = end(h, rc, error);
    }
    note(h, &h->writer, status);
    pthread_mutex_unlock(&h->writing);
    return status;
}

static bool is_there(const history *h) {
    return h->writer.db || database_exists(&h->writer);
}

bx_status history_delete(history *h, const char *name, bool *found, bx_error *error) {
    bx_status status = BX_OK;
    *found = false;
    pthread_mutex_lock(&h->writing);
    if (is_there(h)) {
        status = begin(h, 0, error);
        if (status == BX_OK) {
            sqlite3_stmt *s;
            int rc = database_prepare(&h->writer, FORGET_RUN, &s);
            rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC) : rc;
            rc = run_bound(rc, s);
            const bool changed = rc == SQLITE_OK && sqlite3_changes(h->writer.db) > 0;
            status = end(h, rc, error);
            *found = status == BX_OK && changed;
        }
        note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

/* ---- tidying ----------------------------------------------------------------------------------------------------- */

/* A slice of a run that has no name any more. */
static int purge(database *d, int64_t id) {
    sqlite3_stmt *s;
    int64_t last = INT64_MAX;
    bool found;
    int rc = BIND(d, NTH_AFTER, &s, id, -1, SLICE - 1);
    rc = read_bound(rc, s, &last, &found);
    rc = rc == SQLITE_OK ? BIND(d, DELETE_UP_TO, &s, id, last) : rc;
    rc = run_bound(rc, s);
    rc = rc == SQLITE_OK ? BIND(d, DELETE_CHUNKS, &s, id, last) : rc;
    rc = run_bound(rc, s);
    if (rc == SQLITE_OK && !found) {
        rc = BIND(d, DELETE_RUN, &s, id);
        rc = run_bound(rc, s);
    }
    return rc;
}

static int forget_old(history *h) {
    struct timespec now;
    sqlite3_stmt *s;
    if (h->options.keep_days == 0) {
        return SQLITE_OK;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    int rc = BIND(&h->writer, FORGET_OLD, &s,
                  (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 - h->options.keep_days * US_PER_DAY);
    return run_bound(rc, s);
}

static int find_long(history *h, run *r) {
    sqlite3_stmt *s;
    *r = (run){0};
    if (h->options.keep_steps == 0) {
        return SQLITE_OK;
    }
    int rc = BIND(&h->writer, FIND_LONG, &s, h->options.keep_steps + slack(h));
    if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        take_run(s, r);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

static int tidy(history *h, bool *more) {
    database *d = &h->writer;
    sqlite3_stmt *s;
    run r = {0};
    int64_t id = 0;
    int rc = forget_old(h);
    rc = rc == SQLITE_OK ? database_prepare(d, FIND_FORGOTTEN, &s) : rc;
    rc = rc == SQLITE_OK ? read_bound(rc, s, &id, more) : rc;
    if (rc == SQLITE_OK && *more) {
        return purge(d, id);
    }
    rc = rc == SQLITE_OK ? find_long(h, &r) : rc;
    *more = rc == SQLITE_OK && r.id;
    if (*more) {
        rc = trim(h, &r);
        rc = rc == SQLITE_OK ? update_run(d, &r) : rc;
    }
    return rc;
}

bx_status history_tidy(history *h, bool *more, bx_error *error) {
    bx_status status = BX_OK;
    *more = false;
    pthread_mutex_lock(&h->writing);
    if (is_there(h)) {
        status = begin(h, 0, error);
        status = status == BX_OK ? end(h, tidy(h, more), error) : status;
        *more = *more && status == BX_OK;
        note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

static int check_pages(database *d) {
    sqlite3_stmt *s;
    int rc = sqlite3_prepare_v2(d->db, "PRAGMA quick_check(1)", -1, &s, NULL);
    if (rc == SQLITE_OK) {
        const unsigned char *text = sqlite3_step(s) == SQLITE_ROW ? sqlite3_column_text(s, 0) : NULL;
        const bool sound = text && !strcmp((const char *)text, "ok");
        rc = sqlite3_finalize(s);
        rc = rc == SQLITE_OK && !sound ? SQLITE_CORRUPT : rc;
    }
    return rc;
}

/* Whether its tables are ours, and the file is sound if it can be read through at once; of others what was known. */
static bx_status check(history *h, bx_error *error) {
    database *d = &h->writer;
    struct stat file;
    sqlite3_stmt *s;
    int rc = SQLITE_OK;
    for (int i = 0; rc == SQLITE_OK && i < N_STATEMENTS; i++) {
        rc = database_prepare(d, i, &s);
        rc = rc == SQLITE_ERROR ? SQLITE_CORRUPT : rc; /* a table or a column is missing */
    }
    if (rc == SQLITE_OK && (stat(d->file, &file) || file.st_size <= CHECK_LIMIT)) {
        rc = check_pages(d);
    } else if (rc == SQLITE_OK && atomic_load(&h->fault) == DATABASE_DAMAGED) {
        rc = SQLITE_CORRUPT;
    }
    return rc == SQLITE_OK ? BX_OK : database_failed(d, rc, error);
}

/* Open it, and see whether it is sound. */
static bx_status open_and_check(history *h, bx_error *error) {
    database_begin(&h->writer);
    bx_status status = database_open(&h->writer, true, error);
    return status == BX_OK ? check(h, error) : status;
}

bx_status history_probe(history *h, bx_error *error) {
    bx_status status = BX_OK;
    pthread_mutex_lock(&h->writing);
    const int fault = atomic_load(&h->fault);
    if (is_there(h) || fault != DATABASE_FINE) {
        if (fault == DATABASE_DAMAGED) {
            database_close(&h->writer); /* and what it still has in memory */
            status = open_and_check(h, error);
            atomic_store(&h->fault, status == BX_OK ? DATABASE_FINE : DATABASE_DAMAGED);
        }
        status = status == BX_OK ? open_writer(h, error) : status;
        if (status == BX_OK) {
            status = database_check_room(&h->writer, RECORD_BYTES, error);
        }
        note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bx_status reader_failed(history *h, int rc, bx_error *error) {
    return note(h, &h->reader, database_failed(&h->reader, rc, error));
}

/* A transaction to read in; false, with BX_OK, when there is nothing yet. */
static bool view(history *h, bx_status *status, bx_error *error) {
    database *d = &h->reader;
    *status = BX_OK;
    const bool made = d->db || atomic_load(&h->exists);
    if (!made) { /* perhaps it is being made; who reads later does not wait for what is written */
        pthread_mutex_lock(&h->writing);
    }
    const bool there = made || is_there(h);
    database_begin(d);
    if (there) {
        *status = database_open(d, false, error);
        *status = *status == BX_OK ? BX_OK : note(h, d, *status);
    }
    if (!made) {
        pthread_mutex_unlock(&h->writing);
    }
    if (there && *status == BX_OK) {
        int rc = database_run(d, "BEGIN");
        *status = rc == SQLITE_OK ? BX_OK : reader_failed(h, rc, error);
    }
    return there && *status == BX_OK;
}

/* Where one long read follows the other, there is no other time for it. */
static void empty_long_log(history *h) {
    struct stat file;
    if (!stat_log(h, &file) && file.st_size > LOG_LIMIT) {
        pthread_mutex_lock(&h->writing);
        if (h->writer.db && atomic_load(&h->fault) == DATABASE_FINE) {
            (void)database_empty_log(&h->writer); /* whoever writes next sees why not */
        }
        pthread_mutex_unlock(&h->writing);
    }
}

static bx_status end_view(history *h, int rc, bx_status status, bx_error *error) {
    database *d = &h->reader;
    if (rc == SQLITE_OK) {
        rc = database_run(d, "COMMIT");
        if (rc == SQLITE_OK) {
            empty_long_log(h);
        }
    } else if (!sqlite3_get_autocommit(d->db)) {
        database_run(d, "ROLLBACK");
    }
    if ((rc & 0xff) == SQLITE_INTERRUPT) {
        return bx_fail(error, BX_BUSY, "timeout", "nobody waits for it any more");
    }
    return rc == SQLITE_OK ? status : reader_failed(h, rc, error);
}

static bx_status unknown_run(const char *name, bx_error *error) {
    return bx_fail(error, BX_INVALID, "unknown_run", "there is no run \"%.64s\"", name);
}

/* Of a run in this very state; another one of the same name began at another time. */
static void make_tag(char tag[HISTORY_TAG], const run *r) {
    snprintf(tag, HISTORY_TAG, "\"%llx-%llx\"", (unsigned long long)r->told.first_us, (unsigned long long)r->revision);
}

bx_status history_list(history *h, const char *after, int64_t limit, void (*each)(void *context, const proto_run *run),
                       void *context, bx_error *error) {
    bx_status status;
    if (!view(h, &status, error)) {
        return status;
    }
    sqlite3_stmt *s;
    int rc = BIND(&h->reader, LIST_RUNS, &s, 0, limit);
    rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, after, -1, SQLITE_STATIC) : rc;
    while (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        run r;
        take_run(s, &r);
        each(context, &r.told);
    }
    return end_view(h, rc == SQLITE_OK ? sqlite3_reset(s) : rc, BX_OK, error);
}

bx_status history_describe(history *h, const char *name, proto_run *told, proto_step *latest, char tag[HISTORY_TAG],
                           bx_error *error) {
    bx_status status;
    if (!view(h, &status, error)) {
        return status == BX_OK ? unknown_run(name, error) : status;
    }
    sqlite3_stmt *s = NULL;
    run r;
    bool found = false;
    int rc = find_run(&h->reader, name, &r);
    if (rc == SQLITE_OK && r.id) {
        rc = BIND(&h->reader, READ_STEP, &s, r.id, r.told.last_step);
        found = rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW;
        if (found) {
            take_step(s, latest);
            make_tag(tag, &r);
            *told = r.told;
        }
        rc = rc == SQLITE_OK ? sqlite3_reset(s) : rc;
    }
    return end_view(h, rc, rc == SQLITE_OK && !found ? unknown_run(name, error) : BX_OK, error);
}

/* ---- fewer points ------------------------------------------------------------------------------------------------ */

/* Steps lie in `n` ranges of equal length; of each the minima and maxima of the first charted values are told. */
typedef struct thinning {
    const history_steps *wanted;
    int64_t first, span, n;
    int n_values;
    int64_t range;               /* of the rows below; -1: there are none */
    proto_step rows[N_EXTREMES]; /* maximum and minimum of each value */
    bool has[N_EXTREMES];
    proto_step last; /* the last row of all so far */
    int64_t told;    /* the last step that was told; -1: none */
} thinning;

static int by_step(const void *a, const void *b) {
    const int64_t x = (*(const proto_step *const *)a)->step, y = (*(const proto_step *const *)b)->step;
    return (x > y) - (x < y);
}

static void tell(thinning *t, const proto_step *step) {
    if (step->step > t->told) {
        t->told = step->step;
        t->wanted->each(t->wanted->context, step);
    }
}

static void end_range(thinning *t) {
    const proto_step *rows[N_EXTREMES];
    size_t n = 0;
    for (int i = 0; i < 2 * t->n_values; i++) {
        if (t->has[i]) {
            rows[n++] = &t->rows[i];
            t->has[i] = false;
        }
    }
    /* cppcheck-suppress uninitvar ; n of them are set */
    qsort(rows, n, sizeof *rows, by_step);
    for (size_t i = 0; i < n; i++) {
        tell(t, rows[i]);
    }
}

static void thin(thinning *t, const proto_step *step) {
    const int64_t range = (int64_t)((double)(step->step - t->first) / (double)t->span * (double)t->n);
    if (range != t->range) {
        end_range(t);
        t->range = range;
    }
    for (int i = 0; i < 2 * t->n_values; i++) {
        const double sign = i % 2 ? -1 : 1, value = sign * step->values[charted[i / 2]];
        if (!isnan(value) && (!t->has[i] || value > sign * t->rows[i].values[charted[i / 2]])) {
            t->rows[i] = *step;
            t->has[i] = true;
        }
    }
    if (t->told < 0) {
        tell(t, step);
    }
    t->last = *step;
}

/* The rows after one, until `last` is reached. */
static int thin_rows(database *d, int which, int64_t id, int64_t after, int64_t last, thinning *t) {
    sqlite3_stmt *s;
    bool more = true;
    int rc = BIND(d, which, &s, id, after, -1);
    while (rc == SQLITE_OK && more && sqlite3_step(s) == SQLITE_ROW) {
        proto_step step;
        take_step(s, &step);
        thin(t, &step);
        more = step.step < last;
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

/* The first row, which need not be notable; if only a part of its chunk is wanted, all of that; and notable ones. */
static int thin_notable(database *d, int64_t id, int64_t after, thinning *t) {
    int64_t first, last;
    int rc = find_chunk(d, id, after, &first, &last);
    rc = rc == SQLITE_OK ? thin_rows(d, READ_STEPS, id, after, last, t) : rc;
    return rc == SQLITE_OK && t->told >= 0 ? thin_rows(d, READ_NOTABLE, id, t->last.step, INT64_MAX, t) : rc;
}

static int read_thinned(history *h, const run *r, const history_steps *wanted) {
    const int64_t pairs = (wanted->points - 2) / 2; /* a minimum and a maximum; besides the first and the last row */
    thinning *t = calloc(1, sizeof *t);
    if (!t) {
        return SQLITE_NOMEM;
    }
    t->wanted = wanted;
    t->n_values = pairs < N_CHARTED ? (int)pairs : N_CHARTED;
    t->n = pairs / t->n_values;
    t->first = wanted->after >= r->told.first_step ? wanted->after + 1 : r->told.first_step;
    t->span = r->told.last_step - t->first + 1;
    t->range = t->told = -1;
    /* where a range holds some whole chunks, their minima and maxima are enough */
    int rc = r->told.steps / t->n >= 2 * CHUNK ? thin_notable(&h->reader, r->id, wanted->after, t)
                                               : thin_rows(&h->reader, READ_STEPS, r->id, wanted->after, INT64_MAX, t);
    if (rc == SQLITE_OK && t->told >= 0) {
        end_range(t);
        tell(t, &t->last);
    }
    free(t);
    return rc;
}

static int read_limited(history *h, const run *r, const history_steps *wanted, int64_t *next) {
    sqlite3_stmt *s;
    int64_t n = 0, last = -1;
    int rc = BIND(&h->reader, READ_STEPS, &s, r->id, wanted->after, wanted->limit + 1);
    while (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        proto_step step;
        if (n++ == wanted->limit) {
            *next = last;
            break;
        }
        take_step(s, &step);
        last = step.step;
        wanted->each(wanted->context, &step);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

static int is_cancelled(void *context) {
    const history_steps *wanted = context;
    return wanted->cancelled && atomic_load(wanted->cancelled);
}

bx_status history_read(history *h, const history_steps *wanted, int64_t *next, bx_error *error) {
    bx_status status;
    *next = -1;
    if (!view(h, &status, error)) {
        return status == BX_OK ? unknown_run(wanted->run, error) : status;
    }
    run r;
    char tag[HISTORY_TAG];
    int rc = find_run(&h->reader, wanted->run, &r);
    if (rc == SQLITE_OK && !r.id) {
        status = unknown_run(wanted->run, error);
    }
    if (rc == SQLITE_OK && r.id) {
        make_tag(tag, &r);
        if (wanted->begin(wanted->context, &r.told, tag)) {
            sqlite3_progress_handler(h->reader.db, CANCEL_PERIOD, is_cancelled, (void *)wanted);
            rc = wanted->points > 0 && r.told.steps > wanted->points ? read_thinned(h, &r, wanted)
                                                                     : read_limited(h, &r, wanted, next);
            sqlite3_progress_handler(h->reader.db, 0, NULL, NULL);
        }
    }
    return end_view(h, rc, status, error);
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

history *history_new(data_dir *directory, const history_options *options) {
    history *h = calloc(1, sizeof *h);
    const char *synchronous = options->weak ? "NORMAL" : "FULL";
    if (!h) {
        return NULL;
    }
    const bool fine = database_init(&h->writer, &kind, directory, synchronous);
    if (!fine || !database_init(&h->reader, &kind, directory, synchronous)) {
        if (fine) {
            database_fini(&h->writer);
        }
        free(h);
        return NULL;
    }
    pthread_mutex_init(&h->writing, NULL);
    h->options = *options;
    atomic_init(&h->fault, DATABASE_FINE);
    atomic_init(&h->exists, false);
    return h;
}

void history_free(history *h) {
    if (h) {
        if (atomic_load(&h->fault) == DATABASE_DAMAGED) {
            database_leave(&h->reader);
            database_leave(&h->writer);
        }
        database_fini(&h->reader);
        database_fini(&h->writer);
        pthread_mutex_destroy(&h->writing);
        free(h);
    }
}

const char *history_file(const history *h) {
    return h->writer.file;
}

void history_hurry(history *h) {
    database_hurry(&h->writer);
    database_hurry(&h->reader);
}

bx_status history_open(history *h, bx_error *error) {
    bx_status status = BX_OK;
    pthread_mutex_lock(&h->writing);
    if (database_exists(&h->writer)) {
        atomic_store(&h->exists, true);
        status = open_and_check(h, error);
        note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

history_state history_get_state(const history *h) {
    switch ((database_fault)atomic_load(&h->fault)) {
    case DATABASE_FINE:
    case DATABASE_BUSY:
        return HISTORY_FINE;
    case DATABASE_FULL:
        return HISTORY_FULL;
    case DATABASE_READ_ONLY:
        return HISTORY_READ_ONLY;
    case DATABASE_DAMAGED:
        return HISTORY_BROKEN;
    case DATABASE_NEWER:
        return HISTORY_NEWER;
    default:
        return HISTORY_GONE;
    }
}

bool history_exists(const history *h) {
    return atomic_load(&h->exists);
}
