"""What `ringlog validate` and `ringlog doctor` find: each with the fix, nothing changed by looking."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringlog.disk import Directory, is_there
from ringlog.errors import ConfigurationError, LaneError, SpoolError, system_error
from ringlog.lanes.claims import cards, unfinished
from ringlog.lanes.instance import Instance, boot_id, check_private
from ringlog.lanes.segments import SHM, SegmentBlank
from ringlog.layout import Refused
from ringlog.ledger import Term, read_accounts
from ringlog.monitor.accounting import records
from ringlog.monitor.finding import Finding
from ringlog.monitor.flight_record import flight_record
from ringlog.monitor.snapshot import VANISHED, Observer, Snapshot, memory_filesystem
from ringlog.pressure import Thresholds
from ringlog.questdb.conf import client_conf
from ringlog.records import RecordLayout
from ringlog.ring import MISSING_C, advice, told
from ringlog.settings import Settings, redis_out_of_bounds
from ringlog.text import quoted
from ringlog.transport import is_encrypted

DESCRIPTORS_LEFT_MIN = 32  # fewer, and a writer may soon lack one for the spool or a socket


def validated(settings: Settings, layouts: Sequence[RecordLayout]) -> Iterator[Finding]:
    """Configuration and schema files: no server, no shared memory and no instance is needed or touched."""
    yield Finding("settings", "ok", "every RINGLOG_ variable is an option of the right type")
    for name, value, least in _limits(settings):
        if value < least:
            fix = f"set RINGLOG_{name.upper()} to {least} or more, or leave it out"
            yield Finding("settings", "fail", f"{name}: got {value}, wanted at least {least}", fix)
    for text in redis_out_of_bounds(settings):
        yield Finding("settings", "fail", text, "set what is wanted, or leave it out")
    if not 0 < settings.high_water_ratio <= 1:
        text = f"high_water_ratio: got {settings.high_water_ratio}, wanted above 0, at most 1"
        yield Finding("settings", "fail", text, "leave RINGLOG_HIGH_WATER_RATIO out for 0.5")
    yield from _secrets_kept(settings)
    try:
        yield Finding("questdb address", "ok", f"{client_conf(settings)!r}")
    except ConfigurationError as error:
        yield Finding("questdb address", "fail", str(error), "mend RINGLOG_QUESTDB_CLIENT_CONF or QDB_CLIENT_CONF")
    if layouts:
        from ringlog.questdb.migrations import script  # here, since the writer's start waits for no server's library
    for layout in layouts:
        made = script(layout.table)
        missing = [field.name for field in layout.fields if made and field.name not in made]
        if missing:
            yield Finding("schema", "fail", f"{layout.table}.sql lacks {', '.join(missing)}", "install ringlog again")
    yield Finding("schema", "ok", f"{len(layouts)} record types compile to slots and tables")


def _secrets_kept(settings: Settings) -> Iterator[Finding]:
    """A command that can be run, and passwords that travel in the clear nowhere."""
    try:
        shlex.split(settings.alert_command.reveal())
    except ValueError:
        text = "RINGLOG_ALERT_COMMAND: got an open quote, wanted words quoted as in a shell"
        yield Finding("settings", "fail", text, "close the quote")
    for server, fix in (("postgres", "mend RINGLOG_POSTGRES_TLS*"), ("redis", "mend RINGLOG_REDIS_TLS*")):
        try:
            is_encrypted(settings, server)  # type: ignore[arg-type]
        except ConfigurationError as error:
            yield Finding("settings", "fail", str(error), fix)


def _limits(settings: Settings) -> list[tuple[str, int, int]]:
    names = ("drain_interval_ms", "batch_rows_max", "request_timeout_ms", "confirm_timeout_ms", "query_pool_size_min")
    return [
        *((name, getattr(settings, name), 1) for name in names),
        ("lane_bytes_max", settings.lane_bytes_max, 1 << 20),
        ("spool_bytes_max", settings.spool_bytes_max, 1 << 20),
        ("query_pool_size_max", settings.query_pool_size_max, settings.query_pool_size_min),
        ("retention_days", settings.retention_days, 0),
    ]


def diagnosed(settings: Settings, layouts: Sequence[RecordLayout], environ: Collection[str]) -> Iterator[Finding]:
    """The whole live system: what `validated` finds, then directories, shared memory, lanes, servers, tables."""
    from ringlog.monitor.databases import servers

    yield from validated(settings, layouts)
    yield Finding("ring", "warn" if MISSING_C else "ok", f"{told()} in this interpreter", advice())
    yield from _directories(settings)
    yield from _looked_at("shared memory", _shared_memory(settings))
    try:
        boot_id()
    except LaneError as error:
        fix = "mount /proc without subset=pid: no producer, writer or audit works without it"
        yield Finding("boot", "fail", str(error), fix)
    else:
        try:
            yield from _looked_at("lanes", _instance(settings))
        except LaneError as error:
            yield Finding("board", "fail", str(error), "stop producers and writer, and remove the board's segment")
        yield from _looked_at("records", records(settings))
    yield from servers(settings, layouts, environ)


def _looked_at(check: str, found: Iterator[Finding]) -> Iterator[Finding]:
    """What a check finds; where a system call ends it, that is a finding, and the other checks go on."""
    try:
        yield from found
    except OSError as error:
        fix = "see that this user can read it, and that the limit of open files (ulimit -n) is not reached"
        yield Finding(check, "fail", f"cannot be looked at: {system_error(error)}", fix)


def _directories(settings: Settings) -> Iterator[Finding]:
    for path in (Path(settings.runtime_dir), settings.spool_path):
        try:
            if not is_there(path):
                yield Finding("directories", "warn", f"{path}: not there yet", "the first producer or writer makes it")
                continue
            check_private(path)
            yield Finding("directories", "ok", f"{path}: this user's own, 0700")
        except (LaneError, SpoolError) as error:
            yield Finding("directories", "fail", str(error), f"chmod 700 {quoted(path)}, as the user that runs ringlog")


def _shared_memory(settings: Settings) -> Iterator[Finding]:
    path = SHM
    if not path.is_dir():
        if sys.platform != "darwin":
            yield Finding("shared memory", "fail", f"{path}: is not there", f"mount -t tmpfs -o mode=1777 tmpfs {path}")
        return
    if os.statvfs(path).f_flag & os.ST_RDONLY or not os.access(path, os.W_OK | os.X_OK):
        text = f"{path}: is read-only for uid {os.geteuid()}, so no lane and no board can be made"
        yield Finding("shared memory", "fail", text, f"mount -o remount,rw {path}; chmod 1777 {path}")
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
        yield Finding("writer", "ok", f"running, last tick {writer.beat_age_s or 0.0:.1f} s ago")
        yield from _means(writer.figures)
    elif writer.state == "starting":
        yield Finding("writer", "warn", "starting: lanes that fill up go to the spool", "wait: it takes some seconds")
    else:
        holder = Instance(settings).lease_path
        fix = f"start `ringlog writer` under a supervisor (who holds the lease is in {quoted(holder)})"
        yield Finding("writer", "fail", f"{writer.state}: lanes are not drained", fix)
    if stalled := writer.figures.get("stalled"):
        fix = "see the server's finding below: records wait in lanes and spool until it takes them"
        yield Finding("writer", "fail", f"nothing delivered, {snapshot.waiting} records wait in lanes: {stalled}", fix)
    if not snapshot.accepting:
        fix = "free the disk or memory that it names: accepting resumes by itself"
        yield Finding("board", "fail", f"producers are refused: {snapshot.reason}", fix)
    yield from _lanes(snapshot)
    yield from _vanished(settings, {lane.lane for lane in snapshot.lanes if lane.trouble == VANISHED})
    yield from _orphans(settings)
    yield Finding("lanes", "ok", f"{len(snapshot.lanes)} lanes, {snapshot.waiting} records waiting")
    limits = Thresholds.of_disk(settings.disk_free_bytes_min)
    for disk in snapshot.disks:
        text = f"{disk.what} at {disk.path}: {disk.free_bytes} bytes free"
        fix = "" if disk.level == "ok" else f"free space: producers are refused below {limits.refuse_below_bytes}"
        yield Finding("disks", {"refuse": "fail"}.get(disk.level, disk.level), text, fix)
    if kind := memory_filesystem(settings.spool_path):
        text = f"spool at {settings.spool_path}: its file system is {kind}: a reboot takes what waits in it"
        yield Finding("disks", "warn", text, "set RINGLOG_SPOOL_DIR to a directory on disk")


# Not `closed`, which is what a caller wanted. The README has what an executor does.
_AFTER_REFUSING = {
    Refused.FULL: "raise RINGLOG_LANE_BYTES_MAX, or see why the writer was behind",
    Refused.BOARD: "see the board's and the disks' findings: accepting resumes by itself",
    Refused.BUDGET: "use fewer producers, or raise RINGLOG_LANE_BYTES_MAX",
    Refused.REENTRANT: "append elsewhere than in a signal handler or `__del__`, or claim lanes with `open()`",
    Refused.CLOCK: "set this machine's clock: accepting resumes by itself",
    Refused.INVALID: "fix the caller: its log says which field got what",
    Refused.CLAIM_BUSY: "claim lanes with `open()` before the first append; is another process of this user stopped?",
    Refused.DESCRIPTORS: "raise the producer's limit (ulimit -n): a lane costs its producer a descriptor",
    Refused.SHARED_MEMORY: "enlarge /dev/shm, or the limit on the producer's address space",
    Refused.UNUSABLE: "see the producer's log, which names the directory or file, and why",
}


def _lanes(snapshot: Snapshot) -> Iterator[Finding]:
    for lane in snapshot.lanes:
        name = f"lane {lane.lane} of {lane.record}, pid {lane.pid}"
        if lane.trouble == VANISHED:
            yield Finding("lanes", "fail", f"{name}: vanished: {VANISHED}, and its records with it", _AFTER_VANISHING)
        elif lane.trouble:
            yield Finding("lanes", "fail", f"{name}: {lane.trouble}", "run the writer of the version that made it")
        elif lane.owner in ("dead", "adopted") and snapshot.writer.state not in ("starting", "running"):
            fix = "start `ringlog writer`: it drains and removes the lane"
            yield Finding("lanes", "fail", f"{name}: {lane.owner}, {lane.waiting} records wait in it", fix)
        for reason, fix in _AFTER_REFUSING.items():
            if count := lane.refused.get(reason.name.lower()):
                text = f"{name}: refused {count} appends so far as {reason.name.lower()}"
                yield Finding("lanes", "warn", text, fix)


def _owner(path: Path) -> str:
    """The user that a file belongs to, where that is another one; empty where it is gone meanwhile."""
    with contextlib.suppress(OSError):
        uid = path.lstat().st_uid
        return f"uid {uid}" if uid != os.geteuid() else ""
    return ""


def _means(figures: Mapping[str, Any]) -> Iterator[Finding]:
    """What a running writer lacks: it says so itself."""
    fix = "raise the writer's limits (ulimit -n; LimitNOFILE= of systemd, minfds of supervisord): it goes on by itself"
    for lane, text in figures.get("unattached", {}).items():
        yield Finding("lanes", "fail", f"lane {lane}: the writer cannot read it, its records wait: {text}", fix)
    left = figures.get("descriptors_left")
    if left is not None and left < DESCRIPTORS_LEFT_MIN:
        yield Finding("descriptors", "warn", f"the writer may open {left} more files, sockets among them", fix)


_AFTER_VANISHING = (
    "see `ringlog audit` for how many are missing; find out who removes files of /dev/shm (a cleaner, a container "
    "with another /dev/shm), and send them again from their source"
)


def _vanished(settings: Settings, named: Container[str]) -> Iterator[Finding]:
    """Lanes that vanished and no longer have a card, as the ledger knows them; `named` were found by their cards."""
    try:
        if not is_there(settings.spool_path):
            return
        directory = Directory.open(settings.spool_path)
    except SpoolError:
        return  # `records` says so
    try:
        accounts = read_accounts(directory, boot_id())
    except SpoolError:
        return
    finally:
        directory.close()
    for lane, account in accounts.lanes.items():
        if account.is_vanished and f"{lane:016x}" not in named:
            rows = sum(end - start for start, end in account.sets.get(Term.VANISHED, ()))
            text = f"lane {lane:016x} of {account.table}: vanished: {VANISHED}; at least {rows} records went with it"
            yield Finding("lanes", "fail", text, _AFTER_VANISHING)


def _orphans(settings: Settings) -> Iterator[Finding]:
    """Segments of this instance that no card leads to: its runtime directory was cleared, say. On Linux alone."""
    instance = Instance(settings)
    directory = Path("/dev/shm")  # noqa: S108 (listed only)
    prefix = instance.board_name.removesuffix("board")
    # Segments first: a claim has a file before its segment, so one that is seen has a file by then.
    names = sorted(path.name for path in directory.glob(f"{prefix}*") if path.name != instance.board_name)
    claimed = [lane for lane in unfinished(instance) if instance.claim_path(lane).exists()]
    known = {card.segment for card in cards(instance)} | {instance.segment_name(lane) for lane in claimed}
    for name in sorted(set(names) - known):
        remove = f"rm {quoted(directory / name)}"
        if other := _owner(directory / name):  # it is nobody's to remove but that user's, and anything may be in it
            fix = "ask that user what it is for; ringlog takes nothing from it"
            yield Finding("orphans", "warn", f"segment {name!r} belongs to {other}, not to this user", fix)
            continue
        try:
            found = flight_record(name, instance, 0)
        except SegmentBlank:
            yield Finding(
                "orphans", "warn", f"segment {name}: a claim that was never complete, nothing is in it", remove
            )
        except LaneError as error:
            if (directory / name).exists():  # else its lane was removed meanwhile, as every lane is in the end
                yield Finding("orphans", "fail", f"segment {name} has no card: {error}", f"look at it, then {remove}")
        else:
            text = f"segment {name} of {found.table}, pid {found.owner_pid}, has no card: nobody drains it, "
            fix = (
                f"`ringlog dump {quoted(name)} --json` shows them; append them again, then {remove}"
                if found.waiting
                else remove
            )
            level = "fail" if found.waiting else "warn"
            yield Finding("orphans", level, f"{text}{found.waiting} unconfirmed records are in it", fix)
