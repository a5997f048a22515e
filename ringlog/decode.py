"""Slots to columns: how a drain reads what producers wrote, without a Python object per row.

Which implementation runs follows the ring's choice (see `ring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringlog.columns import Column, SymbolColumn, TextColumn
from ringlog.records import LANE, SEQ, Kind, RecordLayout
from ringlog.ring import IMPLEMENTATION

# A field that is declared a symbol but hardly ever repeats would grow its dictionary without end.
SYMBOLS_MAX = 65_536


class Slots(NamedTuple):
    """Consecutive slots of one lane: `memory` (uint8, rows * slot_bytes) holds records from `first_seq` on."""

    lane: int
    first_seq: int
    rows: int
    memory: Any


class Corrupt(NamedTuple):
    """A slot that append could not have written, kept with its bytes."""

    lane: int
    seq: int
    slot: bytes


def _new_decoder(layout: RecordLayout) -> Any:
    if IMPLEMENTATION == "python":
        from ringlog._decode_python import Decoder as PythonDecoder

        return PythonDecoder(layout)
    from ringlog._decode import Decoder as NativeDecoder

    fields = []
    for field in layout.fields:
        limits = (field.minimum, field.maximum) if field.kind in (Kind.DOUBLE, Kind.LONG) else (0, 0)
        fields.append((int(field.kind), field.offset, field.width_bytes, field.nullable, *limits))
    return NativeDecoder(tuple(fields), layout.slot_bytes)


class Decoder:
    """Decodes slots of one record layout; symbols keep their codes from drain to drain."""

    def __init__(self, layout: RecordLayout) -> None:
        self._layout = layout
        self._decoder = _new_decoder(layout)

    def decode(self, slots: Sequence[Slots]) -> tuple[dict[str, Column], list[Slots], list[Corrupt]]:
        """Columns by field name, `lane` and `seq` (int64) of all sound slots, in order.

        Also the runs of sound slots that the rows came from, and the corrupt slots, which are in no column.
        """
        room = sum(run.rows for run in slots)
        outputs = tuple(_room(field.kind, field.width_bytes, room) for field in self._layout.fields)
        sound: list[Slots] = []
        corrupt: list[Corrupt] = []
        rows = 0
        for run in slots:
            rest = run
            while rest.rows:
                decoded = self._decoder.decode(rest.memory, rest.rows, rest.first_seq, outputs, rows)
                if decoded:
                    sound.append(self._part(rest, 0, decoded))
                    rows += decoded
                if decoded < rest.rows:
                    bad = self._part(rest, decoded, 1)
                    corrupt.append(Corrupt(bad.lane, bad.first_seq, bytes(bad.memory)))
                    decoded += 1
                rest = self._part(rest, decoded, rest.rows - decoded)
        columns = {
            field.name: self._column(index, field.kind, outputs[index], rows)
            for index, field in enumerate(self._layout.fields)
        }
        columns[LANE] = np.repeat(np.array([run.lane for run in sound], np.int64), [run.rows for run in sound])
        columns[SEQ] = (
            np.concatenate([np.arange(run.first_seq, run.first_seq + run.rows, dtype=np.int64) for run in sound])
            if sound
            else np.empty(0, np.int64)
        )
        self._bound_symbols()
        return columns, sound, corrupt

    def _part(self, run: Slots, start: int, rows: int) -> Slots:
        slot_bytes = self._layout.slot_bytes
        memory = memoryview(run.memory).cast("B")[start * slot_bytes : (start + rows) * slot_bytes]
        return Slots(run.lane, run.first_seq + start, rows, memory)

    def _column(self, index: int, kind: Kind, output: Any, rows: int) -> Column:
        if kind is Kind.SYMBOL:
            return SymbolColumn(output[:rows], self._decoder.values(index))
        if kind.is_text:
            offsets, data, valid = output
            return TextColumn(offsets[: rows + 1], data[: offsets[rows]], None if valid[:rows].all() else valid[:rows])
        return output[:rows].view(np.bool_) if kind is Kind.BOOLEAN else output[:rows]  # type: ignore[no-any-return]

    def _bound_symbols(self) -> None:
        for index, field in enumerate(self._layout.fields):
            if field.kind is Kind.SYMBOL and len(self._decoder.values(index)) > SYMBOLS_MAX:
                self._decoder = _new_decoder(self._layout)
                return


def _room(kind: Kind, width: int, rows: int) -> Any:
    match kind:
        case Kind.DOUBLE:
            return np.empty(rows, np.float64)
        case Kind.LONG | Kind.TIMESTAMP:
            return np.empty(rows, np.int64)
        case Kind.BOOLEAN:
            return np.empty(rows, np.uint8)
        case Kind.SYMBOL:
            return np.empty(rows, np.int32)
    offsets = np.empty(rows + 1, np.int32)
    offsets[0] = 0
    valid: NDArray[np.bool_] = np.empty(rows, np.bool_)
    return offsets, np.empty(rows * width, np.uint8), valid
