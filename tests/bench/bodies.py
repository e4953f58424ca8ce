# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks send: random batches, as the safetensors library would write them, and as JSON."""
import json
import struct

import numpy as np

SAFETENSORS, JSON = "application/vnd.safetensors", "application/json"
LAST_LEVEL = 64 << 20   # twice the last-level cache of the machines meant: what rotates is at least this large


def objects(n_images, per_image, n_classes, scale=1.0, seed=1):
    """Annotations: boxes as corners, in shares of the image times `scale`."""
    rng = np.random.default_rng(seed)
    total = n_images * per_image
    low = rng.uniform(0, .7, (total, 2))
    boxes = np.concatenate([low, low + rng.uniform(.05, .3, low.shape)], 1) * scale
    return {"counts": np.full(n_images, per_image, np.int64), "labels": rng.integers(0, n_classes, total),
            "boxes": boxes.astype(np.float32)}


def predictions(n_images, n_priors, n_columns, shift=0.0, seed=2):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    return {"conf": normal(n_images, n_priors, n_columns) + np.float32(shift), "loc": normal(n_images, n_priors, 4)}


def boxes_at_random(n, seed=3):
    """Priors [n,4]: centre and sides, in shares of the image."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(0, 1, (n, 2)), rng.uniform(.05, .4, (n, 2))], 1).astype(np.float32)


def safetensors(tensors, metadata=None):
    """A file with the data in the order of the dictionary."""
    head, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        kind = {"int64": "I64", "float32": "F32"}[tensor.dtype.name]
        head[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(np.ascontiguousarray(t).data.cast("B")
                                                            for t in tensors.values())])


def json_text(tensors, options=None):
    """The same batch as a JSON request: images of annotations, nested lists of predictions."""
    first = np.concatenate([[0], np.cumsum(tensors["counts"])])
    images = [{"boxes": tensors["boxes"][a:b].tolist(), "labels": tensors["labels"][a:b].tolist()}
              for a, b in zip(first, first[1:])]
    body = {**(options or {}), "annotations": images}
    if "conf" in tensors:
        body["predictions"] = {name: tensors[name].tolist() for name in ("loc", "conf")}
    return json.dumps(body).encode()


def rotation(body):
    """As many copies of a body as overflow the last-level cache, to be sent in turn."""
    return [body] + [bytes(bytearray(body)) for _ in range(LAST_LEVEL // len(body) + 1)]


def chunked(body, size=256 << 10):
    """The body in chunked transfer encoding."""
    pieces = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
