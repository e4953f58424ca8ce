/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel level of this CPU against the reference: kernel by kernel, then stage by stage over whole jobs, whose
 * criteria are put together from the menus at random. All levels promise the same bits, so everything is compared as
 * bytes. Dimensions are drawn from the edges; outputs are poisoned beforehand and lie between guard bytes.
 *
 *   harness [seed [rounds]]      or KERNEL_SEED and KERNEL_ROUNDS in the environment
 *
 * A mismatch prints the level, the kernel or stage, the seed of its round (run it alone with `harness SEED 1`), the
 * dimensions, the first index and both values.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scene.h"
#include "verdict.h"

enum {
    DEFAULT_SEED = 1,
    DEFAULT_ROUNDS = 500,
    MAX_LEVELS = 8,
};

static const bx_kernels *const ref = &bx_kernels_ref;
static const bx_kernels *kernels; /* the level under test */

static void use_level(size_t level) {
    kernels = bx_kernels_at(level);
    subject = kernels->level;
}

/* ---- load, count_bad --------------------------------------------------------------------------------------------- */

static void check_load(bx_dtype dtype) {
    const size_t n = (size_t)(one_in(2) ? pick_priors() : below(300)), width = bx_dtype_bytes(dtype);
    const size_t skew = (size_t)below(16);
    at_dims("%s, n %zu, %zu bytes off", bx_dtype_name(dtype), n, skew);
    guarded in = guarded_new(n * width, skew);
    guarded owed = guarded_new(n * 4, 0), got = guarded_new(n * 4, 4 * (size_t)below(16));
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = random_bits();
        if (dtype == BX_F64 && !one_in(4)) { /* near the ties and the ends of float32's range */
            double d = (double)bx_float((int32_t)(uint32_t)bits);
            memcpy(&bits, &d, 8);
            bits += (uint64_t)(below(3) - 1) + (one_in(2) ? UINT64_C(1) << 28 : 0);
        }
        memcpy(in.at + i * width, &bits, width);
    }
    ref->load((float *)(void *)owed.at, in.at, dtype, n);
    kernels->load((float *)(void *)got.at, in.at, dtype, n);
    bool good = true;
    for (size_t i = 0; i < n && good; i++) { /* a NaN is a NaN, whatever its payload */
        float x, y;
        memcpy(&x, owed.at + 4 * i, 4);
        memcpy(&y, got.at + 4 * i, 4);
        good = (isnan(x) && isnan(y)) || same("load", "out", owed.at + 4 * i, got.at + 4 * i, 1, 4, 4);
    }
    good &= holds(guarded_free(&in) & guarded_free(&owed) & guarded_free(&got), "load", "wrote outside its output");
    verdict(good);
}

static void check_count_bad(void) {
    const size_t n = (size_t)(one_in(20) ? 65536 + below(70000) : one_in(2) ? pick_priors() : below(200));
    const size_t skew = (size_t)below(64);
    guarded in = guarded_new(n * 4, skew);
    size_t bad = 0;
    int32_t rare = PICK(1, 2, 50, 5000);
    for (size_t i = 0; i < n; i++) {
        static const int32_t patterns[] = {0x7f800000, -0x800000, 0x7fc00000, 0x7f800001, -1};
        bool spoilt = one_in(rare);
        int32_t bits = spoilt ? patterns[below(5)] : (int32_t)(random_bits() & 0xbf7fffff);
        memcpy(in.at + 4 * i, &bits, 4);
        bad += spoilt;
    }
    at_dims("n %zu, %zu bytes off, %zu bad", n, skew, bad);
    bool good = holds(ref->count_bad(in.at, n) == bad, "count_bad", "ref counts wrong");
    good &= holds(kernels->count_bad(in.at, n) == bad, "count_bad", "counts wrong");
    guarded_free(&in);
    verdict(good);
}

/* ---- iou_row ----------------------------------------------------------------------------------------------------- */

static void check_iou_row(void) {
    const int32_t n = pick_priors();
    const float scale = one_in(4) ? (one_in(4) ? 1e18f : 300) : 1;
    bx_priors *priors = random_priors(n, scale);
    const int32_t first = one_in(2) ? 0 : below(n), count = one_in(2) ? n - first : 1 + below(n - first);
    const size_t bytes = (size_t)count * 4, skew = 4 * (size_t)below(16);
    guarded overlap[2] = {guarded_new(bytes, skew), guarded_new(bytes, skew)};
    guarded owner[2] = {guarded_new(bytes, skew), guarded_new(bytes, skew)};
    bx_best best[2] = {{0, 0}, {0, 0}};
    const bx_iou iou = (bx_iou)below(2);
    const float least = one_in(3) ? 0 : one_in(3) ? .5f : uniform(0, 1);
    const float nothing = least > 0 ? nextafterf(least, 0) : 0;
    at_dims("P %d, priors [%d, +%d), scale %g, %s, least %g", n, first, count, (double)scale,
            bx_menu_name(BX_MENU_IOU, (size_t)iou), (double)least);
    for (int32_t i = 0; i < count; i++) {
        float before = one_in(2) ? nothing : one_in(2) ? 1 : uniform(nothing, 1);
        int32_t nobody = -1;
        for (int k = 0; k < 2; k++) {
            memcpy(overlap[k].at + 4 * (size_t)i, &before, 4);
            memcpy(owner[k].at + 4 * (size_t)i, &nobody, 4);
        }
    }
    if (one_in(3)) {
        best[0] = best[1] = (bx_best){uniform(0, 1), 12345};
    }
    bool good = true;
    for (int32_t index = 0; index < 6 && good; index++) {
        float box[4];
        random_object(priors, scale, iou, box);
        const bx_object object = bx_object_of(box, iou == BX_IOU_SIZES);
        for (int k = 0; k < 2; k++) {
            (k ? kernels : ref)
                ->iou_row(priors, first, count, &object, iou, least, index, (float *)(void *)overlap[k].at,
                          (int32_t *)(void *)owner[k].at, &best[k]);
        }
        good &= same("iou_row", "overlap", overlap[0].at, overlap[1].at, (size_t)count, 4, 4);
        good &= same("iou_row", "owner", owner[0].at, owner[1].at, (size_t)count, 4, 4);
        good &= same("iou_row", "best iou", &best[0].iou, &best[1].iou, 1, 4, 4);
        good &= same("iou_row", "best prior", &best[0].prior, &best[1].prior, 1, 4, 4);
    }
    for (int k = 0; k < 2; k++) {
        good &= holds(guarded_free(&overlap[k]) & guarded_free(&owner[k]), "iou_row", "wrote outside its output");
    }
    bx_priors_free(priors);
    verdict(good);
}

/* ---- score_rows -------------------------------------------------------------------------------------------------- */

static void check_score_rows(float *tile, bool spoil) {
    const int32_t c = one_in(30) ? PICK(1000, 4096, BX_MAX_COLUMNS) : pick_columns();
    const int32_t most = bx_tile_rows(c), n = one_in(2) ? most : 1 + below(most);
    const size_t columns = (size_t)c;
    float factors[2 * 300];
    float *hard = c > 300 ? checked(malloc(2 * columns * sizeof *hard)) : factors, *soft = hard + columns;
    const bx_scoring scoring = random_scoring(c, hard, soft);
    const bool labelled = scoring.background < 0 ? one_in(2) : !one_in(3);
    const bool probabilities = scoring.kind == BX_CLASSIFICATION_PROB_CE;
    const size_t bytes = (size_t)n * columns * 4, skew = (size_t)below(64);
    at_dims("%s, n %d, C %d, %zu bytes off, background %d%s%s, gamma %g, smoothing %g%s",
            bx_menu_name(BX_MENU_CLASSIFICATION, scoring.kind), n, c, skew, scoring.background,
            labelled ? ", labels" : "", scoring.plain ? ", plain" : "", (double)scoring.gamma,
            (double)scoring.smoothing, spoil ? ", not usable" : "");
    float *x = checked(malloc(bytes));
    guarded rows = guarded_new(bytes, skew);
    guarded owed = guarded_new((size_t)n * 4, 0), got = guarded_new((size_t)n * 4, 4 * (size_t)below(16));
    int32_t label[BX_LANES];
    bool bad[BX_LANES] = {false};
    for (int32_t i = 0; i < n; i++) {
        random_row(x + (size_t)i * columns, c, probabilities);
        label[i] = below(c);
    }
    for (int32_t k = spoil ? 1 + below(3) : 0; k > 0; k--) {
        static const float wrong[] = {NAN, -NAN, INFINITY, -INFINITY, 1.01f, -.5f};
        int32_t i = below(n);
        x[(size_t)i * columns + (size_t)below(c)] = wrong[below(probabilities ? 6 : 4)];
        bad[i] = true;
    }
    memcpy(rows.at, x, bytes);
    bool usable = ref->score_rows(&scoring, rows.at, n, labelled ? label : NULL, (float *)(void *)owed.at, tile);
    memset(tile, POISON, BX_TILE_FLOATS * sizeof *tile);
    bool level = kernels->score_rows(&scoring, rows.at, n, labelled ? label : NULL, (float *)(void *)got.at, tile);
    bool good = holds(usable != spoil, "score_rows", "ref misjudged whether all can be used");
    good &= holds(level != spoil, "score_rows", "misjudged whether all can be used");
    for (int32_t i = 0; i < n && good; i++) {
        if (!bad[i]) {
            char what[32];
            snprintf(what, sizeof what, "loss[%d]", i);
            good = same("score_rows", what, owed.at + 4 * (size_t)i, got.at + 4 * (size_t)i, 1, 4, 4);
            good &= holds(((float *)(void *)owed.at)[i] >= 0 && !signbit(((float *)(void *)owed.at)[i]), "score_rows",
                          "a negative loss");
        }
    }
    good &=
        holds(guarded_free(&rows) & guarded_free(&owed) & guarded_free(&got), "score_rows", "wrote outside its output");
    free(x);
    if (hard != factors) {
        free(hard);
    }
    verdict(good);
}

/* ---- mark_largest ------------------------------------------------------------------------------------------------ */

static void check_mark_largest(void) {
    const size_t n = (size_t)(one_in(3) ? 1 + below(40) : pick_priors());
    const int kind = below(4);
    const size_t skew = 4 * (size_t)below(16);
    guarded values = guarded_new(n * 4, skew);
    guarded state[2] = {guarded_new(n, skew), guarded_new(n, skew)};
    float *x = (float *)(void *)values.at;
    size_t eligible = 0;
    for (size_t i = 0; i < n; i++) {
        bool excluded = i + 1 < n || eligible ? one_in(5) : false;
        float v = kind == 0   ? uniform(0, 20)
                  : kind == 1 ? (float)below(3)
                  : kind == 2 ? 0.5f
                              : bx_float((int32_t)(random_bits() % 0x7f800000));
        x[i] = excluded ? -1 : v;
        eligible += !excluded;
        uint8_t before = (uint8_t)(excluded ? BX_POSITIVE : one_in(4) ? BX_CORRECT : 0);
        state[0].at[i] = state[1].at[i] = before;
    }
    size_t k = one_in(4) ? eligible : one_in(3) ? 1 : 1 + (size_t)below((int32_t)eligible);
    at_dims("n %zu, k %zu of %zu, kind %d", n, k, eligible, kind);
    ref->mark_largest(x, state[0].at, n, k, BX_HARD_NEGATIVE);
    kernels->mark_largest(x, state[1].at, n, k, BX_HARD_NEGATIVE);
    bool good = same("mark_largest", "state", state[0].at, state[1].at, n, 1, 1);
    size_t marked = 0;
    for (size_t i = 0; i < n; i++) {
        marked += (state[0].at[i] & BX_HARD_NEGATIVE) != 0;
        good &= holds(!(state[0].at[i] & BX_HARD_NEGATIVE) || x[i] >= 0, "mark_largest", "ref marked what it may not");
    }
    good &= holds(marked == k, "mark_largest", "ref marked another number");
    good &= holds(guarded_free(&values) & guarded_free(&state[0]) & guarded_free(&state[1]), "mark_largest",
                  "wrote outside its output");
    verdict(good);
}

/* ---- whole jobs -------------------------------------------------------------------------------------------------- */

/* Every array of both jobs; structs without the padding at their end. */
static bool same_jobs(const char *stage, bool after_batch, const bx_job *a, const bx_job *b) {
    const bx_plan *plan = a->plan;
    const size_t n = (size_t)plan->n_images, rows = n * (size_t)plan->n_priors, objects = (size_t)plan->n_objects;
    const size_t slots = (size_t)plan->n_blocks * objects;
    bool good = same(stage, "overlap", a->overlap, b->overlap, rows, 4, 4);
    good &= same(stage, "owner", a->owner, b->owner, rows, 4, 4);
    good &= same(stage, "score", a->score, b->score, rows, 4, 4);
    good &= same(stage, "state", a->state, b->state, rows, 1, 1);
    if (!b->plan
             ->streamed) { /* whose blocks are matched from the last, so that a lesser best of one is not looked for */
        good &= same(stage, "block_iou", a->block_iou, b->block_iou, slots, 4, 4);
        good &= same(stage, "block_prior", a->block_prior, b->block_prior, slots, 4, 4);
    }
    good &= same(stage, "bad", a->bad, b->bad, n * (size_t)plan->n_blocks, sizeof *a->bad, sizeof *a->bad);
    good &= same(stage, "images", a->images, b->images, n, sizeof *a->images,
                 offsetof(bx_image_row, unmatched_objects) + sizeof(int32_t));
    good &= same(stage, "classes", a->classes, b->classes, n * (size_t)plan->n_classes, sizeof *a->classes,
                 sizeof *a->classes);
    good &= same(stage, "levels", a->levels, b->levels, n * (size_t)plan->priors->n_levels, sizeof *a->levels,
                 sizeof *a->levels);
    good &= same(stage, "objects", a->objects, b->objects, objects, sizeof *a->objects,
                 offsetof(bx_object_row, collided) + 1);
    if (after_batch) {
        good &= same(stage, "normalizers", a->normalizers, b->normalizers, n, sizeof *a->normalizers,
                     sizeof *a->normalizers);
        good &= same(stage, "listed", a->listed, b->listed, n + 1, sizeof *a->listed, sizeof *a->listed);
    }
    return good;
}

enum { MATCH, SCORE, CHECK, ASSIGN, POSITIVES, MINE, REDUCE, BATCH, LATE_REDUCE, GRADIENTS, N_STAGES };

static const char *const stages[N_STAGES] = {"match", "score",  "check", "assign",      "positives",
                                             "mine",  "reduce", "batch", "late reduce", "gradients"};

static void run_block_stage(int stage, bx_context *context, bx_job *job, int32_t image, int32_t block) {
    const int32_t first = block * BX_BLOCK, left = job->plan->n_priors - first;
    const int32_t count = left < BX_BLOCK ? left : BX_BLOCK;
    if (stage == MATCH) {
        bx_stage_begin(job, image, block);
        bx_stage_match(context, job, image, first, count);
    } else if (stage == SCORE) {
        bx_stage_score(context, job, image, first, count);
    } else {
        bx_stage_check(context, job, image, first, count);
    }
}

static void run_image_stage(int stage, bx_context *context, bx_job *job, int32_t image) {
    const bx_mining *mining = &job->plan->criterion->mining;
    const bool across = mining->kind != BX_MINING_NONE && mining->scope == BX_SCOPE_BATCH;
    const int32_t n = job->plan->n_priors;
    if (stage == ASSIGN) {
        bx_stage_assign(job, image);
    } else if (stage == MINE) {
        bx_stage_mine(context, job, image);
    } else if (stage == POSITIVES) {
        bx_stage_positives(context, job, image, 0, n);
    } else if (stage == (across ? LATE_REDUCE : REDUCE)) {
        bx_stage_reduce(job, image, 0, n);
    } else if (stage == GRADIENTS && job->plan->gradients != BX_GRADIENTS_NONE) {
        bx_stage_gradients(context, job, image);
    }
}

static void run_stage(int stage, bx_context *context, bx_job *job) {
    const bx_plan *plan = job->plan;
    for (int32_t image = 0; image < plan->n_images; image++) {
        for (int32_t b = 0; b < plan->n_blocks && stage <= CHECK; b++) {
            run_block_stage(stage, context, job, image, b);
        }
        run_image_stage(stage, context, job, image);
    }
}

/* The gradients of both jobs, row by row. */
static bool same_gradients(const bx_job *a, const bx_job *b) {
    const size_t rows = (size_t)bx_job_gradient_rows(a), columns = (size_t)a->plan->n_columns;
    bool good = true;
    if (a->plan->gradients == BX_GRADIENTS_SPARSE) {
        good &= same("gradients", "index", a->grad_index, b->grad_index, rows, 8, 8);
    }
    good &= same("gradients", "loc", a->grad_loc, b->grad_loc, 4 * rows, 4, 4);
    good &= same("gradients", "conf", a->grad_conf, b->grad_conf, columns * rows, 4, 4);
    return good;
}

/* Batch-wide work of one level, between the images and their rows; its gradients get poisoned memory. */
static guarded run_batch(bx_context *context, bx_job *job) {
    bx_error error = {0};
    if (bx_run_batch(context, job, &error) != BX_OK) {
        fprintf(stderr, "harness: seed %llu: %s: %s\n", (unsigned long long)round_seed, error.path, error.text);
        exit(2);
    }
    guarded gradients = guarded_new(bx_gradient_bytes(job->plan, bx_job_gradient_rows(job)), 0);
    bx_job_place_gradients(job, gradients.at);
    return gradients;
}

/* Rows of a tensor of one image in random pieces, each at an address of its own. */
static void stream_rows(bx_context *context, bx_job *job, int32_t image, bx_tensor tensor, size_t width,
                        void (*take)(bx_context *, bx_job *, int32_t, int32_t, int32_t, const void *)) {
    const int32_t n = job->plan->n_priors;
    const size_t row = width * bx_dtype_bytes(tensor.dtype);
    char *copy = malloc((size_t)n * row + 8);
    for (int32_t p = 0, count; p < n; p += count) {
        char *at = copy + below(8);
        count = 1 + below(below(2) ? 5 : n);
        count = count < n - p ? count : n - p;
        const size_t first = (size_t)image * (size_t)n + (size_t)p;
        memcpy(at, (const char *)tensor.data + first * row, (size_t)count * row);
        take(context, job, image, p, count, at);
    }
    free(copy);
}

/* The same batch passing by once, beside the finished job of the reference. */
static bool check_streamed(bx_context *context, const bx_job *owed) {
    bx_batch batch = *owed->batch;
    bx_plan plan;
    bx_job job;
    batch.streamed = true;
    if (bx_plan_init(&plan, owed->plan->criterion, owed->plan->priors, &batch, BX_GRADIENTS_NONE, NULL) != BX_OK) {
        exit(2);
    }
    guarded work = guarded_new(plan.work_bytes, 0);
    bx_job_init(&job, &plan, &batch, work.at);
    for (int32_t image = 0; image < plan.n_images; image++) {
        const bool loc_first = below(2);
        bx_stream_assign(context, &job, image);
        if (loc_first) {
            stream_rows(context, &job, image, batch.loc, 4, bx_stream_loc);
        }
        stream_rows(context, &job, image, batch.conf, (size_t)plan.n_columns, bx_stream_conf);
        bx_stream_mine(context, &job, image);
        if (!loc_first) {
            stream_rows(context, &job, image, batch.loc, 4, bx_stream_loc);
        }
        bx_run_image(context, &job, image);
    }
    bool good = bx_run_batch(context, &job, NULL) == BX_OK;
    for (int32_t image = 0; good && plan.second_round && image < plan.n_images; image++) {
        bx_run_rows(context, &job, image);
    }
    good = good && same_jobs("streamed", true, owed, &job);
    return holds(guarded_free(&work), "streamed", "wrote outside the workspace") && good;
}

/* The levels' jobs, stage by stage beside the reference's. */
static void check_job(bx_context *const *contexts, size_t n_levels) {
    scene s;
    scene_open(&s, BX_MAX_PRIORS);
    guarded work[MAX_LEVELS], gradients[MAX_LEVELS];
    bx_job jobs[MAX_LEVELS];
    bx_error error = {0};
    if (bx_plan_init(&s.plan, &s.criterion, s.priors, &s.batch, s.gradients, &error) != BX_OK) {
        fprintf(stderr, "harness: seed %llu: plan: %s %s\n", (unsigned long long)round_seed, error.path, error.text);
        exit(2);
    }
    at_dims("%s", s.text);
    for (size_t l = 0; l < n_levels; l++) {
        work[l] = guarded_new(s.plan.work_bytes, 0);
        bx_job_init(&jobs[l], &s.plan, &s.batch, work[l].at);
    }
    bool good[MAX_LEVELS];
    memset(good, 1, sizeof good);
    for (int stage = 0; stage < N_STAGES; stage++) {
        for (size_t l = 0; l < n_levels; l++) {
            use_level(l);
            if (stage == BATCH) {
                gradients[l] = run_batch(contexts[l], &jobs[l]);
            } else {
                run_stage(stage, contexts[l], &jobs[l]);
            }
            if (l > 0 && good[l]) { /* after a difference the later ones would only repeat it */
                good[l] = same_jobs(stages[stage], stage >= BATCH, &jobs[0], &jobs[l]);
                good[l] = good[l] && (stage != GRADIENTS || same_gradients(&jobs[0], &jobs[l]));
                verdict(good[l]);
            }
        }
    }
    bx_result owed, got;
    bx_status status = bx_finish(&owed, &jobs[0], NULL);
    for (size_t l = 0; l < n_levels; l++) {
        use_level(l);
        bool fine = holds(bx_finish(&got, &jobs[l], NULL) == status, "finish", "another verdict");
        if (fine && status == BX_OK) {
            fine = same("finish", "loss", &owed.loss, &got.loss, 5, sizeof(double), sizeof(double));
        }
        if (s.gradients == BX_GRADIENTS_NONE && s.batch.conf.data) {
            fine &= check_streamed(contexts[l], &jobs[0]);
        }
        verdict(fine);
    }
    for (size_t l = 0; l < n_levels; l++) {
        use_level(l);
        bool fine = holds(guarded_free(&work[l]), "job", "wrote outside the workspace");
        fine &= holds(guarded_free(&gradients[l]), "gradients", "wrote outside their memory");
        verdict(fine);
    }
    scene_close(&s);
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

static void check_kernels(float *tile) {
    static const bx_dtype floats[] = {BX_F32, BX_F16, BX_BF16, BX_F64};
    for (int i = 0; i < 4; i++) {
        check_load(floats[i]);
    }
    check_count_bad();
    check_iou_row();
    check_iou_row();
    for (int i = 0; i < 8; i++) {
        check_score_rows(tile, i == 7);
    }
    check_mark_largest();
    check_mark_largest();
}

int main(int argc, char **argv) {
    const uint64_t seed = number(argc > 1 ? argv[1] : NULL, "KERNEL_SEED", DEFAULT_SEED);
    const uint64_t rounds = number(argc > 2 ? argv[2] : NULL, "KERNEL_ROUNDS", DEFAULT_ROUNDS);
    float *tile = checked(aligned_alloc(BX_ALIGN, BX_TILE_FLOATS * sizeof *tile));
    bx_context *contexts[MAX_LEVELS];
    size_t n_levels = 0;
    printf("seed %llu, %llu rounds, levels", (unsigned long long)seed, (unsigned long long)rounds);
    for (const char *name; n_levels < MAX_LEVELS && (name = bx_level_name(n_levels)); n_levels++) {
        bx_error error = {0};
        printf(" %s", name);
        if (bx_context_open(&contexts[n_levels], "cpu", name, &error) != BX_OK) {
            fprintf(stderr, "harness: %s: %s\n", name, error.text);
            return 2;
        }
    }
    printf("\n");
    for (uint64_t i = 0; i < rounds; i++) {
        round_seed = seed + i;
        for (size_t l = 1; l < n_levels; l++) {
            random_state = round_seed;
            use_level(l);
            check_kernels(tile);
        }
        random_state = ~round_seed;
        check_job(contexts, n_levels);
    }
    for (size_t l = 0; l < n_levels; l++) {
        bx_context_close(contexts[l]);
    }
    free(tile);
    printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed ? EXIT_FAILURE : EXIT_SUCCESS;
}
