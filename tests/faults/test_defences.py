"""Every defence is needed: with it taken away from a copy of the package, its fault's test fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEFENCES: list[dict[str, Any]] = tomllib.loads((ROOT / "tests/faults/defences.toml").read_text())["defence"]
SHORT_DEADLINE = "15.0"


def without(defence: dict[str, Any], directory: Path) -> Path:
    """A copy of the project without the defence."""
    copy = directory / "copy"
    ignore = shutil.ignore_patterns(".venv*", ".git", "__pycache__", ".*_cache", "build")
    shutil.copytree(ROOT, copy, ignore=ignore)
    for name, old, new in defence["patches"]:
        file = copy / "ringlog" / name
        text = file.read_text()
        assert text.count(old) == 1, f"{name}: got {text.count(old)} times {old!r}, wanted it once"
        file.write_text(text.replace(old, new))
    samples = copy / "tests/lane_samples.py"
    samples.write_text(samples.read_text().replace("DEADLINE_SECONDS = 40.0", f"DEADLINE_SECONDS = {SHORT_DEADLINE}"))
    return copy


def test_every_patch_still_applies() -> None:
    """Each patch finds the text that it takes away, exactly once, and each test that it names is there."""
    for defence in DEFENCES:
        for name, old, _ in defence["patches"]:
            assert (ROOT / "ringlog" / name).read_text().count(old) == 1, (defence["name"], name, old)
        for test in defence["tests"]:
            file, _, function = test.partition("::")
            assert f"def {function}(" in (ROOT / "tests" / file).read_text(), test


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "defence",
    [
        pytest.param(defence, id=defence["name"], marks=[pytest.mark.root] if defence.get("root") else [])
        for defence in DEFENCES
    ],
)
def test_without_its_defence_a_fault_is_seen(defence: dict[str, Any], tmp_path: Path) -> None:
    """The tests of the fault fail once its defence is taken away: so their success means something."""
    copy = without(defence, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    if "ring" in defence:
        environment["RINGLOG_RING"] = defence["ring"]
    tiers = ["--slow", *(["--root"] if defence.get("root") else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "--timeout", "60", *tiers]
        + [f"tests/{test}" for test in defence["tests"]],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    for test in defence["tests"]:
        assert re.search(rf"^FAILED tests/{re.escape(test)}\b", done.stdout, re.MULTILINE), (
            f"{test} held without its defence\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
