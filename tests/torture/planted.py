"""The writer under torture, as it is or with one known bug planted; and the bug that is planted in producers.

A disk that loses what was not fsynced is part of it: every fsync of the spool is noted in a file, so that the torture
can cut files back to what was safe when it kills the writer together with "the power of the disk". Contents alone are
cut: names that no fsync of their directory kept are for the spool's own tests, and for the simulation.

A full disk is part of it too: the torture sets the kernel's limit on the size of the writer's files (RLIMIT_FSIZE,
which needs no root), writes beyond it fail in the kernel with EFBIG, and here that is named ENOSPC, as on a disk
without room.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringlog.disk import System
from ringlog.layout import HEAD_OFFSET
from ringlog.producer import Appender
from ringlog.ring import store
from ringlog.sinks import Receipt, Request
from ringlog.writer.delivery import Delivery, Settled

BUGS = ("early-tail", "dedup-off", "seq-reuse", "skipped-fsync", "204-is-applied", "live-lane-adopted")


def note_fsyncs(path: str, *, skip: bool) -> None:
    """Appends `inode size` to `path` after each fsync that the spool makes; with `skip` none is noted as made."""
    fsync = System.fsync
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def noted(self: System, descriptor: int) -> None:
        fsync(self, descriptor)
        if not skip:
            status = os.fstat(descriptor)
            os.write(notes, f"{status.st_ino} {status.st_size}\n".encode())

    System.fsync = noted  # type: ignore[method-assign]


def full_disk() -> None:
    """Writes that the kernel refuses for the limit on file sizes fail as they would on a full disk."""

    def renamed(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except OSError as error:
                if error.errno == errno.EFBIG:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
                raise

        return attempt

    for name in ("write", "allocate"):
        setattr(System, name, renamed(getattr(System, name)))


def cut_unsynced(notes: Path, spool: Path) -> int:
    """Cuts spool files back to their last fsynced size, as a power cut could; how many bytes went."""
    safe: dict[int, int] = {}
    if notes.exists():
        for line in notes.read_text().splitlines():
            inode, size = map(int, line.split())
            safe[inode] = size
    lost = 0
    for file in spool.glob("tables/*/*.spool"):
        status = file.stat()
        kept = safe.get(status.st_ino, 0)
        if kept < status.st_size:
            lost += status.st_size - kept
            os.truncate(file, kept)
    return lost


def plant_in_writer(bug: str) -> None:
    if bug == "early-tail":
        submit = Delivery.submit

        def early(self: Delivery, batch: Any, settle: Callable[[Settled], None]) -> None:
            submit(self, batch, lambda _settled: None)
            settle(Settled())

        Delivery.submit = early  # type: ignore[method-assign]
    elif bug == "204-is-applied":
        from ringlog.questdb.sink import QuestdbSink

        def believed(self: QuestdbSink, request: Request) -> Receipt:
            self._sender.flush(request.body, clear=False)
            return Receipt(request.layout.table, request.rows, 0, 0)

        QuestdbSink.send = believed  # type: ignore[method-assign]
        QuestdbSink.confirm = lambda _self, receipts: [True] * len(receipts)  # type: ignore[method-assign]
    elif bug == "dedup-off":
        from ringlog.questdb import tables

        differences = tables.differences
        tables.differences = lambda *arguments: [  # type: ignore[assignment]
            each for each in differences(*arguments) if "dedup" not in str(each).lower()
        ]
    elif bug == "live-lane-adopted":
        from ringlog.lanes import readers

        readers.is_locked = lambda _path: False
        readers.LaneReader.retire = lambda _self: None  # type: ignore[method-assign]


def plant_in_producer(bug: str, appender: Appender) -> Callable[[int], None]:
    """What to call after every attempt."""
    if bug != "seq-reuse":
        return lambda _number: None

    def reuse(number: int) -> None:
        lane = appender._lane
        if number % 5_000 == 0 and lane is not None and appender.accepted > 0:
            store(lane.memory, HEAD_OFFSET, appender.accepted - 1)
            appender._ring.attach(
                lane.memory, appender._owner.open_board().memory, lane.slots_offset, lane.capacity, (*lane.words, 128)
            )

    return reuse


if __name__ == "__main__":
    note_fsyncs(sys.argv[1], skip=sys.argv[2] == "skipped-fsync")
    full_disk()
    plant_in_writer(sys.argv[2])
    from ringlog.cli.writer import writer

    writer([])
