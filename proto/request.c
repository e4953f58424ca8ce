/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a draft to a request: options of body and query, names of presets and prior sets, and the way back from a
 * failure's path to a place in the body.
 *
 * A body reader has already checked every shape, so what remains here can only fail for names, values and memory.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ------------------------------------------------------------------------------------------------------- */

#define LOSS  (1u << PROTO_LOSS)
#define MATCH (1u << PROTO_MATCH)

/* Top-level members: the options in order of their ids, then the rest. */
static const struct member {
    const char *name;
    unsigned tasks;
    const char *home; /* where it belongs, for those who put it elsewhere */
} members[] = {
#define PROTO_OPTION(id, name, text)                                                                                   \
    {name, PROTO_OPTION_##id == PROTO_OPTION_CLASSES ? MATCH : LOSS | MATCH, "/v1/match"},
#include "request.def"
    {"predictions", LOSS, "the body of /v1/loss"},
    {"annotations", LOSS | MATCH, "the body"},
};

enum { N_MEMBERS = sizeof members / sizeof members[0] };

static const char *member_at(unsigned task, size_t n, size_t i) {
    for (size_t row = 0; row < n; row++)
        if (members[row].tasks & task && i-- == 0)
            return members[row].name;
    return NULL;
}

static const char *loss_option_at(size_t i) {
    return member_at(LOSS, PROTO_N_OPTIONS, i);
}

static const char *match_option_at(size_t i) {
    return member_at(MATCH, PROTO_N_OPTIONS, i);
}

static const char *loss_member_at(size_t i) {
    return member_at(LOSS, N_MEMBERS, i);
}

static const char *match_member_at(size_t i) {
    return member_at(MATCH, N_MEMBERS, i);
}

proto_names proto_options(proto_task task) {
    return task == PROTO_LOSS ? loss_option_at : match_option_at;
}

proto_names proto_members(proto_task task) {
    return task == PROTO_LOSS ? loss_member_at : match_member_at;
}

const char *proto_option_name(int option) {
    return members[option].name;
}

int proto_option_find(proto_task task, const char *name) {
    for (int i = 0; i < PROTO_N_OPTIONS; i++)
        if (members[i].tasks & 1u << task && strcmp(members[i].name, name) == 0)
            return i;
    return -1;
}

/* "; there are a, b, c" */
static void list_names(char *out, size_t size, proto_names known) {
    const char *name;
    int n = 0;
    for (size_t i = 0; (name = known(i)) && n >= 0 && (size_t)n < size; i++)
        n += snprintf(out + n, size - (size_t)n, "%s%s", i ? ", " : "; there are ", name);
}

bx_status proto_refuse(bx_error *error, const char *code, const char *place, const char *name, proto_names known) {
    static const struct {
        const char *place, *name, *text;
    } later[] = {
#define PROTO_LATER(at, word, what) {at, word, what},
#include "request.def"
    };
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++)
        if (strcmp(later[i].place, place) == 0 && strcmp(later[i].name, name) == 0)
            return bx_fail(error, BX_INVALID, "unsupported_option", "this version does not do %s yet", later[i].text);
    for (size_t i = 0; i < N_MEMBERS && strcmp(place, "option") == 0; i++)
        if (strcmp(members[i].name, name) == 0)
            return bx_fail(error, BX_INVALID, code, "\"%s\" has no place here; it belongs to %s", name,
                           members[i].home);
    const char *nearest = known ? bx_nearest(name, known) : NULL;
    char hint[200] = "";
    if (nearest)
        snprintf(hint, sizeof hint, "; did you mean \"%s\"?", nearest);
    else if (known)
        list_names(hint, sizeof hint, known);
    return bx_fail(error, BX_INVALID, code, "there is no %s \"%.64s\"%s", place, name, hint);
}

bx_status proto_at_member(bx_error *error, const char *parent, const char *name) {
    size_t plain = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    if (name[plain] != '\0' || plain == 0 || plain > 64)
        return bx_at(error, "%s", parent);
    return bx_at(error, "%s%s%s", parent, *parent ? "." : "", name);
}

/* ---- drafts ------------------------------------------------------------------------------------------------------ */

bx_status proto_draft_allocate(proto_draft *draft, size_t n_images, size_t n_objects, size_t n_dense, bx_error *error) {
    size_t first_bytes, object_bytes, bytes;
    if (n_objects > INT32_MAX)
        return bx_fail(error, BX_SHAPE, "shape", "%zu objects are more than there can be", n_objects);
    if (__builtin_mul_overflow(n_images + 1, sizeof *draft->first, &first_bytes) ||
        __builtin_mul_overflow(n_objects, sizeof *draft->labels + 4 * sizeof *draft->boxes, &object_bytes) ||
        __builtin_mul_overflow(n_dense, sizeof *draft->dense, &bytes) ||
        __builtin_add_overflow(bytes, first_bytes, &bytes) || __builtin_add_overflow(bytes, object_bytes, &bytes) ||
        !(draft->memory = malloc(bytes)))
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the batch");
    draft->labels = draft->memory;
    draft->boxes = (float *)(void *)(draft->labels + n_objects);
    draft->dense = draft->boxes + 4 * n_objects;
    draft->first = (int32_t *)(void *)(draft->dense + n_dense);
    draft->batch.labels = draft->labels;
    draft->batch.boxes = draft->boxes;
    draft->batch.first = draft->first;
    return BX_OK;
}

bx_status proto_draft_allocate_priors(proto_draft *draft, size_t n, bx_error *error) {
    if (n < 1 || n > BX_MAX_PRIORS) {
        bx_fail(error, BX_SHAPE, "shape", "%zu priors; there must be 1 to %d", n, BX_MAX_PRIORS);
        return bx_at(error, "priors");
    }
    draft->prior_boxes = malloc(n * 4 * sizeof *draft->prior_boxes);
    if (!draft->prior_boxes)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the priors");
    draft->n_prior_boxes = n;
    return BX_OK;
}

bx_status proto_draft_set_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3], size_t n_images,
                               bx_error *error) {
    const char *path = draft->encoding == PROTO_JSON ? "annotations" : "counts";
    if (n_images < 1 || n_images > INT32_MAX - 1) {
        bx_fail(error, BX_SHAPE, "shape", "%zu images; there must be at least one", n_images);
        return bx_at(error, "%s", path);
    }
    draft->batch.n_images = (int32_t)n_images;
    if (!loc)
        return BX_OK;
    if (conf[0] != (int64_t)n_images) {
        bx_fail(error, BX_SHAPE, "shape", "the predictions are of %lld images, the annotations of %zu",
                (long long)conf[0], n_images);
        return bx_at(error, "%s", path);
    }
    if (loc[0] != conf[0] || loc[1] != conf[1] || loc[2] != 4) {
        bx_fail(error, BX_SHAPE, "shape",
                "loc is [%lld,%lld,%lld] and conf [%lld,%lld,%lld]; they must be [N,P,4] and "
                "[N,P,C]",
                (long long)loc[0], (long long)loc[1], (long long)loc[2], (long long)conf[0], (long long)conf[1],
                (long long)conf[2]);
        return bx_at(error, "predictions.loc");
    }
    if (conf[1] < 1 || conf[1] > BX_MAX_PRIORS || conf[2] < 2 || conf[2] > BX_MAX_COLUMNS) {
        bx_fail(error, BX_SHAPE, "shape",
                "conf is [%lld,%lld,%lld]; there must be 1 to %d priors and 2 to %d columns, background and classes",
                (long long)conf[0], (long long)conf[1], (long long)conf[2], BX_MAX_PRIORS, BX_MAX_COLUMNS);
        return bx_at(error, "predictions.conf");
    }
    draft->batch.n_priors = (int32_t)conf[1];
    draft->batch.n_columns = (int32_t)conf[2];
    return BX_OK;
}

static void draft_fini(proto_draft *draft) {
    proto_json_free(draft->tree);
    proto_container_fini(&draft->container);
    free(draft->prior_boxes);
    free(draft->memory);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static bx_status read_query(proto_draft *draft, const proto_option *query, size_t n_query, bx_error *error) {
    bool seen[PROTO_N_OPTIONS] = {false};
    for (size_t i = 0; i < n_query; i++) {
        int option = proto_option_find(draft->task, query[i].name);
        if (option < 0) {
            proto_refuse(error, "unknown_member", "option", query[i].name, proto_options(draft->task));
            return proto_at_member(error, "", query[i].name);
        }
        if (seen[option]) {
            bx_fail(error, BX_INVALID, "duplicate_option", "the query gives %s twice", query[i].name);
            return bx_at(error, "%s", query[i].name);
        }
        seen[option] = true;
        draft->options[option] = query[i].value;
        if (option == PROTO_OPTION_PRIORS && draft->encoding == PROTO_JSON) {
            free(draft->prior_boxes); /* the query overrides the member; a tensor is not an option */
            draft->prior_boxes = NULL;
        }
    }
    return BX_OK;
}

static const char *criterion_name_at(size_t i) {
    const bx_criterion *criterion = bx_criterion_at(i);
    return criterion ? criterion->name : NULL;
}

static const char *include_name_at(size_t i) {
    static const char *const names[] = {
#define PROTO_INCLUDE(id, name) name,
#include "request.def"
        NULL};
    return i < sizeof names / sizeof names[0] ? names[i] : NULL;
}

static bx_status resolve_criterion(proto_request *request, const char *name, bx_error *error) {
    name = name ? name : "ssd-multibox";
    request->criterion = bx_criterion_preset(name);
    if (request->criterion)
        return BX_OK;
    proto_refuse(error, "unknown_criterion", "criterion", name[0] == '{' ? "{" : name, criterion_name_at);
    return bx_at(error, "criterion");
}

static bx_status resolve_priors(proto_request *request, const proto_draft *draft, const proto_catalog *catalog,
                                bx_error *error) {
    const char *name = draft->options[PROTO_OPTION_PRIORS];
    if (draft->prior_boxes) {
        if (name) {
            bx_fail(error, BX_INVALID, "priors_twice", "both a tensor of priors and the name \"%.64s\"", name);
            return bx_at(error, "priors");
        }
        bx_status status =
            bx_priors_new(&request->own_priors, draft->prior_boxes, (int32_t)draft->n_prior_boxes, error);
        request->priors = request->own_priors;
        return status;
    }
    name = name ? name : request->criterion->priors;
    for (size_t i = 0; i < catalog->n_priors; i++)
        if (strcmp(catalog->priors[i]->name, name) == 0) {
            request->priors = catalog->priors[i];
            return BX_OK;
        }
    proto_refuse(error, "unknown_priors", "priors", name[0] == '{' ? "{" : name, bx_priors_name);
    return bx_at(error, "priors");
}

static bx_status resolve_include(proto_request *request, const char *words, bx_error *error) {
    while (words && *words) {
        char word[32];
        size_t length = strcspn(words, ",");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word), words);
        words += length + (words[length] == ',');
        if (length == 0)
            continue;
        size_t i = 0;
        while (include_name_at(i) && strcmp(include_name_at(i), word) != 0)
            i++;
        if (!include_name_at(i)) {
            proto_refuse(error, "invalid_option", "include", word, include_name_at);
            return bx_at(error, "include");
        }
        request->include |= 1u << i;
    }
    return BX_OK;
}

static bx_status resolve_device(proto_request *request, const char *device, bx_error *error) {
    device = device ? device : "auto";
    bool valid = strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0 || strcmp(device, "cuda") == 0;
    if (strncmp(device, "cuda:", 5) == 0) {
        size_t digits = strspn(device + 5, "0123456789");
        valid = digits >= 1 && digits <= 3 && device[5 + digits] == '\0';
    }
    if (!valid) {
        bx_fail(error, BX_INVALID, "invalid_option", "device \"%.64s\" is none of auto, cpu, cuda and cuda:N", device);
        return bx_at(error, "device");
    }
    snprintf(request->device, sizeof request->device, "%s", device);
    return BX_OK;
}

/* Options of which only one value is known yet. */
static bx_status check_fixed(const proto_draft *draft, bx_error *error) {
    static const struct {
        int option;
        const char *value;
    } fixed[] = {
        {PROTO_OPTION_BOX_FORMAT, "xyxy"}, {PROTO_OPTION_LABEL_BASE, "0"}, {PROTO_OPTION_INVALID_BOXES, "refuse"}};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const char *name = proto_option_name(fixed[i].option), *value = draft->options[fixed[i].option];
        if (value && strcmp(value, fixed[i].value) != 0) {
            proto_refuse(error, "invalid_option", name, value, NULL);
            return bx_at(error, "%s", name);
        }
    }
    return BX_OK;
}

/* Without predictions the number of classes is an option, or what the labels need. */
static bx_status resolve_classes(bx_batch *batch, const char *text, bx_error *error) {
    int64_t classes = 1;
    if (text) {
        size_t digits = strspn(text, "0123456789");
        classes = digits >= 1 && digits <= 9 && text[digits] == '\0' ? strtol(text, NULL, 10) : 0;
        if (classes < 1 || classes > BX_MAX_COLUMNS - 1) {
            bx_fail(error, BX_INVALID, "invalid_option", "classes must be 1 to %d, not \"%.64s\"", BX_MAX_COLUMNS - 1,
                    text);
            return bx_at(error, "classes");
        }
    } else {
        for (int32_t i = 0; i < batch->first[batch->n_images]; i++)
            if (batch->labels[i] >= classes) /* a label beyond all bounds is refused with its path later on */
                classes = batch->labels[i] < BX_MAX_COLUMNS - 1 ? batch->labels[i] + 1 : BX_MAX_COLUMNS - 1;
    }
    batch->n_columns = (int32_t)classes + 1;
    return BX_OK;
}

static bx_status resolve(proto_request *request, proto_draft *draft, const proto_catalog *catalog, bx_error *error) {
    bx_status status = check_fixed(draft, error);
    if (!status)
        status = resolve_criterion(request, draft->options[PROTO_OPTION_CRITERION], error);
    if (!status)
        status = resolve_include(request, draft->options[PROTO_OPTION_INCLUDE], error);
    if (!status)
        status = resolve_device(request, draft->options[PROTO_OPTION_DEVICE], error);
    if (!status && draft->task == PROTO_MATCH)
        status = resolve_classes(&draft->batch, draft->options[PROTO_OPTION_CLASSES], error);
    if (!status)
        status = resolve_priors(request, draft, catalog, error);
    return status;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

proto_encoding proto_encoding_guess(const void *body, size_t bytes) {
    return bytes > 0 && strchr("{ \t\r\n", *(const char *)body) && *(const char *)body ? PROTO_JSON : PROTO_SAFETENSORS;
}

bx_status proto_request_decode(proto_request *request, proto_task task, proto_encoding encoding, const void *body,
                               size_t bytes, const proto_option *query, size_t n_query, const proto_catalog *catalog,
                               const proto_limits *limits, bx_error *error) {
    bx_error unwanted = {0};
    error = error ? error : &unwanted;
    proto_draft draft = {.task = task, .encoding = encoding};
    proto_request made = {.task = task, .encoding = encoding};
    bx_status status = encoding == PROTO_JSON ? proto_draft_json(&draft, body, bytes, limits->json_memory, error)
                                              : proto_draft_tensors(&draft, body, bytes, error);
    if (!status)
        status = read_query(&draft, query, n_query, error);
    if (!status)
        status = resolve(&made, &draft, catalog, error);
    if (!status) {
        made.batch = draft.batch;
        made.memory = draft.memory;
        draft.memory = NULL;
        *request = made;
    }
    draft_fini(&draft);
    return status;
}

void proto_request_free(proto_request *request) {
    bx_priors_free(request->own_priors);
    free(request->memory);
    *request = (proto_request){0};
}

/* ---- pointers ---------------------------------------------------------------------------------------------------- */

/* "annotations[3].boxes[7]" -> "/annotations/3/boxes/7" */
static void json_pointer(char *out, size_t size, const char *path) {
    size_t n = 0;
    out[n++] = '/';
    for (; *path && n + 1 < size; path++)
        if (*path != ']')
            out[n++] = *path == '[' || *path == '.' ? '/' : *path;
    out[n] = '\0';
}

/* "predictions.conf[2][55]" -> "conf[2,55]"; "annotations[3].boxes[7]" -> "boxes[19]" */
static void tensor_pointer(char *out, size_t size, const proto_request *request, const char *path) {
    static const char predictions[] = "predictions.", annotations[] = "annotations";
    char rest[sizeof((bx_error *)0)->path];
    int image, end = 0;
    long long object;

    if (strncmp(path, predictions, sizeof predictions - 1) == 0)
        path += sizeof predictions - 1;
    if (sscanf(path, "annotations[%d]%n", &image, &end) == 1 && end > 0) {
        path += end;
        if (sscanf(path, ".%15[a-z][%lld%n", rest, &object, &end) == 2) {
            if (request && image >= 0 && image < request->batch.n_images)
                object += request->batch.first[image];
            snprintf(rest + strlen(rest), sizeof rest - strlen(rest), "[%lld%.64s", object, path + end);
        } else {
            snprintf(rest, sizeof rest, "counts[%d]", image);
        }
        path = rest;
    } else if (strcmp(path, annotations) == 0) {
        path = "counts";
    }
    size_t n = 0;
    for (; *path && n + 1 < size; path++) {
        if (path[0] == ']' && path[1] == '[') {
            out[n++] = ',';
            path++;
        } else {
            out[n++] = *path;
        }
    }
    out[n] = '\0';
}

void proto_pointer(char out[160], const proto_request *request, proto_encoding encoding, const bx_error *error) {
    if (error->path[0] == '\0')
        out[0] = '\0';
    else if (encoding == PROTO_JSON)
        json_pointer(out, 160, error->path);
    else
        tensor_pointer(out, 160, request, error->path);
}
