"""Both rings, one suite: what a forked child takes of its parent's ring."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable

import pytest
from ring_memory import RINGS, Lane, RingUnderTest, module, refusals

from ringlog.layout import REFUSED_OFFSET, Refused

ROW = ("sol", "left", "text", '{"a":1}', 1.5, 0.25, 7, 95, True)


@pytest.fixture(params=RINGS)
def ring(request: pytest.FixtureRequest) -> RingUnderTest:
    """A ring of eight slots: the C one, then the Python one."""
    return RingUnderTest(module(request.param))


def in_a_forked_child(told: Callable[[], object]) -> object:
    """What `told` returns in a forked child, by way of JSON."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the tests': the child waits for none of them
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(told()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def test_a_forked_child_counts_its_own_refusals(ring: RingUnderTest) -> None:
    """Nothing that a child's parent was refused, in the lane that it inherited or one before, until the fork or after
    it, is a refusal of the child's; nor is one of the child's its parent's."""
    for _ in range(9):
        ring.append(*ROW)
    ring.attach(Lane(ring.layout, 2))
    for _ in range(3):
        ring.append(*ROW)
    assert ring.ring.refused() == refusals(full=2)

    def told() -> list[object]:
        before = [ring.ring.last_refused, ring.ring.refused()]
        ring.lane.set_word(REFUSED_OFFSET, 5)  # as the parent, which goes on
        accepted = ring.append(*ROW)
        attached = [ring.ring.last_refused, ring.ring.refused()]
        ring.ring.detach()
        return [before, accepted, attached, ring.ring.refused()]

    closed = list(refusals(closed=1))
    assert in_a_forked_child(told) == [[-1, list(refusals())], False, [Refused.CLOSED, closed], closed]
    assert ring.ring.refused() == refusals(full=6)
    assert ring.ring.last_refused == Refused.FULL


def test_a_forked_child_that_never_appends_has_refused_nothing(ring: RingUnderTest) -> None:
    """A child that only leaves the lane which it inherited takes none of its parent's counts along."""
    for _ in range(9):
        ring.append(*ROW)
    ring.ring.detach()
    assert in_a_forked_child(ring.ring.refused) == list(refusals())
    ring.attach(Lane(ring.layout, 2))
    for _ in range(3):
        ring.append(*ROW)

    def left() -> tuple[int, ...]:
        ring.ring.detach()
        return tuple(ring.ring.refused())

    assert in_a_forked_child(left) == list(refusals())
