/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts below SQLite, for tests. A VFS passes everything on to the real one, but remembers of each file what the
 * disk holds for certain and which writes no sync has followed. At the cut every call begins to fail; what the disk
 * would hold then is written into another directory: of the unsynced writes none, the first ones, or any of their
 * sectors in any order; a file whose directory was not synced may be missing, or not be deleted yet.
 */
#ifndef POWER_H
#define POWER_H

#include <fcntl.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "random.h"
#include "suite.h"

#define SECTOR 512

/* A write of a sector, or (bytes < 0) a new length. */
typedef struct power_write {
    int64_t at;
    int bytes;
    unsigned char data[SECTOR];
} power_write;

typedef struct power_image {
    char name[160];
    unsigned char *bytes; /* for certain */
    int64_t n, room;
    power_write *unsynced;
    size_t n_unsynced, unsynced_room;
    bool there, certainly; /* whether its name is; and whether the directory says so after a cut */
} power_image;

typedef struct power_file {
    sqlite3_file base;
    power_image *image;
    bool syncs_directory; /* SQLite syncs the directory with the first sync of a journal it has made */
    sqlite3_file *real;   /* right behind */
} power_file;

static struct {
    power_image images[8];
    sqlite3_vfs *real, vfs;
    long calls, cut; /* at which one the power goes; negative: never */
} power = {.cut = -1};

#define POWER(f)           ((power_file *)(void *)(f))
#define POWER_PASS(f, ...) (POWER(f)->real->pMethods->__VA_ARGS__)

static inline bool power_is_off(void) {
    power.calls++;
    return power.cut >= 0 && power.calls > power.cut;
}

static inline void power_resize(power_image *i, int64_t n) {
    if (n > i->room) {
        i->room = 2 * n;
        i->bytes = realloc(i->bytes, (size_t)i->room);
        ck_assert_ptr_nonnull(i->bytes);
    }
    if (n > i->n) {
        memset(i->bytes + i->n, 0, (size_t)(n - i->n));
    }
    i->n = n;
}

static inline void power_apply(power_image *i, const power_write *w) {
    if (w->bytes < 0) {
        power_resize(i, w->at);
        return;
    }
    if (w->at + w->bytes > i->n) {
        power_resize(i, w->at + w->bytes);
    }
    memcpy(i->bytes + w->at, w->data, (size_t)w->bytes);
}

static inline power_write *power_add(power_image *i) {
    if (i->n_unsynced == i->unsynced_room) {
        i->unsynced_room = i->unsynced_room ? 2 * i->unsynced_room : 64;
        i->unsynced = realloc(i->unsynced, i->unsynced_room * sizeof *i->unsynced);
        ck_assert_ptr_nonnull(i->unsynced);
    }
    return &i->unsynced[i->n_unsynced++];
}

static inline void power_settle(power_image *i) {
    for (size_t k = 0; k < i->n_unsynced; k++) {
        power_apply(i, &i->unsynced[k]);
    }
    i->n_unsynced = 0;
}

static inline void power_settle_directory(void) {
    for (size_t k = 0; k < 8; k++) {
        power.images[k].certainly = power.images[k].there;
    }
}

/* What the disk may hold of a file. */
static inline void power_guess(power_image *i) {
    const int how = below(4); /* 0: none of it */
    size_t n = how == 1 ? (size_t)below((int32_t)i->n_unsynced + 1) : how == 0 ? 0 : i->n_unsynced;
    for (size_t k = 0; how == 3 && k + 1 < n; k++) {
        const size_t other = k + (size_t)below((int32_t)(n - k));
        const power_write w = i->unsynced[k];
        i->unsynced[k] = i->unsynced[other];
        i->unsynced[other] = w;
    }
    for (size_t k = 0; k < n; k++) {
        if (how == 1 || below(2)) {
            power_apply(i, &i->unsynced[k]);
        }
    }
    i->n_unsynced = 0;
}

/* What is left after the cut, under the same names in another directory; everything is forgotten. */
static inline void power_leave(const char *path) {
    char name[256];
    for (size_t k = 0; k < 8; k++) {
        power_image *i = &power.images[k];
        if (*i->name && (i->there == i->certainly ? i->there : below(2))) {
            power_guess(i);
            snprintf(name, sizeof name, "%s/%s", path, strrchr(i->name, '/') + 1);
            int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            ck_assert_int_ge(fd, 0);
            ck_assert_int_eq(write(fd, i->bytes, (size_t)i->n), i->n);
            close(fd);
        }
        free(i->bytes);
        free(i->unsynced);
        *i = (power_image){.name = ""};
    }
    power.cut = -1;
    power.calls = 0;
}

/* ---- the VFS ----------------------------------------------------------------------------------------------------- */

static inline int power_close(sqlite3_file *f) {
    return POWER_PASS(f, xClose(POWER(f)->real));
}
static inline int power_read(sqlite3_file *f, void *to, int n, sqlite3_int64 at) {
    return POWER_PASS(f, xRead(POWER(f)->real, to, n, at));
}
static inline int power_write_to(sqlite3_file *f, const void *from, int n, sqlite3_int64 at) {
    const char *next = from;
    if (power_is_off()) {
        return SQLITE_IOERR_WRITE;
    }
    for (int64_t here = at; here < at + n;) {
        const int64_t end = (here / SECTOR + 1) * SECTOR, until = end < at + n ? end : at + n;
        power_write *w = power_add(POWER(f)->image);
        w->at = here;
        w->bytes = (int)(until - here);
        memcpy(w->data, next, (size_t)w->bytes);
        next += w->bytes;
        here = until;
    }
    return POWER_PASS(f, xWrite(POWER(f)->real, from, n, at));
}
static inline int power_truncate(sqlite3_file *f, sqlite3_int64 size) {
    if (power_is_off()) {
        return SQLITE_IOERR_TRUNCATE;
    }
    power_write *w = power_add(POWER(f)->image);
    w->at = size;
    w->bytes = -1;
    return POWER_PASS(f, xTruncate(POWER(f)->real, size));
}
static inline int power_sync(sqlite3_file *f, int flags) {
    (void)flags;
    if (power_is_off()) {
        return SQLITE_IOERR_FSYNC;
    }
    power_settle(POWER(f)->image);
    if (POWER(f)->syncs_directory) {
        power_settle_directory();
        POWER(f)->syncs_directory = false;
    }
    return SQLITE_OK; /* the test's own disk is not what it is about */
}
static inline int power_size(sqlite3_file *f, sqlite3_int64 *size) {
    return POWER_PASS(f, xFileSize(POWER(f)->real, size));
}
static inline int power_lock(sqlite3_file *f, int lock) {
    return POWER_PASS(f, xLock(POWER(f)->real, lock));
}
static inline int power_unlock(sqlite3_file *f, int lock) {
    return POWER_PASS(f, xUnlock(POWER(f)->real, lock));
}
static inline int power_check(sqlite3_file *f, int *out) {
    return POWER_PASS(f, xCheckReservedLock(POWER(f)->real, out));
}
static inline int power_control(sqlite3_file *f, int op, void *argument) {
    return op == SQLITE_FCNTL_SIZE_HINT ? SQLITE_OK : POWER_PASS(f, xFileControl(POWER(f)->real, op, argument));
}
static inline int power_sector(sqlite3_file *f) {
    return POWER_PASS(f, xSectorSize(POWER(f)->real));
}
static inline int power_characteristics(sqlite3_file *f) {
    return POWER_PASS(f, xDeviceCharacteristics(POWER(f)->real));
}
static inline int power_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out) {
    return POWER_PASS(f, xShmMap(POWER(f)->real, page, size, extend, out));
}
static inline int power_shm_lock(sqlite3_file *f, int offset, int n, int flags) {
    return POWER_PASS(f, xShmLock(POWER(f)->real, offset, n, flags));
}
static inline void power_shm_barrier(sqlite3_file *f) {
    POWER_PASS(f, xShmBarrier(POWER(f)->real));
}
static inline int power_shm_unmap(sqlite3_file *f, int delete_it) {
    return POWER_PASS(f, xShmUnmap(POWER(f)->real, delete_it));
}

/* Of the file of this name; the first of them is nameless so far. */
static inline power_image *power_find(const char *name) {
    size_t k = 0;
    while (*power.images[k].name && strcmp(power.images[k].name, name) != 0) {
        k++;
        ck_assert_uint_lt(k, 8);
    }
    snprintf(power.images[k].name, sizeof power.images[k].name, "%s", name);
    return &power.images[k];
}

static inline int power_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *f, int flags, int *out) {
    static const sqlite3_io_methods methods = {
        2,
        power_close,
        power_read,
        power_write_to,
        power_truncate,
        power_sync,
        power_size,
        power_lock,
        power_unlock,
        power_check,
        power_control,
        power_sector,
        power_characteristics,
        power_shm_map,
        power_shm_lock,
        power_shm_barrier,
        power_shm_unmap,
        NULL,
        NULL,
    };
    (void)vfs;
    f->pMethods = NULL;
    if (power_is_off()) {
        return SQLITE_CANTOPEN;
    }
    POWER(f)->real = (sqlite3_file *)(void *)(POWER(f) + 1);
    int rc = power.real->xOpen(power.real, name, POWER(f)->real, flags, out);
    if (!POWER(f)->real->pMethods) {
        return rc;
    }
    power_image *i = power_find(name ? name : "/temporary");
    POWER(f)->image = i;
    POWER(f)->syncs_directory = !i->there && (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL));
    if (!i->there) {
        i->n = 0; /* a new one of the name */
        i->n_unsynced = 0;
        i->there = name != NULL;
    }
    f->pMethods = &methods;
    return rc;
}

static inline int power_delete(sqlite3_vfs *vfs, const char *name, int sync_directory) {
    (void)vfs;
    if (power_is_off()) {
        return SQLITE_IOERR_DELETE;
    }
    power_find(name)->there = false;
    if (sync_directory) {
        power_settle_directory();
    }
    return power.real->xDelete(power.real, name, sync_directory);
}

/* Under everything that is opened from now on. */
static inline void use_power(void) {
    sqlite3_initialize();
    power.real = sqlite3_vfs_find(NULL);
    power.vfs = *power.real;
    power.vfs.zName = "power";
    power.vfs.szOsFile += (int)sizeof(power_file);
    power.vfs.xOpen = power_open;
    power.vfs.xDelete = power_delete;
    ck_assert_int_eq(sqlite3_vfs_register(&power.vfs, 1), SQLITE_OK);
}

static inline void use_no_power(void) {
    ck_assert_int_eq(sqlite3_vfs_register(power.real, 1), SQLITE_OK);
}

#endif
