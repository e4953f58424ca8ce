# SPDX-License-Identifier: Apache-2.0
"""Runs: what is recorded is what was answered, it can be read in every form, and it is kept."""
import csv
import io
import json
import os
import random
import re
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402
import recorded  # noqa: E402
from recorded import FIELDS, FILE, TINY, Case, all_runs, all_steps, body, numbers, row, target  # noqa: E402

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")


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
        self.assertEqual(list(got), "name steps first_step last_step first_time last_time last_loss".split())
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
        for run in ("a", "A", "...", "-", "_", "0", "x" * 64, "a.b-c_D", "con", "lossd"):
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
        for run in ("x" * 65, "", ".", "..", "a%20b", "a%2Fb", "a+b", "%C3%A9", "a:b", "a'b", "%3Cscript%3E", "a;b"):
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
                     "/v1/run", "/v1/runs/long/steps/1"):
            self.problem(self.get(path), 404, "not_found")
        self.problem(self.get("/v1/runs/a%2Fb"), 400, "uri_malformed")   # a slash that does not separate

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
                  "points=10&limit=5", "limit=5&points=10", "format=xml", "format=", "format=CSV", "after=-2",
                  "after=x", "after=", "after=9007199254740993", "after=1&after=2", "points=5&points=5", "x=1",
                  "run=long", "limit=" + "9" * 40))):
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


class Browsers(Case):
    def test_pages_of_other_sites_write_nothing(self):
        """A browser posts a form's type to any address without asking first."""
        form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "cross-site"}
        self.record("ours", 1)
        for method, where in (("POST", target("theirs", 1)), ("POST", "/v1/loss"), ("DELETE", "/v1/runs/ours"),
                              ("PUT", "/v1/criteria/theirs"), ("POST", "/v1/nothing")):
            self.problem(self.daemon.request(method, where, TINY, form), 403, "cross_site")
        self.assertEqual(self.names(), ["ours"])
        self.assertEqual(self.daemon.get("/v1/runs", **{"Sec-Fetch-Site": "cross-site"}).status, 200)   # which it cannot read
        for site in ("same-origin", "same-site", "none"):
            answer = self.daemon.request("POST", target("ours", 2), TINY, {**form, "Sec-Fetch-Site": site})
            self.assertEqual(answer.status, 200)

class OtherMachinesBrowsers(Case):
    FLAGS = ("--listen", "0.0.0.0:0", "--allow-anonymous")

    def test_pages_of_other_sites_where_browsers_do_not_say_so(self):
        """They tell the site only to addresses that they trust, which http://HOST of another machine is none of."""
        form = {"Content-Type": "application/x-www-form-urlencoded", "Host": "lossd.lan:8080"}
        for origin in ("http://evil.example", "http://lossd.lan:8081", "http://lossd.lan", "http://xlossd.lan:8080", "null",
                       "lossd.lan:8080", ""):
            for method, where in (("POST", target("theirs", 1)), ("DELETE", "/v1/runs/theirs"), ("PUT", "/v1/criteria/theirs")):
                answer = self.daemon.request(method, where, TINY, {**form, "Origin": origin})
                self.problem(answer, 403, "cross_site")
            self.assertEqual(self.daemon.get("/v1/runs", **{**form, "Origin": origin}).status, 200)
        self.assertNotIn("theirs", self.names())
        for more in ({"Origin": "http://lossd.lan:8080"}, {"Origin": "http://LOSSD.lan:8080"}, {},
                     {"Origin": "http://proxy.example", "Sec-Fetch-Site": "same-origin"}):
            answer = self.daemon.request("POST", target("own-origin", 2), TINY, {**form, **more})
            self.assertEqual(answer.status, 200, more)
        self.assertEqual(self.daemon.delete("/v1/runs/own-origin").status, 204)


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

if __name__ == "__main__":
    unittest.main()
