"""How a result shows itself, to a person at a prompt, in a notebook or on the command line: bounded, and escaped."""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ringlog.text import shown

REPR_ROWS_MAX = 10
REPR_WIDTH_MAX = 120
REPR_CELL_MAX = 32
HTML_ROWS_MAX = 20
HTML_COLUMNS_MAX = 30
HTML_CELL_MAX = 80

Row = Sequence[Any]


def as_text(value: Any) -> str:
    r"""A value as it is printed: ISO 8601, bytes as `\x` and hexadecimal digits, NULL as `null`."""
    match value:
        case None:
            return "null"
        case str():
            return value
        case bytes():
            return "\\x" + value.hex()
        case datetime.datetime():
            return in_utc(value).isoformat()
        case bool():
            return "true" if value else "false"
    return str(value)


def in_utc(value: datetime.datetime) -> datetime.datetime:
    """Psycopg has the times of any SQL naive."""
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value


def cell(value: Any, width_max: int) -> str:
    """A value on one line without control characters, cut to `width_max` characters."""
    # Cut before it is escaped, which a text of megabytes would take long for, and after it, as escapes are longer.
    text = ""
    for part in _parts(value[: width_max + 1] if isinstance(value, bytes) else value):
        text += part[: width_max + 1]
        if len(text) > width_max:
            break
    escaped = shown(text[: width_max + 1])
    return escaped if len(escaped) <= width_max else escaped[: width_max - 1] + "…"


def _parts(value: Any) -> Iterator[str]:
    """The text of a value; of an array, which may be deep and long, one part after the other."""
    if not isinstance(value, list):
        yield as_text(value)
        return
    yield "["
    for index, each in enumerate(value):
        yield ", " if index else ""
        yield from _parts(each)
    yield "]"


def aligned(lines: Iterable[Sequence[str]]) -> list[str]:
    """The cells of lines in columns."""
    table = list(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]


def text_table(summary: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    """The summary, the first rows in as many columns as REPR_WIDTH_MAX characters hold, and what was left out."""
    shown_rows = rows[:REPR_ROWS_MAX]
    columns: list[list[str]] = []
    left = REPR_WIDTH_MAX - len("  …")
    for index, name in enumerate(names):
        column = [cell(text, REPR_CELL_MAX) for text in (name, *(row[index] for row in shown_rows))]
        left -= max(map(len, column)) + 2
        if columns and left < 0:
            columns.append(["…"] * len(column))
            break
        columns.append(column)
    lines = aligned(zip(*columns, strict=True)) if columns else []
    more = [f"… {len(rows) - len(shown_rows):,} more rows"] if len(rows) > len(shown_rows) else []
    return "\n".join([summary, *lines, *more])


def html_table(summary: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    """The same for a notebook: nothing of a name or value is markup."""

    def line(tag: str, values: Sequence[Any]) -> str:
        cells = [html.escape(cell(value, HTML_CELL_MAX)) for value in values[:HTML_COLUMNS_MAX]]
        cells += ["…"] if len(values) > HTML_COLUMNS_MAX else []
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in cells) + "</tr>"

    body = "".join(line("td", tuple(row)) for row in rows[:HTML_ROWS_MAX])
    more = f"<p>… {len(rows) - HTML_ROWS_MAX:,} more rows</p>" if len(rows) > HTML_ROWS_MAX else ""
    head = f"<thead>{line('th', tuple(names))}</thead>"
    return f"<div><p>{html.escape(summary)}</p><table>{head}<tbody>{body}</tbody></table>{more}</div>"
