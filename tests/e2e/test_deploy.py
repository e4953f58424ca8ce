# SPDX-License-Identifier: Apache-2.0
"""What deploy/ holds against the daemon that it starts and watches: the Kubernetes manifest, the compose file, Prometheus'
configuration and alerts, Grafana's dashboard. `make deploy-check` compares them with the schemas of others."""
import configparser
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.parse
import urllib.request

import yaml

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

DEPLOY = os.path.join(lossd.ROOT, "deploy")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
METRIC = re.compile(r"\blossd_[a-z0-9_]+")


def read(name):
    with open(os.path.join(DEPLOY, name), encoding="utf-8") as f:
        return f.read()


def load(name):
    return yaml.safe_load(read(name))


class Gather(dict):
    """Of a key that is there several times, all values, a line each."""

    def __setitem__(self, key, value):
        if isinstance(value, list) and key in self:
            value = self[key] + value
        super().__setitem__(key, value)


def size(text):
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]*)", str(text)).groups()
    return int(number) * UNITS[unit.upper()]


def port_of(address):
    return int(address.rpartition(":")[2])


def memory(option, workers):
    """What a container needs, as README has it (Container), with TLS; `option(NAME)` is an option's text."""
    threads = int(workers) + int(option("LOSSD_HTTP_THREADS"))
    most = size(option("LOSSD_MEMORY_LIMIT")) + int(option("LOSSD_CONNECTION_LIMIT")) * (320 << 10) + (2 * threads + 57 << 20)
    return most * 1.1


def defaults():
    """{LOSSD_NAME: the default} of every option, from --help; None for a switch and where there is none."""
    code, out, _ = lossd.command("--help")
    assert code == 0
    found = {}
    for line in out.splitlines():
        flag = re.match(r"\s*--([a-z-]+)", line)
        if flag:
            value = re.search(r"\[(.*)\]$", line)
            found["LOSSD_" + flag[1].upper().replace("-", "_")] = value and value[1]
    return found


def image():
    """What the Dockerfile sets: its ENV and its USER."""
    with open(os.path.join(lossd.ROOT, "Dockerfile"), encoding="utf-8") as f:
        text = f.read()
    return dict(re.findall(r"(LOSSD_[A-Z_]+)=(\S+)", text)), re.search(r"^USER (\d+):(\d+)$", text, re.M).groups()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fetch(port, target, headers=None):
    """Status and body from this machine."""
    request = urllib.request.Request("http://127.0.0.1:%d%s" % (port, target), headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=lossd.PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Kubernetes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = list(yaml.safe_load_all(read("kubernetes.yaml")))
        cls.set = cls.one("StatefulSet")["spec"]
        cls.pod = cls.set["template"]["spec"]
        cls.container, = cls.pod["containers"]
        cls.env = {e["name"]: e["value"] for e in cls.container["env"]}
        cls.ports = {p["name"]: p["containerPort"] for p in cls.container["ports"]}

    @classmethod
    def one(cls, kind, name="lossd"):
        return next(r for r in cls.all if r["kind"] == kind and r["metadata"]["name"] == name)

    def option(self, name):
        return self.env.get(name) or image()[0].get(name) or defaults()[name]

    def test_names_agree(self):
        labels = self.set["template"]["metadata"]["labels"]
        self.assertEqual(self.set["selector"]["matchLabels"], labels)
        self.assertEqual(self.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(self.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels)
        for name in ("lossd", self.set["serviceName"]):
            service = self.one("Service", name)["spec"]
            self.assertEqual(service["selector"], labels)
            for port in service["ports"]:
                self.assertEqual(port["port"], self.ports[port["targetPort"]])
        self.assertEqual(self.one("Service", self.set["serviceName"])["spec"]["clusterIP"], "None")
        self.one("ServiceAccount", self.pod["serviceAccountName"])

    def test_ports(self):
        self.assertEqual(self.ports, {"http": port_of(self.option("LOSSD_LISTEN")), "ops": port_of(self.option("LOSSD_OPS_LISTEN"))})
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertEqual(self.container[name]["httpGet"]["port"], "ops")
        self.assertEqual(self.set["template"]["metadata"]["annotations"],
                         {"prometheus.io/scrape": "true", "prometheus.io/port": str(self.ports["ops"]), "prometheus.io/path": "/metrics"})
        rules = self.one("NetworkPolicy")["spec"]["ingress"]
        self.assertEqual({p["port"] for rule in rules for p in rule["ports"]}, set(self.ports.values()))
        self.assertEqual([rule["ports"] for rule in rules if "from" not in rule], [[{"port": self.ports["ops"]}]])

    def test_the_daemon_starts_as_the_container_does(self):
        """With the environment of the image and of the manifest, the addresses apart; every probe succeeds and, in a drain,
        the readiness probe alone fails."""
        self.assertLessEqual(set(self.env), set(defaults()))
        ops = free_port()
        env = dict(image()[0], **self.env)
        del env["LOSSD_DATA_DIR"]
        home = tempfile.TemporaryDirectory()
        self.addCleanup(home.cleanup)
        tokens = os.path.join(home.name, "tokens")
        with open(tokens, "w", encoding="ascii") as out:
            out.write("write trainer %s\nread prometheus %s\n" % ("w" * 64, "r" * 64))
        os.chmod(tokens, self.pod["volumes"][0]["secret"]["defaultMode"])
        env.update(LOSSD_LISTEN="127.0.0.1:0", LOSSD_OPS_LISTEN="127.0.0.1:%d" % ops, LOSSD_TOKEN_FILE=tokens,
                   LOSSD_WORKERS=str(self.container["resources"]["limits"]["cpu"]))   # as many as its quota
        read, write = ({"Authorization": "Bearer " + letter * 64} for letter in "rw")
        probes = [self.container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        scraped = self.set["template"]["metadata"]["annotations"]["prometheus.io/path"]
        with lossd.Daemon(env=env) as daemon:
            self.assertEqual([fetch(ops, path)[0] for path in probes + [scraped]], [200, 200, 200, 401])
            page = fetch(ops, scraped, read)[1]
            self.assertIn(b"\nlossd_ready 1\n", page)
            self.assertLessEqual(int(re.search(rb"\nlossd_memory_bound_bytes (\d+)\n", page)[1]),
                                 size(self.container["resources"]["limits"]["memory"]))
            self.assertEqual(fetch(ops, "/v1/priors", read)[0], 404)
            self.assertEqual(daemon.post("/v1/loss", lossd.tiny().safetensors()).status, 401)
            self.assertEqual(daemon.post("/v1/loss", lossd.tiny().safetensors(), None, write).status, 200)
            daemon.signal()
            self.assertTrue(lossd.until(lambda: fetch(ops, probes[2])[0] == 503))
            self.assertEqual([fetch(ops, path)[0] for path in probes], [200, 200, 503])
            self.assertIn(b"\nlossd_ready 0\n", fetch(ops, scraped, read)[1])
            self.assertEqual(daemon.post("/v1/loss", lossd.tiny().safetensors(), None, write).status, 200)

    def test_times_fit(self):
        delay, drain = int(self.option("LOSSD_DRAIN_DELAY")), int(self.option("LOSSD_DRAIN_TIMEOUT"))
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], delay + drain)
        self.assertGreater(drain, int(self.option("LOSSD_REQUEST_TIMEOUT")))
        self.assertGreater(delay, 0)

    def test_memory_fits(self):
        for limits in self.container["resources"].values():
            self.assertGreaterEqual(size(limits["memory"]), memory(self.option, self.container["resources"]["limits"]["cpu"]))
        self.assertIn("cpu", self.container["resources"]["limits"])  # of which the daemon takes the number of its workers

    def test_restricted(self):
        """The Pod Security Standard of that name, a read-only root, and nothing injected."""
        pod, own = self.pod["securityContext"], self.container["securityContext"]
        user, group = map(int, image()[1])
        self.assertEqual((pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]), (user, group, group))
        self.assertIs(pod["runAsNonRoot"], True)
        self.assertEqual(pod["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertEqual(own, {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}})
        self.assertIs(self.pod["automountServiceAccountToken"], False)
        self.assertIs(self.pod["enableServiceLinks"], False)
        self.assertFalse({"hostNetwork", "hostPID", "hostIPC"} & set(self.pod))

    def test_S16_tokens_are_a_secret(self):
        """Mounted for the pod's group alone; nothing secret in the environment or in this file."""
        volume, = self.pod["volumes"]
        self.assertEqual((set(volume), volume["secret"]["defaultMode"]), ({"name", "secret"}, 0o440))
        mount = next(m for m in self.container["volumeMounts"] if m["name"] == volume["name"])
        self.assertIs(mount["readOnly"], True)
        self.assertEqual(os.path.dirname(self.env["LOSSD_TOKEN_FILE"]), mount["mountPath"])
        self.assertNotIn("LOSSD_ALLOW_ANONYMOUS", self.env)
        self.assertFalse([r for r in self.all if r["kind"] == "Secret"])

    def test_volume_and_budget(self):
        mount = next(m for m in self.container["volumeMounts"] if m["name"] == "data")
        claim, = self.set["volumeClaimTemplates"]
        self.assertEqual((mount["name"], mount["mountPath"]), (claim["metadata"]["name"], image()[0]["LOSSD_DATA_DIR"]))
        self.assertEqual(self.set["replicas"], 1)
        budget = self.one("PodDisruptionBudget")["spec"]
        self.assertNotIn("minAvailable", budget)
        self.assertGreaterEqual(budget["maxUnavailable"], 1)  # or no node could be drained


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.file = load("compose.yaml")
        cls.services = cls.file["services"]

    def test_without_a_profile_only_the_daemon(self):
        self.assertEqual([name for name, s in self.services.items() if "profiles" not in s], ["lossd"])
        context = os.path.join(DEPLOY, self.services["lossd"]["build"]["context"])
        self.assertTrue(os.path.samefile(context, lossd.ROOT))

    def test_options(self):
        env = self.services["lossd"]["environment"]
        self.assertLessEqual(set(env), set(defaults()))
        self.assertGreaterEqual(size(self.services["lossd"]["mem_limit"]), memory(lambda name: env.get(name, defaults()[name]), 100))

    def test_with_tokens(self):
        """What the second file changes: the daemon takes tokens from a secret, and nobody is anonymous."""
        more = load("compose-tokens.yaml")
        service, = more["services"].items()
        self.assertEqual(service[0], "lossd")
        env = service[1]["environment"]
        self.assertLessEqual(set(env), set(defaults()))
        self.assertEqual(env, {"LOSSD_ALLOW_ANONYMOUS": "0", "LOSSD_TOKEN_FILE": "/run/secrets/tokens"})
        self.assertEqual((service[1]["secrets"], set(more["secrets"])), (["tokens"], {"tokens"}))
        with open(os.path.join(lossd.ROOT, ".gitignore"), encoding="utf-8") as file:
            self.assertIn("deploy/tokens", file.read().split())
        with open(os.path.join(lossd.ROOT, ".dockerignore"), encoding="utf-8") as file:
            self.assertIn("deploy/tokens", file.read().split())

    def test_contained(self):
        for name, service in self.services.items():
            with self.subTest(name):
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", service["security_opt"])
                self.assertTrue(service["mem_limit"] and service["pids_limit"])
                for port in service["ports"]:
                    self.assertRegex(port, r"^127\.0\.0\.1:\d+:\d+$")
                if "build" not in service:
                    self.assertRegex(service["image"], r":v?\d+\.\d+\.\d+$")
                    self.assertIn("healthcheck", service)
        published = [port.split(":")[1] for s in self.services.values() for port in s["ports"]]
        self.assertEqual(len(set(published)), len(published))

    def test_volumes(self):
        named = set()
        for service in self.services.values():
            for volume in service["volumes"]:
                source, target, *mode = volume.split(":")
                if source.startswith("."):
                    self.assertTrue(os.path.exists(os.path.join(DEPLOY, source)), volume)
                    self.assertEqual(mode, ["ro"], volume)
                else:
                    named.add(source)
                self.assertTrue(os.path.isabs(target))
        self.assertEqual(named, set(self.file["volumes"]))

    def mounted(self, service, path):
        """The file or folder of deploy/ that is seen there."""
        for volume in self.services[service]["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith(".") and (path == target or path.startswith(target + "/")):
                return os.path.normpath(os.path.join(DEPLOY, source, os.path.relpath(path, target)))
        return self.fail("%s has no %s" % (service, path))

    def test_prometheus_finds_its_files_and_the_daemon(self):
        command = dict(flag.split("=", 1) for flag in self.services["prometheus"]["command"])
        where = command["--config.file"]
        self.assertEqual(self.mounted("prometheus", where), os.path.join(DEPLOY, "prometheus.yml"))
        config = load("prometheus.yml")
        for rules in config["rule_files"]:
            self.assertTrue(os.path.isfile(self.mounted("prometheus", os.path.join(os.path.dirname(where), rules))))
        self.assertIn(command["--storage.tsdb.path"], [v.split(":")[1] for v in self.services["prometheus"]["volumes"]])
        ops = port_of(self.services["lossd"]["environment"]["LOSSD_OPS_LISTEN"])
        self.assertEqual([c["targets"] for job in config["scrape_configs"] for c in job["static_configs"]], [["lossd:%d" % ops]])

    def test_grafana_finds_its_files_and_prometheus(self):
        env = self.services["grafana"]["environment"]
        dashboard = env["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        self.assertEqual(self.mounted("grafana", dashboard), os.path.join(DEPLOY, "grafana.json"))
        provisioning = "/etc/grafana/provisioning/"
        source, = load(self.mounted("grafana", provisioning + "datasources/prometheus.yaml"))["datasources"]
        self.assertEqual((source["type"], source["url"], source["isDefault"]), ("prometheus", "http://prometheus:9090", True))
        self.assertEqual(self.services["prometheus"]["ports"], ["127.0.0.1:9091:9090"])
        self.assertEqual(source["jsonData"]["timeInterval"], load("prometheus.yml")["global"]["scrape_interval"])
        provider, = load(self.mounted("grafana", provisioning + "dashboards/lossd.yaml"))["providers"]
        self.assertEqual(provider["options"]["path"], os.path.dirname(dashboard))


class Systemd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.unit = configparser.RawConfigParser(strict=False, dict_type=Gather)
        cls.unit.optionxform = str
        cls.unit.read_string(read("lossd.service"))
        cls.service = {k: v.split("\n") for k, v in cls.unit["Service"].items()}
        cls.env = dict(line.split("=", 1) for line in cls.service["Environment"])

    def test_options(self):
        self.assertLessEqual(set(self.env), set(defaults()))
        self.assertNotIn("LOSSD_ALLOW_ANONYMOUS", self.env)
        self.assertIn("127.0.0.1:", self.env["LOSSD_LISTEN"])
        self.assertGreaterEqual(size(self.service["MemoryMax"][0]),
                                memory(lambda name: self.env.get(name, defaults()[name]), 100))
        drain = int(defaults()["LOSSD_DRAIN_DELAY"]) + int(defaults()["LOSSD_DRAIN_TIMEOUT"])
        self.assertGreater(int(self.service["TimeoutStopSec"][0]), drain)

    def test_tokens_are_credentials(self):
        name, source = self.service["LoadCredential"][0].split(":")
        self.assertEqual(self.env["LOSSD_TOKEN_FILE"], "%d/" + name)
        self.assertTrue(source.startswith("/etc/"))
        self.assertNotIn("SetCredential", self.service)   # a secret in the unit is everyone's to read

    def test_S18_contained(self):
        for key, value in (("DynamicUser", "yes"), ("NoNewPrivileges", "yes"), ("CapabilityBoundingSet", ""), ("ProtectSystem", "strict"),
                           ("MemoryDenyWriteExecute", "yes"), ("LimitCORE", "0"), ("StateDirectory", "lossd"),
                           ("SystemCallArchitectures", "native"), ("IPAddressDeny", "any"), ("UMask", "0077")):
            self.assertEqual(self.service[key], [value], key)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    def test_S18_exposure(self):
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", os.path.join(DEPLOY, "lossd.service")],
                              capture_output=True, text=True, timeout=lossd.PATIENCE)
        exposure = re.search(r"Overall exposure level for lossd.service: ([0-9.]+)", done.stdout)
        self.assertTrue(exposure, done.stdout + done.stderr)
        self.assertLessEqual(float(exposure[1]), 1.5)

    def allowed(self):
        """The names that the unit's filter lets through, as this machine's systemd knows its sets."""
        text = subprocess.run(["systemd-analyze", "syscall-filter"], check=True, capture_output=True, text=True,
                              timeout=lossd.PATIENCE).stdout
        sets, current = {}, None
        for line in text.splitlines():
            if line.startswith("@"):
                current = sets.setdefault(line.strip(), set())
            elif line.startswith("    ") and not line.strip().startswith("#") and current is not None:
                current.add(line.strip())
            elif line.startswith("#"):
                current = None

        def expand(name):
            return set().union(*map(expand, sets[name])) if name.startswith("@") else {name}

        allowed, denied = expand("@default"), set()
        for line in self.service["SystemCallFilter"]:
            names = set().union(*map(expand, line.lstrip("~").split()))
            allowed, denied = (allowed - names, denied | names) if line[0] == "~" else (allowed | names, denied - names)
        return allowed, denied

    @unittest.skipUnless(shutil.which("systemd-analyze") and shutil.which("strace"), "systemd-analyze and strace are not both installed")
    def test_S19_the_filter_lets_through_what_is_called(self):
        """Start, every kind of request, a reload and the stop, traced."""
        allowed, denied = self.allowed()
        with tempfile.TemporaryDirectory() as home:
            who = {"user": 65532, "group": 65532, "extra_groups": []} if os.geteuid() == 0 else {}   # SQLite knows root
            binary = shutil.copy(lossd.BINARY, home)
            os.chmod(home, 0o777)
            trace, tokens = os.path.join(home, "trace"), os.path.join(home, "tokens")
            with open(tokens, "w", encoding="ascii") as out:
                out.write("write a a-token-that-is-long\n")
            os.chmod(tokens, 0o600)
            if who:
                os.chown(tokens, who["user"], who["group"])
            process = subprocess.Popen(["strace", "-f", "-qq", "-o", trace, binary, "--listen", "127.0.0.1:0", "--data-dir",
                                        os.path.join(home, "data"), "--token-file", tokens],
                                       env=lossd.environment({"ASAN_OPTIONS": "detect_leaks=0"}), cwd=home, **who,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            line = process.stdout.readline()
            if not lossd.READY.match(line.strip()):
                process.communicate()
                self.skipTest("strace may not trace here")
            try:
                port, bearer = int(line.rsplit(":", 1)[1]), {"Authorization": "Bearer a-token-that-is-long"}
                with lossd.Connection(port) as connection:
                    for method, target, body in (("GET", "/", None), ("GET", "/metrics", None), ("GET", "/v1/runs", None),
                                                 ("POST", "/v1/loss?run=a&step=1", lossd.random_batch(1).safetensors()),
                                                 ("PUT", "/v1/priors/mine", b'{"generator":"grid","image_size":64}'),
                                                 ("DELETE", "/v1/runs/a", None)):
                        self.assertLess(connection.request(method, target, body, bearer).status, 300, target)
                daemon = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout)
                os.kill(daemon, signal.SIGHUP)
                os.kill(daemon, signal.SIGTERM)
            finally:
                process.communicate(timeout=lossd.PATIENCE)
            with open(trace, encoding="utf-8", errors="replace") as file:
                called = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)[ (]", file.read(), re.M))
        self.assertGreater(len(called), 30)
        self.assertEqual(called & denied, set())
        self.assertEqual(called - allowed - {"execve", "exit_group"}, set())   # strace's own, and of @default


class Alerts(unittest.TestCase):
    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=4 * lossd.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_promtool(self):
        self.promtool("check", "rules", os.path.join(DEPLOY, "alerts.yaml"))
        self.promtool("check", "config", os.path.join(DEPLOY, "prometheus.yml"))
        self.promtool("test", "rules", os.path.join(DEPLOY, "alerts_test.yaml"))

    def test_every_alert_is_tested_and_explained(self):
        rules = [rule for group in load("alerts.yaml")["groups"] for rule in group["rules"]]
        names = [rule["alert"] for rule in rules]
        self.assertEqual(len(set(names)), len(names))
        fired = re.findall(r'alertname="(\w+)",alertstate="firing"', read("alerts_test.yaml"))
        self.assertEqual(set(fired), set(names))
        for rule in rules:
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
            self.assertLessEqual({"summary", "description"}, set(rule["annotations"]))
            for option in re.findall(r"--([a-z]+(?:-[a-z]+)*)", rule["annotations"]["description"]):
                self.assertIn("LOSSD_" + option.upper().replace("-", "_"), defaults(), rule["alert"])


class Dashboard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dashboard = json.loads(read("grafana.json"), object_pairs_hook=cls.no_twins)

    @staticmethod
    def no_twins(pairs):
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    def test_panels(self):
        panels = self.dashboard["panels"]
        self.assertEqual(len({p["id"] for p in panels}), len(panels))
        titles = [p["title"] for p in panels if p["type"] != "row"]
        self.assertEqual(len(set(titles)), len(titles))
        cells = set()
        for panel in panels:
            with self.subTest(panel["title"]):
                place = panel["gridPos"]
                mine = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                        for y in range(place["y"], place["y"] + place["h"])}
                self.assertLessEqual(max(x for x, _ in mine), 23)
                self.assertFalse(mine & cells, "it lies on another")
                cells |= mine
                if panel["type"] == "row":
                    continue
                self.assertIn(panel["type"], ("stat", "timeseries"))
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                self.assertEqual(len({t["refId"] for t in panel["targets"]}), len(panel["targets"]))
                for target in panel["targets"]:
                    self.assertEqual(target["datasource"], panel["datasource"])
                    self.assertEqual(target["datasource"], {"type": "prometheus", "uid": "${datasource}"})

    def test_variables(self):
        known = {v["name"] for v in self.dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(self.dashboard)))
        self.assertEqual(used - known, {"__rate_interval", "__range", "__all"})
        self.assertEqual(known - used, set())


class Prometheus:
    """A Prometheus of its own that scrapes this daemon every second, with the configuration and the alerts of deploy/."""

    def __init__(self, target):
        self.home = tempfile.TemporaryDirectory()
        config = load("prometheus.yml")
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": ["127.0.0.1:%d" % target]}]
        with open(os.path.join(self.home.name, "prometheus.yml"), "w", encoding="utf-8") as f:
            yaml.safe_dump(config, f)
        shutil.copy(os.path.join(DEPLOY, "alerts.yaml"), self.home.name)
        self.port = free_port()
        self.log = open(os.path.join(self.home.name, "log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             "--web.listen-address=127.0.0.1:%d" % self.port], cwd=self.home.name, stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log)

    def get(self, path, **parameters):
        status, body = fetch(self.port, "/api/v1/%s?%s" % (path, urllib.parse.urlencode(parameters)))
        answer = json.loads(body)
        if status != 200 or answer["status"] != "success":
            raise AssertionError("%s %s: %s" % (path, parameters, answer))
        return answer["data"]

    def query(self, expression):
        return self.get("query", query=expression)["result"]

    def has(self, expression):
        """Whether it answers, and with something."""
        if self.process.poll() is not None:
            self.log.seek(0)
            raise AssertionError("Prometheus ended\n" + self.log.read())
        try:
            return bool(self.query(expression))
        except (urllib.error.URLError, ConnectionError, ValueError):
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(lossd.PATIENCE)
        self.log.close()
        self.home.cleanup()


class Metrics(lossd.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prometheus = Prometheus(cls.daemon.port)
        cls.addClassCleanup(cls.prometheus.close)
        seen = cls.prometheus.has
        assert lossd.until(lambda: seen("lossd_ready == 1"))
        for step in range(3):
            for answer in (cls.daemon.post("/v1/loss?run=a&step=%d" % step, lossd.random_batch(1, n=2).safetensors()),
                           cls.daemon.post("/v1/match", lossd.tiny().json(predictions=False))):
                assert answer.status == 200, answer
        assert lossd.until(lambda: seen('min(rate(lossd_answer_seconds_count{route=~"/v1/.+"}[1m])) > 0'))

    def exported(self):
        """Every name of a series."""
        return set(re.findall(r"^(lossd_[a-z0-9_]+)", self.daemon.get("/metrics").body.decode(), re.M))

    def test_names_are_served(self):
        served = self.exported()
        for name in ("alerts.yaml", "alerts_test.yaml", "grafana.json"):
            self.assertEqual(set(METRIC.findall(read(name))) - served, set(), name)

    def test_alerts_know_the_daemon(self):
        """All rules are evaluated without an error, no alert is about to fire, and each selector finds series."""
        def evaluated():
            return all(r["lastEvaluation"] > "0002" for g in self.prometheus.get("rules")["groups"] for r in g["rules"])

        self.assertTrue(lossd.until(evaluated))
        rules = [rule for group in self.prometheus.get("rules")["groups"] for rule in group["rules"]]
        self.assertEqual(len(rules), read("alerts.yaml").count("- alert:"))
        for rule in rules:
            self.assertEqual((rule["health"], rule["state"], rule.get("lastError")), ("ok", "inactive", None), rule)
            for selector in re.findall(r"lossd_\w+(?:\{[^}]*\})?|up\{[^}]*\}", rule["query"]):
                self.assertTrue(self.prometheus.query(selector), selector)

    def test_every_panel_shows_something(self):
        dashboard = json.loads(read("grafana.json"))
        shown = 0
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                text = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
                text = re.sub(r"\$(job|instance|route)\b", ".+", text)
                self.assertNotIn("$", text)
                with self.subTest(panel["title"], expr=text):
                    found = self.prometheus.query(text)
                    numbers = [float(series["value"][1]) for series in found]
                    self.assertTrue([n for n in numbers if math.isfinite(n)], found)
                    labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                    for series in found:
                        self.assertLessEqual(labels, set(series["metric"]))
                    shown += 1
        self.assertGreater(shown, 40)

    def test_variables_find_values(self):
        for variable in json.loads(read("grafana.json"))["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                selector = re.sub(r"\$\w+", ".+", selector)
                self.assertTrue(self.prometheus.get("label/%s/values" % label, **{"match[]": selector}), variable["name"])


if __name__ == "__main__":
    unittest.main()
