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
    """One run of the demo: counts cover all of it, times and rates its main job. None is what was not found out.

    `error` names each part that failed, and why; it is empty only where every accepted record is stored exactly once
    and every part that was asked for has done its work.
    """

    market: str
    producers: int
    ring: str
    accepted: int | None = None
    stored: int | None = None
    refused: int | None = None
    refused_by_reason: dict[str, int] = {}
    lost: int | None = None
    duplicated: int | None = None
    foreign: int | None = None
    dead_letters: int | None = None
    broken_lines: int = 0
    seconds: float | None = None
    records_per_second: float | None = None
    append_ns: AppendTimes | None = None
    timer_ns: int | None = None
    freshness_ms: Percentiles | None = None
    tick_ms: Percentiles | None = None
    write_ms: WriteTimes | None = None
    lane_bytes: int | None = None
    writer_rss_bytes: int | None = None
    is_exact: bool = False
    is_interrupted: bool = False
    session: SessionReport | None = None
    error: str = ""

    def figures(self) -> Sequence[tuple[str, str]]:
        """Name and value, for a person; of what was found out."""
        append, fresh, tick, write = self.append_ns, self.freshness_ms, self.tick_ms, self.write_ms
        found: list[tuple[str, str]] = []
        if self.accepted is not None:
            found += [
                ("accepted", f"{self.accepted:,}"),
                ("stored in QuestDB", "not known" if self.stored is None else f"{self.stored:,}"),
                ("refused", f"{self.refused:,} {self.refused_by_reason or ''}".strip()),
            ]
        if self.stored is not None:
            found.append(("lost / duplicated / foreign", f"{self.lost} / {self.duplicated} / {self.foreign}"))
        if self.dead_letters is not None:
            found.append(("dead letters", f"{self.dead_letters}"))
        found.append(("broken lines of the recording", f"{self.broken_lines}"))
        if self.records_per_second is not None and self.seconds is not None:
            rate, records = self.records_per_second, round(self.records_per_second * self.seconds)
            found.append(("records/s until stored", f"{rate:,.0f} ({records:,} in {self.seconds:.1f} s)"))
        if append is not None:
            found.append(("append p50 / p99 / p99.9", f"{append.p50:,} / {append.p99:,} / {append.p999:,} ns"))
            found.append(("of which the clock", f"{self.timer_ns} ns"))
        if fresh is not None:
            found.append(("append to visible p50 / p99", f"{fresh.p50:.0f} / {fresh.p99:.0f} ms"))
        if tick is not None:
            found.append(("tick p50 / p99", f"{tick.p50:.1f} / {tick.p99:.1f} ms"))
        if write is not None:
            found.append(("write p50 / p99", f"{write.p50:.1f} / {write.p99:.1f} ms for {write.rows:,.0f} rows"))
        if self.lane_bytes is not None:
            found.append(("lanes", f"{self.lane_bytes / 2**20:.1f} MiB"))
        if self.writer_rss_bytes is not None:
            found.append(("writer", f"{self.writer_rss_bytes / 2**20:.0f} MiB resident"))
        return found
