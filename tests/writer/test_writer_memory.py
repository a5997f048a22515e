"""The writer over a sink in memory: when tails move, what a failing sink costs, who may be writer, how it stops."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from lane_samples import Drained, Sample, child, eventually, text_of
from oracle import Oracle, produce
from sink_batches import batch_of, fresh_layout
from writer_thread import writing

from ringlog import Producer
from ringlog.errors import ServerRefused, ServerUnavailable, WriterRunning
from ringlog.lanes.claims import open_board
from ringlog.records import LatencySample, PerformanceMetric, layout_of
from ringlog.settings import Settings
from ringlog.sinks import Receipt, Request
from ringlog.sinks.memory import MemorySink
from ringlog.writer import Writer
from ringlog.writer.delivery import Delivery
from ringlog.writer.statistics import Statistics


class HeldSink(MemorySink):
    """A memory sink whose confirmations and sends can be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.confirming = True
        self.sent: list[tuple[str, int]] = []

    def send(self, request: Request) -> Receipt:
        self.sent.append((request.layout.table, request.rows))
        return super().send(request)

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        return super().confirm(receipts) if self.confirming else [False] * len(receipts)


class HangingSink(MemorySink):
    """A memory sink whose requests take until `end`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_sending, self.end = threading.Event(), threading.Event()

    def send(self, request: Request) -> Receipt:
        self.is_sending.set()
        assert self.end.wait(60)
        return super().send(request)


def tails(settings: Settings) -> list[tuple[int, int]]:
    """Head and tail of every lane."""
    drained = Drained(settings)
    drained.directory.refresh()
    try:
        return [(lane.head, lane.tail) for lane in drained.directory.lanes.values()]
    finally:
        drained.directory.close()


def test_everything_arrives(lane_settings: Settings) -> None:
    """Records of several types, lanes and ticks arrive once each, and the tails follow the heads."""
    sink = HeldSink()
    with Producer([Sample, LatencySample], settings=lane_settings) as producer, writing(lane_settings, sink):
        sample, latency = producer.appender(Sample), producer.appender(LatencySample)
        for number in range(1000):
            assert sample.append(number, text_of(number))
            assert latency.append("s", "o", float(number))
            if number % 250 == 0:
                eventually(lambda: len(sink.rows(Sample)) == sample.accepted, "the samples")
        eventually(lambda: tails(lane_settings) == [(1000, 1000)] * 2, "the tails")
    assert sorted(row["number"] for row in sink.rows(Sample)) == list(range(1000))
    assert sorted(row["latency_us"] for row in sink.rows(LatencySample)) == [float(number) for number in range(1000)]


def test_a_tail_waits_for_the_confirmation(lane_settings: Settings) -> None:
    """Rows that were acknowledged but are not confirmed stay in the lane; with the confirmation the tail moves.

    Their columns do not stay: a server that is slow to apply would cost as much memory again as the lanes.
    """
    # Confirmed as late as may be: what is not for too long goes to the spool.
    settings = msgspec.structs.replace(lane_settings, confirm_timeout_ms=60_000)
    sink = HeldSink()
    sink.confirming = False
    with Producer([Sample], settings=settings) as producer, writing(settings, sink) as writer:
        for number in range(10):
            assert producer.appender(Sample).append(number, text_of(number))
        eventually(lambda: len(sink.rows(Sample)) == 10, "the rows")
        assert tails(lane_settings) == [(10, 0)]
        sent = writer._delivery._sent
        eventually(lambda: sent and not any(entry.batch.columns for entry in sent), "the columns to go")
        sink.confirming = True
        eventually(lambda: tails(lane_settings) == [(10, 10)], "the tail")
    assert sum(rows for table, rows in sink.sent if table == Sample.__table__) == 10  # its own metrics come as well


def test_a_surprise_in_a_confirmation_ends_nothing(
    lane_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no sink should raise while it is asked what is applied is logged, and it is asked again."""
    monkeypatch.setattr("ringlog.writer.delivery.CONFIRM_SURPRISE_SECONDS", 0.01)

    class Surprising(HeldSink):
        def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
            if not self.confirming:
                raise OSError("a surprise")
            return super().confirm(receipts)

    settings = msgspec.structs.replace(lane_settings, confirm_timeout_ms=60_000)
    sink = Surprising()
    sink.confirming = False
    with Producer([Sample], settings=settings) as producer, writing(settings, sink):
        assert producer.appender(Sample).append(1, text_of(1))
        eventually(lambda: caplog.text.count("confirm failed unexpectedly") > 1, "the surprise, twice")
        assert tails(lane_settings) == [(1, 0)]
        sink.confirming = True
        eventually(lambda: tails(lane_settings) == [(1, 1)], "the tail")


def test_a_surprise_while_bad_rows_are_looked_for_ends_nothing(
    lane_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that no sink should raise while it sends the rows of a refused batch one by one: sent again later."""

    class Surprising(MemorySink):
        refusals = surprises = 0

        def send(self, request: Request) -> Receipt:
            if self.refusals and not self.surprises:
                self.surprises += 1
                raise OSError("a surprise")
            try:
                return super().send(request)
            except ServerRefused:
                self.refusals += 1
                raise

    sink = Surprising(lambda row: "poison" if row.get("number") == 5 else None)
    with Producer([Sample], settings=lane_settings) as producer, writing(lane_settings, sink) as writer:
        for number in range(20):
            assert producer.appender(Sample).append(number, text_of(number))
        eventually(lambda: len(sink.rows(Sample)) == 19, "the others")
        eventually(lambda: writer._refuge.dead_letters == 1, "the dead letter")
    assert sink.surprises == 1
    assert "send failed unexpectedly" in caplog.text


def test_the_end_waits_for_no_request_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that hangs while all is closed ends that with a named error, after a bounded wait."""
    monkeypatch.setattr("ringlog.writer.delivery.SEND_SECONDS_MAX", 0.5)
    sink = HangingSink()
    delivery = Delivery(sink, Statistics(), confirm_timeout_seconds=60.0)
    delivery.submit(batch_of(fresh_layout(), [{}]), lambda _settled: None)
    assert sink.is_sending.wait(60)
    try:
        with pytest.raises(ServerUnavailable, match="got a request that has not returned for 0 s"):
            delivery.close()
        assert delivery.is_hung
    finally:
        sink.end.set()


def test_a_request_may_take_as_long_as_its_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RINGLOG_REQUEST_TIMEOUT_MS is long a request that takes its time is no reason for the writer to end."""
    monkeypatch.setattr("ringlog.writer.delivery.SEND_SECONDS_MAX", 0.0)
    sink, settled = HangingSink(), []
    delivery = Delivery(sink, Statistics(), confirm_timeout_seconds=60.0, request_timeout_seconds=60.0)
    delivery.submit(batch_of(fresh_layout(), [{}]), settled.append)
    assert sink.is_sending.wait(60)
    try:
        assert delivery.collect()
    finally:
        sink.end.set()
    eventually(lambda: delivery.collect(0.01) and settled, "the confirmation")
    assert settled[0].error is None
    delivery.close()


def test_a_failing_sink_loses_nothing(lane_settings: Settings) -> None:
    """While the sink fails nothing is lost; afterwards every record is there once."""
    sink = HeldSink()
    sink.available = False
    with Producer([Sample], settings=lane_settings) as producer, writing(lane_settings, sink):
        append = producer.appender(Sample).append
        accepted = [number for number in range(2000) if append(number, text_of(number))]
        eventually(lambda: sink.sent, "the first try")
        sink.available = True
        accepted += [number for number in range(2000, 2100) if append(number, text_of(number))]
        eventually(lambda: len(sink.rows(Sample)) == len(accepted), "all rows")
    assert sorted(row["number"] for row in sink.rows(Sample)) == accepted


def test_a_writer_that_was_taken_over(lane_settings: Settings) -> None:
    """Once another writer has taken the lease's epoch, the old one moves no tail any more."""
    settings = msgspec.structs.replace(lane_settings, stop_timeout_ms=60_000)
    sink = HeldSink()
    sink.confirming = False

    def taken_over(producer: Producer) -> None:
        with writing(settings, sink):
            assert producer.appender(Sample).append(1, text_of(1))
            eventually(lambda: sink.rows(Sample), "the row")
            open_board(producer.instance).take_over()
            sink.confirming = True

    with Producer([Sample], settings=lane_settings) as producer:
        with pytest.raises(WriterRunning, match="got the lease of another writer, wanted ours"):
            taken_over(producer)
        assert tails(lane_settings) == [(1, 0)]


def test_10_a_second_writer_names_the_first(lane_settings: Settings) -> None:
    """A second writer of the instance is refused by name of the holder, and the first goes on.

    Defence: one writer holds the lease.
    """
    script = """
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink
from ringlog.writer import Writer
import os, sys
writer = Writer(Settings.from_environment(), MemorySink())
print(os.getpid(), flush=True)
sys.stdin.readline()
"""
    with child(lane_settings, script, prelude="") as first:
        pid = first.line()
        with pytest.raises(WriterRunning, match=rf"got a writer running already \(pid={pid} since=.*\), wanted none"):
            Writer(lane_settings, MemorySink())
        first.go_on()
        first.ended()
    sink = HeldSink()
    with writing(lane_settings, sink), Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(1, text_of(1))
        eventually(lambda: sink.rows(Sample), "a row after the first writer's end")


@pytest.mark.parametrize(("batch_rows_max", "mark"), [(20_000, 32), (5, 5)])
def test_early_at_the_high_water_mark(lane_settings: Settings, batch_rows_max: int, mark: int) -> None:
    """A lane that is half full, or has as many records as a request takes, is drained before the interval is over."""
    settings = msgspec.structs.replace(lane_settings, drain_interval_ms=600_000, batch_rows_max=batch_rows_max)
    sink = HeldSink()
    lane = {Sample: 64 * layout_of(Sample).slot_bytes}
    with Producer([Sample], settings=settings, lane_bytes=lane) as producer, writing(settings, sink):
        eventually(lambda: open_board(producer.instance).beat_us, "the first tick, which comes at once")
        for number in range(mark):
            assert sink.sent == []
            assert producer.appender(Sample).append(number, text_of(number))
        eventually(lambda: len(sink.rows(Sample)) == mark, "an early drain")


def test_slow_writes_stretch_the_interval(lane_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Writes that keep taking longer than the interval double it, up to 1 s, and warn; quick ones bring it back."""
    caplog.set_level("INFO")
    writer = Writer(lane_settings, MemorySink())

    def interval_after(write_seconds: float) -> float:
        writer.statistics.slowest_write_seconds = write_seconds
        writer._adapt()
        return writer._interval

    assert [interval_after(0.15) for _ in range(3)] == [0.1, 0.1, 0.2]  # one slow write is none that keeps being slow
    assert caplog.text.count("write took 150 ms") == 3
    assert [interval_after(5.0) for _ in range(12)][2::3] == [0.4, 0.8, 1.0, 1.0]
    assert interval_after(0.3) == 1.0
    assert [interval_after(0.01) for _ in range(5)] == [0.5, 0.25, 0.125, 0.1, 0.1]
    assert "writes are quick" in caplog.text
    writer.close()


def test_the_writer_measures_itself(lane_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows/s, latencies of ticks and writes, and errors are themselves performance_metrics; no latency of 0."""
    monkeypatch.setattr("ringlog.writer.writer.METRICS_INTERVAL_SECONDS", 0.05)
    sink = HeldSink()

    def found() -> dict[tuple[str, str, int | None], float]:
        rows = sink.rows(PerformanceMetric)
        return {(row["metric_type"], row["operation"], row["percentile"]): row["value"] for row in rows}

    wanted = {("throughput", "writer.rows", None), ("throughput", "writer.batch_rows", 50)}
    wanted |= {("error_rate", "writer.write", None)}
    wanted |= {("latency", f"writer.{part}", percent) for part in ("tick", "write") for percent in (50, 95, 99)}
    with Producer([Sample], settings=lane_settings) as producer, writing(lane_settings, sink):
        for number in range(100):
            assert producer.appender(Sample).append(number, text_of(number))
        eventually(lambda: found().keys() == wanted, "every metric")
    assert all(row["value"] > 0 for row in sink.rows(PerformanceMetric) if row["metric_type"] == "latency")


def test_stop_delivers_what_was_accepted(lane_settings: Settings) -> None:
    """A stop drains first: all that was accepted before it is stored when run() returns."""
    settings = msgspec.structs.replace(lane_settings, drain_interval_ms=600_000, stop_timeout_ms=60_000)
    sink = HeldSink()
    with Producer([Sample], settings=settings) as producer:
        appender = producer.appender(Sample)
        with writing(settings, sink):
            accepted = sum(appender.append(number, text_of(number)) for number in range(500))
        assert len(sink.rows(Sample)) == accepted == 500


def run_interrupted(writer: Writer, line: int) -> int:
    """Runs the writer in this thread; stops it as a signal's handler would, at the `line`th line of Python after the
    work of its first turn, whatever it calls there. How many lines there were."""
    lines = -1

    def traced(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal lines
        if lines < 0 and event == "return" and frame.f_code.co_name == "_guard":  # then the loop pauses
            lines = 0
        elif lines >= 0 and event == "line":
            lines += 1
            if lines == line:
                writer.stop()
        return traced

    sys.settrace(traced)
    try:
        writer.run()
    finally:
        sys.settrace(None)
    return lines


def test_a_signal_stops_the_writer_wherever_it_is(lane_settings: Settings) -> None:
    """A handler that stops the writer returns at once and the writer ends, whichever line of its pause it
    interrupts: a lock that the line holds, which the handler would wait for, is held for good."""
    settings = msgspec.structs.replace(lane_settings, drain_interval_ms=600_000)
    for line in range(1, 80):
        assert run_interrupted(Writer(settings, MemorySink()), line) >= line


def test_killed_producers_lose_nothing(lane_settings: Settings, tmp_path: Path) -> None:
    """Producers killed with -9 while they append: accepted ⊆ stored ⊆ attempted, payloads equal, keys unique."""
    sink = HeldSink()
    logs = tmp_path / "logs"
    logs.mkdir()
    with writing(lane_settings, sink):
        for producer in range(1, 5):
            before = len(sink.rows(Sample))
            with child(lane_settings, produce(logs, producer)) as process:
                assert process.line() == "go"
                eventually(lambda seen=before: len(sink.rows(Sample)) > seen + 300, "rows")  # type: ignore[misc]
                process.kill()
        drained = Drained(lane_settings)
        eventually(lambda: not drained.cards(), "the lanes to be removed")
        oracle = Oracle(logs)  # a lane may be over while its last records are still in the spool
        eventually(lambda: oracle.accepted <= {row["number"] for row in sink.rows(Sample)}, "all rows")
    verdict = oracle.judge((row["number"], row["text"], row["lane"], row["seq"]) for row in sink.rows(Sample))
    assert verdict.holds, verdict
    assert verdict.accepted > 1000


def test_a_replay_waits_for_no_tick(lane_settings: Settings) -> None:
    """What is in the spool goes out one request after another, however far apart the drains of the lanes are."""
    sink = HeldSink()
    sink.available = False
    spooling = msgspec.structs.replace(lane_settings, batch_rows_max=50, drain_interval_ms=5)
    with Producer([Sample], settings=spooling) as producer, writing(spooling, sink) as writer:
        accepted = [number for number in range(2000) if producer.appender(Sample).append(number, text_of(number))]
        eventually(lambda: writer._refuge.spooled_rows == len(accepted), "the spool")
    sink = HeldSink()
    with writing(msgspec.structs.replace(spooling, drain_interval_ms=3_600_000), sink) as writer:
        eventually(lambda: len(sink.rows(Sample)) == len(accepted), "all rows")
        assert len(writer.statistics.tick_ms) == 1
        assert len(sink.sent) >= len(accepted) // 50
    assert [row["number"] for row in sink.rows(Sample)] == accepted


def test_unavailable_is_an_error_of_ringlog() -> None:
    """What the memory sink raises while it is unavailable is what a server's outage raises."""
    sink = MemorySink()
    sink.available = False
    with pytest.raises(ServerUnavailable):
        sink.confirm([])
