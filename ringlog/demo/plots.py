"""The session's plots: six panels, together in one PNG and one by one as SVG. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ringlog.demo.analysis import Findings, age_bins
from ringlog.demo.report import SessionReport

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ed"
BLUE, ORANGE, GREEN, RED, VIOLET, GREY = "#2f6fde", "#e08214", "#2a9d68", "#c8443c", "#7a5bc7", "#a3adb8"
KIND_COLOURS = {"scalper": BLUE, "swing": ORANGE, "desk": GREY}
TABLE_COLOURS = {
    "append.trades": BLUE,
    "append.latencies": GREEN,
    "append.positions": ORANGE,
    "append.mev_metrics": VIOLET,
    "append.performance_metrics": GREY,
}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


POINTS_MAX = 20_000  # of a line or a cloud: more can't be told apart, and take a minute for a million


def thinned(*columns: Any) -> tuple[Any, ...]:
    """The columns with every n-th row only, so that at most POINTS_MAX are drawn; the last row is among them."""
    step = -(-len(columns[0]) // POINTS_MAX) or 1
    return tuple(column[::-1][::step][::-1] for column in columns)


def draw_price(axes: Any, found: Findings, session: SessionReport) -> None:
    times, prices = _dates(found.prices["time_us"]), found.prices["executed_price"].astype(float)
    exits = found.prices["is_exit"].astype(bool)
    axes.plot(*thinned(times, prices), color=BLUE, linewidth=0.9, rasterized=True)
    axes.plot(
        *thinned(times[exits], prices[exits]), linestyle="", marker="v", markersize=4.5, color=RED, markeredgewidth=0,
        label=f"sold by stop-loss or take-profit ({exits.sum():,})",
    )  # fmt: skip
    axes.set_title(f"{session.market}: trades and exits")
    axes.set_ylabel("price")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    _time_axis(axes)
    if exits.any():
        axes.legend(loc="best")


def draw_profit(axes: Any, found: Findings, session: SessionReport) -> None:
    times, names = _dates(found.profits["time_us"]), found.profits["trader_id"].astype(str)
    pnl = found.profits["pnl"].astype(float)
    labelled = set()
    for name in sorted(set(names)):
        kind = name.partition("-")[0]
        if kind == "desk":
            continue
        chosen = names == name
        label = None if kind in labelled else f"{kind} traders"
        labelled.add(kind)
        axes.step(
            *thinned(times[chosen], pnl[chosen]), where="post", color=KIND_COLOURS[kind], linewidth=1.2, label=label
        )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_title("P&L of the traders with limits, all fees paid")
    axes.set_ylabel(session.market.partition("/")[2])
    _time_axis(axes)
    axes.legend(loc="best")


def draw_latency(axes: Any, found: Findings, _session: SessionReport) -> None:
    age, slippage = found.latency["age_ms"], found.latency["slippage_bps"]
    right = float(np.percentile(age, 99.5)) if len(age) else 1.0
    top = float(np.percentile(slippage, 98)) if len(slippage) else 1.0
    axes.plot(
        *thinned(age, slippage), linestyle="", marker=".", markersize=3.5, alpha=0.25, color=BLUE, markeredgewidth=0,
        rasterized=True, label="a trade",
    )  # fmt: skip
    if len(age):
        middle, mean, error = age_bins(age, slippage)
        axes.errorbar(
            middle, mean, yerror := 1.96 * error, color=RED, linewidth=1.8, marker="o", markersize=4, capsize=2,
            label="mean of a twelfth of the trades",
        )  # fmt: skip
        top = max(top, float((mean + yerror).max()))
    axes.set_xlim(0, right * 1.02)
    axes.set_ylim(0, top * 1.1 or 1.0)
    axes.set_title(f"Latency against slippage (rank correlation {found.rank_correlation:+.2f})")
    axes.set_xlabel("age of the price at the decision, ms")
    axes.set_ylabel("slippage, bps")
    legend = axes.legend(loc="upper right")
    for handle in legend.legend_handles[:1]:
        handle.set_alpha(1)


def draw_protection(axes: Any, found: Findings, _session: SessionReport) -> None:
    groups = [("unprotected", found.unprotected), ("protected", found.protected)]
    for offset, colour, label, values in (
        (-0.18, GREY, "expected in the public mempool", [group.expected_loss_bps for _, group in groups]),
        (0.18, GREEN, "actual", [group.actual_loss_bps for _, group in groups]),
    ):
        bars = axes.bar([place + offset for place in range(2)], values, width=0.32, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, color=INK)
    tallest = max(max(group.expected_loss_bps, group.actual_loss_bps) for _, group in groups)
    axes.set_ylim(0, tallest * 1.3 or 1.0)
    axes.set_xlim(-0.6, 1.6)
    axes.set_xticks([0, 1], [f"{name}\n{group.in_danger:,} trades in danger" for name, group in groups])
    axes.tick_params(axis="x", labelcolor=INK)
    axes.grid(axis="x", visible=False)
    axes.set_title("Protection against loss to sandwiches")
    axes.set_ylabel("mean loss, bps")
    axes.legend(loc="upper right")


def draw_operations(axes: Any, found: Findings, _session: SessionReport) -> None:
    table: dict[str, dict[int, float]] = {}
    for name, percentile, latency_us in zip(
        found.operations["operation"], found.operations["percentile"], found.operations["latency_us"], strict=True
    ):
        if "price_age" not in str(name) and not str(name).startswith("exchange-feed"):
            table.setdefault(str(name), {})[int(percentile)] = float(latency_us) / 1e3
    table = {name: row for name, row in table.items() if row.keys() >= {50, 95, 99} and row[50] > 0}
    names = sorted(table, key=lambda name: table[name][50])
    places = np.arange(len(names))
    axes.hlines(places, [table[n][50] for n in names], [table[n][99] for n in names], color=GRID, linewidth=4)
    for percentile, colour in ((50, BLUE), (95, ORANGE), (99, RED)):
        values = [table[name][percentile] for name in names]
        axes.plot(values, places, linestyle="", marker="o", markersize=5.5, color=colour, label=f"p{percentile}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=8.5)
    axes.set_title("Latency of every operation")
    axes.set_xlabel("ms, logarithmic")
    axes.set_ylim(-1.4, len(names) - 0.5)
    axes.legend(loc="lower right", ncols=3)


def draw_throughput(axes: Any, found: Findings, _session: SessionReport) -> None:
    operations = found.throughput["operation"].astype(str)
    stamps = found.throughput["time_us"].astype(float)
    values = found.throughput["value"].astype(float)
    if len(stamps):
        # The rows of one round are microseconds apart: whole seconds bring them together.
        seconds = ((stamps - stamps.min()) / 1e6).round().astype(int)
        grid = np.unique(seconds)
        layers, labels = [], []
        for name in TABLE_COLOURS:
            series = np.zeros(len(grid))
            chosen = operations == name
            np.maximum.at(series, np.searchsorted(grid, seconds[chosen]), values[chosen])
            layers.append(series)
            labels.append(name.removeprefix("append."))
        axes.stackplot(grid, layers, labels=labels, colors=list(TABLE_COLOURS.values()), alpha=0.85, linewidth=0)
        axes.set_xlim(0, max(1, grid[-1]))
        axes.legend(loc="upper right", ncols=2)
        axes.set_ylim(0, max(1.0, float(np.sum(layers, axis=0).max())) * 1.35)
    axes.set_title("Records appended")
    axes.set_xlabel("seconds of the session")
    axes.set_ylabel("records/s")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


PANELS: dict[str, Callable[[Any, Findings, SessionReport], None]] = {
    "latency": draw_latency,
    "protection": draw_protection,
    "price": draw_price,
    "profit": draw_profit,
    "operations": draw_operations,
    "throughput": draw_throughput,
}


def _dates(time_us: Any) -> Any:
    return date2num(time_us.astype("datetime64[us]"))  # type: ignore[no-untyped-call]


def _time_axis(axes: Any) -> None:
    axes.xaxis_date()
    locator = axes.xaxis.get_major_locator()
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def svg(found: Findings, session: SessionReport, name: str) -> str:
    """One panel as an SVG element, without the XML prologue."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name, "savefig.dpi": 150}):
        figure = Figure(figsize=(6.6, 4.1), layout="constrained")
        PANELS[name](figure.add_subplot(), found, session)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def write_png(found: Findings, session: SessionReport, path: Path) -> None:
    """All panels in one picture."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.6, 13.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.14)  # type: ignore[union-attr, call-arg]
        figure.suptitle(
            f"ringlog paper-trading session: {session.trades:,} trades of {session.market}\n{session.source}",
            x=0.012, ha="left", fontsize=15, fontweight="bold",
        )  # fmt: skip
        for axes, draw in zip(figure.subplots(3, 2).flat, PANELS.values(), strict=True):
            draw(axes, found, session)
        figure.savefig(path, dpi=110)
