# SPDX-License-Identifier: Apache-2.0
"""The golden cases of the two multibox presets, and of everything that does not depend on the criterion.

CASES is what generate.py writes: name -> files but expect.json.
"""
import numpy as np

import priors as prior_sets
from batches import batch, body, decisions, json_text, objects_on, safetensors, tensors, uniform

ALL = "images,classes,levels,objects,assignment,targets"
STATISTICS = "images,classes,levels,objects"

CASES = {}


def case(name, request=None, link=None, options=None):
    files = {}
    if link:
        files["request.link"] = (f"../{link}\n").encode()
    elif request is not None:
        files["request.json" if request[:1] == b"{" else "request.safetensors"] = request
    if options:
        files["options.json"] = json_text(options)
    assert name not in CASES
    CASES[name] = files


def binary(name, b, metadata=None, options=None, **dtypes):
    case(name, safetensors(tensors(b, **dtypes), {"include": ALL, **(metadata or {})}), options=options)


def text(name, b, flat=False, **members):
    case(name, body(b, flat, **{"include": ALL, **members}))


def both(name, b):
    """The same batch under both presets."""
    text(name, b)
    case(name + "-l1", link=f"{name}/request.json", options={"criterion": "ssd-multibox-l1"})


def trained():
    """Real predictions: the request is data, see bccd-ssd300/README.md."""
    case("bccd-ssd300", options={"include": STATISTICS})
    case("bccd-ssd300-l1", link="bccd-ssd300/request.safetensors",
         options={"criterion": "ssd-multibox-l1", "priors": "ssd300", "include": STATISTICS})


def ties():
    """Equal IoU, equal losses, objects that want the same prior."""
    corners = np.array([[0, 0, .4, .4], [.5, .5, .9, .9], [.05, .05, .45, .45], [.6, .1, .9, .4], [.5, 0, .7, .2],
                        [.8, .8, 1, 1], [.1, .6, .3, .8], [.3, .7, .5, .9], [.7, .5, 1, .7], [0, .8, .2, 1]])
    priors = np.round(np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1), 4)
    loc = np.full((1, 10, 4), .2)
    loc[0, :3] = [[.1, -.2, .3, 0], [0, 0, 0, 0], [-1, 2, .5, -.5]]
    conf = np.array([[[0, 1, 2], [2, 0, -1], [.5, .5, .5], [1, -1, 0], [0, 3, 0], [4, 0, 0], [-1, 0, 1], [0, 0, 0],
                      [3, 1, 2], [.2, .1, -.3]]])
    both("last-object-wins", {"priors": priors, "counts": [2], "labels": [0, 1], "loc": loc, "conf": conf,
                              "boxes": np.array([[0, 0, .4, .38], [.02, 0, .42, .36]])})

    # Priors that mirror each other about an object, in exact and in decimal numbers, and priors given twice.
    rng = np.random.default_rng(101)
    priors = [[.625, .5, .25, .25], [.375, .5, .25, .25], [.5, .625, .25, .25], [.5, .375, .25, .25],
              [.6, .2, .3, .3], [.4, .2, .3, .3], [.6, .2, .3, .3], [.4, .2, .3, .3],
              [.2, .8, .2, .2], [.2, .8, .2, .2], [.2, .8, .2, .2]]
    b = batch(rng, 0, 4, [4, 3], priors=priors)
    b["boxes"] = np.array([[.375, .375, .625, .625], [.35, .05, .65, .35], [.1, .7, .3, .9], [.12, .7, .3, .9],
                           [.375, .375, .625, .625], [.375, .375, .625, .625], [.1, .7, .3, .9]])
    b["labels"] = np.array([0, 1, 2, 0, 1, 2, 0])
    both("mirror-and-duplicate-priors", b)
    # The same in decimal numbers, kept where the first best prior in float32 is another one than in float64.
    rng, priors, boxes = np.random.default_rng(102), [], []
    while len(boxes) < 5:
        y = round(.1 + .2 * len(boxes), 1)
        x, apart, w, h, ow, oh = uniform(rng, 6, .01, .16, 100)
        x = round(.5 + x, 2)
        pair = np.round([[x - apart, y, .1 + w, .16], [x + apart, y, .1 + w, .16]], 2)
        box = np.round([x - .1 - ow / 2, y - oh / 2, x + .1 + ow / 2, y + oh / 2], 3)
        narrow, wide = decisions(box, pair)
        if wide.max() > .3 and narrow.argmax() != wide.argmax():
            priors += pair.tolist()
            boxes.append(box)
    b = batch(np.random.default_rng(106), 0, 3, [5], priors=priors + [[.1, .1, .1, .1]] * 20)
    binary("mirror-priors-decimal", {**b, "boxes": np.array(boxes)})

    # IoU 0.5 exactly, one float32 below and one above: the object's best prior is another one, which it covers exactly.
    half = np.array([.25, .25, .75, .5])
    priors = [[.5, .5, .5, .5], [.5, .375, .5, .25], [.5, .25, .5, .5], [.9, .9, .1, .1]]
    below, above = half.copy(), half.copy()
    below[3] -= 2.0 ** -24
    above[3] += 2.0 ** -24
    b = batch(np.random.default_rng(103), 0, 2, [1, 1, 1], priors=priors, grid=64)
    b["boxes"] = np.array([half, below, above])
    both("iou-half", b)

    # Objects that cover half of a prior in decimal numbers, kept where float32 and float64 fall on two sides of 0.5.
    rng, priors, boxes = np.random.default_rng(107), [], []
    while len(boxes) < 6:
        x, y, w, h = np.round(np.append(uniform(rng, 1, .2, .8, 100), [.08 + .16 * len(boxes), 0, 0]), 2)
        w, h = uniform(rng, 1, .1, .3, 100)[0], uniform(rng, 1, .03, .07, 100)[0] * 2
        box = np.round([x - w / 2, y - h / 2, x + w / 2, y], 3)
        narrow, wide = (v[0] for v in decisions(box, np.array([[x, y, w, h]])))
        if (narrow >= .5) != (wide >= .5) and (narrow >= .5) == (len(boxes) > 0):
            priors += [[x, y, w, h], np.round([x, y - h / 4, w, h / 2], 4).tolist()]
            boxes.append(box)
    b = batch(np.random.default_rng(108), 0, 3, [6], priors=priors + [[.9, .9, .01, .02]] * 30)
    binary("iou-half-decimal", {**b, "boxes": np.array(boxes)})

    # 40 of the 60 negatives have the same row, so the cut runs through a tie; another tie is a shifted row.
    rng = np.random.default_rng(104)
    b = batch(rng, 64, 3, [2, 3], grid=64)
    b["conf"][:, 10:50] = [1.5, .25, -2]
    b["conf"][1, 11:50:2] = [2.5, 1.25, -1]
    both("mining-ties", b)
    b = batch(np.random.default_rng(105), 33, 21, [3, 1], grid=64)
    b["conf"][:] = np.round(b["conf"][..., :1] * 4) / 4  # all columns of a row equal: every loss is log 21
    binary("equal-logits", b)


def matching():
    """Objects without a prior, priors without an object."""
    apart = [[.2, .2, .2, .2], [.5, .5, .3, .2], [.8, .8, .2, .3], [.25, .75, .3, .3], [.7, .25, .2, .3]]
    b = batch(np.random.default_rng(201), 0, 4, [2, 3, 3, 1], priors=apart)
    far, first, third = [.95, .02, .99, .06], [.11, .1, .3, .3], [.7, .66, .9, .95]
    b["boxes"] = np.array([far, third, far, first, third, first, third, far, far])
    b["labels"] = np.array([2, 0, 1, 0, 2, 0, 1, 2, 1])
    both("object-without-overlap", b)

    b = batch(np.random.default_rng(202), 0, 5, [3, 4], priors=apart)
    b["boxes"] = np.array([[.35, .4, .65, .6], [.36, .42, .64, .62], [.7, .68, .88, .95],
                           [.1, .1, .3, .3], [.12, .1, .32, .3], [.1, .12, .3, .32], [.5, .5, .52, .53]])
    both("same-best-prior", b)

    b = batch(np.random.default_rng(203), 2, 4, [7, 3])
    both("more-objects-than-priors", b)

    b = batch(np.random.default_rng(204), 12, 3, [6, 1])
    b["boxes"][:6] = objects_on(np.random.default_rng(205), b["priors"][:6], [6])
    binary("ratio-exceeds-negatives", b)

    b = batch(np.random.default_rng(206), 40, 3, [3, 0, 2])
    both("image-without-objects", b)
    b = batch(np.random.default_rng(207), 31, 4, [0, 0])
    both("batch-without-objects", b)
    binary("batch-without-objects-tensors", b)
    binary("single-image", batch(np.random.default_rng(208), 50, 6, [4]))
    binary("many-objects", batch(np.random.default_rng(209), 65, 8, [40, 25]))


def shapes():
    """Every awkward prior count with every awkward column count."""
    columns = (2, 3, 21, 91)
    for i, p in enumerate((1, 7, 8, 9, 31, 33, 64, 65)):
        for c in (columns[i % 4], columns[(i + 2) % 4]):
            n = 1 + (i + c) % 3
            b = batch(np.random.default_rng(300 + 100 * i + c), p, c, [1 + (p + j) % 4 for j in range(n)])
            binary(f"shape-p{p}-c{c}", b, {"criterion": "ssd-multibox-l1" if i % 3 == 2 else "ssd-multibox"})


def logits():
    """Scores at the ends of what exp can take."""
    b = batch(np.random.default_rng(401), 33, 3, [2, 3], grid=64, low=-2, high=2)
    b["conf"][0, ::3] = [88, -88, 0]
    b["conf"][0, 1::3] = [-88, 88, -88]
    b["conf"][1, ::4] = [88, 88, -88]
    b["conf"][1, 1::4] = -88
    b["conf"][1, 2::4] = 88
    both("logits-88", b)

    # Background ahead by 60: a loss of e^-60 a row, which the sum minus its largest term must not lose.
    b = batch(np.random.default_rng(402), 40, 21, [1, 2], grid=64)
    b["conf"][..., 0] = 40 + np.arange(80).reshape(2, 40) / 64
    b["conf"][..., 1:] = -20 - uniform(np.random.default_rng(403), (2, 40, 20), 0, 2, 64)
    both("confident-negatives", b)
    b = batch(np.random.default_rng(404), 64, 4, [3, 2], grid=64)
    b["conf"][..., 0] += uniform(np.random.default_rng(405), (2, 64), 4, 28, 64)
    both("confident-negatives-mixed", b)


def encodings():
    """The same kind of batch in every dtype and form the contract names."""
    rng = np.random.default_rng(501)
    for dtype in ("F16", "BF16"):
        binary(f"predictions-{dtype.lower()}", batch(rng, 40, 6, [2, 3], grid=64), dtype=dtype)
    b = batch(rng, 40, 6, [2, 3])
    for k in ("loc", "conf"):  # digits that only rounding to float32 removes
        b[k] = b[k] + rng.integers(-1000, 1000, b[k].shape) / 2.0 ** 40
    binary("predictions-f64", b, dtype="F64")
    b = batch(rng, 33, 9, [3, 1, 2])
    for dtype in ("I64", "I32", "I16", "I8", "U8"):
        binary(f"labels-{dtype.lower()}", b, labels=dtype, counts="I32" if dtype != "I64" else "I64")
    b = batch(rng, 33, 130, [3, 2])
    b["labels"] = np.array([128, 0, 127, 64, 128])
    binary("labels-u8-above-127", b, {"include": STATISTICS}, labels="U8")
    b = batch(rng, 33, 4, [3, 1])
    for dtype in ("F16", "BF16", "F64"):
        binary(f"boxes-{dtype.lower()}", b, boxes=dtype)
    b = batch(rng, 31, 4, [2, 2])
    binary("priors-f32", b)
    b["priors"] = b["priors"] + rng.integers(-1000, 1000, b["priors"].shape) / 2.0 ** 40
    binary("priors-f64", b, priors="F64")

    b = batch(rng, 16, 4, [2, 1])
    text("json-nested", b)
    text("json-flat", b, flat=True)
    text("json-l1", b, criterion="ssd-multibox-l1")


def by_name():
    """The built-in prior sets, by default and by name."""
    for name, seed, metadata in (("ssd300", 601, {"include": ALL}),  # neither criterion nor priors: the defaults
                                 ("ssd300-coco", 602, {"include": STATISTICS + ",assignment", "priors": "ssd300-coco"}),
                                 ("ssd300-efficientnet", 603, {"include": ALL, "criterion": "ssd-multibox-l1"})):
        rng = np.random.default_rng(seed)
        b = batch(rng, 0, 2, [6], priors=prior_sets.named(name)[0], grid=64)
        case("priors-" + name, safetensors(tensors(b, dtype="F16", priors=None), metadata))
    case("priors-efficientnet-multibox", link="priors-ssd300-efficientnet/request.safetensors",
         options={"criterion": "ssd-multibox", "priors": "ssd300-efficientnet", "include": STATISTICS})


def options():
    """Options in the metadata and in the query, and what to include."""
    rng = np.random.default_rng(701)
    b = batch(rng, 24, 4, [2, 3])
    binary("metadata-options", b, {"format": "pt", "criterion": "ssd-multibox-l1", "box_format": "xyxy",
                                   "label_base": "0"})
    case("query-overrides", link="json-nested/request.json",
         options={"criterion": "ssd-multibox-l1", "include": "objects"})
    for want in ("", "images", "classes", "levels", "objects", "assignment", "targets", "objects,images",
                 "targets,assignment"):
        name = "include-" + (want.replace(",", "-") or "nothing")
        case(name, link="json-nested/request.json", options={"include": want})


def add_all():
    for add in (trained, ties, matching, shapes, logits, encodings, by_name, options):
        add()
