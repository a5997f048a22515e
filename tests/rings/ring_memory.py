"""A ring of either implementation over plain memory, with a board and the writer's side of it."""

from __future__ import annotations

import importlib
import mmap
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from ringlog import _ring_python
from ringlog.layout import HEAD_OFFSET, REFUSED_OFFSET, REFUSED_WORDS, STATE_OFFSET, TAIL_OFFSET, Refused
from ringlog.records import Double, Json, Kind, Long, Record, RecordLayout, Symbol, Varchar, defaults_of, layout_of
from ringlog.validation import Coercion

SLOTS_AT = 4096
WORDS = (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, 128)


class Everything(Record):
    """One field of every kind, with and without NULL, limits and choices."""

    __table__ = "everything"

    symbol: Annotated[str, Symbol(12)]
    choice: Literal["left", "right"]
    text: Annotated[str | None, Varchar(40)] = None
    document: Annotated[dict[str, Any] | list[Any] | str | None, Json(48)] = None
    number: float
    share: Annotated[float | None, Double(minimum=0.0, maximum=1.0)] = None
    whole: Annotated[int | None, Long()] = None
    percent: Literal[50, 95, 99] = 50
    flag: bool = False


def module(name: str) -> Any:
    """`ringlog._ring` or the like; skips, with the reason, where the C extension was not built.

    `plain` is the Python ring with the appends that its generated ones are compared with.
    """
    if name == "plain":
        return SimpleNamespace(Ring=_ring_python.Ring, Appender=_ring_python.PlainAppender)
    try:
        return importlib.import_module(f"ringlog.{name}")
    except ImportError as error:
        pytest.skip(f"ringlog.{name} was not built here: {error}")


RINGS = [pytest.param("_ring", id="c"), pytest.param("_ring_python", id="python")]


def descriptions(layout: RecordLayout) -> tuple[tuple[Any, ...], ...]:
    """What a ring is made of; see `ringlog.ring.new_ring`."""
    limits = {Kind.DOUBLE, Kind.LONG}
    return tuple(
        (f.name, int(f.kind), f.offset, f.width_bytes, f.nullable)
        + ((f.minimum, f.maximum) if f.kind in limits else (0, 0))
        + (f.choices,)
        for f in layout.fields
    )


class Lane:
    """Memory for `capacity` slots, a board, and the writer's words."""

    def __init__(self, layout: RecordLayout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self.memory = mmap.mmap(-1, SLOTS_AT + capacity * layout.slot_bytes)
        self.board = mmap.mmap(-1, 4096)

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("=Q", self.memory, offset)[0])

    def set_word(self, offset: int, value: int) -> None:
        struct.pack_into("=Q", self.memory, offset, value)

    def refuse(self, reason: int) -> None:
        struct.pack_into("=Q", self.board, 128, reason)

    @property
    def head(self) -> int:
        return self.word(HEAD_OFFSET)

    def slots(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """Slots `first` to `first + count` (by seq) as an array of the layout's dtype."""
        slot_bytes = self.layout.slot_bytes
        taken = b"".join(
            self.memory[at : at + slot_bytes]
            for at in (SLOTS_AT + seq % self.capacity * slot_bytes for seq in range(first, first + count))
        )
        return np.frombuffer(taken, self.layout.dtype, count)


def refusals(**by_reason: int) -> tuple[int, ...]:
    """What a ring's `refused()` gives where these were refused, and nothing else: `refusals(full=2)`."""
    counts = [0] * REFUSED_WORDS
    for name, count in by_reason.items():
        counts[Refused[name.upper()]] = count
    return tuple(counts)


class RingUnderTest:
    """A ring of one implementation with a lane of its own and an appender of every field."""

    def __init__(
        self,
        implementation: Any,
        record_type: type[Record] = Everything,
        capacity: int = 8,
        recover: Callable[[], Any] | None = None,
        invalid: Callable[[Any], Any] | None = None,
    ) -> None:
        self.implementation = implementation
        self.layout = layout_of(record_type)
        self.defaults = defaults_of(record_type)
        self.lane = Lane(self.layout, capacity)
        coerce = Coercion(self.layout, self.defaults)
        self.ring = implementation.Ring(
            descriptions(self.layout),
            self.layout.slot_bytes,
            REFUSED_WORDS,
            coerce,
            recover or (lambda: Refused.CLOSED),
            invalid,
        )
        self.attach(self.lane)
        self.append = self.bind()

    def attach(self, lane: Lane) -> None:
        self.lane = lane
        self.ring.attach(lane.memory, lane.board, SLOTS_AT, lane.capacity, WORDS)

    def bind(self, **presets: Any) -> Callable[..., bool]:
        bound: Callable[..., bool] = self.implementation.Appender(
            self.implementation.Ring, self.ring, presets, self.defaults
        ).append
        return bound


def plain(layout: RecordLayout, slot: Any) -> dict[str, Any]:
    """A slot's meaning: field name to Python value, None for NULL (numbers NaN and the smallest int64 likewise)."""
    values: dict[str, Any] = {"seq": int(slot["seq"])}
    for field in layout.fields:
        value = slot[field.name]
        if field.kind.is_text:
            length = int(value["length"])
            values[field.name] = None if length == 0xFFFF else value["bytes"].tobytes()[:length].decode()
        elif field.kind is Kind.DOUBLE:
            values[field.name] = None if np.isnan(value) else float(value)
        elif field.kind is Kind.LONG:
            values[field.name] = None if value == -(2**63) else int(value)
        elif field.kind is Kind.BOOLEAN:
            values[field.name] = bool(value)
        else:
            values[field.name] = int(value)
    return values
