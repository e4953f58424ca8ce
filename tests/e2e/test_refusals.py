# SPDX-License-Identifier: Apache-2.0
"""What cannot be computed is refused with the reason: not JSON, not safetensors, or well-formed but meaningless."""
import copy
import json
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

NAN, INF = float("nan"), float("inf")


class RefusalCase(lossd.Case):
    FLAGS = ("--workers", "2")

    def setUp(self):
        self.connection = self.daemon.connect()  # refusals leave it usable

    def tearDown(self):
        self.connection.close()
        super().tearDown()

    def post(self, body, content_type, target="/v1/loss"):
        return self.connection.request("POST", target, body, {"Content-Type": content_type})

    def json(self, body, status, codes=None, detail=None, pointer=None):
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        return self.problem(self.post(body, lossd.JSON), status, codes, detail, pointer)

    def binary(self, body, status, codes=None, detail=None, pointer=None):
        return self.problem(self.post(body, lossd.SAFETENSORS), status, codes, detail, pointer)

    def still_right(self):
        self.assertEqual(self.post(lossd.tiny().safetensors(), lossd.SAFETENSORS).status, 200)


class JsonText(RefusalCase):
    def test_not_a_document(self):
        for body, codes in ((b"", "json_empty"), (b"  \r\n\t ", "json_empty"), (b"[]", "json_not_object"),
                            (b"3", "json_not_object"), (b'"x"', "json_not_object"), (b"null", "json_not_object"),
                            (b"true", "json_not_object")):
            with self.subTest(body):
                self.json(body, 400, codes)
        self.still_right()

    def test_syntax(self):
        good = lossd.tiny().json()
        for body in (b"{", b"}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":[1,]}', b"{a:1}", b"{'a':1}", b'{"a":01}',
                     b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":0x10}', b'{"a":-}', b'{"a":tru}', b'{"a":1}x',
                     b'{"a":1}{"a":1}', b'{"a":1}\0', b'{"a":1}]', b'{/**/"a":1}', b'{"a":"\xff"}', b'{"\xc0\xaf":1}',
                     b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}', b'{"a":"\\u0000"}', b'{"a":"\x01"}', b'{"a":"\n"}',
                     b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a":"\\x"}', good + b"{}", good + b",",
                     good + b"\0"):
            with self.subTest(body[:40]):
                self.json(body, 400)
        self.still_right()

    def test_depth(self):
        for body in ('{"a":' + "[" * 100 + "]" * 100 + "}", '{"a":' * 100 + "1" + "}" * 100,
                     '{"predictions":' + "[" * 100000, '{"a":' * 50000):
            with self.subTest(body[:20], length=len(body)):
                self.json(body, 400, "json_depth")
        self.json("[" * 100000, 400)
        self.still_right()

    def test_duplicate_keys(self):
        for body in ('{"criterion":"ssd-multibox","criterion":"ssd-multibox"}',
                     '{"criterion":"ssd-multibox","\\u0063riterion":"ssd-multibox"}',
                     '{"predictions":{"loc":[],"loc":[]}}'):
            self.json(body, 400, "json_duplicate_key")

    def test_not_numbers(self):
        for word in ("NaN", "Infinity", "-Infinity"):
            text = json.dumps(lossd.tiny().document()).replace("0.5, -0.25", "%s, -0.25" % word, 1)
            self.assertIn(word, text)
            self.json(text, 400, "json_nan")
        for number in ("1e999", "-1e999", "9" * 400):
            text = json.dumps(lossd.tiny().document()).replace("0.5, -0.25", "%s, -0.25" % number, 1)
            self.json(text, 422, "prediction_not_finite")
        huge = json.dumps(lossd.tiny().document()).replace("0.5, -0.25", "3.5e38, -0.25", 1)
        self.json(huge, 422, "prediction_not_finite")
        small = json.dumps(lossd.tiny().document()).replace("0.5, -0.25", "1e-400, -0.25", 1)
        self.assertEqual(self.post(small.encode(), lossd.JSON).status, 200)

    def test_every_prefix(self):
        body = lossd.tiny().json(include="images")
        for end in range(1, len(body)):
            answer = self.post(body[:end], lossd.JSON)
            self.assertEqual(answer.status, 400, body[:end])
        self.problem(answer, 400)
        self.still_right()

    def test_too_complex(self):
        for unit in (b"{},", b"[],", b'"",'):
            body = b'{"a":[' + unit * (2500000 // len(unit)) + b"0]}"
            self.json(body, (413, 422), "json_too_complex body_too_large unknown_member")
        many = ('{' + ",".join('"k%d":0' % i for i in range(20000)) + '}').encode()
        self.json(many, (413, 422))
        self.still_right()


class JsonMeaning(RefusalCase):
    def edit(self, path, value, batch=None):
        """The tiny request with one member replaced (or removed, when the value is None)."""
        document = copy.deepcopy((batch or lossd.tiny()).document())
        at = document
        for step in path[:-1]:
            at = at[step]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return document

    def test_missing_members(self):
        for path, name in ((["predictions"], "predictions"), (["annotations"], "annotations"),
                           (["predictions", "loc"], "loc"), (["predictions", "conf"], "conf"),
                           (["annotations", 0, "boxes"], "boxes"), (["annotations", 0, "labels"], "labels")):
            with self.subTest(path):
                self.json(self.edit(path, None), 422, "missing_member", name)

    def test_unknown_members(self):
        for path, known in ((["critereon"], "criterion"), (["prior"], "priors"), (["Include"], "include"),
                            (["predictions", "locs"], "loc"), (["annotations", 0, "lables"], "labels")):
            with self.subTest(path):
                body = self.json(self.edit(path, "x"), 422, "unknown_member", known)
                self.assertIn(path[-1], body["detail"] + body["pointer"])
        self.json(self.edit(["zzzzzzzzzzzz"], 1), 422, "unknown_member", "zzzzzzzzzzzz")

    def test_unknown_names(self):
        self.json(self.edit(["criterion"], "ssd-multibx"), 422, "unknown_criterion", "ssd-multibox")
        self.json(self.edit(["priors"], "ssd-300"), 422, "unknown_priors", "ssd300")
        self.json(self.edit(["include"], "image"), 422, None, "images")
        self.json(self.edit(["device"], "gpu"), 422)

    def test_types(self):
        for path, value, pointer in (
                (["annotations", 0, "labels"], ["cat"], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], [0.5], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], [True], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], 3, "^/annotations/0/labels$"),
                (["annotations", 0, "labels"], [None], "^/annotations/0/labels/0$"),
                (["annotations", 0, "boxes"], [["0", 0, 1, 1]], "^/annotations/0/boxes/0"),
                (["annotations", 0, "boxes"], {}, "^/annotations/0/boxes$"),
                (["annotations"], {}, "^/annotations$"),
                (["annotations"], [3], "^/annotations/0$"),
                (["predictions"], [], "^/predictions$"),
                (["predictions", "loc"], "x", "^/predictions/loc$"),
                (["predictions", "loc"], [[[None, 0, 0, 0], [0, 0, 0, 0]]], "^/predictions/loc/0/0"),
                (["predictions", "conf"], [[["0", 0, 0], [0, 0, 0]]], "^/predictions/conf/0/0"),
                (["criterion"], 7, "^/criterion$"),
                (["include"], 7, "^/include$")):
            with self.subTest(path=path, value=value):
                self.json(self.edit(path, value), 422, "type_mismatch ragged_array shape", None, pointer)

    def test_ragged(self):
        for path, value in (
                (["predictions", "loc"], [[[0, 0, 0, 0], [0, 0, 0]]]),
                (["predictions", "loc"], [[[0, 0, 0, 0], 0]]),
                (["predictions", "conf"], [[[0, 0, 0], [0, 0, 0, 0]]]),
                (["annotations", 0, "boxes"], [[0, 0, 0.5]]),
                (["annotations", 0, "boxes"], [[0, 0, 0.5, 0.5, 1]])):
            with self.subTest(path=path, value=value):
                self.json(self.edit(path, value), 422, "ragged_array type_mismatch shape")

    def test_shapes(self):
        tiny = lossd.tiny()
        cases = [
            (["predictions", "loc"], [[[0, 0, 0], [0, 0, 0]]]),                      # not 4 columns
            (["predictions", "loc"], [[[0, 0, 0, 0]]]),                              # P disagrees with conf
            (["predictions", "conf"], [[[0], [0]]]),                                 # background alone
            (["predictions", "conf"], [[[0, 0, 0], [0, 0, 0]]] * 2),                 # N disagrees with loc
            (["predictions", "loc"], {"shape": [1, 2, 4], "data": [0] * 7}),
            (["predictions", "loc"], {"shape": [1, 2, 4], "data": [0] * 9}),
            (["predictions", "loc"], {"shape": [2, 4], "data": [0] * 8}),
            (["predictions", "loc"], {"shape": [1 << 31, 1 << 31, 4], "data": [0] * 8}),
            (["annotations"], []),
            (["annotations"], tiny.document()["annotations"] * 2),
            (["annotations", 0, "labels"], [0, 1]),
            (["annotations", 0, "labels"], []),
            (["priors"], [[0.25, 0.25, 0.5, 0.5]]),
            (["priors"], "ssd300"),
        ]
        for path, value in cases:
            with self.subTest(path=path, value=str(value)[:60]):
                self.json(self.edit(path, value), 422, "shape ragged_array counts type_mismatch", r"\d")
        empty = {"predictions": {"loc": [], "conf": []}, "annotations": []}
        self.json(empty, 422)

    def test_annotations(self):
        box = ["annotations", 0, "boxes"]
        where = "^/annotations/0/boxes/0"
        self.json(self.edit(box, [[0.5, 0, 0.2, 0.5]]), 422, "box_inverted", "0\\.2", where)
        self.json(self.edit(box, [[0, 0.5, 0.5, 0.1]]), 422, "box_inverted", None, where)
        self.json(self.edit(box, [[0.5, 0, 0.5, 0.5]]), 422, "box_degenerate", None, where)
        self.json(self.edit(box, [[0.1, 0.1, 0.1, 0.1]]), 422, "box_degenerate", None, where)
        self.json(self.edit(box, [[0, 0, 1e-30, 1e-30]]), 422, "box_degenerate", None, where)
        self.json(self.edit(box, [[0, 0, 300, 300]]), 422, "box_range", "300", where)
        self.json(self.edit(box, [[-1.5, 0, 1, 1]]), 422, "box_range", "-1\\.5", where)
        self.json(self.edit(box, [[0, 0, 1e39, 1]]), 422, "box_not_finite box_range", None, where)
        self.json(self.edit(["annotations", 0, "labels"], [2]), 422, "label_range", "2", "^/annotations/0/labels/0")
        self.json(self.edit(["annotations", 0, "labels"], [-1]), 422, "label_range", "-1")
        self.json(self.edit(["annotations", 0, "labels"], [1 << 31]), 422, "label_range", "2147483648")
        self.json(self.edit(["annotations", 0, "labels"], [1 << 64]), 422, "label_range", None, "^/annotations/0/labels/0")
        for edge in ([-1, -1, 2, 2], [0, 0, 1, 1]):
            self.assertEqual(self.post(json.dumps(self.edit(box, [edge])).encode(), lossd.JSON).status, 200)

    def test_first_error_of_several_images(self):
        batch = lossd.random_batch(3, n=3, p=9, c=4, objects=3)
        document = batch.document()
        document["annotations"][2] = {"boxes": [[0, 0, 1, 1], [0.9, 0, 0.1, 1]], "labels": [1, 1]}
        self.json(document, 422, "box_inverted", None, "^/annotations/2/boxes/1")

    def test_predictions_not_finite(self):
        document = lossd.random_batch(3, n=2, p=9, c=4).document()
        document["predictions"]["conf"][1][3][2] = 1e300
        document["predictions"]["conf"][1][7][0] = -1e300
        self.json(document, 422, "prediction_not_finite", "2", "^/predictions/conf/1/3")

    def test_inline_priors(self):
        for value in ([[0.5, 0.5, 0, 0.5], [0.5, 0.5, 1, 1]], [[0.5, 0.5, -1, 0.5], [0.5, 0.5, 1, 1]],
                      [[0.5, 0.5, 1e-30, 1e-30], [0.5, 0.5, 1, 1]], [[0.5, 0.5, 1e39, 1], [0.5, 0.5, 1, 1]], [],
                      [[0.5, 0.5, 1], [0.5, 0.5, 1]], 7):
            with self.subTest(value):
                self.json(self.edit(["priors"], value), 422, "prior_degenerate shape ragged_array type_mismatch", None,
                          "^/priors")


class Binary(RefusalCase):
    def head(self, **changes):
        """Header and data of the tiny request, with some entries replaced."""
        body = lossd.tiny().safetensors()
        (size,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8:8 + size])
        for name, entry in changes.items():
            if entry is None:
                del header[name]
            else:
                header.setdefault(name, {}).update(entry)
        return header, body[8 + size:]

    def changed(self, **changes):
        return lossd.container(*self.head(**changes))

    def test_every_prefix(self):
        body = lossd.tiny().safetensors()
        for end in range(len(body)):
            answer = self.post(body[:end], lossd.SAFETENSORS)
            self.assertEqual(answer.status, 400, end)
            self.problem(answer, 400, "bin_truncated bin_header_length bin_header bin_offset bin_layout bin_size")
        self.problem(self.post(body[:5], lossd.SAFETENSORS), 400, "bin_truncated")
        self.still_right()

    def test_header_length(self):
        good = lossd.tiny().safetensors()
        (size,) = struct.unpack("<Q", good[:8])
        for length in (0, 1, len(good) - 7, len(good), 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63,
                       (1 << 64) - 8, (1 << 64) - 1, size << 32):
            with self.subTest(length):
                self.binary(struct.pack("<Q", length) + good[8:], 400,
                            "bin_header_length bin_truncated bin_header")
        self.binary(struct.pack(">Q", size) + good[8:], 400)
        for length in (size - 1, size + 1):
            self.binary(struct.pack("<Q", length) + good[8:], 400)

    def test_header_text(self):
        _, data = self.head()
        text = json.dumps(self.head()[0])
        for header in (b"\xff" * 16, b"[]", b"{}x", b"nothing", b"", b"{" * 500, text.encode() + b"\0",
                       text[:-1].encode(), text.replace('"loc"', '"conf"').encode(),
                       text.replace('"loc"', '"\\u0063onf"').encode(),
                       text.replace('"loc"', '"' + "l" * 5000 + '"').encode()):
            with self.subTest(header[:30]):
                self.problem(self.post(lossd.container(header, data), lossd.SAFETENSORS), (400, 422))
        self.binary(self.changed(__metadata__={"include": 7}), 400)
        many, data = self.head()
        many.update({"t%d" % i: {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2} for i in range(10000)})
        self.problem(self.post(lossd.container(many, data), lossd.SAFETENSORS), (400, 413, 422))
        self.still_right()

    def test_entries(self):
        for entry in ({"dtype": 7}, {"dtype": None}, {"shape": 4}, {"shape": None}, {"shape": [1, "2", 4]},
                      {"shape": [1, -2, 4]}, {"shape": [1, 2.0, 4]}, {"shape": [1] * 40}, {"data_offsets": [0]},
                      {"data_offsets": 0}, {"data_offsets": ["0", 32]}, {"data_offsets": [0.5, 32]},
                      {"data_offsets": [-8, 24]}, {"data_offsets": [0, 32, 64]}):
            with self.subTest(entry):
                self.problem(self.post(self.changed(loc=entry), lossd.SAFETENSORS), (400, 422))
        for member in ("dtype", "shape", "data_offsets"):
            header, data = self.head()
            del header["loc"][member]
            self.binary(lossd.container(header, data), 400)
        header, data = self.head()
        header["loc"] = 7
        self.binary(lossd.container(header, data), 400)

    def test_offsets(self):
        header, data = self.head()
        begin, end = header["loc"]["data_offsets"]
        other = header["conf"]["data_offsets"]
        for offsets in ([end, begin], [begin, end + 4], [begin + 4, end + 4], [begin, 1 << 53],
                        [1 << 62, (1 << 62) + 32], [begin, (1 << 63) - 1], [begin, (1 << 64) + end], other,
                        [other[0], other[0] + end - begin],
                        [begin - 4, end], [begin + 4, end]):
            with self.subTest(offsets):
                self.binary(self.changed(loc={"data_offsets": offsets}), 400,
                            "bin_offset bin_layout bin_size bin_header")

    def test_layout(self):
        header, data = self.head()
        self.binary(lossd.container(header, data + b"\0"), 400, "bin_layout bin_size bin_offset")
        self.binary(lossd.container(header, data + bytes(4096)), 400)
        self.binary(lossd.container(header, data[:-1]), 400)
        # a hole: every tensor moved 8 bytes up, the first 8 bytes belonging to none
        for entry in header.values():
            entry["data_offsets"] = [x + 8 for x in entry["data_offsets"]]
        self.binary(lossd.container(header, bytes(8) + data), 400, "bin_layout bin_offset")
        # a hole inside
        header, data = self.head()
        begin = header["loc"]["data_offsets"][0]
        for entry in header.values():
            if entry["data_offsets"][0] >= begin:
                entry["data_offsets"] = [x + 4 for x in entry["data_offsets"]]
        self.binary(lossd.container(header, data[:begin] + bytes(4) + data[begin:]), 400, "bin_layout bin_offset")
        # two tensors over the same bytes
        header, data = self.head()
        header["counts"]["data_offsets"] = header["labels"]["data_offsets"]
        self.binary(lossd.container(header, data), 400, "bin_layout bin_offset")

    def test_sizes(self):
        for shape in ([1, 2, 3], [1, 3, 4], [1, 2, 5], [2, 2, 4], [0, 2, 4], [1, 2], []):
            with self.subTest(shape):
                self.binary(self.changed(loc={"shape": shape}), 400, "bin_size bin_layout bin_offset")
        for shape in ([1 << 32, 1 << 32], [1 << 4, (1 << 60) + 2, 4], [1 << 62, 4], [1 << 31, 1 << 31, 4],
                      [(1 << 63) - 1, 2, 4], [1 << 64, 2, 4]):
            with self.subTest(shape):
                self.binary(self.changed(loc={"shape": shape}), 400, "bin_shape_overflow bin_size bin_header")

    def test_dtypes(self):
        tensors = lossd.tiny().tensors()

        def replaced(name, dtype, size):
            shape = tensors[name][1]
            elements = 1
            for dim in shape:
                elements *= dim
            entries = dict(tensors, **{name: (dtype, shape, bytes(size * elements))})
            return lossd.save([(key, *value) for key, value in entries.items()])

        for name, dtype, size in (("boxes", "I64", 8), ("labels", "F32", 4), ("labels", "F64", 8), ("conf", "U8", 1),
                                  ("loc", "I32", 4), ("counts", "F32", 4), ("counts", "U8", 1), ("priors", "I32", 4),
                                  ("labels", "BOOL", 1)):
            with self.subTest(name, dtype=dtype):
                self.binary(replaced(name, dtype, size), 422, "dtype", dtype)
        for name, dtype, size in (("loc", "F8_E4M3", 1), ("conf", "X99", 4)):
            self.problem(self.post(replaced(name, dtype, size), lossd.SAFETENSORS), (400, 422), "dtype bin_header")

    def test_missing_and_unknown_tensors(self):
        for name in ("loc", "conf", "boxes", "labels", "counts"):
            body = lossd.tiny().safetensors(without=(name,))
            self.binary(body, 422, "missing_member", name)
        tensors = [(name, *rest) for name, rest in lossd.tiny().tensors().items()]
        body = self.binary(lossd.save(tensors + [("lables", "U8", [1], b"\0")]), 422, "unknown_member", "labels")
        self.assertIn("lables", body["detail"] + body["pointer"])

    def test_shapes(self):
        t = lossd.tiny().tensors()

        def save(**changes):
            return lossd.save([(k, *v) for k, v in dict(t, **changes).items()])

        for changes in (dict(loc=("F32", [1, 1, 4], bytes(16))), dict(loc=("F32", [1, 2, 5], bytes(40))),
                        dict(loc=("F32", [2, 4], bytes(32))), dict(conf=("F32", [2, 2, 3], bytes(48))),
                        dict(conf=("F32", [1, 2, 1], bytes(8))), dict(conf=("F32", [1, 2, 0], b"")),
                        dict(conf=("F32", [0, 2, 3], b""), loc=("F32", [0, 2, 4], b"")),
                        dict(conf=("F32", [1, 0, 3], b""), loc=("F32", [1, 0, 4], b"")),
                        dict(boxes=("F32", [1, 5], bytes(20))), dict(boxes=("F32", [4], bytes(16))),
                        dict(labels=("I64", [2], bytes(16))), dict(labels=("I64", [1, 1], bytes(8))),
                        dict(counts=("I64", [2], bytes(16))), dict(counts=("I64", [], bytes(8))),
                        dict(priors=("F32", [1, 4], lossd.pack("F32", [0.5, 0.5, 1, 1])))):
            with self.subTest({k: v[1] for k, v in changes.items()}):
                self.binary(save(**changes), 422, "shape counts", r"\d")
        for counts in ([0], [2], [-1], [1 << 40], [(1 << 63) - 1]):
            with self.subTest(counts):
                self.binary(save(counts=("I64", [1], lossd.pack("I64", counts))), 422, "counts shape")
        two = lossd.random_batch(3, n=2, p=9, c=4, objects=3).tensors()
        g = two["boxes"][1][0]
        two["counts"] = ("I64", [2], lossd.pack("I64", [g + 1, -1]))
        self.binary(lossd.save([(k, *v) for k, v in two.items()]), 422, "counts")

    def test_annotations(self):
        batch = lossd.random_batch(9, n=2, p=9, c=4, objects=4)
        self.assertGreater(len(batch.labels), 3)
        for values, code in (([0.5, 0, 0.2, 0.5], "box_inverted"), ([0.5, 0, 0.5, 0.5], "box_degenerate"),
                             ([NAN, 0, 1, 1], "box_not_finite"), ([0, 0, INF, 1], "box_not_finite"),
                             ([0, 0, 300, 300], "box_range")):
            with self.subTest(code):
                bad = batch.pick(range(2))
                bad.boxes[8:12] = lossd.floats(values)
                self.binary(bad.safetensors(), 422, code, None, r"^boxes\[2\]")
        for label in (3, -1, 1 << 31, 1 << 32, -(1 << 63)):
            with self.subTest(label):
                bad = batch.pick(range(2))
                bad.labels[2] = label
                self.binary(bad.safetensors(), 422, "label_range", str(label), r"^labels\[2\]")

    def test_predictions_not_finite(self):
        batch = lossd.random_batch(9, n=2, p=4100, c=4, objects=4)
        for value in (NAN, INF, -INF):
            bad = batch.pick(range(2))
            for prior in (4099, 70, 71):
                bad.conf[(4100 + prior) * 4 + 1] = value
            body = self.binary(bad.safetensors(), 422, "prediction_not_finite", r"\b3\b", r"^conf\[1")
            self.assertRegex(body["detail"] + body["pointer"], r"\b70\b")
        bad = batch.pick(range(2))
        bad.loc[5 * 4 + 3] = NAN
        self.binary(bad.safetensors(), 422, "prediction_not_finite", None, r"^loc\[0")
        self.still_right()

    def test_priors(self):
        batch = lossd.tiny()
        self.binary(batch.safetensors({"priors": "ssd300"}), 422, "priors_twice")
        answer = self.post(batch.safetensors(), lossd.SAFETENSORS, "/v1/loss?priors=ssd300")
        self.problem(answer, 422, "priors_twice")
        for values in ([0.5, 0.5, 0, 1], [0.5, NAN, 1, 1], [0.5, 0.5, -1, -1], [0.5, 0.5, INF, 1]):
            bad = lossd.tiny()
            bad.priors[4:] = lossd.floats(values)
            self.binary(bad.safetensors(), 422, "prior_degenerate", None, r"^priors\[1\]")
        self.binary(batch.safetensors({"priors": "ssd-300"}, without=("priors",)), 422, "unknown_priors", "ssd300")

    def test_metadata(self):
        self.binary(lossd.tiny().safetensors({"critereon": "ssd-multibox"}), 422, "unknown_member unsupported_option",
                    "criterion")
        self.binary(lossd.tiny().safetensors({"criterion": "ssd-multibx"}), 422, "unknown_criterion", "ssd-multibox")
        self.binary(lossd.tiny().safetensors({"include": "image"}), 422, None, "images")

    def test_encodings_mixed_up(self):
        self.binary(lossd.tiny().json(), 400)
        self.json(lossd.tiny().safetensors(), 400)
        self.binary(os.urandom(4096), 400)


class Query(RefusalCase):
    def ask(self, query):
        return self.post(lossd.tiny().safetensors(), lossd.SAFETENSORS, "/v1/loss?" + query)

    def test_unknown(self):
        self.problem(self.ask("includes=images"), 422, "unknown_member unsupported_option", "include")
        self.problem(self.ask("criterion=ssd-multibx"), 422, "unknown_criterion", "ssd-multibox")
        self.problem(self.ask("classes=3"), 422)

    def test_twice(self):
        self.problem(self.ask("include=images&include=levels"), (400, 422), "duplicate_option")

    def test_encoding(self):
        self.assertEqual(self.ask("include=images%2Clevels&criterion=ssd%2Dmultibox").status, 200)
        for query in ("include=%zz", "include=images%00levels", "&".join("a%d=1" % i for i in range(500))):
            answer = self.daemon.post("/v1/loss?" + query, lossd.tiny().safetensors())
            self.problem(answer, 400, "uri_malformed")


class TooExpensive(lossd.Case):
    FLAGS = ("--request-timeout", "1")

    def test_refused_before_it_is_queued(self):
        """200,000 objects against 8732 priors are estimated at more than a second."""
        n = 200000
        body = lossd.save([("counts", "I64", [1], lossd.pack("I64", [n])),
                           ("boxes", "F16", [n, 4], lossd.pack("F16", [.125, .125, .5, .5]) * n),
                           ("labels", "U8", [n], bytes(n))])
        self.problem(self.daemon.post("/v1/match", body, lossd.SAFETENSORS), 413, "too_expensive")


class Costs(lossd.Case):
    def test_a_loss_beyond_float32(self):
        body = {"priors": [[.5, .5, .5, .5]], "predictions": {"loc": [[[0, 0, 0, 0]]], "conf": [[[-3e38, 3e38]]]},
                "annotations": [{"boxes": [], "labels": []}]}
        self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))  # nothing is mined
        body["annotations"] = [{"boxes": [[.2, .2, .8, .8]], "labels": [0]}]
        body["predictions"]["conf"] = [[[3e38, -3e38]]]
        self.problem(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON), 422, "loss_overflow",
                     pointer="/predictions/conf")
        body["criterion"] = {"weights": {"conf": 0}}   # what has no weight may be infinite
        self.assertEqual(self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))["loss"]["conf"], 0)

    def test_numbers_beyond_float32_are_never_answered(self):
        """A finite loss whose target, sent back, would not be: a prior so small that offsets from it overflow."""
        body = {"priors": [[0, .5, 1e-37, .5], [.5, .5, .5, .5]], "include": "targets",
                "criterion": {"coder": {"variances": [1e-3, .1, .1, .1]}, "matcher": {"force": "last", "positive_iou": 1}},
                "annotations": [{"boxes": [[.1, .1, .4, .4]], "labels": [0]}]}
        self.good(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON))
        body["annotations"][0]["boxes"] = [[.9, .1, .95, .4]]   # meets neither: it claims prior 0
        problem = self.problem(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON), 422, "loss_overflow")
        self.assertIn("image 0, prior 0", problem["detail"])

    def test_boxes_that_vanish(self):
        """An offset that makes a box of no size at all has a loss, and a slope, under every IoU loss."""
        for kind in ("giou", "diou", "ciou"):
            body = {"priors": [[.5, .5, .5, .5]], "include": "gradients", "criterion": {"localization": {"kind": kind}},
                    "predictions": {"loc": [[[0, 0, -250, -250]]], "conf": [[[0, 1]]]},
                    "annotations": [{"boxes": [[.3, .3, .7, .7]], "labels": [0]}]}
            got = self.good(self.daemon.post("/v1/loss", json.dumps(body).encode(), lossd.JSON))
            self.near(got["loss"]["loc"], 1.0 if kind != "ciou" else got["loss"]["loc"], 1e-5)
            self.assertTrue(all(isinstance(x, (int, float)) for x in got["gradients"]["loc"][0]), got["gradients"])

    def test_many_objects_of_one_place_forced_greedily(self):
        """Each takes a prior of its own; hundreds that want the same ones are done in time."""
        box, n = [.4, .4, .6, .6], 400
        body = {"criterion": {"matcher": {"force": "greedy"}}, "include": "objects",
                "annotations": [{"boxes": [box] * n, "labels": [0] * n}]}
        got = self.good(self.daemon.post("/v1/match", json.dumps(body).encode(), lossd.JSON))
        alone = {**body, "annotations": [{"boxes": [box], "labels": [0]}]}
        first = self.good(self.daemon.post("/v1/match", json.dumps(alone).encode(), lossd.JSON))["objects"][0]
        self.assertEqual({row["best_prior"] for row in got["objects"]}, {first["best_prior"]})
        self.assertEqual([row["collided"] for row in got["objects"]], [False] + [True] * (n - 1))
        self.assertEqual(sum(row["positives"] for row in got["objects"]), got["assignment"]["positives"])
        self.assertEqual(got["assignment"]["unmatched_objects"],
                         sum(row["positives"] == 0 for row in got["objects"]))

    def test_dense_json_is_not_too_complex(self):
        """Whole numbers and empty arrays make the largest trees for their text."""
        flat = {"shape": [1, 8732, 4], "data": [0] * (8732 * 4)}
        got = self.good(self.daemon.post("/v1/loss", json.dumps(
            {"predictions": {"loc": flat, "conf": {"shape": [1, 8732, 21], "data": [0] * (8732 * 21)}},
             "annotations": [{"boxes": [[.2, .2, .8, .8]], "labels": [0]}]}, separators=(",", ":")).encode(), lossd.JSON))
        self.assertGreater(got["loss"]["total"], 0)
        self.good(self.daemon.post("/v1/match", json.dumps(
            {"annotations": [{"boxes": [], "labels": []}] * 1000}, separators=(",", ":")).encode(), lossd.JSON))


if __name__ == "__main__":
    unittest.main()
