# SPDX-License-Identifier: Apache-2.0
"""Predictions that are scored as they arrive: the same bits as those that are kept, in a fraction of their memory."""
import array
import json
import math
import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

ALL = "?include=images,classes,levels,objects"
KEPT = ("loc", "conf", "boxes", "labels", "counts")  # annotations at the end: nothing can be computed before them


def raw(dtype, values):
    """Float32 values as `dtype`; half the bits of a bfloat16's are dropped."""
    if dtype == "BF16":
        return array.array("H", array.array("H", values.tobytes())[1::2]).tobytes()
    return values.tobytes() if dtype == "F32" else lossd.pack(dtype, values)


def tensors_of(batch, dtype, extra=()):
    """The batch's tensors with predictions of `dtype`, by name."""
    n, p, objects = batch.n, batch.p, len(batch.labels)
    made = [("counts", "I64", [n], lossd.pack("I64", batch.counts)),
            ("labels", "I64", [objects], lossd.pack("I64", batch.labels)),
            ("boxes", "F32", [objects, 4], batch.boxes.tobytes()),
            ("conf", dtype, [n, p, batch.c], raw(dtype, batch.conf)), ("loc", dtype, [n, p, 4], raw(dtype, batch.loc))]
    return {t[0]: t for t in (*made, *extra)}


def softmax(row):
    top = [math.exp(x) for x in row]
    return [x / sum(top) for x in top]


def file_of(made, order):
    rest = [name for name in made if name not in order]
    return lossd.save([made[name] for name in rest + list(order)])


class Stream(lossd.Case):
    # too little for what is kept of these bodies: two and a half times as much
    FLAGS = ("--memory-limit", "5M", "--workers", "2")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.roomy = lossd.Daemon("--workers", "1")

    @classmethod
    def tearDownClass(cls):
        cls.roomy.stop()
        super().tearDownClass()

    def in_pieces(self, daemon, target, body, seed):
        """Sent in pieces that end anywhere."""
        cuts, r = [0], random.Random(seed)
        while cuts[-1] < len(body):
            cuts.append(min(len(body), cuts[-1] + r.choice((1, 7, 83, 5000, 131072, 400000))))
        with daemon.connect() as connection:
            connection.start("POST", target, {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
            for begin, end in zip(cuts, cuts[1:]):
                connection.send(body[begin:end])
            return connection.answer()

    def chunked(self, target, body):
        with self.roomy.connect() as connection:
            connection.start("POST", target, {"Content-Type": lossd.SAFETENSORS, "Transfer-Encoding": "chunked"})
            connection.send(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
            return connection.answer()

    def check(self, made, query, seed):
        target = "/v1/loss" + ALL + query
        streamed, kept = file_of(made, ("conf", "loc")), file_of(made, KEPT)
        self.assertGreater(len(streamed), 2 << 20)
        self.problem(self.daemon.post(target, kept, lossd.SAFETENSORS), 413, "body_too_large", "memory-limit")
        want = self.roomy.post(target, kept, lossd.SAFETENSORS)
        self.good(want)
        want = lossd.stable(want.body)
        for answer in (self.daemon.post(target, streamed, lossd.SAFETENSORS),
                       self.daemon.post(target, file_of(made, ("loc", "conf")), lossd.SAFETENSORS),
                       self.in_pieces(self.daemon, target, streamed, seed), self.chunked(target, streamed)):
            self.good(answer)
            self.assertEqual(lossd.stable(answer.body), want)

    def test_presets(self):
        batch = lossd.random_batch(5, 3, 8732, 21, objects=7)
        for i, preset in enumerate(("ssd-multibox", "ssd-multibox-l1", "retinanet-focal")):
            with self.subTest(preset):
                self.check(tensors_of(batch, "F32"), "&priors=ssd300&criterion=" + preset, i)

    def test_mining_across_the_batch(self):
        batch = lossd.random_batch(6, 3, 8732, 21, objects=7)
        batch.conf = lossd.floats([p for i in range(0, len(batch.conf), 21) for p in softmax(batch.conf[i:i + 21])])
        self.check(tensors_of(batch, "F32"), "&priors=ssd300&criterion=ssd-keras", 1)

    def test_types(self):
        for i, (dtype, n, c) in enumerate((("F16", 6, 21), ("BF16", 6, 21), ("F64", 2, 18), ("F64", 6, 2))):
            with self.subTest(dtype, c=c):
                batch = lossd.random_batch(7 + i, n, 8732, c, objects=4)
                self.check(tensors_of(batch, dtype), "", i)

    def test_ignored_objects_and_a_band(self):
        batch = lossd.random_batch(8, 3, 8732, 21, objects=9)
        ignore = bytes(i % 3 == 0 for i in range(len(batch.labels)))
        made = tensors_of(batch, "F32", [("ignore", "BOOL", [len(batch.labels)], ignore)])
        self.check(made, "&criterion=%7B%22matcher%22:%7B%22negative_iou%22:0.3%7D%7D", 3)

    def test_priors_in_the_body(self):
        """More annotations than the first buffer holds, and priors that are no multiple of anything."""
        batch = lossd.random_batch(9, 2, 7001, 40, objects=5)
        priors = ("priors", "F32", [7001, 4], batch.priors.tobytes())
        self.check(tensors_of(batch, "F32", [priors]), "", 4)

    def test_many_columns(self):
        """Rows longer than any piece of the body."""
        batch = lossd.random_batch(10, 1, 40, 16000, objects=3)
        priors = ("priors", "F32", [40, 4], batch.priors.tobytes())
        made = tensors_of(batch, "F32", [priors])
        target = "/v1/loss" + ALL
        want = lossd.stable(self.roomy.post(target, file_of(made, KEPT), lossd.SAFETENSORS).body)
        for seed in range(3):
            got = self.in_pieces(self.roomy, target, file_of(made, ("conf", "loc")), seed)
            self.good(got)
            self.assertEqual(lossd.stable(got.body), want)

    def test_what_is_wrong_is_found(self):
        made = tensors_of(lossd.random_batch(11, 3, 8732, 21), "F32")
        for name, width, image, prior in (("conf", 21, 0, 0), ("conf", 21, 1, 4096), ("loc", 4, 2, 8731)):
            with self.subTest(name, image=image):
                data = bytearray(made[name][3])
                at = 4 * ((image * 8732 + prior) * width + width - 1)
                data[at:at + 4] = lossd.pack("F32", [float("inf")])
                bad = {**made, name: made[name][:3] + (bytes(data),)}
                got = self.daemon.post("/v1/loss", file_of(bad, ("conf", "loc")), lossd.SAFETENSORS)
                self.problem(got, 422, "prediction_not_finite", pointer=r"^%s\[%d,%d\]$" % (name, image, prior))
        self.good(self.daemon.post("/v1/loss", file_of(made, ("conf", "loc")), lossd.SAFETENSORS))

    def test_what_cannot_be_streamed(self):
        """Gradients need the predictions again: with little memory that is said, with enough it is done."""
        body = file_of(tensors_of(lossd.random_batch(12, 3, 8732, 21), "F32"), ("conf", "loc"))
        self.problem(self.daemon.post("/v1/loss?include=gradients", body, lossd.SAFETENSORS), 413, "body_too_large")
        self.good(self.roomy.post("/v1/loss?include=gradients", body, lossd.SAFETENSORS))

    def test_clients_that_vanish(self):
        body = file_of(tensors_of(lossd.random_batch(13, 3, 8732, 21), "F32"), ("conf", "loc"))
        for share in (.1, .5, .9, .999):
            with self.daemon.connect() as connection:
                connection.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)})
                connection.send(body[:int(len(body) * share)])
                connection.reset()
        self.assertTrue(lossd.until(lambda: self.daemon.post("/v1/loss", body, lossd.SAFETENSORS).status == 200))

    def test_many_at_once(self):
        body = file_of(tensors_of(lossd.random_batch(14, 3, 8732, 21), "F32"), ("conf", "loc"))
        want = lossd.stable(self.daemon.post("/v1/loss", body, lossd.SAFETENSORS).body)
        with lossd.Daemon("--memory-limit", "80M", "--workers", "2", "--queue-limit", "64") as daemon:
            for answer in lossd.together([lambda: daemon.post("/v1/loss", body, lossd.SAFETENSORS)] * 24):
                self.good(answer)
                self.assertEqual(lossd.stable(answer.body), want)

    def test_units_that_nobody_needs_any_more(self):
        """What the only worker is too busy for, the receiving threads do themselves; what it then finds of it is no
        other request's."""
        made = tensors_of(lossd.random_batch(15, 6, 8732, 3), "F32")
        small = tensors_of(lossd.random_batch(16, 3, 8732, 21), "F32")
        bodies = [file_of(m, order) for m in (made, small) for order in (("conf", "loc"), ("loc", "conf"), KEPT)]
        busy = {"criterion": {"matcher": {"force": "greedy"}},
                "annotations": [{"boxes": [[.4, .4, .6, .6]] * 150, "labels": [0] * 150}]}
        with lossd.Daemon("--memory-limit", "24M", "--workers", "1", "--http-threads", "4") as daemon:
            want = [lossd.stable(self.roomy.post("/v1/loss", body, lossd.SAFETENSORS).body) for body in bodies]

            def post(seed):
                r = random.Random(seed)
                for _ in range(12):
                    i = r.randrange(len(bodies))
                    answer = daemon.post("/v1/loss", bodies[i], lossd.SAFETENSORS)
                    self.assertIn(answer.status, (200, 503), answer)
                    if answer.status == 200:
                        self.assertEqual(lossd.stable(answer.body), want[i])

            def occupy():
                for _ in range(4):
                    answer = daemon.post("/v1/match", json.dumps(busy).encode(), lossd.JSON)
                    self.assertIn(answer.status, (200, 503), answer)  # memory is as short for it as for the others

            lossd.together([lambda i=i: post(i) for i in range(10)] + [occupy])

    def test_greedy_matching_is_for_workers(self):
        """However long it takes, the threads that receive go on."""
        n = 400
        batch = lossd.random_batch(17, 4, n, 60, objects=1)
        batch.priors = lossd.floats([.5, .5, .2, .2] * n)
        batch.boxes = lossd.floats([.4, .4, .6, .6] * n * 4)
        batch.labels, batch.counts = [0] * n * 4, [n] * 4
        made = tensors_of(batch, "F32", [("priors", "F32", [n, 4], batch.priors.tobytes())])
        body = file_of(made, ("conf", "loc"))
        target = "/v1/loss?criterion=%7B%22matcher%22:%7B%22force%22:%22greedy%22%7D%7D"
        with lossd.Daemon("--workers", "1", "--http-threads", "2", "--request-timeout", "%d" % lossd.PATIENCE) as daemon:
            def probe():
                time.sleep(0.2)
                for _ in range(20):
                    begin = time.monotonic()
                    self.assertEqual(daemon.get("/healthz").status, 200)
                    self.assertLess(time.monotonic() - begin, 3)

            lossd.together([lambda: self.good(daemon.post(target, body, lossd.SAFETENSORS)) for _ in range(3)] + [probe])

    def test_the_last_of_the_memory(self):
        """A stream that fits without copies for workers is computed; one that never fits is told so."""
        seen = set()
        for n in range(8, 30, 3):
            body = file_of(tensors_of(lossd.random_batch(18, n, 8732, 21, objects=2), "F32"), ("conf", "loc"))
            answer = self.daemon.post("/v1/loss", body, lossd.SAFETENSORS)
            self.assertIn(answer.status, (200, 413), "%d images: %r" % (n, answer))
            seen.add(answer.status)
        self.assertEqual(seen, {200, 413})


if __name__ == "__main__":
    unittest.main()
