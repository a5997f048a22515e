"""Producer processes: trades as fast as they go, or at a rate."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from typing import Any

from bench.trades import slots, trades
from ringlog import Producer
from ringlog.arrays import rows_of
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
                    time.sleep(0.001)


def append_paced(runtime_dir: str, rates: Mapping[str, float], is_ready: Any, is_stopped: Any) -> None:
    """Appends at `rates` (records/s by record type's name), a small array every few milliseconds, until stopped."""
    arrays = {"Trade": slots(1000), "LatencySample": latency_slots(1000)}
    types: dict[str, type[Record]] = {"Trade": Trade, "LatencySample": LatencySample}
    with Producer([types[name] for name in rates], settings=Settings(runtime_dir=runtime_dir)) as producer:
        appenders = {name: producer.appender(types[name]) for name in rates}
        done = dict.fromkeys(rates, 0)
        is_ready.release()
        began = time.monotonic()
        while not is_stopped.is_set():
            elapsed = time.monotonic() - began
            for name, rate in rates.items():
                rows = min(int(rate * elapsed) - done[name], 1000)
                if rows > 0:
                    part = arrays[name][:rows]
                    part["timestamp"] = time.time_ns() // 1000
                    appenders[name].append_many(part)
                    done[name] += rows
            time.sleep(CHUNK_SECONDS)


def latency_slots(count: int) -> Any:
    names = {"service": ["executor"] * count, "operation": ["quote"] * count}
    return rows_of(LatencySample, {**names, "latency_us": [50.0 + i % 37 for i in range(count)]})


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
