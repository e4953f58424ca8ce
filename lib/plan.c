/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criterion + priors + dims -> a validated plan and the size of its workspace. Every annotation is checked here, once,
 * before any work is queued; predictions are checked where they are read.
 */
#include <math.h>
#include <stdio.h>

#include "internal.h"

/* Offsets of a job's arrays in its workspace. */
typedef struct layout {
    size_t overlap, owner, score, state, block_iou, block_prior, bad, images, classes, levels, objects, hard, soft;
    size_t normalizers, listed, heap, offsets, bytes;
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
    BX_PLACE(hard, (size_t)plan->n_columns, float);
    BX_PLACE(soft, (size_t)plan->n_columns, float);
    BX_PLACE(normalizers, n, bx_sums);
    BX_PLACE(listed, n + 1, int64_t);
    BX_PLACE(heap, plan->criterion->matcher.force == BX_FORCE_GREEDY ? objects : 0, int32_t);
    BX_PLACE(offsets, plan->streamed ? rows * 4 : 0, float);
#undef BX_PLACE
    at.bytes = bytes;
    return at;
}

/* ---- dimensions -------------------------------------------------------------------------------------------------- */

static bx_status refuse_shape(bx_error *error, const char *path) {
    bx_at(error, "%s", path);
    return BX_SHAPE;
}

static bx_status check_lists(const bx_criterion *criterion, int32_t n_columns, bx_error *error) {
    const bx_classification *c = &criterion->classification;
    const int32_t n_classes = bx_criterion_classes(criterion, n_columns);
    if (c->class_weights && c->n_class_weights != n_columns) {
        bx_fail(error, BX_SHAPE, "shape", "class_weights has %d numbers and conf has %d columns",
                (int)c->n_class_weights, (int)n_columns);
        return refuse_shape(error, "criterion.classification.class_weights");
    }
    if (c->alphas && c->n_alphas != n_classes) {
        bx_fail(error, BX_SHAPE, "shape", "alpha has %d numbers and there are %d classes", (int)c->n_alphas,
                (int)n_classes);
        return refuse_shape(error, "criterion.classification.alpha");
    }
    return BX_OK;
}

static bx_status check_dims(const bx_batch *batch, const bx_criterion *criterion, const bx_priors *priors,
                            bx_error *error) {
    const bool background = criterion->classification.background != BX_BACKGROUND_NONE;
    if (batch->n_images < 1) {
        return bx_fail(error, BX_SHAPE, "shape", "the batch has no images");
    }
    if (batch->n_columns < 1 + background || batch->n_columns > BX_MAX_COLUMNS) {
        bx_fail(error, BX_SHAPE, "shape", "conf has %d columns; %s make between %d and %d", (int)batch->n_columns,
                background ? "background and classes" : "classes", 1 + background, BX_MAX_COLUMNS);
        return refuse_shape(error, "predictions.conf");
    }
    if ((batch->conf.data || batch->target_classes.data) && batch->n_priors != priors->n) {
        bx_fail(error, BX_SHAPE, "shape", "the predictions have %d priors and the prior set \"%s\" has %d",
                (int)batch->n_priors, priors->name, (int)priors->n);
        return refuse_shape(error, "predictions.loc");
    }
    if (!priors->boxes && (!batch->target_classes.data || bx_localization_needs_boxes(criterion->localization.kind))) {
        bx_fail(error, BX_INVALID, "missing_member", "this criterion needs the prior boxes");
        bx_at(error, "priors");
        return BX_INVALID;
    }
    return batch->conf.data ? check_lists(criterion, batch->n_columns, error) : BX_OK;
}

/* ---- annotations ------------------------------------------------------------------------------------------------- */

bx_box_fault bx_box_check(const float b[4], bx_iou iou) {
    if (!(isfinite(b[0]) && isfinite(b[1]) && isfinite(b[2]) && isfinite(b[3]))) {
        return BX_BOX_NOT_FINITE;
    }
    bool sizes = iou == BX_IOU_SIZES;
    if (sizes ? b[2] < 0 || b[3] < 0 : b[2] < b[0] || b[3] < b[1]) {
        return BX_BOX_INVERTED;
    }
    const bx_object o = bx_object_of(b, sizes);
    bool area = o.area > 0 && isfinite(o.area);
    /* far from the origin, corners made of a centre and a size may coincide */
    return area && o.box[2] > o.box[0] && o.box[3] > o.box[1] ? BX_BOX_GOOD : BX_BOX_DEGENERATE;
}

static bx_status refuse_box(bx_error *error, const char *code, int image, int object, const bx_object *o,
                            const char *why) {
    bx_fail(error, BX_INVALID, code, "image %d, box %d is [%.9g, %.9g, %.9g, %.9g] as corners: %s", image, object,
            (double)o->box[0], (double)o->box[1], (double)o->box[2], (double)o->box[3], why);
    bx_at(error, "annotations[%d].boxes[%d]", image, object);
    return BX_INVALID;
}

static bx_status check_box(const bx_plan *plan, const float *box, int image, int object, bx_error *error) {
    const bx_iou iou = plan->criterion->matcher.iou;
    const bx_object o = bx_object_of(box, iou == BX_IOU_SIZES);
    switch (bx_box_check(box, iou)) {
    case BX_BOX_NOT_FINITE:
        return refuse_box(error, "box_not_finite", image, object, &o, "a coordinate is not finite in float32");
    case BX_BOX_INVERTED:
        return refuse_box(error, "box_inverted", image, object, &o, "xmax < xmin or ymax < ymin; is box_format right?");
    case BX_BOX_DEGENERATE:
        return refuse_box(error, "box_degenerate", image, object, &o, "its area in float32 is not positive and finite");
    case BX_BOX_GOOD:
        break;
    }
    if (plan->priors->relative && (o.box[0] < -1 || o.box[1] < -1 || o.box[2] > 2 || o.box[3] > 2)) {
        return refuse_box(error, "box_range", image, object, &o,
                          "outside [-1, 2] although the priors are relative to the image; pixels need image_size");
    }
    return BX_OK;
}

static bx_status refuse_label(const bx_plan *plan, int64_t label, int image, int object, bx_error *error) {
    static const char *const background[] = {[BX_BACKGROUND_FIRST] = "after the background",
                                             [BX_BACKGROUND_LAST] = "before the background",
                                             [BX_BACKGROUND_NONE] = "there being no background"};
    const int classes = plan->n_classes;
    const char *where = "the background not counted";
    char room[48];
    if (plan->with_predictions) {
        where = background[plan->criterion->classification.background];
        snprintf(room, sizeof room, "conf has %d columns:", (int)plan->n_columns);
    } else {
        snprintf(room, sizeof room, "there %s", classes == 1 ? "is" : "are");
    }
    bx_fail(error, BX_INVALID, "label_range", "label %d of image %d is %lld, but %s %d class%s, numbered 0 to %d, %s%s",
            object, image, (long long)label, room, classes, classes == 1 ? "" : "es", classes - 1, where,
            label == classes ? " (from 1? label_base 1)" : "");
    bx_at(error, "annotations[%d].labels[%d]", image, object);
    return BX_INVALID;
}

static bx_status check_object(const bx_batch *batch, const bx_plan *plan, int image, int object, bx_error *error) {
    int32_t g = batch->first[image] + object;
    if (batch->use && batch->use[g] == BX_OBJECT_DROPPED) {
        return BX_OK;
    }
    bx_status status = check_box(plan, batch->boxes + 4 * (size_t)g, image, object, error);
    if (status != BX_OK || !bx_is_used(batch, g)) {
        return status;
    }
    int64_t label = batch->labels[g];
    return label >= 0 && label < plan->n_classes ? BX_OK : refuse_label(plan, label, image, object, error);
}

/* Boxes that all lie where shares of an image do, although the priors are in pixels. */
static bx_status check_units(const bx_plan *plan, const bx_batch *batch, bx_error *error) {
    bool any = false;
    for (int32_t g = 0; g < plan->n_objects && !plan->priors->relative; g++) {
        const bx_object o = bx_object_of(batch->boxes + 4 * (size_t)g, plan->criterion->matcher.iou == BX_IOU_SIZES);
        if (bx_is_used(batch, g) && (o.box[0] < -1 || o.box[1] < -1 || o.box[2] > 2 || o.box[3] > 2)) {
            return BX_OK;
        }
        any |= bx_is_used(batch, g);
    }
    if (!any) {
        return BX_OK;
    }
    bx_fail(error, BX_INVALID, "box_range",
            "every box lies within [-1, 2] although the priors are in pixels; are these shares of the image?");
    bx_at(error, "annotations");
    return BX_INVALID;
}

static bx_status check_annotations(const bx_plan *plan, const bx_batch *batch, bx_error *error) {
    for (int32_t i = 0; i < plan->n_images; i++) {
        for (int32_t g = 0; g < batch->first[i + 1] - batch->first[i]; g++) {
            bx_status status = check_object(batch, plan, i, g, error);
            if (status != BX_OK) {
                return status;
            }
        }
    }
    return check_units(plan, batch, error);
}

/* ---- targets ----------------------------------------------------------------------------------------------------- */

static bx_status check_targets(const bx_plan *plan, const bx_batch *batch, bx_error *error) {
    const size_t n = (size_t)plan->n_priors, rows = (size_t)plan->n_images * n;
    for (size_t at = 0; at < rows; at++) {
        int64_t class = bx_tensor_int(batch->target_classes, at);
        if (class < -2 || class >= plan->n_classes) {
            bx_fail(error, BX_INVALID, "label_range",
                    "image %zu, prior %zu has target class %lld; %d classes are numbered 0 to %d, -1 is background, -2 "
                    "ignored",
                    at / n, at % n, (long long)class, (int)plan->n_classes, (int)plan->n_classes - 1);
            bx_at(error, "targets.classes[%zu][%zu]", at / n, at % n);
            return BX_INVALID;
        }
        float target[4] = {0};
        if (class >= 0) {
            bx_tensor_to_f32(target, batch->target_loc, 4 * at, 4);
        }
        if (!(isfinite(target[0]) && isfinite(target[1]) && isfinite(target[2]) && isfinite(target[3]))) {
            bx_fail(error, BX_INVALID, "target_not_finite",
                    "image %zu, prior %zu is positive and its target is not finite", at / n, at % n);
            bx_at(error, "targets.loc[%zu][%zu]", at / n, at % n);
            return BX_INVALID;
        }
    }
    return BX_OK;
}

/* ---- the plan ---------------------------------------------------------------------------------------------------- */

/* Microseconds on one core, roughly: 1 ns for each score, slope and pair of a prior and an object (a sigmoid and the
 * rarer options take more), and what each prior, class row and image costs anyway. Objects forced greedily may each
 * make every other look again. */
static double estimate_us(const bx_plan *plan, const bx_batch *batch) {
    const bx_criterion *criterion = plan->criterion;
    double pairs = 0, images = plan->n_images, rows = images * plan->n_priors;
    for (int32_t i = 0; i < plan->n_images; i++) {
        double objects = batch->first[i + 1] - batch->first[i];
        double again = criterion->matcher.force == BX_FORCE_GREEDY ? 1 + objects / 4 : 1;
        pairs += objects * again * plan->n_priors;
    }
    const bx_classification *c = &criterion->classification;
    bool focal = bx_classification_is_focal(c->kind), rare = c->class_weights || c->label_smoothing > 0;
    double each = focal ? (rare || c->gamma != 2 ? 6 : 3) : rare ? 3 : 1;
    bool all_rows = plan->gradients == BX_GRADIENTS_DENSE || criterion->mining.kind == BX_MINING_NONE;
    double again = plan->gradients == BX_GRADIENTS_NONE ? 0 : all_rows ? 3 : 1;
    double scores = plan->with_predictions ? rows * plan->n_columns * (each + again) : 0;
    return 1e-3 * (scores + pairs + 4 * rows + 5 * images * plan->n_classes) + 0.2 * images;
}

bx_status bx_plan_init(bx_plan *plan, const bx_criterion *criterion, const bx_priors *priors, const bx_batch *batch,
                       bx_gradients gradients, bx_error *error) {
    bx_status status = check_dims(batch, criterion, priors, error);
    if (status != BX_OK) {
        return status;
    }
    bx_plan made = {
        .criterion = criterion,
        .priors = priors,
        .gradients = gradients,
        .n_images = batch->n_images,
        .n_priors = priors->n,
        .n_columns = batch->n_columns,
        .n_classes = bx_criterion_classes(criterion, batch->n_columns),
        .n_objects = batch->first[batch->n_images],
        .n_blocks = (priors->n + BX_BLOCK - 1) / BX_BLOCK,
        .streamed = batch->streamed,
        .with_predictions = batch->conf.data != NULL,
        .with_targets = batch->target_classes.data != NULL,
    };
    if (made.streamed && (!made.with_predictions || gradients != BX_GRADIENTS_NONE)) {
        return bx_fail(error, BX_INTERNAL, "streamed", "gradients cannot be had of predictions that are not kept");
    }
    const bx_mining *mining = &criterion->mining;
    made.mines_across = made.with_predictions && mining->kind != BX_MINING_NONE && mining->scope == BX_SCOPE_BATCH;
    made.second_round = made.with_predictions && (gradients != BX_GRADIENTS_NONE || made.mines_across);
    status = made.with_targets ? check_targets(&made, batch, error) : check_annotations(&made, batch, error);
    if (status != BX_OK) {
        return status;
    }
    /* the greatest products: images x classes, images x priors, gradient rows x columns, each far below 2^63 */
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

/* ---- the job ----------------------------------------------------------------------------------------------------- */

/* Factors of the columns: class weights, and in sigmoid rows alpha or its complement besides. */
static void fill_factors(bx_job *job) {
    const bx_plan *plan = job->plan;
    const bx_classification *c = &plan->criterion->classification;
    const bool focal = bx_classification_is_focal(c->kind);
    for (int32_t column = 0; column < plan->n_columns; column++) {
        float weight = c->class_weights ? c->class_weights[column] : 1;
        float alpha = c->alphas ? c->alphas[column] : (float)c->alpha;
        float complement = c->alphas ? 1 - alpha : (float)(1 - c->alpha); /* of a double, as the originals take it */
        job->hard[column] = focal ? weight * alpha : weight;
        job->soft[column] = weight * complement;
    }
}

void bx_job_place(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work) {
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
        .hard = (float *)(void *)(base + at.hard),
        .soft = (float *)(void *)(base + at.soft),
        .normalizers = (bx_sums *)(void *)(base + at.normalizers),
        .listed = (int64_t *)(void *)(base + at.listed),
        .heap = (int32_t *)(void *)(base + at.heap),
        .offsets = plan->streamed ? (float *)(void *)(base + at.offsets) : NULL,
    };
}

void bx_job_init(bx_job *job, const bx_plan *plan, const bx_batch *batch, void *work) {
    bx_job_place(job, plan, batch, work);
    if (plan->with_predictions) {
        fill_factors(job);
    }
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */

size_t bx_gradient_bytes(const bx_plan *plan, int64_t n_rows) {
    size_t rows = (size_t)n_rows;
    size_t index = plan->gradients == BX_GRADIENTS_SPARSE ? bx_round_up(rows * 2 * sizeof(int32_t)) : 0;
    return index + bx_round_up(rows * 4 * sizeof(float)) + bx_round_up(rows * (size_t)plan->n_columns * sizeof(float));
}

void bx_job_place_gradients(bx_job *job, void *memory) {
    const size_t rows = (size_t)bx_job_gradient_rows(job);
    char *at = memory;
    if (job->plan->gradients == BX_GRADIENTS_SPARSE) {
        job->grad_index = (int32_t *)(void *)at;
        at += bx_round_up(rows * 2 * sizeof(int32_t));
    }
    job->grad_loc = (float *)(void *)at;
    job->grad_conf = (float *)(void *)(at + bx_round_up(rows * 4 * sizeof(float)));
}
