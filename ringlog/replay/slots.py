"""Columns of a file to an array of slots: a whole batch at once, where all of it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ringlog.records import TIMESTAMP, Field, Kind, RecordLayout
from ringlog.records.fields import NULL_LENGTH, NULL_LONG, TIMESTAMP_MIN_US
from ringlog.replay.times import DOUBLE_EXACT_MAX, Times, Unsound
from ringlog.replay.values import NUMBER_BYTES_MAX


def slots_of(
    layout: RecordLayout,
    columns: Mapping[str, Any],
    rows: int,
    defaults: Mapping[str, Any],
    now_us: int,
    latest_us: int,
    times: Times,
) -> NDArray[Any]:
    """An array of `layout.dtype` (rows,) from Arrow arrays by field name, for `append_many`; `seq` is not set.

    Texts come as binary arrays, or as dictionaries of such. Fields without a column take their default; rows without
    a time take `now_us`, if they are to be stamped. Raises Unsound where any value is not what append would take.
    """
    slots = np.zeros(rows, layout.dtype)
    for field in layout.fields:
        array = columns.get(field.name)
        if array is None:
            default = now_us if field.name == TIMESTAMP else defaults[field.name]
            array = pa.nulls(rows) if default is None else pa.array([default] * rows)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if isinstance(array, pa.DictionaryArray) and not field.kind.is_text:
            array = _decoded(array, NUMBER_BYTES_MAX)
        if array.null_count and not (times.stamps_now if field.kind is Kind.TIMESTAMP else field.nullable):
            raise Unsound
        try:
            if field.kind.is_text:
                _write_texts(slots[field.name], field, array)
            elif field.kind is Kind.TIMESTAMP:
                found = times.of_column(array)
                _demand(not found.null_count or times.stamps_now)
                stamps = found.fill_null(now_us).to_numpy(zero_copy_only=False)
                _demand(stamps >= TIMESTAMP_MIN_US, stamps <= latest_us)
                slots[field.name] = stamps
            else:
                slots[field.name] = _numbers(field, array)
        except (pa.ArrowException, NotImplementedError, UnicodeDecodeError, OverflowError):
            raise Unsound from None
    return slots


def _demand(*conditions: Any) -> None:
    if not all(bool(np.all(condition)) for condition in conditions):
        raise Unsound


def _demand_decimal(array: Any) -> None:
    """Arrow takes hexadecimal numbers, append's callers write none."""
    data, _ = _data_of(array.fill_null(b""))
    _demand(data | 0x20 != ord("x"))


def _is_text(array: Any) -> bool:
    return bool(pa.types.is_binary(array.type))


def _numbers(field: Field, array: Any) -> NDArray[Any]:
    wanted, python_types = _NUMBERS[field.kind]
    is_text = _is_text(array) or pa.types.is_decimal(array.type)
    if pa.types.is_null(array.type):
        array = array.cast(wanted)
    elif _is_text(array):
        _demand((pc.max(pc.binary_length(array)).as_py() or 0) <= NUMBER_BYTES_MAX)
        if field.kind is Kind.LONG:
            _demand_decimal(array)
        array = array.cast(pa.string()).cast(wanted)
    elif pa.types.is_decimal(array.type) and field.kind is Kind.DOUBLE:
        array = array.cast(pa.string()).cast(wanted)  # the nearest, which Arrow's own cast does not promise
    elif pa.types.is_floating(array.type) and field.kind is not Kind.BOOLEAN:
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)  # how pandas says that none is there
        _demand(not array.null_count or field.nullable)
        if field.kind is Kind.LONG:
            _demand(np.abs(array.fill_null(0).to_numpy(zero_copy_only=False)) <= DOUBLE_EXACT_MAX)
        array = array.cast(wanted)
    elif any(is_type(array.type) for is_type in python_types):
        array = array.cast(wanted)  # raises where a value would change
    else:
        raise Unsound
    if field.kind is Kind.BOOLEAN:
        return np.asarray(array.to_numpy(zero_copy_only=False), np.uint8)
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else np.True_
    null = np.nan if field.kind is Kind.DOUBLE else NULL_LONG
    values = np.asarray(array.fill_null(null).to_numpy(zero_copy_only=False))
    if field.kind is Kind.DOUBLE and is_text:
        _demand(~valid | (np.abs(values) < DOUBLE_EXACT_MAX))  # only their texts tell whether they are exact
    _demand(~valid | ((values >= field.minimum) & (values <= field.maximum)))  # NaN and infinity are in no range
    if field.choices:
        _demand(~valid | np.isin(values, field.choices))
    return values


_NUMBERS: dict[Kind, tuple[Any, tuple[Any, ...]]] = {
    Kind.DOUBLE: (pa.float64(), (pa.types.is_integer,)),
    Kind.LONG: (pa.int64(), (pa.types.is_integer, pa.types.is_decimal)),
    Kind.BOOLEAN: (pa.bool_(), (pa.types.is_boolean,)),
}


def _write_texts(slots: NDArray[Any], field: Field, array: Any) -> None:
    if pa.types.is_null(array.type):
        slots["length"] = NULL_LENGTH
        return
    if isinstance(array, pa.DictionaryArray) and len(array.dictionary) > len(array):
        array = _decoded(array, field.width_bytes)
    if isinstance(array, pa.DictionaryArray):
        lengths, texts = _padded(field, array.dictionary)
        codes = array.indices.fill_null(len(lengths)).to_numpy(zero_copy_only=False)
        slots["length"] = np.append(lengths, np.uint16(NULL_LENGTH))[codes]
        slots["bytes"] = np.append(texts, np.zeros(1, texts.dtype))[codes]
        return
    slots["length"], slots["bytes"] = _padded(field, array)


def _decoded(array: Any, bytes_max: int) -> Any:
    """Each row's own text; a dictionary may share one of any length among any number of rows."""
    if pa.types.is_binary(array.dictionary.type):
        lengths = pc.max(pc.binary_length(array.dictionary).take(array.indices.drop_null())).as_py()
        _demand(lengths is None or lengths <= bytes_max)
    return array.dictionary_decode()


def _padded(field: Field, array: Any) -> tuple[NDArray[np.uint16], NDArray[Any]]:
    """Lengths in bytes (NULL_LENGTH for NULL) and the texts, each padded to the field's width."""
    if not (_is_text(array) or pa.types.is_string(array.type)):
        raise Unsound
    _demand((pc.max(pc.binary_length(array)).as_py() or 0) <= field.width_bytes)
    array = array.cast(pa.binary())  # a string array need not be UTF-8, and a cast to its own type would not look
    array = array.cast(pa.string())  # raises where it is not UTF-8
    if field.choices and not pc.all(pc.is_in(array.drop_null(), pa.array(field.choices, pa.string()))).as_py():
        raise Unsound
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        lengths, texts = _padded(field, array.fill_null(""))
        return np.where(valid, lengths, np.uint16(NULL_LENGTH)), texts
    data, offsets = _data_of(array)
    lengths = np.diff(offsets)
    _demand(data != 0)
    rows, longest = len(lengths), int(lengths.max(initial=0))
    texts = np.zeros((rows, field.width_bytes), np.uint8)
    if longest and len(data) == rows * longest:  # all of one length: addresses, signatures
        texts[:, :longest] = data.reshape(rows, longest)
    elif longest:
        padded = np.array(array.cast(pa.binary()).to_pylist(), f"S{longest}")
        texts[:, :longest] = padded.view(np.uint8).reshape(rows, longest)
    return lengths.astype(np.uint16), texts.view(f"V{field.width_bytes}")[:, 0]


def _data_of(array: Any) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The bytes of a string or binary array without NULL, and where each text begins and the last one ends."""
    _, offsets_buffer, data_buffer = array.buffers()
    if data_buffer is None or not len(array):
        return np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int32)
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]], offsets
