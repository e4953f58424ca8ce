/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options from the environment and the command line, both driven by options.def.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server.h"

typedef enum option_kind { TEXT, NUMBER, SWITCH, LIST } option_kind;

typedef struct option_row {
    option_kind kind;
    size_t offset;
    const char *name, *argument, *value, *help;
    long least, most;
} option_row;

static const option_row rows[] = {
#define OPTION_TEXT(field, name, argument, value, help)                                                                \
    {TEXT, offsetof(options, field), name, argument, value, help, 0, 0},
#define OPTION_NUMBER(field, name, argument, value, least, most, help)                                                 \
    {NUMBER, offsetof(options, field), name, argument, value, help, least, most},
#define OPTION_SWITCH(field, name, help)         {SWITCH, offsetof(options, field), name, NULL, "0", help, 0, 0},
#define OPTION_LIST(field, name, argument, help) {LIST, offsetof(options, field), name, argument, "", help, 0, 0},
#include "options.def"
};
enum { N_ROWS = sizeof rows / sizeof *rows };

static const char *row_name(size_t i) {
    return i < N_ROWS ? rows[i].name : NULL;
}

static bool parse_number(const char *text, const option_row *row, long *out) {
    char *end;
    errno = 0;
    long value = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : -1;
    if (value < 0 || errno) {
        return false;
    }
    int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    end += shift > 0;
    if (*end || value > row->most >> shift || value << shift < row->least) {
        return false;
    }
    *out = value << shift;
    return true;
}

/* A bound of what is given in bytes as people write it; others are plain. */
static void write_bound(char out[24], const option_row *row, long value) {
    const char units[] = " KMG";
    size_t unit = 0;
    while (!strcmp(row->argument, "BYTES") && value >= 1024 && value % 1024 == 0 && units[unit + 1]) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 24, unit ? "%ld%c" : "%ld", value, units[unit]);
}

/* One more; an empty one is none. */
static bool append(const char **list, const char *value, const char *source, char message[256]) {
    size_t n = 0;
    while (list[n]) {
        n++;
    }
    if (n == OPTION_MOST) {
        snprintf(message, 256, "%s: at most %d times; commas take more", source, OPTION_MOST);
        return false;
    }
    list[n] = *value ? value : NULL;
    return true;
}

static bool set(options *options, const option_row *row, const char *value, const char *source, char message[256]) {
    char *field = (char *)options + row->offset;
    switch (row->kind) {
    case TEXT:
        *(const char **)(void *)field = value;
        return true;
    case SWITCH:
        if (strcmp(value, "0") && strcmp(value, "1")) {
            snprintf(message, 256, "%s: \"%.40s\" is neither 1 nor 0", source, value);
            return false;
        }
        *(bool *)(void *)field = *value == '1';
        return true;
    case NUMBER:
        if (!parse_number(value, row, (long *)(void *)field)) {
            char least[24], most[24];
            write_bound(least, row, row->least);
            write_bound(most, row, row->most);
            snprintf(message, 256, "%s: \"%.40s\" is not a whole number between %s and %s%s", source, value, least,
                     most, strcmp(row->argument, "BYTES") ? "" : " (K, M or G may follow it)");
            return false;
        }
        return true;
    case LIST:
        return append((const char **)(void *)field, value, source, message);
    }
    return false;
}

/* LOSSD_DRAIN_DELAY for drain-delay */
static void variable_name(char out[64], const char *name) {
    int n = snprintf(out, 64, "LOSSD_%s", name);
    for (int i = 6; i < n; i++) {
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
    }
}

static bool parse_environment(options *options, char message[256]) {
    for (size_t i = 0; i < N_ROWS; i++) {
        char variable[64];
        variable_name(variable, rows[i].name);
        const char *value = getenv(variable);
        if (value && !set(options, &rows[i], value, variable, message)) {
            return false;
        }
    }
    return true;
}

static bool is_option(const char *name, size_t length) {
    bool is = false;
    for (size_t i = 0; i < N_ROWS; i++) {
        char variable[64];
        variable_name(variable, rows[i].name);
        is |= strlen(variable) == length && !strncmp(variable, name, length);
    }
    return is;
}

/* What Kubernetes tells of a service that is called lossd, or lossd-something. */
static bool is_service(const char *name, size_t length) {
    const char *port = strstr(name, "_PORT"), *service = strstr(name, "_SERVICE_");
    return (port && port < name + length) || (service && service < name + length);
}

static void warn_of_variable(const char *name, size_t length) {
    char bare[58] = "", near[64], text[192];
    for (size_t i = 6; i < length && i - 6 < sizeof bare - 1; i++) {
        bare[i - 6] = name[i] == '_' ? '-' : (char)tolower((unsigned char)name[i]);
    }
    const char *nearest = bx_nearest(bare, row_name);
    variable_name(near, nearest ? nearest : "");
    snprintf(text, sizeof text, "%.*s is no option; %s%s%s", (int)(length < sizeof near ? length : sizeof near), name,
             nearest ? "did you mean " : "--help lists them", nearest ? near : "", nearest ? "?" : "");
    LOG(LOG_WARN, "environment", {"text", text, 0});
}

void options_warn(void) {
    for (char **each = environ; each && *each; each++) {
        const size_t length = strcspn(*each, "=");
        if (!strncmp(*each, "LOSSD_", 6) && !is_option(*each, length) && !is_service(*each, length)) {
            warn_of_variable(*each, length);
        }
    }
}

/* The flag wins: what the variable listed does not count. */
static void forget_list(options *options, const option_row *row, bool *forgotten) {
    if (row->kind == LIST && !*forgotten) {
        memset((char *)options + row->offset, 0, (OPTION_MOST + 1) * sizeof(char *));
        *forgotten = true;
    }
}

static bool parse_arguments(options *options, int argc, char **argv, char message[256]) {
    bool forgotten[N_ROWS] = {false};
    for (int a = 1; a < argc; a++) {
        const char *text = strcmp(argv[a], "-h") ? argv[a] : "--help";
        const option_row *row = NULL;
        const char *equals = strchr(text, '=');
        size_t length = equals ? (size_t)(equals - text) : strlen(text);
        for (size_t i = 0; i < N_ROWS && length > 2 && !strncmp(text, "--", 2); i++) {
            bool same = strlen(rows[i].name) == length - 2 && !strncmp(rows[i].name, text + 2, length - 2);
            row = same ? &rows[i] : row;
        }
        if (!row) {
            const char *bare = text + strspn(text, "-");
            const char *near = bx_nearest(bare, row_name);
            snprintf(message, 256, "unknown argument \"%.60s\"; %s%s%s", text,
                     near ? "did you mean --" : "--help lists them", near ? near : "", near ? "?" : "");
            return false;
        }
        const char *value = equals ? equals + 1 : row->kind == SWITCH ? "1" : argv[++a];
        if (!value) {
            snprintf(message, 256, "--%s needs a value (%s)", row->name, row->argument);
            return false;
        }
        char source[64];
        snprintf(source, sizeof source, "--%s", row->name);
        forget_list(options, row, &forgotten[row - rows]);
        if (!set(options, row, value, source, message)) {
            return false;
        }
    }
    return true;
}

bool options_parse(options *options, int argc, char **argv, char message[256]) {
    memset(options, 0, sizeof *options);
    for (size_t i = 0; i < N_ROWS; i++) {
        if (!set(options, &rows[i], rows[i].value, rows[i].name, message)) {
            return false;
        }
    }
    return parse_environment(options, message) && parse_arguments(options, argc, argv, message);
}

void options_help(FILE *out) {
    fprintf(out,
            "lossd computes detection losses over HTTP.\n\n"
            "Each option is also an environment variable: LOSSD_DRAIN_DELAY for --drain-delay, and 1 or 0 for those\n"
            "that take no value; the flag wins.\n"
            "Bytes take the suffixes K, M and G.\n\n");
    for (size_t i = 0; i < N_ROWS; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", rows[i].name, rows[i].argument ? rows[i].argument : "");
        fprintf(out, "  %-32s %s", left, rows[i].help);
        if (rows[i].kind != SWITCH) {
            fprintf(out, " [%s]", *rows[i].value ? rows[i].value : "none");
        }
        fprintf(out, "\n");
    }
}
