"""What a caller may ask for, checked before anything is sent; every text goes to the server as a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ringlog.errors import QueryError
from ringlog.naming import did_you_mean
from ringlog.questdb.rows import LIMIT_MAX
from ringlog.records import PerformanceMetric, Position, Record, Trade, layout_of
from ringlog.times import Bounds, Duration, Time, bounds

TEXT_BYTES_MAX = 1_024
_ORDERS = ("newest", "oldest")


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

    `start` (or `since`), `end` and `duration` are what `ringlog.times` takes: aware datetimes, timedeltas, numbers,
    texts such as 1h. `token`: base or quote token. `limit`: rows at most, 1 to 1,000,000. `order`: the newest or the
    oldest first; a limit or a timeout cuts the other end. Raises QueryError for a wrong type, a reversed span,
    arguments that contradict each other, a limit out of range, a value that cannot be stored.
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
    since: Time | None = None
    duration: Duration | None = None

    def __post_init__(self) -> None:
        owner = "TradeFilter"
        self.bounds()
        checked_texts(
            owner,
            Trade,
            {name: getattr(self, name) for name in ("trader_id", "mode", "action", "mev_status")},
        )
        checked_text(f"{owner}.token", self.token)
        checked_limit(owner, self.limit, self.order)

    def bounds(self) -> Bounds:
        return bounds("TradeFilter", since=self.since, start=self.start, end=self.end, duration=self.duration)


def checked_limit(owner: str, limit: Any, order: Any) -> None:
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise QueryError(f"{owner}.limit: got {limit!r:.80}, wanted an int from 1 to {LIMIT_MAX}")
    if order not in _ORDERS:
        raise QueryError(f"{owner}.order: got {order!r:.80}, wanted one of {', '.join(_ORDERS)}")


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


def checked_metric(metric_type: Any, operation: Any) -> None:
    if metric_type is None:
        raise QueryError("metric_type: got None, wanted a metric type")
    checked_texts("get_performance_metrics", PerformanceMetric, {"metric_type": metric_type, "operation": operation})


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
