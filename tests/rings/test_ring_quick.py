"""The Python ring's generated append: when it runs, what it leaves to the plain one, and what it must not do."""

from __future__ import annotations

import datetime
import mmap
import threading
import time
from typing import Annotated, Any

import numpy as np
import pytest
from ring_memory import SLOTS_AT, WORDS, Everything, Lane, RingUnderTest, descriptions, module, plain, refusals
from test_ring_fork import in_a_forked_child

from ringlog import _ring_append, _ring_python
from ringlog.errors import RecordValueError
from ringlog.layout import REFUSED_WORDS, TAIL_OFFSET, Refused
from ringlog.records import Record, Symbol, Varchar, layout_of

STAMP = 1_767_225_600_000_000
ROW = ("sol", "left", "text", '{"a":1}', 1.5, 0.25, 7, 95, True)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> RingUnderTest:
    """A Python ring, which notes in `left` what its generated append leaves to the plain one."""
    left: list[tuple[Any, ...]] = []
    reference = _ring_python.PlainAppender.append

    def append(self: Any, *args: Any, **kwargs: Any) -> bool:
        left.append(args)
        return reference(self, *args, **kwargs)

    monkeypatch.setattr(_ring_python.PlainAppender, "append", append)
    made = RingUnderTest(module("_ring_python"))
    made.left = left  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timestamp": STAMP},
        {"timestamp": None},
        {"timestamp": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)},
        {"document": {"route": "a"}},
        {"document": None, "text": None, "share": None, "whole": None},
        {"number": 1},
        {"number": np.float64(1.5), "share": np.float32(0.5), "whole": np.int64(7), "flag": np.bool_(True)},
        {"symbol": np.str_("sol"), "text": np.str_("text")},
        {"symbol": "ä" * 6, "text": "ä" * 20},
    ],
)
def test_what_can_be_made_exact_needs_no_plain_append(ring: Any, changes: dict[str, Any]) -> None:
    """Finding 45: exact values, NULLs, numpy scalars, dicts and datetimes take the quick way, by place and by name."""
    names = [field.name for field in ring.layout.fields[:-1]]
    row = {**dict(zip(names, ROW, strict=True)), **changes}
    stamp = {name: row.pop(name) for name in ("timestamp",) if name in row}
    assert ring.append(*row.values(), **stamp)
    assert ring.append(**row, **stamp)
    bound = ring.bind(symbol=row["symbol"], text=row["text"], flag=True)
    assert bound(**{name: row[name] for name in names if name not in ("symbol", "text", "flag")}, **stamp)
    assert ring.left == []
    first, *others = (plain(ring.layout, row) for row in ring.lane.slots(0, 3))
    for other in others:
        assert {**other, "seq": 0, "timestamp": first["timestamp"], "flag": first["flag"]} == first


def test_what_is_left_to_the_plain_append(ring: Any) -> None:
    """Wrong input, a full lane, one that is gone: the plain append starts anew, counts and raises."""
    with pytest.raises(RecordValueError, match=r"Everything\.choice: got 'middle'"):
        ring.append("sol", "middle", number=1.0)
    assert len(ring.left) == 1
    assert [ring.append(*ROW) for _ in range(10)] == [True] * 8 + [False] * 2
    assert len(ring.left) == 3
    ring.lane.set_word(TAIL_OFFSET, 8)
    assert [ring.append(*ROW) for _ in range(8)] == [True] * 8  # the first of them reads the new tail
    assert len(ring.left) == 4
    ring.ring.detach()
    assert ring.append(*ROW) is False
    assert ring.ring.refused() == refusals(invalid=1, full=2, closed=1)


def test_symbols_are_kept_within_bounds() -> None:
    """A field whose symbols never repeat keeps a bounded number of them, and each record has its own."""
    symbols = _ring_append.Symbols(12)
    for number in range(3 * _ring_append.SYMBOLS_KEPT_MAX):
        text = f"s{number}"
        assert symbols(text) == len(text).to_bytes(2, "little") + text.encode()
        assert len(symbols.kept) <= _ring_append.SYMBOLS_KEPT_MAX + 1
    for wrong in ("x" * 13, "a\0"):
        with pytest.raises(KeyError):
            symbols(wrong)


class WideTexts(Record):
    """Texts that are packed and texts that are copied, with and without NULL."""

    __table__ = "wide_texts"
    narrow: Annotated[str, Varchar(512)]
    wide: Annotated[str | None, Varchar(513)] = None
    symbol: Annotated[str | None, Symbol(2000)] = None


@pytest.mark.parametrize("stores_in_order", [True, False])
@pytest.mark.parametrize("preset", [(), ("wide",), ("wide", "symbol"), ("narrow", "wide", "symbol")])
def test_wide_texts(monkeypatch: pytest.MonkeyPatch, preset: tuple[str, ...], stores_in_order: bool) -> None:
    """Wide texts are written as they are, preset or not, with and without fences between the stores."""
    monkeypatch.setattr(_ring_append, "STORES_IN_ORDER", stores_in_order)
    ring = RingUnderTest(module("_ring_python"), WideTexts, capacity=2)
    for narrow, wide, symbol in (("n" * 512, "w" * 513, "s" * 2000), ("", "", None), ("é", None, "x"), ("a", "b", "c")):
        values = {"narrow": narrow, "wide": wide, "symbol": symbol}
        append = ring.bind(**{name: values[name] for name in preset})
        assert append(**{name: value for name, value in values.items() if name not in preset}, timestamp=STAMP)
        row = plain(ring.layout, ring.lane.slots(ring.lane.head - 1, 1)[0])
        assert row == {**values, "timestamp": STAMP, "seq": ring.lane.head - 1}
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)


def test_names_of_fields_are_never_run() -> None:
    """Whatever a field is called, in a description that no class can make, its name stays a text in the source."""
    hostile = "'] + [__import__('os').abort()] #\n\"\"\"{x}\\"
    fields = ((hostile, *descriptions(layout_of(Everything))[4][1:]), descriptions(layout_of(Everything))[-1])
    ring = _ring_python.Ring(
        fields, layout_of(Everything).slot_bytes, REFUSED_WORDS, lambda *args: args[-1], lambda: Refused.CLOSED
    )
    lane = Lane(layout_of(Everything), 8)
    ring.attach(lane.memory, lane.board, SLOTS_AT, 8, WORDS)
    append = _ring_python.Appender(_ring_python.Ring, ring, {}, {}).append
    assert append(1.5)
    assert append(**{hostile: 2.5})
    assert lane.slots(0, 2)["number"].tolist() == [1.5, 2.5]


def test_a_forked_child_never_waits_for_its_parents_lock() -> None:
    """A thread of the parent holds the ring as it forks: the child, which attaches a lane of its own, appends."""
    ring = RingUnderTest(module("_ring_python"))
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with ring.ring._lock:
            held.set()
            go_on.wait(60)

    def told() -> list[bool]:
        ring.attach(Lane(ring.layout, 2))
        return [ring.append(*ROW) for _ in range(3)]

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert in_a_forked_child(told) == [True, True, False]
    finally:
        go_on.set()
        thread.join()


def test_the_quick_append_is_quick() -> None:
    """Finding 45: at least four times as cheap as the plain append in one run (measured: 15 to 20 times)."""
    ring = RingUnderTest(module("_ring_python"), capacity=1024)
    reference = _ring_python.PlainAppender(_ring_python.Ring, ring.ring, {}, ring.defaults).append

    def cost(append: Any) -> float:
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
        began = time.perf_counter()
        for _ in range(200):
            append(*ROW)
        return time.perf_counter() - began

    rounds = [(cost(ring.append), cost(reference)) for _ in range(10)]
    assert min(quick for quick, _ in rounds) * 4 < min(slow for _, slow in rounds)


def test_append_many_copies_whole_rows_over_the_end() -> None:
    """An array that goes round the end of the ring is numbered and copied in both parts, of an odd size, too."""
    ring = RingUnderTest(module("_ring_python"), capacity=8)
    for _ in range(6):
        ring.append(*ROW, timestamp=STAMP)
    rows = np.repeat(ring.lane.slots(0, 1), 7)
    rows["whole"] = np.arange(7)
    ring.lane.set_word(TAIL_OFFSET, 5)
    assert ring.ring.append_many(rows.view(np.uint8), 7) == 7
    written = ring.lane.slots(6, 7)
    assert written["seq"].tolist() == list(range(6, 13))
    assert written["whole"].tolist() == list(range(7))
    unaligned = memoryview(mmap.mmap(-1, 2 * ring.layout.slot_bytes + 1))[1:]
    unaligned[:] = rows[:2].tobytes()
    ring.lane.set_word(TAIL_OFFSET, 13)
    assert ring.ring.append_many(unaligned, 2) == 2
    assert ring.lane.slots(13, 2)["whole"].tolist() == [0, 1]
