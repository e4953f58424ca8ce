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
        *a = (answer){.status = 503, .type = protocol ? PROTO_TYPE_JSON : PROTO_TYPE_PROBLEM, .retry_after = 1};
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

/* Of every answer: nobody guesses its type, and no page of another site loads it as if it were a part of itself. */
static void add_guards(struct MHD_Response *response, const answer *a) {
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, *a->etag ? "no-cache" : "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Cross-Origin-Resource-Policy", "same-origin");
    if (a->type && !strcmp(a->type, PROTO_TYPE_HTML)) { /* it may load only what this daemon serves, nobody frames it */
        MHD_add_response_header(response, "Content-Security-Policy",
                                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                                "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");
        MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
        MHD_add_response_header(response, "X-Frame-Options", "DENY");
    }
}

/* What lets the page of another origin read it. Tokens come in a header, so no credentials of the browser's are asked
 * for. */
static void add_origin(struct MHD_Response *response, const answer *a, const reply *r) {
    if (r->has_origins) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Origin");
    }
    if (!*r->origin) {
        return;
    }
    MHD_add_response_header(response, "Access-Control-Allow-Origin", r->origin);
    MHD_add_response_header(response, "Access-Control-Expose-Headers",
                            "ETag, Inference-Header-Content-Length, Retry-After, WWW-Authenticate, X-Request-Id");
    if (a->allows_origin) {
        MHD_add_response_header(response, "Access-Control-Allow-Methods", a->allow);
        MHD_add_response_header(response, "Access-Control-Allow-Headers",
                                "Accept, Authorization, Content-Type, If-Match, If-None-Match, "
                                "Inference-Header-Content-Length, X-Request-Id");
        MHD_add_response_header(response, "Access-Control-Max-Age", "600");
    }
}

struct MHD_Response *http_response(answer *a, const reply *r) {
    char number[24];
    struct MHD_Response *response = make_response(a, r->protocol);
    if (!response) {
        return NULL;
    }
    if (a->json_bytes > 0) {
        snprintf(number, sizeof number, "%zu", a->json_bytes);
        MHD_add_response_header(response, "Inference-Header-Content-Length", number);
    }
    if (a->coding != PROTO_IDENTITY) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_ENCODING, proto_coding_name(a->coding));
    }
    if (a->tells_codings) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ACCEPT_ENCODING, "gzip, deflate");
    }
    if (a->type) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, a->type);
    }
    MHD_add_response_header(response, "X-Request-Id", r->id);
    if (*a->etag) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ETAG, a->etag);
    }
    add_guards(response, a);
    add_origin(response, a, r);
    if (*a->allow && !a->allows_origin) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, a->allow);
    }
    if (a->challenge) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, a->challenge);
    }
    if (a->retry_after) {
        snprintf(number, sizeof number, "%d", a->retry_after);
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, number);
    }
    if (r->close) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
    return response;
}
