"""One producer process to one consumer process that obtains usable columns: trades/s.

Each contender is a function from a number of trades to seconds, from the first record until the consumer holds the last
one as columns; the consumer checks that each arrived, in order.

    python -m bench.transfer [--json] [--tiny]
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures import Figure, Result, interleaved, main
from bench.stack import wait_for
from bench.trades import trades
from ringlog import Producer
from ringlog.decode import Decoder
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory, remove_instance
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROUNDS = 5
BATCH_ROWS = 2048  # slots and columns of a batch stay in the processor's cache


def _produce(runtime_dir: str, count: int, is_started: Any, is_over: Any) -> None:
    records = trades(1000)
    with Producer([Trade], settings=Settings(runtime_dir=runtime_dir)) as producer:
        append = producer.appender(Trade).append
        is_started.wait()
        for at in range(0, count, len(records)):
            for a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q in records[: count - at]:  # noqa: E741
                while not append(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):
                    time.sleep(0)
        is_over.wait()


def ringlog(count: int) -> float:
    """append() of 17 fields, stamped, into a lane; the consumer decodes columns as the writer does."""
    context = multiprocessing.get_context("spawn")
    is_started, is_over = context.Event(), context.Event()
    with tempfile.TemporaryDirectory(prefix="ringlog-bench-") as directory:
        settings = Settings(runtime_dir=str(Path(directory) / "run"))
        instance = Instance(settings).open()
        process = context.Process(target=_produce, args=(settings.runtime_dir, count, is_started, is_over))
        process.start()
        lanes = LaneDirectory(instance)
        wait_for(lambda: lanes.refresh() or lanes.lanes, "lane")
        (lane,) = lanes.lanes.values()
        decoder = Decoder(layout_of(Trade))
        is_started.set()
        began = time.perf_counter()
        rows = 0
        while rows < count:
            runs = lane.take(BATCH_ROWS)
            if not runs:
                continue
            columns, _, corrupt = decoder.decode(runs)
            seq = columns["seq"]
            assert isinstance(seq, np.ndarray)
            if corrupt or seq[0] != rows or seq[-1] != rows + len(seq) - 1:
                raise RuntimeError(f"got rows {seq[0]} to {seq[-1]} and {len(corrupt)} corrupt, wanted row {rows} on")
            rows += len(seq)
            lane.advance(rows)
        seconds = time.perf_counter() - began
        is_over.set()
        process.join()
        lanes.close()
        remove_instance(instance)
    return seconds


CONTENDERS = {"ringlog": ringlog}


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:  # noqa: ARG001 (no server needed)
    count = 20_000 if tiny else 2_000_000
    calls = {name: lambda contender=contender: count / contender(count) for name, contender in CONTENDERS.items()}
    found = interleaved(calls, 1 if tiny else ROUNDS)
    figures = [
        Figure(
            name=f"{name}, one producer to one consumer",
            value=statistics.median(values),
            unit="trades/s",
            at_least=2_400_000 if name == "ringlog" else None,
        )
        for name, values in found.items()
    ]
    return Result(
        benchmark="transfer",
        what="One process to another, until columns can be used",
        figures=figures,
        details=dict(found),
    )


if __name__ == "__main__":
    main(run)
