/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers as text against the C library: what is read is what strtod reads, what is written reads back the same in the
 * fewest digits.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>

#include "fuzz.h"

/* The end of the JSON number at the beginning of a text, by the grammar of RFC 8259; NULL: none. */
static const char *grammar(const char *at, const char *end, bool *integer) {
    at += at < end && *at == '-';
    if (at == end || !isdigit((unsigned char)*at)) {
        return NULL;
    }
    const char *first = at;
    while (at < end && isdigit((unsigned char)*at)) {
        at++;
    }
    if (*first == '0' && at - first > 1) {
        return NULL;
    }
    *integer = true;
    if (at < end && *at == '.') {
        const char *digits = ++at;
        while (at < end && isdigit((unsigned char)*at)) {
            at++;
        }
        if (at == digits) {
            return NULL;
        }
        *integer = false;
    }
    if (at < end && (*at | 0x20) == 'e') {
        at++;
        at += at < end && (*at == '-' || *at == '+');
        const char *digits = at;
        while (at < end && isdigit((unsigned char)*at)) {
            at++;
        }
        if (at == digits) {
            return NULL;
        }
        *integer = false;
    }
    return at;
}

static void check_read(const char *text, size_t n) {
    proto_number number = {0};
    bool integer = false;
    const char *end = proto_number_read(text, text + n, &number), *owed = grammar(text, text + n, &integer);
    CHECK(end == owed || (end == NULL && n > 0), "%zd against %zd in %.*s", end ? end - text : -1,
          owed ? owed - text : -1, (int)n, text);
    CHECK((end == NULL) == (owed == NULL), "%.*s", (int)n, text);
    if (!end) {
        return;
    }
    char *copy = malloc((size_t)(end - text) + 1);
    memcpy(copy, text, (size_t)(end - text));
    copy[end - text] = '\0';
    const double value = strtod(copy, NULL);
    CHECK(memcmp(&value, &number.value, sizeof value) == 0, "%s: %a, not %a", copy, number.value, value);
    errno = 0;
    const long long whole = strtoll(copy, NULL, 10);
    CHECK((number.kind == PROTO_NUMBER_REAL) == !integer, "%s: kind %d", copy, (int)number.kind);
    CHECK(!integer || (number.kind == PROTO_NUMBER_INTEGER) == (errno == 0), "%s: kind %d", copy, (int)number.kind);
    CHECK(number.kind != PROTO_NUMBER_INTEGER || number.integer == whole, "%s: %lld", copy, (long long)number.integer);
    free(copy);
}

static int digits_of(const char *text) {
    int n = 0, zeros = 0;
    bool begun = false;
    for (; *text && (*text | 0x20) != 'e'; text++) {
        if (isdigit((unsigned char)*text)) {
            begun |= *text != '0';
            n += begun;
            zeros = *text == '0' ? zeros + 1 : 0;
        }
    }
    return n - zeros > 0 ? n - zeros : 1;
}

static void check_double(double value) {
    char text[PROTO_NUMBER_ROOM + 1], other[40];
    if (!isfinite(value)) {
        return;
    }
    const size_t n = proto_number_write_double(text, value);
    CHECK(n <= 24, "%zu bytes", n);
    text[n] = '\0';
    const double again = strtod(text, NULL);
    CHECK(memcmp(&again, &value, sizeof value) == 0, "%a becomes %s", value, text);
    int precision = 1;
    while (snprintf(other, sizeof other, "%.*e", precision - 1, value), strtod(other, NULL) != value) {
        precision++;
    }
    CHECK(digits_of(text) <= precision, "%a becomes %s, and %s would do", value, text, other);
    check_read(text, n);
}

static void check_float(float value) {
    char text[PROTO_NUMBER_ROOM + 1], other[40];
    if (!isfinite(value)) {
        return;
    }
    const size_t n = proto_number_write_float(text, value);
    CHECK(n <= 15, "%zu bytes", n);
    text[n] = '\0';
    const float again = (float)strtod(text, NULL);
    CHECK(memcmp(&again, &value, sizeof value) == 0, "%a becomes %s", (double)value, text);
    int precision = 1;
    /* by way of a double some texts between two floats come to another one than at once: those will not do */
    while (snprintf(other, sizeof other, "%.*e", precision - 1, (double)value),
           (float)strtod(other, NULL) != value || strtof(other, NULL) != value) {
        precision++;
    }
    CHECK(digits_of(text) <= precision, "%a becomes %s, and %s would do", (double)value, text, other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    double value = 0;
    float single = 0;
    int64_t integer = 0;
    char text[PROTO_NUMBER_ROOM + 1], owed[32];
    check_read((const char *)data, size);
    memcpy(&value, data, size < sizeof value ? size : sizeof value);
    memcpy(&single, data, size < sizeof single ? size : sizeof single);
    memcpy(&integer, data, size < sizeof integer ? size : sizeof integer);
    check_double(value);
    check_float(single);
    text[proto_number_write_int(text, integer)] = '\0';
    snprintf(owed, sizeof owed, "%lld", (long long)integer);
    CHECK(strcmp(text, owed) == 0, "%s, not %s", text, owed);
    return 0;
}
