"""A session of the demo: a real server, a writer process, executors, and the check at the end."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.demo.appends import Durations
from ringlog.demo.executor import Orders, Result, run
from ringlog.demo.feed import Survey, survey
from ringlog.demo.probe import Probe
from ringlog.demo.report import AppendTimes, Percentiles, Report, WriteTimes
from ringlog.demo.verification import Verdict, verify
from ringlog.demo.view import View
from ringlog.demo.writer_process import running_writer
from ringlog.errors import RinglogError
from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader, remove_instance
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.ring import IMPLEMENTATION
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

STORE_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0


class Options(msgspec.Struct, kw_only=True):
    """What the command line asks for. `rate` is records/s of all executors together, 0 for as fast as they can."""

    recording: Path | None = None
    producers: int = 4
    rate: float = 10_000.0
    seconds: float = 10.0
    speed: float = 30.0
    seed: int = 1
    keep: Path | None = None


def run_session(options: Options, view: View) -> tuple[Report, Settings]:
    """Runs the demo once. Raises RinglogError where a part cannot run; leaves no process and no segment behind."""
    found = survey(options.recording) if options.recording else None
    if found and options.recording:
        view.note(_surveyed(options.recording.name, found))
        for line, reason in found.first_broken:
            view.note(f"{options.recording.name} line {line}: {reason}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        directory = _directory(options.keep, stack)
        view.note("starting QuestDB ...")
        server = stack.enter_context(QuestDBServer(directory / "questdb" if options.keep else None))
        # A recording keeps the times it was made at, however long ago: nothing here is too old.
        settings = Settings(runtime_dir=str(directory / "run"), retention_days=0, **server.settings())
        instance = Instance(settings).open()
        stack.callback(_clean, instance)
        migrate(settings, [layout_of(record) for record in PLATFORM_RECORDS])
        stack.enter_context(running_writer(settings, directory / "writer.log"))
        return _trade(options, found, settings, instance, directory, view), settings


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A hang-up or SIGTERM ends the session as Ctrl-C does: in order, with nothing left behind."""
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _surveyed(name: str, found: Survey) -> str:
    counts = f"{found.messages:,} messages over {found.seconds:.0f} s, {found.trades:,} trades"
    offset = f"clock offset {found.clock_offset_us / 1e6:+.3f} s removed, so what is stored as latency is jitter"
    return f"{name}: {counts}, {found.timed:,} with an event time; {offset}"


def _directory(keep: Path | None, stack: contextlib.ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringlog-demo-")))
    keep.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any((keep / name).exists() for name in ("run", "questdb")):
        raise RinglogError(f"--keep {keep}: got a directory with a demo's data in it, wanted an empty one")
    return keep.absolute()


def _clean(instance: Instance) -> None:
    with contextlib.suppress(RinglogError):
        remove_instance(instance)


class _Heads:
    """Accepted and refused records, read from the lanes themselves: what the executors do costs them nothing more."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._readers: dict[int, LaneReader] = {}
        self.lane_bytes = 0

    def read(self) -> tuple[int, int]:
        for card in cards(self._instance):
            if card.lane not in self._readers:
                with contextlib.suppress(RinglogError, FileNotFoundError):
                    self._readers[card.lane] = LaneReader.attach(card)
        self.lane_bytes = max(self.lane_bytes, sum(card.size_bytes for card in cards(self._instance)))
        readers = self._readers.values()
        return sum(reader.head for reader in readers), sum(sum(reader.refused) for reader in readers)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _trade(
    options: Options, found: Survey | None, settings: Settings, instance: Instance, directory: Path, view: View
) -> Report:
    context = multiprocessing.get_context("spawn")
    is_started, is_stopped = context.Event(), context.Event()
    results = directory / "results"
    results.mkdir(mode=0o700)
    processes = [
        context.Process(target=run, args=(_orders(options, found, settings, results, i), is_started, is_stopped))
        for i in range(options.producers)
    ]
    probe, heads = Probe(settings), _Heads(instance)
    try:
        for process in processes:
            process.start()
        _wait_for_lanes(instance, 2 * options.producers, processes)
        probe.start()
        began = time.monotonic()
        is_started.set()
        durations = [Durations(str(results), i, create=False) for i in range(options.producers)]
        _watch(options, found, processes, probe, heads, durations, view)
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            raise RinglogError(f"executors: got exit statuses {failed}, wanted 0")
        outcome = [
            msgspec.json.decode(path.read_bytes(), type=Result) for path in sorted(results.glob("result-*.json"))
        ]
        verdict = verify(settings, _merged(outcome), STORE_TIMEOUT_SECONDS)
        seconds = time.monotonic() - began
    finally:
        is_stopped.set()
        is_started.set()
        for process in processes:
            if process.pid is not None:
                process.join(STOP_TIMEOUT_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()
        if probe.is_running:
            probe.stop()
        heads.close()
    times = np.concatenate([each.latest() for each in durations])
    return _report(options, found, instance, results, outcome, verdict, probe, times, heads.lane_bytes, seconds)


def _orders(options: Options, found: Survey | None, settings: Settings, results: Path, index: int) -> Orders:
    return Orders(
        index=index,
        executors=options.producers,
        runtime_dir=settings.runtime_dir,
        result_dir=str(results),
        temporary_dir="" if options.keep else str(results.parent),
        rate=options.rate / options.producers,
        seconds=options.seconds,
        seed=options.seed,
        recording=str(options.recording or ""),
        speed=0.0 if options.rate else options.speed,
        clock_offset_us=found.clock_offset_us if found else 0,
        first_us=found.first_us if found else 0,
    )


def _wait_for_lanes(instance: Instance, wanted: int, processes: Sequence[BaseProcess]) -> None:
    while len(cards(instance)) < wanted:
        if any(process.exitcode is not None for process in processes):
            raise RinglogError("executors: one ended before it had claimed its lanes; its error is above")
        time.sleep(0.01)


def _watch(
    options: Options, found: Survey | None, processes: Sequence[BaseProcess], probe: Probe, heads: _Heads,
    durations: Sequence[Durations], view: View,
) -> None:  # fmt: skip
    """Shows what happens until every executor has ended."""
    began = time.monotonic()
    while any(process.is_alive() for process in processes):
        accepted, refused = heads.read()
        stored = sum(probe.stored.values())
        done = accepted / (found.trades + found.timed) if found else (time.monotonic() - began) / options.seconds
        latest = np.concatenate([each.latest(1_000) for each in durations])
        figures = {
            "appended": accepted,
            "stored": stored,
            "lag": max(0, accepted - stored),
            "refused": refused,
            "append p50 ns": int(_rank(latest, 50)),
            "append p99 ns": int(_rank(latest, 99)),
        }
        view.update(min(done, 1.0), figures)
        processes[0].join(0.1) if processes[0].is_alive() else time.sleep(0.1)
    view.update(1.0, {})


def _merged(outcome: list[Result]) -> dict[str, dict[str, int]]:
    merged: dict[str, dict[str, int]] = {}
    for result in outcome:
        for table, lanes in result.accepted.items():
            merged.setdefault(table, {}).update(lanes)
    return merged


def _report(
    options: Options, found: Survey | None, instance: Instance, results: Path, outcome: list[Result],
    verdict: Verdict, probe: Probe, times: NDArray[np.int64], lane_bytes: int, seconds: float,
) -> Report:  # fmt: skip
    refused: dict[str, int] = {}
    for result in outcome:
        for reason, count in result.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    samples = [
        sample
        for path in sorted(results.glob("samples-*.json"))
        for sample in msgspec.json.decode(path.read_bytes(), type=list[tuple[str, int, int, int]])
    ]
    freshness = probe.freshness_ms(samples)
    status = msgspec.json.decode(open_board(instance).read_status() or b"{}")
    return Report(
        market=options.recording.name if options.recording else f"generated random walk (seed {options.seed})",
        producers=options.producers,
        ring=IMPLEMENTATION,
        accepted=verdict.accepted,
        stored=verdict.stored,
        refused=sum(refused.values()),
        refused_by_reason=refused,
        lost=verdict.lost,
        duplicated=verdict.duplicated,
        foreign=verdict.foreign,
        dead_letters=status.get("dead_letters", 0),
        broken_lines=found.broken if found else 0,
        seconds=seconds,
        records_per_second=verdict.accepted / seconds,
        append_ns=AppendTimes(*(int(_rank(times, percent)) for percent in (50, 99, 99.9, 100))),
        timer_ns=_timer_ns(),
        freshness_ms=Percentiles(_rank(freshness, 50), _rank(freshness, 99)),
        tick_ms=msgspec.convert(status.get("tick_ms", {}), Percentiles),
        write_ms=msgspec.convert(status.get("write_ms", {}), WriteTimes),
        lane_bytes=lane_bytes,
        writer_rss_bytes=status.get("rss_bytes", 0),
        is_exact=verdict.is_exact,
    )


def _rank(samples: Any, percent: float) -> float:
    return float(np.percentile(samples, percent, method="inverted_cdf")) if len(samples) else 0.0


def _timer_ns() -> int:
    """What an append's time holds of the clock itself: the median of two readings in a row."""
    clock: Callable[[], int] = time.perf_counter_ns
    return int(np.median([-(clock() - clock()) for _ in range(10_001)]))
