#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kill the daemon at a random moment while clients record, start it again, and compare: TRIALS=100 kill.py

The clients keep the ledger: of every step of every run what they sent, in order, and what of it was acknowledged. A
step belongs to one client, so of what it sent last either the acknowledged one is there, or one that it sent after that
and never heard of. What is compared is what the restarted daemon tells; the files, too, must pass SQLite's own check.
"""
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lossd  # noqa: E402
from recorded import FILE, all_runs, all_steps, body, numbers, row, target  # noqa: E402

CLIENTS = 8
RUNS = 3
VALUES = range(2, 66)   # what is sent is one of these batches


class Lost(AssertionError):
    """The store does not hold what was acknowledged."""


class Ledger:
    """{(run, step): [the value that was acknowledged last or None, values sent after it]}"""

    def __init__(self):
        self.entries, self.acknowledged = {}, 0

    def sent(self, run, step, value):
        self.entries.setdefault((run, step), [None, []])[1].append(value)

    def heard(self, run, step, value):
        self.entries[run, step] = [value, []]
        self.acknowledged += 1

    def add(self, other):
        self.entries.update(other.entries)
        self.acknowledged += other.acknowledged

    def check(self, stored, rows):
        """`stored`: {run: its steps}. Every acknowledged step once, with its numbers; others whole or absent."""
        seen = set()
        for run, steps in stored.items():
            order = [s["step"] for s in steps]
            if order != sorted(set(order)):
                raise Lost("%s: steps are not ascending: %r" % (run, order[:20]))
            for s in steps:
                at = (run, s["step"])
                if at not in self.entries:
                    raise Lost("%s: nobody sent step %d" % at)
                value, after = self.entries[at]
                possible = ([] if value is None else [value]) + after
                if numbers(s) not in [rows[v] for v in possible]:
                    raise Lost("%s: step %d is none of what was sent: %r" % (run, s["step"], s))
                seen.add(at)
        lost = [at for at, (value, _) in self.entries.items() if value is not None and at not in seen]
        if lost:
            raise Lost("%d acknowledged steps are not there, such as %s at %d" % (len(lost), *lost[0]))


def known_rows(daemon):
    """What is to be recorded of each batch."""
    with daemon.connect() as connection:
        return {v: row(connection.request("POST", "/v1/loss", body(v)).json()) for v in VALUES}


def client(port, runs, number, rng, ledger, stop):
    """Record, now and then a step again, until the daemon is gone."""
    step = number
    try:
        with lossd.Connection(port) as connection:
            while not stop.is_set():
                again = step > number and rng.random() < 0.2
                run, at = rng.choice(runs), step if not again else number + CLIENTS * rng.randrange(step // CLIENTS)
                value = rng.choice(VALUES)
                ledger.sent(run, at, value)
                answer = connection.request("POST", target(run, at), body(value))
                if answer.status != 200:
                    raise Lost("refused: %r" % answer)
                ledger.heard(run, at, value)
                step += 0 if again else CLIENTS
    except (OSError, lossd.Closed):
        pass


def load(daemon, runs, seconds, rng, end):
    """Clients record until `end` is called after so many seconds; the ledger."""
    ledgers, stop, failures = [Ledger() for _ in range(CLIENTS)], threading.Event(), []

    def work(i, seed):
        try:
            client(daemon.port, runs, i, random.Random(seed), ledgers[i], stop)
        except BaseException as failure:  # noqa: B902 - raised below
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i, rng.random())) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    end()
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    whole = Ledger()
    for i, ledger in enumerate(ledgers):
        if set(whole.entries) & set(ledger.entries):
            raise ValueError("two clients with one step")
        whole.add(ledger)
    return whole


def check_files(data):
    """SQLite's own check, on a copy: to open them is to repair them."""
    with tempfile.TemporaryDirectory() as place:
        for name in os.listdir(data):
            if not name.endswith("-shm"):   # which dies with the machine
                shutil.copy(os.path.join(data, name), place)
        db = sqlite3.connect(os.path.join(place, FILE))
        said = db.execute("PRAGMA integrity_check").fetchall()
        db.close()
        if said != [("ok",)]:
            raise Lost("integrity_check: %r" % said[:5])


def kill_at_start(data, rng):
    """One that is killed before it is ready, or just after."""
    process = subprocess.Popen([lossd.BINARY, "--listen", "127.0.0.1:0", "--data-dir", data], env=lossd.environment(),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0, 0.03))
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise Lost("it ended by itself with %d" % process.returncode)


class Trials:
    """Kill after kill on one data directory."""

    def __init__(self, seed, *flags):
        self.rng, self.flags = random.Random(seed), flags
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")
        self.data = os.path.join(self.home.name, "data")
        self.ledger, self.n, self.slowest, self.unknown = Ledger(), 0, 0.0, 0
        self.daemon = self.start()
        self.rows = known_rows(self.daemon)

    def start(self):
        begin = time.monotonic()
        daemon = lossd.Daemon("--data-dir", self.data, *self.flags)
        if daemon.get("/readyz").status != 200:
            raise Lost("not ready after a start")
        self.slowest = max(self.slowest, time.monotonic() - begin)
        return daemon

    def stored(self, runs):
        """What the daemon tells of these runs, which agrees with itself."""
        out = {}
        for r in all_runs(self.daemon):
            if r["name"] not in runs:
                continue
            steps = out[r["name"]] = all_steps(self.daemon, r["name"])
            told = (r["steps"], r["first_step"], r["last_step"], r["last_loss"])
            if told != (len(steps), steps[0]["step"], steps[-1]["step"], steps[-1]["total"]):
                raise Lost("%r is not what its steps say" % r)
        return out

    def one(self, seconds=None, spoil=None):
        """A trial, of a random length. `spoil` is called with the dead daemon's directory."""
        self.n += 1
        runs = ["t%d-%d" % (self.n, i) for i in range(RUNS)]
        ledger = load(self.daemon, runs, seconds or self.rng.uniform(0.02, 0.5), self.rng, self.daemon.kill)
        check_files(self.data)
        if spoil:
            spoil(self.data)
        for _ in range(self.rng.choice((0, 0, 1, 3))):
            kill_at_start(self.data, self.rng)
        self.daemon = self.start()
        ledger.check(self.stored(runs), self.rows)
        self.unknown += sum(len(after) for _, after in ledger.entries.values())
        self.ledger.add(ledger)

    def end(self):
        """Everything that all trials left, and an orderly end."""
        self.ledger.check(self.stored({run for run, _ in self.ledger.entries}), self.rows)
        with self.daemon:
            pass
        check_files(self.data)
        self.home.cleanup()

    def __str__(self):
        return ("%d kills: %d records acknowledged, all %d steps there once with their numbers; %d in doubt, whole or "
                "absent; slowest start %.2f s" % (self.n, self.ledger.acknowledged, len(
                    [1 for value, _ in self.ledger.entries.values() if value is not None]), self.unknown, self.slowest))


def main():
    seed = int(os.environ.get("SEED") or time.time())
    trials = Trials(seed, *sys.argv[1:])
    try:
        for i in range(int(os.environ.get("TRIALS") or 100)):
            trials.one()
            if sys.stdout.isatty():
                print("\r%d " % (i + 1), end="", flush=True)
        trials.end()
    except Lost as failure:
        print("kill: seed %d, trial %d: %s\nthe files are in %s" % (seed, trials.n, failure, trials.data))
        trials.home._finalizer.detach()
        trials.daemon.process.kill()
        return 1
    print("kill: seed %d: %s" % (seed, trials))
    return 0


if __name__ == "__main__":
    sys.exit(main())
