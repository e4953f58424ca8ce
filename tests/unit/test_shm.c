/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory of clients: what may be registered and used, and objects that change while they are in use.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server.h"
#include "../support/suite.h"

/* ---- help -------------------------------------------------------------------------------------------------------- */

#define BYTES 100000

static char key[64];
static char *object; /* the client's own view */
static shm *all;

static void setup(void) {
    snprintf(key, sizeof key, "/lossd-test-%ld", (long)getpid());
    int fd = shm_open(key, O_CREAT | O_EXCL | O_RDWR, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, BYTES), 0);
    object = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(object, MAP_FAILED);
    close(fd);
    for (int i = 0; i < BYTES; i++) {
        object[i] = (char)(i * 7);
    }
    all = shm_new();
    ck_assert_ptr_nonnull(all);
}

static void teardown(void) {
    shm_free(all);
    munmap(object, BYTES);
    shm_unlink(key);
}

static void resize(off_t bytes) {
    int fd = shm_open(key, O_RDWR, 0);
    ck_assert_int_eq(ftruncate(fd, bytes), 0);
    close(fd);
}

static void must_refuse(bx_status status, const bx_error *error, const char *code, const char *text) {
    ck_assert_int_ne(status, BX_OK);
    ck_assert_int_eq(status, error->status);
    ck_assert_str_eq(error->code, code);
    ck_assert_msg(strstr(error->text, text) != NULL, "%s", error->text);
}

static void must_register(const char *name, size_t offset, size_t bytes) {
    bx_error error = {0};
    ck_assert_msg(shm_register(all, name, key, offset, bytes, &error) == BX_OK, "%s", error.text);
}

static region *must_use(const char *name, size_t offset, size_t bytes) {
    bx_error error = {0};
    region *r = NULL;
    ck_assert_msg(shm_use(all, name, offset, bytes, &r, &error) == BX_OK, "%s", error.text);
    return r;
}

static void refuses_use(const char *name, size_t offset, size_t bytes, const char *code, const char *text) {
    bx_error error = {0};
    region *r = NULL;
    must_refuse(shm_use(all, name, offset, bytes, &r, &error), &error, code, text);
    ck_assert_ptr_null(r);
}

static const char *status_of(const char *name) {
    static char text[4096];
    proto_buffer out = {0};
    proto_writer writer = {.out = &out};
    bx_error error = {0};
    bx_status status = shm_status(all, name, &writer, &error);
    ck_assert(!out.failed && out.bytes < sizeof text);
    snprintf(text, sizeof text, "%.*s", (int)out.bytes, out.data);
    proto_buffer_free(&out);
    return status == BX_OK ? text : error.code;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

START_TEST(reads_what_the_client_wrote) {
    must_register("r0", 5003, 80000);
    region *r = must_use("r0", 11, 79989);
    ck_assert_int_eq(memcmp(region_data(r, 11), object + 5014, 79989), 0);
    object[5014] = 99; /* not a copy */
    ck_assert_int_eq(*(const char *)region_data(r, 11), 99);
    region_unref(r);
}
END_TEST

START_TEST(lists) {
    char wanted[256], both[512];
    ck_assert_str_eq(status_of(NULL), "[]");
    ck_assert_str_eq(status_of("r0"), "unknown_region");
    must_register("r0", 0, 100);
    must_register("r1", 64, 1000);
    snprintf(wanted, sizeof wanted, "{\"name\":\"r1\",\"key\":\"%s\",\"offset\":64,\"byte_size\":1000}", key);
    snprintf(both, sizeof both, "[{\"name\":\"r0\",\"key\":\"%s\",\"offset\":0,\"byte_size\":100},%s]", key, wanted);
    ck_assert_str_eq(status_of(NULL), both);
    snprintf(both, sizeof both, "[%s]", wanted);
    ck_assert_str_eq(status_of("r1"), both);
    shm_unregister(all, "r0");
    ck_assert_str_eq(status_of(NULL), both);
    shm_unregister(all, "nothing");
    shm_unregister(all, NULL);
    ck_assert_str_eq(status_of(NULL), "[]");
}
END_TEST

static const struct {
    const char *name, *key;
    size_t offset, bytes;
    const char *code, *text;
} refused[] = {
    {"", NULL, 0, 10, "invalid_name", ""},
    {"a/b", NULL, 0, 10, "invalid_name", ""},
    {"r0", "lossd", 0, 10, "shared_memory", "slash"},
    {"r0", "/", 0, 10, "shared_memory", "slash"},
    {"r0", "/..", 0, 10, "shared_memory", "slash"},
    {"r0", "/../etc/passwd", 0, 10, "shared_memory", "slash"},
    {"r0", "/a/b", 0, 10, "shared_memory", "slash"},
    {"r0", "/lossd-test-there-is-none", 0, 10, "shared_memory", "No such file"},
    {"r0", NULL, 0, 0, "shared_memory", "byte_size"},
    {"r0", NULL, 0, BYTES + 1, "shared_memory", "has 100000 bytes"},
    {"r0", NULL, BYTES, 1, "shared_memory", "has 100000 bytes"},
    {"r0", NULL, BYTES + 1, 1, "shared_memory", "has 100000 bytes"},
    {"r0", NULL, SIZE_MAX - 1, 10, "shared_memory", "offset"},
    {"r0", NULL, 10, SIZE_MAX - 5, "shared_memory", "byte_size"},
    {"r0", NULL, SIZE_MAX / 4, SIZE_MAX / 4, "shared_memory", "has 100000 bytes"},
};

START_TEST(refuses) {
    bx_error error = {0};
    must_refuse(shm_register(all, refused[_i].name, refused[_i].key ? refused[_i].key : key, refused[_i].offset,
                             refused[_i].bytes, &error),
                &error, refused[_i].code, refused[_i].text);
    ck_assert_str_eq(status_of(NULL), "[]");
}
END_TEST

START_TEST(refuses_what_is_no_object) {
    char path[96];
    snprintf(path, sizeof path, "/dev/shm%s-pipe", key);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    bx_error error = {0};
    must_refuse(shm_register(all, "r0", path + strlen("/dev/shm"), 0, 10, &error), &error, "shared_memory", "not that");
    unlink(path);
}
END_TEST

START_TEST(refuses_a_second_of_the_name) {
    bx_error error = {0};
    must_register("r0", 0, 100);
    must_refuse(shm_register(all, "r0", key, 0, 100, &error), &error, "shared_memory", "one already");
    shm_unregister(all, "r0");
    must_register("r0", 0, 100);
}
END_TEST

START_TEST(bounds_are_checked_at_each_use) {
    must_register("r0", 40000, 50000);
    refuses_use("r1", 0, 1, "unknown_region", "r1");
    refuses_use("", 0, 1, "unknown_region", "");
    refuses_use("r0", 0, 50001, "shared_memory", "has 50000 bytes");
    refuses_use("r0", 50000, 1, "shared_memory", "has 50000 bytes");
    refuses_use("r0", 50001, 0, "shared_memory", "has 50000 bytes");
    refuses_use("r0", SIZE_MAX, 2, "shared_memory", "has 50000 bytes");
    region_unref(must_use("r0", 50000, 0));
    resize(89999); /* never touched since: nothing is broken, but it is too short now */
    refuses_use("r0", 0, 1, "shared_memory", "has 89999 bytes");
    resize(BYTES);
    region_unref(must_use("r0", 0, 50000));
}
END_TEST

START_TEST(survives_an_object_that_becomes_shorter) {
    must_register("r0", 0, BYTES);
    must_register("r1", 0, 4096);
    region *r = must_use("r0", 0, BYTES);
    resize(8192);
    const char *data = region_data(r, 0);
    int sum = 0;
    for (int i = 0; i < BYTES; i++) {
        sum += data[i] != 0;
    }
    ck_assert_int_le(sum, 8192);
    ck_assert_int_eq(data[BYTES - 1], 0);
    bx_error error = {0};
    must_refuse(region_check(r, &error), &error, "shared_memory", "shorter");
    region_unref(r);
    resize(BYTES);
    refuses_use("r0", 0, 1, "shared_memory", "shorter"); /* part of its mapping is not the object any more */
    region_unref(must_use("r1", 0, 4096));               /* this one is still whole */
    shm_unregister(all, "r0");
    must_register("r0", 0, BYTES);
    region_unref(must_use("r0", 0, BYTES));
}
END_TEST

/* What lies behind the end in its page becomes zeros, and nobody is told. */
START_TEST(sees_an_object_shorter_within_a_page) {
    must_register("r0", 0, BYTES);
    region *r = must_use("r0", 0, BYTES);
    bx_error error = {0};
    ck_assert_int_eq(region_check(r, &error), BX_OK);
    resize(BYTES - 1);
    ck_assert_int_eq(((const char *)region_data(r, 0))[BYTES - 1], 0);
    must_refuse(region_check(r, &error), &error, "shared_memory", "has 99999 bytes");
    resize(BYTES);
    region_unref(r);
}
END_TEST

START_TEST(outlives_its_name) {
    must_register("r0", 0, BYTES);
    region *r = must_use("r0", 0, BYTES);
    shm_unregister(all, NULL);
    refuses_use("r0", 0, 1, "unknown_region", "r0");
    ck_assert_int_eq(memcmp(region_data(r, 0), object, BYTES), 0);
    region_unref(r);
}
END_TEST

START_TEST(writes) {
    bx_error error = {0};
    must_register("r0", 4000, 1000);
    region *r = must_use("r0", 10, 5);
    ck_assert_int_eq(region_write(r, 10, "tensor", 6, &error), BX_OK);
    ck_assert_int_eq(memcmp(object + 4010, "tensor", 6), 0);
    resize(4500);
    must_refuse(region_write(r, 10, "tensor", 6, &error), &error, "shared_memory", "has 4500 bytes");
    region_unref(r);
    resize(BYTES);
}
END_TEST

START_TEST(has_so_many) {
    bx_error error = {0};
    char name[16];
    for (int i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "r%d", i);
        must_register(name, (size_t)i, 10);
    }
    must_refuse(shm_register(all, "more", key, 0, 10, &error), &error, "shared_memory_full", "64");
    shm_unregister(all, "r7");
    must_register("more", 0, 10);
}
END_TEST

/* A fault that is not a client's still ends the process. */
START_TEST(other_faults_end_the_process) {
    must_register("r0", 0, 100);
    resize(0);
    pid_t child = fork();
    if (child == 0) {
        volatile char *own = object;
        (void)own[0];
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    resize(BYTES);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shm");
    TCase *tc = tcase_create("shm");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, reads_what_the_client_wrote);
    tcase_add_test(tc, lists);
    tcase_add_loop_test(tc, refuses, 0, sizeof refused / sizeof *refused);
    tcase_add_test(tc, refuses_what_is_no_object);
    tcase_add_test(tc, refuses_a_second_of_the_name);
    tcase_add_test(tc, bounds_are_checked_at_each_use);
    tcase_add_test(tc, survives_an_object_that_becomes_shorter);
    tcase_add_test(tc, sees_an_object_shorter_within_a_page);
    tcase_add_test(tc, outlives_its_name);
    tcase_add_test(tc, writes);
    tcase_add_test(tc, has_so_many);
    tcase_add_test(tc, other_faults_end_the_process);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
