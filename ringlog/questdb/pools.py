"""Pools of connections on which every wait is bounded: by a server that is slow, that hangs, or that restarts.

What QuestDB lacks of PostgreSQL's per-query timeout is made here: a connection gives up at its deadline and is closed,
which ends its query on the server within a tenth of a second, and the pool replaces it in the background.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Generator
from typing import Any, NoReturn, TypeVar

import psycopg
import psycopg_pool
from psycopg.types.datetime import TimestamptzBinaryLoader

from ringlog.errors import (
    QueryError,
    QueryTimeout,
    RinglogError,
    SchemaMismatch,
    ServerRefused,
    ServerUnavailable,
)
from ringlog.questdb.conf import client_conf, is_loopback
from ringlog.questdb.connection import CONNECT_TIMEOUT_S, DATABASE
from ringlog.settings import Settings

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# What these say is in the errors too: it must not reach the terminal of a program that configured no logging.
for _name in ("psycopg.pool", "stamina"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

# A statement is prepared on the server when it comes for the third time on a connection.
PREPARE_THRESHOLD = 2
# An idle connection is asked whether it lives before it is given out; one that was used just now is not: the round
# trip would cost every query, and a connection that broke meanwhile only costs a retry.
CHECK_IDLE_S = 1.0
CHECK_TIMEOUT_S = 1.0
# How long one attempt waits for a connection before it asks again (and so lets the pool start new ones), and for how
# long the pool goes on by itself: psycopg_pool doubles its delay from 1 s on, so that more would make it slow to see
# a server that is back.
ACQUIRE_TIMEOUT_S = 1.0
RECONNECT_TIMEOUT_S = 3.0
# How calls are made again after a connection failed (stamina's arguments).
BACKOFF: dict[str, Any] = {"attempts": None, "wait_initial": 0.05, "wait_max": 0.5, "wait_jitter": 0.05}


class DeadlinePassed(psycopg.OperationalError):
    """The connection's deadline passed while it waited for the server."""


@dataclasses.dataclass(slots=True)
class Health:
    """What a pool's connections learned last: shared by all of them."""

    failed_at: float = 0.0  # monotonic seconds
    error: str = ""

    def failed(self, error: BaseException) -> None:
        self.failed_at = time.monotonic()
        self.error = str(error).strip().replace("\n", "; ")


def _until(gen: Generator[Any, Any, _T], deadline: float) -> Generator[Any, Any, _T]:
    # psycopg wakes its generators at least every 0.1 s, so this bounds every wait without a timer or a thread.
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline:
                raise DeadlinePassed("no answer in time")
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


class PooledConnection(psycopg.Connection[Any]):
    """A connection that gives up at `deadline` (monotonic seconds)."""

    deadline = float("inf")
    used_at = 0.0
    health: Health

    @classmethod
    def connect(cls, *args: Any, health: Health, **options: Any) -> PooledConnection:  # type: ignore[override]
        try:
            connection = super().connect(*args, **options)
        except psycopg.Error as error:
            health.failed(error)
            raise
        _prepare(connection, health)
        return connection

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        return super().wait(_until(gen, self.deadline), *args, **options)


class AsyncPooledConnection(psycopg.AsyncConnection[Any]):
    """The same for asyncio."""

    deadline = float("inf")
    used_at = 0.0
    health: Health

    @classmethod
    async def connect(cls, *args: Any, health: Health, **options: Any) -> AsyncPooledConnection:  # type: ignore[override]
        try:
            connection = await super().connect(*args, **options)
        except psycopg.Error as error:
            health.failed(error)
            raise
        _prepare(connection, health)
        return connection

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        return await super().wait(_until(gen, self.deadline), *args, **options)


def _prepare(connection: PooledConnection | AsyncPooledConnection, health: Health) -> None:
    connection.health = health
    connection.used_at = time.monotonic()
    # QuestDB sends times as PostgreSQL's type without a zone, always in UTC: made aware while they are decoded, which
    # costs a fifth of what a replace(tzinfo=) per row does.
    connection.adapters.register_loader("timestamp", TimestamptzBinaryLoader)


def _needs_check(connection: PooledConnection | AsyncPooledConnection) -> bool:
    fresh = time.monotonic() - connection.used_at < CHECK_IDLE_S
    return not fresh or connection.used_at <= connection.health.failed_at


def check(connection: PooledConnection) -> None:
    """The pool's health check: raises where a connection that was idle, or older than a failure, does not answer."""
    if _needs_check(connection):
        connection.deadline = time.monotonic() + CHECK_TIMEOUT_S
        connection.execute("select 1")
        connection.used_at = time.monotonic()


async def check_async(connection: AsyncPooledConnection) -> None:
    if _needs_check(connection):
        connection.deadline = time.monotonic() + CHECK_TIMEOUT_S
        await connection.execute("select 1")
        connection.used_at = time.monotonic()


def _options(settings: Settings, health: Health, prepare_threshold: int | None) -> dict[str, Any]:
    host = client_conf(settings).host
    tls = {"sslmode": "disable"} if is_loopback(host) else {"sslmode": "verify-full", "sslrootcert": "system"}
    connection = {
        "host": host,
        "port": settings.questdb_pg_port,
        "user": settings.questdb_user,
        "password": settings.questdb_password.reveal() or None,
        "dbname": DATABASE,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "autocommit": True,
        "prepare_threshold": prepare_threshold,
        "health": health,
        **tls,
    }
    return {
        "kwargs": connection,
        "min_size": min(settings.query_pool_size_min, settings.query_pool_size_max),
        "max_size": settings.query_pool_size_max,
        "open": False,
        "timeout": ACQUIRE_TIMEOUT_S,
        "reconnect_timeout": RECONNECT_TIMEOUT_S,
        "name": "ringlog-queries",
    }


def make_pool(settings: Settings, health: Health, prepare_threshold: int | None) -> Any:
    return psycopg_pool.ConnectionPool(
        connection_class=PooledConnection, check=check, **_options(settings, health, prepare_threshold)
    )


def make_async_pool(settings: Settings, health: Health, prepare_threshold: int | None) -> Any:
    return psycopg_pool.AsyncConnectionPool(
        connection_class=AsyncPooledConnection,
        check=check_async,
        **_options(settings, health, prepare_threshold),
    )


class NoConnection(ServerUnavailable):
    """No connection was got: nothing was sent, so that any statement may be tried again."""


def acquire_seconds(deadline: float) -> float:
    return max(0.001, min(ACQUIRE_TIMEOUT_S, deadline - time.monotonic()))


def settle(connection: PooledConnection | AsyncPooledConnection, error: psycopg.Error) -> bool:
    """Notes what an error means for its connection; returns whether the connection is broken."""
    if isinstance(error, DeadlinePassed):
        hang_up(connection)
        return True
    broken = bool(connection.closed or connection.broken)
    if broken:
        connection.health.failed(error)
    return broken


def hang_up(connection: PooledConnection | AsyncPooledConnection) -> None:
    """Cuts a connection without libpq's farewell.

    QuestDB stops a query once its socket is closed, which it peeks at; a farewell that lies there unread hides that.
    """
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
    connection.pgconn.finish()


def acquire_error(error: BaseException, server: str, health: Health, statistics: dict[str, int]) -> RinglogError:
    """The error for a caller that got no connection: refused, down, or all of them busy."""
    if "password" in health.error or "authentication" in health.error:
        return ServerRefused(f"{server}: {health.error}")
    size, waiting = statistics.get("pool_size", 0), statistics.get("requests_waiting", 0)
    reason = health.error if health.error and health.failed_at else str(error)
    return NoConnection(f"{server}: no connection (pool of {size}, {waiting} callers wait; last error: {reason})")


def translate(error: psycopg.Error, server: str, broken: bool) -> NoReturn:
    """Raises the RinglogError that says what the caller can do about a psycopg error."""
    reason = (error.diag.message_primary or str(error)).strip().replace("\n", "; ")
    if isinstance(error, DeadlinePassed) or "timeout, query aborted" in reason or "cancelled by user" in reason:
        raise QueryTimeout(f"{server}: the query ran out of time ({reason})") from None
    # An answer of the server carries its diagnostics; without them the way to it failed.
    if broken or (isinstance(error, psycopg.OperationalError) and error.diag.message_primary is None):
        raise ServerUnavailable(f"{server}: {reason}") from None
    if "table does not exist" in reason:
        raise SchemaMismatch(f"{server}: {reason}; `ringlog migrate` makes the tables") from None
    raise QueryError(f"{server}: {reason}") from None
