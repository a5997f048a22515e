"""What the writer measures of itself: ticks, writes, batches, errors; also as performance_metrics rows."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from ringlog.arrays import rows_of
from ringlog.decode import Decoder, Slots
from ringlog.records import PerformanceMetric, layout_of
from ringlog.sinks import Batch, Span

SAMPLES_MAX = 6_000  # ten minutes of ticks


class Samples:
    """The latest SAMPLES_MAX values, in memory that is there from the start: a writer must not grow for minutes."""

    def __init__(self) -> None:
        self._values = np.full(SAMPLES_MAX, np.nan)
        self._count = 0
        self.total = 0.0  # of all values there ever were

    @property
    def count(self) -> int:
        """How many values there ever were."""
        return self._count

    def __len__(self) -> int:
        return min(self._count, SAMPLES_MAX)

    def append(self, value: float) -> None:
        """Takes the place of the oldest value where there is no other."""
        self._values[self._count % SAMPLES_MAX] = value
        self._count += 1
        self.total += value

    def percentile(self, percent: float) -> float:
        """By nearest rank; 0.0 where there is no value yet."""
        if not self._count:
            return 0.0
        return float(np.percentile(self._values[: len(self)], percent, method="inverted_cdf"))


def _summary(samples: Samples) -> dict[str, float]:
    return {
        "p50": samples.percentile(50),
        "p99": samples.percentile(99),
        "sum": samples.total,
        "count": samples.count,
    }


class Statistics:
    """Counts since the writer's start, and samples of the latest ten minutes."""

    def __init__(self) -> None:
        self.tick_ms, self.write_ms, self.write_rows = Samples(), Samples(), Samples()
        self.rows = 0
        self.writes = 0
        self.errors = 0
        self.slowest_write_seconds = 0.0  # since the writer last looked
        self._lane = secrets.randbits(63) or 1
        self._seq = 0
        self._decoder = Decoder(layout_of(PerformanceMetric))
        self._reported = (0, 0, 0)

    def wrote(self, rows: int, seconds: float) -> None:
        self.write_ms.append(seconds * 1e3)
        self.slowest_write_seconds = max(self.slowest_write_seconds, seconds)
        self.write_rows.append(rows)
        self.rows += rows
        self.writes += 1

    def summary(self) -> dict[str, Any]:
        """What `ringlog top` and the demo show."""
        return {
            "rows": self.rows,
            "writes": self.writes,
            "errors": self.errors,
            "tick_ms": _summary(self.tick_ms),
            "write_ms": {"rows": self.write_rows.percentile(50), **_summary(self.write_ms)},
        }

    def batch(self, seconds: float) -> Batch:
        """The writer's own metrics of the last `seconds`, as rows of a lane of their own: outside the ledger."""
        rows, writes, errors = (
            now - before for now, before in zip((self.rows, self.writes, self.errors), self._reported, strict=True)
        )
        self._reported = (self.rows, self.writes, self.errors)
        metrics: list[tuple[str, str, float, int | None]] = [
            ("throughput", "writer.rows", rows / seconds, None),
            ("error_rate", "writer.write", errors / max(writes + errors, 1), None),
        ]
        if len(self.write_rows):
            metrics.append(("throughput", "writer.batch_rows", self.write_rows.percentile(50), 50))
        for operation, samples in (("writer.write", self.write_ms), ("writer.tick", self.tick_ms)):
            if len(samples):  # none is no latency of 0
                metrics += [("latency", operation, samples.percentile(at) * 1e3, at) for at in (50, 95, 99)]
        names = ("metric_type", "operation", "value", "percentile")
        array = rows_of(PerformanceMetric, dict(zip(names, map(list, zip(*metrics, strict=True)), strict=True)))
        array["seq"] = np.arange(self._seq, self._seq + len(array))
        slots = Slots(self._lane, self._seq, len(array), array.view(np.uint8))
        self._seq += len(array)
        columns, _, _ = self._decoder.decode([slots])
        return Batch(
            layout_of(PerformanceMetric), (Span(self._lane, slots.first_seq, slots.rows),), slots.rows, columns
        )
