# SPDX-License-Identifier: Apache-2.0
"""Requests for the golden cases: seeded batches and the bytes of a body in either form.

Invariant: requests are made of integers of numpy's PCG64 and of basic operations only, so every machine writes the same
bytes. A batch is a dict: priors, counts, boxes, labels, conf, loc; ignore and targets where there are any.
"""
import json

import numpy as np

import reference

ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")  # the usual writers' sort, then by name


# ---------------------------------------------------------------- writers

def safetensors(tensors, metadata=None):
    """tensors: name -> (dtype, array)"""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, a) in sorted(tensors.items(), key=lambda t: (ORDER.index(t[1][0]), t[0])):
        if dtype == "BF16":  # round to nearest even
            u = np.asarray(a, np.float32).view(np.uint32)
            a = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        raw = np.asarray(a).astype(reference.DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(np.shape(a)), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def plain(a):
    """numpy -> JSON numbers; whole ones without a point"""
    if isinstance(a, np.ndarray):
        a = a.tolist()
    return [plain(x) for x in a] if isinstance(a, list) else int(a) if a == int(a) else a


def json_text(members):
    """One top-level member a line."""
    rows = (f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in members.items())
    return ("{\n" + ",\n".join(rows) + "\n}\n").encode()


# ---------------------------------------------------------------- random batches

def uniform(rng, shape, low, high, grid):
    """Multiples of 1/grid in low..high: exact in float32 when grid is a power of two."""
    return rng.integers(round(low * grid), round(high * grid) + 1, shape) / grid


def random_priors(rng, p):
    return np.concatenate([uniform(rng, (p, 2), .15, .85, 1000), uniform(rng, (p, 2), .08, .45, 1000)], 1)


def objects_on(rng, priors, counts):
    """Objects that are priors moved a little, so that some IoU reach 0.5 and some do not. -> boxes [G,4] xyxy"""
    boxes = []
    for p in rng.integers(0, len(priors), sum(counts)):
        c, wh = priors[p, :2], priors[p, 2:]
        box = np.concatenate([c - wh / 2, c + wh / 2]) + uniform(rng, 4, -.06, .06, 1000)
        box = np.clip(np.round(box, 3), 0, 1)
        if box[2] - box[0] < .02 or box[3] - box[1] < .02:
            box = np.round(np.array([.3, .3, .5, .6]), 3)
        boxes.append(box)
    return np.array(boxes, float).reshape(-1, 4)


def decisions(box, priors, native="corners"):
    """IoU of one object with priors in float32, as the service owes it, and in float64 of the same inputs."""
    box, priors = np.array([box], np.float32), np.array(priors, np.float32)
    return [reference.overlaps(native, box.astype(real), priors.astype(real))[1][0] for real in (np.float32, float)]


def batch(rng, p, c, counts, grid=1000, priors=None, low=-4, high=4):
    n = len(counts)
    priors = random_priors(rng, p) if priors is None else np.asarray(priors, float)
    conf = uniform(rng, (n, len(priors), c), low, high, grid)
    conf[..., 0] += 2
    return {"priors": priors, "counts": list(counts), "boxes": objects_on(rng, priors, counts),
            "labels": rng.integers(0, c - 1, sum(counts)), "conf": conf,
            "loc": uniform(rng, (n, len(priors), 4), -2, 2, grid)}


def scores(rng, kind, shape):
    """Predictions of a classification kind: logits, or probabilities to six digits."""
    if kind == "prob_ce":
        share = rng.integers(1, 1000, shape)
        return np.round(share / share.sum(-1, keepdims=True), 6)
    return uniform(rng, shape, -4, 4 if kind == "softmax_ce" else 2, 100)


def sample(seed, kind, p, c, counts, scale=1, priors=None, spread=2):
    """A batch for any classification kind; scale: pixels of an image side, 1 for shares of it."""
    rng, n = np.random.default_rng(seed), len(counts)
    priors = random_priors(rng, p) if priors is None else np.asarray(priors, float)
    boxes, p = objects_on(rng, priors, counts), len(priors)
    return {"priors": np.round(priors * scale, 3), "counts": list(counts), "boxes": np.round(boxes * scale, 3),
            "labels": rng.integers(0, max(c - (kind != "sigmoid_focal"), 1), sum(counts)),
            "conf": scores(rng, kind, (n, p, c)), "loc": uniform(rng, (n, p, 4), -spread, spread, 100)}


def tensors(b, dtype="F32", boxes="F32", labels="I64", counts="I64", priors="F32"):
    t = {"loc": (dtype, b["loc"]), "conf": (dtype, b["conf"])}
    if "targets" in b:
        t.update(target_classes=(labels, b["targets"][0]), target_loc=("F32", b["targets"][1]))
    else:
        t.update(boxes=(boxes, b["boxes"]), labels=(labels, b["labels"]), counts=(counts, b["counts"]))
    if "ignore" in b:
        t["ignore"] = ("U8", b["ignore"])
    if priors and b.get("priors") is not None:
        t["priors"] = (priors, b["priors"])
    return t


def body(b, flat=False, **options):
    """The JSON form of a batch."""
    shaped = lambda a: {"shape": list(a.shape), "data": plain(a.reshape(-1))} if flat else plain(a)
    members = {} if b.get("priors") is None else {"priors": plain(b["priors"])}
    members.update(options, predictions={"loc": shaped(b["loc"]), "conf": shaped(b["conf"])})
    if "targets" in b:
        members["targets"] = dict(zip(("classes", "loc"), (shaped(np.asarray(x)) for x in b["targets"])))
        return json_text(members)
    keys = ("boxes", "labels") + ("ignore",) * ("ignore" in b)
    parts = [np.split(np.asarray(b[k]), np.cumsum(b["counts"])[:-1]) for k in keys]
    members["annotations"] = [{k: plain(x) for k, x in zip(keys, each)} for each in zip(*parts)]
    return json_text(members)
