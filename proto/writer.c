/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The growing buffer and the writer of JSON text. What comes out is always valid JSON and valid UTF-8, whatever bytes
 * the strings hold.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void proto_buffer_free(proto_buffer *buffer) {
    free(buffer->data);
    *buffer = (proto_buffer){0};
}

bool proto_buffer_reserve(proto_buffer *buffer, size_t bytes) {
    if (buffer->failed)
        return false;
    if (bytes <= buffer->capacity - buffer->bytes)
        return true;
    size_t least, doubled = buffer->capacity < 256 ? 512 : buffer->capacity * 2;
    size_t capacity = 0;
    char *data = NULL;
    if (!__builtin_add_overflow(buffer->bytes, bytes, &least)) {
        capacity = least > doubled ? least : doubled;
        data = realloc(buffer->data, capacity);
    }
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

void proto_buffer_add(proto_buffer *buffer, const void *data, size_t bytes) {
    if (bytes == 0 || !proto_buffer_reserve(buffer, bytes))
        return;
    memcpy(buffer->data + buffer->bytes, data, bytes); /* cppcheck-suppress uninitvar ; of an empty struct's address */
    buffer->bytes += bytes;
}

/* Bytes of the UTF-8 character at `s`, 0 when it is not one. Shortest forms only, no surrogates. */
static size_t utf8_length(const unsigned char *s) {
    size_t n;
    unsigned low = 0x80, high = 0xBF; /* of the second byte */
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        n = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        n = 3;
        low = s[0] == 0xE0 ? 0xA0 : low;
        high = s[0] == 0xED ? 0x9F : high;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        n = 4;
        low = s[0] == 0xF0 ? 0x90 : low;
        high = s[0] == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF)
            return 0;
    return n;
}

static void add_quoted(proto_buffer *out, const char *text) {
    proto_buffer_add(out, "\"", 1);
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        size_t run = 0; /* bytes that stand for themselves */
        for (size_t n; s[run] >= 0x20 && s[run] != '"' && s[run] != '\\' && (n = utf8_length(s + run)) > 0;)
            run += n;
        proto_buffer_add(out, s, run);
        s += run;
        if (!*s)
            break;
        char escape[8] = {'\\', (char)*s};
        size_t n = 2;
        if (*s < 0x20)
            n = (size_t)snprintf(escape, sizeof escape, "\\u%04x", *s);
        else if (*s >= 0x80)
            n = (size_t)snprintf(escape, sizeof escape, "\xEF\xBF\xBD");
        proto_buffer_add(out, escape, n);
        s++;
    }
    proto_buffer_add(out, "\"", 1);
}

static void begin(proto_writer *writer, const char *key) {
    if (writer->comma)
        proto_buffer_add(writer->out, ",", 1);
    writer->comma = true;
    if (key) {
        add_quoted(writer->out, key);
        proto_buffer_add(writer->out, ":", 1);
    }
}

void proto_write_open(proto_writer *writer, const char *key, char bracket) {
    begin(writer, key);
    proto_buffer_add(writer->out, &bracket, 1);
    writer->comma = false;
}

void proto_write_close(proto_writer *writer, char bracket) {
    proto_buffer_add(writer->out, &bracket, 1);
    writer->comma = true;
}

void proto_write_end(proto_writer *writer) {
    proto_buffer_add(writer->out, "\n", 1);
}

void proto_write_string(proto_writer *writer, const char *key, const char *value) {
    begin(writer, key);
    add_quoted(writer->out, value);
}

/* Decimal digits of `value`, written towards the front of `end`; returns where they start. */
static char *integer_digits(char *end, int64_t value) {
    uint64_t left = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        *--end = (char)('0' + left % 10);
        left /= 10;
    } while (left);
    if (value < 0)
        *--end = '-';
    return end;
}

void proto_write_int(proto_writer *writer, const char *key, int64_t value) {
    char digits[24], *end = digits + sizeof digits, *start = integer_digits(end, value);
    begin(writer, key);
    proto_buffer_add(writer->out, start, (size_t)(end - start));
}

/* Small whole numbers have the same digits in every precision, and a map of targets is mostly zeros. */
static bool write_whole(proto_writer *writer, const char *key, double value) {
    bool whole = value > -1e5 && value < 1e5 && value == (double)(int64_t)value && !(value == 0 && signbit(value));
    if (whole)
        proto_write_int(writer, key, (int64_t)value);
    return whole;
}

/* The fewest of `least` to `most` significant digits that read back the same. `most` digits always do. */
static void write_digits(proto_writer *writer, const char *key, double value, int least, int most, bool single) {
    char digits[32];
    int n = 0;
    for (int precision = least; precision <= most; precision++) {
        n = snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (precision == most)
            break;
        double back = strtod(digits, NULL);
        if (single ? (float)back == (float)value : back == value)
            break;
    }
    begin(writer, key);
    proto_buffer_add(writer->out, digits, (size_t)n);
}

void proto_write_real(proto_writer *writer, const char *key, double value) {
    if (!isfinite(value))
        proto_write_null(writer, key);
    else if (!write_whole(writer, key, value))
        write_digits(writer, key, value, 15, 17, false);
}

/* How many of 6 to 9 digits a float needs to be read back as (float)strtod does: tried on numbers, which costs a tenth
 * of trying it on text. Near enough; too few are noticed by write_digits. */
static int float_digits(double value) {
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    int precision = 6;
    int decimals = value == 0 ? 0 : precision - 1 - (int)floor(log10(fabs(value)));
    for (; precision < 9 && decimals >= 0 && decimals < (int)(sizeof tens / sizeof *tens); precision++, decimals++)
        if ((float)(rint(value * tens[decimals]) / tens[decimals]) == (float)value)
            return precision;
    return precision;
}

void proto_write_float(proto_writer *writer, const char *key, float value) {
    if (!isfinite(value))
        proto_write_null(writer, key);
    else if (!write_whole(writer, key, (double)value))
        write_digits(writer, key, (double)value, float_digits((double)value), 9, true);
}

static void write_word(proto_writer *writer, const char *key, const char *word) {
    begin(writer, key);
    proto_buffer_add(writer->out, word, strlen(word));
}

void proto_write_bool(proto_writer *writer, const char *key, bool value) {
    write_word(writer, key, value ? "true" : "false");
}

void proto_write_null(proto_writer *writer, const char *key) {
    write_word(writer, key, "null");
}
