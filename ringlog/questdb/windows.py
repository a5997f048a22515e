"""Spans of time that divide a table into pieces of a size that one query can look at."""

from __future__ import annotations

from collections.abc import Iterator

from ringlog.questdb.connection import Connection
from ringlog.questdb.tables import quoted

QUERY_TIMEOUT_SECONDS = 60.0
# One query looks at about so many rows at most: the server counts their distinct keys in memory.
ROWS_MAX = 20_000_000


def windows(
    connection: Connection, table: str, *, rows_max: int = ROWS_MAX, before_us: int | None = None
) -> Iterator[tuple[int, int]]:
    """Spans (microseconds, both ends included) that cover the table, or what is older than `before_us`.

    Each holds at most `rows_max` rows. Raises QueryError, ServerUnavailable, ServerRefused.
    """
    name = quoted(table)

    def rows_in(first: int, last: int) -> int:
        sql = (
            f"SELECT count() FROM {name} "  # noqa: S608 - a checked identifier
            f"WHERE timestamp >= cast({first} AS timestamp) AND timestamp <= cast({last} AS timestamp)"
        )
        return int(connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS)[0][0])

    sql = f"SELECT min(timestamp)::long, max(timestamp)::long FROM {name}"  # noqa: S608 - a checked identifier
    ((low, high),) = connection.execute(sql, timeout_s=QUERY_TIMEOUT_SECONDS)
    if low is not None and before_us is not None:
        high = min(high, before_us - 1)
    spans = [(low, high)] if low is not None and low <= high else []
    while spans:
        first, last = spans.pop()
        rows = rows_in(first, last)
        if rows > rows_max and first < last:
            middle = (first + last) // 2
            spans += [(middle + 1, last), (first, middle)]
        elif rows:
            yield first, last
