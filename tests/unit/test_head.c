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
    const char *bad[] = {"/a%00b", "/%",        "/%2",           "/%zz", "/a b",
                         "/\x01",  "/\xc3\xa9", "/%0d%0aX:%20y", "/%7f", "/?a=%1f"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(!uri_is_sane(bad[i]), "%s", bad[i]);
    }
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
        bool fine = head_body_encoding(&h, &encoding, &guess, &why);
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
    ck_assert(!head_body_encoding(&h, &encoding, &guess, &why));
    ck_assert_str_eq(why.code, "content_encoding");
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

int main(void) {
    Suite *suite = suite_create("head");
    TCase *cases = tcase_create("head");
    tcase_add_loop_test(cases, test_framing, 0, (int)(sizeof framing / sizeof *framing));
    tcase_add_test(cases, test_lengths);
    tcase_add_test(cases, test_too_many);
    tcase_add_test(cases, test_uri);
    tcase_add_test(cases, test_body_type);
    tcase_add_test(cases, test_accept);
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
