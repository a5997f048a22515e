"""The processes of one stage of the demo: started together, watched, and never left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any, Self

from ringlog.errors import RinglogError

STOP_TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.002


def _quiet(target: Callable[..., None], *arguments: Any) -> None:
    """Runs `target`; what it or a library prints goes to stderr, since stdout is for the demo's one object."""
    os.dup2(2, 1)
    target(*arguments)


class Flag:
    """A byte in shared memory that is set once, for all processes that were given it when they started.

    Unlike `multiprocessing.Event` it has no lock, so that a process killed while it looks blocks nobody.
    """

    def __init__(self, context: Any) -> None:
        self._byte = context.RawValue("b", 0)

    def set(self) -> None:
        self._byte.value = 1

    def is_set(self) -> bool:
        return bool(self._byte.value)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until it is set, or the time is over; whether it is set."""
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else float("inf")
        while not self.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_SECONDS, left))
        return True


class Processes:
    """Processes that wait for `is_started` and end at `is_stopped`; use it with `with`, which ends them all."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.is_started, self.is_stopped = self.flag(), self.flag()
        self._processes: list[Any] = []
        self._helpers: set[str] = set()

    def flag(self) -> Flag:
        return Flag(self.context)

    def start(self, name: str, target: Callable[..., None], *arguments: Any, is_helper: bool = False) -> Any:
        """Starts a process; a stage goes on without a helper that fails."""
        process = self.context.Process(target=_quiet, args=(target, *arguments), name=name)
        process.start()
        self._processes.append(process)
        if is_helper:
            self._helpers.add(name)
        return process

    def failed(self) -> dict[str, int]:
        """The exit statuses, by name, of those that have failed."""
        return {process.name: process.exitcode for process in self._processes if process.exitcode}

    def check(self) -> None:
        """Raises RinglogError where a process that is no helper has failed; its own error is on stderr."""
        failed = {name: status for name, status in self.failed().items() if name not in self._helpers}
        if failed:
            raise RinglogError(f"got exit statuses {failed}, wanted 0; the error is on stderr")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_seconds: float = 120.0) -> None:
        """Raises RinglogError where a process fails first, or after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise RinglogError(f"got no {what} within {timeout_seconds:.0f} s")
            time.sleep(0.01)

    def end(self) -> None:
        """Tells all of them to stop, and kills those that still run STOP_TIMEOUT_SECONDS later."""
        self.is_stopped.set()
        self.is_started.set()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()
