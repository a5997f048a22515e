"""Typed queries against a real QuestDB: what they return, NULL and empty, hostile text, frames."""

from __future__ import annotations

import datetime
import threading
import time
from typing import Any

import polars
import psycopg
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from platform_rows import Execute, Insert, trade, wait_until

from ringlog.errors import QueryError, QueryTimeout
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.filters import TradeFilter
from ringlog.questdb.queries import Queries
from ringlog.questdb.results import struct_columns
from ringlog.questdb.rows import PositionRow, TradeRow
from ringlog.records import Position, Trade, layout_of
from ringlog.settings import Settings
from ringlog.times import time_of

BASE = 1_760_000_000_000_000  # a moment in October 2025
SECOND, HOUR = 1_000_000, 3_600_000_000
ENDLESS = "SELECT count() FROM long_sequence(100000000000) WHERE rnd_double() < 0.5 AND rnd_double() < 0.1"
HOSTILE = [
    "'; DROP TABLE trades; --",
    '"; DROP TABLE trades; --',
    "\\",
    "%s",
    "$1",
    "a' OR '1'='1",
    "",
    "ünï 💥",
    "\n\t",
]


def test_rows_are_the_record_types() -> None:
    """The row structs hold exactly the record types' fields, in order."""
    names = [field.name for field in layout_of(Trade).fields if field.name != "timestamp"]
    assert [name for name, _ in struct_columns(TradeRow)] == ["timestamp", *names, "lane", "seq"]
    names = [field.name for field in layout_of(Position).fields if field.name != "timestamp"]
    assert [name for name, _ in struct_columns(PositionRow)] == ["timestamp", *names]


@pytest.mark.usefixtures("empty")
def test_get_trades(queries: Queries, insert: Insert, execute: Execute) -> None:
    """Every filter lets through exactly what it names, in the order asked, and says when the limit cut."""
    rows = [
        trade(
            BASE + i * 7 * 60 * SECOND,
            trader_id=f"t{i % 3}",
            mode=("paper", "live")[i % 2],
            action=("buy", "sell", "swap")[i % 3],
            base_token=("SOL", "BONK")[i % 2],
            quote_token=("USDC", "SOL")[i % 4 == 3],
            mev_status=("protected", "at_risk", "impacted")[i % 3],
        )
        for i in range(500)
    ]
    insert("trades", rows)

    def expected(**wanted: Any) -> list[int]:
        return [r["timestamp"] for r in rows if all(r[name] == value for name, value in wanted.items())][::-1]

    def got(**fields: Any) -> list[int]:
        return [
            (row.timestamp - time_of(0)) // datetime.timedelta(microseconds=1) for row in queries.get_trades(**fields)
        ]

    assert got() == expected()
    for wanted in ({"trader_id": "t1"}, {"mode": "live"}, {"action": "swap"}, {"mev_status": "at_risk"}):
        assert got(**wanted) == expected(**wanted) != []
    assert got(trader_id="t2", mode="paper") == expected(trader_id="t2", mode="paper")
    assert got(token="SOL") == [r["timestamp"] for r in rows if "SOL" in (r["base_token"], r["quote_token"])][::-1]
    assert got(order="oldest", limit=10) == expected()[::-1][:10]
    start, end = rows[100]["timestamp"], rows[200]["timestamp"]
    assert got(start=start, end=time_of(end)) == [r["timestamp"] for r in rows[100:200]][::-1]
    assert got(trader_id="nobody") == []
    assert got(start=end + 10 * 365 * 24 * HOUR) == []
    limited, whole = queries.get_trades(limit=499), queries.get_trades(limit=500)
    assert (limited.limited, len(limited)) == (True, 499)
    assert (whole.limited, len(whole), whole.partial) == (False, 500, False)
    assert whole.span is not None
    assert whole.span.start == whole.rows()[-1].timestamp
    assert whole.span.end > whole.rows()[0].timestamp
    now = execute("SELECT now()::long")[0][0]
    recent = [trade(now - i * SECOND, trader_id="recent") for i in range(5)]
    insert("trades", [*recent, trade(now + 90 * 24 * HOUR, trader_id="recent")])
    assert len(queries.get_trades(trader_id="recent")) == 6
    last = queries.get_trades(trader_id="recent", limit=3)
    assert [row.timestamp for row in last] == [time_of(now + 90 * 24 * HOUR), time_of(now), time_of(now - SECOND)]
    assert last.limited
    assert got(start=now - SECOND) == [now + 90 * 24 * HOUR, now, now - SECOND]
    assert len(queries.get_trades(limit=10_000)) == 506


@pytest.mark.usefixtures("empty")
def test_empty_tables(queries: Queries) -> None:
    """On empty tables every query gives an empty, complete result; MEV analysis still names both kinds of trades."""
    for result in (
        queries.get_trades(),
        queries.get_positions(),
        queries.get_latency_percentiles(None, None, 60),
        queries.get_performance_metrics("latency", datetime.timedelta(days=1)),
    ):
        assert (len(result), result.partial) == (0, False)
        assert result.to_arrow().num_rows == 0
    mev = queries.get_mev_analysis(60).rows()
    assert [(row.protection_used, row.trades, row.avoided_share) for row in mev] == [(True, 0, None), (False, 0, None)]


@pytest.mark.usefixtures("empty")
def test_null_is_not_empty(queries: Queries, insert: Insert) -> None:
    """NULL and the empty string come back as they were stored, as rows, Arrow, pandas and Polars."""
    insert(
        "trades",
        [
            trade(BASE, tx_signature="", metadata=None, priority_fee=0, transfer_fees=None),
            trade(BASE + 1, tx_signature=None, metadata="", priority_fee=None, transfer_fees=0.5),
        ],
    )
    result = queries.get_trades(order="oldest")
    first, second = result.rows()
    assert (first.tx_signature, first.metadata, first.priority_fee, first.transfer_fees) == ("", None, 0, None)
    assert (second.tx_signature, second.metadata, second.priority_fee, second.transfer_fees) == (None, "", None, 0.5)
    assert first.timestamp == time_of(BASE)
    assert first.timestamp.utcoffset() == datetime.timedelta(0)
    table = pyarrow.table(result)  # through __arrow_c_stream__
    assert table.column("tx_signature").to_pylist() == ["", None]
    assert table.column("priority_fee").to_pylist() == [0, None]
    assert table.schema.field("timestamp").type == pyarrow.timestamp("us", tz="UTC")
    frame = result.to_polars()
    assert frame["tx_signature"].to_list() == ["", None]
    assert polars.DataFrame(result)["transfer_fees"].to_list() == [None, 0.5]
    pandas_frame = result.to_pandas()
    assert pandas_frame["tx_signature"].isna().tolist() == [False, True]
    assert pandas_frame["priority_fee"].dtype == "int64[pyarrow]"


def test_52_injection(queries: Queries, insert: Insert, execute: Execute, empty: None) -> None:
    """Hostile text is only ever a value: it matches exactly the rows that hold it, and no table changes.

    Defence: values are parameters.
    """
    insert("trades", [trade(BASE + i, trader_id=text, base_token=text or "e") for i, text in enumerate(HOSTILE)])
    insert(
        "latencies",
        [{"timestamp": BASE + i, "service": t, "operation": t, "latency_us": 1.0} for i, t in enumerate(HOSTILE)],
    )
    tables = execute("SELECT id, table_name FROM tables() ORDER BY id")

    @hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40)))
    @example("'; DROP TABLE trades; --")
    def attack(text: str) -> None:
        try:
            stored = [row.trader_id for row in queries.get_trades(trader_id=text)]
            assert stored == [text] * HOSTILE.count(text)
            assert len(queries.get_trades(token=text)) == (HOSTILE.count(text) if text else 0) + (text == "e")
            assert len(queries.get_positions(trader_id=text, token=text)) == 0
            found = queries.get_latency_percentiles(text, text, 60, percentiles=[50], end=BASE + SECOND)
            assert [row.service for row in found] == [text] * HOSTILE.count(text)
            assert queries.execute_query("SELECT cast(%s as varchar) x", [text]).rows()[0].x == text
        except QueryError as error:
            assert "\0" in text or "surrogate" in str(error)  # noqa: PT017 - the two texts that no column holds

    attack()
    assert execute("SELECT id, table_name FROM tables() ORDER BY id") == tables
    assert execute("SELECT count() FROM trades") == [(len(HOSTILE),)]


@pytest.mark.usefixtures("empty")
def test_positions(queries: Queries, insert: Insert) -> None:
    """Positions are the latest row of each trader, mode and token, however far back it lies."""

    def position(timestamp: int, trader: str, mode: str, token: str, quantity: float) -> dict[str, Any]:
        fields = dict.fromkeys(("average_entry_price", "mark_price", "realized_pnl", "unrealized_pnl"), 1.0)
        return {
            "timestamp": timestamp,
            "trader_id": trader,
            "mode": mode,
            "token": token,
            "quantity": quantity,
            **fields,
        }

    insert(
        "positions",
        [
            position(BASE, "t1", "paper", "SOL", 1.0),
            position(BASE + HOUR, "t1", "paper", "SOL", 2.0),
            position(BASE - 40 * 24 * HOUR, "t1", "paper", "BONK", 3.0),
            position(BASE + HOUR, "t1", "live", "SOL", 4.0),
            position(BASE + 2, "t2", "paper", "SOL", 5.0),
        ],
    )
    found = {(row.trader_id, row.mode, row.token): row.quantity for row in queries.get_positions()}
    assert found == {
        ("t1", "paper", "SOL"): 2.0,
        ("t1", "paper", "BONK"): 3.0,
        ("t1", "live", "SOL"): 4.0,
        ("t2", "paper", "SOL"): 5.0,
    }
    assert [row.quantity for row in queries.get_positions("t1", "paper", "SOL", end=BASE + 1)] == [1.0]
    assert len(queries.get_positions(token="SOL")) == 3


@pytest.mark.usefixtures("empty")
def test_mev_and_performance(queries: Queries, insert: Insert) -> None:
    """Both analyses equal the same sums made in Python, through the views and their raw edge minutes."""
    base = {"token_pair": "SOL/USDC", "trade_size": 1.0, "sandwich_probability": 0.5}
    mev = [
        {
            **base,
            "timestamp": BASE + i * 13 * SECOND,
            "estimated_loss_bps": float(i),
            "actual_loss_bps": None if i % 4 == 0 else float(i % 10),
            "protection_used": i % 3 == 0,
            "priority_fee_lamports": i * 10,
            "avoided": i % 5 == 0,
        }
        for i in range(300)
    ]
    insert("mev_metrics", mev)
    end, duration = BASE + 290 * 13 * SECOND + 1, 3_000
    inside = [row for row in mev if end - duration * SECOND <= row["timestamp"] < end]
    result = queries.get_mev_analysis(duration, end=end)
    assert result.source == "view"
    for row in result:
        of = [r for r in inside if r["protection_used"] == row.protection_used]
        known = [r["actual_loss_bps"] for r in of if r["actual_loss_bps"] is not None]
        assert (row.trades, row.actual_samples) == (len(of), len(known))
        assert row.avoided == sum(r["avoided"] for r in of)
        assert row.avoided_share == pytest.approx(row.avoided / row.trades)
        assert row.priority_fee_lamports == sum(r["priority_fee_lamports"] for r in of)
        assert row.estimated_loss_bps == pytest.approx(sum(r["estimated_loss_bps"] for r in of) / len(of))
        assert row.actual_loss_bps == pytest.approx(sum(known) / len(known))
    metrics = [
        {
            "timestamp": BASE + i * 13 * SECOND,
            "metric_type": "latency",
            "operation": f"o{i % 2}",
            "value": float(i),
            "percentile": (None, 50, 99)[i % 3],
        }
        for i in range(300)
    ]
    insert("performance_metrics", metrics)
    result2 = queries.get_performance_metrics("latency", duration, end=end)
    assert (len(result2), result2.source) == (6, "view")
    for row2 in result2:
        values = [
            m["value"]
            for m in metrics
            if (m["operation"], m["percentile"]) == (row2.operation, row2.percentile)
            and end - duration * SECOND <= m["timestamp"] < end
        ]
        assert row2.samples == len(values)
        assert row2.mean == pytest.approx(sum(values) / len(values))
        assert (row2.minimum, row2.maximum, row2.last) == (min(values), max(values), values[-1])
    assert len(queries.get_performance_metrics("throughput", duration, end=end)) == 0


def test_execute_query(queries: Queries) -> None:
    """Any SQL works: named rows, odd column names, parameters, a percent sign, several types, a bad statement."""
    row = queries.execute_query("SELECT 1 a, 'x%%' b, null::long c, %s::double d, true e", [2.5]).rows()[0]
    assert (row.a, row.b, row.c, row.d, row.e) == (1, "x%", None, 2.5, True)
    result = queries.execute_query("SELECT count(), now() AS \"class\" FROM long_sequence(3) WHERE 'a' LIKE 'a%'")
    assert result.columns == ("count()", "class")
    assert result.rows()[0][0] == 3
    assert result.rows()[0][1].utcoffset() == datetime.timedelta(0)
    with pytest.raises(QueryError, match="nope"):
        queries.execute_query("SELECT nope FROM trades")
    created = queries.execute_query("CREATE TABLE IF NOT EXISTS made_here (a INT)")
    assert (len(created), created.columns) == (0, ())
    queries.execute_query("DROP TABLE made_here")


def test_execute_query_times(queries: Queries) -> None:
    """Times of any query are aware, to the microsecond and over all years, beside NULL; Arrow gives the same ones."""
    sql = """
        SELECT cast(253402300799999999 as timestamp) at, 1 n, null::timestamp none UNION ALL
        SELECT cast(-1 as timestamp) at, 2 n, cast(cast(1760000000123 as date) as timestamp) none
    """
    result = queries.execute_query(sql)
    last, before = result.rows()
    assert last.at == datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC)
    assert before.at == datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC)
    assert (last.n, last.none, before.n, before.none) == (1, None, 2, time_of(1_760_000_000_123_000))
    assert all(value.tzinfo is datetime.UTC for value in (last.at, before.at, before.none))
    frame = result.to_arrow()
    assert frame.schema.field("at").type == pyarrow.timestamp("us", tz="UTC")
    assert [tuple(values.values()) for values in frame.to_pylist()] == [tuple(row) for row in result]
    none = queries.execute_query("SELECT timestamp FROM trades WHERE trader_id = 'nobody'")
    assert (none.rows(), none.to_arrow().num_rows) == ([], 0)


def test_timeout_raises_and_ends_the_query(queries: Queries, execute: Execute) -> None:
    """execute_query raises QueryTimeout at its time, the server stops working on it, and the pool goes on."""
    queries.execute_query("SELECT 1")  # a pool that has no connection yet would be what runs out of time
    began = time.monotonic()
    with pytest.raises(QueryTimeout, match="out of time"):
        queries.execute_query(ENDLESS, timeout_ms=150)
    assert time.monotonic() - began < 20  # of the 30 that a query has without `timeout_ms`
    running = "SELECT query FROM query_activity() WHERE query LIKE %s AND NOT query LIKE %s"
    wait_until(lambda: not execute(running, ("%long_sequence(1000000000%", "%activity%")), "the server to stop working")
    assert queries.execute_query("SELECT 1 x").rows()[0].x == 1


def test_prepared_statements(settings: Settings, insert: Insert, execute: Execute, empty: None) -> None:
    """A repeated query is prepared on the server, and goes on after the table has got a column."""
    insert("trades", [trade(BASE)])
    one = Settings(**{**_fields(settings), "query_pool_size_min": 1, "query_pool_size_max": 1})
    with Queries(one) as queries:
        for _ in range(4):
            assert len(queries.get_trades()) == 1
        with queries._pool.connection() as connection:
            assert connection._prepared._names
        execute("ALTER TABLE trades ADD COLUMN added_later INT")
        assert len(queries.get_trades()) == 1
        execute("ALTER TABLE trades DROP COLUMN added_later")
        assert len(queries.get_trades()) == 1


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


@pytest.mark.usefixtures("empty")
def test_many_threads(queries: Queries, insert: Insert) -> None:
    """50 threads over 10 connections all get whole and right results; the pool's counters say so."""
    insert("trades", [trade(BASE + i, trader_id=f"t{i % 50}") for i in range(500)])
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(5):
            rows = queries.get_trades(trader_id=f"t{number}").rows()
            if [row.trader_id for row in rows] != [f"t{number}"] * 10:
                wrong.append(rows)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    statistics = queries.statistics()
    assert statistics["requests_num"] >= 250
    assert statistics["pool_size"] <= 10


async def test_async_queries(settings: Settings, insert: Insert, empty: None) -> None:
    """AsyncQueries has the names, results and errors of Queries, from one event loop, many calls at a time."""
    import asyncio

    insert("trades", [trade(BASE + i, trader_id=f"t{i % 20}") for i in range(200)])
    names = {name for name in dir(Queries) if not name.startswith("_")}
    assert names == {name for name in dir(AsyncQueries) if not name.startswith("_")}
    async with AsyncQueries(settings) as queries:
        results = await asyncio.gather(*(queries.get_trades(trader_id=f"t{i}") for i in range(20)))
        assert [[row.trader_id for row in result] for result in results] == [[f"t{i}"] * 10 for i in range(20)]
        assert len(await queries.get_mev_analysis(60)) == 2
        assert len(await queries.get_positions()) == 0
        assert len(await queries.get_performance_metrics("latency", 60)) == 0
        assert len(await queries.get_latency_percentiles("s", "o", 60)) == 0
        assert (await queries.execute_query("SELECT %s::int x", [5])).rows()[0].x == 5
        moment = await queries.execute_query(f"SELECT cast({BASE} as timestamp) at")
        assert moment.rows()[0].at == time_of(BASE)
        with pytest.raises(QueryTimeout):
            await queries.execute_query(ENDLESS, timeout_ms=150)
        with pytest.raises(QueryError):
            await queries.get_trades(limit=-1)
        assert (await queries.execute_query("SELECT 1 x")).rows()[0].x == 1


def test_plain_psycopg_sees_the_same(settings: Settings, queries: Queries, insert: Insert, empty: None) -> None:
    """A typed row holds the values that a bare psycopg cursor reads."""
    insert("trades", [trade(BASE + 1, tx_signature="sig", transfer_fees=0.25)])
    with psycopg.connect(
        host=settings.questdb_host,
        port=settings.questdb_pg_port,
        user=settings.questdb_user,
        password=settings.questdb_password.reveal(),
        autocommit=True,
    ) as connection:
        names = ", ".join(name for name, _ in struct_columns(TradeRow))
        bare = connection.execute(f"SELECT {names} FROM trades").fetchall()[0]
    row = queries.get_trades(TradeFilter()).rows()[0]
    typed = [getattr(row, name) for name, _ in struct_columns(TradeRow)]
    assert typed == [bare[0].replace(tzinfo=datetime.UTC), *bare[1:]]
