#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load for hours, a part of it hostile, on one daemon with clients that stay: nothing grows and nothing slows down.

HOURS=24 soak.py      (flags are the daemon's)

The clients rest about as long as they are served, so that the daemon has half of what it can do. Every MINUTE all of
them pause, and the daemon is looked at while it rests. After a warm-up (an hour, or a fifth of the time), the memory
may grow by 1 MiB an hour, and by what a heap may wander; descriptors and threads must stay what they are, answers as
fast as they were, and no answer may be a 5xx but 503.
"""
import os
import random
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lossd  # noqa: E402
from recorded import body, target  # noqa: E402

CLIENTS, STAYING, RUNS = 6, 48, 40
MIB = 1 << 20
WANDER = 6 * MIB   # of the heap, between two looks
LOOKS = 6          # at least
SLOWER = 1.5       # the 99th percentile, at most


class Grown(AssertionError):
    """Something is more than it was."""


def hostile(rng, daemon):
    """One thing that nobody should do."""
    head = b"POST /v1/loss HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
    tiny = lossd.tiny().safetensors()
    text = rng.choice([
        head % 5000 + b"\r\n" + os.urandom(rng.randrange(5000)), b"\0" * 300, b"GET /" + b"a" * 5000 + b"\r\n\r\n",
        head % len(tiny) + b"Transfer-Encoding: chunked\r\n\r\n" + tiny, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200,
        head % len(tiny) + b"\r\n" + tiny[:rng.randrange(len(tiny))], b"PUT /v1/criteria/x HTTP/1.1\r\nHost: x\r\n"
        b"Content-Length: 20000\r\n\r\n" + b"[" * 20000, head % (1 << 62) + b"\r\n"])
    with daemon.connect() as connection:
        connection.try_send(text)
        if rng.random() < 0.5:
            connection.reset()
        else:
            connection.half_close()
            connection.drain(0.5)


class Load:
    """Clients that go on until `stop`, and pause while `rest` is held."""

    def __init__(self, daemon, seed):
        self.daemon, self.seed = daemon, seed
        self.stop, self.go, self.failures = threading.Event(), threading.Event(), []
        self.lock, self.times, self.n, self.busy, self.resting = threading.Lock(), [], 0, 0, 0
        self.large = lossd.bccd_bytes()
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(CLIENTS)]

    def ask(self, connection, rng, step):
        kind = rng.random()
        if kind < 0.6:
            return connection.request("POST", target("soak-%d" % rng.randrange(RUNS), step), body(step % 50))
        if kind < 0.8:
            return connection.request("POST", "/v1/loss?include=gradients", body(step % 50))
        if kind < 0.85:
            return connection.request("POST", "/v1/loss", self.large, {"Content-Type": lossd.SAFETENSORS})
        if kind < 0.9:
            return connection.request("POST", "/v1/loss", lossd.tiny().json(), {"Content-Type": lossd.JSON})
        return connection.request("GET", rng.choice(["/v1/runs", "/metrics", "/", "/v1/priors", "/v1/runs/soak-1/steps"]))

    def one(self, connection, rng, step):
        if rng.random() < 0.05:
            return hostile(rng, self.daemon)
        begin = time.monotonic()
        answer = self.ask(connection, rng, step)
        took = time.monotonic() - begin
        if answer.status >= 500 and answer.status != 503:
            raise Grown("an answer: %r" % answer)
        with self.lock:
            self.n += 1
            self.busy += answer.status == 503
            self.times.append(took)
        time.sleep(took)

    def work(self, i):
        rng, step = random.Random(self.seed + i), i
        try:
            with self.daemon.connect() as connection:
                while not self.stop.is_set():
                    if not self.go.is_set():
                        with self.lock:
                            self.resting += 1
                        self.go.wait()
                        with self.lock:
                            self.resting -= 1
                    self.one(connection, rng, step)
                    step = (step + CLIENTS) % 5000   # of each run so many at most: what is stored does not grow for ever
        except BaseException as failure:  # noqa: B902 - raised by whoever looks
            self.failures.append(failure)

    def rest(self):
        """Everybody rests; what the load has come to since the last time: (requests, 503s, the 99th percentile)."""
        self.go.clear()
        if not lossd.until(lambda: self.failures or self.resting == CLIENTS):
            raise Grown("a client waits for ever")
        if self.failures:
            raise self.failures[0]
        times, self.times = sorted(self.times), []
        n, self.n, busy, self.busy = self.n, 0, self.busy, 0
        return n, busy, times[len(times) * 99 // 100] if times else 0.0

    def end(self):
        self.stop.set()
        self.go.set()
        for thread in self.threads:
            thread.join()


def look(daemon, pause):
    """(memory, descriptors, threads) of a daemon that rests, once it has given back what it will."""
    lossd.until(lambda: daemon.metric("connections") <= STAYING + CLIENTS + 1, 5, 0.1)
    best = daemon.memory()
    for _ in range(5):
        time.sleep(pause)
        best = min(best, daemon.memory())
    return best, daemon.descriptors(), daemon.metric("process_threads")


def soak(daemon, seconds, minute=60.0, say=lambda *what: None, wander=WANDER):
    """Raises Grown."""
    load, looks = Load(daemon, 1), []
    staying = [daemon.connect() for _ in range(STAYING)]
    for connection in staying:
        connection.request("GET", "/healthz")
    for thread in load.threads:
        thread.start()
    begin = time.monotonic()
    warm = begin + min(3600.0, seconds / 5)
    try:
        while time.monotonic() < begin + seconds or len(looks) < LOOKS:
            load.go.set()
            time.sleep(minute)
            n, busy, slowest = load.rest()
            now = time.monotonic()
            seen = (now, *look(daemon, min(0.2, minute / 10)), slowest)
            say("%7.0f s: %d requests (%d x 503), p99 %.1f ms; %.1f MiB, %d descriptors, %d threads"
                % (now - begin, n, busy, slowest * 1e3, seen[1] / MIB, seen[2], seen[3]))
            if now >= warm:
                looks.append(seen)
    finally:
        load.end()
    judge(looks, wander)
    for connection in staying:   # idle all the time
        connection.close()


def judge(looks, wander):
    times, memory, descriptors, threads, slowest = zip(*looks)
    third = max(1, len(looks) // 3)
    grown = min(memory[-third:]) - min(memory[:third])
    hours = (times[-1] - times[0]) / 3600
    if grown > wander + hours * MIB:
        raise Grown("memory grew by %.1f MiB in %.2f h, from %.1f" % (grown / MIB, hours, min(memory[:third]) / MIB))
    if max(descriptors[-third:]) > max(descriptors[:third]) + 2 or max(threads) != min(threads):
        raise Grown("descriptors %r, threads %r" % (descriptors, threads))
    early, late = sorted(slowest[:third])[third // 2], sorted(slowest[-third:])[third // 2]
    if late > SLOWER * early + 0.005:
        raise Grown("the 99th percentile was %.1f ms and is %.1f ms" % (early * 1e3, late * 1e3))


def main():
    hours = float(os.environ.get("HOURS") or 24)
    with tempfile.TemporaryDirectory(prefix="lossd-") as home:
        with lossd.Daemon("--data-dir", os.path.join(home, "data"), "--log-level", "error", "--idle-timeout", "3600",
                          *sys.argv[1:]) as daemon:
            try:
                soak(daemon, hours * 3600, min(60.0, hours * 3600 / 12), lambda what: print(what, flush=True))
            except Grown as failure:
                print("soak: %s" % failure)
                return 1
    print("soak: %g hours: nothing grew" % hours)
    return 0


if __name__ == "__main__":
    sys.exit(main())
