"""TLS, by its number in the fault table: always verified; a custom authority is allowed, nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import EXPIRED, Authority
from lane_samples import eventually
from tcp_proxy import TcpProxy, proxied
from whole_path import WholePath
from writer_thread import writing


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that is trusted, and another."""
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory / "trusted"), Authority(directory / "stranger")


def over_tls(path: WholePath, proxy: TcpProxy, roots: Path) -> str:
    user, password = path.settings.questdb_user, path.settings.questdb_password.reveal()
    return f"https::addr=127.0.0.1:{proxy.port};username={user};password={password};tls_roots={roots};"


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
