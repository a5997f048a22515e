"""Slots to columns, by both decoders: what append wrote is read back, what it could not have written is set aside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ring_memory import RINGS, Everything, RingUnderTest, module

import ringlog.decode
from ringlog.columns import Column, SymbolColumn, TextColumn
from ringlog.decode import Decoder, Slots
from ringlog.layout import TAIL_OFFSET
from ringlog.records import Kind, layout_of

STAMP = 1_767_225_600_000_000
LAYOUT = layout_of(Everything)
LANE = 2**62 + 12345


@pytest.fixture(params=RINGS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A decoder of each implementation."""
    return decoder_of(request.param, monkeypatch)


def decoder_of(ring: str, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """The decoder that goes with a ring implementation."""
    module(ring.replace("_ring", "_decode"))
    monkeypatch.setattr(ringlog.decode, "IMPLEMENTATION", "python" if ring.endswith("python") else "c")
    return Decoder(LAYOUT)


def listed(column: Column) -> list[Any]:
    """A column as Python values, None for NULL."""
    if isinstance(column, SymbolColumn):
        return [None if code < 0 else column.values[code] for code in column.codes.tolist()]
    if isinstance(column, TextColumn):
        data, offsets = column.data.tobytes(), column.offsets.tolist()
        valid = [True] * (len(offsets) - 1) if column.valid is None else column.valid.tolist()
        return [
            data[start:end].decode() if is_valid else None
            for start, end, is_valid in zip(offsets[:-1], offsets[1:], valid, strict=True)
        ]
    if column.dtype == np.float64:
        return [None if np.isnan(value) else value for value in column.tolist()]
    return [None if value == -(2**63) else value for value in column.tolist()]


def rows_in(columns: dict[str, Column]) -> list[tuple[Any, ...]]:
    return list(zip(*(listed(columns[field.name]) for field in LAYOUT.fields), strict=True))


ROWS = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
    st.sampled_from(["left", "right"]),
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    st.none() | st.sampled_from(["{}", "[1]"]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
    st.sampled_from([50, 95, 99]),
    st.booleans(),
    st.integers(946_684_800_000_000, STAMP),
)


@pytest.mark.parametrize("ring", ["_ring", "_ring_python"])
@given(batches=st.lists(st.lists(ROWS, max_size=20), max_size=4))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_appended_is_read_back(
    ring: str, batches: list[list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any records that append accepts come back from the drain, value for value, batch after batch."""
    decoder = decoder_of(ring, monkeypatch)
    under_test = RingUnderTest(module(ring), capacity=32)
    for rows in batches:
        first = under_test.lane.head
        for row in rows:
            assert under_test.append(*row[:-1], timestamp=row[-1])
        slots = under_test.lane.slots(first, len(rows))
        columns, sound, corrupt = decoder.decode([Slots(LANE, first, len(rows), slots.view(np.uint8))])
        assert rows_in(columns) == rows
        assert corrupt == []
        assert sum(run.rows for run in sound) == len(rows)
        assert listed(columns["lane"]) == [LANE] * len(rows)
        assert listed(columns["seq"]) == list(range(first, first + len(rows)))
        under_test.lane.set_word(TAIL_OFFSET, under_test.lane.head)


def sound_slots(rows: int) -> np.ndarray[Any, Any]:
    """Slots as a ring writes them, seq from 0."""
    ring = RingUnderTest(module("_ring_python"), capacity=64)
    for number in range(rows):
        assert ring.append(f"s{number % 3}", "left", f"text {number}", None, float(number), timestamp=STAMP + number)
    return ring.lane.slots(0, rows).copy()


CORRUPTIONS: list[Any] = [
    pytest.param({"seq": 99}, id="seq of another lap"),
    pytest.param({"timestamp": 0}, id="timestamp 0"),
    pytest.param({"timestamp": -1}, id="negative timestamp"),
    pytest.param({"timestamp": STAMP * 1000}, id="nanoseconds"),
    pytest.param({"number": np.nan}, id="NaN that cannot be NULL"),
    pytest.param({"number": np.inf}, id="infinity"),
    pytest.param({"share": 1.5}, id="above the maximum"),
    pytest.param({"flag": 2}, id="flag of 2"),
    pytest.param({"percent": -(2**63)}, id="NULL that cannot be"),
    pytest.param({"symbol": (0xFFFF, b"")}, id="NULL symbol that cannot be"),
    pytest.param({"symbol": (13, b"s" * 12)}, id="symbol too long"),
    pytest.param({"text": (41, b"t" * 40)}, id="text too long"),
    pytest.param({"text": (3, b"a\0b")}, id="NUL in a text"),
    pytest.param({"text": (2, b"\xff\xfe")}, id="text that is not UTF-8"),
    pytest.param({"symbol": (2, b"\xc3\x28")}, id="symbol that is not UTF-8"),
    pytest.param({"symbol": (3, b"\xed\xa0\x80")}, id="surrogate in a symbol"),
    pytest.param({"document": (1, b"\0")}, id="NUL alone"),
]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("place", [0, 4, 9])
def test_18_a_corrupt_slot_is_set_aside(decoder: Decoder, corruption: dict[str, Any], place: int) -> None:
    """A slot that append could not have written is in no column, is kept with its bytes, and costs no other row.

    Defence: a slot is looked at before it is believed.
    """
    slots = sound_slots(10)
    for name, value in corruption.items():
        slots[name][place] = value
    columns, sound, corrupt = decoder.decode([Slots(LANE, 0, 10, slots.view(np.uint8))])
    assert [(bad.lane, bad.seq, bad.slot) for bad in corrupt] == [(LANE, place, slots[place].tobytes())]
    kept = [row for row in range(10) if row != place]
    assert listed(columns["number"]) == [float(row) for row in kept]
    assert listed(columns["text"]) == [f"text {row}" for row in kept]
    assert listed(columns["symbol"]) == [f"s{row % 3}" for row in kept]
    assert listed(columns["seq"]) == kept
    assert [(run.first_seq, run.rows) for run in sound if run.rows] == [
        run for run in [(0, place), (place + 1, 9 - place)] if run[1]
    ]


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_decoders_judge_garbage_alike(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots with any bytes changed: both decoders set the same slots aside and read the same values from the rest."""
    decoders = [decoder_of(name, monkeypatch) for name in ("_ring", "_ring_python")]
    rows = 6
    memory = bytearray(sound_slots(rows).tobytes())
    # Aim at what is looked at: lengths, numbers and the first bytes of texts.
    spots = [0, 8, *(field.offset + shift for field in LAYOUT.fields for shift in (0, 1, 2, 3, 7))]
    for _ in range(data.draw(st.integers(1, 4))):
        row, spot = data.draw(st.integers(0, rows - 1)), data.draw(st.sampled_from(spots))
        memory[row * LAYOUT.slot_bytes + spot] = data.draw(st.integers(0, 255))
    results = []
    for decoder in decoders:
        columns, sound, corrupt = decoder.decode([Slots(LANE, 0, rows, memory)])
        spans = [(run.first_seq, run.rows) for run in sound]
        results.append((repr(rows_in(columns)), listed(columns["seq"]), spans, corrupt))
    assert results[0] == results[1]


def test_several_runs_make_one_batch(decoder: Decoder) -> None:
    """Runs of several lanes come out one after the other, each row with its lane and seq."""
    slots = sound_slots(10)
    memory = slots.view(np.uint8)
    half = 5 * LAYOUT.slot_bytes
    columns, sound, _ = decoder.decode(
        [Slots(1, 5, 5, memory[half:]), Slots(2, 0, 5, memory[:half]), Slots(3, 0, 0, b"")]
    )
    assert listed(columns["lane"]) == [1] * 5 + [2] * 5
    assert listed(columns["seq"]) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert listed(columns["number"]) == [5.0, 6.0, 7.0, 8.0, 9.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert [(run.lane, run.rows) for run in sound] == [(1, 5), (2, 5)]


def test_a_batch_of_nothing_but_corrupt_slots(decoder: Decoder) -> None:
    """Where no slot is sound every column is empty and every slot is reported."""
    columns, sound, corrupt = decoder.decode([Slots(LANE, 100, 10, sound_slots(10).view(np.uint8))])
    assert [listed(column) for column in columns.values()] == [[]] * len(columns)
    assert sound == []
    assert [bad.seq for bad in corrupt] == list(range(100, 110))


def test_symbols_keep_their_codes(decoder: Decoder) -> None:
    """A symbol seen in one drain has the same code in the next; the list of symbols only grows."""
    first, _, _ = decoder.decode([Slots(LANE, 0, 10, sound_slots(10).view(np.uint8))])
    again, _, _ = decoder.decode([Slots(LANE, 0, 10, sound_slots(10).view(np.uint8))])
    left, right = first["symbol"], again["symbol"]
    assert isinstance(left, SymbolColumn)
    assert isinstance(right, SymbolColumn)
    assert left.codes.tolist() == right.codes.tolist()
    assert left.values == right.values == ["s0", "s1", "s2"]


def test_symbols_that_never_repeat_are_bounded(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol field with ever new texts starts its dictionary anew instead of growing without end."""
    monkeypatch.setattr(ringlog.decode, "SYMBOLS_MAX", 100)
    slots = sound_slots(50)
    for round_ in range(10):
        for row in range(50):
            text = f"{round_}.{row}".encode()
            slots["symbol"][row] = (len(text), text)
        columns, _, _ = decoder.decode([Slots(LANE, 0, 50, slots.view(np.uint8))])
        symbols = columns["symbol"]
        assert isinstance(symbols, SymbolColumn)
        assert listed(symbols) == [f"{round_}.{row}" for row in range(50)]
        assert len(symbols.values) <= 150


@pytest.mark.parametrize("name", ["_decode"])
def test_the_native_decoder_checks_its_room(name: str) -> None:
    """Outputs, slots or fields that do not fit raise instead of writing past the end."""
    native = module(name)
    fields = tuple(
        (int(f.kind), f.offset, f.width_bytes, f.nullable)
        + ((f.minimum, f.maximum) if f.kind in (Kind.DOUBLE, Kind.LONG) else (0, 0))
        for f in LAYOUT.fields
    )
    decoder = native.Decoder(fields, LAYOUT.slot_bytes)
    slots = sound_slots(4).view(np.uint8)
    room = tuple(ringlog.decode._room(f.kind, f.width_bytes, 2) for f in LAYOUT.fields)
    with pytest.raises(ValueError, match="too little room"):
        decoder.decode(slots, 4, 0, room, 0)
    with pytest.raises(ValueError, match="too little room"):
        decoder.decode(slots, 4, 0, room, 1 << 30)
    with pytest.raises(ValueError, match="slots: got"):
        decoder.decode(slots, 3, 0, room, 0)
    with pytest.raises(ValueError, match="outputs: got"):
        decoder.decode(slots, 4, 0, room[1:], 0)
    with pytest.raises(ValueError, match="no symbol"):
        decoder.values(len(fields) - 1)
    for wrong in ((int(Kind.LONG), LAYOUT.slot_bytes - 4, 8, False, 0, 1), (99, 8, 8, False, 0, 0)):
        with pytest.raises(ValueError, match="a kind or place"):
            native.Decoder((wrong,), LAYOUT.slot_bytes)
