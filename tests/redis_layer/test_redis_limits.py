"""Times, caps and rate as settings: what a server then holds, for sync and async alike."""

from __future__ import annotations

import asyncio
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ringlog.errors import ConfigurationError
from ringlog.monitor.findings import validated
from ringlog.redis import (
    AsyncCache,
    AsyncConnection,
    AsyncPublisher,
    AsyncStreamConsumer,
    AsyncStreamProducer,
    Cache,
    Connection,
    Freshness,
    Gap,
    PriceUpdate,
    Publisher,
    RedisSink,
    StreamConsumer,
    StreamProducer,
    Topic,
    UiEvent,
)
from ringlog.settings import REDIS_BOUNDS, Settings

UI = Topic.UI_EVENTS
LIMITS = {
    "redis_fresh_ttl_ms": 700_000,
    "redis_last_ttl_s": 1_000,
    "redis_stream_entries_max": 5,
    "redis_seen_ttl_s": 500,
    "redis_tick_interval_ms": 20,
}
OBSERVED_AGO_S = 100


def ui(number: int) -> UiEvent:
    return UiEvent("tick", {"number": number})


def check_keys(server: Any, lost: Any) -> None:
    """What is the same however the keys were written: 12 events were published, of which a group read what was left."""
    with server.bare() as raw:
        assert 0 < raw.pttl("price:SOL") <= 700_000 - OBSERVED_AGO_S * 1_000
        assert raw.pttl("price:SOL") > 300_000  # neither the default nor counted from the write
        assert 1_000 >= raw.ttl("last:price:SOL") > 500
        assert raw.xlen("stream:ui-events") == 5
        assert 500 >= raw.ttl("seen:ui-events:group") > 200
    assert lost == (Gap("trimmed", 7),)


def test_finding_40_keys_live_as_long_as_the_settings_say(server: Any) -> None:
    """Finding 40: TTLs, the cap of a stream, gaps behind it and the memory of a group follow the settings."""
    with Connection(server.settings_for(**LIMITS)) as connection:
        cache = Cache(connection)
        cache.set_price("SOL", Decimal(150), time.time_ns() // 1_000 - OBSERVED_AGO_S * 1_000_000)
        assert cache.price("SOL").freshness is Freshness.FRESH  # with the default it would be stale
        consumer = StreamConsumer(connection, UI, "group", "one")
        consumer.create_group("first")
        StreamProducer(connection).publish(UI, [ui(number) for number in range(12)])
        delivery = consumer.read()
        check_keys(server, delivery.gaps)
        assert RedisSink(connection)._pending_rows_max == 5


async def test_finding_40_async_keys_live_as_long_as_the_settings_say(server: Any) -> None:
    """Finding 40, for asyncio."""
    async with AsyncConnection(server.settings_for(**LIMITS)) as connection:
        cache = AsyncCache(connection)
        await cache.set_price("SOL", Decimal(150), time.time_ns() // 1_000 - OBSERVED_AGO_S * 1_000_000)
        assert (await cache.price("SOL")).freshness is Freshness.FRESH
        consumer = AsyncStreamConsumer(connection, UI, "group", "one")
        await consumer.create_group("first")
        await AsyncStreamProducer(connection).publish(UI, [ui(number) for number in range(12)])
        check_keys(server, (await consumer.read()).gaps)


def test_finding_40_a_group_remembers_twice_a_stream(server: Any) -> None:
    """Finding 40: with streams of 5 entries the memory of a group holds 10 events, not 20,000."""
    with Connection(server.settings_for(**LIMITS)) as connection:
        consumer = StreamConsumer(connection, UI, "group", "one")
        consumer.create_group("first")
        producer = StreamProducer(connection)
        for start in range(0, 20, 5):
            producer.publish(UI, [ui(number) for number in range(start, start + 5)])
            assert len(consumer.read().events) == 5
        with server.bare() as raw:
            assert raw.zcard("seen:ui-events:group") == 10


async def test_finding_40_publishers_tick_as_the_settings_say(server: Any) -> None:
    """Finding 40: a tick of a minute does not come while many of 20 ms do."""
    slow = {**LIMITS, "redis_tick_interval_ms": 60_000}
    with Connection(server.settings_for(**slow)) as connection, Publisher(connection) as publisher:
        publisher.offer(Topic.PRICE_UPDATES, "SOL", PriceUpdate("SOL", Decimal(1), 1))
        async with AsyncConnection(server.settings_for(**LIMITS)) as quick, AsyncPublisher(quick) as ticking:
            with Connection(server.settings_for(**LIMITS)) as other, Publisher(other) as threaded:
                threaded.offer(UI, "one", ui(1))
                ticking.offer(UI, "two", ui(2))
                with server.bare() as raw:
                    await reached(lambda: raw.xlen("stream:ui-events") == 2)
                    await reached(lambda: min(threaded.stats().ticks, ticking.stats().ticks) >= 12)
                    assert raw.xlen("stream:price-updates") == 0
        assert publisher.stats().ticks == 0
    for stats in (threaded.stats(), ticking.stats()):
        assert stats.interval_p50_ms is not None
        assert stats.interval_p50_ms < 60_000
    with server.bare() as raw:
        assert raw.xlen("stream:price-updates") == 1  # what is left is sent when a publisher stops


async def reached(satisfied: Any) -> None:
    async with asyncio.timeout(60):
        while not satisfied():
            await asyncio.sleep(0.02)


BAD = [(name, least - 1) for name, (least, _) in REDIS_BOUNDS.items()]
BAD += [(name, most + 1) for name, (_, most) in REDIS_BOUNDS.items()]


@pytest.mark.parametrize(("name", "value"), [*BAD, ("redis_last_ttl_s", 1)])
def test_finding_40_values_out_of_bounds_are_refused(name: str, value: int) -> None:
    """Finding 40: a connection is not made, sync or async, and `validate` says the same."""
    settings = msgspec.structs.replace(Settings(), **{name: value})
    wanted = re.escape(f"RINGLOG_{name.upper()}: got {value}, wanted ")
    for kind in (Connection, AsyncConnection):
        with pytest.raises(ConfigurationError, match=wanted):
            kind(settings)
    found = [finding.text for finding in validated(settings, ()) if finding.level == "fail"]
    assert any(re.match(wanted, text) for text in found)


def test_finding_40_the_page_has_defaults_units_and_bounds() -> None:
    """Finding 40: the table of docs/redis.md is what the code says."""
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    rows = re.findall(r"^\| `RINGLOG_(REDIS_\w+)` \| (\d+) \| (\w+) \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    units = {"ms": "ms", "s": "s", "max": "entries"}
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    assert rows == [
        (name.upper(), str(defaults[name]), units[name.rpartition("_")[2]], str(least), str(most))
        for name, (least, most) in REDIS_BOUNDS.items()
    ]
