# SPDX-License-Identifier: Apache-2.0
"""Random criteria against the contract in numpy (differential.py says how they are compared)."""
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "differential.py")


class Differential(lossd.Case):
    FLAGS = ("--workers", "3")

    def compare(self, first, seeds, sizes):
        done = subprocess.run(["/usr/bin/python3", SCRIPT, "http://127.0.0.1:%d" % self.daemon.port, str(first), str(seeds),
                               sizes], capture_output=True, text=True, timeout=600)
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-3000:])
        compared, refused, different = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
        self.assertEqual((compared + refused, different), (seeds, 0))
        self.assertGreater(compared, 3 * seeds // 4)

    def test_small(self):
        self.compare(1, 400, "1,7,33,64,130,300")

    def test_more_than_one_block(self):
        self.compare(1000, 8, "4097,8200")


if __name__ == "__main__":
    unittest.main()
