/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text: members, numbers, and strings of any bytes.
 */
#include <math.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"

START_TEST(numbers) {
    static const struct {
        double value;
        const char *text;
    } reals[] = {{0.1, "0.1"},           {1692, "1692"},     {1.0 / 3, "0.3333333333333333"},
                 {4.504262, "4.504262"}, {5e-324, "5e-324"}, {-0.0, "-0"},
                 {INFINITY, "null"},     {NAN, "null"}},
      floats[] = {{0.1f, "0.1"},
                  {0.333333343f, "0.33333334"},
                  {1.17549449e-38f, "1.1754945e-38"},
                  {33554436.f * 3, "1.0066331e+08"},
                  {1e-45f, "1e-45"},
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

/* What is escaped takes more room than was there, and what follows it needs its own. */
START_TEST(long_strings) {
    enum { PLAIN = 600 };
    for (size_t escaped = 0; escaped < 300; escaped += 7) {
        char text[1000];
        memset(text, '\n', escaped);
        memset(text + escaped, 'x', PLAIN);
        text[escaped + PLAIN] = '\0';
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_write_string(&writer, "key", text);
        ck_assert_uint_eq(out.bytes, 8 + 6 * escaped + PLAIN);
        ck_assert(memcmp(out.data, "\"key\":\"", 7) == 0 && out.data[out.bytes - 1] == '"');
        for (size_t i = 0; i < escaped; i++)
            ck_assert(memcmp(out.data + 7 + 6 * i, "\\u000a", 6) == 0);
        for (size_t i = 0; i < PLAIN; i++)
            ck_assert_int_eq(out.data[7 + 6 * escaped + i], 'x');
        proto_buffer_free(&out);
    }
}
END_TEST

/* Members and elements of every kind, the buffer growing as they come. */
START_TEST(members) {
    static const float floats[] = {0, -0.5f, INFINITY, 1e-10f, NAN, 3};
    static const int32_t ints[] = {0, -1, 10, INT32_MAX, INT32_MIN};
    static const char expected[] =
        "{\"a\":[],\"floats\":[0,-0.5,null,1e-10,null,3],\"ints\":[0,-1,10,2147483647,-2147483648,7],\"t\":true,"
        "\"f\":false,\"n\":null,\"r\":-0.25,\"s\":\"x\"}\n";
    for (size_t before = 0; before < 600; before++) {
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        for (size_t i = 0; i < before; i++)
            proto_buffer_add(&out, " ", 1);
        proto_write_open(&writer, NULL, '{');
        proto_write_open(&writer, "a", '[');
        proto_write_close(&writer, ']');
        proto_write_open(&writer, "floats", '[');
        proto_write_floats(&writer, floats, 4);
        proto_write_floats(&writer, floats + 4, 2);
        proto_write_close(&writer, ']');
        proto_write_open(&writer, "ints", '[');
        proto_write_ints(&writer, ints, 5);
        proto_write_int(&writer, NULL, 7);
        proto_write_close(&writer, ']');
        proto_write_bool(&writer, "t", true);
        proto_write_bool(&writer, "f", false);
        proto_write_null(&writer, "n");
        proto_write_real(&writer, "r", -0.25);
        proto_write_string(&writer, "s", "x");
        proto_write_close(&writer, '}');
        proto_write_end(&writer);
        ck_assert(!out.failed);
        ck_assert_msg(out.bytes == before + strlen(expected) &&
                          memcmp(out.data + before, expected, strlen(expected)) == 0,
                      "%.*s", (int)out.bytes, out.data);
        proto_buffer_free(&out);
    }
}
END_TEST

int main(void) {
    TCase *cases = tcase_create("writer");
    tcase_add_test(cases, numbers);
    tcase_add_test(cases, strings);
    tcase_add_test(cases, long_strings);
    tcase_add_test(cases, members);
    Suite *suite = suite_create("writer");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
