/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the process denies itself. System calls are filtered from outside (deploy/lossd.service, the container's
 * profile): a list in here would have to follow every library and every device's driver.
 */
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "access.h"

static void note(const char *what) {
    LOG(LOG_WARN, "start", {"text", "could not be set", 0}, {"what", what, 0}, {"cause", strerror(errno), 0});
}

/* A core dump holds tokens, keys and what was posted; so does the memory that a debugger of the same user reads. */
void process_harden(bool core_dumps) {
    struct rlimit cores;
    if (!core_dumps && !getrlimit(RLIMIT_CORE, &cores) && cores.rlim_max > 0 &&
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0})) {
        note("RLIMIT_CORE");
    }
    if (!core_dumps && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) {
        note("PR_SET_DUMPABLE");
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
        note("PR_SET_NO_NEW_PRIVS");
    }
}
