#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the end-to-end tests against $LOSSD (or build/lossd): `run.py [name part...]`.

Failures are printed as each module ends, skips by name; the last line is `N passed, N failed`. With TIMES=1 the slowest
tests are listed; with FAILFAST=1 no module is begun after a failure has been seen.
"""
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ALONE = {"test_detectors", "test_limits", "test_resources", "test_slow", "test_stream"}
LIMIT = 1800   # seconds for a module
SLOWEST = 15

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
sys.dont_write_bytecode = True
import lossd  # noqa: E402


class Result(unittest.TestResult):
    """Counts tests, not subtests: a test with failing subtests has failed once."""

    def __init__(self):
        super().__init__()
        self.bad, self.ran, self.slow = set(), 0, []

    def _report(self, test, error):
        print("FAIL %s\n%s" % (test.id(), self._exc_info_to_string(error, test)), flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()

    def stopTest(self, test):
        super().stopTest(test)
        self.ran += 1
        self.slow.append((time.monotonic() - self.begin, test.id()))

    def addError(self, test, error):
        self.bad.add(test.id())
        self._report(test, error)

    addFailure = addError

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.bad.add(test.id())
            self._report(subtest, error)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print("skipped %s: %s" % (test.id(), reason), flush=True)


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def show_times(times):
    for seconds, name in sorted(times, reverse=True)[:SLOWEST]:
        print("%6.2f s  %s" % (seconds, name))


def take_times(lines):
    """Those of `lines` that are not of show_times, and what it was given."""
    found = [re.fullmatch(r" *([0-9.]+) s  (\S+)", line) for line in lines]
    return [line for line, row in zip(lines, found) if not row], [(float(t[1]), t[2]) for t in found if t]


def run_here(parts):
    signal.signal(signal.SIGINT, signal.default_int_handler)   # even if we were started without
    tests = list(flatten(unittest.TestLoader().discover(HERE)))
    tests = [t for t in tests if any(part in t.id() + "." for part in parts)]   # one that cannot be imported ends in its name
    result = Result()
    result.failfast = bool(os.environ.get("FAILFAST"))   # at the first subtest too
    unittest.TestSuite(tests).run(result)
    if os.environ.get("TIMES"):
        show_times(result.slow)
    skipped = len({test.id() for test, _ in result.skipped})
    failed = len(result.bad)
    passed = result.ran - skipped - len([name for name in result.bad if not name.startswith(("setUp", "tearDown"))])
    return passed, failed


def run_module(name):
    """In a process of its own -> what it printed before its last line, passed, failed"""
    with tempfile.TemporaryFile() as output:   # a pipe would be waited for as long as anybody holds it
        child = subprocess.Popen([sys.executable, __file__, name + "."], stdout=output, stderr=subprocess.STDOUT)
        try:
            status = child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)   # it stops its daemons
            try:
                status = child.wait(lossd.PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
        output.seek(0)
        *lines, last = output.read().decode(errors="replace").splitlines() or [""]
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", last)
    if not counts or status not in (0, 1):
        return lines + [last, "FAIL %s ended with status %d" % (name, status)], 0, 1
    return lines, int(counts[1]), int(counts[2])


def run_all():
    """Most of a test is waiting: modules run two at a time, and then, alone, those that measure the whole machine."""
    names = sorted(n[:-3] for n in os.listdir(HERE) if n.startswith("test_") and n.endswith(".py"))
    passed, failed, times = 0, 0, []
    for together, workers in ((lambda n: n not in ALONE, 2), (lambda n: n in ALONE, 1)):
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            left = [pool.submit(run_module, name) for name in filter(together, names)]
            while left:
                ended, left = concurrent.futures.wait(left, return_when=concurrent.futures.FIRST_COMPLETED)
                for module in ended:
                    lines, good, bad = module.result()
                    lines, slow = take_times(lines)
                    print("\n".join(lines), end="\n" if lines else "", flush=True)
                    passed, failed, times = passed + good, failed + bad, times + slow
                if failed and os.environ.get("FAILFAST"):
                    left = [module for module in left if not module.cancel()]
        if failed and os.environ.get("FAILFAST"):
            break
    show_times(times)
    return passed, failed


def main():
    if not os.access(lossd.BINARY, os.X_OK):
        print("%s is not there; run `make` first" % lossd.BINARY)
        return 2
    passed, failed = run_here(sys.argv[1:]) if len(sys.argv) > 1 else run_all()
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
