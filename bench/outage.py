"""What an append costs its thread while the writer is stopped, QuestDB down, or the disk full: CPU, and system calls.

A real writer is in each of these states. CPU is the appending thread's own clock around every single append, the clock
included; system calls are counted by strace between two marks, where strace is installed.

    python -m bench.outage [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.figures import Figure, Result, main
from bench.stack import environment, fresh, server, writer
from bench.trades import trades
from ringlog import Producer
from ringlog.records import Trade
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

STATES = ("healthy", "writer stopped", "QuestDB down", "disk full")
BEGIN, END = b"begin\n", b"end\n"
NOWHERE = {"questdb_http_port": 1, "questdb_pg_port": 1}
NO_DISK_IS_LARGE_ENOUGH = 1 << 60


@contextlib.contextmanager
def state(name: str, questdb: QuestDBServer) -> Iterator[Settings]:
    """An instance with a writer in that state."""
    options: dict[str, int] = {}
    if name == "QuestDB down":
        options = NOWHERE
    elif name == "disk full":
        options = {"disk_free_bytes_min": NO_DISK_IS_LARGE_ENOUGH}  # what psutil finds is too little
    with fresh(questdb, **options) as settings, writer(settings) as process:
        if name == "writer stopped":
            process.send_signal(signal.SIGSTOP)
        yield settings


def child(settings: Settings, appends: int, wrapper: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "bench.outage", "--traced" if wrapper else "--timed", str(appends)],
        env=environment(settings), stdout=subprocess.PIPE, check=True,
    )  # fmt: skip


def append_all(appends: int, *, is_timed: bool) -> None:
    """In a process of its own: appends between two marks, then perhaps once more with each append timed."""
    records = trades(1000)
    with Producer([Trade], settings=Settings.from_environment()) as producer:
        appender = producer.appender(Trade)
        append, clock = appender.append, time.thread_time_ns
        for record in records:
            append(*record)
        warm = sum(appender.refused().values())
        os.write(1, BEGIN)
        for at in range(appends):
            append(*records[at % 1000])
        os.write(1, END)
        longest = 0
        for at in range(appends if is_timed else 0):
            before = clock()
            append(*records[at % 1000])
            longest = max(longest, clock() - before)
        # A full lane and a board that refuses are both part of it.
        refused = sum(appender.refused().values()) - warm
        said = {"cpu_ns": longest, "refused": refused, "reason": appender.refused_reason()}
        os.write(1, msgspec.json.encode(said))


def system_calls(settings: Settings, appends: int) -> int:
    """Of the process between its marks, all threads. Raises StopIteration where the marks are not seen."""
    with tempfile.NamedTemporaryFile(prefix="ringlog-bench-") as log:
        child(settings, appends, [shutil.which("strace") or "strace", "-f", "-o", log.name])
        lines = Path(log.name).read_text().splitlines()
    begin, end = (next(at for at, line in enumerate(lines) if f'write(1, "{mark}' in line) for mark in ("begin", "end"))
    return end - begin - 1


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    appends = 2_000 if tiny else 200_000
    figures = []
    details = {}
    with server(running) as questdb:
        for name in STATES[-1:] if tiny else STATES:
            with state(name, questdb) as settings:
                said = msgspec.json.decode(child(settings, appends, []).stdout.removeprefix(BEGIN + END))
                details[name] = said
                unit = f"of {2 * appends:,} appends"
                figures.append(Figure(name=f"{name}: refused", value=said["refused"], unit=unit))
                figures.append(Figure(name=f"{name}: CPU, longest", value=said["cpu_ns"] / 1e6, unit="ms", at_most=1))
                if shutil.which("strace"):
                    calls = system_calls(settings, appends)
                    figures.append(Figure(name=f"{name}: system calls", value=calls, at_most=0))
    what = f"{appends:,} appends while something is away"
    return Result(benchmark="outage", what=what, figures=figures, details=details)


if __name__ == "__main__":
    if sys.argv[1:2] in (["--timed"], ["--traced"]):
        append_all(int(sys.argv[2]), is_timed=sys.argv[1] == "--timed")
    else:
        main(run)
