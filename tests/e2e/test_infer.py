# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol: the same numbers as /v1/loss, what its clients send, and what nobody should."""
import gzip
import json
import os
import random
import struct
import sys
import unittest
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

MODEL = "/v2/models/ssd-multibox"
INFER = MODEL + "/infer"
TINY = lossd.tiny()
SCALARS = ["loss", "loc_loss", "conf_loss"]


def encode(document, behind=b"", **options):
    """(body, headers)"""
    text = json.dumps(document, separators=(",", ":"), **options).encode()
    return text + behind, lossd.infer_headers(text) if behind else {}


class Case(lossd.Case):
    def infer(self, document, behind=b"", target=INFER, headers=None, daemon=None):
        body, fields = encode(document, behind)
        return (daemon or self.daemon).post(target, body, None, {**fields, **(headers or {})})

    def outputs(self, answer):
        self.assertEqual(answer.status, 200, answer)
        return lossd.read_inference(answer)[1]

    def same(self, got, want):
        """Bit for bit; without a list of differences, which could be long."""
        self.assertEqual(list(got), list(want))
        for name in want:
            self.assertEqual(got[name][:2], want[name][:2], name)
            if got[name][2] != want[name][2]:
                at = [x == y for x, y in zip(got[name][2], want[name][2])].index(False)
                self.fail("%s, number %d: %r, owed %r" % (name, at, got[name][2][at], want[name][2][at]))

    def wanted(self, tensors, query="", daemon=None):
        """The tensors of /v1/loss."""
        body = lossd.save([(name, *tensor) for name, tensor in tensors.items()])
        answer = (daemon or self.daemon).post("/v1/loss" + query, body, None, {"Accept": lossd.SAFETENSORS})
        self.assertEqual(answer.status, 200, answer)
        return lossd.load(answer.body)[1]

    def statistics(self, name="ssd-multibox"):
        (row,) = self.good(self.daemon.get("/v2/models/%s/stats" % name))["model_stats"]
        self.assertEqual((row["name"], row["version"]), (name, "1"))
        return row


class Numbers(Case):
    FLAGS = ("--workers", "2")

    def test_encodings(self):
        """JSON nested and flat, bytes, both; whatever stands first: the same bits."""
        for batch in (TINY, lossd.random_batch(1, n=3, p=65, c=4), lossd.bccd().pick([2]),
                      lossd.random_batch(2, n=2, p=9, c=3, objects=0)):
            tensors = batch.tensors()
            names = list(tensors)
            for include in ("gradients,targets", "dense_gradients,assignment"):
                want = self.wanted(tensors, "?include=" + include)
                parameters = {"include": include}
                for in_json, nest, order, binary in (
                        ((), False, names, True), (True, False, names, False), (True, True, names[::-1], True),
                        (("loc", "labels"), False, names, False),
                        (("conf", "boxes", "priors"), True, names[::-1], True)):
                    with self.subTest(n=batch.n, p=batch.p, in_json=in_json, order=order):
                        document, behind = lossd.inference(
                            {name: tensors[name] for name in order}, in_json, nest,
                            parameters={**parameters, "binary_data_output": binary})
                        self.same(self.outputs(self.infer(document, behind)), want)

    def test_datatypes(self):
        batch = lossd.random_batch(3, n=2, p=33, c=3)
        tensors = batch.tensors()
        for name, dtype in (("loc", "F16"), ("conf", "F64"), ("boxes", "F64"), ("labels", "I32"), ("labels", "I16"),
                            ("labels", "I8"), ("labels", "U8"), ("counts", "I32"), ("priors", "F64")):
            with self.subTest(name, dtype=dtype):
                own, shape, data = tensors[name]
                other = {**tensors, name: (dtype, shape, lossd.pack(dtype, lossd.unpack(own, data)))}
                want = self.wanted(other)
                self.same(self.outputs(self.infer(*lossd.inference(other))), want)
                if dtype != "F16":
                    self.same(self.outputs(self.infer(*lossd.inference(other, True))), want)
        ignore = ("BOOL", [len(batch.labels)], bytes(i % 2 for i in range(len(batch.labels))))
        want = self.wanted({**tensors, "ignore": ignore})
        for dtype, in_json in (("BOOL", ()), ("BOOL", True), ("U8", True), ("U8", ())):
            document, behind = lossd.inference({**tensors, "ignore": (dtype, *ignore[1:])}, in_json)
            self.same(self.outputs(self.infer(document, behind)), want)
        document, behind = lossd.inference({**tensors, "ignore": ignore}, True)
        document["inputs"][-1]["data"] = [bool(x) for x in ignore[2]]
        self.same(self.outputs(self.infer(document, behind)), want)

    def test_the_datatype_may_stand_behind_the_numbers(self):
        tensors = lossd.random_batch(4, n=2, p=33, c=3).tensors()
        document, _ = lossd.inference(tensors, True)
        want = self.wanted(tensors)
        for text in (json.dumps(document, sort_keys=True), json.dumps(document, sort_keys=True, indent=1),
                     json.dumps(document, sort_keys=True).replace('"datatype": "FP32"',
                                                                  '"d\\u0061tatype": "FP\\u0033\\u0032"')):
            self.same(self.outputs(self.daemon.post(INFER, text.encode())), want)

    def test_many_arrays_in_one_input(self):
        """The type is looked for once: otherwise this would take hours."""
        body = b'{"inputs":[{' + b",".join([b'"data":[]'] * 200000) + b',"datatype":"FP32"}]}'
        self.error(self.daemon.post(INFER, body), 400, "duplicate")

    def test_matched_already(self):
        tensors = lossd.random_batch(5, n=2, p=33, c=3).tensors()
        outputs = [{"name": "target_classes", "parameters": {"binary_data": True}}, {"name": "target_loc"}]
        made = self.outputs(self.infer(*lossd.inference(tensors, outputs=outputs)))
        targets = {name: (dtype, shape, lossd.pack(dtype, values)) for name, (dtype, shape, values) in made.items()}
        again = {**{name: tensors[name] for name in ("loc", "conf")}, **targets}
        want = self.wanted(again)
        for in_json in ((), True, ("target_loc",)):
            self.same(self.outputs(self.infer(*lossd.inference(again, in_json))), want)
        answer = self.infer(*lossd.inference(again, outputs=[{"name": "target_objects"}]))
        self.error(answer, 422, "outputs: .*no objects")

    def test_models(self):
        """Each criterion, one's own too; and the options."""
        batch = lossd.random_batch(6, n=2, p=8732, c=3)
        self.assertEqual(self.daemon.put("/v1/criteria/own.1", {"base": "ssd-multibox", "weights": {"loc": 2}}).status,
                         201)
        for name in ("ssd-multibox-l1", "retinanet-focal", "own.1"):
            want = self.wanted(batch.tensors(), "?priors=ssd300&criterion=" + name)
            for target in ("/v2/models/%s/infer", "/v2/models/%s/versions/1/infer"):
                answer = self.infer(*lossd.inference(batch.tensors(), parameters={"priors": "ssd300"}), target % name)
                self.same(self.outputs(answer), want)
                self.assertEqual(lossd.read_inference(answer)[0]["model_name"], name)
        self.assertEqual(self.statistics("own.1")["inference_count"], 2)
        self.assertEqual(self.daemon.delete("/v1/criteria/own.1").status, 204)
        self.error(self.infer(*lossd.inference(batch.tensors()), "/v2/models/own.1/infer"), 404, "own.1")
        self.error(self.daemon.get("/v2/models/own.1/stats"), 404, "own.1")

    def test_options(self):
        tensors = TINY.tensors()
        shifted = {**tensors, "labels": ("I64", [1], lossd.pack("I64", [1])),
                   "boxes": ("F32", [1, 4], lossd.pack("F32", [0, 0, 50, 100]))}
        options = {"label_base": 1, "image_size": "[100, 200]", "box_format": "xywh", "invalid_boxes": "refuse",
                   "device": "cpu", "priority": 3, "timeout": 1, "sequence_id": 7, "sequence_start": True,
                   "sequence_end": False}
        want = self.wanted(tensors)
        document, behind = lossd.inference(shifted, parameters=options)
        self.same(self.outputs(self.infer(document, behind)), want)
        answer = self.infer(*lossd.inference(shifted), INFER + "?label_base=1&image_size=[100,200]&box_format=xywh")
        self.same(self.outputs(answer), want)
        for name, value, text in (("criterion", "ssd-keras", "criterion.*path"), ("labelbase", 1, "label_base"),
                                  ("run", "a", "no step"), ("label_base", 2, "label_base"),
                                  ("image_size", [1, 2], "a string"), ("label_base", 1.5, "parameters.label_base"),
                                  ("priors", None, "null"), ("triton_x", 1, "no option"), ("include", "x", "include")):
            self.error(self.infer(*lossd.inference(tensors, parameters={name: value})), 422, text)
        self.error(self.infer(*lossd.inference(tensors), INFER + "?criterion=ssd-keras"), 422, "criterion.*path")

    def test_text_that_has_no_tensor(self):
        document, _ = lossd.read_inference(self.infer(*lossd.inference(TINY.tensors(), parameters={
            "include": "images,classes,levels,objects", "binary_data_output": True})))
        result = json.loads(document["parameters"]["result"])
        self.assertEqual(len(result["images"]), 1)
        self.assertEqual(len(result["objects"]), 1)
        document, _ = lossd.read_inference(self.infer(*lossd.inference(TINY.tensors())))
        self.assertNotIn("parameters", document)

    def test_outputs(self):
        tensors = lossd.random_batch(7, n=2, p=33, c=3).tensors()
        everything = self.wanted(tensors, "?include=gradients,targets")
        for name in everything:
            for binary, of_request in ((True, False), (False, True), (None, True), (None, None)):
                outputs = [{"name": name,
                            "parameters": {"binary_data": binary}} if binary is not None else {"name": name}]
                parameters = {} if of_request is None else {"binary_data_output": of_request}
                answer = self.infer(*lossd.inference(tensors, outputs=outputs, parameters=parameters))
                self.assertEqual(self.outputs(answer), {name: everything[name]})
                as_bytes = binary if binary is not None else bool(of_request)
                self.assertEqual(answer.type, "application/octet-stream" if as_bytes else lossd.JSON)
        for outputs, parameters, status, text in (
                ([{"name": "los"}], {}, 422, r'outputs\[0\]: .*"loss"'), ([{"name": "loss"}] * 2, {}, 400, "twice"),
                ([{}], {}, 400, "name is missing"), ([{"name": 1}], {}, 400, "a string"), ({}, {}, 400, "an array"),
                ([1], {}, 400, "an object"), ([{"name": "loss", "data": []}], {}, 422, "data"),
                ([{"name": "loss", "parameters": {"classification": 3}}], {}, 422, "classification"),
                ([{"name": "loss", "parameters": {"shared_memory_region": "r"}}], {}, 400, "both"),
                ([{"name": "loss", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}], {}, 422,
                 "shared memory"),
                ([{"name": "loss", "parameters": {"binary_data": 1}}], {}, 400, "a boolean"),
                ([{"name": "grad_index"}], {"include": "dense_gradients"}, 422, "grad_index")):
            answer = self.infer(*lossd.inference(tensors, outputs=outputs, parameters=parameters))
            self.error(answer, status, text)
        names = ["grad_loc", "loss", "positives", "grad_conf"]
        for binary in (False, True):
            answer = self.infer(*lossd.inference(tensors, outputs=[{"name": n} for n in names],
                                                 parameters={"binary_data_output": binary}))
            self.assertEqual([o["name"] for o in lossd.read_inference(answer)[0]["outputs"]], names)
        document, behind = lossd.inference(tensors, outputs=[])
        self.assertEqual(set(self.outputs(self.infer(document, behind))), {*SCALARS, "positives"})

    def test_numbers_that_are_not_finite(self):
        """0 x infinity is no loss that JSON could hold: an error, as everywhere."""
        tensors = TINY.tensors()
        dtype, shape, data = tensors["conf"]
        for value in (float("inf"), float("nan")):
            bad = {**tensors, "conf": (dtype, shape, lossd.pack("F32", [value] + lossd.unpack("F32", data)[1:]))}
            self.error(self.infer(*lossd.inference(bad)), 422, r"conf\[0,0\]")

    def test_id(self):
        for given in ("step-17", "\u00e4 \" \\ \n", "x" * 5000):
            document, _ = lossd.read_inference(self.infer(*lossd.inference(TINY.tensors(), id=given)))
            self.assertEqual(document["id"], given)
        for members in ({}, {"id": ""}):
            document, _ = lossd.read_inference(self.infer(*lossd.inference(TINY.tensors(), **members)))
            self.assertNotIn("id", document)
        self.error(self.infer(*lossd.inference(TINY.tensors(), id=3)), 400, "id: ")


class Clients(Case):
    """What they send, byte for byte but for the tensors."""

    def setUp(self):
        self.tensors = TINY.tensors()
        self.want = self.wanted(self.tensors)
        entries = ['{"name":"%s","shape":%s,"datatype":"%s","parameters":{"binary_data_size":%d}}'
                   % (n, json.dumps(s, separators=(",", ":")), lossd.DATATYPES[d], len(b))
                   for n, (d, s, b) in self.tensors.items()]
        self.inputs = '"inputs":[%s]' % ",".join(entries)
        self.behind = b"".join(t[2] for t in self.tensors.values())
        document, _ = lossd.inference(self.tensors, True)
        self.all_json = json.dumps(document, separators=(",", ":")).encode()

    def raw(self, head, body):
        answers, _ = self.daemon.raw(head.replace("\n", "\r\n").encode() + body, 0.5)
        self.assertEqual(len(answers), 1, answers)
        return answers[0]

    def test_python(self):
        text = ('{%s,"parameters":{"binary_data_output":true}}' % self.inputs).encode()
        body = text + self.behind
        answer = self.raw("POST %s HTTP/1.1\nuser-agent: python/gevent-http-client-2.0.8\n"
                          "inference-header-content-length: %d\nhost: 127.0.0.1:18961\ncontent-length: %d\n\n"
                          % (INFER, len(text), len(body)), body)
        self.same(self.outputs(answer), self.want)
        self.assertEqual(answer.type, "application/octet-stream")
        text = ('{"id":"step-17",%s,"outputs":[{"name":"loss","parameters":{"binary_data":true}}]}' % self.inputs).encode()
        coded = gzip.compress(text + self.behind)
        answer = self.raw("POST %s HTTP/1.1\nauthorization: Bearer t\ncontent-encoding: gzip\naccept-encoding: gzip\n"
                          "inference-header-content-length: %d\nhost: localhost\ncontent-length: %d\n\n"
                          % (INFER, len(text), len(coded)), coded)
        self.assertEqual(self.outputs(answer), {"loss": self.want["loss"]})
        answer = self.raw("POST %s HTTP/1.1\nuser-agent: python/gevent-http-client-2.0.8\nhost: localhost\n"
                          "content-length: %d\n\n" % (INFER, len(self.all_json)), self.all_json)
        self.same(self.outputs(answer), self.want)
        for path in ("/v2/repository/index", "/v2/repository/models/ssd-multibox/load"):
            answer = self.raw("POST %s HTTP/1.1\nuser-agent: python/gevent-http-client-2.0.8\nhost: localhost\n\n" % path, b"")
            self.assertEqual(answer.status, 200, answer)

    def test_aio(self):
        text = ("{%s}" % self.inputs).encode()
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "Python/3.11 aiohttp/3.8.4",
                   "Content-Type": "application/octet-stream"}
        answer = self.daemon.post(INFER, text + self.behind, None, {**headers, **lossd.infer_headers(text)})
        self.same(self.outputs(answer), self.want)
        self.same(self.outputs(self.daemon.post(INFER, self.all_json, None, headers)), self.want)
        self.good(self.daemon.post("/v2/repository/index", b"", None, headers))
        for path in ("/v2", MODEL, MODEL + "/config", MODEL + "/stats", "/v2/models/stats"):
            answer = self.daemon.get(path, **headers)
            self.good(answer)
            self.assertIsNone(answer.header("Content-Encoding"))

    def test_cpp(self):
        """The header is always there, and the id, which may be empty; small bodies go as a form does."""
        document = json.dumps({"id": "", **json.loads(self.all_json)}).encode()
        headers = {"User-Agent": "libcurl-agent/1.0", "Accept": "*/*", "Content-Type": lossd.JSON}
        for kind in (lossd.JSON, "application/x-www-form-urlencoded", "text/plain"):
            headers["Content-Type"] = kind
            answer = self.daemon.post(INFER, document, None, {**headers, **lossd.infer_headers(document)})
            self.same(self.outputs(answer), self.want)
        for path in ("/v2/repository/index", "/v2/repository/models/ssd-multibox/load"):
            answer = self.daemon.post(path, b'{"ready":true}', "application/x-www-form-urlencoded")
            self.assertEqual(answer.status, 200, answer)

    def test_java_and_kserve(self):
        text = ('{"id":"1",%s,"outputs":[{"name":"loss","parameters":{"binary_data":true}}]}' % self.inputs).encode()
        answer = self.daemon.post(INFER, text + self.behind, None, lossd.infer_headers(text))
        self.assertEqual(self.outputs(answer), {"loss": self.want["loss"]})
        document = {"model_name": "ssd-multibox", "model_version": "1", **json.loads(self.all_json)}
        self.same(self.outputs(self.infer(document)), self.want)

    def test_not_a_number(self):
        """python-rapidjson writes these words."""
        for word in (b"NaN", b"Infinity", b"-Infinity"):
            body = self.all_json.replace(b"0.5", word, 1)
            self.assertNotEqual(body, self.all_json)
            self.error(self.daemon.post(INFER, body), 400, "NaN")


class Refusals(Case):
    FLAGS = ("--max-body", "1M", "--max-json", "64K", "--workers", "1")

    def test_the_numbers(self):
        tensors = TINY.tensors()
        document, _ = lossd.inference(tensors, True)
        names = list(tensors)
        for name, members, status, text in (
                ("conf", {"data": [0] * 5}, 422, r"inputs\[3\].data: .*5 numbers"),
                ("conf", {"data": [0] * 7}, 422, "7 numbers"),
                ("conf", {"data": [[[0, 0], [0, 0], [0, 0]]]}, 422, "nested"),
                ("conf", {"data": [[0, 0, 0], [0, 0, 0]]}, 422, "nested"),
                ("conf", {"data": [[0, 0], [0]]}, 422, r"data\[1\]: .*1 elements"),
                ("conf", {"data": 5}, 400, "an array"),
                ("conf", {"data": {"shape": [1], "data": [1]}}, 400, "an array"),
                ("conf", {"data": [0, 0, "x", 0, 0, 0]}, 422, r"data\[2\]: .*string"),
                ("conf", {"data": [0, None, 0, 0, 0, 0]}, 422, r"data\[1\]: .*null"),
                ("labels", {"data": [0.5]}, 422, r"data\[0\]: .*integer"),
                ("labels", {"data": [300], "datatype": "UINT8"}, 422, "300 is no UINT8"),
                ("labels", {"data": [-129], "datatype": "INT8"}, 422, "-129"),
                ("labels", {"data": [1 << 31], "datatype": "INT32"}, 422, "INT32"),
                ("labels", {"data": [1 << 70]}, 400, "too big integer"),
                ("conf", {"datatype": "FP16"}, 422, "FP16 is not taken from JSON.*FP32"),
                ("conf", {"datatype": "BF16"}, 422, "BF16"),
                ("conf", {"datatype": "BYTES"}, 422, "BYTES"), ("conf", {"data": [1e39] * 6}, 422, r"conf\[0,0\]")):
            with self.subTest(name, members=members):
                made = json.loads(json.dumps(document))
                made["inputs"][names.index(name)].update(members)
                self.error(self.infer(made), status, text)
        for body in (b"", b"[]", b"{", b"x", b'{"inputs":[{"data":[', b"[" * 4000, b'{"inputs":' + b"[" * 4000,
                     b'{"inputs":[],"inputs":[]}', TINY.safetensors()):
            with self.subTest(body[:20]):
                self.error(self.daemon.post(INFER, body), 400)
        self.error(self.daemon.request("POST", INFER), 400, "empty")  # no Content-Length is none

    def test_limits(self):
        with self.daemon.connect() as connection:
            for size, headers in ((1 << 21, {"Inference-Header-Content-Length": 100}), (1 << 17, {}),
                                  (1 << 18, {"Inference-Header-Content-Length": 1 << 17})):
                self.error(connection.request("POST", INFER, b" " * size, headers), 413, r"limit is \d+")
                self.assertEqual(connection.request("GET", "/v2").status, 200)
        with self.daemon.connect() as connection:
            connection.start("POST", INFER, {"Content-Length": 1 << 40, "Expect": "100-continue"})
            answer = connection.answer()
            self.assertEqual(answer.interim, [])
            self.error(answer, 413)

    def test_paths(self):
        for method, path, status, text in (
                ("GET", "/v2/logging", 404, "nothing here"), ("POST", "/v2/trace/setting", 404, ""),
                ("GET", "/v2/models", 404, ""),
                ("GET", "/v2/cudasharedmemory/status", 404, ""),
                ("POST", "/v2/systemsharedmemory/region/r0/register", 404, ""),
                ("GET", "/v2/models/nothing", 404, "nothing"), ("GET", "/v2/models/ssd-multibx", 404, "ssd-multibox"),
                ("GET", "/v2/models/nothing/ready", 404, ""), ("GET", "/v2/models/nothing/config", 404, ""),
                ("GET", "/v2/models/nothing/stats", 404, ""), ("POST", "/v2/models/nothing/infer", 404, ""),
                ("GET", MODEL + "/versions/2", 404, ""), ("POST", MODEL + "/versions/01/infer", 404, ""),
                ("GET", MODEL + "/versions/", 404, ""), ("GET", "/v2/models//ready", 404, ""),
                ("GET", MODEL + "/", 404, ""),
                ("GET", "/v2/models/" + "a" * 900 + "/ready", 404, ""), ("GET", INFER, 405, "POST"),
                ("POST", "/v2", 405, "GET"), ("DELETE", MODEL, 405, "GET"),
                ("GET", "/v2/repository/index", 405, "POST"),
                ("POST", "/v2/repository/models/nothing/load", 404, ""), ("GET", "/v2/%00", 400, "escape"),
                ("POST", "/v2/repository/models/ssd-multibox/unload", 400, "always loaded")):
            with self.subTest(path):
                self.error(self.daemon.request(method, path, b"" if method == "POST" else None), status, text)
        self.problem(self.daemon.get("/v2x"), 404)  # not the protocol's
        self.assertEqual(self.daemon.request("HEAD", MODEL).status, 200)

    def test_framing(self):
        for head, status in ((b"Content-Length: 3\r\nContent-Length: 3\r\n", 400),
                             (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
                             (b"Expect: cake\r\nContent-Length: 3\r\n", 417),
                             (b"".join(b"X-%d: y\r\n" % i for i in range(120)), 431)):
            text = b"POST %s HTTP/1.1\r\nHost: x\r\n" % INFER.encode() + head + b"\r\n{}"
            answers, _ = self.daemon.raw(text, 0.5)
            self.assertEqual(len(answers), 1)
            self.assertEqual(answers[0].status, status, answers)
            if not answers[0].body.startswith(b"<html>"):  # newer HTTP libraries refuse some of these themselves
                self.error(answers[0], status)


class Codings(Case):
    FLAGS = ("--max-body", "4M", "--workers", "1")

    def test_bodies(self):
        batch = lossd.random_batch(8, n=2, p=8732, c=5)
        tensors = batch.tensors()
        want = self.wanted(tensors)
        for in_json in ((), True):
            document, behind = lossd.inference(tensors, in_json)
            body, headers = encode(document, behind)
            half = len(body) // 2
            for coding, coded in (
                    ("gzip", gzip.compress(body, 1)), ("deflate", zlib.compress(body, 1)), ("GZIP", gzip.compress(body, 0)),
                    ("gzip", gzip.compress(body[:half]) + gzip.compress(body[half:])), ("identity", body), ("", body)):
                answer = self.daemon.post(INFER, coded, None, {**headers, "Content-Encoding": coding})
                self.same(self.outputs(answer), want)
            coded, r = gzip.compress(body), random.Random(1)
            with self.daemon.connect() as connection:
                connection.start("POST", INFER, {**headers, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
                while coded:
                    n = r.choice((1, 9, 1000, 70000))
                    connection.send(b"%x\r\n" % len(coded[:n]) + coded[:n] + b"\r\n")
                    coded = coded[n:]
                connection.send(b"0\r\n\r\n")
                self.same(self.outputs(connection.answer()), want)

    def test_broken_bodies(self):
        body, headers = encode(*lossd.inference(TINY.tensors()))
        coded, wrapped = gzip.compress(body), zlib.compress(body)
        raw = zlib.compressobj(wbits=-15)
        raw = raw.compress(body) + raw.flush()
        for coding, data, text in (("gzip", coded[:-1], "too early"), ("gzip", coded[:20], "too early"),
                                   ("gzip", b"", "too early"),
                                   ("gzip", body, "not gzip"), ("gzip", wrapped, "not gzip"),
                                   ("deflate", raw, "not deflate"),
                                   ("deflate", wrapped + b"x", "follows"), ("gzip", coded + b"x", "gzip"),
                                   ("deflate", coded, "not deflate"),
                                   ("gzip", coded[:-5] + bytes([coded[-5] ^ 1]) + coded[-4:], "not gzip")):
            with self.subTest(coding, data=data[:9], text=text):
                self.error(self.daemon.post(INFER, data, None, {**headers, "Content-Encoding": coding}), 400, text)
        for coding in ("br", "zstd", "compress", "gzip, gzip", "gzip, identity", "x"):
            answer = self.daemon.post(INFER, body, None, {**headers, "Content-Encoding": coding})
            self.error(answer, 501, "gzip")
            self.assertEqual(answer.header("Accept-Encoding"), "gzip, deflate")
        self.problem(self.daemon.post("/v1/loss", coded, None, {"Content-Encoding": "gzip"}), 415)  # as ever

    def test_bombs(self):
        """Nothing is taken beyond the limit of a body."""
        before = self.daemon.memory("VmHWM")
        for coding, wbits in (("gzip", 31), ("deflate", 15)):
            made = zlib.compressobj(9, wbits=wbits)
            bomb = b"".join(made.compress(b" " * (1 << 20)) for _ in range(1500)) + made.flush()
            self.assertLess(len(bomb), 4 << 20)
            for headers in ({}, {"Inference-Header-Content-Length": 300}):
                with self.daemon.connect() as connection:
                    answer = connection.request("POST", INFER, bomb, {**headers, "Content-Encoding": coding})
                    self.error(answer, 413, "max-body")
                    self.assertEqual(connection.request("GET", "/v2").status, 200)
        self.assertLess(self.daemon.memory("VmHWM") - before, 100 << 20)

    def test_answers(self):
        batch = lossd.random_batch(9, n=2, p=8732, c=3)
        document, behind = lossd.inference(batch.tensors(), parameters={"include": "assignment"})
        plain = self.infer(document, behind)
        self.assertIsNone(plain.header("Content-Encoding"))
        want = lossd.read_inference(plain)
        for accept, coding in (
                ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", "gzip"), ("gzip;q=0", None), ("br, zstd", None),
                ("deflate, gzip;q=1.0, *;q=0.5", "gzip"), ("gzip;q=0.2, deflate;q=0.8", "deflate"), ("*", None), ("", None)):
            answer = self.infer(document, behind, headers={"Accept-Encoding": accept})
            self.assertEqual((answer.status, answer.header("Content-Encoding")), (200, coding), accept)
            if coding:
                self.assertLess(len(answer.body), len(plain.body))
                answer.body = zlib.decompress(answer.body, 47)
            self.same(lossd.read_inference(answer)[1], want[1])
        document["parameters"]["binary_data_output"] = True
        answer = self.infer(document, behind, headers={"Accept-Encoding": "gzip"})
        self.assertEqual(answer.header("Content-Encoding"), "gzip")
        answer.body = zlib.decompress(answer.body, 31)
        self.same(lossd.read_inference(answer)[1], want[1])
        small = self.infer(*lossd.inference(TINY.tensors()), headers={"Accept-Encoding": "gzip"})
        self.assertIsNone(small.header("Content-Encoding"))
        wrong = self.infer({}, headers={"Accept-Encoding": "gzip"})
        self.error(wrong, 400)
        self.assertIsNone(self.daemon.post("/v1/loss?include=assignment", batch.safetensors(), None,
                                           {"Accept-Encoding": "gzip"}).header("Content-Encoding"))


class Around(Case):
    FLAGS = ("--workers", "1", "--queue-limit", "1")

    def test_server(self):
        for path in ("/v2", "/v2/"):
            about = self.good(self.daemon.get(path))
            self.assertEqual((about["name"], about["version"]), ("lossd", self.daemon.version))
            self.assertIn("binary_tensor_data", about["extensions"])
        self.assertEqual(self.good(self.daemon.get("/v2/health/live")), {"live": True})
        self.assertEqual(self.good(self.daemon.get("/v2/health/ready")), {"ready": True})

    def test_models(self):
        for path in (MODEL, MODEL + "/versions/1"):
            about = self.good(self.daemon.get(path))
            self.assertEqual((about["name"], about["versions"]), ("ssd-multibox", ["1"]))
            inputs = {t["name"]: (t["datatype"], t["shape"]) for t in about["inputs"]}
            outputs = {t["name"]: (t["datatype"], t["shape"]) for t in about["outputs"]}
            self.assertEqual((inputs["loc"], inputs["labels"]), (("FP32", [-1, -1, 4]), ("INT64", [-1])))
            self.assertEqual((outputs["loss"], outputs["grad_index"]), (("FP64", [1]), ("INT32", [-1, 2])))
            self.assertEqual(len(outputs), 10)
            self.assertEqual(self.good(self.daemon.get(path + "/ready")), {"name": "ssd-multibox", "ready": True})
            config = self.good(self.daemon.get(path + "/config"))
            self.assertEqual((config["name"], config["max_batch_size"]), ("ssd-multibox", 0))
            self.assertEqual([(t["data_type"], t["dims"]) for t in config["output"]],
                             [("TYPE_" + t["datatype"], t["shape"]) for t in about["outputs"]])
            self.assertEqual({t["name"] for t in config["input"] if not t.get("optional")},
                             {"loc", "conf"})
        names = {m["name"] for m in self.good(self.daemon.post("/v2/repository/index", b""))}
        self.assertEqual(names, {c["name"] for c in self.good(self.daemon.get("/v1/criteria"))["criteria"]})
        self.assertEqual(self.good(self.daemon.post("/v2/repository/models/ssd-multibox/load", b'{"parameters":{}}')),
                         {})

    def test_statistics(self):
        before = self.statistics()
        good = lossd.inference(TINY.tensors())
        for i in range(5):
            self.assertEqual(self.infer(*good).status, 200)
            now = self.statistics()
            self.assertEqual(now["inference_count"] - before["inference_count"], i + 1)
        self.error(self.infer({}), 400)
        self.error(self.infer(*good, headers={"Inference-Header-Content-Length": "x"}), 400)
        self.error(self.infer(*good, target="/v2/models/nothing/infer"), 404)
        self.daemon.post("/v1/loss", TINY.safetensors())
        now, stats = self.statistics(), self.statistics()["inference_stats"]
        old = before["inference_stats"]
        self.assertEqual([stats[k]["count"] - old[k]["count"] for k in
                          ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
                           "cache_hit")],
                         [5, 2, 5, 5, 5, 5, 0])
        parts = sum(stats[k]["ns"] for k in ("queue", "compute_input", "compute_infer", "compute_output"))
        self.assertEqual(stats["success"]["ns"], parts)
        self.assertTrue(0 < stats["compute_infer"]["ns"] < stats["success"]["ns"] < 60e9)
        self.assertGreater(now["last_inference"], 1.7e12)
        self.assertEqual(now["batch_stats"][0]["compute_infer"], stats["compute_infer"])
        every = {row["name"]: row for row in self.good(self.daemon.get("/v2/models/stats"))["model_stats"]}
        self.assertEqual(every["ssd-multibox"], now)
        self.assertEqual(every["ssd-keras"]["inference_count"], 0)

    def test_overload(self):
        document, behind = lossd.inference(TINY.tensors())
        body, headers = encode(document, behind)
        with self.daemon.connect() as held:
            held.start("POST", INFER, {**headers, "Content-Length": len(body), "Expect": "100-continue"})
            self.assertEqual(held.interim(), 100)
            self.error(self.daemon.post(INFER, body, None, headers), 503, "queue-limit")
            held.send(body)
            self.assertEqual(held.answer().status, 200)

    def test_late_bodies_and_draining(self):
        with lossd.Daemon("--request-timeout", "1", "--drain-delay", "1") as daemon:
            for coding in (None, "gzip"):
                with daemon.connect() as connection:
                    connection.start("POST", INFER, {"Content-Length": 1000, "Content-Encoding": coding})
                    connection.send(gzip.compress(b"{" * 5)[:15])
                    self.error(connection.answer(), 408, "in time")
            fails = lambda: daemon.get(MODEL + "/stats").json()["model_stats"][0]["inference_stats"]["fail"]["count"]
            self.assertTrue(lossd.until(lambda: fails() == 2))
            daemon.signal()
            self.assertTrue(lossd.until(lambda: daemon.get("/v2/health/ready").status == 503))
            self.error(daemon.get(MODEL + "/ready"), 503, "shutting down")
            self.assertEqual(daemon.get("/v2/health/live").status, 200)


class Streams(Case):
    # too little for what is kept of these bodies
    FLAGS = ("--memory-limit", "5M", "--workers", "2")

    def test_predictions_at_the_end_are_streamed(self):
        batch = lossd.random_batch(10, 3, 8732, 21, objects=7)
        tensors = batch.tensors()
        with lossd.Daemon("--workers", "1") as roomy:
            want = self.wanted(tensors, daemon=roomy)
            for order in (("counts", "labels", "boxes", "conf", "loc"), ("boxes", "counts", "labels", "loc", "conf")):
                for in_json in ((), ("counts", "labels", "boxes")):
                    body, headers = encode(*lossd.inference({n: tensors[n] for n in order}, in_json))
                    self.assertGreater(len(body), 2 << 20)
                    self.same(self.outputs(self.daemon.post(INFER, body, None, headers)), want)
                    r, at = random.Random(3), 0
                    with self.daemon.connect() as connection:
                        connection.start("POST", INFER, {**headers, "Content-Length": len(body)})
                        while at < len(body):
                            n = r.choice((1, 83, 5000, 131072, 400000))
                            connection.send(body[at:at + n])
                            at += n
                        self.same(self.outputs(connection.answer()), want)
            first = {n: tensors[n] for n in ("loc", "conf", "counts", "labels", "boxes")}
            body, headers = encode(*lossd.inference(first))
            self.error(self.daemon.post(INFER, body, None, headers), 413, "memory-limit")
            self.same(self.outputs(roomy.post(INFER, body, None, headers)), want)
            for in_json in (("conf",), ("loc",), True):
                body, headers = encode(*lossd.inference(tensors, in_json))
                self.same(self.outputs(roomy.post(INFER, body, None, headers)), want)
            gradients = self.wanted(tensors, "?include=gradients", roomy)
            parameters = {"include": "gradients", "binary_data_output": True}
            body, headers = encode(*lossd.inference(tensors, parameters=parameters))
            self.same(self.outputs(roomy.post(INFER, body, None, headers)), gradients)

    def test_what_is_wrong_in_long_bodies(self):
        document, behind = lossd.inference(lossd.random_batch(11, 3, 8732, 21).tensors())
        for made, more, status in ((document, b"x", 400), ({"inputs": document["inputs"][:-1]}, b"", 400),
                                   ({**document, "parameters": {"x": 1}}, b"", 422), ({"inputs": 1}, b"", 400),
                                   ({"inputs": [{"name": "labels"}]}, b"", 400)):
            self.error(self.infer(made, behind + more), status)
        body, headers = encode(document, behind)
        spoilt = bytearray(body)
        spoilt[-4:] = struct.pack("<f", float("inf"))
        self.error(self.daemon.post(INFER, bytes(spoilt), None, headers), 422, r"loc\[2,8731\]")
        self.error(self.daemon.post(INFER, body, None, {"Inference-Header-Content-Length": 20000}), 400)
        with self.daemon.connect() as connection:
            connection.start("POST", INFER, {**headers, "Content-Length": len(body)})
            connection.send(body[:len(body) // 2])
            connection.reset()
        self.assertEqual(self.daemon.post(INFER, body, None, headers).status, 200)


if __name__ == "__main__":
    unittest.main()
