# SPDX-License-Identifier: Apache-2.0
"""The peer in computing: the same losses in PyTorch, eager or compiled, as training loops write them.

A worker that stays up, so that rounds can be interleaved and each PyTorch be a Python of its own. One JSON line per
line of input, a job: {"file": a safetensors body, "priors": a safetensors file with them, "kind", "threads",
"compile", "device"}; it runs over as many copies of the predictions as overflow the cache and answers the milliseconds
of each, whole and without matching, and the loss.
"""
import json
import os
import sys
import time
import warnings

# Read by OpenMP when torch is loaded: threads sleep at a barrier. By default they spin, which on a machine with
# anything else to do makes PyTorch several times slower.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
sys.dont_write_bytecode = True
from torch_source import jump, match, match_retinanet, multibox    # the formulas of the origins

FOOTPRINT = {"cpu": 80 << 20, "cuda": 512 << 20}
DTYPES = {"F32": torch.float32, "I64": torch.int64}
warnings.filterwarnings("ignore", message=".*not writable.*")


def read(body):
    """Tensors of a safetensors body: views, not copies."""
    length = int.from_bytes(body[:8], "little")
    tensors = {}
    for name, about in json.loads(bytes(body[8:8 + length])).items():
        if name != "__metadata__":
            low, high = about["data_offsets"]
            size = 4 if about["dtype"] == "F32" else 8
            flat = torch.frombuffer(body, dtype=DTYPES[about["dtype"]], count=(high - low) // size,
                                    offset=8 + length + low)
            tensors[name] = flat.view(about["shape"])
    return tensors


def read_file(path):
    with open(path, "rb") as f:
        return read(bytearray(f.read()))


def ssd_targets(t, priors):
    """ssd.pytorch's match, image by image. -> offsets [N,P,4], column [N,P]"""
    variances, counts = torch.tensor([.1, .1, .2, .2], device=priors.device), t["counts"].tolist()
    each = [match({"positive_iou": .5}, boxes, labels, priors, variances)
            for boxes, labels in zip(t["boxes"].split(counts), t["labels"].split(counts))]
    return torch.stack([e[2] for e in each]), torch.stack([e[0] + 1 for e in each])


def ssd_loss(loc, conf, loc_t, conf_t):
    return multibox(loc, conf, loc_t, conf_t)[:2]


def retinanet_targets(t, priors):
    """The keras-io example's matching, image by image. -> offsets [N,P,4], class [N,P]: -1 background, -2 ignored"""
    m, variances = {"positive_iou": .5, "negative_iou": .4}, torch.tensor([.1, .1, .2, .2], device=priors.device)
    corners, counts = t["boxes"], t["counts"].tolist()
    sizes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    each = [match_retinanet(m, boxes, labels, priors, variances)
            for boxes, labels in zip(sizes.split(counts), t["labels"].split(counts))]
    return torch.stack([e[2] for e in each]), torch.stack([e[0] for e in each])


def retinanet_loss(loc, conf, loc_t, classes):
    """The keras-io example's losses, written as torchvision writes its sigmoid_focal_loss: the classes scattered into
    zeros, the localization of the positives only."""
    positive = classes >= 0
    image, prior = positive.nonzero(as_tuple=True)
    y = torch.zeros_like(conf)
    y[image, prior, classes[image, prior]] = 1
    p = torch.sigmoid(conf)
    ce = F.binary_cross_entropy_with_logits(conf, y, reduction="none")
    p_t = p * y + (1 - p) * (1 - y)
    focal = (.25 * y + .75 * (1 - y)) * (ce * (1 - p_t) ** 2)
    normalizer = positive.sum(1).clamp(min=1).to(conf.dtype)
    of_image = (focal.sum(2) * (classes != -2)).sum(1)
    box = torch.zeros_like(normalizer).index_add_(0, image, jump(loc_t[positive] - loc[positive], 1.).sum(1))
    return (box / normalizer).mean(), (of_image / normalizer).mean()


KINDS = {"ssd": (ssd_targets, ssd_loss), "retinanet": (retinanet_targets, retinanet_loss)}


class Worker:
    def __init__(self):
        self.loaded, self.compiled = {}, {}

    def copies(self, path, device):
        if (path, device) not in self.loaded:
            t = {name: tensor.to(device) for name, tensor in read_file(path).items()}
            n = FOOTPRINT[device] // (4 * (t["conf"].numel() + t["loc"].numel())) + 2
            self.loaded[path, device] = t, [(t["loc"].clone(), t["conf"].clone()) for _ in range(n)]
        return self.loaded[path, device]

    def run(self, job):
        torch.set_num_threads(job["threads"])
        device = job.get("device", "cpu")
        targets, loss = KINDS[job["kind"]]
        if job.get("compile"):
            loss = self.compiled.setdefault(job["kind"], torch.compile(loss))
        annotations, copies = self.copies(job["file"], device)
        priors, whole, without = read_file(job["priors"])["priors"].to(device), [], []
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        with torch.no_grad():
            for loc, conf in copies:
                wait()
                start = time.perf_counter()
                loc_t, classes = targets(annotations, priors)
                wait()
                middle = time.perf_counter()
                total = sum(loss(loc, conf, loc_t, classes)).item()
                end = time.perf_counter()
                whole.append((end - start) * 1e3)
                without.append((end - middle) * 1e3)
        return {"whole_ms": whole, "loss_ms": without, "total": total, "torch": torch.__version__}


def main():
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.run(json.loads(line))
        except Exception as e:                  # a PyTorch that cannot compile here is a row less
            answer = {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
