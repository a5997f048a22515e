"""What disturbs appends in benchmarks takes no more of the machine than it may, and ends by itself."""

from __future__ import annotations

import ctypes
import multiprocessing

import psutil

from bench.disturbances import FAULTED_BYTES_MAX, fault, faulted_bytes, processes
from bench.stack import TIMEOUT_SECONDS, wait_for

SIZE, OTHER = 16 << 20, 8 << 20


def test_memory_is_taken_within_bounds_and_given_back() -> None:
    """Pages are faulted in again and again while the process holds no more than it may; it ends when its time is up."""
    memory = psutil.virtual_memory()
    assert 0 < faulted_bytes() <= min(FAULTED_BYTES_MAX, memory.total // 4)
    faulted = multiprocessing.get_context("forkserver").RawValue(ctypes.c_uint64)
    resident = []
    with processes(fault, 1, faulted, SIZE) as (pid,):
        process = psutil.Process(pid)
        wait_for(lambda: faulted.value, "memory given back")

        def is_enough() -> bool:
            resident.append(process.memory_info().rss)
            return faulted.value > 50 * SIZE

        wait_for(is_enough, "memory given back many times", poll_seconds=0.0005)
    assert SIZE // 2 < max(resident) - min(resident) <= SIZE + OTHER
    with processes(fault, 1, faulted, SIZE, 0.1) as (pid,):
        psutil.Process(pid).wait(TIMEOUT_SECONDS)
