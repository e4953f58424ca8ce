# SPDX-License-Identifier: Apache-2.0
"""The daemon over loopback: large bodies end to end, small requests, and how both scale."""
import contextlib
import json
import os
import threading
from statistics import median

import numpy as np

import bodies
from bodies import JSON, SAFETENSORS
from computing import PEERS_PYTHON, PLACE, threads
from wire import Connection, Lossd, Service, SharedObject, discard, head_of, other_control, pairs, put, run_json

FAST = ("counts", "labels", "boxes", "conf", "loc")
LOC_FIRST = ("counts", "labels", "boxes", "loc", "conf")
PREDICTIONS_FIRST = ("conf", "loc", "counts", "labels", "boxes")
DISCARD = "the same libmicrohttpd discarding it"
MB = 1e6


def ssd_batch(n_images):
    return {**bodies.objects(n_images, 10, 20), **bodies.predictions(n_images, 8732, 21)}


def fastapi():
    return Service(PEERS_PYTHON, "tests/bench/loss_service.py")


# ---- end to end ----------------------------------------------------------------------------------------------------

def end_to_end(table, ours, what, tensors, order=FAST, count=60, metadata=None, accept=None, in_chunks=False,
               tail=False, peer=None, control=None, **goal):
    """One kind of upload, in turns with `peer` (else discard with as long an answer)."""
    body = bodies.safetensors({name: tensors[name] for name in order}, metadata)
    size = len(body)
    copies = bodies.rotation(body)
    if in_chunks:
        copies = [bodies.chunked(c) for c in copies]
    head = head_of("/v1/loss", None if in_chunks else size, accept=accept)
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(Connection(ours, control))
        answer = a.ask(head, copies[0]).body
        other = peer or stack.enter_context(discard(len(answer)))
        b = stack.enter_context(Connection(other, control))
        if peer:
            owed, got = (json.loads(x)["loss"]["total"] for x in (answer, b.ask(head, copies[0]).body))
            assert abs(owed - got) <= 1e-5 * owed, (owed, got)
        x, y = pairs(count, *(lambda i, c=c: c.ask(head, copies[i % len(copies)]) for c in (a, b)))
    if peer:
        table.add(f"end to end: {what}", "ms", median(r.ms for r in x), "FastAPI + PyTorch", median(r.ms for r in y),
                  [t.ms / o.ms for o, t in zip(x, y)], pairs=count)
        return
    table.add(f"end to end: {what}, {size / MB:.1f} MB", "ms", median(r.ms for r in x), DISCARD,
              median(r.ms for r in y), [o.ms / t.ms for o, t in zip(x, y)], pairs=count, **goal)
    if tail:
        whole = median(r.ms for r in x)
        table.add(f"after the last byte: {what}", "ms", median(r.tail_ms for r in x), "the whole request", whole,
                  [r.tail_ms / r.ms for r in x], pairs=count, discarding=median(r.tail_ms for r in y))
        timing = [json.loads(r.body)["timing_ms"] for r in x]
        table.add(f"its timing_ms.compute: {what}", "ms", median(t["compute"] for t in timing), "the whole request",
                  whole, [t["compute"] / r.ms for t, r in zip(timing, x)], pairs=count)


def shared_memory(table, n_images, count=60):
    """The same batch, uploaded and lying in shared memory, in turns; the object is larger than the last-level cache."""
    batch = ssd_batch(n_images)
    body = bodies.safetensors({name: batch[name] for name in FAST})
    copies = bodies.rotation(body)
    with SharedObject(len(copies) * len(body)) as thing, Lossd("--shared-memory") as ours:
        put(ours, "/v2/systemsharedmemory/region/batches/register",
            json.dumps({"key": thing.key, "byte_size": thing.bytes}).encode(), JSON, "POST")
        asked = []
        for i in range(len(copies)):
            inputs, at = [], i * len(body)
            for name in FAST:
                tensor = batch[name]
                thing.write(at, tensor.tobytes())
                place = {"shared_memory_region": "batches", "shared_memory_offset": at,
                         "shared_memory_byte_size": tensor.nbytes}
                inputs.append({"name": name, "shape": tensor.shape, "parameters": place,
                               "datatype": {"int64": "INT64", "float32": "FP32"}[tensor.dtype.name]})
                at += tensor.nbytes
            asked.append(json.dumps({"inputs": inputs}).encode())
        with Connection(ours) as a, Connection(ours) as b:
            infer = lambda i: a.ask(head_of("/v2/models/ssd-multibox/infer", len(asked[i])), asked[i])
            upload = lambda i: b.ask(head_of("/v1/loss", len(body)), copies[i])
            losses = {o["name"]: o for o in json.loads(infer(0).body)["outputs"]}["loss"]["data"]
            assert losses == [json.loads(upload(0).body)["loss"]["total"]], losses
            x, y = pairs(count, lambda i: infer(i % len(copies)), lambda i: upload(i % len(copies)))
    table.add(f"shared memory: {n_images} images, {len(body) / MB:.1f} MB", "ms", median(r.ms for r in x),
              "uploading them", median(r.ms for r in y), [o.ms / t.ms for o, t in zip(x, y)], pairs=count)


def bench_wire(table, with_peers):
    with Lossd() as ours:
        batch = ssd_batch(32)
        end_to_end(table, ours, "32 images", batch, most=1.5, stretch=1.25, tail=True, count=100)
        control = other_control()
        if control:
            end_to_end(table, ours, f"32 images, by {control}", batch, most=1.5, stretch=1.25, count=100, control=control)
        end_to_end(table, ours, "32 images, loc before conf", batch, LOC_FIRST)
        end_to_end(table, ours, "32 images, predictions first", batch, PREDICTIONS_FIRST, tail=True)
        end_to_end(table, ours, "32 images, chunked", batch, in_chunks=True)
        end_to_end(table, ours, "32 images, gradients", batch, metadata={"include": "gradients"}, accept=SAFETENSORS)
        end_to_end(table, ours, "1 image", ssd_batch(1), count=200, tail=True)
        end_to_end(table, ours, "8 images", ssd_batch(8), count=100, tail=True)
        end_to_end(table, ours, "128 images", ssd_batch(128), count=50, tail=True)
        shared_memory(table, 32)
        shared_memory(table, 1, 200)
        if with_peers:
            with fastapi() as peer:
                end_to_end(table, ours, "1 image", ssd_batch(1), count=50, peer=peer)
                end_to_end(table, ours, "32 images", batch, count=30, peer=peer)


# ---- small requests ------------------------------------------------------------------------------------------------

def small(in_body):
    """One image, 100 priors, 21 columns, 3 objects: a body with its priors, or one that names registered ones."""
    tensors = {**bodies.objects(1, 3, 20), **bodies.predictions(1, 100, 21)}
    if in_body:
        return bodies.safetensors({"priors": bodies.boxes_at_random(100), **tensors})
    return bodies.safetensors(tensors, {"priors": "hundred"})


def wrk(service, path, connections, seconds=1):
    got = run_json("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", "tests/bench/post.lua",
                   service.url("/v1/loss"), env={"BODY": path, "BODY_TYPE": SAFETENSORS})
    assert got["failed"] == 0, got
    return got["requests"] / got["seconds"]


def throughput(table, ours, what, body, connections, least=None, peer=None, rounds=5):
    path = f"{PLACE}/small.safetensors"
    with open(path, "wb") as f:
        f.write(body)
    with contextlib.ExitStack() as stack:
        with Connection(ours) as c:
            answer = c.ask(head_of("/v1/loss", len(body)), body).body
        other = peer or stack.enter_context(discard(len(answer)))
        x, y = pairs(rounds, lambda i: wrk(ours, path, connections), lambda i: wrk(other, path, connections), 1)
    table.add(f"small: {what}, wrk -t1 -c{connections}", "req/s", median(x),
              "FastAPI + PyTorch" if peer else DISCARD, median(y), [o / t for o, t in zip(x, y)], least=least)


@contextlib.contextmanager
def uploads(service, head, copies, clients=2):
    """So many clients that upload large batches without pause."""
    stop = threading.Event()

    def client():
        with Connection(service) as c:
            for i in range(1 << 30):
                if stop.is_set():
                    return
                c.ask(head, copies[i % len(copies)])

    running = [threading.Thread(target=client) for _ in range(clients)]
    for t in running:
        t.start()
    try:
        yield
    finally:
        stop.set()
        for t in running:
            t.join()


def latency(service, seconds=2):
    return run_json("build/release/bench/latency", str(service.port), f"{PLACE}/small.http", str(seconds))


def p99(table, what, service, goal):
    body, batch = small(True), bodies.rotation(bodies.safetensors(ssd_batch(32)))
    with open(f"{PLACE}/small.http", "wb") as f:
        f.write(head_of("/v1/loss", len(body)) + body)

    def loaded(i):
        with uploads(service, head_of("/v1/loss", len(batch[0])), batch):
            return latency(service)

    rounds = pairs(3, loaded, lambda i: latency(service), 1)
    x, y = ([r["p99_us"] / 1e3 for r in each] for each in rounds)
    met = median(x) <= max(3 * median(y), 5) if goal else None
    table.add(f"p99 of one small connection while two upload 28 MB{what}", "ms", median(x), "the same connection alone",
              median(y), [a / b for a, b in zip(x, y)], goal="<= 3, or 5 ms" if goal else None, met=met,
              realtime=rounds[0][0]["realtime"])


def bench_small(table, with_peers):
    with Lossd() as ours:
        put(ours, "/v1/priors/hundred", json.dumps({"priors": bodies.boxes_at_random(100).tolist()}).encode(), JSON)
        for connections in (1, 8):
            throughput(table, ours, "priors in the body", small(True), connections, 0.8)
        throughput(table, ours, "registered priors", small(False), 8, 0.8)
        throughput(table, ours, "registered priors", small(False), 64)
        if with_peers:
            with fastapi() as peer:
                throughput(table, ours, "priors in the body", small(True), 8, peer=peer, rounds=3)
        p99(table, "", ours, True)
    with discard(1000) as peer:
        p99(table, ", discarding both", peer, False)


# ---- scale ---------------------------------------------------------------------------------------------------------

def match_on_workers(table, n_images=8):
    """`n_images` of 100 objects on 209151 priors, made before."""
    generator = json.dumps({"generator": "retinanet", "image_size": [1056, 1056]}).encode()
    options = {"criterion": "retinanet-focal", "priors": "large"}
    body = bodies.json_text(bodies.objects(n_images, 100, 80, 1056.), options)
    head = head_of("/v1/match", len(body), JSON)
    with Lossd("--workers", "1") as one, Lossd("--workers", "2") as two:
        n_priors = [json.loads(put(s, "/v1/priors/large", generator, JSON).body)["count"] for s in (one, two)][0]
        with Connection(one) as a, Connection(two) as b:
            x, y = pairs(40, lambda i: a.ask(head, body).ms, lambda i: b.ask(head, body).ms)
    table.add(f"scale: /v1/match, {n_images} images x 100 objects, {n_priors} priors", "ms", median(y),
              "the same daemon with --workers 1", median(x), [s / t for s, t in zip(x, y)], least=1.8)


def uploads_at_once(table, count=64, limit=1 << 30):
    """All start together; each connection posts one 28 MB batch."""
    copies = bodies.rotation(bodies.safetensors(ssd_batch(32)))
    head = head_of("/v1/loss", len(copies[0]))
    statuses = []
    with Lossd("--memory-limit", str(limit)) as ours:
        start = threading.Barrier(count)

        def client(i):
            with Connection(ours) as c:
                start.wait()
                statuses.append(c.upload(head, copies[i % len(copies)]))

        running = [threading.Thread(target=client, args=(i,)) for i in range(count)]
        for t in running:
            t.start()
        for t in running:
            t.join()
        peak = ours.peak_rss()
    good, busy = statuses.count(200), statuses.count(503)
    table.add(f"scale: {count} uploads of 28 MB at once, answered 200", "", good,
              f"all of them ({busy} x 503, {count - good - busy} other)", count, [good / count], least=1)
    table.add("scale: peak RSS of the daemon during these", "MiB", peak / 2**20, "--memory-limit", limit / 2**20,
              [peak / limit], most=1)


def bench_scale(table, with_peers):
    match_on_workers(table)
    uploads_at_once(table)
