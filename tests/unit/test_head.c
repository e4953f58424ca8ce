/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The framing guard and content negotiation, header by header.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"
#include "../support/suite.h"

/* Headers as name, value, ..., NULL. */
static bool check_headers(head *h, refusal *why, const char *const *texts) {
    for (; *texts; texts += 2) {
        head_add(h, texts[0], texts[1]);
    }
    return head_check(h, why);
}

static const struct {
    const char *headers[9];
    int status; /* 0: accepted */
    const char *code;
    bool http_1_0;
} framing[] = {
    {{"Host", "x", "Content-Length", "3"}, 0, "", false},
    {{"Host", "x", "Transfer-Encoding", "chunked"}, 0, "", false},
    {{"Host", "x", "Transfer-Encoding", "Chunked"}, 0, "", false},
    {{"Content-Length", "3", "Content-Length", "3"}, 400, "framing_duplicate_length", false},
    {{"Content-Length", "3", "content-length", "4"}, 400, "framing_duplicate_length", false},
    {{"Content-Length", "3", "Transfer-Encoding", "chunked"}, 400, "framing_cl_te", false},
    {{"Transfer-Encoding", "gzip"}, 501, "framing_transfer_encoding", false},
    {{"Transfer-Encoding", "gzip, chunked"}, 501, "framing_transfer_encoding", false},
    {{"Transfer-Encoding", "xchunked"}, 501, "framing_transfer_encoding", false},
    {{"Transfer-Encoding", "chunked", "Transfer-Encoding", "chunked"}, 400, "framing_transfer_encoding", false},
    {{"Transfer-Encoding", "chunked"}, 400, "framing_transfer_encoding", true},
    {{"Host", "x", "Host", "y"}, 400, "framing_host", false},
    {{"Host", "x y"}, 400, "framing_host", false},
    {{"Host", "user@x"}, 400, "framing_host", false},
    {{"Host", "x/y"}, 400, "framing_host", false},
    {{"Host", "[::1]:80"}, 0, "", false},
    {{"Host", ""}, 0, "", false},
    {{"Content-Length ", "3"}, 400, "framing_header", false},
    {{"X(Y)", "3"}, 400, "framing_header", false},
    {{"", "3"}, 400, "framing_header", false},
    {{"X", "a\rb"}, 400, "framing_header", false},
    {{"X", "a\x01"}, 400, "framing_header", false},
    {{"X", "a\x7f"}, 400, "framing_header", false},
    {{"X", "a\tb"}, 0, "", false},
    {{"Content-Length", "+3"}, 400, "framing_header", false},
    {{"Content-Length", ""}, 400, "framing_header", false},
    {{"Expect", "100-continue"}, 0, "", false},
    {{"Expect", "200-ok"}, 417, "expectation_failed", false},
};

START_TEST(test_framing) {
    head h = {.http_1_0 = framing[_i].http_1_0};
    refusal why = {0};
    bool fine = check_headers(&h, &why, framing[_i].headers);
    ck_assert_int_eq(fine, framing[_i].status == 0);
    if (!fine) {
        ck_assert_int_eq(why.status, framing[_i].status);
        ck_assert_str_eq(why.code, framing[_i].code);
        ck_assert(why.detail && *why.detail);
    }
}
END_TEST

START_TEST(test_lengths) {
    static const struct {
        const char *text;
        int64_t value;
    } lengths[] = {{"0", 0},
                   {"3", 3},
                   {"0003", 3},
                   {"9223372036854775807", INT64_MAX},
                   {"9223372036854775808", INT64_MAX},
                   {"18446744073709551615", INT64_MAX},
                   {"99999999999999999999999999", INT64_MAX}};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        head h = {0};
        refusal why;
        head_add(&h, "Content-Length", lengths[i].text);
        ck_assert(head_check(&h, &why));
        /* what does not fit is as large as can be: refused by every limit */
        ck_assert(lengths[i].value == h.content_length ||
                  (lengths[i].value == INT64_MAX && h.content_length > INT64_MAX / 2));
    }
}
END_TEST

START_TEST(test_too_many) {
    head many = {0}, large = {0};
    refusal why;
    for (int i = 0; i < 100; i++) {
        head_add(&many, "X-Y", "z");
    }
    ck_assert(head_check(&many, &why));
    head_add(&many, "X-Y", "z");
    ck_assert(!head_check(&many, &why));
    ck_assert_int_eq(why.status, 431);
    char value[20000];
    memset(value, 'a', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    head_add(&large, "X", value);
    ck_assert(head_check(&large, &why));
    head_add(&large, "X", value);
    ck_assert(!head_check(&large, &why));
    ck_assert_str_eq(why.code, "headers_too_large");
}
END_TEST

START_TEST(test_uri) {
    ck_assert(uri_is_sane("/v1/loss?include=images%2Cclasses"));
    ck_assert(uri_is_sane("/"));
    ck_assert(uri_is_sane("/v1/loss?priors=a%2Fb"));
    const char *bad[] = {"/a%00b", "/%",        "/%2",           "/%zz", "/a b",   "/v1%2Floss",
                         "/\x01",  "/\xc3\xa9", "/%0d%0aX:%20y", "/%7f", "/?a=%1f"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(!uri_is_sane(bad[i]), "%s", bad[i]);
    }
}
END_TEST

START_TEST(test_request_line) {
    static const struct {
        const char *method;
        bool long_uri, malformed_uri;
        int n_query, status;
        const char *code;
    } rows[] = {
        {"GET", false, false, 64, 0, ""},
        {"GET", false, false, 65, 400, "uri_malformed"},
        {"GET", true, true, 0, 414, "uri_too_long"},
        {"GET", false, true, 0, 400, "uri_malformed"},
        {"M-SEARCH", false, false, 0, 0, ""},
        {"", false, false, 0, 400, "framing_request_line"},
        {"\x16\x03\x01", false, false, 0, 400, "framing_request_line"},
        {"GET(", false, false, 0, 400, "framing_request_line"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        head h = {.method = rows[i].method,
                  .long_uri = rows[i].long_uri,
                  .malformed_uri = rows[i].malformed_uri,
                  .n_query = rows[i].n_query};
        refusal why = {0, "", ""};
        ck_assert_int_eq(head_check(&h, &why), rows[i].status == 0);
        ck_assert_int_eq(why.status, rows[i].status);
        ck_assert_str_eq(why.code, rows[i].code);
    }
    char uri[8194];
    memset(uri, 'a', sizeof uri);
    uri[8193] = '\0';
    ck_assert(uri_is_long(uri));
    uri[8192] = '\0';
    ck_assert(!uri_is_long(uri));
}
END_TEST

START_TEST(test_body_type) {
    static const struct {
        const char *type;
        int status;
        proto_encoding encoding;
        bool guess;
    } types[] = {
        {NULL, 0, PROTO_SAFETENSORS, true},
        {"", 0, PROTO_SAFETENSORS, true},
        {"application/x-www-form-urlencoded", 0, PROTO_SAFETENSORS, true},
        {"application/json", 0, PROTO_JSON, false},
        {"Application/JSON; charset=UTF-8", 0, PROTO_JSON, false},
        {"application/json;charset=\"utf-8\"", 0, PROTO_JSON, false},
        {"application/json; charset=latin1", 415, PROTO_JSON, false},
        {"application/vnd.safetensors", 0, PROTO_SAFETENSORS, false},
        {"application/octet-stream", 0, PROTO_SAFETENSORS, false},
        {"text/plain", 415, PROTO_JSON, false},
        {"multipart/form-data; boundary=x", 415, PROTO_JSON, false},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        head h = {.type = types[i].type};
        proto_encoding encoding;
        bool guess;
        refusal why;
        bool fine = head_body_encoding(&h, false, &encoding, &guess, &why);
        ck_assert_int_eq(fine, types[i].status == 0);
        if (fine) {
            ck_assert_int_eq(guess, types[i].guess);
            ck_assert(guess || encoding == types[i].encoding);
        } else {
            ck_assert_int_eq(why.status, types[i].status);
        }
    }
    head h = {.encoding = "gzip"};
    proto_encoding encoding;
    bool guess;
    refusal why;
    ck_assert(!head_body_encoding(&h, false, &encoding, &guess, &why));
    ck_assert_str_eq(why.code, "content_encoding");
}
END_TEST

START_TEST(test_inference) {
    static const struct {
        const char *length, *coding, *accept;
        int64_t content_length;
        int status;
        int64_t json_bytes;
        proto_coding body, reply;
    } rows[] = {
        {NULL, NULL, NULL, 9, 0, -1, PROTO_IDENTITY, PROTO_IDENTITY},
        {"9", "identity", "gzip, deflate", 9, 0, 9, PROTO_IDENTITY, PROTO_GZIP},
        {"10", "GZip", "deflate", 9, 0, 10, PROTO_GZIP, PROTO_DEFLATE},
        {"1", "deflate", "gzip;q=0.1, deflate;q=0.2", 9, 0, 1, PROTO_DEFLATE, PROTO_DEFLATE},
        {"1", "", "gzip;q=0, *", 9, 0, 1, PROTO_IDENTITY, PROTO_IDENTITY},
        {"1", NULL, "br, gzip ; q=0.5", 9, 0, 1, PROTO_IDENTITY, PROTO_GZIP},
        {"10", NULL, NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"0", NULL, NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"", NULL, NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"-1", NULL, NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"1x", NULL, NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"1", NULL, NULL, -1, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"99999999999999999999", "gzip", NULL, 9, 400, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"1", "br", NULL, 9, 501, 0, PROTO_IDENTITY, PROTO_IDENTITY},
        {"1", "gzip, gzip", NULL, 9, 501, 0, PROTO_IDENTITY, PROTO_IDENTITY},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        head h = {.encoding = rows[i].coding,
                  .accept_encoding = rows[i].accept,
                  .content_length = rows[i].content_length,
                  .type = "text/plain"};
        if (rows[i].length) {
            head_add(&h, "inference-header-content-length", rows[i].length);
        }
        admission a = {.guess = true};
        refusal why;
        bool fine = head_infer(&h, &a, &why);
        ck_assert_msg(fine == (rows[i].status == 0), "%zu", i);
        if (fine) {
            ck_assert(a.encoding == PROTO_INFER && !a.guess);
            ck_assert_int_eq(a.json_bytes, rows[i].json_bytes);
            ck_assert_int_eq(a.coding, rows[i].body);
            ck_assert_int_eq(a.reply, rows[i].reply);
        } else {
            ck_assert_int_eq(why.status, rows[i].status);
        }
    }
    head twice = {.content_length = 9};
    head_add(&twice, "Inference-Header-Content-Length", "5");
    head_add(&twice, "INFERENCE-HEADER-CONTENT-LENGTH", "5");
    admission a = {.guess = true};
    refusal why;
    ck_assert(!head_infer(&twice, &a, &why) && why.status == 400);
}
END_TEST

START_TEST(test_routes) {
    static const struct {
        const char *method, *path, *pattern, *name;
    } rows[] = {
        {"GET", "/v1/priors", "/v1/priors", ""},
        {"HEAD", "/v1/priors/a", "/v1/priors/{name}", "a"},
        {"GET", "/v1/priors/", NULL, ""},
        {"GET", "/v1/priors/a/b", NULL, ""},
        {"GET", "/", "/", ""},
        {"GET", "/web/app.js", "/web/{name}", "app.js"},
        {"GET", "/v2", "/v2", ""},
        {"GET", "/v2/", "/v2/", ""},
        {"GET", "/v2/models/stats", "/v2/models/stats", ""},
        {"GET", "/v2/models/m/stats", "/v2/models/{name}/stats", "m"},
        {"POST", "/v2/models/m/versions/1/infer", "/v2/models/{name}/versions/{version}/infer", "m"},
        {"POST", "/v2/models/m/versions/11/infer", NULL, ""},
        {"POST", "/v2/models//infer", NULL, ""},
        {"POST", "/v2/models/m/infer/", NULL, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[ROUTE_NAME], allow[40];
        const route *found = route_find(rows[i].method, rows[i].path, name, allow);
        ck_assert_msg(!found == !rows[i].pattern, "%s", rows[i].path);
        if (found) {
            ck_assert_str_eq(found->path, rows[i].pattern);
            ck_assert_str_eq(name, rows[i].name);
        }
    }
    char path[600] = "/v1/priors/", name[ROUTE_NAME], allow[40];
    memset(path + 11, 'a', 500);
    ck_assert_ptr_nonnull(route_find("GET", path, name, allow));
    ck_assert_uint_eq(strlen(name), ROUTE_NAME - 1);
    ck_assert_ptr_null(route_find("PUT", "/v2/models/m/infer", name, allow));
    ck_assert_str_eq(allow, "POST");
    ck_assert(is_protocol("/v2") && is_protocol("/v2/x") && is_protocol("/v2?x") && !is_protocol("/v20"));
}
END_TEST

START_TEST(test_accept) {
    static const struct {
        const char *accept;
        int accepted; /* -1: 406 */
    } rows[] = {
        {NULL, PROTO_JSON},
        {"*/*", PROTO_JSON},
        {"application/json", PROTO_JSON},
        {"application/vnd.safetensors", PROTO_SAFETENSORS},
        {"application/*", PROTO_JSON},
        {"text/html", -1},
        {"text/html, application/xhtml+xml, */*;q=0.8", PROTO_JSON},
        {"application/json;q=0.5, application/vnd.safetensors", PROTO_SAFETENSORS},
        {"application/vnd.safetensors;q=0.1, */*", PROTO_JSON},
        {"application/json;q=0, */*", PROTO_SAFETENSORS},
        {"application/json;q=0, application/vnd.safetensors;q=0", -1},
        {"APPLICATION/JSON", PROTO_JSON},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        head h = {.accept = rows[i].accept};
        proto_encoding accept;
        refusal why;
        bool fine = head_accept(&h, &accept, &why);
        ck_assert_msg(fine == (rows[i].accepted >= 0), "%s", rows[i].accept ? rows[i].accept : "none");
        ck_assert_msg(!fine || (int)accept == rows[i].accepted, "%s", rows[i].accept ? rows[i].accept : "none");
    }
}
END_TEST

START_TEST(test_etags) {
    ck_assert(!etag_matches(NULL, "\"a-1\""));
    ck_assert(!etag_matches("", "\"a-1\""));
    ck_assert(etag_matches("\"a-1\"", "\"a-1\""));
    ck_assert(etag_matches("W/\"a-1\"", "\"a-1\""));
    ck_assert(etag_matches(" \"x\" ,\tW/\"a-1\" , \"y\"", "\"a-1\""));
    ck_assert(etag_matches("*", "\"a-1\""));
    ck_assert(!etag_matches("\"a-10\"", "\"a-1\""));
    ck_assert(!etag_matches("a-1", "\"a-1\""));
    ck_assert(!etag_matches(", ,", "\"a-1\""));
}
END_TEST

int main(void) {
    Suite *suite = suite_create("head");
    TCase *cases = tcase_create("head");
    tcase_add_loop_test(cases, test_framing, 0, (int)(sizeof framing / sizeof *framing));
    tcase_add_test(cases, test_lengths);
    tcase_add_test(cases, test_too_many);
    tcase_add_test(cases, test_uri);
    tcase_add_test(cases, test_request_line);
    tcase_add_test(cases, test_body_type);
    tcase_add_test(cases, test_inference);
    tcase_add_test(cases, test_routes);
    tcase_add_test(cases, test_accept);
    tcase_add_test(cases, test_etags);
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
