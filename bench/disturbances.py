"""What takes the machine from an append while it is measured: busy cores, caches, memory, a writer, collections."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.load import beside
from bench.stack import wait_for
from ringlog.demo.orphans import end_with_parent
from ringlog.settings import Settings

WALKED_BYTES = 400_000_000
FAULTED_PART, FAULTED_BYTES_MAX = 0.25, 4 << 30  # of the memory that is available, and at most
FAULTED_SECONDS_MAX = 60.0  # by then it has ended, whatever became of who started it
OBJECTS = 500_000
WRITTEN, FAULTED = "written beside, rows/s", "faulted beside, GB/s"


class Others(NamedTuple):
    """Who disturbs: process ids, and what they have done since they were last asked (`load`), by the name of it."""

    pids: Sequence[int] = ()
    load: Callable[[], float] = lambda: 0.0
    named: str = ""


def spin() -> None:
    end_with_parent()
    while True:
        pass


def walk() -> None:
    """Reads and writes a word of every cache line, again and again."""
    end_with_parent()
    words = np.zeros(WALKED_BYTES // 8)
    while True:
        words[::8] += 1


def faulted_bytes() -> int:
    """How much may be taken now without taking it from anybody."""
    return min(int(psutil.virtual_memory().available * FAULTED_PART), FAULTED_BYTES_MAX)


def fault(faulted: Any, bytes_max: int = FAULTED_BYTES_MAX, seconds: float = FAULTED_SECONDS_MAX) -> None:
    """Maps memory, touches each page and gives all back, again and again; `faulted` counts bytes."""
    end_with_parent()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        size = max(min(faulted_bytes(), bytes_max), mmap.PAGESIZE)
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a fault for each page
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
            pages[:] = 1
            del pages
        faulted.value += size


@contextlib.contextmanager
def processes(target: Callable[..., None], count: int, *arguments: Any) -> Iterator[list[int]]:
    context = multiprocessing.get_context("forkserver")
    started = [context.Process(target=target, args=arguments, daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield [process.pid for process in started if process.pid]
    finally:
        for process in started:
            process.kill()
            process.join()


@contextlib.contextmanager
def idle() -> Iterator[Others]:
    yield Others()


@contextlib.contextmanager
def running(target: Callable[[], None], count: int) -> Iterator[Others]:
    with processes(target, count) as pids:
        yield Others(pids)


@contextlib.contextmanager
def faulting(bytes_max: int) -> Iterator[Others]:
    faulted = multiprocessing.get_context("forkserver").RawValue(ctypes.c_uint64)
    with processes(fault, 1, faulted, bytes_max) as pids:
        wait_for(lambda: faulted.value, "memory given back")
        yield Others(pids, since(lambda: faulted.value / 1e9), FAULTED)


def since(total: Callable[[], float]) -> Callable[[], float]:
    """Gives by how much `total` grew a second since it was last called."""
    then, before = time.monotonic(), total()

    def rate() -> float:
        nonlocal then, before
        elapsed, grown = time.monotonic() - then, total() - before
        then, before = then + elapsed, before + grown
        return grown / elapsed

    return rate


@contextlib.contextmanager
def collecting() -> Iterator[Others]:
    """A thread that collects garbage all the time, with OBJECTS containers alive."""
    alive = [[number] for number in range(OBJECTS)]
    is_stopped = threading.Event()

    def collect() -> None:
        while not is_stopped.wait(0.01):
            gc.collect()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield Others()
    finally:
        is_stopped.set()
        thread.join()
        del alive


@contextlib.contextmanager
def writing(settings: Settings, pids: Sequence[int], rate: float) -> Iterator[Others]:
    """A producer of `rate` trades/s, and with it the writer and the server, whose process ids are `pids`."""
    with beside(settings, {"Trade": rate}) as flow:
        wait_for(lambda: flow.reached().written >= rate / 4, "rows written")
        yield Others([*pids, *flow.pids], since(lambda: flow.reached().written), WRITTEN)
