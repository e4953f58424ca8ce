/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command lines: an argument a line; and addresses. The first byte says which reader gets the rest, so that files of
 * the configuration can have theirs.
 */
#include <netdb.h>

#include "fuzz.h"
#include "server.h"

#define MOST 64

static void read_arguments(char *text) {
    char *arguments[MOST + 2] = {(char[]){"lossd"}};
    char message[256];
    options o;
    int n = 1;
    for (char *line; n <= MOST && (line = strsep(&text, "\n"));) {
        arguments[n++] = line;
    }
    memset(message, 'x', sizeof message);
    if (options_parse(&o, n, arguments, message)) {
        log_level level;
        CHECK(o.http_threads >= 2 && o.http_threads <= 64 && o.max_body >= 1024 && o.workers >= 0, "ranges");
        CHECK(o.listen && o.data_dir && o.device && o.cpu_level, "texts");
        (void)devices_are_named_well(o.device);
        (void)log_level_from_name(o.log_level, &level);
    } else {
        const char *end = memchr(message, '\0', sizeof message);
        CHECK(end && end > message && !memchr(message, '\n', (size_t)(end - message)), "no line: %.255s", message);
    }
}

static void read_address(const char *text) {
    struct addrinfo *address = NULL;
    const char *colon = strrchr(text, ':');
    if (!colon || strspn(text, "0123456789.:[]abcdefABCDEF") != strlen(text) || !strpbrk(text, ".[")) {
        return; /* nobody is asked about names */
    }
    if (address_resolve(text, &address)) {
        CHECK(address, "no address");
        freeaddrinfo(address);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    const uint32_t reader = take(&b);
    char *text = exact_text(b.at, (size_t)(b.end - b.at));
    switch (reader) {
    case 'a':
        read_arguments(text);
        break;
    case 'l':
        read_address(text);
        break;
    default:
        break;
    }
    free(text);
    return 0;
}
