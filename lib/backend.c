/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of backends, and the calls that go through it.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const bx_backend *const backends[] = {
    &bx_backend_cpu,
#ifdef BX_CUDA
    &bx_backend_cuda,
#endif
};

#ifndef BX_CUDA
int32_t bx_devices(bx_device *devices, int32_t most, bx_error *error) {
    (void)devices;
    (void)most;
    bx_fail(error, BX_DEVICE, "device_unavailable", "this build has no CUDA: there was no nvcc");
    return 0;
}

bool bx_devices_lost(void) {
    return false;
}

void bx_devices_give_up(void) {}

bool bx_pin(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
    return false;
}

void bx_unpin(void *memory) {
    (void)memory;
}

size_t bx_plan_device_bytes(const bx_plan *plan, const bx_batch *batch) {
    (void)plan;
    (void)batch;
    return SIZE_MAX; /* there is no device on which it would fit */
}
#endif

/* Whether a backend is the one of a device: "cuda" of "cuda" and "cuda:1". */
static bool is_of(const bx_backend *backend, const char *device) {
    const size_t n = strlen(backend->name);
    return !strncmp(backend->name, device, n) && (device[n] == '\0' || device[n] == ':');
}

bx_status bx_context_open(bx_context **context, const char *device, const char *level, bx_error *error) {
    bx_context *made = calloc(1, sizeof *made);
    if (!made) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a context");
    }
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        made->backend = is_of(backends[i], device) ? backends[i] : made->backend;
    }
    if (!made->backend) {
        free(made);
        return bx_fail(error, BX_DEVICE, "device_unavailable", "this build has no device \"%.32s\"", device);
    }
    bx_status status = made->backend->open(made, device, level, error);
    if (status != BX_OK) {
        bx_context_close(made);
        return status;
    }
    *context = made;
    return BX_OK;
}

void bx_context_close(bx_context *context) {
    if (context) {
        context->backend->close(context);
        free(context);
    }
}

const char *bx_context_level(const bx_context *context) {
    return context->backend->level(context);
}

bx_status bx_context_reserve(bx_context *context, size_t bytes, bx_error *error) {
    return context->backend->reserve(context, bytes, error);
}

bx_status bx_job_begin(bx_context *context, bx_job *job, bx_error *error) {
    return context->backend->begin(context, job, error);
}

bx_status bx_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error) {
    return context->backend->feed(context, job, conf_rows, loc_rows, error);
}

bx_status bx_job_run(bx_context *context, bx_job *job, bx_error *error) {
    return context->backend->run(context, job, error);
}

bx_status bx_job_rows(bx_context *context, bx_job *job, bx_error *error) {
    return context->backend->rows(context, job, error);
}

void bx_job_end(bx_context *context, bx_job *job) {
    context->backend->end(context, job);
}
