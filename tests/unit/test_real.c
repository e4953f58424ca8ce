/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our exp and log1p against double precision, their exact points and monotony, and that a lane of a vector gives the
 * same bits as a scalar. Over every third float of the whole range the greatest errors are 2.253 ulp for exp(-d) and
 * 0.898 ulp for log1p, and both functions are monotone; the sweeps here are sparser.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "internal.h"
#include "real.h"
#include "../support/suite.h"

#define EXP_ULP   2.26
#define LOG1P_ULP 0.91

enum {
    ONE = 0x3f800000,
    EIGHTY_SEVEN = 0x42ae0000,
    TWO_TO_60 = 0x5d800000,
    INFINITE = 0x7f800000,
    STRIDE = 1009, /* a prime, so that the sweep meets all low bits */
};

/* The distance of neighbouring floats at x. */
static double ulp(double x) {
    int exponent;
    frexp(x, &exponent);
    return ldexp(1, exponent - 24 > -149 ? exponent - 24 : -149);
}

START_TEST(exp_accuracy) {
    double worst = 0;
    float at = 0;
    for (int32_t i = 0; i <= EIGHTY_SEVEN; i += STRIDE) {
        double exact = exp(-(double)bx_float(i));
        double error = fabs((double)bx_exp_minus(bx_float(i)) - exact) / ulp(exact);
        if (error > worst) {
            worst = error;
            at = bx_float(i);
        }
    }
    ck_assert_msg(worst <= EXP_ULP, "%.4f ulp at %a", worst, (double)at);
}
END_TEST

START_TEST(log1p_accuracy) {
    double worst = 0;
    float at = 0;
    for (int32_t i = 1; i <= TWO_TO_60; i += STRIDE) {
        double exact = log1p((double)bx_float(i));
        double error = fabs((double)bx_log1p(bx_float(i)) - exact) / ulp(exact);
        if (error > worst) {
            worst = error;
            at = bx_float(i);
        }
    }
    ck_assert_msg(worst <= LOG1P_ULP, "%.4f ulp at %a", worst, (double)at);
}
END_TEST

START_TEST(exact_points) {
    ck_assert_int_eq(bx_bits(bx_exp_minus(0.0f)), ONE);
    ck_assert_int_eq(bx_bits(bx_exp_minus(-0.0f)), ONE);
    ck_assert_int_eq(bx_bits(bx_exp_minus(0x1p-149f)), ONE);
    ck_assert_int_eq(bx_bits(bx_log1p(0.0f)), 0);     /* +0, so that losses order as their bits do */
    for (int32_t i = 1; i < 0x33000000; i += 99991) { /* below 2^-25 log1p(x) rounds to x, subnormals included */
        HOLDS(bx_bits(bx_log1p(bx_float(i))) == i, "log1p(%a)", (double)bx_float(i));
    }
    ck_assert_int_eq(bx_bits(bx_log1p(0x1p-149f)), 1);
    ck_assert(bx_log1p(1.0f) == (float)log(2.0));
    for (int k = 24; k <= 60; k++) { /* 1 + 2^k rounds to 2^k */
        double exact = log1p(ldexp(1, k));
        HOLDS(fabs((double)bx_log1p((float)ldexp(1, k)) - exact) <= ulp(exact), "log1p(2^%d)", k);
    }
}
END_TEST

START_TEST(beyond_87) {
    float least = bx_exp_minus(87.0f);
    ck_assert(least > 1.6e-38f && least < 1.7e-38f);
    static const float far[] = {87.00001f, 88, 103.9f, 1e6f, FLT_MAX, INFINITY};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        HOLDS(bx_bits(bx_exp_minus(far[i])) == bx_bits(least), "exp(-%a)", (double)far[i]);
    }
    for (int32_t i = 0; i < INFINITE; i += 100003) {
        float e = bx_exp_minus(bx_float(i));
        HOLDS(e >= FLT_MIN && e <= 1, "exp(-%a) is %a", (double)bx_float(i), (double)e);
    }
}
END_TEST

START_TEST(monotone) {
    float before = 1;
    for (int32_t i = 0; i < INFINITE; i += 997) {
        float e = bx_exp_minus(bx_float(i));
        HOLDS(e <= before, "exp(-%a)", (double)bx_float(i));
        before = e;
    }
    before = 0;
    for (int32_t i = 0; i <= TWO_TO_60; i += 997) {
        float l = bx_log1p(bx_float(i));
        HOLDS(l >= before, "log1p(%a)", (double)bx_float(i));
        before = l;
    }
    /* neighbours, where the reductions switch: at (n + 1/2) ln 2, at 2^k sqrt(1/2) - 1, at 1 and at powers of two */
    for (int n = 0; n < 125; n++) {
        int32_t centre = bx_bits((float)((n + 0.5) * log(2.0)));
        for (int32_t i = centre - 300; i < centre + 300; i++) {
            HOLDS(bx_exp_minus(bx_float(i + 1)) <= bx_exp_minus(bx_float(i)), "exp(-%a)", (double)bx_float(i));
        }
    }
    for (int k = 1; k < 60; k++) {
        const float centres[] = {(float)(ldexp(sqrt(0.5), k) - 1), (float)ldexp(1, k), (float)ldexp(1, -k), 1};
        for (int c = 0; c < 4; c++) {
            for (int32_t i = bx_bits(centres[c]) - 300; i < bx_bits(centres[c]) + 300; i++) {
                HOLDS(bx_log1p(bx_float(i + 1)) >= bx_log1p(bx_float(i)), "log1p(%a)", (double)bx_float(i));
            }
        }
    }
}
END_TEST

/* ---- lanes ------------------------------------------------------------------------------------------------------- */

#if defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((noinline, optimize("O3")))
#else
#define VECTORISED __attribute__((noinline))
#endif
#define N 1021

VECTORISED static void row(const float *restrict in, float *restrict e, float *restrict l, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        e[i] = bx_exp_minus(in[i]);
        l[i] = bx_log1p(in[i]);
    }
}

#ifdef __x86_64__
__attribute__((target("avx2"))) VECTORISED static void wide_row(const float *restrict in, float *restrict e,
                                                                float *restrict l, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        e[i] = bx_exp_minus(in[i]);
        l[i] = bx_log1p(in[i]);
    }
}
#endif

static float one_exp(float x) {
    volatile float in = x, out = bx_exp_minus(in);
    return out;
}

static float one_log1p(float x) {
    volatile float in = x, out = bx_log1p(in);
    return out;
}

static void compare_lanes(void (*rows)(const float *restrict, float *restrict, float *restrict, int32_t)) {
    static float in[N], e[N], l[N];
    uint32_t bits = 12345;
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < N; i++) {
            bits = bits * 1664525u + 1013904223u;
            in[i] = bx_float((int32_t)(bits % (uint32_t)(TWO_TO_60 + 1)));
        }
        rows(in, e, l, N);
        for (int i = 0; i < N; i++) {
            HOLDS(bx_bits(e[i]) == bx_bits(one_exp(in[i])), "exp(-%a)", (double)in[i]);
            HOLDS(bx_bits(l[i]) == bx_bits(one_log1p(in[i])), "log1p(%a)", (double)in[i]);
        }
    }
}

START_TEST(lanes) {
    compare_lanes(row);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        compare_lanes(wide_row);
    }
#endif
}
END_TEST

/* In the kernels that ship: the row (0, -d) against column 0 costs log1p(exp(-d)). */
START_TEST(lanes_of_the_kernels) {
    float *tile = aligned_alloc(BX_ALIGN, BX_TILE_FLOATS * sizeof *tile);
    const bx_kernels *kernels;
    ck_assert_ptr_nonnull(tile);
    for (size_t level = 0; (kernels = bx_kernels_at(level)); level++) {
        int32_t bits = 1;
        for (int round = 0; round < 2000; round++) {
            float rows[BX_LANES][2], ce[BX_LANES];
            for (int i = 0; i < BX_LANES; i++) {
                bits = (bits + 9176) % EIGHTY_SEVEN;
                rows[i][0] = 0;
                rows[i][1] = -bx_float(bits);
            }
            HOLDS(kernels->score_rows(&rows[0][0], BX_LANES, 2, NULL, ce, tile), "%s", kernels->level);
            for (int i = 0; i < BX_LANES; i++) {
                float owed = rows[i][1] == 0 ? one_log1p(1) : one_log1p(one_exp(-rows[i][1]));
                HOLDS(bx_bits(ce[i]) == bx_bits(owed), "%s: (0, %a)", kernels->level, (double)rows[i][1]);
            }
        }
    }
    free(tile);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("real");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, exp_accuracy);
    tcase_add_test(tests, log1p_accuracy);
    tcase_add_test(tests, exact_points);
    tcase_add_test(tests, beyond_87);
    tcase_add_test(tests, monotone);
    tcase_add_test(tests, lanes);
    tcase_add_test(tests, lanes_of_the_kernels);
    return suite_run(suite);
}
