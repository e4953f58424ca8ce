/* SPDX-License-Identifier: Apache-2.0 */
/* A safetensors file: its header, the request or the prior set it is, and what its beginning tells. */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

/* What is said of a whole file holds for it. */
static bool check_container(const uint8_t *data, size_t size) {
    proto_container c;
    bx_error error = {0};
    const char *name = NULL, *value;
    bx_status status = proto_container_read(&c, data, size, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_SAFETENSORS);
        return false;
    }
    CHECK(c.n_tensors >= 0 && c.n_tensors <= PROTO_MAX_TENSORS, "%d tensors", c.n_tensors);
    for (int i = 0; i < c.n_tensors; i++) {
        const proto_tensor *t = &c.tensors[i];
        size_t elements = 1;
        CHECK(t->begin <= t->end && t->end <= c.data_bytes, "tensor %d: [%zu,%zu) of %zu", i, t->begin, t->end,
              c.data_bytes);
        CHECK(t->rank >= 0 && t->rank <= PROTO_MAX_RANK, "rank %d", t->rank);
        for (int a = 0; a < t->rank; a++) {
            CHECK(t->shape[a] >= 0, "shape");
            elements *= (size_t)t->shape[a];
        }
        CHECK(t->dtype == BX_N_DTYPES || elements * bx_dtype_bytes(t->dtype) == t->end - t->begin, "tensor %d", i);
        CHECK(strlen(t->name) <= size && strlen(t->dtype_name) <= size, "names");
    }
    while (proto_container_next(&c, &name, &value)) {
        CHECK(strlen(name) + strlen(value) <= size, "metadata");
    }
    proto_container_fini(&c);
    return true;
}

static void check_priors(const uint8_t *data, size_t size) {
    size_t left;
    bx_error error = {0};
    const bx_priors *priors;
    const proto_limits limits = fuzz_limits(&left);
    bx_status status = proto_priors_read(&priors, "mine", PROTO_SAFETENSORS, data, size, &limits, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_SAFETENSORS);
        return;
    }
    proto_buffer out = {0};
    const bx_priors *again;
    proto_priors_tensor(&out, priors);
    CHECK(!out.failed, "no memory");
    CHECK(proto_priors_read(&again, "mine", PROTO_SAFETENSORS, out.data, out.bytes, &limits, NULL) == BX_OK &&
              again->n == priors->n && !memcmp(again->boxes, priors->boxes, (size_t)priors->n * 16),
          "another set");
    proto_buffer_free(&out);
    bx_priors_free(again);
    bx_priors_free(priors);
}

/* The predictions, which lie behind the prefix, are not read by decoding: a body that is cut there decodes the same. */
static void check_prefix(const uint8_t *data, size_t size) {
    size_t known = 0;
    for (size_t received = 0; received <= size; received += received < 64 ? 1 : size / 16 + 1) {
        char *part = exact(data, received);
        size_t prefix = proto_request_prefix(part, received, size);
        free(part);
        CHECK(!known || prefix == known, "%zu bytes, then %zu", known, prefix);
        CHECK(prefix <= size, "%zu bytes of %zu", prefix, size);
        known = prefix;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const bool sound = check_container(data, size);
    check_prefix(data, size);
    check_priors(data, size);
    for (int task = PROTO_LOSS; task <= PROTO_MATCH; task++) {
        size_t left;
        proto_request r;
        const decoding how = {.task = (proto_task)task, .encoding = PROTO_SAFETENSORS, .limits = fuzz_limits(&left)};
        if (decodes(&r, &how, data, size)) {
            CHECK(sound, "decoded what is no file");
            look_at(&r);
            proto_request_free(&r);
        }
    }
    return 0;
}
