"""The local disk queue of an instance: what QuestDB cannot take now, durable, per table, in order, capped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ringlog.disk import Directory, Reserve, System, refusal
from ringlog.errors import SpoolError, SpoolFull
from ringlog.records import RecordLayout
from ringlog.spans import Span
from ringlog.spool.frames import ALIGNMENT_BYTES, file_header_bytes, frame_bytes
from ringlog.spool.quarantine import Quarantine
from ringlog.spool.reader import READ_BYTES_MAX, Replay
from ringlog.spool.table import TableSpool

FILE_BYTES_MAX = 64 * 1024 * 1024
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Spool:
    """All tables' spools below `path`, which belongs to one instance; its parent directory must exist.

    Sizes are recounted from disk here, files that the cursors passed are removed, and nothing else is changed. Raises
    SpoolUnusable where a directory or file is not ours, not writable, a symlink, foreign, or of another version.
    `path` has `tables/TABLE/` (frames and cursor), `quarantine/`, `reserve`; ledger and dead letters lie beside them.
    """

    def __init__(
        self,
        path: Path,
        *,
        bytes_max: int,
        file_bytes_max: int = FILE_BYTES_MAX,
        reserve_bytes: int = 8 * 1024 * 1024,
        system: System | None = None,
    ) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self._file_bytes_max = file_bytes_max
        self.directory = Directory.open(path, system)
        self.reserve = Reserve(self.directory, reserve_bytes)
        self.quarantine = Quarantine(self.directory.subdirectory("quarantine"), self.reserve)
        self._root = self.directory.subdirectory("tables")
        self._tables: dict[str, TableSpool] = {}
        for name in self._root.names():
            if _TABLE.fullmatch(name):
                self._table(name)

    def _table(self, name: str) -> TableSpool:
        table = self._tables.get(name)
        if table is None:
            directory = self._root.subdirectory(name)
            try:
                table = TableSpool(name, directory, self.quarantine, self.reserve, self._file_bytes_max)
            except OSError as error:
                directory.close()
                raise refusal(directory.path, error, "a disk that takes writes") from error
            except SpoolError:
                directory.close()
                raise
            self._tables[name] = table
        return table

    @property
    def bytes(self) -> int:
        """All spool files together; quarantine, cursors and the reserve are not part of the cap."""
        return sum(table.bytes for table in self._tables.values())

    def rows_room(self, layout: RecordLayout, lanes: int = 1) -> int:
        """How many records of so many lanes one more batch may hold: what the cap leaves room for, whatever file it
        goes into, and no more than one read gives, so that a replay needs little memory."""
        overhead = file_header_bytes(layout.to_json()) + frame_bytes(2 * lanes, 0, 0) + ALIGNMENT_BYTES
        room_bytes = min(self.bytes_max - self.bytes - overhead, READ_BYTES_MAX)
        return max(0, room_bytes // layout.slot_bytes)

    def rows(self, table: str) -> int:
        """Records of a table that are spooled and not confirmed, damaged ones included."""
        return self._tables[table].rows if table in self._tables else 0

    def unread_rows(self, table: str) -> int:
        """Records of a table that no read has given since the last rewind, damaged ones included."""
        return self._tables[table].unread_rows if table in self._tables else 0

    def tables(self) -> list[str]:
        """The tables that have something to replay."""
        return [name for name, table in self._tables.items() if table.bytes]

    def append(self, layout: RecordLayout, spans: Sequence[Span], slots: Sequence[Any]) -> None:
        """Adds the records of a batch, durable when this returns: file and directory are fsynced.

        `slots` are contiguous buffers of raw slots (for instance the two halves of a ring, as they lie in shared
        memory), together the rows of `spans` in order; they are read twice and not kept. Raises SpoolFull (cap or
        disk: nothing of the batch was kept, nothing was dropped) and SpoolUnusable (the disk fails); ValueError where
        rows and spans disagree.
        """
        rows = sum(span.rows for span in spans)
        raw = [memoryview(chunk).cast("B") for chunk in slots]
        got = sum(len(chunk) for chunk in raw)
        if not rows or got != rows * layout.slot_bytes:
            wanted = f"{rows} rows of {layout.slot_bytes} bytes, at least one"
            raise ValueError(f"{layout.table}: got {got} bytes of slots, wanted {wanted}")
        if not self.reserve.refill():
            raise SpoolFull(f"{self.path}: got a full disk, wanted room for the reserve first")
        self._table(layout.table).append(layout, spans, raw, self.bytes_max - self.bytes)

    def read(self, table: str, rows_max: int, bytes_max: int = READ_BYTES_MAX) -> Replay | None:
        """The next unread frames of a table, at least one and up to `rows_max` rows and `bytes_max` of slots, or None.

        Several reads may be outstanding. Raises SpoolFull (no room to quarantine broken bytes), SpoolUnusable.
        """
        try:
            return self._tables[table].read(rows_max, bytes_max) if table in self._tables else None
        except OSError as error:
            raise refusal(self.path, error, "a disk that takes changes") from error

    def confirm(self, replay: Replay) -> None:
        """`replay` and all that was read before it is safe elsewhere: moves the cursor, then removes passed files.

        Call it once the ledger that says where the rows are now is durable. Raises SpoolFull, SpoolUnusable; the rows
        are then replayed again after a restart, which the server folds.
        """
        self._tables[replay.table].confirm(replay.through)

    def rewind(self, table: str) -> None:
        """What was read and not confirmed will be read again."""
        if table in self._tables:
            self._tables[table].rewind()

    def spans(self) -> Iterator[tuple[str, Span]]:
        """Table and span of everything readable behind the cursors; reads frame headers only."""
        for name, table in self._tables.items():
            for span in table.spans():
                yield name, span

    def close(self) -> None:
        """Closes all descriptors; nothing needs to be written."""
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        self._root.close()
        self.quarantine.close()
        self.directory.close()
