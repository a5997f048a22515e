"""One table's spool: frames in order over files, appended at one end, replayed and confirmed at the other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from ringlog.disk import FULL_ERRNOS, Chunk, Directory, Reserve, refusal
from ringlog.errors import SpoolFull
from ringlog.records import RecordLayout
from ringlog.spans import Span
from ringlog.spool import cursor
from ringlog.spool.cursor import Position
from ringlog.spool.frames import file_header_bytes, frame_bytes
from ringlog.spool.quarantine import Quarantine
from ringlog.spool.reader import Reader, Replay, after
from ringlog.spool.spool_file import FILE_NAME, SpoolFile, file_name

logger = logging.getLogger(__name__)


class TableSpool:
    """The spool of one table. Not for several threads at once: the writer's loop owns it."""

    def __init__(
        self, table: str, directory: Directory, quarantine: Quarantine, reserve: Reserve, file_bytes_max: int
    ) -> None:
        self.table = table
        self._directory = directory
        self._reserve = reserve
        self._file_bytes_max = file_bytes_max
        self._current: SpoolFile | None = None  # the file that takes frames, the last of `_files`
        names = [name for name in directory.names() if FILE_NAME.fullmatch(name)]
        self._files = sorted((SpoolFile.open(directory, name) for name in names), key=_first_ordinal)
        self.confirmed = self._load_cursor(quarantine)
        self._end = max(self._newest(), self.confirmed)
        self._reader = Reader(table, self._files, quarantine)
        self._reader.seek(self.confirmed)
        for file in list(self._files):
            self._remove_blank(file)
        if not self._files:  # blank ones told of rows before them whose files are gone: no read will pass those rows
            self._end = self.confirmed
        self._remove_passed(all_read=self._was_all_read())

    def _load_cursor(self, quarantine: Quarantine) -> Position:
        stored, broken = cursor.load(self._directory)
        if stored is not None:
            return stored
        if broken:
            kept = quarantine.keep_text(f"{self.table}.cursor", broken)
            logger.error("spool cursor is broken, all files are replayed table=%s kept=%s", self.table, kept)
        headers = [file.header for file in self._files if file.header is not None]
        position = Position(headers[0].first_ordinal, headers[0].first_row) if headers else Position()
        cursor.store(self._directory, self._reserve, position)
        return position

    def _newest(self) -> Position:
        """The place after the last readable frame header.

        An ordinal used twice does no harm where the first use is unreadable, and a row lost is found by its number.
        """
        for file in reversed(self._files):
            if file.header is not None:
                end = Position(file.header.first_ordinal, file.header.first_row)
                for header in file.headers():
                    end = max(end, after(header))
                file.release()
                return end
        return Position()

    def _was_all_read(self) -> bool:
        """Whether the process before died between the cursor and the removal of the last file.

        A file that the cursor never entered may hold broken bytes only: those are still to be put into quarantine.
        """
        last = self._files[-1] if self._files else None
        entered = last is not None and last.header is not None and last.first_ordinal < self.confirmed.ordinal
        return entered and self.confirmed >= self._end

    @property
    def bytes(self) -> int:
        return sum(file.length for file in self._files)

    @property
    def rows(self) -> int:
        """Records that are spooled and not confirmed, damaged ones included."""
        return max(0, self._end.row - self.confirmed.row)

    @property
    def unread_rows(self) -> int:
        """Records that no read has given since the last rewind, damaged ones included."""
        return max(0, self._end.row - self._reader.position.row)

    def append(self, layout: RecordLayout, spans: Sequence[Span], slots: Sequence[Chunk], bytes_max: int) -> None:
        """Adds one durable frame; `bytes_max` is what the table may still grow by. Raises SpoolFull, SpoolUnusable.

        A file on which a write or an fsync failed is given up, and the frame written to a new one, once. The ordinal
        of a failed append is used up, so that no later frame is taken for a repetition of it.
        """
        try:
            try:
                self._append(layout, spans, slots, bytes_max)
            except OSError as error:
                self._give_up_current()
                if error.errno in FULL_ERRNOS:
                    raise
                logger.error("spool write failed, going on in a new file table=%s error=%s", self.table, error)
                self._append(layout, spans, slots, bytes_max)
        except OSError as error:
            self._give_up_current()
            raise refusal(self._directory.path, error, "a disk that takes writes") from error

    def _append(self, layout: RecordLayout, spans: Sequence[Span], slots: Sequence[Chunk], bytes_max: int) -> None:
        rows = sum(span.rows for span in spans)
        size = frame_bytes(len(spans), rows, layout.slot_bytes)
        current = self._current
        if current is None or current.length + size > self._file_bytes_max or current.layout != layout:
            header_bytes = file_header_bytes(layout.to_json())
            self._limit(size + header_bytes, bytes_max)
            current = self._new_file(layout)
        self._limit(size, bytes_max)
        ordinal, row = self._end.ordinal, self._end.row
        self._end = Position(ordinal + 1, row)
        current.append(ordinal, row, spans, slots)
        self._end = Position(ordinal + 1, row + rows)

    def _limit(self, size: int, bytes_max: int) -> None:
        if size > bytes_max:
            raise SpoolFull(f"{self._directory.path}: got {size} bytes to append, wanted at most {bytes_max}")

    def _new_file(self, layout: RecordLayout) -> SpoolFile:
        self._give_up_current()
        names = set(self._directory.names())
        ordinal = self._end.ordinal
        while file_name(ordinal) in names:  # a file without a frame, or one that was renamed: never replaced
            ordinal += 1
        self._end = Position(ordinal + 1, self._end.row)
        file = SpoolFile.create(self._directory, ordinal, self._end.row, layout)
        self._files.append(file)
        self._current = file
        return file

    def _give_up_current(self) -> None:
        """The next frame goes into a new file."""
        file, self._current = self._current, None
        if file is not None:
            self._remove_blank(file)
            file.release()

    def _remove_blank(self, file: SpoolFile) -> None:
        """Removes a file without a frame: on a full disk each failed append would leave another one."""
        if file.header is None or file.length > file.header.frames_offset:
            return
        with contextlib.suppress(OSError):  # tried again at the next start
            file.remove()
            at = self._files.index(file)
            self._files.remove(file)
            self._reader.removed(at)

    def read(self, rows_max: int, bytes_max: int) -> Replay | None:
        """See `Reader.read`. Memory: the slots returned; nothing else grows with the spool."""
        replay = self._reader.read(rows_max, bytes_max, self._end)
        if replay is None and not self.rows:  # files without a frame: their process died, or failed, before the first
            self._remove_passed(all_read=self._all_read)
        return replay

    def rewind(self) -> None:
        """The next read starts again at the confirmed position: what was read since was not confirmed."""
        self._reader.seek(self.confirmed)

    def confirm(self, through: Position) -> None:
        """Moves the durable cursor to `through` and removes the files it passed. Raises SpoolFull, SpoolUnusable.

        Only call this when the rows are safe elsewhere and the ledger that says so is durable.
        """
        try:
            if through > self.confirmed:
                cursor.store(self._directory, self._reserve, through)
                self.confirmed = through
            if self._reader.position < self.confirmed:
                self._reader.seek(self.confirmed)
            self._remove_passed(all_read=self._all_read)
        except OSError as error:
            raise refusal(self._directory.path, error, "a disk that takes writes") from error

    @property
    def _all_read(self) -> bool:
        """Whether nothing is left to be read, or to be confirmed."""
        return self._reader.at_end and self._reader.position <= self.confirmed

    def _remove_passed(self, *, all_read: bool) -> None:
        """Removes the files that the cursor passed; the last one only where everything was read.

        A file that failed to go is tried again with the next confirmation or at the next start.
        """
        while self._files:
            # Between two files an ordinal may be missing that a failed append used up.
            if not all_read and not (len(self._files) > 1 and self.confirmed.ordinal >= self._files[1].first_ordinal):
                return
            file = self._files[0]
            if file is self._current:
                self._current = None
            file.remove()  # SYNC POINT: after the cursor is durable, or a crash loses what was not replayed
            self._files.pop(0)
            self._reader.removed(0)

    def spans(self) -> Iterator[Span]:
        """The spans of all readable frame headers behind the cursor, in order; reads headers only."""
        for file in self._files:
            for header in file.headers():
                if header.ordinal >= self.confirmed.ordinal:
                    yield from header.spans
            if file is not self._current:
                file.release()

    def close(self) -> None:
        for file in self._files:
            file.release()
        self._directory.close()


def _first_ordinal(file: SpoolFile) -> int:
    return file.first_ordinal
