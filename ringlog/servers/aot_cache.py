"""Java's ahead-of-time cache for a server: what it loads, links and profiles at each start, kept from one start.

It halves the CPU time of QuestDB's start. Java 25 is the first to make it of a recorded run (JEP 514), with the classes
(JEP 483) and the profiles of methods (JEP 515). Java checks its own build, the jar and the options against those of
the recording, and starts without the cache where they differ.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ringlog.environment import child_environment
from ringlog.errors import RinglogError
from ringlog.servers.guarded import run_guarded

MAKE_TIMEOUT_S = 120

log = logging.getLogger(__name__)


def options(cache: Path) -> list[str]:
    """Java's options for a start with the cache, its checksums verified: a damaged one is left alone."""
    is_there = cache.exists() and cache.stat().st_size > 0
    return [f"-XX:AOTCache={cache}", "-XX:+VerifySharedSpaces"] if is_there else []


def make_once(cache: Path, jar: Path, command: Sequence[str], record: Callable[[list[str]], None]) -> None:
    """Makes the cache where there is none that is younger than the jar; other processes wait for one that makes it.

    `record` runs `command` (Java first) to its end, with the options given too. Where no cache can be made, an empty
    file stands for it, so that it is not tried at each start again.
    """
    if _is_younger(cache, jar):
        return
    import fcntl  # Windows has none, and gets its message where a server is made

    try:
        with cache.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_younger(cache, jar):
                _make(cache, command, record)
    except OSError as error:  # a directory that is another's, a full disk
        log.warning("java starts without a cache: path=%s: %s", cache, error)


def _is_younger(cache: Path, jar: Path) -> bool:
    return cache.exists() and cache.stat().st_mtime >= jar.stat().st_mtime


def _make(cache: Path, command: Sequence[str], record: Callable[[list[str]], None]) -> None:
    prefix = f"{cache.stem}-making-"
    for abandoned in cache.parent.glob(f"{prefix}*"):  # by one that was killed: only one at a time is here
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=prefix) as directory:
        draft, recording = Path(directory, "cache"), Path(directory, "recording")
        try:
            record(["-XX:AOTMode=record", f"-XX:AOTConfiguration={recording}"])
            create = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording}", f"-XX:AOTCache={draft}"]
            java = [command[0], *create, *command[1:]]
            status, errors = run_guarded(java, MAKE_TIMEOUT_S, env={**child_environment(), "JDK_JAVA_OPTIONS": ""})
            if status:
                raise subprocess.CalledProcessError(status, java[0], stderr=errors)
        except (RinglogError, subprocess.SubprocessError) as error:
            log.warning("java starts without a cache, none could be made: path=%s: %s", cache, error)
            draft.write_bytes(b"")
        os.replace(draft, cache)
