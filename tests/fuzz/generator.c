/* SPDX-License-Identifier: Apache-2.0 */
/* A prior set as JSON: a generator object or boxes; what is told of a generator makes the same set. */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

static void describe_again(const bx_priors *priors, const proto_limits *limits) {
    proto_buffer text = {0};
    json_error_t cause;
    const bx_priors *again;
    bx_error error = {0};
    proto_priors_describe(&text, priors);
    CHECK(!text.failed, "no memory");
    check_json(text.data, text.bytes);
    oracle_begin();
    json_t *tree = json_loadb(text.data, text.bytes, 0, &cause), *generator = json_object_get(tree, "generator");
    char *recipe = json_is_object(generator) ? json_dumps(generator, JSON_REAL_PRECISION(17)) : NULL;
    json_decref(tree);
    oracle_end();
    if (recipe) {
        bx_status status = proto_priors_read(&again, "mine", PROTO_JSON, recipe, strlen(recipe), limits, &error);
        CHECK(status == BX_OK, "%s at %s: %s", error.text, error.path, recipe);
        CHECK(again->n == priors->n && !memcmp(again->boxes, priors->boxes, (size_t)priors->n * 16), "another set: %s",
              recipe);
        bx_priors_free(again);
        free(recipe);
    }
    proto_buffer_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t left;
    const bx_priors *priors;
    bx_error error = {0};
    proto_limits limits = fuzz_limits(&left);
    left = 1 << 20; /* making large sets would take all the time */
    bx_status status = proto_priors_read(&priors, "mine", PROTO_JSON, data, size, &limits, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_JSON);
        return 0;
    }
    left = FUZZ_MEMORY;
    describe_again(priors, &limits);
    bx_priors_free(priors);
    return 0;
}
