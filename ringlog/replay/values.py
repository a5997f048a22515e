"""Values of a file as the Python values that append takes, one by one: where a batch holds something that is wrong."""

from __future__ import annotations

import decimal
import math
import re
from typing import Any

from ringlog.errors import RecordError, RecordValueError
from ringlog.records import Field, Kind
from ringlog.replay.times import DOUBLE_EXACT_MAX, TimeError, Times

# A number of more characters is none: an amount of 10^18 with 18 decimals has 38.
NUMBER_BYTES_MAX = 400
_DOUBLE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LONG = re.compile(r"(-?\d+)(\.0*)?", re.ASCII)  # pandas writes 5000.0 where another row of the column has none
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def of_text(record: str, field: Field, text: bytes | None, times: Times) -> Any:
    """What a text of a file stands for; None is NULL. Raises RecordError, naming record, field, got and wanted."""
    if text is None:
        return None
    try:
        value = text.decode()
    except UnicodeDecodeError:
        raise wrong_value(record, field, text, "UTF-8") from None
    match field.kind:
        case Kind.DOUBLE:
            if len(value) > NUMBER_BYTES_MAX or _DOUBLE.fullmatch(value) is None:
                raise wrong_value(record, field, value, "a finite number")
            return _double(record, field, value)
        case Kind.LONG:
            found = _LONG.fullmatch(value) if len(value) <= NUMBER_BYTES_MAX else None
            if found is None:
                raise wrong_value(record, field, value, "a whole number")
            return int(found[1])
        case Kind.BOOLEAN:
            if value.lower() not in _BOOLEANS:
                raise wrong_value(record, field, value, "true, false, 1 or 0")
            return _BOOLEANS[value.lower()]
        case Kind.TIMESTAMP:
            return of_time(record, field, value, times)
        case _:
            return value


def of_time(record: str, field: Field, value: Any, times: Times, unit: str = "") -> int | None:
    """Microseconds since the epoch of what a file has as a time; None is none. Raises RecordValueError."""
    try:
        return times.of_value(value, unit)
    except TimeError as error:
        raise wrong_value(record, field, value, str(error)) from None


def of_object(record: str, field: Field, value: Any, times: Times) -> Any:
    """What a value of another type stands for: numbers as texts or decimals, NaN for a number that is missing."""
    if isinstance(value, bytes):
        return of_text(record, field, value, times)
    match field.kind:
        case Kind.TIMESTAMP:
            return of_time(record, field, value, times)
        case Kind.DOUBLE | Kind.LONG if isinstance(value, float | decimal.Decimal):
            if math.isnan(value):
                return None
            if isinstance(value, decimal.Decimal):
                return of_text(record, field, f"{value:f}".encode(), times)
            if field.kind is Kind.LONG:
                if not value.is_integer() or abs(value) > DOUBLE_EXACT_MAX:
                    raise wrong_value(record, field, value, "a whole number that a double holds exactly")
                return int(value)
            return value
        case _:
            return value


def _double(record: str, field: Field, text: str) -> float:
    """The nearest double; one of a whole number must be that number, as append wants it of an int.

    A text with an exponent is how programs write a double (1.2345678901234568e+25), and never that of an int.
    """
    number = float(text)
    if abs(number) >= DOUBLE_EXACT_MAX and math.isfinite(number) and "e" not in text.lower():
        exact = decimal.Decimal(text)
        # (Not `% 1`: it fails for more digits than the context has.)
        if exact == exact.to_integral_value() and exact != decimal.Decimal(number):
            raise wrong_value(record, field, text, "a number that a float64 holds exactly")
    return number


def wrong_value(record: str, field: Field, got: Any, wanted: str) -> RecordError:
    text = repr(got)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return RecordValueError(f"{record}.{field.name}: got {shown}, wanted {wanted}")
