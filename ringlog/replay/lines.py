"""Files of lines, plain or compressed, in blocks that end where a record ends; a broken end is never swallowed."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ringlog.errors import RinglogError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_BYTES = 1 << 20
RECORD_BYTES_MAX = 1 << 20  # an open quote would otherwise swallow the rest of the file
_ZSTD_READ_BYTES = 1 << 12  # what is lost of a truncated file is less than one read

OnBroken = Callable[[int, str], None]  # line number (from 1) and reason


class FileError(RinglogError):
    """A file cannot be read at all; the message names it, and says what was wrong."""


class Block(NamedTuple):
    """Whole records: the number of their first line (from 1), and where they begin in the uncompressed file."""

    line: int
    offset: int
    data: bytes
    newlines: int

    def behind(self, head_bytes: int) -> Block:
        """What is left without its first bytes."""
        newlines = self.data.count(b"\n", 0, head_bytes)
        return Block(self.line + newlines, self.offset + head_bytes, self.data[head_bytes:], self.newlines - newlines)


class Lines:
    """A file's content, uncompressed: gzip and zstd are known by their first bytes. Raises FileError."""

    def __init__(self, path: Path) -> None:
        try:
            self._raw = path.open("rb")
            self.size_bytes = os.fstat(self._raw.fileno()).st_size
            magic = self._raw.read(4)
            self._raw.seek(0)
        except OSError as error:
            raise FileError(f"{path}: got {error.strerror or error}, wanted a readable file") from None
        self.broken: str | None = None  # why it ends in the middle, once that was seen
        self.done_bytes = 0  # of the file as it lies on disk
        self._read = self._reader(magic)

    def _reader(self, magic: bytes) -> Callable[[int], bytes]:
        if magic[:2] == GZIP_MAGIC:
            return gzip.GzipFile(fileobj=self._raw, mode="rb").read1
        if magic == ZSTD_MAGIC:
            import pyarrow as pa

            stream: Any = pa.CompressedInputStream(self._raw, "zstd")
            return lambda size: stream.read(min(size, _ZSTD_READ_BYTES))
        return self._raw.read1

    def read(self) -> bytes:
        """The next BLOCK_BYTES; fewer at the end, and where `broken` says that the rest cannot be read."""
        found = []
        size = 0
        try:
            while self.broken is None and size < BLOCK_BYTES and (part := self._read(BLOCK_BYTES - size)):
                found.append(part)
                size += len(part)
        except (EOFError, OSError, zlib.error) as error:
            self.broken = str(error)
        self.done_bytes = self._raw.tell()
        return b"".join(found)

    def close(self) -> None:
        self._raw.close()


def blocks(stream: Lines, on_broken: OnBroken, *, quoted: bool = False) -> Iterator[Block]:
    """The file's records in blocks of about BLOCK_BYTES; the last record needs no newline.

    With `quoted` a newline between double quotes belongs to the record; one that never ends goes to `on_broken`. A file
    that ends in the middle gives all that can be read of it but its last, unfinished record.
    """
    line, offset, rest = 1, 0, b""
    is_read = False
    while not is_read or rest:
        if not is_read:
            chunk = stream.read()
            rest += chunk
            is_read = not chunk or stream.broken is not None
        is_whole = is_read and stream.broken is None and not (quoted and quotes_in(rest) % 2)
        end = len(rest) if is_whole else _last_end(rest, quoted)
        newlines = rest.count(b"\n", 0, end)
        if end:
            yield Block(line, offset, rest[:end], newlines)
        elif stream.broken is not None:
            return
        elif rest and (is_read or len(rest) > RECORD_BYTES_MAX):
            end = rest.find(b"\n") + 1 or len(rest)
            newlines = rest.count(b"\n", 0, end)
            on_broken(line, "got an open quote, wanted its end")
        line, offset, rest = line + newlines, offset + end, rest[end:]


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
