# SPDX-License-Identifier: Apache-2.0
"""Computing, without a wire: the library against PyTorch, and how its cost grows; the JSON reader against jansson."""
import json
import os
import subprocess
import sys
from statistics import median

import bodies
from wire import run_json

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import priors as prior_sets

PLACE = "build/bench"
PEERS_PYTHON = "build/peers/bin/python"
ROUNDS = 7
SSD, RETINANET = "ssd300-32", "retinanet-2"
# glibc's malloc told to keep what it has: eager PyTorch otherwise takes each large tensor's pages anew from the kernel.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
               "MALLOC_TOP_PAD_": str(1 << 29)}


def threads():
    return len(os.sched_getaffinity(0))


def levels():
    with open("/proc/cpuinfo") as f:
        flags = f.read().split()
    return [level for level, flag in (("avx512", "avx512_vbmi2"), ("avx2", "avx2")) if flag in flags] + ["baseline"]


def path_of(name):
    return f"{PLACE}/{name}.safetensors"


def write(name, tensors, metadata=None):
    with open(path_of(name), "wb") as f:
        f.write(bodies.safetensors(tensors, metadata))
    return path_of(name)


def compute(name, level, n_threads, repeats, *task):
    return run_json("build/release/bench/compute", path_of(name), level, str(n_threads), str(repeats), *task)


class Eager:
    """A PyTorch that stays up: a Python, an environment, compiled or not."""

    def __init__(self, python, note="", env=None, compiled=False, device="cpu"):
        self.note, self.compiled, self.device = note, compiled, device
        self.process = subprocess.Popen([python, "tests/bench/eager.py"], stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env={**os.environ, **(env or {})})

    def run(self, name, kind, priors):
        job = {"file": path_of(name), "kind": kind, "priors": path_of(priors), "threads": threads(),
               "compile": self.compiled, "device": self.device}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def against(table, what, name, kind, priors, peers, **goal):
    """`goal`: of the best level against the first peer."""
    ours, theirs, answers = {level: [] for level in levels()}, {peer: [] for peer in peers}, {}
    for peer in list(peers):
        answers[peer] = [peer.run(name, kind, priors) for _ in range(3 if peer.compiled else 1)][-1]   # to warm up
        if "error" in answers[peer]:
            print(f"  {what}: no row for PyTorch{peer.note}: {answers[peer]['error']}")
            del theirs[peer]
    for _ in range(ROUNDS):
        for level in ours:
            ours[level].append(compute(name, level, threads(), 9))
        for peer in theirs:
            theirs[peer].append(peer.run(name, kind, priors))
    for level, mine in ours.items():
        ms = median(m["median_ms"] for m in mine)
        for peer, rounds in theirs.items():
            for got in rounds:
                assert abs(got["total"] - mine[0]["total"]) <= 1e-5 * abs(mine[0]["total"]), (got, mine[0])
            label = f"PyTorch {rounds[0]['torch'].split('+')[0]}{peer.note}, {threads()} threads"
            main = level == levels()[0] and peer is peers[0]
            for part, extra in (("whole_ms", ""), ("loss_ms", ", without matching")):
                each = [median(r[part]) for r in rounds]
                if extra and not main:
                    continue
                table.add(f"compute: {what}, {level}", "ms", ms, label + extra, median(each),
                          [t / m["median_ms"] for t, m in zip(each, mine)], **(goal if main and not extra else {}))
        table.add(f"compute: {what}, {level}", "ms", ms, f"reading the body once, {threads()} threads",
                  median(m["read_once_ms"] for m in mine), [m["median_ms"] / m["read_once_ms"] for m in mine])


def bench_compute(table, with_peers):
    write(SSD, {**bodies.objects(32, 10, 20), **bodies.predictions(32, 8732, 21)})
    write(RETINANET, {**bodies.objects(2, 10, 80, 640.), **bodies.predictions(2, 76725, 80, shift=-4)},
          {"criterion": "retinanet-focal", "priors": "retinanet-640x640"})
    for name in ("ssd300", "retinanet-640x640"):
        write(name, {"priors": prior_sets.named(name)[0]})
    here, kept = Eager("/usr/bin/python3", " eager"), Eager("/usr/bin/python3", " eager, malloc keeping memory",
                                                            KEEP_MEMORY)
    newer = []
    if with_peers:
        newer = [Eager(PEERS_PYTHON, " eager"), Eager(PEERS_PYTHON, " torch.compile", compiled=True)]
    against(table, "SSD300, 32 images, C=21", SSD, "ssd", "ssd300", [here] + newer, least=20,
            stretch=30)
    against(table, "RetinaNet 640x640, 2 images, 80 classes", RETINANET, "retinanet", "retinanet-640x640",
            [here, kept] + newer, least=15)
    for peer in [here, kept] + newer:
        peer.close()


def growth_points():
    """-> dimension, of what, its values; each value's tensors, metadata, task, and what the time is divided by"""
    def loss(n, p, c, g, named=False):
        tensors = {**bodies.objects(n, g, c - 1), **bodies.predictions(n, p, c)}
        return tensors if named else {"priors": bodies.boxes_at_random(p), **tensors}
    elements = lambda n, p, c: n * p * (c + 4)
    yield ("P: priors", "loss, boxes at random, N=4 C=21 G=10", "ns/element",
           {p: lambda p=p: (loss(4, p, 21, 10), (), elements(4, p, 21)) for p in (1000, 10000, 100000, 200000)})
    yield ("C: columns", "loss, SSD300 N=8 G=10", "ns/element",
           {c: lambda c=c: (loss(8, 8732, c, 10, True), (), elements(8, 8732, c)) for c in (2, 21, 81, 200)})
    yield ("N: images", "loss, SSD300 C=21 G=10", "ns/element",
           {n: lambda n=n: (loss(n, 8732, 21, 10, True), (), elements(n, 8732, 21)) for n in (1, 8, 32, 128)})
    yield ("G: objects an image", "loss, SSD300 N=8 C=21", "ns/prior",
           {g: lambda g=g: (loss(8, 8732, 21, g, True), (), 8 * 8732) for g in (1, 10, 100, 1000)})
    yield ("G: objects an image", "match, SSD300 N=8", "ns/prior",
           {g: lambda g=g: (bodies.objects(8, g, 20), ("match",), 8 * 8732) for g in (1, 10, 100, 1000)})


def bench_growth(table, with_peers):
    """One thread, and the best of many: there is no peer here that would drift along with the machine."""
    level = levels()[0]
    for dimension, of, unit, points in growth_points():
        jobs, best = {}, {}
        for value, make in points.items():
            tensors, task, divisor = make()
            jobs[value] = write(f"growth-{value}", tensors), task, divisor
        for _ in range(2):
            for value, (_, task, divisor) in jobs.items():
                ns = compute(f"growth-{value}", level, 1, 9, *task)["min_ms"] * 1e6 / divisor
                best[value] = min(ns, best.get(value, ns))
        for path, _, _ in jobs.values():
            os.remove(path)
        table.grow(dimension, f"{of}, {level}, 1 thread", unit, list(best), list(best.values()))


def bench_json(table, with_peers):
    tensors = {**bodies.objects(8, 10, 20), **bodies.predictions(8, 8732, 21)}
    with open(f"{PLACE}/request.json", "wb") as f:
        f.write(bodies.json_text(tensors))
    rounds = [run_json("build/release/bench/json", f"{PLACE}/request.json", "3") for _ in range(5)]
    ours, theirs = [[r[name] for r in rounds] for name in ("decode_ms", "jansson_ms")]
    last = rounds[-1]
    table.add(f"JSON: a tolist() body of {last['bytes'] / 1e6:.1f} MB read", "ms", median(ours), "jansson's json_loadb",
              median(theirs), [t / o for o, t in zip(ours, theirs)], least=8)
    table.add("JSON: most heap besides the body", "MB", last["peak_bytes"] / 1e6, "the tensors in it",
              last["tensor_bytes"] / 1e6, [last["peak_bytes"] / last["tensor_bytes"]], most=1.5)
