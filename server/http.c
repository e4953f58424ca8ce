/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests and their answers by libmicrohttpd, which is used in this file, reply.c and listen.c only.
 *
 * Each request is an `exchange`, made when its first line has been read and freed when it is completed. Its handler is
 * called with the headers, with each piece of the body, and a last time when the body is complete; only the first and
 * the last call can answer. What other threads work on is suspended in the last call until it is settled.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "http.h"

/* A refused body up to this size is read, so that the client sees the answer. */
#define DISCARD_LIMIT ((int64_t)64 << 20)
#define BUSY_LIMIT                                                                                                     \
    ((int64_t)1 << 20) /* and this size when we are busy: a connection more costs as much as reading that */
#define GET_BODY_LIMIT ((int64_t)64 << 10)
#define SLOWEST        ((int64_t)256 << 10) /* bytes per second that a body or an answer must make */
#define MAX_PIECES     65536                /* of tiny chunks */
#define TINY           64
#define ID_DIGITS      10
#define UNCOUNTED      ((size_t)64 << 10) /* an answer up to this size is a part of what a connection takes */
#define OPS_SECONDS    2 /* for the headers of a request for operations: who asks is near, and others wait */

/* A connection: what libmicrohttpd keeps of it for us. */
typedef struct wire {
    peer *peer;
    struct exchange *exchange; /* in progress */
} wire;

typedef struct exchange {
    server *server;
    listener *listener;
    struct MHD_Connection *connection;
    wire *wire;
    bool begun, suspended;
    bool malformed_uri, long_uri, many_parameters, close;
    bool unbearable;    /* we ended the connection in mid-body, perhaps with an answer */
    bool unread;        /* the body, or some of it, will not be */
    char model[64];     /* of an inference, to be counted */
    const route *route; /* NULL: none */
    char target[192];   /* for the log */
    char method[16];
    char id[136];
    char who[TOKEN_NAME]; /* the token's name */
    char origin[128];     /* of the page that may read the answer; empty: none, or this daemon's own */
    reply how;            /* what every answer to it says */
    request *post;        /* what is being received or computed */
    answer refusal;       /* without it: the answer once the body is read */
    lease lease;          /* of that, if it is a long one */
    int64_t body_left;    /* of a body that is read only to be ignored */
    int64_t pieces;
    int64_t began_ns;
    size_t bytes_in, bytes_out;
    int status;
    const char *code; /* of a refusal */
    proto_timing timing;
} exchange;

/* ---- phases ------------------------------------------------------------------------------------------------------ */

/* What the connection is doing now, and for how many seconds it may. */
static void set_phase(exchange *x, phase phase, int64_t seconds) {
    peer_phase(x->wire->peer, phase, seconds, phase == PHASE_IDLE ? NULL : x->post,
               phase == PHASE_IDLE ? NULL : &x->how);
}

static int64_t header_seconds(const listener *l) {
    const int64_t seconds = l->server->options.header_timeout;
    return l->ops && seconds > OPS_SECONDS ? OPS_SECONDS : seconds;
}

/* ---- answering --------------------------------------------------------------------------------------------------- */

/* An inference has its answer. */
static void count_inference(const exchange *x, int status) {
    if (x->model[0]) {
        models_record(x->server->models, x->model, status == 200, &x->timing, now_ns() - x->began_ns);
    }
}

/* Queue an answer; takes it. */
static enum MHD_Result send_answer(exchange *x, answer a) {
    reply how = x->how;
    how.close = x->close || x->listener->ops || atomic_load(&x->server->closing);
    struct MHD_Response *response = http_response(&a, &how);
    if (!response) {
        answer_free(&a);
        return MHD_NO;
    }
    count_inference(x, a.status);
    x->status = a.status;
    x->code = a.code;
    x->bytes_out = a.body.bytes;
    set_phase(x, PHASE_ANSWER, 20 + (int64_t)a.body.bytes / SLOWEST);
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)a.status, response);
    MHD_destroy_response(response);
    return result;
}

/* Answer without a batch: in the last call, after reading whatever body there is, because an answer in the first one
 * costs the connection; at once when the body is too long to read for nothing or the client waits before sending it. */
static enum MHD_Result refuse(exchange *x, const head *h, answer a) {
    const bool body = h->chunked || h->content_length > 0;
    const int64_t most = a.status == 503 ? BUSY_LIMIT : DISCARD_LIMIT;
    x->close |= body && (h->expects_continue || h->content_length > most);
    if (x->close) {
        x->unread = body;
        return send_answer(x, a);
    }
    x->refusal = a;
    x->code = a.code; /* even if its body never ends */
    x->body_left = x->route && !x->route->has_body ? GET_BODY_LIMIT : DISCARD_LIMIT;
    set_phase(x, PHASE_BODY, x->server->options.request_timeout);
    return MHD_YES;
}

static enum MHD_Result refuse_why(exchange *x, const head *h, refusal why) {
    answer a = answer_problem(why.status, why.code, why.detail, "", x->id);
    a.retry_after = why.status == 503;
    return refuse(x, h, a);
}

/* Who is not let in is told so before anything of the body is read. */
static enum MHD_Result deny(exchange *x, const head *h, refusal why) {
    answer a = answer_problem(why.status, why.code, why.detail, "", x->id);
    a.retry_after = why.status == 429;
    a.challenge = gate_challenge(&why);
    x->close |= h->chunked || h->content_length > 0;
    return refuse(x, h, a);
}

static enum MHD_Result send_post(exchange *x) {
    answer a;
    if (!request_answer(x->post, &a)) {
        return MHD_NO; /* its body came too late, and the reaper said so */
    }
    x->timing = a.timing;
    return send_answer(x, a);
}

/* Stopping while a connection is suspended would abort the process. So whoever suspends counts itself before it looks
 * whether the daemon stops, and whoever stops says so before it looks at the count: one of them sees the other. */
static bool suspend(void *connection, void *argument) {
    http *h = argument;
    atomic_fetch_add(&h->suspended, 1);
    if (atomic_load(&h->stopping)) {
        atomic_fetch_sub(&h->suspended, 1);
        return false;
    }
    MHD_suspend_connection(connection);
    return true;
}

static void resume(void *connection, void *argument) {
    http *h = argument;
    MHD_resume_connection(connection);
    atomic_fetch_sub(&h->suspended, 1);
}

/* ---- first call: the head ---------------------------------------------------------------------------------------- */

static enum MHD_Result add_header(void *cls, enum MHD_ValueKind kind, const char *key, const char *value) {
    (void)kind;
    head_add(cls, key, value);
    return MHD_YES;
}

/* Ours: what is different in each process, and a number, in hexadecimal. */
static void own_id(char *out, http *h) {
    const unsigned long number = atomic_fetch_add(&h->next_id, 1);
    memcpy(out, h->id_prefix, ID_PREFIX);
    out[ID_PREFIX] = '-';
    for (int i = 0; i < ID_DIGITS; i++) {
        out[ID_PREFIX + ID_DIGITS - i] = "0123456789abcdef"[number >> 4 * i & 15];
    }
    out[ID_PREFIX + ID_DIGITS + 1] = '\0';
}

/* The client's id if it is printable ASCII of a sane length, else one of ours. */
static void choose_id(exchange *x, const char *given) {
    size_t n = given ? strlen(given) : 0;
    bool sane = n > 0 && n <= 128;
    for (size_t i = 0; sane && i < n; i++) {
        sane = given[i] > 0x20 && given[i] < 0x7f;
    }
    if (sane) {
        memcpy(x->id, given, n + 1);
    } else {
        own_id(x->id, x->server->http);
    }
}

static enum MHD_Result add_option(void *cls, enum MHD_ValueKind kind, const char *key, const char *value) {
    (void)kind;
    request *r = cls;
    size_t n = strlen(key) + 1, m = value ? strlen(value) + 1 : 1;
    char *text = malloc(n + m);
    if (!text) {
        return MHD_NO;
    }
    memcpy(text, key, n);
    memcpy(text + n, value ? value : "", m);
    r->query[r->n_query++] = (proto_option){text, text + n};
    return MHD_YES; /* cppcheck-suppress memleak ; the request frees it */
}

static int count_query(const exchange *x) {
    return MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND, NULL, NULL);
}

/* The query string's options, copied. */
static bool take_query(exchange *x, refusal *why) {
    const int n = count_query(x);
    *why = (refusal){503, "out_of_memory", "No memory for the query."};
    x->post->query = n > 0 ? calloc((size_t)n, sizeof(proto_option)) : NULL;
    if (n == 0 || !x->post->query) {
        return n == 0;
    }
    MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND, add_option, x->post);
    return x->post->n_query == (size_t)n;
}

/* Whether the body may come, as far as the head tells; otherwise the answer. */
static bool check_body(exchange *x, const head *h, admission *a, answer *refused) {
    const options *o = &x->server->options;
    refusal why = {411, "length_required", "A body with Content-Length (or chunked) is required."};
    const bool infers = route_infers(a->route), other = !infers && is_protocol(a->route->path);
    const bool json_only = a->route->kind == DEFINITION_CRITERION;
    bool fine = infers ? head_infer(h, a, &why)
                       : other || ((h->chunked || h->content_length >= 0) &&
                                   head_body_encoding(h, json_only, &a->encoding, &a->guess, &why));
    a->encoding = other ? PROTO_JSON : a->encoding; /* whatever its type is said to be, and none is an empty one */
    if (!fine) {
        *refused = answer_problem(why.status, why.code, why.detail, "", x->id);
        refused->tells_codings = infers && why.status == 501;
        return false;
    }
    const char *which;
    const bool all_json = infers && a->json_bytes < 0;
    long limit = request_body_limit(o, a->route, all_json ? PROTO_JSON : a->encoding, &which);
    int64_t bytes = h->content_length;
    if (infers && bytes <= limit && a->json_bytes > 0) { /* of which the JSON may have less */
        limit = request_body_limit(o, a->route, PROTO_JSON, &which);
        bytes = a->json_bytes;
    }
    if (bytes > limit) {
        char detail[160];
        snprintf(detail, sizeof detail, "The body has %lld bytes; the limit is %ld (%s).", (long long)bytes, limit,
                 which);
        *refused = answer_problem(413, "body_too_large", detail, "", x->id);
        return false;
    }
    a->expected = h->content_length > 0 && a->coding == PROTO_IDENTITY ? (size_t)h->content_length : 0;
    return true;
}

/* A request that other threads will work on. */
static enum MHD_Result begin_request(exchange *x, const head *h, admission *a) {
    refusal why;
    answer refused;
    if (a->route->has_body && !check_body(x, h, a, &refused)) {
        return refuse(x, h, refused);
    }
    x->post = request_admit(x->server, a, &refused);
    if (!x->post) {
        return refuse(x, h, refused);
    }
    x->post->connection = x->connection;
    x->post->resume = resume;
    x->post->resume_argument = x->server->http;
    if (!take_query(x, &why)) {
        request_abandon(x->post);
        x->post = NULL;
        return refuse_why(x, h, why);
    }
    /* of what may follow an error, or is not wanted */
    x->body_left = !a->route->has_body ? GET_BODY_LIMIT : a->expected ? (int64_t)a->expected : DISCARD_LIMIT;
    set_phase(x, PHASE_BODY, x->server->options.request_timeout);
    return MHD_YES;
}

/* What a listener for operations says of everything else. */
static answer only_operations(const exchange *x) {
    char detail[128] = "Here are";
    for (size_t i = 0; route_at(i); i++) {
        const size_t n = strlen(detail);
        if (route_at(i)->how == ROUTE_OPS) {
            snprintf(detail + n, sizeof detail - n, " %s", route_at(i)->path);
        }
    }
    const size_t n = strlen(detail);
    snprintf(detail + n, sizeof detail - n, " only; everything else is at --listen.");
    return answer_problem(404, "not_found", detail, "", x->id);
}

/* Whether the listener has anything at this path, as far as it is choosy. */
static bool is_served(const exchange *x, const char *url) {
    char name[ROUTE_NAME], allow[40];
    const route *here = x->listener->ops ? route_find("GET", url, name, allow) : NULL;
    return !x->listener->ops || (here && here->how == ROUTE_OPS);
}

/* The route, and what the path says for {name}; NULL: *refused is the answer. */
static const route *find_route(const exchange *x, const char *method, const char *url, char name[ROUTE_NAME],
                               answer *refused) {
    char allow[sizeof((answer *)0)->allow], detail[128];
    if (!is_served(x, url)) {
        *refused = only_operations(x);
        return NULL;
    }
    const route *found = route_find(method, url, name, allow);
    if (!found && *allow) {
        snprintf(detail, sizeof detail, "This path answers %s.", allow);
        *refused = answer_problem(405, "method_not_allowed", detail, "", x->id);
        memcpy(refused->allow, allow, sizeof refused->allow);
    } else if (!found) {
        const char *near = bx_nearest(url, route_path);
        snprintf(detail, sizeof detail, "There is nothing here; %s%s%s%s",
                 near ? "did you mean " : "/openapi.yaml lists what there is.", near ? near : "", near ? "?" : "",
                 near && strstr(near, "{version}") ? " The only version is " PROTO_MODEL_VERSION "." : "");
        *refused = answer_problem(404, "not_found", detail, "", x->id);
    }
    return found;
}

/* Whose page's request this is, if that is to be known. */
static void take_origin(exchange *x, const head *h) {
    if (h->n_origin == 1 && strlen(h->origin) < sizeof x->origin &&
        origins_have(x->server->options.cors_origin, h->origin)) {
        strcpy(x->origin, h->origin);
    }
}

/* Whether no page asks that has no business here; otherwise *why is how it is refused. Where there are no tokens
 * and only this machine reaches the port, also that of a name that its owner made mean this machine (DNS rebinding): to
 * its browser it is this daemon's own. */
static bool is_page_welcome(const exchange *x, const head *h, refusal *why) {
    const server *s = x->server;
    const options *o = &s->options;
    const bool local = x->listener->ops ? s->ops_local : s->local;
    if (*x->origin) {
        return true;
    }
    if (page_is_foreign(h)) {
        *why = (refusal){403, "cross_site", "A page of another site may not post, put or delete here."};
        return false;
    }
    if (!*o->token_file && local && h->from_browser && h->host && !host_is_fixed(h->host) &&
        !origins_have_host(o->cors_origin, h->host)) {
        *why =
            (refusal){403, "cross_site",
                      "A browser, or a program that sends Accept-Language or Sec-Fetch-*, asks by a name that another "
                      "site could give. Without tokens it is served at localhost, at an address, or by names that "
                      "--cors-origin lists: if this one is yours, start lossd with what the browser's address line "
                      "shows, such as --cors-origin http://lossd.example:8080."};
        return false;
    }
    return true;
}

/* The browser asks first whether that page may ask: nothing is done, and no token is sent. False: it is something else.
 */
static bool is_preflight(const exchange *x, const head *h, const char *method, const char *url, answer *out) {
    char name[ROUTE_NAME];
    *out = (answer){.status = 204, .allows_origin = true};
    return *x->origin && h->wanted_method && !strcmp(method, MHD_HTTP_METHOD_OPTIONS) && is_served(x, url) &&
           !route_find(method, url, name, out->allow) && *out->allow;
}

/* Whether the token's role is enough, as far as the head tells what is asked for; otherwise the answer. */
static bool is_let_in(exchange *x, const head *h, const route *route, right *right, refusal *why) {
    const union MHD_ConnectionInfo *from = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const bool records = route && route->how == ROUTE_BATCH &&
                         MHD_lookup_connection_value(x->connection, MHD_GET_ARGUMENT_KIND, "run") != NULL;
    const credentials shown = {h->authorization, from ? from->client_addr : NULL, records};
    return gate_check(x->server->gate, x->server->metrics, route, &shown, right, x->who, why);
}

/* What is answered at once is counted as well: clients that do not read would collect it. */
static answer count_answer(exchange *x, answer a) {
    if (x->listener->ops || a.body.bytes <= UNCOUNTED || lease_begin(&x->lease, x->server->memory, a.body.capacity)) {
        return a;
    }
    answer_free(&a);
    a = answer_problem(503, "memory_full", "The memory for answers in flight is full; try again soon.", "", x->id);
    a.retry_after = 1;
    return a;
}

static enum MHD_Result begin(exchange *x, const char *url, const char *method, const char *version) {
    head h = {.method = method,
              .malformed_uri = x->malformed_uri,
              .long_uri = x->long_uri,
              .n_query = x->many_parameters ? INT_MAX : count_query(x),
              .http_1_0 = !strcmp(version, MHD_HTTP_VERSION_1_0)};
    refusal why;
    x->begun = true;
    x->how.protocol = is_protocol(url);
    x->how.head = !strcmp(method, MHD_HTTP_METHOD_HEAD);
    copy_text(x->method, sizeof x->method, method);
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, add_header, &h);
    choose_id(x, h.id);
    if (!head_check(&h, &why)) {
        x->close = true;
        return refuse_why(x, &h, why);
    }
    char text[ROUTE_NAME];
    answer unknown;
    take_origin(x, &h);
    if (!is_page_welcome(x, &h, &why)) {
        return refuse_why(x, &h, why);
    }
    if (is_preflight(x, &h, method, url, &unknown)) {
        return refuse(x, &h, unknown);
    }
    const route *route = find_route(x, method, url, text, &unknown);
    const char *name = *text ? text : NULL;
    right right;
    x->route = route;
    if (!is_let_in(x, &h, route, &right, &why)) {
        if (!route) {
            answer_free(&unknown);
        }
        return deny(x, &h, why);
    }
    if (!route) {
        return refuse(x, &h, unknown);
    }
    proto_encoding accept = PROTO_JSON;
    if (route->negotiates && !head_accept(&h, &accept, &why)) {
        return refuse_why(x, &h, why);
    }
    if (!route->has_body && h.content_length > GET_BODY_LIMIT) {
        x->close = true; /* rather than read what nobody asked for */
        return refuse_why(x, &h, (refusal){413, "body_too_large", "This path takes no body."});
    }
    bx_error error = {0};
    if (route->how == ROUTE_BY_CLERK && registry_check_name(route->kind, name, &error) != BX_OK) {
        return refuse(x, &h, answer_error(&error, NULL, PROTO_JSON, x->id));
    }
    if (route->how == ROUTE_BY_CLERK && h.n_query > 0) {
        return refuse_why(x, &h, (refusal){422, "unknown_member", "This path has no query options."});
    }
    if (route_infers(route)) {
        if (!model_is_known(x->server, name, x->id, &unknown)) {
            return refuse(x, &h, unknown);
        }
        copy_text(x->model, sizeof x->model, name);
        accept = PROTO_INFER;
    }
    admission wanted = {
        .route = route, .name = name, .right = right, .accept = accept, .if_none_match = h.if_none_match, .id = x->id};
    if (route->how == ROUTE_BY_CLERK && route->has_body && !head_condition(&h, &wanted.condition, &why)) {
        return refuse_why(x, &h, why);
    }
    if (route->how == ROUTE_AT_ONCE || route->how == ROUTE_OPS || route->how == ROUTE_BY_WORKER) {
        answer a = route->handler(&(route_call){.server = x->server,
                                                .route = route,
                                                .name = name,
                                                .accept = accept,
                                                .request_id = x->id,
                                                .if_none_match = h.if_none_match});
        if (a.status) {
            return refuse(x, &h, count_answer(x, a));
        }
    }
    return begin_request(x, &h, &wanted);
}

/* ---- the other calls --------------------------------------------------------------------------------------------- */

/* What follows of a body is not read any more. Takes the answer. */
static enum MHD_Result refuse_rest(exchange *x, answer problem) {
    x->unbearable = true;
    x->code = problem.code;
    if (peer_refuse(x->wire->peer, &problem)) {
        x->status = problem.status;
        count_inference(x, x->status);
    }
    answer_free(&problem);
    return MHD_NO;
}

/* What a body that is too long to be ignored is answered: what was decided before, if that is a refusal. */
static answer take_refusal(exchange *x) {
    answer decided = x->post ? request_refusal(x->post) : x->refusal;
    if (!x->post) {
        x->refusal = (answer){0};
    }
    if (decided.status >= 400) {
        return decided;
    }
    answer_free(&decided);
    return answer_problem(413, "body_too_large", "The body is longer than what is read of it.", "", x->id);
}

static enum MHD_Result receive(exchange *x, const char *data, size_t bytes) {
    x->bytes_in += bytes;
    x->pieces++;
    if (x->bytes_in >= SLOWEST) {
        peer_extend(x->wire->peer, x->server->options.request_timeout + (int64_t)x->bytes_in / SLOWEST);
    }
    if (x->pieces > MAX_PIECES && x->bytes_in / (size_t)x->pieces < TINY) {
        return refuse_rest(x, answer_problem(400, "framing_chunks",
                                             "More than 65536 chunks, of fewer than 64 bytes each.", "", x->id));
    }
    if (x->post && request_receive(x->post, data, bytes)) {
        return MHD_YES;
    }
    x->body_left -= (int64_t)bytes;
    return x->body_left >= 0 ? MHD_YES : refuse_rest(x, take_refusal(x));
}

static enum MHD_Result complete(exchange *x) {
    if (!x->post) {
        answer a = x->refusal;
        x->refusal = (answer){0};
        return send_answer(x, a);
    }
    set_phase(x, PHASE_COMPUTE, x->server->options.request_timeout);
    if (!request_complete(x->post)) {
        x->suspended = true; /* before anyone can resume */
        if (request_wait(x->post, suspend, x->server->http)) {
            return MHD_YES;
        }
        request_fail(x->post, 503, "draining", "This daemon is shutting down."); /* unless it is settled */
    }
    return send_post(x);
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *data, size_t *bytes, void **context) {
    (void)cls;
    exchange *x = *context;
    if (!x) {
        return MHD_NO;
    }
    if (!x->begun) {
        x->connection = connection;
        return begin(x, url, method, version);
    }
    if (*bytes > 0) {
        size_t n = *bytes;
        *bytes = 0;
        return receive(x, data, n);
    }
    return x->suspended ? send_post(x) : complete(x);
}

/* libmicrohttpd notes every parameter in a connection's memory, and when that is full it waits for more and never
 * answers. So of a query that is refused anyway it sees one long parameter. The text is its own buffer. */
static void hide_parameters(const char *uri) {
    for (char *c = (char *)uri; *c; c++) {
        *c = *c == '&' ? '_' : *c;
    }
}

/* The first thing libmicrohttpd calls for a request, with the raw target; what it returns is the handler's context. */
void *http_on_target(void *cls, const char *uri, struct MHD_Connection *connection) {
    listener *l = cls;
    server *server = l->server;
    wire *wire = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    exchange *x = wire ? calloc(1, sizeof *x) : NULL;
    if (!x) {
        metrics_count(server->metrics, &(measured){.outcome = OUTCOME_BUSY});
        return NULL; /* the connection will be closed */
    }
    x->server = server;
    x->listener = l;
    x->malformed_uri = !uri_is_sane(uri);
    x->long_uri = uri_is_long(uri);
    x->how = (reply){.id = x->id, .origin = x->origin, .has_origins = server->options.cors_origin[0] != NULL};
    x->began_ns = now_ns();
    copy_text(x->target, sizeof x->target, uri);
    x->many_parameters = uri_floods(uri);
    if (x->many_parameters) {
        hide_parameters(uri);
    }
    x->wire = wire;
    wire->exchange = x;
    set_phase(x, PHASE_HEAD, header_seconds(l));
    atomic_fetch_add(&l->exchanges, 1);
    return x;
}

/* Some requests end without an answer, and some with one of libmicrohttpd's own, which no handler sees. */
static outcome how_ended(const exchange *x, enum MHD_RequestTerminationCode code) {
    if (code == MHD_REQUEST_TERMINATED_COMPLETED_OK || x->status == 408 || x->unbearable) {
        return x->status ? outcome_of(x->status, x->code) : OUTCOME_REFUSED;
    }
    if (code == MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN) {
        return OUTCOME_BUSY;
    }
    const peer_end end = peer_ended(x->wire->peer);
    if (x->status || end == PEER_LEFT) {
        return OUTCOME_GONE;
    }
    if (end == PEER_LATE || code == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED) {
        return OUTCOME_TIMEOUT;
    }
    return code == MHD_REQUEST_TERMINATED_WITH_ERROR ? OUTCOME_REFUSED : OUTCOME_GONE;
}

static void count(const exchange *x, enum MHD_RequestTerminationCode code) {
    const request *r = x->post;
    const bool sent = code == MHD_REQUEST_TERMINATED_COMPLETED_OK;
    measured m = {.route = x->route, .outcome = how_ended(x, code)};
    m.bytes_out = sent && strcmp(x->method, "HEAD") ? x->bytes_out : 0;
    if (r && r->route->has_body) {
        m.admitted = true;
        m.encoding = r->encoding;
        m.bytes_in = x->bytes_in;
        m.images = atomic_load_explicit(&r->n_images, memory_order_relaxed);
        m.timed = m.outcome == OUTCOME_OK && r->route->how == ROUTE_BATCH;
        m.timing = x->timing;
        m.ns = m.timed ? now_ns() - r->began_ns : 0;
    }
    metrics_count(x->server->metrics, &m);
}

static void end(listener *l, exchange *x, enum MHD_RequestTerminationCode code) {
    x->wire->exchange = NULL;
    if (code == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED) { /* the library's, of a silent connection */
        peer_forget_unsent(x->wire->peer);
    }
    set_phase(x, PHASE_IDLE, x->server->options.idle_timeout);
    if ((x->unread && code == MHD_REQUEST_TERMINATED_COMPLETED_OK) || (x->unbearable && x->status)) {
        peer_linger(x->wire->peer);
    }
    if (x->post && !x->status && request_expired(x->post)) {
        x->status = 408; /* written by the reaper, but not behind TLS */
        x->code = "body_timeout";
        count_inference(x, x->status);
    }
    if (x->begun) {
        LOG(LOG_INFO, "request", {"id", x->id, 0}, {"method", x->method, 0}, {"target", x->target, 0},
            {"as", *x->who ? x->who : NOT_ASKED, 0}, {"status", NULL, x->status}, {x->code ? "code" : NULL, x->code, 0},
            {"bytes_in", NULL, (double)x->bytes_in}, {"bytes_out", NULL, (double)x->bytes_out},
            {"receive_ms", NULL, x->timing.receive_ms}, {"queue_ms", NULL, x->timing.queue_ms},
            {"compute_ms", NULL, x->timing.compute_ms},
            {"total_ms", NULL, (double)(now_ns() - x->began_ns) / NS_PER_MS},
            {"end", code == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "sent" : "broken", 0});
    }
    count(x, code);
    if (x->post) {
        request_abandon(x->post);
    }
    answer_free(&x->refusal);
    lease_end(&x->lease);
    free(x);
    atomic_fetch_sub(&l->exchanges, 1);
}

void http_on_completed(void *cls, struct MHD_Connection *connection, void **context,
                       enum MHD_RequestTerminationCode code) {
    (void)connection;
    exchange *x = *context;
    if (x) {
        *context = NULL;
        end(cls, x, code);
    }
}

/* ---- connections ------------------------------------------------------------------------------------------------- */

static wire *begin_wire(listener *l, int fd) {
    wire *w = malloc(sizeof *w);
    peer *peer = w ? peer_add(l->server->http->peers, fd, header_seconds(l)) : NULL;
    if (!peer) {
        free(w);
        return NULL;
    }
    *w = (wire){.peer = peer};
    return w;
}

static void end_wire(listener *l, wire *w) {
    if (w->exchange) { /* libmicrohttpd tells nobody that it gave up a head, of thousands of cookies for one */
        end(l, w->exchange, MHD_REQUEST_TERMINATED_WITH_ERROR);
    }
    peer_remove(w->peer);
    free(w);
}

void http_on_connection(void *cls, struct MHD_Connection *connection, void **context,
                        enum MHD_ConnectionNotificationCode code) {
    listener *l = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        *context = begin_wire(l, fd);
        if (!*context) {
            shutdown(fd, SHUT_RDWR); /* nobody would ever end it */
        }
        acceptor_begin(&l->acceptor);
        return;
    }
    if (*context) {
        end_wire(l, *context);
    }
    acceptor_release(&l->acceptor);
}
