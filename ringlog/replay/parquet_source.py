"""Parquet files as parts, in memory that follows from what rows hold and not from what pages share or declare."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ringlog.errors import RecordValueError
from ringlog.records import TIMESTAMP, Field, Kind
from ringlog.records.fields import TEXT_WIDTH_BYTES_MAX
from ringlog.replay.pages import Damaged, pages
from ringlog.replay.source import Part, Place, Source
from ringlog.replay.times import TimeError
from ringlog.replay.unpacking import FileError
from ringlog.replay.values import NUMBER_BYTES_MAX, of_object, of_time, wrong_value

ROWS_MAX = 8192
BATCH_BYTES = 32 << 20  # of a column
PAGE_BYTES_MAX = 128 << 20  # DuckDB's are up to 100 MiB, the others' near 1
FIXED_BYTES_MAX = 64
READ_BYTES = 1 << 20
SHOWN_BYTES_MAX = 60


@dataclasses.dataclass
class _Extent:
    """What the pages of a column say: bytes a value, in the page that has most, and of the largest dictionary."""

    value_bytes: float = 0.0
    dictionary_bytes: int = 0
    is_delta: bool = False


class ParquetSource(Source):
    """A Parquet file; its rows are numbered from 1."""

    _has_timestamps = False
    _done = _rows = 0

    def parts(self, place: Place) -> Iterator[Part]:
        try:
            with self.path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            metadata = pa.parquet.read_metadata(self.path)
            names = metadata.schema.to_arrow_schema().names
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        if place.digest not in ("", digest):
            raise self._changed(place)
        self._rows = metadata.num_rows
        wanted = self._matched(names)
        self._has_timestamps = TIMESTAMP in wanted
        columns = list(dict.fromkeys(wanted.values()))
        leaves = self._leaves(metadata, columns)
        rows, dictionaries = self._bounds(metadata, leaves)
        with pa.parquet.ParquetFile(self.path, read_dictionary=dictionaries, buffer_size=READ_BYTES) as file:
            offset = self._done = 0
            batches = file.iter_batches(rows, columns=columns)
            while (batch := self._next(batches, offset)) is not None:
                first, offset = offset, offset + batch.num_rows
                self._done = offset
                if offset > place.offset:
                    skipped = max(place.offset - first, 0)
                    after = Place(offset, offset + 1, digest)
                    yield self._part(batch.slice(skipped), first + skipped, wanted, after)

    @property
    def extent(self) -> tuple[int, int]:
        return self._done, self._rows

    @property
    def has_timestamps(self) -> bool:
        return self._has_timestamps

    def _unreadable(self, error: Exception, where: str = "") -> FileError:
        return FileError(f"{self.path}: got {error}{where}, wanted a readable Parquet file")

    def _next(self, batches: Iterator[Any], row: int) -> Any:
        try:
            return next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error, f" behind row {row}") from None

    def _leaves(self, metadata: Any, wanted: Collection[str]) -> dict[int, Any]:
        """The stored columns behind the wanted ones, by their number. Raises FileError for lists and wide bytes."""
        found = {}
        for number in range(metadata.num_columns):
            leaf = metadata.schema.column(number)
            column = leaf.path.split(".")[0] if leaf.path not in wanted else leaf.path
            if column not in wanted:
                continue
            if leaf.max_repetition_level:
                raise FileError(f"{self.path}: got lists in column {column}, wanted single values: write them as JSON")
            if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length > FIXED_BYTES_MAX:
                raise FileError(f"{self.path}: got {leaf.length} bytes a value in column {column}, wanted text")
            found[number] = leaf
        return found

    def _bounds(self, metadata: Any, leaves: Mapping[int, Any]) -> tuple[int, list[str]]:
        """How many rows at a time are surely within bounds, and the columns to be read as dictionaries.

        Raises FileError where a page alone is too large.
        """
        rows, dictionaries = ROWS_MAX, []
        try:
            with self.path.open("rb") as file:
                for number, leaf in leaves.items():
                    extent = _Extent()
                    for group in range(metadata.num_row_groups):
                        self._survey(file, metadata.row_group(group).column(number), leaf.path, extent)
                    value_bytes = extent.value_bytes
                    if leaf.physical_type == "BYTE_ARRAY" and extent.dictionary_bytes:
                        if extent.is_delta:  # Arrow makes no dictionary of it, and copies each value instead
                            value_bytes = max(value_bytes, extent.dictionary_bytes)
                        else:
                            dictionaries.append(leaf.path)
                    rows = min(rows, int(BATCH_BYTES // max(value_bytes, 1)))
        except (OSError, Damaged) as error:
            raise self._unreadable(error) from None
        return max(rows, 1), dictionaries

    def _survey(self, file: Any, chunk: Any, column: str, extent: _Extent) -> None:
        """Adds what the pages of a chunk say."""
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
        extent.is_delta |= any(name.startswith("DELTA") for name in chunk.encodings)
        shares = "DELTA_BYTE_ARRAY" in chunk.encodings  # texts share prefixes: each may be as long as its page
        for page in pages(file, start, chunk.total_compressed_size):
            if page.unpacked_bytes > PAGE_BYTES_MAX:
                raise FileError(
                    f"{self.path}: got a page of {page.unpacked_bytes:,} bytes in column {column}, wanted at most "
                    f"{PAGE_BYTES_MAX:,}: write the file anew, with smaller pages"
                )
            if page.is_dictionary:
                extent.dictionary_bytes = max(extent.dictionary_bytes, page.unpacked_bytes)
            else:
                values = 1 if shares else max(page.values, 1)
                extent.value_bytes = max(extent.value_bytes, page.unpacked_bytes / values)

    def _part(self, batch: Any, first: int, wanted: Mapping[str, str], after: Place) -> Part:
        columns = {name: _as_bytes(batch.column(column)) for name, column in wanted.items()}
        cells = {name: _Cells(self, self._fields[name], column) for name, column in columns.items()}

        def row(i: int) -> Mapping[str, Any]:
            return self._timed({name: column.value(i) for name, column in cells.items()})

        def text(i: int) -> str:
            return str({name: column.shown(i) for name, column in cells.items()})

        return Part(first + 1 + np.arange(batch.num_rows), columns, row, text, [], after)


def _as_bytes(array: Any) -> Any:
    """Texts as binary, whose bytes are looked at later: Arrow gives out strings that are not UTF-8."""
    if isinstance(array, pa.DictionaryArray):
        if not _is_text(array.dictionary.type):
            return array.dictionary_decode()
        return pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary), safe=False)
    return array.cast(pa.binary()) if _is_text(array.type) else array


def _is_text(kind: Any) -> bool:
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binaries = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*strings, *binaries))


class _Cells:
    """One column's values one by one; a text that is too long is never copied."""

    def __init__(self, source: Source, field: Field, array: Any) -> None:
        self._record = source.layout.name
        self._times = source.times
        self._field = field
        self._bytes_max = TEXT_WIDTH_BYTES_MAX if field.kind.is_text else NUMBER_BYTES_MAX
        self._array = array
        texts = array.dictionary if isinstance(array, pa.DictionaryArray) else array
        self._texts: Any = texts if pa.types.is_binary(texts.type) else None
        self._lengths: Any = None if self._texts is None else pc.binary_length(self._texts)

    def _place(self, i: int) -> int | None:
        """Where a row's text lies; None if it has none."""
        if not isinstance(self._array, pa.DictionaryArray):
            return i
        code: int | None = self._array.indices[i].as_py()
        return code

    def value(self, i: int) -> Any:
        if self._texts is not None:
            return self._text(self._place(i))
        if pa.types.is_timestamp(self._array.type) and self._field.kind is Kind.TIMESTAMP:
            return self._time(self._array[i])
        try:
            value = self._array[i].as_py()
        except (ValueError, OverflowError, pa.ArrowException) as error:  # bytes in a struct, dates beyond Python's
            raise RecordValueError(
                f"{self._record}.{self._field.name}: got a value of type {self._array.type} that cannot be read "
                f"({error}), wanted one that can"
            ) from None
        return of_object(self._record, self._field, value, self._times)

    def _text(self, place: int | None) -> Any:
        length = None if place is None else self._lengths[place].as_py()
        if length is None:
            return None
        if length > self._bytes_max:
            wanted = self._field.width_bytes if self._field.kind.is_text else self._bytes_max
            got = f"{length} bytes {self._cut(place)!r}..."
            raise RecordValueError(f"{self._record}.{self._field.name}: got {got}, wanted at most {wanted}")
        return of_object(self._record, self._field, self._texts[place].as_py(), self._times)

    def _time(self, stamp: Any) -> int | None:
        value, kind = stamp.cast(pa.int64()).as_py(), stamp.type
        if value is None or kind.tz is not None:
            return of_time(self._record, self._field, value, self._times, kind.unit)
        try:
            return self._times.of_local(value * _NANOSECONDS[kind.unit])
        except TimeError as error:
            raise wrong_value(self._record, self._field, _shown(stamp), str(error)) from None

    def shown(self, i: int) -> Any:
        """The value as a person is shown it."""
        if self._texts is None:
            return _shown(self._array[i])
        place = self._place(i)
        length = None if place is None else self._lengths[place].as_py()
        if length is None:
            return None
        text = self._cut(place).decode("utf-8", "replace")
        return text if length <= SHOWN_BYTES_MAX else f"{text}... ({length} bytes)"

    def _cut(self, place: int | None) -> bytes:
        cut: bytes = pc.binary_slice(self._texts.slice(place, 1), 0, SHOWN_BYTES_MAX)[0].as_py()
        return cut


_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}


def _shown(scalar: Any) -> Any:
    """Times with all their decimals, of which Python's own datetime has six."""
    try:
        return str(scalar) if pa.types.is_timestamp(scalar.type) else scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return f"<{scalar.type}: {error}>"
