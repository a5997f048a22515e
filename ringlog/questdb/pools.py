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
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import psycopg
import psycopg_pool

from ringlog import libpq
from ringlog.errors import (
    QueryError,
    QueryTimeout,
    RinglogError,
    SchemaMismatch,
    ServerRefused,
    ServerUnavailable,
    one_line,
)
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import CONNECT_TIMEOUT_S, DATABASE, reason_of, tls_options, unreachable
from ringlog.settings import Settings

# As psycopg has it registered: its C class, where that is installed.
_TIMESTAMPTZ_LOADER: Any = psycopg.adapters.get_loader(
    psycopg.adapters.types["timestamptz"].oid, psycopg.pq.Format.BINARY
)

# What these say is in the errors too: it must not reach the terminal of a program that configured no logging.
for _name in ("psycopg.pool", "stamina"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

# A statement is prepared on the server when it comes for the third time on a connection.
PREPARE_THRESHOLD = 2
# An idle connection is asked whether it lives before it is given out; one that was used just now is not: the round
# trip would cost every query, and a connection that broke meanwhile only costs a retry.
CHECK_IDLE_S = 1.0
CHECK_TIMEOUT_S = 1.0
# libpq reads no more at once than its buffer holds, which is 16 KB until a longer value came: an answer of 1,000 trades
# takes a wait for each, and another thread the interpreter at each. So a new connection asks for one long value first.
WIDE_VALUE = "SELECT lpad('', 262144, ' ')"
# How often a wait for an answer wakes to see interrupts and its deadline.
WAIT_INTERVAL_S = 0.1
# How long one attempt waits for a connection before it asks again (and so lets the pool start new ones), and for how
# long the pool goes on by itself: psycopg_pool doubles its delay from 1 s on, so that more would make it slow to see
# a server that is back.
ACQUIRE_TIMEOUT_S = 1.0
RECONNECT_TIMEOUT_S = 3.0
# A call that got no connection got none because of a failure that is no older.
FAILED_LATELY_S = 2 * RECONNECT_TIMEOUT_S
# When the call that asks for a connection must end (monotonic seconds). psycopg_pool makes its health check in the
# thread or task that asks, and hands it the connection alone.
call_deadline: ContextVar[float] = ContextVar("call_deadline", default=float("inf"))
# How calls are made again after a connection failed (stamina's arguments).
BACKOFF: dict[str, Any] = {"attempts": None, "wait_initial": 0.05, "wait_max": 0.5, "wait_jitter": 0.05}


class DeadlinePassed(psycopg.OperationalError):
    """The connection's deadline passed while it waited for the server."""


@dataclasses.dataclass(slots=True)
class Health:
    """What a pool's connections learned last: shared by all of them."""

    failed_at: float = float("-inf")  # monotonic seconds
    error: str = ""

    def failed(self, error: BaseException) -> None:
        self.failed_at = time.monotonic()
        self.error = one_line(error)


def _seconds_left(deadline: float) -> float | None:
    return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())


def _raise_where_late(deadline: float, error: psycopg.OperationalError) -> None:
    if time.monotonic() >= deadline:
        raise DeadlinePassed("no answer in time") from error


class UtcTimestampLoader:
    """Makes psycopg's loader of times with a zone, for a column without one: QuestDB's times are all in UTC.

    Made without a connection it takes UTC for its zone. That of the connection is called GMT, an entry of the zone
    database, and to convert each value to it would cost a third of the decoding of a row of trades.
    """

    format = psycopg.pq.Format.BINARY

    def __new__(cls, oid: int, _context: Any = None) -> Any:
        return _TIMESTAMPTZ_LOADER(oid)


def utc_cursor(connection: PooledConnection | AsyncPooledConnection) -> Any:
    """A cursor whose times are aware, in UTC: for typed rows, which are made of each answer as it comes."""
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_loader("timestamp", cast("type[psycopg.adapt.Loader]", UtcTimestampLoader))
    return cursor


class PooledConnection(libpq.Connection):
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

    def wait(self, gen: Any, interval: float = WAIT_INTERVAL_S, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, _seconds_left(self.deadline) if timeout is None else timeout)
        except psycopg.OperationalError as error:
            _raise_where_late(self.deadline, error)
            raise


class AsyncPooledConnection(libpq.AsyncConnection):
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

    async def wait(self, gen: Any, interval: float = WAIT_INTERVAL_S, timeout: float | None = None) -> Any:
        try:
            return await super().wait(gen, interval, _seconds_left(self.deadline) if timeout is None else timeout)
        except psycopg.OperationalError as error:
            _raise_where_late(self.deadline, error)
            raise


def _prepare(connection: PooledConnection | AsyncPooledConnection, health: Health) -> None:
    connection.health = health
    connection.used_at = time.monotonic()


def _needs_check(connection: PooledConnection | AsyncPooledConnection) -> bool:
    fresh = time.monotonic() - connection.used_at < CHECK_IDLE_S
    return not fresh or connection.used_at <= connection.health.failed_at


def _check_deadline() -> float:
    # A check that goes on after its caller's time would have the caller wait for a server that hangs.
    return min(time.monotonic() + CHECK_TIMEOUT_S, call_deadline.get())


def check(connection: PooledConnection) -> None:
    """The pool's health check: raises where a connection that was idle, or older than a failure, does not answer."""
    if _needs_check(connection):
        connection.deadline = _check_deadline()
        connection.execute("select 1")
        connection.used_at = time.monotonic()


async def check_async(connection: AsyncPooledConnection) -> None:
    if _needs_check(connection):
        connection.deadline = _check_deadline()
        await connection.execute("select 1")
        connection.used_at = time.monotonic()


def widen(connection: PooledConnection) -> None:
    """The pool's first use of a new connection."""
    connection.deadline = _check_deadline()
    try:
        connection.execute(WIDE_VALUE)
    except psycopg.Error as error:
        _raise_where_broken(connection, error)


async def widen_async(connection: AsyncPooledConnection) -> None:
    connection.deadline = _check_deadline()
    try:
        await connection.execute(WIDE_VALUE)
    except psycopg.Error as error:
        _raise_where_broken(connection, error)


def _raise_where_broken(connection: PooledConnection | AsyncPooledConnection, error: psycopg.Error) -> None:
    """A server that can't send so long a value gives an error, and a connection that serves all the same."""
    if settle(connection, error):
        raise error


def _options(settings: Settings, health: Health, prepare_threshold: int | None) -> dict[str, Any]:
    conf = client_conf(settings)
    connection = {
        "host": conf.host,
        "port": settings.questdb_pg_port,
        "user": settings.questdb_user,
        "password": settings.questdb_password,
        "dbname": DATABASE,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "autocommit": True,
        "prepare_threshold": prepare_threshold,
        "health": health,
        **tls_options(conf.host, conf.tls_roots),
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
        connection_class=PooledConnection, configure=widen, check=check, **_options(settings, health, prepare_threshold)
    )


def make_async_pool(settings: Settings, health: Health, prepare_threshold: int | None) -> Any:
    return psycopg_pool.AsyncConnectionPool(
        connection_class=AsyncPooledConnection,
        configure=widen_async,
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
    if time.monotonic() - health.failed_at <= FAILED_LATELY_S:
        return NoConnection(unreachable(server, health.error))
    size = statistics.get("pool_size", 0)
    wanted = "more time, or a larger RINGLOG_QUERY_POOL_SIZE_MAX"
    return NoConnection(f"{server}: no connection ({size} are busy; {one_line(error)}), wanted {wanted}")


def translate(error: psycopg.Error, server: str, broken: bool) -> NoReturn:
    """Raises the RinglogError that says what the caller can do about a psycopg error."""
    reason = reason_of(error)
    if isinstance(error, DeadlinePassed) or "timeout, query aborted" in reason or "cancelled by user" in reason:
        raise QueryTimeout(f"{server}: the query ran out of time ({reason})") from None
    # An answer of the server carries its diagnostics; without them the way to it failed.
    if broken or (isinstance(error, psycopg.OperationalError) and error.diag.message_primary is None):
        raise ServerUnavailable(f"{server}: {reason}") from None
    if "table does not exist" in reason:
        raise SchemaMismatch(f"{server}: {reason}; `ringlog migrate` makes the tables") from None
    raise QueryError(f"{server}: {reason}") from None
