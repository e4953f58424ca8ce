/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cuda backend's host side on the emulated device: every call of the runtime fails in turn, devices are there or
 * not, memory is too little, a kernel hangs. CUDA's state ends with the process, so each attempt is a child.
 */
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "../support/emulated/emulated.h"
#include "../support/job.h"
#include "../support/suite.h"
#include "../support/emulated/cuda_runtime_api.h"

/* ---- a small job ------------------------------------------------------------------------------------------------- */

enum { N = 2, P = 33, C = 3, G = 3, ROWS = N * P };

typedef struct sample {
    bx_priors *priors;
    bx_batch batch;
    const bx_criterion *criterion;
    float conf[ROWS * C], loc[ROWS * 4];
} sample;

static void sample_open_at(sample *s, float shift) {
    static const float boxes[G * 4] = {.1f, .1f, .4f, .5f, .3f, .2f, .9f, .8f, .5f, .5f, .7f, .7f};
    static const int64_t labels[G] = {0, 1, 1};
    static const int32_t first[N + 1] = {0, 2, 3};
    float priors[P * 4];
    for (int i = 0; i < P; i++) {
        const float prior[4] = {(float)(i % 6) / 6 + .1f, (float)(i / 6) / 6 + .1f + shift, .3f, .25f};
        memcpy(priors + 4 * (size_t)i, prior, sizeof prior);
    }
    memset(s, 0, sizeof *s);
    ck_assert_int_eq(bx_priors_new(&s->priors, priors, P, NULL), BX_OK);
    for (int i = 0; i < ROWS * C; i++) {
        s->conf[i] = (float)(i * 7 % 11) / 3;
    }
    for (int i = 0; i < ROWS * 4; i++) {
        s->loc[i] = (float)(i * 5 % 13) / 9;
    }
    s->criterion = bx_criterion_at(0);
    s->batch = (bx_batch){.n_images = N,
                          .n_priors = P,
                          .n_columns = C,
                          .loc = {BX_F32, s->loc},
                          .conf = {BX_F32, s->conf},
                          .boxes = boxes,
                          .labels = labels,
                          .first = first,
                          .explained = true};
}

static void sample_open(sample *s) {
    sample_open_at(s, 0);
}

static void sample_close(sample *s) {
    bx_priors_free(s->priors);
}

/* What the device gives against what the cpu gives. */
static void numbers_are_right(const sample *s, const computation *c) {
    computation owed;
    ck_assert_int_eq(compute(&owed, NULL, s->criterion, s->priors, &s->batch, BX_GRADIENTS_SPARSE, NULL), BX_OK);
    ck_assert_double_eq_tol(c->result.loss.total, owed.result.loss.total, 1e-6 * owed.result.loss.total);
    ck_assert_int_eq(c->result.positives, owed.result.positives);
    ck_assert_int_eq(c->result.hard_negatives, owed.result.hard_negatives);
    const int64_t rows = bx_job_gradient_rows(&owed.job);
    ck_assert_int_gt(rows, 0);
    ck_assert_int_eq(bx_job_gradient_rows(&c->job), rows);
    for (int64_t i = 0; i < rows * C; i++) {
        HOLDS(fabsf(c->job.grad_conf[i] - owed.job.grad_conf[i]) <= 1e-6f, "gradient %lld", (long long)i);
    }
    for (int32_t i = 0; i < ROWS; i++) {
        HOLDS(bx_result_prior_class(&c->result, i / P, i % P) == bx_result_prior_class(&owed.result, i / P, i % P),
              "class of prior %d", (int)i);
    }
    computation_free(&owed);
}

/* ---- one attempt ------------------------------------------------------------------------------------------------- */

static bool begun; /* the last attempt came to its job */

/* All that a worker does with a device, once; predictions and workspace pinned, as far as that can be had. */
static bx_status attempt(const sample *s, const char *device, computation *c, bx_error *error) {
    bx_context *context = NULL;
    memset(c, 0, sizeof *c);
    begun = false;
    bx_status status = bx_context_open(&context, device, NULL, error);
    if (status != BX_OK) {
        ck_assert_ptr_null(context);
        return status;
    }
    ck_assert_int_eq(bx_plan_init(&c->plan, s->criterion, s->priors, &s->batch, BX_GRADIENTS_SPARSE, NULL), BX_OK);
    status = bx_context_reserve(context, bx_plan_device_bytes(&c->plan, &s->batch), error);
    if (status == BX_OK) {
        c->work = poisoned(c->plan.work_bytes);
        bx_job_init(&c->job, &c->plan, &s->batch, c->work);
        void *conf = (void *)(uintptr_t)s->conf;
        const bool pinned[2] = {bx_pin(conf, sizeof s->conf), bx_pin(c->work, c->plan.work_bytes)};
        begun = true;
        status = bx_job_begin(context, &c->job, error);
        for (int64_t rows = 20; status == BX_OK && rows < ROWS; rows += 30) {
            status = bx_job_feed(context, &c->job, rows, rows / 2, error);
        }
        status = status == BX_OK ? bx_job_run(context, &c->job, error) : status;
        if (status == BX_OK) {
            c->gradients = poisoned(bx_gradient_bytes(&c->plan, bx_job_gradient_rows(&c->job)));
            bx_job_place_gradients(&c->job, c->gradients);
            status = bx_job_rows(context, &c->job, error);
        }
        bx_job_end(context, &c->job);
        for (int i = 0; i < 2; i++) {
            if (pinned[i]) {
                bx_unpin(i ? c->work : conf);
            }
        }
    }
    bx_context_close(context);
    return status == BX_OK ? bx_finish(&c->result, &c->job, error) : status;
}

static bool is_sticky(int code) {
    return code != cudaErrorMemoryAllocation && code != cudaErrorLaunchOutOfResources;
}

/* What gives back, and cannot be tried again. */
static bool gives_back(const char *call) {
    return !strcmp(call, "cudaFree") || !strcmp(call, "cudaStreamDestroy") || !strcmp(call, "cudaHostUnregister");
}

/* An error says which call failed, and how; the first call of all only what that means. */
static void error_is_told(const bx_error *error, bx_status status, int code, const char *failed) {
    const bool memory = code == cudaErrorMemoryAllocation;
    const bool counting = !strcmp(failed, "cudaGetDeviceCount");
    const char *owed = counting ? cudaGetErrorString((cudaError_t)code) : cudaGetErrorName((cudaError_t)code);
    ck_assert_int_eq(error->status, status);
    ck_assert_int_eq(status, memory && !counting ? BX_NOMEM : BX_DEVICE);
    ck_assert_msg(strstr(error->text, owed), "%s failed; \"%s\" is not in: %s", failed, owed, error->text);
}

/* What is left when a call failed that is not one of giving back: nothing, unless the device was lost. */
static void all_was_given_back(const char *failed) {
    const emulated_live live = emulated_living();
    ck_assert_msg(live.allocations + live.pins + live.streams == 0, "%s failed: %ld allocations, %ld pins, %ld streams",
                  failed, live.allocations, live.pins, live.streams);
}

static void right_on(const sample *s, const char *device) {
    computation c;
    bx_error error = {0};
    ck_assert_msg(attempt(s, device, &c, &error) == BX_OK, "%s: %s", device, error.text);
    numbers_are_right(s, &c);
    computation_free(&c);
}

/* ---- every call fails -------------------------------------------------------------------------------------------- */

/* Each call fails with each of the first codes, and with one of those that stay, in turn. */
#ifdef __SANITIZE_THREAD__ /* slow, and nothing here has a second thread */
enum { MOST_CALLS = 80, KINDS = 5, STEP = 10 };
#else
enum { MOST_CALLS = 80, KINDS = 5, STEP = 1 };
#endif

static int code_of(int call, int kind) {
    static const int passing[] = {cudaErrorMemoryAllocation, cudaErrorMemoryAllocation, cudaErrorLaunchOutOfResources,
                                  cudaErrorDevicesUnavailable};
    static const int sticky[] = {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorMisalignedAddress,
                                 cudaErrorECCUncorrectable, cudaErrorUnknown};
    return kind < 4 ? passing[kind] : sticky[call % 5];
}

static bool is_for_ever(int call, int kind) {
    return kind == 1 || (kind > 1 && call % 2);
}

START_TEST(a_call_fails) {
    const int call = 1 + _i / KINDS * STEP, code = code_of(call, _i % KINDS);
    const bool for_ever = is_for_ever(call, _i % KINDS), sticky = is_sticky(code);
    sample s;
    computation c;
    bx_error error = {0};
    sample_open(&s);
    emulated_fail(call, code, for_ever);
    const bx_status status = attempt(&s, "cuda:0", &c, &error);
    const char *failed = emulated_failed();
    if (status == BX_OK) {
        numbers_are_right(&s, &c);
    } else {
        ck_assert_ptr_nonnull(failed);
        error_is_told(&error, status, code, failed);
        const bool ends = sticky && begun; /* a device that cannot be opened says nothing about the others */
        ck_assert(bx_devices_lost() == ends || for_ever); /* a stream that cannot be asked is given up too */
    }
    computation_free(&c);
    emulated_fail(0, 0, false);
    if (bx_devices_lost()) { /* nothing of CUDA is touched any more */
        const long calls = emulated_calls();
        bx_error again = {0};
        ck_assert_int_eq(attempt(&s, "cuda:0", &c, &again), BX_DEVICE);
        ck_assert_int_eq(emulated_calls(), calls);
        computation_free(&c);
    } else if (!failed || !sticky) { /* the next attempt knows nothing of it */
        if (!failed || (!for_ever && !gives_back(failed))) {
            all_was_given_back(failed ? failed : "nothing");
        }
        emulated_reset();
        if (call % 4 == 0) {
            right_on(&s, "cuda:0");
        }
    }
    ck_assert_int_eq(compute(&c, NULL, s.criterion, s.priors, &s.batch, BX_GRADIENTS_SPARSE, NULL), BX_OK);
    computation_free(&c); /* the cpu goes on */
    sample_close(&s);
}
END_TEST

START_TEST(no_call_was_left_out) {
    sample s;
    sample_open(&s);
    right_on(&s, "cuda:0");
    ck_assert_int_gt(emulated_calls(), MOST_CALLS / 2);
    ck_assert_int_lt(emulated_calls(), MOST_CALLS);
    all_was_given_back("nothing");
    sample_close(&s);
}
END_TEST

/* ---- devices ----------------------------------------------------------------------------------------------------- */

START_TEST(devices_are_listed) {
    bx_device devices[4];
    emulated_devices(2);
    ck_assert_int_eq(bx_devices(devices, 4, NULL), 2);
    ck_assert_str_eq(devices[1].name, "cuda:1");
    ck_assert_str_eq(devices[1].text, "Emulated GPU, compute capability 9.0");
    ck_assert_uint_eq(devices[1].bytes, (size_t)4 << 30);
    ck_assert_int_eq(bx_devices(devices, 1, NULL), 1);
    ck_assert(!bx_devices_lost());
}
END_TEST

static void nothing_is_there(const char *why) {
    bx_device device;
    bx_error error = {0};
    bx_context *context = NULL;
    ck_assert_int_eq(bx_devices(&device, 1, &error), 0);
    ck_assert_int_eq(error.status, BX_DEVICE);
    ck_assert_str_eq(error.code, "device_unavailable");
    ck_assert_msg(strstr(error.text, why), "%s", error.text);
    error = (bx_error){0};
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, &error), BX_DEVICE);
    ck_assert_msg(strstr(error.text, why), "%s", error.text);
    ck_assert_ptr_null(context);
    ck_assert(!bx_devices_lost());
    ck_assert(!bx_pin(&device, sizeof device));
}

START_TEST(without_a_device_it_says_so) {
    emulated_devices(0);
    nothing_is_there("no CUDA-capable device is detected");
}
END_TEST

START_TEST(without_a_driver_it_says_so) {
    emulated_devices(-1);
    nothing_is_there("driver");
}
END_TEST

START_TEST(other_names_are_no_devices) {
    static const char *const names[] = {"cuda:1", "cuda:", "cuda:-1", "cuda:x", "cuda:0x", "cuda:9999999999", "cuda0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bx_context *context = NULL;
        bx_error error = {0};
        ck_assert_int_eq(bx_context_open(&context, names[i], NULL, &error), BX_DEVICE);
        ck_assert_msg(strstr(error.text, names[i]), "%s", error.text);
        ck_assert_ptr_null(context);
    }
    all_was_given_back("nothing");
}
END_TEST

START_TEST(two_devices_work_side_by_side) {
    sample s;
    computation c[2];
    bx_context *contexts[2] = {NULL, NULL};
    static const char *const names[2] = {"cuda:0", "cuda"};
    emulated_devices(2);
    sample_open(&s);
    right_on(&s, "cuda:1");
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(bx_context_open(&contexts[i], i ? "cuda:1" : names[0], NULL, NULL), BX_OK);
        ck_assert_str_eq(bx_context_level(contexts[i]), "9.0");
        ck_assert_int_eq(bx_context_reserve(contexts[i], 1 << 20, NULL), BX_OK);
    }
    ck_assert_uint_eq(emulated_used(0), 1 << 20);
    ck_assert_uint_eq(emulated_used(1), 1 << 20);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++) {
            ck_assert_int_eq(compute_on(&c[i], contexts[i], s.criterion, s.priors, &s.batch, BX_GRADIENTS_SPARSE, NULL),
                             BX_OK);
            numbers_are_right(&s, &c[i]);
            computation_free(&c[i]);
        }
    }
    bx_context_close(contexts[0]);
    bx_context_close(contexts[1]);
    right_on(&s, names[1]);
    all_was_given_back("nothing");
    sample_close(&s);
}
END_TEST

/* ---- memory ------------------------------------------------------------------------------------------------------ */

START_TEST(a_job_that_does_not_fit_is_told) {
    sample s;
    computation c;
    bx_context *context = NULL;
    bx_error error = {0};
    sample_open(&s);
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(compute_on(&c, context, s.criterion, s.priors, &s.batch, BX_GRADIENTS_NONE, &error), BX_TOO_LARGE);
    ck_assert_str_eq(error.code, "device_memory");
    computation_free(&c);
    bx_plan plan;
    ck_assert_int_eq(bx_plan_init(&plan, s.criterion, s.priors, &s.batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    const size_t bytes = bx_plan_device_bytes(&plan, &s.batch);
    bx_context *small = NULL;
    ck_assert_int_eq(bx_context_open(&small, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(bx_context_reserve(small, bytes - 1, NULL), BX_OK);
    ck_assert_int_eq(compute_on(&c, small, s.criterion, s.priors, &s.batch, BX_GRADIENTS_NONE, NULL), BX_TOO_LARGE);
    computation_free(&c);
    bx_context_close(small);
    ck_assert_int_eq(bx_context_reserve(context, bytes, NULL), BX_OK);
    error = (bx_error){0};
    ck_assert_int_eq(compute_on(&c, context, s.criterion, s.priors, &s.batch, BX_GRADIENTS_DENSE, &error),
                     BX_TOO_LARGE);
    ck_assert_str_eq(error.code, "device_memory");
    computation_free(&c);
    ck_assert_int_eq(compute_on(&c, context, s.criterion, s.priors, &s.batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    computation_free(&c);
    ck_assert(!bx_devices_lost());
    bx_context_close(context);
    sample_close(&s);
}
END_TEST

START_TEST(memory_that_is_not_there_is_told) {
    bx_context *context = NULL;
    bx_error error = {0};
    emulated_memory(1 << 20);
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(bx_context_reserve(context, (1 << 20) + 1, &error), BX_NOMEM);
    ck_assert_msg(strstr(error.text, "cudaErrorMemoryAllocation"), "%s", error.text);
    ck_assert(!bx_devices_lost());
    ck_assert_int_eq(bx_context_reserve(context, 1 << 20, NULL), BX_OK);
    bx_context_close(context);
    all_was_given_back("nothing");
}
END_TEST

/* A gradient that is larger than the room a job asks for it. */
START_TEST(large_gradients_come_in_pieces) {
    enum { MANY = 4500, WIDE = 300 };
    sample s;
    computation owed, got;
    bx_context *context = NULL;
    bx_priors *priors = NULL;
    sample_open(&s);
    float *conf = poisoned((size_t)MANY * WIDE * sizeof *conf), *boxes = poisoned((size_t)MANY * 4 * sizeof *boxes);
    for (size_t i = 0; i < (size_t)MANY * WIDE; i++) {
        conf[i] = (float)(i * 7 % 1013) / 100 - 5;
    }
    for (size_t i = 0; i < MANY; i++) {
        const float prior[4] = {(float)(i % 67) / 67, (float)(i / 67) / 67, .2f, .3f};
        memcpy(boxes + 4 * i, prior, sizeof prior);
    }
    ck_assert_int_eq(bx_priors_new(&priors, boxes, MANY, NULL), BX_OK);
    float objects[8]; /* a prior of the first piece, and one of the last */
    for (size_t i = 0; i < 2; i++) {
        const size_t p = i ? MANY - 40 : 40;
        const float corners[4] = {priors->x1[p], priors->y1[p], priors->x2[p], priors->y2[p]};
        memcpy(objects + 4 * i, corners, sizeof corners);
    }
    bx_criterion criterion = *bx_criterion_preset("retinanet-focal");
    criterion.matcher.iou = BX_IOU_CORNERS;
    const bx_batch batch = {.n_images = 1,
                            .n_priors = MANY,
                            .n_columns = WIDE,
                            .loc = {BX_F32, boxes},
                            .conf = {BX_F32, conf},
                            .boxes = objects,
                            .labels = s.batch.labels,
                            .first = s.batch.first};
    for (bx_gradients kind = BX_GRADIENTS_SPARSE; kind <= BX_GRADIENTS_DENSE; kind++) {
        ck_assert_int_eq(compute(&owed, NULL, &criterion, priors, &batch, kind, NULL), BX_OK);
        const size_t n = (size_t)bx_job_gradient_rows(&owed.job), bytes = bx_plan_device_bytes(&owed.plan, &batch);
        ck_assert_uint_gt(n, MANY / 2);
        ck_assert_int_ge(owed.result.positives, 2);
        ck_assert_uint_lt(bytes, bx_gradient_bytes(&owed.plan, MANY) + MANY * WIDE * sizeof *conf);
        ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
        ck_assert_int_eq(bx_context_reserve(context, bytes, NULL), BX_OK);
        ck_assert_int_eq(compute_on(&got, context, &criterion, priors, &batch, kind, NULL), BX_OK);
        for (size_t i = 0; i < n * WIDE; i++) {
            const float x = owed.job.grad_conf[i], y = got.job.grad_conf[i];
            HOLDS(fabsf(x - y) <= 1e-5f * fabsf(x) + 1e-12f, "%zu: %g, owed %g", i, (double)y, (double)x);
        }
        for (size_t i = 0; i < n * 4; i++) {
            const float x = owed.job.grad_loc[i], y = got.job.grad_loc[i];
            HOLDS(fabsf(x - y) <= 1e-5f * fabsf(x) + 1e-12f, "%zu: %g, owed %g", i, (double)y, (double)x);
        }
        if (kind == BX_GRADIENTS_SPARSE) {
            ck_assert_mem_eq(got.job.grad_index, owed.job.grad_index, n * 2 * sizeof(int32_t));
        }
        computation_free(&owed);
        computation_free(&got);
        bx_context_close(context);
    }
    free(conf);
    free(boxes);
    bx_priors_free(priors);
    sample_close(&s);
}
END_TEST

/* Numbers that are finite, and a gradient that is not: refused in the words of the cpu. */
START_TEST(gradients_beyond_float32_are_refused) {
    sample s;
    computation owed, got;
    bx_context *context = NULL;
    sample_open(&s);
    bx_criterion criterion = *s.criterion;
    criterion.weights = (bx_weights){0, 1e38};
    criterion.normalizer = (bx_normalizer){BX_NORMALIZER_VALUE, 1e-3};
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(bx_context_reserve(context, 1 << 20, NULL), BX_OK);
    for (bx_gradients kind = BX_GRADIENTS_SPARSE; kind <= BX_GRADIENTS_DENSE; kind++) {
        bx_error errors[2] = {{0}, {0}};
        ck_assert_int_eq(compute(&owed, NULL, &criterion, s.priors, &s.batch, kind, &errors[0]), BX_NONFINITE);
        ck_assert_int_eq(compute_on(&got, context, &criterion, s.priors, &s.batch, kind, &errors[1]), BX_NONFINITE);
        ck_assert_str_eq(errors[1].text, errors[0].text);
        ck_assert_str_eq(errors[1].path, errors[0].path);
        ck_assert_msg(strstr(errors[0].text, "gradient"), "%s", errors[0].text);
        computation_free(&owed);
        computation_free(&got);
    }
    bx_context_close(context);
    sample_close(&s);
}
END_TEST

/* Jobs of one set of priors share it on the device, unless another has been in between. */
START_TEST(priors_are_those_of_the_job) {
    sample s, other;
    computation c;
    bx_context *context = NULL;
    bx_priors *none = NULL;
    static int64_t classes[ROWS];
    static float offsets[ROWS * 4];
    sample_open(&s);
    sample_open_at(&other, .07f);
    ck_assert_int_eq(bx_priors_rename(s.priors, "kept", NULL), BX_OK);
    ck_assert_int_eq(bx_priors_new(&none, NULL, P, NULL), BX_OK);
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(bx_context_reserve(context, 1 << 20, NULL), BX_OK);
    const bx_batch given = {.n_images = N,
                            .n_priors = P,
                            .n_columns = C,
                            .loc = s.batch.loc,
                            .conf = s.batch.conf,
                            .first = (const int32_t[]){0, 0, 0},
                            .target_classes = {BX_I64, classes},
                            .target_loc = {BX_F32, offsets}};
    ck_assert_int_eq(bx_priors_rename(other.priors, "other", NULL), BX_OK);
    const struct {
        const bx_priors *priors;
        const bx_batch *batch;
    } jobs[] = {{s.priors, &s.batch},         {s.priors, &s.batch}, {none, &given},     {s.priors, &s.batch},
                {other.priors, &other.batch}, {s.priors, &s.batch}, {s.priors, &given}, {s.priors, &s.batch}};
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        ck_assert_int_eq(compute_on(&c, context, s.criterion, jobs[i].priors, jobs[i].batch, BX_GRADIENTS_SPARSE, NULL),
                         BX_OK);
        if (jobs[i].batch != &given) {
            numbers_are_right(jobs[i].batch == &s.batch ? &s : &other, &c);
        }
        computation_free(&c);
    }
    bx_context_close(context);
    bx_priors_free(none);
    sample_close(&s);
    sample_close(&other);
}
END_TEST

/* ---- a device that does not come to an end ----------------------------------------------------------------------- */

typedef struct hung {
    const sample *s;
    atomic_bool cancel, *watched;
    bx_status status;
    bx_error error;
    pthread_t thread;
} hung;

static void *run_hung(void *argument) {
    hung *h = argument;
    sample own = *h->s, *s = &own; /* pinned: to copy from other memory would wait for the kernel before it */
    bx_context *context = NULL;
    computation c = {0};
    s->batch.conf.data = s->conf;
    s->batch.loc.data = s->loc;
    ck_assert(bx_pin(s->conf, sizeof s->conf));
    ck_assert(bx_pin(s->loc, sizeof s->loc));
    ck_assert_int_eq(bx_context_open(&context, "cuda:0", NULL, NULL), BX_OK);
    ck_assert_int_eq(bx_context_reserve(context, 1 << 20, NULL), BX_OK);
    ck_assert_int_eq(bx_plan_init(&c.plan, s->criterion, s->priors, &s->batch, BX_GRADIENTS_NONE, NULL), BX_OK);
    c.work = poisoned(c.plan.work_bytes);
    bx_job_init(&c.job, &c.plan, &s->batch, c.work);
    c.job.cancel = h->watched;
    h->status = bx_job_begin(context, &c.job, &h->error);
    if (h->status == BX_OK) {
        h->status = bx_job_run(context, &c.job, &h->error);
    }
    bx_job_end(context, &c.job);
    bx_unpin(s->conf);
    bx_unpin(s->loc);
    bx_context_close(context);
    computation_free(&c);
    return NULL;
}

/* One of them is cancelled; the other learns of it. */
START_TEST(a_hang_is_given_up) {
    sample s;
    hung jobs[2] = {{.s = &s}, {.s = &s}};
    struct timespec begin, end;
    sample_open(&s);
    emulated_hang(1);
    for (int i = 0; i < 2; i++) {
        jobs[i].watched = &jobs[i].cancel;
        ck_assert_int_eq(pthread_create(&jobs[i].thread, NULL, run_hung, &jobs[i]), 0);
    }
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    ck_assert(!bx_devices_lost()); /* without a word it would be waited for */
    clock_gettime(CLOCK_MONOTONIC, &begin);
    atomic_store(&jobs[0].cancel, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(jobs[i].thread, NULL);
        ck_assert_int_eq(jobs[i].status, BX_DEVICE);
        ck_assert_str_eq(jobs[i].error.code, "device_failed");
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    ck_assert_int_lt(end.tv_sec - begin.tv_sec, 10);
    ck_assert_msg(strstr(jobs[0].error.text, "has not come to an end"), "%s", jobs[0].error.text);
    ck_assert(bx_devices_lost());
    sample_close(&s);
}
END_TEST

#ifndef __SANITIZE_THREAD__ /* under which the emulated device may take longer than a real one is waited for */
/* A job that is cancelled while its device works ends, and the device is not given up. */
START_TEST(a_cancelled_job_is_no_hang) {
    sample s;
    hung job = {.s = &s, .cancel = true};
    sample_open(&s);
    job.watched = &job.cancel;
    run_hung(&job);
    ck_assert(!bx_devices_lost());
    right_on(&s, "cuda:0");
    all_was_given_back("nothing");
    sample_close(&s);
}
END_TEST
#endif

int main(void) {
    Suite *suite = suite_create("cuda");
    TCase *faulty = tcase_create("faults"), *tests = tcase_create("all");
    tcase_set_timeout(faulty, 60);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, no_call_was_left_out);
    tcase_add_loop_test(faulty, a_call_fails, 0, MOST_CALLS / STEP * KINDS);
    tcase_add_test(tests, devices_are_listed);
    tcase_add_test(tests, without_a_device_it_says_so);
    tcase_add_test(tests, without_a_driver_it_says_so);
    tcase_add_test(tests, other_names_are_no_devices);
    tcase_add_test(tests, two_devices_work_side_by_side);
    tcase_add_test(tests, a_job_that_does_not_fit_is_told);
    tcase_add_test(tests, memory_that_is_not_there_is_told);
    tcase_add_test(tests, large_gradients_come_in_pieces);
    tcase_add_test(tests, gradients_beyond_float32_are_refused);
    tcase_add_test(tests, priors_are_those_of_the_job);
    tcase_add_test(tests, a_hang_is_given_up);
#ifndef __SANITIZE_THREAD__
    tcase_add_test(tests, a_cancelled_job_is_no_hang);
#endif
    suite_add_tcase(suite, tests);
    suite_add_tcase(suite, faulty);
    emulated_warm(); /* for all the children of this process */
    return suite_run(suite);
}
