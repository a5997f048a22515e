"""append's tail while something else wants the machine, against the same appends on an idle one; and what helps.

A producer appends at 2,000 records/s, sleeping in between as an executor that waits for events; each append is timed.
It is disturbed by as many busy processes as there are cores, by one that walks through 400 MB (and takes the caches),
by one that maps a quarter of the available memory, touches each page and gives it back (page faults; nothing is
swapped), by a writer and a server that are given 100,000 other rows/s, and by a thread that collects garbage again and
again with half a million objects alive; each also with an aid: a higher priority (nice -10, needs the right to), a core
that the others are kept from, objects frozen. Rounds in which all take turns; ratios are to the idle one of the same
round. What the others really did meanwhile stands beside.

    python -m bench.interference [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from bench.append import Lane, called
from bench.disturbances import (
    FAULTED_BYTES_MAX,
    WRITTEN,
    Others,
    collecting,
    faulting,
    idle,
    running,
    spin,
    walk,
    writing,
)
from bench.figures import Cell, Figure, Result, interleaved, main, median_ratio, percentiles
from bench.load import REACHED
from bench.stack import fresh, server, writer
from bench.trades import trades
from ringlog import Producer
from ringlog.records import Trade
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROUNDS = 3
RATE = 2_000
BESIDE = 100_000
AT = {"p50": "p50", "p99": "p99", "p999": "p99.9"}
Disturbance = Callable[[], contextlib.AbstractContextManager[Others]]
Aid = Callable[[Sequence[int]], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def unaided(_others: Sequence[int]) -> Iterator[None]:
    yield


@contextlib.contextmanager
def preferred(_others: Sequence[int]) -> Iterator[None]:
    """Raises PermissionError where this process may not raise its own priority."""
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


@contextlib.contextmanager
def alone(others: Sequence[int]) -> Iterator[None]:
    """The last core is the producer's, and the others' threads have the rest. Raises AttributeError on macOS."""
    cores = os.sched_getaffinity(0)
    threads = [thread.id for pid in others for thread in psutil.Process(pid).threads()]
    own, rest = {max(cores)}, cores - {max(cores)} or cores
    os.sched_setaffinity(0, own)
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, rest)
    try:
        yield
    finally:
        for thread in (0, *threads):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


@contextlib.contextmanager
def frozen(_others: Sequence[int]) -> Iterator[None]:
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def conditions(
    settings: Settings, pids: Sequence[int], rate: float, bytes_max: int
) -> dict[str, tuple[Disturbance, Aid]]:
    """What disturbs, and what helps against it. `pids` are the writer's and the server's."""
    busy = lambda: running(spin, os.cpu_count() or 1)  # noqa: E731
    walking = lambda: running(walk, 1)  # noqa: E731
    faults = lambda: faulting(bytes_max)  # noqa: E731

    writes = lambda: writing(settings, pids, rate)  # noqa: E731

    return {
        "idle": (idle, unaided),
        "all cores busy": (busy, unaided),
        "all cores busy, nice -10": (busy, preferred),
        "all cores busy, a core of its own": (busy, alone),
        "400 MB walked through": (walking, unaided),
        "400 MB walked through, a core of its own": (walking, alone),
        "a quarter of the memory mapped and unmapped": (faults, unaided),
        "a quarter of the memory mapped and unmapped, nice -10": (faults, preferred),
        "a quarter of the memory mapped and unmapped, a core of its own": (faults, alone),
        f"{BESIDE:,} rows/s appended beside": (writes, unaided),
        f"{BESIDE:,} rows/s appended beside, nice -10": (writes, preferred),
        f"{BESIDE:,} rows/s appended beside, a core of its own": (writes, alone),
        "garbage collected all the time": (collecting, unaided),
        "garbage collected all the time, gc.freeze()": (collecting, frozen),
    }


def first_touch(count: int) -> float:
    """The p99 of appends into a new lane whose pages were not faulted in, divided by that of one where they were."""
    records = trades(1000)

    def p99(is_touched: bool) -> float:
        took, _ = called(Lane(4096, is_touched=is_touched).append({}), records, 1e6, count / 1e6)
        return percentiles(took)["p99"]

    found = interleaved({"untouched": lambda: p99(False), "touched": lambda: p99(True)}, ROUNDS)
    return median_ratio(found, "untouched", "touched")


def measured(
    settings: Settings, pids: Sequence[int], seconds: float, rounds: int, rate: float, bytes_max: int
) -> tuple[Any, Any]:
    """Percentiles (ns) by condition, one dict a round: of the append, and from a record's time until it is appended.

    With what the others did meanwhile. And the reason by condition for what cannot be done here.
    """
    records = trades(1000)
    found: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    with Producer([Trade], settings=settings) as producer:
        append = producer.appender(Trade).append
        called(append, records, RATE, seconds / 2)  # warm
        for _ in range(rounds):
            for name, (disturbed, aided) in conditions(settings, pids, rate, bytes_max).items():
                if name in left_out:
                    continue
                with disturbed() as others:
                    try:
                        with aided(others.pids):
                            others.load()  # from now on
                            took, since_due = called(append, records, RATE, seconds)
                            load = others.load()
                    except (PermissionError, AttributeError) as error:
                        left_out[name] = str(error)
                        continue
                found.setdefault(name, []).append(
                    {"append": percentiles(took), "since_due": percentiles(since_due), "load": {others.named: load}}
                )
        if any(producer.appender(Trade).refused().values()):
            raise RuntimeError(f"appends were refused: {producer.appender(Trade).refused()}")
    return found, left_out


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    seconds, rounds, rate, bytes_max = (0.02, 1, 1_000, 1 << 26) if tiny else (3.0, ROUNDS, BESIDE, FAULTED_BYTES_MAX)
    touch = first_touch(100 if tiny else 4000)
    with server(running) as questdb, fresh(questdb) as settings, writer(settings) as process:
        pids = [process.pid, *([questdb.pid] if questdb.pid else [])]
        found, left_out = measured(settings, pids, seconds, rounds, rate, bytes_max)

    def ratio(name: str, of: str, at: str) -> float:
        return statistics.median(a[of][at] / b[of][at] for a, b in zip(found[name], found["idle"], strict=True))

    def median(name: str, of: str, at: str) -> float:
        return statistics.median(round_[of][at] for round_ in found[name])

    def figure(name: str, what: str, value: float, unit: str, at_least: float | None = None) -> Figure:
        cell = Cell("Beside what others do", name, f"{what}, {unit}") if name != "idle" else None
        return Figure(name=f"{name}, {what}", value=value, unit=unit, at_least=at_least, cell=cell)

    figures = []
    for name in found:
        for at, shown in AT.items():
            value = median(name, "append", at) if name == "idle" else ratio(name, "append", at)
            figures.append(figure(name, f"append {shown}", value, "ns" if name == "idle" else "x idle"))
        since_due_us = median(name, "since_due", "p999") / 1e3
        figures.append(figure(name, "event to appended, p99.9", since_due_us, "us"))
        (named,) = found[name][0]["load"]
        if named:
            what, unit = named.split(", ")
            asked = REACHED * rate if named == WRITTEN else None
            figures.append(figure(name, what, median(name, "load", named), unit, asked))
    figures.append(Figure(name="a new lane not faulted in, append p99", value=touch, unit="x faulted in", at_least=1))
    return Result(
        benchmark="interference",
        what="append's tail on a machine that others use",
        figures=figures,
        details={"rounds": found, "left_out": left_out},
    )


if __name__ == "__main__":
    main(run)
