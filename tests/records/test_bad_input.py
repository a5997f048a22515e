"""Bad input raises at once, naming record, field, got and wanted; nothing is accepted or changed."""

from __future__ import annotations

import datetime
import decimal
import enum
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringlog import Producer
from ringlog.arrays import rows_of
from ringlog.errors import ConfigurationError, DeclarationError, RecordError, RecordTypeError, RecordValueError
from ringlog.records import LatencySample, MevMetric, PerformanceMetric, Record, Trade, layout_of
from ringlog.records.fields import TIMESTAMP_MIN_US
from ringlog.ring import IMPLEMENTATION
from ringlog.testing import MemoryInstance
from ringlog.validation import TIMESTAMP_AHEAD_MAX_US, check_rows, exact_value

TRADE: dict[str, Any] = {
    "trader_id": "t1",
    "mode": "paper",
    "action": "buy",
    "base_token": "SOL",
    "quote_token": "USDC",
    "base_amount": 1.5,
    "quote_amount": 225.0,
    "executed_price": 150.0,
    "transaction_fee": 5000,
    "priority_fee": 100,
    "expected_slippage": 0.001,
    "actual_slippage": -0.002,
    "mev_status": "protected",
    "mev_protected": True,
    "transfer_fees": 0.0,
    "tx_signature": "5" * 88,
    "metadata": {"route": "jupiter"},
}
SOME_DAY_US = 1_767_225_600_000_000
INT64_MIN = -(2**63)


def stored(field: str, value: Any, record_type: type[Record] = Trade) -> Any:
    """What would be stored for a value, or the error."""
    layout = layout_of(record_type)
    return exact_value(layout.name, layout.field(field), value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("base_amount", "1.5", "got str '1.5', wanted a float"),
        ("base_amount", True, "got bool True, wanted a float"),
        ("base_amount", None, r"got None, wanted a float \(not nullable\)"),
        ("base_amount", decimal.Decimal(1), "got Decimal"),
        ("base_amount", np.bool_(True), "wanted a float"),
        ("base_amount", np.timedelta64(1, "s"), "wanted a float"),
        ("base_amount", 1j, "wanted a float"),
        ("transaction_fee", 1.0, "got float 1.0, wanted an int"),
        ("transaction_fee", True, "got bool True, wanted an int"),
        ("transaction_fee", "5", "wanted an int"),
        ("transaction_fee", np.float64(5), "wanted an int"),
        ("transaction_fee", np.timedelta64(5, "us"), "wanted an int"),
        ("mev_protected", 1, "got int 1, wanted a bool"),
        ("mev_protected", None, "wanted a bool"),
        ("trader_id", b"t1", "got bytes b't1', wanted a str"),
        ("trader_id", 7, "got int 7, wanted a str"),
        ("trader_id", None, r"wanted a str \(not nullable\)"),
        ("metadata", {"a": object()}, "wanted a JSON document"),
        ("metadata", 5, "got int 5, wanted a JSON document"),
        ("metadata", b"{}", "got bytes"),
        ("metadata", {(1, 2): 3}, "wanted a JSON document"),
        ("timestamp", "2026-01-01", "got str '2026-01-01', wanted an aware datetime"),
        ("timestamp", 1.7e15, "wanted an aware datetime"),
        ("timestamp", True, "wanted an aware datetime"),
        ("timestamp", np.datetime64("2026-01-01"), "wanted an aware datetime"),
        ("timestamp", datetime.date(2026, 1, 1), "wanted an aware datetime"),
    ],
)
def test_wrong_types(field: str, value: Any, words: str) -> None:
    """A value of another type raises RecordTypeError, which is a TypeError."""
    with pytest.raises(RecordTypeError, match=rf"Trade\.{field}: .*{words}") as caught:
        stored(field, value)
    assert isinstance(caught.value, TypeError)


class NoOffset(datetime.tzinfo):
    """A time zone that knows no offset, so that its datetimes are naive after all."""

    def utcoffset(self, when: datetime.datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("base_amount", float("nan"), "got nan, wanted a finite float"),
        ("base_amount", float("inf"), "got inf, wanted a finite float"),
        ("base_amount", float("-inf"), "got -inf, wanted a finite float"),
        ("base_amount", np.float32("nan"), "wanted a finite float"),
        ("base_amount", 10**400, "wanted a finite float"),
        ("base_amount", 2**53 + 1, "got 9007199254740993, wanted a number that a float64 holds exactly"),
        ("base_amount", np.uint64(2**64 - 1), "wanted a number that a float64 holds exactly"),
        ("base_amount", -1.0, r"got -1.0, wanted 0.0 to"),
        ("transaction_fee", 2**63, "got 9223372036854775808, wanted 0 to 9223372036854775807"),
        ("transaction_fee", np.uint64(2**64 - 1), "got 18446744073709551615, wanted 0 to"),
        ("transaction_fee", -1, "got -1, wanted 0 to"),
        ("transaction_fee", INT64_MIN, "wanted 0 to"),
        ("mode", "Paper", "got 'Paper', wanted one of 'paper', 'live'"),
        ("mode", "", "got '', wanted one of"),
        ("mode", "x" * 500, "wanted one of"),
        ("trader_id", "t" * 33, "got 33 bytes 't+', wanted at most 32"),
        ("trader_id", "ä" * 17, "got 34 bytes"),
        ("trader_id", "x" * 1_000_000, "got 1000000 bytes .*, wanted at most 32"),
        ("trader_id", "a\0", "got a NUL byte"),
        ("trader_id", "\ud800", "got a lone surrogate"),
        ("tx_signature", "5" * 89, "got 89 bytes"),
        ("metadata", {"k": "v" * 200}, "got 208 bytes .*, wanted at most 158"),
        ("metadata", {"x": float("nan")}, "got NaN or infinity"),
        ("metadata", {"x": [1, {"y": float("inf")}]}, "got NaN or infinity"),
        ("metadata", {"x": "\ud800"}, "surrogates"),
        ("timestamp", 0, "got 0, wanted microseconds since the epoch between 2000-01-01 and one hour from now"),
        ("timestamp", -1, "got -1, wanted microseconds"),
        ("timestamp", TIMESTAMP_MIN_US - 1, "wanted microseconds"),
        ("timestamp", SOME_DAY_US * 1000, r"\(nanoseconds\?\), wanted microseconds"),
        ("timestamp", SOME_DAY_US // 1000, "wanted microseconds"),
        ("timestamp", 2**70, "wanted microseconds"),
        ("timestamp", datetime.datetime(2262, 4, 12, tzinfo=datetime.UTC), "one hour from now"),
        ("timestamp", datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC), "one hour from now"),
        ("timestamp", datetime.datetime(1999, 12, 31, tzinfo=datetime.UTC), "between 2000-01-01"),
        ("timestamp", datetime.datetime(2026, 1, 1), "got naive datetime"),
        ("timestamp", datetime.datetime(2026, 1, 1, tzinfo=NoOffset()), "got naive datetime"),
    ],
)  # fmt: skip
def test_wrong_values(field: str, value: Any, words: str) -> None:
    """A value that cannot be stored as it is raises RecordValueError, which is a ValueError."""
    with pytest.raises(RecordValueError, match=rf"(?s)Trade\.{field}: .*{words}") as caught:
        stored(field, value)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 400


class Small(enum.IntEnum):
    """An int that is not exactly an int."""

    FEE = 5000


class Text(str):
    """A str that says something else of itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Number(float):
    """A float by another name."""


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("base_amount", 3, 3.0),
        ("base_amount", 0, 0.0),
        ("base_amount", np.float64(1.5), 1.5),
        ("base_amount", np.float32(1.5), 1.5),
        ("base_amount", np.int32(7), 7.0),
        ("base_amount", np.uint8(7), 7.0),
        ("base_amount", 2**53, 2.0**53),
        ("base_amount", 2**60, 2.0**60),
        ("base_amount", np.int64(2**60), 2.0**60),
        ("base_amount", Number(2.5), 2.5),
        ("base_amount", 1.7976931348623157e308, 1.7976931348623157e308),
        ("base_amount", 5e-324, 5e-324),
        ("transaction_fee", np.int64(2**63 - 1), 2**63 - 1),
        ("transaction_fee", np.uint64(5), 5),
        ("transaction_fee", Small.FEE, 5000),
        ("transaction_fee", 2**63 - 1, 2**63 - 1),
        ("priority_fee", None, None),
        ("mev_protected", np.bool_(False), False),
        ("trader_id", Text("t1"), "t1"),
        ("trader_id", np.str_("t1"), "t1"),
        ("trader_id", "", ""),
        ("trader_id", "quo'te\"\n\t\\,= ", "quo'te\"\n\t\\,= "),
        ("trader_id", "🚀" * 8, "🚀" * 8),
        ("tx_signature", None, None),
        ("metadata", None, None),
        ("metadata", {}, "{}"),
        ("metadata", {"a": [1, None, "ü"]}, '{"a":[1,null,"ü"]}'),
        ("metadata", {"nul": "\0"}, '{"nul":"\\u0000"}'),
        ("metadata", [1, 2], "[1,2]"),
        ("metadata", '{"already":1}', '{"already":1}'),
        ("timestamp", TIMESTAMP_MIN_US, TIMESTAMP_MIN_US),
        ("timestamp", np.int64(SOME_DAY_US), SOME_DAY_US),
        ("timestamp", datetime.datetime(2026, 1, 1, 1, 30, 0, 7,
                                        tzinfo=datetime.timezone(datetime.timedelta(hours=1, minutes=30))),
         1_767_225_600_000_007),
        ("timestamp", None, None),
    ],
)  # fmt: skip
def test_what_is_taken(field: str, value: Any, wanted: Any) -> None:
    """Scalars of numpy, subclasses, extremes and text of any script are stored exactly, as the plain type."""
    result = stored(field, value)
    assert result == wanted
    assert type(result) in (float, int, bool, str, type(None))


def test_two_hours_ahead_are_not_taken() -> None:
    """More than an hour ahead is out of bounds, counted from the call and not from the process's start."""
    ahead = time.time_ns() // 1000 + 2 * TIMESTAMP_AHEAD_MAX_US
    with pytest.raises(RecordValueError, match=r"Trade\.timestamp: .*one hour from now"):
        stored("timestamp", ahead)


def test_an_hour_ahead_is_taken() -> None:
    """Clocks that differ a little are no error: up to an hour ahead is taken."""
    ahead = time.time_ns() // 1000 + TIMESTAMP_AHEAD_MAX_US - 60_000_000
    assert stored("timestamp", ahead) == ahead


@pytest.mark.parametrize(
    ("record_type", "field", "value"),
    [
        (MevMetric, "sandwich_probability", 1.0000001),
        (MevMetric, "sandwich_probability", -0.1),
        (PerformanceMetric, "percentile", 90),
        (PerformanceMetric, "percentile", 50.0),
        (PerformanceMetric, "metric_type", "speed"),
        (LatencySample, "latency_us", float("nan")),
    ],
)
def test_limits_of_the_other_records(record_type: type[Record], field: str, value: Any) -> None:
    """Probabilities are 0..1, percentiles 50, 95 or 99, metric types one of three."""
    with pytest.raises(RecordError, match=rf"{record_type.__name__}\.{field}: got "):
        stored(field, value, record_type)


def rows(count: int) -> np.ndarray[Any, Any]:
    """Sound rows for append_many."""
    return np.repeat(rows_of(Trade, {name: [value] for name, value in TRADE.items()}), count)


def test_rows_of_makes_what_append_would_write() -> None:
    """Columns of Python values become rows that check_rows takes; what is left out takes its default or is stamped."""
    before = time.time_ns() // 1000
    made = rows_of(LatencySample, {"service": ["a", "b"], "operation": ["x", "y"], "latency_us": [1, np.float32(2)]})
    check_rows(layout_of(LatencySample), made)
    assert made["latency_us"].tolist() == [1.0, 2.0]
    assert before <= made["timestamp"].min() <= made["timestamp"].max() <= time.time_ns() // 1000
    assert len(rows_of(LatencySample, {"service": [], "operation": [], "latency_us": []})) == 0


def test_rows_of_refuses_what_append_refuses() -> None:
    """Wrong values, lengths and names raise as in append."""
    with pytest.raises(RecordTypeError, match="got columns of"):
        rows_of(LatencySample, {"service": ["a"], "operation": []})
    with pytest.raises(RecordTypeError, match="got columns of"):
        rows_of(LatencySample, {})
    with pytest.raises(RecordTypeError, match="wanted also latency_us"):
        rows_of(LatencySample, {"service": ["a"], "operation": ["b"]})
    with pytest.raises(RecordValueError, match="latency_us: got nan"):
        rows_of(LatencySample, {"service": ["a"], "operation": ["b"], "latency_us": [float("nan")]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_amount", np.nan),
        ("base_amount", np.inf),
        ("base_amount", -1.0),
        ("transaction_fee", -1),
        ("transaction_fee", INT64_MIN),
        ("mev_protected", 2),
        ("timestamp", 0),
        ("timestamp", SOME_DAY_US * 1000),
        ("trader_id", (33, b"t" * 32)),
        ("trader_id", (0xFFFF, b"")),
        ("trader_id", (2, b"a\0")),
        ("trader_id", (1, b"\xff")),
        ("tx_signature", (3, b"\xed\xa0\x80")),
        ("mode", (5, b"Paper")),
        ("mode", (0, b"")),
        ("tx_signature", (0xFFFE, b"")),
    ],
)
@pytest.mark.parametrize("place", [0, 6000])
def test_rows_are_checked_like_appends(field: str, value: Any, place: int) -> None:
    """append_many takes a row where append would take its values; the error names field, row, got and wanted."""
    array = rows(6001)
    check_rows(layout_of(Trade), array)
    array[field][place] = value
    with pytest.raises(RecordValueError, match=rf"(?s)Trade\.{field}: got .* in row {place}, wanted "):
        check_rows(layout_of(Trade), array)


def test_rows_with_null_are_taken() -> None:
    """NULL in optional fields is no error."""
    array = rows(2)
    array["priority_fee"] = INT64_MIN
    array["transfer_fees"] = np.nan
    array["tx_signature"]["length"] = 0xFFFF
    check_rows(layout_of(Trade), array)


@pytest.mark.parametrize(
    "wrong",
    [
        [(1,)],
        np.zeros(3),
        np.zeros((2, 2), layout_of(Trade).dtype),
        np.zeros(2, layout_of(LatencySample).dtype),
        np.zeros((), layout_of(Trade).dtype),
        None,
    ],
)
def test_rows_of_another_shape(wrong: Any) -> None:
    """Anything but a one-dimensional array of the record type's dtype raises RecordTypeError."""
    with pytest.raises(RecordTypeError, match="Trade: got"):
        check_rows(layout_of(Trade), wrong)


class Keyed(str):
    """A field's name whose comparison raises, and whose hash is that of a str."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")


class Short(np.ndarray):  # type: ignore[type-arg]
    """An array that lies about its length."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


GOOD = {"service": ["s"], "operation": ["o"], "latency_us": [1.0]}


@pytest.mark.parametrize(
    "columns",
    [
        None,
        5,
        [1],
        {},
        {"service": 5},
        {**GOOD, "service": (each for each in ())},
        {**GOOD, "service": {"s"}},
        {**GOOD, "service": {"s": 1}},
        {1: [1]},
        {**GOOD, "operation": ["o", "p"]},
        {**GOOD, "price": [1]},
    ],
    ids=["None", "int", "list", "empty", "scalar", "generator", "set", "dict", "key", "lengths", "unknown"],
)
def test_columns_that_are_none(columns: Any) -> None:
    """Finding 12: rows_of names the record type for whatever it is given, rather than end in an AttributeError."""
    with pytest.raises(RecordTypeError, match="LatencySample"):
        rows_of(LatencySample, columns)


@pytest.mark.parametrize(
    "wrong",
    [5, "Trade", None, LatencySample(service="s", operation="o", latency_us=1.0)],
    ids=["int", "str", "None", "record"],
)
def test_a_record_type_that_is_none(wrong: Any) -> None:
    """Finding 12: what takes a record type says what it got."""
    with pytest.raises(DeclarationError, match="wanted a record type, such as Trade"):
        rows_of(wrong, GOOD)


def test_frames_are_columns() -> None:
    """A pandas DataFrame is taken column by column."""
    assert len(rows_of(LatencySample, pd.DataFrame(GOOD))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"runtime_dir": "x"}}, "got settings of type dict"),
        ({"lane_bytes": 5}, "got lane_bytes=5"),
        ({"lane_bytes": {LatencySample: "x"}}, "got lane_bytes of LatencySample 'x'"),
        ({"lane_bytes": {LatencySample: 1e6}}, "got lane_bytes of LatencySample 1000000.0"),
        ({"lane_bytes": {LatencySample: 0}}, "got lane_bytes of LatencySample 0"),
        ({"lane_bytes": {LatencySample: True}}, "got lane_bytes of LatencySample True"),
        ({"lane_bytes": {"Trade": 4096}}, "wanted bytes by record type"),
    ],
)
def test_a_producers_options(options: dict[str, Any], words: str) -> None:
    """Finding 12: a wrong option is named where the producer is made, not by a TypeError of a later claim."""
    with pytest.raises(ConfigurationError, match=words):
        Producer([LatencySample], **options)


def test_names_and_arrays_of_subclasses(ringlog_memory: MemoryInstance) -> None:
    """Finding 12: names that are a subclass of str, and an array that is one of ndarray, are taken as what they are,
    whatever their own methods do; a type that has no hash is no record type."""
    producer = ringlog_memory.producer(LatencySample)
    appender = producer.appender(LatencySample)
    if IMPLEMENTATION == "c":  # elsewhere Python itself compares names, before any code of ours runs
        assert appender.append("s", "o", **{Keyed("latency_us"): 1.0})
    else:
        assert appender.append("s", "o", 1.0)
    assert appender.bind(**{Keyed("service"): "s"})("o", 2.0)
    assert appender.append_many(rows_of(LatencySample, GOOD).view(Short)) == 1
    with pytest.raises(RecordTypeError):
        appender.append_many(np.zeros(3).view(Short))
    assert appender.refused()["invalid"] == 3
    with pytest.raises(RecordTypeError, match="got record type"):
        producer.appender([])  # type: ignore[arg-type]
    assert [row["latency_us"] for row in ringlog_memory.rows(LatencySample)] == [1.0, 2.0, 1.0]
