"""Pools of connections on which every wait is bounded: by a server that is slow, that hangs, or that restarts.

What QuestDB lacks of PostgreSQL's per-query timeout is made here: a connection gives up at its deadline and is closed,
which ends its query on the server within a tenth of a second, and the pool replaces it in the background.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import struct
import time
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import numpy as np
import psycopg
import psycopg_pool

from ringlog import libpq, pooling
from ringlog.errors import (
    QueryError,
    QueryTimeout,
    RinglogError,
    SchemaMismatch,
    ServerRefused,
    ServerUnavailable,
    one_line,
)
from ringlog.naming import did_you_mean
from ringlog.questdb.audit import AUDIT_TABLE
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import CONNECT_TIMEOUT_S, DATABASE, reason_of, tls_options, unreachable
from ringlog.questdb.rollups import ROLLUPS
from ringlog.questdb.taken import LANES_TABLE
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import Settings

# As psycopg has it registered: its C class, where that is installed.
_TIMESTAMPTZ_LOADER: Any = psycopg.adapters.get_loader(
    psycopg.adapters.types["timestamptz"].oid, psycopg.pq.Format.BINARY
)

_YEAR_2000_US = 946_684_800_000_000

TEXT_STATEMENTS_MAX = 10_000
# A statement is prepared on the server when it comes for the third time on a connection.
PREPARE_THRESHOLD = 2
# An idle connection is asked whether it lives before it is given out; one that was used just now is not: the round
# trip would cost every query, and a connection that broke meanwhile only costs a retry.
CHECK_IDLE_S = 1.0
CHECK_TIMEOUT_S = 1.0
# A server that has not answered a check for so long hangs.
HUNG_S = 0.2
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


# What `ringlog migrate` makes: without one of these a server is not what queries need. Any other table is the caller's.
MIGRATED = frozenset(
    [
        *(layout_of(record_type).table for record_type in PLATFORM_RECORDS),
        *(rollup.view for rollup in ROLLUPS),
        AUDIT_TABLE,
        LANES_TABLE,
    ]
)
KEYWORDS = ("select", "with", "show", "explain", "insert", "update", "create", "alter", "drop", "truncate", "declare")
_MISSING_TABLE = re.compile(r"table does not exist \[table=(.*)\]")


class DeadlinePassed(psycopg.OperationalError):
    """The connection's deadline passed while it waited for the server."""


@dataclasses.dataclass(slots=True)
class Health:
    """What a pool's connections learned last: shared by all of them."""

    failed_at: float = float("-inf")  # monotonic seconds
    is_reached: bool = False  # a connection was made
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


class RawBytesLoader(psycopg.adapt.Loader):
    """A binary column in an answer of texts: QuestDB sends the bytes as they are, not as hexadecimal digits."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


class SingleLoader(psycopg.adapt.Loader):
    """A float of 32 bits in an answer of texts, as the same number that the binary form gives."""

    def load(self, data: Any) -> float:
        value: float = struct.unpack("<f", struct.pack("<f", float(bytes(data))))[0]
        return value


def text_cursor(connection: PooledConnection | AsyncPooledConnection) -> Any:
    """A cursor that asks for texts and gives the values that a binary one would.

    For answers with a column that QuestDB has no binary form of (IPv4, geohash, NULL without a type): it sends a broken
    answer then. The texts of its doubles are exact.
    """
    cursor = connection.cursor(binary=False)
    cursor.adapters.register_loader("bytea", RawBytesLoader)
    cursor.adapters.register_loader("float4", SingleLoader)
    return cursor


class _TextTimeLoader(psycopg.adapt.Loader):
    def load(self, data: Any) -> str:
        return bytes(data).decode().replace(" ", "T")


class _BinaryTimeLoader(psycopg.adapt.Loader):
    format = psycopg.pq.Format.BINARY

    def load(self, data: Any) -> str:
        # An int64 of the wire counts from 2000 on; numpy has years of any length.
        return str(np.datetime64(int.from_bytes(data, "big", signed=True) + _YEAR_2000_US, "us"))


def load_times_as_text(cursor: Any) -> list[tuple[Any, ...]]:
    """The rows of a cursor's answer once more, with times as texts without a zone: 294247-01-10T04:00:54.775807."""
    cursor.adapters.register_loader("timestamp", _TextTimeLoader)
    cursor.adapters.register_loader("timestamp", _BinaryTimeLoader)
    transformer = psycopg.adapt.Transformer(cursor)
    transformer.set_pgresult(cursor.pgresult)
    return transformer.load_rows(0, cursor.pgresult.ntuples, tuple)


def has_no_binary_form(error: psycopg.Error) -> bool:
    """Whether libpq could not read a row of an answer; the connection goes on after it."""
    return type(error) is psycopg.DatabaseError and '"D" message' in str(error)


class TextStatements:
    """The statements that were found to have no binary form, so that each is asked in vain once."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, sql: str) -> None:
        if len(self._hashes) >= TEXT_STATEMENTS_MAX:
            self._hashes.clear()
        self._hashes.add(hash(sql))

    def __contains__(self, sql: str) -> bool:
        # Another statement of the same hash is asked for as text too, and is answered as well.
        return bool(self._hashes) and hash(sql) in self._hashes


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
    health.is_reached = True
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
        began = time.monotonic()
        connection.deadline = _check_deadline()
        try:
            connection.execute("select 1")
        except psycopg.Error as error:
            _note_failed_check(connection, error, began)
            raise
        connection.used_at = time.monotonic()


async def check_async(connection: AsyncPooledConnection) -> None:
    if _needs_check(connection):
        began = time.monotonic()
        connection.deadline = _check_deadline()
        try:
            await connection.execute("select 1")
        except psycopg.Error as error:
            _note_failed_check(connection, error, began)
            raise
        connection.used_at = time.monotonic()


def _note_failed_check(
    connection: PooledConnection | AsyncPooledConnection, error: psycopg.Error, began: float
) -> None:
    """For callers that get no connection; a caller who had no time left proves nothing about the server."""
    if not isinstance(error, DeadlinePassed) or time.monotonic() - began >= HUNG_S:
        connection.health.failed(error)


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
        "name": f"{pooling.NAME_PREFIX}queries",
    }


def make_pool(settings: Settings, health: Health, prepare_threshold: int | None) -> Any:
    return pooling.Pool(
        connection_class=PooledConnection, configure=widen, check=check, **_options(settings, health, prepare_threshold)
    )


def make_async_pool(settings: Settings, health: Health, prepare_threshold: int | None) -> Any:
    return pooling.AsyncPool(
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
    if isinstance(error, psycopg_pool.PoolClosed):
        return QueryError(f"{server}: {pooling.closed_reason(error)}")
    if "password" in health.error or "authentication" in health.error:
        return ServerRefused(f"{server}: {health.error}")
    if time.monotonic() - health.failed_at <= FAILED_LATELY_S:
        return NoConnection(unreachable(server, health.error))
    size = statistics.get("pool_size", 0)
    if not health.is_reached:
        return NoConnection(unreachable(server, "no answer in time"))
    wanted = "more time, or a larger RINGLOG_QUERY_POOL_SIZE_MAX"
    return NoConnection(f"{server}: no connection ({size} are busy; {one_line(error)}), wanted {wanted}")


def translate(error: psycopg.Error, server: str, broken: bool, *, own_sql: bool = False) -> NoReturn:
    """Raises the RinglogError that says what the caller can do about a psycopg error.

    `own_sql`: the statement is ringlog's, so that a table or column it lacks is one that `ringlog migrate` makes.
    """
    reason = reason_of(error)
    if isinstance(error, DeadlinePassed) or "timeout, query aborted" in reason or "cancelled by user" in reason:
        advice = "more time (RINGLOG_QUERY_TIMEOUT_MS, timeout_ms) or less data"
        raise QueryTimeout(f"{server}: the query ran out of time ({reason}), wanted {advice}") from None
    # An answer of the server carries its diagnostics; without them the way to it failed.
    if broken or (isinstance(error, psycopg.OperationalError) and error.diag.message_primary is None):
        raise ServerUnavailable(f"{server}: {reason}") from None
    missing = _MISSING_TABLE.search(reason)
    if missing and (own_sql or missing[1] in MIGRATED):
        raise SchemaMismatch(f"{server}: {reason}; `ringlog migrate` makes the tables") from None
    if own_sql and "Invalid column" in reason:
        raise SchemaMismatch(f"{server}: {reason}; `ringlog migrate` adds missing columns") from None
    # QuestDB takes an unknown word at the beginning of a statement for the name of a table.
    hint = did_you_mean(missing[1], (*MIGRATED, *KEYWORDS)) if missing else ""
    raise QueryError(f"{server}: {reason}{hint}") from None
