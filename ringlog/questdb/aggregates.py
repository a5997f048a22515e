"""The typed queries that aggregate a duration: plans over a minute view, with raw rows where the view cannot answer.

The view answers for whole minutes (a coarser one, where there is one, for whole hours). Raw rows answer for both
partial edge minutes, for the newest minutes, which the view takes in when its next refresh comes, and for the minutes
of which it lacks rows: with each piece of it comes how many rows it was made of, and how many its table holds there.
So every row that was applied when a query began is counted, and no query waits for a view.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

from ringlog.errors import QueryTimeout
from ringlog.questdb.percentiles import histogram_percentiles
from ringlog.questdb.results import Continuation, Result, Span, struct_columns, typed_rows
from ringlog.questdb.rollups import LATENCY_MINUTES, MEV_MINUTES, PERFORMANCE_MINUTES, Rollup
from ringlog.questdb.rows import MevRow, PercentileRow, PerformanceRow
from ringlog.questdb.spans import pieces
from ringlog.questdb.statements import SPAN, Plan, Rows, Statement, conditions
from ringlog.times import NOW, Bounds, time_of

_logger = logging.getLogger(__name__)
_Row = TypeVar("_Row", bound=msgspec.Struct)

# Key values to measure values.
Groups = dict[tuple[Any, ...], list[Any]]

# How many times a query halves a piece to find the part that a view lacks, before raw rows answer for what is left.
SPLITS_MAX = 32

_STATUS = (
    "SELECT now()::long, v.view_status FROM wal_tables() b "
    "LEFT JOIN materialized_views() v ON v.base_table_name = b.name AND v.view_name = %s WHERE b.name = %s"
)


def latency_percentiles(
    service: str | None, operation: str | None, percentiles: Sequence[float], span: Bounds, deadline: float
) -> Plan[PercentileRow]:
    def finish(groups: Groups) -> list[tuple[Any, ...]]:
        histograms: dict[tuple[str, str], dict[int, int]] = {}
        for (of_service, of_operation, bucket), (samples,) in groups.items():
            if samples:
                histograms.setdefault((of_service, of_operation), {})[bucket] = samples
        rows = []
        for pair in sorted(histograms):
            values = histogram_percentiles(histograms[pair], percentiles)
            total = sum(histograms[pair].values())
            rows += [(*pair, asked, value, total) for asked, value in zip(percentiles, values, strict=True)]
        return rows

    filters = {"service": service, "operation": operation}
    again = {**filters, "percentiles": tuple(percentiles)}
    call = Continuation("get_latency_percentiles", again)
    return _aggregate(LATENCY_MINUTES, filters, span, deadline, PercentileRow, finish, call)


def performance_metrics(metric_type: str, operation: str | None, span: Bounds, deadline: float) -> Plan[PerformanceRow]:
    def finish(groups: Groups) -> list[tuple[Any, ...]]:
        ordered = sorted(groups.items(), key=lambda group: (group[0][1], group[0][2] or 0))
        return [
            (*keys, samples, total / samples, low, high, last)
            for keys, (samples, total, low, high, last) in ordered
            if samples
        ]

    filters = {"metric_type": metric_type, "operation": operation}
    call = Continuation("get_performance_metrics", filters)
    return _aggregate(PERFORMANCE_MINUTES, filters, span, deadline, PerformanceRow, finish, call)


def mev_analysis(span: Bounds, deadline: float) -> Plan[MevRow]:
    def finish(groups: Groups) -> list[tuple[Any, ...]]:
        rows = []
        for protected in (True, False):
            # Both are always there, so that a caller can compare them.
            trades, avoided, estimates, estimated, actuals, actual, fees = groups.get((protected,), [0] * 7)
            rows.append(
                (
                    protected,
                    trades,
                    _ratio(estimated, estimates),
                    _ratio(actual, actuals),
                    actuals,
                    avoided,
                    _ratio(avoided, trades),
                    fees or 0,
                )
            )
        return rows

    return _aggregate(MEV_MINUTES, {}, span, deadline, MevRow, finish, Continuation("get_mev_analysis", {}))


def _ratio(total: float | None, count: int) -> float | None:
    return None if not count or total is None else total / count


def _aggregate(
    rollup: Rollup,
    filters: dict[str, Any],
    span: Bounds,
    deadline: float,
    row_type: type[_Row],
    finish: Callable[[Groups], list[tuple[Any, ...]]],
    call: Continuation,
) -> Plan[_Row]:
    fixed = {name: value for name, value in filters.items() if value is not None}
    where, parameters = conditions(filters)
    keys = [name for name in rollup.keys if name not in fixed]
    raw = f"{rollup.raw_select(keys)} WHERE {SPAN}{where}"
    groups: Groups = {}
    covered: int | None = None
    start: int | None = None
    end: int | None = None
    now = splits = 0
    partial = from_view = False

    def gather(start: int, end: int, views: Sequence[Rollup]) -> Generator[Statement, Rows, None]:
        nonlocal covered, from_view, splits
        for view, low, high in _sources(start, end, now, views, deadline):
            if view is None:
                rows: Rows | None = yield Statement(raw, (low, high, *parameters))
            else:
                rows = yield from _read(view, rollup.table, keys, where, parameters, (low, high))
            if rows is not None:
                _merge(rollup, groups, rows, fixed)
                covered = low
                continue
            assert view is not None  # noqa: S101 - raw rows are always there
            middle = (low + high) // 2 // view.unit_us * view.unit_us
            if middle > low and splits < SPLITS_MAX:
                splits += 1
                yield from gather(middle, high, views)
                yield from gather(low, middle, views)
            else:
                from_view = from_view and len(views) > 1
                yield from gather(low, high, views[1:])

    try:
        now, views = yield from _usable_views(rollup)
        from_view = bool(views)
        start, end = Bounds(span.start, span.end or NOW).at(call.method, now)
        assert start is not None and end is not None  # noqa: S101, PT018 - neither is open
        yield from gather(start, end, views)
    except QueryTimeout:
        if covered is None:
            raise
        partial = True
    continuation = None
    if partial and covered is not None and start is not None:
        left = {"start": time_of(start), "end": time_of(covered)}
        continuation = Continuation(call.method, {**call.arguments, **left})
    return Result(
        struct_columns(row_type),
        finish(groups),
        typed_rows(row_type),
        span=None if covered is None or end is None else Span(time_of(covered), time_of(end)),
        partial=partial,
        continuation=continuation,
        source="view" if from_view else "raw",
    )


def _sources(
    start: int, end: int, now: int, views: Sequence[Rollup], deadline: float
) -> Generator[tuple[Rollup | None, int, int], None, None]:
    """(view or None for raw rows, start, end) of each statement, newest first; `views` begins with the coarsest.

    Each view has its whole units up to those that it may still lack at `now`; what is left at both edges has the next
    finer one, and in the end raw rows.
    """
    if not views:
        for low, high in pieces(start, end, deadline):
            yield None, low, high
        return
    view, finer = views[0], views[1:]
    first = -(-start // view.unit_us) * view.unit_us
    last = min(end, now - view.lag_us) // view.unit_us * view.unit_us
    if first >= last:
        yield from _sources(start, end, now, finer, deadline)
        return
    if last < end:
        yield from _sources(last, end, now, finer, deadline)
    # So many units cost a few milliseconds: an hour of minutes, two and a half days of hours.
    for low, high in pieces(first, last, deadline, first_us=60 * view.unit_us, unit_us=view.unit_us):
        yield view, low, high
    if start < first:
        yield from _sources(start, first, now, finer, deadline)


def _read(
    view: Rollup, table: str, keys: Sequence[str], where: str, parameters: tuple[Any, ...], span: tuple[int, int]
) -> Generator[Statement, Rows, Rows | None]:
    """The rows of one piece of a view, None where they were not made of just the rows that its table has.

    One statement gives the rows and both counts: a view that is filled anew (REFRESH ... FULL, by hand or by a
    migration) is empty for a moment, and would not be noticed by counts that were asked for before or after.
    """
    select = view.checked_select(table, keys, f"{SPAN}{where}", SPAN)
    parts: dict[int, Rows] = {0: [], 1: [], 2: []}
    for part, *values in (yield Statement(select, (*span, *span, *span, *parameters))):
        parts[part].append(tuple(values))
    stored, taken = (parts[part][0][len(keys)] or 0 for part in (0, 1))
    return parts[2] if taken == stored else None


def _merge(rollup: Rollup, groups: Groups, rows: Rows, fixed: dict[str, Any]) -> None:
    """Adds the rows of an older piece to the groups; the rows lack the keys that are `fixed` by a filter."""
    width = len(rollup.keys) - len(fixed)
    measures = list(rollup.measures.values())
    for row in rows:
        free, values = iter(row[:width]), row[width:]
        keys = tuple(fixed[name] if name in fixed else next(free) for name in rollup.keys)
        known = groups.get(keys)
        if known is None:
            groups[keys] = list(values)
        else:
            for index, measure in enumerate(measures):
                known[index] = measure.merged(values[index], known[index])


def _usable_views(rollup: Rollup) -> Generator[Statement, Rows, tuple[int, list[Rollup]]]:
    """The server's now in microseconds, and the views that are there and valid, the coarsest first."""
    views: list[Rollup] = []
    now_us: int | None = None
    level: Rollup | None = rollup
    while level is not None:
        rows = yield Statement(_STATUS, (level.view, level.table))
        if not rows:
            break
        found_us, state = rows[0]
        now_us = found_us if now_us is None else now_us
        if state not in ("valid", "refreshing"):
            _logger.warning(
                "the view is not used, its table is read instead: view=%s status=%s mend=%r",
                level.view,
                state or "missing",
                f"REFRESH MATERIALIZED VIEW {level.view} FULL" if state else "ringlog migrate",
            )
            break
        views.insert(0, level)
        level = level.coarser
    if now_us is None:
        # No such table: let the raw statement say so in the server's words.
        rows = yield Statement("SELECT now()::long")
        now_us = rows[0][0]
    return now_us, views
