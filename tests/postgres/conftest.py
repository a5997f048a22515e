"""Databases of a test's own on real servers, and small pieces that most tests here need.

Every test runs on the wheel's PostgreSQL 18 and on Debian's 15; on the latter in the slow tier, except for tests marked
`each_server`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from debian_packages import library_path, unpacked
from postgres_platform import execute

from ringlog.postgres.migrations import migrate
from ringlog.postgres.pools import Pool
from ringlog.servers import PostgresServer
from ringlog.settings import Settings

TEMPLATE = "ringlog_template"
# A machine that stands still for seconds must not look like a server that is slow: tests of limits set their own.
PATIENT = {"postgres_timeout_ms": 30_000, "postgres_retry_timeout_ms": 60_000}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow login is waited for: given up after 2 s it reads as a server that is away, also to a watch that starts."""
    monkeypatch.setattr("ringlog.postgres.pools.CONNECT_TIMEOUT_S", 30)
    monkeypatch.setattr("ringlog.postgres.watch.START_TIMEOUT_S", 60.0)


class DebianPostgresServer(PostgresServer):
    """PostgreSQL 15 of this machine, else from Debian's packages."""

    packages = (
        "postgresql-15", "libicu72", "libxml2", "libldap-2.5-0", "libsasl2-2", "libgssapi-krb5-2", "libkrb5-3",
        "libk5crypto3", "libkrb5support0", "libkeyutils1", "libpam0g", "libssl3", "liblz4-1", "libzstd1",
    )  # fmt: skip

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        below = Path("usr/lib/postgresql/15/bin")
        self._place = None if ("/" / below / "initdb").exists() else unpacked(self.packages)
        self._programs = (self._place or Path("/")) / below

    def _binaries(self) -> Path:
        return self._programs

    def _environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": library_path(self._place)} if self._place else {}


SERVERS: dict[str, type[PostgresServer]] = {"18": PostgresServer, "15": DebianPostgresServer}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that uses a server runs on both versions."""
    if "postgres_version" in metafunc.fixturenames:
        is_fast = metafunc.definition.get_closest_marker("each_server") is not None
        older_too = pytest.param("15", marks=() if is_fast else pytest.mark.slow)
        metafunc.parametrize("postgres_version", ["18", older_too], scope="session")


@pytest.fixture(scope="session")
def postgres_server(postgres_version: str, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The server that a test's databases are on: where it is the wheel's, the one of all tests."""
    if postgres_version == "18":
        yield request.getfixturevalue("postgres_server")
        return
    with DebianPostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def template_settings(postgres_server: PostgresServer) -> Settings:
    """A migrated database that is only copied: faster than migrating for every test."""
    settings = Settings(**{**postgres_server.settings(), "postgres_database": TEMPLATE})
    # Made again where tests changed to the other version and back: the server of version 18 outlives that.
    execute(Settings(**postgres_server.settings()), f"drop database if exists {TEMPLATE} with (force)")
    execute(Settings(**postgres_server.settings()), f"create database {TEMPLATE}")
    migrate(settings)
    return settings


@pytest.fixture
def empty_database(postgres_settings: Settings) -> Iterator[Settings]:
    """Settings of an empty database of this test alone."""
    yield from _database(msgspec.structs.replace(postgres_settings, **PATIENT), "template0")


@pytest.fixture
def database(postgres_settings: Settings, template_settings: Settings) -> Iterator[Settings]:
    """Settings of a migrated database of this test alone."""
    yield from _database(msgspec.structs.replace(postgres_settings, **PATIENT), TEMPLATE)


def _database(settings: Settings, template: str) -> Iterator[Settings]:
    name = f"test_{uuid.uuid4().hex}"
    execute(settings, f"create database {name} template {template}")
    yield msgspec.structs.replace(settings, postgres_database=name)
    execute(settings, f"drop database {name} with (force)")


@pytest.fixture
def pool(database: Settings) -> Iterator[Pool]:
    with Pool(database) as pool:
        yield pool


@pytest.fixture(scope="session")
def mortal_server(postgres_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server beside the session's, for tests that stop, kill and restart it."""
    with SERVERS[postgres_version](tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture
def own_server(mortal_server: PostgresServer) -> Iterator[PostgresServer]:
    """That server, running, whatever the test before did to it."""
    mortal_server.continue_signal()
    yield mortal_server.start()
    mortal_server.continue_signal()


@pytest.fixture
def own_settings(own_server: PostgresServer, instance_dir: Path) -> Iterator[Settings]:
    """Settings of a migrated database of this test alone on `own_server`."""
    settings = Settings(runtime_dir=str(instance_dir), **own_server.settings())
    settings = msgspec.structs.replace(settings, postgres_retry_timeout_ms=PATIENT["postgres_retry_timeout_ms"])
    for own in _database(settings, "template0"):
        migrate(own)
        yield own
        own_server.continue_signal()
        own_server.start()
