"""What goes in comes out: every kind, every extreme, NULLs, and each row once."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sink_batches import EPOCH_2026_US, batch_of, deliver, numbered, stored

from ringlog.columns import SymbolColumn
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.records.fields import INT64_MAX, INT64_MIN

TEXTS = [
    "",
    " ",
    "a",
    'quote " and \\ back',
    "line\nbreak\r\n",
    "tab\t,comma =equals",
    "naïve 日本語 🚀",
    "'; DROP TABLE x;--",
]
DOUBLES = [0.0, -0.0, 1.5, -1.7976931348623157e308, 1.7976931348623157e308, 5e-324, -2.2250738585072014e-308, 0.1]
LONGS = [0, -1, 1, INT64_MAX, INT64_MIN + 1, 2**53 + 1]
# The first and a late microsecond that records may carry, and neighbours that a rounding clock would merge.
TIMES_US = [946_684_800_000_000, 946_684_800_000_001, EPOCH_2026_US + 999_999, EPOCH_2026_US + 1_000_000]


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return isinstance(got, float) and struct.pack("<d", got) == struct.pack("<d", wanted)
    return type(got) is type(wanted) and bool(got == wanted)


def assert_stored(sink: QuestdbSink, layout: RecordLayout, rows: list[dict[str, Any]]) -> None:
    found = stored(sink, layout)
    assert len(found) == len(rows)
    for got, wanted in zip(found, rows, strict=True):
        for name, value in wanted.items():
            assert same(got[name], value), f"{name}: got {got[name]!r}, wanted {value!r}"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("symbol", [*TEXTS, None]),
        ("text", [*TEXTS, None, "x" * 400]),
        ("document", ['{"a": "b\\n"}', "", None]),
        ("number", [*DOUBLES, None]),
        ("whole", [*LONGS, None]),
        ("flag", [True, False]),
        ("timestamp", TIMES_US),
    ],
)
def test_every_value_of_a_kind_arrives_unchanged(
    sink: QuestdbSink, layout: RecordLayout, field: str, values: list[Any]
) -> None:
    """Each kind's extremes, NULL and (for texts) the empty string are read back bit for bit, NULL as NULL."""
    rows = [{"choice": "left", field: value} for value in values]
    deliver(sink, batch_of(layout, rows))
    assert_stored(sink, layout, rows)


def test_a_batch_without_a_value_leaves_the_whole_column_null(sink: QuestdbSink, layout: RecordLayout) -> None:
    """A column in which every row is NULL is stored as NULL, also a symbol column that has no values at all."""
    deliver(sink, batch_of(layout, [{}, {}]))
    for row in stored(sink, layout):
        assert [row[name] for name in ("symbol", "text", "document", "number", "whole")] == [None] * 5


def test_symbols_stay_right_while_their_list_grows(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Categories kept between batches give the right text when the list grew, was replaced, or shrank."""
    values = ["a", "b"]
    wanted = []
    lists = [(values, [0, 1]), (values, [2, 0]), (values, [1, 1]), (["z", "y"], [0, 1]), (["b"], [0, -1])]
    for number, (known, codes) in enumerate(lists):
        if number == 1:
            values.append("c")
        batch = batch_of(layout, [{"choice": "left"}] * 2, first_seq=2 * number)
        batch.columns["symbol"] = SymbolColumn(np.array(codes, np.int32), known)
        deliver(sink, batch)
        wanted += [known[code] if code >= 0 else None for code in codes]
    assert [row["symbol"] for row in stored(sink, layout)] == wanted


def test_more_symbols_than_one_byte_counts(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Codes past 127 and 32,767 (where the client's index types change) name the right text."""
    known = [f"s{number}" for number in range(40_000)]
    codes = np.array([0, 126, 127, 128, 255, 256, 32_766, 32_767, 32_768, 39_999], np.int32)
    batch = batch_of(layout, [{"choice": "left"}] * len(codes))
    batch.columns["symbol"] = SymbolColumn(codes, known)
    deliver(sink, batch)
    assert [row["symbol"] for row in stored(sink, layout)] == [known[code] for code in codes]


def test_part_of_a_batch_is_a_batch(sink: QuestdbSink, layout: RecordLayout) -> None:
    """`Batch.take` gives the rows asked for, with their spans, over the same memory."""
    rows = list(numbered(50))
    batch = batch_of(layout, rows, first_seq=100)
    part = batch.take(20, 33)
    assert [tuple(span) for span in part.spans] == [(7, 120, 13)]
    assert np.shares_memory(part.columns["number"], batch.columns["number"])
    deliver(sink, part)
    assert_stored(sink, layout, rows[20:33])


def test_a_request_sent_again_is_folded(sink: QuestdbSink, layout: RecordLayout) -> None:
    """The same request sent three times, and its rows in another batch, are each stored exactly once."""
    rows = list(numbered(500))
    batch = batch_of(layout, rows)
    request = sink.encode(batch)
    receipts = [sink.send(request) for _ in range(3)]
    assert [receipt.transaction for receipt in receipts] == sorted({receipt.transaction for receipt in receipts})
    sink.release(request)
    deliver(sink, batch.take(100, 200))
    assert_stored(sink, layout, rows)


def test_two_requests_are_held_and_their_memory_is_used_again(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Two requests encoded before the first is sent keep their own rows; a released one's memory serves the third."""
    rows = list(numbered(30))
    batch = batch_of(layout, rows)
    first, second = sink.encode(batch.take(0, 10)), sink.encode(batch.take(10, 20))
    memory = first.body
    sink.send(first)
    sink.release(first)
    third = sink.encode(batch.take(20, 30))
    assert third.body is memory
    sink.send(second)
    sink.release(second)
    sink.send(third)
    sink.release(third)
    deliver(sink, batch.take(0, 1))
    assert_stored(sink, layout, rows)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
generated_rows = st.lists(
    st.fixed_dictionaries(
        {
            "symbol": st.none() | texts,
            "choice": st.sampled_from(["left", "right"]),
            "text": st.none() | texts,
            "document": st.none() | texts,
            "number": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "whole": st.none() | st.integers(INT64_MIN + 1, INT64_MAX),
            "flag": st.booleans(),
            "timestamp": st.integers(946_684_800_000_000, EPOCH_2026_US * 2),
        }
    ),
    min_size=1,
    max_size=60,
)
lanes = iter(range(1, 1_000_000))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=generated_rows)
def test_any_rows_arrive_unchanged(sink: QuestdbSink, layout: RecordLayout, rows: list[dict[str, Any]]) -> None:
    """Whatever rows our own validation lets through are in the table as they were given (Hypothesis)."""
    lane = next(lanes)
    deliver(sink, batch_of(layout, rows, lane=lane))
    found = [row for row in stored(sink, layout) if row["lane"] == lane]
    assert [row["seq"] for row in found] == list(range(len(rows)))
    for got, wanted in zip(found, rows, strict=True):
        assert all(same(got[name], value) for name, value in wanted.items()), (got, wanted)
    assert not any(math.isnan(row["number"]) for row in found if row["number"] is not None)
