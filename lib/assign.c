/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From overlaps to an assignment: thresholds, forced matches, ignored priors, and what became of each object. One
 * thread per image, after all its blocks have been matched.
 */
#include "internal.h"

/* Each object's best prior over the whole image: blocks in order, so that the lowest prior wins a tie. */
static void fold_best(bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    const int32_t *bounds = job->batch->first + image;
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        bx_object_row row = {0};
        for (int32_t b = 0; b < plan->n_blocks; b++) {
            size_t slot = (size_t)b * (size_t)plan->n_objects + (size_t)g;
            if (job->block_iou[slot] > row.best_iou) {
                row.best_iou = job->block_iou[slot];
                row.best_prior = job->block_prior[slot];
            }
        }
        job->objects[g] = row;
    }
}

/* ---- forced matches ---------------------------------------------------------------------------------------------- */

/* Give a prior to an object, whoever held it. */
static void force(bx_job *job, int32_t image, int32_t g, int32_t prior) {
    size_t at = bx_row_index(job, image, prior);
    job->state[at] |= job->state[at] & BX_POSITIVE ? 0 : BX_POSITIVE | BX_FORCED;
    job->owner[at] = g - job->batch->first[image];
}

/* last: in object order each takes its best prior. first: the other way round, so that the first keeps it. */
static void force_in_order(bx_job *job, int32_t image, bool reverse) {
    const int32_t *bounds = job->batch->first + image;
    const int32_t n = bounds[1] - bounds[0];
    for (int32_t i = 0; i < n; i++) {
        int32_t g = reverse ? bounds[1] - 1 - i : bounds[0] + i;
        if (bx_is_used(job->batch, g)) {
            force(job, image, g, job->objects[g].best_prior);
        }
    }
}

/* Of one culling run's priors [first, end), the first free one with the greatest IoU; raises *best when it exceeds it.
 */
static void best_of_run(const bx_priors *priors, const float *areas, const uint8_t *restrict state, int32_t first,
                        int32_t end, const bx_object *object, int sizes, bx_best *best) {
    const float *restrict x1 = priors->x1 + first, *restrict y1 = priors->y1 + first;
    const float *restrict x2 = priors->x2 + first, *restrict y2 = priors->y2 + first, *restrict area = areas + first;
    const bx_object o = *object;
    float iou[BX_CULL];
    int32_t top = 0;
    for (int32_t i = 0; i < end - first; i++) {
        float v = bx_iou_of(bx_intersection(&o, x1[i], y1[i], x2[i], y2[i]), o.area, area[i], sizes);
        int32_t bits = state[i] & BX_TAKEN ? 0 : bx_bits(v);
        iou[i] = bx_float(bits);
        top = bits > top ? bits : top;
    }
    if (top > bx_bits(best->iou)) {
        int32_t i = 0;
        while (bx_bits(iou[i]) != top) {
            i++;
        }
        *best = (bx_best){bx_float(top), first + i};
    }
}

/* The first prior with the greatest IoU with object g among those no object has taken; IoU 0 when there is none. */
static bx_best best_untaken(const bx_job *job, int32_t image, int32_t g) {
    const bx_priors *priors = job->plan->priors;
    const bool sizes = job->plan->criterion->matcher.iou == BX_IOU_SIZES;
    const bx_object object = bx_object_of(job->batch->boxes + 4 * (size_t)g, sizes);
    const float *areas = sizes ? priors->size : priors->area;
    const uint8_t *state = job->state + bx_row_index(job, image, 0);
    bx_best best = {0, 0};
    for (int32_t p = 0, end; (p = bx_next_meeting(priors, p, priors->n, &object)) < priors->n; p = end) {
        end = bx_run_end(p, priors->n);
        best_of_run(priors, areas, state + p, p, end, &object, sizes, &best);
    }
    return best;
}

/* The best pair each object has left, as a heap of objects: greatest IoU first, then lowest prior, then lowest object.
 */
typedef struct heap {
    const float *iou;
    const int32_t *prior;
    int32_t *objects;
    int32_t n;
} heap;

static bool comes_before(const heap *h, int32_t a, int32_t b) {
    if (h->iou[a] != h->iou[b]) {
        return h->iou[a] > h->iou[b];
    }
    return h->prior[a] != h->prior[b] ? h->prior[a] < h->prior[b] : a < b;
}

static void sink(heap *h, int32_t at) {
    for (int32_t child; (child = 2 * at + 1) < h->n; at = child) {
        child += child + 1 < h->n && comes_before(h, h->objects[child + 1], h->objects[child]);
        if (!comes_before(h, h->objects[child], h->objects[at])) {
            return;
        }
        int32_t up = h->objects[child];
        h->objects[child] = h->objects[at];
        h->objects[at] = up;
    }
}

/*
 * greedy: repeatedly the greatest IoU among objects and priors that are still free; ties to the lowest prior, then the
 * lowest object. An object's best free prior is looked for again only when another object has taken it: until then it
 * is an upper bound. The pairs are kept in the image's slots of the first block, which matching no longer needs.
 */
static void force_greedily(bx_job *job, int32_t image) {
    const int32_t *bounds = job->batch->first + image;
    float *iou = job->block_iou;
    int32_t *prior = job->block_prior;
    heap h = {iou, prior, job->heap + bounds[0], 0};
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        iou[g] = job->objects[g].best_iou;
        prior[g] = job->objects[g].best_prior;
        if (bx_is_used(job->batch, g) && iou[g] > 0) {
            h.objects[h.n++] = g;
        }
    }
    for (int32_t i = h.n / 2; i-- > 0;) {
        sink(&h, i);
    }
    while (h.n > 0 && !bx_job_cancelled(job)) {
        int32_t next = h.objects[0];
        uint8_t *state = &job->state[bx_row_index(job, image, prior[next])];
        bool taken = *state & BX_TAKEN;
        bx_best best = taken ? best_untaken(job, image, next) : (bx_best){0, 0};
        if (!taken) {
            force(job, image, next, prior[next]);
            *state |= BX_TAKEN;
        }
        iou[next] = best.iou;
        prior[next] = best.prior;
        if (best.iou == 0) {
            h.objects[0] = h.objects[--h.n];
        }
        sink(&h, 0);
    }
}

static void force_matches(bx_job *job, int32_t image) {
    switch (job->plan->criterion->matcher.force) {
    case BX_FORCE_LAST:
        force_in_order(job, image, false);
        break;
    case BX_FORCE_FIRST:
        force_in_order(job, image, true);
        break;
    case BX_FORCE_GREEDY:
        force_greedily(job, image);
        break;
    case BX_FORCE_NONE:
        break;
    }
}

/* ---- the stage --------------------------------------------------------------------------------------------------- */

static void assign_by_overlap(bx_job *job, int32_t image) {
    const bx_matcher *matcher = &job->plan->criterion->matcher;
    const float positive = matcher->positive_iou;
    const float negative = matcher->negative_iou < 0 ? positive : matcher->negative_iou;
    const size_t base = bx_row_index(job, image, 0), n = (size_t)job->plan->n_priors;
    const float *overlap = job->overlap + base;
    uint8_t *state = job->state + base;
    for (size_t p = 0; p < n; p++) {
        int covered = state[p] & BX_COVERED ? BX_IGNORED : 0;
        int between = overlap[p] >= negative ? BX_IGNORED : 0;
        state[p] = (uint8_t)(overlap[p] >= positive ? BX_POSITIVE : covered | between);
    }
    force_matches(job, image);
    for (size_t p = 0; (p = bx_next_state(state, p, n)) < n; p++) {
        state[p] &= (uint8_t) ~(state[p] & BX_POSITIVE ? BX_IGNORED | BX_TAKEN : BX_TAKEN);
    }
}

/* The caller's targets were checked by the plan. */
static void assign_targets(bx_job *job, int32_t image) {
    const size_t base = bx_row_index(job, image, 0);
    for (size_t at = base; at < base + (size_t)job->plan->n_priors; at++) {
        int32_t class = (int32_t)bx_tensor_int(job->batch->target_classes, at);
        job->state[at] = (uint8_t)(class >= 0 ? BX_POSITIVE : class == -2 ? BX_IGNORED : 0);
        job->owner[at] = class >= 0 ? class : -1;
    }
}

/* What became of each object, and the image's counts of objects. */
static void describe_objects(bx_job *job, int32_t image, bx_image_row *row) {
    const int32_t *bounds = job->batch->first + image;
    const bx_force force_rule = job->plan->criterion->matcher.force;
    const bool claims_anyway = force_rule == BX_FORCE_LAST || force_rule == BX_FORCE_FIRST;
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        bx_object_row *object = &job->objects[g];
        size_t at = bx_row_index(job, image, object->best_prior);
        if (!bx_is_used(job->batch, g)) {
            continue;
        }
        bool claims = object->best_iou > 0 || claims_anyway;
        object->collided = claims && job->state[at] & BX_POSITIVE && job->owner[at] != g - bounds[0];
        row->objects++;
        row->collided += object->collided;
        row->unmatched_objects += object->positives == 0;
    }
}

void bx_stage_assign(bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    const size_t base = bx_row_index(job, image, 0), n = (size_t)plan->n_priors;
    if (plan->with_targets) {
        assign_targets(job, image);
    } else {
        fold_best(job, image);
        assign_by_overlap(job, image);
    }
    bx_image_row row = {0};
    const uint8_t *state = job->state + base;
    for (size_t p = 0; (p = bx_next_state(state, p, n)) < n; p++) {
        row.positives += (state[p] & BX_POSITIVE) != 0;
        row.ignored += (state[p] & BX_IGNORED) != 0;
        row.forced += (state[p] & BX_FORCED) != 0;
        if (state[p] & BX_POSITIVE && !plan->with_targets) {
            bx_object_row *object = &job->objects[job->batch->first[image] + job->owner[base + p]];
            object->positives++;
            object->forced |= (state[p] & BX_FORCED) != 0;
        }
    }
    row.negatives = plan->n_priors - row.positives - row.ignored;
    describe_objects(job, image, &row);
    job->images[image] = row;
}
