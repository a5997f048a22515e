"""Files that survive: owner-only directories, whole writes, fsync, atomic replacement, space kept in reserve.

Everything that must outlive a crash (spool, ledger, dead letters) goes through here, and nothing else does I/O of its
own for that. `System` is the seam: tests put a disk that crashes or fills up at every step in its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ringlog.errors import SpoolError, SpoolFull, SpoolUnusable

T = TypeVar("T")
Chunk = bytes | bytearray | memoryview

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
RESERVE_BYTES = 8 * 1024 * 1024
_VECTORS_MAX = 512  # chunks a pwritev call; IOV_MAX is 1024 on Linux and macOS
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in the place of a file must not hang us
_TEMPORARY_SUFFIX = ".tmp"
_RESERVE_NAME = "reserve"


class System:
    """The system calls that change what is on disk, one method each."""

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        return os.open(name, flags, mode, dir_fd=dir_fd)

    def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
        os.mkdir(name, 0o700, dir_fd=dir_fd)

    def write(self, descriptor: int, chunks: Sequence[Chunk], offset: int) -> int:
        return os.pwritev(descriptor, chunks, offset)

    def truncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)

    def allocate(self, descriptor: int, length: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, length)
        else:  # macOS: written zeros hold their blocks as well
            write_all(self, descriptor, [bytes(length)], 0)

    def fsync(self, descriptor: int) -> None:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)

    def rename(self, old: str, new: str, *, dir_fd: int) -> None:
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)


def write_all(system: System, descriptor: int, chunks: Sequence[Chunk], offset: int) -> int:
    """Writes all bytes of `chunks` at `offset`, going on after short writes; returns how many. Raises OSError."""
    views = [memoryview(chunk).cast("B") for chunk in chunks]
    total = sum(len(view) for view in views)
    written = 0
    first = 0
    while written < total:
        count = system.write(descriptor, views[first : first + _VECTORS_MAX], offset + written)
        if count == 0:
            raise OSError(errno.EIO, "a write took no bytes")
        written += count
        while count and count >= len(views[first]):
            count -= len(views[first])
            first += 1
        if count:
            views[first] = views[first][count:]
    return total


class Directory:
    """An open directory of our own, mode 0700; every name is resolved below it and never through a symlink."""

    def __init__(self, path: Path, descriptor: int, system: System) -> None:
        self.path = path
        self.descriptor = descriptor
        self.system = system

    @classmethod
    def open(cls, path: Path, system: System | None = None, *, parent: Directory | None = None) -> Directory:
        """Opens `path`, making its last part where it is missing. Raises SpoolUnusable, naming the path."""
        system = system or System()
        name, dir_fd = (path.name, parent.descriptor) if parent else (str(path), None)
        try:
            with contextlib.suppress(FileExistsError):
                system.mkdir(name, dir_fd=dir_fd)
            # Always, not only after mkdir: an earlier start may have died, or failed, between the two.
            if parent is not None:
                parent.sync()
            else:
                _sync_directory(path.absolute().parent, system)
            descriptor = system.open(name, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=dir_fd)
        except OSError as error:
            raise refusal(path, error, "a directory of our own") from error
        directory = cls(path, descriptor, system)
        try:
            directory._check()
        except SpoolError:
            directory.close()
            raise
        return directory

    def _check(self) -> None:
        status = os.fstat(self.descriptor)
        if status.st_uid != os.geteuid():
            raise SpoolUnusable(f"{self.path}: got a directory of uid {status.st_uid}, wanted uid {os.geteuid()}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SpoolUnusable(f"{self.path}: got mode {mode:04o}, wanted 0700 (chmod 700 {self.path})")
        if not os.access(self.path, os.W_OK | os.X_OK) or os.fstatvfs(self.descriptor).f_flag & os.ST_RDONLY:
            raise SpoolUnusable(f"{self.path}: got a read-only directory, wanted a writable one")

    def subdirectory(self, name: str) -> Directory:
        return Directory.open(self.path / name, self.system, parent=self)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.descriptor))

    def open_file(self, name: str, flags: int) -> int:
        """Opens a regular file of our own; raises OSError, or SpoolUnusable where it is anything else."""
        try:
            descriptor = self.system.open(name, flags | _FLAGS, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise refusal(self.path / name, error, "a regular file") from error
            raise
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(descriptor)
            got = f"a file of uid {status.st_uid}" if stat.S_ISREG(status.st_mode) else "no regular file"
            raise SpoolUnusable(f"{self.path / name}: got {got}, wanted a regular file of uid {os.geteuid()}")
        return descriptor

    def create(self, name: str, chunks: Sequence[Chunk]) -> int:
        """A new file called `name`, whole and durable when this returns its descriptor. Raises OSError.

        An older file of that name is replaced in one step; a crash leaves the older one or the new one. An fsync that
        failed is never called again on the same file: a further call writes another one.
        """
        temporary = name + _TEMPORARY_SUFFIX
        self._discard(temporary)
        descriptor = self.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            write_all(self.system, descriptor, chunks, 0)
            self.system.fsync(descriptor)  # SYNC POINT: content before name, or a crash leaves a name without it
            self.system.rename(temporary, name, dir_fd=self.descriptor)
            self.sync()
        except OSError:
            os.close(descriptor)
            self._discard(temporary)
            raise
        return descriptor

    def replace(self, name: str, data: bytes) -> None:
        """Like `create`, for small files that nobody keeps open."""
        os.close(self.create(name, [data]))

    def append(self, name: str, lines: bytes) -> None:
        """Adds whole lines at the end of a file, durable when this returns. Raises OSError: the file is as before."""
        descriptor = self.open_file(name, os.O_RDWR | os.O_CREAT)
        try:
            length = os.fstat(descriptor).st_size
            torn = length > 0 and os.pread(descriptor, 1, length - 1) != b"\n"
            try:
                write_all(self.system, descriptor, [b"\n" + lines if torn else lines], length)
                self.system.fsync(descriptor)  # SYNC POINT: before anybody relies on the lines
                self.sync()
            except OSError:
                self.system.truncate(descriptor, length)
                raise
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """The whole of a small file, None where there is none."""
        try:
            descriptor = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def remove(self, name: str) -> None:
        self.system.unlink(name, dir_fd=self.descriptor)

    def _discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.remove(name)

    def sync(self) -> None:
        self.system.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def is_there(path: Path) -> bool:
    """Whether anything lies at `path`. Raises SpoolUnusable where that cannot be told: it must not pass for absent."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refusal(path, error, "to look at it") from None
    return True


def _sync_directory(path: Path, system: System) -> None:
    """Makes the names in a directory durable that is not ours to keep open."""
    try:
        descriptor = system.open(str(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # we may use it but not list it: then whoever made our directory in it made it durable
        return
    try:
        system.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reserve:
    """Space held back on the disk, given up when the disk is full so that bookkeeping still works.

    Cursor, ledger, dead letters and quarantine may use it; records may not: `held` says whether it is whole.
    """

    def __init__(self, directory: Directory, size_bytes: int = RESERVE_BYTES) -> None:
        self._directory = directory
        self._size_bytes = size_bytes
        self.held = False
        self.refill()

    def refill(self) -> bool:
        """Takes the space again once there is room; returns whether it is held. Cheap where it is."""
        if self.held:
            return True
        try:
            descriptor = self._directory.open_file(_RESERVE_NAME, os.O_RDWR | os.O_CREAT)
            try:
                self._allocate(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise refusal(self._directory.path / _RESERVE_NAME, error, "a writable file") from error
        return self.held

    def _allocate(self, descriptor: int) -> None:
        try:
            self._directory.system.allocate(descriptor, self._size_bytes)
            self.held = True
        except OSError:
            self._release(descriptor)  # a part of it helps nobody
            raise

    def spend(self, action: Callable[[], T]) -> T:
        """`action()`, and where the disk is full once more with the reserve given up. Raises SpoolFull, OSError."""
        try:
            return action()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
        try:
            descriptor = self._directory.open_file(_RESERVE_NAME, os.O_RDWR | os.O_CREAT)
            try:
                self._release(descriptor)
            finally:
                os.close(descriptor)
            return action()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            raise SpoolFull(f"{self._directory.path}: got a full disk even without the reserve") from error

    def _release(self, descriptor: int) -> None:
        self.held = False
        self._directory.system.truncate(descriptor, 0)


def refusal(path: Path, error: OSError, wanted: str) -> SpoolError:
    """The SpoolError that says what a system call on `path` met, and what was wanted."""
    got = f"{path}: got {error.strerror} ({errno.errorcode.get(error.errno or 0, '?')}), wanted {wanted}"
    return SpoolFull(got) if error.errno in FULL_ERRNOS else SpoolUnusable(got)


def sealed(text: bytes) -> bytes:
    """A line that proves itself: the CRC-32 of `text` in hexadecimal, a space, `text`, a line feed."""
    return b"%08x %b\n" % (zlib.crc32(text), text)


def unsealed(line: bytes) -> bytes | None:
    """The text of a line made by `sealed`, with or without its line feed; None where it does not prove itself."""
    line = line.rstrip(b"\n")
    text = line[9:]
    return text if line[:9] == b"%08x " % zlib.crc32(text) else None


def close_quietly(descriptor: int) -> None:
    """Closes a file that is being given up; its errors no longer matter."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
