"""The typed queries as plans: generators that yield statements and are sent their rows, and do no I/O themselves.

`Queries` and `AsyncQueries` run the same plans; QueryTimeout is thrown into a plan where its deadline passed. The plan
then returns the part of the span that it has covered; where it has covered none it raises the QueryTimeout again, since
a result without rows would say that there are none. Values are always parameters; identifiers come from this package
only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import msgspec

from ringlog.errors import QueryTimeout
from ringlog.questdb.filters import TIMESTAMP_MAX_US, TradeFilter, time_of, time_us
from ringlog.questdb.results import Continuation, Result, Span, struct_columns, typed_rows
from ringlog.questdb.rows import PositionRow, TradeRow
from ringlog.questdb.spans import HOUR_US, MINUTE_US, pieces

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

_TRADE_COLUMNS = ", ".join(name for name, _ in struct_columns(TradeRow))
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


def trades(wanted: TradeFilter, deadline: float) -> Plan[TradeRow]:
    """The trades of a filter, cut into spans from the end that is wanted first."""
    where, parameters = conditions(
        {name: getattr(wanted, name) for name in ("trader_id", "mode", "action", "mev_status")}
    )
    if wanted.token is not None:
        where += " AND (base_token = %s OR quote_token = %s)"
        parameters += (wanted.token, wanted.token)
    direction = "DESC" if wanted.order == "newest" else "ASC"
    sql = (
        f"SELECT {_TRADE_COLUMNS} FROM trades WHERE {SPAN}{where} "  # noqa: S608 - identifiers of ours
        f"ORDER BY timestamp {direction} LIMIT %s"
    )
    start, end = time_us("start", wanted.start), time_us("end", wanted.end)
    covered: tuple[int, int] | None = None
    found: Rows = []
    try:
        if wanted.order == "newest" and end is None:
            # Most calls want the last rows, and this one statement has them. Only where it begins is this machine's
            # clock's business: wrong, it makes the first piece longer or empty, and the next ones do the rest.
            recent = max((time.time_ns() // 1_000 - ROWS_FIRST_US) // MINUTE_US * MINUTE_US, start or 0)
            found += yield Statement(sql, (recent, TIMESTAMP_MAX_US, *parameters, wanted.limit + 1))
            end = max(recent, time_us("newest", found[0][0]) or 0) + 1 if found else recent
            covered = (recent, end)
            if len(found) > wanted.limit:
                del found[wanted.limit :]
                return _trade_result(wanted, found, covered, limited=True)
            if recent == start:
                # That was the whole span. A rest of it, were time to run out below, would be an empty span: an error.
                return _trade_result(wanted, found, covered)
        stored = yield from table_span("trades")
        if stored is None:
            return _trade_result(wanted, [], (start, end))
        start = stored[0] if start is None else start
        end = max(start, stored[1]) if end is None else end
        # Outside of what is stored, and below what is found already, there is nothing to ask for.
        low, high = max(start, stored[0]), min(end if covered is None else covered[0], stored[1])
        for piece in pieces(low, high, deadline, order=wanted.order, first_us=ROWS_FIRST_US):
            # One row more than is wanted tells whether the limit cut anything.
            found += yield Statement(sql, (*piece, *parameters, wanted.limit + 1 - len(found)))
            covered = (piece[0], end) if wanted.order == "newest" else (start, piece[1])
            if len(found) > wanted.limit:
                del found[wanted.limit :]
                return _trade_result(wanted, found, covered, limited=True)
    except QueryTimeout:
        if covered is None or covered[0] == covered[1]:
            raise
        return _trade_result(wanted, found, covered, partial=True)
    return _trade_result(wanted, found, (start, end))


def _trade_result(
    wanted: TradeFilter,
    found: Rows,
    covered: tuple[int | None, int | None] | None,
    *,
    partial: bool = False,
    limited: bool = False,
) -> Result[TradeRow]:
    span = None
    if covered is not None and covered[0] is not None and covered[1] is not None:
        span = Span(time_of(covered[0]), time_of(covered[1]))
    if partial and len(found) >= wanted.limit:
        # All that was asked for is here. Time ran out over whether there is more: a rest would begin past the limit.
        partial, limited = False, True
    continuation = None
    if partial:
        changes: dict[str, Any] = {"limit": wanted.limit - len(found)}
        if covered is not None:
            changes |= {"end": covered[0]} if wanted.order == "newest" else {"start": covered[1]}
        continuation = Continuation("get_trades", {"filter": msgspec.structs.replace(wanted, **changes)})
    return Result(
        struct_columns(TradeRow),
        found,
        typed_rows(TradeRow),
        span=span,
        partial=partial,
        limited=limited,
        continuation=continuation,
    )


def positions(values: dict[str, Any], end: int | None, deadline: float) -> Plan[PositionRow]:
    """The latest position of each trader, mode and token with the given values, before `end`."""
    where, parameters = conditions(values)
    sql = (
        f"SELECT {_POSITION_COLUMNS} FROM positions WHERE {SPAN}{where} "  # noqa: S608 - identifiers of ours
        "LATEST ON timestamp PARTITION BY trader_id, mode, token"
    )
    latest: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    covered_from: int | None = None
    high = end
    partial = False
    low = 0
    try:
        stored = yield from table_span("positions")
        if stored is not None:
            low = stored[0]
            high = stored[1] if end is None else min(end, stored[1])
            for piece in pieces(low, high, deadline, first_us=24 * HOUR_US):
                rows = yield Statement(sql, (*piece, *parameters))
                for row in rows:
                    latest.setdefault(row[1:4], row)
                covered_from = piece[0]
    except QueryTimeout:
        if covered_from is None:
            raise
        partial = True
    continuation = Continuation("get_positions", {**values, "end": covered_from}) if partial else None
    span = None if covered_from is None or high is None else Span(time_of(covered_from), time_of(high))
    return Result(
        struct_columns(PositionRow),
        sorted(latest.values(), key=lambda row: row[1:4]),
        typed_rows(PositionRow),
        span=span,
        partial=partial,
        continuation=continuation,
    )


def seconds_left(deadline: float) -> float:
    return deadline - time.monotonic()
