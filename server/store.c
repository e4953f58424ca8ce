/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What survives a restart: one SQLite database, used in this file only.
 *
 * Nothing is created before something is stored. A row is on the disk when store_put returns (write-ahead log,
 * synchronous FULL). Several processes may share the file; SQLite's locks order them. Whatever goes wrong closes the
 * database, so that the next call starts afresh: a disk that has room again needs no restart. A database is never
 * repaired or deleted here.
 */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "server.h"

#define FILE_NAME "lossd.sqlite3"
#define BUSY_MS   2000  /* how long another process may hold the write lock */
#define SPARE     65536 /* bytes of the disk that are left alone */

struct store {
    pthread_mutex_t lock;
    const char *directory;
    char *file;
    sqlite3 *db;   /* NULL: not open */
    bool readable; /* db cannot be written */
};

/* Statements that lead from each schema version to the next; user_version counts them. */
static const char *const migrations[] = {
    "CREATE TABLE definition (kind TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL, "
    "PRIMARY KEY (kind, name))",
};
enum { VERSION = sizeof migrations / sizeof *migrations };

/* ---- failures ---------------------------------------------------------------------------------------------------- */

static void close_db(store *s) {
    sqlite3_close(s->db); /* no statement is left open */
    s->db = NULL;
}

static bx_status unavailable(bx_error *error, const char *text) {
    return bx_fail(error, BX_BUSY, "store_unavailable", "the store cannot be used: %s", text);
}

static bx_status full(bx_error *error) {
    return bx_fail(error, BX_BUSY, "store_full", "the store's disk is full");
}

static bool is_full(int cause) {
    return cause == ENOSPC || cause == EDQUOT || cause == EFBIG;
}

static bx_status system_failed(int cause, const char *what, bx_error *error) {
    char text[160];
    if (is_full(cause)) {
        return full(error);
    }
    snprintf(text, sizeof text, "%s: %s", what, strerror(cause));
    return unavailable(error, text);
}

/* Say what the last call on the database came to. SQLite calls only ENOSPC a full disk; quotas and limits on the size
 * of files are still in errno, which `begin_call` has cleared. */
static bx_status failed(store *s, int rc, bx_error *error) {
    const int primary = rc & 0xff;
    bx_status status;
    if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED) {
        return unavailable(error, "another process holds its lock");
    }
    if (primary == SQLITE_NOMEM) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the store");
    } else if (primary == SQLITE_TOOBIG) {
        status = bx_fail(error, BX_TOO_LARGE, "too_large", "more than one row of the store can hold");
    } else if (primary == SQLITE_FULL || is_full(errno)) {
        status = full(error);
    } else if (primary == SQLITE_READONLY) {
        status = unavailable(error, "its file or directory is read-only");
    } else {
        status = unavailable(error, sqlite3_errstr(rc));
    }
    close_db(s);
    return status;
}

static void begin_call(store *s) {
    pthread_mutex_lock(&s->lock);
    errno = 0;
}

static bx_status end_call(store *s, bx_status status) {
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int run(sqlite3 *db, const char *sql) {
    return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static int read_version(sqlite3 *db, int *version) {
    sqlite3_stmt *statement;
    int rc = sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(statement);
        *version = rc == SQLITE_ROW ? sqlite3_column_int(statement, 0) : 0;
        int end = sqlite3_finalize(statement);
        rc = rc == SQLITE_ROW ? SQLITE_OK : end;
    }
    return rc;
}

/* Open a file or a file: URI and read from it. */
static int try_open(store *s, const char *name, int flags, int *version) {
    close_db(s);
    int rc = sqlite3_open_v2(name, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        return rc;
    }
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, BUSY_MS);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    rc = run(s->db, "PRAGMA synchronous=FULL; PRAGMA cache_size=-2048; PRAGMA mmap_size=0;"
                    "PRAGMA cell_size_check=ON; PRAGMA journal_size_limit=4194304");
    if (rc == SQLITE_OK) {
        rc = read_version(s->db, version);
    }
    s->readable = rc == SQLITE_OK && sqlite3_db_readonly(s->db, "main") == 1;
    return rc;
}

/* file:...?immutable=1, for a directory in which SQLite cannot make the files that reading a write-ahead log needs.
 * Refused while there is a log with something in it. NULL when out of memory or refused. */
static char *immutable_name(const char *file) {
    static const char suffix[] = "?immutable=1";
    size_t n = strlen(file);
    char *name = malloc(3 * n + sizeof "file:" + sizeof suffix), *to = name;
    struct stat log;
    if (!name) {
        return NULL;
    }
    sprintf(name, "%s-wal", file);
    if (!stat(name, &log) && log.st_size > 0) {
        free(name);
        return NULL;
    }
    to += sprintf(to, "file:");
    for (const char *from = file; *from; from++) {
        to += sprintf(to, strchr("%?#", *from) ? "%%%02X" : "%c", *from);
    }
    sprintf(to, "%s", suffix);
    return name;
}

/* For reading only, where writing is not allowed. */
static int try_read_only(store *s, int *version) {
    int rc = try_open(s, s->file, SQLITE_OPEN_READONLY, version);
    char *name = rc == SQLITE_OK ? NULL : immutable_name(s->file);
    if (name) {
        rc = try_open(s, name, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, version);
        free(name);
    }
    return rc;
}

/* From `version` to VERSION, all or nothing. */
static int migrate(sqlite3 *db, int version) {
    char mark[64];
    snprintf(mark, sizeof mark, "PRAGMA user_version=%d; COMMIT", (int)VERSION);
    int rc = run(db, "PRAGMA journal_mode=WAL");
    if (rc == SQLITE_OK) {
        rc = run(db, "BEGIN IMMEDIATE");
    }
    if (rc == SQLITE_OK) {
        rc = read_version(db, &version); /* another process may have been faster */
    }
    for (; rc == SQLITE_OK && version < VERSION; version++) {
        rc = run(db, migrations[version]);
    }
    if (rc == SQLITE_OK) {
        rc = run(db, version == VERSION ? mark : "COMMIT");
    }
    if (rc != SQLITE_OK && !sqlite3_get_autocommit(db)) {
        run(db, "ROLLBACK");
    }
    return rc;
}

static bx_status open_db(store *s, bool create, bx_error *error) {
    int version = 0;
    int rc = try_open(s, s->file, SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0), &version);
    const int primary = rc & 0xff;
    if (!create && (primary == SQLITE_READONLY || primary == SQLITE_CANTOPEN || primary == SQLITE_PERM)) {
        rc = try_read_only(s, &version);
    }
    if (rc == SQLITE_OK && version > VERSION) {
        close_db(s);
        char text[128];
        snprintf(text, sizeof text, "a newer version wrote it (schema %d; this one knows %d)", version, (int)VERSION);
        return unavailable(error, text);
    }
    if (rc == SQLITE_OK && version < VERSION && !s->readable) {
        rc = migrate(s->db, version);
    }
    if (rc != SQLITE_OK) {
        bx_status status = failed(s, rc, error);
        close_db(s);
        return status;
    }
    return BX_OK;
}

/* The directory itself, in a parent that is there, for good. */
static bx_status make_directory(const char *directory, bx_error *error) {
    if (mkdir(directory, 0700)) {
        return errno == EEXIST ? BX_OK : system_failed(errno, "the data directory cannot be made", error);
    }
    size_t n = strlen(directory);
    while (n > 1 && directory[n - 1] == '/') {
        n--;
    }
    while (n > 0 && directory[n - 1] != '/') {
        n--;
    }
    char *parent = n > 0 ? strndup(directory, n) : strdup(".");
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd); /* where a directory cannot be synced, nothing better can be done */
        close(fd);
    }
    free(parent);
    return BX_OK;
}

static bx_status open_for_writing(store *s, bx_error *error) {
    int moved = 0;
    if (s->db && s->readable) {
        close_db(s); /* perhaps it can be written now */
    }
    if (s->db && sqlite3_file_control(s->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved) {
        return unavailable(error, "its file was moved or deleted; restart the daemon");
    }
    bx_status status = s->db ? BX_OK : make_directory(s->directory, error);
    if (status == BX_OK && !s->db) {
        status = open_db(s, true, error);
    }
    return status == BX_OK && s->readable ? failed(s, SQLITE_READONLY, error) : status;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* A row goes to the log and from there to the database. What does not fit is not begun: a log that fills the disk could
 * not be emptied any more. */
static bx_status check_room(const store *s, const store_row *row, bx_error *error) {
    struct statvfs disk;
    bool known = !statvfs(s->directory, &disk) && disk.f_blocks > 0;
    return known && disk.f_bavail * disk.f_frsize < 2 * row->n_bytes + SPARE ? full(error) : BX_OK;
}

/* Run one statement with up to three texts and a blob, to its end. */
static bx_status write_row(store *s, const char *sql, const store_row *row, bool *changed, bx_error *error) {
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &statement, NULL);
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
        return failed(s, rc, error);
    }
    *changed = sqlite3_changes(s->db) > 0;
    return BX_OK;
}

bx_status store_put(store *s, const store_row *row, bx_error *error) {
    bool changed;
    begin_call(s);
    bx_status status = open_for_writing(s, error);
    if (status == BX_OK) {
        status = check_room(s, row, error);
    }
    if (status == BX_OK) {
        status = write_row(s, "REPLACE INTO definition (kind, name, type, body) VALUES (?1, ?2, ?3, ?4)", row, &changed,
                           error);
    }
    return end_call(s, status);
}

static bool file_exists(const store *s) {
    struct stat file;
    return !stat(s->file, &file) || errno != ENOENT;
}

bx_status store_delete(store *s, const char *kind, const char *name, bool *found, bx_error *error) {
    bool changed = false;
    bx_status status = BX_OK;
    begin_call(s);
    if (s->db || file_exists(s)) {
        status = open_for_writing(s, error);
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
    if (rc == SQLITE_OK) {
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
    }
    int end = sqlite3_finalize(statement);
    return rc == SQLITE_DONE ? SQLITE_OK : rc == SQLITE_NOMEM ? rc : end;
}

bx_status store_each(store *s, void (*each)(void *context, const store_row *row), void *context, bx_error *error) {
    bx_status status = BX_OK;
    begin_call(s);
    if (!s->db && file_exists(s)) {
        status = open_db(s, false, error);
    }
    int version = 0, rc = status == BX_OK && s->db ? read_version(s->db, &version) : SQLITE_OK;
    if (rc == SQLITE_OK && version > 0) {
        rc = read_rows(s->db, each, context);
    }
    if (rc != SQLITE_OK) {
        status = failed(s, rc, error);
    }
    if (s->db && s->readable) {
        close_db(s);
    }
    return end_call(s, status);
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

store *store_open(const char *directory) {
    store *s = calloc(1, sizeof *s);
    size_t n = strlen(directory) + sizeof "/" FILE_NAME;
    char *file = malloc(n);
    if (!s || !file) {
        free(s);
        free(file);
        return NULL;
    }
    snprintf(file, n, "%s/%s", directory, FILE_NAME);
    pthread_mutex_init(&s->lock, NULL);
    s->directory = directory;
    s->file = file;
    return s;
}

const char *store_file(const store *s) {
    return s->file;
}

void store_close(store *s) {
    if (s) {
        close_db(s);
        pthread_mutex_destroy(&s->lock);
        free(s->file);
        free(s);
    }
}
