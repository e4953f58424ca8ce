# SPDX-License-Identifier: Apache-2.0
"""What is recorded under runs, and how it is read: for the tests of runs and of crashes.

`body(value)` is a small batch whose losses differ by value; `row(answer)` is what is to be recorded of an answer.
"""
import os
import time

import lossd

TINY = lossd.tiny().safetensors(order=("priors", *lossd.Batch.STREAM))   # loc is last
FIELDS = """total loc conf conf_positive conf_negative images objects positives negatives hard_negatives forced
unmatched_objects best_iou_mean""".split()   # besides step, time and compute_ms
CHARTED = "total loc conf positives unmatched_objects best_iou_mean".split()
FILE = "lossd-runs.sqlite3"
SLOW = os.path.basename(os.path.dirname(os.path.realpath(lossd.BINARY))) != "release"   # sanitizers


def body(value):
    """Its one positive prior's first offset: the loss of every value from 2 on is its own."""
    return TINY[:-32] + lossd.pack("F32", [value]) + TINY[-28:]


def row(answer):
    """The numbers of an answer, as they are to be recorded."""
    loss, assignment = answer["loss"], answer["assignment"]
    out = {name: loss[name] for name in ("total", "loc", "conf", "conf_positive", "conf_negative")}
    out.update({name: assignment[name] for name in FIELDS[5:-1]})
    best = assignment["best_iou"]
    out["best_iou_mean"] = best and best["mean"]
    return out


def numbers(step):
    """The same of a recorded step."""
    return {name: step[name] for name in FIELDS}


def target(run, step, more=""):
    return "/v1/loss?run=%s&step=%d%s" % (run, step, more)


def all_steps(daemon, run, limit=1000):
    """Every step, page by page."""
    rows, after = [], -1
    with daemon.connect() as connection:
        while after is not None:
            answer = connection.request("GET", "/v1/runs/%s/steps?after=%d&limit=%d" % (run, after, limit))
            if answer.status != 200:
                raise AssertionError(answer)
            page = answer.json()
            rows += page["steps"]
            after = page["next"]
            if after is not None and (len(page["steps"]) != limit or after != rows[-1]["step"]):
                raise AssertionError("a page of %d rows, next %r" % (len(page["steps"]), after))
    return rows


def all_runs(daemon, limit=1000):
    rows, after = [], ""
    while after is not None:
        page = daemon.get("/v1/runs?after=%s&limit=%d" % (after, limit)).json()
        rows += page["runs"]
        after = page["next"]
    return rows


class Case(lossd.Case):
    def record(self, run, step, data=TINY, more="", daemon=None, **headers):
        """Post, and see that what was answered is what is told."""
        daemon = daemon or self.daemon
        answer = self.good(daemon.post(target(run, step, more), data, headers=headers))
        self.assertEqual(self.step(run, step, daemon), row(answer))
        return answer

    def step(self, run, step, daemon=None):
        page = self.good((daemon or self.daemon).get("/v1/runs/%s/steps?after=%d&limit=1" % (run, step - 1)))
        self.assertEqual([s["step"] for s in page["steps"]], [step])
        return numbers(page["steps"][0])

    def describe(self, run, daemon=None):
        return self.good((daemon or self.daemon).get("/v1/runs/" + run))

    def names(self, daemon=None):
        return [r["name"] for r in all_runs(daemon or self.daemon)]

    def unknown(self, run, daemon=None):
        self.problem((daemon or self.daemon).get("/v1/runs/" + run), 404, "unknown_run")

    def fill(self, run, steps, daemon=None, values=None):
        """Record many steps by eight clients; {step: row}."""
        daemon, steps, want = daemon or self.daemon, list(steps), {}

        def client(i):
            with daemon.connect() as connection:
                for step in steps[i::8]:
                    data = body(values[step] if values else step % 50)
                    want[step] = row(self.good(connection.request("POST", target(run, step), data)))

        lossd.together([lambda i=i: client(i) for i in range(8)])
        return want

    def compute(self, daemon, seconds=1.0):
        """Losses without a run are answered at once, and the daemon is up."""
        begin = time.monotonic()
        self.good(daemon.post("/v1/loss", TINY))
        self.assertLess(time.monotonic() - begin, 5 * seconds if SLOW else seconds)
        self.healthy(daemon)
