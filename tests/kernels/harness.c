/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel level of this CPU against the reference: kernel by kernel, then stage by stage over whole jobs. All
 * levels promise the same bits, so everything is compared as bytes. Dimensions are drawn from the edges; outputs are
 * poisoned beforehand and lie between guard bytes.
 *
 *   harness [seed [rounds]]      or KERNEL_SEED and KERNEL_ROUNDS in the environment
 *
 * A mismatch prints the level, the kernel or stage, the seed of its round (run it alone with `harness SEED 1`), the
 * dimensions, the first index and both values.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "real.h"
#include "../support/random.h"

enum {
    DEFAULT_SEED = 1,
    DEFAULT_ROUNDS = 250,
    GUARD = 64,
    POISON = 0xa5,
    MAX_LEVELS = 8,
};

static const bx_kernels *const ref = &bx_kernels_ref;
static const bx_kernels *kernels; /* the level under test */
static uint64_t round_seed;
static int passed, failed;

/* ---- random numbers and dimensions ------------------------------------------------------------------------------- */

static bool one_in(int32_t n) {
    return below(n) == 0;
}

static int32_t pick(const int32_t *from, size_t n) {
    return from[below((int32_t)n)];
}

#define PICK(...) pick((const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static int32_t pick_priors(void) {
    return PICK(1, 7, 8, 9, 31, 33, 64, 65, 127, 128, 129, 4095, 4096, 4097, 8732);
}

static int32_t pick_columns(void) {
    return PICK(2, 3, 4, 5, 7, 8, 9, 20, 21, 33, 91, 257);
}

/* ---- memory between guards --------------------------------------------------------------------------------------- */

/* `bytes` at `at`, poisoned, with GUARD bytes on both sides; `skew` moves `at` off its alignment of 64. */
typedef struct guarded {
    unsigned char *memory, *at;
    size_t bytes;
} guarded;

static guarded guarded_new(size_t bytes, size_t skew) {
    size_t all = bx_round_up(bytes + 2 * GUARD + skew);
    guarded g = {aligned_alloc(BX_ALIGN, all), NULL, bytes};
    if (!g.memory) {
        fprintf(stderr, "harness: no memory for %zu bytes\n", all);
        exit(2);
    }
    memset(g.memory, POISON, all);
    g.at = g.memory + GUARD + skew;
    return g;
}

static bool guarded_free(guarded *g) {
    bool intact = true;
    for (size_t i = 0; i < GUARD; i++) {
        intact &= g->at[-1 - (ptrdiff_t)i] == POISON && g->at[g->bytes + i] == POISON;
    }
    free(g->memory);
    return intact;
}

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

static char where[200]; /* the dimensions of the running check */

static void at_dims(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void at_dims(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
}

static void report(const char *kernel, const char *what) {
    printf("%s: %s, seed %llu, %s: %s", kernels->level, kernel, (unsigned long long)round_seed, where, what);
}

static void verdict(bool good) {
    passed += good;
    failed += !good;
}

static bool holds(bool condition, const char *kernel, const char *what) {
    if (!condition) {
        report(kernel, what);
        printf("\n");
    }
    return condition;
}

static void print_bytes(const unsigned char *x, size_t n) {
    for (size_t i = n; i > 0; i--) {
        printf("%02x", x[i - 1]);
    }
    if (n == sizeof(float)) {
        float f;
        memcpy(&f, x, sizeof f);
        printf(" (%.9g)", (double)f);
    }
}

/* The first `used` bytes of each of n elements; says where they differ first. */
static bool same(const char *kernel, const char *what, const void *owed, const void *got, size_t n, size_t element,
                 size_t used) {
    const unsigned char *x = owed, *y = got;
    if (used == element && !memcmp(x, y, n * element)) {
        return true;
    }
    for (size_t i = 0; i < n; i++, x += element, y += element) {
        if (memcmp(x, y, used)) {
            report(kernel, what);
            printf("[%zu] is ", i);
            print_bytes(y, used);
            printf(", ref has ");
            print_bytes(x, used);
            printf("\n");
            return false;
        }
    }
    return true;
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
    guarded in = guarded_new(n * 4, 4 * (size_t)below(16));
    float *x = (float *)(void *)in.at;
    size_t bad = 0;
    int32_t rare = PICK(1, 2, 50, 5000);
    for (size_t i = 0; i < n; i++) {
        static const int32_t patterns[] = {0x7f800000, -0x800000, 0x7fc00000, 0x7f800001, -1};
        bool spoilt = one_in(rare);
        x[i] = spoilt ? bx_float(patterns[below(5)]) : bx_float((int32_t)(random_bits() & 0xbf7fffff));
        bad += spoilt;
    }
    at_dims("n %zu, %zu bad", n, bad);
    bool good = holds(ref->count_bad(x, n) == bad, "count_bad", "ref counts wrong");
    good &= holds(kernels->count_bad(x, n) == bad, "count_bad", "counts wrong");
    guarded_free(&in);
    verdict(good);
}

/* ---- iou_row ----------------------------------------------------------------------------------------------------- */

static void random_prior(float box[4]) {
    if (one_in(2)) { /* on a grid: ties and touching edges */
        const float grid[4] = {.05f * (float)below(21), .05f * (float)below(21), .05f * (float)(1 + below(12)),
                               .05f * (float)(1 + below(12))};
        memcpy(box, grid, 16);
    } else {
        const float free_box[4] = {uniform(0, 1), uniform(0, 1), uniform(.01f, .6f), uniform(.01f, .6f)};
        memcpy(box, free_box, 16);
    }
}

/* `scale` 1 gives relative coordinates, more gives pixels. */
static void random_object(const bx_priors *priors, float scale, float box[4]) {
    int32_t p = below(priors->n);
    const float own[4] = {priors->x1[p], priors->y1[p], priors->x2[p], priors->y2[p]};
    switch (below(6)) {
    case 0: /* a prior exactly */
        memcpy(box, own, 16);
        break;
    case 1: /* half of one */
        memcpy(box, own, 16);
        box[2] = own[0] + (own[2] - own[0]) / 2;
        break;
    case 2: /* it touches one from the right */
        memcpy(box, (float[4]){own[2], own[1], own[2] + scale * .1f, own[3]}, 16);
        break;
    case 3: /* nowhere near */
        memcpy(box, (float[4]){scale * -1, scale * -1, scale * -.9f, scale * -.9f}, 16);
        break;
    default: {
        float x = uniform(-.1f, .9f), y = uniform(-.1f, .9f);
        memcpy(box,
               (float[4]){scale * x, scale * y, scale * (x + uniform(.01f, .8f)), scale * (y + uniform(.01f, .8f))},
               16);
    }
    }
    if (!(box[2] > box[0] && box[3] > box[1] && (box[2] - box[0]) * (box[3] - box[1]) > 0)) {
        memcpy(box, (float[4]){scale * .2f, scale * .2f, scale * .5f, scale * .5f}, 16);
    }
}

static bx_priors *random_priors(int32_t n, float scale) {
    bx_priors *priors = NULL;
    bx_error error = {0};
    float *boxes = malloc((size_t)n * 16);
    bool identical = one_in(10), local = one_in(2); /* local: neighbours lie together, so that culling skips runs */
    for (int32_t i = 0; boxes && i < n; i++) {
        float *box = boxes + 4 * (size_t)i;
        if (i && (identical || one_in(4))) {
            memcpy(box, boxes + 4 * (size_t)(identical ? 0 : below(i)), 16);
            continue;
        }
        random_prior(box);
        if (local) {
            box[0] = (float)i / (float)n;
            box[2] = uniform(.01f, .1f);
        }
        for (int c = 0; c < 4; c++) {
            box[c] *= scale;
        }
    }
    if (!boxes || bx_priors_new(&priors, boxes, n, &error) != BX_OK) {
        fprintf(stderr, "harness: priors: %s\n", error.text);
        exit(2);
    }
    free(boxes);
    return priors;
}

static void check_iou_row(void) {
    const int32_t n = pick_priors();
    const float scale = one_in(4) ? (one_in(4) ? 1e18f : 300) : 1;
    bx_priors *priors = random_priors(n, scale);
    const int32_t first = one_in(2) ? 0 : below(n), count = one_in(2) ? n - first : 1 + below(n - first);
    const size_t bytes = (size_t)count * 4, skew = 4 * (size_t)below(16);
    guarded overlap[2] = {guarded_new(bytes, skew), guarded_new(bytes, skew)};
    guarded owner[2] = {guarded_new(bytes, skew), guarded_new(bytes, skew)};
    bx_best best[2] = {{0, 0}, {0, 0}};
    at_dims("P %d, priors [%d, +%d), scale %g", n, first, count, (double)scale);
    for (int32_t i = 0; i < count; i++) {
        float before = one_in(2) ? 0 : one_in(2) ? 1 : uniform(0, 1);
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
    for (int32_t object = 0; object < 6 && good; object++) {
        float box[4];
        random_object(priors, scale, box);
        for (int k = 0; k < 2; k++) {
            (k ? kernels : ref)
                ->iou_row(priors, first, count, box, object, (float *)(void *)overlap[k].at,
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

/* One row of logits; kinds cover what exp and log1p can meet. */
static void random_row(float *row, int32_t n_columns) {
    int kind = below(9);
    int32_t top = below(n_columns);
    for (int32_t c = 0; c < n_columns; c++) {
        switch (kind) {
        case 0: /* all equal */
            row[c] = 1.25f;
            break;
        case 1:
            row[c] = one_in(2) ? 88 : -88;
            break;
        case 2: /* denormals and both zeros */
            row[c] = one_in(4) ? (one_in(2) ? -0.0f : 0.0f) : bx_float((int32_t)(random_bits() & 0x807fffff));
            break;
        case 3: /* certain */
            row[c] = c == top ? 40 : uniform(-10, 10);
            break;
        case 4: /* a few values, so that the maximum repeats */
            row[c] = (float)below(3) - 1;
            break;
        case 5: /* beyond exp's cut, still finite after the subtraction */
            row[c] = uniform(-1e37f, 1e37f);
            break;
        default:
            row[c] = uniform(-9, 9);
        }
    }
}

static void check_score_rows(float *tile, bool spoil) {
    const int32_t c = one_in(30) ? PICK(1000, 4096, BX_MAX_COLUMNS) : pick_columns();
    const int32_t most = bx_tile_rows(c), n = one_in(2) ? most : 1 + below(most);
    const bool labelled = one_in(2);
    const size_t columns = (size_t)c;
    at_dims("n %d, C %d%s%s", n, c, labelled ? ", labels" : "", spoil ? ", not finite" : "");
    guarded rows = guarded_new((size_t)n * columns * 4, 4 * (size_t)below(16));
    guarded owed = guarded_new((size_t)n * 4, 0), got = guarded_new((size_t)n * 4, 4 * (size_t)below(16));
    float *x = (float *)(void *)rows.at;
    int32_t label[BX_LANES];
    bool bad[BX_LANES] = {false};
    for (int32_t i = 0; i < n; i++) {
        random_row(x + (size_t)i * columns, c);
        label[i] = below(c);
    }
    for (int32_t k = spoil ? 1 + below(3) : 0; k > 0; k--) {
        static const float wrong[] = {NAN, INFINITY, -INFINITY};
        int32_t i = below(n);
        x[(size_t)i * columns + (size_t)below(c)] = wrong[below(3)];
        bad[i] = true;
    }
    bool finite = ref->score_rows(x, n, c, labelled ? label : NULL, (float *)(void *)owed.at, tile);
    memset(tile, POISON, BX_TILE_FLOATS * sizeof *tile);
    bool level = kernels->score_rows(x, n, c, labelled ? label : NULL, (float *)(void *)got.at, tile);
    bool good = holds(finite != spoil, "score_rows", "ref misjudged whether all is finite");
    good &= holds(level != spoil, "score_rows", "misjudged whether all is finite");
    for (int32_t i = 0; i < n && good; i++) {
        if (!bad[i]) {
            char what[32];
            snprintf(what, sizeof what, "ce[%d]", i);
            good = same("score_rows", what, owed.at + 4 * (size_t)i, got.at + 4 * (size_t)i, 1, 4, 4);
            good &= holds(!signbit(((float *)(void *)owed.at)[i]), "score_rows", "a negative loss");
        }
    }
    good &=
        holds(guarded_free(&rows) & guarded_free(&owed) & guarded_free(&got), "score_rows", "wrote outside its output");
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

typedef struct scene {
    bx_priors *priors;
    int32_t first[8];
    float *boxes;
    int64_t *labels;
    guarded loc, conf;
    bx_batch batch;
    bx_plan plan;
} scene;

/* n floats in `dtype`, possibly at an odd address. */
static guarded encoded(const float *x, size_t n, bx_dtype dtype, size_t skew) {
    const size_t width = bx_dtype_bytes(dtype);
    guarded out = guarded_new(n * width, skew);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)bx_bits(x[i]);
        double d = (double)x[i] * (1 + 0x1p-30);
        uint16_t brain = (uint16_t)(bits >> 16);
        /* a half near enough: sign, exponent clamped to its range, the fraction's upper bits */
        int32_t exponent = (int32_t)(bits >> 23 & 255) - 112;
        exponent = exponent < 0 ? 0 : exponent > 30 ? 30 : exponent;
        uint16_t half = (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 1023));
        const void *from = dtype == BX_F64    ? (const void *)&d
                           : dtype == BX_BF16 ? (const void *)&brain
                           : dtype == BX_F16  ? (const void *)&half
                                              : (const void *)&x[i];
        memcpy(out.at + i * width, from, width);
    }
    return out;
}

static void *checked(void *memory) {
    if (!memory) {
        fprintf(stderr, "harness: no memory\n");
        exit(2);
    }
    return memory;
}

/* A random batch: N up to 3, P and C from the edges (C small where P is large), objects that may be none. */
static void scene_open(scene *s) {
    static const bx_dtype dtypes[] = {BX_F32, BX_F32, BX_F16, BX_BF16, BX_F64};
    const int32_t n = PICK(1, 2, 3), p = pick_priors();
    int32_t c = pick_columns();
    while ((int64_t)n * p * c > 400000) {
        c = pick_columns();
    }
    const float scale = one_in(5) ? 300 : 1;
    const bx_dtype loc_type = dtypes[below(5)], conf_type = dtypes[below(5)];
    const size_t loc_skew = one_in(2) ? 0 : (size_t)below(8), conf_skew = one_in(2) ? 0 : (size_t)below(8);
    memset(s, 0, sizeof *s);
    s->priors = random_priors(p, scale);
    for (int32_t i = 0; i < n; i++) {
        s->first[i + 1] = s->first[i] + (one_in(3) ? 0 : one_in(3) ? 30 : 1 + below(5));
    }
    const int32_t g = s->first[n];
    s->boxes = checked(malloc((size_t)g * 16 + 1));
    s->labels = checked(malloc((size_t)g * sizeof *s->labels + 1));
    bool identical = one_in(6);
    for (int32_t i = 0; i < g; i++) {
        random_object(s->priors, scale, s->boxes + 4 * (size_t)i);
        if (i && (identical || one_in(4))) {
            memcpy(s->boxes + 4 * (size_t)i, s->boxes + 4 * (size_t)(identical ? 0 : below(i)), 16);
        }
        s->labels[i] = below(c - 1);
    }
    const size_t rows = (size_t)n * (size_t)p, columns = (size_t)c;
    float *x = checked(malloc(rows * (columns > 4 ? columns : 4) * sizeof *x));
    for (size_t i = 0; i < rows * 4; i++) {
        x[i] = uniform(-4, 4);
    }
    s->loc = encoded(x, rows * 4, loc_type, loc_skew);
    for (size_t i = 0; i < rows; i++) {
        if (i && one_in(4)) {
            memcpy(x + i * columns, x + (size_t)below((int32_t)i) * columns, columns * sizeof *x);
        } else {
            random_row(x + i * columns, c);
        }
    }
    s->conf = encoded(x, rows * columns, conf_type, conf_skew);
    free(x);
    s->batch = (bx_batch){n, p, c, {loc_type, s->loc.at}, {conf_type, s->conf.at}, s->boxes, s->labels, s->first};
    bx_error error = {0};
    if (bx_plan_init(&s->plan, bx_criterion_at((size_t)below(2)), s->priors, &s->batch, &error) != BX_OK) {
        fprintf(stderr, "harness: seed %llu: plan: %s %s\n", (unsigned long long)round_seed, error.path, error.text);
        exit(2);
    }
    at_dims("N %d, P %d, C %d, G %d, loc %s+%zu, conf %s+%zu", n, p, c, g, bx_dtype_name(loc_type), loc_skew,
            bx_dtype_name(conf_type), conf_skew);
}

static void scene_close(scene *s) {
    bx_priors_free(s->priors);
    free(s->boxes);
    free(s->labels);
    free(s->loc.memory);
    free(s->conf.memory);
}

/* Every array of both jobs; structs without the padding at their end. */
static bool same_jobs(const char *stage, const bx_job *a, const bx_job *b) {
    const bx_plan *plan = a->plan;
    const size_t n = (size_t)plan->n_images, rows = n * (size_t)plan->n_priors, objects = (size_t)plan->n_objects;
    const size_t slots = (size_t)plan->n_blocks * objects;
    bool good = same(stage, "overlap", a->overlap, b->overlap, rows, 4, 4);
    good &= same(stage, "owner", a->owner, b->owner, rows, 4, 4);
    good &= same(stage, "score", a->score, b->score, rows, 4, 4);
    good &= same(stage, "state", a->state, b->state, rows, 1, 1);
    good &= same(stage, "block_iou", a->block_iou, b->block_iou, slots, 4, 4);
    good &= same(stage, "block_prior", a->block_prior, b->block_prior, slots, 4, 4);
    good &= same(stage, "bad", a->bad, b->bad, n * (size_t)plan->n_blocks, sizeof *a->bad, sizeof *a->bad);
    good &= same(stage, "images", a->images, b->images, n, sizeof *a->images,
                 offsetof(bx_image_row, unmatched_objects) + sizeof(int32_t));
    good &= same(stage, "classes", a->classes, b->classes, n * (size_t)plan->n_classes, sizeof *a->classes,
                 sizeof *a->classes);
    good &= same(stage, "levels", a->levels, b->levels, n * (size_t)plan->priors->n_levels, sizeof *a->levels,
                 sizeof *a->levels);
    good &= same(stage, "objects", a->objects, b->objects, objects, sizeof *a->objects,
                 offsetof(bx_object_row, collided) + 1);
    return good;
}

enum { MATCH, SCORE, ASSIGN, MINE, POSITIVES, REDUCE, N_STAGES };

static void run_stage(int stage, bx_context *context, bx_job *job) {
    const bx_plan *plan = job->plan;
    for (int32_t image = 0; image < plan->n_images; image++) {
        for (int32_t b = 0; b < plan->n_blocks && stage <= SCORE; b++) {
            int32_t first = b * BX_BLOCK, left = plan->n_priors - first, count = left < BX_BLOCK ? left : BX_BLOCK;
            if (stage == MATCH) {
                bx_stage_begin(job, image, b);
            }
            (stage == MATCH ? bx_stage_match : bx_stage_score)(context, job, image, first, count);
        }
        if (stage == ASSIGN) {
            bx_stage_assign(job, image);
        } else if (stage == MINE) {
            bx_stage_mine(context, job, image);
        } else if (stage == POSITIVES) {
            bx_stage_positives(context, job, image, 0, plan->n_priors);
        } else if (stage == REDUCE) {
            bx_stage_reduce(job, image, 0, plan->n_priors);
        }
    }
}

/* The levels' jobs, stage by stage beside the reference's. */
static void check_job(bx_context *const *contexts, size_t n_levels) {
    static const char *const stages[N_STAGES] = {"match", "score", "assign", "mine", "positives", "reduce"};
    scene s;
    scene_open(&s);
    guarded work[MAX_LEVELS];
    bx_job jobs[MAX_LEVELS];
    for (size_t l = 0; l < n_levels; l++) {
        work[l] = guarded_new(s.plan.work_bytes, 0);
        bx_job_init(&jobs[l], &s.plan, &s.batch, work[l].at);
    }
    bool good[MAX_LEVELS];
    memset(good, 1, sizeof good);
    for (int stage = 0; stage < N_STAGES; stage++) {
        for (size_t l = 0; l < n_levels; l++) {
            kernels = bx_kernels_at(l);
            run_stage(stage, contexts[l], &jobs[l]);
            if (l > 0 && good[l]) { /* after a difference the later ones would only repeat it */
                good[l] = same_jobs(stages[stage], &jobs[0], &jobs[l]);
                verdict(good[l]);
            }
        }
    }
    bx_result owed, got;
    bool finished = bx_finish(&owed, &jobs[0], NULL) == BX_OK;
    for (size_t l = 0; l < n_levels; l++) {
        kernels = bx_kernels_at(l);
        bool fine = holds(finished && bx_finish(&got, &jobs[l], NULL) == BX_OK, "finish", "refused");
        fine = fine && same("finish", "loss", &owed.loss, &got.loss, 5, sizeof(double), sizeof(double));
        fine &= holds(guarded_free(&work[l]), "job", "wrote outside the workspace");
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
    for (int i = 0; i < 4; i++) {
        check_score_rows(tile, false);
    }
    check_score_rows(tile, true);
    check_mark_largest();
    check_mark_largest();
}

static uint64_t number(const char *text, const char *name, uint64_t otherwise) {
    text = text ? text : getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* There is no cuda backend in this build; CUDA=require makes that a failure. */
static void check_cuda(void) {
    const char *wish = getenv("CUDA");
    bx_context *context = NULL;
    if (bx_context_open(&context, "cuda", NULL, NULL) == BX_OK) {
        bx_context_close(context);
        printf("cuda: opened, but this harness does not compare it\n");
        failed++;
        return;
    }
    bool required = wish && !strcmp(wish, "require");
    printf("cuda: skipped%s\n", required ? ", but required" : "");
    failed += required;
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
            kernels = bx_kernels_at(l);
            check_kernels(tile);
        }
        random_state = ~round_seed;
        check_job(contexts, n_levels);
    }
    for (size_t l = 0; l < n_levels; l++) {
        bx_context_close(contexts[l]);
    }
    free(tile);
    check_cuda();
    printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed ? EXIT_FAILURE : EXIT_SUCCESS;
}
