# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody should send, and what must be true after each.

The rows have ids (H01 framing, J01 JSON, B01 binary bodies, M01 meaning); a test is named after its row. `Hostile` is
the TestCase of all of them: one daemon per class; after each request one answer of the documented form and a health
check within a second, after each test the threads and descriptors of before, at the end the memory of before.

Some faults are found by libmicrohttpd before the daemon is called; its answers are HTML. `STRICT` tells the library from
the one before it: 1.0 refuses what 0.9 repairs or does not see.
"""
import ctypes
import ctypes.util
import functools
import os
import re
import time

import lossd

try:
    import jsonschema
    import yaml
except ImportError:  # the tests of the document itself say that they are skipped
    jsonschema = yaml = None

# Of memory, above what it was, after a class of hostile requests: buffers that are kept warm. A sanitizer keeps pages of
# what was freed, whatever it is told.
MARGIN = 40 << 20
SANITIZED_MARGIN = 192 << 20
PROMPT = 1.0        # seconds for the health check
HOST = b"Host: localhost\r\n"
SMUGGLED = b"smuggled"
HIDDEN = b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: smuggled\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


def library():
    """(major, minor) of the libmicrohttpd that the daemon is linked with: the system's."""
    found = ctypes.CDLL(ctypes.util.find_library("microhttpd") or "libmicrohttpd.so.12")
    found.MHD_get_version.restype = ctypes.c_char_p
    return tuple(int(part) for part in found.MHD_get_version().decode().split(".")[:2])


@functools.cache
def sanitizer():
    """b"a" or b"t", for addresses or threads, or None."""
    with open(lossd.BINARY, "rb") as file:
        found = re.search(rb"__([at])san_init", file.read())
    return found and found[1]


def margin():
    return SANITIZED_MARGIN if sanitizer() else MARGIN


STRICT = library() >= (1, 0)


def request(method, target, *fields, body=b"", version="HTTP/1.1", host=HOST):
    """The bytes of a request; fields are whole lines without their ends."""
    line = b"%s %s %s\r\n" % (as_bytes(method), as_bytes(target), as_bytes(version))
    return line + host + b"".join(as_bytes(field) + b"\r\n" for field in fields) + b"\r\n" + body


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode("latin-1")


def resident(daemon):
    """Bytes of memory, without what the thread sanitizer notes about them: it takes up to five times as many, and keeps
    them. They are not reserved, and below every stack, library and heap."""
    if sanitizer() != b"t":
        return daemon.memory()
    notes = 0
    with open("/proc/%d/smaps" % daemon.pid, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, *values = line.split()
            if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", name):
                begin = int(name.partition("-")[0], 16)
            elif name == "Rss:":
                here = int(values[0]) << 10
            elif name == "VmFlags:" and "nr" in values and begin < 0x7000 << 32:
                notes += here
    return daemon.memory() - notes


class Documented:
    """The shape of a refusal as proto/openapi.yaml has it."""
    validator = None

    @classmethod
    def check(cls, body):
        if yaml is None:
            return
        if cls.validator is None:
            with open(os.path.join(lossd.ROOT, "proto", "openapi.yaml"), encoding="utf-8") as file:
                document = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            cls.validator = jsonschema.Draft202012Validator(
                {"$ref": "#/components/schemas/Problem", "components": document["components"]})
        errors = [error.message for error in cls.validator.iter_errors(body)]
        if errors:
            raise AssertionError("not a documented problem: %r\n%r" % (errors[:3], body))


class Hostile(lossd.Case):
    @classmethod
    def setUpClass(cls):
        # what the sanitizer keeps of freed memory is not what the daemon holds
        options = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1:allocator_release_to_os_interval_ms=100"
        cls.daemon = lossd.Daemon("--log-format", "json", *cls.FLAGS, env={"ASAN_OPTIONS": options.lstrip(":")})
        cls.warm()
        cls.before = cls.held()
        cls.log_seen = 0

    @classmethod
    def warm(cls):
        """Every path once, so that what is made once has been made."""
        tiny = lossd.tiny()
        document, behind = lossd.inference(tiny.tensors())
        text = lossd.json.dumps(document).encode()
        for _ in range(3):
            cls.daemon.post("/v1/loss", tiny.safetensors())
            cls.daemon.post("/v1/loss", tiny.json())
            cls.daemon.post("/v2/models/ssd-multibox/infer", text + behind, None, lossd.infer_headers(text))
            cls.daemon.get("/metrics")

    @classmethod
    def held(cls):
        """(threads, descriptors, bytes of memory)"""
        return int(cls.daemon.status()["Threads"]), cls.daemon.descriptors(), resident(cls.daemon)

    @classmethod
    def tearDownClass(cls):
        if cls.daemon:
            most = cls.before[2] + margin()
            lossd.until(lambda: cls.held()[2] <= most, 3)
            after = cls.held()[2]
            recorded = cls.daemon.get("/v1/runs").json()["runs"]
            hidden = [event for event in cls.executed() if event["id"] == SMUGGLED.decode()]
            super().tearDownClass()
            if after > most:
                raise AssertionError("%d KiB of memory, %d before" % (after >> 10, cls.before[2] >> 10))
            if recorded or hidden:
                raise AssertionError("executed: %r, recorded: %r" % (hidden, recorded))

    def tearDown(self):
        self.healthy()
        self.assertNotIn(SMUGGLED.decode(), [event["id"] for event in self.executed()])
        self.assertTrue(lossd.until(lambda: self.held()[:2] <= self.before[:2], 3),
                        "%r threads and descriptors, %r before" % (self.held()[:2], self.before[:2]))

    def healthy(self, daemon=None):
        begin = time.monotonic()
        super().healthy(daemon)
        self.assertLess(time.monotonic() - begin, PROMPT)

    @classmethod
    def executed(cls):
        """The requests that the daemon logged since the last look, refused ones too, oldest first."""
        text = cls.daemon.log()
        lines, cls.log_seen = text[cls.log_seen:].splitlines(), len(text)
        events = [lossd.strict_json(line.encode()) for line in lines]
        return [event for event in events if event["event"] == "request"]

    def send(self, data, timeout=3.0, until_eof=False):
        """(all that comes back, whether the peer closed)"""
        with self.daemon.connect() as connection:
            if connection.try_send(data) and until_eof:
                connection.half_close()
            return connection.drain(timeout)

    def one_of(self, answer, statuses, codes, library):
        """A refusal in one of the forms there are."""
        if answer.body.startswith(b"<html>"):
            self.assertTrue(library == "any" or (library == "strict" and STRICT), "libmicrohttpd's own: %r" % answer)
            self.assertIn(answer.status, statuses)
        elif answer.type == lossd.JSON:   # of the Open Inference Protocol
            self.error(answer, answer.status)
            self.assertIn(answer.status, statuses)
        else:
            Documented.check(self.problem(answer, statuses, codes))

    def refused(self, data, statuses, codes=None, library=None, twice=False):
        """One answer, with one of these statuses, and the end of the connection: what follows is not executed.

        library: "any": it may be libmicrohttpd's own answer, "strict": of 1.0 and later. twice: the older one writes the
        header of such an answer twice, the second time as the beginning of the body."""
        statuses = statuses if isinstance(statuses, tuple) else (statuses,)
        text, closed = self.send(data)
        self.assertTrue(closed, "the connection is still open after %r: %r" % (data[:200], text[:200]))
        heads = STATUS.findall(text)
        self.assertIn(len(heads), (1, 2) if twice and not STRICT else (1,), (data[:200], text[:400]))
        self.assertNotIn(SMUGGLED, text)
        if len(heads) == 1:
            (answer,) = lossd.parse(text)
            self.one_of(answer, statuses, codes, library)
        else:
            self.assertTrue(all(int(head) in statuses for head in heads), heads)
        self.healthy()

    def kept(self, data, statuses, codes=None):
        """One refusal, and the connection goes on: the next request is the next one. Returns the answer."""
        statuses = statuses if isinstance(statuses, tuple) else (statuses,)
        with self.daemon.connect() as connection:
            connection.send(data)
            answer = connection.answer(head=data.startswith(b"HEAD "))
            self.one_of(answer, statuses, codes, None)
            following = connection.request("GET", "/version", None, {"X-Request-Id": "following"})
            self.assertEqual((following.status, following.header("X-Request-Id")), (200, "following"), data[:200])
            self.assertTrue(connection.silent(0))
        self.healthy()
        return answer

    def served(self, data, count=1):
        """So many answers, all 200, and no more."""
        with self.daemon.connect() as connection:
            connection.send(data)
            answers = [connection.answer() for _ in range(count)]
            self.assertEqual([a.status for a in answers], [200] * count, answers)
            self.assertEqual(connection.drain(0.02)[0], b"")
        self.healthy()
        return answers

    def ended(self, data, timeout=3.0):
        """What cannot be answered in its middle, or never ends: closed, at the latest when its sender ends it, with a
        refusal at most."""
        text, closed = self.send(data, timeout, until_eof=True)
        self.assertTrue(closed, data[:200])
        self.assertNotIn(SMUGGLED, text)
        self.assertLessEqual(len(STATUS.findall(text)), 1, text[:400])
        self.assertFalse([s for s in STATUS.findall(text) if not 400 <= int(s) <= 501], text[:400])
        self.healthy()


class Refusals(Hostile):
    """Bodies that are refused: each leaves its connection as it was, for the next one."""

    FLAGS = ("--workers", "2")

    def setUp(self):
        self.connection = self.daemon.connect()

    def tearDown(self):
        try:
            self.assertEqual(self.ask(lossd.tiny().safetensors(), lossd.SAFETENSORS).status, 200)
        finally:
            self.connection.close()
        super().tearDown()

    def ask(self, body, kind, target="/v1/loss", **fields):
        return self.connection.request("POST", target, body, {"Content-Type": kind, **fields})

    def refuse(self, body, kind, status, codes=None, detail=None, pointer=None, target="/v1/loss"):
        problem = self.problem(self.ask(body, kind, target), status, codes, detail, pointer)
        Documented.check(problem)
        self.assertLess(len(problem["detail"]), 400)  # little of what was sent comes back
        self.healthy()
        return problem

    def json(self, body, *args, **more):
        if isinstance(body, dict):
            body = lossd.json.dumps(body)
        return self.refuse(as_bytes(body), lossd.JSON, *args, **more)

    def binary(self, body, *args, **more):
        return self.refuse(body, lossd.SAFETENSORS, *args, **more)

    def infer(self, document, behind, status, text="", target="/v2/models/ssd-multibox/infer", headers=None):
        """An inference that is refused; `document` may be its bytes."""
        body = document if isinstance(document, bytes) else lossd.json.dumps(document).encode()
        fields = lossd.infer_headers(body) if headers is None else headers
        said = self.error(self.connection.request("POST", target, body + behind, fields), status, text)
        self.assertLess(len(said), 500)
        self.healthy()
        return said

    def right(self, answer):
        """What was accepted: its object."""
        got = self.good(answer)
        self.healthy()
        return got


def edited(document, path, value=None):
    """A copy with one member replaced, or removed where the value is None."""
    made = lossd.json.loads(lossd.json.dumps(document))
    at = made
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made

