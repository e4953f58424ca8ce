/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose pages may read what this daemon answers (--cors-origin): origins as browsers write them, compared exactly.
 */
#include <string.h>

#include "access.h"

static bool has_only(const char *text, size_t n, const char *letters) {
    for (size_t i = 0; i < n; i++) {
        if (!text[i] || !strchr(letters, text[i])) {
            return false;
        }
    }
    return n > 0;
}

/* As browsers write it: in small letters, without a default port, a path or a slash at the end. */
static bool is_origin(const char *text, size_t n) {
    static const char host[] = "abcdefghijklmnopqrstuvwxyz0123456789.-_[:]", digits[] = "0123456789";
    const size_t scheme = n > 7 && !strncmp(text, "http://", 7) ? 7 : n > 8 && !strncmp(text, "https://", 8) ? 8 : 0;
    size_t end = n;
    while (end > scheme && strchr(digits, text[end - 1])) {
        end--;
    }
    const bool has_port = end < n && end > scheme && text[end - 1] == ':' && n - end <= 5 && text[end] != '0';
    const size_t length = has_port ? end - 1 - scheme : n - scheme;
    const bool brackets = text[scheme] == '[' && length > 2 && text[scheme + length - 1] == ']';
    return scheme > 0 && has_only(text + scheme, length, host) && (brackets || !memchr(text + scheme, ':', length)) &&
           !(has_port && scheme == 7 && !strncmp(text + end, "80", n - end)) &&
           !(has_port && scheme == 8 && !strncmp(text + end, "443", n - end));
}

/* The next one of a list, and its length; NULL: there is none. */
static const char *next_origin(const char **list, size_t *n) {
    if (!*list) {
        return NULL;
    }
    const char *origin = *list + strspn(*list, " "), *comma = strchr(origin, ',');
    *n = comma ? (size_t)(comma - origin) : strlen(origin);
    *list = comma ? comma + 1 : NULL;
    return origin;
}

bool origins_check(const char *const *lists, const char **wrong) {
    size_t n;
    for (; *lists; lists++) {
        for (const char *list = *lists, *origin; (origin = next_origin(&list, &n));) {
            if (!is_origin(origin, n)) {
                *wrong = origin;
                return false;
            }
        }
    }
    return true;
}

bool origins_have(const char *const *lists, const char *wanted) {
    size_t n;
    for (; *lists; lists++) {
        for (const char *list = *lists, *origin; (origin = next_origin(&list, &n));) {
            if (strlen(wanted) == n && !memcmp(origin, wanted, n)) {
                return true;
            }
        }
    }
    return false;
}
