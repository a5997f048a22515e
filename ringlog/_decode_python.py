"""The reference for `_decode.c`: the same class, over whole arrays with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringlog.records import Kind, RecordLayout
from ringlog.records.fields import NULL_LENGTH, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from ringlog.validation import wrong_rows


class Decoder:
    """Decodes slots of one record layout; symbols keep their codes from call to call."""

    def __init__(self, layout: RecordLayout) -> None:
        self._layout = layout
        self._codes: dict[int, dict[bytes, int]] = {}
        self._values: dict[int, list[str]] = {}
        for index, field in enumerate(layout.fields):
            if field.kind is Kind.SYMBOL:
                self._codes[index] = {}
                self._values[index] = []

    def values(self, field: int) -> list[str]:
        """The symbols by code; it only grows."""
        return self._values[field]

    def decode(self, slots: Any, rows: int, first_seq: int, outputs: tuple[Any, ...], at: int) -> int:
        """Decodes until the first corrupt slot; how many rows it decoded.

        `slots` holds `rows` slots; row i goes to place `at + i` of each of `outputs`: an array for a number, int32
        codes for a symbol, (offsets, data, valid) for a text.
        """
        size, slot_bytes = memoryview(slots).nbytes, self._layout.slot_bytes
        if rows < 0 or size != rows * slot_bytes:
            raise ValueError(f"slots: got {size} bytes for {rows} rows of {slot_bytes} bytes")
        array = np.frombuffer(slots, self._layout.dtype, rows)
        wrong = array["seq"] != np.arange(first_seq, first_seq + rows, dtype=np.uint64)
        for field in self._layout.fields:
            values = array[field.name]
            if field.kind is Kind.TIMESTAMP:
                wrong |= (values < TIMESTAMP_MIN_US) | (values > TIMESTAMP_MAX_US)
            else:
                wrong |= wrong_rows(_without_choices(field), values)
        rows = int(np.argmax(wrong)) if wrong.any() else rows
        for index, field in enumerate(self._layout.fields):
            values = array[field.name][:rows]
            if field.kind is Kind.SYMBOL:
                outputs[index][at : at + rows] = self._encoded(index, values)
            elif field.kind.is_text:
                _gather(values, outputs[index], at)
            else:
                outputs[index][at : at + rows] = values
        return rows

    def _encoded(self, index: int, values: Any) -> list[int]:
        codes, known = self._codes[index], self._values[index]
        result = []
        for length, text in zip(values["length"].tolist(), values["bytes"].tolist(), strict=True):
            if length == NULL_LENGTH:
                result.append(-1)
                continue
            key = bytes(text)[:length].ljust(length, b"\0")
            code = codes.get(key)
            if code is None:
                code = codes[key] = len(known)
                known.append(key.decode())
            result.append(code)
        return result


def _without_choices(field: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(field, choices=())


def _gather(values: Any, output: tuple[Any, Any, Any], at: int) -> None:
    offsets, data, valid = output
    rows = len(values)
    lengths = values["length"].astype(np.int64)
    valid[at : at + rows] = lengths != NULL_LENGTH
    lengths[lengths == NULL_LENGTH] = 0
    width = values.dtype["bytes"].itemsize
    start = int(offsets[at])
    offsets[at + 1 : at + rows + 1] = start + np.cumsum(lengths)
    texts = np.ascontiguousarray(values["bytes"]).view(np.uint8).reshape(rows, width)
    chosen = texts[np.arange(width) < lengths[:, None]]
    data[start : start + len(chosen)] = chosen
