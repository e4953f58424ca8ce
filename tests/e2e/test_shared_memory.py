# SPDX-License-Identifier: Apache-2.0
"""Tensors in shared memory: registering, computing in place, objects that are not what they were said to be."""
import json
import mmap
import os
import struct
import threading
import unittest

import lossd

NAMES = {"F32": "FP32", "I64": "INT64", "F64": "FP64", "I32": "INT32"}
INFER = "/v2/models/ssd-multibox/infer"
REGIONS = "/v2/systemsharedmemory"


class Object:
    """A POSIX shared memory object of ours, removed at the end of the `with`."""
    made = 0

    def __init__(self, size):
        Object.made += 1
        self.key = "/lossd-e2e-%d-%d" % (os.getpid(), Object.made)
        self.file = open("/dev/shm" + self.key, "x+b")
        self.resize(size)
        self.map = mmap.mmap(self.file.fileno(), size) if size < 1 << 30 else None

    def resize(self, size):
        os.ftruncate(self.file.fileno(), size)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()
        os.unlink("/dev/shm" + self.key)


class SharedCase(lossd.Case):
    FLAGS = ("--shared-memory",)

    def tearDown(self):
        self.assertEqual(self.daemon.post(REGIONS + "/unregister", b"").status, 200)
        self.assertEqual(self.status(), [])
        super().tearDown()

    def status(self, name=None):
        answer = self.daemon.get(REGIONS + ("/region/%s" % name if name else "") + "/status")
        self.assertEqual(answer.status, 200, answer)
        return answer.json()

    def register(self, name, key, size, offset=0):
        body = json.dumps({"key": key, "offset": offset, "byte_size": size}).encode()
        return self.daemon.post(REGIONS + "/region/%s/register" % name, body)

    def registered(self, name, thing, size, offset=0):
        answer = self.register(name, thing.key, size, offset)
        self.assertEqual((answer.status, answer.body), (200, b""), answer)

    def refused(self, answer, status, words):
        self.assertEqual(answer.status, status, answer)
        self.assertEqual(answer.type, lossd.JSON)
        self.assertEqual(list(answer.json()), ["error"])
        self.assertRegex(answer.json()["error"], words)

    def place(self, thing, batch, region="in", at=0, **dtypes):
        """Put a batch's tensors into the object from byte `at` on; the inputs that name them there."""
        inputs, begin = [], at
        for name, (dtype, shape, data) in batch.tensors(**dtypes).items():
            thing.map[at:at + len(data)] = bytes(data)
            inputs.append({"name": name, "shape": shape, "datatype": NAMES[dtype],
                           "parameters": {"shared_memory_region": region, "shared_memory_byte_size": len(data),
                                          "shared_memory_offset": at - begin}})
            at += len(data)
        return inputs, at

    def infer(self, inputs, outputs=None, **parameters):
        body = {"inputs": inputs, "parameters": parameters}
        if outputs:
            body["outputs"] = outputs
        return self.daemon.post(INFER, json.dumps(body).encode())

    def outputs(self, answer):
        self.assertEqual(answer.status, 200, answer)
        return {o["name"]: o for o in answer.json()["outputs"]}

    def wanted(self, batch, **options):
        answer = self.daemon.post("/v1/loss", batch.safetensors(options), None, {"Accept": lossd.SAFETENSORS})
        self.assertEqual(answer.status, 200, answer)
        return lossd.load(answer.body)[1]


class SharedMemory(SharedCase):
    def test_same_numbers(self):
        for batch in (lossd.random_batch(3, n=3, p=70, c=5), lossd.random_batch(4, n=4), lossd.tiny()):
            size = sum(len(t[2]) for t in batch.tensors().values())
            for offset in (0, 4096, 12345):  # numbers may lie anywhere
                with Object(size + offset) as thing:
                    inputs, end = self.place(thing, batch, at=offset)
                    self.registered("in", thing, end - offset, offset)
                    got, want = self.outputs(self.infer(inputs)), self.wanted(batch)
                    for name in ("loss", "loc_loss", "conf_loss", "positives"):
                        self.assertEqual(got[name]["data"], want[name][2], name)
                    self.daemon.post(REGIONS + "/region/in/unregister", b"")

    def test_many_times_while_others_come_and_go(self):
        batch = lossd.random_batch(5, n=2)
        size = sum(len(t[2]) for t in batch.tensors().values())
        want = self.wanted(batch)["loss"][2]
        with Object(size) as thing:
            inputs, _ = self.place(thing, batch)
            self.registered("in", thing, size)

            def ask(i):
                if i % 3 == 2:
                    self.registered("other%d" % i, thing, size // 2)
                    return self.daemon.post(REGIONS + "/region/other%d/unregister" % i, b"").status
                return self.outputs(self.infer(inputs))["loss"]["data"]

            for i, got in enumerate(lossd.together([lambda i=i: ask(i) for i in range(18)])):
                self.assertEqual(got, 200 if i % 3 == 2 else want)

    def test_gradients_to_shared_memory(self):
        batch = lossd.random_batch(6, n=2, p=200, c=4)
        want = self.wanted(batch, include="gradients")
        size = sum(len(t[2]) for t in batch.tensors().values())
        with Object(size) as thing, Object(1 << 16) as out:
            inputs, _ = self.place(thing, batch)
            self.registered("in", thing, size)
            self.registered("out", out, 1 << 16)
            at, outputs = 8, [{"name": "loss"}]
            for name in ("grad_index", "grad_loc", "grad_conf"):
                outputs.append({"name": name, "parameters": {"shared_memory_region": "out", "shared_memory_offset": at,
                                                             "shared_memory_byte_size": 20001}})
                at += 20001
            got = self.outputs(self.infer(inputs, outputs))
            self.assertEqual(got["loss"]["data"], want["loss"][2])
            for i, name in enumerate(("grad_index", "grad_loc", "grad_conf")):
                dtype, shape, values = want[name]
                said = got[name]["parameters"]
                begin, n = 8 + 20001 * i, len(values) * 4
                self.assertEqual((got[name]["shape"], said["shared_memory_region"], said["shared_memory_offset"],
                                  said["shared_memory_byte_size"]), (shape, "out", begin, n))
                self.assertNotIn("data", got[name])
                self.assertEqual(lossd.unpack(dtype, out.map[begin:begin + n]), values)
                self.assertEqual(out.map[begin + n:begin + n + 1], b"\0")
            outputs[1]["parameters"]["shared_memory_byte_size"] = 8
            before = out.map[:]
            self.refused(self.infer(inputs, outputs), 422, "grad_index.*byte_size is 8")
            self.assertEqual(out.map[:], before)

    def test_only_part_of_it(self):
        """Some tensors in shared memory, some as bytes, some as numbers."""
        batch = lossd.random_batch(7, n=2, p=100, c=4)
        tensors = batch.tensors()
        with Object(1 << 16) as thing:
            inputs, _ = self.place(thing, batch)
            self.registered("in", thing, 1 << 16)
            by_name = {i["name"]: i for i in inputs}
            by_name["labels"] = {"name": "labels", "shape": tensors["labels"][1], "datatype": "INT64",
                                 "data": batch.labels}
            by_name["boxes"]["parameters"] = {"binary_data_size": len(tensors["boxes"][2])}
            text = json.dumps({"inputs": list(by_name.values())}).encode()
            answer = self.daemon.post(INFER, text + bytes(tensors["boxes"][2]), None,
                                      {"Inference-Header-Content-Length": str(len(text))})
            self.assertEqual(self.outputs(answer)["loss"]["data"], self.wanted(batch)["loss"][2])

    def test_part_of_long_bodies(self):
        """Predictions that are streamed or kept when they are sent, beside others that are not."""
        batch = lossd.random_batch(4, n=4)
        tensors, want = batch.tensors(), self.wanted(batch)["loss"][2]
        with Object(4 << 20) as thing:
            inputs, _ = self.place(thing, batch)
            self.registered("in", thing, 4 << 20)
            for sent in (["conf"], ["loc"], ["conf", "loc"], ["labels", "conf"], ["counts", "labels", "boxes"]):
                made = [i for i in inputs if i["name"] not in sent]
                made += [{**i, "parameters": {"binary_data_size": len(tensors[name][2])}}
                         for name in sent for i in inputs if i["name"] == name]
                text = json.dumps({"inputs": made}).encode()
                answer = self.daemon.post(INFER, text + b"".join(bytes(tensors[name][2]) for name in sent), None,
                                          {"Inference-Header-Content-Length": str(len(text))})
                self.assertEqual(self.outputs(answer)["loss"]["data"], want, sent)

    def test_status(self):
        with Object(1000) as thing:
            self.registered("a", thing, 100)
            self.registered("b", thing, 900, 100)
            a = {"name": "a", "key": thing.key, "offset": 0, "byte_size": 100}
            b = {"name": "b", "key": thing.key, "offset": 100, "byte_size": 900}
            self.assertEqual(self.status(), [a, b])
            self.assertEqual(self.status("b"), [b])
            self.refused(self.daemon.get(REGIONS + "/region/c/status"), 404, '"c"')
            self.assertEqual(self.daemon.post(REGIONS + "/region/a/unregister", b"").status, 200)
            self.assertEqual(self.status(), [b])
            self.assertIn("system_shared_memory", self.daemon.get("/v2").json()["extensions"])

    def test_what_is_refused(self):
        with Object(1000) as thing:
            for body, status, words in (
                    (b"", 400, "empty"), (b"[]", 400, "object"), (b"{}", 400, "key"),
                    (b'{"key": 5, "byte_size": 1}', 400, "a string"),
                    (b'{"key": "/x", "byte_size": "1"}', 400, "an integer"),
                    (b'{"key": "/x", "byte_size": -1}', 400, "-1"),
                    (b'{"key": "/x", "byte_size": 1, "offset": -1}', 400, "-1"),
                    (b'{"key": "/x", "byte_size": 1, "size": 1}', 422, "size"),
                    (b'{"key": "/lossd-there-is-none", "byte_size": 1}', 422, "No such file"),
                    (b'{"key": "/../../etc/passwd", "byte_size": 1}', 422, "slash"),
                    (b'{"key": "/%s", "byte_size": 1}' % (b"x" * 3000), 422, "slash")):
                with self.subTest(body[:60]):
                    self.refused(self.daemon.post(REGIONS + "/region/a/register", body), status, words)
            self.refused(self.register("a", thing.key, 1001), 422, "1000 bytes")
            self.registered("a", thing, 1000)
            self.refused(self.register("a", thing.key, 10), 422, "already")
            for name in ("..", "a%20b", "x" * 64):
                self.refused(self.register(name, thing.key, 10), 422, "name")
            self.assertEqual([r["name"] for r in self.status()], ["a"])

    def test_too_many(self):
        """Which ends when one is unregistered, not when it is tried again."""
        with Object(1000) as thing:
            for i in range(64):
                self.registered("r%d" % i, thing, 1000)
            answer = self.register("more", thing.key, 1000)
            self.refused(answer, 409, "64 regions")
            self.assertIsNone(answer.header("Retry-After"))
            self.assertEqual(self.daemon.post(REGIONS + "/region/r5/unregister", b"").status, 200)
            self.registered("more", thing, 1000)

    def test_whatever_a_client_says_of_its_body(self):
        with Object(1000) as thing:
            body = json.dumps({"key": thing.key, "byte_size": 1000}).encode()
            for i, kind in enumerate(("text/plain; charset=utf-8", "application/x-www-form-urlencoded", "", None)):
                answer = self.daemon.post(REGIONS + "/region/r%d/register" % i, body, kind)
                self.assertEqual(answer.status, 200, answer)
            self.refused(self.daemon.request("POST", REGIONS + "/region/r9/register"), 400, "empty")
            self.refused(self.daemon.get("/%762/models/nope"), 404, "nope")

    def test_not_larger_than_a_body(self):
        batch = lossd.random_batch(3, n=3, p=70, c=5)
        size = sum(len(t[2]) for t in batch.tensors().values())
        with Object(size) as thing, lossd.Daemon("--shared-memory", "--max-body", str(size - 1)) as daemon:
            inputs, _ = self.place(thing, batch)
            body = json.dumps({"key": thing.key, "byte_size": size}).encode()
            self.assertEqual(daemon.post(REGIONS + "/region/in/register", body).status, 200)
            self.refused(daemon.post(INFER, json.dumps({"inputs": inputs}).encode()), 413, "--max-body")

    @unittest.skipUnless(os.environ.get("LOSSD_EMULATED"), "LOSSD_EMULATED is not set")
    def test_a_gpu_reads_none_of_it(self):
        """An object that is made shorter while it is copied would end CUDA for everyone."""
        batch = lossd.random_batch(3, n=2, p=8732, c=16)
        size = sum(len(t[2]) for t in batch.tensors().values())
        with Object(size) as thing, lossd.Daemon("--shared-memory", "--device-memory", "64M",
                                                 binary=os.environ["LOSSD_EMULATED"]) as daemon:
            inputs, _ = self.place(thing, batch)
            body = json.dumps({"key": thing.key, "byte_size": size}).encode()
            self.assertEqual(daemon.post(REGIONS + "/region/in/register", body).status, 200)
            for device, status in (("auto", 200), ("cpu", 200), ("cuda", 503)):
                answer = daemon.post(INFER, json.dumps({"inputs": inputs, "parameters": {"device": device}}).encode())
                self.assertEqual(answer.status, status, (device, answer))
            self.refused(answer, 503, "shared memory")

    @unittest.skipIf(os.getuid(), "another user is needed")
    def test_pipes_keep_nobody_waiting(self):
        name = "/lossd-e2e-pipe-%d" % os.getpid()
        os.mkfifo("/dev/shm" + name, 0o444)
        try:
            with lossd.Daemon("--shared-memory", "--workers", "1", "--data-dir", "/nonexistent/data", user=65532) as daemon:
                for _ in range(3):
                    answer = daemon.post(REGIONS + "/region/in/register",
                                         json.dumps({"key": name, "byte_size": 10}).encode())
                    self.refused(answer, 422, "not that of a shared memory object")
        finally:
            os.unlink("/dev/shm" + name)

    def test_large_objects_are_mapped_and_not_read(self):
        with Object(1 << 34) as thing:
            before = os.statvfs("/dev/shm").f_bavail
            self.registered("in", thing, 1 << 34)
            self.assertLess(abs(before - os.statvfs("/dev/shm").f_bavail), 1 << 14)  # no page of it was made

    def test_inputs_that_are_refused(self):
        batch = lossd.tiny()
        with Object(4096) as thing:
            inputs, end = self.place(thing, batch)
            self.registered("in", thing, end)
            conf = next(i for i in inputs if i["name"] == "conf")["parameters"]
            good = dict(conf)
            for change, status, words in (
                    ({"shared_memory_region": "other"}, 422, "other"),
                    ({"shared_memory_region": "y" * 100}, 422, "yyy"),
                    ({"shared_memory_region": ""}, 422, "region"),
                    ({"shared_memory_region": 5}, 400, "a string"),
                    ({"shared_memory_byte_size": good["shared_memory_byte_size"] - 1}, 400, "make 24 bytes"),
                    ({"shared_memory_byte_size": 0}, 400, "0 bytes"),
                    ({"shared_memory_offset": -1}, 400, "-1"),
                    ({"shared_memory_offset": end}, 422, "are not there"),
                    ({"shared_memory_offset": 2**63 - 1}, 422, "are not there"),
                    ({"shared_memory_byte_size": 2**63 - 1}, 413, "--max-body"),
                    ({"binary_data_size": 24}, 400, "may be only one"),
                    ({"shared_memory_key": "x"}, 422, "shared_memory_key")):
                with self.subTest(change):
                    conf.clear()
                    conf.update(good, **change)
                    self.refused(self.infer(inputs), status, words)
            for left_out in ("shared_memory_region", "shared_memory_byte_size"):
                conf.clear()
                conf.update(good)
                del conf[left_out]
                self.refused(self.infer(inputs), 400, "both")
            conf.clear()
            conf.update(good)
            self.outputs(self.infer(inputs))

    def test_labels_are_believed_once(self):
        """Whatever a client writes while its batch is computed, the answer is an answer and the daemon lives."""
        batch = lossd.random_batch(8, n=4, p=8732, c=4)
        size = sum(len(t[2]) for t in batch.tensors().values())
        with Object(size) as thing:
            inputs, _ = self.place(thing, batch)
            self.registered("in", thing, size)
            good, stop = thing.map[:], threading.Event()
            places = {i["name"]: i["parameters"] for i in inputs}

            def scribble():
                k = 0
                while not stop.is_set():
                    k += 1
                    for name in ("counts", "labels", "conf", "boxes"):
                        at = places[name]["shared_memory_offset"]
                        thing.map[at:at + 8] = struct.pack("<q", (-1, 7 << 40, 0x7fc000007fc00000, 3)[k % 4])
                        thing.map[at:at + 8] = good[at:at + 8]

            writer = threading.Thread(target=scribble)
            writer.start()
            try:
                for _ in range(40):
                    answer = self.infer(inputs, include="images,classes")
                    self.assertIn(answer.status, (200, 400, 422), answer)
            finally:
                stop.set()
                writer.join()
            self.assertEqual(self.outputs(self.infer(inputs))["loss"]["data"], self.wanted(batch)["loss"][2])

    def test_object_that_becomes_shorter(self):
        batch = lossd.random_batch(9, n=4, p=8732, c=21)
        size = sum(len(t[2]) for t in batch.tensors().values())
        with Object(size) as thing:
            inputs, _ = self.place(thing, batch)
            contents = thing.map[:]
            for _ in range(6):  # at whatever moment it happens
                self.registered("in", thing, size)
                answers = []
                asking = threading.Thread(target=lambda: answers.append(self.infer(inputs)))
                asking.start()
                thing.resize(8192)
                asking.join()
                if answers[0].status != 200:
                    self.refused(answers[0], 422, "shorter|has 8192 bytes")
                thing.resize(size)
                thing.map[:] = contents
                self.daemon.post(REGIONS + "/unregister", b"")
            self.registered("in", thing, size)
            thing.resize(8192)
            self.refused(self.infer(inputs), 422, "has 8192 bytes")
            thing.resize(size)
            thing.map[:] = contents


class Off(lossd.Case):
    def test_nothing_is_mapped(self):
        for method, path in (("GET", "/status"), ("GET", "/region/a/status"), ("POST", "/region/a/register"),
                             ("POST", "/region/a/unregister"), ("POST", "/unregister")):
            answer = self.daemon.request(method, REGIONS + path, b"" if method == "POST" else None)
            self.assertEqual(answer.status, 404, answer)
            self.assertRegex(answer.json()["error"], "--shared-memory")
        self.assertNotIn("system_shared_memory", self.daemon.get("/v2").json()["extensions"])
        body = {"inputs": [{"name": "loc", "shape": [1, 1, 4], "datatype": "FP32", "parameters": {
            "shared_memory_region": "a", "shared_memory_byte_size": 16}}]}
        answer = self.daemon.post(INFER, json.dumps(body).encode())
        self.assertEqual(answer.status, 422, answer)
        self.assertRegex(answer.json()["error"], "--shared-memory")

    def test_only_on_loopback(self):
        code, _, message = lossd.command("--shared-memory", "--listen", "0.0.0.0:0", "--allow-anonymous")
        self.assertEqual(code, 2)
        self.assertRegex(message, "^lossd: --shared-memory: only with a loopback --listen[^\n]*\n$")


if __name__ == "__main__":
    unittest.main()
