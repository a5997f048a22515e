"""Queries against a server that is down, hangs, restarts or refuses: a typed error or a right result, in time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from platform_rows import wait_until

from ringlog.errors import QueryTimeout, RinglogError, ServerRefused, ServerUnavailable
from ringlog.questdb import pools
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.queries import Queries
from ringlog.servers import QuestDBServer
from ringlog.servers.embedded import bound_socket
from ringlog.settings import Secret, Settings

# Until recovery; how long it really takes is measured by bench/query_pool.py.
RECOVERY_S = 30.0
# What a call has on a machine that is busy; where it must end sooner, that is told apart from this.
PATIENT_MS = 30_000


def test_server_down() -> None:
    """With no server at all, a call raises ServerUnavailable within its time and says where it tried."""
    with bound_socket(0) as held:  # bound, never listening: connections are refused
        port = held.getsockname()[1]
        with Queries(Settings(questdb_pg_port=port, query_timeout_ms=PATIENT_MS)) as queries:
            wait_until(lambda: queries._health.error, "the first attempt of the pool, which says why")
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{port}.*refused"):
                queries.get_trades(timeout_ms=500)
            assert time.monotonic() - began < 20  # of the 30 that a call has without `timeout_ms`
            with pytest.raises(ServerUnavailable):
                queries.execute_query("SELECT 1", timeout_ms=200)


def test_wrong_password(server: QuestDBServer) -> None:
    """A wrong password is ServerRefused, at once and without the password in the message."""
    settings = Settings(**{**server.settings(), "questdb_password": Secret("canary-hunter2")})
    with Queries(settings) as queries, pytest.raises(ServerRefused) as caught:
        queries.get_trades(timeout_ms=PATIENT_MS)
    assert "canary" not in str(caught.value)


async def test_hanging_server(own_server: QuestDBServer) -> None:
    """A stopped server (SIGSTOP) costs a call its time and no more, sync and async; the pools recover by themselves."""
    settings = Settings(**own_server.settings(), query_timeout_ms=PATIENT_MS)
    with Queries(settings) as queries:
        async with AsyncQueries(settings) as async_queries:
            queries.get_trades()
            await async_queries.get_trades()
            own_server.stop_signal()
            try:
                began = time.monotonic()
                with pytest.raises(RinglogError):
                    await asyncio.to_thread(queries.execute_query, "SELECT 1", timeout_ms=300)
                with pytest.raises(RinglogError):
                    await async_queries.execute_query("SELECT 1", timeout_ms=300)
                assert time.monotonic() - began < 20
            finally:
                own_server.continue_signal()
            assert queries.execute_query("SELECT 1 x", timeout_ms=RECOVERY_S * 1_000).rows()[0].x == 1
            assert (await async_queries.execute_query("SELECT 1 x", timeout_ms=RECOVERY_S * 1_000)).rows()[0].x == 1


async def test_hanging_server_and_idle_connection(own_server: QuestDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The health check of an idle connection ends with its caller's time, not with its own, and is not made again."""
    # Of its own it has so long that a call which waits for it is told apart from one that ends after 0.3 s.
    monkeypatch.setattr(pools, "CHECK_TIMEOUT_S", 30.0)
    one = {"query_pool_size_min": 1, "query_pool_size_max": 1}
    settings = Settings(**own_server.settings(), query_timeout_ms=PATIENT_MS, **one)

    async def ask(queries: Queries | AsyncQueries) -> None:
        if isinstance(queries, Queries):
            await asyncio.to_thread(queries.get_trades, timeout_ms=300)
        else:
            await queries.get_trades(timeout_ms=300)

    with Queries(settings) as queries:
        async with AsyncQueries(settings) as async_queries:
            queries.get_trades()
            await async_queries.get_trades()
            own_server.stop_signal()
            try:
                for each in (queries, async_queries):
                    each._health.failed_at = time.monotonic()  # as after a second of idling: it must be checked
                    requests = each.statistics()["requests_num"]
                    began = time.monotonic()
                    with pytest.raises(ServerUnavailable, match="no connection"):
                        await ask(each)
                    assert time.monotonic() - began < 20
                    assert each.statistics()["requests_num"] == requests + 1
            finally:
                own_server.continue_signal()
            assert len(queries.get_trades(timeout_ms=RECOVERY_S * 1_000)) == 0
            assert len(await async_queries.get_trades(timeout_ms=RECOVERY_S * 1_000)) == 0


def test_restart_under_load(own_server: QuestDBServer) -> None:
    """The server killed and started again under 20 threads: typed errors at worst, and all go on by themselves."""
    settings = Settings(**own_server.settings())
    stop = threading.Event()
    unexpected: list[BaseException] = []
    last_good = [0.0] * 20

    def ask(queries: Queries, number: int) -> None:
        while not stop.is_set():
            try:
                queries.get_trades(limit=10, timeout_ms=1_000)
                last_good[number] = time.monotonic()
            except (ServerUnavailable, QueryTimeout):
                pass
            except BaseException as error:  # noqa: BLE001 - the test's very question
                unexpected.append(error)

    with Queries(settings) as queries:
        threads = [threading.Thread(target=ask, args=(queries, number), daemon=True) for number in range(20)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: all(last_good), "every thread's first answer")
            own_server.kill()
            own_server.start()
            back = time.monotonic()
            wait_until(lambda: min(last_good) > back, "every thread's first answer after the restart", RECOVERY_S)
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
    assert not unexpected


def test_restart_between_calls(own_server: QuestDBServer) -> None:
    """A caller whose pooled connections all died notices nothing: the call is made again on a new one."""
    with Queries(Settings(**own_server.settings(), query_timeout_ms=PATIENT_MS)) as queries:
        for _ in range(3):
            queries.get_trades()
        own_server.kill()
        own_server.start()
        assert len(queries.get_trades()) == 0
        assert queries.execute_query("SELECT 1 x").rows()[0].x == 1
