# SPDX-License-Identifier: Apache-2.0
"""Training on the daemon's gradients is training: the same losses, step by step, as with the loss computed by PyTorch."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py")


class Training(lossd.Case):
    def train(self, criterion, priors):
        done = subprocess.run(["/usr/bin/python3", SCRIPT, criterion, priors,
                               "http://127.0.0.1:%d" % self.daemon.port], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        losses = json.loads(done.stdout)
        local, remote = losses["local"], losses["remote"]
        self.assertEqual((len(local), len(remote)), (20, 20))
        for step, (a, b) in enumerate(zip(local, remote)):
            self.assertLessEqual(abs(a - b), 1e-5 * abs(a), "step %d: %r here, %r by the daemon" % (step, a, b))
        self.assertLess(local[-1], .8 * local[0], "the model has not learned anything: %r" % local)

    def test_ssd_multibox(self):
        self.train("ssd-multibox", "ssd300-efficientnet")

    def test_ssd_multibox_l1(self):
        self.train("ssd-multibox-l1", "ssd300-efficientnet")

    def test_retinanet_focal(self):
        self.train("retinanet-focal", "grid-128x128")


if __name__ == "__main__":
    unittest.main()
