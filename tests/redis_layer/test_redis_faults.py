"""Redis killed, restarted, cut off in mid-answer, or out of reach, under load: typed errors, and service again."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any

import pytest
import redis
from redis import exceptions

from ringlog.errors import ConsumerGroupMissing, RinglogError, ServerError, ServerRefused, ServerUnavailable
from ringlog.redis import (
    AsyncCache,
    AsyncConnection,
    Cache,
    Connection,
    StreamConsumer,
    StreamProducer,
    Topic,
    UiEvent,
)
from ringlog.redis.connection import translated
from ringlog.settings import Secret, Settings

UI = Topic.UI_EVENTS


def test_55_a_restart_under_load_reaches_nobody(own_server: Any, until: Any) -> None:
    """Readers and writers at work while the server is killed and started again see no error, only a pause.

    Defence: a command that Redis did not answer is tried again.
    """
    stop, errors, served = threading.Event(), [], [0] * 4
    with Connection(own_server.settings_for()) as connection:
        cache, producer = Cache(connection), StreamProducer(connection)

        def work(index: int) -> None:
            try:
                while not stop.is_set():
                    cache.set_price("SOL", Decimal(index))
                    cache.price("SOL")
                    producer.publish(UI, [UiEvent("x")])
                    served[index] += 1
            except RinglogError as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: min(served) > 20)
        own_server.kill()
        own_server.start()
        before = list(served)
        until(lambda: all(now > then + 20 for now, then in zip(served, before, strict=True)))
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


async def test_a_restart_under_load_reaches_no_task(own_server: Any) -> None:
    """The same for asyncio: 20 tasks on one connection pool, no error across a kill and a restart."""
    served, going_on = 0, True
    async with AsyncConnection(own_server.settings_for()) as connection:
        cache = AsyncCache(connection)

        async def work() -> None:
            nonlocal served
            while going_on:
                await cache.set_price("SOL", "1")
                await cache.price("SOL")
                served += 1

        async def serving(calls: int) -> None:
            wanted = served + calls
            async with asyncio.timeout(60):
                while served < wanted and not any(task.done() for task in tasks):
                    await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(work()) for _ in range(20)]
        await serving(200)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        await serving(200)
        going_on = False
        assert await asyncio.gather(*tasks, return_exceptions=True) == [None] * 20


async def test_a_cancelled_task_always_ends(async_connection: AsyncConnection) -> None:
    """No cancellation is lost, wherever in a call it strikes (redis-py's write timeout loses some on Python 3.11)."""
    cache, served, going_on = AsyncCache(async_connection), 0, True

    async def work() -> None:
        nonlocal served
        while going_on:
            await cache.set_price("SOL", "1")
            await cache.price("SOL")
            served += 1

    try:
        for round_ in range(20):
            tasks = [asyncio.create_task(work()) for _ in range(10)]
            wanted = served + 10 + round_
            while served < wanted:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=10)
            assert not left
            assert all(task.cancelled() for task in tasks)
    finally:
        going_on = False
    await cache.set_price("SOL", "2")
    assert (await cache.price("SOL")).value == Decimal(2), "the pool is in order afterwards"


async def test_an_async_call_to_a_silent_server_ends(own_server: Any) -> None:
    """A server that is stopped in its tracks costs one timeout and raises ServerUnavailable."""
    settings = own_server.settings_for(redis_timeout_ms=500, redis_retry_timeout_ms=0)
    async with AsyncConnection(settings) as connection, AsyncConnection(own_server.settings_for()) as patient:
        cache = AsyncCache(connection)
        await AsyncCache(patient).set_price("SOL", "1")
        own_server.stop_signal()
        try:
            with pytest.raises(ServerUnavailable, match=r"within 0\.5 s"):
                await cache.price("SOL")
        finally:
            own_server.continue_signal()
        assert (await AsyncCache(patient).price("SOL")).value == Decimal(1)


def test_a_server_that_stays_away_is_an_error_after_the_retry_time(own_server: Any) -> None:
    """When the retry time is over the caller gets ServerUnavailable, for reads, writes and streams alike."""
    with Connection(own_server.settings_for(redis_retry_timeout_ms=100)) as connection:
        reader = StreamConsumer(connection, UI, "group", "one")
        reader.create_group()
        own_server.kill()
        calls = (
            lambda: Cache(connection).price("SOL"),
            lambda: Cache(connection).set_price("SOL", "1"),
            lambda: StreamProducer(connection).publish(UI, [UiEvent("x")]),
            lambda: reader.read(wait_ms=0),
        )
        for call in calls:
            with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1"):
                call()


def test_a_consumer_reads_on_after_a_restart_that_lost_everything(own_server: Any) -> None:
    """After a restart without persistence the consumer says what happened and gets the events that came since."""
    with Connection(own_server.settings_for()) as connection:
        reader, producer = StreamConsumer(connection, UI, "group", "one"), StreamProducer(connection)
        reader.create_group()
        producer.publish(UI, [UiEvent("before")])
        reader.read()
        own_server.lose_everything()
        producer.publish(UI, [UiEvent("after")])
        assert [gap.reason for gap in reader.read(wait_ms=0).gaps] == ["stream-lost"]
        assert [event.payload for event in reader.read(wait_ms=0).events] == [UiEvent("after")]


def test_a_lost_answer_to_a_read_loses_no_event(server: Any, proxy: Any, connection: Connection) -> None:
    """Entries whose delivery was lost on the way are pending: the same read, tried again, finds and delivers them."""
    producer = StreamProducer(connection)
    with Connection(server.settings_for(redis_port=proxy.port)) as through_proxy:
        reader = StreamConsumer(through_proxy, UI, "group", "one")
        reader.create_group("first")
        seqs: list[int] = []
        for _ in range(20):
            producer.publish(UI, [UiEvent("x")] * 10)
            proxy.cut_next(2, b"XREADGROUP")
            events = reader.read(10, wait_ms=0).events
            seqs += [event.seq for event in events]
            reader.ack(events)
    assert proxy.cuts >= 20
    assert seqs == list(range(200))


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (exceptions.ReadOnlyError("You can't write against a read only replica."), ServerUnavailable),
        (exceptions.BusyLoadingError("LOADING"), ServerUnavailable),
        (exceptions.MasterDownError("MASTERDOWN"), ServerUnavailable),
        (exceptions.NoScriptError("NOSCRIPT No matching script"), ServerRefused),
        (exceptions.AuthenticationError("WRONGPASS"), ServerRefused),
        (exceptions.NoPermissionError("NOPERM"), ServerRefused),
        (exceptions.OutOfMemoryError("OOM"), ServerRefused),
        (exceptions.ResponseError("NOGROUP No such key"), ConsumerGroupMissing),
        (exceptions.ResponseError("ERR unknown command"), ServerRefused),
    ],
)
def test_every_answer_has_one_error_that_says_what_to_do(error: Any, wanted: type[ServerError]) -> None:
    """A failover or a loading server may be tried again; a refusal may not; payloads are never repeated in errors."""
    assert type(translated("Redis", error, Settings())) is wanted
    quoted = exceptions.ResponseError("Command # 1 (SET a canary) of pipeline caused error: ERR no")
    assert "canary" not in str(translated("Redis", quoted, Settings()))


def test_55_a_failover_to_a_replica_is_waited_out(own_server: Any, server: Any) -> None:
    """Writes refused by a server that became a replica go through once it is primary again.

    Defence: a command that Redis did not answer is tried again.
    """
    with own_server.bare() as raw, Connection(own_server.settings_for()) as connection:
        cache = Cache(connection)
        cache.set_price("SOL", "1")
        raw.replicaof("127.0.0.1", server.port)  # its link stays down: what matters is that it refuses writes
        timer = threading.Timer(0.3, raw.replicaof, ("NO", "ONE"))
        timer.start()
        cache.set_price("SOL", "2")
        timer.join()
        assert cache.price("SOL").value == Decimal(2)


def test_wrong_passwords_and_missing_rights_are_refused_without_secrets(server: Any, raw: redis.Redis) -> None:
    """A login that is refused, or a key outside the user's rights, raises ServerRefused; no secret is in the text."""
    raw.acl_setuser("reader", enabled=True, passwords=["+canary"], keys=["price:*", "last:*"], commands=["+mget"])
    try:
        wrong = server.settings_for(redis_user="reader", redis_password=Secret("canary-wrong"))
        with Connection(wrong) as connection, pytest.raises(ServerRefused) as refused:
            Cache(connection).price("SOL")
        assert "canary" not in repr(refused.value)
        right = server.settings_for(redis_user="reader", redis_password=Secret("canary"))
        with Connection(right) as connection:
            Cache(connection).price("SOL")
            with pytest.raises(ServerRefused) as denied:
                Cache(connection).set_price("SOL", "1")
        assert "canary" not in repr(denied.value)
    finally:
        raw.acl_deluser("reader")
