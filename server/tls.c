/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS: the certificate and its key, and who asks this daemon whether it is well.
 *
 * libmicrohttpd speaks TLS and asks here for the certificate of each new connection. It gets copies that are the
 * connection's own, so that a certificate that is replaced goes at once, whoever still uses it. There is one in a
 * process, because GnuTLS' question does not say for whom.
 */
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "access.h"

#define MOST_CHAIN 16

struct certificate {
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t *chain; /* (n) the first is ours */
    unsigned n;
    gnutls_datum_t der[MOST_CHAIN];
    time_t not_after;
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static certificate *current;

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bx_status refuse(bx_error *error, const char *flag, const char *path, const char *why) {
    return bx_fail(error, BX_MALFORMED, CONFIGURATION, "%s: %s: %s", flag, path, why);
}

static gnutls_datum_t datum_of(const secret *s) {
    return (gnutls_datum_t){(unsigned char *)s->text, (unsigned)s->bytes};
}

static bx_status read_chain(certificate *c, const char *path, bx_error *error) {
    static const char flag[] = "--tls-cert";
    secret file = {0};
    bx_status status = secret_read(&file, flag, path, false, error);
    if (status != BX_OK) {
        return status;
    }
    const gnutls_datum_t text = datum_of(&file);
    int result = gnutls_x509_crt_list_import2(&c->chain, &c->n, &text, GNUTLS_X509_FMT_PEM,
                                              GNUTLS_X509_CRT_LIST_FAIL_IF_UNSORTED);
    secret_wipe(&file);
    if (result < 0) {
        c->n = 0;
        return refuse(error, flag, path,
                      result == GNUTLS_E_CERTIFICATE_LIST_UNSORTED
                          ? "the certificates are not in order: one's own, then its issuer's, and so on"
                          : "no certificate in PEM form");
    }
    if (c->n > MOST_CHAIN) {
        return refuse(error, flag, path, "more than 16 certificates");
    }
    for (unsigned i = 0; i < c->n; i++) {
        if (gnutls_x509_crt_export2(c->chain[i], GNUTLS_X509_FMT_DER, &c->der[i]) < 0) {
            return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for %s", path);
        }
    }
    return BX_OK;
}

static bx_status read_key(certificate *c, const char *path, bx_error *error) {
    static const char flag[] = "--tls-key";
    secret file = {0};
    bx_status status = secret_read(&file, flag, path, true, error);
    if (status != BX_OK) {
        return status;
    }
    const gnutls_datum_t text = datum_of(&file);
    int result = gnutls_x509_privkey_init(&c->key);
    if (result >= 0) {
        result = gnutls_x509_privkey_import2(c->key, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
    }
    secret_wipe(&file);
    if (result < 0) {
        return refuse(error, flag, path,
                      result == GNUTLS_E_DECRYPTION_FAILED
                          ? "the key is encrypted, and nobody is there to say its password"
                          : "no private key in PEM form");
    }
    if (gnutls_x509_privkey_sec_param(c->key) < GNUTLS_SEC_PARAM_MEDIUM) {
        return refuse(error, flag, path, "the key is weak; RSA takes 2048 bits, elliptic curves 256");
    }
    return BX_OK;
}

static bool belong_together(const certificate *c) {
    unsigned char of_key[64], of_certificate[64];
    size_t n = sizeof of_key, m = sizeof of_certificate;
    return gnutls_x509_privkey_get_key_id(c->key, GNUTLS_KEYID_USE_SHA256, of_key, &n) >= 0 &&
           gnutls_x509_crt_get_key_id(c->chain[0], GNUTLS_KEYID_USE_SHA256, of_certificate, &m) >= 0 && n == m &&
           !memcmp(of_key, of_certificate, n);
}

static bx_status check_time(certificate *c, const char *path, bx_error *error) {
    const time_t now = time(NULL), begin = gnutls_x509_crt_get_activation_time(c->chain[0]);
    c->not_after = gnutls_x509_crt_get_expiration_time(c->chain[0]);
    const time_t edge = now > c->not_after ? c->not_after : begin;
    if (now >= begin && now <= c->not_after) {
        return BX_OK;
    }
    char text[32];
    struct tm utc;
    gmtime_r(&edge, &utc);
    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &utc);
    return bx_fail(error, BX_MALFORMED, CONFIGURATION, "--tls-cert: %s: the certificate %s %s UTC", path,
                   edge == begin ? "is not valid before" : "expired at", text);
}

bx_status certificate_read(certificate **out, const char *certificate_path, const char *key_path, bx_error *error) {
    certificate *c = calloc(1, sizeof *c);
    if (!c) {
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the certificate");
    }
    bx_status status = read_chain(c, certificate_path, error);
    status = status == BX_OK ? read_key(c, key_path, error) : status;
    if (status == BX_OK && !belong_together(c)) {
        status = refuse(error, "--tls-key", key_path, "it is not the key of the certificate of --tls-cert");
    }
    status = status == BX_OK ? check_time(c, certificate_path, error) : status;
    if (status != BX_OK) {
        certificate_free(c);
        return status;
    }
    *out = c;
    return BX_OK;
}

void certificate_free(certificate *c) {
    if (!c) {
        return;
    }
    for (unsigned i = 0; i < c->n; i++) {
        gnutls_x509_crt_deinit(c->chain[i]);
        gnutls_free(i < MOST_CHAIN ? c->der[i].data : NULL);
    }
    gnutls_free(c->chain);
    if (c->key) {
        gnutls_x509_privkey_deinit(c->key);
    }
    free(c);
}

void tls_use(certificate *new) {
    pthread_rwlock_wrlock(&lock);
    certificate *old = current;
    current = new;
    pthread_rwlock_unlock(&lock);
    certificate_free(old);
}

int64_t tls_not_after(void) {
    pthread_rwlock_rdlock(&lock);
    const int64_t t = current ? (int64_t)current->not_after : 0;
    pthread_rwlock_unlock(&lock);
    return t;
}

/* ---- each connection's own --------------------------------------------------------------------------------------- */

static int copy_chain(const certificate *c, gnutls_pcert_st **out) {
    gnutls_pcert_st *chain = gnutls_calloc(c->n, sizeof *chain);
    int result = chain ? 0 : GNUTLS_E_MEMORY_ERROR;
    unsigned n = 0;
    while (result >= 0 && n < c->n) {
        result = gnutls_pcert_import_x509_raw(&chain[n], &c->der[n], GNUTLS_X509_FMT_DER, 0);
        n += result >= 0;
    }
    if (result >= 0) {
        *out = chain;
        return 0;
    }
    while (n > 0) {
        gnutls_pcert_deinit(&chain[--n]);
    }
    gnutls_free(chain);
    return result;
}

static int copy_key(const certificate *c, gnutls_privkey_t *out) {
    gnutls_privkey_t key;
    int result = gnutls_privkey_init(&key);
    if (result < 0) {
        return result;
    }
    result = gnutls_privkey_import_x509(key, c->key, GNUTLS_PRIVKEY_IMPORT_COPY);
    if (result < 0) {
        gnutls_privkey_deinit(key);
        return result;
    }
    *out = key;
    return 0;
}

static int retrieve(gnutls_session_t session, const struct gnutls_cert_retr_st *about, gnutls_pcert_st **chain,
                    unsigned *n, gnutls_ocsp_data_st **staples, unsigned *n_staples, gnutls_privkey_t *key,
                    unsigned *flags) {
    (void)session;
    (void)about;
    pthread_rwlock_rdlock(&lock);
    int result = current ? copy_key(current, key) : GNUTLS_E_INSUFFICIENT_CREDENTIALS;
    if (result >= 0) {
        result = copy_chain(current, chain);
        *n = current->n;
        if (result < 0) {
            gnutls_privkey_deinit(*key);
        }
    }
    pthread_rwlock_unlock(&lock);
    *staples = NULL;
    *n_staples = 0;
    *flags = GNUTLS_CERT_RETR_DEINIT_ALL; /* the connection frees them */
    return result < 0 ? -1 : 0;
}

gnutls_certificate_retrieve_function3 *tls_retrieve(void) {
    return retrieve;
}

/* ---- asking as a client ------------------------------------------------------------------------------------------ */

/* The socket has a timeout, after which GnuTLS would try again. */
static bool goes_on(int result) {
    return result == GNUTLS_E_INTERRUPTED;
}

static long exchange(gnutls_session_t session, const char *request, char *answer, size_t size) {
    int result;
    do {
        result = gnutls_handshake(session);
    } while (goes_on(result) || (result < 0 && result != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(result)));
    const size_t bytes = strlen(request);
    if (result < 0 || gnutls_record_send(session, request, bytes) != (ssize_t)bytes) {
        return -1;
    }
    size_t n = 0;
    ssize_t more = 1;
    while (n < size && (more > 0 || goes_on((int)more))) {
        more = gnutls_record_recv(session, answer + n, size - n);
        n += more > 0 ? (size_t)more : 0;
    }
    return (long)n;
}

long tls_ask(int fd, const char *request, char *answer, size_t size) {
    gnutls_session_t session;
    gnutls_certificate_credentials_t nobody;
    if (gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL) < 0) {
        return -1;
    }
    long n = -1;
    if (gnutls_certificate_allocate_credentials(&nobody) >= 0) {
        if (gnutls_priority_set_direct(session, TLS_PRIORITIES, NULL) >= 0 &&
            gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, nobody) >= 0) {
            gnutls_transport_set_int(session, fd);
            n = exchange(session, request, answer, size);
        }
        gnutls_certificate_free_credentials(nobody);
    }
    gnutls_deinit(session);
    return n;
}
