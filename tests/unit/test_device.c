/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How requests come to a GPU, and what becomes of them there, in every order of events. The library's calls are
 * wrapped: two devices compute on contexts of the cpu, fail when they are told to, and look whether what they were
 * given stays as it is until the job has ended.
 */
#include "../support/batch.h"
#include "../support/posted.h"

/* ---- the devices ------------------------------------------------------------------------------------------------- */

#define MOST_CONTEXTS 8

/* Of a context: its job. */
typedef struct seen {
    bx_context *context;
    const bx_job *job; /* NULL: none */
    int64_t conf_rows, loc_rows;
    uint64_t sum; /* of all rows, once they are there */
    bool gpu;
} seen;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    seen contexts[MOST_CONTEXTS];
    int n_contexts, n_devices;
    size_t job_bytes;
    long calls, fail_at; /* the call that fails; 0: none */
    const char *fail_in; /* or the one of that name; NULL: none */
    bx_status failure;
    bool loses; /* and it is the last */
    bool holds; /* bx_job_run waits, and after a cancellation comes back if it `obeys` */
    bool obeys;
    long begun, fed, ended; /* jobs, calls with some rows only, jobs */
    int running, most_running, held;
    atomic_bool lost;
} gpu_state = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

bx_status __real_bx_context_open(bx_context **context, const char *device, const char *level, bx_error *error);
bx_status __real_bx_job_run(bx_context *context, bx_job *job, bx_error *error);
bx_status __real_bx_job_rows(bx_context *context, bx_job *job, bx_error *error);

int32_t __wrap_bx_devices(bx_device *devices, int32_t most, bx_error *error);
bool __wrap_bx_devices_lost(void);
size_t __wrap_bx_plan_device_bytes(const bx_plan *plan, const bx_batch *batch);
bx_status __wrap_bx_context_open(bx_context **context, const char *device, const char *level, bx_error *error);
bx_status __wrap_bx_job_begin(bx_context *context, bx_job *job, bx_error *error);
bx_status __wrap_bx_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error);
bx_status __wrap_bx_job_run(bx_context *context, bx_job *job, bx_error *error);
bx_status __wrap_bx_job_rows(bx_context *context, bx_job *job, bx_error *error);
void __wrap_bx_job_end(bx_context *context, bx_job *job);

int32_t __wrap_bx_devices(bx_device *devices, int32_t most, bx_error *error) {
    ck_assert_int_ge(most, gpu_state.n_devices);
    for (int i = 0; i < gpu_state.n_devices; i++) {
        snprintf(devices[i].name, sizeof devices[i].name, "cuda:%d", i % 10);
        snprintf(devices[i].text, sizeof devices[i].text, "a device of the test");
    }
    if (gpu_state.n_devices == 0) {
        bx_fail(error, BX_DEVICE, "device_unavailable", "there is none");
    }
    return gpu_state.n_devices;
}

bool __wrap_bx_devices_lost(void) {
    return atomic_load(&gpu_state.lost);
}

size_t __wrap_bx_plan_device_bytes(const bx_plan *plan, const bx_batch *batch) {
    (void)plan;
    (void)batch;
    return gpu_state.job_bytes;
}

bx_status __wrap_bx_context_open(bx_context **context, const char *device, const char *level, bx_error *error) {
    const bool gpu = !strncmp(device, "cuda", 4);
    bx_status status = __real_bx_context_open(context, gpu ? "cpu" : device, level, error);
    if (status == BX_OK && gpu) {
        ck_assert_int_lt(gpu_state.n_contexts, MOST_CONTEXTS);
        gpu_state.contexts[gpu_state.n_contexts++] = (seen){.context = *context, .gpu = true};
    }
    return status;
}

static seen *seen_of(const bx_context *context) {
    int i = 0;
    while (gpu_state.contexts[i].context != context) {
        HOLDS(++i < gpu_state.n_contexts, "a context that was not opened");
    }
    return &gpu_state.contexts[i];
}

static uint64_t sum_of(bx_tensor tensor, size_t width, int64_t rows) {
    uint64_t sum = 0;
    const size_t bytes = (size_t)rows * width * bx_dtype_bytes(tensor.dtype);
    const char *data = tensor.data;
    size_t i = 0;
    for (uint64_t word; bytes - i >= sizeof word; i += sizeof word) { /* the suite takes as long as this does */
        memcpy(&word, data + i, sizeof word);
        sum = sum * 31 + word;
    }
    for (; i < bytes; i++) {
        sum = sum * 31 + (unsigned char)data[i];
    }
    return sum;
}

/* Read as a device would: the sanitizers see whether somebody still writes there, or it is gone. */
static uint64_t sum_rows(const bx_job *job, int64_t conf_rows, int64_t loc_rows) {
    return sum_of(job->batch->conf, (size_t)job->batch->n_columns, conf_rows) ^ sum_of(job->batch->loc, 4, loc_rows);
}

/* Whether this call is the one that fails. */
static bx_status call(const char *name, bx_error *error) {
    pthread_mutex_lock(&gpu_state.lock);
    const bool fails =
        ++gpu_state.calls == gpu_state.fail_at || (gpu_state.fail_in && !strcmp(gpu_state.fail_in, name));
    pthread_mutex_unlock(&gpu_state.lock);
    if (fails && gpu_state.loses) {
        atomic_store(&gpu_state.lost, true);
    }
    if (atomic_load(&gpu_state.lost)) {
        return bx_fail(error, BX_DEVICE, "device_failed", "the device is lost");
    }
    return fails ? bx_fail(error, gpu_state.failure,
                           gpu_state.failure == BX_TOO_LARGE ? "device_memory" : "device_failed", "%s failed", name)
                 : BX_OK;
}

bx_status __wrap_bx_job_begin(bx_context *context, bx_job *job, bx_error *error) {
    seen *s = seen_of(context);
    HOLDS(s->gpu && !s->job, "a job is begun while another is there");
    s->job = job;
    s->conf_rows = s->loc_rows = 0;
    s->sum = 0;
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.begun++;
    gpu_state.running++;
    gpu_state.most_running = gpu_state.running > gpu_state.most_running ? gpu_state.running : gpu_state.most_running;
    pthread_mutex_unlock(&gpu_state.lock);
    return call("begin", error);
}

bx_status __wrap_bx_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error) {
    seen *s = seen_of(context);
    const int64_t all = (int64_t)job->plan->n_images * job->plan->n_priors;
    HOLDS(s->job == job && conf_rows >= s->conf_rows && loc_rows >= s->loc_rows && conf_rows <= all && loc_rows <= all,
          "%lld and %lld rows", (long long)conf_rows, (long long)loc_rows);
    s->conf_rows = conf_rows;
    s->loc_rows = loc_rows;
    s->sum = sum_rows(job, conf_rows, loc_rows);
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.fed += conf_rows < all || loc_rows < all;
    pthread_mutex_unlock(&gpu_state.lock);
    return call("feed", error);
}

static void hold(const bx_job *job) {
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.held++;
    while (gpu_state.holds && !(gpu_state.obeys && bx_job_cancelled(job))) {
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 2000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&gpu_state.changed, &gpu_state.lock, &soon);
    }
    gpu_state.held--;
    pthread_mutex_unlock(&gpu_state.lock);
}

bx_status __wrap_bx_job_run(bx_context *context, bx_job *job, bx_error *error) {
    seen *s = seen_of(context);
    const int64_t all = (int64_t)job->plan->n_images * job->plan->n_priors;
    HOLDS(s->job == job && s->conf_rows == all && s->loc_rows == all, "run before all rows were fed");
    hold(job);
    bx_status status = call("run", error);
    return status == BX_OK ? __real_bx_job_run(context, job, error) : status;
}

bx_status __wrap_bx_job_rows(bx_context *context, bx_job *job, bx_error *error) {
    HOLDS(seen_of(context)->job == job && job->grad_loc, "no room for gradients");
    bx_status status = call("rows", error);
    return status == BX_OK ? __real_bx_job_rows(context, job, error) : status;
}

void __wrap_bx_job_end(bx_context *context, bx_job *job) {
    seen *s = seen_of(context);
    HOLDS(s->job == job, "a job ends that was not begun");
    HOLDS(s->sum == 0 || s->sum == sum_rows(job, s->conf_rows, s->loc_rows), "the rows changed under the device");
    s->job = NULL;
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.ended++;
    gpu_state.running--;
    pthread_mutex_unlock(&gpu_state.lock);
}

static bool becomes_held(int n) {
    int held = -1;
    for (int i = 0; i < 5000 && held != n; i++) {
        usleep(1000);
        pthread_mutex_lock(&gpu_state.lock);
        held = gpu_state.held;
        pthread_mutex_unlock(&gpu_state.lock);
    }
    return held == n;
}

static void let_go(void) {
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.holds = false;
    pthread_cond_broadcast(&gpu_state.changed);
    pthread_mutex_unlock(&gpu_state.lock);
}

/* ---- the daemon without HTTP ------------------------------------------------------------------------------------- */

static char *body;
static size_t body_bytes;

static void start_devices(const char *option) {
    bx_error missing = {0}, error = {0};
    s.options.device = option;
    pthread_mutex_lock(&gpu_state.lock);
    gpu_state.n_contexts = 0;
    gpu_state.calls = gpu_state.fail_at = gpu_state.begun = gpu_state.fed = gpu_state.ended = 0;
    gpu_state.most_running = 0;
    gpu_state.fail_in = NULL;
    gpu_state.job_bytes = 1;
    gpu_state.holds = gpu_state.obeys = gpu_state.loses = false;
    atomic_store(&gpu_state.lost, false);
    pthread_mutex_unlock(&gpu_state.lock);
    ck_assert_msg(devices_start(&s.devices, &s.options, &missing, &error) == BX_OK, "%s", error.text);
}

static void stop_devices(void) {
    ck_assert(devices_stop(s.devices));
    devices_free(s.devices);
    s.devices = NULL;
    HOLDS(gpu_state.begun == gpu_state.ended && gpu_state.running == 0, "%ld jobs begun, %ld ended", gpu_state.begun,
          gpu_state.ended);
}

static void setup(void) {
    open_server(2);
    gpu_state.n_devices = 2;
    body = batch_tensors(12, &body_bytes);
    start_devices("auto");
}

static void teardown(void) {
    stop_devices();
    close_server();
    free(body);
}

static size_t busy(void) {
    return devices_busy(s.devices, 0) + devices_busy(s.devices, 1);
}

static bool becomes_busy(size_t n) {
    for (int i = 0; i < 5000 && busy() != n; i++) {
        usleep(1000);
    }
    return busy() == n;
}

static request *post(connection *c, const char *device, const char *include) {
    request *r = admit(&s, c, "POST", "/v1/loss", "device", device, PROTO_SAFETENSORS, body_bytes);
    ask(r, include ? "include" : NULL, include);
    return r;
}

/* One batch to its answer; the device that it names. */
static int compute(const char *device, const char *include, char numbers[512], char by[16]) {
    connection c;
    answer a = {0};
    request *r = post(&c, device, include);
    receive_in_pieces(r, body, 0, body_bytes, 1 << 17);
    answer_of(r, &c, &a);
    const int status = a.status;
    copy_numbers(numbers, &a);
    static const char name[] = "\"device\":\"";
    const char *at = memmem(a.body.data, a.body.bytes, name, sizeof name - 1);
    sscanf(at ? at + sizeof name - 1 : "none", "%15[a-z0-9:]", by);
    answer_free(&a);
    end(r, &c);
    return status;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static const char *const included[] = {NULL, "gradients", "dense_gradients", "assignment"};
enum { N_INCLUDED = sizeof included / sizeof *included };

START_TEST(the_same_anywhere) {
    char want[512], got[512], by[16];
    for (int i = 0; i < N_INCLUDED; i++) {
        ck_assert_int_eq(compute("cpu", included[i], want, by), 200);
        ck_assert_str_eq(by, "cpu");
        for (const char *const *device = (const char *const[]){"auto", "cuda", "cuda:0", "cuda:1", NULL}; *device;
             device++) {
            HOLDS(compute(*device, included[i], got, by) == 200, "%s", got);
            ck_assert_str_eq(got, want);
            HOLDS(!strncmp(by, "cuda:", 5) && (!(*device)[4] || !strcmp(by, *device) || **device == 'a'), "%s: %s",
                  *device, by);
        }
    }
    ck_assert_int_eq(gpu_state.begun, 4 * N_INCLUDED);
    ck_assert_int_gt(gpu_state.fed, 0); /* while the body was coming */
    ck_assert(at_rest());
}
END_TEST

typedef struct fault {
    bx_status failure;
    bool loses;
    int status; /* where the device was named */
    const char *code;
} fault;

static const fault faults[] = {
    {BX_NOMEM, false, 503, "device_failed"},
    {BX_DEVICE, false, 503, "device_failed"},
    {BX_TOO_LARGE, false, 413, "device_memory"},
    {BX_DEVICE, true, 503, "device_unavailable"},
};
enum { N_FAULTS = sizeof faults / sizeof *faults };

static void restart(const fault *f, long at) {
    stop_devices();
    start_devices("auto");
    gpu_state.failure = f->failure;
    gpu_state.loses = f->loses;
    gpu_state.fail_at = at;
}

/* Each call in turn, until there are no more. */
static void fail_each(const fault *f, const char *include, bool named, const char *want) {
    for (long at = 1, calls = 1; at <= calls; at++) {
        char got[512], by[16];
        restart(f, at);
        const int status = compute(named ? "cuda" : "auto", include, got, by);
        calls = gpu_state.calls;
        const bool failed = at <= calls;
        HOLDS(status == (named && failed ? f->status : 200), "%s, call %ld: %d %s", f->code, at, status, got);
        if (status == 200) {
            ck_assert_str_eq(got, want);
            HOLDS(strcmp(by, "cpu") == !failed, "call %ld: %s", at, by);
        } else {
            HOLDS(strstr(got, f->code), "%s, call %ld: %s", f->code, at, got);
        }
        ck_assert(devices_lost(s.devices) == (failed && f->loses));
        ck_assert(at_rest());
    }
}

START_TEST(a_call_fails) {
    for (int i = 0; i < N_INCLUDED; i++) {
        char want[512], by[16];
        ck_assert_int_eq(compute("cpu", included[i], want, by), 200);
        for (int k = 0; k < 2 * N_FAULTS; k++) {
            fail_each(&faults[k / 2], included[i], k % 2, want);
        }
    }
}
END_TEST

static bool is_settled(request *r) {
    pthread_mutex_lock(&r->lock);
    const bool settled = r->settled;
    pthread_mutex_unlock(&r->lock);
    return settled;
}

/* It fails, and the cpu has done it before the connection asks for the answer. */
START_TEST(redone_before_the_last_call) {
    char want[512], got[512], by[16];
    ck_assert_int_eq(compute("cpu", NULL, want, by), 200);
    for (int turn = 0; turn < 6; turn++) {
        connection c;
        answer a = {0};
        restart(&faults[1], 0);
        gpu_state.fail_in = turn % 2 ? "run" : "begin";
        gpu_state.holds = turn % 2; /* until all rows are in */
        request *r = post(&c, "auto", NULL);
        receive_in_pieces(r, body, 0, body_bytes, 1 << 17);
        ck_assert(turn % 2 == 0 || becomes_held(1));
        let_go();
        for (int i = 0; i < 5000 && !is_settled(r); i++) {
            usleep(1000);
        }
        ck_assert(becomes_busy(0));
        answer_of(r, &c, &a);
        copy_numbers(got, &a);
        ck_assert_str_eq(got, want);
        answer_free(&a);
        end(r, &c);
        ck_assert(at_rest());
    }
}
END_TEST

/* What was taken for gradients is taken once. */
START_TEST(redone_with_little_memory) {
    char want[512], got[512], by[16];
    bool once = false;
    ck_assert_int_eq(compute("cpu", "dense_gradients", want, by), 200);
    for (size_t left = body_bytes * 2; left < memory_limit(s.memory); left += 256 << 10) {
        lease others;
        ck_assert(lease_begin(&others, s.memory, memory_limit(s.memory) - memory_at_rest - left));
        restart(&faults[1], 0);
        if (compute("auto", "dense_gradients", got, by) == 200) {
            once = true;
            restart(&faults[1], 0);
            gpu_state.fail_in = "rows";
            HOLDS(compute("auto", "dense_gradients", got, by) == 200, "%zu bytes left: %s", left, got);
            ck_assert_str_eq(by, "cpu");
            ck_assert_str_eq(got, want);
            left = memory_limit(s.memory);
        }
        lease_end(&others);
        ck_assert(at_rest());
    }
    ck_assert(once);
}
END_TEST

START_TEST(what_fits) {
    char got[512], by[16];
    gpu_state.job_bytes = devices_job_bytes(s.devices);
    ck_assert_int_eq(compute("auto", NULL, got, by), 200);
    ck_assert_str_eq(by, "cuda:0");
    gpu_state.job_bytes++;
    ck_assert_int_eq(compute("auto", NULL, got, by), 200);
    ck_assert_str_eq(by, "cpu");
    ck_assert_int_eq(compute("cuda", NULL, got, by), 413);
    ck_assert_ptr_nonnull(strstr(got, "device_memory"));
    ck_assert(at_rest());
}
END_TEST

/* While bodies come, the last runner of each device stays free for those that are there. */
START_TEST(uploads_leave_one_free) {
    enum { N = 6 };
    connection c[N];
    request *r[N];
    char want[512], got[512], by[16];
    ck_assert_int_eq(compute("cpu", NULL, want, by), 200);
    for (int i = 0; i < N; i++) {
        r[i] = post(&c[i], i == 5 ? "cuda:1" : "auto", NULL);
        receive_in_pieces(r[i], body, 0, body_bytes / 2, 1 << 17);
    }
    ck_assert(becomes_busy(2));
    ck_assert_uint_eq(devices_busy(s.devices, 0), 1);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(compute(i ? "cuda:0" : "cuda:1", NULL, got, by), 200);
        ck_assert_str_eq(got, want);
    }
    end(r[0], &c[0]); /* it has one, and is gone */
    ck_assert(becomes_busy(1));
    for (int i = 1; i < N; i++) {
        answer a = {0};
        receive_in_pieces(r[i], body, body_bytes / 2, body_bytes, 1 << 17);
        answer_of(r[i], &c[i], &a);
        copy_numbers(got, &a);
        ck_assert_str_eq(got, want);
        answer_free(&a);
        end(r[i], &c[i]);
    }
    ck_assert(becomes_busy(0));
    ck_assert(at_rest());
}
END_TEST

/* All runners are held up, more wait, and some of those go. */
START_TEST(a_queue) {
    enum { N = 12 };
    static const char *const names[] = {"auto", "cuda:1", "cuda", "cuda:0"};
    connection c[N];
    request *r[N];
    gpu_state.holds = true;
    for (int i = 0; i < N; i++) {
        r[i] = post(&c[i], names[i % 4], NULL);
        receive_in_pieces(r[i], body, 0, body_bytes, 1 << 17);
        HOLDS(!request_complete(r[i]) && request_wait(r[i], suspend, NULL), "%d does not wait", i);
    }
    ck_assert(becomes_held(4));
    for (int i = 0; i < N; i += 3) {
        end(r[i], &c[i]);
    }
    let_go();
    for (int i = 0; i < N; i++) {
        answer a = {0};
        if (i % 3 == 0) {
            continue;
        }
        wait_resumed(&c[i]);
        ck_assert(request_answer(r[i], &a));
        HOLDS(a.status == 200, "%d: %d %.300s", i, a.status, a.body.data);
        answer_free(&a);
        end(r[i], &c[i]);
    }
    ck_assert(becomes_busy(0));
    ck_assert_int_eq(gpu_state.most_running, 4);
    ck_assert(at_rest());
}
END_TEST

START_TEST(cut_short_at_any_moment) {
    enum { TURNS = 300 };
    unsigned seed = 1, statuses[3] = {0};
    char numbers[512], by[16];
    const int64_t began = now_ns();
    for (int i = 0; i < N_INCLUDED; i++) {
        ck_assert_int_eq(compute("auto", included[i], numbers, by), 200);
    }
    const unsigned most_us = (unsigned)((now_ns() - began) / 1000 / N_INCLUDED * 2); /* twice what one takes */
    for (int turn = 0; turn < TURNS; turn++) {
        connection c;
        const char *device = turn % 3 ? "auto" : "cuda";
        seed = seed * 1664525u + 1013904223u;
        const bool vanishes = turn % 7 == 0;
        restart(&faults[turn % N_FAULTS], turn % 5 ? 0 : 1 + (seed >> 12) % 6);
        request *r = post(&c, device, included[turn % N_INCLUDED]);
        fate f = {r, (seed >> 8) % most_us, turn % 2 ? 504 : 503};
        pthread_t thread;
        request_ref(r);
        ck_assert_int_eq(pthread_create(&thread, NULL, strike, &f), 0);
        receive_in_pieces(r, body, 0, vanishes ? (seed >> 4) % body_bytes : body_bytes, 1 << 16);
        if (!vanishes) {
            answer a = {0};
            answer_of(r, &c, &a);
            HOLDS(a.status == 200 || a.status == f.status || (turn % 3 == 0 && turn % 5 == 0), "turn %d: %d %.200s",
                  turn, a.status, a.body.data);
            if (a.status == 200 || a.status == f.status) {
                statuses[a.status == 200 ? 0 : a.status - 502]++;
            }
            answer_free(&a);
        }
        end(r, &c);
        pthread_join(thread, NULL);
    }
    HOLDS(at_rest(), "%ld tickets, %zu bytes stay taken", atomic_load(&s.tickets), memory_used(s.memory));
    HOLDS(statuses[0] > 0 && statuses[1] > 0 && statuses[2] > 0, "%u ended well, %u were drained, %u too late",
          statuses[0], statuses[1], statuses[2]);
}
END_TEST

/* What the driver keeps is kept for it, and nothing else waits. */
START_TEST(a_driver_that_does_not_come_back) {
    connection c;
    answer a = {0};
    char got[512], by[16];
    gpu_state.holds = true;
    request *r = post(&c, "auto", NULL);
    receive_in_pieces(r, body, 0, body_bytes, 1 << 17);
    HOLDS(!request_complete(r) && request_wait(r, suspend, NULL), "it does not wait");
    ck_assert(becomes_held(1));
    request_fail(r, 504, "timeout", "by the test");
    wait_resumed(&c);
    ck_assert(request_answer(r, &a));
    ck_assert_int_eq(a.status, 504);
    answer_free(&a);
    end(r, &c);
    ck_assert(!devices_lost(s.devices));
    for (int i = 0; i < 8000 && !devices_lost(s.devices); i++) {
        usleep(1000);
    }
    ck_assert(devices_lost(s.devices));
    ck_assert_uint_gt(memory_used(s.memory), memory_at_rest + body_bytes);
    ck_assert_int_eq(compute("auto", NULL, got, by), 200);
    ck_assert_str_eq(by, "cpu");
    ck_assert_int_eq(compute("cuda:1", NULL, got, by), 503);
    ck_assert_ptr_nonnull(strstr(got, "device_unavailable"));
    ck_assert(!devices_stop(s.devices)); /* it says so, and leaves everything as it is */
    let_go();
    ck_assert(becomes_busy(0));
    ck_assert(at_rest());
}
END_TEST

START_TEST(which_devices) {
    static const struct {
        const char *option, *names[3];
    } rows[] = {{"auto", {"cuda:0", "cuda:1"}},     {"cuda", {"cuda:0", "cuda:1"}}, {"cuda:1", {"cuda:1"}},
                {"cuda:1,0", {"cuda:1", "cuda:0"}}, {"cuda:0,0", {"cuda:0"}},       {"cpu", {NULL}}};
    bx_error missing = {0}, error = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        stop_devices();
        ck_assert(devices_are_named_well(rows[i].option));
        start_devices(rows[i].option);
        for (size_t k = 0; k < 3; k++) {
            const gpu *g = devices_at(s.devices, k);
            HOLDS(!g == !rows[i].names[k] && (!g || !strcmp(g->device.name, rows[i].names[k])), "%s: %zu is %s",
                  rows[i].option, k, g ? g->device.name : "none");
        }
        ck_assert(devices_are_required(s.devices) == (rows[i].option[0] == 'c' && rows[i].option[1] == 'u'));
    }
    stop_devices();
    s.options.device = "cuda:2";
    ck_assert_int_eq(devices_start(&s.devices, &s.options, &missing, &error), BX_DEVICE);
    ck_assert_str_eq(error.code, "device_unavailable");
    gpu_state.n_devices = 0;
    s.options.device = "auto";
    ck_assert_int_eq(devices_start(&s.devices, &s.options, &missing, &error), BX_OK);
    ck_assert(!s.devices && missing.status == BX_DEVICE);
    static const char *const bad[] = {"", "cuda:", "cuda:1,", "cuda:,1", "cuda:1000", "cuda:0 1", "cuda1", "gpu"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        HOLDS(!devices_are_named_well(bad[i]), "%s", bad[i]);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("device");
    TCase *cases = tcase_create("device");
    tcase_set_timeout(cases, 240);
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, the_same_anywhere);
    tcase_add_test(cases, a_call_fails);
    tcase_add_test(cases, redone_before_the_last_call);
    tcase_add_test(cases, redone_with_little_memory);
    tcase_add_test(cases, what_fits);
    tcase_add_test(cases, uploads_leave_one_free);
    tcase_add_test(cases, a_queue);
    tcase_add_test(cases, cut_short_at_any_moment);
    tcase_add_test(cases, a_driver_that_does_not_come_back);
    tcase_add_test(cases, which_devices);
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
