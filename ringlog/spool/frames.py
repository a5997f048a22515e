"""The bytes of a spool file: a header twice, then frames, each aligned to ALIGNMENT_BYTES.

File header: magic, version, header length, layout length, CRC, file id, first ordinal, first row, then the record
type's layout as JSON. It is there twice, so that one flipped bit does not cost the file. Frame: a fixed header, the
spans, the raw slots, zeros up to the alignment. Header and slots have CRCs of their own, so that broken slots still
say whose they were; the alignment keeps a failed write of one frame off the bytes of the frame before, and is where
the search for the next frame goes on after broken bytes. All little-endian, and pure: nothing here does I/O.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from ringlog.disk import Chunk
from ringlog.records import RecordLayout
from ringlog.spans import Span

VERSION = 1
ALIGNMENT_BYTES = 4096
FILE_MAGIC = b"RLSPOOL\x00"
FRAME_MAGIC = b"RLFRAME\x00"

_FILE = struct.Struct("<8sIIIIQQQ")  # magic, version, header bytes, layout bytes, crc, file id, first ordinal, row
_FRAME = struct.Struct("<8sQQQIIIII")  # magic, file id, ordinal, row, rows, spans, slot bytes, slots crc, header crc
_SPAN = struct.Struct("<QQQ")
FRAME_FIXED_BYTES = _FRAME.size
SPANS_MAX = 65_536


class FileHeader(NamedTuple):
    """What a file's header says; `first_row` counts the table's records before this file since the spool began."""

    version: int
    header_bytes: int  # of one copy
    file_id: int
    first_ordinal: int
    first_row: int
    layout_json: bytes

    @property
    def frames_offset(self) -> int:
        return 2 * self.header_bytes

    @property
    def layout(self) -> RecordLayout:
        return RecordLayout.from_json(self.layout_json)


class FrameHeader(NamedTuple):
    """What a frame's header says: ordinals only grow, `first_row` counts the table's records before this frame."""

    file_id: int
    ordinal: int
    first_row: int
    rows: int
    slot_bytes: int
    slots_crc: int
    spans: tuple[Span, ...]

    @property
    def header_bytes(self) -> int:
        return _FRAME.size + len(self.spans) * _SPAN.size

    @property
    def slots_bytes(self) -> int:
        return self.rows * self.slot_bytes

    @property
    def frame_bytes(self) -> int:
        return frame_bytes(len(self.spans), self.rows, self.slot_bytes)


def aligned(length: int) -> int:
    return -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack_file_header(file_id: int, first_ordinal: int, first_row: int, layout_json: bytes) -> bytes:
    """Both copies of a file's header, zeros up to the alignment included."""
    header_bytes = aligned(_FILE.size + len(layout_json))
    sizes = (header_bytes, len(layout_json))
    fields = (file_id, first_ordinal, first_row)
    crc = zlib.crc32(_FILE.pack(FILE_MAGIC, VERSION, *sizes, 0, *fields) + layout_json)
    packed = _FILE.pack(FILE_MAGIC, VERSION, *sizes, crc, *fields) + layout_json
    return packed.ljust(header_bytes, b"\0") * 2


def parse_file_header(start: bytes) -> FileHeader | None:
    """The header at the start of a file, from whichever of its two copies is whole; None where neither is.

    `start` is the file's first bytes: as many as two copies can have.
    """
    for offset in range(0, len(start), ALIGNMENT_BYTES):
        header = _file_header_at(start, offset)
        if header is not None and offset in (0, header.header_bytes):
            return header
    return None


def _file_header_at(start: bytes, offset: int) -> FileHeader | None:
    if len(start) - offset < _FILE.size or start[offset : offset + 8] != FILE_MAGIC:
        return None
    magic, version, header_bytes, layout_bytes, crc, file_id, ordinal, row = _FILE.unpack_from(start, offset)
    layout_json = start[offset + _FILE.size : offset + _FILE.size + layout_bytes]
    blank = _FILE.pack(magic, version, header_bytes, layout_bytes, 0, file_id, ordinal, row) + layout_json
    if zlib.crc32(blank) != crc or version != VERSION:
        return None
    return FileHeader(version, header_bytes, file_id, ordinal, row, layout_json)


def foreign_version(start: bytes) -> int | None:
    """The version of a file that is ours but not of VERSION, else None.

    The first 12 bytes are the same in every version.
    """
    if len(start) < 12 or start[:8] != FILE_MAGIC:
        return None
    (version,) = struct.unpack_from("<I", start, 8)
    return int(version) if version != VERSION else None


def pack_frame(
    file_id: int, ordinal: int, first_row: int, slot_bytes: int, spans: Sequence[Span], slots: Sequence[Chunk]
) -> list[Chunk]:
    """A frame as chunks to be written one after the other; `slots` are the raw slots, contiguous, not copied."""
    rows = sum(span.rows for span in spans)
    slots_crc = 0
    for chunk in slots:
        slots_crc = zlib.crc32(chunk, slots_crc)
    fixed = (FRAME_MAGIC, file_id, ordinal, first_row, rows, len(spans), slot_bytes, slots_crc)
    packed_spans = b"".join(_SPAN.pack(*span) for span in spans)
    crc = zlib.crc32(packed_spans, zlib.crc32(_FRAME.pack(*fixed, 0)))
    header = _FRAME.pack(*fixed, crc) + packed_spans
    length = len(header) + rows * slot_bytes
    return [header, *slots, bytes(aligned(length) - length)]


def file_header_bytes(layout_json: bytes) -> int:
    """How many bytes both copies of a file's header take."""
    return 2 * aligned(_FILE.size + len(layout_json))


def frame_bytes(spans: int, rows: int, slot_bytes: int) -> int:
    """How many bytes of a file a frame of so many spans and rows takes."""
    return aligned(_FRAME.size + spans * _SPAN.size + rows * slot_bytes)


def frame_header_bytes(fixed: bytes) -> int | None:
    """How long the header is that starts with `fixed` (FRAME_FIXED_BYTES of them); None where it is none."""
    if len(fixed) < _FRAME.size or fixed[:8] != FRAME_MAGIC:
        return None
    spans: int = _FRAME.unpack_from(fixed)[5]
    return _FRAME.size + spans * _SPAN.size if 0 < spans <= SPANS_MAX else None


def parse_frame_header(packed: bytes) -> FrameHeader | None:
    """The header whose bytes (`frame_header_bytes` of them) these are; None where its CRC disagrees."""
    magic, file_id, ordinal, first_row, rows, spans, slot_bytes, slots_crc, crc = _FRAME.unpack_from(packed)
    blank = _FRAME.pack(magic, file_id, ordinal, first_row, rows, spans, slot_bytes, slots_crc, 0)
    packed_spans = packed[_FRAME.size :]
    if zlib.crc32(packed_spans, zlib.crc32(blank)) != crc:
        return None
    parsed = tuple(Span(*fields) for fields in _SPAN.iter_unpack(packed_spans))
    return FrameHeader(file_id, ordinal, first_row, rows, slot_bytes, slots_crc, parsed)
