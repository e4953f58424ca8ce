# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises and no other file tests: pages of other origins, headers of every answer, names and logs, what
one client can learn of another, and how the binary is made. Tests are named after its rows."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

TINY = lossd.tiny().safetensors()
RELEASE = os.path.join(lossd.ROOT, "build", "release", "lossd")
OURS, OTHERS = "https://grafana.example", ("https://grafana.example.evil", "https://evil.example", "null", "*", "",
                                           "http://grafana.example", "https://grafana.example:443", "HTTPS://GRAFANA.EXAMPLE",
                                           "https://grafana.example, https://evil.example")


def sources(*folders):
    for folder in folders:
        for place, _, names in os.walk(os.path.join(lossd.ROOT, folder)):
            for name in names:
                if name.endswith((".c", ".h")):
                    with open(os.path.join(place, name), encoding="utf-8") as file:
                        yield name, file.read()


def access_headers(answer):
    return {k: v for k, v in answer.fields if k.lower().startswith("access-control")}


class Origins(lossd.Case):
    FLAGS = ("--cors-origin", "http://localhost:3000", "--cors-origin", OURS + ",https://other.example")

    def test_S08_off_by_default(self):
        with lossd.Daemon() as daemon:
            for origin in (OURS, *OTHERS):
                answer = daemon.get("/v1/priors", Origin=origin)
                self.assertEqual((answer.status, access_headers(answer), answer.header("Vary")), (200, {}, None))
                answer = daemon.request("OPTIONS", "/v1/loss", None, {"Origin": origin, "Access-Control-Request-Method": "POST"})
                self.problem(answer, 405)
                self.assertEqual(access_headers(answer), {})

    def test_S08_an_origin_that_is_listed(self):
        for origin in (OURS, "http://localhost:3000", "https://other.example"):
            for method, target, body, status in (("GET", "/v1/priors", None, 200), ("POST", "/v1/loss", TINY, 200),
                                                 ("POST", "/v1/loss", b"{", 400), ("GET", "/nowhere", None, 404),
                                                 ("GET", "/v2/nothing", None, 404)):
                answer = self.daemon.request(method, target, body, {"Origin": origin, "Sec-Fetch-Site": "cross-site"})
                self.assertEqual(answer.status, status, answer)
                self.assertEqual(answer.header("Access-Control-Allow-Origin"), origin)
                self.assertEqual(answer.header("Vary"), "Origin")
                self.assertIn("ETag", answer.header("Access-Control-Expose-Headers"))
                self.assertNotIn("Access-Control-Allow-Credentials", access_headers(answer))

    def test_S08_any_other(self):
        """It gets nothing, and as a page of another site it may not even write."""
        for origin in OTHERS:
            answer = self.daemon.get("/v1/priors", Origin=origin)
            self.assertEqual((answer.status, access_headers(answer), answer.header("Vary")), (200, {}, "Origin"))
            answer = self.daemon.request("POST", "/v1/loss", TINY, {"Origin": origin, "Sec-Fetch-Site": "cross-site"})
            self.problem(answer, 403, "cross_site")
            self.assertEqual(access_headers(answer), {})
            answer = self.daemon.request("OPTIONS", "/v1/loss", None, {"Origin": origin, "Access-Control-Request-Method": "POST"})
            self.problem(answer, 405)
            self.assertEqual(access_headers(answer), {})
        answers, _ = self.daemon.raw(("GET /v1/priors HTTP/1.1\r\nHost: x\r\nOrigin: %s\r\nOrigin: %s\r\nConnection: close\r\n\r\n"
                                      % (OURS, OURS)).encode())
        self.assertEqual([access_headers(a) for a in answers], [{}])
        self.assertEqual(self.daemon.get("/v1/priors").header("Vary"), "Origin")   # whoever asked: caches are told

    def test_S08_preflight(self):
        for target, wanted in (("/v1/loss", "POST"), ("/v1/priors/x", "PUT, DELETE, GET, HEAD"), ("/v1/runs/a", "DELETE"),
                               ("/v2/models/ssd-multibox/infer", "POST")):
            answer = self.daemon.request("OPTIONS", target, None, {
                "Origin": OURS, "Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site",
                "Access-Control-Request-Headers": "authorization,content-type"})
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), OURS)
            allowed = answer.header("Access-Control-Allow-Methods").split(", ")
            self.assertLessEqual(set(wanted.split(", ")), set(allowed))
            for name in ("Authorization", "Content-Encoding", "Content-Type", "Inference-Header-Content-Length"):
                self.assertIn(name, answer.header("Access-Control-Allow-Headers"))
            self.assertNotIn("*", str(access_headers(answer)))
        for headers in ({"Origin": OURS}, {"Access-Control-Request-Method": "GET"}):
            self.problem(self.daemon.request("OPTIONS", "/v1/loss", None, headers), 405)
        answer = self.daemon.request("OPTIONS", "/nowhere", None, {"Origin": OURS, "Access-Control-Request-Method": "GET"})
        self.problem(answer, 404)

    def test_S08_preflight_of_operations(self):
        """What --ops-listen does not have, it has for nobody."""
        asks = {"Origin": OURS, "Access-Control-Request-Method": "GET"}
        with lossd.Daemon("--ops-listen", "127.0.0.1:0", "--cors-origin", OURS) as daemon:
            for target, status in (("/metrics", 204), ("/healthz", 204), ("/v1/runs", 404), ("/v1/loss", 404), ("/", 404), ("/nowhere", 404)):
                with lossd.Connection(daemon.ops_port) as connection:
                    answer = connection.request("OPTIONS", target, None, asks)
                self.assertEqual(answer.status, status, target)
                self.assertEqual("Access-Control-Allow-Methods" in access_headers(answer), status == 204)

    def test_S08_preflight_before_tokens(self):
        """A browser asks without the token whether it may send it; what it then sends is looked at."""
        with tempfile.TemporaryDirectory() as home:
            path = os.path.join(home, "tokens")
            with open(path, "w", encoding="ascii") as out:
                out.write("read page a-token-of-the-page\n")
            os.chmod(path, 0o600)
            with lossd.Daemon("--token-file", path, "--cors-origin", OURS) as daemon:
                headers = {"Origin": OURS, "Access-Control-Request-Method": "GET"}
                self.assertEqual(daemon.request("OPTIONS", "/v1/runs", None, headers).status, 204)
                headers["Origin"] = OTHERS[0]
                self.assertEqual(daemon.request("OPTIONS", "/v1/runs", None, headers).status, 401)
                answer = daemon.get("/v1/runs", Origin=OURS)
                self.assertEqual((answer.status, answer.header("Access-Control-Allow-Origin")), (401, OURS))
                self.assertIn("WWW-Authenticate", answer.header("Access-Control-Expose-Headers"))
                answer = daemon.get("/v1/runs", Origin=OURS, Authorization="Bearer a-token-of-the-page")
                self.assertEqual(answer.status, 200)

    def test_S08_what_is_no_origin(self):
        for origin in ("*", "null", "https://grafana.example/", "grafana.example", "https://a,*", "https://A.example"):
            status, out, err = lossd.command("--listen", "127.0.0.1:0", "--cors-origin", origin)
            self.assertEqual((status, out, err.count("\n")), (2, "", 1), origin)
            self.assertIn("--cors-origin", err)
        with lossd.Daemon("--cors-origin", OURS, env={"LOSSD_CORS_ORIGIN": "https://a,https://b"}) as daemon:
            self.assertEqual(access_headers(daemon.get("/v1/priors", Origin="https://a")), {})   # the flag wins
            self.assertTrue(access_headers(daemon.get("/v1/priors", Origin=OURS)))
        with lossd.Daemon(env={"LOSSD_CORS_ORIGIN": "https://a,https://b"}) as daemon:
            for origin in ("https://a", "https://b"):
                self.assertTrue(access_headers(daemon.get("/v1/priors", Origin=origin)))
        status, _, err = lossd.command("--listen", "127.0.0.1:0", *("--cors-origin=https://a",) * 17)
        self.assertEqual((status, err.count("\n")), (2, 1))


class Rebinding(lossd.Case):
    """A name whose owner makes it mean this machine while his page runs: to its browser that page is the daemon's own."""

    FLAGS = ("--ops-listen", "127.0.0.1:0", "--cors-origin", OURS + ",http://proxied.example:8080")
    # of a GET at an http:// name Chromium says no more than the first
    BROWSER = ({"Accept-Language": "en"}, {"Accept-Language": ""}, {"Sec-Fetch-Site": "same-origin"}, {"sec-fetch-mode": "cors"},
               {"Origin": "http://evil.example:8080"})
    NAMES = ("evil.example", "evil.example:8080", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "1.2.3",
             "x" * 300, "", "::1.evil.example", "127.0.0.1:8080.evil.example")
    FIXED = ("localhost", "LocalHost:8080", "a.localhost", "a.b.localhost:1", "127.0.0.1", "127.0.0.1:8080", "10.1.2.3:80", "[::1]",
             "[::1]:8080", "[fe80::1]:80", "0.0.0.0:8080")

    def asked(self, daemon, host, more, method="GET", target="/v1/runs"):
        return daemon.request(method, target, None, {"Host": host, **more})

    def test_S08_rebinding(self):
        for host in self.NAMES:
            for more in self.BROWSER:
                with self.subTest(host=host[:20], **more):
                    self.problem(self.asked(self.daemon, host, more), 403, "cross_site", "--cors-origin")
            self.assertEqual(self.asked(self.daemon, host, {}).status, 200)   # no browser: names are its user's own
        for host in self.FIXED:
            for more in self.BROWSER:
                self.assertEqual(self.asked(self.daemon, host, more).status, 200, host)
        evil = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
        for method, target in (("OPTIONS", "/v1/runs"), ("DELETE", "/v1/runs/a"), ("GET", "/"), ("GET", "/nowhere"), ("HEAD", "/healthz")):
            self.assertEqual(self.asked(self.daemon, "evil.example", evil, method, target).status, 403)

    def test_S08_rebinding_of_the_listener_for_operations(self):
        for host, status in (("evil.example:81", 403), ("localhost:81", 200)):
            with lossd.Connection(self.daemon.ops_port) as connection:
                answer = connection.request("GET", "/metrics", None, {"Host": host, "Accept-Language": "en"})
                self.assertEqual(answer.status, status)

    def test_S08_names_that_are_listed(self):
        """A proxy on this machine that passes its own name on; and pages that may ask whatever the name."""
        for host in ("grafana.example", "grafana.example:8080", "proxied.example:8080", "Proxied.example"):   # nginx's $host has no port
            self.assertEqual(self.asked(self.daemon, host, {"Accept-Language": "en"}).status, 200)
        self.assertEqual(self.asked(self.daemon, "lossd.example", {"Accept-Language": "en", "Origin": OURS}).status, 200)
        for host in ("a.grafana.example", "example", "grafana.example.evil.example:8080"):
            self.assertEqual(self.asked(self.daemon, host, {"Accept-Language": "en"}).status, 403)

    def test_S08_names_where_others_reach_the_port_or_tokens_keep_them_out(self):
        more = {"Accept-Language": "en", "Sec-Fetch-Site": "none"}
        with lossd.Daemon("--listen", "0.0.0.0:0", "--allow-anonymous") as daemon:
            self.assertEqual(self.asked(daemon, "lossd:8080", more).status, 200)
        with tempfile.TemporaryDirectory() as home:
            path = os.path.join(home, "tokens")
            with open(path, "w", encoding="ascii") as out:
                out.write("read page a-token-of-the-page\n")
            os.chmod(path, 0o600)
            with lossd.Daemon("--token-file", path) as daemon:
                self.assertEqual(self.asked(daemon, "lossd.example", more).status, 401)
                more["Authorization"] = "Bearer a-token-of-the-page"
                self.assertEqual(self.asked(daemon, "lossd.example", more).status, 200)


class MidBody(lossd.Case):
    FLAGS = ("--cors-origin", OURS, "--request-timeout", "1")

    def test_S08_S15_refused_in_the_middle_of_a_body(self):
        """What is told before the body has ended, by other code, has the headers of every other problem."""

        def headers(answer):
            return {k.lower(): v for k, v in answer.fields if k.lower() not in ("date", "content-length", "x-request-id", "connection")}

        for target in ("/v1/loss", "/v2/models/ssd-multibox/infer"):
            for origin in ({"Origin": OURS}, {}):
                want = headers(self.daemon.post(target, b"{", lossd.JSON, origin))
                self.assertEqual((want["cache-control"], want["x-content-type-options"]), ("no-store", "nosniff"))
                self.assertEqual(want.get("access-control-allow-origin"), origin.get("Origin"))
                for more, body, status in (({"Content-Length": 9}, b"{", 408),
                                           ({"Transfer-Encoding": "chunked"}, b"1\r\n{\r\n" * 70000, 400)):
                    with self.subTest(target=target, status=status, **origin), self.daemon.connect() as connection:
                        connection.start("POST", target, {"Content-Type": lossd.JSON, **origin, **more})
                        connection.try_send(body)
                        answer = connection.answer()
                        self.assertEqual((answer.status, answer.header("Connection")), (status, "close"))
                        self.assertEqual(headers(answer), want)


class Answers(lossd.Case):
    def test_S09_S15_headers_of_every_answer(self):
        """No type is guessed, no page of another site loads it, and what is refused is kept by nobody."""
        for method, target, body, status in (
                ("GET", "/", None, 200), ("GET", "/web/app.js", None, 200), ("GET", "/openapi.yaml", None, 200),
                ("GET", "/healthz", None, 200), ("GET", "/metrics", None, 200), ("GET", "/v1/runs", None, 200),
                ("POST", "/v1/loss", TINY, 200), ("POST", "/v1/loss", b"{", 400), ("GET", "/nowhere", None, 404),
                ("DELETE", "/healthz", None, 405), ("POST", "/v1/loss", None, 411), ("GET", "/v2/nothing", None, 404),
                ("DELETE", "/v1/runs/a", None, 404), ("HEAD", "/", None, 200), ("GET", "/v1/priors/ssd300", None, 200)):
            with self.subTest(method=method, target=target):
                answer = self.daemon.request(method, target, body)
                self.assertEqual(answer.status, status)
                self.assertEqual(answer.header("X-Content-Type-Options"), "nosniff")
                self.assertEqual(answer.header("Cross-Origin-Resource-Policy"), "same-origin")
                self.assertEqual(answer.header("Cache-Control"), "no-cache" if answer.header("ETag") else "no-store")
                self.assertIsNone(answer.header("Server"))
                if status >= 400:
                    self.assertEqual(answer.header("Cache-Control"), "no-store")
                if answer.type == "text/html":
                    policy = answer.header("Content-Security-Policy").split("; ")
                    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
                        self.assertIn(part, policy)
                    self.assertEqual(answer.header("X-Frame-Options"), "DENY")

    def test_S09_names_of_runs(self):
        for name in ("%3Cscript%3E", "%E2%80%AEx", "a" * 65, "a%22b", "a%27;drop%20table%20runs", "..%2fx", "a%20b", ""):
            answer = self.daemon.post("/v1/loss?run=%s&step=1" % name, TINY)
            self.problem(answer, 422)
            self.assertLess(len(answer.json()["detail"]), 320)
        answer = self.daemon.post("/v1/loss", lossd.tiny().json(run="r" * (10 << 20), step=1), lossd.JSON)
        self.problem(answer, (413, 422))
        self.assertLess(len(answer.body), 1024)
        self.problem(self.daemon.post("/v1/loss?run=a%0ab&step=1", TINY), 400)
        self.assertEqual(self.daemon.get("/v1/runs").json()["runs"], [])

    def test_S10_log_lines(self):
        with lossd.Daemon("--log-format", "json") as daemon:
            before = len(daemon.log().splitlines())
            hostile = [("/%0d%0aforged", {}), ("/%1b%5b31m", {}), ("/" + "a" * 1000, {}), ("/%22,%22forged%22:%221", {}),
                       ("/v1/runs/%7b%7d", {}), ("/healthz", {"User-Agent": '","forged":"1'}), ("/healthz", {"X-Request-Id": '","x":"'})]
            for target, headers in hostile:
                daemon.request("GET", target, None, headers)
            lossd.until(lambda: len(daemon.log().splitlines()) >= before + len(hostile), 5)
            lines = [json.loads(line) for line in daemon.log().splitlines()[before:]]
            self.assertEqual(len(lines), len(hostile))
            for line in lines:
                self.assertNotIn("forged", line)
                self.assertTrue(all(len(str(v)) <= 256 for v in line.values()), line)

    def test_S11_nothing_becomes_a_header(self):
        head = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: %s\r\n\r\n"
        for value in ("a\rX-Injected: 1", "a\x0bX-Injected: 1", "a b", "\xff\xfe", "x" * 129, "a\tb"):
            answers, _ = self.daemon.raw((head % value).encode("latin-1"))
            for answer in answers:
                self.assertIsNone(answer.header("X-Injected"))
                self.assertRegex(answer.header("X-Request-Id") or "none", r"^[!-~]+$")
                self.assertNotEqual(answer.header("X-Request-Id"), value)
        for target in ("/%0d%0aX-Injected:%201", "/v1/priors/a%0d%0aX-Injected:%201", "/v1/loss?run=%0d%0aX-Injected:%201"):
            self.assertIsNone(self.daemon.get(target).header("X-Injected"))

    def test_S12_series_and_page_stay_small(self):
        for i in range(200):
            self.daemon.get("/v1/runs/name-%d" % i, **{"X-Request-Id": "id-%d" % i})
        page = self.daemon.get("/metrics").body
        self.assertLess(len(page), 256 << 10)
        self.assertNotIn(b"name-", page)
        series = [line for line in page.decode().splitlines() if not line.startswith("#")]
        without_buckets = [line for line in series if "_bucket{" not in line]
        self.assertLessEqual(len(without_buckets), 500)

    def test_S15_only_what_is_built_in_is_served(self):
        for target in ("/../etc/passwd", "/%2e%2e/etc/passwd", "/web/../healthz", "/web/%2e%2e/app.js", "/web/..%2fapp.js", "//etc/passwd",
                       "/web//app.js", "/web/app.js/", "/web/style.css%00", "/web/.", "/./", "/web/%2fetc%2fpasswd"):
            answers, _ = self.daemon.raw(("GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target).encode())
            for answer in answers:
                self.assertIn(answer.status, (400, 404), target)
                self.assertNotIn(b"root:", answer.body)

    def test_S20_pages_of_history(self):
        for query in ("limit=1001", "limit=0", "limit=-1", "limit=99999999999999999999", "points=1000000"):
            self.assertIn(self.daemon.get("/v1/runs/x/steps?" + query).status, (404, 422))
        self.assertEqual(self.daemon.post("/v1/loss?run=x&step=1", TINY).status, 200)
        for query in ("limit=1001", "limit=0", "limit=-1", "limit=99999999999999999999", "points=1000000"):
            self.problem(self.daemon.get("/v1/runs/x/steps?" + query), 422)

    def test_S22_no_payload_in_the_log(self):
        canary = "7.31734217"
        body = lossd.tiny().json().replace(b"-0.25", canary.encode())
        self.assertIn(canary.encode(), body)
        for text in (body, body.replace(b'"labels"', b'"label5-canary"'), body[:-1], body.replace(canary.encode(), b'"' + canary.encode() + b'"')):
            self.daemon.post("/v1/loss", text, lossd.JSON)
        log = self.daemon.log()
        self.assertNotIn(canary, log)
        self.assertNotIn("label5-canary", log)

    def test_S25_no_answer_holds_what_another_sent(self):
        """Interleaved clients, each with numbers of its own, on buffers that are used again and again."""
        seen = []

        def client(mark):
            batch = lossd.random_batch(mark, n=1, p=100, c=5, objects=3)
            batch.conf = lossd.floats([float(mark)] * len(batch.conf))
            body = batch.safetensors({"include": "targets,dense_gradients,objects"})
            with self.daemon.connect() as connection:
                want = None
                for turn in range(40):
                    if turn % 3 == 2:   # something else is left in the buffer: a body that is refused in its middle
                        connection.request("POST", "/v1/loss", body[:-1], {"Content-Type": lossd.SAFETENSORS})
                    answer = connection.request("POST", "/v1/loss", body, {"Content-Type": lossd.SAFETENSORS,
                                                                          "X-Request-Id": "client-%d" % mark})
                    got = lossd.stable(answer.body)
                    want = want or got
                    if got != want or answer.header("X-Request-Id") != "client-%d" % mark:
                        seen.append((mark, answer))

        lossd.together([lambda m=m: client(m) for m in (3, 77, 1234)])
        self.assertEqual(seen, [])


class Sources(unittest.TestCase):
    def test_S13_no_sql_is_put_together(self):
        """Statements are constants; values are bound."""
        for name, text in sources("server"):
            for call in re.findall(r"sqlite3_(?:prepare_v[23]|exec)\(([^;]*);", text):
                self.assertNotRegex(call, r"snprintf|strcat", name)
            for line in re.findall(r"s(?:n)?printf\([^;]*;", text):
                self.assertNotRegex(line, r'(?i)"[^"]*\b(select|insert|update|delete from|drop|where)\b[^"]*%', name)

    def test_S14_nothing_is_connected_to(self):
        """The daemon calls nobody: connect() is there for --healthcheck alone."""
        callers = [name for name, text in sources("server", "proto", "lib") if re.search(r"\bconnect\(", text)]
        self.assertEqual(callers, ["main.c"])
        for name, text in sources("server", "proto", "lib"):
            self.assertNotRegex(text, r"\b(system|popen|exec[lv]p?e?|fork|posix_spawn|dlopen)\(", name)

    @unittest.skipUnless(shutil.which("strace"), "strace is not installed")
    def test_S14_S19_calls_of_a_running_daemon(self):
        """Nothing is connected to and nothing is executed while every kind of request is served."""
        with tempfile.TemporaryDirectory() as home, lossd.Daemon("--core-dumps") as daemon:
            trace = os.path.join(home, "trace")
            tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", trace, "-p", str(daemon.pid),
                                       "-e", "trace=connect,execve,execveat,ptrace,mount,setns,unshare,bpf,keyctl,init_module"],
                                      stderr=subprocess.PIPE)
            try:
                attached = lossd.until(lambda: tracer.poll() is not None or daemon.status()["TracerPid"] != "0", 10)
                if tracer.poll() is not None or not attached:
                    self.skipTest("strace may not attach here")
                for target in ("/", "/metrics", "/v1/runs", "/openapi.yaml", "/v1/priors/retinanet-64x64"):
                    daemon.get(target)
                self.assertEqual(daemon.post("/v1/loss?run=a&step=1", lossd.random_batch(1).safetensors()).status, 200)
                self.assertEqual(daemon.put("/v1/priors/mine", {"generator": "grid", "image_size": 64}).status, 201)
            finally:
                if tracer.poll() is None:
                    tracer.terminate()
                tracer.communicate()
            with open(trace, encoding="utf-8") as file:
                calls = [line for line in file if "(" in line and "+++" not in line and "---" not in line]
            self.assertEqual(calls, [])


class Catalogue(unittest.TestCase):
    def test_every_row_has_a_test_or_a_reason(self):
        """SECURITY.md's table: the files that it names have tests of that row's name."""
        with open(os.path.join(lossd.ROOT, "SECURITY.md"), encoding="utf-8") as file:
            rows = re.findall(r"^\| (S\d\d) \| [^|]+ \| ([^|]+) \|$", file.read(), re.M)
        self.assertEqual([row for row, _ in rows], ["S%02d" % i for i in range(1, 26)])
        for row, text in rows:
            named = re.findall(r"`(test_\w+\.(?:py|c))`", text)
            if text.startswith(("there are no", "not done")):
                self.assertGreater(len(text), 40)
                continue
            self.assertTrue(named, row)
            for name in named:
                with open(os.path.join(lossd.ROOT, "tests", "e2e" if name.endswith(".py") else "unit", name), encoding="utf-8") as file:
                    self.assertRegex(file.read(), r"test_(?:S\d\d_)*%s_" % row, name)


@unittest.skipUnless(os.path.exists(RELEASE) and shutil.which("readelf"), "there is no release build to look at")
class Binary(unittest.TestCase):
    """S24: how the release build is made."""

    def readelf(self, *flags):
        return subprocess.run(["readelf", "-W", *flags, RELEASE], check=True, capture_output=True, text=True,
                              timeout=lossd.PATIENCE).stdout

    def test_S24_layout(self):
        self.assertRegex(self.readelf("-h"), r"Type:\s+DYN")
        dynamic = self.readelf("-d")
        self.assertRegex(dynamic, r"\(FLAGS_1\).*\bNOW\b.*\bPIE\b")
        self.assertRegex(dynamic, r"\(FLAGS\).*BIND_NOW")
        self.assertNotRegex(dynamic, r"\((RPATH|RUNPATH|TEXTREL)\)")
        segments = self.readelf("-l")
        self.assertIn("GNU_RELRO", segments)
        stack, = re.findall(r"GNU_STACK +(?:0x\w+ +){5}([RWE]+)", segments)
        self.assertEqual(stack, "RW")
        for flags in re.findall(r"LOAD +(?:0x\w+ +){5}([RWE ]+?) +0x", segments):
            self.assertFalse("W" in flags and "E" in flags, segments)

    def test_S24_checks_of_the_compiler(self):
        symbols = self.readelf("--dyn-syms")
        self.assertIn("__stack_chk_fail", symbols)
        fortified = set(re.findall(r"\b__(\w+)_chk@", symbols))
        self.assertLessEqual({"memcpy", "snprintf", "read"}, fortified)

    def test_S24_flags(self):
        """What the compiler says that it was told (in the debug information)."""
        producers = subprocess.run(["readelf", "-W", "--debug-dump=info", "--dwarf-depth=1", RELEASE], check=True,
                                   capture_output=True, text=True, timeout=4 * lossd.PATIENCE).stdout
        units = [line for line in producers.splitlines() if "DW_AT_producer" in line and "GNU C" in line]
        self.assertGreater(len(units), 40)
        for line in units:
            for flag in ("-fstack-protector-strong", "-fPIE", "-fstack-clash-protection"):
                self.assertIn(flag, line)
            if os.uname().machine == "x86_64":
                self.assertIn("-fcf-protection", line)
        cleared = [line for line in units if "-ftrivial-auto-var-init=zero" in line]
        plain = [line for line in units if "-ftrivial-auto-var-init=uninitialized" in line]
        self.assertGreater(len(cleared) - len(plain), 30)
        self.assertLessEqual(len(plain), 8)   # the kernels

    @unittest.skipUnless(os.uname().machine == "x86_64", "CET is x86's")
    def test_S24_cet(self):
        """Each of our functions whose address may be taken begins with ENDBR64. (The mark of the whole binary is lost to
        Debian's own start-up files, which have none.)"""
        with open(RELEASE, "rb") as file:
            self.assertGreater(file.read().count(b"\xf3\x0f\x1e\xfa"), 500)

    @unittest.skipUnless(shutil.which("checksec"), "checksec is not installed")
    def test_S24_checksec(self):
        done = subprocess.run(["checksec", "--format=json", "--file=" + RELEASE], capture_output=True, text=True,
                              timeout=lossd.PATIENCE, check=False)
        facts = next(iter(json.loads(done.stdout).values()))
        self.assertEqual([facts[k] for k in ("relro", "canary", "nx", "pie", "rpath", "runpath", "fortify_source")],
                         ["full", "yes", "yes", "yes", "no", "no", "yes"])


if __name__ == "__main__":
    unittest.main()
