"""Commands that end with this process, however that ends: each runs below a guard (`guard.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def guard_command(*options: str) -> list[str]:
    """The guard's own command line, to be followed by the command that it runs."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), *options, str(os.getpid())]


def run_guarded(
    command: Sequence[str], timeout_s: float, *, options: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a command to its end: its exit status, and what it wrote. Raises subprocess.TimeoutExpired."""
    with subprocess.Popen(
        [*guard_command(*options), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,  # Ctrl-C in a terminal is this process's to handle
    ) as process:
        lifeline, process.stdin = process.stdin, None  # communicate() would close it
        try:
            _, errors = process.communicate(timeout=timeout_s)
        finally:
            if lifeline is not None:
                lifeline.close()  # an exception (a signal, say) ends the command; leaving `with` waits for it
    return process.returncode, errors.decode(errors="replace").strip()
