"""Broken bytes of spool files: kept in files of their own, described, counted."""

from __future__ import annotations

import logging
import os

import msgspec

from ringlog.disk import Directory, Reserve, write_all
from ringlog.spool.damage import Damage
from ringlog.spool.spool_file import SpoolFile

logger = logging.getLogger(__name__)

_COPY_BYTES = 1024 * 1024


class Quarantine:
    """The directory of broken bytes; nothing in it is ever removed by ringlog."""

    def __init__(self, directory: Directory, reserve: Reserve) -> None:
        self._directory = directory
        self._reserve = reserve
        names = directory.names()
        self.files = sum(name.endswith(".bytes") for name in names)
        self.bytes = sum(self._size(name) for name in names if name.endswith(".bytes"))

    def _size(self, name: str) -> int:
        return os.stat(name, dir_fd=self._directory.descriptor, follow_symlinks=False).st_size

    def keep(self, table: str, file: SpoolFile, offset: int, length: int) -> str:
        """Copies bytes of a spool file durably; returns the copy's path. The same bytes are kept once.

        Raises SpoolFull or OSError, and nothing may then pass the broken bytes.
        """
        name = f"{table}.{file.name.removesuffix('.spool')}.{offset}.bytes"
        if name not in self._directory.names():
            self._reserve.spend(lambda: self._copy(name, file, offset, length))
            self.files += 1
            self.bytes += length
        return str(self._directory.path / name)

    def keep_text(self, name: str, text: bytes) -> str:
        """Keeps the bytes of a small broken file."""
        self._reserve.spend(lambda: self._directory.replace(name + ".bytes", text))
        self.files += 1
        self.bytes += len(text)
        return str(self._directory.path / (name + ".bytes"))

    def describe(self, damage: Damage) -> None:
        """Logs a damage and writes it beside the bytes it concerns."""
        logger.error(
            "spool damage table=%s kind=%s file=%s offset=%d bytes=%d rows=%s spans=%d kept=%s",
            *(damage.table, damage.kind, damage.file, damage.offset, damage.bytes, damage.rows),
            *(len(damage.spans), damage.kept),
        )
        if damage.kept:
            name = damage.kept.rsplit("/", 1)[1].removesuffix(".bytes") + ".json"
            self._reserve.spend(lambda: self._directory.replace(name, msgspec.json.encode(damage)))

    def _copy(self, name: str, file: SpoolFile, offset: int, length: int) -> None:
        partial = name.removesuffix(".bytes") + ".partial"
        descriptor = self._directory.open_file(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        system = self._directory.system
        try:
            for start in range(0, length, _COPY_BYTES):
                block = os.pread(file.descriptor, min(_COPY_BYTES, length - start), offset + start)
                write_all(system, descriptor, [block], start)
            system.fsync(descriptor)
        finally:
            os.close(descriptor)
        system.rename(partial, name, dir_fd=self._directory.descriptor)
        self._directory.sync()

    def close(self) -> None:
        self._directory.close()
