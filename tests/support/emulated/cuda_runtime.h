/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nvcc knows without being told, for g++ -include: the words of device code and its built-in functions, on the
 * fibers of device.cc. Grids and blocks have one dimension; shared memory is dynamic and named bx_shared.
 */
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* Only `extern __shared__`: an array of a fixed size does not compile here, because it would be each thread's own. */
#define __shared__ __attribute__((weak))

enum { warpSize = 32 };

/* ---- where the running thread is, and how it waits: device.cc ---------------------------------------------------- */

struct emulated_index {
    unsigned int x;
};
extern emulated_index threadIdx, blockIdx, blockDim, gridDim;

/* All threads of the block that have not ended wait here; returns how many of them brought a true `vote`. */
int emulated_barrier(bool vote, const char *what, const char *file, int line);
/* All lanes named in mask wait here, each with a value; returns that of lane `source` of the caller's warp. */
uint64_t emulated_shuffle(unsigned int mask, uint64_t value, int source, const char *what, const char *file, int line);
/* The same; returns the lanes whose `vote` is true. */
unsigned int emulated_vote(unsigned int mask, bool vote, const char *what, const char *file, int line);
/* Another thread may go first. */
void emulated_pause();

#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* ---- barriers ---------------------------------------------------------------------------------------------------- */

static inline void __syncthreads(EMULATED_HERE) {
    emulated_barrier(false, "__syncthreads", file, line);
}
static inline int __syncthreads_count(int vote, EMULATED_HERE) {
    return emulated_barrier(vote != 0, "__syncthreads_count", file, line);
}
static inline int __syncthreads_or(int vote, EMULATED_HERE) {
    return emulated_barrier(vote != 0, "__syncthreads_or", file, line) > 0;
}
static inline int __syncthreads_and(int vote, EMULATED_HERE) {
    return emulated_barrier(vote == 0, "__syncthreads_and", file, line) == 0;
}
static inline void __syncwarp(unsigned int mask = 0xffffffffu, EMULATED_HERE) {
    emulated_vote(mask, false, "__syncwarp", file, line);
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

/* ---- warps ------------------------------------------------------------------------------------------------------- */

static inline unsigned int __ballot_sync(unsigned int mask, int vote, EMULATED_HERE) {
    return emulated_vote(mask, vote != 0, "__ballot_sync", file, line);
}
static inline int __any_sync(unsigned int mask, int vote, EMULATED_HERE) {
    return emulated_vote(mask, vote != 0, "__any_sync", file, line) != 0;
}
static inline int __all_sync(unsigned int mask, int vote, EMULATED_HERE) {
    return emulated_vote(mask, vote != 0, "__all_sync", file, line) == mask;
}

template <typename T>
static inline T emulated_exchange(unsigned int mask, T value, int source, const char *what, const char *file,
                                  int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "32 or 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulated_shuffle(mask, bits, source, what, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The lane itself where the source lies outside its segment of `width` lanes. */
static inline int emulated_source(int lane, int source, int first, int width) {
    return source < first || source >= first + width ? lane : source;
}
template <typename T>
static inline T __shfl_sync(unsigned int mask, T value, int source, int width = warpSize, EMULATED_HERE) {
    const int first = static_cast<int>(threadIdx.x) % warpSize & -width;
    return emulated_exchange(mask, value, first + (source & (width - 1)), "__shfl_sync", file, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, EMULATED_HERE) {
    const int lane = static_cast<int>(threadIdx.x) % warpSize, source = lane - static_cast<int>(delta);
    return emulated_exchange(mask, value, emulated_source(lane, source, lane & -width, width), "__shfl_up_sync", file,
                             line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, EMULATED_HERE) {
    const int lane = static_cast<int>(threadIdx.x) % warpSize, source = lane + static_cast<int>(delta);
    return emulated_exchange(mask, value, emulated_source(lane, source, lane & -width, width), "__shfl_down_sync", file,
                             line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned int mask, T value, int flip, int width = warpSize, EMULATED_HERE) {
    const int lane = static_cast<int>(threadIdx.x) % warpSize, source = lane ^ flip;
    return emulated_exchange(mask, value, emulated_source(lane, source, 0, (lane & -width) + width), "__shfl_xor_sync",
                             file, line);
}

/* ---- atomics: each is one step, before which others may run ------------------------------------------------------ */

template <typename T> static inline T emulated_fetch_add(T *at, T value) {
    emulated_pause();
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <typename T> static inline T emulated_fetch_or(T *at, T value) {
    emulated_pause();
    return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}
template <typename T> static inline T emulated_fetch_and(T *at, T value) {
    emulated_pause();
    return __atomic_fetch_and(at, value, __ATOMIC_RELAXED);
}
template <typename T> static inline T emulated_swap(T *at, T value) {
    emulated_pause();
    return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
template <typename T> static inline T emulated_swap_if(T *at, T before, T value) {
    emulated_pause();
    __atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return before;
}
template <typename T> static inline T emulated_best(T *at, T value, bool greatest) {
    emulated_pause();
    T before = __atomic_load_n(at, __ATOMIC_RELAXED);
    while ((greatest ? value > before : value < before) &&
           !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
}

#define EMULATED_ATOMICS(type)                                                                                         \
    static inline type atomicAdd(type *at, type value) {                                                               \
        return emulated_fetch_add(at, value);                                                                          \
    }                                                                                                                  \
    static inline type atomicMax(type *at, type value) {                                                               \
        return emulated_best(at, value, true);                                                                         \
    }                                                                                                                  \
    static inline type atomicMin(type *at, type value) {                                                               \
        return emulated_best(at, value, false);                                                                        \
    }                                                                                                                  \
    static inline type atomicOr(type *at, type value) {                                                                \
        return emulated_fetch_or(at, value);                                                                           \
    }                                                                                                                  \
    static inline type atomicAnd(type *at, type value) {                                                               \
        return emulated_fetch_and(at, value);                                                                          \
    }                                                                                                                  \
    static inline type atomicExch(type *at, type value) {                                                              \
        return emulated_swap(at, value);                                                                               \
    }                                                                                                                  \
    static inline type atomicCAS(type *at, type before, type value) {                                                  \
        return emulated_swap_if(at, before, value);                                                                    \
    }
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned int)
EMULATED_ATOMICS(unsigned long long)
#undef EMULATED_ATOMICS

/* ---- bits and numbers -------------------------------------------------------------------------------------------- */

static inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return (unsigned int)((unsigned long long)a * b >> 32);
}
static inline int __popc(unsigned int x) {
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned int>(x)) : 32;
}
static inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
static inline unsigned int __brev(unsigned int x) {
    unsigned int reversed = 0;
    for (int i = 0; i < 32; i++) {
        reversed |= (x >> i & 1) << (31 - i);
    }
    return reversed;
}

#define EMULATED_BITS(name, from, to)                                                                                  \
    static inline to name(from x) {                                                                                    \
        static_assert(sizeof(from) == sizeof(to), "the same bits");                                                    \
        to y;                                                                                                          \
        memcpy(&y, &x, sizeof y);                                                                                      \
        return y;                                                                                                      \
    }
EMULATED_BITS(__float_as_int, float, int)
EMULATED_BITS(__float_as_uint, float, unsigned int)
EMULATED_BITS(__int_as_float, int, float)
EMULATED_BITS(__uint_as_float, unsigned int, float)
EMULATED_BITS(__double_as_longlong, double, long long)
EMULATED_BITS(__longlong_as_double, long long, double)
#undef EMULATED_BITS

#define EMULATED_EXTREMES(type)                                                                                        \
    static inline type min(type a, type b) {                                                                           \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    static inline type max(type a, type b) {                                                                           \
        return a < b ? b : a;                                                                                          \
    }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned int)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
#undef EMULATED_EXTREMES
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}

/* ---- loads and vectors ------------------------------------------------------------------------------------------- */

template <typename T> static inline T __ldg(const T *at) {
    return *at;
}
template <typename T> static inline T __ldcs(const T *at) {
    return *at;
}
template <typename T> static inline T __ldca(const T *at) {
    return *at;
}
/* By way of the cache that all share: the value may be old by the time it is looked at. */
template <typename T> static inline T __ldcg(const T *at) {
    const T value = __atomic_load_n(at, __ATOMIC_RELAXED);
    emulated_pause();
    return value;
}
template <typename T> static inline void __stcs(T *at, T value) {
    *at = value;
}
template <typename T> static inline void __stcg(T *at, T value) {
    *at = value;
}

/* Aligned as the device's are: a misaligned access is caught by the undefined-behaviour sanitizer. */
#define EMULATED_VECTORS(type, name)                                                                                   \
    struct __align__(2 * sizeof(type)) name##2 {                                                                       \
        type x, y;                                                                                                     \
    };                                                                                                                 \
    struct __align__(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 {                                               \
        type x, y, z, w;                                                                                               \
    };                                                                                                                 \
    static inline name##2 make_##name##2(type x, type y) {                                                             \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                                             \
        return {x, y, z, w};                                                                                           \
    }
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned int, uint)
EMULATED_VECTORS(long long, longlong)
EMULATED_VECTORS(unsigned long long, ulonglong)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
#undef EMULATED_VECTORS

#endif
#endif
