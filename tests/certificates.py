"""Certificates for tests of TLS, made by the openssl program: good ones, and ones that do not hold."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

EXPIRED = "-startdate 20200101000000Z -enddate 20200201000000Z"

AUTHORITY = """
[ca]
default_ca = a
[a]
new_certs_dir = .
database = index
serial = serial
default_md = sha256
policy = p
unique_subject = no
x509_extensions = e
[p]
commonName = supplied
[e]
subjectAltName = {name}
"""


class Authority:
    """A certificate authority in a directory, by the openssl program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "index").touch()
        (directory / "serial").write_text("01\n")
        self._run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 "
                  "-subj /CN=test-authority -addext basicConstraints=critical,CA:TRUE")  # fmt: skip

    def _run(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.directory, check=True, capture_output=True)

    @property
    def roots(self) -> Path:
        return self.directory / "ca.pem"

    def context(self, name: str, dates: str = "-days 2") -> ssl.SSLContext:
        """A server's context whose certificate is for `name` and valid by `dates`."""
        (self.directory / "ca.cnf").write_text(AUTHORITY.format(name=name))
        self._run("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr "
                  "-subj /CN=server")  # fmt: skip
        self._run(
            f"ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -in server.csr -out server.pem -notext {dates}"
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        return context
