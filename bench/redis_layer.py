"""Redis: the price cache, streams, the 10 Hz publisher and the writer's sink, on a real server.

    python -m bench.redis_layer [--tiny] [--json]

Every bar is a ratio or a figure of the same run; ratios are of medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
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

from ringlog.arrays import rows_of
from ringlog.cli import keep_logs_off_stdout
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


def reads(server: ValkeyServer, rounds: int, repeats: int) -> dict[str, Any]:
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
    mean_ms = statistics.fmean(figures["cache_price"]) / 1e3
    ratio = medians["cache_price"] / medians["bare_get"]
    return {
        "median_us": medians,
        "mean_ms": mean_ms,
        "ratio": ratio,
        "commands_for_100_prices": sum(sent.values()),
        "bars": {
            f"mean below {READ_MEAN_MS_MAX} ms": mean_ms < READ_MEAN_MS_MAX,
            f"at most {READ_RATIO_MAX} x a bare GET": ratio <= READ_RATIO_MAX,
            "100 prices in one round trip": sum(sent.values()) == 1,
        },
    }


def _calls(info: Any, name: str) -> int:
    return int(info.get(name, {"calls": 0})["calls"])


async def async_reads(server: ValkeyServer, rounds: int, repeats: int) -> dict[str, Any]:
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
    return {
        "median_us": medians,
        "ratio": ratio,
        "bars": {f"at most {READ_RATIO_MAX} x a bare GET": ratio <= READ_RATIO_MAX},
    }


def burst(server: ValkeyServer, events: int) -> dict[str, Any]:
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
    return {
        "events": events,
        "events_per_second": events / seconds,
        "length_samples": len(lengths),
        "length_max": max(lengths),
        "bars": {f"never above {STREAM_ENTRIES_MAX}": 0 < max(lengths) <= STREAM_ENTRIES_MAX},
    }


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


def ticks(server: ValkeyServer, seconds: float, spinning: int) -> dict[str, Any]:
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
    arrival = sorted(abs(interval - 100) for interval in intervals)
    deviation = stats.deviation_p99_ms or float("inf")
    return {
        "processes_spinning": spinning,
        "realtime": stats.realtime,
        "ticks": stats.ticks,
        "ticks_missed": stats.ticks_missed,
        "interval_p50_ms": stats.interval_p50_ms,
        "interval_p99_ms": stats.interval_p99_ms,
        "deviation_p99_ms": stats.deviation_p99_ms,
        "deviation_max_ms": stats.deviation_max_ms,
        "frames_missed": missed,
        "arrival_deviation_p99_ms": arrival[int(0.99 * (len(arrival) - 1))] if arrival else None,
        "bars": {f"tick p99 within {TICK_DEVIATION_P99_MS_MAX} ms of 100 ms": deviation <= TICK_DEVIATION_P99_MS_MAX},
    }


def restart(server: ValkeyServer, threads: int, **changes: Any) -> dict[str, Any]:
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
    return {
        "threads": threads,
        "errors": errors[:5],
        "server_down_seconds": up_s - killed_s,
        "full_service_after_server_up_seconds": back_s - up_s,
        "full_service_after_kill_seconds": back_s - killed_s,
        "bars": {
            "no error": not errors,
            f"full service within {RESTART_SECONDS_MAX:.0f} s": back_s - killed_s <= RESTART_SECONDS_MAX,
        },
    }


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


def drains(server: ValkeyServer, batches: int, rows: int) -> dict[str, Any]:
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
    offers = max(figures[case]["offer_p90_us"] for case in ("with_sink", "redis_stopped"))
    return {
        "rows_a_batch": rows,
        **figures,
        "bars": {"9 of 10 offers take below 1 % of a drain interval, Redis stopped or not": offers < 1_000},
    }


def publish_rate(server: ValkeyServer, batches: int, rows: int) -> dict[str, Any]:
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
    return {"rows_per_second": batches * rows / seconds, "bars": {}}


def run(tiny: bool) -> dict[str, Any]:
    # A tiny run says nothing of times, and runs where a start of the server may take longer than calls are tried again.
    patience = {"redis_timeout_ms": 10_000, "redis_retry_timeout_ms": 30_000} if tiny else {}
    with ValkeyServer() as server:
        cases = {
            "reads": lambda: reads(server, 2 if tiny else 30, 20 if tiny else 500),
            "async_reads": lambda: asyncio.run(async_reads(server, 2 if tiny else 20, 20 if tiny else 500)),
            "burst": lambda: burst(server, 12_000 if tiny else 100_000),
            "ticks": lambda: ticks(server, 1.0 if tiny else 20.0, 1 if tiny else 4),
            "restart": lambda: restart(server, 2 if tiny else 8, **patience),
            "drains": lambda: drains(server, 3 if tiny else 50, 100 if tiny else 1_000),
            "publish_rate": lambda: publish_rate(server, 2 if tiny else 20, 500),
        }
        return {name: case() for name, case in cases.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few rounds, to see that it runs: no figure means much")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_logs_off_stdout()
    results = run(options.tiny)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, result in results.items():
        for bar, met in result.pop("bars").items():
            print(f"{'met ' if met else 'MISS'} {name}: {bar}")
        print(f"     {json.dumps(result)}")


if __name__ == "__main__":
    main()
