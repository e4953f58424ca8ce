# SPDX-License-Identifier: Apache-2.0
"""Tokens: who may do what, how a request without the right one is refused, and that none is ever told."""
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

try:
    import yaml
except ImportError:
    yaml = None

TINY = lossd.tiny().safetensors()
READ, WRITE = "r" * 20 + "-Canary-5eedf00d", "w" * 20 + "-Canary-5eedbeef"
HASHED = "h" * 20 + "-Canary-5eedcafe"


def bearer(token):
    return {"Authorization": "Bearer " + token} if token else {}


def token_file(text=None, mode=0o600):
    """Its name, and what removes it."""
    text = text or "# who may do what\nread grafana %s\n\nwrite trainer %s # the farm\n  read\tci sha256:%s\r\n" % (
        READ, WRITE, hashlib.sha256(HASHED.encode()).hexdigest().upper())
    home = tempfile.TemporaryDirectory()
    path = os.path.join(home.name, "tokens")
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)
    os.chmod(path, mode)
    return path, home


def replace(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


def counter(daemon, name, token=READ):
    page = daemon.get("/metrics", **bearer(token)).body.decode()
    return int(re.search(r"^%s (\d+)$" % re.escape(name), page, re.M)[1])


class Guarded(lossd.Case):
    """A daemon with tokens for each class."""

    MORE = ()

    @classmethod
    def setUpClass(cls):
        cls.path, cls.home = token_file()
        cls.FLAGS = ("--token-file", cls.path, *cls.MORE)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.home.cleanup()

    def ask(self, method, target, token=None, body=None, **headers):
        return self.daemon.request(method, target, body, {**bearer(token), **headers})

    def refused(self, answer, status, code):
        if answer.type == lossd.PROBLEM:
            self.problem(answer, status, code)
        else:
            self.error(answer, status)
        self.assertEqual(answer.header("WWW-Authenticate", "").startswith("Bearer "), status == 401, answer.fields)
        self.assertEqual(answer.header("Cache-Control"), "no-store")


class Access(Guarded):
    def test_S01_authentication(self):
        """Whatever is not a token of the file is 401, in constant ways; the scheme's case does not matter."""
        for value, code in (("", "unauthorized"), ("Bearer", "unauthorized"), ("Bearer ", "unauthorized"),
                            ("Basic " + READ, "unauthorized"), (READ, "unauthorized"), ("Bearer  \t", "unauthorized"),
                            ("Bearer x", "invalid_token"), ("Bearer " + READ[:-1], "invalid_token"),
                            ("Bearer " + READ + "x", "invalid_token"), ("Bearer " + READ.upper(), "invalid_token"),
                            ("Bearer " + "x" * 8192, "invalid_token"),
                            ("Bearer " + hashlib.sha256(HASHED.encode()).hexdigest(), "invalid_token"),
                            ("Bearer grafana", "invalid_token"), ("Bearer sha256:" + "0" * 64, "invalid_token"),
                            ("Bearer %s %s" % (READ, WRITE), "invalid_token")):
            with self.subTest(value[:40]):
                time.sleep(0.11)   # or it is a guess too many
                answer = self.daemon.get("/v1/priors", Authorization=value)
                self.refused(answer, 401, code)
                self.assertEqual("invalid_token" in answer.header("WWW-Authenticate"), code == "invalid_token")
        for scheme in ("Bearer ", "bearer ", "BEARER ", "bEaReR   "):
            for token in (READ, WRITE, HASHED):
                self.assertEqual(self.daemon.get("/v1/priors", Authorization=scheme + token).status, 200, scheme)

    def test_S01_what_to_send_is_told(self):
        for token in (None, HASHED + "x"):
            time.sleep(0.11)
            answer = self.ask("GET", "/v1/priors", token)
            self.problem(answer, 401, None, 'send "Authorization: Bearer TOKEN" with the TOKEN alone of a line')

    def test_S01_two_headers(self):
        head = "GET /v1/priors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nauthorization: Bearer %s\r\n\r\n"
        for pair in ((READ, READ), ("x", READ), (READ, "x")):
            (answer,), closed = self.daemon.raw((head % pair).encode())
            self.problem(answer, 400, "framing_authorization")
            self.assertTrue(closed)

    def test_S01_NUL_in_a_token(self):
        answers, _ = self.daemon.raw(("GET /v1/priors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\0x\r\n"
                                      "Connection: close\r\n\r\n" % READ[:-3]).encode())
        self.assertIn([answer.status for answer in answers], ([400], [401]))   # the library's, or ours

    def test_S01_before_the_body_and_without_100(self):
        for token, status, code in ((None, 401, "unauthorized"), ("wrong", 401, "invalid_token"),
                                    (READ, 403, "forbidden")):
            for target in ("/v1/loss?run=a&step=1", "/v1/priors/mine", "/nowhere"):
                method = "PUT" if target == "/v1/priors/mine" else "POST"
                if target == "/nowhere" and status == 403:
                    continue
                for more in ({"Content-Length": 5000}, {"Content-Length": 5000, "Expect": "100-continue"},
                             {"Transfer-Encoding": "chunked"}, {"Content-Length": 1 << 30}):
                    with self.subTest(status=status, target=target, **more), self.daemon.connect(5) as connection:
                        time.sleep(0.11 if token == "wrong" else 0)
                        connection.start(method, target, {**bearer(token), **more})
                        answer = connection.answer()   # nothing of a body has been sent
                        self.refused(answer, status, code)
                        self.assertEqual((answer.interim, answer.header("Connection")), ([], "close"))
                        self.assertEqual(connection.drain(5), (b"", True))
        self.assertEqual(self.ask("GET", "/v1/runs", READ).json()["runs"], [])

    def test_a_client_that_sends_on_sees_the_answer(self):
        """Whoever has begun a long upload without asking is not reset before it can read why it is refused."""
        body = bytes(28 << 20)
        for token, status in ((None, 401), ("wrong", 401)):
            with self.daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {**bearer(token), "Content-Length": len(body)})
                self.assertTrue(connection.try_send(body))
                self.assertEqual(connection.answer().status, status)
        import requests
        for _ in range(3):
            answer = requests.post("http://127.0.0.1:%d/v1/loss" % self.daemon.port, data=body, timeout=lossd.PATIENCE)
            self.assertEqual((answer.status_code, answer.json()["code"]), (401, "unauthorized"))

    def test_nobody_keeps_the_others_from_seeing_it(self):
        """Sockets that outlive their connections for this are few: the newest refusal has one, whoever holds the rest."""
        with contextlib.ExitStack() as stack:
            for _ in range(80):
                connection = stack.enter_context(self.daemon.connect())
                connection.start("POST", "/v1/loss", {"Content-Length": 1 << 30})
                self.assertEqual(connection.answer().status, 401)
            body = bytes(28 << 20)
            with self.daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Length": len(body)})
                self.assertTrue(connection.try_send(body))
                self.assertEqual(connection.answer().status, 401)

    def test_keep_alive(self):
        """A refusal without a body costs no connection."""
        with self.daemon.connect() as connection:
            for token, status in ((None, 401), (READ, 200), (None, 401), (WRITE, 200)):
                self.assertEqual(connection.request("GET", "/v1/priors", None, bearer(token)).status, status)
            body = {"weights": {"conf": 2}}
            answer = connection.request("PUT", "/v1/criteria/mine", json.dumps(body).encode(), bearer(WRITE))
            self.assertEqual(answer.status, 201)
            self.assertEqual(connection.request("DELETE", "/v1/criteria/mine", None, bearer(READ)).status, 403)
            self.assertEqual(connection.request("DELETE", "/v1/criteria/mine", None, bearer(WRITE)).status, 204)

    def test_recording_takes_the_right_to_write(self):
        """Wherever `run` stands: in the query it is refused at the door, in the body once it is seen; nothing is kept."""
        denied = 'lossd_auth_refusals_total{reason="role"}'
        before = counter(self.daemon, denied)
        large = lossd.random_batch(1, n=2)
        options = {"run": "forbidden", "step": "1"}
        bodies = [(TINY, lossd.SAFETENSORS, "?run=forbidden&step=1"), (TINY, lossd.SAFETENSORS, "?run=forbidden"),
                  (lossd.tiny().safetensors(options), lossd.SAFETENSORS, ""),
                  (large.safetensors(options), lossd.SAFETENSORS, ""),   # streamed
                  (large.safetensors(options, order=("conf", "loc")), lossd.SAFETENSORS, ""),   # and not
                  (lossd.tiny().json(run="forbidden", step=1), lossd.JSON, ""),
                  (large.json(flat=True, run="forbidden", step=1), lossd.JSON, "")]
        for body, media, query in bodies:
            with self.subTest(bytes=len(body), media=media, query=query):
                answer = self.ask("POST", "/v1/loss" + query, READ, body, **{"Content-Type": media})
                self.refused(answer, 403, "forbidden")
                if not query:
                    self.assertIn("run", answer.json()["pointer"])
        document, behind = lossd.inference(lossd.tiny().tensors(), parameters={"run": "forbidden", "step": 1})
        text = json.dumps(document).encode()
        answer = self.ask("POST", "/v2/models/ssd-multibox/infer", READ, text + behind, **lossd.infer_headers(text))
        self.refused(answer, 403, None)
        self.assertEqual(counter(self.daemon, denied) - before, len(bodies) + 1)
        self.assertEqual(self.ask("GET", "/v1/runs", READ).json()["runs"], [])
        for body, media, query in bodies[2:3] + bodies[5:6]:
            answer = self.ask("POST", "/v1/loss", WRITE, body, **{"Content-Type": media})
            self.assertEqual(answer.status, 200, answer)
        self.assertEqual([r["name"] for r in self.ask("GET", "/v1/runs", READ).json()["runs"]], ["forbidden"])
        self.assertEqual(self.ask("DELETE", "/v1/runs/forbidden", READ).status, 403)
        self.assertEqual(self.ask("DELETE", "/v1/runs/forbidden", WRITE).status, 204)

    def test_the_log_names_the_token_and_not_its_text(self):
        for token, name in ((READ, "grafana"), (WRITE, "trainer"), (HASHED, "ci"), (None, "anonymous")):
            answer = self.daemon.get("/version", **bearer(token), **{"X-Request-Id": "as-" + name})
            self.assertEqual(answer.status, 200 if token else 401)
            self.assertTrue(lossd.until(lambda: "id=as-%s " % name in self.daemon.log()))
            line = next(text for text in self.daemon.log().splitlines() if "id=as-%s " % name in text)
            self.assertIn(" as=%s " % name, line)
            self.assertIn(" status=200 bytes_in" if token else " status=401 code=unauthorized bytes_in", line)

    def test_S16_no_token_is_told(self):
        """Neither by the command line, the environment, the log, nor by an answer."""
        self.ask("GET", "/v1/runs/" + WRITE, READ)
        for target in ("/v1/priors", "/nowhere", "/metrics", "/v1/loss"):
            for token in (READ, WRITE, HASHED, WRITE + "x"):
                time.sleep(0.11)
                answer = self.ask("POST", target, token, b"{}")
                self.assertNotIn(b"Canary", answer.body)
                self.assertNotIn("Canary", str(answer.fields))
        log = self.daemon.log()
        told = [line for line in log.splitlines() if "Canary" in line and "/v1/runs/" + WRITE not in line]
        self.assertEqual(told, [])   # but in a path that its owner wrote
        for name in ("cmdline", "environ"):
            with open("/proc/%d/%s" % (self.daemon.pid, name), "rb") as file:
                self.assertNotIn(b"Canary", file.read())


@unittest.skipIf(yaml is None, "yaml is not installed")
class Matrix(Guarded):
    MORE = ("--shared-memory", "--ops-listen", "127.0.0.1:0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with open(os.path.join(lossd.ROOT, "proto", "openapi.yaml"), encoding="utf-8") as file:
            cls.document = yaml.safe_load(file)
        with open(os.path.join(lossd.ROOT, "server", "routes.c"), encoding="utf-8") as file:
            cls.table = file.read()

    def needed(self, operation):
        """What the document says that an operation takes: None, "read" or "write"."""
        security = operation.get("security", self.document["security"])
        return security[0]["token"][0] if security else None

    def operations(self):
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if method == "parameters":
                    continue
                target = path
                for p in item.get("parameters", []) + operation.get("parameters", []):
                    if "$ref" in p:
                        p = self.document["components"]["parameters"][p["$ref"].rsplit("/", 1)[1]]
                    if p["in"] == "path":
                        there = p.get("example") or p["examples"]["built_in"]["value"]
                        target = target.replace("{%s}" % p["name"], there)
                yield method.upper(), path, target, self.needed(operation)

    def test_S02_every_route_and_method_by_every_role(self):
        """What the document says of each route is what happens, and every other method of its path takes a token."""
        known = {(method, path) for method, path, _, _ in self.operations()}
        paths = {path: target for _, path, target, _ in self.operations()}
        needed = {(method, path): role for method, path, _, role in self.operations()}
        for path, target in paths.items():
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
                as_known = "GET" if method == "HEAD" else method
                need = needed.get((as_known, path), "read")   # to be told that there is nothing
                for role, token in ((None, None), ("read", READ), ("write", WRITE)):
                    with self.subTest(method=method, path=path, role=role):
                        # a body that no route takes, so that nothing is changed
                        body = b"-" if method in ("POST", "PUT") else None
                        answer = self.ask(method, target, token, body)
                        if need is None or role == "write" or role == need:
                            self.assertNotIn(answer.status, (401, 403, 429), answer)
                            if (as_known, path) not in known:
                                self.assertIn(answer.status, (404, 405, 501), answer)
                        else:
                            self.assertEqual(answer.status, 403 if role else 401, answer)

    def test_S02_the_document_lists_every_route(self):
        """And the table in the code says the same: a route that is new is in neither or in both."""
        words = {"OPEN": None, "READ": "read", "WRITE": "write"}
        macros = dict(re.findall(r'#define (MODEL|REGION|VERSION) +"([^"]+)"', self.table))
        rows = {}
        for method, path, role in re.findall(r'^    \{"([A-Z]+)", ([^,]+), (\w+), ROUTE_', self.table, re.M):
            path = "".join(macros.get(part, part.strip('"')) for part in path.split())
            rows[method, path] = words[role]
        self.assertGreater(len(rows), 40)
        self.assertEqual(len(rows), len(re.findall(r"^    \{.*ROUTE_", self.table, re.M)))
        self.assertEqual(rows, {(method, path): role for method, path, _, role in self.operations()})
        self.assertEqual({path for (_, path), role in rows.items() if role is None},
                         {"/", "/healthz", "/readyz", "/web/{name}"})

    def test_S02_what_is_unknown_is_denied(self):
        for target in ("/nowhere", "/v1", "/v1/loss/", "/V1/priors", "//healthz", "/healthz/", "/v2/nothing", "/web/a/b",
                       "/v1/priors/..", "/%2e%2e/healthz", "/healthz/../metrics", "/metrics?x", "/./metrics"):
            self.assertEqual(self.ask("GET", target).status, 401, target)
        for target in ("/nowhere", "/v2/nothing", "/healthz/"):
            self.assertEqual(self.ask("GET", target, READ).status, 404, target)
        self.assertEqual(self.ask("GET", "/web/nothing").status, 404)

    def test_operations_are_guarded_as_they_are_elsewhere(self):
        for target, need in (("/healthz", None), ("/readyz", None), ("/metrics", READ), ("/version", READ)):
            for token in (None, READ, WRITE):
                with lossd.Connection(self.daemon.ops_port) as connection:
                    answer = connection.request("GET", target, None, bearer(token))
                self.assertEqual(answer.status, 200 if token or not need else 401, target)
        with lossd.Connection(self.daemon.ops_port) as connection:
            self.assertEqual(connection.request("GET", "/v1/runs").status, 401)


class Guessing(Guarded):
    def wrong(self, n, connection):
        return [connection.request("GET", "/version", None, bearer("wrong-%d" % i)).status for i in range(n)]

    def too_many(self, connection):
        """Wrong ones until there are too many; the answer to the last."""
        for _ in range(2000):
            answer = connection.request("GET", "/version", None, bearer("wrong"))
            if answer.status != 401:
                return answer
        return self.fail("nobody minds")

    def test_S05_guesses_are_limited(self):
        """Ten at once, then ten a second; the right token does not tell either while there are too many."""
        before = counter(self.daemon, 'lossd_auth_refusals_total{reason="guessing"}')
        with self.daemon.connect() as connection:
            begin = time.monotonic()
            statuses = self.wrong(40, connection)
            took = time.monotonic() - begin
            self.assertEqual(statuses[:10], [401] * 10)
            self.assertLessEqual(statuses.count(401), 10 + 10 * took + 1)
            answer = self.too_many(connection)
            self.problem(answer, 429, "too_many_failures")
            self.assertRegex(answer.header("Retry-After"), r"^[1-9]\d*$")
            right = [self.too_many(connection) and connection.request("GET", "/version", None, bearer(READ)).status
                     for _ in range(20)]
            self.assertIn(429, right)   # 200 where it became a tenth of a second later
            self.assertEqual(connection.request("GET", "/version").status, 401)   # nobody guesses without a token
            self.assertEqual(connection.request("GET", "/healthz").status, 200)
            time.sleep(int(answer.header("Retry-After")))
            self.assertEqual(connection.request("GET", "/version", None, bearer(READ)).status, 200)
        self.assertGreater(counter(self.daemon, 'lossd_auth_refusals_total{reason="guessing"}'), before)

    def test_other_addresses_are_not_concerned(self):
        time.sleep(1)
        with socket.create_connection(("127.0.0.1", self.daemon.port), lossd.PATIENCE, ("127.0.0.77", 0)) as other:
            connection = lossd.Connection.__new__(lossd.Connection)
            connection.socket, connection.kept = other, b""
            self.assertEqual(self.too_many(connection).status, 429)
            self.assertEqual(self.ask("GET", "/version", READ).status, 200)

    def test_the_log_names_who_guesses(self):
        """And not more often than guesses are looked at."""
        time.sleep(1.1)
        before = self.daemon.log().count("event=wrong_token from=127.0.0.1")
        with self.daemon.connect() as connection:
            wrong = self.wrong(30, connection).count(401)
        self.assertTrue(lossd.until(lambda: self.daemon.log().count("event=wrong_token from=127.0.0.1") == before + wrong, 5))

    def test_the_metrics_say_why(self):
        time.sleep(1)
        names = ['lossd_auth_refusals_total{reason="%s"}' % r for r in ("missing", "wrong", "role", "guessing")]
        before = [counter(self.daemon, name) for name in names]
        self.ask("GET", "/version")
        self.ask("GET", "/version", "wrong")
        self.ask("DELETE", "/v1/runs/x", READ)
        after = [counter(self.daemon, name) for name in names]
        self.assertEqual([b - a for a, b in zip(before, after)], [1, 1, 1, 0])


class Files(lossd.Case):
    FLAGS = None

    def start(self, path, *more):
        return lossd.command("--listen", "127.0.0.1:0", "--token-file", path, *more)

    def refused(self, path, *says):
        status, out, err = self.start(path)
        self.assertEqual((status, out), (78, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        for word in says:
            self.assertIn(word, err)
        self.assertNotIn("Canary", err)

    def test_a_bad_line_is_named(self):
        good = "read a %s\n" % READ
        for text, line, words in (
                ("admin a x\n", 1, "read or write"), (good + "\n# x\nwrite\n", 4, "name"),
                (good + "write b\n", 2, "no token"), (good + "write b%20c Canary-x\n", 2, "name"),
                (good + "write b Canary more\n", 2, "follows"), ("write b sha256:Canary\n", 1, "64 hexadecimal"),
                ("write b sha256:%s\n" % ("0" * 63), 1, "64 hexadecimal"), (good + "write b %s\n" % READ, 2, "token again as in line 1\n"),
                (good + "read b sha256:%s\n" % hashlib.sha256(READ.encode()).hexdigest(), 2, "token again as in line 1\n"),
                (good + "\nread b x\n# c\nwrite a %s\n" % WRITE, 5, "name again as in line 1\n"),
                ("read c x\n" + good + "read b y\nread a z", 4, "name again as in line 2\n"),
                ("write b Canary\u00e9\n", 1, "visible"), ("write b Canary\x01x\n", 1, "visible"),
                ("READ a Canary\n", 1, "read or write"), ("%s\n" % WRITE, 1, "read or write"),
                ("read %s Canary\n" % ("n" * 65), 1, "name"), ("read anonymous Canary\n", 1, "choose another"),
                (good + "write unknown Canary\n", 2, "choose another"), (WRITE + " a b\n", 1, "read or write"),
                ("".join("read n%d token-%d\n" % (i, i) for i in range(1025)), 1025, "1024")):
            with self.subTest(text[:40]):
                path, home = token_file(text)
                with home:
                    self.refused(path, "--token-file", "line %d " % line, words)

    def test_what_is_no_token_file(self):
        path, home = token_file()
        with home:
            for other, words in ((home.name, "regular"), (path + "-not", "No such file"), ("/dev/null", "regular")):
                self.refused(other, other, words)
            for text, words in ((" \n# nothing\n", "no token"), ("read a x\0y\n", "NUL"), ("#" * (1 << 20) + "\n", "bytes")):
                replace(path, text)
                self.refused(path, words)
        path, home = token_file("\n")
        with home:
            replace(path, "")
            self.refused(path, "no token")

    def test_S07_S16_a_file_that_others_can_read(self):
        for mode, fine in ((0o600, True), (0o400, True), (0o640, True), (0o440, True), (0o644, False), (0o604, False),
                           (0o660, False), (0o602, False), (0o777, False)):
            path, home = token_file(mode=mode)
            with home, self.subTest(oct(mode)):
                if fine:
                    with lossd.Daemon("--token-file", path) as daemon:
                        self.assertEqual(daemon.get("/version").status, 401)
                else:
                    self.refused(path, "open to others", "%04o" % mode)

    def test_S04_on_the_network(self):
        """Tokens allow a public address, and say that they cross the network in clear text, once."""
        path, home = token_file()
        with home:
            for flags in (("--listen", "0.0.0.0:0"), ("--listen", "127.0.0.1:0", "--ops-listen", "0.0.0.0:0")):
                status, _, err = lossd.command(*flags)
                self.assertEqual((status, err.count("\n")), (2, 1), err)
                self.assertRegex(err, "--token-file or --allow-anonymous")
                with lossd.Daemon(*flags, "--token-file", path) as daemon:
                    self.assertEqual(daemon.get("/version").status, 401)
                    self.assertEqual(daemon.get("/version", **bearer(READ)).status, 200)
                    self.assertEqual(daemon.log().count("clear text"), 1, daemon.log())
            with lossd.Daemon("--listen", "127.0.0.1:0", "--token-file", path) as daemon:
                self.assertNotIn("clear text", daemon.log())
            with lossd.Daemon("--listen", "0.0.0.0:0", "--token-file", path, "--allow-anonymous") as daemon:
                self.assertEqual(daemon.get("/version").status, 401)   # tokens count wherever there are any
                self.assertIn("means nothing", daemon.log())

    def test_S04_anonymous_on_the_network(self):
        """What was said out loud is said again at the start, once, and only where the network can hear it."""
        for flags, warned in ((("--listen", "0.0.0.0:0", "--allow-anonymous"), 1), (("--allow-anonymous",), 0), ((), 0)):
            with lossd.Daemon(*flags) as daemon:
                self.assertEqual(daemon.get("/version").status, 200)
                lines = [line for line in daemon.log().splitlines() if "level=warn" in line]
                self.assertEqual(len(lines), warned, lines)
                self.assertEqual([line for line in lines if "--allow-anonymous" not in line], [])

    def test_short_tokens_are_remarked(self):
        for text, remark in (("read a secret\n", True), ("read a %s\n" % READ, False)):
            path, home = token_file(text)
            with home, lossd.Daemon("--token-file", path) as daemon:
                self.assertEqual("can be guessed" in daemon.log(), remark)
                self.assertEqual(daemon.get("/version", Authorization="Bearer " + text.split()[-1]).status, 200)

    def test_the_healthcheck_needs_no_token(self):
        path, home = token_file()
        with home, lossd.Daemon("--token-file", path) as daemon:
            where = "127.0.0.1:%d" % daemon.port
            self.assertEqual(lossd.command("--healthcheck", "--listen", where, "--token-file", path)[0], 0)
            self.assertEqual(lossd.command("--healthcheck", env={"LOSSD_LISTEN": where})[0], 0)

    def test_L06_new_tokens(self):
        """SIGHUP: the new ones count, and no request fails; of a bad file nothing counts."""
        path, home = token_file("read a %s\nwrite b %s\n" % (READ, WRITE))
        with home, lossd.Daemon("--token-file", path) as daemon:
            ended, failures, done = threading.Event(), [], [0]

            def ask():
                with daemon.connect() as connection:
                    while not ended.is_set():
                        status = connection.request("GET", "/version", None, bearer(WRITE)).status
                        done[0] += 1
                        if status != 200:
                            failures.append(status)

            thread = threading.Thread(target=ask)
            thread.start()
            for turn in range(5):
                replace(path, "write b %s\nread c new-token-number-%d\n" % (WRITE, turn))
                daemon.signal(signal.SIGHUP)
                self.assertTrue(lossd.until(
                    lambda: daemon.get("/version", **bearer("new-token-number-%d" % turn)).status == 200, step=0.15))
                self.assertEqual(daemon.get("/version", **bearer(READ)).status, 401)
            for text in ("write b\n", "nonsense\n", ""):
                failed = counter(daemon, 'lossd_reloads_total{outcome="failed"}', WRITE)
                replace(path, text)
                daemon.signal(signal.SIGHUP)
                self.assertTrue(lossd.until(
                    lambda: counter(daemon, 'lossd_reloads_total{outcome="failed"}', WRITE) == failed + 1))
                self.assertEqual(daemon.get("/version", **bearer("new-token-number-4")).status, 200)
            os.unlink(path)
            daemon.signal(signal.SIGHUP)
            self.assertTrue(lossd.until(lambda: counter(daemon, 'lossd_reloads_total{outcome="failed"}', WRITE) == 4))
            self.assertEqual(counter(daemon, 'lossd_reloads_total{outcome="ok"}', WRITE), 5)
            ended.set()
            thread.join()
            self.assertEqual(failures, [])
            self.assertGreater(done[0], 10)
            self.assertEqual(len([line for line in daemon.log().splitlines() if "level=error" in line]), 4)
            self.assertNotIn("Canary", daemon.log())


class Process(lossd.Case):
    """What the process shows of itself."""

    FLAGS = None

    def limits(self, daemon):
        with open("/proc/%d/limits" % daemon.pid, encoding="ascii") as file:
            cores = re.search(r"Max core file size +(\S+) +(\S+)", file.read()).groups()
        return cores, daemon.status()

    @unittest.skipIf(os.geteuid() != 0, "only root may look into /proc of such a process")
    def test_S17_no_core_dump_and_no_debugger(self):
        with tempfile.TemporaryDirectory() as home:
            os.chmod(home, 0o777)
            env = {"LOSSD_DATA_DIR": os.path.join(home, "data"), "LOSSD_CORE_DUMPS": "0"}
            with lossd.Daemon(env=env, user=65532) as daemon:
                cores, status = self.limits(daemon)
                self.assertEqual((cores, status["NoNewPrivs"]), (("0", "0"), "1"))
                self.assertEqual(os.stat("/proc/%d/environ" % daemon.pid).st_uid, 0)   # not dumpable: not its user's to read
                reader = "open('/proc/%d/environ', 'rb').read(); open('/proc/%d/mem', 'rb')" % (daemon.pid, daemon.pid)
                done = subprocess.run(["/usr/bin/python3", "-c", reader], user=65532, group=65532, extra_groups=[],
                                      capture_output=True, text=True, cwd="/", timeout=lossd.PATIENCE)
                self.assertIn("PermissionError", done.stderr)
                # it still knows itself
                self.assertIn(b"\nlossd_process_open_fds ", daemon.get("/metrics").body)
                self.assertNotIn(b"\nlossd_process_open_fds 0\n", daemon.get("/metrics").body)

    @unittest.skipIf(os.geteuid() != 0, "only root may look into /proc of such a process")
    def test_core_dumps_for_who_wants_them(self):
        with lossd.Daemon("--core-dumps") as daemon:
            with open("/proc/self/limits", encoding="ascii") as file:
                mine = re.search(r"Max core file size +(\S+) +(\S+)", file.read()).groups()
            cores, status = self.limits(daemon)
            self.assertEqual((cores, status["NoNewPrivs"]), (mine, "1"))


if __name__ == "__main__":
    unittest.main()
