"""A paper trade executor: one process that trades its share of the market and appends what it did."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.demo.feed import BookTop, MarketTrade, random_walk, read_recording, split_symbol
from ringlog.producer import Appender, Producer
from ringlog.records import LatencySample, Trade
from ringlog.settings import Settings

SAMPLES_MAX = 1_000_000
FRESHNESS_INTERVAL_NS = 5_000_000  # how often an append's time is kept, to see later when the row could be queried
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


class Result(msgspec.Struct):
    """What one executor did: accepted records by table and lane, refused ones by reason."""

    accepted: dict[str, dict[str, int]]
    refused: dict[str, int]


class Durations:
    """Append times (ns) of one executor in a mapped file, which the session reads while they are written.

    Word 0 counts the samples; the latest SAMPLES_MAX of them follow, the oldest overwritten first.
    """

    def __init__(self, directory: str, index: int, *, create: bool) -> None:
        path = Path(directory) / f"append-{index}.npy"
        mode: Any = "w+" if create else "r"
        shape = (SAMPLES_MAX + 1,) if create else None
        self.words: NDArray[np.int64] = np.lib.format.open_memmap(path, mode, np.int64, shape)
        if create:
            self.words[:] = 0  # faulted in now, not in the middle of an append

    def latest(self, samples_max: int = SAMPLES_MAX) -> NDArray[np.int64]:
        """The latest samples, at most `samples_max`, in no particular order: int64 (samples,)."""
        count = int(self.words[0])
        if count <= SAMPLES_MAX:
            return self.words[1 + max(0, count - samples_max) : 1 + count]
        at = count % SAMPLES_MAX
        return self.words[1 + max(0, at - samples_max) : 1 + at] if at >= samples_max else self.words[1:]


class _Watch:
    """Times appends into memory that is there from the start."""

    def __init__(self, durations: Durations) -> None:
        self._durations_ns = durations.words
        self.count = 0
        self.samples: list[tuple[str, int, int, int]] = []
        self._next_sample_ns = 0

    def append(self, appender: Appender, call: Callable[..., bool], *values: Any) -> bool:
        """Appends, times it, and once in a while keeps when and as which record."""
        started = time.perf_counter_ns()
        accepted = call(*values)
        ended = time.perf_counter_ns()
        self._durations_ns[1 + self.count % SAMPLES_MAX] = ended - started
        self.count += 1
        self._durations_ns[0] = self.count
        if accepted and ended >= self._next_sample_ns:
            self._next_sample_ns = ended + FRESHNESS_INTERVAL_NS
            lane = appender.lane
            if lane is not None:
                self.samples.append((appender.layout.table, lane, appender.accepted - 1, time.monotonic_ns()))
        return accepted


def run(orders: Orders, is_started: Any, is_stopped: Any) -> None:
    """The process's main: waits for `is_started`, trades until done or `is_stopped`, writes its result to files."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the session is told, and says when to stop
    watch = _Watch(Durations(orders.result_dir, orders.index, create=True))
    producer = Producer([Trade, LatencySample], settings=Settings(runtime_dir=orders.runtime_dir)).open()
    try:
        trades, latencies = producer.appender(Trade), producer.appender(LatencySample)
        is_started.wait()
        pace = _paced(orders.rate, is_stopped)
        if orders.recording:
            _trade_recording(orders, watch, trades, latencies, pace, is_stopped)
        else:
            _trade_generated(orders, watch, trades, latencies, pace)
        result = Result(
            {appender.layout.table: appender.accepted_by_lane() for appender in (trades, latencies)},
            {
                f"{table}.{reason}": n
                for table, reasons in producer.refused().items()
                for reason, n in reasons.items()
                if n
            },
        )
    finally:
        producer.close()
    directory = Path(orders.result_dir)
    (directory / f"samples-{orders.index}.json").write_text(json.dumps(watch.samples))
    (directory / f"result-{orders.index}.json").write_bytes(msgspec.json.encode(result))


def _paced(rate: float, is_stopped: Any) -> Callable[[], bool]:
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


def _bound(orders: Orders, trades: Appender, base: str, quote: str) -> Callable[..., bool]:
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


def _values(trade: MarketTrade, book: BookTop | None, stamp_us: int | None) -> tuple[Any, ...]:
    """The fields that vary, in the record type's order: action, amounts, price, slippages, metadata, timestamp."""
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
        stamp_us,
    )


def _trade_recording(
    orders: Orders, watch: _Watch, trades: Appender, latencies: Appender, pace: Callable[[], bool], is_stopped: Any
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
            values = _values(message.trade, book, message.receive_us)
            if not _insist(watch, trades, append, values, pace, is_stopped):
                return
        if message.event_us is not None:
            jitter_us = float(message.receive_us - message.event_us - orders.clock_offset_us)
            if not _insist(watch, latencies, sample, (message.stream, jitter_us, message.receive_us), pace, is_stopped):
                return


def _insist(
    watch: _Watch, appender: Appender, call: Callable[..., bool], values: tuple[Any, ...], pace: Callable[[], bool],
    is_stopped: Any,
) -> bool:  # fmt: skip
    """A replay can wait where a live executor could not: a refused record is offered again. False once stopped."""
    if not pace():
        return False
    while not watch.append(appender, call, *values):
        if is_stopped.wait(0.005):
            return False
    return True


def _trade_generated(
    orders: Orders, watch: _Watch, trades: Appender, latencies: Appender, pace: Callable[[], bool]
) -> None:
    """A live executor: a record that is refused is gone, and counted."""
    market: Iterator[tuple[MarketTrade, BookTop]] = random_walk(orders.seed + orders.index)
    append = _bound(orders, trades, "SOL", "USDC")
    sample = latencies.bind(service="paper-executor", operation="decide")
    deadline = time.monotonic() + orders.seconds
    while time.monotonic() < deadline and pace():
        began = time.perf_counter_ns()
        trade, book = next(market)
        values = _values(trade, book, None)
        decided_us = (time.perf_counter_ns() - began) / 1e3
        watch.append(trades, append, *values)
        if not pace():
            return
        watch.append(latencies, sample, decided_us, None)
