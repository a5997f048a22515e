"""Finding 25: passwords for Redis and PostgreSQL leave this machine under verified TLS alone, as QuestDB's do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from certificates import EXPIRED, Authority
from lane_samples import eventually
from tcp_proxy import TcpProxy, proxied

from ringlog.cli import main
from ringlog.errors import ConfigurationError, ServerRefused, ServerUnavailable
from ringlog.monitor.probes import probed, targets
from ringlog.postgres import AsyncPool, ConfigWatch, Limits, Pool, TraderConfig, TraderConfigs
from ringlog.postgres.migrations import migrate
from ringlog.postgres.pools import Statement, operation
from ringlog.redis import AsyncConnection, Connection
from ringlog.redis.connection import one
from ringlog.servers import PostgresServer, QuestDBServer, ValkeyServer
from ringlog.settings import Secret, Settings
from ringlog.transport import is_encrypted, is_local, is_loopback

LIMITS = Limits(position_max=Decimal(2), trade_max=Decimal(1), daily_loss_max=Decimal(1))
ELSEWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound: connecting to it leads to this machine, and it is no loopback


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that is trusted, and another."""
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory / "trusted"), Authority(directory / "stranger")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.255.0.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
        ("LocalHost", True), ("10.0.0.7", False), ("0.0.0.0", False), ("::", False), ("db.example", False),  # noqa: S104
        ("localhost.example", False), ("127.0.0.1.example", False), ("127.1", False), ("", False), ("::2", False),
    ],
)  # fmt: skip
def test_loopback_is_what_cannot_be_elsewhere(host: str, expected: bool) -> None:
    """Addresses of this machine in each form and `localhost`; no name that DNS may lead elsewhere."""
    assert is_loopback(host) is expected


def test_a_localhost_that_leads_elsewhere_is_no_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `localhost` resolves to another machine's address (also), it is not trusted by its name."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    assert not is_loopback("localhost")


def test_local_is_every_host_of_a_list_and_a_socket() -> None:
    """libpq tries the hosts of a list in turn: the password may reach each."""
    assert is_local("127.0.0.1,/run/postgresql")
    assert not is_local("127.0.0.1,db.example")


def use_pool(settings: Settings) -> None:
    with Pool(settings) as pool:
        assert pool.run(answer()) == 1


def use_async_pool(settings: Settings) -> None:
    async def use() -> None:
        async with AsyncPool(settings) as pool:
            assert await pool.run(answer()) == 1

    asyncio.run(use())


@operation
def answer() -> Any:
    rows = yield Statement("select 1")
    return rows[0][0]


def use_redis(settings: Settings) -> None:
    with Connection(settings) as connection:
        assert connection.run(ping)


def use_async_redis(settings: Settings) -> None:
    async def use() -> None:
        async with AsyncConnection(settings) as connection:
            assert await connection.run(ping)

    asyncio.run(use())


def ping() -> Any:
    return (yield one("PING"))


POSTGRES = [use_pool, use_async_pool, migrate, ConfigWatch]
USES = [*(("postgres", use) for use in POSTGRES), ("redis", use_redis), ("redis", use_async_redis)]
Use = Callable[[Settings], Any]


@pytest.mark.parametrize("host", ["db.example", "10.0.0.7", ELSEWHERE])
@pytest.mark.parametrize(("server", "use"), USES)
def test_no_password_goes_in_the_clear(server: str, use: Use, host: str) -> None:
    """Without TLS a password is refused for any host but this machine, before anything is sent."""
    settings = Settings(**{f"{server}_host": host, f"{server}_password": Secret("p"), f"{server}_tls": "off"})
    with pytest.raises(ConfigurationError, match=f"RINGLOG_{server.upper()}_TLS: got off with a password for '{host}'"):
        use(settings)
    assert is_encrypted(msgspec.structs.replace(settings, **{f"{server}_tls": "auto"}), server)  # type: ignore[arg-type]
    assert not is_encrypted(msgspec.structs.replace(settings, **{f"{server}_host": "127.0.0.1"}), server)  # type: ignore[arg-type]


def test_validate_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`ringlog validate` reports both servers' settings without a server, and exits 1."""
    for server in ("POSTGRES", "REDIS"):
        for part, value in (("HOST", "db.example"), ("PASSWORD", "canary"), ("TLS", "off")):
            monkeypatch.setenv(f"RINGLOG_{server}_{part}", value)
    with pytest.raises(SystemExit) as ended:
        main(["validate"])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "RINGLOG_POSTGRES_TLS: got off with a password" in said
    assert "RINGLOG_REDIS_TLS: got off with a password" in said
    assert "canary" not in said


@pytest.mark.parametrize("server", ["postgres", "redis"])
def test_a_file_of_authorities_that_is_none(server: str, tmp_path: Path) -> None:
    """A missing file and one without certificates are named with their setting before anything is sent."""
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    for path, reason in ((tmp_path / "missing.pem", "No such file"), (empty, "no PEM")):
        settings = Settings(**{f"{server}_tls": "on", f"{server}_tls_roots": str(path)})
        wanted = f"RINGLOG_{server.upper()}_TLS_ROOTS: got .*{path.name}.*{reason}"
        for _, use in (each for each in USES if each[0] == server):
            with pytest.raises(ConfigurationError, match=wanted):
                use(settings)


def test_the_names_of_tls() -> None:
    """A value that is none of the three is an error that names them."""
    with pytest.raises(ConfigurationError, match="RINGLOG_REDIS_TLS: got 'yes', wanted auto or on or off"):
        Settings.from_environment({"RINGLOG_REDIS_TLS": "yes"})


class Servers:
    """Both servers, each reached through a proxy with a certificate."""

    def __init__(self, postgres: Settings, redis: Settings, roots: Path) -> None:
        self._settings = {"postgres": postgres, "redis": redis}
        self._roots = str(roots)

    def proxied(
        self, server: str, authority: Authority | None, name: str, dates: str
    ) -> AbstractContextManager[TcpProxy]:
        settings = self._settings[server]
        context = authority.context(name, dates) if authority is not None else None
        return proxied(getattr(settings, f"{server}_port"), context, is_postgres=server == "postgres")

    def through(self, server: str, proxy: TcpProxy, host: str) -> Settings:
        changes = {"host": host, "port": proxy.port, "tls_roots": self._roots, "retry_timeout_ms": 30_000}
        changes["tls"] = "on" if host == "127.0.0.1" else "auto"
        patient = {"timeout_ms": 10_000}
        named = {f"{server}_{part}": value for part, value in {**changes, **patient}.items()}
        return msgspec.structs.replace(self._settings[server], **named)


@pytest.fixture
def servers(
    postgres_settings: Settings, redis_settings: Settings, authorities: tuple[Authority, Authority],
    monkeypatch: pytest.MonkeyPatch,
) -> Servers:  # fmt: skip
    monkeypatch.setattr("ringlog.postgres.pools.CONNECT_TIMEOUT_S", 30)
    return Servers(postgres_settings, redis_settings, authorities[0].roots)


@pytest.mark.parametrize("host", ["127.0.0.1", ELSEWHERE])
def test_a_certificate_that_holds(servers: Servers, authorities: tuple[Authority, Authority], host: str) -> None:
    """Finding 25: under TLS every client works, sync and async, watches with LISTEN too: by setting on this machine, by
    itself elsewhere. `doctor` and `top` see a server that answers."""
    with (
        servers.proxied("postgres", authorities[0], f"IP:{host}", "-days 2") as postgres,
        servers.proxied("redis", authorities[0], f"IP:{host}", "-days 2") as redis,
    ):
        settings = servers.through("postgres", postgres, host)
        migrate(settings)
        trader = f"over-tls-{postgres.port}"
        for use in (use_pool, use_async_pool):
            use(settings)
        with ConfigWatch(settings, poll_interval_s=60.0) as watch, Pool(settings) as pool:
            TraderConfigs(pool).save(TraderConfig(trader_id=trader, limits=LIMITS), changed_by="test")
            assert watch.wait_until(lambda it: trader in it.all(), 60.0)
        both = servers.through("redis", redis, host)
        for use in (use_redis, use_async_redis):
            use(both)
        assert postgres.served > 0
        assert redis.served > 0
        assert postgres.refused + redis.refused == 0
        for each, name in ((settings, "POSTGRES"), (both, "REDIS")):
            (figures,) = probed(targets(each, {f"RINGLOG_{name}_HOST"})[1:])
            assert figures.answers, figures.trouble


@pytest.mark.parametrize(
    ("signer", "name", "dates"),
    [
        pytest.param(1, "IP:127.0.0.1", "-days 2", id="unknown authority"),
        pytest.param(0, "IP:127.0.0.1", EXPIRED, id="expired"),
        pytest.param(0, "DNS:db.example", "-days 2", id="another host"),
    ],
)
@pytest.mark.parametrize(("server", "use"), [each for each in USES if each[1] is not ConfigWatch])
def test_a_certificate_that_does_not_hold(
    servers: Servers,
    authorities: tuple[Authority, Authority],
    server: str,
    use: Use,
    signer: int,
    name: str,
    dates: str,
) -> None:
    """Finding 25: no byte is sent to such a server; the refusal names server, setting and what to do."""
    received: list[bytes] = []
    with servers.proxied(server, authorities[signer], name, dates) as proxy:
        proxy.inject(lambda connection: received.append(connection.client.recv(1024)))
        settings = servers.through(server, proxy, "127.0.0.1")
        wanted = rf"127\.0\.0\.1:{proxy.port}: got a certificate that does not hold.*RINGLOG_{server.upper()}_TLS_ROOTS"
        with pytest.raises(ServerRefused, match=wanted):
            use(settings)
        # libpq looks at the name after the handshake, and then says nothing more.
        assert proxy.served == 0 or (server == "postgres" and name == "DNS:db.example")
        assert b"".join(received) == b""
        if server == "redis":
            (figures,) = probed(targets(settings, {"RINGLOG_REDIS_HOST"})[1:])
            assert not figures.answers


def test_a_watch_reads_nothing_from_a_stranger(servers: Servers, authorities: tuple[Authority, Authority]) -> None:
    """A configuration watch takes no configuration from a server whose certificate does not hold."""
    with servers.proxied("postgres", authorities[1], "IP:127.0.0.1", "-days 2") as proxy:
        with ConfigWatch(servers.through("postgres", proxy, "127.0.0.1")) as watch:
            assert watch.stale
            with pytest.raises(ServerUnavailable, match="never reached"):
                watch.current("any")
        assert proxy.served == 0
        eventually(lambda: proxy.refused > 0, "the proxy to see that it was refused")


@pytest.mark.parametrize(("server", "use"), [each for each in USES if each[1] is not ConfigWatch])
def test_a_server_without_tls(servers: Servers, server: str, use: Use) -> None:
    """Where TLS is wanted and the server speaks none, the password is not sent, and the error says which setting.

    Redis waits for the end of a line in what it takes for a command: there it is the time-out that says it.
    """
    with servers.proxied(server, None, "", "") as plain:
        settings = servers.through(server, plain, ELSEWHERE)
        impatient = msgspec.structs.replace(settings, redis_timeout_ms=300, redis_retry_timeout_ms=0)
        wanted = {
            "postgres": (ServerRefused, "got no TLS from it, wanted TLS .RINGLOG_POSTGRES_TLS=off"),
            "redis": (ServerUnavailable, "over TLS: .*RINGLOG_REDIS_TLS=off"),
        }[server]
        with pytest.raises(wanted[0], match=wanted[1]):
            use(impatient)


def test_the_probe_of_questdb_trusts_its_authorities(
    authorities: tuple[Authority, Authority], questdb_server: QuestDBServer
) -> None:
    """`top` and `doctor` ask QuestDB by the authorities of the configuration string, and refuse another's."""
    for authority, is_trusted in zip(authorities, (True, False), strict=True):
        with proxied(questdb_server.ports["http"], authority.context("IP:127.0.0.1")) as proxy:
            conf = f"https::addr=127.0.0.1:{proxy.port};tls_roots={authorities[0].roots};"
            (figures,) = probed(targets(Settings(questdb_client_conf=Secret(conf)), set()))
            assert figures.answers is is_trusted, figures.trouble


def test_libpq_is_led_nowhere_by_its_own_variables(
    postgres_server: PostgresServer, questdb_server: QuestDBServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGHOSTADDR would take the password to an address that nobody checked, for PostgreSQL and for QuestDB."""
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.77")
    use_pool(Settings(**postgres_server.settings()))
    from ringlog.questdb.queries import Queries

    with Queries(Settings(**questdb_server.settings())) as queries:
        assert len(queries.execute_query("select 1")) == 1


def test_redis_by_a_unix_socket(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    """A host that is a path is a unix socket: this machine, so that a password needs no TLS."""
    settings = Settings(**{**valkey_server.settings(), "redis_host": str(tmp_path / "none.sock")})
    assert not is_encrypted(settings, "redis")
    impatient = msgspec.structs.replace(settings, redis_retry_timeout_ms=0)
    with Connection(impatient) as connection, pytest.raises(ServerUnavailable, match=r"none\.sock"):
        connection.run(ping)
    (figures,) = probed(targets(settings, {"RINGLOG_REDIS_HOST"})[1:])
    assert not figures.answers
