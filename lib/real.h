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

/* exp(-d) for d >= 0; d beyond 87 counts as 87 (about 1.6e-38), so the result is never subnormal; exp(-0) is exactly 1;
 * a NaN gives any value.
 *
 * Cody and Waite's reduction -d = n ln 2 + r with ln 2 in two parts, 1 + r + r^2 q(r) with q the minimax polynomial of
 * degree 3 for the relative error on |r| <= ln2/2 (1.1e-7), scaled by adding n to the exponent. */
BX_INLINE float bx_exp_minus(float d) {
    const int32_t most = 0x42ae0000; /* 87.0f: floats that are not negative order as their bits do */
    int32_t bits = bx_bits(d);
    float x = bx_float(bits < most ? bits : most);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer held in the low bits */
    float shifted = round - x * 1.44269504088896341f;
    float n = shifted - round;
    float r = (n * -0.693359375f - x) + n * 2.12194440e-4f;
    float rr = r * r;
    float low = 0.166671157f * r + 0.499992311f;
    float high = 0.00831250194f * r + 0.0418903306f;
    float q = high * rr + low;
    float p = (q * rr + r) + 1.0f;
    /* unsigned: the shift drops the rounding constant's own exponent bits */
    return bx_float((int32_t)((uint32_t)bx_bits(p) + ((uint32_t)bx_bits(shifted) << 23)));
}

/* log(1 + f) + n ln 2 + rest for f in [sqrt(1/2) - 1, sqrt 2 - 1) and a rest far below it: Cephes logf's polynomial. */
BX_INLINE float bx_log_of(float f, float n, float rest) {
    float z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float y = (p * f) * z;
    y = y + n * -2.12194440e-4f;
    y = y - 0.5f * z;
    y = y + rest;
    return (f + y) + n * 0.693359375f;
}

/* log(1 + x) for x in [0, 2^60]; accurate to its own ulp for tiny x, log1p(0) = 0.
 *
 * u = 1 + x rounded, c = what the rounding lost; u = 2^k m with m in [sqrt(1/2), sqrt 2), and c/u put back (Kahan;
 * fdlibm does the same). */
BX_INLINE float bx_log1p(float x) {
    float u = 1.0f + x;
    float c_small = x - (u - 1.0f);
    float c_large = 1.0f - (u - x);
    float c = x < 1.0f ? c_small : c_large;
    int32_t i = bx_bits(u);
    int32_t k = (i - 0x3f3504f3) >> 23; /* 0x3f3504f3 is sqrt(1/2) */
    float f = bx_float((int32_t)((uint32_t)i - ((uint32_t)k << 23))) - 1.0f;
    return bx_log_of(f, (float)k, c / u);
}

/* log(x) for normal x > 0: bx_log1p's method where nothing was rounded off. log(1) = 0, and near 1 the result keeps its
 * own relative precision. */
BX_INLINE float bx_log(float x) {
    int32_t i = bx_bits(x);
    int32_t k = (i - 0x3f3504f3) >> 23;
    float f = bx_float((int32_t)((uint32_t)i - ((uint32_t)k << 23))) - 1.0f;
    return bx_log_of(f, (float)k, 0.0f);
}

#endif
