"""One file of a table's spool: made whole, appended to until it is closed, read frame by frame."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ringlog.disk import Chunk, Directory, close_quietly, refusal, write_all
from ringlog.errors import SpoolUnusable
from ringlog.records import RecordLayout
from ringlog.spans import Span
from ringlog.spool.frames import (
    ALIGNMENT_BYTES,
    FILE_MAGIC,
    FRAME_FIXED_BYTES,
    FRAME_MAGIC,
    VERSION,
    FileHeader,
    FrameHeader,
    foreign_version,
    frame_header_bytes,
    pack_file_header,
    pack_frame,
    parse_file_header,
    parse_frame_header,
)

FILE_NAME = re.compile(r"\d{20}\.spool")
_HEADERS_BYTES_MAX = 256 * 1024  # two copies of the widest layout's header fit
_SEARCH_BYTES = 1024 * 1024


def file_name(ordinal: int) -> str:
    return f"{ordinal:020d}.spool"


class SpoolFile:
    """A spool file by name; `length` counts the bytes that are durable, or for an older file all it has.

    `header` is None where both of its copies are destroyed: such a file holds no readable frame.
    """

    def __init__(self, directory: Directory, name: str, descriptor: int, header: FileHeader | None) -> None:
        self.directory = directory
        self.name = name
        self.header = header
        self.layout = header.layout if header is not None else None
        self.length = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    @classmethod
    def create(cls, directory: Directory, ordinal: int, row: int, layout: RecordLayout) -> SpoolFile:
        """A new durable file without frames, named by its first ordinal. Raises OSError."""
        packed = pack_file_header(secrets.randbits(64), ordinal, row, layout.to_json())
        name = file_name(ordinal)
        try:
            descriptor = directory.create(name, [packed])
        except OSError:  # perhaps only once it had its name: nobody would know of it before the next start
            with contextlib.suppress(OSError):
                directory.remove(name)
            raise
        return cls(directory, name, descriptor, parse_file_header(packed))

    @classmethod
    def open(cls, directory: Directory, name: str) -> SpoolFile:
        """An existing file, to be read. Raises SpoolUnusable where it is no spool file or of another version."""
        path = directory.path / name
        try:
            descriptor = directory.open_file(name, os.O_RDONLY)
        except OSError as error:
            raise refusal(path, error, "a readable spool file") from error
        start = os.pread(descriptor, _HEADERS_BYTES_MAX, 0)
        header = parse_file_header(start)
        if header is None:
            version = foreign_version(start)
            ours = FILE_MAGIC.startswith(start[:8])
            if version is not None or not ours:
                os.close(descriptor)
                got = "a file that is no spool file" if version is None else f"a spool file of version {version}"
                raise SpoolUnusable(f"{path}: got {got}, wanted version {VERSION}; it is left as it is")
        file = cls(directory, name, descriptor, header)
        file.release()
        return file

    @property
    def first_ordinal(self) -> int:
        """By what the header says; the name, which anybody can change, only where the header is destroyed."""
        return self.header.first_ordinal if self.header is not None else int(self.name.removesuffix(".spool"))

    @property
    def path(self) -> Path:
        return self.directory.path / self.name

    @property
    def descriptor(self) -> int:
        """Open for as long as it is needed: a spool of many files holds few descriptors."""
        if self._descriptor < 0:
            self._descriptor = self.directory.open_file(self.name, os.O_RDONLY)
        return self._descriptor

    def vanished(self) -> bool:
        """Whether somebody removed the file, so that nothing of it can be read any more."""
        try:
            return self.descriptor < 0
        except FileNotFoundError:
            return True
        except OSError as error:
            raise refusal(self.path, error, "a readable spool file") from error

    def release(self) -> None:
        """Gives the descriptor back; the next read opens the file again."""
        if self._descriptor >= 0:
            close_quietly(self._descriptor)
            self._descriptor = -1

    def append(self, ordinal: int, row: int, spans: Sequence[Span], slots: Sequence[Chunk]) -> None:
        """Adds a durable frame. Raises OSError, and then the file ends where it did, as far as the disk lets it.

        After an OSError other than a full disk on write the file must be abandoned: no second fsync of it counts.
        """
        assert self.header is not None  # noqa: S101 - only files made by `create` are appended to
        assert self.layout is not None  # noqa: S101
        chunks = pack_frame(self.header.file_id, ordinal, row, self.layout.slot_bytes, spans, slots)
        system = self.directory.system
        try:
            written = write_all(system, self._descriptor, chunks, self.length)
            system.fsync(self._descriptor)  # SYNC POINT: pairs with the caller's advance of the lane's tail
        except OSError:
            self._roll_back()
            raise
        self.length += written

    def _roll_back(self) -> None:
        with contextlib.suppress(OSError):  # what is left is a torn frame: replay steps over it
            self.directory.system.truncate(self._descriptor, self.length)

    def frame_header(self, offset: int) -> FrameHeader | None:
        """The frame header at `offset`; None where there is none of this file. Raises SpoolUnusable on an I/O error."""
        if self.header is None or offset >= self.length:
            return None
        packed = self._read(ALIGNMENT_BYTES, offset)
        header_bytes = frame_header_bytes(packed[:FRAME_FIXED_BYTES])
        if header_bytes is None:
            return None
        if header_bytes > len(packed):
            packed = self._read(header_bytes, offset)
        if header_bytes > len(packed):
            return None
        header = parse_frame_header(packed[:header_bytes])
        return header if header is not None and header.file_id == self.header.file_id else None

    def read_slots(self, header: FrameHeader, offset: int, into: NDArray[Any]) -> bool:
        """Reads a frame's slots into `into` (uint8, slots_bytes); False where they are torn or their CRC disagrees."""
        view = into.data
        position = offset + header.header_bytes
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.descriptor, [view[done:]], position + done)
            except OSError as error:
                raise refusal(self.path, error, "readable bytes") from error
            if count == 0:
                return False
            done += count
        return zlib.crc32(view) == header.slots_crc

    def headers(self) -> Iterator[FrameHeader]:
        """All readable frame headers, in order; slots are not looked at."""
        offset = self.header.frames_offset if self.header is not None else self.length
        while offset < self.length:
            header = self.frame_header(offset)
            if header is None:
                offset = self.next_frame(offset + 1)
            else:
                yield header
                offset += header.frame_bytes

    def next_frame(self, offset: int) -> int:
        """The offset of the next whole frame header from `offset` on, or the file's length."""
        offset = -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        while offset < self.length:
            block = self._read(_SEARCH_BYTES, offset)
            for start in range(0, len(block), ALIGNMENT_BYTES):
                if block.startswith(FRAME_MAGIC, start) and self.frame_header(offset + start) is not None:
                    return offset + start
            offset += _SEARCH_BYTES
        return self.length

    def _read(self, count: int, offset: int) -> bytes:
        try:
            return os.pread(self.descriptor, min(count, self.length - offset), offset)
        except OSError as error:
            raise refusal(self.path, error, "readable bytes") from error

    def remove(self) -> None:
        """Unlinks the file, if it is still there. Raises OSError."""
        self.release()
        with contextlib.suppress(FileNotFoundError):
            self.directory.remove(self.name)
