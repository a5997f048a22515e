"""One stage of the demo, the load or the paper-trading session: what both have and leave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.demo.appends import Durations
from ringlog.demo.heads import Heads
from ringlog.demo.probe import Probe
from ringlog.demo.processes import Processes
from ringlog.demo.report import Percentiles, WriteTimes
from ringlog.demo.results import Result
from ringlog.demo.verification import Verdict
from ringlog.demo.view import View
from ringlog.lanes.claims import open_board
from ringlog.lanes.instance import Instance

STORE_TIMEOUT_SECONDS = 60.0
SHOW_SECONDS = 0.1
SILENCE_SECONDS = 2.0  # a server that answers nothing for so long does not stop the view
Lanes = Mapping[str, Mapping[str, int]]


class Stage(msgspec.Struct, kw_only=True):
    """What a stage measured. `lanes` are the records accepted by it and all before it; `verdict` covers them."""

    results: list[Result]
    lanes: dict[str, dict[str, int]]
    verdict: Verdict
    accepted: int
    seconds: float
    append_ns: list[int]  # p50, p99, p99.9, max
    freshness_ms: Percentiles
    tick_ms: Percentiles
    write_ms: WriteTimes
    dead_letters: int
    lane_bytes: int
    writer_rss_bytes: int


class Watched:
    """What the session sees of a stage while it runs, all of it without the executors noticing.

    `before` are the lanes of earlier stages: their records are no part of this one's.
    """

    def __init__(
        self, probe: Probe, instance: Instance, results: Path, executors: int, view: View, before: Lanes
    ) -> None:
        self.instance = instance
        self.results = results
        self.probe = probe
        self.heads = Heads(instance, frozenset(int(lane, 16) for of_table in before.values() for lane in of_table))
        self._view = view
        self._executors = executors
        self._durations: list[Durations] = []

    def attach(self) -> None:
        """Once every executor has made its file."""
        self._durations = [Durations(str(self.results), i, create=False) for i in range(self._executors)]

    def follow(self, processes: Processes, trading: Sequence[Any], done: Callable[[int], float]) -> None:
        """Draws the live view until all of `trading` have ended. Raises RinglogError where any process fails.

        A row is of the moment at which QuestDB has answered: older answers would make a lag of their age. `done` of the
        records accepted so far is between 0 and 1.
        """
        shown = 0.0
        while alive := [process for process in trading if process.is_alive()]:
            processes.check()
            if self.probe.wait(SHOW_SECONDS) or time.monotonic() - shown > SILENCE_SECONDS:
                shown = time.monotonic()
                figures = self.figures()
                self._view.update(min(done(figures["appended"]), 1.0), figures)
                alive[0].join(SHOW_SECONDS)
        processes.check()
        self._view.begin("checking")

    def figures(self) -> dict[str, int]:
        """The live view's row: this stage's records in all its tables, and the latest 1,000 appends of each executor.

        `stored` is what QuestDB's latest answers counted, `lag` what was appended and is not among it.
        """
        rows = self.probe.stored()  # before the heads: none is stored that they do not know
        accepted, refused = self.heads.read()
        stored = sum(count for lane, count in rows.items() if lane in self.heads)
        latest = np.concatenate([each.latest(1_000) for each in self._durations])
        return {
            "appended": accepted,
            "stored": stored,
            "lag": accepted - stored,
            "refused": refused,
            "append p50 ns": int(rank(latest, 50)),
            "append p99 ns": int(rank(latest, 99)),
        }

    def measured(self, results: list[Result], lanes: Lanes, verdict: Verdict, seconds: float) -> Stage:
        """The stage's figures, after its last record is stored and while its writer still runs."""
        times = np.concatenate([each.latest() for each in self._durations])
        freshness = self.probe.freshness_ms(_samples(self.results))
        status = msgspec.json.decode(open_board(self.instance).read_status() or b"{}")
        return Stage(
            results=results,
            lanes={table: dict(of_table) for table, of_table in lanes.items()},
            verdict=verdict,
            accepted=sum(sum(of_table.values()) for result in results for of_table in result.accepted.values()),
            seconds=seconds,
            append_ns=[int(rank(times, percent)) for percent in (50, 99, 99.9, 100)],
            freshness_ms=Percentiles(rank(freshness, 50), rank(freshness, 99)),
            tick_ms=msgspec.convert(status.get("tick_ms", {}), Percentiles),
            write_ms=msgspec.convert(status.get("write_ms", {}), WriteTimes),
            dead_letters=status.get("dead_letters", 0),
            lane_bytes=self.heads.lane_bytes,
            writer_rss_bytes=status.get("rss_bytes", 0),
        )

    @contextlib.contextmanager
    def probing(self) -> Iterator[float]:
        """Asks QuestDB what it can see until the end of the block; gives the time at which that began."""
        self.probe.start()
        try:
            yield time.monotonic()
        finally:
            self.probe.stop()
            self.heads.close()


def merged(results: Iterable[Result], before: Lanes) -> dict[str, dict[str, int]]:
    """Records accepted by table and lane, those of earlier stages included."""
    found = {table: dict(lanes) for table, lanes in before.items()}
    for result in results:
        for table, lanes in result.accepted.items():
            found.setdefault(table, {}).update(lanes)
    return found


def _samples(results: Path) -> list[tuple[str, int, int, int]]:
    return [
        sample
        for path in sorted(results.glob("samples-*.json"))
        for sample in msgspec.json.decode(path.read_bytes(), type=list[tuple[str, int, int, int]])
    ]


def rank(samples: Sequence[float] | NDArray[np.int64], percent: float) -> float:
    """The nearest-rank percentile; 0.0 where there are no samples."""
    return float(np.percentile(samples, percent, method="inverted_cdf")) if len(samples) else 0.0
