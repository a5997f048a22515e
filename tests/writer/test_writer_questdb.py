"""The whole path into a real QuestDB, with kills: the oracle says whether anything was lost, doubled or altered."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import Child, Drained, Sample, child, eventually
from oracle import Oracle, Verdict, produce

from ringlog.errors import QueryError, ServerError
from ringlog.questdb.connection import Connection
from ringlog.questdb.tables import create_table
from ringlog.records import layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

TABLE = layout_of(Sample).table


class WholePath:
    """A server of its own, its table, and writer processes: what the kills are aimed at."""

    def __init__(self, server: QuestDBServer, settings: Settings, logs: Path) -> None:
        self.server = server
        self.settings = settings
        self.logs = logs
        logs.mkdir()
        self._log = (logs / "writer.txt").open("ab")
        self.query(create_table(layout_of(Sample)))
        self.writer: subprocess.Popen[bytes] | None = None

    def query(self, sql: str) -> list[Any]:
        connection = Connection.from_settings(self.settings)
        try:
            return connection.execute(sql)
        finally:
            connection.close()

    def start_writer(self) -> None:
        names = ("http_port", "pg_port", "host", "user")
        options = {f"RINGLOG_QUESTDB_{name.upper()}": str(getattr(self.settings, f"questdb_{name}")) for name in names}
        options["RINGLOG_QUESTDB_PASSWORD"] = self.settings.questdb_password.reveal()
        self.writer = subprocess.Popen(
            [sys.executable, "-c", "import ringlog.cli, sys; sys.exit(ringlog.cli.main())", "writer"],
            env={**Child.environment(self.settings), **options},
            stdout=self._log,
            stderr=self._log,
        )
        pid = self.writer.pid
        eventually(lambda: f"writer started pid={pid} " in self.log_text(), "the writer to start")

    def log_text(self) -> str:
        return (self.logs / "writer.txt").read_text()

    def end_writer(self, number: signal.Signals) -> int:
        assert self.writer is not None
        self.writer.send_signal(number)
        code = self.writer.wait(20)
        self.writer = None
        return code

    def stored(self) -> int:
        """Rows in the table, or -1 while the server is away."""
        try:
            return int(self.query(f"select count() from {TABLE}")[0][0])
        except (ServerError, QueryError):
            return -1

    def verdict(self) -> Verdict:
        """Waits until every lane is drained and gone, then holds the table against the producers' logs."""
        oracle = Oracle(self.logs)
        drained = Drained(self.settings)
        eventually(lambda: not drained.cards(), "every lane to be drained and removed")
        eventually(lambda: self.stored() >= len(oracle.accepted), f"{len(oracle.accepted)} rows")
        rows = self.query(f"select number, text, lane, seq from {TABLE}")
        return oracle.judge((number, text, lane, seq) for number, text, lane, seq in rows)

    def close(self) -> None:
        if self.writer is not None:
            self.end_writer(signal.SIGKILL)
        self._log.close()


@pytest.fixture
def path(instance_dir: Path, tmp_path: Path) -> Iterator[WholePath]:
    """A QuestDB of its own, so that it can be killed."""
    with QuestDBServer(tmp_path / "questdb") as server:
        settings = Settings(
            runtime_dir=str(instance_dir), lane_bytes_max=16 << 20, lane_linger_ms=50, **server.settings()
        )
        whole = WholePath(server, settings, tmp_path / "logs")
        yield whole
        whole.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_whoever_is_killed(path: WholePath) -> None:
    """Producers, writer and QuestDB killed with -9 in turn and together: accepted ⊆ stored ⊆ attempted, all equal."""
    path.start_writer()
    with contextlib.ExitStack() as producers:

        def producer(number: int) -> Child:
            started = producers.enter_context(child(path.settings, produce(path.logs, number)))
            assert started.line() == "go"
            return started

        def grown(rows: int = 200) -> None:
            before = path.stored()
            eventually(lambda: path.stored() >= max(before, 0) + rows, "rows to arrive")

        lasting, short = producer(1), producer(2)
        grown()
        for _ in range(3):  # the writer, also in the middle of its recovery
            path.end_writer(signal.SIGKILL)
            path.start_writer()
        grown()
        short.kill()
        path.server.kill()
        path.server.start()
        grown()
        another = producer(3)
        path.end_writer(signal.SIGKILL)
        path.server.kill()
        another.kill()
        path.server.start()
        path.start_writer()
        grown()
        lasting.kill()
    verdict = path.verdict()
    assert verdict.holds, f"{verdict}\n{(path.logs / 'writer.txt').read_text()[-2000:]}"
    assert verdict.accepted > 1000
    assert path.end_writer(signal.SIGTERM) == 0


def test_sigterm_delivers_and_ends(path: WholePath) -> None:
    """SIGTERM: what was accepted is in the table when the writer ends, with status 0, within its limit."""
    path.settings = msgspec.structs.replace(path.settings)
    path.start_writer()
    with child(path.settings, produce(path.logs, 1, 3000) + "sys.stdin.readline()") as producer:
        assert producer.line() == "go"
        assert producer.line() == "done"
        oracle = Oracle(path.logs)
        assert path.end_writer(signal.SIGTERM) == 0
        assert path.stored() == len(oracle.accepted) > 0
        producer.go_on()
        producer.ended()
    path.start_writer()
    assert path.verdict().holds
