/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs of this directory say: how many checks passed, and of a failed one who computed it, what, the seed
 * of its round, the dimensions, the first index and both values.
 */
#ifndef VERDICT_H
#define VERDICT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *subject = ""; /* the level or device under test */
static uint64_t round_seed;
static int passed, failed;
static char where[500]; /* the dimensions of the running check */

static void at_dims(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void at_dims(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
}

static void report(const char *kernel, const char *what) {
    printf("%s: %s, seed %llu, %s: %s", subject, kernel, (unsigned long long)round_seed, where, what);
}

static void verdict(bool good) {
    passed += good;
    failed += !good;
}

static bool holds(bool condition, const char *kernel, const char *what) {
    if (!condition) {
        report(kernel, what);
        printf("\n");
    }
    return condition;
}

static void print_bytes(const unsigned char *x, size_t n) {
    for (size_t i = n; i > 0; i--) {
        printf("%02x", x[i - 1]);
    }
    if (n == sizeof(float)) {
        float f;
        memcpy(&f, x, sizeof f);
        printf(" (%.9g)", (double)f);
    }
}

/* The first `used` bytes of each of n elements; says where they differ first. */
static bool same(const char *kernel, const char *what, const void *owed, const void *got, size_t n, size_t element,
                 size_t used) {
    const unsigned char *x = owed, *y = got;
    if (used == element && !memcmp(x, y, n * element)) {
        return true;
    }
    for (size_t i = 0; i < n; i++, x += element, y += element) {
        if (memcmp(x, y, used)) {
            report(kernel, what);
            printf("[%zu] is ", i);
            print_bytes(y, used);
            printf(", ref has ");
            print_bytes(x, used);
            printf("\n");
            return false;
        }
    }
    return true;
}

/* A number from the command line, else from the environment. */
static uint64_t number(const char *text, const char *name, uint64_t otherwise) {
    text = text ? text : getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

#endif
