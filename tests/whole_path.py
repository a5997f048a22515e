"""The whole path of an instance, from append to QuestDB: what faults are aimed at, and what is asserted afterwards."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from lane_samples import Child, Drained, Sample, eventually
from oracle import Oracle, ProducerLog, Verdict, payload

from ringlog import Producer
from ringlog.audit import Report, prove
from ringlog.errors import QueryError, ServerError
from ringlog.questdb.connection import Connection
from ringlog.questdb.tables import create_table
from ringlog.records import layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

TABLE = layout_of(Sample).table


class Producing:
    """`produce(count)` attempts so many records, and returns how many were accepted."""

    def __init__(self, producer: Producer, log: ProducerLog) -> None:
        self.instance = producer.instance
        self.appender = producer.appender(Sample)
        self._log = log

    def __call__(self, count: int) -> int:
        accepted = 0
        for block in self._log.blocks(count):
            taken = [number for number in block if self.appender.append(number, payload(number))]
            self._log.accepted(taken)
            accepted += len(taken)
        self._log.first += count
        return accepted


class WholePath:
    """An instance over a QuestDB: its table, its writer processes, the oracle's logs."""

    def __init__(self, server: QuestDBServer, settings: Settings, logs: Path) -> None:
        self.server = server
        self.settings = settings
        self.logs = logs
        logs.mkdir()
        self._log = (logs / "writer.txt").open("ab")
        self.query(f"drop table if exists {TABLE}")
        self.query(create_table(layout_of(Sample)))
        self.writer: subprocess.Popen[bytes] | None = None
        self._producers = 100

    def query(self, sql: str) -> list[Any]:
        connection = Connection.from_settings(msgspec.structs.replace(self.settings, request_timeout_ms=15_000))
        try:
            return connection.execute(sql)
        finally:
            connection.close()

    def with_settings(self, **changes: Any) -> Settings:
        """Changes settings for what is started from now on."""
        self.settings = msgspec.structs.replace(self.settings, **changes)
        return self.settings

    @contextlib.contextmanager
    def producing(self, lane_bytes: int | None = None) -> Iterator[Producing]:
        """A producer in this process, whose records the oracle knows."""
        self._producers += 1
        log = ProducerLog(self.logs, self._producers)
        sizes = {} if lane_bytes is None else {Sample: lane_bytes}
        with Producer([Sample], settings=self.settings, lane_bytes=sizes) as producer:
            yield Producing(producer, log)

    def start_writer(self, *, wrapper: list[str] | None = None, wait: bool = True) -> None:
        """A writer process, under `wrapper` (strace, say); returns once it runs, unless told not to wait."""
        before = self.log_text().count("writer started")
        self.writer = subprocess.Popen(
            [*(wrapper or []), sys.executable, "-m", "ringlog", "writer"],
            env={**Child.environment(self.settings), **self.settings.to_environment()},
            stdout=self._log,
            stderr=self._log,
        )
        if wait:
            eventually(lambda: self.log_text().count("writer started") > before, "the writer to start")

    def log_text(self) -> str:
        return (self.logs / "writer.txt").read_text()

    def end_writer(self, number: signal.Signals) -> int:
        assert self.writer is not None
        self.writer.send_signal(number)
        code = self.writer.wait(40)
        self.writer = None
        return code

    def stored(self) -> int:
        """Rows in the table, or -1 while the server is away."""
        try:
            return int(self.query(f"select count() from {TABLE}")[0][0])
        except (ServerError, QueryError):
            return -1

    def proof(self) -> Report:
        return prove(msgspec.structs.replace(self.settings, request_timeout_ms=15_000))

    def verdict(self) -> Verdict:
        """Waits until every lane is drained and gone, then holds the table against the producers' logs."""
        oracle = Oracle(self.logs)
        drained = Drained(self.settings)
        eventually(lambda: not drained.cards(), "every lane to be drained and removed")
        eventually(lambda: self.stored() >= len(oracle.accepted), f"{len(oracle.accepted)} rows")
        rows = self.query(f"select number, text, lane, seq from {TABLE}")
        return oracle.judge((number, text, lane, seq) for number, text, lane, seq in rows)

    def require_exact(self) -> Verdict:
        """Nothing lost, doubled or altered: the oracle says so, and the audit."""
        verdict = self.verdict()
        assert verdict.holds, f"{verdict}\n{self.log_text()[-2000:]}"
        report = self.proof()
        assert report.is_exact, report
        return verdict

    def close(self) -> None:
        if self.writer is not None:
            self.writer.send_signal(signal.SIGCONT)
            self.end_writer(signal.SIGKILL)
        self._log.close()
