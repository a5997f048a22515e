"""Values of a file as the Python values that append takes, one by one: where a batch holds something that is wrong."""

from __future__ import annotations

import datetime
import re
from typing import Any

from ringlog.errors import RecordTypeError, RecordValueError
from ringlog.records import Field, Kind

_DOUBLE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LONG = re.compile(r"-?\d+")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def of_text(record: str, field: Field, text: bytes | None) -> Any:
    """What a text of a CSV file stands for; None is NULL. Raises RecordError, naming record, field, got and wanted."""
    if text is None:
        return None
    try:
        value = text.decode()
    except UnicodeDecodeError:
        raise _wrong(record, field, text, "UTF-8") from None
    match field.kind:
        case Kind.DOUBLE:
            if _DOUBLE.fullmatch(value) is None:
                raise _wrong(record, field, value, "a finite number")
            return float(value)
        case Kind.LONG:
            if _LONG.fullmatch(value) is None:
                raise _wrong(record, field, value, "a whole number")
            return int(value)
        case Kind.BOOLEAN:
            if value.lower() not in _BOOLEANS:
                raise _wrong(record, field, value, "true, false, 1 or 0")
            return _BOOLEANS[value.lower()]
        case Kind.TIMESTAMP:
            return of_stamp(record, field, value)
        case _:
            return value


def of_stamp(record: str, field: Field, value: Any) -> Any:
    """A timestamp: microseconds since the epoch as digits, or ISO 8601 with a time zone; other types as they are."""
    if not isinstance(value, str):
        return value
    if _LONG.fullmatch(value) is not None:
        return int(value)
    try:
        stamp = datetime.datetime.fromisoformat(value)
    except ValueError:
        stamp = None
    if stamp is None or stamp.utcoffset() is None or len(value) < len("2024-01-01T00:00Z"):
        raise _wrong(record, field, value, "microseconds since the epoch, or ISO 8601 with a time zone")
    if (fraction := re.search(r"[.,](\d+)", value)) and len(fraction[1].rstrip("0")) > 6:
        raise _wrong(record, field, value, "at most six decimals of a second")
    return stamp


def of_object(record: str, field: Field, value: Any) -> Any:
    """What a value of a JSON document or a Parquet column stands for."""
    return of_stamp(record, field, value) if field.kind is Kind.TIMESTAMP else value


def _wrong(record: str, field: Field, got: Any, wanted: str) -> RecordTypeError | RecordValueError:
    text = repr(got)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return RecordValueError(f"{record}.{field.name}: got {shown}, wanted {wanted}")
