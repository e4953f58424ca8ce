/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text: the digits of numbers, and strings of any bytes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/random.h"
#include "../support/suite.h"

START_TEST(numbers) {
    static const struct {
        double value;
        const char *text;
    } reals[] = {{0.1, "0.1"},
                 {1692, "1692"},
                 {1.0 / 3, "0.3333333333333333"},
                 {4.504262, "4.504262"},
                 {5e-324, "4.94065645841247e-324"},
                 {-0.0, "-0"},
                 {INFINITY, "null"},
                 {NAN, "null"}},
      floats[] = {{0.1f, "0.1"},
                  {0.333333343f, "0.33333334"},
                  {1.17549449e-38f, "1.1754945e-38"},
                  {33554436.f * 3, "1.0066331e+08"},
                  {1e-45f, "1.4013e-45"},
                  {16777216, "16777216"},
                  {-0.f, "-0"},
                  {1.00000015e-10f, "1.00000015e-10"},
                  {1e-10f, "1e-10"},
                  {3.4028235e38f, "3.4028235e+38"},
                  {INFINITY, "null"}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_real(&writer, NULL, reals[i].value);
        ck_assert_msg(out.bytes == strlen(reals[i].text) && memcmp(out.data, reals[i].text, out.bytes) == 0, "%.*s",
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_float(&writer, NULL, (float)floats[i].value);
        ck_assert_msg(out.bytes == strlen(floats[i].text) && memcmp(out.data, floats[i].text, out.bytes) == 0, "%.*s",
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
}
END_TEST

START_TEST(strings) {
    static const struct {
        const char *in, *out;
    } rows[] = {{"", "\"\""},
                {"a\"b\\c", "\"a\\\"b\\\\c\""},
                {"\n\x01\x1f", "\"\\u000a\\u0001\\u001f\""},
                {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""},
                {"a\xC3", "\"a\xEF\xBF\xBD\""},
                {"\xC0\xAF", "\"\xEF\xBF\xBD\xEF\xBF\xBD\""},
                {"\xED\xA0\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
                {"\xFFz", "\"\xEF\xBF\xBDz\""},
                {"\xF0\x9F\x98", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_string(&writer, NULL, rows[i].in);
        ck_assert_msg(out.bytes == strlen(rows[i].out) && memcmp(out.data, rows[i].out, out.bytes) == 0, "%zu: %.*s", i,
                      (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
}
END_TEST

/* Whatever the number: valid text that reads back the same, of at most so many bytes, the fewest digits that do. */
START_TEST(floats_read_back) {
    for (int i = 0; i < 100000; i++) {
        const uint64_t bits = random_bits();
        uint32_t low = (uint32_t)bits;
        float single;
        double number;
        if (i % 2) /* between 1e-8 and 1 as often as everywhere */
            low = (low & 0x807fffff) | (100 + (low >> 23) % 28) << 23;
        memcpy(&single, &low, sizeof single);
        memcpy(&number, &bits, sizeof number);
        char text[32];
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        if (isfinite(single)) {
            proto_write_float(&writer, NULL, single);
            snprintf(text, sizeof text, "%.*s", (int)out.bytes, out.data);
            HOLDS(out.bytes <= 15 && (float)strtod(text, NULL) == single, "%s", text);
            char least[32];
            int digits = 6;
            do
                snprintf(least, sizeof least, "%.*g", digits++, (double)single);
            while ((float)strtod(least, NULL) != single);
            HOLDS(strcmp(text, least) == 0, "%s, not %s", text, least);
        }
        out.bytes = 0;
        writer.comma = false;
        if (isfinite(number)) {
            proto_write_real(&writer, NULL, number);
            snprintf(text, sizeof text, "%.*s", (int)out.bytes, out.data);
            HOLDS(out.bytes <= 24 && strtod(text, NULL) == number, "%s", text);
        }
        proto_buffer_free(&out);
    }
}
END_TEST

int main(void) {
    TCase *cases = tcase_create("writer");
    tcase_add_test(cases, numbers);
    tcase_add_test(cases, strings);
    tcase_add_test(cases, floats_read_back);
    Suite *suite = suite_create("writer");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
