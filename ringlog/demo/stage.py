"""One stage of the demo, the load or the paper-trading session: what both have and leave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.demo.appends import SAMPLES_MAX, Durations
from ringlog.demo.failures import Failures
from ringlog.demo.heads import Heads
from ringlog.demo.probe import Probe
from ringlog.demo.processes import Processes
from ringlog.demo.report import AppendTimes, Percentiles, WriteTimes
from ringlog.demo.results import Result
from ringlog.demo.verification import Verdict, verify
from ringlog.demo.view import View
from ringlog.errors import RinglogError
from ringlog.lanes.claims import open_board
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings

STORE_TIMEOUT_SECONDS = 60.0
INTERRUPTED_TIMEOUT_SECONDS = 5.0  # the same, once somebody wants it to end
SHOW_SECONDS = 0.1
SILENCE_SECONDS = 2.0  # a server that answers nothing for so long does not stop the view
Lanes = Mapping[str, Mapping[str, int]]


class Run(NamedTuple):
    """What the stages of one demo share. `has_ended` says whether QuestDB or the stage's writer is gone."""

    settings: Settings
    instance: Instance
    directory: Path
    view: View
    failures: Failures
    has_ended: Callable[[], bool]


class Stage(msgspec.Struct, kw_only=True):
    """What a stage measured, None where it did not come to that.

    `lanes` are the records accepted by it and all before it; `verdict` covers them.
    """

    results: list[Result]
    lanes: dict[str, dict[str, int]]
    verdict: Verdict | None
    accepted: int
    seconds: float
    append_ns: AppendTimes | None
    freshness_ms: Percentiles | None
    tick_ms: Percentiles | None
    write_ms: WriteTimes | None
    dead_letters: int
    lane_bytes: int
    writer_rss_bytes: int | None
    is_interrupted: bool


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
        self._before = before
        self._began: float | None = None
        self._is_whole = True
        self._is_interrupted = False

    @contextlib.contextmanager
    def running(self, processes: Processes, failures: Failures, part: str) -> Iterator[None]:
        """The stage's work. Where it fails or is interrupted all its processes are ended; what they accepted is judged
        all the same."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, records were accepted
            with contextlib.suppress(RinglogError, OSError):
                self.heads.read()  # before the writer removes the lanes of those that are gone
            self._is_whole = False
            self._is_interrupted = isinstance(error, KeyboardInterrupt)
            if not self._is_interrupted:
                failures.add(part, error)
            processes.end()

    @property
    def is_interrupted(self) -> bool:
        return self._is_interrupted

    @property
    def is_whole(self) -> bool:
        """Whether nothing has failed so far."""
        return self._is_whole

    def begin(self, processes: Processes) -> None:
        """The timed part, for which every process is ready."""
        self.heads.read()
        self._began = time.monotonic()
        processes.is_started.set()
        self.attach()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began if self._began is not None else 0.0

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
        latest = self._appends_ns(1_000)
        return {
            "appended": accepted,
            "stored": stored,
            "lag": accepted - stored,
            "refused": refused,
            "append p50 ns": int(rank(latest, 50)),
            "append p99 ns": int(rank(latest, 99)),
        }

    def stage(self, run: Run, processes: Processes, results: list[Result]) -> Stage:
        """Waits until all that was accepted is stored, and says what was measured; the writer still runs.

        What a process that failed accepted is read from its lanes.
        """
        for name, code in processes.failed().items():
            self._is_whole = False
            run.failures.add(name, f"got exit status {code}, wanted 0; the error is on stderr")
        lanes = merged(results, self._before)
        if not self._is_whole:
            for table, counts in self.heads.by_lane().items():
                lanes[table] = {**counts, **lanes.get(table, {})}
        verdict = self._verified(run, lanes)
        seconds = self.elapsed
        freshness = self.probe.freshness_ms(_samples(self.results))
        times, status = self._appends_ns(), _writer_status(self.instance)
        before = sum(sum(counts.values()) for counts in self._before.values())
        return Stage(
            results=results,
            lanes=lanes,
            verdict=verdict,
            accepted=sum(sum(counts.values()) for counts in lanes.values()) - before,
            seconds=seconds,
            append_ns=AppendTimes(*(int(rank(times, at)) for at in (50, 99, 99.9, 100))) if len(times) else None,
            freshness_ms=Percentiles(rank(freshness, 50), rank(freshness, 99)) if freshness else None,
            tick_ms=msgspec.convert(status["tick_ms"], Percentiles) if "tick_ms" in status else None,
            write_ms=msgspec.convert(status["write_ms"], WriteTimes) if "write_ms" in status else None,
            dead_letters=status.get("dead_letters", 0),
            lane_bytes=self.heads.lane_bytes,
            writer_rss_bytes=status.get("rss_bytes"),
            is_interrupted=self._is_interrupted,
        )

    def _verified(self, run: Run, lanes: Lanes) -> Verdict | None:
        timeout = INTERRUPTED_TIMEOUT_SECONDS if self._is_interrupted else STORE_TIMEOUT_SECONDS
        with run.failures.part("verification"):
            try:
                return verify(run.settings, lanes, timeout, run.has_ended)
            except KeyboardInterrupt:  # a second one in the shorter wait is the end of it
                self._is_interrupted = True
                return verify(run.settings, lanes, INTERRUPTED_TIMEOUT_SECONDS, run.has_ended)
        return None

    def _appends_ns(self, samples_max: int = SAMPLES_MAX) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, np.int64), *(each.latest(samples_max) for each in self._durations)])

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """Asks QuestDB what it can see until the end of the block."""
        self.probe.start()
        try:
            yield
        finally:
            self.probe.stop()
            self.heads.close()


def _writer_status(instance: Instance) -> dict[str, Any]:
    """What the writer last wrote on the board; nothing where it never came to that."""
    with contextlib.suppress(RinglogError, OSError, msgspec.MsgspecError):
        return dict(msgspec.json.decode(open_board(instance).read_status() or b"{}"))
    return {}


def merged(results: Iterable[Result], before: Lanes) -> dict[str, dict[str, int]]:
    """Records accepted by table and lane, those of earlier stages included."""
    found = {table: dict(lanes) for table, lanes in before.items()}
    for result in results:
        for table, lanes in result.accepted.items():
            found.setdefault(table, {}).update(lanes)
    return found


def _samples(results: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for path in sorted(results.glob("samples-*.json")):
        with contextlib.suppress(msgspec.MsgspecError):  # cut short, by a full disk say: its executor has failed
            found += msgspec.json.decode(path.read_bytes(), type=list[tuple[str, int, int, int]])
    return found


def rank(samples: Sequence[float] | NDArray[np.int64], percent: float) -> float:
    """The nearest-rank percentile; 0.0 where there are no samples."""
    return float(np.percentile(samples, percent, method="inverted_cdf")) if len(samples) else 0.0
