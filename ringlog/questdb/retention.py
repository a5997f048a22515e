"""Retention: whole days older than `retention_days` go, table by table, and an audit row stays of each.

Dropping a partition of a table stops the materialized views over it; a TTL does not. So a table with views, and a view
itself, is given a TTL that takes effect at once and is taken away again; any other table's partitions are dropped. The
TTL is not left set: it would follow the server's clock alone, and a clock that is wrong by days would cost data. Where
a run dies in between, the next one finds in the audit's plan what the TTL was.

What guards against wrong clocks: the cut comes from the server's clock, which must agree with this machine's; a cut
that reaches further than usual is held for a day, so that somebody can mend the clock; rows in the future move no cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import stamina

from ringlog.errors import ConfigurationError, RetentionRunning, RinglogError, ServerError
from ringlog.questdb import audit, taken
from ringlog.questdb.audit import AuditEntry
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import make_retention_tables
from ringlog.questdb.tables import KEYS, columns, quoted
from ringlog.records.declaration import IDENTIFIER
from ringlog.settings import Settings
from ringlog.transport import is_loopback

_logger = logging.getLogger(__name__)

OnCut = Callable[[str, int], None]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
CLOCK_DIFFERENCE_MAX_US = HOUR_US
# A daily run finds one day, after a missed night two. A cut that is further from the oldest day is held until HELD_US
# have passed: not the days that are stored count, a clock that is ahead would soon have all of a young table's.
DAYS_AT_ONCE = 2
HELD_US = 20 * HOUR_US
ATTEMPTS = 3
APPLY_TIMEOUT_S = 60.0
COUNTS_MAX = 3  # of one table in a run, while late records still come into the days that go
_POLL_S = 0.02
_OWN_TTL = "own TTL "  # begins the reason of a plan that needs one of ours for a moment

# What ringlog keeps by (timestamp, lane, seq), a table a record type, is subject to retention; the views over it are.
_TABLES = "SELECT table_name, ttlValue, ttlUnit, matView FROM tables() WHERE walEnabled AND partitionBy = 'DAY'"
_VIEWS = "SELECT view_name, base_table_name FROM materialized_views()"
_PARTITIONS = (
    "SELECT name, minTimestamp::long, numRows, diskSize FROM table_partitions('{}') "
    "WHERE attached AND minTimestamp IS NOT NULL"
)
_BEHIND = "SELECT suspended FROM wal_tables() WHERE name = %s AND writerTxn < sequencerTxn"


class Target(NamedTuple):
    """A table or view that retention cuts; `ttl` is its own TTL, put back afterwards ("0 HOUR": none)."""

    name: str
    is_view: bool
    has_views: bool
    ttl: str

    @property
    def needs_ttl(self) -> bool:
        """Whether dropping its partitions would stop views: then a TTL of a moment takes them away."""
        return self.is_view or self.has_views


class Partition(NamedTuple):
    """A partition, or the part of one that the server has split off: `day_us` is the day it belongs to."""

    name: str
    day_us: int
    rows: int
    bytes: int


class TableReport(msgspec.Struct, kw_only=True):
    """What a run did with one table, or with `planned` would do."""

    table: str
    outcome: str
    partitions: list[str] = []
    rows: int = 0
    bytes: int = 0
    reason: str = ""


class Report(msgspec.Struct, kw_only=True):
    """What a run did: `cut_us` in microseconds, disk space in bytes (None: the server's disk is elsewhere)."""

    run: int
    cut_us: int
    dry_run: bool
    tables: list[TableReport]
    disk_free_bytes_before: int | None = None
    disk_free_bytes_after: int | None = None

    @property
    def failed(self) -> bool:
        return any(table.outcome in (audit.FAILED, audit.REFUSED) for table in self.tables)


class Retention:
    """Cuts every table of ringlog to the last `retention_days` days; close it, or use it with `with`."""

    def __init__(self, settings: Settings) -> None:
        if settings.retention_days < 1:
            got = f"RINGLOG_RETENTION_DAYS: got {settings.retention_days}"
            raise ConfigurationError(f"{got}, wanted at least 1 (0 only has the writer keep all)")
        self._settings = settings
        self._connection = Connection.from_settings(settings)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Retention:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def executed_cut(self, table: str) -> int | None:
        """Microseconds since the epoch before which the table's records count as expired; None: no cut was made.

        Records older than it are not sent to the server, they would bring a partition back. One query (about 1 ms).
        """
        return audit.executed_cuts(self._connection).get(table)

    def executed_cuts(self) -> dict[str, int]:
        """`executed_cut` of all tables that have one, in one query."""
        return audit.executed_cuts(self._connection)

    def expiry_cuts(self) -> dict[str, int]:
        """Microseconds before which a record of each table has expired: sent, it would bring a partition back.

        That is the executed cut, but never one that is later than a run would make now by the earlier of the server's
        clock and this machine's: a run under a clock that was days ahead must not have good records dropped afterwards.
        """
        due_us = self._cut_us(min(self._now_us(), time.time_ns() // 1_000))
        return {table: min(cut_us, due_us) for table, cut_us in self.executed_cuts().items()}

    def tables(self) -> list[str]:
        """The tables that are subject to retention, without the views over them."""
        return [target.name for target in self._targets() if not target.is_view]

    def run(self, *, dry_run: bool = False, all_days: bool = False, on_cut: OnCut | None = None) -> Report:
        """Cuts all tables now; with `dry_run` nothing is changed. `all_days` cuts also what would be held.

        `on_cut(table, cut_us)` is called before a table is cut: who then sends no older record brings no day back.

        One table's failure is retried, reported and does not stop the others. Raises RetentionRunning,
        ServerUnavailable and ServerRefused.
        """
        with contextlib.ExitStack() as stack:
            if not dry_run:
                stack.enter_context(_only_run(self._settings))
                make_retention_tables(self._connection)
                self._resolve(self._targets())
            now_us, targets = self._now_us(), self._targets()
            report = Report(run=now_us, cut_us=self._cut_us(now_us), dry_run=dry_run, tables=[])
            report.disk_free_bytes_before = self._disk_free_bytes()
            difference = abs(now_us - time.time_ns() // 1_000)
            if difference > CLOCK_DIFFERENCE_MAX_US:
                reason = f"the server's clock and this machine's differ by {difference // 1_000_000} s: mend them first"
                report.tables = [TableReport(table=t.name, outcome=audit.REFUSED, reason=reason) for t in targets]
            else:
                report.tables = [self._table(target, report, all_days, on_cut) for target in targets]
            report.disk_free_bytes_after = self._disk_free_bytes()
            if not dry_run:
                self._write_summaries(report)
        for table in report.tables:
            level = logging.ERROR if table.outcome in (audit.FAILED, audit.REFUSED, audit.HELD) else logging.INFO
            _logger.log(
                level,
                "retention table=%s outcome=%s partitions=%d rows=%d bytes=%d dry_run=%s reason=%r",
                *(table.table, table.outcome, len(table.partitions), table.rows, table.bytes, dry_run, table.reason),
            )
        return report

    # One table

    def _table(self, target: Target, report: Report, all_days: bool, on_cut: OnCut | None) -> TableReport:
        try:
            planned: list[Partition] = []
            for attempt in stamina.retry_context(on=RinglogError, attempts=ATTEMPTS, wait_initial=0.2, wait_max=2.0):
                with attempt:
                    return self._cut(target, report, all_days, on_cut, planned)
        except RinglogError as error:
            return TableReport(table=target.name, outcome=audit.FAILED, reason=str(error))
        raise AssertionError("a retry context ends with a result or an error")

    def _cut(
        self, target: Target, report: Report, all_days: bool, on_cut: OnCut | None, planned: list[Partition]
    ) -> TableReport:
        """`planned`: what an earlier attempt wrote into the audit and may have removed; else this one's goes there."""
        there = self._partitions(target)
        due = planned or [partition for partition in there if partition.day_us < report.cut_us]
        found = TableReport(table=target.name, outcome=audit.PLANNED if report.dry_run else audit.EXECUTED)
        if reason := self._held(target, due, report, all_days) if due and not planned else "":
            found.outcome, found.reason = audit.HELD, reason
            return found
        if on_cut is not None and not report.dry_run:
            on_cut(target.name, report.cut_us)
        if not due:
            return found
        if report.dry_run:
            gone, kept = due, list[Partition]()
        else:
            if not planned:
                due = self._counted(target, due, report)
                self._audit(target, due, audit.PLANNED, report, _OWN_TTL + target.ttl if target.needs_ttl else None)
                self._wait_applied(audit.AUDIT_TABLE, "the plan")  # whoever misses the rows finds who took them
                planned += due
            # An attempt that failed may have dropped all, or have left its TTL.
            if target.needs_ttl or {partition.name for partition in there} & {partition.name for partition in due}:
                self._remove(target, report.cut_us, report.run)
            left = self._days_there(target, due, report)
            gone = [partition for partition in due if partition.day_us not in left]
            kept = [partition for partition in due if partition.day_us in left]
            self._audit(target, gone, audit.DROPPED, report)
            if kept:
                found.reason = "the newest row is too old for a TTL to act: the rest goes once a newer row is stored"
                self._audit(target, kept, audit.KEPT, report, found.reason)
        found.partitions = [partition.name for partition in gone]
        found.rows, found.bytes = sum(p.rows for p in gone), sum(p.bytes for p in gone)
        return found

    def _counted(self, target: Target, due: list[Partition], report: Report) -> list[Partition]:
        """The partitions that go, once the records in them are written down by lane; of views nothing is.

        Counted again while late records still come in. What comes after the last count goes uncounted, and an audit
        misses it: of a day that was to go, in the moment between count and cut.
        """
        if target.is_view:
            return due
        for _ in range(COUNTS_MAX):
            rows = sum(partition.rows for partition in due)
            found = taken.count(self._connection, target.name, report.cut_us)
            due = [partition for partition in self._partitions(target) if partition.day_us < report.cut_us]
            if sum(partition.rows for partition in due) == rows:
                break
        taken.write(self._connection, report.run, target.name, found)
        self._wait_applied(taken.LANES_TABLE, "the count by lane")
        return due

    def _days_there(self, target: Target, due: list[Partition], report: Report) -> set[int]:
        """Of the days that are due, those that did not go."""
        entries = [
            AuditEntry(run=report.run, table=target.name, outcome="", cut_us=0, partition=p.name, rows=p.rows)
            for p in due
        ]
        return {day for _, day in taken.days_there(taken.partition_rows(self._connection, target.name), entries)}

    def _held(self, target: Target, due: list[Partition], report: Report, all_days: bool) -> str:
        days = (report.cut_us - min(partition.day_us for partition in due)) // DAY_US
        if all_days or days <= DAYS_AT_ONCE:
            return ""
        since = audit.held_at(self._connection, target.name)
        if since is not None and report.run - since >= HELD_US:
            return ""
        return (
            f"the oldest day is {days} days before the cut, wanted at most {DAYS_AT_ONCE}: held for "
            f"{HELD_US // HOUR_US} hours in case a clock is wrong; `ringlog retention run --all-days` cuts now"
        )

    def _remove(self, target: Target, cut_us: int, now_us: int) -> None:
        name = quoted(target.name)
        if not target.needs_ttl:
            self._alter(target, f"ALTER TABLE {name} DROP PARTITION WHERE timestamp < cast({int(cut_us)} as timestamp)")
            return
        # A TTL is in whole partitions. The server counts it from the newest row or its own now, whichever is older.
        rows = self._connection.execute(f"SELECT max(timestamp)::long FROM {name}")  # noqa: S608 - a checked name
        days = (min(rows[0][0] or 0, now_us) - cut_us) // DAY_US
        if days < 1:
            return
        try:
            self._set_ttl(target, f"{days} DAY")
        finally:
            self._set_ttl(target, target.ttl)

    def _set_ttl(self, target: Target, ttl: str) -> None:
        kind = "MATERIALIZED VIEW" if target.is_view else "TABLE"
        self._alter(target, f"ALTER {kind} {quoted(target.name)} SET TTL {ttl}S")

    def _alter(self, target: Target, statement: str) -> None:
        """Runs the statement and returns once it is applied."""
        self._connection.execute(statement, timeout_s=APPLY_TIMEOUT_S)
        self._wait_applied(target.name, statement)

    def _wait_applied(self, table: str, what: str) -> None:
        deadline = time.monotonic() + APPLY_TIMEOUT_S
        while behind := self._connection.execute(_BEHIND, (table,)):
            if behind[0][0] or time.monotonic() > deadline:
                trouble = "a suspended table" if behind[0][0] else f"no end of it in {APPLY_TIMEOUT_S:.0f} s"
                raise ServerError(f"{table}: got {trouble}, wanted {what!r} applied")
            time.sleep(_POLL_S)

    # What the server has

    def _cut_us(self, now_us: int) -> int:
        return (now_us - self._settings.retention_days * DAY_US) // DAY_US * DAY_US

    def _now_us(self) -> int:
        now: int = self._connection.execute("SELECT now()::long")[0][0]
        return now

    def _targets(self) -> list[Target]:
        """Tables with the keys of a record first, then the views over them."""
        views = dict(self._connection.execute(_VIEWS))
        tables, over = [], []
        for name, ttl_value, ttl_unit, is_view in self._connection.execute(_TABLES):
            ttl = f"{int(ttl_value)} {ttl_unit}"
            if is_view and views.get(name):
                over.append(Target(name, True, False, ttl))
            elif IDENTIFIER.fullmatch(name) and self._has_keys(name):
                tables.append(Target(name, False, name in views.values(), ttl))
        kept = {target.name for target in tables}

        def is_over_kept(name: str) -> bool:
            base = views.get(name)
            return base is not None and (base in kept or is_over_kept(base))

        return sorted(tables) + sorted(view for view in over if is_over_kept(view.name))

    def _has_keys(self, name: str) -> bool:
        return {column.name for column in columns(self._connection, name) if column.is_key} == set(KEYS)

    def _partitions(self, target: Target) -> list[Partition]:
        quoted(target.name)  # checks it: a table function takes no parameters
        rows = self._connection.execute(_PARTITIONS.format(target.name))
        return [Partition(name, low // DAY_US * DAY_US, count, size) for name, low, count, size in rows]

    def _disk_free_bytes(self) -> int | None:
        if not is_loopback(client_conf(self._settings).host):
            return None
        # The only absolute path that the server tells: a folder below its root, made when first needed.
        rows = self._connection.execute("(SHOW PARAMETERS) WHERE property_path = 'cairo.sql.copy.work.root'")
        root = Path(rows[0][2] or "").parent if rows else Path()
        # It may be a path of a container, or another user's.
        return psutil.disk_usage(str(root)).free if root.is_absolute() and os.access(root, os.R_OK) else None

    # The audit table

    def _audit(
        self, target: Target, partitions: list[Partition], outcome: str, report: Report, reason: str | None = None
    ) -> None:
        common: dict[str, Any] = {"run": report.run, "table": target.name, "cut_us": report.cut_us, "reason": reason}
        audit.write(
            self._connection,
            [AuditEntry(outcome=outcome, partition=p.name, rows=p.rows, bytes=p.bytes, **common) for p in partitions],
        )

    def _write_summaries(self, report: Report) -> None:
        entries = [
            AuditEntry(
                run=report.run,
                table=table.table,
                outcome=table.outcome,
                cut_us=report.cut_us,
                rows=table.rows,
                bytes=table.bytes,
                reason=table.reason or None,
                disk_free_bytes_before=report.disk_free_bytes_before,
                disk_free_bytes_after=report.disk_free_bytes_after,
            )
            for table in report.tables
        ]
        audit.write(self._connection, entries)
        self._wait_applied(audit.AUDIT_TABLE, "the audit")  # who asks for the executed cuts now finds them

    def _resolve(self, targets: list[Target]) -> None:
        """Puts back the TTLs that an interrupted run had changed, and writes what became of what it had planned."""
        by_name = {target.name: target for target in targets}
        unresolved = audit.unresolved(self._connection)
        there = {
            table: taken.days_there(
                taken.partition_rows(self._connection, table), [entry for entry in unresolved if entry.table == table]
            )
            for table in {entry.table for entry in unresolved}
        }
        for entry in unresolved:
            target = by_name.get(entry.table)
            reason = entry.reason or ""
            own_ttl = reason.removeprefix(_OWN_TTL)
            if target is not None and reason.startswith(_OWN_TTL) and target.ttl != own_ttl:
                self._set_ttl(target, own_ttl)
                by_name[entry.table] = target._replace(ttl=own_ttl)
            is_there = (entry.run, taken.day_of(entry.partition or "")) in there[entry.table]
            outcome = audit.KEPT if is_there else audit.DROPPED
            reason = "found by a later run: the one that planned it was interrupted"
            audit.write(self._connection, [msgspec.structs.replace(entry, outcome=outcome, reason=reason)])


@contextlib.contextmanager
def _only_run(settings: Settings) -> Iterator[None]:
    """Holds the instance's retention lock; RetentionRunning where another process holds it."""
    path = Path(settings.runtime_dir) / "retention.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RetentionRunning(f"{path}: got a lock held by another run, wanted to be the only one") from None
        yield
    finally:
        os.close(descriptor)
