/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generator objects: what each parameter does, what is refused and where, and that a description reads back as the same
 * set. The built-in sets themselves are in test_priors.c.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/internal.h"
#include "../support/suite.h"

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static bx_status read_text(bx_generator *out, const char *text, bx_error *error) {
    proto_node *root = NULL;
    *error = (bx_error){0};
    ck_assert_msg(proto_json_parse(&root, text, strlen(text), 1 << 20, error) == BX_OK, "%s: %s", text, error->text);
    bx_status status = proto_generator_read(out, root, error);
    proto_json_free(root);
    return status;
}

static bx_priors *make(const char *text) {
    static bx_generator generator;
    bx_priors *priors = NULL;
    bx_error error;
    ck_assert_msg(read_text(&generator, text, &error) == BX_OK, "%s: %s", text, error.text);
    int32_t n = 0;
    ck_assert_msg(bx_generator_check(&generator, &n, &error) == BX_OK, "%s: %s", text, error.text);
    ck_assert_msg(bx_priors_generate(&priors, &generator, &error) == BX_OK, "%s: %s", text, error.text);
    ck_assert_str_eq(priors->name, "inline");
    ck_assert_int_eq(priors->n, n);
    return priors;
}

static void refuse(const char *text, bx_status status, const char *code, const char *path) {
    bx_generator generator;
    bx_priors *priors = NULL;
    bx_error error;
    bx_status got = read_text(&generator, text, &error);
    if (got == BX_OK)
        got = bx_priors_generate(&priors, &generator, &error);
    ck_assert_msg(got == status && error.status == status, "%s: status %d (%s)", text, got, error.text);
    ck_assert_msg(strcmp(error.code, code) == 0, "%s: %s (%s)", text, error.code, error.text);
    ck_assert_msg(strcmp(error.path, path) == 0, "%s: at %s (%s)", text, error.path, error.text);
    ck_assert_ptr_null(priors);
}

static void says(const char *text, const char *words) {
    bx_generator generator;
    bx_priors *priors = NULL;
    bx_error error;
    if (read_text(&generator, text, &error) == BX_OK)
        ck_assert_int_ne(bx_priors_generate(&priors, &generator, &error), BX_OK);
    ck_assert_msg(strstr(error.text, words) != NULL, "%s: %s", text, error.text);
}

static void same_boxes(const bx_priors *a, const bx_priors *b) {
    ck_assert_int_eq(a->n, b->n);
    ck_assert_int_eq(a->n_levels, b->n_levels);
    ck_assert(a->relative == b->relative);
    ck_assert(memcmp(a->boxes, b->boxes, (size_t)a->n * 16) == 0);
    for (int i = 0; i < a->n_levels; i++) {
        ck_assert_str_eq(a->levels[i].name, b->levels[i].name);
        ck_assert_int_eq(a->levels[i].first, b->levels[i].first);
        ck_assert_int_eq(a->levels[i].count, b->levels[i].count);
    }
}

static bx_priors *builtin(const char *name) {
    bx_priors *priors = NULL;
    ck_assert_int_eq(bx_priors_builtin(&priors, name, NULL), BX_OK);
    return priors;
}

static void is_builtin(const char *text, const char *name) {
    bx_priors *own = make(text), *known = builtin(name);
    same_boxes(own, known);
    bx_priors_free(own);
    bx_priors_free(known);
}

static void box_is(const bx_priors *priors, int32_t i, double cx, double cy, double w, double h) {
    const double owed[4] = {cx, cy, w, h};
    for (int c = 0; c < 4; c++)
        HOLDS(priors->boxes[4 * i + c] == (float)owed[c], "[%d][%d] is %.9g, not %.9g", i, c,
              (double)priors->boxes[4 * i + c], owed[c]);
}

/* ---- what parameters do ------------------------------------------------------------------------------------------ */

START_TEST(defaults) {
    is_builtin("{\"generator\":\"ssd\"}", "ssd300");
    is_builtin("{\"generator\":\"ssd-scales\"}", "ssd300-unit");
    is_builtin("{\"generator\":\"retinanet\"}", "retinanet-640x640");
    is_builtin("{\"generator\":\"grid\"}", "grid-128x128");
    is_builtin("{\"generator\":\"retinanet\",\"image_size\":[512,512]}", "retinanet-512x512");
    is_builtin("{\"image_size\":512,\"generator\":\"retinanet\"}", "retinanet-512x512");
    is_builtin("{\"generator\":\"retinanet\",\"image_size\":[320,97]}", "retinanet-320x97");
    is_builtin("{\"generator\":\"grid\",\"image_size\":[31,200],\"order\":\"ratio\"}", "grid-31x200");
    is_builtin("{\"generator\":\"ssd\",\"min_sizes\":[21,45,99,153,207,261],\"max_sizes\":[45,99,153,207,261,315]}",
               "ssd300-coco");
    is_builtin("{\"generator\":\"ssd-scales\",\"feature_maps\":[18,9,9,5,3,1],\"scales\":[0.2,0.2,0.375,0.55,0.725,"
               "0.9],\"aspect_ratios\":[[1,2,3,0.5,0.333],[1,2,3,0.5,0.333],[1,2,3,0.5,0.333],[1,2,3,0.5,0.333],"
               "[1,2,0.5],[1,2,0.5]],\"extra\":\"last\",\"level_names\":[\"mid\",\"end\",\"a\",\"b\",\"c\",\"d\"]}",
               "ssd300-efficientnet");
    for (int kind = 0; kind < BX_N_GENERATORS; kind++)
        ck_assert_int_eq(bx_generator_default((bx_generator_kind)kind)->kind, kind);
    ck_assert_ptr_null(bx_generator_name(BX_N_GENERATORS));
}
END_TEST

/* SSD512 as in the paper's VOC configuration has 24564 boxes. */
START_TEST(ssd512) {
    bx_priors *p = make("{\"generator\":\"ssd\",\"image_size\":512,\"feature_maps\":[64,32,16,8,4,2,1],"
                        "\"steps\":[8,16,32,64,128,256,512],"
                        "\"min_sizes\":[35.84,76.8,153.6,230.4,307.2,384.0,460.8],"
                        "\"max_sizes\":[76.8,153.6,230.4,307.2,384.0,460.8,537.6],"
                        "\"aspect_ratios\":[[2],[2,3],[2,3],[2,3],[2,3],[2],[2]]}");
    ck_assert_int_eq(p->n, 24564);
    ck_assert_int_eq(p->n_levels, 7);
    ck_assert(p->relative);
    ck_assert_str_eq(p->levels[6].name, "1x1");
    ck_assert_int_eq(p->levels[1].first, 16384);
    box_is(p, 0, 4.0 / 512, 4.0 / 512, 35.84 / 512, 35.84 / 512);
    box_is(p, 1, 4.0 / 512, 4.0 / 512, sqrt(35.84 / 512 * (76.8 / 512)), sqrt(35.84 / 512 * (76.8 / 512)));
    box_is(p, p->n - 4, .5, .5, .9, .9);
    box_is(p, p->n - 3, .5, .5, sqrt(.9 * (537.6 / 512)), sqrt(.9 * (537.6 / 512)));
    box_is(p, p->n - 1, .5, .5, 460.8 / 512 / sqrt(2), 1); /* clipped */
    bx_priors_free(p);
}
END_TEST

/* Columns before rows, widths before heights; no ratios leave the two squares. */
START_TEST(oblong_ssd) {
    bx_priors *p = make("{\"generator\":\"ssd\",\"image_size\":[200,100],\"feature_maps\":[[3,2]],\"steps\":[40],"
                        "\"min_sizes\":[50],\"max_sizes\":[128],\"aspect_ratios\":[[]]}");
    ck_assert_int_eq(p->n, 12);
    ck_assert_str_eq(p->levels[0].name, "3x2");
    box_is(p, 0, .1, .2, .25, .5);
    box_is(p, 1, .1, .2, .4, .8);
    box_is(p, 2, .3, .2, .25, .5);
    box_is(p, 6, .1, .6, .25, .5);
    box_is(p, 11, .5, .6, .4, .8);
    bx_priors_free(p);

    p = make("{\"generator\":\"ssd\",\"feature_maps\":[1],\"steps\":[700],\"min_sizes\":[330],\"max_sizes\":[363],"
             "\"aspect_ratios\":[[4]],\"clip\":false}");
    ck_assert_int_eq(p->n, 4);
    box_is(p, 0, .5 / (300.0 / 700), .5 / (300.0 / 700), 1.1, 1.1);
    box_is(p, 2, .5 / (300.0 / 700), .5 / (300.0 / 700), 330 / 300.0 * 2, 330 / 300.0 / 2);
    box_is(p, 3, .5 / (300.0 / 700), .5 / (300.0 / 700), 330 / 300.0 / 2, 330 / 300.0 * 2);
    bx_priors_free(p);
}
END_TEST

START_TEST(ssd_scales) {
    static const char text[] = "{\"generator\":\"ssd-scales\",\"feature_maps\":[[2,1],4],\"scales\":[0.36,1.44],"
                               "\"aspect_ratios\":[[4,1],[1]],\"extra\":\"%s\",\"clip\":%s}";
    static const struct {
        const char *extra, *clip;
        double boxes[3][2]; /* of a cell of the first level */
        double largest;
    } rows[] = {
        {"second", "false", {{.36 * 2, .36 / 2}, {.72, .72}, {.36, .36}}, 1.44},
        {"last", "false", {{.36 * 2, .36 / 2}, {.36, .36}, {.72, .72}}, 1.44},
        {"last", "true", {{.36 * 2, .36 / 2}, {.36, .36}, {.72, .72}}, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char filled[300];
        snprintf(filled, sizeof filled, text, rows[i].extra, rows[i].clip);
        bx_priors *p = make(filled);
        ck_assert_int_eq(p->n, 2 * 3 + 16 * 2);
        ck_assert_str_eq(p->levels[0].name, "2x1");
        ck_assert_str_eq(p->levels[1].name, "4x4");
        for (int b = 0; b < 6; b++) {
            double extra = sqrt(.36 * 1.44), w = rows[i].boxes[b % 3][0], h = rows[i].boxes[b % 3][1];
            box_is(p, b, b < 3 ? .25 : .75, .5, w == .72 && h == .72 ? extra : w, w == .72 && h == .72 ? extra : h);
        }
        box_is(p, 6 + 2, 1.5 / 4, .5 / 4, rows[i].largest, rows[i].largest);
        box_is(p, 6 + 3, 1.5 / 4, .5 / 4, 1, 1); /* the last level's extra */
        bx_priors_free(p);
    }
}
END_TEST

START_TEST(retinanet) {
    bx_priors *p = make("{\"generator\":\"retinanet\",\"image_size\":[20,11],\"strides\":[12,16],\"sizes\":[16,24.5],"
                        "\"ratios\":[4,1],\"scales\":[1,3]}");
    ck_assert(!p->relative);
    ck_assert_int_eq(p->n, 2 * 4 + 2 * 4);
    ck_assert_str_eq(p->levels[0].name, "s12"); /* no power of two */
    ck_assert_str_eq(p->levels[1].name, "p4");
    box_is(p, 0, 6, 6, 32, 8); /* ratios are w/h, areas stay */
    box_is(p, 1, 6, 6, 96, 24);
    box_is(p, 2, 6, 6, 16, 16);
    box_is(p, 3, 6, 6, 48, 48);
    box_is(p, 4, 18, 6, 32, 8);
    box_is(p, 8 + 2, 8, 8, 24.5, 24.5);
    bx_priors_free(p);
}
END_TEST

START_TEST(grid_by_cell) {
    bx_priors *p = make("{\"generator\":\"grid\",\"order\":\"cell\"}"), *q = builtin("grid-128x128");
    box_is(p, 0, 2, 2, 6, 16);
    box_is(p, 1, 2, 2, 9, 11);
    box_is(p, 2, 2, 2, 11, 9);
    box_is(p, 3, 6, 2, 6, 16);
    box_is(p, 32 * 3, 2, 6, 6, 16);
    ck_assert_int_eq(p->n, q->n);
    for (int l = 0; l < 3; l++) { /* the same boxes in another order */
        int32_t first = q->levels[l].first, cells = q->levels[l].count / 3;
        ck_assert_int_eq(p->levels[l].first, first);
        for (int32_t i = 0; i < 3 * cells; i++)
            HOLDS(!memcmp(p->boxes + 4 * (first + i), q->boxes + 4 * (first + i % 3 * cells + i / 3), 16), "%d", i);
    }
    bx_priors_free(p);
    bx_priors_free(q);
}
END_TEST

/* Halves go to the even neighbour, centres to whole pixels. */
START_TEST(grid_rounds) {
    bx_priors *p = make("{\"generator\":\"grid\",\"image_size\":14,\"strides\":[7,14,13],\"scales\":[2.5,3.5,4.5],"
                        "\"ratios\":[1]}");
    ck_assert_int_eq(p->n, 4 + 1 + 4);
    box_is(p, 0, 3, 3, 2, 2);
    box_is(p, 1, 10, 3, 2, 2);
    box_is(p, 2, 3, 10, 2, 2);
    box_is(p, 4, 7, 7, 4, 4);
    box_is(p, 5, 6, 6, 4, 4);
    box_is(p, 8, 19, 19, 4, 4);
    bx_priors_free(p);
}
END_TEST

START_TEST(level_names) {
    bx_priors *p = make("{\"generator\":\"grid\",\"level_names\":[\"fine\",\"\",\"fifteen.letters\"]}");
    ck_assert_str_eq(p->levels[0].name, "fine");
    ck_assert_str_eq(p->levels[1].name, "s8"); /* empty: made */
    ck_assert_str_eq(p->levels[2].name, "fifteen.letters");
    bx_priors_free(p);
}
END_TEST

START_TEST(limits) {
    bx_priors *p = make("{\"generator\":\"retinanet\",\"image_size\":16,"
                        "\"strides\":[16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16],"
                        "\"sizes\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,65536],"
                        "\"ratios\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"
                        "\"scales\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}");
    ck_assert_int_eq(p->n, 16 * 256);
    ck_assert_int_eq(p->n_levels, 16);
    bx_priors_free(p);
    p = make("{\"generator\":\"grid\",\"image_size\":[16384,256],\"strides\":[1],\"scales\":[8],\"ratios\":[1]}");
    ck_assert_int_eq(p->n, BX_MAX_PRIORS);
    ck_assert_float_eq(p->boxes[4 * (BX_MAX_PRIORS - 1)], 16383);
    bx_priors_free(p);
}
END_TEST

/* ---- descriptions ------------------------------------------------------------------------------------------------ */

/* The text after "generator": of a description, up to its end. */
static char *generator_text(const bx_priors *priors) {
    proto_buffer out = {0};
    proto_writer writer = {.out = &out};
    proto_generator_write(&writer, NULL, priors->generator);
    ck_assert(!out.failed);
    char *text = calloc(1, out.bytes + 1);
    memcpy(text, out.data, out.bytes);
    proto_buffer_free(&out);
    return text;
}

/* Every description makes the same set again, bit for bit. */
START_TEST(round_trip) {
    static const char *const own[] = {
        ("{\"generator\":\"ssd\",\"image_size\":[640,360],\"feature_maps\":[[40,23],20],\"steps\":[16.5,32],"
         "\"min_sizes\":[0.1,1e-2],\"max_sizes\":[333.3333333333333,0.30000000000000004],"
         "\"aspect_ratios\":[[],[0.1,7]],\"clip\":false}"),
        ("{\"generator\":\"ssd-scales\",\"feature_maps\":[7],\"scales\":[0.7],\"aspect_ratios\":[[3]],"
         "\"level_names\":[\"only\"]}"),
        "{\"generator\":\"retinanet\",\"scales\":[1.1,1.3333333333333333]}",
        "{\"generator\":\"grid\",\"order\":\"cell\",\"image_size\":[17,33]}",
    };
    const size_t n_own = sizeof own / sizeof *own;
    const char *name;
    for (size_t i = 0; i < n_own || bx_priors_name(i - n_own); i++) {
        name = i < n_own ? NULL : bx_priors_name(i - n_own);
        bx_priors *priors = name ? builtin(name) : make(own[i]);
        char *text = generator_text(priors);
        bx_priors *again = make(text);
        char *text_again = generator_text(again);
        same_boxes(priors, again);
        ck_assert_str_eq(text, text_again);
        free(text);
        free(text_again);
        bx_priors_free(priors);
        bx_priors_free(again);
    }
}
END_TEST

START_TEST(description) {
    bx_priors *priors = builtin("ssd300-efficientnet");
    proto_buffer out = {0};
    proto_node *root = NULL;
    proto_priors_describe(&out, priors);
    ck_assert_int_eq(proto_json_parse(&root, out.data, out.bytes, 1 << 20, NULL), BX_OK);
    ck_assert_str_eq(proto_json_string(proto_json_get(root, "name")), "ssd300-efficientnet");
    ck_assert_str_eq(proto_json_string(proto_json_get(root, "units")), "relative");
    ck_assert_int_eq(proto_json_int(proto_json_get(root, "count")), 3106);
    ck_assert_uint_eq(proto_json_size(proto_json_get(root, "levels")), 6);
    bx_generator generator;
    bx_priors *again = NULL;
    ck_assert_int_eq(proto_generator_read(&generator, proto_json_get(root, "generator"), NULL), BX_OK);
    ck_assert_int_eq(bx_priors_generate(&again, &generator, NULL), BX_OK);
    same_boxes(priors, again);
    bx_priors_free(again);

    bx_error error = {0}; /* the description itself is no generator object, and the refusal says so */
    ck_assert_int_eq(proto_generator_read(&generator, root, &error), BX_INVALID);
    ck_assert_str_eq(error.path, "priors.generator");
    ck_assert_ptr_nonnull(strstr(error.text, "description"));
    proto_json_free(root);
    proto_buffer_free(&out);

    proto_writer writer = {.out = &out};
    proto_priors_row(&writer, priors);
    ck_assert_int_eq(proto_json_parse(&root, out.data, out.bytes, 1 << 20, NULL), BX_OK);
    ck_assert_str_eq(proto_json_string(proto_json_get(root, "units")), "relative");
    ck_assert(proto_json_bool(proto_json_get(root, "relative")));
    ck_assert_int_eq(proto_json_int(proto_json_get(root, "levels")), 6);
    ck_assert_int_eq(proto_json_int(proto_json_get(root, "count")), 3106);
    ck_assert_ptr_null(proto_json_get(root, "generator"));
    proto_json_free(root);
    proto_buffer_free(&out);
    bx_priors_free(priors);
}
END_TEST

START_TEST(description_of_boxes) {
    const float boxes[2][4] = {{50, 50, 20, 20}, {80, 80, 40, 40}};
    bx_priors *priors = NULL;
    proto_buffer out = {0};
    proto_node *root = NULL;
    ck_assert_int_eq(bx_priors_new(&priors, boxes[0], 2, NULL), BX_OK);
    ck_assert_int_eq(bx_priors_rename(priors, "mine", NULL), BX_OK);
    proto_priors_describe(&out, priors);
    ck_assert_int_eq(proto_json_parse(&root, out.data, out.bytes, 1 << 20, NULL), BX_OK);
    ck_assert_str_eq(proto_json_string(proto_json_get(root, "name")), "mine");
    ck_assert_str_eq(proto_json_string(proto_json_get(root, "units")), "pixels");
    ck_assert_ptr_null(proto_json_get(root, "generator"));
    proto_json_free(root);
    proto_buffer_free(&out);
    bx_priors_free(priors);
}
END_TEST

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

#define SSD(members)       "{\"generator\":\"ssd\"," members "}"
#define SCALES(members)    "{\"generator\":\"ssd-scales\"," members "}"
#define RETINANET(members) "{\"generator\":\"retinanet\"," members "}"
#define GRID(members)      "{\"generator\":\"grid\"," members "}"
#define SEVENTEEN          "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"

START_TEST(refused) {
    static const struct {
        const char *text;
        const char *code, *path;
    } rows[] = {
        {"{}", "missing_member", "priors.generator"},
        {"{\"image_size\":[1,2]}", "missing_member", "priors.generator"},
        {"{\"generator\":null}", "type_mismatch", "priors.generator"},
        {"{\"generator\":3}", "type_mismatch", "priors.generator"},
        {"{\"generator\":\"\"}", "unknown_generator", "priors.generator"},
        {"{\"generator\":\"retina\"}", "unknown_generator", "priors.generator"},
        {"{\"generator\":\"ssd300\"}", "unknown_generator", "priors.generator"},
        /* members of another kind, or of none */
        {SSD("\"strides\":[1]"), "unknown_member", "priors.strides"},
        {SSD("\"extra\":\"last\""), "unknown_member", "priors.extra"},
        {SCALES("\"image_size\":300"), "unknown_member", "priors.image_size"},
        {RETINANET("\"clip\":true"), "unknown_member", "priors.clip"},
        {GRID("\"sizes\":[1,2,3]"), "unknown_member", "priors.sizes"},
        {GRID("\"orders\":\"cell\""), "unknown_member", "priors.orders"},
        {GRID("\"a b\":1"), "unknown_member", "priors"},
        /* types */
        {SSD("\"image_size\":\"300\""), "type_mismatch", "priors.image_size"},
        {SSD("\"image_size\":300.0"), "type_mismatch", "priors.image_size"},
        {SSD("\"image_size\":[300,null]"), "type_mismatch", "priors.image_size[1]"},
        {SSD("\"feature_maps\":38"), "type_mismatch", "priors.feature_maps"},
        {SSD("\"feature_maps\":{}"), "type_mismatch", "priors.feature_maps"},
        {SSD("\"feature_maps\":[38,19,10,5,3,true]"), "type_mismatch", "priors.feature_maps[5]"},
        {SSD("\"feature_maps\":[38,[19,1.5],10,5,3,1]"), "type_mismatch", "priors.feature_maps[1][1]"},
        {SSD("\"steps\":[8,16,32,64,100,\"300\"]"), "type_mismatch", "priors.steps[5]"},
        {SSD("\"aspect_ratios\":[2,[2,3],[2,3],[2,3],[2],[2]]"), "type_mismatch", "priors.aspect_ratios[0]"},
        {SSD("\"aspect_ratios\":[[2],[2,[3]],[2,3],[2,3],[2],[2]]"), "type_mismatch", "priors.aspect_ratios[1][1]"},
        {SSD("\"clip\":1"), "type_mismatch", "priors.clip"},
        {SSD("\"clip\":null"), "type_mismatch", "priors.clip"},
        {SCALES("\"extra\":true"), "type_mismatch", "priors.extra"},
        {RETINANET("\"strides\":[8,16,32,64,128.5]"), "type_mismatch", "priors.strides[4]"},
        {RETINANET("\"ratios\":1"), "type_mismatch", "priors.ratios"},
        {RETINANET("\"scales\":[1,\"2\"]"), "type_mismatch", "priors.scales[1]"},
        {GRID("\"level_names\":[\"a\",\"b\",3]"), "type_mismatch", "priors.level_names[2]"},
        /* ranges */
        {SSD("\"image_size\":0"), "priors_range", "priors.image_size[0]"},
        {SSD("\"image_size\":[300,16385]"), "priors_range", "priors.image_size[1]"},
        {SSD("\"image_size\":[300,-4294966996]"), "priors_range", "priors.image_size[1]"}, /* 300 - 2^32 */
        {SSD("\"image_size\":4294967596"), "priors_range", "priors.image_size[0]"},        /* 300 + 2^32 */
        {SSD("\"feature_maps\":[38,19,0,5,3,1]"), "priors_range", "priors.feature_maps[2][0]"},
        {SSD("\"feature_maps\":[38,19,[1,-1],5,3,1]"), "priors_range", "priors.feature_maps[2][1]"},
        {SSD("\"feature_maps\":[]"), "priors_conflict", "priors.feature_maps"},
        {SSD("\"feature_maps\":[],\"steps\":[],\"min_sizes\":[],\"max_sizes\":[],\"aspect_ratios\":[]"), "priors_range",
         "priors.feature_maps"},
        {SSD("\"feature_maps\":" SEVENTEEN), "priors_range", "priors.feature_maps"},
        {SSD("\"steps\":[8,16,32,64,100,0]"), "priors_range", "priors.steps[5]"},
        {SSD("\"min_sizes\":[30,-60,111,162,213,264]"), "priors_range", "priors.min_sizes[1]"},
        {SSD("\"max_sizes\":[65537,111,162,213,264,315]"), "priors_range", "priors.max_sizes[0]"},
        {SSD("\"aspect_ratios\":[[2],[2,3],[2,3],[2,0],[2],[2]]"), "priors_range", "priors.aspect_ratios[3][1]"},
        {SSD("\"aspect_ratios\":[[2],[2,3],[2,3],[2,3],[2]," SEVENTEEN "]"), "priors_range", "priors.aspect_ratios[5]"},
        {SCALES("\"aspect_ratios\":[[2],[2,3],[2,3],[2,3],[],[2]]"), "priors_range", "priors.aspect_ratios[4]"},
        {SCALES("\"extra\":\"first\""), "priors_range", "priors.extra"},
        {SCALES("\"scales\":[0.1,0.2,0.375,0.55,0.725,0]"), "priors_range", "priors.scales[5]"},
        {RETINANET("\"strides\":[8,16,32,64,16385]"), "priors_range", "priors.strides[4]"},
        {RETINANET("\"strides\":[8,16,0,64,128]"), "priors_range", "priors.strides[2]"},
        {RETINANET("\"strides\":" SEVENTEEN), "priors_range", "priors.strides"},
        {RETINANET("\"ratios\":[]"), "priors_range", "priors.ratios"},
        {RETINANET("\"scales\":[]"), "priors_range", "priors.scales"},
        {RETINANET("\"scales\":" SEVENTEEN), "priors_range", "priors.scales"},
        {RETINANET("\"scales\":[1,-1]"), "priors_range", "priors.scales[1]"},
        {GRID("\"order\":\"row\""), "priors_range", "priors.order"},
        {GRID("\"level_names\":[\"a\",\"sixteen.letters!\",\"c\"]"), "priors_range", "priors.level_names[1]"},
        {GRID("\"level_names\":[\"a\",\"b b\",\"c\"]"), "priors_range", "priors.level_names[1]"},
        {GRID("\"level_names\":[\"a\",\"b\",\"\xC3\xA9\"]"), "priors_range", "priors.level_names[2]"},
        /* lists that disagree */
        {SSD("\"feature_maps\":[38,19]"), "priors_conflict", "priors.feature_maps"},
        {SSD("\"steps\":[8,16]"), "priors_conflict", "priors.steps"},
        {SSD("\"feature_maps\":[38,19],\"steps\":[8,16,32]"), "priors_conflict", "priors.steps"},
        {SSD("\"aspect_ratios\":[[2]]"), "priors_conflict", "priors.aspect_ratios"},
        {SCALES("\"scales\":[0.1]"), "priors_conflict", "priors.scales"},
        {RETINANET("\"sizes\":[32,64,128,256]"), "priors_conflict", "priors.sizes"},
        {GRID("\"strides\":[4,8],\"scales\":[10,20],\"level_names\":[\"a\"]"), "priors_conflict", "priors.level_names"},
        /* values that make no box of float32 */
        {GRID("\"scales\":[10,0.4,40]"), "prior_degenerate", "priors.scales[1]"}, /* rounded to 0 */
        {SSD("\"min_sizes\":[30,60,111,1e-30,213,264]"), "prior_degenerate", "priors.min_sizes[3]"},
        {RETINANET("\"ratios\":[1e-300]"), "prior_degenerate", "priors.sizes[0]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        refuse(rows[i].text, BX_INVALID, rows[i].code, rows[i].path);
}
END_TEST

START_TEST(refused_shapes) {
    refuse(SSD("\"image_size\":[1,2,3]"), BX_SHAPE, "shape", "priors.image_size");
    refuse(SSD("\"image_size\":[]"), BX_SHAPE, "shape", "priors.image_size");
    refuse(SSD("\"feature_maps\":[38,[19],10,5,3,1]"), BX_SHAPE, "shape", "priors.feature_maps[1]");
    /* too many priors, also where 32 bits would wrap round to few */
    refuse(GRID("\"image_size\":[16384,257],\"strides\":[1],\"scales\":[8],\"ratios\":[1]"), BX_SHAPE, "shape",
           "priors");
    refuse(GRID("\"image_size\":16384,\"strides\":[1],\"scales\":[8],"
                "\"ratios\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"),
           BX_SHAPE, "shape", "priors"); /* 2^32 */
    refuse(RETINANET("\"image_size\":16384,\"strides\":[1,1,1,1,1]"), BX_SHAPE, "shape", "priors");
    says(GRID("\"image_size\":16384,\"strides\":[1],\"scales\":[8],\"ratios\":[1]"), "268435456");
}
END_TEST

START_TEST(sentences) {
    says("{\"generator\":\"retinanett\"}", "did you mean \"retinanet\"");
    says("{\"generator\":\"zzzz\"}", "ssd, ssd-scales, retinanet, grid");
    says(SSD("\"min_size\":[1]"), "did you mean \"min_sizes\"");
    says(GRID("\"ratio\":[1]"), "did you mean \"ratios\"");
    says(SSD("\"feature_maps\":[38,19,10,5,3,1,1]"), "steps has 6 entries by default, but feature_maps has 7");
    says(SSD("\"min_sizes\":[1,2]"), "min_sizes has 2 entries, but feature_maps has 6 by default");
    says(SSD("\"feature_maps\":[38,19],\"steps\":[1]"), "steps has 1 entries, but feature_maps has 2");
    says(SSD("\"steps\":[8,16,32,64,100,-2.5]"), "steps[5] is -2.5");
    says(SCALES("\"extra\":\"third\""), "\"second\" or \"last\"");
    says(GRID("\"order\":\"row\""), "\"ratio\" or \"cell\"");
    /* a misspelt list is named before the lists that disagree for want of it */
    says(SSD("\"feature_maps\":[38],\"step\":[8]"), "\"step\"");
}
END_TEST

START_TEST(untouched_on_failure) {
    bx_generator generator;
    bx_error error;
    memset(&generator, 0x5a, sizeof generator);
    bx_generator before = generator;
    ck_assert_int_eq(read_text(&generator, SSD("\"clip\":0"), &error), BX_INVALID);
    ck_assert(memcmp(&generator, &before, sizeof before) == 0);
    ck_assert_int_eq(read_text(&generator, "{\"generator\":\"no\"}", &error), BX_INVALID);
    ck_assert(memcmp(&generator, &before, sizeof before) == 0);
}
END_TEST

/* What only a program can get wrong. */
START_TEST(refused_structs) {
    bx_generator g;
    bx_error error;
    int32_t n = -5;
#define REFUSED(change, at)                                                                                            \
    g = *bx_generator_default(BX_GENERATOR_GRID);                                                                      \
    error = (bx_error){0};                                                                                             \
    change;                                                                                                            \
    ck_assert_msg(bx_generator_check(&g, &n, &error) == BX_INVALID, #change);                                          \
    ck_assert_str_eq(error.path, at);                                                                                  \
    ck_assert_str_eq(error.code, "priors_range");                                                                      \
    ck_assert_int_eq(n, -5)
    REFUSED(g.kind = BX_N_GENERATORS, "priors.generator");
    REFUSED(g.n_levels = 0, "priors.strides");
    REFUSED(g.n_levels = -1, "priors.strides");
    REFUSED(g.n_levels = BX_MAX_LEVELS + 1, "priors.strides");
    REFUSED(g.ratios.n = -1, "priors.ratios");
    REFUSED(g.ratios.n = BX_MAX_RATIOS + 1, "priors.ratios");
    REFUSED(g.ratios.at[1] = NAN, "priors.ratios[1]");
    REFUSED(g.sizes[2] = NAN, "priors.scales[2]");
    REFUSED(g.sizes[2] = INFINITY, "priors.scales[2]");
    REFUSED(memset(g.level_names[1], 'x', 16), "priors.level_names[1]");
#undef REFUSED
    /* what a kind does not read does not matter */
    g = *bx_generator_default(BX_GENERATOR_GRID);
    g.steps[0] = g.max_sizes[0] = NAN;
    g.scales.n = g.level_ratios[0].n = -1;
    g.feature_maps[0][0] = -1;
    g.clip = g.extra_last = true;
    ck_assert_int_eq(bx_generator_check(&g, &n, NULL), BX_OK);
    ck_assert_int_eq(n, 4032);
    bx_priors *p = NULL, *q = builtin("grid-128x128");
    ck_assert_int_eq(bx_priors_generate(&p, &g, NULL), BX_OK);
    same_boxes(p, q);
    bx_priors_free(p);
    bx_priors_free(q);
}
END_TEST

int main(void) {
    proto_init();
    Suite *suite = suite_create("generator");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, defaults);
    tcase_add_test(tests, ssd512);
    tcase_add_test(tests, oblong_ssd);
    tcase_add_test(tests, ssd_scales);
    tcase_add_test(tests, retinanet);
    tcase_add_test(tests, grid_by_cell);
    tcase_add_test(tests, grid_rounds);
    tcase_add_test(tests, level_names);
    tcase_add_test(tests, limits);
    tcase_add_test(tests, round_trip);
    tcase_add_test(tests, description);
    tcase_add_test(tests, description_of_boxes);
    tcase_add_test(tests, refused);
    tcase_add_test(tests, refused_shapes);
    tcase_add_test(tests, sentences);
    tcase_add_test(tests, untouched_on_failure);
    tcase_add_test(tests, refused_structs);
    return suite_run(suite);
}
