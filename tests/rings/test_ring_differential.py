"""The same calls to the C ring, the Python ring and its plain appends: the same bytes, results, counts and errors."""

from __future__ import annotations

import datetime
import enum
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ring_memory import Everything, Lane, RingUnderTest, module, plain

from ringlog.errors import RecordError
from ringlog.layout import REFUSED_WORDS, STATE_OFFSET, TAIL_OFFSET, Refused
from ringlog.records import layout_of

STAMP = 1_767_225_600_000_000
NAMES_OF_RINGS = ("_ring", "_ring_python", "plain")
Rings = tuple[RingUnderTest, ...]
NAMES = tuple(field.name for field in layout_of(Everything).fields)


class Text(str):
    """A subclass of str."""

    __slots__ = ()


class Whole(enum.IntEnum):
    """A subclass of int."""

    SMALL = 7
    PERCENT = 95


class Number(float):
    """A subclass of float."""


# What callers pass, right and wrong alike: every field is given values meant for others, too.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 50, 95, 99, 2**63 - 1, 2**63, -(2**63), -(2**63) + 1, 10**400, STAMP, STAMP * 1000]),
    st.floats(),
    st.text(max_size=60),
    st.sampled_from(["left", "right", "", "s" * 12, "s" * 13, "ä" * 6, "ä" * 7, "\0", "a\0", "\ud800", "x" * 40]),
    st.sampled_from([Text("left"), Text("ä\ud800"), Whole.SMALL, Whole.PERCENT, Number("nan"), Number(0.5)]),
    st.sampled_from(
        [np.float64(1.5), np.float32("inf"), np.int64(7), np.uint64(2**64 - 1), np.bool_(True), np.str_("left"),
         np.timedelta64(5, "s"), np.datetime64("2026-01-01"), np.array([1]), np.float16(0.5)]
    ),
    st.dictionaries(st.text(max_size=3), st.none() | st.floats() | st.integers() | st.text(max_size=3), max_size=4),
    st.sampled_from([[], [1, None], [math.inf], (1,), {1, 2}, b"bytes", object, 1j, {"a": object()}, {(): 1}]),
    st.datetimes(timezones=st.one_of(st.none(), st.just(datetime.UTC))),
)  # fmt: skip
GOOD = {
    "symbol": "s",
    "choice": "left",
    "text": None,
    "document": None,
    "number": 1.0,
    "share": 0.5,
    "whole": 7,
    "percent": 95,
    "flag": True,
    "timestamp": STAMP,
}


def outcome(call: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or the type and words of what it raises."""
    try:
        return call(*args, **kwargs)
    except RecordError as error:
        words = str(error)
        return type(error).__name__, words[: words.find("0x")] if "0x" in words else words


@pytest.fixture(scope="module")
def rings() -> Rings:
    """A C ring, a Python ring and one with plain appends, alike."""
    return tuple(RingUnderTest(module(name)) for name in NAMES_OF_RINGS)


def assert_alike(rings: Rings) -> None:
    """Heads, counts, and the meaning of every slot that is not given back agree."""
    native, *others = rings
    tail = native.lane.word(TAIL_OFFSET)
    held = native.lane.slots(tail, native.lane.head - tail)
    for other in others:
        assert native.lane.head == other.lane.head
        assert native.ring.refused() == other.ring.refused()
        assert native.ring.last_refused == other.ring.last_refused
        for left, right in zip(held, other.lane.slots(tail, len(held)), strict=True):
            assert plain(native.layout, left) == plain(other.layout, right)


def empty(rings: Rings) -> None:
    for ring in rings:
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)


@given(name=st.sampled_from(NAMES[:-1]), value=VALUES)
@settings(max_examples=800, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field(rings: Rings, name: str, value: Any) -> None:
    """Whatever is passed for a field, both rings store the same or say the same."""
    empty(rings)
    row = {**GOOD, name: value}
    by_name = [outcome(ring.append, **row) for ring in rings]
    assert by_name == by_name[:1] * len(rings)
    *fields, stamp = row.values()
    by_place = [outcome(ring.append, *fields, timestamp=stamp) for ring in rings]
    assert by_place == by_name
    assert_alike(rings)


@given(value=VALUES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_timestamp(rings: Rings, value: Any) -> None:
    """Whatever is passed as timestamp, both rings store the same or say the same (None is each one's own clock)."""
    empty(rings)
    results = [outcome(ring.append, **{**GOOD, "timestamp": value}) for ring in rings]
    assert results == results[:1] * len(rings)
    if value is not None:
        assert_alike(rings)


@given(
    places=st.integers(0, 11),
    names=st.lists(st.sampled_from([*NAMES, "price", "Symbol", ""]), unique=True, max_size=12),
    presets=st.lists(st.sampled_from(NAMES[:-1]), unique=True, max_size=9),
)
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments(rings: Rings, places: int, names: list[str], presets: list[str]) -> None:
    """Whatever is passed by place, by name and as presets, both rings store the same or say the same."""
    empty(rings)
    bound = [ring.bind(**{name: GOOD[name] for name in presets}) for ring in rings]
    varying = [name for name in NAMES if name not in presets]
    values = [GOOD[name] for name in varying][:places]
    values += [1] * (places - len(values))
    named = {name: GOOD.get(name, 1) for name in names}
    named["timestamp"] = STAMP  # else each ring would stamp its own
    results = [outcome(append, *values, **named) for append in bound]
    assert results == results[:1] * len(rings)
    assert_alike(rings)


@given(name=st.sampled_from(NAMES[:-1]), value=VALUES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_preset(rings: Rings, name: str, value: Any) -> None:
    """A preset is checked when it is bound, in the same words as in an append, and written in the same bytes."""
    empty(rings)
    rest = {**GOOD}
    del rest[name]
    results = []
    for ring in rings:
        try:
            append = ring.bind(**{name: value})
        except RecordError as error:
            results.append((type(error).__name__, str(error)[:60]))
        else:
            results.append((append(**rest), ""))
    assert results == results[:1] * len(rings)
    assert_alike(rings)


class BothRings(RuleBasedStateMachine):
    """A C ring and the Python rings go through the same life, beside a model that is a list."""

    @initialize(power=st.integers(0, 4))
    def start(self, power: int) -> None:
        self.capacity = 1 << power
        self.rings = [RingUnderTest(module(name), capacity=self.capacity) for name in NAMES_OF_RINGS]
        self.model: list[float] = []  # what the present lane accepted
        self.tail = 0
        self.serial = 0
        self.refused = [0] * REFUSED_WORDS
        self.attached = True
        self.retired = False
        self.refusing = False
        self.last = -1

    def count(self, reason: Refused, rows: int) -> None:
        self.refused[reason] += rows
        self.last = int(reason)

    def wanted(self, rows: int) -> int:
        """How many of `rows` the model accepts; counts the others."""
        if not self.attached or self.retired:
            self.count(Refused.CLOSED, rows)
            return 0
        if self.refusing:
            self.count(Refused.BOARD, rows)
            return 0
        accepted = min(rows, self.capacity - (len(self.model) - self.tail))
        if accepted < rows:
            self.count(Refused.FULL, rows - accepted)
        return accepted

    @rule()
    def append(self) -> None:
        self.serial += 1
        accepted = self.wanted(1)
        for ring in self.rings:
            assert ring.append("s", "left", number=float(self.serial), timestamp=STAMP) is bool(accepted)
        self.model += [float(self.serial)] * accepted

    @rule(rows=st.integers(1, 20))
    def append_many(self, rows: int) -> None:
        array = np.zeros(rows, layout_of(Everything).dtype)
        array["symbol"]["length"] = 1
        array["symbol"]["bytes"] = b"s"
        array["choice"]["length"] = 4
        array["choice"]["bytes"] = b"left"
        array["timestamp"] = STAMP
        array["number"] = np.arange(self.serial + 1, self.serial + rows + 1)
        self.serial += rows
        accepted = self.wanted(rows)
        for ring in self.rings:
            assert ring.ring.append_many(array.view(np.uint8), rows) == accepted
        self.model += array["number"][:accepted].tolist()

    @rule()
    def append_wrong(self) -> None:
        lane_usable = self.attached and not self.retired and not self.refusing
        free = self.capacity - (len(self.model) - self.tail)
        for ring in self.rings:
            if lane_usable and free:
                with pytest.raises(RecordError):
                    ring.append("s", "left", number=math.nan)
            else:
                assert ring.append("s", "left", number=math.nan) is False
        if lane_usable and free:
            self.count(Refused.INVALID, 1)
        else:
            self.wanted(1)

    @precondition(lambda self: self.attached)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        self.tail = data.draw(st.integers(self.tail, len(self.model)))
        for ring in self.rings:
            ring.lane.set_word(TAIL_OFFSET, self.tail)

    @precondition(lambda self: self.attached)
    @rule(reason=st.integers(0, 2))
    def board(self, reason: int) -> None:
        self.refusing = reason > 0
        for ring in self.rings:
            ring.lane.refuse(reason)

    @precondition(lambda self: self.attached)
    @rule(state=st.sampled_from([1, 2]))
    def retire(self, state: int) -> None:
        self.retired = True
        for ring in self.rings:
            ring.lane.set_word(STATE_OFFSET, state)

    @rule()
    def detach(self) -> None:
        self.attached = False
        for ring in self.rings:
            ring.ring.detach()

    @rule()
    def attach_anew(self) -> None:
        for ring in self.rings:
            ring.attach(Lane(ring.layout, self.capacity))
        self.attached, self.retired, self.refusing = True, False, False
        self.model, self.tail = [], 0

    @invariant()
    def agree(self) -> None:
        """Heads, slots that are not given back, counts and the latest reason are the model's, in both rings."""
        if not hasattr(self, "rings"):
            return
        for ring in self.rings:
            assert ring.ring.attached is self.attached
            assert ring.ring.refused() == tuple(self.refused)
            assert ring.ring.last_refused == self.last
            if self.attached:
                assert ring.lane.head == len(self.model) == ring.ring.head
                held = ring.lane.slots(self.tail, len(self.model) - self.tail)
                assert held["number"].tolist() == self.model[self.tail :]
                assert held["seq"].tolist() == list(range(self.tail, len(self.model)))


def test_both_rings_follow_the_model() -> None:
    """Through appends, drains, full rings, wraps, boards, retirements and new lanes, both rings do what a list does."""
    module("_ring")
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        BothRings, settings=settings(max_examples=150, stateful_step_count=40)
    )  # fmt: skip
