/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator writes: arguments, one a line; an address; a file of tokens; origins. The first byte says which
 * reader gets the rest.
 */
#include <netdb.h>
#include <unistd.h>

#include "access.h"
#include "fuzz.h"

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

static void read_tokens(const char *text, size_t n) {
    char path[64] = "/tmp/lossd-fuzz-XXXXXX", name[TOKEN_NAME];
    tokens *read = NULL;
    bx_error error = {0};
    if (!access("/dev/shm", W_OK)) {
        strcpy(path, "/dev/shm/lossd-fuzz-XXXXXX");
    }
    const int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, text, n) == (ssize_t)n && !close(fd), "no file");
    bx_status status = tokens_read(&read, path, &error);
    unlink(path);
    if (status != BX_OK) {
        CHECK(status == BX_MALFORMED && !strcmp(error.code, CONFIGURATION) && error.text[0], "%s", error.text);
        CHECK(!strstr(error.text, "SECRET"), "it says what is in the file: %s", error.text);
        return;
    }
    memset(name, 'x', sizeof name);
    const right role = tokens_role(read, "SECRET-0123456789", name);
    CHECK(role == RIGHT_NONE || (memmem(text, n, "SECRET-0123456789", 17) && memchr(name, '\0', sizeof name)) ||
              memmem(text, n, "sha256:", 7),
          "a token that is not there has a role");
    (void)tokens_are_short(read);
    tokens_free(read);
}

static void read_origins(char *text) {
    const char *lists[] = {text, NULL}, *wrong;
    if (origins_check(lists, &wrong)) {
        CHECK(!strchr(text, '*') && !strchr(text, '\\'), "origins %s", text);
        CHECK(!origins_have(lists, "https://host:8443") || strstr(text, "https://host:8443"), "an origin of nobody");
    } else {
        CHECK(wrong, "nothing is wrong");
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
    case 't':
        read_tokens((const char *)b.at, (size_t)(b.end - b.at));
        break;
    case 'o':
        read_origins(text);
        break;
    default:
        break;
    }
    free(text);
    return 0;
}
