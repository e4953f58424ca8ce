/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criterion objects: what they merge with, what they refuse and where, and that a description reads back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"

static const proto_limits limits = {.json_memory = 1 << 24};

/* ---- a catalog with a criterion of one's own --------------------------------------------------------------------- */

static bx_criterion *registered;

static bx_status find_priors(void *context, const char *name, const bx_priors **out, bx_error *error) {
    return proto_catalog_builtin.priors(context, name, out, error);
}

static bx_status find_criterion(void *context, const char *name, bx_criterion **out, bx_error *error) {
    if (!registered || strcmp(name, registered->name) != 0)
        return proto_catalog_builtin.criterion(context, name, out, error);
    *out = bx_criterion_copy(registered);
    return *out ? BX_OK : BX_NOMEM;
}

static const proto_catalog catalog = {NULL, find_priors, find_criterion};

static bx_status read_named(bx_criterion **criterion, const char *name, const char *text, bx_error *error) {
    *error = (bx_error){0};
    return proto_criterion_read(criterion, name, text, strlen(text), &catalog, &limits, error);
}

static bx_criterion *accept(const char *text) {
    bx_criterion *criterion;
    bx_error error;
    ck_assert_msg(read_named(&criterion, "mine", text, &error) == BX_OK, "%.300s: %s at %s", text, error.text,
                  error.path);
    return criterion;
}

static void refuse(const char *text, const char *code, const char *path, const char *word) {
    bx_criterion *untouched = NULL;
    bx_error error;
    ck_assert_msg(read_named(&untouched, "mine", text, &error) == BX_INVALID, "%.300s", text);
    ck_assert_ptr_null(untouched);
    ck_assert_msg(strcmp(error.code, code) == 0, "%.300s: %s: %s", text, error.code, error.text);
    ck_assert_msg(strcmp(error.path, path) == 0, "%.300s: %s at %s", text, error.text, error.path);
    ck_assert_msg(strstr(error.text, word) != NULL, "%.300s: %s", text, error.text);
}

/* ---- equality ---------------------------------------------------------------------------------------------------- */

static bool equal_lists(const float *a, const float *b, int32_t n, int32_t m) {
    return n == m && (n == 0 || memcmp(a, b, (size_t)n * sizeof *a) == 0);
}

static void check_equal(const bx_criterion *a, const bx_criterion *b) {
    ck_assert_str_eq(a->text, b->text);
    ck_assert_str_eq(a->priors, b->priors);
    ck_assert_mem_eq(&a->matcher, &b->matcher, sizeof a->matcher);
    ck_assert_mem_eq(&a->coder, &b->coder, sizeof a->coder);
    const bx_classification *c = &a->classification, *d = &b->classification;
    ck_assert(c->kind == d->kind && c->background == d->background && c->alpha == d->alpha && c->gamma == d->gamma);
    ck_assert(c->label_smoothing == d->label_smoothing);
    ck_assert(equal_lists(c->alphas, d->alphas, c->n_alphas, d->n_alphas));
    ck_assert(equal_lists(c->class_weights, d->class_weights, c->n_class_weights, d->n_class_weights));
    ck_assert(a->mining.kind == b->mining.kind && a->mining.ratio == b->mining.ratio &&
              a->mining.scope == b->mining.scope && a->mining.min_negatives == b->mining.min_negatives);
    ck_assert(a->localization.kind == b->localization.kind && a->localization.beta == b->localization.beta &&
              a->localization.delta == b->localization.delta && a->localization.reduction == b->localization.reduction);
    ck_assert(a->normalizer.kind == b->normalizer.kind && a->normalizer.value == b->normalizer.value);
    ck_assert(a->weights.loc == b->weights.loc && a->weights.conf == b->weights.conf);
}

/* ---- what is accepted -------------------------------------------------------------------------------------------- */

START_TEST(bases) {
    const bx_criterion *preset;
    for (size_t i = 0; (preset = bx_criterion_at(i)); i++) {
        char text[128];
        snprintf(text, sizeof text, "{\"base\":\"%s\"}", preset->name);
        bx_criterion *made = accept(text);
        ck_assert_str_eq(made->name, "mine");
        check_equal(made, preset);
        bx_criterion_free(made);
    }
    bx_criterion *made = accept("{}");
    check_equal(made, bx_criterion_preset("ssd-multibox"));
    bx_criterion_free(made);
    made = accept("{\"name\":\"ignored\",\"text\":\"one line\",\"priors\":\"grid-64x64\"}");
    ck_assert_str_eq(made->name, "mine");
    ck_assert_str_eq(made->text, "one line");
    ck_assert_str_eq(made->priors, "grid-64x64");
    bx_criterion_free(made);
    made = accept("{\"priors\":null,\"text\":\"\"}");
    ck_assert(made->priors[0] == '\0' && made->text[0] == '\0');
    bx_criterion_free(made);
}
END_TEST

START_TEST(every_member) {
    bx_criterion *c = accept(
        "{\"matcher\":{\"positive_iou\":0.6,\"negative_iou\":0.3,\"force\":\"greedy\",\"iou\":\"sizes\","
        "\"ignore_iof\":0.7},\"coder\":{\"variances\":[1,2,0.5,4]},"
        "\"classification\":{\"kind\":\"sigmoid_focal\",\"background\":\"none\",\"alpha\":[0.5,0.25],\"gamma\":1.5,"
        "\"class_weights\":[1,2],\"label_smoothing\":0.1},"
        "\"mining\":{\"kind\":\"hard_negative\",\"ratio\":2.5,\"scope\":\"batch\",\"min_negatives\":7},"
        "\"localization\":{\"kind\":\"jump_l1\",\"delta\":2,\"reduction\":\"mean\"},"
        "\"normalizer\":{\"kind\":\"value\",\"value\":12.5},\"weights\":{\"loc\":2,\"conf\":0}}");
    ck_assert(c->matcher.positive_iou == 0.6f && c->matcher.negative_iou == 0.3f && c->matcher.ignore_iof == 0.7f);
    ck_assert(c->matcher.force == BX_FORCE_GREEDY && c->matcher.iou == BX_IOU_SIZES);
    ck_assert(c->coder.variances[0] == 1 && c->coder.variances[1] == 2 && c->coder.variances[2] == 0.5 &&
              c->coder.variances[3] == 4);
    ck_assert(c->classification.kind == BX_CLASSIFICATION_SIGMOID_FOCAL &&
              c->classification.background == BX_BACKGROUND_NONE && c->classification.gamma == 1.5 &&
              c->classification.label_smoothing == 0.1);
    ck_assert(c->classification.n_alphas == 2 && c->classification.alphas[0] == 0.5f &&
              c->classification.alphas[1] == 0.25f);
    ck_assert(c->classification.n_class_weights == 2 && c->classification.class_weights[0] == 1 &&
              c->classification.class_weights[1] == 2);
    ck_assert(c->mining.kind == BX_MINING_HARD_NEGATIVE && c->mining.ratio == 2.5 &&
              c->mining.scope == BX_SCOPE_BATCH && c->mining.min_negatives == 7);
    ck_assert(c->localization.kind == BX_LOCALIZATION_JUMP_L1 && c->localization.delta == 2 &&
              c->localization.reduction == BX_REDUCTION_MEAN);
    ck_assert(c->normalizer.kind == BX_NORMALIZER_VALUE && c->normalizer.value == 12.5);
    ck_assert(c->weights.loc == 2 && c->weights.conf == 0);

    /* later changes to it: members merge, lists come along or are replaced */
    strcpy(c->name, "lists");
    registered = c;
    bx_criterion *d = accept("{\"base\":\"lists\"}");
    check_equal(d, c);
    ck_assert_ptr_ne(d->classification.alphas, c->classification.alphas);
    bx_criterion_free(d);
    d = accept("{\"base\":\"lists\",\"classification\":{\"kind\":\"sigmoid_focal\",\"gamma\":3}}");
    ck_assert(d->classification.gamma == 3 && d->classification.n_alphas == 2 &&
              d->classification.n_class_weights == 2 && d->classification.alphas[1] == 0.25f &&
              d->classification.class_weights[1] == 2);
    bx_criterion_free(d);
    d = accept("{\"base\":\"lists\",\"classification\":{\"alpha\":0.75,\"class_weights\":null}}");
    ck_assert(d->classification.alpha == 0.75 && !d->classification.alphas && d->classification.n_alphas == 0 &&
              !d->classification.class_weights && d->classification.n_class_weights == 0);
    bx_criterion_free(d);
    d = accept("{\"base\":\"lists\",\"classification\":{\"alpha\":[1,0,1],\"class_weights\":[3]}}");
    ck_assert(d->classification.n_alphas == 3 && d->classification.alphas[2] == 1 &&
              d->classification.n_class_weights == 1 && d->classification.class_weights[0] == 3);
    bx_criterion_free(d);
    d = accept("{\"base\":\"lists\",\"matcher\":{\"negative_iou\":null,\"ignore_iof\":null}}");
    ck_assert(d->matcher.negative_iou < 0 && d->matcher.ignore_iof < 0 && d->matcher.positive_iou == 0.6f);
    bx_criterion_free(d);
    d = accept("{\"base\":\"lists\",\"classification\":{\"kind\":\"softmax_ce\"}}");
    ck_assert(!d->classification.alphas && !d->classification.class_weights &&
              d->classification.background == BX_BACKGROUND_FIRST && d->classification.label_smoothing == 0);
    bx_criterion_free(d);
    registered = NULL;
    bx_criterion_free(c);
}
END_TEST

START_TEST(kinds) {
    static const char *const backgrounds[] = {"first", "last", "none"};
    static const char *const classifications[] = {"softmax_ce", "prob_ce", "sigmoid_focal"};
    static const char *const localizations[] = {"l1", "smooth_l1", "huber", "jump_l1", "giou", "diou", "ciou"};
    char text[256];
    for (size_t i = 0; i < 3; i++) { /* the default background of a kind */
        snprintf(text, sizeof text, "{\"base\":\"%s\",\"classification\":{\"kind\":\"%s\"}}",
                 i == 0 ? "ssd-keras" : "ssd-multibox", classifications[i]);
        bx_criterion *c = accept(text);
        ck_assert_str_eq(bx_menu_name(BX_MENU_CLASSIFICATION, c->classification.kind), classifications[i]);
        ck_assert_str_eq(bx_menu_name(BX_MENU_BACKGROUND, c->classification.background), backgrounds[i]);
        ck_assert(c->classification.alpha == 0.25 && c->classification.gamma == 2);
        bx_criterion_free(c);
    }
    for (size_t i = 0; i < 7; i++) { /* ssd-multibox-l1 has the mean, which a new kind forgets */
        snprintf(text, sizeof text, "{\"base\":\"ssd-multibox-l1\",\"localization\":{\"kind\":\"%s\"}}",
                 localizations[i]);
        bx_criterion *c = accept(text);
        ck_assert_str_eq(bx_menu_name(BX_MENU_LOCALIZATION, c->localization.kind), localizations[i]);
        ck_assert_int_eq(c->localization.reduction, i == 0 ? BX_REDUCTION_MEAN : BX_REDUCTION_SUM);
        ck_assert(c->localization.beta == 1 && c->localization.delta == 1);
        bx_criterion_free(c);
    }
    /* the same kind again merges */
    bx_criterion *c = accept("{\"base\":\"ssd-keras\",\"mining\":{\"kind\":\"hard_negative\",\"ratio\":1}}");
    ck_assert(c->mining.scope == BX_SCOPE_BATCH && c->mining.ratio == 1);
    bx_criterion_free(c);
    c = accept("{\"base\":\"retinanet-focal\",\"mining\":{\"ratio\":1,\"kind\":\"hard_negative\"}}");
    ck_assert(c->mining.scope == BX_SCOPE_IMAGE && c->mining.ratio == 1); /* whatever the order of members */
    bx_criterion_free(c);
    c = accept("{\"normalizer\":{\"kind\":\"value\"},\"mining\":{\"kind\":\"none\"}}");
    ck_assert(c->normalizer.value == 1 && c->mining.kind == BX_MINING_NONE);
    bx_criterion_free(c);
}
END_TEST

/* ---- what is refused --------------------------------------------------------------------------------------------- */

START_TEST(types) {
    static const struct {
        const char *text, *path;
    } rows[] = {
        {"{\"base\":1}", "criterion.base"},
        {"{\"base\":null}", "criterion.base"},
        {"{\"text\":1}", "criterion.text"},
        {"{\"name\":1}", "criterion.name"},
        {"{\"priors\":[]}", "criterion.priors"},
        {"{\"matcher\":null}", "criterion.matcher"},
        {"{\"coder\":[1,1,1,1]}", "criterion.coder"},
        {"{\"matcher\":{\"positive_iou\":\"0.5\"}}", "criterion.matcher.positive_iou"},
        {"{\"matcher\":{\"positive_iou\":null}}", "criterion.matcher.positive_iou"},
        {"{\"matcher\":{\"negative_iou\":true}}", "criterion.matcher.negative_iou"},
        {"{\"matcher\":{\"force\":1}}", "criterion.matcher.force"},
        {"{\"matcher\":{\"force\":null}}", "criterion.matcher.force"},
        {"{\"matcher\":{\"ignore_iof\":\"\"}}", "criterion.matcher.ignore_iof"},
        {"{\"coder\":{\"variances\":1}}", "criterion.coder.variances"},
        {"{\"coder\":{\"variances\":[1,1,null,1]}}", "criterion.coder.variances[2]"},
        {"{\"classification\":{\"kind\":null}}", "criterion.classification.kind"},
        {"{\"classification\":{\"label_smoothing\":null}}", "criterion.classification.label_smoothing"},
        {"{\"classification\":{\"class_weights\":1}}", "criterion.classification.class_weights"},
        {"{\"classification\":{\"class_weights\":[1,\"\"]}}", "criterion.classification.class_weights[1]"},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":null}}", "criterion.classification.alpha"},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":[0,[]]}}", "criterion.classification.alpha[1]"},
        {"{\"mining\":{\"min_negatives\":3.0}}", "criterion.mining.min_negatives"},
        {"{\"mining\":{\"ratio\":null}}", "criterion.mining.ratio"},
        {"{\"weights\":{\"loc\":[]}}", "criterion.weights.loc"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        refuse(rows[i].text, "type_mismatch", rows[i].path, "expected");
}
END_TEST

START_TEST(names) {
    refuse("{\"base\":\"ssd-multibx\"}", "unknown_criterion", "criterion.base", "did you mean \"ssd-multibox\"");
    refuse("{\"match\":{}}", "unknown_member", "criterion.match", "did you mean \"matcher\"");
    refuse("{\"a b\":{}}", "unknown_member", "criterion", "a b");
    refuse("{\"matcher\":{\"positiv_iou\":1}}", "unknown_member", "criterion.matcher.positiv_iou",
           "did you mean \"positive_iou\"");
    refuse("{\"coder\":{\"kind\":\"x\"}}", "unknown_member", "criterion.coder.kind", "variances");
    refuse("{\"weights\":{\"cls\":1}}", "unknown_member", "criterion.weights.cls", "there are loc, conf");
    refuse("{\"matcher\":{\"force\":\"lasst\"}}", "criterion_range", "criterion.matcher.force",
           "did you mean \"last\"");
    refuse("{\"classification\":{\"kind\":\"softmax\"}}", "criterion_range", "criterion.classification.kind",
           "softmax_ce");
    refuse("{\"normalizer\":{\"kind\":\"\"}}", "criterion_range", "criterion.normalizer.kind", "image_positives");
    refuse("{\"priors\":\"a/b\"}", "invalid_name", "criterion.priors", "a/b");

    char text[400], name[70];
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    snprintf(text, sizeof text, "{\"priors\":\"%s\"}", name);
    refuse(text, "invalid_name", "criterion.priors", "63");
    char line[300];
    memset(line, 'x', sizeof line);
    line[200] = '\0';
    snprintf(text, sizeof text, "{\"text\":\"%s\"}", line);
    refuse(text, "criterion_range", "criterion.text", "199");
    line[199] = '\0';
    snprintf(text, sizeof text, "{\"text\":\"%s\"}", line);
    bx_criterion *c = accept(text);
    ck_assert_str_eq(c->text, line);
    bx_criterion_free(c);

    /* names of what is defined */
    bx_criterion *untouched = NULL;
    bx_error error;
    static const char *const bad[] = {"", "a b", "a/b", "\xc3\xa9", "n\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(read_named(&untouched, bad[i], "{}", &error), BX_INVALID);
        ck_assert_str_eq(error.code, "invalid_name");
    }
    ck_assert_int_eq(read_named(&untouched, name, "{}", &error), BX_INVALID);
    ck_assert_int_eq(proto_name_check(name + 1, NULL), BX_OK);
    ck_assert_int_eq(proto_name_check("A-Z_a.z-09", NULL), BX_OK);
    /* bodies */
    ck_assert_int_eq(read_named(&untouched, "mine", "[]", &error), BX_MALFORMED);
    ck_assert_int_eq(read_named(&untouched, "mine", "{", &error), BX_MALFORMED);
    ck_assert_int_eq(read_named(&untouched, "mine", "{\"base\":\"a\",\"base\":\"b\"}", &error), BX_MALFORMED);
    const proto_limits little = {.json_memory = 64};
    ck_assert_int_eq(proto_criterion_read(&untouched, "mine", "{\"matcher\":{}}", 14, &catalog, &little, NULL),
                     BX_TOO_LARGE);
    ck_assert_ptr_null(untouched);
}
END_TEST

/* The least and the greatest that is accepted, and what lies beyond. */
START_TEST(ranges) {
    static const struct {
        const char *form, *path;
        const char *good[4], *bad[4];
    } rows[] = {
        {"{\"matcher\":{\"positive_iou\":%s}}",
         "matcher.positive_iou",
         {"1", "1e-6"},
         {"0", "1.0001", "-0.5", "1e300"}},
        {"{\"matcher\":{\"negative_iou\":%s}}", "matcher.negative_iou", {"0", "0.5", "null", "-0.0"}, {"-0.1", "1.1"}},
        {"{\"matcher\":{\"ignore_iof\":%s}}", "matcher.ignore_iof", {"1", "1e-6", "null"}, {"0", "-1", "1.1"}},
        {"{\"coder\":{\"variances\":%s}}",
         "coder.variances",
         {"[1,1,1,1]", "[1e-3,1,1,1e3]"},
         {"[1,1,1]", "[1,1,1,1,1]", "[1,0,1,1]", "[1,1,1,-1]"}},
        {"{\"classification\":{\"label_smoothing\":%s}}",
         "classification.label_smoothing",
         {"0", "1"},
         {"-0.1", "1.1"}},
        {"{\"classification\":{\"class_weights\":%s}}",
         "classification.class_weights",
         {"[0]", "[1,2.5]", "null"},
         {"[]", "[1,-1]", "[1e39]"}},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":%s}}",
         "classification.alpha",
         {"0", "1", "[0,1]"},
         {"-0.1", "1.1", "[]", "[0.5,1.1]"}},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"gamma\":%s}}",
         "classification.gamma",
         {"0", "100"},
         {"-1", "100.1"}},
        {"{\"mining\":{\"ratio\":%s}}", "mining.ratio", {"0", "0.5", "1e6"}, {"-1", "1e9"}},
        {"{\"mining\":{\"min_negatives\":%s}}", "mining.min_negatives", {"0", "9223372036854775807"}, {"-1"}},
        {"{\"localization\":{\"beta\":%s}}", "localization.beta", {"0", "0.11"}, {"-1"}},
        {"{\"base\":\"retinanet-focal\",\"localization\":{\"delta\":%s}}",
         "localization.delta",
         {"0.5", "10"},
         {"0", "-1"}},
        {"{\"normalizer\":{\"kind\":\"value\",\"value\":%s}}", "normalizer.value", {"1e-3", "7"}, {"0", "-1"}},
        {"{\"weights\":{\"loc\":%s}}", "weights.loc", {"0", "10"}, {"-1"}},
        {"{\"weights\":{\"conf\":%s}}", "weights.conf", {"0", "10"}, {"-1"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[200], path[64];
        snprintf(path, sizeof path, "criterion.%s", rows[i].path);
        for (int j = 0; j < 4 && rows[i].good[j]; j++) {
            snprintf(text, sizeof text, rows[i].form, rows[i].good[j]);
            bx_criterion_free(accept(text));
        }
        for (int j = 0; j < 4 && rows[i].bad[j]; j++) {
            snprintf(text, sizeof text, rows[i].form, rows[i].bad[j]);
            refuse(text, "criterion_range", path, "");
        }
    }
}
END_TEST

START_TEST(long_lists) {
    char *text = malloc(40000);
    for (int n = BX_MAX_COLUMNS; n <= BX_MAX_COLUMNS + 1; n++) {
        size_t used = (size_t)sprintf(text, "{\"classification\":{\"class_weights\":[1");
        for (int i = 1; i < n; i++, used += 2)
            memcpy(text + used, ",2", 2);
        strcpy(text + used, "]}}");
        if (n > BX_MAX_COLUMNS) {
            refuse(text, "criterion_range", "criterion.classification.class_weights", "16384");
            continue;
        }
        bx_criterion *c = accept(text);
        ck_assert_int_eq(c->classification.n_class_weights, n);
        ck_assert(c->classification.class_weights[0] == 1 && c->classification.class_weights[n - 1] == 2);
        bx_criterion_free(c);
    }
    free(text);
}
END_TEST

START_TEST(conflicts) {
    static const struct {
        const char *text, *path, *first, *second;
    } rows[] = {
        {"{\"matcher\":{\"negative_iou\":0.6}}", "matcher.negative_iou", "negative_iou", "positive_iou"},
        {"{\"base\":\"retinanet-focal\",\"matcher\":{\"positive_iou\":0.3}}", "matcher.negative_iou", "negative_iou",
         "positive_iou"},
        {"{\"classification\":{\"background\":\"none\"}}", "classification.background", "background", "kind"},
        {"{\"base\":\"ssd-keras\",\"classification\":{\"background\":\"none\"}}", "classification.background",
         "background", "kind"},
        {"{\"classification\":{\"alpha\":0.5}}", "classification.alpha", "classification.alpha", "softmax_ce"},
        {"{\"classification\":{\"gamma\":2}}", "classification.gamma", "classification.gamma", "classification.kind"},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"gamma\":2,\"kind\":\"prob_ce\"}}", "classification.gamma",
         "classification.gamma", "prob_ce"},
        {"{\"base\":\"retinanet-focal\",\"classification\":{\"background\":\"first\",\"alpha\":[0.5]}}",
         "classification.alpha", "alpha", "background"},
        {"{\"mining\":{\"kind\":\"none\",\"ratio\":3}}", "mining.ratio", "mining.ratio", "mining.kind"},
        {"{\"mining\":{\"scope\":\"image\",\"kind\":\"none\"}}", "mining.scope", "mining.scope", "mining.kind"},
        {"{\"base\":\"retinanet-focal\",\"mining\":{\"min_negatives\":0}}", "mining.min_negatives",
         "mining.min_negatives", "none"},
        {"{\"base\":\"ssd-multibox-l1\",\"localization\":{\"beta\":1}}", "localization.beta", "localization.beta",
         "localization.kind"},
        {"{\"localization\":{\"beta\":1,\"kind\":\"jump_l1\"}}", "localization.beta", "beta", "jump_l1"},
        {"{\"localization\":{\"delta\":1}}", "localization.delta", "localization.delta", "smooth_l1"},
        {"{\"localization\":{\"kind\":\"giou\",\"delta\":1}}", "localization.delta", "delta", "giou"},
        {"{\"localization\":{\"kind\":\"ciou\",\"reduction\":\"mean\"}}", "localization.reduction", "reduction",
         "kind"},
        {"{\"normalizer\":{\"value\":3}}", "normalizer.value", "normalizer.value", "normalizer.kind"},
        {"{\"base\":\"ssd-keras\",\"mining\":{\"kind\":\"none\"}}", "normalizer.kind", "normalizer.kind",
         "mining.kind"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char path[64];
        snprintf(path, sizeof path, "criterion.%s", rows[i].path);
        refuse(rows[i].text, "criterion_conflict", path, rows[i].first);
        refuse(rows[i].text, "criterion_conflict", path, rows[i].second);
    }
}
END_TEST

/* ---- descriptions ------------------------------------------------------------------------------------------------ */

static void check_round_trip(const bx_criterion *c) {
    proto_buffer out = {0};
    proto_criterion_describe(&out, c);
    ck_assert(!out.failed);
    proto_buffer_add(&out, "", 1);
    bx_criterion *back = accept(out.data);
    proto_buffer again = {0};
    strcpy(back->name, c->name);
    proto_criterion_describe(&again, back);
    ck_assert_msg(again.bytes + 1 == out.bytes && memcmp(again.data, out.data, again.bytes) == 0, "%s\n%.*s", out.data,
                  (int)again.bytes, again.data);
    bx_criterion_free(back);
    proto_buffer_free(&out);
    proto_buffer_free(&again);
}

START_TEST(descriptions_read_back) {
    const bx_criterion *preset;
    for (size_t i = 0; (preset = bx_criterion_at(i)); i++)
        check_round_trip(preset);
    static const char *const changes[] = {
        "{\"matcher\":{\"positive_iou\":0.7,\"negative_iou\":0.3,\"ignore_iof\":0.1,\"force\":\"first\"}}",
        "{\"base\":\"retinanet-focal\",\"classification\":{\"alpha\":[0.1,0.2],\"class_weights\":[1,0.3333]}}",
        "{\"localization\":{\"kind\":\"ciou\"},\"mining\":{\"kind\":\"none\"},\"priors\":null}",
        "{\"base\":\"ssd-keras\",\"normalizer\":{\"kind\":\"value\",\"value\":3},\"weights\":{\"loc\":0.1}}",
        "{\"text\":\"quotes \\\" and \\\\ and \\u00e9\",\"coder\":{\"variances\":[0.1,0.2,0.3,0.7]}}"};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        bx_criterion *c = accept(changes[i]);
        check_round_trip(c);
        bx_criterion_free(c);
    }
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("criterion object");
    tcase_add_test(cases, bases);
    tcase_add_test(cases, every_member);
    tcase_add_test(cases, kinds);
    tcase_add_test(cases, types);
    tcase_add_test(cases, names);
    tcase_add_test(cases, ranges);
    tcase_add_test(cases, long_lists);
    tcase_add_test(cases, conflicts);
    tcase_add_test(cases, descriptions_read_back);
    Suite *suite = suite_create("criterion object");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
