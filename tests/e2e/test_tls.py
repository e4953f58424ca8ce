# SPDX-License-Identifier: Apache-2.0
"""TLS: what is spoken and what is refused, files that cannot be used, other certificates while it runs, and everything
that works without it."""
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402
import certificates  # noqa: E402

TINY = lossd.tiny().safetensors()


def serve(pair, *more):
    return lossd.Daemon("--tls-cert", pair[0], "--tls-key", pair[1], *more)


class Encrypted(lossd.Case):
    """A certificate for each class, and a daemon that has it."""

    FLAGS = None
    MORE = ()

    @classmethod
    def setUpClass(cls):
        cls.files = certificates.Certificates()
        cls.addClassCleanup(cls.files.cleanup)
        cls.pair = cls.files.make("own")
        cls.context = certificates.trusting(cls.pair[0])
        cls.daemon = serve(cls.pair, *cls.MORE)

    def healthy(self, daemon=None):
        with self.connect(daemon) as connection:
            self.assertEqual(connection.request("GET", "/healthz").status, 200)

    def connect(self, daemon=None, context=None, timeout=lossd.PATIENCE):
        return certificates.Connection((daemon or self.daemon).port, context or self.context, timeout)

    def ask(self, method, target, body=None, headers=None):
        with self.connect() as connection:
            return connection.request(method, target, body, headers)


class Service(Encrypted):
    MORE = ("--ops-listen", "127.0.0.1:0")

    def test_both_addresses_speak_it(self):
        for port in (self.daemon.port, self.daemon.ops_port):
            with certificates.Connection(port, self.context) as connection:
                self.assertEqual(connection.request("GET", "/healthz").status, 200)
        self.assertIn(b"\nlossd_tls_not_after_seconds 1", self.ask("GET", "/metrics").body)

    def test_answers_are_the_same(self):
        """The same bits as without, from small requests to large ones, streamed, kept and in chunks, on one connection."""
        large = lossd.random_batch(3, n=8)
        bodies = ((TINY, lossd.SAFETENSORS), (lossd.tiny().json(), lossd.JSON), (large.safetensors(), lossd.SAFETENSORS),
                  (large.safetensors(order=("conf", "loc")), lossd.SAFETENSORS), (large.json(flat=True), lossd.JSON))
        with lossd.Daemon() as plain, self.connect() as connection:   # which the daemon does not wait long for
            for body, media in bodies:
                with self.subTest(media=media, bytes=len(body)):
                    want = lossd.stable(plain.post("/v1/loss", body, media).body)
                    answer = connection.request("POST", "/v1/loss", body, {"Content-Type": media})
                    self.assertEqual(lossd.stable(answer.body), want)
            connection.start("POST", "/v1/loss", {"Transfer-Encoding": "chunked"})
            for at in range(0, len(TINY), 100):
                piece = TINY[at:at + 100]
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
            self.assertEqual(lossd.stable(connection.answer().body), lossd.stable(plain.post("/v1/loss", TINY).body))
            tensors = lossd.random_batch(3, n=4).safetensors()   # and a long answer
            target = "/v1/loss?include=dense_gradients"
            accept = {"Accept": lossd.SAFETENSORS}
            first = connection.request("POST", target, tensors, accept)
            second = plain.post(target, tensors, None, accept)
            self.assertEqual(lossd.load(first.body)[1]["grad_conf"], lossd.load(second.body)[1]["grad_conf"])

    def test_long_uploads(self):
        """28 MB, in one go and in the middle of others, with and without waiting for a 100."""
        body = lossd.random_batch(5, n=32).safetensors()
        self.assertGreater(len(body), 27 * 1000 * 1000)

        def post(expects):
            with self.connect() as connection:
                for _ in range(2):
                    head = {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body)}
                    connection.start("POST", "/v1/loss", dict(head, **({"Expect": "100-continue"} if expects else {})))
                    if expects:
                        self.assertEqual(connection.interim(), 100)
                    connection.send(body)
                    answer = connection.answer()
                    self.assertEqual(answer.status, 200)
            return lossd.stable(answer.body)

        answers = lossd.together([lambda e=e: post(e) for e in (False, True, True)])
        self.assertEqual(len(set(answers)), 1)

    def test_refusals(self):
        with self.connect() as connection:
            for target, body, status in (("/nowhere", b"x", 404), ("/v1/loss", b"{", 400), ("/v1/loss", TINY[:-1], 400)):
                self.problem(connection.request("POST", target, body), status)
            connection.start("POST", "/v1/loss", {"Content-Length": 1 << 40, "Expect": "100-continue"})
            answer = connection.answer()
            self.assertEqual((answer.status, answer.interim), (413, []))

    def test_curl(self):
        """A client of another library verifies it by its address."""
        url = "https://127.0.0.1:%d/v1/loss" % self.daemon.port
        done = subprocess.run(["curl", "-sS", "--fail-with-body", "--cacert", self.pair[0], url, "--data-binary", "@-"],
                              input=lossd.bccd_bytes(), capture_output=True, timeout=lossd.PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b'"total":4.504262', done.stdout)
        done = subprocess.run(["curl", "-sS", url], capture_output=True, timeout=lossd.PATIENCE)
        self.assertEqual(done.returncode, 60)   # not a certificate that this machine trusts

    def test_healthcheck_of_one_that_hangs_up(self):
        """Who leaves in the middle of it is no healthy daemon, and no reason to end by a signal."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.pair)

        def hang_up(listener):
            peer = listener.accept()[0]
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = context.wrap_bio(incoming, outgoing, server_side=True)
            incoming.write(peer.recv(16384))
            self.assertRaises(ssl.SSLWantReadError, session.do_handshake)
            peer.sendall(outgoing.read())   # all that the client waits for before it asks
            peer.close()

        flags = ("--healthcheck", "--tls-cert", self.pair[0])
        for _ in range(5):
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                server = threading.Thread(target=hang_up, args=(listener,))
                server.start()
                status, out, err = lossd.command(*flags, "--listen", "127.0.0.1:%d" % listener.getsockname()[1])
                server.join()
                self.assertEqual((status, out, err.count("\n")), (1, "", 1))

    def test_healthcheck(self):
        where = "127.0.0.1:%d" % self.daemon.port
        flags = ("--healthcheck", "--tls-cert", self.pair[0])
        self.assertEqual(lossd.command(*flags, "--listen", where)[:2], (0, "lossd: healthy at %s\n" % where))
        self.assertEqual(lossd.command(*flags, "--ops-listen", "127.0.0.1:%d" % self.daemon.ops_port)[0], 0)
        self.assertEqual(lossd.command("--healthcheck", "--listen", where)[0], 1)
        with lossd.Daemon() as plain:
            self.assertEqual(lossd.command(*flags, "--listen", "127.0.0.1:%d" % plain.port)[0], 1)
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            begin = time.monotonic()
            self.assertEqual(lossd.command(*flags, "--listen", "127.0.0.1:%d" % mute.getsockname()[1])[0], 1)
            self.assertLess(time.monotonic() - begin, 15)


class Handshakes(Encrypted):
    MORE = ("--header-timeout", "2", "--request-timeout", "2")

    def s_client(self, *arguments):
        """Whether openssl comes to an agreement, and what it says."""
        done = subprocess.run(["openssl", "s_client", "-connect", "127.0.0.1:%d" % self.daemon.port, "-CAfile", self.pair[0],
                               *arguments], input=b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                              capture_output=True, timeout=lossd.PATIENCE)
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        cipher = re.search(r"Cipher is (\S+)|Cipher *: (\S+)", text)
        agreed = bool(cipher) and (cipher[1] or cipher[2]) not in ("(NONE)", "0000")
        return agreed, text

    def test_S07_versions(self):
        for flag, spoken in (("-tls1_3", True), ("-tls1_2", True), ("-tls1_1", False), ("-tls1", False)):
            with self.subTest(flag):
                agreed, text = self.s_client(flag, "-cipher", "ALL:@SECLEVEL=0", "-ign_eof" if spoken else "-no_ign_eof")
                self.assertEqual(agreed, spoken, text)
                self.assertEqual("HTTP/1.1 200" in text, spoken, text)
                if spoken:
                    self.assertIn("Verify return code: 0 (ok)", text)

    def test_S07_suites(self):
        """Only ephemeral keys and authenticated encryption, also in TLS 1.2."""
        for suite, spoken in (("ECDHE-ECDSA-AES128-GCM-SHA256", True), ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
                              ("ECDHE-ECDSA-CHACHA20-POLY1305", True), ("ECDHE-ECDSA-AES128-SHA", False),
                              ("ECDHE-ECDSA-AES256-SHA384", False), ("aNULL", False), ("eNULL", False), ("RC4", False),
                              ("3DES", False), ("AES128-GCM-SHA256", False), ("AES128-SHA", False), ("PSK", False),
                              ("ECDHE-ECDSA-AES128-CCM8", False)):
            with self.subTest(suite):
                self.assertEqual(self.s_client("-tls1_2", "-cipher", suite + ":@SECLEVEL=0")[0], spoken)
        for suite in ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"):
            self.assertTrue(self.s_client("-tls1_3", "-ciphersuites", suite)[0], suite)
        self.assertFalse(self.s_client("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256")[0])

    def test_plain_http_at_its_port(self):
        for text in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 300, b"x", b"\x16\x03\x01" + b"\xff" * 4000):
            with lossd.Connection(self.daemon.port) as connection:
                connection.try_send(text)
                got, closed = connection.drain(5)
                self.assertTrue(closed, text[:20])
                self.assertNotIn(b"HTTP/1", got)
        self.healthy()

    def test_H24_a_tls_hello_at_a_plain_port(self):
        with lossd.Daemon() as plain:
            with self.assertRaises((ssl.SSLError, OSError)):
                certificates.Connection(plain.port, self.context, 5).close()
            with plain.connect() as connection:
                connection.try_send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) * 2)
                _, closed = connection.drain(15)
            self.assertTrue(closed)
            self.assertEqual(plain.get("/healthz").status, 200)

    def test_silent_and_slow_handshakes_are_ended(self):
        """--header-timeout counts from the first moment of the connection."""
        silent = lossd.Connection(self.daemon.port)
        slow = lossd.Connection(self.daemon.port)
        with silent, slow:
            begin = time.monotonic()
            ended = threading.Event()

            def drip():
                for byte in b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200):
                    if ended.wait(0.1) or not slow.try_send(bytes([byte])):
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            self.assertEqual(silent.drain(10)[1], True)
            self.assertEqual(slow.drain(10)[1], True)
            self.assertLess(time.monotonic() - begin, 8)
            ended.set()
            thread.join()

    def test_a_late_body_gets_nothing_in_clear_text(self):
        """Without TLS a late body is answered 408 by another thread; here that would be bytes that are no record."""
        with self.connect() as connection:
            connection.start("POST", "/v1/loss", {"Content-Length": 50000})
            connection.send(b"\0" * 10)
            with self.assertRaises((lossd.Closed, OSError)) as ended:
                connection.answer()
            self.assertNotIn("WRONG_VERSION", str(ended.exception))

    def test_clients_that_vanish(self):
        files = self.daemon.descriptors()
        for _ in range(20):
            connection = self.connect()
            connection.start("POST", "/v1/loss", {"Content-Length": 50000})
            connection.try_send(b"\0" * 10)
            connection.reset()
        self.assertTrue(lossd.until(lambda: self.daemon.descriptors() <= files, 15))

    def test_S01_refused_before_the_body_over_tls(self):
        pair = self.pair
        tokens = self.files.path("tokens")
        with open(tokens, "w", encoding="ascii") as out:
            out.write("write a %s\n" % ("t" * 20))
        os.chmod(tokens, 0o600)
        with serve(pair, "--token-file", tokens) as daemon:
            with self.connect(daemon) as connection:
                connection.start("POST", "/v1/loss", {"Content-Length": 5000})
                self.assertEqual(connection.answer().status, 401)
                self.assertEqual(connection.socket.recv(1), b"")   # an end that TLS knows of, or it would be an error
            body = bytes(28 << 20)
            with self.connect(daemon) as connection:
                connection.start("POST", "/v1/loss", {"Content-Length": len(body)})
                connection.try_send(body)
                self.assertEqual(connection.answer().status, 401)
            with self.connect(daemon) as connection:
                self.assertEqual(connection.request("POST", "/v1/loss", TINY, {"Authorization": "Bearer " + "t" * 20}).status, 200)


class Files(lossd.Case):
    FLAGS = None

    @classmethod
    def setUpClass(cls):
        cls.files = certificates.Certificates()
        cls.addClassCleanup(cls.files.cleanup)
        cls.ec, cls.rsa = cls.files.make("ec"), cls.files.make("rsa", "rsa")

    def refused(self, pair, *says):
        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--tls-cert", pair[0], "--tls-key", pair[1])
        self.assertEqual((status, out), (78, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        for word in says:
            self.assertIn(word, err)

    def test_kinds_of_keys(self):
        for pair in (self.ec, self.rsa, self.files.make("ed", "ed"), self.files.signed("leaf", self.ec)):
            with serve(pair) as daemon:
                issuer = self.ec if "leaf" in pair[0] else pair
                with certificates.Connection(daemon.port, certificates.trusting(issuer[0])) as connection:
                    self.assertEqual(connection.request("GET", "/healthz").status, 200, pair)

    def test_S07_files_that_cannot_be_used(self):
        nothing, junk = self.files.path("nothing"), self.files.path("junk")
        with open(junk, "w", encoding="ascii") as out:
            out.write("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        os.chmod(junk, 0o600)
        self.refused((self.ec[0], self.rsa[1]), "--tls-key", "not the key of the certificate")
        self.refused((nothing, self.ec[1]), "--tls-cert", "No such file")
        self.refused((self.ec[0], nothing), "--tls-key", "No such file")
        self.refused((junk, self.ec[1]), "--tls-cert", "no certificate in PEM form")
        self.refused((self.ec[1], self.ec[1]), "--tls-cert", "no certificate in PEM form")
        self.refused((self.ec[0], self.ec[0]), "--tls-key")
        self.refused((self.files.home.name, self.ec[1]), "--tls-cert", "regular file")
        self.refused(self.files.make("weak", "weak"), "--tls-key", "weak")

    def test_S07_expired_and_not_yet_valid(self):
        """`openssl ca` takes dates, which `openssl x509` of older versions does not."""
        for name, begin, end, says in (("past", "20200101000000Z", "20200102000000Z", "expired at 2020-01-02 00:00:00"),
                                       ("future", "20900101000000Z", "20910101000000Z", "not valid before 2090-01-01")):
            self.files.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                               "/CN=" + name, "-keyout", self.files.path(name + ".key"), "-out", self.files.path(name + ".csr"))
            os.chmod(self.files.path(name + ".key"), 0o600)
            with open(self.files.path("ca.cnf"), "w", encoding="ascii") as out:
                out.write("[ca]\ndefault_ca=d\n[d]\ndatabase=%s\nserial=%s\nnew_certs_dir=%s\ndefault_md=sha256\npolicy=p\n"
                          "unique_subject=no\n[p]\ncommonName=supplied\n" %
                          (self.files.path("index"), self.files.path("serial"), self.files.home.name))
            open(self.files.path("index"), "w", encoding="ascii").close()
            with open(self.files.path("serial"), "w", encoding="ascii") as out:
                out.write("1000\n")
            self.files.openssl("ca", "-batch", "-config", self.files.path("ca.cnf"), "-selfsign", "-keyfile",
                               self.files.path(name + ".key"), "-in", self.files.path(name + ".csr"), "-out",
                               self.files.path(name + ".pem"), "-startdate", begin, "-enddate", end, "-notext")
            self.refused((self.files.path(name + ".pem"), self.files.path(name + ".key")), "--tls-cert", says)

    def test_S07_an_encrypted_key(self):
        locked = self.files.path("locked.key")
        self.files.openssl("ec", "-in", self.ec[1], "-aes256", "-passout", "pass:secret", "-out", locked)
        os.chmod(locked, 0o600)
        self.refused((self.ec[0], locked), "--tls-key", "encrypted")

    def test_S07_a_key_that_others_can_read(self):
        for mode, fine in ((0o644, False), (0o604, False), (0o640, True), (0o400, True)):
            os.chmod(self.ec[1], mode)
            try:
                if fine:
                    with serve(self.ec) as daemon:
                        self.assertEqual(daemon.stop(), 0)
                else:
                    self.refused(self.ec, "--tls-key", "open to others (mode 0%o)" % mode)
            finally:
                os.chmod(self.ec[1], 0o600)

    def test_one_without_the_other(self):
        for flags in (("--tls-cert", self.ec[0]), ("--tls-key", self.ec[1])):
            status, out, err = lossd.command("--listen", "127.0.0.1:0", *flags)
            self.assertEqual((status, out, err.count("\n")), (2, "", 1))
            self.assertIn("one does not go without the other", err)

    def test_a_chain_out_of_order(self):
        leaf = self.files.signed("twisted", self.ec)
        with open(leaf[0], encoding="ascii") as file:
            parts = file.read().split("-----BEGIN")[1:]
        with open(leaf[0], "w", encoding="ascii") as out:
            out.write("-----BEGIN" + "-----BEGIN".join(reversed(parts)))
        self.refused(leaf, "--tls-cert", "order")


class Reload(lossd.Case):
    FLAGS = None

    def test_L06_another_certificate(self):
        """SIGHUP: new connections get the new one, old ones go on, nothing fails; a bad pair leaves the old one."""
        files = certificates.Certificates()
        self.addCleanup(files.cleanup)
        first, second, other = files.make("first"), files.make("second", "rsa"), files.make("other")
        used = files.path("used.pem"), files.path("used.key")

        def put(certificate, key):
            for source, target in ((certificate, used[0]), (key, used[1])):
                with open(source, encoding="ascii") as file, open(target, "w", encoding="ascii") as out:
                    out.write(file.read())
                os.chmod(target, 0o600)

        def presented(daemon):
            return ssl.get_server_certificate(("127.0.0.1", daemon.port))

        def text(pair):
            with open(pair[0], encoding="ascii") as file:
                return file.read()

        put(*first)
        with serve(used) as daemon:
            old = certificates.Connection(daemon.port, certificates.trusting(first[0]))
            ended, failures, done = threading.Event(), [], [0]

            def ask():
                context = ssl.create_default_context()
                for pair in (first, second):
                    context.load_verify_locations(pair[0])
                while not ended.is_set():
                    try:
                        with certificates.Connection(daemon.port, context) as connection:
                            if connection.request("POST", "/v1/loss", TINY).status != 200:
                                raise ValueError("refused")
                        done[0] += 1
                    except Exception as failure:  # noqa: B902 - told below
                        failures.append(failure)

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            for pair in (second, first, second, first, second):
                self.assertNotEqual(presented(daemon).strip(), text(pair).strip())
                put(*pair)
                daemon.signal(signal.SIGHUP)
                self.assertTrue(lossd.until(lambda: presented(daemon).strip() == text(pair).strip(), step=0.2))
                self.assertEqual(old.request("GET", "/healthz").status, 200)
            bad = [(second[0], other[1]), (used[0], "/dev/null")]
            for turn, pair in enumerate(bad):
                put(*pair)
                daemon.signal(signal.SIGHUP)
                self.assertTrue(lossd.until(lambda: b'lossd_reloads_total{outcome="failed"} %d\n' % (turn + 1) in
                                            old.request("GET", "/metrics").body, step=0.2))
                self.assertEqual(presented(daemon).strip(), text(second).strip())
            ended.set()
            for thread in threads:
                thread.join()
            self.assertEqual(failures, [])
            self.assertGreater(done[0], 10)
            self.assertEqual(old.request("GET", "/healthz").status, 200)
            old.close()
            self.assertEqual(len([line for line in daemon.log().splitlines() if "level=error" in line]), len(bad))
            self.assertNotIn("PRIVATE", daemon.log())

    def test_L06_tokens_and_certificate_together(self):
        """When one of the two cannot be used, neither changes."""
        files = certificates.Certificates()
        self.addCleanup(files.cleanup)
        pair, tokens = files.make("own"), files.path("tokens")

        def put(text):
            with open(tokens, "w", encoding="ascii") as out:
                out.write(text)
            os.chmod(tokens, 0o600)

        put("write a first-token-of-all\n")
        context = certificates.trusting(pair[0])
        with serve(pair, "--token-file", tokens) as daemon:
            def status(token):
                with certificates.Connection(daemon.port, context) as connection:
                    return connection.request("GET", "/version", None, {"Authorization": "Bearer " + token}).status

            put("write a second-token-of-all\n")
            os.rename(pair[1], pair[1] + "-away")
            daemon.signal(signal.SIGHUP)
            self.assertTrue(lossd.until(lambda: "event=reload" in daemon.log()))
            self.assertEqual((status("first-token-of-all"), status("second-token-of-all")), (200, 401))
            os.rename(pair[1] + "-away", pair[1])
            daemon.signal(signal.SIGHUP)
            self.assertTrue(lossd.until(lambda: status("second-token-of-all") == 200, step=0.2))
            self.assertEqual(status("first-token-of-all"), 401)


class Stopping(lossd.Case):
    FLAGS = None

    def test_a_drain(self):
        """What was accepted is answered, a connection at rest holds nothing up, and exit 0."""
        files = certificates.Certificates()
        self.addCleanup(files.cleanup)
        pair = files.make("own")
        context = certificates.trusting(pair[0])
        body = lossd.bccd_bytes()
        daemon = serve(pair, "--workers", "1")
        rests, posts = (certificates.Connection(daemon.port, context) for _ in range(2))
        with rests, posts:
            self.assertEqual(rests.request("GET", "/healthz").status, 200)
            posts.start("POST", "/v1/loss", {"Content-Type": lossd.SAFETENSORS, "Content-Length": len(body),
                                             "Expect": "100-continue"})
            self.assertEqual(posts.interim(), 100)
            posts.send(body[:len(body) // 2])
            daemon.signal()
            time.sleep(0.3)
            posts.send(body[len(body) // 2:])
            self.assertEqual(posts.answer().status, 200)
            self.assertEqual(daemon.wait(), 0)
        self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])


if __name__ == "__main__":
    unittest.main()
