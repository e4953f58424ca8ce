/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite databases in the data directory: opening, versions, failures. For the files that keep something in one.
 *
 * A database is used by one thread at a time; its owner sees to that. Nothing is created before something is stored. A
 * call that the disk or the file fails closes the database, so that the next one starts afresh: a disk that has room
 * again needs no restart. A database is never repaired or deleted here.
 */
#ifndef DATABASE_H
#define DATABASE_H

#include <sqlite3.h>

#include "server.h"

/* What kind of database; static storage. */
typedef struct database_kind {
    const char *file;              /* its name in the data_dir */
    const char *const *migrations; /* statements that lead from each schema version to the next; user_version counts */
    int version;                   /* how many there are */
    bool log;                      /* with a write-ahead log, else with a rollback journal */
    const char *const *sql;        /* texts for database_prepare; fewer than MOST_STATEMENTS */
    size_t spare;                  /* bytes of the disk that stay free, so that something can still be deleted */
} database_kind;

/* Why a database cannot be used. */
typedef enum database_fault {
    DATABASE_FINE,
    DATABASE_BUSY,      /* another process holds its lock */
    DATABASE_FULL,      /* its disk is */
    DATABASE_READ_ONLY, /* it, or its data_dir */
    DATABASE_DAMAGED,   /* it is no database, or a broken one */
    DATABASE_NEWER,     /* a newer version wrote it */
    DATABASE_GONE       /* whatever else: moved, unreadable, another daemon's */
} database_fault;

#define MOST_STATEMENTS 32

typedef struct database {
    const database_kind *kind;
    data_dir *directory;
    char *file;
    const char *synchronous; /* the pragma's value */
    sqlite3 *db;             /* NULL: not open */
    sqlite3_stmt *prepared[MOST_STATEMENTS];
    bool readable;        /* db cannot be written */
    database_fault fault; /* of the last failure; whoever succeeds resets it */
    atomic_bool hurried;
} database;

/* Not opened yet. False: no memory. */
BX_MUST_USE bool database_init(database *database, const database_kind *kind, data_dir *directory,
                               const char *synchronous);
void database_fini(database *database);
/* From now on nobody waits for a database that another process has locked. Any thread. */
void database_hurry(database *database);
bool database_exists(const database *database);
/* Open it unless it is open. For writing it is made where there is none; opened otherwise it may be one that cannot be
 * written. Errors, also of those below: BX_BUSY "store_unavailable", "store_busy" or "store_full", BX_TOO_LARGE,
 * BX_NOMEM. */
BX_MUST_USE bx_status database_open(database *database, bool writing, bx_error *error);
void database_close(database *database);
/* Whenever it is closed, nothing is written into it: a log that is not ours to copy stays a log. */
void database_leave(database *database);
/* Whether there is room for a row of so many bytes. What does not fit is not begun. */
BX_MUST_USE bx_status database_check_room(database *database, size_t bytes, bx_error *error);
/* Not where it was: nothing is to be written into it. It stays open, for it may be put back. */
bx_status database_moved(database *database, bx_error *error);
/* Before a call, and what its code came to: the database is closed unless it is only locked. */
void database_begin(database *database);
bx_status database_failed(database *database, int rc, bx_error *error);
/* The i-th statement of the kind, ready to be bound. It is the database's; whoever has stepped it resets it. */
int database_prepare(database *database, int i, sqlite3_stmt **statement);
/* Statements without results; and a number that a pragma or a query answers (0: no row). */
int database_run(database *database, const char *sql);
int database_number(database *database, const char *sql, int64_t *number);
/* Copy all of the log and cut it; SQLITE_BUSY, at once, where somebody reads. */
int database_empty_log(database *database);

#endif
