"""Recordings: what is read, and what becomes of broken ones."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path

import pytest

from ringlog.demo.configuration import DECIMALS, TRANSFER_FEE
from ringlog.demo.feed import PRICE_MAX, PRICE_MIN, QUANTITY_MAX, FeedError, read_recording, split_symbol, survey
from ringlog.demo.holdings import Action, fill_of
from ringlog.demo.paper import Market, _threat
from ringlog.demo.traders import Order
from ringlog.redis import PoolState
from ringlog.redis.values import price_text
from ringlog.replay.unpacking import FileError

SIDES: tuple[Action, ...] = ("buy", "sell")
TRADE = (
    b'1723161254087896568 {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343,"s":"BTCUSDT",'
    b'"t":7,"p":"61837.63000000","q":"0.02000000","T":1723161255342,"m":true}}\n'
)
BOOK = (
    b'1723161254116723068 {"stream":"btcusdt@bookTicker","data":{"u":5,"s":"BTCUSDT","b":"10.0","B":"1",'
    b'"a":"12.0","A":"2"}}\n'
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_trade_keeps_its_own_values(tmp_path: Path) -> None:
    """Price, quantity, side and both times are read as they were recorded, in microseconds."""
    (message,) = read_recording(write(tmp_path / "feed", TRADE), pytest.fail)
    assert message.receive_us == 1723161254087896
    assert message.event_us == 1723161255343000
    assert message.trade is not None
    assert (message.trade.symbol, message.trade.trade_id) == ("BTCUSDT", 7)
    assert (message.trade.price, message.trade.quantity, message.trade.is_buyer_maker) == (61837.63, 0.02, True)


def test_a_spot_book_ticker_has_no_event_time(tmp_path: Path) -> None:
    """Where the exchange gave no event time there is none, and so no latency is made up."""
    (message,) = read_recording(write(tmp_path / "feed", BOOK), pytest.fail)
    assert message.event_us is None
    assert message.book is not None
    assert message.book.middle == 11.0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not a line\n", "wanted a receive time"),
        (b"1723161254087896568 {broken\n", "JSON"),
        (b'1723161254087896568 {"stream":"x@trade","data":{"e":"trade","s":"X","t":1}}\n', "without price"),
        (b'1723161254087896568 {"stream":"x@trade","data":{"e":"trade","s":"X","p":"nan","q":"1"}}\n', "finite"),
        (b'1723161254087896568 {"stream":"x@trade","data":{"e":"trade","s":"X","p":"1,5","q":"1"}}\n', "1,5"),
        (b'1723161254087896568 {"stream":"x@bookTicker","data":{"s":"X","b":"1"}}\n', "without bid"),
        (b'1723161254087896568 {"stream":"x@bookTicker","data":{"s":"X","b":"0","a":"1"}}\n', "bid 0"),
        (b'1723161254087896568 {"stream":"x@bookTicker","data":{"s":"X","b":[],"a":"1"}}\n', "list"),
        # What append, or the session's balances and Redis, would refuse later: the demo would end there.
        (TRADE.replace(b"1723161254087896568", b"0"), "got receive time 0 us"),
        (TRADE.replace(b"1723161254087896568", b"9" * 19), "got receive time 9999999999999999 us"),
        (TRADE.replace(b"1723161254087896568", b"9" * 5_000), "digits"),
        (TRADE.replace(b"1723161255343", b"0"), "got event time (E) 0 us"),
        (TRADE.replace(b"1723161255343", b"1723161255343000000"), "got event time (E) 1723161255343000000000 us"),
        (TRADE.replace(b"61837.63000000", b"1e200").replace(b"0.02000000", b"1e200"), "1e200 and quantity 1e200"),
        (TRADE.replace(b"61837.63000000", b"1e-300"), "got price 1e-300"),
        (TRADE.replace(b"0.02000000", b"1e30"), "quantity 1e30, wanted"),
        (TRADE.replace(b"btcusdt@trade", b"x" * 49), "LatencySample.operation: got 49 bytes"),
        (TRADE.replace(b"btcusdt@trade", b"btc\\u0000@trade"), "LatencySample.operation: got a NUL byte"),
        (TRADE.replace(b'"BTCUSDT"', b'"' + b"B" * 45 + b'USDT"'), "Trade.base_token: got 45 bytes"),
        (TRADE.replace(b'"BTCUSDT"', b'"\\u0000USDT"'), "Trade.base_token: got a NUL byte"),
        (TRADE.replace(b'"t":7', b'"t":9223372036854775808'), "got trade id (t) 9223372036854775808"),
        (BOOK.replace(b'"10.0"', b'"1e-300"'), "got bid 1e-300"),
        (BOOK.replace(b'"12.0"', b'"1e20"'), "ask 1e20, wanted"),
        (BOOK.replace(b'"10.0"', b"1" + b"0" * 400), ""),
        (BOOK.replace(b'"u":5', b'"u":' + b"[" * 100_000 + b"]" * 100_000), "recursion"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    """A broken line is reported with its number and reason; the lines around it are read."""
    broken: list[tuple[int, str]] = []
    path = write(tmp_path / "feed", TRADE + line + TRADE)
    messages = list(read_recording(path, lambda number, why: broken.append((number, why))))
    assert [message.line for message in messages] == [1, 3]
    ((number, why),) = broken
    assert number == 2
    assert reason in why


def test_what_is_read_can_be_traded() -> None:
    """The largest quantity fits a token's balance on both sides, fee included, and prices at both ends fit Redis."""
    quantity = round(Decimal(repr(QUANTITY_MAX)), DECIMALS)
    for price in (Decimal(repr(PRICE_MIN)), Decimal(repr(PRICE_MAX)), Decimal(repr(PRICE_MIN * 1.2345678901234567))):
        for action in SIDES:
            assert fill_of(action, quantity, price, 4, TRANSFER_FEE, DECIMALS).moved > 0
        assert Decimal(price_text("BTC", price)) == price


@pytest.mark.parametrize(("base_reserve", "quote_reserve"), [(0, 5), (5, 0)])
def test_a_pool_that_has_run_empty_threatens_nobody(base_reserve: int, quote_reserve: int) -> None:
    """A price that leaves nothing of one token in the modelled pool is traded on as if there were no pool."""
    address = "1" * 40
    price = Decimal(10**15)
    pool = PoolState(
        address=address, base_token=address, quote_token=address, base_reserve=base_reserve,
        quote_reserve=quote_reserve, price=price, fee_bps=4, slot=1,
    )  # fmt: skip
    market = Market(price, price, price, pool, 0)
    for action in SIDES:
        order = Order(action, Decimal(1), Decimal(1), price, 0.0)
        assert _threat(market, order, 0.01).probability == 0.0


def test_a_truncated_gzip_gives_its_readable_lines_first(tmp_path: Path) -> None:
    """A gzip file that ends in the middle is reported, and what could be read was read."""
    whole = gzip.compress(TRADE * 50_000, mtime=0)
    broken: list[tuple[int, str]] = []
    path = write(tmp_path / "feed.gz", whole[: len(whole) // 2])
    messages = list(read_recording(path, lambda number, why: broken.append((number, why))))
    assert messages
    assert len(messages) < 50_000
    assert "ends in the middle" in broken[-1][1]


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    """A file that cannot be opened is an error that names it."""
    with pytest.raises(FileError, match=r"nowhere\.gz: got No such file"):
        survey(tmp_path / "nowhere.gz")


def test_a_recording_of_no_messages_is_an_error(tmp_path: Path) -> None:
    """A file without a single message names its first broken line."""
    with pytest.raises(FeedError, match="wanted at least one: line 1: "):
        survey(write(tmp_path / "feed", b"nothing here\n"))


def test_the_survey_counts_and_finds_the_clock_offset(tmp_path: Path) -> None:
    """The clock offset is the smallest receive minus event time."""
    later = TRADE.replace(b"1723161254087896568", b"1723161254087999568")
    found = survey(write(tmp_path / "feed", TRADE + later + BOOK + b"?\n"))
    assert (found.messages, found.trades, found.timed, found.broken) == (3, 2, 2, 1)
    assert found.clock_offset_us == 1723161254087896 - 1723161255343000


@pytest.mark.parametrize(
    ("symbol", "parts"),
    [
        ("BTCUSDT", ("BTC", "USDT")),
        ("BTCFDUSD", ("BTC", "FDUSD")),
        ("ETHBTC", ("ETH", "BTC")),
        ("XYZ", ("XYZ", "UNKNOWN")),
    ],
)
def test_symbols_split_at_a_known_quote(symbol: str, parts: tuple[str, str]) -> None:
    """The longest known quote ends a symbol; an unknown one is said to be unknown."""
    assert split_symbol(symbol) == parts
