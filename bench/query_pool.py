"""The pool: its throughput, its fairness, what a typed query costs over bare psycopg, and recovery after a restart."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psycopg
import psycopg.rows

from bench.figures import Figure, Result, interleaved, main, median_ratio
from bench.query_data import fill
from bench.stack import connect, connection_options, server
from ringlog.errors import QueryTimeout, ServerUnavailable
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.connection import Connection
from ringlog.questdb.pools import PREPARE_THRESHOLD
from ringlog.questdb.queries import Queries
from ringlog.questdb.results import struct_columns
from ringlog.questdb.rows import TradeRow
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

CONNECTIONS, CALLERS = 10, 50
AFTERWARDS = f"typed query over bare psycopg, once {CALLERS} callers have run in its process"
Parameters = tuple[str, int]
COLUMNS = ", ".join(name for name, _ in struct_columns(TradeRow))
LAST_TRADES = f"SELECT {COLUMNS} FROM trades WHERE trader_id = %s ORDER BY timestamp DESC LIMIT %s"
# The query of the bar on last trades, and a small one for comparison: there the hand-over between threads counts.
LARGE, SMALL = ("trader-7", 1_000), ("trader-7", 100)


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    with server(running) as questdb:
        sizes = {"query_pool_size_min": CONNECTIONS, "query_pool_size_max": CONNECTIONS}
        settings = Settings(**questdb.settings(), **sizes, query_timeout_ms=30_000)
        connection = Connection.from_settings(Settings(**questdb.settings(), request_timeout_ms=60_000))
        fill(connection.execute, "trades", 20_000 if tiny else 1_000_000, time.time_ns() // 1_000)
        connection.close()
        seconds, rounds = (0.3, 1) if tiny else (1.5, 15)
        typed_rounds = 5 if tiny else 60
        typed = overhead(settings, typed_rounds)  # first: what many threads leave makes it differ from run to run
        with Queries(settings) as queries:
            found = throughput(settings, queries, seconds, rounds)
            found.append(throughput_async(settings, seconds, rounds))
            found += typed
            found.append(Figure(name=AFTERWARDS, value=overhead(settings, typed_rounds)[0].value, unit="%"))
            found.append(recovery(questdb, queries))
            statistics_ = queries.statistics()
    return Result(
        benchmark="query_pool",
        what=f"{CONNECTIONS} pooled connections under {CALLERS} callers, against as many bare psycopg connections",
        figures=found,
        details={"pool": statistics_},
    )


def throughput(settings: Settings, queries: Queries, seconds: float, rounds: int) -> list[Figure]:
    waits: list[float] = []
    bare = [connect(settings, prepare_threshold=PREPARE_THRESHOLD) for _ in range(CONNECTIONS)]

    def dedicated(parameters: Parameters, asked: Callable[..., Any] = ask) -> float:
        return looped([lambda c=c: asked(c, parameters) for c in bare], seconds, [])

    def pooled(parameters: Parameters, waits: list[float], callers: int = CALLERS) -> float:
        return looped([lambda: queries.execute_query(LAST_TRADES, parameters)] * callers, seconds, waits)

    def pooled_rows() -> float:
        return looped([lambda: queries.execute_query(LAST_TRADES, LARGE).rows()] * CALLERS, seconds, [])

    contenders = {
        "dedicated": lambda: dedicated(LARGE),
        "dedicated rows": lambda: dedicated(LARGE, ask_rows),
        "pooled": lambda: pooled(LARGE, waits),
        "pooled rows": pooled_rows,
        "pooled few": lambda: pooled(LARGE, [], CONNECTIONS),
        "dedicated small": lambda: dedicated(SMALL),
        "pooled small": lambda: pooled(SMALL, []),
    }
    for contender in contenders.values():
        contender()
    waits.clear()
    values = interleaved(contenders, rounds)
    for connection in bare:
        connection.close()
    return [
        Figure(
            name="throughput of dedicated bare connections",
            value=median_ratio(values, "pooled", "dedicated") * 100,
            unit="%",
            at_least=90,
        ),
        Figure(
            name="the same, both with named rows made of them, the pool's with times in UTC",
            value=median_ratio(values, "pooled rows", "dedicated rows") * 100,
            unit="%",
        ),
        Figure(
            name=f"the same, by {CONNECTIONS} callers, so that none waits for a connection",
            value=median_ratio(values, "pooled few", "dedicated") * 100,
            unit="%",
        ),
        Figure(
            name="longest wait of a caller, in medians",
            value=max(waits) / statistics.median(waits),
            unit="x",
            at_most=5,
        ),
        Figure(
            name="the same, queries of 100 rows",
            value=median_ratio(values, "pooled small", "dedicated small") * 100,
            unit="%",
        ),
        Figure(name="pooled", value=statistics.median(values["pooled"]), unit="queries/s"),
        Figure(name="dedicated", value=statistics.median(values["dedicated"]), unit="queries/s"),
    ]


def looped(calls: list[Callable[[], Any]], seconds: float, waits: list[float]) -> float:
    """Calls/s of all together, each looping for `seconds` on a thread of its own; each call's time goes to `waits`.

    What still runs at the end is waited for and counted with its time: the more callers, the more calls that is.
    """
    counts = [0] * len(calls)
    first = time.perf_counter()
    deadline = first + seconds

    def loop(index: int) -> None:
        own = []
        began = time.perf_counter()
        while began < deadline:
            calls[index]()
            ended = time.perf_counter()
            own.append(ended - began)
            began = ended
            counts[index] += 1
        waits.extend(own)

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - first)


def throughput_async(settings: Settings, seconds: float, rounds: int) -> Figure:
    """The same queries by tasks of one event loop, against a task for each of as many bare asyncio connections."""
    options = {**connection_options(settings), "prepare_threshold": PREPARE_THRESHOLD}
    with asyncio.Runner() as runner:
        bare = [runner.run(psycopg.AsyncConnection.connect(**options)) for _ in range(CONNECTIONS)]
        queries = runner.run(AsyncQueries(settings).open())

        def dedicated() -> float:
            return runner.run(looped_async([lambda c=c: ask_async(c, LARGE) for c in bare], seconds))

        def pooled() -> float:
            return runner.run(looped_async([lambda: queries.execute_query(LAST_TRADES, LARGE)] * CALLERS, seconds))

        contenders = {"dedicated": dedicated, "pooled": pooled}
        interleaved(contenders, 1)
        values = interleaved(contenders, rounds)
        runner.run(queries.close())
        for connection in bare:
            runner.run(connection.close())
    return Figure(
        name=f"AsyncQueries under {CALLERS} tasks, against dedicated bare asyncio connections",
        value=median_ratio(values, "pooled", "dedicated") * 100,
        unit="%",
    )


async def looped_async(calls: list[Callable[[], Awaitable[Any]]], seconds: float) -> float:
    """Calls/s of all together, as `looped` counts them."""
    first = time.perf_counter()

    async def loop(call: Callable[[], Awaitable[Any]]) -> int:
        count = 0
        while time.perf_counter() < first + seconds:
            await call()
            count += 1
        return count

    counts = await asyncio.gather(*map(loop, calls))
    return sum(counts) / (time.perf_counter() - first)


def overhead(settings: Settings, rounds: int) -> list[Figure]:
    """A typed query of 1,000 rows, its rows made, against a bare cursor that fetches the same rows as tuples.

    Each on one connection, so that nothing but the typed query's own work is between them.
    """
    connection = connect(settings, prepare_threshold=PREPARE_THRESHOLD)
    queries = Queries(msgspec.structs.replace(settings, query_pool_size_min=1, query_pool_size_max=1)).open()

    def once(call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        assert len(call()) > 0
        return time.perf_counter() - began

    contenders = {
        "bare": lambda: once(lambda: ask(connection, LARGE)),
        "typed": lambda: once(lambda: queries.get_trades(trader_id="trader-7", limit=LARGE[1]).rows()),
    }
    interleaved(contenders, 5)
    values = interleaved(contenders, rounds)
    connection.close()
    queries.close()
    return [
        Figure(
            name="typed query over bare psycopg",
            value=(median_ratio(values, "typed", "bare") - 1) * 100,
            unit="%",
            at_most=15,
        ),
        Figure(name="typed", value=statistics.median(values["typed"]) * 1e3, unit="ms"),
        Figure(name="bare", value=statistics.median(values["bare"]) * 1e3, unit="ms"),
    ]


def recovery(questdb: QuestDBServer, queries: Queries) -> Figure:
    """Seconds from the server being ready again until each of 20 threads, asking all the time, had an answer."""
    stop = threading.Event()
    answered = [0.0] * 20
    unexpected: list[BaseException] = []

    def loop(index: int) -> None:
        while not stop.is_set():
            try:
                queries.get_trades(limit=10, timeout_ms=1_000)
                answered[index] = time.perf_counter()
            except (ServerUnavailable, QueryTimeout):
                pass
            except BaseException as error:  # noqa: BLE001 - counted: there must be none
                unexpected.append(error)

    threads = [threading.Thread(target=loop, args=(index,), daemon=True) for index in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(answered))
        questdb.kill()
        questdb.start()
        back = time.perf_counter()
        until(lambda: min(answered) > back)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not unexpected, unexpected[0]
    return Figure(name="recovery after the server's restart", value=max(answered) - back, unit="s", at_most=5)


def until(condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def ask(connection: psycopg.Connection[Any], parameters: tuple[Any, ...]) -> list[Any]:
    cursor = connection.cursor(binary=True)
    cursor.execute(LAST_TRADES, parameters)
    return cursor.fetchall()


def ask_rows(connection: psycopg.Connection[Any], parameters: tuple[Any, ...]) -> list[Any]:
    cursor = connection.cursor(binary=True, row_factory=psycopg.rows.namedtuple_row)
    cursor.execute(LAST_TRADES, parameters)
    return cursor.fetchall()


async def ask_async(connection: psycopg.AsyncConnection[Any], parameters: tuple[Any, ...]) -> list[Any]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(LAST_TRADES, parameters)
    return await cursor.fetchall()


if __name__ == "__main__":
    main(run)
