/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole jobs on a GPU against the reference: decisions with ==, sums to 1e-6, gradients to 1e-5 of a row's largest. The
 * batches are the harness's. A job's predictions arrive in random pieces, and what has not arrived is NaN; its memory
 * is pinned or not; a second run of the same job gives the same bits.
 *
 *   cuda [seed [rounds]]      or KERNEL_SEED and KERNEL_ROUNDS in the environment
 *
 * Without a device it says so, and fails only with CUDA=require.
 */
#include <math.h>

#include "scene.h"
#include "verdict.h"

enum {
    DEFAULT_SEED = 1,
    DEFAULT_ROUNDS = 500,
    EMULATED_ROUNDS = 120,
    SMALL = 300,         /* priors of most rounds on an emulated device */
    RESERVE = 128 << 20, /* of the context that most jobs share */
    NOTHING_YET = 0xff,  /* a NaN in every dtype */
};

/* What the driver takes and never gives back is not ours. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libcuda\nleak:libnvidia\n";
}

/* ---- one run ----------------------------------------------------------------------------------------------------- */

/* A job with its own copy of the predictions, which arrive there, and memory between guards. */
typedef struct run {
    bx_batch batch;
    bx_plan plan;
    bx_job job;
    bx_result result;
    bx_status status;
    bx_error error;
    guarded work, gradients, conf, loc;
    bool pinned[4];
} run;

static size_t rows_of(const bx_batch *batch) {
    return (size_t)batch->n_images * (size_t)batch->n_priors;
}

static guarded not_yet(bx_tensor tensor, size_t elements, size_t skew) {
    guarded g = guarded_new(elements * bx_dtype_bytes(tensor.dtype), skew);
    memset(g.at, NOTHING_YET, g.bytes);
    return g;
}

static guarded *memory_of(run *r, int i) {
    guarded *all[] = {&r->work, &r->gradients, &r->conf, &r->loc};
    return all[i];
}

/* The plan of the scene, for a batch whose predictions have not come yet. */
static void run_open(run *r, const scene *s, bool explained) {
    memset(r, 0, sizeof *r);
    r->batch = s->batch;
    r->batch.explained = explained;
    if (s->batch.conf.data) {
        const size_t rows = rows_of(&s->batch), skew = one_in(2) ? 0 : (size_t)below(16);
        r->conf = not_yet(s->batch.conf, rows * (size_t)s->batch.n_columns, skew);
        r->loc = not_yet(s->batch.loc, rows * 4, skew);
        r->batch.conf.data = r->conf.at;
        r->batch.loc.data = r->loc.at;
    }
    if (bx_plan_init(&r->plan, &s->criterion, s->priors, &r->batch, s->gradients, &r->error) != BX_OK) {
        fprintf(stderr, "cuda: seed %llu: plan: %s %s\n", (unsigned long long)round_seed, r->error.path, r->error.text);
        exit(2);
    }
    r->work = guarded_new(r->plan.work_bytes, 0);
    bx_job_init(&r->job, &r->plan, &r->batch, r->work.at);
}

/* Whether nothing was written outside its memory; an int, as guarded_free's. */
static int run_close(run *r) {
    int intact = true;
    for (int i = 0; i < 4; i++) {
        guarded *g = memory_of(r, i);
        if (r->pinned[i]) {
            bx_unpin(g->at);
        }
        intact &= !g->memory || guarded_free(g);
    }
    return intact;
}

static void pin(run *r, int i) {
    guarded *g = memory_of(r, i);
    r->pinned[i] = g->memory && g->bytes > 0 && bx_pin(g->at, g->bytes);
}

/* Rows [*done, until) of a tensor arrive. */
static void arrive(guarded *to, bx_tensor from, size_t width, int64_t *done, int64_t until) {
    const size_t row = width * bx_dtype_bytes(from.dtype), at = (size_t)*done * row;
    memcpy(to->at + at, (const char *)from.data + at, (size_t)(until - *done) * row);
    *done = until;
}

static int64_t later(int64_t done, int64_t all) {
    const int64_t step = one_in(3) ? below(40) : one_in(2) ? below(2000) : below((int32_t)all + 1);
    return done + step < all ? done + step : all;
}

/* Feed in pieces until all, or most, of it is there; the rest arrives with bx_job_run. */
static bx_status feed(run *r, const scene *s, bx_context *context) {
    const int64_t all = (int64_t)rows_of(&s->batch);
    int64_t conf = 0, loc = 0;
    bx_status status = BX_OK;
    for (int i = 0; status == BX_OK && i < 12 && (conf < all || loc < all); i++) {
        if (!one_in(3)) {
            arrive(&r->conf, s->batch.conf, (size_t)s->batch.n_columns, &conf, later(conf, all));
        }
        if (!one_in(3)) {
            arrive(&r->loc, s->batch.loc, 4, &loc, later(loc, all));
        }
        status = bx_job_feed(context, &r->job, conf, loc, &r->error);
    }
    arrive(&r->conf, s->batch.conf, (size_t)s->batch.n_columns, &conf, all);
    arrive(&r->loc, s->batch.loc, 4, &loc, all);
    return status;
}

/* All of a job, to its result or its error. */
static void run_job(run *r, const scene *s, bx_context *context) {
    r->status = bx_job_begin(context, &r->job, &r->error);
    if (r->status == BX_OK && s->batch.conf.data) {
        r->status = feed(r, s, context);
    }
    if (r->status == BX_OK) {
        r->status = bx_job_run(context, &r->job, &r->error);
    }
    if (r->status == BX_OK && r->plan.gradients != BX_GRADIENTS_NONE) {
        r->gradients = guarded_new(bx_gradient_bytes(&r->plan, bx_job_gradient_rows(&r->job)), 0);
        if (r->pinned[0]) {
            pin(r, 1);
        }
        bx_job_place_gradients(&r->job, r->gradients.at);
        r->status = bx_job_rows(context, &r->job, &r->error);
    }
    bx_job_end(context, &r->job);
    if (r->status == BX_OK) {
        r->status = bx_finish(&r->result, &r->job, &r->error);
    }
}

/* ---- what is owed ------------------------------------------------------------------------------------------------ */

static bool number_is(const char *stage, const char *what, size_t i, double owed, double got) {
    if (owed == got || (isnan(owed) && isnan(got))) {
        return true;
    }
    report(stage, what);
    printf("[%zu] is %.17g, ref has %.17g\n", i, got, owed);
    return false;
}

static bool is_close(const char *stage, const char *what, size_t i, double owed, double got) {
    const double size = fmax(fabs(owed), fabs(got));
    return fabs(owed - got) <= 1e-6 * size + 1e-15 || number_is(stage, what, i, owed, got);
}

static bool close_sums(const char *what, size_t i, const bx_sums *owed, const bx_sums *got) {
    bool good = is_close("reduce", what, i, owed->loc, got->loc);
    good &= is_close("reduce", what, i, owed->conf_positive, got->conf_positive);
    good &= is_close("reduce", what, i, owed->conf_negative, got->conf_negative);
    return good;
}

enum { IMAGE_COUNTS = (offsetof(bx_image_row, too_far) - offsetof(bx_image_row, objects)) / sizeof(int32_t) + 1 };

static bool same_images(const bx_job *a, const bx_job *b) {
    bool good = true;
    for (size_t i = 0; i < (size_t)a->plan->n_images; i++) {
        const bx_image_row *x = &a->images[i], *y = &b->images[i];
        good &= same("image", "counts", &x->objects, &y->objects, IMAGE_COUNTS, 4, 4);
        good &= number_is("image", "mined", i, x->mined, y->mined);
        good &= close_sums("sums of image", i, &x->sums, &y->sums);
    }
    return good;
}

static bool same_groups(const bx_job *a, const bx_job *b) {
    const size_t n = (size_t)a->plan->n_images;
    bool good = true;
    for (size_t i = 0; i < n * (size_t)a->plan->n_classes; i++) {
        const bx_class_row *x = &a->classes[i], *y = &b->classes[i];
        good &= same("class", "counts", &x->objects, &y->objects, 3, 8, 8);
        good &= close_sums("sums of class", i, &x->sums, &y->sums);
    }
    for (size_t i = 0; i < n * (size_t)a->plan->priors->n_levels; i++) {
        const bx_level_row *x = &a->levels[i], *y = &b->levels[i];
        good &= same("level", "counts", &x->positives, &y->positives, 2, 8, 8);
        good &= close_sums("sums of level", i, &x->sums, &y->sums);
    }
    return good;
}

/* Of each prior what bx_result_prior_class and _object look at, and the other marks that came with it. */
static bool same_priors(const bx_job *a, const bx_job *b) {
    const size_t rows = (size_t)a->plan->n_images * (size_t)a->plan->n_priors;
    const uint8_t marks = BX_POSITIVE | BX_FORCED | BX_HARD_NEGATIVE | BX_CORRECT | BX_IGNORED;
    bool good = true;
    for (size_t i = 0; i < rows && good; i++) {
        const uint8_t x = a->state[i] & marks, y = b->state[i] & marks;
        good &= number_is("prior", "state", i, x, y);
        good &= !(x & BX_POSITIVE) || number_is("prior", "owner", i, a->owner[i], b->owner[i]);
    }
    return good;
}

/* 1e-5 of the largest number of the row. */
static bool close_rows(const char *what, const float *owed, const float *got, size_t rows, size_t width) {
    for (size_t i = 0; i < rows * width; i += width) {
        double largest = 0;
        for (size_t c = i; c < i + width; c++) {
            largest = fmax(largest, fmax(fabs((double)owed[c]), fabs((double)got[c])));
        }
        for (size_t c = i; c < i + width; c++) {
            const double x = (double)owed[c], y = (double)got[c];
            if (!(fabs(x - y) <= 1e-5 * largest + 1e-30) && !number_is("gradients", what, c, x, y)) {
                return false;
            }
        }
    }
    return true;
}

static bool close_gradients(const bx_job *a, const bx_job *b) {
    const size_t rows = (size_t)bx_job_gradient_rows(a), columns = (size_t)a->plan->n_columns;
    bool good = true;
    if (rows > 0 && a->plan->gradients == BX_GRADIENTS_SPARSE) {
        good &= same("gradients", "index", a->grad_index, b->grad_index, rows, 8, 8);
    }
    return good && close_rows("loc", a->grad_loc, b->grad_loc, rows, 4) &&
           close_rows("conf", a->grad_conf, b->grad_conf, rows, columns);
}

static bool same_error(const run *owed, const run *got) {
    bool good = number_is("job", "status", 0, owed->status, got->status);
    if (owed->status != BX_OK || got->status != BX_OK) {
        good &= !strcmp(owed->error.path, got->error.path) && !strcmp(owed->error.text, got->error.text);
        if (!good) {
            report("job", "another error");
            printf(" \"%s\" %s; ref: \"%s\" %s\n", got->error.path, got->error.text, owed->error.path,
                   owed->error.text);
        }
    }
    return good;
}

/* Whether predictions could be used, so that there is more to compare than the error. */
static bool was_run(const run *r) {
    return r->status == BX_OK || !strcmp(r->error.code, "loss_overflow");
}

static bool agrees(const run *owed, const run *got) {
    const bx_job *a = &owed->job, *b = &got->job;
    if (!same_error(owed, got) || !was_run(owed)) {
        return same_error(owed, got);
    }
    const size_t n = (size_t)a->plan->n_images, objects = (size_t)a->plan->n_objects;
    bool good = same_images(a, b) && same_groups(a, b);
    good &= same("object", "rows", a->objects, b->objects, objects, sizeof *a->objects,
                 offsetof(bx_object_row, collided) + 1);
    good &= same("batch", "normalizers", a->normalizers, b->normalizers, n, sizeof(bx_sums), sizeof(bx_sums));
    good &= same("batch", "listed", a->listed, b->listed, n + 1, 8, 8);
    if (got->batch.explained) {
        good = good && same_priors(a, b);
    }
    if (good && a->plan->gradients != BX_GRADIENTS_NONE) {
        good = close_gradients(a, b);
    }
    if (good && owed->status == BX_OK) {
        const double *x = &owed->result.loss.total, *y = &got->result.loss.total;
        for (size_t i = 0; i < 5; i++) {
            good &= is_close("finish", "loss", i, x[i], y[i]);
        }
    }
    return good;
}

/* Two runs on the device: the same bits. */
static bool repeats(const run *first, const run *second) {
    const bx_job *a = &first->job, *b = &second->job;
    bool good = number_is("again", "status", 0, first->status, second->status);
    if (!good || !was_run(first)) {
        return good;
    }
    const size_t n = (size_t)a->plan->n_images, rows = (size_t)bx_job_gradient_rows(a);
    for (size_t i = 0; i < n; i++) {
        const bx_image_row *x = &a->images[i], *y = &b->images[i];
        good &= same("again", "counts of image", &x->objects, &y->objects, IMAGE_COUNTS, 4, 4);
        good &= same("again", "sums of image", &x->sums, &y->sums, 3, 8, 8);
    }
    good &= same("again", "classes", a->classes, b->classes, n * (size_t)a->plan->n_classes, sizeof *a->classes,
                 sizeof *a->classes);
    good &= same("again", "levels", a->levels, b->levels, n * (size_t)a->plan->priors->n_levels, sizeof *a->levels,
                 sizeof *a->levels);
    if (rows > 0) {
        good &= same("again", "loc", a->grad_loc, b->grad_loc, rows * 4, 4, 4);
        good &= same("again", "conf", a->grad_conf, b->grad_conf, rows * (size_t)a->plan->n_columns, 4, 4);
    }
    return good;
}

/* ---- rounds ------------------------------------------------------------------------------------------------------ */

static bx_context *open_context(const char *device, size_t bytes) {
    bx_context *context = NULL;
    bx_error error = {0};
    const char *level = strcmp(device, "cpu") ? NULL : bx_kernels_ref.level;
    bx_status status = bx_context_open(&context, device, level, &error);
    if (status == BX_OK && bytes > 0) {
        status = bx_context_reserve(context, bytes, &error);
    }
    if (status != BX_OK) {
        fprintf(stderr, "cuda: %s: %s\n", device, error.text);
        exit(2);
    }
    return context;
}

static void put_nan(guarded *to, bx_dtype dtype, size_t elements) {
    const size_t width = bx_dtype_bytes(dtype), at = (size_t)below((int32_t)elements);
    if (one_in(2)) {
        memset(to->at + at * width, NOTHING_YET, width);
    } else { /* infinity: the exponent's bits, which end in another place for each dtype */
        const uint64_t infinity = dtype == BX_F64    ? UINT64_C(0x7ff) << 52
                                  : dtype == BX_F16  ? 0x7c00
                                  : dtype == BX_BF16 ? 0xff80
                                                     : 0x7f800000;
        memcpy(to->at + at * width, &infinity, width);
    }
}

/* What the harness's batches lack: predictions that are not finite, and none at all. */
static void vary(scene *s) {
    const size_t rows = rows_of(&s->batch);
    if (one_in(10)) {
        s->batch.conf.data = s->batch.loc.data = NULL;
        s->gradients = BX_GRADIENTS_NONE;
        return;
    }
    for (int32_t n = one_in(8) ? 1 + below(4) : 0; n > 0; n--) {
        if (one_in(2)) {
            put_nan(&s->conf, s->batch.conf.dtype, rows * (size_t)s->batch.n_columns);
        } else {
            put_nan(&s->loc, s->batch.loc.dtype, rows * 4);
        }
    }
}

/* A job that is given up: whatever it says, it comes to an end, and the next one is not disturbed. */
static void cancel_one(const scene *s, bx_context *context) {
    run r;
    run_open(&r, s, false);
    atomic_bool cancel = one_in(2);
    r.job.cancel = &cancel;
    bx_status status = bx_job_begin(context, &r.job, NULL);
    if (status == BX_OK && s->batch.conf.data && one_in(2)) {
        status = feed(&r, s, context);
    }
    cancel = true;
    if (status == BX_OK && one_in(2)) {
        (void)!bx_job_run(context, &r.job, NULL);
    }
    bx_job_end(context, &r.job);
    verdict(holds(run_close(&r), "cancelled", "wrote outside its memory"));
}

static void run_device(run *r, const scene *s, bx_context *context, bool explained) {
    run_open(r, s, explained);
    for (int i = 0; i < 4; i++) {
        if (i != 1 && one_in(2)) {
            pin(r, i);
        }
    }
    run_job(r, s, context);
}

/* Pairs of a prior and an object. An emulated device takes longer for more than a cancelled job is waited for. */
static double most_cancelled = 1e30;

static void check_round(bx_context *ref, bx_context *shared, const char *device, int32_t most) {
    scene s;
    run owed, got, again;
    scene_open(&s, most);
    vary(&s);
    at_dims("%s%s", s.text, s.batch.conf.data ? "" : ", no predictions");
    run_open(&owed, &s, true);
    run_job(&owed, &s, ref);
    const size_t bytes = bx_plan_device_bytes(&owed.plan, &owed.batch);
    const bool own = bytes > RESERVE || one_in(6); /* with what the job is said to take, and no byte more */
    bx_context *context = own ? open_context(device, bytes) : shared;
    if (one_in(8) && (double)rows_of(&s.batch) * (1 + owed.plan.n_objects) < most_cancelled) {
        cancel_one(&s, context);
    }
    run_device(&got, &s, context, one_in(2));
    verdict(agrees(&owed, &got));
    if (one_in(3)) {
        run_device(&again, &s, context, false);
        verdict(repeats(&got, &again));
        verdict(holds(run_close(&again), "again", "wrote outside its memory"));
    }
    verdict(holds(run_close(&got) & run_close(&owed), "job", "wrote outside its memory"));
    if (own) {
        bx_context_close(context);
    }
    scene_close(&s);
}

int main(int argc, char **argv) {
    const char *wish = getenv("CUDA");
    const bool required = wish && !strcmp(wish, "require");
    bx_device device;
    bx_error error = {0};
    if (bx_devices(&device, 1, &error) < 1) {
        printf("cuda: %s (%s)\n", required ? "CUDA=require, but" : "skipped", error.text);
        printf("0 passed, %d failed, %d skipped\n", required, !required);
        return required;
    }
    const bool emulated = strstr(device.text, "Emulated") != NULL;
    const uint64_t seed = number(argc > 1 ? argv[1] : NULL, "KERNEL_SEED", DEFAULT_SEED);
    const uint64_t rounds =
        number(argc > 2 ? argv[2] : NULL, "KERNEL_ROUNDS", emulated ? EMULATED_ROUNDS : DEFAULT_ROUNDS);
    printf("seed %llu, %llu rounds, %s: %s\n", (unsigned long long)seed, (unsigned long long)rounds, device.name,
           device.text);
    subject = device.name;
    most_cancelled = emulated ? 2000 : most_cancelled;
    bx_context *ref = open_context("cpu", 0), *shared = open_context(device.name, RESERVE);
    for (uint64_t i = 0; i < rounds; i++) {
        round_seed = seed + i;
        random_state = ~round_seed;
        check_round(ref, shared, device.name, emulated && !one_in(20) ? SMALL : BX_MAX_PRIORS);
    }
    bx_context_close(shared);
    bx_context_close(ref);
    printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed ? EXIT_FAILURE : EXIT_SUCCESS;
}
