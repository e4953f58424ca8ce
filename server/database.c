/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data directory, which one daemon at a time uses, and the opening of SQLite databases in it.
 *
 * A daemon holds a lock on the directory itself, from the moment there is a database: closing a file of SQLite's would
 * drop a lock on that.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "database.h"

#define BUSY_MS 2000 /* how long another process (a backup, a shell) may hold a database's lock */
#define WAIT_MS 10   /* between two attempts */

struct data_dir {
    pthread_mutex_t lock;
    const char *path;
    int claim; /* descriptor of the locked directory; -1: not locked */
};

/* ---- failures ---------------------------------------------------------------------------------------------------- */

static bx_status unavailable(bx_error *error, const char *text) {
    return bx_fail(error, BX_BUSY, "store_unavailable", "the store cannot be used: %s", text);
}

static bx_status full(bx_error *error) {
    return bx_fail(error, BX_BUSY, "store_full", "the store's disk is full");
}

static bool is_full(int cause) {
    return cause == ENOSPC || cause == EDQUOT || cause == EFBIG;
}

static bx_status system_failed(database *d, int cause, const char *what, bx_error *error) {
    char text[160];
    if (is_full(cause)) {
        d->fault = DATABASE_FULL;
        return full(error);
    }
    d->fault = cause == EROFS || cause == EACCES || cause == EPERM ? DATABASE_READ_ONLY : DATABASE_GONE;
    snprintf(text, sizeof text, "%s: %s", what, strerror(cause));
    return unavailable(error, text);
}

void database_begin(database *d) {
    (void)d;
    errno = 0;
}

void database_leave(database *d) {
    if (d->db) {
        sqlite3_db_config(d->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    }
}

/* SQLite calls only ENOSPC a full disk; quotas and limits on the size of files are still in errno, which the beginning
 * of the call has cleared. */
bx_status database_failed(database *d, int rc, bx_error *error) {
    const int primary = rc & 0xff;
    bx_status status;
    if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED) {
        d->fault = DATABASE_BUSY;
        return bx_fail(error, BX_BUSY, "store_busy", "the store cannot be used: another process holds its lock");
    }
    if (primary == SQLITE_NOMEM) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the store");
    } else if (primary == SQLITE_TOOBIG) {
        status = bx_fail(error, BX_TOO_LARGE, "too_large", "more than one row of the store can hold");
    } else if (primary == SQLITE_FULL || is_full(errno)) {
        d->fault = DATABASE_FULL;
        status = full(error);
    } else if (primary == SQLITE_READONLY) {
        d->fault = DATABASE_READ_ONLY;
        status = unavailable(error, "its file or directory is read-only");
    } else {
        d->fault = primary == SQLITE_NOTADB || primary == SQLITE_CORRUPT ? DATABASE_DAMAGED : DATABASE_GONE;
        status = unavailable(error, sqlite3_errstr(rc));
        if (d->fault == DATABASE_DAMAGED) {
            database_leave(d);
        }
    }
    database_close(d);
    return status;
}

/* ---- the directory ----------------------------------------------------------------------------------------------- */

data_dir *data_dir_new(const char *path) {
    data_dir *d = calloc(1, sizeof *d);
    if (d) {
        pthread_mutex_init(&d->lock, NULL);
        d->path = path;
        d->claim = -1;
    }
    return d;
}

void data_dir_free(data_dir *d) {
    if (d) {
        if (d->claim >= 0) {
            close(d->claim);
        }
        pthread_mutex_destroy(&d->lock);
        free(d);
    }
}

/* What this daemon computes with is what is stored. Where a file system knows no such locks there is none. */
bx_status data_dir_claim(data_dir *d, bx_error *error) {
    bx_status status = BX_OK;
    pthread_mutex_lock(&d->lock);
    int fd = d->claim < 0 ? open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        close(fd);
        char text[200];
        snprintf(text, sizeof text, "another daemon uses the data directory \"%.120s\"; name another with --data-dir",
                 d->path);
        status = unavailable(error, text);
    } else if (fd >= 0) { /* otherwise opening the file will say why not */
        d->claim = fd;
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

bx_status data_dir_check(const data_dir *d, bx_error *error) {
    size_t n = 0;
    struct stat there;
    if (stat(d->path, &there)) {
        return BX_OK; /* it may come */
    }
    if (S_ISREG(there.st_mode)) {
        return bx_fail(error, BX_BUSY, "store_read_only",
                       "the data directory \"%.160s\" is a file; name another --data-dir", d->path);
    }
    DIR *entries = access(d->path, W_OK | X_OK) ? opendir(d->path) : NULL;
    if (!entries) {
        return BX_OK; /* it may hold something */
    }
    while (readdir(entries)) {
        n++;
    }
    closedir(entries);
    return n > 2 ? BX_OK /* more than itself and its parent */
                 : bx_fail(
                       error, BX_BUSY, "store_read_only",
                       "the data directory \"%.120s\" is empty and not this user's (%u) to write; change its owner, or "
                       "name another --data-dir",
                       d->path, (unsigned)geteuid());
}

/* The directory that it lies in; NULL: no memory. */
static char *parent_of(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') {
        n--;
    }
    while (n > 0 && path[n - 1] != '/') {
        n--;
    }
    return n > 0 ? strndup(path, n) : strdup(".");
}

/* A file system of the kernel's, where nobody makes directories, whatever its modes say to root. */
static bool is_kernels(const char *path) {
    struct statfs place;
    return !statfs(path, &place) && (place.f_type == PROC_SUPER_MAGIC || place.f_type == SYSFS_MAGIC);
}

int data_dir_obstacle(const data_dir *d) {
    struct stat there;
    if (!stat(d->path, &there)) {
        return !S_ISDIR(there.st_mode) ? ENOTDIR : access(d->path, W_OK | X_OK) ? errno : 0;
    }
    if (errno != ENOENT) {
        return errno;
    }
    char *parent = parent_of(d->path);
    int cause = 0;
    if (parent && access(parent, W_OK | X_OK)) {
        cause = errno;
    } else if (parent && is_kernels(parent)) {
        cause = EPERM;
    }
    free(parent);
    return cause;
}

/* The directory itself, in a parent that is there, for good. */
static bx_status make_directory(database *d, bx_error *error) {
    const char *path = d->directory->path;
    if (mkdir(path, 0700)) {
        return errno == EEXIST ? BX_OK : system_failed(d, errno, "the data directory cannot be made", error);
    }
    char *parent = parent_of(path);
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd); /* where a directory cannot be synced, nothing better can be done */
        close(fd);
    }
    free(parent);
    return BX_OK;
}

/* A write-ahead log is memory that the processes of one machine share. */
static bool is_remote(const char *path) {
    static const unsigned long types[] = {0x6969 /* NFS */,      0x517B /* SMB */,        0xFF534D42 /* CIFS */,
                                          0xFE534D42 /* SMB2 */, 0x5346414F /* AFS */,    0x6B414653 /* kAFS */,
                                          0x00C36400 /* Ceph */, 0x0BD00BD0 /* Lustre */, 0x01161970 /* GFS2 */};
    struct statfs place;
    bool remote = false;
    for (size_t i = 0; !statfs(path, &place) && i < sizeof types / sizeof *types; i++) {
        remote |= ((unsigned long)place.f_type & 0xffffffffUL) == types[i];
    }
    return remote;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

int database_run(database *d, const char *sql) {
    return sqlite3_exec(d->db, sql, NULL, NULL, NULL);
}

int database_number(database *d, const char *sql, int64_t *number) {
    sqlite3_stmt *statement;
    int rc = sqlite3_prepare_v2(d->db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(statement);
        *number = rc == SQLITE_ROW ? sqlite3_column_int64(statement, 0) : 0;
        int end = sqlite3_finalize(statement);
        rc = rc == SQLITE_ROW ? SQLITE_OK : end;
    }
    return rc;
}

static int wait_for_lock(void *context, int attempt) {
    const database *d = context;
    return attempt < BUSY_MS / WAIT_MS && !atomic_load(&d->hurried) && !usleep(WAIT_MS * 1000);
}

/* No database of ours has a negative one. */
static int read_version(database *d, int64_t *version) {
    const int rc = database_number(d, "PRAGMA user_version", version);
    return rc == SQLITE_OK && *version < 0 ? SQLITE_CORRUPT : rc;
}

/* Open the file and read from it. */
static int try_open(database *d, int flags, int64_t *version) {
    char settings[160];
    database_close(d);
    int rc = sqlite3_open_v2(d->file, &d->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        return rc;
    }
    sqlite3_extended_result_codes(d->db, 1);
    sqlite3_busy_handler(d->db, wait_for_lock, d);
    sqlite3_db_config(d->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(d->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    snprintf(settings, sizeof settings,
             "PRAGMA synchronous=%s; PRAGMA cache_size=-2048; PRAGMA mmap_size=0; PRAGMA cell_size_check=ON",
             d->synchronous);
    rc = database_run(d, settings);
    if (rc == SQLITE_OK) {
        rc = read_version(d, version);
    }
    d->readable = rc == SQLITE_OK && sqlite3_db_readonly(d->db, "main") == 1;
    return rc;
}

int database_empty_log(database *d) {
    sqlite3_busy_handler(d->db, NULL, NULL);
    const int rc = sqlite3_wal_checkpoint_v2(d->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_busy_handler(d->db, wait_for_lock, d);
    return rc;
}

/* From `version` to that of the kind, all or nothing. */
static int migrate(database *d, int64_t version) {
    char mark[64];
    const int wanted = d->kind->version;
    snprintf(mark, sizeof mark, "PRAGMA user_version=%d; COMMIT", wanted);
    int rc = database_run(d, "BEGIN IMMEDIATE");
    rc = rc == SQLITE_OK ? read_version(d, &version) : rc; /* nobody else has done it */
    for (; rc == SQLITE_OK && version < wanted; version++) {
        rc = database_run(d, d->kind->migrations[version]);
    }
    if (rc == SQLITE_OK) {
        rc = database_run(d, mark);
    }
    if (rc != SQLITE_OK && !sqlite3_get_autocommit(d->db)) {
        database_run(d, "ROLLBACK");
    }
    return rc;
}

/* Whatever another program has made of it. */
static bx_status set_journal(database *d, int *rc, bx_error *error) {
    sqlite3_stmt *statement;
    *rc = sqlite3_prepare_v2(d->db, d->kind->log ? "PRAGMA journal_mode=WAL" : "PRAGMA journal_mode=DELETE", -1,
                             &statement, NULL);
    if (*rc != SQLITE_OK) {
        return BX_OK;
    }
    *rc = sqlite3_step(statement);
    const char *mode = *rc == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    const bool refused = d->kind->log && mode && strcmp(mode, "wal") != 0;
    const int end = sqlite3_finalize(statement);
    *rc = *rc == SQLITE_ROW ? SQLITE_OK : end;
    if (refused) {
        d->fault = DATABASE_GONE;
        return unavailable(error, "its file system cannot hold a write-ahead log");
    }
    return BX_OK;
}

static bx_status newer(database *d, int64_t version, bx_error *error) {
    char text[128];
    snprintf(text, sizeof text, "a newer version wrote it (schema %d; this one knows %d)", (int)version,
             d->kind->version);
    d->fault = DATABASE_NEWER;
    database_leave(d);
    return unavailable(error, text);
}

static bx_status open_file(database *d, bool create, bx_error *error) {
    int64_t version = 0;
    if (d->kind->log && is_remote(d->directory->path)) {
        d->fault = DATABASE_READ_ONLY;
        return unavailable(error,
                           "the data directory is on a network file system, where a write-ahead log is not safe");
    }
    int rc = try_open(d, SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0), &version);
    const int primary = rc & 0xff;
    if (!create && (primary == SQLITE_READONLY || primary == SQLITE_CANTOPEN || primary == SQLITE_PERM)) {
        rc = try_open(d, SQLITE_OPEN_READONLY, &version);
    }
    if (rc == SQLITE_OK && version > d->kind->version) {
        return newer(d, version, error);
    }
    bx_status status = BX_OK;
    if (rc == SQLITE_OK && !d->readable) {
        status = set_journal(d, &rc, error);
    }
    if (status == BX_OK && rc == SQLITE_OK && version < d->kind->version && !d->readable) {
        rc = migrate(d, version);
    }
    return rc == SQLITE_OK ? status : database_failed(d, rc, error);
}

bx_status database_moved(database *d, bx_error *error) {
    d->fault = DATABASE_GONE;
    return unavailable(error, "its file was moved or deleted; restart the daemon");
}

bx_status database_open(database *d, bool writing, bx_error *error) {
    int moved = 0;
    if (writing && d->db && d->readable) {
        database_close(d); /* perhaps it can be written now */
    }
    if (d->db && sqlite3_file_control(d->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved) {
        return database_moved(d, error);
    }
    bx_status status = writing && !d->db ? make_directory(d, error) : BX_OK;
    if (status == BX_OK && !d->db) {
        status = data_dir_claim(d->directory, error);
        d->fault = status == BX_OK ? d->fault : DATABASE_GONE;
        if (status == BX_OK) {
            status = open_file(d, writing, error);
        }
        if (status != BX_OK) {
            database_close(d);
        }
    }
    return status == BX_OK && writing && d->readable ? database_failed(d, SQLITE_READONLY, error) : status;
}

int database_prepare(database *d, int i, sqlite3_stmt **out) {
    int rc = SQLITE_OK;
    if (!d->prepared[i]) {
        rc = sqlite3_prepare_v3(d->db, d->kind->sql[i], -1, SQLITE_PREPARE_PERSISTENT, &d->prepared[i], NULL);
    }
    *out = d->prepared[i];
    return rc;
}

void database_close(database *d) {
    for (int i = 0; i < MOST_STATEMENTS; i++) {
        sqlite3_finalize(d->prepared[i]);
        d->prepared[i] = NULL;
    }
    sqlite3_close(d->db); /* no other statement is left open */
    d->db = NULL;
}

bool database_exists(const database *d) {
    struct stat file;
    return !stat(d->file, &file) || (errno != ENOENT && errno != ENOTDIR);
}

bool database_init(database *d, const database_kind *kind, data_dir *directory, const char *synchronous) {
    const size_t n = strlen(directory->path) + strlen(kind->file) + 2;
    *d = (database){.kind = kind, .directory = directory, .synchronous = synchronous, .file = malloc(n)};
    atomic_init(&d->hurried, false);
    if (d->file) {
        snprintf(d->file, n, "%s/%s", directory->path, kind->file);
    }
    return d->file != NULL;
}

void database_fini(database *d) {
    database_close(d);
    free(d->file);
    d->file = NULL;
}

void database_hurry(database *d) {
    atomic_store(&d->hurried, true);
}

/* Bytes of the disk that so many more take: what free pages of the file do not hold, and what the file has still to
 * grow by when its log is copied into it, and what is spare. The log itself is emptied in time; meanwhile it may take
 * what is spare. Of that, half will do while the file has as much inside it: or what is deleted from a file that has
 * filled its disk would make no room. */
static size_t count_needed(database *d, size_t bytes) {
    struct stat file;
    int64_t page = 0, pages = 0, free_pages = 0;
    int rc = database_number(d, "PRAGMA page_size", &page);
    rc = rc == SQLITE_OK ? database_number(d, "PRAGMA page_count", &pages) : rc;
    rc = rc == SQLITE_OK ? database_number(d, "PRAGMA freelist_count", &free_pages) : rc;
    if (rc != SQLITE_OK || stat(d->file, &file)) {
        return bytes + d->kind->spare;
    }
    const size_t unused = (size_t)(free_pages * page), whole = (size_t)(pages * page), now = (size_t)file.st_size;
    const size_t spare = d->kind->log && unused >= d->kind->spare ? d->kind->spare / 2 : d->kind->spare;
    return (bytes > unused ? bytes - unused : 0) + (whole > now ? whole - now : 0) + spare;
}

static bool has_room(database *d, size_t bytes) {
    struct statvfs disk;
    return statvfs(d->directory->path, &disk) || disk.f_blocks == 0 ||
           disk.f_bavail * disk.f_frsize >= count_needed(d, bytes);
}

bx_status database_check_room(database *d, size_t bytes, bx_error *error) {
    bool fits = has_room(d, bytes);
    if (!fits && d->kind->log) { /* the log itself may take much */
        sqlite3_wal_checkpoint_v2(d->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
        fits = has_room(d, bytes);
    }
    if (!fits) {
        d->fault = DATABASE_FULL;
        return full(error);
    }
    return BX_OK;
}
