/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is registered, across restarts. A row is on the disk when store_put returns (rollback journal, synchronous
 * EXTRA), and what could not be written is rolled back, if need be by the next who opens the file.
 */
#include <stdlib.h>

#include "database.h"

struct store {
    pthread_mutex_t lock;
    database database;
};

static const char *const migrations[] = {
    "CREATE TABLE definition (kind TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL, "
    "PRIMARY KEY (kind, name))",
};

static const database_kind definitions = {.file = "lossd.sqlite3",
                                          .migrations = migrations,
                                          .version = sizeof migrations / sizeof *migrations,
                                          .spare = 65536};

static void begin_call(store *s) {
    pthread_mutex_lock(&s->lock);
    database_begin(&s->database);
}

static bx_status end_call(store *s, bx_status status) {
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Run one statement with up to three texts and a blob, to its end. */
static bx_status write_row(store *s, const char *sql, const store_row *row, bool *changed, bx_error *error) {
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(s->database.db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_bind_text(statement, 1, row->kind, -1, SQLITE_STATIC);
        sqlite3_bind_text(statement, 2, row->name, -1, SQLITE_STATIC);
    }
    if (rc == SQLITE_OK && row->type) {
        sqlite3_bind_text(statement, 3, row->type, -1, SQLITE_STATIC);
        rc = sqlite3_bind_blob64(statement, 4, row->bytes, row->n_bytes, SQLITE_STATIC);
    }
    if (rc == SQLITE_OK) {
        sqlite3_step(statement);
    }
    int end = sqlite3_finalize(statement); /* the step's own result */
    rc = rc == SQLITE_OK ? end : rc;
    if (rc != SQLITE_OK) {
        return database_failed(&s->database, rc, error);
    }
    *changed = sqlite3_changes(s->database.db) > 0;
    return BX_OK;
}

bx_status store_put(store *s, const store_row *row, bx_error *error) {
    bool changed;
    begin_call(s);
    bx_status status = database_open(&s->database, true, error);
    if (status == BX_OK) {
        status = database_check_room(&s->database, row->n_bytes, error);
    }
    if (status == BX_OK) {
        status = write_row(s, "REPLACE INTO definition (kind, name, type, body) VALUES (?1, ?2, ?3, ?4)", row, &changed,
                           error);
    }
    return end_call(s, status);
}

bx_status store_delete(store *s, const char *kind, const char *name, bool *found, bx_error *error) {
    bool changed = false;
    bx_status status = BX_OK;
    begin_call(s);
    if (s->database.db || database_exists(&s->database)) {
        status = database_open(&s->database, true, error);
        if (status == BX_OK) {
            const store_row row = {.kind = kind, .name = name};
            status = write_row(s, "DELETE FROM definition WHERE kind = ?1 AND name = ?2", &row, &changed, error);
        }
    }
    if (status == BX_OK) {
        *found = changed;
    }
    return end_call(s, status);
}

static int read_rows(sqlite3 *db, void (*each)(void *context, const store_row *row), void *context) {
    static const char sql[] = "SELECT kind, name, type, body FROM definition ORDER BY kind, name";
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    if (rc != SQLITE_OK) {
        return rc;
    }
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW) {
        const store_row row = {
            .kind = (const char *)sqlite3_column_text(statement, 0),
            .name = (const char *)sqlite3_column_text(statement, 1),
            .type = (const char *)sqlite3_column_text(statement, 2),
            .bytes = sqlite3_column_blob(statement, 3),
            .n_bytes = (size_t)sqlite3_column_bytes(statement, 3),
        };
        if (!row.kind || !row.name || !row.type || (!row.bytes && row.n_bytes > 0)) {
            rc = SQLITE_NOMEM; /* columns that cannot be NULL */
            break;
        }
        each(context, &row);
    }
    sqlite3_finalize(statement);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

bx_status store_each(store *s, void (*each)(void *context, const store_row *row), void *context, bx_error *error) {
    bx_status status = BX_OK;
    begin_call(s);
    if (!s->database.db && database_exists(&s->database)) {
        status = database_open(&s->database, false, error);
    }
    int64_t version = 0;
    int rc =
        status == BX_OK && s->database.db ? database_number(&s->database, "PRAGMA user_version", &version) : SQLITE_OK;
    if (rc == SQLITE_OK && version > 0) {
        rc = read_rows(s->database.db, each, context);
    }
    if (rc != SQLITE_OK) {
        status = database_failed(&s->database, rc, error);
    }
    if (s->database.db && s->database.readable) {
        database_close(&s->database);
    }
    return end_call(s, status);
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

store *store_open(data_dir *directory) {
    store *s = calloc(1, sizeof *s);
    if (!s || !database_init(&s->database, &definitions, directory, "EXTRA")) {
        free(s);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

const char *store_file(const store *s) {
    return s->database.file;
}

void store_hurry(store *s) {
    database_hurry(&s->database);
}

bx_status store_claim(store *s, bx_error *error) {
    return database_exists(&s->database) ? data_dir_claim(s->database.directory, error) : BX_OK;
}

void store_close(store *s) {
    if (s) {
        database_fini(&s->database);
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
}
