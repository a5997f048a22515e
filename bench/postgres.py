"""PostgreSQL: 50 callers on 20 connections against bare psycopg, and a restart in the middle of load.

    python -m bench.postgres [--tiny] [--json]

Bare psycopg is a psycopg_pool of the same size that runs the same SQL and returns tuples; ringlog's side adds retries,
time limits and the typed result. Ratios are medians over rounds in which the contenders take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from bench.figures import Figure, Result, interleaved, main, median_ratio
from ringlog import libpq
from ringlog.errors import RinglogError
from ringlog.postgres import AsyncPool, AsyncTokens, Pool, Token, Tokens
from ringlog.postgres.migrations import migrate
from ringlog.postgres.pools import connection_options
from ringlog.servers import PostgresServer
from ringlog.settings import Settings

CALLERS = 50
CONNECTIONS = 20
OVERHEAD_RATIO_MAX = 1.15
SHARE_MIN = 0.5
RESTART_SECONDS_MAX = 5.0
ADDRESS = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
SQL = "select address, symbol, name, decimals, program, extensions from tokens where address = %s"


def run(tiny: bool) -> Result:
    rounds, repeats = (2, 5) if tiny else (20, 40)
    # A tiny run says nothing of times, and runs where a start of the server may take longer than calls are tried again.
    options = {"postgres_retry_timeout_ms": 60_000} if tiny else {}
    with PostgresServer() as server, tempfile.TemporaryDirectory() as runtime_dir:
        settings = Settings(runtime_dir=runtime_dir, postgres_pool_size_max=CONNECTIONS, **server.settings(), **options)
        migrate(settings)
        with Pool(settings) as pool:
            Tokens(pool).save(Token(address=ADDRESS, symbol="USDC", decimals=6))
        sync = threads(settings, rounds, repeats)
        tasks = asyncio.run(asyncio_tasks(settings, rounds, repeats))
        fair = fairness(settings, 0.3 if tiny else 3.0)
        back = restart(server, settings)
    figures = [
        Figure(
            name=f"{kind}: ringlog's time over bare psycopg's",
            value=median_ratio(values, "ringlog", "bare"),
            unit="x",
            at_most=OVERHEAD_RATIO_MAX,
        )
        for kind, values in (("threads", sync), ("asyncio", tasks))
    ]
    figures += [
        Figure(name=f"{kind}: {name}", value=CALLERS * repeats / statistics.median(values[name]), unit="queries/s")
        for kind, values in (("threads", sync), ("asyncio", tasks))
        for name in values
    ]
    figures += [
        Figure(name="calls of the slowest caller over the mean", value=fair["share"], unit="x", at_least=SHARE_MIN),
        Figure(name="slowest call", value=fair["slowest_ms"], unit="ms"),
        Figure(name="errors", value=fair["errors"] + back["errors"], at_most=0),
        Figure(name="server down", value=back["down_s"], unit="s"),
        Figure(name="full service after the kill", value=back["served_s"], unit="s", at_most=RESTART_SECONDS_MAX),
    ]
    return Result(
        benchmark="postgres",
        what=f"{CALLERS} callers on {CONNECTIONS} connections, one token by its address",
        figures=figures,
        details={"threads_seconds": sync, "asyncio_seconds": tasks, "restart": back},
    )


def threads(settings: Settings, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds in which 50 threads make `repeats` calls each, one value a round."""
    bare_pool = ConnectionPool(
        connection_class=libpq.Connection, kwargs=connection_options(settings),
        min_size=CONNECTIONS, max_size=CONNECTIONS, open=False,
    )  # fmt: skip
    with Pool(settings) as pool, bare_pool, ThreadPoolExecutor(CALLERS) as callers:
        tokens = Tokens(pool)

        def bare() -> Any:
            with bare_pool.connection() as connection:
                return connection.execute(SQL, (ADDRESS,)).fetchone()

        def timed(call: Callable[[], Any]) -> float:
            started = time.perf_counter()
            for done in [callers.submit(lambda: [call() for _ in range(repeats)]) for _ in range(CALLERS)]:
                assert None not in done.result()
            return time.perf_counter() - started

        contenders = {"bare": lambda: timed(bare), "ringlog": lambda: timed(lambda: tokens.get(ADDRESS))}
        interleaved(contenders, 2)  # connections, prepared statements
        return interleaved(contenders, rounds)


async def asyncio_tasks(settings: Settings, rounds: int, repeats: int) -> dict[str, list[float]]:
    """The same for 50 asyncio tasks."""
    bare_pool = AsyncConnectionPool(
        connection_class=libpq.AsyncConnection, kwargs=connection_options(settings),
        min_size=CONNECTIONS, max_size=CONNECTIONS, open=False,
    )  # fmt: skip
    values: dict[str, list[float]] = {"bare": [], "ringlog": []}
    async with AsyncPool(settings) as pool, bare_pool:
        tokens = AsyncTokens(pool)

        async def bare() -> Any:
            async with bare_pool.connection() as connection:
                return await (await connection.execute(SQL, (ADDRESS,))).fetchone()

        async def caller(call: Callable[[], Any]) -> None:
            for _ in range(repeats):
                assert await call() is not None

        contenders = {"bare": bare, "ringlog": lambda: tokens.get(ADDRESS)}
        for round_ in range(rounds + 2):
            for name, call in contenders.items():
                started = time.perf_counter()
                await asyncio.gather(*(caller(call) for _ in range(CALLERS)))
                if round_ >= 2:
                    values[name].append(time.perf_counter() - started)
    return values


def fairness(settings: Settings, seconds: float) -> dict[str, float]:
    """How the calls of `seconds` are shared among 50 threads, and how long the slowest call took."""
    with Pool(settings) as pool, ThreadPoolExecutor(CALLERS) as callers:
        tokens = Tokens(pool)
        tokens.get(ADDRESS)
        until_s = time.perf_counter() + seconds

        def caller(_: int) -> tuple[int, float, int]:
            calls, slowest_s, errors = 0, 0.0, 0
            while (started := time.perf_counter()) < until_s:
                try:
                    tokens.get(ADDRESS)
                    calls += 1
                except RinglogError:
                    errors += 1
                slowest_s = max(slowest_s, time.perf_counter() - started)
            return calls, slowest_s, errors

        counts, slowest, errors = zip(*callers.map(caller, range(CALLERS)), strict=True)
    return {"share": min(counts) / statistics.fmean(counts), "slowest_ms": max(slowest) * 1e3, "errors": sum(errors)}


def restart(server: PostgresServer, settings: Settings) -> dict[str, Any]:
    """50 callers at work while the server is killed and started again: until every one of them has been served."""
    stop, errors, served = threading.Event(), [], [0] * CALLERS
    with Pool(settings) as pool, ThreadPoolExecutor(CALLERS) as callers:
        tokens = Tokens(pool)

        def caller(index: int) -> None:
            while not stop.is_set():
                try:
                    tokens.get(ADDRESS)
                    served[index] += 1
                except RinglogError as error:
                    errors.append(f"{type(error).__name__}: {error}")

        calls = [callers.submit(caller, index) for index in range(CALLERS)]
        until(lambda: min(served) > 20)
        killed_s = time.monotonic()
        server.kill()
        server.start()
        up_s = time.monotonic()
        before = list(served)
        until(lambda: all(now > then for now, then in zip(served, before, strict=True)))
        back_s = time.monotonic()
        stop.set()
        for call in calls:
            call.result()
    return {
        "errors": len(errors),
        "first_errors": errors[:5],
        "down_s": up_s - killed_s,
        "served_s": back_s - killed_s,
        "served_after_up_s": back_s - up_s,
    }


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen within {timeout_s} s")
        time.sleep(0.001)


if __name__ == "__main__":
    main(run)
