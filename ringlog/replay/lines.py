"""Files of lines, plain or compressed, in blocks that end where a record ends; a broken end is never swallowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ringlog.replay.unpacking import BROKEN, FileError, unpacked

BLOCK_BYTES = 1 << 20
RECORD_BYTES_MAX = 1 << 20  # records up to it are always read; longer ones are not, and an open quote ends
SHOWN_BYTES_MAX = 1 << 16
OPEN_QUOTE = "got an open quote, wanted its end"


class Block(NamedTuple):
    """Whole records: the number of their first line (from 1), and where they begin in the uncompressed file.

    Where `broken` is not None they are none: `data` is a line that is no record, and `broken` says why, or it is more
    of such a line, or a line to be skipped, with `broken` empty.
    """

    line: int
    offset: int
    data: bytes
    newlines: int
    broken: str | None = None

    def behind(self, head_bytes: int) -> Block:
        """What is left without its first bytes."""
        newlines = self.data.count(b"\n", 0, head_bytes)
        return self._replace(
            line=self.line + newlines,
            offset=self.offset + head_bytes,
            data=self.data[head_bytes:],
            newlines=self.newlines - newlines,
        )

    @property
    def text(self) -> str:
        """What a person is shown of a broken line."""
        more = "..." if len(self.data) > SHOWN_BYTES_MAX else ""
        return self.data[:SHOWN_BYTES_MAX].decode("utf-8", "replace").rstrip("\r\n") + more


class Lines:
    """A file's content, unpacked. Raises FileError."""

    def __init__(self, path: Path) -> None:
        try:
            self._raw = path.open("rb")
            self.size_bytes = os.fstat(self._raw.fileno()).st_size
            self._read = unpacked(path, self._raw)
        except OSError as error:
            raise FileError(f"{path}: got {error.strerror or error}, wanted a readable file") from None
        self.broken: str | None = None  # why it ends in the middle, once that was seen
        self.done_bytes = 0  # of the file as it lies on disk

    def read(self) -> bytes:
        """The next BLOCK_BYTES; fewer at the end, and where `broken` says that the rest cannot be read."""
        found = []
        size = 0
        try:
            while self.broken is None and size < BLOCK_BYTES and (part := self._read(BLOCK_BYTES - size)):
                found.append(part)
                size += len(part)
        except BROKEN as error:
            self.broken = str(error)
        self.done_bytes = self._raw.tell()
        return b"".join(found)

    def close(self) -> None:
        self._raw.close()


def blocks(stream: Lines, *, quoted: bool = False, skip_lines: int = 0) -> Iterator[Block]:
    """The file's records in blocks of about BLOCK_BYTES; the last record needs no newline. All of the file is in one.

    With `quoted` a newline between double quotes belongs to the record. A quote that is never closed breaks its line, a
    line of more than RECORD_BYTES_MAX is broken too. Of a file that ends in the middle comes all that can be read but
    its last, unfinished record.
    """
    line, offset, rest = 1, 0, b""
    is_read = is_inside = False  # inside a line that is too long
    while not is_read or rest:
        if not is_read and len(rest) <= RECORD_BYTES_MAX:
            chunk = stream.read()
            rest += chunk
            is_read = not chunk or stream.broken is not None
        broken = None
        if skip_lines or is_inside:
            end = rest.find(b"\n") + 1 or len(rest)
            broken = ""
        else:
            is_whole = is_read and stream.broken is None and not (quoted and quotes_in(rest) % 2)
            end = len(rest) if is_whole else _last_end(rest, quoted)
            if not end and stream.broken is not None and len(rest) <= RECORD_BYTES_MAX:
                return
            if not end and (is_read or len(rest) > RECORD_BYTES_MAX):
                end = rest.find(b"\n") + 1
                broken = OPEN_QUOTE if end or is_read else f"got a line of more than {RECORD_BYTES_MAX} bytes"
                end = end or len(rest)
        if end:
            data, rest = rest[:end], rest[end:]
            newlines = data.count(b"\n")
            yield Block(line, offset, data, newlines, broken)
            line, offset = line + newlines, offset + end
            if broken is not None:
                is_ended = data.endswith(b"\n")
                skip_lines -= 1 if skip_lines and is_ended else 0
                is_inside = not is_ended


def quotes_in(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord('"')))


def _last_end(data: bytes, quoted: bool) -> int:
    """Behind the last newline that ends a record; 0 if there is none."""
    end = data.rfind(b"\n") + 1
    if quoted:
        quotes = quotes_in(data[:end])
        while end and quotes % 2:
            before = data.rfind(b"\n", 0, end - 1) + 1
            quotes -= quotes_in(data[before:end])
            end = before
    return end
