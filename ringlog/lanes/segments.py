"""Segments: shared-memory blocks that live until somebody unlinks them by name, whichever process dies.

Python's resource tracker would unlink a live segment when an unrelated process that attached it exits (and, for the
creator, after kill -9), so tracking is off for creating and attaching alike.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from typing import Any

from ringlog.errors import LaneError, SegmentRefused, SharedMemoryFull

_tracking_lock = threading.Lock()
_register, _unregister = resource_tracker.register, resource_tracker.unregister


def _ignored(name: Any, rtype: str) -> None:
    """Stands in for the tracker's functions while a segment is opened."""


def _after_fork_in_child() -> None:
    global _tracking_lock  # noqa: PLW0603 (a thread of the parent may have held it)
    _tracking_lock = threading.Lock()
    _restore_tracking()


def _restore_tracking() -> None:
    if resource_tracker.register is _ignored:
        resource_tracker.register, resource_tracker.unregister = _register, _unregister


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def _untracked() -> Iterator[dict[str, Any]]:
    """Keyword arguments for SharedMemory; before Python 3.13 also makes its call to the tracker do nothing."""
    if sys.version_info >= (3, 13):
        yield {"track": False}
        return
    with _tracking_lock:
        resource_tracker.register = resource_tracker.unregister = _ignored
        try:
            yield {}
        finally:
            _restore_tracking()


_abandoned: list[Any] = []  # mappings that must not be closed


def _inode_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class SegmentBlank(SegmentRefused):
    """A segment whose claim is not complete, or whose owner died within the claim: nothing was ever accepted."""


class Segment(shared_memory.SharedMemory):
    """A segment that is neither tracked nor closed behind the back of an appender that still holds its memory."""

    _fd: int
    _buf: Any
    _mmap: Any

    def __init__(self, name: str, *, create: bool = False, size_bytes: int = 0) -> None:
        self._inode = (0, 0)
        with _untracked() as options:
            super().__init__(name=name, create=create, size=size_bytes, **options)
        self._inode = _inode_of(self.status())

    @property
    def memory(self) -> Any:
        """The mapped bytes, as a memoryview."""
        return self.buf

    def close(self) -> None:
        if self._fd >= 0 and not self._has_its_descriptor():
            # Somebody closed every descriptor (a daemon's start): the numbers, also the one inside the mapping, may be
            # other files' by now, and unmapping would close one of them. So the mapping stays.
            self._fd = -1
            _abandoned.append((self._buf, self._mmap))
            self._buf = self._mmap = None
            return
        # Where an appender or a view still holds the memory, the mapping goes when the last of them does, but the
        # descriptor goes now: nobody would close it then.
        try:
            super().close()
        except BufferError:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _has_its_descriptor(self) -> bool:
        try:
            return _inode_of(self.status()) == self._inode
        except OSError:
            return False

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def status(self) -> os.stat_result:
        return os.fstat(self._fd)

    def reserve(self) -> None:
        """Takes the pages now: a segment that was only sized kills its writer with SIGBUS on a full /dev/shm.

        Raises OSError with ENOSPC.
        """
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, self.size)


def create_segment(name: str, size_bytes: int) -> Segment:
    """A new segment of zeros, its pages reserved, mapped and faulted in, mode 0600.

    Raises SegmentRefused where the name is taken (naming its owner), SharedMemoryFull where there is no room.
    """
    try:
        segment = Segment(name, create=True, size_bytes=size_bytes)
    except FileExistsError:
        raise SegmentRefused(f"segment {name}: got an existing one{_owner_of(name)}, wanted a free name") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise _full(name, size_bytes) from None
        raise
    try:
        segment.reserve()
        for page in range(0, size_bytes, 4096):
            segment.memory[page] = 0
    except OSError as error:
        unlink_segment(name)
        if error.errno == errno.ENOSPC:
            raise _full(name, size_bytes) from None
        raise
    except BaseException:
        unlink_segment(name)
        raise
    return segment


def _full(name: str, size_bytes: int) -> SharedMemoryFull:
    free = ""
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")  # noqa: S108 (asked for its free space only)
        free = f", got {status.f_bavail * status.f_frsize} bytes free"
    return SharedMemoryFull(f"segment {name}: wanted {size_bytes} bytes of shared memory{free}: enlarge /dev/shm")


def _owner_of(name: str) -> str:
    with contextlib.suppress(OSError):
        return f" of uid {os.lstat('/dev/shm/' + name).st_uid}"  # noqa: S108
    return ""


def attach_segment(name: str) -> Segment:
    """An existing segment of this user.

    Raises FileNotFoundError where there is none, SegmentBlank where it is empty, SegmentRefused where it is not a
    regular one of this user, mode 0600, LaneError where this process has no descriptor or memory left for it.
    """
    try:
        segment = Segment(name)
    except FileNotFoundError:
        raise
    except ValueError:
        raise SegmentBlank(f"segment {name}: got 0 bytes, wanted a lane") from None  # made and not yet sized
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise LaneError(f"segment {name}: got {error}, wanted a free descriptor and memory to attach it") from None
        raise SegmentRefused(f"segment {name}: got {error}{_owner_of(name)}, wanted one that can be attached") from None
    status = segment.status()
    wrong = ""
    if status.st_uid != os.geteuid():
        wrong = f"owner uid {status.st_uid}, wanted {os.geteuid()}"
    elif status.st_mode & 0o077:
        wrong = f"mode {stat.S_IMODE(status.st_mode):04o}, wanted 0600"
    if wrong:
        segment.close()
        raise SegmentRefused(f"segment {name}: got {wrong}")
    return segment


class MappedSegment:
    """An existing segment of this user, mapped for reading alone.

    Raises FileNotFoundError where there is none, SegmentBlank where it is empty, SegmentRefused where it is not a
    regular one of this user, mode 0600, LaneError where this process has no descriptor or memory left for it.
    """

    def __init__(self, name: str) -> None:
        import _posixshmem  # type: ignore[import-not-found]  # SharedMemory can only map for writing

        try:
            descriptor = _posixshmem.shm_open(f"/{name}", os.O_RDONLY, mode=0)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise LaneError(f"segment {name}: got {error}, wanted a free descriptor") from None
            raise SegmentRefused(f"segment {name}: got {error}, wanted one that can be read") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise SegmentRefused(
                    f"segment {name}: got owner uid {status.st_uid} mode {stat.S_IMODE(status.st_mode):04o}, "
                    f"wanted a regular one of uid {os.geteuid()}, mode 0600"
                )
            if status.st_size == 0:
                raise SegmentBlank(f"segment {name}: got 0 bytes, wanted a lane")
            self._map = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
        except OSError as error:
            raise LaneError(f"segment {name}: got {error}, wanted memory to map it") from None
        finally:
            os.close(descriptor)
        self.memory = memoryview(self._map)

    def close(self) -> None:
        """Where a view still holds the memory, the mapping goes when that does."""
        with contextlib.suppress(BufferError):
            self.memory.release()
            self._map.close()


def unlink_segment(name: str) -> None:
    """Takes a segment's name away; those who have it mapped keep it. No error where there is none."""
    import _posixshmem  # SharedMemory.unlink needs an attached segment

    with contextlib.suppress(FileNotFoundError):
        _posixshmem.shm_unlink(f"/{name}")
