"""Results on the command line: which columns, in which format, to which place."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringlog.cli.number import Number
from ringlog.cli.output import say, say_exactly
from ringlog.naming import did_you_mean
from ringlog.text import shown, shown_json

if TYPE_CHECKING:
    from ringlog.questdb.results import Result

BINARY = "parquet"
FORMATS = ("table", "csv", "json", "ndjson", BINARY)
# Of the default columns of a table: an address has 44 characters, and a time six digits of its second's fraction.
BRIEF_CELL_MAX = 10
CHUNK_CHARACTERS = 65_536


class Output:
    """How a command was asked to show its result, and where."""

    def __init__(self, form: str, path: Path | None, columns: Sequence[str] | None, brief: Sequence[str]) -> None:
        self._form = form
        self._path = path
        self._columns = columns
        # The default columns, for a person: whoever names columns, or reads with a program, gets whole values.
        self._brief = brief if columns is None and form == "table" else ()

    def show(self, result: Result[Any]) -> None:
        if self._form == BINARY:
            self._write_parquet(result)
        else:
            self._write(self._texts(result))
        if result.partial:
            covered = "" if result.span is None else f"{result.span.start.isoformat()} to {result.span.end.isoformat()}"
            say(f"ringlog: partial: out of time, the rows cover {covered}", err=True)
        elif result.limited:
            say(f"ringlog: {len(result)} rows, the limit: there may be more", err=True)

    def _texts(self, result: Result[Any]) -> Iterator[str]:
        names = list(self._columns or self._brief or result.columns)
        places = [result.columns.index(name) for name in names]
        rows: Iterable[Sequence[Any]] = result.tuples()
        if len(places) != len(result.columns) or places != sorted(places):
            rows = ([row[place] for place in places] for row in rows)
        match self._form:
            case "csv":
                return _csv(names, rows, safe=self._path is None and sys.stdout.isatty())
            case "json":
                return _json(names, rows, result)
            case "ndjson":
                return _ndjson(names, rows)
        return _table(names, rows, brief=bool(self._brief))

    def _write(self, texts: Iterator[str]) -> None:
        with contextlib.ExitStack() as stack:
            write: Callable[[str], Any] = say_exactly
            if self._path is not None:
                try:
                    write = stack.enter_context(self._path.open("w", encoding="utf-8")).write
                except OSError as error:
                    raise click.FileError(str(self._path), error.strerror or str(error)) from None
            held: list[str] = []
            size = 0
            for text in texts:
                held.append(text)
                size += len(text)
                if size >= CHUNK_CHARACTERS:
                    write("".join(held))
                    held, size = [], 0
            write("".join(held))

    def _write_parquet(self, result: Result[Any]) -> None:
        import pyarrow.parquet

        table = result.to_arrow()
        target: Any = sys.stdout.buffer if self._path is None else self._path
        try:
            pyarrow.parquet.write_table(table.select(self._columns) if self._columns else table, target)
        except OSError as error:
            if self._path is None:
                raise
            raise click.FileError(str(self._path), error.strerror or str(error)) from None


def result_options(
    known: Callable[[], Sequence[str]] | None = None, brief: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command its `output` and `timeout_ms`.

    `known` says which columns there are to choose, `brief` which of them a table has by default.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_output(
            as_format: str | None, as_json: bool, path: Path | None, columns: Any = None, all_columns: bool = False,
            **given: Any,
        ) -> Any:  # fmt: skip
            if as_json and as_format not in (None, "json"):
                raise click.UsageError(f"got --json and --format {as_format}, wanted one of them")
            if all_columns and columns is not None:
                raise click.UsageError("got --columns and --all-columns, wanted one of them")
            form = "json" if as_json else as_format or "table"
            if form == BINARY and path is None and sys.stdout.isatty():
                raise click.UsageError("--format parquet: got a terminal, wanted --output FILE or a pipe")
            return command(output=Output(form, path, columns, () if all_columns else brief), **given)

        options = [*_OPTIONS, *(_column_options(known, bool(brief)) if known is not None else [])]
        for option in reversed(options):
            with_output = option(with_output)
        return with_output

    return decorate


_OPTIONS = [
    click.option(
        "--format",
        "as_format",
        type=click.Choice(FORMATS),
        show_default="table",
        help="How rows are printed: json is one object with columns and rows, ndjson one object a line.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Short for --format json."),
    click.option(
        "--output",
        "-o",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write to this file instead of stdout.",
    ),
    click.option("--timeout-ms", type=Number(1, 3_600_000), help="RINGLOG_QUERY_TIMEOUT_MS for this call."),
]


class _Columns(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Names of columns, with commas between them."""

    name = "names"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, ...] | None:
        names, known = tuple(name.strip() for name in str(value).split(",")), self._known()
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                self.fail(f"got {name!r}, wanted some of {', '.join(known)}{hint}", parameter, context)
            if names.count(name) > 1:
                self.fail(f"got {name!r} twice, wanted each column once", parameter, context)
        return names

    def shell_complete(self, _context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self._known() if name.startswith(begun)]


def _column_options(known: Callable[[], Sequence[str]], has_brief: bool) -> list[Callable[[Any], Any]]:
    names = click.option("--columns", type=_Columns(known), help="Only these, with commas between them, in this order.")
    everything = click.option("--all-columns", is_flag=True, help="Every column, with its values in full.")
    return [names, everything] if has_brief else [names]


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]], *, safe: bool) -> Iterator[str]:
    """As PostgreSQL writes it: NULL is nothing, an empty text is `""`. On a terminal control characters are escaped."""
    yield _csv_line(names, safe)
    for row in rows:
        yield _csv_line(row, safe)


def _csv_line(values: Sequence[Any], safe: bool) -> str:
    line = ",".join(map(_csv_field, values))
    return (shown(line) if safe else line) + "\n"


def _csv_field(value: Any) -> str:
    from ringlog.questdb.display import as_text

    if value is None:
        return ""
    text = str(value) if isinstance(value, bool) else as_text(value)
    quoted = not text or any(character in text for character in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _encoder() -> Callable[[Any], str]:
    import datetime

    import msgspec

    from ringlog.questdb.display import as_text

    plain = (str, int, float, bool, list, type(None))

    def encode(value: Any) -> str:
        return shown_json(msgspec.json.encode(value, enc_hook=as_text).decode())

    def encode_row(row: dict[str, Any]) -> str:
        for name, value in row.items():
            if isinstance(value, datetime.datetime | bytes) or not isinstance(value, plain):
                row[name] = as_text(value)
        return encode(row)

    return lambda value: encode_row(value) if isinstance(value, dict) else encode(value)


def _objects(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    encode = _encoder()
    for row in rows:
        yield encode(dict(zip(names, row, strict=True)))


def _json(names: Sequence[str], rows: Iterable[Sequence[Any]], result: Result[Any]) -> Iterator[str]:
    encode = _encoder()
    span = None if result.span is None else [time.isoformat() for time in result.span]
    yield f'{{"columns": {encode(list(names))}, "rows": ['
    for index, text in enumerate(_objects(names, rows)):
        yield f", {text}" if index else text
    facts = (("partial", result.partial), ("limited", result.limited), ("span", span))
    yield "], " + ", ".join(f'"{name}": {encode(value)}' for name, value in facts) + "}\n"


def _ndjson(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for text in _objects(names, rows):
        yield f"{text}\n"


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]], *, brief: bool) -> Iterator[str]:
    """Columns aligned, control characters escaped; NULL shows as `null`: for values as they are, use csv or json."""
    from ringlog.questdb.display import aligned, as_text

    text = _brief if brief else as_text
    lines = [[shown(name) for name in names], *([shown(text(value)) for value in row] for row in rows)]
    for line in aligned(lines) if names else []:
        yield f"{line}\n"


def _brief(value: Any) -> str:
    """A value as it fits into a line: times to the millisecond, nine digits, long texts without their middle."""
    import datetime

    from ringlog.questdb.display import as_text

    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.9g}"
    text = as_text(value)
    if not isinstance(value, str) or len(text) <= BRIEF_CELL_MAX:
        return text
    return f"{text[: BRIEF_CELL_MAX - 6]}…{text[-5:]}"
