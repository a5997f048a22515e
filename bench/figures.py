"""Figures: what a benchmark found, held against its bar, and how it is printed."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from ringlog.cli import quiet_libraries


class Cell(msgspec.Struct, frozen=True):
    """Where a figure stands on the page, where it is one of many alike: in a table of its own."""

    table: str
    row: str
    column: str


class Figure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measured value. `at_most` or `at_least` is its bar; a value without a bar is there for comparison."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    cell: Cell | None = None

    @property
    def bar(self) -> str:
        if self.at_most is not None and self.at_least is not None:
            low, high = shown(self.at_least), shown(self.at_most)
            return f"exactly {high}" if self.at_least == self.at_most else f"{low} to {high}"
        if self.at_most is not None:
            return f"at most {shown(self.at_most)}"
        return "" if self.at_least is None else f"at least {shown(self.at_least)}"

    @property
    def verdict(self) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        too_much = self.at_most is not None and not self.value <= self.at_most
        too_little = self.at_least is not None and not self.value >= self.at_least
        return "not met" if too_much or too_little else "met"


class Result(msgspec.Struct, kw_only=True):
    """What one benchmark found; `details` are the values behind the figures."""

    benchmark: str
    what: str
    figures: list[Figure]
    details: dict[str, Any] = {}


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value % 1 == 0 else f"{value:.3g}"


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and max of `samples`, by nearest rank."""
    values = np.percentile(np.asarray(samples, np.float64), (50, 99, 99.9, 100), method="inverted_cdf")
    return dict(zip(("p50", "p99", "p999", "max"), map(float, values), strict=True))


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs the contenders in turn, `rounds` times: whatever else the machine does then meets all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            values[name].append(contender())
    return values


def median_ratio(values: dict[str, list[float]], of: str, to: str) -> float:
    """The median over the rounds of one contender's value divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(values[of], values[to], strict=True))


def main(run: Callable[[bool], Result]) -> None:
    """A benchmark's command line: `--json` prints one object, `--tiny` does just enough to show that it runs."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; the figures then mean little")
    arguments = parser.parse_args()
    quiet_libraries()
    show(run(arguments.tiny), as_json=arguments.json)


def show(result: Result, as_json: bool) -> None:
    """Prints a result: one JSON object, or a line a figure."""
    if as_json:
        print(msgspec.json.encode(result).decode())
        return
    print(result.what)
    for figure in result.figures:
        print(f"  {figure.name}: {shown(figure.value)} {figure.unit}  {figure.bar}  {figure.verdict}".rstrip())
