"""The writer's Redis sink against a real server: what it publishes, and what it does when Redis is in trouble."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import redis

from ringlog.columns import SymbolColumn, TextColumn
from ringlog.records import LatencySample, RecordLayout, Trade, layout_of
from ringlog.records.fields import NULL_LONG
from ringlog.redis import Cache, Connection, Freshness, RedisSink, StreamConsumer, Topic
from ringlog.redis.limits import DEFAULTS
from ringlog.sinks.contract import Batch, Span

STREAM = "stream:trade-events"
LANE = 2**62 + 7


def symbols(texts: list[str | None]) -> SymbolColumn:
    values = sorted({text for text in texts if text is not None})
    codes = [-1 if text is None else values.index(text) for text in texts]
    return SymbolColumn(np.array(codes, np.int32), [*values, "not used in this batch"])


def texts(values: list[str | None]) -> TextColumn:
    parts = [(value or "").encode() for value in values]
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    valid = np.array([value is not None for value in values])
    data = np.frombuffer(b"".join(parts), np.uint8)
    return TextColumn(offsets, data, None if valid.all() else valid)


def column(layout: RecordLayout, name: str, values: list[Any]) -> Any:
    kind = layout.field(name).kind.name
    if kind == "SYMBOL":
        return symbols(values)
    if kind in ("VARCHAR", "JSON"):
        return texts(values)
    if kind in ("LONG", "TIMESTAMP"):
        return np.array([NULL_LONG if value is None else value for value in values], np.int64)
    return np.array([np.nan if value is None else value for value in values], bool if kind == "BOOLEAN" else np.float64)


def batch_of(trades: list[dict[str, Any]], first_seq: int = 0) -> Batch:
    """A batch as a drain makes it, from trades that differ from the default one by the given fields."""
    layout = layout_of(Trade)
    now_us = time.time_ns() // 1_000
    default = {
        "trader_id": "t1", "mode": "paper", "action": "buy", "base_token": "SOL", "quote_token": "USDC",
        "base_amount": 1.0, "quote_amount": 152.3, "executed_price": 152.3, "transaction_fee": 5_000,
        "priority_fee": None, "expected_slippage": 0.1, "actual_slippage": 0.2, "mev_status": "protected",
        "mev_protected": True, "transfer_fees": None, "tx_signature": None, "metadata": None, "timestamp": now_us,
    }  # fmt: skip
    rows = [{**default, **trade} for trade in trades]
    columns = {field.name: column(layout, field.name, [row[field.name] for row in rows]) for field in layout.fields}
    columns["lane"] = np.full(len(rows), LANE, np.int64)
    columns["seq"] = np.arange(first_seq, first_seq + len(rows), dtype=np.int64)
    return Batch(layout, (Span(LANE, first_seq, len(rows)),), len(rows), columns)


@contextlib.contextmanager
def running(connection: Connection) -> Iterator[RedisSink]:
    sink = RedisSink(connection)
    sink.start()
    yield sink
    sink.close()


@pytest.fixture
def sink(server: Any) -> Iterator[RedisSink]:
    with Connection(server.settings_for(redis_retry_timeout_ms=0)) as connection, running(connection) as sink:
        yield sink


def settled(sink: RedisSink) -> bool:
    return sink.stats().pending == 0


def balanced(sink: RedisSink) -> bool:
    stats = sink.stats()
    return stats.offered == stats.published + sum(stats.dropped.values()) + stats.pending


def test_trades_are_published_whole_under_their_own_numbers(
    sink: RedisSink, connection: Connection, until: Any
) -> None:
    """Each trade arrives as the Trade it was, NULLs and Unicode included, under its record's (lane, seq)."""
    rich = {
        "priority_fee": 10, "transfer_fees": 0.25, "tx_signature": "5sig", "metadata": '{"route":["a","ü"],"n":1}',
        "trader_id": "töm", "mev_protected": False, "timestamp": 1_763_700_000_123_456,
    }  # fmt: skip
    plain = {"metadata": "not json", "tx_signature": "ünïcode", "timestamp": 1_763_700_000_123_457}
    sink.offer(batch_of([{}, rich, plain, {"metadata": "[1]"}], first_seq=40))
    until(lambda: settled(sink))
    reader = StreamConsumer(connection, Topic.TRADE_EVENTS, "group", "one")
    reader.create_group("first")
    events = reader.read().events
    assert [(event.lane, event.seq) for event in events] == [(LANE, seq) for seq in range(40, 44)]
    first, second, third, fourth = (event.payload for event in events)
    assert (first.priority_fee, first.transfer_fees, first.tx_signature, first.metadata) == (None, None, None, None)
    expected = {**rich, "metadata": {"route": ["a", "ü"], "n": 1}, "base_token": "SOL", "executed_price": 152.3}
    assert {name: getattr(second, name) for name in expected} == expected
    assert (third.metadata, third.tx_signature, third.timestamp) == ("not json", "ünïcode", 1_763_700_000_123_457)
    assert fourth.metadata == "[1]"


def test_latest_prices_in_usdc_reach_the_cache(sink: RedisSink, connection: Connection, until: Any) -> None:
    """A token's price is that of its newest trade against USDC; trades in other units and older ones leave it alone."""
    now_us = time.time_ns() // 1_000
    sink.offer(
        batch_of(
            [
                {"executed_price": 2.0, "timestamp": now_us},
                {"executed_price": 1.0, "timestamp": now_us - 5},
                {"executed_price": 9.0, "quote_token": "BONK", "timestamp": now_us + 5},
                {"base_token": "WIF", "executed_price": 0.000001, "timestamp": now_us},
                {"base_token": "OLD", "executed_price": 3.5, "timestamp": now_us - 10_000_000},
                {"base_token": "no key", "executed_price": 3.5},
            ]
        )
    )
    sink.offer(batch_of([{"executed_price": 1.5, "timestamp": now_us - 1}], first_seq=10))
    until(lambda: settled(sink))
    found = Cache(connection).prices(["SOL", "WIF", "OLD", "BONK"])
    assert (found["SOL"].value, found["SOL"].observed_at_us) == (Decimal("2.0"), now_us)
    assert found["WIF"].value == Decimal("0.000001")
    assert (found["OLD"].freshness, found["OLD"].value) == (Freshness.STALE, Decimal("3.5"))
    assert found["BONK"].freshness is Freshness.MISSING
    assert sink.stats().prices_refused == 1


def test_a_spool_replay_publishes_nothing(sink: RedisSink, raw: redis.Redis, until: Any) -> None:
    """A batch replayed from the spool was published when it was spooled: it is counted, never published again."""
    sink.offer(batch_of([{}] * 3), replayed=True)
    sink.offer(batch_of([{}], first_seq=3))
    until(lambda: settled(sink))
    stats = sink.stats()
    assert (stats.replayed, stats.offered, stats.published, raw.xlen(STREAM)) == (3, 1, 1, 1)


def test_only_trades_are_published(sink: RedisSink, raw: redis.Redis) -> None:
    """Batches of other record types pass by."""
    sink.offer(Batch(layout_of(LatencySample), (Span(1, 0, 5),), 5, {}))
    assert (sink.stats().offered, raw.dbsize()) == (0, 0)


def test_a_batch_it_cannot_read_is_counted_and_the_next_one_published(
    sink: RedisSink, raw: redis.Redis, until: Any
) -> None:
    """A fault in one batch costs that batch, by number, and not the thread."""
    bad = batch_of([{}] * 3)
    bad.columns["trader_id"] = np.zeros(3)
    sink.offer(bad)
    sink.offer(batch_of([{}] * 2, first_seq=3))
    until(lambda: settled(sink))
    stats = sink.stats()
    assert (stats.dropped["failed"], stats.published, raw.xlen(STREAM)) == (3, 2, 2)
    assert balanced(sink)


def test_redis_down_costs_the_oldest_rows_and_never_the_writer(own_server: Any, until: Any) -> None:
    """While Redis is down offers return at once and memory stays bounded; after it is back the newest rows arrive."""
    with Connection(own_server.settings_for(redis_retry_timeout_ms=0)) as connection, running(connection) as sink:
        own_server.kill()
        sink.offer(batch_of([{}]))
        until(lambda: sink.stats().pending == 1)
        for number in range(30):
            sink.offer(batch_of([{}] * 1_000, first_seq=1 + 1_000 * number))
        stats = sink.stats()
        assert stats.published == 0
        assert stats.pending <= 2 * DEFAULTS.stream_entries_max
        assert stats.dropped["overflow"] >= 30_001 - 2 * DEFAULTS.stream_entries_max
        own_server.start()
        until(lambda: settled(sink))
        assert balanced(sink)
        with own_server.bare() as raw:
            newest = raw.xrevrange(STREAM, count=1)[0][1]
            assert int(newest[b"seq"]) == 30_000
            assert raw.xlen(STREAM) == min(10_000, sink.stats().published)


def test_a_stopped_redis_never_holds_up_an_offer(own_server: Any, until: Any) -> None:
    """With the server stopped in its tracks offers still only count; once it goes on, so does the publishing."""
    settings = own_server.settings_for(redis_retry_timeout_ms=0, redis_timeout_ms=100)
    with Connection(settings) as connection, running(connection) as sink:
        sink.offer(batch_of([{}]))
        until(lambda: settled(sink))
        own_server.stop_signal()
        try:
            for number in range(200):
                sink.offer(batch_of([{}] * 100, first_seq=1 + 100 * number))
            stats = sink.stats()
            assert stats.published == 1
            assert balanced(sink)
        finally:
            own_server.continue_signal()
        until(lambda: settled(sink))
        assert balanced(sink)
        assert sink.stats().published >= DEFAULTS.stream_entries_max


def test_55_out_of_memory_is_counted_as_refused_and_passes(sink: RedisSink, raw: redis.Redis, until: Any) -> None:
    """Rows that a full server refuses are dropped and counted; with room again the next ones are published.

    Defence: what Redis refuses is counted as that.
    """
    raw.config_set("maxmemory", "1")
    sink.offer(batch_of([{}] * 700))
    until(lambda: settled(sink))
    assert sink.stats().dropped["refused"] == 700
    raw.config_set("maxmemory", "0")
    sink.offer(batch_of([{}] * 3, first_seq=700))
    until(lambda: settled(sink))
    assert (sink.stats().published, raw.xlen(STREAM)) == (3, 3)
    assert balanced(sink)


def test_closing_while_redis_is_down_ends_and_counts(own_server: Any, until: Any) -> None:
    """close() gives up what it cannot publish, counts it, and leaves no thread behind."""
    with Connection(own_server.settings_for(redis_retry_timeout_ms=0)) as connection:
        sink = RedisSink(connection)
        sink.start()
        own_server.kill()
        sink.offer(batch_of([{}] * 10))
        sink.offer(batch_of([{}] * 5, first_seq=10))
        sink.close(timeout_s=0.2)
        until(lambda: not sink._thread.is_alive())
        assert (sink.stats().dropped["closed"], sink.stats().pending) == (15, 0)


def test_closing_publishes_what_is_left(server: Any, raw: redis.Redis) -> None:
    """A clean stop loses nothing that was offered."""
    with Connection(server.settings_for(redis_retry_timeout_ms=0)) as connection:
        sink = RedisSink(connection)
        sink.start()
        sink.offer(batch_of([{}] * 2_000))
        sink.close(timeout_s=10)
    assert (sink.stats().published, raw.xlen(STREAM)) == (2_000, 2_000)


def test_56_lost_acknowledgements_make_copies_that_consumers_drop(
    server: Any, proxy: Any, connection: Connection, until: Any
) -> None:
    """When XADD's answer is lost the sink sends again; the consumer still sees every (lane, seq) exactly once.

    Defence: consumers know what they were given.
    """
    settings = server.settings_for(redis_port=proxy.port, redis_retry_timeout_ms=0)
    with Connection(settings) as through_proxy, running(through_proxy) as sink:
        proxy.cut_next(4, b"XADD")
        sink.offer(batch_of([{}] * 1_500))
        until(lambda: settled(sink))
    assert proxy.cuts == 4
    reader = StreamConsumer(connection, Topic.TRADE_EVENTS, "group", "one")
    reader.create_group("first")
    seqs: list[int] = []
    duplicates = 0
    while (delivery := reader.read(1_000, wait_ms=0)).events or delivery.duplicates:
        seqs += [event.seq for event in delivery.events]
        duplicates += delivery.duplicates
        reader.ack(delivery.events)
    assert seqs == list(range(1_500))
    assert duplicates > 0, "no copy was made: the fault was not injected"
