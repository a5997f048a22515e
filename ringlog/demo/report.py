"""The demo's report: what `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ringlog.demo.results import TraderResult


class Percentiles(msgspec.Struct):
    """Nearest-rank percentiles of samples."""

    p50: float = 0.0
    p99: float = 0.0


class AppendTimes(msgspec.Struct):
    """Times of single appends in nanoseconds, the clock's own cost included."""

    p50: int = 0
    p99: int = 0
    p999: int = 0
    max: int = 0


class WriteTimes(msgspec.Struct):
    """Times of requests to QuestDB in milliseconds, and the median of their rows."""

    rows: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


class SessionReport(msgspec.Struct, kw_only=True):
    """The paper-trading session: counts by name, the traders at its end, and where the plots are.

    `simulated` of the `trades` were seen by the MEV simulator; `missed` is what Redis said it would not see.
    """

    market: str
    source: str = ""  # whose prices and quantities these are: a recording's, or generated ones
    seconds: float
    trades: int
    records: dict[str, int]  # by table
    traders: list[TraderResult]
    limits: dict[str, int]  # how often each kept a trader from a trade
    rules: dict[str, int]
    nodes: dict[str, int]  # trades by RPC node
    simulated: int
    missed: int
    report_html: str = ""
    report_png: str = ""

    def lines(self) -> Sequence[str]:
        """For a person; the report's path comes last."""
        rules = ", ".join(f"{count:,} {name.replace('_', '-')}" for name, count in sorted(self.rules.items()))
        records = ", ".join(f"{count:,} {table}" for table, count in sorted(self.records.items()))
        return (
            f"Paper trading {self.market}: {self.trades:,} trades by {len(self.traders)} traders",
            f"  market: {self.source}",
            f"  records: {records}",
            f"  order rules: {rules or 'none'}",
            f"  trades seen by the MEV simulator: {self.simulated:,} of {self.trades:,}",
            *([f"report: {self.report_html}"] if self.report_html else []),
        )


class Report(msgspec.Struct, kw_only=True):
    """One run of the demo: counts cover all of it, times and rates its main job."""

    market: str
    producers: int
    ring: str
    accepted: int
    stored: int
    refused: int
    refused_by_reason: dict[str, int]
    lost: int
    duplicated: int
    foreign: int
    dead_letters: int
    broken_lines: int
    seconds: float
    records_per_second: float
    append_ns: AppendTimes
    timer_ns: int
    freshness_ms: Percentiles
    tick_ms: Percentiles
    write_ms: WriteTimes
    lane_bytes: int
    writer_rss_bytes: int
    is_exact: bool
    session: SessionReport | None = None

    def figures(self) -> Sequence[tuple[str, str]]:
        """Name and value, for a person."""
        append, rate = self.append_ns, self.records_per_second
        return (
            ("accepted", f"{self.accepted:,}"),
            ("stored in QuestDB", f"{self.stored:,}"),
            ("refused", f"{self.refused:,} {self.refused_by_reason or ''}".strip()),
            ("lost / duplicated / foreign", f"{self.lost} / {self.duplicated} / {self.foreign}"),
            ("dead letters", f"{self.dead_letters}"),
            ("broken lines of the recording", f"{self.broken_lines}"),
            ("records/s until stored", f"{rate:,.0f} ({round(rate * self.seconds):,} in {self.seconds:.1f} s)"),
            ("append p50 / p99 / p99.9", f"{append.p50:,} / {append.p99:,} / {append.p999:,} ns"),
            ("of which the clock", f"{self.timer_ns} ns"),
            ("append to visible p50 / p99", f"{self.freshness_ms.p50:.0f} / {self.freshness_ms.p99:.0f} ms"),
            ("tick p50 / p99", f"{self.tick_ms.p50:.1f} / {self.tick_ms.p99:.1f} ms"),
            (
                "write p50 / p99",
                f"{self.write_ms.p50:.1f} / {self.write_ms.p99:.1f} ms for {self.write_ms.rows:,.0f} rows",
            ),
            ("lanes", f"{self.lane_bytes / 2**20:.1f} MiB"),
            ("writer", f"{self.writer_rss_bytes / 2**20:.0f} MiB resident"),
        )
