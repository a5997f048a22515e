"""What `ringlog top` draws: one screen of an instance, the lanes that need a look first."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape as escaped_markup
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ringlog.monitor.snapshot import LaneFigures, Snapshot
from ringlog.text import shown


def escape(text: object) -> str:
    """Text that neither markup nor a terminal acts on."""
    return escaped_markup(shown(text))


COLOURS = {
    "running": "green", "starting": "yellow", "stalled": "bold red", "stopped": "bold red", "absent": "bold red",
    "alive": "green", "dead": "bold red", "adopted": "yellow", "left": "dim",
    "ok": "green", "warn": "yellow", "refuse": "bold red",
}  # fmt: skip
FIXED_LINES = 19  # what a screen takes besides lanes
FILL_WARN, FILL_BAD = 0.5, 0.9
LAG_WARN_SECONDS = 1.0
# The lanes' columns: heading, side, and how wide a screen must be for it.
COLUMNS = (
    ("producer", "right", 0), ("owner", "left", 0), ("record", "left", 0), ("lane", "left", 130),
    ("level", "left", 115), ("fill", "right", 0), ("records/s", "right", 0), ("waiting", "right", 0),
    ("accepted", "right", 140), ("refused", "right", 0), ("lag", "right", 0),
    ("idle", "right", 100), ("age", "right", 90),
)  # fmt: skip


def drawn(snapshot: Snapshot, width: int, height: int = 1_000) -> RenderableType:
    """The screen: `width` columns, and at most `height` lines while there is room for a few lanes."""
    return Group(
        _headline(snapshot), _writer(snapshot), _lanes(snapshot, max(height - FIXED_LINES, 3), width), _places(snapshot)
    )


def _coloured(word: str, text: str | None = None) -> str:
    colour = COLOURS.get(word, "")
    return f"[{colour}]{escape(text or word)}[/]" if colour else escape(text or word)


def _headline(snapshot: Snapshot) -> RenderableType:
    producers = len({lane.producer for lane in snapshot.lanes})
    says = "[green]accepting[/]" if snapshot.accepting else f"[bold red]REFUSING: {escape(snapshot.reason)}[/]"
    return Text.from_markup(
        f"[bold]{snapshot.time[11:19]} UTC[/]  {says}  {producers} producers, {len(snapshot.lanes)} lanes, "
        f"[bold]{snapshot.rate:,.0f}[/] records/s  [dim]{escape(snapshot.runtime_dir)}  {escape(snapshot.ring)}[/]",
        overflow="ellipsis",
    )


def _writer(snapshot: Snapshot) -> Panel:
    writer, said = snapshot.writer, snapshot.writer.figures
    beat = "never ticked" if writer.beat_age_s is None else f"last tick {_age(writer.beat_age_s)} ago"
    lag = f"[{'bold red' if writer.lag_s >= LAG_WARN_SECONDS else 'green'}]{_age(writer.lag_s)}[/]"
    who = f"pid {escape(said['pid'])}" if said else "no writer: start `ringlog writer`, it drains the lanes"
    if writer.state == "starting" and not said:
        who = "it opens its spool"
    lines = [[_coloured(writer.state), who, beat, f"lag {lag}", f"{writer.rate:,.0f} rows/s written"]]
    if said:
        tick, write = said["tick_ms"], said["write_ms"]
        errors = f"{said['errors']:,} errors"
        lines.append([
            f"tick p50 {tick['p50']:.0f} p99 {tick['p99']:.0f} ms, every {said['interval_ms']:.0f} ms",
            f"batch {write['rows']:,.0f} rows", f"write p50 {write['p50']:.1f} p99 {write['p99']:.1f} ms",
        ])  # fmt: skip
        lines.append([
            f"{said['rows']:,} rows", f"[bold red]{errors}[/]" if said["errors"] else errors,
            f"{said['spooled']:,} spooled", f"{said['replayed']:,} replayed",
            f"{said['dead_letters']:,} dead letters", *_quarantined(said), f"{said['rss_bytes'] / 1e6:,.0f} MB",
        ])  # fmt: skip
    if said and said["stalled"]:
        lines.append([f"[bold red]nothing delivered: {escape(said['stalled'])}[/]"])
    title = "writer" if writer.state == "running" else f"writer {_coloured(writer.state, writer.state.upper())}"
    body = "\n".join("  ·  ".join(facts) for facts in lines)
    return Panel(body, title=title, title_align="left", border_style="dim")


def _quarantined(said: dict[str, Any]) -> list[str]:
    rows = said.get("quarantined", 0)
    return [f"[bold red]{rows:,} in quarantine[/]"] if rows else []


def _urgency(lane: LaneFigures) -> tuple[bool, bool, float, float]:
    return (not lane.trouble and lane.owner in ("alive", "left"), not lane.refuse_rate, -lane.fill, -lane.rate)


def _lanes(snapshot: Snapshot, lines: int, width: int) -> Panel:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
    kept = [at for at, (_, _, least) in enumerate(COLUMNS) if width >= least]
    for at in kept:
        name, justify, _ = COLUMNS[at]
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    ordered = sorted(snapshot.lanes, key=_urgency)
    for lane in ordered[:lines]:
        row = _lane_row(lane)
        table.add_row(*(row[at] for at in kept if at < len(row)))
    title = f"lanes {snapshot.lane_bytes / 1e6:,.1f} of {snapshot.lane_bytes_max / 1e6:,.1f} MB"
    title += f", {snapshot.waiting:,} records waiting"
    more = len(ordered) - lines
    body: RenderableType = table if ordered else Text("no lanes: no producer has been here", style="dim")
    return Panel(
        body, title=title, title_align="left", border_style="dim", subtitle=f"{more} more lanes" if more > 0 else None
    )


def _lane_row(lane: LaneFigures) -> list[RenderableType]:
    who = [str(lane.pid), _coloured(lane.owner), escape(lane.record), f"[dim]{escape(lane.lane)}[/]"]
    if lane.trouble:
        trouble = Text(shown(lane.trouble), style="bold red", overflow="fold")
        return [*who[:2], trouble] if len(lane.trouble) > len(lane.record) else [*who, trouble]
    colour = "red" if lane.fill >= FILL_BAD else "yellow" if lane.fill >= FILL_WARN else "green"
    refused = _refused(lane)
    return [
        *who,
        ProgressBar(total=1.0, completed=lane.fill, width=10, complete_style=colour, finished_style=colour),
        f"{lane.fill:.0%}",
        f"{lane.rate:,.0f}",
        f"{lane.waiting:,}",
        f"{lane.accepted:,}",
        f"[bold red]{refused}[/]" if lane.refuse_rate else f"[yellow]{refused}[/]" if lane.refused else refused,
        "-" if lane.lag_s is None else _age(lane.lag_s),
        "-" if lane.idle_s is None else _age(lane.idle_s),
        _age(lane.age_s),
    ]


def _refused(lane: LaneFigures) -> str:
    """How many records, and for which reasons, the most frequent first."""
    reasons = sorted(lane.refused, key=lambda reason: -lane.refused[reason])
    return f"{sum(lane.refused.values()):,} {', '.join(reasons[:2])}{', ...' if reasons[2:] else ''}".rstrip()


def _places(snapshot: Snapshot) -> Panel:
    table = Table.grid(padding=(0, 2))
    spool = snapshot.spool
    table.add_row(
        "spool", _coloured("warn" if spool.bytes else "ok", _size(spool.bytes)), f"of {_size(spool.bytes_max)}"
    )
    for disk in snapshot.disks:
        table.add_row(f"{disk.what} disk" if disk.what != "shared memory" else disk.what,
                      _coloured(disk.level, f"{_size(disk.free_bytes)} free"),
                      f"of {_size(disk.total_bytes)}", escape(disk.path))  # fmt: skip
    for server in snapshot.servers:
        says = (
            _coloured("ok", f"answers in {server.answer_ms:.1f} ms") if server.answers else _coloured("refuse", "DOWN")
        )
        table.add_row(server.name, says, escape(server.address), escape(server.trouble))
    return Panel(table, title="spool, disks, servers", title_align="left", border_style="dim")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit in ("B", "kB") else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _age(seconds: float) -> str:
    """Two figures that a person takes in at a glance."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.1f} {unit}" if seconds / divisor < 10 else f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
