/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A history in a directory of its own, and a model of what one run of it must hold, for tests.
 */
#ifndef RECORDING_H
#define RECORDING_H

#include <ftw.h>
#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server.h"
#include "random.h"
#include "suite.h"

/* ---- the history under test -------------------------------------------------------------------------------------- */

static char directory[64], file[128];
static data_dir *place;
static history *h;

static inline void setup(void) {
    strcpy(directory, "/tmp/lossd-history-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(file, sizeof file, "%s/lossd-runs.sqlite3", directory);
}

static inline int remove_one(const char *path, const struct stat *state, int kind, struct FTW *where) {
    (void)state;
    (void)kind;
    (void)where;
    return remove(path);
}

static inline void teardown(void) {
    ck_assert_int_eq(nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static bool hurried; /* nobody waits for a lock */

/* As a daemon does at its start; what comes of that is history_open's. */
static inline bx_status open_in(const char *path, history_options options, bx_error *error) {
    place = data_dir_new(path);
    ck_assert_ptr_nonnull(place);
    h = history_new(place, &options);
    ck_assert_ptr_nonnull(h);
    if (hurried) {
        history_hurry(h);
    }
    return history_open(h, error);
}

static inline void must_open(history_options options) {
    bx_error error = {0};
    ck_assert_msg(open_in(directory, options, &error) == BX_OK, "%s", error.text);
}

static inline void close_history(void) {
    history_free(h);
    data_dir_free(place);
    h = NULL;
}

static inline void must_refuse(bx_status status, const bx_error *error, const char *code, const char *text) {
    ck_assert_int_ne(status, BX_OK);
    ck_assert_int_eq(status, error->status);
    ck_assert_str_eq(error->code, code);
    ck_assert_msg(strstr(error->text, text) != NULL, "%s", error->text);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* A step with these values; everything that tells it from others is `total`. */
static inline record make_record(const char *run, int64_t step, double total) {
    record r = {.step = {.step = step, .time_us = 1700000000000000 + step * 1000, .has_objects = true}};
    strcpy(r.run, run);
    for (int i = 0; i < PROTO_N_STEP; i++) {
        r.step.values[i] = i;
    }
    r.step.values[PROTO_STEP_TOTAL] = total;
    for (int i = 0; i < PROTO_IOU_BINS; i++) {
        r.step.best_iou[i] = i * 1000003;
    }
    return r;
}

static inline bx_status write_all(const record *records, size_t n, bx_error *error) {
    const record *each[512];
    ck_assert_uint_le(n, 512);
    for (size_t i = 0; i < n; i++) {
        each[i] = &records[i];
    }
    return history_write(h, each, n, error);
}

static inline void must_write_all(const record *records, size_t n) {
    bx_error error = {0};
    ck_assert_msg(write_all(records, n, &error) == BX_OK, "%s", error.text);
}

static inline bx_status put(const char *run, int64_t step, double total, bx_error *error) {
    record r = make_record(run, step, total);
    return write_all(&r, 1, error);
}

static inline void must_put(const char *run, int64_t step, double total) {
    bx_error error = {0};
    bx_status status = put(run, step, total, &error);
    HOLDS(status == BX_OK, "%s", error.text);
}

static inline void must_delete(const char *run) {
    bx_error error = {0};
    bool found;
    ck_assert_msg(history_delete(h, run, &found, &error) == BX_OK, "%s", error.text);
    ck_assert(found);
}

/* How often it took. */
static inline int tidy_all(void) {
    bx_error error = {0};
    bool more = true;
    int n = 0;
    while (more) {
        ck_assert_msg(history_tidy(h, &more, &error) == BX_OK, "%s", error.text);
        n += more;
    }
    return n;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Rows that were told, and of what run. */
typedef struct told {
    proto_run run;
    char tag[HISTORY_TAG];
    proto_step *rows;
    size_t n, room;
} told;

static inline bool told_begin(void *context, const proto_run *run, const char *tag) {
    told *t = context;
    t->run = *run;
    strcpy(t->tag, tag);
    return true;
}

static inline void told_each(void *context, const proto_step *step) {
    told *t = context;
    if (t->n == t->room) {
        t->room = t->room ? 2 * t->room : 256;
        t->rows = realloc(t->rows, t->room * sizeof *t->rows);
        ck_assert_ptr_nonnull(t->rows);
    }
    t->rows[t->n++] = *step;
}

static inline void told_free(told *t) {
    free(t->rows);
    *t = (told){0};
}

static inline bx_status read_steps(told *t, const char *run, int64_t after, int64_t limit, int64_t points,
                                   int64_t *next, bx_error *error) {
    const history_steps wanted = {.run = run,
                                  .after = after,
                                  .limit = points > 0 ? points : limit,
                                  .points = points,
                                  .begin = told_begin,
                                  .each = told_each,
                                  .context = t};
    *t = (told){0};
    return history_read(h, &wanted, next, error);
}

/* All of a run; none where there is no such run. */
static inline void read_all(told *t, const char *run) {
    bx_error error = {0};
    int64_t next;
    bx_status status = read_steps(t, run, -1, INT64_MAX - 1, 0, &next, &error);
    HOLDS(status == BX_OK || !strcmp(error.code, "unknown_run"), "%s: %s", error.code, error.text);
}

static inline bool same_value(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

static inline bool same_step(const proto_step *a, const proto_step *b) {
    bool same = a->step == b->step && a->time_us == b->time_us && a->has_objects == b->has_objects;
    for (int i = 0; same && i < PROTO_N_STEP; i++) {
        same = same_value(a->values[i], b->values[i]);
    }
    return same && (!a->has_objects || !memcmp(a->best_iou, b->best_iou, sizeof a->best_iou));
}

/* "name:steps[first..last]=last_loss;" of each */
static inline void add_run(void *context, const proto_run *run) {
    sprintf((char *)context + strlen(context), "%s:%lld[%lld..%lld]=%g;", run->name, (long long)run->steps,
            (long long)run->first_step, (long long)run->last_step, run->last_loss);
}

static inline const char *list(const char *after, int64_t limit) {
    static char text[1 << 16];
    bx_error error = {0};
    *text = '\0';
    bx_status status = history_list(h, after, limit, add_run, text, &error);
    HOLDS(status == BX_OK, "%s", error.text);
    return text;
}

/* ---- looking at the file ----------------------------------------------------------------------------------------- */

/* By a connection of our own, which fails when the file is damaged. */
static inline void query_with(sqlite3 *db, const char *sql, char out[256]) {
    sqlite3_stmt *statement;
    HOLDS(sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK, "%s", sqlite3_errmsg(db));
    HOLDS(sqlite3_step(statement) == SQLITE_ROW, "%s", sqlite3_errmsg(db));
    snprintf(out, 256, "%s", (const char *)sqlite3_column_text(statement, 0));
    HOLDS(sqlite3_finalize(statement) == SQLITE_OK, "%s", sqlite3_errmsg(db));
}

static inline void query(const char *sql, char out[256]) {
    sqlite3 *db;
    HOLDS(sqlite3_open(file, &db) == SQLITE_OK, "%s", file);
    query_with(db, sql, out);
    HOLDS(sqlite3_close(db) == SQLITE_OK, "%s", file);
}

static inline void must_answer(const char *sql, const char *want) {
    char got[256];
    query(sql, got);
    HOLDS(!strcmp(got, want), "%s: %s, not %s", sql, got, want);
}

/* The minima and maxima of each chunk are among its notable rows, all rows outside chunks are notable, and what is kept
 * of a run is what its rows say. */
static inline void must_be_consistent(void) {
#define MOST_OF(column) "min(" column "), max(" column ")"
#define EXTREMES_OF(more)                                                                                              \
    "(SELECT " MOST_OF("total") "," MOST_OF("loc") "," MOST_OF("conf") "," MOST_OF("positives") "," MOST_OF(           \
        "unmatched_objects") "," MOST_OF("best_iou_mean") " FROM step s WHERE s.run = c.run AND s.step BETWEEN "       \
                                                          "c.first AND c.last" more ")"
    static const char *const wrong[] = {
        "SELECT count(*) FROM chunk c WHERE " EXTREMES_OF("") " IS NOT " EXTREMES_OF(" AND notable = 1"),
        "SELECT count(*) FROM step s WHERE notable IS NOT 1 AND NOT EXISTS"
        " (SELECT 1 FROM chunk c WHERE c.run = s.run AND s.step BETWEEN c.first AND c.last)",
        "SELECT count(*) FROM chunk c, chunk d WHERE c.run = d.run AND c.first < d.first AND c.last >= d.first",
        "SELECT count(*) FROM run r WHERE name IS NOT NULL AND (steps, first_step, last_step) IS NOT"
        " (SELECT count(*), min(step), max(step) FROM step WHERE run = r.id)",
        "SELECT count(*) FROM run r WHERE name IS NOT NULL AND last_loss IS NOT"
        " (SELECT total FROM step WHERE run = r.id AND step = r.last_step)",
        "SELECT count(*) FROM step WHERE run NOT IN (SELECT id FROM run)",
        "SELECT count(*) FROM chunk WHERE run NOT IN (SELECT id FROM run)",
    };
    sqlite3 *db;
    char got[256];
    HOLDS(sqlite3_open(file, &db) == SQLITE_OK, "%s", file);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        query_with(db, wrong[i], got);
        HOLDS(!strcmp(got, "0"), "%s: %s", wrong[i], got);
    }
    query_with(db, "PRAGMA integrity_check", got);
    HOLDS(!strcmp(got, "ok"), "%s", got);
    HOLDS(sqlite3_close(db) == SQLITE_OK, "%s", file);
#undef MOST_OF
#undef EXTREMES_OF
}

/* ---- a model of one run ------------------------------------------------------------------------------------------ */

typedef struct model {
    proto_step *rows; /* by step */
    size_t n, room;
    int64_t keep; /* 0: all */
} model;

/* Where the first row is whose step is not below this one. */
static inline size_t model_find(const model *m, int64_t step) {
    size_t low = 0, high = m->n;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (m->rows[middle].step < step) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* A run may have a sixteenth more than it is to keep, at least 1 and at most 256; 2000 go at a time. */
static inline void model_trim(model *m) {
    const int64_t part = m->keep / 16, slack = part < 1 ? 1 : part < 256 ? part : 256, n = (int64_t)m->n;
    if (m->keep > 0 && n >= m->keep + slack) {
        const size_t many = (size_t)(n - m->keep < 2000 ? n - m->keep : 2000);
        m->n -= many;
        memmove(m->rows, m->rows + many, m->n * sizeof *m->rows);
    }
}

static inline void model_put(model *m, const proto_step *step) {
    const size_t at = model_find(m, step->step);
    if (at == m->n || m->rows[at].step != step->step) {
        if (m->n == m->room) {
            m->room = m->room ? 2 * m->room : 256;
            m->rows = realloc(m->rows, m->room * sizeof *m->rows);
            ck_assert_ptr_nonnull(m->rows);
        }
        memmove(m->rows + at + 1, m->rows + at, (m->n - at) * sizeof *m->rows);
        m->n++;
    }
    m->rows[at] = *step;
    model_trim(m);
}

static inline void model_free(model *m) {
    free(m->rows);
    *m = (model){0};
}

/* That many rows are these, in order. */
static inline void must_be_rows(const told *t, const proto_step *rows, size_t n) {
    HOLDS(t->n == n, "%zu rows, not %zu", t->n, n);
    for (size_t i = 0; i < n; i++) {
        HOLDS(same_step(&t->rows[i], &rows[i]), "row %zu: step %lld is not as it was written, or not %lld", i,
              (long long)t->rows[i].step, (long long)rows[i].step);
    }
}

#endif
