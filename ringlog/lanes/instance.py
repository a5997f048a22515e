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
# What opening a file of the instance always means: never through a symlink, never handed to a child program.
OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


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
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise LaneError(f"{directory}: got a {_type_name(status.st_mode)}, wanted a directory")
    if status.st_uid != os.geteuid():
        raise LaneError(f"{directory}: got owner uid {status.st_uid}, wanted {os.geteuid()}")
    if status.st_mode & 0o077:
        raise LaneError(f"{directory}: got mode {stat.S_IMODE(status.st_mode):04o}, wanted 0700: run chmod 700")


def _type_name(mode: int) -> str:
    return "symlink" if stat.S_ISLNK(mode) else "file that is no directory"


def boot_id() -> str:
    """36 characters that differ from boot to boot: shared memory does not outlive a boot, the runtime directory may."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # macOS: the boot time says the same
        import psutil

        return f"boot-{int(psutil.boot_time())}".ljust(36)[:36]
