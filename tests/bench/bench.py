#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what lossd costs, as ratios to named peers measured in the same run.

Ours and the peer take turns; medians are quoted, with the quartiles of the ratio, because machines drift. Inputs rotate
beyond the last-level cache. Prints a table and writes build/bench.jsonl; exits 0 whatever the figures.

Usage: bench.py [--peers] [PART ...]      --peers: the newer PyTorch and FastAPI of `make bench-peers` as well
"""
import argparse
import os
import sys
import time

sys.dont_write_bytecode = True
from computing import bench_compute, bench_growth, bench_json, threads
from gpu import bench_gpu
from overload import bench_overload
from serving import bench_scale, bench_small, bench_wire
from table import Table

PARTS = {"compute": bench_compute, "gpu": bench_gpu, "growth": bench_growth, "wire": bench_wire, "json": bench_json,
         "small": bench_small, "scale": bench_scale, "overload": bench_overload}


def load():
    with open("/proc/loadavg") as f:
        return f.read().split()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("part", nargs="*", help=" ".join(PARTS))
    arguments = parser.parse_args()
    unknown = set(arguments.part) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {' '.join(sorted(unknown))}; there are {' '.join(PARTS)}")
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    os.makedirs("build/bench", exist_ok=True)
    table, start, busy = Table(), time.monotonic(), load()
    try:
        for name in arguments.part or PARTS:
            print(f"{name} ({time.monotonic() - start:.0f} s)", flush=True)
            PARTS[name](table, arguments.peers)
    finally:                       # what was measured before something broke
        table.write("build/bench.jsonl")
        print(f"\n{threads()} cores; {time.monotonic() - start:.0f} s; load average before {busy}, after {load()}")
        table.print()


if __name__ == "__main__":
    main()
