"""Consumer groups that survive crashes: each event of a stream to one consumer, each (lane, seq) once.

What is delivered stays pending in Redis until `ack`. A consumer that starts again under its name gets its own pending
events first; what a consumer left that never came back is claimed by the others. A (lane, seq) belongs to the first
entry it was delivered with: `seen:{topic}:{group}`, a sorted set with that entry's id as score, outlives every
consumer, so copies are dropped whoever reads them. It remembers twice as many events as a stream can hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from ringlog.errors import ConsumerGroupMissing, RedisValueError, ServerError
from ringlog.redis.connection import AsyncConnection, Connection, Exchange, Steps, one
from ringlog.redis.events import Event, event_of
from ringlog.redis.keys import Keys, Topic
from ringlog.redis.limits import Limits

logger = logging.getLogger(__name__)

Entry = tuple[bytes, Mapping[bytes, bytes]]
# An entry's id is `milliseconds-number`. As a score it must be exact in a double: 12 bits for the number leave room
# until the year 2039, and a server cannot add 4,096 entries within a millisecond.
_NUMBER_BITS = 12
_EXACT_BITS = 53  # of a double
_TRIMMED = "trimmed"  # the member of `gaps:{topic}:{group}`


class Gap(msgspec.Struct, frozen=True):
    """Events this group will never see.

    trimmed: the stream passed `redis_stream_entries_max` entries before they were read. pending-trimmed: the same,
    after they had been delivered to a consumer that did not finish them. stream-lost: the whole stream and its group
    were gone (evicted, flushed, or a restart without persistence); how many is then unknown (None). So it is for
    "trimmed" where another program deleted entries (XDEL) or made the group without ENTRIESREAD: perhaps none were.
    """

    reason: Literal["trimmed", "pending-trimmed", "stream-lost"]
    entries: int | None


class Delivery(msgspec.Struct, frozen=True):
    """What one read brought: events to handle and then ack, and what was noticed on the way."""

    events: tuple[Event, ...] = ()
    duplicates: int = 0  # copies of a (lane, seq) already delivered: dropped
    broken: int = 0  # entries another program wrote, which are no events: dropped
    gaps: tuple[Gap, ...] = ()


class _Reading:
    """A consumer's state and its operations as steps; the clients below only run them."""

    def __init__(
        self, keys: Keys, limits: Limits, topic: Topic, group: str, name: str, claim_idle_ms: int, block_ms: int
    ) -> None:
        if not name or not isinstance(name, str):
            raise RedisValueError(f"consumer name: got {name!r}, wanted a text that stays the same across restarts")
        self.topic, self.group, self.name, self.limits = topic, group, name, limits
        self.key, self.seen_key, self.gaps_key = keys.stream(topic), keys.seen(topic, group), keys.gaps(topic, group)
        self.claim_idle_ms, self.block_ms = claim_idle_ms, block_ms
        self.in_hand: set[str] = set()  # delivered by this object, not yet acked: never delivered twice by it
        self.joined = False
        # Noticed since the last delivery; kept here so that a read that fails half-way does not lose it.
        self.duplicates = self.broken = 0
        self.gaps: list[Gap] = []
        self.unsettled: tuple[int, int] | None = None
        self._restart()

    def _restart(self) -> None:
        """Own pending events come first: after a start, and after a reply may have been lost on the way."""
        self.recovering, self.own_cursor, self.claim_cursor, self.claim_at_s = True, "0-0", "0-0", 0.0

    def _delivery(self, events: Sequence[Event]) -> Delivery:
        self.in_hand.update(event.id for event in events)
        delivery = Delivery(tuple(events), self.duplicates, self.broken, tuple(self.gaps))
        self.duplicates, self.broken, self.gaps = 0, 0, []
        return delivery

    def create(self, start: str) -> Steps[bool]:
        """Creates the group; its count of entries read makes later gaps exact. False where it exists already."""
        if start not in ("first", "next"):
            raise RedisValueError(f"start: got {start!r}, wanted 'first' or 'next'")
        from_id, entries_read = "0-0", 0
        if start == "next":
            try:
                (stream,) = yield one("XINFO STREAM", self.key)
                from_id, entries_read = stream["last-generated-id"].decode(), stream["entries-added"]
            except ConsumerGroupMissing:
                pass  # no stream yet: the next entry is also the first
        try:
            yield one(
                "XGROUP CREATE", self.key, self.group, from_id, "MKSTREAM", "ENTRIESREAD", entries_read
            )  # fmt: skip
        except ServerError as error:
            if "BUSYGROUP" not in str(error):
                raise
            return False
        yield one("ZADD", self.gaps_key, "XX", 0, _TRIMMED)  # a group of that name may have been here before
        return True

    def read(self, count: int, deadline_s: float) -> Steps[Delivery]:
        try:
            events = yield from self._read(count, deadline_s)
        except ConsumerGroupMissing:
            if not self.joined:
                raise ConsumerGroupMissing(
                    f"{self.key}: got no consumer group {self.group!r}, wanted it made with create_group()"
                ) from None
            yield from self.create("first")
            self._restart()
            self.in_hand.clear()
            self.unsettled = None
            self.gaps.append(Gap("stream-lost", None))
            events = []
        except BaseException:  # a cancelled task, too, may have been handed events that nobody saw
            self._restart()
            raise
        self.joined = True
        return self._delivery(events)

    def _read(self, count: int, deadline_s: float) -> Steps[list[Event]]:
        yield from self._settle()
        while True:
            for source in (self._own, self._claimed):
                events = yield from self._admitted((yield from source(count)))
                if events:
                    return events
            entries, last_id = yield from self._new(count)
            events = yield from self._admitted(entries)
            left_ms = int((deadline_s - time.monotonic()) * 1_000)
            if events or self.gaps or (left_ms <= 0 and not self.recovering):
                return events
            if not entries and left_ms > 0:
                # Only a wake-up: what arrived is read above, together with the numbers that show a gap.
                yield one("XREAD", "COUNT", 1, "BLOCK", min(left_ms, self.block_ms), "STREAMS", self.key, last_id)

    def _own(self, count: int) -> Steps[list[Entry]]:
        """This consumer's own pending entries, from before a restart or a lost reply."""
        if not self.recovering:
            return []
        while True:
            (reply,) = yield one(
                "XREADGROUP",
                "GROUP",
                self.group,
                self.name,
                "COUNT",
                count,
                "STREAMS",
                self.key,
                self.own_cursor,
            )
            entries = reply[0][1] if reply else []
            if not entries:
                self.recovering = False
                return []
            self.own_cursor = entries[-1][0].decode()
            gone = [entry_id for entry_id, fields in entries if not fields]
            if gone:
                yield one("XACK", self.key, self.group, *gone)
                self.gaps.append(Gap("pending-trimmed", len(gone)))
            kept = self._not_in_hand(entry for entry in entries if entry[1])
            if kept:
                return kept

    def _claimed(self, count: int) -> Steps[list[Entry]]:
        """Entries that some consumer has held for longer than claim_idle_ms."""
        if time.monotonic() < self.claim_at_s:
            return []
        (reply,) = yield one(
            "XAUTOCLAIM", self.key, self.group, self.name, self.claim_idle_ms, self.claim_cursor, "COUNT", count
        )  # fmt: skip
        cursor, entries, *deleted = reply
        self.claim_cursor = cursor.decode()
        if self.claim_cursor == "0-0":
            self.claim_at_s = time.monotonic() + self.claim_idle_ms / 2_000
        if deleted and deleted[0]:
            self.gaps.append(Gap("pending-trimmed", len(deleted[0])))
        return self._not_in_hand(entry for entry in entries if entry[1])

    def _not_in_hand(self, entries: Iterable[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry[0].decode() not in self.in_hand]

    def _new(self, count: int) -> Steps[tuple[list[Entry], str]]:
        """Entries no consumer of the group has had, and the id after which to wait for more."""
        stream, groups, reply, groups_after = yield Exchange(
            (
                ("XINFO STREAM", self.key),
                ("XINFO GROUPS", self.key),
                ("XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, "STREAMS", self.key, ">"),
                ("XINFO GROUPS", self.key),
            ),
            atomic=True,
        )
        group = self._own_group(groups)
        entries = reply[0][1] if reply else []
        if entries and entries[0][0] == stream["first-entry"][0]:  # else nothing unread was trimmed
            self._note_trimmed(
                stream, group["entries-read"], len(entries), self._own_group(groups_after)["entries-read"]
            )
            yield from self._settle()
        last_id = entries[-1][0] if entries else group["last-delivered-id"]
        return entries, last_id.decode()

    def _own_group(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return next(found for found in groups if found["name"] == self.group.encode())

    def _note_trimmed(self, stream: Mapping[str, Any], read: int | None, count: int, read_after: int | None) -> None:
        """Compares the server's counts around a read that began at the stream's first entry.

        All entries before that one were read by the group or trimmed unread. Redis before 8 does not add the trimmed
        ones to a group's `entries-read` (redis#13957), so they would be counted again by every later comparison.
        """
        trimmed = stream["entries-added"] - stream["length"]
        if not trimmed:
            return
        if read is None or _parts(stream["max-deleted-entry-id"]) > _parts(stream["first-entry"][0]):
            self.gaps.append(Gap("trimmed", None))
        elif trimmed > read:
            # To report, and how many of them the server left out of its count.
            self.unsettled = (trimmed - read, 0 if read_after is None else trimmed + count - read_after)

    def _settle(self) -> Steps[None]:
        """Reports what was trimmed and not yet reported; what the server will count again is remembered in Redis.

        A step that fails is tried again by the next read. Where a consumer dies before it, the next gap has its events.
        """
        if self.unsettled is None:
            return
        missing, left_out = self.unsettled
        ((score,),) = yield one("ZMSCORE", self.gaps_key, _TRIMMED)
        if missing > (reported := int(score or 0)):
            self.gaps.append(Gap("trimmed", missing - reported))
        self.unsettled = 0, left_out
        yield one("ZADD", self.gaps_key, "GT" if left_out else "XX", left_out, _TRIMMED)
        self.unsettled = None

    def _admitted(self, entries: Sequence[Entry]) -> Steps[list[Event]]:
        """The events among entries, without those whose (lane, seq) was first delivered with another entry."""
        if not entries:
            return []
        decoded = [(entry_id, event_of(self.topic, entry_id, fields)) for entry_id, fields in entries]
        events = [event for _, event in decoded if event is not None]
        dropped: list[Any] = [entry_id for entry_id, event in decoded if event is None]
        if dropped:
            self.broken += len(dropped)
            logger.warning("stream=%s broken_entries=%d first_id=%r", self.key, len(dropped), dropped[0])
        admitted: list[Event] = []
        if events:
            for event, owner in zip(events, (yield from self._owners(events)), strict=True):
                (admitted if owner == _score(event.id) else dropped).append(event)
        if dropped:
            ids = [item.id if isinstance(item, Event) else item for item in dropped]
            self.duplicates += sum(isinstance(item, Event) for item in dropped)
            yield one("XACK", self.key, self.group, *ids)
        return admitted

    def _owners(self, events: Sequence[Event]) -> Steps[list[int]]:
        """For each event the score of the entry its (lane, seq) was first delivered with, itself where it is new."""
        members = [f"{event.lane}:{event.seq}" for event in events]
        scored = [part for event, member in zip(events, members, strict=True) for part in (_score(event.id), member)]
        _, scores, *_ = yield Exchange(
            (
                ("ZADD", self.seen_key, "NX", *scored),
                ("ZMSCORE", self.seen_key, *members),
                ("ZREMRANGEBYRANK", self.seen_key, 0, -self.limits.seen_members_max - 1),
                ("EXPIRE", self.seen_key, self.limits.seen_ttl_s),
            ),
            atomic=True,
        )
        return [int(score) for score in scores]

    def ack(self, events: Iterable[Event]) -> Steps[int]:
        ids = [event.id for event in events]
        acked = 0
        if ids:
            (acked,) = yield one("XACK", self.key, self.group, *ids)
            self.in_hand.difference_update(ids)
        return acked


def _parts(entry_id: bytes | str) -> tuple[int, int]:
    milliseconds, number = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).split("-")
    return int(milliseconds), int(number)


def _score(entry_id: str) -> int:
    """A different score for every id, rising with it, and exact in a double.

    After an id far beyond the clock (another program's, in microseconds, say) the server only counts up its number.
    Such ids take the doubles from 2**53, where the even numbers are exact; they rise as long as milliseconds stay.
    """
    milliseconds, number = _parts(entry_id)
    score = (milliseconds << _NUMBER_BITS) + number
    exact = 1 << _EXACT_BITS
    return score if score < exact else exact + 2 * (score % (exact // 2))


class StreamConsumer:
    """One member of a consumer group. It belongs to one thread.

    `name` stays the same across restarts of this member and differs from the others'. A member that holds an event
    for longer than `claim_idle_ms` loses it to the others: keep it well above the longest handling time.
    """

    def __init__(
        self, connection: Connection, topic: Topic, group: str, name: str, *, claim_idle_ms: int = 30_000
    ) -> None:
        self._connection = connection
        block_ms = max(1, int(connection.timeout_s * 500))
        self._reading = _Reading(connection.keys, connection.limits, topic, group, name, claim_idle_ms, block_ms)

    def create_group(self, start: Literal["first", "next"] = "next") -> bool:
        """Makes the group, reading from the stream's first entry or from the next to come; False if it exists."""
        return self._connection.run(lambda: self._reading.create(start))

    def read(self, count: int = 100, wait_ms: int = 1_000) -> Delivery:
        """At most `count` events, waiting up to `wait_ms` for the first; a gap also ends the wait.

        Raises ConsumerGroupMissing where the group was never made, ServerUnavailable, ServerRefused.
        """
        return self._connection.run(_reader(self._reading, count, wait_ms))

    def ack(self, events: Iterable[Event]) -> int:
        """Says that events are handled: they are never delivered again. Returns how many were still pending."""
        kept = tuple(events)
        return self._connection.run(lambda: self._reading.ack(kept))


class AsyncStreamConsumer:
    """`StreamConsumer` for asyncio: the same names, awaited."""

    def __init__(
        self, connection: AsyncConnection, topic: Topic, group: str, name: str, *, claim_idle_ms: int = 30_000
    ) -> None:
        self._connection = connection
        block_ms = max(1, int(connection.timeout_s * 500))
        self._reading = _Reading(connection.keys, connection.limits, topic, group, name, claim_idle_ms, block_ms)

    async def create_group(self, start: Literal["first", "next"] = "next") -> bool:
        return await self._connection.run(lambda: self._reading.create(start))

    async def read(self, count: int = 100, wait_ms: int = 1_000) -> Delivery:
        return await self._connection.run(_reader(self._reading, count, wait_ms))

    async def ack(self, events: Iterable[Event]) -> int:
        kept = tuple(events)
        return await self._connection.run(lambda: self._reading.ack(kept))


def _reader(reading: _Reading, count: int, wait_ms: int) -> Callable[[], Steps[Delivery]]:
    if not 1 <= count <= 10_000:
        raise RedisValueError(f"count: got {count}, wanted 1 to 10000")
    deadline_s = time.monotonic() + wait_ms / 1_000
    return lambda: reading.read(count, deadline_s)
