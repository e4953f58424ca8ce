/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What history.c, history_rows.c and history_read.c share.
 */
#ifndef HISTORY_H
#define HISTORY_H

#include <sys/stat.h>

#include "database.h"

#define CHUNK      256 /* rows */
#define N_CHARTED  6
#define N_EXTREMES (2 * N_CHARTED)
#define LOG_LIMIT  ((off_t)32 << 20) /* of the log; then it is emptied, as soon as nobody reads */

struct history {
    history_options options;
    pthread_mutex_t writing; /* the first database; the second one is the reading thread's */
    database writer, reader;
    atomic_int fault; /* database_fault */
    atomic_bool exists;
};

/* A run as it is kept. */
typedef struct run {
    proto_run told;
    int64_t id;               /* 0: there is none */
    int64_t sealed, unsealed; /* the last sealed step; rows after it, at least */
    int64_t revision;
} run;

/* ---- statements -------------------------------------------------------------------------------------------------- */

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

/* Prepare a statement and bind so many integers to it. */
static inline int rows_bind(database *d, int which, sqlite3_stmt **out, int n, const int64_t *values) {
    int rc = database_prepare(d, which, out);
    for (int i = 0; rc == SQLITE_OK && i < n; i++) {
        rc = sqlite3_bind_int64(*out, i + 1, values[i]);
    }
    return rc;
}
#define BIND(d, which, out, ...)                                                                                       \
    rows_bind(d, which, out, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (const int64_t[]){__VA_ARGS__})

/* Step a statement that was bound with this code, and reset it: SQLITE_OK or what failed. */
static inline int run_bound(int rc, sqlite3_stmt *statement) {
    if (rc == SQLITE_OK) {
        sqlite3_step(statement);
        rc = sqlite3_reset(statement); /* the step's own code */
    }
    return rc;
}

/* The same of one that answers one integer; *found: whether it did. */
static inline int read_bound(int rc, sqlite3_stmt *statement, int64_t *value, bool *found) {
    *found = false;
    if (rc == SQLITE_OK) {
        *found = sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_type(statement, 0) != SQLITE_NULL;
        *value = *found ? sqlite3_column_int64(statement, 0) : *value;
        rc = sqlite3_reset(statement);
    }
    return rc;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

extern const database_kind rows_kind;
/* The values (PROTO_STEP_...) whose minima and maxima are kept. */
extern const int rows_charted[N_CHARTED];

/* All of these return codes of SQLite's. A run that is not there has id 0. */
int rows_find_run(database *database, const char *name, run *run);
void rows_take_run(sqlite3_stmt *statement, run *run);
void rows_take_step(sqlite3_stmt *statement, proto_step *step);
/* The chunk in which a step lies; where there is none *last is not more than that. */
int rows_find_chunk(database *database, int64_t id, int64_t step, int64_t *first, int64_t *last);
/* Within a transaction of the writer's: put a record; and delete a slice of what is to go. *more: there is more. */
int rows_write(history *history, const record *record);
int rows_tidy(history *history, bool *more);

/* ---- state ------------------------------------------------------------------------------------------------------- */

/* Whether there is a database. Under the lock, or by the thread whose database it looks at. */
bool history_is_there(const history *history);
/* What a call on one of the databases has come to, for whoever asks; returns `status`. */
bx_status history_note(history *history, const database *database, bx_status status);
int history_stat_log(const history *history, struct stat *file);

#endif
