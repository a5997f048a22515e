"""What `ringlog validate` and `ringlog doctor` find: each with the fix, nothing changed by looking."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ringlog.errors import ConfigurationError, LaneError, QueryError, RinglogError
from ringlog.lanes.instance import Instance, check_private
from ringlog.monitor.probes import probed, targets
from ringlog.monitor.snapshot import Observer
from ringlog.pressure import Thresholds
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate, script
from ringlog.questdb.tables import creates_by_itself, statuses
from ringlog.records import RecordLayout
from ringlog.settings import Settings

CLOCK_SECONDS_MAX = 1.0


class Finding(msgspec.Struct):
    """One thing that was looked at. `level`: `ok`, `warn` (nothing is lost yet) or `fail`; `fix` says what to do."""

    check: str
    level: str
    text: str
    fix: str = ""


def validated(settings: Settings, layouts: Sequence[RecordLayout]) -> Iterator[Finding]:
    """Configuration and schema files: no server, no shared memory and no instance is needed or touched."""
    yield Finding("settings", "ok", "every RINGLOG_ variable is an option of the right type")
    for name, value, least in _limits(settings):
        if value < least:
            fix = f"set RINGLOG_{name.upper()} to {least} or more, or leave it out"
            yield Finding("settings", "fail", f"{name}: got {value}, wanted at least {least}", fix)
    if not 0 < settings.high_water_ratio <= 1:
        text = f"high_water_ratio: got {settings.high_water_ratio}, wanted above 0, at most 1"
        yield Finding("settings", "fail", text, "leave RINGLOG_HIGH_WATER_RATIO out for 0.5")
    try:
        yield Finding("questdb address", "ok", f"{client_conf(settings)!r}")
    except ConfigurationError as error:
        yield Finding("questdb address", "fail", str(error), "mend RINGLOG_QUESTDB_CLIENT_CONF or QDB_CLIENT_CONF")
    for layout in layouts:
        made = script(layout.table)
        missing = [field.name for field in layout.fields if made and field.name not in made]
        if missing:
            yield Finding("schema", "fail", f"{layout.table}.sql lacks {', '.join(missing)}", "install ringlog again")
    yield Finding("schema", "ok", f"{len(layouts)} record types compile to slots and tables")


def _limits(settings: Settings) -> list[tuple[str, int, int]]:
    names = ("drain_interval_ms", "batch_rows_max", "request_timeout_ms", "confirm_timeout_ms", "query_pool_size_min")
    return [
        *((name, getattr(settings, name), 1) for name in names),
        ("lane_bytes_max", settings.lane_bytes_max, 1 << 20),
        ("spool_bytes_max", settings.spool_bytes_max, 1 << 20),
        ("query_pool_size_max", settings.query_pool_size_max, settings.query_pool_size_min),
        ("retention_days", settings.retention_days, 0),
    ]


def diagnosed(settings: Settings, layouts: Sequence[RecordLayout], environ: Mapping[str, str]) -> Iterator[Finding]:
    """The whole live system: what `validated` finds, then directories, shared memory, lanes, servers, tables."""
    yield from validated(settings, layouts)
    yield from _directories(settings)
    yield from _shared_memory(settings)
    try:
        yield from _instance(settings)
    except LaneError as error:
        yield Finding("board", "fail", str(error), "stop producers and writer, and remove the board's segment")
    for server in probed(targets(settings, environ)):
        if server.answers:
            yield Finding(server.name, "ok", f"{server.address} answers in {server.answer_ms:.1f} ms")
        else:
            fix = f"start {server.name}, or mend RINGLOG_{server.name.upper()}_HOST and its port"
            yield Finding(server.name, "fail", f"{server.address}: {server.trouble}", fix)
    connection = Connection.from_settings(settings)
    try:
        yield from _questdb(settings, layouts, connection)
    except (RinglogError, QueryError) as error:
        yield Finding("questdb", "fail", str(error), "look at the server's log, its version, and RINGLOG_QUESTDB_USER")
    finally:
        connection.close()


def _directories(settings: Settings) -> Iterator[Finding]:
    for path in (Path(settings.runtime_dir), settings.spool_path):
        if not path.exists():
            yield Finding("directories", "warn", f"{path}: not there yet", "the first producer or writer makes it")
            continue
        try:
            check_private(path)
            yield Finding("directories", "ok", f"{path}: this user's own, 0700")
        except LaneError as error:
            yield Finding("directories", "fail", str(error), f"chmod 700 {path}, as the user that runs ringlog")


def _shared_memory(settings: Settings) -> Iterator[Finding]:
    path = Path("/dev/shm")  # noqa: S108 (asked for its size only)
    if not path.is_dir():
        return
    usage, mode = shutil.disk_usage(path), stat.S_IMODE(path.stat().st_mode)
    text = (
        f"{path}: {usage.total} bytes, {usage.free} free, mode {mode:04o}, lanes take up to {settings.lane_bytes_max}"
    )
    is_small = usage.total < settings.lane_bytes_max
    fix = (
        f"mount -o remount,size={2 * settings.lane_bytes_max} {path} (Docker: shm_size) or lower RINGLOG_LANE_BYTES_MAX"
    )
    yield Finding("shared memory", "fail" if is_small else "ok", text, fix if is_small else "")
    if mode & 0o3 and not mode & stat.S_ISVTX:
        yield Finding("shared memory", "fail", f"{path}: others can unlink segments", f"chmod 1777 {path}")


def _instance(settings: Settings) -> Iterator[Finding]:
    observer = Observer(settings)
    try:
        snapshot = observer.look()
    finally:
        observer.close()
    writer = snapshot.writer
    if writer.state == "running":
        yield Finding("writer", "ok", f"running, last tick {writer.beat_age_s:.1f} s ago")
    else:
        holder = Instance(settings).lease_path
        fix = f"start `ringlog writer` under a supervisor (who holds the lease is in {holder})"
        yield Finding("writer", "fail", f"{writer.state}: lanes are not drained", fix)
    if not snapshot.accepting:
        fix = "free the disk or memory that it names: accepting resumes by itself"
        yield Finding("board", "fail", f"producers are refused: {snapshot.reason}", fix)
    for lane in snapshot.lanes:
        name = f"lane {lane.lane} of {lane.record}, pid {lane.pid}"
        if lane.trouble:
            yield Finding("lanes", "fail", f"{name}: {lane.trouble}", "run the writer of the version that made it")
        elif lane.owner in ("dead", "adopted") and writer.state != "running":
            fix = "start `ringlog writer`: it drains and removes the lane"
            yield Finding("lanes", "fail", f"{name}: {lane.owner}, {lane.waiting} records wait in it", fix)
        elif lane.refused.get("full"):
            fix = "raise RINGLOG_LANE_BYTES_MAX, or see why the writer was behind"
            yield Finding("lanes", "warn", f"{name}: refused {lane.refused['full']} appends, being full", fix)
    yield Finding("lanes", "ok", f"{len(snapshot.lanes)} lanes, {snapshot.waiting} records waiting")
    limits = Thresholds.of_disk(settings.disk_free_bytes_min)
    for disk in snapshot.disks:
        text = f"{disk.what} at {disk.path}: {disk.free_bytes} bytes free"
        fix = "" if disk.level == "ok" else f"free space: producers are refused below {limits.refuse_below_bytes}"
        yield Finding("disks", {"refuse": "fail"}.get(disk.level, disk.level), text, fix)


def _questdb(settings: Settings, layouts: Sequence[RecordLayout], connection: Connection) -> Iterator[Finding]:
    before = time.time()
    server_us = connection.execute("select cast(systimestamp() as long)")[0][0]
    apart = server_us / 1e6 - (before + time.time()) / 2
    wrong = abs(apart) > CLOCK_SECONDS_MAX
    fix = "synchronise both clocks (chrony, systemd-timesyncd): timestamps decide what retention keeps" if wrong else ""
    yield Finding("clocks", "fail" if wrong else "ok", f"QuestDB's clock is {apart:+.2f} s from this machine's", fix)
    if creates_by_itself(connection):
        fix = "set line.auto.create.new.tables and line.auto.create.new.columns to false"
        yield Finding("questdb", "warn", "a write to a dropped table would make one without DEDUP", fix)
    for status in statuses(connection).values():
        if status.is_suspended:
            fix = f"free the server's disk, then ALTER TABLE {status.table} RESUME WAL (never from a later transaction)"
            yield Finding("tables", "fail", f"{status.table}: suspended", fix)
    for found in migrate(settings, layouts, check=True):
        if found.problem:
            yield Finding(
                "tables", "fail", found.problem, "mend the table by hand: `ringlog migrate` must not touch it"
            )
        elif found.statements:
            yield Finding("tables", "fail", f"{found.name}: not as wanted", "run `ringlog migrate`")
        else:
            yield Finding("tables", "ok", f"{found.name}: columns and DEDUP keys as wanted")
