"""Records that a person gave up: marks that commands write, and that whoever reads the ledger goes by.

Only the writer writes the ledger. So a command that settles records, also beside a running writer, adds a mark to a
file of its own; the writer enters it into its ledger, and readers apply it to what they have read. A mark may be
applied any number of times, before or after the writer did.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from ringlog.disk import Directory, refusal, sealed, unsealed
from ringlog.spans import SeqSet, Span

NAME = "discarded"
LOCK_NAME = "discarded.lock"


class Discard(msgspec.Struct, frozen=True):
    """Records of one table, given up at `time` (ISO 8601, UTC) by the user with this uid."""

    table: str
    time: str
    uid: int
    spans: list[Span]


class Discards:
    """The marks of one instance; `directory` is the spool's."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @property
    def bytes(self) -> int:
        """How long the file is: it grows with each mark."""
        try:
            return os.stat(NAME, dir_fd=self._directory.descriptor, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def marks(self) -> list[Discard]:
        """All marks, oldest first; what does not prove itself is none."""
        found = []
        for line in (self._directory.read(NAME) or b"").splitlines():
            text = unsealed(line)
            try:
                found.append(msgspec.json.decode(text or b"", type=Discard))
            except msgspec.DecodeError:
                continue  # torn by a crash: nobody was told that it is settled
        return found

    def given_up(self) -> dict[int, SeqSet]:
        """By lane, all records that are marked."""
        found: dict[int, SeqSet] = {}
        for mark in self.marks():
            for span in mark.spans:
                found.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one command at a time: what it chooses and what it marks belong together."""
        lock = self._directory.open_file(LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def add(self, table: str, spans: Sequence[Span]) -> None:
        """Makes a mark durable. Call it in `locked`. Raises SpoolFull, SpoolUnusable: then nothing is marked."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = sealed(msgspec.json.encode(Discard(table, time, os.getuid(), list(spans))))
        try:
            self._directory.append(NAME, line)
        except OSError as error:
            raise refusal(self._directory.path / NAME, error, "a disk that takes writes") from error
