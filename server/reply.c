/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An answer as libmicrohttpd sends it: its body, and every header.
 */
#include <stdlib.h>
#include <string.h>

#include "http.h"

static struct MHD_Response *make_response(answer *a, bool protocol) {
    static char no_memory[] = "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,"
                              "\"detail\":\"No memory for the answer.\",\"code\":\"out_of_memory\"}",
                no_memory_there[] = "{\"error\":\"No memory for the answer.\"}";
    if (protocol && a->status >= 400 && !a->body.failed) {
        proto_infer_problem(&a->body);
        a->type = PROTO_TYPE_JSON;
    }
    if (a->body.failed) {
        char *text = protocol ? no_memory_there : no_memory;
        answer_free(a);
        *a = (answer){.status = 503,
                      .code = "out_of_memory",
                      .type = protocol ? PROTO_TYPE_JSON : PROTO_TYPE_PROBLEM,
                      .retry_after = 1};
        a->body.bytes = strlen(text);
        return MHD_create_response_from_buffer(a->body.bytes, text, MHD_RESPMEM_PERSISTENT);
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer_with_free_callback(a->body.bytes, a->body.data, &free);
    if (response) {
        a->body = (proto_buffer){.bytes = a->body.bytes}; /* the data is the response's now */
    }
    return response;
}

/* Whoever takes the headers one by one. */
typedef struct taker {
    header_taker *take;
    void *context;
} taker;

static void add(const taker *to, const char *name, const char *value) {
    to->take(to->context, name, value);
}

static void add_number(const taker *to, const char *name, size_t value) {
    char number[24];
    snprintf(number, sizeof number, "%zu", value);
    add(to, name, number);
}

/* Of every answer: nobody guesses its type, and no page of another site loads it as if it were a part of itself. */
static void add_guards(const taker *to, const answer *a) {
    add(to, "Cache-Control", *a->etag ? "no-cache" : "no-store");
    add(to, "X-Content-Type-Options", "nosniff");
    add(to, "Cross-Origin-Resource-Policy", "same-origin");
    if (a->type && !strcmp(a->type, PROTO_TYPE_HTML)) { /* it may load only what this daemon serves, nobody frames it */
        add(to, "Content-Security-Policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");
        add(to, "Referrer-Policy", "no-referrer");
        add(to, "X-Frame-Options", "DENY");
    }
}

/* What lets the page of another origin read it. Tokens come in a header, so no credentials of the browser's are asked
 * for. */
static void add_origin(const taker *to, const answer *a, const reply *r) {
    if (r->has_origins) {
        add(to, "Vary", "Origin");
    }
    if (!*r->origin) {
        return;
    }
    add(to, "Access-Control-Allow-Origin", r->origin);
    add(to, "Access-Control-Expose-Headers",
        "ETag, Inference-Header-Content-Length, Retry-After, WWW-Authenticate, X-Request-Id");
    if (a->allows_origin) {
        add(to, "Access-Control-Allow-Methods", a->allow);
        add(to, "Access-Control-Allow-Headers",
            "Accept, Authorization, Content-Encoding, Content-Type, If-Match, If-None-Match, "
            "Inference-Header-Content-Length, X-Request-Id");
        add(to, "Access-Control-Max-Age", "600");
    }
}

void reply_headers(const answer *a, const reply *r, header_taker *take, void *context) {
    const taker to = {take, context};
    if (a->json_bytes > 0) {
        add_number(&to, "Inference-Header-Content-Length", a->json_bytes);
    }
    if (a->coding != PROTO_IDENTITY) {
        add(&to, "Content-Encoding", proto_coding_name(a->coding));
    }
    if (a->tells_codings) {
        add(&to, "Accept-Encoding", "gzip, deflate");
    }
    if (a->type) {
        add(&to, "Content-Type", a->type);
    }
    add(&to, "X-Request-Id", r->id);
    if (*a->etag) {
        add(&to, "ETag", a->etag);
    }
    add_guards(&to, a);
    add_origin(&to, a, r);
    if (*a->allow && !a->allows_origin) {
        add(&to, "Allow", a->allow);
    }
    if (a->challenge) {
        add(&to, "WWW-Authenticate", a->challenge);
    }
    if (a->retry_after) {
        add_number(&to, "Retry-After", (size_t)a->retry_after);
    }
    if (r->close) {
        add(&to, "Connection", "close");
    }
}

static void add_to_response(void *response, const char *name, const char *value) {
    MHD_add_response_header(response, name, value);
}

struct MHD_Response *http_response(answer *a, const reply *r) {
    struct MHD_Response *response = make_response(a, r->protocol);
    if (response) {
        reply_headers(a, r, add_to_response, response);
    }
    return response;
}
