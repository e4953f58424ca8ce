/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs: which there are, and the threads that compute on them.
 *
 * Each GPU has a few contexts, each with its part of the GPU's memory and a thread of its own (a runner), the only one
 * that ever touches the context: so a device that hangs keeps nobody else waiting. A runner computes one request at a
 * time, which it holds a reference of. Requests whose rows are all in wait in the order in which they came. One that is
 * still being received gets a runner too, so that its rows are copied and scored meanwhile, but only while another
 * runner of that GPU is free: clients that send slowly do not keep out those that are done. It is then told how many
 * rows are in, and gives the runner back when its client is gone, at its deadline at the latest.
 *
 * What a GPU could not do is done by the cpu, from the beginning, or refused if the GPU was named. An error that ends
 * CUDA for this process ends the use of all GPUs, once and for all; so does a runner that does not come back from the
 * driver when its request is over, and nothing waits for that one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define CONTEXTS   2                  /* of each GPU: one copies while the other computes */
#define FEED_BYTES ((size_t)1 << 20)  /* of rows, that are worth telling the GPU of */
#define FEW_BYTES  ((size_t)64 << 10) /* of an answer that is made sooner than a worker comes */
#define STUCK_NS   (2 * NS_PER_S) /* later than the library waits for it, and a runner is not back: the driver hangs */
#define STOP_NS    (5 * NS_PER_S) /* what a stop waits for runners */

typedef struct runner {
    devices *all;
    int gpu;
    bx_context *context;
    pthread_t thread;
    pthread_cond_t wake;
    request *request;      /* what it computes, a reference; NULL: it is free */
    atomic_llong stuck_ns; /* since that was cancelled: when the driver hangs, if it is not back by then; else 0 */
} runner;

struct devices {
    pthread_mutex_t lock;
    pthread_cond_t ended; /* a thread has */
    bool required, stopping;
    size_t job_bytes;
    atomic_bool given_up, loss_logged;
    size_t n_gpus, n_runners, n_started, n_ended;
    gpu gpus[MOST_DEVICES];
    runner runners[MOST_DEVICES * CONTEXTS]; /* those of a GPU together, in the order of the GPUs */
    request *first, *last;                   /* the queue; a reference each */
};

/* ---- what there is ----------------------------------------------------------------------------------------------- */

const gpu *devices_at(const devices *d, size_t i) {
    return d && i < d->n_gpus ? &d->gpus[i] : NULL;
}

size_t devices_threads(const devices *d) {
    return d ? CONTEXTS : 0;
}

size_t devices_busy(devices *d, size_t i) {
    size_t n = 0;
    pthread_mutex_lock(&d->lock);
    for (size_t k = i * CONTEXTS; k < (i + 1) * CONTEXTS; k++) {
        n += d->runners[k].request != NULL;
    }
    pthread_mutex_unlock(&d->lock);
    return n;
}

static void tell_loss(devices *d, const char *name, const char *cause) {
    if (!atomic_exchange(&d->loss_logged, true)) {
        LOG(LOG_ERROR, "device", {"device", name, 0},
            {"text", "no GPU is used any more until this daemon is started again", 0}, {"cause", cause, 0});
    }
}

bool devices_lost(devices *d) {
    if (!d || bx_devices_lost() || atomic_load(&d->given_up)) {
        return d != NULL;
    }
    for (size_t i = 0; i < d->n_runners; i++) {
        const int64_t stuck = atomic_load(&d->runners[i].stuck_ns);
        if (stuck > 0 && now_ns() > stuck) {
            atomic_store(&d->given_up, true);
            bx_devices_give_up(); /* and nobody else goes there */
            tell_loss(d, d->gpus[d->runners[i].gpu].device.name, "the driver does not come back");
        }
    }
    return atomic_load(&d->given_up);
}

bool devices_are_required(const devices *d) {
    return d && d->required;
}

size_t devices_job_bytes(const devices *d) {
    return d ? d->job_bytes : 0;
}

/* ---- the queue and the runners, under the lock ------------------------------------------------------------------- */

static bool may_compute(const request *r, int gpu) {
    return r->placement.wanted < 0 || r->placement.wanted == gpu;
}

/* A free runner for the request, of a GPU that has at least so many: of the one that has the most. */
static runner *find_free(devices *d, const request *r, int least) {
    runner *found = NULL;
    for (size_t i = 0; i < d->n_gpus; i++) {
        runner *first = NULL;
        int n = 0;
        for (size_t k = i * CONTEXTS; k < (i + 1) * CONTEXTS && may_compute(r, (int)i); k++) {
            first = !first && !d->runners[k].request ? &d->runners[k] : first;
            n += !d->runners[k].request;
        }
        if (n >= least) {
            least = n + 1;
            found = first;
        }
    }
    return found;
}

/* Let a free runner compute it. */
static void assign(runner *w, request *r) {
    r->placement.state = ON_DEVICE;
    r->placement.runner = w;
    w->request = r;
    pthread_cond_signal(&w->wake);
}

static void append(devices *d, request *r) {
    r->placement.state = WAITING_FOR_DEVICE;
    r->placement.next = NULL;
    *(d->last ? &d->last->placement.next : &d->first) = r;
    d->last = r;
}

/* Take it out of the queue; `before` is the one before it, or NULL. */
static void take_out(devices *d, request *before, request *r) {
    *(before ? &before->placement.next : &d->first) = r->placement.next;
    d->last = d->last == r ? before : d->last;
}

/* The oldest in the queue that the runner may compute. */
static void take_next(runner *w) {
    request *before = NULL, *r = w->all->first;
    while (r && !may_compute(r, w->gpu)) {
        before = r;
        r = r->placement.next;
    }
    if (r) {
        take_out(w->all, before, r);
        assign(w, r);
    }
}

static size_t row_bytes(bx_tensor tensor, size_t width) {
    return tensor.data ? width * bx_dtype_bytes(tensor.dtype) : 0;
}

/* Whether the rows that came since the GPU was told of any are worth it. */
static bool is_worth_feeding(const request *r) {
    const placement *p = &r->placement;
    const bx_batch *batch = &r->decoded_request.batch;
    const size_t bytes = (size_t)(p->conf_rows - p->conf_fed) * row_bytes(batch->conf, (size_t)batch->n_columns) +
                         (size_t)(p->loc_rows - p->loc_fed) * row_bytes(batch->loc, 4);
    return p->complete || bytes >= FEED_BYTES;
}

/* ---- what requests ask for --------------------------------------------------------------------------------------- */

/* What there is instead, or why there is nothing else. */
static bx_status tell_devices(const server *s, const char *wanted, bx_error *error) {
    char names[MOST_DEVICES * 16] = "";
    size_t n = 0;
    for (size_t i = 0; devices_at(s->devices, i) && n < sizeof names; i++) {
        n += (size_t)snprintf(names + n, sizeof names - n, ", %s", devices_at(s->devices, i)->device.name);
    }
    if (s->devices) {
        return bx_fail(error, BX_DEVICE, "device_unavailable", "there is no device \"%.32s\" here, but cpu%s", wanted,
                       names);
    }
    return bx_fail(error, BX_DEVICE, "device_unavailable", "there is no device \"%.32s\" here, but cpu: %.200s", wanted,
                   s->missing.status == BX_OK ? "this daemon was started with --device cpu" : s->missing.text);
}

bx_status device_choose(request *r, bool *named, bx_error *error) {
    devices *d = r->server->devices;
    const char *device = r->decoded_request.device;
    const bool lost = devices_lost(d);
    r->placement.wanted = -1;
    *named = !strncmp(device, "cuda", 4);
    if (!*named) {
        return BX_OK;
    }
    for (size_t i = 0; device[4] && devices_at(d, i); i++) {
        r->placement.wanted = strcmp(d->gpus[i].device.name, device) ? r->placement.wanted : (int)i;
    }
    if (!lost && d && (!device[4] || r->placement.wanted >= 0)) {
        return BX_OK;
    }
    if (lost) {
        bx_fail(error, BX_DEVICE, "device_unavailable",
                "the GPUs of this daemon were lost; it needs to be started again");
    } else {
        tell_devices(r->server, device, error);
    }
    bx_at(error, "device");
    return BX_DEVICE;
}

bool device_progress(request *r, int64_t conf_rows, int64_t loc_rows) {
    devices *d = r->server->devices;
    placement *p = &r->placement;
    const int64_t all = (int64_t)r->plan.n_images * r->plan.n_priors;
    pthread_mutex_lock(&d->lock);
    const bool ours = p->state != OFF_DEVICE || p->complete;
    if (ours) {
        p->conf_rows = conf_rows;
        p->loc_rows = loc_rows;
        p->complete = conf_rows == all && loc_rows == all;
    }
    if (p->runner && is_worth_feeding(r)) {
        pthread_cond_signal(&p->runner->wake);
    }
    if (p->state == NOT_PLACED && !atomic_load(&r->cancelled)) {
        runner *w = find_free(d, r, p->complete ? 1 : 2);
        if (w || p->complete) {
            request_ref(r);
        }
        if (w) {
            assign(w, r);
        } else if (p->complete) {
            append(d, r);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return ours;
}

bool device_leave(request *r) {
    devices *d = r->server->devices;
    pthread_mutex_lock(&d->lock);
    r->placement.state = OFF_DEVICE;
    const bool complete = r->placement.complete;
    pthread_mutex_unlock(&d->lock);
    return complete;
}

void device_forget(request *r) {
    devices *d = r->server->devices;
    request *before = NULL;
    if (!d) {
        return;
    }
    pthread_mutex_lock(&d->lock);
    const bool waited = r->placement.state == WAITING_FOR_DEVICE;
    runner *w = r->placement.runner;
    if (waited) {
        for (request *i = d->first; i != r; i = i->placement.next) {
            before = i;
        }
        take_out(d, before, r);
        r->placement.state = OFF_DEVICE;
    } else if (w) {
        const int64_t patience = (int64_t)(bx_plan_patience_s(&r->plan) * (double)NS_PER_S);
        long long none = 0;
        atomic_compare_exchange_strong(&w->stuck_ns, &none, now_ns() + patience + STUCK_NS);
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&d->lock);
    if (waited) {
        request_unref(r);
    }
}

/* ---- runners ----------------------------------------------------------------------------------------------------- */

/* Wait for rows that the GPU was not told of. False: all of them were, or nobody wants the result. */
static bool await_rows(runner *w, request *r) {
    placement *p = &r->placement;
    bool all_fed;
    pthread_mutex_lock(&w->all->lock);
    while (!atomic_load(&r->cancelled) && !is_worth_feeding(r)) {
        pthread_cond_wait(&w->wake, &w->all->lock);
    }
    all_fed = p->complete && p->conf_fed == p->conf_rows && p->loc_fed == p->loc_rows;
    p->conf_fed = p->conf_rows;
    p->loc_fed = p->loc_rows;
    pthread_mutex_unlock(&w->all->lock);
    return !all_fed && !atomic_load(&r->cancelled);
}

/* It is back from the driver: whatever follows is no sign of a device that hangs. */
static void come_back(runner *w, request *r) {
    pthread_mutex_lock(&w->all->lock);
    r->placement.runner = NULL;
    atomic_store(&w->stuck_ns, 0);
    pthread_mutex_unlock(&w->all->lock);
}

/* *ours: it is not the device that failed. */
static bx_status compute(runner *w, request *r, bool *ours, bx_error *error) {
    const memory *m = r->server->memory;
    buffer_pin(m, &r->body);
    buffer_pin(m, &r->work);
    bx_status status = bx_job_begin(w->context, &r->job, error);
    while (status == BX_OK && await_rows(w, r)) {
        status = bx_job_feed(w->context, &r->job, r->placement.conf_fed, r->placement.loc_fed, error);
    }
    if (status == BX_OK && !atomic_load(&r->cancelled)) {
        status = bx_job_run(w->context, &r->job, error);
    }
    if (status == BX_OK && r->plan.gradients != BX_GRADIENTS_NONE && !atomic_load(&r->cancelled)) {
        status = batch_take_gradients(r, error);
        *ours = status != BX_OK;
        if (!*ours) {
            buffer_pin(m, &r->gradients);
            status = bx_job_rows(w->context, &r->job, error);
        }
    }
    bx_job_end(w->context, &r->job);
    *ours = *ours || (status != BX_NOMEM && status != BX_DEVICE && status != BX_TOO_LARGE);
    return status;
}

/* The device did not do it. */
static void replace(runner *w, request *r, const bx_error *why) {
    const char *name = w->all->gpus[w->gpu].device.name;
    const bool lost = devices_lost(w->all);
    bx_error error = {0};
    if (!lost) {
        LOG(LOG_WARN, "device", {"device", name, 0}, {"id", r->id, 0}, {"text", why->text, 0});
    }
    if (!strcmp(r->decoded_request.device, "auto")) {
        metrics_fallback(r->server->metrics);
        batch_redo(r);
        return;
    }
    if (lost) {
        bx_fail(&error, BX_DEVICE, "device_unavailable", "%s was lost: %s", name, why->text);
    } else if (why->status == BX_TOO_LARGE) {
        error = *why;
    } else {
        bx_fail(&error, BX_DEVICE, "device_failed", "%s: %s", name, why->text);
    }
    request_settle(r, request_error(r, &error));
}

static void run(runner *w, request *r) {
    devices *d = w->all;
    bx_error error = {0};
    bool ours = false;
    if (atomic_load(&r->cancelled)) {
        return;
    }
    request_mark_begun(r);
    bx_status status = compute(w, r, &ours, &error);
    come_back(w, r);
    if (bx_devices_lost()) {
        tell_loss(d, d->gpus[w->gpu].device.name, error.text);
    }
    if (atomic_load(&r->cancelled)) {
        return; /* whatever was computed means nothing */
    }
    if (status == BX_OK) {
        r->device = w->gpu + 1;
        copy_text(r->decoded_request.device, sizeof r->decoded_request.device, d->gpus[w->gpu].device.name);
        if (r->plan.gradients == BX_GRADIENTS_NONE && r->answer_bytes <= FEW_BYTES) {
            batch_finish(r);
        } else { /* meanwhile the GPU has something better to do */
            pool_push_result(r->pool, r);
        }
    } else if (ours) {
        request_settle(r, request_error(r, &error));
    } else {
        replace(w, r, &error);
    }
}

static void *runner_main(void *argument) {
    pthread_setname_np(pthread_self(), "lossd-device");
    runner *w = argument;
    devices *d = w->all;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        while (!w->request && !d->stopping) {
            pthread_cond_wait(&w->wake, &d->lock);
        }
        request *r = w->request;
        if (!r) {
            break;
        }
        pthread_mutex_unlock(&d->lock);
        run(w, r);
        come_back(w, r); /* if it was ever gone */
        pthread_mutex_lock(&d->lock);
        w->request = NULL;
        take_next(w);
        pthread_mutex_unlock(&d->lock);
        request_unref(r);
        pthread_mutex_lock(&d->lock);
    }
    d->n_ended++;
    pthread_cond_signal(&d->ended);
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

/* The next name of a list, "cuda:0,2": cuda:0, then cuda:2. */
static bool next_name(const char **list, char name[16]) {
    int length = 0;
    const size_t digits = strspn(*list, "0123456789");
    if (digits < 1 || digits > 3 || ((*list)[digits] && (*list)[digits] != ',')) {
        return false;
    }
    length = snprintf(name, 16, "cuda:%.*s", (int)digits, *list);
    *list += digits + ((*list)[digits] == ',' && (*list)[digits + 1]);
    return length < 16;
}

bool devices_are_named_well(const char *option) {
    char name[16];
    if (!strcmp(option, "auto") || !strcmp(option, "cpu") || !strcmp(option, "cuda")) {
        return true;
    }
    const char *list = option + 5;
    bool fine = !strncmp(option, "cuda:", 5) && *list;
    while (fine && *list) {
        fine = next_name(&list, name);
    }
    return fine;
}

static bx_status open_context(devices *d, int i, bx_error *error) {
    runner *w = &d->runners[d->n_runners];
    bx_status status = bx_context_open(&w->context, d->gpus[i].device.name, NULL, error);
    if (status != BX_OK) {
        return status;
    }
    w->all = d;
    w->gpu = i;
    pthread_cond_init(&w->wake, NULL);
    atomic_init(&w->stuck_ns, 0);
    d->n_runners++;
    copy_text(d->gpus[i].level, sizeof d->gpus[i].level, bx_context_level(w->context));
    return bx_context_reserve(w->context, d->job_bytes, error);
}

static void close_context(devices *d) {
    runner *w = &d->runners[--d->n_runners];
    bx_context_close(w->context);
    pthread_cond_destroy(&w->wake);
}

/* Its contexts with their memory; none of them after a failure. */
static bx_status add_gpu(devices *d, const bx_device *device, bx_error *error) {
    bx_status status = BX_OK;
    const size_t before = d->n_runners;
    d->gpus[d->n_gpus] = (gpu){.device = *device, .taken = CONTEXTS * d->job_bytes};
    for (int i = 0; status == BX_OK && i < CONTEXTS; i++) {
        status = open_context(d, (int)d->n_gpus, error);
    }
    if (status == BX_OK) {
        d->n_gpus++;
    }
    while (status != BX_OK && d->n_runners > before) {
        close_context(d);
    }
    return status;
}

static bx_status refuse(const char *option, const char *name, const char *why, bx_error *error) {
    return bx_fail(error, BX_DEVICE, "device_unavailable", "--device %s: %s%s%s", option, name, *name ? ": " : "", why);
}

/* All that there are; `auto` makes do with those that can be used. */
static bx_status add_all(devices *d, const bx_device *found, int32_t n, const char *option, bx_error *missing,
                         bx_error *error) {
    for (int32_t i = 0; i < n; i++) {
        bx_error why = {0};
        if (add_gpu(d, &found[i], &why) == BX_OK) {
            continue;
        }
        if (d->required) {
            return refuse(option, found[i].name, why.text, error);
        }
        bx_fail(missing, BX_DEVICE, "device_failed", "%s: %s", found[i].name, why.text);
    }
    return BX_OK;
}

static bx_status add_named(devices *d, const bx_device *found, int32_t n, const char *option, bx_error *error) {
    char name[16];
    for (const char *list = option + 5; *list && next_name(&list, name);) {
        bx_error why = {0};
        int32_t i = 0;
        bool twice = false;
        while (i < n && strcmp(found[i].name, name)) {
            i++;
        }
        for (size_t k = 0; k < d->n_gpus; k++) {
            twice |= !strcmp(d->gpus[k].device.name, name);
        }
        if (i == n) {
            char text[64];
            snprintf(text, sizeof text, "there is no such GPU; the %s %s", n == 1 ? "only one is" : "last one is",
                     found[n - 1].name);
            return refuse(option, name, text, error);
        }
        if (!twice && add_gpu(d, &found[i], &why) != BX_OK) {
            return refuse(option, name, why.text, error);
        }
    }
    return BX_OK;
}

static bx_status start_threads(devices *d, bx_error *error) {
    for (; d->n_started < d->n_runners; d->n_started++) {
        runner *w = &d->runners[d->n_started];
        if (pthread_create(&w->thread, NULL, runner_main, w)) {
            return bx_fail(error, BX_BUSY, "threads", "cannot start a thread for %s", d->gpus[w->gpu].device.name);
        }
    }
    return BX_OK;
}

/* The GPUs of --device. */
static bx_status add_gpus(devices *d, const char *option, bx_error *missing, bx_error *error) {
    bx_device found[MOST_DEVICES];
    const int32_t n = bx_devices(found, MOST_DEVICES, missing);
    if (n == 0) {
        return d->required ? refuse(option, "", missing->text, error) : BX_OK;
    }
    return strchr(option, ':') ? add_named(d, found, n, option, error) : add_all(d, found, n, option, missing, error);
}

bx_status devices_start(devices **out, const options *o, bx_error *missing, bx_error *error) {
    *out = NULL;
    if (!strcmp(o->device, "cpu")) {
        return BX_OK;
    }
    devices *d = calloc(1, sizeof *d);
    if (!d) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the devices");
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    atomic_init(&d->given_up, false);
    atomic_init(&d->loss_logged, false);
    /* What has to be compiled for a GPU newer than this build, or loaded, is so now and not while a client waits. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    d->required = strcmp(o->device, "auto") != 0;
    d->job_bytes = (size_t)o->device_memory / CONTEXTS;
    bx_status status = add_gpus(d, o->device, missing, error);
    status = status == BX_OK ? start_threads(d, error) : status;
    if (status != BX_OK || d->n_gpus == 0) {
        if (devices_stop(d)) { /* its threads have nothing to do yet */
            devices_free(d);
        }
        return status;
    }
    *out = d;
    return BX_OK;
}

bool devices_stop(devices *d) {
    if (!d) {
        return true;
    }
    const int64_t until = now_ns() + STOP_NS;
    const struct timespec deadline = {.tv_sec = until / NS_PER_S, .tv_nsec = until % NS_PER_S};
    pthread_mutex_lock(&d->lock);
    d->stopping = true;
    for (size_t i = 0; i < d->n_runners; i++) {
        pthread_cond_signal(&d->runners[i].wake);
    }
    for (int rc = 0; d->n_ended < d->n_started && rc != ETIMEDOUT;) {
        rc = pthread_cond_timedwait(&d->ended, &d->lock, &deadline);
    }
    const bool all_ended = d->n_ended == d->n_started;
    pthread_mutex_unlock(&d->lock);
    if (!all_ended) {
        return false;
    }
    for (size_t i = 0; i < d->n_started; i++) {
        pthread_join(d->runners[i].thread, NULL);
    }
    return true;
}

void devices_free(devices *d) {
    if (!d) {
        return;
    }
    while (d->n_runners > 0) {
        close_context(d);
    }
    pthread_cond_destroy(&d->ended);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
