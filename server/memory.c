/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One budget for what requests hold, and a pool of warm buffers within it.
 *
 * A request leases bytes when it is admitted and turns them into buffers later, so what was admitted cannot run out of
 * its own body memory. Idle buffers are kept, because the pages of a fresh 28 MB buffer cost more than reading it; they
 * count against the limit too and go, the oldest first, when room is needed, or when nobody has needed them for a
 * while. What is pinned for a GPU stays so until then. Invariant, under the lock: used + idle <= limit.
 */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "server.h"

#define MAX_IDLE 32
#define POOLED   ((size_t)64 << 10) /* smaller buffers are the C library's, and go back to it */
#define MAPPED   ((size_t)1 << 20)  /* from here buffers are mapped, on huge pages where the machine has them */
#define HUGE     ((size_t)1 << 21)
#define LITTLE   ((size_t)4 << 20) /* who uses no more leaves nothing behind that is worth looking for */

struct memory {
    size_t limit;
    _Alignas(CACHE_LINE) pthread_mutex_t lock; /* what every request writes, apart from what it only reads */
    size_t used, idle_bytes;
    size_t most; /* used, since memory_tend */
    bool worked; /* more than a little, since the heap was trimmed */
    buffer idle[MAX_IDLE];
    int n_idle, n_old; /* the old ones, which come first, were idle when memory_tend looked */
    bool (*reclaim)(void *context);
    void *reclaim_context;
    bool (*pin)(void *data, size_t bytes); /* NULL: there is nobody to pin for */
    void (*unpin)(void *data);
};

/* The C library would keep up to 64 MiB of what is freed, in a heap of each thread: what is large is the machine's own,
 * and goes back there. */
static void set_up_heap(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

memory *memory_new(size_t limit) {
    set_up_heap();
    memory *m = lines_new(sizeof *m);
    if (m) {
        pthread_mutex_init(&m->lock, NULL);
        m->limit = limit;
    }
    return m;
}

/* So that buffers of similar requests are interchangeable: rounded to an eighth of the next lower power of two. */
size_t buffer_size(size_t bytes) {
    size_t step = 4096;
    while (bytes > step * 16) {
        step *= 2;
    }
    return (bytes + step - 1) / step * step;
}

static void *allocate(size_t bytes) {
    if (bytes < MAPPED) {
        return aligned_alloc(64, bytes);
    }
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return NULL;
    }
    if (bytes >= 2 * HUGE) {
        madvise(data, bytes, MADV_HUGEPAGE); /* a wish; nothing depends on it */
    }
    return data;
}

static void release(const memory *m, buffer b) {
    if (b.pinned) {
        m->unpin(b.data);
    }
    if (b.bytes < MAPPED) {
        free(b.data);
    } else {
        munmap(b.data, b.bytes);
    }
}

void memory_free(memory *m) {
    if (m) {
        for (int i = 0; i < m->n_idle; i++) {
            release(m, m->idle[i]);
        }
        pthread_mutex_destroy(&m->lock);
        free(m);
    }
}

void memory_on_full(memory *m, bool (*reclaim)(void *context), void *context) {
    m->reclaim = reclaim;
    m->reclaim_context = context;
}

void memory_on_pin(memory *m, bool (*pin)(void *data, size_t bytes), void (*unpin)(void *data)) {
    m->pin = pin;
    m->unpin = unpin;
}

size_t memory_limit(const memory *m) {
    return m->limit;
}

size_t memory_used(memory *m) {
    pthread_mutex_lock(&m->lock);
    size_t used = m->used;
    pthread_mutex_unlock(&m->lock);
    return used;
}

/* Buffers on their way back to the system: unmapping is slow and happens after the lock is released. */
typedef struct victims {
    buffer buffers[MAX_IDLE];
    int n;
} victims;

static void release_victims(const memory *m, const victims *v) {
    for (int i = 0; i < v->n; i++) {
        release(m, v->buffers[i]);
    }
}

/* Take idle buffer `i` out; the rest stays in the order of its arrival. */
static buffer take_idle(memory *m, int i) {
    buffer b = m->idle[i];
    m->n_idle--;
    m->n_old -= i < m->n_old;
    memmove(m->idle + i, m->idle + i + 1, (size_t)(m->n_idle - i) * sizeof *m->idle);
    m->idle_bytes -= b.bytes;
    return b;
}

/* Count `bytes` as used, at the cost of the oldest idle buffers if need be. */
static bool try_reserve(memory *m, size_t bytes) {
    victims v;
    v.n = 0;
    pthread_mutex_lock(&m->lock);
    bool room = bytes <= m->limit - m->used;
    while (room && m->n_idle > 0 && m->used + bytes + m->idle_bytes > m->limit) {
        v.buffers[v.n++] = take_idle(m, 0);
    }
    m->used += room ? bytes : 0;
    m->most = m->used > m->most ? m->used : m->most;
    pthread_mutex_unlock(&m->lock);
    release_victims(m, &v);
    return room;
}

/* The same, at the cost of whatever can be reclaimed. */
static bool reserve(memory *m, size_t bytes) {
    bool room = bytes == 0 || try_reserve(m, bytes);
    while (!room && bytes <= m->limit && m->reclaim && m->reclaim(m->reclaim_context)) {
        room = try_reserve(m, bytes);
    }
    return room;
}

bool lease_begin(lease *l, memory *m, size_t bytes) {
    bool room = reserve(m, bytes);
    if (room) {
        *l = (lease){m, bytes, 0};
    }
    return room;
}

bool lease_reserve(lease *l, size_t bytes) {
    bool room = reserve(l->memory, bytes);
    l->reserved += room ? bytes : 0;
    return room;
}

bool lease_borrow(lease *l, size_t bytes) {
    bool room = reserve(l->memory, bytes);
    l->held += room ? bytes : 0;
    return room;
}

bool lease_promise(lease *l, size_t bytes) {
    size_t from_reserve = bytes < l->reserved ? bytes : l->reserved;
    bool room = reserve(l->memory, bytes - from_reserve);
    if (room) {
        l->reserved -= from_reserve;
        l->held += bytes;
    }
    return room;
}

void lease_return(lease *l, size_t bytes) {
    if (bytes > 0) {
        pthread_mutex_lock(&l->memory->lock);
        l->memory->used -= bytes;
        pthread_mutex_unlock(&l->memory->lock);
        l->held -= bytes;
    }
}

void lease_keep(lease *l, size_t bytes) {
    size_t all = l->reserved + l->held;
    if (bytes < all) {
        l->reserved = 0;
        l->held = all;
        lease_return(l, all - bytes);
    }
}

static buffer find_idle(memory *m, size_t size) {
    buffer found = {.data = NULL};
    pthread_mutex_lock(&m->lock);
    for (int i = m->n_idle - 1; i >= 0 && !found.data; i--) { /* so that those that are too many become old */
        if (m->idle[i].bytes == size) {
            found = take_idle(m, i);
        }
    }
    pthread_mutex_unlock(&m->lock);
    return found;
}

bx_status lease_take(lease *l, size_t bytes, buffer *out) {
    memory *m = l->memory;
    size_t size = bytes <= m->limit ? buffer_size(bytes) : bytes;
    if (size > m->limit || !lease_promise(l, size)) {
        return BX_BUSY;
    }
    buffer found = {.data = NULL};
    if (size >= POOLED) {
        found = find_idle(m, size);
    }
    if (!found.data) {
        found = (buffer){.data = allocate(size), .bytes = size};
    }
    if (!found.data) {
        lease_return(l, size);
        return BX_NOMEM;
    }
    *out = found;
    return BX_OK;
}

void lease_give(lease *l, buffer *b) {
    if (!b->data) {
        return;
    }
    memory *m = l->memory;
    buffer given = *b;
    *b = (buffer){.data = NULL};
    if (given.bytes < POOLED) { /* its bytes stay with the lease: no lock for a small request */
        free(given.data);
        l->held -= given.bytes;
        l->reserved += given.bytes;
        return;
    }
    victims v;
    v.n = 0;
    pthread_mutex_lock(&m->lock);
    m->used -= given.bytes;
    l->held -= given.bytes;
    if (m->n_idle == MAX_IDLE) {
        v.buffers[v.n++] = take_idle(m, 0);
    }
    m->idle[m->n_idle++] = given;
    m->idle_bytes += given.bytes;
    pthread_mutex_unlock(&m->lock);
    release_victims(m, &v);
}

void memory_tend(memory *m) {
    victims v;
    v.n = 0;
    pthread_mutex_lock(&m->lock);
    while (m->n_old > 0) {
        v.buffers[v.n++] = take_idle(m, 0);
    }
    m->n_old = m->n_idle;
    const bool quiet = m->most - m->used < LITTLE, trim = quiet && m->worked;
    m->worked = !quiet;
    m->most = m->used;
    pthread_mutex_unlock(&m->lock);
    release_victims(m, &v);
#ifdef __GLIBC__
    if (trim) {
        malloc_trim(0);
    }
#else
    (void)trim;
#endif
}

void buffer_pin(const memory *m, buffer *b) {
    if (m->pin && b->bytes >= MAPPED && !b->pinned) {
        b->pinned = m->pin(b->data, b->bytes);
    }
}

void lease_end(lease *l) {
    if (l->memory) {
        pthread_mutex_lock(&l->memory->lock);
        l->memory->used -= l->reserved + l->held;
        pthread_mutex_unlock(&l->memory->lock);
        *l = (lease){NULL, 0, 0};
    }
}
