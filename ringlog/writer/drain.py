"""Draining: records of all lanes of one record layout as one batch, and what becomes of their tails."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ringlog.decode import Corrupt, Decoder, Slots
from ringlog.errors import SegmentRefused
from ringlog.lanes.readers import LaneReader
from ringlog.records import RecordLayout
from ringlog.sinks import Batch, Span

logger = logging.getLogger("ringlog.writer")

# A batch's columns and its encoded form together stay a small multiple of this.
BATCH_BYTES_MAX = 12 * 1024 * 1024
# A batch takes at most this part of a lane, so that the rest can fill while the batch is sent, applied and confirmed.
LANE_PARTS = 2


class Drain:
    """One record layout's lanes. Lanes take turns at being first, so that none starves while batches are full."""

    def __init__(self, layout: RecordLayout, rows_max: int) -> None:
        self.layout = layout
        self._rows_max = min(rows_max, max(BATCH_BYTES_MAX // layout.slot_bytes, 1))
        self._decoder = Decoder(layout)
        self._turn = 0
        self._left_alone: set[int] = set()

    def take(self, lanes: Iterable[LaneReader]) -> tuple[Batch, list[Slots], list[Corrupt]] | None:
        """The next batch, the runs of slots it covers (corrupt ones included), and the corrupt slots; None if empty.

        Moves each lane's `sent` cursor over what it took.
        """
        ordered = list(lanes)
        self._turn += 1
        at = self._turn % max(len(ordered), 1)
        taken: list[Slots] = []
        rows = 0
        for lane in ordered[at:] + ordered[:at]:
            if rows >= self._rows_max:
                break
            try:
                runs = lane.take(min(self._rows_max - rows, max(lane.capacity // LANE_PARTS, 1)))
            except SegmentRefused as error:
                if lane.lane not in self._left_alone:
                    self._left_alone.add(lane.lane)
                    logger.error("lane=%016x left alone: %s", lane.lane, error)
                continue
            taken += runs
            rows += sum(run.rows for run in runs)
        if not taken:
            return None
        batch, corrupt = self.decode(taken)
        return batch, taken, corrupt

    def decode(self, runs: list[Slots]) -> tuple[Batch, list[Corrupt]]:
        """Runs of slots as a batch of the sound ones, and the corrupt ones."""
        columns, sound, corrupt = self._decoder.decode(runs)
        spans = tuple(Span(run.lane, run.first_seq, run.rows) for run in sound)
        return Batch(self.layout, spans, sum(run.rows for run in sound), columns), corrupt
