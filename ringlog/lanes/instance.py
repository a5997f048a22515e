"""An instance: everything that belongs together under one runtime directory, and what its segments are called."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path

from ringlog.errors import LaneError
from ringlog.settings import Settings

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
# What opening a file of the instance always means: never through a symlink, never handed to a child program, and a FIFO
# in its place must not hang us.
SAFE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FILE_BYTES_MAX = 1 << 16  # of a card, or a lock file's text


class Instance:
    """The names of one instance. `open()` makes and checks its directories; nothing else here touches the disk."""

    def __init__(self, settings: Settings) -> None:
        if sys.platform == "win32":
            raise LaneError("ringlog: got Windows, wanted Linux or macOS (POSIX shared memory and record locks)")
        self.settings = settings
        self.runtime_dir = Path(settings.runtime_dir).absolute()
        self.lanes_dir = self.runtime_dir / "lanes"
        digest = hashlib.sha256(os.fsencode(self.runtime_dir)).hexdigest()[:8]
        self._prefix = f"rl{digest}"

    def open(self) -> Instance:
        """Makes the directories where they are missing.

        Raises LaneError where one cannot be made, is a symlink, belongs to somebody else, or is open to others.
        """
        for directory in (self.runtime_dir, self.lanes_dir):
            try:
                directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            except OSError as error:
                raise LaneError(
                    f"{directory}: got {error.strerror}, wanted a directory that this user can make"
                ) from None
            check_private(directory)
        return self

    @property
    def board_name(self) -> str:
        return f"{self._prefix}board"

    @property
    def claims_path(self) -> Path:
        return self.runtime_dir / "claims.lock"

    @property
    def lease_path(self) -> Path:
        return self.runtime_dir / "writer.lease"

    def segment_name(self, lane: int) -> str:
        """At most 30 bytes, which is what macOS allows with the leading slash."""
        return f"{self._prefix}{lane:016x}"

    def lock_path(self, lane: int) -> Path:
        return self.lanes_dir / f"{lane:016x}.lock"

    def card_path(self, lane: int) -> Path:
        return self.lanes_dir / f"{lane:016x}.json"

    def claim_path(self, lane: int) -> Path:
        """The card of a lane whose claim is not complete yet."""
        return self.lanes_dir / f"{lane:016x}.claim"


def check_private(directory: Path) -> None:
    """Raises LaneError unless `directory` is a real directory of this user that nobody else can enter."""
    try:
        status = directory.lstat()
    except OSError as error:
        raise LaneError(f"{directory}: got {error.strerror}, wanted a directory of this user") from None
    if not stat.S_ISDIR(status.st_mode):
        raise LaneError(f"{directory}: got a {kind_of(status.st_mode)}, wanted a directory")
    if status.st_uid != os.geteuid():
        raise LaneError(f"{directory}: got owner uid {status.st_uid}, wanted {os.geteuid()}")
    if status.st_mode & 0o077:
        raise LaneError(f"{directory}: got mode {stat.S_IMODE(status.st_mode):04o}, wanted 0700: run chmod 700")


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a regular file of this user. Never waits, and follows no symlink.

    Raises OSError as os.open does; LaneError where it is another kind of file, or somebody else's.
    """
    descriptor = os.open(path, flags | SAFE_FLAGS, FILE_MODE)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    got = f"{kind_of(status.st_mode)} of uid {status.st_uid}"
    raise LaneError(f"{path}: got a {got}, wanted a regular file of uid {os.geteuid()}")


def read_private(path: Path) -> bytes:
    """The first FILE_BYTES_MAX bytes of a file; raises what open_private does."""
    descriptor = open_private(path, os.O_RDONLY)
    try:
        return os.read(descriptor, FILE_BYTES_MAX)
    finally:
        os.close(descriptor)


def kind_of(mode: int) -> str:
    """What kind of file it is, in words."""
    kinds = {
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "FIFO",
        stat.S_IFLNK: "symlink",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "block device",
        stat.S_IFCHR: "character device",
        stat.S_IFREG: "regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "file of an unknown kind")


def boot_id() -> str:
    """36 characters that differ from boot to boot: shared memory does not outlive a boot, the runtime directory may.

    Raises LaneError where the kernel does not say. A boot time would be no substitute on Linux: it moves when the clock
    is set, and lanes of "another boot" count as lost.
    """
    if sys.platform == "linux":
        try:
            return _BOOT_ID.read_text().strip()
        except OSError as error:
            raise LaneError(
                f"{_BOOT_ID}: got {error.strerror}, wanted to read it: is /proc mounted with subset=pid?"
            ) from None
    import psutil

    return f"boot-{int(psutil.boot_time())}".ljust(36)[:36]


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
