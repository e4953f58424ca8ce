/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalog: its tables, sets that are made of patterns and go again, and what is registered. See catalog.h.
 */
#include <stdlib.h>
#include <string.h>

#include "catalog.h"

#define MOST_REGISTERED 64 /* of each kind */
#define MOST_KEPT       16
#define SHARE           4 /* registered sets and criteria take this part of the budget at most */

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

struct catalog {
    memory *memory;
    bool (*complete)(void *context);
    void *context;
    pthread_mutex_t making, lock;
    /* under lock */
    set *sets;   /* the built-in ones first, then by name */
    rule *rules; /* by name */
    unsigned long clock;
    int n_kept, n_registered[N_DEFINITIONS];
    size_t registered_bytes;
    /* what may be named; each view's context */
    struct view {
        struct catalog *catalog;
        bool makes;
    } views[2];
    proto_catalog named[2];
};

static const struct {
    const char *code, *word, *route;
} words[N_DEFINITIONS] = {
    [DEFINITION_PRIORS] = {"unknown_priors", "prior set", "/v1/priors"},
    [DEFINITION_CRITERION] = {"unknown_criterion", "criterion", "/v1/criteria"},
};

/* ---- tables, under the lock -------------------------------------------------------------------------------------- */

static set **find_set(catalog *c, const char *name) {
    set **at = &c->sets;
    while (*at && ((*at)->role == RETIRED || strcmp((*at)->priors->name, name))) {
        at = &(*at)->next;
    }
    return at;
}

static rule **find_rule(catalog *c, const char *name) {
    rule **at = &c->rules;
    while (*at && strcmp((*at)->criterion->name, name)) {
        at = &(*at)->next;
    }
    return at;
}

static void insert_set(catalog *c, set *s) {
    set **at = &c->sets;
    while (*at && ((*at)->role == BUILT_IN || strcmp((*at)->priors->name, s->priors->name) < 0)) {
        at = &(*at)->next;
    }
    s->next = *at;
    s->used = ++c->clock;
    *at = s;
}

static void insert_rule(catalog *c, rule *r) {
    rule **at = &c->rules;
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
static set *take_idle(catalog *c, bool kept_too) {
    set **found = NULL;
    for (set **at = &c->sets; *at; at = &(*at)->next) {
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
        c->n_kept -= s->role == KEPT;
    }
    return s;
}

/* The names that may be meant, for bx_nearest, which has no context of its own. */
static _Thread_local catalog *asked;

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

static bx_status unknown(catalog *c, definition kind, const char *name, bx_error *error) {
    if (!c->complete(c->context)) {
        return bx_fail(error, BX_BUSY, "store_unavailable",
                       "whether there is a %s \"%.64s\" is not known: what is registered could not be read yet",
                       words[kind].word, name);
    }
    pthread_mutex_lock(&c->lock);
    asked = c;
    const char *near = bx_nearest(name, kind == DEFINITION_PRIORS ? set_name : rule_name);
    bx_fail(error, BX_INVALID, words[kind].code, "there is no %s \"%.64s\"; %s%s%s%s lists them", words[kind].word,
            name, near ? "did you mean \"" : "", near ? near : "", near ? "\"? " : "", words[kind].route);
    pthread_mutex_unlock(&c->lock);
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
static bool reclaim_one(catalog *c, bool kept_too) {
    pthread_mutex_lock(&c->lock);
    set *s = take_idle(c, kept_too);
    pthread_mutex_unlock(&c->lock);
    free_set(s);
    return s != NULL;
}

static bool reclaim(void *context) {
    return reclaim_one(context, true);
}

static void sweep(catalog *c) {
    while (reclaim_one(c, false)) {
    }
}

static bx_status refuse_set(const catalog *c, size_t bytes, bx_error *error) {
    bool never = bytes > memory_limit(c->memory);
    return bx_fail(error, never ? BX_TOO_LARGE : BX_BUSY, never ? "too_expensive" : "memory_full",
                   "no memory for a prior set of %zu bytes%s", bytes,
                   never ? ", more than --memory-limit" : " at the moment");
}

/* A new entry, counted. Takes the set. */
static bx_status count_set(catalog *c, const bx_priors *priors, role role, set **out, bx_error *error) {
    const size_t bytes = bx_priors_bytes(priors->n, priors->n_levels);
    set *s = calloc(1, sizeof *s);
    bx_status status = BX_OK;
    if (!s) {
        status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for another prior set");
    } else if (role != BUILT_IN && !lease_begin(&s->lease, c->memory, bytes)) {
        status = refuse_set(c, bytes, error);
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

static const bx_priors *get_set(catalog *c, const char *name) {
    pthread_mutex_lock(&c->lock);
    set *s = *find_set(c, name);
    const bx_priors *priors = s ? bx_priors_ref(s->priors) : NULL;
    if (s) {
        s->used = ++c->clock;
    }
    pthread_mutex_unlock(&c->lock);
    return priors;
}

/* The set of that name, made in memory that is counted before it is taken. */
static bx_status make_counted(catalog *c, const char *name, bx_priors **out, bx_error *error) {
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
    if (!lease_begin(&room, c->memory, bytes)) {
        return refuse_set(c, bytes, error);
    }
    status = bx_priors_builtin(out, name, error);
    lease_end(&room);
    return status;
}

/* Under `making`. */
static bx_status make_set(catalog *c, const char *name, const bx_priors **out, bx_error *error) {
    bx_priors *made;
    set *s;
    bx_status status = make_counted(c, name, &made, error);
    if (status == BX_OK) {
        status = count_set(c, made, KEPT, &s, error);
    }
    if (status != BX_OK) {
        return status;
    }
    sweep(c);
    bool room;
    do {
        pthread_mutex_lock(&c->lock);
        room = c->n_kept < MOST_KEPT;
        pthread_mutex_unlock(&c->lock);
    } while (!room && reclaim_one(c, true));
    pthread_mutex_lock(&c->lock);
    s->role = room ? KEPT : RETIRED; /* all that are kept are in use */
    c->n_kept += room;
    insert_set(c, s);
    *out = bx_priors_ref(made);
    pthread_mutex_unlock(&c->lock);
    return BX_OK;
}

static bx_status find_priors(void *context, const char *name, const bx_priors **out, bx_error *error) {
    const struct view *view = context;
    catalog *c = view->catalog;
    const bx_priors *found = get_set(c, name);
    if (found) {
        *out = found;
        return BX_OK;
    }
    if (!bx_priors_is_builtin(name)) {
        return unknown(c, DEFINITION_PRIORS, name, error);
    }
    if (!view->makes) {
        return bx_fail(error, BX_BUSY, REGISTRY_LATER, "\"%.64s\" has to be made first", name);
    }
    pthread_mutex_lock(&c->making);
    bx_status status = BX_OK;
    found = get_set(c, name); /* another thread may have made it */
    if (found) {
        *out = found;
    } else {
        status = make_set(c, name, out, error);
    }
    pthread_mutex_unlock(&c->making);
    return status;
}

static bx_status find_criterion(void *context, const char *name, bx_criterion **out, bx_error *error) {
    catalog *c = ((const struct view *)context)->catalog;
    const bx_criterion *found = bx_criterion_preset(name); /* whose names nobody can register */
    bx_criterion *copy = found ? bx_criterion_copy(found) : NULL;
    if (!found) {
        pthread_mutex_lock(&c->lock);
        const rule *r = *find_rule(c, name);
        found = r ? r->criterion : NULL;
        copy = found ? bx_criterion_copy(found) : NULL;
        pthread_mutex_unlock(&c->lock);
    }
    if (!found) {
        return unknown(c, DEFINITION_CRITERION, name, error);
    }
    if (!copy) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a criterion");
    }
    *out = copy;
    return BX_OK;
}

const proto_catalog *catalog_view(const catalog *c, bool makes) {
    return &c->named[makes];
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

void catalog_list(catalog *c, definition kind, proto_writer *writer) {
    const bx_criterion *preset;
    pthread_mutex_lock(&c->lock);
    for (const set *s = c->sets; s && kind == DEFINITION_PRIORS; s = s->next) {
        if (s->role <= REGISTERED) {
            proto_priors_row(writer, s->priors);
        }
    }
    for (size_t i = 0; kind == DEFINITION_CRITERION && (preset = bx_criterion_at(i)); i++) {
        proto_criterion_row(writer, preset);
    }
    for (const rule *r = c->rules; r && kind == DEFINITION_CRITERION; r = r->next) {
        proto_criterion_row(writer, r->criterion);
    }
    pthread_mutex_unlock(&c->lock);
}

bx_status catalog_has_criterion(catalog *c, const char *name, bx_error *error) {
    pthread_mutex_lock(&c->lock);
    const bool found = *find_rule(c, name) || bx_criterion_preset(name);
    pthread_mutex_unlock(&c->lock);
    return found ? BX_OK : unknown(c, DEFINITION_CRITERION, name, error);
}

void catalog_each_criterion(catalog *c, void (*each)(void *context, const char *name), void *context) {
    const bx_criterion *preset;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; (preset = bx_criterion_at(i)); i++) {
        each(context, preset->name);
    }
    for (const rule *r = c->rules; r; r = r->next) {
        each(context, r->criterion->name);
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

void entry_free(entry e) {
    free_set(e.set);
    free_rule(e.rule);
}

static bx_status read_rule(catalog *c, const registration *d, rule **out, bx_error *error) {
    rule *r = calloc(1, sizeof *r);
    if (!r) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for another criterion");
    }
    bx_status status =
        proto_criterion_read(&r->criterion, d->name, d->body, d->bytes, catalog_view(c, true), &d->limits, error);
    if (status == BX_OK) {
        const bx_classification *stage = &r->criterion->classification;
        size_t lists = 4 * ((size_t)stage->n_alphas + (size_t)stage->n_class_weights);
        size_t bytes = sizeof *r + sizeof *r->criterion + lists;
        if (!lease_begin(&r->lease, c->memory, bytes)) {
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

static size_t entry_bytes(entry e) {
    return e.set ? e.set->lease.reserved : e.rule ? e.rule->lease.reserved : 0;
}

bx_status catalog_check_room(catalog *c, definition kind, const char *name, bool *known, bx_error *error) {
    pthread_mutex_lock(&c->lock);
    *known = kind == DEFINITION_PRIORS ? *find_set(c, name) != NULL : *find_rule(c, name) != NULL;
    bool room = *known || c->n_registered[kind] < MOST_REGISTERED;
    pthread_mutex_unlock(&c->lock);
    return room ? BX_OK
                : bx_fail(error, BX_BUSY, "registry_full", "%d of this kind are registered, as many as are possible",
                          MOST_REGISTERED);
}

/* What is registered is never taken back, so it leaves most of the budget to requests. */
static bx_status check_share(catalog *c, definition kind, const char *name, entry e, bx_error *error) {
    const size_t most = memory_limit(c->memory) / SHARE;
    pthread_mutex_lock(&c->lock);
    const set *s = kind == DEFINITION_PRIORS ? *find_set(c, name) : NULL;
    rule *r = kind == DEFINITION_CRITERION ? *find_rule(c, name) : NULL;
    size_t others = c->registered_bytes - (s ? s->lease.reserved : r ? r->lease.reserved : 0);
    pthread_mutex_unlock(&c->lock);
    if (others + entry_bytes(e) <= most) {
        return BX_OK;
    }
    return bx_fail(error, BX_BUSY, "registry_full",
                   "it takes %zu bytes besides the %zu of what is registered: more than a quarter of --memory-limit",
                   entry_bytes(e), others);
}

bx_status catalog_read(catalog *c, const registration *d, entry *out, bx_error *error) {
    const bx_priors *priors;
    entry e = {NULL, NULL};
    bx_status status;
    sweep(c);
    if (d->kind == DEFINITION_CRITERION) {
        status = read_rule(c, d, &e.rule, error);
    } else {
        status = proto_priors_read(&priors, d->name, d->encoding, d->body, d->bytes, &d->limits, error);
        if (status == BX_OK) {
            status = count_set(c, priors, REGISTERED, &e.set, error);
        }
    }
    if (status == BX_OK) {
        status = check_share(c, d->kind, d->name, e, error);
    }
    if (status != BX_OK) {
        entry_free(e);
        return status;
    }
    *out = e;
    return BX_OK;
}

static bool knows_set(catalog *c, const char *name) {
    pthread_mutex_lock(&c->lock);
    bool known = !*name || bx_priors_is_builtin(name) || *find_set(c, name);
    pthread_mutex_unlock(&c->lock);
    return known;
}

bx_status catalog_check_priors(catalog *c, entry e, bx_error *error) {
    if (!e.rule || knows_set(c, e.rule->criterion->priors)) {
        return BX_OK;
    }
    unknown(c, DEFINITION_PRIORS, e.rule->criterion->priors, error);
    return bx_at(error, "criterion.priors");
}

void entry_describe(entry e, proto_buffer *out) {
    if (e.set) {
        proto_priors_describe(out, e.set->priors);
    } else {
        proto_criterion_describe(out, e.rule->criterion);
    }
}

/* ---- in and out -------------------------------------------------------------------------------------------------- */

/* Under the lock: take the definition of that name out, if there is one. A set that is in use stays, without its name,
 * and nothing is returned. */
static bool take_entry(catalog *c, definition kind, const char *name, entry *out) {
    *out = (entry){NULL, NULL};
    if (kind == DEFINITION_CRITERION) {
        rule **at = find_rule(c, name);
        out->rule = *at;
        *at = *at ? (*at)->next : NULL;
        c->n_registered[kind] -= out->rule != NULL;
        c->registered_bytes -= entry_bytes(*out);
        return out->rule != NULL;
    }
    set **at = find_set(c, name), *s = *at;
    if (s) {
        c->n_registered[kind]--;
        c->registered_bytes -= s->lease.reserved;
        s->role = RETIRED;
        if (is_idle(s)) {
            out->set = s;
            *at = s->next;
        }
    }
    return s != NULL;
}

void catalog_install(catalog *c, entry e) {
    const definition kind = e.set ? DEFINITION_PRIORS : DEFINITION_CRITERION;
    const char *name = e.set ? e.set->priors->name : e.rule->criterion->name;
    entry old;
    pthread_mutex_lock(&c->lock);
    take_entry(c, kind, name, &old);
    if (e.set) {
        insert_set(c, e.set);
    } else {
        insert_rule(c, e.rule);
    }
    c->n_registered[kind]++;
    c->registered_bytes += entry_bytes(e);
    pthread_mutex_unlock(&c->lock);
    entry_free(old);
}

bx_status catalog_remove(catalog *c, definition kind, const char *name, bx_error *error) {
    entry old;
    pthread_mutex_lock(&c->lock);
    const bool known = take_entry(c, kind, name, &old);
    pthread_mutex_unlock(&c->lock);
    entry_free(old);
    sweep(c);
    return known ? BX_OK : unknown(c, kind, name, error);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static bx_status add_builtins(catalog *c, bx_error *error) {
    for (size_t i = 0; bx_priors_name(i); i++) {
        bx_priors *priors;
        set *s;
        bx_status status = bx_priors_builtin(&priors, bx_priors_name(i), error);
        if (status == BX_OK) {
            status = count_set(c, priors, BUILT_IN, &s, error);
        }
        if (status != BX_OK) {
            return status;
        }
        insert_set(c, s);
    }
    return BX_OK;
}

bx_status catalog_new(catalog **out, memory *memory, bool (*complete)(void *context), void *context, bx_error *error) {
    catalog *c = calloc(1, sizeof *c);
    if (!c) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the catalog");
    }
    pthread_mutex_init(&c->making, NULL);
    pthread_mutex_init(&c->lock, NULL);
    c->memory = memory;
    c->complete = complete;
    c->context = context;
    for (int i = 0; i < 2; i++) {
        c->views[i] = (struct view){c, i == 1};
        c->named[i] = (proto_catalog){&c->views[i], find_priors, find_criterion};
    }
    memory_on_full(memory, reclaim, c);
    bx_status status = add_builtins(c, error);
    if (status != BX_OK) {
        catalog_free(c);
        return status;
    }
    *out = c;
    return BX_OK;
}

void catalog_free(catalog *c) {
    if (!c) {
        return;
    }
    memory_on_full(c->memory, NULL, NULL);
    for (set *s; (s = c->sets);) {
        c->sets = s->next;
        free_set(s);
    }
    for (rule *r; (r = c->rules);) {
        c->rules = r->next;
        free_rule(r);
    }
    pthread_mutex_destroy(&c->making);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
