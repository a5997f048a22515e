"""Finding 32, on a real server: times in every form, records of one's own type, parameters by name; sync and async."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from platform_rows import Execute, Insert, trade, wait_applied

from ringlog.errors import QueryError, SchemaMismatch
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.questdb.queries import Queries
from ringlog.questdb.results import Result
from ringlog.records import Json, LatencySample, Long, Record, Symbol, Varchar, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.times import time_of

SECOND = 1_000_000
HOUR = 3_600 * SECOND


class Fill(Record):
    """A type of a user's own, with columns that are words of SQL."""

    __table__ = "finding_32_fills"

    venue: Annotated[str, Symbol(16)]
    price: float | None
    order: Annotated[int, Long()]
    limit: bool
    side: Literal["buy", "sell"] = "buy"
    note: Annotated[str | None, Varchar(64)] = None
    details: Annotated[dict[str, Any] | str | None, Json(64)] = None


class Unmade(Record):
    """A type whose table nobody made."""

    __table__ = "finding_32_unmade"

    price: float


HOSTILE = "a' OR '1'='1 -- %s %(x)s %"


@pytest.fixture(scope="module")
def fills(server: QuestDBServer) -> int:
    """Three rows, an hour, two hours and three hours before a time, which is returned in microseconds."""
    settings = Settings(**server.settings(), request_timeout_ms=10_000)
    migrate(settings, [layout_of(Fill)])
    connection = Connection.from_settings(settings)
    ((now,),) = connection.execute("SELECT now()::long")
    rows = [("kraken", 1.5, None, '{"a": [1]}'), ("okx", None, HOSTILE, "no JSON"), ("okx", 2.5, "", None)]
    for seq, row in enumerate(rows, 1):
        connection.execute(
            'INSERT INTO finding_32_fills (timestamp, lane, seq, "order", "limit", side, venue, price, note, details) '
            "VALUES (cast(%s AS timestamp), 7, %s, %s, %s, 'buy', %s, %s, %s, %s)",
            (now - seq * HOUR, seq, seq, seq == 1, *row),
        )
    wait_applied(connection.execute, Fill.__table__, views=False)
    connection.close()
    return int(now)


WHERE: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3]),
    ({"venue": "okx"}, [2, 3]),
    ({"venue !=": "okx"}, [1]),
    ({"venue": ["okx", "kraken"]}, [1, 2, 3]),
    ({"venue !=": ("okx", "kraken")}, []),
    ({"price >=": 1.5}, [1, 3]),
    ({"price>": 1, "price <": 2}, [1]),
    ({"price": None}, [2]),
    ({"price !=": None}, [1, 3]),
    ({"order": 2}, [2]),
    ({"order <=": 2, "lane": 7}, [1, 2]),
    ({"seq": {2, 3}}, [2, 3]),
    ({"limit": True}, [1]),
    ({"limit": False}, [2, 3]),
    ({"side": "buy"}, [1, 2, 3]),
    ({"note": HOSTILE}, [2]),
    ({"note": ""}, [3]),
    ({"note": ["", None]}, [1, 3]),
]


def test_finding_32_records_of_an_own_type(settings: Settings, fills: int) -> None:
    """Finding 32: rows come back as the type's instances, NULL as None and JSON as what was appended."""
    with Queries(settings) as queries:
        found: Result[Fill] = queries.records(Fill, since="1d")
        first, second, third = found
        assert first == Fill(
            timestamp=time_of(fills - HOUR), venue="kraken", price=1.5, order=1, limit=True, details={"a": [1]}
        )
        assert (second.note, second.price, second.details, third.note) == (HOSTILE, None, "no JSON", "")
        assert found.to_arrow().column("seq").to_pylist() == [1, 2, 3]
        for where, orders in WHERE:
            assert [fill.order for fill in queries.records(Fill, where=where)] == orders, where
        assert [fill.order for fill in queries.records(Fill, order="oldest", limit=2)] == [3, 2]
        limited = queries.records(Fill, limit=2)
        assert (len(limited), limited.limited) == (2, True)
        with pytest.raises(SchemaMismatch, match=r"finding_32_unmade.*ringlog migrate"):
            queries.records(Unmade)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"pric": 1}, r"unknown column 'pric' of Fill, wanted one of venue, .*, lane, seq, did you mean price\?"),
        ({"timestamp >": 1}, "wanted the time as since, start, end or duration"),
        ({"venue; DROP TABLE fills": 1}, "wanted a column"),
        ({7: 1}, "wanted a column"),
        ({"venue": 7}, r"where\['venue'\]: got 7 \(int\), wanted a str"),
        ({"price": "1"}, "wanted a finite number"),
        ({"price": float("nan")}, "wanted a finite number"),
        ({"price": 10**400}, "wanted a finite number"),
        ({"price": True}, "wanted a finite number"),
        ({"order": 1.0}, "wanted an int of 64 bits"),
        ({"order": 2**63}, "wanted an int of 64 bits"),
        ({"limit": 1}, "wanted a bool"),
        ({"side": "hold"}, "wanted one of buy, sell"),
        ({"venue >": "a"}, "wanted = or !="),
        ({"price <": None}, "wanted = or !="),
        ({"order <": [1]}, "with = or !="),
        ({"order": []}, "got 0 values"),
        ({"note": "a\0b"}, "NUL"),
        ("venue = 'okx'", "wanted a mapping"),
    ],
)
def test_finding_32_conditions_are_checked(where: Any, said: str) -> None:
    """Finding 32: a condition that no row could meet, or that is none, is refused by name, before anything is asked."""
    with pytest.raises(QueryError, match=said):
        Queries(Settings(questdb_pg_port=1)).records(Fill, where=where)


def test_finding_32_only_record_types_have_records() -> None:
    """Finding 32: what is no record type is named."""
    for wrong in (int, Record, Fill.__table__, None):
        with pytest.raises(QueryError, match="wanted a record type"):
            Queries(Settings(questdb_pg_port=1)).records(wrong)  # type: ignore[type-var, arg-type]


@pytest.fixture
async def clients(settings: Settings) -> AsyncIterator[tuple[Queries, AsyncQueries]]:
    """Both clients, of few connections: most of such a test's time would be theirs."""
    settings = msgspec.structs.replace(settings, query_pool_size_min=1)
    with Queries(settings) as queries:
        async with AsyncQueries(settings) as async_queries:
            yield queries, async_queries


async def both(clients: tuple[Queries, AsyncQueries], call: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
    """The tuples that a call of `Queries` gives, which that of `AsyncQueries` must give as well."""
    queries, async_queries = clients
    found = list(call(queries).tuples())
    assert list((await call(async_queries)).tuples()) == found
    return found


async def test_finding_32_times_in_every_form(clients: tuple[Queries, AsyncQueries], fills: int) -> None:
    """Finding 32: an instant or a length gives the same rows in whichever form and argument it is said."""
    east = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    instant = time_of(fills - 5 * HOUR // 2)
    spans: list[dict[str, Any]] = [
        {"since": instant},
        {"start": instant.astimezone(east)},
        {"start": instant.isoformat()},
        {"since": fills - 5 * HOUR // 2},
        {"duration": "2h30m"},
        {"since": datetime.timedelta(hours=2.5)},
        {"since": 9_000},
        {"duration": 9_000.0, "end": "now"},
        {"start": "150m", "duration": "1d"},
        {"end": instant + datetime.timedelta(hours=3), "duration": "3h"},
    ]
    for span in spans:
        rows = await both(clients, lambda queries, span=span: queries.records(Fill, **span))
        assert [row[2] for row in rows] == [1, 2], span
    rows = await both(clients, lambda queries: queries.records(Fill, start="1d", end="150m"))
    assert [row[2] for row in rows] == [3]
    for call in (
        lambda queries: queries.records(Fill, since="1h", end=instant),
        lambda queries: queries.get_mev_analysis(since=time_of(fills + 24 * HOUR)),
    ):
        with pytest.raises(QueryError, match="wanted start before end"):
            await both(clients, call)


@pytest.mark.usefixtures("empty")
async def test_finding_32_every_typed_query_takes_them(
    clients: tuple[Queries, AsyncQueries], insert: Insert, execute: Execute
) -> None:
    """Finding 32: since, start and duration choose the same rows in every query, `operation` one of them."""
    ((now,),) = execute("SELECT now()::long")
    minutes = (5, 90)
    insert("trades", [trade(now - at * 60 * SECOND, base_amount=float(at)) for at in minutes])
    insert(
        "latencies",
        [{"timestamp": now - at * 60 * SECOND, "service": "s", "operation": "o", "latency_us": 9.0} for at in minutes],
    )
    insert(
        "performance_metrics",
        [
            {"timestamp": now - at * 60 * SECOND, "metric_type": "latency", "operation": name, "value": float(at)}
            for at in minutes
            for name in ("buy", "sell")
        ],
    )
    insert(
        "positions",
        [
            {
                "timestamp": now - at * 60 * SECOND,
                "trader_id": f"t{at}",
                "mode": "paper",
                "token": "SOL",
                "quantity": 1.0,
                **dict.fromkeys(("average_entry_price", "mark_price", "realized_pnl", "unrealized_pnl"), 1.0),
            }
            for at in minutes
        ],
    )
    for last, counted in (("1h", 1), ("2h", 2)):
        for span in ({"since": last}, {"start": last}, {"duration": last}):
            assert len(await both(clients, lambda q, span=span: q.get_trades(**span))) == counted
            assert len(await both(clients, lambda q, span=span: q.get_positions(**span))) == counted
            assert len(await both(clients, lambda q, span=span: q.records(LatencySample, **span))) == counted
            ((*_, samples),) = await both(
                clients, lambda q, span=span: q.get_latency_percentiles("s", "o", percentiles=[50], **span)
            )
            assert samples == counted
            rows = await both(clients, lambda q, span=span: q.get_performance_metrics("latency", **span))
            assert [row[1:4] for row in rows] == [("buy", None, counted), ("sell", None, counted)]
            rows = await both(
                clients, lambda q, span=span: q.get_performance_metrics("latency", operation="sell", **span)
            )
            assert [row[1:4] for row in rows] == [("sell", None, counted)]
    assert await both(clients, lambda q: q.get_performance_metrics("latency", "2h", operation="none")) == []


async def test_finding_32_parameters_by_name(clients: tuple[Queries, AsyncQueries], fills: int) -> None:
    """Finding 32: `%(name)s` takes its value of a mapping, wherever it stands; `%%` is a percent sign."""
    sql = (
        "SELECT venue, %(note)s AS note, '%%' AS percent FROM finding_32_fills "
        "WHERE note = %(note)s AND timestamp < cast(%(end)s AS timestamp)"
    )
    rows = await both(clients, lambda queries: queries.execute_query(sql, {"note": HOSTILE, "end": fills}))
    assert rows == [("okx", HOSTILE, "%")]
    texts = "SELECT null AS nothing, %(a)s AS a, %(a)s AS b"  # which the server has no binary form of
    assert await both(clients, lambda queries: queries.execute_query(texts, {"a": "%s"})) == [(None, "%s", "%s")]
    assert await both(clients, lambda queries: queries.execute_query("SELECT '%(a)s %' x")) == [("%(a)s %",)]
    assert await both(clients, lambda queries: queries.execute_query("SELECT '%%' x", {})) == [("%",)]
    quotes = "SELECT 'it''s' x, %(a)s y -- isn't\n, '%%s' z"
    assert await both(clients, lambda queries: queries.execute_query(quotes, {"a": "'"})) == [("it's", "'", "%s")]


@pytest.mark.parametrize(
    ("sql", "params", "said"),
    [
        ("SELECT %(venue)s", {"venu": 1}, "got params venu, wanted also 'venue', did you mean venu?"),
        ("SELECT %(venue)s", {}, "got params none, wanted also 'venue'"),
        ("SELECT %(a)s", {"a": 1, "b": 2}, "got param 'b' that the SQL does not use, wanted a"),
        ("SELECT 1", {"b": 2}, "got param 'b' that the SQL does not use, wanted none"),
        ("SELECT %(a)s, %s", {"a": 1}, r"got %s and %\(a\)s in one statement"),
        ("SELECT %s", {"a": 1}, "got params by name for %s"),
        ("SELECT %(a)s", [1], r"got params as a sequence for %\(a\)s"),
        ("SELECT %s, %s", [1], "got 1 params, wanted 2"),
        ("SELECT 1", [1], "got 1 params, wanted 0"),
        ("SELECT '5%' , %(a)s", {"a": 1}, "for a percent sign"),
        ("SELECT %(a)d", {"a": 1}, "for a percent sign"),
        ("SELECT %", {}, "for a percent sign"),
        ("SELECT * FROM trades WHERE trader_id = '%s'", ["t1"], "got %s inside quotes"),
        ("SELECT 'it''s' x, 'a %(a)s'", {"a": 1}, r"got %\(a\)s inside quotes"),
        ('SELECT 1 "%s"', [1], "got %s inside quotes"),
        ("SELECT %s -- it's\n, '%s'", [1, 2], "got %s inside quotes"),
        ("SELECT %(a)s", {"a": "x\0"}, r"params\['a'\].*NUL"),
        ("SELECT %(a)s", {1, 2}, "got params set, wanted a sequence of values or a mapping"),
        ("SELECT %(a)s", b"ab", "got params bytes"),
    ],
)
async def test_finding_32_parameters_are_counted(sql: str, params: Any, said: str) -> None:
    """Finding 32: a parameter that is missing, not used or of the other form is refused by name, sync and async."""
    settings = Settings(questdb_pg_port=1)
    with pytest.raises(QueryError, match=said):
        Queries(settings).execute_query(sql, params)
    with pytest.raises(QueryError, match=said):
        await AsyncQueries(settings).execute_query(sql, params)
