/* SPDX-License-Identifier: Apache-2.0 */
/* A criterion object; what is told of it reads back as the same. */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

static void describe(proto_buffer *out, const bx_criterion *criterion) {
    proto_criterion_describe(out, criterion);
    CHECK(!out->failed, "no memory");
    check_json(out->data, out->bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t left;
    bx_criterion *criterion, *again;
    bx_error error = {0};
    proto_buffer text = {0}, same = {0};
    proto_limits limits = fuzz_limits(&left);
    bx_status status = proto_criterion_read(&criterion, "mine", data, size, &fuzz_catalog, &limits, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_JSON);
        return 0;
    }
    describe(&text, criterion);
    limits.json_memory = 64 << 20; /* every list is written whole */
    left = 256 << 20;
    status = proto_criterion_read(&again, "mine", text.data, text.bytes, &fuzz_catalog, &limits, &error);
    CHECK(status == BX_OK, "%s at %s: %.*s", error.text, error.path, (int)text.bytes, text.data);
    describe(&same, again);
    CHECK(text.bytes == same.bytes && !memcmp(text.data, same.data, same.bytes), "%.*s becomes %.*s", (int)text.bytes,
          text.data, (int)same.bytes, same.data);
    bx_criterion_free(criterion);
    bx_criterion_free(again);
    proto_buffer_free(&text);
    proto_buffer_free(&same);
    return 0;
}
