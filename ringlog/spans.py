"""Sets of records by lane and sequence number."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Consecutive records of one lane: `rows` of them, from `first_seq` on."""

    lane: int
    first_seq: int
    rows: int


class SeqSet:
    """A set of sequence numbers of one lane as disjoint half-open ranges: memory grows with the gaps only."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Adds start <= seq < end; ranges that touch become one."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def discard(self, start: int, end: int) -> None:
        """Takes start <= seq < end out, as far as they are in."""
        if start >= end:
            return
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        left = (self._starts[first], start) if self._starts[first] < start else None
        right = (end, self._ends[last - 1]) if end < self._ends[last - 1] else None
        kept = [part for part in (left, right) if part is not None]
        self._starts[first:last] = [part[0] for part in kept]
        self._ends[first:last] = [part[1] for part in kept]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the set in start <= seq < end, in order."""
        for index in range(bisect.bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                return
            yield max(start, self._starts[index]), min(end, self._ends[index])

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of start <= seq < end that are not in the set, in order."""
        for known_start, known_end in list(self.within(start, end)):
            if start < known_start:
                yield start, known_start
            start = known_end
        if start < end:
            yield start, end

    @property
    def start(self) -> int:
        """The smallest member; 0 of the empty set."""
        return self._starts[0] if self._starts else 0

    @property
    def end(self) -> int:
        """One more than the largest member; 0 of the empty set."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __contains__(self, seq: int) -> bool:
        index = bisect.bisect_right(self._starts, seq) - 1
        return index >= 0 and seq < self._ends[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges, in order."""
        return iter(zip(self._starts, self._ends, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SeqSet({list(self)})"
