# SPDX-License-Identifier: Apache-2.0
"""A check that never fires checks nothing: with a bug planted in the daemon (tests/support/plants.c), these tests fail."""
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import lossd  # noqa: E402
import soak  # noqa: E402

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run.py")
KILL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support", "kill.py")
CALM = {"ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1"}
PLANTED = os.path.join(os.path.dirname(lossd.BINARY), "planted")


@unittest.skipUnless(os.access(PLANTED, os.X_OK), "%s is not built: make e2e" % PLANTED)
class Detectors(unittest.TestCase):
    def verdict(self, plant, *names):
        """(exit code, what is said) of these tests, with a bug."""
        env = {**os.environ, "LOSSD": PLANTED, "PLANT": plant, "FAILFAST": "1"}
        done = subprocess.run([sys.executable, RUN, *names], env=env, capture_output=True, timeout=300, check=False)
        return done.returncode, (done.stdout + done.stderr).decode()

    def fires(self, plant, said, *names):
        code, text = self.verdict(plant, *names)
        self.assertEqual(code, 1, text[-3000:])
        self.assertRegex(text, said)

    def test_what_is_planted_is_found(self):
        rows = (("smuggle", "HTTP/1.1 200|smuggled", "Lengths.test_H07"),
                ("descriptor", "threads and descriptors", "RequestLine.test_H25"),
                ("memory", "KiB of memory", "RequestLine.test_H26"))
        lossd.together([lambda row=row: self.fires(*row) for row in rows])
        code, text = self.verdict("", *[row[2] for row in rows])
        self.assertEqual(code, 0, text[-3000:])

    def test_the_sanitizer_finds_a_leak(self):
        if os.path.basename(os.path.dirname(os.path.realpath(lossd.BINARY))) != "test":
            self.skipTest("not built with the address sanitizer")
        self.fires("leak", "LeakSanitizer: detected memory leaks", "Stopping.test_stdout_closed")

    @unittest.skipIf(hostile.sanitizer() == b"t", "the thread sanitizer keeps notes, and more than leaks in a few seconds")
    def test_the_soak_finds_a_leak(self):
        for plant in ("leak", ""):
            with lossd.Daemon("--log-level", "error", binary=PLANTED, env={"PLANT": plant, **CALM}) as daemon:
                try:
                    soak.soak(daemon, 4.0, 0.2, wander=24 << 20)   # that of a sanitizer's heap
                    self.assertEqual(plant, "")
                except soak.Grown as found:
                    self.assertRegex(str(found), "memory grew")
                    self.assertEqual(plant, "leak")

    def test_kills_find_a_lost_acknowledgement(self):
        """Lost, or an older one in its place."""
        env = {**os.environ, "LOSSD": PLANTED, "PLANT": "loss", "TRIALS": "6", "SEED": "1"}
        done = subprocess.run([sys.executable, KILL], env=env, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"trial \d+: .*(acknowledged steps are not there|none of what was sent)")
        kept = done.stdout.rsplit(" ", 1)[1].strip()   # for whoever looks
        shutil.rmtree(os.path.dirname(kept))


if __name__ == "__main__":
    unittest.main()
