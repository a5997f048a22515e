"""The field kinds a record type is made of: how each is stored in a slot and in QuestDB.

A slot stores 8-byte fields first, then booleans, then texts. A text is a `u2` length followed by `width_bytes`
bytes of UTF-8, of which those past the length mean nothing (padding a signature on every append would double its cost);
length NULL_LENGTH is NULL, which is not the empty string. NULL of a double is NaN, of a long the
smallest int64: neither can be appended as a value, so both stay free to mean NULL.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

from ringlog.errors import DeclarationError

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
NULL_LONG = INT64_MIN
NULL_LENGTH = 0xFFFF
TEXT_WIDTH_BYTES_MAX = 32_768
# A record's time, whoever gave it: the writer takes no other. Append is stricter, but clocks are set back.
TIMESTAMP_MIN_US = 946_684_800_000_000  # 2000-01-01
TIMESTAMP_MAX_US = 7_258_118_400_000_000  # 2200-01-01


def whole_words(length_bytes: int) -> int:
    """Rounded up to 8 bytes: a text's place in a slot is whole words, so that copies need no remainder."""
    return -(-length_bytes // 8) * 8


class Kind(enum.IntEnum):
    """How a field is stored; the values are part of the segment layout and of `_ring.c`."""

    TIMESTAMP = 0  # int64 microseconds since the epoch, UTC
    DOUBLE = 1  # float64, NaN is NULL
    LONG = 2  # int64, the smallest is NULL
    BOOLEAN = 3  # one byte, 0 or 1, never NULL
    SYMBOL = 4  # a text that repeats
    VARCHAR = 5  # a text that mostly does not
    JSON = 6  # a VARCHAR that holds a JSON document

    @property
    def is_text(self) -> bool:
        return self >= Kind.SYMBOL


SERVER_TYPES = {
    Kind.TIMESTAMP: "TIMESTAMP",
    Kind.DOUBLE: "DOUBLE",
    Kind.LONG: "LONG",
    Kind.BOOLEAN: "BOOLEAN",
    Kind.SYMBOL: "SYMBOL",
    Kind.VARCHAR: "VARCHAR",
    Kind.JSON: "VARCHAR",
}


class Double(msgspec.Struct, frozen=True):
    """A finite float64 with `minimum <= value <= maximum`."""

    minimum: float = -1.7976931348623157e308
    maximum: float = 1.7976931348623157e308


class Long(msgspec.Struct, frozen=True):
    """An int64 with `minimum <= value <= maximum`, or one of `choices`; the smallest int64 is NULL's."""

    minimum: int = INT64_MIN + 1
    maximum: int = INT64_MAX
    choices: tuple[int, ...] = ()


class Symbol(msgspec.Struct, frozen=True):
    """A text of at most `width_bytes` bytes of UTF-8 that repeats from row to row; one of `choices` if given."""

    width_bytes: int
    choices: tuple[str, ...] = ()


class Varchar(msgspec.Struct, frozen=True):
    """A text of at most `width_bytes` bytes of UTF-8 that mostly differs from row to row."""

    width_bytes: int


class Json(msgspec.Struct, frozen=True):
    """A JSON document of at most `width_bytes` bytes: a dict or list (encoded on append), or text already encoded."""

    width_bytes: int


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a record type as it lies in a slot: what a segment's header carries, as JSON, for the writer."""

    name: str
    kind: Kind
    offset: int  # bytes from the slot's start
    width_bytes: int  # of the value: 8, 1, or a text's widest
    nullable: bool = False
    minimum: float | int | None = None
    maximum: float | int | None = None
    choices: tuple[str | int, ...] = ()

    @property
    def server_type(self) -> str:
        return SERVER_TYPES[self.kind]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the slot that belong to this field, a text's length included."""
        return whole_words(self.width_bytes + 2) if self.kind.is_text else self.width_bytes


def kind_and_limits(owner: str, python_type: Any, spec: Any) -> dict[str, Any]:
    """What `Field` needs besides name, offset and nullable, from a field's Python type and its Annotated spec."""
    match spec, python_type:
        case (Double(), _) if python_type is float:
            _check_limits(owner, spec, (float, int), -math.inf, math.inf)
            return {
                "kind": Kind.DOUBLE,
                "width_bytes": 8,
                "minimum": float(spec.minimum),
                "maximum": float(spec.maximum),
            }
        case (Long(), _) if python_type is int:
            _check_limits(owner, spec, (int,), INT64_MIN, INT64_MAX + 1)
            return {
                "kind": Kind.LONG,
                "width_bytes": 8,
                "minimum": spec.minimum,
                "maximum": spec.maximum,
                "choices": spec.choices,
            }
        case (Symbol(), _) if python_type is str:
            return {"kind": Kind.SYMBOL, "width_bytes": _width(owner, spec), "choices": spec.choices}
        case (Varchar(), _) if python_type is str:
            return {"kind": Kind.VARCHAR, "width_bytes": _width(owner, spec)}
        case (Json(), _):
            return {"kind": Kind.JSON, "width_bytes": _width(owner, spec)}
        case (None, _) if python_type is float:
            return kind_and_limits(owner, float, Double())
        case (None, _) if python_type is int:
            return kind_and_limits(owner, int, Long())
        case (None, _) if python_type is bool:
            return {"kind": Kind.BOOLEAN, "width_bytes": 1}
    raise DeclarationError(
        f"{owner}: got type {python_type!r} with {spec!r}, wanted float, int, bool, or "
        "Annotated[str, Symbol(width_bytes)], Annotated[str, Varchar(width_bytes)], Annotated[dict, Json(width_bytes)]"
    )


def _check_limits(owner: str, spec: Double | Long, types: tuple[type, ...], below: float, above: float) -> None:
    """Limits and choices lie strictly between `below` and `above`: infinity and the smallest int64 are not values."""
    values = [spec.minimum, spec.maximum, *(spec.choices if isinstance(spec, Long) else ())]
    if not all(type(value) in types and below < value < above for value in values) or spec.minimum > spec.maximum:
        raise DeclarationError(
            f"{owner}: got {spec!r}, wanted minimum <= maximum, both "
            + ("finite floats" if isinstance(spec, Double) else f"ints from {INT64_MIN + 1} to {INT64_MAX}")
        )


def _width(owner: str, spec: Symbol | Varchar | Json) -> int:
    if type(spec.width_bytes) is not int or not 1 <= spec.width_bytes <= TEXT_WIDTH_BYTES_MAX:
        raise DeclarationError(f"{owner}: got width_bytes={spec.width_bytes!r}, wanted 1 to {TEXT_WIDTH_BYTES_MAX}")
    if isinstance(spec, Symbol):
        for choice in spec.choices:
            if not 1 <= len(choice.encode("utf-8", "replace")) <= spec.width_bytes or not _is_storable(choice):
                raise DeclarationError(
                    f"{owner}: got choice {choice!r}, wanted 1 to {spec.width_bytes} bytes of UTF-8 without NUL"
                )
    return spec.width_bytes


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
