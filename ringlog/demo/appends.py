"""Appends of the demo's processes, timed: into a mapped file that the session reads while it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringlog.producer import Appender

SAMPLES_MAX = 1_000_000
FRESHNESS_INTERVAL_NS = 5_000_000  # how often an append's time is kept, to see later when the row could be queried


class Durations:
    """Append times (ns) of one executor in a mapped file.

    Word 0 counts the samples; the latest SAMPLES_MAX of them follow, the oldest overwritten first.
    """

    def __init__(self, directory: str, index: int, *, create: bool) -> None:
        path = Path(directory) / f"append-{index}.npy"
        mode: Any = "w+" if create else "r"
        shape = (SAMPLES_MAX + 1,) if create else None
        self.words: NDArray[np.int64] = np.lib.format.open_memmap(path, mode, np.int64, shape)
        if create:
            if hasattr(os, "posix_fallocate"):  # on a full disk an error here, rather than SIGBUS in the next line
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            self.words[:] = 0  # faulted in now, not in the middle of an append

    def latest(self, samples_max: int = SAMPLES_MAX) -> NDArray[np.int64]:
        """The latest samples, at most `samples_max`, in no particular order: int64 (samples,)."""
        count = int(self.words[0])
        if count <= SAMPLES_MAX:
            return self.words[1 + max(0, count - samples_max) : 1 + count]
        at = count % SAMPLES_MAX
        return self.words[1 + max(0, at - samples_max) : 1 + at] if at >= samples_max else self.words[1:]


class TimedAppends:
    """Times appends into memory that is there from the start."""

    def __init__(self, durations: Durations) -> None:
        self._durations_ns = durations.words
        self.count = 0
        self.samples: list[tuple[str, int, int, int]] = []
        self._next_sample_ns = 0

    def append(
        self, appender: Appender[...], call: Callable[..., bool], *values: Any, stamp_us: int | None = None
    ) -> bool:  # fmt: skip
        """Appends, times it, and once in a while keeps when and as which record."""
        started = time.perf_counter_ns()
        accepted = call(*values) if stamp_us is None else call(*values, timestamp=stamp_us)
        ended = time.perf_counter_ns()
        self._durations_ns[1 + self.count % SAMPLES_MAX] = ended - started
        self.count += 1
        self._durations_ns[0] = self.count
        if accepted and ended >= self._next_sample_ns:
            self._next_sample_ns = ended + FRESHNESS_INTERVAL_NS
            lane = appender.lane
            if lane is not None:
                self.samples.append((appender.layout.table, lane, appender.accepted - 1, time.monotonic_ns()))
        return accepted

    def insist(
        self, appender: Appender[...], call: Callable[..., bool], values: tuple[Any, ...], pace: Callable[[], bool],
        is_stopped: Any, stamp_us: int | None = None,
    ) -> bool:  # fmt: skip
        """A replay can wait where a live executor could not: a refused record is offered again. False once stopped."""
        if not pace():
            return False
        while not self.append(appender, call, *values, stamp_us=stamp_us):
            if is_stopped.wait(0.005):
                return False
        return True
