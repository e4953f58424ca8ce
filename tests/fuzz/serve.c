/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests as the HTTP side hands them over, without it: admitted, received in pieces, computed by one worker or by
 * three, answered. A batch has the same answer whatever its form, its pieces, the workers and their ways are: that of
 * the library, in one thread. The first three bytes say how it is sent and worked on; the others are the batch.
 */
#include "../support/job.h"
#include "case.h"
#include "daemon.h"

enum { MOST_CUTS = 24 }; /* of a body */

static scene s;
static server one, three;
static size_t taken;          /* of the budget of each, at rest */
static bx_context *reference; /* open for good */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    log_setup(LOG_ERROR, false);
    proto_init();
    start_daemon(&one, "--workers=1", NULL);
    start_daemon(&three, "--workers=3", NULL);
    taken = memory_used(one.memory);
    CHECK(bx_context_open(&reference, "cpu", "ref", NULL) == BX_OK, "no context");
    return 0;
}

/* ---- the other side of a request --------------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t resumed;
    int waiting; /* 1: suspended; 0: resumed */
} other = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static bool suspend(void *connection, void *argument) {
    (void)connection, (void)argument;
    pthread_mutex_lock(&other.lock);
    other.waiting = 1;
    pthread_mutex_unlock(&other.lock);
    return true;
}

static void resume(void *connection, void *argument) {
    (void)connection, (void)argument;
    pthread_mutex_lock(&other.lock);
    other.waiting = 0;
    pthread_cond_signal(&other.resumed);
    pthread_mutex_unlock(&other.lock);
}

static void await(void) {
    pthread_mutex_lock(&other.lock);
    while (other.waiting) {
        pthread_cond_wait(&other.resumed, &other.lock);
    }
    pthread_mutex_unlock(&other.lock);
}

/* ---- one request ------------------------------------------------------------------------------------------------- */

/* How a body is sent. */
typedef struct sending {
    proto_encoding encoding;
    int64_t json_bytes; /* of an inference; -1: all */
    proto_coding coding;
    bool chunked, guess;
    uint32_t cuts; /* where it is cut; 0: nowhere */
} sending;

static void send_body(request *r, const sending *how, const char *data, size_t n) {
    cuts c = {how->cuts, how->cuts ? MOST_CUTS : 0};
    for (size_t at = 0, piece; at < n; at += piece) {
        piece = cut(&c, n, at);
        char *copy = exact(data + at, piece);
        request_receive(r, copy, piece);
        free(copy);
    }
}

/* The answer, which the caller frees; an abandoned one has status 0. */
static answer exchange(server *to, const sending *how, const proto_buffer *body, bool leave) {
    char name[ROUTE_NAME], allow[40], path[sizeof s.criterion + 32];
    snprintf(path, sizeof path, how->encoding == PROTO_INFER ? "/v2/models/%s/infer" : "/v1/loss", s.criterion);
    proto_buffer coded = {0};
    const bool is_coded =
        how->coding && proto_deflate(&coded, how->coding, body->data, body->bytes, 2 * body->bytes + 100);
    const proto_buffer *sent = is_coded ? &coded : body;
    const admission a = {.route = route_find("POST", path, name, allow),
                         .name = how->encoding == PROTO_INFER ? name : NULL,
                         .encoding = how->encoding,
                         .accept = how->encoding == PROTO_INFER ? PROTO_INFER : PROTO_JSON,
                         .guess = how->guess,
                         .expected = how->chunked || is_coded ? 0 : sent->bytes,
                         .id = "id",
                         .json_bytes = how->json_bytes,
                         .coding = is_coded ? how->coding : PROTO_IDENTITY};
    answer out = {0};
    CHECK(a.route, "no route %s", path);
    request *r = request_admit(to, &a, &out);
    CHECK(r, "not admitted: %d %.*s", out.status, (int)out.body.bytes, out.body.data);
    r->resume = resume;
    send_body(r, how, sent->data, leave ? sent->bytes / 2 : sent->bytes);
    if (!leave) {
        if (!request_complete(r) && request_wait(r, suspend, NULL)) {
            await();
        }
        CHECK(request_answer(r, &out), "no answer");
    }
    request_abandon(r);
    proto_buffer_free(&coded);
    return out;
}

/* ---- what is owed ------------------------------------------------------------------------------------------------ */

/* The answer without its times, or the code of the refusal. */
static char *owed_text(const proto_buffer *body, proto_encoding encoding, bool *fine) {
    proto_request request, *r = &request;
    size_t left = (size_t)1 << 28;
    const proto_limits limits = {.json_memory = (size_t)1 << 26, .reserve = fuzz_reserve, .context = &left};
    proto_buffer out = {0};
    bx_error error = {0};
    computation c = {0};
    bx_status status = proto_request_decode(r, PROTO_LOSS, encoding, body->data, body->bytes, NULL, 0,
                                            &proto_catalog_builtin, &limits, &error);
    if (status == BX_OK) {
        status = compute_in(&c, reference, r->criterion, r->priors, &r->batch, r->gradients, &error);
        if (status == BX_OK) {
            strcpy(r->device, "cpu");
            CHECK(proto_answer_encode(&out, PROTO_JSON, r, &c.result, &(proto_timing){0}, "id", SIZE_MAX, NULL) ==
                      BX_OK,
                  "no answer");
        }
        computation_free(&c);
        proto_request_free(r);
    }
    *fine = status == BX_OK;
    if (!*fine) {
        say(&out, "\"code\":\"%s\"", error.code);
    }
    without_timing(&out);
    return out.data;
}

static void hold(const char *owed, bool fine, answer *a, const sending *how, const server *by) {
    without_timing(&a->body);
    const char *text = a->body.data;
    if (!fine) {
        CHECK(a->status >= 400 && a->status < 500 && strstr(text, owed), "status %d, wanted %s: %s", a->status, owed,
              text);
    } else if (how->encoding == PROTO_INFER) {
        const char *total = strstr(owed, "\"total\":"), *value = total ? total + 8 : "",
                   *loss = strstr(text, "\"loss\"");
        const char *number = loss ? strstr(loss, "\"data\":[") : NULL;
        CHECK(a->status == 200 && number && !strncmp(number + 8, value, strcspn(value, ",}")), "%s\n%s", text, owed);
    } else {
        CHECK(a->status == 200 && !strcmp(text, owed), "by %s, encoding %d, status %d:\n%s\n%s",
              by == &one ? "one worker" : "three", (int)how->encoding, a->status, text, owed);
    }
    answer_free(a);
}

static void write_form(int form, bytes *b, proto_buffer *body, sending *how) {
    body->bytes = 0;
    how->encoding = form <= 1 ? PROTO_JSON : form <= 3 ? PROTO_SAFETENSORS : PROTO_INFER;
    how->json_bytes = -1;
    if (form <= 1) {
        scene_json(&s, form, body);
    } else if (form <= 3) {
        scene_tensors(&s, b, form == 3, body);
    } else {
        const int64_t end = scene_infer(&s, b, form == 4, body);
        how->json_bytes = form == 4 ? end : -1;
    }
    CHECK(!body->failed, "no memory");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    const uint32_t choice = take(&b), cuts = take(&b), sooner = take_below(&b, 4);
    bool fine;
    scene_make(&s, &b, true);
    proto_buffer body = {0};
    sending how = {0};
    one.sooner = three.sooner = sooner ? 6 + 2 * (int)sooner : 0;
    write_form(s.large ? 2 : 0, &b, &body, &how); /* so many numbers take too long to write as text */
    char *owed = owed_text(&body, how.encoding, &fine);
    for (int i = 0; i < 2; i++) {
        server *to = i ? &three : &one;
        how = (sending){.chunked = choice & 1, .cuts = cuts};
        const int form = (int)(choice >> 2) % (s.plain ? 6 : 4);
        write_form(s.large ? 2 + form % (s.plain ? 3 : 2) : form, &b, &body, &how);
        how.guess = how.encoding != PROTO_INFER && choice & 2;
        how.coding = how.encoding == PROTO_INFER && choice & 2 ? PROTO_GZIP : PROTO_IDENTITY;
        const bool leave = choice >> 6 == 3;
        answer a = exchange(to, &how, &body, leave);
        if (!leave) {
            hold(owed, fine, &a, &how, to);
        }
        give_all_back(to, taken);
    }
    proto_buffer_free(&body);
    free(owed);
    return 0;
}
