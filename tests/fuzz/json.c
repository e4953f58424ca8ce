/* SPDX-License-Identifier: Apache-2.0 */
/* A JSON body to a request, of both tasks; and with so little memory that it must give up somewhere on the way. */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int task = PROTO_LOSS; task <= PROTO_MATCH; task++) {
        size_t left;
        proto_request r;
        const decoding how = {.task = (proto_task)task, .encoding = PROTO_JSON, .limits = fuzz_limits(&left)};
        if (decodes(&r, &how, data, size)) {
            look_at(&r);
            proto_request_free(&r);
        }
    }
    for (int i = 0; i < 2; i++) {
        size_t left;
        proto_request r;
        decoding how = {.task = PROTO_LOSS, .encoding = PROTO_JSON, .limits = fuzz_limits(&left)};
        how.limits.json_memory = i ? how.limits.json_memory : 1000 + size;
        left = i ? (size_t)(66000 + 4 * size) : left;
        if (decodes(&r, &how, data, size)) {
            proto_request_free(&r);
        }
    }
    (void)proto_encoding_guess(data, size);
    return 0;
}
