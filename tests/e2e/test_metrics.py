# SPDX-License-Identifier: Apache-2.0
"""GET /metrics counts what happened, Prometheus reads it, and --ops-listen answers whatever the rest is doing.

Needs promtool and prometheus (Debian: prometheus); the two tests of them are skipped where they are missing.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = {"ok", "refused", "timeout", "busy", "failed", "gone"}
BATCHES = ["/v1/loss", "/v1/match", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"]
TIMES = ["receive", "queue", "compute", "answer"]
LABEL = r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(%s(?:,%s)*)\})? (\+Inf|\d+(?:\.\d+)?)$" % (LABEL, LABEL))
TINY = lossd.tiny()


def tool(name):
    return unittest.skipUnless(shutil.which(name), "%s is not installed" % name)


class Page:
    """A page of metrics, read strictly: {(name, labels...): value}, types and helps by metric."""

    def __init__(self, text):
        self.samples, self.types, self.helps, current = {}, {}, {}, None
        if not text.endswith("\n"):
            raise ValueError("the last line has no end")
        for line in text.splitlines():
            if line.startswith("# "):
                word, current, rest = line[2:].split(" ", 2)
                told = {"HELP": self.helps, "TYPE": self.types}[word]
                if current in told:
                    raise ValueError("%s twice of %s" % (word, current))
                told[current] = rest
                continue
            match = SAMPLE.match(line)
            if not match:
                raise ValueError("not a sample: %r" % line)
            name = match.group(1)
            suffix = name[len(current):]
            if not name.startswith(current) or suffix not in (
                    ("_bucket", "_sum", "_count") if self.types[current] == "histogram" else ("",)):
                raise ValueError("%s stands under %s" % (name, current))
            key = (name, *sorted(re.findall(LABEL, match.group(2) or "")))
            if key in self.samples:
                raise ValueError("twice: %r" % (key,))
            self.samples[key] = float(match.group(match.lastindex))

    def __call__(self, name, **labels):
        return self.samples[("lossd_" + name, *sorted(labels.items()))]

    def requests(self):
        """{(route, outcome): n} of what is not 0, without the operator's own."""
        own = ("/metrics", "/healthz", "/readyz")
        rows = {(dict(key[1:])["route"], dict(key[1:])["outcome"]): int(n)
                for key, n in self.samples.items() if key[0] == "lossd_requests_total" and n}
        return {key: n for key, n in rows.items() if key[0] not in own}


class Metrics(lossd.Case):
    def setUp(self):
        self.read = 0  # bytes of pages

    def page(self, daemon=None):
        answer = (daemon or self.daemon).get("/metrics")
        self.assertEqual((answer.status, answer.header("Content-Type")), (200, TYPE), answer)
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.read += len(answer.body)
        return Page(answer.body.decode("ascii"))

    def settled(self, daemon, requests):
        """The page once these are counted, which is after their answers were sent."""
        page = self.page(daemon)
        end = time.monotonic() + lossd.PATIENCE
        while page.requests() != requests and time.monotonic() < end:
            time.sleep(0.02)
            page = self.page(daemon)
        self.assertEqual(page.requests(), requests)
        return page

    def histograms(self, page, counts):
        """Every histogram agrees with itself, and has this many observations by (name, route)."""
        series = {}
        for key, value in page.samples.items():
            if key[0].endswith("_bucket"):
                labels = dict(key[1:])
                bound = float(labels.pop("le"))
                series.setdefault((key[0][:-7], *sorted(labels.items())), {})[bound] = value
        self.assertEqual(len(series), len(TIMES) * len(BATCHES) + 1)
        for (name, *labels), buckets in series.items():
            rising = [buckets[bound] for bound in sorted(buckets)]
            self.assertEqual(rising, sorted(rising), name)
            self.assertEqual(min(buckets), 50e-6)
            self.assertEqual(sorted(buckets)[-2:], [30, float("inf")])
            count, total = page.samples[(name + "_count", *labels)], page.samples[(name + "_sum", *labels)]
            self.assertEqual(count, buckets[float("inf")])
            self.assertEqual(count, counts.get((name, dict(labels).get("route")), 0), (name, labels))
            # the sum lies between what the buckets allow
            bounds = [0] + sorted(buckets)[:-1]
            steps = [b - a for a, b in zip([0] + rising, rising)]
            self.assertGreaterEqual(total + 1e-6, sum(n * low for n, low in zip(steps, bounds)), name)
            self.assertLessEqual(total - 1e-6, sum(n * high for n, high in zip(steps, bounds[1:] + [3600])), name)

    def test_known_traffic(self):
        batch, document = TINY.safetensors(), TINY.json()
        with lossd.Daemon() as daemon:
            sent, got, want = {"json": 0, "safetensors": 0, "infer": 0}, 0, {}

            def did(answer, status, route, outcome, encoding=None, body=b"", head=False):
                nonlocal got
                self.assertEqual(answer.status, status, answer)
                want[route, outcome] = want.get((route, outcome), 0) + 1
                got += 0 if head else len(answer.body)
                if encoding:
                    sent[encoding] += len(body)

            loss = "/v1/loss"
            for _ in range(3):
                did(daemon.post(loss, lossd.bccd_bytes(), lossd.SAFETENSORS), 200, loss, "ok", "safetensors",
                    lossd.bccd_bytes())
            did(daemon.post(loss, document, lossd.JSON), 200, loss, "ok", "json", document)
            match = TINY.json(predictions=False)
            did(daemon.post("/v1/match", match, lossd.JSON), 200, "/v1/match", "ok", "json", match)
            text, behind = lossd.inference(TINY.tensors())
            text = json.dumps(text).encode()
            body, headers = text + behind, lossd.infer_headers(text)
            for path, route in (("/v2/models/ssd-multibox/infer", BATCHES[2]),
                                ("/v2/models/ssd-multibox/versions/1/infer", BATCHES[3])):
                did(daemon.post(path, body, None, headers), 200, route, "ok", "infer", body)
            # a batch that is found wrong before it is planned, and one after
            bad = TINY.document()
            bad["annotations"][0]["labels"] = [99]
            bad = json.dumps(bad).encode()
            did(daemon.post(loss, bad, lossd.JSON), 422, loss, "refused", "json", bad)
            infinite = lossd.tiny()
            infinite.conf[0] = float("inf")
            infinite = infinite.safetensors()
            did(daemon.post(loss, infinite, lossd.SAFETENSORS), 422, loss, "refused", "safetensors", infinite)
            # no capacity would help who wants a device that is not there
            did(daemon.post(loss + "?device=cuda:7", batch, lossd.SAFETENSORS), 503, loss, "refused", "safetensors", batch)
            # bodies that nobody wanted are not those of requests that were admitted
            did(daemon.post(loss, batch, "text/plain"), 415, loss, "refused")
            did(daemon.post("/nowhere", batch), 404, "other", "refused")
            did(daemon.get("/v1/criteria/none"), 404, "/v1/criteria/{name}", "refused")
            did(daemon.request("DELETE", loss), 405, "other", "refused")
            did(daemon.request("HEAD", "/version"), 200, "/version", "ok", head=True)
            made = json.dumps({"base": "ssd-multibox"}).encode()
            name = "/v1/criteria/{name}"
            did(daemon.put("/v1/criteria/mine", made), 201, name, "ok", "json", made)
            did(daemon.get("/v1/criteria/mine"), 200, name, "ok")
            did(daemon.delete("/v1/criteria/mine"), 204, name, "ok")
            # refused by libmicrohttpd, unseen by any handler: it has no Host
            with daemon.connect() as connection:
                connection.send(b"GET /v1/loss HTTP/1.1\r\n\r\n")
                self.assertRegex(connection.drain(1)[0], b"^HTTP/1.1 400 ")
            want["other", "refused"] += 1

            page = self.settled(daemon, want)
            self.assertEqual({e: page("request_body_bytes_total", encoding=e) for e in sent}, sent)
            read, page = self.read, self.page(daemon)
            self.assertEqual(page("response_body_bytes_total"), got + read)
            images = {(r, o): page("images_total", route=r, outcome=o) for r in BATCHES for o in OUTCOMES}
            self.assertEqual({key: n for key, n in images.items() if n},
                             {(loss, "ok"): 25, ("/v1/match", "ok"): 1, (BATCHES[2], "ok"): 1, (BATCHES[3], "ok"): 1,
                              (loss, "refused"): 1})
            self.histograms(page, {("lossd_%s_seconds" % t, r): {loss: 4}.get(r, 1) for t in TIMES for r in BATCHES})

    def test_busy_late_and_gone(self):
        loss, body = "/v1/loss", TINY.safetensors()
        head = {"Content-Length": len(body), "Content-Type": lossd.SAFETENSORS}
        with lossd.Daemon("--queue-limit", "1", "--request-timeout", "1", "--header-timeout", "1") as daemon:
            with daemon.connect() as first:
                first.start("POST", loss, head)
                first.send(body[:100])
                self.assertTrue(lossd.until(lambda: self.page(daemon)("queue_depth") == 1))
                self.assertEqual(daemon.post(loss, body).status, 503)
                self.assertEqual(first.answer().status, 408)
            want = {(loss, "busy"): 1, (loss, "timeout"): 1}
            self.settled(daemon, want)
            self.assertTrue(lossd.until(lambda: self.page(daemon)("queue_depth") == 0))

            for leave in ("reset", "close"):
                vanishing = daemon.connect()
                vanishing.start("POST", loss, head)
                vanishing.send(body[:100])
                self.assertTrue(lossd.until(lambda: self.page(daemon)("queue_depth") == 1))
                getattr(vanishing, leave)()
                want[loss, "gone"] = want.get((loss, "gone"), 0) + 1
                self.settled(daemon, want)

            vanishing = daemon.connect()  # in the middle of the headers
            vanishing.send(b"POST /v1/loss HTTP/1.1\r\nHost: a\r\n")
            time.sleep(0.2)
            vanishing.reset()
            want["other", "gone"] = 1
            self.settled(daemon, want)
            with daemon.connect() as slow:
                slow.send(b"POST /v1/loss HTTP/1.1\r\nHost: a\r\n")
                self.assertTrue(slow.drain(lossd.PATIENCE)[1])
            want["other", "timeout"] = 1
            with daemon.connect() as endless:  # more framing than we bear
                endless.start("POST", loss, {"Transfer-Encoding": "chunked", "Content-Type": lossd.SAFETENSORS})
                endless.try_send(b"1\r\nx\r\n" * 70000)
                self.assertTrue(endless.drain(lossd.PATIENCE)[1])
            want[loss, "refused"] = 1
            page = self.settled(daemon, want)
            self.assertEqual(page("images_total", route=loss, outcome="gone"), 0)
            self.histograms(page, {})

    def test_gone_when_all_is_sent(self):
        """Whoever posts everything and closes has left; nothing was refused."""
        body = lossd.bccd_bytes()
        with lossd.Daemon() as daemon:
            for _ in range(20):
                with daemon.connect() as connection:
                    connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
                    connection.send(body)
            def outcomes():
                text = daemon.get("/metrics").body.decode()
                return {o: int(re.search(r'lossd_requests_total\{route="/v1/loss",outcome="%s"\} (\d+)' % o, text)[1]) for o in OUTCOMES}
            self.assertTrue(lossd.until(lambda: sum(outcomes().values()) == 20), outcomes())
            seen = outcomes()
            self.assertEqual(seen["ok"] + seen["gone"], 20, seen)

    def test_gone_while_it_is_computed(self):
        """The images of a batch of whose answer nobody heard."""
        batch = lossd.random_batch(1, n=4, p=100000, c=2, objects=100)
        body = batch.safetensors(order=("conf", "loc", "counts", "labels", "boxes"))
        with lossd.Daemon("--workers", "1") as daemon:
            client = daemon.connect()
            client.start("POST", "/v1/loss", {"Content-Length": len(body), "Content-Type": lossd.SAFETENSORS})
            client.send(body)
            self.assertTrue(lossd.until(lambda: self.page(daemon)("workers_busy") == 1, step=0))
            client.reset()
            page = self.settled(daemon, {("/v1/loss", "gone"): 1})
            self.assertEqual(page("images_total", route="/v1/loss", outcome="gone"), 4)
            self.assertEqual(page("request_body_bytes_total", encoding="safetensors"), len(body))
            self.assertTrue(lossd.until(lambda: self.page(daemon)("workers_busy") == 0))
            self.histograms(page, {})

    def test_gauges(self):
        with lossd.Daemon("--workers", "3", "--queue-limit", "17", "--memory-limit", "64M") as daemon:
            self.assertTrue(lossd.until(lambda: self.page(daemon)("workers_busy") == 0))   # they have begun to wait
            page = self.page(daemon)
            for name, value in (("workers", 3), ("workers_busy", 0), ("queue_limit", 17), ("queue_depth", 0),
                                ("memory_limit_bytes", 64 << 20), ("ready", 1), ("store_healthy", 1)):
                self.assertEqual(page(name), value, name)
            # the page's own, once the daemon has seen that those before are closed
            self.assertTrue(lossd.until(lambda: self.page(daemon)("connections") == 1))
            version = daemon.get("/version").json()
            self.assertEqual(page("build_info", version=version["version"], compiler=version["compiler"]), 1)
            self.assertEqual(page("device_info", device="cpu", level=version["cpu_level"]), 1)
            before = page("inflight_bytes")
            with daemon.connect() as one, daemon.connect():
                one.start("POST", "/v1/loss", {"Content-Length": 1 << 20, "Content-Type": lossd.SAFETENSORS})
                one.send(bytes(10))
                self.assertTrue(lossd.until(lambda: self.page(daemon)("connections") == 3))
                self.assertTrue(lossd.until(lambda: self.page(daemon)("inflight_bytes") > before))
            self.assertTrue(lossd.until(lambda: self.page(daemon)("inflight_bytes") == before))
            self.assertTrue(lossd.until(lambda: self.page(daemon)("connections") == 1))

    def test_the_process(self):
        """As /proc tells others."""
        page, at = self.page(), "/proc/%d/" % self.daemon.pid
        status = self.daemon.status()
        self.assertEqual(page("process_threads"), int(status["Threads"]))
        for name, of in (("process_resident_memory_bytes", "VmRSS"), ("process_virtual_memory_bytes", "VmSize")):
            self.near(page(name), 1024 * int(status[of].split()[0]), 0.2, name)
        # and the connection that asks
        self.assertTrue(lossd.until(lambda: self.page()("process_open_fds") == self.daemon.descriptors() + 1))
        with open(at + "limits", encoding="ascii") as file:
            files = [line.split()[3] for line in file if line.startswith("Max open files")]
        self.assertEqual(page("process_max_fds"), float(files[0].replace("unlimited", "inf")))
        with open(at + "stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks = os.sysconf("SC_CLK_TCK")
        self.assertLessEqual(abs(page("process_cpu_seconds_total") - (int(fields[11]) + int(fields[12])) / ticks), 0.5)
        with open("/proc/stat", encoding="ascii") as file:
            boot = [int(line.split()[1]) for line in file if line.startswith("btime")][0]
        self.assertLessEqual(abs(page("process_start_time_seconds") - boot - int(fields[19]) / ticks), 2)

    def test_every_metric_is_documented(self):
        with open(os.path.join(lossd.ROOT, "server", "metrics.def"), encoding="utf-8") as file:
            rows = ["lossd_" + name for name in re.findall(r"^METRIC\((\w+),", file.read(), re.M)]
        with open(os.path.join(lossd.ROOT, "proto", "openapi.yaml"), encoding="utf-8") as file:
            document = file.read()
        page = self.page()
        self.assertEqual(list(page.types), rows)
        self.assertEqual(list(page.helps), rows)
        samples = {key[0] for key in page.samples}
        for name in rows:
            self.assertTrue(page.helps[name])
            self.assertIn("`%s`" % name, document)
            self.assertTrue(samples & {name, name + "_count"}, name)

    def test_no_client_makes_a_series(self):
        before = set(self.page().samples)
        for name in ("a", "b" * 64, "%22%7D", "%0A", "..", "x%5C"):
            for target in ("/" + name, "/v1/" + name, "/v1/priors/" + name, "/v1/criteria/" + name + "?" + name + "=1",
                           "/v2/models/" + name, "/v2/models/%s/versions/%s" % (name, name)):
                self.daemon.get(target, **{"X-Request-Id": "id-" + name})
            for method in ("PUT", "BREW"):
                self.daemon.request(method, "/v1/" + name)
            self.daemon.post("/v2/models/%s/infer" % name, b"{}")
            self.daemon.post("/v1/loss?criterion=" + name, TINY.json())
        self.assertEqual(self.daemon.put("/v1/criteria/mine", {"base": "ssd-multibox"}).status, 201)
        self.good(self.daemon.post("/v1/loss?criterion=mine", TINY.json()))
        self.daemon.raw(b"GET /v1/loss\r\n\r\n", 1)
        self.daemon.raw(b"\x00\xff\r\n\r\n", 1)
        self.assertEqual(set(self.page().samples), before)
        self.assertLess(len(before), 1000)

    @tool("promtool")
    def test_promtool(self):
        self.good(self.daemon.post("/v1/loss", TINY.safetensors()))
        page = self.daemon.get("/metrics").body
        done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True,
                              timeout=lossd.PATIENCE)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    @tool("prometheus")
    def test_prometheus(self):
        """The real one scrapes --ops-listen; what it says is what was done."""
        with lossd.Daemon("--ops-listen", "127.0.0.1:0") as daemon, tempfile.TemporaryDirectory() as place:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with open(os.path.join(place, "prometheus.yml"), "w", encoding="ascii") as file:
                file.write("global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n- job_name: lossd\n"
                           "  static_configs: [{targets: ['127.0.0.1:%d']}]\n" % daemon.ops_port)
            log = open(os.path.join(place, "log"), "w+b")
            process = subprocess.Popen(
                ["prometheus", "--config.file=" + os.path.join(place, "prometheus.yml"),
                 "--storage.tsdb.path=" + os.path.join(place, "data"), "--web.listen-address=127.0.0.1:%d" % port],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)

            def query(text):
                where = "http://127.0.0.1:%d/api/v1/query?%s" % (port, urllib.parse.urlencode({"query": text}))
                try:
                    with urllib.request.urlopen(where, timeout=lossd.PATIENCE) as answer:
                        rows = json.load(answer)["data"]["result"]
                except OSError:  # it is not there yet
                    return None
                return float(rows[0]["value"][1]) if len(rows) == 1 else None

            def becomes(text, value):
                if not lossd.until(lambda: query(text) == value, step=0.2):
                    log.seek(0)
                    self.fail("%s is %r, not %r\n%s" % (text, query(text), value, log.read()[-2000:].decode()))

            try:
                becomes("up", 1)
                series = 'lossd_requests_total{route="/v1/loss",outcome="ok"}'
                becomes(series, 0)
                for _ in range(7):
                    self.good(daemon.post("/v1/loss", TINY.safetensors()))
                becomes(series, 7)
                becomes('lossd_images_total{route="/v1/loss",outcome="ok"}', 7)
                becomes('lossd_compute_seconds_count{route="/v1/loss"}', 7)
                rate = query("rate(%s[1m])" % series)
                self.assertTrue(rate is not None and rate > 0, rate)
                middle = query('histogram_quantile(0.5, rate(lossd_compute_seconds_bucket{route="/v1/loss"}[1m]))')
                self.assertTrue(middle is not None and 0 < middle < 30, middle)
            finally:
                process.terminate()
                process.wait(lossd.PATIENCE)
                log.close()


class OpsListener(lossd.Case):
    FLAGS = None

    def test_what_it_serves(self):
        with lossd.Daemon("--ops-listen", "127.0.0.1:0") as daemon:
            self.assertNotEqual(daemon.ops_port, daemon.port)
            served = ["/healthz", "/readyz", "/metrics", "/version"]
            for target in served:
                answer, same = daemon.ops(target), daemon.get(target)
                self.assertEqual((answer.status, answer.type), (same.status, same.type), answer)
                self.assertEqual(daemon.ops(target, "HEAD").status, 200)
                self.assertEqual(daemon.ops(target, "POST").status, 405)
            self.assertEqual(daemon.ops("/version").json(), daemon.get("/version").json())
            for method, target in (("GET", "/"), ("GET", "/v1/priors"), ("POST", "/v1/loss"), ("PUT", "/v1/criteria/a"),
                                   ("GET", "/openapi.yaml"), ("GET", "/metricz")):
                body = self.problem(daemon.ops(target, method), 404, "not_found")
                for known in served:
                    self.assertIn(known + " ", body["detail"])
            self.assertEqual(daemon.ops("/v2/health/live").status, 404)
            # both listeners are counted
            self.assertTrue(lossd.until(lambda: Page(daemon.ops("/metrics").body.decode())(
                "requests_total", route="/version", outcome="ok") == 5))
            self.assertEqual(daemon.stop(), 0)
            self.assertEqual(daemon.rest, "")

    def test_it_answers_while_all_connections_are_taken(self):
        with lossd.Daemon("--ops-listen", "127.0.0.1:0", "--connection-limit", "4", "--header-timeout", "60") as daemon:
            silent = [daemon.connect() for _ in range(24)]  # those that are not accepted wait in the backlog
            try:
                self.assertTrue(lossd.until(lambda: Page(daemon.ops("/metrics").body.decode())("connections") == 4))
                with daemon.connect() as waits:
                    waits.start("GET", "/healthz")
                    self.assertTrue(waits.silent(0.5))
                for target in ("/healthz", "/readyz", "/metrics", "/version") * 3:
                    began = time.monotonic()
                    self.assertEqual(daemon.ops(target, timeout=5).status, 200)
                    self.assertLess(time.monotonic() - began, 1)
                where = "127.0.0.1:%d" % daemon.ops_port
                self.assertEqual(lossd.command("--healthcheck", "--ops-listen", where, "--listen", "127.0.0.1:1")[0], 0)
                self.assertEqual(lossd.command("--healthcheck", env={"LOSSD_OPS_LISTEN": where})[0], 0)
            finally:
                for connection in silent:
                    connection.close()
            self.healthy(daemon)

    def test_it_answers_until_the_drain_is_over(self):
        body = TINY.safetensors()
        with lossd.Daemon("--ops-listen", "127.0.0.1:0", "--drain-delay", "1", "--drain-timeout", "20") as daemon:
            with daemon.connect() as last:
                last.start("POST", "/v1/loss", {"Content-Length": len(body), "Content-Type": lossd.SAFETENSORS})
                last.send(body[:-1])
                self.assertEqual(daemon.ops("/readyz").status, 200)
                daemon.signal(signal.SIGTERM)
                self.assertTrue(lossd.until(lambda: daemon.ops("/readyz").status == 503))

                def refuses():
                    try:
                        daemon.connect().close()
                    except ConnectionRefusedError:
                        return True
                    return False

                self.assertTrue(lossd.until(refuses))
                self.assertEqual(daemon.ops("/healthz").status, 200)
                self.problem(daemon.ops("/readyz"), 503, "draining")
                page = Page(daemon.ops("/metrics").body.decode())
                self.assertEqual((page("ready"), page("store_healthy"), page("queue_depth")), (0, 1, 1))
                last.send(body[-1:])
                self.assertEqual(last.answer().status, 200)
            self.assertEqual(daemon.wait(), 0)
            self.assertRaises(ConnectionRefusedError, daemon.ops, "/healthz")

    def test_ops_connections_are_not_kept(self):
        """Clients that keep theirs, or never finish their headers, do not keep a probe waiting."""
        with lossd.Daemon("--ops-listen", "127.0.0.1:0") as daemon:
            kept = [lossd.Connection(daemon.ops_port) for _ in range(140)]
            for i, connection in enumerate(kept):
                connection.start("GET", "/healthz") if i % 2 else connection.send(b"GET /healthz HTTP/1.1\r\nHost:")
            self.assertEqual(daemon.ops("/healthz", timeout=5).status, 200)
            for connection in kept:
                connection.close()

    def test_silent_connections_of_its_own_time_out(self):
        with lossd.Daemon("--ops-listen", "127.0.0.1:0", "--header-timeout", "1") as daemon:
            silent = [lossd.Connection(daemon.ops_port) for _ in range(20)]
            self.assertEqual(daemon.ops("/healthz").status, 200)  # later than these
            for connection in silent:
                connection.close()
            self.healthy(daemon)

    def test_addresses(self):
        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--ops-listen", "0.0.0.0:0")
        self.assertEqual((status, out), (2, ""))
        self.assertRegex(err, "--ops-listen.*allow-anonymous")
        with lossd.Daemon("--allow-anonymous", env={"LOSSD_OPS_LISTEN": "0.0.0.0:0"}) as daemon:
            self.assertEqual(daemon.ops("/healthz").status, 200)
            taken = "127.0.0.1:%d" % daemon.port
            status, out, err = lossd.command("--listen", "127.0.0.1:0", "--ops-listen", taken)
            self.assertEqual((status, out), (98, ""))
            self.assertRegex(err, "(?i)%s.*in use.*--ops-listen" % taken)
        status, _, err = lossd.command("--healthcheck", "--ops-listen", taken)
        self.assertEqual(status, 1)
        self.assertIn(taken, err)


if __name__ == "__main__":
    unittest.main()
