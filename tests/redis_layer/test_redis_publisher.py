"""The 10 Hz publisher against a real server: conflation, slow subscribers, outages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from ringlog.errors import RedisValueError
from ringlog.redis import (
    AsyncConnection,
    AsyncPublisher,
    AsyncSubscriber,
    Connection,
    PriceUpdate,
    Publisher,
    StreamConsumer,
    Subscriber,
    Topic,
    UiEvent,
)
from ringlog.redis.publisher import _Conflation

PRICES = Topic.PRICE_UPDATES


def update(number: int, symbol: str = "SOL") -> PriceUpdate:
    return PriceUpdate(symbol, Decimal(number) / 100, 1_763_700_000_000_000 + number)


def known(raw: redis.Redis, topic: Topic, count: int = 1) -> bool:
    """Whether the server has so many subscribers: the read that subscribes does not wait for the answer."""
    return bool(raw.pubsub_numsub(f"channel:{topic}")[0][1] == count)


def test_a_burst_becomes_one_entry_a_key(connection: Connection, raw: redis.Redis, until: Any) -> None:
    """10,000 offers of two keys before a tick become two stream entries and one frame, each in its last state."""
    subscriber = Subscriber(connection, PRICES)
    subscriber.read(wait_ms=1)
    until(lambda: known(raw, PRICES))
    reader = StreamConsumer(connection, PRICES, "group", "one")
    reader.create_group("first")
    publisher = Publisher(connection)
    for number in range(5_000):
        publisher.offer(PRICES, "SOL", update(number))
        publisher.offer(PRICES, "WIF", update(number, "WIF"))
    publisher.start()
    frame = subscriber.read(wait_ms=60_000)
    publisher.stop()
    assert frame is not None
    assert frame.payloads() == {"SOL": update(4_999), "WIF": update(4_999, "WIF")}
    events = reader.read(wait_ms=0).events
    assert [event.payload for event in events] == list(frame.payloads().values())
    assert [(event.lane, event.seq) for event in events] == [(frame.lane, entry.seq) for entry in frame.entries]
    assert raw.xlen("stream:price-updates") == 2
    stats = publisher.stats()
    assert (stats.offered, stats.published) == (10_000, 2)
    subscriber.close()


def test_ticks_without_news_send_nothing(connection: Connection, raw: redis.Redis, until: Any) -> None:
    """A key is published once per change: ticks in which nothing was offered leave stream and channel alone."""
    with Publisher(connection) as publisher:
        publisher.offer(PRICES, "SOL", update(1))
        until(lambda: publisher.stats().ticks >= 4)
    assert raw.xlen("stream:price-updates") == 1


def test_stop_sends_what_is_left(connection: Connection, raw: redis.Redis) -> None:
    """What was offered just before stop is published, not lost."""
    with Publisher(connection) as publisher:
        publisher.offer(Topic.UI_EVENTS, "alert", UiEvent("alert", {"n": 1}))
    assert raw.xlen("stream:ui-events") == 1


def test_bad_states_are_refused_at_the_offer(connection: Connection) -> None:
    """A payload of the wrong type raises in the caller, never on the publisher's thread."""
    with pytest.raises(RedisValueError):
        Publisher(connection).offer(PRICES, "SOL", UiEvent("x"))


def test_the_beat_does_not_drift_and_missed_beats_are_counted(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines are multiples of 100 ms from the start, however long a tick took; those it overran are counted."""
    clock = 50.0
    monkeypatch.setattr("ringlog.redis.publisher.time", SimpleNamespace(monotonic=lambda: clock))
    conflation = _Conflation(connection.keys, connection.limits)
    started: list[float] = []
    for took in (0.0, 0.03, 0.099, 0.02, 0.25, 0.01):  # seconds from a tick's start to its end
        clock += conflation.wait_s()
        conflation.begin()
        started.append(round(clock - 50.0, 6))
        clock += took
    conflation.wait_s()
    assert started == [0.1, 0.2, 0.3, 0.4, 0.5, 0.8]
    stats = conflation.stats()
    assert (stats.ticks, stats.ticks_missed) == (6, 2)
    assert round(stats.interval_p50_ms or 0) == 100
    assert round(stats.interval_p99_ms or 0) == 300
    assert round(stats.deviation_max_ms or 0) == 200


def test_realtime_priority_is_the_threads_alone_and_may_be_refused(
    connection: Connection, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The priority is asked for the publisher's thread only; a system that refuses it changes nothing but the beat."""
    asked = []

    def refuse(*arguments: Any) -> None:
        asked.append(threading.current_thread().name)
        raise PermissionError

    with Publisher(connection) as publisher:
        until(lambda: publisher.stats().ticks >= 1)
        if hasattr(os, "sched_getscheduler"):
            assert os.sched_getscheduler(0) == os.SCHED_OTHER, "the caller's own thread is as it was"
    monkeypatch.setattr("os.sched_setscheduler", refuse, raising=False)
    with Publisher(connection) as publisher:
        publisher.offer(PRICES, "SOL", update(1))
        until(lambda: publisher.stats().published == 1)
    assert asked == ["ringlog-publisher"]
    assert not publisher.stats().realtime


def test_a_subscriber_that_never_reads_holds_up_nobody(
    server: Any, connection: Connection, raw: redis.Redis, until: Any
) -> None:
    """With one subscriber's socket stuffed full, another gets every frame, and the server drops the stuck one."""
    raw.config_set("client-output-buffer-limit", "pubsub 256kb 64kb 1")
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stuck.connect(("127.0.0.1", server.port))
        stuck.sendall(b"AUTH %b\r\nSUBSCRIBE channel:ui-events\r\n" % server.password.encode())
        until(lambda: known(raw, Topic.UI_EVENTS))
        healthy = Subscriber(connection, Topic.UI_EVENTS)
        healthy.read(wait_ms=1)
        until(lambda: known(raw, Topic.UI_EVENTS, 2))
        with Publisher(connection) as publisher:

            def stuck_is_gone() -> bool:
                for key in range(100):
                    publisher.offer(Topic.UI_EVENTS, f"k{key}", UiEvent("noise", "x" * 8_000))
                assert healthy.read(wait_ms=60_000) is not None
                return known(raw, Topic.UI_EVENTS)

            until(stuck_is_gone, 100)
        assert healthy.missed == 0
        assert publisher.stats().ticks_failed == 0
        healthy.close()


def test_states_of_a_failed_tick_go_with_a_later_one(own_server: Any, until: Any) -> None:
    """While Redis is down the latest states wait; once it is back they are published under their numbers."""
    with (
        Connection(own_server.settings_for(redis_retry_timeout_ms=0)) as connection,
        Publisher(connection) as publisher,
    ):
        own_server.kill()
        publisher.offer(PRICES, "SOL", update(1))
        publisher.offer(PRICES, "WIF", update(7, "WIF"))
        until(lambda: publisher.stats().ticks_failed >= 2)
        publisher.offer(PRICES, "SOL", update(2))
        failed = publisher.stats().ticks_failed  # a tick that has update(1) in hand may be under way: it must fail too
        until(lambda: publisher.stats().ticks_failed >= failed + 2)
        own_server.start()
        until(lambda: publisher.stats().published == 2)
        with own_server.bare() as raw:
            entries = [fields[b"data"] for _, fields in raw.xrange("stream:price-updates")]
    assert sorted(entries) == sorted(
        [
            b'{"symbol":"SOL","price":"0.02","observed_at_us":1763700000000002}',
            b'{"symbol":"WIF","price":"0.07","observed_at_us":1763700000000007}',
        ]
    )


def test_a_subscriber_counts_what_it_missed(connection: Connection, raw: redis.Redis, until: Any) -> None:
    """Frames lost between two reads show as `missed`, what is no frame as `broken`; neither stops the reading."""
    subscriber = Subscriber(connection, PRICES)
    subscriber.read(wait_ms=1)
    until(lambda: known(raw, PRICES))
    frame = b'{"topic":"price-updates","lane":1,"seq":%d,"sent_at_us":1,"entries":[]}'
    for data in (frame % 5, b"junk", frame % 9):
        raw.publish("channel:price-updates", data)
    assert [subscriber.read(60_000).seq for _ in range(2)] == [5, 9]  # type: ignore[union-attr]
    assert (subscriber.missed, subscriber.broken) == (3, 1)
    subscriber.close()


async def test_async_publisher_and_subscriber_do_the_same(
    async_connection: AsyncConnection, raw: redis.Redis, until: Any
) -> None:
    """The asyncio pair has the same names, conflates alike, and its frames can be read by either."""
    for sync, asynchronous in ((Publisher, AsyncPublisher), (Subscriber, AsyncSubscriber)):
        assert [n for n in dir(sync) if n[0] != "_"] == [n for n in dir(asynchronous) if n[0] != "_"]
    subscriber = AsyncSubscriber(async_connection, PRICES)
    assert await subscriber.read(wait_ms=1) is None
    until(lambda: known(raw, PRICES))
    async with AsyncPublisher(async_connection) as publisher:
        for number in range(1_000):
            publisher.offer(PRICES, "SOL", update(number))
        frame = await subscriber.read(wait_ms=60_000)
        assert frame is not None
        assert frame.payloads() == {"SOL": update(999)}
        publisher.offer(PRICES, "SOL", update(5))
    assert publisher.stats().published == 2
    assert raw.xlen("stream:price-updates") == 2
    await subscriber.close()


async def test_an_async_publisher_survives_an_outage(own_server: Any) -> None:
    """The task goes on ticking while Redis is down and publishes the latest state when it is back."""
    settings = own_server.settings_for(redis_retry_timeout_ms=0)
    async with AsyncConnection(settings) as connection, AsyncPublisher(connection) as publisher:
        own_server.kill()
        publisher.offer(PRICES, "SOL", update(1))
        async with asyncio.timeout(60):
            while publisher.stats().ticks_failed < 2:
                await asyncio.sleep(0.01)
        own_server.start()
        async with asyncio.timeout(60):
            while publisher.stats().published < 1:
                await asyncio.sleep(0.01)


async def test_a_cancelled_read_leaves_no_trace(async_connection: AsyncConnection) -> None:
    """Cancelling a subscriber's read frees its connection; the next one works."""
    subscriber = AsyncSubscriber(async_connection, PRICES)
    await subscriber.read(wait_ms=1)
    task = asyncio.create_task(subscriber.read(wait_ms=10_000))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await subscriber.read(wait_ms=1) is None
    await subscriber.close()
