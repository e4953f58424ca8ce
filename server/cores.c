/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many cores this process may use: those of its affinity, and no more than the CPU quotas of its cgroup (version 2)
 * and of those above it allow. In a container its own is the root of what it sees; under systemd (CPUQuota=) it is not.
 */
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "server.h"

#define GROUP 4096 /* of a path below the root of cgroups */

/* Where /proc says that this process is, "/system.slice/lossd.service"; empty: at the root, or nobody knows. */
static void read_group(const char *root, char group[GROUP]) {
    char path[GROUP + 64], line[GROUP];
    *group = '\0';
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (!strncmp(line, "0::/", 4)) { /* version 2; other numbers are version 1's */
            copy_text(group, GROUP, line + 3);
        }
    }
    if (file) {
        fclose(file);
    }
}

/* Whole cores that a group's quota needs; LONG_MAX: it has none. */
static long quota_of(const char *root, const char *group) {
    char path[2 * GROUP];
    long quota, period, cores = LONG_MAX;
    snprintf(path, sizeof path, "%s/sys/fs/cgroup%s/cpu.max", root, group);
    FILE *file = fopen(path, "re");
    if (!file) {
        return LONG_MAX;
    }
    if (fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
        cores = quota / period + (quota % period > 0);
    }
    fclose(file);
    return cores;
}

long usable_cores(const char *root) {
    cpu_set_t set;
    char group[GROUP];
    long cores = sched_getaffinity(0, sizeof set, &set) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    read_group(root, group);
    for (char *end = group + strlen(group); end; end = strrchr(group, '/')) {
        *end = '\0';
        const long allowed = quota_of(root, group);
        cores = allowed < cores ? allowed : cores;
    }
    return cores > 0 ? cores : 1;
}
