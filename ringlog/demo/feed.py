"""Markets to trade: a recorded exchange feed, or a seeded random walk.

A recording is what a receiver of Binance's combined streams wrote down: a line holds the local receive time in
nanoseconds since the epoch, a space, and the message as JSON. The receiver's clock need not agree with the
exchange's, so what can be said of a message's way is its jitter: receive time minus event time, minus the smallest
such difference of the recording.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ringlog.records import LatencySample, Trade, layout_of
from ringlog.records.fields import INT64_MAX, INT64_MIN, TIMESTAMP_MIN_US
from ringlog.replay.lines import Lines, blocks
from ringlog.replay.unpacking import FileError
from ringlog.validation import exact_value, latest_timestamp_us

# Longest first: BTCFDUSD ends in USD too.
QUOTE_SYMBOLS = ("FDUSD", "USDT", "USDC", "BUSD", "TUSD", "USD", "EUR", "BTC", "ETH", "BNB", "SOL")

# What the session can trade: a token's balance is a u64 of 10^-8 tokens, and Redis takes a price of 64 characters.
# Numbers of this file: the modules that those limits are from would load psycopg and redis into every executor.
QUANTITY_MAX = 1e11
PRICE_MIN, PRICE_MAX = 1e-18, 1e18
_STREAM = layout_of(LatencySample).field("operation")
_TOKEN = layout_of(Trade).field("base_token")


class FeedError(FileError):
    """A recording has nothing to trade; the message names the file and what was wrong."""


class BookTop(msgspec.Struct, frozen=True):
    """The best bid and ask at a time."""

    bid: float
    ask: float

    @property
    def middle(self) -> float:
        return (self.bid + self.ask) / 2


class MarketTrade(msgspec.Struct, frozen=True):
    """A trade of the market: price and quantity as the exchange gave them, times in microseconds since the epoch."""

    symbol: str
    trade_id: int
    price: float
    quantity: float
    is_buyer_maker: bool


class Message(msgspec.Struct, frozen=True):
    """One line of a recording. `event_us` is None where the exchange gave no event time (spot bookTicker)."""

    line: int
    stream: str
    receive_us: int
    event_us: int | None
    trade: MarketTrade | None = None
    book: BookTop | None = None


class _Data(msgspec.Struct):
    e: str = ""
    E: int | None = None
    s: str = ""
    t: int = 0
    p: str | None = None
    q: str | None = None
    m: bool = False
    b: Any = None
    a: Any = None


class _Envelope(msgspec.Struct):
    """A combined stream's message; a snapshot or an answer to a subscription is a message of no stream."""

    stream: str = ""
    data: _Data = msgspec.field(default_factory=_Data)


_decode = msgspec.json.Decoder(_Envelope).decode


def read_recording(path: Path, on_broken: Callable[[int, str], None], containing: bytes = b"") -> Iterator[Message]:
    """The messages of a recording (plain, gzip or zstd), in order; only of lines `containing` these bytes.

    A broken line is told to `on_broken(line number, reason)` and the rest goes on; so is a truncated gzip file, whose
    readable lines all come first. Raises FileError where the file cannot be opened.
    """
    number = 0
    with contextlib.closing(Lines(path)) as file:
        for block in blocks(file):
            if block.broken is not None:
                if block.broken:
                    on_broken(block.line, block.broken)
                continue
            for number, line in enumerate(block.data.removesuffix(b"\n").split(b"\n"), block.line):
                if containing not in line:
                    continue
                try:
                    yield _message(number, line)
                except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
                    on_broken(number, str(error))
        if file.broken is not None:
            on_broken(number + 1, f"the file ends in the middle: {file.broken}")


def _message(number: int, line: bytes) -> Message:
    """The message of a line. What append would refuse is a broken line, here: later on it would end an executor."""
    stamp, separator, text = line.partition(b" ")
    if not separator or not stamp.isdigit():
        raise ValueError(f"got {line[:40]!r}, wanted a receive time in nanoseconds, a space and a JSON object")
    envelope = _decode(text)
    data = envelope.data
    receive_us = _checked_time("receive time", int(stamp) // 1000)
    event_us = None
    if data.E is not None:
        event_us = _checked_time("event time (E)", data.E * 1000)
        _check_stream(envelope.stream)
    if data.e == "trade":
        return Message(number, envelope.stream, receive_us, event_us, trade=_trade(data))
    if envelope.stream.endswith("@bookTicker"):
        if data.b is None or data.a is None:
            raise ValueError("got a bookTicker without bid (b) or ask (a)")
        bid, ask = float(data.b), float(data.a)
        if not (PRICE_MIN <= bid <= PRICE_MAX and PRICE_MIN <= ask <= PRICE_MAX):
            wanted = f"wanted finite numbers, {PRICE_MIN:g} to {PRICE_MAX:g}"
            raise ValueError(f"got bid {data.b} and ask {data.a}, {wanted}")
        return Message(number, envelope.stream, receive_us, event_us, book=BookTop(bid, ask))
    return Message(number, envelope.stream, receive_us, event_us)


def _trade(data: _Data) -> MarketTrade:
    if data.p is None or data.q is None:
        raise ValueError("got a trade without price (p) or quantity (q)")
    price, quantity = float(data.p), float(data.q)
    if not (PRICE_MIN <= price <= PRICE_MAX and 0 <= quantity <= QUANTITY_MAX):
        raise ValueError(
            f"got price {data.p} and quantity {data.q}, wanted finite numbers, {PRICE_MIN:g} to {PRICE_MAX:g} and "
            f"0 to {QUANTITY_MAX:g}"
        )
    if not INT64_MIN <= data.t <= INT64_MAX:
        raise ValueError(f"got trade id (t) {data.t}, wanted an int64")
    _check_symbol(data.s)
    return MarketTrade(data.s, data.t, price, quantity, data.m)


def _checked_time(name: str, time_us: int) -> int:
    if not TIMESTAMP_MIN_US <= time_us <= latest_timestamp_us():
        raise ValueError(f"got {name} {time_us} us since the epoch, wanted 2000-01-01 to one hour from now")
    return time_us


# A recording repeats its few streams and symbols on every line.
@functools.lru_cache(maxsize=1_024)
def _check_stream(stream: str) -> None:
    exact_value("LatencySample", _STREAM, stream)


@functools.lru_cache(maxsize=1_024)
def _check_symbol(symbol: str) -> None:
    for token in split_symbol(symbol):
        exact_value("Trade", _TOKEN, token)


class Survey(msgspec.Struct):
    """What a first reading of a recording finds."""

    messages: int = 0
    trades: int = 0
    timed: int = 0  # messages with an event time
    broken: int = 0
    first_broken: list[tuple[int, str]] = msgspec.field(default_factory=list)
    first_us: int = 0
    last_us: int = 0
    clock_offset_us: int = 0  # the smallest receive minus event time: taken for the clocks' difference
    symbols: list[str] = msgspec.field(default_factory=list)  # of what was traded

    @property
    def seconds(self) -> float:
        return (self.last_us - self.first_us) / 1e6


def survey(path: Path) -> Survey:
    """Reads a recording once. Raises FileError where it cannot be opened, FeedError where it holds no message."""
    found = Survey()

    def note(line: int, reason: str) -> None:
        found.broken += 1
        if len(found.first_broken) < 10:
            found.first_broken.append((line, reason))

    offset: int | None = None
    for message in read_recording(path, note):
        found.first_us = found.first_us or message.receive_us
        found.last_us = message.receive_us
        found.messages += 1
        if message.trade is not None:
            found.trades += 1
            if message.trade.symbol not in found.symbols:
                found.symbols.append(message.trade.symbol)
        if message.event_us is not None:
            found.timed += 1
            difference = message.receive_us - message.event_us
            offset = difference if offset is None else min(offset, difference)
    if not found.messages:
        reason = f": line {found.first_broken[0][0]}: {found.first_broken[0][1]}" if found.broken else ""
        raise FeedError(f"recording {path}: got no message, wanted at least one{reason}")
    found.clock_offset_us = offset or 0
    return found


def split_symbol(symbol: str) -> tuple[str, str]:
    """Base and quote of an exchange's symbol: BTCUSDT is (BTC, USDT); a quote that is not listed is UNKNOWN."""
    for quote in QUOTE_SYMBOLS:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol.removesuffix(quote), quote
    return symbol or "UNKNOWN", "UNKNOWN"


def random_walk(seed: int, steps: int = 4_096) -> Iterator[tuple[MarketTrade, BookTop]]:
    """A generated market without end: a seeded geometric random walk around 150 USDC for a SOL."""
    generator = np.random.default_rng(seed)
    price = 150.0
    for block in itertools.count():
        moves = np.exp(generator.normal(0.0, 2e-5, steps))
        sizes = generator.lognormal(0.0, 1.0, steps)
        sells = generator.random(steps) < 0.5
        for i in range(steps):
            price *= float(moves[i])
            book = BookTop(price * 0.99995, price * 1.00005)
            paid = book.bid if sells[i] else book.ask
            yield MarketTrade("SOLUSDC", block * steps + i, paid, float(sizes[i]), bool(sells[i])), book
