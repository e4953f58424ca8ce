# SPDX-License-Identifier: Apache-2.0
"""Twice of what the daemon can do: what it gets done of that, and how it refuses the rest."""
import threading
import time

import bodies
from bodies import SAFETENSORS
from computing import PLACE
from wire import Connection, Lossd, head_of, run_json

SECONDS, CONNECTIONS, HEALTH_GAP = 30, 192, 0.02
CALIBRATE = 8   # seconds


def generate(service, path, seconds, rate, connections):
    return run_json("build/release/bench/overload", str(service.port), path, str(seconds), f"{rate:.2f}", str(connections))


class Health(threading.Thread):
    """Asks /healthz again and again, as a probe does; milliseconds."""

    def __init__(self, service):
        super().__init__()
        self.service, self.over, self.ms = service, threading.Event(), []

    def run(self):
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


def percentile(values, share):
    values = sorted(values)
    return values[int((len(values) - 1) * share)]


def overload(table, what, request, seconds=SECONDS, goal=True):
    """`seconds` at twice the capacity, which is measured before and after; arrivals wait for nobody."""
    at = lambda figure: figure if goal else None
    path = f"{PLACE}/overload.http"
    with open(path, "wb") as f:
        f.write(request)
    with Lossd("--connection-limit", "512") as ours:
        generate(ours, path, 1, 0, 32)   # to warm up
        before = generate(ours, path, CALIBRATE, 0, 32)
        used = ours.processor()
        with Health(ours) as health:
            got = generate(ours, path, seconds, 2 * before["good_per_s"], CONNECTIONS)
        used = (ours.processor() - used) / got["seconds"]
        after = generate(ours, path, CALIBRATE, 0, 32)
        peak = ours.peak_rss()
    capacity = (before["good_per_s"] + after["good_per_s"]) / 2
    drift = after["good_per_s"] / before["good_per_s"]
    table.add(f"overload: {what}, twice the capacity for {seconds} s: answered 200", "req/s", got["good_per_s"],
              f"the capacity, before and after ({drift:.2f} of before)", capacity, [got["good_per_s"] / capacity],
              least=at(0.9), p50_ms=got["good_p50_ms"], p99_ms=got["good_p99_ms"], offered=got["offered"],
              generator_processor=got["processor"], generator_late_ms=got["late_ms"], daemon_processor=used)
    refused = got["offered"] - got["good"]
    table.add(f"overload: {what}: 503 with Retry-After within 50 ms", "", got["busy_promptly"],
              f"all that got no 200 (p95 {got['busy_p95_ms']:.1f} ms; {got['other'] + got['broken']} something else)", refused,
              [got["busy_promptly"] / max(refused, 1)], least=at(0.95), p50_ms=got["busy_p50_ms"], p99_ms=got["busy_p99_ms"])
    table.add(f"overload: {what}: p99 of /healthz meanwhile", "ms", percentile(health.ms, .99), "its goal", 50,
              [percentile(health.ms, .99) / 50], most=at(1))
    table.add(f"overload: {what}: processor of the generator", "cores", got["processor"], "of the daemon", used,
              [got["processor"] / used], late_ms=got["late_ms"], peak_mib=peak / 2**20)


def bench_overload(table, with_peers):
    match = bodies.safetensors(bodies.objects(4, 200, 20))
    overload(table, "/v1/match, 4 images of 200 objects", head_of("/v1/match?priors=ssd300", len(match), SAFETENSORS) + match)
    image = bodies.safetensors({**bodies.objects(1, 10, 20), **bodies.predictions(1, 8732, 21)})
    head = head_of("/v1/loss", len(image), SAFETENSORS)
    # Receiving is most of its work, and what is refused is received too: no goal can be met.
    overload(table, "1 image, 0.9 MB", head + image, goal=False)
