/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target without libFuzzer, on what is kept: every line of tests/fuzz/corpus/TARGET.txt and every file of
 * tests/fuzz/regressions/TARGET; or on the files that are given. In a line printable bytes stand for themselves, NUL is
 * \0, others and the backslash are \xNN.
 *
 *   fuzz_TARGET [file...]      run from the repository root
 */
#include <dirent.h>
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdbool.h>
#include <unistd.h>

#include "fuzz.h"

enum { PATIENCE = 20, PATH = 512 }; /* seconds of one input: this machine may be busy */

static char name[PATH]; /* of the running input */
static int passed;

int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

static void say_which(void) {
    static const char text[] = "\nthe input was ";
    ssize_t ignored = write(2, text, sizeof text - 1);
    ignored += write(2, name, strlen(name));
    ignored += write(2, "\n", 1);
    (void)ignored;
}

static void on_signal(int number) {
    say_which();
    signal(number, SIG_DFL);
    raise(number);
}

static void run(const char *what, const char *data, size_t n) {
    char *copy = exact(data, n);
    snprintf(name, sizeof name, "%s", what);
    alarm(PATIENCE);
    LLVMFuzzerTestOneInput((const uint8_t *)copy, n);
    alarm(0);
    free(copy);
    passed++;
}

/* The whole file, and a NUL that `n` does not count; NULL: there is none. */
static char *read_file(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    size_t room = 0;
    char *data = NULL;
    *n = 0;
    while (file && !feof(file) && !ferror(file)) {
        room = room ? 2 * room : 65536;
        data = realloc(data, room);
        CHECK(data, "no memory");
        *n += fread(data + *n, 1, room - *n - 1, file);
        data[*n] = '\0';
    }
    if (file) {
        fclose(file);
    }
    return data;
}

static size_t unescape(char *line) {
    char *to = line;
    for (const char *from = line; *from; to++) {
        unsigned value;
        if (*from == '\\' && sscanf(from, "\\x%2x", &value) == 1) {
            *to = (char)value;
            from += 4;
        } else if (from[0] == '\\' && from[1] == '0') {
            *to = '\0';
            from += 2;
        } else {
            *to = *from++;
        }
    }
    return (size_t)(to - line);
}

static void run_lines(const char *path) {
    char what[PATH + 16];
    size_t n;
    char *text = read_file(path, &n);
    int number = 1;
    for (char *line = text; line && *line; number++) {
        char *end = line + strcspn(line, "\n"), *next = *end ? end + 1 : end;
        *end = '\0';
        snprintf(what, sizeof what, "%s:%d", path, number);
        run(what, line, unescape(line));
        line = next;
    }
    free(text);
}

static bool run_file(const char *path) {
    size_t n;
    char *data = read_file(path, &n);
    if (data) {
        run(path, data, n);
    }
    free(data);
    return data;
}

static void run_directory(const char *path) {
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char file[PATH];
        int length = snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && length < PATH) {
            run_file(file);
        }
        free(entries[i]);
    }
    if (n >= 0) {
        free(entries);
    }
}

int main(int argc, char **argv) {
    char path[PATH];
    const char *mark = strstr(argv[0], "fuzz_"), *target = mark ? mark + 5 : argv[0];
    int failed = 0;
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_set_death_callback(say_which);
#endif
    if (LLVMFuzzerInitialize) {
        LLVMFuzzerInitialize(&argc, &argv);
    }
    run("nothing", "", 0);
    for (int i = 1; i < argc; i++) {
        const size_t n = strlen(argv[i]);
        if (n > 4 && !strcmp(argv[i] + n - 4, ".txt")) {
            run_lines(argv[i]);
        } else {
            failed += !run_file(argv[i]);
        }
    }
    if (argc == 1) {
        snprintf(path, sizeof path, "tests/fuzz/corpus/%s.txt", target);
        run_lines(path);
        snprintf(path, sizeof path, "tests/fuzz/regressions/%s", target);
        run_directory(path);
        failed += passed < 2; /* there is always a corpus */
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
