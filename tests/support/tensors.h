/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds small safetensors files for tests: tensors in the order they are added, options as metadata.
 */
#ifndef TENSORS_H
#define TENSORS_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Zero-initialise. */
struct tensors {
    char entries[4096], options[2048], data[8192];
    size_t data_bytes;
};

/* `shape` as in the header: "[2,4]". */
static inline void tensors_add(struct tensors *t, const char *name, const char *dtype, const char *shape,
                               const void *data, size_t bytes) {
    size_t used = strlen(t->entries);
    ck_assert_uint_le(t->data_bytes + bytes, sizeof t->data);
    used += (size_t)snprintf(t->entries + used, sizeof t->entries - used,
                             ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", name, dtype, shape,
                             t->data_bytes, t->data_bytes + bytes);
    ck_assert_uint_lt(used, sizeof t->entries);
    if (bytes > 0)
        memcpy(t->data + t->data_bytes, data, bytes);
    t->data_bytes += bytes;
}

static inline void tensors_option(struct tensors *t, const char *name, const char *value) {
    size_t used = strlen(t->options);
    used += (size_t)snprintf(t->options + used, sizeof t->options - used, ",\"%s\":\"", name);
    for (; *value && used + 3 < sizeof t->options; value++) {
        if (*value == '"' || *value == '\\')
            t->options[used++] = '\\';
        t->options[used++] = *value;
    }
    ck_assert_uint_lt(used + 2, sizeof t->options);
    memcpy(t->options + used, "\"", 2);
}

/* The whole file in memory of exactly its size, so that a sanitizer sees a read past its end. Free it. */
static inline char *tensors_file(const struct tensors *t, size_t *bytes) {
    const size_t room = sizeof t->entries + sizeof t->options + 64;
    char *header = malloc(room);
    uint64_t length =
        (uint64_t)snprintf(header, room, "{\"__metadata__\":{%s}%s}", t->options + (t->options[0] == ','), t->entries);
    *bytes = 8 + (size_t)length + t->data_bytes;
    char *file = malloc(*bytes);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, (size_t)length);
    memcpy(file + 8 + length, t->data, t->data_bytes);
    free(header);
    return file;
}

#endif
