"""Plots of benchmarks: panels of lines in one small SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ringlog.demo.plots import BLUE, GREEN, GREY, ORANGE, RED, STYLE, VIOLET

COLOURS = (BLUE, ORANGE, RED, GREEN, VIOLET, GREY)


class Line:
    """One line of a panel: `x` and `y` of the same length."""

    def __init__(self, label: str, x: Sequence[float], y: Sequence[float], marker: str = "") -> None:
        self.label, self.x, self.y, self.marker = label, x, y, marker


class Panel:
    """Lines over the same axes; those in `logarithmic` ("x", "y", "xy") are logarithmic, the others begin at 0."""

    def __init__(self, title: str, x_label: str, y_label: str, lines: Sequence[Line], logarithmic: str = "") -> None:
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.lines, self.logarithmic = lines, logarithmic


def write_svg(path: Path, panels: Sequence[Panel], columns: int = 2) -> None:
    """All panels in one SVG whose text is text, the same for the same lines."""
    rows = -(-len(panels) // columns)
    with mpl.rc_context({**STYLE, "svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4 * columns, 3.4 * rows), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in places[len(panels) :]:
            axes.remove()
        for axes, panel in zip(places, panels, strict=False):
            for line, colour in zip(panel.lines, COLOURS, strict=False):
                axes.plot(
                    line.x, line.y, color=colour, linewidth=1.2, marker=line.marker, markersize=4, label=line.label
                )
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if "x" in panel.logarithmic:
                axes.set_xscale("log")
            if any(line.marker for line in panel.lines):  # points of which each is worth its own tick
                axes.set_xticks(panel.lines[0].x, [f"{value:,.10g}" for value in panel.lines[0].x])
                axes.minorticks_off()
            if "y" in panel.logarithmic:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            if len(panel.lines) > 1:
                axes.legend(loc="best")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
