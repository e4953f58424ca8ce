# SPDX-License-Identifier: Apache-2.0
"""proto/openapi.yaml tells the truth: every route answers, and what it answers has the documented shape.

Needs PyYAML and jsonschema (Debian: python3-yaml, python3-jsonschema); skipped with a message where they are missing.
"""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

try:
    import jsonschema
    import yaml
except ImportError as missing:
    jsonschema = yaml = None
    reason = "%s is not installed" % missing.name
else:
    reason = ""

EVERYTHING = "?include=images,classes,levels,objects,assignment,targets"


@unittest.skipIf(yaml is None, reason)
class OpenApi(lossd.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with open(os.path.join(lossd.ROOT, "proto", "openapi.yaml"), encoding="utf-8") as file:
            cls.document = yaml.safe_load(file)

    def setUp(self):
        self.seen = set()

    def resolve(self, node):
        while "$ref" in node:
            at = self.document
            for step in node["$ref"][2:].split("/"):
                at = at[step]
            node = at
        return node

    def valid(self, value, schema):
        schema = dict(schema, components=self.document["components"])
        errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(value), key=lambda e: list(e.path))
        self.assertEqual([("/".join(map(str, e.path)), e.message[:300]) for e in errors[:3]], [])

    def check(self, method, path, answer):
        """The answer's status, media type, headers and body are those of the operation."""
        responses = self.document["paths"][path][method]["responses"]
        status = str(answer.status)
        self.assertTrue(status in responses or "default" in responses, (path, answer))
        response = self.resolve(responses.get(status) or responses["default"])
        self.assertIn(answer.type, response["content"], (path, answer))
        self.assertTrue(answer.header("X-Request-Id"))
        if answer.type.endswith("json"):
            self.valid(answer.json(), response["content"][answer.type]["schema"])
        if answer.status >= 400:
            body = answer.json()
            self.seen.add(body["code"])
            text = response["description"]
            self.assertTrue("`%s`" % body["code"] in text or status not in responses, (body["code"], text))

    def test_the_document(self):
        self.assertEqual(self.document["openapi"], "3.1.0")

        def walk(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    self.assertTrue(self.resolve(node) is not None)
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)

        walk(self.document)
        for name, schema in self.document["components"]["schemas"].items():
            jsonschema.Draft202012Validator.check_schema(schema)
            self.assertTrue(name)
        examples = self.document["components"]["examples"]
        schemas = self.document["components"]["schemas"]
        self.valid(examples["loss_request"]["value"], schemas["LossRequest"])
        self.valid(examples["match_request"]["value"], schemas["MatchRequest"])
        self.valid(examples["loss_answer"]["value"], schemas["LossAnswer"])
        for response in self.document["components"]["responses"].values():
            for example in response["content"]["application/problem+json"].get("examples", {}).values():
                self.valid(example["value"], schemas["Problem"])

    def test_codes_are_those_the_tests_know(self):
        known = set().union(*lossd.CODES.values()) | {"internal"}
        self.assertEqual(set(self.document["components"]["schemas"]["Code"]["enum"]), known)

    def test_examples_work(self):
        for path, name in (("/v1/loss", "loss_request"), ("/v1/match", "match_request")):
            body = json.dumps(self.document["components"]["examples"][name]["value"]).encode()
            answer = self.daemon.post(path, body, lossd.JSON)
            self.assertEqual(answer.status, 200, answer)
            self.check("post", path, answer)

    def test_every_route_answers(self):
        match = lossd.tiny().safetensors(without=("loc", "conf"))
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                with self.subTest(method=method, path=path):
                    examples = [p["example"] for p in map(self.resolve, operation.get("parameters", []))
                                if p["in"] == "path"]
                    target = path.replace("{name}", examples[0]) if examples else path
                    for media in operation["responses"]["200"]["content"]:
                        if method == "get":
                            answer = self.daemon.get(target, Accept=media)
                        else:
                            body = lossd.tiny().safetensors() if path == "/v1/loss" else match
                            answer = self.daemon.post(target + EVERYTHING, body, lossd.SAFETENSORS, {"Accept": media})
                        self.assertEqual((answer.status, answer.type), (200, media), answer)
                        self.check(method, path, answer)

    def test_no_other_route(self):
        for target in ("/", "/v1", "/v1/runs", "/metrics", "/v2", "/v2/health/live"):
            self.problem(self.daemon.get(target), 404, "not_found")

    def test_answers(self):
        for batch in (lossd.bccd().pick([0]), lossd.random_batch(1, n=3, p=9, c=3),
                      lossd.random_batch(1, n=1, p=1, c=2, objects=0)):
            for criterion in ("ssd-multibox", "ssd-multibox-l1"):
                query = EVERYTHING + "&criterion=" + criterion + ("" if batch.priors else "&priors=ssd300")
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss" + query, batch.safetensors()))
                self.check("post", "/v1/match", self.daemon.post(
                    "/v1/match" + query, batch.safetensors(without=("loc", "conf"))))

    def test_problems(self):
        tiny = lossd.tiny().safetensors()
        for body, headers in ((b"{", {}), (b"\1", {}), (tiny + b"x", {}), (b"{}", {}), (tiny, {"Accept": "text/html"}),
                              (tiny, {"Content-Type": "text/plain"}), (tiny, {"Content-Encoding": "gzip"}),
                              (None, {}), (b"", {"Content-Type": lossd.JSON}), (b'{"predictions":NaN}', {}),
                              (tiny, {"Expect": "cake"}), (tiny, {"Content-Length": 1 << 40})):
            with self.subTest(body=body and body[:9], headers=headers):
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss", body, None, headers))
        for query in ("criterion=x", "priors=x", "include=x", "x=y", "label_base=1", "device=cuda", "a=%zz",
                      "priors=ssd300"):
            with self.subTest(query):
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss?" + query, tiny))
        for values in ([0.5, 0, 0.2, 1], [0.5, 0, 0.5, 1], [0, 0, 300, 300], [float("nan"), 0, 1, 1]):
            batch = lossd.tiny()
            batch.boxes = lossd.floats(values)
            for path in ("/v1/loss", "/v1/match"):
                body = batch.safetensors(without=() if path == "/v1/loss" else ("loc", "conf"))
                self.check("post", path, self.daemon.post(path, body))
        self.check("get", "/v1/priors/{name}", self.daemon.get("/v1/priors/nothing"))
        self.check("get", "/v1/criteria/{name}", self.daemon.get("/v1/criteria/nothing"))
        self.check("get", "/v1/priors", self.daemon.request("DELETE", "/v1/priors"))
        self.assertGreater(len(self.seen), 20, self.seen)


if __name__ == "__main__":
    unittest.main()
