"""Columns of Python values to an array of slots: the input of `append_many`."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringlog.errors import RecordTypeError
from ringlog.layout import Refused
from ringlog.records import Record, defaults_of, layout_of
from ringlog.ring import new_appender, new_ring
from ringlog.validation import Coercion


def rows_of(record_type: type[Record], columns: Mapping[str, Sequence[Any]]) -> NDArray[Any]:
    """An array of the record type's `dtype` (rows,) from columns of Python values, for `append_many`.

    Fields left out take their default; `timestamp` left out is stamped now. Raises RecordTypeError, RecordValueError.
    """
    layout = layout_of(record_type)
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise RecordTypeError(f"{layout.name}: got columns of {sorted(lengths)} values, wanted one length")
    rows = lengths.pop()
    capacity = 1 << max(rows - 1, 0).bit_length()
    words = mmap.mmap(-1, 4096 + capacity * layout.slot_bytes)
    coerce = Coercion(layout, defaults_of(record_type))
    ring = new_ring(layout, coerce, lambda: Refused.CLOSED)
    ring.attach(words, mmap.mmap(-1, 4096), 4096, capacity, (128, 256, 384, 512, 128))
    append = new_appender(ring, {}, defaults_of(record_type))
    names = tuple(columns)
    for values in zip(*columns.values(), strict=True):
        append(**dict(zip(names, values, strict=True)))
    ring.detach()
    return np.frombuffer(words, layout.dtype, rows, 4096).copy()
