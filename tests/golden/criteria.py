# SPDX-License-Identifier: Apache-2.0
"""The presets and what a criterion object means: resolve(name or object) -> the whole criterion.

A criterion is one choice per stage. An object starts from its `base`; a stage whose kind changes starts from the new
kind's members in KINDS, otherwise the members given replace those of the base.
"""
CE = {"background": "first", "class_weights": None, "label_smoothing": 0}
KINDS = {
    "classification": {"softmax_ce": CE, "prob_ce": {**CE, "background": "last"},
                       "sigmoid_focal": {**CE, "background": "none", "alpha": .25, "gamma": 2}},
    "mining": {"none": {}, "hard_negative": {"ratio": 3, "scope": "image", "min_negatives": 0}},
    "localization": {kind: {"reduction": "sum", **members} for kind, members in {
        "l1": {}, "smooth_l1": {"beta": 1}, "huber": {"delta": 1}, "jump_l1": {"delta": 1}, "giou": {}, "diou": {},
        "ciou": {}}.items()},
    "normalizer": {"positives": {}, "positives_and_mined": {}, "image_positives": {}, "value": {"value": 1}},
}
STAGES = ("matcher", "coder", "classification", "mining", "localization", "normalizer", "weights")


def stage(name, kind, **members):
    return {"kind": kind, **KINDS[name][kind], **members}


MULTIBOX = {
    "name": "ssd-multibox", "priors": "ssd300",
    "matcher": {"positive_iou": .5, "negative_iou": None, "force": "last", "iou": "corners", "ignore_iof": None},
    "coder": {"variances": [.1, .1, .2, .2]},
    "classification": stage("classification", "softmax_ce"), "mining": stage("mining", "hard_negative"),
    "localization": stage("localization", "smooth_l1"), "normalizer": stage("normalizer", "positives"),
    "weights": {"loc": 1, "conf": 1},
}
PRESETS = {c["name"]: c for c in (
    MULTIBOX,
    {**MULTIBOX, "name": "ssd-multibox-l1", "priors": "ssd300-efficientnet",
     "localization": stage("localization", "l1", reduction="mean")},
    {**MULTIBOX, "name": "retinanet-focal", "priors": None,
     "matcher": {"positive_iou": .5, "negative_iou": .4, "force": "none", "iou": "sizes", "ignore_iof": None},
     "classification": stage("classification", "sigmoid_focal"), "mining": stage("mining", "none"),
     "localization": stage("localization", "jump_l1"), "normalizer": stage("normalizer", "image_positives")},
    {**MULTIBOX, "name": "ssd-keras", "priors": None, "coder": {"variances": [1, 1, 1, 1]},
     "classification": stage("classification", "prob_ce"), "mining": stage("mining", "hard_negative", scope="batch"),
     "normalizer": stage("normalizer", "positives_and_mined")},
)}


def resolve(given):
    if isinstance(given, str):
        return PRESETS[given]
    base = PRESETS[given.get("base", "ssd-multibox")]
    whole = {"name": "inline", "priors": given.get("priors", base["priors"])}
    for name in STAGES:
        members, start = given.get(name, {}), base[name]
        if "kind" in members and members["kind"] != start["kind"]:
            start = stage(name, members["kind"])
        whole[name] = {**start, **members}
    return whole
