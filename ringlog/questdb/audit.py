"""The audit table of retention: what went, when, and which late records count as expired since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ringlog.errors import QueryError
from ringlog.questdb.connection import Connection

AUDIT_TABLE = "retention_audit"

# Of a partition
PLANNED, DROPPED, KEPT = "planned", "dropped", "kept"
# Of a whole table
EXECUTED, FAILED, HELD, REFUSED = "executed", "failed", "held", "refused"

_INSERT = (
    "INSERT INTO retention_audit (timestamp, run, table_name, partition_name, outcome, cut, rows, bytes, reason, "
    "disk_free_bytes_before, disk_free_bytes_after) "
    "VALUES (now(), %s, %s, %s, %s, cast(%s as timestamp), %s, %s, %s, %s, %s)"
)


class AuditEntry(msgspec.Struct, kw_only=True, frozen=True):
    """A row of the audit table: of one partition, or (partition None) of a whole table."""

    run: int
    table: str
    outcome: str
    cut_us: int
    partition: str | None = None
    rows: int = 0
    bytes: int = 0
    reason: str | None = None
    disk_free_bytes_before: int | None = None
    disk_free_bytes_after: int | None = None


def write(connection: Connection, entries: Sequence[AuditEntry]) -> None:
    for entry in entries:
        connection.execute(
            _INSERT,
            (
                entry.run,
                entry.table,
                entry.partition,
                entry.outcome,
                entry.cut_us,
                entry.rows,
                entry.bytes,
                entry.reason,
                entry.disk_free_bytes_before,
                entry.disk_free_bytes_after,
            ),
        )


def executed_cuts(connection: Connection) -> dict[str, int]:
    """Microseconds of the last executed cut of each table: records older than it count as expired.

    A table without one is left out. Raises ServerUnavailable, ServerRefused.
    """
    rows = asked(
        connection,
        "SELECT table_name, max(cut)::long FROM retention_audit WHERE outcome = %s AND partition_name IS NULL",
        (EXECUTED,),
    )
    return {table: cut for table, cut in rows if cut is not None}


def dropped(connection: Connection, table: str) -> list[tuple[int, str]]:
    """Run and name of every partition that retention took from a table."""
    sql = (
        "SELECT run, partition_name FROM retention_audit "
        "WHERE table_name = %s AND outcome = %s AND partition_name IS NOT NULL"
    )
    return [(run, name) for run, name in asked(connection, sql, (table, DROPPED))]


def held_at(connection: Connection, table: str) -> int | None:
    """When (microseconds, the server's clock) the table was first held since it was last executed; None if not.

    What a run wrote under a clock that was ahead does not count until then.
    """
    rows = asked(
        connection,
        "SELECT outcome, timestamp::long FROM retention_audit WHERE table_name = %s AND partition_name IS NULL "
        "AND timestamp <= now() ORDER BY timestamp DESC LIMIT 1000",
        (table,),
    )
    first = None
    for outcome, at in rows:
        if outcome == EXECUTED:
            break
        if outcome == HELD:
            first = at
    return first


def last_run_us(connection: Connection) -> int | None:
    """When (microseconds, the server's clock) retention last came to an end for any table, whatever the outcome.

    What a run wrote under a clock that was ahead does not count: it would keep the next one from running until then.
    """
    rows = asked(
        connection,
        "SELECT max(timestamp)::long FROM retention_audit WHERE partition_name IS NULL AND timestamp <= now()",
        (),
    )
    latest: int | None = rows[0][0] if rows else None
    return latest


def unresolved(connection: Connection) -> list[AuditEntry]:
    """Partitions that were planned by a run that ended before it could say what became of them."""
    rows = asked(
        connection,
        "SELECT run, table_name, partition_name, outcome, cut::long, rows, bytes, reason FROM retention_audit "
        "WHERE partition_name IS NOT NULL",
        (),
    )
    planned: dict[tuple[int, str, str], AuditEntry] = {}
    resolved = set()
    for run, table, partition, outcome, cut, count, size, reason in rows:
        if outcome == PLANNED:
            planned[run, table, partition] = AuditEntry(
                run=run,
                table=table,
                outcome=PLANNED,
                cut_us=cut,
                partition=partition,
                rows=count,
                bytes=size,
                reason=reason,
            )
        else:
            resolved.add((run, table, partition))
    return [entry for key, entry in planned.items() if key not in resolved]


def asked(connection: Connection, sql: str, parameters: Sequence[object]) -> list[Any]:
    """The rows of a question about retention; none where its tables do not exist yet."""
    try:
        return connection.execute(sql, parameters)
    except QueryError as error:
        if "table does not exist" in str(error):
            return []
        raise
