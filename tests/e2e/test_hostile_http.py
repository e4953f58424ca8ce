# SPDX-License-Identifier: Apache-2.0
"""Bytes that are not quite HTTP (H01-H33, H42-H44): one clear answer or a closed connection, and never a second request
out of one. Clients that are slow or leave, and limits, are in test_limits.py and test_slow.py (H34-H41), proxies in
test_proxies.py (H45).

Where libmicrohttpd 0.9 repairs what it should refuse before the daemon can see it, the row says so and expects just that:
such a daemon belongs behind a proxy that does not (test_proxies.py), or on libmicrohttpd 1.0, as in the image.
"""
import os
import re
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import lossd  # noqa: E402
from hostile import HIDDEN, HOST, STRICT, request  # noqa: E402

TINY = lossd.tiny().safetensors()
TYPE = "Content-Type: application/vnd.safetensors"
# where a refused request would leave something behind, and where errors have another form
TARGETS = ("/v1/loss?run=hostile&step=1", "/v2/models/ssd-multibox/infer")
CHUNKED = "Transfer-Encoding: chunked"


def post(*fields, body=TINY, target="/v1/loss", version="HTTP/1.1"):
    return request("POST", target, TYPE, *fields, body=body, version=version)


def get(*fields, target="/healthz", **more):
    return request("GET", target, *fields, **more)


def length(value):
    return "Content-Length: %d" % value


def chunk(data, size=None, end=b"\r\n"):
    return (b"%x" % len(data) if size is None else size) + end + data + end


LAST = b"0\r\n\r\n"


class Sizes(hostile.Hostile):
    def test_H01_long_header_fields(self):
        self.served(get("X-A: " + "a" * 16384))
        for size, library in ((65536, None), (100000, None), (300000, "any")):
            self.refused(get("X-A: " + "a" * size) + HIDDEN, 431, "headers_too_large", library=library)
        self.refused(get(*["X-%d: %s" % (i, "a" * 4000) for i in range(9)]) + HIDDEN, 431, "headers_too_large")

    def test_H02_many_header_fields(self):
        fields = ["X-%d: y" % i for i in range(3000)]
        self.served(get(*fields[:90]))
        self.refused(get(*fields[:120]) + HIDDEN, 431, "headers_too_large")
        for count, library in ((1200, None), (2000, "any"), (3000, "any")):
            self.refused(get(*fields[:count]) + HIDDEN, 431, "headers_too_large", library=library)

    def test_many_parameters(self):
        """However many: libmicrohttpd's memory for them ends before a target does."""
        fields = ["X-%d: %s" % (i, "y" * 300) for i in range(95)]
        self.served(get(target="/healthz?" + "&".join("a" * 64)))
        for count in (65, 129, 130, 2000, 4000):
            target = "/healthz?" + "&".join("a" * count)
            self.refused(get(target=target) + HIDDEN, 400, "uri_malformed")
            self.refused(get(*fields, target=target) + HIDDEN, 400, "uri_malformed")
        self.refused(post(target="/v1/loss?" + "&" * 4000) + HIDDEN, 400, "uri_malformed")

    def test_many_cookies(self):
        """Nobody needs any here. Of thousands libmicrohttpd gives up the head, without a word; nothing of it is left."""
        self.served(get("Cookie: " + "; ".join(["session=0123456789abcdef"] * 200)))
        count = 20
        with lossd.Daemon() as daemon:
            for _ in range(count):
                with daemon.connect() as connection:
                    connection.send(get("Cookie: " + "; ".join(["a=b"] * 6000)))
                    text, closed = connection.drain(5)
                    self.assertTrue(closed)
                    self.assertFalse([s for s in hostile.STATUS.findall(text) if int(s) != 431], text)
            refused = rb'\nlossd_requests_total\{[^}]*outcome="refused"[^}]*\} %d\n' % count
            self.assertRegex(daemon.get("/metrics").body, refused)
            begin = time.monotonic()
            self.assertEqual(daemon.stop(), 0)
            self.assertLess(time.monotonic() - begin, 6)   # of 8 that what is not over is given

    def test_H03_long_targets(self):
        """More than 8 KiB, not 2: options in a query may be whole criteria."""
        self.kept(get(target="/" + "a" * 8191), 404, "not_found")
        self.kept(get(target="/v1/priors/" + "a" * 900), 404, "unknown_priors")
        self.served(get(target="/healthz?" + "a" * 8000))
        for target in ("/" + "a" * 8192, "/healthz?" + "a" * 8192, "/" + "a" * 65535):
            self.refused(get(target=target) + HIDDEN, 414, "uri_too_long")
        self.refused(get(target="/" + "a" * 600000) + HIDDEN, (414, 431), library="any")
        for target in TARGETS:
            self.refused(post(length(3), target=target + "?" + "a" * 8192, body=b"abc") + HIDDEN, 414, "uri_too_long")


class Lengths(hostile.Hostile):
    def test_H04_a_length_beyond_64_bits(self):
        """Refused by libmicrohttpd; 0.9 writes its answer's header twice."""
        for value in ("18446744073709551616", "9" * 40):
            for target in TARGETS:
                self.refused(post("Content-Length: " + value, body=b"abc", target=target) + HIDDEN, 413, library="any",
                             twice=True)

    def test_H05_a_length_beyond_every_limit(self):
        before = self.held()[2]
        for value in ((1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 40, 1 << 32):
            for target in TARGETS:
                for more in ((), ("Expect: 100-continue",)):
                    data = post(length(value), *more, body=b"" if more else b"abc", target=target)
                    # of 1.0, what no int64 holds is its own to refuse
                    self.refused(data, 413, "body_too_large", library="any" if value >> 63 else None, twice=True)
            self.refused(get(length(value)) + HIDDEN, 413, "body_too_large", library="any" if value >> 63 else None,
                         twice=True)
        self.assertLess(self.held()[2] - before, 8 << 20)

    def test_H06_lengths_that_are_no_numbers(self):
        """Refused by libmicrohttpd; 0.9 writes its answer's header twice."""
        for value in ("+3", "-1", "0x3", "3a", "1 3", "", "3, 3", "3;", "\t", "three"):
            with self.subTest(value):
                for target in TARGETS:
                    self.refused(post("Content-Length: " + value, body=b"abc", target=target) + HIDDEN, 400,
                                 "framing_header", library="any", twice=True)

    def test_H07_two_lengths(self):
        n = len(TINY)
        for target in TARGETS:
            for first, second in ((n, n), (n, n + 1), (n, 0), (5, n), (5, 5), (0, n)):
                with self.subTest(target, first=first, second=second):
                    self.refused(post(length(first), length(second), target=target) + HIDDEN, 400,
                                 "framing_duplicate_length", library="strict")

    def test_H08_length_and_coding(self):
        chunked = chunk(TINY) + LAST
        for target in TARGETS:
            for fields in ((length(4), CHUNKED), (CHUNKED, length(4)),
                           (length(len(chunked)), "transfer-encoding: Chunked"), (length(0), CHUNKED),
                           (length(5), "Transfer-Encoding: identity")):
                for body in (chunked, LAST):
                    with self.subTest(target, fields=fields):
                        self.refused(post(*fields, body=body + HIDDEN, target=target), 400, "framing_cl_te",
                                     library="strict")

    def test_H33_no_length(self):
        self.kept(post(body=b""), 411, "length_required")
        self.kept(request("POST", "/v1/loss"), 411, "length_required")
        self.kept(request("PUT", "/v1/priors/x"), 411, "length_required")


class Codings(hostile.Hostile):
    def test_H09_codings_that_are_unknown(self):
        for target in TARGETS:
            for coding in ("gzip", "xchunked", "gzip, chunked", "chunked, identity", "identity", "chunked, chunked",
                           "chunked;q=1", '"chunked"', "", ",", "chunked,", "\x0bchunked"):
                with self.subTest(coding):
                    self.refused(post("Transfer-Encoding: " + coding, body=LAST + HIDDEN, target=target), (400, 501),
                                 ("framing_transfer_encoding", "framing_header"), library="strict")

    def test_H10_two_codings_and_codings_of_http_1_0(self):
        for target in TARGETS:
            for second in ("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "transfer-encoding: identity"):
                self.refused(post(CHUNKED, second, body=LAST + HIDDEN, target=target), (400, 501),
                             "framing_transfer_encoding", library="strict")
            self.refused(post(CHUNKED, body=LAST + HIDDEN, version="HTTP/1.0", target=target), 400,
                         "framing_transfer_encoding", library="strict")

    def test_H11_broken_chunks(self):
        """Refused by libmicrohttpd in mid-body, when no other answer is possible."""
        for body in (b"ZZ\r\nabc\r\n" + LAST, b"-1\r\nabc\r\n" + LAST, b"0x5\r\nabcde\r\n" + LAST,
                     b"3\r\nabcd\r\n" + LAST, b"\r\nabc\r\n" + LAST, b" 3\r\nabc\r\n" + LAST, b"3 3\r\nabc\r\n" + LAST):
            with self.subTest(body):
                for target in TARGETS:
                    self.refused(post(CHUNKED, body=body + HIDDEN, target=target), 400, library="any")

    def test_H12_chunks_beyond_64_bits(self):
        """The largest size that a number holds is waited for, as every other body: no memory is reserved for it."""
        before = self.held()[2]
        for size in (b"10000000000000000", b"fffffffffffffffff"):
            self.refused(post(CHUNKED, body=chunk(b"abc", size) + HIDDEN), (400, 413), library="any")
        for size in (b"ffffffffffffffff", b"fffffffffffffff0", b"7fffffffffffffff"):
            self.ended(post(CHUNKED, body=chunk(b"abc", size) + HIDDEN))
        self.assertLess(self.held()[2] - before, 8 << 20)

    def test_H13_long_chunk_extensions(self):
        """0.9 skips them; whatever becomes of one, nothing is executed twice and nothing grows. One that does not fit into
        a buffer is not answered by 1.0, and ends with the deadline of the body."""
        for size in (65536, 200000):
            self.ended(post(CHUNKED, body=b"3;" + b"a" * size + b"\r\nabc\r\n" + LAST))
        extended = post(CHUNKED, "Connection: close", body=chunk(TINY, b"%x;name=value" % len(TINY)) + LAST)
        self.assertIn([a.status for a in self.daemon.raw(extended)[0]], ([200], [400]))

    def test_H14_chunks_of_one_byte(self):
        """What a small body needs is accepted. More than 65,536 tiny ones are not."""
        want = lossd.stable(self.daemon.post("/v1/loss", TINY).body)
        text = b"".join(chunk(TINY[i:i + 1]) for i in range(len(TINY))) + LAST
        self.assertEqual(lossd.stable(self.served(post(CHUNKED, body=text))[0].body), want)
        many, before = chunk(b" ") * 70000, self.held()[2]
        for i in range(4):
            self.refused(post(CHUNKED, body=many, target=TARGETS[i % 2]), 400, "framing_chunks")
        self.assertLess(self.held()[2] - before, 8 << 20)

    def test_H14_who_sends_on_sees_why(self):
        """A refusal in mid-body is not lost because more of the body is on its way."""
        many = chunk(b" ") * 70000 + chunk(bytes(1 << 20)) * 24
        with self.daemon.connect() as connection:
            self.assertTrue(connection.try_send(post(CHUNKED, body=many)))
            self.problem(connection.answer(), 400, "framing_chunks")

    def test_good_chunks(self):
        want = lossd.stable(self.daemon.post("/v1/loss", TINY).body)
        half = chunk(TINY[:100]) + chunk(TINY[100:]) + b"0\r\nTrailer: x\r\n\r\n"
        for answer in self.served(post(CHUNKED, body=half) * 2, 2):
            self.assertEqual(lossd.stable(answer.body), want)
        text = lossd.tiny().json()
        data = request("POST", "/v1/loss", "Content-Type: application/json", CHUNKED, body=chunk(text) + LAST)
        self.assertEqual(lossd.stable(self.served(data)[0].body), want)
        self.kept(post(CHUNKED, body=LAST), 400, "bin_truncated")


class Lines(hostile.Hostile):
    def test_H15_lines_without_carriage_returns(self):
        """0.9 takes a bare line feed for the end of a line, in heads and chunks, as RFC 9112 lets it."""
        head = get().replace(b"\r\n", b"\n")
        chunks = post(CHUNKED, body=chunk(TINY, end=b"\n") + b"0\n\n")
        if STRICT:
            self.refused(head + HIDDEN, 400, library="any")
            self.refused(chunks + HIDDEN, 400, library="any")
        else:
            self.served(head)
            self.served(chunks)

    def test_H16_control_bytes(self):
        for byte in b"\x01\x08\x0b\x0c\x1b\x7f":
            with self.subTest(byte):
                self.refused(get(b"X-A: a" + bytes([byte]) + b"b") + HIDDEN, 400, "framing_header", library="strict")
        for field in (b"X-A: a\rb", b"X-A: a\r\rb", b"\rX-A: a", b"X-A: \rContent-Length: 3"):
            self.refused(get(field) + HIDDEN, 400, "framing_header", library="strict")
        self.served(get("X-A: a\tb"))

    def test_H17_nul(self):
        """In a name it is refused; behind the end that it makes of a value or a target, 0.9 sees nothing."""
        self.refused(get(b"X\0A: a") + HIDDEN, 400, library="any")
        if STRICT:
            self.refused(get(b"X-A: a\0b") + HIDDEN, 400, library="any")
            self.ended(get(target="/healthz\0x") + HIDDEN)
        else:
            self.served(get(b"X-A: a\0b"))
            self.served(get(target="/healthz\0x"))
        for data in (post(b"Content-Length: 3\0", body=b"abc"), post(b"Content-Length: \0003", body=b"abc")):
            with self.daemon.connect() as connection:   # whatever it makes of it, of the three bytes it makes no request
                connection.send(data)
                answers = hostile.STATUS.findall(connection.drain(0.3)[0])
            self.assertLessEqual(len(answers), 2 if not STRICT else 1)

    def test_H18_space_in_a_name(self):
        for field in ("Content-Length : %d" % len(HIDDEN), "Content-Length\t: %d" % len(HIDDEN)):
            self.refused(post(field, body=HIDDEN), 400, "framing_header", library="strict")
        for field in ("Transfer-Encoding : chunked", "X A: b", "X(A): b", "X\x80: b", "X@: b"):
            self.refused(get(field) + HIDDEN, 400, "framing_header", library="strict")

    def test_H19_no_name_and_no_colon(self):
        """A field without a name does not reach the daemon from 0.9; its value means nothing to anybody."""
        self.refused(get("nothing") + HIDDEN, 400, library="any")
        if STRICT:
            self.refused(get(": x") + HIDDEN, 400, library="any")
        else:
            self.served(get(": x"))

    def test_H20_folded_fields(self):
        """0.9 joins the second line to the first one's name. What a name cannot hold is refused then."""
        for second in ("Content-Length: 3", "Transfer-Encoding: chunked", "2 3", "a,b"):
            for space in (" ", "\t"):
                self.refused(post("X-A: 1", space + second, body=b"abc") + HIDDEN, 400, "framing_header",
                             library="strict")
        if STRICT:
            self.refused(get("X-A: 1", " 2") + HIDDEN, 400, library="any")
        else:
            self.served(get("X-A: 1", " 2"))
        self.refused(get(" 2") + HIDDEN, 400, library="any", twice=True)   # behind Host, which is lost with it

    def test_H21_no_host(self):
        self.refused(get(host=b"") + HIDDEN, 400, library="any", twice=True)

    def test_H22_hosts_and_what_is_none(self):
        for host in (b"Host: a\r\nHost: b\r\n", b"Host: a\r\nhost: a\r\n", b"Host: a\r\nHost:\r\n", b"Host: a b\r\n",
                     b"Host: a/b\r\n", b"Host: u@a\r\n", b"Host: a,b\r\n", b"Host: a?b\r\n"):
            with self.subTest(host):
                self.refused(get(host=host) + HIDDEN, 400, "framing_host", library="strict")
        for host in (b"Host:\r\n", b"Host: a.b-c:80\r\n", b"Host: [::1]:8080\r\n", b"HOST: x\r\n"):
            self.served(get(host=host))


class RequestLine(hostile.Hostile):
    def test_H23_versions(self):
        self.assertEqual(self.served(get(version="HTTP/1.0"))[0].header("Connection").lower(), "close")
        self.assertEqual(self.served(get(version="HTTP/1.0", host=b""))[0].status, 200)
        self.assertEqual(self.served(post(length(len(TINY)), version="HTTP/1.0"))[0].status, 200)
        self.served(get(version="HTTP/1.9"))
        for data in (get(version="HTTP/2.0"), get(version="HTTP/9.9"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            self.refused(data + HIDDEN, 505, library="any")
        for data in (get(version="HTTQ/1.1"), get(version="http/1.1"), b"GET /healthz\r\n\r\n", get(version="HTTP/1"),
                     get(version="HTTP/1.1.1"), get(version="HTTP/1.1 x")):
            with self.subTest(data):
                self.ended(data + HIDDEN)
        upgrade = self.served(get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"))
        self.assertIsNone(upgrade[0].header("Upgrade"))

    def test_H24_a_tls_hello(self):
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) + bytes(64)
        self.ended(hello)
        self.ended(hello + b"\r\n" + HIDDEN)
        self.ended(hello.replace(b"\n", b"") + b" " + HIDDEN.replace(b"smuggled", b"first"))

    def test_H25_targets_that_are_no_paths(self):
        for method, target in (("GET", "*"), ("OPTIONS", "*"), ("GET", "http://elsewhere/secret"),
                               ("GET", "http://localhost/healthz"), ("CONNECT", "elsewhere:443"), ("GET", "healthz")):
            with self.subTest(target):
                self.kept(request(method, target), 404, "not_found")

    def test_H26_paths_that_are_not_there(self):
        for target in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//healthz", "/healthz/", "/HEALTHZ", "/%20",
                       "/v1/loss/", "/.", "/%ff", "/healthz;x", "/web/../healthz", "/web/%2e%2e/healthz", "/web/",
                       "/healthz#x", "/healthz%3f"):
            with self.subTest(target):
                self.kept(get(target=target), 404, "not_found")
        # an encoded slash is not the one that separates: a proxy in front may know another path by it
        for target in ("/v1%2fpriors", "/v1/priors/..%2F..%2fx", "/%2fetc/passwd"):
            self.refused(get(target=target) + HIDDEN, 400, "uri_malformed")
        self.assertEqual(self.daemon.get("/%68ealthz").status, 200)

    def test_H27_bytes_that_no_path_has(self):
        for target in (b"/healthz%00", b"/%00", b"/v1/priors/ssd300%00x", b"/%", b"/%zz", b"/%4", b"/\xff\xfe", b"/\x7f",
                       b"/\x01", b"/healthz?%", b"/healthz?a=%g0", b"/healthz?%00"):
            with self.subTest(target):
                self.refused(get(target=target) + HIDDEN, 400, "uri_malformed", library="strict")
        for target in (b"/a b", b"/a\tb"):
            self.ended(get(target=target) + HIDDEN)

    def test_H28_line_ends_in_the_target(self):
        """No field is added to the answer, and no line to the log, which is one JSON object a line."""
        self.executed()
        targets = ["/a%0d%0aX:%20y", "/a%0d%0aSet-Cookie:x", "/healthz?a=%0d%0aX:%20y", "/%1b[31m", "/a%0a%0a"]
        for target in targets:
            with self.daemon.connect() as connection:
                connection.send(get(target=target))
                answer = connection.answer()
            self.problem(answer, 400, "uri_malformed")
            self.assertFalse([f for f in answer.fields if f[0].lower() in ("x", "set-cookie")])
        lossd.until(lambda: all(target in self.daemon.log() for target in targets))
        self.assertEqual(sorted(e["target"] for e in self.executed() if e["target"] in targets), sorted(targets))

    def test_H29_methods(self):
        for method, target, allowed in (("DELETE", "/healthz", "GET"), ("POST", "/readyz", "GET"),
                                        ("GET", "/v1/loss", "POST"), ("PUT", "/v1/match", "POST"),
                                        ("FOO", "/version", "GET"), ("TRACE", "/healthz", "GET"),
                                        ("PATCH", "/v1/priors", "GET"), ("DELETE", "/v1/criteria", "GET"),
                                        ("get", "/healthz", "GET"), ("OPTIONS", "/v1/loss", "POST"),
                                        ("CONNECT", "/healthz", "GET"), ("M-SEARCH", "/healthz", "GET")):
            with self.subTest(method, target=target):
                fields = (length(0),) if method in ("POST", "PUT", "PATCH") else ()
                answer = self.kept(request(method, target, *fields), 405, "method_not_allowed")
                self.assertIn(allowed, [w.strip() for w in answer.header("Allow").split(",")])
                self.assertNotIn(b"X-Request-Id", answer.body)
        for method in (b"G(T", b"\x16\x03", b"GET:", b"G\x80T"):
            self.refused(request(method, "/healthz") + HIDDEN, 400, "framing_request_line", library="strict")


class Bodies(hostile.Hostile):
    def test_H30_expectations(self):
        self.refused(post(length(len(TINY)), "Expect: cake", body=b""), 417, "expectation_failed")
        with self.daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(TINY),
                                                  "Expect": "100-Continue"})
            self.assertEqual(connection.interim(), 100)
            connection.send(TINY)
            self.assertEqual(connection.answer().status, 200)
        for target, fields, status in (
                ("/v1/loss", {"Content-Length": 1 << 40}, 413), ("/v1/nothing", {}, 404), ("/healthz", {}, 405),
                ("/v1/loss", {"Content-Type": "text/plain"}, 415), ("/v1/loss", {"Content-Encoding": "gzip"}, 415),
                ("/v1/loss", {"Accept": "text/html"}, 406)):
            with self.subTest(target, fields=fields), self.daemon.connect() as connection:
                connection.start("POST", target, {"Content-Type": lossd.SAFETENSORS, "Content-Length": 1000,
                                                  "Expect": "100-continue", **fields})
                answer = connection.answer()
                self.assertEqual(answer.interim, [])
                hostile.Documented.check(self.problem(answer, status))

    def test_H31_pipelining(self):
        one = get("X-Request-Id: p%d")
        load = post(length(len(TINY)), "X-Request-Id: p2")
        data = one % 0 + one % 1 + load + load.replace(b"p2", b"p3") + one % 4
        self.assertEqual([a.header("X-Request-Id") for a in self.served(data, 5)], ["p%d" % i for i in range(5)])
        before = self.held()[2]
        with self.daemon.connect() as connection:   # whose answers are read later
            connection.socket.setsockopt(lossd.socket.SOL_SOCKET, lossd.socket.SO_RCVBUF, 1 << 16)
            sender = lossd.threading.Thread(
                target=connection.try_send, args=(b"".join(one % i for i in range(1000)),))
            sender.start()
            lossd.time.sleep(0.3)
            self.healthy()
            self.assertLess(self.held()[2] - before, hostile.margin() // 10)
            answers = [connection.answer() for _ in range(1000)]
            sender.join()
        self.assertEqual([(a.status, a.header("X-Request-Id")) for a in answers],
                         [(200, "p%d" % i) for i in range(1000)])

    def test_a_refusal_and_what_follows(self):
        """A refused request with a whole body leaves the connection in step."""
        for target, body, fields, status in (
                ("/v1/loss", b"x" * 5000, ["Content-Type: text/plain"], 415), ("/v1/nothing", b"x" * 5000, [], 404),
                ("/healthz", b"x" * 5000, [], 405), ("/v1/loss", b"{", ["Content-Type: application/json"], 400),
                ("/v1/loss", TINY[:-1], [TYPE], 400), ("/v1/loss", TINY, [TYPE, "Accept: text/html"], 406),
                ("/v1/loss", HIDDEN, [TYPE], 400), ("/v1/loss", HIDDEN, ["Content-Type: text/plain"], 415)):
            with self.subTest(status):
                self.kept(request("POST", target, *fields, length(len(body)), body=body), status)

    def test_H32_bodies_that_nobody_asked_for(self):
        for body in (b"x" * 1000, b"x" * 65536, HIDDEN):
            with self.daemon.connect() as connection:
                connection.send(get(length(len(body)), body=body))
                self.assertEqual(connection.answer().status, 200)
                self.assertEqual(connection.request("GET", "/version").status, 200)
        for target in ("/healthz", "/v1/priors/ssd300", "/v1/runs"):
            self.refused(get(length(65537), target=target, body=b"x" * 65537) + HIDDEN, 413, "body_too_large")
            self.refused(get(CHUNKED, target=target, body=chunk(b"x" * 65536) * 2 + LAST) + HIDDEN, 413,
                         "body_too_large")

    def test_H42_coded_bodies(self):
        """Not read at /v1, and at /v2 to their limit only (test_infer.py has the bombs)."""
        for coding in ("gzip", "deflate", "br", "gzip, identity"):
            answer = self.kept(post(length(len(TINY)), "Content-Encoding: " + coding), 415, "content_encoding")
            self.assertIsNone(answer.header("Content-Encoding"))
        self.served(post(length(len(TINY)), "Content-Encoding: identity"))

    def test_H43_media_types(self):
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/jsonx", "nonsense",
                     "application/json; charset=utf-16", "image/png", "application/json" + "x" * 200, "/"):
            with self.subTest(kind):
                self.kept(request("POST", "/v1/loss", length(len(TINY)), "Content-Type: " + kind, body=TINY), 415,
                          "unsupported_media_type")
        self.served(request("POST", "/v1/loss", length(len(TINY)), body=TINY))

    def test_H44_query_parameters(self):
        """An option given twice is refused for its meaning: 422, as every option is."""
        for target in ("/healthz", "/v1/loss", "/v1/runs", "/v1/priors", "/nothing"):
            method, fields = ("POST", (TYPE, length(0))) if target == "/v1/loss" else ("GET", ())
            for count in (65, 500):
                query = "&".join("a%d=1" % i for i in range(count))
                self.refused(request(method, target + "?" + query, *fields) + HIDDEN, 400, "uri_malformed")
        self.served(get(target="/healthz?" + "&".join("a%d=1" % i for i in range(64))))
        for target in ("/v1/loss?include=images&include=images", "/v1/loss?include=images&include=levels",
                       "/v1/loss?includ%65=images&include=images"):
            self.kept(post(length(len(TINY)), target=target), 422, "duplicate_option")
        self.kept(get(target="/v1/runs/x/steps?limit=1&limit=2"), 422, "duplicate_option")


class Rows(unittest.TestCase):
    def test_every_row_has_a_test(self):
        here, named = os.path.dirname(os.path.abspath(__file__)), set()
        for name in os.listdir(here):
            if name.startswith("test_"):
                with open(os.path.join(here, name), encoding="utf-8") as file:
                    named.update(*[re.findall(r"[HJBM]\d\d", test) for test in re.findall(r"def (test_\w+)", file.read())])
        wanted = {letter + "%02d" % i for letter, last in (("H", 45), ("J", 23), ("B", 22), ("M", 16))
                  for i in range(1, last + 1)}
        self.assertEqual(sorted(wanted ^ named), [])


if __name__ == "__main__":
    unittest.main()
