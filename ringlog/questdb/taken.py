"""Which records retention took: counted by lane before a day goes, so that no other loss can hide behind it."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ringlog.questdb import audit
from ringlog.questdb.audit import AuditEntry
from ringlog.questdb.connection import Connection
from ringlog.questdb.tables import quoted
from ringlog.questdb.windows import QUERY_TIMEOUT_SECONDS, windows
from ringlog.spans import SeqSet

LANES_TABLE = "retention_lanes"
DAY_US = 86_400_000_000
# A lane whose records were appended out of order has holes on each day. So many ranges are kept of a lane and day, and
# so many pieces of lanes are looked at seq by seq in a run; what is beyond that is counted within wider ranges.
RANGES_MAX = 1_000
EXACT_PARTS_MAX = 10_000
PART_SEQS = 65_536
_ROWS_AN_INSERT = 500
_LANES_A_QUERY = 1_000
_EPOCH = datetime.datetime(1970, 1, 1)  # partitions are named in UTC

_PARTS = (
    "SELECT timestamp_floor('d', timestamp)::long AS day, lane, seq / {part} AS part, count_distinct(seq), min(seq), "
    "max(seq) FROM {table} WHERE timestamp >= cast({first} AS timestamp) AND timestamp <= cast({last} AS timestamp)"
)
_SEQS = (
    "SELECT DISTINCT seq FROM {table} WHERE lane = {lane} AND seq >= {start} AND seq <= {end} "
    "AND timestamp >= cast({first} AS timestamp) AND timestamp <= cast({last} AS timestamp)"
)
_PARTITION_ROWS = "SELECT name, numRows FROM table_partitions('{}') WHERE attached"


class LaneRange(NamedTuple):
    """`rows` records of a lane from `first_seq` to `last_seq`, both included: all of these, if there are no more."""

    lane: int
    first_seq: int
    last_seq: int
    rows: int

    @property
    def is_exact(self) -> bool:
        return self.rows == self.last_seq - self.first_seq + 1


class TakenRange(NamedTuple):
    """What retention took of a lane on one day."""

    day_us: int
    range: LaneRange


def day_of(partition: str) -> int:
    """Microseconds at which the day begins that a partition, or a part split off from one, belongs to."""
    day = datetime.datetime.strptime(partition[:10], "%Y-%m-%d")  # partitions are named in UTC
    return int((day - _EPOCH).total_seconds()) * 1_000_000


def count(connection: Connection, table: str, cut_us: int) -> list[TakenRange]:
    """The records that a table holds before `cut_us`, by day and lane.

    Raises QueryError, ServerUnavailable, ServerRefused.
    """
    found: dict[tuple[int, int], list[LaneRange]] = {}
    exact_parts = 0
    for first, last in windows(connection, table, before_us=cut_us):
        sql = _PARTS.format(part=PART_SEQS, table=quoted(table), first=first, last=last)
        for day, lane, part, rows, low, high in connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS):
            if lane is None or part is None:
                continue  # a row that no writer of ringlog wrote
            ranges = [LaneRange(lane, low, high, rows)]
            if not ranges[0].is_exact and exact_parts < EXACT_PARTS_MAX:
                exact_parts += 1
                bounds = {"first": max(first, day), "last": min(last, day + DAY_US - 1), "start": low, "end": high}
                sql = _SEQS.format(table=quoted(table), lane=lane, **bounds)
                seqs = SeqSet()
                for (seq,) in connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS):
                    seqs.add(seq, seq + 1)
                ranges = [LaneRange(lane, start, end - 1, end - start) for start, end in seqs]
            found.setdefault((day, lane), []).extend(ranges)
    return [TakenRange(day, each) for (day, _), ranges in sorted(found.items()) for each in _few(ranges)]


def _few(ranges: Iterable[LaneRange]) -> list[LaneRange]:
    """A lane's ranges of one day, joined where they touch or overlap, then over the smallest gaps to RANGES_MAX."""
    joined: list[LaneRange] = []
    for each in sorted(ranges):
        before = joined[-1] if joined else None
        both_exact = before is not None and before.is_exact and each.is_exact
        if before is not None and each.first_seq <= before.last_seq + (1 if both_exact else 0):
            joined[-1] = _over(before, each)
        else:
            joined.append(each)
    if len(joined) <= RANGES_MAX:
        return joined
    gaps = sorted(range(1, len(joined)), key=lambda at: joined[at - 1].last_seq - joined[at].first_seq)
    starts = sorted([0, *gaps[: RANGES_MAX - 1], len(joined)])
    few = []
    for start, end in itertools.pairwise(starts):
        part = joined[start:end]
        few.append(LaneRange(part[0].lane, part[0].first_seq, part[-1].last_seq, sum(each.rows for each in part)))
    return few


def _over(one: LaneRange, other: LaneRange) -> LaneRange:
    last = max(one.last_seq, other.last_seq)
    return LaneRange(one.lane, one.first_seq, last, min(one.rows + other.rows, last - one.first_seq + 1))


def write(connection: Connection, run: int, table: str, taken: Iterable[TakenRange]) -> None:
    """Writes down what a run is about to take; the same run may write it again."""
    rows = [
        f"(cast({run} as timestamp), '{quoted(table)[1:-1]}', cast({day} as timestamp), "
        f"{each.lane}, {each.first_seq}, {each.last_seq}, {each.rows})"
        for day, each in taken
    ]
    names = 'timestamp, table_name, day, lane, first_seq, last_seq, "rows"'
    for first in range(0, len(rows), _ROWS_AN_INSERT):
        values = ", ".join(rows[first : first + _ROWS_AN_INSERT])
        connection.execute(f"INSERT INTO {LANES_TABLE} ({names}) VALUES {values}")  # noqa: S608 - numbers, and a name


def taken(connection: Connection, table: str, lanes: Collection[int]) -> list[TakenRange]:
    """What retention took of these lanes of a table, by the runs that dropped the day they had counted.

    A day that a run planned, and did not live to say what became of, counts where it is gone. Of what two runs counted
    for the same day the larger counts, once. Raises ServerUnavailable, ServerRefused, QueryError.
    """
    found: dict[tuple[int, int, int, int], TakenRange] = {}
    dropped = _dropped_days(connection, table) if lanes else set()
    ordered = sorted(lanes)
    for first in range(0, len(ordered) if dropped else 0, _LANES_A_QUERY):
        some = ", ".join(map(str, ordered[first : first + _LANES_A_QUERY]))
        rows = audit.asked(
            connection,
            "SELECT timestamp::long, day::long, lane, first_seq, last_seq, rows "  # noqa: S608 - numbers
            f"FROM {LANES_TABLE} WHERE table_name = %s AND lane IN ({some})",
            (table,),
        )
        for run, day, lane, low, high, count_ in rows:
            if (run, day) in dropped:
                known = found.get((day, lane, low, high))
                if known is None or known.range.rows < count_:
                    found[day, lane, low, high] = TakenRange(day, LaneRange(lane, low, high, count_))
    return list(found.values())


def _dropped_days(connection: Connection, table: str) -> set[tuple[int, int]]:
    """(run, day) of what went."""
    dropped = {(run, day_of(partition)) for run, partition in audit.dropped(connection, table)}
    unresolved = [entry for entry in audit.unresolved(connection) if entry.table == table]
    if unresolved:
        there = days_there(partition_rows(connection, table), unresolved)
        for entry in unresolved:
            day = day_of(entry.partition or "")
            if (entry.run, day) not in there:
                dropped.add((entry.run, day))
    return dropped


def partition_rows(connection: Connection, table: str) -> dict[int, int]:
    """How many rows each day of a table has; none where there is no such table."""
    rows: dict[int, int] = {}
    for name, count_ in audit.asked(connection, _PARTITION_ROWS.format(quoted(table)[1:-1]), ()):
        rows[day_of(name)] = rows.get(day_of(name), 0) + count_
    return rows


def days_there(rows: Mapping[int, int], planned: Iterable[AuditEntry]) -> set[tuple[int, int]]:
    """(run, day) of planned days that are still there: with no fewer rows than were planned to go.

    A day that went comes back with fewer: by a late record that was on its way when it went.
    """
    wanted: dict[tuple[int, int], int] = {}
    for entry in planned:
        key = entry.run, day_of(entry.partition or "")
        wanted[key] = wanted.get(key, 0) + entry.rows
    return {(run, day) for (run, day), count_ in wanted.items() if rows.get(day, 0) >= max(count_, 1)}
