/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The route table, the small answers, and the one table from statuses to HTTP.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

/* ---- problems ---------------------------------------------------------------------------------------------------- */

static int http_status_of(bx_status status) {
    static const int table[] = {
        [BX_OK] = 200,        [BX_MALFORMED] = 400, [BX_INVALID] = 422, [BX_SHAPE] = 422, [BX_NONFINITE] = 422,
        [BX_TOO_LARGE] = 413, [BX_NOMEM] = 503,     [BX_DEVICE] = 503,  [BX_BUSY] = 503,  [BX_INTERNAL] = 500,
    };
    return table[status];
}

static const char *http_reason(int status) {
    static const struct {
        int status;
        const char *reason;
    } table[] = {
        {200, "OK"},
        {400, "Bad Request"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {408, "Request Timeout"},
        {411, "Length Required"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].status == status) {
            return table[i].reason;
        }
    }
    return "Error";
}

answer answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *request_id) {
    answer a = {.status = status, .type = PROTO_TYPE_PROBLEM};
    proto_problem_encode(&a.body, &(proto_problem){status, http_reason(status), code, detail, pointer, request_id});
    return a;
}

answer answer_error(const bx_error *error, const proto_request *request, proto_encoding encoding,
                    const char *request_id) {
    char pointer[160];
    proto_pointer(pointer, request, encoding, error);
    answer a = answer_problem(http_status_of(error->status), error->code, error->text, pointer, request_id);
    a.retry_after = a.status == 503 && error->status != BX_DEVICE ? 1 : 0;
    return a;
}

void answer_free(answer *a) {
    proto_buffer_free(&a->body);
}

/* ---- small answers ----------------------------------------------------------------------------------------------- */

static answer json_answer(proto_buffer body) {
    return (answer){.status = 200, .type = PROTO_TYPE_JSON, .body = body};
}

static answer get_healthz(const route_call *call) {
    (void)call;
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "status", "ok");
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return json_answer(out);
}

static answer get_readyz(const route_call *call) {
    if (atomic_load(&call->server->draining)) {
        answer a = answer_problem(503, "draining", "This daemon is shutting down.", "", call->request_id);
        a.retry_after = 5;
        return a;
    }
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "status", "ready");
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return json_answer(out);
}

static answer get_version(const route_call *call) {
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "name", "lossd");
    proto_write_string(&w, "version", LOSSD_VERSION);
    proto_write_string(&w, "compiler", __VERSION__);
    proto_write_string(&w, "device", "cpu");
    proto_write_string(&w, "cpu_level", pool_level(call->server->pool));
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return json_answer(out);
}

static answer get_openapi(const route_call *call) {
    (void)call;
    answer a = {.status = 200, .type = "application/yaml"};
    const size_t bytes = asset_openapi_bytes;
    a.body.data = malloc(bytes);
    a.body.failed = !a.body.data;
    if (a.body.data) {
        memcpy(a.body.data, asset_openapi, bytes);
        a.body.bytes = a.body.capacity = bytes;
    }
    return a;
}

static answer get_priors(const route_call *call) {
    proto_buffer out = {0};
    proto_priors_list(&out, &call->server->catalog);
    return json_answer(out);
}

static answer not_found(const route_call *call, const char *code, const char *what, const char *(*at)(size_t)) {
    bx_error error = {0};
    const char *near = bx_nearest(call->name, at);
    bx_fail(&error, BX_INVALID, code, "There is no %s \"%.64s\"%s%s%s", what, call->name,
            near ? "; did you mean \"" : ".", near ? near : "", near ? "\"?" : "");
    return answer_problem(404, code, error.text, "", call->request_id);
}

static answer get_prior_set(const route_call *call) {
    const proto_catalog *catalog = &call->server->catalog;
    for (size_t i = 0; i < catalog->n_priors; i++) {
        if (!strcmp(catalog->priors[i]->name, call->name)) {
            proto_buffer out = {0};
            if (call->accept == PROTO_JSON) {
                proto_priors_describe(&out, catalog->priors[i]);
                return json_answer(out);
            }
            proto_priors_tensor(&out, catalog->priors[i]);
            return (answer){.status = 200, .type = PROTO_TYPE_SAFETENSORS, .body = out};
        }
    }
    return not_found(call, "unknown_priors", "prior set", bx_priors_name);
}

static answer get_criteria(const route_call *call) {
    (void)call;
    proto_buffer out = {0};
    proto_criteria_list(&out);
    return json_answer(out);
}

static const char *criterion_name(size_t i) {
    const bx_criterion *criterion = bx_criterion_at(i);
    return criterion ? criterion->name : NULL;
}

static answer get_criterion(const route_call *call) {
    const bx_criterion *criterion = bx_criterion_preset(call->name);
    if (!criterion) {
        return not_found(call, "unknown_criterion", "criterion", criterion_name);
    }
    proto_buffer out = {0};
    proto_criterion_describe(&out, criterion);
    return json_answer(out);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const route routes[] = {
    {"POST", "/v1/loss", "/v1/loss", true, PROTO_LOSS, true, NULL},
    {"POST", "/v1/match", "/v1/match", true, PROTO_MATCH, true, NULL},
    {"GET", "/v1/priors", "/v1/priors", false, 0, false, get_priors},
    {"GET", "/v1/priors/", "/v1/priors/{name}", false, 0, true, get_prior_set},
    {"GET", "/v1/criteria", "/v1/criteria", false, 0, false, get_criteria},
    {"GET", "/v1/criteria/", "/v1/criteria/{name}", false, 0, false, get_criterion},
    {"GET", "/healthz", "/healthz", false, 0, false, get_healthz},
    {"GET", "/readyz", "/readyz", false, 0, false, get_readyz},
    {"GET", "/version", "/version", false, 0, false, get_version},
    {"GET", "/openapi.yaml", "/openapi.yaml", false, 0, false, get_openapi},
};

const char *route_path(size_t i) {
    return i < sizeof routes / sizeof *routes ? routes[i].label : NULL;
}

static bool path_matches(const route *r, const char *path, const char **name) {
    size_t n = strlen(r->path);
    *name = NULL;
    if (r->path[n - 1] != '/') {
        return !strcmp(r->path, path);
    }
    if (strncmp(r->path, path, n) || !path[n] || strchr(path + n, '/')) {
        return false;
    }
    *name = path + n;
    return true;
}

const route *route_find(const char *method, const char *path, const char **name, const char **allow) {
    *allow = NULL;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const route *r = &routes[i];
        if (!path_matches(r, path, name)) {
            continue;
        }
        bool head = !strcmp(method, "HEAD") && !strcmp(r->method, "GET");
        if (head || !strcmp(r->method, method)) {
            return r;
        }
        *allow = strcmp(r->method, "GET") ? r->method : "GET, HEAD";
    }
    return NULL;
}
