# SPDX-License-Identifier: Apache-2.0
"""A check that never fires checks nothing: with a bug planted in the daemon (tests/support/plants.c), these tests fail."""
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run.py")
PLANTED = os.path.join(os.path.dirname(lossd.BINARY), "planted")


@unittest.skipUnless(os.access(PLANTED, os.X_OK), "%s is not built (make detectors)" % PLANTED)
class Detectors(unittest.TestCase):
    def verdict(self, plant, *names):
        """(exit code, what is said) of these tests, with a bug."""
        env = {**os.environ, "LOSSD": PLANTED, "PLANT": plant, "FAILFAST": "1"}
        done = subprocess.run([sys.executable, RUN, *names], env=env, capture_output=True, timeout=300, check=False)
        return done.returncode, (done.stdout + done.stderr).decode()

    def fires(self, plant, said, *names):
        code, text = self.verdict("", *names)
        self.assertEqual(code, 0, text[-3000:])
        code, text = self.verdict(plant, *names)
        self.assertEqual(code, 1, text[-3000:])
        self.assertRegex(text, said)

    def test_what_is_planted_is_found(self):
        lossd.together([lambda row=row: self.fires(*row) for row in (
            ("smuggle", "HTTP/1.1 200|smuggled", "Lengths.test_H07"),
            ("descriptor", "threads and descriptors", "RequestLine.test_H25"),
            ("memory", "KiB of memory", "RequestLine.test_H26"))])


if __name__ == "__main__":
    unittest.main()
