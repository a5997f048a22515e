"""How a file is laid out, as far as it does not say so itself: what a replay's options say."""

from __future__ import annotations

import zoneinfo

import msgspec

from ringlog.errors import RinglogError
from ringlog.naming import did_you_mean
from ringlog.records import TIMESTAMP
from ringlog.replay.times import AUTO, UNITS, Times

FORMATS = ("csv", "ndjson", "parquet")


class ShapeError(RinglogError):
    """An option of a replay fits nothing; the message says what was wanted."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay takes a file for.

    `format`: one of FORMATS, "" for what the name says. `mapping`: field to column, where they are not called alike.
    `constants`: field to text, for what is not in the file. `columns`: the names, for a file without a header line.
    `skip_lines`: lines before the header or the first row. The others: see Times.
    """

    format: str = ""
    mapping: dict[str, str] = {}
    constants: dict[str, str] = {}
    columns: tuple[str, ...] = ()
    skip_lines: int = 0
    delimiter: str = ","
    time_unit: str = "us"
    time_zone: str = ""
    time_floor: bool = False
    stamp_now: bool = False

    @property
    def times(self) -> Times:
        return Times(unit=self.time_unit, zone=self.time_zone, floors=self.time_floor, stamps_now=self.stamp_now)

    def check(self) -> None:
        """Raises ShapeError where an option's value means nothing."""
        if self.time_unit not in (*UNITS, AUTO):
            raise ShapeError(f"--time-unit: got {self.time_unit!r}, wanted one of {', '.join((*UNITS, AUTO))}")
        if self.time_zone:
            self._check_zone()
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n\0':
            raise ShapeError(f"--delimiter: got {self.delimiter!r}, wanted one ASCII character, or tab")
        double = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if double or "" in self.columns:
            raise ShapeError(f"--columns: got {double[0] if double else 'an empty name'!r}, wanted each name once")
        if self.skip_lines < 0:
            raise ShapeError(f"--skip-lines: got {self.skip_lines}, wanted 0 or more")
        both = sorted(self.mapping.keys() & self.constants.keys())
        if both or TIMESTAMP in self.constants:
            raise ShapeError(f"--set: got {(both or [TIMESTAMP])[0]}, wanted a field that no column is named for")

    def _check_zone(self) -> None:
        try:
            zoneinfo.ZoneInfo(self.time_zone)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            hint = did_you_mean(self.time_zone, sorted(zoneinfo.available_timezones()))
            raise ShapeError(
                f"--time-zone: got {self.time_zone!r}, wanted a name such as UTC or Europe/Berlin{hint}"
            ) from None

    def difference(self, other: Shape) -> str:
        """The first option that is not the other's, with the other's value; "" where there is none."""
        for name in self.__struct_fields__:
            if getattr(self, name) != getattr(other, name):
                return f"another {name.replace('_', ' ')} than it was begun with, wanted {getattr(other, name)!r}"
        return ""
