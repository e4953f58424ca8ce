# SPDX-License-Identifier: Apache-2.0
"""Random criteria on random batches: the daemon against tests/golden/reference.py, the same contract in numpy.

Purpose: the golden cases are chosen, these are not: every stage's choice meets every other's. Decisions must be equal,
sums agree to 2e-6, gradients to 1e-5 of the largest number of their row and 1e-7 of a slope of one (a slope that is a
difference of two float32 probabilities cannot be better than those).

Run by test_differential.py with Debian's /usr/bin/python3 (python3-numpy):
    differential.py URL FIRST_SEED SEEDS PRIORS,PRIORS,...
Prints what differs, then `N compared, N refused, N different`.
"""
import json
import os
import random
import sys
import urllib.error
import urllib.request

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
sys.dont_write_bytecode = True
import batches  # noqa: E402
import reference  # noqa: E402

ALL = "images,classes,levels,objects,assignment,targets,gradients"
NATIVE = {"ssd-multibox": "softmax_ce", "ssd-multibox-l1": "softmax_ce", "retinanet-focal": "sigmoid_focal",
          "ssd-keras": "prob_ce"}
IOU_LOSSES = ("giou", "diou", "ciou")


def matcher(rng):
    return {"force": rng.choice(["last", "first", "greedy", "none"]), "iou": rng.choice(["corners", "sizes"]),
            "positive_iou": rng.choice([.5, .35, .6, .7]), "negative_iou": rng.choice([None, None, .3, .2, .35]),
            "ignore_iof": rng.choice([None, None, .5, .25])}


def classification(rng, kind):
    background = rng.choice(["none", "none", "first", "last"] if kind == "sigmoid_focal" else ["first", "last"])
    c = {"kind": kind, "background": background}
    if kind == "sigmoid_focal":
        c.update(gamma=rng.choice([0, 1, 1.5, 2, 3]), alpha=rng.choice([.25, .5, "list"]) if background == "none" else .3)
    if rng.random() < .4:
        c["label_smoothing"] = rng.choice([.1, .3])
    if rng.random() < .4:
        c["class_weights"] = "list"
    return c


def criterion(rng):
    base = rng.choice(sorted(NATIVE))
    c = {"base": base, "classification": classification(rng, rng.choice([NATIVE[base], *set(NATIVE.values())])),
         "mining": {"kind": rng.choice(["none", "hard_negative"])},
         "localization": {"kind": rng.choice(["l1", "smooth_l1", "huber", "jump_l1", *IOU_LOSSES])},
         "weights": {"loc": rng.choice([1, 2, .5, 0]), "conf": rng.choice([1, .25])}}
    if rng.random() < .6:
        c["matcher"] = matcher(rng)
    if rng.random() < .3:
        c["coder"] = {"variances": [.1, .2, .3, .4]}
    mined, l = c["mining"]["kind"] != "none", c["localization"]
    if mined:
        c["mining"].update(ratio=rng.choice([0, 1, 1.5, 3, 2.25]), scope=rng.choice(["image", "batch"]),
                           min_negatives=rng.choice([0, 0, 5, 1000]))
    if l["kind"] == "smooth_l1":
        l["beta"] = rng.choice([0, .11, 1, 2])
    if l["kind"] in ("huber", "jump_l1"):
        l["delta"] = rng.choice([.1, 1, 3])
    if l["kind"] not in IOU_LOSSES:
        l["reduction"] = rng.choice(["sum", "mean"])
    c["normalizer"] = {"kind": rng.choice(["positives", "image_positives", "value"] + ["positives_and_mined"] * mined)}
    if c["normalizer"]["kind"] == "value":
        c["normalizer"]["value"] = rng.choice([1, 7.5])
    return c


def request(seed, sizes):
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    c = criterion(rng)
    stage = c["classification"]
    columns = rng.choice([2, 3, 5, 9])
    classes = columns if stage["background"] == "none" else columns - 1
    for name, n in (("alpha", classes), ("class_weights", columns)):
        if stage.get(name) == "list":
            stage[name] = [round(rng.random(), 2) for _ in range(n)]
    counts = [rng.choice([0, 1, 3, 6, 12]) for _ in range(rng.randint(1, 4))]
    b = batches.batch(numbers, rng.choice(sizes), columns, counts)
    conf = np.asarray(b["conf"], float)
    if stage["kind"] == "prob_ce":
        e = np.exp(conf - conf.max(-1, keepdims=True))
        conf = (e / e.sum(-1, keepdims=True)).astype(np.float32).astype(float)
    cuts, annotations = np.cumsum(counts)[:-1], []
    for boxes, labels in zip(np.split(b["boxes"], cuts), np.split(np.asarray(b["labels"]) % classes, cuts)):
        annotations.append({"boxes": boxes.tolist(), "labels": labels.tolist()})
        if rng.random() < .4:
            annotations[-1]["ignore"] = [int(rng.random() < .3) for _ in labels]
    return json.dumps({"criterion": c, "priors": np.asarray(b["priors"]).tolist(), "include": ALL,
                       "predictions": {"loc": np.asarray(b["loc"]).tolist(), "conf": conf.tolist()},
                       "annotations": annotations}).encode()


def slope_of_one(body, got):
    """The largest factor of a row's slopes: weight / normaliser."""
    weights = body["criterion"]["weights"]
    normalizers = [got["normalizer"]] if got["normalizer"] else [row["normalizer"] for row in got["images"]]
    return max(max(weights["loc"] / n["loc"], weights["conf"] / min(n["conf_positive"], n["conf_negative"]))
               for n in normalizers)


def differences(want, got, path="", one=0):
    """-> [(path, owed, got)], a few"""
    if isinstance(want, dict) and isinstance(got, dict):
        return [d for k in want for d in differences(want[k], got.get(k), f"{path}/{k}", one)][:4]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        if "gradients" in path and want and isinstance(want[0], float):
            most = 1e-5 * max(map(abs, want)) + 1e-7 * one
            return [(path, want, got)] if any(abs(x - y) > most for x, y in zip(want, got)) else []
        return [d for i, (x, y) in enumerate(zip(want, got)) for d in differences(x, y, f"{path}/{i}", one)][:4]
    if isinstance(want, float) and isinstance(got, (int, float)):
        return [] if abs(want - got) <= 2e-6 * max(abs(want), abs(got)) + 1e-12 else [(path, want, got)]
    return [] if want == got else [(path, want, got)]


def main():
    url, first, seeds, sizes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(p) for p in sys.argv[4].split(",")]
    compared = refused = different = 0
    for seed in range(first, first + seeds):
        body = request(seed, sizes)
        try:
            post = urllib.request.Request(url + "/v1/loss", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(post) as answer:
                got = json.load(answer)
        except urllib.error.HTTPError as answer:
            problem = json.load(answer)
            refused += 1
            if problem["code"] != "criterion_conflict":
                different += 1
                print(f"seed {seed}: {problem['code']}: {problem['detail']}")
            continue
        compared += 1
        found = differences(reference.answer(reference.read_request(body, {})), got, one=slope_of_one(json.loads(body), got))
        if found:
            different += 1
            print(f"seed {seed}: {json.loads(body)['criterion']}\n  {found}")
    print(f"{compared} compared, {refused} refused, {different} different")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
