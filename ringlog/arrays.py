"""Columns of Python values to an array of slots: the input of `append_many`."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringlog.errors import RecordError, RecordValueError
from ringlog.layout import Refused
from ringlog.records import Record, defaults_of, layout_of
from ringlog.ring import new_appender, new_ring
from ringlog.validation import Coercion, checked_columns, clock_words


def rows_of(record_type: type[Record], columns: Mapping[str, Sequence[Any]]) -> NDArray[Any]:
    """An array of the record type's `dtype` (rows,) from columns of Python values, for `append_many`.

    Fields left out take their default; `timestamp` left out is stamped now. Raises RecordTypeError, RecordValueError.
    """
    checked = checked_columns(layout_of(record_type).name, columns)
    with _Scratch(record_type, len(next(iter(checked.values())))) as scratch:
        for values in zip(*checked.values(), strict=True):
            if not scratch.append(**dict(zip(checked, values, strict=True))):
                raise RecordValueError(scratch.refusal)
    return scratch.rows()


def assembled(record_type: type[Record], rows: Sequence[Callable[[], Mapping[str, Any]]]) -> Assembled:
    """An array of the record type's `dtype` from rows that are made one by one, and what is wrong with the others."""
    wrong: list[tuple[int, str]] = []
    with _Scratch(record_type, len(rows)) as scratch:
        for number, row in enumerate(rows):
            try:
                if not scratch.append(**row()):
                    wrong.append((number, scratch.refusal))
            except RecordError as error:
                wrong.append((number, str(error)))
    return Assembled(scratch.rows(), wrong)


class Assembled(NamedTuple):
    """The sound rows in order, and for each other row its number (from 0) and why append would not take it."""

    rows: NDArray[Any]
    wrong: list[tuple[int, str]]


class _Scratch:
    """A ring in private memory: what it accepts is an array of slots."""

    def __init__(self, record_type: type[Record], rows: int) -> None:
        layout = layout_of(record_type)
        # All rows have room, so the clock is all that can refuse one.
        self.refusal = f"{layout.name}.timestamp: got {clock_words()} to stamp it with, wanted a clock that is right"
        capacity = 1 << max(rows - 1, 0).bit_length()
        self._words = mmap.mmap(-1, 4096 + capacity * layout.slot_bytes)
        self._dtype = layout.dtype
        self._ring = new_ring(layout, Coercion(layout, defaults_of(record_type)), lambda: Refused.CLOSED)
        self._ring.attach(self._words, mmap.mmap(-1, 4096), 4096, capacity, (128, 256, 384, 512, 128))
        self.append = new_appender(self._ring, {}, defaults_of(record_type))

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ring.detach()

    def rows(self) -> NDArray[Any]:
        return np.frombuffer(self._words, self._dtype, self._ring.head, 4096).copy()
