/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes SQLite fail, for tests. A VFS counts the calls that write, sync, resize and open, and makes the k-th of them
 * fail, or kills the process in it; where the failure is SQLITE_BUSY, which is nothing that a write comes to, it counts
 * those that take a lock. Allocations can be made to fail likewise. For one thread at a time.
 */
#ifndef FAILING_H
#define FAILING_H

#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>

#include "suite.h"

static long countdown = -1; /* calls left until the failing one; negative: disarmed */
static bool for_ever, fired;
static bool deadly; /* it is not a failure, but SIGKILL: of a write, when half of it is done */
static int failure;

static bool fails(void) {
    if (countdown < 0) {
        return false;
    }
    bool now = countdown <= 1;
    countdown = !now ? countdown - 1 : for_ever ? 1 : -1;
    fired |= now;
    return now;
}

static bool breaks(void) {
    return failure != SQLITE_BUSY && fails();
}

static bool is_held(void) {
    return failure == SQLITE_BUSY && fails();
}

typedef struct shim {
    sqlite3_file base;
    sqlite3_file *real; /* right behind */
} shim;

static sqlite3_vfs *real_vfs;

#define REAL(f)         (((shim *)(void *)(f))->real)
#define PASS(name, ...) (REAL(f)->pMethods->name(REAL(f), __VA_ARGS__))

static int shim_close(sqlite3_file *f) {
    return REAL(f)->pMethods->xClose(REAL(f));
}
static int shim_read(sqlite3_file *f, void *to, int n, sqlite3_int64 at) {
    return PASS(xRead, to, n, at);
}
static int strike(void) {
    if (deadly) {
        raise(SIGKILL);
    }
    return failure;
}
static int shim_write(sqlite3_file *f, const void *from, int n, sqlite3_int64 at) {
    if (breaks()) {
        PASS(xWrite, from, n / 2, at); /* some of it may have gone through */
        return strike();
    }
    return PASS(xWrite, from, n, at);
}
static int shim_truncate(sqlite3_file *f, sqlite3_int64 size) {
    return breaks() ? strike() : PASS(xTruncate, size);
}
static long syncs;

static int shim_sync(sqlite3_file *f, int flags) {
    syncs++;
    return breaks() ? strike() : PASS(xSync, flags);
}
static int shim_size(sqlite3_file *f, sqlite3_int64 *size) {
    return PASS(xFileSize, size);
}
static int shim_lock(sqlite3_file *f, int lock) {
    return is_held() ? SQLITE_BUSY : PASS(xLock, lock);
}
static int shim_unlock(sqlite3_file *f, int lock) {
    return PASS(xUnlock, lock);
}
static int shim_check(sqlite3_file *f, int *out) {
    return PASS(xCheckReservedLock, out);
}
static int shim_control(sqlite3_file *f, int op, void *argument) {
    return PASS(xFileControl, op, argument);
}
static int shim_sector(sqlite3_file *f) {
    return REAL(f)->pMethods->xSectorSize(REAL(f));
}
static int shim_characteristics(sqlite3_file *f) {
    return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}
static int shim_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out) {
    return extend && breaks() ? strike() : PASS(xShmMap, page, size, extend, out);
}
static int shim_shm_lock(sqlite3_file *f, int offset, int n, int flags) {
    return (flags & SQLITE_SHM_LOCK) && is_held() ? SQLITE_BUSY : PASS(xShmLock, offset, n, flags);
}
static void shim_shm_barrier(sqlite3_file *f) {
    REAL(f)->pMethods->xShmBarrier(REAL(f));
}
static int shim_shm_unmap(sqlite3_file *f, int delete_it) {
    return PASS(xShmUnmap, delete_it);
}

static int shim_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *f, int flags, int *out) {
    static const sqlite3_io_methods methods = {
        2,
        shim_close,
        shim_read,
        shim_write,
        shim_truncate,
        shim_sync,
        shim_size,
        shim_lock,
        shim_unlock,
        shim_check,
        shim_control,
        shim_sector,
        shim_characteristics,
        shim_shm_map,
        shim_shm_lock,
        shim_shm_barrier,
        shim_shm_unmap,
        NULL,
        NULL,
    };
    shim *s = (shim *)(void *)f;
    (void)vfs;
    f->pMethods = NULL;
    if (breaks()) {
        strike();
        return SQLITE_CANTOPEN;
    }
    s->real = (sqlite3_file *)(void *)(s + 1);
    int rc = real_vfs->xOpen(real_vfs, name, s->real, flags, out);
    f->pMethods = s->real->pMethods ? &methods : NULL;
    return rc;
}

/* SQLite's own patience with locks; nothing here gets better by waiting. */
static int shim_sleep(sqlite3_vfs *vfs, int us) {
    (void)vfs;
    return us;
}

/* One that fails the k-th call is under everything that is opened from now on. */
static inline void use_shim(void) {
    static sqlite3_vfs vfs;
    sqlite3_initialize();
    real_vfs = sqlite3_vfs_find(NULL);
    vfs = *real_vfs;
    vfs.zName = "failing";
    vfs.szOsFile += (int)sizeof(shim);
    vfs.xOpen = shim_open;
    vfs.xSleep = shim_sleep;
    ck_assert_int_eq(sqlite3_vfs_register(&vfs, 1), SQLITE_OK);
}

static sqlite3_mem_methods real_memory;

static void *failing_malloc(int n) {
    return fails() ? NULL : real_memory.xMalloc(n);
}
static void *failing_realloc(void *p, int n) {
    return fails() ? NULL : real_memory.xRealloc(p, n);
}

/* Before SQLite is initialized. */
static inline void use_failing_memory(void) {
    ck_assert_int_eq(sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory), SQLITE_OK);
    sqlite3_mem_methods failing = real_memory;
    failing.xMalloc = failing_malloc;
    failing.xRealloc = failing_realloc;
    ck_assert_int_eq(sqlite3_config(SQLITE_CONFIG_MALLOC, &failing), SQLITE_OK);
    sqlite3_initialize();
}

#endif
