/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests: what their members are called, the memory a draft needs, decoding as a whole, and the way back from a
 * failure's path to a place in the body.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ------------------------------------------------------------------------------------------------------- */

#define LOSS  (1u << PROTO_LOSS)
#define MATCH (1u << PROTO_MATCH)
#define BOTH  (LOSS | MATCH)

/* Top-level members: the options in order of their ids, then the rest. */
static const struct member {
    const char *name;
    unsigned tasks;
    const char *home; /* where it belongs, for those who put it elsewhere */
} members[] = {
#define PROTO_OPTION(id, name, tasks, kinds, text) {name, tasks, (tasks) == MATCH ? "/v1/match" : "/v1/loss"},
#include "request.def"
    {"predictions", LOSS, "the body of /v1/loss"},
    {"annotations", LOSS | MATCH, "the body"},
    {"targets", LOSS, "the body of /v1/loss"},
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
    for (size_t i = 0; i < N_MEMBERS && strcmp(place, "option") == 0; i++)
        if (strcmp(members[i].name, name) == 0)
            return bx_fail(error, BX_INVALID, code, "\"%s\" has no place here; it belongs to %s", name,
                           members[i].home);
    if (strcmp(place, "option") == 0 && proto_is_stage(name))
        return bx_fail(error, BX_INVALID, code, "\"%s\" is a stage of the criterion: {\"criterion\": {\"%s\": ...}}",
                       name, name);
    const char *nearest = known ? bx_nearest(name, known) : NULL;
    char hint[200] = "";
    if (nearest)
        snprintf(hint, sizeof hint, "; did you mean \"%s\"?", nearest);
    else if (known)
        list_names(hint, sizeof hint, known);
    return bx_fail(error, BX_INVALID, code, "there is no %s \"%.64s\"%s", place, name, hint);
}

bx_status proto_mismatch(bx_error *error, const char *expected, const proto_node *got) {
    return bx_fail(error, BX_INVALID, "type_mismatch", "expected %s, got %s", expected, proto_json_kind_name(got));
}

bx_status proto_at_member(bx_error *error, const char *parent, const char *name) {
    size_t plain = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    if (name[plain] != '\0' || plain == 0 || plain > 64)
        return bx_at(error, "%s", parent);
    return bx_at(error, "%s%s%s", parent, *parent ? "." : "", name);
}

/* ---- drafts ------------------------------------------------------------------------------------------------------ */

/* Room for n elements after *bytes; false when the sum overflows. */
static bool add_bytes(size_t *bytes, size_t n, size_t element) {
    size_t more;
    return !__builtin_mul_overflow(n, element, &more) && !__builtin_add_overflow(*bytes, more, bytes);
}

bx_status proto_draft_allocate(proto_draft *draft, size_t n_images, size_t n_objects, bx_error *error) {
    size_t bytes = 0;
    bx_status status;
    if (n_objects > INT32_MAX)
        return bx_fail(error, BX_SHAPE, "shape", "%zu objects are more than there can be", n_objects);
    const bool fits =
        add_bytes(&bytes, n_objects, sizeof *draft->labels + 4 * sizeof *draft->boxes + sizeof *draft->use) &&
        add_bytes(&bytes, n_images + 1, sizeof *draft->first);
    if (fits && draft->copies && (status = proto_reserve(draft->limits, bytes, error))) /* no body bounds it */
        return status;
    if (!fits || !(draft->memory = malloc(bytes)))
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the batch");
    draft->memory_bytes += bytes;
    draft->labels = draft->memory;
    draft->boxes = (float *)(void *)(draft->labels + n_objects);
    draft->first = (int32_t *)(void *)(draft->boxes + 4 * n_objects);
    draft->use = (uint8_t *)(draft->first + n_images + 1);
    memset(draft->first, 0, (n_images + 1) * sizeof *draft->first);
    memset(draft->use, BX_OBJECT_USED, n_objects);
    draft->batch.labels = draft->labels;
    draft->batch.boxes = draft->boxes;
    draft->batch.first = draft->first;
    return BX_OK;
}

static bx_status set_images(proto_draft *draft, int64_t n_images, const char *path, bx_error *error) {
    if (n_images < 1 || n_images > INT32_MAX - 1) {
        bx_fail(error, BX_SHAPE, "shape", "%lld images; there must be at least one", (long long)n_images);
        return bx_at(error, "%s", path);
    }
    draft->batch.n_images = (int32_t)n_images;
    return BX_OK;
}

static bx_status set_predictions(proto_draft *draft, const int64_t loc[3], const int64_t conf[3], bx_error *error) {
    if (loc[0] != conf[0] || loc[1] != conf[1] || loc[2] != 4) {
        bx_fail(error, BX_SHAPE, "shape",
                "loc is [%lld,%lld,%lld] and conf [%lld,%lld,%lld]; they must be [N,P,4] and "
                "[N,P,C]",
                (long long)loc[0], (long long)loc[1], (long long)loc[2], (long long)conf[0], (long long)conf[1],
                (long long)conf[2]);
        return bx_at(error, "predictions.loc");
    }
    if (conf[1] < 1 || conf[1] > BX_MAX_PRIORS || conf[2] < 1 || conf[2] > BX_MAX_COLUMNS) {
        bx_fail(error, BX_SHAPE, "shape",
                "conf is [%lld,%lld,%lld]; there must be 1 to %d priors and 1 to %d columns, classes and, where the "
                "criterion has one, the background",
                (long long)conf[0], (long long)conf[1], (long long)conf[2], BX_MAX_PRIORS, BX_MAX_COLUMNS);
        return bx_at(error, "predictions.conf");
    }
    draft->batch.n_priors = (int32_t)conf[1];
    draft->batch.n_columns = (int32_t)conf[2];
    return BX_OK;
}

bx_status proto_draft_set_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3], size_t n_images,
                               bx_error *error) {
    const char *path = draft->encoding == PROTO_JSON ? "annotations" : "counts";
    bx_status status = set_images(draft, (int64_t)n_images, path, error);
    if (status || !loc)
        return status;
    if (conf[0] != (int64_t)n_images) {
        bx_fail(error, BX_SHAPE, "shape", "the predictions are of %lld images, the annotations of %zu",
                (long long)conf[0], n_images);
        return bx_at(error, "%s", path);
    }
    return set_predictions(draft, loc, conf, error);
}

bx_status proto_draft_set_target_dims(proto_draft *draft, const int64_t loc[3], const int64_t conf[3],
                                      const int64_t target_classes[2], const int64_t target_loc[3], bx_error *error) {
    bx_status status = set_images(draft, conf[0], "predictions.conf", error);
    if (!status)
        status = set_predictions(draft, loc, conf, error);
    if (status)
        return status;
    if (target_classes[0] != conf[0] || target_classes[1] != conf[1]) {
        bx_fail(error, BX_SHAPE, "shape", "the classes of the targets are [%lld,%lld]; conf is [%lld,%lld,%lld]",
                (long long)target_classes[0], (long long)target_classes[1], (long long)conf[0], (long long)conf[1],
                (long long)conf[2]);
        return bx_at(error, "targets.classes");
    }
    if (target_loc[0] != loc[0] || target_loc[1] != loc[1] || target_loc[2] != 4) {
        bx_fail(error, BX_SHAPE, "shape",
                "the loc of the targets is [%lld,%lld,%lld], that of the predictions "
                "[%lld,%lld,%lld]",
                (long long)target_loc[0], (long long)target_loc[1], (long long)target_loc[2], (long long)loc[0],
                (long long)loc[1], (long long)loc[2]);
        return bx_at(error, "targets.loc");
    }
    return BX_OK;
}

static void draft_fini(proto_draft *draft) {
    for (int i = 0; i < draft->n_documents; i++)
        proto_document_fini(&draft->documents[i]);
    proto_document_fini(&draft->document);
    proto_container_fini(&draft->container);
    free(draft->copies);
    free(draft->memory);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

proto_encoding proto_encoding_guess(const void *body, size_t bytes) {
    const char *first = body;
    const size_t length = bytes < PROTO_GUESS_BYTES ? bytes : PROTO_GUESS_BYTES;
    if (bytes == 0 || memchr(first, '\0', length)) /* no JSON has a NUL, and every header length has */
        return PROTO_SAFETENSORS;
    return strchr("{[ \t\r\n", *first) ? PROTO_JSON : PROTO_SAFETENSORS;
}

/* What of a document's stores the request views: F32 and I32 in JSON; in an inference F32, F64 and I64. */
static const bx_dtype kept[] = {BX_F32, BX_I32, BX_F64, BX_I64};

_Static_assert(sizeof((proto_request *)0)->memory / sizeof(void *) == 2 + sizeof kept / sizeof kept[0],
               "a place for the draft's memory, for its copies and for each store");

/* Predictions and targets stay in the document's stores, which the request takes over. */
static void *take_store(proto_request *request, proto_draft *draft, bx_dtype dtype) {
    proto_store *store = &draft->document.stores[dtype];
    void *data = store->data;
    request->memory_bytes += store->capacity * bx_dtype_bytes(dtype);
    *store = (proto_store){0};
    return data;
}

/* What was found out about an inference, copied from the document. */
static bx_status take_infer(proto_request *request, const proto_draft *draft, bx_error *error) {
    request->infer = draft->infer;
    request->infer.id = NULL;
    if (!draft->infer.id)
        return BX_OK;
    const size_t bytes = strlen(draft->infer.id) + 1;
    request->infer.id = malloc(bytes);
    if (!request->infer.id)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the id");
    memcpy(request->infer.id, draft->infer.id, bytes);
    request->memory_bytes += bytes;
    return BX_OK;
}

static bx_status decode(proto_request *request, proto_draft *draft, const void *body, size_t bytes,
                        const proto_option *query, size_t n_query, const proto_catalog *catalog, bx_error *error) {
    static bx_status (*const readers[])(proto_draft * draft, const void *body, size_t bytes, bx_error *error) = {
        [PROTO_JSON] = proto_draft_json, [PROTO_SAFETENSORS] = proto_draft_tensors, [PROTO_INFER] = proto_draft_infer};
    bx_error unwanted = {0};
    error = error ? error : &unwanted;
    proto_request made = {.task = draft->task, .encoding = draft->encoding};
    bx_status status = readers[draft->encoding](draft, body, bytes, error);
    if (!status)
        status = proto_draft_query(draft, query, n_query, error);
    if (!status)
        status = proto_draft_resolve(draft, &made, catalog, error);
    if (!status)
        status = take_infer(&made, draft, error);
    if (!status) {
        made.batch = draft->batch;
        made.batch.explained = (made.include & (PROTO_INCLUDE_ASSIGNMENT | PROTO_INCLUDE_TARGETS)) != 0;
        made.memory[0] = draft->memory;
        for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
            if (i < 2 || draft->encoding == PROTO_INFER)
                made.memory[1 + i] = take_store(&made, draft, kept[i]);
        made.memory[sizeof made.memory / sizeof made.memory[0] - 1] = draft->copies;
        made.memory_bytes += draft->memory_bytes;
        draft->memory = draft->copies = NULL;
        *request = made;
    } else {
        proto_request_free(&made);
    }
    draft_fini(draft);
    return status;
}

bx_status proto_request_decode(proto_request *request, proto_task task, proto_encoding encoding, const void *body,
                               size_t bytes, const proto_option *query, size_t n_query, const proto_catalog *catalog,
                               const proto_limits *limits, bx_error *error) {
    proto_draft draft = {.task = task, .encoding = encoding, .limits = limits};
    return decode(request, &draft, body, bytes, query, n_query, catalog, error);
}

bx_status proto_infer_decode(proto_request *request, const char *model, int64_t json_bytes, const void *body,
                             size_t bytes, const proto_option *query, size_t n_query, const proto_catalog *catalog,
                             const proto_limits *limits, bx_error *error) {
    proto_draft draft = {
        .task = PROTO_LOSS, .encoding = PROTO_INFER, .limits = limits, .model = model, .json_bytes = json_bytes};
    return decode(request, &draft, body, bytes, query, n_query, catalog, error);
}

void proto_request_free(proto_request *request) {
    bx_criterion_free(request->criterion);
    bx_priors_free(request->priors);
    free(request->infer.id);
    for (size_t i = 0; i < sizeof request->memory / sizeof request->memory[0]; i++)
        free(request->memory[i]);
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

/* "predictions.conf[2][55]" -> "conf[2,55]"; "targets.loc[2][55]" -> "target_loc[2,55]"; "annotations[3].boxes[7]" ->
 * "boxes[19]" */
static void tensor_pointer(char *out, size_t size, const proto_request *request, const char *path) {
    static const char predictions[] = "predictions.", targets[] = "targets.", annotations[] = "annotations";
    char rest[sizeof((bx_error *)0)->path];
    int image, end = 0;
    long long object;

    if (strncmp(path, predictions, sizeof predictions - 1) == 0)
        path += sizeof predictions - 1;
    if (strncmp(path, targets, sizeof targets - 1) == 0) {
        snprintf(rest, sizeof rest, "target_%s", path + sizeof targets - 1);
        path = rest;
    }
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
