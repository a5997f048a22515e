"""Where the time of a trade goes: append, drain into columns, serialise, send, apply, each by itself, a record's share.

The stages of a batch come one after the other here, as the writer's threads do them: it encodes a batch on one thread
while others send the one before and ask what is applied. In its lane a record waits as well, half a drain interval on
average; that costs nobody anything, and is left out.

    python -m bench.stages [--json] [--tiny]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.figures import Cell, Figure, Result, main
from bench.stack import fresh, server, wait_for
from bench.trades import trades
from ringlog import Producer
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.sinks import Batch
from ringlog.writer.drain import Drain

ROUNDS = 30
ROWS = (100, 1_000, 8_000)  # a request; 10,000 records/s make 1,000 a tick


class Stages:
    """One lane, one drain and one sink, in one process."""

    def __init__(self, producer: Producer, instance: Instance, sink: QuestdbSink) -> None:
        self._append = producer.appender(Trade).append
        self._lanes = LaneDirectory(instance)
        self._lanes.refresh()
        (self._lane,) = self._lanes.lanes.values()
        self._drain = Drain(layout_of(Trade), max(ROWS))
        self._sink = sink
        self._records = trades(1_000)

    def append(self, rows: int) -> None:
        """As an executor does; a lane of the usual size has room for the largest batch."""
        for number in range(rows):
            if not self._append(*self._records[number % len(self._records)]):
                raise RuntimeError("got a refused append, wanted a lane with room")

    def batch(self, rows: int) -> Batch:
        """All of the lane as one batch, its slots free again."""
        taken = self._drain.take([self._lane])
        assert taken is not None
        (batch, corrupt, expired), runs = taken
        if batch.rows != rows or corrupt or expired:
            raise RuntimeError(f"got {batch.rows} rows, {len(corrupt)} corrupt, wanted {rows} sound ones")
        for run in runs:
            self._lane.advance_over(run.first_seq, run.rows)
        return batch

    def round(self, rows: int) -> dict[str, float]:
        """Microseconds a record of each stage."""
        seconds: dict[str, float] = {}

        def timed(stage: str, call: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            value = call()
            seconds[stage] = time.perf_counter() - began
            return value

        timed("append", lambda: self.append(rows))
        batch = timed("drain into columns", lambda: self.batch(rows))
        request = timed("serialise", lambda: self._sink.encode(batch))
        receipt = timed("send, until acknowledged", lambda: self._sink.send(request))
        self._sink.release(request)
        timed(
            "apply, until a query sees it",
            lambda: wait_for(lambda: all(self._sink.confirm([receipt])), "rows applied", poll_seconds=0.001),
        )
        return {stage: value / rows * 1e6 for stage, value in seconds.items()}

    def close(self) -> None:
        self._lanes.close()


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    sizes, rounds = (ROWS[:1], 2) if tiny else (ROWS, ROUNDS)
    found: dict[int, list[dict[str, float]]] = {rows: [] for rows in sizes}
    with server(running) as questdb, fresh(questdb, request_timeout_ms=30_000) as settings:
        sink = QuestdbSink(settings)
        with Producer([Trade], settings=settings) as producer:
            stages = Stages(producer, Instance(settings), sink)
            for rows in sizes:
                stages.round(rows)  # the first pays for dictionaries, tables and connections
            for _ in range(rounds):
                for rows in sizes:
                    found[rows].append(stages.round(rows))
            stages.close()
        sink.close()
    figures = []
    for rows, by_round in found.items():
        medians = {stage: statistics.median(each[stage] for each in by_round) for stage in by_round[0]}
        for stage, value in {**medians, "all": sum(medians.values())}.items():
            cell = Cell("Microseconds a record", stage, f"{rows:,} a request")
            figures.append(Figure(name=f"{stage}, {rows:,} trades a request", value=value, unit="us", cell=cell))
    return Result(
        benchmark="stages",
        what="where the time of a trade goes",
        figures=figures,
        details={str(rows): values for rows, values in found.items()},
    )


if __name__ == "__main__":
    main(run)
