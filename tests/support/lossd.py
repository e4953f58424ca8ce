# SPDX-License-Identifier: Apache-2.0
"""Drive the real daemon from the standard library alone.

`Daemon` starts and stops it, `Connection` speaks HTTP over a raw socket (arbitrary bytes out, parsed answers in),
`save`/`load` write and read safetensors, `Batch` makes SSD-like batches, `Case` is the TestCase that every end-to-end
test derives from: it owns one daemon per class and checks after each test that the daemon is still healthy.

The binary is $LOSSD, or build/lossd of this checkout. No daemon sees a GPU of this machine unless its test says so.
"""
import array
import json
import math
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import weakref

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.path.abspath(os.environ.get("LOSSD") or os.path.join(ROOT, "build", "lossd"))
RELEASE = os.path.join(ROOT, "build", "release", "lossd")   # without sanitizers, whose heap is another one
# seconds before a wait is a failure; generous, for sanitizer builds on a busy machine
PATIENCE = float(os.environ.get("PATIENCE") or 30)
OPS = re.compile(r"^lossd \S+ ops on https?://([0-9A-Za-z.-]+|\[[0-9a-f:]+\]):(\d+)$")
READY = re.compile(r"^lossd (\S+) listening on https?://([0-9A-Za-z.-]+|\[[0-9a-f:]+\]):(\d+)$")
SANITIZER = re.compile(r"(AddressSanitizer|LeakSanitizer|ThreadSanitizer|UndefinedBehaviorSanitizer|runtime error:)")

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
PROBLEM = "application/problem+json"

CODES = {
    400: """json_depth json_empty json_not_object json_syntax json_duplicate_key json_nan json_number_range
            bin_truncated bin_header_length bin_header bin_offset bin_layout bin_shape_overflow bin_size
            framing_duplicate_length framing_cl_te framing_header framing_host framing_transfer_encoding
            framing_request_line framing_chunks uri_malformed framing_authorization""",
    401: "unauthorized invalid_token",
    403: "cross_site forbidden",
    404: "not_found unknown_priors unknown_criterion unknown_run", 405: "method_not_allowed", 406: "not_acceptable",
    408: "body_timeout", 409: "name_reserved registry_full", 411: "length_required",
    412: "precondition_failed",
    413: "body_too_large json_too_complex answer_too_large too_large too_expensive device_memory",
    414: "uri_too_long", 415: "unsupported_media_type content_encoding", 417: "expectation_failed",
    422: """ragged_array type_mismatch unknown_member missing_member unsupported_option shape dtype counts
            unknown_criterion unknown_priors unknown_generator priors_twice image_size_twice targets_twice
            duplicate_option invalid_option invalid_name criterion_range criterion_conflict priors_range
            priors_conflict prior_degenerate box_inverted box_degenerate box_not_finite box_range label_range
            target_not_finite prediction_not_finite not_probability loss_overflow""",
    429: "too_many_failures",
    431: "headers_too_large", 501: "framing_transfer_encoding",
    503: """queue_full memory_full draining device_unavailable device_failed device_lost store_unavailable store_busy
            out_of_memory""", 504: "timeout",
    507: "store_full",
}
CODES = {status: set(words.split()) for status, words in CODES.items()}


def may_trace():
    """Whether we may look into any process: root may, but not root in a container (CAP_SYS_PTRACE)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return bool(int(re.search(r"^CapEff:\s*(\w+)", status.read(), re.M)[1], 16) & 1 << 19)


def environment(extra=None):
    """The caller's environment without any LOSSD_* of its own, and without whatever the caller has registered."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LOSSD")}
    env["LOSSD_DATA_DIR"] = "/nonexistent/lossd-data"
    env["CUDA_VISIBLE_DEVICES"] = ""
    if not may_trace():
        env["LOSSD_CORE_DUMPS"] = "1"   # or /proc does not tell us of it
    env.update(extra or {})
    return env


def command(*flags, env=None, timeout=PATIENCE, binary=None):
    """Run the binary to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([binary or BINARY, *flags], env=environment(env), stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=timeout)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def given(flags, env, name):
    """Whether an option is among the flags or in the environment."""
    variable = "LOSSD_" + name.upper().replace("-", "_")
    return variable in (env or {}) or any(f == "--" + name or f.startswith("--" + name + "=") for f in flags)


class Daemon:
    """A running daemon on a free loopback port, with a data directory of its own that it has to make itself (unless the
    flags or the environment say where). `user`: the id it runs as, where we may choose; `binary`: another one."""

    def __init__(self, *flags, env=None, user=None, binary=None, **options):
        if not given(flags, env, "listen"):
            flags = ("--listen", "127.0.0.1:0", *flags)
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")  # goes with this object
        self.data = os.path.join(self.home.name, "data")
        if not given(flags, env, "data-dir"):
            flags = ("--data-dir", self.data, *flags)
        self.errors = tempfile.TemporaryFile()
        binary = binary or BINARY
        if user is not None:   # who may not be allowed where this checkout lies
            options.update(user=user, group=user, extra_groups=[], cwd="/")
            self.place = tempfile.TemporaryDirectory()
            os.chmod(self.place.name, 0o755)
            binary = shutil.copy(binary, self.place.name)
            os.chown(self.place.name, user, user)   # what gcov counts goes there, or it complains among what is logged
            env = {"GCOV_PREFIX": self.place.name, **(env or {})}
        options.setdefault("stderr", self.errors)
        self.process = subprocess.Popen([binary, *flags], env=environment(env), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, **options)
        self.pid = self.process.pid
        weakref.finalize(self, self.process.kill)   # nothing stays where a test or the whole run is broken off
        line = self._line()
        match = READY.match(line)
        if not match:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise RuntimeError("the daemon did not start (exit %s): stdout %r, stderr %r"
                               % (self.process.returncode, line, self.log()[-800:]))
        self.version, self.host, self.port = match.group(1), match.group(2), int(match.group(3))
        if given(flags, env, "ops-listen"):
            line = self._line()
            self.ops_port = int(OPS.match(line).group(2))

    def _line(self):
        text, end = b"", time.monotonic() + PATIENCE
        while not text.endswith(b"\n") and time.monotonic() < end:
            if not select.select([self.process.stdout], [], [], 0.5)[0]:
                continue
            piece = os.read(self.process.stdout.fileno(), 1)
            if not piece:
                self.process.wait()
                break
            text += piece
        return text.decode().rstrip("\n")

    def log(self):
        """Everything on stderr so far."""
        return os.pread(self.errors.fileno(), 1 << 26, 0).decode("utf-8", "replace")  # the offset is the daemon's

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=PATIENCE):
        """Exit code."""
        code = self.process.wait(timeout)
        self.rest = self.process.stdout.read().decode()
        self.process.stdout.close()
        return code

    def kill(self):
        """SIGKILL: nothing is finished."""
        self.process.kill()
        self.wait()

    def stop(self, timeout=PATIENCE):
        """Terminate; the exit code."""
        if self.process.returncode is not None:
            return self.process.returncode
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            return -99

    def put(self, target, body, content_type=JSON, **headers):
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        return self.request("PUT", target, body, {"Content-Type": content_type, **headers})

    def delete(self, target):
        return self.request("DELETE", target)

    def connect(self, timeout=PATIENCE):
        return Connection(self.port, timeout)

    def get(self, target, **headers):
        return self.request("GET", target, None, headers)

    def ops(self, target, method="GET", timeout=PATIENCE):
        """One request at --ops-listen."""
        with Connection(self.ops_port, timeout) as connection:
            return connection.request(method, target)

    def post(self, target, body, content_type=None, headers=None):
        headers = dict(headers or {})
        if content_type:
            headers["Content-Type"] = content_type
        return self.request("POST", target, body, headers)

    def request(self, method, target, body=None, headers=None):
        """One request on a connection of its own."""
        with self.connect() as connection:
            return connection.request(method, target, body, headers)

    def raw(self, data, timeout=5.0):
        """Send bytes; (answers, closed): what came until the peer closed, or was silent for `timeout` seconds."""
        with self.connect() as connection:
            connection.try_send(data)
            text, closed = connection.drain(timeout)
        return parse(text), closed

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    def status(self):
        """What the kernel says of it, as text: {"Threads": "9", "VmRSS": "1234 kB", ...}"""
        with open("/proc/%d/status" % self.pid, encoding="ascii") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    def memory(self, which="VmRSS"):
        """Bytes that are resident; VmHWM: that ever were."""
        return int(self.status()[which].split()[0]) * 1024

    def processor(self):
        """Seconds of it that were used."""
        with open("/proc/%d/stat" % self.pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name):
        """The value of a metric without labels."""
        page = self.get("/metrics").body.decode()
        return float(re.search(r"^lossd_%s (\S+)$" % name, page, re.M).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        code = self.stop()
        report = SANITIZER.search(self.log())
        if exc[0] is None and (code != 0 or report):
            raise AssertionError("the daemon ended with exit code %d\n%s" % (code, self.log()[-3000:]))
        self.errors.close()


class Answer:
    """One HTTP answer. `interim` holds the statuses of 1xx answers before it."""

    def __init__(self, status, fields, body, interim=(), version="HTTP/1.1"):
        self.status, self.fields, self.body, self.interim = status, fields, body, list(interim)
        self.version = version

    def header(self, name, default=None):
        values = [v for k, v in self.fields if k.lower() == name.lower()]
        return values[0] if values else default

    @property
    def type(self):
        return (self.header("Content-Type") or "").split(";")[0].strip()

    def json(self):
        return strict_json(self.body)

    def __repr__(self):
        return "<%d %s %r>" % (self.status, self.type, self.body[:300])


def strict_json(text):
    """JSON without NaN, Infinity or duplicate members."""

    def pairs(items):
        if len(dict(items)) != len(items):
            raise ValueError("duplicate member in %r" % [k for k, _ in items])
        return dict(items)

    def constant(word):
        raise ValueError("%s is not JSON" % word)

    return json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)


class Closed(Exception):
    """The peer closed before a whole answer."""


class Connection:
    def __init__(self, port, timeout=PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kept = b""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self):
        """Nothing more will be sent."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer has closed

    def send(self, data):
        self.socket.sendall(data)

    def try_send(self, data):
        """Send as much as the peer takes: it may answer and close before the end."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def start(self, method, target, headers=None, version="HTTP/1.1"):
        lines = ["%s %s %s" % (method, target, version)]
        headers = dict(headers or {})
        headers.setdefault("Host", "localhost")
        lines += ["%s: %s" % item for item in headers.items() if item[1] is not None]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def request(self, method, target, body=None, headers=None, version="HTTP/1.1"):
        headers = dict(headers or {})
        if body is not None:
            headers.setdefault("Content-Length", len(body))
        self.start(method, target, headers, version)
        if body:
            self.try_send(body)
        return self.answer(head=method == "HEAD")

    def _fill(self):
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise Closed("the peer closed; %r is left" % self.kept[:200])
        self.kept += piece

    def _head(self):
        while b"\r\n\r\n" not in self.kept:
            self._fill()
        head, self.kept = self.kept.split(b"\r\n\r\n", 1)
        return parse_head(head)

    def interim(self):
        """The next status line's number, answer or not, with its header consumed."""
        return self._head()[1]

    def answer(self, head=False):
        interim = []
        while True:
            version, status, fields = self._head()
            if status >= 200:
                break
            interim.append(status)
        names = {k.lower(): v for k, v in fields}
        body = b""
        if head or status in (204, 304):
            pass
        elif "chunked" in names.get("transfer-encoding", "").lower():
            while True:
                while b"\r\n" not in self.kept:
                    self._fill()
                line, self.kept = self.kept.split(b"\r\n", 1)
                size = int(line.split(b";")[0], 16)
                while len(self.kept) < size + 2:
                    self._fill()
                body, self.kept = body + self.kept[:size], self.kept[size + 2:]
                if size == 0:
                    break
        elif "content-length" in names:
            size = int(names["content-length"])
            pieces, have = [self.kept], len(self.kept)
            while have < size:
                self.kept = b""
                self._fill()
                pieces.append(self.kept)
                have += len(self.kept)
            joined = b"".join(pieces)
            body, self.kept = joined[:size], joined[size:]
        else:
            try:
                while True:
                    self._fill()
            except Closed:
                body, self.kept = self.kept, b""
        return Answer(status, fields, body, interim, version)

    def silent(self, seconds):
        """Nothing arrives, and the connection stays open, for this long."""
        return not self.kept and not select.select([self.socket], [], [], seconds)[0]

    def drain(self, timeout):
        """(bytes, closed): everything until the peer closes, or is silent for `timeout` seconds."""
        text, self.kept = self.kept, b""
        while True:
            if not select.select([self.socket], [], [], timeout)[0]:
                return text, False
            try:
                piece = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return text, True
            if not piece:
                return text, True
            text += piece


def parse_head(head):
    lines = head.decode("latin-1").split("\r\n")
    match = re.match(r"^(HTTP/1\.[01]) (\d{3}) ?(.*)$", lines[0])
    if not match:
        raise ValueError("not a status line: %r" % lines[0])
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError("not a header field: %r" % line)
        fields.append((name, value.strip()))
    return match.group(1), int(match.group(2)), fields


def parse(text):
    """All answers (to anything but HEAD) in a byte string."""
    answers = []
    while text:
        head, found, text = text.partition(b"\r\n\r\n")
        if not found:
            raise ValueError("an answer without an end of headers: %r" % head[:200])
        version, status, fields = parse_head(head)
        size = [int(v) for k, v in fields if k.lower() == "content-length"]
        if size:
            body, text = text[:size[0]], text[size[0]:]
        elif status < 200:
            body = b""
        else:
            body, text = text, b""
        answers.append(Answer(status, fields, body, version=version))
    return answers


# ---- safetensors -------------------------------------------------------------------------------------------------

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FORMATS = {"F64": "d", "I64": "q", "F32": "f", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "B", "F16": "e"}


def pack(dtype, values):
    return struct.pack("<%d%s" % (len(values), FORMATS[dtype]), *values)


def unpack(dtype, data):
    return list(struct.unpack("<%d%s" % (len(data) // SIZES[dtype], FORMATS[dtype]), data))


def container(header, data=b""):
    """A safetensors file of any header: bytes, text or an object."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def save(tensors, meta=None, pad=0):
    """tensors: [(name, dtype, shape, bytes)] in file order. pad: extra spaces after a header of a multiple of 8."""
    header, offset = ({"__metadata__": meta} if meta else {}), 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + pad)
    return container(text.decode(), b"".join(t[3] for t in tensors))


def load(data):
    """(metadata, {name: (dtype, shape, values)}); refuses what does not fit exactly."""
    (size,) = struct.unpack("<Q", data[:8])
    header = strict_json(data[8:8 + size])
    body, meta, tensors, end = data[8 + size:], header.pop("__metadata__", {}), {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end or stop - begin != SIZES[entry["dtype"]] * math.prod(entry["shape"]):
            raise ValueError("tensor %s does not fit: %r" % (name, entry))
        end = stop
        tensors[name] = (entry["dtype"], entry["shape"], unpack(entry["dtype"], body[begin:stop]))
    if end != len(body):
        raise ValueError("%d bytes are left" % (len(body) - end))
    return meta, tensors


# ---- the Open Inference Protocol ---------------------------------------------------------------------------------

DATATYPES = {"F64": "FP64", "I64": "INT64", "F32": "FP32", "I32": "INT32", "F16": "FP16", "BF16": "BF16",
             "I16": "INT16", "I8": "INT8", "U8": "UINT8", "BOOL": "BOOL"}


def inference(tensors, in_json=(), nest=False, **members):
    """{name: (dtype, shape, bytes)} as an inference: (JSON as an object, the bytes behind it). Those named in `in_json`
    (True: all) have their numbers in the JSON, flat or nested."""
    inputs, behind = [], b""
    for name, (dtype, shape, data) in tensors.items():
        inputs.append({"name": name, "shape": list(shape), "datatype": DATATYPES[dtype]})
        if in_json is True or name in in_json:
            values = unpack(dtype, data)
            inputs[-1]["data"] = nested(values, *shape) if nest else values
        else:
            inputs[-1]["parameters"] = {"binary_data_size": len(data)}
            behind += data
    return {"inputs": inputs, **members}, behind


def infer_headers(text):
    return {"Inference-Header-Content-Length": len(text)}


def read_inference(answer):
    """(JSON as an object, {name: (dtype, shape, values)}); refuses what does not fit exactly."""
    length = answer.header("Inference-Header-Content-Length")
    size = int(length) if length else len(answer.body)
    document, behind, tensors = strict_json(answer.body[:size]), answer.body[size:], {}
    names = {datatype: dtype for dtype, datatype in DATATYPES.items()}
    for output in document["outputs"]:
        dtype, count = names[output["datatype"]], math.prod(output["shape"])
        if "data" in output:
            values = unpack(dtype, pack(dtype, output["data"]))
        else:
            taken = output["parameters"]["binary_data_size"]
            values, behind = unpack(dtype, behind[:taken]), behind[taken:]
        if len(values) != count or output["name"] in tensors:
            raise ValueError("output %s does not fit: %r" % (output["name"], output))
        tensors[output["name"]] = (dtype, output["shape"], values)
    if behind or (answer.type == JSON) != (length is None):
        raise ValueError("%d bytes are left of %r" % (len(behind), answer))
    return document, tensors


# ---- batches -----------------------------------------------------------------------------------------------------

def floats(values):
    return array.array("f", values)


def nested(flat, *dims):
    """A flat sequence as nested lists."""
    if len(dims) == 1:
        return list(flat)
    step = len(flat) // dims[0] if dims[0] else 0
    return [nested(flat[i * step:(i + 1) * step], *dims[1:]) for i in range(dims[0])]


class Batch:
    """N images, P priors, C columns. loc, conf, boxes: flat array('f'); labels: per object; counts: per image."""

    STREAM = ("counts", "labels", "boxes", "conf", "loc")

    def __init__(self, n, p, c, loc, conf, boxes, labels, counts, priors=None):
        self.n, self.p, self.c = n, p, c
        self.loc, self.conf, self.boxes = loc, conf, boxes
        self.labels, self.counts = list(labels), list(counts)
        self.priors = priors  # flat array('f') (P,4) cx cy w h, or None for a named set

    def tensors(self, label_dtype="I64", count_dtype="I64"):
        g = len(self.labels)
        out = {
            "counts": (count_dtype, [self.n], pack(count_dtype, self.counts)),
            "labels": (label_dtype, [g], pack(label_dtype, self.labels)),
            "boxes": ("F32", [g, 4], self.boxes.tobytes()),
            "conf": ("F32", [self.n, self.p, self.c], self.conf.tobytes()),
            "loc": ("F32", [self.n, self.p, 4], self.loc.tobytes()),
        }
        if self.priors is not None:
            out["priors"] = ("F32", [self.p, 4], self.priors.tobytes())
        return out

    def safetensors(self, meta=None, order=None, pad=0, without=(), **dtypes):
        tensors = self.tensors(**dtypes)
        order = list(order or self.STREAM)
        order += [name for name in tensors if name not in order]
        return save([(name, *tensors[name]) for name in order if name in tensors and name not in without], meta, pad)

    def document(self, flat=False, predictions=True, **options):
        """The JSON body as an object."""
        out = dict(options)
        if self.priors is not None:
            out["priors"] = nested(self.priors, self.p, 4)
        if predictions:
            if flat:
                out["predictions"] = {"loc": {"shape": [self.n, self.p, 4], "data": self.loc.tolist()},
                                      "conf": {"shape": [self.n, self.p, self.c], "data": self.conf.tolist()}}
            else:
                out["predictions"] = {"loc": nested(self.loc, self.n, self.p, 4),
                                      "conf": nested(self.conf, self.n, self.p, self.c)}
        out["annotations"], first = [], 0
        for count in self.counts:
            out["annotations"].append({"boxes": nested(self.boxes[4 * first:4 * (first + count)], count, 4),
                                       "labels": self.labels[first:first + count]})
            first += count
        return out

    def json(self, flat=False, predictions=True, **options):
        return json.dumps(self.document(flat, predictions, **options)).encode()

    def pick(self, images):
        """The batch of these images, in this order."""
        first = [sum(self.counts[:i]) for i in range(self.n)]
        loc, conf, boxes, labels = floats([]), floats([]), floats([]), []
        for i in images:
            loc += self.loc[i * self.p * 4:(i + 1) * self.p * 4]
            conf += self.conf[i * self.p * self.c:(i + 1) * self.p * self.c]
            boxes += self.boxes[4 * first[i]:4 * (first[i] + self.counts[i])]
            labels += self.labels[first[i]:first[i] + self.counts[i]]
        return Batch(len(images), self.p, self.c, loc, conf, boxes, labels, [self.counts[i] for i in images],
                     self.priors)


def tiny():
    """One image, two priors, three columns, one object that is the first prior: computable by hand."""
    return Batch(1, 2, 3, floats([0.5, -0.25, 0, 2, 1, 1, 1, 1]), floats([0, 1, 0, 0.5, 0, 2]),
                 floats([0, 0, 0.5, 0.5]), [0], [1], floats([0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.5, 0.5]))


def random_batch(seed, n=2, p=8732, c=21, objects=6, priors=None):
    """SSD-like: background logits high, a few objects an image (image 0 has none when objects is 0)."""
    rng = random.Random(seed)
    pool = [rng.gauss(0, 1) for _ in range(4093)]

    def tile(count, scale):
        values = [scale * v for v in pool]
        return floats((values * (count // len(values) + 1))[:count])

    conf = tile(n * p * c, 1.0)
    for i in range(0, n * p * c, c):
        conf[i] += 4
    boxes, labels, counts = floats([]), [], []
    for _ in range(n):
        k = rng.randint(0, 2 * objects) if objects else 0
        counts.append(k)
        for _ in range(k):
            w, h = rng.uniform(0.05, 0.6), rng.uniform(0.05, 0.6)
            x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
            boxes += floats([x, y, x + w, y + h])
            labels.append(rng.randrange(c - 1))
    if priors is None and p != 8732:
        priors = floats([])
        for _ in range(p):
            priors += floats([rng.random(), rng.random(), rng.uniform(0.05, 0.6), rng.uniform(0.05, 0.6)])
    return Batch(n, p, c, tile(n * p * 4, 0.5), conf, boxes, labels, counts, priors)


_bccd = []


def bccd():
    """The shipped batch of real predictions on real images, as a Batch; its file is bccd_bytes()."""
    if not _bccd:
        tensors = load(bccd_bytes())[1]
        n, p, c = tensors["conf"][1]
        _bccd.append(Batch(n, p, c, floats(tensors["loc"][2]), floats(tensors["conf"][2]),
                           floats(tensors["boxes"][2]), tensors["labels"][2], tensors["counts"][2]))
    return _bccd[0]


def bccd_bytes():
    with open(os.path.join(ROOT, "tests", "golden", "bccd-ssd300", "request.safetensors"), "rb") as file:
        return file.read()


# ---- tests -------------------------------------------------------------------------------------------------------

def stable(body):
    """An answer's text without what may differ between two runs of the same request."""
    text = body.decode("utf-8")
    text, times = re.subn(r'"timing_ms"\s*:\s*\{[^{}]*\}', '"timing_ms":{}', text)
    text, ids = re.subn(r'"request_id"\s*:\s*"(?:[^"\\]|\\.)*"', '"request_id":""', text)
    if times != 1 or ids != 1:
        raise ValueError("not an answer: %r" % text[:300])
    return text


def together(functions):
    """Run in a thread each; the results in order. The first exception is raised here."""
    results, failures = [None] * len(functions), []

    def run(i):
        try:
            results[i] = functions[i]()
        except BaseException as failure:  # noqa: B902 - handed to the caller
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def until(condition, seconds=PATIENCE, step=0.02):
    """Poll; whether it became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return condition()


class Case(unittest.TestCase):
    """One daemon per class, started with FLAGS; healthy after each test, exit 0 and no sanitizer report at the end."""

    FLAGS = ()
    daemon = None
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        if cls.FLAGS is not None:
            cls.daemon = Daemon(*cls.FLAGS)

    @classmethod
    def tearDownClass(cls):
        if cls.daemon:
            daemon, cls.daemon = cls.daemon, None
            daemon.__exit__(None, None, None)

    def tearDown(self):
        if self.daemon:
            self.healthy()

    def healthy(self, daemon=None):
        answer = (daemon or self.daemon).get("/healthz")
        self.assertEqual(answer.status, 200, answer)

    def good(self, answer):
        """200 with JSON; its object."""
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.type, JSON)
        self.assertTrue(answer.header("X-Request-Id"))
        return answer.json()

    def problem(self, answer, status, codes=None, detail=None, pointer=None):
        """The answer is a problem document with this status (or one of several) and code; its object."""
        statuses = status if isinstance(status, (tuple, set, list)) else (status,)
        self.assertIn(answer.status, statuses, answer)
        self.assertEqual(answer.type, PROBLEM, answer)
        body = answer.json()
        self.assertEqual(set(body) | {"pointer"},
                         {"type", "title", "status", "detail", "code", "pointer", "request_id"}, body)
        body.setdefault("pointer", "")  # absent when there is no culprit in the body
        for member in ("type", "title", "detail", "code", "pointer", "request_id"):
            self.assertIsInstance(body[member], str, body)
        self.assertEqual(body["status"], answer.status)
        self.assertTrue(body["type"] and body["title"] and body["detail"], body)
        self.assertEqual(body["request_id"], answer.header("X-Request-Id"), body)
        self.assertIn(body["code"], CODES.get(answer.status, set()), body)
        if codes is not None:
            self.assertIn(body["code"], codes.split() if isinstance(codes, str) else codes, body)
        if detail is not None:
            self.assertRegex(body["detail"], detail)
        if pointer is not None:
            self.assertRegex(body["pointer"], pointer)
        if answer.status == 405:
            self.assertTrue(answer.header("Allow"), answer)
        if answer.status == 503 and body["code"] in ("queue_full", "memory_full", "draining"):
            self.assertRegex(answer.header("Retry-After") or "", r"^[1-9][0-9]*$")
        return body

    def error(self, answer, status, text=""):
        """The answer is a refusal as the Open Inference Protocol has it; what it says."""
        self.assertEqual(answer.status, status, answer)
        self.assertEqual(answer.type, JSON, answer)
        self.assertTrue(answer.header("X-Request-Id"), answer)
        body = answer.json()
        self.assertEqual(list(body), ["error"], body)
        self.assertRegex(body["error"], text or ".")
        if status == 405:
            self.assertTrue(answer.header("Allow"), answer)
        if status == 503:
            self.assertRegex(answer.header("Retry-After") or "", r"^[1-9][0-9]*$")
        return body["error"]

    def near(self, got, want, relative, message=None):
        if abs(got - want) > relative * max(abs(got), abs(want)):
            self.fail("%s%r is not within %g of %r" % (message + ": " if message else "", got, relative, want))
