"""The way to Redis, sync and async, with one body for both.

An operation is a generator of exchanges (psycopg's pattern): it yields commands, is sent their replies, and returns
its result. `Connection.run` and `AsyncConnection.run` differ only in how they wait, so no operation is written twice.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import ssl
import weakref
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import redis
import redis.asyncio
import stamina
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.retry import Retry

from ringlog.errors import ConsumerGroupMissing, RinglogError, ServerRefused, ServerUnavailable
from ringlog.redis.keys import Keys
from ringlog.redis.limits import limits_of
from ringlog.settings import Secret, Settings
from ringlog.transport import is_encrypted, untrusted

T = TypeVar("T")
Command = tuple[Any, ...]

# A failover, a replica that has not caught up, a cluster being rearranged: the same call may succeed in a moment.
_TRANSIENT = (redis.ConnectionError, redis.TimeoutError, ReadOnlyError, ClusterDownError, TryAgainError)
# No CLIENT SETINFO, as redis-py 7 and newer, or older, spell it: Redis 7.0 has none, and refuses an ACL that names it.
_ANONYMOUS = dict.fromkeys(
    ("driver_info",) if "driver_info" in inspect.signature(redis.Redis).parameters else ("lib_name", "lib_version")
)
_REFUSED_LOGIN = (AuthenticationError, AuthorizationError, NoPermissionError)


class Exchange(NamedTuple):
    """Commands of one round trip; `atomic` wraps them in MULTI and EXEC.

    `plain` is for a single command whose reply needs no shaping: it skips redis-py's bookkeeping of a call.
    """

    commands: tuple[Command, ...]
    atomic: bool = False
    plain: bool = False


Steps = Generator[Exchange, list[Any], T]


def one(*command: Any) -> Exchange:
    """An exchange of a single command."""
    return Exchange((command,))


class Connection:
    """A pool of connections to one Redis (or Valkey) server; threads may share it.

    Every command is bounded by `redis_timeout_ms`. Where the server is away, `run` tries again with backoff and
    jitter for `redis_retry_timeout_ms` (0: not at all), then raises ServerUnavailable. Commands that are tried again
    are safe to repeat: they set a value, or carry a (lane, seq) by which consumers drop the second copy.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.redis_key_prefix)
        self.limits = limits_of(settings)
        self.timeout_s = settings.redis_timeout_ms / 1_000
        self._server = f"Redis at {_address(settings)}"
        self._retry_s = settings.redis_retry_timeout_ms / 1_000
        self.client: Any = redis.Redis(retry=Retry(NoBackoff(), 0), socket_timeout=self.timeout_s, **_options(settings))

    def run(self, steps: Callable[[], Steps[T]]) -> T:
        """The result of the operation `steps()` makes; it is made anew for every try.

        Raises ServerUnavailable (away, slow, restarting), ServerRefused (out of memory, no permission, wrong type),
        ConsumerGroupMissing, and whatever the operation raises.
        """
        try:
            return self._drive(steps())
        except ServerUnavailable:
            if not self._retry_s:
                raise
        for attempt in _attempts(self._retry_s):
            with attempt:
                return self._drive(steps())
        raise AssertionError("stamina ends with a result or an error")

    def _drive(self, steps: Steps[T]) -> T:
        try:
            exchange = next(steps)
            while True:
                try:
                    replies = self._exchange(exchange)
                except RinglogError as error:
                    exchange = steps.throw(error)
                else:
                    exchange = steps.send(replies)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _exchange(self, exchange: Exchange) -> list[Any]:
        try:
            if exchange.plain:
                return [self._plain(exchange.commands[0])]
            if len(exchange.commands) == 1:
                return [self.client.execute_command(*exchange.commands[0])]
            with self.client.pipeline(transaction=exchange.atomic) as pipeline:
                for command in exchange.commands:
                    pipeline.execute_command(*command)
                return list(pipeline.execute())
        except redis.RedisError as error:
            failed = translated(self._server, error, self.settings, exchange)
        raise failed  # out here, or it would keep redis-py's error, whose frames hold the password and what was sent

    def _plain(self, command: Command) -> Any:
        """What redis-py does for a command, without its timing, callbacks and retry wrappers."""
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*command)  # both disconnect where anything but an answer comes
            return connection.read_response()
        except ReadOnlyError:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def close(self) -> None:
        """Closes every connection; the object must not be used afterwards."""
        self.client.close()
        self.client.connection_pool.disconnect()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncConnection:
    """`Connection` for asyncio: the same names, awaited.

    It belongs to one event loop at a time: it hangs up when its loop cancels its tasks, as `asyncio.run` does at its
    end, and goes on in the next loop, or in a forked process, with connections of that one. While its loop runs, no
    other loop may use it: ServerRefused says so.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.redis_key_prefix)
        self.limits = limits_of(settings)
        self.timeout_s = settings.redis_timeout_ms / 1_000
        self._server = f"Redis at {_address(settings)}"
        self._retry_s = settings.redis_retry_timeout_ms / 1_000
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self.client: Any = self._made()

    def _made(self) -> Any:
        return redis.asyncio.Redis(retry=AsyncRetry(NoBackoff(), 0), socket_timeout=None, **_options(self.settings))

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if self._loop.is_running() and self._process == os.getpid():
                raise ServerRefused(
                    f"{self._server}: the connection is used in another event loop, which is running: "
                    "wanted one object for each loop"
                )
            self.client = self._made()
        self._loop, self._process = loop, os.getpid()
        guard = loop.create_task(_hang_up_with_loop(weakref.ref(self)), name="ringlog-redis-guard")
        guard._log_destroy_pending = False  # type: ignore[attr-defined]  # of a loop that nobody closes

    def client_here(self) -> Any:
        """redis-py's client for the event loop that runs. Raises ServerRefused where another loop uses it."""
        if (loop := asyncio.get_running_loop()) is not self._loop or self._process != os.getpid():
            self._enter(loop)
        return self.client

    async def run(self, steps: Callable[[], Steps[T]]) -> T:
        """`Connection.run`, awaited."""
        self.client_here()
        try:
            return await self._drive(steps())
        except ServerUnavailable:
            if not self._retry_s:
                raise
        async for attempt in _attempts(self._retry_s):
            with attempt:
                return await self._drive(steps())
        raise AssertionError("stamina ends with a result or an error")

    async def _drive(self, steps: Steps[T]) -> T:
        try:
            exchange = next(steps)
            while True:
                try:
                    replies = await self._exchange(exchange)
                except RinglogError as error:
                    exchange = steps.throw(error)
                else:
                    exchange = steps.send(replies)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _exchange(self, exchange: Exchange) -> list[Any]:
        # Bounded here and not by redis-py: its `asyncio.wait_for` loses cancellations before Python 3.12.
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._send(exchange)
        except redis.RedisError as error:
            failed = translated(self._server, error, self.settings, exchange)
        except TimeoutError:
            failed = translated(
                self._server, redis.TimeoutError(f"no answer within {self.timeout_s:g} s"), self.settings
            )
        raise failed

    async def _send(self, exchange: Exchange) -> list[Any]:
        if len(exchange.commands) == 1:
            return [await self.client.execute_command(*exchange.commands[0])]
        async with self.client.pipeline(transaction=exchange.atomic) as pipeline:
            for command in exchange.commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute())

    async def close(self) -> None:
        """Closes every connection; the object must not be used afterwards."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    async def __aenter__(self) -> AsyncConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _hang_up_with_loop(connection_ref: weakref.ref[AsyncConnection]) -> None:
    """Waits until the loop cancels its tasks, and then closes the connections, which would outlive it."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        connection = connection_ref()
        if connection is not None and connection._loop is asyncio.get_running_loop():
            await connection.client.connection_pool.disconnect()


class _Credentials(CredentialProvider):
    """Gives redis-py the password when it logs in, and not before: its pools would show it."""

    def __init__(self, user: str, password: Secret) -> None:
        self._user, self._password = user, password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        return (self._user, self._password.reveal()) if self._user else (self._password.reveal(),)


def _address(settings: Settings) -> str:
    host = settings.redis_host
    return host if host.startswith("/") else f"{host}:{settings.redis_port}"


def _options(settings: Settings) -> dict[str, Any]:
    """redis-py's keyword arguments. Raises ConfigurationError where a password would travel in the clear."""
    has_login = settings.redis_user or settings.redis_password
    if settings.redis_host.startswith("/"):
        way: dict[str, Any] = {"unix_socket_path": settings.redis_host}
    else:
        way = {"host": settings.redis_host, "port": settings.redis_port}
    if is_encrypted(settings, "redis"):
        way |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        way |= {"ssl_ca_certs": settings.redis_tls_roots or None, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    return {
        **way,
        "credential_provider": _Credentials(settings.redis_user, settings.redis_password) if has_login else None,
        "socket_connect_timeout": settings.redis_timeout_ms / 1_000,
        **_ANONYMOUS,
        "protocol": 2,  # replies then have one shape in every version of redis-py and of the server
        # A primary that became a replica: drop the connection, so that the next try finds the new primary.
        "retry_on_error": [ReadOnlyError],
    }


def _attempts(timeout_s: float) -> Any:
    return stamina.retry_context(
        on=ServerUnavailable,
        attempts=None,
        timeout=timeout_s,
        wait_initial=0.02,
        wait_max=0.5,
        wait_jitter=0.1,
    )


_CONNECTING = "connecting to"  # redis-py's word where there is no connection yet


def translated(
    server: str, error: redis.RedisError, settings: Settings, exchange: Exchange | None = None
) -> RinglogError:
    """The ringlog error that says what the caller must do about a redis-py error; no payload is repeated in it."""
    text = str(error)
    if isinstance(error, redis.ConnectionError) and (advice := untrusted(text, settings, "redis")):
        return ServerRefused(f"{server}: {advice} ({_shortened(text)})")
    if isinstance(error, _REFUSED_LOGIN):
        return ServerRefused(f"{server}: got {type(error).__name__}, wanted a user with the rights of docs/redis.md")
    if isinstance(error, redis.TimeoutError) and is_encrypted(settings, "redis"):
        hint = "a server without TLS waits for ever: RINGLOG_REDIS_TLS=off, which takes no password"
        return ServerUnavailable(f"{server} over TLS: {_shortened(text)} ({hint})")
    if isinstance(error, _TRANSIENT):
        hint = ": start it, or set RINGLOG_REDIS_HOST and _PORT" if _CONNECTING in text else ""
        return ServerUnavailable(f"{server}: {_shortened(text) or type(error).__name__}{hint}")
    if isinstance(error, OutOfMemoryError):
        return ServerRefused(f"{server}: out of memory (maxmemory reached, nothing may be evicted)")
    if "NOGROUP" in text or text.endswith("no such key"):
        return ConsumerGroupMissing(f"{server}: {_shortened(text)}")
    if "exhausted the last possible ID" in text:
        commands = exchange.commands if exchange else ()
        streams = sorted({str(command[1]) for command in commands if command[0] == "XADD"})
        return ServerRefused(
            f"{server}: {' or '.join(streams)} takes no more entries: got the last possible id from another program, "
            "wanted ids from the server (XADD with *). DEL the stream: consumers then report `stream-lost` and read on"
        )
    return ServerRefused(f"{server}: {_shortened(text)}")


def _shortened(text: str) -> str:
    """The server's own words: redis-py puts the failing command, payload and all, before them."""
    return text.rpartition("of pipeline caused error: ")[2][:200]
