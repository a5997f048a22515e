"""Producing into the streams `stream:price-updates`, `stream:trade-events` and `stream:ui-events`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from ringlog.redis.connection import AsyncConnection, Connection
from ringlog.redis.events import EXCHANGE_ENTRIES_MAX, Numbering, Outgoing, Payload, add
from ringlog.redis.keys import Topic


class StreamProducer:
    """Adds events to streams; every stream keeps the newest `redis_stream_entries_max`, exactly.

    A call that failed may be made again with the same `Outgoing` events: consumers drop the second copy by (lane, seq).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbering = Numbering()

    @property
    def lane(self) -> int:
        return self._numbering.lane

    def number(self, topic: Topic, payload: Payload) -> Outgoing:
        """Numbers a payload without sending it; raises RedisValueError where it does not fit the topic."""
        return self._numbering.number(topic, payload)

    def publish(self, topic: Topic, events: Iterable[Payload | Outgoing]) -> list[str]:
        """Adds events in order, 500 a round trip; returns their entry ids.

        Raises RedisValueError before anything is sent; ServerUnavailable or ServerRefused with some perhaps added.
        """
        ids: list[str] = []
        for part in _parts(_numbered(self._numbering, topic, events)):
            ids += self._connection.run(
                functools.partial(add, self._connection.limits, self._connection.keys, topic, part)
            )
        return ids


class AsyncStreamProducer:
    """`StreamProducer` for asyncio: the same names, awaited."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._numbering = Numbering()

    @property
    def lane(self) -> int:
        return self._numbering.lane

    def number(self, topic: Topic, payload: Payload) -> Outgoing:
        return self._numbering.number(topic, payload)

    async def publish(self, topic: Topic, events: Iterable[Payload | Outgoing]) -> list[str]:
        ids: list[str] = []
        for part in _parts(_numbered(self._numbering, topic, events)):
            ids += await self._connection.run(
                functools.partial(add, self._connection.limits, self._connection.keys, topic, part)
            )
        return ids


def _numbered(numbering: Numbering, topic: Topic, events: Iterable[Payload | Outgoing]) -> list[Outgoing]:
    return [event if isinstance(event, Outgoing) else numbering.number(topic, event) for event in events]


def _parts(outgoing: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    for start in range(0, len(outgoing), EXCHANGE_ENTRIES_MAX):
        yield outgoing[start : start + EXCHANGE_ENTRIES_MAX]
