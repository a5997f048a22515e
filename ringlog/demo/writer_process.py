"""The writer as its users run it: `ringlog writer` in a process of its own, which ends with the demo's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ringlog.environment import child_environment
from ringlog.errors import RinglogError
from ringlog.servers import guard
from ringlog.settings import SETTINGS_FILE, Settings

STOP_TIMEOUT_SECONDS = 20.0
LOG_LINES = 5


@contextlib.contextmanager
def running_writer(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the writer until the end of the block, then lets it deliver what is in the lanes.

    A guard ends it too if this process is killed. Raises RinglogError with the end of the log where it ended by itself.
    """
    file = log.with_name("writer.env")  # and not variables: whatever the writer starts inherits those
    settings.save(file)
    guarded = [sys.executable, "-I", "-S", str(guard.__file__)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*guarded, str(os.getpid()), sys.executable, "-m", "ringlog", "writer"],
            env={**child_environment(), SETTINGS_FILE: str(file)},
            stdin=subprocess.PIPE,  # the guard's life line
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours to handle, and the writer is stopped last
        )
    try:
        yield process
        if process.poll() is not None:
            last = " / ".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise RinglogError(f"writer: got exit status {process.returncode}; its log ends with {last!r}")
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()  # the guard sends SIGTERM, and SIGKILL after 10 s
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
