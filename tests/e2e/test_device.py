# SPDX-License-Identifier: Apache-2.0
"""GPUs: who computes, that the numbers are the cpu's, and what becomes of requests when a device fails, hangs or is lost.

$LOSSD_EMULATED is a daemon whose CUDA device is emulated (tests/support/emulated); $LOSSD_CUDA, if set, is one that uses
a real one of this machine, and then every test is run against that which does not make the device fail. Under the thread
sanitizer an emulated one takes minutes; there tests/unit/test_device does this with devices that take no time.
"""
import json
import os
import re
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

REAL = os.environ.get("LOSSD_CUDA")
EMULATED = None if REAL else os.environ.get("LOSSD_EMULATED")
if EMULATED and os.path.basename(os.path.dirname(os.path.realpath(EMULATED))) == "tsan":
    EMULATED = None
BINARY = REAL or EMULATED
MEMORY = ("--device-memory", "64M")
ALL = "images,classes,levels,objects,assignment,targets"
KEPT = ("loc", "conf", "boxes", "labels", "counts")  # annotations at the end: nothing can be computed before them
STICKY = (214, 700, 716, 719, 999)
NO_MEMORY = 2

needs_device = unittest.skipUnless(BINARY, "neither LOSSD_EMULATED (but for the thread sanitizer's) nor LOSSD_CUDA is set")
needs_faults = unittest.skipUnless(EMULATED, "LOSSD_EMULATED is not set, or the thread sanitizer's")


def environment(**emulated):
    env = {"EMULATED_CUDA_" + name.upper(): str(value) for name, value in emulated.items()}
    if REAL:
        env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return env


def start(*flags, **emulated):
    return lossd.Daemon(*MEMORY, *flags, env=environment(**emulated), binary=BINARY)


def batch(seed=3, n=2, p=8732, c=16, objects=5):
    """A megabyte: enough to be worth a device and to be fed early; little enough for an emulated one."""
    return lossd.random_batch(seed, n, p, c, objects)


class Devices(lossd.Case):
    """What the tests have in common."""

    FLAGS = None

    def metric(self, daemon, name, **labels):
        text = ",".join('%s="%s"' % item for item in labels.items())
        line = "lossd_%s%s " % (name, "{%s}" % text if text else "")
        found = [row for row in daemon.get("/metrics").body.decode().splitlines() if row.startswith(line)]
        self.assertEqual(len(found), 1, (name, found))
        return float(found[0].rsplit(" ", 1)[1])

    def busy(self, daemon, device="cuda:0"):
        return self.metric(daemon, "device_threads_busy", device=device)

    def becomes(self, condition):
        self.assertTrue(lossd.until(condition))

    def same(self, got, want, at=""):
        """Assignments, counts and names are the same; a sum is to 1e-6, a gradient to 1e-5."""
        if isinstance(want, dict):
            self.assertEqual(set(got), set(want), at)
            for key in want:
                if key not in ("device", "timing_ms", "request_id"):
                    self.same(got[key], want[key], "%s.%s" % (at, key))
        elif isinstance(want, list):
            self.assertEqual(len(got), len(want), at)
            for i, (a, b) in enumerate(zip(got, want)):
                self.same(a, b, "%s[%d]" % (at, i))
        elif isinstance(want, float) and "targets" not in at:
            relative = 1e-5 if "gradients" in at or "grad" in at else 1e-6
            if abs(got - want) > relative * max(abs(got), abs(want)) + 1e-12:
                self.fail("%s: %r is not %r" % (at, got, want))
        else:
            self.assertEqual(got, want, at)


# ---- no GPU ------------------------------------------------------------------------------------------------------


class NoDevice(Devices):
    """Of the binary as it is, on a machine that shows no GPU."""

    def refused(self, option, says, binary=None, env=None):
        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--data-dir", "/nonexistent/made", "--device",
                                         option, env=env, binary=binary)
        self.assertEqual((status, out), (69, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertRegex(err, "^lossd: --device %s: .*(%s)" % (re.escape(option), says))
        self.assertFalse(os.path.exists("/nonexistent/made"))

    def test_R16_named_devices_are_not_replaced(self):
        for option in ("cuda", "cuda:0", "cuda:0,2", "cuda:999"):
            self.refused(option, "CUDA")

    def test_R16_that_is_found_out_before_the_port(self):
        with lossd.Daemon() as daemon:
            status, _, err = lossd.command("--listen", "127.0.0.1:%d" % daemon.port, "--device", "cuda")
            self.assertEqual(status, 69, err)

    def test_R16_auto_says_so_and_computes(self):
        with lossd.Daemon("--device", "auto") as daemon:
            self.assertEqual(self.good(daemon.post("/v1/loss", lossd.bccd_bytes()))["device"], "cpu")
            lines = [line for line in daemon.log().splitlines() if " event=device " in line]
            self.assertEqual(len(lines), 1, lines)
            self.assertRegex(lines[0], "level=(info|warn) .*CUDA")
            self.assertEqual(daemon.get("/readyz").json(), {"status": "ready"})
            version = daemon.get("/version").json()
            self.assertEqual((version["device"], version["devices"]),
                             ("cpu", [{"name": "cpu", "level": version["cpu_level"], "healthy": True}]))

    def test_cpu_does_not_look(self):
        with lossd.Daemon("--device", "cpu") as daemon:
            self.assertNotIn(" event=device ", daemon.log())

    def test_requests_that_name_one(self):
        body = lossd.bccd_bytes()
        with lossd.Daemon() as daemon:
            for name in ("cuda", "cuda:0", "cuda:17"):
                for order in (lossd.Batch.STREAM, KEPT):
                    sent = batch().safetensors(order=order)
                    answer = daemon.post("/v1/loss?device=" + name, sent, lossd.SAFETENSORS)
                    self.problem(answer, 503, "device_unavailable", pointer="device")
                    self.assertIsNone(answer.header("Retry-After"))
                self.problem(daemon.post("/v1/match", lossd.tiny().json(predictions=False, device=name)), 503,
                             "device_unavailable", pointer="/device")
            self.good(daemon.post("/v1/loss?device=cpu", body))
            self.assertEqual(self.metric(daemon, "device_requests_total", device="cpu"), 1)
            self.assertEqual(self.metric(daemon, "device_fallbacks_total"), 0)

    @needs_faults
    def test_R16_emulated(self):
        for devices, says in ((0, "no CUDA-capable device"), (-1, "driver")):
            self.refused("cuda", says, EMULATED, environment(devices=devices))
            with start(devices=devices) as daemon:
                self.assertEqual(self.good(daemon.post("/v1/loss", lossd.bccd_bytes()))["device"], "cpu")
        self.refused("cuda:1", "no such GPU; the only one is cuda:0", EMULATED, environment())
        self.refused("cuda:0,4", "no such GPU; the last one is cuda:2", EMULATED, environment(devices=3))


# ---- answers -----------------------------------------------------------------------------------------------------


@needs_device
class Answers(Devices):
    @classmethod
    def setUpClass(cls):
        cls.daemon = start("--workers", "2")

    def both(self, target, body, content_type=lossd.SAFETENSORS, headers=None, read=None):
        """From the cpu and from the device."""
        answers = []
        for device in ("cpu", "cuda"):
            answer = self.daemon.post(target + ("&" if "?" in target else "?") + "device=" + device, body, content_type,
                                      headers)
            self.assertEqual(answer.status, 200, answer)
            answers.append(read(answer) if read else answer.json())
        self.same(answers[1], answers[0])
        return answers

    def test_every_form_of_body(self):
        one = batch()
        target = "/v1/loss?include=" + ALL
        for body, content_type in ((one.safetensors(), lossd.SAFETENSORS),
                                   (one.safetensors(order=("counts", "labels", "boxes", "loc", "conf")), lossd.SAFETENSORS),
                                   (one.safetensors(order=KEPT), lossd.SAFETENSORS), (one.json(), lossd.JSON),
                                   (one.json(flat=True), lossd.JSON)):
            cpu, gpu = self.both(target, body, content_type)
            self.assertEqual((cpu["device"], gpu["device"]), ("cpu", "cuda:0"))
            self.assertGreater(gpu["assignment"]["positives"], 0)

    def test_gradients(self):
        for include in ("gradients", "dense_gradients"):
            self.both("/v1/loss?include=" + include, batch().safetensors())
            self.both("/v1/loss?include=%s&criterion=retinanet-focal&priors=ssd300" % include, batch(c=9).safetensors())

    def test_criteria(self):
        for criterion in ("ssd-multibox-l1", "retinanet-focal", '{"mining":{"scope":"batch"}}',
                          '{"base":"retinanet-focal","localization":{"kind":"giou"}}'):
            with self.subTest(criterion):
                self.both("/v1/loss?include=images,classes&criterion=" + criterion.replace('"', "%22").replace(
                    "{", "%7B").replace("}", "%7D"), batch(p=1000).safetensors())

    def test_the_shipped_batch(self):
        cpu, gpu = self.both("/v1/loss?include=" + ALL, lossd.bccd_bytes())
        with open(os.path.join(lossd.ROOT, "tests", "golden", "bccd-ssd300", "expect.json"), encoding="ascii") as file:
            want = json.load(file)
        for part, value in want.get("loss", {}).items():
            self.near(gpu["loss"][part], value, 1e-6, part)
        self.assertEqual(gpu["assignment"]["positives"], cpu["assignment"]["positives"])

    def test_tensors(self):
        def read(answer):
            meta, tensors = lossd.load(answer.body)
            return [json.loads(meta["result"]), {name: list(t) for name, t in tensors.items()}]

        cpu, gpu = self.both("/v1/loss?include=gradients,assignment,targets", batch().safetensors(), lossd.SAFETENSORS,
                             {"Accept": lossd.SAFETENSORS}, read)
        self.assertEqual((cpu[0]["device"], gpu[0]["device"]), ("cpu", "cuda:0"))

    def test_match(self):
        one = lossd.random_batch(5, 2, 8732, 21, 60)
        cpu, gpu = self.both("/v1/match?include=" + ALL, one.json(predictions=False), lossd.JSON)
        self.assertEqual((cpu["device"], gpu["device"]), ("cpu", "cuda:0"))

    def test_inferences(self):
        one = batch()
        for in_json in ((), True):
            text, behind = lossd.inference(one.tensors(), in_json, parameters={"include": "images,assignment"})
            text = json.dumps(text).encode()

            def read(answer):
                document, tensors = lossd.read_inference(answer)
                result = json.loads(document["parameters"]["result"])
                self.assertIn(result["device"], ("cpu", "cuda:0"))
                return [result, {name: list(t) for name, t in tensors.items()}]

            self.both("/v2/models/ssd-multibox/infer", text + behind, None, lossd.infer_headers(text), read)

    def test_who_computes(self):
        before = {d: self.metric(self.daemon, "device_requests_total", device=d) for d in ("cpu", "cuda:0")}
        for device, body, by in (("auto", lossd.tiny().safetensors(), "cpu"), ("cuda", lossd.tiny().safetensors(), "cuda:0"),
                                 ("auto", batch().safetensors(), "cuda:0"), ("cpu", batch().safetensors(), "cpu"),
                                 ("auto", batch().json(), "cuda:0"), ("cuda:0", batch().safetensors(order=KEPT), "cuda:0")):
            self.assertEqual(self.good(self.daemon.post("/v1/loss?device=" + device, body))["device"], by)
            before[by] += 1
        for device in before:
            self.assertEqual(self.metric(self.daemon, "device_requests_total", device=device), before[device])
        self.problem(self.daemon.post("/v1/loss?device=cuda:7", batch().safetensors()), 503, "device_unavailable",
                     '"cuda:7" here, but cpu, cuda:0$', "device")
        self.assertEqual(self.metric(self.daemon, "device_fallbacks_total"), 0)

    def test_predictions_that_cannot_be_used(self):
        """They are the client's fault wherever they are found."""
        for device in ("cpu", "cuda", "auto"):
            one = batch()
            one.conf[16 * (8732 + 100) + 7] = float("nan")
            self.problem(self.daemon.post("/v1/loss?device=" + device, one.safetensors(), lossd.SAFETENSORS), 422,
                         "prediction_not_finite", pointer=r"^conf\[1,100\]$")
        self.assertEqual(self.metric(self.daemon, "device_fallbacks_total"), 0)

    def test_recorded(self):
        answer = self.good(self.daemon.post("/v1/loss?run=gpu&step=3&device=cuda", batch().safetensors()))
        self.assertEqual(answer["device"], "cuda:0")
        steps = self.good(self.daemon.get("/v1/runs/gpu/steps"))["steps"]
        self.assertEqual([(s["step"], s["total"]) for s in steps], [(3, answer["loss"]["total"])])

    def test_version_and_readiness(self):
        version = self.daemon.get("/version").json()
        self.assertEqual(version["device"], "cuda")
        self.assertEqual([d["name"] for d in version["devices"]], ["cuda:0", "cpu"])
        self.assertRegex(version["devices"][0]["level"], r"^\d+\.\d$")
        self.assertEqual(self.daemon.get("/readyz").json(), {"status": "ready"})
        self.assertEqual(self.metric(self.daemon, "device_info", device="cuda:0", level=version["devices"][0]["level"]), 1)
        self.assertEqual(self.metric(self.daemon, "device_memory_bytes", device="cuda:0"), 64 << 20)
        self.assertEqual(self.metric(self.daemon, "device_threads", device="cuda:0"), 2)

    def test_concurrently(self):
        bodies = [batch(seed, n, p).safetensors() for seed, n, p in ((1, 2, 8732), (2, 5, 3600), (3, 3, 8732), (4, 9, 1900))]
        wants = [self.good(self.daemon.post("/v1/loss?device=cpu&include=images", body)) for body in bodies]

        def client(i):
            for turn in range(4):
                k = (i + turn) % len(bodies)
                device = ("auto", "cuda", "cpu")[(i + turn) % 3]
                got = self.good(self.daemon.post("/v1/loss?include=images&device=" + device, bodies[k]))
                self.same(got, wants[k])

        lossd.together([lambda i=i: client(i) for i in range(6)])
        self.becomes(lambda: self.busy(self.daemon) == 0)


# ---- uploads -----------------------------------------------------------------------------------------------------


@needs_device
class Uploads(Devices):
    """Rows are fed while they come, and slow clients do not keep the others out."""

    def begin(self, daemon, body, target="/v1/loss", part=0.5):
        """A connection that has sent a part of a body."""
        connection = daemon.connect()
        connection.start("POST", target, {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
        connection.send(body[:int(part * len(body))])
        return connection

    def test_slow_ones_give_the_same(self):
        body = lossd.bccd_bytes()
        with start() as daemon:
            want = self.good(daemon.post("/v1/loss?device=cpu&include=" + ALL, body))
            for order in (None, ("counts", "labels", "boxes", "loc", "conf")):
                sent = lossd.bccd().safetensors(order=order) if order else body
                with self.begin(daemon, sent, "/v1/loss?include=" + ALL, 0.01) as connection:
                    self.becomes(lambda: self.busy(daemon) == 1)
                    at = int(0.01 * len(sent))
                    for piece in (1, 70000, 1 << 20, 3, 300000):
                        connection.send(sent[at:at + piece])
                        at += piece
                        time.sleep(0.05)
                    connection.send(sent[at:])
                    got = self.good(connection.answer())
                self.assertEqual(got["device"], "cuda:0")
                self.same(got, want)
                self.becomes(lambda: self.busy(daemon) == 0)

    def test_chunked(self):
        body = batch().safetensors()
        with start() as daemon:
            want = self.good(daemon.post("/v1/loss?device=cpu", body))
            with daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Transfer-Encoding": "chunked"})
                for at in range(0, len(body), 100000):
                    piece = body[at:at + 100000]
                    connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
                connection.send(b"0\r\n\r\n")
                got = self.good(connection.answer())
            self.assertEqual(got["device"], "cuda:0")
            self.same(got, want)

    def test_slow_clients_do_not_keep_others_out(self):
        body = batch().safetensors()
        with start() as daemon:
            want = self.good(daemon.post("/v1/loss?device=cpu", body))
            slow = [self.begin(daemon, body) for _ in range(4)]
            self.becomes(lambda: self.busy(daemon) == 1)  # of two
            for _ in range(3):
                got = self.good(daemon.post("/v1/loss?device=cuda", body))
                self.same(got, want)
            self.becomes(lambda: self.busy(daemon) == 1)
            for connection in slow:
                connection.send(body[len(body) // 2:])
            for connection in slow:
                got = self.good(connection.answer())
                self.assertEqual(got["device"], "cuda:0")
                self.same(got, want)
                connection.close()
            self.becomes(lambda: self.busy(daemon) == 0)

    def test_clients_that_vanish(self):
        body = batch().safetensors()
        with start() as daemon:
            daemon.get("/metrics")
            before = self.metric(daemon, "inflight_bytes")
            for end in ("reset", "close"):
                for part in (0.4, 0.9, 1):
                    connection = self.begin(daemon, body, part=part)
                    if part < 1:
                        self.becomes(lambda: self.busy(daemon) == 1)
                    getattr(connection, end)()
                    self.becomes(lambda: self.busy(daemon) == 0)
            self.becomes(lambda: self.metric(daemon, "inflight_bytes") == before)
            self.assertEqual(self.good(daemon.post("/v1/loss?device=cuda", body))["device"], "cuda:0")

    def test_clients_that_stall(self):
        body = batch().safetensors()
        with start("--request-timeout", "1") as daemon:
            with self.begin(daemon, body) as connection:
                self.becomes(lambda: self.busy(daemon) == 1)
                self.problem(connection.answer(), 408, "body_timeout")
                self.becomes(lambda: self.busy(daemon) == 0)

    def test_stopping(self):
        body = batch(n=3, p=3000).safetensors()
        daemon = start("--drain-timeout", "20", "--workers", "1")
        with daemon:
            want = self.good(daemon.post("/v1/loss?device=cpu", body))
            slow = self.begin(daemon, body)
            waiting = [self.begin(daemon, body, part=1) for _ in range(5)]
            self.becomes(lambda: self.metric(daemon, "queue_depth") == 6)
            daemon.signal(signal.SIGTERM)
            slow.send(body[len(body) // 2:])
            for connection in [slow, *waiting]:
                self.same(self.good(connection.answer()), want)
                connection.close()
            self.assertEqual(daemon.wait(), 0)

    def test_stopping_without_patience(self):
        body = batch(n=3, p=3000).safetensors()
        with start("--drain-timeout", "0") as daemon:
            slow = self.begin(daemon, body)
            waiting = [self.begin(daemon, body, part=1) for _ in range(5)]
            self.becomes(lambda: self.metric(daemon, "queue_depth") == 6)
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            self.assertEqual(daemon.wait(), 0)
            self.assertLess(time.monotonic() - began, 10)
            for connection in [slow, *waiting]:
                connection.close()


# ---- limits ------------------------------------------------------------------------------------------------------


@needs_device
class Limits(Devices):
    def test_what_does_not_fit(self):
        """`auto` goes to the cpu, where it is streamed as ever; a named device refuses."""
        large, small = lossd.bccd_bytes(), batch(n=1, p=1000).safetensors()
        with start("--device-memory", "2M") as daemon:
            self.assertEqual(self.good(daemon.post("/v1/loss", large))["device"], "cpu")
            for body in (large, lossd.bccd().safetensors(order=KEPT)):
                self.problem(daemon.post("/v1/loss?device=cuda", body, lossd.SAFETENSORS), 413, "device_memory",
                             r"\d+ bytes.*1048576")
            self.assertEqual(self.good(daemon.post("/v1/loss?device=cuda", small))["device"], "cuda:0")
            self.assertEqual(self.metric(daemon, "device_fallbacks_total"), 0)

    def test_where_keeping_it_takes_too_much(self):
        """A body that can be streamed needs less memory than the device would."""
        body = lossd.bccd_bytes()
        with start("--memory-limit", "4M") as daemon:
            self.assertEqual(self.good(daemon.post("/v1/loss", body))["device"], "cpu")
            self.problem(daemon.post("/v1/loss?device=cuda", body, lossd.SAFETENSORS), 413, "body_too_large")

    @needs_faults
    def test_R17_at_the_start(self):
        """At the start: `auto` goes on without, a named device does not."""
        status, out, err = lossd.command("--listen", "127.0.0.1:0", *MEMORY, "--device", "cuda", binary=EMULATED,
                                         env=environment(memory=40 << 20))
        self.assertEqual((status, out, err.count("\n")), (69, "", 1), err)
        self.assertRegex(err, "cuda:0: .*memory")
        with start(memory=40 << 20) as daemon:
            self.assertEqual(self.good(daemon.post("/v1/loss", lossd.bccd_bytes()))["device"], "cpu")
            lines = [line for line in daemon.log().splitlines() if " event=device " in line]
            self.assertEqual(len(lines), 1, lines)
            self.assertIn("level=warn", lines[0])
            self.assertEqual([d["name"] for d in daemon.get("/version").json()["devices"]], ["cpu"])

    @needs_faults
    def test_several_devices(self):
        body = batch().safetensors()
        with start(devices=3) as daemon:
            self.assertEqual([d["name"] for d in daemon.get("/version").json()["devices"]],
                             ["cuda:0", "cuda:1", "cuda:2", "cpu"])
            want = self.good(daemon.post("/v1/loss?device=cpu", body))
            for device in ("cuda:2", "cuda:0", "cuda:1"):
                got = self.good(daemon.post("/v1/loss?device=" + device, body))
                self.assertEqual(got["device"], device)
                self.same(got, want)
            self.becomes(lambda: [self.busy(daemon, "cuda:%d" % i) for i in range(3)] == [0, 0, 0])
            slow = [Uploads.begin(self, daemon, body) for _ in range(4)]  # one of each, if they may
            self.becomes(lambda: [self.busy(daemon, "cuda:%d" % i) for i in range(3)] == [1, 1, 1])
            for connection in slow:
                connection.send(body[len(body) // 2:])
                self.same(self.good(connection.answer()), want)
                connection.close()
        with start("--device", "cuda:1", devices=3) as daemon:
            self.assertEqual([d["name"] for d in daemon.get("/version").json()["devices"]], ["cuda:1", "cpu"])
            self.assertEqual(self.good(daemon.post("/v1/loss?device=cuda", body))["device"], "cuda:1")
            self.assertEqual(self.good(daemon.post("/v1/loss?device=cuda:1", body))["device"], "cuda:1")
            self.problem(daemon.post("/v1/loss?device=cuda:0", body), 503, "device_unavailable")
        with start("--device", "cuda:2,0,2", devices=3) as daemon:
            self.assertEqual([d["name"] for d in daemon.get("/version").json()["devices"]], ["cuda:2", "cuda:0", "cpu"])
        with start("--device", "cuda:1", devices=2, trace=1) as daemon:  # and no other is woken, to pin memory for it
            self.assertEqual(self.good(daemon.post("/v1/loss?device=cuda:1", body))["device"], "cuda:1")
            pins = [line for line in daemon.log().splitlines() if "cudaHostRegister" in line]
            self.assertTrue(pins)
            self.assertEqual([line for line in pins if not line.endswith(" on 1")], [])


# ---- faults ------------------------------------------------------------------------------------------------------


@needs_faults
class Faults(Devices):
    """The device fails at any of the calls that a request makes: no number is ever wrong."""

    TARGET = "/v1/loss?include=images,assignment,gradients&device="

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.body = batch().safetensors()
        with start(trace=1) as daemon:
            cls.at_start = daemon.log().count("emulated CUDA: call ")
            cls.want = daemon.post(cls.TARGET + "cpu", cls.body).json()
            answer = daemon.post(cls.TARGET + "cuda", cls.body)
            assert answer.json()["device"] == "cuda:0", answer
            cls.in_all = daemon.log().count("emulated CUDA: call ")
        assert cls.in_all > cls.at_start + 20 > 30

    def calls(self, n):
        """Of a request's calls, n, the first and the last among them."""
        most = self.in_all - self.at_start
        return [self.at_start + 1 + i * (most - 1) // (n - 1) for i in range(n)]

    def state(self, daemon, lost, required=False):
        """What is told of the device afterwards."""
        self.assertEqual(self.metric(daemon, "device_healthy", device="cuda:0"), not lost)
        self.assertEqual(self.metric(daemon, "device_healthy", device="cpu"), 1)
        self.assertEqual(daemon.get("/version").json()["devices"][0]["healthy"], not lost)
        ready = daemon.get("/readyz")
        if lost and required:
            self.problem(ready, 503, "device_lost")
        else:
            self.assertEqual(ready.status, 200)
            self.assertEqual("degraded" in ready.json(), lost)
        self.assertEqual(self.metric(daemon, "ready"), not (lost and required))
        lines = [line for line in daemon.log().splitlines() if "level=error" in line]
        self.assertEqual(len(lines), int(lost), lines)
        self.becomes(lambda: self.busy(daemon) == 0)

    def test_R17_R18_auto(self):
        for code in (NO_MEMORY, *STICKY):
            for call in self.calls(6 if code in (NO_MEMORY, 700) else 3):
                with self.subTest(code=code, call=call), start(fail="%d:%d" % (call, code)) as daemon:
                    got = self.good(daemon.post(self.TARGET + "auto", self.body))
                    self.same(got, self.want)
                    on_cpu = got["device"] == "cpu"
                    self.assertEqual(self.metric(daemon, "device_fallbacks_total"), on_cpu)
                    # an error in the last call comes too late for the answer, or in the next job: not all ask as often
                    self.becomes(lambda: self.busy(daemon) == 0)
                    if not on_cpu:
                        self.same(self.good(daemon.post(self.TARGET + "auto", self.body)), self.want)
                        self.becomes(lambda: self.busy(daemon) == 0)
                    again = self.good(daemon.post(self.TARGET + "auto", self.body))
                    self.same(again, self.want)
                    lost = self.metric(daemon, "device_healthy", device="cuda:0") == 0
                    self.assertEqual(lost, code != NO_MEMORY)
                    self.assertEqual(again["device"], "cpu" if lost else "cuda:0")
                    self.state(daemon, lost)
                    if lost:
                        self.problem(daemon.post(self.TARGET + "cuda", self.body), 503, "device_unavailable")

    def test_R17_R18_named(self):
        for code in (NO_MEMORY, 700):
            for call in self.calls(5):
                with self.subTest(code=code, call=call), start("--device", "cuda", fail="%d:%d" % (call, code)) as daemon:
                    answer = daemon.post(self.TARGET + "cuda:0", self.body)
                    if answer.status == 200:
                        self.assertEqual(answer.json()["device"], "cuda:0")
                        self.same(answer.json(), self.want)
                    elif code == NO_MEMORY:
                        self.problem(answer, 503, "device_failed", "cuda:0.*emory")
                        self.assertEqual(answer.header("Retry-After"), "1")
                    else:
                        self.problem(answer, 503, "device_unavailable", "cuda:0")
                        self.assertIsNone(answer.header("Retry-After"))
                    self.becomes(lambda: self.busy(daemon) == 0)
                    if answer.status == 200:
                        daemon.post(self.TARGET + "cuda:0", self.body)   # the call may be one of the next job
                        self.becomes(lambda: self.busy(daemon) == 0)
                    again = daemon.post(self.TARGET + "cuda:0", self.body)
                    self.assertEqual(again.status, 200 if code == NO_MEMORY else 503, again)
                    self.state(daemon, code != NO_MEMORY, required=True)
                    self.assertEqual(self.metric(daemon, "device_fallbacks_total"), 0)

    def test_R17_R18_while_the_body_comes(self):
        """What was begun on the device is done by the cpu as the rest arrives, or refused in the end."""
        body = lossd.bccd_bytes()
        cut = len(body) * 2 // 3
        with start() as daemon:
            want = self.good(daemon.post("/v1/loss?device=cpu&include=" + ALL, body))
        for code in (NO_MEMORY, 719):
            for offset in (3, 16, 19):  # in begin and in the first feed
                for device in ("auto", "cuda"):
                    with self.subTest(code=code, offset=offset, device=device), start(
                            fail="%d:%d" % (self.at_start + offset, code)) as daemon:
                        connection = Uploads.begin(self, daemon, body, "/v1/loss?device=%s&include=%s" % (device, ALL), 0.01)
                        with connection:
                            connection.send(body[int(0.01 * len(body)):cut])
                            self.becomes(lambda: self.busy(daemon) == 0)  # it was begun, and has been given up
                            connection.send(body[cut:])
                            answer = connection.answer()
                        if device == "auto":
                            got = self.good(answer)
                            self.assertEqual(got["device"], "cpu")
                            self.same(got, want)
                        else:
                            self.problem(answer, 503, "device_failed" if code == NO_MEMORY else "device_unavailable")
                        self.state(daemon, code != NO_MEMORY)

    def test_R18_others_are_redone_too(self):
        """One loses the device; those that wait for it and those under way get their numbers all the same."""
        for call in self.calls(4)[1:]:
            with self.subTest(call=call), start(fail="%d:700" % call) as daemon:
                def client(device):
                    return daemon.post(self.TARGET + device, self.body)

                answers = lossd.together([lambda d=d: client(d) for d in ("auto", "cuda", "auto", "auto", "cuda", "auto")])
                for i, answer in enumerate(answers):
                    if answer.status == 200:
                        self.same(answer.json(), self.want)
                    else:
                        self.assertIn(i, (1, 4))
                        self.problem(answer, 503, "device_unavailable")
                self.state(daemon, True)

    def test_R18_at_the_start(self):
        for call in range(1, self.at_start + 1):
            with self.subTest(call=call):
                status, out, err = lossd.command("--listen", "127.0.0.1:0", *MEMORY, "--device", "cuda", binary=EMULATED,
                                                 env=environment(fail="%d:700" % call))
                self.assertEqual((status, out, err.count("\n")), (69, "", 1), err)
                with start(fail="%d:2" % call) as daemon:
                    self.same(self.good(daemon.post(self.TARGET + "auto", self.body)), self.want)

    def test_one_of_several_at_the_start(self):
        """`auto` makes do with the others: somebody else has that one for himself."""
        for call in range(4, self.at_start + 1, 3):
            with self.subTest(call=call), start(fail="%d:46" % call, devices=2) as daemon:
                names = [d["name"] for d in daemon.get("/version").json()["devices"]]
                self.assertEqual(len(names), 2, names)
                got = self.good(daemon.post(self.TARGET + "auto", self.body))
                self.assertEqual(got["device"], names[0])
                self.same(got, self.want)
                self.assertEqual(self.metric(daemon, "device_healthy", device=names[0]), 1)

    def test_R19_hangs(self):
        with start("--request-timeout", "2", hang=3) as daemon:
            answers = lossd.together([lambda: daemon.post(self.TARGET + "auto", self.body) for _ in range(3)])
            for answer in answers:
                if answer.status == 200:
                    self.same(answer.json(), self.want)
                else:
                    self.problem(answer, 504, "timeout")
            self.assertIn(504, [answer.status for answer in answers])
            self.becomes(lambda: self.metric(daemon, "device_healthy", device="cuda:0") == 0)
            self.becomes(lambda: self.busy(daemon) == 0)
            self.assertEqual(daemon.get("/healthz").status, 200)
            got = self.good(daemon.post(self.TARGET + "auto", self.body))
            self.assertEqual(got["device"], "cpu")
            self.same(got, self.want)
            self.state(daemon, True)

    def test_R19_stopping(self):
        with start("--drain-timeout", "1", hang=2) as daemon, daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(self.body)})
            connection.send(self.body)
            self.becomes(lambda: self.busy(daemon) == 1)
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            try:
                self.problem(connection.answer(), 503, "draining")
            except lossd.Closed:   # it is sent, if that takes no time
                pass
            self.assertEqual(daemon.wait(), 0)
            self.assertLess(time.monotonic() - began, 15)


if __name__ == "__main__":
    unittest.main()
