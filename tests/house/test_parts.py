"""Parts of the suite (finding 51): together they are all of it; what passed is noted and told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import parts
import pytest
from house_project import ROOT
from lane_samples import DEADLINE_SECONDS, eventually

CONFTEST = """
import parts
def pytest_addoption(parser): parts.add_options(parser)
def pytest_configure(config): parts.configure(config)
"""
QUICK = "def test_quick(record_property): record_property('seeds', 'dice 0-9')\n"
STOPPED = """
import pathlib, time
def test_stopped():
    pathlib.Path("begun").touch()
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with two files of tests, and the parts of this suite."""
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(ROOT / "tests/parts.py", tests)
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "test_a.py").write_text(QUICK)
    (tests / "test_b.py").write_text(QUICK)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\nbegun\nout.txt\n")
    committed(tmp_path)
    return tmp_path


def committed(project: Path) -> None:
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        names = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *names, *arguments], cwd=project, check=True)


@contextlib.contextmanager
def started(project: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run of the project's tests, without the plugins that this suite has and that one does not need; its output."""
    # Who runs the suite in the background may have ignored SIGINT, and a child inherits that.
    begin = (
        "import pytest, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())"
    )
    command = [sys.executable, "-u", "-c", begin, "-v", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    out = project / "out.txt"
    with (
        out.open("wb") as file,
        subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file) as process,
    ):
        try:
            yield process, out
        finally:
            process.kill()


def ran(project: Path, *arguments: str) -> str:
    with started(project, *arguments) as (process, out):
        status = process.wait(DEADLINE_SECONDS)
    assert status == 0, out.read_text()
    return out.read_text()


def noted(project: Path) -> dict[str, dict[str, object]]:
    path = project / "tests/slow-parts.json"
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_parts_are_all_of_it_and_of_one_length(count: int) -> None:
    """Each unit is in one part, and no two parts differ by more than the longest unit."""
    seconds = {f"tests/test_{number}.py": float(number * number % 97 + 1) for number in range(200)}
    found = parts.divided(seconds, count)
    assert sorted(unit for part in found for unit in part) == sorted(seconds)
    lengths = [sum(seconds[unit] for unit in part) for part in found]
    assert max(lengths) - min(lengths) <= max(seconds.values())
    assert found == parts.divided(dict(reversed(seconds.items())), count)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    """The message names what was got and what is wanted."""
    with pytest.raises(pytest.UsageError, match=f"--part: got '{text}', wanted K/N"):
        parts.Part.parse(text)


def test_a_part_that_passed_is_noted_with_its_commit(project: Path) -> None:
    """A part that passes is noted with its commit and seeds; some of its tests are not, nor is a tree with changes."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True).stdout
    ran(project, "--part", "1/2", "-k", "quick")
    assert noted(project) == {}
    out = ran(project, "--slow", "--part", "1/2")
    assert "part --slow 1/2: of 1 tests 1 passed, 0 failed, 0 skipped, 0 did not end" in out
    assert "seeds that passed: dice 0-9" in out
    assert f"passed last: --slow 1/2 on {head[:12]} (this one)" in out
    ((name, facts),) = noted(project).items()
    assert (name, facts["commit"], facts["passed"], facts["seeds"]) == ("--slow 1/2", head.strip(), 1, ["dice 0-9"])
    (project / "tests/test_c.py").write_text(QUICK)
    assert "not noted: the tree is not that of a commit" in ran(project, "--slow", "--part", "2/2")
    assert noted(project) == {"--slow 1/2": facts}


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),
        # Its processes are waited for: ten seconds.
        pytest.param(signal.SIGTERM, ["-p", "xdist.plugin", "-n", "2", "--dist", "loadfile"], marks=pytest.mark.slow),
    ],
)
def test_what_passed_is_told_when_it_is_stopped(project: Path, number: signal.Signals, arguments: list[str]) -> None:
    """Stopped by Ctrl-C or SIGTERM, a run says what passed, with which seeds, and what was under way."""
    (project / "tests/test_b.py").write_text(STOPPED)
    # Two tests in the first file: once the second has passed, all is known of the first.
    (project / "tests/test_a.py").write_text(QUICK + "def test_later(): pass\n")
    committed(project)
    with started(project, "--part", "1/1", *arguments) as (process, file):
        passed = r"PASSED tests/test_a.py::test_later|test_later PASSED"
        eventually(
            lambda: re.search(passed, file.read_text()) and (project / "begun").exists(), "the last test to begin"
        )
        process.send_signal(number)
        status = process.wait(DEADLINE_SECONDS)
    out = file.read_text()
    assert status == pytest.ExitCode.INTERRUPTED, out
    assert re.search(r"part 1/1: of 3 tests [12] passed, 0 failed, 0 skipped, [12] did not end", out), out
    assert "under way when it was stopped: tests/test_b.py::test_stopped" in out
    assert "seeds that passed: dice 0-9" in out
    assert noted(project) == {}
