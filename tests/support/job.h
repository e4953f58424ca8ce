/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A batch computed from beginning to end in one thread: its units in the order that compute.h gives, or as a whole on a
 * device. Memory is poisoned before a job gets it, so that nothing can lean on zeros.
 */
#ifndef JOB_H
#define JOB_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute.h"

/* At least one byte, 64-byte aligned, full of 0xa5. */
static inline void *poisoned(size_t bytes) {
    size_t all = (bytes + 64) / 64 * 64;
    void *memory = aligned_alloc(64, all);
    if (!memory) {
        fprintf(stderr, "no memory for %zu bytes\n", all);
        exit(2);
    }
    memset(memory, 0xa5, all);
    return memory;
}

/* The job points into it: it must stay where it is. */
typedef struct computation {
    bx_plan plan;
    bx_job job;
    bx_result result;
    void *work, *gradients;
} computation;

static inline void computation_free(computation *c) {
    free(c->work);
    free(c->gradients);
    memset(c, 0, sizeof *c);
}

/* Plans and runs all images; what follows is compute_rest. Fails as bx_plan_init does. */
static inline bx_status compute_images(computation *c, bx_context *context, const bx_criterion *criterion,
                                       const bx_priors *priors, const bx_batch *batch, bx_gradients gradients,
                                       bx_error *error) {
    memset(c, 0, sizeof *c);
    bx_status status = bx_plan_init(&c->plan, criterion, priors, batch, gradients, error);
    if (status != BX_OK) {
        return status;
    }
    c->work = poisoned(c->plan.work_bytes);
    bx_job_init(&c->job, &c->plan, batch, c->work);
    for (int32_t i = 0; i < c->plan.n_images; i++) {
        for (int32_t b = 0; b < c->plan.n_blocks; b++) {
            bx_run_block(context, &c->job, i, b);
        }
        bx_run_image(context, &c->job, i);
    }
    return BX_OK;
}

/* The batch, its rows, the result. Fails as bx_run_batch or bx_finish do. */
static inline bx_status compute_rest(computation *c, bx_context *context, bx_error *error) {
    bx_status status = bx_run_batch(context, &c->job, error);
    if (status != BX_OK) {
        return status;
    }
    if (c->plan.second_round) {
        c->gradients = poisoned(bx_gradient_bytes(&c->plan, bx_job_gradient_rows(&c->job)));
        bx_job_place_gradients(&c->job, c->gradients);
        for (int32_t i = c->plan.n_images - 1; i >= 0; i--) { /* in any order */
            bx_run_rows(context, &c->job, i);
        }
    }
    return bx_finish(&c->result, &c->job, error);
}

/* All of a job in a context. Whether it fails or not, computation_free it. */
static inline bx_status compute_in(computation *c, bx_context *context, const bx_criterion *criterion,
                                   const bx_priors *priors, const bx_batch *batch, bx_gradients gradients,
                                   bx_error *error) {
    bx_status status = compute_images(c, context, criterion, priors, batch, gradients, error);
    return status == BX_OK ? compute_rest(c, context, error) : status;
}

/* All of a job on the named level (NULL: the best). Whether it fails or not, computation_free it. */
static inline bx_status compute(computation *c, const char *level, const bx_criterion *criterion,
                                const bx_priors *priors, const bx_batch *batch, bx_gradients gradients,
                                bx_error *error) {
    bx_context *context = NULL;
    memset(c, 0, sizeof *c);
    bx_status status = bx_context_open(&context, "cpu", level, error);
    if (status == BX_OK) {
        status = compute_in(c, context, criterion, priors, batch, gradients, error);
    }
    bx_context_close(context);
    return status;
}

/* The same as a whole, on a device that has reserved enough. */
static inline bx_status compute_on(computation *c, bx_context *device, const bx_criterion *criterion,
                                   const bx_priors *priors, const bx_batch *batch, bx_gradients gradients,
                                   bx_error *error) {
    memset(c, 0, sizeof *c);
    bx_status status = bx_plan_init(&c->plan, criterion, priors, batch, gradients, error);
    if (status != BX_OK) {
        return status;
    }
    c->work = poisoned(c->plan.work_bytes);
    bx_job_init(&c->job, &c->plan, batch, c->work);
    status = bx_job_begin(device, &c->job, error);
    if (status == BX_OK) {
        status = bx_job_run(device, &c->job, error);
    }
    if (status == BX_OK && gradients != BX_GRADIENTS_NONE) {
        c->gradients = poisoned(bx_gradient_bytes(&c->plan, bx_job_gradient_rows(&c->job)));
        bx_job_place_gradients(&c->job, c->gradients);
        status = bx_job_rows(device, &c->job, error);
    }
    bx_job_end(device, &c->job);
    return status == BX_OK ? bx_finish(&c->result, &c->job, error) : status;
}

#endif
