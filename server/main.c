/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lossd: options, signals, exit codes. 0: stopped as asked; 1: could not start, unhealthy, or told twice to stop; 2:
 * bad usage; 65: what was recorded is damaged, or a newer version's; 69: a GPU that --device names cannot be used, or
 * the machine has no thread or descriptor left; 73: what is recorded cannot be written; 75: another daemon uses the
 * data directory; 78: the file of tokens or of TLS cannot be used; 98: the port is in use.
 */
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "access.h"

static int usage(const char *message) {
    fprintf(stderr, "lossd: %s\n", message);
    return 2;
}

/* What the daemon says to a request; its length, or -1. */
static long ask(int fd, bool encrypted, const char *request, char *answer, size_t size) {
    if (encrypted) {
        return tls_ask(fd, request, answer, size);
    }
    const size_t bytes = strlen(request);
    return send(fd, request, bytes, MSG_NOSIGNAL) == (ssize_t)bytes ? recv(fd, answer, size, MSG_WAITALL) : -1;
}

/* --healthcheck: GET /healthz at --ops-listen or --listen (a wildcard means this host). */
static int healthcheck(const options *o) {
    const char *listen = *o->ops_listen ? o->ops_listen : o->listen;
    struct addrinfo *address;
    if (!address_resolve(listen, &address)) {
        fprintf(stderr, "lossd: %s: \"%s\" is not HOST:PORT\n", *o->ops_listen ? "--ops-listen" : "--listen", listen);
        return 1;
    }
    struct timeval patience = {3, 0};
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char text[256];
    bool ok = fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) &&
              !setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) &&
              !connect(fd, address->ai_addr, address->ai_addrlen);
    long n = ok ? ask(fd, *o->tls_cert, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", text,
                      sizeof text - 1)
                : -1;
    text[n > 0 ? n : 0] = '\0';
    if (fd >= 0) {
        close(fd);
    }
    freeaddrinfo(address);
    ok = n > 0 && !strncmp(text, "HTTP/1.1 200 ", 13);
    fprintf(ok ? stdout : stderr, "lossd: %s at %s%s\n", ok ? "healthy" : "no healthy daemon", listen,
            ok || *o->tls_cert ? "" : "; if it serves TLS, give --tls-cert as well");
    return ok ? 0 : 1;
}

static const char *not_an_address(const char *flag, const char *given, int example, char message[256]) {
    snprintf(message, 256, "%s: \"%.80s\" is not HOST:PORT of this machine, such as 127.0.0.1:%d (ports end at 65535)",
             flag, given, example);
    return message;
}

/* What options.def cannot say by itself. NULL when all is well. `message` is room for it. */
static const char *check_options(const options *o, log_level *level, char message[256]) {
    struct addrinfo *address;
    if (!log_level_from_name(o->log_level, level)) {
        return "--log-level: one of error, warn, info, debug";
    }
    if (strcmp(o->log_format, "logfmt") && strcmp(o->log_format, "json")) {
        return "--log-format: logfmt or json";
    }
    if (!devices_are_named_well(o->device)) {
        return "--device: one of auto, cpu, cuda (every GPU), cuda:N (that one), cuda:N,N (these)";
    }
    if (strcmp(o->durability, "disk") && strcmp(o->durability, "process")) {
        return "--durability: disk or process";
    }
    if (!*o->tls_cert != !*o->tls_key) {
        return "--tls-cert and --tls-key: one does not go without the other";
    }
    const char *origin;
    if (!origins_check(o->cors_origin, &origin)) {
        snprintf(message, 256,
                 "--cors-origin: \"%.*s\" is no origin as browsers say them, such as https://host:8443: small letters, "
                 "no path, no *",
                 (int)strnlen(origin, strcspn(origin, ",") < 80 ? strcspn(origin, ",") : 80), origin);
        return message;
    }
    if (!*o->data_dir) {
        return "--data-dir: an empty name";
    }
    if (!address_resolve(o->listen, &address)) {
        return not_an_address("--listen", o->listen, 8080, message);
    }
    const bool guarded = *o->token_file || o->allow_anonymous;
    bool local = address_is_loopback(address->ai_addr), open = !local && !guarded;
    freeaddrinfo(address);
    if (!local && o->shared_memory) {
        return "--shared-memory: only with a loopback --listen, since who asks could read this machine's objects";
    }
    if (open) {
        return "--listen: an address that is not loopback needs --token-file or --allow-anonymous";
    }
    if (!*o->ops_listen) {
        return NULL;
    }
    if (!address_resolve(o->ops_listen, &address)) {
        return not_an_address("--ops-listen", o->ops_listen, 8081, message);
    }
    open = !address_is_loopback(address->ai_addr) && !guarded;
    freeaddrinfo(address);
    return open ? "--ops-listen: an address that is not loopback needs --token-file or --allow-anonymous" : NULL;
}

/* One line of what listens where, for whoever waits for the port. */
static void announce(const char *what, bool encrypted, const char *listen, int port) {
    printf("lossd %s %s on http%s://%.*s:%d\n", LOSSD_VERSION, what, encrypted ? "s" : "",
           (int)(strrchr(listen, ':') - listen), listen, port);
}

/* After a start that failed. */
static int exit_code(const bx_error *error) {
    static const struct {
        const char *code;
        int exit;
    } table[] = {{"store_broken", 65},      {"device_unavailable", 69}, {"threads", 69}, {"store_read_only", 73},
                 {"store_unavailable", 75}, {CONFIGURATION, 78},        {"listen", 98}};
    for (size_t i = 0; error->status != BX_INVALID && i < sizeof table / sizeof *table; i++) {
        if (!strcmp(error->code, table[i].code)) {
            return table[i].exit;
        }
    }
    return error->status == BX_INVALID ? 2 : 1;
}

#define TWICE_NS (NS_PER_S / 2) /* who tells a process and its group says it once */

static int64_t told_ns; /* to stop */

/* Whoever says it again does not want to wait. What was acknowledged is on the disk. */
static void leave(int number) {
    (void)number;
    if (now_ns() - told_ns > TWICE_NS) {
        _exit(1);
    }
}

static void leave_if_told_again(void) {
    sigset_t again;
    sigemptyset(&again);
    sigaddset(&again, SIGTERM);
    sigaddset(&again, SIGINT);
    told_ns = now_ns();
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    pthread_sigmask(SIG_UNBLOCK, &again, NULL);
}

/* What is opened later must not come to be written to as if it were stderr. */
static void fill_standard_descriptors(void) {
    int fd = 0;
    while (fd >= 0 && fd <= STDERR_FILENO) {
        fd = open("/dev/null", O_RDWR);
    }
    if (fd >= 0) {
        close(fd);
    }
}

int main(int argc, char **argv) {
    static server server;
    char message[256];
    log_level level;
    fill_standard_descriptors();
    if (!options_parse(&server.options, argc, argv, message)) {
        return usage(message);
    }
    const options *o = &server.options;
    if (o->help) {
        options_help(stdout);
        return 0;
    }
    if (o->version) {
        puts("lossd " LOSSD_VERSION);
        return 0;
    }
    if (o->healthcheck) {
        return healthcheck(o);
    }
    const char *wrong = check_options(o, &level, message);
    if (wrong) {
        return usage(wrong);
    }
    log_setup(level, !strcmp(o->log_format, "json"));
    process_harden(o->core_dumps);
    options_warn();

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* every thread inherits this; they arrive at sigtimedwait below */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is a full disk */
    proto_init();

    bx_error error = {0};
    bx_status status = server_start(&server, &error);
    if (status != BX_OK) {
        fprintf(stderr, "lossd: %s\n", error.text);
        return exit_code(&error);
    }
    announce("listening", *o->tls_cert, o->listen, server.port);
    if (*o->ops_listen) {
        announce("ops", *o->tls_cert, o->ops_listen, server.ops_port);
    }
    fflush(stdout);

    int received = SIGHUP;
    int64_t tended_ns = now_ns();
    while (received < 0 || received == SIGHUP) {
        received = sigtimedwait(&signals, NULL, &(struct timespec){.tv_sec = SERVER_TEND_S});
        if (received == SIGHUP) {
            server_reload(&server);
        }
        if (now_ns() - tended_ns >= SERVER_TEND_S * NS_PER_S) { /* however often it is told to reload */
            server_tend(&server);
            tended_ns = now_ns();
        }
    }
    leave_if_told_again();
    server_stop(&server);
    if (bx_devices_lost()) { /* the driver's handlers at exit may wait for a device that hangs */
        _exit(0);
    }
    return 0;
}
