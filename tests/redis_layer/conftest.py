"""Real servers for this folder's tests, and connections to them, sync and async.

Every test runs on Valkey and on Debian's Redis (7.0 in Debian 12); on the latter in the slow tier, except for tests
marked `each_server`, whose subject differs from server to server.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from debian_packages import library_path, unpacked

from ringlog.redis import AsyncConnection, Connection
from ringlog.servers import ValkeyServer
from ringlog.settings import Settings


class Server(ValkeyServer):
    """An embedded server with settings for a client of it, and the bare client that tests look behind the code with."""

    @property
    def port(self) -> int:
        return self.ports["redis"]

    def settings_for(self, **changes: Any) -> Settings:
        """A command that is slow because the machine stood still must not be sent twice, nor given up."""
        patient = {"redis_timeout_ms": 10_000, "redis_retry_timeout_ms": 30_000}
        return Settings(**{**self.settings(), **patient, **changes})

    def bare(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, socket_timeout=60, socket_connect_timeout=60)

    def lose_everything(self) -> None:
        """A crash of a server without persistence: it comes back empty."""
        self.kill()
        shutil.rmtree(self.data_dir / "appendonlydir")
        self.start()


class DebianServer(Server):
    """redis-server of this machine, else from Debian's packages."""

    name = "Redis"
    packages = ("redis-server", "redis-tools", "liblua5.1-0", "lua-cjson", "lua-bitop", "liblzf1", "libjemalloc2")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        installed = shutil.which("redis-server")
        self._place = None if installed else unpacked(self.packages)
        self._program = Path(installed) if installed else self._place / "usr" / "bin" / "redis-server"

    def _command(self) -> list[str]:
        return [str(self._program), str(self.data_dir / "valkey.conf")]

    def _environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": library_path(self._place)} if self._place else {}


SERVERS: dict[str, type[Server]] = {"valkey": Server, "redis": DebianServer}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that uses a server runs on every kind."""
    if "server_kind" in metafunc.fixturenames:
        is_fast = metafunc.definition.get_closest_marker("each_server") is not None
        redis_too = pytest.param("redis", marks=() if is_fast else pytest.mark.slow)
        metafunc.parametrize("server_kind", ["valkey", redis_too], scope="session")


@pytest.fixture(scope="session")
def shared_server(server_kind: str) -> Iterator[Server]:
    with SERVERS[server_kind]() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A running server, empty and with its default limits. Not the suite's: these tests flush it and cut its memory."""
    yield shared_server
    with shared_server.bare() as client:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")
        client.flushall()


@pytest.fixture
def own_server(server_kind: str) -> Iterator[Server]:
    """A server of this test's own, to be killed and started again."""
    with SERVERS[server_kind]() as server:
        yield server


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """A bare redis-py client, to see and to spoil what is stored."""
    with server.bare() as client:
        yield client


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with Connection(server.settings_for()) as connection:
        yield connection


@pytest.fixture
async def async_connection(server: Server) -> AsyncIterator[AsyncConnection]:
    async with AsyncConnection(server.settings_for()) as connection:
        yield connection


class CuttingProxy:
    """A TCP proxy that can lose answers: the request reaches the server, its reply does not reach the client.

    After `cut_next(n, b"XADD")` the next n connections that carry an XADD are cut when the reply to it comes.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._to_cut, self._command = 0, b""
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next(self, count: int, command: bytes) -> None:
        with self._lock:
            self._to_cut, self._command = count, command

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                carried = threading.Event()
                for source, target, replies in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, target, replies, carried), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, replies: bool, carried: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if replies and carried.is_set() and self._cuts():
                    break
                if not replies and self._to_cut and self._command in data:
                    carried.set()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _cuts(self) -> bool:
        with self._lock:
            if not self._to_cut:
                return False
            self._to_cut -= 1
            self.cuts += 1
            return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[CuttingProxy]:
    with contextlib.closing(CuttingProxy(server.port)) as proxy:
        yield proxy


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
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
