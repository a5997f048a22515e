"""What a batch takes of several lanes: not too much, not nothing, and what is left is newer where that is to be had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lane_samples import Sample, text_of

from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader
from ringlog.layout import HEAD_OFFSET
from ringlog.producer import Appender, Producer
from ringlog.ring import store
from ringlog.settings import Settings
from ringlog.writer.shares import AHEAD_US_MAX, shares

NOW_US = 1_760_000_000_000_000
LANES = 3
Lanes = list[tuple[LaneReader, Appender]]


@pytest.fixture
def lanes(lane_settings: Settings) -> Iterator[Lanes]:
    """Lanes of one record type, as those of so many processes; 64 slots each, so that records go round them."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(LANES):
            producer = Producer([Sample], settings=lane_settings, lane_bytes={Sample: 32 * 1024})
            appender = stack.enter_context(producer).appender(Sample)
            (card,) = (card for card in cards(Instance(lane_settings)) if card.lane == appender.lane)
            reader = LaneReader.attach(card)
            stack.callback(reader.close)
            found.append((reader, appender))
        yield found


def fill(lanes: Lanes, steps: list[list[int]]) -> None:
    """Empties the lanes, then appends to each a record for every step (microseconds since the one before)."""
    for (reader, appender), of_lane in zip(lanes, steps, strict=True):
        reader.advance(reader.head)
        for timestamp in NOW_US + np.cumsum(of_lane):
            assert appender.append(1, text_of(1), timestamp=int(timestamp))


def timestamps(reader: LaneReader, rows: int) -> tuple[list[int], list[int]]:
    """Of the waiting records: those of the first `rows`, and those of the others."""
    runs = reader.runs(reader.sent, reader.waiting)
    found = [int(time) for run in runs for time in np.frombuffer(run.memory, reader.layout.dtype)["timestamp"]]
    return found[:rows], found[rows:]


STEPS = st.lists(st.integers(min_value=0, max_value=3_000), max_size=40)


def test_what_is_left_is_newer(lanes: Lanes) -> None:
    """For lanes filled at any pace within a second, all that a batch takes is older than all that it leaves."""

    @hypothesis_settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(STEPS, min_size=LANES, max_size=LANES),
        st.lists(st.integers(min_value=0, max_value=40), min_size=LANES, max_size=LANES),
        st.integers(min_value=1, max_value=100),
    )
    def any_lanes(steps: list[list[int]], limits: list[int], rows_max: int) -> None:
        fill(lanes, steps)
        readers = [reader for reader, _ in lanes]
        waiting = [lane.waiting for lane in readers]
        wanted = [min(pair) for pair in zip(waiting, limits, strict=True)]
        found = shares(readers, limits, rows_max)
        assert all(0 <= rows <= most for rows, most in zip(found, wanted, strict=True))
        assert sum(found) <= rows_max
        assert any(found) == any(wanted)
        if wanted == waiting and sum(waiting) <= rows_max:
            assert found == waiting
        parts = [timestamps(lane, rows) for lane, rows in zip(readers, found, strict=True)]
        taken, left = [time for part in parts for time in part[0]], [time for part in parts for time in part[1]]
        if taken and left and min(taken) < min(left):
            assert max(taken) < min(left)

    any_lanes()


def test_shares_are_equal_and_what_one_does_not_need_goes_to_the_others(lanes: Lanes) -> None:
    """Lanes at the same pace give the same; a short one gives all it has."""
    fill(lanes, [[100] * 40, [100] * 4, [100] * 40])
    readers = [reader for reader, _ in lanes]
    assert shares(readers, [64] * LANES, 44) == [20, 4, 20]
    assert shares(readers, [64] * LANES, 84) == [40, 4, 40]


def test_records_of_one_time_are_not_parted(lanes: Lanes) -> None:
    """Records that share a microsecond stay together; where a whole share has one time, it is taken all the same."""
    fill(lanes, [[0] * 8 + [5] + [0] * 31, [], []])
    readers = [reader for reader, _ in lanes]
    assert shares(readers, [64] * LANES, 20) == [8, 0, 0]
    fill(lanes, [[0] * 40, [], []])
    assert shares(readers, [64] * LANES, 20) == [20, 0, 0]


def test_no_lane_waits_for_one_that_is_at_another_time(lanes: Lanes) -> None:
    """A lane full of an old recording takes nothing away from the share of lanes that are at now."""
    fill(lanes, [[-AHEAD_US_MAX - 50_000] + [1_000] * 39, [1_000] * 30, [1_000] * 30])
    found = shares([reader for reader, _ in lanes], [64] * LANES, 45)
    assert found[0] == 15
    assert min(found[1:]) >= 14


def test_a_lane_whose_head_cannot_be_gives_nothing(lanes: Lanes) -> None:
    """The others give what they have: whoever takes from the broken one says what is wrong with it."""
    fill(lanes, [[1] * 10, [1] * 10, [1] * 10])
    readers = [reader for reader, _ in lanes]
    broken, head = readers[1], readers[1].head
    store(broken._memory, HEAD_OFFSET, head + 10 * broken.capacity)
    found = shares(readers, [64] * LANES, 100)
    store(broken._memory, HEAD_OFFSET, head)
    assert found == [10, 0, 10]
