"""The simulated machine's disk: it outlives processes, fills up, fails, and forgets what was not fsynced."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from faulty_disk import FaultyDisk

from ringlog.disk import Chunk

TAKING = frozenset({"create", "write", "allocate", "rename", "fsync"})  # what fails on a disk that takes nothing
CALLS = TAKING | {"mkdir", "truncate", "unlink"}


class Disk(FaultyDisk):
    """A disk that a process's death leaves as it is, and that closes what a dead process had open."""

    def __init__(self) -> None:
        super().__init__(fault=self._fail)
        self.room: int | None = None  # bytes left where the disk is full
        self.failing: set[int] = set()  # steps that fail with EIO
        self.broken = 0  # the errno with which everything fails that takes something
        self.has_failed = False  # since the last process began

    def _fail(self, step: int, call: str) -> None:
        if step in self.failing and call in CALLS:
            self._raise(errno.EIO, call)
        if self.broken and call in TAKING:
            self._raise(self.broken, call)

    def _raise(self, number: int, call: str) -> None:
        self.has_failed = True
        raise OSError(number, f"injected into {call}")

    def step(self, call: str) -> None:
        """A step that is not the disk's: before it, too, the process may die."""
        self._or_crash(call)

    def write(self, descriptor: int, chunks: Sequence[Chunk], offset: int) -> int:
        if self.room is not None:
            size = sum(len(chunk) for chunk in chunks)
            if size > self.room:
                self._raise(errno.ENOSPC, "write")
            self.room -= size
        return super().write(descriptor, chunks, offset)

    def truncate(self, descriptor: int, length: int) -> None:
        before = os.fstat(descriptor).st_size
        super().truncate(descriptor, length)
        if self.room is not None:
            self.room += max(before - length, 0)

    def allocate(self, descriptor: int, length: int) -> None:
        self._or_crash("allocate")
        if self.room is not None:
            self._raise(errno.ENOSPC, "allocate")
        os.ftruncate(descriptor, length)

    def mend(self) -> None:
        """From now on it takes everything again."""
        self.room, self.failing, self.broken = None, set(), 0

    def revive(self) -> None:
        """The process is dead: its descriptors go, and another may begin."""
        for descriptor, inode in self.opened.items():
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    os.close(descriptor)
        self.opened.clear()
        self._crashed = self.has_failed = False
        self.crash_at = -1

    def cut_power(self, path: Path) -> None:
        """Leaves of `path` what was fsynced."""
        if not path.exists():
            return
        old, new = path.with_suffix(".old"), path.with_suffix(".new")
        self.lose_power(path, new)
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)
        self._entries.clear()
        self._contents.clear()
        self._files.clear()
        for root, _, files in os.walk(path):
            for name in [*(str(Path(root) / name) for name in files), root]:
                descriptor = os.open(name, os.O_RDONLY)
                FaultyDisk.remember(self, descriptor)
                os.close(descriptor)
