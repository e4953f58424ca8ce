/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a Check suite as a program: the exit status says whether all of it passed.
 */
#ifndef SUITE_H
#define SUITE_H

#include <check.h>

/* An assertion for inner loops; Check's own tells the runner about every success. */
#define HOLDS(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            ck_abort_msg(__VA_ARGS__);                                                                                 \
        }                                                                                                              \
    } while (0)

static inline int suite_run(Suite *suite) {
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

#endif
