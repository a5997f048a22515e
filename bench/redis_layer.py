"""Redis: the price cache, streams, the 10 Hz publisher and the writer's sink, on a real server.

    python -m bench.redis_layer [--tiny] [--json]

Ratios are of medians over interleaved rounds.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import redis
import redis.asyncio

from bench.figures import Figure, Result, main, percentiles
from ringlog.arrays import rows_of
from ringlog.decode import Decoder, Slots
from ringlog.errors import RinglogError
from ringlog.records import Trade, layout_of
from ringlog.redis import (
    AsyncCache,
    AsyncConnection,
    Cache,
    Connection,
    PriceUpdate,
    Publisher,
    RedisSink,
    StreamProducer,
    Subscriber,
    Topic,
    UiEvent,
)
from ringlog.servers import ValkeyServer
from ringlog.settings import Secret, Settings
from ringlog.sinks import Batch, Span

READ_MEAN_MS_MAX = 1.0
READ_RATIO_MAX = 1.3
STREAM_ENTRIES_MAX = 10_000
TICK_DEVIATION_P99_MS_MAX = 10.0
RESTART_SECONDS_MAX = 5.0
OFFER_P90_US_MAX = 1_000  # a hundredth of a drain interval


def settings_of(server: ValkeyServer, **changes: Any) -> Settings:
    return Settings(**{**server.settings(), **changes})


def bare(server: ValkeyServer) -> redis.Redis:
    return redis.Redis(port=server.ports["redis"], password=server.password)


def rounds_us(calls: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds per call for each of `calls`, one figure a round, the calls taking turns."""
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(repeats // 4 + 1):
            call()
        figures[name].clear()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            figures[name].append((time.perf_counter() - started) / repeats * 1e6)
    return figures


Found = tuple[list[Figure], dict[str, Any]]  # figures, and the values behind them


def reads(server: ValkeyServer, rounds: int, repeats: int) -> Found:
    """A price read (fresh, with its age) against a bare redis-py GET; 100 prices against 100 GETs."""
    symbols = [f"T{number}" for number in range(100)]
    with Connection(settings_of(server)) as connection, bare(server) as client:
        cache = Cache(connection)
        for symbol in ["SOL", *symbols]:  # kept fresh for the whole run: what is measured is reading
            client.set(f"price:{symbol}", "152.310000001")
            client.set(f"last:price:{symbol}", f"{time.time_ns() // 1_000} 152.310000001")
        calls: dict[str, Callable[[], Any]] = {
            "bare_get": lambda: client.get("price:SOL"),
            "cache_price": lambda: cache.price("SOL"),
        }
        figures = rounds_us(calls, rounds, repeats)
        before = client.info("commandstats")
        found = cache.prices(symbols)
        after = client.info("commandstats")
        many = rounds_us(
            {
                "bare_100_gets": lambda: [client.get(f"price:{symbol}") for symbol in symbols],
                "cache_100_prices": lambda: cache.prices(symbols),
            },
            max(1, rounds // 4),
            max(1, repeats // 50),
        )
    assert all(cached.is_fresh and cached.value == Decimal("152.310000001") for cached in found.values())
    medians = {name: statistics.median(values) for name, values in (figures | many).items()}
    sent = {name: _calls(after, name) - _calls(before, name) for name in ("cmdstat_get", "cmdstat_mget")}
    found_figures = [
        Figure(
            name="a price read, mean",
            value=statistics.fmean(figures["cache_price"]) / 1e3,
            unit="ms",
            at_most=READ_MEAN_MS_MAX,
        ),
        Figure(
            name="a price read, threads",
            value=medians["cache_price"] / medians["bare_get"],
            unit="x a bare GET",
            at_most=READ_RATIO_MAX,
        ),
        Figure(name="round trips for 100 prices", value=sum(sent.values()), at_least=1, at_most=1),
    ]
    return found_figures, {"median_us": medians}


def _calls(info: Any, name: str) -> int:
    return int(info.get(name, {"calls": 0})["calls"])


async def async_reads(server: ValkeyServer, rounds: int, repeats: int) -> Found:
    """The same with asyncio, against redis.asyncio."""
    client = redis.asyncio.Redis(port=server.ports["redis"], password=server.password)
    async with AsyncConnection(settings_of(server)) as connection, client:
        cache = AsyncCache(connection)
        await client.set("price:SOL", "152.310000001")
        figures: dict[str, list[float]] = {"bare_get": [], "cache_price": []}
        calls = {"bare_get": lambda: client.get("price:SOL"), "cache_price": lambda: cache.price("SOL")}
        for round_ in range(rounds + 1):
            for name, call in calls.items():
                started = time.perf_counter()
                for _ in range(repeats):
                    await call()
                if round_:
                    figures[name].append((time.perf_counter() - started) / repeats * 1e6)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratio = medians["cache_price"] / medians["bare_get"]
    figure = Figure(name="a price read, asyncio", value=ratio, unit="x a bare GET", at_most=READ_RATIO_MAX)
    return [figure], {"median_us": medians}


def burst(server: ValkeyServer, events: int) -> Found:
    """`events` into one stream as fast as one producer can, its length watched all the while."""
    lengths: list[int] = []
    done = threading.Event()

    def watch() -> None:
        with bare(server) as client:
            while not done.is_set():
                lengths.append(client.xlen("stream:ui-events"))

    watcher = threading.Thread(target=watch)
    with Connection(settings_of(server)) as connection:
        producer = StreamProducer(connection)
        payloads = [UiEvent("tick", number) for number in range(events)]
        watcher.start()
        _until(lambda: lengths)
        started = time.perf_counter()
        producer.publish(Topic.UI_EVENTS, payloads)
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    figures = [
        Figure(name="burst published", value=events / seconds, unit="events/s"),
        Figure(name="longest stream meanwhile", value=max(lengths), unit="entries", at_most=STREAM_ENTRIES_MAX),
    ]
    return figures, {"events": events, "length_samples": len(lengths)}


def _spin(until_s: float) -> None:
    while time.monotonic() < until_s:
        sum(range(1_000))


def _subscribe(port: int, password: str, until_s: float, arrivals: Any) -> None:
    """A subscriber in a process of its own: sends the times between frames, in ms, and how many it missed."""
    times: list[float] = []
    with Connection(Settings(redis_port=port, redis_password=Secret(password), redis_timeout_ms=10_000)) as connection:
        subscriber = Subscriber(connection, Topic.PRICE_UPDATES)
        while time.monotonic() < until_s:
            if subscriber.read(wait_ms=200) is not None:
                times.append(time.monotonic())
        subscriber.close()
    arrivals.send(([(after - before) * 1e3 for before, after in itertools.pairwise(times)], subscriber.missed))


def ticks(server: ValkeyServer, seconds: float, spinning: int) -> Found:
    """The publisher's beat with 100 keys changing 2,000 times a second, and `spinning` processes using up the CPUs."""
    context = multiprocessing.get_context("spawn")
    until_s = time.monotonic() + seconds + 2.0
    load = [context.Process(target=_spin, args=(until_s,)) for _ in range(spinning)]
    receive, send = context.Pipe(duplex=False)
    subscriber = (server.ports["redis"], server.password, until_s, send)
    load.append(context.Process(target=_subscribe, args=subscriber))
    for process in load:
        process.start()
    with Connection(settings_of(server, redis_retry_timeout_ms=0)) as connection, Publisher(connection) as publisher:
        number = 0
        end_s = until_s - 0.5
        while time.monotonic() < end_s:
            for _ in range(20):
                number += 1
                symbol = f"T{number % 100}"
                publisher.offer(Topic.PRICE_UPDATES, symbol, PriceUpdate(symbol, Decimal(number), number))
            time.sleep(0.01)
        stats = publisher.stats()
    intervals, missed = receive.recv()
    for process in load:
        process.join()
    arrival = [abs(interval - 100) for interval in intervals]
    if stats.deviation_p99_ms is None:
        raise RuntimeError(f"got {stats.ticks} ticks, wanted two or more")
    name = f"tick, {spinning} processes using up the CPUs, p99 of the distance from 100 ms"
    figures = [
        Figure(name=name, value=stats.deviation_p99_ms, unit="ms", at_most=TICK_DEVIATION_P99_MS_MAX),
        Figure(name="ticks missed", value=stats.ticks_missed),
    ]
    if arrival:
        p99 = percentiles(arrival)["p99"]
        figures.append(Figure(name="the same of arrivals at a subscriber, p99", value=p99, unit="ms"))
    return figures, {"realtime": stats.realtime, "ticks": stats.ticks, "frames_missed": missed}


def restart(server: ValkeyServer, threads: int, **changes: Any) -> Found:
    """Readers and writers at work while the server is killed and started again."""
    stop, errors, served = threading.Event(), [], [0] * threads
    with Connection(settings_of(server, **changes)) as connection:
        cache, producer = Cache(connection), StreamProducer(connection)

        def work(index: int) -> None:
            while not stop.is_set():
                try:
                    cache.set_price("SOL", Decimal(index))
                    cache.price("SOL")
                    producer.publish(Topic.UI_EVENTS, [UiEvent("x")])
                    served[index] += 1
                except RinglogError as error:
                    errors.append(f"{type(error).__name__}: {error}")

        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        _until(lambda: min(served) > 20)
        killed_s = time.monotonic()
        server.kill()
        server.start()
        up_s = time.monotonic()
        before = list(served)
        _until(lambda: all(now > then for now, then in zip(served, before, strict=True)))
        back_s = time.monotonic()
        stop.set()
        for worker in workers:
            worker.join()
    figures = [
        Figure(name="errors while the server was killed and started", value=len(errors), at_most=0),
        Figure(name="full service after the kill", value=back_s - killed_s, unit="s", at_most=RESTART_SECONDS_MAX),
    ]
    return figures, {"threads": threads, "errors": errors[:5], "server_down_seconds": up_s - killed_s}


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen within {seconds} s")
        time.sleep(0.001)


def trade_slots(rows: int) -> Slots:
    now_us = time.time_ns() // 1_000
    one = {
        "trader_id": "t1", "mode": "paper", "action": "buy", "base_token": "SOL", "quote_token": "USDC",
        "base_amount": 1.0, "quote_amount": 152.3, "executed_price": 152.3, "transaction_fee": 5_000,
        "priority_fee": None, "expected_slippage": 0.1, "actual_slippage": 0.2, "mev_status": "protected",
        "mev_protected": True, "transfer_fees": None, "tx_signature": "5" * 88, "metadata": None,
        "timestamp": now_us,
    }  # fmt: skip
    array = rows_of(Trade, {name: [value] * rows for name, value in one.items()})
    array["seq"] = np.arange(rows)
    return Slots(7, 0, rows, array.view(np.uint8))


def drains(server: ValkeyServer, batches: int, rows: int) -> Found:
    """Decoding `rows` trades every 100 ms, as the writer does, without a sink, with one, and with Redis stopped."""
    layout, decoder, slots = layout_of(Trade), Decoder(layout_of(Trade)), trade_slots(rows)
    figures: dict[str, Any] = {}
    settings = settings_of(server, redis_retry_timeout_ms=0, redis_timeout_ms=200)
    for case in ("without_sink", "with_sink", "redis_stopped"):
        with Connection(settings) as connection:
            sink = RedisSink(connection)
            sink.start()
            if case == "redis_stopped":
                server.stop_signal()
            drain_ms, offer_us = [], []
            next_s = time.monotonic()
            for number in range(batches):
                next_s += 0.1
                time.sleep(max(0.0, next_s - time.monotonic()))
                started = time.perf_counter()
                columns, _, _ = decoder.decode([slots])
                drain_ms.append((time.perf_counter() - started) * 1e3)
                columns["seq"] = columns["seq"] + number * rows
                batch = Batch(layout, (Span(7, number * rows, rows),), rows, columns)
                started = time.perf_counter()
                if case != "without_sink":
                    sink.offer(batch)
                offer_us.append((time.perf_counter() - started) * 1e6)
            server.continue_signal()
            sink.close(timeout_s=10.0)
            stats = sink.stats()
        figures[case] = {
            "drain_p50_ms": statistics.median(drain_ms),
            "drain_max_ms": max(drain_ms),
            "offer_p50_us": statistics.median(offer_us),
            "offer_p90_us": sorted(offer_us)[int(0.9 * len(offer_us))],
            "offer_max_us": max(offer_us),
            "published": stats.published,
            "dropped": stats.dropped,
        }
    offers = [
        Figure(
            name=f"offer of {rows:,} trades to the sink, {case.replace('_', ' ')}, p90",
            value=figures[case]["offer_p90_us"],
            unit="us",
            at_most=OFFER_P90_US_MAX,
        )
        for case in ("with_sink", "redis_stopped")
    ]
    return offers, figures


def publish_rate(server: ValkeyServer, batches: int, rows: int) -> Found:
    """Rows a second the sink publishes when it is offered as much as it can take."""
    layout, decoder, slots = layout_of(Trade), Decoder(layout_of(Trade)), trade_slots(rows)
    with Connection(settings_of(server, redis_retry_timeout_ms=0)) as connection:
        sink = RedisSink(connection)
        sink.start()
        started = time.perf_counter()
        for number in range(batches):
            columns, _, _ = decoder.decode([slots])
            _until(lambda: sink.stats().pending == 0)
            sink.offer(Batch(layout, (Span(7, number * rows, rows),), rows, columns))
        _until(lambda: sink.stats().pending == 0)
        seconds = time.perf_counter() - started
        sink.close()
    assert sink.stats().published == batches * rows
    return [Figure(name="trades published by the sink", value=batches * rows / seconds, unit="trades/s")], {}


def run(tiny: bool = False) -> Result:
    # A tiny run says nothing of times, and runs where a start of the server may take longer than calls are tried again.
    patience = {"redis_timeout_ms": 10_000, "redis_retry_timeout_ms": 30_000} if tiny else {}
    with ValkeyServer() as server:
        found = {
            "reads": reads(server, 2 if tiny else 30, 20 if tiny else 500),
            "async_reads": asyncio.run(async_reads(server, 2 if tiny else 20, 20 if tiny else 500)),
            "burst": burst(server, 12_000 if tiny else 100_000),
            "ticks": ticks(server, 1.0 if tiny else 20.0, 1 if tiny else 4),
            "restart": restart(server, 2 if tiny else 8, **patience),
            "drains": drains(server, 3 if tiny else 50, 100 if tiny else 1_000),
            "publish_rate": publish_rate(server, 2 if tiny else 20, 500),
        }
    return Result(
        benchmark="redis_layer",
        what="Redis: prices, streams, the 10 Hz beat and the writer's sink",
        figures=[figure for figures, _ in found.values() for figure in figures],
        details={case: details for case, (_, details) in found.items()},
    )


if __name__ == "__main__":
    main(run)
