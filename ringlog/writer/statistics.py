"""What the writer measures of itself: ticks, writes, batches, errors; also as performance_metrics rows."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringlog.arrays import rows_of
from ringlog.decode import Decoder, Slots
from ringlog.records import PerformanceMetric, layout_of
from ringlog.sinks import Batch, Span

SAMPLES_MAX = 6_000  # ten minutes of ticks


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of `samples`; 0.0 where there are none."""
    if not samples:
        return 0.0
    return float(np.percentile(np.asarray(samples), percent, method="inverted_cdf"))


class Statistics:
    """Counts since the writer's start, and samples of the latest ten minutes."""

    def __init__(self) -> None:
        self.tick_ms: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.write_ms: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.write_rows: deque[int] = deque(maxlen=SAMPLES_MAX)
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
            "tick_ms": {"p50": percentile(self.tick_ms, 50), "p99": percentile(self.tick_ms, 99)},
            "write_ms": {
                "rows": percentile(self.write_rows, 50),
                "p50": percentile(self.write_ms, 50),
                "p99": percentile(self.write_ms, 99),
            },
        }

    def batch(self, seconds: float) -> Batch:
        """The writer's own metrics of the last `seconds`, as rows of a lane of their own: outside the ledger."""
        rows, writes, errors = (
            now - before for now, before in zip((self.rows, self.writes, self.errors), self._reported, strict=True)
        )
        self._reported = (self.rows, self.writes, self.errors)
        metrics: list[tuple[str, str, float, int | None]] = [
            ("throughput", "writer.rows", rows / seconds, None),
            ("throughput", "writer.batch_rows", percentile(self.write_rows, 50), 50),
            ("error_rate", "writer.write", errors / max(writes + errors, 1), None),
        ]
        for percent in (50, 95, 99):
            metrics.append(("latency", "writer.write", percentile(self.write_ms, percent) * 1e3, percent))
            metrics.append(("latency", "writer.tick", percentile(self.tick_ms, percent) * 1e3, percent))
        names = ("metric_type", "operation", "value", "percentile")
        array = rows_of(PerformanceMetric, dict(zip(names, map(list, zip(*metrics, strict=True)), strict=True)))
        array["seq"] = np.arange(self._seq, self._seq + len(array))
        slots = Slots(self._lane, self._seq, len(array), array.view(np.uint8))
        self._seq += len(array)
        columns, _, _ = self._decoder.decode([slots])
        return Batch(
            layout_of(PerformanceMetric), (Span(self._lane, slots.first_seq, slots.rows),), slots.rows, columns
        )
