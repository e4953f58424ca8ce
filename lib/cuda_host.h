/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the two files of the cuda backend's host half: cuda.c, which knows devices, contexts and errors, and
 * cuda_job.c, which knows the jobs. A context, and what is called with it, belongs to one thread at a time.
 */
#ifndef BX_CUDA_HOST_H
#define BX_CUDA_HOST_H

#include "cuda.h"
#include "internal.h"

/* Record what failed, and that CUDA is lost where the error is not one that passes: BX_NOMEM or BX_DEVICE. */
bx_status bx_cuda_refuse(cudaError_t code, const char *call, bx_error *error);

/* Leave the function with a failed call's error: TRY during a job. */
#define TRY_OR(leave, function, ...)                                                                                   \
    do {                                                                                                               \
        const cudaError_t code_ = function(__VA_ARGS__);                                                               \
        if (code_ != cudaSuccess) {                                                                                    \
            return leave(code_, #function, error);                                                                     \
        }                                                                                                              \
    } while (0)
#define TRY(function, ...) TRY_OR(bx_cuda_refuse, function, __VA_ARGS__)

/* The calls of this thread are about the context's device from now on. Errors: BX_DEVICE, when CUDA is lost too. */
BX_MUST_USE bx_status bx_cuda_enter(const bx_cuda *c, bx_error *error);
/* Until the stream is done, or has gone on for too long (bx_plan_patience_s) after the job was cancelled or CUDA was
 * lost; then nothing is under way any more. */
BX_MUST_USE bx_status bx_cuda_wait(bx_cuda *c, const bx_job *job, bx_error *error);

/* Rows of bx_backend. */
bx_status bx_cuda_job_begin(bx_context *context, bx_job *job, bx_error *error);
bx_status bx_cuda_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows, bx_error *error);
bx_status bx_cuda_job_run(bx_context *context, bx_job *job, bx_error *error);
bx_status bx_cuda_job_rows(bx_context *context, bx_job *job, bx_error *error);
void bx_cuda_job_end(bx_context *context, bx_job *job);

#endif
