"""The embedded servers, each real: life, death, restart on the same data, and clear errors."""

from __future__ import annotations

import contextlib
import itertools
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from lane_samples import eventually

from ringlog.errors import RinglogError, ServerError
from ringlog.questdb.connection import Connection
from ringlog.servers import EmbeddedServer, PostgresServer, QuestDBServer, ValkeyServer
from ringlog.servers.embedded import started_at
from ringlog.settings import Settings


def sql(server: EmbeddedServer, text: str) -> list[tuple[Any, ...]]:
    """Runs one statement over the PostgreSQL wire of QuestDB or PostgreSQL."""
    if isinstance(server, QuestDBServer):
        target: dict[str, Any] = {"port": server.ports["pg"], "dbname": "qdb"}
    else:
        target = {"port": server.ports["sql"], "dbname": "ringlog"}
    with psycopg.connect(
        host="127.0.0.1", user="ringlog", password=server.password, autocommit=True, connect_timeout=60, **target
    ) as connection:
        cursor = connection.execute(text)
        return cursor.fetchall() if cursor.description else []


def valkey(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(
        host="127.0.0.1", port=server.ports["redis"], password=server.password, decode_responses=True, socket_timeout=90
    )


def wait_until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def write_questdb(server: EmbeddedServer) -> None:
    sql(server, "create table kept (timestamp timestamp, x long) timestamp(timestamp) partition by day wal")
    sql(server, "insert into kept values ('2024-01-01T00:00:00Z', 42)")
    read_questdb(server)


def read_questdb(server: EmbeddedServer) -> None:
    wait_until(lambda: sql(server, "select x from kept") == [(42,)])


def write_postgres(server: EmbeddedServer) -> None:
    sql(server, "create table kept as select 42 as x")


def read_postgres(server: EmbeddedServer) -> None:
    assert sql(server, "select x from kept") == [(42,)]


def write_valkey(server: EmbeddedServer) -> None:
    with valkey(server) as client:
        client.set("kept", "42")
        client.execute_command("WAITAOF", 1, 0, 60_000)


def read_valkey(server: EmbeddedServer) -> None:
    with valkey(server) as client:
        assert client.get("kept") == "42"


SERVERS = [
    pytest.param(QuestDBServer, write_questdb, read_questdb, id="questdb"),
    pytest.param(PostgresServer, write_postgres, read_postgres, id="postgres"),
    pytest.param(ValkeyServer, write_valkey, read_valkey, id="valkey"),
]


@pytest.mark.timeout(300)  # three starts of a JVM: 8 s of CPU each, more by the clock on a busy machine
@pytest.mark.parametrize(("kind", "write", "read"), SERVERS)
def test_killed_server_comes_back_with_its_data(
    kind: type[EmbeddedServer],
    write: Callable[[EmbeddedServer], None],
    read: Callable[[EmbeddedServer], None],
    tmp_path: Path,
) -> None:
    """After SIGKILL, and after a stop, the same data answers on the same ports with the same password."""
    with kind(tmp_path) as server:
        write(server)
        pid, ports, password = server.pid, dict(server.ports), server.password
        server.kill()
        assert not server.running
        server.start()
        assert server.pid != pid
        assert (server.ports, server.password) == (ports, password)
        read(server)
    assert not server.running
    with kind(tmp_path) as again:
        assert again.password == password
        read(again)
    assert stat.S_IMODE((tmp_path / "server.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", [PostgresServer, ValkeyServer])
def test_server_stops_and_continues_on_signals(kind: type[EmbeddedServer]) -> None:
    """SIGSTOP makes the server silent while it lives; SIGCONT brings it back without a restart."""
    with kind() as server:
        process = psutil.Process(server.pid)
        server.stop_signal()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        assert server.running
        server.continue_signal()
        wait_until(lambda: process.status() != psutil.STATUS_STOPPED)
        wait_until(server.answers)
        assert server.pid == process.pid


def test_a_server_that_forks_while_it_is_stopped_stands_still_as_a_whole() -> None:
    """A PostgreSQL backend that is forked while SIGSTOP goes round is stopped too: nothing answers until SIGCONT.

    Without asking for the processes again a new connection was served now and then by a stopped server.
    """
    with PostgresServer() as server, ThreadPoolExecutor(4) as callers:
        done = threading.Event()

        def connect() -> None:
            while not done.is_set():
                sql(server, "select 1")

        calls = [callers.submit(connect) for _ in range(4)]
        try:
            for _ in range(20):
                server.stop_signal()
                postmaster = psutil.Process(server.pid)
                whole = [postmaster, *postmaster.children(recursive=True)]
                assert {process.status() for process in whole} <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
                server.continue_signal()
                wait_until(server.answers)
        finally:
            server.continue_signal()
            done.set()
        for call in calls:
            call.result()


def test_stop_ends_a_stopped_server_and_removes_temporary_data() -> None:
    """A server under SIGSTOP is stopped like any other, and nothing of a temporary one is left."""
    server = ValkeyServer().start()
    directory = server.data_dir
    assert directory.is_dir()
    server.stop_signal()
    server.stop()
    assert not server.running
    assert not directory.exists()


def test_servers_bind_to_loopback_with_a_password(
    questdb_server: QuestDBServer, postgres_server: PostgresServer, valkey_server: ValkeyServer
) -> None:
    """Every listening socket of every server is on 127.0.0.1, and none lets a wrong password in."""
    for server in (questdb_server, postgres_server, valkey_server):
        process = psutil.Process(server.pid)
        listening = {c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}, server.name
        assert {address.port for address in listening} == set(server.ports.values()), server.name
        assert server.password not in " ".join(process.cmdline())
    for port, database in ((questdb_server.ports["pg"], "qdb"), (postgres_server.ports["sql"], "ringlog")):
        with pytest.raises(psycopg.OperationalError, match=r"(?i)password|authentication"):
            psycopg.connect(host="127.0.0.1", port=port, user="ringlog", password="wrong", dbname=database)
    with redis.Redis(port=valkey_server.ports["redis"]) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_log_of_questdb_does_not_grow_with_its_work(questdb_server: QuestDBServer) -> None:
    """Commits and queries leave no line in the server's log, which nobody rotates; an error does."""
    connection = Connection.from_settings(Settings(**questdb_server.settings(), request_timeout_ms=15_000))
    with contextlib.closing(connection):
        connection.execute("create table worked (timestamp timestamp) timestamp(timestamp) partition by day wal")
        rounds = itertools.count(1)

        def left_no_line() -> bool:
            written = questdb_server.log_path.read_bytes()
            rows = 5 * next(rounds)
            for number in range(rows - 5, rows):
                connection.execute(f"insert into worked values ({number})")
            eventually(lambda: connection.execute("select count() from worked") == [(rows,)], f"{rows} rows")
            added = questdb_server.log_path.read_bytes()[len(written) :]
            assert b"worked" not in added
            return not added

        # In a round that is not clean an error of the tests before, whose server it is too, may have come late.
        eventually(left_no_line, "a round of commits and queries that leaves no line")
        with pytest.raises(RinglogError, match="nonsense"):
            connection.execute("select nonsense from worked")
        eventually(lambda: b"nonsense" in questdb_server.log_path.read_bytes(), "the error in the log")


def test_port_in_use_is_named() -> None:
    """A fixed port that something else holds: the error names server, port name and port, and nothing was started."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        server = QuestDBServer(ports={"http": port})
        with pytest.raises(ServerError, match=rf"QuestDB: got http port {port} on 127.0.0.1, wanted a free one"):
            server.start()
        assert not server.running


def test_a_port_that_is_taken_before_the_server_has_it_costs_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens on the port that was chosen before the server does: it starts on another one."""
    monkeypatch.setattr("ringlog.servers.valkey.READY_TIMEOUT_S", 0.2)  # how long the thief is asked
    thieves: list[socket.socket] = []

    class Robbed(ValkeyServer):
        def _prepare(self) -> None:
            super()._prepare()
            if not thieves:
                thieves.append(held.enter_context(socket.create_server(("127.0.0.1", self.ports["redis"]))))

    with contextlib.ExitStack() as held, Robbed() as server:
        assert server.ports["redis"] != thieves[0].getsockname()[1]
        wait_until(server.answers)


def test_unknown_port_name_is_refused() -> None:
    """A port name that the server does not have is an error that lists those it has."""
    with pytest.raises(ServerError, match=r"Valkey: got ports \['http'\], wanted some of \('redis',\)"):
        ValkeyServer(ports={"http": 1})


def test_postgres_keeps_its_shared_memory_in_its_data_directory() -> None:
    """What a killed server leaves goes with its directory: a segment in /dev/shm would stay until the next boot."""
    with PostgresServer() as server:
        assert [*server.data_dir.rglob("pg_dynshmem/mmap.*")]


def test_a_start_is_told_in_a_time_that_no_step_of_the_clock_moves() -> None:
    """Linux knows the start of a process since the machine's own; since the epoch, it would move with the clock.

    A command that took a server of another start for its own would end a stranger; the reverse would leak a server.
    """
    with ValkeyServer() as server:
        assert server.started is not None
        if sys.platform == "linux":
            assert started_at(psutil.Process()) <= server.started <= time.clock_gettime(time.CLOCK_BOOTTIME)
        for start, is_it in ((server.started, True), (server.started + 60, False)):
            other = ValkeyServer(server.data_dir)
            other.attach(int(server.pid or 0), start)
            assert other.running == is_it
