"""The files of dead letters: one a table and day, a line of JSON a letter, durable before a tail moves."""

from __future__ import annotations

import datetime
import errno
import fcntl
import logging
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ringlog.dead_letters.letter import DeadLetter, fields_of
from ringlog.disk import Directory, Reserve, refusal
from ringlog.records import RecordLayout
from ringlog.spans import SeqSet, Span

logger = logging.getLogger(__name__)

RETRIED_NAME = "retried.ndjson"
_FILE_NAME = re.compile(r"(?P<table>[a-z][a-z0-9_]{0,62})\.(?P<day>\d{4}-\d{2}-\d{2})(\.(?P<number>\d+))?\.ndjson")
_LINE_BYTES_MAX = 64 * 1024 * 1024


class Refused(NamedTuple):
    """A record that the server refuses: its origin, the server's reason, and its raw slot."""

    lane: int
    seq: int
    reason: str
    slot: bytes


class _LayoutLine(msgspec.Struct):
    """Says what the letters below it in the same file are made of."""

    layout: RecordLayout


class _RetriedLine(msgspec.Struct):
    table: str
    lane: int
    seq: int
    time: str


_letter_decoder = msgspec.json.Decoder(DeadLetter)
_layout_decoder = msgspec.json.Decoder(_LayoutLine)
_retried_decoder = msgspec.json.Decoder(_RetriedLine)


Resend = Callable[[DeadLetter, RecordLayout], str | None]


class DeadLetters:
    """The dead letters of one instance. The writer keeps them, `ringlog dead-letters` lists and retries them.

    `directory` is theirs alone. Which (lane, seq) are there is learned from the files when it is first needed, so that
    a record is kept once however often it is refused. Without a `reserve` (in commands) a full disk is an error.
    """

    def __init__(self, directory: Directory, reserve: Reserve | None = None) -> None:
        self._directory = directory
        self._reserve = reserve
        self._kept: dict[int, SeqSet] | None = None
        self._given_up: set[str] = set()
        self._headed: dict[str, RecordLayout] = {}  # files of this process, and the layout last written to each

    def keep(self, layout: RecordLayout, refused: Sequence[Refused]) -> int:
        """Makes records that the server refuses durable; returns how many were not there yet.

        Only then may their lane's tail or the spool's cursor move. Raises SpoolFull, SpoolUnusable: nothing is counted
        as kept then, and the call may be made again.
        """
        kept = self._index()
        new = [row for row in refused if row.seq not in kept.get(row.lane, ())]
        if not new:
            return 0
        now = _now()
        letters = [
            DeadLetter(
                table=layout.table,
                lane=row.lane,
                seq=row.seq,
                reason=row.reason,
                time=now,
                record=fields_of(layout, row.slot),
            )
            for row in new
        ]
        lines = [msgspec.json.encode(letter) for letter in letters]
        try:
            self._append(layout, now[:10], lines)
        except OSError as error:
            raise refusal(self._directory.path, error, "a disk that takes dead letters") from error
        for row in new:
            kept.setdefault(row.lane, SeqSet()).add(row.seq, row.seq + 1)
            logger.error("dead letter table=%s lane=%016x seq=%d: %s", layout.table, row.lane, row.seq, row.reason)
        return len(new)

    def _append(self, layout: RecordLayout, day: str, lines: Sequence[bytes]) -> None:
        try:
            self._append_once(layout, day, lines)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            logger.error("dead letters: write failed, going on in a new file: %s", error)
            self._append_once(layout, day, lines)

    def _append_once(self, layout: RecordLayout, day: str, lines: Sequence[bytes]) -> None:
        name = self._name(layout.table, day)
        head = [] if self._headed.get(name) == layout else [msgspec.json.encode(_LayoutLine(layout))]
        data = b"\n".join([*head, *lines]) + b"\n"
        action: Callable[[], None] = lambda: self._directory.append(name, data)  # noqa: E731
        try:
            self._reserve.spend(action) if self._reserve else action()
        except OSError as error:
            self._headed.pop(name, None)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._given_up.add(name)  # an fsync that failed is not tried again on the same file
            raise
        self._headed[name] = layout

    def _name(self, table: str, day: str) -> str:
        number = 0
        while (name := f"{table}.{day}.{number}.ndjson" if number else f"{table}.{day}.ndjson") in self._given_up:
            number += 1
        return name

    def _index(self) -> dict[int, SeqSet]:
        if self._kept is None:
            self._make_durable()
            kept: dict[int, SeqSet] = {}
            for letter, _ in self._letters(None, left_out=self._given_up):
                kept.setdefault(letter.lane, SeqSet()).add(letter.seq, letter.seq + 1)
            self._kept = kept
        return self._kept

    def _make_durable(self) -> None:
        """A writer killed between a write and its fsync left letters that a power cut would still take away."""
        for name in self._directory.names():
            if _FILE_NAME.fullmatch(name):
                descriptor = self._directory.open_file(name, os.O_RDWR)
                try:
                    self._directory.system.fsync(descriptor)
                except OSError as error:
                    logger.error("dead letters: %s is not relied on, its letters are kept again: %s", name, error)
                    self._given_up.add(name)
                finally:
                    os.close(descriptor)
        self._directory.sync()

    def letters(
        self, table: str | None = None, *, retried: bool = False, discarded: Mapping[int, SeqSet] | None = None
    ) -> Iterator[tuple[DeadLetter, RecordLayout]]:
        """The letters of a table (or all) with their layouts, oldest day first, each (lane, seq) once.

        Those that a retry delivered are left out, or with `retried` come too; so are those that were `discarded`.
        Streams: memory does not grow with them.
        """
        left_out = {} if retried else self._delivered()
        for lane, seqs in (discarded or {}).items():
            for start, end in seqs:
                left_out.setdefault(lane, SeqSet()).add(start, end)
        seen: dict[int, SeqSet] = {}
        for letter, layout in self._letters(table):
            known = seen.setdefault(letter.lane, SeqSet())
            if letter.seq not in known and letter.seq not in left_out.get(letter.lane, ()):
                known.add(letter.seq, letter.seq + 1)
                yield letter, layout

    def _letters(self, table: str | None, left_out: Container[str] = ()) -> Iterator[tuple[DeadLetter, RecordLayout]]:
        names = [name for name in self._directory.names() if name not in left_out]
        matches = [match for name in names if (match := _FILE_NAME.fullmatch(name))]
        for match in sorted(matches, key=lambda match: (match["day"], match["table"], int(match["number"] or 0))):
            if table is not None and match["table"] != table:
                continue
            layout: RecordLayout | None = None
            for line in self._lines(match[0]):
                try:
                    if line.startswith(b'{"layout":'):
                        layout = _layout_decoder.decode(line).layout
                    elif layout is not None:
                        yield _letter_decoder.decode(line), layout
                except msgspec.DecodeError:
                    continue  # torn by a crash: it was not relied on, and has been kept again

    def _lines(self, name: str) -> Iterator[bytes]:
        descriptor = self._directory.open_file(name, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            while line := file.readline(_LINE_BYTES_MAX):
                yield line

    def _delivered(self) -> dict[int, SeqSet]:
        delivered: dict[int, SeqSet] = {}
        for line in self._retried_lines():
            delivered.setdefault(line.lane, SeqSet()).add(line.seq, line.seq + 1)
        return delivered

    def _retried_lines(self) -> Iterator[_RetriedLine]:
        if RETRIED_NAME in self._directory.names():
            for line in self._lines(RETRIED_NAME):
                try:
                    yield _retried_decoder.decode(line)
                except msgspec.DecodeError:
                    continue

    @property
    def retried_bytes(self) -> int:
        """How long the list of delivered letters is: it grows with each."""
        try:
            return os.stat(RETRIED_NAME, dir_fd=self._directory.descriptor, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def delivered_spans(self) -> dict[str, list[Span]]:
        """By table the letters that retries delivered: for the writer to enter into the ledger as confirmed."""
        delivered: dict[str, dict[int, SeqSet]] = {}
        for line in self._retried_lines():
            delivered.setdefault(line.table, {}).setdefault(line.lane, SeqSet()).add(line.seq, line.seq + 1)
        return {
            table: [Span(lane, start, end - start) for lane, members in lanes.items() for start, end in members]
            for table, lanes in delivered.items()
        }

    def retry(
        self, letters: Iterable[tuple[DeadLetter, RecordLayout]], resend: Resend
    ) -> tuple[int, list[tuple[DeadLetter, str]]]:
        """Sends letters again, each under its own lane and seq, and marks those that were delivered.

        `resend` returns None once the record is applied, or why it was refused again. Returns how many were delivered,
        and the others with their reasons. A crash in between leaves a delivered letter unmarked: the next retry sends
        it again and the server folds it.
        """
        delivered = 0
        refused: list[tuple[DeadLetter, str]] = []
        for letter, layout in letters:
            reason = resend(letter, layout)
            if reason is None:
                self._mark(letter)
                delivered += 1
            else:
                refused.append((letter, reason))
        return delivered, refused

    def _mark(self, letter: DeadLetter) -> None:
        line = msgspec.json.encode(_RetriedLine(letter.table, letter.lane, letter.seq, _now())) + b"\n"
        lock = self._directory.open_file("retried.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # two commands may retry at once; the writer never writes here
            self._directory.append(RETRIED_NAME, line)
        except OSError as error:
            raise refusal(self._directory.path, error, "a disk that takes writes") from error
        finally:
            os.close(lock)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
