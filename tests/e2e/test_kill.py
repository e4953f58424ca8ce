# SPDX-License-Identifier: Apache-2.0
"""SIGKILL under load loses nothing that was acknowledged. `make e2e-kill` does the same a hundred times."""
import os
import sqlite3
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import kill  # noqa: E402
import lossd  # noqa: E402
from recorded import FILE, SLOW  # noqa: E402

READY_SECONDS = 10 if SLOW else 2


class Kill(unittest.TestCase):
    def trials(self, seed, n, *flags):
        trials = kill.Trials(seed, *flags)
        try:
            for _ in range(n):
                trials.one()
            trials.end()
        finally:
            trials.daemon.process.kill()
        self.assertGreater(trials.ledger.acknowledged, 20 * n, str(trials))
        self.assertLess(trials.slowest, READY_SECONDS, str(trials))

    def test_L03_disk(self):
        self.trials(1, 5)

    def test_L03_process(self):
        """What is to survive the process, and no more, does."""
        self.trials(2, 3, "--durability", "process")

    def test_L03_many_steps_are_let_go(self):
        """A kill in the middle of letting go; the ledger cannot tell, but the files and the runs themselves can."""
        trials = kill.Trials(3, "--keep-steps", "16")
        try:
            for _ in range(3):
                names = ["a", "b"]
                kill.load(trials.daemon, names, 0.2, trials.rng, trials.daemon.kill)
                kill.check_files(trials.data)
                trials.daemon = trials.start()
                for steps in trials.stored(names).values():
                    self.assertLessEqual(len(steps), 17)
            with trials.daemon:
                pass
        finally:
            trials.daemon.process.kill()


class Detector(unittest.TestCase):
    """What the checker must not miss."""

    def setUp(self):
        self.trials = kill.Trials(4)
        self.addCleanup(self.trials.daemon.process.kill)

    def lost(self, text, spoil):
        with self.assertRaisesRegex(kill.Lost, text):
            self.trials.one(0.4, spoil)
        self.trials.daemon.stop()

    def change(self, sql):
        def spoil(data):
            db = sqlite3.connect(os.path.join(data, FILE))
            with db:
                self.assertGreater(db.execute(sql).rowcount, 0)
            db.close()
        return spoil

    def test_a_lost_step(self):
        """Lost so well that the runs' own numbers agree with it."""
        def spoil(data):
            self.change("DELETE FROM step WHERE run = 1 AND step = (SELECT min(step) FROM step WHERE run = 1)")(data)
            self.change("UPDATE run SET steps = steps - 1, first_step = (SELECT min(step) FROM step WHERE run = 1) "
                        "WHERE id = 1")(data)
        self.lost("^1 acknowledged steps are not there", spoil)

    def test_a_run_that_counts_wrong(self):
        self.lost("not what its steps say", self.change("UPDATE run SET steps = steps + 1 WHERE id = 1"))

    def test_a_changed_number(self):
        self.lost("none of what was sent", self.change("UPDATE step SET loc = loc + 1 WHERE step = 0"))

    def test_a_step_that_nobody_sent(self):
        def spoil(data):
            self.change("UPDATE step SET step = 1000000000 WHERE run = 1 AND step = "
                        "(SELECT last_step FROM run WHERE id = 1)")(data)
            self.change("UPDATE run SET last_step = 1000000000 WHERE id = 1")(data)
        self.lost("nobody sent", spoil)

    def test_a_damaged_file(self):
        ledger = kill.load(self.trials.daemon, ["a"], 0.2, self.trials.rng, lambda: None)
        self.assertGreater(ledger.acknowledged, 0)
        self.assertEqual(self.trials.daemon.stop(), 0)
        kill.check_files(self.trials.data)
        with open(os.path.join(self.trials.data, FILE), "r+b") as out:
            out.seek(4096)
            out.write(os.urandom(4096))
        with self.assertRaises((kill.Lost, sqlite3.DatabaseError)):
            kill.check_files(self.trials.data)

    def test_a_ledger_with_one_record_too_many(self):
        trials = self.trials
        ledger = kill.load(trials.daemon, ["a", "b"], 0.2, trials.rng, lambda: None)
        stored = trials.stored({"a", "b"})
        ledger.check(stored, trials.rows)
        ledger.sent("a", 1 << 40, 5)   # in doubt: it may be absent
        ledger.check(stored, trials.rows)
        ledger.heard("a", 1 << 40, 5)
        with self.assertRaisesRegex(kill.Lost, "1 acknowledged steps are not there"):
            ledger.check(stored, trials.rows)
        stored["a"].append(dict(stored["a"][-1]))
        with self.assertRaisesRegex(kill.Lost, "not ascending"):
            ledger.check(stored, trials.rows)
        trials.daemon.stop()


if __name__ == "__main__":
    unittest.main()
