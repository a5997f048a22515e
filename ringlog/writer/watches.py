"""What the writer watches, and what an alert does: disks and buffer memory, a log line, a count, a command."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from ringlog.environment import child_environment
from ringlog.layout import BoardReason
from ringlog.pressure import Alert, Pressure, Resource, Thresholds, Verdict, disk_watch, memory_watch
from ringlog.settings import Secret, Settings
from ringlog.text import shown

logger = logging.getLogger("ringlog.writer")

REASONS = {
    Resource.SPOOL_DISK: BoardReason.DISK_FULL,
    Resource.SERVER_DISK: BoardReason.DISK_FULL,
    Resource.MEMORY: BoardReason.MEMORY,
}


def new_pressure(settings: Settings) -> Pressure:
    """The spool's disk, and the server's where it is local."""
    watches = [disk_watch(Resource.SPOOL_DISK, settings.spool_path, settings.disk_free_bytes_min)]
    if settings.questdb_data_dir:
        path = Path(settings.questdb_data_dir)
        watches.append(disk_watch(Resource.SERVER_DISK, path, settings.disk_free_bytes_min))
    return Pressure(watches, _command(settings))


def watch_server(pressure: Pressure, path: Path | None, settings: Settings) -> None:
    """From now on the disk of the server's data, found at `path`; a directory that is set goes before one found."""
    if settings.questdb_data_dir:
        return
    pressure.forget(Resource.SERVER_DISK)
    if path is not None:
        pressure.watch(disk_watch(Resource.SERVER_DISK, path, settings.disk_free_bytes_min))


def watch_memory(pressure: Pressure, lane_bytes: Callable[[], int]) -> None:
    """From now on also the memory of lanes and batches together: what this process takes more than it has now."""
    pressure.watch(memory_watch(lane_bytes))


def relimit(pressure: Pressure, settings: Settings) -> None:
    """From now on these limits for disks, and this alert command; levels and counts stay."""
    for resource in (Resource.SPOOL_DISK, Resource.SERVER_DISK):
        pressure.limit(resource, Thresholds.of_disk(settings.disk_free_bytes_min))
    pressure.on_alert = _command(settings)


def _command(settings: Settings) -> Callable[[Alert], None] | None:
    return _Command(settings.alert_command) if settings.alert_command else None


def reason_of(verdict: Verdict) -> BoardReason:
    """What the board says to producers."""
    if verdict.accepting or verdict.resource is None:
        return BoardReason.ACCEPTING
    return REASONS[verdict.resource]


class _Command:
    """Starts the alert command and goes on: the writer never waits for it."""

    def __init__(self, command: Secret) -> None:
        self._command = command
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, alert: Alert) -> None:
        self._running = [process for process in self._running if process.poll() is None]
        words = [
            *shlex.split(self._command.reveal()),
            alert.resource.value,
            alert.level.name.lower(),
            shown(alert.message),
        ]
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=child_environment())
        except OSError as error:  # of the command only its setting is named: any word of it may be a token
            logger.error("RINGLOG_ALERT_COMMAND: got %s, wanted a program that starts", error.strerror)
        else:
            self._running.append(process)
