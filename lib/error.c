/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status texts, the caller-owned error and the "did you mean" helper.
 */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "boxloss.h"

const char *bx_status_text(bx_status status) {
    static const char *const text[] = {
#define BX_ROW(id, words) words,
        BX_STATUS_ROWS(BX_ROW)
#undef BX_ROW
    };
    return (size_t)status < sizeof text / sizeof *text ? text[status] : "unknown status";
}

bx_status bx_fail(bx_error *error, bx_status status, const char *code, const char *format, ...) {
    if (!error || error->status != BX_OK) {
        return status;
    }
    error->status = status;
    error->code = code;
    error->path[0] = '\0';
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    return status;
}

bx_status bx_at(bx_error *error, const char *format, ...) {
    if (!error) {
        return BX_INTERNAL;
    }
    if (error->path[0] == '\0') {
        va_list args;
        va_start(args, format);
        vsnprintf(error->path, sizeof error->path, format, args);
        va_end(args);
    }
    return error->status;
}

/* Levenshtein distance of two short words; INT_MAX when one is too long to be a name. */
static int edit_distance(const char *a, const char *b) {
    enum { LONGEST = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= LONGEST || m >= LONGEST) {
        return INT_MAX;
    }
    int row[LONGEST + 1];
    for (size_t j = 0; j <= m; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int substitute = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int insert = row[j - 1] + 1, erase = row[j] + 1;
            int least = insert < erase ? insert : erase;
            row[j] = least < substitute ? least : substitute;
        }
    }
    return row[m];
}

const char *bx_nearest(const char *name, const char *(*at)(size_t i)) {
    const char *nearest = NULL;
    int least = 1 + (int)(strlen(name) / 2); /* at most half of the word may be wrong */
    const char *candidate;
    for (size_t i = 0; (candidate = at(i)); i++) {
        int distance = edit_distance(name, candidate);
        if (distance < least) {
            least = distance;
            nearest = candidate;
        }
    }
    return nearest;
}
