/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Open Inference Protocol around inferences: what there is, whether it is ready, and how much it has done. A model
 * is a criterion; it has one version and is always loaded.
 *
 * Statistics are of inferences only, by name, from the first one on until the criterion is deleted. Their lock is the
 * innermost.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server.h"

#define MOST_MODELS 128 /* more than can be registered; the one used longest ago makes room */

struct models {
    pthread_mutex_t lock;
    size_t n;
    struct model {
        char name[64];
        proto_model_statistics statistics;
    } all[MOST_MODELS];
};

/* ---- statistics -------------------------------------------------------------------------------------------------- */

models *models_new(void) {
    models *m = calloc(1, sizeof *m);
    if (m) {
        pthread_mutex_init(&m->lock, NULL);
    }
    return m;
}

void models_free(models *m) {
    if (m) {
        pthread_mutex_destroy(&m->lock);
        free(m);
    }
}

/* Under the lock. NULL: it has done nothing. */
static struct model *find(models *m, const char *name) {
    for (size_t i = 0; i < m->n; i++) {
        if (!strcmp(m->all[i].name, name)) {
            return &m->all[i];
        }
    }
    return NULL;
}

static struct model *find_or_add(models *m, const char *name) {
    struct model *found = find(m, name);
    if (found) {
        return found;
    }
    if (m->n < MOST_MODELS) {
        found = &m->all[m->n++];
    } else {
        found = m->all;
        for (size_t i = 1; i < m->n; i++) {
            found = m->all[i].statistics.last_ms < found->statistics.last_ms ? &m->all[i] : found;
        }
    }
    *found = (struct model){.name = ""};
    copy_text(found->name, sizeof found->name, name);
    return found;
}

void models_record(models *m, const char *name, bool success, const proto_timing *timing, int64_t ns) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const int64_t queue = (int64_t)(timing->queue_ms * NS_PER_MS), input = (int64_t)(timing->receive_ms * NS_PER_MS),
                  infer = (int64_t)(timing->compute_ms * NS_PER_MS), rest = ns - queue - input - infer;
    pthread_mutex_lock(&m->lock);
    proto_model_statistics *s = &find_or_add(m, name)->statistics;
    s->last_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (success) {
        s->successes++;
        s->queue_ns += queue;
        s->input_ns += input;
        s->infer_ns += infer;
        s->output_ns += rest > 0 ? rest : 0;
    } else {
        s->failures++;
        s->fail_ns += ns;
    }
    pthread_mutex_unlock(&m->lock);
}

void models_forget(models *m, const char *name) {
    pthread_mutex_lock(&m->lock);
    struct model *found = find(m, name);
    if (found) {
        *found = m->all[--m->n];
    }
    pthread_mutex_unlock(&m->lock);
}

static proto_model_statistics statistics_of(models *m, const char *name) {
    pthread_mutex_lock(&m->lock);
    const struct model *found = find(m, name);
    const proto_model_statistics s = found ? found->statistics : (proto_model_statistics){0};
    pthread_mutex_unlock(&m->lock);
    return s;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

bool model_is_known(server *s, const char *name, const char *request_id, answer *refused) {
    bx_error error = {0};
    bx_status status = registry_has_criterion(s->registry, name, &error);
    if (status == BX_INVALID) {
        *refused = answer_problem(404, "unknown_criterion", error.text, "", request_id);
    } else if (status != BX_OK) {
        *refused = answer_error(&error, NULL, PROTO_INFER, request_id);
    }
    return status == BX_OK;
}

answer get_server(const route_call *call) {
    proto_buffer out = {0};
    proto_server_describe(&out, LOSSD_VERSION, call->server->shm != NULL);
    return answer_json(out);
}

answer get_live(const route_call *call) {
    (void)call;
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    proto_write_bool(&w, "live", true);
    proto_write_close(&w, '}');
    return answer_json(out);
}

/* Of the server, or of a model. */
answer get_ready(const route_call *call) {
    answer refused;
    if (call->name && !model_is_known(call->server, call->name, call->request_id, &refused)) {
        return refused;
    }
    if (server_readiness(call->server, NULL)) {
        return get_readyz(call);
    }
    proto_buffer out = {0};
    proto_writer w = {.out = &out};
    proto_write_open(&w, NULL, '{');
    if (call->name) {
        proto_write_string(&w, "name", call->name);
    }
    proto_write_bool(&w, "ready", true);
    proto_write_close(&w, '}');
    return answer_json(out);
}

answer get_model(const route_call *call) {
    answer a;
    if (model_is_known(call->server, call->name, call->request_id, &a)) {
        a = answer_json((proto_buffer){0});
        proto_model_describe(&a.body, call->name);
    }
    return a;
}

answer get_model_config(const route_call *call) {
    answer a;
    if (model_is_known(call->server, call->name, call->request_id, &a)) {
        a = answer_json((proto_buffer){0});
        proto_model_configure(&a.body, call->name, call->server->options.max_body);
    }
    return a;
}

/* A list that is being written, of every model. */
typedef struct listing {
    models *models;
    proto_writer writer;
} listing;

static void write_statistics(void *context, const char *name) {
    listing *l = context;
    const proto_model_statistics s = statistics_of(l->models, name);
    proto_model_statistics_row(&l->writer, name, &s);
}

/* Of a model, or of all. */
answer get_model_statistics(const route_call *call) {
    answer a;
    if (call->name && !model_is_known(call->server, call->name, call->request_id, &a)) {
        return a;
    }
    proto_buffer out = {0};
    listing l = {call->server->models, {.out = &out}};
    proto_write_open(&l.writer, NULL, '{');
    proto_write_open(&l.writer, "model_stats", '[');
    if (call->name) {
        write_statistics(&l, call->name);
    } else {
        registry_each_criterion(call->server->registry, write_statistics, &l);
    }
    proto_write_close(&l.writer, ']');
    proto_write_close(&l.writer, '}');
    return answer_json(out);
}

static void write_index(void *context, const char *name) {
    proto_writer *w = &((listing *)context)->writer;
    proto_write_open(w, NULL, '{');
    proto_write_string(w, "name", name);
    proto_write_string(w, "version", PROTO_MODEL_VERSION);
    proto_write_string(w, "state", "READY");
    proto_write_string(w, "reason", "");
    proto_write_close(w, '}');
}

/* All models are ready, so it does not matter whether only these are asked for: the body is not looked at. */
answer post_index(const route_call *call) {
    proto_buffer out = {0};
    listing l = {call->server->models, {.out = &out}};
    proto_write_open(&l.writer, NULL, '[');
    registry_each_criterion(call->server->registry, write_index, &l);
    proto_write_close(&l.writer, ']');
    return answer_json(out);
}

answer post_load(const route_call *call) {
    answer a;
    if (model_is_known(call->server, call->name, call->request_id, &a)) {
        a = answer_json((proto_buffer){0});
        proto_writer w = {.out = &a.body};
        proto_write_open(&w, NULL, '{');
        proto_write_close(&w, '}');
    }
    return a;
}

answer post_unload(const route_call *call) {
    answer a;
    if (model_is_known(call->server, call->name, call->request_id, &a)) {
        a = answer_problem(400, "not_unloaded",
                           "A criterion is always loaded; DELETE /v1/criteria/{name} forgets one that was registered.",
                           "", call->request_id);
    }
    return a;
}

/* ---- shared memory ----------------------------------------------------------------------------------------------- */

static bool has_shared_memory(const route_call *call, answer *refused) {
    if (!call->server->shm) {
        *refused =
            answer_problem(404, "unsupported_option",
                           "This daemon maps no shared memory; it does with --shared-memory.", "", call->request_id);
    }
    return call->server->shm != NULL;
}

answer get_regions(const route_call *call) {
    answer a;
    if (!has_shared_memory(call, &a)) {
        return a;
    }
    bx_error error = {0};
    a = answer_json((proto_buffer){0});
    proto_writer w = {.out = &a.body};
    if (shm_status(call->server->shm, call->name, &w, &error) != BX_OK) {
        answer_free(&a);
        return answer_problem(404, error.code, error.text, "", call->request_id);
    }
    return a;
}

answer post_register(const route_call *call) {
    answer a;
    if (!has_shared_memory(call, &a)) {
        return a;
    }
    bx_error error = {0};
    proto_registration wanted;
    if (!call->lease) { /* with the body, by a worker */
        a = (answer){.status = 0};
        if (proto_name_check(call->name, &error) != BX_OK) {
            a = answer_error(&error, NULL, PROTO_JSON, call->request_id);
        }
        return a;
    }
    bx_status status =
        proto_registration_read(&wanted, call->body->body, call->body->bytes, &call->body->limits, &error);
    if (status == BX_OK && atomic_load(call->body->cancelled)) {
        status = bx_fail(&error, BX_BUSY, "timeout", "nobody waits for it any more");
    }
    if (status == BX_OK) {
        status = shm_register(call->server->shm, call->name, wanted.key, wanted.offset, wanted.bytes, &error);
    }
    if (status != BX_OK) {
        return answer_error(&error, NULL, PROTO_JSON, call->request_id);
    }
    return (answer){.status = 200};
}

/* One, or all. */
answer post_unregister(const route_call *call) {
    answer a;
    if (!has_shared_memory(call, &a)) {
        return a;
    }
    shm_unregister(call->server->shm, call->name);
    return (answer){.status = 200};
}
