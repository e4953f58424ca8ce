# SPDX-License-Identifier: Apache-2.0
"""Twice of what the daemon can do: what it gets done of that, and how it refuses the rest."""
import threading
import time

import numpy as np

import bodies
from bodies import SAFETENSORS
from computing import PLACE
from wire import Connection, Lossd, head_of, run_json

SECONDS, CONNECTIONS, HEALTH_GAP = 30, 192, 0.02
CALIBRATE = 15   # seconds


def generate(service, path, seconds, rate, connections):
    return run_json("build/release/bench/overload", str(service.port), path, str(seconds), f"{rate:.2f}", str(connections))


class Health(threading.Thread):
    """Asks /healthz again and again, as a probe does; milliseconds."""

    def __init__(self, service):
        super().__init__()
        self.service, self.over, self.ms, self.failed = service, threading.Event(), [], None

    def run(self):
        try:
            self.probe()
        except Exception as error:   # told by __exit__
            self.failed = error

    def probe(self):
        head = head_of("/healthz", 0, method="GET")
        while not self.over.wait(HEALTH_GAP):
            start = time.perf_counter()
            with Connection(self.service) as c:
                c.ask(head, b"")
            self.ms.append((time.perf_counter() - start) * 1e3)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.join()
        if self.failed:
            raise self.failed


def percentile(values, share):
    values = sorted(values)
    return values[int((len(values) - 1) * share)]


def overload(table, what, request, rounds, goal=True):
    """Each round is `SECONDS` at twice the capacity, which is measured before and after it; arrivals wait for nobody."""
    at = lambda figure: figure if goal else None
    path = f"{PLACE}/overload.http"
    with open(path, "wb") as f:
        f.write(request)
    capacities, over, used, probes = [], [], [], []
    with Lossd("--connection-limit", "512") as ours:
        generate(ours, path, 1, 0, 32)   # to warm up
        with Health(ours) as health:
            capacities.append(generate(ours, path, CALIBRATE, 0, 32)["good_per_s"])
            for _ in range(rounds):
                before, looks = ours.processor(), len(health.ms)
                over.append(generate(ours, path, SECONDS, 2 * capacities[-1], CONNECTIONS))
                probes += health.ms[looks:]
                used.append((ours.processor() - before) / over[-1]["seconds"])
                capacities.append(generate(ours, path, CALIBRATE, 0, 32)["good_per_s"])
        peak = ours.peak_rss()
    of = lambda key: float(np.median([o[key] for o in over]))
    capacity = [(a + b) / 2 for a, b in zip(capacities, capacities[1:])]
    table.add(f"overload: {what}, twice the capacity for {SECONDS} s, {rounds} times: answered 200", "req/s",
              of("good_per_s"), "the capacity, before and after each", float(np.median(capacity)),
              [o["good_per_s"] / c for o, c in zip(over, capacity)], least=at(0.9), p50_ms=of("good_p50_ms"),
              p99_ms=of("good_p99_ms"), capacities=capacities, good=[o["good_per_s"] for o in over],
              generator_late_ms=of("late_ms"))
    refused = [o["offered"] - o["good"] for o in over]
    neither = sum(o["other"] + o["broken"] + o["left"] for o in over)
    table.add(f"overload: {what}: 503 with Retry-After within 50 ms", "", sum(o["busy_promptly"] for o in over),
              f"all that got no 200 (p95 {of('busy_p95_ms'):.1f} ms; {neither} something else)", sum(refused),
              [o["busy_promptly"] / max(r, 1) for o, r in zip(over, refused)], least=at(0.95), p50_ms=of("busy_p50_ms"),
              p99_ms=of("busy_p99_ms"))
    table.add(f"overload: {what}: p99 of /healthz meanwhile", "ms", percentile(probes, .99), "its goal", 50,
              [percentile(probes, .99) / 50], most=at(1))
    table.add(f"overload: {what}: processor of the generator", "cores", of("processor"), "of the daemon",
              float(np.median(used)), [o["processor"] / u for o, u in zip(over, used)], peak_mib=peak / 2**20)


def bench_overload(table, with_peers):
    match = bodies.safetensors(bodies.objects(4, 200, 20))
    overload(table, "/v1/match, 4 images of 200 objects", head_of("/v1/match?priors=ssd300", len(match), SAFETENSORS) + match,
             rounds=5)
    image = bodies.safetensors({**bodies.objects(1, 10, 20), **bodies.predictions(1, 8732, 21)})
    head = head_of("/v1/loss", len(image), SAFETENSORS)
    # Receiving is most of its work, and what is refused is received too: no goal can be met.
    overload(table, "1 image, 0.9 MB", head + image, rounds=2, goal=False)
