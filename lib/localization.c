/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The box coder, and the localization loss of one positive prior with its derivative. All in double: positives are few.
 */
#include <math.h>

#include "internal.h"
#include "loss/ciou.h"
#include "loss/diou.h"
#include "loss/giou.h"
#include "loss/huber.h"
#include "loss/jump_l1.h"
#include "loss/l1.h"
#include "loss/smooth_l1.h"

/* dw and dh of a predicted box count as at most this before exp: ln(1000/16), Detectron's and torchvision's bound. */
#define LARGEST_SCALE 4.1351665567423557

/* SSD's box coder: ((c_box - c_prior) / wh_prior) / v_xy and log(wh_box / wh_prior) / v_wh. */
void bx_encode(const float box[4], bx_iou iou, const float prior[4], const double variances[4], double target[4]) {
    for (int i = 0; i < 2; i++) {
        double a = (double)box[i], b = (double)box[i + 2];
        double centre = iou == BX_IOU_SIZES ? a : (a + b) / 2, size = iou == BX_IOU_SIZES ? b : b - a;
        target[i] = (centre - (double)prior[i]) / (double)prior[i + 2] / variances[i];
        target[i + 2] = log(size / (double)prior[i + 2]) / variances[i + 2];
    }
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

/* ---- skeletons --------------------------------------------------------------------------------------------------- */

typedef double (*difference_loss)(double d, double parameter, double *slope);
typedef double (*box_loss)(const double a[4], const double b[4], double slope[4]);

/* Offsets to x1 y1 x2 y2. */
static void decode(const double offsets[4], const float prior[4], const double variances[4], double largest,
                   double box[4]) {
    for (int i = 0; i < 2; i++) {
        double scale = offsets[i + 2] * variances[i + 2], side = (double)prior[i + 2];
        double centre = (double)prior[i] + offsets[i] * variances[i] * side;
        double half = side * exp(scale < largest ? scale : largest) / 2;
        box[i] = centre - half;
        box[i + 2] = centre + half;
    }
}

static double compare_boxes(const bx_criterion *criterion, box_loss formula, const float prior[4],
                            const double predicted[4], const double target[4], double *slope) {
    const double *variances = criterion->coder.variances;
    double a[4], b[4], corners[4];
    decode(predicted, prior, variances, LARGEST_SCALE, a);
    decode(target, prior, variances, INFINITY, b);
    double loss = formula(a, b, corners);
    for (int i = 0; slope && i < 2; i++) {
        bool clamped = predicted[i + 2] * variances[i + 2] > LARGEST_SCALE;
        slope[i] = (corners[i] + corners[i + 2]) * variances[i] * (double)prior[i + 2];
        slope[i + 2] = clamped ? 0 : (corners[i + 2] - corners[i]) * (a[i + 2] - a[i]) / 2 * variances[i + 2];
    }
    return loss;
}

static double sum_offsets(difference_loss formula, double parameter, const double predicted[4], const double target[4],
                          double *slope) {
    double sum = 0, unused;
    for (int i = 0; i < 4; i++) {
        sum += formula(predicted[i] - target[i], parameter, slope ? &slope[i] : &unused);
    }
    return sum;
}

double bx_localization_loss(const bx_criterion *criterion, const float *prior, const float predicted[4],
                            const double target[4], double *slope) {
    const double p[4] = {(double)predicted[0], (double)predicted[1], (double)predicted[2], (double)predicted[3]};
#define NONE                        0
#define BETA                        criterion->localization.beta
#define DELTA                       criterion->localization.delta
#define OFFSETS(formula, parameter) sum_offsets(formula, parameter, p, target, slope)
#define BOXES(formula, parameter)   compare_boxes(criterion, formula, prior, p, target, slope)
    switch (criterion->localization.kind) {
#define BX_LOCALIZATION(id, name, parameter, skeleton, formula)                                                        \
    case BX_LOCALIZATION_##id:                                                                                         \
        return skeleton(formula, parameter);
#include "loss.def"
    }
    return 0;
}
