# SPDX-License-Identifier: Apache-2.0
"""The service once more, in numpy: the independent source of expect.json for every criterion.

Purpose: read one request of POST /v1/loss and print the answer the service owes (without timing_ms and request_id).
Written from the losses of ssd.pytorch (amdegroot), pytorch_advanced, the PyTorch detection tutorial by sgrvinod, the
keras-io RetinaNet example and the Keras SSD tutorial, not from this project's C code; nothing here is shared with it,
so that neither can hide the other's mistake. criteria.py has the presets, formulas.py the losses, priors.py the boxes.
Invariant: what decides (IoU, best prior, threshold, rank among the negatives) is float32, IoU in the origins' order of
operations; what is summed is float64, of inputs rounded to float32 once. Equal values go to the lowest index.

Usage: reference.py REQUEST.(json|safetensors) [option=value ...]
"""
import json
import math
import sys

import numpy as np

sys.dont_write_bytecode = True
import criteria
import formulas
import priors as prior_sets

F32, F64 = np.float32, np.float64
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U8": "u1", "BOOL": "u1"}
OPTIONS = ("criterion", "priors", "box_format", "image_size", "label_base", "invalid_boxes", "include", "device")
BACKGROUND, IGNORED = -1, -2
USED, CROWD, DROPPED = 0, 1, 2     # what becomes of an object
PARTS = ("loc", "conf_positive", "conf_negative")


# ---------------------------------------------------------------- requests

def read_safetensors(data):
    """-> tensors by name (BF16 widened to float32), metadata"""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, t in header.items():
        first, last = (8 + length + x for x in t["data_offsets"])
        a = np.frombuffer(data[first:last], DTYPES[t["dtype"]]).reshape(t["shape"])
        tensors[name] = (a.astype(np.uint32) << 16).view(F32) if t["dtype"] == "BF16" else a
    return tensors, metadata


def dense(value, real=F64):
    """A JSON array, nested or as {"shape", "data"}."""
    if isinstance(value, dict):
        return np.array(value["data"], F64).reshape(value["shape"]).astype(real)
    return np.array(value, F64).astype(real)


def read_json(data, real):
    """-> the tensors a binary body would have, its other members"""
    body = json.loads(data)
    t = {k: dense(body["predictions"][k], real) for k in ("loc", "conf")}
    if "targets" in body:
        t["target_classes"] = dense(body["targets"]["classes"]).astype(np.int64)
        t["target_loc"] = dense(body["targets"]["loc"], real)
    else:
        each = body["annotations"]
        t["counts"] = np.array([len(a["labels"]) for a in each])
        t["boxes"] = np.array([box for a in each for box in a["boxes"]], F64).reshape(-1, 4)
        t["labels"] = np.array([x for a in each for x in a["labels"]], np.int64)
        t["ignore"] = np.array([x for a in each for x in a.get("ignore", [0] * len(a["labels"]))])
    return t, body


def read_options(given, query):
    """Top-level members or metadata, then the query; in both texts: JSON, unless a name."""
    options = {k: given[k] for k in OPTIONS if given.get(k) is not None}
    options.update(query or {})
    for k in ("criterion", "priors", "image_size", "label_base"):
        if isinstance(options.get(k), str) and options[k][:1] in "[{0123456789":
            options[k] = json.loads(options[k])
    return options


def read_priors(name, tensor, real):
    """-> name, boxes [P,4] or None, [(level, priors in it)]"""
    if isinstance(name, str):
        return (name, *prior_sets.named(name))
    boxes = tensor if tensor is not None else name
    if boxes is None:
        return None, None, None
    boxes = np.array(boxes, F64).astype(real)
    return "inline", boxes, [("all", len(boxes))]


def to_native(boxes, layout, native, size, real):
    """Annotations in the form that the matcher reads: converted in double as sent, rounded to float32 once."""
    a, b = boxes[:, :2].astype(F64), boxes[:, 2:].astype(F64)
    if native == "corners":
        first, second = {"xyxy": (a, b), "xywh": (a, a + b), "cxcywh": (a - b / 2, a + b / 2)}[layout]
    else:
        first, second = {"xyxy": ((a + b) / 2, b - a), "xywh": (a + b / 2, b), "cxcywh": (a, b)}[layout]
    if size is not None:
        first, second = first / size, second / size
    return np.concatenate([first, second], 1).astype(real)


def usable(boxes, native):
    """Neither inverted nor of no float32 area."""
    side = boxes[:, 2:] - boxes[:, :2] if native == "corners" else boxes[:, 2:]
    return (side >= 0).all(1) & (side[:, 0] * side[:, 1] > 0)


def read_request(data, query=None, real=F32):
    """The bytes of a request and its query-string options -> what compute() and answer() read.

    real=F64 leaves the numbers unrounded, as published tables have them."""
    t, given = read_json(data, real) if data[:1] == b"{" else read_safetensors(data)
    options = read_options(given, query)
    criterion = criteria.resolve(options.get("criterion", "ssd-multibox"))
    own = criterion["priors"] if "counts" in t or formulas.needs_priors(criterion["localization"]) else None
    name = options.get("priors", None if "priors" in t else own)
    name, priors, levels = read_priors(name, t.get("priors"), real)
    r = {"criterion": criterion, "priors_name": name, "priors": priors,
         "levels": levels or [("all", t["conf"].shape[1])], "loc": t["loc"].astype(real),
         "conf": t["conf"].astype(real), "label_base": int(options.get("label_base", 0)),
         "include": set(filter(None, options.get("include", "").split(",")))}
    if "target_classes" in t:
        return {**r, "targets": list(zip(t["target_classes"].astype(np.int64), t["target_loc"].astype(F64)))}
    size = options.get("image_size", t.get("image_sizes"))
    sizes = None if size is None else np.broadcast_to(np.array(size, F64).reshape(-1, 2), (len(t["counts"]), 2))
    cuts, native = np.cumsum(t["counts"].astype(np.int64))[:-1], criterion["matcher"]["iou"]
    boxes = [to_native(b, options.get("box_format", "xyxy"), native, None if sizes is None else sizes[i], real)
             for i, b in enumerate(np.split(t["boxes"].astype(F64), cuts))]
    use = np.split(np.where(t.get("ignore", np.zeros(len(t["labels"]))).astype(bool), CROWD, USED), cuts)
    if options.get("invalid_boxes") == "drop":
        use = [np.where(usable(b, native), u, DROPPED) for b, u in zip(boxes, use)]
    labels = [x - r["label_base"] for x in np.split(t["labels"].astype(np.int64), cuts)]
    return {**r, "boxes": boxes, "labels": labels, "use": use}


# ---------------------------------------------------------------- matching

def overlaps(native, boxes, priors):
    """Intersection and IoU [G,P], area of the priors [P]: every operation float32 and in the origins' order."""
    half = priors[:, 2:] / 2
    low, high = priors[:, :2] - half, priors[:, :2] + half
    if native == "corners":
        box_low, box_high = boxes[:, :2], boxes[:, 2:]
        box_side, side = box_high - box_low, high - low
    else:
        box_side, side = boxes[:, 2:], priors[:, 2:]
        box_low, box_high = boxes[:, :2] - box_side / 2, boxes[:, :2] + box_side / 2
    shared = np.maximum(np.minimum(box_high[:, None], high) - np.maximum(box_low[:, None], low), 0)
    inter, area = shared[..., 0] * shared[..., 1], side[:, 0] * side[:, 1]
    union = ((box_side[:, 0] * box_side[:, 1])[:, None] + area) - inter
    iou = inter / union if native == "corners" else np.clip(inter / np.maximum(union, F32(1e-8)), 0, 1)
    assert inter.dtype == iou.dtype == boxes.dtype
    return inter, iou, area


def claims(force, iou):
    """-> [(object, prior)] that become positive whatever their IoU, a later one over an earlier one"""
    each = list(enumerate(iou.argmax(1))) if iou.size else []    # argmax: the first maximum, so 0 in a row of zeros
    if force == "greedy":
        left, pairs = iou.T.copy(), []                           # ties: the lowest prior, then the lowest object
        while left.size and left.max() > 0:
            p, g = divmod(int(left.argmax()), left.shape[1])
            pairs.append((g, p))
            left[p], left[:, g] = 0, 0
        return pairs
    return {"last": each, "first": each[::-1], "none": []}[force]


def encode(native, boxes, priors, variances):
    """Offsets of boxes [M,4] from their priors [M,4], in float64."""
    a, b, c, wh = (x.astype(F64) for x in (boxes[:, :2], boxes[:, 2:], priors[:, :2], priors[:, 2:]))
    centre, side = ((a + b) / 2, b - a) if native == "corners" else (a, b)
    v = np.array(variances, F64)
    return np.concatenate([((centre - c) / wh) / v[:2], np.log(side / wh) / v[2:]], 1)


def match(r, boxes, labels, use):
    """One image's annotations -> class, object, target and forced per prior; its object rows."""
    m, priors, used = r["criterion"]["matcher"], r["priors"], np.flatnonzero(use == USED)
    _, iou, _ = overlaps(m["iou"], boxes[used], priors)
    own = iou.max(0, initial=0)
    obj = used[iou.argmax(0)] if len(used) else np.full(len(priors), -1)
    reached = own >= F32(m["positive_iou"])
    positive = reached.copy()
    for g, p in claims(m["force"], iou):
        positive[p], obj[p] = True, used[g]
    obj[~positive] = -1
    limit = m["positive_iou"] if m["negative_iou"] is None else m["negative_iou"]
    ignored = ~positive & ~(own < F32(limit))
    if (use == CROWD).any():
        inter, crowd, area = overlaps(m["iou"], boxes[use == CROWD], priors)
        covered = crowd >= F32(m["positive_iou"]) if m["ignore_iof"] is None else \
            inter / area >= F32(m["ignore_iof"])
        ignored |= ~positive & covered.any(0)

    classes = np.where(ignored, IGNORED, BACKGROUND)
    classes[positive] = labels[obj[positive]]
    target = np.zeros((len(priors), 4))
    target[positive] = encode(m["iou"], boxes[obj[positive]], priors[positive], r["criterion"]["coder"]["variances"])
    forced, rows = positive & ~reached, []
    for g, object in enumerate(used.tolist()):
        best = int(iou[g].argmax())
        wanted = iou[g, best] > 0 or m["force"] in ("last", "first")
        rows.append({"object": object, "label": int(labels[object]) + r["label_base"], "best_prior": best,
                     "best_iou": float(iou[g, best]), "positives": int((obj == object).sum()),
                     "forced": bool((forced & (obj == object)).any()),
                     "collided": bool(wanted and positive[best] and obj[best] != object)})
    return {"classes": classes, "object": obj, "target": target, "forced": forced, "rows": rows,
            "labels": labels[used], "ignored_objects": int((use == CROWD).sum()),
            "dropped": int((use == DROPPED).sum())}


# ---------------------------------------------------------------- the loss

def columns(r, classes):
    """The column of conf that each prior's class has; -1: none."""
    background = r["criterion"]["classification"]["background"]
    last = {"first": 0, "last": r["conf"].shape[2] - 1, "none": -1}[background]
    return np.where(classes >= 0, classes + (background == "first"), last)


def score(r, image, loc, conf, alpha=None):
    """The classification loss of every prior and the localization loss of the positives, with their derivatives."""
    c = r["criterion"]
    ce, d_ce = formulas.classification(c["classification"], conf.astype(F64), columns(r, image["classes"]))
    at = np.flatnonzero(image["positive"])
    l, d_l = np.zeros(len(ce)), np.zeros((len(ce), 4))
    prior = None if r["priors"] is None else r["priors"][at].astype(F64)
    l[at], d_l[at], alpha = formulas.localization(c["localization"], prior, c["coder"]["variances"],
                                                  loc[at].astype(F64), image["target"][at], alpha)
    return {"ce": ce, "loc": l, "d_ce": d_ce, "d_loc": d_l, "alpha": alpha}


def mine(m, images):
    """Fills in the counted negatives of each image. -> how many were asked for, for positives_and_mined"""
    counts = [(int(i["positive"].sum()), int(i["negative"].sum())) for i in images]
    if m["kind"] == "none":
        for i in images:
            i["mined"], i["counted"] = np.zeros(len(i["ce"]), bool), i["negative"]
        return 0
    # a Python float times a count is a float32 tensor in PyTorch and in TensorFlow
    wanted = lambda n, negatives, whole: min(max(whole(F32(m["ratio"]) * F32(n)), m["min_negatives"]), negatives)
    if m["scope"] == "image":
        groups = [([i], wanted(*c, math.ceil)) for i, c in zip(images, counts)]
        asked = math.fsum(wanted(*c, float) for c in counts)
    else:
        asked = wanted(*np.sum(counts, 0).tolist(), float)
        groups = [(images, math.floor(asked))]
    for group, k in groups:
        rest = np.flatnonzero(np.concatenate([i["negative"] for i in group]))
        rank = -np.concatenate([i["ce"] for i in group])[rest].astype(F32)
        mined = np.zeros(sum(len(i["ce"]) for i in group), bool)
        mined[rest[np.argsort(rank, kind="stable")[:k]]] = True
        for i, each in zip(group, np.split(mined, len(group))):
            i["mined"] = i["counted"] = each
    return asked


def normalizers(c, images, mined):
    """-> each image's own, whether they differ by image"""
    kind, n = c["normalizer"]["kind"], [int(i["positive"].sum()) for i in images]
    each = [[max(1, sum(n))] * 3] * len(n)
    if kind == "positives_and_mined":
        each = [[sum(n) + 1e-7, sum(n) + 1e-7, mined + 1e-7]] * len(n)
    if kind == "image_positives":
        each = [[len(n) * max(1, x)] * 3 for x in n]
    if kind == "value":
        each = [[c["normalizer"]["value"]] * 3] * len(n)
    values = 4 if c["localization"]["reduction"] == "mean" else 1
    return [{"loc": values * loc, "conf_positive": p, "conf_negative": q} for loc, p, q in each], \
        kind == "image_positives"


def compute(r):
    """Per image: assignment, targets, losses and derivatives of every prior, the mined set, normalisers."""
    images = []
    if "targets" in r:
        for classes, loc in r["targets"]:
            images.append({"classes": classes, "target": np.where((classes >= 0)[:, None], loc, 0), "rows": None})
    else:
        images = [match(r, *each) for each in zip(r["boxes"], r["labels"], r["use"])]
    for i, loc, conf in zip(images, r["loc"], r["conf"]):
        i["positive"], i["negative"], i["ignored"] = (
            f(i["classes"]) for f in (lambda x: x >= 0, lambda x: x == BACKGROUND, lambda x: x == IGNORED))
        i.update(score(r, i, loc, conf))
        i["correct"] = i["positive"] & (conf.argmax(1) == columns(r, i["classes"]))
    each, own = normalizers(r["criterion"], images, mine(r["criterion"]["mining"], images))
    for i, norm in zip(images, each):
        i["norm"], i["own_norm"] = norm, own
    return images


def factors(r, image):
    """What each prior's classification and localization count in loss.total. -> [P], [P]"""
    weights, norm = r["criterion"]["weights"], image["norm"]
    conf = np.where(image["positive"], 1 / norm["conf_positive"], image["counted"] / norm["conf_negative"])
    return weights["conf"] * conf, weights["loc"] * image["positive"] / norm["loc"]


# ---------------------------------------------------------------- the answer

def summary(values, with_max=False):
    names = ["min", "mean"] + ["max"] * with_max
    if not len(values):
        return dict.fromkeys(names)
    found = {"min": min(values), "mean": math.fsum(values) / len(values), "max": max(values)}
    return {k: found[k] for k in names}


def histogram(ious):
    bins = [0] * 10
    for x in ious:
        bins[min(int(x * 10), 9)] += 1
    return bins


def count(images, key):
    return sum(int(i[key].sum()) for i in images)


def counts(images):
    """What images[] has; of objects null with targets."""
    found = {"positives": count(images, "positive"), "negatives": count(images, "negative"),
             "ignored": count(images, "ignored"), "hard_negatives": count(images, "mined")}
    if images[0]["rows"] is None:
        return {**found, **dict.fromkeys(("objects", "forced", "collided", "unmatched_objects"))}
    rows = [o for i in images for o in i["rows"]]
    return {**found, "objects": len(rows), "forced": count(images, "forced"),
            "collided": sum(o["collided"] for o in rows),
            "unmatched_objects": sum(o["positives"] == 0 for o in rows)}


def assignment(r, images):
    found = {"images": len(images), "priors": r["conf"].shape[1], **counts(images)}
    if "targets" in r:
        return {**found, **dict.fromkeys(("ignored_objects", "dropped_boxes", "objects_without_overlap", "best_iou",
                                          "positives_per_object"))}
    rows = [o for i in images for o in i["rows"]]
    ious = [o["best_iou"] for o in rows]
    return {**found, "ignored_objects": sum(i["ignored_objects"] for i in images),
            "dropped_boxes": sum(i["dropped"] for i in images),
            "objects_without_overlap": sum(x == 0 for x in ious),
            "best_iou": {**summary(ious), "histogram": histogram(ious)},
            "positives_per_object": summary([o["positives"] for o in rows], True)}


def part_sums(image, select):
    """Unweighted sums of the selected priors of one image."""
    picked = lambda key, also: math.fsum(image[key][select & image[also]].tolist())
    return {"loc": picked("loc", "positive"), "conf_positive": picked("ce", "positive"),
            "conf_negative": picked("ce", "counted")}


def shares(r, images, select):
    """select: image -> mask of priors. -> {"loss", "sums"} of the selected"""
    each = [part_sums(i, select(i)) for i in images]
    sums = {k: math.fsum(s[k] for s in each) for k in PARTS}
    weights = r["criterion"]["weights"]
    if images[0]["own_norm"]:
        part = {k: math.fsum(s[k] / i["norm"][k] for s, i in zip(each, images)) for k in PARTS}
    else:
        part = {k: sums[k] / images[0]["norm"][k] for k in PARTS}
    part = {k: weights["loc" if k == "loc" else "conf"] * x for k, x in part.items()}
    conf = part["conf_positive"] + part["conf_negative"]
    return {"loss": {"total": part["loc"] + conf, "loc": part["loc"], "conf": conf,
                     "conf_positive": part["conf_positive"], "conf_negative": part["conf_negative"]}, "sums": sums}


def everything(image):
    return np.ones(len(image["ce"]), bool)


def image_rows(r, images):
    for i in images:
        own = {"normalizer": i["norm"]} if i["own_norm"] else {}
        yield {**shares(r, [i], everything), **own, **counts([i])}


def class_rows(r, images):
    n = r["conf"].shape[2] - (r["criterion"]["classification"]["background"] != "none")
    for b in [*range(n), BACKGROUND]:
        of = lambda i: i["classes"] == b
        yield {"class": b + r["label_base"] if b >= 0 else BACKGROUND,
               "objects": None if "targets" in r else sum(int((i["labels"] == b).sum()) for i in images),
               "positives": sum(int((i["positive"] & of(i)).sum()) for i in images),
               "correct": sum(int((i["correct"] & of(i)).sum()) for i in images), **shares(r, images, of)}


def level_rows(r, images):
    first = 0
    for name, size in r["levels"]:
        within = (np.arange(r["conf"].shape[1]) >= first) & (np.arange(r["conf"].shape[1]) < first + size)
        yield {"name": name, "priors": size, "positives": sum(int(i["positive"][within].sum()) for i in images),
               "hard_negatives": sum(int(i["mined"][within].sum()) for i in images),
               **shares(r, images, lambda i: within)}
        first += size


def float32(a):
    """The shortest decimals that float32 reads back the same."""
    if isinstance(a, np.ndarray) and a.ndim:
        return [float32(x) for x in a]
    x = float(str(F32(a)))
    return int(x) if x == int(x) else x


def gradients(r, images):
    """Of loss.total: -> [N,P,4], [N,P,C], the priors that have one [N,P]"""
    loc, conf, listed = [], [], []
    for i in images:
        of_conf, of_loc = factors(r, i)
        loc.append(of_loc[:, None] * i["d_loc"])
        conf.append(of_conf[:, None] * i["d_ce"])
        listed.append(i["positive"] | i["counted"])
    return np.array(loc), np.array(conf), np.array(listed)


def answer(r, images=None):
    images = images or compute(r)
    want, c = r["include"], r["criterion"]
    a = {"criterion": c["name"], "priors": r["priors_name"], "device": "cpu",
         "classes_total": r["conf"].shape[2] - (c["classification"]["background"] != "none"),
         "label_base": r["label_base"], **shares(r, images, everything),
         "normalizer": None if images[0]["own_norm"] else images[0]["norm"], "assignment": assignment(r, images),
         "no_positives": count(images, "positive") == 0}
    for name, rows in (("images", image_rows), ("classes", class_rows), ("levels", level_rows)):
        if name in want:
            a[name] = list(rows(r, images))
    if "objects" in want:
        a["objects"] = None if "targets" in r else [{"image": b, **o} for b, i in enumerate(images) for o in i["rows"]]
    classes = [i["classes"].tolist() for i in images]
    if "assignment" in want:
        a["assignment_map"] = {"classes": classes,
                               "objects": None if "targets" in r else [i["object"].tolist() for i in images]}
    if "targets" in want:
        loc = [[[x or 0 for x in row] for row in i["target"].tolist()] for i in images]
        a["targets"] = {"classes": classes, "loc": loc}
    if want & {"gradients", "dense_gradients"}:
        loc, conf, listed = gradients(r, images)
        if "gradients" in want:
            a["gradients"] = {"index": np.argwhere(listed).tolist(), "loc": float32(loc[listed]),
                              "conf": float32(conf[listed])}
        else:
            a["dense_gradients"] = {"loc": float32(loc), "conf": float32(conf)}
    return a


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        request = read_request(f.read(), dict(x.split("=", 1) for x in sys.argv[2:]))
    json.dump(answer(request), sys.stdout)
    print()
