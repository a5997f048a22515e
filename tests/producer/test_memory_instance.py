"""The pytest plugin for users: code that appends is tested without a server."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import pytest

from ringlog import Producer
from ringlog.records import PLATFORM_RECORDS, LatencySample, Record, Symbol, Trade, Varchar
from ringlog.testing import MemoryInstance


class Fill(Record):
    """The documentation's example of a user's own record type."""

    __table__ = "fills"

    venue: Annotated[str, Symbol(16)]
    side: Literal["bid", "ask"]
    price: float
    note: Annotated[str | None, Varchar(64)] = None


def test_what_was_appended_is_read_back(ringlog_memory: MemoryInstance) -> None:
    """Appended by position, by name, bound and as an object: all are rows, with NULL as None."""
    producer = ringlog_memory.producer(Fill)
    appender = producer.appender(Fill)
    assert appender.append("x", "bid", 1.5)
    assert appender.append(venue="y", side="ask", price=2.5, note="")
    assert appender.bind(venue="z", side="bid")(3.5)
    assert producer.record(Fill(venue="w", side="ask", price=4.5, timestamp=time.time_ns() // 1000))
    rows = ringlog_memory.rows(Fill)
    assert [(row["venue"], row["side"], row["price"], row["note"]) for row in rows] == [
        ("x", "bid", 1.5, None),
        ("y", "ask", 2.5, ""),
        ("z", "bid", 3.5, None),
        ("w", "ask", 4.5, None),
    ]
    assert [row["seq"] for row in rows] == [0, 1, 2, 3]
    assert len({row["lane"] for row in rows}) == 1


def test_code_with_a_producer_of_its_own(ringlog_memory: MemoryInstance) -> None:
    """A Producer made from the environment appends to the fixture's instance, and rows keep coming."""
    with Producer([LatencySample]) as producer:
        append = producer.appender(LatencySample).bind(service="s", operation="o")
        assert append(1.0)
        assert [row["latency_us"] for row in ringlog_memory.rows(LatencySample)] == [1.0]
        assert append(2.0)
    assert [row["latency_us"] for row in ringlog_memory.rows(LatencySample)] == [1.0, 2.0]
    assert ringlog_memory.rows(Trade) == []


def test_more_than_a_lane_holds(ringlog_memory: MemoryInstance) -> None:
    """Reading rows gives the slots back, so that a long test is not refused."""
    append = ringlog_memory.producer(Fill, lane_bytes={Fill: 4096}).appender(Fill).append
    for number in range(500):
        if not append("x", "bid", float(number)):
            ringlog_memory.rows(Fill)
            assert append("x", "bid", float(number))
    assert [row["price"] for row in ringlog_memory.rows(Fill)] == [float(number) for number in range(500)]


def test_what_two_producers_take_unread(ringlog_memory: MemoryInstance) -> None:
    """One producer of every record type and a second one of trades take a thousand of each before any is read."""
    everything, trades = ringlog_memory.producer(), ringlog_memory.producer(Trade)
    assert min(everything.appender(record).room for record in PLATFORM_RECORDS) >= 1_000
    assert trades.appender(Trade).room >= 1_000


def test_refusal_can_be_tested(ringlog_memory: MemoryInstance) -> None:
    """With `refuse` every append returns False and says why, until that is ended."""
    appender = ringlog_memory.producer(Fill).appender(Fill)
    ringlog_memory.refuse()
    assert appender.append("x", "bid", 1.0) is False
    assert appender.refused_reason() == "board: spool_full"
    ringlog_memory.refuse(False)
    assert appender.append("x", "bid", 2.0) is True
    assert [row["price"] for row in ringlog_memory.rows(Fill)] == [2.0]


def test_each_test_starts_empty(ringlog_memory: MemoryInstance) -> None:
    """Nothing of another test's records is here."""
    assert ringlog_memory.rows(Fill) == []


def test_the_plugin_is_found_by_pytest(pytestconfig: pytest.Config) -> None:
    """Installing ringlog is enough: pytest has loaded the plugin by its entry point."""
    assert pytestconfig.pluginmanager.hasplugin("ringlog")
