/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a draft to a request: options of body and query, and the criterion and the priors that they name or hold.
 *
 * The body readers have checked every shape but those of options, so what remains here can only fail for options and
 * memory.
 */
#include "internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of an option given as JSON text: its length, and what its tree may take of the heap. */
#define MAX_TEXT            (256u << 10)
#define TEXT_MEMORY(length) (64 * (length) + (64u << 10))

/* ---- values ------------------------------------------------------------------------------------------------------ */

bx_status proto_draft_option(int *option, const proto_draft *draft, const char *name, bx_error *error) {
    *option = proto_option_find(draft->task, name);
    if (*option < 0)
        return proto_refuse(error, "unknown_member", "option", name, proto_options(draft->task));
    if (*option == PROTO_OPTION_CRITERION && draft->model)
        return bx_fail(
            error, BX_INVALID, "invalid_option",
            "the criterion is the model that the path names, \"%.64s\"; PUT /v1/criteria/{name} makes others",
            draft->model);
    return BX_OK;
}

bx_status proto_draft_query(proto_draft *draft, const proto_option *query, size_t n_query, bx_error *error) {
    bool seen[PROTO_N_OPTIONS] = {false};
    for (size_t i = 0; i < n_query; i++) {
        int option;
        if (proto_draft_option(&option, draft, query[i].name, error))
            return proto_at_member(error, "", query[i].name);
        if (seen[option]) {
            bx_fail(error, BX_INVALID, "duplicate_option", "the query gives %s twice", query[i].name);
            return bx_at(error, "%s", query[i].name);
        }
        seen[option] = true;
        draft->options[option] = (proto_value){.text = query[i].value};
    }
    return BX_OK;
}

/* Options that may be JSON values are such values from here on, also where they came as text. */
static bx_status parse_texts(proto_draft *draft, bx_error *error) {
    static const int options[PROTO_MAX_TEXTS] = {PROTO_OPTION_CRITERION, PROTO_OPTION_PRIORS, PROTO_OPTION_IMAGE_SIZE};
    for (int i = 0; i < PROTO_MAX_TEXTS; i++) {
        proto_value *value = &draft->options[options[i]];
        if (!value->text || (value->text[0] != '{' && value->text[0] != '['))
            continue;
        bx_error cause = {0};
        const size_t length = strlen(value->text);
        bx_status status = BX_OK;
        if (length > MAX_TEXT)
            status = bx_fail(&cause, BX_INVALID, "invalid_option",
                             "this JSON text has %zu bytes, %u are possible; send a tensor or a JSON body", length,
                             MAX_TEXT);
        proto_document *document = &draft->documents[draft->n_documents];
        proto_limits limits = *draft->limits;
        limits.json_memory = TEXT_MEMORY(length);
        if (!status)
            status = proto_document_read(document, value->text, length, proto_option_name(options[i]), proto_places,
                                         &limits, &cause);
        if (status == BX_MALFORMED)
            bx_fail(error, BX_INVALID, "invalid_option", "this JSON text cannot be read: %s", cause.text);
        else if (status)
            bx_fail(error, status, cause.code, "%s", cause.text);
        if (status)
            return bx_at(error, "%s", proto_option_name(options[i]));
        draft->n_documents++;
        *value = (proto_value){.node = document->root, .document = document};
    }
    return BX_OK;
}

static const char *include_name_at(size_t i) {
    static const char *const names[] = {
#define PROTO_INCLUDE(id, name) name,
#include "request.def"
        NULL};
    return names[i];
}

static const char *box_format_at(size_t i) {
    static const char *const names[] = {
#define ROW(id, name) name,
        PROTO_BOX_FORMAT_ROWS(ROW)
#undef ROW
            NULL};
    return names[i];
}

static const char *invalid_boxes_at(size_t i) {
    static const char *const names[] = {"refuse", "drop", NULL};
    return names[i];
}

static const char *label_base_at(size_t i) {
    static const char *const names[] = {"0", "1", NULL};
    return names[i];
}

/* Which of `known` an option says; the first when it is not given. */
static bx_status choose(size_t *choice, const proto_draft *draft, int option, proto_names known, bx_error *error) {
    const char *word = draft->options[option].text;
    size_t i = 0;
    while (word && known(i) && strcmp(known(i), word) != 0)
        i++;
    if (!known(i)) {
        proto_refuse(error, "invalid_option", proto_option_name(option), word, known);
        return bx_at(error, "%s", proto_option_name(option));
    }
    *choice = i;
    return BX_OK;
}

/* ---- what is wanted ---------------------------------------------------------------------------------------------- */

static bx_status resolve_gradients(proto_request *request, bx_error *error) {
    const bool sparse = request->include & PROTO_INCLUDE_GRADIENTS,
               dense = request->include & PROTO_INCLUDE_DENSE_GRADIENTS;
    const char *fault = sparse && dense ? "gradients and dense_gradients are two forms of the same; ask for one"
                        : request->task == PROTO_MATCH && (sparse || dense)
                            ? "gradients are of a loss; without predictions there is none"
                            : NULL;
    if (fault) {
        bx_fail(error, BX_INVALID, "invalid_option", "%s", fault);
        return bx_at(error, "include");
    }
    request->gradients = sparse ? BX_GRADIENTS_SPARSE : dense ? BX_GRADIENTS_DENSE : BX_GRADIENTS_NONE;
    return BX_OK;
}

static bx_status resolve_include(proto_request *request, const proto_draft *draft, bx_error *error) {
    const char *words = draft->options[PROTO_OPTION_INCLUDE].text;
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
    bx_status status = proto_infer_include(&request->include, draft->infer.outputs, draft->with_targets, error);
    return status ? status : resolve_gradients(request, error);
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
    strcpy(request->device, device); /* at most "cuda:" and three digits */
    return BX_OK;
}

static bx_status resolve_step(proto_request *request, const char *text, bx_error *error) {
    if (!proto_integer(text, 0, PROTO_MOST_STEP, &request->step)) {
        bx_fail(error, BX_INVALID, "invalid_option", "a step is an integer from 0 to %lld, not \"%.64s\"",
                (long long)PROTO_MOST_STEP, text);
        return bx_at(error, "step");
    }
    return BX_OK;
}

/* Where the result is to be recorded. */
static bx_status resolve_run(proto_request *request, const proto_draft *draft, bx_error *error) {
    const char *run = draft->options[PROTO_OPTION_RUN].text, *step = draft->options[PROTO_OPTION_STEP].text;
    if (!run && !step)
        return BX_OK;
    if (!run || !step) {
        bx_fail(error, BX_INVALID, "missing_member", "a result is recorded under a run and a step; there is no %s",
                run ? "step" : "run");
        return bx_at(error, run ? "step" : "run");
    }
    if (proto_run_check(run, error))
        return bx_at(error, "run");
    memcpy(request->run, run, strlen(run) + 1);
    return resolve_step(request, step, error);
}

/* ---- criterion and priors ---------------------------------------------------------------------------------------- */

static bx_status resolve_criterion(proto_request *request, const proto_draft *draft, const proto_catalog *catalog,
                                   bx_error *error) {
    const proto_value *given = &draft->options[PROTO_OPTION_CRITERION];
    const char *name = draft->model ? draft->model : given->text ? given->text : "ssd-multibox";
    bx_status status = given->node ? proto_criterion_object(&request->criterion, "inline", given->node, catalog, error)
                                   : catalog->criterion(catalog->context, name, &request->criterion, error);
    if (status)
        return bx_at(error, "criterion");
    const bx_classification *lists = &request->criterion->classification;
    request->memory_bytes += sizeof *request->criterion;
    request->memory_bytes += ((size_t)lists->n_alphas + (size_t)lists->n_class_weights) * sizeof(float);
    return BX_OK;
}

/* The set is not the request's own word, so say whose it is. */
static bx_status name_the_criterion(const bx_criterion *criterion, bx_error *error) {
    *error = (bx_error){0};
    return bx_fail(error, BX_INVALID, "unknown_priors",
                   "the criterion \"%s\" takes the prior set \"%s\", which is not there any more; name another",
                   criterion->name, criterion->priors);
}

/* Where the caller says nothing of priors. */
static bx_status default_priors(proto_request *request, const proto_draft *draft, const proto_catalog *catalog,
                                bx_error *error) {
    const bx_criterion *criterion = request->criterion;
    if (draft->with_targets && !bx_localization_needs_boxes(criterion->localization.kind)) {
        bx_priors *none;
        bx_status status = bx_priors_new(&none, NULL, draft->batch.n_priors, error);
        if (!status)
            request->priors = none;
        return status;
    }
    if (criterion->priors[0]) {
        bx_status status = catalog->priors(catalog->context, criterion->priors, &request->priors, error);
        return status == BX_INVALID && strcmp(criterion->name, "inline") != 0 ? name_the_criterion(criterion, error)
                                                                              : status;
    }
    return bx_fail(
        error, BX_INVALID, "missing_member",
        "the criterion \"%s\" has no priors of its own: name a set, such as retinanet-640x640 or grid-128x128 for "
        "images of that size, or send boxes",
        criterion->name);
}

static bx_status resolve_priors(proto_request *request, const proto_draft *draft, const proto_catalog *catalog,
                                bx_error *error) {
    const proto_value *given = &draft->options[PROTO_OPTION_PRIORS];
    bx_priors *own = NULL;
    bx_status status;
    if (draft->priors && (given->text || given->node))
        status = bx_fail(error, BX_INVALID, "priors_twice", "there are a tensor of priors and the option as well");
    else if (draft->priors)
        status = proto_priors_from_tensor(&own, draft->priors, draft->limits, error);
    else if (given->node)
        status = proto_priors_from_value(&own, given, draft->limits, error);
    else if (given->text)
        status = catalog->priors(catalog->context, given->text, &request->priors, error);
    else
        status = default_priors(request, draft, catalog, error);
    if (status)
        return bx_at(error, "priors");
    if (own) {
        request->priors = own;
        request->memory_bytes += bx_priors_bytes(own->n, own->n_levels);
    }
    return BX_OK;
}

/* ---- annotations ------------------------------------------------------------------------------------------------- */

/* Widths and heights, (n,2), malloc'd: one pair for all images, or one per image. */
struct sizes {
    double *pairs;
    size_t n;
    bool per_image;
};

static bx_status allocate_sizes(struct sizes *sizes, size_t n, bx_error *error) {
    sizes->n = n;
    sizes->pairs = malloc((n > 0 ? n : 1) * 2 * sizeof *sizes->pairs);
    return sizes->pairs ? BX_OK : bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the image sizes");
}

/* [width, height], or an array of such pairs. */
static bx_status read_sizes(struct sizes *sizes, const proto_value *value, bx_error *error) {
    proto_dense pairs = {.path = "image_size"};
    if (proto_json_kind(value->node) != PROTO_ARRAY)
        return proto_mismatch(error, "an array", value->node);
    bx_status status = proto_dense_read(&pairs, value->document, value->node, error);
    if (status)
        return status;
    if (pairs.shape[pairs.axes - 1] != 2)
        return bx_fail(error, BX_SHAPE, "shape", "a size is [width,height]; this one has %lld numbers",
                       (long long)pairs.shape[pairs.axes - 1]);
    sizes->per_image = pairs.axes == 2;
    const size_t n = proto_dense_count(&pairs) / 2;
    status = allocate_sizes(sizes, n, error);
    if (!status)
        memcpy(sizes->pairs, pairs.data, 2 * n * sizeof *sizes->pairs);
    return status;
}

static bx_status read_size_tensor(struct sizes *sizes, const proto_tensor *tensor, bx_error *error) {
    bx_status status = allocate_sizes(sizes, (size_t)tensor->shape[0], error);
    for (size_t i = 0; !status && i < 2 * sizes->n; i++) {
        float value;
        bx_tensor_to_f32(&value, tensor->view, i, 1);
        sizes->pairs[i] = value;
    }
    sizes->per_image = true;
    return status;
}

static bx_status check_sizes(const struct sizes *sizes, const char *path, int32_t n_images, bx_error *error) {
    if (sizes->per_image && sizes->n != (size_t)n_images) {
        bx_fail(error, BX_SHAPE, "shape", "%zu image size%s, but %d images", sizes->n, sizes->n == 1 ? "" : "s",
                (int)n_images);
        return bx_at(error, "%s", path);
    }
    for (size_t i = 0; i < sizes->n; i++) {
        const double width = sizes->pairs[2 * i], height = sizes->pairs[2 * i + 1];
        if (isfinite(width) && isfinite(height) && width > 0 && height > 0)
            continue;
        bx_fail(error, BX_INVALID, "invalid_option", "an image of %g by %g; both must be positive and finite", width,
                height);
        return sizes->per_image ? bx_at(error, "%s[%zu]", path, i) : bx_at(error, "%s", path);
    }
    return BX_OK;
}

static bx_status resolve_sizes(struct sizes *sizes, const proto_draft *draft, const bx_priors *priors,
                               bx_error *error) {
    const proto_value *given = &draft->options[PROTO_OPTION_IMAGE_SIZE];
    const char *path = draft->image_sizes ? "image_sizes" : "image_size";
    bx_status status;
    if (!draft->image_sizes && !given->text && !given->node)
        return BX_OK;
    if (draft->image_sizes && (given->text || given->node))
        status = bx_fail(error, BX_INVALID, "image_size_twice",
                         "there are a tensor of image sizes and the option image_size as well");
    else if (!priors->relative)
        status = bx_fail(error, BX_INVALID, "invalid_option",
                         "boxes would become shares of their image, but the priors \"%s\" are in pixels; leave the "
                         "image size out",
                         priors->name);
    else if (draft->image_sizes)
        status = read_size_tensor(sizes, draft->image_sizes, error);
    else if (given->node)
        status = read_sizes(sizes, given, error);
    else
        status =
            bx_fail(error, BX_INVALID, "invalid_option",
                    "image_size is [width,height], or an array of one such pair per image, not \"%.64s\"", given->text);
    if (status)
        return bx_at(error, "%s", path);
    return check_sizes(sizes, path, draft->batch.n_images, error);
}

static bx_status resolve_annotations(proto_request *request, proto_draft *draft, bx_error *error) {
    size_t format = 0, drop = 0, base = 0;
    struct sizes sizes = {0};
    bx_status status = choose(&format, draft, PROTO_OPTION_BOX_FORMAT, box_format_at, error);
    if (!status)
        status = choose(&drop, draft, PROTO_OPTION_INVALID_BOXES, invalid_boxes_at, error);
    if (!status)
        status = choose(&base, draft, PROTO_OPTION_LABEL_BASE, label_base_at, error);
    request->label_base = (int32_t)base;
    if (!status && !draft->with_targets)
        status = resolve_sizes(&sizes, draft, request->priors, error);
    if (!status && !draft->with_targets) {
        const proto_notation notation = {.format = (proto_box_format)format,
                                         .drop = drop == 1,
                                         .label_base = request->label_base,
                                         .sizes = sizes.pairs,
                                         .n_sizes = sizes.n};
        proto_draft_place_objects(draft, &notation, request->criterion->matcher.iou);
    }
    free(sizes.pairs);
    return status;
}

/* Without predictions the number of classes is an option, or what the labels need. */
static bx_status resolve_classes(const proto_request *request, bx_batch *batch, const char *text, bx_error *error) {
    const int32_t background = request->criterion->classification.background != BX_BACKGROUND_NONE;
    const int64_t most = BX_MAX_COLUMNS - background;
    int64_t classes = 1;
    if (text) {
        size_t digits = strspn(text, "0123456789");
        classes = digits >= 1 && digits <= 9 && text[digits] == '\0' ? strtol(text, NULL, 10) : 0;
        if (classes < 1 || classes > most) {
            bx_fail(error, BX_INVALID, "invalid_option", "classes must be 1 to %lld, not \"%.64s\"", (long long)most,
                    text);
            return bx_at(error, "classes");
        }
    } else {
        for (int32_t i = 0; i < batch->first[batch->n_images]; i++)
            if ((!batch->use || batch->use[i] == BX_OBJECT_USED) && batch->labels[i] >= classes)
                classes = batch->labels[i] < most ? batch->labels[i] + 1 : most; /* beyond: refused with its path */
    }
    batch->n_columns = (int32_t)classes + background;
    return BX_OK;
}

/* A label that is too small is told as it was sent; the plan, which checks them all, knows zero-based labels only. */
static bx_status check_labels(const proto_request *request, const proto_draft *draft, bx_error *error) {
    const bx_batch *batch = &draft->batch;
    const int32_t base = request->label_base;
    const int32_t n_classes = bx_criterion_classes(request->criterion, batch->n_columns);
    for (int32_t image = 0; base && n_classes > 0 && image < batch->n_images; image++)
        for (int32_t i = batch->first[image]; i < batch->first[image + 1]; i++) {
            const int64_t label = batch->labels[i];
            if ((batch->use && batch->use[i] != BX_OBJECT_USED) || (label >= 0 && label < n_classes))
                continue;
            bx_fail(error, BX_INVALID, "label_range",
                    "label %d of image %d is %lld, which is not in %d to %d; label_base is %d",
                    (int)(i - batch->first[image]), (int)image, (long long)(label > INT64_MIN ? label + base : label),
                    base, base + n_classes - 1, base);
            return draft->encoding == PROTO_JSON
                       ? bx_at(error, "annotations[%d].labels[%d]", image, i - batch->first[image])
                       : bx_at(error, "labels[%d]", i);
        }
    return BX_OK;
}

bx_status proto_draft_resolve(proto_draft *draft, proto_request *request, const proto_catalog *catalog,
                              bx_error *error) {
    bx_status status = parse_texts(draft, error);
    if (!status)
        status = resolve_criterion(request, draft, catalog, error);
    if (!status)
        status = resolve_include(request, draft, error);
    if (!status)
        status = resolve_device(request, draft->options[PROTO_OPTION_DEVICE].text, error);
    if (!status)
        status = resolve_run(request, draft, error);
    if (!status)
        status = resolve_priors(request, draft, catalog, error);
    if (!status)
        status = resolve_annotations(request, draft, error);
    if (!status && draft->task == PROTO_MATCH)
        status = resolve_classes(request, &draft->batch, draft->options[PROTO_OPTION_CLASSES].text, error);
    if (!status)
        status = check_labels(request, draft, error);
    return status;
}
