#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""schemathesis against the real daemon, which has to do what its own OpenAPI document says: `conformance.py`, run by
`make e2e-clients` with the Python of build/clients. EXAMPLES (20) requests of each kind and operation. What it checks,
and what not, is in schemathesis.toml; what it has to know, in hooks.py; what must not escape it, in planted.py.

The last line is `N passed, N failed`.
"""
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import traceback

import openapi_spec_validator
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
sys.dont_write_bytecode = True
import lossd  # noqa: E402
import planted  # noqa: E402

WORK = os.path.join(lossd.ROOT, "build", "clients", "conformance")
EXAMPLES = os.environ.get("EXAMPLES") or "20"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
OPS = ("/healthz", "/readyz", "/metrics", "/version")
NEVER = {"POST /v2/repository/models/{name}/unload"}   # is refused, whoever asks


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield "%s %s" % (method.upper(), path), path, operation


class Run:
    """One run of schemathesis, over the whole document unless `paths` are given."""

    def __init__(self, name, port, document, token="", paths=(), phases=PHASES, hooks="hooks.py", **environment):
        os.makedirs(WORK, exist_ok=True)
        at = {kind: os.path.join(WORK, "%s.%s" % (name, kind)) for kind in ("document", "report", "answers")}
        for path in at.values():
            if os.path.exists(path):
                os.unlink(path)
        with open(at["document"], "w") as file:
            json.dump(document, file)
        command = [os.path.join(os.path.dirname(sys.executable), "st"), "--no-color", "--config-file",
                   os.path.join(HERE, "schemathesis.toml"), "run", at["document"], "--url", "http://127.0.0.1:%d" % port,
                   "--seed", "1", "--max-examples", EXAMPLES, "--phases", ",".join(phases), "--continue-on-failure",
                   "--report", "json", "--report-json-path", at["report"]]
        command += ["--header=Authorization: Bearer " + token] if token else []
        command += ["--include-path=" + path for path in paths]
        self.paths, self.phases, self.document = paths, phases, document
        done = subprocess.run(command, cwd=WORK, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "ANSWERS": at["answers"], "PYTHONHASHSEED": "1",
                                   "SCHEMATHESIS_HOOKS": os.path.join(HERE, hooks), **environment})
        self.status, self.output = done.returncode, done.stdout.decode("utf-8", "replace")
        assert os.path.exists(at["answers"]), self.output
        with open(at["report"]) as file:
            self.report = json.load(file)
        with open(at["answers"]) as file:
            self.answers = set(map(tuple, json.load(file)))
        print("%s: %d requests in %.0f s" % (name, self.report["test_cases"]["generated"], self.report["running_time"]),
              flush=True)

    def clean(self, writes=True):
        """Nothing was found, and not because nothing was asked: all that the document says of success was answered."""
        assert self.status == 0, self.output
        assert all(self.report["phases"][phase]["status"] == "success" for phase in self.phases), self.report["phases"]
        missing = []
        for label, path, operation in operations(self.document):
            if label in NEVER or (self.paths and path not in self.paths):
                continue
            if not writes and operation.get("security") == [{"token": ["write"]}]:
                continue
            for status, response in operation["responses"].items():
                while "$ref" in response:
                    response = self.document["components"]["responses"][response["$ref"].split("/")[-1]]
                missing += [(label, status, media) for media in response.get("content", [""])
                            if status[0] == "2" and (label, int(status), media) not in self.answers]
        assert not missing, missing


class Checks:
    def __init__(self, home):
        self.tokens = {role: role * 8 for role in ("read", "write")}
        self.token_file = os.path.join(home, "tokens")
        with open(self.token_file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.writelines("%s %s %s\n" % (role, role, token) for role, token in self.tokens.items())
        self.region = "/lossd-conformance-%d" % os.getpid()

    def document(self, daemon, token=""):
        """What the daemon serves; without tokens it asks for none."""
        answer = daemon.get("/openapi.yaml", Authorization="Bearer " + token)
        assert answer.status == 200, answer
        document = yaml.safe_load(answer.body)
        document["components"]["schemas"]["InferRegistration"]["properties"]["key"]["examples"] = [self.region]
        for place in [document, *(operation for _, _, operation in operations(document))]:
            if not token:
                place.pop("security", None)
        return document

    def run(self, name, port, document, *arguments, **more):
        return Run(name, port, document, *arguments, REGION=self.region, **more)

    def prepare(self, daemon):
        """Something is recorded and mapped already, under the names of the document's examples."""
        region = json.dumps({"key": self.region, "byte_size": 4096}).encode()
        for target, body in (("/v1/loss?run=night-7&step=1", lossd.tiny().safetensors()),
                             ("/v2/systemsharedmemory/region/batch/register", region)):
            answer = daemon.post(target, body, None, {"Authorization": "Bearer " + self.tokens["write"]})
            assert answer.status == 200, answer

    def check_the_document(self):
        with lossd.Daemon() as daemon:
            openapi_spec_validator.validate(yaml.safe_load(daemon.get("/openapi.yaml").body))

    def check_without_tokens(self):
        with lossd.Daemon("--shared-memory", "--ops-listen", "127.0.0.1:0") as daemon:
            document = self.document(daemon)
            self.prepare(daemon)
            self.run("anonymous", daemon.port, document).clean()
            self.run("operations", daemon.ops_port, document, paths=OPS, phases=("coverage", "fuzzing")).clean()

    def check_with_a_token_that_may_write(self):
        with lossd.Daemon("--shared-memory", "--token-file", self.token_file) as daemon:
            token = self.tokens["write"]
            self.prepare(daemon)
            self.run("write", daemon.port, self.document(daemon, token), token).clean()

    def check_with_a_token_that_may_read(self):
        with lossd.Daemon("--shared-memory", "--token-file", self.token_file) as daemon:
            token = self.tokens["read"]
            self.prepare(daemon)
            self.run("read", daemon.port, self.document(daemon, token), token, ROLE="read").clean(writes=False)

    def check_that_lies_are_found(self):
        """A token that may write is said to be a reader's; the document has a status less, and asks for a token where none
        is; and answers are changed."""
        with lossd.Daemon("--shared-memory", "--token-file", self.token_file) as daemon:
            document = self.document(daemon, self.tokens["write"])
            del document["paths"]["/v1/runs/{name}"]["get"]["responses"]["404"]
            del document["paths"]["/"]["get"]["security"]
            run = self.run("planted", daemon.port, document, self.tokens["write"], planted.PATHS, hooks="planted.py",
                           ROLE="read")
            found = {(failure["type"], label) for failure in run.report["failures"] for label in failure["operations"]}
            missed = planted.EXPECTED - found
            assert run.status == 1 and not missed, (missed, sorted(found), run.output)


def main():
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="lossd-") as home:
        checks = Checks(home)
        shared = "/dev/shm" + checks.region
        with open(shared, "wb") as file:
            file.write(bytes(4096))
        try:
            names = [name for name in dir(checks) if name.startswith("check_") and name in (sys.argv[1:] or dir(checks))]
            with concurrent.futures.ThreadPoolExecutor(2) as two:   # at a time
                for name, check in [(name, two.submit(getattr(checks, name))) for name in names]:
                    try:
                        check.result()
                        passed += 1
                    except Exception:
                        failed += 1
                        print("FAIL %s\n%s" % (name, traceback.format_exc()), flush=True)
        finally:
            os.unlink(shared)
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
