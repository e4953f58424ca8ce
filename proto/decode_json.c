/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON body to a draft: where it has arrays of numbers, and what the tree around them must be. Predictions and
 * targets stay in the document's stores; annotations, which are few, are copied.
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

/* One image's annotations. */
struct annotation {
    const proto_node *boxes, *labels, *ignore; /* the last may be NULL */
    size_t n;
};

static size_t size_of(const proto_draft *draft, const proto_node *array) {
    return (size_t)proto_document_numbers(&draft->document, array)->shape[0];
}

/* The array of one image that is called so. */
static bx_status read_member(const void **data, const proto_draft *draft, const proto_node *array, size_t image,
                             const char *name, bx_error *error) {
    char path[48];
    snprintf(path, sizeof path, "annotations[%zu].%s", image, name);
    proto_dense dense = {.path = path};
    bx_status status = proto_dense_read(&dense, &draft->document, array, error);
    *data = dense.data;
    return status;
}

/* Check the form of one image's annotations. */
static bx_status find_annotation(struct annotation *found, const proto_draft *draft, const proto_node *annotation,
                                 size_t image, bx_error *error) {
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
    const size_t n = size_of(draft, boxes);
    if (n != size_of(draft, labels)) {
        const void *none;
        bx_status status = read_member(&none, draft, boxes, image, "boxes", error); /* a box may lack its brackets */
        if (status)
            return status;
        bx_fail(error, BX_SHAPE, "shape", "%zu boxes but %zu labels", n, size_of(draft, labels));
        return bx_at(error, "annotations[%zu]", image);
    }
    if (ignore && n != size_of(draft, ignore)) {
        bx_fail(error, BX_SHAPE, "shape", "%zu boxes but %zu values of ignore", n, size_of(draft, ignore));
        return bx_at(error, "annotations[%zu].ignore", image);
    }
    *found = (struct annotation){boxes, labels, ignore, n};
    return BX_OK;
}

/* Boxes of all images follow one another in their store: nothing else is between them. */
static bx_status read_annotation(proto_draft *draft, const proto_node *annotation, size_t image, bx_error *error) {
    struct annotation found;
    const void *boxes, *labels, *ignore;
    bx_status status = find_annotation(&found, draft, annotation, image, error);
    if (!status)
        status = read_member(&boxes, draft, found.boxes, image, "boxes", error);
    if (!status && image == 0)
        draft->boxes_sent = (bx_tensor){BX_F64, boxes};
    if (!status)
        status = read_member(&labels, draft, found.labels, image, "labels", error);
    if (!status && found.ignore)
        status = read_member(&ignore, draft, found.ignore, image, "ignore", error);
    if (status)
        return status;
    const size_t first = (size_t)draft->first[image];
    if (found.n > 0)
        memcpy(draft->labels + first, labels, found.n * sizeof *draft->labels);
    for (size_t i = 0; found.ignore && i < found.n; i++)
        if (((const uint8_t *)ignore)[i])
            draft->use[first + i] = BX_OBJECT_IGNORED;
    draft->first[image + 1] = (int32_t)(first + found.n);
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
#define PROTO_OPTION(id, name, tasks, kinds, text) kinds,
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
        draft->options[option] = (proto_value){.node = value, .document = &draft->document};
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
    while (proto_json_next(draft->document.root, &iterator, &name, &value)) {
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
static bx_status read_pair(const proto_document *document, const proto_node *object, const char *path,
                           const char *const names[2], proto_dense *const arrays[2], bx_error *error) {
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
        bx_status status = proto_dense_read(arrays[i], document, node, error);
        if (status)
            return status;
    }
    return BX_OK;
}

/* Annotations; predictions are read, or there are none and loc is NULL. Sizes agree before anything is allocated. */
static bx_status read_annotations(proto_draft *draft, const proto_node *annotations, const proto_dense *loc,
                                  const proto_dense *conf, bx_error *error) {
    bx_status status = BX_OK;
    size_t n_objects = 0;
    if (proto_json_kind(annotations) != PROTO_ARRAY) {
        proto_mismatch(error, "an array with an object per image", annotations);
        return bx_at(error, "annotations");
    }
    size_t n_images = proto_json_size(annotations);
    status = proto_draft_set_dims(draft, loc ? loc->shape : NULL, loc ? conf->shape : NULL, n_images, error);
    for (size_t i = 0; !status && i < n_images; i++) {
        struct annotation found = {0};
        status = find_annotation(&found, draft, proto_json_at(annotations, i), i, error);
        n_objects += found.n;
    }
    if (!status)
        status = proto_draft_allocate(draft, n_images, n_objects, error);
    for (size_t i = 0; !status && i < n_images; i++)
        status = read_annotation(draft, proto_json_at(annotations, i), i, error);
    return status;
}

/* The same for targets instead of annotations. */
static bx_status read_targets(proto_draft *draft, const proto_node *targets, const proto_dense *loc,
                              const proto_dense *conf, bx_error *error) {
    proto_dense target_classes = {.path = "targets.classes"}, target_loc = {.path = "targets.loc"};
    draft->with_targets = true;
    bx_status status = read_pair(&draft->document, targets, "targets", (const char *const[]){"classes", "loc"},
                                 (proto_dense *const[]){&target_classes, &target_loc}, error);
    if (!status)
        status =
            proto_draft_set_target_dims(draft, loc->shape, conf->shape, target_classes.shape, target_loc.shape, error);
    if (!status)
        status = proto_draft_allocate(draft, (size_t)conf->shape[0], 0, error);
    draft->batch.target_classes = (bx_tensor){BX_I32, target_classes.data};
    draft->batch.target_loc = (bx_tensor){BX_F32, target_loc.data};
    return status;
}

const proto_place proto_places[] = {
    {{"predictions", "loc"}, BX_F32, 3, 3, 0},
    {{"predictions", "conf"}, BX_F32, 3, 3, 0},
    {{"targets", "classes"}, BX_I32, 2, 2, 0},
    {{"targets", "loc"}, BX_F32, 3, 3, 0},
    {{"annotations", "", "boxes"}, BX_F64, 2, 2, 4},
    {{"annotations", "", "labels"}, BX_I64, 1, 1, 0},
    {{"annotations", "", "ignore"}, BX_BOOL, 1, 1, 0},
    {{"priors"}, BX_F32, 2, 2, 0},
    {{"image_size"}, BX_F64, 2, 1, 0},
    {{NULL}, BX_F32, 0, 0, 0},
};

bx_status proto_draft_json(proto_draft *draft, const void *body, size_t bytes, bx_error *error) {
    struct body parts = {0};
    proto_dense loc = {.path = "predictions.loc"}, conf = {.path = "predictions.conf"};
    bx_status status = proto_document_read(&draft->document, body, bytes, NULL, proto_places, draft->limits, error);
    if (!status)
        status = read_members(draft, &parts, error);
    if (!status && parts.predictions)
        status = read_pair(&draft->document, parts.predictions, "predictions", (const char *const[]){"loc", "conf"},
                           (proto_dense *const[]){&loc, &conf}, error);
    if (status)
        return status;
    draft->batch.loc = (bx_tensor){BX_F32, loc.data};
    draft->batch.conf = (bx_tensor){BX_F32, conf.data};
    return parts.targets ? read_targets(draft, parts.targets, &loc, &conf, error)
                         : read_annotations(draft, parts.annotations, parts.predictions ? &loc : NULL, &conf, error);
}
