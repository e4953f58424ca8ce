/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often an address presented a wrong token: a table of a fixed size, so that nobody can fill the memory with it.
 *
 * Each wrong token puts off the moment from which the address has a clean record by a tenth of a second; who is a whole
 * second behind may not try again until that has shrunk. Addresses are found by a hash with a seed of the process, and
 * the one whose last guess is the oldest makes room.
 */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "access.h"

#define EACH_NS (NS_PER_S / GUESSES_PER_S)
#define BUCKETS 4096
enum { NONE = -1 };

typedef struct guesser {
    unsigned char address[16];
    int64_t clean_ns; /* when all of its guesses are forgiven */
    int next;         /* in its bucket */
    int newer, older; /* by the last guess */
} guesser;

struct guesses {
    pthread_mutex_t lock;
    uint64_t seed;
    int used, newest, oldest;
    int buckets[BUCKETS];
    guesser all[GUESSERS];
};

/* IPv4 as IPv6 writes it; of IPv6 the part that a network is given, since its hosts choose the rest. */
static void address_of(unsigned char out[16], const struct sockaddr *from) {
    static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    memset(out, 0, 16);
    if (from && from->sa_family == AF_INET) {
        memcpy(out, mapped, 12);
        memcpy(out + 12, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
    } else if (from && from->sa_family == AF_INET6) {
        const unsigned char *all = ((const struct sockaddr_in6 *)(const void *)from)->sin6_addr.s6_addr;
        memcpy(out, all, memcmp(all, mapped, 12) ? 8 : 16);
    }
}

static int *bucket_of(guesses *g, const unsigned char address[16]) {
    uint64_t hash = g->seed;
    for (int i = 0; i < 16; i++) {
        hash = (hash ^ address[i]) * 1099511628211u;
    }
    return &g->buckets[(hash ^ hash >> 32) % BUCKETS];
}

static int find(guesses *g, const unsigned char address[16]) {
    int i = *bucket_of(g, address);
    while (i != NONE && memcmp(g->all[i].address, address, 16)) {
        i = g->all[i].next;
    }
    return i;
}

/* Out of the order of guesses. */
static void take_out(guesses *g, int i) {
    const guesser *x = &g->all[i];
    *(x->newer != NONE ? &g->all[x->newer].older : &g->newest) = x->older;
    *(x->older != NONE ? &g->all[x->older].newer : &g->oldest) = x->newer;
}

static void put_first(guesses *g, int i) {
    g->all[i].newer = NONE;
    g->all[i].older = g->newest;
    *(g->newest != NONE ? &g->all[g->newest].newer : &g->oldest) = i;
    g->newest = i;
}

/* A place for a new one; the oldest one's, once all are taken. */
static int make_room(guesses *g) {
    if (g->used < GUESSERS) {
        return g->used++;
    }
    const int i = g->oldest;
    int *at = bucket_of(g, g->all[i].address);
    while (*at != i) {
        at = &g->all[*at].next;
    }
    *at = g->all[i].next;
    take_out(g, i);
    return i;
}

guesses *guesses_new(void) {
    guesses *g = calloc(1, sizeof *g);
    if (!g) {
        return NULL;
    }
    if (getrandom(&g->seed, sizeof g->seed, 0) != sizeof g->seed) {
        g->seed = (uint64_t)now_ns();
    }
    g->newest = g->oldest = NONE;
    for (int i = 0; i < BUCKETS; i++) {
        g->buckets[i] = NONE;
    }
    pthread_mutex_init(&g->lock, NULL);
    return g;
}

void guesses_free(guesses *g) {
    if (g) {
        pthread_mutex_destroy(&g->lock);
        free(g);
    }
}

bool guesses_exceeded(guesses *g, const struct sockaddr *from, int64_t now) {
    unsigned char address[16];
    address_of(address, from);
    pthread_mutex_lock(&g->lock);
    const int i = find(g, address);
    const bool exceeded = i != NONE && g->all[i].clean_ns - now > NS_PER_S - EACH_NS;
    pthread_mutex_unlock(&g->lock);
    return exceeded;
}

void guesses_count(guesses *g, const struct sockaddr *from, int64_t now) {
    unsigned char address[16];
    address_of(address, from);
    pthread_mutex_lock(&g->lock);
    int i = find(g, address);
    if (i != NONE) {
        take_out(g, i);
    } else {
        i = make_room(g);
        int *bucket = bucket_of(g, address);
        g->all[i] = (guesser){.clean_ns = now, .next = *bucket};
        memcpy(g->all[i].address, address, 16);
        *bucket = i;
    }
    put_first(g, i);
    guesser *x = &g->all[i];
    x->clean_ns = (x->clean_ns > now ? x->clean_ns : now) + EACH_NS;
    pthread_mutex_unlock(&g->lock);
}
