/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps in a SQLite database with a write-ahead log: one connection writes, another one reads.
 *
 * Here are the writing connection's transactions, and what is known of the store's state. history_rows.c has the rows,
 * history_read.c what is told of them.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "history.h"

#define RECORD_BYTES 1024              /* of a record in the log, roughly */
#define LOG_MOST     ((off_t)36 << 20) /* with room for a transaction in 64 MiB; a reader has kept it for too long */
#define CHECK_LIMIT  ((off_t)64 << 20) /* a larger file is not read through at the start */

/* ---- transactions ------------------------------------------------------------------------------------------------ */

/* What the last call has come to, for whoever asks. Damage that another thread has seen meanwhile is not covered. */
bx_status history_note(history *h, const database *d, bx_status status) {
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

int history_stat_log(const history *h, struct stat *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s-wal", h->writer.file);
    return stat(path, file);
}

/* Readers can keep the log from being emptied: ours for as long as they read, those of other processes for ever; then
 * nothing more is written into it. Nor when it is not where the next one to open the database will look for it. */
static bx_status check_log(history *h, bx_error *error) {
    database *d = &h->writer;
    struct stat file;
    if (history_stat_log(h, &file)) {
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
            rc = rows_write(h, records[i]);
        }
        status = end(h, rc, error);
    }
    history_note(h, &h->writer, status);
    pthread_mutex_unlock(&h->writing);
    return status;
}

bool history_is_there(const history *h) {
    return h->writer.db || database_exists(&h->writer);
}

bx_status history_delete(history *h, const char *name, bool *found, bx_error *error) {
    bx_status status = BX_OK;
    *found = false;
    pthread_mutex_lock(&h->writing);
    if (history_is_there(h)) {
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
        history_note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

/* ---- tidying and looking ----------------------------------------------------------------------------------------- */

bx_status history_tidy(history *h, bool *more, bx_error *error) {
    bx_status status = BX_OK;
    *more = false;
    pthread_mutex_lock(&h->writing);
    if (history_is_there(h)) {
        status = begin(h, 0, error);
        status = status == BX_OK ? end(h, rows_tidy(h, more), error) : status;
        *more = *more && status == BX_OK;
        history_note(h, &h->writer, status);
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
    if (history_is_there(h) || fault != DATABASE_FINE) {
        if (fault == DATABASE_DAMAGED) {
            database_close(&h->writer); /* and what it still has in memory */
            status = open_and_check(h, error);
            atomic_store(&h->fault, status == BX_OK ? DATABASE_FINE : DATABASE_DAMAGED);
        }
        status = status == BX_OK ? open_writer(h, error) : status;
        if (status == BX_OK) {
            status = database_check_room(&h->writer, RECORD_BYTES, error);
        }
        history_note(h, &h->writer, status);
    }
    pthread_mutex_unlock(&h->writing);
    return status;
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

history *history_new(data_dir *directory, const history_options *options) {
    history *h = calloc(1, sizeof *h);
    const char *synchronous = options->weak ? "NORMAL" : "FULL";
    if (!h) {
        return NULL;
    }
    if (!database_init(&h->writer, &rows_kind, directory, synchronous) ||
        !database_init(&h->reader, &rows_kind, directory, synchronous)) {
        database_fini(&h->reader);
        database_fini(&h->writer);
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
        history_note(h, &h->writer, status);
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
