# SPDX-License-Identifier: Apache-2.0
"""Where each fuzz target begins: small inputs of every kind that it takes, most of them the golden cases' requests."""
import glob
import gzip
import json
import os
import random
import struct
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SMALL = 2500    # bytes of a golden request that is taken

BATCH = {"priors": [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]],
         "predictions": {"loc": [[[0.5, -0.25, 0, 2], [1, 1, 1, 1]]], "conf": [[[0, 1, 0], [0.5, 0, 2]]]},
         "annotations": [{"boxes": [[0, 0, 0.5, 0.5]], "labels": [0]}]}
FLAT = dict(BATCH, predictions={"loc": {"shape": [1, 2, 4], "data": [0.5, -0.25, 0, 2, 1, 1, 1, 1]},
                                "conf": {"data": [0, 1, 0, 0.5, 0, 2], "shape": [1, 2, 3]}})
TARGETS = {"targets": {"classes": [[0, -1]], "loc": [[[0, 0, 0, 0], [0, 0, 0, 0]]]}, "priors": BATCH["priors"],
           "predictions": BATCH["predictions"], "include": "targets,gradients"}
CRITERIA = [
    {}, {"base": "ssd-multibox"}, {"base": "retinanet-focal"}, {"base": "ssd-keras", "weights": {"loc": 2, "conf": 0.5}},
    {"matcher": {"positive_iou": 0.6, "negative_iou": 0.4, "force": "greedy", "iou": "sizes", "ignore_iof": 0.5}},
    {"coder": {"variances": [0.1, 0.1, 0.2, 0.2]}, "localization": {"kind": "ciou", "reduction": "mean"}},
    {"classification": {"kind": "sigmoid_focal", "alpha": [0.25, 0.5, 0.75], "gamma": 1.5, "background": "none"}},
    {"classification": {"kind": "softmax_ce", "class_weights": [1, 2, 3], "label_smoothing": 0.1}},
    {"mining": {"kind": "hard_negative", "ratio": 1.5, "scope": "batch", "min_negatives": 4}},
    {"mining": {"kind": "none"}, "normalizer": {"kind": "value", "value": 2.5}},
    {"localization": {"kind": "smooth_l1", "beta": 0.11}}, {"localization": {"kind": "huber", "delta": 0.5}},
    {"localization": {"kind": "jump_l1", "delta": 1.5}, "normalizer": {"kind": "image_positives"}},
    {"classification": {"kind": "prob_ce", "background": "last"}, "normalizer": {"kind": "positives_and_mined"}},
]
GENERATORS = [
    {"generator": "ssd"}, {"generator": "ssd", "image_size": 64, "feature_maps": [4, 2], "steps": [16, 32],
                           "sizes": [8, 20, 40], "aspect_ratios": [[2], [2, 3]], "clip": True},
    {"generator": "grid", "image_size": [64, 64]}, {"generator": "grid", "image_size": [32, 48], "order": "cell"},
    {"generator": "retinanet", "image_size": [64, 64]},
    {"generator": "ssd-scales", "image_size": 64}, {"generator": "efficientnet"},
    {"generator": "ssd", "level_names": ["a", "b"], "image_size": 64, "feature_maps": [[4, 3], [2, 2]], "steps": [16, 32],
     "sizes": [8, 20, 40], "aspect_ratios": [[2], [2, 3]]}, {"priors": BATCH["priors"]},
    {"priors": {"shape": [1, 4], "data": [0.5, 0.5, 0.25, 0.25]}},
]
NUMBERS = ["0", "-0", "1", "-1", "0.1", "1e5", "1E-5", "3.4028235e38", "3.4028236e38", "1e-45", "7e-46", "1e308", "1e309",
           "4.9e-324", "2.4e-324", "2.2250738585072011e-308", "9223372036854775807", "-9223372036854775808",
           "9223372036854775808", "123456789012345678901234567890", "0.30000000000000004", "5e-324", "1.5", "00", "-",
           "1.", ".5", "1e", "1e+", "0x10", "8.988465674311580e307", "16777217", "1e23", "9007199254740993", "6.02e23,"]


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


def wrong(document):
    """The document with each of its values replaced in turn by some of another type or size, or left out."""
    source = random.Random(3)

    def other(value):
        bad = [None, "x", [], {}, -1, 1.5, True, [[]], 1e300, 2 ** 63 - 1, "x" * 70, [1] * 40]
        return source.sample(bad, 3) + ([value[:-1], value + value] if isinstance(value, list) else [])

    def each(value, put):
        for bad in other(value):
            yield put(bad)
        pairs = list(value.items()) if isinstance(value, dict) else \
            list(enumerate(value)) if isinstance(value, list) else []
        for key, below in pairs:
            def put_below(new, key=key):
                copy = dict(value) if isinstance(value, dict) else list(value)
                copy[key] = new
                return put(copy)
            yield from each(below, put_below)
            if isinstance(value, dict):
                yield put({k: v for k, v in value.items() if k != key})
                yield put(dict(value, **{key + "s": below}))
    return map(text, each(document, lambda new: new))


def golden(name):
    for path in sorted(glob.glob(os.path.join(ROOT, "tests", "golden", "*", name))):
        if os.path.getsize(path) <= SMALL:
            with open(path, "rb") as f:
                yield f.read()


def tensors(entries, metadata=None):
    """entries: (name, dtype, shape, bytes)."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape, raw in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = text(header)
    return struct.pack("<Q", len(head)) + head + data


def floats(*values):
    return struct.pack("<%df" % len(values), *values)


def entries():
    return [("counts", "I64", [1], struct.pack("<q", 1)), ("labels", "I64", [1], struct.pack("<q", 0)),
            ("boxes", "F32", [1, 4], floats(0, 0, .5, .5)),
            ("priors", "F32", [2, 4], floats(.25, .25, .5, .5, .75, .75, .5, .5)),
            ("conf", "F32", [1, 2, 3], floats(0, 1, 0, .5, 0, 2)),
            ("loc", "F32", [1, 2, 4], floats(.5, -.25, 0, 2, 1, 1, 1, 1))]


def of_json():
    yield text(BATCH)
    yield text(FLAT)
    yield text(TARGETS)
    for option in ({"criterion": "ssd-keras"}, {"image_size": [300, 300]}, {"label_base": 1}, {"run": "a", "step": 3},
                   {"box_format": "xywh", "invalid_boxes": "drop"}, {"device": "cuda:1"}, {"include": "images,classes"},
                   {"image_size": [[3, 4]]}, {"priors": GENERATORS[2]}):
        yield text(dict(BATCH, **option))
    yield text(dict(BATCH, annotations=[{"boxes": [[0, 0, .5, .5]], "labels": [0], "ignore": [True]}]))
    yield text({"annotations": BATCH["annotations"], "classes": 3, "priors": BATCH["priors"]})
    for criterion in CRITERIA:
        yield text(dict(BATCH, criterion=criterion))
    for document in (BATCH, FLAT, TARGETS, dict(BATCH, image_size=[[3, 4]], run="a", step=3, label_base=1)):
        yield from wrong(document)
    yield text({"annotations": [{"boxes": [[.5, .5, .1, .1]], "labels": [0], "ignore": [1]}], "invalid_boxes": "drop"})
    yield from golden("request.json")


def of_scan():
    yield from of_json()
    for number in NUMBERS:
        yield b'{"priors":[[0.5,%s,' % number.encode() + b'1,1]]}'
    yield b'{"predictions":{"loc":[[[1,"a",{}]],[[true]],3]},"targets":{"classes":[[1,2],[3,NaN]]}}'
    yield b'{"\\u0070riors":[[1 , 2\t,\n3,4],[-1e-3,0,0,0]],"image_size":[[1,2],[3]],"x":[[[[]]]]}'
    yield b'{"annotations":[{"boxes":[[1,2,3],[4]],"labels":[1.5],"ignore":[2,true,false]},{"boxes":[]}]}'


def of_safetensors():
    yield tensors(entries())
    yield tensors(entries()[::-1], {"include": "images", "format": "pt", "criterion": text(CRITERIA[1]).decode()})
    yield tensors([("priors", "F64", [1, 4], struct.pack("<4d", .5, .5, .25, .25))])
    yield tensors(entries()[3:] + [("target_classes", "I64", [1, 2], struct.pack("<2q", 0, -1)),
                                   ("target_loc", "F32", [1, 2, 4], floats(*[0] * 8))])
    yield tensors(entries()[:4] + [("ignore", "BOOL", [1], b"\1"), ("image_sizes", "F32", [1, 2], floats(300, 300))])
    head = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(raw)]}
            for name, dtype, shape, raw in entries()[:2]}
    for bad in wrong(head):
        yield struct.pack("<Q", len(bad)) + bad + bytes(16)
    for i, (name, dtype, shape, raw) in enumerate(entries()):
        yield tensors(entries()[:i] + entries()[i + 1:])
        yield tensors(entries()[:i] + [(name, dtype, shape + [1], raw)] + entries()[i + 1:])
        yield tensors(entries()[:i] + [(name, dtype, shape[:-1] + [2 * shape[-1]], 2 * raw)] + entries()[i + 1:])
    yield tensors([("t%d" % i, "U8", [1], b"x") for i in range(40)])
    yield tensors(entries() + [("target_classes", "I32", [1, 2], bytes(8)), ("target_loc", "F32", [1, 2, 4], bytes(32))])
    yield tensors(entries(), {"priors": "ssd300"})
    yield tensors(entries()[:4] + [("ignore", "U8", [1], b"\7")] + entries()[4:])
    yield from golden("request.safetensors")


def inference(binary, outputs=None, **parameters):
    kinds = {"I64": "INT64", "F32": "FP32"}
    inputs, data = [], b""
    for name, dtype, shape, raw in entries():
        entry = {"name": name, "datatype": kinds[dtype], "shape": shape}
        if binary:
            entry["parameters"] = {"binary_data_size": len(raw)}
            data += raw
        else:
            entry["data"] = list(struct.unpack("<%d%s" % (len(raw) // (8 if dtype == "I64" else 4),
                                                          "q" if dtype == "I64" else "f"), raw))
        inputs.append(entry)
    body = {"id": "1", "inputs": inputs}
    if outputs:
        body["outputs"] = outputs
    if parameters:
        body["parameters"] = parameters
    return text(body), data


def of_infer():
    for binary in (False, True):
        head, data = inference(binary)
        yield struct.pack("<H", len(head) if binary else 0xffff) + head + data
    head, data = inference(True, [{"name": "loss", "parameters": {"binary_data": True}}, {"name": "grad_loc"}],
                           include="images", binary_data_output=True)
    yield struct.pack("<H", len(head)) + head + data
    shared = {"shared_memory_region": "r", "shared_memory_byte_size": 32, "shared_memory_offset": 64}
    body = {"inputs": [{"name": "loc", "datatype": "FP32", "shape": [1, 2, 4], "parameters": shared}],
            "outputs": [{"name": "loss", "parameters": dict(shared, shared_memory_byte_size=8)}]}
    yield b"\xff\xff" + text(body)
    for where in (range(0, 4), range(2, 6), range(6)):
        inputs = json.loads(inference(False)[0])["inputs"]
        for i in where:
            size = len(entries()[i][3])
            inputs[i] = {k: v for k, v in inputs[i].items() if k != "data"}
            inputs[i]["parameters"] = dict(shared, shared_memory_byte_size=size, shared_memory_offset=0 if i > 1 else 100)
        yield b"\xff\xff" + text({"inputs": inputs, "outputs": body["outputs"] + [{"name": "positives"}]})
    document = json.loads(inference(False, [{"name": "loss", "parameters": {"binary_data": True}}], include="images",
                                    binary_data_output=True)[0])
    for bad in wrong(document):
        yield b"\xff\xff" + bad
    for bad in wrong(json.loads(inference(True)[0])):
        yield struct.pack("<H", len(bad)) + bad + inference(True)[1]
    yield from (b"\xff\xff" + bad for bad in wrong({"key": "/region", "offset": 0, "byte_size": 4096}))
    yield b"\xff\xff" + text({"key": "/region", "offset": 0, "byte_size": 4096})


def of_query():
    yield b"include=images,classes&criterion=ssd-keras&priors=ssd300"
    for criterion in CRITERIA:
        yield b"criterion=" + text(criterion)
    yield b"priors=" + text(BATCH["priors"]) + b"&image_size=[300,300]"
    yield b"image_size=[[1,2]]&label_base=1&invalid_boxes=drop&box_format=cxcywh"
    yield b"run=a&step=9007199254740992&device=cuda:0&classes=3"
    yield b"after=3&limit=10&points=4&format=csv"


def of_coding():
    for data in (b"", b"a", text(BATCH), bytes(3000), bytes(random.Random(1).randbytes(300))):
        yield b"\1\x10" + gzip.compress(data, mtime=0)
        yield b"\0\x05" + zlib.compress(data)
    yield b"\1\x03" + gzip.compress(b"one", mtime=0) + gzip.compress(b"two", mtime=0)


def of_render():
    for i, body in enumerate(list(of_json()) + list(of_safetensors())):
        yield bytes([1 << i % 8 | (i * 37 & 0x3f), i % 2 if i % 5 == 4 else 0]) + body
    for i, body in enumerate(of_infer()):
        yield bytes([0, 6]) + body[2:]
        yield bytes([1 << i % 8, 4]) + body[2:]


HEADS = [
    b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/runs?limit=3 HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"1\"\r\n\r\n", b"GET /v2/models/stats HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/runs/r/steps?points=5&format=csv HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/priors HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/criteria/ssd-keras HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/priors/grid-32x32 HTTP/1.1\r\nHost: a\r\nAccept: application/vnd.safetensors\r\n\r\n",
    b"DELETE /v1/criteria/mine HTTP/1.1\r\nHost: a\r\n\r\n", b"DELETE /v1/runs/r HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /v2/models/ssd-multibox/config HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a/version HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
]


TARGETS_OF_GET = [
    b"/v1/runs/r", b"/v1/criteria", b"/openapi.yaml", b"/web/app.js", b"/v2", b"/v2/health/live", b"/v2/health/ready",
    b"/v2/models/ssd-multibox", b"/v2/models/ssd-multibox/ready", b"/v2/models/ssd-multibox/stats",
    b"/v2/models/ssd-multibox/versions/1/stats", b"/v2/models/ssd-multibox/versions/1", b"/v2/systemsharedmemory/status",
    b"/v2/systemsharedmemory/region/r/status", b"/v1/priors/retinanet-64x64", b"/version",
]
TARGETS_OF_POST = [b"/v2/systemsharedmemory/unregister", b"/v2/repository/index", b"/v2/repository/models/ssd-keras/load",
                   b"/v2/repository/models/ssd-keras/unload", b"/v2/repository/models/none/load"]


def post(target, body, *headers):
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(target, body, *headers):
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked", *headers]
    half = len(body) // 2
    chunks = b"%x\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\nT: v\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    return b"\r\n".join(lines) + b"\r\n\r\n" + chunks


def of_http():
    for head in HEADS:
        yield b"\0" + head
    kind = b"Content-Type: application/json"
    for body in (BATCH, FLAT, TARGETS, dict(BATCH, run="r", step=3)):
        yield b"\0" + post(b"/v1/loss?include=images", text(body), kind)
        yield b"\x11" + chunked(b"/v1/loss", text(body))
    yield b"\0" + post(b"/v1/match", text({"annotations": BATCH["annotations"], "priors": BATCH["priors"]}))
    yield b"\x20" + post(b"/v1/loss", tensors(entries()), b"Content-Type: application/vnd.safetensors",
                         b"Accept: application/vnd.safetensors", b"X-Request-Id: abc")
    head, data = inference(True)
    length = b"Inference-Header-Content-Length: %d" % len(head)
    yield b"\0" + post(b"/v2/models/ssd-multibox/infer", head + data, length, b"Accept-Encoding: gzip")
    yield b"\0" + post(b"/v2/models/ssd-multibox/infer", gzip.compress(head + data, mtime=0), length,
                       b"Content-Encoding: gzip")
    yield b"\0" + post(b"/v2/models/ssd-multibox/infer", inference(False)[0]).replace(b"/infer", b"/versions/1/infer")
    put = post(b"/v1/criteria/mine", text(CRITERIA[4]), kind).replace(b"POST", b"PUT", 1)
    yield b"\0" + put + HEADS[8]
    for target in TARGETS_OF_GET:
        yield b"\0GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    for target in TARGETS_OF_POST:
        yield b"\0" + post(target, b"{}")
    region = b"/v2/systemsharedmemory/region/r/"
    register = post(region + b"register", text({"key": "/lossd-fuzz", "offset": 0, "byte_size": 4096}))
    for body in of_infer():
        if b"shared_memory" in body:
            yield b"\0" + register + post(b"/v2/models/ssd-multibox/infer", body[2:])
    yield b"\0" + register + b"GET " + region + b"status HTTP/1.1\r\nHost: a\r\n\r\n" + post(region + b"unregister", b"")
    yield b"\0" + register + register + post(b"/v2/systemsharedmemory/unregister", b"")
    for cuts in range(0, 256, 50):    # several, one after the other
        yield bytes([cuts]) + post(b"/v1/loss", text(BATCH), kind) + HEADS[1] + chunked(b"/v1/loss", tensors(entries())) + HEADS[0]
        yield bytes([cuts]) + put + post(b"/v1/loss?criterion=mine", text(BATCH)) + HEADS[8] + post(
            b"/v1/loss?criterion=mine", text(BATCH)) + HEADS[5] + HEADS[12]
        yield bytes([cuts]) + post(b"/v1/loss", text(dict(BATCH, run="r", step=cuts)), kind) + HEADS[4] + HEADS[9] + HEADS[4]
    yield b"\0" + post(b"/v1/priors/set", text(GENERATORS[2]), kind, b"If-None-Match: *").replace(b"POST", b"PUT", 1)
    yield b"\0" + post(b"/v1/priors/set", tensors(entries()[3:4])).replace(b"POST", b"PUT", 1) + HEADS[6]


def of_guard():
    for head in list(of_http()):
        head = head[1:].split(b"\r\n\r\n")[0].replace(b"\r\n", b"\n").replace(b" HTTP/1.1", b"").replace(b": ", b":")
        yield head
    yield b"POST /v1/loss\nContent-Type:application/json;charset=utf-8\nAccept:application/*;q=0.5,*/*;q=0.1\nExpect:x"
    yield b"PUT /v1/criteria/a\nIf-Match:*\nContent-Range:bytes 0-1/2\nContent-Length:18446744073709551616"
    yield b"POST /v2/models/a/infer\nContent-Encoding:deflate\nAccept-Encoding:gzip;q=0.5, deflate\nSec-Fetch-Site:cross-site"
    yield b"POST /v1/loss\nAuthorization:Bearer READER-0123456789\nOrigin:http://a\nAccess-Control-Request-Method:PUT"
    yield b"DELETE /v1/runs/a\nAuthorization:Bearer WRITER-0123456789"


def of_options():
    yield b"a--listen=127.0.0.1:0\n--workers\n3\n--max-body=1M"
    yield b"a--help"
    yield b"a--device=cuda:0,1\n--cpu-level=ref\n--allow-anonymous"
    yield b"a--memory-limit\n2G\n--log-format=json\n--lisen=x"
    yield b"tread reader SECRET-0123456789\n# x\nwrite writer sha256:" + b"0a" * 32 + b"\n\n write w2\tBBBBBBBBBBBBBBBBBB # c"
    yield b"ohttps://host:8443,http://[::1]:80"
    yield b"l127.0.0.1:8080"
    yield b"l[::1]:0"


def many(documents):
    for document in documents:
        yield text(document)
        yield from wrong(document)


def of_store():
    yield b"\0\xff"
    yield b"\1\xff"
    yield b"\1\x80"
    yield b"\1\xff\x3c\0\4\0\0\0\x09"
    yield b"\0\xff\0\0\4XXXX"


def of_bytes():
    source = random.Random(1)
    for size in (0, 8, 40, 120, 200, 400, 700, 1000, 1000, 1500):
        yield source.randbytes(size)
    for how in range(0, 256, 9):
        yield bytes([how & 0xef if how & 15 == 15 else how]) + source.randbytes(300)


def of_serve():
    for i, data in enumerate(of_bytes()):
        yield bytes([i * 11 & 0xff, i, i]) + data
    for how in range(0x0f, 0x100, 0x20):    # large ones
        yield bytes([how >> 1 | 2, how, 0, how, 0, how >> 5]) + b"a" * 1600


def of(target):
    makers = {"json": of_json, "scan": of_scan, "safetensors": of_safetensors, "infer": of_infer, "query": of_query,
              "criterion": lambda: many(CRITERIA), "generator": lambda: many(GENERATORS),
              "number": lambda: (n.encode() for n in NUMBERS), "coding": of_coding, "render": of_render,
              "guard": of_guard, "http": of_http, "options": of_options, "store": of_store, "diff": of_bytes,
              "serve": of_serve}
    return makers[target]()
