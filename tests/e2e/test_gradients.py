# SPDX-License-Identifier: Apache-2.0
"""Every criterion over the wire: gradients in all their forms, the ways in and out agree, and any reduction can be
rebuilt from what is answered. That the numbers are right is for tests/golden; that they are the same is for here."""
import json
import math
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

SUMS = "images,classes,levels"
PARTS = ("loc", "conf_positive", "conf_negative")
INLINE = [
    {"base": "ssd-multibox", "localization": {"kind": "ciou"}, "matcher": {"force": "greedy", "negative_iou": 0.35}},
    {"base": "ssd-multibox", "mining": {"scope": "batch", "ratio": 1.5, "min_negatives": 40},
     "localization": {"kind": "huber", "delta": 0.25}, "classification": {"label_smoothing": 0.1}},
    {"base": "retinanet-focal", "matcher": {"force": "first", "iou": "corners"}, "weights": {"loc": 2, "conf": 0.5},
     "classification": {"gamma": 1.5, "alpha": 0.3}, "localization": {"kind": "giou"}},
    {"base": "ssd-multibox-l1", "mining": {"kind": "none"}, "normalizer": {"kind": "value", "value": 64},
     "matcher": {"force": "none"}},
]
PRESETS = ["ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras"]


def softmax(conf, c):
    out = lossd.floats([])
    for i in range(0, len(conf), c):
        e = [math.exp(x - max(conf[i:i + c])) for x in conf[i:i + c]]
        out += lossd.floats([x / sum(e) for x in e])
    return out


def batch_for(criterion, seed=5, n=3, p=5000, c=5):
    """Two blocks of priors an image, so that units run on several workers."""
    batch = lossd.random_batch(seed, n=n, p=p, c=c)
    if criterion == "ssd-keras":
        batch.conf = softmax(batch.conf, c)
    return batch


def text(criterion):
    return criterion if isinstance(criterion, str) else json.dumps(criterion)


def head(tensors, *names):
    return {name: tensors[name] for name in names}


class Gradients(lossd.Case):
    FLAGS = ("--workers", "3")

    def ask(self, batch, criterion, include, accept=lossd.SAFETENSORS, daemon=None, **form):
        answer = (daemon or self.daemon).post("/v1/loss", batch.safetensors({"criterion": text(criterion),
                                                                             "include": include}, **form),
                                              lossd.SAFETENSORS, {"Accept": accept})
        self.assertEqual(answer.status, 200, answer)
        return answer

    def tensors(self, *arguments, **form):
        meta, tensors = lossd.load(self.ask(*arguments, **form).body)
        return json.loads(meta["result"]), tensors

    def test_sparse_rows_are_the_dense_ones_and_the_rest_is_zero(self):
        for criterion in PRESETS + INLINE:
            with self.subTest(text(criterion)):
                batch = batch_for(criterion)
                n, p, c = batch.n, batch.p, batch.c
                result, sparse = self.tensors(batch, criterion, "gradients,targets")
                dense = self.tensors(batch, criterion, "dense_gradients")[1]
                index, rows = sparse["grad_index"][2], sparse["grad_index"][1][0]
                self.assertEqual(sparse["grad_index"][:2], ("I32", [rows, 2]))
                self.assertEqual(sparse["grad_loc"][:2], ("F32", [rows, 4]))
                self.assertEqual(sparse["grad_conf"][:2], ("F32", [rows, c]))
                self.assertEqual(dense["grad_loc"][:2], ("F32", [n, p, 4]))
                self.assertEqual(dense["grad_conf"][:2], ("F32", [n, p, c]))
                listed = [index[2 * i] * p + index[2 * i + 1] for i in range(rows)]
                self.assertEqual(listed, sorted(set(listed)))
                loc, conf = [0.0] * (n * p * 4), [0.0] * (n * p * c)
                for i, at in enumerate(listed):
                    loc[4 * at:4 * at + 4] = sparse["grad_loc"][2][4 * i:4 * i + 4]
                    conf[c * at:c * at + c] = sparse["grad_conf"][2][c * i:c * i + c]
                self.assertEqual(loc, dense["grad_loc"][2])
                self.assertEqual(conf, dense["grad_conf"][2])
                self.assertTrue(any(loc) and any(conf))
                classes, a = sparse["target_classes"][2], result["assignment"]
                mined = criterion != "retinanet-focal" and (isinstance(criterion, str) or "retinanet" not in criterion["base"]
                                                            and criterion.get("mining", {}).get("kind") != "none")
                self.assertEqual(rows, a["positives"] + (a["hard_negatives"] if mined else a["negatives"]))
                positives = {at for at, k in enumerate(classes) if k >= 0}
                self.assertLessEqual(positives, set(listed))
                self.assertTrue(all(classes[at] != -2 for at in listed))
                for at in listed:   # localization is of positives only
                    self.assertTrue(at in positives or not any(loc[4 * at:4 * at + 4]))

    def test_json_has_the_same_numbers(self):
        for criterion in PRESETS + INLINE:
            with self.subTest(text(criterion)):
                batch = batch_for(criterion, p=150)
                c = batch.c
                tensors = self.tensors(batch, criterion, "gradients")[1]
                got = self.ask(batch, criterion, "gradients", accept=lossd.JSON).json()["gradients"]
                self.assertEqual(sorted(got), ["conf", "index", "loc"])
                self.assertEqual([x for row in got["index"] for x in row], tensors["grad_index"][2])
                self.assertEqual(lossd.floats([x for row in got["loc"] for x in row]), lossd.floats(tensors["grad_loc"][2]))
                self.assertEqual(lossd.floats([x for row in got["conf"] for x in row]), lossd.floats(tensors["grad_conf"][2]))
                self.assertTrue(all(len(row) == c for row in got["conf"]))
                dense = self.ask(batch, criterion, "dense_gradients", accept=lossd.JSON).json()["dense_gradients"]
                want = self.tensors(batch, criterion, "dense_gradients")[1]
                flat = [x for image in dense["conf"] for row in image for x in row]
                self.assertEqual(lossd.floats(flat), lossd.floats(want["grad_conf"][2]))
                flat = [x for image in dense["loc"] for row in image for x in row]
                self.assertEqual(lossd.floats(flat), lossd.floats(want["grad_loc"][2]))

    def test_workers_levels_orders_and_encodings_change_no_bit(self):
        with lossd.Daemon("--workers", "1", "--cpu-level", "ref") as plain, lossd.Daemon("--workers", "4") as many:
            for criterion in PRESETS + INLINE:
                with self.subTest(text(criterion)):
                    batch, include = batch_for(criterion, seed=8), SUMS + ",objects,targets,assignment"
                    want = lossd.stable(self.ask(batch, criterion, include + ",gradients", lossd.JSON, plain).body)
                    for daemon in (self.daemon, many):
                        got = self.ask(batch, criterion, include + ",gradients", lossd.JSON, daemon)
                        self.assertEqual(lossd.stable(got.body), want)
                    got = self.ask(batch, criterion, include + ",gradients", lossd.JSON, many, pad=3,
                                   order=("loc", "boxes", "conf", "labels", "counts"))
                    self.assertEqual(lossd.stable(got.body), want)
                    body = batch.json(criterion=criterion, include=include + ",gradients")
                    self.assertEqual(lossd.stable(self.daemon.post("/v1/loss", body, lossd.JSON).body), want)

    def test_sizes_that_the_readme_states(self):
        """Sparse against dense, as safetensors: the shipped batch, and 8 images of 100 positives with 21 columns."""
        sizes = {}
        for include in ("gradients", "dense_gradients"):
            answer = self.daemon.post("/v1/loss?include=" + include, lossd.bccd_bytes(), None, {"Accept": lossd.SAFETENSORS})
            self.assertEqual(answer.status, 200, answer)
            sizes[include] = len(answer.body)
        shipped = sizes["dense_gradients"] / sizes["gradients"]
        n, p, c = 8, 8732, 21
        classes = [-1] * p
        classes[40:8040:80] = [k % 20 for k in range(100)]
        batch = lossd.random_batch(3, n=n, p=p, c=c)
        parts = [("target_classes", "I32", [n, p], lossd.pack("I32", n * classes)),
                 ("target_loc", "F32", [n, p, 4], bytes(n * 16 * p)),
                 ("conf", "F32", [n, p, c], batch.conf.tobytes()), ("loc", "F32", [n, p, 4], batch.loc.tobytes())]
        for include in ("gradients", "dense_gradients"):
            answer = self.daemon.post("/v1/loss?include=" + include, lossd.save(parts), lossd.SAFETENSORS, {"Accept": lossd.SAFETENSORS})
            self.assertEqual(answer.status, 200, answer)
            sizes[include + " of 100"] = len(answer.body)
        hundred = sizes["dense_gradients of 100"] / sizes["gradients of 100"]
        with open(os.path.join(lossd.ROOT, "README.md")) as file:
            readme = " ".join(file.read().split())
        for words in ("%.0f kB instead of %.0f kB (%.1f times less)" % (sizes["gradients"] / 1e3,
                                                                     sizes["dense_gradients"] / 1e3, shipped),
                      "%.0f kB instead of %.0f kB (%.1f times less)" % (sizes["gradients of 100"] / 1e3,
                                                                     sizes["dense_gradients of 100"] / 1e3, hundred)):
            self.assertIn(words, readme)
        self.assertGreater(shipped, 7.5)
        self.assertGreaterEqual(hundred, 20)

    def test_refusals(self):
        batch = lossd.tiny()
        both = self.daemon.post("/v1/loss?include=gradients,dense_gradients", batch.safetensors())
        self.problem(both, 422, ["invalid_option"], pointer="include")
        match = self.daemon.post("/v1/match?include=gradients", batch.safetensors(without=("loc", "conf")))
        self.problem(match, 422, ["invalid_option"], pointer="include")


class Reductions(lossd.Case):
    """What is answered is enough to rebuild the loss, and any other reduction of it."""

    def test_shares_add_up_and_follow_from_sums(self):
        for criterion in PRESETS + INLINE:
            with self.subTest(text(criterion)):
                batch = batch_for(criterion, p=300, n=4)
                got = self.good(self.daemon.post("/v1/loss?include=" + SUMS, batch.json(criterion=criterion), lossd.JSON))
                weights = (criterion if isinstance(criterion, dict) else {}).get("weights", {"loc": 1, "conf": 1})
                weight = {"loc": weights["loc"], "conf_positive": weights["conf"], "conf_negative": weights["conf"]}
                for part in PARTS:
                    for group in ("images", "classes", "levels"):
                        self.near(sum(row["loss"][part] for row in got[group]), got["loss"][part], 1e-12, (group, part))
                        self.near(sum(row["sums"][part] for row in got[group]), got["sums"][part], 1e-12, (group, part))
                    if got["normalizer"]:
                        rebuilt = weight[part] * got["sums"][part] / got["normalizer"][part]
                        self.assertTrue(all("normalizer" not in row for row in got["images"]))
                    else:
                        rebuilt = sum(weight[part] * row["sums"][part] / row["normalizer"][part] for row in got["images"])
                    self.near(rebuilt, got["loss"][part], 1e-12, part)
                self.assertEqual(got["loss"]["conf"], got["loss"]["conf_positive"] + got["loss"]["conf_negative"])
                self.assertEqual(got["loss"]["total"], got["loss"]["loc"] + got["loss"]["conf"])

    def test_splitting_a_batch_and_adding_its_sums(self):
        for criterion in PRESETS + INLINE:
            if criterion == "ssd-keras" or isinstance(criterion, dict) and criterion.get("mining", {}).get("scope") == "batch":
                continue   # which negatives are mined depends on the whole batch there
            with self.subTest(text(criterion)):
                batch = batch_for(criterion, p=300, n=4)
                ask = lambda b: self.good(self.daemon.post("/v1/loss?include=images", b.json(criterion=criterion), lossd.JSON))
                whole, parts = ask(batch), [ask(batch.pick([0])), ask(batch.pick([1, 3])), ask(batch.pick([2]))]
                for part in PARTS:
                    self.near(sum(p["sums"][part] for p in parts), whole["sums"][part], 1e-12, part)
                for name in ("positives", "negatives", "ignored", "hard_negatives", "forced", "collided", "objects"):
                    self.assertEqual(sum(p["assignment"][name] for p in parts), whole["assignment"][name], name)
                rows = {0: parts[0]["images"][0], 1: parts[1]["images"][0], 3: parts[1]["images"][1], 2: parts[2]["images"][0]}
                for i, row in rows.items():
                    self.assertEqual(row["sums"], whole["images"][i]["sums"])

    def test_permuting_images_permutes_the_answer(self):
        for criterion in PRESETS + INLINE:
            with self.subTest(text(criterion)):
                batch, order = batch_for(criterion, p=300, n=4), [2, 0, 3, 1]
                ask = lambda b: self.good(self.daemon.post("/v1/loss?include=images,assignment,targets",
                                                           b.json(criterion=criterion), lossd.JSON))
                straight, turned = ask(batch), ask(batch.pick(order))
                for name in ("classes", "objects"):
                    self.assertEqual([straight["assignment_map"][name][i] for i in order], turned["assignment_map"][name])
                self.assertEqual([straight["targets"]["loc"][i] for i in order], turned["targets"]["loc"])
                self.assertEqual([straight["images"][i]["sums"] for i in order], [row["sums"] for row in turned["images"]])
                self.assertEqual(straight["assignment"]["positives"], turned["assignment"]["positives"])
                self.near(straight["loss"]["total"], turned["loss"]["total"], 1e-12)


class Targets(lossd.Case):
    """The answer of /v1/match is the `targets` of /v1/loss."""

    def test_round_trip(self):
        for criterion in PRESETS + INLINE:
            with self.subTest(text(criterion)):
                batch = batch_for(criterion, p=300)
                priors = lossd.nested(batch.priors, batch.p, 4)
                want = self.good(self.daemon.post("/v1/loss?include=images,classes", batch.json(criterion=criterion), lossd.JSON))
                matched = self.good(self.daemon.post("/v1/match?include=targets&classes=%d" % want["classes_total"],
                                                     batch.json(predictions=False, criterion=criterion), lossd.JSON))
                document = batch.document(criterion=criterion, include="images,classes")
                del document["annotations"], document["priors"]
                document["targets"] = matched["targets"]
                needs_boxes = isinstance(criterion, dict) and criterion.get("localization", {}).get("kind") in ("ciou", "giou")
                if needs_boxes:
                    document["priors"] = priors
                got = self.good(self.daemon.post("/v1/loss", json.dumps(document).encode(), lossd.JSON))
                self.assertEqual(got["priors"], "inline" if needs_boxes else None)
                for part in ("conf_positive", "conf_negative"):   # the same float32 rows, in the same order
                    self.assertEqual(got["sums"][part], want["sums"][part])
                self.near(got["loss"]["loc"], want["loss"]["loc"], 1e-6)
                for name in ("positives", "negatives", "ignored", "hard_negatives"):
                    self.assertEqual(got["assignment"][name], want["assignment"][name])
                for name in ("objects", "ignored_objects", "dropped_boxes", "forced", "collided", "unmatched_objects",
                             "objects_without_overlap", "best_iou", "positives_per_object"):
                    self.assertIsNone(got["assignment"][name], name)
                self.assertEqual([row["positives"] for row in got["classes"]], [row["positives"] for row in want["classes"]])

    def test_tensors_and_json_agree(self):
        batch = batch_for("ssd-multibox", p=300)
        matched = self.daemon.post("/v1/match?include=targets", batch.safetensors(without=("loc", "conf")), lossd.SAFETENSORS,
                                   {"Accept": lossd.SAFETENSORS})
        tensors = lossd.load(matched.body)[1]
        parts = [(name, *tensors[name][:2], lossd.pack(tensors[name][0], tensors[name][2]))
                 for name in ("target_classes", "target_loc")]
        parts += [("conf", "F32", [batch.n, batch.p, batch.c], batch.conf.tobytes()),
                  ("loc", "F32", [batch.n, batch.p, 4], batch.loc.tobytes())]
        binary = self.daemon.post("/v1/loss?include=images,classes,levels,gradients", lossd.save(parts), lossd.SAFETENSORS)
        document = batch.document(include="images,classes,levels,gradients")
        del document["annotations"], document["priors"]
        document["targets"] = {"classes": lossd.nested(tensors["target_classes"][2], batch.n, batch.p),
                               "loc": lossd.nested(tensors["target_loc"][2], batch.n, batch.p, 4)}
        plain = self.daemon.post("/v1/loss", json.dumps(document).encode(), lossd.JSON)
        self.good(plain)
        self.assertEqual(lossd.stable(binary.body), lossd.stable(plain.body))

    def test_refusals(self):
        batch = lossd.tiny()
        document = batch.document(criterion="ssd-multibox")
        targets = {"classes": [[0, -1]], "loc": [[[0, 0, 0, 0], [0, 0, 0, 0]]]}
        ask = lambda **changes: self.daemon.post("/v1/loss", json.dumps({**document, **changes}).encode(), lossd.JSON)
        self.problem(ask(targets=targets), 422, ["targets_twice"])
        del document["annotations"], document["priors"]
        self.good(ask(targets=targets))
        for classes, pointer in (([[2, -1]], "/targets/classes/0/0"), ([[0, -3]], "/targets/classes/0/1")):
            self.problem(ask(targets={**targets, "classes": classes}), 422, ["label_range"], pointer=pointer)
        self.problem(ask(targets={**targets, "classes": [[0]]}), 422, ["shape"])
        self.problem(ask(targets={"classes": [[0, -1]]}), 422, ["missing_member"])
        self.problem(ask(targets=targets, criterion={"localization": {"kind": "giou"}}), 422, ["shape", "missing_member"])


if __name__ == "__main__":
    unittest.main()
