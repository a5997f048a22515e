"""The benchmarks run, tiny, so that they cannot rot; what they measure is asserted nowhere."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import msgspec
import pytest

from bench.figures import Figure, Result
from bench.report import MAIN_PATH, Kept, section
from ringlog.servers import QuestDBServer

LONG = ("spool_replay", "restart")  # several writers, one after another


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in MAIN_PATH]
)
def test_a_benchmark_runs(name: str, questdb_server: QuestDBServer) -> None:
    """Every benchmark of the main path gives its result, whose figures are numbers and some of which have a bar."""
    result = importlib.import_module(f"bench.{name}").run(tiny=True, running=questdb_server)
    assert result.benchmark == name
    assert all(math.isfinite(figure.value) for figure in result.figures)
    assert any(figure.bar for figure in result.figures)


def test_a_benchmark_runs_alone() -> None:
    """`python -m bench.NAME --json` prints one object that reads back as a result."""
    command = [sys.executable, "-m", "bench.transfer", "--json", "--tiny"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert msgspec.json.decode(output, type=Result).benchmark == "transfer"


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


def test_peers_run() -> None:
    """The comparison runs and counts every record that the rings among the peers carried, in both modes."""
    result = importlib.import_module("bench.peers.__main__").run(tiny=True)
    names = {figure.name for figure in result.figures}
    for mode in ("as its users run it", "drained every 100 ms"):
        assert {f"ringlog, {mode}, full speed", f"a plain numpy ring, {mode}, full speed"} <= names
    assert not {"ringlog", "a plain numpy ring"} & set(result.details["left_out"])
