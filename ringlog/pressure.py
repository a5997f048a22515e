"""Pressure: when disks or buffer memory run out, records are refused in time, and accepted again in time.

The decision is a state machine fed with readings; psutil only makes the readings. Thresholds lie apart, so that a
value that trembles around one of them does not make producers accept and refuse in turns.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ringlog.errors import ConfigurationError

logger = logging.getLogger(__name__)

SAMPLE_INTERVAL_SECONDS = 0.1
BUFFER_BYTES_MAX = 100_000_000
# Of a batch of so many bytes of slots there are, at the worst moment, some five times as much in the writer: slots,
# columns and encoded requests, of those being encoded, sent and applied. And some that does not depend on its size.
BATCH_COPIES = 5
BATCH_BASE_BYTES = 20_000_000
BATCH_BYTES_MIN = 1024 * 1024


def batch_bytes(lanes_bytes: int) -> int:
    """How many bytes of slots a batch may have beside so many bytes of lanes, for both to stay below BUFFER_BYTES_MAX.

    Refusing records would give back nothing of what the writer itself takes: it takes less instead.
    """
    return max(BATCH_BYTES_MIN, (BUFFER_BYTES_MAX - BATCH_BASE_BYTES - lanes_bytes) // BATCH_COPIES)


class Level(enum.IntEnum):
    """How things stand with one resource, or with the worst of all."""

    OK = 0
    WARN = 1
    REFUSE = 2


class Resource(enum.StrEnum):
    """What may run out, or needs somebody to look at it."""

    SPOOL_DISK = "spool disk"
    SERVER_DISK = "server disk"
    MEMORY = "buffer memory"
    QUARANTINE = "quarantine"
    TABLE = "table"  # away for long: told of by the writer, and no reason to refuse records
    LANES = "lanes"  # never watched: told of where a lane's segment is gone


class Thresholds(msgspec.Struct, frozen=True):
    """In bytes of room left: refuse below one, accept again from another on, warn below a third."""

    refuse_below_bytes: int
    resume_at_bytes: int
    warn_below_bytes: int

    def __post_init__(self) -> None:
        if not self.refuse_below_bytes <= self.resume_at_bytes <= self.warn_below_bytes:
            raise ConfigurationError(f"thresholds: got {self}, wanted refuse_below <= resume_at <= warn_below")

    @classmethod
    def of_disk(cls, free_bytes_min: int) -> Thresholds:
        """Refuses below `free_bytes_min`, resumes a tenth above it, warns below twice as much."""
        return cls(free_bytes_min, free_bytes_min + free_bytes_min // 10, 2 * free_bytes_min)

    @classmethod
    def of_memory(cls, used_bytes_max: int = BUFFER_BYTES_MAX) -> Thresholds:
        """Refuses when nothing of `used_bytes_max` is left, resumes with a twentieth free, warns below a tenth."""
        return cls(1, used_bytes_max // 20, used_bytes_max // 10)

    def next(self, level: Level, room_bytes: int) -> Level:
        """The level that follows `level` when so much room is left."""
        if room_bytes < self.refuse_below_bytes:
            return Level.REFUSE
        if level is Level.REFUSE and room_bytes < self.resume_at_bytes:
            return Level.REFUSE
        return Level.WARN if room_bytes < self.warn_below_bytes else Level.OK


class Watch(msgspec.Struct):
    """One resource: what it is, its thresholds, and how to read the bytes of room it has left (OSError: none)."""

    resource: Resource
    where: str
    thresholds: Thresholds
    read: Callable[[], int]


class Verdict(msgspec.Struct, frozen=True):
    """Whether records are to be accepted; if not, or not for long, for want of what, and a line that says so."""

    accepting: bool
    resource: Resource | None
    message: str


class Alert(msgspec.Struct, frozen=True):
    """A resource changed its level."""

    resource: Resource
    level: Level
    message: str


_ALL_WELL = Verdict(True, None, "")
_LOG_LEVELS = {Level.OK: logging.INFO, Level.WARN: logging.WARNING, Level.REFUSE: logging.ERROR}


class Pressure:
    """Watches resources. `on_alert` is called at each change of a level, after it was logged and counted.

    An exception in `on_alert` is logged and goes no further. `alerts` counts changes to WARN or REFUSE by resource.
    """

    def __init__(self, watches: Sequence[Watch], on_alert: Callable[[Alert], None] | None = None) -> None:
        self._watches = list(watches)
        self.on_alert = on_alert
        self._levels = [Level.OK] * len(self._watches)
        self._next_sample = float("-inf")
        self._verdict = _ALL_WELL
        self.alerts = dict.fromkeys(Resource, 0)

    @property
    def level(self) -> Level:
        """The worst level of all resources, as of the last sample."""
        return max(self._levels, default=Level.OK)

    def watch(self, watch: Watch) -> None:
        """One more resource, from the next sample on."""
        self._watches.append(watch)
        self._levels.append(Level.OK)

    def forget(self, resource: Resource) -> None:
        """No longer watches a resource, from the next sample on."""
        kept = [index for index, watch in enumerate(self._watches) if watch.resource is not resource]
        self._watches = [self._watches[index] for index in kept]
        self._levels = [self._levels[index] for index in kept]

    def limit(self, resource: Resource, thresholds: Thresholds) -> None:
        """From the next sample on, these thresholds for a resource, if it is watched."""
        for watch in self._watches:
            if watch.resource is resource:
                watch.thresholds = thresholds

    def poll(self, now: float | None = None) -> Verdict:
        """The verdict at `now` (time.monotonic()); samples at most every SAMPLE_INTERVAL_SECONDS, so call it freely."""
        now = time.monotonic() if now is None else now
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_INTERVAL_SECONDS
            self._sample()
        return self._verdict

    def _sample(self) -> None:
        worst = Level.OK
        verdict = _ALL_WELL
        for index, watch in enumerate(self._watches):
            before = self._levels[index]
            level, message = self._read(watch, before)
            self._levels[index] = level
            if level is not before:
                self.alert(Alert(watch.resource, level, message))
            if level > worst:
                worst = level
                verdict = Verdict(level is not Level.REFUSE, watch.resource, message)
        self._verdict = verdict

    def _read(self, watch: Watch, before: Level) -> tuple[Level, str]:
        try:
            room = watch.read()
        except OSError as error:
            text = f"{watch.resource} {watch.where}: cannot be read ({error.strerror})"
            if watch.resource is Resource.SERVER_DISK:  # the spool takes what the server does not
                return Level.WARN, f"{text}: it is not watched"
            return Level.REFUSE, text
        level = watch.thresholds.next(before, room)
        limits = watch.thresholds
        wanted = limits.resume_at_bytes if level is Level.REFUSE else limits.warn_below_bytes
        return level, f"{watch.resource} {watch.where}: got {room} bytes left, wanted {wanted}"

    def alert(self, alert: Alert, log_level: int | None = None) -> None:
        """Logs (as its level says, if nothing else is given) and counts an alert, and tells the hook."""
        if alert.level is not Level.OK:
            self.alerts[alert.resource] += 1
        logger.log(
            _LOG_LEVELS[alert.level] if log_level is None else log_level,
            "pressure level=%s %s",
            alert.level.name.lower(),
            alert.message,
        )
        if self.on_alert is not None:
            try:
                self.on_alert(alert)
            except Exception:
                logger.exception("the alert hook failed")


def disk_watch(resource: Resource, path: Path, free_bytes_min: int) -> Watch:
    """Watches the disk that `path` lies on."""
    import psutil

    def read() -> int:
        free: int = psutil.disk_usage(str(path)).free
        return free

    return Watch(resource, str(path), Thresholds.of_disk(free_bytes_min), read)


def memory_watch(lanes_bytes: Callable[[], int], used_bytes_max: int = BUFFER_BYTES_MAX) -> Watch:
    """Watches lanes and what this process took for batches: its own memory over what it had at this call."""
    import psutil

    process = psutil.Process()
    idle = _own_bytes(process)

    def read() -> int:
        return used_bytes_max - lanes_bytes() - max(0, _own_bytes(process) - idle)

    return Watch(Resource.MEMORY, f"pid {process.pid}", Thresholds.of_memory(used_bytes_max), read)


def _own_bytes(process: Any) -> int:
    """Resident memory that is not shared; lanes are counted apart. (macOS does not say what is shared.)"""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
