"""Record locks (`fcntl`): how a process's life is seen from another one, also through fork, zombies and pid reuse.

A record lock goes when its process dies, whoever still holds the file open, and when the process closes *any*
descriptor of that file: so a lock file is opened once by its owner and never again. A process cannot see its own
lock, so probes skip the locks this process holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

from ringlog.errors import LaneError
from ringlog.lanes.instance import open_private

# struct flock: type, whence, start, len, pid on Linux (64-bit); start, len, pid, type, whence on macOS.
_FLOCK = struct.Struct("hhqqi4x") if sys.platform != "darwin" else struct.Struct("qqihh")

_HELD_BY_ANOTHER = frozenset({errno.EAGAIN, errno.EACCES})  # POSIX lets a system say either
_held: set[Path] = set()


def _clear_held() -> None:
    _held.clear()  # a forked child holds none of its parent's locks


os.register_at_fork(after_in_child=_clear_held)


class LockFile:
    """A file locked by this process. `take` it once; the lock lasts until `release` or the process's death."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._pid = -1
        self._inode = (0, 0)

    def take(self, *, exclusive_create: bool = False) -> bool:
        """Opens and locks the file; False where another process holds it.

        Raises LaneError where this process holds it already or the file is not this user's own.
        """
        if self.path in _held:
            raise LaneError(f"{self.path}: got a lock that this process holds already, wanted it once")
        _held.add(self.path)  # first: a thread that asked about the lock now would open the file, and so drop it
        try:
            is_taken = self._take(exclusive_create=exclusive_create)
        except BaseException:
            _held.discard(self.path)
            raise
        if not is_taken:
            _held.discard(self.path)
        return is_taken

    def _take(self, *, exclusive_create: bool) -> bool:
        flags = os.O_RDWR | os.O_CREAT | (os.O_EXCL if exclusive_create else 0)
        while True:
            try:
                descriptor = open_private(self.path, flags)
            except OSError as error:
                is_out = error.errno in (errno.EMFILE, errno.ENFILE)
                wanted = "a free descriptor: raise the limit (ulimit -n)" if is_out else "a lock file of this user"
                raise LaneError(f"{self.path}: got {error.strerror}, wanted {wanted}") from None
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _HELD_BY_ANOTHER:
                    return False
                raise LaneError(f"{self.path}: got {error.strerror}, wanted to lock it") from None
            self._inode = _inode_of(os.fstat(descriptor))
            if self._is_at_path():
                break
            os.close(descriptor)  # unlinked between open and lock: what we locked is no longer the lock
        self._descriptor = descriptor
        self._pid = os.getpid()
        return True

    def _is_at_path(self) -> bool:
        try:
            return _inode_of(os.stat(self.path, follow_symlinks=False)) == self._inode
        except FileNotFoundError:
            return False

    def resize(self, size_bytes: int) -> None:
        """Makes the file so long, through the descriptor that holds the lock. It takes no room for that."""
        os.ftruncate(self._descriptor, size_bytes)

    def write(self, text: str) -> None:
        """Replaces the file's text, through the descriptor that holds the lock.

        The text is for people alone: on a full disk it stays empty, and the lock is held all the same.
        """
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Gives the lock up; in a forked child only closes the copy of the descriptor."""
        if self._descriptor < 0:
            return
        if self._pid == os.getpid():
            _held.discard(self.path)
        with contextlib.suppress(OSError):
            # Where somebody closed it behind our back, the number may be another file's by now.
            if _inode_of(os.fstat(self._descriptor)) == self._inode:
                os.close(self._descriptor)
        self._descriptor = -1


def _inode_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_locked(path: Path) -> bool:
    """Whether a process (this one included) holds the lock of the file at `path`; False where there is no file.

    True where that cannot be told (no free descriptor, no lock file of ours): then a lane must not be taken away.
    """
    if path in _held:
        return True
    try:
        descriptor = open_private(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except (OSError, LaneError):
        return True
    try:
        return _asked(descriptor)[0] != fcntl.F_UNLCK
    except OSError:  # a file system without locks, or out of them
        return True
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> int:
    """The pid of the process that holds the lock; 0 where none does, or it cannot be told. For messages alone."""
    if path in _held:
        return os.getpid()
    try:
        descriptor = open_private(path, os.O_RDWR)
    except (OSError, LaneError):
        return 0
    try:
        kind, pid = _asked(descriptor)
        return pid if kind != fcntl.F_UNLCK else 0
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _asked(descriptor: int) -> tuple[int, int]:
    """What kind of lock another process holds, and which process."""
    fields = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, _pack(fcntl.F_WRLCK)))
    return (int(fields[0]), int(fields[4])) if sys.platform != "darwin" else (int(fields[3]), int(fields[2]))


def _pack(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0) if sys.platform != "darwin" else _FLOCK.pack(0, 0, 0, kind, 0)
