"""The public calls, checked and turned into plans: what `Queries` and `AsyncQueries` have in common."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ringlog.errors import QueryError, ServerUnavailable
from ringlog.questdb import aggregates, filters, statements
from ringlog.questdb.filters import Duration, Time, TradeFilter
from ringlog.questdb.pools import NoConnection
from ringlog.questdb.results import Continuation, Result, answered_columns, named_rows
from ringlog.questdb.rows import MevRow, PercentileRow, PerformanceRow, PositionRow, TradeRow
from ringlog.questdb.statements import PlanMaker

PERCENTILES = (50.0, 95.0, 99.0)
SQL_BYTES_MAX = 1_000_000
METHODS = (
    "get_trades",
    "get_performance_metrics",
    "get_mev_analysis",
    "get_latency_percentiles",
    "get_positions",
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


def positions(trader_id: Any, mode: Any, token: Any, end: Time | None) -> PlanMaker[PositionRow]:
    values = {"trader_id": trader_id, "mode": mode, "token": token}
    filters.checked_position(values)
    return functools.partial(statements.positions, values, filters.time_us("get_positions.end", end))


def performance_metrics(metric_type: Any, duration: Duration, end: Time | None) -> PlanMaker[PerformanceRow]:
    filters.checked_metric_type(metric_type)
    return functools.partial(aggregates.performance_metrics, metric_type, _window(duration, end))


def mev_analysis(duration: Duration, end: Time | None) -> PlanMaker[MevRow]:
    return functools.partial(aggregates.mev_analysis, _window(duration, end))


def latency_percentiles(
    service: Any, operation: Any, duration: Duration, percentiles: Sequence[float], end: Time | None
) -> PlanMaker[PercentileRow]:
    filters.checked_text("get_latency_percentiles.service", service)
    filters.checked_text("get_latency_percentiles.operation", operation)
    asked = filters.checked_percentiles(percentiles)
    return functools.partial(aggregates.latency_percentiles, service, operation, asked, _window(duration, end))


def _window(duration: Duration, end: Time | None) -> aggregates.Window:
    return aggregates.Window(filters.duration_us("duration", duration), filters.time_us("end", end))


def checked_sql(sql: Any, params: Any) -> Sequence[Any] | None:
    """The parameters as psycopg takes them (None: `%` in the SQL is itself); QueryError for what is no SQL."""
    if type(sql) is not str or not sql.strip():
        raise QueryError(f"execute_query: got {sql!r:.80}, wanted SQL")
    filters.checked_text("execute_query.sql", sql, SQL_BYTES_MAX)
    if params is None:
        return None
    if isinstance(params, str | bytes) or not isinstance(params, Sequence):
        raise QueryError(f"execute_query: got params {type(params).__name__}, wanted a sequence of values")
    for index, value in enumerate(params):
        if isinstance(value, str):
            filters.checked_text(f"execute_query.params[{index}]", value, SQL_BYTES_MAX)
    return params


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


def resumable(continuation: Continuation) -> str:
    """The method of a continuation; QueryError for anything else than a partial result's."""
    if not isinstance(continuation, Continuation) or continuation.method not in METHODS:
        raise QueryError(f"resume: got {continuation!r:.80}, wanted the continuation of a partial result")
    return continuation.method
