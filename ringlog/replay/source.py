"""What a replay reads: a file as parts of some thousand rows, each row with its number in the file."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.errors import RecordTypeError, RecordValueError
from ringlog.naming import did_you_mean
from ringlog.records import TIMESTAMP, RecordLayout
from ringlog.replay.shape import Shape
from ringlog.replay.unpacking import FileError

NAMES_SHOWN_MAX = 60


class Place(msgspec.Struct, frozen=True):
    """Up to where a file was read: bytes of its uncompressed content (rows of a Parquet file), the number of the next
    line (row), and a digest of all before it (of a whole Parquet file)."""

    offset: int = 0
    line: int = 1
    digest: str = ""


@dataclasses.dataclass
class Part:
    """Rows of a file: their numbers (from 1), as columns by field name where it has any, and one by one.

    `row(i)` gives a row as append takes it, or raises RecordError; `text(i)` shows it. `broken` are lines that are no
    rows: number, reason, text. `after` is the place behind it all.
    """

    numbers: NDArray[np.int64]
    columns: dict[str, Any] | None
    row: Callable[[int], Mapping[str, Any]]
    text: Callable[[int], str]
    broken: list[tuple[int, str, str]]
    after: Place


class Source:
    """A file of records of one layout, laid out as `shape` says. `optional`: fields that need no column."""

    def __init__(self, path: Path, layout: RecordLayout, shape: Shape, optional: Collection[str]) -> None:
        self.path = path
        self.layout = layout
        self.shape = shape
        self.times = shape.times
        self._fields = {field.name: field for field in layout.fields}
        for option, named in (("--map", shape.mapping), ("--set", shape.constants)):
            unknown = named.keys() - self._fields.keys()
            if unknown:
                raise RecordTypeError(
                    f"{option}: got field {', '.join(sorted(unknown))}, wanted one of {layout.name}'s: "
                    f"{', '.join(self._fields)}{did_you_mean(min(unknown), self._fields)}"
                )
        self._optional = {*optional, *shape.constants, *((TIMESTAMP,) if shape.stamp_now else ())}
        self._mapping = {name: shape.mapping.get(name, name) for name in self._fields if name not in shape.constants}
        self.broken_end = ""  # why the file ends in the middle, once that was seen

    def parts(self, place: Place) -> Iterator[Part]:
        """The file from `place` on. Raises FileError where it cannot be read, or is not the file that was read."""
        raise NotImplementedError

    @property
    def extent(self) -> tuple[int, int]:
        """How much was read, of how much: bytes as they lie on disk, or rows."""
        raise NotImplementedError

    @property
    def has_timestamps(self) -> bool:
        """Whether rows say when they were; only known once columns are."""
        return True

    def _matched(self, columns: Sequence[str]) -> dict[str, str]:
        """Field to column. Raises FileError where a column is missing, double, or mapped and not there."""
        double = sorted(name for name, count in collections.Counter(columns).items() if count > 1)
        if double:
            raise FileError(f"{self.path}: got column {', '.join(double[:NAMES_SHOWN_MAX])} twice, wanted each once")
        known = frozenset(columns)
        missing = [
            self._named(name)
            for name, column in self._mapping.items()
            if column not in known and (name in self.shape.mapping or name not in self._optional)
        ]
        if missing:
            raise self._lacking(columns, missing)
        return {name: column for name, column in self._mapping.items() if column in known}

    def _named(self, name: str) -> str:
        column = self._mapping[name]
        return name if column == name else f"{name} (mapped to {column!r})"

    def _lacking(self, columns: Sequence[str], missing: Sequence[str]) -> FileError:
        hints = []
        if any(not name.startswith(TIMESTAMP) for name in missing):
            hints.append("see --map FIELD=COLUMN and --set FIELD=VALUE")
        if any(name.startswith(TIMESTAMP) for name in missing):
            hints.append("--time-column names the column of the rows' time, --stamp-now stamps them when appended")
        more = f" and {len(columns) - NAMES_SHOWN_MAX} more" if len(columns) > NAMES_SHOWN_MAX else ""
        shown = ", ".join(columns[:NAMES_SHOWN_MAX]) + more
        return FileError(f"{self.path}: got columns {shown}, wanted also {', '.join(missing)}: {'; '.join(hints)}")

    def _timed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, which must have a time unless it is to be stamped. Raises RecordValueError."""
        if row.get(TIMESTAMP) is None and not self.times.stamps_now:
            raise RecordValueError(
                f"{self.layout.name}.timestamp: got none, wanted the row's time: --stamp-now stamps such rows when "
                "they are appended"
            )
        return row

    def _changed(self, place: Place) -> FileError:
        return FileError(
            f"{self.path}: got other content before line {place.line} than was replayed, wanted the same: "
            "is it another file?"
        )


def no_rows(broken: list[tuple[int, str, str]], after: Place) -> Part:
    """A part of broken lines alone."""
    return Part(np.empty(0, np.int64), None, _no_row, _no_text, broken, after)


def _no_row(_number: int) -> Mapping[str, Any]:
    raise IndexError


def _no_text(_number: int) -> str:
    return ""
