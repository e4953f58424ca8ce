/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bugs on purpose, to see that the tests find them: linked over the daemon's own functions, and chosen by $PLANT.
 * Without it this is the daemon.
 *
 *   smuggle     the guard lets pass what libmicrohttpd 0.9 repairs: the first of two lengths, a coding before one
 *   descriptor  each refusal forgets a file
 *   memory      each refusal forgets 16 MiB
 *   leak        each request that was admitted forgets 1 MiB of the heap
 *   loss        of several results that are recorded at a time one is not, and acknowledged as the others
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "server.h"

bool __real_head_check(head *h, refusal *why);
bool __wrap_head_check(head *h, refusal *why);
answer __real_answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *id);
answer __wrap_answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *id);
void __real_request_abandon(request *r);
void __wrap_request_abandon(request *r);
bx_status __real_history_write(history *h, const record *const *records, size_t n, bx_error *error);
bx_status __wrap_history_write(history *h, const record *const *records, size_t n, bx_error *error);

static bool planted(const char *what) {
    const char *plant = getenv("PLANT");
    return plant && !strcmp(plant, what);
}

bool __wrap_head_check(head *h, refusal *why) {
    if (planted("smuggle")) {
        h->n_transfer = h->n_transfer > 0;
        h->n_length = h->n_length > 0 && !h->n_transfer;
        h->length = h->n_transfer ? NULL : h->length;
    }
    return __real_head_check(h, why);
}

answer __wrap_answer_problem(int status, const char *code, const char *detail, const char *pointer, const char *id) {
    if (planted("descriptor")) {
        (void)!open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    if (planted("memory")) {
        mmap(NULL, (size_t)16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    }
    return __real_answer_problem(status, code, detail, pointer, id);
}

void __wrap_request_abandon(request *r) {
    if (planted("leak")) {
        explicit_bzero(malloc((size_t)1 << 20), (size_t)1 << 20);
    }
    __real_request_abandon(r);
}

bx_status __wrap_history_write(history *h, const record *const *records, size_t n, bx_error *error) {
    return __real_history_write(h, records, n - (n > 1 && planted("loss")), error);
}
