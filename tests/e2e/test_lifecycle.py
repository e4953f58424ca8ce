# SPDX-License-Identifier: Apache-2.0
"""Starting, stopping, flags, environment, health checks and the log.

What may happen in the life of a daemon has a row each, and each row its tests:

| row | what happens | tests |
|---|---|---|
| L01 | told to stop, idle and under load | test_L01_* here; more times with DRAINS=N |
| L02 | the drain takes too long; told twice | test_L02_* here and in test_runs_faults |
| L03 | killed under load | test_kill: test_L03_*, `make e2e-kill`; unit/test_history_faults: L03_killed |
| L04 | killed at any write, sync, open or truncation | unit/test_history_faults: L04_*: in the middle of a transaction, before and after its commit, in a checkpoint, while the tables are made, at the start |
| L05 | the power fails | unit/test_history_faults: L05_power_cuts |
| L06 | SIGHUP | test_L06_* here (under load); test_tokens and test_tls have what is read again |
| L07 | other signals; stopped and continued | test_L07_* |
| L08 | restarted again and again under load | test_runs_faults: test_L08_*, RESTARTS=100 |
| L09 | a second daemon on one data directory | test_runs_faults: test_L09_* |
| L10 | the port is in use | test_L10_* |
| L11 | the data directory is missing, another's, a link, remote | test_runs_faults: test_L11_*; unit/test_faults: a network's file system |
| L12 | it is process 1 | test_L12_*; the image's stop: tests/e2e/test_deploy |
| L13 | another version's data | test_runs_faults: test_L13_*; there has been one schema only, and its making is interrupted in L04 |
| L14 | idle for long with clients that stay, then load | test_L14_* (seconds); `make e2e-soak HOURS=24` |

A data directory may be a symbolic link: systemd's StateDirectory of a DynamicUser is one. The lock is on what it leads
to, so that two daemons never share it under two names.
"""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402
from recorded import SLOW  # noqa: E402

TINY = lossd.tiny().safetensors()
OPTIONS = """listen ops-listen workers http-threads device device-memory cpu-level data-dir max-body max-json memory-limit
queue-limit connection-limit request-timeout header-timeout idle-timeout drain-delay drain-timeout allow-anonymous
shared-memory log-format log-level healthcheck version help durability keep-steps keep-days
token-file tls-cert tls-key cors-origin core-dumps""".split()


class Flags(lossd.Case):
    FLAGS = None

    def refused(self, *flags, env=None, code=2, says=None):
        status, out, err = lossd.command(*flags, env=env, timeout=10)
        self.assertEqual((status, out), (code, ""), (flags, err))
        self.assertEqual(err.count("\n"), 1, err)
        if says:
            self.assertRegex(err, says)

    def test_help(self):
        status, out, err = lossd.command("--help")
        self.assertEqual((status, err), (0, ""))
        for option in OPTIONS:
            self.assertRegex(out, r"--%s\b" % option)
        for default in ("127.0.0.1:8080", "256M", "1G", "64", "128"):
            self.assertIn(default, out)
        self.assertIn("LOSSD_", out)

    def test_version(self):
        status, out, err = lossd.command("--version")
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(out, r"^lossd \d\S*\n$")
        with lossd.Daemon() as daemon:
            self.assertEqual(out.split()[1], daemon.version)

    def test_bad_flags(self):
        self.refused("--nonsense", says="nonsense")
        self.refused("--listn", "127.0.0.1:0", says="listn.*--listen")
        self.refused("stray", says="stray")
        self.refused("--workers", says="workers")
        for name, values in (("workers", ("-1", "x", "", "1.5", "99999999999", "2x", "2K")),
                             ("listen", ("", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536",
                                         "127.0.0.1:-1", "nowhere.invalid:80", ":")),
                             ("ops-listen", ("127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "nowhere.invalid:80", ":")),
                             ("device", ("gpu", "", "cuda:", "cuda:x", "cuda:0,", "cuda:0;1", "cuda:1000", "cuda0",
                                         "cpu:0", "auto:0")),
                             ("device-memory", ("x", "1K")), ("cpu-level", ("sse9", "")),
                             ("max-body", ("0", "-1", "x", "1Q", "1e9", "99999999999999999999", "16777216T")),
                             ("max-json", ("x",)), ("memory-limit", ("x", "-5M")), ("queue-limit", ("0", "x")),
                             ("connection-limit", ("0", "x")), ("request-timeout", ("-1", "x", "nan", "inf")),
                             ("header-timeout", ("x", "-1")), ("drain-delay", ("-1", "x")),
                             ("drain-timeout", ("-1", "x")), ("log-format", ("xml", "")), ("durability", ("tape", "")),
                             ("keep-steps", ("-1", "x", "")), ("keep-days", ("-1", "x", "36501")),
                             ("log-level", ("loud", ""))):
            for value in values:
                with self.subTest(name, value=value):
                    self.refused("--listen", "127.0.0.1:0", "--" + name, value, says=name.split("-")[-1])

    def test_bounds_are_told_as_people_write_them(self):
        for name, bounds in (("device-memory", "1M and 16384G"), ("memory-limit", "1M and 16384G"), ("max-body", "1K and 1024G"),
                             ("max-json", "0 and 1024G"), ("queue-limit", "1 and 65536"), ("keep-days", "0 and 36500")):
            of_bytes = " (K, M or G may follow it)" if bounds[-1] == "G" else ""
            self.refused("--" + name, "x", says=re.escape("between %s%s\n" % (bounds, of_bytes)))

    def test_what_was_given_is_quoted(self):
        for flag, given in (("--listen", "nowhere"), ("--ops-listen", "127.0.0.1:x"), ("--cors-origin", "https://a.example/path"),
                            ("--cors-origin", "*")):
            self.refused("--listen", "127.0.0.1:0", flag, given, says='%s: "%s" is no' % (flag, re.escape(given)))
        self.refused("--cors-origin", "https://a.example,HTTPS://b,c", says='--cors-origin: "HTTPS://b" is no')
        self.refused("--listen", "x" * 5000, says='--listen: "x{80}" is no.*ports end at 65535')
        self.refused("--cors-origin", "x" * 5000, says='--cors-origin: "x{80}" is no.*no \\*$')

    def test_bad_environment(self):
        self.refused("--listen", "127.0.0.1:0", env={"LOSSD_WORKERS": "x"}, says="(?i)workers")
        self.refused(env={"LOSSD_LISTEN": "nonsense"}, says="(?i)listen")

    def test_not_on_the_network_without_saying_so(self):
        for address in ("0.0.0.0:0", "0.0.0.0:8080"):
            self.refused("--listen", address, says="allow-anonymous")
            self.refused(env={"LOSSD_LISTEN": address}, says="allow-anonymous")
        with lossd.Daemon("--listen", "0.0.0.0:0", "--allow-anonymous") as daemon:
            self.assertEqual(daemon.get("/healthz").status, 200)
        with lossd.Daemon(env={"LOSSD_LISTEN": "0.0.0.0:0", "LOSSD_ALLOW_ANONYMOUS": "1"}) as daemon:
            self.assertEqual(daemon.get("/healthz").status, 200)

    def test_names(self):
        try:
            socket.getaddrinfo("localhost", 0)
        except socket.gaierror:
            self.skipTest("this machine does not know localhost")
        with lossd.Daemon("--listen", "localhost:0") as daemon:
            self.assertEqual(daemon.get("/healthz").status, 200)

    def test_environment_and_precedence(self):
        env = {"LOSSD_MAX_BODY": "1K", "LOSSD_UNKNOWN": "x", "LOSSD_SERVICE_HOST": "10.0.0.1", "LOSSD_PORT": "tcp://x",
               "LOSSD_PORT_8080_TCP_ADDR": "10.0.0.1", "LOSSD_LOG_FORMAT": "json"}
        with lossd.Daemon(env=env) as daemon:
            self.problem(daemon.post("/v1/loss", bytes(2000), lossd.SAFETENSORS), 413, "body_too_large", "1024")
            self.assertTrue(lossd.until(lambda: " 413" in daemon.log() or ":413" in daemon.log()))
            json.loads(daemon.log().splitlines()[-1])
        with lossd.Daemon("--max-body", "1500", env=env) as daemon:
            self.problem(daemon.post("/v1/loss", bytes(2000), lossd.SAFETENSORS), 413, "body_too_large", "1500")
        with lossd.Daemon("--max-body=1M", env=env) as daemon:
            self.problem(daemon.post("/v1/loss", bytes(2000), lossd.SAFETENSORS), 400)

    def test_variables_that_are_no_options_are_warned_of(self):
        """Once each, by name alone; not what Kubernetes sets for a service called lossd, or lossd-ops."""
        env = {"LOSSD_LISTN": "a-secret", "LOSSD_KEEP_STEP": "a-secret", "LOSSD_": "x", "LOSSD_" + "X" * 300: "x",
               "LOSSD_SERVICE_HOST": "10.0.0.1", "LOSSD_SERVICE_PORT_HTTP": "1", "LOSSD_PORT": "tcp://x",
               "LOSSD_PORT_8080_TCP_ADDR": "10.0.0.1", "LOSSD_OPS_SERVICE_HOST": "10.0.0.1", "LOSSD_OPS_PORT": "x",
               "LOSSD_MAX_BODY": "1M", "LOSSDX": "x"}
        with lossd.Daemon(env=env) as daemon:
            lines = [line for line in daemon.log().splitlines() if "event=environment" in line]
        self.assertEqual(len(lines), 4, lines)
        for says in ("LOSSD_LISTN is no option; did you mean LOSSD_LISTEN?",
                     "LOSSD_KEEP_STEP is no option; did you mean LOSSD_KEEP_STEPS?", "LOSSD_ is no option; --help lists them",
                     "LOSSD_%s is no option; --help lists them" % ("X" * 58)):
            line, = [line for line in lines if 'text="%s"' % says in line]
            self.assertIn("level=warn", line)
        self.assertNotIn("a-secret", "".join(lines))

    def test_a_data_directory_that_cannot_be_made(self):
        """One warning at the start; nothing is made to find out, and where it can be made there is none."""
        with tempfile.TemporaryDirectory() as home:
            plain = os.path.join(home, "file")
            with open(plain, "w", encoding="ascii"):
                pass
            for data in ("/proc/x", os.path.join(home, "missing", "data"), os.path.join(plain, "data")):
                with self.subTest(data), lossd.Daemon("--data-dir", data) as daemon:
                    lines = [line for line in daemon.log().splitlines() if "event=data_dir" in line]
                    self.assertEqual(len(lines), 1, lines)
                    self.assertRegex(lines[0], "level=warn .*%s.*cannot be made or written" % re.escape(data))
                    answer = daemon.post("/v1/loss?run=a&step=1", TINY)
                    self.problem(answer, 503, "store_unavailable")
                    self.assertEqual(daemon.get("/readyz").status, 200)   # as deploy/alerts.yaml has it
                    self.assertIn(b"\nlossd_store_healthy 0\n", daemon.get("/metrics").body)
            self.assertEqual(os.listdir(home), ["file"])
            for data in (os.path.join(home, "made"), os.path.join(home, "also") + "/", home):
                with self.subTest(data), lossd.Daemon("--data-dir", data) as daemon:
                    self.assertNotIn("event=data_dir", daemon.log())
            self.assertEqual(os.listdir(home), ["file"])

    def test_L10_port_in_use(self):
        """That is found out before anything on the disk is opened or made."""
        with lossd.Daemon() as daemon, tempfile.TemporaryDirectory() as home:
            where = "127.0.0.1:%d" % daemon.port
            junk, unmade = os.path.join(home, "junk"), os.path.join(home, "unmade")
            os.mkdir(junk)
            for name in ("lossd.sqlite3", "lossd-runs.sqlite3"):
                with open(os.path.join(junk, name), "wb") as out:
                    out.write(b"not a database " * 1000)
            for data in (daemon.data, junk, unmade):
                status, out, err = lossd.command("--listen", where, "--data-dir", data)
                self.assertEqual((status, out), (98, ""))
                self.assertIn(str(daemon.port), err)
                self.assertRegex(err, "(?i)in use")
                self.assertLessEqual(err.count("\n"), 2, err)
            self.assertFalse(os.path.exists(unmade))
            self.assertEqual(sorted(os.listdir(junk)), ["lossd-runs.sqlite3", "lossd.sqlite3"])
            self.healthy(daemon)

    def test_device_cuda_is_not_replaced(self):
        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--device", "cuda")
        self.assertNotEqual(status, 0)
        self.assertEqual(out, "")

    def test_one_line_when_ready(self):
        daemon = lossd.Daemon("--listen", "127.0.0.1:0", "--workers", "1")
        self.assertEqual(daemon.host, "127.0.0.1")
        self.assertGreater(daemon.port, 0)
        self.assertEqual(daemon.get("/readyz").status, 200)  # ready means ready
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(daemon.rest, "")

    def test_healthcheck(self):
        with lossd.Daemon() as daemon:
            where = "127.0.0.1:%d" % daemon.port
            self.assertEqual(lossd.command("--healthcheck", "--listen", where)[0], 0)
            self.assertEqual(lossd.command("--healthcheck", env={"LOSSD_LISTEN": where})[0], 0)
            anywhere = {"LOSSD_LISTEN": "0.0.0.0:%d" % daemon.port, "LOSSD_ALLOW_ANONYMOUS": "1"}
            self.assertEqual(lossd.command("--healthcheck", env=anywhere)[0], 0)
        status, _, err = lossd.command("--healthcheck", "--listen", where)
        self.assertEqual(status, 1)
        self.assertEqual(err, "lossd: no healthy daemon at %s; if it serves TLS, give --tls-cert as well\n" % where)
        # something listens and never answers
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            begin = time.monotonic()
            self.assertEqual(lossd.command("--healthcheck", "--listen", "127.0.0.1:%d" % mute.getsockname()[1])[0], 1)
            self.assertLess(time.monotonic() - begin, 15)


class Stopping(lossd.Case):
    FLAGS = None

    def test_L01_idle(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            daemon = lossd.Daemon()
            with daemon.connect() as rests:  # a keep-alive connection at rest must not delay it
                self.assertEqual(rests.request("GET", "/healthz").status, 200)
                begin = time.monotonic()
                daemon.signal(number)
                self.assertEqual(daemon.wait(), 0)
                self.assertLess(time.monotonic() - begin, 3 if SLOW else 1)

    def test_L01_under_load_it_answers_what_it_received(self):
        daemon = lossd.Daemon("--workers", "1", "--drain-timeout", "25")
        body = lossd.bccd_bytes()
        want = lossd.stable(daemon.post("/v1/loss", body).body)
        connections = [daemon.connect() for _ in range(6)]
        for connection in connections:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body),
                                                  "Expect": "100-continue"})
            self.assertEqual(connection.interim(), 100)  # it is admitted
        # four have sent everything, two the first half
        sent = threading.Barrier(7)

        def client(i):
            connection = connections[i]
            connection.send(body if i < 4 else body[:len(body) // 2])
            sent.wait()
            if i >= 4:
                time.sleep(0.3)
                connection.send(body[len(body) // 2:])
            return connection.answer()

        def stop():
            sent.wait()
            daemon.signal(signal.SIGTERM)

        answers = lossd.together([lambda i=i: client(i) for i in range(6)] + [stop])[:6]
        for answer in answers:
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(lossd.stable(answer.body), want)
        for connection in connections:
            connection.close()
        self.assertEqual(daemon.wait(), 0)
        self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])
        with self.assertRaises(ConnectionRefusedError):
            daemon.connect()

    def test_L01_busy_clients_see_no_broken_answer(self):
        """Clients that keep asking: each answer is whole; the end is a refused connection, a close or a 503."""
        daemon = lossd.Daemon("--workers", "2")
        counts = [0] * 4

        def client(i):
            while True:
                try:
                    with daemon.connect() as connection:
                        while True:
                            answer = connection.request("POST", "/v1/loss", TINY)
                            if answer.status != 200:
                                self.problem(answer, 503, "draining")
                            else:
                                self.good(answer)
                                counts[i] += 1
                except ConnectionRefusedError:
                    return
                except (lossd.Closed, ConnectionResetError, BrokenPipeError) as end:
                    self.assertNotRegex(str(end), "HTTP/1")  # not in mid-answer

        def stop():
            self.assertTrue(lossd.until(lambda: min(counts) > 5))
            daemon.signal(signal.SIGTERM)

        lossd.together([lambda i=i: client(i) for i in range(4)] + [stop])
        self.assertEqual(daemon.wait(), 0)
        self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])

    def test_L01_drain_delay(self):
        daemon = lossd.Daemon("--drain-delay", "2")
        self.assertEqual(daemon.get("/readyz").status, 200)
        begin = time.monotonic()
        daemon.signal()
        self.assertTrue(lossd.until(lambda: daemon.get("/readyz").status == 503, 1.5))
        self.problem(daemon.get("/readyz"), 503, "draining")
        self.assertEqual(daemon.get("/healthz").status, 200)
        self.assertEqual(daemon.post("/v1/loss", TINY).status, 200)  # still accepted: balancers need a moment
        self.assertEqual(daemon.wait(), 0)
        self.assertGreater(time.monotonic() - begin, 1.5)

    def test_L02_drain_timeout(self):
        """A client that never finishes does not hold the exit for longer than --drain-timeout."""
        daemon = lossd.Daemon("--drain-timeout", "1", "--request-timeout", "60")
        with daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 5000})
            connection.send(b"\0" * 10)
            time.sleep(0.1)
            begin = time.monotonic()
            daemon.signal()
            self.assertEqual(daemon.wait(), 0)
            self.assertLess(time.monotonic() - begin, 10)

    def test_L01_no_received_request_is_reset(self):
        """What has left a client before the daemon is told to stop is answered, while nothing else is idle either."""
        for turn in range(int(os.environ.get("DRAINS") or 3)):
            daemon = lossd.Daemon("--workers", "2", "--drain-timeout", "20")
            told, answered, body = [float("inf")], [0] * 8, lossd.bccd().pick([0, 1]).safetensors()

            def client(i):
                connection = daemon.connect()
                try:
                    while True:
                        data = body if i % 2 else TINY
                        connection.send(b"POST /v1/loss HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                                        % len(data) + data)
                        sent = time.monotonic()
                        try:
                            answer = connection.answer()
                        except lossd.Closed:
                            self.assertGreater(sent, told[0])
                            return
                        if answer.status != 200:
                            self.problem(answer, 503, "draining")
                            self.assertGreater(time.monotonic(), told[0])
                        answered[i] += 1
                        if answer.header("Connection") == "close":
                            return
                except (ConnectionResetError, BrokenPipeError):
                    self.assertGreater(time.monotonic(), told[0])   # in the middle of sending
                finally:
                    connection.close()

            def stop():
                self.assertTrue(lossd.until(lambda: min(answered) > turn))
                told[0] = time.monotonic()
                daemon.signal()

            lossd.together([lambda i=i: client(i) for i in range(8)] + [stop])
            self.assertEqual(daemon.wait(), 0)
            self.assertLess(time.monotonic() - told[0], 20)
            self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])

    def test_L02_told_twice(self):
        """Who says it again does not want to wait; who says it twice at once means it once."""
        for pause, code in ((0.8, 1), (0.0, 0)):
            daemon = lossd.Daemon("--drain-timeout", "2", "--request-timeout", "60")
            self.assertEqual(daemon.post("/v1/loss?run=kept&step=1", TINY).status, 200)
            with daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 5000})
                connection.send(b"\0" * 10)
                time.sleep(0.1)
                daemon.signal()
                time.sleep(pause)
                begin = time.monotonic()
                daemon.signal()
                self.assertEqual(daemon.wait(), code)
                if code:
                    self.assertLess(time.monotonic() - begin, 1.8 if SLOW else 1)   # the thread sanitizer ends in a second
                else:
                    self.assertGreater(time.monotonic() - begin, 1)
            with lossd.Daemon("--data-dir", daemon.data) as again:   # what was acknowledged is there
                self.assertEqual(self.good(again.get("/v1/runs/kept"))["steps"], 1)

    def test_L06_hang_up_under_load(self):
        with lossd.Daemon() as daemon:
            done, stop = [0] * 4, threading.Event()

            def client(i):
                with daemon.connect() as connection:
                    while not stop.is_set():
                        self.good(connection.request("POST", "/v1/loss", TINY))
                        done[i] += 1

            def hang_up():
                try:
                    for _ in range(20):
                        daemon.signal(signal.SIGHUP)
                        time.sleep(0.02)
                finally:
                    stop.set()

            lossd.together([lambda i=i: client(i) for i in range(4)] + [hang_up])
            self.assertGreater(min(done), 5)

    def test_L07_stopped_and_continued(self):
        """Deadlines have passed meanwhile; everything else goes on."""
        with lossd.Daemon("--header-timeout", "1") as daemon:
            with daemon.connect() as late, daemon.connect() as used:
                self.assertEqual(used.request("GET", "/healthz").status, 200)
                late.send(b"GET /healthz HTTP/1.1\r\nHost: loc")
                time.sleep(0.2)   # it has come
                daemon.signal(signal.SIGSTOP)
                time.sleep(2)
                used.start("GET", "/healthz")
                late.send(b"alhost\r\n")
                daemon.signal(signal.SIGCONT)
                self.assertEqual(used.answer().status, 200)
                self.assertEqual(late.drain(5.0)[1], True)
            self.assertEqual(daemon.post("/v1/loss", TINY).status, 200)

    def test_turns_of_the_processor(self):
        """Threads of HTTP ask for short ones, nobody else does, and how nice they are stays as it was."""
        number = {"x86_64": 315, "aarch64": 275}.get(os.uname().machine)  # sched_getattr
        if tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2]) < (6, 12) or not number:
            self.skipTest("this kernel hears no such wish, or is not known to us")
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            self.skipTest("somebody has chosen another scheduling")
        call = ctypes.CDLL(None, use_errno=True).syscall

        def turns():
            """By name: the policy, how nice it is, its turn."""
            found = []
            for task in os.listdir("/proc/%d/task" % process.pid):
                with open("/proc/%d/task/%s/comm" % (process.pid, task)) as file:
                    name = file.read().strip()
                attributes = ctypes.create_string_buffer(48)
                self.assertEqual(call(number, int(task), attributes, 48, 0), 0, name)
                _, policy, _, nice, _, turn, _, _ = struct.unpack("IIQiIQQQ", attributes.raw)
                found.append((name, policy, nice, turn))
            return found

        def is_as_it_should_be():
            """Threads have their names and wishes once they run."""
            found = turns()
            http = [t for t in found if t[0].startswith("MHD")]
            others = [t for t in found if t not in http]
            return (len(http) == 3 and {t[1:] for t in http} == {(os.SCHED_OTHER, nice, 100000)}
                    and {t[2] for t in others} == {nice} and min(t[3] for t in others) > 100000
                    and {t[0] for t in others if t[1] == os.SCHED_BATCH} == {"lossd-" + name for name in (
                        "worker", "clerk", "reader", "slow")})

        nice = min(19, os.nice(0) + 5)
        process = subprocess.Popen(["nice", "-n", "5", lossd.BINARY, "--listen", "127.0.0.1:0", "--ops-listen",
                                    "127.0.0.1:0"], env=lossd.environment({"ASAN_OPTIONS": "detect_leaks=0"}),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            self.assertTrue(process.stdout.readline())
            self.assertTrue(lossd.until(is_as_it_should_be), turns())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("unshare"), "needs root and unshare")
    def test_L12_process_1(self):
        """The kernel delivers to it only the signals that it asks for."""
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(["unshare", "--fork", "--pid", "--kill-child", lossd.BINARY, "--listen",
                                        "127.0.0.1:0"], env=lossd.environment({"ASAN_OPTIONS": "detect_leaks=0"}),
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            try:
                line = process.stdout.readline().decode()
                if not line:
                    self.skipTest("no process namespace can be made here")
                port = int(line.rsplit(":", 1)[1])
                with open("/proc/%d/task/%d/children" % (process.pid, process.pid)) as file:
                    child = int(file.read())
                with lossd.Connection(port) as connection:
                    self.assertEqual(connection.request("POST", "/v1/loss", TINY).status, 200)
                    begin = time.monotonic()
                    os.kill(child, signal.SIGUSR1)
                    os.kill(child, number)
                    self.assertEqual(process.wait(lossd.PATIENCE), 0)
                self.assertLess(time.monotonic() - begin, 5)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()

    def test_L14_idle_and_then_load(self):
        """Clients that stay and say nothing cost nothing, and their first request is as fast as any."""
        with lossd.Daemon("--connection-limit", "96") as daemon:
            clients = [daemon.connect() for _ in range(64)]
            for client in clients:
                self.assertEqual(client.request("POST", "/v1/loss", TINY).status, 200)
            before, threads = daemon.memory(), daemon.metric("process_threads")
            time.sleep(0.5)
            descriptors = daemon.descriptors()
            used = daemon.processor()
            time.sleep(2)
            self.assertLess(daemon.processor() - used, 0.5)
            self.assertLess(daemon.memory() - before, 8 << 20 if SLOW else 2 << 20)
            self.assertTrue(lossd.until(  # the question's own connection may still be there
                lambda: daemon.metric("process_threads") == threads and daemon.descriptors() <= descriptors, 5))
            begin = time.monotonic()
            self.assertEqual(clients[0].request("POST", "/v1/loss", TINY).status, 200)
            self.assertLess(time.monotonic() - begin, 1.0 if SLOW else 0.1)
            for answer in lossd.together([lambda c=c: c.request("POST", "/v1/loss", TINY) for c in clients]):
                self.assertEqual(answer.status, 200)
            for client in clients:
                client.close()

    def test_restart_on_the_same_port(self):
        daemon = lossd.Daemon()
        port = daemon.port
        self.assertEqual(daemon.post("/v1/loss", TINY).status, 200)
        self.assertEqual(daemon.stop(), 0)
        with lossd.Daemon("--listen", "127.0.0.1:%d" % port) as again:
            self.assertEqual(again.post("/v1/loss", TINY).status, 200)

    def test_L07_other_signals(self):
        with lossd.Daemon() as daemon:
            for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                daemon.signal(number)
            daemon.signal(signal.SIGSTOP)
            time.sleep(0.1)
            daemon.signal(signal.SIGCONT)
            self.assertEqual(daemon.post("/v1/loss", TINY).status, 200)

    def test_stdout_closed(self):
        """A reader of the first line that goes away does not take the daemon with it."""
        with lossd.Daemon() as daemon:
            daemon.process.stdout.close()
            daemon.process.stdout = open(os.devnull, "rb")
            self.assertEqual(daemon.post("/v1/loss", TINY).status, 200)


class Log(lossd.Case):
    FLAGS = None

    def lines(self, daemon, name):
        return [line for line in daemon.log().splitlines() if name in line]

    def traffic(self, daemon):
        """Requests of many kinds; [(id, status)]."""
        kinds = [("GET", "/healthz", None, {}, 200), ("GET", "/nowhere", None, {}, 404),
                 ("DELETE", "/healthz", None, {}, 405), ("POST", "/v1/loss", TINY, {}, 200),
                 ("POST", "/v1/loss", TINY[:-1], {"Content-Type": lossd.SAFETENSORS}, 400),
                 ("POST", "/v1/loss", b"{}", {}, 422), ("POST", "/v1/loss", b"x", {"Content-Type": "text/plain"}, 415),
                 ("POST", "/v1/loss", None, {}, 411), ("HEAD", "/v1/priors", None, {}, 200)]
        done = []
        with daemon.connect() as connection:
            for turn in range(3):
                for i, (method, target, body, headers, status) in enumerate(kinds):
                    name = "line-%d-%d-x" % (turn, i)
                    answer = connection.request(method, target, body, dict(headers, **{"X-Request-Id": name}))
                    self.assertEqual(answer.status, status, answer)
                    done.append((name, status))
        return done

    def test_one_line_a_request(self):
        for form in ("logfmt", "json"):
            with self.subTest(form), lossd.Daemon("--log-format", form) as daemon:
                done = self.traffic(daemon)
                self.assertTrue(lossd.until(lambda: self.lines(daemon, done[-1][0]), 5))
                for name, status in done:
                    lines = self.lines(daemon, name)
                    self.assertEqual(len(lines), 1, lines)
                    self.assertRegex(lines[0], r"\b%d\b" % status)
                    if form == "json":
                        event = json.loads(lines[0])
                        self.assertIn(name, event.values())
                        self.assertEqual("code" in event, status >= 400, event)
                if form == "json":
                    for line in daemon.log().splitlines():
                        json.loads(line)

    def test_nothing_is_forged(self):
        for form in ("logfmt", "json"):
            with self.subTest(form), lossd.Daemon("--log-format", form) as daemon:
                before = len(daemon.log().splitlines())
                hostile = [("/%0d%0aforged%20line", {}), ("/%0aforged%20line", {}), ("/a%22%20forged=1", {}),
                           ("/x?y=%0d%0aforged", {}), ("/\"forged\\", {}), ("/%1b%5b31m", {}), ("/%c2%85forged", {}),
                           ("/healthz", {"X-Request-Id": 'q" forged="1'}),
                           ("/healthz", {"X-Request-Id": "back\\slash"}),
                           ("/healthz", {"User-Agent": 'a" forged="1'})]
                for target, headers in hostile:
                    self.assertLess(daemon.request("GET", target, None, headers).status, 500)
                daemon.request("GET", "/healthz", None, {"X-Request-Id": "the-last-one"})
                lossd.until(lambda: len(daemon.log().splitlines()) >= before + len(hostile) + 1, 5)
                lines = daemon.log().splitlines()[before:]
                self.assertEqual(len(lines), len(hostile) + 1, lines)
                for line in lines:
                    self.assertFalse(line.startswith("forged"), line)
                    self.assertTrue(line.isprintable() or "\t" in line, line)
                    if form == "json":
                        json.loads(line)
                    else:
                        self.assertNotIn(" forged=", re.sub(r'"(?:[^"\\]|\\.)*"', '""', line))

    def test_levels(self):
        with lossd.Daemon("--log-level", "error") as daemon:
            daemon.request("GET", "/healthz", None, {"X-Request-Id": "quiet"})
            daemon.request("GET", "/nowhere", None, {"X-Request-Id": "quiet"})
            time.sleep(0.2)
            self.assertEqual(self.lines(daemon, "quiet"), [])

    def test_stderr_closed(self):
        """A log that cannot be written is no reason to fail a request."""
        reader, writer = os.pipe()
        process = subprocess.Popen([lossd.BINARY, "--listen", "127.0.0.1:0"], env=lossd.environment(),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer)
        os.close(writer)
        os.close(reader)
        try:
            port = int(process.stdout.readline().decode().rsplit(":", 1)[1])
            for _ in range(3):
                with lossd.Connection(port) as connection:
                    self.assertEqual(connection.request("POST", "/v1/loss", TINY).status, 200)
        finally:
            process.terminate()
            code = process.wait(lossd.PATIENCE)
            process.stdout.close()
        self.assertEqual(code, 0)


class DrainDuringUploads(unittest.TestCase):
    """Stopping while bodies complete and connections are about to be suspended."""

    def test_L01_last_bytes_around_the_stop(self):
        body = lossd.bccd().pick([0]).safetensors()
        for delay in (0, 0.01, 0.03, 0.1):
            daemon = lossd.Daemon("--drain-timeout", "0", "--workers", "1", "--cpu-level", "ref")
            with daemon:
                waiting = []
                for _ in range(24):
                    connection = daemon.connect()
                    connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS,
                                                          "Content-Length": len(body)})
                    connection.try_send(body[:-1])
                    waiting.append(connection)
                daemon.process.terminate()
                time.sleep(delay)
                for connection in waiting:
                    connection.try_send(body[-1:])
                self.assertEqual(daemon.process.wait(30), 0, daemon.log()[-2000:])
                for connection in waiting:
                    connection.close()

    def test_L02_a_stalled_upload_does_not_hold_the_stop(self):
        daemon = lossd.Daemon("--drain-timeout", "1")
        with daemon:
            with daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 5000})
                connection.try_send(b"x" * 100)
                time.sleep(0.2)
                start = time.monotonic()
                daemon.process.terminate()
                self.assertEqual(daemon.process.wait(30), 0)
                self.assertLess(time.monotonic() - start, 2.5)


if __name__ == "__main__":
    unittest.main()
