/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What survives a restart: one SQLite database, used in this file only.
 *
 * Nothing is created before something is stored. A row is on the disk when store_put returns (rollback journal,
 * synchronous EXTRA), and what could not be written is rolled back, if need be by the next who opens the file. One
 * daemon at a time uses a directory: it holds a lock on the directory itself, from the moment there is a database. A
 * call that the disk or the file fails closes the database, so that the next one starts afresh: a disk that has room
 * again needs no restart. A database is never repaired or deleted here.
 */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "server.h"

#define FILE_NAME "lossd.sqlite3"
#define BUSY_MS   2000  /* how long another process (a backup, a shell) may hold the database's lock */
#define WAIT_MS   10    /* between two attempts */
#define SPARE     65536 /* bytes of the disk that are left for the journal: deleting needs one too */

struct store {
    pthread_mutex_t lock;
    const char *directory;
    char *file;
    sqlite3 *db;   /* NULL: not open */
    bool readable; /* db cannot be written */
    int claim;     /* descriptor of the locked directory; -1: not locked */
    atomic_bool hurried;
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

static int read_number(sqlite3 *db, const char *pragma, int *number) {
    sqlite3_stmt *statement;
    int rc = sqlite3_prepare_v2(db, pragma, -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(statement);
        *number = rc == SQLITE_ROW ? sqlite3_column_int(statement, 0) : 0;
        int end = sqlite3_finalize(statement);
        rc = rc == SQLITE_ROW ? SQLITE_OK : end;
    }
    return rc;
}

static int wait_for_lock(void *context, int attempt) {
    const store *s = context;
    return attempt < BUSY_MS / WAIT_MS && !atomic_load(&s->hurried) && !usleep(WAIT_MS * 1000);
}

/* Open the file and read from it. */
static int try_open(store *s, int flags, int *version) {
    close_db(s);
    int rc = sqlite3_open_v2(s->file, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        return rc;
    }
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_handler(s->db, wait_for_lock, s);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    rc = run(s->db, "PRAGMA synchronous=EXTRA; PRAGMA cache_size=-2048; PRAGMA mmap_size=0;"
                    "PRAGMA cell_size_check=ON");
    if (rc == SQLITE_OK) {
        rc = read_number(s->db, "PRAGMA user_version", version);
    }
    s->readable = rc == SQLITE_OK && sqlite3_db_readonly(s->db, "main") == 1;
    return rc;
}

/* From `version` to VERSION, all or nothing. */
static int migrate(sqlite3 *db, int version) {
    char mark[64];
    snprintf(mark, sizeof mark, "PRAGMA user_version=%d; COMMIT", (int)VERSION);
    int rc = run(db, "BEGIN IMMEDIATE");
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

/* The lock on the directory, for as long as the store is open: what this daemon computes with is what is stored. Where
 * a file system knows no such locks there is none. */
static bx_status claim(store *s, bx_error *error) {
    if (s->claim >= 0) {
        return BX_OK;
    }
    int fd = open(s->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return BX_OK; /* opening the file will say why */
    }
    if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        close(fd);
        char text[200];
        snprintf(text, sizeof text, "another daemon uses the data directory \"%.120s\"", s->directory);
        return unavailable(error, text);
    }
    s->claim = fd;
    return BX_OK;
}

static bx_status open_db(store *s, bool create, bx_error *error) {
    int version = 0;
    bx_status claimed = claim(s, error);
    if (claimed != BX_OK) {
        return claimed;
    }
    int rc = try_open(s, SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0), &version);
    const int primary = rc & 0xff;
    if (!create && (primary == SQLITE_READONLY || primary == SQLITE_CANTOPEN || primary == SQLITE_PERM)) {
        rc = try_open(s, SQLITE_OPEN_READONLY, &version);
    }
    if (rc == SQLITE_OK && version > VERSION) {
        close_db(s);
        char text[128];
        snprintf(text, sizeof text, "a newer version wrote it (schema %d; this one knows %d)", version, (int)VERSION);
        return unavailable(error, text);
    }
    if (rc == SQLITE_OK && !s->readable) {
        rc = run(s->db, "PRAGMA journal_mode=DELETE"); /* whatever another program has made of it */
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

/* Whether a row fits, into pages of the file that are free and what the disk has left. What does not is not begun, so
 * that something of the disk stays for the journal of a deletion. */
static bx_status check_room(const store *s, const store_row *row, bx_error *error) {
    struct statvfs disk;
    int pages = 0, page = 0;
    if (statvfs(s->directory, &disk) || disk.f_blocks == 0) {
        return BX_OK;
    }
    int rc = read_number(s->db, "PRAGMA freelist_count", &pages);
    rc = rc == SQLITE_OK ? read_number(s->db, "PRAGMA page_size", &page) : rc;
    const size_t free_pages = rc == SQLITE_OK ? (size_t)pages * (size_t)page : 0;
    const size_t more = row->n_bytes > free_pages ? row->n_bytes - free_pages : 0;
    return disk.f_bavail * disk.f_frsize < more + SPARE ? full(error) : BX_OK;
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
    if (!s->db && file_exists(s)) {
        status = open_db(s, false, error);
    }
    int version = 0, rc = status == BX_OK && s->db ? read_number(s->db, "PRAGMA user_version", &version) : SQLITE_OK;
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
    s->claim = -1;
    atomic_init(&s->hurried, false);
    s->file = file;
    return s;
}

const char *store_file(const store *s) {
    return s->file;
}

void store_hurry(store *s) {
    atomic_store(&s->hurried, true);
}

bx_status store_claim(store *s, bx_error *error) {
    begin_call(s);
    return end_call(s, file_exists(s) ? claim(s, error) : BX_OK);
}

void store_close(store *s) {
    if (s) {
        close_db(s);
        if (s->claim >= 0) {
            close(s->claim);
        }
        pthread_mutex_destroy(&s->lock);
        free(s->file);
        free(s);
    }
}
