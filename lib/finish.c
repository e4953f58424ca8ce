/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reduction over the images in index order, and the assignment statistics. Everything here is one thread, in a fixed
 * order, in double: the answer cannot depend on who computed which image.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

/* Encoded offsets (SSD's box coder): ((c_box - c_prior) / wh_prior) / v_xy and log(wh_box / wh_prior) / v_wh. */
void bx_encode(const float box[4], const float prior[4], const double variances[4], double target[4]) {
    for (int i = 0; i < 2; i++) {
        double low = (double)box[i], high = (double)box[i + 2];
        double centre = (double)prior[i], size = (double)prior[i + 2];
        target[i] = ((low + high) / 2 - centre) / size / variances[i];
        target[i + 2] = log((high - low) / size) / variances[i + 2];
    }
}

static bx_status check_finite(const bx_job *job, bx_error *error) {
    const bx_plan *plan = job->plan;
    for (int32_t i = 0; i < plan->n_images; i++) {
        int64_t conf = 0, loc = 0;
        int32_t first_conf = -1, first_loc = -1;
        for (int32_t b = plan->n_blocks - 1; b >= 0; b--) {
            const bx_bad *bad = &job->bad[(size_t)i * (size_t)plan->n_blocks + (size_t)b];
            first_conf = bad->conf ? bad->first_conf : first_conf;
            first_loc = bad->loc ? bad->first_loc : first_loc;
            conf += bad->conf;
            loc += bad->loc;
        }
        if (conf + loc > 0) {
            const char *tensor = conf ? "conf" : "loc";
            int prior = conf ? first_conf : first_loc;
            bx_fail(
                error, BX_NONFINITE, "prediction_not_finite",
                "image %d has %lld predictions that are not finite (conf %lld, loc %lld), the first at prior %d of %s",
                (int)i, (long long)(conf + loc), (long long)conf, (long long)loc, prior, tensor);
            bx_at(error, "predictions.%s[%d][%d]", tensor, (int)i, prior);
            return BX_NONFINITE;
        }
    }
    return BX_OK;
}

static void fold_images(bx_result *r) {
    const bx_job *job = r->job;
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_image_row *row = &job->images[i];
        bx_sums_add(&r->sums, row->sums);
        r->positives += row->positives;
        r->negatives += row->negatives;
        r->hard_negatives += row->hard_negatives;
        r->forced += row->forced;
        r->collided += row->collided;
        r->unmatched_objects += row->unmatched_objects;
    }
}

static void fold_objects(bx_result *r) {
    const bx_job *job = r->job;
    const int32_t n = job->plan->n_objects;
    double iou_sum = 0;
    int64_t positives = 0;
    for (int32_t g = 0; g < n; g++) {
        const bx_object_row *row = &job->objects[g];
        double iou = (double)row->best_iou;
        int bin = (int)(10 * iou); /* exact: a float32 times ten fits a double */
        r->best_iou_histogram[bin < 0 ? 0 : bin > 9 ? 9 : bin]++;
        r->objects_without_overlap += iou == 0;
        r->best_iou_min = g == 0 || iou < r->best_iou_min ? iou : r->best_iou_min;
        r->best_iou_max = g == 0 || iou > r->best_iou_max ? iou : r->best_iou_max;
        iou_sum += iou;
        bool least = g == 0 || row->positives < r->positives_per_object_min;
        bool most = g == 0 || row->positives > r->positives_per_object_max;
        r->positives_per_object_min = least ? row->positives : r->positives_per_object_min;
        r->positives_per_object_max = most ? row->positives : r->positives_per_object_max;
        positives += row->positives;
    }
    if (n > 0) {
        r->best_iou_mean = iou_sum / n;
        r->positives_per_object_mean = (double)positives / n;
    }
}

bx_loss bx_result_share(const bx_result *result, bx_sums sums) {
    const bx_criterion *criterion = result->job->plan->criterion;
    bx_loss loss = {
        .loc = criterion->weights.loc * sums.loc / result->normalizer.loc,
        .conf_positive = criterion->weights.conf * sums.conf_positive / result->normalizer.conf_positive,
        .conf_negative = criterion->weights.conf * sums.conf_negative / result->normalizer.conf_negative,
    };
    loss.conf = loss.conf_positive + loss.conf_negative;
    loss.total = loss.loc + loss.conf;
    return loss;
}

bx_status bx_finish(bx_result *result, const bx_job *job, bx_error *error) {
    bx_status status = job->plan->with_predictions ? check_finite(job, error) : BX_OK;
    if (status != BX_OK) {
        return status;
    }
    bx_result made = {.job = job};
    bx_result *r = &made;
    fold_images(r);
    fold_objects(r);
    r->no_positives = r->positives == 0;
    double positives = r->positives > 0 ? (double)r->positives : 1;
    bool mean = job->plan->criterion->localization.reduction == BX_REDUCTION_MEAN;
    r->normalizer =
        (bx_sums){.loc = mean ? 4 * positives : positives, .conf_positive = positives, .conf_negative = positives};
    r->loss = bx_result_share(r, r->sums);
    if (!isfinite(r->loss.total)) {
        bx_fail(error, BX_NONFINITE, "loss_overflow",
                "predictions are finite, but so far apart that a loss is beyond float32 (3.4e38)");
        bx_at(error, "predictions");
        return BX_NONFINITE;
    }
    *result = made;
    return BX_OK;
}

bx_class_row bx_result_class(const bx_result *result, int32_t k) {
    const bx_job *job = result->job;
    bx_class_row total = {0};
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_class_row *row = &job->classes[(size_t)i * (size_t)job->plan->n_classes + (size_t)k];
        bx_sums_add(&total.sums, row->sums);
        total.objects += row->objects;
        total.positives += row->positives;
        total.correct += row->correct;
    }
    return total;
}

bx_level_row bx_result_level(const bx_result *result, int32_t level) {
    const bx_job *job = result->job;
    bx_level_row total = {0};
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        const bx_level_row *row = &job->levels[(size_t)i * (size_t)job->plan->priors->n_levels + (size_t)level];
        bx_sums_add(&total.sums, row->sums);
        total.positives += row->positives;
        total.hard_negatives += row->hard_negatives;
    }
    return total;
}

void bx_result_target(const bx_result *result, int32_t image, int32_t prior, double target[4]) {
    const bx_job *job = result->job;
    const bx_plan *plan = job->plan;
    size_t at = (size_t)image * (size_t)plan->n_priors + (size_t)prior;
    memset(target, 0, 4 * sizeof *target);
    if (job->state[at] & BX_POSITIVE) {
        size_t g = (size_t)job->batch->first[image] + (size_t)job->owner[at];
        bx_encode(job->batch->boxes + 4 * g, plan->priors->boxes + 4 * (size_t)prior, plan->criterion->coder.variances,
                  target);
    }
}
