"""The soak: its report's arithmetic, a run that Ctrl-C ends, and ten minutes of it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from bench.figures import Figure, Result
from bench.samples import Sample, figures, slope
from bench.soak import soak
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import attach_segment
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

RATE = 10_000
SECONDS = 3600
TEN_MINUTES_MB_PER_HOUR = 6
NOISE = np.random.default_rng(1).normal(0, 200_000, SECONDS)  # bytes


def steady(second: int) -> Sample:
    """What a writer that leaks nothing looks like after so many seconds: noise, a warm-up, a jump, a busy minute."""
    writer_bytes = 150_000_000 + int(NOISE[second]) + 20_000_000 * (second > 600) + 3_000_000 * (second > 1100)
    return Sample(
        second + 1.0, writer_bytes, writer_bytes, 30 + 2 * (1000 < second < 1060), 6 + (second == 3599), 390_000_000,
        RATE * (second + 1), 0, 1200, 100.0, 130.0, 400.0, 2000.0, 30_000.0, 1e6,
    )  # fmt: skip


def missed(change: Callable[[Sample], None], refused: int = 0, lost: int = 0) -> set[str]:
    """The figures whose bar an hour of steady samples, each changed, does not meet."""
    samples = [steady(second) for second in range(SECONDS)]
    for sample in samples:
        change(sample)
    accepted = RATE * SECONDS
    found = figures(samples, RATE, accepted, refused, accepted - lost)
    assert sum(bool(figure.bar) for figure in found) == 7
    return {figure.name for figure in found if figure.verdict == "not met"}


def leak(name: str, per_hour: float) -> Callable[[Sample], None]:
    """A field that grows by so much an hour."""
    return lambda sample: setattr(sample, name, getattr(sample, name) + int(per_hour * sample.seconds / 3600))


@pytest.mark.parametrize(
    ("change", "counts", "named"),
    [
        (lambda _: None, {}, None),
        (leak("writer_bytes", 1_200_000), {}, "writer's memory, slope"),
        (leak("writer_bytes", 800_000), {}, None),
        (leak("producers_bytes", 1_200_000), {}, "producers' memory, slope of all"),
        (leak("writer_descriptors", 2), {}, "writer's descriptors, growth"),
        (leak("writer_threads", 2), {}, "writer's threads, growth"),
        (leak("accepted", -0.06 * RATE * SECONDS), {}, "rate after warm-up"),
        (lambda _: None, {"refused": 1}, "refused"),
        (lambda _: None, {"lost": 1}, "accepted and not stored"),
        (lambda _: None, {"lost": -1}, "accepted and not stored"),
    ],
)
def test_what_creeps_misses_its_bar(
    change: Callable[[Sample], None], counts: dict[str, int], named: str | None
) -> None:
    """A leak, a record refused, lost or stored twice, and a load that was not reached each miss their own bar, and
    that one alone; noise, jumps and what comes and goes miss none."""
    assert missed(change, **counts) == ({named} if named else set())


def test_the_slope_is_that_of_most_pairs() -> None:
    """The slope of a line is found through a fifth of outliers, and is 0 where there is one point."""
    x = np.arange(1000.0)
    y = 3 * x + 1e6 * (np.arange(1000) % 5 == 0)
    assert slope(x, y) == pytest.approx(3)
    assert slope([1.0], [2.0]) == 0.0


def value(result: Result, name: str) -> Figure:
    return next(figure for figure in result.figures if figure.name == name)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ctrl_c_ends_a_soak_with_its_report(tmp_path: Path) -> None:
    """Ctrl-C in the middle: the samples, the plot and a report in which each record accepted was stored and
    none refused; its processes and its shared memory are gone."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench.soak", "--hours", "0.1", "--rate", "1000", "--out", str(out), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "samples.csv").exists() or len((out / "samples.csv").read_text().splitlines()) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        (runtime_dir,) = tmp_path.glob("ringlog-bench-*/run")
        instance = Instance(Settings(runtime_dir=str(runtime_dir)))
        segments = [instance.board_name, *(card.segment for card in cards(instance))]
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    result = msgspec.json.decode(output, type=Result)
    assert result == msgspec.json.decode((out / "report.json").read_bytes(), type=Result)
    missed = [figure.name for figure in result.figures if figure.verdict == "not met"]
    assert process.returncode == bool(missed)
    assert value(result, "records accepted").value > 0
    for name in ("refused", "accepted and not stored"):
        assert value(result, name).verdict == "met"
    rows = list(csv.DictReader((out / "samples.csv").read_text().splitlines()))
    assert int(rows[-1]["writer_descriptors"]) > 3
    assert "<svg" in (out / "soak.svg").read_text()
    assert len(family) >= 6  # server and its guard, writer, four producers
    assert not psutil.wait_procs(family, timeout=20)[1]  # the guard and multiprocessing's tracker follow their parent
    assert len(segments) == 9
    for segment in segments:
        with pytest.raises(FileNotFoundError):
            attach_segment(segment)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_without_drift(questdb_server: QuestDBServer, tmp_path: Path) -> None:
    """Ten minutes at 10,000 records/s meet the bars of the hour; memory, some of whose pages are touched for the first
    time after so short a warm-up, grows by less than a megabyte: a byte leaked a record would be six."""
    result = soak(600.0, RATE, tmp_path, threading.Event(), questdb_server)
    slopes = [figure for figure in result.figures if "memory, slope" in figure.name and figure.bar]
    assert len(slopes) == 2
    assert not [figure for figure in slopes if not figure.value < TEN_MINUTES_MB_PER_HOUR]
    assert not [figure for figure in result.figures if figure.verdict == "not met" and figure not in slopes]
