/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A database that was damaged on the disk is opened, read and written: what is registered, or the runs. The input says
 * which one and what of the sound file is other than it was: [which][a length, in 256ths of it; 255: all] and patches
 * [offset, 2 bytes][n][n bytes].
 */
#include <ftw.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "server.h"

static char directory[64], file_of[2][96];
static struct {
    char *bytes;
    size_t n;
} sound[2];

static void join(char out[96], const char *name) {
    snprintf(out, 96, "%s/%s", directory, name);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where) {
    (void)status, (void)type, (void)where;
    return remove(path);
}

static void clean(void) {
    nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void empty(void) {
    static const char *const names[] = {"lossd.sqlite3", "lossd.sqlite3-journal", "lossd-runs.sqlite3",
                                        "lossd-runs.sqlite3-wal", "lossd-runs.sqlite3-shm"};
    char path[96];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        join(path, names[i]);
        unlink(path);
    }
}

/* ---- a sound one ------------------------------------------------------------------------------------------------- */

static record make_record(const char *run, int64_t step) {
    record r = {.step = {.step = step, .time_us = 1700000000000000 + step, .has_objects = step % 2}};
    strcpy(r.run, run);
    for (int i = 0; i < PROTO_N_STEP; i++) {
        r.step.values[i] = i % 5 ? i + 0.25 * (double)step : NAN;
    }
    return r;
}

static void write_runs(data_dir *d) {
    history *h = history_new(d, &(history_options){.keep_steps = 0});
    bx_error error = {0};
    CHECK(h, "no memory");
    for (int i = 0; i < 12; i++) {
        const record r = make_record(i % 3 ? "run-a" : "b", i);
        CHECK(history_write(h, &(const record *){&r}, 1, &error) == BX_OK, "%s", error.text);
    }
    history_free(h);
}

static void write_definitions(data_dir *d) {
    static const char criterion[] = "{\"base\":\"ssd-multibox\"}", priors[] = "{\"priors\":[[0.5,0.5,0.25,0.25]]}";
    store *s = store_open(d);
    bx_error error = {0};
    const store_row rows[] = {
        {"criterion", "mine", PROTO_TYPE_JSON, criterion, sizeof criterion - 1},
        {"priors", "few", PROTO_TYPE_JSON, priors, sizeof priors - 1},
    };
    CHECK(s, "no memory");
    for (size_t i = 0; i < 2; i++) {
        CHECK(store_put(s, &rows[i], &error) == BX_OK, "%s", error.text);
    }
    store_close(s);
}

static void keep(int which) {
    FILE *file = fopen(file_of[which], "rb");
    sound[which].bytes = malloc(1 << 20);
    CHECK(file && sound[which].bytes, "no %s", file_of[which]);
    sound[which].n = fread(sound[which].bytes, 1, 1 << 20, file);
    fclose(file);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    strcpy(directory, access("/dev/shm", W_OK) ? "/tmp/lossd-fuzz-XXXXXX" : "/dev/shm/lossd-fuzz-XXXXXX");
    CHECK(mkdtemp(directory), "no directory");
    atexit(clean);
    log_setup(LOG_ERROR, false);
    proto_init();
    data_dir *d = data_dir_new(directory);
    CHECK(d, "no memory");
    write_definitions(d);
    write_runs(d);
    data_dir_free(d);
    join(file_of[0], "lossd.sqlite3");
    join(file_of[1], "lossd-runs.sqlite3");
    keep(0);
    keep(1);
    return 0;
}

/* ---- a damaged one ----------------------------------------------------------------------------------------------- */

static void place(int which, bytes *b) {
    const uint32_t part = take(b);
    const size_t n = part == 255 ? sound[which].n : sound[which].n * part / 256;
    char *copy = exact(sound[which].bytes, n);
    while (b->at < b->end) {
        const size_t low = take(b), at = low + 256 * take(b);
        for (uint32_t left = take(b), i = 0; i < left && b->at < b->end; i++) {
            const char value = (char)take(b);
            if (at + i < n) {
                copy[at + i] = value;
            }
        }
    }
    empty();
    FILE *file = fopen(file_of[which], "wb");
    CHECK(file && fwrite(copy, 1, n, file) == n && !fclose(file), "no %s", file_of[which]);
    free(copy);
}

/* A refusal of a disk, or of what is on it. */
static void check_status(bx_status status, const bx_error *error) {
    CHECK(status == BX_OK || (status == error->status && status != BX_INTERNAL && error->code[0] && error->text[0]),
          "status %d %s %s", (int)status, error->code, error->text);
}

static void see_row(void *context, const store_row *row) {
    size_t *sum = context;
    *sum += strlen(row->kind) + strlen(row->name) + strlen(row->type);
    for (size_t i = 0; i < row->n_bytes; i++) {
        *sum += ((const uint8_t *)row->bytes)[i];
    }
}

static void use_definitions(data_dir *d) {
    store *s = store_open(d);
    size_t sum = 0;
    bool found;
    bx_error error = {0};
    CHECK(s, "no memory");
    check_status(store_each(s, see_row, &sum, &error), &error);
    error = (bx_error){0};
    check_status(store_put(s, &(store_row){"priors", "other", PROTO_TYPE_JSON, "{}", 2}, &error), &error);
    error = (bx_error){0};
    check_status(store_delete(s, "criterion", "mine", &found, &error), &error);
    store_close(s);
}

/* Rows are told as they are: as JSON. */
static void see_run(void *context, const proto_run *run) {
    proto_buffer out = {0};
    (void)context;
    CHECK(memchr(run->name, '\0', sizeof run->name), "a name without end");
    proto_run_row(&(proto_writer){.out = &out}, run);
    check_json(out.data, out.bytes);
    proto_buffer_free(&out);
}

static void see_step(void *context, const proto_step *step) {
    proto_buffer out = {0};
    (void)context;
    proto_step_row(&(proto_writer){.out = &out}, step);
    check_json(out.data, out.bytes);
    proto_step_csv(&out, step);
    proto_buffer_free(&out);
}

static bool begin(void *context, const proto_run *run, const char *tag) {
    see_run(context, run);
    CHECK(strlen(tag) < HISTORY_TAG, "tag");
    return true;
}

static void read_runs(history *h) {
    static const char *const names[] = {"run-a", "b", "nobody"};
    bx_error error = {0};
    atomic_bool cancelled = false;
    check_status(history_list(h, "", 10, see_run, NULL, &error), &error);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        proto_run run;
        proto_step latest;
        char tag[HISTORY_TAG];
        int64_t next;
        error = (bx_error){0};
        bx_status status = history_describe(h, names[i], &run, &latest, tag, &error);
        check_status(status, &error);
        if (status == BX_OK) {
            proto_buffer out = {0};
            proto_run_describe(&out, &run, &latest);
            check_json(out.data, out.bytes);
            proto_buffer_free(&out);
        }
        for (int points = 0; points <= 4; points += 4) {
            const history_steps wanted = {.run = names[i],
                                          .after = -1,
                                          .limit = 5,
                                          .points = points,
                                          .cancelled = &cancelled,
                                          .begin = begin,
                                          .each = see_step};
            error = (bx_error){0};
            check_status(history_read(h, &wanted, &next, &error), &error);
        }
    }
}

static void use_runs(data_dir *d) {
    history *h = history_new(d, &(history_options){.keep_steps = 3, .keep_days = 10000});
    const record r = make_record("run-a", 99);
    bx_error error = {0};
    bool flag;
    CHECK(h, "no memory");
    check_status(history_open(h, &error), &error);
    read_runs(h);
    error = (bx_error){0};
    check_status(history_write(h, &(const record *){&r}, 1, &error), &error);
    error = (bx_error){0};
    check_status(history_delete(h, "b", &flag, &error), &error);
    error = (bx_error){0};
    check_status(history_tidy(h, &flag, &error), &error);
    error = (bx_error){0};
    check_status(history_probe(h, &error), &error);
    history_free(h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, data + size};
    const int which = take_below(&b, 2);
    place(which, &b);
    data_dir *d = data_dir_new(directory);
    CHECK(d, "no memory");
    if (which == 0) {
        use_definitions(d);
    } else {
        use_runs(d);
    }
    data_dir_free(d);
    return 0;
}
