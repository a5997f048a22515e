"""What a developer sees of an append before it runs: types, reprs and names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringlog
from ringlog import LatencySample, Producer
from ringlog.ring import IMPLEMENTATION
from ringlog.testing import MemoryInstance

CASES = Path(__file__).with_name("typed_appends.py")
WANTED = {
    (number, match[1])
    for number, line in enumerate(CASES.read_text().splitlines(), 1)
    if (match := re.search(r"# error: ([\w-]+)$", line))
}


def test_mypy_finds_each_planted_mistake_and_no_other() -> None:
    """Finding 47: unknown, missing and wrongly typed fields are errors of `mypy --strict`, and right calls are none."""
    pytest.importorskip("mypy", reason="mypy is not at hand")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", "--no-pretty", str(CASES)],
        cwd=Path(ringlog.__file__).parents[1], capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    found = re.findall(r"typed_appends\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == WANTED, done.stdout + done.stderr
    assert f"Found {len(WANTED)} errors in 1 file" in done.stdout


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not at hand (its wheel fetches Node)")
def test_pyright_finds_each_planted_mistake_and_no_other() -> None:
    """The same lines are errors of pyright's, whatever it calls them."""
    done = subprocess.run(
        [shutil.which("pyright") or "pyright", "--pythonpath", sys.executable, str(CASES)],
        cwd=Path(ringlog.__file__).parents[1], capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    found = re.findall(r"typed_appends\.py:(\d+):\d+ - error", done.stdout)
    assert {int(number) for number in found} == {number for number, _ in WANTED}, done.stdout


def test_reprs_say_table_lane_counts_and_ring(ringlog_memory: MemoryInstance) -> None:
    """Finding 47: the repr of an appender says table, lane, accepted, refused and which ring; a producer's, of each."""
    ring = {"c": "C ring", "python": "Python ring"}[IMPLEMENTATION]
    producer = Producer([LatencySample], settings=ringlog_memory.settings)
    assert "no lane, 0 accepted, 0 refused" in repr(producer)
    with producer:
        appender = producer.appender(LatencySample)
        assert appender.append(service="s", operation="o", latency_us=1.0)
        producer._appenders[LatencySample]._ring.refuse(0, 2)
        wanted = f"table latencies, lane {appender.lane:016x}, 1 accepted, 2 refused, {ring}>"
        assert repr(appender) == f"<Appender of LatencySample: {wanted}"
        assert repr(appender) in repr(producer)


def test_the_package_lists_its_names() -> None:
    """Finding 47: `dir(ringlog)` has every public name, those of the platform records too, and each can be imported."""
    assert set(dir(ringlog)) == {*ringlog.__all__, "__version__"}
    assert {"Trade", "Position", "MevMetric", "PerformanceMetric", "LatencySample", "Record"} <= set(ringlog.__all__)
    assert all(getattr(ringlog, name) is not None for name in dir(ringlog))
