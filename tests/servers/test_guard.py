"""A server ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PARENT = """
import os, signal, sys, time
from ringlog.servers import PostgresServer, ValkeyServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background may have ignored it
server = {kind}().start()
child = os.fork() if {fork} else -1
if child == 0:
    signal.pause()  # a forked child holds every descriptor of its parent
print(server.pid, server.data_dir, child, flush=True)
signal.pause()
"""


def wait_until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def run_parent(tmp_path: Path) -> Iterator[Callable[[str, bool], tuple[subprocess.Popen[str], int, Path, int]]]:
    """Starts a process with a server of the given kind: (process, server's pid, its data, forked child or -1)."""
    started: list[tuple[subprocess.Popen[str], int]] = []

    def run(kind: str, fork: bool) -> tuple[subprocess.Popen[str], int, Path, int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(kind=kind, fork=fork)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert parent.stdout is not None
        pid, directory, child = parent.stdout.readline().split()
        started.append((parent, int(child)))
        return parent, int(pid), Path(directory), int(child)

    yield run
    for parent, child in started:
        parent.kill()
        parent.wait()
        if child > 0:
            os.kill(child, signal.SIGKILL)
        if parent.stdout is not None:
            parent.stdout.close()


@pytest.mark.parametrize("kind", ["ValkeyServer", "PostgresServer"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_orphan_after_the_parent_ended(run_parent, kind: str, number: signal.Signals) -> None:
    """Kill -9, Ctrl-C or SIGTERM of the parent: server and temporary data are gone."""
    parent, pid, directory, _ = run_parent(kind, False)
    family = [pid, *(process.pid for process in psutil.Process(pid).children(recursive=True))]
    os.kill(parent.pid, number)
    parent.wait()
    wait_until(lambda: all(gone(member) for member in family))
    wait_until(lambda: not directory.exists())


def test_forked_child_does_not_keep_the_server(run_parent) -> None:
    """A forked child that outlives the killed parent (and holds its descriptors) does not keep the server alive."""
    parent, pid, _, child = run_parent("ValkeyServer", True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: gone(pid))
    assert not gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's: elsewhere a killed guard orphans")
def test_killed_guard_takes_the_server_along(run_parent) -> None:
    """On Linux even kill -9 of the guard itself leaves no server."""
    _, pid, _, _ = run_parent("ValkeyServer", False)
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    wait_until(lambda: gone(pid))
