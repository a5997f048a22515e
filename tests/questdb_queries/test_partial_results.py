"""Queries that run out of time: what they have so far, what part of the span that is, and the call for the rest.

Where they have covered nothing there is no result: QueryTimeout (finding 28).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from platform_rows import Execute, Insert, trade

from ringlog.errors import QueryTimeout, ServerUnavailable
from ringlog.questdb import statements
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.queries import Queries
from ringlog.questdb.results import Result
from ringlog.records import Trade
from ringlog.settings import Settings
from ringlog.times import time_of

BASE = 1_760_000_000_000_000  # a moment in October 2025
SECOND, DAY = 1_000_000, 86_400_000_000
# The statements until the first rows come: the newest are asked for at once, before anything is known of the table.
STEPS_TO_ROWS = {"newest": 3, "oldest": 2}
# More than any of the queries here has.
STEPS_MAX = 200


def run_out_of_time(patch: pytest.MonkeyPatch, owner: type[Queries | AsyncQueries], steps: int) -> None:
    """Lets the first `steps` statements of a real plan through, then throws what a passed deadline throws."""
    step: Any = owner._step
    left = steps

    def limited(self: Any, connection: Any, wanted: Any) -> Any:
        nonlocal left
        if left == 0:
            raise QueryTimeout("out of time")
        left -= 1
        return step(self, connection, wanted)

    patch.setattr(owner, "_step", limited)


def cut_short(monkeypatch: pytest.MonkeyPatch, steps: int, ask: Callable[[], Result[Any]]) -> Result[Any]:
    with monkeypatch.context() as patch:
        run_out_of_time(patch, Queries, steps)
        return ask()


def every_cut(
    queries: Queries, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Result[Any]]
) -> Iterator[tuple[Result[Any], Result[Any]]]:
    """What `ask` gives cut short after each of its statements in turn, and the rest of that."""
    parts = 0
    for steps in range(STEPS_MAX):
        try:
            first = cut_short(monkeypatch, steps, ask)
        except QueryTimeout:  # nothing was covered
            assert parts == 0
            continue
        if not first.partial:
            assert parts > 0, "never cut between two pieces: the test proves nothing"
            return
        parts += 1
        assert first.span is not None
        assert first.span.start < first.span.end
        assert first.continuation is not None
        rest = queries.resume(first.continuation)
        assert not rest.partial
        yield first, rest
    pytest.fail(f"no whole answer after {STEPS_MAX} statements")


@pytest.mark.usefixtures("empty")
def test_partial_trades(queries: Queries, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that runs out of time gives whole newest spans, says which, and goes on without a gap or a double."""
    insert("trades", [trade(BASE + i * 1_200 * SECOND) for i in range(300)])
    whole = [row.seq for row in queries.get_trades()]
    assert len(whole) == 300
    for steps in range(4):
        for order, empty_steps in STEPS_TO_ROWS.items():
            if steps < empty_steps:
                with pytest.raises(QueryTimeout):
                    cut_short(monkeypatch, steps, lambda order=order: queries.get_trades(order=order))
                continue
            first = cut_short(monkeypatch, steps, lambda order=order: queries.get_trades(order=order))
            assert first.partial
            assert first.continuation is not None
            seqs = [row.seq for row in first]
            assert 0 < len(first) < 300
            assert first.span is not None
            assert all(first.span.start <= row.timestamp < first.span.end for row in first)
            rest = queries.resume(first.continuation)
            assert not rest.partial
            assert seqs + [row.seq for row in rest] == (whole if order == "newest" else whole[::-1])


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_finding_32_partial_records(
    queries: Queries, execute: Execute, insert: Insert, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Finding 32: records, and spans told from now, go on where they were cut, within the span of the first call."""
    now = execute("SELECT now()::long")[0][0] - 60 * SECOND
    insert("trades", [trade(now - i * 1_200 * SECOND, mode=("paper", "live")[i % 2]) for i in range(200)])
    calls: list[Callable[[], Result[Any]]] = [
        lambda: queries.records(Trade, where={"mode": "paper"}, order=order),
        lambda: queries.records(Trade, where={"mode": "paper"}, order=order, since="2d", end="1h"),
        lambda: queries.get_trades(mode="paper", order=order, duration="2d", limit=70),
    ]
    for ask in calls:
        whole = [row[0] for row in ask().tuples()]
        assert len(whole) in (100, 70)
        for first, rest in every_cut(queries, monkeypatch, ask):
            assert [row[0] for part in (first, rest) for row in part.tuples()] == whole


@pytest.mark.usefixtures("empty")
def test_out_of_time_at_the_limit(queries: Queries, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many rows as the limit lets through nothing is left to fetch; with one less, exactly one row is."""
    insert("trades", [trade(BASE + i * 1_200 * SECOND) for i in range(300)])
    whole = [row.seq for row in queries.get_trades()]
    for order, steps in STEPS_TO_ROWS.items():
        asked = whole if order == "newest" else whole[::-1]

        def cut(limit: int, order: str = order, steps: int = steps) -> Result[Any]:
            return cut_short(monkeypatch, steps, lambda: queries.get_trades(order=order, limit=limit))

        rows = len(cut(300))
        assert 0 < rows < 299
        full, lacking = cut(rows), cut(rows + 1)
        assert (full.partial, full.limited, full.continuation) == (False, True, None)
        assert [row.seq for row in full] == asked[:rows]
        assert (lacking.partial, lacking.limited) == (True, False)
        assert lacking.continuation is not None
        rest = queries.resume(lacking.continuation)
        assert [row.seq for row in lacking] + [row.seq for row in rest] == asked[: rows + 1]


@pytest.mark.usefixtures("empty")
def test_out_of_time_after_the_whole_span(
    queries: Queries, execute: Execute, insert: Insert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first statement has all of a recent span the result is complete, whatever time is left."""
    now = execute("SELECT now()::long")[0][0]
    insert("trades", [trade(now - i * SECOND) for i in range(5)])
    result = cut_short(monkeypatch, 1, lambda: queries.get_trades(start=now - 2 * SECOND))
    assert (len(result), result.partial, result.limited) == (3, False, False)


@pytest.mark.usefixtures("empty")
async def test_partial_trades_async(settings: Settings, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """AsyncQueries gives the same parts, and goes on from them without a gap or a double."""
    insert("trades", [trade(BASE + i * 1_200 * SECOND) for i in range(300)])
    async with AsyncQueries(settings) as queries:
        whole = [row.seq for row in await queries.get_trades()]
        for steps in range(5):
            with monkeypatch.context() as patch:
                run_out_of_time(patch, AsyncQueries, steps)
                if steps < STEPS_TO_ROWS["newest"]:
                    with pytest.raises(QueryTimeout):
                        await queries.get_trades()
                    continue
                first = await queries.get_trades()
            assert first.partial
            assert len(first) > 0
            assert first.continuation is not None
            rest = await queries.resume(first.continuation)
            assert not rest.partial
            assert [row.seq for row in first] + [row.seq for row in rest] == whole


@pytest.mark.usefixtures("empty")
def test_partial_positions(queries: Queries, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has the latest positions down to where it came; those that only the rest has are older."""
    fields = dict.fromkeys(("average_entry_price", "mark_price", "realized_pnl", "unrealized_pnl"), 1.0)
    rows = [
        {
            "timestamp": BASE - i * DAY,
            "trader_id": "t1",
            "mode": "paper",
            "token": f"k{i % 30}",  # from the 31st day on, positions that newer ones replaced
            "quantity": float(i),
            **fields,
        }
        for i in range(40)
    ]
    insert("positions", [*rows, {**rows[0], "trader_id": "t2"}])
    whole = {row.token: row for row in queries.get_positions("t1")}
    assert {token: row.quantity for token, row in whole.items()} == {f"k{i}": float(i) for i in range(30)}
    for first, rest in every_cut(queries, monkeypatch, lambda: queries.get_positions("t1")):
        assert all(first.span is not None and first.span.start <= row.timestamp < first.span.end for row in first)
        assert {row.token: row for row in (*rest, *first)} == whole


def assert_spans_join(first: Result[Any], rest: Result[Any], start_us: int, end_us: int) -> None:
    start, end = time_of(start_us), time_of(end_us)
    assert first.span is not None
    assert first.span.end == end
    assert rest.span == (start, first.span.start)


# As seconds in a float this number of microseconds comes back as one less.
DURATION_US = 1_024_049_519


@pytest.mark.usefixtures("empty")
def test_partial_mev_analysis(queries: Queries, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts and fees of a part and of its rest add up to the whole, and their spans meet to the microsecond."""
    mev = {"token_pair": "SOL/USDC", "trade_size": 1.0, "sandwich_probability": 0.5, "estimated_loss_bps": 1.0}
    insert(
        "mev_metrics",
        [
            {
                **mev,
                "timestamp": BASE + i * 13 * SECOND,
                "actual_loss_bps": None if i % 4 == 0 else 2.0,
                "protection_used": i % 3 == 0,
                "priority_fee_lamports": i,
                "avoided": i % 5 == 0,
            }
            for i in range(300)
        ],
    )
    end = BASE + 290 * 13 * SECOND + 1

    def ask() -> Result[Any]:
        return queries.get_mev_analysis(datetime.timedelta(microseconds=DURATION_US), end=end)

    def sums(*results: Result[Any]) -> dict[bool, tuple[int, ...]]:
        found: dict[bool, tuple[int, ...]] = {}
        for row in (row for result in results for row in result):
            known = found.get(row.protection_used, (0, 0, 0, 0))
            values = (row.trades, row.actual_samples, row.avoided, row.priority_fee_lamports)
            found[row.protection_used] = tuple(a + b for a, b in zip(known, values, strict=True))
        return found

    whole = sums(ask())
    assert all(trades for trades, *_ in whole.values())
    for first, rest in every_cut(queries, monkeypatch, ask):
        assert_spans_join(first, rest, end - DURATION_US, end)
        assert sums(first, rest) == whole


@pytest.mark.usefixtures("empty")
def test_partial_performance_metrics(queries: Queries, insert: Insert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part and its rest have the whole's counts and extremes between them, and the newest of both is the last."""
    insert(
        "performance_metrics",
        [
            {
                "timestamp": BASE + i * 13 * SECOND,
                "metric_type": "latency",
                "operation": f"o{i % 2}",
                "value": float(i * 7 % 100),
                "percentile": (None, 50, 99)[i % 3],
            }
            for i in range(300)
        ],
    )
    end = BASE + 290 * 13 * SECOND + 1

    def ask() -> Result[Any]:
        return queries.get_performance_metrics("latency", datetime.timedelta(microseconds=DURATION_US), end=end)

    def joined(*oldest_first: Result[Any]) -> dict[tuple[str, int | None], tuple[float, ...]]:
        found: dict[tuple[str, int | None], tuple[float, ...]] = {}
        for row in (row for result in oldest_first for row in result):
            samples, low, high, _ = found.get((row.operation, row.percentile), (0, row.minimum, row.maximum, row.last))
            joint = (samples + row.samples, min(low, row.minimum), max(high, row.maximum), row.last)
            found[row.operation, row.percentile] = joint
        return found

    whole = joined(ask())
    assert len(whole) == 6
    for first, rest in every_cut(queries, monkeypatch, ask):
        assert_spans_join(first, rest, end - DURATION_US, end)
        assert joined(rest, first) == whole


@pytest.mark.usefixtures("empty")
def test_partial_by_a_real_deadline(
    queries: Queries, execute: Execute, insert: Insert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server that really is too slow for the time given, the newest whole pieces come back as partial."""
    rows = 3_000_000
    execute(
        "INSERT INTO latencies SELECT timestamp_sequence(cast(%s as timestamp), 28800), 1, x, 's', 'o', rnd_double() "
        f"FROM long_sequence({rows})",
        (BASE,),
        timeout_s=60,
    )
    insert("latencies", [], views=False)
    # Raw rows only, as without a view: ln() over three million rows does not fit into the time below.
    monkeypatch.setattr("ringlog.questdb.aggregates._usable_views", _no_view)
    timeout_ms = 400.0
    for _ in range(60):
        try:
            result = queries.get_latency_percentiles(
                "s", "o", 86_400, end=BASE + 86_400 * SECOND, timeout_ms=timeout_ms
            )
        except (ServerUnavailable, QueryTimeout):  # too short for a connection, or for the first piece
            timeout_ms *= 1.3
            continue
        if result.partial:
            break
        timeout_ms *= 0.7  # too long, and it is complete
    assert result.partial
    assert result.span is not None
    assert result.span.end == time_of(BASE + 86_400 * SECOND)
    covered = (result.span.end - result.span.start) // datetime.timedelta(microseconds=1)
    assert result.rows()[0].samples == pytest.approx(covered / 28_800, rel=0.001)
    assert result.continuation is not None
    rest = queries.resume(result.continuation, timeout_ms=60_000)
    assert result.rows()[0].samples + rest.rows()[0].samples == rows


def _no_view(*_: Any) -> Any:
    now = yield statements.Statement("SELECT now()::long")
    return now[0][0], []
