/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What computes a job of boxloss: a context on some device, and the job's work as a whole, in units, on rows that pass
 * by, or stage by stage. All of them leave the same in the job, which bx_finish then folds.
 *
 * Shape letters, errors and threads as in boxloss.h. A context is used by one thread at a time; a job by several at
 * once where its units say so, each with a context of its own.
 */
#ifndef BX_COMPUTE_H
#define BX_COMPUTE_H

#include "boxloss.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices: where the work runs -------------------------------------------------------------------------------- */

/* A GPU that this process can use. */
typedef struct bx_device {
    char name[24]; /* "cuda:0" */
    char text[96]; /* its model, and the compute capability */
    size_t bytes;  /* of its memory */
} bx_device;

/* The GPUs, at most `most` of them, in the driver's order; how many there are. When there is none, the error says why:
 * this build has no CUDA, there is no driver, it is too old, it sees no device. The first call may take a second. */
int32_t bx_devices(bx_device *devices, int32_t most, bx_error *error);
/* Whether an error that nothing can be computed after has ended CUDA for this process; it never comes back. Any thread.
 */
bool bx_devices_lost(void);
/* A device hangs: CUDA counts as ended by such an error. Any thread. */
void bx_devices_give_up(void);
/* Lock memory so that devices read and write it at full speed, while others work. False where that cannot be had; the
 * memory is then as useful as before, and slower. bx_unpin before it is freed, only after bx_pin said true. Any thread.
 */
bool bx_pin(void *memory, size_t bytes);
void bx_unpin(void *memory);

/* A context belongs to one thread at a time: its scratch memory and, on the cpu, its choice of kernels. */
typedef struct bx_context bx_context;

/* Kernel levels of the cpu, slowest first; each gives the same bits. Returns NULL past the end; levels this CPU cannot
 * run are not listed. */
const char *bx_level_name(size_t i);

/* Open a context on a device: "cpu", or "cuda:N" as bx_devices names it. `level` is of the cpu: NULL or "auto" is the
 * best of this CPU; otherwise a name from bx_level_name. Errors: BX_INVALID for levels, BX_DEVICE when it cannot run
 * here, BX_NOMEM. */
BX_MUST_USE bx_status bx_context_open(bx_context **context, const char *device, const char *level, bx_error *error);
void bx_context_close(bx_context *context);
/* What of the device is used: the level of the cpu, the compute capability of a GPU. Static storage, or the context's.
 */
const char *bx_context_level(const bx_context *context);

/* ---- a job as a whole, on any device ----------------------------------------------------------------------------- */

/* Memory that the job of a plan takes on a GPU, its inputs and results included; it may be less by the gradients, which
 * take what is left. */
size_t bx_plan_device_bytes(const bx_plan *plan, const bx_batch *batch);
/* Take that much of the device's memory for the context's jobs, one at a time; nothing is allocated later. Once, before
 * the first job; the cpu needs none. Errors: BX_NOMEM, BX_DEVICE. */
BX_MUST_USE bx_status bx_context_reserve(bx_context *context, size_t bytes, bx_error *error);

/* How long a device is waited for after job->cancel was set, in seconds: no kernel looks at that, and one may take as
 * long as a core would. */
static inline double bx_plan_patience_s(const bx_plan *plan) {
    return 3 + 2e-6 * plan->cost_us;
}

/* In this order, on one context and not streamed:
 *
 *   bx_job_begin   what needs no predictions: annotations are matched and assigned
 *
 *   bx_job_feed    any number of times, with growing numbers: so many of the N*P rows of conf and of loc are in the
 *                  batch's memory, more may be arriving. They are copied and scored meanwhile; it does not wait
 *
 *   bx_job_run     all rows are there: everything but the gradients. Waits, and stands for bx_run_block .. bx_run_batch
 *
 *   bx_job_rows    only when plan->gradients: after bx_job_place_gradients. Waits
 *
 *   bx_job_end     always, after a bx_job_begin that failed too: the device has no more to do with the job's memory
 *
 * then bx_finish. Errors of the predictions are those of bx_run_batch. Of the device: BX_TOO_LARGE "device_memory" when
 * the reserve is too small, BX_NOMEM, BX_DEVICE "device_failed"; the job can then be initialised again and run
 * elsewhere, and when bx_devices_lost() no context of a GPU will ever work again. A device that does not come to an end
 * within bx_plan_patience_s after job->cancel was set is given up as lost. */
BX_MUST_USE bx_status bx_job_begin(bx_context *context, bx_job *job, bx_error *error);
BX_MUST_USE bx_status bx_job_feed(bx_context *context, bx_job *job, int64_t conf_rows, int64_t loc_rows,
                                  bx_error *error);
BX_MUST_USE bx_status bx_job_run(bx_context *context, bx_job *job, bx_error *error);
BX_MUST_USE bx_status bx_job_rows(bx_context *context, bx_job *job, bx_error *error);
void bx_job_end(bx_context *context, bx_job *job);

/* ---- a job in units, on the cpu ---------------------------------------------------------------------------------- */

/* The units of a job, in the order in which they must happen:
 *   bx_run_block   each (image, block): match and score
 *   bx_run_image   each image, after its blocks: check, assign, positives, mine, reduce
 *   bx_run_batch   once, after all images: refuses predictions that cannot be used; mining across the batch;
 *                  normalisers; the size of the gradients
 *   bx_run_rows    each image, only when plan->second_round: what needed the whole batch (reduce after mining
 *                  across it; gradients, for which bx_job_place_gradients comes first)
 *   bx_finish      once
 * A unit never fails; what it finds wrong with the predictions is told by bx_run_batch. */
void bx_run_block(bx_context *context, bx_job *job, int32_t image, int32_t block);
void bx_run_image(bx_context *context, bx_job *job, int32_t image);
/* Errors: BX_NONFINITE "prediction_not_finite", BX_INVALID "not_probability" (path "predictions.conf[image][prior]").
 */
BX_MUST_USE bx_status bx_run_batch(bx_context *context, bx_job *job, bx_error *error);
void bx_run_rows(bx_context *context, bx_job *job, int32_t image);

/* ---- streamed predictions ---------------------------------------------------------------------------------------- */

/* The units of a streamed job (plan->streamed), on the cpu; the answer has the same bits. Of each image, in this order:
 *   bx_stream_assign   match and assign
 *   bx_stream_conf     rows (count,C) of priors [first, first + count), until all have passed; several threads may
 *   bx_stream_loc      rows (count,4) in the same way, before or after those of conf, but not while it is mined
 *   bx_stream_mine     after all rows of conf
 *   bx_run_image       after bx_stream_mine and all rows of loc: reduce
 * then bx_run_batch, bx_run_rows and bx_finish as ever. Rows may lie at any address, in the dtypes of the batch. */
void bx_stream_assign(bx_context *context, bx_job *job, int32_t image);
void bx_stream_conf(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, const void *rows);
void bx_stream_loc(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, const void *rows);
void bx_stream_mine(bx_context *context, bx_job *job, int32_t image);

/* ---- stages, one by one: each over a range of an image's priors -------------------------------------------------- */

/* The ranges of match, score and check lie within one block; all ranges come in ascending order.
 *   match      each prior's best object and each object's best prior; what ignored objects cover
 *   score      the classification loss as background, for every prior
 *   check      counts localization predictions that are not finite
 *   assign     thresholds and forced matches -> positives, ignored
 *   positives  the classification loss of each positive as its own class
 *   mine       hard negatives of the image
 *   reduce     sums by image, class and level; localization of positives
 *   gradients  of the total with respect to loc and conf */
void bx_stage_begin(bx_job *job, int32_t image, int32_t block);
void bx_stage_match(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_score(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_check(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_assign(bx_job *job, int32_t image);
void bx_stage_mine(bx_context *context, bx_job *job, int32_t image);
void bx_stage_positives(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_reduce(bx_job *job, int32_t image, int32_t first, int32_t count);
void bx_stage_gradients(bx_context *context, bx_job *job, int32_t image);

#ifdef __cplusplus
}
#endif
#endif
