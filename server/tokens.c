/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The token file: lines `read|write NAME TOKEN` or `read|write NAME sha256:HEX`, and comments after #.
 *
 * What is presented is hashed, and its hash compared with that of every token, so that the time it takes tells nothing
 * of them. SHA-256 and the comparison are GnuTLS', which libmicrohttpd brings along anyhow. A fast hash will do: tokens
 * are long and random, not words that people think of.
 */
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"

#define MOST_TOKENS 1024
#define FEW_LETTERS 16

enum { DIGEST = 32 };

typedef struct token {
    unsigned char digest[DIGEST];
    char name[TOKEN_NAME];
    right right;
    size_t line; /* of the file */
} token;

struct tokens {
    size_t n;
    bool has_short;
    token all[MOST_TOKENS];
};

static bool digest_of(const char *text, unsigned char out[DIGEST]) {
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, text, strlen(text), out) >= 0;
}

/* The next word of a line, ended with a NUL; empty: there is none. */
static char *next_word(char **rest) {
    char *word = *rest + strspn(*rest, " \t\r");
    char *end = word + strcspn(word, " \t\r");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static bool read_hex(const char *text, unsigned char out[DIGEST]) {
    bool fine = strlen(text) == (size_t)2 * DIGEST;
    for (size_t i = 0; fine && i < DIGEST; i++) {
        const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        fine = high >= 0 && low >= 0;
        out[i] = (unsigned char)(16 * high + low);
    }
    return fine;
}

static bool is_name(const char *text) {
    const size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return n > 0 && n < TOKEN_NAME && !text[n];
}

/* What an Authorization header can carry. */
static bool is_visible(const char *text) {
    const char *c = text;
    while (*c > 0x20 && *c < 0x7f) {
        c++;
    }
    return c > text && !*c;
}

/* What a token has in common with one above it, by which the log could not tell them apart; NULL: nothing. */
static const char *clashes(const tokens *t, const token *new, size_t *with) {
    for (size_t i = 0; i < t->n; i++) {
        *with = t->all[i].line;
        if (!memcmp(t->all[i].digest, new->digest, DIGEST)) {
            return "the same token again as in line";
        }
        if (!strcmp(t->all[i].name, new->name)) {
            return "the same name again as in line";
        }
    }
    *with = 0;
    return NULL;
}

/* NULL: it is taken up, or there is nothing in it; otherwise what is wrong with it, also `with` that line. */
static const char *take_line(tokens *t, char *line, size_t number, size_t *with) {
    char *role = next_word(&line), *name = next_word(&line), *text = next_word(&line), *more = next_word(&line);
    if (!*role || *role == '#') {
        return NULL;
    }
    if (strcmp(role, "read") && strcmp(role, "write")) {
        return "a line begins with read or write";
    }
    if (!is_name(name)) {
        return "after its role comes a name of 1 to 64 of A-Z a-z 0-9 . _ -";
    }
    if (!strcmp(name, NOBODY) || !strcmp(name, NOT_ASKED)) {
        return "in the log that name says that there was no token; choose another";
    }
    if (!*text || (*more && *more != '#')) {
        return *text ? "something follows the token" : "there is no token";
    }
    if (t->n == MOST_TOKENS) {
        return "more than 1024 tokens";
    }
    token *new = &t->all[t->n];
    if (!strncmp(text, "sha256:", 7)) {
        if (!read_hex(text + 7, new->digest)) {
            return "after sha256: come 64 hexadecimal digits";
        }
    } else if (!is_visible(text) || !digest_of(text, new->digest)) {
        return "a token is made of visible ASCII characters";
    } else {
        t->has_short |= strlen(text) < FEW_LETTERS;
    }
    copy_text(new->name, sizeof new->name, name);
    new->right = *role == 'w' ? RIGHT_WRITE : RIGHT_READ;
    new->line = number;
    const char *wrong = clashes(t, new, with);
    t->n += !wrong;
    return wrong;
}

static bx_status parse(tokens *t, secret *file, const char *path, bx_error *error) {
    size_t number = 0;
    if (strlen(file->text) != file->bytes) {
        return bx_fail(error, BX_MALFORMED, CONFIGURATION, "--token-file: %s holds a NUL", path);
    }
    for (char *line = file->text, *end; line; line = end) {
        end = strchr(line, '\n');
        if (end) {
            *end++ = '\0';
        }
        number++;
        size_t with = 0;
        const char *wrong = take_line(t, line, number, &with);
        char other[24] = "";
        if (with > 0) {
            snprintf(other, sizeof other, " %zu", with);
        }
        if (wrong) {
            return bx_fail(error, BX_MALFORMED, CONFIGURATION, "--token-file: line %zu of %s: %s%s", number, path,
                           wrong, other);
        }
    }
    return t->n > 0 ? BX_OK
                    : bx_fail(error, BX_MALFORMED, CONFIGURATION, "--token-file: there is no token in %s", path);
}

bx_status tokens_read(tokens **out, const char *path, bx_error *error) {
    secret file = {0};
    bx_status status = secret_read(&file, "--token-file", path, true, error);
    if (status != BX_OK) {
        return status;
    }
    tokens *t = calloc(1, sizeof *t);
    status = t ? parse(t, &file, path, error) : bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for tokens");
    secret_wipe(&file);
    if (status != BX_OK) {
        tokens_free(t);
        return status;
    }
    *out = t;
    return BX_OK;
}

void tokens_free(tokens *t) {
    free(t);
}

right tokens_role(const tokens *t, const char *text, char name[TOKEN_NAME]) {
    unsigned char digest[DIGEST];
    size_t found = 0; /* 1 + which; no two are the same */
    if (!digest_of(text, digest)) {
        return RIGHT_NONE;
    }
    for (size_t i = 0; i < t->n; i++) {
        const size_t same = gnutls_memcmp(t->all[i].digest, digest, DIGEST) == 0;
        found |= (0 - same) & (i + 1);
    }
    if (found == 0) {
        return RIGHT_NONE;
    }
    copy_text(name, TOKEN_NAME, t->all[found - 1].name);
    return t->all[found - 1].right;
}

bool tokens_are_short(const tokens *t) {
    return t->has_short;
}
