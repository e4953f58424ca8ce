/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status texts, the caller-owned error (the first one wins, NULL is accepted) and the "did you mean" helper.
 */
#include <stdlib.h>
#include <string.h>

#include "boxloss.h"
#include "../support/suite.h"

START_TEST(every_status_has_a_text) {
    static const struct {
        bx_status status;
        const char *text;
    } rows[] = {
#define BX_ROW(id, text) {BX_##id, text},
        BX_STATUS_ROWS(BX_ROW)
#undef BX_ROW
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ck_assert_str_eq(bx_status_text(rows[i].status), rows[i].text);
    }
    ck_assert_str_eq(bx_status_text((bx_status)99), "unknown status");
}
END_TEST

START_TEST(the_first_error_wins) {
    bx_error error = {0};
    ck_assert_int_eq(bx_fail(&error, BX_INVALID, "first", "number %d", 7), BX_INVALID);
    ck_assert_int_eq(bx_at(&error, "annotations[%d].boxes[%d]", 3, 7), BX_INVALID);
    ck_assert_int_eq(bx_fail(&error, BX_NOMEM, "second", "number %d", 8), BX_NOMEM);
    ck_assert_int_eq(bx_at(&error, "elsewhere"), BX_INVALID);
    ck_assert_int_eq(error.status, BX_INVALID);
    ck_assert_str_eq(error.code, "first");
    ck_assert_str_eq(error.text, "number 7");
    ck_assert_str_eq(error.path, "annotations[3].boxes[7]");
}
END_TEST

START_TEST(an_error_without_a_place) {
    bx_error error;
    memset(&error, 0x5a, sizeof error);
    error.status = BX_OK; /* all that a caller has to clear */
    bx_fail(&error, BX_NOMEM, "out_of_memory", "no memory");
    ck_assert_str_eq(error.path, "");
    ck_assert_str_eq(error.text, "no memory");
}
END_TEST

START_TEST(nobody_listens) {
    ck_assert_int_eq(bx_fail(NULL, BX_SHAPE, "shape", "%d", 1), BX_SHAPE);
    bx_at(NULL, "priors[%d]", 1);
}
END_TEST

START_TEST(long_texts_are_cut) {
    char word[1000];
    memset(word, 'x', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    bx_error error = {0};
    bx_fail(&error, BX_INVALID, "long", "%s", word);
    bx_at(&error, "%s", word);
    ck_assert_uint_eq(strlen(error.text), sizeof error.text - 1);
    ck_assert_uint_eq(strlen(error.path), sizeof error.path - 1);
}
END_TEST

static const char *candidate(size_t i) {
    static const char *const names[] = {"images", "classes", "levels", "objects", "level", "assignment"};
    return i < sizeof names / sizeof *names ? names[i] : NULL;
}

static const char *nothing(size_t i) {
    (void)i;
    return NULL;
}

START_TEST(the_nearest_name) {
    ck_assert_str_eq(bx_nearest("images", candidate), "images");
    ck_assert_str_eq(bx_nearest("image", candidate), "images");    /* one is missing */
    ck_assert_str_eq(bx_nearest("imagess", candidate), "images");  /* one too many */
    ck_assert_str_eq(bx_nearest("clazzes", candidate), "classes"); /* two differ */
    ck_assert_str_eq(bx_nearest("levels", candidate), "levels");   /* exact beats near */
    ck_assert_str_eq(bx_nearest("level_", candidate), "levels");   /* of two at one step, the first listed */
    ck_assert_str_eq(bx_nearest("asignmnt", candidate), "assignment");
    ck_assert_ptr_null(bx_nearest("zzzzzzzz", candidate));
    ck_assert_ptr_null(bx_nearest("", candidate));
    ck_assert_ptr_null(bx_nearest("images", nothing));
}
END_TEST

START_TEST(long_names_are_near_nothing) {
    char word[400];
    for (size_t n = 63; n < sizeof word; n += 7) {
        memset(word, 'x', n);
        word[n] = '\0';
        ck_assert_msg(!bx_nearest(word, candidate), "a name of %zu letters", n);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("error");
    TCase *tests = tcase_create("all");
    suite_add_tcase(suite, tests);
    tcase_add_test(tests, every_status_has_a_text);
    tcase_add_test(tests, the_first_error_wins);
    tcase_add_test(tests, an_error_without_a_place);
    tcase_add_test(tests, nobody_listens);
    tcase_add_test(tests, long_texts_are_cut);
    tcase_add_test(tests, the_nearest_name);
    tcase_add_test(tests, long_names_are_near_nothing);
    return suite_run(suite);
}
