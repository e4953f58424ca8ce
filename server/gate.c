/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a request may go on: its token's role against what its route asks for. Without tokens everyone may do
 * everything; with them nothing is open but what the table of routes says is, and a path that is not in the table is
 * nothing to whoever has no token.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "access.h"

struct gate {
    pthread_rwlock_t lock;
    _Atomic(tokens *) tokens; /* NULL: everyone may do everything, which is seen without the lock */
    guesses *guesses;
};

gate *gate_new(void) {
    gate *a = calloc(1, sizeof *a);
    guesses *g = a ? guesses_new() : NULL;
    if (!g) {
        free(a);
        return NULL;
    }
    a->guesses = g;
    pthread_rwlock_init(&a->lock, NULL);
    return a;
}

void gate_free(gate *a) {
    if (a) {
        tokens_free(a->tokens);
        guesses_free(a->guesses);
        pthread_rwlock_destroy(&a->lock);
        free(a);
    }
}

void gate_use(gate *a, tokens *new) {
    pthread_rwlock_wrlock(&a->lock);
    tokens *old = atomic_exchange(&a->tokens, new);
    pthread_rwlock_unlock(&a->lock);
    tokens_free(old);
}

/* Of "Bearer TOKEN"; NULL: it is something else. */
static const char *bearer_token(const char *authorization) {
    if (!authorization || strncasecmp(authorization, "bearer ", 7)) {
        return NULL;
    }
    const char *token = authorization + 7;
    token += strspn(token, " \t");
    return *token ? token : NULL;
}

static const char *const problems[N_DENIALS] = {
    [DENIED_MISSING] =
        "This takes a token: send \"Authorization: Bearer TOKEN\" with the TOKEN alone of a line of the token "
        "file, not its hash.",
    [DENIED_WRONG] =
        "There is no such token here (any more): send \"Authorization: Bearer TOKEN\" with the TOKEN alone of "
        "a line of the token file, not its hash.",
    [DENIED_ROLE] = "This token may read; registering, recording and deleting take one that may write.",
    [DENIED_GUESSING] = "Too many wrong tokens came from your address; try again in a second.",
};

static bool deny(metrics *m, denial how, refusal *why) {
    static const struct {
        int status;
        const char *code;
    } table[N_DENIALS] = {[DENIED_MISSING] = {401, "unauthorized"},
                          [DENIED_WRONG] = {401, "invalid_token"},
                          [DENIED_ROLE] = {403, "forbidden"},
                          [DENIED_GUESSING] = {429, "too_many_failures"}};
    metrics_denied(m, how);
    *why = (refusal){table[how].status, table[how].code, problems[how]};
    return false;
}

/* Whose address that is. There are no more of these lines than guesses are allowed. */
static void log_guess(const struct sockaddr *from) {
    char text[INET6_ADDRSTRLEN] = "unknown";
    if (from && from->sa_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)from)->sin_addr, text, sizeof text);
    } else if (from && from->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, text, sizeof text);
    }
    LOG(LOG_WARN, "wrong_token", {"from", text, 0});
}

bool gate_check(gate *a, metrics *m, const route *route, const credentials *c, right *given, char name[TOKEN_NAME],
                refusal *why) {
    strcpy(name, NOBODY);
    *given = RIGHT_WRITE;
    if (!atomic_load(&a->tokens)) {
        return true;
    }
    const right needed = !route ? RIGHT_READ : c->records ? RIGHT_WRITE : route->right;
    *given = RIGHT_NONE;
    if (needed == RIGHT_NONE) {
        return true;
    }
    const char *token = bearer_token(c->authorization);
    const int64_t now = now_ns();
    pthread_rwlock_rdlock(&a->lock);
    const bool guessing = token && guesses_exceeded(a->guesses, c->from, now);
    if (token && !guessing) {
        *given = tokens_role(a->tokens, token, name);
    }
    pthread_rwlock_unlock(&a->lock);
    if (*given >= needed) {
        return true;
    }
    if (guessing) {
        return deny(m, DENIED_GUESSING, why);
    }
    if (!token) {
        return deny(m, DENIED_MISSING, why);
    }
    if (*given != RIGHT_NONE) {
        return deny(m, DENIED_ROLE, why);
    }
    guesses_count(a->guesses, c->from, now);
    log_guess(c->from);
    return deny(m, DENIED_WRONG, why);
}

const char *gate_challenge(const refusal *why) {
    return why->status != 401                    ? NULL
           : !strcmp(why->code, "invalid_token") ? "Bearer realm=\"lossd\", error=\"invalid_token\""
                                                 : "Bearer realm=\"lossd\"";
}
