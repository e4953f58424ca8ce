/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be named, in memory: the built-in prior sets and presets, what was registered, and sets made of a pattern
 * such as retinanet-800x800, of which the last few are kept. Of registry.c, which knows where registrations come from
 * and where they are stored.
 *
 * Sets are shared by reference, so one that is replaced, deleted or evicted lives on while requests use it. Every set
 * but the built-in ones counts against the memory budget; a retired one does so until, after its last user, something
 * is registered or made or the budget has no room. Then kept ones go too, the least recently used first.
 *
 * Any thread may call anything at any time. One lock guards the tables, and is held only while they are read or
 * changed: nothing is reserved, made or read under it, because the budget calls back when it is full. A second, taken
 * before it, is held while a pattern's set is made, so that it is made once. Of what is read before it is installed,
 * the caller sees to it that there is one at a time.
 */
#ifndef CATALOG_H
#define CATALOG_H

#include "server.h"

typedef struct catalog catalog;

/* A definition that has been read and counted; one of the two. The caller's until it is installed. */
typedef struct entry {
    struct set *set;
    struct rule *rule;
} entry;

/* With what is built in; `memory` calls back until catalog_free. `complete` says whether a name that is not here is one
 * that there is not; it is called without any lock of the catalog. Errors: BX_NOMEM. */
BX_MUST_USE bx_status catalog_new(catalog **catalog, memory *memory, bool (*complete)(void *context), void *context,
                                  bx_error *error);
/* NULL is accepted. */
void catalog_free(catalog *catalog);

/* These are registry_catalog, registry_list, registry_has_criterion and registry_each_criterion (server.h). */
const proto_catalog *catalog_view(const catalog *catalog, bool makes);
void catalog_list(catalog *catalog, definition kind, proto_writer *writer);
BX_MUST_USE bx_status catalog_has_criterion(catalog *catalog, const char *name, bx_error *error);
void catalog_each_criterion(catalog *catalog, void (*each)(void *context, const char *name), void *context);

/* Whether `name` is registered: *known. Errors: BX_BUSY "registry_full": it is not, and there is no room for one more.
 */
BX_MUST_USE bx_status catalog_check_room(catalog *catalog, definition kind, const char *name, bool *known,
                                         bx_error *error);
/* Read a definition. Errors: those of its body; BX_BUSY "memory_full", or "registry_full" where it would take too much
 * of the budget; BX_NOMEM. */
BX_MUST_USE bx_status catalog_read(catalog *catalog, const registration *registration, entry *entry, bx_error *error);
/* Whether there is the set that a criterion names as its own. Errors: BX_INVALID "unknown_priors", path
 * "criterion.priors". */
BX_MUST_USE bx_status catalog_check_priors(catalog *catalog, entry entry, bx_error *error);
/* Put an entry in, and out what had its name: one step, as others see it. Takes the entry. */
void catalog_install(catalog *catalog, entry entry);
/* Errors: BX_INVALID "unknown_priors" or "unknown_criterion". */
bx_status catalog_remove(catalog *catalog, definition kind, const char *name, bx_error *error);

/* What GET answers. */
void entry_describe(entry entry, proto_buffer *out);
void entry_free(entry entry);

#endif
