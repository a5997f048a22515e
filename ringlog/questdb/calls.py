"""The public calls, checked and turned into plans: what `Queries` and `AsyncQueries` have in common."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ringlog.errors import QueryError, ServerUnavailable
from ringlog.questdb import aggregates, filters, pools, statements
from ringlog.questdb.filters import TradeFilter
from ringlog.questdb.parameters import SQL_BYTES_MAX, Parameters, checked_parameters
from ringlog.questdb.pools import NoConnection
from ringlog.questdb.results import Continuation, Result, answered_columns, named_rows
from ringlog.questdb.rows import MevRow, PercentileRow, PerformanceRow, PositionRow, TradeRow
from ringlog.questdb.statements import PlanMaker
from ringlog.times import Bounds, Duration, Time, bounds

PERCENTILES = (50.0, 95.0, 99.0)
METHODS = (
    "get_trades",
    "get_performance_metrics",
    "get_mev_analysis",
    "get_latency_percentiles",
    "get_positions",
    "records",
)
# Statements that change nothing may be sent again after a connection broke under them.
_READING = re.compile(r"\s*\(?\s*(select|with|show|explain)\b", re.IGNORECASE)


def trades(wanted: TradeFilter | None, fields: dict[str, Any]) -> PlanMaker[TradeRow]:
    if wanted is None:
        wanted = TradeFilter(**fields)
    elif fields:
        raise QueryError(f"get_trades: got a filter and {', '.join(fields)}, wanted one or the other")
    if not isinstance(wanted, TradeFilter):
        raise QueryError(f"get_trades: got {type(wanted).__name__}, wanted a TradeFilter")
    return functools.partial(statements.trades, wanted)


def positions(trader_id: Any, mode: Any, token: Any, span: Bounds) -> PlanMaker[PositionRow]:
    values = {"trader_id": trader_id, "mode": mode, "token": token}
    filters.checked_position(values)
    return functools.partial(statements.positions, values, span)


def performance_metrics(metric_type: Any, operation: Any, span: Bounds) -> PlanMaker[PerformanceRow]:
    filters.checked_metric(metric_type, operation)
    return functools.partial(aggregates.performance_metrics, metric_type, operation, span)


def mev_analysis(span: Bounds) -> PlanMaker[MevRow]:
    return functools.partial(aggregates.mev_analysis, span)


def latency_percentiles(
    service: Any, operation: Any, percentiles: Sequence[float], span: Bounds
) -> PlanMaker[PercentileRow]:
    filters.checked_text("get_latency_percentiles.service", service)
    filters.checked_text("get_latency_percentiles.operation", operation)
    asked = filters.checked_percentiles(percentiles)
    return functools.partial(aggregates.latency_percentiles, service, operation, asked, span)


def window(owner: str, duration: Duration | None, since: Time | None, start: Time | None, end: Time | None) -> Bounds:
    """The span of an aggregate, which must begin somewhere; without an end it ends at the server's now."""
    span = bounds(owner, since=since, start=start, end=end, duration=duration)
    if span.start is None:
        raise QueryError(f"{owner}: got no duration, since or start, wanted one of them, such as duration='24h'")
    return span


def checked_sql(sql: Any, params: Any) -> Parameters | None:
    """The parameters as psycopg takes them (None: `%` in the SQL is itself); QueryError for what is no SQL."""
    if type(sql) is not str or not sql.strip():
        raise QueryError(f"execute_query: got {sql!r:.80}, wanted SQL")
    filters.checked_text("execute_query.sql", sql, SQL_BYTES_MAX)
    return checked_parameters(sql, params)


def retriable(sql: str) -> Callable[[Exception], bool]:
    """Whether a failed statement may be sent again: a reading one always, any other only if it was never sent."""
    reading = _READING.match(sql) is not None

    def again(error: Exception) -> bool:
        return isinstance(error, NoConnection) or (reading and isinstance(error, ServerUnavailable))

    return again


def answered_result(answer: Any, tuples: list[tuple[Any, ...]]) -> Result[Any]:
    """The result of `execute_query`: rows named by the columns of psycopg's PGresult."""
    columns = answered_columns(answer)
    return Result(columns, tuples, named_rows(columns))


def far_times_result(cursor: Any) -> Result[Any]:
    """The same of an answer with times outside of the years 1 to 9999, which a datetime cannot hold.

    QuestDB itself has such: `tables()` gives the largest timestamp for the first row of an empty table. A column that
    holds one is of texts then, in ISO 8601.
    """
    columns = list(answered_columns(cursor.pgresult))
    values: list[Sequence[Any]] = list(zip(*pools.load_times_as_text(cursor), strict=True))
    for index, (name, kind) in enumerate(columns):
        if kind == "datetime":
            values[index], columns[index] = _times(name, values[index])
    return Result(columns, list(zip(*values, strict=True)), named_rows(tuple(columns)))


def _times(name: str, texts: Sequence[str | None]) -> tuple[list[Any], tuple[str, str]]:
    try:
        times = [None if text is None else datetime.datetime.fromisoformat(text) for text in texts]
    except ValueError:
        return [None if text is None else f"{text}Z" for text in texts], (name, "str")
    return times, (name, "datetime")


def resumable(continuation: Continuation) -> str:
    """The method of a continuation; QueryError for anything else than a partial result's."""
    if not isinstance(continuation, Continuation) or continuation.method not in METHODS:
        raise QueryError(f"resume: got {continuation!r:.80}, wanted the continuation of a partial result")
    return continuation.method
