# SPDX-License-Identifier: Apache-2.0
"""Criteria and prior sets of one's own: registered, used by name, kept over restarts and crashes, refused clearly."""
import contextlib
import json
import os
import random
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

MINE = {"base": "ssd-multibox", "mining": {"ratio": 2}, "weights": {"loc": 0.5}}
OTHER = {"base": "ssd-multibox", "localization": {"kind": "l1"}}
GRID = {"generator": "grid", "image_size": [64, 64]}
BOXES = [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.5, 0.5, 0.25, 0.25]]
MOST = 64


def tensor(boxes, dtype="F32"):
    flat = [v for box in boxes for v in box]
    return lossd.save([("priors", dtype, [len(boxes), 4], lossd.pack(dtype, flat))])


def many_boxes(n):
    return tensor([[0.5, 0.5, 0.5, 0.25 + i / n / 4] for i in range(n)])


class Case(lossd.Case):
    def registered(self, answer, status):
        """The description that a PUT answers."""
        self.assertEqual((answer.status, answer.type), (status, lossd.JSON), answer)
        return answer.json()

    def gone(self, answer):
        self.assertEqual((answer.status, answer.body), (204, b""), answer)
        self.assertIsNone(answer.header("Content-Type"))
        self.assertTrue(answer.header("X-Request-Id"))

    def names(self, daemon, kind):
        return {row["name"] for row in self.good(daemon.get("/v1/" + kind))[kind]}

    def loss(self, criterion, daemon=None, **options):
        body = lossd.tiny().json(criterion=criterion, **options)
        return (daemon or self.daemon).post("/v1/loss", body, lossd.JSON)


class Criteria(Case):
    def test_register_use_replace_delete(self):
        mine = self.registered(self.daemon.put("/v1/criteria/mine", MINE), 201)
        self.assertEqual((mine["name"], mine["mining"]["ratio"], mine["weights"]), ("mine", 2, {"loc": 0.5, "conf": 1}))
        self.assertEqual(self.good(self.daemon.get("/v1/criteria/mine")), mine)
        self.assertIn("mine", self.names(self.daemon, "criteria"))
        by_name, inline = self.good(self.loss("mine")), self.good(self.loss(MINE))
        self.assertEqual((by_name.pop("criterion"), inline.pop("criterion")), ("mine", "inline"))
        for member in ("loss", "sums", "normalizer", "assignment"):
            self.assertEqual(by_name[member], inline[member])
        self.assertNotEqual(by_name["loss"], self.good(self.loss("ssd-multibox"))["loss"])
        match = self.daemon.post("/v1/match?criterion=mine", lossd.tiny().json(predictions=False), lossd.JSON)
        self.assertEqual(self.good(match)["criterion"], "mine")
        other = self.registered(self.daemon.put("/v1/criteria/mine", OTHER), 200)
        self.assertEqual((other["localization"]["kind"], other["mining"]["ratio"]), ("l1", 3))
        self.assertEqual(self.good(self.loss("mine"))["loss"], self.good(self.loss(OTHER))["loss"])
        self.gone(self.daemon.delete("/v1/criteria/mine"))
        self.problem(self.daemon.get("/v1/criteria/mine"), 404, "unknown_criterion")
        self.problem(self.daemon.delete("/v1/criteria/mine"), 404, "unknown_criterion")
        self.problem(self.loss("mine"), 422, "unknown_criterion", '"mine"; /v1/criteria lists them', "^/criterion$")
        self.assertNotIn("mine", self.names(self.daemon, "criteria"))

    def test_descriptions_can_be_put_back(self):
        for name in sorted(self.names(self.daemon, "criteria")):
            with self.subTest(name):
                described = self.daemon.get("/v1/criteria/" + name)
                copy = self.registered(self.daemon.put("/v1/criteria/copy", described.body), 201)
                self.assertEqual(dict(copy, name=name), described.json())
                got = self.daemon.get("/v1/criteria/copy")
                again = self.registered(self.daemon.put("/v1/criteria/copy", got.body), 200)
                self.assertEqual(again, copy)
                self.gone(self.daemon.delete("/v1/criteria/copy"))

    def test_a_base_of_ones_own_is_resolved_when_it_is_read(self):
        self.registered(self.daemon.put("/v1/criteria/base", MINE), 201)
        built = self.registered(self.daemon.put("/v1/criteria/on-base", {"base": "base", "weights": {"conf": 3}}), 201)
        self.assertEqual((built["mining"]["ratio"], built["weights"]), (2, {"loc": 0.5, "conf": 3}))
        self.registered(self.daemon.put("/v1/criteria/base", OTHER), 200)
        self.assertEqual(self.good(self.daemon.get("/v1/criteria/on-base")), built)
        self.assertEqual(self.good(self.loss({"base": "on-base"}))["loss"], self.good(self.loss("on-base"))["loss"])
        self.gone(self.daemon.delete("/v1/criteria/base"))
        self.assertEqual(self.good(self.daemon.get("/v1/criteria/on-base")), built)
        self.problem(self.daemon.put("/v1/criteria/again", {"base": "base"}), 422, "unknown_criterion", "base")
        self.gone(self.daemon.delete("/v1/criteria/on-base"))

    def test_its_own_priors(self):
        self.registered(self.daemon.put("/v1/priors/three", {"priors": BOXES}), 201)
        self.registered(self.daemon.put("/v1/criteria/with-three", {"priors": "three"}), 201)
        body = json.dumps({"annotations": [{"boxes": [[0, 0, 0.5, 0.5]], "labels": [0]}]}).encode()
        got = self.good(self.daemon.post("/v1/match?criterion=with-three", body, lossd.JSON))
        self.assertEqual((got["priors"], got["assignment"]["priors"]), ("three", 3))
        self.gone(self.daemon.delete("/v1/priors/three"))
        got = self.daemon.post("/v1/match?criterion=with-three", body, lossd.JSON)
        self.problem(got, 422, "unknown_priors", 'the criterion "with-three" takes the prior set "three"')
        self.gone(self.daemon.delete("/v1/criteria/with-three"))
        self.problem(self.daemon.put("/v1/criteria/with-none", {"priors": "sdd300"}), 422, "unknown_priors",
                     'did you mean "ssd300". /v1/priors lists them', "^/priors$")
        self.problem(self.daemon.get("/v1/criteria/with-none"), 404)

    def test_text(self):
        """What differs from its base is not described by its base's words."""
        for body, text in (({"base": "ssd-keras"}, self.good(self.daemon.get("/v1/criteria/ssd-keras"))["text"]),
                           ({"base": "ssd-keras", "mining": {"ratio": 2}}, "based on ssd-keras"),
                           ({"base": "ssd-keras", "mining": {"ratio": 2}, "text": "ours"}, "ours")):
            got = self.daemon.put("/v1/criteria/told", body)
            self.assertEqual(got.json()["text"], text)
        self.gone(self.daemon.delete("/v1/criteria/told"))

    def test_what_is_refused_changes_nothing(self):
        before = self.registered(self.daemon.put("/v1/criteria/stays", MINE), 201)
        for body, status, code, pointer in (
                (b"", 400, "json_empty", None), (b"{", 400, "json_syntax", None), (b"[]", 400, "json_not_object", None),
                (b'{"base": "ssd-multibox", "base": "ssd-keras"}', 400, "json_duplicate_key", None),
                (b'{"matcher": {"positive_iou": 3}}', 422, "criterion_range", "^/matcher/positive_iou$"),
                (b'{"mining": {"kind": "none", "ratio": 3}}', 422, "criterion_conflict", "^/mining/ratio$"),
                (b'{"mater": {}}', 422, "unknown_member", "^/mater$"),
                (b'{"base": "ssd-multibux"}', 422, "unknown_criterion", "^/base$"),
                (b'{"weights": 3}', 422, "type_mismatch", "^/weights$")):
            with self.subTest(body):
                self.problem(self.daemon.put("/v1/criteria/stays", body), status, code, None, pointer)
                self.problem(self.daemon.put("/v1/criteria/comes", body), status, code)
        self.assertEqual(self.good(self.daemon.get("/v1/criteria/stays")), before)
        self.problem(self.daemon.get("/v1/criteria/comes"), 404)
        self.gone(self.daemon.delete("/v1/criteria/stays"))

    def test_media_types(self):
        body = json.dumps(MINE).encode()
        for content_type in (lossd.SAFETENSORS, "application/octet-stream", "text/plain"):
            answer = self.daemon.put("/v1/criteria/typed", body, content_type)
            self.problem(answer, 415, "unsupported_media_type", "^Send application/json; nothing else")
        answer = self.daemon.put("/v1/criteria/typed", body, "application/json; charset=latin-1")
        self.problem(answer, 415, "unsupported_media_type", "UTF-8")
        for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"},
                        {"Content-Type": "application/json; charset=utf-8"}):
            answer = self.daemon.request("PUT", "/v1/criteria/typed", body, headers)
            self.assertIn(answer.status, (200, 201), answer)
        self.problem(self.daemon.request("PUT", "/v1/criteria/typed", tensor(BOXES)), 400)
        self.problem(self.daemon.request("PUT", "/v1/criteria/typed"), 411, "length_required")
        self.problem(self.daemon.request("PUT", "/v1/criteria/typed", body, {"Content-Encoding": "gzip"}), 415)
        self.gone(self.daemon.delete("/v1/criteria/typed"))


class Priors(Case):
    FLAGS = ("--max-json", "64K", "--max-body", "1M")

    def test_a_generator(self):
        got = self.registered(self.daemon.put("/v1/priors/grid64", GRID), 201)
        self.assertEqual((got["name"], got["count"], got["units"]), ("grid64", 1008, "pixels"))
        self.assertEqual(self.good(self.daemon.get("/v1/priors/grid64")), got)
        self.assertIn("grid64", self.names(self.daemon, "priors"))
        same = self.daemon.get("/v1/priors/grid64", Accept=lossd.SAFETENSORS)
        built_in = self.daemon.get("/v1/priors/grid-64x64", Accept=lossd.SAFETENSORS)
        self.assertEqual(same.body, built_in.body)
        self.gone(self.daemon.delete("/v1/priors/grid64"))
        self.problem(self.daemon.get("/v1/priors/grid64"), 404, "unknown_priors")

    def test_boxes(self):
        flat = [v for box in BOXES for v in box]
        for body, content_type in ((json.dumps({"priors": BOXES}).encode(), lossd.JSON),
                                   (tensor(BOXES), lossd.SAFETENSORS), (tensor(BOXES), None),
                                   (tensor(BOXES, "F64"), "application/octet-stream")):
            with self.subTest(content_type):
                headers = {"Content-Type": content_type} if content_type else {}
                got = self.registered(self.daemon.request("PUT", "/v1/priors/boxes", body, headers), 201)
                self.assertEqual((got["count"], got["units"]), (3, "relative"))
                answer = self.daemon.get("/v1/priors/boxes", Accept=lossd.SAFETENSORS)
                self.assertEqual(lossd.load(answer.body)[1]["priors"], ("F32", [3, 4], flat))
                self.gone(self.daemon.delete("/v1/priors/boxes"))

    def test_used_by_name(self):
        batch = lossd.random_batch(11, 1, 300, 5)
        body = lossd.save([("priors", "F32", [300, 4], batch.priors.tobytes())])
        self.registered(self.daemon.put("/v1/priors/ours", body, lossd.SAFETENSORS), 201)
        inline = self.good(self.daemon.post("/v1/loss", batch.safetensors()))
        named = self.good(self.daemon.post("/v1/loss?priors=ours", batch.safetensors(without=("priors",))))
        self.assertEqual((inline.pop("priors"), named.pop("priors")), ("inline", "ours"))
        self.assertEqual((inline["loss"], inline["assignment"]), (named["loss"], named["assignment"]))
        got = self.daemon.post("/v1/loss?priors=our", batch.safetensors(without=("priors",)))
        self.problem(got, 422, "unknown_priors", '"ours"')
        self.gone(self.daemon.delete("/v1/priors/ours"))

    def test_refusals(self):
        for body, content_type, status, code, pointer in (
                (b'{"generator": "grit"}', lossd.JSON, 422, "unknown_generator", "^/generator$"),
                (b'{"generator": "grid", "image_size": [64, 0]}', lossd.JSON, 422, "priors_range", "^/image_size/1$"),
                (b'{"priors": [[0.5, 0.5, 1, 1], [0.5, 0.5, 0, 1]]}', lossd.JSON, 422, "prior_degenerate",
                 "^/priors/1$"),
                (b'{"priors": []}', lossd.JSON, 422, None, None), (b'{}', lossd.JSON, 422, None, None),
                (b'{"priors": "ssd300"}', lossd.JSON, 422, None, None), (b"\0" * 7, lossd.SAFETENSORS, 400, None, None),
                (lossd.save([("boxes", "F32", [1, 4], bytes(16))]), lossd.SAFETENSORS, 422, None, None),
                (tensor([[0.5, 0.5, -1, 1]]), lossd.SAFETENSORS, 422, "prior_degenerate", None)):
            with self.subTest(body[:60]):
                self.problem(self.daemon.put("/v1/priors/never", body, content_type), status, code, None, pointer)
        for name in ("e" * 16, "\u00e9" * 15, "a b"):
            answer = self.daemon.put("/v1/priors/never", dict(GRID, strides=[8], scales=[8], level_names=[name]))
            self.problem(answer, 422, "priors_range", "at most 15 characters of printable ASCII", "^/level_names/0$")
        self.problem(self.daemon.get("/v1/priors/never"), 404)

    def test_sizes(self):
        large = json.dumps({"priors": BOXES}).encode() + b" " * 65536
        self.problem(self.daemon.put("/v1/priors/large", large), 413, "body_too_large", "65536")
        self.problem(self.daemon.put("/v1/criteria/large", large), 413, "body_too_large", "max-json")
        self.problem(self.daemon.put("/v1/priors/large", many_boxes(65537), lossd.SAFETENSORS), 413, "body_too_large")
        got = self.registered(self.daemon.put("/v1/priors/large", many_boxes(65000), lossd.SAFETENSORS), 201)
        self.assertEqual(got["count"], 65000)
        answer = self.daemon.get("/v1/priors/large", Accept=lossd.SAFETENSORS)
        self.assertEqual(answer.body[-65000 * 16:], many_boxes(65000)[-65000 * 16:])
        self.gone(self.daemon.delete("/v1/priors/large"))

    def test_chunked(self):
        body = json.dumps(GRID).encode()
        with self.daemon.connect() as connection:
            connection.start("PUT", "/v1/priors/chunked", {"Transfer-Encoding": "chunked"})
            for i in range(0, len(body), 10):
                connection.send(b"%x\r\n%s\r\n" % (len(body[i:i + 10]), body[i:i + 10]))
            connection.send(b"0\r\n\r\n")
            self.registered(connection.answer(), 201)
            self.gone(connection.request("DELETE", "/v1/priors/chunked"))
            self.problem(connection.request("DELETE", "/v1/priors/chunked"), 404)

    def test_patterns(self):
        for name, count in (("retinanet-640x640", 76725), ("retinanet-320x200", None), ("grid-128x128", 4032),
                            ("grid-31x7", None)):
            described = self.good(self.daemon.get("/v1/priors/" + name))
            self.assertEqual(described["name"], name)
            self.assertEqual(count or described["count"], described["count"])
            answer = self.daemon.get("/v1/priors/" + name, Accept=lossd.SAFETENSORS)
            self.assertEqual(lossd.load(answer.body)[1]["priors"][1], [described["count"], 4])
        self.problem(self.daemon.get("/v1/priors/grid-0x7"), 404)
        self.problem(self.daemon.get("/v1/priors/retinanet-16384x16384"), 404)

    def test_more_patterns_than_are_kept(self):
        """Each request gets its own set, whatever was made before it."""
        body = json.dumps({"annotations": [{"boxes": [[2, 2, 9, 9]], "labels": [0]}]}).encode()

        def ask(seed):
            rng = random.Random(seed)
            for _ in range(30):
                w, h = rng.randint(8, 40), rng.randint(8, 40)
                got = self.good(self.daemon.post("/v1/match?priors=grid-%dx%d" % (w, h), body, lossd.JSON))
                want = 3 * sum(-(-w // s) * -(-h // s) for s in (4, 8, 16))
                self.assertEqual((got["priors"], got["assignment"]["priors"]), ("grid-%dx%d" % (w, h), want))

        lossd.together([lambda i=i: ask(i) for i in range(4)])


class Names(Case):
    def test_bad_ones(self):
        for name in ("a%20b", "%C3%A4", "%FF", "a%22", "a%3Fb", "a+b", "a%2Bb", "a:b", "~", "x" * 64, "a,b", "%25",
                     "a%7Fb", ".", "..", ".hidden", "-", "_a", "%2E"):
            for kind, body in (("criteria", MINE), ("priors", GRID)):
                with self.subTest(name, kind=kind):
                    target = "/v1/%s/%s" % (kind, name)
                    if name == "a%7Fb":
                        self.problem(self.daemon.put(target, body), 400, "uri_malformed")
                        continue
                    self.problem(self.daemon.put(target, body), 422, "invalid_name")
                    self.problem(self.daemon.delete(target), 422, "invalid_name")
                    self.problem(self.daemon.get(target), 404)
        for target in ("/v1/criteria/", "/v1/criteria/a/b"):
            self.problem(self.daemon.put(target, MINE), 404, "not_found")
        self.problem(self.daemon.put("/v1/priors/a%2Fb", MINE), 400, "uri_malformed")

    def test_good_ones(self):
        for name in ("a", "A.b_c-9", "x" * 63, "0", "retinanet", "retinanet-x", "grid-1x", "ssd300-mine", "9_"):
            with self.subTest(name):
                self.registered(self.daemon.put("/v1/priors/" + name, GRID), 201)
                self.registered(self.daemon.put("/v1/criteria/" + name, MINE), 201)
                self.assertEqual(self.good(self.loss(name))["criterion"], name)
                self.gone(self.daemon.delete("/v1/priors/" + name))
                self.gone(self.daemon.delete("/v1/criteria/" + name))
        self.registered(self.daemon.put("/v1/criteria/%61bc", MINE), 201)
        self.gone(self.daemon.delete("/v1/criteria/ab%63"))

    def test_reserved(self):
        sets = ("ssd300", "ssd300-coco", "ssd300-unit", "ssd300-efficientnet", "retinanet-640x640", "retinanet-1x1",
                "grid-128x128", "grid-99999x1", "inline")
        presets = ("ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras", "inline")
        for kind, names, body in (("priors", sets, GRID), ("criteria", presets, MINE)):
            for name in names:
                with self.subTest(name):
                    self.problem(self.daemon.put("/v1/%s/%s" % (kind, name), body), 409, "name_reserved", name)
                    self.problem(self.daemon.delete("/v1/%s/%s" % (kind, name)), 409, "name_reserved", name)
        self.registered(self.daemon.put("/v1/criteria/ssd300", MINE), 201)  # of the other kind
        self.gone(self.daemon.delete("/v1/criteria/ssd300"))

    def test_refused_before_the_body_is_sent(self):
        for target, status in (("/v1/criteria/ssd-keras", 409), ("/v1/criteria/a%20b", 422)):
            with self.daemon.connect() as connection:
                connection.start("PUT", target, {"Content-Length": 100, "Expect": "100-continue",
                                                 "Content-Type": lossd.JSON})
                answer = connection.answer()
                self.problem(answer, status)
                self.assertEqual(answer.interim, [])

    def test_conditions(self):
        for kind, body in (("criteria", MINE), ("priors", GRID)):
            with self.subTest(kind):
                target = "/v1/%s/conditional" % kind
                new, known = {"If-None-Match": "*"}, {"If-Match": "*"}
                self.problem(self.daemon.put(target, body, **known), 412, "precondition_failed", "not registered")
                self.problem(self.daemon.get(target), 404)
                self.registered(self.daemon.put(target, body, **new), 201)
                self.problem(self.daemon.put(target, body, **new), 412, "precondition_failed", "already")
                self.registered(self.daemon.put(target, body, **known), 200)
                for headers in ({"If-Match": '"x"'}, {"If-None-Match": '"x"'}, {"If-None-Match": "*", "If-Match": "*"}):
                    self.problem(self.daemon.put(target, body, **headers), 412, "precondition_failed")
                self.problem(self.daemon.put(target, body, **{"Content-Range": "bytes 0-1/9"}), 400, "framing_header")
                self.gone(self.daemon.delete(target))

    def test_no_query_options(self):
        for target in ("/v1/criteria/asked?dry_run=1", "/v1/criteria/asked?dry_run"):
            self.problem(self.daemon.put(target, MINE), 422, "unknown_member")
            self.problem(self.daemon.delete(target), 422, "unknown_member")
        self.problem(self.daemon.get("/v1/criteria/asked"), 404)

    def test_nearest(self):
        self.registered(self.daemon.put("/v1/criteria/trainer-7", MINE), 201)
        self.registered(self.daemon.put("/v1/priors/camera-4k", GRID), 201)
        self.problem(self.daemon.get("/v1/criteria/trainer-8"), 404, "unknown_criterion", '"trainer-7"')
        self.problem(self.daemon.get("/v1/priors/camera-4g"), 404, "unknown_priors", '"camera-4k"')
        self.problem(self.loss("trainer7"), 422, "unknown_criterion", 'did you mean "trainer-7". /v1/criteria lists them')
        self.problem(self.loss("ssd-multibix"), 422, "unknown_criterion", '"ssd-multibox"')
        self.problem(self.daemon.delete("/v1/criteria/trainer-6"), 404, "unknown_criterion", '"trainer-7"')
        self.gone(self.daemon.delete("/v1/criteria/trainer-7"))
        self.gone(self.daemon.delete("/v1/priors/camera-4k"))

    def test_methods(self):
        for target, allow in (("/v1/criteria/x", "GET, HEAD, PUT, DELETE"), ("/v1/priors/x", "GET, HEAD, PUT, DELETE"),
                              ("/v1/priors", "GET, HEAD"), ("/v1/criteria", "GET, HEAD"), ("/v1/loss", "POST"),
                              ("/healthz", "GET, HEAD")):
            for method in ("POST", "OPTIONS", "PATCH", "TRACE", "PUT", "DELETE", "get"):
                if method not in allow:
                    answer = self.daemon.request(method, target)
                    self.problem(answer, 405, "method_not_allowed", allow)
                    self.assertEqual(answer.header("Allow"), allow)

    def test_head(self):
        self.registered(self.daemon.put("/v1/priors/headed", GRID), 201)
        for target in ("/v1/priors/headed", "/v1/priors/retinanet-700x700", "/v1/criteria/ssd-keras"):
            with self.daemon.connect() as connection:
                full = connection.request("GET", target)
                head = connection.request("HEAD", target)
                self.assertEqual((head.status, head.body), (200, b""))
                self.assertEqual(head.header("Content-Length"), str(len(full.body)))
        self.gone(self.daemon.delete("/v1/priors/headed"))

    def test_delete_with_a_body(self):
        self.registered(self.daemon.put("/v1/priors/bodied", GRID), 201)
        with self.daemon.connect() as connection:
            self.gone(connection.request("DELETE", "/v1/priors/bodied", b"x" * 1000))
            refused = connection.request("DELETE", "/v1/priors/bodied", b"x" * 100000)
            self.problem(refused, 413, "body_too_large")
            self.assertEqual(refused.header("Connection"), "close")   # rather than read what nobody asked for


class Kept(Case):
    """What was answered 201, 200 or 204 is so after the next start."""
    FLAGS = None

    def test_nothing_is_made_for_nothing(self):
        with lossd.Daemon() as daemon:
            self.good(self.loss("ssd-multibox", daemon))
            self.problem(daemon.put("/v1/criteria/bad", {"matcher": 3}), 422)
            self.problem(daemon.delete("/v1/criteria/never"), 404)
            self.assertEqual(daemon.stop(), 0)
            self.assertFalse(os.path.exists(daemon.data))

    def test_option(self):
        with tempfile.TemporaryDirectory() as home:
            status, out, _ = lossd.command("--help")
            self.assertRegex(out, r"--data-dir DIR .*\[lossd-data\]")
            self.assertEqual(lossd.command("--listen", "127.0.0.1:0", "--data-dir", "")[0], 2)
            data = os.path.join(home, "from environment?#%20")
            with lossd.Daemon(env={"LOSSD_DATA_DIR": data}) as daemon:
                self.registered(daemon.put("/v1/criteria/kept", MINE), 201)
            self.assertEqual(os.listdir(data), ["lossd.sqlite3"])
            with lossd.Daemon("--data-dir", data + "//") as daemon:
                self.good(daemon.get("/v1/criteria/kept"))

    def test_restart(self):
        with lossd.Daemon() as first:
            for _ in range(2):
                first.put("/v1/criteria/mine", MINE)
                first.put("/v1/priors/grid64", GRID)
            self.registered(first.put("/v1/priors/three", {"priors": BOXES}), 201)
            self.registered(first.put("/v1/priors/tensor", many_boxes(5000), lossd.SAFETENSORS), 201)
            self.registered(first.put("/v1/criteria/other", OTHER), 201)
            self.assertEqual(os.listdir(first.data), ["lossd.sqlite3"])  # and no log that grows
            self.registered(first.put("/v1/criteria/other", dict(OTHER, weights={"loc": 7})), 200)
            self.registered(first.put("/v1/criteria/gone", OTHER), 201)
            self.gone(first.delete("/v1/criteria/gone"))
            targets = ["/v1/criteria", "/v1/priors", "/v1/criteria/mine", "/v1/criteria/other", "/v1/priors/grid64",
                       "/v1/priors/three", "/v1/priors/tensor"]
            before = [first.get(target).body for target in targets]
            before.append(first.get("/v1/priors/tensor", Accept=lossd.SAFETENSORS).body)
            self.assertEqual(first.stop(), 0)
            self.assertEqual(os.listdir(first.data), ["lossd.sqlite3"])
            with lossd.Daemon("--data-dir", first.data) as second:
                after = [second.get(target).body for target in targets]
                after.append(second.get("/v1/priors/tensor", Accept=lossd.SAFETENSORS).body)
                self.assertEqual(after, before)
                self.assertEqual(self.good(self.loss("mine", second))["criterion"], "mine")
                self.problem(second.get("/v1/criteria/gone"), 404)
                self.registered(second.put("/v1/criteria/other", MINE), 200)

    def test_killed_right_after_the_answer(self):
        with tempfile.TemporaryDirectory() as data:
            for i in range(6):
                daemon = lossd.Daemon("--data-dir", data)
                self.registered(daemon.put("/v1/criteria/c%d" % i, MINE), 201)
                daemon.kill()
                daemon = lossd.Daemon("--data-dir", data)
                self.registered(daemon.put("/v1/priors/p%d" % i, GRID), 201)
                daemon.kill()
                daemon = lossd.Daemon("--data-dir", data)
                self.registered(daemon.put("/v1/priors/p%d" % i, {"priors": BOXES}), 200)
                daemon.kill()
                daemon = lossd.Daemon("--data-dir", data)
                self.assertEqual(self.good(daemon.get("/v1/priors/p%d" % i))["count"], 3)
                if i % 2:
                    self.gone(daemon.delete("/v1/criteria/c%d" % i))
                daemon.kill()
            with lossd.Daemon("--data-dir", data) as daemon:
                self.assertEqual({n for n in self.names(daemon, "criteria") if n[0] == "c"}, {"c0", "c2", "c4"})
                self.assertTrue({"p%d" % i for i in range(6)} <= self.names(daemon, "priors"))

    def test_killed_while_writing(self):
        """At any moment: what was acknowledged is there, everything there is whole, and it starts again."""
        with tempfile.TemporaryDirectory() as data:
            acknowledged, tried = {}, {}
            for turn in range(6):
                daemon = lossd.Daemon("--data-dir", data, "--queue-limit", "8")
                stop = threading.Event()

                def client(me):
                    i = 0
                    while not stop.is_set():
                        name, weight = "c%d-%d" % (me, i % 5), turn * 1000 + i + 1
                        tried.setdefault(name, set()).add(weight)
                        try:
                            answer = daemon.put("/v1/criteria/" + name, {"weights": {"loc": weight}})
                        except (lossd.Closed, OSError):
                            return
                        if answer.status in (200, 201):
                            acknowledged[name] = weight
                        i += 1

                def killer():
                    time.sleep(0.05 + 0.07 * turn)
                    daemon.kill()
                    stop.set()

                lossd.together([lambda i=i: client(i) for i in range(3)] + [killer])
                with lossd.Daemon("--data-dir", data) as daemon:
                    self.assertEqual(daemon.get("/readyz").status, 200)
                    for name, weight in acknowledged.items():
                        got = self.good(daemon.get("/v1/criteria/" + name))["weights"]["loc"]
                        self.assertIn(got, tried[name])
                        self.assertGreaterEqual(got, weight, name)  # a later one may have been stored, not answered
                    self.assertNotIn("skipped", daemon.log())
                with sqlite3.connect(os.path.join(data, "lossd.sqlite3")) as db:
                    self.assertEqual(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
            self.assertGreater(len(acknowledged), 5)

    def test_two_daemons(self):
        """A directory is one daemon's; the other is told so, at its start or with its first registration."""
        with lossd.Daemon() as early:
            one = lossd.Daemon("--data-dir", early.data)
            self.registered(one.put("/v1/criteria/mine", MINE), 201)
            self.problem(early.put("/v1/criteria/mine", OTHER), 503, "store_unavailable", "another daemon uses")
            self.problem(early.delete("/v1/criteria/mine"), 503, "store_unavailable", "another daemon uses")
            self.good(self.loss("ssd-multibox", early))
            code, out, errors = lossd.command("--listen", "127.0.0.1:0", "--data-dir", early.data)
            self.assertEqual((code, out), (75, ""), errors)
            self.assertRegex(errors, r"^lossd: [^\n]*another daemon uses the data directory[^\n]*\n$")
            one.kill()
            self.registered(early.put("/v1/criteria/other", OTHER), 201)
            code, _, _ = lossd.command("--listen", "127.0.0.1:0", "--data-dir", early.data)
            self.assertEqual(code, 75)
            early.stop()
            with lossd.Daemon("--data-dir", early.data) as late:
                self.good(late.get("/v1/criteria/mine"))
                self.good(late.get("/v1/criteria/other"))

    def test_drain(self):
        """A PUT that has begun is answered, and it holds."""
        with lossd.Daemon() as daemon:
            body = json.dumps(MINE).encode()
            with daemon.connect() as connection:
                connection.start("PUT", "/v1/criteria/last", {"Content-Length": len(body)})
                connection.send(body[:10])
                time.sleep(0.1)
                daemon.signal()
                time.sleep(0.2)
                connection.send(body[10:])
                self.registered(connection.answer(), 201)
            self.assertEqual(daemon.wait(), 0)
            with lossd.Daemon("--data-dir", daemon.data) as again:
                self.good(again.get("/v1/criteria/last"))

    def test_drain_does_not_wait_for_a_lock(self):
        with lossd.Daemon("--drain-timeout", "0") as daemon:
            self.registered(daemon.put("/v1/criteria/mine", MINE), 201)
            other = sqlite3.connect(os.path.join(daemon.data, "lossd.sqlite3"), isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with daemon.connect() as connection:
                connection.start("PUT", "/v1/criteria/late", {"Content-Length": 2})
                connection.send(b"{}")
                time.sleep(0.2)
                begin = time.monotonic()
                daemon.signal()
                self.assertEqual(daemon.wait(), 0)
                self.assertLess(time.monotonic() - begin, 1)
            other.execute("ROLLBACK")
            other.close()

    def test_a_definition_that_no_longer_reads(self):
        """It is skipped with a line in the log; the rest is there; it can be replaced or deleted."""
        with lossd.Daemon() as first:
            for name in ("a", "b", "c"):
                first.put("/v1/criteria/" + name, MINE)
                first.put("/v1/priors/" + name, GRID)
            self.assertEqual(first.stop(), 0)
            with sqlite3.connect(os.path.join(first.data, "lossd.sqlite3")) as db:
                db.execute("UPDATE definition SET body = ? WHERE name = 'b'", (b'{"matcher": {"positive_iou": 7}}',))
                db.execute("INSERT INTO definition VALUES ('criterion', 'no good name', 'application/json', '{}')")
                db.execute("INSERT INTO definition VALUES ('criterion', 'ssd-keras', 'application/json', '{}')")
                db.execute("INSERT INTO definition VALUES ('spell', 'a', 'text/plain', 'abracadabra')")
            db.close()
            with lossd.Daemon("--data-dir", first.data) as second:
                self.assertEqual(second.get("/readyz").status, 200)
                self.assertEqual({n for n in self.names(second, "criteria") if len(n) == 1}, {"a", "c"})
                self.assertEqual({n for n in self.names(second, "priors") if len(n) == 1}, {"a", "c"})
                self.assertEqual(second.log().count("skipped"), 4, second.log())
                self.assertIn("positive_iou", second.log())
                self.registered(second.put("/v1/criteria/b", MINE), 201)
                self.gone(second.delete("/v1/priors/b"))
                self.problem(second.delete("/v1/priors/b"), 404)
                self.assertEqual(second.stop(), 0)
                with lossd.Daemon("--data-dir", first.data) as third:
                    self.assertEqual({n for n in self.names(third, "criteria") if len(n) == 1}, {"a", "b", "c"})


class Faults(Case):
    """A store that cannot be used: losses go on, and what would have to be stored is refused."""
    FLAGS = None

    def compute_only(self, daemon, codes="store_unavailable", status=503, ready=200):
        self.good(self.loss("ssd-multibox", daemon))
        for kind, body in (("criteria", MINE), ("priors", GRID)):
            answer = daemon.put("/v1/%s/new" % kind, body)
            self.problem(answer, status, codes)
            if status == 503:
                self.assertRegex(answer.header("Retry-After") or "", r"^\d+$")
            got = daemon.get("/v1/%s/new" % kind)
            self.problem(got, 404 if ready == 200 else 503, None if ready == 200 else "store_unavailable")
        self.good(self.loss(MINE, daemon))
        self.assertEqual(daemon.get("/readyz").status, ready)
        self.assertEqual(daemon.get("/healthz").status, 200)

    def one_warning(self, daemon, text):
        lines = [line for line in daemon.log().splitlines() if "event=store" in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], text)
        self.assertIn("level=warn", lines[0])

    def prepared(self, home):
        """A data directory with one criterion and one set."""
        data = os.path.join(home, "data")
        with lossd.Daemon("--data-dir", data) as daemon:
            self.registered(daemon.put("/v1/criteria/mine", MINE), 201)
            self.registered(daemon.put("/v1/priors/grid64", GRID), 201)
        return data, os.path.join(data, "lossd.sqlite3")

    def test_garbage(self):
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            junk = b"not a database " * 1000
            with open(file, "wb") as out:
                out.write(junk)
            with lossd.Daemon("--data-dir", data) as daemon:
                self.one_warning(daemon, "not a database")
                self.compute_only(daemon, ready=503)
                self.problem(daemon.get("/readyz"), 503, "store_unavailable")
            with open(file, "rb") as left:
                self.assertEqual(left.read(), junk)

    def test_damaged_page(self):
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            size = os.path.getsize(file)
            with open(file, "r+b") as out:
                out.seek(4096)
                out.write(os.urandom(size - 4096))
            with lossd.Daemon("--data-dir", data) as daemon:
                self.one_warning(daemon, "malformed")
                self.compute_only(daemon, ready=503)

    def test_newer_version(self):
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            with sqlite3.connect(file) as db:
                db.execute("PRAGMA user_version = 99")
            db.close()
            with lossd.Daemon("--data-dir", data) as daemon:
                self.one_warning(daemon, "newer version")
                self.compute_only(daemon, ready=503)
                self.problem(self.loss("mine", daemon), 503, "store_unavailable", '"mine"')
                # repaired while it runs: whoever asks makes it read again
                with sqlite3.connect(file) as db:
                    db.execute("PRAGMA user_version = 1")
                db.close()
                self.assertTrue(lossd.until(lambda: daemon.get("/readyz").status == 200, 5))
                self.good(daemon.get("/v1/criteria/mine"))
                self.registered(daemon.put("/v1/criteria/new", MINE), 201)

    def test_repaired_while_it_runs(self):
        """A lookup is enough to have it read again, and a registration too."""
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            os.rename(file, file + ".aside")
            os.mkdir(file)
            for ask in (lambda daemon: self.loss("mine", daemon), lambda daemon: daemon.put("/v1/criteria/mine", MINE)):
                with lossd.Daemon("--data-dir", data) as daemon:
                    self.problem(daemon.get("/v1/criteria/mine"), 503, "store_unavailable")
                    os.rmdir(file)
                    os.rename(file + ".aside", file)
                    self.assertTrue(lossd.until(lambda: ask(daemon).status == 200, 5))
                    self.assertEqual(daemon.get("/readyz").status, 200)
                os.rename(file, file + ".aside")
                os.mkdir(file)

    def test_no_place(self):
        with tempfile.TemporaryDirectory() as home:
            blocked = os.path.join(home, "file")
            with open(blocked, "w") as out:
                out.write("x")
            for data, ready in (("/proc/lossd", 200), (os.path.join(home, "no", "parent"), 200),
                                (blocked + "/data", 200)):
                with self.subTest(data), lossd.Daemon("--data-dir", data) as daemon:
                    self.compute_only(daemon, ready=ready)

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to run the daemon as another user")
    def test_read_only(self):
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            os.chmod(home, 0o755)
            os.chmod(data, 0o555)
            os.chmod(file, 0o444)
            with lossd.Daemon("--data-dir", data, user=65532) as daemon:
                self.assertEqual(self.good(self.loss("mine", daemon))["criterion"], "mine")
                self.good(daemon.get("/v1/priors/grid64"))
                self.compute_only(daemon)
                self.problem(daemon.delete("/v1/criteria/mine"), 503, "store_unavailable", "read-only")
                self.good(daemon.get("/v1/criteria/mine"))
                os.chown(data, 65532, 65532)
                os.chown(file, 65532, 65532)
                os.chmod(data, 0o755)
                os.chmod(file, 0o644)
                self.registered(daemon.put("/v1/criteria/new", MINE), 201)  # without a restart
            os.chmod(data, 0o000)
            with self.assertRaisesRegex(RuntimeError, "exit 73"):  # what was recorded there is out of reach
                lossd.Daemon("--data-dir", data, user=65532)
            os.chmod(data, 0o755)

    def test_full_disk(self):
        with tempfile.TemporaryDirectory() as home:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "lossd-test", home],
                              stderr=subprocess.DEVNULL).returncode:
                self.skipTest("no tmpfs can be mounted here")
            try:
                self.fill_and_free(home)
            finally:
                subprocess.run(["umount", "-l", home], check=True)

    def test_small_disk(self):
        """What was deleted makes room, on a disk that was full of it; again and again."""
        with tempfile.TemporaryDirectory() as home:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "lossd-test", home],
                              stderr=subprocess.DEVNULL).returncode:
                self.skipTest("no tmpfs can be mounted here")
            try:
                body, data = many_boxes(1500), os.path.join(home, "data")
                with lossd.Daemon("--data-dir", data) as daemon:
                    for _ in range(3):
                        names = ["/v1/priors/s%d" % i for i in range(30)]
                        done = [n for n in names if daemon.put(n, body, lossd.SAFETENSORS).status == 201]
                        self.assertIn(len(done), range(10, 25))
                        self.problem(daemon.put(names[-1], body, lossd.SAFETENSORS), 507, "store_full")
                        for name in done:
                            self.gone(daemon.delete(name))
                with lossd.Daemon("--data-dir", data) as daemon:
                    self.registered(daemon.put(names[0], body, lossd.SAFETENSORS), 201)
            finally:
                subprocess.run(["umount", "-l", home], check=True)

    def fill_and_free(self, home):
        data, filler = os.path.join(home, "data"), os.path.join(home, "filler")
        with lossd.Daemon("--data-dir", data) as daemon:
            self.registered(daemon.put("/v1/criteria/mine", MINE), 201)
            self.problem(daemon.put("/v1/priors/large", many_boxes(20000), lossd.SAFETENSORS), 507, "store_full")
            with open(filler, "wb") as out:
                try:
                    for _ in range(300):
                        os.write(out.fileno(), b"x" * 1024)
                except OSError:
                    pass
            statuses = [daemon.put("/v1/criteria/n%d" % i, MINE).status for i in range(40)]
            self.assertEqual(set(statuses) - {201, 507}, set(), statuses)
            self.assertEqual(statuses[-1], 507)
            self.good(self.loss("mine", daemon))
            self.assertEqual(daemon.get("/readyz").status, 200)
            os.unlink(filler)
            self.registered(daemon.put("/v1/criteria/later", MINE), 201)  # without a restart
        with lossd.Daemon("--data-dir", data) as daemon:
            want = {"mine", "later"} | {"n%d" % i for i, status in enumerate(statuses) if status == 201}
            self.assertEqual(self.names(daemon, "criteria") & (want | {"n%d" % i for i in range(40)}), want)
            self.problem(daemon.get("/v1/priors/large"), 404)

    def test_locked(self):
        with tempfile.TemporaryDirectory() as home:
            data, file = self.prepared(home)
            with lossd.Daemon("--data-dir", data, "--workers", "1") as daemon:
                other = sqlite3.connect(file, isolation_level=None)
                other.execute("BEGIN IMMEDIATE")

                def compute():
                    begin = time.monotonic()
                    for _ in range(5):
                        self.good(self.loss("mine", daemon))
                    return time.monotonic() - begin

                waited = lossd.together([lambda: self.problem(daemon.put("/v1/criteria/new", MINE), 503,
                                                              "store_busy", "lock")] * 2 + [compute])[2]
                self.assertLess(waited, 1.5)  # nobody who computes waits for the disk
                other.execute("ROLLBACK")
                other.close()
                self.registered(daemon.put("/v1/criteria/new", MINE), 201)

    def test_deleted_under_it(self):
        with tempfile.TemporaryDirectory() as home:
            data, _ = self.prepared(home)
            with lossd.Daemon("--data-dir", data) as daemon:
                shutil.rmtree(data)
                self.problem(daemon.put("/v1/criteria/new", MINE), 503, "store_unavailable", "moved or deleted")
                self.good(self.loss("mine", daemon))


class Limits(Case):
    FLAGS = None

    def test_as_many_as_are_possible(self):
        with lossd.Daemon() as daemon:
            for i in range(MOST):
                self.registered(daemon.put("/v1/criteria/c%d" % i, MINE), 201)
            self.problem(daemon.put("/v1/criteria/more", MINE), 409, "registry_full", str(MOST))
            self.registered(daemon.put("/v1/criteria/c5", OTHER), 200)
            self.registered(daemon.put("/v1/priors/p", GRID), 201)
            self.gone(daemon.delete("/v1/criteria/c7"))
            self.registered(daemon.put("/v1/criteria/more", MINE), 201)
            names = self.names(daemon, "criteria")
            daemon.stop()
            with lossd.Daemon("--data-dir", daemon.data) as again:
                self.assertEqual(self.names(again, "criteria"), names)

    def test_memory(self):
        """Sets count against the budget until they are deleted; those of patterns make room."""
        with lossd.Daemon("--memory-limit", "8M", "--max-body", "3M") as daemon:
            body, names = many_boxes(15000), []
            for i in range(10):
                answer = daemon.put("/v1/priors/p%d" % i, body, lossd.SAFETENSORS)
                if answer.status != 201:
                    self.problem(answer, 409, "registry_full", "quarter")
                    break
                names.append("p%d" % i)
            self.assertIn(len(names), (2, 3, 4, 5), names)
            self.good(self.loss("ssd-multibox", daemon))
            held = []
            while self.loss("ssd-multibox", daemon).status == 200:
                held.append(daemon.connect())
                held[-1].start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": 40000,
                                                    "Expect": "100-continue"})
                held[-1].interim()
            self.problem(self.loss("ssd-multibox", daemon), 503, "memory_full")
            for name in names:  # deleting needs no memory
                self.gone(daemon.delete("/v1/priors/" + name))
            for connection in held:
                connection.reset()
            self.assertTrue(lossd.until(lambda: self.loss("ssd-multibox", daemon).status == 200, 5))
            for i in range(25):  # 1.2 MB each
                self.assertEqual(daemon.get("/v1/priors/retinanet-%dx320" % (340 + i)).status, 200)
            self.registered(daemon.put("/v1/priors/p", body, lossd.SAFETENSORS), 201)
            self.problem(daemon.get("/v1/priors/retinanet-1600x1600"), (413, 503), "too_expensive memory_full")

    def test_queue(self):
        """However many wait for the disk, they take nothing from those who compute, and the other way round."""
        with lossd.Daemon("--queue-limit", "1") as daemon:
            self.registered(daemon.put("/v1/criteria/other", MINE), 201)
            other = sqlite3.connect(os.path.join(daemon.data, "lossd.sqlite3"), isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            try:   # each that waits does so for seconds
                waiting = [daemon.connect() for _ in range(24)]
                for connection in waiting:
                    connection.start("DELETE", "/v1/criteria/other")
                self.good(self.loss("ssd-multibox", daemon))
                for target in ("/v1/criteria", "/v1/priors", "/v1/criteria/ssd-keras", "/v1/priors/ssd300"):
                    self.assertEqual(daemon.get(target).status, 200)
                self.problem(waiting[-1].answer(), 503, "queue_full", "disk.*Retry-After")
            finally:
                other.close()
                for connection in waiting:
                    connection.close()
            self.assertTrue(lossd.until(lambda: daemon.put("/v1/criteria/other", MINE).status in (200, 201), 10))
            with daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Length": 2, "Expect": "100-continue"})
                self.assertEqual(connection.interim(), 100)
                self.problem(self.loss("ssd-multibox", daemon), 503, "queue_full", "queue-limit.*Retry-After")
                self.registered(daemon.put("/v1/criteria/another", MINE), 201)

    def test_who_sends_nothing_waits_for_nobody(self):
        """Only what is complete counts among those who wait for the disk, or for what was recorded."""
        with lossd.Daemon() as daemon, contextlib.ExitStack() as stack:
            for i in range(80):
                silent = stack.enter_context(daemon.connect())
                method, target = (("PUT", "/v1/criteria/slow%d" % i), ("GET", "/v1/runs"))[i >= 12]
                silent.start(method, target, {"Content-Length": 2, "Expect": "100-continue"})
                self.assertEqual(silent.interim(), 100)
            self.registered(daemon.put("/v1/criteria/other", MINE), 201)
            self.assertEqual(daemon.delete("/v1/criteria/other").status, 204)
            self.problem(daemon.delete("/v1/runs/none"), 404, "unknown_run")
            self.assertEqual(daemon.get("/v1/runs").status, 200)

    def test_late_body(self):
        with lossd.Daemon("--request-timeout", "1") as daemon, daemon.connect() as connection:
            connection.start("PUT", "/v1/criteria/late", {"Content-Length": 100, "Content-Type": lossd.JSON})
            connection.send(b"{")
            self.problem(connection.answer(), 408, "body_timeout")
            self.problem(daemon.get("/v1/criteria/late"), 404)

    def test_patterns_hold_nobody_up(self):
        """However long their sets take to be made, the only worker goes on with the losses of others."""
        batch = lossd.random_batch(5, 2, 8732, 21).safetensors()
        with lossd.Daemon("--workers", "1", "--request-timeout", "60") as daemon:
            taken, running = [], [True]

            def look(i):
                self.good(daemon.get("/v1/priors/retinanet-%dx640" % (8000 + i)))
                return time.monotonic()

            def compute():
                while running[0] or not taken:
                    begin = time.monotonic()
                    self.good(daemon.post("/v1/loss", batch))
                    taken.append(time.monotonic() - begin)

            computing = threading.Thread(target=compute)
            begin = time.monotonic()
            computing.start()
            try:
                ends = lossd.together([lambda i=i: look(i) for i in range(8)])
            finally:
                running[0] = False
                computing.join()
            self.assertLess(max(taken), (max(ends) - begin) / 2, (taken, ends, begin))

    def test_clients_that_vanish(self):
        with lossd.Daemon("--queue-limit", "2") as daemon:
            body = json.dumps(MINE).encode()
            for i in range(20):
                connection = daemon.connect()
                connection.start("PUT", "/v1/criteria/v%d" % i, {"Content-Length": len(body)})
                connection.send(body[:len(body) if i % 2 else 5])
                connection.reset()
                if i % 2 == 0:
                    lossd.until(lambda: daemon.get("/v1/criteria/v%d" % i).status == 404, 5)
            self.assertTrue(lossd.until(lambda: daemon.put("/v1/criteria/last", MINE).status in (200, 201), 5))

    def test_replaced_and_deleted_while_in_use(self):
        """Every answer is that of the one set or the other, or says that there is none; nothing crashes."""
        batch = lossd.random_batch(5, 1, 400, 4)
        half = lossd.floats(v / 2 for v in batch.priors)
        bodies = [lossd.save([("priors", "F32", [400, 4], p.tobytes())]) for p in (batch.priors, half)]
        with lossd.Daemon() as daemon:
            want = []
            for body in bodies:
                daemon.put("/v1/priors/p", body, lossd.SAFETENSORS)
                want.append(self.good(daemon.post("/v1/loss?priors=p", batch.safetensors(without=("priors",))))["loss"])
            self.assertNotEqual(want[0], want[1])
            stop = threading.Event()
            seen = [0, 0, 0]

            def user():
                with daemon.connect() as connection:
                    while not stop.is_set():
                        answer = connection.request("POST", "/v1/loss?priors=p", batch.safetensors(without=("priors",)))
                        if answer.status == 422:
                            self.problem(answer, 422, "unknown_priors")
                            seen[2] += 1
                        else:
                            seen[want.index(self.good(answer)["loss"])] += 1

            def owner():
                try:
                    for i in range(60):
                        if i % 3 == 2:
                            self.gone(daemon.delete("/v1/priors/p"))
                        else:
                            self.registered(daemon.put("/v1/priors/p", bodies[i % 3], lossd.SAFETENSORS),
                                            201 if i % 3 == 0 and i else 200)
                        time.sleep(0.01)
                finally:
                    stop.set()

            lossd.together([user, user, user, owner])
            self.assertGreater(min(seen), 0, seen)


class SecondRound(Case):
    """Gradients: sized, placed and computed once the whole batch is known."""
    FLAGS = None

    def batch(self, n=4):
        return lossd.random_batch(3, n, 8732, 21)

    def test_memory_budget(self):
        body = self.batch(1).safetensors()
        with lossd.Daemon("--memory-limit", "4M", "--max-body", "2M") as daemon:
            self.good(daemon.post("/v1/loss", body))
            self.good(daemon.post("/v1/loss?include=gradients", body))
            got = daemon.post("/v1/loss?include=dense_gradients", body)
            self.problem(got, 413, "too_expensive", "memory-limit")
            self.good(daemon.post("/v1/loss", body))
        tensors = {"Accept": lossd.SAFETENSORS}
        with lossd.Daemon("--memory-limit", "7M", "--max-body", "2M") as daemon, daemon.connect() as held:
            self.assertEqual(daemon.post("/v1/loss?include=dense_gradients", body, headers=tensors).status, 200)
            held.start("POST", "/v1/loss", {"Content-Type": lossd.JSON, "Content-Length": 2 << 20,
                                            "Expect": "100-continue"})
            self.assertEqual(held.interim(), 100)  # and now most of the memory is taken
            got = daemon.post("/v1/loss?include=dense_gradients", body, headers=tensors)
            self.problem(got, 503, "memory_full")
            held.reset()
            self.assertTrue(lossd.until(lambda: daemon.post("/v1/loss?include=dense_gradients", body,
                                                            headers=tensors).status == 200, 5))

    def test_sparse_where_nothing_is_mined(self):
        """Then nearly every row is listed, and what that costs is known before anything is computed."""
        body = self.batch(4).safetensors()
        nan = body[:-4] + lossd.pack("F32", [float("nan")])  # which is found when it is computed
        none = "criterion=%7B%22mining%22:%7B%22kind%22:%22none%22%7D%7D"
        with lossd.Daemon("--memory-limit", "16M", "--max-body", "6M") as daemon:
            self.good(daemon.post("/v1/loss?include=gradients", body))
            self.problem(daemon.post("/v1/loss?" + none, nan), 422, "prediction_not_finite")
            got = daemon.post("/v1/loss?include=gradients&" + none, nan)
            self.problem(got, 413, "too_expensive", "memory-limit")
            self.good(daemon.post("/v1/loss?" + none, body))

    def test_clients_that_vanish(self):
        body = self.batch().safetensors()
        with lossd.Daemon("--queue-limit", "3", "--workers", "2") as daemon:
            want = daemon.post("/v1/loss?include=dense_gradients", body)
            self.good(want)
            for i in range(12):
                connection = daemon.connect()
                connection.start("POST", "/v1/loss?include=%s" % ("dense_gradients" if i % 3 else "gradients"),
                                 {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
                connection.try_send(body if i % 2 else body[:-100])
                time.sleep(random.Random(i).random() * 0.1)
                connection.reset()
            self.assertTrue(lossd.until(lambda: daemon.post("/v1/loss", body).status == 200))
            self.assertEqual(lossd.stable(daemon.post("/v1/loss?include=dense_gradients", body).body),
                             lossd.stable(want.body))

    def test_stop_in_the_middle(self):
        body = self.batch().safetensors()
        for delay in (0, 0.02, 0.05, 0.1, 0.2):
            with lossd.Daemon("--drain-timeout", "0", "--workers", "2") as daemon:
                connections = []
                for _ in range(3):
                    connection = daemon.connect()
                    connection.start("POST", "/v1/loss?include=dense_gradients",
                                     {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
                    connection.try_send(body)
                    connections.append(connection)
                time.sleep(delay)
                daemon.signal()
                self.assertEqual(daemon.wait(), 0)
                for connection in connections:
                    connection.close()


if __name__ == "__main__":
    unittest.main()
