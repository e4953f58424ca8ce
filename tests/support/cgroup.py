# SPDX-License-Identifier: Apache-2.0
"""A memory cgroup of our own, of either version, where we may make one."""
import contextlib
import os
import re

ROOT = "/sys/fs/cgroup"


class Unavailable(Exception):
    """No such group can be made here."""


def own_path(controller):
    """Where this process is: of version 1 in the hierarchy of a controller, of version 2 with ""."""
    with open("/proc/self/cgroup") as file:
        found = re.search(r"^\d+:%s:(.*)$" % (r"(?:[^:]*,)?%s(?:,[^:]*)?" % controller if controller else ""), file.read(),
                          re.M)
    if not found:
        raise Unavailable("no %s cgroup" % (controller or "unified"))
    return found.group(1).lstrip("/")


class Memory:
    """Processes that are started `inside` share a limit; the group goes at the end of the `with`, after they have."""

    def __init__(self, name):
        self.old = os.path.isdir(os.path.join(ROOT, "memory"))
        parent = os.path.join(ROOT, "memory", own_path("memory")) if self.old else os.path.join(ROOT, own_path(""))
        self.parent, self.path = parent, os.path.join(parent, "%s-%d" % (name, os.getpid()))
        try:
            os.mkdir(self.path)
        except OSError as failure:
            raise Unavailable(str(failure))
        if not os.path.exists(self.file("limit")):
            os.rmdir(self.path)
            raise Unavailable("the memory controller is not handed down to %s" % parent)

    def file(self, what):
        old = {"limit": "memory.limit_in_bytes", "peak": "memory.max_usage_in_bytes", "kills": "memory.oom_control"}
        new = {"limit": "memory.max", "peak": "memory.peak", "kills": "memory.events"}
        return os.path.join(self.path, (old if self.old else new)[what])

    def limit(self, size):
        with open(self.file("limit"), "w") as out:
            out.write("%d" % size)

    def peak(self):
        with open(self.file("peak")) as file:
            return int(file.read())

    def kills(self):
        with open(self.file("kills")) as file:
            return int(re.search(r"^oom_kill (\d+)", file.read(), re.M).group(1))

    def move(self, path):
        with open(os.path.join(path, "cgroup.procs"), "w") as out:
            out.write("%d" % os.getpid())

    @contextlib.contextmanager
    def inside(self):
        self.move(self.path)
        try:
            yield
        finally:
            self.move(self.parent)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.rmdir(self.path)
