/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jobs of the cuda backend: where their arrays lie on the device, and what is copied and launched when.
 *
 * The arrays have the very layout that they have on the host (bx_job_place), so results come back as they are. Copies
 * to the host are asked for only when what they copy is done.
 */
#include <string.h>

#include "cuda_host.h"

/* Rows of gradients are brought back in pieces of at least so many bytes, where there are as many. */
#define PIECE_BYTES ((size_t)4 << 20)

/* ---- where things lie -------------------------------------------------------------------------------------------- */

/* Offsets in the context's memory; float and integer tensors of any dtype. */
typedef struct places {
    size_t priors, work, best, too_far, n_listed, boxes, labels, use, first, conf, loc, target_classes, target_loc,
        gradients;
    size_t bytes; /* with the least room for gradients */
} places;

enum { PRIOR_COLUMNS = 10 }; /* boxes (P,4), x1, y1, x2, y2, area, size */

static size_t prior_column(const bx_plan *plan) {
    return bx_round_up((size_t)plan->n_priors * sizeof(float));
}

/* One row of the gradient, and what its three arrays lose by their alignment. */
static size_t row_bytes(const bx_plan *plan) {
    return 2 * sizeof(int32_t) + (4 + (size_t)plan->n_columns) * sizeof(float);
}

static places places_of(const bx_plan *plan, const bx_batch *batch) {
    const size_t rows = (size_t)plan->n_images * (size_t)plan->n_priors, objects = (size_t)plan->n_objects;
    const size_t scored = plan->with_predictions ? rows : 0, given = plan->with_targets ? rows : 0;
    places at;
    size_t bytes = 0;
#define PLACE(member, size)                                                                                            \
    do {                                                                                                               \
        at.member = bytes;                                                                                             \
        bytes += bx_round_up(size);                                                                                    \
    } while (0)
    PLACE(priors, plan->priors->boxes ? PRIOR_COLUMNS * prior_column(plan) : 0);
    PLACE(work, plan->work_bytes);
    PLACE(best, objects * sizeof(unsigned long long));
    PLACE(too_far, (size_t)plan->n_images * sizeof(int32_t));
    PLACE(n_listed, (size_t)plan->n_images * sizeof(int32_t));
    PLACE(boxes, objects * 4 * sizeof(float));
    PLACE(labels, objects * sizeof(int64_t));
    PLACE(use, objects);
    PLACE(first, ((size_t)plan->n_images + 1) * sizeof(int32_t));
    PLACE(conf, scored * (size_t)plan->n_columns * bx_dtype_bytes(batch->conf.dtype));
    PLACE(loc, scored * 4 * bx_dtype_bytes(batch->loc.dtype));
    PLACE(target_classes, given * bx_dtype_bytes(batch->target_classes.dtype));
    PLACE(target_loc, given * 4 * sizeof(float));
#undef PLACE
    at.gradients = bytes;
    if (plan->gradients != BX_GRADIENTS_NONE) {
        const size_t all = rows * row_bytes(plan);
        bytes += row_bytes(plan) + 3 * BX_ALIGN + (all < PIECE_BYTES ? all : PIECE_BYTES);
    }
    at.bytes = bytes;
    return at;
}

size_t bx_plan_device_bytes(const bx_plan *plan, const bx_batch *batch) {
    return places_of(plan, batch).bytes;
}

/* ---- a job ------------------------------------------------------------------------------------------------------- */

static bx_status upload(bx_cuda *c, void *to, const void *from, size_t bytes, bx_error *error) {
    if (bytes > 0) {
        TRY(cudaMemcpyAsync, to, from, bytes, cudaMemcpyHostToDevice, c->stream);
    }
    return BX_OK;
}

static bx_status download(bx_cuda *c, void *to, const void *from, size_t bytes, bx_error *error) {
    if (bytes > 0) {
        TRY(cudaMemcpyAsync, to, from, bytes, cudaMemcpyDeviceToHost, c->stream);
    }
    return BX_OK;
}

static bx_status clear(bx_cuda *c, void *at, int byte, size_t bytes, bx_error *error) {
    if (bytes > 0) {
        TRY(cudaMemsetAsync, at, byte, bytes, c->stream);
    }
    return BX_OK;
}

/* The prior set of the job before this one is there already. */
static bx_status upload_priors(bx_cuda *c, const bx_priors *priors, bx_error *error) {
    bx_cuda_args *a = &c->args;
    const size_t n = (size_t)priors->n, bytes = n * sizeof(float), column = bx_round_up(bytes);
    char *to = c->memory;
    const float *columns[] = {priors->x1, priors->y1, priors->x2, priors->y2, priors->area, priors->size};
    const float *there[6];
    for (int i = 0; i < 6; i++) {
        there[i] = (const float *)(const void *)(to + (size_t)i * column);
    }
    const bool sizes = a->matcher.iou == BX_IOU_SIZES;
    a->x1 = there[0];
    a->y1 = there[1];
    a->x2 = there[2];
    a->y2 = there[3];
    a->area = there[sizes ? 5 : 4];
    a->prior_boxes = (const float *)(const void *)(to + 6 * column);
    if (c->priors == priors) {
        return BX_OK;
    }
    bx_priors_free(c->priors);
    c->priors = NULL;
    bx_status status = upload(c, to + 6 * column, priors->boxes, 4 * bytes, error);
    for (int i = 0; i < 6 && status == BX_OK; i++) {
        status = upload(c, to + (size_t)i * column, columns[i], bytes, error);
    }
    if (status == BX_OK) {
        c->priors = bx_priors_ref(priors);
    }
    return status;
}

/* What the kernels need to know of the plan. */
static void set_args(bx_cuda_args *a, const bx_job *job, const places *at, char *memory) {
    const bx_plan *plan = job->plan;
    const bx_batch *batch = job->batch;
    const bx_criterion *criterion = plan->criterion;
    const bx_scoring scoring = bx_scoring_of(job);
    *a = (bx_cuda_args){
        .n_images = plan->n_images,
        .n_priors = plan->n_priors,
        .n_columns = plan->n_columns,
        .n_classes = plan->n_classes,
        .n_levels = plan->priors->n_levels,
        .n_blocks = plan->n_blocks,
        .with_predictions = plan->with_predictions,
        .with_targets = plan->with_targets,
        .mines_across = plan->mines_across,
        .matcher = criterion->matcher,
        .classification = scoring.kind,
        .background = scoring.background,
        .first_class = bx_class_column(criterion, 0),
        .plain = scoring.plain,
        .gamma = scoring.gamma,
        .smoothing = scoring.smoothing,
        .mining = criterion->mining,
        .localization = criterion->localization,
        .boxes = (const float *)(const void *)(memory + at->boxes),
        .labels = (const int64_t *)(const void *)(memory + at->labels),
        .use = batch->use ? (const uint8_t *)(memory + at->use) : NULL,
        .first = (const int32_t *)(const void *)(memory + at->first),
        .conf = {batch->conf.dtype, memory + at->conf},
        .loc = {batch->loc.dtype, memory + at->loc},
        .target_classes = {batch->target_classes.dtype, memory + at->target_classes},
        .target_loc = {BX_F32, memory + at->target_loc},
        .best = (unsigned long long *)(void *)(memory + at->best),
        .too_far = (int32_t *)(void *)(memory + at->too_far),
        .n_listed = (int32_t *)(void *)(memory + at->n_listed),
        .loc_weight = criterion->weights.loc,
        .conf_weight = criterion->weights.conf,
    };
    memcpy(a->variances, criterion->coder.variances, sizeof a->variances);
    for (int32_t l = 0; l < a->n_levels; l++) {
        a->level_end[l] = plan->priors->levels[l].first + plan->priors->levels[l].count;
    }
    bx_job_place(&a->job, plan, batch, memory + at->work);
    a->job.plan = NULL;
    a->job.batch = NULL;
    a->list = (int32_t *)(void *)a->job.overlap; /* which is not kept here */
}

static bx_status upload_batch(bx_cuda *c, const bx_job *job, const places *at, bx_error *error) {
    const bx_plan *plan = job->plan;
    const bx_batch *batch = job->batch;
    const size_t n = (size_t)plan->n_images, g = (size_t)plan->n_objects;
    const size_t rows = plan->with_targets ? n * (size_t)plan->n_priors : 0;
    const size_t columns = plan->with_predictions ? (size_t)plan->n_columns * sizeof(float) : 0;
    const struct {
        const void *to, *from;
        size_t bytes;
    } copies[] = {
        {c->args.first, batch->first, (n + 1) * sizeof(int32_t)},
        {c->args.boxes, batch->boxes, g * 4 * sizeof(float)},
        {c->args.labels, batch->labels, g * sizeof(int64_t)},
        {c->args.use, batch->use, batch->use ? g : 0},
        {c->args.target_classes.data, batch->target_classes.data, rows * bx_dtype_bytes(batch->target_classes.dtype)},
        {c->args.target_loc.data, batch->target_loc.data, rows * 4 * sizeof(float)},
        {c->args.job.hard, job->hard, columns},
        {c->args.job.soft, job->soft, columns},
    };
    bx_status status = clear(c, c->memory + at->best, 0, g * sizeof(unsigned long long), error);
    for (size_t i = 0; status == BX_OK && i < sizeof copies / sizeof *copies; i++) {
        status = upload(c, (void *)(uintptr_t)copies[i].to, copies[i].from, copies[i].bytes, error);
    }
    return status;
}

bx_status bx_cuda_job_begin(bx_context *context, bx_job *job, bx_error *error) {
    bx_cuda *c = context->cuda;
    const places at = places_of(job->plan, job->batch);
    bx_status status = bx_cuda_enter(c, error);
    if (status != BX_OK) {
        return status;
    }
    const int64_t rows = (int64_t)job->plan->n_images * job->plan->n_priors;
    if (at.bytes > c->bytes || rows > INT32_MAX) {
        return bx_fail(error, BX_TOO_LARGE, "device_memory",
                       "this batch takes %zu bytes of cuda:%d's memory, of which a job may have %zu", at.bytes,
                       c->device, c->bytes);
    }
    c->under_way = true;
    c->gradients = at.gradients;
    c->conf_rows = c->loc_rows = 0;
    set_args(&c->args, job, &at, c->memory);
    if (job->plan->priors->boxes) {
        status = upload_priors(c, job->plan->priors, error);
    } else { /* what was there is overwritten */
        bx_priors_free(c->priors);
        c->priors = NULL;
    }
    if (status == BX_OK) {
        status = upload_batch(c, job, &at, error);
    }
    if (status == BX_OK && job->plan->with_targets) {
        TRY(bx_cuda_targets, &c->args, c->stream);
    } else if (status == BX_OK) {
        TRY(bx_cuda_match, &c->args, c->stream);
    }
    if (status == BX_OK) {
        TRY(bx_cuda_assign, &c->args, c->stream);
    }
    return status;
}

/* Bring the rows of a tensor that are new, and give them to a kernel: the first `ready` rows but for an incomplete
 * group at their end, unless they are all. */
static bx_status feed(bx_cuda *c, bx_tensor from, bx_tensor to, size_t width, int64_t ready, int64_t *done,
                      cudaError_t (*launch)(const bx_cuda_args *, cudaStream_t), bx_error *error) {
    const int64_t all = (int64_t)c->args.n_images * c->args.n_priors;
    const int64_t end = ready >= all ? all : ready / BX_CUDA_ROWS * BX_CUDA_ROWS;
    const size_t row = width * bx_dtype_bytes(from.dtype), at = (size_t)*done * row;
    if (end <= *done) {
        return BX_OK;
    }
    c->args.first_row = *done;
    c->args.n_rows = end - *done;
    bx_status status =
        upload(c, (char *)(uintptr_t)to.data + at, (const char *)from.data + at, (size_t)c->args.n_rows * row, error);
    if (status == BX_OK) {
        *done = end;
        TRY(launch, &c->args, c->stream);
    }
    return status;
}

bx_status bx_cuda_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error) {
    bx_cuda *c = context->cuda;
    bx_status status = bx_cuda_enter(c, error);
    if (status == BX_OK && job->plan->with_predictions) {
        status = feed(c, job->batch->conf, c->args.conf, (size_t)job->plan->n_columns, conf_rows, &c->conf_rows,
                      bx_cuda_score, error);
    }
    if (status == BX_OK && job->plan->with_predictions) {
        status = feed(c, job->batch->loc, c->args.loc, 4, loc_rows, &c->loc_rows, bx_cuda_check, error);
    }
    return status;
}

/* What follows the last row. */
static bx_status settle(bx_cuda *c, const bx_job *job, bx_error *error) {
    if (job->plan->with_predictions && c->args.mining.kind != BX_MINING_NONE) {
        TRY(bx_cuda_mine, &c->args, c->stream);
    }
    c->args.positives_only = !job->plan->with_predictions || c->args.mining.kind == BX_MINING_NONE;
    TRY(bx_cuda_list, &c->args, c->stream);
    TRY(bx_cuda_reduce, &c->args, c->stream);
    return bx_cuda_wait(c, job, error);
}

/* The rows of blocks, images, classes, levels and objects lie together, in this order. */
static bx_status fetch(bx_cuda *c, bx_job *job, bx_error *error) {
    const size_t rows = (size_t)job->plan->n_images * (size_t)job->plan->n_priors;
    const size_t bytes = (size_t)((const char *)job->hard - (const char *)job->bad);
    bx_status status = download(c, job->bad, c->args.job.bad, bytes, error);
    if (status == BX_OK && job->batch->explained) {
        status = download(c, job->owner, c->args.job.owner, rows * sizeof *job->owner, error);
    }
    if (status == BX_OK && job->batch->explained) {
        status = download(c, job->state, c->args.job.state, rows * sizeof *job->state, error);
    }
    return status == BX_OK ? bx_cuda_wait(c, job, error) : status;
}

bx_status bx_cuda_job_run(bx_context *context, bx_job *job, bx_error *error) {
    bx_cuda *c = context->cuda;
    const int64_t all = (int64_t)job->plan->n_images * job->plan->n_priors;
    bx_status status = bx_cuda_job_feed(context, job, all, all, error);
    if (status == BX_OK) {
        status = settle(c, job, error);
    }
    if (status == BX_OK) {
        status = fetch(c, job, error);
    }
    if (status == BX_OK && job->plan->with_predictions) {
        status = bx_check_predictions(job, error);
    }
    if (status == BX_OK) {
        bx_normalize(job);
    }
    return status;
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */

/* Rows [first, first + n) of the gradient, computed into the device's room for them and brought back. */
static bx_status fetch_rows(bx_cuda *c, bx_job *job, int64_t first, int64_t n, bx_error *error) {
    const size_t rows = (size_t)n, at = (size_t)first, columns = (size_t)job->plan->n_columns;
    char *room = c->memory + c->gradients;
    bx_job *there = &c->args.job;
    c->args.first_row = first;
    c->args.n_rows = n;
    there->grad_index = job->grad_index ? (int32_t *)(void *)room : NULL;
    room += bx_round_up(rows * 2 * sizeof(int32_t));
    there->grad_loc = (float *)(void *)room;
    room += bx_round_up(rows * 4 * sizeof(float));
    there->grad_conf = (float *)(void *)room;
    TRY(bx_cuda_slopes, &c->args, c->stream);
    bx_status status = bx_cuda_wait(c, job, error);
    if (status == BX_OK && job->grad_index) {
        status = download(c, job->grad_index + 2 * at, there->grad_index, rows * 2 * sizeof(int32_t), error);
    }
    if (status == BX_OK) {
        status = download(c, job->grad_loc + 4 * at, there->grad_loc, rows * 4 * sizeof(float), error);
    }
    if (status == BX_OK) {
        status = download(c, job->grad_conf + columns * at, there->grad_conf, rows * columns * sizeof(float), error);
    }
    return status == BX_OK ? bx_cuda_wait(c, job, error) : status;
}

/* The first prior of each image whose gradient is beyond float32. */
static bx_status fetch_too_far(bx_cuda *c, bx_job *job, bx_error *error) {
    const int32_t n = job->plan->n_images;
    int32_t *first = (int32_t *)(void *)job->overlap; /* nobody reads it of a job that ran here */
    bx_status status = download(c, first, c->args.too_far, (size_t)n * sizeof *first, error);
    status = status == BX_OK ? bx_cuda_wait(c, job, error) : status;
    for (int32_t i = 0; status == BX_OK && i < n; i++) {
        bx_image_row *row = &job->images[i];
        row->too_far = row->too_far == 0 && first[i] < job->plan->n_priors ? first[i] + 1 : row->too_far;
    }
    return status;
}

bx_status bx_cuda_job_rows(bx_context *context, bx_job *job, bx_error *error) {
    bx_cuda *c = context->cuda;
    const bx_plan *plan = job->plan;
    const size_t n = (size_t)plan->n_images;
    const int64_t all = bx_job_gradient_rows(job);
    const int64_t most = (int64_t)((c->bytes - c->gradients - 3 * BX_ALIGN) / row_bytes(plan));
    bx_status status = bx_cuda_enter(c, error);
    if (status == BX_OK) {
        status = clear(c, c->args.too_far, 0x7f, n * sizeof(int32_t), error);
    }
    if (status == BX_OK) {
        status = upload(c, c->args.job.normalizers, job->normalizers, n * sizeof *job->normalizers, error);
    }
    if (status == BX_OK) {
        status = upload(c, c->args.job.listed, job->listed, (n + 1) * sizeof *job->listed, error);
    }
    if (status == BX_OK && job->grad_index) {
        c->args.positives_only = false;
        TRY(bx_cuda_list, &c->args, c->stream);
    }
    for (int64_t row = 0; status == BX_OK && row < all && !bx_job_cancelled(job); row += most) {
        status = fetch_rows(c, job, row, all - row < most ? all - row : most, error);
    }
    return status == BX_OK ? fetch_too_far(c, job, error) : status;
}

void bx_cuda_job_end(bx_context *context, bx_job *job) {
    bx_cuda *c = context->cuda;
    bool done = !c->under_way || bx_cuda_wait(c, job, NULL) == BX_OK;
    done = done || (c->under_way && bx_cuda_wait(c, job, NULL) == BX_OK); /* an error that passes is not the stream's */
    if (!done) {
        bx_devices_give_up(); /* it may still read and write what the caller is about to free */
    }
    c->under_way = false;
    if (c->priors && !strcmp(c->priors->name, "inline")) { /* it will not be seen again */
        bx_priors_free(c->priors);
        c->priors = NULL;
    }
}
