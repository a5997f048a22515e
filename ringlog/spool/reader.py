"""Reading a table's spool: frames in order, broken bytes put into quarantine on the way, lost records counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.records import RecordLayout
from ringlog.spans import Span
from ringlog.spool.cursor import Position
from ringlog.spool.damage import Damage, DamageKind
from ringlog.spool.frames import FrameHeader
from ringlog.spool.quarantine import Quarantine
from ringlog.spool.spool_file import SpoolFile

logger = logging.getLogger(__name__)

READ_BYTES_MAX = 4 * 1024 * 1024  # of slots, that one read gives where no less is asked for; a longer frame comes alone
_BEFORE_HEADER = -1


class Replay(msgspec.Struct, frozen=True):
    """What one read of a spool gives: consecutive frames of one layout, merged.

    `slots` has the raw slots (uint8, rows * slot_bytes) in the order of `spans`; where only damage was met `rows` is 0
    and `layout` None. Confirming `through` confirms this replay and all read before it.
    """

    table: str
    layout: RecordLayout | None
    spans: tuple[Span, ...]
    rows: int
    slots: NDArray[np.uint8]
    damages: tuple[Damage, ...]
    through: Position

    def runs(self) -> Iterator[tuple[Span, NDArray[np.uint8]]]:
        """Each span with its part of `slots`: what a decoder takes."""
        offset = 0
        for span in self.spans:
            length = span.rows * (len(self.slots) // self.rows)
            yield span, self.slots[offset : offset + length]
            offset += length


class Reader:
    """A reading place in a table's files, and the position that is expected there.

    `files` is the table's own list, oldest first: the table adds and removes files, `file_index` follows.
    """

    def __init__(self, table: str, files: list[SpoolFile], quarantine: Quarantine) -> None:
        self.table = table
        self.position = Position()
        self.file_index = 0
        self._files = files
        self._quarantine = quarantine
        self._offset = _BEFORE_HEADER

    def seek(self, position: Position) -> None:
        """The next read goes on at `position`, searched from the oldest file."""
        self.position = position
        self.file_index = 0
        self._offset = _BEFORE_HEADER

    def removed(self, index: int) -> None:
        """The table took the file that was at `index` off its list."""
        if self.file_index > index:
            self.file_index -= 1
        elif self.file_index == index:
            self._offset = _BEFORE_HEADER

    @property
    def at_end(self) -> bool:
        """Whether no byte of any file is unread."""
        last = len(self._files) - 1
        return self.file_index > last or (self.file_index == last and self._offset >= self._files[last].length)

    def read(self, rows_max: int, bytes_max: int, end: Position) -> Replay | None:
        """The next frames, at least one and up to `rows_max` rows and `bytes_max` of one layout, and the damage met.

        None where there is nothing more up to `end`. Raises SpoolFull (no room for the quarantine) or SpoolUnusable,
        and then the reading place is where it was.
        """
        place = (self.position, self.file_index, self._offset)
        damages: list[Damage] = []
        try:
            replay = self._read(rows_max, bytes_max, end, damages)
            for damage in damages:
                self._quarantine.describe(damage)
        except BaseException:
            self.position, self.file_index, self._offset = place
            raise
        return replay

    def _read(self, rows_max: int, bytes_max: int, end: Position, damages: list[Damage]) -> Replay | None:
        slots = np.empty(0, np.uint8)
        spans: list[Span] = []
        layout: RecordLayout | None = None
        filled = 0
        rows = 0
        for file, header in self._unread_frames(end, damages):
            if layout is None:
                layout = file.layout
                # Pages that stay untouched cost no memory: a short replay is not charged for rows_max.
                rows_max = max(min(rows_max, min(bytes_max, READ_BYTES_MAX) // header.slot_bytes), header.rows)
                slots = np.empty(rows_max * header.slot_bytes, np.uint8)
            elif layout != file.layout or rows + header.rows > rows_max:
                break
            if file.read_slots(header, self._offset, slots[filled : filled + header.slots_bytes]):
                spans.extend(header.spans)
                filled += header.slots_bytes
                rows += header.rows
            else:
                damages.append(self._damage(file, self._offset + header.frame_bytes, DamageKind.CORRUPT, header))
            self._pass(header)
        if not rows:
            layout = None
        if not rows and not damages:
            return None
        return Replay(self.table, layout, tuple(spans), rows, slots[:filled], tuple(damages), self.position)

    def _pass(self, header: FrameHeader) -> None:
        self._offset += header.frame_bytes
        self.position = max(self.position, after(header))

    def _unread_frames(self, end: Position, damages: list[Damage]) -> Iterator[tuple[SpoolFile, FrameHeader]]:
        """The frames from the reading place on; the caller passes each, or stops.

        Broken bytes between frames go into quarantine and `damages` here: all up to the next frame, or to the end.
        """
        while self.file_index < len(self._files):
            file = self._files[self.file_index]
            if self._offset == _BEFORE_HEADER:
                self._offset = file.header.frames_offset if file.header is not None else 0
            if file.vanished():
                self._offset = file.length
            while self._offset < file.length:
                header = file.frame_header(self._offset)
                if header is None or self._offset + header.header_bytes + header.slots_bytes > file.length:
                    self._skip_broken_bytes(file, header, damages)
                elif header.ordinal < self.position.ordinal:
                    self._offset += header.frame_bytes
                else:
                    self._count_lost(file, header.first_row, damages)
                    yield file, header
            if self.file_index == len(self._files) - 1:
                break
            file.release()
            self.file_index += 1
            self._offset = _BEFORE_HEADER
        self._count_lost(None, end.row, damages)

    def _skip_broken_bytes(self, file: SpoolFile, header: FrameHeader | None, damages: list[Damage]) -> None:
        until = file.next_frame(self._offset + 1)
        kind = DamageKind.TORN if until >= file.length else DamageKind.CORRUPT
        damages.append(self._damage(file, until, kind, header))
        if header is not None:
            self.position = max(self.position, after(header))
        self._offset = until

    def _damage(self, file: SpoolFile, until: int, kind: DamageKind, header: FrameHeader | None) -> Damage:
        length = min(until, file.length) - self._offset
        return Damage(
            table=self.table,
            kind=kind,
            file=file.name,
            offset=self._offset,
            bytes=length,
            spans=header.spans if header else (),
            rows=header.rows if header else None,
            kept=self._quarantine.keep(self.table, file, self._offset, length),
            layout=file.layout,
        )

    def _count_lost(self, file: SpoolFile | None, row: int, damages: list[Damage]) -> None:
        """Compares the row that follows with the row expected: the difference was lost on the way.

        It belongs to the broken bytes met since the last frame, if there were some of unknown rows. A lower row says
        that a torn frame before it was an append that failed: its records were given back to the caller.
        """
        lost = max(0, row - self.position.row)
        if file is not None and row < self.position.row:
            for index, damage in enumerate(damages):
                if damage.kind is DamageKind.TORN:
                    damages[index] = msgspec.structs.replace(damage, spans=(), rows=0)
        if file is not None or lost:
            self.position = Position(self.position.ordinal, row)
        if file is not None or lost:
            for index, damage in enumerate(damages):
                if damage.rows is None:
                    damages[index] = msgspec.structs.replace(damage, rows=lost)
                    lost = 0
        if lost:
            name, offset = (file.name, self._offset) if file is not None else ("", 0)
            kind = DamageKind.MISSING
            damages.append(
                Damage(table=self.table, kind=kind, file=name, offset=offset, bytes=0, spans=(), rows=lost, kept="")
            )


def after(header: FrameHeader) -> Position:
    """The position behind a frame."""
    return Position(header.ordinal + 1, header.first_row + header.rows)
