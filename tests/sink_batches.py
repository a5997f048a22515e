"""Batches straight from columns, as a drain makes them, and what the server then has."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from ringlog.columns import Column, SymbolColumn, TextColumn
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import (
    LANE,
    SEQ,
    TIMESTAMP,
    Double,
    Field,
    Json,
    Kind,
    Long,
    Record,
    RecordLayout,
    Symbol,
    Varchar,
    layout_of,
)
from ringlog.records.fields import NULL_LONG
from ringlog.sinks import Batch, Receipt, Sink, Span

EPOCH_2026_US = 1_767_225_600_000_000
FOUND_TIMEOUT_S = 20.0


class Everything(Record):
    """One field of every kind, each with its NULL."""

    __table__ = "everything"

    symbol: Annotated[str | None, Symbol(64)] = None
    choice: Literal["left", "right"] = "left"
    text: Annotated[str | None, Varchar(400)] = None
    document: Annotated[dict[str, Any] | None, Json(400)] = None
    number: Annotated[float | None, Double()] = None
    whole: Annotated[int | None, Long()] = None
    flag: bool = False


def fresh_layout(record_type: type[Record] = Everything) -> RecordLayout:
    """The layout of a record type for a table that no other test uses."""
    layout = layout_of(record_type)
    return msgspec.structs.replace(layout, table=f"{layout.table}_{secrets.token_hex(6)}")


def column_of(field: Field, values: Sequence[Any]) -> Column:
    """A column of Python values, None for NULL."""
    if field.kind is Kind.SYMBOL:
        known = [value for value in dict.fromkeys(values) if value is not None]
        codes = [known.index(value) if value is not None else -1 for value in values]
        return SymbolColumn(np.array(codes, np.int32), known)
    if field.kind.is_text:
        encoded = [(value or "").encode() for value in values]
        offsets = np.array([0, *itertools.accumulate(map(len, encoded))], np.int32)
        valid = np.array([value is not None for value in values], np.bool_)
        return TextColumn(offsets, np.frombuffer(b"".join(encoded), np.uint8), None if valid.all() else valid)
    if field.kind is Kind.DOUBLE:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    if field.kind is Kind.BOOLEAN:
        return np.array(values, np.bool_)
    return np.array([NULL_LONG if value is None else value for value in values], np.int64)


def batch_of(layout: RecordLayout, rows: Sequence[Mapping[str, Any]], lane: int = 7, first_seq: int = 0) -> Batch:
    """A batch of one lane; a row's field that is left out is NULL (False, or a default time, where there is none)."""
    columns: dict[str, Column] = {
        LANE: np.full(len(rows), lane, np.int64),
        SEQ: np.arange(first_seq, first_seq + len(rows), dtype=np.int64),
    }
    for field in layout.fields:
        default = {Kind.BOOLEAN: lambda _: False, Kind.TIMESTAMP: lambda row: EPOCH_2026_US + row}
        missing: Callable[[int], Any] = default.get(field.kind, lambda _: None)
        columns[field.name] = column_of(field, [row.get(field.name, missing(i)) for i, row in enumerate(rows)])
    return Batch(layout, (Span(lane, first_seq, len(rows)),), len(rows), columns)


def deliver(sink: Sink, batch: Batch) -> Receipt:
    """Sends a batch and waits until its rows are applied."""
    request = sink.encode(batch)
    receipt = sink.send(request)
    sink.release(request)
    wait_until(lambda: all(sink.confirm([receipt])), "rows applied")
    return receipt


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = FOUND_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


def stored(sink: QuestdbSink, layout: RecordLayout) -> list[dict[str, Any]]:
    """The table's rows in seq order, as dicts of the fields, `lane` and `seq`; timestamps in microseconds."""
    names = [LANE, SEQ, *(field.name for field in layout.fields)]
    selected = ", ".join(f'cast("{name}" as long)' if name == TIMESTAMP else f'"{name}"' for name in names)
    rows = sink.connection.execute(f'select {selected} from "{layout.table}" order by lane, seq')
    return [dict(zip(names, row, strict=True)) for row in rows]


def numbered(rows: int) -> Iterator[dict[str, Any]]:
    """Rows that differ, with few symbols and many texts."""
    for row in range(rows):
        yield {
            "symbol": f"symbol-{row % 13}",
            "choice": "right",
            "text": f"text-{row}",
            "number": row / 7,
            "whole": row,
        }
