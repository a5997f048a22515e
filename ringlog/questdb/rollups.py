"""Rollups: materialized views of a minute's rows, so that 24 hours cost the same whatever the record rate.

Latencies have a view of hours over the one of minutes too: a day of 50 pairs is 9 million rows by the minute, and
200,000 by the hour. Each rollup is a view over one table (or view): keys, and measures that can be added up further.
The SQL a person reads and runs is in `schemas/questdb/<view>.sql`; a test holds it against `Rollup.definition`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from ringlog.questdb.percentiles import bucket_sql

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
# Views take in new rows once a minute (EVERY 1m in their SQL): after each write they would cost more than the writes.
REFRESH_US = MINUTE_US
MARGIN_US = 10_000_000  # for records on their way to the table, and for the refresh itself
_SAMPLE_BY = {MINUTE_US: "1m", HOUR_US: "1h"}


class Measure(msgspec.Struct, frozen=True):
    """An aggregate of a minute's raw rows, and the aggregate function that merges minutes."""

    raw: str
    merge: str  # sum, min, max or last

    def merged(self, older: Any, newer: Any) -> Any:
        """The measure of two groups of rows, None where neither has a value; `newer` holds the later rows."""
        if older is None or newer is None:
            return older if newer is None else newer
        match self.merge:
            case "sum":
                return older + newer
            case "min":
                return min(older, newer)
            case "max":
                return max(older, newer)
        return newer


class Rollup(msgspec.Struct, frozen=True):
    """A view: `keys` (name to SQL over its table) and `measures` (name to Measure), both in column order.

    The first measure counts the table's rows; those that are older than `lag_us` the view has usually taken in.
    `coarser` is a view over this one, with the same names of keys and measures and a larger unit.
    """

    view: str
    table: str
    keys: dict[str, str]
    measures: dict[str, Measure]
    unit_us: int = MINUTE_US
    lag_us: int = REFRESH_US + MARGIN_US
    coarser: Rollup | None = None

    @property
    def definition(self) -> str:
        """The view's query, normalised to one line."""
        columns = self._raw_columns(self.keys)
        return f"SELECT timestamp, {columns} FROM {self.table} SAMPLE BY {_SAMPLE_BY[self.unit_us]}"  # noqa: S608

    def raw_select(self, keys: Collection[str]) -> str:
        """The measures of raw rows by some of the keys; one key groups faster than three."""
        return f"SELECT {self._raw_columns(keys)} FROM {self.table}"  # noqa: S608

    def view_select(self, keys: Collection[str]) -> str:
        """The same from the view."""
        merged = [f"{measure.merge}({name}) AS {name}" for name, measure in self.measures.items()]
        return f"SELECT {', '.join([*keys, *merged])} FROM {self.view}"  # noqa: S608

    def checked_select(self, table: str, keys: Collection[str], where: str, span: str) -> str:
        """Three parts in one statement, and so of one moment, told apart by their first column.

        0: how many rows `table` has in `span`; 1: how many of them the view's rows there were made of; 2: what
        `view_select` gives. The counts stand in the column of the first measure, and cost next to nothing. The order is
        that in which the server opens them: a refresh between two of them is seen as rows that lack.
        """
        first, *others = self.measures

        def count(part: int, counted: str) -> str:
            return ", ".join([str(part), *("null" for _ in keys), counted, *("null" for _ in others)])

        return (
            f"SELECT {count(0, 'count()')} FROM {table} WHERE {span} "  # noqa: S608
            f"UNION ALL SELECT {count(1, f'sum({first})')} FROM {self.view} WHERE {span} "
            f"UNION ALL SELECT 2, * FROM ({self.view_select(keys)} WHERE {where})"
        )

    def _raw_columns(self, wanted: Collection[str]) -> str:
        keys = [name if self.keys[name] == name else f"{self.keys[name]} AS {name}" for name in wanted]
        return ", ".join([*keys, *(f"{measure.raw} AS {name}" for name, measure in self.measures.items())])


LATENCY_HOURS = Rollup(
    view="latency_hours",
    table="latency_minutes",
    keys={"service": "service", "operation": "operation", "bucket": "bucket"},
    measures={"samples": Measure("sum(samples)", "sum")},
    unit_us=HOUR_US,
    lag_us=2 * (REFRESH_US + MARGIN_US),
)

LATENCY_MINUTES = Rollup(
    view="latency_minutes",
    table="latencies",
    keys={"service": "service", "operation": "operation", "bucket": bucket_sql("latency_us")},
    measures={"samples": Measure("count(latency_us)", "sum")},
    coarser=LATENCY_HOURS,
)

MEV_MINUTES = Rollup(
    view="mev_minutes",
    table="mev_metrics",
    keys={"protection_used": "protection_used"},
    measures={
        "trades": Measure("count()", "sum"),
        "avoided": Measure("sum(CASE WHEN avoided THEN 1 ELSE 0 END)", "sum"),
        "estimated_samples": Measure("count(estimated_loss_bps)", "sum"),
        "estimated_loss_bps_sum": Measure("sum(estimated_loss_bps)", "sum"),
        "actual_samples": Measure("count(actual_loss_bps)", "sum"),
        "actual_loss_bps_sum": Measure("sum(actual_loss_bps)", "sum"),
        "priority_fee_lamports_sum": Measure("sum(priority_fee_lamports)", "sum"),
    },
)

PERFORMANCE_MINUTES = Rollup(
    view="performance_minutes",
    table="performance_metrics",
    keys={"metric_type": "metric_type", "operation": "operation", "percentile": "percentile"},
    measures={
        "samples": Measure("count(value)", "sum"),
        "value_sum": Measure("sum(value)", "sum"),
        "value_min": Measure("min(value)", "min"),
        "value_max": Measure("max(value)", "max"),
        "value_last": Measure("last(value)", "last"),
    },
)

# A view comes after the one it is made over.
ROLLUPS = (LATENCY_MINUTES, LATENCY_HOURS, MEV_MINUTES, PERFORMANCE_MINUTES)
