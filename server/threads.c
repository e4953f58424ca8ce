/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread is to the others and to the kernel.
 */
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "server.h"

/* The first version of the kernel's struct sched_attr. Some C libraries have it, others not. */
typedef struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; /* ns; of SCHED_OTHER the runtime is a turn */
} scheduling;

void turn_set(uint64_t ns) {
    scheduling s = {.size = sizeof s};
    if (!syscall(SYS_sched_getattr, 0, &s, sizeof s, 0) && s.policy == SCHED_OTHER) {
        s.runtime = ns;
        (void)syscall(SYS_sched_setattr, 0, &s, 0);
    }
}

size_t thread_number(void) {
    static atomic_size_t n_threads;
    static _Thread_local size_t number;
    if (!number) {
        number = 1 + atomic_fetch_add(&n_threads, 1);
    }
    return number;
}

void *lines_new(size_t bytes) {
    const size_t lines = (bytes + CACHE_LINE - 1) / CACHE_LINE;
    void *made = aligned_alloc(CACHE_LINE, lines * CACHE_LINE);
    return made ? memset(made, 0, lines * CACHE_LINE) : NULL;
}
