"""The market: a process that plays a recording into Redis, as a feed handler does.

Prices go to the cache (`price:{symbol}`, with `.bid` and `.ask` beside it), the pool's state to `pool:{address}`, and
the price, ten times a second, to the stream and channel of price updates. A spot exchange has no liquidity pool, so the
pool is a model: constant product, its price held at the recording's middle as arbitrage would.
"""

from __future__ import annotations

import math
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from ringlog.demo.configuration import DECIMALS, FEE_BPS, paper_address
from ringlog.demo.feed import BookTop, Message, read_recording
from ringlog.demo.lockstep import DONE, Lockstep
from ringlog.demo.orphans import end_with_parent
from ringlog.demo.plan import Plan
from ringlog.demo.results import Result, counts_of, write
from ringlog.postgres.transfer_fees import U64_MAX
from ringlog.records import LatencySample
from ringlog.redis import Cache, Connection, PoolState, PriceUpdate, Publisher, Topic

QUOTE_RESERVE = 2_500_000.0  # quote units in the modelled pool at the first price
QUOTE_DECIMALS = 6
WRITE_INTERVAL_S = 0.005
WRITE_LINES = 16  # at the latest after so many lines: well below LEAD_LINES, or executors would wait for ever


def pool_reserves(price: float, first_price: float) -> tuple[float, float]:
    """Base and quote reserves (token units) of the modelled pool at `price`: x * y = k, y / x = price."""
    k = QUOTE_RESERVE * QUOTE_RESERVE / first_price
    return math.sqrt(k / price), math.sqrt(k * price)


class _Quotes:
    """The latest prices, and their way into Redis."""

    def __init__(self, plan: Plan, connection: Connection, publisher: Publisher) -> None:
        self._plan = plan
        self._cache = Cache(connection)
        self._publisher = publisher
        self._tokens = paper_address(plan.base), paper_address(plan.quote)
        self._first_price = 0.0
        self._book: BookTop | None = None
        self._line = self._written_line = 0
        self._written_s = 0.0

    @property
    def is_due(self) -> bool:
        if self._line == self._written_line:
            return False
        if self._line - self._written_line >= WRITE_LINES or not self._written_line:
            return True
        return bool(self._plan.speed) and time.monotonic() - self._written_s >= WRITE_INTERVAL_S

    @property
    def line(self) -> int:
        """Up to where the recording is in Redis."""
        return self._written_line

    def take(self, message: Message) -> None:
        if message.book is not None:
            self._book = message.book
        elif message.trade is not None and self._book is None:
            self._book = BookTop(message.trade.price, message.trade.price)
        self._line = message.line

    def write(self) -> None:
        """Two round trips, where there is anything new: three prices, and the pool."""
        if self._line == self._written_line:
            return
        self._written_s = time.monotonic()
        if self._book is None:
            self._written_line = self._line
            return
        middle = self._book.middle
        self._first_price = self._first_price or middle
        price = Decimal(repr(middle))
        symbol, now_us = self._plan.base, time.time_ns() // 1_000
        bid, ask = (Decimal(repr(side)) for side in (self._book.bid, self._book.ask))
        self._cache.set_prices({symbol: price, f"{symbol}.bid": bid, f"{symbol}.ask": ask}, now_us)
        base, quote = pool_reserves(middle, self._first_price)
        self._cache.set_pool(
            PoolState(
                address=self._plan.pool_address, base_token=self._tokens[0], quote_token=self._tokens[1],
                base_reserve=_units(base, DECIMALS), quote_reserve=_units(quote, QUOTE_DECIMALS),
                price=price, fee_bps=FEE_BPS, slot=self._line,
            ),
            now_us,
        )  # fmt: skip
        self._publisher.offer(Topic.PRICE_UPDATES, symbol, PriceUpdate(symbol, price, now_us))
        self._written_line = self._line


def _units(amount: float, decimals: int) -> int:
    """Smallest units, of which a u64 must hold them all: the pool of a token that costs next to nothing is smaller."""
    return min(int(amount * 10**decimals), U64_MAX)


def run(plan: Plan, lines: Any, is_started: Any, is_stopped: Any) -> None:
    """The process's main: plays the recording once, appends a LatencySample for every message with an event time."""
    end_with_parent()
    settings = plan.settings()
    lockstep = Lockstep(lines, is_stopped)
    untried = msgspec.structs.replace(settings, redis_retry_timeout_ms=0)
    with (
        Connection(settings) as connection,
        Connection(untried) as publishing,
        Publisher(publishing) as publisher,
        plan.producer([LatencySample], settings) as producer,
    ):
        sample = producer.appender(LatencySample).bind(service="exchange-feed")
        quotes = _Quotes(plan, connection, publisher)
        is_started.wait()
        started = time.monotonic()
        for message in read_recording(Path(plan.recording), lambda _line, _reason: None):
            ahead = plan.wait_for(message.receive_us, started)
            if ahead > 0.002:
                quotes.write()  # nothing else to do
            if ahead > 0.001:
                time.sleep(ahead)
            if not lockstep.follow_executors(message.line):
                break
            quotes.take(message)
            if quotes.is_due:
                quotes.write()
            lockstep.reach(0, quotes.line)
            if message.event_us is not None:
                jitter_us = float(message.receive_us - message.event_us - plan.clock_offset_us)
                while not sample(message.stream, jitter_us, timestamp=message.receive_us):
                    if is_stopped.wait(0.005):
                        return
        quotes.write()
        lockstep.reach(0, DONE)
        write(plan.result_dir, "market", Result(**counts_of(producer, [LatencySample])))
