/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON body to a draft. Types and shapes are checked before anything is allocated; predictions and targets become
 * float32, boxes stay in the tree, as they were sent.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

/* ---- annotations ------------------------------------------------------------------------------------------------- */

static const char *annotation_member_at(size_t i) {
    static const char *const names[] = {"boxes", "labels", "ignore", NULL};
    return names[i];
}

static bool is_annotation_member(const char *name) {
    size_t i = 0;
    while (annotation_member_at(i) && strcmp(annotation_member_at(i), name) != 0)
        i++;
    return annotation_member_at(i) != NULL;
}

/* Check the form of one image's annotations; adds its objects to *n_objects. */
static bx_status measure_annotation(const proto_node *annotation, size_t image, size_t *n_objects, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(annotation) != PROTO_OBJECT) {
        proto_mismatch(error, "an object with boxes and labels", annotation);
        return bx_at(error, "annotations[%zu]", image);
    }
    while (proto_json_next(annotation, &iterator, &name, &value)) {
        if (!is_annotation_member(name)) {
            char parent[40];
            snprintf(parent, sizeof parent, "annotations[%zu]", image);
            proto_refuse(error, "unknown_member", "annotation member", name, annotation_member_at);
            return proto_at_member(error, parent, name);
        }
        if (proto_json_kind(value) != PROTO_ARRAY) {
            proto_mismatch(error, "an array", value);
            return bx_at(error, "annotations[%zu].%s", image, name);
        }
    }
    const proto_node *boxes = proto_json_get(annotation, "boxes"), *labels = proto_json_get(annotation, "labels");
    const proto_node *ignore = proto_json_get(annotation, "ignore");
    if (!boxes || !labels) {
        bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", boxes ? "labels" : "boxes");
        return bx_at(error, "annotations[%zu].%s", image, boxes ? "labels" : "boxes");
    }
    if (proto_json_size(boxes) != proto_json_size(labels)) {
        bx_fail(error, BX_SHAPE, "shape", "%zu boxes but %zu labels", proto_json_size(boxes), proto_json_size(labels));
        return bx_at(error, "annotations[%zu]", image);
    }
    if (ignore && proto_json_size(boxes) != proto_json_size(ignore)) {
        bx_fail(error, BX_SHAPE, "shape", "%zu boxes but %zu values of ignore", proto_json_size(boxes),
                proto_json_size(ignore));
        return bx_at(error, "annotations[%zu].ignore", image);
    }
    *n_objects += proto_json_size(boxes);
    return BX_OK;
}

/* What a box must be to be read later on. */
static bx_status check_box(const proto_node *box, size_t image, size_t object, bx_error *error) {
    double values[4];
    if (proto_json_kind(box) != PROTO_ARRAY) {
        proto_mismatch(error, "an array of 4 numbers", box);
        return bx_at(error, "annotations[%zu].boxes[%zu]", image, object);
    }
    if (proto_json_size(box) != 4) {
        bx_fail(error, BX_SHAPE, "ragged_array", "a box has 4 numbers, this one has %zu", proto_json_size(box));
        return bx_at(error, "annotations[%zu].boxes[%zu]", image, object);
    }
    size_t read = proto_json_doubles(box, values);
    if (read == 4)
        return BX_OK;
    proto_mismatch(error, "a number", proto_json_at(box, read));
    return bx_at(error, "annotations[%zu].boxes[%zu][%zu]", image, object, read);
}

static bx_status read_ignore(uint8_t *use, const proto_node *value, size_t image, size_t object, bx_error *error) {
    proto_kind kind = proto_json_kind(value);
    bool number = kind == PROTO_INTEGER && (proto_json_int(value) == 0 || proto_json_int(value) == 1);
    if (!number && kind != PROTO_BOOLEAN) {
        if (kind == PROTO_INTEGER)
            bx_fail(error, BX_INVALID, "type_mismatch", "expected 0, 1, true or false, got %lld",
                    (long long)proto_json_int(value));
        else
            proto_mismatch(error, "0, 1, true or false", value);
        return bx_at(error, "annotations[%zu].ignore[%zu]", image, object);
    }
    if (number ? proto_json_int(value) == 1 : proto_json_bool(value))
        *use = BX_OBJECT_IGNORED;
    return BX_OK;
}

static bx_status read_annotation(proto_draft *draft, const proto_node *annotation, size_t image, bx_error *error) {
    const proto_node *boxes = proto_json_get(annotation, "boxes"), *labels = proto_json_get(annotation, "labels");
    const proto_node *ignore = proto_json_get(annotation, "ignore");
    size_t n = proto_json_size(boxes), first = (size_t)draft->first[image];
    for (size_t i = 0; i < n; i++) {
        const proto_node *label = proto_json_at(labels, i);
        bx_status status = check_box(proto_json_at(boxes, i), image, i, error);
        if (!status && proto_json_kind(label) != PROTO_INTEGER) {
            proto_mismatch(error, "an integer", label);
            status = bx_at(error, "annotations[%zu].labels[%zu]", image, i);
        }
        if (!status && ignore)
            status = read_ignore(&draft->use[first + i], proto_json_at(ignore, i), image, i, error);
        if (status)
            return status;
        draft->labels[first + i] = proto_json_int(label);
    }
    draft->first[image + 1] = (int32_t)(first + n);
    return BX_OK;
}

/* ---- the whole body ---------------------------------------------------------------------------------------------- */

/* The parts of the top level that are not options. */
struct body {
    const proto_node *predictions, *annotations, *targets;
};

/* "a string, an object or an array" */
static void list_kinds(char *out, size_t size, unsigned kinds) {
    static const char *const names[] = {[PROTO_OBJECT] = "an object",
                                        [PROTO_ARRAY] = "an array",
                                        [PROTO_STRING] = "a string",
                                        [PROTO_INTEGER] = "an integer"};
    size_t used = 0;
    for (unsigned i = 0; i < sizeof names / sizeof names[0] && used < size; i++)
        if (kinds & 1u << i) {
            kinds &= ~(1u << i);
            used += (size_t)snprintf(out + used, size - used, "%s%s", !used ? "" : kinds ? ", " : " or ", names[i]);
        }
}

static bx_status read_option(proto_draft *draft, int option, const proto_node *value, bx_error *error) {
    enum {
        OBJECT = 1u << PROTO_OBJECT,
        ARRAY = 1u << PROTO_ARRAY,
        STRING = 1u << PROTO_STRING,
        INTEGER = 1u << PROTO_INTEGER
    };
    static const unsigned known[] = {
#define PROTO_OPTION(id, name, kinds, text) kinds,
#include "request.def"
    };
    proto_kind kind = proto_json_kind(value);
    if (!(known[option] & 1u << kind)) {
        char expected[64];
        list_kinds(expected, sizeof expected, known[option]);
        proto_mismatch(error, expected, value);
        return bx_at(error, "%s", proto_option_name(option));
    }
    if (kind == PROTO_INTEGER) {
        snprintf(draft->digits[option], sizeof draft->digits[option], "%lld", (long long)proto_json_int(value));
        draft->options[option].text = draft->digits[option];
    } else if (kind == PROTO_STRING) {
        draft->options[option].text = proto_json_string(value);
    } else {
        draft->options[option].node = value;
    }
    return BX_OK;
}

static bx_status check_parts(const proto_draft *draft, const struct body *body, bx_error *error) {
    if (body->annotations && body->targets) {
        bx_fail(error, BX_INVALID, "targets_twice",
                "annotations are there to be matched, targets are matched already: "
                "send one of them");
        return bx_at(error, "targets");
    }
    if (!body->annotations && !body->targets) {
        bx_fail(error, BX_INVALID, "missing_member", "\"annotations\" is missing%s",
                draft->task == PROTO_LOSS ? ", and so is \"targets\", which may stand in its place" : "");
        return bx_at(error, "annotations");
    }
    if (draft->task == PROTO_LOSS && !body->predictions) {
        bx_fail(error, BX_INVALID, "missing_member", "\"predictions\" is missing");
        return bx_at(error, "predictions");
    }
    return BX_OK;
}

static bx_status read_members(proto_draft *draft, struct body *body, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    while (proto_json_next(draft->tree, &iterator, &name, &value)) {
        int option = proto_option_find(draft->task, name);
        if (option >= 0) {
            bx_status status = read_option(draft, option, value, error);
            if (status)
                return status;
        } else if (strcmp(name, "annotations") == 0) {
            body->annotations = value;
        } else if (strcmp(name, "predictions") == 0 && draft->task == PROTO_LOSS) {
            body->predictions = value;
        } else if (strcmp(name, "targets") == 0 && draft->task == PROTO_LOSS) {
            body->targets = value;
        } else {
            proto_refuse(error, "unknown_member", "option", name, proto_members(draft->task));
            return proto_at_member(error, "", name);
        }
    }
    return check_parts(draft, body, error);
}

/* The two dense arrays that are all of an object, such as predictions. */
static bx_status measure_pair(const proto_node *object, const char *path, const char *const names[2],
                              proto_dense *const arrays[2], bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    if (proto_json_kind(object) != PROTO_OBJECT) {
        char expected[40];
        snprintf(expected, sizeof expected, "an object with %s and %s", names[0], names[1]);
        proto_mismatch(error, expected, object);
        return bx_at(error, "%s", path);
    }
    while (proto_json_next(object, &iterator, &name, &value))
        if (strcmp(name, names[0]) != 0 && strcmp(name, names[1]) != 0) {
            bx_fail(error, BX_INVALID, "unknown_member", "%s have %s and %s, not \"%.64s\"", path, names[0], names[1],
                    name);
            return proto_at_member(error, path, name);
        }
    for (int i = 0; i < 2; i++) {
        const proto_node *node = proto_json_get(object, names[i]);
        if (!node) {
            bx_fail(error, BX_INVALID, "missing_member", "\"%s\" is missing", names[i]);
            return bx_at(error, "%s.%s", path, names[i]);
        }
        bx_status status = proto_dense_measure(arrays[i], node, error);
        if (status)
            return status;
    }
    return BX_OK;
}

static bx_status read_predictions(proto_draft *draft, proto_dense *loc, proto_dense *conf, bx_error *error) {
    float *conf_data = draft->dense + proto_dense_count(loc);
    draft->batch.loc = (bx_tensor){BX_F32, draft->dense};
    draft->batch.conf = (bx_tensor){BX_F32, conf_data};
    bx_status status = proto_dense_read(loc, draft->dense, error);
    return status ? status : proto_dense_read(conf, conf_data, error);
}

/* Annotations, and predictions unless there are none: measure, agree, allocate, read. */
static bx_status read_annotations(proto_draft *draft, const proto_node *annotations, proto_dense *loc,
                                  proto_dense *conf, bx_error *error) {
    bx_status status = BX_OK;
    size_t n_objects = 0;
    if (proto_json_kind(annotations) != PROTO_ARRAY) {
        proto_mismatch(error, "an array with an object per image", annotations);
        return bx_at(error, "annotations");
    }
    bool predictions = draft->task == PROTO_LOSS;
    size_t n_images = proto_json_size(annotations);
    status =
        proto_draft_set_dims(draft, predictions ? loc->shape : NULL, predictions ? conf->shape : NULL, n_images, error);
    for (size_t i = 0; !status && i < n_images; i++)
        status = measure_annotation(proto_json_at(annotations, i), i, &n_objects, error);
    if (!status)
        status = proto_draft_allocate(draft, n_images, n_objects,
                                      predictions ? proto_dense_count(loc) + proto_dense_count(conf) : 0, 0, error);
    for (size_t i = 0; !status && i < n_images; i++)
        status = read_annotation(draft, proto_json_at(annotations, i), i, error);
    draft->annotations = annotations;
    return status || !predictions ? status : read_predictions(draft, loc, conf, error);
}

/* The same for targets instead of annotations. */
static bx_status read_targets(proto_draft *draft, const proto_node *targets, proto_dense *loc, proto_dense *conf,
                              bx_error *error) {
    proto_dense target_classes = {.path = "targets.classes", .dtype = BX_I32, .axes = 2};
    proto_dense target_loc = {.path = "targets.loc", .dtype = BX_F32, .axes = 3};
    draft->with_targets = true;
    bx_status status = measure_pair(targets, "targets", (const char *const[]){"classes", "loc"},
                                    (proto_dense *const[]){&target_classes, &target_loc}, error);
    if (!status)
        status =
            proto_draft_set_target_dims(draft, loc->shape, conf->shape, target_classes.shape, target_loc.shape, error);
    if (status)
        return status;
    size_t n_predictions = proto_dense_count(loc) + proto_dense_count(conf);
    status = proto_draft_allocate(draft, (size_t)conf->shape[0], 0, n_predictions + proto_dense_count(&target_loc),
                                  proto_dense_count(&target_classes), error);
    if (!status)
        status = read_predictions(draft, loc, conf, error);
    if (!status)
        status = proto_dense_read(&target_classes, draft->classes, error);
    if (!status)
        status = proto_dense_read(&target_loc, draft->dense + n_predictions, error);
    draft->batch.target_classes = (bx_tensor){BX_I32, draft->classes};
    draft->batch.target_loc = (bx_tensor){BX_F32, draft->dense + n_predictions};
    return status;
}

bx_status proto_draft_json(proto_draft *draft, const void *body, size_t bytes, size_t memory, bx_error *error) {
    struct body parts = {0};
    proto_dense loc = {.path = "predictions.loc", .dtype = BX_F32, .axes = 3};
    proto_dense conf = {.path = "predictions.conf", .dtype = BX_F32, .axes = 3};
    bx_status status = proto_json_parse(&draft->tree, body, bytes, memory, error);
    if (!status)
        status = read_members(draft, &parts, error);
    if (!status && parts.predictions)
        status = measure_pair(parts.predictions, "predictions", (const char *const[]){"loc", "conf"},
                              (proto_dense *const[]){&loc, &conf}, error);
    if (status)
        return status;
    return parts.targets ? read_targets(draft, parts.targets, &loc, &conf, error)
                         : read_annotations(draft, parts.annotations, &loc, &conf, error);
}
