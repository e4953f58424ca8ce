/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clients register, and where it is kept: on the disk first, then in the catalog, which requests ask. What is
 * stored is read at the start; where that failed it is read again as soon as somebody looks for something in vain.
 *
 * `writing` is held over a whole registration, the disk included, so there is one at a time.
 */
#include <stdlib.h>
#include <string.h>

#include "catalog.h"

#define RETRY_NS NS_PER_S

struct registry {
    store *store;
    catalog *catalog;
    proto_limits limits;
    pthread_mutex_t writing;
    atomic_bool loaded;      /* what is stored is here */
    atomic_llong next_retry; /* when reading it may be tried again */
    void (*ask)(void *context);
    void *ask_context;
};

/* As the store has them. */
static const char *const kinds[N_DEFINITIONS] = {
    [DEFINITION_PRIORS] = "priors",
    [DEFINITION_CRITERION] = "criterion",
};

/* ---- what may be named ------------------------------------------------------------------------------------------- */

const proto_catalog *registry_catalog(const registry *g, bool makes) {
    return catalog_view(g->catalog, makes);
}

void registry_list(registry *g, definition kind, proto_writer *writer) {
    catalog_list(g->catalog, kind, writer);
}

bx_status registry_has_criterion(registry *g, const char *name, bx_error *error) {
    return catalog_has_criterion(g->catalog, name, error);
}

void registry_each_criterion(registry *g, void (*each)(void *context, const char *name), void *context) {
    catalog_each_criterion(g->catalog, each, context);
}

/* ---- registering ------------------------------------------------------------------------------------------------- */

bx_status registry_check_name(definition kind, const char *name, bx_error *error) {
    bx_status status = proto_name_check(name, error);
    if (status != BX_OK) {
        return status;
    }
    bool ours = kind == DEFINITION_PRIORS ? bx_priors_is_builtin(name) : bx_criterion_preset(name) != NULL;
    if (ours || !strcmp(name, "inline")) {
        return bx_fail(error, BX_INVALID, "name_reserved", "the name \"%.64s\" %s", name,
                       ours ? "is built in" : "stands for what has no name");
    }
    return BX_OK;
}

/* ---- what is stored ---------------------------------------------------------------------------------------------- */

/* One row, read by the parser that took it. One that is refused stays where it is. */
static void load_row(void *context, const store_row *row) {
    registry *g = context;
    bx_error error = {0};
    registration d = {.name = row->name, .body = row->bytes, .bytes = row->n_bytes, .limits = g->limits};
    d.encoding = strcmp(row->type, PROTO_TYPE_JSON) ? PROTO_SAFETENSORS : PROTO_JSON;
    while (d.kind < N_DEFINITIONS && strcmp(row->kind, kinds[d.kind])) {
        d.kind++;
    }
    if (d.kind == N_DEFINITIONS) {
        return;
    }
    bool known;
    entry e;
    bx_status status = registry_check_name(d.kind, d.name, &error);
    if (status == BX_OK) {
        status = catalog_check_room(g->catalog, d.kind, d.name, &known, &error);
    }
    if (status == BX_OK) {
        status = catalog_read(g->catalog, &d, &e, &error);
    }
    if (status == BX_OK) {
        catalog_install(g->catalog, e);
    }
    if (status != BX_OK) {
        LOG(LOG_WARN, "skipped", {"kind", row->kind, 0}, {"name", row->name, 0}, {"text", error.text, 0});
    }
}

/* Under `writing`. What could not be read at the start is read again. */
static bx_status load(registry *g, bx_error *error) {
    if (atomic_load(&g->loaded)) {
        return BX_OK;
    }
    atomic_store(&g->next_retry, now_ns() + RETRY_NS);
    bx_status status = store_each(g->store, load_row, g, error);
    atomic_store(&g->loaded, status == BX_OK);
    return status;
}

static bx_status log_store(registry *g, bx_status status, const bx_error *error) {
    if (status != BX_OK) {
        LOG(LOG_WARN, "store", {"file", store_file(g->store), 0}, {"text", error->text, 0});
    }
    return status;
}

/* Have what could not be read read again, by a thread that may wait for the disk. */
static void ask_for_load(registry *g) {
    long long next = atomic_load(&g->next_retry), now = now_ns();
    if (g->ask && now >= next && atomic_compare_exchange_strong(&g->next_retry, &next, now + RETRY_NS)) {
        g->ask(g->ask_context);
    }
}

bool registry_ready(registry *g) {
    bool ready = atomic_load(&g->loaded);
    if (!ready) {
        ask_for_load(g);
    }
    return ready;
}

void registry_on_unread(registry *g, void (*ask)(void *context), void *context) {
    g->ask = ask;
    g->ask_context = context;
}

/* The log has the failure already. */
void registry_load(registry *g) {
    bx_error unwanted = {0};
    pthread_mutex_lock(&g->writing);
    bool before = atomic_load(&g->loaded);
    if (load(g, &unwanted) == BX_OK && !before) {
        LOG(LOG_INFO, "store", {"file", store_file(g->store), 0}, {"text", "what is registered has been read", 0});
    }
    pthread_mutex_unlock(&g->writing);
}

/* Under `writing`: an entry that has been read, to the disk and into the tables. Takes the entry. */
static bx_status store_entry(registry *g, const registration *d, entry e, proto_buffer *description, bx_error *error) {
    store_row row = {kinds[d->kind], d->name, d->encoding == PROTO_JSON ? PROTO_TYPE_JSON : PROTO_TYPE_SAFETENSORS,
                     d->body, d->bytes};
    entry_describe(e, description);
    if (d->kind == DEFINITION_CRITERION) {
        row.bytes = description->data; /* complete, whatever its base becomes */
        row.n_bytes = description->bytes;
    }
    bx_status status;
    if (description->failed) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the answer");
    } else if (d->cancelled && atomic_load(d->cancelled)) {
        status = bx_fail(error, BX_BUSY, "timeout", "nobody waits for it any more");
    } else {
        status = log_store(g, store_put(g->store, &row, error), error);
    }
    if (status != BX_OK) {
        entry_free(e);
        return status;
    }
    catalog_install(g->catalog, e);
    return BX_OK;
}

bx_status registry_put(registry *g, const registration *d, bool *created, proto_buffer *description, bx_error *error) {
    bool known;
    entry e;
    pthread_mutex_lock(&g->writing);
    bx_status status = registry_check_name(d->kind, d->name, error);
    if (status == BX_OK) {
        status = log_store(g, load(g, error), error);
    }
    if (status == BX_OK) {
        status = catalog_check_room(g->catalog, d->kind, d->name, &known, error);
    }
    if (status == BX_OK && d->condition != CONDITION_NONE && known != (d->condition == CONDITION_KNOWN)) {
        status = bx_fail(error, BX_INVALID, "precondition_failed", "the name \"%.64s\" is %s", d->name,
                         known ? "registered already" : "not registered");
    }
    if (status == BX_OK) {
        status = catalog_read(g->catalog, d, &e, error);
    }
    if (status == BX_OK) {
        status = catalog_check_priors(g->catalog, e, error);
        if (status != BX_OK) {
            entry_free(e);
        }
    }
    if (status == BX_OK) {
        status = store_entry(g, d, e, description, error);
    }
    pthread_mutex_unlock(&g->writing);
    if (status != BX_OK) {
        proto_buffer_free(description);
        return status;
    }
    *created = !known;
    return BX_OK;
}

bx_status registry_delete(registry *g, definition kind, const char *name, bx_error *error) {
    bool stored = false;
    pthread_mutex_lock(&g->writing);
    bx_status status = registry_check_name(kind, name, error);
    if (status == BX_OK) {
        status = log_store(g, load(g, error), error);
    }
    if (status == BX_OK) {
        status = log_store(g, store_delete(g->store, kinds[kind], name, &stored, error), error);
    }
    if (status == BX_OK) {
        const bx_status gone = catalog_remove(g->catalog, kind, name, stored ? NULL : error);
        status = stored ? BX_OK : gone; /* one that could not be read was in the store alone */
    }
    pthread_mutex_unlock(&g->writing);
    return status;
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static bool is_complete(void *registry) {
    return registry_ready(registry);
}

bx_status registry_open(registry **out, memory *memory, data_dir *directory, bx_error *error) {
    registry *g = calloc(1, sizeof *g);
    store *store = g ? store_open(directory) : NULL;
    if (!store) {
        free(g);
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the registry");
    }
    pthread_mutex_init(&g->writing, NULL);
    atomic_init(&g->loaded, false);
    atomic_init(&g->next_retry, 0);
    g->store = store;
    g->limits.json_memory = memory_limit(memory) / 2;
    bx_status status = store_claim(store, error);
    if (status == BX_OK) {
        status = catalog_new(&g->catalog, memory, is_complete, g, error);
    }
    if (status != BX_OK) {
        registry_close(g);
        return status;
    }
    bx_error why = {0};
    log_store(g, load(g, &why), &why); /* losses need no store */
    *out = g;
    return BX_OK;
}

void registry_hurry(registry *g) {
    store_hurry(g->store);
}

void registry_close(registry *g) {
    if (!g) {
        return;
    }
    catalog_free(g->catalog);
    store_close(g->store);
    pthread_mutex_destroy(&g->writing);
    free(g);
}
