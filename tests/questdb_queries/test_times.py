"""Finding 32: the words for times mean the same in every call and command, and what is no time is refused by name."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import math
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ringlog.cli import ringlog
from ringlog.errors import QueryError
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.filters import TradeFilter
from ringlog.questdb.queries import Queries
from ringlog.records import LatencySample
from ringlog.settings import Settings
from ringlog.times import NOW, Bounds, Point, bounds, duration_us, point

HOUR = 3_600_000_000
UTC = datetime.UTC
NINE = 1_796_029_200_000_000  # 2026-11-30T09:00Z
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
IN_PARIS = datetime.timezone(datetime.timedelta(hours=1))

POINTS: list[tuple[Any, Point]] = [
    (datetime.datetime(2026, 11, 30, 9, tzinfo=UTC), Point(NINE)),
    (datetime.datetime(2026, 11, 30, 10, tzinfo=IN_PARIS), Point(NINE)),
    ("2026-11-30T10:00+01:00", Point(NINE)),
    ("2026-11-30 09:00:00.000001Z", Point(NINE + 1)),
    ("2026-11-30", Point(NINE - 9 * HOUR)),
    (datetime.date(2026, 11, 30), Point(NINE - 9 * HOUR)),
    (NINE, Point(NINE)),
    (np.int64(NINE), Point(NINE)),
    (str(NINE), Point(NINE)),
    ("now", NOW),
    *((text, Point(HOUR, is_ago=True)) for text in ("1h", "60m", "3600s", "3600", "0.5h30m", "59m60s", "3600000ms")),
    *((each, Point(HOUR, is_ago=True)) for each in (3_600, 3_600.0, np.float32(3_600), datetime.timedelta(hours=1))),
    ("2d", Point(48 * HOUR, is_ago=True)),
    ("1w", Point(168 * HOUR, is_ago=True)),
    (np.int8(100), Point(100_000_000, is_ago=True)),
    (pd.Timestamp(NINE, unit="us", tz="Europe/Paris"), Point(NINE)),
    (pd.Timedelta(hours=1), Point(HOUR, is_ago=True)),
    (datetime.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), Point(1_792_888_200_000_000)),
    (datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), Point(1_792_888_200_000_000 + HOUR)),
]


@pytest.mark.parametrize(("value", "wanted"), POINTS)
def test_finding_32_points(value: Any, wanted: Point) -> None:
    """Finding 32: aware datetimes, dates, timedeltas, numbers of seconds and texts are points in time."""
    assert point("start", value) == wanted


@pytest.mark.parametrize("value", [each for each, wanted in POINTS if wanted.microseconds == HOUR])
def test_finding_32_durations(value: Any) -> None:
    """Finding 32: what says how long ago says how long, too."""
    assert duration_us("duration", value) == HOUR


# Lengths, as which nobody would mean them where a point in time is wanted.
NO_POINTS: list[Any] = ["2026", "202611", "20261130"]
NO_TIMES: list[Any] = [
    True, 0, -1, -0.0, math.nan, math.inf, 1e300, 10**5_000, -(10**5_000), 1_760_000_000, 1_760_000_000_000, 10**18,
    "", "soon", "1 h", " 1h", "-1h", "1e300", "nan", "99999999d", "9" * 5_000 + "d", "1h1h", "5m2h", "٣h", "1y",
    "2026-13-01", "2026-11-30T25:00Z", "2026-11-30T10:00", "2026-11-30T10:00:00.1234567Z", "2101-01-01", "1969-12-31",
    datetime.datetime(2026, 11, 30), datetime.datetime.max.replace(tzinfo=UTC),
    datetime.datetime.min.replace(tzinfo=UTC), datetime.timedelta(0), datetime.timedelta(hours=-1),
    datetime.timedelta.max, datetime.timedelta.min, b"1h", [], 1j, np.timedelta64(1, "h"),
    np.datetime64("2026-11-30"), np.bool_(True), pd.NaT, pd.Timestamp(NINE, unit="us"),
    pd.Timestamp(NINE * 1_000 + 1, unit="ns", tz="UTC"), pd.Timedelta(1, "ns"), datetime.time(9),
]  # fmt: skip


def test_finding_32_no_times() -> None:
    """Finding 32: nothing overflows or is guessed: an absurd, naive or ambiguous value is refused under its name."""
    for value in NO_POINTS + NO_TIMES:
        with pytest.raises(QueryError, match=r"^call\.start: got (.|\n)*, wanted "):
            point("call.start", value)
    for value in NO_TIMES:
        with pytest.raises(QueryError, match=r"^call\.duration: got (.|\n)*, wanted above 0 and at most 3660 days"):
            duration_us("call.duration", value)


def test_finding_32_spans() -> None:
    """Finding 32: a duration lies behind the start, before the end, or before now."""
    assert bounds("call", since="2h") == bounds("call", start="2h") == Bounds(Point(2 * HOUR, is_ago=True), None)
    assert bounds("call", duration="2h") == Bounds(Point(2 * HOUR, is_ago=True), NOW)
    assert bounds("call", duration="2h", end=NINE) == Bounds(Point(NINE - 2 * HOUR), Point(NINE))
    assert bounds("call", duration="2h", start=NINE) == Bounds(Point(NINE), Point(NINE + 2 * HOUR))
    assert bounds("call", duration="2h", end="1h") == Bounds(Point(3 * HOUR, is_ago=True), Point(HOUR, is_ago=True))
    assert bounds("call", since="2h", end=NINE).at("call", NINE + HOUR) == (NINE - HOUR, NINE)
    assert bounds("call", start="1970-01-02", end="2026-11-30").at("call", None)[0] == 24 * HOUR


CONTRADICTIONS = [
    ({"since": "1h", "start": "1h"}, "got since '1h' and start '1h', wanted one of them"),
    ({"since": "3h", "end": "1h", "duration": "1h"}, "got since, end and duration, wanted two of them"),
    ({"start": "1h", "end": "2h"}, "wanted start before end"),
    ({"since": "2026-11-30", "end": "2026-11-30T00:00Z"}, "wanted start before end"),
    ({"start": "now", "end": "now"}, "wanted start before end"),
]
Call = Callable[[Any, dict[str, Any]], Any]
CALLS: dict[str, Call] = {
    "TradeFilter": lambda queries, span: queries.get_trades(**span),
    "get_positions": lambda queries, span: queries.get_positions(**span),
    "get_mev_analysis": lambda queries, span: queries.get_mev_analysis(**span),
    "get_performance_metrics": lambda queries, span: queries.get_performance_metrics("latency", **span),
    "get_latency_percentiles": lambda queries, span: queries.get_latency_percentiles(None, None, **span),
    "records": lambda queries, span: queries.records(LatencySample, **span),
}
COMMANDS = {
    "TradeFilter": ["trades"],
    "get_positions": ["positions"],
    "get_mev_analysis": ["mev"],
    "get_performance_metrics": ["performance", "latency"],
    "get_latency_percentiles": ["percentiles"],
    "records": ["records", "Trade"],
}


def ask(queries: Queries | AsyncQueries, call: Call, span: dict[str, Any]) -> Any:
    answer = call(queries, span)
    return asyncio.run(answer) if inspect.isawaitable(answer) else answer


@pytest.mark.parametrize("client", [Queries, AsyncQueries])
@pytest.mark.parametrize("name", CALLS)
def test_finding_32_every_call_refuses_the_same(name: str, client: type[Queries | AsyncQueries]) -> None:
    """Finding 32: each typed query, with threads or asyncio, refuses contradictions and naive times before it asks."""
    queries = client(Settings(questdb_pg_port=1))  # never opened
    for span, said in CONTRADICTIONS:
        with pytest.raises(QueryError, match=f"^{name}: .*{said}"):
            ask(queries, CALLS[name], span)
    for argument in ("since", "start", "end"):
        with pytest.raises(QueryError, match=rf"^{name}\.{argument}: got a naive datetime"):
            ask(queries, CALLS[name], {argument: datetime.datetime(2026, 11, 30)})
    if name.startswith("get_") and name != "get_positions":
        with pytest.raises(QueryError, match=f"^{name}: got no duration, since or start"):
            ask(queries, CALLS[name], {"end": "1h"})


@pytest.mark.parametrize("name", COMMANDS)
def test_finding_32_every_command_refuses_the_same(name: str) -> None:
    """Finding 32: each command that shows a typed query refuses them too, with exit status 2, before it asks."""
    for span, said in CONTRADICTIONS:
        options = [part for argument, value in span.items() for part in (f"--{argument}", value)]
        done = CliRunner().invoke(ringlog, [*COMMANDS[name], *options], env={"RINGLOG_QUESTDB_PG_PORT": "1"})
        assert (done.exit_code, said in " ".join(done.output.split())) == (2, True), done.output
    for argument in ("since", "start", "end"):
        done = CliRunner().invoke(ringlog, [*COMMANDS[name], f"--{argument}", "2026-11-30T10:00"])
        assert done.exit_code == 2
        assert f"'--{argument}': got '2026-11-30T10:00' without a time zone" in " ".join(done.output.split())


def test_finding_32_a_filter_says_its_own_name() -> None:
    """Finding 32: a TradeFilter that contradicts itself is refused when it is made."""
    with pytest.raises(QueryError, match=r"TradeFilter\.duration: got 'ages', wanted above 0"):
        TradeFilter(duration="ages")
