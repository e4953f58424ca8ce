# SPDX-License-Identifier: Apache-2.0
"""What can be looked up, and matching without predictions."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

# Sums over the priors of cx, cy, w, h, and of i x value with i from 1, of an independent program.
CHECKSUMS = {
    "ssd300": (8732, [4443.146675, 4443.146675, 1510.147981, 1510.147981],
               [19574203.059, 22719618.049, 8310284.780, 8310620.189]),
    "ssd300-coco": (8732, [4443.146675, 4443.146675, 1171.967678, 1171.967678],
                    [19574203.059, 22719618.049, 6706153.981, 6706416.226]),
    "ssd300-unit": (8732, [4365.999995, 4365.999995, 1516.328621, 1516.471257],
                    [19161132.968, 22263870.950, 8361053.653, 8362686.813]),
    "ssd300-efficientnet": (3106, [1552.999993, 1552.999993, 849.983512, 850.128083],
                            [2434739.484, 2767317.483, 1551469.719, 1552195.715]),
    "retinanet-640x640": (76725, [24552000, 24552000, 4765061.933, 4765061.933],
                          [944415446400, 1130595048000, 231052288978.066, 231045812089.021]),
    "grid-128x128": (4032, [258048, 258048, 49984, 69440], [521548032, 556093440, 130918816, 165134240]),
}
# priors, matcher (positive_iou, negative_iou, force, iou), classification (kind, background), mining (kind, scope),
# localization, normalizer
PRESETS = {
    "ssd-multibox": ("ssd300", (0.5, None, "last", "corners"), ("softmax_ce", "first"), ("hard_negative", "image"),
                     {"kind": "smooth_l1", "beta": 1, "reduction": "sum"}, {"kind": "positives"}),
    "ssd-multibox-l1": ("ssd300-efficientnet", (0.5, None, "last", "corners"), ("softmax_ce", "first"),
                        ("hard_negative", "image"), {"kind": "l1", "reduction": "mean"}, {"kind": "positives"}),
    "retinanet-focal": (None, (0.5, 0.4, "none", "sizes"), ("sigmoid_focal", "none"), ("none", None),
                        {"kind": "jump_l1", "delta": 1, "reduction": "sum"}, {"kind": "image_positives"}),
    "ssd-keras": (None, (0.5, None, "last", "corners"), ("prob_ce", "last"), ("hard_negative", "batch"),
                  {"kind": "smooth_l1", "beta": 1, "reduction": "sum"}, {"kind": "positives_and_mined"}),
}


class Match(lossd.Case):
    def match(self, body, query="", content_type=lossd.SAFETENSORS):
        return self.daemon.post("/v1/match" + query, body, content_type)

    def annotations(self, **options):
        return lossd.bccd().safetensors(without=("loc", "conf"), **options)

    def test_shipped_annotations(self):
        got = self.good(self.match(self.annotations(), "?include=images,classes,levels,objects"))
        loss = self.good(self.daemon.post("/v1/loss?include=images,classes,levels,objects", lossd.bccd_bytes(),
                                          lossd.SAFETENSORS))
        for name, value in loss["assignment"].items():
            if name != "hard_negatives":
                self.assertEqual(got["assignment"][name], value, name)
        self.assertEqual(got["objects"], loss["objects"])
        for group, names in (("images", ("positives", "negatives", "objects", "forced", "collided",
                                         "unmatched_objects")),
                             ("classes", ("class", "objects")), ("levels", ("name", "priors", "positives"))):
            self.assertEqual([[row[n] for n in names] for row in got[group]][:3],
                             [[row[n] for n in names] for row in loss[group]][:3], group)
        self.assertEqual((got["criterion"], got["priors"], got["classes_total"]), ("ssd-multibox", "ssd300", 3))
        self.assertFalse(got.get("loss"), "no predictions, no loss")

    def test_json_says_the_same(self):
        body = lossd.bccd().json(predictions=False)
        a = self.match(self.annotations(), "?include=images,objects")
        b = self.match(body, "?include=images,objects", lossd.JSON)
        self.good(a)
        self.assertEqual(lossd.stable(a.body), lossd.stable(b.body))

    def test_classes_option(self):
        body = json.dumps({"annotations": [{"boxes": [[0.1, 0.1, 0.6, 0.6]], "labels": [4]}]}).encode()
        self.assertEqual(self.good(self.match(body, "", lossd.JSON))["classes_total"], 5)
        self.assertEqual(self.good(self.match(body, "?classes=20", lossd.JSON))["classes_total"], 20)
        got = self.good(self.match(body, "?classes=6&include=classes", lossd.JSON))
        self.assertEqual([row["class"] for row in got["classes"]], [0, 1, 2, 3, 4, 5, -1])
        self.problem(self.match(body, "?classes=4", lossd.JSON), 422, "label_range", "4")
        for bad in ("0", "-1", "x", "1.5", "99999999999999999999"):
            self.problem(self.match(body, "?classes=" + bad, lossd.JSON), 422)

    def test_targets_and_map(self):
        body = json.dumps({"priors": [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]],
                           "annotations": [{"boxes": [[0.5, 0.5, 1, 1]], "labels": [2]}, {"boxes": [], "labels": []}],
                           "include": "assignment,targets"}).encode()
        got = self.good(self.match(body, "", lossd.JSON))
        self.assertEqual(got["assignment_map"], {"classes": [[-1, 2], [-1, -1]], "objects": [[-1, 0], [-1, -1]]})
        self.assertEqual(got["targets"]["classes"], [[-1, 2], [-1, -1]])
        self.assertEqual(got["targets"]["loc"], [[[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]])

    def test_predictions_do_not_belong(self):
        self.problem(self.match(lossd.bccd().pick([0]).safetensors()), 422)
        self.problem(self.match(lossd.tiny().json(), "", lossd.JSON), 422, None, "predictions")

    def test_refusals_are_those_of_loss(self):
        body = b'{"annotations": [{"boxes": [[0.6, 0.1, 0.2, 0.6]], "labels": [0]}]}'
        self.problem(self.match(body, "", lossd.JSON), 422, "box_inverted", None, "^/annotations/0/boxes/0")
        self.problem(self.match(b'{"annotations": []}', "", lossd.JSON), 422)


class Catalog(lossd.Case):
    def test_priors(self):
        listing = self.good(self.daemon.get("/v1/priors"))
        self.assertEqual({row["name"] for row in listing["priors"]}, set(CHECKSUMS))
        for name, (count, sums, weighted) in CHECKSUMS.items():
            with self.subTest(name):
                about = self.good(self.daemon.get("/v1/priors/" + name))
                self.assertEqual(about["name"], name)
                text = json.dumps(about)
                self.assertIn(str(count), text)
                self.assertIn("levels", about)
                answer = self.daemon.get("/v1/priors/" + name, Accept=lossd.SAFETENSORS)
                self.assertEqual((answer.status, answer.type), (200, lossd.SAFETENSORS))
                tensors = lossd.load(answer.body)[1]
                dtype, shape, values = tensors["priors"]
                self.assertEqual((dtype, shape), ("F32", [count, 4]))
                for column in range(4):
                    column_values = values[column::4]
                    self.near(sum(column_values), sums[column], 1e-8)
                    self.near(sum(i * v for i, v in enumerate(column_values, 1)), weighted[column], 1e-8)

    def test_levels(self):
        levels = self.good(self.daemon.get("/v1/priors/ssd300"))["levels"]
        self.assertEqual([level["count"] for level in levels], [5776, 2166, 600, 150, 36, 4])
        self.assertEqual([level["first"] for level in levels], [0, 5776, 7942, 8542, 8692, 8728])

    def test_criteria(self):
        listing = self.good(self.daemon.get("/v1/criteria"))
        self.assertEqual({row["name"] for row in listing["criteria"]}, set(PRESETS))
        for name, (priors, matcher, classification, mining, localization, normalizer) in PRESETS.items():
            with self.subTest(name):
                about = self.good(self.daemon.get("/v1/criteria/" + name))
                self.assertEqual((about["name"], about["priors"]), (name, priors))
                self.assertEqual(tuple(about["matcher"][m] for m in ("positive_iou", "negative_iou", "force", "iou")),
                                 matcher)
                self.assertEqual(about["coder"]["variances"],
                                 [1, 1, 1, 1] if name == "ssd-keras" else [0.1, 0.1, 0.2, 0.2])
                self.assertEqual(tuple(about["classification"][m] for m in ("kind", "background")), classification)
                self.assertEqual((about["mining"]["kind"], about["mining"].get("scope")), mining)
                self.assertEqual(about["mining"].get("ratio"), 3 if mining[1] else None)
                self.assertEqual((about["localization"], about["normalizer"]), (localization, normalizer))
                self.assertEqual(about["weights"], {"loc": 1, "conf": 1})
        focal = self.good(self.daemon.get("/v1/criteria/retinanet-focal"))["classification"]
        self.assertEqual((focal["alpha"], focal["gamma"]), (0.25, 2))

    def test_unknown_names(self):
        self.problem(self.daemon.get("/v1/priors/ssd301"), 404, "unknown_priors", "ssd300")
        self.problem(self.daemon.get("/v1/criteria/ssd-multibix"), 404, "unknown_criterion", "ssd-multibox")
        self.problem(self.daemon.get("/v1/priors/"), 404)
        self.problem(self.daemon.get("/v1/priors/ssd300/x"), 404)
        self.problem(self.daemon.get("/v1"), 404)

    def test_operations(self):
        self.assertEqual(self.daemon.get("/healthz").status, 200)
        self.assertEqual(self.daemon.get("/readyz").status, 200)
        version = self.good(self.daemon.get("/version"))
        self.assertEqual(version["version"], self.daemon.version)
        answer = self.daemon.get("/openapi.yaml")
        self.assertEqual(answer.status, 200)
        self.assertIn("yaml", answer.type)
        with open(os.path.join(lossd.ROOT, "proto", "openapi.yaml"), "rb") as file:
            self.assertEqual(answer.body, file.read())

    def test_accept(self):
        self.problem(self.daemon.get("/v1/priors/ssd300", Accept="text/html"), 406, "not_acceptable")
        self.assertEqual(self.daemon.get("/v1/priors/ssd300", Accept="*/*").type, lossd.JSON)

    def test_head(self):
        for target in ("/healthz", "/v1/priors", "/v1/priors/ssd300", "/v1/criteria", "/v1/criteria/ssd-multibox",
                       "/openapi.yaml"):
            with self.daemon.connect() as connection:
                full = connection.request("GET", target)
                head = connection.request("HEAD", target)
                self.assertEqual((head.status, head.body), (200, b""))
                self.assertEqual(head.header("Content-Type"), full.header("Content-Type"))
                self.assertEqual(head.header("Content-Length"), str(len(full.body)))
                self.assertEqual(connection.request("GET", target).body, full.body)


if __name__ == "__main__":
    unittest.main()
