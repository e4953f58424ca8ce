# SPDX-License-Identifier: Apache-2.0
"""The golden cases of every stage of a criterion: presets, matching, losses, mining, normalisers, targets, gradients.

PUBLISHED are numbers that other people's programs and hands have found for some of them.
"""
import json

import numpy as np

import criteria
import reference
from batches import body, decisions, safetensors, sample, tensors, uniform
from cases import ALL, CASES, STATISTICS, case

EVERY = ALL + ",gradients"
KINDS = {"ssd-multibox": "softmax_ce", "ssd-multibox-l1": "softmax_ce", "retinanet-focal": "sigmoid_focal",
         "ssd-keras": "prob_ce"}
SHORT = {"retinanet-focal": "focal", "ssd-keras": "keras", "ssd-multibox": "multibox", "ssd-multibox-l1": "l1"}
FORCES = ("last", "first", "greedy", "none")
PUBLISHED = []  # (case, path into the answer, number to ten decimals)


def as_text(members):
    """An option as the query and the metadata have it."""
    return {k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for k, v in members.items()}


def in_json(name, b, flat=False, **members):
    case(name, body(b, flat, **{"include": EVERY, **members}))


def in_tensors(name, b, more=None, dtypes=None, **metadata):
    case(name, safetensors({**tensors(b, **(dtypes or {})), **(more or {})},
                           as_text({"include": EVERY, **metadata})))


def again(name, other, **options):
    """Another case's request with other options."""
    file = next(f for f in CASES[other] if f.startswith("request.") and f != "request.link")
    case(name, link=f"{other}/{file}", options=as_text({"include": EVERY, **options}))


def presets():
    """Each preset at odd sizes, in shares of the image and in pixels; one image without objects."""
    for i, (preset, kind) in enumerate(KINDS.items()):
        least, scale = (1, 256) if kind == "sigmoid_focal" else (2, 128 if kind == "prob_ce" else 1)
        seed = 2000 + 10 * i
        in_json(f"preset-{preset}-p7", sample(seed, kind, 7, least, [2]), criterion=preset)
        in_tensors(f"preset-{preset}-p33", sample(seed + 1, kind, 33, 5, [3, 0, 2], scale), criterion=preset)
        in_tensors(f"preset-{preset}-p65", sample(seed + 2, kind, 65, 9, [1, 4]), criterion=preset,
                   include=ALL + ",dense_gradients")
        in_tensors(f"preset-{preset}-p31-c21", sample(seed + 3, kind, 31, 21, [2, 2]), criterion=preset)


def edges():
    """No objects in an image or in the batch, more objects than priors, all ignored: under every preset."""
    for i, (preset, kind) in enumerate(KINDS.items()):
        seed, short = 2100 + 10 * i, SHORT[preset]
        in_json(f"no-object-in-an-image-{short}", sample(seed, kind, 12, 4, [2, 0, 1]), criterion=preset)
        in_json(f"no-object-in-the-batch-{short}", sample(seed + 1, kind, 9, 3, [0, 0]), criterion=preset)
        in_json(f"objects-exceed-priors-{short}", sample(seed + 2, kind, 3, 4, [7, 4]), criterion=preset)
        b = sample(seed + 3, kind, 12, 3, [3, 2])
        in_json(f"all-objects-ignored-{short}", {**b, "ignore": np.ones(5, int)}, criterion=preset)
        b = {**sample(seed + 4, kind, 5, 3, [0]), "targets": (np.full((1, 5), -2), np.zeros((1, 5, 4)))}
        in_json(f"all-priors-ignored-{short}", b, criterion=preset)


# ---------------------------------------------------------------- matching

def shared_prior():
    """Two objects with the same best prior: the batch of last-object-wins under every rule, and in the Keras loss."""
    owed = {"last": (1.8576848337, 4.9216995235, .7567006446, 5.6784001681),
            "first": (1.7453733574, 5.4216995235, .6541586313, 6.0758581548)}
    for force in FORCES:
        rule = {"matcher": {"force": force}}
        again(f"force-{force}", "last-object-wins", criterion=rule)
        again(f"force-{force}-l1", "last-object-wins", criterion={"base": "ssd-multibox-l1", **rule})
        # greedy, and each prior's own best object, leave P0 to the first object and P2 to the second, as `first` does
        smooth, conf, l1, total = owed["last" if force == "last" else "first"]
        PUBLISHED.extend([(f"force-{force}", "loss/loc", smooth), (f"force-{force}", "loss/conf", conf),
                          (f"force-{force}-l1", "loss/loc", l1), (f"force-{force}-l1", "loss/total", total)])
    rows = np.array([[0, 1, 2], [2, 0, -1], [.5, .5, .5], [1, -1, 0], [0, 3, 0], [4, 0, 0], [-1, 0, 1], [0, 0, 0],
                     [3, 1, 2], [.2, .1, -.3]])
    shared = json.loads(CASES["last-object-wins"]["request.json"])
    priors, each, loc = (np.array(x) for x in (shared["priors"], shared["annotations"][0]["boxes"],
                                               shared["predictions"]["loc"]))
    softmax = lambda x: np.round(np.exp(x) / np.exp(x).sum(-1, keepdims=True), 13)
    one = {"priors": priors, "counts": [2], "boxes": each, "labels": [0, 1], "loc": loc, "conf": softmax(rows)[None]}
    in_json("keras-shared-prior", one, criterion="ssd-keras")
    in_json("keras-shared-prior-two-images", {**one, "counts": [2, 0], "loc": np.concatenate([loc, loc]),
                                              "conf": softmax(np.stack([rows, rows[:, ::-1]]))}, criterion="ssd-keras")
    in_json("keras-no-objects", {**one, "counts": [0], "boxes": np.zeros((0, 4)), "labels": []}, criterion="ssd-keras")
    PUBLISHED.extend([("keras-shared-prior", "loss/conf_positive", 1.2531090639),
                      ("keras-shared-prior", "loss/conf_negative", 2.4227974363),
                      ("keras-shared-prior", "loss/loc", 1.1843664810),
                      ("keras-shared-prior", "loss/total", 4.8602729812),
                      ("keras-shared-prior-two-images", "loss/conf_negative", 3.0351466429),
                      ("keras-shared-prior-two-images", "loss/total", 5.4726221878),
                      ("keras-no-objects", "loss/total", 0)])


def rules():
    """Who keeps a prior, with objects that overlap nothing, collide, outnumber the priors, and mirrored priors."""
    for force in FORCES:
        for other in ("object-without-overlap", "same-best-prior", "more-objects-than-priors",
                      "mirror-and-duplicate-priors", "mirror-priors-decimal"):
            rule = {"force": force, "positive_iou": .6, "negative_iou": .45}
            again(f"force-{force}-{other}", other, criterion={"matcher": rule})
        again(f"sizes-force-{force}", "mirror-and-duplicate-priors",
              criterion={"base": "retinanet-focal", "matcher": {"force": force}})
    again("sizes-mirror-priors-decimal", "mirror-priors-decimal",
          criterion={"matcher": {"iou": "sizes", "positive_iou": .3}})
    for name, matcher in (("band", {"negative_iou": .2}), ("band-forced", {"positive_iou": .9, "negative_iou": .1}),
                          ("band-below-zero", {"negative_iou": 0}), ("one", {"positive_iou": 1, "negative_iou": 1}),
                          ("small", {"positive_iou": .125})):
        again("threshold-" + name, "many-objects", criterion={"matcher": matcher}, include=ALL)


def thresholds():
    """IoU exactly 0.5 and 0.4 in w h arithmetic, and beside them."""
    preset = {"criterion": "retinanet-focal"}
    again("iou-half-focal", "iou-half", **preset)
    prior = [100, 100, 16, 10]          # an object of the same width, h/10 of its height: IoU is h/10
    heights = [5, 4, 4 - 2.0 ** -18, 4 + 2.0 ** -18, 5 - 2.0 ** -18, 5 + 2.0 ** -18]
    b = sample(2201, "sigmoid_focal", 0, 2, [1] * 6, priors=[prior, [100, 200, 10, 10]])
    b.update(boxes=np.array([[92, 95, 108, 95 + h] for h in heights]), labels=np.zeros(6, int))
    in_json("iou-two-fifths-focal", b, **preset)
    # Decimal numbers, kept where float32 and float64 fall on two sides of the threshold.
    for name, seed, at in (("half", 2202, .5), ("two-fifths", 2203, .4)):
        rng, priors, boxes = np.random.default_rng(seed), [], []
        while len(boxes) < 6:
            w, h = uniform(rng, 1, .1, .3, 20)[0], uniform(rng, 1, .048, .144, 125)[0]
            y = round(.08 + .16 * len(boxes), 2)
            box = np.round([.5, y, w * .8, h * at / .8], 4)
            narrow, wide = (v[0] for v in decisions(box, [[.5, y, w, h]], "sizes"))
            if (narrow >= np.float32(at)) != (wide >= at) and (narrow >= np.float32(at)) == len(boxes) % 2:
                priors.append([.5, y, w, h])
                boxes.append(box)
        b = sample(seed + 100, "sigmoid_focal", 0, 3, [6], priors=np.array(priors))
        in_tensors(f"iou-{name}-decimal-focal", {**b, "priors": np.array(priors), "boxes": np.array(boxes)},
                   box_format="cxcywh", **preset)


def ignored_objects():
    """Crowd and difficult objects, by IoU and by the share of the prior."""
    for preset, kind in KINDS.items():
        b = sample(2300 + len(preset), kind, 24, 4, [4, 3])
        b["ignore"] = np.array([0, 1, 0, 1, 1, 0, 0])
        # a crowd over a fourth of the image; one upon a used object, whose priors stay positive; labels of no class
        b["boxes"][1], b["boxes"][3] = [0, 0, .5, .5], b["boxes"][0]
        b["labels"][1], b["labels"][4] = 99, -7
        in_json(f"ignored-{SHORT[preset]}", b, criterion=preset)
        in_json(f"ignored-iof-{SHORT[preset]}", b, criterion={"base": preset, "matcher": {"ignore_iof": .5}})
    in_tensors("ignored-tensor", b, {"ignore": ("BOOL", b["ignore"])}, criterion="ssd-keras")
    again("ignored-iof-whole", "ignored-multibox", criterion={"matcher": {"ignore_iof": 1}})


def boxes():
    """What annotations may look like: other formats, pixels, labels from one, dropped boxes."""
    def formats(b):
        low, high = b["boxes"][:, :2], b["boxes"][:, 2:]
        yield "xyxy", b["boxes"]
        yield "xywh", np.round(np.concatenate([low, high - low], 1), 3)
        yield "cxcywh", np.round(np.concatenate([(low + high) / 2, high - low], 1), 4)

    for i, preset in enumerate(("ssd-multibox", "retinanet-focal")):
        b = sample(2400 + i, KINDS[preset], 16, 3, [2, 3])
        for layout, form in formats(b):
            name = f"boxes-{layout}-{SHORT[preset]}"
            in_json(name, {**b, "boxes": form}, criterion=preset, box_format=layout)
            in_json(f"{name}-pixels", {**b, "boxes": np.round(form * np.array([640, 480, 640, 480]))}, criterion=preset,
                    box_format=layout, image_size=[640, 480])
            if layout != "xyxy":
                in_tensors(f"{name}-in-pixels", {**sample(2410 + i, KINDS[preset], 9, 3, [3], 300), "boxes":
                           dict(formats(sample(2410 + i, KINDS[preset], 9, 3, [3], 300)))[layout]},
                           criterion=preset, box_format=layout, label_base=0)
    sizes = np.array([[640, 480], [333, 500]])
    each = np.repeat(sizes, [2, 3], 0)
    b = sample(2420, "softmax_ce", 16, 4, [2, 3])
    b["boxes"] = np.round(b["boxes"] * np.tile(each, 2))
    in_json("pixels-per-image", b, image_size=sizes.tolist())
    in_tensors("pixels-per-image-tensor", b, {"image_sizes": ("F32", sizes)})
    in_tensors("pixels-metadata", b, image_size=[640, 500])
    case("pixels-query", link="pixels-per-image/request.json",
         options=as_text({"include": ALL, "image_size": [700, 500], "criterion": "ssd-multibox-l1"}))
    b["labels"] = b["labels"] + 1
    in_json("label-base-1", b, image_size=sizes.tolist(), label_base=1)
    in_tensors("label-base-1-tensors", b, {"image_sizes": ("F32", sizes)}, label_base=1)

    b = sample(2430, "softmax_ce", 16, 3, [5, 2, 1])
    b["boxes"][1, 2] = b["boxes"][1, 0] - .1      # inverted
    b["boxes"][2, 3] = b["boxes"][2, 1]           # no height
    b["boxes"][5] = [.5, .5, .4, .4]              # both sides inverted: a positive area
    b["boxes"][7, :] = .25                        # the image's only object
    b["labels"][1] = 55
    in_json("drop", b, invalid_boxes="drop")
    in_tensors("drop-tensors", b, invalid_boxes="drop")
    b["ignore"] = np.array([0, 1, 0, 0, 1, 0, 0, 0])
    in_json("drop-ignored-sizes", b, invalid_boxes="drop", criterion={"matcher": {"iou": "sizes"}})
    wide = np.concatenate([b["boxes"][:, :2], np.round(b["boxes"][:, 2:] - b["boxes"][:, :2], 3)], 1)
    in_json("drop-xywh-pixels", {**b, "boxes": np.round(wide * np.array([200, 300, 200, 300]))}, invalid_boxes="drop",
            box_format="xywh", image_size=[200, 300], label_base=0, criterion={"matcher": {"force": "first"}})


# ---------------------------------------------------------------- losses

def localizations():
    """Every localization loss and its parameter, alone and averaged; decoded boxes that tie, are apart, are clamped."""
    each = [("l1", {}), *(("smooth_l1", {"beta": b}) for b in (1, 0, .11, 3)),
            *(("huber", {"delta": d}) for d in (1, .5)), *(("jump_l1", {"delta": d}) for d in (1, 1.5)),
            ("giou", {}), ("diou", {}), ("ciou", {})]
    b = sample(2500, "softmax_ce", 14, 3, [3, 2])
    exact = [[.5, .5, .25, .5], [.25, .75, .5, .25], [.75, .25, .125, .25]]    # objects that are these priors
    b["priors"][:3], b["boxes"][:3] = exact, [[.375, .25, .625, .75], [0, .625, .5, .875], [.6875, .125, .8125, .375]]
    b["loc"][:, :3] = 0               # decoded: the object itself, whose every edge ties
    b["loc"][0, 1, 1] = 1             # ties in x only
    b["loc"][0, 2, 2:] = [-2.5, 3]
    for kind, members in each:
        name = "-".join(["localization", kind.replace("_", "-"), *(str(v) for v in members.values())])
        in_json(name, b, criterion={"localization": {"kind": kind, **members}})
        if "iou" not in kind:
            again(name + "-mean", name, criterion={"localization": {"kind": kind, **members, "reduction": "mean"}},
                  include="images,levels,gradients")
    in_json("localization-equal", {**sample(2501, "softmax_ce", 4, 2, [1], priors=exact + [[.1, .1, .1, .1]]),
                                   "boxes": np.array([[.375, .25, .625, .75]]), "loc": np.zeros((1, 4, 4))})
    for kind in ("l1", "giou", "diou", "ciou"):
        again(f"localization-equal-{kind}", "localization-equal", criterion={"localization": {"kind": kind}})
        b = sample(2502, "sigmoid_focal", 14, 2, [2, 3], 512)
        b["loc"][0, :, 2:] += [0, 4]
        b["loc"][1, ::2, 2] = 25      # wider than 1000/16 priors
        b["loc"][1, 1::2, 0] = 30     # beside the object
        in_tensors(f"localization-pixels-{kind}", b,
                   criterion={"base": "retinanet-focal", "localization": {"kind": kind}, "matcher": {"force": "last"}})
        b = sample(2503, "prob_ce", 12, 3, [3], 128, spread=1)
        in_tensors(f"localization-keras-{kind}", b, criterion={"base": "ssd-keras", "localization": {"kind": kind}})
    b = sample(2504, "softmax_ce", 12, 3, [3])
    for kind in ("smooth_l1", "ciou"):
        in_json(f"variances-{kind.replace('_', '-')}", b, criterion={"coder": {"variances": [.2, .05, .5, 1.5]},
                                                                    "localization": {"kind": kind}})


def classifications():
    """Class weights, smoothing, alpha, gamma, and every place of the background column."""
    for kind, base in (("softmax_ce", "ssd-multibox"), ("sigmoid_focal", "retinanet-focal"), ("prob_ce", "ssd-keras")):
        short = kind.replace("_", "-")
        b = sample(2600 + len(kind), kind, 14, 4, [2, 3])
        b["labels"] = np.minimum(b["labels"], 2)       # of three classes and a background, wherever it is
        first = f"{short}-weights"
        weights = [.5, 1, 2, .25]
        stage = lambda **members: {"base": base, "classification": members}
        in_json(first, b, criterion=stage(class_weights=weights))
        again(f"{short}-weights-zero", first, criterion=stage(class_weights=[.5, 0, 0, 3]))
        for s in (.1, 1):
            again(f"{short}-smoothing-{s}", first, criterion=stage(label_smoothing=s))
        again(f"{short}-smoothing-weights", first, criterion=stage(label_smoothing=.2, class_weights=weights))
        for place in ("first", "last") + ("none",) * (kind == "sigmoid_focal"):
            again(f"{short}-background-{place}", first, criterion=stage(background=place))
            again(f"{short}-background-{place}-smoothing", first,
                  criterion=stage(background=place, label_smoothing=.1, class_weights=weights))
    focal = "sigmoid-focal-weights"
    for gamma in (0, 1.5, 2, 3, .5):
        again(f"sigmoid-focal-gamma-{gamma}", focal,
              criterion={"base": "retinanet-focal", "classification": {"gamma": gamma}})
    for name, alpha in (("0", 0), ("1", 1), ("list", [.25, .5, .75, 1])):
        again(f"sigmoid-focal-alpha-{name}", focal,
              criterion={"base": "retinanet-focal", "classification": {"alpha": alpha, "gamma": 1.5}})
    again("sigmoid-focal-everything", focal, criterion={"base": "retinanet-focal", "classification": {
        "alpha": [.1, .2, .3, .9], "gamma": 2.5, "class_weights": [1, .5, 2, 4], "label_smoothing": .05},
        "mining": {"kind": "hard_negative"}, "weights": {"loc": 50, "conf": 1}})
    # a kind that changes starts from its own members: the columns of a focal preset are all classes
    again("classification-changed", focal,
          criterion={"base": "retinanet-focal", "classification": {"kind": "softmax_ce"}})
    again("classification-changed-to-focal", focal, criterion={"classification": {"kind": "sigmoid_focal"}})

    # Scores at the ends of what exp and the power can take.
    for at in (60, 88):
        b = sample(2620 + at, "sigmoid_focal", 12, 3, [2, 1])
        b["conf"][:] = np.array([at, -at, 0, at, -at])[np.arange(72).reshape(2, 12, 3) % 5]
        in_json(f"focal-logits-{at}", b, criterion="retinanet-focal")
        for gamma in (0, .5):
            again(f"focal-logits-{at}-gamma-{gamma}", f"focal-logits-{at}",
                  criterion={"base": "retinanet-focal", "classification": {"gamma": gamma, "label_smoothing": .1}})
    b = sample(2630, "prob_ce", 12, 3, [2, 1])
    b["conf"][0, :6] = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1e-8, 1 - 1e-8, 0], [1.0005, -.0005, 0],
                        [1e-7, 5e-7, .9999994]]
    in_json("probabilities-at-the-ends", b, criterion="ssd-keras")
    again("probabilities-at-the-ends-weights", "probabilities-at-the-ends", criterion={
        "base": "ssd-keras", "classification": {"class_weights": [2, .5, 1], "label_smoothing": .1}})


# ---------------------------------------------------------------- mining, normalisers, weights

def wide_rows():
    """Rows of many columns that are alike, as a training begins: a float32 sum would round every term the same way."""
    for k in (80, 1203):
        b = sample(2650 + k, "sigmoid_focal", 2, k, [1])
        b["conf"][:] = np.float32(-4.59512)  # -log 99, RetinaNet's first bias
        b["labels"][:] = 0  # the largest term first
        in_tensors(f"equal-columns-{k}-focal", b, criterion="retinanet-focal", include="images")
        again(f"equal-columns-{k}-focal-alpha-near-1", f"equal-columns-{k}-focal", include="images",
              criterion={"base": "retinanet-focal", "classification": {"alpha": .999, "gamma": 1.5}})
    b = sample(2660, "softmax_ce", 2, 1204, [1])
    b["conf"][:] = 0
    b["conf"][..., 7] = 3
    in_tensors("equal-columns-1204", b, criterion="ssd-multibox", include="images")
    again("equal-columns-1204-smoothing", "equal-columns-1204", include="images",
          criterion={"classification": {"label_smoothing": .1}})
    b = sample(2661, "prob_ce", 2, 1204, [1])
    b["conf"][:] = np.float32(1 / 1204)
    in_tensors("equal-columns-1204-keras", b, criterion={"base": "ssd-keras", "classification": {"label_smoothing": .1}},
               include="images")


def mining():
    for kind, base in (("softmax_ce", "ssd-multibox"), ("prob_ce", "ssd-keras"), ("sigmoid_focal", "retinanet-focal")):
        short = kind.replace("_", "-")
        b = sample(2700 + len(kind), kind, 20, 3, [2, 0, 1])
        stage = lambda **members: {"base": base, "mining": {"kind": "hard_negative", **members}}
        for scope in ("image", "batch"):
            name = f"mining-{short}-{scope}"
            in_json(name, b, criterion=stage(scope=scope))
            for ratio in (1.5, .7, 0, 100):
                again(f"{name}-ratio-{ratio}", name, criterion=stage(scope=scope, ratio=ratio), include=EVERY)
            again(f"{name}-at-least", name, criterion=stage(scope=scope, min_negatives=7, ratio=1.5))
            for normalizer in ("positives_and_mined", "image_positives"):
                again(f"{name}-{normalizer.replace('_', '-')}", name,
                      criterion={**stage(scope=scope, ratio=1.5), "normalizer": {"kind": normalizer}})
        again(f"mining-{short}-none", f"mining-{short}-image", criterion={
            "base": base, "mining": {"kind": "none"}, "normalizer": {"kind": "positives"}})
        in_json(f"mining-{short}-no-positives", sample(2710 + len(kind), kind, 9, 3, [0, 0]), criterion={
            **stage(min_negatives=4), "normalizer": {"kind": "positives_and_mined"}})
    # ratio x positives on two sides of a whole number in float32 and in float64
    b = {**sample(2715, "softmax_ce", 150, 2, [0]), "priors": None}
    b["targets"] = np.arange(150)[None] % 6 // 5 - 1, np.zeros((1, 150, 4))
    in_json("mining-ratio-decimal", b, criterion={"mining": {"ratio": .6}}, include=STATISTICS)
    again("mining-ratio-decimal-batch", "mining-ratio-decimal", include=STATISTICS,
          criterion={"mining": {"ratio": 4.6, "scope": "batch"}, "normalizer": {"kind": "positives_and_mined"}})
    again("mining-ties-batch", "mining-ties", criterion={"mining": {"scope": "batch", "ratio": 2.2}}, include=ALL)
    b = sample(2720, "prob_ce", 24, 3, [2, 3])
    b["conf"][:, 4:20] = [.25, .25, .5]
    in_json("mining-ties-keras", b, criterion="ssd-keras")
    b = sample(2721, "sigmoid_focal", 24, 3, [2, 3])
    b["conf"][:, 4:20] = [-1, .5, .25]
    in_json("mining-ties-focal", b, criterion={"base": "retinanet-focal", "mining": {"kind": "hard_negative"}})


def normalizers():
    in_json("normalizer-positives", sample(2800, "softmax_ce", 14, 3, [3, 0, 1]))
    for preset, kind in (("ssd-multibox", "softmax_ce"), ("retinanet-focal", "sigmoid_focal")):
        name = f"normalizer-batch-{SHORT[preset]}"
        in_json(name, sample(2801 + len(kind), kind, 14, 3, [3, 0, 1]), criterion=preset)
        for normalizer in ({"kind": "positives"}, {"kind": "image_positives"}, {"kind": "value"},
                           {"kind": "value", "value": 2.5}, {"kind": "positives_and_mined"}):
            if preset == "ssd-multibox" or normalizer["kind"] != "positives_and_mined":
                label = "-".join(str(v).replace("_", "-") for v in normalizer.values())
                again(f"{name}-{label}", name, criterion={
                    "base": preset, "normalizer": normalizer, "weights": {"loc": .5, "conf": 2},
                    "localization": {"reduction": "mean"}})
    for loc, conf in ((0, 1), (1, 0), (2.5, .125)):
        again(f"weights-{loc}-{conf}", "normalizer-positives", criterion={"weights": {"loc": loc, "conf": conf}})
    again("criterion-empty", "normalizer-positives", criterion={})
    again("criterion-named", "normalizer-positives",
          criterion={"name": "mine", "text": "a name", "base": "ssd-multibox"})
    again("criterion-null", "normalizer-positives", criterion={
        "matcher": {"negative_iou": None, "ignore_iof": None}, "classification": {"class_weights": None}})
    in_tensors("criterion-metadata", sample(2810, "softmax_ce", 14, 3, [3, 1]),
               criterion={"base": "ssd-multibox-l1", "weights": {"loc": 3}})


# ---------------------------------------------------------------- targets

def targets():
    """The blocks of the RetinaNet example's losses, targets of every preset, and an assignment sent back."""
    logits, predicted = [[.3, .4], [.7, .4]], [[65, 66, 70, 50], [120, 125, 30, 50]]
    true = [[65, 80, 50, 64], [90, 150, 20, 40]]
    block = {"conf": np.array([logits]), "loc": np.array([predicted]), "priors": None}
    jump = {"base": "retinanet-focal", "localization": {"delta": 15}}
    for classes, conf, loc in (((0, 1), .3302996947, 184.75), ((-1, 1), .8469438727, 154), ((-2, 1), .3900641408, 154),
                               ((0, -1), .8853808381, 215.5), ((-1, -1), 1.0717253214, 0), ((-1, -2), .4568797319, 0),
                               ((-2, -2), 0, 0)):
        name = "retinanet-block" + "".join(f"-{'oib'[min(0, c)]}" for c in classes)    # object, background, ignored
        in_json(name, {**block, "targets": ([classes], [true])}, criterion=jump)
        PUBLISHED.extend([(name, "loss/conf", conf), (name, "loss/loc", loc)])
    for name, localization, loc in (("delta-1", {}, 59.75), ("huber-15", {"kind": "huber", "delta": 15}, 541.75),
                                    ("smooth-l1-15", {"kind": "smooth_l1", "beta": 15}, 36.1166666667)):
        again(f"retinanet-block-{name}", "retinanet-block-o-o",
              criterion={"base": "retinanet-focal", "localization": localization})
        PUBLISHED.append((f"retinanet-block-{name}", "loss/loc", loc))

    for i, (preset, kind) in enumerate(KINDS.items()):
        b = sample(2900 + i, kind, 10, 4, [0, 0])
        rng = np.random.default_rng(2910 + i)
        classes = rng.integers(-2, 3, (2, 10))
        classes[1, :4] = -1
        b["targets"] = classes, uniform(rng, (2, 10, 4), -2, 2, 100)
        bare = {**b, "priors": None}
        in_json(f"targets-{SHORT[preset]}", bare, criterion=preset, label_base=i % 2)
        in_json(f"targets-flat-{SHORT[preset]}", b, flat=True, criterion=preset)
        in_tensors(f"targets-tensors-{SHORT[preset]}", bare, dtypes={"labels": ("I64", "I32")[i % 2]}, criterion=preset)
        in_tensors(f"targets-dense-{SHORT[preset]}", b, criterion=preset, include=ALL + ",dense_gradients")
        again(f"targets-ciou-{SHORT[preset]}", f"targets-flat-{SHORT[preset]}",
              criterion={"base": preset, "localization": {"kind": "ciou"}})
    b = sample(2920, "sigmoid_focal", 0, 1, [0], priors=np.full((33, 4), .5))
    b.update(priors=None, targets=(np.arange(33)[None] % 5 // 4 - 1, np.ones((1, 33, 4)) / 4))
    in_json("targets-named-priors", b, priors="grid-16x8", include="levels,gradients",
            criterion={"base": "retinanet-focal", "localization": {"kind": "giou"}})

    for preset in KINDS:                # what one case answers is what another one sends
        other = f"preset-{preset}-p7"
        request = json.loads(CASES[other]["request.json"])
        owed = reference.answer(reference.read_request(CASES[other]["request.json"], {"include": "targets"}))["targets"]
        b = {"conf": np.array(request["predictions"]["conf"]), "loc": np.array(request["predictions"]["loc"]),
             "priors": request["priors"], "targets": (np.array(owed["classes"]), np.array(reference.float32(
                 np.array(owed["loc"]))))}
        in_json(f"sent-back-{SHORT[preset]}", b, criterion=preset)


# ---------------------------------------------------------------- gradients and prior sets

def gradients():
    for preset, kind in KINDS.items():
        b = sample(3000 + len(preset), kind, 9, 3, [2, 1])
        name = f"gradients-{SHORT[preset]}"
        in_json(f"{name}-json", b, criterion=preset, include="gradients")
        in_tensors(f"{name}-tensors", b, criterion=preset, include="gradients")
        again(f"{name}-dense", f"{name}-json", criterion=preset, include="dense_gradients")
        again(f"{name}-dense-tensors", f"{name}-tensors", criterion=preset, include="dense_gradients,assignment")
        in_tensors(f"{name}-f16", sample(3010 + len(preset), kind, 9, 3, [2, 1]), dtypes={"dtype": "F16"},
                   criterion=preset, include="gradients")


def prior_sets():
    again("priors-ssd300-unit", "priors-ssd300", priors="ssd300-unit", include=STATISTICS + ",assignment")
    for name, kind, preset, scale in (("retinanet-72x40", "sigmoid_focal", "retinanet-focal", 64),
                                      ("grid-34x26", "prob_ce", "ssd-keras", 32),
                                      ("grid-34x26", "softmax_ce", "ssd-multibox", 32)):
        shape = reference.prior_sets.named(name)[0].astype(float)
        b = sample(3100 + scale, kind, 0, 2, [3, 2], priors=shape / scale)
        b["boxes"] = np.round(b["boxes"] * scale)
        b["boxes"][:, 2:] = np.maximum(b["boxes"][:, 2:], b["boxes"][:, :2] + 3)
        in_tensors(f"priors-{name.split('-')[0]}-{SHORT[preset]}", b, criterion=preset, dtypes={"priors": None},
                   priors=name, include=ALL)


def trained():
    """Real predictions under other criteria: thousands of priors, several blocks of them an image."""
    focal = {"base": "retinanet-focal", "matcher": {"iou": "corners", "force": "first"}}
    for name, criterion in (("batch-mining", {"mining": {"scope": "batch", "ratio": 2.5}}),
                            ("band-greedy", {"matcher": {"force": "greedy", "negative_iou": .3}}),
                            ("ciou-smoothing", {"localization": {"kind": "ciou"},
                                                "classification": {"label_smoothing": .1}}),
                            ("focal", focal), ("focal-mined", {**focal, "mining": {"kind": "hard_negative"}})):
        case(f"bccd-ssd300-{name}", link="bccd-ssd300/request.safetensors",
             options=as_text({"criterion": criterion, "priors": "ssd300", "include": "images,classes,levels"}))


def add_all():
    for add in (presets, edges, shared_prior, rules, thresholds, ignored_objects, boxes, localizations, classifications,
                wide_rows, mining, normalizers, targets, gradients, prior_sets, trained):
        add()
