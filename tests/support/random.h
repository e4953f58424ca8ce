/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repeatable random numbers for tests (splitmix64). Set random_state to start a sequence.
 */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

static uint64_t random_state;

static inline uint64_t random_bits(void) {
    uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 .. n-1 */
static inline int32_t below(int32_t n) {
    return (int32_t)(random_bits() % (uint64_t)n);
}

static inline float uniform(float low, float high) {
    return low + (high - low) * ((float)(random_bits() >> 40) * 0x1p-24f);
}

#endif
