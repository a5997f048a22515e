"""`schemas/redis/keys.md` against the code, and both against what a real server holds."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from prompt_attempts import promptly
from redis.utils import str_if_bytes

from ringlog.arrays import rows_of
from ringlog.decode import Decoder, Slots
from ringlog.errors import ConfigurationError
from ringlog.records import Trade, layout_of
from ringlog.redis import (
    Cache,
    Connection,
    PoolState,
    PriceUpdate,
    Publisher,
    RedisSink,
    StreamConsumer,
    StreamProducer,
    Subscriber,
    Topic,
    UiEvent,
)
from ringlog.redis.keys import CATALOGUE, CHANNELS, KeyFamily, Keys
from ringlog.sinks import Batch, Span

PAGE = Path(__file__).parents[2] / "schemas" / "redis" / "keys.md"
ADDRESS = "58oQChx4yWmvKdwLLZzBi4ChoCc2fqCUWBkwMihLYQo2"


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of keys.md, without backquotes."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def documented(family: KeyFamily) -> list[str]:
    """A line of the catalogue as the page writes it."""
    items = {"stream": "entries", "zset": "members"}
    size = f"{family.item_bytes_max} bytes"
    if family.redis_type in items:
        size = f"{family.items_max} {items[family.redis_type]} of {size}"
    ttl = "none" if family.ttl_s is None else f"{family.ttl_s} s"
    return [family.pattern, family.redis_type, ttl, size, ", ".join(family.written_by)]


def test_the_page_and_the_code_name_the_same_keys() -> None:
    """Every key, type, TTL, size and owner on the page is the code's, and the reverse; so are the channels."""
    assert table("Keys") == [documented(family) for family in CATALOGUE]
    assert tuple(row[0] for row in table("Channels")) == CHANNELS


def family_of(key: str) -> KeyFamily:
    """The one line of the catalogue that a key belongs to."""
    found = []
    for family in CATALOGUE:
        pattern = re.sub(r"\\{(\w+)\\}", r"[!-~]+", re.escape(family.pattern))
        if re.fullmatch(pattern, key):
            found.append(family)
    assert len(found) == 1, f"{key} belongs to {found}"
    return found[0]


POOL = PoolState(
    address=ADDRESS, base_token="SOL", quote_token="USDC", base_reserve=1, quote_reserve=1, price=Decimal(1), fee_bps=1,
    slot=1,
)  # fmt: skip
PAYLOADS = {
    Topic.PRICE_UPDATES: PriceUpdate("SOL", Decimal(1), 1),
    Topic.UI_EVENTS: UiEvent("x"),
    Topic.TRADE_EVENTS: Trade(
        trader_id="t1", mode="paper", action="buy", base_token="SOL", quote_token="USDC", base_amount=1.0,
        quote_amount=1.0, executed_price=1.0, transaction_fee=1, expected_slippage=0.0, actual_slippage=0.0,
        mev_status="protected", mev_protected=True,
    ),
}  # fmt: skip


def use_cache(connection: Connection) -> None:
    cache = Cache(connection)

    def use() -> None:
        cache.set_price("SOL", "1")
        cache.set_pool(POOL)
        assert cache.price("SOL").is_fresh
        assert cache.pool(ADDRESS).is_fresh

    promptly(use)


def use_producer(connection: Connection) -> None:
    for topic, payload in PAYLOADS.items():
        StreamProducer(connection).publish(topic, [payload])


def use_publisher(connection: Connection) -> None:
    with Publisher(connection) as publisher:
        publisher.offer(Topic.PRICE_UPDATES, "SOL", PAYLOADS[Topic.PRICE_UPDATES])
        publisher.offer(Topic.UI_EVENTS, "x", PAYLOADS[Topic.UI_EVENTS])


def use_sink(connection: Connection) -> None:
    array = rows_of(
        Trade, {name: [value] for name, value in msgspec.structs.asdict(PAYLOADS[Topic.TRADE_EVENTS]).items()}
    )
    columns, _, _ = Decoder(layout_of(Trade)).decode([Slots(7, 0, 1, array.view(np.uint8))])
    sink = RedisSink(connection)
    sink.start()
    sink.offer(Batch(layout_of(Trade), (Span(7, 0, 1),), 1, columns))
    sink.close(timeout_s=10)
    assert sink.stats().published == 1


def use_consumer(connection: Connection) -> None:
    reader = StreamConsumer(connection, Topic.UI_EVENTS, "group", "one", claim_idle_ms=1)
    reader.create_group("first")
    reader.ack(reader.read().events)
    reader.read(wait_ms=5)


USERS: dict[str, Callable[[Connection], None]] = {
    "Cache": use_cache,
    "StreamProducer": use_producer,
    "Publisher": use_publisher,
    "RedisSink": use_sink,
    "StreamConsumer": use_consumer,
}


@pytest.mark.parametrize("owner", USERS)
def test_each_owner_writes_what_the_page_says(owner: str, connection: Connection, raw: redis.Redis) -> None:
    """On a real server each part of ringlog leaves the keys that name it, with the type, TTL and size given there."""

    def leave_keys() -> None:
        raw.flushall()
        if owner == "StreamConsumer":
            use_producer(connection)
        before = set(raw.scan_iter())
        USERS[owner](connection)
        written = defaultdict(list)
        for key in set(raw.scan_iter()) - before:
            written[family_of(key.decode()).pattern].append(key)
        # The trades' stream is the sink's; a Publisher may be given any topic, but is meant for latest states.
        # Gaps are kept once a group was overtaken, on Redis before 8: test_redis_servers.py does that.
        assert set(written) == {f.pattern for f in CATALOGUE if owner in f.written_by} - {"gaps:{topic}:{group}"}
        for keys in written.values():
            for key in keys:
                family = family_of(key.decode())
                assert raw.type(key).decode() == family.redis_type
                ttl_ms = raw.pttl(key)
                assert ttl_ms == -1 if family.ttl_s is None else 0 < ttl_ms <= family.ttl_s * 1_000
                assert largest(raw, key) <= family.item_bytes_max

    promptly(leave_keys)  # before the first of them expires


def largest(raw: redis.Redis, key: bytes) -> int:
    """Bytes of a key's largest item, as the page counts them."""
    match raw.type(key):
        case b"string":
            return raw.strlen(key)
        case b"zset":
            return max(len(member) for member in raw.zrange(key, 0, -1))
        case _:
            return max(len(fields[b"data"]) for _, fields in raw.xrange(key))


def test_no_other_key_or_channel_is_ever_touched(server: Any, connection: Connection, raw: redis.Redis) -> None:
    """MONITOR sees every command; the keys the server finds in them, and the channels, are all on the page."""
    started = threading.Event()
    commands: list[str] = []

    def watch() -> None:
        with server.bare() as client, client.monitor() as monitor:
            started.set()
            for seen in monitor.listen():
                if "the-end" in seen["command"]:
                    return
                commands.append(seen["command"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert started.wait(10)
    for use in USERS.values():
        use(connection)
    raw.echo("the-end")
    watcher.join(60)
    keys, channels = set(), set()
    for command in commands:
        words = command.split(" ")
        if words[0].upper() in ("PUBLISH", "SUBSCRIBE"):
            channels.add(words[1])
        with contextlib.suppress(redis.ResponseError):  # the command has no keys
            keys.update(str_if_bytes(key) for key in raw.execute_command("COMMAND GETKEYS", *words))
    assert {family_of(key).pattern for key in keys} == {family.pattern for family in CATALOGUE}
    assert channels <= set(CHANNELS)
    assert len(channels) == 2


def test_a_prefix_goes_before_every_key_and_channel(server: Any, raw: redis.Redis, until: Any) -> None:
    """With a prefix nothing is written outside it, and two prefixes do not see each other."""
    with Connection(server.settings_for(redis_key_prefix="demo:")) as connection:
        for use in USERS.values():
            use(connection)
        subscriber = Subscriber(connection, Topic.UI_EVENTS)
        subscriber.read(wait_ms=1)
        until(raw.pubsub_channels)  # the read did not wait for the answer to its SUBSCRIBE
        assert raw.pubsub_channels() == [b"demo:channel:ui-events"]
        subscriber.close()
    assert {key[:5] for key in raw.scan_iter()} == {b"demo:"}
    with Connection(server.settings_for()) as connection:
        assert not Cache(connection).price("SOL").is_fresh


@pytest.mark.parametrize("prefix", ["with space", "ü", "x" * 65, "a\n"])
def test_a_prefix_that_cannot_be_a_key_is_refused(prefix: str) -> None:
    """A prefix that would make keys nobody can type raises ConfigurationError naming the option."""
    with pytest.raises(ConfigurationError, match="redis_key_prefix"):
        Keys(prefix)
