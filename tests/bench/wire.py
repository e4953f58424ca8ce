# SPDX-License-Identifier: Apache-2.0
"""Services under measurement and connections to them that keep time."""
import collections
import json
import os
import re
import select
import socket
import subprocess
import tempfile
import time

from bodies import SAFETENSORS

Reply = collections.namedtuple("Reply", "ms tail_ms status body")   # tail: from the last byte sent to the first back


class Service:
    """A process that prints where it listens; stopped at the end of the `with`."""

    def __init__(self, *command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOSSD")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                        env=environment)
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            self.process.kill()
            raise RuntimeError(f"{command[0]} does not start: {line!r}")
        self.port = int(found[1])

    def url(self, target):
        return f"http://127.0.0.1:{self.port}{target}"

    def peak_rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmHWM:\s+(\d+) kB", f.read())[1]) * 1024

    def processor(self):
        """Seconds of it that were used."""
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


class Lossd(Service):
    def __init__(self, *flags):
        self.home = tempfile.TemporaryDirectory(prefix="bench-")
        super().__init__("build/release/lossd", "--listen", "127.0.0.1:0", "--log-level", "error", "--data-dir",
                         os.path.join(self.home.name, "data"), *flags)

    def __exit__(self, *exc):
        super().__exit__(*exc)
        self.home.cleanup()


def discard(answer_bytes):
    return Service("build/release/bench/discard", str(answer_bytes))


def head_of(target, length, kind=SAFETENSORS, accept=None, method="POST"):
    """`length` None: chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = f"Accept: {accept}\r\n" if accept else ""
    return f"{method} {target} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\n{more}{size}\r\n\r\n".encode()


def other_control(wanted="cubic"):
    """Debian's congestion control where this kernel has another but lets us have that; else None."""
    with socket.socket() as s:
        usual = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        try:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
        except OSError:
            return None
    return wanted if usual != wanted else None


class Connection:
    def __init__(self, service, control=None):
        """`control`: of congestion, unless it is the kernel's choice. Before connecting: bbr's pacing outlasts bbr."""
        self.socket = socket.socket()
        if control:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", service.port))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def ask(self, head, body):
        """One request and its answer, which must be a 200 or a 201."""
        start = time.perf_counter()
        self.socket.sendall(head)
        self.socket.sendall(body)
        sent = time.perf_counter()
        answer = self.socket.recv(1 << 16)
        back = time.perf_counter()
        status, body = self.rest(answer)
        assert status in (200, 201), (status, body[:500])
        return Reply((time.perf_counter() - start) * 1e3, (back - sent) * 1e3, status, body)

    def rest(self, answer):
        while b"\r\n\r\n" not in answer:
            answer += self.receive(1 << 16)
        head, body = answer.split(b"\r\n\r\n", 1)
        left = int(re.search(rb"(?i)content-length: (\d+)", head)[1]) - len(body)
        pieces = [body]
        while left > 0:
            pieces.append(self.receive(min(left, 1 << 20)))
            left -= len(pieces[-1])
        return int(head.split(None, 2)[1]), b"".join(pieces)

    def receive(self, most):
        piece = self.socket.recv(most)
        if not piece:
            raise ConnectionError("closed within an answer")
        return piece

    def upload(self, head, body):
        """One request that may be refused before it is sent whole: the status, or 0 when the connection broke."""
        view = memoryview(body)
        try:
            self.socket.sendall(head)
            self.socket.setblocking(False)
            while view and not select.select([self.socket], [self.socket], [], 60)[0]:
                view = view[self.socket.send(view[:1 << 20]):]
            self.socket.setblocking(True)
            return self.rest(self.receive(1 << 16))[0]
        except OSError:
            return 0


class SharedObject:
    """A POSIX shared memory object, removed at the end of the `with`."""

    def __init__(self, size):
        self.key, self.bytes = f"/lossd-bench-{os.getpid()}", size
        self.file = open("/dev/shm" + self.key, "x+b")
        os.ftruncate(self.file.fileno(), size)

    def write(self, at, data):
        os.pwrite(self.file.fileno(), data, at)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()
        os.unlink("/dev/shm" + self.key)


def put(service, target, body, kind, method="PUT"):
    with Connection(service) as c:
        return c.ask(head_of(target, len(body), kind, method=method), body)


def pairs(count, ours, theirs, warm_up=3):
    """Take turns; two lists of what they return."""
    a, b = [], []
    for i in range(-warm_up, count):
        x, y = ours(i + warm_up), theirs(i + warm_up)
        if i >= 0:
            a.append(x)
            b.append(y)
    return a, b


def run_json(*command, env=None):
    """The JSON in the last line that a program prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **(env or {})})
    return json.loads(done.stdout.strip().splitlines()[-1])
