#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What deploy/ holds and makes against the schemas that others publish: run by `make deploy-check` with the Python of build/deploy.

kubernetes-validate brings the API schemas of Kubernetes, compose-spec the Compose Specification as Rust types,
grafana-foundation-sdk Grafana's dashboard types, spdx-tools the rules of SPDX. Nothing is fetched. The last line is
`N passed, N failed`.
"""
import json
import os
import sys
import traceback

import kubernetes_validate
import yaml
from compose_spec import PyCompose
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from kubernetes_validate.utils import all_versions
from spdx_tools.spdx.parser.error import SPDXParsingError
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEPLOY = os.path.join(ROOT, "deploy")
OLDEST = (1, 27)  # knows unhealthyPodEvictionPolicy


def read(name):
    with open(os.path.join(DEPLOY, name), encoding="utf-8") as f:
        return f.read()


def refused(exceptions, function, *arguments):
    try:
        function(*arguments)
    except exceptions:
        return
    raise AssertionError("accepted: %r" % (arguments,))


def check_kubernetes():
    """Strict: a member that the API does not have is an error."""
    versions = sorted({v for v in all_versions() if tuple(map(int, v.split(".")[:2])) >= OLDEST},
                      key=lambda v: tuple(map(int, v.split("."))))
    assert len(versions) > 5, versions
    resources = list(yaml.safe_load_all(read("kubernetes.yaml")))
    assert len(resources) > 4
    for version in versions:
        for resource in resources:
            kubernetes_validate.validate(resource, version, strict=True)
    wrong = next(yaml.safe_load_all(read("kubernetes.yaml").replace("automountServiceAccountToken", "automountToken", 1)))
    refused(kubernetes_validate.ValidationError, kubernetes_validate.validate, wrong, versions[-1], True)
    print("Kubernetes %s to %s: %d resources" % (versions[0], versions[-1], len(resources)))


def check_compose():
    def parse(text):
        compose = PyCompose.from_yaml(text)
        compose.validate()
        return compose.service_names()

    text = read("compose.yaml")
    assert set(parse(text)) == {"lossd", "prometheus", "grafana"}
    assert set(parse(read("compose-tokens.yaml"))) == {"lossd"}
    refused(ValueError, parse, text.replace("mem_limit", "memory_limit", 1))
    refused(ValueError, parse, text.replace("interval: 10s", "interval: soon", 1))


def lost(before, after, path=""):
    """What of `before` is not in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [p for k, v in before.items() for p in (lost(v, after[k], path + "/" + k) if k in after else [path + "/" + k])]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [p for i, (a, b) in enumerate(zip(before, after)) for p in lost(a, b, "%s/%d" % (path, i))]
    return [] if before == after else [path]


def check_grafana():
    """Grafana's own types, read and written again, keep every member: what they do not know would be lost."""
    def again(dashboard):
        return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))

    plugins.register_default_plugins()
    dashboard = json.loads(read("grafana.json"))
    assert lost(dashboard, again(dashboard)) == [], lost(dashboard, again(dashboard))
    graph = next(i for i, p in enumerate(dashboard["panels"]) if p["type"] == "timeseries")
    dashboard["panels"][graph]["options"]["legends"] = {}
    dashboard["panels"][graph]["targets"][0]["format_"] = "x"
    dashboard["panels"][graph]["fieldConfig"]["defaults"]["custom"]["lineWith"] = 1
    assert len(lost(dashboard, again(dashboard))) == 3, lost(dashboard, again(dashboard))


def check_sbom():
    def parse(text):
        faults = validate_full_spdx_document(JsonLikeDictParser().parse(json.loads(text)), "SPDX-2.3")
        if faults:
            raise ValueError([fault.validation_message for fault in faults])

    with open(os.path.join(ROOT, "build", "lossd.spdx.json"), encoding="utf-8") as f:
        text = f.read()
    parse(text)
    assert text.count('"DEPENDS_ON"') > 5
    refused(ValueError, parse, text.replace('"relatedSpdxElement": "SPDXRef-deb-libc6"', '"relatedSpdxElement": "SPDXRef-libc6"', 1))
    refused(ValueError, parse, text.replace('"Apache-2.0"', '"Apache-2"', 1))
    refused(SPDXParsingError, parse, text.replace('"DEPENDS_ON"', '"NEEDS"', 1))


def main():
    passed = failed = 0
    for check in (check_kubernetes, check_compose, check_grafana, check_sbom):
        try:
            check()
            passed += 1
        except Exception:
            failed += 1
            print("FAIL %s\n%s" % (check.__name__, traceback.format_exc()), flush=True)
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
