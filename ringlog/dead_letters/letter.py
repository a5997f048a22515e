"""One dead letter: a slot as a person reads it, and back to the very same slot."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from ringlog.records import SEQ, Kind, RecordLayout
from ringlog.records.fields import NULL_LENGTH, NULL_LONG


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that a table refused: why, whose it is, since when, and its fields (NULL is None, times in us)."""

    table: str
    lane: int
    seq: int
    reason: str
    time: str  # when it was refused, ISO 8601 in UTC
    record: dict[str, Any]


def fields_of(layout: RecordLayout, slot: bytes) -> dict[str, Any]:
    """The fields of one sound slot by name: numbers, bools, texts; None is NULL."""
    (row,) = np.frombuffer(slot, layout.dtype, count=1)
    fields: dict[str, Any] = {}
    for field in layout.fields:
        value = row[field.name]
        if field.kind.is_text:
            length = int(value["length"])
            text = bytes(value["bytes"])[:length].decode("utf-8", "backslashreplace")
            fields[field.name] = None if length == NULL_LENGTH else text
        elif field.kind is Kind.DOUBLE:
            fields[field.name] = None if math.isnan(value) else float(value)
        elif field.kind is Kind.BOOLEAN:
            fields[field.name] = bool(value)
        else:
            fields[field.name] = None if int(value) == NULL_LONG else int(value)
    return fields


def slot_of(layout: RecordLayout, seq: int, fields: dict[str, Any]) -> bytes:
    """The slot that `fields_of` read, texts padded with zeros. Raises KeyError where a field is missing."""
    slots = np.zeros(1, layout.dtype)
    row = slots[0]
    row[SEQ] = seq
    for field in layout.fields:
        value = fields[field.name]
        if not field.kind.is_text:
            missing = math.nan if field.kind is Kind.DOUBLE else NULL_LONG
            row[field.name] = missing if value is None else value
        elif value is None:
            row[field.name]["length"] = NULL_LENGTH
        else:
            text = value.encode()
            row[field.name]["length"] = len(text)
            row[field.name]["bytes"] = text
    return slots.tobytes()
