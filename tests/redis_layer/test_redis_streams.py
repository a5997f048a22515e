"""Streams and consumer groups against a real server: crashes, copies, trimming, loss."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pytest
import redis

from ringlog.errors import ConsumerGroupMissing, RedisValueError, ServerRefused
from ringlog.records import Trade
from ringlog.redis import (
    AsyncConnection,
    AsyncStreamConsumer,
    AsyncStreamProducer,
    Connection,
    Gap,
    Outgoing,
    PriceUpdate,
    StreamConsumer,
    StreamProducer,
    Topic,
    UiEvent,
)
from ringlog.redis.limits import DEFAULTS

UI = Topic.UI_EVENTS
STREAM = "stream:ui-events"


def ui(number: int) -> UiEvent:
    return UiEvent("tick", {"number": number})


def consumer(connection: Connection, name: str = "one", **options: Any) -> StreamConsumer:
    made = StreamConsumer(connection, UI, "group", name, **options)
    made.create_group("first")
    return made


def numbers(events: Any) -> list[int]:
    return [event.payload.body["number"] for event in events]


def test_events_arrive_typed_in_order_and_once(connection: Connection, raw: redis.Redis) -> None:
    """What is published is read in order with its number and type, and after ack nothing is pending."""
    producer, reader = StreamProducer(connection), consumer(connection)
    producer.publish(UI, [ui(number) for number in range(1_200)])
    got = []
    while events := reader.read(500, wait_ms=0).events:
        got += events
        reader.ack(events)
    assert numbers(got) == list(range(1_200))
    assert [(event.lane, event.seq) for event in got] == [(producer.lane, seq) for seq in range(1_200)]
    assert raw.xpending(STREAM, "group")["pending"] == 0


def test_every_topic_carries_its_own_type(connection: Connection) -> None:
    """Price updates keep their decimals, trades are Trade records, and UI events keep their body."""
    trade = Trade(
        trader_id="t1", mode="paper", action="buy", base_token="SOL", quote_token="USDC", base_amount=1.0,
        quote_amount=152.3, executed_price=152.3, transaction_fee=5_000, expected_slippage=0.1, actual_slippage=0.2,
        mev_status="protected", mev_protected=True, metadata={"route": [1, 2]}, timestamp=1_763_700_000_000_000,
    )  # fmt: skip
    payloads = {
        Topic.PRICE_UPDATES: PriceUpdate("SOL", Decimal("152.310000000000000001"), 1_763_700_000_000_000),
        Topic.TRADE_EVENTS: trade,
        Topic.UI_EVENTS: UiEvent("alert", {"level": "high"}),
    }
    producer = StreamProducer(connection)
    for topic, payload in payloads.items():
        reader = StreamConsumer(connection, topic, "group", "one")
        assert reader.create_group("first")
        producer.publish(topic, [payload])
        (event,) = reader.read().events
        assert event.payload == payload


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (Topic.PRICE_UPDATES, UiEvent("x")),
        (Topic.UI_EVENTS, "text"),
        (Topic.UI_EVENTS, UiEvent("x", body={1, 2}.__iter__())),
        (Topic.UI_EVENTS, UiEvent("x", body="y" * 9_000)),
        (Topic.UI_EVENTS, UiEvent(7)),
        (Topic.PRICE_UPDATES, PriceUpdate("SOL", "abc", 1)),
    ],
)
def test_payloads_that_do_not_fit_are_refused(
    connection: Connection, raw: redis.Redis, topic: Topic, payload: Any
) -> None:
    """A payload of another type, that is no JSON, or is too long raises RedisValueError and nothing is sent."""
    with pytest.raises(RedisValueError, match=str(topic)):
        StreamProducer(connection).publish(topic, [payload])
    assert raw.dbsize() == 0


def test_a_group_that_was_never_made_is_named(connection: Connection) -> None:
    """Reading without create_group raises ConsumerGroupMissing naming stream and group, with and without a stream."""
    reader = StreamConsumer(connection, UI, "nobody", "one")
    with pytest.raises(ConsumerGroupMissing, match=r"stream:ui-events.*'nobody'"):
        reader.read(wait_ms=0)
    StreamProducer(connection).publish(UI, [ui(1)])
    with pytest.raises(ConsumerGroupMissing, match=r"stream:ui-events.*'nobody'"):
        reader.read(wait_ms=0)


def test_create_group_says_whether_it_made_one(connection: Connection) -> None:
    """Creating twice is harmless; `next` starts behind what is there, `first` at the beginning."""
    StreamProducer(connection).publish(UI, [ui(1)])
    late, early = StreamConsumer(connection, UI, "late", "one"), StreamConsumer(connection, UI, "early", "one")
    assert (late.create_group(), late.create_group(), early.create_group("first")) == (True, False, True)
    assert late.read(wait_ms=0).events == ()
    assert numbers(early.read(wait_ms=0).events) == [1]
    with pytest.raises(RedisValueError):
        late.create_group("0-0")  # type: ignore[arg-type]


def test_a_consumer_killed_before_ack_gets_its_events_again(connection: Connection) -> None:
    """A consumer that comes back under its name first gets what it had not acked, in order, then what is new."""
    producer = StreamProducer(connection)
    died = consumer(connection)
    producer.publish(UI, [ui(number) for number in range(10)])
    first = died.read(5).events
    died.ack(first[:2])
    producer.publish(UI, [ui(10)])
    back = consumer(connection)
    assert numbers(back.read(100, wait_ms=0).events) == [2, 3, 4]
    assert numbers(back.read(100, wait_ms=0).events) == [5, 6, 7, 8, 9, 10]


def test_what_a_dead_consumer_left_is_claimed_by_another(connection: Connection, until: Any) -> None:
    """Events held for longer than claim_idle_ms go to the next consumer that reads, none twice, none lost."""
    producer = StreamProducer(connection)
    dead = consumer(connection, "dead")
    producer.publish(UI, [ui(number) for number in range(250)])
    assert len(dead.read(250).events) == 250
    alive = consumer(connection, "alive", claim_idle_ms=20)
    got: list[int] = []

    def claimed() -> bool:
        events = alive.read(100, wait_ms=20).events
        alive.ack(events)
        got.extend(numbers(events))
        return len(got) >= 250

    until(claimed)
    assert got == list(range(250))
    assert alive.read(wait_ms=0).events == ()


def test_events_in_hand_are_not_claimed_from_oneself(connection: Connection, until: Any, raw: redis.Redis) -> None:
    """A consumer that is slow to ack is not handed its own events again by its own claim."""
    reader = consumer(connection, claim_idle_ms=1)
    StreamProducer(connection).publish(UI, [ui(1)])
    (event,) = reader.read().events
    until(lambda: raw.xpending_range(STREAM, "group", "-", "+", 1)[0]["time_since_delivered"] > 5)
    assert reader.read(wait_ms=10).events == ()
    assert reader.ack([event]) == 1


def test_copies_are_dropped_across_consumers_and_restarts(connection: Connection, raw: redis.Redis) -> None:
    """An event sent again under its (lane, seq) is delivered once, whoever reads the copy and whenever it does."""
    producer = StreamProducer(connection)
    events = [producer.number(UI, ui(number)) for number in range(3)]
    one, two = consumer(connection, "one"), consumer(connection, "two")
    producer.publish(UI, events)
    first = one.read()
    assert (numbers(first.events), first.duplicates) == ([0, 1, 2], 0)
    producer.publish(UI, events)  # the answer was lost: the caller sends again, while the first is still in hand
    second = two.read(wait_ms=0)
    assert (second.events, second.duplicates) == ((), 3)
    one.ack(first.events)
    producer.publish(UI, [*events, producer.number(UI, ui(3)), *events[:1]])
    third = consumer(connection, "one").read(wait_ms=0)
    assert (numbers(third.events), third.duplicates) == ([3], 4)
    assert raw.xpending(STREAM, "group")["pending"] == 1, "copies are acked, the new event is not yet"


def test_a_copy_does_not_hide_an_event_whose_consumer_died(connection: Connection) -> None:
    """The first entry stays the owner of its (lane, seq): after a crash it is delivered again, the copy is not."""
    producer = StreamProducer(connection)
    events = [producer.number(UI, ui(1))]
    producer.publish(UI, events)
    assert len(consumer(connection, "one").read().events) == 1  # and is killed here
    producer.publish(UI, events)
    assert consumer(connection, "two").read(wait_ms=0).duplicates == 1
    assert numbers(consumer(connection, "one").read(wait_ms=0).events) == [1]


def test_the_memory_of_copies_is_bounded(connection: Connection, raw: redis.Redis) -> None:
    """`seen:` keeps the newest 20,000 (lane, seq), twice what the stream holds, and expires when unused."""
    reader, producer = consumer(connection), StreamProducer(connection)
    read = 0
    for _ in range(5):
        producer.publish(UI, [ui(number) for number in range(5_000)])
        while events := reader.read(2_500, wait_ms=0).events:
            reader.ack(events)
            read += len(events)
    assert read == 25_000
    assert raw.zcard("seen:ui-events:group") == 20_000
    assert 0 < raw.ttl("seen:ui-events:group") <= 86_400


def test_a_burst_never_takes_a_stream_over_its_limit_and_the_gap_is_exact(
    connection: Connection, raw: redis.Redis, server: Any, until: Any
) -> None:
    """While 30,000 events pour in, XLEN never passes 10,000; a reader left behind learns how many it lost."""
    reader, producer = consumer(connection), StreamProducer(connection)
    producer.publish(UI, [ui(number) for number in range(100)])
    reader.ack(reader.read(40).events)
    lengths: list[int] = []
    done = threading.Event()

    def watch() -> None:
        with server.bare() as client:
            while not done.is_set():
                lengths.append(client.xlen(STREAM))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        until(lambda: lengths)
        producer.publish(UI, [ui(number) for number in range(100, 30_100)])
    finally:
        done.set()
        watcher.join()
    assert lengths
    assert max(lengths) <= DEFAULTS.stream_entries_max
    assert raw.xlen(STREAM) == DEFAULTS.stream_entries_max
    delivery = reader.read(10)
    assert numbers(delivery.events) == list(range(20_100, 20_110))
    assert delivery.gaps == (Gap("trimmed", 20_100 - 40),)
    assert reader.read(10).gaps == ()


def test_events_trimmed_while_pending_are_reported(connection: Connection, until: Any) -> None:
    """Events a dead consumer held and the stream has since trimmed are a gap for whoever looks after them."""
    producer = StreamProducer(connection)
    dead = consumer(connection, "dead")
    producer.publish(UI, [ui(number) for number in range(30)])
    assert len(dead.read(30).events) == 30
    producer.publish(UI, [ui(number) for number in range(10_000)])
    back = consumer(connection, "dead")
    delivery = back.read(100, wait_ms=0)
    assert delivery.gaps == (Gap("pending-trimmed", 30),)

    producer.publish(UI, [ui(number) for number in range(10_020)])
    heir = consumer(connection, "heir", claim_idle_ms=1)
    lost = 0

    def reported() -> bool:
        nonlocal lost
        lost += sum(gap.entries or 0 for gap in heir.read(100, wait_ms=5).gaps if gap.reason == "pending-trimmed")
        return lost > 0

    until(reported)
    assert lost == len(delivery.events)


def test_entries_of_other_programs_are_counted_and_do_not_wedge_the_group(
    connection: Connection, raw: redis.Redis
) -> None:
    """Entries that are no events are dropped, counted and acked; the events around them arrive."""
    reader, producer = consumer(connection), StreamProducer(connection)
    producer.publish(UI, [ui(1)])
    raw.xadd(STREAM, {"foo": "bar"})
    raw.xadd(STREAM, {"lane": "x", "seq": "1", "data": "{}"})
    raw.xadd(STREAM, {"lane": "1", "seq": "1", "data": b"\xff{"})
    producer.publish(UI, [ui(2)])
    delivery = reader.read()
    assert (numbers(delivery.events), delivery.broken) == ([1, 2], 3)
    assert raw.xpending(STREAM, "group")["pending"] == 2


def test_a_stream_that_vanished_is_reported_and_read_on(connection: Connection, raw: redis.Redis) -> None:
    """Eviction, a flush or a restart without persistence takes stream and group: one gap, then reading goes on."""
    reader, producer = consumer(connection), StreamProducer(connection)
    producer.publish(UI, [ui(1)])
    reader.ack(reader.read().events)
    raw.delete(STREAM)
    producer.publish(UI, [ui(2)])
    assert reader.read(wait_ms=0).gaps == (Gap("stream-lost", None),)
    assert numbers(reader.read(wait_ms=0).events) == [2]


def test_a_full_server_refuses_by_name_and_loses_nothing_pending(connection: Connection, raw: redis.Redis) -> None:
    """Out of memory, publish and read raise ServerRefused; with room again the events taken meanwhile are delivered."""
    reader, producer = consumer(connection), StreamProducer(connection)
    producer.publish(UI, [ui(1)])
    raw.config_set("maxmemory", "1")
    with pytest.raises(ServerRefused, match="out of memory"):
        producer.publish(UI, [ui(2)])
    with pytest.raises(ServerRefused, match="out of memory"):
        reader.read(wait_ms=0)
    raw.config_set("maxmemory", "0")
    assert numbers(reader.read(wait_ms=0).events) == [1]


def test_a_key_of_the_wrong_type_is_refused(connection: Connection, raw: redis.Redis) -> None:
    """A stream's key that holds something else raises ServerRefused, not a traceback from the client library."""
    raw.set(STREAM, "x")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        StreamProducer(connection).publish(UI, [ui(1)])


def test_a_read_waits_for_the_first_event(connection: Connection) -> None:
    """A read on an empty stream returns as soon as an event comes, long before its wait is over."""
    reader, producer = consumer(connection), StreamProducer(connection)
    reader.read(wait_ms=0)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(numbers(reader.read(wait_ms=60_000).events)))
    thread.start()
    producer.publish(UI, [ui(1)])
    thread.join(timeout=30)
    assert got == [1]


def test_numbers_given_beforehand_are_kept(connection: Connection) -> None:
    """An Outgoing keeps the (lane, seq) it has, as the writer's sink needs it."""
    reader = consumer(connection)
    StreamProducer(connection).publish(UI, [Outgoing(2**63 - 1, 2**63, b'{"kind":"tick","body":{"number":5}}')])
    (event,) = reader.read().events
    assert (event.lane, event.seq) == (2**63 - 1, 2**63)


async def test_async_streams_do_the_same(async_connection: AsyncConnection, connection: Connection) -> None:
    """The async producer and consumer have the same names and share groups, copies and gaps with the sync ones."""
    for sync, asynchronous in ((StreamProducer, AsyncStreamProducer), (StreamConsumer, AsyncStreamConsumer)):
        assert [n for n in dir(sync) if n[0] != "_"] == [n for n in dir(asynchronous) if n[0] != "_"]
    producer = AsyncStreamProducer(async_connection)
    reader = AsyncStreamConsumer(async_connection, UI, "group", "one")
    with pytest.raises(ConsumerGroupMissing):
        await reader.read(wait_ms=0)
    assert await reader.create_group("first")
    events = [producer.number(UI, ui(number)) for number in range(3)]
    await producer.publish(UI, events)
    first = await reader.read()
    assert numbers(first.events) == [0, 1, 2]
    assert await reader.ack(first.events) == 3
    await producer.publish(UI, events)
    assert consumer(connection, "two").read(wait_ms=0).duplicates == 3
    assert (await reader.read(wait_ms=30)).events == ()
