/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The route table, the small answers, and the one table from statuses to HTTP.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define FEW_PRIORS 10000 /* whose boxes are answered without asking for memory */

/* ---- problems ---------------------------------------------------------------------------------------------------- */

static int http_status_of(const bx_error *error) {
    static const int table[] = {
        [BX_OK] = 200,        [BX_MALFORMED] = 400, [BX_INVALID] = 422, [BX_SHAPE] = 422, [BX_NONFINITE] = 422,
        [BX_TOO_LARGE] = 413, [BX_NOMEM] = 503,     [BX_DEVICE] = 503,  [BX_BUSY] = 503,  [BX_INTERNAL] = 500,
    };
    static const struct {
        const char *code;
        int status;
    } by_code[] = {
        {"name_reserved", 409},       {"registry_full", 409}, {"shared_memory_full", 409}, {"store_full", 507},
        {"precondition_failed", 412}, {"forbidden", 403},     {"unknown_run", 404},        {"timeout", 504}};
    for (size_t i = 0; i < sizeof by_code / sizeof *by_code; i++) {
        if (!strcmp(error->code, by_code[i].code)) {
            return by_code[i].status;
        }
    }
    return table[error->status];
}

const char *http_reason(int status) {
    static const struct {
        int status;
        const char *reason;
    } table[] = {
        {200, "OK"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {411, "Length Required"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {507, "Insufficient Storage"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].status == status) {
            return table[i].reason;
        }
    }
    return "Error";
}

answer answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *request_id) {
    answer a = {.status = status, .code = code, .type = PROTO_TYPE_PROBLEM};
    proto_problem_encode(&a.body, &(proto_problem){status, http_reason(status), code, detail, pointer, request_id});
    return a;
}

answer answer_error(const bx_error *error, const proto_request *request, proto_encoding encoding,
                    const char *request_id) {
    char pointer[160];
    proto_pointer(pointer, request, encoding, error);
    answer a = answer_problem(http_status_of(error), error->code, error->text, pointer, request_id);
    a.retry_after = a.status == 503 && strcmp(error->code, "device_unavailable") ? 1 : 0;
    return a;
}

answer answer_json(proto_buffer body) {
    return (answer){.status = 200, .type = PROTO_TYPE_JSON, .body = body};
}

void answer_free(answer *a) {
    proto_buffer_free(&a->body);
}

/* ---- small answers ----------------------------------------------------------------------------------------------- */

static answer get_healthz(const route_call *call) {
    (void)call;
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "status", "ok");
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return answer_json(out);
}

answer get_readyz(const route_call *call) {
    const char *code, *why = server_readiness(call->server, &code);
    if (why) {
        answer a = answer_problem(503, code, why, "", call->request_id);
        a.retry_after = 5;
        return a;
    }
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "status", "ready");
    if (devices_lost(call->server->devices)) {
        proto_write_string(&w, "degraded", "The GPUs were lost; the cpu computes until this daemon is started again.");
    }
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return answer_json(out);
}

/* Everything that can compute, with the GPUs first where they do it unless a request says otherwise. */
static void write_devices(proto_writer *w, server *s) {
    proto_write_open(w, "devices", '[');
    for (size_t i = 0; devices_at(s->devices, i); i++) {
        const gpu *g = devices_at(s->devices, i);
        proto_write_open(w, NULL, '{');
        proto_write_string(w, "name", g->device.name);
        proto_write_string(w, "level", g->level);
        proto_write_string(w, "text", g->device.text);
        proto_write_bool(w, "healthy", !devices_lost(s->devices));
        proto_write_close(w, '}');
    }
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", "cpu");
    proto_write_string(w, "level", pool_level(s->pool));
    proto_write_bool(w, "healthy", true);
    proto_write_close(w, '}');
    proto_write_close(w, ']');
}

static answer get_version(const route_call *call) {
    const server *s = call->server;
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_string(&w, "name", "lossd");
    proto_write_string(&w, "version", LOSSD_VERSION);
    proto_write_string(&w, "compiler", __VERSION__);
    proto_write_string(&w, "device", s->devices && !devices_lost(s->devices) ? "cuda" : "cpu");
    proto_write_string(&w, "cpu_level", pool_level(s->pool));
    write_devices(&w, call->server);
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return answer_json(out);
}

/* ---- definitions ------------------------------------------------------------------------------------------------- */

static answer list_definitions(const route_call *call) {
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_open(&w, call->route->kind == DEFINITION_PRIORS ? "priors" : "criteria", '[');
    registry_list(call->server->registry, call->route->kind, &w);
    proto_write_close(&w, ']');
    proto_write_close(&w, '}');
    proto_write_end(&w);
    return answer_json(out);
}

/* A definition that could not be looked up, changed or deleted. A path is relative to the body, which is the
 * definition.
 */
static answer definition_error(const route_call *call, bx_error *error) {
    const char *prefix = call->route->kind == DEFINITION_PRIORS ? "priors." : "criterion.";
    if (!strncmp(error->path, prefix, strlen(prefix))) {
        memmove(error->path, error->path + strlen(prefix), strlen(error->path) - strlen(prefix) + 1);
    }
    if (!call->route->has_body && (error->status == BX_INVALID || error->status == BX_SHAPE)) {
        const char *code = call->route->kind == DEFINITION_PRIORS ? "unknown_priors" : "unknown_criterion";
        return answer_problem(404, code, error->text, "", call->request_id);
    }
    return answer_error(error, NULL, call->body ? call->body->encoding : PROTO_JSON, call->request_id);
}

static answer get_priors(const route_call *call) {
    bx_error error = {0};
    const bx_priors *priors;
    const proto_catalog *catalog = registry_catalog(call->server->registry, call->lease != NULL);
    bx_status status = catalog->priors(catalog->context, call->name, &priors, &error);
    if (status != BX_OK) {
        return strcmp(error.code, REGISTRY_LATER) ? definition_error(call, &error) : (answer){0};
    }
    if (call->accept == PROTO_SAFETENSORS && !call->lease && priors->n > FEW_PRIORS) {
        bx_priors_free(priors);
        return (answer){0};
    }
    answer a = {.status = 200, .type = call->accept == PROTO_JSON ? PROTO_TYPE_JSON : PROTO_TYPE_SAFETENSORS};
    if (call->accept == PROTO_JSON) {
        proto_priors_describe(&a.body, priors);
    } else if (!call->lease || lease_promise(call->lease, 16 * (size_t)priors->n)) {
        proto_priors_tensor(&a.body, priors);
    } else {
        bx_fail(&error, BX_BUSY, "memory_full", "no memory for %d priors at the moment", (int)priors->n);
        a = definition_error(call, &error);
    }
    bx_priors_free(priors);
    return a;
}

static answer get_criterion(const route_call *call) {
    bx_error error = {0};
    bx_criterion *criterion;
    const proto_catalog *catalog = registry_catalog(call->server->registry, true);
    bx_status status = catalog->criterion(catalog->context, call->name, &criterion, &error);
    if (status != BX_OK) {
        return definition_error(call, &error);
    }
    proto_buffer out = {0};
    proto_criterion_describe(&out, criterion);
    bx_criterion_free(criterion);
    return answer_json(out);
}

static answer put_definition(const route_call *call) {
    registration d = *call->body;
    bx_error error = {0};
    proto_buffer out = {0};
    bool created;
    d.kind = call->route->kind;
    d.name = call->name;
    if (registry_put(call->server->registry, &d, &created, &out, &error) != BX_OK) {
        return definition_error(call, &error);
    }
    return (answer){.status = created ? 201 : 200, .type = PROTO_TYPE_JSON, .body = out};
}

static answer delete_definition(const route_call *call) {
    bx_error error = {0};
    if (registry_delete(call->server->registry, call->route->kind, call->name, &error) != BX_OK) {
        return definition_error(call, &error);
    }
    if (call->route->kind == DEFINITION_CRITERION) {
        models_forget(call->server->models, call->name);
    }
    return (answer){.status = 204};
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

#define PRIORS   DEFINITION_PRIORS
#define CRITERIA DEFINITION_CRITERION
#define MODEL    "/v2/models/{name}"
#define REGION   "/v2/systemsharedmemory/region/{name}"
#define OPEN     RIGHT_NONE
#define READ     RIGHT_READ
#define WRITE    RIGHT_WRITE
#define VERSION  "/v2/models/{name}/versions/{version}"

/* method, path, who may (a read role's token, or a write role's, or anyone), how, has_body, negotiates, task, kind,
 * handler */
static const route routes[] = {
    {"POST", "/v1/loss", READ, ROUTE_BATCH, true, true, PROTO_LOSS, 0, NULL},
    {"POST", "/v1/match", READ, ROUTE_BATCH, true, true, PROTO_MATCH, 0, NULL},
    {"GET", "/v1/priors", READ, ROUTE_AT_ONCE, false, false, 0, PRIORS, list_definitions},
    {"GET", "/v1/priors/{name}", READ, ROUTE_BY_WORKER, false, true, 0, PRIORS, get_priors},
    {"PUT", "/v1/priors/{name}", WRITE, ROUTE_BY_CLERK, true, false, 0, PRIORS, put_definition},
    {"DELETE", "/v1/priors/{name}", WRITE, ROUTE_BY_CLERK, false, false, 0, PRIORS, delete_definition},
    {"GET", "/v1/criteria", READ, ROUTE_AT_ONCE, false, false, 0, CRITERIA, list_definitions},
    {"GET", "/v1/criteria/{name}", READ, ROUTE_AT_ONCE, false, false, 0, CRITERIA, get_criterion},
    {"PUT", "/v1/criteria/{name}", WRITE, ROUTE_BY_CLERK, true, false, 0, CRITERIA, put_definition},
    {"DELETE", "/v1/criteria/{name}", WRITE, ROUTE_BY_CLERK, false, false, 0, CRITERIA, delete_definition},
    {"GET", "/v1/runs", READ, ROUTE_BY_READER, false, false, 0, 0, get_runs},
    {"GET", "/v1/runs/{name}", READ, ROUTE_BY_READER, false, false, 0, 0, get_run},
    {"DELETE", "/v1/runs/{name}", WRITE, ROUTE_BY_WRITER, false, false, 0, 0, delete_run},
    {"GET", "/v1/runs/{name}/steps", READ, ROUTE_BY_READER, false, false, 0, 0, get_steps},
    {"GET", "/healthz", OPEN, ROUTE_OPS, false, false, 0, 0, get_healthz},
    {"GET", "/readyz", OPEN, ROUTE_OPS, false, false, 0, 0, get_readyz},
    {"GET", "/metrics", READ, ROUTE_OPS, false, false, 0, 0, get_metrics},
    {"GET", "/version", READ, ROUTE_OPS, false, false, 0, 0, get_version},
    {"GET", "/openapi.yaml", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_asset},
    {"GET", "/", OPEN, ROUTE_AT_ONCE, false, false, 0, 0, get_asset},
    {"GET", "/web/{name}", OPEN, ROUTE_AT_ONCE, false, false, 0, 0, get_asset},
    {"GET", "/v2", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_server},
    {"GET", "/v2/", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_server},
    {"GET", "/v2/health/live", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_live},
    {"GET", "/v2/health/ready", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_ready},
    {"GET", "/v2/models/stats", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model_statistics},
    {"GET", MODEL, READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model},
    {"GET", MODEL "/ready", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_ready},
    {"GET", MODEL "/config", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model_config},
    {"GET", MODEL "/stats", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model_statistics},
    {"POST", MODEL "/infer", READ, ROUTE_BATCH, true, false, PROTO_LOSS, 0, NULL},
    {"GET", VERSION, READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model},
    {"GET", VERSION "/ready", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_ready},
    {"GET", VERSION "/config", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model_config},
    {"GET", VERSION "/stats", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_model_statistics},
    {"POST", VERSION "/infer", READ, ROUTE_BATCH, true, false, PROTO_LOSS, 0, NULL},
    {"GET", "/v2/systemsharedmemory/status", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_regions},
    {"GET", REGION "/status", READ, ROUTE_AT_ONCE, false, false, 0, 0, get_regions},
    {"POST", REGION "/register", WRITE, ROUTE_BY_WORKER, true, false, 0, 0, post_register},
    {"POST", REGION "/unregister", WRITE, ROUTE_AT_ONCE, false, false, 0, 0, post_unregister},
    {"POST", "/v2/systemsharedmemory/unregister", WRITE, ROUTE_AT_ONCE, false, false, 0, 0, post_unregister},
    {"POST", "/v2/repository/index", READ, ROUTE_AT_ONCE, false, false, 0, 0, post_index},
    {"POST", "/v2/repository/models/{name}/load", WRITE, ROUTE_AT_ONCE, false, false, 0, 0, post_load},
    {"POST", "/v2/repository/models/{name}/unload", WRITE, ROUTE_AT_ONCE, false, false, 0, 0, post_unload},
};

const route *route_at(size_t i) {
    return i < sizeof routes / sizeof *routes ? &routes[i] : NULL;
}

const char *route_path(size_t i) {
    return route_at(i) ? routes[i].path : NULL;
}

size_t route_index(const route *r) {
    return (size_t)(r - routes);
}

static bool path_matches(const char *pattern, const char *path, char name[ROUTE_NAME]) {
    *name = '\0';
    while (*pattern) {
        if (*pattern != '{') {
            if (*pattern++ != *path++) {
                return false;
            }
            continue;
        }
        const size_t n = strcspn(path, "/");
        const bool names = !strncmp(pattern, "{name}", 6);
        if (n == 0 || (!names && (n != strlen(PROTO_MODEL_VERSION) || strncmp(path, PROTO_MODEL_VERSION, n)))) {
            return false;
        }
        if (names) {
            copy_text(name, n < ROUTE_NAME ? n + 1 : ROUTE_NAME, path);
        }
        path += n;
        pattern = strchr(pattern, '}') + 1;
    }
    return !*path;
}

const route *route_find(const char *method, const char *path, char name[ROUTE_NAME], char allow[40]) {
    size_t n = 0;
    *allow = '\0';
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const route *r = &routes[i];
        if (!path_matches(r->path, path, name)) {
            continue;
        }
        bool get = !strcmp(r->method, "GET");
        if (!strcmp(r->method, method) || (get && !strcmp(method, "HEAD"))) {
            return r;
        }
        n += (size_t)snprintf(allow + n, 40 - n, "%s%s%s", n > 0 ? ", " : "", r->method, get ? ", HEAD" : "");
    }
    return NULL;
}
