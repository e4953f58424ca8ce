# SPDX-License-Identifier: Apache-2.0
"""JSON that is none, is too much, or says what cannot be meant (J01-J23). Every refusal names the place."""
import json
import math
import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hostile  # noqa: E402
import json_cases  # noqa: E402
import lossd  # noqa: E402
from hostile import edited  # noqa: E402

TINY = lossd.tiny()
TEXT = json.dumps(TINY.document())
LOC = '{"predictions":{"loc":%s}}'     # where the arrays are read by a pass of our own


def one_number(text):
    """The tiny request with this in the place of its first number."""
    assert TEXT.count("0.5, -0.25") == 1
    return TEXT.replace("0.5, -0.25", text + ", -0.25")


class Texts(hostile.Refusals):
    def test_J01_depth(self):
        """32 levels, and the stack is the same for any number of them."""
        for n in (33, 2048, 2049, 100000, 1000000):
            for body in ('{"a":' + "[" * (n - 1), '{"a":' * n, LOC.replace("%s", "[" * n),
                         '{"annotations":[' + "[" * n, '{"a":' + "[" * (n - 1) + "]" * (n - 1) + "}"):
                with self.subTest(body[:20], levels=n):
                    self.json(body, 400, "json_depth", "byte")
        self.json('{"a":' + "[" * 31 + "]" * 31 + "}", 422, "unknown_member")
        self.json("[" * 100000, 400)
        self.json('{"a":"' + "[" * 1000 + '"}', 422, "unknown_member")

    def test_J02_duplicate_members(self):
        for body in ('{"criterion":"ssd-multibox","criterion":"ssd-multibox"}',
                     '{"criterion":"ssd-multibox","\\u0063riterion":"ssd-multibox"}',
                     '{"predictions":{"loc":[],"loc":[]}}', '{"predictions":{"loc":[1],"l\\u006fc":[2]}}',
                     '{"a":{"b":1,"b":1}}', '{"":0,"":0}'):
            self.json(body, 400, "json_duplicate_key")

    def test_J03_words_that_are_no_numbers(self):
        for word in ("NaN", "Infinity", "-Infinity"):
            self.json(one_number(word), 400, "json_nan", "NaN")
            self.json('{"a":%s}' % word, 400, "json_nan", "NaN")
        for word in ("nan", "inf", "-NaN", "NAN", "Inf"):
            self.json(one_number(word), 400)

    def test_J04_numbers_out_of_range(self):
        """Among a tensor's numbers they are infinite, as they would be in a binary body; elsewhere they are no numbers."""
        for number in ("1e999", "-1e999", "9" * 400, "3.5e38"):
            self.json(one_number(number), 422, "prediction_not_finite", None, "/predictions/loc/0/0")
        for number in ("1e999", "-1e999"):
            self.json('{"label_base":%s}' % number, 400, "json_number_range")
        want = lossd.stable(self.ask(one_number("0.0").encode(), lossd.JSON).body)
        for number in ("1e-999", "-1e-999", "0e999", "0." + "0" * 500 + "1"):
            self.assertEqual(lossd.stable(self.ask(one_number(number).encode(), lossd.JSON).body), want)

    def test_J05_long_integers(self):
        for number in ("9223372036854775808", "-9223372036854775809", "9" * 400000):
            begin = time.monotonic()
            self.json('{"label_base":%s}' % number, 400, "json_number_range")
            self.json(edited(TINY.document(), ["annotations", 0, "labels"], [1]) | {"x": 1}, 422, "unknown_member")
            body = json.dumps(TINY.document()).replace('"labels": [0]', '"labels": [%s]' % number)
            self.json(body, 400, "json_number_range", "line 1, column [0-9]+, byte [0-9]+: too big")
            self.assertLess(time.monotonic() - begin, 2)
        self.json(one_number("-" + "9" * 400000), 422, "prediction_not_finite")

    def test_J06_numbers_as_others_write_them(self):
        for number in ("01", "+1", ".5", "1.", "0x10", "-", "--1", "1e", "1e+", "00", "-01", "1.e5", "0b1", "1_000", "1,5",
                       "1f", "0.5.5", "\u0661"):
            with self.subTest(number):
                self.json(one_number(number.encode().decode("latin-1")), (400, 422))
                self.json('{"a":%s}' % number.encode().decode("latin-1"), 400, "json_syntax")
        self.json(one_number("1,5"), 422, "ragged_array shape")   # which is two numbers

    def test_J07_bytes_that_are_no_text(self):
        for text in (b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xc3",
                     b"\\ud800", b"\\udc00", b"\\ud800\\ud800", b"\\ud800x"):
            for body in (b'{"a":"' + text + b'"}', b'{"' + text + b'":1}', b'{"predictions":{"loc":["' + text + b'"]}}'):
                with self.subTest(body):
                    self.json(body, 400, "json_syntax", r"byte \d+")

    def test_J08_nul(self):
        for body in (b'{"a":"\\u0000"}', b'{"\\u0000":1}', b'{"a":"\0"}', b'{"a":1\0}', b'\0{"a":1}', b'{"a\0":1}',
                     b'{"predictions":{"loc":[1,\0]}}', b'{"predictions":{"loc":[1\0,2]}}'):
            with self.subTest(body):
                self.json(body, 400)
        for body in (b'{"a":"\\u0000"}', b'{"\\u0000":1}'):
            self.json(body, 400, "json_syntax", r"no string may hold \\u0000$")

    def test_J09_other_encodings(self):
        for body in (b"\xef\xbb\xbf" + TEXT.encode(), TEXT.encode("utf-16"), TEXT.encode("utf-16-le"),
                     TEXT.encode("utf-16-be"), b"\xff\xfe{}", b"\xfe\xff"):
            self.json(body, 400, None, "UTF-8 without BOM")
        for body in (TEXT.encode("utf-32"), '{"caf\u00e9":1}'.encode("latin-1"), b"\xff{}"):
            self.json(body, 400)

    def test_J10_what_follows(self):
        for more in ("{}", ",", "\0", "]", "}", "x", "null", "1", '"', "{", TEXT):
            with self.subTest(more[:5]):
                self.json(TEXT + more, 400, "json_syntax")
        self.right(self.ask((TEXT + " \t\r\n").encode(), lossd.JSON))

    def test_J11_other_languages_and_every_prefix(self):
        for body in ('{/**/"a":1}', "{'a':1}", "{a:1}", '{"a":1,}', '{"a":[1,]}', '{"a":1}//', '{"a" "b"}', '{"a":}', "{,}",
                     '{"a":1;}', "{", "}", '{"a":tru}', '{"a":"\\x"}', '{"a":"\n"}', '{"a":"\x01"}', '{"a"=1}', "{]", "(a)",
                     '{"predictions":{"loc":[1 2]}}', '{"predictions":{"loc":[1,,2]}}', '{"predictions":{"loc":[,1]}}',
                     '{"predictions":{"loc":[1,]}}', '{"predictions":{"loc":[1}}}', '{"predictions":{"loc":[1/**/]}}'):
            with self.subTest(body):
                self.json(body, 400)
        body = TINY.json(include="images")
        for end in range(1, len(body)):
            self.json(body[:end], 400, "json_syntax")

    def test_J12_no_object(self):
        for body in (b"", b"  \r\n\t "):
            self.json(body, 400, "json_empty")
        for body in (b"[]", b"3", b'"x"', b"null", b"true", b"nonsense", b"<a/>", b"a=b", b"[{}]", b"\x0c{}"):
            self.json(body, 400, "json_not_object")

    def test_J13_trees(self):
        """What a tree of this text would need is counted; what cannot be a request's is not built at all."""
        for head in (b'{"a":[', b'{"annotations":[', b'{"criterion":{"classification":['):
            for unit in (b"{},", b"[],", b'"",', b"null,", b'{"a":0},', b"[[]],")[::1 if b"an" in head else 3]:
                text = head + unit * (400000 // len(unit)) + b"0" + b"]}" + b"}" * (head.count(b"{") - 1)
                self.json(text, (413, 422), "json_too_complex unknown_member missing_member type_mismatch")

    def test_J18_many_members(self):
        """As many as fit into the memory of a tree, at the same price each. The seed of the hashes is the process's own."""
        seconds = []
        for n in (10000, 40000):
            begin = time.monotonic()
            body = "{" + ",".join('"k%d":0' % i for i in range(n)) + "}"
            self.json(body, (413, 422), "json_too_complex unknown_member")
            seconds.append(time.monotonic() - begin)
        self.assertLess(seconds[1], 16 * seconds[0] + 0.5)
        self.json("{" + ",".join('"k%d":0' % i for i in range(120000)) + "}", (413, 422),
                  "json_too_complex unknown_member")

    def test_J19_long_strings(self):
        long = "x" * (10 << 20)
        self.json('{"%s":1}' % long, 422, "unknown_member")
        self.json('{"a":"%s"}' % long, 422, "unknown_member")
        for member, code in (("criterion", "unknown_criterion"), ("priors", "unknown_priors"), ("include", "invalid_option"),
                             ("device", "invalid_option"), ("run", "invalid_option")):
            document = {**TINY.document(), member: long[:1 << 19], **({"step": 1} if member == "run" else {})}
            self.json(document, 422, code)

    def test_J21_locales(self):
        """A comma for a point would be the C library's, when a program asks for it; this one does not."""
        symbols = subprocess.run(["nm", "-D", "--undefined-only", lossd.BINARY], capture_output=True, check=True).stdout
        self.assertIn(b" strtod", symbols)
        self.assertNotRegex(symbols, rb"\b(setlocale|newlocale|uselocale)\b")
        want = lossd.stable(self.ask(TEXT.encode(), lossd.JSON).body)
        with lossd.Daemon(env={"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}) as daemon:
            self.assertEqual(lossd.stable(daemon.post("/v1/loss", TEXT.encode(), lossd.JSON).body), want)

    def test_J22_the_public_suite(self):
        """Its verdicts, within an object and where our own pass reads arrays: the same in both places."""
        counts = {True: 0, False: 0}
        for name, text, read in json_cases.CASES:
            counts[read] += 1
            for before, after in ((b'{"a":', b"}"), (b'{"predictions":{"loc":', b"}}"), (b'{"annotations":', b"}"),
                                  (b'{"targets":{"classes":', b"}}")):
                tensor = b"predictions" in before  # classes are integers
                with self.subTest(name, before=before):
                    status = 422 if read or (tensor and name in json_cases.FLOATS) else 400
                    self.json(before + text + after, status)
            with self.subTest(name):   # alone, where an object is all that is read
                self.json(text, 422 if read and text.startswith(b"{") else 400)
        self.assertEqual(counts, {True: 93, False: 225})

    def test_J23_numbers_come_back(self):
        """Doubles as they are written, to the bit; those of tensors are narrowed to float32, as strtod and a cast do."""
        with lossd.Daemon() as daemon:
            for number in ("0", "0.1", "0.30000000000000004", "5e-324", "2.2250738585072011e-308", "12345.678901234567",
                           "1e3", "0.1000000000000000055511151231257827"):
                body = '{"base":"ssd-multibox","localization":{"kind":"smooth_l1","beta":%s}}' % number
                self.assertIn(daemon.put("/v1/criteria/numbers", body.encode()).status, (200, 201), number)
                got = self.good(daemon.get("/v1/criteria/numbers"))["localization"]["beta"]
                self.assertEqual(got, float(number))
        for number in ("0.1", "16777217", "1e-45", "7e-46", "1.1754943e-38", "-0.0", "-0", "3.4028234e38"):
            want = lossd.unpack("F32", lossd.pack("F32", [float(number)]))[0]
            texts = [one_number(t).encode() for t in (number, repr(want))]
            first, second = (lossd.stable(self.ask(text, lossd.JSON).body) for text in texts)
            self.assertEqual(first, second)


class Meaning(hostile.Refusals):
    def edit(self, path, value=None):
        return edited(TINY.document(), path, value)

    def test_J14_types(self):
        for path, value, pointer in (
                (["annotations", 0, "labels"], ["cat"], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], [0.5], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], [1.0], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], [True], "^/annotations/0/labels/0$"),
                (["annotations", 0, "labels"], 3, "^/annotations/0/labels$"),
                (["annotations", 0, "boxes"], [["0", 0, 1, 1]], "^/annotations/0/boxes/0"),
                (["annotations", 0, "boxes"], {}, "^/annotations/0/boxes$"),
                (["annotations"], {}, "^/annotations$"), (["annotations"], [3], "^/annotations/0$"),
                (["predictions"], [], "^/predictions$"), (["predictions", "loc"], "x", "^/predictions/loc$"),
                (["predictions", "conf"], [[["0", 0, 0], [0, 0, 0]]], "^/predictions/conf/0/0/0$"),
                (["predictions", "conf"], [[[0, 0, False], [0, 0, 0]]], "^/predictions/conf/0/0/2$"),
                (["criterion"], 7, "^/criterion$"), (["include"], 7, "^/include$"), (["step"], "1", "^/step$")):
            with self.subTest(path=path, value=value):
                document = self.edit(path, value)
                self.json({**document, "run": "a"} if path == ["step"] else document, 422, "type_mismatch",
                          "expected|must|not", pointer)

    def test_J15_ragged_arrays(self):
        for path, value, pointer in (
                (["predictions", "loc"], [[[0, 0, 0, 0], [0, 0, 0]]], "^/predictions/loc/0/1$"),
                (["predictions", "loc"], [[[0, 0, 0, 0], 0]], "^/predictions/loc/0/1$"),
                (["predictions", "conf"], [[[0, 0, 0], [0, 0, 0, 0]]], "^/predictions/conf/0/1$"),
                (["predictions", "conf"], [[[0, 0, 0], []]], "^/predictions/conf/0/1$"),
                (["annotations", 0, "boxes"], [[0, 0, 0.5]], "^/annotations/0/boxes/0$"),
                (["annotations", 0, "boxes"], [[0, 0, 0.5, 0.5, 1]], "^/annotations/0/boxes/0$")):
            with self.subTest(path=path, value=value):
                self.json(self.edit(path, value), 422, "ragged_array", r"\d", pointer)

    def test_J16_members(self):
        for path, name in ((["predictions"], "predictions"), (["annotations"], "annotations"),
                           (["predictions", "loc"], "loc"), (["predictions", "conf"], "conf"),
                           (["annotations", 0, "boxes"], "boxes"), (["annotations", 0, "labels"], "labels")):
            with self.subTest(path):
                self.json(self.edit(path), 422, "missing_member", name)
        for path, known in ((["critereon"], "criterion"), (["prior"], "priors"), (["Include"], "include"),
                            (["PREDICTIONS"], "predictions"), (["predictions", "locs"], "loc"),
                            (["predictions", "Loc"], "loc"), (["annotations", 0, "lables"], "labels")):
            with self.subTest(path):
                body = self.json(self.edit(path, "x"), 422, "unknown_member", known)
                self.assertIn(path[-1], body["detail"] + body["pointer"])
        self.json(self.edit(["zzzzzzzzzzzz"], 1), 422, "unknown_member", "zzzzzzzzzzzz")
        for name in ("a/b", "a~b", '"', "\\", "\u202e", "\ud7ff", "<script>", "\x7f", "\n"):
            self.json(self.edit([name], 1), 422, "unknown_member")
        self.json(self.edit(["criterion"], "ssd-multibx"), 422, "unknown_criterion", "ssd-multibox")
        self.json(self.edit(["priors"], "ssd-300"), 422, "unknown_priors", "ssd300")
        self.json(self.edit(["include"], "image"), 422, "invalid_option", "images")

    def test_J17_null(self):
        for path, value, pointer in (
                (["predictions", "loc"], [[[None, 0, 0, 0], [0, 0, 0, 0]]], "^/predictions/loc/0/0/0$"),
                (["predictions", "loc"], [[None, [0, 0, 0, 0]]], "^/predictions/loc/0/0$"),
                (["annotations", 0, "labels"], [None], "^/annotations/0/labels/0$"),
                (["annotations", 0, "boxes"], [[0, 0, 1, None]], "^/annotations/0/boxes/0/3$"),
                (["annotations"], [None], "^/annotations/0$")):
            with self.subTest(path):
                self.json(self.edit(path, value), 422, "type_mismatch", "null", pointer)
        for path in (["predictions"], ["predictions", "loc"], ["annotations"], ["include"], ["criterion"]):
            self.json(json.dumps(self.edit(path, "nothing")).replace('"nothing"', "null"), 422)

    def test_J20_answers_that_are_not_finite(self):
        """There are none: what is beyond float32 is refused, and says where."""
        document = TINY.document()
        document["predictions"]["conf"] = [[[3e38, -3e38, 0], [0, 0, 0]]]
        self.json(document, 422, "loss_overflow", None, "^/predictions/conf")
        document["predictions"]["conf"] = [[[-1e37, 1e37, 0], [0, 0, 0]]]
        got = self.right(self.ask(json.dumps(document).encode(), lossd.JSON))
        self.assertTrue(all(math.isfinite(x) for x in got["loss"].values()))


if __name__ == "__main__":
    unittest.main()
