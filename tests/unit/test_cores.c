/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU quotas of cgroups, in a made tree of files. This process may be allowed few cores itself, so quotas are below
 * one or two, and a case without any tells how many there are.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../server/server.h"
#include "../support/suite.h"

static char root[64];

/* A file of the tree, with the directories that lead to it. */
static void make(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s%s", root, name);
    for (char *slash = strchr(path + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        ck_assert(!mkdir(path, 0700) || errno == EEXIST);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

static void setup(void) {
    strcpy(root, "/tmp/lossd-cores-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void teardown(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}

#define OWN   "0::/system.slice/lossd.service\n"
#define AT    "/sys/fs/cgroup"
#define SLICE AT "/system.slice"
#define UNIT  SLICE "/lossd.service"

START_TEST(test_quotas) {
    const long all = usable_cores("/nonexistent"), two = all < 2 ? all : 2;
    const struct {
        const char *groups, *top, *slice, *unit; /* NULL: no such file */
        long cores;
    } rows[] = {
        {NULL, NULL, NULL, NULL, all},
        {NULL, "100000 100000\n", NULL, NULL, 1},                        /* a container's own */
        {"0::/\n", "50000 100000\n", NULL, NULL, 1},                     /* part of one is one */
        {"0::/\n", "100001 100000\n", NULL, NULL, two},                  /* and a little more are two */
        {"0::/\n", "max 100000\n", NULL, NULL, all},                     /* none */
        {OWN, NULL, "max 100000\n", "100000 100000\n", 1},               /* CPUQuota=100% of the unit */
        {OWN, NULL, "100000 100000\n", "max 100000\n", 1},               /* of its slice */
        {OWN, "100000 100000\n", "max 100000\n", "max 100000\n", 1},     /* of everything */
        {OWN, "900000 100000\n", "200000 100000\n", "1000 100000\n", 1}, /* the smallest counts, wherever it is */
        {OWN, "900000 100000\n", "1000 100000\n", "200000 100000\n", 1},
        {OWN, "1000 100000\n", "900000 100000\n", "200000 100000\n", 1},
        {OWN, "900000 100000\n", NULL, NULL, all < 9 ? all : 9},
        {"3:cpu:/system.slice/lossd.service\n" OWN "1:name=systemd:/\n", NULL, NULL, "1000 100000\n", 1},
        {"3:cpu:/system.slice/lossd.service\n0::/\n", NULL, NULL, "1000 100000\n", all}, /* another hierarchy's path */
        {"0::/../elsewhere\n", "200000 100000\n", NULL, NULL, two},                      /* outside of what is seen */
        {OWN, NULL, NULL, "nonsense", all},
        {OWN, NULL, NULL, "-5 100000\n", all},
        {OWN, NULL, NULL, "5 0\n", all},
        {OWN, NULL, NULL, "", all},
        {"", NULL, NULL, "1000 100000\n", all},
        {"nonsense", "1000 100000\n", NULL, NULL, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *const files[][2] = {{"/proc/self/cgroup", rows[i].groups},
                                        {AT "/cpu.max", rows[i].top},
                                        {SLICE "/cpu.max", rows[i].slice},
                                        {UNIT "/cpu.max", rows[i].unit}};
        setup();
        for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
            if (files[k][1]) {
                make(files[k][0], files[k][1]);
            }
        }
        const long cores = usable_cores(root);
        ck_assert_msg(cores == rows[i].cores, "row %zu: %ld, not %ld", i, cores, rows[i].cores);
        teardown();
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cores");
    TCase *c = tcase_create("cores");
    tcase_add_test(c, test_quotas);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}
