# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for tests, made by openssl, and clients that trust them."""
import os
import ssl
import subprocess
import tempfile

import lossd

KINDS = {"ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("rsa:2048",), "weak": ("rsa:1024",),
         "ed": ("ed25519",)}


class Certificates:
    """A folder of certificates for 127.0.0.1 and their keys, mode 600."""

    def __init__(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-tls-")

    def path(self, name):
        return os.path.join(self.home.name, name)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL,
                       timeout=lossd.PATIENCE)

    def make(self, name, kind="ec"):
        """(certificate, key): files, self-signed, and such that it may sign others."""
        certificate, key, request = (self.path(name + end) for end in (".pem", ".key", ".csr"))
        self.openssl("req", "-new", "-newkey", *KINDS[kind], "-nodes", "-subj", "/CN=" + name, "-keyout", key, "-out", request)
        extension = self.path("extension")
        with open(extension, "w", encoding="ascii") as out:
            out.write("subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:TRUE\n"
                      "keyUsage=critical,digitalSignature,keyCertSign\n")
        self.openssl("x509", "-req", "-in", request, "-signkey", key, "-out", certificate, "-extfile", extension,
                     "-days", "2")
        os.chmod(key, 0o600)
        return certificate, key

    def signed(self, name, issuer):
        """(certificate with its issuer's behind it, key), by another certificate."""
        certificate, key, request = (self.path(name + end) for end in (".pem", ".key", ".csr"))
        self.openssl("req", "-new", "-newkey", *KINDS["ec"], "-nodes", "-subj", "/CN=" + name, "-keyout", key, "-out", request)
        extension = self.path("extension")
        with open(extension, "w", encoding="ascii") as out:
            out.write("subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n"
                      "keyUsage=critical,digitalSignature\nauthorityKeyIdentifier=keyid,issuer\n")
        self.openssl("x509", "-req", "-in", request, "-CA", issuer[0], "-CAkey", issuer[1], "-CAcreateserial", "-days", "2",
                     "-extfile", extension, "-out", certificate)
        with open(issuer[0], encoding="ascii") as file, open(certificate, "a", encoding="ascii") as out:
            out.write(file.read())
        os.chmod(key, 0o600)
        return certificate, key

    def cleanup(self):
        self.home.cleanup()


def trusting(certificate):
    return ssl.create_default_context(cafile=certificate)


class Connection(lossd.Connection):
    """The same over TLS."""

    def __init__(self, port, context, timeout=lossd.PATIENCE):
        super().__init__(port, timeout)
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1", suppress_ragged_eofs=False)

    def _fill(self):
        try:
            super()._fill()
        except ssl.SSLEOFError:
            raise lossd.Closed("the peer closed without saying so; %r is left" % self.kept[:200]) from None

    def try_send(self, data):
        try:
            return super().try_send(data)
        except ssl.SSLError:
            return False
