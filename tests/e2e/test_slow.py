# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow on purpose: all of their heads, bodies and reading has a total deadline, whatever drips.

slowhttptest holds $ATTACKERS connections (100) of each kind for $SECONDS (15; `make e2e-slow`: 1,000 and 240), while
probes at both listeners get their answers within a second.
"""
import csv
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import lossd  # noqa: E402

ATTACKERS = int(os.environ.get("ATTACKERS", "100"))
SECONDS = int(os.environ.get("SECONDS", "15"))
LONG = SECONDS >= 120
LATE = 4.0          # seconds: of the ramp of slowhttptest, its clock of whole seconds, and the one that is allowed
MOST = 1 << 20      # bytes of memory for a slow connection, of which each may have a buffer of half of that
HEADER, REQUEST, IDLE = 3, 5, 6   # seconds
LARGE = "/v1/priors/retinanet-1536x1536"   # 7 MB, which no kernel takes for a client that does not read
LESS = LARGE if LONG else "/v1/priors/retinanet-640x640"


class Prober(threading.Thread):
    """Asks again and again, each time on a connection of its own, and keeps the slowest answer of each port: of the
    daemon's two, and of another daemon's, which is at peace. What that one takes is the machine's. And the most memory."""

    def __init__(self, daemon, other):
        super().__init__()
        self.daemon, self.most = daemon, 0
        self.ports = ((daemon.ops_port, "/healthz"), (daemon.ops_port, "/metrics"), (daemon.port, "/healthz"),
                      (daemon.port, "/v1/priors/ssd300"), (other.port, "/healthz"))
        self.over, self.slowest, self.asked, self.failures = threading.Event(), {}, 0, []

    def once(self, port, target):
        begin = time.monotonic()
        try:
            with lossd.Connection(port, 5) as connection:
                status = connection.request("GET", target).status
        except (OSError, lossd.Closed) as failure:
            status = failure
        if status != 200:
            self.failures.append((target, status))
        self.slowest[port] = max(self.slowest.get(port, 0.0), time.monotonic() - begin)
        self.asked += 1

    def run(self):
        while not self.over.wait(0.1):
            self.most = max(self.most, hostile.resident(self.daemon))
            for port, target in self.ports:
                self.once(port, target)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.join()


class Slow(lossd.Case):
    FLAGS = ("--header-timeout", str(HEADER), "--request-timeout", str(REQUEST), "--idle-timeout", str(IDLE),
             "--connection-limit", str(3 * ATTACKERS + 64), "--ops-listen", "127.0.0.1:0", "--log-level", "warn")

    @classmethod
    def setUpClass(cls):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        super().setUpClass()

    def attack(self, target, *flags):
        """The rows that slowhttptest writes, one a second: (second, closed, connected)."""
        with tempfile.TemporaryDirectory() as home:
            prefix = os.path.join(home, "rows")
            done = subprocess.run(
                ["slowhttptest", "-c", str(ATTACKERS), "-r", str(ATTACKERS), "-l", str(SECONDS), "-p", "1", "-g", "-o",
                 prefix, "-u", "http://127.0.0.1:%d%s" % (self.daemon.port, target), *flags],
                capture_output=True, timeout=SECONDS + 60, check=False)
            self.assertEqual(done.returncode, 0, done.stdout[-2000:])
            with open(prefix + ".csv", encoding="ascii") as file:
                rows = list(csv.DictReader(file))
        self.assertGreater(max(int(row["Connected"]) for row in rows), 0.8 * ATTACKERS, rows)
        return [(int(row["Seconds"]), int(row["Closed"]), int(row["Connected"])) for row in rows]

    def closed_by(self, deadline, rows):
        """So long after the last one was there. slowhttptest ends when it has none left, and has not counted the last."""
        all_there = next(second for second, closed, connected in rows if closed + connected > 0.98 * ATTACKERS)
        self.assertLess(rows[-1][0], min(all_there + deadline + LATE, SECONDS), rows)

    def stalled(self, target, read):
        """A client that does not read its answer, or as little as it can: the seconds until it is reset, and what it is owed
        is forgotten."""
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", self.daemon.port))
            client.sendall(hostile.request("GET", target, "Accept: " + lossd.SAFETENSORS))
            begin = time.monotonic()
            while time.monotonic() - begin < 90:
                time.sleep(0.25)
                if client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7:   # TCP_CLOSE: it was reset
                    return time.monotonic() - begin
                if read:
                    try:
                        client.recv(read, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        pass
        self.fail("still there after 90 seconds")

    @unittest.skipUnless(shutil.which("slowhttptest"), "slowhttptest is not installed")
    def test_H34_H35_H36_slow_clients(self):
        before, idle = self.daemon.descriptors(), hostile.resident(self.daemon)
        with lossd.Daemon() as other, Prober(self.daemon, other) as prober:
            attacks = [
                lambda: self.attack("/healthz", "-H", "-i", "1"),
                lambda: self.attack("/v1/loss", "-B", "-i", "1", "-s", "65536", "-f", "application/octet-stream"),
                lambda: self.attack("/openapi.yaml", "-X", "-n", "1", "-z", "32", "-w", "10", "-y", "20", "-k", "3")]
            if LONG:   # one after another: the attackers would take the processor from the probes
                attacks = [lambda each=attacks: [attack() for attack in each]]
            *rows, deaf, sipping = lossd.together([*attacks, lambda: self.stalled(LARGE, 0),
                                                    lambda: self.stalled(LESS, 64)])
            heads, bodies, reads = rows[0] if LONG else rows
            # the kernel's highest has the thread sanitizer's notes in it
            peak = prober.most if hostile.sanitizer() == b"t" else self.daemon.memory("VmHWM")
        if LONG:
            print("%d of each kind: heads closed after %d s, bodies %d s, readers %d s; slowest of %d probes %.0f ms; "
                  "%.0f MiB" % (ATTACKERS, heads[-1][0], bodies[-1][0], reads[-1][0], prober.asked,
                                max(prober.slowest.values()) * 1e3, peak / 2**20))
        self.closed_by(HEADER, heads)
        self.closed_by(REQUEST, bodies)
        if LONG:   # answers that the kernel has taken are over after the pause of a kept connection
            self.closed_by(3 * 25 + IDLE, reads)
        # who is silent is given up before the deadline of an answer of this size; what the kernel has taken is sent
        self.assertTrue(IDLE < deaf < HEADER + REQUEST + IDLE + LATE, deaf)
        size = len(self.daemon.get(LESS, Accept=lossd.SAFETENSORS).body)
        self.assertTrue(IDLE - 1 < sipping < 20 + size / (256 << 10) + LATE, sipping)
        self.assertGreater(prober.asked, 40)
        self.assertEqual(prober.failures, [])
        for port in (self.daemon.port, self.daemon.ops_port):
            self.assertLess(prober.slowest[port], 1.0 + prober.slowest[other.port], prober.slowest)
        self.assertLess(peak - idle, MOST * (3 * ATTACKERS + 64))
        self.assertTrue(lossd.until(lambda: self.daemon.descriptors() <= before, 10), self.daemon.descriptors())


if __name__ == "__main__":
    unittest.main()
