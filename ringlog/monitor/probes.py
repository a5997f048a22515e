"""Do the servers answer? One cheap question to each, bounded in time, that needs no password and changes nothing."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from ringlog.errors import ConfigurationError, RinglogError
from ringlog.questdb.conf import client_conf
from ringlog.settings import PREFIX, Settings, variable_names
from ringlog.transport import is_encrypted

TIMEOUT_SECONDS = 1.0
# PostgreSQL's SSLRequest: answered with one byte before any user is named.
_POSTGRES = ((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"), (b"S", b"N"))


class ServerFigures(msgspec.Struct):
    """One server: whether it answered, after how many milliseconds, or why not."""

    name: str
    address: str
    answers: bool
    answer_ms: float
    trouble: str = ""


class Target(NamedTuple):
    """A server to ask; `ask` raises OSError or ValueError where it does not answer as such a server does."""

    name: str
    address: str
    ask: Callable[[], None]


def targets(settings: Settings, environ: Collection[str] | None = None) -> list[Target]:
    """QuestDB, and PostgreSQL and Redis where the environment says where they are, or the writer publishes to Redis."""
    environ = variable_names() if environ is None else environ
    found = [_questdb(settings)]
    if any(name.startswith(f"{PREFIX}POSTGRES_") for name in environ):
        host, port = settings.postgres_host, settings.postgres_port
        path = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else ""
        found.append(Target("postgres", path or f"{host}:{port}", lambda: _ask(_way(host, port, path), *_POSTGRES)))
    if settings.redis_sink or any(name.startswith(f"{PREFIX}REDIS_") for name in environ):
        found.append(_redis(settings))
    return found


def _redis(settings: Settings) -> Target:
    host, port = settings.redis_host, settings.redis_port
    path = host if host.startswith("/") else ""

    def ask() -> None:
        connection = _way(host, port, path)
        if is_encrypted(settings, "redis"):
            context = ssl.create_default_context(cafile=settings.redis_tls_roots or None)
            connection = context.wrap_socket(connection, server_hostname=host)
        _ask(connection, b"PING\r\n", (b"+PONG", b"-NOAUTH"))  # no password is sent: -NOAUTH is an answer too

    return Target("redis", path or f"{host}:{port}", ask)


def probed(wanted: list[Target]) -> list[ServerFigures]:
    """What each server answers now; takes at most TIMEOUT_SECONDS for each that does not."""
    return [_probed(target) for target in wanted]


def _probed(target: Target) -> ServerFigures:
    began = time.monotonic()
    try:
        target.ask()
    except TimeoutError:
        return ServerFigures(target.name, target.address, False, 0.0, f"no answer within {TIMEOUT_SECONDS:g} s")
    except (OSError, ValueError, RinglogError, http.client.HTTPException) as error:
        trouble = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ServerFigures(target.name, target.address, False, 0.0, trouble or type(error).__name__)
    return ServerFigures(target.name, target.address, True, (time.monotonic() - began) * 1e3)


def _questdb(settings: Settings) -> Target:
    try:
        conf = client_conf(settings)
    except ConfigurationError as error:
        message = str(error)

        def refuse() -> None:
            raise ValueError(message)

        return Target("questdb", "?", refuse)

    def ask() -> None:
        secure = conf.is_encrypted
        port = int(conf.address.rpartition(":")[2]) if ":" in conf.address else 9000
        if secure:
            context = ssl.create_default_context(cafile=conf.options.get("tls_roots"))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                conf.host, port, timeout=TIMEOUT_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(conf.host, port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/ping")
            status = connection.getresponse().status
        finally:
            connection.close()
        if status not in (200, 204, 401):
            raise ValueError(f"GET /ping: got status {status}, wanted 204")

    return Target("questdb", conf.address, ask)


def _way(host: str, port: int, path: str) -> socket.socket:
    """A connection by TCP, or to the unix socket at `path`."""
    if not path:
        return socket.create_connection((host, port), TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_SECONDS)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _ask(connection: socket.socket, question: bytes, wanted: tuple[bytes, ...]) -> None:
    with connection:
        connection.sendall(question)
        answer = connection.recv(64)
    if not answer.startswith(wanted):
        raise ValueError(f"got the answer {answer[:16]!r}, wanted {wanted[0]!r}")
