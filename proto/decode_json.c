/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON body to a draft. Arrays are measured before anything is allocated, so a body cannot claim more memory than it
 * has values; then numbers are read once, each rounded to float32.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

static bx_status mismatch(bx_error *error, const char *expected, const proto_node *got) {
    return bx_fail(error, BX_INVALID, "type_mismatch", "expected %s, got %s", expected, proto_json_kind_name(got));
}

/* ---- dense arrays: nested, or {"shape", "data"} ------------------------------------------------------------------ */

#define MAX_AXES 3

/* A numeric array of `axes` dimensions that is being read. */
struct dense {
    const char *path;
    int axes;
    const proto_node *node; /* the nested arrays, or the flat one */
    bool flat;
    int64_t shape[MAX_AXES]; /* -1 until the first array of that axis is seen */
    size_t at[MAX_AXES];     /* where we are, outermost first */
};

/* Locate a failure at the first `axes` indices of dense->at. */
static bx_status dense_at(const struct dense *dense, int axes, bx_error *error) {
    char where[80] = "";
    size_t used = 0;
    for (int i = 0; i < axes; i++)
        used += (size_t)snprintf(where + used, sizeof where - used, "[%zu]", dense->at[i]);
    return bx_at(error, "%s%s", dense->path, where);
}

/* Check that all arrays at one depth are equally long. */
static bx_status measure(struct dense *dense, const proto_node *node, int axis, bx_error *error) {
    int64_t *length = &dense->shape[axis];
    if (proto_json_kind(node) != PROTO_ARRAY) {
        if (*length < 0)
            mismatch(error, "an array", node);
        else
            bx_fail(error, BX_SHAPE, "ragged_array", "%s stands where the first array beside it has %lld elements",
                    proto_json_kind_name(node), (long long)*length);
        return dense_at(dense, axis, error);
    }
    size_t n = proto_json_size(node);
    if (*length < 0)
        *length = (int64_t)n;
    if (n != (size_t)*length) {
        bx_fail(error, BX_SHAPE, "ragged_array", "this array has %zu elements, the first one beside it has %lld", n,
                (long long)*length);
        return dense_at(dense, axis, error);
    }
    for (size_t i = 0; axis + 1 < dense->axes && i < n; i++) {
        dense->at[axis] = i;
        bx_status status = measure(dense, proto_json_at(node, i), axis + 1, error);
        if (status)
            return status;
    }
    return BX_OK;
}

/* {"shape": [...], "data": [...]} */
static bx_status measure_flat(struct dense *dense, const proto_node *object, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(object, &iterator, &name, &value))
        if (strcmp(name, "shape") != 0 && strcmp(name, "data") != 0) {
            bx_fail(error, BX_INVALID, "unknown_member", "a dense array has shape and data, not \"%.64s\"", name);
            return proto_at_member(error, dense->path, name);
        }
    const proto_node *shape = proto_json_get(object, "shape"), *data = proto_json_get(object, "data");
    if (!shape || !data) {
        bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", shape ? "data" : "shape");
        return bx_at(error, "%s.%s", dense->path, shape ? "data" : "shape");
    }
    if (proto_json_kind(shape) != PROTO_ARRAY || proto_json_kind(data) != PROTO_ARRAY) {
        bool first = proto_json_kind(shape) != PROTO_ARRAY;
        mismatch(error, "an array", first ? shape : data);
        return bx_at(error, "%s.%s", dense->path, first ? "shape" : "data");
    }
    if (proto_json_size(shape) != (size_t)dense->axes) {
        bx_fail(error, BX_SHAPE, "shape", "shape has %zu dimensions, %d are needed", proto_json_size(shape),
                dense->axes);
        return bx_at(error, "%s.shape", dense->path);
    }
    int64_t product = 1;
    for (int i = 0; i < dense->axes; i++) {
        const proto_node *dim = proto_json_at(shape, (size_t)i);
        if (proto_json_kind(dim) != PROTO_INTEGER || proto_json_int(dim) < 0) {
            mismatch(error, "an integer, not negative", dim);
            return bx_at(error, "%s.shape[%d]", dense->path, i);
        }
        dense->shape[i] = proto_json_int(dim);
        if (__builtin_mul_overflow(product, dense->shape[i], &product))
            product = -1;
        if (product < 0)
            break;
    }
    if (product < 0 || (size_t)product != proto_json_size(data)) {
        bx_fail(error, BX_SHAPE, "shape", "data has %zu numbers, which is not what its shape says",
                proto_json_size(data));
        return bx_at(error, "%s.data", dense->path);
    }
    dense->node = data;
    dense->flat = true;
    return BX_OK;
}

static bx_status dense_measure(struct dense *dense, const proto_node *node, bx_error *error) {
    for (int i = 0; i < dense->axes; i++)
        dense->shape[i] = -1;
    dense->node = node;
    if (proto_json_kind(node) == PROTO_OBJECT)
        return measure_flat(dense, node, error);
    bx_status status = measure(dense, node, 0, error);
    for (int i = 0; i < dense->axes; i++)
        if (dense->shape[i] < 0)
            dense->shape[i] = 0;
    return status;
}

/* Read the numbers below `node` to *out, and move it on. */
static bx_status fill(struct dense *dense, const proto_node *node, int axis, float **out, bx_error *error) {
    size_t n = proto_json_size(node);
    if (dense->flat || axis + 1 == dense->axes) {
        size_t read = proto_json_floats(node, *out);
        *out += n;
        if (read == n)
            return BX_OK;
        mismatch(error, "a number", proto_json_at(node, read));
        if (dense->flat)
            return bx_at(error, "%s.data[%zu]", dense->path, read);
        dense->at[axis] = read;
        return dense_at(dense, axis + 1, error);
    }
    for (size_t i = 0; i < n; i++) {
        dense->at[axis] = i;
        bx_status status = fill(dense, proto_json_at(node, i), axis + 1, out, error);
        if (status)
            return status;
    }
    return BX_OK;
}

static bx_status dense_read(struct dense *dense, float *out, bx_error *error) {
    return fill(dense, dense->node, 0, &out, error);
}

/* ---- annotations ------------------------------------------------------------------------------------------------- */

static const char *annotation_member_at(size_t i) {
    static const char *const names[] = {"boxes", "labels", NULL};
    return i < 3 ? names[i] : NULL;
}

/* Check the form of one image's annotations; adds its objects to *n_objects. */
static bx_status measure_annotation(const proto_node *annotation, size_t image, size_t *n_objects, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(annotation) != PROTO_OBJECT) {
        mismatch(error, "an object with boxes and labels", annotation);
        return bx_at(error, "annotations[%zu]", image);
    }
    while (proto_json_next(annotation, &iterator, &name, &value)) {
        if (strcmp(name, "boxes") != 0 && strcmp(name, "labels") != 0) {
            char parent[40];
            snprintf(parent, sizeof parent, "annotations[%zu]", image);
            proto_refuse(error, "unknown_member", "annotation member", name, annotation_member_at);
            return proto_at_member(error, parent, name);
        }
        if (proto_json_kind(value) != PROTO_ARRAY) {
            mismatch(error, "an array", value);
            return bx_at(error, "annotations[%zu].%s", image, name);
        }
    }
    const proto_node *boxes = proto_json_get(annotation, "boxes"), *labels = proto_json_get(annotation, "labels");
    if (!boxes || !labels) {
        bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", boxes ? "labels" : "boxes");
        return bx_at(error, "annotations[%zu].%s", image, boxes ? "labels" : "boxes");
    }
    if (proto_json_size(boxes) != proto_json_size(labels)) {
        bx_fail(error, BX_SHAPE, "shape", "%zu boxes but %zu labels", proto_json_size(boxes), proto_json_size(labels));
        return bx_at(error, "annotations[%zu]", image);
    }
    *n_objects += proto_json_size(boxes);
    return BX_OK;
}

static bx_status read_annotation(proto_draft *draft, const proto_node *annotation, size_t image, bx_error *error) {
    const proto_node *boxes = proto_json_get(annotation, "boxes"), *labels = proto_json_get(annotation, "labels");
    size_t n = proto_json_size(boxes), first = (size_t)draft->first[image];
    for (size_t i = 0; i < n; i++) {
        const proto_node *box = proto_json_at(boxes, i), *label = proto_json_at(labels, i);
        if (proto_json_kind(box) != PROTO_ARRAY) {
            mismatch(error, "an array of 4 numbers", box);
            return bx_at(error, "annotations[%zu].boxes[%zu]", image, i);
        }
        if (proto_json_size(box) != 4) {
            bx_fail(error, BX_SHAPE, "ragged_array", "a box has 4 numbers, this one has %zu", proto_json_size(box));
            return bx_at(error, "annotations[%zu].boxes[%zu]", image, i);
        }
        size_t read = proto_json_floats(box, draft->boxes + 4 * (first + i));
        if (read < 4) {
            mismatch(error, "a number", proto_json_at(box, read));
            return bx_at(error, "annotations[%zu].boxes[%zu][%zu]", image, i, read);
        }
        if (proto_json_kind(label) != PROTO_INTEGER) {
            mismatch(error, "an integer", label);
            return bx_at(error, "annotations[%zu].labels[%zu]", image, i);
        }
        draft->labels[first + i] = proto_json_int(label);
    }
    draft->first[image + 1] = (int32_t)(first + n);
    return BX_OK;
}

/* ---- the whole body ---------------------------------------------------------------------------------------------- */

/* The parts of the top level that are not options. */
struct body {
    const proto_node *predictions, *annotations, *priors;
};

static bx_status read_option(proto_draft *draft, int option, const proto_node *value, bx_error *error) {
    bool integer = option == PROTO_OPTION_CLASSES || option == PROTO_OPTION_LABEL_BASE;
    bool object = option == PROTO_OPTION_CRITERION || option == PROTO_OPTION_PRIORS;
    proto_kind kind = proto_json_kind(value);
    if (kind == PROTO_INTEGER && integer) {
        snprintf(draft->digits[option], sizeof draft->digits[option], "%lld", (long long)proto_json_int(value));
        draft->options[option] = draft->digits[option];
    } else if (kind == PROTO_STRING && !integer) {
        draft->options[option] = proto_json_string(value);
    } else if (kind == PROTO_OBJECT && object) {
        draft->options[option] = "{";
    } else {
        mismatch(error, integer ? "an integer" : "a string", value);
        return bx_at(error, "%s", proto_option_name(option));
    }
    return BX_OK;
}

static bx_status read_members(proto_draft *draft, struct body *body, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(draft->tree, &iterator, &name, &value)) {
        int option = proto_option_find(draft->task, name);
        if (option == PROTO_OPTION_PRIORS && proto_json_kind(value) == PROTO_ARRAY) {
            body->priors = value;
        } else if (option >= 0) {
            bx_status status = read_option(draft, option, value, error);
            if (status)
                return status;
        } else if (strcmp(name, "annotations") == 0) {
            body->annotations = value;
        } else if (strcmp(name, "predictions") == 0 && draft->task == PROTO_LOSS) {
            body->predictions = value;
        } else {
            proto_refuse(error, "unknown_member", "option", name, proto_members(draft->task));
            return proto_at_member(error, "", name);
        }
    }
    const char *missing = !body->annotations                                ? "annotations"
                          : draft->task == PROTO_LOSS && !body->predictions ? "predictions"
                                                                            : NULL;
    if (missing) {
        bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", missing);
        return bx_at(error, "%s", missing);
    }
    return BX_OK;
}

static bx_status measure_predictions(struct dense *loc, struct dense *conf, const proto_node *predictions,
                                     bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(predictions) != PROTO_OBJECT) {
        mismatch(error, "an object with loc and conf", predictions);
        return bx_at(error, "predictions");
    }
    while (proto_json_next(predictions, &iterator, &name, &value))
        if (strcmp(name, "loc") != 0 && strcmp(name, "conf") != 0) {
            bx_fail(error, BX_INVALID, "unknown_member", "predictions have loc and conf, not \"%.64s\"", name);
            return proto_at_member(error, "predictions", name);
        }
    struct dense *const both[] = {loc, conf};
    for (int i = 0; i < 2; i++) {
        const char *member = i == 0 ? "loc" : "conf";
        const proto_node *node = proto_json_get(predictions, member);
        if (!node) {
            bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", member);
            return bx_at(error, "predictions.%s", member);
        }
        bx_status status = dense_measure(both[i], node, error);
        if (status)
            return status;
    }
    return BX_OK;
}

static bx_status read_priors(proto_draft *draft, const proto_node *node, bx_error *error) {
    struct dense priors = {.path = "priors", .axes = 2};
    bx_status status = dense_measure(&priors, node, error);
    if (!status && priors.shape[1] != 4) {
        bx_fail(error, BX_SHAPE, "shape", "a prior is cx, cy, w, h; these have %lld numbers",
                (long long)priors.shape[1]);
        status = bx_at(error, "priors");
    }
    if (!status)
        status = proto_draft_allocate_priors(draft, (size_t)priors.shape[0], error);
    return status ? status : dense_read(&priors, draft->prior_boxes, error);
}

/* Annotations and predictions: measure, agree, allocate, read. */
static bx_status read_batch(proto_draft *draft, const struct body *body, bx_error *error) {
    struct dense loc = {.path = "predictions.loc", .axes = 3}, conf = {.path = "predictions.conf", .axes = 3};
    bool predictions = draft->task == PROTO_LOSS;
    size_t n_objects = 0, n_loc = 0, n_conf = 0;
    bx_status status = BX_OK;
    if (proto_json_kind(body->annotations) != PROTO_ARRAY) {
        mismatch(error, "an array with an object per image", body->annotations);
        return bx_at(error, "annotations");
    }
    size_t n_images = proto_json_size(body->annotations);
    if (predictions)
        status = measure_predictions(&loc, &conf, body->predictions, error);
    if (!status)
        status = proto_draft_set_dims(draft, predictions ? loc.shape : NULL, predictions ? conf.shape : NULL, n_images,
                                      error);
    for (size_t i = 0; !status && i < n_images; i++)
        status = measure_annotation(proto_json_at(body->annotations, i), i, &n_objects, error);
    if (status)
        return status;

    if (predictions) { /* no overflow: every value is a node of the tree */
        n_loc = (size_t)(loc.shape[0] * loc.shape[1] * loc.shape[2]);
        n_conf = (size_t)(conf.shape[0] * conf.shape[1] * conf.shape[2]);
    }
    status = proto_draft_allocate(draft, n_images, n_objects, n_loc + n_conf, error);
    if (status)
        return status;
    draft->first[0] = 0;
    for (size_t i = 0; !status && i < n_images; i++)
        status = read_annotation(draft, proto_json_at(body->annotations, i), i, error);
    if (status || !predictions)
        return status;
    draft->batch.loc = (bx_tensor){BX_F32, draft->dense};
    draft->batch.conf = (bx_tensor){BX_F32, draft->dense + n_loc};
    status = dense_read(&loc, draft->dense, error);
    return status ? status : dense_read(&conf, draft->dense + n_loc, error);
}

bx_status proto_draft_json(proto_draft *draft, const void *body, size_t bytes, size_t memory, bx_error *error) {
    struct body parts = {0};
    bx_status status = proto_json_parse(&draft->tree, body, bytes, memory, error);
    if (!status)
        status = read_members(draft, &parts, error);
    if (!status)
        status = read_batch(draft, &parts, error);
    if (!status && parts.priors)
        status = read_priors(draft, parts.priors, error);
    return status;
}
