"""Segments: shared-memory blocks that live until somebody unlinks them by name, whichever process dies.

A segment is made by `multiprocessing.shared_memory`, and anyone may attach it by its name with that. Here attaching
goes another way: `SharedMemory(name)` unlinks the segment where it cannot map it (python/cpython#153279), opens a FIFO
and waits for ever, and keeps two descriptors for each. Here only what this process made itself is ever unlinked,
opening never waits, and a mapped segment keeps no descriptor.

Python's resource tracker would unlink a live segment when its creator is killed, so tracking is off.
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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ringlog.errors import LaneError, SegmentRefused, SharedMemoryFull, SharedMemoryUnusable
from ringlog.lanes.instance import kind_of

SHM = Path("/dev/shm")  # noqa: S108 (where Linux keeps segments; macOS shows them nowhere)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_OUT_OF_MEANS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
# A FIFO in the place of a segment must not hang us. On macOS there is no file in its place.
_NEVER_WAIT = os.O_NONBLOCK if sys.platform != "darwin" else 0
_MAP_FIXED = 0x10  # Linux and macOS; the mmap module does not have it

_tracking_lock = threading.Lock()
_register, _unregister = resource_tracker.register, resource_tracker.unregister


def _ignored(name: Any, rtype: str) -> None:
    """Stands in for the tracker's functions while a segment is made."""


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


class SegmentBlank(SegmentRefused):
    """A segment whose claim is not complete, or whose owner died within the claim: nothing was ever accepted."""


class Inode(NamedTuple):
    """What a name leads to: another segment of the same name has another one."""

    device: int
    number: int

    @classmethod
    def of(cls, status: os.stat_result) -> Inode:
        return cls(status.st_dev, status.st_ino)


class Segment:
    """A segment that this process has mapped. It keeps no descriptor, so mappings cost none."""

    def __init__(self, name: str, descriptor: int, *, is_writable: bool = True) -> None:
        """Maps all of what `descriptor` is open for; the caller closes that. Raises OSError."""
        status = os.fstat(descriptor)
        self.name = name
        self.size = status.st_size
        self.inode = Inode.of(status)
        self._map = _mapped(descriptor, self.size, mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0))
        self.memory: Any = memoryview(self._map)

    def close(self) -> None:
        """Where an appender or a view still holds the memory, the mapping goes when the last of them does."""
        with contextlib.suppress(BufferError):
            self.memory.release()
            self._map.close()


_lost_places: list[mmap.mmap] = []  # whose pages may be anyone's by now: never to be unmapped


def _mapped(descriptor: int, size: int, protection: int) -> mmap.mmap:
    """A mapping without a descriptor of its own. Raises OSError."""
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(descriptor, size, prot=protection, trackfd=False)
        # Until then an mmap object of a file keeps a copy of its descriptor, and one of memory alone does not: so the
        # file's pages are put in the place of such memory. The object gives them back like its own.
        place = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
    except (ValueError, OverflowError, MemoryError) as error:
        raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)} ({error})") from None
    import ctypes  # here: who runs a later Python need not have it

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    address = np.frombuffer(place, np.uint8).__array_interface__["data"][0]
    if libc.mmap(address, size, protection, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0) != address:
        number = ctypes.get_errno()
        _lost_places.append(place)
        raise OSError(number, os.strerror(number))
    return place


class _Made(shared_memory.SharedMemory):
    """A segment while it is being made: O_EXCL makes the name ours, so the base class unlinks only what is ours."""

    _fd: int

    def __init__(self, name: str, size_bytes: int) -> None:
        with _untracked() as options:
            super().__init__(name=name, create=True, size=size_bytes, **options)

    def reserve(self) -> None:
        """Takes the pages now: a segment that was only sized kills its writer with SIGBUS on a full /dev/shm.

        Raises OSError with ENOSPC.
        """
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, self.size)

    def mapped(self) -> Segment:
        return Segment(self.name, self._fd)


def create_segment(name: str, size_bytes: int) -> Segment:
    """A new segment of zeros, its pages reserved, mapped and faulted in, mode 0600.

    Raises SegmentRefused where the name is taken (naming its owner), SharedMemoryFull where there is no room,
    LaneError where it cannot be made for another reason, which the message names.
    """
    try:
        made = _Made(name, size_bytes)
    except FileExistsError:
        raise SegmentRefused(f"segment {name}: got an existing one{_owner_of(name)}, wanted a free name") from None
    except (OSError, ValueError) as error:
        raise _not_made(name, size_bytes, error) from None
    try:
        made.reserve()
        segment = made.mapped()
        for page in range(0, size_bytes, 4096):
            segment.memory[page] = 0
    except OSError as error:
        unlink_segment(name)
        raise _not_made(name, size_bytes, error) from None
    except BaseException:
        unlink_segment(name)
        raise
    finally:
        made.close()
    return segment


def _not_made(name: str, size_bytes: int, error: OSError | ValueError) -> LaneError:
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        free = ""
        with contextlib.suppress(OSError):
            status = os.statvfs(SHM)
            free = f", got {status.f_bavail * status.f_frsize} bytes free"
        return SharedMemoryFull(f"segment {name}: wanted {size_bytes} bytes of shared memory{free}: enlarge /dev/shm")
    if number in _OUT_OF_MEANS:
        return _out_of_means(name, error)
    text = error.strerror if isinstance(error, OSError) else str(error)
    return SharedMemoryUnusable(
        f"segment {name}: got {text}, wanted to make it: is {SHM} mounted, and writable for this user?"
    )


def _out_of_means(name: str, error: object) -> LaneError:
    limit = "RLIMIT_AS" if getattr(error, "errno", 0) == errno.ENOMEM else "ulimit -n"
    return LaneError(
        f"segment {name}: got {getattr(error, 'strerror', error)}, wanted a free descriptor and memory to map it: "
        f"raise this process's limit ({limit})"
    )


def _owner_of(name: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" of uid {os.lstat(SHM / name).st_uid}"
    return ""


def attach_segment(name: str, *, is_writable: bool = True) -> Segment:
    """An existing segment of this user. Whatever happens, nothing is removed, and nothing is waited for.

    Raises FileNotFoundError where there is none, SegmentBlank where it is empty, SegmentRefused where it is not a
    regular one of this user, mode 0600, LaneError where this process has no descriptor or memory left for it,
    SharedMemoryUnusable where it may not enter /dev/shm.
    """
    descriptor = _opened(name, os.O_RDWR if is_writable else os.O_RDONLY)
    try:
        _check(name, os.fstat(descriptor))
        return Segment(name, descriptor, is_writable=is_writable)
    except OSError as error:
        raise _out_of_means(name, error) from None
    finally:
        os.close(descriptor)


def inode_of(name: str) -> Inode | None:
    """Which segment the name leads to now; None where there is none. Raises what attach_segment raises."""
    try:
        descriptor = _opened(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return Inode.of(os.fstat(descriptor))
    except OSError as error:
        raise _out_of_means(name, error) from None
    finally:
        os.close(descriptor)


def _opened(name: str, flags: int) -> int:
    """A descriptor of the segment, which the caller checks before it believes anything."""
    import _posixshmem  # type: ignore[import-not-found]  # what SharedMemory itself opens segments with

    try:
        if "/" not in name:
            with contextlib.suppress(OSError, ValueError):  # then opening says what is wrong
                _check_owner(name, os.lstat(SHM / name))  # before it is opened: a device may do something when it is
        descriptor: int = _posixshmem.shm_open(f"/{name}", flags | _NEVER_WAIT, mode=0)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_MEANS:
            raise _out_of_means(name, error) from None
        if isinstance(error, PermissionError) and not os.access(SHM, os.X_OK):
            raise SharedMemoryUnusable(
                f"segment {name}: got {error.strerror}, wanted to look for it: is {SHM} open to this user (mode 1777)?"
            ) from None
        raise SegmentRefused(f"segment {name}: got {error}{_owner_of(name)}, wanted one that can be attached") from None
    return descriptor


def _check(name: str, status: os.stat_result) -> None:
    """Raises SegmentRefused, naming got and wanted. The owner comes first: nothing else of a stranger's is believed."""
    _check_owner(name, status)
    if status.st_mode & 0o077:
        raise SegmentRefused(f"segment {name}: got mode {stat.S_IMODE(status.st_mode):04o}, wanted 0600")
    if status.st_size == 0:
        raise SegmentBlank(f"segment {name}: got 0 bytes, wanted a lane")  # made and not yet sized


def _check_owner(name: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise SegmentRefused(f"segment {name}: got owner uid {status.st_uid}, wanted {os.geteuid()}")
    # macOS says nothing of a segment's type.
    if sys.platform != "darwin" and not stat.S_ISREG(status.st_mode):
        raise SegmentRefused(f"segment {name}: got a {kind_of(status.st_mode)}, wanted a regular file")


def unlink_segment(name: str) -> None:
    """Takes a segment's name away; those who have it mapped keep it. No error where there is none.

    Raises LaneError where it cannot be removed.
    """
    import _posixshmem  # SharedMemory.unlink needs an attached segment

    try:
        _posixshmem.shm_unlink(f"/{name}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise LaneError(f"segment {name}: got {error}{_owner_of(name)}, wanted to remove it") from None
