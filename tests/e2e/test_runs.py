# SPDX-License-Identifier: Apache-2.0
"""Runs: what is recorded is what was answered, it can be read in every form, and no fault of the disk makes it wrong."""
import csv
import io
import json
import os
import random
import re
import resource
import signal
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402
import recorded  # noqa: E402
from recorded import FIELDS, FILE, TINY, all_runs, all_steps, body, numbers, row, target  # noqa: E402

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
ROOT = unittest.skipUnless(os.geteuid() == 0, "needs root, to run the daemon as another user")


class Case(lossd.Case):
    def record(self, run, step, data=TINY, more="", daemon=None, **headers):
        """Post, and see that what was answered is what is told."""
        daemon = daemon or self.daemon
        answer = self.good(daemon.post(target(run, step, more), data, headers=headers))
        self.assertEqual(self.step(run, step, daemon), row(answer))
        return answer

    def step(self, run, step, daemon=None):
        page = self.good((daemon or self.daemon).get("/v1/runs/%s/steps?after=%d&limit=1" % (run, step - 1)))
        self.assertEqual([s["step"] for s in page["steps"]], [step])
        return numbers(page["steps"][0])

    def describe(self, run, daemon=None):
        return self.good((daemon or self.daemon).get("/v1/runs/" + run))

    def names(self, daemon=None):
        return [r["name"] for r in all_runs(daemon or self.daemon)]

    def unknown(self, run, daemon=None):
        self.problem((daemon or self.daemon).get("/v1/runs/" + run), 404, "unknown_run")

    def fill(self, run, steps, daemon=None, values=None):
        """Record many steps by eight clients; {step: row}."""
        daemon, steps, want = daemon or self.daemon, list(steps), {}

        def client(i):
            with daemon.connect() as connection:
                for step in steps[i::8]:
                    data = body(values[step] if values else step % 50)
                    want[step] = row(self.good(connection.request("POST", target(run, step), data)))

        lossd.together([lambda i=i: client(i) for i in range(8)])
        return want

    def compute(self, daemon, seconds=1.0):
        """Losses without a run are answered at once, and the daemon is up."""
        begin = time.monotonic()
        self.good(daemon.post("/v1/loss", TINY))
        self.assertLess(time.monotonic() - begin, seconds * (5 if "test" in lossd.BINARY else 1))
        self.healthy(daemon)


class Recording(Case):
    """However a batch is sent."""

    def test_encodings(self):
        batch = lossd.bccd().pick([0, 3])
        tensors = batch.tensors()
        want = row(self.record("binary", 7, batch.safetensors({"run": "binary", "step": "7"}), ""))
        self.assertEqual(row(self.record("binary-query", 8, batch.safetensors())), want)
        sent = [("json", batch.json(run="json", step=0), lossd.JSON, {}),
                ("metadata", batch.safetensors({"run": "metadata", "step": "0"}), lossd.SAFETENSORS, {})]
        for name, data, kind, headers in sent:
            with self.subTest(name):
                self.assertEqual(row(self.good(self.daemon.post("/v1/loss", data, kind, headers))), want)
                self.assertEqual(self.step(name, 0), want)
        for name, in_json in (("infer", ()), ("infer-json", True)):
            with self.subTest(name):
                document, behind = lossd.inference(tensors, in_json, parameters={"run": name, "step": 9})
                text = json.dumps(document).encode()
                answer = self.daemon.post("/v2/models/ssd-multibox/infer", text + behind, None,
                                          lossd.infer_headers(text))
                self.assertEqual(answer.status, 200, answer)
                got = self.step(name, 9)
                self.assertEqual(got, want)
                outputs = lossd.read_inference(answer)[1]
                self.assertEqual(outputs["loss"][2], [want["total"]])
        both = self.record("query", 5, batch.json(run="body", step=4), "", **{"Content-Type": lossd.JSON})
        self.assertEqual(row(both), want)
        self.unknown("body")

    def test_large_bodies(self):
        """Streamed and kept; whole, in pieces, chunked and with a coding."""
        batch = lossd.bccd()
        streamed = batch.safetensors()
        kept = batch.safetensors(order=("loc", "conf", "boxes", "labels", "counts"))
        self.assertGreater(len(streamed), 2 << 20)
        want = row(self.record("streamed", 1, streamed))
        self.assertEqual(row(self.record("kept", 1, kept)), want)
        with self.daemon.connect() as connection:
            connection.start("POST", target("chunked", 1), {"Transfer-Encoding": "chunked",
                                                            "Content-Type": lossd.SAFETENSORS})
            for at in range(0, len(streamed), 1 << 20):
                piece = streamed[at:at + (1 << 20)]
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
            self.assertEqual(row(self.good(connection.answer())), want)
        self.assertEqual(self.step("chunked", 1), want)
        for criterion in ("ssd-keras", "retinanet-focal", "ssd-multibox-l1"):
            with self.subTest(criterion):   # mined across the batch; not mined; and in another way
                batch = lossd.random_batch(4, 3, 2000, 5)
                for i in range(len(batch.conf)):
                    batch.conf[i] = 0.2
                answer = self.record(criterion, 2, batch.safetensors(), "&criterion=" + criterion)
                if criterion == "ssd-keras":
                    self.assertGreater(answer["assignment"]["hard_negatives"], 0)

    def test_what_else_is_asked_for(self):
        batch = lossd.random_batch(1, 2, 600, 4)
        plain = self.record("more", 0, batch.safetensors())
        for step, include in enumerate(("gradients", "dense_gradients", "images,classes,levels,objects,assignment"), 1):
            answer = self.record("more", step, batch.safetensors(), "&include=" + include)
            self.assertEqual(row(answer), row(plain))
        answer = self.daemon.post(target("more", 9, "&include=gradients"), batch.safetensors(),
                                  headers={"Accept": lossd.SAFETENSORS})
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(row(json.loads(lossd.load(answer.body)[0]["result"])), row(plain))
        self.assertEqual(self.step("more", 9), row(plain))
        self.assertEqual(self.describe("more")["steps"], 5)

    def test_targets(self):
        """Statistics of objects are not known then."""
        batch = lossd.random_batch(1, n=3, p=9, c=3)
        match = self.good(self.daemon.post("/v1/match?include=targets&classes=2", batch.json(predictions=False)))
        request = batch.document(run="targets", step=3)
        del request["annotations"], request["priors"]
        request["targets"] = match["targets"]
        answer = self.good(self.daemon.post("/v1/loss", json.dumps(request).encode()))
        got = self.step("targets", 3)
        self.assertEqual(got, row(answer))
        for name in ("objects", "forced", "unmatched_objects", "best_iou_mean"):
            self.assertIsNone(got[name])
        self.assertGreater(got["positives"], 0)
        self.assertIsNone(self.describe("targets")["latest"]["best_iou_histogram"])
        last = list(csv.DictReader(io.StringIO(self.daemon.get("/v1/runs/targets/steps?format=csv").body.decode())))[-1]
        self.assertEqual((last["objects"], last["best_iou_mean"]), ("", ""))

    def test_no_objects(self):
        batch = lossd.random_batch(1, n=2, p=9, c=3, objects=0)
        self.record("empty", 0, batch.safetensors())
        latest = self.describe("empty")["latest"]
        self.assertEqual((latest["objects"], latest["best_iou_mean"], latest["best_iou_histogram"]),
                         (0, None, [0] * 10))

    def test_description(self):
        begin = time.time() - 1
        first = self.record("described", 10)
        second = self.record("described", 20, lossd.bccd().pick([0]).safetensors())
        got = self.describe("described")
        latest = got.pop("latest")
        self.assertEqual(list(got), ["name", "steps", "first_step", "last_step", "first_time", "last_time", "last_loss"])
        self.assertEqual((got["name"], got["steps"], got["first_step"], got["last_step"]), ("described", 2, 10, 20))
        self.assertEqual(got["last_loss"], second["loss"]["total"])
        self.assertEqual(numbers(latest), row(second))
        self.assertEqual(latest["best_iou_histogram"], second["assignment"]["best_iou"]["histogram"])
        self.near(latest["compute_ms"], second["timing_ms"]["compute"], 1e-12)
        self.assertEqual(list(latest), ["step", "time", *FIELDS, "compute_ms", "best_iou_histogram"])
        for text in (got["first_time"], got["last_time"], latest["time"]):
            self.assertRegex(text, TIME)
            seconds = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
            self.assertLess(abs(seconds - begin), 60)
        self.assertEqual(latest["time"], got["last_time"])
        self.assertEqual([r for r in all_runs(self.daemon) if r["name"] == "described"], [got])
        self.assertNotEqual(row(first), row(second))
        # a step that comes late is not the last one
        self.record("described", 15, body(40))
        late = self.describe("described")
        self.assertEqual((late["steps"], late["last_step"], late["last_loss"]), (3, 20, got["last_loss"]))
        self.assertGreaterEqual(late["last_time"], got["last_time"])

    def test_replaced(self):
        for step in (4, 5, 6):
            self.record("replaced", step, body(step))
        self.record("replaced", 5, body(30))
        self.record("replaced", 6, body(40))
        got = self.describe("replaced")
        self.assertEqual((got["steps"], got["last_step"]), (3, 6))
        self.assertEqual(got["last_loss"], self.step("replaced", 6)["total"])
        self.assertEqual(len(all_steps(self.daemon, "replaced")), 3)

    def test_steps_and_names(self):
        for run in ("a", "A", ".", "..", "-", "_", "0", "x" * 64, "a.b-c_D", "con", "lossd"):
            with self.subTest(run):
                self.record(run, 1 << 53)
                self.record(run, 0)
                self.assertEqual(self.describe(run)["last_step"], 1 << 53)
        names = self.names()
        self.assertEqual(names, sorted(names))
        self.assertEqual(len([n for n in names if n in ("a", "A")]), 2)

    def refused(self, query, status=422, code=None, pointer=None, data=TINY):
        before = self.names()
        self.problem(self.daemon.post("/v1/loss" + query, data), status, code, None, pointer)
        self.assertEqual(self.names(), before)

    def test_refused_options(self):
        for run in ("x" * 65, "", "a%20b", "a%2Fb", "a+b", "%C3%A9", "a:b", "a'b", "%3Cscript%3E", "a;b"):
            with self.subTest(run=run):
                self.refused("?run=%s&step=1" % run, 422, "invalid_option", "run")
        for step in ("-1", "", "x", "1.5", "1e3", "%2B1", "9007199254740993", "9" * 30, "0x1", "NaN", "1%20"):
            with self.subTest(step=step):
                self.refused("?run=refused&step=" + step, 422, "invalid_option", "step")
        self.refused("?run=refused", 422, "missing_member")
        self.refused("?step=1", 422, "missing_member")
        self.refused("?run=refused&step=1&run=refused2", 422, "duplicate_option")
        self.problem(self.daemon.post("/v1/match?run=refused&step=1", lossd.tiny().json(predictions=False)), 422,
                     "unknown_member", "/v1/loss")
        for member, value in (("step", "1"), ("step", 1.5), ("step", True), ("step", -1), ("run", 5), ("run", None)):
            with self.subTest(member=member, value=value):
                options = dict({"run": "refused", "step": 1}, **{member: value})
                self.problem(self.daemon.post("/v1/loss", lossd.tiny().json(**options)), 422,
                             "type_mismatch invalid_option missing_member")
        self.unknown("refused")

    def test_refused_batches(self):
        """Nothing is recorded of them."""
        nan = lossd.tiny()
        nan.conf[0] = float("nan")
        huge = lossd.tiny()
        huge.conf = lossd.floats([3e38, -3e38, 0, 0, 0, 0])
        for name, query, data, status, code in (
                ("nan", "", nan.safetensors(), 422, "prediction_not_finite"),
                ("shape", "&priors=ssd300", lossd.random_batch(1, 1, 9, 3).safetensors(), 422, None),
                ("overflow", "", huge.safetensors(), 422, "loss_overflow"),
                ("half", "", TINY[:-1], 400, None),
                ("unknown", "&criterion=nothing", TINY, 422, "unknown_criterion")):
            with self.subTest(name):
                self.refused("?run=refused&step=1" + query, status, code, None, data)
        with lossd.Daemon("--memory-limit", "4M", "--max-body", "2M") as daemon:
            data = lossd.random_batch(3, 1, 8732, 21).safetensors()
            got = daemon.post(target("costly", 1, "&include=dense_gradients"), data)
            self.problem(got, 413, "too_expensive")
            got = daemon.post(target("costly", 1), bytes(3 << 20), lossd.SAFETENSORS)
            self.problem(got, 413, "body_too_large")
            self.assertEqual(self.names(daemon), [])
            self.assertFalse(os.path.exists(daemon.data))   # made when it is needed

    def test_many_at_once(self):
        """Threads that write into two runs: every step is there, once, whoever shared a commit with whom."""
        def client(i):
            want = {}
            with self.daemon.connect() as connection:
                for step in range(i, 400, 8):
                    for run in ("crowd-0", "crowd-1"):
                        answer = connection.request("POST", target(run, step), body(step % 40 + (run == "crowd-1")))
                        want[run, step] = row(self.good(answer))
            return want

        want = {}
        for part in lossd.together([lambda i=i: client(i) for i in range(8)]):
            want.update(part)
        for run in ("crowd-0", "crowd-1"):
            rows = all_steps(self.daemon, run, 97)
            self.assertEqual([r["step"] for r in rows], list(range(400)))
            self.assertEqual([numbers(r) for r in rows], [want[run, step] for step in range(400)])
            self.assertEqual(self.describe(run)["steps"], 400)

    def test_vanishing_clients(self):
        """Who goes after the last byte has recorded it or not; a step is whole."""
        want = row(self.good(self.daemon.post("/v1/loss", body(3))))
        for step in range(40):
            connection = self.daemon.connect()
            connection.start("POST", target("gone", step), {"Content-Length": len(TINY)})
            connection.send(body(3))
            if step % 2:
                connection.reset()
            else:
                connection.close()
        self.record("gone", 1000, body(3))
        rows = all_steps(self.daemon, "gone")
        self.assertEqual([numbers(r) for r in rows], [want] * len(rows))
        self.assertEqual(self.describe("gone")["steps"], len(rows))


class Telling(Case):
    """Lists, pages, points, CSV, entity tags."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rng = random.Random(6)
        cls.values = [rng.uniform(2, 90) for _ in range(1500)]
        cls.values[700] = cls.values[701] = 95.0
        case = cls("fill")
        try:
            cls.want = case.fill("long", range(1500), cls.daemon, cls.values)
            for i in range(25):
                case.record("other-%02d" % i, i, daemon=cls.daemon)
        except BaseException:
            cls.daemon.process.kill()
            raise

    def get(self, target, **headers):
        return self.daemon.get(target, **headers)

    def test_pages(self):
        rows = all_steps(self.daemon, "long", 333)
        self.assertEqual([r["step"] for r in rows], list(range(1500)))
        self.assertEqual([numbers(r) for r in rows], [self.want[i] for i in range(1500)])
        times = [r["time"] for r in rows]
        for text in times:
            self.assertRegex(text, TIME)
        for query, first, last, following in (("", 0, 499, 499), ("?after=-1&limit=1", 0, 0, 0),
                                              ("?after=1498", 1499, 1499, None), ("?limit=1000", 0, 999, 999),
                                              ("?after=499&limit=1000", 500, 1499, None),
                                              ("?after=0&limit=2", 1, 2, 2), ("?format=json&limit=3", 0, 2, 2)):
            with self.subTest(query):
                got = self.good(self.get("/v1/runs/long/steps" + query))
                self.assertEqual(got["steps"], rows[first:last + 1])
                self.assertEqual(got["next"], following)
        for after in ("1499", str(1 << 53)):
            got = self.good(self.get("/v1/runs/long/steps?after=" + after))
            self.assertEqual(got, {"steps": [], "next": None})

    def test_lists(self):
        every = self.good(self.get("/v1/runs"))
        self.assertIsNone(every["next"])
        names = [r["name"] for r in every["runs"]]
        self.assertEqual(names, ["long"] + ["other-%02d" % i for i in range(25)])
        for limit in (1, 7, 13, 26, 1000):
            self.assertEqual(all_runs(self.daemon, limit), every["runs"])
        page = self.good(self.get("/v1/runs?limit=7"))
        self.assertEqual((len(page["runs"]), page["next"]), (7, "other-05"))
        page = self.good(self.get("/v1/runs?after=other-2"))
        self.assertEqual([r["name"] for r in page["runs"]], names[21:])
        self.assertEqual(self.good(self.get("/v1/runs?after=zzz")), {"runs": [], "next": None})
        self.assertEqual(self.good(self.get("/v1/runs?after=")), every)
        self.assertEqual(self.good(self.get("/v1/runs?after=%C3%A9%27%22")), {"runs": [], "next": None})

    def extremes(self, rows):
        """The steps that are never left out: of each number the first minimum and the first maximum."""
        out = {rows[0]["step"], rows[-1]["step"]}
        for name in recorded.CHARTED:
            known = [r for r in rows if r[name] is not None]
            if known:
                out.add(min(known, key=lambda r: (r[name], r["step"]))["step"])
                out.add(max(known, key=lambda r: (r[name], -r["step"]))["step"])
        return out

    def test_points(self):
        rows = all_steps(self.daemon, "long")
        by_step = {r["step"]: r for r in rows}
        for points in (14, 20, 50, 137, 500, 1499, 1500, 2000):
            with self.subTest(points):
                page = self.good(self.get("/v1/runs/long/steps?points=%d" % points))
                got = page["steps"]
                self.assertIsNone(page["next"])
                self.assertLessEqual(len(got), points)
                steps = [r["step"] for r in got]
                self.assertEqual(steps, sorted(set(steps)))
                self.assertEqual(got, [by_step[s] for s in steps])   # rows that are there, as they are
                self.assertLessEqual(self.extremes(rows), set(steps))
                if points >= 1500:
                    self.assertEqual(got, rows)
        for points in range(4, 14):   # too few for all of that; some of it, in order
            steps = [r["step"] for r in self.good(self.get("/v1/runs/long/steps?points=%d" % points))["steps"]]
            self.assertLessEqual(len(steps), points)
            self.assertEqual((steps[0], steps[-1]), (0, 1499))
            self.assertIn(700, steps)   # of two equal maxima of the total the first
            self.assertNotIn(701, steps)
        got = self.good(self.get("/v1/runs/long/steps?points=100&after=999"))["steps"]
        self.assertLessEqual(self.extremes(rows[1000:]), {r["step"] for r in got})
        self.assertLessEqual(len(got), 100)
        self.assertEqual(self.good(self.get("/v1/runs/long/steps?points=100&after=1499"))["steps"], [])

    def test_csv(self):
        for query in ("", "limit=7&after=3", "points=60", "after=1499", "limit=1000"):
            with self.subTest(query):
                answer = self.get("/v1/runs/long/steps?format=csv&" + query)
                self.assertEqual(answer.status, 200, answer)
                self.assertEqual(answer.header("Content-Type"), "text/csv; charset=utf-8; header=present")
                self.assertTrue(answer.body.endswith(b"\r\n"))
                table = list(csv.reader(io.StringIO(answer.body.decode("ascii"), newline="")))
                self.assertEqual(table[0], ["step", "time", *FIELDS, "compute_ms"])
                page = self.good(self.get("/v1/runs/long/steps?format=json&" + query))
                self.assertEqual(len(table) - 1, len(page["steps"]))
                for line, want in zip(table[1:], page["steps"]):
                    self.assertEqual(line[:2], [str(want["step"]), want["time"]])
                    self.assertEqual([float(v) if v else None for v in line[2:]],
                                     [want[name] for name in table[0][2:]])

    def test_entity_tags(self):
        self.record("tagged", 1)
        paths = ["/v1/runs", "/v1/runs?limit=3", "/v1/runs/tagged", "/v1/runs/tagged/steps",
                 "/v1/runs/tagged/steps?format=csv", "/v1/runs/tagged/steps?points=10"]
        old = {}
        for path in paths:
            with self.subTest(path):
                answer = self.get(path)
                tag = old[path] = answer.header("ETag")
                self.assertRegex(tag, r'^"[!-~]+"$')
                self.assertEqual(answer.header("Cache-Control"), "no-cache")
                for given in (tag, "W/" + tag, '"x", %s' % tag, '"x",W/"y",\t%s , "z"' % tag, "*"):
                    same = self.get(path, **{"If-None-Match": given})
                    self.assertEqual((same.status, same.body, same.header("ETag")), (304, b"", tag), given)
                    self.assertIsNone(same.header("Content-Type"))
                    self.assertTrue(same.header("X-Request-Id"))
                for given in ('"x"', tag[:-1], tag.strip('"'), '"%s' % tag, "", "W/", '"' + tag[1:-2] + '"'):
                    self.assertEqual(self.get(path, **{"If-None-Match": given}).status, 200, given)
                head = self.daemon.request("HEAD", path)
                self.assertEqual((head.status, head.header("ETag"), head.header("Content-Length"), head.body),
                                 (200, tag, str(len(answer.body)), b""))
                self.assertEqual(self.daemon.request("HEAD", path, None, {"If-None-Match": tag}).status, 304)
        self.record("tagged", 1, body(9))   # replaced is new
        for path in paths:
            answer = self.get(path, **{"If-None-Match": old[path]})
            self.assertEqual(answer.status, 200)
            self.assertNotEqual(answer.header("ETag"), old[path])
        before = self.get("/v1/runs/tagged/steps").header("ETag")
        everything = self.get("/v1/runs").header("ETag")
        self.gone("tagged")
        self.problem(self.get("/v1/runs/tagged/steps", **{"If-None-Match": before}), 404, "unknown_run")
        self.problem(self.get("/v1/runs/tagged/steps", **{"If-None-Match": "*"}), 404, "unknown_run")
        self.assertEqual(self.get("/v1/runs", **{"If-None-Match": everything}).status, 200)
        for _ in range(2):   # as often as it was written before
            self.record("tagged", 1)
        again = self.get("/v1/runs/tagged/steps", **{"If-None-Match": before})
        self.assertEqual(again.status, 200)
        self.gone("tagged")

    def gone(self, run):
        answer = self.daemon.delete("/v1/runs/" + run)
        self.assertEqual((answer.status, answer.body), (204, b""), answer)
        self.unknown(run)

    def test_delete(self):
        for _ in range(3):
            self.fill("deleted", range(100, 130))
            self.assertEqual(self.describe("deleted")["steps"], 30)
            self.gone("deleted")
            for path in ("/v1/runs/deleted", "/v1/runs/deleted/steps", "/v1/runs/deleted/steps?format=csv"):
                self.problem(self.get(path), 404, "unknown_run")
            self.problem(self.daemon.delete("/v1/runs/deleted"), 404, "unknown_run")
            self.assertNotIn("deleted", self.names())
            self.record("deleted", 5)   # begins anew
            got = self.describe("deleted")
            self.assertEqual((got["steps"], got["first_step"], got["last_step"]), (1, 5, 5))
            self.assertEqual(len(all_steps(self.daemon, "deleted")), 1)
            self.gone("deleted")
        self.assertEqual(len(all_steps(self.daemon, "long")), 1500)

    def test_unknown_runs(self):
        for name in ("nothing", "LONG", "lon", "long%20", "long%27%20OR%201=1", "%3Cscript%3E", "x" * 64, "x" * 65,
                     "x" * 300, "%E2%80%AE", "%22", "..", ".", "a%5Cb", "long:1", "%25", "other%"):
            for path in ("/v1/runs/%s", "/v1/runs/%s/steps", "/v1/runs/%s/steps?format=csv&points=10"):
                with self.subTest(path % name):
                    answer = self.get(path % name)
                    if name.endswith("%"):
                        self.problem(answer, 400, "uri_malformed")
                        continue
                    self.problem(answer, 404, "unknown_run")
                    self.assertLess(len(answer.body), 700)
            if not name.endswith("%"):
                self.problem(self.daemon.delete("/v1/runs/" + name), 404, "unknown_run")
        for path in ("/v1/runs/", "/v1/runs//steps", "/v1/runs/long/", "/v1/runs/long/steps/", "/v1/runs/long/step",
                     "/v1/runs/a%2Fb", "/v1/run", "/v1/runs/long/steps/1"):
            self.problem(self.get(path), 404, "not_found")

    def test_methods(self):
        for path, allow in (("/v1/runs", "GET, HEAD"), ("/v1/runs/long", "GET, HEAD, DELETE"),
                            ("/v1/runs/long/steps", "GET, HEAD")):
            for method in ("POST", "PUT", "PATCH", "OPTIONS", "DELETE"):
                if method not in allow:
                    answer = self.daemon.request(method, path)
                    self.problem(answer, 405, "method_not_allowed")
                    self.assertEqual(answer.header("Allow"), allow)

    def test_refused_options(self):
        for path, queries in (
                ("/v1/runs", ("limit=0", "limit=1001", "limit=x", "limit=", "limit=-1", "limit=1.5", "limit=%201",
                              "limit=1&limit=2", "after=a&after=b", "afer=a", "points=4", "format=csv", "limit")),
                ("/v1/runs/long", ("limit=1", "after=1", "format=csv")),
                ("/v1/runs/long/steps",
                 ("limit=0", "limit=1001", "limit=x", "points=3", "points=2001", "points=0", "points=x",
                  "points=10&limit=5", "limit=5&points=10", "format=xml", "format=", "format=CSV", "after=-2", "after=x",
                  "after=", "after=9007199254740993", "after=1&after=2", "points=5&points=5", "x=1", "run=long",
                  "limit=" + "9" * 40))):
            for query in queries:
                with self.subTest(path + "?" + query):
                    self.problem(self.get(path + "?" + query), 422,
                                 "invalid_option unknown_member duplicate_option", None, "^/?[a-z]+$")
        for query in ("", "?points=5"):
            self.problem(self.daemon.delete("/v1/runs/nothing" + query), 422 if query else 404)
        self.problem(self.daemon.delete("/v1/runs/long?sure=1"), 422, "unknown_member")
        self.assertEqual(self.describe("long")["steps"], 1500)

    def test_questions_under_load(self):
        """Who polls gets whole answers, never older than what he has, while others write."""
        stop, seen = threading.Event(), [0, 0]

        def writer():
            try:
                self.fill("busy", range(600))
            finally:
                stop.set()

        def poller():
            tag, have = "", 0
            with self.daemon.connect() as connection:
                while not stop.is_set():
                    answer = connection.request("GET", "/v1/runs/busy/steps?limit=1000", None, {"If-None-Match": tag})
                    if answer.status == 404:
                        continue
                    if answer.status == 304:
                        seen[1] += 1
                    else:
                        rows = self.good(answer)["steps"]
                        self.assertGreaterEqual(len(rows), have)
                        have, tag = len(rows), answer.header("ETag")
                        seen[0] += 1
                    head = connection.request("HEAD", "/v1/runs/busy", None, {"If-None-Match": tag})
                    self.assertIn(head.status, (200, 304))
                    self.assertEqual(connection.request("HEAD", "/v1/runs").status, 200)

        lossd.together([writer, poller, poller])
        self.assertGreater(seen[0], 2)
        self.assertEqual(len(all_steps(self.daemon, "busy")), 600)
        self.assertEqual(self.daemon.delete("/v1/runs/busy").status, 204)


class Keeping(Case):
    """Over restarts, and not for ever."""
    FLAGS = None

    def test_restart(self):
        for flags in ((), ("--durability", "process"), ("--durability=disk",)):
            with self.subTest(flags), tempfile.TemporaryDirectory() as home:
                data = os.path.join(home, "data")
                with lossd.Daemon("--data-dir", data, *flags) as daemon:
                    want = self.fill("kept", range(40), daemon)
                    self.record("other", 7, lossd.bccd().pick([0]).safetensors(), daemon=daemon)
                    runs, rows = all_runs(daemon), all_steps(daemon, "kept")
                    tag = daemon.get("/v1/runs/kept").header("ETag")
                    latest = self.describe("other", daemon)
                    self.assertEqual({r["step"]: numbers(r) for r in rows}, want)
                self.assertEqual(os.stat(data).st_mode & 0o777, 0o700)
                self.assertEqual(os.listdir(data), [FILE])   # nothing is left over
                with lossd.Daemon("--data-dir", data, *flags) as daemon:
                    self.assertEqual((all_runs(daemon), all_steps(daemon, "kept")), (runs, rows))
                    self.assertEqual(daemon.get("/v1/runs/kept", **{"If-None-Match": tag}).status, 304)
                    self.assertEqual(self.describe("other", daemon), latest)
                    self.record("kept", 40, daemon=daemon)

    def test_a_list_of_another_process_is_another(self):
        with lossd.Daemon() as daemon:
            tags = {daemon.get("/v1/runs").header("ETag")}
            daemon.stop()
            with lossd.Daemon("--data-dir", daemon.data) as again:
                tags.add(again.get("/v1/runs").header("ETag"))
                self.assertEqual(len(tags), 2)

    def test_bad_flags(self):
        for flags in (("--durability", "tape"), ("--durability", ""), ("--keep-steps", "x"), ("--keep-steps", "-1"),
                      ("--keep-days", "-1"), ("--keep-days", "40000"), ("--keep-days", "1.5")):
            status, out, err = lossd.command("--listen", "127.0.0.1:0", *flags)
            self.assertEqual((status, out, err.count("\n")), (2, "", 1), (flags, err))
            self.assertIn(flags[0], err)
        status, out, err = lossd.command("--listen", "127.0.0.1:0", env={"LOSSD_KEEP_STEPS": "-5"})
        self.assertEqual(status, 2, err)

    def test_keep_steps(self):
        with lossd.Daemon("--keep-steps", "64") as daemon:
            want = self.fill("much", range(300), daemon)
            self.fill("little", range(20), daemon)
            rows = all_steps(daemon, "much")
            self.assertIn(len(rows), range(64, 64 + 5))
            steps = [r["step"] for r in rows]
            self.assertEqual(steps, list(range(300 - len(rows), 300)))   # the highest ones
            self.assertEqual([numbers(r) for r in rows], [want[s] for s in steps])
            got = self.describe("much", daemon)
            self.assertEqual((got["steps"], got["first_step"], got["last_step"]), (len(rows), steps[0], 299))
            self.assertEqual(len(all_steps(daemon, "little")), 20)
            daemon.stop()
            with lossd.Daemon("--data-dir", daemon.data, "--keep-steps", "10") as again:   # it is less now
                self.assertTrue(lossd.until(lambda: self.describe("little", again)["steps"] == 10 and
                                            self.describe("much", again)["steps"] == 10, 15))
                self.assertEqual([r["step"] for r in all_steps(again, "little")], list(range(10, 20)))

    def test_keep_days(self):
        with lossd.Daemon("--keep-days", "3") as daemon:
            self.fill("old", range(30), daemon)
            self.record("young", 1, daemon=daemon)
            daemon.stop()
            db = sqlite3.connect(os.path.join(daemon.data, FILE))
            db.execute("UPDATE run SET last_us = last_us - 4 * 86400 * 1000000 WHERE name = 'old'")
            db.commit()
            db.close()
            with lossd.Daemon("--data-dir", daemon.data) as again:   # all are kept
                self.assertEqual(self.names(again), ["old", "young"])
                time.sleep(0.2)
                self.assertEqual(self.names(again), ["old", "young"])
            with lossd.Daemon("--data-dir", daemon.data, "--keep-days", "5") as again:
                time.sleep(0.2)
                self.assertEqual(self.names(again), ["old", "young"])
            with lossd.Daemon("--data-dir", daemon.data, "--keep-days", "3") as again:
                self.assertTrue(lossd.until(lambda: self.names(again) == ["young"], 10))
                self.unknown("old", again)
                self.record("old", 5, daemon=again)
                self.assertEqual(self.describe("old", again)["steps"], 1)

    def test_drain_loses_nothing(self):
        """What was answered before the end is there; what was received is answered."""
        for delay in (0.05, 0.15, 0.3):
            daemon = lossd.Daemon("--drain-timeout", "20")
            acknowledged, began = [set() for _ in range(8)], threading.Event()

            def client(i):
                for step in range(i, 1 << 30, 8):
                    try:
                        with daemon.connect() as connection:
                            answer = connection.request("POST", target("drained", step), TINY)
                    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, lossd.Closed):
                        return
                    if answer.status != 200:
                        self.problem(answer, 503, "draining")
                        return
                    acknowledged[i].add(step)
                    began.set()

            def stop():
                began.wait(20)
                time.sleep(delay)
                daemon.signal(signal.SIGTERM)

            lossd.together([lambda i=i: client(i) for i in range(8)] + [stop])
            self.assertEqual(daemon.wait(), 0, daemon.log()[-2000:])
            self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])
            want = set().union(*acknowledged)
            with lossd.Daemon("--data-dir", daemon.data) as again:
                steps = {r["step"] for r in all_steps(again, "drained")}
                self.assertLessEqual(want, steps)
                self.assertLessEqual(len(steps - want), 8)


class Starts(Case):
    """What is found at the start: used, or refused with a reason and left alone."""
    FLAGS = None

    def setUp(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")
        self.addCleanup(self.home.cleanup)
        os.chmod(self.home.name, 0o755)
        self.data = os.path.join(self.home.name, "data")
        self.file = os.path.join(self.data, FILE)

    def prepared(self, n=40, clean=True):
        """A directory with a run, left by a daemon that ended well, or not."""
        daemon = lossd.Daemon("--data-dir", self.data)
        self.fill("prepared", range(n), daemon)
        self.assertEqual(daemon.stop(), 0) if clean else daemon.kill()

    def contents(self):
        out = {}
        for name in os.listdir(self.data):
            if not name.endswith("-shm"):   # an index of the log, made anew whenever it is opened
                with open(os.path.join(self.data, name), "rb") as file:
                    out[name] = file.read()
        return out

    def refused(self, code, text, *flags, **options):
        """It says why, in one line, and changes nothing."""
        before = self.contents()
        begin = time.monotonic()
        with self.assertRaises(RuntimeError) as failure:
            lossd.Daemon("--data-dir", self.data, *flags, **options)
        self.assertLess(time.monotonic() - begin, 8)
        self.assertRegex(str(failure.exception), r"\(exit %d\): stdout ''" % code)
        self.assertRegex(str(failure.exception), text)
        self.assertIn(FILE if code != 75 else self.data, str(failure.exception))
        self.assertEqual(self.contents(), before)

    def damage(self, at, data):
        with open(self.file, "r+b") as out:
            out.seek(at)
            out.write(data)

    def test_header_garbage(self):
        for clean in (True, False):
            with self.subTest(clean):
                self.prepared(clean=clean)
                self.damage(0, b"not a database, whatever its name says" * 30)
                self.refused(65, r"not a database.*left as it is.*\.recover.*--data-dir")
                self.refused(65, "not a database")   # nor the next time
                shutil.rmtree(self.data)

    def test_page_garbage(self):
        for clean in (True, False):
            for at in (1, 2, -1):
                with self.subTest(clean, at=at):
                    self.prepared(1500 if clean else 900, clean=clean)
                    size = os.path.getsize(self.file)
                    self.assertGreater(size, 8 * 4096)
                    self.damage(at * 4096 if at > 0 else size - 4096, os.urandom(4096))
                    if clean:
                        self.refused(65, r"malformed.*left as it is.*\.recover.*--data-dir")
                        self.refused(65, "malformed")
                    else:   # what is in the log may replace it
                        try:
                            with lossd.Daemon("--data-dir", self.data) as daemon:
                                self.assertEqual(len(all_steps(daemon, "prepared")), 900)
                        except RuntimeError:
                            self.refused(65, "malformed")
                    shutil.rmtree(self.data)

    def test_truncated(self):
        self.prepared(1500)
        os.truncate(self.file, os.path.getsize(self.file) // 2)
        self.refused(65, "malformed")
        os.truncate(self.file, 10)
        self.refused(65, "not a database")
        os.truncate(self.file, 0)   # an empty database
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(self.names(daemon), [])
            self.record("new", 1, daemon=daemon)

    def test_truncated_log(self):
        """What the log has lost is lost; what is left is whole."""
        self.prepared(200, clean=False)
        log = self.file + "-wal"
        os.truncate(log, os.path.getsize(log) * 2 // 3)
        with lossd.Daemon("--data-dir", self.data) as daemon:
            rows = all_steps(daemon, "prepared")
            self.assertIn(len(rows), range(20, 200))
            self.assertEqual(self.describe("prepared", daemon)["steps"], len(rows))
            for r in rows:
                want = row(self.good(daemon.post("/v1/loss", body(r["step"] % 50))))
                self.assertEqual(numbers(r), want)
            self.record("prepared", 500, daemon=daemon)

    def test_missing_table(self):
        self.prepared()
        with sqlite3.connect(self.file) as db:
            db.execute("DROP TABLE chunk")
        db.close()
        self.refused(65, "malformed")

    def test_newer_version(self):
        for clean in (True, False):
            with self.subTest(clean):
                self.prepared(clean=clean)
                db = sqlite3.connect(self.file)
                with db:
                    db.execute("PRAGMA user_version = 99")
                if not clean:   # it is in the log
                    shutil.copytree(self.data, self.data + ".copy")
                db.close()
                if not clean:
                    shutil.rmtree(self.data)
                    os.rename(self.data + ".copy", self.data)
                self.refused(65, "newer version.*99")
                with sqlite3.connect(self.file) as db:
                    db.execute("PRAGMA user_version = 1")
                db.close()
                with lossd.Daemon("--data-dir", self.data) as daemon:
                    self.assertEqual(len(all_steps(daemon, "prepared")), 40)
                shutil.rmtree(self.data)

    @ROOT
    def test_not_ours(self):
        self.prepared()
        for data, file in ((0o555, 0o444), (0o755, 0o644), (0o777, 0o644), (0o755, 0o600), (0o700, 0o600), (0, 0)):
            with self.subTest(data="%o" % data, file="%o" % file):
                os.chmod(self.data, data)
                os.chmod(self.file, file)
                self.refused(73, "--data-dir", user=65532)
        os.chmod(self.data, 0o755)
        os.chmod(self.file, 0o644)
        for path in (self.data, self.file):
            os.chown(path, 65532, 65532)
        with lossd.Daemon("--data-dir", self.data, user=65532) as daemon:
            self.record("prepared", 99, daemon=daemon)

    @ROOT
    def test_a_directory_that_is_not_ours(self):
        """Nothing was recorded in it, so there is nothing to lose: losses are answered, and records are refused."""
        os.mkdir(self.data, 0o755)
        with lossd.Daemon("--data-dir", self.data, user=65532) as daemon:
            self.problem(daemon.post(target("a", 1), TINY), 503, "store_unavailable")
            self.compute(daemon)
            self.assertEqual(self.names(daemon), [])
            os.chown(self.data, 65532, 65532)
            self.record("a", 1, daemon=daemon)   # without a restart

    def test_a_directory_in_its_place(self):
        os.makedirs(os.path.join(self.file, "x"))
        with self.assertRaisesRegex(RuntimeError, r"exit 73.*%s" % FILE):
            lossd.Daemon("--data-dir", self.data)
        self.assertEqual(os.listdir(self.data), [FILE])

    def test_two_daemons(self):
        """The directory is one's own as soon as a run is in it."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("first", 1, daemon=daemon)
            self.assertEqual(sorted(n for n in os.listdir(self.data) if "runs" not in n), [])
            stop, done = threading.Event(), [0]

            def client():
                while not stop.is_set():
                    self.record("first", done[0], daemon=daemon)
                    done[0] += 1

            def second():
                try:
                    for _ in range(3):
                        begin = time.monotonic()
                        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--data-dir", self.data)
                        self.assertEqual((status, out, err.count("\n")), (75, "", 1), err)
                        self.assertLess(time.monotonic() - begin, 1 if "test" not in lossd.BINARY else 3)
                        self.assertRegex(err, "another daemon uses the data directory.*" + re.escape(self.data))
                finally:
                    stop.set()

            lossd.together([client, second])
            self.assertEqual(self.describe("first", daemon)["steps"], done[0])
        with lossd.Daemon("--data-dir", self.data) as daemon:   # nothing is left of a lock
            self.assertEqual(self.names(daemon), ["first"])

    def test_two_daemons_from_the_beginning(self):
        with lossd.Daemon("--data-dir", self.data) as one, lossd.Daemon("--data-dir", self.data) as two:
            self.record("mine", 1, daemon=one)
            self.problem(two.post(target("theirs", 1), TINY), 503, "store_unavailable", "another daemon")
            self.compute(two)
            one.stop()
            self.assertTrue(lossd.until(lambda: two.post(target("theirs", 1), TINY).status == 200, 5))
            self.assertEqual(self.names(two), ["mine", "theirs"])

    def test_made_when_it_is_needed(self):
        with lossd.Daemon("--data-dir", self.data + "/") as daemon:
            self.assertEqual(self.names(daemon), [])
            self.problem(daemon.delete("/v1/runs/x"), 404, "unknown_run")
            self.unknown("x", daemon)
            self.compute(daemon)
            self.assertFalse(os.path.exists(self.data))
            self.record("x", 0, daemon=daemon)
            self.assertEqual(os.stat(self.data).st_mode & 0o777, 0o700)

    def test_again_and_again(self):
        """Restarted under load on the same port: what was acknowledged stays."""
        times = int(os.environ.get("RESTARTS", "12"))
        acknowledged, stop = [set() for _ in range(4)], threading.Event()
        daemon = lossd.Daemon("--data-dir", self.data)
        port = daemon.port

        def client(i):
            step = i
            while not stop.is_set():
                try:
                    with lossd.Connection(port) as connection:
                        while not stop.is_set():
                            answer = connection.request("POST", target("again", step), TINY)
                            if answer.status == 200:
                                acknowledged[i].add(step)
                                step += 4
                            else:
                                self.problem(answer, 503, "draining")
                except (OSError, lossd.Closed):
                    time.sleep(0.005)

        def restart():
            nonlocal daemon
            try:
                for turn in range(times):
                    before = len(acknowledged[0])
                    self.assertTrue(lossd.until(lambda: len(acknowledged[0]) > before + 3))
                    self.assertEqual(daemon.stop(), 0, daemon.log()[-2000:])
                    self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])
                    begin = time.monotonic()
                    daemon = lossd.Daemon("--data-dir", self.data, "--listen", "127.0.0.1:%d" % port)
                    self.assertLess(time.monotonic() - begin, 2 if "test" not in lossd.BINARY else 10)
            finally:
                stop.set()

        lossd.together([lambda i=i: client(i) for i in range(4)] + [restart])
        with daemon:
            steps = {r["step"] for r in all_steps(daemon, "again")}
            want = set().union(*acknowledged)
            self.assertLessEqual(want, steps)
            self.assertLessEqual(len(steps - want), 4)
            self.assertEqual(sorted(os.listdir(self.data)), [FILE, FILE + "-shm", FILE + "-wal"])


class Faults(Case):
    """What fails while it runs: records are refused with the reason, all else goes on, and it works again by itself."""
    FLAGS = None

    def setUp(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")
        self.addCleanup(self.home.cleanup)
        self.data = os.path.join(self.home.name, "data")
        self.file = os.path.join(self.data, FILE)

    def refused(self, daemon, status, code, text=""):
        answer = daemon.post(target("refused", 1), TINY)
        self.problem(answer, status, code, text)
        if status == 503:
            self.assertRegex(answer.header("Retry-After") or "", r"^[1-9]\d*$")
        self.compute(daemon)

    def ready(self, daemon, status, seconds=8):
        self.assertTrue(lossd.until(lambda: daemon.get("/readyz").status == status, seconds), daemon.log()[-500:])

    def warnings(self, daemon):
        return [line for line in daemon.log().splitlines() if "event=store" in line]

    def locked(self):
        other = sqlite3.connect(self.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self.addCleanup(other.close)
        return other

    def test_locked(self):
        """Past the time that a backup may take; nobody else waits, whoever waits for the disk."""
        with lossd.Daemon("--data-dir", self.data, "--workers", "1", "--queue-limit", "4") as daemon:
            self.record("a", 1, daemon=daemon)
            self.good(daemon.post("/v1/loss", TINY))
            other = self.locked()
            stop, slowest = threading.Event(), [0, 0]

            def recorder(i):
                answer = daemon.post(target("locked", i), TINY)
                self.problem(answer, 503, "store_busy", "lock")
                self.assertRegex(answer.header("Retry-After") or "", r"^[1-9]\d*$")

            def computer():
                time.sleep(0.3)   # they all wait
                while not stop.is_set():
                    for i, ask in enumerate((lambda: daemon.post("/v1/loss", TINY),
                                             lambda: daemon.get("/v1/runs/a/steps"))):
                        begin = time.monotonic()
                        self.good(ask())
                        slowest[i] = max(slowest[i], time.monotonic() - begin)
                    self.assertEqual(daemon.get("/readyz").status, 200)

            def recorders():
                try:
                    begin = time.monotonic()
                    lossd.together([lambda i=i: recorder(i) for i in range(6)])
                    self.assertLess(time.monotonic() - begin, 15)
                finally:
                    stop.set()

            lossd.together([recorders, computer])
            self.assertLess(max(slowest), 1.0, slowest)
            deleted = daemon.delete("/v1/runs/a")
            self.problem(deleted, 503, "store_busy")
            other.execute("ROLLBACK")
            self.record("a", 2, daemon=daemon)
            self.assertEqual(self.names(daemon), ["a"])

    def test_a_short_lock(self):
        """Is waited for."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("a", 1, daemon=daemon)
            other = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")

            def release():
                time.sleep(0.4)
                other.execute("ROLLBACK")
                return time.monotonic()

            def recorded_at():
                self.record("a", 2, daemon=daemon)
                return time.monotonic()

            released, at = lossd.together([release, recorded_at])
            other.close()
            self.assertGreater(at, released)

    def test_deadline_while_locked(self):
        """504: nobody knows whether it will be recorded; the same step again is."""
        with lossd.Daemon("--data-dir", self.data, "--request-timeout", "1") as daemon:
            self.record("a", 1, daemon=daemon)
            other = self.locked()
            begin = time.monotonic()
            self.problem(daemon.post(target("late", 1), TINY), 504, "timeout")
            self.assertLess(time.monotonic() - begin, 4)
            self.compute(daemon)
            other.execute("ROLLBACK")
            self.record("late", 1, daemon=daemon)
            self.assertEqual(self.describe("late", daemon)["steps"], 1)

    def test_stopped_while_locked(self):
        daemon = lossd.Daemon("--data-dir", self.data, "--drain-timeout", "1")
        self.record("a", 1, daemon=daemon)
        self.locked()
        answers = []

        def client(i):
            try:
                answers.append(daemon.post(target("a", 10 + i), TINY))
            except (lossd.Closed, OSError):
                pass

        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        begin = time.monotonic()
        daemon.signal()
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - begin, 6)
        for thread in threads:
            thread.join()
        for answer in answers:
            self.problem(answer, 503, "store_busy draining")
        self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])

    def test_a_reader_elsewhere(self):
        """A backup that reads for long holds nobody up."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.fill("a", range(30), daemon)
            other = sqlite3.connect(self.file, isolation_level=None)
            other.execute("BEGIN")
            self.assertEqual(other.execute("SELECT count(*) FROM step").fetchone(), (30,))
            self.fill("a", range(30, 330), daemon)
            self.assertEqual(other.execute("SELECT count(*) FROM step").fetchone(), (30,))
            other.close()
            self.assertEqual(len(all_steps(daemon, "a")), 330)

    def full(self, daemon, make_full, make_room):
        """507 while there is no room; history can be read, and losses are answered."""
        self.fill("kept", range(20), daemon)
        rows = all_steps(daemon, "kept")
        make_full()
        acknowledged = set()
        for step in range(3000):
            answer = daemon.post(target("filling", step), TINY)
            if answer.status != 200:
                self.problem(answer, 507, "store_full", "full")
                break
            acknowledged.add(step)
        self.assertEqual(answer.status, 507)
        self.refused(daemon, 507, "store_full")
        self.ready(daemon, 200, 1)
        self.assertEqual(all_steps(daemon, "kept"), rows)
        if acknowledged:
            self.assertEqual({r["step"] for r in all_steps(daemon, "filling")}, acknowledged)
        make_room()
        self.assertTrue(lossd.until(lambda: daemon.post(target("again", 1), TINY).status == 200, 5))
        self.assertEqual(all_steps(daemon, "kept"), rows)
        return acknowledged

    def test_size_limit(self):
        """Of files (RLIMIT_FSIZE), as EDQUOT and EFBIG say it."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            unlimited = resource.RLIM_INFINITY

            def limit():
                size = os.path.getsize(self.file + "-wal") + (200 << 10)
                resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, unlimited))

            self.full(daemon, limit, lambda: resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE,
                                                              (unlimited, unlimited)))
            names = self.names(daemon)
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(self.names(daemon), names)

    def test_full_disk(self):
        with tempfile.TemporaryDirectory() as home:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "lossd-test", home],
                              stderr=subprocess.DEVNULL).returncode:
                self.skipTest("no tmpfs can be mounted here")
            filler = os.path.join(home, "filler")

            def fill():
                with open(filler, "wb") as out:
                    try:
                        while True:
                            os.write(out.fileno(), b"x" * 1024)
                    except OSError:
                        pass

            try:
                with lossd.Daemon("--data-dir", os.path.join(home, "data")) as daemon:
                    self.full(daemon, fill, lambda: os.unlink(filler))
                    fill()
                    self.refused(daemon, 507, "store_full")
                    self.assertEqual(daemon.delete("/v1/runs/kept").status, 204)   # that is always possible
                    os.unlink(filler)
                    self.record("kept", 1, daemon=daemon)
                    names = self.names(daemon)
                    lines = self.warnings(daemon)   # one for each change, not for each refusal
                    self.assertLess(len(lines), 12, lines)
                    fill()
                    daemon.kill()   # full, and killed
                with lossd.Daemon("--data-dir", os.path.join(home, "data")) as daemon:   # starts on a full disk
                    self.assertEqual(self.names(daemon), names)
                    self.refused(daemon, 507, "store_full")
                    os.unlink(filler)
                    self.record("kept", 2, daemon=daemon)
            finally:
                subprocess.run(["umount", "-l", home], check=True)

    def test_deleted_or_moved(self):
        for what in ("file", "directory", "moved", "replaced"):
            with self.subTest(what), lossd.Daemon("--data-dir", self.data) as daemon:
                self.record("a", 1, daemon=daemon)
                self.ready(daemon, 200)
                aside = self.file + ".aside"
                if what == "directory":
                    shutil.rmtree(self.data)
                elif what == "file":
                    os.unlink(self.file)
                else:
                    os.rename(self.file, aside)
                if what == "replaced":
                    shutil.copy(aside, self.file)
                self.refused(daemon, 503, "store_unavailable", "moved or deleted")
                self.ready(daemon, 503)   # somebody looks, whether or not there are records
                self.problem(daemon.get("/v1/runs"), 503, "store_unavailable")
                self.problem(daemon.get("/v1/runs/a"), 503, "store_unavailable")
                self.problem(daemon.delete("/v1/runs/a"), 503, "store_unavailable")
                self.compute(daemon)
                self.assertEqual(len(self.warnings(daemon)), 1)
                if what in ("moved", "replaced"):
                    os.rename(aside, self.file)
                    self.ready(daemon, 200)
                    self.record("a", 2, daemon=daemon)
                    self.assertEqual(self.describe("a", daemon)["steps"], 2)
            shutil.rmtree(self.data, ignore_errors=True)

    def test_noticed_without_a_record(self):
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("a", 1, daemon=daemon)
            os.unlink(self.file)
            self.ready(daemon, 503)
            self.compute(daemon)

    def test_damaged(self):
        """It is noticed by whoever reads or writes; nothing more is written, and nothing is deleted."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.fill("a", range(100), daemon)
            daemon.stop()
        db = sqlite3.connect(self.file)   # more than is kept in memory
        with db:
            columns = [r[1] for r in db.execute("PRAGMA table_info(step)")]
            others = ", ".join("(10 * step + %d)" if c == "step" else c for c in columns)
            for i in range(1, 300):
                db.execute("INSERT INTO step SELECT %s FROM step WHERE step < 100" %
                           others.replace("(10 * step + %d)", "step + %d" % (100 * i)))
            db.execute("UPDATE run SET steps = 30000, last_step = 29999, unsealed = 30000")
        db.close()
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(len(all_steps(daemon, "a")), 30000)
            size = os.path.getsize(self.file)
            self.assertGreater(size, 4 << 20)
            with open(self.file, "r+b") as out:
                for at in range(16 * 4096, size // 4096 * 4096, 4096):
                    out.seek(at)
                    out.write(b"\xa5" * 4096)
            self.assertEqual(daemon.get("/readyz").status, 200)
            answer = daemon.get("/v1/runs/a/steps?limit=1000&after=15000")
            self.problem(answer, 503, "store_unavailable", "malformed")
            self.refused(daemon, 503, "store_unavailable", "damaged|malformed")
            self.ready(daemon, 503)
            self.compute(daemon)
            time.sleep(0.1)
            self.assertEqual(daemon.get("/readyz").status, 503)   # and it stays so
            self.assertEqual(os.path.getsize(self.file), size)
        with self.assertRaisesRegex(RuntimeError, "exit 65"):
            lossd.Daemon("--data-dir", self.data)

    def test_no_place(self):
        for data in ("/nonexistent/lossd-data", "/proc/lossd", "/dev/null/data"):
            with self.subTest(data), lossd.Daemon("--data-dir", data) as daemon:
                self.ready(daemon, 200, 1)
                for _ in range(2):
                    self.refused(daemon, 503, "store_unavailable", "data directory")
                    self.ready(daemon, 200, 1)
                self.assertEqual(self.good(daemon.get("/v1/runs")), {"runs": [], "next": None})
                self.unknown("refused", daemon)
                self.problem(daemon.delete("/v1/runs/refused"), 404, "unknown_run")
                self.assertEqual(len(self.warnings(daemon)), 1)

    def test_a_place_that_comes_later(self):
        parent = os.path.join(self.home.name, "later")
        with lossd.Daemon("--data-dir", os.path.join(parent, "data")) as daemon:
            self.refused(daemon, 503, "store_unavailable")
            os.mkdir(parent)
            self.record("a", 1, daemon=daemon)
            self.ready(daemon, 200)


if __name__ == "__main__":
    unittest.main()
