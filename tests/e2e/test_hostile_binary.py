# SPDX-License-Identifier: Apache-2.0
"""Tensors whose bytes do not fit what is said of them (B01-B22): safetensors, and the Open Inference Protocol's JSON
with bytes behind it. Nothing is allocated by a size that a body claims, and nothing of what is refused is computed."""
import json
import os
import random
import struct
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import lossd  # noqa: E402

NAN, INF = float("nan"), float("inf")
TINY = lossd.tiny()
GOOD = TINY.safetensors()
INFER = "/v2/models/ssd-multibox/infer"


def parts():
    """Header, as an object, and data of the tiny request."""
    (size,) = struct.unpack("<Q", GOOD[:8])
    return json.loads(GOOD[8:8 + size]), GOOD[8 + size:]


def changed(**changes):
    """The tiny request with members of its header's entries replaced; None removes the entry."""
    header, data = parts()
    for name, entry in changes.items():
        if entry is None:
            del header[name]
        else:
            header.setdefault(name, {}).update(entry)
    return lossd.container(header, data)


def tensors(**changes):
    """The tiny request with whole tensors replaced: (dtype, shape, bytes)."""
    return lossd.save([(name, *tensor) for name, tensor in dict(TINY.tensors(), **changes).items()])


class Safetensors(hostile.Refusals):
    def test_B01_every_prefix(self):
        for end in range(len(GOOD)):
            self.binary(GOOD[:end], 400, "bin_truncated" if end < 8 else
                        "bin_header_length bin_header bin_offset bin_layout bin_size")

    def test_B02_header_lengths(self):
        (size,), before = struct.unpack("<Q", GOOD[:8]), self.held()[2]
        for length in (0, len(GOOD) - 7, len(GOOD), (1 << 20) + 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 8,
                       (1 << 64) - 1, size << 32):
            with self.subTest(length):
                self.binary(struct.pack("<Q", length) + GOOD[8:], 400, "bin_header_length", str(length))
        self.binary(struct.pack(">Q", size) + GOOD[8:], 400, "bin_header_length")
        self.assertLess(self.held()[2] - before, 4 << 20)
        for length in (1, size - 1, size + 1, len(GOOD) - 8):
            self.binary(struct.pack("<Q", length) + GOOD[8:], 400, "bin_header bin_layout bin_offset")

    def test_B03_header_texts(self):
        header, data = parts()
        text = json.dumps(header).encode()
        for bad in (b"\xff" * 16, b"[]", b"{}x", b"nothing", b" " + text, b"\n" + text, text + b"\0", text + b"\n",
                    text + b"x", text[:-1], b"{" * 500, b'{"a":' * 40, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"),
                    text.replace(b'"loc"', b'"lo\xff"'), text.replace(b"}", b",}", 1), b"   ", b"{", b"}"):
            with self.subTest(bad[:30]):
                self.binary(lossd.container(bad, data), 400, "bin_header")
        self.binary(lossd.container(b"", data), 400, "bin_header_length")
        self.right(self.ask(lossd.container(text + b"   ", data), lossd.SAFETENSORS))

    def test_B04_names_and_metadata(self):
        header, data = parts()
        text = json.dumps(header)
        for bad in (text.replace('"loc"', '"conf"'), text.replace('"loc"', '"\\u0063onf"'),
                    text.replace('"loc"', '"' + "l" * 129 + '"'), text.replace('"loc"', '"' + "l" * 5000 + '"'),
                    text.replace('"loc"', '"l\\u0000"')):
            self.binary(lossd.container(bad, data), 400, "bin_header")
        self.binary(lossd.container(text.replace('"loc"', '"' + "l" * 128 + '"'), data), 422, "unknown_member")
        for metadata in ({"include": 7}, {"include": None}, {"include": ["images"]}, {"a": {}}):
            self.binary(changed(__metadata__=metadata), 400, "bin_header")
        for metadata in ("7", "[]", "null", '"x"', '{"a":"b","a":"c"}', '{"a":"b","\\u0061":"c"}'):
            self.binary(lossd.container('{"__metadata__":%s,%s' % (metadata, text[1:]), data), 400, "bin_header")
        self.binary(TINY.safetensors({"critereon": "ssd-multibox"}), 422, "unknown_member", "criterion")
        self.binary(TINY.safetensors({"criterion": "ssd-multibx"}), 422, "unknown_criterion", "ssd-multibox")
        self.binary(TINY.safetensors({"include": "image"}), 422, "invalid_option", "images")
        many = {"k%d" % i: "v" for i in range(5000)}
        self.binary(TINY.safetensors(many), 422, "unknown_member")

    def test_B05_offsets(self):
        begin, end = parts()[0]["loc"]["data_offsets"]
        for offsets in ([end, begin], [begin, end + 4], [begin + 4, end + 4], [begin, 1 << 53], [begin, (1 << 53) + 1],
                        [1 << 62, (1 << 62) + 32], [begin, (1 << 63) - 1], [(1 << 63) - 32, (1 << 63) - 1]):
            with self.subTest(offsets):
                self.binary(changed(loc={"data_offsets": offsets}), 400, "bin_offset bin_size bin_layout", r"\d")
        for offsets in ([begin, 1 << 64], [begin, (1 << 64) + end], [begin, 1e300], ["0", end], [0.5, end],
                        [float(begin), float(end)], [-8, end - begin - 8], [-1, -1], [begin], [], [begin, end, end], None, 0,
                        "x", {"0": begin}, [[begin, end]], [None, end], [True, end]):
            with self.subTest(offsets):
                self.binary(changed(loc={"data_offsets": offsets}), 400, "bin_offset bin_header")

    def test_B06_layouts(self):
        header, data = parts()
        other = header["conf"]["data_offsets"]
        begin, end = header["loc"]["data_offsets"]
        for offsets in ([other[0], other[0] + end - begin], [begin - 4, end - 4]):
            self.binary(changed(loc={"data_offsets": offsets}), 400, "bin_layout", r"\d")
        for offsets in (other, [begin - 4, end], [begin + 4, end]):
            self.binary(changed(loc={"data_offsets": offsets}), 400, "bin_layout bin_size")
        self.binary(lossd.container(header, data + b"\0"), 400, "bin_layout", "1 bytes")
        self.binary(lossd.container(header, data + bytes(4096)), 400, "bin_layout", "4096 bytes")
        self.binary(lossd.container(header, data[:-1]), 400, "bin_offset")
        for hole in (0, begin):   # all that follows moved up
            header, data = parts()
            for entry in header.values():
                if entry["data_offsets"][0] >= hole:
                    entry["data_offsets"] = [x + 4 for x in entry["data_offsets"]]
            self.binary(lossd.container(header, data[:hole] + bytes(4) + data[hole:]), 400, "bin_layout", "hole")
        header, data = parts()
        header["labels"]["data_offsets"] = header["counts"]["data_offsets"]
        self.binary(lossd.container(header, data), 400, "bin_layout", "overlap")
        header, data = parts()
        self.binary(lossd.container({**header, "counts2": header["counts"]}, data), 400, "bin_layout", "overlap")

    def test_B07_shapes_that_overflow(self):
        for shape in ([1 << 32, 1 << 32], [1 << 4, (1 << 60) + 2, 4], [1 << 2, (1 << 60) + 2], [1 << 62, 4],
                      [1 << 31, 1 << 31, 4], [(1 << 63) - 1, 2, 4], [1 << 16] * 8, [1 << 61, 2]):
            with self.subTest(shape):
                self.binary(changed(loc={"shape": shape}), 400, "bin_shape_overflow", "loc")
        for shape in ([1 << 64, 2, 4], [1 << 63, 0]):
            self.binary(changed(loc={"shape": shape}), 400, "bin_header")

    def test_B08_dimensions(self):
        for shape in ([1, -2, 4], [1, "2", 4], [1, 2.0, 4], [1, 2.5, 4], [1, None, 4], [1, [2], 4], [1, True, 4], 4, None,
                      "x", {}, [1] * 9, [1] * 1000):
            with self.subTest(shape):
                self.binary(changed(loc={"shape": shape}), 400, "bin_header", "loc")
        for member in ("dtype", "shape", "data_offsets"):
            header, data = parts()
            del header["loc"][member]
            self.binary(lossd.container(header, data), 400, "bin_header", "loc")
        for entry in (7, None, [], "x", {}):
            header, data = parts()
            header["loc"] = entry
            self.binary(lossd.container(header, data), 400, "bin_header", "loc")
        self.binary(changed(loc={"more": 1}), 400, "bin_header", "loc")

    def test_B09_sizes(self):
        for shape in ([1, 2, 3], [1, 3, 4], [1, 2, 5], [2, 2, 4], [0, 2, 4], [1, 2], []):
            with self.subTest(shape):
                self.binary(changed(loc={"shape": shape}), 400, "bin_size", r"\d")
        header, data = parts()
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"][1] -= 1
        self.binary(lossd.container(header, data[:-1]), 400, "bin_size")
        last["data_offsets"][1] += 2
        self.binary(lossd.container(header, data + b"\0"), 400, "bin_size")
        self.binary(changed(loc={"dtype": "F64"}), 400, "bin_size")

    def test_B10_dtypes(self):
        own = TINY.tensors()
        for name, dtype, size in (("boxes", "I64", 8), ("labels", "F32", 4), ("labels", "F64", 8), ("conf", "U8", 1),
                                  ("loc", "I32", 4), ("counts", "F32", 4), ("counts", "U8", 1), ("priors", "I32", 4),
                                  ("labels", "BOOL", 1), ("conf", "I64", 8), ("priors", "F16", 2), ("loc", "BOOL", 1)):
            shape, n = own[name][1], len(own[name][2]) // lossd.SIZES[own[name][0]]
            with self.subTest(name, dtype=dtype):
                self.binary(tensors(**{name: (dtype, shape, bytes(size * n))}), 422, "dtype", dtype)
        for name, dtype, size in (("loc", "F8_E4M3", 1), ("conf", "X99", 4), ("conf", "f32", 4), ("loc", "", 4),
                                  ("loc", "F" * 200, 4)):
            shape, n = own[name][1], len(own[name][2]) // 4
            self.binary(tensors(**{name: (dtype, shape, bytes(size * n))}), 422, "dtype", "F32")
        for dtype in (7, None, ["F32"]):
            self.binary(changed(loc={"dtype": dtype}), 400, "bin_header", "dtype")

    def test_B11_dimensions_of_zero(self):
        empty = dict(boxes=("F32", [0, 4], b""), labels=("I64", [0], b""), counts=("I64", [1], bytes(8)))
        self.right(self.ask(tensors(**empty), lossd.SAFETENSORS))
        for made in (dict(conf=("F32", [1, 2, 0], b"")), dict(conf=("F32", [0, 2, 3], b""), loc=("F32", [0, 2, 4], b"")),
                     dict(conf=("F32", [1, 0, 3], b""), loc=("F32", [1, 0, 4], b"")), dict(boxes=("F32", [0, 4], b"")),
                     dict(counts=("I64", [0], b"")), dict(labels=("I64", [0], b"")), dict(boxes=("F32", [0], b"")),
                     dict(priors=("F32", [0, 4], b"")), dict(loc=("F32", [0], b""))):
            with self.subTest({name: tensor[1] for name, tensor in made.items()}):
                self.binary(tensors(**made), 422, "shape counts", r"\d")

    def test_B12_many_tensors(self):
        header, data = parts()
        for n in (32, 33, 10000):
            more = {"t%d" % i: {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2} for i in range(n)}
            self.binary(lossd.container({**header, **more}, data), 400, "bin_header",
                        "more than 32 tensors" if n < 100 else "memory")
        document, behind = lossd.inference(TINY.tensors())
        for outputs in ([{"name": "loss"}] * 33, [{"name": "t%d" % i} for i in range(10000)], [{"name": "loss"}] * 10000):
            self.infer({**document, "outputs": outputs}, behind, 400 if outputs[0] == outputs[1] else 422)
        self.infer({"inputs": document["inputs"] * 2000}, behind, 400)

    def test_B13_odd_offsets(self):
        want = lossd.stable(self.ask(GOOD, lossd.SAFETENSORS).body)
        for pad in range(1, 8):
            self.assertEqual(lossd.stable(self.ask(TINY.safetensors(pad=pad), lossd.SAFETENSORS).body), want)
        labels = ("U8", [1], b"\0")
        for order in (("labels", "loc", "conf", "boxes", "counts"), ("labels", "counts", "boxes", "conf", "loc")):
            made = {"labels": labels, **{name: TINY.tensors()[name] for name in (*order[1:], "priors")}}
            body = lossd.save([(name, *tensor) for name, tensor in made.items()])
            self.assertEqual(lossd.stable(self.ask(body, lossd.SAFETENSORS).body), want)

    def test_B14_numbers_that_are_none(self):
        """Never a float made an integer: signalling NaNs and denormals too."""
        bits = lossd.unpack("F32", struct.pack("<6I", 0x7f800001, 0xffc00000, 0x7f800000, 0xff800000, 0x7fffffff, 1))
        batch = lossd.random_batch(9, n=2, p=4100, c=4, objects=4)
        for value in bits[:5]:
            bad = batch.pick(range(2))
            for prior in (4099, 70, 71):
                bad.conf[(4100 + prior) * 4 + 1] = value
            problem = self.binary(bad.safetensors(), 422, "prediction_not_finite", r"\b3\b", r"^conf\[1,70")
            bad = batch.pick(range(2))
            bad.loc[5 * 4 + 3] = value
            self.binary(bad.safetensors(), 422, "prediction_not_finite", None, r"^loc\[0,5")
            bad = batch.pick(range(2))
            bad.boxes[5] = value
            self.binary(bad.safetensors(), 422, "box_not_finite", None, r"^boxes\[1")
            bad = lossd.tiny()
            bad.priors[5] = value
            self.binary(bad.safetensors(), 422, "prior_degenerate", None, r"^priors\[1\]")
        self.assertTrue(problem)
        small = batch.pick(range(2))
        small.conf[7], small.loc[9] = bits[5], -bits[5]
        self.right(self.ask(small.safetensors(), lossd.SAFETENSORS))
        for dtype in ("F16", "F64"):
            own = TINY.tensors()["conf"]
            data = bytearray(lossd.pack(dtype, lossd.unpack("F32", own[2])))
            data[:lossd.SIZES[dtype]] = lossd.pack(dtype, [NAN])
            self.binary(tensors(conf=(dtype, own[1], bytes(data))), 422, "prediction_not_finite")

    def test_B20_labels_that_an_int_does_not_hold(self):
        batch = lossd.random_batch(9, n=2, p=9, c=4, objects=4)
        for label in (3, -1, 1 << 31, 1 << 32, (1 << 32) + 1, -(1 << 31), -(1 << 63), (1 << 63) - 1):
            with self.subTest(label):
                bad = batch.pick(range(2))
                bad.labels[2] = label
                self.binary(bad.safetensors(), 422, "label_range", str(label), r"^labels\[2\]")

    def test_B21_the_same_in_every_encoding(self):
        """Bit for bit; test_differential.py compares many more, on every level and number of workers."""
        for batch in (TINY, lossd.random_batch(1, n=3, p=65, c=4), lossd.random_batch(2, n=2, p=9, c=3, objects=0)):
            want = lossd.stable(self.ask(batch.safetensors(), lossd.SAFETENSORS).body)
            for flat in (False, True):
                self.assertEqual(lossd.stable(self.ask(batch.json(flat=flat), lossd.JSON).body), want)
            document, behind = lossd.inference(batch.tensors(), outputs=[{"name": "loss"}])
            text = json.dumps(document).encode()
            answer = self.connection.request("POST", INFER, text + behind, lossd.infer_headers(text))
            self.assertEqual(lossd.read_inference(answer)[1]["loss"][2], [json.loads(want)["loss"]["total"]])

    def test_B22_types_and_what_is_sent(self):
        self.binary(TINY.json(), 400, "bin_header_length", "looks like JSON")
        self.json(GOOD, 400, "json_syntax json_not_object", "looks like safetensors")
        random.seed(1)
        self.binary(random.randbytes(4096), 400, "bin_header_length")
        self.json(random.randbytes(4096), 400)
        for body in (b"PK\x03\x04" + bytes(100), b"\x80\x04" + bytes(100), b"\x93NUMPY\x01\0" + bytes(100), b"\x1f\x8b" * 60):
            self.binary(body, 400, "bin_header_length")

    def test_missing_and_unknown_tensors(self):
        for name in ("loc", "conf", "boxes", "labels", "counts"):
            self.binary(TINY.safetensors(without=(name,)), 422, "missing_member", name)
        body = self.binary(tensors(lables=("U8", [1], b"\0")), 422, "unknown_member", "labels")
        self.assertIn("lables", body["detail"] + body["pointer"])


class Inferences(hostile.Refusals):
    """The same, as the Open Inference Protocol has it: JSON, and bytes behind it that a header divides."""

    FLAGS = ("--max-body", "1M", "--max-json", "64K", "--workers", "1")

    def test_B15_the_header(self):
        document, behind = lossd.inference(TINY.tensors())
        text = json.dumps(document).encode()
        body = text + behind
        for value, said in (("-1", "not a number"), ("abc", "not a number"), ("", "not a number"), ("+5", "not a number"),
                            ("0x5", "not a number"), ("5,5", "not a number"), ("0", "raw binary"),
                            (str(len(body) + 1), "larger"), ("2147483648", "larger"), ("4294967297", "larger"),
                            ("9223372036854775807", "larger"), ("18446744073709551617", "larger"),
                            (str(len(text) - 1), ""), (str(len(text) + 1), ""), (str(len(body)), "")):
            with self.subTest(value):
                self.infer(body, b"", 400, said, headers={"Inference-Header-Content-Length": value})
                again = self.connection.request("POST", INFER, body, lossd.infer_headers(text))
                self.assertEqual(again.status, 200, again)
        self.infer(body, b"", 400, "Inference-Header-Content-Length", headers={})
        for first, second in ((len(text), len(text)), (len(text), 5)):
            answers, _ = self.daemon.raw(hostile.request(
                "POST", INFER, "Inference-Header-Content-Length: %d" % first,
                "inference-header-content-length: %d" % second, "Content-Length: %d" % len(body), body=body), 0.3)
            self.assertEqual(len(answers), 1)
            self.error(answers[0], 400, "More than one")
        with self.daemon.connect() as connection:  # chunked: what is too large is known at the end
            for value, status in ((len(text), 200), (len(body) + 1, 400)):
                connection.start("POST", INFER,
                                 {"Transfer-Encoding": "chunked", "Inference-Header-Content-Length": value})
                connection.send(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
                answer = connection.answer()
                self.assertEqual(answer.status, status, answer)
        self.error(answer, 400, "Inference-Header-Content-Length is %d" % (len(body) + 1))

    def refused(self, rows):
        """Rows of (document, bytes behind it, status, what is said)."""
        for made, behind, status, text in rows:
            with self.subTest(text, made=str(made)[:200]):
                self.infer(made, behind, status, text)

    def input(self, which, **members):
        """The tiny inference with members of one input replaced."""
        document, _ = lossd.inference(TINY.tensors())
        document["inputs"][list(TINY.tensors()).index(which)].update(members)
        return document

    def test_B16_sizes_of_bytes(self):
        document, behind = lossd.inference(TINY.tensors())
        self.refused([
            (document, behind[:-1], 400, "only .* bytes are left"), (document, behind + b"x", 400, "1 bytes follow"),
            (document, b"", 400, ""), (document, behind * 2, 400, "bytes follow"),
            (self.input("loc", parameters={"binary_data_size": 31}), behind, 400, ""),
            (self.input("loc", parameters={"binary_data_size": 33}), behind, 400, ""),
            (self.input("loc", parameters={"binary_data_size": -1}), behind, 400, "-1"),
            (self.input("loc", parameters={"binary_data_size": 1 << 63}), behind, 400, ""),
            (self.input("loc", parameters={"binary_data_size": (1 << 63) - 1}), behind, 400, "only"),
            (self.input("loc", parameters={"binary_data_size": 32.0}), behind, 400, "an integer"),
            (self.input("loc", parameters={"binary_data_size": "32"}), behind, 400, "an integer"),
            (self.input("loc", shape=[1, 2, 5]), behind, 400, "shape and datatype make 40"),
            (self.input("loc", shape=[1 << 62, 1 << 62, 4]), behind, 400, "overflows"),
            (self.input("loc", shape=[1, -2, 4]), behind, 400, "-2"),
            (self.input("loc", shape=[1, 2.0, 4]), behind, 400, "an integer"),
            (self.input("loc", shape="x"), behind, 400, "an array"),
            (self.input("loc", shape=[1] * 9), behind, 400, "dimensions"),
            (self.input("loc", shape=[8]), behind, 422, "dimensions"),
            (self.input("loc", shape=[2, 1, 4]), behind, 422, "loc is")])

    def test_B17_data_and_bytes(self):
        document, behind = lossd.inference(TINY.tensors())
        swapped = {**document, "inputs": document["inputs"][::-1]}
        self.refused([
            (self.input("loc", parameters={}), behind, 400, "neither"), (self.input("loc", parameters=3), behind, 400, "object"),
            (self.input("loc", data=[0] * 8), behind, 400, "data and binary_data_size"),
            (self.input("loc", parameters={"shared_memory_region": "r", "shared_memory_byte_size": 32}), behind, 422,
             "shared memory"),
            ({**document, "parameters": []}, behind, 400, "an object"),
            ({**document, "parameters": {"binary_data_output": 1}}, behind, 400, "a boolean"),
            ({"outputs": []}, b"", 400, '"inputs" is missing'), ({"inputs": {}}, b"", 400, "an array"),
            ({"inputs": [1]}, b"", 400, "an object"), ({"inputs": []}, b"", 422, "missing"),
            (swapped, behind, 422, "")])   # the bytes are those of others then

    def test_B18_names(self):
        document, behind = lossd.inference(TINY.tensors())
        self.refused([
            (self.input("labels", name="label"), behind, 422, 'label: .*"labels"'),
            (self.input("labels", name="boxes"), behind, 400, "boxes.* twice"),
            (self.input("labels", name=1), behind, 400, "string"), (self.input("labels", size=1), behind, 422, "size"),
            (self.input("labels", name="l" * 100000), b"", 413, ""), (self.input("labels", name=""), behind, 422, ""),
            ({**document, "output": []}, behind, 422, '"outputs"'),
            ({"inputs": document["inputs"] * 7}, behind, 400, "more than 32"),
            ({**document, "outputs": [{"name": "los"}]}, behind, 422, '"loss"'),
            ({**document, "outputs": [{"name": "loss"}] * 2}, behind, 400, "twice")])

    def test_B19_values_of_datatypes(self):
        document, behind = lossd.inference(TINY.tensors())
        self.refused([
            (self.input("labels", datatype="BYTES"), behind, 422, 'labels.* is BYTES; accepted are .*INT64'),
            (self.input("labels", datatype="FP64"), behind, 422, "accepted are INT64, INT32, INT16, INT8, UINT8"),
            (self.input("labels", datatype="int64"), behind, 422, "labels"),
            (self.input("labels", datatype=3), behind, 400, "string")])
        for flag in (2, 127, 255):
            ignore = {**TINY.tensors(), "ignore": ("BOOL", [1], bytes([flag]))}
            self.infer(*lossd.inference(ignore), 422, r"ignore\[0\]: .*%d" % flag)
        nothing = {**TINY.tensors(), "boxes": ("F32", [0, 4], b""), "labels": ("I64", [0], b""),
                   "counts": ("I64", [1], lossd.pack("I64", [0]))}
        for in_json in ((), True, ("boxes",)):
            document, behind = lossd.inference(nothing, in_json)
            text = json.dumps(document).encode()
            answer = self.connection.request("POST", INFER, text + behind, lossd.infer_headers(text) if behind else {})
            self.assertEqual(lossd.read_inference(answer)[1]["positives"][2], [0])
        wrong = {**TINY.tensors(), "labels": ("I64", [1], lossd.pack("I64", [1 << 31]))}
        for in_json in ((), True):
            document, behind = lossd.inference(wrong, in_json)
            self.infer(document, behind, 422, r"labels\[0\]: .*2147483648", headers=None if behind else {})


if __name__ == "__main__":
    unittest.main()
