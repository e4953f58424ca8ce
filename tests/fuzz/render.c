/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever decodes is computed and answered in every form, and each answer is what it says it is: JSON, a safetensors
 * file, an answer of the protocol, of at most the bytes that were announced. The first two bytes choose what is
 * included, and the task or an inference; the body follows, in whichever encoding it seems to have. The JSON of an
 * inference ends before its first NUL.
 */
#include "../support/job.h"
#include "fuzz.h"

#define MOST_NUMBERS 4000 /* of predictions; more would take too long */

static bx_context *context; /* open for good */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    CHECK(bx_context_open(&context, "cpu", NULL, NULL) == BX_OK, "no context");
    return 0;
}

static const proto_timing timing = {1.5, 0, 0.25};

/* ---- an answer --------------------------------------------------------------------------------------------------- */

static void check_tensors(const char *data, size_t n) {
    proto_container c;
    bx_error error = {0};
    const char *name = NULL, *value;
    bool told = false;
    CHECK(proto_container_read(&c, data, n, &error) == BX_OK, "%s", error.text);
    while (proto_container_next(&c, &name, &value)) {
        told |= !strcmp(name, "result");
        check_json(value, strlen(value));
    }
    CHECK(told, "no result");
    proto_container_fini(&c);
}

static void check_inference(const proto_request *r, const bx_result *result, const char *id) {
    proto_buffer out = {0};
    proto_infer_layout layout;
    bx_error error = {0};
    bx_status status = proto_infer_encode(&out, &layout, r, result, &timing, id, (size_t)1 << 24, &error);
    CHECK(status == BX_OK || status == BX_INVALID || status == BX_TOO_LARGE, "%s", error.text);
    if (status == BX_OK) {
        CHECK(layout.json_bytes <= layout.sent_bytes && layout.sent_bytes <= out.bytes, "layout");
        check_json(out.data, layout.json_bytes ? layout.json_bytes : layout.sent_bytes);
    }
    proto_buffer_free(&out);
}

static void answer_all(const proto_request *r, const computation *c, const char *id) {
    const int64_t rows = c->plan.gradients ? bx_job_gradient_rows(&c->job) : 0;
    for (int accept = PROTO_JSON; accept <= PROTO_SAFETENSORS; accept++) {
        proto_buffer out = {0};
        bx_error error = {0};
        const size_t most = proto_answer_bytes(r, &c->plan, rows, (proto_encoding)accept);
        bx_status status = proto_answer_encode(&out, (proto_encoding)accept, r, &c->result, &timing, id, most, &error);
        CHECK(status == BX_OK, "%s", error.text);
        CHECK(out.bytes <= most, "%zu bytes, %zu were announced", out.bytes, most);
        if (accept == PROTO_JSON) {
            check_json(out.data, out.bytes);
        } else {
            check_tensors(out.data, out.bytes);
        }
        proto_buffer_free(&out);
    }
    if (r->task == PROTO_LOSS) {
        proto_request asked = *r;
        check_inference(r, &c->result, id);
        asked.infer.binary = ~asked.infer.binary;
        check_inference(&asked, &c->result, id);
        proto_step step;
        proto_buffer out = {0};
        proto_step_make(&step, r, &c->result, &timing);
        proto_step_row(&(proto_writer){.out = &out}, &step);
        check_json(out.data, out.bytes);
        proto_buffer_free(&out);
    }
}

/* What is sent back is computed as it is answered. */
static void compute_it(const proto_request *r, const char *id) {
    const bx_batch *b = &r->batch;
    computation c;
    bx_error error = {0};
    const size_t columns = b->n_columns > 0 ? (size_t)b->n_columns : 1;
    if ((size_t)b->n_images * (size_t)r->priors->n * columns > MOST_NUMBERS) {
        return;
    }
    bx_status status = compute_in(&c, context, r->criterion, r->priors, b, r->gradients, &error);
    if (status == BX_OK) {
        answer_all(r, &c, id);
    } else {
        check_refusal(status, &error, r, r->encoding);
    }
    computation_free(&c);
}

/* ---- what is told of a model ------------------------------------------------------------------------------------- */

static void describe_model(const char *name) {
    proto_buffer out = {0};
    proto_model_describe(&out, name);
    CHECK(!out.failed, "no memory");
    check_json(out.data, out.bytes);
    out.bytes = 0;
    proto_model_configure(&out, name, 1 << 20);
    check_json(out.data, out.bytes);
    out.bytes = 0;
    proto_server_describe(&out, name, true);
    check_json(out.data, out.bytes);
    out.bytes = 0;
    proto_model_statistics_row(&(proto_writer){.out = &out}, name, &(proto_model_statistics){.last_ms = 5});
    check_json(out.data, out.bytes);
    proto_buffer_free(&out);
}

/* As ids are. */
static void printable(char id[64], const char *text, size_t n) {
    size_t i = 0;
    for (; i < n && i < 63; i++) {
        id[i] = text[i] > ' ' && text[i] <= '~' ? text[i] : 'x';
    }
    id[i] = '\0';
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    char include[96] = "";
    const uint32_t bits = take(&b), kind = take(&b);
    static const char *const words[] = {"images",     "classes", "levels",    "objects",
                                        "assignment", "targets", "gradients", "dense_gradients"};
    for (int i = 0; i < 8; i++) {
        if (bits >> i & 1) {
            snprintf(include + strlen(include), sizeof include - strlen(include), ",%s", words[i]);
        }
    }
    const proto_option query = {"include", include};
    const size_t n = (size_t)(b.end - b.at);
    size_t left;
    proto_request r;
    char *body = exact(b.at, n), id[64];
    printable(id, body, n);
    const char *end = memchr(body, '\0', n);
    decoding how = {.task = kind & 1 ? PROTO_MATCH : PROTO_LOSS,
                    .encoding = kind & 4 ? PROTO_INFER : proto_encoding_guess(body, n),
                    .model = "ssd-multibox",
                    .json_bytes = end ? end - body : -1,
                    .query = &query,
                    .n_query = kind & 2 ? 0 : 1,
                    .limits = fuzz_limits(&left)};
    how.limits.region = fuzz_region;
    if (decodes(&r, &how, body, n)) {
        compute_it(&r, id);
        proto_request_free(&r);
    }
    describe_model(id);
    free(body);
    return 0;
}
