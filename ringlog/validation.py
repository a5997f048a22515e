"""What a field takes: turns what a caller passed into the exact value to store, or says in words what is wrong.

Both rings call this for whatever they cannot store as it is, and the checks of whole arrays are here too.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import time
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.errors import RecordError, RecordTypeError, RecordValueError
from ringlog.naming import did_you_mean
from ringlog.records import TIMESTAMP, Field, Kind, RecordLayout
from ringlog.records.fields import INT64_MAX, NULL_LENGTH, NULL_LONG, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US

TIMESTAMP_AHEAD_MAX_US = 3_600_000_000  # one hour
CHECKED_ROWS_MAX = 4096  # at a time: the check of a wide text takes a few times its memory
SHOWN_CHARACTERS_MAX = 80
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


class Coercion:
    """Coercion(layout, defaults)(index, value) -> the value in the exact type that field `index` stores.

    Raises RecordTypeError or RecordValueError, naming record, field, got and wanted. With index -1, (given, names,
    wanted) are a call's arguments that do not fit the signature: always raises RecordTypeError.
    """

    def __init__(self, layout: RecordLayout, defaults: Collection[str] = ()) -> None:
        self._layout = layout
        self._optional = {*defaults, TIMESTAMP}

    def __call__(self, index: int, *value: Any) -> Any:
        if index < 0:
            self._complain(*value)
        return exact_value(self._layout.name, self._layout.fields[index], value[0])

    def _complain(self, given: int, names: Sequence[str] | None, wanted: Sequence[str]) -> NoReturn:
        call = f"{self._layout.name} append"
        names = [str.__str__(name) for name in names or ()]
        by_place = wanted[:-1]
        if given > len(by_place):
            raise RecordTypeError(
                f"{call}: got {given} values by position, wanted at most {len(by_place)} "
                f"({', '.join(by_place) or 'every field is preset'}), and the time as timestamp="
            )
        positional = set(wanted[:given])
        for name in names:
            if name not in wanted:
                hint = did_you_mean(name, wanted)
                raise RecordTypeError(
                    f"{call}: got unknown field {_shown(name)}, wanted one of {', '.join(wanted)}{hint}"
                )
            if name in positional:
                raise RecordTypeError(f"{call}: got {name!r} twice, by position and by name, wanted it once")
        passed = positional | set(names)
        missing = [name for name in wanted if name not in passed and name not in self._optional]
        raise RecordTypeError(f"{call}: got {given + len(names)} fields, wanted also {', '.join(missing)}")


def exact_value(record: str, field: Field, value: Any) -> Any:
    """`value` as a float, int, bool, str or None that `field` stores as it is.

    Raises RecordTypeError or RecordValueError, also for what the value's own methods raise (a tzinfo, a NaT, a subclass
    of str); only KeyboardInterrupt, SystemExit and their like come through as they are.
    """
    try:
        return _exact_value(record, field, value)
    except RecordError:
        raise
    except Exception as error:
        raise RecordValueError(
            f"{record}.{field.name}: got {_shown(value)}, wanted {_wanted(field)} ({_said(error)})"
        ) from error


def _exact_value(record: str, field: Field, value: Any) -> Any:
    if value is None:
        if field.nullable or field.kind is Kind.TIMESTAMP:
            return None
        raise RecordTypeError(f"{record}.{field.name}: got None, wanted {_wanted(field)} (not nullable)")
    match field.kind:
        case Kind.DOUBLE:
            return _double(record, field, value)
        case Kind.LONG:
            return _long(record, field, value)
        case Kind.BOOLEAN:
            if isinstance(value, bool | np.bool_):
                return bool(value)
            raise _wrong_type(record, field, value)
        case Kind.TIMESTAMP:
            return _timestamp(record, field, value)
        case _:
            return _text(record, field, value)


def _wanted(field: Field) -> str:
    match field.kind:
        case Kind.DOUBLE:
            return "a float"
        case Kind.LONG:
            return "an int"
        case Kind.BOOLEAN:
            return "a bool"
        case Kind.TIMESTAMP:
            return "an aware datetime, int microseconds since the epoch, or None"
        case Kind.JSON:
            return "a JSON document as dict, list or encoded str"
        case _:
            return "a str"


def _wrong_type(record: str, field: Field, value: Any) -> RecordTypeError:
    return RecordTypeError(f"{record}.{field.name}: got {_named(value)} {_shown(value)}, wanted {_wanted(field)}")


def _named(value: Any) -> str:
    return _escaped(type.__dict__["__name__"].__get__(type(value)))  # whatever its metaclass says


def _shown(value: Any) -> str:
    """A value in a message: on one line, short, and whatever its own `__repr__` does."""
    try:
        text = str.__str__(repr(value))
    except Exception as error:  # noqa: BLE001 (a caller's own code)
        text = f"<{_named(value)} whose repr raises {_named(error)}>"
    text = text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 3] + "..."
    return _escaped(text)


def _escaped(text: str) -> str:
    """A caller's text in a message, which may come to a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _said(error: Exception) -> str:
    try:
        text = str.__str__(str(error))
    except Exception:  # noqa: BLE001 (a caller's own code)
        text = ""
    return f"{_named(error)}: {_escaped(text[:200])}" if text else _named(error)


def _double(record: str, field: Field, value: Any) -> float:
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, int | float | np.integer | np.floating):
        raise _wrong_type(record, field, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordValueError(f"{record}.{field.name}: got {_shown(value)}, wanted a finite float")
    if number != (int(value) if isinstance(value, int | np.integer) else value):  # numpy would round both alike
        raise RecordValueError(
            f"{record}.{field.name}: got {_shown(value)}, wanted a number that a float64 holds exactly"
        )
    _in_range(record, field, number)
    return number


def _long(record: str, field: Field, value: Any) -> int:
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, int | np.integer):
        raise _wrong_type(record, field, value)
    number = int(value)
    _in_range(record, field, number)
    if field.choices and number not in field.choices:
        raise RecordValueError(f"{record}.{field.name}: got {_shown(number)}, wanted one of {_listed(field.choices)}")
    return number


def _in_range(record: str, field: Field, number: float) -> None:
    if field.minimum is not None and field.maximum is not None and not field.minimum <= number <= field.maximum:
        raise RecordValueError(
            f"{record}.{field.name}: got {_shown(number)}, wanted {field.minimum} to {field.maximum}"
        )


def _timestamp(record: str, field: Field, value: Any) -> int:
    if isinstance(value, datetime.datetime):
        if value.utcoffset() is None:
            raise RecordValueError(
                f"{record}.{field.name}: got naive datetime {_shown(value)}, wanted one with a time zone"
            )
        stamp = operator.index((value - _EPOCH) // _MICROSECOND)
    elif isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64):
        stamp = int(value)
    else:
        raise _wrong_type(record, field, value)
    latest = latest_timestamp_us()
    if not TIMESTAMP_MIN_US <= stamp <= latest:
        hint = " (nanoseconds?)" if TIMESTAMP_MIN_US <= stamp // 1000 <= latest else ""
        raise RecordValueError(f"{record}.{field.name}: got {_shown(stamp)}{hint}, wanted {_wanted_time()}")
    return stamp


def latest_timestamp_us() -> int:
    """The latest time that may be given now: an hour ahead, and never one that the writer would not take."""
    return min(clock_us() + TIMESTAMP_AHEAD_MAX_US, TIMESTAMP_MAX_US)


def clock_us() -> int:
    """This machine's clock; of one after 2262, which has no time_ns, only that it is far beyond all bounds."""
    try:
        return time.time_ns() // 1000
    except OverflowError:
        return INT64_MAX


def clock_words() -> str:
    """What this machine's clock says, for a message."""
    now_us = clock_us()
    if now_us == INT64_MAX:
        return "a clock after 2262"
    return f"a clock at {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now_us // 10**6))} UTC"


def _wanted_time() -> str:
    wanted = "microseconds since the epoch between 2000-01-01 and one hour from now"
    if not TIMESTAMP_MIN_US <= clock_us() <= TIMESTAMP_MAX_US:
        wanted += f", and this machine has {clock_words()}: set it right"
    return wanted


def _text(record: str, field: Field, value: Any) -> str:
    if not isinstance(value, str):
        if field.kind is not Kind.JSON or not isinstance(value, dict | list):
            raise _wrong_type(record, field, value)
        value = _json(record, field, value)
    text = str.__str__(value)
    try:
        encoded = str.encode(text)
    except UnicodeEncodeError:
        raise RecordValueError(
            f"{record}.{field.name}: got a lone surrogate in {_shown(text)}, wanted text that UTF-8 can hold"
        ) from None
    if field.choices and text not in field.choices:
        raise RecordValueError(f"{record}.{field.name}: got {_shown(text)}, wanted one of {_listed(field.choices)}")
    if len(encoded) > field.width_bytes:
        raise RecordValueError(
            f"{record}.{field.name}: got {len(encoded)} bytes {_shown(text)}, wanted at most {field.width_bytes}"
        )
    if "\0" in text:
        raise RecordValueError(f"{record}.{field.name}: got a NUL byte in {_shown(text)}, wanted none")
    return text


def _json(record: str, field: Field, value: dict[Any, Any] | list[Any]) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        wrong = RecordValueError if isinstance(error, ValueError) else RecordTypeError
        raise wrong(f"{record}.{field.name}: got {_shown(value)}, wanted {_wanted(field)} ({_said(error)})") from None
    if "null" in text:
        # NaN and infinity, which JSON cannot hold, have become null: nothing may be changed silently.
        try:
            json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
        except ValueError:
            raise RecordValueError(
                f"{record}.{field.name}: got NaN or infinity in {_shown(value)}, wanted finite numbers"
            ) from None
    return text


def _listed(choices: Sequence[Any]) -> str:
    return ", ".join(repr(choice) for choice in choices)


def checked_columns(record: str, columns: Any) -> dict[str, list[Any]]:
    """Columns by field name, all of one length. RecordTypeError where they are none, or an object of the caller's
    raises."""
    try:
        given = {str.__str__(name): values for name, values in dict(columns).items()}
        unordered = [name for name, values in given.items() if isinstance(values, Set | Mapping)]
        found = {name: list(values) for name, values in given.items()}
    except Exception as error:
        raise RecordTypeError(
            f"{record}: got {_named(columns)} {_shown(columns)}, wanted columns by field name, each a sequence of "
            f"values ({_said(error)})"
        ) from error
    lengths = {len(values) for values in found.values()}
    if unordered or len(lengths) != 1:
        got = (
            f"a column without order ({_shown(unordered[0])})" if unordered else f"columns of {sorted(lengths)} values"
        )
        raise RecordTypeError(f"{record}: got {got}, wanted {'sequences' if unordered else 'one length'}")
    return found


def check_rows(layout: RecordLayout, rows: NDArray[Any]) -> None:
    """Checks an array of `layout.dtype` (rows,) field by field, as append would; the field `seq` is not looked at.

    Raises RecordTypeError for another dtype, RecordValueError naming the first wrong row of a field.
    """
    if not isinstance(rows, np.ndarray) or isinstance(rows, np.ma.MaskedArray):
        raise RecordTypeError(f"{layout.name}: got {_named(rows)}, wanted an array: see ringlog.rows_of")
    rows = np.asarray(rows)  # not a subclass, whose methods could say anything
    if rows.dtype != layout.dtype or rows.ndim != 1:
        raise RecordTypeError(
            f"{layout.name}: got dtype {rows.dtype} with {rows.ndim} dimensions, wanted one dimension of {layout.dtype}"
        )
    for start in range(0, len(rows), CHECKED_ROWS_MAX):
        part = rows[start : start + CHECKED_ROWS_MAX]
        for field in layout.fields:
            wrong = wrong_rows(field, part[field.name])
            if wrong.any():
                row = int(np.argmax(wrong))
                raise RecordValueError(
                    f"{layout.name}.{field.name}: got {_shown(_row_value(field, part[field.name][row]))} in row "
                    f"{start + row}, wanted {_wanted_value(field)}"
                )


def _wanted_value(field: Field) -> str:
    match field.kind:
        case Kind.DOUBLE:
            return f"a finite float, {field.minimum} to {field.maximum}"
        case Kind.LONG:
            return f"one of {_listed(field.choices)}" if field.choices else f"{field.minimum} to {field.maximum}"
        case Kind.BOOLEAN:
            return "0 or 1"
        case Kind.TIMESTAMP:
            return _wanted_time()
        case _:
            of = f", one of {_listed(field.choices)}" if field.choices else ""
            return f"at most {field.width_bytes} bytes of UTF-8 without NUL{of}"


def _row_value(field: Field, value: Any) -> Any:
    if not field.kind.is_text:
        return value.item()
    length = int(value["length"])
    return value["bytes"].tobytes()[:length] if length <= field.width_bytes else f"length {length}"


def wrong_rows(field: Field, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values (rows,) of one field of a slot array could not have been written by append: bool (rows,)."""
    match field.kind:
        case Kind.DOUBLE:
            null = np.isnan(values) & field.nullable
            with np.errstate(invalid="ignore"):
                return np.asarray(~(null | ((values >= field.minimum) & (values <= field.maximum))))
        case Kind.LONG:
            null = (values == NULL_LONG) & field.nullable
            fits = (values >= field.minimum) & (values <= field.maximum) & (values != NULL_LONG)
            if field.choices:
                fits &= np.isin(values, field.choices)
            return np.asarray(~(null | fits))
        case Kind.BOOLEAN:
            return np.asarray(values > 1)
        case Kind.TIMESTAMP:
            return np.asarray((values < TIMESTAMP_MIN_US) | (values > latest_timestamp_us()))
        case _:
            return _wrong_texts(field, values)


def _wrong_texts(field: Field, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Length, NUL, UTF-8 and choices, without a Python object per row unless a text is not ASCII."""
    lengths = values["length"]
    null = (lengths == NULL_LENGTH) & field.nullable
    wrong = ~null & (lengths > field.width_bytes)
    texts = np.ascontiguousarray(values["bytes"]).view(np.uint8).reshape(len(values), field.width_bytes)
    inside = np.arange(field.width_bytes) < np.where(null | wrong, 0, lengths)[:, None]
    wrong |= ((texts == 0) & inside).any(axis=1)
    for row in np.flatnonzero(((texts >= 0x80) & inside).any(axis=1)):
        try:
            texts[row, : lengths[row]].tobytes().decode()
        except UnicodeDecodeError:
            wrong[row] = True
    if field.choices:
        matches = null.copy()
        for choice in field.choices:
            encoded = np.frombuffer(str(choice).encode(), np.uint8)
            matches |= (lengths == len(encoded)) & (texts[:, : len(encoded)] == encoded).all(axis=1)
        wrong |= ~matches
    return np.asarray(wrong)
