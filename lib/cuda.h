/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the two halves of the cuda backend: cuda.c and cuda_job.c, which know memory, streams and errors, and the .cu
 * files, which know the stages. Both are the same stages as the cpu's over the same arrays; only the pointers lead to
 * the device.
 */
#ifndef BX_CUDA_H
#define BX_CUDA_H

#include <cuda_runtime_api.h>

#include "boxloss.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What every kernel is given, by value. Pointers are the device's, those of `job` to its arrays too; its plan, batch
 * and cancel are not there. */
typedef struct bx_cuda_args {
    int32_t n_images, n_priors, n_columns, n_classes, n_levels, n_blocks; /* N P C K L B */
    bool with_predictions, with_targets, mines_across;
    bx_matcher matcher;
    double variances[4];
    bx_classification_kind classification;
    int32_t background, first_class; /* columns of the background (-1: none) and of class 0 */
    bool plain;                      /* no class weights, no smoothing */
    float gamma, smoothing;
    bx_mining mining;
    bx_localization localization;
    int32_t level_end[BX_MAX_LEVELS]; /* (L) */
    const float *x1, *y1, *x2, *y2;   /* (P) of the priors */
    const float *area;                /* (P) as matcher.iou has it */
    const float *prior_boxes;         /* (P,4) */
    const float *boxes;               /* (G,4), and the rest of bx_batch */
    const int64_t *labels;
    const uint8_t *use;
    const int32_t *first;
    bx_tensor conf, loc, target_classes, target_loc;
    bx_job job;
    unsigned long long *best; /* (G) IoU and prior of each object's best: see cuda_match.cu; all 0 at first */
    int32_t *list;            /* (N,P) priors of an image that were asked for, ascending */
    int32_t *n_listed;        /* (N) how many */
    int32_t *too_far; /* (N) least prior whose gradient is beyond float32; greater than any when there is none */
    double loc_weight, conf_weight;
    int64_t first_row, n_rows; /* of (N,P), or of the gradient: what this launch is about */
    bool positives_only;       /* these are listed; else all whose loss counts */
} bx_cuda_args;

/* A context's part; the last job's args stay there until the next. */
typedef struct bx_cuda {
    int device;
    char level[16];
    cudaStream_t stream;
    char *memory; /* the device's */
    size_t bytes;
    const bx_priors *priors; /* at the beginning of memory; a reference, or NULL */
    bx_cuda_args args;       /* of the job that has begun */
    bool under_way;          /* the stream may have to do with the memory of a job */
    size_t gradients;        /* where in memory they may lie, to its end */
    int64_t conf_rows, loc_rows;
} bx_cuda;

/* Each launches one kernel, and says what the launch said.
 *   match   all priors of all images against their objects: state, owner, best
 *   targets the same from the caller's targets
 *   assign  forced matches, objects, counts; once per batch
 *   score   rows [first_row, first_row + n_rows) of conf; first_row is a multiple of BX_CUDA_ROWS
 *   check   the same rows of loc
 *   mine    hard negatives
 *   list    the positives, or the priors whose loss counts, per image
 *   reduce  sums; listed must be the positives where nothing is mined, else all that count
 *   slopes  rows of the gradient to job.grad_..., the first at their beginning; sparse: those that count are listed */
#define BX_CUDA_ROWS 32
cudaError_t bx_cuda_match(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_targets(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_assign(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_score(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_check(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_mine(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_list(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_reduce(const bx_cuda_args *args, cudaStream_t stream);
cudaError_t bx_cuda_slopes(const bx_cuda_args *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
