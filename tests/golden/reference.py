# SPDX-License-Identifier: Apache-2.0
"""The presets ssd-multibox and ssd-multibox-l1 once more, in numpy: the independent source of expect.json.

Purpose: read one request of POST /v1/loss and print the answer the service owes (without timing_ms and request_id).
Written from the losses of ssd.pytorch (amdegroot), pytorch_advanced and the PyTorch detection tutorial by sgrvinod,
not from this project's C code; nothing here is shared with it, so that neither can hide the other's mistake.
Invariant: what decides (IoU, best prior, threshold) is float32 in the origins' order of operations; what is summed is
float64, of inputs rounded to float32 once. Equal values go to the lowest index; a shared best prior to the last object.

Usage: reference.py REQUEST.(json|safetensors) [option=value ...]
"""
import json
import math
import sys

import numpy as np

F32, F64 = np.float32, np.float64
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U8": "u1", "BOOL": "u1"}
OPTIONS = ("criterion", "priors", "box_format", "image_size", "label_base", "invalid_boxes", "include", "device")
NATIVE_PRIORS = {"ssd-multibox": "ssd300", "ssd-multibox-l1": "ssd300-efficientnet"}
VARIANCES = (0.1, 0.1, 0.2, 0.2)
POSITIVE_IOU = F32(0.5)
MINING_RATIO = 3


# ---------------------------------------------------------------- prior sets

def ssd300(minimum, maximum):
    """ssd.pytorch's PriorBox: double arithmetic, stored as float32, clamped to 0..1. -> boxes, [(level, priors)]"""
    boxes, levels = [], []
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    for k, (f, step) in enumerate(zip((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300))):
        cells = 300 / step
        s = minimum[k] / 300
        extra = math.sqrt(s * (maximum[k] / 300))
        sizes = [(s, s), (extra, extra)]
        for a in ratios[k]:
            sizes += [(s * math.sqrt(a), s / math.sqrt(a)), (s / math.sqrt(a), s * math.sqrt(a))]
        boxes += [((j + 0.5) / cells, (i + 0.5) / cells, w, h) for i in range(f) for j in range(f) for w, h in sizes]
        levels.append((f"{f}x{f}", f * f * len(sizes)))
    return np.clip(np.array(boxes, F64).astype(F32), F32(0), F32(1)), levels


def ssd300_efficientnet():
    """The 3106 boxes of an EfficientNet-b0 SSD at 300x300: the extra, geometric-mean box is the last of each cell."""
    boxes, levels = [], []
    scales = (0.2, 0.2, 0.375, 0.55, 0.725, 0.9)
    for k, (name, f) in enumerate(zip(("mid", "end", "a", "b", "c", "d"), (18, 9, 9, 5, 3, 1))):
        s = scales[k]
        sizes = [(s * math.sqrt(r), s / math.sqrt(r)) for r in ((1, 2, 3, 0.5, 0.333) if k < 4 else (1, 2, 0.5))]
        extra = math.sqrt(s * scales[k + 1]) if k < 5 else 1.0
        sizes.append((extra, extra))
        boxes += [((j + 0.5) / f, (i + 0.5) / f, w, h) for i in range(f) for j in range(f) for w, h in sizes]
        levels.append((name, f * f * len(sizes)))
    return np.clip(np.array(boxes, F64).astype(F32), F32(0), F32(1)), levels


def named_priors(name):
    if name == "ssd300":
        return ssd300((30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315))
    if name == "ssd300-coco":
        return ssd300((21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315))
    if name == "ssd300-efficientnet":
        return ssd300_efficientnet()
    raise ValueError(f"no prior set {name}")


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


def dense(value):
    """A JSON array, nested or as {"shape", "data"}, rounded to float32 once."""
    if isinstance(value, dict):
        return np.array(value["data"], F64).reshape(value["shape"]).astype(F32)
    return np.array(value, F64).astype(F32)


def read_request(data, query=None):
    """The bytes of a request and its query-string options -> loc, conf, priors; boxes and labels per image; options."""
    sizes = tensor_priors = None
    if data[:1] == b"{":
        body = json.loads(data)
        loc, conf = dense(body["predictions"]["loc"]), dense(body["predictions"]["conf"])
        boxes = [np.array(a["boxes"], F64).astype(F32).reshape(-1, 4) for a in body["annotations"]]
        labels = [np.array(a["labels"], np.int64) for a in body["annotations"]]
        ignore = [np.array(a.get("ignore", [0] * len(a["labels"])), bool) for a in body["annotations"]]
        given = body
    else:
        t, given = read_safetensors(data)
        loc, conf = t["loc"].astype(F32), t["conf"].astype(F32)
        cuts = np.cumsum(t["counts"].astype(np.int64))[:-1]
        boxes = np.split(t["boxes"].astype(F32), cuts)
        labels = np.split(t["labels"].astype(np.int64), cuts)
        ignore = np.split(t.get("ignore", np.zeros(len(t["labels"]))).astype(bool), cuts)
        sizes, tensor_priors = t.get("image_sizes"), t.get("priors")
    options = {k: given[k] for k in OPTIONS if k in given}
    options.update(query or {})
    for k in ("priors", "image_size", "label_base"):  # in metadata and query: JSON text, unless a name
        if isinstance(options.get(k), str) and options[k][:1] in "[{0123456789":
            options[k] = json.loads(options[k])
    criterion = options.get("criterion", "ssd-multibox")
    base = int(options.get("label_base", 0))

    priors = options.get("priors", NATIVE_PRIORS[criterion])
    if tensor_priors is not None:
        name, priors = "inline", tensor_priors.astype(F32)
    elif isinstance(priors, list):
        name, priors = "inline", np.array(priors, F64).astype(F32)
    else:
        name = priors
        priors, levels = named_priors(name)
    if name == "inline":
        levels = [("all", len(priors))]

    size = options.get("image_size")
    if size is not None:
        sizes = np.array(size, F64).reshape(-1, 2)
    if sizes is not None:
        sizes = np.broadcast_to(np.asarray(sizes, F64), (len(boxes), 2))
    layout = options.get("box_format", "xyxy")
    if layout != "xyxy" or sizes is not None:
        boxes = [to_corners(b, layout, None if sizes is None else sizes[i]) for i, b in enumerate(boxes)]
    dropped = 0
    if options.get("invalid_boxes") == "drop":
        keep = [(b[:, 2] > b[:, 0]) & (b[:, 3] > b[:, 1]) for b in boxes]
        dropped = sum(int((~k).sum()) for k in keep)
        boxes, labels, ignore = ([x[k] for x, k in zip(each, keep)] for each in (boxes, labels, ignore))
    include = options.get("include", "")
    return {"criterion": criterion, "priors_name": name, "priors": priors, "levels": levels, "loc": loc, "conf": conf,
            "boxes": [b[~i] for b, i in zip(boxes, ignore)], "ignored": [b[i] for b, i in zip(boxes, ignore)],
            "labels": [x[~i] - base for x, i in zip(labels, ignore)], "label_base": base, "dropped": dropped,
            "include": set(filter(None, include.split(",")))}


def to_corners(boxes, layout, size):
    """Annotations in another layout or in pixels: converted in double, rounded to float32 once."""
    a, b = boxes[:, :2].astype(F64), boxes[:, 2:].astype(F64)
    low, high = {"xyxy": (a, b), "xywh": (a, a + b), "cxcywh": (a - b / 2, a + b / 2)}[layout]
    if size is not None:
        low, high = low / size, high / size
    return np.concatenate([low, high], 1).astype(F32)


# ---------------------------------------------------------------- the loss

def overlaps(boxes, priors):
    """IoU [G,P], every operation float32 and in the origins' order."""
    c, half = priors[:, :2], priors[:, 2:] / F32(2)
    low, high = c - half, c + half
    side = np.maximum(np.minimum(boxes[:, None, 2:], high) - np.maximum(boxes[:, None, :2], low), F32(0))
    inter = side[..., 0] * side[..., 1]
    area_boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area_priors = (high[:, 0] - low[:, 0]) * (high[:, 1] - low[:, 1])
    union = (area_boxes[:, None] + area_priors) - inter
    iou = inter / union
    assert iou.dtype == F32
    return iou


def match(boxes, priors):
    """-> per prior: positive, object, own best IoU; per object: best prior, best IoU."""
    g = len(boxes)
    if g == 0:
        p = len(priors)
        return np.zeros(p, bool), np.full(p, -1), np.zeros(p, F32), np.zeros(0, int), np.zeros(0, F32)
    iou = overlaps(boxes, priors)
    obj, own = iou.argmax(0), iou.max(0)          # argmax: the first maximum
    best, best_iou = iou.argmax(1), iou.max(1)    # a row of zeros claims prior 0
    positive = own >= POSITIVE_IOU
    for j in range(g):
        positive[best[j]] = True
        obj[best[j]] = j
    return positive, np.where(positive, obj, -1), own, best, best_iou


def encode(boxes, priors):
    """Corner boxes against their priors: offsets in float64."""
    low, high, c, wh = (x.astype(F64) for x in (boxes[:, :2], boxes[:, 2:], priors[:, :2], priors[:, 2:]))
    v = np.array(VARIANCES)
    return np.concatenate([((low + high) / 2 - c) / (v[:2] * wh), np.log((high - low) / wh) / v[2:]], 1)


def cross_entropy(logits, column):
    """logsumexp - x[column] in float64, without losing a small result beside the largest term's 1."""
    x = logits.astype(F64)
    rows = np.arange(len(x))
    top = x.argmax(1)
    m = x[rows, top]
    e = np.exp(x - m[:, None])
    e[rows, top] = 0
    return np.log1p(e.sum(1)) + (m - x[rows, column])


def localization(criterion, d):
    a = np.abs(d)
    return (a if criterion == "ssd-multibox-l1" else np.where(a < 1, 0.5 * d * d, a - 0.5)).sum(1)


def compute(r):
    """Per image: assignment, targets, cross entropy of every prior, localization of the positives, the mined set."""
    images = []
    for loc, conf, boxes, labels, crowd in zip(r["loc"], r["conf"], r["boxes"], r["labels"], r["ignored"]):
        p = len(r["priors"])
        positive, obj, own, best, best_iou = match(boxes, r["priors"])
        at = np.flatnonzero(positive)
        classes = np.full(p, -1)
        classes[at] = labels[obj[at]]
        ignored = np.zeros(p, bool)
        if len(crowd):
            ignored = ~positive & (overlaps(crowd, r["priors"]).max(0) >= POSITIVE_IOU)
        classes[ignored] = -2
        target = np.zeros((p, 4))
        target[at] = encode(boxes[obj[at]], r["priors"][at])
        ce = cross_entropy(conf, np.maximum(classes, -1) + 1)     # column 0 is background
        l = np.zeros(p)
        l[at] = localization(r["criterion"], loc[at].astype(F64) - target[at])
        rest = np.flatnonzero(~positive & ~ignored)
        k = min(MINING_RATIO * len(at), len(rest))
        mined = np.zeros(p, bool)
        mined[rest[np.argsort(-ce[rest].astype(F32), kind="stable")[:k]]] = True
        images.append({"positive": positive, "object": obj, "own": own, "best": best, "best_iou": best_iou,
                       "classes": classes, "target": target, "ce": ce, "loc": l, "mined": mined,
                       "ignored": ignored,
                       "correct": positive & (conf.argmax(1) == classes + 1), "labels": labels,
                       "forced": positive & (own < POSITIVE_IOU)})
    return images


# ---------------------------------------------------------------- the answer

def object_rows(image):
    for g, prior in enumerate(image["best"]):
        kept = image["object"][prior] == g
        yield {"best_prior": int(prior), "best_iou": float(image["best_iou"][g]),
               "positives": int((image["object"] == g).sum()), "forced": bool(kept and image["forced"][prior]),
               "collided": bool(not kept)}


def summary(values, with_max=False):
    names = ["min", "mean"] + ["max"] * with_max
    if not len(values):
        return dict.fromkeys(names)
    found = {"min": min(values), "mean": math.fsum(values) / len(values), "max": max(values)}
    return {k: found[k] for k in names}


def answer(r, images=None):
    images = images or compute(r)
    base, want = r["label_base"], r["include"]
    k = r["conf"].shape[2] - 1
    n = sum(int(i["positive"].sum()) for i in images)
    per_loc = 4 if r["criterion"] == "ssd-multibox-l1" else 1
    norm = {"loc": max(n, 1) * per_loc, "conf_positive": max(n, 1), "conf_negative": max(n, 1)}

    def sums(select):
        """select: image -> mask of priors"""
        masks = [select(i) for i in images]
        total = lambda key, also: math.fsum(x for i, m in zip(images, masks) for x in i[key][m & i[also]].tolist())
        return {"loc": total("loc", "positive"), "conf_positive": total("ce", "positive"),
                "conf_negative": total("ce", "mined")}

    def loss(select):
        s = {key: x / norm[key] for key, x in sums(select).items()}
        conf = s["conf_positive"] + s["conf_negative"]
        return {"total": s["loc"] + conf, "loc": s["loc"], "conf": conf, "conf_positive": s["conf_positive"],
                "conf_negative": s["conf_negative"]}

    def counts(some):
        rows = [o for i in some for o in object_rows(i)]
        return {"positives": sum(int(i["positive"].sum()) for i in some),
                "negatives": sum(int((~i["positive"] & ~i["ignored"]).sum()) for i in some),
                "ignored": sum(int(i["ignored"].sum()) for i in some),
                "hard_negatives": sum(int(i["mined"].sum()) for i in some), "objects": len(rows),
                "forced": sum(int(i["forced"].sum()) for i in some), "collided": sum(o["collided"] for o in rows),
                "unmatched_objects": sum(o["positives"] == 0 for o in rows)}

    everything = lambda i: np.ones(len(i["ce"]), bool)
    objects = [o for i in images for o in object_rows(i)]
    ious = [o["best_iou"] for o in objects]
    histogram = [0] * 10
    for x in ious:
        histogram[min(int(x * 10), 9)] += 1
    c = counts(images)
    a = {"criterion": r["criterion"], "priors": r["priors_name"], "device": "cpu", "classes_total": k,
         "label_base": base, "loss": loss(everything), "sums": sums(everything), "normalizer": norm,
         "assignment": {"images": len(images), "priors": len(r["priors"]), "objects": c["objects"],
                        "ignored_objects": sum(map(len, r["ignored"])), "dropped_boxes": r["dropped"],
                        "positives": c["positives"], "negatives": c["negatives"], "ignored": c["ignored"],
                        "hard_negatives": c["hard_negatives"], "forced": c["forced"], "collided": c["collided"],
                        "unmatched_objects": c["unmatched_objects"],
                        "objects_without_overlap": sum(x == 0 for x in ious),
                        "best_iou": {**summary(ious), "histogram": histogram},
                        "positives_per_object": summary([o["positives"] for o in objects], True)},
         "no_positives": n == 0}
    if "images" in want:
        a["images"] = [{"loss": loss(lambda i, it=it: everything(i) & (i is it)), **counts([it])} for it in images]
    if "classes" in want:
        a["classes"] = [{"class": b + base, "objects": sum(int((i["labels"] == b).sum()) for i in images),
                         "positives": sum(int((i["classes"] == b).sum()) for i in images),
                         "correct": sum(int((i["correct"] & (i["classes"] == b)).sum()) for i in images),
                         "loss": loss(lambda i: i["classes"] == b)} for b in range(k)]
        a["classes"].append({"class": -1, "objects": 0, "positives": 0, "correct": 0,
                             "loss": loss(lambda i: i["classes"] == -1)})
    if "levels" in want:
        a["levels"], first = [], 0
        for name, size in r["levels"]:
            part = slice(first, first + size)
            within = np.zeros(len(r["priors"]), bool)
            within[part] = True
            a["levels"].append({"name": name, "priors": size,
                                "positives": sum(int(i["positive"][part].sum()) for i in images),
                                "hard_negatives": sum(int(i["mined"][part].sum()) for i in images),
                                "loss": loss(lambda i: within)})
            first += size
    if "objects" in want:
        a["objects"] = [{"image": b, "object": g, "label": int(i["labels"][g]) + base, **o}
                        for b, i in enumerate(images) for g, o in enumerate(object_rows(i))]
    if "assignment" in want:
        a["assignment_map"] = {"classes": [i["classes"].tolist() for i in images],
                               "objects": [i["object"].tolist() for i in images]}
    if "targets" in want:
        a["targets"] = {"classes": [i["classes"].tolist() for i in images],
                        "loc": [[[x or 0 for x in row] for row in i["target"].tolist()] for i in images]}
    return a


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        request = read_request(f.read(), dict(x.split("=", 1) for x in sys.argv[2:]))
    json.dump(answer(request), sys.stdout)
    print()
