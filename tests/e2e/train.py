# SPDX-License-Identifier: Apache-2.0
"""Train a small PyTorch model twice from the same start: with the loss computed here, and with the loss and its
gradients from a daemon, through the torch.autograd.Function of README.md, word for word.

Run by test_training.py with Debian's /usr/bin/python3 (python3-torch, python3-requests):
    train.py CRITERION PRIORS URL
Prints one JSON object: {"local": [...], "remote": [...]}, the losses of each step.
"""
import json
import os
import re
import sys
import types

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
sys.path[:0] = [os.path.join(HERE, "..", "golden"), os.path.join(HERE, "..", "support")]
sys.dont_write_bytecode = True
import lossd  # noqa: E402
import priors as prior_sets  # noqa: E402
import torch_source  # noqa: E402

STEPS, IMAGES, CLASSES = 20, 4, 3
DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}
torch.set_num_threads(1)


def provide_safetensors():
    """safetensors.numpy as far as README.md uses it, where it is not installed (Debian 12 does not package it)."""
    try:
        import safetensors.numpy  # noqa: F401
        return
    except ImportError:
        pass
    names = {np.dtype(t): name for name, t in DTYPES.items()}

    def save(tensors, metadata=None):
        header, data = {"__metadata__": metadata} if metadata else {}, b""
        for name, a in tensors.items():
            raw = np.ascontiguousarray(a).tobytes()
            header[name] = {"dtype": names[a.dtype], "shape": list(a.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def load(data):
        return {name: np.array(values, DTYPES[dtype]).reshape(shape)
                for name, (dtype, shape, values) in lossd.load(data)[1].items()}

    module = types.ModuleType("safetensors.numpy")
    module.save, module.load = save, load
    package = types.ModuleType("safetensors")
    package.numpy = module
    sys.modules.update({"safetensors": package, "safetensors.numpy": module})


def readme_loss(url):
    """What README.md shows, as a class."""
    with open(os.path.join(ROOT, "README.md")) as f:
        snippets = re.findall(r"```python\n(.*?)```", f.read(), re.S)
    snippet = next(s for s in snippets if "torch.autograd.Function" in s)
    names = {}
    exec(snippet.replace("http://127.0.0.1:8080", url), names)
    return names["DetectionLoss"]


def data(priors):
    """Images, and objects that are priors moved a little."""
    rng = np.random.default_rng(11)
    images, boxes, labels, counts = rng.normal(size=(IMAGES, 8)), [], [], []
    for _ in range(IMAGES):
        counts.append(int(rng.integers(1, 5)))
        for p in rng.integers(0, len(priors), counts[-1]):
            size = priors[p, 2:] * rng.uniform(.8, 1.2, 2)
            centre = priors[p, :2] + priors[p, 2:] * rng.uniform(-.1, .1, 2)
            boxes.append(np.concatenate([centre - size / 2, centre + size / 2]))
            labels.append(rng.integers(0, CLASSES))
    return (torch.tensor(images, dtype=torch.float32), np.array(boxes, np.float32), np.array(labels, np.int64),
            np.array(counts, np.int64))


def local_loss(criterion, priors, boxes, labels):
    """The origin's own matching and loss, in eager float32. -> function of loc, conf"""
    of, f, shift = {"ssd-multibox": (torch_source.match, torch_source.multibox, 1),
                    "ssd-multibox-l1": (torch_source.match_tutorial, torch_source.tutorial, 1),
                    "retinanet-focal": (torch_source.match_retinanet, torch_source.retinanet, 0)}[criterion]
    if criterion == "retinanet-focal":   # its boxes are centre and sides
        boxes = [np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1) for b in boxes]
    thresholds, variances = {"positive_iou": .5, "negative_iou": .4}, torch.tensor([.1, .1, .2, .2])
    rows = [of(thresholds, torch.tensor(b), torch.tensor(k), torch.tensor(priors), variances) for b, k in zip(boxes, labels)]
    classes, _, targets = (torch.stack(x) for x in zip(*rows))
    return lambda loc, conf: sum(f(loc, conf, targets, classes + shift)[:2])


class Model(torch.nn.Module):
    """Features of an image plus a bias of each prior: enough to learn the few objects."""

    def __init__(self, priors, columns, start):
        super().__init__()
        torch.manual_seed(3)
        self.priors, self.columns = priors, columns
        self.body = torch.nn.Linear(8, 16)
        self.head = torch.nn.Linear(16, priors * (4 + columns))
        with torch.no_grad():
            self.head.weight.mul_(.5)
            self.head.bias.view(priors, 4 + columns)[:, 4:] += start

    def forward(self, x):
        rows = self.head(torch.tanh(self.body(x))).view(len(x), self.priors, 4 + self.columns)
        return rows[..., :4].contiguous(), rows[..., 4:].contiguous()


def train(model, images, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=.3, momentum=.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(*model(images))
        value.backward()
        optimizer.step()
        losses.append(float(value))
    return losses


def main():
    criterion, name, url = sys.argv[1:]
    provide_safetensors()
    priors = np.asarray(prior_sets.named(name)[0], np.float32)
    images, boxes, labels, counts = data(priors)
    options = {"criterion": criterion, "priors": name}
    remote = readme_loss(url)
    focal = criterion == "retinanet-focal"
    columns, start = (CLASSES, -2.) if focal else (CLASSES + 1, 0.)
    cuts = np.cumsum(counts)[:-1]
    local = local_loss(criterion, priors, np.split(boxes, cuts), np.split(labels, cuts))

    def through_daemon(loc, conf):
        return remote.apply(loc, conf, boxes, labels, counts, options)

    print(json.dumps({"local": train(Model(len(priors), columns, start), images, local),
                      "remote": train(Model(len(priors), columns, start), images, through_daemon)}))


if __name__ == "__main__":
    main()
