/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers, for tests that look into them.
 */
#ifndef ANSWER_H
#define ANSWER_H

#include <string.h>

#include "../../proto/internal.h"
#include "suite.h"

static const proto_timing timing = {1.5, 0, 0.25};

/* Encode; the promised size is enough, and one byte less is refused. */
static inline proto_buffer encode_result(const proto_request *request, const bx_result *result, proto_encoding accept,
                                         const char *id) {
    proto_buffer out = {0};
    bx_error error = {0}, small = {0};
    const bx_job *job = result->job;
    size_t bound = proto_answer_bytes(request, job->plan, bx_job_gradient_rows(job), accept);
    ck_assert_int_eq(proto_answer_encode(&out, accept, request, result, &timing, id, bound, &error), BX_OK);
    ck_assert_uint_le(out.bytes, bound);
    ck_assert_uint_eq(out.capacity, bound < 512 ? 512 : bound); /* taken in one piece */
    ck_assert_int_eq(proto_answer_encode(&out, accept, request, result, &timing, id, bound - 1, &small), BX_TOO_LARGE);
    ck_assert_str_eq(small.code, "answer_too_large");
    return out;
}

/* A tensor of that name, or NULL. */
static inline const proto_tensor *find(const proto_container *file, const char *name) {
    for (int i = 0; i < file->n_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

#endif
