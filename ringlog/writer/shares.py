"""How many records each lane gives to the next batch where they do not all fit: what is oldest, and each its share.

QuestDB appends a commit whose first timestamp lies behind the table's last one, and merges any other into what it has:
that costs it half as much again. So what is left in the lanes should be newer than all that the batch takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ringlog.errors import SegmentRefused
from ringlog.lanes.readers import LaneReader
from ringlog.records.declaration import TIMESTAMP_OFFSET

# Records are left for the next batch for being too new by so much. By more, it is another time that a lane is at (a
# recording's, say), and its records would wait for all of the other lane's.
AHEAD_US_MAX = 1_000_000


def shares(lanes: Sequence[LaneReader], limits: Sequence[int], rows_max: int) -> list[int]:
    """For each lane how many records to take, at most its limit, and `rows_max` of all; some, where there are any.

    Timestamps that do not ascend within a lane make it a worse choice, and no other harm.
    """
    waiting = [_waiting(lane) for lane in lanes]
    given = _divided([min(pair) for pair in zip(waiting, limits, strict=True)], rows_max)
    left_us = [_timestamp(lane, rows) for lane, rows, all_ in zip(lanes, given, waiting, strict=True) if rows < all_]
    if not left_us:
        return given
    first_left_us = min(left_us)
    older = [_before(lane, rows, first_left_us) for lane, rows in zip(lanes, given, strict=True)]
    return older if any(older) else given


def _waiting(lane: LaneReader) -> int:
    try:
        return lane.waiting
    except SegmentRefused:  # as whoever takes from it sees again, and says
        return 0


def _divided(wanted: Sequence[int], rows_max: int) -> list[int]:
    """Equal shares of `rows_max`; what some do not need goes to the others."""
    given = [0] * len(wanted)
    for done, lane in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[lane] = min(wanted[lane], -(-(rows_max - sum(given)) // (len(wanted) - done)))
    return given


def _timestamps(lane: LaneReader, first: int, rows: int) -> list[NDArray[np.int64]]:
    """The timestamps of waiting records, as one or two views of shared memory."""
    strides = (lane.layout.slot_bytes,)
    runs = lane.runs(lane.sent + first, rows)
    return [np.ndarray((run.rows,), np.int64, run.memory, TIMESTAMP_OFFSET, strides) for run in runs]


def _timestamp(lane: LaneReader, at: int) -> int:
    return int(_timestamps(lane, at, 1)[0][0])


def _before(lane: LaneReader, rows: int, limit_us: int) -> int:
    """How many of the next `rows` records are older than `limit_us`; all of them, where the last is far from it."""
    if not rows or not 0 <= _timestamp(lane, rows - 1) - limit_us < AHEAD_US_MAX:
        return rows
    found = 0
    for timestamps in _timestamps(lane, 0, rows):
        older = int(np.searchsorted(timestamps, limit_us))
        found += older
        if older < len(timestamps):
            break
    return found
