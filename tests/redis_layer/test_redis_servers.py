"""What differs from server to server: counts of a group after trimming, ids from other programs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from ringlog.errors import ServerRefused
from ringlog.redis import (
    AsyncConnection,
    AsyncStreamConsumer,
    Connection,
    Gap,
    Publisher,
    StreamConsumer,
    StreamProducer,
    Topic,
    UiEvent,
)

pytestmark = pytest.mark.each_server
UI = Topic.UI_EVENTS
STREAM = "stream:ui-events"
SEEDS = [pytest.param(seed, marks=pytest.mark.slow if seed > 3 else ()) for seed in range(20)]
CAP = 50


def ui(number: int) -> UiEvent:
    return UiEvent("tick", {"number": number})


def numbers(events: Any) -> list[int]:
    return [event.payload.body["number"] for event in events]


def consumer(connection: Connection, name: str = "one") -> StreamConsumer:
    made = StreamConsumer(connection, UI, "group", name)
    made.create_group("first")
    return made


class Schedule:
    """Random bursts and reads on a stream whose cap is CAP, against a model of what was trimmed unread."""

    def __init__(self, seed: int, raw: redis.Redis, producer: StreamProducer) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self.raw, self.producer = raw, producer
        self.published = self.position = self.lost = self.reported = 0

    def steps(self) -> Iterator[int]:
        """Publishes between reads; yields how many events the next read asks for."""
        for _ in range(12):
            burst = self.random.choice((0, 1, CAP // 2, CAP, 2 * CAP, 3 * CAP + 7))
            self.producer.publish(UI, [ui(self.published + number) for number in range(burst)])
            self.published += burst
            self.raw.xtrim(STREAM, maxlen=CAP, approximate=False)
            yield self.random.randint(1, CAP + 10)

    def check(self, delivery: Any, count: int) -> None:
        first = max(self.position, self.published - CAP)
        wanted = list(range(first, min(self.published, first + count)))
        assert numbers(delivery.events) == wanted
        if wanted:
            self.lost += first - self.position
            self.position = wanted[-1] + 1
        self.reported += sum(gap.entries for gap in delivery.gaps)
        assert self.reported == self.lost


@pytest.mark.parametrize("seed", SEEDS)
def test_gaps_are_exact_in_random_schedules(seed: int, connection: Connection, raw: redis.Redis) -> None:
    """Finding 38: gaps equal what was trimmed unread, after every read, whichever of two members reads or restarts."""
    schedule = Schedule(seed, raw, StreamProducer(connection))
    members = [consumer(connection, name) for name in ("one", "two")]
    for count in schedule.steps():
        index = schedule.random.randrange(2)
        if schedule.random.random() < 0.2:
            members[index] = consumer(connection, ("one", "two")[index])
        delivery = members[index].read(count, wait_ms=0)
        members[index].ack(delivery.events)
        schedule.check(delivery, count)
    assert schedule.lost > 0


@pytest.mark.parametrize("seed", range(2))
async def test_async_gaps_are_exact_too(
    seed: int, async_connection: AsyncConnection, connection: Connection, raw: redis.Redis
) -> None:
    """Finding 38 for asyncio: the same schedules give the same figures."""
    schedule = Schedule(seed, raw, StreamProducer(connection))
    reader = AsyncStreamConsumer(async_connection, UI, "group", "one")
    await reader.create_group("first")
    for count in schedule.steps():
        delivery = await reader.read(count, wait_ms=0)
        await reader.ack(delivery.events)
        schedule.check(delivery, count)
    assert schedule.lost > 0


def test_a_group_made_anew_starts_its_count_anew(connection: Connection, raw: redis.Redis) -> None:
    """Finding 38: what one group had lost does not lessen the gap of a later group of the same name."""
    producer = StreamProducer(connection)
    for _ in range(2):
        reader = consumer(connection)
        producer.publish(UI, [ui(number) for number in range(30)])
        raw.xtrim(STREAM, maxlen=10, approximate=False)
        delivery = reader.read(10, wait_ms=0)
        assert (numbers(delivery.events), delivery.gaps) == (list(range(20, 30)), (Gap("trimmed", 20),))
        raw.delete(STREAM)


def test_a_gap_that_cannot_be_counted_is_reported_as_unknown(connection: Connection, raw: redis.Redis) -> None:
    """Where another program deletes entries, trimmed ones can't be told from deleted ones: a gap without a number."""
    reader, producer = consumer(connection), StreamProducer(connection)
    ids = producer.publish(UI, [ui(number) for number in range(30)])
    raw.xdel(STREAM, ids[25])
    raw.xtrim(STREAM, maxlen=10, approximate=False)
    delivery = reader.read(10, wait_ms=0)
    assert len(delivery.events) == 10
    assert delivery.gaps == (Gap("trimmed", None),)


@pytest.mark.parametrize(
    "entry_id",
    ["1763700000000000-0", "1763700000000000000-7", f"1763700000000-{2**64 - 100}", f"{2**64 - 1}-{2**63}"],
)
def test_events_after_another_programs_large_id_are_delivered_once(
    entry_id: str, connection: Connection, raw: redis.Redis
) -> None:
    """Finding 39: an entry with an id beyond the clock is broken; what comes after it is delivered, copies are not."""
    reader, producer = consumer(connection), StreamProducer(connection)
    raw.xadd(STREAM, {"foo": "bar"}, id=entry_id)
    events = [producer.number(UI, ui(number)) for number in range(40)]
    producer.publish(UI, [*events, *events])
    delivery = reader.read(200, wait_ms=0)
    assert numbers(delivery.events) == list(range(40))
    assert (delivery.duplicates, delivery.broken, delivery.gaps) == (40, 1, ())
    assert numbers(consumer(connection).read(200, wait_ms=0).events) == list(range(40)), "a restart gets them again"


def test_a_stream_at_the_last_possible_id_is_an_error_with_the_next_step(
    connection: Connection, raw: redis.Redis
) -> None:
    """Finding 39: XADD is refused naming the stream and what to do; after that the consumer reads on."""
    reader, producer = consumer(connection), StreamProducer(connection)
    raw.xadd(STREAM, {"foo": "bar"}, id=f"{2**64 - 1}-{2**64 - 1}")
    sends: list[Callable[[], Any]] = [
        lambda: producer.publish(UI, [ui(1)]),
        lambda: producer.publish(UI, [ui(1), ui(2)]),
    ]
    for send in sends:
        with pytest.raises(ServerRefused, match=r"stream:ui-events takes no more entries: .* DEL the stream"):
            send()
    with Publisher(connection) as publisher:
        publisher.offer(UI, "key", ui(3))
    assert publisher.stats().ticks_failed > 0
    assert reader.read(wait_ms=0).broken == 1
    raw.delete(STREAM)
    producer.publish(UI, [ui(4)])
    assert reader.read(wait_ms=0).gaps == (Gap("stream-lost", None),)
    assert numbers(reader.read(wait_ms=0).events) == [4]
