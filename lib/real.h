/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our own exp and log1p in float32: the same bits in every vector width, at every optimisation level, on every device.
 *
 * Mining ranks losses, so the functions that make a loss are part of a decision and cannot come from a libm that
 * differs between machines. Only IEEE add, subtract, multiply, divide, integer operations and selects appear here, in
 * a fixed order and without branches, so that one lane of a vector, a scalar and a GPU thread compute the same thing.
 * The files that include this are compiled without contraction (-ffp-contract=off, --fmad=false).
 *
 * Errors, against double precision (tests/unit/test_real.c): exp 2.3 ulp, log1p 0.9 ulp on the ranges stated.
 */
#ifndef BX_REAL_H
#define BX_REAL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define BX_INLINE static inline __host__ __device__
#else
#define BX_INLINE static inline __attribute__((always_inline, unused))
#endif

BX_INLINE int32_t bx_bits(float x) {
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}

BX_INLINE float bx_float(int32_t i) {
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}

BX_INLINE float bx_abs(float x) {
    return bx_float(bx_bits(x) & 0x7fffffff);
}

/* IEEE half precision, exactly. */
BX_INLINE float bx_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31) {
        return bx_float((int32_t)(sign | 0x7f800000 | fraction << 13));
    }
    float magnitude =
        exponent ? bx_float((int32_t)((exponent + 112) << 23 | fraction << 13)) : (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

/* exp(-d) for d >= 0; d beyond 87 counts as 87 (about 1.6e-38), so the result is never subnormal; exp(-0) is exactly 1;
 * a NaN gives any value.
 *
 * Cody and Waite's reduction -d = n ln 2 + r with ln 2 in two parts, 1 + r + r^2 q(r) with q the minimax polynomial of
 * degree 3 for the relative error on |r| <= ln2/2 (1.1e-7), scaled by adding n to the exponent. Each half is a long
 * chain of steps: a loop over many numbers is faster as two loops, one a half. */
BX_INLINE float bx_exp_reduce(float d, int32_t *scale) {
    const int32_t most = 0x42ae0000; /* 87.0f: floats that are not negative order as their bits do */
    int32_t bits = bx_bits(d);
    float x = bx_float(bits < most ? bits : most);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer held in the low bits */
    float shifted = round - x * 1.44269504088896341f;
    float n = shifted - round;
    /* unsigned: the shift drops the rounding constant's own exponent bits */
    *scale = (int32_t)((uint32_t)bx_bits(shifted) << 23);
    return (n * -0.693359375f - x) + n * 2.12194440e-4f;
}

/* exp(r) 2^n, scale being n in the exponent's place; 0 for r = 0 and scale BX_EXP_NOTHING. */
#define BX_EXP_NOTHING (-0x3f800000)
BX_INLINE float bx_exp_series(float r, int32_t scale) {
    float rr = r * r;
    float low = 0.166671157f * r + 0.499992311f;
    float high = 0.00831250194f * r + 0.0418903306f;
    float q = high * rr + low;
    float p = (q * rr + r) + 1.0f;
    return bx_float((int32_t)((uint32_t)bx_bits(p) + (uint32_t)scale));
}

BX_INLINE float bx_exp_minus(float d) {
    int32_t scale;
    float r = bx_exp_reduce(d, &scale);
    return bx_exp_series(r, scale);
}

/* log(1 + f) + n ln 2 + lost for f in [sqrt(1/2) - 1, 1/2) and a `lost` far below it: f - f^2/2 + f^3 p(f) with p the
 * minimax polynomial of degree 8 for the relative error (2e-9), in pairs so that its steps overlap. */
BX_INLINE float bx_log_of(float f, float n, float lost) {
    float z = f * f;
    float p01 = -0.250002682f * f + 0.333333194f;
    float p23 = -0.166540623f * f + 0.200017735f;
    float p45 = -0.126367196f * f + 0.142162845f;
    float p67 = -0.104558647f * f + 0.121283643f;
    float p678 = 0.0480684415f * z + p67;
    float p = (p678 * z + p45) * (z * z) + (p23 * z + p01);
    float y = (p * (f * z) + (n * -2.12194440e-4f + lost)) - 0.5f * z;
    return (f + y) + n * 0.693359375f;
}

/* u = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt 2), for a normal u > 0; any value for what is none. */
BX_INLINE float bx_log_split(float u, float *n) {
    uint32_t i = (uint32_t)bx_bits(u);
    int32_t k = (int32_t)(i - 0x3f3504f3u) >> 23; /* 0x3f3504f3 is sqrt(1/2) */
    *n = (float)k;
    return bx_float((int32_t)(i - ((uint32_t)k << 23))) - 1.0f;
}

/* log(1 + x) for x in [0, 2^60]; accurate to its own ulp for tiny x, log1p(0) = 0.
 *
 * u = 1 + x rounded, c = what the rounding lost, and c/u put back (Kahan; fdlibm does the same). */
BX_INLINE float bx_log1p(float x) {
    float u = 1.0f + x;
    float c_small = x - (u - 1.0f);
    float c_large = 1.0f - (u - x);
    float c = x < 1.0f ? c_small : c_large;
    float n, f = bx_log_split(u, &n);
    return bx_log_of(f, n, c / u);
}

/* log(1 + x) for x in [0, 1]: both ways to take it as 2^n (1 + f) are exact, so nothing is lost. */
BX_INLINE float bx_log1p_unit(float x) {
    int32_t large = x >= 0.5f;
    return bx_log_of(large ? 0.5f * x - 0.5f : x, large ? 1.0f : 0.0f, 0.0f);
}

/* log(x) for normal x > 0. log(1) = 0, and near 1 the result keeps its own relative precision. */
BX_INLINE float bx_log(float x) {
    float n, f = bx_log_split(x, &n);
    return bx_log_of(f, n, 0.0f);
}

/* The sum of a row's terms in the order of its columns: runs of a few in float32, these in double. In float32 alone
 * many equal terms, or small ones upon a large one, are all rounded the same way: at 80 columns by more than 1e-6. */
#define BX_SUM_RUN 8
typedef struct bx_row_sum {
    double whole;
    float run;
    int32_t n;
} bx_row_sum;

BX_INLINE void bx_row_add(bx_row_sum *s, float term) {
    s->run += term;
    if (++s->n % BX_SUM_RUN == 0) {
        s->whole += (double)s->run;
        s->run = 0;
    }
}

/* Of `run`, the terms since the last whole run, and what was before. */
BX_INLINE float bx_row_total(double whole, float run) {
    return (float)(whole + (double)run);
}

/* A loss as a rank: what is not a number (0 x infinity) counts as infinite. */
BX_INLINE float bx_rank(float loss) {
    return loss >= 0 ? loss : bx_float(0x7f800000);
}

/* Values this far outside [0,1] are no probabilities. */
BX_INLINE bool bx_is_probability(float p) {
    return p >= -1e-3f && p <= 1.001f;
}

#endif
