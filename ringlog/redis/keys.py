"""Every Redis key ringlog uses, built in one place; `schemas/redis/keys.md` says the same to a reader.

A prefix (`RINGLOG_REDIS_KEY_PREFIX`, empty by default) goes before every key and channel.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import msgspec

from ringlog.errors import ConfigurationError, RedisValueError
from ringlog.redis.limits import DEFAULTS

PRICE_BYTES_MAX = 64
POOL_BYTES_MAX = 4_096
EVENT_BYTES_MAX = 8_192
NAME_BYTES_MAX = 96

_NAME = re.compile(r"[!-~]+")
_ADDRESS = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}")
_PREFIX = re.compile(r"[!-~]{0,64}")


class Topic(enum.StrEnum):
    """What is published: each topic has a stream (read by consumer groups) and a pub/sub channel (10 Hz frames)."""

    PRICE_UPDATES = "price-updates"
    TRADE_EVENTS = "trade-events"
    UI_EVENTS = "ui-events"


class KeyFamily(msgspec.Struct, frozen=True):
    """One line of the catalogue, with the defaults of what settings say.

    `ttl_s` None means that the key does not expire; `items_max` entries or members of at most `item_bytes_max` each.
    """

    pattern: str
    redis_type: str
    ttl_s: int | None
    items_max: int
    item_bytes_max: int
    written_by: tuple[str, ...]


def _catalogue() -> Iterator[KeyFamily]:
    fresh_s, last_s, stamp_bytes = DEFAULTS.fresh_ttl_ms // 1_000, DEFAULTS.last_ttl_s, 24
    yield KeyFamily("price:{symbol}", "string", fresh_s, 1, PRICE_BYTES_MAX, ("Cache", "RedisSink"))
    yield KeyFamily("pool:{address}", "string", fresh_s, 1, POOL_BYTES_MAX, ("Cache",))
    yield KeyFamily("last:price:{symbol}", "string", last_s, 1, PRICE_BYTES_MAX + stamp_bytes, ("Cache", "RedisSink"))
    yield KeyFamily("last:pool:{address}", "string", last_s, 1, POOL_BYTES_MAX + stamp_bytes, ("Cache",))
    for topic in Topic:
        beside = "RedisSink" if topic is Topic.TRADE_EVENTS else "Publisher"
        owners = tuple(sorted(("StreamProducer", beside)))
        yield KeyFamily(f"stream:{topic}", "stream", None, DEFAULTS.stream_entries_max, EVENT_BYTES_MAX, owners)
    yield KeyFamily(
        "seen:{topic}:{group}", "zset", DEFAULTS.seen_ttl_s, DEFAULTS.seen_members_max, 40, ("StreamConsumer",)
    )
    yield KeyFamily("gaps:{topic}:{group}", "zset", None, 1, 7, ("StreamConsumer",))


CATALOGUE: tuple[KeyFamily, ...] = tuple(_catalogue())
CHANNELS: tuple[str, ...] = tuple(f"channel:{topic}" for topic in Topic)


class Keys:
    """Builds keys under one prefix.

    Raises ConfigurationError where the prefix has spaces, control or non-ASCII characters, or more than 64 of them.
    """

    __slots__ = ("prefix",)

    def __init__(self, prefix: str = "") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"redis_key_prefix: got {prefix!r}, wanted at most 64 visible ASCII characters")
        self.prefix = prefix

    def price(self, symbol: str) -> str:
        return f"{self.prefix}price:{_named('token symbol', symbol)}"

    def last_price(self, symbol: str) -> str:
        return f"{self.prefix}last:price:{_named('token symbol', symbol)}"

    def pool(self, address: str) -> str:
        return f"{self.prefix}pool:{_addressed(address)}"

    def last_pool(self, address: str) -> str:
        return f"{self.prefix}last:pool:{_addressed(address)}"

    def stream(self, topic: Topic) -> str:
        return f"{self.prefix}stream:{topic}"

    def channel(self, topic: Topic) -> str:
        return f"{self.prefix}channel:{topic}"

    def seen(self, topic: Topic, group: str) -> str:
        return f"{self.prefix}seen:{topic}:{_named('consumer group', group)}"

    def gaps(self, topic: Topic, group: str) -> str:
        return f"{self.prefix}gaps:{topic}:{_named('consumer group', group)}"


def _named(what: str, text: str) -> str:
    if not isinstance(text, str) or len(text) > NAME_BYTES_MAX or not _NAME.fullmatch(text):
        raise RedisValueError(f"{what}: got {text!r}, wanted 1 to {NAME_BYTES_MAX} visible ASCII characters")
    return text


def _addressed(text: str) -> str:
    if not isinstance(text, str) or not _ADDRESS.fullmatch(text):
        raise RedisValueError(f"pool address: got {text!r}, wanted 32 to 44 base58 characters")
    return text
