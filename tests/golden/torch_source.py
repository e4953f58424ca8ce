# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a second golden source: the origins' formulas, eager, on every case, with autograd's gradients.

Purpose: write <case>/torch.json and compare it with expect.json, so that the reference and the service are held against
what training loops compute. ssd-multibox is MultiBoxLoss and match of ssd.pytorch (amdegroot) as pytorch_advanced has
them, ssd-multibox-l1 the MultiBoxLoss of the PyTorch detection tutorial by sgrvinod, retinanet-focal the losses and the
matching of the keras-io RetinaNet example, ssd-keras the loss of the Keras SSD tutorial, both in torch operations;
every other criterion is put together from torch.nn.functional's losses and fvcore's for boxes. The formulas are theirs,
the wording is ours. Where an origin has no matching, or fails (no objects, ignored objects), reference.py's is taken.
Tolerance: assignment and counts exact; losses in float32, 1e-6 relative + 1e-7 x summed rows / normaliser: a float32
softmax cannot tell a cross entropy under about 1e-7 from zero; gradients by autograd in float64, 1e-5 of the row's
largest + 1e-9. Sorts are stable here, which the origins' are not: equal losses go to the lowest prior.

Usage: torch_source.py            with Debian's python3-torch: write torch.json everywhere and print the table
       torch_source.py --check    compare only, exit 1 on a deviation
"""
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.dont_write_bytecode = True
import reference

HERE = os.path.dirname(os.path.abspath(__file__))
WRITTEN_NUMBERS = 600   # of a gradient, at most
torch.set_num_threads(2)


# ---------------------------------------------------------------- matching: decided in float32, encoded in `real`

def shared(low_a, high_a, low_b, high_b):
    side = (torch.min(high_a[:, None], high_b[None]) - torch.max(low_a[:, None], low_b[None])).clamp(min=0)
    return side[..., 0] * side[..., 1]


def iou(boxes, priors):
    """ssd.pytorch and the tutorial: intersection over (area a + area b) - intersection, with no epsilon."""
    low, high = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    inter = shared(boxes[:, :2], boxes[:, 2:], low, high)
    area_a = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area_b = (high[:, 0] - low[:, 0]) * (high[:, 1] - low[:, 1])
    return inter / (area_a[:, None] + area_b[None, :] - inter)


def match(m, truths, labels, priors, v):
    """ssd.pytorch's match. -> class [P], object [P], offsets [P,4]"""
    overlap = iou(truths.float(), priors.float())
    best_prior = overlap.max(1)[1]
    best_overlap, best_truth = overlap.max(0)
    best_overlap.index_fill_(0, best_prior, 2)
    for j in range(len(truths)):
        best_truth[best_prior[j]] = j
    conf = labels[best_truth] + 1
    conf[best_overlap < m["positive_iou"]] = 0
    t = truths[best_truth]
    xy = ((t[:, :2] + t[:, 2:]) / 2 - priors[:, :2]) / (v[:2] * priors[:, 2:])
    wh = torch.log((t[:, 2:] - t[:, :2]) / priors[:, 2:]) / v[2:]
    return conf - 1, best_truth, torch.cat([xy, wh], 1)


def match_tutorial(m, truths, labels, priors, v):
    """Labels counted from 1 there."""
    overlap = iou(truths.float(), priors.float())
    for_prior, obj = overlap.max(0)
    prior_of = overlap.max(1)[1]
    obj[prior_of] = torch.arange(len(truths))    # duplicates: the last, as a CPU tensor is written in order
    for_prior[prior_of] = 1.
    label = (labels + 1)[obj]
    label[for_prior < m["positive_iou"]] = 0
    t = truths[obj]
    c, wh = (t[:, 2:] + t[:, :2]) / 2, t[:, 2:] - t[:, :2]
    return label - 1, obj, torch.cat([(c - priors[:, :2]) / (priors[:, 2:] / 10), torch.log(wh / priors[:, 2:]) * 5], 1)


def match_retinanet(m, truths, labels, priors, v):
    """The RetinaNet example's: boxes and anchors as centre and sides, a band of ignored anchors, nothing forced."""
    a, b = priors.float(), truths.float()
    inter = shared(a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    union = (a[:, 2] * a[:, 3])[:, None] + (b[:, 2] * b[:, 3])[None, :] - inter
    best, of = (inter / union.clamp(min=1e-8)).clamp(0, 1).max(1)
    positive, negative = best >= m["positive_iou"], best < (m["negative_iou"] or m["positive_iou"])
    t = truths[of]
    target = torch.cat([(t[:, :2] - priors[:, :2]) / priors[:, 2:], torch.log(t[:, 2:] / priors[:, 2:])], 1) / v
    classes = torch.where(positive, labels[of], torch.tensor(-1))
    return torch.where(positive | negative, classes, torch.tensor(-2)), of, target


def matcher(r):
    """The origin that matches as this criterion does; None: there is none."""
    m, name = r["criterion"]["matcher"], r["criterion"]["name"]
    if m["iou"] == "sizes":
        return match_retinanet if m["force"] == "none" and m["negative_iou"] != 0 else None
    if m["force"] != "last" or m["negative_iou"] not in (None, m["positive_iou"]):
        return None
    return match_tutorial if name == "ssd-multibox-l1" else match


def assign(r, images, real):
    """-> class [N,P], object [N,P] or None when it is not torch's, offsets [N,P,4]"""
    origin = None if "targets" in r else matcher(r)
    if origin is None or any(u.any() for u in r["use"]):
        return (torch.tensor(np.array([i["classes"] for i in images])), None,
                torch.tensor(np.array([i["target"] for i in images]), dtype=real))
    priors, v, each = torch.tensor(r["priors"], dtype=real), torch.tensor(r["criterion"]["coder"]["variances"]), []
    for boxes, labels in zip(r["boxes"], r["labels"]):
        if len(boxes):
            each.append(origin(r["criterion"]["matcher"], torch.tensor(boxes, dtype=real), torch.tensor(labels), priors,
                               v.to(real)))
        else:
            each.append((torch.full((len(priors),), -1), torch.full((len(priors),), -1), torch.zeros_like(priors)))
    return [torch.stack(x) for x in zip(*each)]


# ---------------------------------------------------------------- the origins' losses

def descending(x):
    return x.sort(dim=-1, descending=True, stable=True)


def multibox(loc_p, conf_p, loc_t, conf_t):
    """ssd.pytorch's MultiBoxLoss. -> loss_l, loss_c, mined [N,P]; so are the others."""
    n, p, c = conf_p.shape
    pos = conf_t > 0
    loss_l = F.smooth_l1_loss(loc_p[pos], loc_t[pos], reduction="sum")
    rank_by = F.cross_entropy(conf_p.view(-1, c), conf_t.view(-1), reduction="none").view(n, p)
    rank_by[pos] = 0
    rank = descending(rank_by)[1].sort(1)[1]
    neg = rank < (3 * pos.sum(1, keepdim=True)).clamp(max=p)
    both = pos | neg
    loss_c = F.cross_entropy(conf_p[both], conf_t[both], reduction="sum")
    total = pos.sum()
    return loss_l / total, loss_c / total, neg & ~pos


def tutorial(loc_p, conf_p, loc_t, conf_t):
    """The tutorial's MultiBoxLoss, alpha 1."""
    n, p, c = conf_p.shape
    pos = conf_t != 0
    n_pos = pos.sum(1)
    loc_loss = F.l1_loss(loc_p[pos], loc_t[pos])
    every = F.cross_entropy(conf_p.view(-1, c), conf_t.view(-1), reduction="none").view(n, p)
    negative = every.clone()
    negative[pos] = 0.
    ordered, index = descending(negative)
    hard = torch.arange(p)[None, :] < (3 * n_pos)[:, None]
    conf_loss = (ordered[hard].sum() + every[pos].sum()) / n_pos.sum().to(conf_p.dtype)
    return loc_loss, conf_loss, torch.zeros_like(pos).scatter_(1, index, hard) & ~pos


def focal(logits, y, alpha, gamma, smoothing=0.):
    """The RetinaNet example's RetinaNetClassificationLoss of each column; smoothing as EfficientDet's."""
    ce = F.binary_cross_entropy_with_logits(logits, y * (1 - smoothing) + smoothing / 2, reduction="none")
    p = torch.sigmoid(logits)
    a = torch.where(y == 1, alpha, 1 - alpha)
    p_t = torch.where(y == 1, p, 1 - p)
    return a * (1 - p_t) ** gamma * ce


def one_hot(column, n, real):
    """A row of zeros for a negative column."""
    return F.one_hot(column.clamp(min=0), n).to(real) * (column >= 0)[..., None]


def jump(d, delta):
    """RetinaNetBoxLoss."""
    a = d.abs()
    return torch.where(a < delta, 0.5 * d ** 2, a - 0.5)


def retinanet(loc_p, conf_p, loc_t, classes):
    """The RetinaNet example's losses with each image's normaliser, 1 where it has no positives; mean over images."""
    positive = classes > -1
    y = one_hot(classes, conf_p.shape[2], conf_p.dtype)
    clf = focal(conf_p, y, torch.tensor(.25, dtype=conf_p.dtype), 2.0).sum(-1)
    clf = torch.where(classes == -2, torch.zeros_like(clf), clf)
    box = jump(loc_t - loc_p, 1.0).sum(-1)
    box = torch.where(positive, box, torch.zeros_like(box))
    normalizer = positive.sum(-1).to(conf_p.dtype)
    normalizer = torch.where(normalizer == 0, torch.ones_like(normalizer), normalizer)
    return (box.sum(-1) / normalizer).mean(), (clf.sum(-1) / normalizer).mean(), torch.zeros_like(positive)


def clipped(p):
    low, high = (torch.tensor(x).to(p.dtype) for x in (1e-7, 1 - 1e-7))     # float32 bounds
    return p.clamp(low, high)


def keras_ssd(loc_p, conf_p, loc_t, classes):
    """SSDLoss of the Keras SSD tutorial, alpha 1, ratio 3: background last, mined over the whole batch."""
    n, p, c = conf_p.shape
    y = F.one_hot(torch.where(classes < 0, c - 1, classes).view(-1), c).to(conf_p.dtype)
    negative = y[:, -1]
    positive = 1 - negative
    n_pos = positive.sum()
    k = torch.min(3 * n_pos, negative.sum())
    ce = -(y * torch.log(clipped(conf_p.view(-1, c)))).sum(-1)
    ordered, index = descending(ce * negative)
    pos_loss = (ce * positive).sum() / (n_pos + 1e-7)
    neg_loss = ordered[:int(k)].sum() / (k + 1e-7)
    d = (loc_t - loc_p).view(-1, 4)
    smooth = torch.where(d.abs() < 1, 0.5 * d ** 2, d.abs() - 0.5).sum(-1)
    mined = torch.zeros(n * p, dtype=torch.bool)
    mined[index[:int(k)]] = True
    return ((smooth * positive).sum() / (n_pos + 1e-7), pos_loss + neg_loss, mined.view(n, p) & (classes < 0))


# ---------------------------------------------------------------- any other criterion, from torch's and fvcore's losses

def decode(offsets, priors, v):
    scaled = offsets * v
    c = priors[:, :2] + scaled[:, :2] * priors[:, 2:]
    half = torch.exp(scaled[:, 2:]) * priors[:, 2:] / 2
    return torch.cat([c - half, c + half], 1)


def box_loss(kind, a, b, eps=1e-7):
    """fvcore's giou_loss, diou_loss and ciou_loss of corner boxes [M,4], reduction none."""
    x1, y1, x2, y2 = a.unbind(-1)
    x1g, y1g, x2g, y2g = b.unbind(-1)
    left, top, right, bottom = torch.max(x1, x1g), torch.max(y1, y1g), torch.min(x2, x2g), torch.min(y2, y2g)
    inter = torch.zeros_like(x1)
    mask = (bottom > top) & (right > left)
    inter[mask] = (right[mask] - left[mask]) * (bottom[mask] - top[mask])
    union = (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - inter
    iou = inter / (union + eps)
    xc1, yc1, xc2, yc2 = torch.min(x1, x1g), torch.min(y1, y1g), torch.max(x2, x2g), torch.max(y2, y2g)
    if kind == "giou":
        area = (xc2 - xc1) * (yc2 - yc1)
        return 1 - (iou - (area - union) / (area + eps))
    diagonal = (xc2 - xc1) ** 2 + (yc2 - yc1) ** 2 + eps
    distance = ((x2 + x1) / 2 - (x1g + x2g) / 2) ** 2 + ((y2 + y1) / 2 - (y1g + y2g) / 2) ** 2
    if kind == "diou":
        return 1 - iou + distance / diagonal
    v = (4 / math.pi ** 2) * (torch.atan((x2g - x1g) / (y2g - y1g)) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return 1 - iou + distance / diagonal + alpha * v


def localization(r, predicted, target, at):
    """Each positive's loss [M]; at: [N,P] bool"""
    m, a, b = r["criterion"]["localization"], predicted[at], target[at]
    kind = m["kind"]
    if kind in ("giou", "diou", "ciou"):
        priors = torch.tensor(r["priors"], dtype=a.dtype).expand(len(predicted), -1, 4)[at]
        v = torch.tensor(r["criterion"]["coder"]["variances"]).to(a.dtype)
        limit = math.log(1000. / 16)
        a = torch.cat([a[:, :2], (a[:, 2:] * v[2:]).clamp(max=limit) / v[2:]], 1)
        return box_loss(kind, decode(a, priors, v), decode(b, priors, v))
    each = {"l1": lambda: F.l1_loss(a, b, reduction="none"),
            "smooth_l1": lambda: F.smooth_l1_loss(a, b, beta=float(m["beta"]), reduction="none") if m["beta"] else
            F.l1_loss(a, b, reduction="none"),     # documented as the same, but its derivative at 0 is -1
            "huber": lambda: F.huber_loss(a, b, delta=float(m["delta"]), reduction="none"),
            "jump_l1": lambda: jump(b - a, m["delta"])}[kind]()
    return each.sum(-1)


def classification(m, x, classes):
    """Every prior's loss [N,P]."""
    c, s = x.shape[2], float(m["label_smoothing"])
    weight = None if m["class_weights"] is None else torch.tensor(m["class_weights"], dtype=x.dtype)
    first = m["background"] == "first"
    column = torch.where(classes >= 0, classes + first, {"first": 0, "last": c - 1, "none": -1}[m["background"]])
    if m["kind"] == "softmax_ce":
        return F.cross_entropy(x.reshape(-1, c), column.view(-1), weight, label_smoothing=s,
                               reduction="none").view(classes.shape)
    y = one_hot(column, c, x.dtype)
    if m["kind"] == "prob_ce":
        each = -(y * (1 - s) + s / c) * torch.log(clipped(x))
    else:
        each = focal(x, y, torch.tensor(m["alpha"], dtype=x.dtype), m["gamma"], s)
    return (each if weight is None else each * weight).sum(-1)


def mine(m, ce, positive, negative):
    """-> mined [N,P], how many were asked for"""
    if m["kind"] == "none":
        return torch.zeros_like(positive), 0.
    if m["scope"] == "batch":
        mined, asked = mine({**m, "scope": "whole"}, *(x.reshape(1, -1) for x in (ce, positive, negative)))
        return mined.view(ce.shape), asked
    n, most = positive.sum(1), negative.sum(1)
    asked = torch.minimum((m["ratio"] * n).double().clamp(min=m["min_negatives"]), most.double())
    rank = descending(torch.where(negative, ce, torch.full_like(ce, -1)))[1].sort(1)[1]
    k = asked.ceil() if m["scope"] == "image" else asked.floor()
    return (rank < k[:, None]) & negative, float(asked.sum())


def composed(r, loc_p, conf_p, loc_t, classes):
    c, n = r["criterion"], len(classes)
    positive, negative = classes >= 0, classes == -1
    box = torch.zeros_like(conf_p[..., 0])
    box[positive] = localization(r, loc_p, loc_t, positive)
    ce = classification(c["classification"], conf_p, classes)
    mined, asked = mine(c["mining"], ce.detach(), positive, negative)
    counted = negative if c["mining"]["kind"] == "none" else mined
    n_pos = positive.sum(1).to(conf_p.dtype)
    each = {"positives": n_pos.sum().clamp(min=1), "positives_and_mined": n_pos.sum() + 1e-7,
            "image_positives": n * n_pos.clamp(min=1), "value": torch.tensor(float(c["normalizer"].get("value", 1)))
            }[c["normalizer"]["kind"]].expand(n)
    of_negative = asked + 1e-7 if c["normalizer"]["kind"] == "positives_and_mined" else each
    part = lambda x, mask: torch.where(mask, x, torch.zeros_like(x)).sum(1)
    loc = (part(box, positive) / each).sum() / (4 if c["localization"]["reduction"] == "mean" else 1)
    conf = (part(ce, positive) / each + part(ce, counted) / of_negative).sum()
    return c["weights"]["loc"] * loc, c["weights"]["conf"] * conf, mined


def loss_of(r, classes):
    """The origin's loss that is this criterion, if it is defined for these classes."""
    name, some = r["criterion"]["name"], bool((classes >= 0).any()) and not bool((classes == -2).any())
    shifted = lambda f: lambda r, loc_p, conf_p, loc_t, classes: f(loc_p, conf_p, loc_t, classes + 1)
    as_is = lambda f: lambda r, *tensors: f(*tensors)
    if name == "retinanet-focal":
        return as_is(retinanet), "retinanet"
    if name == "ssd-keras" and not (classes == -2).any():
        return as_is(keras_ssd), "keras ssd"
    if name == "ssd-multibox" and some:
        return shifted(multibox), "ssd.pytorch"
    if name == "ssd-multibox-l1" and some:
        return shifted(tutorial), "tutorial"
    return composed, "composed"


# ---------------------------------------------------------------- comparison

def run(r, images, real):
    """-> loss_loc, loss_conf, class, object, mined, gradients by loc and conf, the loss's name"""
    classes, owner, loc_t = assign(r, images, real)
    loc_p, conf_p = (torch.tensor(r[k], dtype=real, requires_grad=True) for k in ("loc", "conf"))
    f, name = loss_of(r, classes)
    loc, conf, mined = f(r, loc_p, conf_p, loc_t, classes)
    total = loc + conf + 0 * (loc_p.sum() + conf_p.sum())       # so that each is part of the graph
    slopes = torch.autograd.grad(total, (loc_p, conf_p))
    return loc.detach(), conf.detach(), classes, owner, mined, [g.numpy() for g in slopes], name


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


def compare_assignment(images, classes, owner, mined):
    faults = []
    for i, image in enumerate(images):
        if not np.array_equal(classes[i].numpy(), image["classes"]):
            faults.append(f"image {i}: classes")
        if owner is not None and not np.array_equal(np.where(image["positive"], owner[i].numpy(), -1), image["object"]):
            faults.append(f"image {i}: objects")
        if int(mined[i].sum()) != image["mined"].sum():
            faults.append(f"image {i}: {int(mined[i].sum())} mined for {image['mined'].sum()}")
    return faults


def compare_losses(r, images, expect, loc, conf):
    """-> faults, relative deviations"""
    factors = [reference.factors(r, i) for i in images]
    faults, off = [], []
    for part, got, of in (("loc", float(loc), 1), ("conf", float(conf), 0)):
        want, rows = expect["loss"][part], sum(f[of].sum() for f in factors)     # summed rows / normaliser
        off.append(abs(got - want) / want if want else abs(got))
        if not abs(got - want) <= 1e-6 * abs(want) + 1e-7 * rows:
            faults.append(f"{part} {got} for {want}")
    return faults, off


def compare_gradients(owed, got):
    """[N,P,4 or C] each -> the largest deviation by the tolerance, over all rows"""
    worst = 0.0
    for a, b in zip(owed, got):
        size = np.maximum(np.abs(a), np.abs(b)).max(2, keepdims=True)
        worst = max(worst, (np.abs(a - b) / (1e-5 * size + 1e-9)).max())
    return worst


def sparse(slopes):
    """The rows that are not zero, as an answer has its gradients; nothing when they are too many."""
    listed = np.any([g.any(2) for g in slopes], 0)
    if listed.sum() * sum(g.shape[2] for g in slopes) > WRITTEN_NUMBERS:
        return {}
    return {"gradients": {"index": np.argwhere(listed).tolist(), "loc": reference.float32(slopes[0][listed]),
                          "conf": reference.float32(slopes[1][listed])}}


def compare(r, images, expect):
    """-> faults, a line of the table, what torch.json has"""
    loc, conf, classes, owner, mined, _, name = run(r, images, torch.float32)
    faults, off = compare_losses(r, images, expect, loc, conf)
    faults += compare_assignment(images, classes, owner, mined)
    slopes, worst = run(r, images, torch.float64)[5], float("nan")
    if all(np.isfinite(g).all() for g in slopes):      # (1 - p) ** gamma has no derivative where p rounds to 1
        worst = 1e-5 * compare_gradients(reference.gradients(r, images)[:2], slopes)
        faults += [f"gradient {worst:.1e}"] * int(worst > 1e-5)
    a, hard = expect["assignment"], mined.sum(1).tolist()
    line = (f"{name:12} {a['positives']:9} {sum(hard):6} {float(loc):12.7f} {off[0]:9.1e} {float(conf):12.7f} "
            f"{off[1]:9.1e} {worst:9.1e}  {'; '.join(faults)}")
    members = {"torch": torch.__version__, "loss_loc": float(loc), "loss_conf": float(conf),
               "positives": (classes >= 0).sum(1).tolist(), "hard_negatives": hard,
               "classes": [[[int(x), int(row[x])] for x in torch.nonzero(row >= 0).flatten()] for row in classes]}
    if expect.keys() & {"gradients", "dense_gradients"} and worst <= 1e-5:
        members.update(sparse(slopes))
    return faults, line, members


def main():
    check, bad = sys.argv[1:] == ["--check"], 0
    print(f"torch {torch.__version__}\n{'case':44} {'loss of':12} {'positives':>9} {'mined':>6} {'loc':>12} "
          f"{'relative':>9} {'conf':>12} {'relative':>9} {'gradient':>9}")
    for case in sorted(d for d in os.listdir(HERE) if os.path.exists(os.path.join(HERE, d, "expect.json"))):
        r, expect = load(case)
        faults, line, members = compare(r, reference.compute(r), expect)
        print(f"{case:44} {line}")
        bad += bool(faults)
        if not check:
            with open(os.path.join(HERE, case, "torch.json"), "w") as f:
                f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
                                           for k, v in members.items()) + "\n}\n")
    print(f"{bad} deviations")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
