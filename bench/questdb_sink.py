"""What the QuestDB sink costs: encoding a batch, the questions it asks of the server, a write with and without them.

The beaten design stays here to be compared with: the client given a frame of Python strings, as most programs do.

    python -m bench.questdb_sink [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.figures import Figure, Result, interleaved, main, median_ratio
from bench.stack import server, wait_for
from bench.trades import slots, stamped
from ringlog.columns import SymbolColumn, TextColumn, to_list
from ringlog.decode import Decoder, Slots
from ringlog.questdb import tables
from ringlog.questdb.frame import FrameBuilder
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import TIMESTAMP, Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.sinks import Batch, Span

ROUNDS = 5
ROWS = (1_000, 10_000, 20_000)


def batch(decoder: Decoder, rows: int, first_seq: int) -> Batch:
    """A batch as a drain hands it on."""
    array = stamped(slots(rows), time.time_ns() // 1000)
    array["seq"] = range(first_seq, first_seq + rows)
    columns, _, _ = decoder.decode([Slots(1, first_seq, rows, array.view("u1"))])
    return Batch(layout_of(Trade), (Span(1, first_seq, rows),), rows, columns)


def python_frame(of: Batch) -> pd.DataFrame:
    """The batch as a frame of Python strings."""
    arrays: dict[str, Any] = {}
    for name, column in of.columns.items():
        if isinstance(column, SymbolColumn):
            arrays[name] = pd.Categorical(to_list(column))
        elif isinstance(column, TextColumn):
            arrays[name] = pd.Series(to_list(column), dtype=object)
        else:
            arrays[name] = column.view("datetime64[us]") if name == TIMESTAMP else column
    return pd.DataFrame(arrays)


def seconds_of(call: Callable[[], object], times: int) -> float:
    """The median over `times` calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def encoding(sink: QuestdbSink, rows: int, rounds: int, times: int) -> dict[str, list[float]]:
    """ns a row of each way to encode, a value a round."""
    one = batch(Decoder(layout_of(Trade)), rows, 0)
    builder = FrameBuilder()
    memory = sink.encode(one).body

    def from_python() -> None:
        memory.clear()
        memory.dataframe(python_frame(one), table_name="trades", symbols="auto", at=TIMESTAMP)

    def ours() -> None:
        sink.release(sink.encode(one))

    def nanoseconds(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds_of(call, times) / rows * 1e9

    ways = {"sink": nanoseconds(ours), "python strings": nanoseconds(from_python)}
    return interleaved({**ways, "frame alone": nanoseconds(lambda: builder.frame(one))}, rounds)


def questions(sink: QuestdbSink, times: int) -> dict[str, float]:
    """ms of each question the sink asks: all tables' status (each write, each confirmation), and a full check."""
    layout = layout_of(Trade)
    status = tables.statuses(sink.connection)[layout.table]
    asked = {
        "status of all tables": lambda: tables.statuses(sink.connection),
        "schema changes since": lambda: tables.altered_between(sink.connection, layout.table, 0, status.sequenced),
        "full check of a table": lambda: tables.verify(sink.connection, layout),
    }
    return {name: seconds_of(call, times) * 1e3 for name, call in asked.items()}


def writes(sink: QuestdbSink, rows: int, rounds: int, times: int) -> dict[str, list[float]]:
    """ms from columns to a receipt, against the client's flush of the same rows with no question asked."""
    decoder = Decoder(layout_of(Trade))
    sent = iter(range(10**9))

    def ours() -> float:
        one = batch(decoder, rows, rows * next(sent))
        began = time.perf_counter()
        request = sink.encode(one)
        receipt = sink.send(request)
        seconds = time.perf_counter() - began
        sink.release(request)
        wait_for(lambda: all(sink.confirm([receipt])), "confirmation", 0.002)
        return seconds * 1e3

    def unchecked() -> float:
        one = batch(decoder, rows, rows * next(sent))
        began = time.perf_counter()
        request = sink.encode(one)
        sink._sender.flush(request.body, clear=False)
        seconds = time.perf_counter() - began
        sink.release(request)
        wait_for(lambda: _is_all_applied(sink), "rows applied", 0.002)
        return seconds * 1e3

    ways = {"sink": ours, "unchecked": unchecked}
    return interleaved(
        {name: lambda way=way: statistics.median(way() for _ in range(times)) for name, way in ways.items()}, rounds
    )


def _is_all_applied(sink: QuestdbSink) -> bool:
    status = tables.statuses(sink.connection)["trades"]
    return status.applied == status.sequenced


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    rounds, times = (1, 1) if tiny else (ROUNDS, 10)
    with contextlib.ExitStack() as stack:
        questdb = stack.enter_context(server(running))
        settings = Settings(**questdb.settings(), request_timeout_ms=60_000)
        sink = stack.enter_context(contextlib.closing(QuestdbSink(settings)))
        sink.verify(layout_of(Trade))
        encoded = {rows: encoding(sink, rows, rounds, times) for rows in ROWS[: 1 if tiny else None]}
        written = writes(sink, 1_000, rounds, times)
        asked = questions(sink, 5 if tiny else 200)
    figures = [
        Figure(name=f"encode {rows:,} trades: {way}", value=statistics.median(values), unit="ns a row")
        for rows, ways in encoded.items()
        for way, values in ways.items()
    ]
    figures += [
        Figure(
            name=f"encode {rows:,} trades: sink / python strings",
            value=median_ratio(ways, "sink", "python strings"),
            unit="x",
            at_most=0.8 if rows >= 10_000 else None,
        )
        for rows, ways in encoded.items()
    ]
    figures += [Figure(name=f"ask: {name}", value=value, unit="ms") for name, value in asked.items()]
    figures += [
        Figure(
            name="write 1,000 trades: columns to receipt",
            value=statistics.median(written["sink"]),
            unit="ms",
            at_most=50,
        ),
        Figure(
            name="write 1,000 trades: checked / unchecked", value=median_ratio(written, "sink", "unchecked"), unit="x"
        ),
    ]
    return Result(benchmark="questdb_sink", what="What the QuestDB sink costs", figures=figures)


if __name__ == "__main__":
    main(run)
