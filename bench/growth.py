"""What a record costs as the work grows: producers, record types, records/s, lanes, metadata; one thing at a time.

Producers append one record after another in bursts of at most 1 ms, `ringlog writer` drains them into QuestDB. A
record's cost is on the producer's side the median append, each timed by itself and the clock's cost taken off, and on
the writer's its CPU time divided by the records that it took. The three ways to append are called at 1,000 and at
100,000 records/s by turns, each call when its record's time has come.

    python -m bench.growth [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.append import called, clock_costs
from bench.figures import Figure, Result, interleaved, main, median_ratio
from bench.plots import Line, Panel, write_svg
from bench.producers import AppendTimes, Load, producing
from bench.restart import lanes
from bench.stack import fresh, server, wait_for, writer
from bench.trades import PRESETS, slots, trades, varying
from ringlog import Producer
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROUNDS = 5
SLOW, FAST = 1_000, 100_000  # records/s, which the bar is about
CHUNK_SECONDS = 0.01  # what comes in so long is one `append_many`
PLOTS = Path("build/growth")
METADATA_BYTES = next(field.width_bytes for field in layout_of(Trade).fields if field.name == "metadata")
LINGER_MS = 50
CPU_SECONDS_MIN = 0.01  # what the system counts CPU time in


class Growth(NamedTuple):
    """One field of a load and the values that it grows through; the rest is one producer's 10,000 trades/s."""

    title: str
    unit: str
    field: str
    values: tuple[int, ...]
    rest: dict[str, Any]
    scale: float = 1.0

    def loads(self, tiny: bool) -> list[Load]:
        base: dict[str, Any] = {"rate": 10_000, "producers": 1, "types": 1, **self.rest}
        return [Load(**{**base, self.field: value}) for value in (self.values[1:2] if tiny else self.values)]


GROWTHS = (
    Growth("record types", "types that take turns", "types", (1, 2, 3, 4, 5), {"lane_bytes": 4 << 20}),
    Growth("rate", "trades/s", "rate", (1_000, 10_000, 50_000, 100_000, 200_000), {"lane_bytes": 32 << 20}),
    Growth("lane", "MiB of slots", "lane_bytes", tuple(1 << bits for bits in (18, 20, 22, 24, 25)), {}, 1 / (1 << 20)),
    Growth("metadata", "bytes of each trade", "metadata_bytes", (0, 32, 64, 128, METADATA_BYTES), {}),
    Growth("producers", "producers, together 10,000/s", "producers", (1, 4, 8, 16, 32), {"lane_bytes": 1 << 20}),
)  # fmt: skip


def costs(settings: Settings, writer_pid: int, load: Load, seconds: float, clock_ns: float) -> dict[str, float]:
    """One point: the median append (ns), the writer's CPU time a record (us), the rate, and what was refused."""
    wait_for(lambda: not cards(Instance(settings)), "end of the lanes before")
    process = psutil.Process(writer_pid)
    with contextlib.ExitStack() as held, tempfile.TemporaryDirectory(prefix="ringlog-growth-") as directory:
        held.enter_context(producing(settings, directory, load, method="forkserver"))
        times, views = AppendTimes(directory, load.producers), lanes(settings, held)

        def now() -> tuple[float, float, int]:
            cpu = process.cpu_times()
            return time.monotonic(), cpu.user + cpu.system, sum(view.head for view in views)

        time.sleep(seconds / 4)  # warm
        times.latest()
        before = now()
        time.sleep(seconds)
        after = now()
        append_ns = float(np.median(times.latest())) - clock_ns
        refused = sum(sum(view.refused) for view in views)
    elapsed, cpu, records = (b - a for a, b in zip(before, after, strict=True))
    return {
        "append_ns": append_ns,
        "writer_us": 1e6 * max(cpu, CPU_SECONDS_MIN) / max(records, 1),
        "records_per_second": records / elapsed,
        "refused": refused,
    }


def stages(settings: Settings, seconds: float, rounds: int, clock_ns: float) -> dict[str, float]:
    """Each way to append: its cost a record at FAST divided by that at SLOW, median of the rounds."""
    records = trades(1000)
    many = slots(int(FAST * CHUNK_SECONDS))
    many["timestamp"] = time.time_ns() // 1000
    found = {}
    with Producer([Trade], settings=settings, lane_bytes={Trade: 32 << 20}) as producer:
        appender = producer.appender(Trade)
        empty = appender.room

        def median_ns(call: Callable[..., Any], arguments: list[tuple[Any, ...]], rate: float) -> float:
            wait_for(lambda: appender.room == empty, "empty lane")  # the lane holds what one call of this appends
            took, _ = called(call, arguments, rate, seconds)
            return statistics.median(took) - clock_ns

        def one(append: Callable[..., bool], arguments: list[tuple[Any, ...]], rate: float) -> Callable[[], float]:
            return lambda: median_ns(append, arguments, rate)

        def array(rate: float) -> Callable[[], float]:
            rows = many[: int(rate * CHUNK_SECONDS)]
            return lambda: median_ns(appender.append_many, [(rows,)], 1 / CHUNK_SECONDS) / len(rows)

        ways = {
            "append, 18 fields": lambda rate: one(appender.append, records, rate),
            "append, bound, 8 fields": lambda rate: one(appender.bind(**PRESETS), varying(records), rate),
            "append_many": array,
        }
        for name, way in ways.items():
            values = interleaved({"fast": way(FAST), "slow": way(SLOW)}, rounds)
            found[name] = median_ratio(values, "fast", "slow")
        if any(appender.refused().values()):
            raise RuntimeError(f"appends were refused: {appender.refused()}")
    return found


def plot(found: dict[str, list[dict[str, float]]]) -> None:
    """The producer's side and the writer's, a picture each."""
    for file, name, unit in (
        ("append", "append_ns", "median append, ns"),
        ("writer", "writer_us", "CPU of the writer, us a record"),
    ):
        panels = []
        for growth in GROWTHS:
            points = found[growth.title]
            x = [point["value"] * growth.scale for point in points]
            line = Line(growth.title, x, [point[name] for point in points], marker="o")
            panels.append(
                Panel(
                    growth.title, growth.unit, unit, [line], "" if growth.field in ("types", "metadata_bytes") else "x"
                )
            )
        write_svg(PLOTS / f"{file}.svg", panels, columns=3)


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    multiprocessing.set_forkserver_preload(["bench.producers"])
    seconds, rounds = (0.1, 1) if tiny else (1.2, ROUNDS)
    clock_ns = statistics.median(clock_costs(1000))
    found: dict[str, list[dict[str, float]]] = {}
    with server(running) as questdb, fresh(questdb, lane_linger_ms=LINGER_MS) as settings, writer(settings) as process:
        ways = stages(settings, seconds / 4, rounds, clock_ns)
        for growth in GROWTHS[:2] if tiny else GROWTHS:
            found[growth.title] = [
                {"value": getattr(load, growth.field), **costs(settings, process.pid, load, seconds, clock_ns)}
                for load in growth.loads(tiny)
            ]
    if not tiny:
        plot(found)
    figures = [
        Figure(name=f"{name}: a record at {FAST:,}/s against one at {SLOW:,}/s", value=ratio, unit="x", at_most=1.2)
        for name, ratio in ways.items()
    ]
    for growth in GROWTHS[: len(found)]:
        least, most = found[growth.title][0], found[growth.title][-1]
        ends = f"{most['value'] * growth.scale:,.0f} against {least['value'] * growth.scale:,.3g}"
        for side, name in (("append", "append_ns"), ("writer's CPU", "writer_us")):
            figures.append(
                Figure(name=f"{growth.title}, {ends} {growth.unit}: {side}", value=most[name] / least[name], unit="x")
            )
    refused = sum(point["refused"] for points in found.values() for point in points)
    figures.append(Figure(name="refused in all these", value=refused, unit="records"))
    return Result(benchmark="growth", what="cost of a record as the work grows", figures=figures, details=found)


if __name__ == "__main__":
    main(run)
