/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers to text and back, exactly, whatever the locale: a text is read as the double nearest to it, as strtod does;
 * a float or double is written with the fewest digits that read back the same, and of those nearest to it.
 *
 * Reading: up to 19 digits are gathered seven at a time and multiplied by 128 bits of a power of five (Lemire, "Number
 * parsing at a gigabyte per second", 2021; that 128 bits always suffice: Mushtak and Lemire, "Fast number parsing
 * without fallback", 2023).
 *
 * Writing: the same powers take the ends of the interval that reads back the same to the decimal places that can tell
 * it from its neighbours (Giulietti, "The Schubfach way to render doubles", 2020; for the idea also Adams, "Ryu: fast
 * float-to-string conversion", 2018).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of eight characters is the lowest byte");

#define INLINE              static inline __attribute__((always_inline))
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

static const uint64_t tens[] = {
    UINT64_C(1),
    UINT64_C(10),
    UINT64_C(100),
    UINT64_C(1000),
    UINT64_C(10000),
    UINT64_C(100000),
    UINT64_C(1000000),
    UINT64_C(10000000),
    UINT64_C(100000000),
    UINT64_C(1000000000),
    UINT64_C(10000000000),
    UINT64_C(100000000000),
    UINT64_C(1000000000000),
    UINT64_C(10000000000000),
    UINT64_C(100000000000000),
    UINT64_C(1000000000000000),
    UINT64_C(10000000000000000),
    UINT64_C(100000000000000000),
};

/* The largest e with 2^e <= 10^q; for |q| <= 1233. */
static inline int binary_exponent(int q) {
    return (q * 1741647) >> 19;
}

/* ---- decimal to binary ------------------------------------------------------------------------------------------- */

#define FRACTION_BITS 52
#define INFINITE_BITS (UINT64_C(0x7ff) << FRACTION_BITS)

/* The bits of the double nearest to w * 10^q. */
INLINE uint64_t nearest_double(uint64_t w, int64_t q) {
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
INLINE uint64_t eight_digits(uint64_t bytes) {
    const uint64_t two = UINT64_C(0x000000ff000000ff);
    bytes = bytes * 10 + (bytes >> 8);
    return ((bytes & two) * (100 + (UINT64_C(1000000) << 32)) + (bytes >> 16 & two) * (1 + (UINT64_C(10000) << 32))) >>
           32;
}

/* Append digits to *w, which wraps around; returns where they end. Seven at a time, because most doubles are written
 * with 15 to 17: how often the loop runs can then be guessed. */
INLINE const char *read_digits(const char *p, const char *end, uint64_t *w) {
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
INLINE const char *read_exponent(const char *p, const char *end, int64_t *exponent) {
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

/* ---- binary to decimal ------------------------------------------------------------------------------------------- */

/* digits * 10^exponent */
typedef struct decimal {
    uint64_t digits;
    int exponent;
} decimal;

/* x times the first 128 bits of 10^p, without the last 128 of that; the lowest bit is set if any before the last 64 of
 * those is, that is if anything is: powers that are not exact are rounded up, so that what should be whole is too large
 * by less than 2^64. Of a float, `single`, 64 bits of the power suffice, and all this is half as long. */
INLINE uint64_t scale(uint64_t x, int p, bool single) {
    const int row = p - LEAST_POWER;
    if (single) {
        const uint128 product = (uint128)x * (powers[row].high + ((unsigned)p > 27));
        return (uint64_t)(product >> 64) | ((uint32_t)(product >> 32) != 0);
    }
    const uint128 low = (uint128)x * (powers[row].low + ((unsigned)p + 27 > 27 + 55));
    const uint128 product = (uint128)x * powers[row].high + (uint64_t)(low >> 64);
    return (uint64_t)(product >> 64) | ((uint64_t)product != 0);
}

/* The shortest decimal that is nearer to c * 2^q than to its neighbours c +- 1, or as near if c is even; `closer`: the
 * lower one is only half as far. Of several it is the nearest. 17 digits at most (9 of a float, `single`), and zeros
 * may end them. */
INLINE decimal shortest(uint64_t c, int q, bool closer, bool single) {
    /* 10^k is the greatest power that is no longer than the interval */
    const int k = (q * 1262611 - (closer ? 524031 : 0)) >> 22, shift = q + binary_exponent(-k) + 1;
    /* quarters of 10^k: the value and the ends, which belong to it if c is even */
    const uint64_t value = scale(4 * c << shift, -k, single);
    const uint64_t least = scale((4 * c - 2 + closer) << shift, -k, single) + (c & 1);
    const uint64_t most = scale((4 * c + 2) << shift, -k, single) - (c & 1);

    /* A multiple of 10^(k+1) that is inside has fewer digits, and there is but one; otherwise the nearest of 10^k. Both
     * are calculated without branches, which could not be guessed. */
    const uint64_t ones = value / 4, ten = ones / 10;
    const bool ten_down = least <= 40 * ten, ten_up = 40 * ten + 40 <= most;
    const bool down = least <= 4 * ones, up = 4 * ones + 4 <= most;
    const bool round = value % 4 + (ones & 1) > 2;
    const uint64_t nearest = ones + ((up & !down) | (round & (up == down)));
    const uint64_t fewer = ten_down != ten_up;
    return (decimal){nearest ^ ((nearest ^ (ten + ten_up)) & -fewer), k + (int)fewer};
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static inline void store_eight(char *out, uint64_t bytes) {
    memcpy(out, &bytes, sizeof bytes);
}

/* The other way round than eight_digits: by halves, quarters, eighths (Khuong, "How to print integers really fast",
 * 2017). */
INLINE uint64_t digits_of_eight(uint32_t number) {
    uint64_t rest = number / 10000 | (uint64_t)(number % 10000) << 32;
    uint64_t whole = rest * 10486 >> 20 & UINT64_C(0x0000007f0000007f);
    rest = whole | (rest - 100 * whole) << 16;
    whole = rest * 103 >> 10 & UINT64_C(0x000f000f000f000f);
    return whole | (rest - 10 * whole) << 8;
}

#define ZEROS UINT64_C(0x3030303030303030)

/* 0 < n < 10^18 */
INLINE int count_digits(uint64_t n) {
    const int about = (64 - __builtin_clzll(n)) * 1233 >> 12;
    return about + (n >= tens[about]);
}

/* Write e and the exponent; returns where that ends. */
INLINE char *write_exponent(char *p, int e) {
    const int size = e < 0 ? -e : e;
    *p++ = 'e';
    *p++ = e < 0 ? '-' : '+';
    if (size >= 100)
        *p++ = (char)('0' + size / 100);
    *p++ = (char)('0' + size / 10 % 10);
    *p++ = (char)('0' + size % 10);
    return p;
}

/* Write `first`, `second` and `third`, which are one and two times eight digits, as %g does with `least` digits or as
 * many as there are up to the zeros; the first digit counts 10^e. More is stored than is the number's. */
INLINE size_t write_digits(char *out, bool negative, uint64_t first, uint64_t second, uint64_t third, int e,
                           int least) {
    const int n = third ? 17 - __builtin_clzll(third) / 8 : second ? 9 - __builtin_clzll(second) / 8 : 1;
    const char leading = (char)('0' + first);
    char *p = out;
    *p = '-';
    p += negative;
    second |= ZEROS;
    third |= ZEROS;
    if (e < -4 || e >= (n > least ? n : least)) {
        p[0] = leading;
        p[1] = '.';
        store_eight(p + 2, second);
        store_eight(p + 10, third);
        return (size_t)(write_exponent(p + (n > 1 ? n + 1 : 1), e) - out);
    }
    if (e < 0) {
        store_eight(p, ZEROS);
        p[1] = '.';
        p += 1 - e;
        p[0] = leading;
        store_eight(p + 1, second);
        store_eight(p + 9, third);
        return (size_t)(p + n - out);
    }
    /* all the digits, then once more those behind the point */
    char *const point = p + e + 1;
    p[0] = leading;
    store_eight(p + 1, second);
    if (e < 8) {
        store_eight(point + 1, second >> 8 * e);
        store_eight(p + 10, third);
    } else {
        store_eight(p + 9, third);
        memmove(point + 1, point, n > e + 1 ? (size_t)(n - e - 1) : 0);
    }
    *point = '.';
    return (size_t)((n > e + 1 ? p + n + 1 : point) - out);
}

static size_t write_zero(char *out, bool negative) {
    memcpy(out, "-0", 2);
    out[negative] = '0';
    return (size_t)negative + 1;
}

size_t proto_number_write_double(char *out, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    const bool negative = bits >> 63;
    if (bits << 1 == 0)
        return write_zero(out, negative);
    const uint64_t one = UINT64_C(1) << FRACTION_BITS, fraction = bits & (one - 1);
    const int exponent = (int)(bits >> FRACTION_BITS & 0x7ff);
    const decimal d = shortest(exponent ? fraction | one : fraction, exponent - 1075 + !exponent,
                               fraction == 0 && exponent > 1, false);
    const int n = count_digits(d.digits);
    const uint64_t digits = d.digits * tens[17 - n], rest = digits % tens[16];
    return write_digits(out, negative, digits / tens[16], digits_of_eight((uint32_t)(rest / tens[8])),
                        digits_of_eight((uint32_t)(rest % tens[8])), d.exponent + n - 1, 15);
}

size_t proto_number_write_float(char *out, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const bool negative = bits >> 31;
    if (bits << 1 == 0)
        return write_zero(out, negative);
    const uint32_t one = 1u << 23, fraction = bits & (one - 1);
    const int exponent = (int)(bits >> 23 & 0xff);
    decimal d =
        shortest(exponent ? fraction | one : fraction, exponent - 150 + !exponent, fraction == 0 && exponent > 1, true);
    /* Of all floats the only one whose text, read as a double, gets into the middle of two floats. */
    if (UNLIKELY((bits & 0x7fffffff) == 0x15ae43fd))
        d = (decimal){70385307, -33};
    /* the ninth digit from the end, before it eight; then without the zeros that begin them */
    const uint64_t ninth = d.digits / tens[8], eight = digits_of_eight((uint32_t)(d.digits % tens[8]));
    const int zeros = (8 + __builtin_ctzll(eight | UINT64_C(1) << 63)) / 8 & -(ninth == 0);
    const uint128 digits = ((uint128)eight << 8 | ninth) >> 8 * zeros;
    return write_digits(out, negative, digits & 15, (uint64_t)(digits >> 8), 0, d.exponent + 8 - zeros, 6);
}

static size_t write_natural(char *out, uint64_t n) {
    if (n < 10) {
        *out = (char)('0' + n);
        return 1;
    }
    if (n >= tens[8]) {
        const size_t size = write_natural(out, n / tens[8]);
        store_eight(out + size, digits_of_eight((uint32_t)(n % tens[8])) | ZEROS);
        return size + 8;
    }
    const uint64_t digits = digits_of_eight((uint32_t)n);
    const int zeros = __builtin_ctzll(digits) / 8;
    store_eight(out, (digits | ZEROS) >> 8 * zeros);
    return 8 - (size_t)zeros;
}

size_t proto_number_write_int(char *out, int64_t value) {
    if (value >= 0)
        return write_natural(out, (uint64_t)value);
    *out = '-';
    return 1 + write_natural(out + 1, 0 - (uint64_t)value);
}
