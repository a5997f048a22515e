"""A platform's ordinary load: 10,000 records/s of trades and latencies from four producers, as `ringlog demo` runs it.

How soon a query sees a record, how regular the writer's ticks are, how long a write takes, and what memory lanes and
batches take with sixteen producers.

    python -m bench.freshness [--json] [--tiny]
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from bench.figures import Figure, Result, main, percentiles
from bench.load import REACHED, beside
from bench.stack import instance, lane_bytes, private_bytes, server, wait_for, writer_status
from bench.trades import slots, stamped
from ringlog.decode import Decoder, Slots
from ringlog.demo.options import Options
from ringlog.demo.session import run_session
from ringlog.demo.view import View
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.sinks import Batch, Span

RATE = 10_000
WRITE_ROWS = 1_000
MEMORY_PRODUCERS = 16


def demo(producers: int, seconds: float) -> dict[str, Any]:
    """What the demo reports of a generated market at RATE."""
    options = Options(producers=producers, rate=RATE, seconds=seconds)
    with View(quiet=True) as view:
        report = run_session(options, view)
    if report.error:
        raise RuntimeError(report.error)
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def writes(questdb: QuestDBServer, count: int) -> dict[str, float]:
    """Percentiles in ms of writing WRITE_ROWS trades: columns to the acknowledgement that they are in the log."""
    layout = layout_of(Trade)
    sink = QuestdbSink(Settings(**questdb.settings()))
    decoder = Decoder(layout)
    array = slots(WRITE_ROWS)
    times = []
    for number in range(count + 10):
        first = number * WRITE_ROWS
        part = stamped(array, time.time_ns() // 1000)
        part["seq"] = range(first, first + WRITE_ROWS)
        runs = [Slots(1, first, WRITE_ROWS, part.view("u1"))]
        began = time.perf_counter()
        columns, _, _ = decoder.decode(runs)
        request = sink.encode(Batch(layout, (Span(1, first, WRITE_ROWS),), WRITE_ROWS, columns))
        receipt = sink.send(request)
        times.append((time.perf_counter() - began) * 1e3)
        sink.release(request)
        wait_for(lambda receipt=receipt: all(sink.confirm([receipt])), "confirmation")
    sink.close()
    return percentiles(times[10:])  # the first ones open connections and check the table


def memory(questdb: QuestDBServer, producers: int, seconds: float) -> dict[str, int]:
    """Bytes of all lanes of so many producers, and by how much the writer's own memory grows while it drains them."""
    with instance(questdb) as settings:
        pid = writer_status(settings)["pid"]
        before = most = private_bytes(pid)
        share = RATE / 2 / producers
        with beside(settings, {"Trade": share, "LatencySample": share}, producers):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                most = max(most, private_bytes(pid))
                time.sleep(0.05)
            lanes = lane_bytes(settings)
    return {"lane_bytes": lanes, "writer_growth_bytes": most - before, "writer_start_bytes": before}


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    found = demo(*((1, 2.0) if tiny else (4, 30.0)))
    with server(running) as questdb:
        written = writes(questdb, 5 if tiny else 300)
        taken = memory(questdb, *((1, 0.2) if tiny else (MEMORY_PRODUCERS, 15.0)))
    megabytes = (taken["lane_bytes"] + taken["writer_growth_bytes"]) / 1e6
    figures = [
        Figure(name="records appended", value=found["records_per_second"], unit="records/s", at_least=REACHED * RATE),
        Figure(name="append to visible in a query, p50", value=found["freshness_ms"]["p50"], unit="ms"),
        Figure(name="append to visible in a query, p99", value=found["freshness_ms"]["p99"], unit="ms", at_most=400),
        Figure(name="tick p99", value=found["tick_ms"]["p99"], unit="ms", at_least=80, at_most=120),
        Figure(name="refused", value=found["refused"], at_most=0),
        Figure(name="lost or duplicated", value=found["lost"] + found["duplicated"], at_most=0),
        Figure(name=f"{WRITE_ROWS:,} records written, p50", value=written["p50"], unit="ms"),
        Figure(name=f"{WRITE_ROWS:,} records written, p99", value=written["p99"], unit="ms", at_most=50),
        Figure(name=f"lanes and batches, {MEMORY_PRODUCERS} producers", value=megabytes, unit="MB", at_most=100),
    ]
    return Result(
        benchmark="freshness",
        what=f"{RATE:,} records/s from four producers",
        figures=figures,
        details={"demo": found, "write_ms": written, "memory": taken},
    )


if __name__ == "__main__":
    main(run)
