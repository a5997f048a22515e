"""What a record costs as the work grows: producers, record types, records/s, lanes, metadata; one thing at a time.

Producers append one record after another in bursts of at most 1 ms, `ringlog writer` drains them into QuestDB. A
record's cost is on the producer's side the median append that was accepted, each timed by itself and the clock's cost
taken off, and on the writer's its CPU time divided by the records accepted. Loads are what was asked for: each point
says what was accepted of it, and refused. The points of a growth take turns, and are medians of the rounds. The three
ways to append are called at 1,000 and at 100,000 records/s by turns, each call when its record's time has come.

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
from bench.figures import Cell, Figure, Result, interleaved, main, median_ratio, shown
from bench.load import REACHED, Flow
from bench.plots import Line, Panel, write_svg
from bench.producers import AppendTimes, Load, producing
from bench.stack import fresh, lanes, server, wait_for, writer
from bench.trades import PRESETS, slots, trades, varying
from ringlog import Producer
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROUNDS, POINT_ROUNDS = 5, 3
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
    """One point: the median append (ns), the writer's CPU time a record (us), records/s accepted, and the refused."""
    wait_for(lambda: not cards(Instance(settings)), "end of the lanes before")
    process = psutil.Process(writer_pid)
    with contextlib.ExitStack() as held, tempfile.TemporaryDirectory(prefix="ringlog-growth-") as directory:
        held.enter_context(producing(settings, directory, load, method="forkserver"))
        times, flow = AppendTimes(directory, load.producers), Flow(lanes(settings, held))
        time.sleep(seconds / 4)  # warm
        times.latest()
        before = process.cpu_times()
        flow.begin()
        time.sleep(seconds)
        reached, after = flow.reached(), process.cpu_times()
        append_ns = float(np.median(times.latest())) - clock_ns
    cpu_seconds = after.user + after.system - before.user - before.system
    return {
        "append_ns": append_ns,
        "writer_us": 1e6 * max(cpu_seconds, CPU_SECONDS_MIN) / max(reached.accepted, 1),
        "asked_per_second": load.rate,
        "records_per_second": reached.accepted_per_second,
        "refused": reached.refused,
    }


def points(growth: Growth, tiny: bool, cost: Callable[[Load], dict[str, float]]) -> list[dict[str, float]]:
    """Each load's costs: medians of rounds in which the loads take turns, and all that was refused."""
    loads = growth.loads(tiny)
    rounds = [[cost(load) for load in loads] for _ in range(1 if tiny else POINT_ROUNDS)]
    found = []
    for load, costs_ in zip(loads, zip(*rounds, strict=True), strict=True):
        point = {name: statistics.median(each[name] for each in costs_) for name in costs_[0]}
        refused = sum(each["refused"] for each in costs_)
        found.append({"value": getattr(load, growth.field), **point, "refused": refused})
    return found


def stages(settings: Settings, seconds: float, rounds: int, clock_ns: float) -> dict[str, dict[str, float]]:
    """Each way to append: its cost a record at FAST divided by that at SLOW, median of the rounds.

    And the part of FAST that was reached, in the round that reached the least.
    """
    records = trades(1000)
    many = slots(int(FAST * CHUNK_SECONDS))
    many["timestamp"] = time.time_ns() // 1000
    found: dict[str, dict[str, float]] = {}
    with Producer([Trade], settings=settings, lane_bytes={Trade: 32 << 20}) as producer:
        appender = producer.appender(Trade)
        empty = appender.room

        def median_ns(call: Callable[..., Any], arguments: list[tuple[Any, ...]], rate: float) -> float:
            wait_for(lambda: appender.room == empty, "empty lane")  # the lane holds what one call of this appends
            took, since_due = called(call, arguments, rate, seconds)
            elapsed = (len(took) - 1) / rate + since_due[-1] / 1e9
            reached.append(min(len(took) / rate / elapsed, 1.0))
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
            reached: list[float] = []
            values = interleaved({"fast": way(FAST), "slow": way(SLOW)}, rounds)
            found[name] = {"ratio": median_ratio(values, "fast", "slow"), "reached": min(reached[::2])}
        if any(appender.refused().values()):
            raise RuntimeError(f"appends were refused: {appender.refused()}")
    return found


def point_figures(found: dict[str, list[dict[str, float]]]) -> list[Figure]:
    """Every point of every growth, in a table: what was asked for and was not reached is marked."""
    figures = []
    for growth in GROWTHS[: len(found)]:
        for point in found[growth.title]:
            row = f"{shown(point['value'] * growth.scale)} {growth.unit}"
            for column, name, unit in (
                ("accepted", "records_per_second", "records/s"),
                ("refused", "refused", "records"),
                ("append p50", "append_ns", "ns"),
                ("writer's CPU", "writer_us", "us a record"),
            ):
                asked = REACHED * point["asked_per_second"] if column == "accepted" else None
                cell = Cell(f"{growth.title.capitalize()}, point by point", row, f"{column}, {unit}")
                name_ = f"{growth.title}, {row}: {column}"
                figures.append(Figure(name=name_, value=point[name], unit=unit, at_least=asked, cell=cell))
    return figures


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
            if growth.field == "rate":  # what was reached, wherever the load ended
                x = [float(f"{point['records_per_second']:.3g}") for point in points]
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
            found[growth.title] = points(
                growth, tiny, lambda load: costs(settings, process.pid, load, seconds, clock_ns)
            )
    if not tiny:
        plot(found)
    figures = [
        figure
        for name, way in ways.items()
        for figure in (
            Figure(
                name=f"{name}: a record at {FAST:,}/s against one at {SLOW:,}/s",
                value=way["ratio"],
                unit="x",
                at_most=1.2,
            ),
            Figure(name=f"{name}: reached of {FAST:,}/s", value=100 * way["reached"], unit="%", at_least=100 * REACHED),
        )
    ]
    for growth in GROWTHS[: len(found)]:
        least, most = found[growth.title][0], found[growth.title][-1]
        ends = f"{shown(most['value'] * growth.scale)} against {shown(least['value'] * growth.scale)}"
        for side, name in (("append", "append_ns"), ("writer's CPU", "writer_us")):
            figures.append(
                Figure(name=f"{growth.title}, {ends} {growth.unit}: {side}", value=most[name] / least[name], unit="x")
            )
    refused = sum(point["refused"] for points in found.values() for point in points)
    figures.append(Figure(name="refused in all these", value=refused, unit="records"))
    figures += point_figures(found)
    return Result(benchmark="growth", what="cost of a record as the work grows", figures=figures, details=found)


if __name__ == "__main__":
    main(run)
