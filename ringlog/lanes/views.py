"""Lanes as an onlooker sees them: header and words of a segment, and copies of its slots, whoever reads them.

Nothing here writes; an onlooker maps its segments without the right to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np

from ringlog._ring_python import fence
from ringlog.decode import Slots
from ringlog.errors import SegmentRefused
from ringlog.lanes.segments import SegmentBlank, attach_segment
from ringlog.layout import (
    HEAD_OFFSET,
    HEADER,
    HEADER_FIELDS,
    LAYOUT_OFFSET,
    LAYOUT_VERSION,
    MAGIC,
    READ_VERSIONS,
    REFUSED_OFFSET,
    REFUSED_WORDS,
    STATE_OFFSET,
    TAIL_OFFSET,
    LaneState,
    segment_bytes,
    slots_offset,
)
from ringlog.records import LANE, SEQ, TIMESTAMP, Field, Kind, RecordLayout
from ringlog.records.declaration import FIELDS_MAX, IDENTIFIER, SLOT_BYTES_MAX, TIMESTAMP_OFFSET
from ringlog.records.fields import INT64_MAX, INT64_MIN, TEXT_WIDTH_BYTES_MAX
from ringlog.ring import load

HEAD_MAX = 1 << 48  # ten million records a second would take most of a year


class Copied(NamedTuple):
    """Records as they were when they were published: whole, in order, `rows` of them from `first_seq` on.

    `skipped` records before them had been overwritten by then.
    """

    slots: list[Slots]
    rows: int
    skipped: int
    next_seq: int


class LaneView:
    """One lane, for reading: over a mapped segment, or over the bytes of a file that is a copy of one."""

    def __init__(self, name: str, memory: Any, lane: int | None = None) -> None:
        """Checks the header before anything in it is believed; `lane` is the number it must have, if that is known.

        Raises SegmentBlank where nothing was ever accepted into it, SegmentRefused (naming got and wanted) where it is
        not a lane of this layout version and of the sizes it says; the segment is left as it is.
        """
        self.name = name
        self._memory: Any = memory
        self.header = _checked_header(name, memory)
        self.layout = _checked_layout(name, memory, self.header)
        self.lane: int = self.header["lane"]
        self.capacity: int = self.header["capacity"]
        at = _checked_sizes(name, memory, self.header, self.layout, lane)
        self._slots = memory[at : at + self.capacity * self.layout.slot_bytes]
        self._check_head()

    def _check_head(self) -> None:
        """A head is garbage, however well it fits the tail, where no slot speaks for it and one for another head.

        Where all slots are garbage they say nothing, and are kept as corrupt ones: unless there cannot be so many.
        """
        head, _ = self.cursors()
        last = (head - 1) % self.capacity * self.layout.slot_bytes
        if head == 0 or head <= load(self._slots, last) + 1 <= head + self.capacity:
            return
        seqs = self._seqs(self._slots)
        sound = (seqs % np.uint64(self.capacity) == np.arange(self.capacity, dtype=np.uint64)) & (seqs < HEAD_MAX)
        # The next record may be half written.
        speaks = sound & (seqs >= max(head - self.capacity, 0)) & (seqs <= head)
        if not speaks.any() and (sound.any() or head > HEAD_MAX):
            raise SegmentRefused(f"segment {self.name}: got head {head}, wanted one below which a slot is written")

    def cursors(self) -> tuple[int, int]:
        """Head and tail. Raises SegmentRefused where they cannot belong together: somebody wrote into the segment."""
        before, head, tail = self.tail, self.head, self.tail  # in this order, neither difference is a matter of when
        if not before <= head <= min(tail + self.capacity, INT64_MAX):
            raise SegmentRefused(
                f"segment {self.name}: got head {head}, tail {tail}, wanted at most {self.capacity} apart, below 2^63"
            )
        return head, before

    @property
    def head(self) -> int:
        """How many records were ever accepted into this lane. SYNC POINT head: with the owner's publish."""
        return load(self._memory, HEAD_OFFSET)

    @property
    def tail(self) -> int:
        """How many of them are safe elsewhere."""
        return load(self._memory, TAIL_OFFSET)

    @property
    def state(self) -> LaneState:
        """RETIRED also for a word that nobody stores: its owner leaves such a lane as well."""
        word = load(self._memory, STATE_OFFSET)
        return LaneState(word) if word in (LaneState.OPEN, LaneState.CLOSED) else LaneState.RETIRED

    @property
    def refused(self) -> tuple[int, ...]:
        """Records refused by the owner, by reason; 0 for a count that nobody comes to: somebody wrote there."""
        counts = (load(self._memory, REFUSED_OFFSET + 8 * i) for i in range(REFUSED_WORDS))
        return tuple(count if count <= HEAD_MAX else 0 for count in counts)

    def timestamp_us(self, seq: int) -> int | None:
        """When record `seq` was appended, microseconds since the epoch; None where its slot holds another one."""
        at = seq % self.capacity * self.layout.slot_bytes
        before = load(self._slots, at)
        stamp = load(self._slots, at + TIMESTAMP_OFFSET)
        fence()
        return stamp if before == load(self._slots, at) == seq else None

    def runs(self, first_seq: int, rows: int) -> list[Slots]:
        """`rows` consecutive slots from `first_seq` on, as one or two runs of shared memory."""
        found = []
        while rows:
            at = first_seq % self.capacity
            part = min(rows, self.capacity - at)
            memory = self._slots[at * self.layout.slot_bytes : (at + part) * self.layout.slot_bytes]
            found.append(Slots(self.lane, first_seq, part, memory))
            first_seq += part
            rows -= part
        return found

    def copied(self, first_seq: int, rows_max: int) -> Copied:
        """Records from `first_seq` on, at most `rows_max`, also those that were confirmed and not yet overwritten.

        SYNC POINT overwritten: with an append, which stores the slot's new seq before any of its fields. A seq that is
        still the old one after the copy was made says that no byte of the copy is of a later record; reordered, a copy
        could be half of one record and half of another. Raises what `cursors` raises.
        """
        head, _ = self.cursors()
        start = max(first_seq, head - self.capacity)
        rows = max(min(head - start, rows_max), 0)
        copies = [run._replace(memory=bytes(run.memory)) for run in self.runs(start, rows)]
        fence()
        for run, copy in zip(self.runs(start, rows), copies, strict=True):
            wanted = np.arange(run.first_seq, run.first_seq + run.rows, dtype=np.uint64)
            wrong = (self._seqs(copy.memory) != wanted) | (self._seqs(run.memory) != wanted)
            if wrong.any():
                start = run.first_seq + int(np.flatnonzero(wrong)[-1]) + 1
        whole = [self._from(copy, start) for copy in copies if copy.first_seq + copy.rows > start]
        rows = sum(copy.rows for copy in whole)
        return Copied(whole, rows, start - first_seq, start + rows)

    def _seqs(self, slots: Any) -> Any:
        return np.frombuffer(slots, "<u8")[:: self.layout.slot_bytes // 8]

    def _from(self, run: Slots, seq: int) -> Slots:
        gone = max(seq - run.first_seq, 0)
        return Slots(run.lane, run.first_seq + gone, run.rows - gone, run.memory[gone * self.layout.slot_bytes :])

    def close(self) -> None:
        self._slots.release()


class MappedLane(LaneView):
    """The lane of a segment, mapped for reading alone; closed with its mapping. Raises what attach_segment does."""

    def __init__(self, segment: str, lane: int | None = None) -> None:
        self._segment = attach_segment(segment, is_writable=False)
        try:
            super().__init__(segment, self._segment.memory, lane)
        except BaseException:
            self._segment.close()
            raise

    def close(self) -> None:
        super().close()
        self._segment.close()


def _checked_header(name: str, memory: Any) -> dict[str, Any]:
    if bytes(memory[:8]) == bytes(8):
        raise SegmentBlank(f"segment {name}: got no magic, wanted a completed claim")
    if len(memory) < LAYOUT_OFFSET:
        raise SegmentRefused(f"segment {name}: got {len(memory)} bytes, wanted at least {LAYOUT_OFFSET}")
    header = dict(zip(HEADER_FIELDS, HEADER.unpack(bytes(memory[: HEADER.size])), strict=True))
    if header["magic"] != MAGIC or header["version"] not in READ_VERSIONS:
        raise SegmentRefused(
            f"segment {name}: got magic {header['magic']!r} version {header['version']}, "
            f"wanted {MAGIC!r} version {LAYOUT_VERSION}: was it made by another version of ringlog?"
        )
    return header


def _checked_layout(name: str, memory: Any, header: dict[str, Any]) -> RecordLayout:
    layout_bytes = header["layout_bytes"]
    if not 0 < layout_bytes <= len(memory) - LAYOUT_OFFSET:
        raise SegmentRefused(f"segment {name}: got {layout_bytes} bytes of layout, wanted them inside it")
    try:
        layout = RecordLayout.from_json(bytes(memory[LAYOUT_OFFSET : LAYOUT_OFFSET + layout_bytes]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SegmentRefused(f"segment {name}: got a layout that is none ({error}), wanted JSON") from None
    _check_layout(name, layout)
    return layout


def _checked_sizes(name: str, memory: Any, header: dict[str, Any], layout: RecordLayout, lane: int | None) -> int:
    """Where the slots begin, once all of them are known to lie inside the segment."""
    capacity, at = header["capacity"], slots_offset(header["layout_bytes"])
    lane = header["lane"] if lane is None else lane
    sound = (
        capacity > 0
        and capacity & (capacity - 1) == 0
        and header["slot_bytes"] == layout.slot_bytes
        and header["slots_offset"] == at
        and header["lane"] == lane
        and 0 < lane <= INT64_MAX
        and len(memory) >= segment_bytes(header["layout_bytes"], layout.slot_bytes, capacity)
    )
    if not sound:
        raise SegmentRefused(
            f"segment {name}: got lane {header['lane']}, {capacity} slots of {header['slot_bytes']} bytes "
            f"from byte {header['slots_offset']} in {len(memory)} bytes, wanted lane {lane}, a power of two "
            f"of slots of {layout.slot_bytes} bytes from byte {at} inside the segment"
        )
    return at


def _check_layout(name: str, layout: RecordLayout) -> None:
    """The layout comes from another process: every field must lie inside the slot and every name be an identifier."""
    names = [field.name for field in layout.fields]
    sound = (
        16 <= layout.slot_bytes <= SLOT_BYTES_MAX
        and 2 <= len(names) <= FIELDS_MAX + 1
        and len({*names, LANE, SEQ}) == len(names) + 2
        and all(IDENTIFIER.fullmatch(name) for name in (*names, layout.table))
        and all(8 <= field.offset <= layout.slot_bytes - field.stored_bytes for field in layout.fields)
        and all(_is_sound(field) for field in layout.fields)
        and [field.name for field in layout.fields if field.kind is Kind.TIMESTAMP] == [TIMESTAMP] == names[-1:]
    )
    if not sound:
        raise SegmentRefused(
            f"segment {name}: got a layout of {layout.name!r} that no record type compiles to, "
            f"wanted named fields of known kinds inside their slot of {layout.slot_bytes} bytes"
        )


def _is_sound(field: Field) -> bool:
    """Whether a field's width and limits are ones that its kind can have."""
    limits = (field.minimum, field.maximum)
    match field.kind:
        case Kind.DOUBLE:
            return field.width_bytes == 8 and all(isinstance(limit, float) for limit in limits)
        case Kind.LONG:
            return field.width_bytes == 8 and all(isinstance(x, int) and INT64_MIN <= x <= INT64_MAX for x in limits)
        case Kind.TIMESTAMP:
            return field.width_bytes == 8
        case Kind.BOOLEAN:
            return field.width_bytes == 1
        case _:
            return 1 <= field.width_bytes <= TEXT_WIDTH_BYTES_MAX
