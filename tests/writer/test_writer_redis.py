"""The writer and its Redis sink together, on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import redis
from lane_samples import eventually
from whole_path import patient
from writer_thread import writing

from ringlog import Producer, Settings
from ringlog.cli.writer import _mirror
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.questdb.migrations import migrate
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer, ValkeyServer


@pytest.fixture
def both(settings: Settings, valkey_server: ValkeyServer, questdb_server: QuestDBServer) -> Iterator[Settings]:
    """Settings of one instance that lead to both servers, with the Redis sink on and keys of its own."""
    fields = {**valkey_server.settings(), "redis_sink": True, "redis_key_prefix": f"{Instance(settings).board_name}:"}
    both = msgspec.structs.replace(settings, **fields)
    with patient():
        migrate(msgspec.structs.replace(both, request_timeout_ms=15_000), [layout_of(Trade)])
    yield both
    remove_instance(Instance(both))


def append(settings: Settings, rows: int) -> int:
    with Producer([Trade], settings=settings) as producer:
        trade = producer.appender(Trade).bind(
            trader_id="t1", mode="paper", base_token="SOL", quote_token="USDC", mev_status="protected",
            mev_protected=True, transaction_fee=5000, expected_slippage=0.0, actual_slippage=0.0,
        )  # fmt: skip
        return sum(trade("buy", 1.0, 150.0 + i, 150.0 + i) for i in range(rows))


def test_confirmed_trades_reach_the_stream_and_the_cache(both: Settings, valkey_server: ValkeyServer) -> None:
    """Each trade that the writer confirmed is one event of the stream, and the latest price is in the cache."""
    client = redis.Redis(
        "127.0.0.1", both.redis_port, username=both.redis_user or None, password=both.redis_password.reveal() or None
    )  # fmt: skip
    stream = f"{both.redis_key_prefix}stream:trade-events"
    with writing(both, mirror=_mirror(both)):
        assert append(both, 50) == 50
        eventually(lambda: client.xlen(stream) == 50, "50 events")
        eventually(lambda: client.exists(f"{both.redis_key_prefix}last:price:SOL") == 1, "the last price")
    events = [fields for _, fields in client.xrange(stream)]
    assert len({(event[b"lane"], event[b"seq"]) for event in events}) == 50
    client.close()


def test_55_a_redis_that_is_down_holds_up_nothing(both: Settings, questdb_server: QuestDBServer) -> None:
    """With no Redis at all every trade is stored, and its lanes are given back.

    Defence: Redis is written to on a thread of its own.
    """
    away = msgspec.structs.replace(both, redis_port=1)
    with writing(away, mirror=_mirror(away)) as writer:
        assert append(away, 50) == 50
        eventually(lambda: writer.statistics.rows >= 50, "50 rows written")
        lanes = Instance(away).lanes_dir
        eventually(lambda: not list(lanes.glob("*.json")), "lanes drained and removed")
