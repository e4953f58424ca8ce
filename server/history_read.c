/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is told of runs: each call is a transaction of the second connection, which is the reading thread's.
 */
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "history.h"

#define CANCEL_PERIOD 10000 /* instructions of SQLite's machine */

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bx_status reader_failed(history *h, int rc, bx_error *error) {
    return history_note(h, &h->reader, database_failed(&h->reader, rc, error));
}

/* A transaction to read in; false, with BX_OK, when there is nothing yet. */
static bool view(history *h, bx_status *status, bx_error *error) {
    database *d = &h->reader;
    *status = BX_OK;
    const bool made = d->db || atomic_load(&h->exists);
    if (!made) { /* perhaps it is being made; who reads later does not wait for what is written */
        pthread_mutex_lock(&h->writing);
    }
    const bool there = made || history_is_there(h);
    database_begin(d);
    if (there) {
        *status = database_open(d, false, error);
        *status = *status == BX_OK ? BX_OK : history_note(h, d, *status);
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
    if (!history_stat_log(h, &file) && file.st_size > LOG_LIMIT) {
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
        rows_take_run(s, &r);
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
    int rc = rows_find_run(&h->reader, name, &r);
    if (rc == SQLITE_OK && r.id) {
        rc = BIND(&h->reader, READ_STEP, &s, r.id, r.told.last_step);
        found = rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW;
        if (found) {
            rows_take_step(s, latest);
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
    double first, span;
    int64_t n;
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

/* Of a step that is not where its run says, because the file was damaged, the last. */
static int64_t range_of(const thinning *t, int64_t step) {
    const double at = ((double)step - t->first) / t->span * (double)t->n;
    return at >= 0 && at < (double)t->n ? (int64_t)at : t->n;
}

static void thin(thinning *t, const proto_step *step) {
    const int64_t range = range_of(t, step->step);
    if (range != t->range) {
        end_range(t);
        t->range = range;
    }
    for (int i = 0; i < 2 * t->n_values; i++) {
        const double sign = i % 2 ? -1 : 1, value = sign * step->values[rows_charted[i / 2]];
        if (!isnan(value) && (!t->has[i] || value > sign * t->rows[i].values[rows_charted[i / 2]])) {
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
        rows_take_step(s, &step);
        thin(t, &step);
        more = step.step < last;
    }
    return rc == SQLITE_OK ? sqlite3_reset(s) : rc;
}

/* The first row, which need not be notable; if only a part of its chunk is wanted, all of that; and notable ones. */
static int thin_notable(database *d, int64_t id, int64_t after, thinning *t) {
    int64_t first, last;
    int rc = rows_find_chunk(d, id, after, &first, &last);
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
    t->first = (double)(wanted->after >= r->told.first_step ? wanted->after + 1 : r->told.first_step);
    t->span = (double)r->told.last_step - t->first + 1;
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
        rows_take_step(s, &step);
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
    int rc = rows_find_run(&h->reader, wanted->run, &r);
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
