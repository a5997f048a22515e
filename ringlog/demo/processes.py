"""The processes of one stage of the demo: started together, watched, and never left behind."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, Self

from ringlog.errors import RinglogError

STOP_TIMEOUT_SECONDS = 20.0


class Processes:
    """Processes that wait for `is_started` and end at `is_stopped`; use it with `with`, which ends them all."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.is_started, self.is_stopped = self.context.Event(), self.context.Event()
        self._processes: list[Any] = []

    def start(self, name: str, target: Callable[..., None], *arguments: Any) -> Any:
        process = self.context.Process(target=target, args=arguments, name=name)
        process.start()
        self._processes.append(process)
        return process

    def check(self) -> None:
        """Raises RinglogError where a process has failed; its own error is on stderr."""
        failed = {process.name: process.exitcode for process in self._processes if process.exitcode}
        if failed:
            raise RinglogError(f"the demo's processes: got exit statuses {failed}, wanted 0; the error is above")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_seconds: float = 120.0) -> None:
        """Raises RinglogError where a process fails first, or after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise RinglogError(f"the demo's processes: got no {what} within {timeout_seconds:.0f} s")
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.is_stopped.set()
        self.is_started.set()
        for process in self._processes:
            process.join(STOP_TIMEOUT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
