# SPDX-License-Identifier: Apache-2.0
"""The built-in prior sets in numpy: named(name) -> boxes [P,4] float32 (cx cy w h), [(level, priors in it)].

Purpose: the boxes that a request may name, written from their origins and not from this project's C code.
Invariant: double arithmetic, stored as float32; the relative sets are clamped to 0..1 after that.
"""
import math
import re

import numpy as np


def on_maps(maps, divisors, sizes):
    """Cells row by row; per cell, centred in it, the boxes of its level. sizes: per level [(w, h)] -> boxes, counts"""
    boxes = [((j + 0.5) / d, (i + 0.5) / d, w, h)
             for f, d, each in zip(maps, divisors, sizes) for i in range(f) for j in range(f) for w, h in each]
    return np.clip(np.array(boxes).astype(np.float32), 0, 1), [f * f * len(each) for f, each in zip(maps, sizes)]


def ssd300(minimum, maximum):
    """PriorBox of ssd.pytorch (amdegroot), as pytorch_advanced has it: two squares, then each ratio and its inverse."""
    maps, steps, sizes = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), []
    for small, large, ratios in zip(minimum, maximum, ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))):
        s = small / 300
        extra = math.sqrt(s * (large / 300))
        each = [(s, s), (extra, extra)]
        for a in ratios:
            each += [(s * math.sqrt(a), s / math.sqrt(a)), (s / math.sqrt(a), s * math.sqrt(a))]
        sizes.append(each)
    boxes, counts = on_maps(maps, [300 / step for step in steps], sizes)
    return boxes, [(f"{f}x{f}", n) for f, n in zip(maps, counts)]


def tutorial(names, maps, scales, extra_at):
    """create_prior_boxes of the PyTorch detection tutorial (sgrvinod): a box per ratio and one of the geometric mean
    with the next scale. extra_at: its index within a cell, None: last"""
    sizes = []
    for f, s, following in zip(maps, scales, scales[1:] + (None,)):
        ratios = (1, 2, .5) if f in (38, 3, 1) else (1, 2, 3, .5, .333)
        each = [(s * math.sqrt(r), s / math.sqrt(r)) for r in ratios]
        extra = math.sqrt(s * following) if following else 1.0
        each.insert(len(each) if extra_at is None else extra_at, (extra, extra))
        sizes.append(each)
    boxes, counts = on_maps(maps, maps, sizes)
    return boxes, list(zip(names, counts))


def retinanet(width, height):
    """AnchorBox of the keras-io RetinaNet example: pixels; per cell each ratio w/h in three sizes."""
    boxes, levels = [], []
    for k in range(3, 8):
        stride, area, before = 2 ** k, 16.0 * 4 ** k, len(boxes)
        tall = [math.sqrt(area / r) for r in (.5, 1, 2)]
        each = [(scale * area / h, scale * h) for h in tall for scale in (1, 2 ** (1 / 3), 2 ** (2 / 3))]
        boxes += [((j + .5) * stride, (i + .5) * stride, w, h) for i in range(math.ceil(height / stride))
                  for j in range(math.ceil(width / stride)) for w, h in each]
        levels.append((f"p{k}", len(boxes) - before))
    return np.array(boxes).astype(np.float32), levels


def grid(width, height):
    """PriorBoxes of the Keras SSD tutorial (SangJae Kang): pixels, whole sizes; stride, ratio, row, column."""
    boxes, levels = [], []
    for stride, scale in ((4, 10), (8, 25), (16, 40)):
        before = len(boxes)
        for r in (.4, .8, 1.2):
            w, h = round(scale * math.sqrt(r)), round(scale / math.sqrt(r))
            boxes += [(x + stride // 2, y + stride // 2, w, h)
                      for y in range(0, height, stride) for x in range(0, width, stride)]
        levels.append((f"s{stride}", len(boxes) - before))
    return np.array(boxes).astype(np.float32), levels


def named(name):
    sized = re.fullmatch(r"(retinanet|grid)-(\d+)x(\d+)", name)
    if sized:
        return (retinanet if sized[1] == "retinanet" else grid)(int(sized[2]), int(sized[3]))
    if name == "ssd300":
        return ssd300((30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315))
    if name == "ssd300-coco":
        return ssd300((21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315))
    maps = (38, 19, 10, 5, 3, 1)
    if name == "ssd300-unit":
        return tutorial([f"{f}x{f}" for f in maps], maps, (.1, .2, .375, .55, .725, .9), 1)
    if name == "ssd300-efficientnet":
        return tutorial(("mid", "end", "a", "b", "c", "d"), (18, 9, 9, 5, 3, 1), (.2, .2, .375, .55, .725, .9), None)
    raise ValueError(f"no prior set {name}")
