"""The last good trader configurations, kept in the runtime directory for a start while PostgreSQL is away."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from ringlog.lanes.instance import DIRECTORY_MODE, check_private
from ringlog.postgres.traders import TraderConfig
from ringlog.settings import Settings

log = logging.getLogger(__name__)


class _Content(msgspec.Struct):
    database: str  # another database's configurations are never served
    configs: list[TraderConfig]


class LastGoodFile:
    """`trader-configs.json` (0600) in a runtime directory (0700) of this user alone.

    Raises LaneError where the directory belongs to somebody else or is open to others.
    """

    def __init__(self, settings: Settings) -> None:
        directory = Path(settings.runtime_dir).absolute()
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        check_private(directory)
        self.path = directory / "trader-configs.json"
        self._database = f"{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_database}"
        self._written = b""

    def read(self) -> dict[str, TraderConfig]:
        """What the file holds by trader_id; nothing where it is missing, foreign, broken or of another database."""
        try:
            content = msgspec.json.decode(self._bytes(), type=_Content)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("last_good_configs=unusable path=%s error=%s", self.path, error)
            return {}
        if content.database != self._database:
            return {}
        return {config.trader_id: config for config in content.configs}

    def write(self, configs: dict[str, TraderConfig]) -> None:
        """Replaces the file as a whole, if it would change; a disk that refuses is logged, not raised."""
        text = msgspec.json.encode(_Content(self._database, [configs[name] for name in sorted(configs)]))
        if text == self._written and self.path.exists():
            return
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            log.warning("last_good_configs=not_written path=%s error=%s", self.path, error.strerror)
        else:
            self._written = text

    def _bytes(self) -> bytes:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise PermissionError("wanted a regular file of this user with mode 0600")
            return file.read()
