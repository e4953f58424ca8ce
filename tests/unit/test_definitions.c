/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What callers define and requests name: names, prior sets, the built-in catalog.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto.h"
#include "../support/suite.h"
#include "../support/tensors.h"

static const proto_limits limits = {.json_memory = 1 << 20};

#define BOXES "[[0.25,0.25,0.5,0.5],[0.5,0.5,1,1]]"
#define GRID  "{\"generator\":\"grid\",\"image_size\":[32,32]}"

static const bx_priors *define(proto_encoding encoding, const char *name, const void *body, size_t bytes) {
    const bx_priors *made = NULL;
    bx_error error = {0};
    ck_assert_msg(proto_priors_read(&made, name, encoding, body, bytes, &limits, &error) == BX_OK, "%s", error.text);
    ck_assert_str_eq(made->name, name);
    ck_assert_int_eq(atomic_load(&made->references), 1);
    return made;
}

static void refuse_definition(proto_encoding encoding, const char *name, const void *body, size_t bytes,
                              bx_status status, const char *code, const char *pointer) {
    const bx_priors *untouched = NULL;
    bx_error error = {0};
    char where[160];
    ck_assert_int_eq(proto_priors_read(&untouched, name, encoding, body, bytes, &limits, &error), status);
    ck_assert_ptr_null(untouched);
    ck_assert_str_eq(error.code, code);
    proto_pointer(where, NULL, encoding, &error);
    ck_assert_str_eq(where, pointer);
    ck_assert_int_eq(proto_priors_read(&untouched, name, encoding, body, bytes, &limits, NULL), status);
}

static void refuse_text(const char *name, const char *body, bx_status status, const char *code, const char *pointer) {
    refuse_definition(PROTO_JSON, name, body, strlen(body), status, code, pointer);
}

START_TEST(prior_sets) {
    const bx_priors *set = define(PROTO_JSON, "a.b_c-1", GRID, strlen(GRID));
    ck_assert(set->generator && set->n == 252 && !set->relative);
    bx_priors_free(set);
    const char *boxes = "{\"priors\":" BOXES "}";
    set = define(PROTO_JSON, "mine", boxes, strlen(boxes));
    ck_assert(!set->generator && set->n == 2 && set->boxes[7] == 1);
    bx_priors_free(set);
    static const float values[8] = {.25f, .25f, .5f, .5f, .5f, .5f, 1, 1};
    size_t bytes;
    struct tensors t = {0};
    tensors_add(&t, "priors", "F32", "[2,4]", values, sizeof values);
    char *file = tensors_file(&t, &bytes);
    set = define(PROTO_SAFETENSORS, "mine", file, bytes);
    ck_assert_mem_eq(set->boxes, values, sizeof values);
    bx_priors_free(set);
    refuse_definition(PROTO_SAFETENSORS, "a/b", file, bytes, BX_INVALID, "invalid_name", "");
    refuse_definition(PROTO_SAFETENSORS, "mine", file, bytes - 1, BX_MALFORMED, "bin_offset", "");
    free(file);

    char name[65];
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    refuse_text(name, GRID, BX_INVALID, "invalid_name", "");
    refuse_text("", GRID, BX_INVALID, "invalid_name", "");
    bx_priors_free(define(PROTO_JSON, name + 1, GRID, strlen(GRID)));
    refuse_text("mine", "{", BX_MALFORMED, "json_syntax", "");
    refuse_text("mine", "[[0.5,0.5,1,1]]", BX_MALFORMED, "json_not_object", "");
    refuse_text("mine", "{}", BX_INVALID, "missing_member", "/priors/generator");
    refuse_text("mine", "{\"priors\":\"ssd300\"}", BX_INVALID, "type_mismatch", "/priors");
    refuse_text("mine", "{\"priors\":" BOXES ",\"generator\":\"grid\"}", BX_INVALID, "unknown_member", "/priors");
    refuse_text("mine", "{\"priors\":[[1,2,3]]}", BX_SHAPE, "shape", "/priors");
    refuse_text("mine", "{\"priors\":[[0.5,0.5,1,-1]]}", BX_INVALID, "prior_degenerate", "/priors/0");

    static const struct {
        const char *name, *dtype, *shape, *extra;
        bx_status status;
        const char *code, *where;
    } rows[] = {{"boxes", "F32", "[2,4]", NULL, BX_INVALID, "unknown_member", "boxes"},
                {"priors", "F16", "[4,4]", NULL, BX_INVALID, "dtype", "priors"},
                {"priors", "F32", "[4,2]", NULL, BX_SHAPE, "shape", "priors"},
                {"priors", "F32", "[2,4]", "loc", BX_INVALID, "unknown_member", "loc"},
                {NULL, NULL, NULL, NULL, BX_INVALID, "missing_member", "priors"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        t = (struct tensors){0};
        if (rows[i].name)
            tensors_add(&t, rows[i].name, rows[i].dtype, rows[i].shape, values, sizeof values);
        if (rows[i].extra)
            tensors_add(&t, rows[i].extra, "F32", "[0]", NULL, 0);
        file = tensors_file(&t, &bytes);
        refuse_definition(PROTO_SAFETENSORS, "mine", file, bytes, rows[i].status, rows[i].code, rows[i].where);
        free(file);
    }
}
END_TEST

START_TEST(names) {
    static const char *const bad[] = {"", " ", "a b", "a/b", "n\n", "\xc3\xa9", "a\"", "{", ".", "..", ".a", "-", "_a"};
    char name[65];
    bx_error error = {0};
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    ck_assert_int_eq(proto_name_check("A-Z_a.z-09", &error), BX_OK);
    ck_assert_int_eq(proto_name_check(name + 1, &error), BX_OK);
    ck_assert_int_eq(proto_name_check(name, NULL), BX_INVALID);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error = (bx_error){0};
        ck_assert_int_eq(proto_name_check(bad[i], &error), BX_INVALID);
        ck_assert_str_eq(error.code, "invalid_name");
    }
}
END_TEST

START_TEST(the_built_in_catalog) {
    const proto_catalog *c = &proto_catalog_builtin;
    const bx_priors *a = NULL, *b = NULL;
    bx_criterion *criterion = NULL;
    bx_error error = {0};
    ck_assert_int_eq(c->priors(c->context, "ssd300", &a, &error), BX_OK);
    ck_assert_int_eq(c->priors(c->context, "ssd300", &b, &error), BX_OK);
    ck_assert(a != b && a->n == 8732 && atomic_load(&a->references) == 1);
    bx_priors_free(a);
    bx_priors_free(b);
    ck_assert_int_eq(c->priors(c->context, "ssd30", &a, &error), BX_INVALID);
    ck_assert_str_eq(error.code, "unknown_priors");
    const bx_criterion *preset = bx_criterion_preset("ssd-keras");
    ck_assert_int_eq(c->criterion(c->context, "ssd-keras", &criterion, NULL), BX_OK);
    ck_assert_ptr_ne(criterion, preset);
    ck_assert_str_eq(criterion->text, preset->text);
    bx_criterion_free(criterion);
    error = (bx_error){0};
    ck_assert_int_eq(c->criterion(c->context, "ssd-kera", &criterion, &error), BX_INVALID);
    ck_assert_str_eq(error.code, "unknown_criterion");
    ck_assert_ptr_nonnull(strstr(error.text, "did you mean \"ssd-keras\"?"));
}
END_TEST

int main(void) {
    proto_init();
    TCase *cases = tcase_create("definitions");
    tcase_add_test(cases, prior_sets);
    tcase_add_test(cases, names);
    tcase_add_test(cases, the_built_in_catalog);
    Suite *suite = suite_create("definitions");
    suite_add_tcase(suite, cases);
    return suite_run(suite);
}
