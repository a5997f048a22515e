"""Files of lines as parts: CSV and NDJSON."""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ringlog.errors import RecordValueError
from ringlog.records import TIMESTAMP, Field, Kind
from ringlog.replay.lines import Block, Lines, blocks
from ringlog.replay.source import Part, Place, Source, no_rows
from ringlog.replay.unpacking import FileError
from ringlog.replay.values import of_object, of_text

DOUBLE_DIGITS = 15  # which a double keeps, whatever they are


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
            for block, after in self._blocks(self._stream, place):
                if block.broken is None:
                    yield self._part(block, after)
                    continue
                if block.broken:
                    broken.append((block.line, block.broken, block.text))
                if broken and block.newlines:  # the line is over
                    yield no_rows(broken, after)
                    broken = []
            if broken:
                yield no_rows(broken, after)
            if self._stream.broken is not None:
                self.broken_end = f"{self.path} ends in the middle, behind line {after.line - 1}: {self._stream.broken}"
        finally:
            self._stream.close()

    def _blocks(self, stream: Lines, place: Place) -> Iterator[tuple[Block, Place]]:
        """Blocks behind `place`, each with the place behind it."""
        digest = hashlib.sha256()
        is_proved, is_begun, last = place.offset == 0, False, b"\n"
        for block in blocks(stream, quoted=self.is_quoted, skip_lines=self.shape.skip_lines):
            if not is_begun and block.broken != "":
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
        if not is_begun and stream.broken is not None:
            raise FileError(f"{self.path}: got {stream.broken} before a whole line, wanted a file that can be unpacked")
        if not is_begun:
            self._begin(Block(1, 0, b"", 0), digest)
        if not is_proved and digest.hexdigest() != place.digest:
            raise self._changed(place)

    def _begin(self, block: Block, digest: Any) -> Block:
        """The first block without its byte order mark, and without what it says of all rows."""
        if block.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise FileError(f"{self.path}: got UTF-16, wanted UTF-8: convert it, for instance with iconv -t UTF-8")
        return _taken(block, len(codecs.BOM_UTF8), digest) if block.data.startswith(codecs.BOM_UTF8) else block

    def _part(self, block: Block, after: Place) -> Part:
        raise NotImplementedError


def _taken(block: Block, head_bytes: int, digest: Any) -> Block:
    digest.update(block.data[:head_bytes])
    return block.behind(head_bytes)


class CsvSource(LineSource):
    """A CSV file; an empty field is NULL, a quoted empty one the empty text.

    It has a line of column names, unless `shape.columns` says them: then a first line that says the same is none of
    the rows either (Binance's futures files have it from 2022 on).
    """

    is_quoted = True
    _columns: list[str]
    _wanted: dict[str, str]

    def _begin(self, block: Block, digest: Any) -> Block:
        block = super()._begin(block, digest)
        end = block.data.find(b"\n") + 1 or len(block.data)
        if self.shape.columns:
            self._columns = list(self.shape.columns)
            self._wanted = self._matched(self._columns)
            is_header = block.broken is None and self._names(block.data[:end]) == self._columns
            return _taken(block, end, digest) if is_header else block
        if not block.data:
            raise FileError(f"{self.path}: got an empty file, wanted a line of column names")
        names = self._names(block.data[:end])
        if block.broken or names is None:
            reason = block.broken or "it is no CSV of UTF-8"
            raise FileError(f"{self.path}: got a first line that is no header ({reason}), wanted column names")
        self._columns = names
        self._wanted = self._matched(names)
        return _taken(block, end, digest)

    def _names(self, line: bytes) -> list[str] | None:
        """The names that a line has; None if it has none."""
        try:
            text = line.decode().rstrip("\r\n")
            names = next(csv.reader([text], strict=True, delimiter=self.shape.delimiter), [])
        except (csv.Error, UnicodeDecodeError):
            return None
        return [name.strip() for name in names]

    @property
    def has_timestamps(self) -> bool:
        return TIMESTAMP in self._wanted

    def _part(self, block: Block, after: Place) -> Part:
        newlines = np.flatnonzero(np.frombuffer(block.data, np.uint8) == ord("\n"))
        starts = _starts(block.data, newlines)
        table, wrong = self._parsed(block.data)
        if table.num_rows + len(wrong) != len(starts):  # quotes inside unquoted fields: line by line then
            starts = _starts(block.data, newlines, quoted=False)
            table, wrong = self._parsed_singly(block.data, starts)
        lines = block.line + np.searchsorted(newlines, starts)
        sound = np.delete(np.arange(len(starts)), [number for number, _ in wrong])
        columns = {name: table[column] for name, column in self._wanted.items()}

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
                found[name] = of_text(self.layout.name, self._fields[name], values[i], self.times)
            return self._timed(found)

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
            pa.csv.ParseOptions(
                delimiter=self.shape.delimiter, newlines_in_values=True, invalid_row_handler=refuse
            ),
            pa.csv.ConvertOptions(
                column_types=self._types(),
                include_columns=list(dict.fromkeys(self._wanted.values())),
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False, check_utf8=False,
            ),
        )  # fmt: skip
        return table, wrong

    def _types(self) -> dict[str, Any]:
        """Texts as they stand; those that repeat each once."""
        repeating = {column for name, column in self._wanted.items() if self._fields[name].kind is Kind.SYMBOL}
        repeats = pa.dictionary(pa.int32(), pa.binary())
        return {column: repeats if column in repeating else pa.binary() for column in self._columns}

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
    """A file with a JSON object a line; empty lines are nothing. Its numbers are read as their digits say."""

    def _begin(self, block: Block, digest: Any) -> Block:
        """Raises FileError where no object of the first block has a time, and rows are not to be stamped."""
        block = super()._begin(block, digest)
        names: list[str] = []
        for line in block.data.split(b"\n") if block.broken is None and not self.shape.stamp_now else ():
            try:
                found = _OBJECT.decode(line)
            except (msgspec.MsgspecError, RecursionError):
                continue
            names = names or list(found)
            if self._mapping[TIMESTAMP] in found:
                return block
        if names:
            raise self._lacking(names, [self._named(TIMESTAMP)])
        return block

    def _part(self, block: Block, after: Place) -> Part:
        texts = block.data.split(b"\n")
        numbers = [number for number, text in enumerate(texts) if text.strip()]
        plan = [
            (self._fields[name], column, _PLAIN.get(self._fields[name].kind, _PLAIN_TEXTS))
            for name, column in self._mapping.items()
        ]

        def row(i: int) -> Mapping[str, Any]:
            line = texts[numbers[i]]
            try:
                found = _OBJECT.decode(line)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise RecordValueError(f"got no JSON object ({error}), wanted one") from None
            values = {}
            for field, column, plain in plan:
                if column in found:
                    value = found[column]
                    values[field.name] = value if type(value) in plain else self._value(field, column, value, line)
            return self._timed(values)

        def text(i: int) -> str:
            return texts[numbers[i]].decode("utf-8", "replace")

        return Part(block.line + np.array(numbers, np.int64), None, row, text, [], after)

    def _value(self, field: Field, column: str, value: Any, line: bytes) -> Any:
        kind = type(value)
        if field.kind.is_text:
            if kind is _Digits:
                return float(value)  # for append, which says what it wants
            # A document inside the row, as JSON itself has its numbers.
            return msgspec.json.decode(line)[column] if kind in (dict, list) else value
        if kind is _Digits or kind is str:
            return of_text(self.layout.name, field, value.encode(), self.times)
        return of_object(self.layout.name, field, value, self.times)


class _Digits(str):
    """A number that has more digits than a double keeps."""

    __slots__ = ()


def _number(text: str) -> float | _Digits:
    return float(text) if len(text) <= DOUBLE_DIGITS else _Digits(text)


# The types that append takes, or refuses by name, as they are.
_PLAIN_TEXTS: frozenset[type] = frozenset({str, type(None), int, bool, float})
_PLAIN: dict[Kind, frozenset[type]] = {
    Kind.DOUBLE: frozenset({float, int, bool, type(None)}),
    Kind.LONG: frozenset({int, bool, type(None)}),
    Kind.BOOLEAN: frozenset({bool, int, float, type(None)}),
    Kind.TIMESTAMP: frozenset(),
}
_OBJECT = msgspec.json.Decoder(dict[str, Any], float_hook=_number)
