/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criterion + priors + dims -> a validated plan and the size of its workspace. Every annotation is checked here, once,
 * before any work is queued; predictions are checked where they are read.
 */
#include <math.h>

#include "internal.h"

/* 64-bit so that no product of two dimensions can overflow; totals are compared with SIZE_MAX / 4 before use. */
typedef struct layout {
    size_t overlap, owner, score, state, block_iou, block_prior, bad, images, classes, levels, objects, bytes;
} layout;

static layout plan_layout(const bx_plan *plan) {
    const size_t n = (size_t)plan->n_images, rows = n * (size_t)plan->n_priors;
    const size_t objects = (size_t)plan->n_objects, blocks = (size_t)plan->n_blocks;
    layout at;
    size_t bytes = 0;
#define BX_PLACE(member, count, type)                                                                                  \
    do {                                                                                                               \
        at.member = bytes;                                                                                             \
        bytes += bx_round_up((count) * sizeof(type));                                                                  \
    } while (0)
    BX_PLACE(overlap, rows, float);
    BX_PLACE(owner, rows, int32_t);
    BX_PLACE(score, rows, float);
    BX_PLACE(state, rows, uint8_t);
    BX_PLACE(block_iou, blocks * objects, float);
    BX_PLACE(block_prior, blocks * objects, int32_t);
    BX_PLACE(bad, n * blocks, bx_bad);
    BX_PLACE(images, n, bx_image_row);
    BX_PLACE(classes, n * (size_t)plan->n_classes, bx_class_row);
    BX_PLACE(levels, n * (size_t)plan->priors->n_levels, bx_level_row);
    BX_PLACE(objects, objects, bx_object_row);
#undef BX_PLACE
    at.bytes = bytes;
    return at;
}

static bx_status check_dims(const bx_batch *batch, const bx_priors *priors, bx_error *error) {
    if (batch->n_images < 1) {
        return bx_fail(error, BX_SHAPE, "shape", "the batch has no images");
    }
    if (batch->n_columns < 2 || batch->n_columns > BX_MAX_COLUMNS) {
        bx_fail(error, BX_SHAPE, "shape", "conf has %d columns; background and classes make between 2 and %d",
                (int)batch->n_columns, BX_MAX_COLUMNS);
        bx_at(error, "predictions.conf");
        return BX_SHAPE;
    }
    if (batch->conf.data && batch->n_priors != priors->n) {
        bx_fail(error, BX_SHAPE, "shape", "the predictions have %d priors and the prior set \"%s\" has %d",
                (int)batch->n_priors, priors->name, (int)priors->n);
        bx_at(error, "predictions.loc");
        return BX_SHAPE;
    }
    return BX_OK;
}

static bx_status refuse_box(bx_error *error, const char *code, int image, int object, const float *b, const char *why) {
    bx_fail(error, BX_INVALID, code, "image %d, box %d is [%.9g, %.9g, %.9g, %.9g]: %s", image, object, (double)b[0],
            (double)b[1], (double)b[2], (double)b[3], why);
    bx_at(error, "annotations[%d].boxes[%d]", image, object);
    return BX_INVALID;
}

static bx_status check_object(const bx_batch *batch, const bx_plan *plan, int image, int object, bx_error *error) {
    size_t g = (size_t)batch->first[image] + (size_t)object;
    const float *b = batch->boxes + 4 * g;
    if (!(isfinite(b[0]) && isfinite(b[1]) && isfinite(b[2]) && isfinite(b[3]))) {
        return refuse_box(error, "box_not_finite", image, object, b, "a coordinate is not finite");
    }
    if (b[2] < b[0] || b[3] < b[1]) {
        return refuse_box(error, "box_inverted", image, object, b, "xmax < xmin or ymax < ymin");
    }
    float area = (b[2] - b[0]) * (b[3] - b[1]);
    if (!(area > 0 && isfinite(area))) {
        return refuse_box(error, "box_degenerate", image, object, b, "its area in float32 is not positive and finite");
    }
    if (plan->priors->relative && (b[0] < -1 || b[1] < -1 || b[2] > 2 || b[3] > 2)) {
        return refuse_box(error, "box_range", image, object, b,
                          "outside [-1, 2] although the priors are relative to the image; are these pixels?");
    }
    int64_t label = batch->labels[g];
    if (label < 0 || label >= plan->n_classes) {
        bx_fail(error, BX_INVALID, "label_range",
                "image %d, label %d is %lld; %d classes are numbered 0 to %d, the background not counted", image,
                object, (long long)label, (int)plan->n_classes, (int)plan->n_classes - 1);
        bx_at(error, "annotations[%d].labels[%d]", image, object);
        return BX_INVALID;
    }
    return BX_OK;
}

/* Microseconds on one core, roughly: 1 ns for each score and each pair of a prior and an object, and what each prior,
 * class row and image costs anyway. */
static double estimate_us(const bx_plan *plan, const bx_batch *batch) {
    double pairs = 0, images = plan->n_images, rows = images * plan->n_priors;
    for (int32_t i = 0; i < plan->n_images; i++) {
        pairs += (double)(batch->first[i + 1] - batch->first[i]) * plan->n_priors;
    }
    double scores = plan->with_predictions ? rows * plan->n_columns : 0;
    return 1e-3 * (scores + pairs + 4 * rows + 5 * images * plan->n_classes) + 0.2 * images;
}

bx_status bx_plan_init(bx_plan *plan, const bx_criterion *criterion, const bx_priors *priors, const bx_batch *batch,
                       bx_error *error) {
    bx_status status = check_dims(batch, priors, error);
    if (status != BX_OK) {
        return status;
    }
    bx_plan made = {
        .criterion = criterion,
        .priors = priors,
        .n_images = batch->n_images,
        .n_priors = priors->n,
        .n_columns = batch->n_columns,
        .n_classes = batch->n_columns - 1,
        .n_objects = batch->first[batch->n_images],
        .n_blocks = (priors->n + BX_BLOCK - 1) / BX_BLOCK,
        .with_predictions = batch->conf.data != NULL,
    };
    for (int32_t i = 0; i < made.n_images; i++) {
        for (int32_t g = 0; g < batch->first[i + 1] - batch->first[i]; g++) {
            status = check_object(batch, &made, i, g, error);
            if (status != BX_OK) {
                return status;
            }
        }
    }
    /* the greatest product: images x classes or images x priors, each below 2^31 */
    double rows = (double)made.n_images * ((double)made.n_priors + made.n_classes + priors->n_levels);
    double best = (double)made.n_blocks * made.n_objects;
    if (rows > 0x1p40 || best > 0x1p40) {
        return bx_fail(error, BX_TOO_LARGE, "too_large", "%d images of %d priors and %d classes are too many",
                       (int)made.n_images, (int)made.n_priors, (int)made.n_classes);
    }
    made.work_bytes = plan_layout(&made).bytes;
    made.cost_us = estimate_us(&made, batch);
    *plan = made;
    return BX_OK;
}

void bx_job_init(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work) {
    layout at = plan_layout(plan);
    char *base = work;
    *job = (bx_job){
        .plan = plan,
        .batch = batch,
        .overlap = (float *)(void *)(base + at.overlap),
        .owner = (int32_t *)(void *)(base + at.owner),
        .score = (float *)(void *)(base + at.score),
        .state = (uint8_t *)(base + at.state),
        .block_iou = (float *)(void *)(base + at.block_iou),
        .block_prior = (int32_t *)(void *)(base + at.block_prior),
        .bad = (bx_bad *)(void *)(base + at.bad),
        .images = (bx_image_row *)(void *)(base + at.images),
        .classes = (bx_class_row *)(void *)(base + at.classes),
        .levels = (bx_level_row *)(void *)(base + at.levels),
        .objects = (bx_object_row *)(void *)(base + at.objects),
    };
}
