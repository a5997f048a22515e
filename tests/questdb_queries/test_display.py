"""Finding 32: a result shows itself at a prompt and in a notebook, of bounded size, and nothing in a value acts."""

from __future__ import annotations

import datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from ringlog.questdb.results import Result, named_rows

HOSTILE = "<script>alert('x')</script>&amp;\x1b[2J\u202e\n\r\0"


def result(columns: list[tuple[str, str]], tuples: list[tuple[Any, ...]], **facts: Any) -> Result[Any]:
    return Result(columns, tuples, named_rows(tuple(columns)), **facts)


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert attrs == []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_finding_32_values_are_seen() -> None:
    """Finding 32: names and values stand in a table, times in UTC, NULL as null, with how many rows there are."""
    moment = datetime.datetime(2026, 11, 30, 9)
    found = result(
        [("at", "datetime"), ("price", "float"), ("note", "str"), ("raw", "bytes")], [(moment, 1.5, None, b"\1\xff")]
    )
    lines = repr(found).splitlines()
    assert lines[0] == "<Result of 1 rows and 4 columns, complete>"
    assert lines[1].split() == ["at", "price", "note", "raw"]
    assert lines[2].split() == ["2026-11-30T09:00:00+00:00", "1.5", "null", "\\x01ff"]
    page = Tags(found._repr_html_())
    for text in ("Result of 1 rows", "price", "2026-11-30T09:00:00+00:00", "null"):
        assert text in page.text
    assert "partial" in repr(result([("a", "int")], [], partial=True))


@pytest.mark.parametrize("name", ["a", HOSTILE])
def test_finding_32_hostile_text_is_escaped(name: str) -> None:
    """Finding 32: markup in names and values is text in a notebook, and control characters are escaped in both."""
    found = result([(name, "str"), ("b", "other")], [(HOSTILE, [HOSTILE, None])] * 3)
    page = Tags(found._repr_html_())
    assert page.tags == {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script>" in page.text
    for shown in (found._repr_html_(), *repr(found).split("\n")):
        assert shown.isprintable()


def test_finding_32_size_is_bounded() -> None:
    """Finding 32: however many rows, columns and characters a result has, what is shown of it stays small."""
    columns = [(f"column_{index}", "str") for index in range(500)]
    found = result(columns, [("\0" * 1_000_000,) * 500, *[("x",) * 500] * 10_000])
    assert len(repr(found).splitlines()) == 13
    assert max(map(len, repr(found).splitlines())) <= 120
    assert "… 9,991 more rows" in repr(found)
    assert len(found._repr_html_()) < 100_000
    assert "… 9,981 more rows" in Tags(found._repr_html_()).text
    wide = result([("x" * 10_000, "other")], [([1.5] * 1_000_000,), ([[1.5] * 1_000_000] * 9,), (b"\1" * 10_000_000,)])
    assert repr(wide).count("1.5, 1.5") > 2
    assert max(map(len, repr(wide).splitlines())) <= 120
    assert repr(result([], [])) == "<Result of 0 rows and 0 columns, complete>"
    assert Tags(result([], [])._repr_html_()).text.startswith("Result of 0 rows")
