"""Which records of a table QuestDB has: exact ranges of seq by lane, in queries that stay small however large it is."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ringlog.questdb.connection import Connection
from ringlog.questdb.tables import quoted
from ringlog.questdb.windows import QUERY_TIMEOUT_SECONDS, ROWS_MAX, windows
from ringlog.spans import SeqSet

# Numbers are compared part by part: a part without a hole is proved by its bounds and its count alone.
PART_SEQS = 65_536

_PARTS = (
    "SELECT lane, seq / {part} AS part, count(), count_distinct(seq), min(seq), max(seq) FROM {table} "
    "WHERE timestamp >= cast({first} AS timestamp) AND timestamp <= cast({last} AS timestamp)"
)
_SEQS = (
    "SELECT seq, count() FROM {table} WHERE lane = {lane} AND seq >= {start} AND seq < {end} "
    "AND timestamp >= cast({first} AS timestamp) AND timestamp <= cast({last} AS timestamp)"
)


class StoredLane(msgspec.Struct):
    """The records of one lane that are in its table; `doubled` are those of which there is more than one row."""

    seqs: SeqSet = msgspec.field(default_factory=SeqSet)
    doubled: SeqSet = msgspec.field(default_factory=SeqSet)

    def add(self, start: int, end: int) -> None:
        for doubled in list(self.seqs.within(start, end)):
            self.doubled.add(*doubled)
        self.seqs.add(start, end)


class Stored(msgspec.Struct):
    """What a table has: `rows` in all, the lanes that were asked for, and the rows of all others."""

    rows: int = 0
    other_rows: int = 0
    lanes: dict[int, StoredLane] = msgspec.field(default_factory=dict)


def stored(connection: Connection, table: str, lanes: Collection[int]) -> Stored:
    """What the table has of `lanes`. Rows that come while it is read may be missing, or not.

    Raises QueryError (no such table, say), ServerUnavailable, ServerRefused.
    """
    found = Stored()
    for first, last in windows(connection, table, rows_max=ROWS_MAX):
        sql = _PARTS.format(part=PART_SEQS, table=quoted(table), first=first, last=last)
        for lane, part, rows, distinct, lowest, highest in connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS):
            found.rows += rows
            if lane not in lanes or part is None:
                found.other_rows += rows
                continue
            state = found.lanes.setdefault(lane, StoredLane())
            if rows == distinct == highest - lowest + 1:
                state.add(lowest, highest + 1)
                continue
            start = lowest // PART_SEQS * PART_SEQS
            bounds = {"start": min(start, lowest), "end": highest + 1, "first": first, "last": last}
            sql = _SEQS.format(table=quoted(table), lane=lane, **bounds)
            for seq, copies in sorted(connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS)):
                state.add(seq, seq + 1)
                if copies > 1:
                    state.doubled.add(seq, seq + 1)
    return found
