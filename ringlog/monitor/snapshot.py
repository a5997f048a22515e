"""One look at an instance: writer, producers and their lanes, spool, disks. Read from shared memory and files alone.

Nothing is written, made or locked, so it works whoever is down, and costs the producers nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.board import Board
from ringlog.lanes.claims import Card, cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.segments import SegmentBlank
from ringlog.lanes.views import MappedLane
from ringlog.layout import LaneState, refusals_by_name
from ringlog.monitor.probes import ServerFigures
from ringlog.monitor.rows import time_of
from ringlog.pressure import Level, Thresholds
from ringlog.ring import told
from ringlog.settings import Settings

MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
VANISHED = "somebody removed its segment"
STALLED_SECONDS = 3.0  # a writer's ticks are at most 1 s apart, and a slow encoding lies between


class LaneFigures(msgspec.Struct):
    """One lane. Rates are records/s since the look before; `lag_s` is the age of its oldest unconfirmed record.

    `producer` names the process for good, as its pid does not: each container has a pid 1.
    `owner`: `alive`; `dead` (gone without closing, not adopted yet); `adopted` (the writer drains what is left);
    `left` (closed in order). `trouble` says why a lane could not be looked at.
    """

    lane: str
    record: str
    table: str
    pid: int
    producer: str
    owner: str
    age_s: float
    size_bytes: int
    capacity: int = 0
    accepted: int = 0
    confirmed: int = 0
    waiting: int = 0
    fill: float = 0.0
    rate: float = 0.0
    confirm_rate: float = 0.0
    refused: dict[str, int] = {}
    refuse_rate: float = 0.0
    idle_s: float | None = None
    lag_s: float | None = None
    trouble: str = ""


class WriterFigures(msgspec.Struct):
    """The writer: `starting`, `running`, `stalled` (no tick lately), `stopped` or `absent` (none ever ran here).

    `figures` is what it last said of itself (see `Writer._publish_status`); empty where none runs, or has not yet.
    """

    state: str
    beat_age_s: float | None
    rate: float
    lag_s: float
    figures: dict[str, Any]


class DiskFigures(msgspec.Struct):
    """Free space where something must be written: `ok`, `warn` (low) or `refuse` (producers are, or soon will be)."""

    what: str
    path: str
    free_bytes: int
    total_bytes: int
    level: str


class SpoolFigures(msgspec.Struct):
    """Bytes of the spool's files, and the cap."""

    bytes: int
    bytes_max: int


class Snapshot(msgspec.Struct):
    """One look. `accepting` is what the board tells producers, `reason` why not."""

    time: str
    runtime_dir: str
    accepting: bool
    reason: str
    writer: WriterFigures
    lanes: list[LaneFigures]
    lane_bytes: int
    lane_bytes_max: int
    spool: SpoolFigures
    disks: list[DiskFigures]
    servers: list[ServerFigures] = []
    ring: str = ""  # of the interpreter that looks

    @property
    def rate(self) -> float:
        """Records/s accepted by all lanes."""
        return sum(lane.rate for lane in self.lanes)

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self.lanes)

    @property
    def refused(self) -> int:
        """Records refused by lanes that are still there."""
        return sum(sum(lane.refused.values()) for lane in self.lanes)


class _Watched(MappedLane):
    """A lane and its counts at the last look."""

    counts: tuple[float, int, int, int] | None = None


class Observer:
    """Looks at an instance again and again; rates are between two looks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._instance = Instance(settings)
        self._watched: dict[int, _Watched] = {}
        self._rows: tuple[float, int] | None = None
        self._rate = 0.0

    def look(self) -> Snapshot:
        """The instance now. Raises SegmentRefused where its board is of another layout version."""
        now_us = time.time_ns() // 1000
        found = cards(self._instance)
        for gone in self._watched.keys() - {card.lane for card in found}:
            self._watched.pop(gone).close()
        lanes = [self._lane(card, now_us) for card in found]
        board = Board.look(self._instance)
        beat_us = board.beat_us if board else 0
        is_held = is_locked(self._instance.lease_path)
        # What an earlier writer said is not this one's.
        figures = _status_of(board) if is_held else {}
        figures = figures if board is not None and figures.get("epoch") == board.epoch else {}
        reason = board.reason.name.lower() if board else "accepting"
        if board is not None:
            board.segment.close()
        return Snapshot(
            time=time_of(now_us),
            runtime_dir=str(self._instance.runtime_dir),
            accepting=reason == "accepting",
            reason=reason,
            writer=self._writer(beat_us, figures, now_us, lanes, is_held=is_held),
            lanes=lanes,
            lane_bytes=sum(card.size_bytes for card in found),
            lane_bytes_max=self._settings.lane_bytes_max,
            spool=SpoolFigures(spool_bytes(self._settings.spool_path), self._settings.spool_bytes_max),
            disks=disks(self._settings, str(figures.get("server_dir", ""))),
            ring=told(),
        )

    def _lane(self, card: Card, now_us: int) -> LaneFigures:
        owned = is_locked(self._instance.lock_path(card.lane))
        figures = LaneFigures(
            lane=f"{card.lane:016x}",
            record=card.record,
            table=card.table,
            pid=card.owner_pid,
            producer=card.producer or f"{card.boot_id} {card.owner_pid}",
            owner="alive" if owned else "dead",
            age_s=max(now_us - card.claimed_at_us, 0) / 1e6,
            size_bytes=card.size_bytes,
        )
        try:
            lane = self._watched.get(card.lane) or _Watched(card.segment, card.lane)
            self._watched[card.lane] = lane
            _fill(figures, lane, now_us, owned=owned)
        except FileNotFoundError:
            figures.trouble = VANISHED
        except SegmentBlank as error:
            figures.trouble = f"{error}: somebody emptied it"
        except LaneError as error:
            figures.trouble = str(error)
        return figures

    def _writer(
        self, beat_us: int, figures: dict[str, Any], now_us: int, lanes: list[LaneFigures], *, is_held: bool
    ) -> WriterFigures:
        beat_age = max(now_us - beat_us, 0) / 1e6 if beat_us else None
        lag_s = max((lane.lag_s or 0.0 for lane in lanes), default=0.0)
        if is_held and (beat_age is None or not figures):
            state = "starting"
        elif is_held:
            state = str(figures["state"]) if beat_age is not None and beat_age < STALLED_SECONDS else "stalled"
        else:
            state = "absent" if beat_age is None else "stopped"
        rows = int(figures.get("rows", 0))
        now = now_us / 1e6
        if state != "running" or (self._rows is not None and rows < self._rows[1]):
            self._rows, self._rate = None, 0.0
        elif self._rows is None:
            self._rows = (now, rows)
        elif now - self._rows[0] >= 1.5:
            self._rate = (rows - self._rows[1]) / (now - self._rows[0])
            self._rows = (now, rows)
        return WriterFigures(state, beat_age, self._rate, lag_s, figures)

    def close(self) -> None:
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()


def _fill(figures: LaneFigures, lane: _Watched, now_us: int, *, owned: bool) -> None:
    state = lane.state
    if state != LaneState.OPEN:
        figures.owner = "left" if state == LaneState.CLOSED else "adopted"
    elif not owned:
        figures.owner = "dead"
    head, tail = lane.cursors()
    figures.capacity, figures.accepted, figures.confirmed = lane.capacity, head, tail
    figures.waiting = min(head - tail, lane.capacity)
    figures.fill = figures.waiting / lane.capacity
    figures.refused = {name: count for name, count in refusals_by_name(lane.refused).items() if count}
    refused = sum(figures.refused.values())
    if head:
        last = lane.timestamp_us(head - 1)
        figures.idle_s = None if last is None else max(now_us - last, 0) / 1e6
    if head > tail:
        oldest = lane.timestamp_us(tail)
        figures.lag_s = None if oldest is None else max(now_us - oldest, 0) / 1e6
    now = time.monotonic()
    if lane.counts is not None and now > lane.counts[0]:
        before, accepted, confirmed, refusals = lane.counts
        seconds = now - before
        figures.rate = (head - accepted) / seconds
        figures.confirm_rate = (tail - confirmed) / seconds
        figures.refuse_rate = (refused - refusals) / seconds
    lane.counts = (now, head, tail, refused)


def _status_of(board: Board | None) -> dict[str, Any]:
    status = board.read_status() if board is not None else b""
    try:
        return msgspec.json.decode(status, type=dict[str, Any]) if status else {}
    except msgspec.MsgspecError as error:
        raise SegmentRefused(f"board: got a status that is none ({error}), wanted JSON") from None


def spool_bytes(path: Path) -> int:
    """All files of the tables' spools together; 0 where there are none."""
    total = 0
    with contextlib.suppress(OSError):  # of a spool that this user may not look into
        for file in (path / "tables").glob("*/*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total


def disks(settings: Settings, server_dir: str = "") -> list[DiskFigures]:
    """The disks of spool and server (where that is set, or `server_dir`, which the writer found), and shared memory."""
    limits = Thresholds.of_disk(settings.disk_free_bytes_min)
    places = [("spool", str(settings.spool_path))]
    if settings.questdb_data_dir or server_dir:
        places.append(("server", settings.questdb_data_dir or server_dir))
    found = [_disk(what, path, limits) for what, path in places]
    if Path("/dev/shm").is_dir():  # noqa: S108 (asked for its free space only)
        found.append(_disk("shared memory", "/dev/shm", Thresholds(1 << 20, 1 << 20, 16 << 20)))  # noqa: S108
    return found


def memory_filesystem(path: Path) -> str:
    """The kind of the file system that `path` lies on, or will, if that is in memory; else an empty text."""
    import psutil

    place = Path(path).absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    place = place.resolve()
    try:
        mounts = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    except (OSError, psutil.Error):  # a container without /proc, say
        return ""
    for parent in (place, *place.parents):
        if kind := mounts.get(str(parent)):
            return kind if kind in MEMORY_FILESYSTEMS else ""
    return ""


def _disk(what: str, path: str, limits: Thresholds) -> DiskFigures:
    place = Path(path).absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent  # not made yet: it will be on this disk
    usage = shutil.disk_usage(place)
    return DiskFigures(what, path, usage.free, usage.total, limits.next(Level.OK, usage.free).name.lower())
