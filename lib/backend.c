/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of backends, and the calls that go through it.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const bx_backend *const backends[] = {
    &bx_backend_cpu,
};

bx_status bx_context_open(bx_context **context, const char *backend, const char *level, bx_error *error) {
    bx_context *made = calloc(1, sizeof *made);
    if (!made) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for a context");
    }
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        made->backend = strcmp(backend, backends[i]->name) ? made->backend : backends[i];
    }
    if (!made->backend) {
        free(made);
        return bx_fail(error, BX_DEVICE, "device_unavailable", "this build has no device \"%.32s\"", backend);
    }
    bx_status status = made->backend->open(made, level, error);
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
    return context->kernels->level;
}

void bx_run_block(bx_context *context, bx_job *job, int32_t image, int32_t block) {
    context->backend->run_block(context, job, image, block);
}

void bx_run_image(bx_context *context, bx_job *job, int32_t image) {
    context->backend->run_image(context, job, image);
}

void bx_run_rows(bx_context *context, bx_job *job, int32_t image) {
    context->backend->run_rows(context, job, image);
}
