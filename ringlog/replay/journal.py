"""The journal of a replay: where in the file it is, durably, in terms of what lanes have accepted.

A lane's head is the truth of what was accepted, whoever is killed, so the journal need not be as quick as the lane: it
says which lane began at which place of the file, before the first record goes in. What was accepted behind that place
is then the lane's head, in its segment or, once the writer has drained and removed it, in the ledger. Rows are judged
alike every time, so counting the sound ones leads to the very row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from ringlog.audit.snapshot import take
from ringlog.disk import Directory
from ringlog.errors import LaneError, RinglogError
from ringlog.lanes.instance import Instance, boot_id
from ringlog.lanes.locks import LockFile
from ringlog.ledger import Term
from ringlog.replay.shape import Shape
from ringlog.replay.source import Place
from ringlog.spool.place import ready

NAME = "replays"
# A resumption counts the sound rows, so all runs must judge them alike: raised whenever some are judged otherwise.
JUDGING = 3


class ReplayError(RinglogError):
    """A replay cannot begin or go on; the message says why, and what to do."""


class Progress(msgspec.Struct):
    """What the journal says: `skip` sound rows behind `place` are accepted, and `lane` took the next as `first_seq`."""

    path: str
    table: str
    layout: str
    shape: Shape = Shape()
    judging: int = 1  # that of journals that do not say it
    latest_us: int = 0  # timestamps beyond it are rejected, by every run alike
    place: Place = Place()
    skip: int = 0
    lane: int = 0
    first_seq: int = 0
    boot_id: str = ""
    accepted: int = 0
    rejected: int = 0
    rejects_bytes: int = 0
    is_finished: bool = False


class Journal:
    """The journal of one file and table in an instance; locked while it is open, so that no two replays share it."""

    def __init__(self, instance: Instance, path: Path, table: str) -> None:
        """Raises ReplayError where another process replays the file, SpoolUnusable where its directory is foreign."""
        self._instance = instance
        name = hashlib.sha256(f"{path}\0{table}".encode()).hexdigest()[:32]
        self._name = f"{name}.json"
        self._spool = Directory.open(ready(instance.settings))
        self._directory = self._spool.subdirectory(NAME)
        self._lock = LockFile(self._directory.path / f"{name}.lock")
        try:
            is_alone = self._lock.take()
        except LaneError:
            self._close_directories()
            raise
        if not is_alone:
            self._close_directories()
            raise ReplayError(f"{path}: got a replay of it that is going on, wanted none")

    def read(self) -> Progress | None:
        """What the last replay of the file wrote, None if there was none. Raises ReplayError where it is broken."""
        content = self._directory.read(self._name)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Progress)
        except msgspec.MsgspecError as error:
            raise ReplayError(f"{self._directory.path / self._name}: got {error}, wanted a replay's journal") from None

    def difference(self, found: Progress, wanted: Progress) -> str:
        """Why what was found cannot be gone on with, as "got ..., wanted ..."; "" if it can."""
        if found.judging != wanted.judging:
            return (
                f"a replay begun by another version of ringlog, which judges rows by rules {found.judging}, "
                f"wanted rules {wanted.judging}"
            )
        if found.layout != wanted.layout:
            return f"another layout than it was begun with, wanted {found.layout}"
        return wanted.shape.difference(found.shape)

    def write(self, progress: Progress) -> None:
        """Durable when this returns."""
        self._directory.replace(self._name, msgspec.json.encode(progress))

    def settle(self, progress: Progress) -> None:
        """Counts what the lane accepted since the journal was written. Raises ReplayError where nobody knows it."""
        if not progress.lane:
            return
        head = self._head(progress)
        if head < progress.first_seq:
            raise ReplayError(f"{progress.path}: got head {head} of its lane, wanted at least {progress.first_seq}")
        progress.skip += head - progress.first_seq
        progress.accepted += head - progress.first_seq
        progress.lane = progress.first_seq = 0

    def _head(self, progress: Progress) -> int:
        snapshot = take(self._instance, self._spool)
        account = snapshot.accounts.lanes.get(progress.lane)
        is_lost = account is not None and bool(account.sets.get(Term.LOST_AT_REBOOT))
        is_over = account is not None and account.is_closed
        if progress.lane in snapshot.unreadable or is_lost or not (is_over or progress.lane in snapshot.live):
            why = "the machine was started again since" if progress.boot_id != boot_id() else "its lane is not known"
            raise ReplayError(
                f"{progress.path}: got no exact position ({why}), wanted what lane {progress.lane:016x} accepted: "
                f"compare with the table, or replay with --again what is behind line {progress.place.line}"
            )
        return snapshot.head(progress.lane)

    def close(self) -> None:
        self._lock.release()
        self._close_directories()

    def _close_directories(self) -> None:
        self._directory.close()
        self._spool.close()
