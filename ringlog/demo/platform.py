"""The demo's servers: QuestDB, and beside it PostgreSQL and Valkey where they can run."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ringlog.demo.failures import described
from ringlog.postgres.pools import configured_connection
from ringlog.redis import Connection
from ringlog.servers.background import KINDS
from ringlog.servers.embedded import EmbeddedServer
from ringlog.settings import Settings


class Platform(msgspec.Struct):
    """The fields of Settings that lead to the servers, and why the paper-trading session cannot run, if it cannot."""

    settings: dict[str, Any]
    missing: str = ""
    servers: Sequence[EmbeddedServer] = ()

    def ended(self) -> list[str]:
        """The servers whose processes are gone."""
        return [server.name for server in self.servers if not server.running]


@contextlib.contextmanager
def running_platform(directory: Path | None, *, complete: bool) -> Iterator[Platform]:
    """Starts the servers side by side; `complete` is QuestDB with PostgreSQL and Valkey. Data is kept in `directory`.

    Raises ServerError where QuestDB cannot run here; without one of the others the demo can do without its session.
    """
    names = list(KINDS) if complete else ["questdb"]
    servers = [KINDS[name](directory / name if directory else None) for name in names]  # where `ringlog up` finds it
    try:
        with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
            starting = [pool.submit(server.start) for server in servers]
        settings: dict[str, Any] = {**starting[0].result().settings()}
        missing = []
        for start in starting[1:]:
            try:
                settings |= start.result().settings()
            except Exception as error:  # noqa: BLE001 - a broken wheel, a full disk: the load can do without
                missing.append(described(error))
        if complete and not missing:
            try:
                _let_go_of_the_disk(Settings(**settings))
            except Exception as error:  # noqa: BLE001 - as above
                missing.append(described(error))
        yield Platform(settings, "; ".join(missing), [server for server in servers if server.running])
    finally:
        for server in servers:
            server.stop()


def _let_go_of_the_disk(settings: Settings) -> None:
    """Prices and paper orders of a demo need not survive a power cut: a busy disk must not hold up who reads them."""
    patient = msgspec.structs.replace(settings, redis_timeout_ms=15_000)  # this request waits for that disk
    with Connection(patient) as connection:
        connection.client.config_set("appendonly", "no")
    with configured_connection(settings) as database:
        database.execute(f'alter database "{settings.postgres_database}" set synchronous_commit = off')
