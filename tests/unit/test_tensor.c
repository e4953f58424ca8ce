/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element types: names, sizes, and what each element becomes, at any alignment. Half precision is checked in all its
 * 65536 values against ldexp.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* One element of `dtype` read at an odd address, after `skip` others. */
static float as_float(bx_dtype dtype, const void *element, size_t skip) {
    _Alignas(16) char memory[128];
    size_t bytes = bx_dtype_bytes(dtype);
    memset(memory, 0xa5, sizeof memory);
    memcpy(memory + 1 + skip * bytes, element, bytes);
    float out[3] = {-7, -7, -7};
    bx_tensor_to_f32(out + 1, (bx_tensor){dtype, memory + 1}, skip, 1);
    HOLDS(out[0] == -7 && out[2] == -7, "wrote beside the element");
    return out[1];
}

static int64_t as_int(bx_dtype dtype, const void *element, size_t skip) {
    _Alignas(16) char memory[128];
    size_t bytes = bx_dtype_bytes(dtype);
    memset(memory, 0xa5, sizeof memory);
    memcpy(memory + 1 + skip * bytes, element, bytes);
    return bx_tensor_int((bx_tensor){dtype, memory + 1}, skip);
}

START_TEST(names_and_sizes) {
    static const struct {
        bx_dtype dtype;
        const char *name;
        size_t bytes;
        bool is_float;
    } rows[] = {
        {BX_F32, "F32", 4, true},  {BX_F16, "F16", 2, true},    {BX_BF16, "BF16", 2, true}, {BX_F64, "F64", 8, true},
        {BX_I64, "I64", 8, false}, {BX_I32, "I32", 4, false},   {BX_I16, "I16", 2, false},  {BX_I8, "I8", 1, false},
        {BX_U8, "U8", 1, false},   {BX_BOOL, "BOOL", 1, false},
    };
    ck_assert_uint_eq(sizeof rows / sizeof *rows, BX_N_DTYPES);
    for (size_t i = 0; i < BX_N_DTYPES; i++) {
        bx_dtype found = BX_N_DTYPES;
        ck_assert_str_eq(bx_dtype_name(rows[i].dtype), rows[i].name);
        ck_assert_uint_eq(bx_dtype_bytes(rows[i].dtype), rows[i].bytes);
        ck_assert_int_eq(bx_dtype_is_float(rows[i].dtype), rows[i].is_float);
        ck_assert(bx_dtype_from_name(rows[i].name, &found));
        ck_assert_int_eq(found, rows[i].dtype);
    }
    static const char *const unknown[] = {"", "F", "f32", "F321", "U16", "I128", "F8_E4M3"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        bx_dtype untouched = BX_I8;
        ck_assert(!bx_dtype_from_name(unknown[i], &untouched));
        ck_assert_int_eq(untouched, BX_I8);
    }
}
END_TEST

START_TEST(every_half) {
    uint16_t halves[65536];
    static char memory[2 * 65536 + 1];
    static float all[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
    }
    memcpy(memory + 1, halves, sizeof halves);
    bx_tensor_to_f32(all, (bx_tensor){BX_F16, memory + 1}, 0, 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        int exponent = (int)(i >> 10 & 31), fraction = (int)(i & 1023);
        double sign = i & 0x8000 ? -1 : 1;
        if (exponent == 31 && fraction) {
            HOLDS(isnan(all[i]), "half %04x", i);
            continue;
        }
        double magnitude = exponent == 31 ? INFINITY
                           : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                          : ldexp(fraction, -24);
        HOLDS(bits_of(all[i]) == bits_of((float)(sign * magnitude)), "half %04x is %a", i, (double)all[i]);
    }
    ck_assert_uint_eq(bits_of(all[0x8000]), 0x80000000u);
    ck_assert(all[0x0001] == 0x1p-24f && all[0x03ff] == 1023 * 0x1p-24f && all[0x0400] == 0x1p-14f);
    ck_assert(all[0x7bff] == 65504 && all[0x3c00] == 1 && all[0xfbff] == -65504);
    ck_assert(isinf(all[0x7c00]) && isinf(all[0xfc00]) && all[0xfc00] < 0);
}
END_TEST

START_TEST(every_bfloat) {
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t b = (uint16_t)i;
        float x = as_float(BX_BF16, &b, i % 3);
        HOLDS(bits_of(x) == i << 16, "bfloat %04x", i);
    }
}
END_TEST

START_TEST(floats_are_kept) {
    static const uint32_t patterns[] = {0,          0x80000000, 1,          0x807fffff, 0x3f800001,
                                        0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc01234, 0x7f800001};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        float x = as_float(BX_F32, &patterns[i], i % 3);
        ck_assert_msg(bits_of(x) == patterns[i], "%08x became %08x", patterns[i], bits_of(x));
    }
}
END_TEST

START_TEST(doubles_are_rounded) {
    static const struct {
        double from;
        float to;
    } rows[] = {
        {0.0, 0.0f},
        {-0.0, -0.0f},
        {0.1, 0.1f},
        {1 + 0x1p-24, 1},                      /* half way: to even */
        {1 + 0x1p-23 + 0x1p-24, 1 + 0x1p-22f}, /* half way: to even, upwards */
        {1 + 0x1p-24 + 0x1p-52, 1 + 0x1p-23f}, /* just above half way */
        {1 + 0x1p-24 - 0x1p-52, 1},            /* just below */
        {-(1 + 0x1p-24), -1},                  /* symmetric */
        {(double)FLT_MAX, FLT_MAX},            /* the last one */
        {0x1.fffffefffffffp127, FLT_MAX},      /* below half way to the next */
        {0x1.ffffffp127, INFINITY},            /* half way: overflows */
        {-0x1.ffffffp127, -INFINITY},
        {1e300, INFINITY},
        {-DBL_MAX, -INFINITY},
        {INFINITY, INFINITY},
        {0x1p-149, 0x1p-149f}, /* subnormals */
        {0x1p-150, 0},         /* half way to the smallest: even is 0 */
        {0x1.8p-149, 0x1p-148f},
        {0x1.000001p-150, 0x1p-149f},
        {-0x1p-1074, -0.0f},
        {(double)FLT_MIN - 0x1p-151, FLT_MIN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float x = as_float(BX_F64, &rows[i].from, i % 3);
        ck_assert_msg(bits_of(x) == bits_of(rows[i].to), "%a became %a, not %a", rows[i].from, (double)x,
                      (double)rows[i].to);
    }
    double nan = NAN;
    ck_assert(isnan(as_float(BX_F64, &nan, 0)));
}
END_TEST

START_TEST(a_run_from_the_middle) {
    _Alignas(8) char memory[8 * 40 + 1];
    for (size_t i = 0; i < 40; i++) {
        double d = (double)i - 20.25;
        memcpy(memory + 1 + 8 * i, &d, 8);
    }
    float out[34];
    out[33] = 99;
    bx_tensor_to_f32(out, (bx_tensor){BX_F64, memory + 1}, 7, 33);
    for (size_t i = 0; i < 33; i++) {
        ck_assert(out[i] == (float)i + 7 - 20.25f);
    }
    ck_assert(out[33] == 99);
    bx_tensor_to_f32(out, (bx_tensor){BX_F64, memory + 1}, 40, 0);
    ck_assert(out[0] == 7 - 20.25f);
}
END_TEST

START_TEST(integers) {
    static const int64_t i64[] = {0, 1, -1, INT64_MAX, INT64_MIN, INT64_C(1) << 32};
    static const int32_t i32[] = {0, 1, -1, INT32_MAX, INT32_MIN};
    static const int16_t i16[] = {0, 1, -1, INT16_MAX, INT16_MIN};
    for (size_t i = 0; i < sizeof i64 / sizeof *i64; i++) {
        ck_assert_int_eq(as_int(BX_I64, &i64[i], i), i64[i]);
    }
    for (size_t i = 0; i < sizeof i32 / sizeof *i32; i++) {
        ck_assert_int_eq(as_int(BX_I32, &i32[i], i), i32[i]);
        ck_assert_int_eq(as_int(BX_I16, &i16[i], i), i16[i]);
    }
    for (int i = 0; i < 256; i++) {
        uint8_t u = (uint8_t)i;
        int8_t s;
        memcpy(&s, &u, 1);
        ck_assert_int_eq(as_int(BX_U8, &u, 2), i);
        ck_assert_int_eq(as_int(BX_I8, &u, 2), s);
    }
    uint8_t no = 0, yes = 1;
    ck_assert_int_eq(as_int(BX_BOOL, &no, 0), 0);
    ck_assert_int_eq(as_int(BX_BOOL, &yes, 5), 1);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tensor");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_add_test(tests, names_and_sizes);
    tcase_add_test(tests, every_half);
    tcase_add_test(tests, every_bfloat);
    tcase_add_test(tests, floats_are_kept);
    tcase_add_test(tests, doubles_are_rounded);
    tcase_add_test(tests, a_run_from_the_middle);
    tcase_add_test(tests, integers);
    return suite_run(suite);
}
