"""Do the servers answer? One cheap question to each, bounded in time, that needs no password and changes nothing."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from ringlog.errors import ConfigurationError
from ringlog.questdb.conf import client_conf
from ringlog.settings import PREFIX, Settings, variables

TIMEOUT_SECONDS = 1.0
# PostgreSQL's SSLRequest: answered with one byte before any user is named.
_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


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


def targets(settings: Settings, environ: Mapping[str, str] | None = None) -> list[Target]:
    """QuestDB, and PostgreSQL and Redis where the environment says where they are, or the writer publishes to Redis."""
    environ = variables() if environ is None else environ
    found = [_questdb(settings)]
    if any(name.startswith(f"{PREFIX}POSTGRES_") for name in environ):
        host, port = settings.postgres_host, settings.postgres_port
        found.append(Target("postgres", f"{host}:{port}", lambda: _ask(host, port, _SSL_REQUEST, (b"S", b"N"))))
    if settings.redis_sink or any(name.startswith(f"{PREFIX}REDIS_") for name in environ):
        host_, port_ = settings.redis_host, settings.redis_port
        answers = (b"+PONG", b"-NOAUTH")  # without its password it does not say PONG, and is there all the same
        found.append(Target("redis", f"{host_}:{port_}", lambda: _ask(host_, port_, b"PING\r\n", answers)))
    return found


def probed(wanted: list[Target]) -> list[ServerFigures]:
    """What each server answers now; takes at most TIMEOUT_SECONDS for each that does not."""
    return [_probed(target) for target in wanted]


def _probed(target: Target) -> ServerFigures:
    began = time.monotonic()
    try:
        target.ask()
    except TimeoutError:
        return ServerFigures(target.name, target.address, False, 0.0, f"no answer within {TIMEOUT_SECONDS:g} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
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
        secure = conf.text.startswith("https")
        port = int(conf.address.rpartition(":")[2]) if ":" in conf.address else 9000
        if secure:
            context = ssl.create_default_context()
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


def _ask(host: str, port: int, question: bytes, wanted: tuple[bytes, ...]) -> None:
    with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.sendall(question)
        answer = connection.recv(64)
    if not answer.startswith(wanted):
        raise ValueError(f"got the answer {answer[:16]!r}, wanted {wanted[0]!r}")
