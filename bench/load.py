"""Producer processes: trades as fast as they go, or at a rate."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from typing import Any

from bench.trades import trades
from ringlog import Producer
from ringlog.records import LatencySample, Record, Trade
from ringlog.settings import Settings

CHUNK_SECONDS = 0.005


def append_all(
    runtime_dir: str, count: int, seed: int, options: Mapping[str, Any], is_ready: Any, is_started: Any
) -> None:
    """Appends `count` trades one by one, waiting where the lane is full."""
    records = trades(1000, seed)
    with Producer([Trade], settings=Settings(runtime_dir=runtime_dir), **options) as producer:
        append = producer.appender(Trade).append
        is_ready.release()
        is_started.wait()
        for at in range(0, count, len(records)):
            for record in records[: count - at]:
                while not append(*record):
                    time.sleep(0.01)


def append_paced(runtime_dir: str, rates: Mapping[str, float], is_ready: Any, is_stopped: Any) -> None:
    """Appends at `rates` (records/s by record type's name) one by one, a few every few milliseconds, until stopped.

    Not as arrays: `append_many` looks at each field of an array with numpy, which for a few rows takes longer
    than a thousand appends, and what is measured beside this load would share its processor with that.
    """
    latencies = [("executor", "quote", 50.0 + number % 37) for number in range(1000)]
    kinds: dict[str, tuple[type[Record], list[Any]]] = {
        "Trade": (Trade, trades(1000)),
        "LatencySample": (LatencySample, latencies),
    }
    with Producer([kinds[name][0] for name in rates], settings=Settings(runtime_dir=runtime_dir)) as producer:
        appends = {name: producer.appender(kinds[name][0]).append for name in rates}
        done = dict.fromkeys(rates, 0)
        is_ready.release()
        began = time.monotonic()
        while not is_stopped.is_set():
            elapsed = time.monotonic() - began
            for name, rate in rates.items():
                append, records = appends[name], kinds[name][1]
                due = min(int(rate * elapsed), done[name] + len(records))
                for number in range(done[name], due):
                    append(*records[number % len(records)])
                done[name] = max(due, done[name])
            time.sleep(CHUNK_SECONDS)


@contextlib.contextmanager
def beside(settings: Settings, rates: Mapping[str, float], processes: int = 1) -> Iterator[None]:
    """Producers that append at `rates` each while the body runs."""
    context = multiprocessing.get_context("spawn")
    is_ready, is_stopped = context.Semaphore(0), context.Event()
    producers = [
        context.Process(target=append_paced, args=(settings.runtime_dir, rates, is_ready, is_stopped))
        for _ in range(processes)
    ]
    for producer in producers:
        producer.start()
    try:
        for _ in producers:
            is_ready.acquire()
        yield
    finally:
        is_stopped.set()
        for producer in producers:
            producer.join()
