/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cuda backend: devices, contexts and errors. The jobs are in cuda_job.c, their stages in the .cu files.
 *
 * A context has one stream and one piece of device memory, taken once. Nothing waits without end: a device that does
 * not stop is given up (see bx_cuda_wait).
 *
 * Most CUDA errors are the last: they end everything the process had on the device. One flag, `lost`, says so to all
 * threads; from then on nothing is asked of CUDA, since some functions would block, and device memory is left to the
 * driver. Only a stream that is under way is still waited for, since it may be writing to its job's memory. What fails
 * before a context is there says nothing about the other devices.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_host.h"

#define LEAST_MAJOR 7 /* compute capability 7.5 */
#define LEAST_MINOR 5
/* A stream is asked so often before the thread sleeps between two questions. */
#define SPINS    2000
#define SLEEP_NS 20000

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static atomic_bool lost;

bool bx_devices_lost(void) {
    return atomic_load(&lost);
}

static bool is_passing(cudaError_t code) {
    switch (code) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
        return true;
    default:
        return false;
    }
}

void bx_devices_give_up(void) {
    atomic_store(&lost, true);
}

static bx_status tell(cudaError_t code, const char *call, bx_error *error) {
    (void)cudaGetLastError(); /* forget it, where that is possible */
    const bool memory = code == cudaErrorMemoryAllocation;
    return bx_fail(error, memory ? BX_NOMEM : BX_DEVICE, memory ? "out_of_memory" : "device_failed", "%s: %s (%d): %s",
                   call, cudaGetErrorName(code), (int)code, cudaGetErrorString(code));
}

bx_status bx_cuda_refuse(cudaError_t code, const char *call, bx_error *error) {
    if (!is_passing(code)) {
        atomic_store(&lost, true);
    }
    return tell(code, call, error);
}

static bx_status refuse_lost(bx_error *error) {
    return bx_fail(error, BX_DEVICE, "device_failed", "CUDA has failed in this process, which must be started again");
}

/* Before there is a context: it says nothing about the other devices. */
#define TRY_FIRST(function, ...) TRY_OR(tell, function, __VA_ARGS__)

/* Memory is pinned for all devices, but by way of one: the first that has a context, so that no other is woken. */
static atomic_int home = -1;
static _Thread_local bool has_device; /* this thread has chosen one */

static bool choose_any(void) {
    const int device = atomic_load(&home);
    has_device = has_device || device < 0 || cudaSetDevice(device) == cudaSuccess;
    return has_device;
}

bx_status bx_cuda_enter(const bx_cuda *c, bx_error *error) {
    if (atomic_load(&lost)) {
        return refuse_lost(error);
    }
    TRY(cudaSetDevice, c->device);
    has_device = true;
    return BX_OK;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bx_status bx_cuda_wait(bx_cuda *c, const bx_job *job, bx_error *error) {
    const double patience = bx_plan_patience_s(job->plan);
    double since = 0;
    for (long asked = 0;; asked++) {
        const cudaError_t code = cudaStreamQuery(c->stream);
        if (code == cudaSuccess) {
            return BX_OK;
        }
        if (code != cudaErrorNotReady) {
            return bx_cuda_refuse(code, "cudaStreamQuery", error);
        }
        if (asked >= SPINS) {
            nanosleep(&(struct timespec){0, SLEEP_NS}, NULL);
        }
        if (bx_job_cancelled(job) || atomic_load(&lost)) {
            since = since > 0 ? since : seconds();
            if (seconds() - since > patience) {
                c->under_way = false;
                atomic_store(&lost, true);
                return bx_fail(error, BX_DEVICE, "device_failed", "cuda:%d has not come to an end in %.0f s", c->device,
                               patience);
            }
        }
    }
}

/* ---- devices ----------------------------------------------------------------------------------------------------- */

static bool is_usable(const struct cudaDeviceProp *p) {
    return p->major > LEAST_MAJOR || (p->major == LEAST_MAJOR && p->minor >= LEAST_MINOR);
}

static bx_status count_devices(int *n, bx_error *error) {
    int driver = 0;
    *n = 0;
    cudaError_t code = cudaGetDeviceCount(n);
    if (code == cudaSuccess && *n > 0) {
        return BX_OK;
    }
    /* not one of the errors after which everything is over: it never began */
    (void)cudaGetLastError();
    code = code == cudaSuccess ? cudaErrorNoDevice : code;
    if (code == cudaErrorInsufficientDriver && (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)) {
        return bx_fail(error, BX_DEVICE, "device_unavailable",
                       "there is no CUDA device: there is no NVIDIA driver (of CUDA 13 or later)");
    }
    return bx_fail(error, BX_DEVICE, "device_unavailable", "there is no CUDA device: %s", cudaGetErrorString(code));
}

int32_t bx_devices(bx_device *devices, int32_t most, bx_error *error) {
    int n;
    int32_t found = 0;
    if (count_devices(&n, error) != BX_OK) {
        return 0;
    }
    struct cudaDeviceProp p = {0};
    for (int i = 0; i < n && found < most; i++) {
        if (cudaGetDeviceProperties(&p, i) == cudaSuccess && is_usable(&p)) {
            bx_device *d = &devices[found++];
            snprintf(d->name, sizeof d->name, "cuda:%d", i);
            snprintf(d->text, sizeof d->text, "%.64s, compute capability %d.%d", p.name, p.major, p.minor);
            d->bytes = p.totalGlobalMem;
        }
    }
    if (found == 0) {
        bx_fail(error, BX_DEVICE, "device_unavailable", "%.64s has compute capability %d.%d; this build needs %d.%d",
                p.name, p.major, p.minor, LEAST_MAJOR, LEAST_MINOR);
    }
    return found;
}

bool bx_pin(void *memory, size_t bytes) {
    const bool pinned =
        !atomic_load(&lost) && choose_any() && cudaHostRegister(memory, bytes, cudaHostRegisterPortable) == cudaSuccess;
    if (!pinned && !atomic_load(&lost)) {
        (void)cudaGetLastError();
    }
    return pinned;
}

void bx_unpin(void *memory) {
    if (!atomic_load(&lost) && (!choose_any() || cudaHostUnregister(memory) != cudaSuccess)) {
        /* CUDA would go on to read the pages that were here, and not what comes to this address */
        (void)cudaGetLastError();
        atomic_store(&lost, true);
    }
}

/* ---- contexts ---------------------------------------------------------------------------------------------------- */

/* N of "cuda:N", 0 of "cuda"; -1: neither. */
static int number_of(const char *device) {
    const char *digits = strlen(device) > 5 ? device + 5 : "";
    const size_t n = strspn(digits, "0123456789");
    if (!strcmp(device, "cuda")) {
        return 0;
    }
    return !strncmp(device, "cuda:", 5) && n > 0 && n < 4 && digits[n] == '\0' ? atoi(digits) : -1;
}

static bx_status cuda_open(bx_context *context, const char *device, const char *level, bx_error *error) {
    (void)level;
    bx_cuda *c = calloc(1, sizeof *c);
    if (!c) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a context");
    }
    context->cuda = c;
    if (atomic_load(&lost)) {
        return refuse_lost(error);
    }
    int n;
    bx_status status = count_devices(&n, error);
    if (status != BX_OK) {
        return status;
    }
    c->device = number_of(device);
    if (c->device < 0 || c->device >= n) {
        return bx_fail(error, BX_DEVICE, "device_unavailable", "there is no device \"%.32s\"; there %s %d, from cuda:0",
                       device, n == 1 ? "is" : "are", n);
    }
    struct cudaDeviceProp p;
    TRY_FIRST(cudaGetDeviceProperties, &p, c->device);
    if (!is_usable(&p)) {
        return bx_fail(error, BX_DEVICE, "device_unavailable",
                       "%.32s has compute capability %d.%d; this build needs %d.%d", device, p.major, p.minor,
                       LEAST_MAJOR, LEAST_MINOR);
    }
    snprintf(c->level, sizeof c->level, "%d.%d", p.major, p.minor);
    TRY_FIRST(cudaSetDevice, c->device);
    TRY_FIRST(cudaStreamCreateWithFlags, &c->stream, cudaStreamNonBlocking);
    int none = -1;
    atomic_compare_exchange_strong(&home, &none, c->device);
    return BX_OK;
}

static void cuda_close(bx_context *context) {
    bx_cuda *c = context->cuda;
    if (!c) {
        return;
    }
    if (c->stream && !atomic_load(&lost)) { /* else there is nothing, perhaps not even a device to ask for */
        (void)cudaSetDevice(c->device);
        (void)cudaFree(c->memory);
        (void)cudaStreamDestroy(c->stream);
    }
    bx_priors_free(c->priors);
    free(c);
}

static const char *cuda_level(const bx_context *context) {
    return context->cuda->level;
}

static bx_status cuda_reserve(bx_context *context, size_t bytes, bx_error *error) {
    bx_cuda *c = context->cuda;
    void *memory;
    if (atomic_load(&lost)) {
        return refuse_lost(error);
    }
    TRY_FIRST(cudaSetDevice, c->device);
    TRY_FIRST(cudaMalloc, &memory, bytes);
    c->memory = memory;
    c->bytes = bytes;
    return BX_OK;
}

const bx_backend bx_backend_cuda = {"cuda",           cuda_open,         cuda_close,       cuda_level,
                                    cuda_reserve,     bx_cuda_job_begin, bx_cuda_job_feed, bx_cuda_job_run,
                                    bx_cuda_job_rows, bx_cuda_job_end};
