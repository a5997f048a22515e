"""No machine silently runs the slow ring: the log, doctor, `--version`, `top` and the metrics say which one runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lane_samples import Child

from ringlog.settings import Settings

SCRIPT = """
import json, logging, sys
if {is_missing}:
    sys.modules["ringlog._ring"] = None  # as where it was not built
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
from ringlog.settings import Settings
from ringlog import Producer
from ringlog.monitor.findings import diagnosed
from ringlog.monitor.metrics import InstanceCollector
from ringlog.monitor.snapshot import Observer
from ringlog.records import LatencySample
from ringlog.ring import IMPLEMENTATION
settings = Settings.from_environment()
with Producer([LatencySample]):
    pass
found = next(finding for finding in diagnosed(settings, [], set()) if finding.check == "ring")
labels = [s.labels for m in InstanceCollector(settings).collect() if m.name == "ringlog_ring_info" for s in m.samples]
said = [found.level, found.text, found.fix, labels, Observer(settings).look().ring, IMPLEMENTATION]
print(json.dumps(said), flush=True)
from ringlog.cli import main
sys.argv = ["ringlog", "--version"]
main()
"""


def ran(instance_dir: Path, ring: str, *, is_missing: bool) -> subprocess.CompletedProcess[str]:
    environment = {**Child.environment(Settings(runtime_dir=str(instance_dir))), "RINGLOG_RING": ring}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(is_missing=is_missing)],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_a_python_ring_that_nobody_forced_is_said_aloud(instance_dir: Path) -> None:
    """Finding 45: without the C ring `open` warns once, with the cost and the remedy; doctor and the others say so."""
    done = ran(instance_dir, "", is_missing=True)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "Python ring, whose appends take about 13 times as long" in warning
    assert "install gcc or clang" in warning or "with the GIL" in warning
    facts, version = done.stdout.splitlines()
    level, text, fix, labels, ring, implementation = json.loads(facts)
    assert (level, labels, implementation) == ("warn", [{"ring": "python"}], "python")
    assert text == f"{ring} in this interpreter"
    assert fix in warning
    assert version.endswith(f"({ring})")


def test_a_python_ring_that_was_forced_is_mentioned(instance_dir: Path) -> None:
    """Whoever sets RINGLOG_RING=python is told at INFO, and doctor has nothing to warn of."""
    done = ran(instance_dir, "python", is_missing=False)
    assert "INFO producer open with the Python ring (RINGLOG_RING=python)" in done.stderr.splitlines()
    assert "WARNING" not in done.stderr
    assert json.loads(done.stdout.splitlines()[0])[:2] == [
        "ok",
        "Python ring (RINGLOG_RING=python) in this interpreter",
    ]


def test_the_c_ring_warns_of_nothing(instance_dir: Path) -> None:
    """Where the C ring runs, that is one fact among the others."""
    pytest.importorskip("ringlog._ring")
    done = ran(instance_dir, "", is_missing=False)
    assert "WARNING" not in done.stderr
    assert json.loads(done.stdout.splitlines()[0])[:3] == ["ok", "C ring in this interpreter", ""]
    assert done.stdout.splitlines()[1].endswith("(C ring)")
