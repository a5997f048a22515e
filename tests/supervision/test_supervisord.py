"""A real supervisord with the program file that is shipped: whatever becomes of the writer, no record is lost."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_samples import DEADLINE_SECONDS, Child, child, eventually
from whole_path import WholePath

from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.readers import LaneDirectory

PROGRAM = Path(__file__).parents[2] / "schemas" / "supervision" / "ringlog-writer.conf"


def program_of(path: WholePath) -> str:
    """The shipped file with this test's command, user, environment and log; how it is restarted stays as it is."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(PROGRAM)
    program = parser["program:ringlog-writer"]
    assert program["command"].endswith("ringlog writer")
    program["command"] = f"{sys.executable} -m ringlog writer"
    del program["user"]
    variables = {**path.settings.to_environment(), "PYTHONWARNINGS": "default"}
    program["environment"] = ",".join(f'{name}="{value}"' for name, value in variables.items())
    program["stdout_logfile"] = str(path.logs / "writer.txt")
    return "\n".join([f"[{parser.sections()[0]}]", *(f"{name}={value}" for name, value in program.items())])


@contextlib.contextmanager
def supervised(path: WholePath) -> Iterator[None]:
    """supervisord in the foreground until the end of the block; then it stops the writer, and ends with it."""
    file = path.logs / "supervisord.conf"
    daemon = f"nodaemon=true\nlogfile={path.logs}/supervisord.txt\npidfile={path.logs}/supervisord.pid\n"
    file.write_text(f"[supervisord]\n{daemon}\n{program_of(path)}\n")
    with (path.logs / "supervisord.out").open("wb") as out:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("supervisord")), "-c", str(file)], stdout=out, stderr=out
        )
    try:
        eventually(lambda: "writer started" in path.log_text(), "the first writer")
        yield
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def writer_pid(path: WholePath) -> int:
    """The pid of the writer that holds the lease; 0 while none does."""
    lease = Instance(path.settings).lease_path
    found = re.match(r"pid=(\d+)", lease.read_text()) if is_locked(lease) else None
    return int(found[1]) if found else 0


class Tails:
    """How many records all lanes have given back: a writer that has moved one of them was at work."""

    def __init__(self, path: WholePath) -> None:
        self._directory = LaneDirectory(Instance(path.settings))

    def total(self) -> int:
        self._directory.refresh()
        return sum(lane.tail for lane in self._directory.lanes.values())

    def close(self) -> None:
        self._directory.close()


def producing(path: WholePath, number: int) -> str:
    """A producer that appends about 1,000 records/s until it is told to stop, and says how many were refused."""
    return f"""
import select
from pathlib import Path
from oracle import ProducerLog, payload
log = ProducerLog(Path({str(path.logs)!r}), {number})
say("go")
for block in log.blocks():
    log.accepted([number for number in block if appender.append(number, payload(number))])
    if select.select([sys.stdin], [], [], 0.06)[0]:
        break
say({{reason: count for reason, count in appender.refused().items() if count}})
"""


def kill_writers(path: WholePath, producers: int, kills: int, seconds: float) -> None:
    """kill -9 of `kills` writers, spread over `seconds` or as soon as the next has confirmed records."""
    path.with_settings(lane_bytes_max=64 << 20)
    killed = set()
    with supervised(path), contextlib.ExitStack() as stack:
        scripts = [producing(path, number) for number in range(producers)]
        running: list[Child] = [stack.enter_context(child(path.settings, script)) for script in scripts]
        assert [producer.line() for producer in running] == ["go"] * producers
        tails = Tails(path)
        stack.callback(tails.close)
        began, before = time.monotonic(), 0
        for number in range(kills):
            eventually(lambda before=before: tails.total() > before, "records to be confirmed")  # type: ignore[misc]
            while time.monotonic() < began + (number + 1) * seconds / kills:
                time.sleep(0.01)
            pid = writer_pid(path)
            assert pid
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            eventually(lambda pid=pid: writer_pid(path) not in (0, pid), "the next writer")  # type: ignore[misc]
            before = tails.total()
        for producer in running:
            producer.go_on()
        assert [producer.line() for producer in running] == ["{}"] * producers  # none refused
        for producer in running:
            producer.ended()
        verdict = path.require_exact()
        assert verdict.stored == verdict.accepted > 100 * kills
    assert len(killed) == kills
    assert path.log_text().count("writer started") >= kills
    assert "writer stopped" in path.log_text()  # supervisord's SIGTERM, in the end


def test_a_kill(path: WholePath) -> None:
    """A writer killed with -9 as soon as it has confirmed records: 0 lost, 0 doubled, 0 refused."""
    kill_writers(path, producers=2, kills=1, seconds=0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_kills_in_a_minute(path: WholePath) -> None:
    """A writer killed with -9 twenty times, every 3 s, under four producers: 0 lost, 0 doubled, 0 refused."""
    kill_writers(path, producers=4, kills=20, seconds=60)
