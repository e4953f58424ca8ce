/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of small batches: valid, complete; and the pointers of failures.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "compute.h"
#include "../support/answer.h"
#include "../support/suite.h"
#include "../support/tree.h"

#define WORDS "images,classes,levels,objects,assignment,targets"

static const proto_limits limits = {.json_memory = 1 << 20};

/* ---- a small batch, computed ------------------------------------------------------------------------------------- */

#define PRIORS "\"priors\":[[0.25,0.25,0.5,0.5],[0.75,0.75,0.5,0.5],[0.5,0.5,0.2,0.2]]"
#define NOTES                                                                                                          \
    "\"annotations\":[{\"boxes\":[[0,0,0.5,0.5],[0.5,0.5,1,1]],\"labels\":[1,0]},{\"boxes\":[],\"labels\":[]}]"        \
    "," PRIORS
#define PREDICTIONS                                                                                                    \
    "\"predictions\":{\"loc\":{\"shape\":[2,3,4],\"data\":[1,0,0,0,0,2,0,0,0,0,3,0,0,0,0,0,0,0,0,0,0,0,0,0]},"         \
    "\"conf\":{\"shape\":[2,3,3],\"data\":[1,2,3,0,0,0,1,0,0,3,2,1,0,0,0,0,1,0]}}"
#define LOSS  "{" PREDICTIONS "," NOTES "}"
#define MATCH "{" NOTES "}"
/* matched already: image 0 has a positive and an ignored prior, image 1 a positive one */
#define TARGETS                                                                                                        \
    "{" PREDICTIONS ",\"targets\":{\"classes\":[[1,-2,-1],[-1,-1,0]],\"loc\":[[[0.5,0,0,0.1],[0,0,0,0],[0,0,0,0]],"    \
    "[[0,0,0,0],[0,0,0,0],[0,-1,0,2]]]}}"
/* the second object of image 0 is ignored, and with it the second prior; the first of image 1 is inverted */
#define SOME                                                                                                           \
    "{\"annotations\":[{\"boxes\":[[0,0,0.5,0.5],[0.5,0.5,1,1],[0.4,0.4,0.6,0.6]],\"labels\":[2,99,1],\"ignore\":"     \
    "[0,1,0]},{\"boxes\":[[0.5,0,0.2,1],[0.5,0.5,1,1]],\"labels\":[1,2]}],\"label_base\":1,\"invalid_boxes\":"         \
    "\"drop\"," PRIORS "}"

struct run {
    proto_request request;
    bx_plan plan;
    bx_job job;
    bx_result result;
    void *work, *gradients;
};

static void *aligned(size_t bytes) {
    return aligned_alloc(64, bytes ? (bytes + 63) / 64 * 64 : 64);
}

static void run(struct run *run, proto_task task, const char *body, const char *include, const char *criterion) {
    const proto_option query[] = {{"include", include}, {"criterion", criterion}};
    bx_error error = {0};
    bx_context *context;
    ck_assert_msg(proto_request_decode(&run->request, task, PROTO_JSON, body, strlen(body), query, 2,
                                       &proto_catalog_builtin, &limits, &error) == BX_OK,
                  "%s at %s", error.text, error.path);
    ck_assert_msg(bx_plan_init(&run->plan, run->request.criterion, run->request.priors, &run->request.batch,
                               run->request.gradients, &error) == BX_OK,
                  "%s at %s", error.text, error.path);
    run->work = aligned(run->plan.work_bytes);
    bx_job_init(&run->job, &run->plan, &run->request.batch, run->work);
    ck_assert_int_eq(bx_context_open(&context, "cpu", NULL, &error), BX_OK);
    for (int32_t i = 0; i < run->plan.n_images; i++) {
        for (int32_t b = 0; b < run->plan.n_blocks; b++)
            bx_run_block(context, &run->job, i, b);
        bx_run_image(context, &run->job, i);
    }
    ck_assert_int_eq(bx_run_batch(context, &run->job, &error), BX_OK);
    run->gradients = aligned(bx_gradient_bytes(&run->plan, bx_job_gradient_rows(&run->job)));
    if (run->plan.gradients != BX_GRADIENTS_NONE)
        bx_job_place_gradients(&run->job, run->gradients);
    for (int32_t i = 0; run->plan.second_round && i < run->plan.n_images; i++)
        bx_run_rows(context, &run->job, i);
    bx_context_close(context);
    ck_assert_int_eq(bx_finish(&run->result, &run->job, &error), BX_OK);
}

static void done(struct run *run) {
    free(run->work);
    free(run->gradients);
    proto_request_free(&run->request);
}

static proto_buffer encode(const struct run *run, proto_encoding accept) {
    return encode_result(&run->request, &run->result, accept, "id");
}

/* An array of two images of three priors. */
static void check_map(const proto_node *root, const char *name, const int map[2][3]) {
    for (int i = 0; i < 2; i++)
        for (int p = 0; p < 3; p++) {
            char path[64];
            snprintf(path, sizeof path, "%s.%d.%d", name, i, p);
            ck_assert_msg(get_int(root, path) == map[i][p], "%s", path);
        }
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

START_TEST(loss_json) {
    struct run r;
    run(&r, PROTO_LOSS, LOSS, WORDS, "ssd-multibox");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);

    static const char *const order[] = {"\"criterion\"",  "\"priors\"",       "\"device\"",    "\"classes_total\"",
                                        "\"label_base\"", "\"loss\"",         "\"sums\"",      "\"normalizer\"",
                                        "\"assignment\"", "\"no_positives\"", "\"timing_ms\"", "\"request_id\""};
    char *text = malloc(out.bytes + 1), *at = text;
    memcpy(text, out.data, out.bytes);
    text[out.bytes] = '\0';
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        at = strstr(at, order[i]);
        ck_assert_msg(at != NULL, "%s", order[i]);
    }
    char expect[64]; /* doubles round-trip */
    snprintf(expect, sizeof expect, "\"loss\":{\"total\":");
    ck_assert(strtod(strstr(text, expect) + strlen(expect), NULL) == r.result.loss.total);
    free(text);

    ck_assert_str_eq(get_string(root, "criterion"), "ssd-multibox");
    ck_assert_str_eq(get_string(root, "priors"), "inline");
    ck_assert_str_eq(get_string(root, "device"), "cpu");
    ck_assert_str_eq(get_string(root, "request_id"), "id");
    ck_assert_int_eq(get_int(root, "classes_total"), 2);
    ck_assert_int_eq(get_int(root, "assignment.positives"), 2);
    ck_assert_int_eq(get_int(root, "assignment.priors"), 3);
    ck_assert_int_eq(get_int(root, "assignment.hard_negatives"), r.result.hard_negatives);
    ck_assert_int_eq(get_int(root, "assignment.best_iou.histogram.9"), 2);
    ck_assert_uint_eq(proto_json_size(get(root, "images")), 2);
    ck_assert_int_eq(get_int(root, "images.0.positives"), 2);
    ck_assert_ptr_nonnull(get(root, "images.1.loss.conf_negative"));
    ck_assert(get_real(root, "normalizer.loc") == 2);
    ck_assert_ptr_null(get(root, "images.0.normalizer"));
    for (const char *const *rows = (const char *const[]){"images", "classes", "levels", NULL}; *rows; rows++) {
        static const char *const members[] = {"loc", "conf_positive", "conf_negative"};
        for (size_t i = 0; i < 3; i++) {
            double all = 0;
            char path[64];
            for (size_t row = 0; row < proto_json_size(get(root, *rows)); row++) {
                snprintf(path, sizeof path, "%s.%zu.sums.%s", *rows, row, members[i]);
                all += get_real(root, path);
            }
            snprintf(path, sizeof path, "sums.%s", members[i]);
            ck_assert_double_eq_tol(all, get_real(root, path), 1e-12 * all);
        }
    }
    ck_assert_uint_eq(proto_json_size(get(root, "classes")), 3);
    ck_assert_int_eq(get_int(root, "classes.2.class"), -1);
    ck_assert_int_eq(get_int(root, "classes.2.objects"), 0);
    ck_assert(get_real(root, "classes.2.sums.conf_negative") == r.result.sums.conf_negative);
    ck_assert_int_eq(get_int(root, "classes.1.objects"), 1);
    ck_assert_str_eq(get_string(root, "levels.0.name"), "all");
    ck_assert_int_eq(get_int(root, "levels.0.priors"), 3);
    ck_assert_int_eq(get_int(root, "objects.1.best_prior"), 1);
    ck_assert_int_eq(get_int(root, "objects.0.label"), 1);
    static const int classes[2][3] = {{1, 0, -1}, {-1, -1, -1}}, objects[2][3] = {{0, 1, -1}, {-1, -1, -1}};
    check_map(root, "assignment_map.classes", classes);
    check_map(root, "assignment_map.objects", objects);
    check_map(root, "targets.classes", classes);
    for (int i = 0; i < 2; i++)
        for (int p = 0; p < 3; p++) {
            char path[64];
            snprintf(path, sizeof path, "targets.loc.%d.%d", i, p);
            ck_assert_uint_eq(proto_json_size(get(root, path)), 4);
        }
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

START_TEST(match_json) {
    struct run r;
    run(&r, PROTO_MATCH, MATCH, WORDS, "ssd-multibox");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    static const char *const absent[] = {"loss",           "sums",
                                         "normalizer",     "assignment.hard_negatives",
                                         "images.0.loss",  "images.0.hard_negatives",
                                         "classes.0.loss", "classes.0.correct",
                                         "levels.0.loss",  "levels.0.hard_negatives",
                                         "images.0.sums",  "images.0.normalizer",
                                         "classes.0.sums", "levels.0.sums",
                                         "gradients",      "dense_gradients"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        ck_assert_msg(get(root, absent[i]) == NULL, "%s", absent[i]);
    ck_assert_int_eq(get_int(root, "assignment.positives"), 2);
    ck_assert_int_eq(get_int(root, "assignment_map.objects.0.1"), 1);
    ck_assert_ptr_nonnull(get(root, "no_positives"));
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

START_TEST(no_objects) {
    static const char *const bodies[] = {
        "{\"annotations\":[{\"boxes\":[],\"labels\":[]}],\"priors\":[[0.5,0.5,1,1]]}",
        "{\"annotations\":[{\"boxes\":[[0,0,1,1]],\"labels\":[0],\"ignore\":[true]}],\"priors\":[[0.5,0.5,1,1]]}"};
    for (int i = 0; i < 2; i++) {
        struct run r;
        run(&r, PROTO_MATCH, bodies[i], "objects", "ssd-multibox");
        proto_buffer out = encode(&r, PROTO_JSON);
        proto_node *root = parse(out.data, out.bytes);
        ck_assert_int_eq(get_int(root, "assignment.ignored_objects"), i);
        ck_assert(is_null(root, "assignment.best_iou.min") && is_null(root, "assignment.best_iou.mean"));
        ck_assert(is_null(root, "assignment.positives_per_object.min") &&
                  is_null(root, "assignment.positives_per_object.mean") &&
                  is_null(root, "assignment.positives_per_object.max"));
        ck_assert_uint_eq(proto_json_size(get(root, "assignment.best_iou.histogram")), 10);
        ck_assert_uint_eq(proto_json_size(get(root, "objects")), 0);
        ck_assert_ptr_null(get(root, "images"));
        proto_json_free(root);
        proto_buffer_free(&out);
        done(&r);
    }
}
END_TEST

/* Where the numbers of classes come from the annotations, and what has no row. */
START_TEST(label_base_ignored_dropped) {
    struct run r;
    run(&r, PROTO_MATCH, SOME, WORDS, "ssd-multibox");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_int_eq(get_int(root, "label_base"), 1);
    ck_assert_int_eq(get_int(root, "classes_total"), 2);
    ck_assert_int_eq(get_int(root, "classes.0.class"), 1);
    ck_assert_int_eq(get_int(root, "classes.1.class"), 2);
    ck_assert_int_eq(get_int(root, "classes.1.objects"), 2);
    ck_assert_int_eq(get_int(root, "classes.2.class"), -1);
    ck_assert_uint_eq(proto_json_size(get(root, "objects")), 3);
    ck_assert_int_eq(get_int(root, "objects.0.object"), 0);
    ck_assert_int_eq(get_int(root, "objects.0.label"), 2);
    ck_assert_int_eq(get_int(root, "objects.1.object"), 2);
    ck_assert_int_eq(get_int(root, "objects.1.label"), 1);
    ck_assert_int_eq(get_int(root, "objects.1.best_prior"), 2);
    ck_assert_int_eq(get_int(root, "objects.2.image"), 1);
    ck_assert_int_eq(get_int(root, "objects.2.object"), 1);
    ck_assert_int_eq(get_int(root, "assignment.objects"), 3);
    ck_assert_int_eq(get_int(root, "assignment.ignored_objects"), 1);
    ck_assert_int_eq(get_int(root, "assignment.dropped_boxes"), 1);
    ck_assert_int_eq(get_int(root, "assignment.ignored"), 1);
    ck_assert_int_eq(get_int(root, "images.0.ignored"), 1);
    ck_assert_int_eq(get_int(root, "images.0.objects"), 2);
    ck_assert_int_eq(get_int(root, "images.1.objects"), 1);
    static const int classes[2][3] = {{1, -2, 0}, {-1, 1, -1}}; /* zero-based */
    static const int objects[2][3] = {{0, -1, 2}, {-1, 1, -1}}; /* as sent */
    check_map(root, "assignment_map.classes", classes);
    check_map(root, "targets.classes", classes);
    check_map(root, "assignment_map.objects", objects);
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

/* Each image has its own normaliser: the batch's is null, and the shares add up from what the images say. */
START_TEST(own_normalizers) {
    static const char *const members[] = {"loc", "conf_positive", "conf_negative"};
    struct run r;
    run(&r, PROTO_LOSS, LOSS, "images,classes", "retinanet-focal");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "criterion"), "retinanet-focal");
    ck_assert(is_null(root, "normalizer"));
    ck_assert_int_eq(get_int(root, "classes_total"), 3);
    ck_assert(get_real(root, "images.0.normalizer.loc") == 4 && get_real(root, "images.1.normalizer.loc") == 2);
    for (int i = 0; i < 3; i++) {
        double share = 0;
        char path[64];
        for (int image = 0; image < 2; image++) {
            snprintf(path, sizeof path, "images.%d.sums.%s", image, members[i]);
            double sum = get_real(root, path);
            snprintf(path, sizeof path, "images.%d.normalizer.%s", image, members[i]);
            share += sum / get_real(root, path);
        }
        snprintf(path, sizeof path, "loss.%s", members[i]);
        ck_assert_double_eq_tol(share, get_real(root, path), 1e-12 * share);
    }
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

START_TEST(safetensors) {
    struct run r;
    proto_container file;
    bx_error error = {0};
    run(&r, PROTO_LOSS, LOSS, "images,assignment,targets", "ssd-multibox");
    proto_buffer out = encode(&r, PROTO_SAFETENSORS);
    ck_assert_msg(proto_container_read(&file, out.data, out.bytes, &error) == BX_OK, "%s", error.text);
    ck_assert_int_eq(file.n_tensors, 7);
    ck_assert(memcmp(find(&file, "loss")->view.data, &r.result.loss.total, 8) == 0);
    ck_assert(memcmp(find(&file, "loc_loss")->view.data, &r.result.loss.loc, 8) == 0);
    ck_assert(memcmp(find(&file, "conf_loss")->view.data, &r.result.loss.conf, 8) == 0);
    ck_assert_int_eq((char *)find(&file, "target_loc")->view.data - out.data, (long)(out.bytes - 96 - 8 - 24 - 24));
    ck_assert_int_eq(bx_tensor_int(find(&file, "positives")->view, 0), 2);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_classes")->view, 0), 1);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_classes")->view, 2), -1);
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_objects")->view, 1), 1);
    ck_assert_int_eq(find(&file, "target_loc")->shape[2], 4);
    uint64_t length;
    memcpy(&length, out.data, 8);
    ck_assert_uint_eq(length % 8, 0);

    const char *name = NULL, *text;
    ck_assert(proto_container_next(&file, &name, &text) && !strcmp(name, "result"));
    proto_node *root = parse(text, strlen(text));
    ck_assert(!proto_container_next(&file, &name, &text));
    proto_container_fini(&file);
    ck_assert_ptr_null(get(root, "assignment_map"));
    ck_assert_ptr_null(get(root, "targets"));
    ck_assert_int_eq(get_int(root, "images.0.positives"), 2);
    proto_json_free(root);
    proto_buffer_free(&out);
    done(&r);

    run(&r, PROTO_MATCH, MATCH, "", "ssd-multibox");
    out = encode(&r, PROTO_SAFETENSORS);
    ck_assert_int_eq(proto_container_read(&file, out.data, out.bytes, &error), BX_OK);
    ck_assert_int_eq(file.n_tensors, 1);
    ck_assert_ptr_nonnull(find(&file, "positives"));
    proto_container_fini(&file);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

/* Without annotations everything that speaks of objects is null, and without priors their name too. */
START_TEST(targets) {
    static const char *const nulls[] = {"priors",
                                        "assignment.objects",
                                        "assignment.ignored_objects",
                                        "assignment.dropped_boxes",
                                        "assignment.forced",
                                        "assignment.collided",
                                        "assignment.unmatched_objects",
                                        "assignment.objects_without_overlap",
                                        "assignment.best_iou",
                                        "assignment.positives_per_object",
                                        "images.0.objects",
                                        "images.0.forced",
                                        "images.0.collided",
                                        "images.0.unmatched_objects",
                                        "classes.0.objects",
                                        "classes.2.objects",
                                        "objects",
                                        "assignment_map.objects"};
    struct run r;
    run(&r, PROTO_LOSS, TARGETS, WORDS, "ssd-multibox");
    proto_buffer out = encode(&r, PROTO_JSON);
    proto_node *root = parse(out.data, out.bytes);
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        ck_assert_msg(is_null(root, nulls[i]), "%s", nulls[i]);
    ck_assert_int_eq(get_int(root, "assignment.positives"), 2);
    ck_assert_int_eq(get_int(root, "assignment.ignored"), 1);
    ck_assert_int_eq(get_int(root, "assignment.negatives"), 3);
    ck_assert_int_eq(get_int(root, "images.0.ignored"), 1);
    ck_assert_int_eq(get_int(root, "classes.1.positives"), 1);
    ck_assert_str_eq(get_string(root, "levels.0.name"), "all");
    ck_assert_int_eq(get_int(root, "levels.0.priors"), 3);
    static const int classes[2][3] = {{1, -2, -1}, {-1, -1, 0}};
    check_map(root, "assignment_map.classes", classes);
    check_map(root, "targets.classes", classes);
    ck_assert((float)get_real(root, "targets.loc.0.0.3") == 0.1f && get_real(root, "targets.loc.1.2.1") == -1);
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_container file;
    bx_error error = {0};
    out = encode(&r, PROTO_SAFETENSORS);
    ck_assert_msg(proto_container_read(&file, out.data, out.bytes, &error) == BX_OK, "%s", error.text);
    ck_assert_int_eq(file.n_tensors, 6);
    ck_assert_ptr_null(find(&file, "target_objects"));
    ck_assert_int_eq(bx_tensor_int(find(&file, "target_classes")->view, 1), -2);
    proto_container_fini(&file);
    proto_buffer_free(&out);
    done(&r);
}
END_TEST

/* An answer that nobody waits for is not finished. */
START_TEST(cancelled) {
    static const atomic_bool gone = true;
    struct run r;
    run(&r, PROTO_LOSS, LOSS, WORDS ",gradients", "ssd-multibox");
    for (proto_encoding accept = PROTO_JSON; accept <= PROTO_SAFETENSORS; accept++) {
        r.job.cancel = NULL;
        proto_buffer whole = encode(&r, accept);
        r.job.cancel = &gone;
        proto_buffer part = encode(&r, accept);
        ck_assert_uint_lt(part.bytes, whole.bytes - 100);
        proto_buffer_free(&whole);
        proto_buffer_free(&part);
    }
    done(&r);
}
END_TEST

/* ---- pointers ---------------------------------------------------------------------------------------------------- */

START_TEST(pointers) {
    static const int32_t first[] = {0, 2, 5, 9, 20};
    const proto_request request = {.encoding = PROTO_SAFETENSORS, .batch = {.n_images = 4, .first = first}};
    static const struct {
        const char *path, *json, *tensor;
    } rows[] = {
        {"", "", ""},
        {"annotations", "/annotations", "counts"},
        {"annotations[3]", "/annotations/3", "counts[3]"},
        {"annotations[3].boxes[7]", "/annotations/3/boxes/7", "boxes[16]"},
        {"annotations[3].boxes[7][2]", "/annotations/3/boxes/7/2", "boxes[16,2]"},
        {"annotations[1].labels[0]", "/annotations/1/labels/0", "labels[2]"},
        {"predictions.conf", "/predictions/conf", "conf"},
        {"predictions.conf[2][55]", "/predictions/conf/2/55", "conf[2,55]"},
        {"predictions.loc[2][55]", "/predictions/loc/2/55", "loc[2,55]"},
        {"priors[5]", "/priors/5", "priors[5]"},
        {"include", "/include", "include"},
        {"__metadata__.x", "/__metadata__/x", "__metadata__.x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char out[160];
        bx_error error = {.status = BX_INVALID};
        strcpy(error.path, rows[i].path);
        proto_pointer(out, NULL, PROTO_JSON, &error);
        ck_assert_str_eq(out, rows[i].json);
        proto_pointer(out, &request, PROTO_SAFETENSORS, &error);
        ck_assert_str_eq(out, rows[i].tensor);
    }
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("answer");
    tcase_add_test(cases, loss_json);
    tcase_add_test(cases, match_json);
    tcase_add_test(cases, no_objects);
    tcase_add_test(cases, label_base_ignored_dropped);
    tcase_add_test(cases, own_normalizers);
    tcase_add_test(cases, safetensors);
    tcase_add_test(cases, targets);
    tcase_add_test(cases, cancelled);
    tcase_add_test(cases, pointers);
    Suite *suite = suite_create("answer");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
