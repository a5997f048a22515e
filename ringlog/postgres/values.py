"""What is checked of every value before it goes to PostgreSQL, and after it comes back."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from ringlog.errors import PostgresValueError

T = TypeVar("T")

JSON_BYTES_MAX = 65_536


def fitted(what: str, value: Any, wanted: type[T]) -> T:
    """`value` (a struct, or what JSON gave) as `wanted`; raises PostgresValueError that names the field."""
    try:
        return msgspec.convert(msgspec.to_builtins(value), wanted)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise PostgresValueError(f"{what}: {error}") from None


def json_text(what: str, value: Any) -> str:
    """`value` as JSON of at most 64 KiB, without NUL characters, which PostgreSQL's jsonb cannot hold."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PostgresValueError(f"{what}: got something that is no JSON: {error}") from None
    if len(text) > JSON_BYTES_MAX:
        raise PostgresValueError(f"{what}: got {len(text)} bytes of JSON, wanted at most {JSON_BYTES_MAX}")
    if "\\u0000" in text:
        raise PostgresValueError(f"{what}: got JSON with a NUL character, which PostgreSQL cannot hold")
    return text


def checked_text(what: str, value: object, bytes_max: int, bytes_min: int = 1) -> str:
    """`value`, if it is a text of that many bytes of UTF-8 without NUL."""
    if not isinstance(value, str):
        raise PostgresValueError(f"{what}: got {type(value).__name__}, wanted str")
    try:
        length_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise PostgresValueError(f"{what}: got {value!r:.60}, wanted valid UTF-8") from None
    if not bytes_min <= length_bytes <= bytes_max or "\0" in value:
        raise PostgresValueError(f"{what}: got {value!r:.60}, wanted {bytes_min} to {bytes_max} bytes without NUL")
    return value


def checked_decimal(what: str, value: object, minimum: Decimal | None = None) -> Decimal:
    """`value` as a finite Decimal above `minimum` (0 unless given). Floats are refused: 0.1 is not what they hold."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int):
        raise PostgresValueError(f"{what}: got {value!r:.60}, wanted a Decimal")
    number = Decimal(value)
    if not number.is_finite() or number <= (minimum or 0) or abs(number.adjusted()) > 60:
        raise PostgresValueError(f"{what}: got {value!r:.60}, wanted a finite number above {minimum or 0}")
    return number
