"""Samples of a soak, a second each: what they say against its bars, and their plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.figures import Figure, percentiles
from bench.plots import Line, Panel, write_svg

WARM_UP = 0.25  # of the run, and at most
WARM_UP_SECONDS_MAX = 900.0
SPANS = 200  # a slope or a line of the plot goes through so many spans of time, each reduced to one point


class Sample(msgspec.Struct):
    """One second: processes as they are at its end, ticks and appends that ended in it."""

    seconds: float
    writer_bytes: int  # resident, without shared memory
    writer_pss_bytes: int  # the same, pages that others map too counted by their share; 0 where there is no smaps
    writer_descriptors: int
    writer_threads: int
    producers_bytes: int
    accepted: int
    refused: int
    lag: int  # records accepted and not yet safe elsewhere
    tick_ms_p50: float
    tick_ms_max: float
    append_ns_p50: float
    append_ns_p99: float
    append_ns_p999: float
    append_ns_max: float


def column(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.array([getattr(sample, name) for sample in samples], float)


def spans(values: ArrayLike, reduce: Callable[..., Any] = np.median) -> NDArray[np.float64]:
    """`values`, in order, reduced to one for each of at most SPANS spans of the same length."""
    array = np.asarray(values, float)
    return np.array([reduce(part) for part in np.array_split(array, min(len(array), SPANS))])


def slope(seconds: ArrayLike, values: ArrayLike) -> float:
    """Growth a second by Theil and Sen: the median of the slopes between all pairs of points, medians of spans.

    A jump here and there does not move it, as it would a least-squares line.
    """
    x, y = spans(seconds), spans(values)
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(x) > 1 else 0.0


def quarters(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first quarter and the last."""
    length = max(len(values) // 4, 1)
    return values[:length], values[-length:]


def growth(values: NDArray[np.float64]) -> float:
    """By how much the least of the last quarter lies above the least of the first: what comes and goes is no growth."""
    first, last = quarters(values)
    return float(last.min() - first.min())


def figures(samples: Sequence[Sample], rate: float, accepted: int, refused: int, stored: int) -> list[Figure]:
    """What the samples say against the bars, those of the warm-up left out; the counts are of the whole run."""
    begins = min(samples[-1].seconds * WARM_UP, WARM_UP_SECONDS_MAX)
    steady = [sample for sample in samples if sample.seconds >= begins]
    of = {name: column(steady, name) for name in Sample.__struct_fields__}
    seconds = of["seconds"]
    slopes = {
        name: slope(seconds, of[name]) * 3600 / 1e6 for name in ("writer_bytes", "writer_pss_bytes", "producers_bytes")
    }
    reached = (steady[-1].accepted - steady[0].accepted) / max(steady[-1].seconds - steady[0].seconds, 1e-9)
    first_p50, last_p50 = (float(np.median(part)) for part in quarters(of["append_ns_p50"]))
    appends = [
        Figure(name=f"append {shown}, median of all seconds", value=float(np.median(of[name])), unit="ns")
        for shown, name in (("p50", "append_ns_p50"), ("p99", "append_ns_p99"), ("p99.9", "append_ns_p999"))
    ]
    return [
        Figure(name="hours", value=samples[-1].seconds / 3600, unit="h"),
        Figure(name="records accepted", value=accepted),
        Figure(name="rate after warm-up", value=reached, unit="records/s", at_least=0.95 * rate),
        Figure(name="refused", value=refused, unit="records", at_most=0),
        Figure(name="accepted and not stored", value=accepted - stored, unit="records", at_least=0, at_most=0),
        Figure(name="writer's memory, slope", value=slopes["writer_bytes"], unit="MB/h", at_most=1),
        Figure(name="writer's memory, slope of its share (PSS)", value=slopes["writer_pss_bytes"], unit="MB/h"),
        Figure(name="writer's memory, in the end", value=steady[-1].writer_bytes / 1e6, unit="MB"),
        Figure(name="producers' memory, slope of all", value=slopes["producers_bytes"], unit="MB/h", at_most=1),
        Figure(name="writer's descriptors, growth", value=growth(of["writer_descriptors"]), at_most=0),
        Figure(name="writer's threads, growth", value=growth(of["writer_threads"]), at_most=0),
        Figure(name="lag, median", value=float(np.median(of["lag"])), unit="records"),
        Figure(name="lag, most", value=float(of["lag"].max()), unit="records"),
        Figure(name="tick, median", value=float(np.median(of["tick_ms_p50"])), unit="ms"),
        Figure(name="tick, p99 of the seconds' longest", value=percentiles(of["tick_ms_max"])["p99"], unit="ms"),
        *appends,
        Figure(name="append p50, the last quarter's against the first's", value=last_p50 / first_p50, unit="x"),
        Figure(name="append, longest", value=float(of["append_ns_max"].max()), unit="ns"),
    ]


def plot(samples: Sequence[Sample], path: Path) -> None:
    """The run over time as an SVG, warm-up included."""
    hours = spans(column(samples, "seconds")) / 3600

    def line(label: str, name: str, scale: float = 1.0, reduce: Callable[..., Any] = np.median) -> Line:
        return Line(label, hours, spans(column(samples, name), reduce) * scale)

    accepted = np.gradient(column(samples, "accepted"), column(samples, "seconds"))
    panels = [
        ("memory, shared left out", "MB", "", [
            line("writer", "writer_bytes", 1e-6), line("writer, PSS", "writer_pss_bytes", 1e-6),
            line("all producers", "producers_bytes", 1e-6),
        ]),
        ("the writer's descriptors and threads", "", "", [
            line("descriptors", "writer_descriptors", reduce=np.max), line("threads", "writer_threads", reduce=np.max),
        ]),
        ("records accepted and not yet safe elsewhere", "records", "", [
            line("median", "lag"), line("most", "lag", reduce=np.max),
        ]),
        ("between two ticks of the writer", "ms", "", [
            line("median", "tick_ms_p50"), line("longest", "tick_ms_max", reduce=np.max),
        ]),
        ("append", "ns", "y", [
            line("p50", "append_ns_p50"), line("p99", "append_ns_p99"), line("p99.9", "append_ns_p999"),
            line("longest", "append_ns_max", reduce=np.max),
        ]),
        ("accepted", "records/s", "", [Line("accepted", hours, spans(accepted))]),
    ]  # fmt: skip
    write_svg(path, [Panel(title, "hours", unit, lines, log) for title, unit, log, lines in panels])
