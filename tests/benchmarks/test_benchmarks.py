"""The benchmarks run, tiny, so that they cannot rot; what they measure is asserted nowhere."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import bench
from bench.compare import is_compared
from bench.compare import main as compare
from bench.figures import Cell, Figure, Result
from bench.report import MAIN_PATH, OTHERS, PEERS, Kept, section, sections, versions, write_page
from ringlog.questdb.results import Result as QueryResult
from ringlog.servers import QuestDBServer
from ringlog.servers.questdb import VERSION

# Many processes or waits, one after another.
LONG = (
    "whole_path",
    "freshness",
    "startup",
    "onlookers",
    "replay",
    "outage",
    "spool_replay",
    "restart",
    "growth",
    "interference",
)
WITHOUT_BARS = ("stages",)  # says where time goes


@pytest.fixture(scope="module")
def run_tiny(questdb_server: QuestDBServer) -> Callable[[str], Result]:
    """Runs a benchmark, once."""

    @functools.cache
    def run(name: str) -> Result:
        result: Result = importlib.import_module(f"bench.{name}").run(tiny=True, running=questdb_server)
        return result

    return run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
        for name in (*MAIN_PATH, "growth", "interference")
    ],
)
def test_a_benchmark_runs(name: str, run_tiny: Callable[[str], Result]) -> None:
    """Every benchmark gives its result, whose figures are numbers and, but for a few, some of which have a bar."""
    result = run_tiny(name)
    assert result.benchmark == name
    assert all(math.isfinite(figure.value) for figure in result.figures)
    assert any(figure.bar for figure in result.figures) or name in WITHOUT_BARS


def test_a_benchmark_runs_alone() -> None:
    """`python -m bench.NAME --json` prints one object that reads back as a result."""
    command = [sys.executable, "-m", "bench.transfer", "--json", "--tiny"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert msgspec.json.decode(output, type=Result).benchmark == "transfer"


@pytest.mark.slow
def test_queries_are_measured_with_and_without_writes_beside() -> None:
    """Both passes give the same figures against the same bars, the quiet one all from the views, on a server of their
    own; and the live one says how much was written."""
    result = importlib.import_module("bench.queries").run(tiny=True)
    quiet: dict[str, str] = {}
    live: dict[str, str] = {}
    for figure in result.figures:
        name, beside, _ = figure.name.partition(", rows written beside")
        (live if beside else quiet)[name] = figure.bar
    assert quiet.pop("written beside") == "at least 3,800"
    assert quiet.pop("refused beside") == "at most 0"
    assert quiet == live
    assert sum(bool(bar) for bar in live.values()) == 9
    assert all(figure.value == 100 for figure in result.figures if figure.name.endswith("answered from the view"))
    assert all(math.isfinite(figure.value) and figure.value >= 0 for figure in result.figures)
    assert result.details["written"] > 0


def test_an_answer_that_is_not_the_views_is_no_figure() -> None:
    """Raw rows, or a part of the rows, end the benchmark of the view with an error."""
    check_from_view = importlib.import_module("bench.queries").check_from_view
    answer = functools.partial(QueryResult, [], [], tuple)
    check_from_view(answer(source="view"))
    for wrong in ({"source": "raw"}, {"source": "view", "partial": True}):
        with pytest.raises(RuntimeError, match="wanted all of it from 'view'"):
            check_from_view(answer(**wrong))


@pytest.mark.parametrize(
    ("bar", "value", "verdict"),
    [
        ({"at_most": 2.0}, 2.0, "met"),
        ({"at_most": 2.0}, 2.01, "not met"),
        ({"at_least": 80.0}, 79.9, "not met"),
        ({"at_least": 80.0, "at_most": 120.0}, 79.0, "not met"),
        ({"at_most": 2.0}, float("nan"), "not met"),
        ({}, 1.0, ""),
    ],
)
def test_a_missed_bar_is_shown_as_missed(bar: dict[str, float], value: float, verdict: str) -> None:
    """A figure past its bar says "not met", on the page too; one without a bar says nothing."""
    figure = Figure(name="f", value=value, **bar)
    assert figure.verdict == verdict
    page = section(Kept(Result(benchmark="b", what="w", figures=[figure]), "machine", "now", 0.0))
    assert ("**not met**" in page) == (verdict == "not met")


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        ({"at_most": 2.0}, "at most 2"),
        ({"at_least": 80.0}, "at least 80"),
        ({"at_least": 80.0, "at_most": 120.0}, "80 to 120"),
        ({"at_least": 100.0, "at_most": 100.0}, "exactly 100"),
        ({}, ""),
    ],
)
def test_a_bar_is_shown_whole(bar: dict[str, float], words: str) -> None:
    """A bar with two ends shows both: "at most 100 %" would let lost rows pass."""
    assert Figure(name="f", value=100, **bar).bar == words


def test_figures_that_are_many_alike_make_a_table() -> None:
    """Cells are shown by row and column, a bar beside its value, bold where it is missed; other figures as before."""

    def cell(row: str, column: str, value: float, at_least: float | None = None) -> Figure:
        name = f"{row} {column}"
        return Figure(name=name, value=value, unit="x", at_least=at_least, cell=Cell("By peer", row, column))

    figures = [
        Figure(name="alone", value=3, unit="ns"),
        cell("Queue", "p50", 7.5, at_least=10),
        cell("Queue", "p99", 12, at_least=1),
        cell("Pipe", "p99", 30),
    ]
    result = Result(benchmark="b", what="w", figures=figures, details={"left_out": {"fifo": "no module"}})
    lines = section(Kept(result, "machine", "now", 0.0)).splitlines()
    at = lines.index("### By peer")
    assert "| alone | 3 ns | | |" in lines[:at]
    assert lines[at + 2 : at + 6] == [
        "| | p50 | p99 |",
        "|---|---:|---:|",
        "| Queue | **7.5 (at least 10), not met** | 12 (at least 1) |",
        "| Pipe |  | 30 |",
    ]
    assert "- fifo: no module" in lines


def kept(result: Result, path: Path) -> Path:
    """A result as a run leaves it."""
    path.write_bytes(msgspec.json.encode(Kept(result, "machine", "now", 0.0)))
    return path


def altered(result: Result, index: int, value: float) -> Result:
    """The same result with another value of one figure."""
    figures = list(result.figures)
    figures[index] = msgspec.structs.replace(figures[index], value=value)
    return msgspec.structs.replace(result, figures=figures)


def compared(before: Path, after: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a comparison names, which goes with its exit status."""
    patch.setattr(sys, "argv", ["compare", str(before), str(after)])
    status = compare()
    *named, summary = capsys.readouterr().out.splitlines()
    assert "compared" in summary
    assert status == bool(named)
    return named


def test_a_ratio_that_got_worse_is_named(
    run_tiny: Callable[[str], Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of two real results a comparison names each ratio that is 20 % worse, that is gone, or that misses a bar it met;
    none that is as it was or better, and no absolute time."""
    result = run_tiny("append")
    before = kept(result, tmp_path / "before.json")
    ratios = [index for index, figure in enumerate(result.figures) if is_compared(figure)]
    assert len(ratios) >= 4
    for index in ratios:
        figure = result.figures[index]
        worse = kept(altered(result, index, figure.value * 1.2), tmp_path / "after.json")
        (named,) = compared(before, worse, monkeypatch, capsys)
        assert figure.name in named
        assert "20 % worse" in named
        for harmless in (1.0, 0.5):
            after = kept(altered(result, index, figure.value * harmless), tmp_path / "after.json")
            assert compared(before, after, monkeypatch, capsys) == []
    times = next(index for index, figure in enumerate(result.figures) if figure.unit == "ns")
    slower = kept(altered(result, times, 1e9), tmp_path / "after.json")
    assert compared(before, slower, monkeypatch, capsys) == []
    gone = kept(msgspec.structs.replace(result, figures=result.figures[1:]), tmp_path / "after.json")
    assert "not measured" in compared(before, gone, monkeypatch, capsys)[0]
    count = Figure(name="lost", value=0, at_most=0)
    none_lost = kept(Result(benchmark="b", what="w", figures=[count]), tmp_path / "before.json")
    one_lost = kept(altered(Result(benchmark="b", what="w", figures=[count]), 0, 1), tmp_path / "after.json")
    assert "misses its bar" in compared(none_lost, one_lost, monkeypatch, capsys)[0]


def test_a_benchmark_that_was_not_run_again_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two whole runs a benchmark that only the first has is named: it may have failed."""
    before, after = tmp_path / "before", tmp_path / "after"
    for directory, names in ((before, ("one", "other")), (after, ("one",))):
        directory.mkdir()
        for name in names:
            kept(Result(benchmark=name, what="w", figures=[]), directory / f"{name}.json")
    assert compared(before, after, monkeypatch, capsys) == ["other: was measured, now not"]
    assert compared(before, after / "one.json", monkeypatch, capsys) == []


def test_a_comparison_of_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there, no result, or results of different benchmarks: a usage error, never "nothing got worse"."""
    one = kept(Result(benchmark="one", what="w", figures=[]), tmp_path / "one.json")
    other = kept(Result(benchmark="other", what="w", figures=[]), tmp_path / "other.json")
    (tmp_path / "no.json").write_text("{}")
    for after in (tmp_path / "missing.json", tmp_path / "no.json", other):
        monkeypatch.setattr(sys, "argv", ["compare", str(one), str(after)])
        with pytest.raises(SystemExit, match="2"):
            compare()


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `write_page` writes, in a directory of this test's own, beside results that it reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "bench").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs" / "performance.md"


def measured(name: str, value: float, **facts: Any) -> None:
    """Leaves a result as a run of the benchmark does."""
    result = Result(benchmark=name, what=f"what {name}", figures=[Figure(name="f", value=value)])
    found = Kept(result, "a machine", "now", 0.0, **{"versions": {"Python": "3.11", "numpy": "2"}, **facts})
    Path("build", "bench", f"{name}.json").write_bytes(msgspec.json.encode(found))


def test_the_page_keeps_sections_that_were_not_measured_again(page: Path) -> None:
    """A section whose result is no longer kept stays as it was, where it was; writing twice gives the same bytes."""
    for name in ("append", "replay", "soak"):
        measured(name, 1)
    write_page()
    before = page.read_text()
    assert list(sections(before)) == ["append", "replay", "soak"]
    write_page()
    assert page.read_text() == before
    for name in ("append", "soak"):
        Path("build", "bench", f"{name}.json").unlink()
    write_page()
    assert page.read_text() == before
    measured("replay", 2)
    for _ in range(2):
        write_page()
        assert page.read_text() == before.replace(
            """what replay

`python -m bench.replay`; now, load average before: 0.0

<!-- of: a machine, with Python 3.11, numpy 2 -->

| figure | measured | bar | |
|---|---:|---|---|
| f | 1 |""",
            """what replay

`python -m bench.replay`; now, load average before: 0.0

<!-- of: a machine, with Python 3.11, numpy 2 -->

| figure | measured | bar | |
|---|---:|---|---|
| f | 2 |""",
        )


def test_the_page_says_with_what_each_section_was_measured(page: Path) -> None:
    """The page names machine and versions once where they are alike, else each benchmark's own, also of sections that
    it kept; the commit stands in its section."""
    measured("append", 1, commit="abc with changes")
    measured("soak", 1)
    write_page()
    assert "\nMeasured on a machine, with Python 3.11, numpy 2.\n" in page.read_text()
    assert "`python -m bench.append`; now, commit abc with changes, load" in page.read_text()
    Path("build", "bench", "soak.json").unlink()
    measured("append", 1, versions={"Python": "3.12"})
    measured("replay", 1, versions={})
    write_page()
    for line in (
        "append: measured on a machine, with Python 3.12.",
        "soak: measured on a machine, with Python 3.11, numpy 2.",
        "replay: measured on machine and versions that were not kept.",
    ):
        assert f"\n{line}\n" in page.read_text()


def test_every_benchmark_has_its_place_on_the_page() -> None:
    """Whatever runs as a benchmark can be asked for by name, and once."""
    modules = [path for path in Path(bench.__file__).parent.glob("*.py") if "def run(tiny: bool" in path.read_text()]
    assert sorted((*MAIN_PATH, *OTHERS)) == sorted([*(path.stem for path in modules), "peers", "soak"])


def test_versions_are_those_that_run() -> None:
    """Python, numpy, QuestDB, its client, and every peer that is installed here."""
    found = versions()
    assert found["Python"] == platform.python_version()
    assert (found["numpy"], found["QuestDB"]) == (np.__version__, VERSION)
    assert found["questdb client"] == importlib.metadata.version("questdb")
    assert set(PEERS) & set(found) == {name for name in PEERS if list(importlib.metadata.distributions(name=name))}
