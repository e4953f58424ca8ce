# SPDX-License-Identifier: Apache-2.0
"""Overload, deadlines and clients that vanish: every refusal is clear, nothing is lost for good."""
import json
import os
import random
import re
import socket
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

TINY = lossd.tiny().safetensors()


def hold(daemon, size=len(TINY), target="/v1/loss"):
    """A connection whose request is admitted (100 Continue) and not yet sent; or refused: its answer."""
    connection = daemon.connect()
    connection.start("POST", target, {"Content-Type": lossd.SAFETENSORS, "Content-Length": size,
                                      "Expect": "100-continue"})
    if not lossd.select.select([connection.socket], [], [], lossd.PATIENCE)[0]:
        raise AssertionError("neither 100 Continue nor an answer")
    while b"\r\n" not in connection.kept:
        connection._fill()
    if connection.kept.startswith(b"HTTP/1.1 100"):
        connection.interim()
        return connection, None
    answer = connection.answer()
    connection.close()
    return None, answer


class BodySize(lossd.Case):
    FLAGS = ("--max-body", "64K", "--max-json", "16K", "--workers", "1")

    def test_at_the_limit(self):
        body = TINY + b"x" * (65536 - len(TINY))
        self.problem(self.daemon.post("/v1/loss", body, lossd.SAFETENSORS), 400)  # read, then found to be too long
        body = lossd.tiny().json()
        body += b" " * (16384 - len(body))
        self.assertEqual(self.daemon.post("/v1/loss", body, lossd.JSON).status, 200)

    def test_over_the_limit(self):
        with self.daemon.connect() as connection:
            for size, content_type in ((65537, lossd.SAFETENSORS), (1 << 20, lossd.SAFETENSORS), (16385, lossd.JSON)):
                with self.subTest(size):
                    answer = connection.request("POST", "/v1/loss", b" " * size, {"Content-Type": content_type})
                    self.problem(answer, 413, "body_too_large", r"\d")
                    self.assertEqual(connection.request("POST", "/v1/loss", TINY).status, 200)

    def test_guessed_json_over_its_limit(self):
        body = lossd.tiny().json()
        answer = self.daemon.post("/v1/loss", body + b" " * (20000 - len(body)))
        self.problem(answer, 413, "body_too_large")

    def test_before_it_is_sent(self):
        for size in (65537, 1 << 30, 1 << 40):
            connection, answer = hold(self.daemon, size)
            self.assertIsNone(connection)
            self.assertEqual(answer.interim, [])
            self.problem(answer, 413, "body_too_large", r"\d")

    def test_very_large_is_answered_at_once(self):
        with self.daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 65 << 20})
            self.problem(connection.answer(), 413, "body_too_large")
            self.assertEqual(connection.drain(5.0)[1], True)

    def test_H41_chunked_over_the_limit(self):
        piece = b"8000\r\n" + b" " * 32768 + b"\r\n"
        with self.daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Transfer-Encoding": "chunked"})
            for _ in range(8):
                if not connection.try_send(piece):
                    break
            connection.try_send(b"0\r\n\r\n")
            self.problem(connection.answer(), 413, "body_too_large")
        with self.daemon.connect() as connection:  # endless
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.JSON, "Transfer-Encoding": "chunked"})
            sent = 0
            while sent < 200 << 20 and connection.try_send(piece * 8):
                sent += 8 * 32768
            self.assertLess(sent, 200 << 20)
            self.problem(connection.answer(), 413, "body_too_large")


class Endless(lossd.Case):
    """A refused body that does not end: what is told when no more of it is read is why it was refused."""

    def ask(self, method, target, **headers):
        piece = b"8000\r\n" + b" " * 32768 + b"\r\n"
        with self.daemon.connect() as connection:
            connection.start(method, target, {"Content-Type": lossd.JSON, "Transfer-Encoding": "chunked", **headers})
            for _ in range(80):
                if not connection.try_send(piece * 32):
                    break
            return connection.answer()   # the body has no end, so none comes when it is read

    def test_what_was_decided_first_is_told(self):
        for method, target, status, code, headers in (
                ("POST", "/v1/nothing", 404, "not_found", {}), ("PATCH", "/v1/loss", 405, "method_not_allowed", {}),
                ("POST", "/v1/loss", 415, "unsupported_media_type", {"Content-Type": "text/plain"}),
                ("PUT", "/v1/criteria/ssd-keras", 409, "name_reserved", {}),
                ("POST", "/v1/loss", 403, "cross_site", {"Sec-Fetch-Site": "cross-site"})):
            with self.subTest(target=target, status=status):
                answer = self.ask(method, target, **headers)
                self.problem(answer, status, code)
                self.assertEqual(answer.header("Allow") is not None, status == 405)
        infer = "/v2/models/ssd-multibox/infer"
        self.error(self.ask("POST", infer, **{"Content-Encoding": "gzip"}), 400)   # found in its middle

    def test_HEAD_has_no_body(self):
        """Not when it is refused in the middle of its own, either."""
        piece = b"8000\r\n" + b" " * 32768 + b"\r\n"
        with self.daemon.connect() as connection:
            connection.start("HEAD", "/v1/runs", {"Transfer-Encoding": "chunked"})
            while connection.try_send(piece) and connection.silent(0):
                pass
            answer = connection.answer(head=True)
            self.assertEqual((answer.status, answer.type), (413, "application/problem+json"))
            self.assertGreater(int(answer.header("Content-Length")), 0)
            self.assertEqual(connection.drain(5), (b"", True))

    def test_what_would_be_good(self):
        self.problem(self.ask("GET", "/v1/priors"), 413, "body_too_large")
        self.problem(self.ask("GET", "/v1/runs"), 413, "body_too_large")


class Queue(lossd.Case):
    FLAGS = ("--queue-limit", "1", "--workers", "1")

    def test_full(self):
        held, answer = hold(self.daemon)
        self.assertIsNone(answer)
        for _ in range(3):
            refused = self.daemon.post("/v1/loss", TINY, lossd.SAFETENSORS)
            self.problem(refused, 503, "queue_full")
            _, refused = hold(self.daemon)
            self.assertEqual(refused.interim, [])
            self.problem(refused, 503, "queue_full")
        self.healthy()
        self.assertEqual(self.daemon.get("/v1/priors").status, 200)
        held.send(TINY)
        self.assertEqual(held.answer().status, 200)
        held.close()
        self.served_soon(self.daemon)

    def test_full_is_told_before_the_body_is_read(self):
        """A large body that nobody will read: the answer does not wait for it, and is not lost."""
        held, answer = hold(self.daemon)
        self.assertIsNone(answer)
        with self.daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 8 << 20})
            self.problem(connection.answer(), 503, "queue_full")   # nothing of it was sent
        for _ in range(20):
            refused = self.daemon.post("/v1/loss", bytes(8 << 20), lossd.SAFETENSORS)   # all of it, and then it looks
            self.problem(refused, 503, "queue_full")
            self.assertEqual(refused.header("Connection"), "close")
        held.send(TINY)
        self.assertEqual(held.answer().status, 200)
        held.close()
        self.served_soon(self.daemon)

    def served_soon(self, daemon):
        """The ticket comes back when the answer's last byte is sent: its reader may be a moment faster."""
        self.assertTrue(lossd.until(lambda: daemon.post("/v1/loss", TINY, lossd.SAFETENSORS).status == 200, 5))

    def test_the_same_connection_after_a_refusal(self):
        held, _ = hold(self.daemon)
        with self.daemon.connect() as connection:
            self.problem(connection.request("POST", "/v1/loss", TINY), 503, "queue_full")
            held.send(TINY)
            self.assertEqual(held.answer().status, 200)
            held.close()
            self.assertTrue(lossd.until(lambda: connection.request("POST", "/v1/loss", TINY).status == 200, 5))

    def test_tickets_come_back(self):
        """From refused bodies, from vanished clients, from keep-alive connections that rest."""
        resting = []
        for i in range(30):
            held, answer = None, None
            for _ in range(200):  # the daemon may need a moment to notice the last one's end
                held, answer = hold(self.daemon)
                if held:
                    break
                time.sleep(0.05)
            self.assertIsNotNone(held, "round %d: the ticket did not come back: %r" % (i, answer))
            if i % 5 == 0:
                held.close()
            elif i % 5 == 1:
                held.send(TINY[:50])
                held.reset()
            elif i % 5 == 2:
                held.send(b"\0" * len(TINY))
                self.problem(held.answer(), 400)
                held.close()
            elif i % 5 == 3:
                held.send(TINY)
                self.assertEqual(held.answer().status, 200)
                resting.append(held)
            else:
                held.send(TINY)
                held.reset()
        for connection in resting:
            connection.close()


class Memory(lossd.Case):
    FLAGS = ("--memory-limit", "16M", "--max-body", "4M", "--max-json", "1M", "--workers", "1")

    def test_full(self):
        held, refused = [], None
        for _ in range(40):
            connection, answer = hold(self.daemon, 3 << 20)
            if answer:
                refused = answer
                break
            held.append(connection)
        self.assertGreaterEqual(len(held), 1)
        self.assertIsNotNone(refused, "40 x 3 MiB were admitted into 16 MiB")
        self.problem(refused, 503, "memory_full")
        self.healthy()
        for connection in held:
            connection.close()
        self.assertTrue(lossd.until(
            lambda: self.daemon.post("/v1/loss", lossd.bccd().pick([0, 1]).safetensors()).status == 200))

    def test_admitted_work_is_finished(self):
        body = lossd.bccd().pick([3]).safetensors()
        answers = lossd.together([lambda: self.daemon.post("/v1/loss", body, lossd.SAFETENSORS) for _ in range(12)])
        good = [a for a in answers if a.status == 200]
        self.assertTrue(good)
        self.assertEqual(len({lossd.stable(a.body) for a in good}), 1)
        for answer in answers:
            if answer.status != 200:
                self.problem(answer, 503, "memory_full queue_full")


class LargeJson(lossd.Case):
    """Numbers cost what they are, not what a tree of them would."""
    FLAGS = ("--memory-limit", "128M")

    def test_more_than_32_mib(self):
        batch = lossd.random_batch(5, 8, 8732, 21)
        body = batch.json()
        self.assertGreater(len(body), 32 << 20)
        got = self.good(self.daemon.post("/v1/loss", body, lossd.JSON))
        same = self.good(self.daemon.post("/v1/loss", batch.safetensors()))
        self.assertEqual((got["loss"], got["assignment"]), (same["loss"], same["assignment"]))

    def test_trees_are_bounded(self):
        for head, unit, tail in ((b'{"a":[', b"{},", b"0]}"), (b'{"predictions":{"loc":[', b"{},", b"0]}}"),
                                 (b'{"annotations":[', b'{"boxes":[],"labels":[]},', b"0]}")):
            with self.subTest(head):
                body = head + unit * ((20 << 20) // len(unit)) + tail
                self.problem(self.daemon.post("/v1/loss", body, lossd.JSON), 413, "json_too_complex")

    def test_criteria_are_small(self):
        self.problem(self.daemon.put("/v1/criteria/large", b"{}" + b" " * (4 << 20)), 413, "body_too_large", "criterion")


class Deadlines(lossd.Case):
    FLAGS = ("--header-timeout", "1", "--request-timeout", "2", "--idle-timeout", "2", "--workers", "1", "--cpu-level",
             "ref")

    def drip(self, start, piece, step=0.1, limit=20.0):
        """Send `piece` byte by byte until the daemon ends it: (answers, seconds)."""
        with self.daemon.connect() as connection:
            begin = time.monotonic()
            connection.send(start)
            at = 0
            while time.monotonic() - begin < limit:
                if lossd.select.select([connection.socket], [], [], step)[0]:
                    text, closed = connection.drain(5.0)
                    self.assertTrue(closed or text)
                    return lossd.parse(text), time.monotonic() - begin
                if piece and not connection.try_send(piece[at % len(piece):at % len(piece) + 1]):
                    return [], time.monotonic() - begin
                at += 1
        self.fail("still open after %g s" % limit)

    def late(self, answers, answered=False):
        if answered:
            self.assertEqual(len(answers), 1)
            self.assertTrue(answers[0].body)
        for answer in answers:
            self.assertEqual(answer.status, 408, answer)
            if answer.body:
                self.problem(answer, 408, "body_timeout")

    def test_H34_slow_header(self):
        answers, seconds = self.drip(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a")
        self.late(answers)
        self.assertGreater(seconds, 0.7)

    def test_H34_silent_connection(self):
        answers, seconds = self.drip(b"GET /hea", b"", step=0.2)
        self.late(answers)

    def test_H35_slow_body(self):
        answers, seconds = self.drip(b"POST /v1/loss HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                     b"application/vnd.safetensors\r\nContent-Length: 4000\r\n\r\n", TINY)
        self.late(answers, answered=True)
        self.assertGreater(seconds, 1.0)
        self.assertTrue(lossd.until(lambda: "status=408 code=body_timeout bytes_in" in self.daemon.log(), 5))

    def test_H35_silent_upload_of_a_large_body(self):
        """The time for a body grows with what arrives, not with what was announced."""
        answers, seconds = self.drip(b"POST /v1/loss HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                     b"application/vnd.safetensors\r\nContent-Length: 200000000\r\n\r\n", b"", step=0.2)
        self.late(answers, answered=True)
        self.assertLess(seconds, 12)

    def test_H35_slow_discarded_body(self):
        """The body of a refused request has a deadline too."""
        answers, _ = self.drip(b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n", TINY)
        for answer in answers:
            self.problem(answer, (404, 408))
        self.assertTrue(lossd.until(
            lambda: re.search(r"target=/v1/nothing .* code=not_found ", self.daemon.log()), 5))

    def test_a_deadline_does_not_end_a_prompt_client(self):
        """Keep-alive rests longer than the header deadline are not punished with an error answer."""
        with self.daemon.connect() as connection:
            self.assertEqual(connection.request("POST", "/v1/loss", TINY).status, 200)
            connection.silent(0.5)
            self.assertEqual(connection.request("POST", "/v1/loss", TINY).status, 200)

    def test_idle_connections_are_closed_quietly(self):
        with self.daemon.connect() as used, self.daemon.connect() as fresh:
            self.assertEqual(used.request("GET", "/healthz").status, 200)
            for connection in (used, fresh):
                text, closed = connection.drain(20.0)
                self.assertEqual((text, closed), (b"", True))

    def test_request_timeout(self):
        """More work than the deadline allows: 504. How much that is depends on the machine."""
        box, objects = lossd.pack("F32", [0, 0, 1, 1]), 40000
        while objects <= 2560000:
            body = lossd.save([("counts", "I64", [1], lossd.pack("I64", [objects])),
                               ("labels", "U8", [objects], bytes(objects)),
                               ("boxes", "F32", [objects, 4], box * objects)])
            begin = time.monotonic()
            answers = lossd.together([lambda: self.daemon.post("/v1/match", body, lossd.SAFETENSORS)
                                      for _ in range(3)])
            late = [a for a in answers if a.status != 200]
            if late:
                for answer in late:
                    self.problem(answer, 504, "timeout")
                self.assertLess(time.monotonic() - begin, 30)
                break
            objects *= 2
        else:
            self.fail("2,560,000 objects were matched in time")
        self.assertTrue(lossd.until(lambda: self.daemon.post("/v1/loss", TINY).status == 200))


class Vanishing(lossd.Case):
    FLAGS = ("--queue-limit", "16", "--workers", "1", "--header-timeout", "3", "--request-timeout", "600")

    def leave(self, connection, how):
        if how == "rst":
            connection.reset()
        elif how == "fin":
            connection.close()
        else:  # half: the request's end is announced, the answer is not read
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            connection.close()

    def test_H37_H38_H39_everywhere(self):
        """In mid-header and mid-body (H37), while queued and while computing (H38), in mid-answer (H39)."""
        rng = random.Random(1)
        before = self.daemon.descriptors()
        large = lossd.bccd().pick([0, 1]).safetensors()
        head = (b"POST /v1/loss?include=assignment HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/vnd.safetensors\r\nContent-Length: %d\r\n\r\n" % len(large))
        for i in range(90):
            how = ("rst", "fin", "half")[i % 3]
            connection = self.daemon.connect()
            stage = i // 3 % 6
            if stage == 1:  # in mid-header
                connection.try_send(head[:rng.randrange(1, len(head) - 1)])
            elif stage == 2:  # in mid-body
                connection.try_send(head + large[:rng.randrange(len(large))])
            elif stage == 3:  # while queued or computing
                connection.try_send(head + large)
            elif stage == 4:  # a moment later
                connection.try_send(head + large)
                time.sleep(rng.random() * 0.02)
            elif stage == 5:  # in mid-answer
                connection.try_send(head + large)
                try:
                    connection.socket.recv(100)
                except OSError:
                    pass
            self.leave(connection, how)
            if i % 10 == 9:
                self.healthy()
        self.assertTrue(lossd.until(lambda: self.daemon.descriptors() <= before),
                        "%d descriptors, %d before" % (self.daemon.descriptors(), before))
        # every ticket is back: as many as the limit are admitted at once
        def all_admitted():
            got = [hold(self.daemon)[0] for _ in range(16)]
            for connection in got:
                if connection:
                    connection.close()
            return all(got)
        self.assertTrue(lossd.until(all_admitted, step=0.2))
        self.assertTrue(lossd.until(lambda: self.daemon.post("/v1/loss", lossd.bccd_bytes()).status == 200))
        got = self.good(self.daemon.post("/v1/loss", lossd.bccd_bytes(), lossd.SAFETENSORS))
        self.near(got["loss"]["total"], 4.504262144380764, 1e-7)


class OwnPriors(lossd.Case):
    """Prior sets that requests bring are counted before they are made, and made by a worker."""
    FLAGS = ("--memory-limit", "32M", "--workers", "8")
    LARGE = {"generator": "grid", "image_size": [4096, 1024], "strides": [1], "scales": [10], "ratios": [1]}

    def test_counted_first(self):
        before = self.daemon.memory("VmHWM")
        annotations = [{"boxes": [[10, 10, 50, 50]], "labels": [0]}]
        for priors in (self.LARGE, "grid-4096x4096"):   # about 165 MB each
            body = json.dumps({"priors": priors, "annotations": annotations}).encode() + b" " * 40000
            for answer in lossd.together([lambda: self.daemon.post("/v1/match", body, lossd.JSON)] * 16):
                self.problem(answer, (413, 503), ["too_expensive", "memory_full"])
        body = json.dumps(self.LARGE).encode()
        self.problem(self.daemon.put("/v1/priors/large", body, lossd.JSON), (413, 503), ["too_expensive", "memory_full"])
        self.assertLess(self.daemon.memory("VmHWM") - before, 120 << 20)   # not even one

    def test_small_ones_fit(self):
        body = json.dumps({"priors": {**self.LARGE, "image_size": [64, 64]}, "annotations": [
            {"boxes": [[10, 10, 50, 50]], "labels": [0]}]}).encode()
        self.assertEqual(self.good(self.daemon.post("/v1/match", body, lossd.JSON))["assignment"]["priors"], 4096)


class Connections(lossd.Case):
    FLAGS = ("--connection-limit", "8", "--workers", "1", "--ops-listen", "127.0.0.1:0")

    def test_H40_limit(self):
        """More wait to be accepted. Health and metrics have a listener of their own, which answers at once."""
        idle = [self.daemon.connect() for _ in range(8)]
        for connection in idle[:4]:
            connection.send(b"GET /healthz HTTP/1.1\r\n")
        extra = [self.daemon.connect() for _ in range(8)]
        for connection in extra:
            connection.try_send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for target in ("/healthz", "/readyz", "/metrics") * 5:
            begin = time.monotonic()
            self.assertEqual(self.daemon.ops(target).status, 200)
            self.assertLess(time.monotonic() - begin, 1)
        page = self.daemon.ops("/metrics").body.decode()
        self.assertIn("\nlossd_connections 8\n", page)
        self.assertIn("\nlossd_connection_limit 8\n", page)
        for connection in extra:  # served, refused or waiting; never an error of another kind
            text, _ = connection.drain(0.0)
            for answer in lossd.parse(text):
                self.assertIn(answer.status, (200, 503))
        for connection in idle + extra:
            connection.close()
        self.assertTrue(lossd.until(lambda: self.daemon.get("/healthz").status == 200))


class Spread(lossd.Case):
    FLAGS = ("--core-dumps", "--http-threads", "2")  # the first, so that what its threads watch can be seen

    def watched(self):
        """How many sockets each of its epoll sets has, but for those that have none."""
        at, counts = "/proc/%d/" % self.daemon.pid, []
        for fd in os.listdir(at + "fd"):
            if os.readlink(at + "fd/" + fd) == "anon_inode:[eventpoll]":
                with open(at + "fdinfo/" + fd) as file:
                    watched = re.findall(r"tfd:\s+(\d+)", file.read())
                counts.append(sum(os.readlink(at + "fd/" + other).startswith("socket:") for other in watched))
        return sorted(n for n in counts if n)

    def test_burst(self):
        """Clients that come at the same time and stay are shared out among the threads."""
        connections = [self.daemon.connect() for _ in range(8)]
        try:
            self.assertTrue(lossd.until(lambda: sum(self.watched()) == 8), self.watched())
            self.assertEqual(self.watched(), [4, 4])
        finally:
            for connection in connections:
                connection.close()


class CutShort(lossd.Case):
    """What a deadline or a stop leaves half done is never read: the memory it was done in had another client's bytes."""
    FLAGS = ("--request-timeout", "1", "--workers", "1", "--cpu-level", "ref")
    P, G = 4000, 225000

    def heavy(self):
        priors = b"".join(lossd.pack("F32", [.5, .5, .1 + i * 1e-4, .2]) for i in range(self.P))
        return lossd.save([("counts", "I64", [1], lossd.pack("I64", [self.G])),
                           ("boxes", "F32", [self.G, 4], lossd.pack("F32", [.1, .1, .5, .5]) * self.G),
                           ("priors", "F32", [self.P, 4], priors), ("labels", "U8", [self.G], bytes(self.G))])

    def fill_the_pool(self, value):
        """Leave buffers full of one number behind, in the sizes that the heavy request's work may get."""
        held = []
        for size in (5000000, 5400000, 5700000, 6200000, 6700000):
            for _ in range(2):
                connection = self.daemon.connect()
                connection.start("POST", "/v1/match", {"Content-Type": lossd.JSON, "Content-Length": size})
                connection.send((lossd.pack("F32", [value]) * (size // 4 + 1))[:size - 1])
                held.append(connection)
        for connection in held:
            connection.send(b" ")
            self.problem(connection.answer(), 400, "json_not_object json_syntax")
            connection.close()

    def test_deadline(self):
        body = self.heavy()
        for value in (-5e7, -0.9, 3e38):
            self.fill_the_pool(value)
            self.problem(self.daemon.post("/v1/match?classes=20", body, lossd.SAFETENSORS), 504, "timeout")
            self.healthy()
        self.assertTrue(lossd.until(lambda: self.daemon.post("/v1/loss", TINY).status == 200))

    def test_stop(self):
        daemon = lossd.Daemon("--drain-timeout", "0", "--workers", "1", "--cpu-level", "ref")
        with daemon:
            with daemon.connect() as connection:
                connection.start("POST", "/v1/match", {"Content-Type": lossd.SAFETENSORS,
                                                       "Content-Length": len(self.heavy())})
                connection.send(self.heavy())
                time.sleep(0.3)
                daemon.process.terminate()
                self.assertEqual(daemon.process.wait(10), 0, daemon.log()[-2000:])


class OneAfterAnother(lossd.Case):
    """What a request held is free again when its client has the answer."""
    FLAGS = ("--queue-limit", "1", "--memory-limit", "8M")

    def test_sequence(self):
        body = lossd.bccd_bytes()
        with self.daemon.connect() as kept:
            for i in range(40):
                self.good(kept.request("POST", "/v1/loss", body, {"Content-Type": lossd.SAFETENSORS}))
                self.good(self.daemon.post("/v1/loss", body, lossd.SAFETENSORS))


class HalfClosed(lossd.Case):
    """Clients that send, close their sending side, read and go must not keep their connections."""
    FLAGS = ("--connection-limit", "16",)

    def test_many(self):
        before = self.daemon.descriptors()
        for _ in range(60):
            with self.daemon.connect() as connection:
                connection.send(b"POST /v1/loss HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/vnd.safetensors"
                                b"\r\nContent-Length: %d\r\n\r\n" % len(TINY) + TINY)
                connection.socket.shutdown(socket.SHUT_WR)
                self.good(connection.answer())
        self.assertTrue(lossd.until(lambda: self.daemon.descriptors() <= before, 5), self.daemon.descriptors())
        self.healthy()


if __name__ == "__main__":
    unittest.main()
