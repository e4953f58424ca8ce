# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a second golden source: the origins' formulas, eager float32, on every case they are defined for.

Purpose: write <case>/torch.json and compare it with expect.json, so that the reference and the service are held against
what training loops compute. ssd-multibox is MultiBoxLoss and match of ssd.pytorch (amdegroot) as pytorch_advanced has
them, ssd-multibox-l1 the MultiBoxLoss of the PyTorch detection tutorial by sgrvinod; the formulas are theirs, the
wording is ours. Both fail on an image without objects and know no ignored objects, so such cases are left out.
Tolerance: assignment and counts exact (a mined count is null where eager float32 has it undefined: it puts the
positives at 0 among the ranked, and losses that it rounds to 0 then tie with them), losses 1e-6 relative + 1e-7 x
summed rows / normaliser: a float32 softmax cannot tell a cross entropy under about 1e-7 from zero.

Usage: torch_source.py            with Debian's python3-torch: write torch.json everywhere and print the table
       torch_source.py --check    compare only, exit 1 on a deviation
"""
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.dont_write_bytecode = True
import reference

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_num_threads(2)


def point_form(priors):
    return torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)


def iou(a, b):
    """Both origins: intersection over (area a + area b) - intersection, with no epsilon."""
    low = torch.max(a[:, None, :2], b[None, :, :2])
    high = torch.min(a[:, None, 2:], b[None, :, 2:])
    side = (high - low).clamp(min=0)
    inter = side[..., 0] * side[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return inter / (area_a[:, None] + area_b[None, :] - inter)


def match(truths, labels, priors, corners):
    """ssd.pytorch's match at 0.5. -> encoded offsets [P,4], class + 1 [P], object [P]"""
    overlap = iou(truths, corners)
    best_prior = overlap.max(1)[1]
    best_overlap, best_truth = overlap.max(0)
    best_overlap.index_fill_(0, best_prior, 2)
    for j in range(len(truths)):
        best_truth[best_prior[j]] = j
    conf = labels[best_truth] + 1
    conf[best_overlap < 0.5] = 0
    m = truths[best_truth]
    xy = ((m[:, :2] + m[:, 2:]) / 2 - priors[:, :2]) / (0.1 * priors[:, 2:])
    wh = torch.log((m[:, 2:] - m[:, :2]) / priors[:, 2:]) / 0.2
    return torch.cat([xy, wh], 1), conf, best_truth


def multibox(loc_p, conf_p, loc_t, conf_t):
    """ssd.pytorch's MultiBoxLoss. -> loss_l, loss_c, ranked by [N,P], mined [N,P]"""
    n, p, c = conf_p.shape
    pos = conf_t > 0
    loss_l = F.smooth_l1_loss(loc_p[pos], loc_t[pos], reduction="sum")
    rank_by = F.cross_entropy(conf_p.view(-1, c), conf_t.view(-1), reduction="none").view(n, p)
    rank_by[pos] = 0
    rank = rank_by.sort(1, descending=True)[1].sort(1)[1]
    neg = rank < (3 * pos.sum(1, keepdim=True)).clamp(max=p)
    both = pos | neg
    loss_c = F.cross_entropy(conf_p[both], conf_t[both], reduction="sum")
    total = pos.sum()
    return loss_l / total, loss_c / total, rank_by, neg & ~pos


def ssd_pytorch(r):
    """-> loss_l, loss_c, class + 1 [N,P], object [N,P], ranked by [N,P], mined [N,P]"""
    priors = torch.tensor(r["priors"])
    matched = [match(torch.tensor(boxes), torch.tensor(labels), priors, point_form(priors))
               for boxes, labels in zip(r["boxes"], r["labels"])]
    loc_t, conf_t, owner = (torch.stack(part) for part in zip(*matched))
    loss_l, loss_c, rank_by, mined = multibox(torch.tensor(r["loc"]), torch.tensor(r["conf"]), loc_t, conf_t)
    return loss_l, loss_c, conf_t, owner, rank_by, mined


def sgrvinod(r):
    """The tutorial's MultiBoxLoss, alpha 1; labels counted from 1 there."""
    priors, loc_t, conf_t, owner = torch.tensor(r["priors"]), [], [], []
    for boxes, labels in zip(r["boxes"], r["labels"]):
        boxes, labels = torch.tensor(boxes), torch.tensor(labels) + 1
        overlap = iou(boxes, point_form(priors))
        for_prior, obj = overlap.max(0)
        prior_of = overlap.max(1)[1]
        obj[prior_of] = torch.arange(len(boxes))    # duplicates: the last, as a CPU tensor is written in order
        for_prior[prior_of] = 1.
        label = labels[obj]
        label[for_prior < 0.5] = 0
        m = boxes[obj]
        c, wh = (m[:, 2:] + m[:, :2]) / 2, m[:, 2:] - m[:, :2]
        loc_t.append(torch.cat([(c - priors[:, :2]) / (priors[:, 2:] / 10), torch.log(wh / priors[:, 2:]) * 5], 1))
        conf_t.append(label)
        owner.append(obj)
    loc_t, conf_t = torch.stack(loc_t), torch.stack(conf_t)
    loc_p, conf_p = torch.tensor(r["loc"]), torch.tensor(r["conf"])
    n, p, c = conf_p.shape

    pos = conf_t != 0
    n_pos = pos.sum(1)
    loc_loss = F.l1_loss(loc_p[pos], loc_t[pos])
    every = F.cross_entropy(conf_p.view(-1, c), conf_t.view(-1), reduction="none").view(n, p)
    negative = every.clone()
    negative[pos] = 0.
    ordered, index = negative.sort(1, descending=True)
    hard = torch.arange(p)[None, :] < (3 * n_pos)[:, None]
    conf_loss = (ordered[hard].sum() + every[pos].sum()) / n_pos.sum().float()
    mined = torch.zeros_like(pos).scatter_(1, index, hard) & ~pos
    return loc_loss, conf_loss, conf_t, torch.stack(owner), negative, mined


def load(case):
    folder, options = os.path.join(HERE, case), {}
    if os.path.exists(os.path.join(folder, "options.json")):
        with open(os.path.join(folder, "options.json")) as f:
            options = json.load(f)
    if os.path.exists(os.path.join(folder, "request.link")):
        with open(os.path.join(folder, "request.link")) as f:
            path = os.path.join(folder, f.read().strip())
    else:
        path = next(os.path.join(folder, x) for x in ("request.json", "request.safetensors")
                    if os.path.exists(os.path.join(folder, x)))
    with open(path, "rb") as f:
        r = reference.read_request(f.read(), options)
    with open(os.path.join(folder, "expect.json")) as f:
        return r, json.load(f)


def main():
    check, bad, left_out = sys.argv[1:] == ["--check"], 0, []
    print(f"torch {torch.__version__}\n{'case':34} {'positives':>9} {'mined':>6} {'loc':>12} {'relative':>9} "
          f"{'conf':>12} {'relative':>9}")
    for case in sorted(d for d in os.listdir(HERE) if os.path.exists(os.path.join(HERE, d, "expect.json"))):
        r, expect = load(case)
        if not all(map(len, r["labels"])) or any(map(len, r["ignored"])):
            left_out.append(case)
            continue
        loc, conf, classes, owner, ranked, mined = (sgrvinod if r["criterion"] == "ssd-multibox-l1" else ssd_pytorch)(r)
        images = reference.compute(r)
        faults, hard = [], mined.sum(1).tolist()
        for i, image in enumerate(images):
            if not np.array_equal(classes[i].numpy() - 1, image["classes"]):
                faults.append(f"image {i}: classes")
            if not np.array_equal(np.where(image["positive"], owner[i].numpy(), -1), image["object"]):
                faults.append(f"image {i}: objects")
            owed = int(image["mined"].sum())
            left = ~(classes[i] > 0) & ~mined[i]
            if hard[i] < owed and not ranked[i][left].any():
                hard[i] = None
            elif hard[i] != owed:
                faults.append(f"image {i}: {hard[i]} mined for {owed}")
        a = expect["assignment"]
        if int((classes > 0).sum()) != a["positives"] or None not in hard and sum(hard) != a["hard_negatives"]:
            faults.append("counts of expect.json")
        off = {}
        for part, got, rows in (("loc", loc, a["positives"]), ("conf", conf, a["positives"] + a["hard_negatives"])):
            want = expect["loss"][part]
            norm = expect["normalizer"]["loc" if part == "loc" else "conf_positive"]
            off[part] = abs(float(got) - want) / want if want else abs(float(got))
            if abs(float(got) - want) > 1e-6 * abs(want) + 1e-7 * rows / norm:
                faults.append(f"{part} {float(got)} for {want}")
        print(f"{case:34} {a['positives']:9} {a['hard_negatives']:6} {float(loc):12.7f} {off['loc']:9.1e} "
              f"{float(conf):12.7f} {off['conf']:9.1e}  "
              f"{'; '.join(faults) or 'mined count undefined there' * (None in hard)}")
        bad += bool(faults)
        if not check:
            pairs = [[[int(x), int(row[x]) - 1] for x in torch.nonzero(row).flatten()] for row in classes]
            members = {"torch": torch.__version__, "loss_loc": float(loc), "loss_conf": float(conf),
                       "positives": (classes > 0).sum(1).tolist(), "hard_negatives": hard,
                       "classes": pairs}
            with open(os.path.join(HERE, case, "torch.json"), "w") as f:
                f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
                                           for k, v in members.items()) + "\n}\n")
    print(f"{bad} deviations; not defined there (images without objects, ignored objects): {' '.join(left_out)}")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
