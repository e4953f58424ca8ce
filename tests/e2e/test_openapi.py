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
    FLAGS = ("--shared-memory",)

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
        self.assertIn(status, responses, (path, answer))
        response = self.resolve(responses[status])
        for name, header in response["headers"].items():
            self.assertTrue(answer.header(name) or not self.resolve(header).get("required"), (path, name, answer))
        if "content" not in response:
            self.assertEqual((answer.type, answer.body), ("", b""))
            return
        self.assertIn(answer.type, response["content"], (path, answer))
        if answer.type.endswith("json"):
            self.valid(answer.json(), response["content"][answer.type]["schema"])
        if answer.status >= 400 and answer.type == lossd.PROBLEM:
            body = answer.json()
            self.seen.add(body["code"])
            text = response["description"]
            self.assertIn("`%s`" % body["code"], text)

    def operations(self):
        """(path, method, operation, parameters)"""
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    parameters = item.get("parameters", []) + operation.get("parameters", [])
                    yield path, method, operation, [self.resolve(p) for p in parameters]

    def request_examples(self):
        """(path, method, name, value, schema) of everything that is said to be a JSON body."""
        for path, method, operation, _ in self.operations():
            content = operation.get("requestBody", {"content": {}})["content"].get(lossd.JSON, {})
            for name, example in content.get("examples", {}).items():
                yield path, method, name, self.resolve(example)["value"], content["schema"]

    def test_the_document(self):
        self.assertEqual(self.document["openapi"], "3.1.0")

        def walk(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    self.assertTrue(self.resolve(node) is not None)
                for value in node.values():
                    walk(value)
                if isinstance(node.get("examples"), list):
                    for value in node["examples"]:
                        self.valid(value, {k: v for k, v in node.items() if k != "examples"})
            elif isinstance(node, list):
                for value in node:
                    walk(value)

        walk(self.document)
        for name, schema in self.document["components"]["schemas"].items():
            jsonschema.Draft202012Validator.check_schema(schema)
            self.assertTrue(name)
        schemas = self.document["components"]["schemas"]
        self.valid(self.document["components"]["examples"]["loss_answer"]["value"], schemas["LossAnswer"])
        used = set()
        for path, method, name, value, schema in self.request_examples():
            with self.subTest(path=path, method=method, example=name):
                self.valid(value, schema)
                used.add(json.dumps(value))
        for name, example in self.document["components"]["examples"].items():
            self.assertTrue(name.endswith("_answer") or json.dumps(example["value"]) in used, name)
        for response in self.document["components"]["responses"].values():
            for example in response.get("content", {}).get(lossd.PROBLEM, {}).get("examples", {}).values():
                self.valid(example["value"], schemas["Problem"])

    def test_links_lead_somewhere(self):
        """Each to an operation, with parameters that it has."""
        there = {operation.get("operationId"): {p["name"] for p in parameters}
                 for _, _, operation, parameters in self.operations()}
        there["#/paths/~1v2~1models~1{name}/get"] = {"name"}
        links = self.document["components"]["links"]
        for name, link in links.items():
            self.assertLessEqual(set(link["parameters"]), there[link.get("operationId") or link["operationRef"]], name)
        used = {link["$ref"].rsplit("/", 1)[1] for _, _, operation, _ in self.operations()
                for response in operation["responses"].values() for link in response.get("links", {}).values()}
        self.assertEqual(used, set(links))

    def test_codes_are_those_the_tests_know(self):
        known = set().union(*lossd.CODES.values()) | {"internal"}
        self.assertEqual(set(self.document["components"]["schemas"]["Code"]["enum"]), known)

    def test_examples_work(self):
        for path, method, name, value, _ in self.request_examples():
            with self.subTest(path=path, method=method, example=name):
                target = path.replace("{name}", "ssd-multibox" if path.startswith("/v2") else name)
                target = target.replace("{version}", "1")
                answer = self.daemon.request(method.upper(), target, json.dumps(value).encode(),
                                             {"Content-Type": lossd.JSON})
                self.assertEqual(answer.status, 200 if method == "post" else 201, answer)
                self.check(method, path, answer)

    def test_every_route_answers(self):
        match = lossd.tiny().safetensors(without=("loc", "conf"))
        for path, method, operation, parameters in self.operations():
            target = path
            for p in parameters:
                if p["in"] == "path":
                    target = target.replace("{%s}" % p["name"], p.get("example") or p["examples"]["built_in"]["value"])
            with self.subTest(method=method, path=path):
                if method not in ("get", "post"):
                    self.assertIn((method, path.split("/")[2]), [(m, p) for m in ("put", "delete")
                                                                 for p in ("priors", "criteria")] + [("delete", "runs")])
                    continue  # test_definitions, test_runs
                if (method == "get" and "/region/" in path) or path.startswith("/v1/runs/"):
                    continue  # when it is registered, or recorded
                if method == "post" and path.startswith("/v2"):
                    self.post_inference(path, target, operation)
                    continue
                for media in self.resolve(operation["responses"]["200"])["content"]:
                    if media == "text/css":
                        target = target.replace("app.js", "style.css")
                    if method == "get":
                        answer = self.daemon.get(target, Accept=media)
                    else:
                        body = lossd.tiny().safetensors() if path == "/v1/loss" else match
                        answer = self.daemon.post(target + EVERYTHING, body, lossd.SAFETENSORS, {"Accept": media})
                    self.assertEqual((answer.status, answer.type), (200, media), answer)
                    self.check(method, path, answer)
                    if answer.header("ETag"):
                        self.check(method, path, self.daemon.get(target, **{"If-None-Match": answer.header("ETag")}))

    def post_inference(self, path, target, operation):
        """Each media type of an inference; and what else is posted under /v2, with an empty body."""
        if path.endswith("/register"):
            with open("/dev/shm/lossd-openapi-%d" % os.getpid(), "wb") as thing:
                thing.write(bytes(100))
                thing.flush()
                body = {"key": "/" + os.path.basename(thing.name), "byte_size": 100}
                self.valid(body, self.document["components"]["schemas"]["InferRegistration"])
                answer = self.daemon.post(target, json.dumps(body).encode())
                os.unlink(thing.name)
            self.assertEqual(answer.status, 200, answer)
            for target in (path.replace("{name}/register", "batch/status"), "/v2/systemsharedmemory/status"):
                rows = self.daemon.get(target)
                self.check("get", target.replace("batch", "{name}"), rows)
                self.assertEqual([r["name"] for r in rows.json()], ["batch"])
            return
        if not path.endswith("/infer"):
            answer = self.daemon.request("POST", target)
            self.assertEqual(answer.status, 200 if "200" in operation["responses"] else 400, answer)
            self.check("post", path, answer)
            return
        for media in operation["responses"]["200"]["content"]:
            document, behind = lossd.inference(lossd.tiny().tensors(), id="x", parameters={
                "binary_data_output": media != lossd.JSON, "include": "images,gradients,targets"})
            text = json.dumps(document).encode()
            self.valid(document, self.document["components"]["schemas"]["InferRequest"])
            answer = self.daemon.post(target, text + behind, None, lossd.infer_headers(text))
            self.assertEqual((answer.status, answer.type), (200, media), answer)
            self.check("post", path, answer)
            self.valid(lossd.read_inference(answer)[0], self.document["components"]["schemas"]["InferAnswer"])
            self.check("post", path, self.daemon.post(target, b"{}"))

    def test_definitions(self):
        """Registered, described, replaced and forgotten, each as documented."""
        boxes = lossd.save([("priors", "F32", [2, 4], lossd.pack("F32", [0.5] * 8))])
        for path, own, other, taken in (
                ("/v1/priors/{name}", {"generator": "grid", "image_size": [32, 48]}, boxes, "grid-7x7"),
                ("/v1/criteria/{name}", {"weights": {"conf": 2}}, {"base": "retinanet-focal"}, "ssd-keras")):
            target = path.replace("{name}", "of-test_openapi")
            for method, body, status in (("delete", None, 404), ("put", own, 201), ("get", None, 200),
                                         ("put", other, 200), ("get", None, 200), ("delete", None, 204),
                                         ("get", None, 404)):
                with self.subTest(path=path, method=method, status=status):
                    if method == "put":
                        media = lossd.SAFETENSORS if isinstance(body, bytes) else lossd.JSON
                        answer = self.daemon.put(target, body, media)
                    else:
                        answer = self.daemon.request(method.upper(), target)
                    self.assertEqual(answer.status, status, answer)
                    self.check(method, path, answer)
            for method, name, body, code in (
                    ("put", taken, own, "name_reserved"), ("delete", taken, None, "name_reserved"),
                    ("put", "a%20b", own, "invalid_name"), ("put", "x", b"{", "json_syntax"),
                    ("put", "x", {"generator": 1, "base": 1}, "type_mismatch")):
                with self.subTest(path=path, method=method, name=name):
                    target = path.replace("{name}", name)
                    answer = self.daemon.put(target, body) if method == "put" else self.daemon.delete(target)
                    self.problem(answer, (400, 409, 422), code)
                    self.check(method, path, answer)

    def test_runs(self):
        """Nothing yet, recorded, read in every form, unchanged and deleted, each as documented."""
        run, steps = "/v1/runs/{name}", "/v1/runs/{name}/steps"
        batch = lossd.random_batch(1, n=3, p=9, c=3)
        match = self.good(self.daemon.post("/v1/match?include=targets&classes=2", batch.json(predictions=False)))
        matched = batch.document(targets=match["targets"])
        del matched["annotations"], matched["priors"]
        names = {p["name"]: p for path, _, _, parameters in self.operations() for p in parameters if path == steps}
        for step, body in enumerate((batch.safetensors(), json.dumps(matched).encode(),
                                     lossd.random_batch(1, n=2, p=9, c=3, objects=0).safetensors())):
            query = "?run=of-test_openapi&step=%d" % step
            self.check("post", "/v1/loss", self.daemon.post("/v1/loss" + query, body))
            for path, more in ((run, ""), ("/v1/runs", ""), (steps, ""), (steps, "?format=csv"), (steps, "?points=4"),
                               (steps, "?after=0&limit=1"), ("/v1/runs", "?after=a&limit=1")):
                with self.subTest(step=step, path=path + more):
                    target = path.replace("{name}", "of-test_openapi") + more
                    answer = self.daemon.get(target)
                    self.assertEqual(answer.status, 200)
                    self.check("get", path, answer)
                    self.assertTrue(answer.header("ETag"))
                    same = self.daemon.get(target, **{"If-None-Match": answer.header("ETag")})
                    self.assertEqual(same.status, 304)
                    self.check("get", path, same)
                    self.check("get", path, self.daemon.get(target.split("?")[0] + "?limt=1"))
        for name in ("limit", "points"):   # the limits of the document are those of the daemon
            schema = names[name]["schema"]
            for value, status in ((schema["minimum"], 200), (schema["minimum"] - 1, 422), (schema["maximum"], 200),
                                  (schema["maximum"] + 1, 422)):
                answer = self.daemon.get("/v1/runs/of-test_openapi/steps?%s=%d" % (name, value))
                self.assertEqual(answer.status, status)
                self.check("get", steps, answer)
        mine = "of-test_openapi"
        for method, path, target, status in (("delete", run, mine, 204), ("delete", run, mine, 404),
                                             ("get", run, mine, 404), ("get", steps, "x/steps", 404),
                                             ("delete", run, "x?y=z", 422)):
            answer = self.daemon.request(method.upper(), "/v1/runs/" + target)
            self.assertEqual(answer.status, status)
            self.check(method, path, answer)
        schemas = self.document["components"]["schemas"]
        for example, schema in (("runs_answer", "RunsList"), ("steps_answer", "Steps")):
            self.valid(self.document["components"]["examples"][example]["value"], schemas[schema])

    def test_described_criteria_are_their_own_definition(self):
        for row in self.daemon.get("/v1/criteria").json()["criteria"]:
            text = self.daemon.get("/v1/criteria/" + row["name"]).json()
            self.valid(text, self.document["components"]["schemas"]["CriterionObject"])
            again = self.daemon.put("/v1/criteria/again", text)
            self.assertEqual(dict(again.json(), name=row["name"]), text)
            answer = self.daemon.delete("/v1/criteria/again")
            self.assertEqual(answer.status, 204, answer)

    def test_no_other_route(self):
        for target in ("/v1", "/index.html", "/web", "/web/", "/web/app"):
            self.problem(self.daemon.get(target), 404, "not_found")
        for target in ("/v2/models", "/v2/logging", "/v2/cudasharedmemory/status"):
            self.error(self.daemon.get(target), 404)

    def test_answers(self):
        for batch in (lossd.bccd().pick([0]), lossd.random_batch(1, n=3, p=9, c=3),
                      lossd.random_batch(1, n=1, p=1, c=2, objects=0)):
            for criterion, more in (("ssd-multibox", ",gradients"), ("ssd-multibox-l1", ",dense_gradients"),
                                    ("retinanet-focal", ",gradients")):
                query = EVERYTHING + "%s&criterion=" + criterion + ("" if batch.priors else "&priors=ssd300")
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss" + query % more, batch.safetensors()))
                self.check("post", "/v1/match", self.daemon.post(
                    "/v1/match" + query % "", batch.safetensors(without=("loc", "conf"))))

    def test_matched_already(self):
        """The answer of /v1/match is a request's targets; statistics of objects are then null."""
        batch = lossd.random_batch(1, n=3, p=9, c=3)
        match = self.good(self.daemon.post("/v1/match?include=targets&classes=2", batch.json(predictions=False)))
        request = batch.document()
        del request["annotations"], request["priors"]
        request["targets"] = match["targets"]
        self.valid(request, self.document["components"]["schemas"]["LossRequest"])
        answer = self.daemon.post("/v1/loss" + EVERYTHING + ",gradients", json.dumps(request).encode())
        self.assertEqual(answer.status, 200, answer)
        self.check("post", "/v1/loss", answer)
        got = answer.json()
        self.assertEqual((got["priors"], got["objects"], got["assignment"]["objects"]), (None, None, None))

    def test_problems(self):
        tiny = lossd.tiny().safetensors()
        for body, headers in ((b"{", {}), (b"\1", {}), (tiny + b"x", {}), (b"{}", {}), (tiny, {"Accept": "text/html"}),
                              (tiny, {"Content-Type": "text/plain"}), (tiny, {"Content-Encoding": "gzip"}),
                              (None, {}), (b"", {"Content-Type": lossd.JSON}), (b'{"predictions":NaN}', {}),
                              (tiny, {"Expect": "cake"}), (tiny, {"Content-Length": 1 << 40})):
            with self.subTest(body=body and body[:9], headers=headers):
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss", body, None, headers))
        for query in ("criterion=x", "priors=x", "include=x", "x=y", "label_base=1", "device=cuda", "a=%zz",
                      "priors=ssd300", "include=gradients,dense_gradients", "run=a", "image_size=[0,0]",
                      "criterion={%22matcher%22:{%22positive_iou%22:2}}", "criterion={%22mining%22:{%22scope%22:1}}",
                      "criterion={%22mining%22:{%22kind%22:%22none%22,%22ratio%22:3}}"):
            with self.subTest(query):
                self.check("post", "/v1/loss", self.daemon.post("/v1/loss?" + query, tiny))
        for priors in ({"generator": "x"}, {"generator": "grid", "strides": [0]},
                       {"generator": "grid", "strides": [8], "scales": [1, 2]}):
            body = json.dumps({"annotations": [{"boxes": [], "labels": []}], "priors": priors}).encode()
            self.check("post", "/v1/match", self.daemon.post("/v1/match", body))
        for values in ([0.5, 0, 0.2, 1], [0.5, 0, 0.5, 1], [0, 0, 300, 300], [float("nan"), 0, 1, 1]):
            batch = lossd.tiny()
            batch.boxes = lossd.floats(values)
            for path in ("/v1/loss", "/v1/match"):
                body = batch.safetensors(without=() if path == "/v1/loss" else ("loc", "conf"))
                self.check("post", path, self.daemon.post(path, body))
        self.check("get", "/v1/priors/{name}", self.daemon.get("/v1/priors/nothing"))
        self.check("get", "/v1/criteria/{name}", self.daemon.get("/v1/criteria/nothing"))
        self.check("get", "/v1/runs/{name}", self.daemon.get("/v1/runs/nothing"))
        self.problem(self.daemon.request("DELETE", "/v1/priors"), 405, "method_not_allowed")
        self.assertGreaterEqual(len(self.seen), 30, self.seen)


if __name__ == "__main__":
    unittest.main()
