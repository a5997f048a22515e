"""A lane as a flight recorder: everything that can still be read of it, also by somebody who comes after a crash."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ringlog.decode import Decoder
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import SegmentBlank
from ringlog.lanes.views import LaneView, MappedLane
from ringlog.layout import refusals_by_name
from ringlog.monitor.rows import rows_of_columns, time_of
from ringlog.records import SEQ

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,30}")
FILE_BYTES_MAX = 1 << 30


class FlightRecord(msgspec.Struct):
    """A lane's header, counters and the records that are still whole in it, oldest first.

    Each row also says `confirmed`: whether it was safe elsewhere (below the tail), or only here. `half_written` slots
    were never published, `unreadable` ones hold values that no append could have written (by seq).
    """

    segment: str
    lane: int
    record: str
    table: str
    state: str
    owner_pid: int
    boot_id: str
    claimed_at: str
    capacity: int
    slot_bytes: int
    accepted: int
    confirmed: int
    waiting: int
    refused: dict[str, int]
    half_written: int
    unreadable: list[int]
    rows: list[dict[str, Any]]


def flight_record(where: str, instance: Instance, rows_max: int | None = None) -> FlightRecord:
    """Of a segment by its name, or of a file that is a copy of one; `rows_max` leaves out older rows.

    Raises LaneError where there is neither, or it cannot be read; SegmentRefused where it is no lane, or one of another
    layout version, or is cut short; it is left as it is.
    """
    path = Path(where)
    if "/" in where or os.path.isfile(path):
        return _of(LaneView(where, memoryview(_bytes_of(path))), rows_max)
    if not _NAME.fullmatch(where):
        raise LaneError(f"{where!r}: got neither a file nor the name of a segment")
    try:
        lane = MappedLane(where)
    except FileNotFoundError:
        known = ", ".join(card.segment for card in cards(instance)) or "no lanes"
        raise LaneError(
            f"{where}: got no segment and no file of that name; the instance {instance.runtime_dir} has {known}"
        ) from None
    try:
        return _of(lane, rows_max)
    finally:
        lane.close()


def _bytes_of(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > FILE_BYTES_MAX:
            raise SegmentRefused(f"{path}: got {size} bytes of no lane, wanted a file of at most {FILE_BYTES_MAX}")
        found = path.read_bytes()
    except OSError as error:
        raise LaneError(f"{path}: got {error.strerror}, wanted a readable copy of a segment") from None
    if not found:
        raise SegmentBlank(f"{path}: got 0 bytes, wanted a lane")
    return found


def _of(view: LaneView, rows_max: int | None) -> FlightRecord:
    head, layout = view.head, view.layout
    first = max(head - min(view.capacity, rows_max if rows_max is not None else view.capacity), 0)
    copied = view.copied(first, view.capacity)
    columns, _, corrupt = Decoder(layout).decode(copied.slots)
    tail = view.tail
    rows = [{**row, "confirmed": row[SEQ] < tail} for row in rows_of_columns(columns)]
    seqs = np.concatenate(
        [np.frombuffer(run.memory, "<u8")[:: layout.slot_bytes // 8] for run in view.runs(0, view.capacity)]
    )
    return FlightRecord(
        segment=view.name,
        lane=view.lane,
        record=layout.name,
        table=layout.table,
        state=view.state.name.lower(),
        owner_pid=view.header["owner_pid"],
        boot_id=view.header["boot_id"].decode("ascii", "replace").rstrip("\0"),
        claimed_at=time_of(view.header["claimed_at_us"])
        if 0 <= view.header["claimed_at_us"] < 1 << 52
        else "unreadable",
        capacity=view.capacity,
        slot_bytes=layout.slot_bytes,
        accepted=head,
        confirmed=tail,
        waiting=head - tail,
        refused=refusals_by_name(view.refused),
        half_written=int(np.count_nonzero(seqs >= head)) if head else 0,
        unreadable=[each.seq for each in corrupt],
        rows=rows,
    )
