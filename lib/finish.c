/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reduction over the images in index order, and the assignment statistics. Everything here is one thread, in a fixed
 * order, in double: the answer cannot depend on who computed which image.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

/* ---- the batch, between its images and its rows -------------------------------------------------------------------
 */

/* Refuse predictions that cannot be used: the first image that has any, and the first prior of its first kind. */
bx_status bx_check_predictions(const bx_job *job, bx_error *error) {
    const bx_plan *plan = job->plan;
    for (int32_t i = 0; i < plan->n_images; i++) {
        int64_t conf = 0, loc = 0, range = 0;
        int32_t first_conf = -1, first_loc = -1, first_range = -1;
        for (int32_t b = plan->n_blocks - 1; b >= 0; b--) {
            const bx_bad *bad = &job->bad[(size_t)i * (size_t)plan->n_blocks + (size_t)b];
            first_conf = bad->conf ? bad->first_conf : first_conf;
            first_loc = bad->loc ? bad->first_loc : first_loc;
            first_range = bad->range ? bad->first_range : first_range;
            conf += bad->conf;
            loc += bad->loc;
            range += bad->range;
        }
        if (conf + loc > 0) {
            const char *tensor = conf ? "conf" : "loc";
            int prior = conf ? first_conf : first_loc;
            bx_fail(error, BX_NONFINITE, "prediction_not_finite",
                    "image %d has %lld predictions that are not finite in float32 (conf %lld, loc %lld), the first at "
                    "prior %d of %s",
                    (int)i, (long long)(conf + loc), (long long)conf, (long long)loc, prior, tensor);
            bx_at(error, "predictions.%s[%d][%d]", tensor, (int)i, prior);
            return BX_NONFINITE;
        }
        if (range > 0) {
            bx_fail(
                error, BX_INVALID, "not_probability",
                "image %d has %lld values of conf outside [-0.001, 1.001], the first at prior %d; this criterion takes "
                "probabilities, are these logits?",
                (int)i, (long long)range, (int)first_range);
            bx_at(error, "predictions.conf[%d][%d]", (int)i, (int)first_range);
            return BX_INVALID;
        }
    }
    return BX_OK;
}

/* What the sums of each image are divided by. */
static void set_normalizers(bx_job *job) {
    const bx_plan *plan = job->plan;
    const bx_criterion *criterion = plan->criterion;
    const double coordinates = criterion->localization.reduction == BX_REDUCTION_MEAN ? 4 : 1;
    double positives = 0, mined = 0;
    for (int32_t i = 0; i < plan->n_images; i++) {
        positives += job->images[i].positives;
        mined += job->images[i].mined;
    }
    for (int32_t i = 0; i < plan->n_images; i++) {
        double own = job->images[i].positives, by = 1, negatives = 1;
        switch (criterion->normalizer.kind) {
        case BX_NORMALIZER_POSITIVES:
            by = negatives = positives > 1 ? positives : 1;
            break;
        case BX_NORMALIZER_POSITIVES_AND_MINED: /* Keras' epsilon */
            by = positives + 1e-7;
            negatives = mined + 1e-7;
            break;
        case BX_NORMALIZER_IMAGE_POSITIVES: /* the mean over images of each image's loss */
            by = negatives = plan->n_images * (own > 1 ? own : 1);
            break;
        case BX_NORMALIZER_VALUE:
            by = negatives = criterion->normalizer.value;
            break;
        }
        job->normalizers[i] = (bx_sums){.loc = coordinates * by, .conf_positive = by, .conf_negative = negatives};
    }
}

static void list_rows(bx_job *job) {
    const bx_plan *plan = job->plan;
    bool all = plan->criterion->mining.kind == BX_MINING_NONE;
    job->listed[0] = 0;
    for (int32_t i = 0; i < plan->n_images; i++) {
        const bx_image_row *row = &job->images[i];
        job->listed[i + 1] = job->listed[i] + row->positives + (all ? row->negatives : row->hard_negatives);
    }
}

void bx_normalize(bx_job *job) {
    set_normalizers(job);
    list_rows(job);
}

bx_status bx_run_batch(bx_context *context, bx_job *job, bx_error *error) {
    bx_status status = job->plan->with_predictions ? bx_check_predictions(job, error) : BX_OK;
    if (status == BX_OK) {
        if (job->plan->mines_across) {
            bx_mine_batch(context, job);
        }
        bx_normalize(job);
    }
    return status;
}

int64_t bx_job_gradient_rows(const bx_job *job) {
    const bx_plan *plan = job->plan;
    switch (plan->gradients) {
    case BX_GRADIENTS_SPARSE:
        return job->listed[plan->n_images];
    case BX_GRADIENTS_DENSE:
        return (int64_t)plan->n_images * plan->n_priors;
    case BX_GRADIENTS_NONE:
        break;
    }
    return 0;
}

/* ---- the result -------------------------------------------------------------------------------------------------- */

static void fold_images(bx_result *r) {
    const bx_job *job = r->job;
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_image_row *row = &job->images[i];
        bx_sums_add(&r->sums, row->sums);
        r->positives += row->positives;
        r->negatives += row->negatives;
        r->ignored += row->ignored;
        r->hard_negatives += row->hard_negatives;
        r->forced += row->forced;
        r->collided += row->collided;
        r->unmatched_objects += row->unmatched_objects;
        r->objects += row->objects;
    }
}

static void fold_objects(bx_result *r) {
    const bx_job *job = r->job;
    double iou_sum = 0;
    int64_t positives = 0, n = 0;
    for (int32_t g = 0; g < job->plan->n_objects; g++) {
        const bx_object_row *row = &job->objects[g];
        if (!bx_is_used(job->batch, g)) {
            r->ignored_objects += job->batch->use[g] == BX_OBJECT_IGNORED;
            r->dropped_boxes += job->batch->use[g] == BX_OBJECT_DROPPED;
            continue;
        }
        double iou = (double)row->best_iou;
        int bin = (int)(10 * iou); /* exact: a float32 times ten fits a double */
        r->best_iou_histogram[bin < 0 ? 0 : bin > 9 ? 9 : bin]++;
        r->objects_without_overlap += iou == 0;
        r->best_iou_min = n == 0 || iou < r->best_iou_min ? iou : r->best_iou_min;
        r->best_iou_max = n == 0 || iou > r->best_iou_max ? iou : r->best_iou_max;
        iou_sum += iou;
        bool least = n == 0 || row->positives < r->positives_per_object_min;
        bool most = n == 0 || row->positives > r->positives_per_object_max;
        r->positives_per_object_min = least ? row->positives : r->positives_per_object_min;
        r->positives_per_object_max = most ? row->positives : r->positives_per_object_max;
        positives += row->positives;
        n++;
    }
    if (n > 0) {
        r->best_iou_mean = iou_sum / (double)n;
        r->positives_per_object_mean = (double)positives / (double)n;
    }
}

/* ---- shares ------------------------------------------------------------------------------------------------------ */

static bx_loss share_of(const bx_result *result, const bx_sums *normalizer, bx_sums sums) {
    const bx_weights *weights = &result->job->plan->criterion->weights;
    bx_loss loss = {0};
    if (weights->loc > 0) { /* what has no weight may be infinite */
        loss.loc = weights->loc * sums.loc / normalizer->loc;
    }
    if (weights->conf > 0) {
        loss.conf_positive = weights->conf * sums.conf_positive / normalizer->conf_positive;
        loss.conf_negative = weights->conf * sums.conf_negative / normalizer->conf_negative;
    }
    return loss;
}

static bx_loss with_totals(bx_loss loss) {
    loss.conf = loss.conf_positive + loss.conf_negative;
    loss.total = loss.loc + loss.conf;
    return loss;
}

bx_loss bx_result_share(const bx_result *result, int32_t image, bx_sums sums) {
    return with_totals(share_of(result, &result->job->normalizers[image], sums));
}

/* A group of priors over all images is folded image by image; where all have the same normaliser its share is that of
 * the whole sum. */
static void add_share(const bx_result *result, bx_loss *share, int32_t image, bx_sums sums) {
    if (result->own_normalizers) {
        bx_loss part = share_of(result, &result->job->normalizers[image], sums);
        share->loc += part.loc;
        share->conf_positive += part.conf_positive;
        share->conf_negative += part.conf_negative;
    }
}

static bx_loss end_share(const bx_result *result, bx_loss share, bx_sums sums) {
    return with_totals(result->own_normalizers ? share : share_of(result, &result->job->normalizers[0], sums));
}

/* Numbers that were all finite can still lead beyond float32. */
static bx_status check_overflow(const bx_result *r, bx_error *error) {
    const bx_job *job = r->job;
    if (!isfinite(r->loss.total)) {
        bool conf = !isfinite(r->loss.conf);
        bx_fail(error, BX_NONFINITE, "loss_overflow",
                "every number is finite, but %s lie so far apart that a loss is beyond float32 (3.4e38)",
                conf ? "the predictions of a prior" : "the offsets and the target of a prior");
        bx_at(error, conf ? "predictions.conf" : "predictions.loc");
        return BX_NONFINITE;
    }
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        if (job->images[i].too_far > 0) {
            return bx_fail(error, BX_NONFINITE, "loss_overflow",
                           "every number is finite, but a target or a gradient of image %d, prior %d is beyond float32 "
                           "(3.4e38)",
                           (int)i, (int)job->images[i].too_far - 1);
        }
    }
    return BX_OK;
}

bx_status bx_finish(bx_result *result, const bx_job *job, bx_error *error) {
    bx_result made = {.job = job};
    bx_result *r = &made;
    bx_loss share = {0};
    r->own_normalizers = job->plan->criterion->normalizer.kind == BX_NORMALIZER_IMAGE_POSITIVES;
    r->normalizer = job->normalizers[0];
    fold_images(r);
    fold_objects(r);
    r->no_positives = r->positives == 0;
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        add_share(r, &share, i, job->images[i].sums);
    }
    r->loss = end_share(r, share, r->sums);
    bx_status status = check_overflow(r, error);
    if (status == BX_OK) {
        *result = made;
    }
    return status;
}

bx_class_row bx_result_class(const bx_result *result, int32_t k, bx_loss *share) {
    const bx_job *job = result->job;
    bx_class_row total = {0};
    bx_loss parts = {0};
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_class_row *row = &job->classes[(size_t)i * (size_t)job->plan->n_classes + (size_t)k];
        bx_sums_add(&total.sums, row->sums);
        add_share(result, &parts, i, row->sums);
        total.objects += row->objects;
        total.positives += row->positives;
        total.correct += row->correct;
    }
    *share = end_share(result, parts, total.sums);
    return total;
}

bx_level_row bx_result_level(const bx_result *result, int32_t level, bx_loss *share) {
    const bx_job *job = result->job;
    bx_level_row total = {0};
    bx_loss parts = {0};
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_level_row *row = &job->levels[(size_t)i * (size_t)job->plan->priors->n_levels + (size_t)level];
        bx_sums_add(&total.sums, row->sums);
        add_share(result, &parts, i, row->sums);
        total.positives += row->positives;
        total.hard_negatives += row->hard_negatives;
    }
    *share = end_share(result, parts, total.sums);
    return total;
}

bx_sums bx_result_background(const bx_result *result, bx_loss *share) {
    const bx_job *job = result->job;
    const bx_sums total = {.conf_negative = result->sums.conf_negative};
    bx_loss parts = {0};
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        add_share(result, &parts, i, (bx_sums){.conf_negative = job->images[i].sums.conf_negative});
    }
    *share = end_share(result, parts, total);
    return total;
}

/* ---- priors ------------------------------------------------------------------------------------------------------ */

int32_t bx_result_prior_class(const bx_result *result, int32_t image, int32_t prior) {
    size_t at = bx_row_index(result->job, image, prior);
    uint8_t state = result->job->state[at];
    return state & BX_POSITIVE ? bx_positive_class(result->job, image, at) : state & BX_IGNORED ? -2 : -1;
}

int32_t bx_result_prior_object(const bx_result *result, int32_t image, int32_t prior) {
    const bx_job *job = result->job;
    size_t at = bx_row_index(job, image, prior);
    return job->state[at] & BX_POSITIVE && !job->plan->with_targets ? job->owner[at] : -1;
}

void bx_result_target(const bx_result *result, int32_t image, int32_t prior, double target[4]) {
    memset(target, 0, 4 * sizeof *target);
    if (result->job->state[bx_row_index(result->job, image, prior)] & BX_POSITIVE) {
        bx_target(result->job, image, prior, target);
    }
}
