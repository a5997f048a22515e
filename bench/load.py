"""Producer processes: trades as fast as they go, or at a rate; and the rate that a machine really reached."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.stack import TIMEOUT_SECONDS, lanes
from bench.trades import trades
from ringlog import Producer
from ringlog.lanes.views import LaneView
from ringlog.records import LatencySample, Record, Trade
from ringlog.settings import Settings

CHUNK_SECONDS = 0.005
REACHED = 0.95  # of what was asked for: a load below it is not the one that a figure is named by


class Reached(NamedTuple):
    """What went through lanes in some seconds: records accepted, given back by the writer, and refused."""

    seconds: float
    accepted: int
    written: int
    refused: int

    @property
    def accepted_per_second(self) -> float:
        return self.accepted / self.seconds

    @property
    def written_per_second(self) -> float:
        return self.written / self.seconds

    @classmethod
    def together(cls, spans: Sequence[Reached]) -> Reached:
        return cls(*map(sum, zip(*spans, strict=True)))


class Flow:
    """The records that go through lanes: what a load was, whatever was asked of its producers."""

    def __init__(self, views: Sequence[LaneView], pids: Sequence[int] = ()) -> None:
        """`pids` are those of the producers, for who wants to know them."""
        self._views, self.pids = views, pids
        self.begin()

    def _look(self) -> Reached:
        return Reached(
            time.monotonic(),
            sum(view.head for view in self._views),
            sum(view.tail for view in self._views),
            sum(sum(view.refused) for view in self._views),
        )

    def begin(self) -> None:
        """From now on."""
        self._began = self._look()

    def reached(self) -> Reached:
        """Since it began."""
        return Reached(*(now - then for now, then in zip(self._look(), self._began, strict=True)))


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
def beside(settings: Settings, rates: Mapping[str, float], processes: int = 1) -> Iterator[Flow]:
    """Producers that append at `rates` each while the body runs; gives the flow through all lanes there are then."""
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
            if not is_ready.acquire(timeout=TIMEOUT_SECONDS):
                raise RuntimeError(f"got a producer that is not ready within {TIMEOUT_SECONDS:.0f} s")
        with contextlib.ExitStack() as held:
            yield Flow(lanes(settings, held), [producer.pid for producer in producers if producer.pid])
    finally:
        is_stopped.set()
        for producer in producers:
            producer.join()
