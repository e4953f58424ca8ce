/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of runs and steps: schema, statements, and what writing and deleting come to within a transaction of the
 * writer's, which is the caller's.
 *
 * A long run is drawn from few of its rows. Steps are sealed in chunks of CHUNK rows: of a sealed chunk only the rows
 * are notable that are a minimum or a maximum of one of the charted values; all others are, as every row is at first.
 * So the minima and maxima of all notable rows are those of all rows, whatever is replaced or comes late, and an index
 * holds the notable ones only. A run that is deleted loses its name; its rows go bit by bit.
 */
#include <math.h>
#include <time.h>

#include "history.h"

#define SLICE      500                 /* rows deleted at a time; their pages, in the log, fit in half of SPARE */
#define SPARE      ((size_t)256 << 10) /* bytes of the disk for deletions */
#define US_PER_DAY (86400LL * 1000000)
#define KEEP_SLACK 16 /* a run may have a sixteenth more than it is to keep, CHUNK at most */
#define COLUMNS    (2 + PROTO_N_STEP + 1)

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

const database_kind rows_kind = {.file = "lossd-runs.sqlite3",
                                 .migrations = migrations,
                                 .version = sizeof migrations / sizeof *migrations,
                                 .log = true,
                                 .sql = sql,
                                 .spare = SPARE};

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* What is not known is NULL. */
static double take_real(sqlite3_stmt *s, int column) {
    return sqlite3_column_type(s, column) == SQLITE_NULL ? (double)NAN : sqlite3_column_double(s, column);
}

void rows_take_run(sqlite3_stmt *s, run *r) {
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

int rows_find_run(database *d, const char *name, run *r) {
    sqlite3_stmt *s;
    *r = (run){0};
    int rc = database_prepare(d, FIND_RUN, &s);
    rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC) : rc;
    if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        rows_take_run(s, r);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

void rows_take_step(sqlite3_stmt *s, proto_step *step) {
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
const int rows_charted[N_CHARTED] = {
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
int rows_find_chunk(database *d, int64_t id, int64_t step, int64_t *first, int64_t *last) {
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
    int rc = rows_find_chunk(d, id, step, &first, &last);
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
    int rc = rows_find_run(d, record->run, r);
    if (rc != SQLITE_OK || r->id) {
        return rc;
    }
    rc = BIND(d, ADD_RUN, &s, 0, step->time_us, step->step);
    rc = rc == SQLITE_OK ? sqlite3_bind_text(s, 1, record->run, -1, SQLITE_STATIC) : rc;
    rc = run_bound(rc, s);
    return rc == SQLITE_OK ? rows_find_run(d, record->run, r) : rc;
}

int rows_write(history *h, const record *record) {
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
        rows_take_run(s, r);
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

int rows_tidy(history *h, bool *more) {
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
