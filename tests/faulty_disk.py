"""A disk for tests: real files, a crash possible at every step, errors where asked for, and power loss.

Power loss keeps what fsync promised and nothing else: file contents as of their last fsync, names as of their
directory's. (A real disk often keeps more; code that needs more is broken.)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ringlog.disk import Chunk, System


class Crash(BaseException):
    """The process is gone: nothing after this line of it runs."""


class FaultyDisk(System):
    """Counts the steps that change the disk; before step `crash_at` the process dies (a write is then half done).

    `fault(step, call)` may raise OSError for a step, `short_bytes` limits what one write takes.
    """

    def __init__(
        self,
        crash_at: int = -1,
        fault: Callable[[int, str], None] | None = None,
        short_bytes: int = 0,
    ) -> None:
        self.crash_at = crash_at
        self.fault = fault
        self.short_bytes = short_bytes
        self.steps = 0
        self.calls: list[str] = []
        self.opened: dict[int, int] = {}  # the inode behind each descriptor that was given out
        self._crashed = False
        self._numbers = itertools.count()
        self._files: dict[int, int] = {}  # inode -> a number that is never used again
        self._contents: dict[int, bytes] = {}  # durable content by that number
        self._entries: dict[int, dict[str, tuple[int, int, bool]]] = {}  # durable names by a directory's inode

    def _step(self, call: str) -> bool:
        """Counts; returns whether this is the step to die at (the caller then raises Crash)."""
        if self._crashed:
            raise Crash  # clean-up code of a dead process does nothing
        step, self.steps = self.steps, self.steps + 1
        self.calls.append(call)
        if self.fault is not None:
            self.fault(step, call)
        self._crashed = step == self.crash_at
        return self._crashed

    def _or_crash(self, call: str) -> None:
        if self._step(call):
            raise Crash

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._or_crash("create")
        descriptor = super().open(name, flags, mode, dir_fd=dir_fd)
        inode = self.opened[descriptor] = os.fstat(descriptor).st_ino
        if flags & os.O_EXCL or inode not in self._files:
            self._files[inode] = next(self._numbers)
        return descriptor

    def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
        self._or_crash("mkdir")
        super().mkdir(name, dir_fd=dir_fd)

    def write(self, descriptor: int, chunks: Sequence[Chunk], offset: int) -> int:
        dies = self._step("write")
        data = b"".join(chunks)
        if dies:
            os.pwrite(descriptor, data[: len(data) // 2], offset)
            raise Crash
        return os.pwrite(descriptor, data[: self.short_bytes or len(data)], offset)

    def truncate(self, descriptor: int, length: int) -> None:
        self._or_crash("truncate")
        super().truncate(descriptor, length)

    def allocate(self, descriptor: int, length: int) -> None:
        self._or_crash("allocate")
        super().allocate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        self._or_crash("fsync")
        self.remember(descriptor)

    def remember(self, descriptor: int) -> None:
        """What an fsync of a file or directory makes durable."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            entries = {}
            with os.scandir(descriptor) as found:
                for entry in found:
                    number = self._files.setdefault(entry.inode(), next(self._numbers))
                    entries[entry.name] = (entry.inode(), number, entry.is_dir(follow_symlinks=False))
            self._entries[status.st_ino] = entries
        else:
            number = self._files.setdefault(status.st_ino, next(self._numbers))
            self._contents[number] = os.pread(descriptor, status.st_size, 0)

    def rename(self, old: str, new: str, *, dir_fd: int) -> None:
        self._or_crash("rename")
        super().rename(old, new, dir_fd=dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        self._or_crash("unlink")
        super().unlink(name, dir_fd=dir_fd)

    def lose_power(self, root: Path, after: Path) -> Path:
        """Builds, as `after`, what is left of `root` once the machine's memory is gone."""
        self._restore(root.stat().st_ino, after)
        return after

    def _restore(self, inode: int, path: Path) -> None:
        path.mkdir(mode=0o700)
        for name, (child, number, is_directory) in self._entries.get(inode, {}).items():
            if is_directory:
                self._restore(child, path / name)
            else:
                (path / name).write_bytes(self._contents.get(number, b""))
                (path / name).chmod(0o600)


@contextlib.contextmanager
def descriptors_closed() -> Iterator[None]:
    """Closes what was opened inside: a process that dies has no descriptors, a test that plays its death does."""
    before = set(os.listdir("/dev/fd"))
    try:
        yield
    finally:
        for name in set(os.listdir("/dev/fd")) - before:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))


class QuickDisk(System):
    """A disk that skips fsync, for tests that damage thousands of copies of one spool and restart on each."""

    def fsync(self, descriptor: int) -> None:
        pass
