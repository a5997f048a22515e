"""A row's time as files write it, to exact microseconds: one by one, and a whole column at once.

What `of_column` takes `of_value` takes too, with the same result: how a row is judged never depends on its neighbours.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import zoneinfo
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ringlog.errors import RinglogError
from ringlog.records.fields import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US

UNITS = {"s": 6, "ms": 3, "us": 0, "ns": -3}  # the power of ten that makes microseconds of it
AUTO = "auto"
TEXT_CHARACTERS_MAX = 64
DOUBLE_EXACT_MAX = 2**53
_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?"
_ZONE = r"(Z|[+-]\d\d(:?\d\d)?)"
_ISO_TEXT = re.compile(rf"({_ISO}){_ZONE}?", re.ASCII)
_NUMBER_TEXT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)
_EXACT = decimal.Context(prec=200)  # more digits than any number here has: nothing is rounded
_EPOCH = datetime.datetime(1970, 1, 1)
_SECOND = datetime.timedelta(seconds=1)
_UTC = "UTC"


class Unsound(Exception):
    """A column holds what append would not take, or only a look at single values can tell: then row by row."""


class TimeError(RinglogError):
    """A value is no exact time; the message says what was wanted."""


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How a file writes times.

    `unit`: of numbers, one of UNITS, or AUTO: the one that puts a time between 2000 and 2200, which is never two.
    `zone`: of times without one, "" to reject them. `floors`: finer times are cut to microseconds, not rejected.
    `stamps_now`: rows without a time get that of their append; otherwise they are rejected.
    """

    unit: str = "us"
    zone: str = ""
    floors: bool = False
    stamps_now: bool = False

    def of_value(self, value: Any, unit: str = "") -> int | None:
        """Microseconds since the epoch of a text, a number or a datetime; None is none. `unit`: a typed column's.

        Raises TimeError.
        """
        if type(value) is int and (unit or self.unit) == "us" and TIMESTAMP_MIN_US <= value <= TIMESTAMP_MAX_US:
            return value
        match value:
            case None:
                return None
            case str():
                return self._of_text(value)
            case bool():
                raise TimeError(self._wanted())
            case float():
                if math.isnan(value):
                    return None
                if abs(value) > DOUBLE_EXACT_MAX:  # a double's neighbours are further than one apart
                    raise TimeError(self._wanted())
                return self._of_number(decimal.Decimal(repr(value)), unit)  # the shortest text is what was written
            case int() | decimal.Decimal():
                return self._of_number(decimal.Decimal(value), unit)
            case datetime.datetime():
                local = (value.replace(tzinfo=None) - _EPOCH) // datetime.timedelta(microseconds=1)
                offset = value.utcoffset()
                return self.of_local(local * 1000) if offset is None else local - _microseconds(offset)
        raise TimeError(self._wanted())

    def of_local(self, local_ns: int) -> int:
        """Microseconds since the epoch, UTC, of nanoseconds as a clock of the zone shows them. Raises TimeError."""
        if not self.zone:
            raise TimeError("a time with a zone: see --time-zone")
        local_us = self._whole(decimal.Decimal(local_ns).scaleb(-3, _EXACT))
        if self.zone == _UTC:
            return local_us
        zone = zoneinfo.ZoneInfo(self.zone)
        try:
            shown = (_EPOCH + datetime.timedelta(microseconds=local_us)).replace(tzinfo=zone)
            first, second = shown.utcoffset(), shown.replace(fold=1).utcoffset()
        except OverflowError:
            raise TimeError(self._wanted()) from None
        if first is None or first != second:
            raise TimeError(f"a time that clocks in {self.zone} showed exactly once: write it with its offset")
        return local_us - _microseconds(first)

    def _of_text(self, text: str) -> int:
        if len(text) > TEXT_CHARACTERS_MAX:
            raise TimeError(self._wanted())
        if _NUMBER_TEXT.fullmatch(text) is not None:
            return self._of_number(decimal.Decimal(text), "")
        if (found := _ISO_TEXT.fullmatch(text)) is None:
            raise TimeError(self._wanted())
        whole, _, fraction = found[1].partition(".")
        try:
            local = datetime.datetime.fromisoformat(whole)
            offset = datetime.datetime.fromisoformat(f"2000-01-01T00:00{found[4]}").utcoffset() if found[4] else None
        except ValueError:
            raise TimeError(self._wanted()) from None
        local_ns = (local - _EPOCH) // _SECOND * 10**9 + int(fraction.ljust(9, "0"))
        if offset is None:
            return self.of_local(local_ns)
        return self._whole(decimal.Decimal(local_ns).scaleb(-3, _EXACT)) - _microseconds(offset)

    def _of_number(self, number: decimal.Decimal, unit: str) -> int:
        for name in [unit or self.unit] if (unit or self.unit) != AUTO else UNITS:
            microseconds = number.scaleb(UNITS[name], _EXACT)
            if TIMESTAMP_MIN_US <= microseconds <= TIMESTAMP_MAX_US:
                return self._whole(microseconds)
        if not unit and self.unit != AUTO:
            for name, power in UNITS.items():
                if TIMESTAMP_MIN_US <= number.scaleb(power, _EXACT) <= TIMESTAMP_MAX_US:
                    raise TimeError(f"{self._wanted()}; it may be in {name}: see --time-unit")
        raise TimeError(f"{self._wanted()}, between 2000 and 2200")

    def _whole(self, microseconds: decimal.Decimal) -> int:
        whole = microseconds.to_integral_value(decimal.ROUND_FLOOR, _EXACT)
        if whole != microseconds and not self.floors:
            raise TimeError("whole microseconds, at most six decimals of a second: --time-floor cuts finer times")
        return int(whole)

    def _wanted(self) -> str:
        names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
        zone = f"without a zone ({self.zone})" if self.zone else "with a time zone (or --time-zone)"
        return f"{names.get(self.unit, 'numbers')} since the epoch, or ISO 8601 {zone}"

    def of_column(self, array: Any) -> Any:
        """An Arrow array of int64 microseconds, NULL where there is no time.

        Raises Unsound or an Arrow exception where `of_value` would not take all of it, or where only it can tell.
        """
        kind = array.type
        if pa.types.is_null(kind):
            return array.cast(pa.int64())
        if pa.types.is_timestamp(kind):
            return self._of_stamps(array)
        if pa.types.is_floating(kind):
            return self._of_floats(array.cast(pa.float64()))
        if pa.types.is_integer(kind):
            return self._scaled(array.cast(pa.int64()))
        if not (pa.types.is_binary(kind) or pa.types.is_string(kind)):
            raise Unsound
        texts = array.cast(pa.string())
        first = next(iter(texts.drop_null()[:1].to_pylist()), "")  # a file that has several forms is read row by row
        if first.removeprefix("-").isdecimal() and _all_match(texts, r"-?\d{1,18}"):
            return self._scaled(texts.cast(pa.int64()))
        if _all_match(texts, rf"{_ISO}{_ZONE}"):
            return self._of_nanoseconds(texts.cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()))
        if _all_match(texts, _ISO):
            return self._of_stamps(texts.cast(pa.timestamp("ns")))
        if self.unit in ("s", "ms") and _all_match(texts, r"-?\d{1,18}\.\d{1,9}"):
            return _unscaled(texts.cast(pa.decimal128(38, UNITS[self.unit])))
        raise Unsound

    def _of_stamps(self, array: Any) -> Any:
        if array.type.tz is None:
            if not self.zone:
                raise Unsound
            # Raises where a time was shown twice, or never.
            array = pc.assume_timezone(array, self.zone)
        if array.type.unit == "ns":
            return self._of_nanoseconds(array.cast(pa.int64()))
        return array.cast(pa.timestamp("us", tz=array.type.tz)).cast(pa.int64())

    def _of_nanoseconds(self, array: Any) -> Any:
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        if not self.floors and bool(np.any(values % 1000)):
            raise Unsound
        return _masked(values // 1000, array)

    def _of_floats(self, array: Any) -> Any:
        """Seconds as doubles: exact where the double is the nearest to whole microseconds, as its text then says."""
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
        if self.unit not in ("s", "ms"):
            values = array.fill_null(0).to_numpy(zero_copy_only=False)
            if not bool(np.all(np.abs(values) <= DOUBLE_EXACT_MAX)):
                raise Unsound
            return self._scaled(array.cast(pa.int64()))
        power = 10.0 ** UNITS[self.unit]
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            microseconds = np.rint(values * power)
            if not bool(np.all((np.abs(microseconds) < DOUBLE_EXACT_MAX) & (microseconds / power == values))):
                raise Unsound
        return _masked(microseconds.astype(np.int64), array)

    def _scaled(self, array: Any) -> Any:
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        if self.unit == "ns":
            return self._of_nanoseconds(array)
        if self.unit != AUTO:
            return _masked(_times(values, 10 ** UNITS[self.unit]), array)
        found = np.zeros(len(values), np.int64)
        for power in UNITS.values():
            factor = 10.0**power
            fits = (values >= TIMESTAMP_MIN_US / factor) & (values <= TIMESTAMP_MAX_US / factor)
            if power >= 0:
                found[fits] = values[fits] * 10**power
            else:
                if not self.floors and bool(np.any(values[fits] % 1000)):
                    raise Unsound
                found[fits] = values[fits] // 1000
        return _masked(found, array)  # what fits no unit is 0, which is before 2000


def _microseconds(offset: datetime.timedelta) -> int:
    return offset // datetime.timedelta(microseconds=1)


def _all_match(texts: Any, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(texts, rf"\A(?:{pattern})\z")).as_py() is not False


def _masked(values: NDArray[Any], like: Any) -> Any:
    if not like.null_count:
        return pa.array(values)
    return pa.array(values, mask=like.is_null().to_numpy(zero_copy_only=False))


def _times(values: NDArray[Any], factor: int) -> NDArray[Any]:
    if factor > 1 and not bool(np.all(np.abs(values) <= TIMESTAMP_MAX_US // factor)):
        raise Unsound
    return values * factor


def _unscaled(array: Any) -> Any:
    """The digits of decimals without their point, as int64."""
    words = np.frombuffer(array.buffers()[1], np.int64)[2 * array.offset : 2 * (array.offset + len(array))]
    low, high = words[::2], words[1::2]
    if not bool(np.all(~array.is_valid().to_numpy(zero_copy_only=False) | (high == np.where(low < 0, -1, 0)))):
        raise Unsound
    return _masked(low.copy(), array)
