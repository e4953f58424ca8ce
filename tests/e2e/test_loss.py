# SPDX-License-Identifier: Apache-2.0
"""The main job: predictions and annotations in, the loss and what it is made of out, the same whatever the way in."""
import json
import math
import os
import re
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

# The shipped batch, computed by an independent program (float32 matching, float64 losses).
TRUTH = {
    "ssd-multibox": {"total": 4.504262144380764, "loc": 1.050752142991676, "conf": 3.453510001389088,
                     "conf_positive": 2.4722232679205876, "conf_negative": 0.9812867334685004},
    "ssd-multibox-l1": {"total": 4.039867881328724, "loc": 0.5863578799396358, "conf": 3.453510001389088,
                        "conf_positive": 2.4722232679205876, "conf_negative": 0.9812867334685004},
}
POSITIVES = [212, 210, 198, 152, 252, 204, 197, 267]
HARD_NEGATIVES = [636, 630, 594, 456, 756, 612, 591, 801]
FORCED = [0, 0, 0, 1, 0, 0, 0, 1]
COLLIDED = [0] * 8
PARTS = ("total", "loc", "conf", "conf_positive", "conf_negative")
EVERYTHING = "images,classes,levels,objects,assignment,targets"
SUMS = "images,classes,levels"


def flat(rows):
    return [x for row in rows for x in (flat(row) if isinstance(row, list) else [row])]


class LossCase(lossd.Case):
    def post(self, body, query="", content_type=lossd.SAFETENSORS, accept=None):
        return self.daemon.post("/v1/loss" + query, body, content_type, {"Accept": accept} if accept else None)

    def check_truth(self, got, criterion="ssd-multibox"):
        for part in PARTS:
            self.near(got["loss"][part], TRUTH[criterion][part], 1e-7, part)
        statistics = got["assignment"]
        for name, want in {"images": 8, "priors": 8732, "objects": 148, "ignored_objects": 0, "dropped_boxes": 0,
                           "positives": 1692, "negatives": 68164, "ignored": 0, "hard_negatives": 5076, "forced": 2,
                           "collided": 0, "unmatched_objects": 0, "objects_without_overlap": 0}.items():
            self.assertEqual(statistics[name], want, name)
        self.assertEqual(statistics["best_iou"]["histogram"], [0, 0, 0, 1, 1, 8, 57, 73, 8, 0])
        self.near(statistics["best_iou"]["mean"], 0.7061404833519781, 1e-6)
        self.assertEqual((statistics["positives_per_object"]["min"], statistics["positives_per_object"]["max"]),
                         (1, 18))
        self.assertIs(got["no_positives"], False)

    def check_images(self, got):
        for name, want in (("positives", POSITIVES), ("hard_negatives", HARD_NEGATIVES), ("forced", FORCED),
                           ("collided", COLLIDED)):
            self.assertEqual([row[name] for row in got["images"]], want, name)


class Shipped(LossCase):
    """The shipped batch."""

    def test_safetensors(self):
        got = self.good(self.post(lossd.bccd_bytes(), "?include=images"))
        self.check_truth(got)
        self.check_images(got)
        self.assertEqual((got["criterion"], got["priors"], got["device"], got["classes_total"], got["label_base"]),
                         ("ssd-multibox", "ssd300", "cpu", 3, 0))
        self.assertEqual(got["normalizer"], {"loc": 1692, "conf_positive": 1692, "conf_negative": 1692})
        for part in ("loc", "conf_positive", "conf_negative"):
            self.near(got["sums"][part] / 1692, TRUTH["ssd-multibox"][part], 1e-7, part)
        self.assertEqual(set(got["timing_ms"]), {"receive", "queue", "compute"})
        self.assertTrue(all(t >= 0 for t in got["timing_ms"].values()), got["timing_ms"])

    def test_json_says_the_same_digits(self):
        want = lossd.stable(self.post(lossd.bccd_bytes(), "?include=" + SUMS).body)
        for nested_or_flat in (False, True):
            body = lossd.bccd().json(flat=nested_or_flat, include=SUMS, priors="ssd300")
            answer = self.post(body, content_type=lossd.JSON)
            self.check_truth(self.good(answer))
            self.assertEqual(lossd.stable(answer.body), want)

    def test_l1(self):
        for query in ("?criterion=ssd-multibox-l1&priors=ssd300&include=images",):
            got = self.good(self.post(lossd.bccd_bytes(), query))
            self.check_truth(got, "ssd-multibox-l1")
            self.check_images(got)
            self.assertEqual(got["normalizer"]["loc"], 4 * 1692)
            self.assertEqual(got["criterion"], "ssd-multibox-l1")

    def test_tensor_order_alignment_and_integer_types(self):
        batch = lossd.bccd()
        want = lossd.stable(self.post(batch.safetensors(), "?include=" + SUMS).body)
        variants = [dict(order=order) for order in (
            ("boxes", "conf", "counts", "labels", "loc"), ("loc", "conf", "boxes", "labels", "counts"),
            ("conf", "counts", "loc", "boxes", "labels"))]
        variants += [dict(pad=pad) for pad in (1, 2, 3, 4, 7)]
        variants += [dict(pad=5, order=("labels", "loc", "counts", "conf", "boxes"), label_dtype="U8"),
                     dict(label_dtype="I8", count_dtype="I32"), dict(label_dtype="I16"), dict(label_dtype="I32"),
                     dict(meta={"format": "pt", "criterion": "ssd-multibox", "priors": "ssd300"})]
        for variant in variants:
            with self.subTest(variant):
                answer = self.post(batch.safetensors(**variant), "?include=" + SUMS)
                self.good(answer)
                self.assertEqual(lossd.stable(answer.body), want)

    def test_priors_as_a_tensor(self):
        """The named set, sent back as a tensor, gives the same numbers under the name `inline`."""
        tensors = lossd.load(self.daemon.get("/v1/priors/ssd300", Accept=lossd.SAFETENSORS).body)[1]
        self.assertEqual(tensors["priors"][:2], ("F32", [8732, 4]))
        batch = lossd.bccd().pick(range(8))
        batch.priors = lossd.floats(tensors["priors"][2])
        want, answer = self.post(batch.safetensors(without="priors")), self.post(batch.safetensors())
        got = self.good(answer)
        self.assertEqual(got["priors"], "inline")
        self.assertEqual(lossd.stable(answer.body).replace('"inline"', '"ssd300"'), lossd.stable(want.body))

    def test_position_in_the_batch(self):
        batch, order = lossd.bccd(), [5, 2, 7, 0, 1, 6, 3, 4]
        straight = self.good(self.post(batch.safetensors(), "?include=images,classes"))
        shuffled = self.good(self.post(batch.pick(order).safetensors(), "?include=images,classes"))
        self.assertEqual([straight["images"][i] for i in order], shuffled["images"])
        for part in PARTS:
            self.near(shuffled["loss"][part], straight["loss"][part], 1e-14, part)
        self.assertEqual({k: v for k, v in straight["assignment"].items() if isinstance(v, int)},
                         {k: v for k, v in shuffled["assignment"].items() if isinstance(v, int)})
        for i in (0, 3, 7):
            alone = self.good(self.post(batch.pick([i]).safetensors(), "?include=images"))
            row, own = straight["images"][i], alone["images"][0]
            for name in ("positives", "negatives", "hard_negatives", "forced", "objects", "collided"):
                self.assertEqual(own[name], row[name], name)
            for part in PARTS:
                self.near(own["loss"][part] * POSITIVES[i], row["loss"][part] * 1692, 1e-14, part)

    def test_arrival_in_pieces(self):
        """The bytes' arrival does not change a digit: one piece, many, chunked."""
        body = lossd.bccd_bytes()
        want = lossd.stable(self.post(body).body)
        headers = {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)}
        for size in (65537, 999983):
            with self.daemon.connect() as connection:
                connection.start("POST", "/v1/loss", headers)
                for i in range(0, len(body), size):
                    connection.send(body[i:i + size])
                self.assertEqual(lossd.stable(connection.answer().body), want)
        with self.daemon.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Transfer-Encoding": "chunked"})
            for i in range(0, len(body), 300007):
                piece = body[i:i + 300007]
                connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
            connection.send(b"0\r\n\r\n")
            self.assertEqual(lossd.stable(connection.answer().body), want)

    def test_parts_add_up(self):
        got = self.good(self.post(lossd.bccd_bytes(), "?include=images,classes,levels,objects"))
        loss = got["loss"]
        self.near(loss["loc"] + loss["conf"], loss["total"], 1e-12)
        self.near(loss["conf_positive"] + loss["conf_negative"], loss["conf"], 1e-12)
        for group in ("images", "classes", "levels"):
            for part in PARTS:
                self.near(sum(row["loss"][part] for row in got[group]), loss[part], 1e-12, group + " " + part)
            for row in got[group]:
                self.near(row["loss"]["loc"] + row["loss"]["conf"], row["loss"]["total"], 1e-12, group)
        whole = got["assignment"]
        for name in ("positives", "negatives", "ignored", "hard_negatives", "objects", "forced", "collided",
                     "unmatched_objects"):
            self.assertEqual(sum(row[name] for row in got["images"]), whole[name], name)
        self.assertEqual([row["class"] for row in got["classes"]], [0, 1, 2, -1])
        self.assertEqual(sum(row["positives"] for row in got["classes"][:3]), 1692)
        self.assertEqual(sum(row["objects"] for row in got["classes"][:3]), 148)
        self.assertTrue(all(0 <= row["correct"] <= row["positives"] for row in got["classes"][:3]))
        self.assertEqual(sum(row["priors"] for row in got["levels"]), 8732)
        self.assertEqual([row["priors"] for row in got["levels"]], [5776, 2166, 600, 150, 36, 4])
        for name in ("positives", "hard_negatives"):
            self.assertEqual(sum(row[name] for row in got["levels"]), whole[name], name)
        objects = got["objects"]
        self.assertEqual(len(objects), 148)
        self.assertEqual(sum(row["positives"] for row in objects), 1692)
        self.assertEqual([row["label"] for row in objects], lossd.bccd().labels)
        self.assertEqual([row["image"] for row in objects],
                         [i for i, count in enumerate(lossd.bccd().counts) for _ in range(count)])
        self.assertTrue(all(0 <= row["best_prior"] < 8732 and 0 < row["best_iou"] <= 1 for row in objects))

    def test_safetensors_answer(self):
        body = lossd.bccd().pick([0, 3]).safetensors()
        plain = self.post(body, "?include=" + EVERYTHING)
        want = self.good(plain)
        answer = self.post(body, "?include=" + EVERYTHING, accept=lossd.SAFETENSORS)
        self.assertEqual((answer.status, answer.type), (200, lossd.SAFETENSORS))
        meta, tensors = lossd.load(answer.body)
        result = lossd.strict_json(meta["result"].encode())
        for name, member in (("loss", "total"), ("loc_loss", "loc"), ("conf_loss", "conf")):
            self.assertEqual(tensors[name], ("F64", [1], [want["loss"][member]]), name)
        self.assertEqual(tensors["positives"], ("I32", [2], [212, 152]))
        for member in ("loss", "sums", "normalizer", "assignment", "criterion", "priors", "no_positives", "images",
                       "classes", "levels", "objects"):
            self.assertEqual(result[member], want[member], member)
        self.assertEqual(result["request_id"], answer.header("X-Request-Id"))
        # the arrays: tensors here, nested lists there
        classes, objects = want["assignment_map"]["classes"], want["assignment_map"]["objects"]
        self.assertEqual(tensors["target_classes"], ("I32", [2, 8732], flat(classes)))
        self.assertEqual(tensors["target_objects"], ("I32", [2, 8732], flat(objects)))
        self.assertEqual([sum(c >= 0 for c in image) for image in classes], [212, 152])
        self.assertEqual([sum(o >= 0 for o in image) for image in objects], [212, 152])
        self.assertEqual(want["targets"]["classes"], classes)
        self.assertEqual(tensors["target_loc"][:2], ("F32", [2, 8732, 4]))
        given = flat(want["targets"]["loc"])
        self.assertEqual(len(given), 2 * 8732 * 4)
        self.assertTrue(all(abs(a - b) <= 1e-6 * max(1, abs(b)) for a, b in zip(tensors["target_loc"][2], given)))

    def test_safetensors_answer_without_includes(self):
        answer = self.post(lossd.bccd_bytes(), accept=lossd.SAFETENSORS)
        self.assertEqual(answer.status, 200, answer)
        meta, tensors = lossd.load(answer.body)
        self.assertEqual(set(tensors), {"loss", "loc_loss", "conf_loss", "positives"})
        self.assertEqual(tensors["positives"][2], POSITIVES)
        self.near(tensors["loss"][2][0], TRUTH["ssd-multibox"]["total"], 1e-7)
        self.assertNotIn("images", lossd.strict_json(meta["result"].encode()))

    def test_nothing_is_included_unasked(self):
        got = self.good(self.post(lossd.bccd_bytes()))
        self.assertEqual(set(got), {"criterion", "priors", "device", "classes_total", "label_base", "loss", "sums",
                                    "normalizer", "assignment", "no_positives", "timing_ms", "request_id"})


class SameDigits(LossCase):
    """One answer, byte for byte, from every worker count and every instruction level."""

    FLAGS = ("--workers", "2")

    def bodies(self):
        return [(lossd.bccd_bytes(), "?include=images,classes,levels,objects"),
                (lossd.bccd_bytes(), "?criterion=ssd-multibox-l1&priors=ssd300&include=images"),
                (lossd.random_batch(11, n=3, p=33, c=7).safetensors(), "?include=" + EVERYTHING),
                (lossd.random_batch(12, n=1, p=4099, c=3).safetensors(), "?include=" + SUMS),
                (lossd.random_batch(13, n=2).safetensors(), "?include=" + SUMS)]

    def answers(self, daemon):
        out = []
        for body, query in self.bodies():
            answer = daemon.post("/v1/loss" + query, body, lossd.SAFETENSORS)
            self.good(answer)
            out.append(lossd.stable(answer.body))
        return out

    def test_workers_and_levels(self):
        want = self.answers(self.daemon)
        ran = []
        for flags in (("--workers", "1"), ("--workers", "5"), ("--cpu-level", "ref"), ("--cpu-level", "baseline"),
                      ("--cpu-level", "avx2"), ("--cpu-level", "avx512")):
            with self.subTest(flags):
                try:
                    daemon = lossd.Daemon(*flags)
                except RuntimeError as refused:
                    self.assertIn(flags[1], ("avx2", "avx512"), refused)  # those that a CPU may lack
                    self.assertRegex(str(refused), r"exit 2\)")
                    continue
                with daemon:
                    self.assertEqual(self.answers(daemon), want)
                ran.append(flags)
        self.assertGreaterEqual(len(ran), 4)


class Options(LossCase):
    """One name everywhere; the query wins."""

    def test_by_hand(self):
        """Two priors, one object that is the first prior: every number follows from the definitions."""
        bg = math.log(math.exp(0.5) + 1 + math.exp(2)) - 0.5
        own = math.log(1 + math.e + 1) - 1
        got = self.good(self.post(lossd.tiny().safetensors(), "?include=" + EVERYTHING))
        self.near(got["loss"]["loc"], 0.125 + 0.03125 + 0 + 1.5, 1e-6)
        self.near(got["loss"]["conf_positive"], own, 1e-6)
        self.near(got["loss"]["conf_negative"], bg, 1e-6)
        self.assertEqual(got["assignment_map"], {"classes": [[0, -1]], "objects": [[0, -1]]})
        self.assertEqual(got["targets"], {"classes": [[0, -1]], "loc": [[[0, 0, 0, 0], [0, 0, 0, 0]]]})
        self.assertEqual(got["objects"], [{"image": 0, "object": 0, "label": 0, "best_prior": 0, "best_iou": 1,
                                           "positives": 1, "forced": False, "collided": False}])
        self.assertEqual([row["correct"] for row in got["classes"][:2]], [1, 0])
        self.assertEqual([(row["name"], row["priors"]) for row in got["levels"]], [("all", 2)])
        self.assertEqual((got["priors"], got["classes_total"]), ("inline", 2))
        flat_l1 = self.good(self.post(lossd.tiny().safetensors(), "?criterion=ssd-multibox-l1"))
        self.near(flat_l1["loss"]["loc"], (0.5 + 0.25 + 0 + 2) / 4, 1e-6)

    def test_query_overrides_body(self):
        meta = {"criterion": "ssd-multibox", "include": "images"}
        got = self.good(self.post(lossd.tiny().safetensors(meta)))
        self.assertIn("images", got)
        got = self.good(self.post(lossd.tiny().safetensors(meta),
                                  "?criterion=ssd-multibox-l1&include=classes%2Clevels"))
        self.assertEqual(got["criterion"], "ssd-multibox-l1")
        self.assertNotIn("images", got)
        self.assertTrue("classes" in got and "levels" in got)
        got = self.good(self.post(lossd.tiny().json(criterion="ssd-multibox", include="images"),
                                  "?criterion=ssd-multibox-l1", lossd.JSON))
        self.assertEqual(got["criterion"], "ssd-multibox-l1")
        self.assertIn("images", got)

    def test_defaults_spelt_out(self):
        want = lossd.stable(self.post(lossd.tiny().safetensors()).body)
        query = "?box_format=xyxy&label_base=0&invalid_boxes=refuse&device=cpu&criterion=ssd-multibox"
        self.assertEqual(lossd.stable(self.post(lossd.tiny().safetensors(), query).body), want)
        body = lossd.tiny().json(box_format="xyxy", label_base=0, invalid_boxes="refuse", device="auto")
        self.assertEqual(lossd.stable(self.post(body, "", lossd.JSON).body), want)
        meta = {"box_format": "xyxy", "label_base": "0", "invalid_boxes": "refuse", "device": "auto", "format": "np"}
        self.assertEqual(lossd.stable(self.post(lossd.tiny().safetensors(meta)).body), want)

    def test_boxes_in_every_form_and_unit(self):
        """The same object, in numbers that are exact in every form, gives the same answer to the last digit."""
        batch, include = lossd.tiny(), "include=images,objects,targets"
        want = lossd.stable(self.post(batch.safetensors(), "?" + include).body)
        forms = {"xyxy": [0, 0, 0.5, 0.5], "xywh": [0, 0, 0.5, 0.5], "cxcywh": [0.25, 0.25, 0.5, 0.5]}
        for form, box in forms.items():
            for size in (None, [512, 256]):
                with self.subTest(form=form, size=size):
                    scale = (size or [1, 1]) * 2
                    batch.boxes = lossd.floats([x * k for x, k in zip(box, scale)])
                    query = "?box_format=" + form + ("&image_size=%5B512,256%5D&" if size else "&") + include
                    self.assertEqual(lossd.stable(self.post(batch.safetensors(), query).body), want)
                    options = {"box_format": form, "include": query.partition("include=")[2]}
                    options.update({"image_size": size} if size else {})
                    self.assertEqual(lossd.stable(self.post(batch.json(**options), "", lossd.JSON).body), want)
                    if size:
                        sizes = ("image_sizes", "F32", [1, 2], lossd.pack("F32", size))
                        tensors = [(name, *rest) for name, rest in batch.tensors().items()] + [sizes]
                        query = "?box_format=" + form + "&" + include
                        self.assertEqual(lossd.stable(self.post(lossd.save(tensors), query).body), want)

    def test_label_base(self):
        batch = lossd.tiny()
        want = self.good(self.post(batch.safetensors(), "?include=classes,objects,assignment"))
        batch.labels = [1]
        got = self.good(self.post(batch.safetensors(), "?include=classes,objects,assignment&label_base=1"))
        self.assertEqual((got["loss"], got["assignment_map"], got["label_base"]), (want["loss"], want["assignment_map"], 1))
        self.assertEqual([row["class"] for row in got["classes"]], [1, 2, -1])
        self.assertEqual([row["class"] for row in want["classes"]], [0, 1, -1])
        self.assertEqual((got["objects"][0]["label"], want["objects"][0]["label"]), (1, 0))
        batch.labels = [0]
        self.problem(self.post(batch.safetensors(), "?label_base=1"), 422, "label_range")
        self.problem(self.post(batch.safetensors(), "?label_base=2"), 422, "invalid_option", pointer="label_base")

    def test_dropped_and_ignored_objects(self):
        """Objects keep the index they were sent with; what is dropped or ignored is only counted."""
        document = lossd.tiny().document(include="images,objects,assignment")
        document["annotations"] = [{"boxes": [[0.9, 0.9, 0.8, 1], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.2, 0.2, 0.2, 0.4]],
                                    "labels": [0, 0, 99, 1], "ignore": [0, False, True, 0]}]
        ask = lambda **options: self.post(json.dumps({**document, **options}).encode(), "", lossd.JSON)
        self.problem(ask(), 422, "box_inverted", pointer="/annotations/0/boxes/0")
        got = self.good(ask(invalid_boxes="drop"))
        self.assertEqual(got["assignment_map"], {"classes": [[0, -2]], "objects": [[1, -1]]})
        self.assertEqual([(row["object"], row["label"]) for row in got["objects"]], [(1, 0)])
        a = got["assignment"]
        self.assertEqual((a["objects"], a["ignored_objects"], a["dropped_boxes"], a["ignored"], a["negatives"]), (1, 1, 2, 1, 0))
        self.assertEqual(got["images"][0]["ignored"], 1)
        half = self.good(ask(invalid_boxes="drop", criterion={"matcher": {"ignore_iof": 1.0}}))
        self.assertEqual(half["assignment"]["ignored"], 1)   # it lies wholly in the ignored object
        document["annotations"][0]["boxes"][2] = [0.5, 0.5, 1, 0.875]
        self.assertEqual(self.good(ask(invalid_boxes="drop", criterion={"matcher": {"ignore_iof": 0.9}}))["assignment"]["ignored"], 0)
        document["annotations"][0]["boxes"][0][0] = 1e39
        self.problem(ask(invalid_boxes="drop"), 422, "box_not_finite", pointer="/annotations/0/boxes/0")

    def test_the_wrong_units(self):
        annotations = [{"boxes": [], "labels": []}, {"boxes": [[.1, .2, .4, .6], [.5, .5, .9, .9]], "labels": [0, 1]}]
        ask = lambda **options: self.daemon.post("/v1/match", json.dumps({"annotations": annotations, **options}).encode(), lossd.JSON)
        problem = self.problem(ask(priors="retinanet-64x64"), 422, "box_range")
        self.assertIn("shares of the image?", problem["detail"])
        self.good(ask(priors="ssd300"))
        annotations[0] = {"boxes": [[10, 20, 40, 60]], "labels": [0]}
        self.good(ask(priors="retinanet-64x64"))
        problem = self.problem(ask(priors="ssd300"), 422, "box_range", pointer="/annotations/0/boxes/0")
        self.assertIn("image_size", problem["detail"])
        self.problem(ask(priors="retinanet-64x64", image_size=[64, 64]), 422, "invalid_option", pointer="/image_size")

    def test_criteria_that_make_no_sense(self):
        for criterion, pointer, words in (
                ({"classification": {"background": "none"}}, "classification/background", ("background", "kind")),
                ({"classification": {"gamma": 2}}, "classification/gamma", ("gamma", "kind")),
                ({"localization": {"delta": 2}}, "localization/delta", ("delta", "kind")),
                ({"localization": {"kind": "giou", "reduction": "mean"}}, "localization/reduction", ("reduction", "kind")),
                ({"matcher": {"negative_iou": 0.6}}, "matcher/negative_iou", ("negative_iou", "positive_iou")),
                ({"mining": {"kind": "none", "ratio": 2}}, "mining/ratio", ("ratio", "kind")),
                ({"mining": {"kind": "none"}, "normalizer": {"kind": "positives_and_mined"}}, "normalizer/kind",
                 ("normalizer", "mining"))):
            with self.subTest(criterion):
                body = self.problem(self.post(lossd.tiny().json(criterion=criterion), "", lossd.JSON), 422,
                                    "criterion_conflict", pointer="/criterion/" + pointer)
                for word in words:
                    self.assertIn(word, body["detail"])
        for criterion, pointer in (({"matcher": {"positive_iou": 0}}, "matcher/positive_iou"),
                                   ({"coder": {"variances": [0, 1, 1, 1]}}, "coder/variances"),
                                   ({"weights": {"loc": -1}}, "weights/loc")):
            with self.subTest(criterion):
                self.problem(self.post(lossd.tiny().json(criterion=criterion), "", lossd.JSON), 422, "criterion_range",
                             pointer="/criterion/" + pointer)
        for criterion in ({"clasification": {}}, {"matcher": {"positive_io": 0.4}}):
            with self.subTest(criterion):
                body = self.problem(self.post(lossd.tiny().json(criterion=criterion), "", lossd.JSON), 422, "unknown_member")
                self.assertIn("did you mean", body["detail"])
        for name in ("alpha", "class_weights"):   # as long as the classes, as the columns
            criterion = {"base": "retinanet-focal", "classification": {name: [0.5] * 7}}
            self.problem(self.post(lossd.tiny().json(criterion=criterion), "", lossd.JSON), 422, "shape",
                         pointer="/criterion/classification/" + name)
        self.problem(self.post(lossd.tiny().json(criterion="ssd-keras"), "", lossd.JSON), 422, "not_probability")
        batch = lossd.tiny()
        batch.priors = None
        self.problem(self.post(batch.json(criterion="retinanet-focal"), "", lossd.JSON), 422, "missing_member", pointer="/priors")

    def test_device(self):
        self.assertEqual(self.good(self.post(lossd.tiny().safetensors(), "?device=cpu"))["device"], "cpu")
        self.assertEqual(self.good(self.post(lossd.tiny().safetensors(), "?device=auto"))["device"], "cpu")
        for name in ("cuda", "cuda:0"):
            self.problem(self.post(lossd.tiny().safetensors(), "?device=" + name), 503, "device_unavailable",
                         '"%s" here, but cpu: (this build has no CUDA|there is no CUDA device)' % name)
        with lossd.Daemon("--device", "cpu") as daemon:
            answer = daemon.post("/v1/loss?device=cuda", lossd.tiny().safetensors(), lossd.SAFETENSORS)
            self.problem(answer, 503, "device_unavailable", "but cpu: .* --device cpu$")
        self.problem(self.post(lossd.tiny().safetensors(), "?device=tpu"), 422, None, "tpu")

    def test_no_objects(self):
        batch = lossd.random_batch(5, n=2, p=9, c=3, objects=0)
        got = self.good(self.post(batch.safetensors(), "?include=" + EVERYTHING))
        self.assertIs(got["no_positives"], True)
        self.assertEqual(got["loss"], dict.fromkeys(PARTS, 0))
        self.assertEqual(got["objects"], [])
        self.assertEqual((got["assignment"]["positives"], got["assignment"]["hard_negatives"]), (0, 0))
        empty = self.good(self.post(batch.json(flat=True), "", lossd.JSON))
        self.assertEqual(empty["loss"], got["loss"])

    def test_floats_of_the_body_are_float32(self):
        """The same float32 by every spelling."""
        batch = lossd.random_batch(6, n=1, p=7, c=4)
        want = lossd.stable(self.post(batch.safetensors()).body)
        text = batch.json()
        self.assertEqual(lossd.stable(self.post(text, "", lossd.JSON).body), want)
        rounded = re.sub(rb"-?\d+\.\d+(?:e-?\d+)?", lambda m: b"%.9g" % float(m.group()), text)
        self.assertNotEqual(rounded, text)
        self.assertEqual(lossd.stable(self.post(rounded, "", lossd.JSON).body), want)

    def test_type_guessing(self):
        want = lossd.stable(self.post(lossd.tiny().safetensors()).body)
        json_body = lossd.tiny().json()
        for body in (lossd.tiny().safetensors(), json_body, b" \r\n\t" + json_body):
            for content_type in (None, "application/octet-stream", "application/x-www-form-urlencoded"):
                if content_type == "application/octet-stream" and body.endswith(b"}"):
                    continue  # means safetensors
                with self.subTest(content_type, body=body[:9]):
                    self.assertEqual(lossd.stable(self.post(body, "", content_type).body), want)
        for content_type in ("Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8"):
            self.assertEqual(lossd.stable(self.post(json_body, "", content_type).body), want)

    def test_type_guessing_byte_by_byte(self):
        """A header of 0x220, 0x27b, ... bytes begins as JSON does; what follows tells, whenever it comes."""
        body = lossd.tiny().safetensors()
        want = lossd.stable(self.post(body).body)
        (size,) = struct.unpack("<Q", body[:8])
        for first in b" {\t\r\n":
            length = (size // 256 + 1) * 256 + first
            longer = struct.pack("<Q", length) + body[8:8 + size] + b" " * (length - size) + body[8 + size:]
            pieces = [bytes([byte]) for byte in longer[:9]] + [longer[9:]]
            with self.subTest(first), self.daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Transfer-Encoding": "chunked"})
                connection.send(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")
                self.assertEqual(lossd.stable(connection.answer().body), want)

    def test_accept(self):
        body = lossd.tiny().safetensors()
        for accept, want in ((None, lossd.JSON), ("*/*", lossd.JSON), ("application/*", lossd.JSON),
                             ("application/json", lossd.JSON), ("text/html, */*;q=0.1", lossd.JSON),
                             ("application/vnd.safetensors", lossd.SAFETENSORS),
                             ("application/octet-stream;q=0.1, application/vnd.safetensors", lossd.SAFETENSORS),
                             ("application/json;q=0.2, application/vnd.safetensors;q=0.9", lossd.SAFETENSORS),
                             ("application/vnd.safetensors;q=0, application/json", lossd.JSON)):
            with self.subTest(accept):
                answer = self.post(body, accept=accept)
                self.assertEqual((answer.status, answer.type), (200, want), answer)
        for accept in ("text/html", "image/png, text/*", "application/json;q=0"):
            with self.subTest(accept):
                self.problem(self.post(body, accept=accept), 406, "not_acceptable")
        # errors are problem documents whatever Accept says
        self.problem(self.post(b"\0" * 9, accept=lossd.SAFETENSORS), 400)
        self.problem(self.daemon.get("/nowhere", Accept="text/html"), 404)

    def test_request_id(self):
        body = lossd.tiny().safetensors()
        answer = self.daemon.post("/v1/loss", body, lossd.SAFETENSORS, {"X-Request-Id": "run-7/step.12"})
        self.assertEqual(answer.header("X-Request-Id"), "run-7/step.12")
        self.assertEqual(self.good(answer)["request_id"], "run-7/step.12")
        quoted = 'a"b\\c {x}'
        answer = self.daemon.post("/v1/loss", body, lossd.SAFETENSORS, {"X-Request-Id": quoted})
        self.assertEqual(self.good(answer)["request_id"], answer.header("X-Request-Id"))
        made = set()
        for name in (None, "x" * 129, "caf\xe9", ""):
            answer = self.daemon.get("/healthz", **({} if name is None else {"X-Request-Id": name}))
            self.assertEqual(answer.status, 200)
            self.assertTrue(answer.header("X-Request-Id"))
            self.assertNotEqual(answer.header("X-Request-Id"), name)
            made.add(answer.header("X-Request-Id"))
        self.assertEqual(len(made), 4)
        long = "y" * 128
        self.assertEqual(self.daemon.get("/healthz", **{"X-Request-Id": long}).header("X-Request-Id"), long)


class Concurrent(LossCase):
    """Mixed sizes from many clients at once."""

    FLAGS = ("--workers", "2", "--queue-limit", "64")

    def test_eight_clients(self):
        bodies = [lossd.tiny().safetensors(), lossd.tiny().json(), lossd.bccd().pick([3]).safetensors(),
                  lossd.random_batch(21, n=3, p=31, c=21).safetensors(),
                  lossd.random_batch(22, n=1, p=65, c=3).json(flat=True), lossd.bccd_bytes()]
        want = []
        for body in bodies:
            answer = self.post(body, "?include=images", None)
            self.good(answer)
            want.append(lossd.stable(answer.body))
        self.assertEqual(len(set(want)), len(bodies) - 1)  # tiny twice
        schedule = [0, 1, 3, 4, 0, 2, 3, 1, 4, 5]

        def client(number):
            wrong = []
            with self.daemon.connect() as connection:
                for step in range(20):
                    i = schedule[(number + step) % len(schedule)]
                    name = "c%d-%d" % (number, step)
                    answer = connection.request("POST", "/v1/loss?include=images", bodies[i], {"X-Request-Id": name})
                    if (answer.status != 200 or answer.header("X-Request-Id") != name
                            or lossd.stable(answer.body) != want[i]):
                        wrong.append((name, i, answer))
            return wrong

        results = lossd.together([lambda n=n: client(n) for n in range(8)])
        self.assertEqual(results, [[]] * 8)

    def test_times_are_never_negative(self):
        """A worker may finish before the receiving thread knows that the last byte was the last."""
        body, least = lossd.bccd().pick([0]).safetensors(), 0
        with self.daemon.connect() as connection:
            for _ in range(150):
                connection.start("POST", "/v1/loss", {"Content-Length": len(body)})
                connection.send(body[:-16])
                time.sleep(0.003)
                connection.send(body[-16:])
                least = min([least, *self.good(connection.answer())["timing_ms"].values()])
        self.assertGreaterEqual(least, 0)


if __name__ == "__main__":
    unittest.main()
