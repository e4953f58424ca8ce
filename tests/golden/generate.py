# SPDX-License-Identifier: Apache-2.0
"""Writes the golden cases: <case>/request.* (or request.link), options.json where there are any, expect.json.

Purpose: small, seeded batches at the edges of the contract (cases.py, criterion_cases.py), answered by reference.py;
and the checks that keep reference.py itself honest: published numbers, checksums of the prior sets, and its derivatives
against central differences.
Invariant: a case is refused here if its answer would hang on less than float32 can tell: two different rows within 1e-5
of each other at the mining cut, an IoU at a histogram edge that rounding could move, an offset beside a kink.

Usage: generate.py            write all cases (bccd-ssd300/request.safetensors is data, not generated)
       generate.py --check    generate in memory, compare with the files, exit 1 on a difference
"""
import hashlib
import json
import os
import sys

import numpy as np

sys.dont_write_bytecode = True
import cases
import criteria
import criterion_cases
import formulas
import priors as prior_sets
import reference
from batches import json_text
from cases import CASES

HERE = os.path.dirname(os.path.abspath(__file__))
BCCD_SHA256 = "6515049e69e4f54f1a8fe928f00ff09c90bb49b1e67755e516ebdb8a89e28a72"


# ---------------------------------------------------------------- no answer that depends on rounding

def refuse(name, what):
    raise SystemExit(f"{name}: {what}")


def fragile_cut(r, group, rows):
    """Of one mining group and its rows of conf: are two different rows beside the cut?"""
    ce, mined, negative = (np.concatenate([i[k] for i in group]) for k in ("ce", "mined", "negative"))
    rest = negative & ~mined
    if not mined.any() or not rest.any():
        return False
    cut = ce[mined].min()
    near = negative & ((np.abs(ce - cut) <= 1e-5 * cut) | (ce < 1e-36) & (cut < 1e-36))
    if r["criterion"]["classification"]["kind"] == "softmax_ce":
        rows = rows - rows.max(1, keepdims=True)
    return (near & rest).any() and len(np.unique(rows[near], axis=0)) > 1


def beside(x, edge, jump=False):
    """Nearly at an edge but not on it; where the value jumps, on it is no better."""
    off = np.abs(x - edge)
    return bool(((off < 1e-6 * np.maximum(1, np.abs(edge))) & (jump | (off > 0))).any())


def fragile_offsets(r, image):
    """Is a difference of a positive beside a kink of its formula, or an edge of its box beside one of its target's?"""
    m, v, at = r["criterion"]["localization"], np.array(r["criterion"]["coder"]["variances"]), image["positive"]
    predicted, target = image["loc_in"][at].astype(float), image["target"][at]
    if not formulas.needs_priors(m):
        a = np.abs(predicted - target)
        kink = m.get("beta", m.get("delta", 0))
        return beside(a, 0) or beside(a, kink, m["kind"] == "jump_l1" and kink != 1)
    prior = r["priors"][at].astype(float)
    scaled = np.stack([predicted * v, target * v])
    if beside(scaled[0, :, 2:], formulas.LARGEST):
        return True
    scaled[0, :, 2:] = np.minimum(scaled[0, :, 2:], formulas.LARGEST)
    c, half = prior[:, :2] + scaled[..., :2] * prior[:, 2:], np.exp(scaled[..., 2:]) * prior[:, 2:] / 2
    edges = np.concatenate([c - half, c + half], 2) / np.tile(prior[:, 2:], 2)
    meet = np.minimum(edges[0, :, 2:], edges[1, :, 2:]) - np.maximum(edges[0, :, :2], edges[1, :, :2])
    return beside(edges[0], edges[1]) or beside(meet, 0)


def refuse_fragile(name, r, images):
    group = [images] if r["criterion"]["mining"].get("scope") == "batch" else [[i] for i in images]
    rows = [np.concatenate(r["conf"])] if len(group) == 1 else list(r["conf"])
    for each, conf in zip(group, rows):
        if fragile_cut(r, each, conf):
            refuse(name, "different rows within 1e-5 at the mining cut")
    for i, image in enumerate(images):
        image["loc_in"] = r["loc"][i]
        if fragile_offsets(r, image):
            refuse(name, f"image {i}: beside a kink of the localization loss")
        for row in image["rows"] or ():
            if int(row["best_iou"] * 10) != int(np.float32(row["best_iou"]) * np.float32(10)):
                refuse(name, f"image {i}: IoU {row['best_iou']} at a histogram edge")


# ---------------------------------------------------------------- derivatives against central differences

def total_rows(r, images, loc, conf):
    """What each prior adds to loss.total [N,P], with what is constant (assignment, mined set, alpha) as in images."""
    rows = []
    for i, image in enumerate(images):
        s = reference.score(r, image, loc[i], conf[i], image["alpha"])
        of_conf, of_loc = reference.factors(r, image)
        rows.append(of_conf * s["ce"] + of_loc * s["loc"])
    return np.array(rows)


def moved(r, images, part, loc, conf):
    """The analytic gradient by loc or conf at other predictions. -> [N,P,4 or C]"""
    at = [{**i, **reference.score(r, i, *each)} for i, *each in zip(images, loc, conf)]
    return reference.gradients(r, at)[part == "conf"]


def check_gradients(name, r, images):
    """The analytic gradient of loss.total against central differences: each number, and the total along a direction.
    Left out: where the slope does not change evenly within the step, so that the difference is not the derivative."""
    given = {"loc": r["loc"].astype(float), "conf": r["conf"].astype(float)}
    worst, checked, numbers = 0.0, 0, 0
    for part, x in given.items():
        slope = moved(r, images, part, **given)
        step = np.full(x.shape, 2.0 ** -14)
        if part == "conf" and r["criterion"]["classification"]["kind"] == "prob_ce":
            step = np.maximum(np.abs(x), 1e-8) * 1e-4
        scale, even, sharp = np.abs(slope).max(2) + 1e-9, np.zeros(x.shape, bool), np.zeros(x.shape[:2], bool)
        for j in range(x.shape[2]):
            h = np.where(np.arange(x.shape[2]) == j, step, 0)
            up, down = ({**given, part: x + s} for s in (h, -h))
            rise = total_rows(r, images, **up) - total_rows(r, images, **down)
            above, below = (moved(r, images, part, **to)[..., j] for to in (up, down))
            even[..., j] = np.abs(above + below - 2 * slope[..., j]) <= 2e-6 * scale
            sharp |= ~even[..., j] | (np.abs(above - below) > 1e-2 * scale)
            off = np.abs(rise / (2 * step[..., j]) - slope[..., j]) / scale
            worst = max(worst, off[even[..., j]].max(initial=0))
        way = np.where(sharp[..., None], 0, np.random.default_rng(1).integers(-4, 5, x.shape) / 4) * step
        up, down = (total_rows(r, images, **{**given, part: x + s}) for s in (way, -way))
        rise = (up - down).sum()
        if abs(rise / 2 - (slope * way).sum()) > 1e-5 * np.abs(slope * way).sum() + 1e-15:
            refuse(name, f"the total moves by {rise / 2}, its gradient says {(slope * way).sum()}")
        checked, numbers = checked + int(even.sum()), numbers + even.size
    if worst > 1e-6 or checked < .9 * numbers:
        refuse(name, f"{checked} of {numbers} derivatives are up to {worst:.1e} off the central difference")
    return worst, checked


def check_all_gradients(read):
    """Every small case; and every kind of every stage must be among them. read: name -> (request, images)"""
    missing = {("preset", p) for p in criteria.PRESETS} | {(s, k) for s, kinds in criteria.KINDS.items() for k in kinds}
    worst, checked, n = 0.0, 0, 0
    for name, (r, images) in read.items():
        if r["loc"].size + r["conf"].size <= 20000:
            w, c = check_gradients(name, r, images)
            worst, checked, n = max(worst, w), checked + c, n + 1
            missing -= {("preset", r["criterion"]["name"])} | {(s, r["criterion"][s]["kind"]) for s in criteria.KINDS}
    if missing:
        refuse("central differences", f"no case for {sorted(missing)}")
    print(f"central differences: {n} cases, {checked} derivatives, at most {worst:.1e} of the row's largest")


# ---------------------------------------------------------------- published numbers

CHECKSUMS = {   # P, sums of cx cy w h, sums of i times each
    "ssd300": (8732, 4443.146675, 4443.146675, 1510.147981, 1510.147981, 19574203.059, 22719618.049, 8310284.780,
               8310620.189),
    "ssd300-coco": (8732, 4443.146675, 4443.146675, 1171.967678, 1171.967678, 19574203.059, 22719618.049, 6706153.981,
                    6706416.226),
    "ssd300-unit": (8732, 4365.999995, 4365.999995, 1516.328621, 1516.471257, 19161132.968, 22263870.950, 8361053.653,
                    8362686.813),
    "ssd300-efficientnet": (3106, 1552.999993, 1552.999993, 849.983512, 850.128083, 2434739.484, 2767317.483,
                            1551469.719, 1552195.715),
    "retinanet-640x640": (76725, 24552000, 24552000, 4765061.933, 4765061.933, 944415446400, 1130595048000,
                          231052288978.066, 231045812089.021),
    "grid-128x128": (4032, 258048, 258048, 49984, 69440, 521548032, 556093440, 130918816, 165134240),
}


def check_priors():
    for name, (n, *owed) in CHECKSUMS.items():
        boxes, levels = prior_sets.named(name)
        boxes = boxes.astype(float)
        got = [*boxes.sum(0), *(boxes * np.arange(1, n + 1)[:, None]).sum(0)]
        if len(boxes) != n or sum(x for _, x in levels) != n or any(abs(a - b) > 1e-3 for a, b in zip(got, owed)):
            refuse(name, f"{len(boxes)} priors with sums {got}")


def check_published(load):
    """Numbers worked out by hand and in other programs, to every digit: of the decimals, before float32."""
    for name, path, owed in criterion_cases.PUBLISHED:
        got = reference.answer(reference.read_request(*load(name), real=float))
        for member in path.split("/"):
            got = got[member]
        if abs(got - owed) > .51e-10:
            refuse(name, f"{path} is {got}, {owed} was published")
    print(f"published numbers: {len(criterion_cases.PUBLISHED)}")


# ---------------------------------------------------------------- expect.json

def load(name):
    """-> the request's bytes, its query options"""
    files = CASES[name]
    if "request.link" in files:
        other, file = os.path.split(os.path.normpath(files["request.link"].decode().strip()[3:]))
        data = CASES[other].get(file)
    else:
        other, data = name, next((v for k, v in files.items() if k.startswith("request.")), None)
    if data is None:
        with open(os.path.join(HERE, other, "request.safetensors"), "rb") as f:
            data = f.read()
        if hashlib.sha256(data).hexdigest() != BCCD_SHA256:
            refuse(other, "request.safetensors is not the file the answers were made for")
    return data, json.loads(files.get("options.json", b"{}"))


def same(a, b, apart=1e-12):
    """Equal, floats to 1e-12: exp and log of another numpy may differ in the last bit; gradients are float32."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= apart * max(abs(a), abs(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k], 2e-7 if "gradients" in k else apart) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y, apart) for x, y in zip(a, b))
    return a == b


def is_same(file, old, data):
    return old == data or bool(old) and file == "expect.json" and same(json.loads(old), json.loads(data))


def main():
    cases.add_all()
    criterion_cases.add_all()
    check, wrong, read = sys.argv[1:] == ["--check"], 0, {}
    if sys.argv[1:] and not check:
        raise SystemExit(__doc__)
    for name, files in CASES.items():
        r = reference.read_request(*load(name))
        images = reference.compute(r)
        refuse_fragile(name, r, images)
        read[name] = r, images
        files["expect.json"] = json_text(reference.answer(r, images))
        for file, data in files.items():
            path, old = os.path.join(HERE, name, file), None
            if os.path.exists(path):
                with open(path, "rb") as f:
                    old = f.read()
            if check and not is_same(file, old, data):
                print(f"differs: {name}/{file}")
                wrong += 1
            elif not check and not is_same(file, old, data):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as f:
                    f.write(data)
    known = {d for d in os.listdir(HERE) if os.path.isdir(os.path.join(HERE, d)) and not d.startswith("__")}
    for stray in sorted(known - set(CASES)):
        print(f"no such case: {stray}")
        wrong += check
    check_priors()
    check_published(load)
    check_all_gradients(read)
    print(f"{len(CASES)} cases {'checked' if check else 'written'}, {wrong} differences")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
