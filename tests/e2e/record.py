# SPDX-License-Identifier: Apache-2.0
"""Record a short real training at a daemon: the annotations of the shipped blood-cell batch, learned in batches of six
images on the daemon's own gradients, through the torch.autograd.Function of README.md; one run for each set-up below.

Run by test_dashboard.py with Debian's /usr/bin/python3 (python3-torch, python3-requests):
    record.py URL STEPS
"""
import json
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import train  # noqa: E402
import lossd  # noqa: E402

BATCH = 6
RUNS = {  # name: criterion, learning rate
    "multibox-lr-0.1": ("ssd-multibox", .1),
    "multibox-lr-0.3": ("ssd-multibox", .3),
    "ciou-lr-0.3": (json.dumps({"base": "ssd-multibox", "matcher": {"force": "none"}, "localization": {"kind": "ciou"}}),
                    .3),
}


def annotations():
    """Of each image: boxes [G,4], labels [G]."""
    tensors = lossd.load(lossd.bccd_bytes())[1]
    boxes, labels, counts = (np.array(tensors[name][2]) for name in ("boxes", "labels", "counts"))
    cuts = np.cumsum(counts)[:-1]
    return np.split(boxes.reshape(-1, 4).astype(np.float32), cuts), np.split(labels.astype(np.int64), cuts)


def record(url, name, criterion, rate, steps, rng):
    boxes, labels = annotations()
    loss = train.readme_loss(url)
    columns = max(int(k.max()) for k in labels) + 2
    model = train.Model(lossd.bccd().p, columns, 0.)
    features = torch.tensor(np.random.default_rng(11).normal(size=(len(boxes), 8)), dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=.9)
    for step in range(steps):
        images = rng.permutation(len(boxes))[:BATCH]
        picked = [np.concatenate([of[i] for i in images]) for of in (boxes, labels)]
        counts = np.array([len(labels[i]) for i in images])
        optimizer.zero_grad()
        value = loss.apply(*model(features[images]), *picked, counts,
                           {"criterion": criterion, "priors": "ssd300", "run": name, "step": str(step)})
        value.backward()
        optimizer.step()


def main():
    url, steps = sys.argv[1], int(sys.argv[2])
    train.provide_safetensors()
    for seed, (name, (criterion, rate)) in enumerate(RUNS.items()):
        record(url, name, criterion, rate, steps, np.random.default_rng(seed))


if __name__ == "__main__":
    main()
