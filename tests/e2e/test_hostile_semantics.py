# SPDX-License-Identifier: Apache-2.0
"""Well-formed and meaningless, or on the edge of it (M01-M16): refused with the place and the number, or computed as is
documented, and never NaN."""
import json
import math
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import lossd  # noqa: E402
from hostile import edited  # noqa: E402

NAN, INF = float("nan"), float("inf")
TINY = lossd.tiny()
BOX = ["annotations", 0, "boxes"]
LABELS = ["annotations", 0, "labels"]


def finite(value):
    """Whether every number within is."""
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


class Case(hostile.Refusals):
    def edit(self, path, value=None, **options):
        return {**edited(TINY.document(), path, value), **options}

    def loss(self, document, target="/v1/loss", daemon=None):
        """What is answered to a document that is accepted."""
        body = json.dumps(document).encode()
        answer = daemon.post(target, body, lossd.JSON) if daemon else self.ask(body, lossd.JSON, target)
        got = self.right(answer)
        self.assertTrue(finite(got), got)
        return got

    def both(self, batch, code, pointer_in_json, pointer_in_tensors, detail=None):
        """Refused in both encodings."""
        self.json(batch.document(), 422, code, detail, pointer_in_json)
        self.binary(batch.safetensors(), 422, code, detail, pointer_in_tensors)


class Annotations(Case):
    def with_box(self, *values):
        """A batch of two images whose third box is this one."""
        batch = lossd.random_batch(9, n=2, p=9, c=4, objects=4)
        batch.boxes[8:12] = lossd.floats(values)
        return batch

    def place(self):
        first = lossd.random_batch(9, n=2, p=9, c=4, objects=4).counts[0]
        return "^/annotations/%d/boxes/%d" % ((0, 2) if first > 2 else (1, 2 - first)), r"^boxes\[2\]"

    def test_M01_inverted_boxes(self):
        for values in ((0.5, 0, 0.25, 0.5), (0, 0.5, 0.5, 0.125)):
            self.both(self.with_box(*values), "box_inverted", *self.place(), str(min(v for v in values if v)))
            batch = self.with_box(*values)
            got = self.loss({**batch.document(), "invalid_boxes": "drop"})
            self.assertEqual(got["assignment"]["dropped_boxes"], 1)
            self.assertEqual(got["assignment"]["objects"], len(batch.labels) - 1)
        document = lossd.random_batch(3, n=3, p=9, c=4, objects=3).document()
        document["annotations"][2] = {"boxes": [[0, 0, 1, 1], [0.9, 0, 0.1, 1]], "labels": [1, 1]}
        self.json(document, 422, "box_inverted", None, "^/annotations/2/boxes/1")

    def test_M02_boxes_without_area(self):
        tiny = 2.0 ** -75   # whose square float32 does not hold
        for values in ((0.5, 0, 0.5, 0.5), (0.1, 0.1, 0.1, 0.1), (0, 0.5, 1, 0.5), (0, 0, tiny, tiny),
                       (0.5, 0.5, 0.5 + 1e-9, 1)):
            self.both(self.with_box(*values), "box_degenerate", *self.place())
            got = self.loss({**self.with_box(*values).document(), "invalid_boxes": "drop"})
            self.assertEqual(got["assignment"]["dropped_boxes"], 1)
        self.json(self.edit(BOX, [[0, 0, 10, 10]], image_size=[1e30, 1e30], priors="ssd300"), 422)
        for values in ([0.5, 0.5, 0, 0.5], [0.5, 0.5, -1, 0.5], [0.5, 0.5, tiny, tiny], [0.5, 0.5, 1e39, 1]):
            self.json(self.edit(["priors"], [values, [0.5, 0.5, 1, 1]]), 422, "prior_degenerate", None, "^/priors/0")
        for values in ([0.5, 0.5, 0, 1], [0.5, NAN, 1, 1], [0.5, 0.5, -1, -1], [0.5, 0.5, INF, 1]):
            bad = lossd.tiny()
            bad.priors[4:] = lossd.floats(values)
            self.binary(bad.safetensors(), 422, "prior_degenerate", None, r"^priors\[1\]")

    def test_M03_boxes_out_of_range(self):
        """A little outside is a box cut by the border; pixels against relative priors are a mistake, and the reverse."""
        for values, number in (((0, 0, 300, 300), "300"), ((-1.5, 0, 1, 1), "-1\\.5"), ((0, 0, 2.0625, 1), "2\\.0625")):
            self.both(self.with_box(*values), "box_range", *self.place(), number)
        self.json(self.edit(BOX, [[0, 0, 1e39, 1]]), 422, "box_not_finite box_range", None, "^/annotations/0/boxes/0")
        for value in (NAN, INF, -INF):
            self.binary(self.with_box(value, 0, 1, 1).safetensors(), 422, "box_not_finite", None, r"^boxes\[2\]")
        for edge in ([-1, -1, 2, 2], [0, 0, 1, 1]):
            self.loss(self.edit(BOX, [edge]))
        self.json({"annotations": [{"boxes": [[0, 0, 1, 1]], "labels": [0]}], "priors": "retinanet-640x640"}, 422,
                  "box_range", "pixels", target="/v1/match")

    def test_M04_labels_out_of_range(self):
        for label in (2, -1, 1 << 31, 1 << 32, -(1 << 63)):
            self.json(self.edit(LABELS, [label]), 422, "label_range", None, "^/annotations/0/labels/0$")
        self.json(self.edit(LABELS, [1 << 64]), 400, "json_number_range")
        for base, labels in ((1, (0, 3)), (0, (2, -1))):
            for label in labels:
                self.json(self.edit(LABELS, [label], label_base=base), 422, "label_range", "%d" % label)
        self.loss(self.edit(LABELS, [2], label_base=1))

    def test_M05_no_objects(self):
        for path, value in ((["annotations", 0], {"boxes": [], "labels": []}),):
            for criterion in ("ssd-multibox", "ssd-multibox-l1"):
                got = self.loss(self.edit(path, value, criterion=criterion))
                self.assertEqual((got["no_positives"], got["loss"]["loc"], got["loss"]["total"]), (True, 0, 0))
            got = self.loss(self.edit(path, value, criterion="retinanet-focal"))
            self.assertEqual((got["no_positives"], got["loss"]["loc"]), (True, 0))
        batch = lossd.random_batch(4, n=3, p=33, c=4, objects=3)
        counts = batch.counts[:]
        got = self.loss({**batch.document(), "include": "images"})
        self.assertEqual([image["objects"] for image in got["images"]], counts)

    def test_M06_everything_ignored(self):
        got = self.loss(self.edit(["annotations", 0, "ignore"], [1]))
        self.assertEqual((got["no_positives"], got["assignment"]["ignored_objects"], got["assignment"]["objects"]),
                         (True, 1, 0))
        for value in ([2], [-1], [0.5], ["x"], [None], [1 << 40]):
            self.json(self.edit(["annotations", 0, "ignore"], value), 422)
        self.json(self.edit(["annotations", 0, "ignore"], [1, 0]), 422, "shape counts", None, "^/annotations/0")

    def test_M07_more_objects_than_priors(self):
        n = 50
        got = self.loss({**self.edit(BOX, [[0, 0, 0.5, 0.5]] * n), "annotations": [
            {"boxes": [[0, 0, 0.5, 0.5]] * n, "labels": [0] * n}]})
        self.assertEqual((got["assignment"]["objects"], got["assignment"]["positives"]), (n, 1))
        self.assertEqual(got["assignment"]["unmatched_objects"], n - 1)
        n = 4096   # against 200,704 priors: memory for their sum, not for their product
        priors = {"generator": "grid", "image_size": [448, 448], "strides": [1], "scales": [10], "ratios": [1]}
        body = json.dumps({"priors": priors, "annotations": [
            {"boxes": [[i % 64, i // 64, i % 64 + 10, i // 64 + 10] for i in range(n)], "labels": [0] * n}]}).encode()
        with lossd.Daemon("--request-timeout", "600") as patient:
            got = self.good(patient.post("/v1/match", body, lossd.JSON))
            self.assertLess(patient.memory("VmHWM"), 256 << 20)
        self.assertEqual((got["assignment"]["priors"], got["assignment"]["objects"]), (448 * 448, n))


class Shapes(Case):
    def test_M08_dimensions_that_cannot_be(self):
        for path, value in ((["predictions"], {"loc": [], "conf": []}), (["predictions"], {"loc": [[]], "conf": [[]]}),
                            (["predictions", "conf"], [[[0], [0]]]), (["predictions", "conf"], [[[], []]]),
                            (["annotations"], [])):
            self.json(self.edit(path, value), 422, "shape ragged_array", r"\d")
        self.json({"predictions": {"loc": [], "conf": []}, "annotations": []}, 422)
        self.json({"annotations": []}, 422, "shape", target="/v1/match")
        self.json(self.edit(["priors"], []), 422, "shape", None, "^/priors")

    def test_M13_shapes_that_disagree(self):
        for path, value in (
                (["predictions", "loc"], [[[0, 0, 0], [0, 0, 0]]]), (["predictions", "loc"], [[[0, 0, 0, 0]]]),
                (["predictions", "conf"], [[[0, 0, 0], [0, 0, 0]]] * 2),
                (["predictions", "loc"], {"shape": [1, 2, 4], "data": [0] * 7}),
                (["predictions", "loc"], {"shape": [1, 2, 4], "data": [0] * 9}),
                (["predictions", "loc"], {"shape": [2, 4], "data": [0] * 8}),
                (["predictions", "loc"], {"shape": [1 << 31, 1 << 31, 4], "data": [0] * 8}),
                (["annotations"], TINY.document()["annotations"] * 2), (LABELS, [0, 1]), (LABELS, []),
                (["priors"], [[0.25, 0.25, 0.5, 0.5]]), (["priors"], [[0.5, 0.5, 1], [0.5, 0.5, 1]]), (["priors"], "ssd300")):
            with self.subTest(path=path, value=str(value)[:60]):
                self.json(self.edit(path, value), 422, "shape ragged_array counts", r"\d")
        t = TINY.tensors()
        for made in (dict(loc=("F32", [1, 1, 4], bytes(16))), dict(loc=("F32", [1, 2, 5], bytes(40))),
                     dict(loc=("F32", [2, 4], bytes(32))), dict(conf=("F32", [2, 2, 3], bytes(48))),
                     dict(conf=("F32", [1, 2, 1], bytes(8))), dict(boxes=("F32", [1, 5], bytes(20))),
                     dict(boxes=("F32", [4], bytes(16))), dict(labels=("I64", [2], bytes(16))),
                     dict(labels=("I64", [1, 1], bytes(8))), dict(counts=("I64", [2], bytes(16))),
                     dict(counts=("I64", [], bytes(8))), dict(priors=("F32", [1, 4], lossd.pack("F32", [0.5, 0.5, 1, 1])))):
            with self.subTest({name: tensor[1] for name, tensor in made.items()}):
                self.binary(lossd.save([(k, *v) for k, v in {**t, **made}.items()]), 422, "shape counts", r"\d")
        for counts in ([0], [2], [-1], [1 << 40], [(1 << 63) - 1]):
            made = {**t, "counts": ("I64", [1], lossd.pack("I64", counts))}
            self.binary(lossd.save([(k, *v) for k, v in made.items()]), 422, "counts shape")
        two = lossd.random_batch(3, n=2, p=9, c=4, objects=3).tensors()
        two["counts"] = ("I64", [2], lossd.pack("I64", [two["boxes"][1][0] + 1, -1]))
        self.binary(lossd.save([(k, *v) for k, v in two.items()]), 422, "counts")
        self.binary(TINY.safetensors({"priors": "ssd300"}), 422, "priors_twice")
        self.refuse(TINY.safetensors(), lossd.SAFETENSORS, 422, "priors_twice", target="/v1/loss?priors=ssd300")
        self.binary(TINY.safetensors({"priors": "ssd-300"}, without=("priors",)), 422, "unknown_priors", "ssd300")


class Numbers(Case):
    def test_M09_predictions_that_are_not_finite(self):
        document = lossd.random_batch(3, n=2, p=9, c=4).document()
        document["predictions"]["conf"][1][3][2] = 1e300
        document["predictions"]["conf"][1][7][0] = -1e300
        self.json(document, 422, "prediction_not_finite", "2", "^/predictions/conf/1/3")
        batch = lossd.random_batch(9, n=2, p=4100, c=4, objects=4)
        for value in (NAN, INF, -INF):
            bad = batch.pick(range(2))
            for prior in (4099, 70, 71):
                bad.conf[(4100 + prior) * 4 + 1] = value
            self.binary(bad.safetensors(), 422, "prediction_not_finite", r"\b3\b", r"^conf\[1,70")
        bad = batch.pick(range(2))
        bad.loc[5 * 4 + 3] = NAN
        self.binary(bad.safetensors(), 422, "prediction_not_finite", None, r"^loc\[0,5")

    def test_M10_numbers_at_the_edge(self):
        """The loss of a row of huge numbers is their difference; where float32 cannot hold that, it is refused."""
        conf = ["predictions", "conf"]
        for row in ([1e38, -1e38, 0], [1e38] * 3, [-1e38] * 3, [0] * 3, [1e-38] * 3, [3.4e38, 3.4e38, 3.4e38],
                    [3.4e38, -1e37, 0]):
            got = self.loss(self.edit(conf, [[[0, 0, 0], row]]))
            self.assertGreaterEqual(got["loss"]["conf"], 0)
        equal = self.loss(self.edit(conf, [[[7, 7, 7], [-3, -3, -3]]]))
        self.near(equal["loss"]["conf_positive"], math.log(3), 1e-6)
        for rows in ([[3e38, -3e38, 0], [0, 0, 0]], [[0, 0, 0], [-3.4e38, 3.4e38, 0]]):
            self.json(self.edit(conf, [rows]), 422, "loss_overflow", None, "^/predictions/conf")
        for value in (3e38, -3e38):
            answer = self.ask(json.dumps(self.edit(["predictions", "loc"], [[[value] * 4, [0] * 4]])).encode(), lossd.JSON)
            if answer.status != 200:
                self.problem(answer, 422, "loss_overflow")
            else:
                self.assertTrue(finite(answer.json()))

    def test_M11_ties(self):
        """Objects that are the same, overlaps that are the same or just at the threshold: the same answer on every level,
        with any number of workers, again and again, and the lowest prior wins."""
        box, half = [0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.75, 0.5]   # whose overlap is exactly one half
        priors = [[0.5, 0.5, 0.5, 0.5]] * 4 + [[0.5, 0.375, 0.5, 0.25]] * 3
        batch = lossd.random_batch(5, n=3, p=7, c=4, objects=2)
        document = {**batch.document(), "priors": priors, "include": "objects,assignment,targets", "annotations": [
            {"boxes": [box, box, half], "labels": [0, 1, 2]}, {"boxes": [box] * 9, "labels": [i % 3 for i in range(9)]},
            {"boxes": [half, half], "labels": [2, 2]}]}
        body = json.dumps(document).encode()
        want = self.loss(document)
        self.assertEqual({row["best_prior"] for row in want["objects"]}, {0, 4})
        self.assertTrue(all(c != -1 for c in want["assignment_map"]["classes"][2]), want["assignment_map"])
        answers = {lossd.stable(self.ask(body, lossd.JSON).body) for _ in range(20)}
        for level in ("ref", "baseline", "auto"):
            for workers in ("1", "4"):
                with lossd.Daemon("--cpu-level", level, "--workers", workers) as daemon:
                    answers.add(lossd.stable(daemon.post("/v1/loss", body, lossd.JSON).body))
        self.assertEqual(len(answers), 1)

    def test_M12_objects_that_overlap_nothing(self):
        """The presets of the seeds force them onto prior 0; greedy and none leave them. Both say so."""
        document = self.edit(BOX, [[0.5625, 0, 0.9375, 0.1875]], priors=[[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
        for force, claimed in ((None, True), ("last", True), ("first", True), ("greedy", False), ("none", False)):
            if force:
                document["criterion"] = {"base": "ssd-multibox", "matcher": {"force": force}}
            got = self.loss({**document, "include": "objects"})
            self.assertEqual(got["assignment"]["objects_without_overlap"], 1, force)
            self.assertEqual(got["assignment"]["positives"], int(claimed), force)
            self.assertEqual(got["assignment"]["unmatched_objects"], int(not claimed), force)

    def test_M14_fewer_negatives_than_are_mined(self):
        got = self.loss(TINY.document())   # one positive, one negative: three are wanted
        self.assertEqual((got["assignment"]["positives"], got["assignment"]["hard_negatives"]), (1, 1))
        everywhere = self.edit(["priors"], [[0.25, 0.25, 0.5, 0.5]] * 2)
        got = self.loss(everywhere)        # no negative at all
        self.assertEqual((got["assignment"]["negatives"], got["assignment"]["hard_negatives"]), (0, 0))
        self.assertEqual(got["loss"]["conf_negative"], 0)
        for mining in ({"ratio": 1e6}, {"ratio": 0}, {"scope": "batch", "ratio": 1000}, {"min_negatives": 1000000}):
            self.loss({**TINY.document(), "criterion": {"base": "ssd-multibox", "mining": mining}})

    def test_M16_a_device_and_the_processor(self):
        """What must be the same is compared where there is a device (test_differential.py); a named one is never replaced."""
        self.json({**TINY.document(), "device": "cuda:1000"}, (422, 503))
        self.json({**TINY.document(), "device": "cuda:-1"}, 422, "invalid_option")
        self.loss({**TINY.document(), "device": "cpu"})


class TooExpensive(lossd.Case):
    FLAGS = ("--request-timeout", "1")

    def test_M15_more_than_there_is_time_for(self):
        """Before it is queued: 200,000 objects against 8732 priors are estimated at more than a second."""
        n = 200000
        body = lossd.save([("counts", "I64", [1], lossd.pack("I64", [n])),
                           ("boxes", "F16", [n, 4], lossd.pack("F16", [.125, .125, .5, .5]) * n),
                           ("labels", "U8", [n], bytes(n))])
        self.problem(self.daemon.post("/v1/match", body, lossd.SAFETENSORS), 413, "too_expensive")


class Query(Case):
    def query(self, query):
        return self.ask(TINY.safetensors(), lossd.SAFETENSORS, "/v1/loss?" + query)

    def test_unknown(self):
        self.problem(self.query("includes=images"), 422, "unknown_member unsupported_option", "include")
        self.problem(self.query("criterion=ssd-multibx"), 422, "unknown_criterion", "ssd-multibox")
        self.problem(self.query("classes=3"), 422)

    def test_encoding(self):
        self.assertEqual(self.query("include=images%2Clevels&criterion=ssd%2Dmultibox").status, 200)


class Costs(lossd.Case):
    FLAGS = ("--request-timeout", "%d" % lossd.PATIENCE)

    def test_a_loss_beyond_float32(self):
        body = {"priors": [[.5, .5, .5, .5]], "predictions": {"loc": [[[0, 0, 0, 0]]], "conf": [[[-3e38, 3e38]]]},
                "annotations": [{"boxes": [], "labels": []}]}
        self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))  # nothing is mined
        body["annotations"] = [{"boxes": [[.2, .2, .8, .8]], "labels": [0]}]
        body["predictions"]["conf"] = [[[3e38, -3e38]]]
        self.problem(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON), 422, "loss_overflow",
                     pointer="/predictions/conf")
        body["criterion"] = {"weights": {"conf": 0}}   # what has no weight may be infinite
        self.assertEqual(self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))["loss"]["conf"], 0)

    def test_numbers_beyond_float32_are_never_answered(self):
        """A finite loss whose target, sent back, would not be: a prior so small that offsets from it overflow."""
        body = {"priors": [[0, .5, 1e-37, .5], [.5, .5, .5, .5]], "include": "targets",
                "criterion": {"coder": {"variances": [1e-3, .1, .1, .1]}, "matcher": {"force": "last", "positive_iou": 1}},
                "annotations": [{"boxes": [[.1, .1, .4, .4]], "labels": [0]}]}
        self.good(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON))
        body["annotations"][0]["boxes"] = [[.9, .1, .95, .4]]   # meets neither: it claims prior 0
        problem = self.problem(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON), 422, "loss_overflow")
        self.assertIn("image 0, prior 0", problem["detail"])

    def test_boxes_that_vanish(self):
        """An offset that makes a box of no size at all has a loss, and a slope, under every IoU loss."""
        for kind in ("giou", "diou", "ciou"):
            body = {"priors": [[.5, .5, .5, .5]], "include": "gradients", "criterion": {"localization": {"kind": kind}},
                    "predictions": {"loc": [[[0, 0, -250, -250]]], "conf": [[[0, 1]]]},
                    "annotations": [{"boxes": [[.3, .3, .7, .7]], "labels": [0]}]}
            got = self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))
            self.near(got["loss"]["loc"], 1.0 if kind != "ciou" else got["loss"]["loc"], 1e-5)
            self.assertTrue(all(isinstance(x, (int, float)) for x in got["gradients"]["loc"][0]), got["gradients"])

    def test_many_objects_of_one_place_forced_greedily(self):
        """Each takes a prior of its own; hundreds that want the same ones are done in time."""
        box, n = [.4, .4, .6, .6], 400
        body = {"criterion": {"matcher": {"force": "greedy"}}, "include": "objects",
                "annotations": [{"boxes": [box] * n, "labels": [0] * n}]}
        got = self.good(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON))
        alone = {**body, "annotations": [{"boxes": [box], "labels": [0]}]}
        first = self.good(self.daemon.post("/v1/match", json.dumps(alone).encode(), lossd.JSON))["objects"][0]
        self.assertEqual({row["best_prior"] for row in got["objects"]}, {first["best_prior"]})
        self.assertEqual([row["collided"] for row in got["objects"]], [False] + [True] * (n - 1))
        self.assertEqual(sum(row["positives"] for row in got["objects"]), got["assignment"]["positives"])
        self.assertEqual(got["assignment"]["unmatched_objects"],
                         sum(row["positives"] == 0 for row in got["objects"]))

    def test_dense_json_is_not_too_complex(self):
        """Whole numbers and empty arrays make the largest trees for their text."""
        flat = {"shape": [1, 8732, 4], "data": [0] * (8732 * 4)}
        got = self.good(self.daemon.post("/v1/loss", json.dumps(
            {"predictions": {"loc": flat, "conf": {"shape": [1, 8732, 21], "data": [0] * (8732 * 21)}},
             "annotations": [{"boxes": [[.2, .2, .8, .8]], "labels": [0]}]}, separators=(",", ":")).encode(), lossd.JSON))
        self.assertGreater(got["loss"]["total"], 0)
        self.good(self.daemon.post("/v1/match", json.dumps(
            {"annotations": [{"boxes": [], "labels": []}] * 1000}, separators=(",", ":")).encode(), lossd.JSON))


if __name__ == "__main__":
    unittest.main()
