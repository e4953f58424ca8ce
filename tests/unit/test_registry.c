/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry: names, references, the memory it takes and gives back, and threads that use it all at once.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server.h"
#include "../support/suite.h"

#define LIMIT ((size_t)64 << 20)

static char directory[64];
static memory *budget;
static registry *g;
static data_dir *place;

static void open_registry(void) {
    bx_error error = {0};
    ck_assert_msg(registry_open(&g, budget, place, &error) == BX_OK, "%s", error.text);
}

static void setup(void) {
    log_setup(LOG_ERROR, false);
    proto_init();
    strcpy(directory, "/tmp/lossd-registry-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    budget = memory_new(LIMIT);
    place = data_dir_new(directory);
    open_registry();
}

static void teardown(void) {
    char command[128];
    registry_close(g);
    data_dir_free(place);
    ck_assert_uint_eq(memory_used(budget), 0);
    memory_free(budget);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static bx_status put(definition kind, const char *name, const char *body, bool *created, bx_error *error) {
    proto_buffer description = {0};
    const registration d = {kind, name, PROTO_JSON, body, strlen(body), {.json_memory = 1 << 20}, NULL, CONDITION_NONE};
    bx_status status = registry_put(g, &d, created, &description, error);
    HOLDS(status != BX_OK ? !description.data : description.bytes > 10, "%s: a description of %zu bytes", name,
          description.bytes);
    proto_buffer_free(&description);
    return status;
}

static void must_put(definition kind, const char *name, const char *body, bool is_new) {
    bx_error error = {0};
    bool created = !is_new;
    HOLDS(put(kind, name, body, &created, &error) == BX_OK, "%s: %s", name, error.text);
    HOLDS(created == is_new, "%s: created %d", name, created);
}

static void must_fail(bx_status status, const bx_error *error, const char *code, const char *text) {
    ck_assert_int_ne(status, BX_OK);
    ck_assert_int_eq(error->status, status);
    ck_assert_str_eq(error->code, code);
    ck_assert_msg(strstr(error->text, text) != NULL, "%s", error->text);
}

static bx_status find_priors(const char *name, bool makes, const bx_priors **out, bx_error *error) {
    const proto_catalog *catalog = registry_catalog(g, makes);
    return catalog->priors(catalog->context, name, out, error);
}

static const bx_priors *must_find(const char *name) {
    const bx_priors *priors = NULL;
    bx_error error = {0};
    HOLDS(find_priors(name, true, &priors, &error) == BX_OK, "%s: %s", name, error.text);
    HOLDS(!strcmp(priors->name, name), "%s is %s", name, priors->name);
    return priors;
}

static bx_status find_criterion(const char *name, bx_criterion **out, bx_error *error) {
    const proto_catalog *catalog = registry_catalog(g, true);
    return catalog->criterion(catalog->context, name, out, error);
}

static double loc_weight(const char *name) {
    bx_criterion *criterion = NULL;
    HOLDS(find_criterion(name, &criterion, NULL) == BX_OK, "there is no %s", name);
    double weight = criterion->weights.loc;
    bx_criterion_free(criterion);
    return weight;
}

#define THREE "{\"priors\":[[0.2,0.2,0.4,0.4],[0.7,0.7,0.4,0.4],[0.5,0.5,0.2,0.2]]}"
#define TWO   "{\"priors\":[[0.2,0.2,0.4,0.4],[0.7,0.7,0.4,0.4]]}"

/* ---- names ------------------------------------------------------------------------------------------------------- */

START_TEST(test_built_in) {
    for (size_t i = 0; bx_priors_name(i); i++) {
        const bx_priors *a = must_find(bx_priors_name(i)), *b = must_find(bx_priors_name(i));
        ck_assert_ptr_eq(a, b);
        bx_priors_free(a);
        bx_priors_free(b);
    }
    for (size_t i = 0; bx_criterion_at(i); i++) {
        ck_assert_double_eq(loc_weight(bx_criterion_at(i)->name), 1);
    }
    ck_assert_uint_eq(memory_used(budget), 0); /* there from the start */
    ck_assert(registry_ready(g));
}
END_TEST

START_TEST(test_unknown) {
    const bx_priors *priors;
    bx_criterion *criterion;
    bx_error error[6] = {{0}};
    must_put(DEFINITION_PRIORS, "camera-7", THREE, true);
    must_put(DEFINITION_CRITERION, "trainer-7", "{}", true);
    must_fail(find_priors("camera-8", true, &priors, &error[0]), &error[0], "unknown_priors", "\"camera-7\"");
    must_fail(find_priors("ssd301", true, &priors, &error[1]), &error[1], "unknown_priors", "\"ssd300\"");
    must_fail(find_criterion("trainer-9", &criterion, &error[2]), &error[2], "unknown_criterion", "\"trainer-7\"");
    must_fail(find_criterion("ssd-kers", &criterion, &error[3]), &error[3], "unknown_criterion", "\"ssd-keras\"");
    must_fail(registry_delete(g, DEFINITION_PRIORS, "camera-6", &error[4]), &error[4], "unknown_priors",
              "\"camera-7\"");
    must_fail(registry_delete(g, DEFINITION_CRITERION, "camera-7", &error[5]), &error[5], "unknown_criterion",
              "camera");
}
END_TEST

START_TEST(test_names_that_cannot_be_registered) {
    static const char *const reserved[][2] = {
        {"ssd300", "ssd-keras"}, {"grid-9x9", "ssd-multibox"}, {"inline", "inline"}};
    static const char *const bad[] = {
        "",   "a b", "a/b", "\xc3\xa4", ".",
        "..", ".a",  "-a",  "_",        "0123456789012345678901234567890123456789012345678901234567890123"};
    for (int kind = 0; kind < N_DEFINITIONS; kind++) {
        for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
            bx_error error[2] = {{0}};
            must_fail(put((definition)kind, reserved[i][kind], "{}", NULL, &error[0]), &error[0], "name_reserved", "");
            must_fail(registry_delete(g, (definition)kind, reserved[i][kind], &error[1]), &error[1], "name_reserved",
                      "");
        }
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            bx_error error = {0};
            must_fail(put((definition)kind, bad[i], "{}", NULL, &error), &error, "invalid_name", "1 to 63");
        }
    }
}
END_TEST

/* ---- registering ------------------------------------------------------------------------------------------------- */

START_TEST(test_replace_and_delete) {
    must_put(DEFINITION_PRIORS, "p", THREE, true);
    must_put(DEFINITION_CRITERION, "c", "{\"weights\":{\"loc\":2}}", true);
    const bx_priors *three = must_find("p");
    ck_assert_int_eq(three->n, 3);
    ck_assert_double_eq(loc_weight("c"), 2);
    must_put(DEFINITION_PRIORS, "p", TWO, false);
    must_put(DEFINITION_CRITERION, "c", "{\"base\":\"c\",\"weights\":{\"conf\":3}}", false);
    ck_assert_double_eq(loc_weight("c"), 2); /* from its predecessor */
    const bx_priors *two = must_find("p");
    ck_assert_int_eq(two->n, 2);
    ck_assert_int_eq(three->n, 3); /* still there for whom it was given to */
    ck_assert_float_eq(three->boxes[11], 0.2f);
    ck_assert_uint_eq(memory_used(budget) / bx_priors_bytes(2, 1), 2);
    bx_priors_free(three);
    bx_priors_free(two);
    registry_close(g);
    ck_assert_uint_eq(memory_used(budget), 0);
    open_registry();
    two = must_find("p");
    ck_assert_int_eq(two->n, 2);
    ck_assert_double_eq(loc_weight("c"), 2);
    ck_assert_int_eq(registry_delete(g, DEFINITION_PRIORS, "p", NULL), BX_OK);
    ck_assert_int_eq(registry_delete(g, DEFINITION_CRITERION, "c", NULL), BX_OK);
    ck_assert_uint_gt(memory_used(budget), 0);
    bx_priors_free(two);
    must_put(DEFINITION_CRITERION, "c", "{}", true); /* this or that sees that nobody uses it any more */
    ck_assert_int_eq(registry_delete(g, DEFINITION_CRITERION, "c", NULL), BX_OK);
    ck_assert_uint_eq(memory_used(budget), 0);
}
END_TEST

START_TEST(test_no_more_than_64) {
    char name[16];
    bx_error error[2] = {{0}};
    for (int i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "n%d", i);
        must_put(DEFINITION_CRITERION, name, "{}", true);
        must_put(DEFINITION_PRIORS, name, TWO, true);
    }
    must_fail(put(DEFINITION_CRITERION, "more", "{}", NULL, &error[0]), &error[0], "registry_full", "64");
    must_fail(put(DEFINITION_PRIORS, "more", TWO, NULL, &error[1]), &error[1], "registry_full", "64");
    must_put(DEFINITION_PRIORS, "n9", THREE, false);
    ck_assert_int_eq(registry_delete(g, DEFINITION_PRIORS, "n8", NULL), BX_OK);
    must_put(DEFINITION_PRIORS, "more", TWO, true);
    must_fail(put(DEFINITION_CRITERION, "more", "{}", NULL, &error[0]), &error[0], "registry_full", "64");
}
END_TEST

/* What is registered stays, so it never takes what requests need; not after a restart with a smaller budget either. */
START_TEST(test_a_quarter_of_the_budget) {
    static const char large[] = "{\"generator\":\"grid\",\"image_size\":[800,800]}"; /* 4.4 MB */
    char name[16];
    int n = 0;
    bool created;
    bx_error error = {0};
    bx_status status;
    do {
        snprintf(name, sizeof name, "n%d", n++);
        status = put(DEFINITION_PRIORS, name, large, &created, &error);
    } while (status == BX_OK);
    must_fail(status, &error, "registry_full", "quarter");
    ck_assert_int_gt(n, 2);
    const size_t used = memory_used(budget);
    ck_assert_uint_le(used, LIMIT / 4);
    ck_assert_uint_gt(used, LIMIT / 8);
    must_put(DEFINITION_PRIORS, "n0", large, false); /* in its own place */
    must_put(DEFINITION_PRIORS, "n0", TWO, false);
    must_put(DEFINITION_PRIORS, name, large, true);
    ck_assert_int_eq(registry_delete(g, DEFINITION_PRIORS, name, NULL), BX_OK);
    must_put(DEFINITION_PRIORS, name, large, true);
    registry_close(g);
    memory_free(budget);
    budget = memory_new(LIMIT / 4);
    open_registry();
    ck_assert(registry_ready(g));
    ck_assert_uint_le(memory_used(budget), LIMIT / 16);
    ck_assert_int_eq(registry_delete(g, DEFINITION_PRIORS, name, NULL), BX_OK);
}
END_TEST

static void count_asked(void *context) {
    ++*(int *)context;
}

START_TEST(test_an_unread_store) {
    char path[96], aside[112];
    int n = 0;
    const bx_priors *priors;
    bx_criterion *criterion;
    bx_error error[3] = {{0}};
    must_put(DEFINITION_CRITERION, "c", "{}", true);
    registry_close(g);
    snprintf(path, sizeof path, "%s/lossd.sqlite3", directory);
    snprintf(aside, sizeof aside, "%s.aside", path);
    ck_assert_int_eq(rename(path, aside), 0);
    FILE *junk = fopen(path, "w");
    fprintf(junk, "%0999d", 0);
    fclose(junk);
    open_registry();
    registry_on_unread(g, count_asked, &n);
    ck_assert(!registry_ready(g));
    must_fail(find_priors("p", true, &priors, &error[0]), &error[0], "store_unavailable", "\"p\"");
    must_fail(find_criterion("c", &criterion, &error[1]), &error[1], "store_unavailable", "\"c\"");
    bx_priors_free(must_find("ssd300"));
    ck_assert_int_eq(n, 0); /* it has just been tried */
    usleep(1010000);
    ck_assert(!registry_ready(g) && !registry_ready(g));
    ck_assert_int_eq(n, 1);
    registry_load(g);
    ck_assert(!registry_ready(g));
    ck_assert_int_eq(rename(aside, path), 0);
    registry_load(g);
    ck_assert(registry_ready(g));
    ck_assert_double_eq(loc_weight("c"), 1);
    must_fail(find_priors("p", true, &priors, &error[2]), &error[2], "unknown_priors", "");
}
END_TEST

/* It waited so long that its client was told 504: the best that can be done is nothing. */
START_TEST(test_cancelled) {
    atomic_bool cancelled = true;
    bool created;
    bx_error error[2] = {{0}};
    const bx_priors *priors;
    proto_buffer description = {0};
    registration d = {DEFINITION_PRIORS,        "p",        PROTO_JSON,    TWO, strlen(TWO),
                      {.json_memory = 1 << 20}, &cancelled, CONDITION_NONE};
    must_fail(registry_put(g, &d, &created, &description, &error[0]), &error[0], "timeout", "");
    must_fail(find_priors("p", true, &priors, &error[1]), &error[1], "unknown_priors", "");
    atomic_store(&cancelled, false);
    ck_assert_int_eq(registry_put(g, &d, &created, &description, NULL), BX_OK);
    proto_buffer_free(&description);
}
END_TEST

START_TEST(test_refused_ones_leave_nothing) {
    bx_error error[4] = {{0}};
    bool created;
    const bx_priors *priors;
    must_fail(put(DEFINITION_PRIORS, "p", "{\"priors\":[[1,1,0,0]]}", &created, &error[0]), &error[0],
              "prior_degenerate", "");
    lease all;
    must_put(DEFINITION_PRIORS, "q", TWO, true);
    size_t used = memory_used(budget);
    ck_assert(lease_begin(&all, budget, LIMIT - used));
    must_fail(put(DEFINITION_PRIORS, "p", TWO, &created, &error[1]), &error[1], "memory_full", "");
    must_fail(put(DEFINITION_CRITERION, "p", "{}", &created, &error[2]), &error[2], "memory_full", "");
    lease_end(&all);
    ck_assert_uint_eq(memory_used(budget), used);
    registry_close(g);
    open_registry();
    must_fail(find_priors("p", true, &priors, &error[3]), &error[3], "unknown_priors", "");
    bx_priors_free(must_find("q"));
}
END_TEST

START_TEST(test_without_a_store) {
    bx_error error[2] = {{0}};
    registry_close(g);
    log_setup(LOG_ERROR, false);
    data_dir_free(place);
    place = data_dir_new("/proc/lossd");
    ck_assert_int_eq(registry_open(&g, budget, place, NULL), BX_OK);
    ck_assert(registry_ready(g)); /* there is nothing that could not be read */
    must_fail(put(DEFINITION_PRIORS, "p", TWO, NULL, &error[0]), &error[0], "store_unavailable", "");
    ck_assert_uint_eq(memory_used(budget), 0);
    bx_priors_free(must_find("ssd300"));
    must_fail(registry_delete(g, DEFINITION_PRIORS, "p", &error[1]), &error[1], "unknown_priors", "");
}
END_TEST

/* ---- patterns ---------------------------------------------------------------------------------------------------- */

START_TEST(test_patterns_are_made_once_and_later) {
    const bx_priors *priors = NULL;
    bx_error error = {0};
    must_fail(find_priors("grid-40x60", false, &priors, &error), &error, REGISTRY_LATER, "");
    const bx_priors *made = must_find("grid-40x60");
    ck_assert_int_eq(made->n, 3 * (10 * 15 + 5 * 8 + 3 * 4));
    ck_assert_uint_gt(memory_used(budget), 0);
    ck_assert_int_eq(find_priors("grid-40x60", false, &priors, NULL), BX_OK);
    ck_assert_ptr_eq(priors, made);
    bx_priors_free(priors);
    bx_priors_free(made);
    error = (bx_error){0};
    ck_assert_int_ne(find_priors("grid-0x60", true, &priors, &error), BX_OK);
    error = (bx_error){0};
    ck_assert_int_ne(find_priors("retinanet-16384x16384", true, &priors, &error), BX_OK);
}
END_TEST

START_TEST(test_the_last_patterns_are_kept) {
    char name[32];
    size_t one = 0;
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "grid-%dx64", 4 * i + 4);
        const bx_priors *priors = must_find(name);
        one = bx_priors_bytes(priors->n, priors->n_levels);
        bx_priors_free(priors);
        bx_priors_free(must_find("grid-4x64")); /* used all the time */
    }
    ck_assert_uint_le(memory_used(budget), 16 * one);
    ck_assert_uint_gt(memory_used(budget), 8 * one);
    const bx_priors *priors;
    ck_assert_int_eq(find_priors("grid-4x64", false, &priors, NULL), BX_OK);
    bx_priors_free(priors);
    ck_assert_int_eq(find_priors("grid-160x64", false, &priors, NULL), BX_OK);
    bx_priors_free(priors);
    ck_assert_int_ne(find_priors("grid-8x64", false, &priors, NULL), BX_OK);
}
END_TEST

START_TEST(test_more_in_use_than_are_kept) {
    const bx_priors *held[24];
    char name[32];
    for (int i = 0; i < 24; i++) {
        snprintf(name, sizeof name, "grid-%dx64", i + 1);
        held[i] = must_find(name);
    }
    size_t used = memory_used(budget);
    for (int i = 0; i < 24; i++) {
        snprintf(name, sizeof name, "grid-%dx64", i + 1);
        HOLDS(!strcmp(held[i]->name, name) && held[i]->boxes[2] > 0, "%s is not itself any more", name);
        bx_priors_free(held[i]);
    }
    bx_priors_free(must_find("grid-99x64"));
    ck_assert_uint_lt(memory_used(budget), used);
}
END_TEST

START_TEST(test_patterns_make_room) {
    char name[32];
    const bx_priors *held = must_find("grid-300x300"), *priors;
    size_t one = memory_used(budget);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "grid-%dx300", 301 + i);
        bx_priors_free(must_find(name));
    }
    must_put(DEFINITION_PRIORS, "registered", THREE, true);
    lease all;
    size_t registered = bx_priors_bytes(3, 1);
    ck_assert(!lease_begin(&all, budget, LIMIT - one)); /* what is in use or registered stays */
    ck_assert_uint_eq(memory_used(budget), one + registered);
    ck_assert(lease_begin(&all, budget, LIMIT - one - registered));
    lease_end(&all);
    ck_assert_int_eq(find_priors("grid-300x300", false, &priors, NULL), BX_OK);
    ck_assert_ptr_eq(priors, held);
    bx_priors_free(priors);
    bx_priors_free(held);
    ck_assert(lease_begin(&all, budget, LIMIT - registered));
    bx_error error = {0};
    must_fail(find_priors("grid-300x300", true, &priors, &error), &error, "memory_full", "");
    lease_end(&all);
    bx_priors_free(must_find("grid-300x300"));
}
END_TEST

/* ---- threads ----------------------------------------------------------------------------------------------------- */

enum { USERS = 3, TURNS = 300 };
static atomic_bool stop;

static void *use(void *argument) {
    unsigned seed = *(unsigned *)argument;
    while (!atomic_load(&stop)) {
        char name[32];
        const bx_priors *priors = NULL;
        bx_criterion *criterion = NULL;
        seed = seed * 1664525u + 1013904223u;
        snprintf(name, sizeof name, "grid-%ux32", 1 + (seed >> 16) % 30);
        priors = must_find(name);
        HOLDS(priors->n_levels == 3 && priors->boxes[3] > 0, "%s is not itself", name);
        bx_priors_free(priors);
        bx_error error = {0};
        if (find_priors("p", true, &priors, &error) == BX_OK) {
            HOLDS((priors->n == 2 || priors->n == 3) && priors->boxes[0] == 0.2f, "p is not itself");
            bx_priors_free(priors);
        } else {
            HOLDS(!strcmp(error.code, "unknown_priors"), "%s", error.code);
        }
        error = (bx_error){0};
        if (find_criterion("c", &criterion, &error) == BX_OK) {
            HOLDS(criterion->weights.loc == 2 || criterion->weights.loc == 3, "c is not itself");
            bx_criterion_free(criterion);
        }
        lease some;
        if (lease_begin(&some, budget, LIMIT - (1 << 20))) {
            lease_end(&some); /* and every kept set that nobody holds has gone */
        }
        proto_buffer text = {0};
        proto_writer writer = {.out = &text};
        registry_list(g, seed >> 31 ? DEFINITION_PRIORS : DEFINITION_CRITERION, &writer);
        proto_buffer_free(&text);
    }
    return NULL;
}

START_TEST(test_threads) {
    pthread_t threads[USERS];
    unsigned seeds[USERS];
    atomic_init(&stop, false);
    for (unsigned i = 0; i < USERS; i++) {
        seeds[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use, &seeds[i]), 0);
    }
    for (int i = 0; i < TURNS; i++) {
        must_put(DEFINITION_PRIORS, "p", i % 2 ? TWO : THREE, i % 3 == 0);
        must_put(DEFINITION_CRITERION, "c", i % 2 ? "{\"weights\":{\"loc\":2}}" : "{\"weights\":{\"loc\":3}}",
                 i % 5 == 0);
        if (i % 3 == 2) {
            ck_assert_int_eq(registry_delete(g, DEFINITION_PRIORS, "p", NULL), BX_OK);
        }
        if (i % 5 == 4) {
            ck_assert_int_eq(registry_delete(g, DEFINITION_CRITERION, "c", NULL), BX_OK);
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < USERS; i++) {
        pthread_join(threads[i], NULL);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("registry");
    TCase *c = tcase_create("registry");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_built_in);
    tcase_add_test(c, test_unknown);
    tcase_add_test(c, test_names_that_cannot_be_registered);
    tcase_add_test(c, test_replace_and_delete);
    tcase_add_test(c, test_no_more_than_64);
    tcase_add_test(c, test_a_quarter_of_the_budget);
    tcase_add_test(c, test_an_unread_store);
    tcase_add_test(c, test_cancelled);
    tcase_add_test(c, test_refused_ones_leave_nothing);
    tcase_add_test(c, test_without_a_store);
    tcase_add_test(c, test_patterns_are_made_once_and_later);
    tcase_add_test(c, test_the_last_patterns_are_kept);
    tcase_add_test(c, test_more_in_use_than_are_kept);
    tcase_add_test(c, test_patterns_make_room);
    tcase_add_test(c, test_threads);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
