/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small documents: problems, prior sets, criteria; and that a described criterion is read back as it was.
 */
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"
#include "../support/tree.h"

static const proto_limits limits = {.json_memory = 1 << 20};

START_TEST(problem) {
    proto_buffer out = {0};
    proto_problem_encode(&out, &(proto_problem){422, "Unprocessable Content", "label_range", "label 7\xff", "", "r"});
    static const char expect[] =
        "{\"type\":\"about:blank\",\"title\":\"Unprocessable Content\",\"status\":422,\"detail\":"
        "\"label 7\xEF\xBF\xBD\",\"code\":\"label_range\",\"request_id\":\"r\"}\n";
    ck_assert(out.bytes == sizeof expect - 1 && memcmp(out.data, expect, out.bytes) == 0);
    proto_buffer_free(&out);
    proto_problem_encode(&out, &(proto_problem){422, "t", "c", "d", "/annotations/3", "r"});
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "pointer"), "/annotations/3");
    proto_json_free(root);
    proto_buffer_free(&out);
}
END_TEST

START_TEST(prior_sets) {
    bx_priors *ssd300;
    ck_assert_int_eq(bx_priors_builtin(&ssd300, "ssd300", NULL), BX_OK);
    proto_buffer out = {0};
    proto_writer writer = {.out = &out};
    proto_priors_row(&writer, ssd300);
    proto_node *root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "name"), "ssd300");
    ck_assert_int_eq(get_int(root, "count"), 8732);
    ck_assert_int_eq(get_int(root, "levels"), 6);
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_priors_describe(&out, ssd300);
    root = parse(out.data, out.bytes);
    ck_assert_str_eq(get_string(root, "units"), "relative");
    ck_assert_int_eq(get_int(root, "levels.1.first"), 38 * 38 * 4);
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_container file;
    proto_priors_tensor(&out, ssd300);
    ck_assert_int_eq(proto_container_read(&file, out.data, out.bytes, NULL), BX_OK);
    ck_assert(file.n_tensors == 1 && file.tensors[0].shape[0] == 8732 && !file.metadata);
    ck_assert(memcmp(file.tensors[0].view.data, ssd300->boxes, 8732 * 16) == 0);
    proto_container_fini(&file);
    proto_buffer_free(&out);
    bx_priors_free(ssd300);
}
END_TEST

static char *described(const bx_criterion *criterion) {
    proto_buffer out = {0};
    proto_criterion_describe(&out, criterion);
    proto_buffer_add(&out, "", 1);
    ck_assert(!out.failed);
    return out.data;
}

/* What is described is accepted again and is the same criterion. */
static void read_back(const bx_criterion *criterion) {
    bx_criterion *again;
    bx_error error = {0};
    char *text = described(criterion);
    ck_assert_msg(proto_criterion_read(&again, criterion->name, text, strlen(text), &proto_catalog_builtin, &limits,
                                       &error) == BX_OK,
                  "%s at %s in %s", error.text, error.path, text);
    char *same = described(again);
    ck_assert_str_eq(text, same);
    ck_assert(memcmp(&again->coder, &criterion->coder, sizeof again->coder) == 0);
    ck_assert(again->matcher.positive_iou == criterion->matcher.positive_iou);
    ck_assert(again->localization.beta == criterion->localization.beta ||
              !bx_localization_has_beta(criterion->localization.kind));
    ck_assert(again->classification.label_smoothing == criterion->classification.label_smoothing);
    ck_assert(again->weights.loc == criterion->weights.loc);
    for (int i = 0; i < criterion->classification.n_class_weights; i++)
        ck_assert(again->classification.class_weights[i] == criterion->classification.class_weights[i]);
    bx_criterion_free(again);
    free(same);
    free(text);
}

START_TEST(criteria) {
    static const struct {
        const char *name, *priors, *classification, *localization, *mining, *normalizer;
    } rows[] = {
        {"ssd-multibox", "ssd300", "softmax_ce", "smooth_l1", "image", "positives"},
        {"ssd-multibox-l1", "ssd300-efficientnet", "softmax_ce", "l1", "image", "positives"},
        {"retinanet-focal", NULL, "sigmoid_focal", "jump_l1", NULL, "image_positives"},
        {"ssd-keras", NULL, "prob_ce", "smooth_l1", "batch", "positives_and_mined"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const bx_criterion *preset = bx_criterion_preset(rows[i].name);
        proto_buffer out = {0};
        proto_writer writer = {.out = &out};
        proto_criterion_row(&writer, preset);
        proto_node *root = parse(out.data, out.bytes);
        ck_assert_str_eq(get_string(root, "name"), rows[i].name);
        ck_assert_str_eq(get_string(root, "text"), preset->text);
        ck_assert(rows[i].priors ? strcmp(get_string(root, "priors"), rows[i].priors) == 0 : is_null(root, "priors"));
        ck_assert_uint_eq(proto_json_size(root), 3);
        proto_json_free(root);
        proto_buffer_free(&out);

        const bool focal = i == 2, l1 = i == 1;
        char *text = described(preset);
        root = parse(text, strlen(text));
        ck_assert_uint_eq(proto_json_size(root), 10);
        ck_assert(rows[i].priors ? strcmp(get_string(root, "priors"), rows[i].priors) == 0 : is_null(root, "priors"));
        ck_assert_str_eq(get_string(root, "matcher.force"), focal ? "none" : "last");
        ck_assert_str_eq(get_string(root, "matcher.iou"), focal ? "sizes" : "corners");
        ck_assert(focal ? (float)get_real(root, "matcher.negative_iou") == 0.4f
                        : is_null(root, "matcher.negative_iou"));
        ck_assert(is_null(root, "matcher.ignore_iof"));
        ck_assert_uint_eq(proto_json_size(get(root, "coder.variances")), 4);
        ck_assert_str_eq(get_string(root, "classification.kind"), rows[i].classification);
        ck_assert_str_eq(get_string(root, "classification.background"), focal ? "none" : i == 3 ? "last" : "first");
        ck_assert_int_eq(get(root, "classification.alpha") != NULL, focal);
        ck_assert_int_eq(get(root, "classification.gamma") != NULL, focal);
        ck_assert(is_null(root, "classification.class_weights"));
        ck_assert_int_eq(get_int(root, "classification.label_smoothing"), 0);
        if (rows[i].mining) {
            ck_assert_str_eq(get_string(root, "mining.scope"), rows[i].mining);
            ck_assert_int_eq(get_int(root, "mining.ratio"), 3);
            ck_assert_int_eq(get_int(root, "mining.min_negatives"), 0);
        } else {
            ck_assert_uint_eq(proto_json_size(get(root, "mining")), 1);
        }
        ck_assert_str_eq(get_string(root, "localization.kind"), rows[i].localization);
        ck_assert_int_eq(get(root, "localization.beta") != NULL, i == 0 || i == 3);
        ck_assert_int_eq(get(root, "localization.delta") != NULL, focal);
        ck_assert_str_eq(get_string(root, "localization.reduction"), l1 ? "mean" : "sum");
        ck_assert_str_eq(get_string(root, "normalizer.kind"), rows[i].normalizer);
        ck_assert_ptr_null(get(root, "normalizer.value"));
        ck_assert_int_eq(get_int(root, "weights.conf"), 1);
        proto_json_free(root);
        free(text);
        read_back(preset);
    }
}
END_TEST

START_TEST(own_criterion) {
    static const float alphas[] = {0.25f, 0.1f, 1}, class_weights[] = {1, 0, 0.33333334f};
    bx_criterion own = *bx_criterion_at(0);
    strcpy(own.name, "mine");
    strcpy(own.text, "a \"text\" of one's own");
    own.priors[0] = '\0';
    own.matcher = (bx_matcher){0.7f, 0.30000001f, BX_FORCE_GREEDY, BX_IOU_SIZES, 0.5f};
    own.coder = (bx_coder){{0.1, 0.30000000000000004, 1. / 3, 1e-5}};
    own.classification.class_weights = class_weights;
    own.classification.n_class_weights = 3;
    own.classification.label_smoothing = 0.1;
    own.mining = (bx_mining){BX_MINING_HARD_NEGATIVE, 2.5, BX_SCOPE_BATCH, 7};
    own.normalizer = (bx_normalizer){BX_NORMALIZER_VALUE, 1. / 7};
    own.weights = (bx_weights){0.1, 0};
    for (size_t kind = 0; bx_menu_name(BX_MENU_LOCALIZATION, kind); kind++) {
        own.localization = bx_localization_default((bx_localization_kind)kind);
        own.localization.beta = 1. / 9;
        own.localization.delta = 1. / 11;
        read_back(&own);
        char *text = described(&own);
        proto_node *root = parse(text, strlen(text));
        const bx_localization_kind localization = own.localization.kind;
        ck_assert_int_eq(get(root, "localization.beta") != NULL, bx_localization_has_beta(localization));
        ck_assert_int_eq(get(root, "localization.delta") != NULL, bx_localization_has_delta(localization));
        ck_assert_int_eq(get(root, "localization.reduction") != NULL, !bx_localization_needs_boxes(localization));
        proto_json_free(root);
        free(text);
    }
    own.matcher.negative_iou = 0; /* a number like others */
    own.classification = bx_classification_default(BX_CLASSIFICATION_SIGMOID_FOCAL);
    own.classification.alpha = 1. / 3;
    own.classification.gamma = 0;
    own.mining = bx_mining_default(BX_MINING_NONE);
    read_back(&own);
    own.classification.alphas = alphas;
    own.classification.n_alphas = 3;
    read_back(&own);

    char *text = described(&own);
    proto_node *root = parse(text, strlen(text));
    ck_assert_uint_eq(proto_json_size(get(root, "classification.alpha")), 3);
    ck_assert((float)get_real(root, "classification.alpha.1") == 0.1f);
    ck_assert(get_real(root, "normalizer.value") == 1. / 7);
    ck_assert(get_real(root, "matcher.negative_iou") == 0);
    ck_assert((float)get_real(root, "matcher.ignore_iof") == 0.5f);
    ck_assert(get_real(root, "coder.variances.2") == 1. / 3);
    ck_assert_uint_eq(proto_json_size(get(root, "mining")), 1);
    proto_json_free(root);
    free(text);
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("describe");
    tcase_add_test(cases, problem);
    tcase_add_test(cases, prior_sets);
    tcase_add_test(cases, criteria);
    tcase_add_test(cases, own_criterion);
    Suite *suite = suite_create("describe");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
