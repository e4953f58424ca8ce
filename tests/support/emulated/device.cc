// SPDX-License-Identifier: Apache-2.0
/*
 * Runs kernels on the host. Each thread of a block is a fiber that runs until it must wait for others or ends; which of
 * those that can go on is next is drawn from a seed, and so is the order of the blocks. A missing barrier so gives
 * results that differ from seed to seed, and under the thread sanitizer, which is told of barriers and of nothing else,
 * it is a race. Shared memory is poisoned before each block, and beyond what the launch asked for (address sanitizer).
 *
 * What would hang or mean nothing on a device ends the process: threads at different barriers, a warp's lanes that wait
 * for one which does not come, a lane that asks one which was not named.
 *
 * Under sanitizers this file is compiled without them, and tells them what it does (EMULATED_ASAN, EMULATED_TSAN): it
 * is not what they are to look at, and most of the time is spent here.
 */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "cuda_runtime.h"
#include "device.h"
#include "emulated.h"

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

/* Which is on with GCC 13 and later, and maps megabytes for the frames of each fiber. */
extern "C" const char *__asan_default_options() {
    return "detect_stack_use_after_return=0";
}
#endif
#ifdef EMULATED_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if !defined __x86_64__ || defined EMULATED_UCONTEXT
#define UCONTEXT
#include <ucontext.h>
#endif

emulated_index threadIdx, blockIdx, blockDim, gridDim;

/* The shared memory of the running block, and what nobody may touch behind it. */
extern unsigned char bx_shared[];
alignas(128) unsigned char bx_shared[EMULATED_SHARED_MOST + 1024];

void emulated_die(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fflush(stdout);
    fprintf(stderr, "emulated CUDA: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    abort();
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<uint32_t>((random_state >> 32) * n >> 32);
}

void emulated_shuffle_with(uint64_t seed) {
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) ^ UINT64_C(0x2545f4914f6cdd1d);
    random_state += random_state == 0;
}

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

/* Stacks are an odd number of cache lines apart, so that they begin in different sets of the caches. */
enum { STACK_BYTES = 256 * 1024 + 5 * 64, MARGIN_BYTES = 4096, MAX_WARPS = EMULATED_THREADS_MOST / warpSize };

enum fiber_state { READY, AT_BARRIER, IN_WARP, ENDED };

struct fiber {
    fiber_state state;
    const char *what, *file; /* where it waits */
    int line;
    bool vote;
    unsigned int mask; /* in a warp */
    bool shuffles;
    int source;
    uint64_t value, result;
    unsigned char *stack;
#ifndef UCONTEXT
    void *sp;
#else
    ucontext_t context;
#endif
    void *fake_stack; /* address sanitizer */
    void *thread;     /* thread sanitizer */
};

static fiber fibers[EMULATED_THREADS_MOST];
static fiber *running; /* NULL: the scheduler */
static const emulated_launch *launched;
#ifdef EMULATED_ASAN
static const void *scheduler_stack;
static size_t scheduler_stack_bytes;
#endif
#ifdef EMULATED_TSAN
static void *scheduler_thread;
#endif

/* Arrivals and departures of the running block as a whole, of its barrier, and of each warp's exchanges. */
static char block_begins, block_ends, barrier_point, warp_points[MAX_WARPS];

static void told_before(void *point) {
#ifdef EMULATED_TSAN
    __tsan_release(point);
#else
    (void)point;
#endif
}

static void told_after(void *point) {
#ifdef EMULATED_TSAN
    __tsan_acquire(point);
#else
    (void)point;
#endif
}

#ifndef UCONTEXT
static void *scheduler_sp;
/* Push what a call must keep, exchange stacks, pop. */
extern "C" void emulated_switch(void **from, void *to);
__asm__(".text\n"
        ".type emulated_switch, @function\n"
        "emulated_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emulated_switch, .-emulated_switch\n");
#else
static ucontext_t scheduler_context;
#endif

static void fiber_main();

/* All stacks in one piece, of which only what is used takes memory. */
static unsigned char *stacks() {
    static unsigned char *memory;
    if (!memory) {
        void *made = mmap(nullptr, static_cast<size_t>(EMULATED_THREADS_MOST) * STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (made == MAP_FAILED) {
            emulated_die("no memory for the threads' stacks");
        }
        memory = static_cast<unsigned char *>(made);
    }
    return memory;
}

/* A fiber that will begin with fiber_main. */
static void fiber_prepare(fiber *f) {
    if (!f->stack) {
        f->stack = stacks() + static_cast<size_t>(f - fibers) * STACK_BYTES;
#ifdef EMULATED_TSAN
        f->thread = __tsan_create_fiber(0);
#endif
    }
#ifndef UCONTEXT
    void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES);
    top[-2] = reinterpret_cast<void *>(fiber_main); /* where emulated_switch returns to, aligned as a call leaves it */
    f->sp = top - 8;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&f->context, fiber_main, 0);
#endif
    f->state = READY;
}

/* Let a fiber run until it waits or ends. */
static void fiber_resume(fiber *f) {
    running = f;
    threadIdx.x = static_cast<unsigned int>(f - fibers);
#ifdef EMULATED_ASAN
    void *fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, f->stack, STACK_BYTES);
#endif
#ifdef EMULATED_TSAN
    __tsan_switch_to_fiber(f->thread, __tsan_switch_to_fiber_no_sync);
#endif
#ifndef UCONTEXT
    emulated_switch(&scheduler_sp, f->sp);
#else
    swapcontext(&scheduler_context, &f->context);
#endif
#ifdef EMULATED_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    running = nullptr;
}

/* Back to the scheduler, until it resumes this fiber. */
static void fiber_yield(fiber *f) {
    if (static_cast<unsigned char *>(__builtin_frame_address(0)) < f->stack + MARGIN_BYTES) {
        emulated_die("%s:%d: a thread has used up its stack", f->file, f->line);
    }
#ifdef EMULATED_ASAN
    __sanitizer_start_switch_fiber(f->state == ENDED ? nullptr : &f->fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
#ifdef EMULATED_TSAN
    __tsan_switch_to_fiber(scheduler_thread, __tsan_switch_to_fiber_no_sync);
#endif
#ifndef UCONTEXT
    emulated_switch(&f->sp, scheduler_sp);
#else
    swapcontext(&f->context, &scheduler_context);
#endif
#ifdef EMULATED_ASAN
    __sanitizer_finish_switch_fiber(f->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

static void fiber_main() {
#ifdef EMULATED_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    fiber *f = running;
    told_after(&block_begins);
    reinterpret_cast<void (*)(bx_cuda_args)>(reinterpret_cast<uintptr_t>(launched->function))(launched->args);
    told_before(&block_ends);
    f->state = ENDED;
    fiber_yield(f);
}

static bool differ(const char *a, const char *b) {
    return a != b && strcmp(a, b);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static unsigned int ready[EMULATED_THREADS_MOST], n_ready; /* threads that go on in the next turn */
static int votes;                                          /* of the barrier that was passed last */

static fiber *arrive(fiber_state state, const char *what, const char *file, int line) {
    fiber *f = running;
    if (!f) {
        emulated_die("%s:%d: %s outside a kernel", file, line, what);
    }
    f->state = state;
    f->mask = 0;
    f->what = what;
    f->file = file;
    f->line = line;
    return f;
}

int emulated_barrier(bool vote, const char *what, const char *file, int line) {
    fiber *f = arrive(AT_BARRIER, what, file, line);
    f->vote = vote;
    told_before(&barrier_point);
    fiber_yield(f);
    told_after(&barrier_point);
    return votes;
}

void emulated_pause() {
    fiber *f = running;
    if (f && random_below(8) == 0) {
        ready[n_ready++] = threadIdx.x;
        fiber_yield(f);
    }
}

/* Whether all lanes that f names wait for the same; what they get. */
static void try_exchange(fiber *f) {
    const unsigned int first = threadIdx.x & ~31u;
    unsigned int all = 0;
    for (unsigned int lane = 0; lane < 32; lane++) {
        const fiber *other = &fibers[first + lane];
        if (!(f->mask >> lane & 1)) {
            continue;
        }
        if (other->state != IN_WARP || other->mask != f->mask) {
            return; /* not yet, or never */
        }
        if (differ(other->what, f->what)) {
            emulated_die("%s:%d: %s of thread %u meets %s of thread %u, %s:%d", f->file, f->line, f->what, threadIdx.x,
                         other->what, first + lane, other->file, other->line);
        }
        all |= static_cast<unsigned int>(other->vote) << lane;
    }
    for (unsigned int lane = 0; lane < 32; lane++) {
        fiber *other = &fibers[first + lane];
        if (f->mask >> lane & 1) {
            other->result = other->shuffles ? fibers[first + static_cast<unsigned int>(other->source)].value : all;
            other->state = READY;
            ready[n_ready++] = first + lane;
        }
    }
}

/* With one's own lane named and the block made of whole warps. */
static uint64_t exchange(fiber *f, unsigned int mask) {
    if (blockDim.x % 32) {
        emulated_die("%s:%d: %s in blocks of %u threads, which are not whole warps", f->file, f->line, f->what,
                     blockDim.x);
    }
    if (!(mask >> (threadIdx.x & 31) & 1)) {
        emulated_die("%s:%d: %s of thread %u, which its own mask %08x does not name", f->file, f->line, f->what,
                     threadIdx.x, mask);
    }
    char *point = &warp_points[threadIdx.x / 32];
    f->mask = mask;
    told_before(point);
    try_exchange(f);
    fiber_yield(f);
    told_after(point);
    return f->result;
}

uint64_t emulated_shuffle(unsigned int mask, uint64_t value, int source, const char *what, const char *file, int line) {
    fiber *f = arrive(IN_WARP, what, file, line);
    if (source < 0 || source >= 32 || !(mask >> source & 1)) {
        emulated_die("%s:%d: %s of thread %u asks lane %d, which the mask %08x does not name", file, line, what,
                     threadIdx.x, source, mask);
    }
    f->vote = false;
    f->shuffles = true;
    f->source = source;
    f->value = value;
    return exchange(f, mask);
}

unsigned int emulated_vote(unsigned int mask, bool vote, const char *what, const char *file, int line) {
    fiber *f = arrive(IN_WARP, what, file, line);
    f->vote = vote;
    f->shuffles = false;
    return static_cast<unsigned int>(exchange(f, mask));
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* Nobody can go on: who waits where. */
static void die_waiting(unsigned int n) {
    const fiber *first = nullptr;
    fprintf(stderr, "emulated CUDA: block %u of %u threads:\n", blockIdx.x, n);
    for (unsigned int t = 0; t < n; t++) {
        const fiber *f = &fibers[t];
        const bool ended = f->state == ENDED;
        const bool another = !first || f->state != first->state ||
                             (!ended && (f->line != first->line || f->mask != first->mask || f->what != first->what));
        if (another && ended) {
            fprintf(stderr, "  thread %u and those behind it have ended\n", t);
        } else if (another && f->state == AT_BARRIER) {
            fprintf(stderr, "  thread %u and those behind it: %s:%d: %s\n", t, f->file, f->line, f->what);
        } else if (another) {
            fprintf(stderr, "  thread %u and those behind it: %s:%d: %s of lanes %08x\n", t, f->file, f->line, f->what,
                    f->mask);
        }
        first = f;
    }
    emulated_die("threads wait for others that never come");
}

/* All that have not ended wait at one and the same barrier: let them pass. */
static void pass_barrier(unsigned int n) {
    const fiber *first = nullptr;
    votes = 0;
    for (unsigned int t = 0; t < n; t++) {
        fiber *f = &fibers[t];
        if (f->state == ENDED) {
            continue;
        }
        first = first ? first : f;
        if (f->state != AT_BARRIER || f->line != first->line || differ(f->what, first->what) ||
            differ(f->file, first->file)) {
            die_waiting(n);
        }
        votes += f->vote;
        ready[n_ready++] = t;
    }
    for (unsigned int i = 0; i < n_ready; i++) {
        fibers[ready[i]].state = READY;
    }
}

static void run_block(const emulated_launch &launch) {
    static unsigned int turn[EMULATED_THREADS_MOST];
    unsigned int left = launch.block;
    memset(bx_shared, EMULATED_POISON, launch.shared);
    n_ready = 0;
    for (unsigned int t = 0; t < launch.block; t++) {
        fiber_prepare(&fibers[t]);
        ready[n_ready++] = t;
    }
    told_before(&block_begins);
    while (left > 0) {
        const unsigned int n = n_ready;
        memcpy(turn, ready, n * sizeof *turn);
        n_ready = 0;
        for (unsigned int i = 0; i < n; i++) {
            const unsigned int other = i + random_below(n - i), t = turn[other];
            turn[other] = turn[i];
            fiber_resume(&fibers[t]);
            left -= fibers[t].state == ENDED;
        }
        if (n_ready == 0 && left > 0) {
            pass_barrier(launch.block);
        }
    }
    told_after(&block_ends);
}

/* The thread sanitizer takes a parent's fibers for dead. */
void emulated_warm() {
#ifndef EMULATED_TSAN
    for (fiber &f : fibers) {
        fiber_prepare(&f);
    }
#endif
}

static unsigned int common_divisor(unsigned int a, unsigned int b) {
    while (b) {
        const unsigned int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void emulated_execute(const emulated_launch &launch) {
    const unsigned int n = launch.grid, from = random_below(n);
    unsigned int step = 1 + random_below(n);
    while (common_divisor(step, n) != 1) {
        step++;
    }
    launched = &launch;
    blockDim.x = launch.block;
    gridDim.x = n;
#ifdef EMULATED_TSAN
    scheduler_thread = __tsan_get_current_fiber();
#endif
#ifdef EMULATED_ASAN
    __asan_unpoison_memory_region(bx_shared, sizeof bx_shared);
    __asan_poison_memory_region(bx_shared + launch.shared, sizeof bx_shared - launch.shared);
#endif
    uint64_t block = from;
    for (unsigned int i = 0; i < n; i++, block = (block + step) % n) {
        blockIdx.x = static_cast<unsigned int>(block);
        run_block(launch);
    }
}
