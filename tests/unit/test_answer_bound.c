/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of jobs that were filled by hand: gradients, and never larger than promised.
 */
#define _POSIX_C_SOURCE 200809L

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/answer.h"
#include "../support/suite.h"
#include "../support/tree.h"

#define EVERYTHING                                                                                                     \
    (PROTO_INCLUDE_IMAGES | PROTO_INCLUDE_CLASSES | PROTO_INCLUDE_LEVELS | PROTO_INCLUDE_OBJECTS |                     \
     PROTO_INCLUDE_ASSIGNMENT | PROTO_INCLUDE_TARGETS)
#define LONGEST (-1.00000015e-10f) /* 15 characters */

START_TEST(gradients) {
    enum { N = 2, P = 3, C = 3, K = 2 };
    static const bx_level level = {"all", 0, P};
    static const bx_priors priors = {.n = P, .n_levels = 1, .levels = &level};
    static bx_image_row images[N];
    static int64_t some[] = {0, 2, 3}, none[] = {0, 0, 0};
    static int32_t index[] = {0, 0, 0, 2, 1, 1}, first[N + 1];
    static float loc[N * P * 4], conf[N * P * C];
    for (int i = 0; i < N * P * 4; i++)
        loc[i] = (float)i / 7;
    for (int i = 0; i < N * P * C; i++)
        conf[i] = -(float)i * 1e-9f;
    bx_criterion criterion = *bx_criterion_at(0);
    const proto_request request = {.device = "auto", .criterion = &criterion, .priors = &priors};
    const bx_batch batch = {.n_images = N, .n_priors = P, .n_columns = C, .first = first};
    bx_plan plan = {.criterion = &criterion,
                    .priors = &priors,
                    .n_images = N,
                    .n_priors = P,
                    .n_columns = C,
                    .n_classes = K,
                    .with_predictions = true};
    bx_job job = {.plan = &plan,
                  .batch = &batch,
                  .images = images,
                  .listed = some,
                  .grad_index = index,
                  .grad_loc = loc,
                  .grad_conf = conf};
    const bx_result result = {.job = &job, .loss = {1, 2, 3, 4, 5}};
    static const char *const members[] = {"loc", "conf"};
    static const int widths[] = {4, C};
    const float *const values[] = {loc, conf};
    for (int m = 0; m < 3; m++) { /* of three rows, of all, of none */
        bool dense = m == 1;
        int n_rows = m == 0 ? 3 : m == 1 ? N * P : 0;
        char path[64];
        plan.gradients = dense ? BX_GRADIENTS_DENSE : BX_GRADIENTS_SPARSE;
        job.listed = m == 2 ? none : some;
        proto_buffer out = encode_result(&request, &result, PROTO_JSON, "id");
        proto_node *root = parse(out.data, out.bytes);
        ck_assert_ptr_null(get(root, dense ? "gradients" : "dense_gradients"));
        if (!dense) {
            ck_assert_uint_eq(proto_json_size(get(root, "gradients.index")), (size_t)n_rows);
            ck_assert_uint_eq(proto_json_size(get(root, "gradients.conf")), (size_t)n_rows);
        }
        for (int row = 0; row < n_rows; row++) {
            for (int c = 0; c < 2 && !dense; c++) {
                snprintf(path, sizeof path, "gradients.index.%d.%d", row, c);
                ck_assert_int_eq(get_int(root, path), index[2 * row + c]);
            }
            for (int k = 0; k < 2; k++)
                for (int c = 0; c < widths[k]; c++) {
                    if (dense)
                        snprintf(path, sizeof path, "dense_gradients.%s.%d.%d.%d", members[k], row / P, row % P, c);
                    else
                        snprintf(path, sizeof path, "gradients.%s.%d.%d", members[k], row, c);
                    ck_assert_msg((float)get_real(root, path) == values[k][row * widths[k] + c], "%s", path);
                }
        }
        proto_json_free(root);
        proto_buffer_free(&out);

        proto_container file;
        bx_error error = {0};
        out = encode_result(&request, &result, PROTO_SAFETENSORS, "id");
        ck_assert_msg(proto_container_read(&file, out.data, out.bytes, &error) == BX_OK, "%s", error.text);
        /* widest first, then by name */
        const char *after = file.tensors[0].view.data;
        static const char *const order[] = {"conf_loss", "loc_loss",   "loss",     "grad_conf",
                                            "grad_loc",  "grad_index", "positives"};
        for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
            const proto_tensor *tensor = find(&file, order[i]);
            if (dense && i == 5) {
                ck_assert_ptr_null(tensor);
                continue;
            }
            ck_assert_msg(tensor && (const char *)tensor->view.data == after, "%s", order[i]);
            after += tensor->end - tensor->begin;
        }
        for (int k = 0; k < 2; k++) {
            const proto_tensor *tensor = find(&file, k ? "grad_conf" : "grad_loc");
            size_t bytes = (size_t)n_rows * (size_t)widths[k] * sizeof(float);
            ck_assert(tensor->view.dtype == BX_F32 && tensor->rank == (dense ? 3 : 2));
            ck_assert_int_eq(tensor->shape[0], dense ? N : n_rows);
            ck_assert_int_eq(tensor->shape[1], dense ? P : widths[k]);
            ck_assert_uint_eq(tensor->end - tensor->begin, bytes);
            ck_assert(bytes == 0 || memcmp(tensor->view.data, values[k], bytes) == 0);
        }
        if (!dense) {
            const proto_tensor *tensor = find(&file, "grad_index");
            ck_assert(tensor->view.dtype == BX_I32 && tensor->shape[0] == n_rows && tensor->shape[1] == 2);
            ck_assert(n_rows == 0 || memcmp(tensor->view.data, index, (size_t)n_rows * 8) == 0);
        }
        proto_container_fini(&file);
        proto_buffer_free(&out);
    }
    /* before the work is done: everything but the gradients */
    for (proto_encoding accept = PROTO_JSON; accept <= PROTO_SAFETENSORS; accept++) {
        plan.gradients = BX_GRADIENTS_NONE;
        size_t bytes = proto_answer_bytes(&request, &plan, 0, accept);
        plan.gradients = BX_GRADIENTS_DENSE;
        ck_assert_uint_le(proto_answer_bytes(&request, &plan, 0, accept), bytes + 64);
        plan.gradients = BX_GRADIENTS_SPARSE;
        ck_assert_uint_le(proto_answer_bytes(&request, &plan, 0, accept), bytes + 64);
        ck_assert_uint_ge(proto_answer_bytes(&request, &plan, 1000, accept), bytes + 1000 * (2 + 4 + C) * 4);
    }
}
END_TEST

/* The longest numbers and names there can be still fit the bound, member by member and all together. */
START_TEST(bound) {
    enum { N = 64, P = 20, K = 100, L = 150, G = 400, C = K + 1, M = N * P };
    static bx_level levels[L];
    static float boxes[P * 4];
    static bx_priors priors = {.n = P, .n_levels = L, .levels = levels, .boxes = boxes};
    static bx_criterion criterion;
    static bx_image_row images[N];
    static bx_class_row classes[N * K];
    static bx_level_row level_rows[N * L];
    static bx_object_row objects[G];
    static bx_sums normalizers[N];
    static int64_t labels[G], listed[N + 1];
    static int32_t first[N + 1], owner[N * P], grad_index[M * 2];
    static uint8_t state[N * P];
    static float grad_loc[M * 4], grad_conf[M * C];
    /* 24 characters each, and their quotients and totals too */
    const double long_sum = -DBL_MAX / 1e100, long_normalizer = -1.2345678901234567e-85;
    const bx_sums most = {long_sum, long_sum, long_sum};
    char id[257];
    memset(id, 1, 256);
    id[256] = '\0';
    criterion = *bx_criterion_at(0);
    memset(criterion.name, '"', 63);
    memset(priors.name, '\\', 63);
    for (int i = 0; i < L; i++)
        memset(levels[i].name, 1, 15), levels[i].count = INT32_MIN;
    for (int i = 0; i < N; i++) {
        images[i] = (bx_image_row){most,      INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN,
                                   INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, 0};
        normalizers[i] = (bx_sums){long_normalizer, long_normalizer, long_normalizer};
        listed[i + 1] = (i + 1) * P;
    }
    for (int i = 0; i < N * K; i++)
        classes[i] = (bx_class_row){most, INT64_MIN / N, INT64_MIN / N, INT64_MIN / N};
    for (int i = 0; i < N * L; i++)
        level_rows[i] = (bx_level_row){most, INT64_MIN / N, INT64_MIN / N};
    for (int i = 0; i < G; i++) {
        objects[i] = (bx_object_row){LONGEST, INT32_MIN, INT32_MIN, false, false};
        labels[i] = 16382;
    }
    for (int i = 1; i <= N; i++)
        first[i] = G;
    for (int i = 0; i < M * 2; i++)
        grad_index[i] = INT32_MIN;
    for (int i = 0; i < M * 4; i++)
        grad_loc[i] = LONGEST;
    for (int i = 0; i < M * C; i++)
        grad_conf[i] = LONGEST;
    bx_plan plan = {.criterion = &criterion,
                    .priors = &priors,
                    .n_images = N,
                    .n_priors = P,
                    .n_columns = C,
                    .n_classes = K,
                    .n_objects = G,
                    .with_predictions = true};
    const bx_batch batch = {.n_images = N, .n_priors = P, .n_columns = C, .labels = labels, .first = first};
    const bx_job job = {.plan = &plan,
                        .batch = &batch,
                        .owner = owner,
                        .state = state,
                        .images = images,
                        .classes = classes,
                        .levels = level_rows,
                        .objects = objects,
                        .normalizers = normalizers,
                        .listed = listed,
                        .grad_index = grad_index,
                        .grad_loc = grad_loc,
                        .grad_conf = grad_conf};
    bx_result result = {.job = &job,
                        .loss = {long_sum, long_sum, long_sum, long_sum, long_sum},
                        .sums = most,
                        .normalizer = {long_normalizer, long_normalizer, long_normalizer},
                        .positives = INT64_MIN,
                        .negatives = INT64_MIN,
                        .ignored = INT64_MIN,
                        .hard_negatives = INT64_MIN,
                        .objects = INT64_MAX,
                        .ignored_objects = INT64_MIN,
                        .dropped_boxes = INT64_MIN,
                        .forced = INT64_MIN,
                        .collided = INT64_MIN,
                        .unmatched_objects = INT64_MIN,
                        .objects_without_overlap = INT64_MIN,
                        .best_iou_min = long_sum,
                        .best_iou_mean = long_sum,
                        .positives_per_object_min = INT32_MIN,
                        .positives_per_object_max = INT32_MIN,
                        .positives_per_object_mean = long_sum};
    for (int i = 0; i < 10; i++)
        result.best_iou_histogram[i] = INT64_MIN;
    proto_request request = {
        .task = PROTO_LOSS, .device = "cuda:123", .criterion = &criterion, .priors = &priors, .label_base = 1};
    enum { N_WORDS = 6 }; /* nothing, each, everything */
    for (unsigned word = 0; word <= N_WORDS + 1; word++)
        for (int g = BX_GRADIENTS_NONE; g <= BX_GRADIENTS_DENSE; g++)
            for (proto_encoding accept = PROTO_JSON; accept <= PROTO_SAFETENSORS; accept++) {
                request.include = word == 0 ? 0 : word <= N_WORDS ? 1u << (word - 1) : EVERYTHING;
                plan.gradients = (bx_gradients)g;
                result.own_normalizers = word != 0; /* the batch's own are long too */
                proto_buffer out = encode_result(&request, &result, accept, id);
                proto_buffer_free(&out);
            }
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("answer bounds");
    tcase_add_test(cases, gradients);
    tcase_add_test(cases, bound);
    Suite *suite = suite_create("answer bounds");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
