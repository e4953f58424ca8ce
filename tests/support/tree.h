/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text read back with proto's own reader, and what is where in it: "a.b.0.c". Missing values fail the test.
 */
#ifndef TREE_H
#define TREE_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"

static inline proto_node *parse(const char *text, size_t bytes) {
    proto_node *root;
    bx_error error = {0};
    ck_assert_msg(proto_json_parse(&root, text, bytes, 1 << 24, &error) == BX_OK, "%s in %.*s", error.text, (int)bytes,
                  text);
    return root;
}

/* Follow "a.b.0.c". NULL when it leads nowhere. */
static inline const proto_node *get(const proto_node *node, const char *path) {
    char copy[128];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *word = strtok(copy, "."); word && node; word = strtok(NULL, "."))
        node =
            proto_json_kind(node) == PROTO_ARRAY ? proto_json_at(node, (size_t)atoi(word)) : proto_json_get(node, word);
    return node;
}

static inline int64_t get_int(const proto_node *node, const char *path) {
    const proto_node *value = get(node, path);
    ck_assert_msg(value && proto_json_kind(value) == PROTO_INTEGER, "%s", path);
    return proto_json_int(value);
}

static inline const char *get_string(const proto_node *node, const char *path) {
    const proto_node *value = get(node, path);
    ck_assert_msg(value && proto_json_kind(value) == PROTO_STRING, "%s", path);
    return proto_json_string(value);
}

static inline double get_real(const proto_node *node, const char *path) {
    const proto_node *value = get(node, path);
    ck_assert_msg(value && (proto_json_kind(value) == PROTO_INTEGER || proto_json_kind(value) == PROTO_REAL), "%s",
                  path);
    return proto_json_number(value);
}

static inline bool is_null(const proto_node *node, const char *path) {
    return get(node, path) && proto_json_kind(get(node, path)) == PROTO_NULL;
}

#endif
