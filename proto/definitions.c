/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What requests name and callers define: the built-in catalog, names, and prior sets given as generators, boxes or
 * tensors.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- the built-in catalog ---------------------------------------------------------------------------------------- */

static bx_status builtin_priors(void *context, const char *name, const bx_priors **out, bx_error *error) {
    (void)context;
    bx_priors *made;
    bx_status status = bx_priors_builtin(&made, name, error);
    if (!status)
        *out = made;
    return status;
}

static const char *criterion_name_at(size_t i) {
    const bx_criterion *criterion = bx_criterion_at(i);
    return criterion ? criterion->name : NULL;
}

static bx_status builtin_criterion(void *context, const char *name, bx_criterion **out, bx_error *error) {
    (void)context;
    const bx_criterion *preset = bx_criterion_preset(name);
    if (!preset)
        return proto_refuse(error, "unknown_criterion", "criterion", name, criterion_name_at);
    bx_criterion *copy = bx_criterion_copy(preset);
    if (!copy)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the criterion");
    *out = copy;
    return BX_OK;
}

const proto_catalog proto_catalog_builtin = {.priors = builtin_priors, .criterion = builtin_criterion};

/* ---- names ------------------------------------------------------------------------------------------------------- */

#define NAME_CHARACTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

bx_status proto_name_check(const char *name, bx_error *error) {
    size_t plain = strspn(name, NAME_CHARACTERS);
    if (plain >= 1 && plain <= 63 && name[plain] == '\0' && !strchr("._-", name[0]))
        return BX_OK;
    return bx_fail(error, BX_INVALID, "invalid_name",
                   "a name is 1 to 63 of the letters A-Z and a-z, digits, '.', '_' and '-', and begins with a letter "
                   "or a digit, not \"%.64s\"",
                   name);
}

bx_status proto_run_check(const char *name, bx_error *error) {
    const size_t plain = strspn(name, NAME_CHARACTERS);
    const bool dots = !strcmp(name, ".") || !strcmp(name, ".."); /* clients take these out of a path */
    if (plain >= 1 && plain <= PROTO_RUN_LENGTH && name[plain] == '\0' && !dots)
        return BX_OK;
    return bx_fail(
        error, BX_INVALID, "invalid_option",
        "a run is 1 to %d of the letters A-Z and a-z, digits, '.', '_' and '-', and neither \".\" nor \"..\"; "
        "not \"%.70s\"",
        PROTO_RUN_LENGTH, name);
}

/* ---- prior sets -------------------------------------------------------------------------------------------------- */

static bx_status check_count(int64_t n, bx_error *error) {
    if (n >= 1 && n <= BX_MAX_PRIORS)
        return BX_OK;
    bx_fail(error, BX_SHAPE, "shape", "%lld priors; there must be 1 to %d", (long long)n, BX_MAX_PRIORS);
    return bx_at(error, "priors");
}

static bx_status no_memory(bx_error *error) {
    return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the priors");
}

bx_status proto_reserve(const proto_limits *limits, size_t bytes, bx_error *error) {
    return limits->reserve ? limits->reserve(limits->context, bytes, error) : BX_OK;
}

static bx_status read_generator(bx_priors **priors, const proto_node *object, const proto_limits *limits,
                                bx_error *error) {
    int32_t n;
    bx_generator *generator = malloc(sizeof *generator);
    if (!generator)
        return no_memory(error);
    bx_status status = proto_generator_read(generator, object, error);
    if (!status)
        status = bx_generator_check(generator, &n, error);
    if (!status)
        status = proto_reserve(limits, bx_priors_bytes(n, generator->n_levels), error);
    if (!status)
        status = bx_priors_generate(priors, generator, error);
    free(generator);
    return status;
}

static bx_status read_boxes(bx_priors **priors, const proto_value *value, const proto_limits *limits, bx_error *error) {
    proto_dense rows = {.path = "priors"};
    bx_status status = proto_dense_read(&rows, value->document, value->node, error);
    if (!status)
        status = check_count(rows.shape[0], error);
    if (status)
        return status;
    if (rows.shape[1] != 4) {
        bx_fail(error, BX_SHAPE, "shape", "a prior is cx, cy, w, h; these have %lld numbers", (long long)rows.shape[1]);
        return bx_at(error, "priors");
    }
    status = proto_reserve(limits, bx_priors_bytes((int32_t)rows.shape[0], 1), error);
    return status ? status : bx_priors_new(priors, rows.data, (int32_t)rows.shape[0], error);
}

bx_status proto_priors_from_value(bx_priors **priors, const proto_value *value, const proto_limits *limits,
                                  bx_error *error) {
    return proto_json_kind(value->node) == PROTO_OBJECT ? read_generator(priors, value->node, limits, error)
                                                        : read_boxes(priors, value, limits, error);
}

bx_status proto_priors_from_tensor(bx_priors **priors, const proto_tensor *tensor, const proto_limits *limits,
                                   bx_error *error) {
    bx_status status = check_count(tensor->shape[0], error);
    if (status)
        return status;
    const size_t n = (size_t)tensor->shape[0];
    status = proto_reserve(limits, n * 4 * sizeof(float) + bx_priors_bytes((int32_t)n, 1), error);
    if (status)
        return status;
    if (tensor->view.dtype == BX_F32)
        return bx_priors_new(priors, tensor->view.data, (int32_t)n, error);
    float *boxes = malloc(n * 4 * sizeof *boxes);
    if (!boxes)
        return no_memory(error);
    bx_tensor_to_f32(boxes, tensor->view, 0, n * 4);
    status = bx_priors_new(priors, boxes, (int32_t)n, error);
    free(boxes);
    return status;
}

/* A generator object, or {"priors": [[cx,cy,w,h],...]}. */
static bx_status read_json(bx_priors **priors, const void *body, size_t bytes, const proto_limits *limits,
                           bx_error *error) {
    static const proto_place places[] = {{{"priors"}, BX_F32, 2, 2, 0}, {{NULL}, BX_F32, 0, 0, 0}};
    proto_document document;
    bx_status status = proto_document_read(&document, body, bytes, NULL, places, limits, error);
    if (status)
        return status;
    const proto_value boxes = {.node = proto_json_get(document.root, "priors"), .document = &document};
    if (!boxes.node) {
        status = read_generator(priors, document.root, limits, error);
    } else if (proto_json_size(document.root) > 1) {
        bx_fail(error, BX_INVALID, "unknown_member", "\"priors\" stands alone: boxes have no other members");
        status = bx_at(error, "priors");
    } else {
        status = read_boxes(priors, &boxes, limits, error);
    }
    proto_document_fini(&document);
    return status;
}

static bx_status read_tensors(bx_priors **priors, const void *body, size_t bytes, const proto_limits *limits,
                              bx_error *error) {
    proto_container container;
    const proto_tensor *tensor;
    bx_status status = proto_container_read(&container, body, bytes, error);
    if (status)
        return status;
    status = proto_find_priors(&tensor, &container, error);
    if (!status)
        status = proto_priors_from_tensor(priors, tensor, limits, error);
    proto_container_fini(&container);
    return status;
}

bx_status proto_priors_read(const bx_priors **priors, const char *name, proto_encoding encoding, const void *body,
                            size_t bytes, const proto_limits *limits, bx_error *error) {
    bx_error unwanted = {0};
    error = error ? error : &unwanted;
    bx_priors *made = NULL;
    bx_status status = proto_name_check(name, error);
    if (!status)
        status = encoding == PROTO_JSON ? read_json(&made, body, bytes, limits, error)
                                        : read_tensors(&made, body, bytes, limits, error);
    if (!status)
        status = bx_priors_rename(made, name, error);
    if (status)
        bx_priors_free(made);
    else
        *priors = made;
    return status;
}
