"""Bad input raises a typed error that names the field, what was got and what was wanted, before anything is sent."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest

from ringlog.errors import QueryError
from ringlog.questdb.filters import TradeFilter
from ringlog.questdb.queries import Queries
from ringlog.settings import Settings

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"trader": "t1"}, "trader"),
        ({"start": NOW, "end": NOW - datetime.timedelta(days=1)}, "start before end"),
        ({"start": NOW, "end": NOW}, "start before end"),
        ({"start": datetime.datetime(2026, 1, 1)}, "naive"),
        ({"start": "2026-01-01T10:00"}, "without a time zone"),
        ({"start": 1_700_000_000_000_000_000}, "2100"),
        ({"end": -1}, "-1"),
        ({"end": True}, "bool"),
        ({"limit": -1}, "-1"),
        ({"limit": 0}, "limit"),
        ({"limit": 2_000_000}, "1000000"),
        ({"limit": True}, "limit"),
        ({"limit": "10"}, "limit"),
        ({"order": "random"}, "newest"),
        ({"mode": "demo"}, "paper"),
        ({"action": "'; DROP TABLE trades; --"}, "buy"),
        ({"mev_status": ""}, "protected"),
        ({"trader_id": 7}, "int"),
        ({"trader_id": "a\0b"}, "NUL"),
        ({"trader_id": "x" * 2_000}, "2000 bytes"),
        ({"token": "\ud800"}, "surrogate"),
    ],
)
def test_bad_trade_filter(fields: dict[str, Any], named: str) -> None:
    """A trade filter that cannot be meant raises QueryError and says what is wrong."""
    with pytest.raises(QueryError, match=named):
        TradeFilter(**fields)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda q: q.get_trades("t1"), "TradeFilter"),
        (lambda q: q.get_trades(TradeFilter(), limit=3), "one or the other"),
        (lambda q: q.get_trades(colour="red"), "colour"),
        (lambda q: q.get_mev_analysis(0), "duration"),
        (lambda q: q.get_mev_analysis(-5), "duration"),
        (lambda q: q.get_mev_analysis(math.inf), "duration"),
        (lambda q: q.get_mev_analysis(math.nan), "duration"),
        (lambda q: q.get_mev_analysis("1y"), "duration"),
        (lambda q: q.get_mev_analysis(datetime.timedelta(days=5_000)), "duration"),
        (lambda q: q.get_performance_metrics("speed", 60), "latency"),
        (lambda q: q.get_performance_metrics(None, 60), "metric_type"),
        (lambda q: q.get_latency_percentiles("s", "o", 60, percentiles=[0]), "percentiles"),
        (lambda q: q.get_latency_percentiles("s", "o", 60, percentiles=[101]), "percentiles"),
        (lambda q: q.get_latency_percentiles("s", "o", 60, percentiles="99"), "percentiles"),
        (lambda q: q.get_latency_percentiles("s", "o", 60, percentiles=[]), "percentiles"),
        (lambda q: q.get_latency_percentiles(b"s", "o", 60), "service"),
        (lambda q: q.get_positions(mode="demo"), "paper"),
        (lambda q: q.execute_query("  "), "SQL"),
        (lambda q: q.execute_query(None), "SQL"),
        (lambda q: q.execute_query("select 1\0"), "NUL"),
        (lambda q: q.execute_query("select %s", "x"), "sequence"),
        (lambda q: q.execute_query("select 1", timeout_ms=0), "timeout_ms"),
        (lambda q: q.execute_query("select 1", timeout_ms="5"), "timeout_ms"),
        (lambda q: q.resume({"method": "close"}), "continuation"),
    ],
)
def test_bad_call(call: Any, named: str) -> None:
    """A call with bad arguments raises QueryError at once: no server is there to be asked."""
    queries = Queries(Settings(questdb_pg_port=1))  # never opened
    with pytest.raises(QueryError, match=named):
        call(queries)
