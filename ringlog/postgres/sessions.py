"""What a connection needs before it is used, and what a pooler between it and the server leaves of that.

Nothing is asked for in the startup packet that PgBouncer refuses. Behind a transaction pooler each transaction may run
on another server connection: limits are set in each, nothing is prepared, and nobody may LISTEN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
import psycopg.types.json
import psycopg.types.string
from psycopg.pq import TransactionStatus

from ringlog import libpq
from ringlog.settings import Secret, Settings

# How much longer the client waits than the server is told to work: only a server that stopped answering gets there.
ANSWER_GRACE_S = 1.0

_BACKEND = "select pg_backend_pid()"
# A role or a database may have other defaults, and psycopg reads no other style. A pooler follows these.
_STYLE = "set datestyle to 'ISO'; set standard_conforming_strings to on"


class SecretDumper(psycopg.types.string.StrDumper):
    """A Secret travels as the text that it is: so a statement's parameters show none."""

    def dump(self, obj: Any) -> Any:
        return super().dump(obj.reveal())


class Connection(libpq.Connection):
    """A connection that does not wait for ever on a server that stopped answering."""

    answer_timeout_s: float | None = None
    limits: str = ""  # what each transaction begins with; empty: the session has it

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement, in the open transaction or alone."""
        if self.limits and self.info.transaction_status == TransactionStatus.IDLE:
            with self.transaction():
                self.limit()
                return self.rows(sql, parameters)
        cursor = self.execute(sql, parameters)
        return cursor.fetchall() if cursor.rownumber is not None else []

    def limit(self) -> None:
        """Sets the limits in a transaction that has just begun."""
        if self.limits:
            self.execute(self.limits)


class AsyncConnection(libpq.AsyncConnection):
    """`Connection` for asyncio."""

    answer_timeout_s: float | None = None
    limits: str = ""

    async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return await super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)

    async def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self.limits and self.info.transaction_status == TransactionStatus.IDLE:
            async with self.transaction():
                await self.limit()
                return await self.rows(sql, parameters)
        cursor = await self.execute(sql, parameters)
        return await cursor.fetchall() if cursor.rownumber is not None else []

    async def limit(self) -> None:
        if self.limits:
            await self.execute(self.limits)


def configure(settings: Settings, connection: Connection) -> None:
    """Makes a new connection ready. Raises psycopg.NotSupportedError for a database that cannot keep every text."""
    _prepare(settings, connection)
    (row,) = connection.execute(_BACKEND).fetchall()
    connection.execute(_session(settings, connection, row[0]))


async def configure_async(settings: Settings, connection: AsyncConnection) -> None:
    """`configure`, awaited."""
    _prepare(settings, connection)
    (row,) = await (await connection.execute(_BACKEND)).fetchall()
    await connection.execute(_session(settings, connection, row[0]))


def _prepare(settings: Settings, connection: Connection | AsyncConnection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise psycopg.NotSupportedError(
            f"database {settings.postgres_database!r}: got encoding {encoding}, wanted UTF8: make another one with "
            "`create database NAME encoding 'UTF8' template template0` and set RINGLOG_POSTGRES_DATABASE"
        )
    connection.answer_timeout_s = settings.postgres_timeout_ms / 1_000 + ANSWER_GRACE_S
    connection.prepare_threshold = settings.postgres_prepare_threshold or None
    connection.adapters.register_dumper(Secret, SecretDumper)
    psycopg.types.json.set_json_loads(msgspec.json.decode, connection)


def _session(settings: Settings, connection: Connection | AsyncConnection, backend: int) -> str:
    """What to set for the session; behind a pooler, the rest becomes the connection's `limits`."""
    timeout_ms = settings.postgres_timeout_ms
    limits = {
        "statement_timeout": str(timeout_ms),
        "idle_in_transaction_session_timeout": str(2 * timeout_ms),
        "intervalstyle": "postgres",
    }
    # A pooler answers with a number of its own when the connection begins, as it has no server for it yet.
    if backend == connection.info.backend_pid:
        return "; ".join([_STYLE, *(f"set {name} to {value}" for name, value in limits.items())])
    connection.prepare_threshold = None
    connection.limits = "; ".join(f"set local {name} to {value}" for name, value in limits.items())
    return _STYLE
