"""What a caller may ask for, checked before anything is sent; every text goes to the server as a parameter."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ringlog.errors import QueryError
from ringlog.naming import did_you_mean
from ringlog.records import PerformanceMetric, Position, Record, Trade, layout_of

LIMIT_MAX = 1_000_000
TEXT_BYTES_MAX = 1_024
DURATION_US_MAX = 3_660 * 86_400_000_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_TIMESTAMP_MIN_US = 0
TIMESTAMP_MAX_US = 4_102_444_800_000_000  # 2100-01-01
_ORDERS = ("newest", "oldest")

Time = datetime.datetime | int
Duration = datetime.timedelta | int | float


class _FilterMeta(msgspec.StructMeta):
    """Turns an unknown field, a TypeError in Python, into the QueryError that callers handle."""

    def __call__(cls, *values: Any, **fields: Any) -> Any:  # noqa: N805 - a metaclass
        known = cls.__struct_fields__
        if unknown := sorted(set(fields) - set(known)):
            hint = did_you_mean(unknown[0], known)
            raise QueryError(
                f"{cls.__name__}: got unknown field {unknown[0]!r}, wanted one of {', '.join(known)}{hint}"
            )
        return super().__call__(*values, **fields)


class TradeFilter(msgspec.Struct, metaclass=_FilterMeta, frozen=True, kw_only=True):
    """Which trades: those with `start <= timestamp < end` that have every value given; None means any.

    `start`, `end`: aware datetimes or integer microseconds since the epoch. `token`: base or quote token.
    `limit`: rows at most, 1 to 1,000,000. `order`: the newest or the oldest first; a limit or a timeout cuts the other
    end. Raises QueryError for a wrong type, a reversed span, a limit out of range, a value that cannot be stored.
    """

    start: Time | None = None
    end: Time | None = None
    trader_id: str | None = None
    mode: str | None = None
    action: str | None = None
    token: str | None = None
    mev_status: str | None = None
    limit: int = 1_000
    order: Literal["newest", "oldest"] = "newest"

    def __post_init__(self) -> None:
        owner = "TradeFilter"
        start, end = time_us(f"{owner}.start", self.start), time_us(f"{owner}.end", self.end)
        if start is not None and end is not None and start >= end:
            raise QueryError(f"{owner}: got start {self.start} and end {self.end}, wanted start before end")
        checked_texts(
            owner,
            Trade,
            {name: getattr(self, name) for name in ("trader_id", "mode", "action", "mev_status")},
        )
        checked_text(f"{owner}.token", self.token)
        if type(self.limit) is not int or not 1 <= self.limit <= LIMIT_MAX:
            raise QueryError(f"{owner}.limit: got {self.limit!r}, wanted an int from 1 to {LIMIT_MAX}")
        if self.order not in _ORDERS:
            raise QueryError(f"{owner}.order: got {self.order!r}, wanted one of {', '.join(_ORDERS)}")


def time_us(owner: str, value: Any) -> int | None:
    """Microseconds since the epoch of an aware datetime or an int; None stays None. QueryError else."""
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise QueryError(f"{owner}: got a naive datetime {value}, wanted an aware one (tzinfo=datetime.UTC)")
        value = (value - _EPOCH) // _MICROSECOND
    if type(value) is not int:
        raise QueryError(f"{owner}: got {type(value).__name__}, wanted an aware datetime or int microseconds")
    if not _TIMESTAMP_MIN_US <= value <= TIMESTAMP_MAX_US:
        raise QueryError(f"{owner}: got {value}, wanted microseconds since 1970 up to the year 2100")
    return value


def time_of(microseconds: int) -> datetime.datetime:
    """The aware datetime (UTC) of microseconds since the epoch."""
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def duration_us(owner: str, value: Any) -> int:
    """Microseconds of a timedelta or a number of seconds; QueryError unless above 0 and at most ten years."""
    if isinstance(value, datetime.timedelta):
        microseconds: float = value // _MICROSECOND
    elif type(value) in (int, float) and math.isfinite(value):
        microseconds = value * 1_000_000
    else:
        raise QueryError(f"{owner}: got {value!r}, wanted a timedelta or a finite number of seconds")
    if not 1 <= microseconds <= DURATION_US_MAX:
        raise QueryError(f"{owner}: got {value!r}, wanted more than 0 and at most 3660 days")
    return int(microseconds)


def timeout_seconds(value_ms: Any) -> float:
    """Seconds of a timeout in milliseconds; QueryError unless it is a number from 1 to 3,600,000."""
    if type(value_ms) not in (int, float) or not 1 <= value_ms <= 3_600_000:
        raise QueryError(f"timeout_ms: got {value_ms!r}, wanted a number from 1 to 3600000")
    return float(value_ms) / 1_000


def checked_text(owner: str, value: Any, bytes_max: int = TEXT_BYTES_MAX) -> None:
    """QueryError unless `value` is None or a text that a column could hold."""
    if value is None:
        return
    if type(value) is not str:
        raise QueryError(f"{owner}: got {type(value).__name__}, wanted str")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise QueryError(f"{owner}: got text with a lone surrogate, wanted UTF-8") from None
    if b"\0" in encoded or len(encoded) > bytes_max:
        raise QueryError(f"{owner}: got {len(encoded)} bytes, wanted at most {bytes_max} without a NUL byte")


def checked_texts(owner: str, record_type: type[Record], values: dict[str, Any]) -> None:
    """Checks texts against the record type's fields: where a field has choices, the value must be one of them."""
    layout = layout_of(record_type)
    for name, value in values.items():
        checked_text(f"{owner}.{name}", value)
        choices = layout.field(name).choices
        if value is not None and choices and value not in choices:
            raise QueryError(f"{owner}.{name}: got {value!r}, wanted one of {', '.join(map(str, choices))}")


def checked_metric_type(value: Any) -> None:
    if value is None:
        raise QueryError("metric_type: got None, wanted a metric type")
    checked_texts("get_performance_metrics", PerformanceMetric, {"metric_type": value})


def checked_position(values: dict[str, Any]) -> None:
    checked_texts("get_positions", Position, values)


def checked_percentiles(values: Any) -> tuple[float, ...]:
    """The percentiles asked for as floats; QueryError unless they are 1 to 100 numbers above 0 and at most 100."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not 1 <= len(values) <= 100:
        raise QueryError(f"percentiles: got {values!r}, wanted a sequence of 1 to 100 numbers")
    for value in values:
        if type(value) not in (int, float) or not 0 < value <= 100:
            raise QueryError(f"percentiles: got {value!r}, wanted a number above 0 and at most 100")
    return tuple(float(value) for value in values)
