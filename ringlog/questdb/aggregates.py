"""The typed queries that aggregate a duration: plans over a minute view, with raw rows where the view cannot answer.

The view answers for whole minutes (a coarser one, where there is one, for whole hours). Raw rows answer for both
partial edge minutes, and for everything where the view is missing or invalid, or has not caught up with the rows that
were applied when the query began, or went on changing while it was read.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

from ringlog.errors import QueryTimeout
from ringlog.questdb.filters import time_of
from ringlog.questdb.percentiles import histogram_percentiles
from ringlog.questdb.results import Continuation, Result, Span, struct_columns
from ringlog.questdb.rollups import LATENCY_MINUTES, MEV_MINUTES, PERFORMANCE_MINUTES, Rollup
from ringlog.questdb.rows import MevRow, PercentileRow, PerformanceRow
from ringlog.questdb.spans import pieces
from ringlog.questdb.statements import SPAN, Pause, Plan, Rows, Statement, conditions

_logger = logging.getLogger(__name__)
_Row = TypeVar("_Row", bound=msgspec.Struct)

# Key values to measure values.
Groups = dict[tuple[Any, ...], list[Any]]

# How long a query waits for the view to take in what was applied before it began: a refresh takes milliseconds.
REFRESH_TIMEOUT_S = 0.25
# How often a piece is read from a view that goes on changing meanwhile, before raw rows answer.
READS_MAX = 5
_REFRESH_POLL_S = 0.005

_STATUS = (
    "SELECT now()::long, v.view_status, v.refresh_base_table_txn, b.writerTxn FROM wal_tables() b "
    "LEFT JOIN materialized_views() v ON v.base_table_name = b.name AND v.view_name = %s WHERE b.name = %s"
)
_VIEW_APPLIED = "SELECT writerTxn, sequencerTxn, suspended FROM wal_tables() WHERE name = %s"


class _View(msgspec.Struct):
    """A view as it was found: `transaction` of its own up to which it is fresh; None since it was found otherwise."""

    rollup: Rollup
    transaction: int | None


class Window(msgspec.Struct, frozen=True):
    """What is asked: the `duration_us` before `end_us`, None for the server's now."""

    duration_us: int
    end_us: int | None = None


def latency_percentiles(
    service: str | None, operation: str | None, percentiles: Sequence[float], window: Window, deadline: float
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
    return _aggregate(LATENCY_MINUTES, filters, window, deadline, PercentileRow, finish, call)


def performance_metrics(metric_type: str, window: Window, deadline: float) -> Plan[PerformanceRow]:
    def finish(groups: Groups) -> list[tuple[Any, ...]]:
        ordered = sorted(groups.items(), key=lambda group: (group[0][1], group[0][2] or 0))
        return [
            (*keys, samples, total / samples, low, high, last)
            for keys, (samples, total, low, high, last) in ordered
            if samples
        ]

    filters = {"metric_type": metric_type}
    call = Continuation("get_performance_metrics", filters)
    return _aggregate(PERFORMANCE_MINUTES, filters, window, deadline, PerformanceRow, finish, call)


def mev_analysis(window: Window, deadline: float) -> Plan[MevRow]:
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

    return _aggregate(MEV_MINUTES, {}, window, deadline, MevRow, finish, Continuation("get_mev_analysis", {}))


def _ratio(total: float | None, count: int) -> float | None:
    return None if not count or total is None else total / count


def _aggregate(
    rollup: Rollup,
    filters: dict[str, Any],
    window: Window,
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
    start, end = 0, window.end_us
    views: list[_View] = []
    partial = from_view = False

    def gather(start: int, end: int, levels: list[_View]) -> Generator[Statement | Pause, Rows, None]:
        nonlocal covered, from_view
        for view, low, high in _sources(start, end, levels, deadline):
            span = (low, high, *parameters)
            if view is None:
                rows: Rows | None = yield Statement(raw, span)
            else:
                select = Statement(f"{view.rollup.view_select(keys)} WHERE {SPAN}{where}", span)
                rows = yield from _read(rollup, view, views, select, deadline)
            if rows is None:
                from_view = from_view and len(levels) > 1
                yield from gather(low, high, levels[1:])
            else:
                _merge(rollup, groups, rows, fixed)
                covered = low

    try:
        now, views = yield from _usable_views(rollup, deadline)
        from_view = bool(views)
        end = now if window.end_us is None else window.end_us
        start = end - window.duration_us
        yield from gather(start, end, views)
    except QueryTimeout:
        partial = True
    continuation = None
    if partial:
        left_us = window.duration_us if covered is None else covered - start
        until = end if covered is None else covered
        # A float of seconds does not hold every number of microseconds: some would come back as one less.
        left = datetime.timedelta(microseconds=left_us)
        arguments = {**call.arguments, "duration": left, "end": until}
        continuation = Continuation(call.method, arguments)
    return Result(
        struct_columns(row_type),
        finish(groups),
        row_type,
        span=None if covered is None or end is None else Span(time_of(covered), time_of(end)),
        partial=partial,
        continuation=continuation,
        source="view" if from_view else "raw",
    )


def _sources(
    start: int, end: int, views: Sequence[_View], deadline: float
) -> Generator[tuple[_View | None, int, int], None, None]:
    """(view or None for raw rows, start, end) of each statement, newest first; `views` begins with the coarsest.

    Each view has its whole units; what is left at both edges has the next finer one, and in the end raw rows.
    """
    if not views:
        for low, high in pieces(start, end, deadline):
            yield None, low, high
        return
    view, finer = views[0], views[1:]
    unit_us = view.rollup.unit_us
    first, last = -(-start // unit_us) * unit_us, end // unit_us * unit_us
    if first >= last:
        yield from _sources(start, end, finer, deadline)
        return
    if last < end:
        yield from _sources(last, end, finer, deadline)
    # So many units cost a few milliseconds: an hour of minutes, two and a half days of hours.
    for low, high in pieces(first, last, deadline, first_us=60 * unit_us, unit_us=unit_us):
        yield view, low, high
    if start < first:
        yield from _sources(start, first, finer, deadline)


def _read(
    rollup: Rollup, view: _View, views: list[_View], select: Statement, deadline: float
) -> Generator[Statement | Pause, Rows, Rows | None]:
    """The rows of one piece of a view, None where they cannot be relied on.

    A view that is filled anew (REFRESH ... FULL, by hand or by a migration) is empty for a moment. So once it was read
    no transaction may have come since it was found fresh; where one has, it is found fresh again and read again.
    """
    for _ in range(READS_MAX):
        if view.transaction is None:
            break
        rows = yield select
        status = yield Statement(_VIEW_APPLIED, (view.rollup.view,))
        if status and status[0][1] == view.transaction:
            return rows
        _, found = yield from _usable_views(rollup, deadline)
        transactions = {again.rollup.view: again.transaction for again in found}
        for known in views:
            known.transaction = transactions.get(known.rollup.view)
    view.transaction = None
    return None


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


def _usable_views(rollup: Rollup, deadline: float) -> Generator[Statement | Pause, Rows, tuple[int, list[_View]]]:
    """The server's now in microseconds, and the views that hold everything that was applied at that moment.

    The coarsest comes first. A finer view is waited for; a coarser one only saves time, and either is there or not.
    """
    give_up = min(time.monotonic() + REFRESH_TIMEOUT_S, deadline)
    now_us, transaction = yield from _freshness(rollup, give_up)
    views: list[_View] = []
    level: Rollup | None = rollup
    while level is not None and transaction is not None:
        views.insert(0, _View(level, transaction))
        level = level.coarser
        if level is not None:
            _, transaction = yield from _freshness(level, 0.0)
    return now_us, views


def _freshness(rollup: Rollup, give_up: float) -> Generator[Statement | Pause, Rows, tuple[int, int | None]]:
    """The server's now in microseconds, and the view's transaction that holds all that its table held at that moment.

    None where the view is missing, invalid, or has not come so far by `give_up` (monotonic seconds).
    """
    status = Statement(_STATUS, (rollup.view, rollup.table))
    rows = yield status
    if not rows:
        # No such table: let the raw statement say so in the server's words.
        now = yield Statement("SELECT now()::long")
        return now[0][0], None
    now_us, _, _, applied = rows[0]
    while True:
        _, state, refreshed, _ = rows[0]
        if state not in ("valid", "refreshing"):
            _logger.warning(
                "the view is not used, its table is read instead: view=%s status=%s mend=%r",
                rollup.view,
                state or "missing",
                f"REFRESH MATERIALIZED VIEW {rollup.view} FULL" if state else "ringlog migrate",
            )
            return now_us, None
        # While it refreshes, its transaction does not say whether the refresh is one that began by emptying it.
        if state == "valid" and refreshed >= applied:
            break
        if time.monotonic() >= give_up:
            return now_us, None
        yield Pause(_REFRESH_POLL_S)
        rows = yield status
    # The refresh is in the view's own log; now it must be applied to the view too.
    sequenced: int | None = None
    while True:
        rows = yield Statement(_VIEW_APPLIED, (rollup.view,))
        writer, sequencer, suspended = rows[0] if rows else (0, 1, True)
        sequenced = sequencer if sequenced is None else sequenced
        if writer >= sequenced:
            return now_us, writer
        if suspended or time.monotonic() >= give_up:
            return now_us, None
        yield Pause(_REFRESH_POLL_S)
