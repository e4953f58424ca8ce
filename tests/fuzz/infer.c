/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An inference of the Open Inference Protocol, and a registration of shared memory. The first two bytes, little-endian,
 * are where its JSON ends (65535: with the body); the body follows.
 */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

static void check_prefix(const char *body, size_t n, int64_t json_bytes) {
    size_t known = 0;
    for (size_t received = 0; received <= n; received += n / 8 + 1) {
        char *part = exact(body, received);
        size_t prefix = proto_infer_prefix(part, received, n, json_bytes);
        free(part);
        CHECK(!known || prefix == known, "%zu bytes, then %zu", known, prefix);
        CHECK(prefix <= n, "%zu bytes of %zu", prefix, n);
        known = prefix;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    const uint32_t low = take(&b), high = take(&b), end = low + 256 * high;
    const size_t n = (size_t)(b.end - b.at);
    const int64_t json_bytes = end == 65535 ? -1 : (int64_t)end;
    char *body = exact(b.at, n);
    size_t left;
    proto_request r;
    proto_registration registration;
    bx_error error = {0};
    decoding how = {.encoding = PROTO_INFER,
                    .model = n % 2 ? "ssd-multibox" : "retinanet-focal",
                    .json_bytes = json_bytes,
                    .limits = fuzz_limits(&left)};
    how.limits.region = fuzz_region;
    if (json_bytes > 0) { /* as the head says it */
        check_prefix(body, n, json_bytes);
    }
    if (decodes(&r, &how, body, n)) {
        look_at(&r);
        proto_request_free(&r);
    }
    bx_status status = proto_registration_read(&registration, body, n, &how.limits, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_JSON);
    }
    free(body);
    return 0;
}
