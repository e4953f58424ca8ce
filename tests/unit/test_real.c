/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our exp, log1p and log against double precision, their exact points and monotony, and that a lane of a vector gives
 * the same bits as a scalar. Over every float of their ranges the greatest errors are 2.2605 ulp for exp(-d), 0.851 ulp
 * for log1p, 0.868 ulp for log1p_unit and 0.857 ulp for log, and all are monotone; the sweeps here are sparser.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "internal.h"
#include "loss/prob_ce.h"
#include "real.h"
#include "../support/suite.h"
#include "../support/random.h"

#define EXP_ULP   2.261
#define LOG1P_ULP 0.851
#define UNIT_ULP  0.868
#define LOG_ULP   0.857

enum {
    ONE = 0x3f800000,
    EIGHTY_SEVEN = 0x42ae0000,
    TWO_TO_60 = 0x5d800000,
    LEAST_NORMAL = 0x00800000,
    INFINITE = 0x7f800000,
    LEAST_PROBABILITY = 0x33d6bf95, /* of the clip: 1e-7 and 1 - 2^-23 */
    MOST_PROBABILITY = 0x3f7ffffe,
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

/* Denser where it takes the two ways, around 1/2. */
START_TEST(log1p_unit_accuracy) {
    double worst = 0;
    float at = 0, before = 0;
    for (int32_t i = 0; i <= ONE; i += i < 0x3ec00000 ? STRIDE : 7) {
        float got = bx_log1p_unit(bx_float(i));
        double exact = log1p((double)bx_float(i));
        double error = fabs((double)got - exact) / ulp(exact);
        HOLDS(got >= before, "not monotone at %a", (double)bx_float(i));
        before = got;
        if (error > worst) {
            worst = error;
            at = bx_float(i);
        }
    }
    ck_assert_msg(worst <= UNIT_ULP, "%.4f ulp at %a", worst, (double)at);
    ck_assert_int_eq(bx_bits(bx_log1p_unit(0)), 0);
    ck_assert(bx_log1p_unit(1) == (float)log(2.0));
}
END_TEST

static double log_error(float x) {
    double exact = log((double)x);
    HOLDS(exact != 0 || bx_bits(bx_log(x)) == 0, "log(1) is %a", (double)bx_log(x));
    return exact == 0 ? 0 : fabs((double)bx_log(x) - exact) / ulp(exact);
}

/* All normal floats; then every float about 1, where the result is small, and what a clipped probability can be. */
START_TEST(log_accuracy) {
    static const struct {
        int32_t first, last, stride;
    } sweeps[] = {
        {LEAST_NORMAL, INFINITE - 1, STRIDE},
        {ONE - 400000, ONE + 400000, 1},
        {LEAST_PROBABILITY, MOST_PROBABILITY, 97},
    };
    for (int s = 0; s < 3; s++) {
        double worst = 0;
        float at = 0;
        for (int32_t i = sweeps[s].first; i <= sweeps[s].last; i += sweeps[s].stride) {
            double error = log_error(bx_float(i));
            at = error > worst ? bx_float(i) : at;
            worst = error > worst ? error : worst;
        }
        HOLDS(worst <= LOG_ULP, "sweep %d: %.4f ulp at %a", s, worst, (double)at);
    }
    for (int k = -126; k <= 127; k++) { /* the ends of each binade, and where the reduction switches */
        for (int32_t near = -200; near <= 200; near++) {
            const float centres[] = {(float)ldexp(1, k), (float)ldexp(sqrt(.5), k)};
            for (int c = 0; c < 2; c++) {
                float x = bx_float(bx_bits(centres[c]) + near);
                HOLDS(x < FLT_MIN || log_error(x) <= LOG_ULP, "log(%a)", (double)x);
            }
        }
    }
}
END_TEST

/* The loss of a clipped probability lies in [1.19e-7, 16.118] and orders as its bits do. */
START_TEST(clipped_probabilities) {
    static const float all[] = {-1e-3f, -0.0f, 0, 1e-45f, 1e-8f, 9.9999e-8f, 1e-7f, .5f, .99999988f, 1, 1.001f};
    float slope;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double p = (double)all[i] < 1e-7       ? (double)BX_PROB_LEAST
                   : (double)all[i] > .9999999 ? 1 - 0x1p-23
                                               : (double)all[i];
        double owed = -log(p);
        float loss = bx_prob_ce(all[i], &slope);
        HOLDS(fabs((double)loss - owed) <= LOG_ULP * ulp(owed), "of %a: %a, not %a", (double)all[i], (double)loss,
              owed);
        HOLDS(loss > 1.19e-7f && loss < 16.1181f, "of %a: %a", (double)all[i], (double)loss);
        bool inside = i >= 6 && i <= 8;
        HOLDS(slope == (inside ? -1 / all[i] : 0), "slope at %a", (double)all[i]);
    }
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
    ck_assert_int_eq(bx_bits(bx_log(1.0f)), 0);
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
    before = -INFINITY;
    for (int32_t i = LEAST_NORMAL; i < INFINITE; i += 997) {
        float l = bx_log(bx_float(i));
        HOLDS(l >= before, "log(%a)", (double)bx_float(i));
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
                HOLDS(bx_log(bx_float(i + 1)) >= bx_log(bx_float(i)), "log(%a)", (double)bx_float(i));
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

VECTORISED static void row(const float *restrict in, float *restrict e, float *restrict l, float *restrict g,
                           int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        e[i] = bx_exp_minus(in[i]);
        l[i] = bx_log1p(in[i]);
        g[i] = bx_log(in[i]);
    }
}

#ifdef __x86_64__
__attribute__((target("avx2"))) VECTORISED static void wide_row(const float *restrict in, float *restrict e,
                                                                float *restrict l, float *restrict g, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        e[i] = bx_exp_minus(in[i]);
        l[i] = bx_log1p(in[i]);
        g[i] = bx_log(in[i]);
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

static float one_log(float x) {
    volatile float in = x, out = bx_log(in);
    return out;
}

static void compare_lanes(void (*rows)(const float *restrict, float *restrict, float *restrict, float *restrict,
                                       int32_t)) {
    static float in[N], e[N], l[N], g[N];
    uint32_t bits = 12345;
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < N; i++) {
            bits = bits * 1664525u + 1013904223u;
            in[i] = bx_float((int32_t)(bits % (uint32_t)(TWO_TO_60 + 1)));
        }
        rows(in, e, l, g, N);
        for (int i = 0; i < N; i++) {
            HOLDS(bx_bits(e[i]) == bx_bits(one_exp(in[i])), "exp(-%a)", (double)in[i]);
            HOLDS(bx_bits(l[i]) == bx_bits(one_log1p(in[i])), "log1p(%a)", (double)in[i]);
            HOLDS(bx_bits(g[i]) == bx_bits(one_log(in[i])), "log(%a)", (double)in[i]);
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

/* In the kernels that ship: the row (0, -d) against column 0 costs log1p(exp(-d)); a probability costs -log of it. */
START_TEST(lanes_of_the_kernels) {
    const float one[2] = {1, 1};
    const bx_scoring softmax = {BX_CLASSIFICATION_SOFTMAX_CE, 2, 0, .plain = true, .hard = one, .soft = one};
    const bx_scoring given = {BX_CLASSIFICATION_PROB_CE, 2, 0, .plain = true, .hard = one, .soft = one};
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
            HOLDS(kernels->score_rows(&softmax, &rows[0][0], BX_LANES, NULL, ce, tile), "%s", kernels->level);
            for (int i = 0; i < BX_LANES; i++) {
                float owed = rows[i][1] == 0 ? one_log1p(1) : one_log1p(one_exp(-rows[i][1]));
                HOLDS(bx_bits(ce[i]) == bx_bits(owed), "%s: (0, %a)", kernels->level, (double)rows[i][1]);
                rows[i][0] =
                    bx_float(LEAST_PROBABILITY + (int32_t)(random_bits() % (MOST_PROBABILITY - LEAST_PROBABILITY)));
                rows[i][1] = 0;
            }
            HOLDS(kernels->score_rows(&given, &rows[0][0], BX_LANES, NULL, ce, tile), "%s", kernels->level);
            for (int i = 0; i < BX_LANES; i++) {
                float owed = -one_log(rows[i][0]);
                HOLDS(bx_bits(ce[i]) == bx_bits(owed), "%s: %a", kernels->level, (double)rows[i][0]);
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
    tcase_add_test(tests, log1p_unit_accuracy);
    tcase_add_test(tests, log_accuracy);
    tcase_add_test(tests, clipped_probabilities);
    tcase_add_test(tests, exact_points);
    tcase_add_test(tests, beyond_87);
    tcase_add_test(tests, monotone);
    tcase_add_test(tests, lanes);
    tcase_add_test(tests, lanes_of_the_kernels);
    return suite_run(suite);
}
