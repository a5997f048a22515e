"""What a ring is made of is checked before it is believed: an append writes to memory by it, without another look."""

from __future__ import annotations

import mmap
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ring_memory import RINGS, SLOTS_AT, WORDS, Everything, RingUnderTest, descriptions, module

from ringlog.layout import HEAD_OFFSET, REASONS_MAX, REFUSED_OFFSET, REFUSED_WORDS, STATE_OFFSET, TAIL_OFFSET, Refused
from ringlog.records import layout_of

NUMBER = ("x", 1, 16, 8, False, -1.0, 1.0, ())
TEXT = ("t", 5, 24, 14, False, 0, 0, ())
TIME = ("timestamp", 0, 8, 8, False, 0, 0, ())


def changed(field: tuple[Any, ...], **values: Any) -> tuple[Any, ...]:
    """A description with some of its parts changed."""
    names = ("name", "kind", "offset", "width", "nullable", "minimum", "maximum", "choices")
    return tuple(values.get(name, value) for name, value in zip(names, field, strict=True))


@pytest.fixture(params=RINGS)
def implementation(request: pytest.FixtureRequest) -> ModuleType:
    """The C ring, then the Python ring."""
    return module(request.param)


def made(implementation: ModuleType, fields: Any, slot_bytes: Any = 64, reasons: Any = REFUSED_WORDS) -> Any:
    return implementation.Ring(fields, slot_bytes, reasons, lambda *args: args[-1], lambda: Refused.CLOSED)


@pytest.mark.parametrize(
    ("fields", "slot_bytes", "words"),
    [
        ((("x", 1, 63, 1, False, -1.0, 1.0, ()), TIME), 64, "field 0: got kind 1 of 1 bytes at byte 63"),
        ((changed(NUMBER, width=1), TIME), 64, "field 0: got kind 1 of 1 bytes at byte 16"),
        ((changed(NUMBER, width=16), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=0), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=-8), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=57), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=17), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=64), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=2**32 + 16), TIME), 64, "field 0"),
        ((changed(NUMBER, offset=2**64 + 16), TIME), 64, "field 0"),
        ((changed(NUMBER, kind=7), TIME), 64, "field 0: got kind 7"),
        ((changed(NUMBER, kind=-1), TIME), 64, "field 0: got kind -1"),
        ((changed(NUMBER, kind=257), TIME), 64, "field 0: got kind 257"),
        ((changed(NUMBER, kind=3), TIME), 64, "field 0: got kind 3 of 8 bytes"),
        ((changed(TEXT, width=0), TIME), 64, "field 0"),
        ((changed(TEXT, width=-5), TIME), 64, "field 0"),
        ((changed(TEXT, width=39), TIME), 64, "field 0"),
        ((changed(TEXT, width=32_769), TIME), 1 << 20, "field 0"),
        ((changed(TEXT, width=0xFFFF), TIME), 1 << 20, "field 0"),
        ((changed(TEXT, width=2**32 - 1), TIME), 64, "field 0"),
        ((changed(TEXT, width=2**63 - 1), TIME), 64, "field 0"),
        ((changed(TEXT, offset=25), TIME), 64, "field 0"),
        (
            (NUMBER, changed(NUMBER, name="y"), TIME),
            64,
            "field 1: got bytes 16 to 24 of a slot, wanted none of those of field 0",
        ),
        ((changed(TEXT, offset=16), changed(NUMBER, offset=24), TIME), 64, "field 1: got bytes 24 to 32"),
        ((NUMBER, changed(TEXT, name="x"), TIME), 64, "field 1: got name 'x'"),
        ((changed(NUMBER, offset=8), TIME), 64, "field 1: got bytes 8 to 16"),
        ((TIME, NUMBER), 64, "wanted one time, the last of them"),
        ((NUMBER, TEXT), 64, "wanted one time, the last of them"),
        ((NUMBER,), 64, "fields: got 1, wanted 2 to 64"),
        ((NUMBER,) * 65, 64, "fields: got 65, wanted 2 to 64"),
        ((NUMBER, TIME), 0, "slot_bytes: got 0"),
        ((NUMBER, TIME), 23, "slot_bytes: got 23"),
        ((NUMBER, TIME), 65, "slot_bytes: got 65"),
        ((NUMBER, TIME), 16, "field 0"),
        ((NUMBER, TIME), -64, "slot_bytes: got -64"),
        ((NUMBER, TIME), 2**21, "slot_bytes: got 2097152"),
    ],
)
def test_a_ring_of_what_cannot_be(implementation: ModuleType, fields: Any, slot_bytes: int, words: str) -> None:
    """Finding 49: kinds, widths, places, overlaps and sizes that no layout has raise ValueError, in the same words."""
    with pytest.raises(ValueError, match=words):
        made(implementation, fields, slot_bytes)


@pytest.mark.parametrize(
    "fields",
    [
        [NUMBER, TIME],
        (NUMBER[:7], TIME),
        ((*NUMBER, 1), TIME),
        (list(NUMBER), TIME),
        (None, TIME),
        (changed(NUMBER, name=5), TIME),
        (changed(NUMBER, name=None), TIME),
        (changed(NUMBER, kind="1"), TIME),
        (changed(NUMBER, offset=16.0), TIME),
        (changed(NUMBER, width=None), TIME),
        (changed(NUMBER, minimum="low"), TIME),
        (changed(TEXT, choices=("a", 5)), TIME),
        (changed(NUMBER, kind=2, minimum=0, maximum=9, choices=("a",)), TIME),
        (changed(NUMBER, choices=["a"]), TIME),
    ],
)
def test_a_ring_of_other_things(implementation: ModuleType, fields: Any) -> None:
    """Finding 49: what is no description of a field raises TypeError (or ValueError), never SystemError."""
    with pytest.raises((TypeError, ValueError)):
        made(implementation, fields)


@pytest.mark.parametrize("reasons", [0, int(Refused.INVALID), REASONS_MAX + 1, -1, 2**70])
def test_words_for_reasons(implementation: ModuleType, reasons: int) -> None:
    """A ring counts at least the reasons that it gives itself, and no more than a segment has words for."""
    with pytest.raises(ValueError, match="reasons: got"):
        made(implementation, (NUMBER, TIME), reasons=reasons)
    assert REFUSED_WORDS <= REASONS_MAX
    for known in (REFUSED_WORDS, REASONS_MAX):
        assert made(implementation, (NUMBER, TIME), reasons=known).refused() == (0,) * known


def test_the_smallest_rings(implementation: ModuleType) -> None:
    """What a layout may be at the least is taken: fields that fill the slot to its last byte, and booleans anywhere."""
    flag = ("flag", 3, 23, 1, False, 0, 0, ())
    made(implementation, (flag, TIME), 24)
    made(implementation, (NUMBER, changed(TEXT, width=6), TIME), 32)
    made(implementation, descriptions(layout_of(Everything)), layout_of(Everything).slot_bytes)


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_construction_is_judged_alike(data: st.DataObject) -> None:
    """Whatever numbers a ring is made of, both implementations take it, or refuse it with the same words."""
    numbers = st.sampled_from(
        [-(2**70), -8, -1, 0, 1, 2, 3, 7, 8, 15, 16, 17, 24, 32, 40, 63, 64, 65, 2**32 + 8, 2**70]
    )
    fields = tuple(
        (f"f{index}", *data.draw(st.tuples(st.integers(-1, 8), numbers, numbers)), False, 0, 1, ())
        for index in range(data.draw(st.integers(1, 3)))
    )
    slot_bytes = data.draw(st.sampled_from([16, 24, 32, 64, 128]))
    answers = []
    for name in ("_ring", "_ring_python"):
        try:
            made(module(name), (*fields, TIME), slot_bytes)
            answers.append("taken")
        except ValueError as error:
            # A number that no int64 holds is -1 in C.
            answers.append(str(error) if "2**70" not in repr(fields) else "refused")
    assert (answers[0] == "taken") == (answers[1] == "taken")
    if not any(abs(number) > 2**62 for field in fields for number in field[1:4]):
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("slots_at", "capacity", "words"),
    [
        (-SLOTS_AT, 8, WORDS),
        (-8, 8, WORDS),
        (SLOTS_AT + 4, 4, WORDS),
        (SLOTS_AT, -8, WORDS),
        (SLOTS_AT, 2**62, WORDS),
        (SLOTS_AT, 2**64 + 8, WORDS),
        (2**64 + SLOTS_AT, 8, WORDS),
        (SLOTS_AT, 8, (-8, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, 128)),
        (SLOTS_AT, 8, (2**32 + STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, -128, TAIL_OFFSET, REFUSED_OFFSET, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, -8 * REFUSED_WORDS, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, SLOTS_AT - 8 * (REFUSED_WORDS - 1), 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET + 1, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, -8)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, 2**32 + 128)),
    ],
)
def test_a_lane_that_cannot_be(implementation: ModuleType, slots_at: int, capacity: int, words: Any) -> None:
    """Finding 49: negative, unaligned or wrapping places raise ValueError; not a byte is written, the ring detached."""
    ring = RingUnderTest(implementation)
    memory, board = mmap.mmap(-1, SLOTS_AT + 8 * ring.layout.slot_bytes), mmap.mmap(-1, 4096)
    with pytest.raises(ValueError, match="memory: got"):
        ring.ring.attach(memory, board, slots_at, capacity, words)
    assert bytes(memory) == bytes(len(memory))
    assert ring.ring.attached is False


def test_memory_shorter_than_its_slots(implementation: ModuleType) -> None:
    """Finding 49: memory one byte short of its slots, or a board short of its word, is refused."""
    ring = RingUnderTest(implementation)
    whole = SLOTS_AT + 8 * ring.layout.slot_bytes
    for memory, board in ((bytearray(whole - 1), bytearray(4096)), (bytearray(whole), bytearray(135))):
        with pytest.raises(ValueError, match="memory: got"):
            ring.ring.attach(memory, board, SLOTS_AT, 8, WORDS)
    ring.ring.attach(bytearray(whole), bytearray(140), SLOTS_AT, 8, WORDS)
    assert ring.append("s", "left", number=1.0)


@pytest.mark.parametrize(("reason", "rows"), [(-1, 1), (REFUSED_WORDS, 1), (0, -1), (2**70, 1)])
def test_refusals_that_cannot_be(implementation: ModuleType, reason: int, rows: int) -> None:
    """A reason without a word is refused, and nothing is counted."""
    ring = RingUnderTest(implementation)
    with pytest.raises(ValueError, match="refuse: got"):
        ring.ring.refuse(reason, rows)
    assert not any(ring.ring.refused())
