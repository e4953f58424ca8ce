/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The framing guard and content negotiation.
 *
 * libmicrohttpd 0.9.75 takes the first of two Content-Length headers, prefers Transfer-Encoding to Content-Length and
 * waits for ever on a coding it does not know; behind a proxy each of these smuggles requests. So every head is checked
 * here before anything else looks at it. No library types: tests/unit/test_head.c feeds it by hand.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server.h"

#define MAX_HEADERS      100
#define MAX_HEADER_BYTES 32768
#define MAX_URI          8192 /* its options may be objects */
#define MAX_QUERY        64

static bool is_token(const char *name) {
    static const char marks[] = "!#$%&'*+-.^_`|~";
    const char *c = name;
    for (; *c; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9');
        if (!plain && !strchr(marks, *c)) {
            return false;
        }
    }
    return c > name;
}

static bool has_control(const char *value) {
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;
        if ((c < 0x20 && c != '\t') || c == 0x7f) {
            return true;
        }
    }
    return false;
}

/* What browsers send, and of programs hardly any but Node's fetch. For want of more: of a GET at an http:// name they
 * say no more than which language their user reads, and no page can keep them from that. */
static bool is_browsers(const char *name) {
    return !strcasecmp(name, "Origin") || !strcasecmp(name, "Accept-Language") || !strncasecmp(name, "Sec-Fetch-", 10);
}

void head_add(head *h, const char *name, const char *value) {
    value = value ? value : "";
    h->n_headers++;
    h->bytes += strlen(name) + strlen(value) + 4;
    h->bad_name |= !is_token(name);
    h->bad_value |= has_control(value);
    h->from_browser |= is_browsers(name);
    const struct {
        const char *name;
        const char **value;
        int *count;
    } known[] = {
        {"Content-Length", &h->length, &h->n_length},
        {"Transfer-Encoding", &h->transfer, &h->n_transfer},
        {"Host", &h->host, &h->n_host},
        {"Expect", &h->expect, NULL},
        {"Content-Type", &h->type, NULL},
        {"Content-Encoding", &h->encoding, NULL},
        {"Accept", &h->accept, NULL},
        {"X-Request-Id", &h->id, NULL},
        {"If-Match", &h->if_match, NULL},
        {"If-None-Match", &h->if_none_match, NULL},
        {"Content-Range", &h->content_range, NULL},
        {"Inference-Header-Content-Length", &h->infer, &h->n_infer},
        {"Accept-Encoding", &h->accept_encoding, NULL},
        {"Sec-Fetch-Site", &h->site, NULL},
        {"Origin", &h->origin, &h->n_origin},
        {"Access-Control-Request-Method", &h->wanted_method, NULL},
        {"Authorization", &h->authorization, &h->n_authorization},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const bool perhaps = (*name | 0x20) == (*known[i].name | 0x20);
        if (perhaps && !strcasecmp(name, known[i].name)) {
            if (!*known[i].value) {
                *known[i].value = value;
            }
            if (known[i].count) {
                ++*known[i].count;
            }
        }
    }
}

static bool refuse(refusal *why, int status, const char *code, const char *detail) {
    *why = (refusal){status, code, detail};
    return false;
}

/* Of a URI's authority, with nothing that could begin its path or end its user. */
static bool is_host(const char *host) {
    return !host || (!strpbrk(host, " \t/\\?#@,\"<>") && !has_control(host));
}

/* Digits only; values beyond int64 become INT64_MAX. */
static bool parse_length(const char *text, int64_t *out) {
    int64_t value = 0;
    if (!*text) {
        return false;
    }
    for (; *text; text++) {
        if (*text < '0' || *text > '9') {
            return false;
        }
        value = value > (INT64_MAX - 9) / 10 ? INT64_MAX : value * 10 + (*text - '0');
    }
    *out = value;
    return true;
}

bool head_check(head *h, refusal *why) {
    h->content_length = -1;
    if (h->n_headers > MAX_HEADERS || h->bytes > MAX_HEADER_BYTES) {
        return refuse(why, 431, "headers_too_large", "At most 100 headers of 32 KiB in all are accepted.");
    }
    if (h->long_uri) {
        return refuse(why, 414, "uri_too_long", "The request target has more than 8192 bytes.");
    }
    if (h->malformed_uri) {
        return refuse(why, 400, "uri_malformed",
                      "The request target has a broken escape or a byte that no target may have.");
    }
    if (h->n_query > MAX_QUERY) {
        return refuse(why, 400, "uri_malformed", "At most 64 query parameters are possible.");
    }
    if (h->method && !is_token(h->method)) {
        return refuse(why, 400, "framing_request_line", "The method is not a word of HTTP.");
    }
    if (h->bad_name || h->bad_value) {
        return refuse(why, 400, "framing_header", "A header has a byte that no header may have.");
    }
    if (h->n_host > 1) {
        return refuse(why, 400, "framing_host", "More than one Host header.");
    }
    if (!is_host(h->host)) {
        return refuse(why, 400, "framing_host", "The Host header is not a host with or without a port.");
    }
    if (h->n_authorization > 1) {
        return refuse(why, 400, "framing_authorization", "More than one Authorization header.");
    }
    if (h->n_length > 1) {
        return refuse(why, 400, "framing_duplicate_length", "More than one Content-Length header.");
    }
    if (h->n_length && h->n_transfer) {
        return refuse(why, 400, "framing_cl_te", "Both Content-Length and Transfer-Encoding.");
    }
    if (h->n_transfer > 1 || (h->n_transfer && h->http_1_0)) {
        return refuse(why, 400, "framing_transfer_encoding", "Transfer-Encoding twice, or in HTTP/1.0.");
    }
    if (h->transfer && strcasecmp(h->transfer, "chunked")) {
        return refuse(why, 501, "framing_transfer_encoding", "The only transfer coding here is \"chunked\".");
    }
    if (h->length && !parse_length(h->length, &h->content_length)) {
        return refuse(why, 400, "framing_header", "Content-Length is not a number.");
    }
    h->chunked = h->transfer != NULL;
    if (h->expect && strcasecmp(h->expect, "100-continue")) {
        return refuse(why, 417, "expectation_failed", "The only expectation here is \"100-continue\".");
    }
    h->expects_continue = h->expect != NULL;
    return true;
}

static int hex(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The weak comparison of RFC 9110, 13.1.2; our tags hold no commas. */
bool etag_matches(const char *given, const char *etag) {
    const size_t n = strlen(etag);
    while (given && *given) {
        given += strspn(given, " \t,");
        const char *tag = !strncmp(given, "W/", 2) ? given + 2 : given;
        const size_t m = strcspn(tag, ", \t");
        if ((m == n && !strncmp(tag, etag, n)) || (m == 1 && *tag == '*')) {
            return true;
        }
        given = tag + m;
    }
    return false;
}

/* There are no entity tags of definitions, so "*" is all that can be asked for. */
bool head_condition(const head *h, condition *condition, refusal *why) {
    const char *given = h->if_match ? h->if_match : h->if_none_match;
    *condition = !given ? CONDITION_NONE : h->if_match ? CONDITION_KNOWN : CONDITION_NEW;
    if (h->content_range) {
        return refuse(why, 400, "framing_header", "A definition cannot be sent in part (Content-Range).");
    }
    if (given && (strcmp(given, "*") || (h->if_match && h->if_none_match))) {
        return refuse(why, 412, "precondition_failed",
                      "There are no entity tags here: If-None-Match: * or If-Match: *, one of them, can be asked for.");
    }
    return true;
}

bool uri_is_long(const char *uri) {
    return strnlen(uri, MAX_URI + 1) > MAX_URI;
}

bool uri_floods(const char *uri) {
    int marks = 0;
    for (const char *c = uri + strcspn(uri, "?"); *c; c++) {
        marks += *c == '&';
    }
    return marks > 2 * MAX_QUERY; /* nothing may be between two of them */
}

bool uri_is_sane(const char *uri) {
    const char *path_end = uri + strcspn(uri, "?");
    for (const char *c = uri; *c; c++) {
        if (*c <= 0x20 || *c >= 0x7f) {
            return false;
        }
        if (*c == '%') {
            int high = hex(c[1]), low = high < 0 ? -1 : hex(c[2]);
            const int byte = 16 * high + low;
            if (low < 0 || byte < 0x20 || byte == 0x7f || (byte == '/' && c < path_end)) {
                return false;
            }
        }
    }
    return true;
}

/* The next element of a list separated by `mark`, trimmed; NULL at the end. */
static char *next_element(char **rest, char mark) {
    if (!*rest) {
        return NULL;
    }
    char *start = *rest + strspn(*rest, " \t");
    char *end = strchr(start, mark);
    *rest = end ? end + 1 : NULL;
    end = end ? end : start + strlen(start);
    while (end > start && (end[-1] == ' ' || end[-1] == '\t')) {
        end--;
    }
    *end = '\0';
    return start;
}

bool head_body_encoding(const head *h, bool json_only, proto_encoding *encoding, bool *guess, refusal *why) {
    *encoding = json_only ? PROTO_JSON : PROTO_SAFETENSORS;
    *guess = false;
    if (h->encoding && strcasecmp(h->encoding, "identity") && *h->encoding) {
        return refuse(why, 415, "content_encoding", "Compressed bodies are not accepted here.");
    }
    char text[128];
    if (h->type && strlen(h->type) >= sizeof text) {
        return refuse(why, 415, "unsupported_media_type", "The Content-Type is too long to be one of ours.");
    }
    strcpy(text, h->type ? h->type : "");
    char *rest = text, *parameter, *type = next_element(&rest, ';');
    if (!*type || !strcasecmp(type, "application/x-www-form-urlencoded")) {
        *guess = !json_only;
        return true;
    }
    if (json_only && strcasecmp(type, PROTO_TYPE_JSON)) {
        return refuse(why, 415, "unsupported_media_type", "Send application/json; nothing else is read here.");
    }
    if (!strcasecmp(type, PROTO_TYPE_SAFETENSORS) || !strcasecmp(type, "application/octet-stream")) {
        return true;
    }
    if (strcasecmp(type, PROTO_TYPE_JSON)) {
        return refuse(
            why, 415, "unsupported_media_type",
            "Send application/json or application/vnd.safetensors (application/octet-stream means the same).");
    }
    while ((parameter = next_element(&rest, ';'))) {
        if (!strncasecmp(parameter, "charset=", 8) && strcasecmp(parameter + 8, "utf-8") &&
            strcasecmp(parameter + 8, "\"utf-8\"")) {
            return refuse(why, 415, "unsupported_media_type", "JSON is UTF-8 here.");
        }
    }
    *encoding = PROTO_JSON;
    return true;
}

/* The q among an element's parameters. */
static double read_q(char *parameters) {
    double q = 1;
    for (char *parameter; (parameter = next_element(&parameters, ';'));) {
        q = !strncasecmp(parameter, "q=", 2) ? strtod(parameter + 2, NULL) : q;
    }
    return q;
}

/* How welcome `type` is by one media range of Accept: its q if it matches, else -1; *exactness grows with precision. */
static double range_quality(char *range, const char *type, int *exactness) {
    char *rest = range, *name = next_element(&rest, ';');
    const double q = read_q(rest);
    *exactness = !strcasecmp(name, type) ? 3 : !strcasecmp(name, "application/*") ? 2 : !strcmp(name, "*/*") ? 1 : 0;
    return *exactness ? q : -1;
}

static double quality(const char *accept, const char *type) {
    char text[1024];
    strncpy(text, accept, sizeof text - 1);
    text[sizeof text - 1] = '\0';
    double best = 0;
    int precision = 0;
    for (char *rest = text, *range; (range = next_element(&rest, ','));) {
        int exactness;
        double q = range_quality(range, type, &exactness);
        if (exactness > precision) {
            precision = exactness;
            best = q;
        }
    }
    return best;
}

bool head_accept(const head *h, proto_encoding *accept, refusal *why) {
    *accept = PROTO_JSON;
    if (!h->accept || !*h->accept) {
        return true;
    }
    double json = quality(h->accept, PROTO_TYPE_JSON), tensors = quality(h->accept, PROTO_TYPE_SAFETENSORS);
    if (!(json > 0) && !(tensors > 0)) {
        return refuse(why, 406, "not_acceptable", "Answers are application/json or application/vnd.safetensors.");
    }
    *accept = tensors > json ? PROTO_SAFETENSORS : PROTO_JSON;
    return true;
}

/* ---- inferences -------------------------------------------------------------------------------------------------- */

/* PROTO_IDENTITY: it is neither of the two. */
static proto_coding coding_of(const char *name) {
    return !strcasecmp(name, "gzip") ? PROTO_GZIP : !strcasecmp(name, "deflate") ? PROTO_DEFLATE : PROTO_IDENTITY;
}

/* What of gzip and deflate is welcome; gzip when both are as much. */
static proto_coding accepted_coding(const char *accept) {
    char text[256];
    double best = 0;
    proto_coding coding = PROTO_IDENTITY;
    copy_text(text, sizeof text, accept ? accept : "");
    for (char *rest = text, *element; (element = next_element(&rest, ','));) {
        char *parameters = element;
        const proto_coding named = coding_of(next_element(&parameters, ';'));
        const double q = read_q(parameters);
        if (named != PROTO_IDENTITY && (q > best || (q == best && q > 0 && named == PROTO_GZIP))) {
            best = q;
            coding = named;
        }
    }
    return coding;
}

static bool infer_length(const head *h, int64_t *bytes, refusal *why) {
    *bytes = -1;
    if (!h->n_infer) {
        return true;
    }
    if (h->n_infer > 1) {
        return refuse(why, 400, "infer_header_length", "More than one Inference-Header-Content-Length header.");
    }
    if (!parse_length(h->infer, bytes)) {
        return refuse(why, 400, "infer_header_length", "Inference-Header-Content-Length is not a number.");
    }
    if (*bytes == 0) {
        return refuse(
            why, 400, "infer_header_length",
            "Inference-Header-Content-Length is 0, a raw binary request; the models here have several inputs, "
            "which the JSON has to name.");
    }
    const bool coded = h->encoding && *h->encoding && strcasecmp(h->encoding, "identity");
    const int64_t body = h->content_length > 0 ? h->content_length : 0;
    if (*bytes == INT64_MAX || (!h->chunked && !coded && *bytes > body)) {
        return refuse(why, 400, "infer_header_length", "Inference-Header-Content-Length is larger than the body.");
    }
    return true;
}

bool head_infer(const head *h, admission *a, refusal *why) {
    const char *coding = h->encoding ? h->encoding : "";
    a->encoding = PROTO_INFER;
    a->guess = false;
    a->coding = coding_of(coding);
    if (a->coding == PROTO_IDENTITY && *coding && strcasecmp(coding, "identity")) {
        return refuse(why, 501, "content_encoding", "Bodies may be coded as gzip or deflate here, or not at all.");
    }
    a->reply = accepted_coding(h->accept_encoding);
    return infer_length(h, &a->json_bytes, why);
}
