/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The regression target of a positive prior, and its localization loss.
 */
#include "localization.h"

#include "internal.h"

void bx_encode(const float box[4], bx_iou iou, const float prior[4], const double variances[4], double target[4]) {
    bx_encode_box(box, iou == BX_IOU_SIZES, prior, variances, target);
}

void bx_target(const bx_job *job, int32_t image, int32_t prior, double target[4]) {
    const bx_plan *plan = job->plan;
    const bx_batch *batch = job->batch;
    size_t at = bx_row_index(job, image, prior);
    if (plan->with_targets) {
        float given[4];
        bx_tensor_to_f32(given, batch->target_loc, 4 * at, 4);
        for (int i = 0; i < 4; i++) {
            target[i] = (double)given[i];
        }
        return;
    }
    size_t g = (size_t)batch->first[image] + (size_t)job->owner[at];
    bx_encode(batch->boxes + 4 * g, plan->criterion->matcher.iou, plan->priors->boxes + 4 * (size_t)prior,
              plan->criterion->coder.variances, target);
}

double bx_localization_loss(const bx_criterion *criterion, const float *prior, const float predicted[4],
                            const double target[4], double *slope) {
    double unused[4];
    return bx_localize(&criterion->localization, criterion->coder.variances, prior, predicted, target,
                       slope ? slope : unused);
}
