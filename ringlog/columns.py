"""What a drain hands on: the records of a batch as columns, decoded from slots without a Python object per row."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringlog.records.fields import NULL_LONG


@dataclasses.dataclass(slots=True)
class SymbolColumn:
    """Texts that repeat: `codes` (int32, rows) index into `values`; code -1 is NULL.

    `values` may hold texts that no row of this batch uses: it is kept from drain to drain, and only ever appended to.
    """

    codes: NDArray[np.int32]
    values: list[str]


@dataclasses.dataclass(slots=True)
class TextColumn:
    """Texts in Arrow's layout: row i is `data[offsets[i]:offsets[i + 1]]` (UTF-8), NULL where not `valid[i]`.

    `offsets` is int32 of rows + 1, `data` uint8, `valid` bool of rows or None where no row is NULL.
    """

    offsets: NDArray[np.int32]
    data: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None


# Numbers are plain arrays: float64 (NaN is NULL), int64 (the smallest is NULL; timestamps in microseconds), bool.
Column = NDArray[Any] | SymbolColumn | TextColumn


def to_list(column: Column) -> list[Any]:
    """The column as Python values, None for NULL: for tests and for reading single rows, never for a whole path."""
    if isinstance(column, SymbolColumn):
        return [column.values[code] if code >= 0 else None for code in column.codes.tolist()]
    if isinstance(column, TextColumn):
        data, ends = column.data.tobytes(), column.offsets.tolist()
        valid = itertools.repeat(True) if column.valid is None else column.valid.tolist()
        spans = zip(ends, ends[1:], valid, strict=False)
        return [data[start:end].decode() if there else None for start, end, there in spans]
    if column.dtype.kind == "f":
        return [None if math.isnan(value) else value for value in column.tolist()]
    if column.dtype.kind == "i":
        return [None if value == NULL_LONG else value for value in column.tolist()]
    return column.tolist()  # type: ignore[no-any-return]


def sliced(column: Column, start: int, stop: int) -> Column:
    """Rows `start` to `stop` (exclusive) of a column, over the same memory."""
    if isinstance(column, SymbolColumn):
        return SymbolColumn(column.codes[start:stop], column.values)
    if isinstance(column, TextColumn):
        valid = None if column.valid is None else column.valid[start:stop]
        return TextColumn(column.offsets[start : stop + 1], column.data, valid)
    return column[start:stop]
