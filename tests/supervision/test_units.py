"""The systemd unit: systemd itself reads it, and a writer needs nothing that its sandbox forbids."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lane_samples import DEADLINE_SECONDS, eventually
from whole_path import WholePath

UNIT = Path(__file__).parents[2] / "schemas" / "supervision" / "ringlog-writer.service"
EXPOSURE_MAX = 2.0  # of 10, as `systemd-analyze security` counts

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")


def option(name: str) -> list[str]:
    """The values of an option of the unit, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program and a user that are there: systemd looks for both."""
    path = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/ringlog/bin/ringlog", str(Path(sys.executable).resolve()))
    path.write_text(text.replace("User=trader", "User=root"))
    return path


@analyze
def test_systemd_accepts_the_unit(unit: Path) -> None:
    """`systemd-analyze verify` says nothing, and does where an option is misspelt or the program is not there."""
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])
    for right, wrong in (("WatchdogSec=30", "WatchdogSecs=30"), ("ExecStart=/", "ExecStart=/nowhere/")):
        good = unit.read_text()
        unit.write_text(good.replace(right, wrong))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        unit.write_text(good)
        assert [line for line in done.stderr.splitlines() if UNIT.name in line] != []


@analyze
def test_the_unit_is_hardened(unit: Path) -> None:
    """What systemd counts as exposed stays low."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:g}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def filtered_calls() -> set[str]:
    """The system calls that the unit's filter lets through, as this systemd knows its groups."""
    calls: set[str] = set()
    for line in option("SystemCallFilter"):
        forbidden, names = line.startswith("~"), line.removeprefix("~").split()
        for name in names:
            calls = calls - members(name) if forbidden else calls | members(name)
    return calls


def members(group: str) -> set[str]:
    out = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in out.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {name for word in words for name in (members(word) if word.startswith("@") else {word})}


@analyze
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed, and nothing else lists calls")
def test_a_writer_needs_no_call_that_the_unit_forbids(path: WholePath, tmp_path: Path) -> None:
    """From its start to its end, with records, a writer makes only system calls of the filter, never maps memory both
    writable and executable, and opens no other kind of socket."""
    trace = tmp_path / "trace"
    path.start_writer(wrapper=["strace", "-qq", "-f", "-o", str(trace)])
    with path.producing() as append:
        append(300)
        eventually(lambda: path.stored() == 300, "rows")
    assert path.writer is not None
    pid = int(trace.read_text().split(maxsplit=1)[0])
    subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
    assert path.writer.wait(DEADLINE_SECONDS) == 0
    path.writer = None
    lines = trace.read_text().splitlines()
    calls = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"futex", "sendto", "fsync"} <= calls
    assert calls - filtered_calls() == set()
    assert [line for line in lines if "PROT_WRITE|PROT_EXEC" in line] == []
    families = {found[1] for line in lines if (found := re.search(r"\bsocket\((AF_\w+)", line))}
    assert families <= set(option("RestrictAddressFamilies")[0].split())


def test_the_unit_keeps_what_producers_share() -> None:
    """Restarted always, killed by the watchdog, and never away from the producers' lock files and shared memory."""
    assert (option("Type"), option("Restart"), option("RuntimeDirectoryPreserve")) == (["notify"], ["always"], ["yes"])
    assert option("StartLimitIntervalSec") == ["0"]
    assert int(option("WatchdogSec")[0]) > 5
    assert not {"PrivateIPC", "PrivateUsers", "ProcSubset"} & set(
        re.findall(r"^(\w+)=", UNIT.read_text(), re.MULTILINE)
    )
