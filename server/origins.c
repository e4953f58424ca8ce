/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose pages may ask, and read what this daemon answers (--cors-origin): origins as browsers write them, compared
 * exactly. And what a browser's request says of the page that asks.
 */
#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

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

/* ---- the page that asks ------------------------------------------------------------------------------------------ */

/* Whether the page is one that was read where the request was sent to: scheme://HOST. */
static bool is_own(const head *h) {
    const char *mark = strstr(h->origin, "://");
    return mark && h->host && !strcasecmp(mark + 3, h->host);
}

bool page_is_foreign(const head *h) {
    static const char *const harmless[] = {"GET", "HEAD", "OPTIONS"};
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        if (!strcmp(h->method, harmless[i])) {
            return false;
        }
    }
    return h->site ? !strcmp(h->site, "cross-site") : h->origin && !is_own(h);
}

/* The host of HOST, HOST:PORT or [HOST]:PORT; false: it is none of them, or longer than any name. */
static bool take_host(const char *text, char host[256]) {
    const char *colon = strrchr(text, ':'), *bracket = strrchr(text, ']');
    const bool brackets = *text == '[' && bracket;
    const char *begin = text + brackets, *end = brackets ? bracket : colon ? colon : text + strlen(text);
    const char *port = end + brackets;
    const size_t n = (size_t)(end - begin);
    if (n >= 256 || (*port && (*port != ':' || port[1 + strspn(port + 1, "0123456789")]))) {
        return false;
    }
    memcpy(host, begin, n);
    host[n] = '\0';
    return true;
}

static bool is_localhost(const char *host) {
    static const char local[] = "localhost";
    const size_t n = strlen(host), m = sizeof local - 1;
    return n >= m && !strcasecmp(host + n - m, local) && (n == m || host[n - m - 1] == '.');
}

bool host_is_fixed(const char *text) {
    char host[256];
    struct in6_addr address; /* large enough for both */
    return take_host(text, host) &&
           (is_localhost(host) || inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1);
}

bool origins_have_host(const char *const *lists, const char *wanted) {
    char host[256], listed[256], text[256];
    size_t n;
    for (; take_host(wanted, host) && *lists; lists++) {
        for (const char *list = *lists, *origin; (origin = next_origin(&list, &n));) {
            const size_t scheme = (size_t)(strstr(origin, "://") + 3 - origin);
            if (n - scheme < sizeof text) {
                memcpy(text, origin + scheme, n - scheme);
                text[n - scheme] = '\0';
                if (take_host(text, listed) && !strcasecmp(host, listed)) {
                    return true;
                }
            }
        }
    }
    return false;
}
