/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what: tokens and their roles, how often an address may guess, other origins' pages, TLS, and what this
 * process denies itself. GnuTLS is used in tls.c and tokens.c only.
 */
#ifndef ACCESS_H
#define ACCESS_H

#include <gnutls/abstract.h>
#include <sys/socket.h>

#include "server.h"

/* The code of what is wrong with a file of tokens or of TLS: the daemon does not start with it (exit 78). */
#define CONFIGURATION "configuration"

/* ---- files that hold secrets ------------------------------------------------------------------------------------- */

typedef struct secret {
    char *text; /* with a NUL behind it */
    size_t bytes;
} secret;

/* A regular file of at most 1 MiB, whole; `flag` is the option that names it. A private one may be open to its owner
 * and read by its group. Errors: BX_MALFORMED CONFIGURATION, BX_NOMEM. */
BX_MUST_USE bx_status secret_read(secret *secret, const char *flag, const char *path, bool is_private, bx_error *error);
/* Overwrites it, too. */
void secret_wipe(secret *secret);

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

#define TOKEN_NAME 65
/* What the log says of who has none, and of whom nobody asked for it; no token is named so. */
#define NOBODY    "anonymous"
#define NOT_ASKED "unknown"

/* The tokens of a file, of which only the SHA-256 is kept. Immutable. */
typedef struct tokens tokens;

/* Errors: BX_MALFORMED CONFIGURATION, which names the line and never says what is in it; BX_NOMEM. */
BX_MUST_USE bx_status tokens_read(tokens **tokens, const char *path, bx_error *error);
/* NULL is accepted. */
void tokens_free(tokens *tokens);
/* The role of a token, and its name; RIGHT_NONE: there is no such token. Every token is compared, each in constant
 * time.
 */
right tokens_role(const tokens *tokens, const char *token, char name[TOKEN_NAME]);
/* Whether there is one of so few characters that it might be guessed; those given as SHA-256 are not known. */
bool tokens_are_short(const tokens *tokens);

/* ---- guesses: wrong tokens by address ---------------------------------------------------------------------------- */

#define GUESSES_PER_S 10
#define GUESSERS      4096 /* addresses that are remembered; beyond that, of which the last guess is the oldest is not */

typedef struct guesses guesses;

/* NULL when out of memory. Any thread may call what follows. An IPv6 address counts as its /64. */
guesses *guesses_new(void);
/* NULL is accepted. */
void guesses_free(guesses *guesses);
/* Whether this address has guessed wrong as often as it may for now. */
bool guesses_exceeded(guesses *guesses, const struct sockaddr *from, int64_t now_ns);
void guesses_count(guesses *guesses, const struct sockaddr *from, int64_t now_ns);

/* ---- access ------------------------------------------------------------------------------------------------------ */

/* NULL when out of memory. Until it is given tokens, everyone may do everything. */
gate *gate_new(void);
/* NULL is accepted. */
void gate_free(gate *gate);
/* Takes the tokens, which are those that count from now on; there are some from then on. Any thread. */
void gate_use(gate *gate, tokens *tokens);

/* What a request says of itself. */
typedef struct credentials {
    const char *authorization; /* the header's value; NULL: none */
    const struct sockaddr *from;
    bool records; /* it asks for its result to be recorded */
} credentials;

/* Whether it may go on; otherwise *why is how it is refused. NULL: no route has its path and method, and whoever may
 * read is told so. *name: of its token, or "anonymous". Any thread. */
BX_MUST_USE bool gate_check(gate *gate, metrics *metrics, const route *route, const credentials *credentials,
                            right *right, char name[TOKEN_NAME], refusal *why);
/* What a 401 says of how to be let in. */
const char *gate_challenge(const refusal *why);

/* ---- other origins ----------------------------------------------------------------------------------------------- */

/* Whether every one is an origin as browsers say it: scheme://host or scheme://host:port. Otherwise *wrong is one that
 * is not. */
BX_MUST_USE bool origins_check(const char *const *lists, const char **wrong);
/* Whether one is among them, exactly. Each list has commas between origins; NULL ends them. */
BX_MUST_USE bool origins_have(const char *const *lists, const char *origin);
/* Whether that of a page that was read at this Host is, with either scheme and any port: a proxy may leave that out,
 * and it is the name that somebody else could give. The lists have been checked. */
BX_MUST_USE bool origins_have_host(const char *const *lists, const char *host);
/* Whether the page that asks for more than to look is another site's, whose reader's browser would do it unasked.
 * Browsers say so, but not to an address that is neither their own machine's nor speaks TLS: there the origin tells. */
BX_MUST_USE bool page_is_foreign(const head *head);
/* Whether a Host, with or without a port, means the same whoever is asked: an address, localhost, or a name below it.
 */
BX_MUST_USE bool host_is_fixed(const char *host);

/* ---- TLS --------------------------------------------------------------------------------------------------------- */

/* TLS 1.2 and 1.3, ephemeral keys, authenticated encryption. */
#define TLS_PRIORITIES                                                                                                 \
    "SECURE128:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA:-DHE-RSA:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM"                \
    ":+CHACHA20-POLY1305:%SERVER_PRECEDENCE"

/* A certificate, the chain that leads to it, and its key. Immutable. */
typedef struct certificate certificate;

/* PEM files. Refused are: what cannot be read, a key that others can read, that is not the certificate's, that is
 * encrypted or weak, a certificate that is not valid now. Errors: BX_MALFORMED CONFIGURATION, BX_NOMEM. */
BX_MUST_USE bx_status certificate_read(certificate **certificate, const char *certificate_path, const char *key_path,
                                       bx_error *error);
/* NULL is accepted. */
void certificate_free(certificate *certificate);
/* Takes it (NULL: none any more); new connections get it, others go on with what they have. Any thread. */
void tls_use(certificate *certificate);
/* When the one in use expires, in seconds since 1970; 0: there is none. */
int64_t tls_not_after(void);
/* What gives each new connection its certificate, for the HTTP library. */
gnutls_certificate_retrieve_function3 *tls_retrieve(void);
/* Ask over a connected socket, as a client that believes any certificate, and read the beginning of the answer; its
 * length, or -1. */
long tls_ask(int fd, const char *request, char *answer, size_t size);

/* ---- this process ------------------------------------------------------------------------------------------------ */

/* No core dumps and no debugger, unless they are wanted, and no new privileges. What the system refuses is logged. */
void process_harden(bool core_dumps);

#endif
