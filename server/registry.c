/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What requests may name: the built-in prior sets and presets, what clients registered, and sets made of a pattern such
 * as retinanet-800x800, of which the last few are kept.
 *
 * Sets are shared by reference, so one that is replaced, deleted or evicted lives on while requests use it. Every set
 * but the built-in ones counts against the memory budget; a retired one does so until, after its last user, something
 * is registered or made or the budget has no room. Then kept ones go too, the least recently used first (reclaim).
 *
 * Three locks: `writing` is held over a whole registration, the disk included; `making` while a pattern's set is made,
 * so that it is made once; `lock` only while the tables are read or changed. Nothing is reserved under `lock`, because
 * the budget may call back.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define MOST_REGISTERED 64 /* of each kind */
#define MOST_KEPT       16
#define SHARE           4 /* registered sets and criteria take this part of the budget at most */
#define RETRY_NS        NS_PER_S

typedef enum role { BUILT_IN, REGISTERED, KEPT, RETIRED } role;

typedef struct set {
    struct set *next;
    role role; /* RETIRED: without a name; waits for its last user */
    const bx_priors *priors;
    lease lease;
    unsigned long used; /* the higher, the more recently */
} set;

typedef struct rule {
    struct rule *next;
    bx_criterion *criterion;
    lease lease;
} rule;

struct registry {
    memory *memory;
    store *store;
    proto_limits limits;
    pthread_mutex_t writing, making, lock;
    atomic_bool loaded;      /* what is stored is here */
    atomic_llong next_retry; /* when reading it may be tried again */
    void (*ask)(void *context);
    void *ask_context;
    /* under lock */
    set *sets;   /* the built-in ones first, then by name */
    rule *rules; /* by name */
    unsigned long clock;
    int n_kept, n_registered[N_DEFINITIONS];
    size_t registered_bytes;
    /* what may be named; each catalog's context */
    struct view {
        struct registry *registry;
        bool makes;
    } views[2];
    proto_catalog catalogs[2];
};

static const struct {
    const char *kind, *code, *word;
} words[N_DEFINITIONS] = {
    [DEFINITION_PRIORS] = {"priors", "unknown_priors", "prior set"},
    [DEFINITION_CRITERION] = {"criterion", "unknown_criterion", "criterion"},
};

/* ---- tables, under the lock -------------------------------------------------------------------------------------- */

static set **find_set(registry *g, const char *name) {
    set **at = &g->sets;
    while (*at && ((*at)->role == RETIRED || strcmp((*at)->priors->name, name))) {
        at = &(*at)->next;
    }
    return at;
}

static rule **find_rule(registry *g, const char *name) {
    rule **at = &g->rules;
    while (*at && strcmp((*at)->criterion->name, name)) {
        at = &(*at)->next;
    }
    return at;
}

static void insert_set(registry *g, set *s) {
    set **at = &g->sets;
    while (*at && ((*at)->role == BUILT_IN || strcmp((*at)->priors->name, s->priors->name) < 0)) {
        at = &(*at)->next;
    }
    s->next = *at;
    s->used = ++g->clock;
    *at = s;
}

static void insert_rule(registry *g, rule *r) {
    rule **at = &g->rules;
    while (*at && strcmp((*at)->criterion->name, r->criterion->name) < 0) {
        at = &(*at)->next;
    }
    r->next = *at;
    *at = r;
}

/* Nobody but this table holds it, and nobody can get hold of it without the lock. */
static bool is_idle(const set *s) {
    return (s->role == KEPT || s->role == RETIRED) && atomic_load(&s->priors->references) == 1;
}

/* Take an idle set out: a retired one, else the kept one that was used least recently; NULL when there is none. */
static set *take_idle(registry *g, bool kept_too) {
    set **found = NULL;
    for (set **at = &g->sets; *at; at = &(*at)->next) {
        bool may_go = is_idle(*at) && (kept_too || (*at)->role == RETIRED);
        if (may_go && (!found || (*at)->role == RETIRED || (*at)->used < (*found)->used)) {
            found = at;
            if ((*at)->role == RETIRED) {
                break;
            }
        }
    }
    set *s = found ? *found : NULL;
    if (s) {
        *found = s->next;
        g->n_kept -= s->role == KEPT;
    }
    return s;
}

/* The names that may be meant, for bx_nearest, which has no context of its own. */
static _Thread_local registry *asked;

static const char *set_name(size_t i) {
    for (const set *s = asked->sets; s; s = s->next) {
        if (s->role <= REGISTERED && i-- == 0) {
            return s->priors->name;
        }
    }
    return NULL;
}

static const char *rule_name(size_t i) {
    for (const rule *r = asked->rules; r; r = r->next) {
        if (i-- == 0) {
            return r->criterion->name;
        }
    }
    const bx_criterion *preset = bx_criterion_at(i);
    return preset ? preset->name : NULL;
}

/* Have what could not be read read again, by a thread that may wait for the disk. */
static void ask_for_load(registry *g) {
    long long next = atomic_load(&g->next_retry), now = now_ns();
    if (g->ask && now >= next && atomic_compare_exchange_strong(&g->next_retry, &next, now + RETRY_NS)) {
        g->ask(g->ask_context);
    }
}

static bx_status unknown(registry *g, definition kind, const char *name, bx_error *error) {
    if (!registry_ready(g)) {
        return bx_fail(error, BX_BUSY, "store_unavailable",
                       "whether there is a %s \"%.64s\" is not known: what is registered could not be read yet",
                       words[kind].word, name);
    }
    pthread_mutex_lock(&g->lock);
    asked = g;
    const char *near = bx_nearest(name, kind == DEFINITION_PRIORS ? set_name : rule_name);
    bx_fail(error, BX_INVALID, words[kind].code, "there is no %s \"%.64s\"%s%s%s", words[kind].word, name,
            near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    pthread_mutex_unlock(&g->lock);
    return BX_INVALID;
}

/* ---- sets of patterns -------------------------------------------------------------------------------------------- */

static void free_set(set *s) {
    if (s) {
        bx_priors_free(s->priors);
        lease_end(&s->lease);
        free(s);
    }
}

static void free_rule(rule *r) {
    if (r) {
        bx_criterion_free(r->criterion);
        lease_end(&r->lease);
        free(r);
    }
}

/* Give back what nobody uses: retired sets, and with `kept_too` kept ones as well. */
static bool reclaim_one(registry *g, bool kept_too) {
    pthread_mutex_lock(&g->lock);
    set *s = take_idle(g, kept_too);
    pthread_mutex_unlock(&g->lock);
    free_set(s);
    return s != NULL;
}

static bool reclaim(void *context) {
    return reclaim_one(context, true);
}

static void sweep(registry *g) {
    while (reclaim_one(g, false)) {
    }
}

static bx_status refuse_set(const registry *g, size_t bytes, bx_error *error) {
    bool never = bytes > memory_limit(g->memory);
    return bx_fail(error, never ? BX_TOO_LARGE : BX_BUSY, never ? "too_expensive" : "memory_full",
                   "no memory for a prior set of %zu bytes%s", bytes,
                   never ? ", more than --memory-limit" : " at the moment");
}

/* A new entry, counted. Takes the set. */
static bx_status count_set(registry *g, const bx_priors *priors, role role, set **out, bx_error *error) {
    const size_t bytes = bx_priors_bytes(priors->n, priors->n_levels);
    set *s = calloc(1, sizeof *s);
    bx_status status = BX_OK;
    if (!s) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for another prior set");
    } else if (role != BUILT_IN && !lease_begin(&s->lease, g->memory, bytes)) {
        status = refuse_set(g, bytes, error);
    }
    if (status != BX_OK) {
        free(s);
        bx_priors_free(priors);
        return status;
    }
    s->role = role;
    s->priors = priors;
    *out = s;
    return BX_OK;
}

static const bx_priors *get_set(registry *g, const char *name) {
    pthread_mutex_lock(&g->lock);
    set *s = *find_set(g, name);
    const bx_priors *priors = s ? bx_priors_ref(s->priors) : NULL;
    if (s) {
        s->used = ++g->clock;
    }
    pthread_mutex_unlock(&g->lock);
    return priors;
}

/* The set of that name, made in memory that is counted before it is taken. */
static bx_status make_counted(registry *g, const char *name, bx_priors **out, bx_error *error) {
    bx_generator generator;
    int32_t n = 0;
    lease room;
    bx_status status = bx_generator_builtin(&generator, name, error);
    if (status == BX_OK) {
        status = bx_generator_check(&generator, &n, error);
    }
    if (status != BX_OK) {
        return status;
    }
    const size_t bytes = bx_priors_bytes(n, generator.n_levels);
    if (!lease_begin(&room, g->memory, bytes)) {
        return refuse_set(g, bytes, error);
    }
    status = bx_priors_builtin(out, name, error);
    lease_end(&room);
    return status;
}

/* Under `making`. */
static bx_status make_set(registry *g, const char *name, const bx_priors **out, bx_error *error) {
    bx_priors *made;
    set *s;
    bx_status status = make_counted(g, name, &made, error);
    if (status == BX_OK) {
        status = count_set(g, made, KEPT, &s, error);
    }
    if (status != BX_OK) {
        return status;
    }
    sweep(g);
    bool room;
    do {
        pthread_mutex_lock(&g->lock);
        room = g->n_kept < MOST_KEPT;
        pthread_mutex_unlock(&g->lock);
    } while (!room && reclaim_one(g, true));
    pthread_mutex_lock(&g->lock);
    s->role = room ? KEPT : RETIRED; /* all that are kept are in use */
    g->n_kept += room;
    insert_set(g, s);
    *out = bx_priors_ref(made);
    pthread_mutex_unlock(&g->lock);
    return BX_OK;
}

static bx_status catalog_priors(void *context, const char *name, const bx_priors **out, bx_error *error) {
    const struct view *view = context;
    registry *g = view->registry;
    const bx_priors *found = get_set(g, name);
    if (found) {
        *out = found;
        return BX_OK;
    }
    if (!bx_priors_is_builtin(name)) {
        return unknown(g, DEFINITION_PRIORS, name, error);
    }
    if (!view->makes) {
        return bx_fail(error, BX_BUSY, REGISTRY_LATER, "\"%.64s\" has to be made first", name);
    }
    pthread_mutex_lock(&g->making);
    bx_status status = BX_OK;
    found = get_set(g, name); /* another thread may have made it */
    if (found) {
        *out = found;
    } else {
        status = make_set(g, name, out, error);
    }
    pthread_mutex_unlock(&g->making);
    return status;
}

static bx_status catalog_criterion(void *context, const char *name, bx_criterion **out, bx_error *error) {
    registry *g = ((const struct view *)context)->registry;
    pthread_mutex_lock(&g->lock);
    const rule *r = *find_rule(g, name);
    const bx_criterion *found = r ? r->criterion : bx_criterion_preset(name);
    bx_criterion *copy = found ? bx_criterion_copy(found) : NULL;
    pthread_mutex_unlock(&g->lock);
    if (!found) {
        return unknown(g, DEFINITION_CRITERION, name, error);
    }
    if (!copy) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a criterion");
    }
    *out = copy;
    return BX_OK;
}

const proto_catalog *registry_catalog(const registry *g, bool makes) {
    return &g->catalogs[makes];
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

void registry_list(registry *g, definition kind, proto_writer *writer) {
    const bx_criterion *preset;
    pthread_mutex_lock(&g->lock);
    for (const set *s = g->sets; s && kind == DEFINITION_PRIORS; s = s->next) {
        if (s->role <= REGISTERED) {
            proto_priors_row(writer, s->priors);
        }
    }
    for (size_t i = 0; kind == DEFINITION_CRITERION && (preset = bx_criterion_at(i)); i++) {
        proto_criterion_row(writer, preset);
    }
    for (const rule *r = g->rules; r && kind == DEFINITION_CRITERION; r = r->next) {
        proto_criterion_row(writer, r->criterion);
    }
    pthread_mutex_unlock(&g->lock);
}

bx_status registry_has_criterion(registry *g, const char *name, bx_error *error) {
    pthread_mutex_lock(&g->lock);
    const bool found = *find_rule(g, name) || bx_criterion_preset(name);
    pthread_mutex_unlock(&g->lock);
    return found ? BX_OK : unknown(g, DEFINITION_CRITERION, name, error);
}

void registry_each_criterion(registry *g, void (*each)(void *context, const char *name), void *context) {
    const bx_criterion *preset;
    pthread_mutex_lock(&g->lock);
    for (size_t i = 0; (preset = bx_criterion_at(i)); i++) {
        each(context, preset->name);
    }
    for (const rule *r = g->rules; r; r = r->next) {
        each(context, r->criterion->name);
    }
    pthread_mutex_unlock(&g->lock);
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

/* A definition that has been read and counted; one of the two. */
typedef struct entry {
    set *set;
    rule *rule;
} entry;

static void free_entry(entry e) {
    free_set(e.set);
    free_rule(e.rule);
}

static bx_status read_rule(registry *g, const registration *d, rule **out, bx_error *error) {
    rule *r = calloc(1, sizeof *r);
    if (!r) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for another criterion");
    }
    bx_status status =
        proto_criterion_read(&r->criterion, d->name, d->body, d->bytes, registry_catalog(g, true), &d->limits, error);
    if (status == BX_OK) {
        const bx_classification *c = &r->criterion->classification;
        size_t bytes = sizeof *r + sizeof *r->criterion + 4 * ((size_t)c->n_alphas + (size_t)c->n_class_weights);
        if (!lease_begin(&r->lease, g->memory, bytes)) {
            status = bx_fail(error, BX_BUSY, "memory_full", "no memory for a criterion of %zu bytes", bytes);
        }
    }
    if (status != BX_OK) {
        free_rule(r);
        return status;
    }
    *out = r;
    return BX_OK;
}

static bx_status read_entry(registry *g, const registration *d, entry *out, bx_error *error) {
    const bx_priors *priors;
    entry e = {NULL, NULL};
    bx_status status;
    if (d->kind == DEFINITION_CRITERION) {
        status = read_rule(g, d, &e.rule, error);
    } else {
        status = proto_priors_read(&priors, d->name, d->encoding, d->body, d->bytes, &d->limits, error);
        if (status == BX_OK) {
            status = count_set(g, priors, REGISTERED, &e.set, error);
        }
    }
    if (status == BX_OK) {
        *out = e;
    }
    return status;
}

static size_t entry_bytes(entry e) {
    return e.set ? e.set->lease.reserved : e.rule ? e.rule->lease.reserved : 0;
}

/* Under the lock: take the definition of that name out, if there is one. A set that is in use stays, without its name,
 * and nothing is returned. */
static bool take_entry(registry *g, definition kind, const char *name, entry *out) {
    *out = (entry){NULL, NULL};
    if (kind == DEFINITION_CRITERION) {
        rule **at = find_rule(g, name);
        out->rule = *at;
        *at = *at ? (*at)->next : NULL;
        g->n_registered[kind] -= out->rule != NULL;
        g->registered_bytes -= entry_bytes(*out);
        return out->rule != NULL;
    }
    set **at = find_set(g, name), *s = *at;
    if (s) {
        g->n_registered[kind]--;
        g->registered_bytes -= s->lease.reserved;
        s->role = RETIRED;
        if (is_idle(s)) {
            out->set = s;
            *at = s->next;
        }
    }
    return s != NULL;
}

/* Take, and put in: one step, as others see it. */
static void install(registry *g, definition kind, const char *name, entry e) {
    entry old;
    pthread_mutex_lock(&g->lock);
    take_entry(g, kind, name, &old);
    if (e.set) {
        insert_set(g, e.set);
    } else {
        insert_rule(g, e.rule);
    }
    g->n_registered[kind]++;
    g->registered_bytes += entry_bytes(e);
    pthread_mutex_unlock(&g->lock);
    free_entry(old);
}

/* Whether `name` is registered; refused when it is not and there is no room for one more. */
static bx_status check_room(registry *g, definition kind, const char *name, bool *known, bx_error *error) {
    pthread_mutex_lock(&g->lock);
    *known = kind == DEFINITION_PRIORS ? *find_set(g, name) != NULL : *find_rule(g, name) != NULL;
    bool room = *known || g->n_registered[kind] < MOST_REGISTERED;
    pthread_mutex_unlock(&g->lock);
    return room ? BX_OK
                : bx_fail(error, BX_BUSY, "registry_full", "%d of this kind are registered, as many as are possible",
                          MOST_REGISTERED);
}

/* The same for the bytes of an entry that has been read. What is registered is never taken back, so it leaves most of
 * the budget to requests. */
static bx_status check_share(registry *g, definition kind, const char *name, entry e, bx_error *error) {
    const size_t most = memory_limit(g->memory) / SHARE;
    pthread_mutex_lock(&g->lock);
    const set *s = kind == DEFINITION_PRIORS ? *find_set(g, name) : NULL;
    rule *r = kind == DEFINITION_CRITERION ? *find_rule(g, name) : NULL;
    size_t others = g->registered_bytes - (s ? s->lease.reserved : r ? r->lease.reserved : 0);
    pthread_mutex_unlock(&g->lock);
    if (others + entry_bytes(e) <= most) {
        return BX_OK;
    }
    return bx_fail(error, BX_BUSY, "registry_full",
                   "it takes %zu bytes besides the %zu of what is registered: more than a quarter of --memory-limit",
                   entry_bytes(e), others);
}

/* ---- what is stored ---------------------------------------------------------------------------------------------- */

/* One row, read by the parser that took it. One that is refused stays where it is. */
static void load_row(void *context, const store_row *row) {
    registry *g = context;
    bx_error error = {0};
    registration d = {.name = row->name, .body = row->bytes, .bytes = row->n_bytes, .limits = g->limits};
    d.encoding = strcmp(row->type, PROTO_TYPE_JSON) ? PROTO_SAFETENSORS : PROTO_JSON;
    while (d.kind < N_DEFINITIONS && strcmp(row->kind, words[d.kind].kind)) {
        d.kind++;
    }
    if (d.kind == N_DEFINITIONS) {
        return;
    }
    bool known;
    entry e;
    bx_status status = registry_check_name(d.kind, d.name, &error);
    if (status == BX_OK) {
        status = check_room(g, d.kind, d.name, &known, &error);
    }
    if (status == BX_OK) {
        status = read_entry(g, &d, &e, &error);
    }
    if (status == BX_OK) {
        status = check_share(g, d.kind, d.name, e, &error);
        if (status == BX_OK) {
            install(g, d.kind, d.name, e);
        } else {
            free_entry(e);
        }
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
    store_row row = {words[d->kind].kind, d->name, d->encoding == PROTO_JSON ? PROTO_TYPE_JSON : PROTO_TYPE_SAFETENSORS,
                     d->body, d->bytes};
    if (e.set) {
        proto_priors_describe(description, e.set->priors);
    } else {
        proto_criterion_describe(description, e.rule->criterion);
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
        free_entry(e);
        return status;
    }
    install(g, d->kind, d->name, e);
    return BX_OK;
}

/* Whether a criterion may name that set as its own. */
static bool knows_set(registry *g, const char *name) {
    pthread_mutex_lock(&g->lock);
    bool known = !*name || bx_priors_is_builtin(name) || *find_set(g, name);
    pthread_mutex_unlock(&g->lock);
    return known;
}

bx_status registry_put(registry *g, const registration *d, bool *created, proto_buffer *description, bx_error *error) {
    bool known;
    entry e = {NULL, NULL};
    sweep(g);
    pthread_mutex_lock(&g->writing);
    bx_status status = registry_check_name(d->kind, d->name, error);
    if (status == BX_OK) {
        status = log_store(g, load(g, error), error);
    }
    if (status == BX_OK) {
        status = check_room(g, d->kind, d->name, &known, error);
    }
    if (status == BX_OK && d->condition != CONDITION_NONE && known != (d->condition == CONDITION_KNOWN)) {
        status = bx_fail(error, BX_INVALID, "precondition_failed", "the name \"%.64s\" is %s", d->name,
                         known ? "registered already" : "not registered");
    }
    if (status == BX_OK) {
        status = read_entry(g, d, &e, error);
    }
    if (status == BX_OK) {
        status = check_share(g, d->kind, d->name, e, error);
        if (status != BX_OK) {
            free_entry(e);
        }
    }
    if (status == BX_OK && e.rule && !knows_set(g, e.rule->criterion->priors)) {
        status = unknown(g, DEFINITION_PRIORS, e.rule->criterion->priors, error);
        bx_at(error, "criterion.priors");
        free_entry(e);
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
    bool stored = false, known = false;
    entry old = {NULL, NULL};
    pthread_mutex_lock(&g->writing);
    bx_status status = registry_check_name(kind, name, error);
    if (status == BX_OK) {
        status = log_store(g, load(g, error), error);
    }
    if (status == BX_OK) {
        status = log_store(g, store_delete(g->store, words[kind].kind, name, &stored, error), error);
    }
    if (status == BX_OK) {
        pthread_mutex_lock(&g->lock);
        known = take_entry(g, kind, name, &old);
        pthread_mutex_unlock(&g->lock);
    }
    pthread_mutex_unlock(&g->writing);
    free_entry(old);
    sweep(g);
    return status != BX_OK || stored || known ? status : unknown(g, kind, name, error);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static bx_status add_builtins(registry *g, bx_error *error) {
    for (size_t i = 0; bx_priors_name(i); i++) {
        bx_priors *priors;
        set *s;
        bx_status status = bx_priors_builtin(&priors, bx_priors_name(i), error);
        if (status == BX_OK) {
            status = count_set(g, priors, BUILT_IN, &s, error);
        }
        if (status != BX_OK) {
            return status;
        }
        insert_set(g, s);
    }
    return BX_OK;
}

bx_status registry_open(registry **out, memory *memory, data_dir *directory, bx_error *error) {
    registry *g = calloc(1, sizeof *g);
    store *store = g ? store_open(directory) : NULL;
    if (!store) {
        free(g);
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the registry");
    }
    pthread_mutex_init(&g->writing, NULL);
    pthread_mutex_init(&g->making, NULL);
    pthread_mutex_init(&g->lock, NULL);
    atomic_init(&g->loaded, false);
    atomic_init(&g->next_retry, 0);
    g->memory = memory;
    g->store = store;
    g->limits.json_memory = memory_limit(memory) / 2;
    for (int i = 0; i < 2; i++) {
        g->views[i] = (struct view){g, i == 1};
        g->catalogs[i] = (proto_catalog){&g->views[i], catalog_priors, catalog_criterion};
    }
    memory_on_full(memory, reclaim, g);
    bx_status status = store_claim(store, error);
    if (status == BX_OK) {
        status = add_builtins(g, error);
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
    memory_on_full(g->memory, NULL, NULL);
    for (set *s; (s = g->sets);) {
        g->sets = s->next;
        free_set(s);
    }
    for (rule *r; (r = g->rules);) {
        g->rules = r->next;
        free_rule(r);
    }
    store_close(g->store);
    pthread_mutex_destroy(&g->writing);
    pthread_mutex_destroy(&g->making);
    pthread_mutex_destroy(&g->lock);
    free(g);
}
