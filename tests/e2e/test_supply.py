# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md's S23: what the daemon consists of is what its SBOM says, an update that is pending is found, and the release
build knows nothing of the place where it was made. `make deploy-check` asks SPDX's own tools, `make reproducible` builds
twice."""
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import certificates  # noqa: E402
import lossd  # noqa: E402

SBOM, AUDIT = (os.path.join(lossd.ROOT, "deploy", name) for name in ("sbom", "audit"))
BUILT = unittest.skipUnless(os.access(lossd.RELEASE, os.X_OK), "needs build/release/lossd: make")
DATE = 1000000000


def run(*command, **env):
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, stdin=subprocess.DEVNULL, check=False,
                          timeout=4 * lossd.PATIENCE)


def document(*arguments, date=DATE):
    done = run(SBOM, lossd.RELEASE, *arguments, SOURCE_DATE_EPOCH=str(date))
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


def installed():
    """{package: its fields} of dpkg's database, as it lies on the disk."""
    found = {}
    with open("/var/lib/dpkg/status", encoding="utf-8") as file:
        for paragraph in file.read().split("\n\n"):
            fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", paragraph, re.M))
            if fields.get("Status", "").endswith(" installed"):
                found[fields["Package"]] = fields
    return found


@BUILT
class Sbom(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = document()
        cls.sbom = lossd.strict_json(cls.text)
        cls.packages = {p["name"]: p for p in cls.sbom["packages"]}
        cls.files = {f["fileName"][1:]: f for f in cls.sbom["files"]}

    def related(self, element, how):
        return {r["relatedSpdxElement"] for r in self.sbom["relationships"]
                if r["spdxElementId"] == element and r["relationshipType"] == how}

    def test_S23_what_is_loaded(self):
        """By a daemon that has spoken TLS and recorded a step: the libraries of the list, and nothing else."""
        files = certificates.Certificates()
        certificate, key = files.make("here")
        flags = ("--tls-cert", certificate, "--tls-key", key, "--device", "cpu")
        with lossd.Daemon(*flags, binary=lossd.RELEASE) as daemon:
            with certificates.Connection(daemon.port, certificates.trusting(certificate)) as connection:
                answer = connection.request("POST", "/v1/loss?run=a&step=1", lossd.tiny().safetensors())
                self.assertEqual(answer.status, 200, answer)
            with open("/proc/%d/maps" % daemon.pid, encoding="utf-8") as maps:
                mapped = {m[1] for m in re.finditer(r"(/\S+\.so[.\d]*)$", maps.read(), re.M)}
        self.assertEqual({os.path.realpath(path) for path in self.files}, mapped)
        self.assertEqual(self.related("SPDXRef-lossd", "DYNAMIC_LINK"), {f["SPDXID"] for f in self.sbom["files"]})

    def test_S23_files(self):
        known, needed = installed(), set()
        for path, entry in self.files.items():
            with open(path, "rb") as file:
                data = file.read()
            self.assertEqual({c["algorithm"]: c["checksumValue"] for c in entry["checksums"]},
                             {name: hashlib.new(name, data).hexdigest() for name in ("SHA1", "SHA256")})
            package, = self.related(entry["SPDXID"], "EXPANDED_FROM_ARCHIVE")
            needed.add(package)
            name = package.replace("SPDXRef-deb-", "")
            lists = [f"/var/lib/dpkg/info/{n}.list" for n in (name, name + ":" + known[name]["Architecture"])]
            with open(next(filter(os.path.exists, lists)), encoding="utf-8") as file:
                self.assertIn("/" + os.path.basename(path) + "\n", file.read())
        self.assertEqual(self.related("SPDXRef-lossd", "DEPENDS_ON"), needed)

    def test_S23_packages(self):
        known = installed()
        debian = {n: p for n, p in self.packages.items() if p["SPDXID"].startswith("SPDXRef-deb-")}
        self.assertLessEqual({"libc6", "libjansson4", "zlib1g"}, set(debian))
        for name, package in debian.items():
            fields = known[name]
            self.assertEqual(package["versionInfo"], fields["Version"])
            self.assertRegex(package["sourceInfo"], r" %s \S+$" % re.escape(fields.get("Source", name).split()[0]))
            self.assertIn(fields["Maintainer"].split(" <")[0], package["supplier"])
            self.assertRegex(package["externalRefs"][0]["referenceLocator"],
                             r"^pkg:deb/\w+/%s@[^+@]+\?arch=%s&" % (re.escape(name), fields["Architecture"]))
            with open("/usr/share/doc/%s/copyright" % name, encoding="utf-8") as file:
                if not file.read().startswith("Format: "):   # no machine can read it
                    self.assertEqual(package["licenseDeclared"], "NOASSERTION")
        self.assertEqual(debian["zlib1g"]["licenseDeclared"], "Zlib")

    def test_S23_itself(self):
        package = self.packages["lossd"]
        code, out, _ = lossd.command("--version", binary=lossd.RELEASE)
        self.assertEqual((code, out), (0, "lossd %s\n" % package["versionInfo"]))
        with open(lossd.RELEASE, "rb") as file:
            data = file.read()
        self.assertEqual(package["checksums"][0]["checksumValue"], hashlib.sha256(data).hexdigest())
        with lossd.Daemon(binary=lossd.RELEASE) as daemon:
            served = daemon.get("/web/dygraph.min.js").body.decode()
        self.assertIn('.VERSION="%s"' % self.packages["dygraphs"]["versionInfo"], served)
        self.assertEqual(b"cudaRuntimeGetVersion" in data, "cudart" in self.packages)

    def test_S23_one_document(self):
        """Every name is there once, and what is named is there; the same again is the same, of another date another one."""
        names = [e["SPDXID"] for e in (self.sbom, *self.sbom["packages"], *self.sbom["files"])]
        self.assertEqual(len(names), len(set(names)))
        for relation in self.sbom["relationships"]:
            self.assertLessEqual({relation["spdxElementId"], relation["relatedSpdxElement"]}, set(names))
        self.assertEqual(self.sbom["creationInfo"]["created"], "2001-09-09T01:46:40Z")
        self.assertEqual(document(), self.text)
        self.assertNotEqual(lossd.strict_json(document(date=DATE + 1))["documentNamespace"], self.sbom["documentNamespace"])

    def test_S23_the_image(self):
        sbom = lossd.strict_json(document("image"))
        listed = [p["name"] for p in sbom["packages"] if p["SPDXID"].startswith("SPDXRef-deb-")]
        self.assertEqual(set(listed), set(installed()))
        contained = {r["relatedSpdxElement"] for r in sbom["relationships"] if r["relationshipType"] == "CONTAINS"}
        self.assertLessEqual({p["SPDXID"] for p in sbom["packages"]} - contained, {"SPDXRef-image"})

    def test_S23_nothing_to_look_at(self):
        for path in ("/nonexistent", SBOM):
            done = run(SBOM, path)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stdout, b"")
            self.assertTrue(done.stderr)


class Audit(unittest.TestCase):
    """With an archive of its own in place of apt's sources."""

    def setUp(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-apt-")
        self.addCleanup(self.home.cleanup)
        self.sbom = self.write("lossd.spdx.json", '"pkg:deb/debian/zlib1g@1?arch=x"\n"pkg:deb/debian/libc6@1%2B2?arch=x"\n')
        self.config = self.write("apt.conf", 'Dir::Etc::sourcelist "%s/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
                                 % self.home.name)
        self.source("here-security")

    def write(self, name, text):
        path = os.path.join(self.home.name, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def source(self, suite, version="0"):
        """An archive whose libc6 has this version."""
        architecture = installed()["libc6"]["Architecture"]
        shutil.rmtree(os.path.join(self.home.name, "dists"), ignore_errors=True)
        self.write("dists/%s/Release" % suite, "Suite: %s\nCodename: %s\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n" % (suite, suite))
        self.write("dists/%s/main/binary-%s/Packages" % (suite, architecture),
                   "Package: libc6\nArchitecture: %s\nVersion: %s\nMulti-Arch: same\nFilename: no.deb\nSize: 1\n"
                   % (architecture, version))
        self.write("sources.list", "deb [trusted=yes] file:%s %s main\n" % (self.home.name, suite))

    def audit(self):
        done = run(AUDIT, self.sbom, APT_CONFIG=self.config)
        return done.returncode, (done.stdout + done.stderr).decode()

    def test_S23_nothing_pending(self):
        code, text = self.audit()
        self.assertEqual(code, 0, text)
        self.assertIn("any of 2 packages", text)

    def test_S23_an_update(self):
        self.source("here-security", "999:1")
        code, text = self.audit()
        self.assertEqual(code, 1, text)
        self.assertRegex(text, r"\n  libc6: \S+ -> 999:1\n")

    def test_S23_what_cannot_be_known(self):
        self.source("here")
        self.assertRegex(str(self.audit()), "^.1, .*no security suite")
        self.write("sources.list", "deb [trusted=yes] file:/nonexistent here-security main\n")
        self.assertRegex(str(self.audit()), "^.1, .*cannot be read")
        self.sbom = self.write("empty", "{}")
        self.assertRegex(str(self.audit()), "^.1, .*lists no package")


@BUILT
class Build(unittest.TestCase):
    def test_S23_no_trace_of_the_place(self):
        """Neither where it was compiled nor a file of a process that did."""
        units = subprocess.run(["readelf", "-W", "--debug-dump=info", "--dwarf-depth=1", lossd.RELEASE], check=True,
                               capture_output=True, text=True, timeout=4 * lossd.PATIENCE).stdout
        places = re.findall(r"DW_AT_comp_dir +: (?:\(.*\): )?(\S+)", units)
        self.assertGreater(len(places), 40)
        self.assertEqual(set(places), {"."})
        with open(lossd.RELEASE, "rb") as file:
            self.assertNotIn(b"tmpxft_", file.read())


if __name__ == "__main__":
    unittest.main()
