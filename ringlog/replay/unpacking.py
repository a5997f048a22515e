"""Compressed files, unpacked as they are read; a bomb costs time, never memory. Known by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from ringlog.errors import RinglogError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BZIP2_MAGIC = re.compile(rb"BZh[1-9](1A|\x17r)")
XZ_MAGIC = b"\xfd7zXZ\0"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
MAGIC_BYTES = 6
SUFFIXES = frozenset({".gz", ".zst", ".zstd", ".bz2", ".xz", ".zip"})
XZ_BYTES_MAX = 256 << 20  # what xz -9 needs four times over
# What unpacking raises where a file is cut or damaged.
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
_READ_BYTES = 1 << 16
_ZSTD_READ_BYTES = 1 << 12  # what is lost of a truncated file is less than one read


class FileError(RinglogError):
    """A file cannot be read at all; the message names it, and says what was wrong."""


def unpacked(path: Path, file: BufferedReader) -> Callable[[int], bytes]:
    """Reads at most so many bytes of the content; b"" at its end. Raises FileError."""
    magic = file.read(MAGIC_BYTES)
    file.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file, mode="rb").read1
    if magic.startswith(ZSTD_MAGIC):
        import pyarrow as pa

        stream: Any = pa.CompressedInputStream(file, "zstd")
        return lambda size: stream.read(min(size, _ZSTD_READ_BYTES))
    if BZIP2_MAGIC.match(magic):
        return _Streams(file, bz2.BZ2Decompressor).read
    if magic.startswith(XZ_MAGIC):
        return _Streams(file, lambda: lzma.LZMADecompressor(memlimit=XZ_BYTES_MAX)).read
    if magic.startswith(ZIP_MAGICS):
        archive, member = _member(path, file)
        try:
            opened: Any = archive.open(member)
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:  # encrypted, unknown method
            raise FileError(f"{path}: got {error}, wanted a zip that can be unpacked") from None
        read: Callable[[int], bytes] = opened.read1
        return read
    return file.read1


def name_inside(path: Path) -> str:
    """The name of what the file packs, where it says that: a zip's member, else its own. Raises FileError."""
    try:
        with path.open("rb") as file:
            if file.read(MAGIC_BYTES).startswith(ZIP_MAGICS):
                file.seek(0)
                return _member(path, file)[1].filename
    except OSError:
        pass  # who opens it to read it says what is wrong
    return path.name


def _member(path: Path, file: BufferedReader) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(f"{path}: got {error}, wanted a whole zip") from None
    members = [each for each in archive.infolist() if not each.is_dir() and not each.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        names = ", ".join(each.filename for each in members[:5]) + (", ..." if len(members) > 5 else "")
        raise FileError(
            f"{path}: got a zip of {len(members)} files ({names}), wanted one: unpack it, and replay each by itself"
        )
    return archive, members[0]


class _Streams:
    """bzip2 and xz: one stream after another, never more unpacked than was asked for."""

    def __init__(self, file: BufferedReader, new: Callable[[], Any]) -> None:
        self._file = file
        self._new = new
        self._stream = new()

    def read(self, size: int) -> bytes:
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0") or self._file.read(_READ_BYTES).lstrip(b"\0")
                if not packed:
                    return b""
                self._stream = self._new()
            elif self._stream.needs_input:
                packed = self._file.read(_READ_BYTES)
                if not packed:
                    raise EOFError("the compressed data ends before its end mark")
            if found := self._stream.decompress(packed, size):
                return bytes(found)
