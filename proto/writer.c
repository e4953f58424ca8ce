/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The growing buffer and the writer of JSON text. What comes out is always valid JSON and valid UTF-8, whatever bytes
 * the strings hold.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void proto_buffer_free(proto_buffer *buffer) {
    free(buffer->data);
    *buffer = (proto_buffer){0};
}

void proto_buffer_trim(proto_buffer *buffer, size_t bytes) {
    char *less = bytes > 0 && bytes < buffer->bytes ? realloc(buffer->data, bytes) : NULL;
    if (less) {
        buffer->data = less;
        buffer->capacity = bytes;
    }
    buffer->bytes = bytes;
}

static bool grow(proto_buffer *buffer, size_t bytes) {
    if (buffer->failed)
        return false;
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

static inline bool reserve(proto_buffer *buffer, size_t bytes) {
    return (bytes <= buffer->capacity - buffer->bytes && !buffer->failed) || grow(buffer, bytes);
}

bool proto_buffer_reserve(proto_buffer *buffer, size_t bytes) {
    return reserve(buffer, bytes);
}

void proto_buffer_add(proto_buffer *buffer, const void *data, size_t bytes) {
    if (bytes == 0 || !reserve(buffer, bytes))
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

/* A byte that stands for itself. */
static bool is_plain(unsigned char c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* Write what stands for the character at `s`, which may be none; returns its bytes and sets how many those are. */
static size_t escape(char out[6], const unsigned char *s, size_t *written) {
    static const char digits[] = "0123456789abcdef";
    const size_t n = utf8_length(s);
    if (n == 0) {
        memcpy(out, "\xEF\xBF\xBD", *written = 3);
        return 1;
    }
    if (n > 1) {
        memcpy(out, s, *written = n);
    } else if (*s < 0x20) {
        memcpy(out, "\\u00", 4);
        out[4] = digits[*s / 16];
        out[5] = digits[*s % 16];
        *written = 6;
    } else {
        out[0] = '\\';
        out[1] = (char)*s;
        *written = 2;
    }
    return n;
}

static void add_quoted(proto_buffer *out, const char *text) {
    const unsigned char *s = (const unsigned char *)text, *end = s + strlen(text);
    /* there is room for the rest if it is plain, and for the quotes */
    if (!reserve(out, (size_t)(end - s) + 2))
        return;
    char *p = out->data + out->bytes;
    *p++ = '"';
    while (s < end) {
        if (is_plain(*s)) {
            *p++ = (char)*s++;
            continue;
        }
        char other[6];
        size_t n;
        s += escape(other, s, &n);
        out->bytes = (size_t)(p - out->data);
        if (!reserve(out, n + (size_t)(end - s) + 1))
            return;
        p = out->data + out->bytes;
        memcpy(p, other, n);
        p += n;
    }
    *p++ = '"';
    out->bytes = (size_t)(p - out->data);
}

/* Begin a member whose value takes at most `bytes`: where to write that, for `end`. NULL: no memory. Keys are words
 * of ours, without anything to escape. */
static char *begin(proto_writer *writer, const char *key, size_t bytes) {
    proto_buffer *out = writer->out;
    const size_t n = key ? strlen(key) : 0;
    if (!reserve(out, n + 4 + bytes))
        return NULL;
    char *p = out->data + out->bytes;
    *p = ',';
    p += writer->comma;
    writer->comma = true;
    if (key) {
        *p++ = '"';
        memcpy(p, key, n);
        p += n;
        *p++ = '"';
        *p++ = ':';
    }
    return p;
}

static void end(proto_writer *writer, const char *p) {
    writer->out->bytes = (size_t)(p - writer->out->data);
}

void proto_write_open(proto_writer *writer, const char *key, char bracket) {
    char *p = begin(writer, key, 1);
    if (!p)
        return;
    *p = bracket;
    end(writer, p + 1);
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
    char *p = begin(writer, key, 2);
    if (!p)
        return;
    end(writer, p);
    add_quoted(writer->out, value);
}

static void write_word(proto_writer *writer, const char *key, const char *word) {
    const size_t n = strlen(word);
    char *p = begin(writer, key, n);
    if (!p)
        return;
    memcpy(p, word, n);
    end(writer, p + n);
}

void proto_write_bool(proto_writer *writer, const char *key, bool value) {
    write_word(writer, key, value ? "true" : "false");
}

void proto_write_null(proto_writer *writer, const char *key) {
    write_word(writer, key, "null");
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static size_t write_float(char *out, float value) {
    if (isfinite(value))
        return proto_number_write_float(out, value);
    memcpy(out, "null", 4);
    return 4;
}

void proto_write_int(proto_writer *writer, const char *key, int64_t value) {
    char *p = begin(writer, key, PROTO_NUMBER_ROOM);
    if (p)
        end(writer, p + proto_number_write_int(p, value));
}

void proto_write_real(proto_writer *writer, const char *key, double value) {
    if (!isfinite(value)) {
        proto_write_null(writer, key);
        return;
    }
    char *p = begin(writer, key, PROTO_NUMBER_ROOM);
    if (p)
        end(writer, p + proto_number_write_double(p, value));
}

void proto_write_float(proto_writer *writer, const char *key, float value) {
    char *p = begin(writer, key, PROTO_NUMBER_ROOM);
    if (p)
        end(writer, p + write_float(p, value));
}

/* Room for one more element of the open array; where it goes, for `end`. */
static inline char *next(proto_writer *writer) {
    if (!reserve(writer->out, 1 + PROTO_NUMBER_ROOM))
        return NULL;
    char *p = writer->out->data + writer->out->bytes;
    *p = ',';
    p += writer->comma;
    writer->comma = true;
    return p;
}

void proto_write_floats(proto_writer *writer, const float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char *p = next(writer);
        if (!p)
            return;
        end(writer, p + write_float(p, values[i]));
    }
}

void proto_write_ints(proto_writer *writer, const int32_t *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char *p = next(writer);
        if (!p)
            return;
        end(writer, p + proto_number_write_int(p, values[i]));
    }
}
