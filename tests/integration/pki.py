# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates for the tests, made by the openssl program."""
import dataclasses
import pathlib
import subprocess


@dataclasses.dataclass
class Identity:
    """A certificate with its key, and the CA that its owner trusts."""

    cert: pathlib.Path
    key: pathlib.Path
    ca: pathlib.Path


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


NEW_KEY = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Pki:
    """One CA that the daemons trust, one that they don't, and certificates of both."""

    def __init__(self, directory):
        self.dir = directory
        self.ca = self._authority("ca")
        self.other_ca = self._authority("other-ca")
        self.source = self.identity("source", "URI:postcopy:source")
        self.destination = self.identity("destination", "URI:postcopy:destination")
        self.stranger = self.identity("stranger", "URI:postcopy:stranger")
        # For gRPC: stock clients look for the host's name in a server's certificate.
        self.server = self.identity("server", "URI:postcopy:source,URI:postcopy:destination,"
                                     "DNS:localhost,IP:127.0.0.1")
        self.controller = self.identity("controller", "URI:postcopy:controller")
        # The same for the server of the library alone.
        self.service = self.identity("service", "URI:postcopy:service,DNS:localhost")
        self.nameless = self.identity("nameless", None)
        self.expired = self.identity("expired", "URI:postcopy:destination", days=0)
        self.forged = self.identity("forged", "URI:postcopy:destination", signer="other-ca")
        self.forged_source = self.identity("forged-source", "URI:postcopy:source",
                                            signer="other-ca")

    def crl(self, path, revoked=(), days=2):
        """What the daemons' CA has revoked."""
        index = path.with_suffix(".index")
        config = path.with_suffix(".cnf")
        config.write_text("[ca]\ndefault_ca=d\n[d]\ndatabase=%s\ndefault_md=sha256\n" % index)
        index.write_text("")
        sign = ("ca", "-config", config, "-cert", self.ca, "-keyfile", self.dir / "ca.key")
        for identity in revoked:
            openssl(*sign, "-revoke", identity.cert)
        openssl(*sign, "-gencrl", "-crldays", days, "-out", path)
        return path

    def _authority(self, name):
        cert = self.dir / (name + ".pem")
        openssl(*NEW_KEY, "-x509", "-days", 2, "-subj", "/CN=" + name,
                "-keyout", self.dir / (name + ".key"), "-out", cert)
        return cert

    def identity(self, name, san, usage="serverAuth,clientAuth", signer="ca", days=2):
        base = self.dir / name
        request, ext = base.with_suffix(".csr"), base.with_suffix(".ext")
        names = "subjectAltName=%s\n" % san if san else ""
        ext.write_text(names + "extendedKeyUsage=%s\n" % usage)
        openssl(*NEW_KEY, "-subj", "/CN=" + name, "-keyout", base.with_suffix(".key"),
                "-out", request)
        openssl("x509", "-req", "-in", request, "-days", days, "-extfile", ext,
                "-CA", self.dir / (signer + ".pem"), "-CAkey", self.dir / (signer + ".key"),
                "-CAcreateserial", "-out", base.with_suffix(".pem"))
        return Identity(base.with_suffix(".pem"), base.with_suffix(".key"), self.ca)
