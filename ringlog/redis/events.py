"""What flows through streams and channels: typed payloads, numbered by (lane, seq) so that a second copy is known.

A stream's entry has three fields: `lane` and `seq` (decimal text) and `data` (JSON of the topic's payload type).
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from ringlog.errors import RedisValueError
from ringlog.records import Trade
from ringlog.redis.connection import Command, Exchange, Steps
from ringlog.redis.keys import EVENT_BYTES_MAX, Keys, Topic
from ringlog.redis.limits import Limits

EXCHANGE_ENTRIES_MAX = 500


class PriceUpdate(msgspec.Struct, frozen=True):
    """A token's price at `observed_at_us` (microseconds since the epoch)."""

    symbol: str
    price: Decimal
    observed_at_us: int


class UiEvent(msgspec.Struct, frozen=True):
    """Something a user interface shows: its kind, and a body of JSON."""

    kind: str
    body: Any = None


Payload = PriceUpdate | Trade | UiEvent
PAYLOADS: Mapping[Topic, type[Payload]] = {
    Topic.PRICE_UPDATES: PriceUpdate,
    Topic.TRADE_EVENTS: Trade,
    Topic.UI_EVENTS: UiEvent,
}
_encoder = msgspec.json.Encoder(decimal_format="string")
_decoders: Mapping[Topic, Any] = {topic: msgspec.json.Decoder(payload) for topic, payload in PAYLOADS.items()}


class Outgoing(NamedTuple):
    """An event with its number; sending it again under the same number is harmless."""

    lane: int
    seq: int
    data: bytes


class Event(msgspec.Struct, frozen=True):
    """An entry of a stream: its id there, its number, and its payload."""

    id: str
    topic: Topic
    lane: int
    seq: int
    payload: Payload


class Numbering:
    """Numbers events: a random 63-bit lane of its own, and seq from 0; threads may share it."""

    def __init__(self) -> None:
        self.lane = secrets.randbits(63)
        self._seqs = itertools.count()

    def number(self, topic: Topic, payload: Payload) -> Outgoing:
        """Raises RedisValueError where the payload is not the topic's type, cannot be JSON, or is too long."""
        return Outgoing(self.lane, next(self._seqs), encoded(topic, payload))

    def next_seq(self) -> int:
        return next(self._seqs)


def encoded(topic: Topic, payload: Payload) -> bytes:
    """The JSON of a payload; raises RedisValueError where it does not fit the topic or is too long."""
    wanted = PAYLOADS[topic]
    if not isinstance(payload, wanted):
        raise RedisValueError(f"{topic}: got {type(payload).__name__}, wanted {wanted.__name__}")
    try:
        data = _encoder.encode(payload)
        _decoders[topic].decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise RedisValueError(f"{topic}: {error}") from None
    if len(data) > EVENT_BYTES_MAX:
        raise RedisValueError(f"{topic}: got {len(data)} bytes of JSON, wanted at most {EVENT_BYTES_MAX}")
    return data


def decoded(topic: Topic, data: bytes) -> Payload:
    """The payload of a topic; raises msgspec.DecodeError where it does not fit."""
    return _decoders[topic].decode(data)  # type: ignore[no-any-return]


def event_of(topic: Topic, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event | None:
    """The event in an entry, or None where another program wrote something else there."""
    try:
        lane, seq = int(fields[b"lane"]), int(fields[b"seq"])
        return Event(entry_id.decode(), topic, lane, seq, decoded(topic, fields[b"data"]))
    except (KeyError, ValueError, msgspec.DecodeError):
        return None


def add_command(limits: Limits, key: str, outgoing: Outgoing) -> Command:
    """XADD that trims exactly: a stream never holds more than `stream_entries_max` entries, not for a moment."""
    lane, seq, data = outgoing
    return ("XADD", key, "MAXLEN", "=", limits.stream_entries_max, "*", "lane", lane, "seq", seq, "data", data)


def add(limits: Limits, keys: Keys, topic: Topic, outgoing: Iterable[Outgoing]) -> Steps[list[str]]:
    """Adds events in one round trip (at most EXCHANGE_ENTRIES_MAX of them); returns their entry ids."""
    key = keys.stream(topic)
    replies = yield Exchange(tuple(add_command(limits, key, one) for one in outgoing))
    return [entry_id.decode() for entry_id in replies]


class FrameEntry(msgspec.Struct, frozen=True):
    """The latest state of one key within a frame."""

    key: str
    seq: int
    data: msgspec.Raw


class Frame(msgspec.Struct, frozen=True):
    """What a channel carries ten times a second: the keys that changed since the last frame, each in its latest state.

    `seq` counts the channel's frames from 0: a subscriber that sees it jump has missed some.
    """

    topic: Topic
    lane: int
    seq: int
    sent_at_us: int
    entries: list[FrameEntry]

    def payloads(self) -> dict[str, Payload]:
        """Key to payload; raises msgspec.DecodeError where one does not fit the topic."""
        return {entry.key: decoded(self.topic, entry.data) for entry in self.entries}


_frame_decoder = msgspec.json.Decoder(Frame)


def frame_json(topic: Topic, lane: int, seq: int, entries: list[FrameEntry]) -> bytes:
    return _encoder.encode(Frame(topic, lane, seq, time.time_ns() // 1_000, entries))


def frame_of(data: bytes) -> Frame:
    """Raises msgspec.DecodeError where the data is no frame."""
    return _frame_decoder.decode(data)
