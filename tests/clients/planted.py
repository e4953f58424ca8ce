# SPDX-License-Identifier: Apache-2.0
"""hooks.py, and lies about what was answered: each operation here tells another one, and a check has to see it."""
import os
import sys

import schemathesis

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hooks  # noqa: E402, F401 - they are registered


def is_negative(case):
    return case.meta is not None and case.meta.generation.mode.is_negative


def status(number, when=lambda case: True, instead_of=200):
    def lie(case, response):
        if response.status_code == instead_of and when(case):
            response.status_code = number
    return lie


def header(name, values):
    def lie(case, response):
        response.headers.pop(name, None)
        if values:
            response.headers[name] = values
    return lie


def body(text):
    def lie(case, response):
        response.content = text if response.status_code == 200 else response.content
    return lie


def in_phase(name):
    return lambda case: case.meta is not None and case.meta.phase.name.value == name


# Operation, lie, and the failure. Some are reported elsewhere.
PLANTED = (
    ("GET /version", status(206), "UndefinedStatusCode"),
    ("GET /healthz", status(500), "ServerError"),
    ("GET /v2", header("content-type", ["text/plain"]), "UndefinedContentType"),
    ("GET /v1/priors", header("x-request-id", None), "MissingHeaders"),
    ("GET /v2/health/live", body(b'{"live":false}'), "JsonSchemaError"),
    ("GET /v1/runs", status(200, is_negative, 422), "AcceptedNegativeData"),
    ("POST /v2/repository/models/{name}/load", status(400), "RejectedPositiveData"),
    ("GET /readyz", status(200, is_negative, 405), "UnsupportedMethodResponse"),
    ("GET /v1/criteria/{name}", status(200, in_phase("stateful"), 404), "UseAfterFree"),
    ("GET /v1/criteria", status(200, lambda case: True, 401), "MissingHeaderNotRejected"),
    ("POST /v2/models/{name}/infer", status(422), "CustomFailure"),
)
# And what conformance.py does.
ELSEWHERE = {"UseAfterFree": "Stateful tests", "UnsupportedMethodResponse": "TRACE /readyz"}
EXPECTED = {(failure, ELSEWHERE.get(failure, operation)) for operation, _, failure in PLANTED} | {
    ("UndefinedStatusCode", "GET /v1/runs/{name}"), ("CustomFailure", "DELETE /v1/criteria/{name}"),
    ("IgnoredAuth", "GET /")}


PATHS = sorted({operation.split()[1] for _, operation in EXPECTED if operation != "Stateful tests"} |
               {operation.split()[1] for operation, _, _ in PLANTED})


@schemathesis.hook("after_call")
def tell_lies(context, case, response):
    for operation, lie, _ in PLANTED:
        if case.operation.label == operation:
            lie(case, response)
