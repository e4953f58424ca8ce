/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading files that hold secrets. Nothing of what is in them is ever said.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access.h"

#define MOST_BYTES ((size_t)1 << 20)

/* All there is, and room for a NUL. */
static ssize_t read_all(int fd, char *text, size_t size) {
    size_t n = 0;
    while (n < size) {
        const ssize_t more = read(fd, text + n, size - n);
        if (more < 0 && errno == EINTR) {
            continue;
        }
        if (more <= 0) {
            return more < 0 ? -1 : (ssize_t)n;
        }
        n += (size_t)more;
    }
    return (ssize_t)n;
}

static bx_status read_open(secret *out, int fd, const char *flag, const char *path, bool is_private, bx_error *error) {
    struct stat about;
    if (fstat(fd, &about)) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s: %s", flag, path, strerror(errno));
    }
    if (!S_ISREG(about.st_mode)) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s is not a regular file", flag, path);
    }
    if (is_private && about.st_mode & (S_IRWXO | S_IWGRP)) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION,
                       "%s: %s is open to others (mode %04o); chmod 600 closes it, 640 lets its group read", flag, path,
                       (unsigned)about.st_mode & 07777);
    }
    if (about.st_size > (off_t)MOST_BYTES) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s has more than %zu bytes", flag, path, MOST_BYTES);
    }
    const size_t size = (size_t)about.st_size + 1; /* one more, to see that it does not grow */
    char *text = malloc(size + 1);
    if (!text) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for %s", path);
    }
    const ssize_t n = read_all(fd, text, size);
    *out = (secret){text, n > 0 ? (size_t)n : 0};
    text[out->bytes] = '\0';
    if (n == about.st_size) {
        return BX_OK;
    }
    const char *cause = n < 0 ? strerror(errno) : "it changes while it is read";
    bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s: %s", flag, path, cause);
    secret_wipe(out);
    return BX_MALFORMED;
}

bx_status secret_read(secret *out, const char *flag, const char *path, bool is_private, bx_error *error) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s: %s", flag, path, strerror(errno));
    }
    bx_status status = read_open(out, fd, flag, path, is_private, error);
    close(fd);
    return status;
}

void secret_wipe(secret *s) {
    if (s->text) {
        explicit_bzero(s->text, s->bytes);
    }
    free(s->text);
    *s = (secret){0};
}
