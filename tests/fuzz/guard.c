/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The framing guard and content negotiation: a method and a raw target in the first line, then headers, as HTTP writes
 * them; what libmicrohttpd would make of them is handed over.
 */
#include <netinet/in.h>
#include <strings.h>
#include <unistd.h>

#include "access.h"
#include "fuzz.h"

static gate *closed;
static metrics *counted;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const char text[] = "read reader READER-0123456789\nwrite writer WRITER-0123456789\n";
    char path[] = "/tmp/lossd-fuzz-XXXXXX";
    tokens *tokens;
    bx_error error = {0};
    (void)argc, (void)argv;
    const int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1 && !close(fd), "no file");
    CHECK(tokens_read(&tokens, path, &error) == BX_OK, "%s", error.text);
    unlink(path);
    closed = gate_new();
    counted = metrics_new();
    CHECK(closed && counted, "no memory");
    gate_use(closed, tokens);
    return 0;
}

static const int statuses[] = {400, 406, 411, 412, 413, 414, 415, 417, 431, 501};

static void check_refused(const refusal *why) {
    bool known = false;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        known |= why->status == statuses[i];
    }
    CHECK(known && why->code && *why->code && why->detail && *why->detail, "status %d", why->status);
}

/* What the guard has let pass, said once more in another way. */
static void check_passed(const head *h, const char *uri) {
    CHECK(h->n_length <= 1 && h->n_transfer <= 1 && h->n_host <= 1, "a header twice");
    CHECK(!(h->n_length && h->n_transfer), "both framings");
    CHECK(h->content_length >= -1 && (h->content_length >= 0) == (h->n_length == 1), "length %lld",
          (long long)h->content_length);
    CHECK(h->chunked == (h->n_transfer == 1), "chunked");
    CHECK(!h->chunked || !strcasecmp(h->transfer, "chunked"), "coding");
    for (const char *c = h->length ? h->length : ""; *c; c++) {
        CHECK(*c >= '0' && *c <= '9', "length %s", h->length);
    }
    for (const char *c = uri; *c; c++) {
        CHECK(*c > 0x20 && *c < 0x7f, "target");
    }
    CHECK(!strcasestr(uri, "%00") && !strcasestr(uri, "%0d") && !strcasestr(uri, "%0a") && !strcasestr(uri, "%7f"),
          "target %s", uri);
    CHECK(strlen(uri) <= 8192, "%zu bytes of target", strlen(uri));
}

static void negotiate(const head *h) {
    admission a = {0};
    condition condition;
    refusal why = {0};
    if (!head_accept(h, &a.accept, &why)) {
        check_refused(&why);
    }
    if (!head_body_encoding(h, false, &a.encoding, &a.guess, &why)) {
        check_refused(&why);
    }
    if (!head_condition(h, &condition, &why)) {
        check_refused(&why);
    }
    if (head_infer(h, &a, &why)) {
        CHECK(a.json_bytes == -1 || a.json_bytes > 0, "JSON of %lld bytes", (long long)a.json_bytes);
        CHECK(a.json_bytes <= h->content_length || h->chunked || a.coding, "JSON beyond the body");
    } else {
        check_refused(&why);
    }
    (void)etag_matches(h->if_none_match, "\"1-2-3\"");
    CHECK(!h->if_none_match || strcmp(h->if_none_match, "\"1-2-3\"") != 0 ||
              etag_matches(h->if_none_match, "\"1-2-3\""),
          "the same tag is another");
}

/* Who has no token that there is may do what everybody may. */
static void ask_gate(const head *h, const route *found) {
    char name[TOKEN_NAME];
    const struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const credentials c = {.authorization = h->authorization, .from = (const struct sockaddr *)&from};
    const char *given = h->authorization ? h->authorization : "";
    const bool reader = strstr(given, "READER-0123456789"), writer = strstr(given, "WRITER-0123456789");
    right right = RIGHT_NONE;
    refusal why = {0};
    memset(name, 'x', sizeof name);
    if (gate_check(closed, counted, found, &c, &right, name, &why)) {
        CHECK(memchr(name, '\0', sizeof name), "a name without end");
        CHECK(right <= (writer ? RIGHT_WRITE : reader ? RIGHT_READ : RIGHT_NONE), "right %d by %s", (int)right, given);
    } else {
        CHECK(why.status == 401 || why.status == 403 || why.status == 429, "status %d", why.status);
        (void)gate_challenge(&why);
    }
}

static const route *look_up(const char *method, const char *uri) {
    char path[9000], name[ROUTE_NAME], allow[40];
    memset(name, 'x', sizeof name);
    memset(allow, 'x', sizeof allow);
    snprintf(path, sizeof path, "%.*s", (int)strcspn(uri, "?"), uri);
    const route *found = route_find(method, path, name, allow);
    CHECK(memchr(name, '\0', sizeof name) && (found || memchr(allow, '\0', sizeof allow)), "texts without end");
    CHECK(!found || route_index(found) < 1000, "a route of no table");
    (void)bx_nearest(path, route_path);
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = exact_text(data, size), *rest = text, *line = strsep(&rest, "\n");
    char *uri = line, *method = strsep(&uri, " ");
    uri = uri ? uri : (char[]){""};
    refusal why = {0};
    head h = {.method = method, .malformed_uri = !uri_is_sane(uri), .long_uri = uri_is_long(uri)};
    for (const char *c = strchr(uri, '?'); c; c = strchr(c + 1, '&')) {
        h.n_query++;
    }
    while ((line = strsep(&rest, "\n"))) {
        char *value = line, *name = strsep(&value, ":");
        value = value ? value + strspn(value, " ") : NULL;
        head_add(&h, name, value);
    }
    if (head_check(&h, &why)) {
        check_passed(&h, uri);
        ask_gate(&h, look_up(method, uri));
        negotiate(&h);
    } else {
        check_refused(&why);
    }
    free(text);
    return 0;
}
