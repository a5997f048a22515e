"""Batches as pandas frames in the forms that the questdb client serialises without a Python object per row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ringlog.columns import Column, SymbolColumn, TextColumn
from ringlog.records import LANE, SEQ, TIMESTAMP, RecordLayout
from ringlog.sinks.contract import Batch

_TEXT = pd.ArrowDtype(pa.string())


class _Frame(pd.DataFrame):  # type: ignore[misc]  # pandas has no types
    """A frame that is made once and not changed: the client asks for its dtypes with each column, and pandas makes
    them anew each time, which is a third of what serialising a small batch costs."""

    @functools.cached_property
    def dtypes(self) -> Any:
        return super().dtypes


class FrameBuilder:
    """Builds frames; keeps each symbol column's categories from batch to batch.

    Building categories hashes every value, which for a thousand values costs as much as a batch: they are built again
    only when a batch uses values past those already known, or the list of values is another one.
    """

    def __init__(self) -> None:
        self._categories: dict[tuple[str, str], tuple[list[str], int, pd.CategoricalDtype]] = {}

    def frame(self, batch: Batch) -> pd.DataFrame:
        """The batch as a frame of `batch.rows` rows: fields, `lane` and `seq`, and `timestamp` as datetime64[us].

        Texts and numbers share memory with the batch's columns.
        """
        layout = batch.layout
        arrays: dict[str, Any] = {LANE: batch.columns[LANE], SEQ: batch.columns[SEQ]}
        for field in layout.fields:
            column = batch.columns[field.name]
            if field.name == TIMESTAMP:
                arrays[TIMESTAMP] = np.asarray(column).view("datetime64[us]")
            else:
                arrays[field.name] = self._array(layout, field.name, column)
        return _Frame(arrays, copy=False)

    def _array(self, layout: RecordLayout, name: str, column: Column) -> Any:
        if isinstance(column, SymbolColumn):
            dtype = self._dtype(layout.table, name, column)
            return pd.Categorical.from_codes(column.codes, dtype=dtype, validate=False)
        if isinstance(column, TextColumn):
            return pd.arrays.ArrowExtensionArray(text_array(column))
        return column

    def _dtype(self, table: str, name: str, column: SymbolColumn) -> pd.CategoricalDtype:
        values, known, dtype = self._categories.get((table, name), (None, 0, None))
        if dtype is None or values is not column.values or int(column.codes.max(initial=-1)) >= known:
            dtype = pd.CategoricalDtype(pd.Index(column.values, dtype=_TEXT))
            self._categories[table, name] = (column.values, len(column.values), dtype)
        return dtype


def text_array(column: TextColumn) -> pa.StringArray:
    """The column as an Arrow array over the same memory."""
    rows = len(column.offsets) - 1
    valid = column.valid
    bitmap = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.StringArray.from_buffers(rows, pa.py_buffer(column.offsets), pa.py_buffer(column.data), bitmap)
