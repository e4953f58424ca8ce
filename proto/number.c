/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers to text and back, exactly, whatever the locale: a text is read as the double nearest to it, as strtod does.
 *
 * Reading: up to 19 digits are gathered eight at a time and multiplied by 128 bits of a power of five (Lemire, "Number
 * parsing at a gigabyte per second", 2021; that 128 bits always suffice: Mushtak and Lemire, "Fast number parsing
 * without fallback", 2023).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of eight characters is the lowest byte");

#define UNLIKELY(condition) __builtin_expect(condition, 0)

typedef unsigned __int128 uint128;

/* ---- powers ------------------------------------------------------------------------------------------------------ */

#define LEAST_POWER    (-342)
#define GREATEST_POWER 308 /* of those that are finite doubles */

static const struct {
    uint64_t high, low;
} powers[] = {
#define POWER(high, low) {high, low},
#include "power.def"
#undef POWER
};

static const uint64_t tens[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};

/* The largest e with 2^e <= 10^q; for |q| <= 1233. */
static inline int binary_exponent(int q) {
    return (q * 1741647) >> 19;
}

/* ---- decimal to binary ------------------------------------------------------------------------------------------- */

#define FRACTION_BITS 52
#define INFINITE_BITS (UINT64_C(0x7ff) << FRACTION_BITS)

/* The bits of the double nearest to w * 10^q. */
static inline uint64_t nearest_double(uint64_t w, int64_t q) {
    const uint64_t row = (uint64_t)q - LEAST_POWER;
    if (UNLIKELY(w == 0 || row > GREATEST_POWER - LEAST_POWER))
        return w == 0 || q < 0 ? 0 : INFINITE_BITS;
    const int zeros = __builtin_clzll(w);
    w <<= zeros;

    /* 64 bits of the power decide unless the bits below the fraction are all ones. */
    const uint128 first = (uint128)w * powers[row].high;
    uint64_t high = (uint64_t)(first >> 64), low = (uint64_t)first;
    if (UNLIKELY((~high & 0x1ff) == 0)) {
        const uint64_t carry = (uint64_t)((uint128)w * powers[row].low >> 64);
        low += carry;
        high += low < carry;
    }

    /* 53 bits and one to round by. */
    const int top = (int)(high >> 63), shift = top + 64 - FRACTION_BITS - 3;
    uint64_t mantissa = high >> shift;
    const int exponent = binary_exponent((int)q) + 63 + 1023 + top - zeros;
    if (UNLIKELY(exponent <= 0)) {
        if (exponent <= -63)
            return 0;
        mantissa >>= 1 - exponent;
        return (mantissa + 1) >> 1; /* what is rounded up to the least normal number becomes it */
    }
    /* Halfway between two doubles, of which the lower is even; only these powers leave no other bits. */
    if (UNLIKELY(low <= 1) && q >= -4 && q <= 23 && (mantissa & 3) == 1 && mantissa << shift == high)
        mantissa--;
    /* the leading bit of the mantissa, or a carry out of it, counts as one in the exponent */
    const uint64_t bits = ((uint64_t)(exponent - 1) << FRACTION_BITS) + ((mantissa + 1) >> 1);
    return UNLIKELY(bits > INFINITE_BITS) ? INFINITE_BITS : bits;
}

static double double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* No double, and no middle of two, has more significant digits than 768; what follows matters by not being zero. */
#define MOST_DIGITS 768

/* The same of a decimal of more than 19 digits, perhaps with a point among them; `exponent` is that of its last. */
static __attribute__((noinline)) uint64_t nearest_to_long(const char *digit, const char *end, int64_t exponent) {
    char text[MOST_DIGITS + 32];
    size_t n = 0;
    uint64_t w = 0;
    bool more = false;
    for (; digit < end; digit++) {
        if (*digit == '.' || (*digit == '0' && n == 0))
            continue;
        if (n < 19)
            w = w * 10 + (uint64_t)(*digit - '0');
        if (n < MOST_DIGITS) {
            text[n++] = *digit;
        } else {
            more |= *digit != '0';
            exponent++;
        }
    }
    if (n <= 19)
        return nearest_double(w, exponent);
    const int64_t cut = exponent + (int64_t)n - 19;
    const uint64_t lower = nearest_double(w, cut), upper = nearest_double(w + 1, cut);
    if (lower == upper)
        return lower;
    /* A text without a point means the same in every locale. */
    snprintf(text + n, sizeof text - n, "%se%lld", more ? "1" : "", (long long)(exponent - more));
    const double value = strtod(text, NULL);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* More than 9: it is none. */
static inline unsigned digit_at(const char *p) {
    return (unsigned)(unsigned char)*p - '0';
}

/* The number that eight bytes of 0 to 9 stand for, the first the lowest. Pairs are joined, then pairs of pairs. */
static inline uint64_t eight_digits(uint64_t bytes) {
    const uint64_t two = UINT64_C(0x000000ff000000ff);
    bytes = bytes * 10 + (bytes >> 8);
    return ((bytes & two) * (100 + (UINT64_C(1000000) << 32)) + (bytes >> 16 & two) * (1 + (UINT64_C(10000) << 32))) >>
           32;
}

/* Append digits to *w, which wraps around; returns where they end. Seven at a time, because most doubles are written
 * with 15 to 17: how often the loop runs can then be guessed. */
static inline const char *read_digits(const char *p, const char *end, uint64_t *w) {
    while (end - p >= 8) {
        uint64_t bytes;
        memcpy(&bytes, p, sizeof bytes);
        bytes ^= UINT64_C(0x3030303030303030);
        /* the high bit of the first byte that is no digit, and of some behind it */
        const uint64_t others = (bytes | (bytes + UINT64_C(0x7676767676767676))) & UINT64_C(0x0080808080808080);
        if (others) {
            const unsigned at = (unsigned)__builtin_ctzll(others), n = at / 8;
            *w = *w * tens[n] + eight_digits(bytes << (63 - at) << 8);
            return p + n;
        }
        *w = *w * 10000000 + eight_digits(bytes << 8);
        p += 7;
    }
    for (; p < end && digit_at(p) <= 9; p++)
        *w = *w * 10 + digit_at(p);
    return p;
}

/* What follows the e; NULL when it is no exponent. Stops growing where nothing is finite any more. */
static inline const char *read_exponent(const char *p, const char *end, int64_t *exponent) {
    const bool signs = p < end && (*p == '-' || *p == '+'), negative = signs && *p == '-';
    int64_t value = 0;
    p += signs;
    if (p == end || digit_at(p) > 9)
        return NULL;
    for (; p < end && digit_at(p) <= 9; p++)
        if (value < INT64_MAX / 100)
            value = value * 10 + digit_at(p);
    *exponent += negative ? -value : value;
    return p;
}

static const char *read_integer(const char *digits, const char *end, uint64_t w, bool negative, proto_number *number) {
    const bool fits = end - digits <= 19 && w <= INT64_MAX + (uint64_t)negative;
    number->kind = fits ? PROTO_NUMBER_INTEGER : PROTO_NUMBER_LONG;
    number->value = end - digits <= 19 ? (double)w : double_of_bits(nearest_to_long(digits, end, 0));
    if (negative)
        number->value = -number->value;
    if (fits)
        number->integer = (int64_t)(negative ? 0 - w : w);
    return end;
}

const char *proto_number_read(const char *text, const char *end, proto_number *number) {
    const char *p = text;
    const bool negative = p < end && *p == '-';
    p += negative;
    if (p == end || digit_at(p) > 9)
        return NULL;
    const char *const digits = p;
    uint64_t w = digit_at(p++);
    for (; p < end && digit_at(p) <= 9; p++) {
        if (*digits == '0')
            return NULL;
        w = w * 10 + digit_at(p);
    }
    if (p == end || (*p != '.' && (*p | 0x20) != 'e'))
        return read_integer(digits, p, w, negative, number);
    int64_t exponent = 0;
    ptrdiff_t n_digits = p - digits;
    const char *digits_end = p;
    if (*p == '.') {
        const char *decimals = p + 1;
        p = digits_end = read_digits(decimals, end, &w);
        exponent = decimals - p;
        if (exponent == 0)
            return NULL;
        n_digits -= exponent + (*digits == '0');
    }
    if (p < end && (*p | 0x20) == 'e') {
        p = read_exponent(p + 1, end, &exponent);
        if (!p)
            return NULL;
    }
    const uint64_t bits = n_digits <= 19 ? nearest_double(w, exponent) : nearest_to_long(digits, digits_end, exponent);
    number->kind = PROTO_NUMBER_REAL;
    number->value = double_of_bits(bits | (uint64_t)negative << 63);
    return p;
}
