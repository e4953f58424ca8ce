/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Predictions that pass by once: rows of conf and loc are used where they happen to lie and are not kept.
 *
 * The label term of a positive needs its row, so an image is matched and assigned before its rows come. Then a float
 * per prior is all that is left of conf, and of loc the offsets of the positives. These are compositions of the stages
 * that buffered predictions go through (cpu.c), so the bits are the same.
 */
#include "internal.h"

void bx_stream_assign(bx_context *context, bx_job *job, int32_t image) {
    for (int32_t b = 0; b < job->plan->n_blocks; b++) {
        bx_begin_score(job, image, b);
    }
    bx_match_image(context, job, image);
    bx_stage_assign(job, image);
}

/* Priors of [prior, end) within the block of `prior`. */
static int32_t within_block(int32_t prior, int32_t end) {
    int32_t stop = (prior / BX_BLOCK + 1) * BX_BLOCK;
    return (stop < end ? stop : end) - prior;
}

void bx_stream_conf(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, const void *rows) {
    const bx_dtype dtype = job->batch->conf.dtype;
    const size_t row_bytes = (size_t)job->plan->n_columns * bx_dtype_bytes(dtype);
    const char *row = rows;
    for (int32_t p = first, n; p < first + count; p += n, row += (size_t)n * row_bytes) {
        const bx_tensor conf = {dtype, row};
        n = within_block(p, first + count);
        bx_score_range(context, job, image, p, n, conf);
        bx_positives_range(context, job, image, p, n, conf);
    }
}

void bx_stream_loc(bx_context *context, bx_job *job, int32_t image, int32_t first, int32_t count, const void *rows) {
    const bx_dtype dtype = job->batch->loc.dtype;
    const size_t base = bx_row_index(job, image, 0), row_bytes = 4 * bx_dtype_bytes(dtype);
    const uint8_t *state = job->state + base;
    const size_t end = (size_t)first + (size_t)count;
    const char *row = rows;
    for (int32_t p = first, n; p < first + count; p += n, row += (size_t)n * row_bytes) {
        n = within_block(p, first + count);
        bx_check_range(context, job, image, p, n, (bx_tensor){dtype, row});
    }
    for (size_t p = (size_t)first; (p = bx_next_marked(state, p, end, BX_POSITIVE)) < end; p++) {
        bx_tensor_to_f32(job->offsets + 4 * (base + p), (bx_tensor){dtype, rows}, 4 * (p - (size_t)first), 4);
    }
}

void bx_stream_mine(bx_context *context, bx_job *job, int32_t image) {
    if (!bx_job_cancelled(job) && bx_image_is_usable(job, image)) {
        bx_stage_mine(context, job, image);
    }
}
