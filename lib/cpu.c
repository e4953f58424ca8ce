/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cpu backend: the stages over an image's priors, on the row kernels of one level.
 *
 * A context is one thread's scratch. Stages of different (image, block) pairs touch disjoint memory of the job, so they
 * may run at the same time; what crosses blocks (assign, mine, positives, reduce) runs once per image, afterwards.
 */
#include <float.h>
#include <math.h>
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
        &bx_kernels_avx512,
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

static bx_status cpu_open(bx_context *context, const char *device, const char *level, bx_error *error) {
    if (strcmp(device, bx_backend_cpu.name)) {
        return bx_fail(error, BX_DEVICE, "device_unavailable", "there is no device \"%.32s\"", device);
    }
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

const void *bx_float32(const bx_kernels *kernels, bx_tensor tensor, size_t at, size_t n, float *scratch) {
    const char *data = (const char *)tensor.data + at * bx_dtype_bytes(tensor.dtype);
    if (tensor.dtype == BX_F32) {
        return data;
    }
    kernels->load(scratch, data, tensor.dtype, n);
    return scratch;
}

const float *bx_floats(const bx_kernels *kernels, bx_tensor tensor, size_t at, size_t n, float *scratch) {
    const void *found = bx_float32(kernels, tensor, at, n, scratch);
    return (uintptr_t)found % _Alignof(float) ? memcpy(scratch, found, n * sizeof *scratch) : found;
}

int32_t bx_block_size(const bx_plan *plan, int32_t block) {
    int32_t left = plan->n_priors - block * BX_BLOCK;
    return left < BX_BLOCK ? left : BX_BLOCK;
}

/* ---- stages ------------------------------------------------------------------------------------------------------ */

/* The least IoU that means something to a prior. */
static float least_iou(const bx_matcher *matcher) {
    const float least = matcher->negative_iou < 0 ? matcher->positive_iou : matcher->negative_iou;
    return least > 0 ? least : 0;
}

static float just_below(float x) {
    return x > 0 ? bx_float(bx_bits(x) - 1) : 0;
}

/* Before anything is matched: every overlap counts as too little. */
static void begin_match(bx_job *job, int32_t image, int32_t block) {
    const bx_plan *plan = job->plan;
    const int32_t first = block * BX_BLOCK, count = bx_block_size(plan, block);
    const float nothing = just_below(least_iou(&plan->criterion->matcher));
    const size_t at = bx_row_index(job, image, first), slot = (size_t)block * (size_t)plan->n_objects;
    for (int32_t i = 0; i < count; i++) {
        job->overlap[at + (size_t)i] = nothing;
        job->owner[at + (size_t)i] = -1;
    }
    memset(job->state + at, 0, (size_t)count);
    for (int32_t g = job->batch->first[image]; g < job->batch->first[image + 1]; g++) {
        job->block_iou[slot + (size_t)g] = 0;
        job->block_prior[slot + (size_t)g] = 0;
    }
}

void bx_begin_score(bx_job *job, int32_t image, int32_t block) {
    job->bad[(size_t)image * (size_t)job->plan->n_blocks + (size_t)block] = (bx_bad){0, 0, 0, -1, -1, -1};
}

void bx_stage_begin(bx_job *job, int32_t image, int32_t block) {
    begin_match(job, image, block);
    bx_begin_score(job, image, block);
}

/* What an ignored object covers, for the assign stage: priors it overlaps enough that are not positive are ignored. */
static void cover(bx_job *job, const bx_object *object, int32_t image, int32_t first, int32_t count) {
    const bx_priors *priors = job->plan->priors;
    const bx_matcher *matcher = &job->plan->criterion->matcher;
    const bool sizes = matcher->iou == BX_IOU_SIZES, by_iof = matcher->ignore_iof > 0;
    const float threshold = by_iof ? matcher->ignore_iof : matcher->positive_iou;
    const float *areas = sizes ? priors->size : priors->area;
    uint8_t *state = job->state + bx_row_index(job, image, first);
    const int32_t end = first + count;
    for (int32_t p = first; (p = bx_next_meeting(priors, p, end, object)) < end;) {
        for (int32_t stop = bx_run_end(p, end); p < stop; p++) {
            float inter = bx_intersection(object, priors->x1[p], priors->y1[p], priors->x2[p], priors->y2[p]);
            float share = by_iof ? inter / areas[p] : bx_iou_of(inter, object->area, areas[p], sizes);
            state[p - first] |= share >= threshold ? BX_COVERED : 0;
        }
    }
}

/* The greatest IoU of an object in the blocks behind this one, when these have been matched. */
static float best_behind(const bx_job *job, int32_t block, int32_t g) {
    float best = 0;
    for (int32_t b = block + 1; b < job->plan->n_blocks; b++) {
        const float iou = job->block_iou[(size_t)b * (size_t)job->plan->n_objects + (size_t)g];
        best = iou > best ? iou : best;
    }
    return best;
}

static void match_object(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, int32_t g,
                         const bx_object *object, bool backwards) {
    const bx_plan *plan = job->plan;
    const bx_matcher *matcher = &plan->criterion->matcher;
    const int32_t block = first / BX_BLOCK;
    const size_t at = bx_row_index(job, image, first), slot = (size_t)block * (size_t)plan->n_objects + (size_t)g;
    bx_best best = {job->block_iou[slot], job->block_prior[slot]};
    if (backwards) { /* an equal one here comes before those behind */
        best = (bx_best){just_below(best_behind(job, block, g)), -1};
    }
    context->kernels->iou_row(plan->priors, first, count, object, matcher->iou, least_iou(matcher),
                              g - job->batch->first[image], job->overlap + at, job->owner + at, &best);
    if (best.prior >= 0) {
        job->block_iou[slot] = best.iou;
        job->block_prior[slot] = best.prior;
    }
}

static void match_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bool backwards) {
    const bool sizes = job->plan->criterion->matcher.iou == BX_IOU_SIZES;
    const int32_t *bounds = job->batch->first + image;
    for (int32_t g = bounds[0]; g < bounds[1] && !bx_job_cancelled(job); g++) {
        const bx_object object = bx_object_of(job->batch->boxes + 4 * (size_t)g, sizes);
        if (bx_is_used(job->batch, g)) {
            match_object(context, job, image, first, count, g, &object, backwards);
        } else if (job->batch->use[g] == BX_OBJECT_IGNORED) {
            cover(job, &object, image, first, count);
        }
    }
}

void bx_stage_match(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    match_range(context, job, image, first, count, false);
}

void bx_match_image(bx_context *context, bx_job *job, int32_t image) {
    for (int32_t b = job->plan->n_blocks - 1; b >= 0; b--) {
        begin_match(job, image, b);
        match_range(context, job, image, b * BX_BLOCK, bx_block_size(job->plan, b), true);
    }
}

/* Count n bad predictions of a prior. Threads that score rows of one block may meet here. */
static void note(int32_t *count, int32_t *first, int32_t n, int32_t prior) {
    int32_t known = __atomic_load_n(first, __ATOMIC_RELAXED);
    while ((known < 0 || prior < known) &&
           !__atomic_compare_exchange_n(first, &known, prior, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    __atomic_fetch_add(count, n, __ATOMIC_RELAXED);
}

/* Count what is not finite in rows of `width` elements whose first row is prior `first`. */
static void note_bad(const bx_kernels *kernels, const char *rows, int32_t n, int32_t width, int32_t first,
                     int32_t *count, int32_t *first_bad) {
    for (int32_t i = 0; i < n; i++) {
        size_t bad = kernels->count_bad(rows + (size_t)i * (size_t)width * sizeof(float), (size_t)width);
        if (bad > 0) {
            note(count, first_bad, (int32_t)bad, first + i);
        }
    }
}

static void note_improbable(const char *rows, int32_t n, int32_t width, int32_t first, bx_bad *bad) {
    for (int32_t i = 0; i < n * width; i++) {
        float p;
        memcpy(&p, rows + (size_t)i * sizeof p, sizeof p);
        if (!bx_is_probability(p)) {
            note(&bad->range, &bad->first_range, 1, first + i / width);
        }
    }
}

bx_scoring bx_scoring_of(const bx_job *job) {
    const bx_classification *c = &job->plan->criterion->classification;
    return (bx_scoring){
        .kind = c->kind,
        .n_columns = job->plan->n_columns,
        .background = bx_background_column(job->plan->criterion, job->plan->n_columns),
        .plain = !c->class_weights && c->label_smoothing == 0,
        .gamma = (float)c->gamma,
        .smoothing = (float)c->label_smoothing,
        .hard = job->hard,
        .soft = job->soft,
    };
}

/* The same elements from the i-th on. */
static bx_tensor from(bx_tensor tensor, size_t i) {
    return (bx_tensor){tensor.dtype, (const char *)tensor.data + i * bx_dtype_bytes(tensor.dtype)};
}

void bx_score_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor conf) {
    const bx_plan *plan = job->plan;
    const bx_kernels *kernels = context->kernels;
    const bx_scoring scoring = bx_scoring_of(job);
    const int32_t n_columns = plan->n_columns, step = bx_tile_rows(n_columns);
    bx_bad *bad = &job->bad[(size_t)image * (size_t)plan->n_blocks + (size_t)(first / BX_BLOCK)];
    for (int32_t done = 0; done < count; done += step) {
        int32_t prior = first + done, n = count - done < step ? count - done : step;
        size_t at = bx_row_index(job, image, prior), width = (size_t)n_columns;
        const void *rows = bx_float32(kernels, conf, (size_t)done * width, (size_t)n * width, context->rows);
        if (!kernels->score_rows(&scoring, rows, n, NULL, job->score + at, context->tile)) {
            note_bad(kernels, rows, n, n_columns, prior, &bad->conf, &bad->first_conf);
            if (scoring.kind == BX_CLASSIFICATION_PROB_CE) {
                note_improbable(rows, n, n_columns, prior, bad);
            }
        }
    }
}

void bx_stage_score(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const size_t at = bx_row_index(job, image, first) * (size_t)job->plan->n_columns;
    bx_score_range(context, job, image, first, count, from(job->batch->conf, at));
}

void bx_check_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor loc) {
    const bx_kernels *kernels = context->kernels;
    const int32_t step = BX_TILE_FLOATS / 4;
    bx_bad *bad = &job->bad[(size_t)image * (size_t)job->plan->n_blocks + (size_t)(first / BX_BLOCK)];
    for (int32_t done = 0; done < count; done += step) {
        int32_t prior = first + done, n = count - done < step ? count - done : step;
        const void *rows = bx_float32(kernels, loc, (size_t)done * 4, (size_t)n * 4, context->rows);
        if (kernels->count_bad(rows, (size_t)n * 4)) {
            note_bad(kernels, rows, n, 4, prior, &bad->loc, &bad->first_loc);
        }
    }
}

void bx_stage_check(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    bx_check_range(context, job, image, first, count, from(job->batch->loc, bx_row_index(job, image, first) * 4));
}

/* ---- mining ------------------------------------------------------------------------------------------------------ */

/* Negatives to mine for so many positives: a real number, at most the negatives there are. A decision, so the product
 * is float32 as in the origins (a Python float times a count is a float32 tensor in PyTorch and TensorFlow). */
static double wanted_negatives(const bx_mining *mining, double positives, double negatives) {
    double wanted = (double)((float)mining->ratio * (float)positives), least = (double)mining->min_negatives;
    wanted = wanted > least ? wanted : least;
    return wanted < negatives ? wanted : negatives;
}

void bx_stage_mine(bx_context *context, bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    const bx_mining *mining = &plan->criterion->mining;
    bx_image_row *row = &job->images[image];
    const size_t base = bx_row_index(job, image, 0), n = (size_t)plan->n_priors;
    if (mining->kind == BX_MINING_NONE || plan->mines_across) {
        return; /* never, or later */
    }
    row->mined = wanted_negatives(mining, row->positives, row->negatives);
    row->hard_negatives = (int32_t)ceil(row->mined); /* rank < ratio x positives: a fraction takes one more */
    if (row->hard_negatives > 0) {
        context->kernels->mark_largest(job->score + base, job->state + base, n, (size_t)row->hard_negatives,
                                       BX_HARD_NEGATIVE);
    }
}

/* Ties to the lowest image and prior; the origin truncates the number. */
void bx_mine_batch(bx_context *context, bx_job *job) {
    const bx_plan *plan = job->plan;
    const size_t n = (size_t)plan->n_priors, rows = (size_t)plan->n_images * n;
    double positives = 0, negatives = 0;
    for (int32_t i = 0; i < plan->n_images; i++) {
        positives += job->images[i].positives;
        negatives += job->images[i].negatives;
    }
    double wanted = wanted_negatives(&plan->criterion->mining, positives, negatives);
    if (wanted >= 1) {
        context->kernels->mark_largest(job->score, job->state, rows, (size_t)wanted, BX_HARD_NEGATIVE);
    }
    for (int32_t i = 0; i < plan->n_images; i++) {
        int32_t found = 0;
        const uint8_t *state = job->state + (size_t)i * n;
        for (size_t p = 0; (p = bx_next_marked(state, p, n, BX_HARD_NEGATIVE)) < n; p++) {
            found++;
        }
        job->images[i].hard_negatives = found;
        job->images[i].mined = 0;
    }
    job->images[0].mined = wanted;
}

/* ---- positives and sums ------------------------------------------------------------------------------------------ */

/* The first `limit` positives of [*prior, end); their priors to `found`. Returns how many; *prior moves on. */
static int32_t next_positives(const uint8_t *state, int32_t *prior, int32_t end, int32_t limit, int32_t *found) {
    int32_t n = 0;
    size_t p = (size_t)*prior;
    for (; n < limit && (p = bx_next_marked(state, p, (size_t)end, BX_POSITIVE)) < (size_t)end; p++) {
        found[n++] = (int32_t)p;
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

/* The sign bit says what may not be mined: a positive keeps its loss under it, what is ignored has none. */
static void exclude(bx_job *job, size_t base, int32_t first, int32_t end) {
    const uint8_t *state = job->state + base;
    for (size_t p = (size_t)first; (p = bx_next_marked(state, p, (size_t)end, BX_IGNORED)) < (size_t)end; p++) {
        job->score[base + p] = -1;
    }
}

void bx_positives_range(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, bx_tensor conf) {
    const bx_plan *plan = job->plan;
    const bx_kernels *kernels = context->kernels;
    const bx_scoring scoring = bx_scoring_of(job);
    const size_t base = bx_row_index(job, image, 0), width = (size_t)plan->n_columns;
    const size_t row_bytes = width * bx_dtype_bytes(conf.dtype);
    int32_t found[BX_LANES], prior = first, n;
    float score[BX_LANES];
    while ((n = next_positives(job->state + base, &prior, first + count, bx_tile_rows(plan->n_columns), found)) > 0) {
        for (int32_t i = 0; i < n; i++) { /* far apart: all are fetched while the first is waited for */
            const char *row = (const char *)conf.data + (size_t)(found[i] - first) * row_bytes;
            __builtin_prefetch(row);
            __builtin_prefetch(row + row_bytes - 1);
        }
        for (int32_t i = 0; i < n; i++) {
            size_t at = base + (size_t)found[i];
            float *to = context->rows + (size_t)i * width;
            const void *row = bx_float32(kernels, conf, (size_t)(found[i] - first) * width, width, to);
            if (row != to) {
                memcpy(to, row, width * sizeof *to);
            }
            context->label[i] = bx_class_column(plan->criterion, bx_positive_class(job, image, at));
            if (label_is_largest(to, plan->n_columns, context->label[i])) {
                job->state[at] |= BX_CORRECT;
            }
        }
        (void)kernels->score_rows(&scoring, context->rows, n, context->label, score, context->tile);
        for (int32_t i = 0; i < n; i++) {
            job->score[base + (size_t)found[i]] = -score[i];
        }
    }
    exclude(job, base, first, first + count);
}

void bx_stage_positives(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count) {
    const size_t at = bx_row_index(job, image, first) * (size_t)job->plan->n_columns;
    bx_positives_range(context, job, image, first, count, from(job->batch->conf, at));
}

/* Add a prior's part to its image, class and level; priors come in ascending order. */
static void add_positive(bx_job *job, int32_t image, int32_t prior, bx_level_row *level) {
    const bx_plan *plan = job->plan;
    const size_t at = bx_row_index(job, image, prior);
    bx_class_row *class =
        &job->classes[(size_t)image * (size_t)plan->n_classes + (size_t)bx_positive_class(job, image, at)];
    bx_image_row *row = &job->images[image];
    double target[4];
    level->positives++;
    class->positives++;
    bx_target(job, image, prior, target);
    for (int i = 0; i < 4; i++) {
        row->too_far = row->too_far == 0 && !isfinite((float)target[i]) ? prior + 1 : row->too_far;
    }
    if (!plan->with_predictions) {
        return;
    }
    float predicted[4];
    bx_tensor_to_f32(predicted, job->offsets ? (bx_tensor){BX_F32, job->offsets} : job->batch->loc, 4 * at, 4);
    const float *box = plan->priors->boxes ? plan->priors->boxes + 4 * (size_t)prior : NULL;
    const bx_sums part = {.loc = bx_localization_loss(plan->criterion, box, predicted, target, NULL),
                          .conf_positive = -(double)job->score[at]};
    class->correct += (job->state[at] & BX_CORRECT) != 0;
    bx_sums_add(&class->sums, part);
    bx_sums_add(&level->sums, part);
    bx_sums_add(&row->sums, part);
}

static void add_background(bx_job *job, int32_t image, size_t at, bx_level_row *level) {
    if (job->plan->with_predictions) {
        const double loss = (double)job->score[at];
        level->hard_negatives += (job->state[at] & BX_HARD_NEGATIVE) != 0;
        level->sums.conf_negative += loss;
        job->images[image].sums.conf_negative += loss;
    }
}

void bx_stage_reduce(bx_job *job, int32_t image, int32_t first, int32_t count) {
    const bx_plan *plan = job->plan;
    const int32_t *bounds = job->batch->first + image, n_levels = plan->priors->n_levels;
    const size_t base = bx_row_index(job, image, 0);
    bx_level_row *levels = job->levels + (size_t)image * (size_t)n_levels;
    bx_class_row *classes = job->classes + (size_t)image * (size_t)plan->n_classes;
    if (first == 0) {
        memset(levels, 0, (size_t)n_levels * sizeof *levels);
        memset(classes, 0, (size_t)plan->n_classes * sizeof *classes);
        for (int32_t g = bounds[0]; g < bounds[1]; g++) {
            if (bx_is_used(job->batch, g)) {
                classes[job->batch->labels[g]].objects++;
            }
        }
    }
    for (int32_t l = 0; l < n_levels; l++) {
        const bx_level *level = &plan->priors->levels[l];
        int32_t from = level->first > first ? level->first : first;
        int32_t to = level->first + level->count < first + count ? level->first + level->count : first + count;
        size_t end = base + (size_t)(to > from ? to : from);
        for (size_t at = base + (size_t)from; (at = bx_next_counted(job, job->state, at, end)) < end; at++) {
            if (job->state[at] & BX_POSITIVE) {
                add_positive(job, image, (int32_t)(at - base), &levels[l]);
            } else {
                add_background(job, image, at, &levels[l]);
            }
        }
    }
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* Images of so few blocks are matched whole by the unit of the first: what is known from the last blocks, which have
 * the largest priors of the usual sets, spares work in the others. */
#define FEW_BLOCKS 8

void bx_run_block(bx_context *context, bx_job *job, int32_t image, int32_t block) {
    const bx_plan *plan = job->plan;
    const int32_t first = block * BX_BLOCK, count = bx_block_size(plan, block);
    if (plan->n_blocks > FEW_BLOCKS) {
        begin_match(job, image, block);
        match_range(context, job, image, first, count, false);
    } else if (block == 0) {
        bx_match_image(context, job, image);
    }
    bx_begin_score(job, image, block);
    if (plan->with_predictions) {
        bx_stage_score(context, job, image, first, count);
    }
}

bool bx_image_is_usable(const bx_job *job, int32_t image) {
    const bx_bad *bad = job->bad + (size_t)image * (size_t)job->plan->n_blocks;
    bool usable = true;
    for (int32_t b = 0; b < job->plan->n_blocks; b++) {
        usable &= bad[b].conf == 0 && bad[b].loc == 0 && bad[b].range == 0;
    }
    return usable;
}

/* Of predictions that are in memory: what precedes reduce. Ranking NaN would mean nothing. */
static void choose_rows(bx_context *context, bx_job *job, int32_t image) {
    const bx_plan *plan = job->plan;
    for (int32_t b = 0; plan->with_predictions && b < plan->n_blocks; b++) {
        bx_stage_check(context, job, image, b * BX_BLOCK, bx_block_size(plan, b));
    }
    if (!bx_image_is_usable(job, image)) {
        return;
    }
    bx_stage_assign(job, image);
    if (plan->with_predictions) {
        bx_stage_positives(context, job, image, 0, plan->n_priors);
        bx_stage_mine(context, job, image);
    }
}

void bx_run_image(bx_context *context, bx_job *job, int32_t image) {
    if (bx_job_cancelled(job)) {
        return;
    }
    if (!job->plan->streamed) {
        choose_rows(context, job, image);
    }
    if (!job->plan->mines_across && bx_image_is_usable(job, image)) { /* else bx_run_batch refuses the batch */
        bx_stage_reduce(job, image, 0, job->plan->n_priors);
    }
}

void bx_run_rows(bx_context *context, bx_job *job, int32_t image) {
    if (bx_job_cancelled(job)) {
        return;
    }
    if (job->plan->mines_across) {
        bx_stage_reduce(job, image, 0, job->plan->n_priors);
    }
    if (job->plan->gradients != BX_GRADIENTS_NONE) {
        bx_stage_gradients(context, job, image);
    }
}

/* ---- a job as a whole -------------------------------------------------------------------------------------------- */

static const char *cpu_level(const bx_context *context) {
    return context->kernels->level;
}

static bx_status cpu_reserve(bx_context *context, size_t bytes, bx_error *error) {
    (void)context;
    (void)bytes;
    (void)error;
    return BX_OK;
}

static bx_status cpu_begin(bx_context *context, bx_job *job, bx_error *error) {
    (void)context;
    (void)job;
    (void)error;
    return BX_OK;
}

static bx_status cpu_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error) {
    (void)conf_rows;
    (void)loc_rows;
    return cpu_begin(context, job, error);
}

static bx_status cpu_rows(bx_context *context, bx_job *job, bx_error *error) {
    (void)error;
    for (int32_t i = 0; i < job->plan->n_images; i++) {
        bx_run_rows(context, job, i);
    }
    return BX_OK;
}

static bx_status cpu_run(bx_context *context, bx_job *job, bx_error *error) {
    const bx_plan *plan = job->plan;
    for (int32_t i = 0; i < plan->n_images; i++) {
        for (int32_t b = 0; b < plan->n_blocks; b++) {
            bx_run_block(context, job, i, b);
        }
        bx_run_image(context, job, i);
    }
    bx_status status = bx_run_batch(context, job, error);
    const bool rest = plan->second_round && plan->gradients == BX_GRADIENTS_NONE;
    return status == BX_OK && rest ? cpu_rows(context, job, error) : status;
}

static void cpu_end(bx_context *context, bx_job *job) {
    (void)context;
    (void)job;
}

const bx_backend bx_backend_cpu = {"cpu",     cpu_open, cpu_close, cpu_level, cpu_reserve,
                                   cpu_begin, cpu_feed, cpu_run,   cpu_rows,  cpu_end};
