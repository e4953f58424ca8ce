/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cpu backend: the stages over an image's priors, on the row kernels of one level.
 *
 * A context is one thread's scratch. Stages of different (image, block) pairs touch disjoint memory of the job, so they
 * may run at the same time; what crosses blocks (assign, mine, positives, reduce) runs once per image, afterwards.
 */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- levels and contexts ----------------------------------------------------------------------------------------- */

const bx_kernels *bx_kernels_at(size_t i) {
    static const bx_kernels *const all[] = {
        &bx_kernels_ref,
        &bx_kernels_baseline,
#ifdef __x86_64__
        &bx_kernels_avx2,
#endif
    };
    for (size_t l = 0; l < sizeof all / sizeof *all; l++) {
        if (all[l]->runs_here() && i-- == 0) {
            return all[l];
        }
    }
    return NULL;
}

const char *bx_level_name(size_t i) {
    const bx_kernels *kernels = bx_kernels_at(i);
    return kernels ? kernels->level : NULL;
}

static const bx_kernels *pick_level(const char *level, bx_error *error) {
    const bx_kernels *kernels, *best = NULL;
    bool automatic = !level || !strcmp(level, "auto");
    for (size_t i = 0; (kernels = bx_kernels_at(i)); i++) {
        best = automatic || !strcmp(level, kernels->level) ? kernels : best;
    }
    if (!best) {
        bx_fail(error, BX_INVALID, "unknown_level", "this CPU has no kernel level \"%.32s\"", level);
    }
    return best;
}

/* Flush-to-zero, denormals-are-zero or another rounding would change decisions; a library can set them behind our back
 * (an object linked with -ffast-math does). */
static bool arithmetic_is_ieee(void) {
    volatile float tiny = FLT_MIN, half = 0.5f, one = 1, least = FLT_EPSILON;
    volatile float subnormal = tiny * half;
    bool down = one + least * half == one && -one - least * half == -one; /* a tie goes to even */
    bool nearest = one + least * 0.75f > one;
    return subnormal > 0 && subnormal * 2 == tiny && down && nearest;
}

static bx_status cpu_open(bx_context *context, const char *level, bx_error *error) {
    if (!arithmetic_is_ieee()) {
        return bx_fail(error, BX_INTERNAL, "floating_point",
                       "the floating-point environment is not the default one (rounding, flush to zero)");
    }
    context->kernels = pick_level(level, error);
    if (!context->kernels) {
        return BX_INVALID;
    }
    context->rows = aligned_alloc(BX_ALIGN, BX_TILE_FLOATS * sizeof(float));
    context->tile = aligned_alloc(BX_ALIGN, BX_TILE_FLOATS * sizeof(float));
    context->label = aligned_alloc(BX_ALIGN, BX_LANES * sizeof(int32_t));
    if (!context->rows || !context->tile || !context->label) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a worker's scratch");
    }
    return BX_OK;
}

static void cpu_close(bx_context *context) {
    free(context->rows);
    free(context->tile);
    free(context->label);
}

/* ---- reading predictions ----------------------------------------------------------------------------------------- */

/* `n` elements from element `at` as float32: in place when they are aligned float32, else loaded into `scratch`. */
static const float *floats(const bx_kernels *kernels, bx_tensor tensor, size_t at, size_t n, float *scratch) {
    const char *data = (const char *)tensor.data + at * bx_dtype_bytes(tensor.dtype);
    if (tensor.dtype == BX_F32 && (uintptr_t)data % _Alignof(float) == 0) {
        return (const float *)(const void *)data;
    }
    kernels->load(scratch, data, tensor.dtype, n);
    return scratch;
}

static size_t row_index(const bx_job *job, int32_t image, int32_t prior) {
    return (size_t)image * (size_t)job->plan->n_priors + (size_t)prior;
}

/* Priors of a block; the last may be shorter. */
static int32_t block_size(const bx_plan *plan, int32_t block) {
    int32_t left = plan->n_priors - block * BX_BLOCK;
    return left < BX_BLOCK ? left : BX_BLOCK;
}

/* ---- stages ------------------------------------------------------------------------------------------------------ */

void bx_stage_begin(bx_job *job, int32_t image, int32_t block) {
    const bx_plan *plan = job->plan;
    int32_t first = block * BX_BLOCK, count = block_size(plan, block);
    size_t at = row_index(job, image, first);
    memset(job->overlap + at, 0, (size_t)count * sizeof *job->overlap);
    memset(job->owner + at, 0xff, (size_t)count * sizeof *job->owner); /* -1 */
    memset(job->state + at, 0, (size_t)count);
    const int32_t *bounds = job->batch->first + image;
    size_t slot = (size_t)block * (size_t)plan->n_objects;
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        job->block_iou[slot + (size_t)g] = 0;
        job->block_prior[slot + (size_t)g] = 0;
    }
    job->bad[(size_t)image * (size_t)plan->n_blocks + (size_t)block] = (bx_bad){0, 0, -1, -1};
}

void bx_stage_match(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_plan *plan = job->plan;
    const int32_t *bounds = job->batch->first + image;
    size_t at = row_index(job, image, first);
    size_t slot = (size_t)(first / BX_BLOCK) * (size_t)plan->n_objects;
    for (int32_t g = bounds[0]; g < bounds[1] && !bx_job_cancelled(job); g++) {
        bx_best best = {job->block_iou[slot + (size_t)g], job->block_prior[slot + (size_t)g]};
        context->kernels->iou_row(plan->priors, first, count, job->batch->boxes + 4 * (size_t)g, g - bounds[0],
                                  job->overlap + at, job->owner + at, &best);
        job->block_iou[slot + (size_t)g] = best.iou;
        job->block_prior[slot + (size_t)g] = best.prior;
    }
}

/* Count what is not finite in rows of `width` elements whose first row is prior `first`. */
static void note_bad(const bx_kernels *kernels, const float *rows, int32_t n, int32_t width, int32_t first,
                     int32_t *count, int32_t *first_bad) {
    for (int32_t i = 0; i < n; i++) {
        size_t bad = kernels->count_bad(rows + (size_t)i * (size_t)width, (size_t)width);
        if (bad && *count == 0) {
            *first_bad = first + i;
        }
        *count += (int32_t)bad;
    }
}

void bx_stage_score(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_plan *plan = job->plan;
    const bx_kernels *kernels = context->kernels;
    const int32_t n_columns = plan->n_columns, step = bx_tile_rows(n_columns);
    bx_bad *bad = &job->bad[(size_t)image * (size_t)plan->n_blocks + (size_t)(first / BX_BLOCK)];
    for (int32_t done = 0; done < count; done += step) {
        int32_t prior = first + done, n = count - done < step ? count - done : step;
        size_t at = row_index(job, image, prior);
        size_t elements = (size_t)n * (size_t)n_columns;
        const float *rows = floats(kernels, job->batch->conf, at * (size_t)n_columns, elements, context->rows);
        if (!kernels->score_rows(rows, n, n_columns, NULL, job->score + at, context->tile)) {
            note_bad(kernels, rows, n, n_columns, prior, &bad->conf, &bad->first_conf);
        }
    }
}

void bx_stage_check(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_kernels *kernels = context->kernels;
    const int32_t step = BX_TILE_FLOATS / 4;
    bx_bad *bad = &job->bad[(size_t)image * (size_t)job->plan->n_blocks + (size_t)(first / BX_BLOCK)];
    for (int32_t done = 0; done < count; done += step) {
        int32_t prior = first + done, n = count - done < step ? count - done : step;
        size_t elements = (size_t)n * 4;
        const float *loc = floats(kernels, job->batch->loc, row_index(job, image, prior) * 4, elements, context->rows);
        if (kernels->count_bad(loc, elements)) {
            note_bad(kernels, loc, n, 4, prior, &bad->loc, &bad->first_loc);
        }
    }
}

/* The first prior of [p, n) whose state is not 0; n when there is none. Most are 0: eight at a time. */
static size_t next_state(const uint8_t *state, size_t p, size_t n) {
    for (uint64_t eight; p + 8 <= n; p += 8) {
        memcpy(&eight, state + p, 8);
        if (eight) {
            break;
        }
    }
    while (p < n && !state[p]) {
        p++;
    }
    return p;
}

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

/* force = last: in object order each object takes its best prior, whoever held it. */
static void force_best(bx_job *job, int32_t image) {
    const int32_t *bounds = job->batch->first + image;
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        size_t at = row_index(job, image, job->objects[g].best_prior);
        job->state[at] |= job->state[at] & BX_POSITIVE ? 0 : BX_POSITIVE | BX_FORCED;
        job->owner[at] = g - bounds[0];
    }
}

void bx_stage_assign(bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    const int32_t *bounds = job->batch->first + image;
    const size_t base = row_index(job, image, 0);
    const float threshold = plan->criterion->matcher.positive_iou;
    fold_best(job, image);
    for (size_t p = 0; p < (size_t)plan->n_priors; p++) {
        job->state[base + p] = job->overlap[base + p] >= threshold ? BX_POSITIVE : 0;
    }
    force_best(job, image);

    bx_image_row row = {.objects = bounds[1] - bounds[0]};
    const uint8_t *state = job->state + base;
    for (size_t p = 0, n = (size_t)plan->n_priors; (p = next_state(state, p, n)) < n; p++) {
        row.positives++;
        row.forced += (state[p] & BX_FORCED) != 0;
        job->objects[bounds[0] + job->owner[base + p]].positives++;
    }
    row.negatives = plan->n_priors - row.positives;
    for (int32_t g = bounds[0]; g < bounds[1]; g++) {
        bx_object_row *object = &job->objects[g];
        size_t at = base + (size_t)object->best_prior;
        object->collided = job->owner[at] != g - bounds[0];
        object->forced = !object->collided && job->state[at] & BX_FORCED;
        row.collided += object->collided;
        row.unmatched_objects += object->positives == 0;
    }
    job->images[image] = row;
}

void bx_stage_mine(bx_context *context, bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    bx_image_row *row = &job->images[image];
    const size_t base = row_index(job, image, 0), n = (size_t)plan->n_priors;
    float *score = job->score + base;
    uint8_t *state = job->state + base;
    /* rank < ratio x positives: a fraction takes one more */
    double wanted = plan->criterion->mining.ratio * row->positives;
    size_t k = wanted < row->negatives ? (size_t)wanted + ((double)(size_t)wanted < wanted) : (size_t)row->negatives;
    row->hard_negatives = (int32_t)k;
    if (k == 0) {
        return;
    }
    for (size_t p = 0; (p = next_state(state, p, n)) < n; p++) {
        score[p] = -1.0f; /* a positive: not to be chosen; its own loss comes later */
    }
    context->kernels->mark_largest(score, state, n, k, BX_HARD_NEGATIVE);
}

/* The first `limit` positives of [*prior, end); their priors to `found`. Returns how many; *prior moves on. */
static int32_t next_positives(const uint8_t *state, int32_t *prior, int32_t end, int32_t limit, int32_t *found) {
    int32_t n = 0;
    size_t p = (size_t)*prior;
    for (; n < limit && (p = next_state(state, p, (size_t)end)) < (size_t)end; p++) {
        if (state[p] & BX_POSITIVE) {
            found[n++] = (int32_t)p;
        }
    }
    *prior = (int32_t)p;
    return n;
}

static bool label_is_largest(const float *row, int32_t n_columns, int32_t label) {
    int32_t largest = 0;
    for (int32_t c = 1; c < n_columns; c++) {
        largest = row[c] > row[largest] ? c : largest;
    }
    return largest == label;
}

void bx_stage_positives(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_plan *plan = job->plan;
    const bx_kernels *kernels = context->kernels;
    const int64_t *labels = job->batch->labels + job->batch->first[image];
    const size_t base = row_index(job, image, 0), width = (size_t)plan->n_columns;
    int32_t found[BX_LANES], prior = first, n;
    float score[BX_LANES];
    while ((n = next_positives(job->state + base, &prior, first + count, bx_tile_rows(plan->n_columns), found)) > 0) {
        for (int32_t i = 0; i < n; i++) {
            float *to = context->rows + (size_t)i * width;
            const float *row = floats(kernels, job->batch->conf, (base + (size_t)found[i]) * width, width, to);
            if (row != to) {
                memcpy(to, row, width * sizeof *to);
            }
            context->label[i] = 1 + (int32_t)labels[job->owner[base + (size_t)found[i]]];
            if (label_is_largest(to, plan->n_columns, context->label[i])) {
                job->state[base + (size_t)found[i]] |= BX_CORRECT;
            }
        }
        (void)kernels->score_rows(context->rows, n, plan->n_columns, context->label, score, context->tile);
        for (int32_t i = 0; i < n; i++) {
            job->score[base + (size_t)found[i]] = score[i];
        }
    }
}

/* Add a prior's part to its image, class and level; priors come in ascending order. */
static void add_positive(bx_job *job, int32_t image, size_t at, int32_t prior, bx_level_row *level) {
    const bx_plan *plan = job->plan;
    const bx_batch *batch = job->batch;
    size_t g = (size_t)batch->first[image] + (size_t)job->owner[at];
    bx_class_row *class = &job->classes[(size_t)image * (size_t)plan->n_classes + (size_t)batch->labels[g]];
    bx_image_row *row = &job->images[image];
    level->positives++;
    class->positives++;
    if (!plan->with_predictions) {
        return;
    }
    float predicted[4];
    double target[4];
    bx_tensor_to_f32(predicted, batch->loc, 4 * at, 4);
    bx_encode(batch->boxes + 4 * g, plan->priors->boxes + 4 * (size_t)prior, plan->criterion->coder.variances, target);
    const bx_sums part = {.loc = bx_localization_value(plan->criterion, predicted, target),
                          .conf_positive = (double)job->score[at]};
    class->correct += (job->state[at] & BX_CORRECT) != 0;
    bx_sums_add(&class->sums, part);
    bx_sums_add(&level->sums, part);
    bx_sums_add(&row->sums, part);
}

void bx_stage_reduce(bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_plan *plan = job->plan;
    const int32_t *bounds = job->batch->first + image, n_levels = plan->priors->n_levels;
    bx_level_row *levels = job->levels + (size_t)image * (size_t)n_levels;
    bx_class_row *classes = job->classes + (size_t)image * (size_t)plan->n_classes;
    if (first == 0) {
        memset(levels, 0, (size_t)n_levels * sizeof *levels);
        memset(classes, 0, (size_t)plan->n_classes * sizeof *classes);
        for (int32_t g = bounds[0]; g < bounds[1]; g++) {
            classes[job->batch->labels[g]].objects++;
        }
    }
    bx_image_row *row = &job->images[image];
    for (int32_t l = 0; l < n_levels; l++) {
        const bx_level *level = &plan->priors->levels[l];
        int32_t from = level->first > first ? level->first : first;
        int32_t to = level->first + level->count < first + count ? level->first + level->count : first + count;
        size_t end = row_index(job, image, to);
        for (size_t at = row_index(job, image, from); (at = next_state(job->state, at, end)) < end; at++) {
            if (job->state[at] & BX_POSITIVE) {
                add_positive(job, image, at, (int32_t)(at - row_index(job, image, 0)), &levels[l]);
            } else {
                const bx_sums part = {.conf_negative = (double)job->score[at]};
                levels[l].hard_negatives++;
                bx_sums_add(&levels[l].sums, part);
                bx_sums_add(&row->sums, part);
            }
        }
    }
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

static void cpu_run_block(bx_context *context, bx_job *job, int32_t image, int32_t block) {
    int32_t first = block * BX_BLOCK, count = block_size(job->plan, block);
    bx_stage_begin(job, image, block);
    bx_stage_match(context, job, image, first, count);
    if (job->plan->with_predictions) {
        bx_stage_score(context, job, image, first, count);
    }
}

/* Check the image's localization; true when none of its predictions is bad. */
static bool image_is_finite(bx_context *context, bx_job *job, int32_t image) {
    const bx_bad *bad = job->bad + (size_t)image * (size_t)job->plan->n_blocks;
    bool finite = true;
    for (int32_t b = 0; b < job->plan->n_blocks; b++) {
        bx_stage_check(context, job, image, b * BX_BLOCK, block_size(job->plan, b));
        finite &= bad[b].conf == 0 && bad[b].loc == 0;
    }
    return finite;
}

static void cpu_run_image(bx_context *context, bx_job *job, int32_t image) {
    int32_t n_priors = job->plan->n_priors;
    bool predicted = job->plan->with_predictions;
    if (bx_job_cancelled(job)) {
        return;
    }
    if (predicted && !image_is_finite(context, job, image)) {
        return; /* bx_finish refuses the batch; ranking NaN would mean nothing */
    }
    bx_stage_assign(job, image);
    if (predicted) {
        bx_stage_mine(context, job, image);
        bx_stage_positives(context, job, image, 0, n_priors);
    }
    bx_stage_reduce(job, image, 0, n_priors);
}

const bx_backend bx_backend_cpu = {"cpu", cpu_open, cpu_close, cpu_run_block, cpu_run_image};
