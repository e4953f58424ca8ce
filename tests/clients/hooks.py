# SPDX-License-Identifier: Apache-2.0
"""What schemathesis has to know of this service (conformance.py runs it): bodies that are not JSON, batches that mean
something, and that these are answered."""
import atexit
import itertools
import json
import os
import sys
import types
import zlib

import schemathesis
from hypothesis import strategies as st
from schemathesis.core import NOT_SET
from schemathesis.core.parameters import ParameterLocation as Location
from schemathesis.generation.meta import CoveragePhaseData, FuzzingPhaseData, StatefulPhaseData

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.dont_write_bytecode = True
import lossd  # noqa: E402

BYTES = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"
SENSIBLE = "sensible"   # the X-Request-Id of what has to be answered


# ---- bodies ------------------------------------------------------------------------------------------------------

batches = st.builds(lossd.random_batch, st.integers(0, 1 << 20), n=st.integers(1, 3), p=st.integers(1, 40),
                    c=st.integers(2, 5), objects=st.integers(0, 3))


class File(bytes):
    """A batch as safetensors; other bytes are what schemathesis breaks on purpose."""


def integers(value):
    """Where a schema asks for an integer 1.0 is one to JSON Schema, and none here (`info` of the document)."""
    if isinstance(value, dict):
        return {k: integers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [integers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def tensors_for(path, file):
    """Of a batch's tensors those that a path takes."""
    wanted = {"/v1/match": lambda name: name not in ("loc", "conf"), "/v1/priors/{name}": lambda name: name == "priors"}
    return {name: (dtype, shape, lossd.pack(dtype, values)) for name, (dtype, shape, values) in lossd.load(file)[1].items()
            if wanted.get(path, lambda name: True)(name)}


def inference(case):
    """(JSON, bytes behind it); bytes only with the header that says where they begin."""
    if isinstance(case.body, File):
        bytes_too = LENGTH in case.headers
        document, behind = lossd.inference(tensors_for(case.path, case.body), () if bytes_too else True,
                                           parameters={"binary_data_output": bytes_too})
        return json.dumps(document).encode(), behind
    return json_text(case.body), b""


def json_text(value):
    return value if isinstance(value, bytes) else json.dumps(integers(value)).encode()


def encoded(case, body):
    coding = case.headers.get("Content-Encoding")
    if coding == "gzip":
        deflater = zlib.compressobj(wbits=31)
        return deflater.compress(body) + deflater.flush()
    return zlib.compress(body) if coding == "deflate" else body


for media in (lossd.SAFETENSORS, BYTES):
    schemathesis.openapi.media_type(media, batches.map(lambda batch: File(batch.safetensors())))


@schemathesis.serializer(lossd.JSON, lossd.SAFETENSORS, BYTES)
def serialize(context, value):
    case = context.case
    if case.path.endswith("/infer"):
        return encoded(case, b"".join(inference(case)))
    if isinstance(value, File):
        return lossd.save([(name, *tensor) for name, tensor in tensors_for(case.path, value).items()])
    return json_text(value)


turns = itertools.cycle((False, True))


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None:
        return
    negative = {at for at, part in case.meta.components.items() if part.mode.is_negative}
    if Location.HEADER not in negative:
        complete_headers(case)
    leave_one(case, case.meta.phase.data, negative)


def complete_headers(case):
    """What schemathesis does not know: how long the JSON became, and that there are two kinds of answers."""
    if case.path.endswith("/infer") and LENGTH in case.headers and case.body is not NOT_SET:
        case.headers[LENGTH] = str(len(inference(case)[0]))
    if case.media_type == lossd.SAFETENSORS or (case.operation.label == "GET /v1/priors/{name}" and next(turns)):
        case.headers["Accept"] = lossd.SAFETENSORS


def leave_one(case, data, negative):
    """Of a request that breaks one rule nothing else is wrong, so that it is not refused for that: where a body is broken
    no option is said in the query too, where it counts; and coverage, which fills in whole queries, and examples try one
    option at a time."""
    if Location.BODY in negative:
        case.query = {name: value for name, value in case.query.items() if name not in case.body} \
            if isinstance(case.body, dict) else {}
    elif getattr(data, "parameter_location", None) is Location.QUERY:
        case.query = {name: value for name, value in case.query.items() if name == data.parameter}
    elif not isinstance(data, (FuzzingPhaseData, StatefulPhaseData)):
        case.query = {}
    if isinstance(data, CoveragePhaseData) and case.path == "/v1/loss" and isinstance(case.body, dict):
        case.body = {"priors": lossd.tiny().document()["priors"], **case.body}   # two, as the predictions of the document


@schemathesis.deserializer(lossd.SAFETENSORS)
def read_safetensors(context, response):
    lossd.load(response.content)
    return response.content.decode("latin-1")


@schemathesis.deserializer(BYTES)
def read_inference(context, response):
    lossd.read_inference(types.SimpleNamespace(
        header=lambda name: (response.headers.get(name.lower()) or [None])[0], body=response.content, type=BYTES))
    return response.content.decode("latin-1")


# ---- what has to be answered ---------------------------------------------------------------------------------------

@st.composite
def sensible(draw, case):
    """The case with a batch, and nothing else that could contradict it; every other one is recorded."""
    batch, include = draw(batches), draw(st.sampled_from(["", "images,classes", "levels,objects", "assignment", "targets"]))
    case.headers["X-Request-Id"] = SENSIBLE
    case.query = {}
    if case.path == "/v1/loss" and os.environ.get("ROLE") != "read" and draw(st.booleans()):
        case.query = {"run": draw(st.sampled_from(["night-7", "night-8"])), "step": draw(st.integers(0, 50))}
    if case.path.endswith("/infer"):
        case.path_parameters = {**case.path_parameters, "name": "ssd-multibox"}
    if isinstance(case.body, File):
        return case
    if case.path.endswith("/infer"):
        case.body = lossd.inference(batch.tensors(), in_json=True, parameters={"include": include})[0]
    else:
        case.body = batch.document(predictions=case.path == "/v1/loss", include=include)
    return case


@schemathesis.hook.apply_to(path_regex="^/v1/(loss|match)$|/infer$")
def flatmap_case(context, case):
    """Few shapes agree by chance, so every other case means something."""
    may = case.meta.generation.mode.is_positive
    return st.booleans().flatmap(lambda chosen: sensible(case) if chosen and may else st.just(case))


@schemathesis.hook("flatmap_case").apply_to(path_regex="/register$")
def map_what_is_there(context, case):
    """Of the object that conformance.py has made, under a name that is still free."""
    def there(number, offset):
        case.path_parameters = {"name": "r%d" % number}
        case.body = {"key": os.environ["REGION"], "offset": offset, "byte_size": 4096 - offset}
        return case
    may = case.meta.generation.mode.is_positive
    return st.builds(there, st.integers(0, 1 << 30), st.integers(0, 4095)) if may else st.just(case)


@schemathesis.hook("flatmap_case").apply_to(method="PUT")
def register_what_is_right(context, case):
    """So that there is something to look at, and to forget."""
    def right(number):
        for name in ("If-Match", "If-None-Match"):
            case.headers.pop(name, None)
        if case.media_type == lossd.JSON:
            case.body = {"weights": {"loc": number}} if "criteria" in case.path else {"generator": "grid", "image_size": number}
        return case
    may = case.meta.generation.mode.is_positive
    return st.booleans().flatmap(lambda chosen: st.builds(right, st.integers(1, 64)) if chosen and may else st.just(case))


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """A GPU that is named and not there is a 503, also of a daemon that has nothing to do."""
    return type(failure).__name__ not in ("ServerError", "RejectedPositiveData") or "has no device" not in response.text


@schemathesis.check
def sensible_is_answered(context, response, case):
    if case.headers.get("X-Request-Id") == SENSIBLE and case.meta.generation.mode.is_positive:
        assert response.status_code in (200, 429), response.text


@schemathesis.check
def readers_do_not_write(context, response, case):
    """With a token that may only read: what the document gives to writers is not done."""
    if os.environ.get("ROLE") == "read" and {"token": ["write"]} in case.operation.definition.raw.get("security", []):
        assert response.status_code >= 400, response.status_code


# ---- what was answered -----------------------------------------------------------------------------------------------

answers = set()


@schemathesis.hook
def after_call(context, case, response):
    media = (response.headers.get("content-type") or [""])[0].split(";")[0]
    answers.add((case.operation.label, response.status_code, media))


@atexit.register
def tell():
    if "ANSWERS" in os.environ:
        with open(os.environ["ANSWERS"], "w") as file:
            json.dump(sorted(answers), file)
