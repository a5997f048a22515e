"""The pools: 50 callers on 20 connections, retries, restarts in the middle of load, and a server that hangs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from postgres_platform import USDC, condition, execute

import ringlog.postgres
from ringlog.errors import PostgresValueError, SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.postgres import AsyncPool, AsyncTokens, Pool, Token, Tokens
from ringlog.postgres.pools import Operation, Statement, Steps, operation, transaction
from ringlog.servers import PostgresServer
from ringlog.settings import Secret, Settings

CALLERS = 50
TOKEN = Token(address=USDC, symbol="USDC", decimals=6)


@operation
def query(sql: str, *parameters: Any) -> Steps[list[Any]]:
    return (yield Statement(sql, parameters))


@transaction
def transfer(amount: int) -> Steps[None]:
    """Reads and writes both rows at SERIALIZABLE: concurrent ones must fail, and be tried again."""
    yield Statement("set transaction isolation level serializable")
    rows = yield Statement("select sum(balance) from accounts")
    yield Statement("update accounts set balance = balance - %s, seen = %s where name = 'a'", (amount, rows[0][0]))
    yield Statement("update accounts set balance = balance + %s where name = 'b'", (amount,))


def served(pool: Pool) -> bool:
    """Whether a call gets through: a pool just opened has no connection yet for one that hardly waits."""
    try:
        return pool.run(query("select 1")) == [(1,)]
    except ServerUnavailable:
        return False


def test_fifty_callers_on_twenty_connections_all_succeed(database: Settings) -> None:
    """No error and no starvation: every caller gets through every round, over at most 20 connections."""
    with Pool(database) as pool, ThreadPoolExecutor(CALLERS) as callers:
        Tokens(pool).save(TOKEN)
        together = threading.Barrier(CALLERS)

        def call(_: int) -> int:
            together.wait()
            return sum(Tokens(pool).get(USDC) == TOKEN for _ in range(20))

        assert list(callers.map(call, range(CALLERS))) == [20] * CALLERS
        assert pool.statistics()["pool_size"] <= 20
        assert pool.statistics().get("requests_errors", 0) == 0
        count = "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s"
        ((connections,),) = pool.run(query(count, "ringlog"))
        assert connections <= 20


async def test_fifty_tasks_on_twenty_connections_all_succeed(database: Settings) -> None:
    """The same for asyncio."""
    async with AsyncPool(database) as pool:
        tokens = AsyncTokens(pool)
        await tokens.save(TOKEN)

        async def call() -> int:
            return sum([await tokens.get(USDC) == TOKEN for _ in range(20)])

        assert await asyncio.gather(*(call() for _ in range(CALLERS))) == [20] * CALLERS
        assert pool.statistics()["pool_size"] <= 20
        assert pool.statistics().get("requests_errors", 0) == 0


def test_serialization_failures_are_tried_again(database: Settings) -> None:
    """Transactions that PostgreSQL must refuse to serialize all succeed in the end, and each happened exactly once."""
    execute(database, "create table accounts (name text primary key, balance bigint, seen bigint)")
    execute(database, "insert into accounts values ('a', 1000, 0), ('b', 0, 0)")
    refused = []

    def counted(_: int) -> None:
        wanted = transfer(1)

        def start() -> Steps[None]:
            refused.append(1)
            return wanted.start()

        pool.run(Operation(start, transaction=True))

    with Pool(database) as pool, ThreadPoolExecutor(8) as callers:
        list(callers.map(counted, range(100)))
    assert execute(database, "select name, balance from accounts order by name") == [("a", 900), ("b", 100)]
    assert len(refused) > 100, "nothing collided: this run proves nothing"


def test_deadlocks_are_tried_again(database: Settings) -> None:
    """Two transactions that lock two rows in opposite order both end well."""
    execute(database, "create table pair (name text primary key, n int)")
    execute(database, "insert into pair values ('a', 0), ('b', 0)")
    both_hold_one = threading.Barrier(2)

    def crossed(first: str, second: str) -> Operation[None]:
        tries = iter(range(100))

        def steps() -> Steps[None]:
            yield Statement("update pair set n = n + 1 where name = %s", (first,))
            if next(tries) == 0:
                both_hold_one.wait(30)
            yield Statement("update pair set n = n + 1 where name = %s", (second,))

        return Operation(steps, transaction=True)

    with Pool(database) as pool, ThreadPoolExecutor(2) as callers:
        list(callers.map(pool.run, [crossed("a", "b"), crossed("b", "a")]))
    assert execute(database, "select n from pair") == [(2,), (2,)]


def restart(server: PostgresServer) -> None:
    """What `pg_ctl -m immediate` and a start do: no shutdown checkpoint, every transaction cut, then crash recovery."""
    server.kill()
    server.start()


@transaction
def count_once(mark: uuid.UUID) -> Steps[None]:
    """An idempotent write of two statements: the mark names it across tries."""
    rows = yield Statement("insert into marks values (%s) on conflict do nothing returning id", (mark,))
    if rows:
        yield Statement("update counter set n = n + 1")


def test_53_a_restart_in_the_middle_of_load_counts_nothing_twice(
    own_server: PostgresServer, own_settings: Settings
) -> None:
    """50 callers read and write in transactions while the server crashes and returns: none sees an error.

    Each write is found exactly once: cut transactions were rolled back and tried again, committed ones whose answer
    was lost were recognised. Every caller is served again after the restart, within the retry timeout.
    Defence: a transaction that was cut is tried again.
    """
    execute(own_settings, "create table marks (id uuid primary key)")
    execute(own_settings, "create table counter (n bigint)")
    execute(own_settings, "insert into counter values (0)")
    done, restarted = threading.Event(), threading.Event()
    served_after = []

    with Pool(own_settings) as pool, ThreadPoolExecutor(CALLERS) as callers:
        Tokens(pool).save(TOKEN)

        def call(_: int) -> int:
            written = 0
            while not done.is_set():
                late = restarted.is_set()
                pool.run(count_once(uuid.uuid4()))
                assert Tokens(pool).get(USDC) == TOKEN
                written += 1
                if late:
                    served_after.append(threading.get_ident())
                    if len(set(served_after)) == CALLERS:
                        done.set()
            return written

        calls = [callers.submit(call, number) for number in range(CALLERS)]
        condition(lambda: execute(own_settings, "select n from counter")[0][0] > 100)
        restart(own_server)
        restarted.set()
        try:
            condition(lambda: done.is_set() or any(call.done() for call in calls))
        finally:
            done.set()
        written = sum(call.result() for call in calls)
    assert execute(own_settings, "select n, (select count(*) from marks) from counter") == [(written, written)]


async def test_a_restart_under_async_load_is_no_error(own_server: PostgresServer, own_settings: Settings) -> None:
    """The same for 50 asyncio tasks."""
    async with AsyncPool(own_settings) as pool:
        tokens = AsyncTokens(pool)
        await tokens.save(TOKEN)
        calls = 0
        restarted = asyncio.Event()
        started = asyncio.Event()

        async def call() -> int:
            nonlocal calls
            after = 0
            while after < 5:
                late = restarted.is_set()
                assert await tokens.get(USDC) == TOKEN
                calls += 1
                after += late
                if calls > 200:
                    started.set()
            return after

        tasks = [asyncio.create_task(call()) for _ in range(CALLERS)]
        await asyncio.wait_for(started.wait(), 60)
        await asyncio.to_thread(restart, own_server)
        restarted.set()
        assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == [5] * CALLERS


def test_a_server_that_hangs_is_given_up_in_time_and_used_again(
    own_server: PostgresServer, own_settings: Settings
) -> None:
    """SIGSTOP keeps sockets open and answers nothing: a call ends as ServerUnavailable, and works after SIGCONT."""
    settings = msgspec.structs.replace(own_settings, postgres_timeout_ms=200, postgres_retry_timeout_ms=0)
    with Pool(own_settings) as patient:
        Tokens(patient).save(TOKEN)
    with Pool(settings) as pool:
        condition(lambda: served(pool))
        own_server.stop_signal()
        try:
            with pytest.raises(ServerUnavailable):
                Tokens(pool).get(USDC)
        finally:
            own_server.continue_signal()

        def works() -> bool:
            try:
                return Tokens(pool).get(USDC) == TOKEN
            except ServerUnavailable:
                return False

        condition(works)


def test_opening_never_waits_for_a_server_that_is_down(own_server: PostgresServer, own_settings: Settings) -> None:
    """A pool opened while the server is down serves as soon as it is up, without being told."""
    own_server.kill()
    with Pool(own_settings) as pool, ThreadPoolExecutor(1) as caller:
        call = caller.submit(Tokens(pool).get, USDC)
        own_server.start()
        assert call.result(90) is None


def test_what_is_wrong_is_told_by_class_without_secrets(
    database: Settings, own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Down, refused, not migrated and not allowed are four different errors; no message or log holds the password."""
    caplog.set_level(logging.DEBUG)
    canary = Secret("canary-password")
    quick = msgspec.structs.replace(database, postgres_timeout_ms=300, postgres_retry_timeout_ms=0)
    errors = []
    with Pool(msgspec.structs.replace(quick, postgres_password=canary)) as pool:
        with pytest.raises(ServerRefused, match="password authentication failed") as caught:
            Tokens(pool).get(USDC)
        errors.append(caught)
    nowhere = Pool(msgspec.structs.replace(quick, postgres_database="nowhere"))
    with nowhere, pytest.raises(ServerRefused, match='database "nowhere" does not exist'):
        Tokens(nowhere).get(USDC)
    own_server.kill()
    down = Settings(**{**own_server.settings(), "postgres_password": canary, "postgres_timeout_ms": 300})
    with Pool(msgspec.structs.replace(down, postgres_retry_timeout_ms=0)) as pool:
        with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1") as caught:
            Tokens(pool).get(USDC)
        errors.append(caught)
    unhurried = msgspec.structs.replace(quick, postgres_timeout_ms=2_000)
    with Pool(unhurried) as pool:
        condition(lambda: served(pool))
        with pytest.raises(SchemaMismatch, match="ringlog migrate"):
            pool.run(query("select * from not_migrated"))
        with pytest.raises(ServerRefused, match="syntax error"):
            pool.run(query("selekt"))
        with pytest.raises(ServerUnavailable, match="statement timeout"):
            pool.run(query("select pg_sleep(10)"))
        with pytest.raises(PostgresValueError, match="duplicate key"):
            pool.run(query("insert into rpc_nodes select 'a', 'http://a', true, 1, 1, 1 from generate_series(1, 2)"))
        assert pool.run(query("select 1")) == [(1,)], "no failure leaves a connection behind that does not work"
    with pytest.raises(ServerRefused, match="inside `with`"):
        Tokens(pool).get(USDC)
    shown = "".join("".join(traceback.format_exception(caught.value)) for caught in errors)
    assert shown
    assert "canary" not in caplog.text + shown


def test_a_failed_operation_leaves_nothing_of_its_transaction(database: Settings) -> None:
    """What an operation raises between its statements rolls the first ones back."""

    def steps() -> Steps[None]:
        yield Statement("insert into rpc_nodes values ('a', 'http://a', true, 1, 1, 1)")
        raise PostgresValueError("changed its mind")

    with Pool(database) as pool:
        with pytest.raises(PostgresValueError, match="changed its mind"):
            pool.run(Operation(steps, transaction=True))
        assert pool.run(query("select count(*) from rpc_nodes")) == [(0,)]


def test_sync_and_async_classes_have_the_same_names_and_signatures() -> None:
    """Every public method of X exists on AsyncX with the same parameters, and the reverse."""
    names = [name for name in ringlog.postgres.__all__ if f"Async{name}" in ringlog.postgres.__all__]
    assert names == ["ConfigWatch", "Nodes", "Orders", "Pool", "Tokens", "TraderConfigs"]
    for name in names:
        sync, other = (public(getattr(ringlog.postgres, prefix + name)) for prefix in ("", "Async"))
        assert sync == other, name


def public(owner: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value).parameters) if callable(value) else []
        for name, value in vars(owner).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
