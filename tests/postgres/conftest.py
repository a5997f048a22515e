"""Databases of a test's own on the session's PostgreSQL, and small pieces that most tests here need."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
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


@pytest.fixture(scope="session")
def template_settings(postgres_server: PostgresServer) -> Settings:
    """A migrated database that is only copied: faster than migrating for every test."""
    settings = Settings(**{**postgres_server.settings(), "postgres_database": TEMPLATE})
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
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server beside the session's, for tests that stop, kill and restart it."""
    with PostgresServer(tmp_path_factory.mktemp("mortal")) as server:
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
