"""What a table lacks because retention took it: excused record by record, so that nothing else hides behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ringlog.audit.report import Difference, Kind, Place, RecordRange, differences
from ringlog.questdb.taken import TakenRange
from ringlog.spans import SeqSet


def excused(
    table: str, missing: Mapping[int, SeqSet], counted: Iterable[TakenRange]
) -> tuple[list[RecordRange], list[Difference]]:
    """Of the records that a table lacks, those that retention counted in their lanes, and the others.

    Where retention counted within a wide range only, it excuses so many records of that range. If more are missing
    there nobody can say which: the difference names the range, and how many records too many are missing.
    """
    by_lane: dict[int, list[TakenRange]] = {}
    for each in counted:
        by_lane.setdefault(each.range.lane, []).append(each)
    taken: list[RecordRange] = []
    lost: list[Difference] = []
    for lane, seqs in missing.items():
        left = SeqSet(seqs)
        ranges = [each.range for each in by_lane.get(lane, ())]
        for exact in (each for each in ranges if each.is_exact):
            taken += _take(table, lane, left, exact.first_seq, exact.last_seq + 1)
        for start, end, rows in _groups([(r.first_seq, r.last_seq + 1, r.rows) for r in ranges if not r.is_exact]):
            parts = list(left.within(start, end))
            too_many = sum(stop - first for first, stop in parts) - rows
            if parts and too_many > 0:
                left.discard(start, end)
                lost.append(_difference(table, lane, parts[0][0], parts[-1][1] - 1, too_many))
                taken.append(_range(table, lane, parts[0][0], parts[-1][1] - 1, rows))
            else:
                taken += _take(table, lane, left, start, end)
        lost += differences(Kind.LOST, Place.QUESTDB, table, lane, left)
    return taken, lost


def _take(table: str, lane: int, left: SeqSet, start: int, end: int) -> list[RecordRange]:
    parts = list(left.within(start, end))
    left.discard(start, end)
    return [_range(table, lane, first, stop - 1, stop - first) for first, stop in parts]


def _groups(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Ranges that overlap as one, with all their rows: out of order, a lane's records of one day lie among others'."""
    groups: list[tuple[int, int, int]] = []
    for start, end, rows in sorted(ranges):
        if groups and start < groups[-1][1]:
            first, last, before = groups[-1]
            groups[-1] = first, max(last, end), before + rows
        else:
            groups.append((start, end, rows))
    return groups


def _range(table: str, lane: int, first_seq: int, last_seq: int, rows: int) -> RecordRange:
    return RecordRange(table=table, lane=f"{lane:016x}", first_seq=first_seq, last_seq=last_seq, rows=rows)


def _difference(table: str, lane: int, first_seq: int, last_seq: int, rows: int) -> Difference:
    return Difference(
        kind=Kind.LOST,
        place=Place.QUESTDB,
        table=table,
        lane=f"{lane:016x}",
        first_seq=first_seq,
        last_seq=last_seq,
        rows=rows,
    )
