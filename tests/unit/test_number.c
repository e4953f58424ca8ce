/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers to text and back: against strtod and snprintf, on random bits and on the cases known to be hard.
 */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/random.h"
#include "../support/suite.h"

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Read a text that ends where its memory ends; how much of it was the number, or -1. */
static ptrdiff_t read_bytes(const char *text, size_t bytes, proto_number *number) {
    char *copy = malloc(bytes ? bytes : 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, text, bytes);
    const char *end = proto_number_read(copy, copy + bytes, number);
    ptrdiff_t used = end ? end - copy : -1;
    free(copy);
    return used;
}

static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double double_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The text is a number that means what strtod says, alone and in front of something else. */
static void reads_as_strtod(const char *text) {
    const size_t bytes = strlen(text);
    const double value = strtod(text, NULL);
    proto_number alone, before;
    HOLDS(read_bytes(text, bytes, &alone) == (ptrdiff_t)bytes, "%.60s is refused", text);
    HOLDS(bits_of(alone.value) == bits_of(value), "%.60s: %a, not %a", text, alone.value, value);

    char *list = malloc(bytes + 12);
    ck_assert_ptr_nonnull(list);
    memcpy(list, text, bytes);
    memcpy(list + bytes, ",123456789]", 12);
    const char *end = proto_number_read(list, list + bytes + 11, &before);
    HOLDS(end == list + bytes && bits_of(before.value) == bits_of(value) && before.kind == alone.kind, "%s", list);
    free(list);
}

/* Texts whose nearest double is easily missed, most of them by one bit in the last place. */
static const char *const hard[] = {
    "0",
    "-0",
    "0.0",
    "-0.0e5",
    "0e999999999999999999999",
    "1",
    "-1",
    "0.1",
    "1e22",
    "1e23",
    "9007199254740991",
    "9007199254740992",
    "9007199254740993",
    "9007199254740993.0",
    "9007199254740993.0000000000000000000000000000000000000000",
    "9007199254740993.00000000000000000000000000000000000000001",
    "9007199254740992.99999999999999999999999999999999999999999",
    "9007199254740995",
    "18014398509481986",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "9999999999999999999",
    "10000000000000000000",
    "99999999999999999999",
    "123456789012345678901234567890",
    "7.2057594037927933e16",
    "0.500000000000000166533453693773481063544750213623046875",
    "0.50000000000000016653345369377348106354475021362304687500000000000001",
    "0.50000000000000016653345369377348106354475021362304687499999999999999",
    "3.518437208883201171875e13",
    "62.5364939768271845828",
    "8.10109172351e-10",
    "1.50000000000000011102230246251565",
    "5e-324",
    "4.9406564584124654e-324",
    "4.9406564584124654417656879286822e-324",
    "2.4703282292062327e-324",
    "2.4703282292062328e-324",
    "2.470328229206232720882843964341106861825299013071623822127928412503377536e-324",
    "2.4703282292062327208828439643411068618252990130716238221279284125033775363510437593264991818081799618989828234"
    "77228588654633283551779698981993873980053909390631503565951557022639229085839244910518443593180284993653615250"
    "03193704576782492193656236698636584807570015857692699037063119282795585513329278343384093519780155312465972635"
    "79574622766465272827220056374006485499977096599470454020828166226237857393450736339007967761930577506740176324"
    "67360096895134053553745851666113422376667860416215968046191446729184030053005753084904876539171138659164623952"
    "49126236538818796362393732804238910186723484976682350898633885879256283027559956575244555072551893136908362547"
    "79186948667994968324049705821028513185451396213837722826145437693412532098591327667236328125e-324",
    "1e-323",
    "7.4109846876186981626485318930233205854758970392148714663837852375101326090531312779794975454245398856969484704"
    "e-324",
    "2.2250738585072011e-308",
    "2.2250738585072012e-308",
    "2.2250738585072013e-308",
    "2.2250738585072014e-308",
    "2.225073858507201136057409796709131975934819546351645648023426109724822222021076945516529523908135087914149158913"
    "03962110687008643869459464552765720740782062174337998814106326732925355228688137214901298112245145188984905722"
    "23072852551331557550159143974763979834118019993239625482890171070818506906306666559949382757725720157630626906"
    "63332647565300009245888316433037779791869612049497390377829704905051080609940730262937128958950003583799967207"
    "25430436028407889577179615094551674824347103070260914462157228988025818254518032570701886087211312807951223342"
    "62883686223215037756666225039825343359745688844239002654981983854879482922068947216898310996983658468140228542"
    "43330660339850886445804001034933970427567186443383770486037861622771738545623065874679014086723327636718751234"
    "567890123456789012345678901e-308",
    "1.7976931348623157e308",
    "1.7976931348623158e308",
    "1.7976931348623159e308",
    "1.797693134862315807e308",
    "1.797693134862315808e308",
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692"
    "887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842"
    "914819860834936475292719074168444365510704342711559699508093042880177904174497792",
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692"
    "887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842"
    "914819860834936475292719074168444365510704342711559699508093042880177904174497791",
    "1e308",
    "1e309",
    "-1e400",
    "1e-400",
    "-1e-400",
    "1E+2",
    "1e-0",
    "1e00000000000000000000000000000000000000000000005",
    "1e99999999999999999999999999999999999999999999999",
    "1e-99999999999999999999999999999999999999999999999",
    "12345678",
    "123456789",
    "0.12345678",
    "0.000000000000000000000000000000012345678901234567",
    "-0.1234567890123456",
    "0.00012345678901234567",
    /* Paxson, "A program for testing IEEE decimal-binary conversion", 1991: closest to the middle of two doubles */
    "5e125",
    "69e267",
    "999e-26",
    "7861e-34",
    "75569e-254",
    "928609e-261",
    "9210917e80",
    "84863171e114",
    "653777767e273",
    "5232604057e-298",
    "27235667517e-109",
    "653532977297e-123",
    "3142213164987e-294",
    "46202199371337e-72",
    "231010996856685e-73",
    "9324754620109615e212",
    "78459735791271921e49",
    "272104041512242479e200",
    "6802601037806061975e198",
    "20505426358836677347e-221",
    "836168422905420598437e-234",
    "4891559871276714924261e222",
};

START_TEST(hard_texts) {
    for (size_t i = 0; i < sizeof hard / sizeof *hard; i++)
        reads_as_strtod(hard[i]);
}
END_TEST

/* Random doubles with too few, enough and too many digits. */
START_TEST(texts_of_doubles) {
    char text[1200];
    for (int i = 0; i < 60000; i++) {
        const double value = double_of(random_bits());
        if (!isfinite(value))
            continue;
        const int precision = i % 100 == 0 ? below(800) : below(25);
        snprintf(text, sizeof text, "%.*e", precision, value);
        reads_as_strtod(text);
        if (fabs(value) < 1e300 && fabs(value) > 1e-300) {
            const double nearer = ldexp(value, -ilogb(value) + below(80) - 40);
            snprintf(text, sizeof text, "%.*f", below(30), nearer);
            reads_as_strtod(text);
        }
    }
}
END_TEST

/* The middle of two doubles, a digit less and a digit more. */
START_TEST(middles) {
    char text[1200];
    for (int i = 0; i < 3000; i++) {
        /* below 2^-1022 the middle of two doubles is no double, and printf's long double may have no room either */
        const double low = double_of(random_bits() >> 1), high = nextafter(low, INFINITY);
        if (!isfinite(low) || !isfinite(high) || low < 0x1p-1000)
            continue;
        const long double middle = ((long double)low + (long double)high) / 2;
        snprintf(text, sizeof text, "%.1100Lg", middle);
        char *e = strchr(text, 'e');
        reads_as_strtod(text);
        char tail[16] = "";
        if (e) {
            snprintf(tail, sizeof tail, "%s", e);
            *e = '\0';
        }
        const size_t n = strlen(text);
        if (!strchr(text, '.'))
            continue;
        snprintf(text + n, sizeof text - n, "%s%s", i % 2 ? "000000000000000000000000000001" : "0", tail);
        reads_as_strtod(text);
        snprintf(text + n - 1, sizeof text - n + 1, "%s%s", "49999999999999999", tail);
        reads_as_strtod(text);
    }
}
END_TEST

/* Random digits with a point anywhere and any exponent. */
START_TEST(texts_of_digits) {
    for (int i = 0; i < 60000; i++) {
        char text[128];
        size_t n = 0;
        const int whole = i % 3 == 0 ? 1 : 1 + below(25), decimals = below(4) == 0 ? 0 : below(40);
        if (below(2))
            text[n++] = '-';
        for (int k = 0; k < whole; k++)
            text[n++] = (char)('0' + (whole > 1 && k == 0 ? 1 + below(9) : below(10)));
        if (decimals)
            text[n++] = '.';
        const int zeros = below(3) == 0 ? below(40) : 0;
        for (int k = 0; k < decimals; k++)
            text[n++] = (char)('0' + (k < zeros ? 0 : below(10)));
        text[n] = '\0';
        if (below(2))
            snprintf(text + n, sizeof text - n, "%c%s%d", "eE"[below(2)],
                     below(2)   ? "-"
                     : below(2) ? "+"
                                : "",
                     below(350));
        reads_as_strtod(text);
    }
}
END_TEST

START_TEST(kinds) {
    static const struct {
        const char *text;
        proto_number_kind kind;
        int64_t integer;
    } rows[] = {
        {"0", PROTO_NUMBER_INTEGER, 0},
        {"-0", PROTO_NUMBER_INTEGER, 0},
        {"7", PROTO_NUMBER_INTEGER, 7},
        {"-17", PROTO_NUMBER_INTEGER, -17},
        {"123456789012345678", PROTO_NUMBER_INTEGER, INT64_C(123456789012345678)},
        {"9223372036854775807", PROTO_NUMBER_INTEGER, INT64_MAX},
        {"-9223372036854775808", PROTO_NUMBER_INTEGER, INT64_MIN},
        {"9223372036854775808", PROTO_NUMBER_LONG, 0},
        {"-9223372036854775809", PROTO_NUMBER_LONG, 0},
        {"18446744073709551617", PROTO_NUMBER_LONG, 0},
        {"100000000000000000000000000000", PROTO_NUMBER_LONG, 0},
        {"7.0", PROTO_NUMBER_REAL, 0},
        {"7e0", PROTO_NUMBER_REAL, 0},
        {"0.0", PROTO_NUMBER_REAL, 0},
        {"100000000000000000000000000000.5", PROTO_NUMBER_REAL, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_number number;
        ck_assert_int_eq(read_bytes(rows[i].text, strlen(rows[i].text), &number), (int)strlen(rows[i].text));
        ck_assert_msg(number.kind == rows[i].kind, "%s", rows[i].text);
        if (number.kind == PROTO_NUMBER_INTEGER)
            ck_assert_msg(number.integer == rows[i].integer, "%s", rows[i].text);
    }
}
END_TEST

/* What is no number, and where a number ends that something follows. */
START_TEST(grammar) {
    static const struct {
        const char *text;
        int used;
    } rows[] = {{"", -1},
                {"-", -1},
                {"+1", -1},
                {"01", -1},
                {"00", -1},
                {"-01", -1},
                {".5", -1},
                {"-.5", -1},
                {"1.", -1},
                {"1.e5", -1},
                {"1.x", -1},
                {"1e", -1},
                {"1e+", -1},
                {"1e-", -1},
                {"1ex", -1},
                {"1.5e", -1},
                {"e5", -1},
                {"--1", -1},
                {"- 1", -1},
                {" 1", -1},
                {"NaN", -1},
                {"nan", -1},
                {"inf", -1},
                {"Infinity", -1},
                {"-Infinity", -1},
                {"x", -1},
                {"1.-5", -1},
                {"1e--5", -1},
                {"1e+-5", -1},
                {"1e.5", -1},
                {"0x10", 1},
                {"1 ", 1},
                {"1,2", 1},
                {"1-2", 1},
                {"1.5.5", 3},
                {"1e5.5", 3},
                {"1e5e5", 3},
                {"-0]", 2},
                {"1_0", 1},
                {"1.5f", 3},
                {"1/", 1},
                {"1:", 1},
                {"1.5/", 3},
                {"1.5:", 3},
                {"12345678:", 8},
                {"1234567/8", 7},
                {"1\xB2", 1},
                {"1.2\xB2"
                 "34567890",
                 3},
                {"1.2345678\xFF"
                 "2345678",
                 9},
                {"1,5", 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_number number;
        ck_assert_msg(read_bytes(rows[i].text, strlen(rows[i].text), &number) == rows[i].used, "%s", rows[i].text);
    }
}
END_TEST

/* Every prefix of a number is one too or is refused, and nothing behind it is looked at. */
START_TEST(prefixes) {
    static const char *const texts[] = {"-0.1234567890123456789e-123", "1234567890123456789012345678", "-12.5E+0071",
                                        "0.00000000000000000000000001"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (size_t n = 0; n <= strlen(texts[i]); n++) {
            char text[64];
            proto_number number;
            snprintf(text, sizeof text, "%.*s", (int)n, texts[i]);
            const ptrdiff_t used = read_bytes(text, n, &number);
            const bool number_ends = n > 0 && text[n - 1] >= '0' && text[n - 1] <= '9';
            ck_assert_msg(used == (number_ends ? (ptrdiff_t)n : -1), "%s", text);
            if (number_ends)
                ck_assert_msg(number.value == strtod(text, NULL), "%s", text);
        }
}
END_TEST

/* Texts of 400000 digits, each in a form that is slow when it is done wrong. */
START_TEST(long_texts) {
    const size_t n = 400000;
    char *text = malloc(n + 64);
    ck_assert_ptr_nonnull(text);
    for (int form = 0; form < 6; form++) {
        memset(text, form == 0 ? '9' : form == 1 ? '1' : '0', n);
        text[n] = '\0';
        if (form == 1)
            text[1] = '.';
        if (form == 2) { /* 1 */
            memcpy(text, "0.", 2);
            snprintf(text + n, 64, "1e%zu", n - 1);
        }
        if (form == 3) { /* 1 */
            *text = '1';
            snprintf(text + n, 64, "e-%zu", n - 1);
        }
        if (form == 4) { /* just above the middle of two doubles */
            memcpy(text, "9007199254740993.0", 18);
            text[n - 1] = '1';
        }
        if (form == 5) { /* an exponent */
            memcpy(text, "1e", 2);
            text[n - 1] = '7';
        }
        reads_as_strtod(text);
    }
    free(text);
}
END_TEST

START_TEST(any_locale) {
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (setlocale(LC_ALL, names[i]))
            break;
    proto_number number;
    ck_assert_int_eq(read_bytes("9007199254740993.00000000000001", 31, &number), 31);
    ck_assert(number.value == 9007199254740994.0);
    setlocale(LC_ALL, "C");
}
END_TEST

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* The text of a number, from memory that has no more room than is asked for. */
static void write_text(char text[PROTO_NUMBER_ROOM], double value, bool single) {
    char *out = malloc(PROTO_NUMBER_ROOM);
    ck_assert_ptr_nonnull(out);
    const size_t n = single ? proto_number_write_float(out, (float)value) : proto_number_write_double(out, value);
    HOLDS(n <= (single ? 15 : 24), "%a has %zu bytes", value, n);
    memcpy(text, out, n);
    text[n] = '\0';
    free(out);
}

static bool reads_back(const char *text, double value, bool single) {
    const double back = strtod(text, NULL);
    return bits_of(single ? (float)back : back) == bits_of(value);
}

/* The text reads back, it is JSON, and printf has none with fewer digits. */
static void writes_fewest(double value, bool single) {
    char text[PROTO_NUMBER_ROOM], least[64];
    write_text(text, value, single);
    HOLDS(reads_back(text, value, single), "%s is not %a", text, value);
    proto_number number;
    const char *end = text + strlen(text);
    HOLDS(proto_number_read(text, end, &number) == end, "%s is no JSON", text);
    if (value == 0)
        return;
    int n = 0;
    do
        snprintf(least, sizeof least, "%.*e", n++, value);
    while (!reads_back(least, value, single));
    const int e = atoi(strchr(least, 'e') + 1), most = single ? 6 : 15;
    if (e >= -4 && e < (n > most ? n : most))
        snprintf(least, sizeof least, "%.*f", n - 1 > e ? n - 1 - e : 0, value);
    /* above a power of two what reads back is not centred: the fewest digits may not be those that are nearest */
    int exponent;
    if (fabs(frexp(value, &exponent)) == 0.5)
        HOLDS(strlen(text) <= strlen(least), "%s, not %s", text, least);
    else
        HOLDS(strcmp(text, least) == 0, "%s, not %s", text, least);
}

START_TEST(written_doubles) {
    static const struct {
        double value;
        const char *text;
    } rows[] = {{0, "0"},
                {-0.0, "-0"},
                {1, "1"},
                {-1, "-1"},
                {10, "10"},
                {0.1, "0.1"},
                {0.25, "0.25"},
                {1.5, "1.5"},
                {-12.5, "-12.5"},
                {123456.789, "123456.789"},
                {1777.87, "1777.87"},
                {0.0001, "0.0001"},
                {0.00001, "1e-05"},
                {-0.00012345678901234567, "-0.00012345678901234567"},
                {100000, "100000"},
                {123456789012345, "123456789012345"},
                {100000000000000, "100000000000000"},
                {1000000000000000, "1e+15"},
                {1234567890123456, "1234567890123456"},
                {9007199254740991, "9007199254740991"},
                {9007199254740992, "9007199254740992"},
                {9007199254740994, "9007199254740994"},
                {12345678901234568, "12345678901234568"},
                {12345678.5, "12345678.5"},
                {123456789.5, "123456789.5"},
                {1234567890123.25, "1234567890123.25"},
                {1e22, "1e+22"},
                {1e23, "1e+23"},
                {9.5367431640625e-07, "9.5367431640625e-07"},
                {0x1p-44, "5.684341886080802e-14"},
                {5e-324, "5e-324"},
                {1e-323, "1e-323"},
                {2.2250738585072009e-308, "2.225073858507201e-308"},
                {2.2250738585072014e-308, "2.2250738585072014e-308"},
                {1.7976931348623157e308, "1.7976931348623157e+308"},
                {-1.7976931348623157e308, "-1.7976931348623157e+308"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[PROTO_NUMBER_ROOM];
        write_text(text, rows[i].value, false);
        ck_assert_str_eq(text, rows[i].text);
    }
    for (int i = 0; i < 12000; i++) {
        const double value = double_of(random_bits()), power = double_of(random_bits() & UINT64_C(0xfff) << 52);
        if (isfinite(value))
            writes_fewest(value, false);
        if (isfinite(power))
            writes_fewest(power, false);
        if (isnormal(value))
            writes_fewest((double)(float)ldexp(value, -ilogb(value) + below(60) - 20), false);
        writes_fewest(below(1000000) / 1000.0, false);
        writes_fewest((double)(random_bits() >> below(60)), false);
        writes_fewest(double_of(random_bits() >> (13 + below(50))), false);
    }
}
END_TEST

START_TEST(written_floats) {
    static const struct {
        float value;
        const char *text;
    } rows[] = {{0, "0"},
                {-0.f, "-0"},
                {1, "1"},
                {0.1f, "0.1"},
                {1e-45f, "1e-45"},
                {16777216, "16777216"},
                {1e6f, "1e+06"},
                {100000, "100000"},
                {123456, "123456"},
                {12345.678f, "12345.678"},
                {3.4028235e38f, "3.4028235e+38"},
                {1.17549449e-38f, "1.1754945e-38"},
                {-1.00000015e-10f, "-1.00000015e-10"},
                {-0.000111765046f, "-0.000111765046"},
                {100663312, "1.0066331e+08"},
                {1e9f, "1e+09"},
                {0x1.5c87fap-84f, "7.0385307e-26"}}; /* "7.038531e-26" as a double is the middle of two floats */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[PROTO_NUMBER_ROOM];
        write_text(text, (double)rows[i].value, true);
        ck_assert_str_eq(text, rows[i].text);
    }
    for (uint32_t exponent = 0; exponent < 255; exponent++)
        for (int i = 0; i < 300; i++) {
            /* all ones and zeros, and what is next to them, among others */
            const uint32_t random = (uint32_t)random_bits() & 0x7fffff;
            const uint32_t fraction = i < 4 ? (uint32_t)i : i < 8 ? 0x800000 - (uint32_t)(i - 3) : random;
            const uint32_t bits = exponent << 23 | fraction | (uint32_t)(i % 2) << 31;
            float value;
            memcpy(&value, &bits, sizeof value);
            writes_fewest((double)value, true);
        }
}
END_TEST

START_TEST(written_integers) {
    char *out = malloc(PROTO_NUMBER_ROOM);
    ck_assert_ptr_nonnull(out);
    for (int i = 0; i < 100000; i++) {
        static const int64_t rows[] = {0,         9,          10,        99,        100,       9999999,  99999999,
                                       100000000, 1000000000, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN};
        const int n_rows = sizeof rows / sizeof *rows;
        const int64_t value = i < n_rows ? rows[i] : (int64_t)random_bits() >> below(64);
        char text[32];
        const size_t n = proto_number_write_int(out, value);
        snprintf(text, sizeof text, "%lld", (long long)value);
        HOLDS(n == strlen(text) && memcmp(text, out, n) == 0, "%s, not %.*s", text, (int)n, out);
    }
    free(out);
}
END_TEST

/* ---- the table of powers ----------------------------------------------------------------------------------------- */

/* A natural number, its lowest 32 bits first. */
enum { LIMBS = 64 };
typedef struct natural {
    uint32_t limb[LIMBS];
} natural;

static void multiply(natural *a, uint32_t factor) {
    uint64_t carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    ck_assert_uint_eq(carry, 0);
}

static int bit_length(const natural *a) {
    for (int i = LIMBS - 1; i >= 0; i--)
        if (a->limb[i])
            return 32 * i + 32 - __builtin_clz(a->limb[i]);
    return 0;
}

static bool bit(const natural *a, int i) {
    return i >= 0 && (a->limb[i / 32] >> i % 32 & 1);
}

/* a - b if that is not negative; whether it was not. */
static bool subtract(natural *a, const natural *b) {
    natural difference;
    int64_t borrow = 0;
    for (int i = 0; i < LIMBS; i++) {
        borrow += (int64_t)a->limb[i] - b->limb[i];
        difference.limb[i] = (uint32_t)borrow;
        borrow >>= 32;
    }
    if (borrow < 0)
        return false;
    *a = difference;
    return true;
}

START_TEST(powers_of_five) {
    static const uint64_t table[][2] = {
#define POWER(high, low) {high, low},
#include "../../proto/power.def"
#undef POWER
    };
    enum { LEAST = -342, N = sizeof table / sizeof *table };
    ck_assert_int_eq(N, 325 + 1 - LEAST);
    for (int row = 0; row < N; row++) {
        const int q = LEAST + row;
        natural power = {{1}};
        for (int i = 0; i < abs(q); i++)
            multiply(&power, 5);
        const int length = bit_length(&power);
        uint64_t expected[2] = {0};
        natural rest = {{1}}; /* of a long division of 2^(length - 1) */
        for (int i = 1; i < length; i++)
            multiply(&rest, 2);
        for (int i = 127; i >= 0; i--) {
            bool one;
            if (q >= 0) {
                one = bit(&power, length - 128 + i);
            } else {
                multiply(&rest, 2);
                one = subtract(&rest, &power);
            }
            expected[i < 64] |= (uint64_t)one << i % 64;
        }
        expected[1] += q < 0 && q >= -27;
        ck_assert_uint_ne(table[row][1], UINT64_MAX); /* the writer adds one */
        ck_assert_msg(table[row][0] == expected[0] && table[row][1] == expected[1], "5^%d", q);
    }
}
END_TEST

int main(void) {
    TCase *cases = tcase_create("number");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, hard_texts);
    tcase_add_test(cases, texts_of_doubles);
    tcase_add_test(cases, middles);
    tcase_add_test(cases, texts_of_digits);
    tcase_add_test(cases, kinds);
    tcase_add_test(cases, grammar);
    tcase_add_test(cases, prefixes);
    tcase_add_test(cases, long_texts);
    tcase_add_test(cases, any_locale);
    tcase_add_test(cases, written_doubles);
    tcase_add_test(cases, written_floats);
    tcase_add_test(cases, written_integers);
    tcase_add_test(cases, powers_of_five);
    Suite *suite = suite_create("number");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
