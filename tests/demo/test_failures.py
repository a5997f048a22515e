"""The demo while a part of it fails: its result is printed, what was accepted is judged, and the part is named."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
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

from ringlog.demo.failures import Failures
from ringlog.demo.processes import Processes
from ringlog.errors import RinglogError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader
from ringlog.settings import Settings

DEADLINE_SECONDS = 400.0  # of a session on a machine that does much else
LOAD, TRADING = "trades", "positions"  # tables: positions come from the session alone
RECORDS_MIN = 50  # in it, before anything is killed


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "ringlog", "demo", "--json", "--producers", "2", *options]


def spawned(demo: psutil.Process) -> list[psutil.Process]:
    """The demo's own processes in the order in which it started them: of a session simulator, monitor, market and
    executors, of a load the executors."""
    found = []
    for process in demo.children():
        try:
            if any("spawn_main" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def heads(kept: Path, table: str) -> list[int]:
    """How many records each lane of a table has accepted."""
    found = []
    instance = Instance(Settings(runtime_dir=str(kept / "run")))
    for card in cards(instance) if (kept / "run").exists() else ():
        with contextlib.suppress(RinglogError, FileNotFoundError):
            if card.table == table:
                with contextlib.closing(LaneReader.attach(card)) as lane:
                    found.append(lane.head)
    return found


def named(demo: psutil.Process, *words: str) -> psutil.Process:
    """The process below the demo whose command line ends with one of `words`, or names it."""
    for process in demo.children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line and "guard.py" not in " ".join(line) and any(word in part for word in words for part in line):
            return process
    raise LookupError(words)


VICTIMS: dict[str, tuple[str, Callable[[psutil.Process], psutil.Process], str]] = {
    "an executor of the load": (LOAD, lambda demo: spawned(demo)[-1], "load: got exit statuses {'executor 1': -9}"),
    "the writer of the load": (LOAD, lambda demo: named(demo, "writer"), "writer: got exit status"),
    "QuestDB": (LOAD, lambda demo: named(demo, "io.questdb"), "QuestDB: its process ended during the run"),
    "the simulator": (TRADING, lambda demo: spawned(demo)[0], "mev simulator: got exit status -9"),
    "the monitor": (TRADING, lambda demo: spawned(demo)[1], "performance monitor: got exit status -9"),
    "the market": (TRADING, lambda demo: spawned(demo)[2], "paper session: got exit statuses {'market': -9}"),
    "Valkey": (TRADING, lambda demo: named(demo, "valkey-server"), "Valkey: its process ended during the run"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_part_that_is_killed_is_named_and_the_rest_is_printed(victim: str, tmp_path: Path) -> None:
    """Finding 26: kill -9 of a part while records come ends in the printed object with exit status 1. What was
    accepted, also by the dead process, is stored exactly once wherever QuestDB can still be asked."""
    table, choose, wanted = VICTIMS[victim]
    kept = tmp_path / "kept"
    # What a writer that died leaves is stored by the session's; nothing else here needs one.
    options = ["--no-session"] if victim in ("an executor of the load", "QuestDB") else []
    process = subprocess.Popen(
        command("--seconds", "4", "--rate", "2000", "--keep", str(kept), "--report", str(tmp_path / "r"), *options),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE_SECONDS
    while sum(heads(kept, table)) < RECORDS_MIN:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ready = len(spawned(psutil.Process(process.pid)))
    assert ready == (2 if table == LOAD else 5)
    choose(psutil.Process(process.pid)).kill()
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1, errors
    report = json.loads(output)
    assert wanted in report["error"]
    assert wanted in errors
    if victim == "QuestDB":
        assert report["stored"] is report["lost"] is None
        assert report["is_exact"] is False
        assert report["accepted"] >= RECORDS_MIN
        return
    assert report["accepted"] == report["stored"] > 0
    assert report["lost"] == report["duplicated"] == report["foreign"] == 0
    if not options:
        assert report["session"]["records"]["trades"] > 0
        assert Path(report["session"]["report_html"]).exists()


@pytest.mark.root
@pytest.mark.timeout(500)
@pytest.mark.parametrize("megabytes", [1, 20, 120])
def test_on_a_full_disk_the_object_is_printed(megabytes: int, tmp_path: Path) -> None:
    """Finding 26: whatever the disk of the demo's temporary files is too small for, the object is printed and says what
    failed; nothing is called exact that is not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)], check=True)
    try:
        done = subprocess.run(
            command("--seconds", "1", "--rate", "2000", "--report", str(tmp_path / "report")),
            env={**os.environ, "TMPDIR": str(disk)}, capture_output=True, text=True, timeout=DEADLINE_SECONDS,
            check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["error"]
    assert report["is_exact"] == (report["stored"] == report["accepted"] is not None)


def test_a_recording_that_cannot_be_read_is_an_error_in_the_object(tmp_path: Path) -> None:
    """Finding 26: where nothing can begin the object is printed with nulls, and `error` is what stderr says."""
    done = subprocess.run(
        command("--input", str(tmp_path / "none.gz")), capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert str(tmp_path / "none.gz") in report["error"]
    assert done.stderr == f"ringlog: {report['error']}\n"
    assert report["accepted"] is report["append_ns"] is report["session"] is None


def test_a_full_stdout_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Finding 26: where the object cannot be printed, stderr says so without a traceback, exit status 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("--input", str(tmp_path / "none.gz")), stdout=full, stderr=subprocess.PIPE, text=True, timeout=110,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "ringlog: stdout: got No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Finding 26: whatever a part raises stays in it, in words, with a traceback where nobody expected it; each once.
    An interruption is no failure of a part, and passes."""
    failures = Failures()
    wrongs: list[Exception] = [
        RinglogError("got a, wanted b"),
        OSError(28, "No space left on device", "/x"),
        ImportError("No module named 'y'"),
    ]  # fmt: skip
    for wrong in wrongs:
        with failures.part("report"):
            raise wrong
    assert not caplog.records
    for _ in range(2):
        with failures.part("plots"):
            raise ZeroDivisionError("by zero")
    assert failures.lines == [
        "report: got a, wanted b",
        "report: /x: No space left on device",
        "report: No module named 'y' (pip install \"ringlog[demo]\")",
        "plots: ZeroDivisionError: by zero",
    ]
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(KeyboardInterrupt), failures.part("plots"):
        raise KeyboardInterrupt


def ask(flag: Any) -> None:
    while True:
        flag.is_set()


def test_a_process_killed_while_it_asks_for_a_flag_blocks_nobody() -> None:
    """Finding 26: a process is killed again and again in the middle of looking at a flag, and setting it returns."""
    with Processes() as processes:
        flag = processes.flag()
        context = multiprocessing.get_context("fork")
        for _ in range(20):
            process: Any = context.Process(target=ask, args=(flag,))
            process.start()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert not flag.wait(0.001)
        flag.set()
        assert flag.wait()


def prints() -> None:
    print("a library's own words")


def test_what_a_process_prints_is_no_part_of_the_object(capfd: pytest.CaptureFixture[str]) -> None:
    """Finding 26: what a process of the demo, or a library in it, prints on stdout goes to stderr."""
    with Processes() as processes:
        processes.start("talkative", prints).join()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "a library's own words" in captured.err


def helper_fails() -> None:
    os._exit(3)


def test_a_helper_that_fails_is_no_reason_to_end_a_stage() -> None:
    """Finding 26: `check` raises for what a stage cannot do without, and `failed` names all."""
    with Processes() as processes:
        helper = processes.start("helper", helper_fails, is_helper=True)
        helper.join()
        processes.check()
        assert processes.failed() == {"helper": 3}
        vital = processes.start("vital", helper_fails)
        vital.join()
        with pytest.raises(RinglogError, match=r"got exit statuses \{'vital': 3\}, wanted 0"):
            processes.check()
