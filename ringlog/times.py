"""The vocabulary of time that calls and commands share: what `since`, `start`, `end` and `duration` may be given as.

A point in time (`since`, `start`, `end`; `since` is another word for `start`):
    an aware datetime               2026-11-30T10:00+01:00 and 2026-11-30T09:00Z as text
    a date                          its midnight in UTC, 2026-11-30 as text
    a timedelta, a number           that long before now, a number in seconds; 90s, 1h, 2d, 1h30m as text
    an int from year 2000 on        microseconds since the epoch, as records have them
    now                             as text

A length of time (`duration`): a timedelta, a number of seconds, or a text such as 1h. It lies behind `start`, before
`end`, or before now where neither is given. "Now" is the server's clock, so that spans stay open until it was asked.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import numbers
import re
from typing import Any, NamedTuple

from ringlog.errors import QueryError

Time = datetime.datetime | datetime.date | datetime.timedelta | int | float | str
Duration = datetime.timedelta | int | float | str

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
DURATION_DAYS_MAX = 3_660
DURATION_US_MAX = DURATION_DAYS_MAX * 86_400_000_000
TIMESTAMP_MAX_US = 4_102_444_800_000_000  # 2100-01-01
# Numbers from here on are points in time, those up to DURATION_US_MAX are lengths; what lies between is neither.
_POINT_MIN_US = 946_684_800_000_000  # 2000-01-01

_UNITS_US = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?"
_PLAIN = re.compile(_NUMBER)
_PART = re.compile(rf"({_NUMBER})(ms|[smhdw])")
_PARTS = re.compile(rf"(?:{_NUMBER}(?:ms|[smhdw]))+")
# A year, or a date without its hyphens: as numbers of seconds they would be taken for what nobody meant.
_DATE_LIKE = re.compile(r"(?:19|20|21)[0-9]{2}(?:[0-9]{2}(?:[0-9]{2})?)?")
_NANOSECONDS = re.compile(r"[.,][0-9]{6}0*[1-9]")
_WANTED_LENGTH = (
    f"above 0 and at most {DURATION_DAYS_MAX} days: a timedelta, a number of seconds, "
    "or a text such as 90s, 15m, 24h or 7d"
)
_WANTED_POINT = (
    "an aware datetime, microseconds since the epoch (2000 to 2100), a text such as 2026-11-30T10:00+01:00 or "
    "2026-11-30 (UTC), or how long ago: a timedelta, a number of seconds, or a text such as 90s, 1h or 2d"
)


class Point(NamedTuple):
    """Microseconds since the epoch, or where `is_ago`, before now (negative: after it)."""

    microseconds: int
    is_ago: bool = False

    def at(self, now_us: int) -> int:
        return now_us - self.microseconds if self.is_ago else self.microseconds

    def later(self, duration_us: int) -> Point:
        return Point(self.microseconds + (-duration_us if self.is_ago else duration_us), self.is_ago)


NOW = Point(0, is_ago=True)


class Bounds(NamedTuple):
    """`start <= timestamp < end` as it was asked for; None is open."""

    start: Point | None
    end: Point | None

    @property
    def needs_now(self) -> bool:
        return any(point is not None and point.is_ago for point in self)

    def at(self, owner: str, now_us: int | None) -> tuple[int | None, int | None]:
        """Both in microseconds since the epoch. QueryError where the start does not come before the end."""
        start = None if self.start is None else max(0, self.start.at(now_us or 0))
        end = None if self.end is None else min(TIMESTAMP_MAX_US, self.end.at(now_us or 0))
        if start is not None and end is not None and start >= end:
            raise QueryError(
                f"{owner}: got start {shown_time(start)} and end {shown_time(end)}, wanted start before end"
            )
        return start, end


def bounds(owner: str, *, since: Any = None, start: Any = None, end: Any = None, duration: Any = None) -> Bounds:
    """The span that a caller means. QueryError, by the arguments' names, for what contradicts itself or is no time."""
    if since is not None and start is not None:
        raise QueryError(f"{owner}: got since {_got(since)} and start {_got(start)}, wanted one of them")
    name = "start" if since is None else "since"
    first = start if since is None else since
    if duration is not None and first is not None and end is not None:
        raise QueryError(f"{owner}: got {name}, end and duration, wanted two of them")
    low = None if first is None else point(f"{owner}.{name}", first)
    high = None if end is None else point(f"{owner}.end", end)
    if duration is not None:
        length_us = duration_us(f"{owner}.duration", duration)
        if low is not None:
            high = low.later(length_us)
        else:
            high = NOW if high is None else high
            low = high.later(-length_us)
    found = Bounds(low, high)
    if low is not None and high is not None and low.is_ago == high.is_ago and low.at(0) >= high.at(0):
        raise QueryError(f"{owner}: got {name} {_got(first)} and end {_got(end)}, wanted start before end")
    return found


def point(owner: str, value: Any) -> Point:
    """A point in time; QueryError for what is none, is naive, or lies outside 1970 to 2100."""
    if isinstance(value, str):
        return _text_point(owner, value)
    if isinstance(value, datetime.datetime):
        return Point(_epoch_us(owner, value))
    if isinstance(value, datetime.date):
        return Point(_epoch_us(owner, datetime.datetime.combine(value, datetime.time(), datetime.UTC)))
    if isinstance(value, datetime.timedelta):
        return Point(duration_us(owner, value), is_ago=True)
    if _is_number(value):
        if isinstance(value, numbers.Integral) and _POINT_MIN_US <= int(value) <= TIMESTAMP_MAX_US:
            return Point(int(value))
        microseconds = _microseconds(value)
        if microseconds is not None:
            return Point(microseconds, is_ago=True)
    raise QueryError(f"{owner}: got {_got(value)}, wanted {_WANTED_POINT}")


def duration_us(owner: str, value: Any) -> int:
    """Microseconds of a length of time; QueryError unless it is above 0 and at most ten years."""
    microseconds: int | None = None
    if isinstance(value, str):
        microseconds = _text_length(value)
    elif isinstance(value, datetime.timedelta):
        microseconds = value // MICROSECOND
    elif _is_number(value):
        microseconds = _microseconds(value)
    if microseconds is None or not 1 <= microseconds <= DURATION_US_MAX:
        raise QueryError(f"{owner}: got {_got(value)}, wanted {_WANTED_LENGTH}")
    return microseconds


def time_of(microseconds: int) -> datetime.datetime:
    """The aware datetime (UTC) of microseconds since the epoch."""
    return EPOCH + datetime.timedelta(microseconds=microseconds)


def microseconds_of(value: datetime.datetime) -> int:
    """Microseconds since the epoch of an aware datetime."""
    return (value - EPOCH) // MICROSECOND


def shown_time(microseconds: int) -> str:
    try:
        return time_of(microseconds).isoformat()
    except OverflowError:
        return f"{microseconds} us since the epoch"


def _text_point(owner: str, text: str) -> Point:
    if text == "now":
        return NOW
    if _PLAIN.fullmatch(text) and not _DATE_LIKE.fullmatch(text):
        return point(owner, int(text) if text.isdigit() else float(text))
    ago = None if _DATE_LIKE.fullmatch(text) else _text_length(text)
    if ago is not None and 1 <= ago <= DURATION_US_MAX:
        return Point(ago, is_ago=True)
    try:
        return point(owner, datetime.date.fromisoformat(text if "-" in text else ""))
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text if "-" in text else "")
    except ValueError:
        raise QueryError(f"{owner}: got {text!r:.80}, wanted {_WANTED_POINT}") from None
    if _NANOSECONDS.search(text):
        raise QueryError(f"{owner}: got {text!r:.80}, wanted at most six digits of a second's fraction")
    if moment.tzinfo is None:
        raise QueryError(f"{owner}: got {text!r:.80} without a time zone, wanted one behind it, such as Z or +01:00")
    return Point(_epoch_us(owner, moment))


def _epoch_us(owner: str, moment: datetime.datetime) -> int:
    if moment.tzinfo is None or moment.utcoffset() is None:  # pandas' NaT has no offset to be asked for
        raise QueryError(f"{owner}: got a naive datetime {moment}, wanted an aware one (tzinfo=datetime.UTC)")
    if getattr(moment, "nanosecond", 0):
        raise QueryError(f"{owner}: got {moment.isoformat()} with nanoseconds, wanted whole microseconds")
    microseconds = microseconds_of(moment)
    if not 0 <= microseconds <= TIMESTAMP_MAX_US:
        raise QueryError(f"{owner}: got {moment.isoformat()}, wanted a time from 1970 up to the year 2100")
    return microseconds


def _text_length(text: str) -> int | None:
    """Microseconds of `1h30m` or of a number of seconds; None for what is neither."""
    if _PLAIN.fullmatch(text):
        return int(decimal.Decimal(text) * 1_000_000)
    if not _PARTS.fullmatch(text):
        return None
    parts = _PART.findall(text)
    units = [_UNITS_US[unit] for _, unit in parts]
    if any(unit <= after for unit, after in itertools.pairwise(units)):
        return None  # 5m2h, 1h1h: not what anybody writes
    return int(sum(decimal.Decimal(number) * unit for (number, _), unit in zip(parts, units, strict=True)))


def _is_number(value: Any) -> bool:
    # numpy's timedelta64 counts as an integer, of a unit that its value does not tell. (numpy is not loaded for it.)
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and type(value).__name__ != "timedelta64"


def _microseconds(seconds: Any) -> int | None:
    """Of a number of seconds; None where that is no length (not above 0, not finite, more than ten years)."""
    if not 0 < seconds <= DURATION_US_MAX // 1_000_000:  # false for nan, too
        return None
    # As a number of Python's own: the product may be too large for one of numpy's.
    exact = int(seconds) if isinstance(seconds, numbers.Integral) else float(seconds)
    return round(exact * 1_000_000) or None


def _got(value: Any) -> str:
    if isinstance(value, bool) or not (isinstance(value, str | datetime.timedelta) or _is_number(value)):
        return f"{value} (bool)" if isinstance(value, bool) else type(value).__name__
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int of more digits than Python turns into text
        return f"an int of {value.bit_length()} bits"
