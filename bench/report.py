"""Runs the benchmarks one after another and writes docs/performance.md: `python -m bench.report [NAME ...]`.

Results are kept in build/bench/, and plots, where a benchmark draws any, in build/NAME/. A run of one benchmark leaves
the others' sections in the page: from what is kept, or else as the page has them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.figures import Figure, Result, shown

MAIN_PATH = (
    "append",
    "transfer",
    "stages",
    "whole_path",
    "freshness",
    "startup",
    "onlookers",
    "replay",
    "spool_replay",
    "restart",
    "outage",
)
DATA_LAYER = ("queries", "query_pool", "postgres", "redis_layer")
OTHERS = (*DATA_LAYER, "peers", "growth", "interference", "soak")  # by name only: other servers, or longer
RESULTS = Path("build/bench")
PAGE = Path("docs/performance.md")
PLOTS = PAGE.parent / "plots"

INTRODUCTION = """# Performance

Written by `./scripts/bench`: don't edit it, run it again. Ratios are medians of three to seven rounds in which the
contenders take turns, so that whatever else the machine does meets all of them alike; absolute figures are this
machine's.

"Empty call" is an empty Python function called with the same arguments. Batched timing measures a loop over records
that differ; the ratio is (append - clock) / (empty call - clock), where the loop itself, which both contain, is not
taken off: the line "loop subtracted too" takes it off as well. Paced timing measures each call by itself and takes off
what two readings of the clock cost. "Until applied" ends when a query counts every row.
"""


class Kept(msgspec.Struct):
    """A result with when and where it was measured."""

    result: Result
    machine: str
    measured: str
    load_before: float


def machine() -> str:
    """The processor, as the system names it, cores and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def measured(name: str, extra: list[str]) -> Kept:
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", f"bench.{name}", "--json", *extra]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if not ended.stdout:  # with a result, status 1 says that a bar was missed: so does the page
        ended.check_returncode()
    result = msgspec.json.decode(ended.stdout, type=Result)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Kept(result, machine(), now, load)


def row(figure: Figure) -> str:
    verdict = f"**{figure.verdict}**" if figure.verdict == "not met" else figure.verdict
    return f"| {figure.name} | {shown(figure.value)} {figure.unit} | {figure.bar} | {verdict} |".replace("  ", " ")


def tables(figures: Sequence[Figure]) -> list[str]:
    """The tables of figures that are cells; a cell with a bar shows it, in bold where it is not met."""
    captions = list(dict.fromkeys(figure.cell.table for figure in figures if figure.cell))
    lines: list[str] = []
    for caption in captions:
        cells = {(f.cell.row, f.cell.column): f for f in figures if f.cell and f.cell.table == caption}
        names, columns = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
        lines += [f"### {caption}", "", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        for name in names:
            shown_cells = [content(cells.get((name, column))) for column in columns]
            lines.append(f"| {name} | {' | '.join(shown_cells)} |")
        lines.append("")
    return lines


def content(figure: Figure | None) -> str:
    if figure is None:
        return ""
    text = f"{shown(figure.value)} ({figure.bar})" if figure.bar else shown(figure.value)
    return f"**{text}, {figure.verdict}**" if figure.verdict == "not met" else text


def section(kept: Kept) -> str:
    result = kept.result
    lines = [f"## {result.what}", ""]
    lines += [f"`python -m bench.{result.benchmark}`; {kept.measured}, load average before: {kept.load_before:.1f}", ""]
    rows = [row(figure) for figure in result.figures if figure.cell is None]
    if rows:
        lines += ["| figure | measured | bar | |", "|---|---:|---|---|", *rows, ""]
    lines += tables(result.figures)
    for plot in sorted(PLOTS.glob(f"{result.benchmark}-*.svg")):
        lines += [f"![{result.what}: {plot.stem}](plots/{plot.name})", ""]
    left_out: dict[str, str] = result.details.get("left_out", {})
    if left_out:
        lines += ["Left out here:", "", *(f"- {name}: {reason}" for name, reason in left_out.items()), ""]
    notes = Path("bench/notes") / f"{result.benchmark}.md"
    if notes.exists():
        lines += [notes.read_text().strip(), ""]
    return "\n".join(lines)


def sections(page: str) -> dict[str, str]:
    """The sections of a page by benchmark."""
    parts = ["## " + part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
    return {name: part for part in parts for name in re.findall(r"^`python -m bench\.(\w+)`", part, re.MULTILINE)[:1]}


def write_page() -> None:
    """Every benchmark's section, from what is kept or as it is in the page, and the plots beside it."""
    PAGE.parent.mkdir(exist_ok=True)
    shown_before = sections(PAGE.read_text()) if PAGE.exists() else {}
    written = []
    for name in (*MAIN_PATH, *OTHERS):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            written += [shown_before[name]] if name in shown_before else []
            continue
        for plot in Path("build", name).glob("*.svg"):
            PLOTS.mkdir(exist_ok=True)
            shutil.copy(plot, PLOTS / f"{name}-{plot.name}")
        written.append(section(msgspec.json.decode(path.read_bytes(), type=Kept)))
    where = f"Measured on {machine()}.\n"
    PAGE.write_text("\n".join([INTRODUCTION, where, *written]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MAIN_PATH), help=f"of {', '.join((*MAIN_PATH, *OTHERS))}")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; the page is not written")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for name in arguments.names:
        print(f"bench.{name} ...", file=sys.stderr, flush=True)
        try:
            kept = measured(name, ["--tiny"] if arguments.tiny else [])
        except subprocess.CalledProcessError as error:
            print(f"bench.{name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        print(section(kept))
        if not arguments.tiny:
            (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
    if not arguments.tiny:
        write_page()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
