"""The typed queries as plans: generators that yield statements and are sent their rows, and do no I/O themselves.

`Queries` and `AsyncQueries` run the same plans; QueryTimeout is thrown into a plan where its deadline passed. The plan
then returns the part of the span that it has covered; where it has covered none it raises the QueryTimeout again, since
a result without rows would say that there are none. Values are always parameters; identifiers come from this package
only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from ringlog.errors import QueryTimeout
from ringlog.questdb.filters import TradeFilter
from ringlog.questdb.results import Continuation, Result, Span, struct_columns, typed_rows
from ringlog.questdb.rows import PositionRow, TradeRow
from ringlog.questdb.spans import HOUR_US, MINUTE_US, pieces
from ringlog.times import TIMESTAMP_MAX_US, Bounds, microseconds_of, time_of

_Row = TypeVar("_Row")
Rows = list[tuple[Any, ...]]


class Statement(NamedTuple):
    """SQL with `%s` for each of its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()


# What a plan yields, is sent back, and returns.
Plan = Generator[Statement, Rows, Result[_Row]]
# A plan is made anew for every attempt; the argument is the deadline in monotonic seconds.
PlanMaker = Callable[[float], Plan[_Row]]

SPAN = "timestamp >= cast(%s as timestamp) AND timestamp < cast(%s as timestamp)"
# A limited query stops at its limit, so its first piece may be long.
ROWS_FIRST_US = 6 * HOUR_US

_POSITION_COLUMNS = ", ".join(name for name, _ in struct_columns(PositionRow))


def table_span(table: str) -> Generator[Statement, Rows, tuple[int, int] | None]:
    """The half-open span of a table's rows in microseconds, None where it is empty; answered from metadata."""
    rows = yield Statement(f"SELECT min(timestamp)::long, max(timestamp)::long FROM {table}")  # noqa: S608
    low, high = rows[0] if rows else (None, None)
    return None if low is None else (low, high + 1)


def conditions(values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """` AND name = %s ...` for the values that are not None, and the parameters; the names are ours."""
    given = {name: value for name, value in values.items() if value is not None}
    return "".join(f" AND {name} = %s" for name in given), tuple(given.values())


class Selection(msgspec.Struct, frozen=True):
    """Rows of one table, of which the limit lets the newest or the oldest through; `timestamp` is the first column."""

    method: str  # whose call it is
    table: str
    columns: tuple[tuple[str, str], ...]
    make: Callable[[Sequence[tuple[Any, ...]]], Any]
    where: str
    parameters: tuple[Any, ...]
    span: Bounds
    limit: int
    order: str
    again: Callable[..., dict[str, Any]]  # the call's arguments, with other start, end and limit


def trades(wanted: TradeFilter, deadline: float) -> Plan[TradeRow]:
    """The trades of a filter."""
    where, parameters = conditions(
        {name: getattr(wanted, name) for name in ("trader_id", "mode", "action", "mev_status")}
    )
    if wanted.token is not None:
        where += " AND (base_token = %s OR quote_token = %s)"
        parameters += (wanted.token, wanted.token)

    def again(**changes: Any) -> dict[str, Any]:
        return {"filter": msgspec.structs.replace(wanted, since=None, duration=None, **changes)}

    columns, make = struct_columns(TradeRow), typed_rows(TradeRow)
    span, limit, order = wanted.bounds(), wanted.limit, wanted.order
    selection = Selection("get_trades", "trades", columns, make, where, parameters, span, limit, order, again)
    return selected(selection, deadline)


def span_at(owner: str, span: Bounds) -> Generator[Statement, Rows, tuple[int | None, int | None]]:
    """A span's ends in microseconds; the server is asked for its now where one of them needs it."""
    now: int | None = None
    if span.needs_now:
        ((now,),) = yield Statement("SELECT now()::long")
    return span.at(owner, now)


def selected(wanted: Selection, deadline: float) -> Plan[Any]:
    """The rows of a selection, cut into spans from the end that is wanted first."""
    direction = "DESC" if wanted.order == "newest" else "ASC"
    # Quoted, since a user's own field may be called like a word of SQL.
    columns = ", ".join(f'"{name}"' for name, _ in wanted.columns)
    sql = (
        f'SELECT {columns} FROM "{wanted.table}" WHERE {SPAN}{wanted.where} '  # noqa: S608 - identifiers that were checked
        f"ORDER BY timestamp {direction} LIMIT %s"
    )
    asked: tuple[int | None, int | None] = (None, None)
    covered: tuple[int, int] | None = None
    found: Rows = []
    try:
        asked = start, end = yield from span_at(wanted.method, wanted.span)
        if wanted.order == "newest" and end is None:
            # Most calls want the last rows, and this one statement has them. Only where it begins is this machine's
            # clock's business: wrong, it makes the first piece longer or empty, and the next ones do the rest.
            recent = max((time.time_ns() // 1_000 - ROWS_FIRST_US) // MINUTE_US * MINUTE_US, start or 0)
            found += yield Statement(sql, (recent, TIMESTAMP_MAX_US, *wanted.parameters, wanted.limit + 1))
            end = max(recent, microseconds_of(found[0][0])) + 1 if found else recent
            covered = (recent, end)
            if len(found) > wanted.limit:
                del found[wanted.limit :]
                return _selected_result(wanted, found, asked, covered, limited=True)
            if recent == start:
                # That was the whole span. A rest of it, were time to run out below, would be an empty span: an error.
                return _selected_result(wanted, found, asked, covered)
        stored = yield from table_span(f'"{wanted.table}"')
        if stored is None:
            return _selected_result(wanted, [], asked, (start, end))
        start = stored[0] if start is None else start
        end = max(start, stored[1]) if end is None else end
        # Outside of what is stored, and below what is found already, there is nothing to ask for.
        low, high = max(start, stored[0]), min(end if covered is None else covered[0], stored[1])
        for piece in pieces(low, high, deadline, order=wanted.order, first_us=ROWS_FIRST_US):
            # One row more than is wanted tells whether the limit cut anything.
            found += yield Statement(sql, (*piece, *wanted.parameters, wanted.limit + 1 - len(found)))
            covered = (piece[0], end) if wanted.order == "newest" else (start, piece[1])
            if len(found) > wanted.limit:
                del found[wanted.limit :]
                return _selected_result(wanted, found, asked, covered, limited=True)
    except QueryTimeout:
        if covered is None or covered[0] == covered[1]:
            raise
        return _selected_result(wanted, found, asked, covered, partial=True)
    return _selected_result(wanted, found, asked, (start, end))


def _selected_result(
    wanted: Selection,
    found: Rows,
    asked: tuple[int | None, int | None],
    covered: tuple[int | None, int | None],
    *,
    partial: bool = False,
    limited: bool = False,
) -> Result[Any]:
    span = None
    if covered[0] is not None and covered[1] is not None:
        span = Span(time_of(covered[0]), time_of(covered[1]))
    if partial and len(found) >= wanted.limit:
        # All that was asked for is here. Time ran out over whether there is more: a rest would begin past the limit.
        partial, limited = False, True
    continuation = None
    if partial and span is not None:
        start, end = (None if time_us is None else time_of(time_us) for time_us in asked)
        start, end = (start, span.start) if wanted.order == "newest" else (span.end, end)
        left = wanted.again(start=start, end=end, limit=wanted.limit - len(found))
        continuation = Continuation(wanted.method, left)
    return Result(
        wanted.columns,
        found,
        wanted.make,
        span=span,
        partial=partial,
        limited=limited,
        continuation=continuation,
    )


def positions(values: dict[str, Any], span: Bounds, deadline: float) -> Plan[PositionRow]:
    """The latest position in a span of each trader, mode and token with the given values."""
    where, parameters = conditions(values)
    sql = (
        f"SELECT {_POSITION_COLUMNS} FROM positions WHERE {SPAN}{where} "  # noqa: S608 - identifiers of ours
        "LATEST ON timestamp PARTITION BY trader_id, mode, token"
    )
    latest: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    covered_from: int | None = None
    start: int | None = None
    high: int | None = None
    partial = False
    try:
        start, high = yield from span_at("get_positions", span)
        stored = yield from table_span("positions")
        if stored is not None:
            low = stored[0] if start is None else max(start, stored[0])
            high = stored[1] if high is None else min(high, stored[1])
            for piece in pieces(low, high, deadline, first_us=24 * HOUR_US):
                rows = yield Statement(sql, (*piece, *parameters))
                for row in rows:
                    latest.setdefault(row[1:4], row)
                covered_from = piece[0]
    except QueryTimeout:
        if covered_from is None:
            raise
        partial = True
    continuation = None
    if partial and covered_from is not None:
        left = {"start": None if start is None else time_of(start), "end": time_of(covered_from)}
        continuation = Continuation("get_positions", {**values, **left})
    covered = None if covered_from is None or high is None else Span(time_of(covered_from), time_of(high))
    return Result(
        struct_columns(PositionRow),
        sorted(latest.values(), key=lambda row: row[1:4]),
        typed_rows(PositionRow),
        span=covered,
        partial=partial,
        continuation=continuation,
    )


def seconds_left(deadline: float) -> float:
    return deadline - time.monotonic()
