"""Sets of sequence numbers against Python's own sets."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ringlog.spans import SeqSet

RANGE = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.lists(st.tuples(st.booleans(), RANGE), max_size=40), RANGE)
def test_behaves_like_a_set(changes: list[tuple[bool, tuple[int, int]]], window: tuple[int, int]) -> None:
    """Whatever is added and discarded: members, length, ranges, parts and gaps are those of a plain set."""
    ranges, plain = SeqSet(), set()
    for adds, (start, end) in changes:
        (ranges.add if adds else ranges.discard)(start, end)
        plain = plain | set(range(start, end)) if adds else plain - set(range(start, end))
    start, end = window
    assert {seq for part in ranges for seq in range(*part)} == plain
    assert len(ranges) == len(plain)
    assert bool(ranges) == bool(plain)
    assert all((seq in ranges) == (seq in plain) for seq in range(62))
    assert [seq for part in ranges.within(start, end) for seq in range(*part)] == [
        seq for seq in range(start, end) if seq in plain
    ]
    assert [seq for part in ranges.gaps(start, end) for seq in range(*part)] == [
        seq for seq in range(start, end) if seq not in plain
    ]
    assert ranges.end == max(plain, default=-1) + 1
    parts = list(ranges)
    assert all(a < b for a, b in parts)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(parts))
    assert SeqSet(parts) == ranges
