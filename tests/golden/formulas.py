# SPDX-License-Identifier: Apache-2.0
"""Every loss formula with its derivative, in float64 over rows of priors: the independent source of expect.json.

Purpose: classification(members, x, column) and localization(members, ...) return the loss of each row and its
derivative by each of the row's predictions. `members` is the stage of the criterion object. Formulas: softmax and
weighted cross entropy, smooth L1 and Huber as torch.nn.functional has them; clipped cross entropy of the Keras SSD
tutorial; focal and jumping L1 loss of the keras-io RetinaNet example; GIoU, DIoU and CIoU of fvcore (facebookresearch).
Invariant: no result is the difference of two nearly equal numbers where the formula can be written without one.
"""
import math

import numpy as np

F32 = np.float32
CLIP = float(F32(1e-7)), float(F32(0.99999988))
LARGEST = math.log(1000 / 16)     # of a predicted log width or height, before exp
EPSILON = 1e-7


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---------------------------------------------------------------- classification

def cross_entropy(m, x, column):
    """softmax_ce and prob_ce: sum over columns of q ce, where q is the weighted, smoothed label."""
    rows, n = np.arange(len(x)), x.shape[1]
    weight = np.ones(n) if m["class_weights"] is None else np.array(m["class_weights"], float)
    q = np.tile(m["label_smoothing"] / n * weight, (len(x), 1))
    q[rows, column] += (1 - m["label_smoothing"]) * weight[column]
    if m["kind"] == "prob_ce":
        inside = (x >= CLIP[0]) & (x <= CLIP[1])
        return (q * -np.log(np.clip(x, *CLIP))).sum(1), np.where(inside, -q / np.where(inside, x, 1), 0) + 0.0
    top = x.argmax(1)
    greatest = x[rows, top]
    e = np.exp(x - greatest[:, None])
    e[rows, top] = 0
    rest = e.sum(1)                            # of all columns but the largest, whose term is 1
    ce = np.log1p(rest)[:, None] + (greatest[:, None] - x)
    share = e / (1 + rest)[:, None]
    share[rows, top] = 1 / (1 + rest)
    others = 1 - share
    others[rows, top] = rest / (1 + rest)
    q_others = np.stack([np.delete(q, j, 1).sum(1) for j in range(n)], 1)
    return (q * ce).sum(1), share * q_others - q * others


def focal(m, x, column):
    """sigmoid_focal: sum over columns of w a (1-p_t)^gamma bce; column -1 is no column. u = 1 - p_t."""
    z = np.arange(x.shape[1]) == column[:, None]
    alpha = np.broadcast_to(np.array(m["alpha"], float), x.shape)
    weight = 1 if m["class_weights"] is None else np.array(m["class_weights"], float)
    s, gamma = m["label_smoothing"], m["gamma"]
    factor = weight * np.where(z, alpha, 1 - alpha)
    sign = np.where(z, -1.0, 1.0)
    u, p_t = sigmoid(sign * x), sigmoid(-sign * x)
    # max(x,0) - x t + log1p(exp(-|x|)) with t = z(1-s) + s/2
    bce = np.maximum(sign * x, 0) + np.log1p(np.exp(-np.abs(x))) - sign * x * s / 2
    return (factor * u ** gamma * bce).sum(1), factor * sign * u ** gamma * (gamma * p_t * bce + u - s / 2)


def classification(m, x, column):
    return (focal if m["kind"] == "sigmoid_focal" else cross_entropy)(m, x, column)


# ---------------------------------------------------------------- localization: four differences

def differences(m, d):
    a, sign = np.abs(d), np.sign(d)
    if m["kind"] == "l1":
        return a, sign
    if m["kind"] == "smooth_l1":
        beta = m["beta"]
        near = a < beta
        return np.where(near, d * d / (2 * (beta or 1)), a - beta / 2), np.where(near, d / (beta or 1), sign)
    delta = m["delta"]
    near = a < delta
    if m["kind"] == "huber":
        return np.where(near, d * d / 2, delta * (a - delta / 2)), np.where(near, d, delta * sign)
    assert m["kind"] == "jump_l1"
    return np.where(near, d * d / 2, a - .5), np.where(near, d, sign)


# ---------------------------------------------------------------- localization: decoded boxes

class Dual:
    """Numbers [M] and their derivatives [M,4] by the four predicted offsets: forward differentiation, exact."""
    __array_ufunc__ = None      # array * Dual is ours

    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, np.broadcast_to(slope, value.shape + (4,))

    def __add__(self, other):
        return Dual(self.value + other.value, self.slope + other.slope) if isinstance(other, Dual) \
            else Dual(self.value + other, self.slope)

    def __mul__(self, other):
        return Dual(self.value * other.value, self.slope * other.value[:, None] + self.value[:, None] * other.slope) \
            if isinstance(other, Dual) else Dual(self.value * other, self.slope * np.asarray(other)[..., None])

    def __truediv__(self, other):
        if not isinstance(other, Dual):
            return self * (1 / other)
        value = self.value / other.value
        return Dual(value, (self.slope - value[:, None] * other.slope) / other.value[:, None])

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def exp(x):
    return Dual(np.exp(x.value), x.slope * np.exp(x.value)[:, None])


def atan(x):
    return Dual(np.arctan(x.value), x.slope / (1 + x.value * x.value)[:, None])


def larger(a, b):
    """A tie gives each half of the derivative, as torch.max does."""
    of_a = np.where(a.value > b.value, 1.0, np.where(a.value < b.value, 0.0, 0.5))[:, None]
    return Dual(np.maximum(a.value, b.value), of_a * a.slope + (1 - of_a) * b.slope)


def smaller(a, b):
    return -larger(-a, -b)


def decode(prior, scaled):
    """Offsets times variances (four Dual) on priors [M,4] cx cy w h -> corners x1 y1 x2 y2"""
    centres = [prior[:, j] + scaled[j] * prior[:, j + 2] for j in (0, 1)]
    halves = [exp(scaled[j]) * (prior[:, j] / 2) for j in (2, 3)]
    return [c - h for c, h in zip(centres, halves)] + [c + h for c, h in zip(centres, halves)]


def boxes(m, prior, variances, predicted, target, alpha):
    """giou, diou and ciou of the decoded boxes: fvcore's formulas, eps 1e-7. -> loss, slope, alpha"""
    scaled = [Dual(predicted[:, j], np.eye(4)[j]) * variances[j] for j in range(4)]
    for j in (2, 3):
        over = scaled[j].value > LARGEST
        scaled[j] = Dual(np.where(over, LARGEST, scaled[j].value), np.where(over[:, None], 0, scaled[j].slope))
    x1, y1, x2, y2 = decode(prior, scaled)
    gx1, gy1, gx2, gy2 = decode(prior, [Dual(target[:, j] * variances[j]) for j in range(4)])

    width, height = smaller(x2, gx2) - larger(x1, gx1), smaller(y2, gy2) - larger(y1, gy1)
    meet = (width.value > 0) & (height.value > 0)
    inter = width * height * meet.astype(float)
    union = (x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1) - inter
    iou = inter / (union + EPSILON)
    around_w, around_h = larger(x2, gx2) - smaller(x1, gx1), larger(y2, gy2) - smaller(y1, gy1)
    if m["kind"] == "giou":
        area = around_w * around_h
        loss = 1 - (iou - (area - union) / (area + EPSILON))
        return loss.value, loss.slope, None
    diagonal = around_w * around_w + around_h * around_h + EPSILON
    dx, dy = (x1 + x2 - gx1 - gx2) * .5, (y1 + y2 - gy1 - gy2) * .5
    loss = 1 - iou + (dx * dx + dy * dy) / diagonal
    if m["kind"] == "ciou":
        angle = atan((gx2 - gx1) / (gy2 - gy1)) - atan((x2 - x1) / (y2 - y1))
        v = angle * angle * (4 / math.pi ** 2)
        alpha = v.value / (1 - iou.value + v.value + EPSILON) if alpha is None else alpha
        loss = loss + v * alpha
    return loss.value, loss.slope, alpha


def needs_priors(m):
    return m["kind"] in ("giou", "diou", "ciou")


def localization(m, prior, variances, predicted, target, alpha=None):
    """[M,4] each -> the loss of each row [M], its derivative by the predicted offsets [M,4], and CIoU's alpha [M],
    which is a constant of the derivative; alpha: to use instead of the predictions' own"""
    if needs_priors(m):
        return boxes(m, prior, variances, predicted, target, alpha)
    value, slope = differences(m, predicted - target)
    return value.sum(1), slope, None
