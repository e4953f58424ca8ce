#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what lossd costs, as ratios against a named peer measured in the same run.

  compute     the library against the same loss in eager PyTorch with the same number of threads, same input
  end to end  one safetensors POST over loopback against the same libmicrohttpd throwing the same bytes away

SSD300, batch 32, 21 classes, float32: 28 MB. Inputs rotate so that they do not stay in the cache. Rounds are
interleaved and medians are quoted, because machines drift. Prints a table and writes build/bench.jsonl.
"""
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
sys.dont_write_bytecode = True
from torch_source import match, multibox    # the formulas of ssd.pytorch, eager

N, P, C, PER_IMAGE = 32, 8732, 21, 10
BATCH = "build/bench/ssd300-32.safetensors"
ROUNDS, PAIRS, COPIES = 7, 60, 4


def make_batch():
    """Random predictions and ten objects an image, written as the safetensors library would write them."""
    rng = np.random.default_rng(1)
    low = rng.uniform(0, .7, (N * PER_IMAGE, 2))
    boxes = np.concatenate([low, low + rng.uniform(.05, .3, low.shape)], 1).astype(np.float32)
    tensors = {"counts": np.full(N, PER_IMAGE, np.int64), "labels": rng.integers(0, C - 1, N * PER_IMAGE),
               "boxes": boxes, "conf": rng.normal(0, 1, (N, P, C)).astype(np.float32),
               "loc": rng.normal(0, 1, (N, P, 4)).astype(np.float32)}
    head, at = {}, 0
    for name, tensor in tensors.items():
        dtype = "I64" if tensor.dtype == np.int64 else "F32"
        head[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(os.path.dirname(BATCH), exist_ok=True)
    with open(BATCH, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t.tobytes() for t in tensors.values()))
    return tensors


def ssd300():
    boxes = []
    levels = zip([38, 19, 10, 5, 3, 1], [8, 16, 32, 64, 100, 300], [30, 60, 111, 162, 213, 264],
                 [60, 111, 162, 213, 264, 315], [[2], [2, 3], [2, 3], [2, 3], [2], [2]])
    for cells, step, small, large, ratios in levels:
        for i in range(cells):
            for j in range(cells):
                cx, cy, s = (j + .5) * step / 300, (i + .5) * step / 300, small / 300
                boxes += [[cx, cy, s, s], [cx, cy, (s * large / 300) ** .5, (s * large / 300) ** .5]]
                for a in ratios:
                    boxes += [[cx, cy, s * a ** .5, s / a ** .5], [cx, cy, s / a ** .5, s * a ** .5]]
    return torch.tensor(boxes).clamp_(0, 1)


def ms(function):
    start = time.perf_counter()
    result = function()
    return (time.perf_counter() - start) * 1e3, result


def bench_compute(rows, tensors, threads):
    torch.set_num_threads(threads)
    priors = ssd300()
    matcher, variances = {"positive_iou": .5}, torch.tensor([.1, .1, .2, .2])
    boxes = torch.tensor(tensors["boxes"]).view(N, PER_IMAGE, 4)
    labels = torch.tensor(tensors["labels"]).view(N, PER_IMAGE)
    copies = [(torch.tensor(tensors["loc"]), torch.tensor(tensors["conf"])) for _ in range(COPIES)]

    def matched():
        targets = [match(matcher, boxes[i], labels[i], priors, variances) for i in range(N)]
        return torch.stack([t[2] for t in targets]), torch.stack([t[0] + 1 for t in targets])

    ours, whole, loss_only, read = {}, [], [], []
    levels = ["baseline", "avx2"] if "avx2" in open("/proc/cpuinfo").read() else ["baseline"]
    with torch.no_grad():
        for r in range(ROUNDS + 1):     # the first is a warm-up
            for level in levels:
                out = subprocess.run(["build/release/bench/compute", BATCH, level, str(threads), "9"], check=True,
                                     stdout=subprocess.PIPE).stdout
                answer = json.loads(out)
                if r:
                    ours.setdefault(level, []).append(answer["median_ms"])
                    read.append(answer["read_once_ms"])
            for loc, conf in copies:
                t_match, targets = ms(matched)
                t_loss, total = ms(lambda: sum(multibox(loc, conf, *targets)[:2]))
                if r:
                    whole.append(t_match + t_loss)
                    loss_only.append(t_loss)
    assert abs(total.item() - answer["total"]) < 1e-5 * answer["total"], (total.item(), answer["total"])
    peer = f"PyTorch {torch.__version__} eager, {threads} threads"
    for level in levels:
        mine = statistics.median(ours[level])
        best = level == levels[-1]
        rows.append(("compute: match + loss, " + level, mine, peer, statistics.median(whole),
                     statistics.median(whole) / mine, ">= 15" if best else ""))
        rows.append(("compute: match + loss, " + level, mine, peer + ", loss without matching",
                     statistics.median(loss_only), statistics.median(loss_only) / mine, ""))
    rows.append(("compute: match + loss, " + levels[-1], mine, "reading the body once, 1 thread", min(read),
                 mine / min(read), ""))


# ---- over the wire -------------------------------------------------------------------------------------------------

class Daemon:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        host, port = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline()).groups()
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, head, body):
        """One request on the kept-alive connection; milliseconds from the first byte sent to the last received."""
        start = time.perf_counter()
        self.socket.sendall(head)
        self.socket.sendall(body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        top, rest = answer.split(b"\r\n\r\n", 1)
        left = int(re.search(rb"(?i)content-length: (\d+)", top).group(1)) - len(rest)
        while left > 0:
            left -= len(self.socket.recv(left))
        assert b" 200 " in top.split(b"\r\n", 1)[0], top + rest
        return (time.perf_counter() - start) * 1e3

    def stop(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()


def bench_wire(rows):
    with open(BATCH, "rb") as f:
        body = f.read()
    head = (f"POST /v1/loss HTTP/1.1\r\nHost: bench\r\nContent-Type: application/vnd.safetensors\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    ours = Daemon(["build/release/lossd", "--listen", "127.0.0.1:0", "--log-level", "error"])
    peer = Daemon(["build/release/bench/discard"])
    a, b = [], []
    for i in range(PAIRS + 3):
        x, y = ours.post(head, body), peer.post(head, body)
        if i >= 3:
            a.append(x)
            b.append(y)
    ours.stop()
    peer.stop()
    ratios = sorted(x / y for x, y in zip(a, b))
    rows.append((f"end to end, {len(body) / 1e6:.1f} MB safetensors", statistics.median(a),
                 "the same libmicrohttpd discarding it", statistics.median(b), statistics.median(ratios), "<= 2.5"))
    print(f"end to end: {PAIRS} interleaved pairs, ratio quartiles {ratios[PAIRS // 4]:.2f} .. "
          f"{ratios[3 * PAIRS // 4]:.2f}\n")


def main():
    threads = len(os.sched_getaffinity(0))
    print(f"SSD300, batch {N}, {C} classes, float32, {PER_IMAGE} objects an image; {threads} cores\n")
    tensors, rows = make_batch(), []
    bench_compute(rows, tensors, threads)
    bench_wire(rows)
    print(f"{'what':38} {'ours ms':>8}  {'peer':58} {'peer ms':>8} {'ratio':>6}  goal")
    with open("build/bench.jsonl", "w") as f:
        for what, mine, peer, theirs, ratio, goal in rows:
            print(f"{what:38} {mine:8.2f}  {peer:58} {theirs:8.2f} {ratio:6.2f}  {goal}")
            f.write(json.dumps({"what": what, "ours_ms": mine, "peer": peer, "peer_ms": theirs, "ratio": ratio,
                                "goal": goal}) + "\n")


if __name__ == "__main__":
    main()
