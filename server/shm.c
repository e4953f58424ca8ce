/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory that clients on this machine have registered, by the names they gave it.
 *
 * A region is a part of a POSIX shared memory object, mapped for reading as long as it is registered or a request uses
 * it. The object stays the client's, who may write to it or make it shorter at any time. What is read from a region is
 * therefore believed only once: numbers may change under our hands, nothing else may depend on them. Where the object
 * has become too short, the kernel's signal is answered by putting zeros in the place of what is gone and marking the
 * region as broken; whoever used it asks when it is done, and must not answer with what was computed.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server.h"

#define MAX_REGIONS 64
#define MAX_KEY     254 /* so that one which was cut is too long */

/* The signal handler looks at these alone. A mapping has a slot for as long as there is one. */
static struct slot {
    atomic_uintptr_t begin, end; /* whole pages; begin 0: free */
    atomic_bool broken;
} slots[MAX_REGIONS];

struct region {
    char name[64], key[MAX_KEY + 1];
    size_t offset, bytes;
    atomic_int refs; /* of the table, and one for each use */
    int fd;
    bool writable;
    struct slot *slot;
    char *map; /* whole pages around the region */
    size_t map_bytes, lead;
};

struct shm {
    pthread_mutex_t lock;
    region *regions[MAX_REGIONS];
};

/* ---- objects that become shorter --------------------------------------------------------------------------------- */

static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    const uintptr_t at = (uintptr_t)info->si_addr, page = at & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
    for (int i = 0; i < MAX_REGIONS; i++) {
        const uintptr_t begin = atomic_load(&slots[i].begin), end = atomic_load(&slots[i].end);
        if (begin && at >= begin && at < end) {
            const int cause = errno;
            atomic_store(&slots[i].broken, true);
            void *zeros = mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            if (zeros == MAP_FAILED) { /* no mapping more can be had: then all of this one */
                zeros = mmap((void *)begin, end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            }
            errno = cause;
            if (zeros != MAP_FAILED) {
                return;
            }
        }
    }
    signal(number, SIG_DFL); /* a fault of ours: the instruction is tried again, and ends the process */
}

shm *shm_new(void) {
    shm *s = calloc(1, sizeof *s);
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    if (s) {
        pthread_mutex_init(&s->lock, NULL);
        sigaction(SIGBUS, &action, NULL);
    }
    return s;
}

/* ---- regions ----------------------------------------------------------------------------------------------------- */

static struct slot *take_slot(uintptr_t begin, size_t bytes) {
    for (int i = 0; i < MAX_REGIONS; i++) {
        uintptr_t none = 0;
        if (atomic_compare_exchange_strong(&slots[i].begin, &none, begin)) {
            atomic_store(&slots[i].broken, false);
            atomic_store(&slots[i].end, begin + bytes);
            return &slots[i];
        }
    }
    return NULL;
}

static void region_free(region *r) {
    if (r->slot) {
        atomic_store(&r->slot->end, 0);
        atomic_store(&r->slot->begin, 0);
    }
    if (r->map) {
        munmap(r->map, r->map_bytes);
    }
    if (r->fd >= 0) {
        close(r->fd);
    }
    free(r);
}

void region_unref(region *r) {
    if (atomic_fetch_sub(&r->refs, 1) == 1) {
        region_free(r);
    }
}

void shm_free(shm *s) {
    if (s) {
        for (int i = 0; i < MAX_REGIONS; i++) {
            if (s->regions[i]) {
                region_unref(s->regions[i]);
            }
        }
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
}

static bx_status refuse(bx_error *error, const char *name, const char *what) {
    return bx_fail(error, BX_INVALID, "shared_memory", "shared memory region \"%.64s\": %s", name, what);
}

/* A slash and a file name, as shm_open wants it everywhere. */
static bool key_is_sane(const char *key) {
    const size_t n = strlen(key);
    return key[0] == '/' && n > 1 && n <= MAX_KEY && !strchr(key + 1, '/') && strcmp(key, "/.") && strcmp(key, "/..");
}

/* Of the object now; the region must lie within it. */
static bx_status check_size(const region *r, bx_error *error) {
    struct stat now;
    if (fstat(r->fd, &now)) {
        return refuse(error, r->name, strerror(errno));
    }
    if (!S_ISREG(now.st_mode)) {
        return refuse(error, r->name, "its key is not that of a shared memory object");
    }
    if ((uint64_t)now.st_size < r->offset || (uint64_t)now.st_size - r->offset < r->bytes) {
        return bx_fail(error, BX_INVALID, "shared_memory",
                       "shared memory region \"%s\": the object %s has %lld bytes; %zu from byte %zu on are not there",
                       r->name, r->key, (long long)now.st_size, r->bytes, r->offset);
    }
    return BX_OK;
}

/* For writing too, where its owner lets us. What is no object, such as a pipe, must not keep us waiting. */
static bx_status open_object(region *r, bx_error *error) {
    r->fd = shm_open(r->key, O_RDWR | O_CLOEXEC | O_NONBLOCK, 0);
    r->writable = r->fd >= 0;
    if (r->fd < 0 && errno == EACCES) {
        r->fd = shm_open(r->key, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    }
    return r->fd >= 0 ? check_size(r, error)
                      : bx_fail(error, BX_INVALID, "shared_memory", "shared memory region \"%s\": the object %s: %s",
                                r->name, r->key, strerror(errno));
}

static bx_status map_object(region *r, bx_error *error) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    r->lead = r->offset % page;
    r->map_bytes = (r->lead + r->bytes + page - 1) / page * page;
    void *map = mmap(NULL, r->map_bytes, PROT_READ, MAP_SHARED, r->fd, (off_t)(r->offset - r->lead));
    if (map == MAP_FAILED) {
        return refuse(error, r->name, strerror(errno));
    }
    r->map = map;
    r->slot = take_slot((uintptr_t)map, r->map_bytes);
    return r->slot ? BX_OK
                   : bx_fail(error, BX_BUSY, "shared_memory_full", "at most %d regions are possible", MAX_REGIONS);
}

static bx_status make_region(region **out, const char *name, const char *key, size_t offset, size_t bytes,
                             bx_error *error) {
    bx_status status = proto_name_check(name, error);
    if (status != BX_OK) {
        return status;
    }
    if (!key_is_sane(key)) {
        return refuse(error, name, "its key must be a slash and the name of a shared memory object, such as /batch");
    }
    if (bytes < 1 || bytes > SIZE_MAX / 4 || offset > SIZE_MAX / 4) {
        return refuse(error, name, "byte_size must be at least 1, and offset at least 0");
    }
    region *r = calloc(1, sizeof *r);
    if (!r) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for another region");
    }
    copy_text(r->name, sizeof r->name, name);
    copy_text(r->key, sizeof r->key, key);
    r->offset = offset;
    r->bytes = bytes;
    r->fd = -1;
    atomic_init(&r->refs, 1);
    status = open_object(r, error);
    status = status == BX_OK ? map_object(r, error) : status;
    if (status != BX_OK) {
        region_free(r);
        return status;
    }
    *out = r;
    return BX_OK;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* Where the region of that name is, or would be with the name ""; NULL: nowhere. Under the lock. */
static region **find(shm *s, const char *name) {
    for (int i = 0; i < MAX_REGIONS; i++) {
        const char *here = s->regions[i] ? s->regions[i]->name : "";
        if (!strcmp(here, name)) {
            return &s->regions[i];
        }
    }
    return NULL;
}

bx_status shm_register(shm *s, const char *name, const char *key, size_t offset, size_t bytes, bx_error *error) {
    region *made = NULL;
    bx_status status = make_region(&made, name, key, offset, bytes, error);
    if (status != BX_OK) {
        return status;
    }
    pthread_mutex_lock(&s->lock);
    region **place = find(s, "");
    if (find(s, name)) {
        status = refuse(error, name, "there is one already; unregister it first");
    } else if (!place) {
        status = bx_fail(error, BX_BUSY, "shared_memory_full", "at most %d regions are possible", MAX_REGIONS);
    } else {
        *place = made;
    }
    pthread_mutex_unlock(&s->lock);
    if (status != BX_OK) {
        region_unref(made);
    }
    return status;
}

void shm_unregister(shm *s, const char *name) {
    region *gone[MAX_REGIONS];
    int n = 0;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < MAX_REGIONS; i++) {
        if (s->regions[i] && (!name || !strcmp(s->regions[i]->name, name))) {
            gone[n++] = s->regions[i];
            s->regions[i] = NULL;
        }
    }
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < n; i++) {
        region_unref(gone[i]);
    }
}

static bx_status unknown(bx_error *error, const char *name) {
    return bx_fail(error, BX_INVALID, "unknown_region", "there is no shared memory region \"%.64s\"", name);
}

bx_status shm_status(shm *s, const char *name, proto_writer *writer, bx_error *error) {
    bool found = false;
    proto_write_open(writer, NULL, '[');
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < MAX_REGIONS; i++) {
        const region *r = s->regions[i];
        if (!r || (name && strcmp(r->name, name))) {
            continue;
        }
        found = true;
        proto_write_open(writer, NULL, '{');
        proto_write_string(writer, "name", r->name);
        proto_write_string(writer, "key", r->key);
        proto_write_int(writer, "offset", (int64_t)r->offset);
        proto_write_int(writer, "byte_size", (int64_t)r->bytes);
        proto_write_close(writer, '}');
    }
    pthread_mutex_unlock(&s->lock);
    proto_write_close(writer, ']');
    return found || !name ? BX_OK : unknown(error, name);
}

/* ---- use --------------------------------------------------------------------------------------------------------- */

bx_status shm_use(shm *s, const char *name, size_t offset, size_t bytes, region **out, bx_error *error) {
    pthread_mutex_lock(&s->lock);
    region **place = *name ? find(s, name) : NULL, *r = place ? *place : NULL;
    if (r) {
        atomic_fetch_add(&r->refs, 1);
    }
    pthread_mutex_unlock(&s->lock);
    if (!r) {
        return unknown(error, name);
    }
    bx_status status = BX_OK;
    if (offset > r->bytes || bytes > r->bytes - offset) {
        status = bx_fail(error, BX_INVALID, "shared_memory",
                         "shared memory region \"%s\" has %zu bytes; %zu from its byte %zu on are not there", r->name,
                         r->bytes, bytes, offset);
    }
    status = status == BX_OK ? region_check(r, error) : status;
    if (status != BX_OK) {
        region_unref(r);
        return status;
    }
    *out = r;
    return BX_OK;
}

const void *region_data(const region *r, size_t offset) {
    return r->map + r->lead + offset;
}

bx_status region_check(const region *r, bx_error *error) {
    if (atomic_load(&r->slot->broken)) {
        return refuse(error, r->name, "its object became shorter while it was in use; register it again");
    }
    return check_size(r, error); /* what is cut off within a page becomes zeros, and no signal says so */
}

bx_status region_write(const region *r, size_t offset, const void *data, size_t bytes, bx_error *error) {
    if (!r->writable) {
        return refuse(error, r->name, "this process may not write to it");
    }
    bx_status status = check_size(r, error);
    const char *from = data;
    off_t to = (off_t)(r->offset + offset);
    while (status == BX_OK && bytes > 0) {
        const ssize_t n = pwrite(r->fd, from, bytes, to);
        if (n <= 0) {
            return refuse(error, r->name, n < 0 ? strerror(errno) : "nothing can be written");
        }
        from += n;
        to += n;
        bytes -= (size_t)n;
    }
    return status;
}
