"""Broken bytes of spool files and lanes: kept in files of their own, each with a description beside it."""

from __future__ import annotations

import logging
import os

import msgspec

from ringlog.disk import Directory, Reserve, write_all
from ringlog.records import RecordLayout
from ringlog.spans import Span
from ringlog.spool.damage import Damage, DamageKind
from ringlog.spool.spool_file import SpoolFile

logger = logging.getLogger(__name__)

_COPY_BYTES = 1024 * 1024


DIRECTORY_NAME = "quarantine"
BYTES_SUFFIX = ".bytes"
DESCRIPTION_SUFFIX = ".json"


class Quarantine:
    """The directory of broken bytes. The writer only adds; `ringlog quarantine discard` removes what is settled."""

    def __init__(self, directory: Directory, reserve: Reserve) -> None:
        self._directory = directory
        self._reserve = reserve

    def keep(self, table: str, file: SpoolFile, offset: int, length: int) -> str:
        """Copies bytes of a spool file durably; returns the copy's path. The same bytes are kept once.

        Raises SpoolFull or OSError, and nothing may then pass the broken bytes.
        """
        name = f"{table}.{file.name.removesuffix('.spool')}.{offset}{BYTES_SUFFIX}"
        if name not in self._directory.names():
            self._reserve.spend(lambda: self._copy(name, file, offset, length))
        return str(self._directory.path / name)

    def keep_text(self, name: str, text: bytes) -> str:
        """Keeps the bytes of a small broken file."""
        self._reserve.spend(lambda: self._directory.replace(name + BYTES_SUFFIX, text))
        return str(self._directory.path / (name + BYTES_SUFFIX))

    def keep_slots(self, layout: RecordLayout, span: Span, slots: bytes) -> str:
        """Keeps consecutive slots of a lane that append could not have written, and their description before them."""
        name = f"slots-{span.lane:016x}-{span.first_seq}-{span.rows}"
        damage = Damage(
            table=layout.table,
            kind=DamageKind.SLOTS,
            file="",
            offset=0,
            bytes=len(slots),
            spans=(span,),
            rows=span.rows,
            kept=str(self._directory.path / (name + BYTES_SUFFIX)),
            layout=layout,
        )
        self._write_description(damage)
        return self.keep_text(name, slots)

    def describe(self, damage: Damage) -> None:
        """Logs a damage and writes it beside the bytes it concerns."""
        logger.error(
            "spool damage table=%s kind=%s file=%s offset=%d bytes=%d rows=%s spans=%d kept=%s",
            *(damage.table, damage.kind, damage.file, damage.offset, damage.bytes, damage.rows),
            *(len(damage.spans), damage.kept),
        )
        if damage.kept:
            self._write_description(damage)

    def _write_description(self, damage: Damage) -> None:
        name = damage.kept.rsplit("/", 1)[1].removesuffix(BYTES_SUFFIX) + DESCRIPTION_SUFFIX
        self._reserve.spend(lambda: self._directory.replace(name, msgspec.json.encode(damage)))

    def _copy(self, name: str, file: SpoolFile, offset: int, length: int) -> None:
        partial = name.removesuffix(BYTES_SUFFIX) + ".partial"
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
