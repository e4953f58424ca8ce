# SPDX-License-Identifier: Apache-2.0
"""Behind nginx and HAProxy (H45): as many requests are executed as the proxy believes it has sent, and each answer goes
to its request.

A proxy gives every request an id of its own, which the daemon logs and repeats. So what the daemon logged must be what
the proxy forwarded, each once; and an answer that comes through with another id has been mixed up.
"""
import collections
import concurrent.futures
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import ambiguous  # noqa: E402
import hostile  # noqa: E402
import lossd  # noqa: E402

os.environ["PATH"] += ":/usr/sbin:/sbin"   # where Debian has them

NGINX = """
daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/nginx.log; {user}
events {{ worker_connections 512; }}
http {{
    log_format forwarded '$request_id "$upstream_addr" $status';
    access_log {home}/forwarded forwarded;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    client_header_timeout 1s; client_body_timeout 1s; lingering_close off; client_max_body_size 1m;
    upstream lossd {{ server 127.0.0.1:{backend}; keepalive 8; }}
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Request-Id $request_id;
    proxy_next_upstream off; proxy_read_timeout 3s;
    add_header X-Proxy-Id $request_id always;
    ignore_invalid_headers {strict}; underscores_in_headers on;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_request_buffering {buffering}; proxy_pass http://lossd; }} }}
}}
"""

HAPROXY = """
global
    log stdout format raw local0
    nbthread 1
defaults
    mode http
    log global
    log-format '%ID "%s" %ST'
    unique-id-format %[uuid]
    timeout connect 3s
    timeout client 1s
    timeout http-request 1s
    timeout server 3s
    retries 0
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    {lenient}
    http-request set-header X-Request-Id %[unique-id]
    http-response set-header X-Proxy-Id %[unique-id]
    default_backend back
backend back
    server lossd 127.0.0.1:{backend}
"""

Forwarded = collections.namedtuple("Forwarded", "id to status")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Proxy:
    """One of them in front of a daemon; its files go with it."""

    def __init__(self, configuration, command, backend, **values):
        self.home = tempfile.TemporaryDirectory(prefix="proxy-")
        self.port = free_port()
        path = os.path.join(self.home.name, "configuration")
        user = "user root;" if os.geteuid() == 0 else ""
        with open(path, "w", encoding="ascii") as file:
            file.write(configuration.format(home=self.home.name, port=self.port, backend=backend, user=user, **values))
        self.log = os.path.join(self.home.name, "forwarded")
        with open(os.path.join(self.home.name, "stdout"), "wb") as output:
            self.process = subprocess.Popen([*command, path], stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT)
        if not lossd.until(self.listens, 10):
            self.stop()
            raise RuntimeError("the proxy does not listen")

    def listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def forwarded(self):
        """What it logged: one row a request; `to` is empty where it was not sent on."""
        path = self.log if os.path.exists(self.log) else os.path.join(self.home.name, "stdout")
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [line.rsplit(" ", 2) for line in file if line.count('"') == 2]
        return [Forwarded(row[0], row[1].strip('"').replace("<NOSRV>", "").strip("-"), int(row[2])) for row in rows]

    def stop(self):
        """The end of it, and what it has forwarded."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        rows = self.forwarded()
        self.home.cleanup()
        return rows


def nginx(backend, **values):
    return Proxy(NGINX, ["nginx", "-e", "stderr", "-c"], backend, **{"strict": "on", "buffering": "on", **values})


def haproxy(backend, lenient=False):
    return Proxy(HAPROXY, ["haproxy", "-db", "-f"], backend,
                 lenient="option accept-invalid-http-request" if lenient else "")


class Case(lossd.Case):
    FLAGS = None
    program = ""

    def cases(self):
        return list(ambiguous.cases())

    def setUp(self):
        if not shutil.which(self.program):
            self.skipTest("%s is not installed" % self.program)

    def answers(self, port, data):
        """What comes back for these bytes. A client that closes its side too early would be given up."""
        with lossd.Connection(port) as connection:
            connection.try_send(data)
            text, closed = connection.drain(0.25)
            if not closed:
                connection.half_close()
                text += connection.drain(4.0)[0]
        return text

    def check_answers(self, text, name):
        for block in text.split(b"HTTP/1.1 ")[1:]:
            lines = block.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
            if b"x-proxy-id" in fields and b"x-request-id" in fields:
                self.assertEqual(fields[b"x-proxy-id"], fields[b"x-request-id"], name)
        self.assertNotIn(b"X-Request-Id: smuggled", text, name)

    def check_batch(self, port, want):
        """An honest client of the same connections."""
        with lossd.Connection(port) as connection:
            answer = connection.request("POST", "/v1/loss", lossd.tiny().safetensors())
        self.assertEqual((answer.status, lossd.stable(answer.body)), (200, want))
        self.assertEqual(answer.header("X-Proxy-Id"), answer.header("X-Request-Id"))

    def through(self, proxy, daemon):
        want = lossd.stable(daemon.post("/v1/loss", lossd.tiny().safetensors(), None, {"X-Request-Id": "direct"}).body)

        def one(case):
            name, data = case
            self.check_answers(self.answers(proxy.port, data), name)
            self.check_batch(proxy.port, want)

        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            for future in [pool.submit(one, case) for case in self.cases()]:
                future.result()

    def compare(self, rows, events):
        """The daemon's log against the proxy's."""
        sent = {row.id: row for row in rows if row.to}
        self.assertEqual(len(sent), len([row for row in rows if row.to]), "ids are unique")
        executed = collections.Counter(event["id"] for event in events if event["id"] != "direct")
        self.assertEqual([i for i in executed if i not in sent], [], "what no proxy has sent")
        self.assertEqual({i: n for i, n in executed.items() if n > 1}, {}, "what was executed twice")
        for i, row in sent.items():
            if i not in executed:   # libmicrohttpd refused it, or its client left before its head was there
                self.assertFalse(200 <= row.status < 300, row)
        honest = len([row for row in sent.values() if row.status == 200])
        self.assertGreaterEqual(honest, len(self.cases()))

    def run_behind(self, proxy_of):
        with lossd.Daemon("--log-format", "json", "--connection-limit", "512") as daemon:
            proxy = proxy_of(daemon.port)
            try:
                self.through(proxy, daemon)
                self.assertEqual(daemon.get("/healthz", **{"X-Request-Id": "direct"}).status, 200)
            finally:
                rows = proxy.stop()
            daemon.stop()
            events = [lossd.strict_json(line.encode()) for line in daemon.log().splitlines()]
            self.compare(rows, [event for event in events if event["event"] == "request"])


class Nginx(Case):
    program = "nginx"

    def test_H45_behind_nginx(self):
        self.run_behind(nginx)

    def test_H45_behind_nginx_that_passes_bodies_on(self):
        """And what it takes for invalid fields."""
        self.run_behind(lambda backend: nginx(backend, buffering="off", strict="off"))


class Haproxy(Case):
    program = "haproxy"

    def test_H45_behind_haproxy(self):
        self.run_behind(haproxy)


class LenientHaproxy(Case):
    """With the option that it warns of. It passes NUL bytes on then, behind which libmicrohttpd 0.9 sees nothing."""
    program = "haproxy"

    def cases(self):
        return [(name, data) for name, data in ambiguous.cases() if hostile.STRICT or b"\0" not in data]

    def test_H45_behind_a_lenient_haproxy(self):
        self.run_behind(lambda backend: haproxy(backend, lenient=True))


if __name__ == "__main__":
    unittest.main()
