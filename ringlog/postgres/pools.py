"""The way to PostgreSQL, sync and async, with one body for both.

An operation is a generator of statements (psycopg's pattern): it yields a statement, is sent its rows, and returns its
result. `Pool.run` and `AsyncPool.run` differ only in how they wait, so no operation is written twice. An operation is
made anew for every try, so it must be safe to repeat: writes carry an id by which a try finds what an earlier one did.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import psycopg
import stamina
from psycopg_pool import PoolClosed, PoolTimeout

from ringlog import pooling
from ringlog.errors import (
    PostgresValueError,
    RinglogError,
    SchemaMismatch,
    ServerRefused,
    ServerUnavailable,
    one_line,
)
from ringlog.postgres.sessions import AsyncConnection, Connection, configure, configure_async
from ringlog.settings import Settings
from ringlog.transport import is_encrypted, is_local, untrusted

T = TypeVar("T")
P = ParamSpec("P")

POOL_SIZE_MIN = 4
# The pool gives a reconnection up after this long, and `reconnect_failed` starts the next one at once: about two tries
# a second. With the default of 300 s its growing backoff would keep callers waiting for long after the server is back.
RECONNECT_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 2

# Connection trouble, resources, operator intervention, serialization and deadlock, lock timeout, a standby.
_TRANSIENT_CLASSES = ("08", "53", "57", "40")
_TRANSIENT_STATES = ("55P03", "25006")
_SCHEMA_STATES = ("42P01", "42703", "42883", "3F000")
_VALUE_CLASSES = ("22", "23")
_FOREIGN_KEY = "23503"  # its detail says which key is missing
_LOGIN_WORDS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "is not permitted to log in",
    "permission denied for database",
    "unsupported startup parameter",  # this one and those below are PgBouncer's
    "no such database",
    "no such user",
)


class Statement(NamedTuple):
    """SQL with `%s` for each of `parameters`."""

    sql: str
    parameters: Sequence[Any] = ()


Rows = list[tuple[Any, ...]]
Steps = Generator[Statement, Rows, T]


class Operation(NamedTuple, Generic[T]):
    """What `Pool.run` runs: `start` makes the generator; with `transaction` its statements commit together."""

    start: Callable[[], Steps[T]]
    transaction: bool = False


def operation(function: Callable[P, Steps[T]]) -> Callable[P, Operation[T]]:
    """Turns a generator of one statement, or of statements that may commit one by one, into an operation."""

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Operation[T]:
        return Operation(functools.partial(function, *args, **kwargs))

    return made


def transaction(function: Callable[P, Steps[T]]) -> Callable[P, Operation[T]]:
    """Turns a generator of statements into an operation that commits all of them or none."""

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Operation[T]:
        return Operation(functools.partial(function, *args, **kwargs), transaction=True)

    return made


@operation
def _single(sql: str, parameters: Sequence[Any]) -> Steps[Rows]:
    return (yield Statement(sql, parameters))


class Pool:
    """At most `postgres_pool_size_max` connections; threads may share it. Open it with `with`, or `open()`.

    A call waits at most `postgres_timeout_ms` for a free connection and as long for each answer. Where the server is
    away or restarts, or two transactions collide, it is tried again with backoff and jitter for
    `postgres_retry_timeout_ms`. Opening never waits, and never fails because the server is down.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._check = threading.Lock()
        self._proving = threading.Lock()
        self._proven = False
        self._pool = pooling.Pool(
            connection_class=Connection,
            configure=functools.partial(configure, settings),
            reconnect_failed=pooling.Pool.check,  # a pool without any connection starts one
            **_pool_options(settings),
        )

    def run(self, wanted: Operation[T]) -> T:
        """The result of an operation.

        Raises ServerUnavailable (away, slow, restarting), ServerRefused (login, rights), SchemaMismatch (a table or
        column is missing), PostgresValueError (a constraint), and whatever the operation raises.
        """
        try:
            return self._run(wanted)
        except ServerUnavailable:
            if not self._settings.postgres_retry_timeout_ms:
                raise
        for attempt in attempts(self._settings):
            with attempt:
                self._discard_broken()
                return self._run(wanted)
        raise AssertionError("stamina ends with a result or an error")

    def _run(self, wanted: Operation[T]) -> T:
        steps = wanted.start()
        try:
            statement = next(steps)  # what the operation refuses, it refuses before a connection is taken
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        try:
            self._prove()
            with self._pool.connection() as connection:
                if wanted.transaction:
                    with connection.transaction():
                        connection.limit()
                        return self._drive(connection, steps, statement)
                return self._drive(connection, steps, statement)
        except psycopg.Error as error:
            steps.close()
            failed = translated(self._settings, self._reason(error) if isinstance(error, PoolTimeout) else error)
        raise failed  # out here, or it would keep psycopg's error, and with that the statement's parameters

    def _drive(self, connection: Any, steps: Steps[T], statement: Statement) -> T:
        try:
            while True:
                statement = steps.send(connection.rows(statement.sql, statement.parameters))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _discard_broken(self) -> None:
        """After a restart every idle connection is dead: one caller has them all replaced, the others go on."""
        if self._check.acquire(blocking=False):
            try:
                self._pool.check()
            finally:
                self._check.release()

    def _prove(self) -> None:
        """One connection outside the pool, once: the pool would try a login that is refused until its time is up."""
        if not self._proven and self._proving.acquire(blocking=False):
            try:
                configured_connection(self._settings).close()
                self._proven = True
            finally:
                self._proving.release()

    def _reason(self, timeout: psycopg.Error) -> psycopg.Error:
        """Why no connection was to be had: the pool keeps its workers' errors to itself."""
        try:
            with configured_connection(self._settings):
                return timeout
        except psycopg.Error as error:
            return error

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """The rows of one statement of yours, with `%s` for each of `parameters`.

        Where an answer is lost it is executed again: make a write one that may be repeated (`on conflict do nothing`).
        Raises as `run` does.
        """
        return self.run(_single(sql, parameters))

    def open(self) -> None:
        self._pool.open()

    def close(self) -> None:
        """Closes every connection; the object must not be used afterwards."""
        self._pool.close()

    def statistics(self) -> dict[str, int]:
        """psycopg_pool's counters: pool_size, requests_num, requests_waiting, connections_lost ..."""
        return self._pool.get_stats()

    def __enter__(self) -> Pool:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncPool:
    """`Pool` for asyncio: the same names, awaited."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_checking = self._is_proving = self._is_proven = False
        self._pool = pooling.AsyncPool(
            connection_class=AsyncConnection,
            configure=functools.partial(configure_async, settings),
            reconnect_failed=pooling.AsyncPool.check,
            **_pool_options(settings),
        )

    async def run(self, wanted: Operation[T]) -> T:
        """`Pool.run`, awaited."""
        try:
            return await self._run(wanted)
        except ServerUnavailable:
            if not self._settings.postgres_retry_timeout_ms:
                raise
        async for attempt in attempts(self._settings):
            with attempt:
                await self._discard_broken()
                return await self._run(wanted)
        raise AssertionError("stamina ends with a result or an error")

    async def _run(self, wanted: Operation[T]) -> T:
        steps = wanted.start()
        try:
            statement = next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        try:
            await self._prove()
            async with self._pool.connection() as connection:
                if wanted.transaction:
                    async with connection.transaction():
                        await connection.limit()
                        return await self._drive(connection, steps, statement)
                return await self._drive(connection, steps, statement)
        except psycopg.Error as error:
            steps.close()
            failed = translated(self._settings, await self._reason(error) if isinstance(error, PoolTimeout) else error)
        raise failed  # as in Pool

    async def _drive(self, connection: Any, steps: Steps[T], statement: Statement) -> T:
        try:
            while True:
                statement = steps.send(await connection.rows(statement.sql, statement.parameters))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _discard_broken(self) -> None:
        if not self._is_checking:
            self._is_checking = True
            try:
                await self._pool.check()
            finally:
                self._is_checking = False

    async def _prove(self) -> None:
        if not self._is_proven and not self._is_proving:
            self._is_proving = True
            try:
                await (await _configured_async(self._settings)).close()
                self._is_proven = True
            finally:
                self._is_proving = False

    async def _reason(self, timeout: psycopg.Error) -> psycopg.Error:
        try:
            async with await _configured_async(self._settings):
                return timeout
        except psycopg.Error as error:
            return error

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """`Pool.execute`, awaited."""
        return await self.run(_single(sql, parameters))

    async def open(self) -> None:
        await self._pool.open()

    async def close(self) -> None:
        """Closes every connection; the object must not be used afterwards."""
        await self._pool.close()

    def statistics(self) -> dict[str, int]:
        """psycopg_pool's counters."""
        return self._pool.get_stats()

    async def __aenter__(self) -> AsyncPool:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def connection_options(settings: Settings) -> dict[str, Any]:
    """libpq.Connection's keyword arguments for the server of `settings`.

    Raises ConfigurationError where a password would travel in the clear.
    """
    return {
        "host": settings.postgres_host,
        "port": settings.postgres_port,
        "dbname": settings.postgres_database,
        "user": settings.postgres_user,
        "password": settings.postgres_password,
        **_tls_options(settings),
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "ringlog",
        "autocommit": True,
        "client_encoding": "UTF8",
        "options": "",  # PgBouncer refuses any; without this, libpq would take the environment's PGOPTIONS
    }


def _tls_options(settings: Settings) -> dict[str, str]:
    if is_encrypted(settings, "postgres"):
        return {"sslmode": "verify-full", "sslrootcert": settings.postgres_tls_roots or "system"}
    if not is_local(settings.postgres_host):  # no password is set, and none is taken from a file of libpq's own
        return {"sslmode": "disable", "passfile": os.devnull}
    return {"sslmode": "disable" if settings.postgres_tls == "off" else "prefer"}


def _pool_options(settings: Settings) -> dict[str, Any]:
    return {
        "kwargs": connection_options(settings),
        "open": False,
        "name": f"{pooling.NAME_PREFIX}postgres",
        "min_size": min(POOL_SIZE_MIN, settings.postgres_pool_size_max),
        "max_size": settings.postgres_pool_size_max,
        "timeout": settings.postgres_timeout_ms / 1_000,
        "reconnect_timeout": RECONNECT_TIMEOUT_S,
    }


def configured_connection(settings: Settings) -> Connection:
    """A connection outside any pool, bounded in time as those inside are.

    Raises psycopg's errors, and ConfigurationError as `connection_options` does.
    """
    connection = Connection.connect(**connection_options(settings))
    try:
        configure(settings, connection)
    except BaseException:
        connection.close()
        raise
    return connection


async def _configured_async(settings: Settings) -> AsyncConnection:
    connection = await AsyncConnection.connect(**connection_options(settings))
    try:
        await configure_async(settings, connection)
    except BaseException:
        await connection.close()
        raise
    return connection


def attempts(settings: Settings) -> Any:
    """stamina's attempts at what a server that is away, slow or restarting may grant in a moment."""
    return stamina.retry_context(
        on=ServerUnavailable,
        attempts=None,
        timeout=settings.postgres_retry_timeout_ms / 1_000,
        wait_initial=0.02,
        wait_max=0.5,
        wait_jitter=0.1,
    )


def translated(settings: Settings, error: psycopg.Error) -> RinglogError:
    """The ringlog error that says what the caller must do about a psycopg error."""
    server = f"PostgreSQL at {settings.postgres_host}:{settings.postgres_port}"
    state = error.sqlstate or ""
    text = one_line(error.diag.message_primary or error)
    if isinstance(error, PoolClosed):
        return ServerRefused(f"{server}: {pooling.closed_reason(error)}")
    if state in _SCHEMA_STATES:
        return SchemaMismatch(f"{server}: {text}: run `ringlog migrate --only postgres`")
    if state[:2] in _VALUE_CLASSES or isinstance(error, psycopg.DataError):
        constraint = f" ({error.diag.constraint_name})" if error.diag.constraint_name else ""
        missing = f": {error.diag.message_detail}" if state == _FOREIGN_KEY and error.diag.message_detail else ""
        return PostgresValueError(f"{server}: {text}{constraint}{missing}")
    if not state and (advice := untrusted(text, settings, "postgres")):
        return ServerRefused(f"{server}: {advice} ({text})")
    if state[:2] == "28" or (not state and any(words in text for words in _LOGIN_WORDS)):
        return ServerRefused(f"{server}: {text}")
    if state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_STATES:
        return ServerUnavailable(f"{server}: {text}")
    if not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        hint = "" if isinstance(error, PoolTimeout) else ": start it, or set RINGLOG_POSTGRES_HOST and _PORT"
        return ServerUnavailable(f"{server}: {text}{hint}")
    return ServerRefused(f"{server}: {text}")
