"""A paper trade executor: one process that trades its share of the market and appends what it did."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ringlog.demo.appends import Durations, TimedAppends
from ringlog.demo.feed import BookTop, MarketTrade, random_walk, read_recording, split_symbol
from ringlog.demo.orphans import end_with_parent
from ringlog.demo.results import Result, counts_of, write
from ringlog.producer import Appender, Producer
from ringlog.records import LatencySample, Record, Trade
from ringlog.settings import Settings

RECORDS: tuple[type[Record], ...] = (Trade, LatencySample)
BASE_FEE_LAMPORTS = 5_000  # of one signature: solana.com/docs/core/fees


class Orders(msgspec.Struct):
    """What one executor is to do. `rate` is records/s of this executor, 0 for as fast as it can."""

    index: int
    executors: int
    runtime_dir: str  # all that an executor needs of the settings: it talks to no server and is given no password
    result_dir: str
    rate: float
    seconds: float
    seed: int
    recording: str = ""
    speed: float = 0.0  # of the recording; 0 for as fast as it can
    clock_offset_us: int = 0
    first_us: int = 0
    lane_bytes: int = 0  # of each lane; 0 for what a claim gives


def run(orders: Orders, is_started: Any, is_stopped: Any) -> None:
    """The process's main: waits for `is_started`, trades until done or `is_stopped`, writes its result to files."""
    end_with_parent()
    watch = TimedAppends(Durations(orders.result_dir, orders.index, create=True))
    lane_bytes = dict.fromkeys(RECORDS, orders.lane_bytes) if orders.lane_bytes else None
    producer = Producer(RECORDS, settings=Settings(runtime_dir=orders.runtime_dir), lane_bytes=lane_bytes).open()
    try:
        trades, latencies = producer.appender(Trade), producer.appender(LatencySample)
        is_started.wait()
        pace = paced(orders.rate, is_stopped)
        if orders.recording:
            _trade_recording(orders, watch, trades, latencies, pace, is_stopped)
        else:
            _trade_generated(orders, watch, trades, latencies, pace)
        result = Result(**counts_of(producer, RECORDS))
    finally:
        producer.close()
    (Path(orders.result_dir) / f"samples-{orders.index}.json").write_text(json.dumps(watch.samples))
    write(orders.result_dir, f"executor-{orders.index}", result)


def paced(rate: float, is_stopped: Any) -> Callable[[], bool]:
    """A function to call before each record: waits for its turn in bursts of at most 1 ms; False once stopped."""
    started = time.monotonic()
    count = itertools.count()

    def turn() -> bool:
        number = next(count)
        if number % 64 == 0 and is_stopped.is_set():
            return False
        if rate:
            ahead = started + number / rate - time.monotonic()
            if ahead > 0.001:
                time.sleep(ahead)
        return True

    return turn


def _bound(orders: Orders, trades: Appender[...], base: str, quote: str) -> Callable[..., bool]:
    """What stays the same for one executor and one market is preset once."""
    return trades.bind(
        trader_id=f"paper-{orders.index}",
        mode="paper",
        base_token=base,
        quote_token=quote,
        transaction_fee=BASE_FEE_LAMPORTS,
        priority_fee=None,
        mev_status="protected",
        mev_protected=True,
        transfer_fees=None,
        tx_signature=None,
    )


def _values(trade: MarketTrade, book: BookTop | None) -> tuple[Any, ...]:
    """The fields that vary, in the record type's order: action, amounts, price, slippages, metadata."""
    middle = book.middle if book else trade.price
    half_spread = (book.ask - book.bid) / 2 / middle if book else 0.0
    slippage = abs(trade.price - middle) / middle
    return (
        "sell" if trade.is_buyer_maker else "buy",
        trade.quantity,
        trade.price * trade.quantity,
        trade.price,
        half_spread,
        slippage,
        f'{{"trade_id":{trade.trade_id}}}',
    )


def _trade_recording(
    orders: Orders,
    watch: TimedAppends,
    trades: Appender[...],
    latencies: Appender[...],
    pace: Callable[[], bool],
    is_stopped: Any,
) -> None:
    """Every executor reads the whole feed and acts on its share of the lines: each line belongs to exactly one."""
    appends: dict[str, Callable[..., bool]] = {}
    sample = latencies.bind(service="exchange-feed")
    book: BookTop | None = None
    started = time.monotonic()
    for message in read_recording(Path(orders.recording), lambda _line, _reason: None):
        if message.book is not None:
            book = message.book
        if message.line % orders.executors != orders.index:
            continue
        if orders.speed:
            ahead = started + (message.receive_us - orders.first_us) / 1e6 / orders.speed - time.monotonic()
            if ahead > 0.001:
                time.sleep(ahead)
        if message.trade is not None:
            append = appends.get(message.trade.symbol)
            if append is None:
                append = appends[message.trade.symbol] = _bound(orders, trades, *split_symbol(message.trade.symbol))
            values = _values(message.trade, book)
            if not watch.insist(trades, append, values, pace, is_stopped, message.receive_us):
                return
        if message.event_us is not None:
            jitter_us = float(message.receive_us - message.event_us - orders.clock_offset_us)
            values = (message.stream, jitter_us)
            if not watch.insist(latencies, sample, values, pace, is_stopped, message.receive_us):
                return


def _trade_generated(
    orders: Orders, watch: TimedAppends, trades: Appender[...], latencies: Appender[...], pace: Callable[[], bool]
) -> None:
    """A live executor: a record that is refused is gone, and counted."""
    market: Iterator[tuple[MarketTrade, BookTop]] = random_walk(orders.seed + orders.index)
    append = _bound(orders, trades, "SOL", "USDC")
    sample = latencies.bind(service="paper-executor", operation="decide")
    deadline = time.monotonic() + orders.seconds
    while time.monotonic() < deadline and pace():
        began = time.perf_counter_ns()
        trade, book = next(market)
        values = _values(trade, book)
        decided_us = (time.perf_counter_ns() - began) / 1e3
        watch.append(trades, append, *values)
        if not pace():
            return
        watch.append(latencies, sample, decided_us)
