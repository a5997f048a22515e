"""Both rings: appends beside threads, signal handlers and another process."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from ring_memory import RINGS, Lane, RingUnderTest, module, plain, refusals

from ringlog.layout import TAIL_OFFSET, BoardReason, Refused

STAMP = 1_767_225_600_000_000
ROW = ("sol", "left", "text", '{"a":1}', 1.5, 0.25, 7, 95, True)


@pytest.fixture(params=RINGS)
def implementation(request: pytest.FixtureRequest) -> ModuleType:
    """The C ring, then the Python ring."""
    return module(request.param)


def test_threads_share_a_ring(implementation: ModuleType) -> None:
    """Threads that append to one ring at the same time lose and mix nothing."""
    ring = RingUnderTest(implementation, capacity=4096)
    accepted = [0] * 4

    def work(index: int) -> None:
        append = ring.bind(symbol=f"t{index}")
        for number in range(500):
            accepted[index] += append("left", str(number), None, float(number), timestamp=STAMP)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [plain(ring.layout, row) for row in ring.lane.slots(0, ring.lane.head)]
    assert sum(accepted) == len(rows) == 2000
    assert [row["seq"] for row in rows] == list(range(2000))
    for index in range(4):
        own = [row for row in rows if row["symbol"] == f"t{index}"]
        assert [row["text"] for row in own] == [str(number) for number in range(500)]
        assert [row["number"] for row in own] == [float(number) for number in range(500)]


def test_a_board_that_opens_and_shuts_all_the_time(implementation: ModuleType) -> None:
    """Whenever another process changes its mind, an append is accepted or refused and counted, and never an error."""
    ring = RingUnderTest(implementation)
    calls, accepted = 0, 0
    child = os.fork()
    if child == 0:
        try:
            for _ in range(20_000_000):  # ended by its parent, or by itself should there be none
                ring.lane.refuse(BoardReason.DISK_FULL)
                ring.lane.refuse(BoardReason.ACCEPTING)
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 20
        while min(accepted, calls - accepted) < 2000 and time.monotonic() < deadline:
            ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
            accepted += ring.append("s", "left", None, {"made": "exact"}, 1.0)
            calls += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert min(accepted, calls - accepted) >= 2000
    assert ring.lane.head == accepted
    assert ring.ring.refused()[Refused.BOARD] == calls - accepted


def test_appends_in_a_signal_storm(implementation: ModuleType) -> None:
    """A handler that appends in the middle of appends: each returns True or False and every True is a whole record."""
    ring = RingUnderTest(implementation, capacity=1 << 15)
    handled: list[bool] = []
    append_in_handler = ring.bind(symbol="handler")

    def handler(_number: int, _frame: Any) -> None:
        handled.append(append_in_handler("right", "h" * 40, None, -1.0))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    accepted = 0
    try:
        deadline = time.monotonic() + 20
        while len(handled) < 200 and time.monotonic() < deadline:
            accepted += ring.append("main", "left", "m" * 20, {"a": 1}, 1.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    rows = [plain(ring.layout, row) for row in ring.lane.slots(0, min(ring.lane.head, 1 << 15))]
    assert len(handled) >= 200
    assert ring.lane.head == accepted + sum(handled)
    wanted = {"main": ("left", "m" * 20, 1.0), "handler": ("right", "h" * 40, -1.0)}
    assert all((row["choice"], row["text"], row["number"]) == wanted[row["symbol"]] for row in rows)
    refused = ring.ring.refused()
    assert len(handled) - sum(handled) == refused[Refused.REENTRANT] or refused[Refused.FULL]


def test_leaving_in_the_middle_of_an_append(implementation: ModuleType) -> None:
    """A handler that detaches the ring while an append is under way: no exception, and whole records only."""
    ring = RingUnderTest(implementation, recover=lambda: Refused.CLOSED)
    lane = ring.lane

    class Leaves(float):
        """Detaches while an append asks for its value."""

        def __float__(self) -> float:
            ring.ring.detach()
            return 1.0

    assert ring.append("s", "left", None, None, Leaves(1.0)) is False
    assert lane.head == 0
    assert ring.ring.refused()[Refused.CLOSED] == 1


def test_another_thread_leaves_and_comes_back(implementation: ModuleType) -> None:
    """While another thread detaches and attaches the ring, appends return True or False and raise nothing."""
    ring = RingUnderTest(implementation, capacity=1 << 15, recover=lambda: Refused.CLOSED)
    lane = ring.lane
    done = threading.Event()

    def leave_and_come_back() -> None:
        for _ in range(300):
            ring.ring.detach()
            ring.attach(lane)
        done.set()

    thread = threading.Thread(target=leave_and_come_back)
    thread.start()
    accepted = 0
    while not done.is_set() and accepted < 1 << 15:
        accepted += ring.append("s", "left", None, None, 1.0)
    thread.join()
    assert lane.head == accepted


def test_another_thread_waits_for_the_claim(implementation: ModuleType) -> None:
    """Finding 4: threads that append while one of them claims the lane wait for that, and are not refused."""
    claiming, go_on = threading.Event(), threading.Event()
    started: list[int] = []
    lanes: list[Lane] = []

    def recover() -> bool:
        claiming.set()
        assert go_on.wait(60)
        lanes.append(Lane(ring.layout, 64))
        ring.attach(lanes[-1])
        return True

    def append() -> bool:
        started.append(1)
        return ring.append(*ROW)

    ring = RingUnderTest(implementation, recover=recover)
    ring.ring.detach()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(append)
        assert claiming.wait(60)
        others = [pool.submit(append) for _ in range(7)]
        while len(started) < 8:
            time.sleep(0.001)
        go_on.set()
        assert all(each.result() for each in (first, *others))
    assert (len(lanes), lanes[0].head) == (1, 8)
    assert ring.ring.refused() == refusals()
