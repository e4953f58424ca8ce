/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A body of tensors to a draft: which tensors a request has, what dtypes and shapes they take. Predictions, targets and
 * boxes stay where they are; the rest of the annotations, which are few, is copied. Inferences (infer.c) come here as
 * safetensors bodies do.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(dtype) (1u << BX_##dtype)
#define FLOATS     (BIT(F32) | BIT(F16) | BIT(BF16) | BIT(F64))

#define LOSS_ONLY (1u << PROTO_LOSS)
#define ALWAYS    (1u << PROTO_LOSS | 1u << PROTO_MATCH)

/* What a tensor is part of. Annotations and targets exclude each other; whole parts are needed but for what may be left
 * out. */
enum part { PREDICTIONS, ANNOTATIONS, TARGETS, OPTIONS };

/* id, name, dtypes it may have, rank, size of its last dimension (0: any), tasks that know it, part, may be left out */
#define TENSOR_ROWS(X)                                                                                                 \
    X(COUNTS, "counts", BIT(I64) | BIT(I32), 1, 0, ALWAYS, ANNOTATIONS, false)                                         \
    X(LABELS, "labels", BIT(I64) | BIT(I32) | BIT(I16) | BIT(I8) | BIT(U8), 1, 0, ALWAYS, ANNOTATIONS, false)          \
    X(BOXES, "boxes", FLOATS, 2, 4, ALWAYS, ANNOTATIONS, false)                                                        \
    X(IGNORE, "ignore", BIT(BOOL) | BIT(U8), 1, 0, ALWAYS, ANNOTATIONS, true)                                          \
    X(LOC, "loc", FLOATS, 3, 4, LOSS_ONLY, PREDICTIONS, false)                                                         \
    X(CONF, "conf", FLOATS, 3, 0, LOSS_ONLY, PREDICTIONS, false)                                                       \
    X(TARGET_CLASSES, "target_classes", BIT(I64) | BIT(I32), 2, 0, LOSS_ONLY, TARGETS, false)                          \
    X(TARGET_LOC, "target_loc", BIT(F32), 3, 4, LOSS_ONLY, TARGETS, false)                                             \
    X(PRIORS, "priors", BIT(F32) | BIT(F64), 2, 4, ALWAYS, OPTIONS, true)                                              \
    X(IMAGE_SIZES, "image_sizes", BIT(F32), 2, 2, ALWAYS, OPTIONS, true)

enum {
#define ROW(id, name, dtypes, rank, last, tasks, part, optional) TENSOR_##id,
    TENSOR_ROWS(ROW)
#undef ROW
        N_TENSORS
};

static const struct tensor_row {
    const char *name;
    unsigned dtypes;
    int rank, last;
    unsigned tasks;
    enum part part;
    bool optional;
} rows[N_TENSORS] = {
#define ROW(id, name, dtypes, rank, last, tasks, part, optional) {name, dtypes, rank, last, tasks, part, optional},
    TENSOR_ROWS(ROW)
#undef ROW
};

static const char *tensor_at(unsigned task, size_t i) {
    for (size_t row = 0; row < N_TENSORS; row++)
        if (rows[row].tasks & task && i-- == 0)
            return rows[row].name;
    return NULL;
}

static const char *loss_tensor_at(size_t i) {
    return tensor_at(1u << PROTO_LOSS, i);
}

static const char *match_tensor_at(size_t i) {
    return tensor_at(1u << PROTO_MATCH, i);
}

/* ---- one tensor -------------------------------------------------------------------------------------------------- */

static bx_status check_dtype(const struct tensor_row *row, const proto_tensor *tensor, proto_encoding encoding,
                             bx_error *error) {
    if (tensor->dtype != BX_N_DTYPES && row->dtypes & 1u << tensor->dtype)
        return BX_OK;
    char accepted[64] = "";
    size_t used = 0;
    for (unsigned i = 0; i < BX_N_DTYPES; i++)
        if (row->dtypes & 1u << i)
            used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%s", used ? ", " : "",
                                     (encoding == PROTO_INFER ? proto_datatype_name : bx_dtype_name)((bx_dtype)i));
    bx_fail(error, BX_INVALID, "dtype", "tensor \"%s\" is %.32s; accepted are %s", row->name, tensor->dtype_name,
            accepted);
    return bx_at(error, "%s", row->name);
}

static bx_status check_shape(const struct tensor_row *row, const proto_tensor *tensor, bx_error *error) {
    if (tensor->rank == row->rank && (row->last == 0 || tensor->shape[row->rank - 1] == row->last))
        return BX_OK;
    char shape[192] = "";
    size_t used = 0;
    for (int i = 0; i < tensor->rank; i++)
        used +=
            (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", i ? "," : "", (long long)tensor->shape[i]);
    if (row->last)
        bx_fail(error, BX_SHAPE, "shape", "tensor \"%s\" has shape [%s]; %d dimensions are needed, the last being %d",
                row->name, shape, row->rank, row->last);
    else
        bx_fail(error, BX_SHAPE, "shape", "tensor \"%s\" has shape [%s]; %d dimension%s needed", row->name, shape,
                row->rank, row->rank == 1 ? " is" : "s are");
    return bx_at(error, "%s", row->name);
}

/* Sort the file's tensors into the rows; absent ones are NULL. */
static bx_status bind(const proto_draft *draft, const proto_tensor *found[N_TENSORS], bx_error *error) {
    unsigned task = 1u << draft->task;
    for (int i = 0; i < draft->container.n_tensors; i++) {
        const proto_tensor *tensor = &draft->container.tensors[i];
        int row = 0;
        while (row < N_TENSORS && !(rows[row].tasks & task && proto_same(rows[row].name, tensor->name)))
            row++;
        if (row == N_TENSORS) {
            proto_refuse(error, "unknown_member", "tensor", tensor->name,
                         draft->task == PROTO_LOSS ? loss_tensor_at : match_tensor_at);
            return proto_at_member(error, "", tensor->name);
        }
        bx_status status = check_dtype(&rows[row], tensor, draft->encoding, error);
        if (!status)
            status = check_shape(&rows[row], tensor, error);
        if (status)
            return status;
        found[row] = tensor;
    }
    return BX_OK;
}

/* What lies in shared memory may change after it was looked at. Of predictions nothing depends but numbers; all else is
 * copied before anybody looks. */
static bx_status copy_shared(proto_draft *draft, const proto_tensor *found[N_TENSORS], bx_error *error) {
    size_t bytes = 0;
    for (int row = 0; row < N_TENSORS; row++)
        if (found[row] && rows[row].part != PREDICTIONS &&
            __builtin_add_overflow(bytes, found[row]->shared_bytes, &bytes))
            return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the batch");
    if (bytes == 0)
        return BX_OK;
    bx_status status = proto_reserve(draft->limits, bytes, error);
    if (status)
        return status;
    char *to = draft->copies = malloc(bytes);
    if (!to)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the batch");
    draft->memory_bytes += bytes;
    for (int row = 0; row < N_TENSORS; row++) {
        const size_t n = found[row] && rows[row].part != PREDICTIONS ? found[row]->shared_bytes : 0;
        proto_tensor *tensor = n ? &draft->container.tensors[found[row] - draft->container.tensors] : NULL;
        if (tensor) {
            tensor->view.data = memcpy(to, tensor->view.data, n);
            to += n;
        }
    }
    return BX_OK;
}

/* Whether there is some tensor of the part. */
static bool has_part(const proto_tensor *const found[N_TENSORS], enum part part) {
    bool has = false;
    for (int row = 0; row < N_TENSORS; row++)
        has |= rows[row].part == part && found[row];
    return has;
}

static bx_status check_parts(const proto_draft *draft, const proto_tensor *const found[N_TENSORS], bx_error *error) {
    const bool targets = has_part(found, TARGETS);
    if (targets && has_part(found, ANNOTATIONS)) {
        bx_fail(error, BX_INVALID, "targets_twice",
                "boxes, labels, counts and ignore are there to be matched, "
                "target_classes and target_loc are matched already: send one of them");
        return bx_at(error, "%s", found[TENSOR_TARGET_CLASSES] ? "target_classes" : "target_loc");
    }
    for (int row = 0; row < N_TENSORS; row++) {
        bool other = rows[row].part == (targets ? ANNOTATIONS : TARGETS);
        if (rows[row].tasks & 1u << draft->task && !other && !rows[row].optional && !found[row]) {
            bx_fail(error, BX_INVALID, "missing_member", "the tensor \"%s\" is missing", rows[row].name);
            return bx_at(error, "%s", rows[row].name);
        }
    }
    return BX_OK;
}

/* ---- the whole body ---------------------------------------------------------------------------------------------- */

static bx_status read_metadata(proto_draft *draft, bx_error *error) {
    const char *name = NULL, *value;
    while (proto_container_next(&draft->container, &name, &value)) {
        if (strcmp(name, "format") == 0)
            continue; /* common writers set it */
        int option;
        if (proto_draft_option(&option, draft, name, error))
            return proto_at_member(error, "__metadata__", name);
        draft->options[option].text = value;
    }
    return BX_OK;
}

static bx_status refuse_sum(bx_error *error, unsigned long long sum, const char *by, size_t n_objects) {
    return bx_fail(error, BX_SHAPE, "counts", "counts add up to %llu%s, and there %s %zu box%s", sum, by,
                   n_objects == 1 ? "is" : "are", n_objects, n_objects == 1 ? "" : "es");
}

/* counts (N) to first (N+1); they must sum to the number of objects. */
static bx_status read_counts(proto_draft *draft, const proto_tensor *counts, size_t n_objects, bx_error *error) {
    int64_t sum = 0;
    draft->first[0] = 0;
    for (size_t i = 0; i < (size_t)counts->shape[0]; i++) {
        int64_t count = bx_tensor_int(counts->view, i);
        if (count < 0) {
            bx_fail(error, BX_SHAPE, "counts", "image %zu has %lld objects", i, (long long)count);
            return bx_at(error, "counts[%zu]", i);
        }
        if (count > (int64_t)n_objects - sum) {
            char by[40];
            snprintf(by, sizeof by, " by image %zu", i);
            refuse_sum(error, (unsigned long long)sum + (unsigned long long)count, by, n_objects);
            return bx_at(error, "counts[%zu]", i);
        }
        sum += count;
        draft->first[i + 1] = (int32_t)sum;
    }
    if (sum != (int64_t)n_objects) {
        refuse_sum(error, (unsigned long long)sum, "", n_objects);
        return bx_at(error, "counts");
    }
    return BX_OK;
}

/* Flags are 0 or 1. */
static bx_status read_ignore(proto_draft *draft, const proto_tensor *ignore, size_t n_objects, bx_error *error) {
    for (size_t i = 0; ignore && i < n_objects; i++) {
        int64_t flag = bx_tensor_int(ignore->view, i);
        if (flag > 1) {
            bx_fail(error, BX_INVALID, "type_mismatch", "expected 0 or 1, got %lld", (long long)flag);
            return bx_at(error, "ignore[%zu]", i);
        }
        draft->use[i] = flag ? BX_OBJECT_IGNORED : BX_OBJECT_USED;
    }
    return BX_OK;
}

static bx_status read_annotations(proto_draft *draft, const proto_tensor *const found[N_TENSORS], bx_error *error) {
    const proto_tensor *counts = found[TENSOR_COUNTS], *boxes = found[TENSOR_BOXES], *labels = found[TENSOR_LABELS];
    const proto_tensor *loc = found[TENSOR_LOC], *conf = found[TENSOR_CONF], *ignore = found[TENSOR_IGNORE];
    size_t n_images = (size_t)counts->shape[0], n_objects = (size_t)boxes->shape[0];
    for (int i = 0; i < 2; i++) {
        const proto_tensor *each = i == 0 ? labels : ignore;
        if (each && each->shape[0] != boxes->shape[0]) {
            bx_fail(error, BX_SHAPE, "shape", "there are %zu boxes but %lld %s", n_objects, (long long)each->shape[0],
                    i == 0 ? "labels" : "values of ignore");
            return bx_at(error, "%s", each->name);
        }
    }
    bx_status status = proto_draft_allocate(draft, n_images, n_objects, error);
    if (!status)
        status = read_counts(draft, counts, n_objects, error);
    if (!status)
        status = read_ignore(draft, ignore, n_objects, error);
    if (status)
        return status;
    draft->boxes_sent = boxes->view;
    for (size_t i = 0; i < n_objects; i++)
        draft->labels[i] = bx_tensor_int(labels->view, i);
    return proto_draft_set_dims(draft, loc ? loc->shape : NULL, conf ? conf->shape : NULL, n_images, error);
}

static bx_status read_targets(proto_draft *draft, const proto_tensor *const found[N_TENSORS], bx_error *error) {
    const proto_tensor *classes = found[TENSOR_TARGET_CLASSES], *loc = found[TENSOR_TARGET_LOC];
    bx_status status = proto_draft_set_target_dims(draft, found[TENSOR_LOC]->shape, found[TENSOR_CONF]->shape,
                                                   classes->shape, loc->shape, error);
    if (!status)
        status = proto_draft_allocate(draft, (size_t)draft->batch.n_images, 0, error);
    draft->with_targets = true;
    draft->batch.target_classes = classes->view;
    draft->batch.target_loc = loc->view;
    return status;
}

bx_status proto_draft_tensors(proto_draft *draft, const void *body, size_t bytes, bx_error *error) {
    bx_status status = proto_container_read(&draft->container, body, bytes, error);
    return status ? status : proto_draft_bind(draft, error);
}

bx_status proto_draft_bind(proto_draft *draft, bx_error *error) {
    const proto_tensor *found[N_TENSORS] = {0};
    bx_status status = bind(draft, found, error);
    if (!status)
        status = check_parts(draft, found, error);
    if (!status)
        status = copy_shared(draft, found, error);
    if (!status)
        status = read_metadata(draft, error);
    if (status)
        return status;
    draft->priors = found[TENSOR_PRIORS];
    draft->image_sizes = found[TENSOR_IMAGE_SIZES];
    if (draft->task == PROTO_LOSS) {
        draft->batch.loc = found[TENSOR_LOC]->view;
        draft->batch.conf = found[TENSOR_CONF]->view;
    }
    return found[TENSOR_TARGET_CLASSES] ? read_targets(draft, found, error) : read_annotations(draft, found, error);
}

bx_status proto_find_priors(const proto_tensor **priors, const proto_container *container, bx_error *error) {
    const struct tensor_row *row = &rows[TENSOR_PRIORS];
    const proto_tensor *found = NULL;
    for (int i = 0; i < container->n_tensors; i++) {
        if (strcmp(container->tensors[i].name, row->name) != 0) {
            bx_fail(error, BX_INVALID, "unknown_member", "a set of priors is one tensor, \"priors\", without \"%.64s\"",
                    container->tensors[i].name);
            return proto_at_member(error, "", container->tensors[i].name);
        }
        found = &container->tensors[i];
    }
    if (!found) {
        bx_fail(error, BX_INVALID, "missing_member", "the tensor \"%s\" is missing", row->name);
        return bx_at(error, "%s", row->name);
    }
    bx_status status = check_dtype(row, found, PROTO_SAFETENSORS, error);
    if (!status)
        status = check_shape(row, found, error);
    if (!status)
        *priors = found;
    return status;
}

bool proto_input_at(size_t i, proto_slot *input, bool *optional) {
    if (i >= N_TENSORS)
        return false;
    const struct tensor_row *row = &rows[i];
    *input = (proto_slot){.name = row->name, .dtype = (bx_dtype)__builtin_ctz(row->dtypes), .rank = row->rank};
    for (int axis = 0; axis < row->rank; axis++)
        input->shape[axis] = axis + 1 == row->rank && row->last ? row->last : -1;
    *optional = row->optional || row->part == TARGETS || row->part == ANNOTATIONS; /* one of these parts is enough */
    return true;
}
