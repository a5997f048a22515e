"""Producer processes that append one record after another at a rate, each append that was accepted timed."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.stack import TIMEOUT_SECONDS
from bench.trades import trades
from ringlog import Producer
from ringlog.demo.appends import SAMPLES_MAX, Durations
from ringlog.demo.executor import paced
from ringlog.demo.orphans import end_with_parent
from ringlog.records import LatencySample, MevMetric, PerformanceMetric, Position, Record, Trade
from ringlog.settings import Settings

RECORDS = 250  # that differ, of each type, again and again
TYPES: tuple[type[Record], ...] = (Trade, LatencySample, PerformanceMetric, MevMetric, Position)


class Load(msgspec.Struct, frozen=True):
    """What is appended: `rate` records/s of all producers together, of the first `types` of TYPES in turn."""

    rate: float
    producers: int = 4
    types: int = 2
    lane_bytes: int | None = None
    metadata_bytes: int | None = None  # of a trade; None: some 20


def records_of(record_type: type[Record], seed: int, metadata_bytes: int | None = None) -> list[tuple[Any, ...]]:
    """RECORDS records as tuples of the type's fields in order."""
    if record_type is Trade:
        made = trades(RECORDS, seed)
        if metadata_bytes is None:
            return made
        text = f'{{"note":"{"x" * (metadata_bytes - 11)}"}}' if metadata_bytes else None
        return [(*record[:-1], text) for record in made]
    values = [50.0 + i % 37 for i in range(RECORDS)]
    fields: dict[type[Record], Any] = {
        LatencySample: lambda value: ("executor", "quote", value),
        PerformanceMetric: lambda value: ("latency", "executor.quote", value, 99, None),
        MevMetric: lambda value: ("SOL/USDC", value, 0.25, value / 10, None, True, 5000, False),
        Position: lambda value: ("momentum-1", "paper", "SOL", value, 150.0, 151.0, value / 2, value / 3),
    }
    return [fields[record_type](value) for value in values]


def produce(load: Load, runtime_dir: str, directory: str, index: int, is_ready: Any, is_stopped: Any) -> None:
    """A producer's main: appends until stopped, and leaves the time of each accepted append in a mapped file.

    A refused one is over before a field was written: among the others it would pass for a cheap append.
    """
    end_with_parent()
    times_ns = Durations(directory, index, create=True).words
    types = TYPES[: load.types]
    sizes = dict.fromkeys(types, load.lane_bytes) if load.lane_bytes else None
    clock = time.perf_counter_ns
    with Producer(types, settings=Settings(runtime_dir=runtime_dir), lane_bytes=sizes) as producer:
        appends = [(producer.appender(kind).append, records_of(kind, index, load.metadata_bytes)) for kind in types]
        kinds, accepted = len(appends), 0
        is_ready.release()
        turn = paced(load.rate / load.producers, is_stopped)
        for number in itertools.count():
            if not turn():
                return
            append, records = appends[number % kinds]
            record = records[number // kinds % RECORDS]
            began = clock()
            is_accepted = append(*record)
            took_ns = clock() - began
            if is_accepted:
                times_ns[1 + accepted % SAMPLES_MAX] = took_ns
                times_ns[0] = accepted = accepted + 1


@contextlib.contextmanager
def producing(settings: Settings, directory: str, load: Load, method: str = "spawn") -> Iterator[list[int]]:
    """Process ids of the producers, which append while the body runs; their times are files in `directory`."""
    context: Any = multiprocessing.get_context(method)
    is_ready, is_stopped = context.Semaphore(0), context.Event()
    arguments = (load, settings.runtime_dir, directory)
    processes = [
        context.Process(target=produce, args=(*arguments, index, is_ready, is_stopped), daemon=True)
        for index in range(load.producers)
    ]
    # Ctrl-C in a terminal reaches all processes, and is for this one alone; what is ignored stays so in a child.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for _ in processes:
            if not is_ready.acquire(timeout=TIMEOUT_SECONDS):
                raise RuntimeError(f"got a producer that is not ready within {TIMEOUT_SECONDS:.0f} s")
        yield [process.pid for process in processes]
    finally:
        is_stopped.set()
        for process in processes:
            process.join()


class AppendTimes:
    """What the producers' files say, as it comes."""

    def __init__(self, directory: str, producers: int) -> None:
        self._words = [Durations(directory, index, create=False).words for index in range(producers)]
        self._seen = [0] * producers

    def latest(self) -> NDArray[np.int64]:
        """Append times (ns) since the last call."""
        found = []
        for at, words in enumerate(self._words):
            first, self._seen[at] = self._seen[at], int(words[0])
            found.append(words[1 + np.arange(first, self._seen[at]) % SAMPLES_MAX])
        return np.concatenate(found)
