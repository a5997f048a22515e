"""TLS, by its number in the fault table: always verified; a custom authority is allowed, nothing else is."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from lane_samples import eventually
from tcp_proxy import TcpProxy, proxied
from whole_path import WholePath
from writer_thread import writing

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


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that is trusted, and another."""
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory / "trusted"), Authority(directory / "stranger")


def over_tls(path: WholePath, proxy: TcpProxy, roots: Path) -> str:
    user, password = path.settings.questdb_user, path.settings.questdb_password.reveal()
    return f"https::addr=127.0.0.1:{proxy.port};username={user};password={password};tls_roots={roots};"


EXPIRED = "-startdate 20200101000000Z -enddate 20200201000000Z"


@pytest.mark.parametrize(
    ("signer", "name", "dates"),
    [
        pytest.param(1, "IP:127.0.0.1", "-days 2", id="unknown authority"),
        pytest.param(0, "IP:127.0.0.1", EXPIRED, id="expired"),
        pytest.param(0, "DNS:db.example", "-days 2", id="another host"),
    ],
)
def test_38_certificates_that_do_not_hold(
    path: WholePath, authorities: tuple[Authority, Authority], signer: int, name: str, dates: str
) -> None:
    """A certificate of an unknown authority, an expired one or one of another host: no byte is sent, records wait.

    With a good one of a custom authority they arrive. Defence: the client's verification. No patch: its wheels have no
    switch that turns it off.
    """
    trusted = authorities[0]
    with proxied(path.settings.questdb_http_port, authorities[signer].context(name, dates)) as bad:
        path.with_settings(questdb_client_conf=over_tls(path, bad, trusted.roots))
        with writing(path.settings) as writer, path.producing() as append:
            append(64)
            eventually(lambda: writer._refuge.spooled_rows == 64, "records to be spooled")
            eventually(lambda: bad.refused > 0, "a handshake to be broken off")  # the proxy learns of it by itself
            assert bad.served == 0
    with proxied(path.settings.questdb_http_port, trusted.context("IP:127.0.0.1")) as good:
        path.with_settings(questdb_client_conf=over_tls(path, good, trusted.roots))
        with writing(path.settings):
            path.require_exact()
            assert good.served > 0
