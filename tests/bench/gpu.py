# SPDX-License-Identifier: Apache-2.0
"""Computing on a GPU: the kernels against the time that its memory takes to read the predictions once, the whole job
against the copies alone, and both against PyTorch on the same GPU. Without a GPU there is nothing to report."""
import json
import os
import subprocess
from statistics import median

import bodies
from computing import PEERS_PYTHON, Eager, path_of, prior_sets, write

ROUNDS = 15
PROGRAM = "build/release/bench/gpu"

# what, its file, kind and priors; a maximum for the kernels over reading once, or microseconds
JOBS = (("SSD300, 512 images, C=21", "gpu-ssd300-512", "ssd", "ssd300", {"most": 1.5}, None),
        ("RetinaNet 640x640, 16 images, 80 classes", "gpu-retinanet-16", "retinanet", "retinanet-640x640",
         {"most": 2.5}, None),
        ("SSD300, 32 images, C=21", "gpu-ssd300-32", "ssd", "ssd300", {}, 25))


def make_inputs():
    for n in (32, 512):
        write(f"gpu-ssd300-{n}", {**bodies.objects(n, 10, 20), **bodies.predictions(n, 8732, 21)})
    write("gpu-retinanet-16", {**bodies.objects(16, 10, 80, 640.), **bodies.predictions(16, 76725, 80, shift=-4)},
          {"criterion": "retinanet-focal", "priors": "retinanet-640x640"})
    for name in ("ssd300", "retinanet-640x640"):
        write(name, {"priors": prior_sets.named(name)[0]})


def against_torch(table, what, name, kind, priors, ours, peers):
    for peer, least in peers:
        answers = [peer.run(name, kind, priors) for _ in range(3)]
        if "error" in answers[-1]:
            print(f"  {what}: no row for PyTorch{peer.note}: {answers[-1]['error']}")
            continue
        assert abs(answers[-1]["total"] - ours["total"]) <= 1e-5 * abs(ours["total"]), (answers[-1], ours)
        us = median(answers[-1]["whole_ms"]) * 1e3
        table.add(f"gpu: {what}, kernels", "us", ours["kernels_us"], f"PyTorch {answers[-1]['torch']}{peer.note}", us,
                  [ms * 1e3 / ours["kernels_us"] for ms in answers[-1]["whole_ms"]], least=least)


def bench_gpu(table, with_peers):
    why = "this build has no CUDA"
    if os.path.exists(PROGRAM):
        why = subprocess.run([PROGRAM, os.devnull, "1"], capture_output=True, text=True).stderr.strip()
    if "no CUDA" in why:
        print(f"  nothing: {why}")
        return
    make_inputs()
    here = Eager("/usr/bin/python3", " eager, same GPU", device="cuda")
    peers = [(here, 20)]
    if with_peers:
        peers = [(Eager(PEERS_PYTHON, " eager, same GPU", device="cuda"), 20),
                 (Eager(PEERS_PYTHON, " torch.compile, same GPU", compiled=True, device="cuda"), 4)]
        here.close()
    for what, name, kind, priors, goal, microseconds in JOBS:
        ours = json.loads(subprocess.run([PROGRAM, path_of(name), str(ROUNDS)], capture_output=True, text=True,
                                         check=True).stdout)
        print(f"  {ours['device']}: memory copies at {ours['copy_gb_s']} GB/s; {ours['copies']} copies take turns")
        if microseconds:
            goal = {"goal": f"<= {microseconds} us", "met": ours["kernels_us"] <= microseconds}
        table.add(f"gpu: {what}, kernels", "us", ours["kernels_us"], "reading the predictions once",
                  ours["read_once_us"], [ours["kernels_us"] / ours["read_once_us"]], **goal)
        table.add(f"gpu: {what}, end to end", "us", ours["whole_us"],
                  "copying the predictions" + ("" if ours["pinned"] else " (not pinned)"), ours["copy_us"],
                  [ours["whole_us"] / ours["copy_us"]], most=1.1)
        against_torch(table, what, name, kind, priors, ours, peers)
        os.remove(path_of(name))
    for peer, _ in peers:
        peer.close()
