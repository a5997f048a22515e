"""Retention inside the writer: late records are counted as expired, wrong clocks cost nothing, nobody waits for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import eventually
from platform_rows import Execute, Insert, now_before_midnight, wait_applied
from writer_thread import writing

from ringlog import Producer
from ringlog.audit import prove
from ringlog.cli.writer import _cuts
from ringlog.dead_letters import DeadLetter
from ringlog.errors import ServerUnavailable
from ringlog.lanes.claims import SLOTS_WANTED
from ringlog.questdb import audit, retention_thread
from ringlog.questdb.audit import AuditEntry
from ringlog.questdb.connection import Connection
from ringlog.questdb.retention import Retention
from ringlog.questdb.retention_thread import RetentionThread
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import LatencySample, layout_of
from ringlog.settings import Settings
from ringlog.sinks import MemorySink, Receipt, Request
from ringlog.writer.resend import Resender

DAY = 86_400_000_000
HOUR = DAY // 24


class GatedSink(QuestdbSink):
    """A QuestDB sink whose server cannot be reached while `away`."""

    away = True
    refused = 0

    def send(self, request: Request) -> Receipt:
        if self.away:
            self.refused += 1
            raise ServerUnavailable("away")
        return super().send(request)


@pytest.fixture
def now(execute: Execute) -> int:
    """The server's clock, on a day that does not end while the test counts days from it."""
    return now_before_midnight(execute)


@pytest.fixture
def own(settings: Settings, instance_dir: Path, execute: Execute, empty: None) -> Settings:
    """A fresh instance on a server whose tables are empty and where retention never ran; no run is due."""
    execute("TRUNCATE TABLE retention_audit")
    wait_applied(execute, "retention_audit")
    hour = (execute("SELECT now()::long")[0][0] // HOUR + 12) % 24
    return msgspec.structs.replace(settings, runtime_dir=str(instance_dir), lane_linger_ms=50, retention_hour=hour)


def append(settings: Settings, timestamps: list[int]) -> None:
    with Producer([LatencySample], settings=settings) as producer:
        for timestamp in timestamps:
            assert producer.appender(LatencySample).append("s", "o", 1.0, timestamp=timestamp)


def balance(settings: Settings) -> dict[str, int]:
    """The terms of the ledger that are not 0; fails where the proof against lanes, spool and server does."""
    report = prove(settings)
    assert report.is_exact, report
    terms = msgspec.structs.asdict(report.tables["latencies"])
    return {name: terms[name] for name in ("confirmed", "expired", "spooled", "in_lanes") if terms[name]}


def days(execute: Execute, now: int, table: str = "latencies") -> list[int]:
    rows = execute(f"SELECT DISTINCT timestamp_floor('d', timestamp)::long d FROM {table} ORDER BY d DESC")
    return [now // DAY - day // DAY for (day,) in rows]


def executed(settings: Settings, execute: Execute, cut_us: int) -> None:
    """Makes it so that retention cut the table at `cut_us`."""
    connection = Connection.from_settings(settings)
    audit.write(connection, [AuditEntry(run=1, table="latencies", outcome=audit.EXECUTED, cut_us=cut_us)])
    connection.close()
    wait_applied(execute, "retention_audit")


def test_44_the_writer_runs_retention_and_late_records_expire(
    own: Settings, execute: Execute, insert: Insert, now: int
) -> None:
    """The writer cuts in its window; a record that comes later than its day's cut is counted and brings no day back.

    Defence: records older than their table's cut are not sent.
    """
    for ago in (0, 31):
        insert("latencies", [{"timestamp": now - ago * DAY, "service": "s", "operation": "o", "latency_us": 1.0}])
    inside = msgspec.structs.replace(own, retention_hour=now // HOUR % 24)
    cuts: Any = _cuts(inside)
    with writing(inside, QuestdbSink(inside), cuts=cuts):
        eventually(lambda: audit_outcomes(execute).get("latencies") == "executed", "the run")
        assert days(execute, now) == [0]
        append(inside, [now - 31 * DAY, now, now - 31 * DAY + 1, now - 31 * DAY + 2, now - 29 * DAY, now - 40 * DAY])
        eventually(lambda: balance(inside) == {"confirmed": 2, "expired": 4}, "the ledger")
    cuts._thread.join()  # what it still audits must not come into the next test
    assert days(execute, now) == [0, 29]
    # The same records without the cuts: what the test looks for does come back.
    with writing(inside, QuestdbSink(inside)):
        append(inside, [now - 31 * DAY])
        eventually(lambda: days(execute, now) == [0, 29, 31], "the day to come back")


def audit_outcomes(execute: Execute) -> dict[str, str]:
    return dict(execute("SELECT table_name, outcome FROM retention_audit WHERE partition_name IS NULL"))


def test_a_cut_is_known_before_it_is_made(own: Settings, execute: Execute, insert: Insert, now: int) -> None:
    """Whoever sends records hears of a table's cut while what is cut is still stored; a dry run tells of none."""
    for ago in (0, 31):
        insert("latencies", [{"timestamp": now - ago * DAY, "service": "s", "operation": "o", "latency_us": 1.0}])
    heard: dict[str, tuple[int, list[int]]] = {}
    with Retention(own) as retention:
        retention.run(dry_run=True, on_cut=lambda table, cut_us: heard.update({table: (cut_us, [])}))
        assert heard == {}
        retention.run(on_cut=lambda table, cut_us: heard.update({table: (cut_us, days(execute, now))}))
    assert heard["latencies"] == ((now - 30 * DAY) // DAY * DAY, [0, 31])
    assert days(execute, now) == [0]


def test_44_spooled_records_expire_at_replay(
    own: Settings, execute: Execute, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that waited in the spool while their day was cut are not sent from there, those beside them are.

    Defence: records older than their table's cut are not sent.
    """
    monkeypatch.setattr("ringlog.questdb.retention_thread.CUTS_INTERVAL_S", 0.02)
    sink = GatedSink(own)
    cuts: Any = _cuts(own)
    with writing(own, sink, cuts=cuts):
        append(own, [now - 35 * DAY, now, now - 35 * DAY + 1])
        eventually(lambda: balance(own) == {"spooled": 3}, "the spool")
        executed(own, execute, (now - 30 * DAY) // DAY * DAY)
        eventually(lambda: "latencies" in cuts.by_table, "the writer to know the cut")
        before = sink.refused  # a request that was under way when the cut became known was made without it
        eventually(lambda: sink.refused > before, "the next replay")
        sink.away = False
        eventually(lambda: balance(own) == {"confirmed": 1, "expired": 2}, "the ledger")
    assert days(execute, now) == [0]


def test_dead_letters_expire(own: Settings, execute: Execute, now: int) -> None:
    """A dead letter whose day was cut is refused again with that reason; a younger one is delivered."""
    executed(own, execute, (now - 30 * DAY) // DAY * DAY)
    with Retention(own) as retention:
        cuts = retention.expiry_cuts()
    sink = QuestdbSink(own)
    resend = Resender(sink, 10.0, cuts)
    layout = layout_of(LatencySample)

    def letter(seq: int, timestamp: int) -> DeadLetter:
        record = {"service": "s", "operation": "o", "latency_us": 1.0, "timestamp": timestamp}
        return DeadLetter(table="latencies", lane=7, seq=seq, reason="", time="", record=record)

    assert "expired" in (resend(letter(0, now - 31 * DAY), layout) or "")
    assert resend(letter(1, now - 29 * DAY), layout) is None
    sink.close()
    assert days(execute, now) == [29]


def test_a_cut_under_a_wrong_clock_costs_nothing(
    own: Settings, execute: Execute, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut that was made while the clock was two months ahead, or is now, makes no good record expire."""
    executed(own, execute, now + 30 * DAY)
    with writing(own, QuestdbSink(own), cuts=_cuts(own)):
        append(own, [now, now - 29 * DAY])
        eventually(lambda: balance(own) == {"confirmed": 2}, "the ledger")
    real = Retention._now_us
    monkeypatch.setattr(Retention, "_now_us", lambda self: real(self) + 60 * DAY)
    with writing(own, QuestdbSink(own), cuts=_cuts(own)):
        append(own, [now, now - 29 * DAY])
        eventually(lambda: balance(own) == {"confirmed": 4}, "the ledger")
    # The planted fault: cuts taken as they stand.
    monkeypatch.setattr(Retention, "expiry_cuts", Retention.executed_cuts)
    with writing(own, QuestdbSink(own), cuts=_cuts(own)):
        append(own, [now])
        eventually(lambda: balance(own) == {"confirmed": 4, "expired": 1}, "the loss")


def test_nobody_waits_for_retention(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the retention thread hangs, records are spooled, nothing is sent, and the writer still stops."""
    hanging, end = threading.Event(), threading.Event()

    def hang(_: RetentionThread) -> None:
        hanging.set()
        end.wait()

    monkeypatch.setattr(RetentionThread, "_step", hang)
    cuts = RetentionThread(own).start()
    eventually(hanging.is_set, "the thread to hang")
    sink = MemorySink()
    with writing(own, sink, cuts=cuts) as writer:
        append(own, [1_767_225_600_000_000])
        eventually(lambda: writer._refuge.spooled_rows == 1, "the spool")
    assert cuts._thread.is_alive()
    assert sink.rows(LatencySample) == []
    end.set()
    cuts._thread.join()
    # The next writer, whose thread answers, delivers it.
    monkeypatch.undo()
    with writing(own, sink, cuts=_cuts(own)):
        eventually(lambda: len(sink.rows(LatencySample)) == 1, "the record")


def test_lanes_do_not_fill_up_for_cuts(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane above its high-water mark waits for no cut: its records are spooled, however long that may take."""
    monkeypatch.setattr("ringlog.writer.writer.CUTS_TIMEOUT_SECONDS", 3600.0)
    end = threading.Event()
    monkeypatch.setattr(RetentionThread, "_step", lambda _: end.wait())
    own = msgspec.structs.replace(own, stop_timeout_ms=0)
    cuts = RetentionThread(own).start()
    with Producer([LatencySample], settings=own) as producer, writing(own, MemorySink(), cuts=cuts) as writer:
        appender = producer.appender(LatencySample)
        assert all(appender.append("s", "o", 1.0) for _ in range(SLOTS_WANTED // 2))
        eventually(lambda: writer._refuge.spooled_rows == SLOTS_WANTED // 2, "the spool")
    end.set()
    cuts._thread.join()


def test_a_run_that_could_not_be_asked_for_is_asked_for_again(
    own: Settings, execute: Execute, insert: Insert, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer when a run is due costs seconds, not the ten minutes until the next look."""
    real, asked = retention_thread.run_if_due, threading.Event()

    def away_at_first(settings: Settings, on_cut: Any) -> Any:
        if not asked.is_set():
            asked.set()
            raise ServerUnavailable("away")
        return real(settings, on_cut)

    monkeypatch.setattr(retention_thread, "run_if_due", away_at_first)
    monkeypatch.setattr(retention_thread, "CUTS_INTERVAL_S", 0.02)
    insert("latencies", [{"timestamp": now - 31 * DAY, "service": "s", "operation": "o", "latency_us": 1.0}])
    thread = RetentionThread(msgspec.structs.replace(own, retention_hour=now // HOUR % 24)).start()
    eventually(lambda: audit_outcomes(execute).get("latencies") == "executed", "the run")
    thread.close()
    thread._thread.join()  # tables after this one are still audited: that must not come into the next test


def test_no_retention_on_old_recordings(own: Settings, execute: Execute, now: int) -> None:
    """With RINGLOG_RETENTION_DAYS=0 records of any age are stored, whatever was cut, and no run is made."""
    executed(own, execute, (now - 30 * DAY) // DAY * DAY)
    keeping = msgspec.structs.replace(own, retention_days=0, retention_hour=now // HOUR % 24)
    cuts: Any = _cuts(keeping)
    assert cuts is None
    with writing(keeping, QuestdbSink(keeping), cuts=cuts):
        append(keeping, [1_718_000_000_000_000])
        eventually(lambda: balance(keeping) == {"confirmed": 1}, "the ledger")
    assert audit_outcomes(execute) == {"latencies": "executed"}
