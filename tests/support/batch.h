/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A batch as a safetensors body, for tests that need one of some size.
 */
#ifndef BATCH_H
#define BATCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Random-looking predictions of `images` images on 3000 priors of its own, in the usual order of tensors, and large
 * enough to be decoded early. The caller frees it. */
static inline char *batch_tensors(int images, size_t *bytes) {
    enum { P = 3000, C = 8 };
    const size_t conf = (size_t)images * P * C * 4, loc = (size_t)images * P * 16, priors = P * 16;
    size_t at = 16 * (size_t)images;
    char header[1024];
    int n = snprintf(header, sizeof header,
                     "{\"counts\":{\"dtype\":\"I64\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
                     "\"labels\":{\"dtype\":\"I64\",\"shape\":[%d],\"data_offsets\":[%d,%d]},",
                     images, images * 8, images, images * 8, images * 16);
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"boxes\":{\"dtype\":\"F32\",\"shape\":[%d,4],\"data_offsets\":[%zu,%zu]},", images, at,
                  at + 16 * (size_t)images);
    at += 16 * (size_t)images;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"priors\":{\"dtype\":\"F32\",\"shape\":[%d,4],\"data_offsets\":[%zu,%zu]},", P, at, at + priors);
    at += priors;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"conf\":{\"dtype\":\"F32\",\"shape\":[%d,%d,%d],\"data_offsets\":[%zu,%zu]},", images, P, C, at,
                  at + conf);
    at += conf;
    n += snprintf(header + n, sizeof header - (size_t)n,
                  "\"loc\":{\"dtype\":\"F32\",\"shape\":[%d,%d,4],\"data_offsets\":[%zu,%zu]}}", images, P, at,
                  at + loc);
    at += loc;
    char *body = calloc(1, 8 + (size_t)n + at), *to = body;
    uint64_t length = (uint64_t)n;
    memcpy(to, &length, 8);
    memcpy(to + 8, header, (size_t)n);
    to += 8 + n;
    for (int i = 0; i < images; i++, to += 8) {
        memcpy(to, &(int64_t){1}, 8);
    }
    for (int i = 0; i < images; i++, to += 8) {
        memcpy(to, &(int64_t){i % (C - 1)}, 8);
    }
    for (int i = 0; i < images; i++, to += 16) {
        memcpy(to, (float[]){.1f, .1f, .3f, .35f}, 16);
    }
    for (int i = 0; i < P; i++, to += 16) {
        memcpy(to, (float[]){(float)(i % 50) / 50, (float)(i / 50) / 60, .2f, .25f}, 16);
    }
    uint32_t seed = 1;
    for (size_t i = 0; i < (conf + loc) / 4; i++, to += 4) {
        seed = seed * 1664525u + 1013904223u;
        memcpy(to, &(float){(float)(seed >> 8) / 8388608.0f - 1}, 4);
    }
    *bytes = (size_t)(to - body);
    return body;
}

#endif
