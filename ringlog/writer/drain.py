"""Draining: records of all lanes of one record layout as one batch, and what becomes of their tails."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringlog.decode import Corrupt, Decoder, Slots
from ringlog.errors import SegmentRefused
from ringlog.lanes.readers import LaneReader
from ringlog.records import TIMESTAMP, RecordLayout
from ringlog.sinks import Batch, Span
from ringlog.writer.shares import shares

logger = logging.getLogger("ringlog.writer")

# A batch's columns and its encoded form together stay a small multiple of this.
BATCH_BYTES_MAX = 12 * 1024 * 1024
# A batch takes at most this part of a lane, so that the rest can fill while the batch is sent, applied and confirmed.
LANE_PARTS = 2


class Decoded(NamedTuple):
    """What runs of slots hold: the batch to be sent, and what is in no batch: corrupt slots, and expired records."""

    batch: Batch
    corrupt: list[Corrupt]
    expired: list[Span]


class Drain:
    """One record layout's lanes. Lanes take turns at being first, so that none starves while batches are full."""

    def __init__(self, layout: RecordLayout, rows_max: int) -> None:
        self.layout = layout
        self._rows_max = rows_max
        self._decoder = Decoder(layout)
        self._turn = 0
        self._left_alone: set[int] = set()

    def take(
        self, lanes: Iterable[LaneReader], cut_us: int | None = None, bytes_max: int = BATCH_BYTES_MAX
    ) -> tuple[Decoded, list[Slots]] | None:
        """What lanes hold next, at most `bytes_max` of slots, and the runs of slots it covers; None if they are empty.

        `cut_us`: see `decode`. Moves each lane's `sent` cursor over what it took.
        """
        rows_max = min(self._rows_max, max(min(bytes_max, BATCH_BYTES_MAX) // self.layout.slot_bytes, 1))
        ordered = list(lanes)
        self._turn += 1
        at = self._turn % max(len(ordered), 1)
        ordered = ordered[at:] + ordered[:at]
        limits = [max(lane.capacity // LANE_PARTS, 1) for lane in ordered]
        taken: list[Slots] = []
        for lane, rows in zip(ordered, shares(ordered, limits, rows_max), strict=True):
            try:
                taken += lane.take(rows)
            except SegmentRefused as error:
                if lane.lane not in self._left_alone:
                    self._left_alone.add(lane.lane)
                    logger.error("lane=%016x left alone: %s", lane.lane, error)
        return (self.decode(taken, cut_us), taken) if taken else None

    def decode(self, runs: list[Slots], cut_us: int | None = None) -> Decoded:
        """The sound records of runs of slots; those with a timestamp before `cut_us` (microseconds) have expired."""
        columns, sound, corrupt = self._decoder.decode(runs)
        expired: list[Span] = []
        if cut_us is not None:
            timestamps: Any = columns[TIMESTAMP]
            late = timestamps < cut_us
            if late.any():  # hardly ever: decoding the rest again is simpler than taking rows out of columns
                sound, expired = self._parted(sound, late)
                columns, sound, _ = self._decoder.decode(sound)
        spans = tuple(Span(run.lane, run.first_seq, run.rows) for run in sound)
        return Decoded(Batch(self.layout, spans, sum(run.rows for run in sound), columns), corrupt, expired)

    def _parted(self, runs: list[Slots], late: NDArray[np.bool_]) -> tuple[list[Slots], list[Span]]:
        """Runs without the rows that are late, and the spans of those; `late` has an element for each row of `runs`."""
        kept: list[Slots] = []
        expired: list[Span] = []
        row = 0
        for run in runs:
            own = late[row : row + run.rows]
            row += run.rows
            borders = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), run.rows]
            for start, stop in itertools.pairwise(borders):
                seq, rows = run.first_seq + start, stop - start
                if own[start]:
                    expired.append(Span(run.lane, seq, rows))
                else:
                    slot_bytes = self.layout.slot_bytes
                    memory = memoryview(run.memory).cast("B")[start * slot_bytes : stop * slot_bytes]
                    kept.append(Slots(run.lane, seq, rows, memory))
        return kept, expired


def grouped(lanes: Iterable[LaneReader]) -> dict[RecordLayout, list[LaneReader]]:
    """Lanes by the layout of their records."""
    groups: dict[RecordLayout, list[LaneReader]] = {}
    for lane in lanes:
        groups.setdefault(lane.layout, []).append(lane)
    return groups
