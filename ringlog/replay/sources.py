"""What a replay reads: CSV, NDJSON and Parquet as parts of some thousand rows, each row with its number in the file."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ringlog.errors import RecordTypeError, RecordValueError
from ringlog.naming import did_you_mean
from ringlog.records import TIMESTAMP, Field, Kind, RecordLayout
from ringlog.replay.lines import Block, FileError, Lines, OnBroken, blocks
from ringlog.replay.values import of_object, of_text

FORMATS = ("csv", "ndjson", "parquet")
SUFFIXES = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}
PACKED = {".gz", ".zst", ".zstd"}
PARQUET_ROWS = 8192


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


def format_of(path: Path, wanted: str | None) -> str:
    """The format that the file's name says, or `wanted`. Raises FileError."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    found = wanted or SUFFIXES.get(suffixes[-1] if suffixes else "")
    if found is None:
        raise FileError(f"{path}: got no format in its name, wanted .csv, .ndjson, .jsonl or .parquet, or --format")
    return found


class Source:
    """A file of records of one layout. `mapping` is field to column, for columns that are not called like fields."""

    def __init__(self, path: Path, layout: RecordLayout, optional: frozenset[str], mapping: Mapping[str, str]) -> None:
        self.path = path
        self.layout = layout
        self._optional = optional
        self._mapping = {field.name: mapping.get(field.name, field.name) for field in layout.fields}
        self._fields = {field.name: field for field in layout.fields}
        self._is_mapped = frozenset(mapping)
        unknown = self._is_mapped - self._fields.keys()
        if unknown:
            raise RecordTypeError(
                f"--map: got field {', '.join(sorted(unknown))}, wanted one of {layout.name}'s: "
                f"{', '.join(self._fields)}{did_you_mean(min(unknown), self._fields)}"
            )
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

    def _matched(self, columns: Sequence[str]) -> dict[str, Field]:
        """Column to field. Raises FileError where a column is missing, double, or mapped and not there."""
        double = sorted({name for name in columns if list(columns).count(name) > 1})
        if double:
            raise FileError(f"{self.path}: got column {', '.join(double)} twice, wanted each once")
        missing = [
            name if column == name else f"{name} (mapped to {column!r})"
            for name, column in self._mapping.items()
            if column not in columns and (name in self._is_mapped or name not in self._optional)
        ]
        if missing:
            raise FileError(
                f"{self.path}: got columns {', '.join(columns)}, wanted also {', '.join(missing)}: "
                "see --map FIELD=COLUMN"
            )
        return {column: self._fields[name] for name, column in self._mapping.items() if column in columns}

    def _changed(self, place: Place) -> FileError:
        return FileError(
            f"{self.path}: got other content before line {place.line} than was replayed, wanted the same: "
            "is it another file?"
        )


class LineSource(Source):
    """A file of lines: its blocks from a place on, once what lies before has proved to be what was read."""

    is_quoted = False
    _stream: Lines | None = None

    @property
    def extent(self) -> tuple[int, int]:
        return (0, 0) if self._stream is None else (self._stream.done_bytes, self._stream.size_bytes)

    def parts(self, place: Place) -> Iterator[Part]:
        broken: list[tuple[int, str, str]] = []
        after = place
        self._stream = Lines(self.path)
        try:
            for block, after in self._blocks(
                self._stream, place, lambda line, reason: broken.append((line, reason, ""))
            ):
                part = self._part(block, after)
                part.broken, broken[:] = broken + part.broken, []
                yield part
            if broken:
                yield Part(np.empty(0, np.int64), None, _no_row, _no_text, broken, after)
            if self._stream.broken is not None:
                self.broken_end = f"{self.path} ends in the middle, behind line {after.line - 1}: {self._stream.broken}"
        finally:
            self._stream.close()

    def _blocks(self, stream: Lines, place: Place, on_broken: OnBroken) -> Iterator[tuple[Block, Place]]:
        """Blocks behind `place`, each with the place behind it."""
        digest = hashlib.sha256()
        is_proved, is_begun, last = place.offset == 0, False, b"\n"
        for block in blocks(stream, on_broken, quoted=self.is_quoted):
            if not is_begun:
                block = self._begin(block, digest)
                is_begun = True
            if block.offset < place.offset:
                head = block.data[: place.offset - block.offset]
                digest.update(head)
                last = head[-1:]
                block = block.behind(len(head))
            if not block.data:
                continue
            if not is_proved:
                # A last line without its newline was read as it stood: it must not have grown since.
                if digest.hexdigest() != place.digest or b"\n" not in (last, block.data[:1]):
                    raise self._changed(place)
                is_proved = True
            digest.update(block.data)
            end = Place(block.offset + len(block.data), block.line + block.newlines, digest.hexdigest())
            yield block, end
        if not is_begun:
            self._begin(Block(1, 0, b"", 0), digest)
        if not is_proved and digest.hexdigest() != place.digest:
            raise self._changed(place)

    def _begin(self, block: Block, _digest: Any) -> Block:
        return block

    def _part(self, block: Block, after: Place) -> Part:
        raise NotImplementedError


def _no_row(_number: int) -> Mapping[str, Any]:
    raise IndexError


def _no_text(_number: int) -> str:
    return ""


class CsvSource(LineSource):
    """A CSV file with a header line; an empty field is NULL, a quoted empty one the empty text."""

    is_quoted = True
    _columns: list[str]
    _wanted: dict[str, Field]

    def _begin(self, block: Block, digest: Any) -> Block:
        """Takes the header off the first block."""
        end = block.data.find(b"\n") + 1 or len(block.data)
        head = block.data[:end]
        digest.update(head)
        if not block.data:
            raise FileError(f"{self.path}: got an empty file, wanted a line of column names")
        try:
            names = next(csv.reader([head.decode("utf-8-sig").rstrip("\r\n")], strict=True), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileError(f"{self.path}: got a first line that is no header ({error}), wanted column names") from None
        self._columns = [name.strip() for name in names]
        self._wanted = self._matched(self._columns)
        return block.behind(end)

    @property
    def has_timestamps(self) -> bool:
        return any(field.name == TIMESTAMP for field in self._wanted.values())

    def _part(self, block: Block, after: Place) -> Part:
        newlines = np.flatnonzero(np.frombuffer(block.data, np.uint8) == ord("\n"))
        starts = _starts(block.data, newlines)
        table, wrong = self._parsed(block.data)
        if table.num_rows + len(wrong) != len(starts):  # quotes inside unquoted fields: line by line then
            starts = _starts(block.data, newlines, quoted=False)
            table, wrong = self._parsed_singly(block.data, starts)
        lines = block.line + np.searchsorted(newlines, starts)
        sound = np.delete(np.arange(len(starts)), [number for number, _ in wrong])
        columns = {field.name: table[column] for column, field in self._wanted.items()}

        def text_at(number: int) -> str:
            end = starts[number + 1] if number + 1 < len(starts) else len(block.data)
            return block.data[starts[number] : end].decode("utf-8", "replace").rstrip("\r\n")

        def text(i: int) -> str:
            return text_at(int(sound[i]))

        @functools.cache
        def cells() -> dict[str, list[Any]]:
            return {name: column.to_pylist() for name, column in columns.items()}

        def row(i: int) -> Mapping[str, Any]:
            found = {}
            for name, values in cells().items():
                found[name] = of_text(self.layout.name, self._fields[name], values[i])
            return found

        broken = [(int(lines[number]), reason, text_at(number)) for number, reason in wrong]
        return Part(lines[sound], columns, row, text, broken, after)

    def _parsed(self, data: bytes) -> tuple[Any, list[tuple[int, str]]]:
        """The rows as binary columns, and for each line that is none its number in the block and the reason."""
        wrong: list[tuple[int, str]] = []

        def refuse(row: Any) -> str:
            wrong.append((row.number - 1, f"got {row.actual_columns} fields, wanted {row.expected_columns}"))
            return "skip"

        table = pa.csv.read_csv(
            io.BytesIO(data),
            pa.csv.ReadOptions(use_threads=False, column_names=self._columns, block_size=max(len(data), 1)),
            pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
            pa.csv.ConvertOptions(
                column_types={column: _arrow_type(self._wanted.get(column)) for column in self._columns},
                include_columns=list(self._wanted),
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False, check_utf8=False,
            ),
        )  # fmt: skip
        return table, wrong

    def _parsed_singly(self, data: bytes, starts: NDArray[np.int64]) -> tuple[Any, list[tuple[int, str]]]:
        tables, wrong = [], []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(data)], strict=True)):
            line = data[start:end]
            table, refused = self._parsed(line)
            reason = refused[0][1] if refused else ""
            if table.num_rows == 1 and any((value or b"").endswith(b"\n") for value in table.to_pylist()[0].values()):
                reason = "got an open quote, wanted its end"
            if reason or table.num_rows != 1:
                wrong.append((number, reason or "got no row"))
            else:
                tables.append(table)
        return pa.concat_tables(tables) if tables else self._parsed(b"\n")[0], wrong


def _arrow_type(field: Field | None) -> Any:
    """Texts as they stand; those that repeat each once."""
    repeats = field is not None and field.kind is Kind.SYMBOL
    return pa.dictionary(pa.int32(), pa.binary()) if repeats else pa.binary()


def _starts(data: bytes, newlines: NDArray[np.int64], *, quoted: bool = True) -> NDArray[np.int64]:
    """Where records begin: behind each newline that stands outside quotes. Empty lines are none."""
    characters = np.frombuffer(data, np.uint8)
    if quoted and b'"' in data:
        quotes = np.flatnonzero(characters == ord('"'))
        newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    starts = np.concatenate([[0], newlines + 1]).astype(np.int64)
    starts = starts[starts < len(data)]
    first, second = characters[starts], characters[np.minimum(starts + 1, len(data) - 1)]
    is_empty = (first == ord("\n")) | ((first == ord("\r")) & (second == ord("\n")))
    return np.asarray(starts[~is_empty], np.int64)


class JsonSource(LineSource):
    """A file with a JSON object a line; empty lines are nothing."""

    def _part(self, block: Block, after: Place) -> Part:
        texts = block.data.split(b"\n")
        numbers = [number for number, text in enumerate(texts) if text.strip()]
        decode = msgspec.json.Decoder(dict[str, Any]).decode

        def row(i: int) -> Mapping[str, Any]:
            try:
                found = decode(texts[numbers[i]])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise RecordValueError(f"got no JSON object ({error}), wanted one") from None
            return {
                name: of_object(self.layout.name, self._fields[name], found[column])
                for name, column in self._mapping.items()
                if column in found
            }

        def text(i: int) -> str:
            return texts[numbers[i]].decode("utf-8", "replace")

        return Part(block.line + np.array(numbers, np.int64), None, row, text, [], after)


class ParquetSource(Source):
    """A Parquet file; its rows are numbered from 1."""

    def parts(self, place: Place) -> Iterator[Part]:
        try:
            with self.path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            file = pa.parquet.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{self.path}: got {error}, wanted a readable Parquet file") from None
        if place.digest not in ("", digest):
            raise self._changed(place)
        self._rows = file.metadata.num_rows
        with file:
            wanted = self._matched(file.schema_arrow.names)
            self._has_timestamps = any(field.name == TIMESTAMP for field in wanted.values())
            offset = self._done = 0
            batches = file.iter_batches(PARQUET_ROWS, columns=list(wanted))
            while (batch := self._next(batches, offset)) is not None:
                first, offset = offset, offset + batch.num_rows
                self._done = offset
                if offset > place.offset:
                    skipped = max(place.offset - first, 0)
                    after = Place(offset, offset + 1, digest)
                    yield self._part(batch.slice(skipped), first + skipped, wanted, after)

    _has_timestamps = False
    _done = _rows = 0

    @property
    def extent(self) -> tuple[int, int]:
        return self._done, self._rows

    @property
    def has_timestamps(self) -> bool:
        return self._has_timestamps

    def _next(self, batches: Iterator[Any], row: int) -> Any:
        try:
            return next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{self.path}: got {error} behind row {row}, wanted a readable Parquet file") from None

    def _part(self, batch: Any, first: int, wanted: Mapping[str, Field], after: Place) -> Part:
        columns = {field.name: batch.column(column) for column, field in wanted.items()}

        def row(i: int) -> Mapping[str, Any]:
            return {
                name: of_object(self.layout.name, self._fields[name], column[i].as_py())
                for name, column in columns.items()
            }

        def text(i: int) -> str:
            return str({name: column[i].as_py() for name, column in columns.items()})

        return Part(first + 1 + np.arange(batch.num_rows), columns, row, text, [], after)


SOURCES: dict[str, type[Source]] = {"csv": CsvSource, "ndjson": JsonSource, "parquet": ParquetSource}
