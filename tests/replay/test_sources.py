"""What a replay reads of a file: every row as append takes it, or the line and the reason why not."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from replay_files import FIELDS, FIRST_US, csv_bytes, trade, trades, written

from ringlog.arrays import assembled, rows_of
from ringlog.errors import RecordTypeError
from ringlog.records import Trade, defaults_of, layout_of
from ringlog.replay import lines
from ringlog.replay.shape import Shape
from ringlog.replay.slots import slots_of
from ringlog.replay.source import Part, Place, Source
from ringlog.replay.sources import SOURCES, format_of
from ringlog.replay.times import Times, Unsound
from ringlog.replay.unpacking import FileError

LAYOUT, DEFAULTS = layout_of(Trade), defaults_of(Trade)
LATEST_US = time.time_ns() // 1000


def source(path: Path, **mapping: str) -> Source:
    return shaped(path, Shape(mapping=mapping))


def shaped(path: Path, shape: Shape) -> Source:
    return SOURCES[format_of(path)](path, LAYOUT, shape, DEFAULTS)


def at_once(part: Part, times: Times = Times()) -> Any:  # noqa: B008 (frozen)
    """The slots of a part whose rows are all sound, made column by column."""
    assert part.columns is not None
    return slots_of(LAYOUT, part.columns, len(part.numbers), DEFAULTS, LATEST_US, LATEST_US, times)


def row_by_row(part: Part) -> tuple[Any, list[tuple[int, str]]]:
    """The slots of the sound rows, and line and reason of the others."""
    rows, wrong = assembled(Trade, [lambda i=i: part.row(i) for i in range(len(part.numbers))])
    return rows, [(int(part.numbers[number]), reason) for number, reason in wrong]


def same(left: Any, right: Any) -> bool:
    """Equal in every value; what lies behind a text's length means nothing."""
    for field in LAYOUT.fields:
        if not field.kind.is_text:
            if not np.array_equal(left[field.name], right[field.name], equal_nan=field.kind.name == "DOUBLE"):
                return False
            continue
        lengths = left[field.name]["length"]
        if not np.array_equal(lengths, right[field.name]["length"]):
            return False
        texts = (array[field.name]["bytes"] for array in (left, right))
        for length, one, other in zip(lengths, *texts, strict=True):
            if length != 0xFFFF and one.tobytes()[:length] != other.tobytes()[:length]:
                return False
    return True


@pytest.mark.parametrize(
    "name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.ndjson", "a.jsonl.gz", "a.ndjson.zst", "a.parquet"]
)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    """Row for row and field for field what `rows_of` makes of the values, at once and one by one alike."""
    rows = trades(1200)
    found, numbers = [], []
    for part in source(written(tmp_path / name, rows)).parts(Place()):
        singly, wrong = row_by_row(part)
        assert (wrong, part.broken) == ([], [])
        assert part.columns is None or same(at_once(part), singly)
        found.append(singly)
        numbers += part.numbers.tolist()
    wanted = rows_of(Trade, {field: [row[field] for row in rows] for field in FIELDS})
    assert same(np.concatenate(found), wanted)
    assert numbers == list(
        range(1, 1201) if name == "a.parquet" else range(2, 1202) if ".csv" in name else range(1, 1201)
    )


WRONG = {
    "base_amount": ["", "abc", "1_0", " 1", "nan", "inf", "-1", "1e999", "0x10"],
    "transaction_fee": ["1.5", "9" * 5000, "1e3", "0x10", "+5", "9223372036854775808", "-1", "x"],
    "mev_protected": ["", "yes", "2"],
    "mode": ["", "PAPER", "paper "],
    "trader_id": ["t" * 33, "a\0b"],
    "timestamp": ["2024-08-08T00:00:00", "2024-08-08", "1999-01-01T00:00:00Z", "123", "soon", "9999999999999999"],
    "metadata": ["m" * 159],
}


@pytest.mark.parametrize(("field", "text"), [(field, text) for field, texts in WRONG.items() for text in texts])
def test_a_wrong_value_is_told_with_line_and_field(field: str, text: str, tmp_path: Path) -> None:
    """The batch is not taken as a whole; the row's line, record and field are named, and its neighbours are sound."""
    content = csv_bytes([trade(1), {**trade(2), field: "WRONG"}, trade(3)]).replace(b"WRONG", text.encode())
    (tmp_path / "a.csv").write_bytes(content)
    (part,) = source(tmp_path / "a.csv").parts(Place())
    with pytest.raises(Unsound):
        at_once(part)
    rows, ((line, reason),) = row_by_row(part)
    assert line == 3
    assert f"Trade.{field}: got" in reason
    assert "wanted" in reason
    assert same(rows, rows_of(Trade, {name: [trade(n)[name] for n in (1, 3)] for name in FIELDS}))


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    """A text that is not UTF-8 is rejected, not replaced."""
    (tmp_path / "a.csv").write_bytes(csv_bytes([trade(1), trade(2)]).replace(b"trader-2", b"tr\xff\xfe"))
    (part,) = source(tmp_path / "a.csv").parts(Place())
    with pytest.raises(Unsound):
        at_once(part)
    rows, ((line, reason),) = row_by_row(part)
    assert (len(rows), line) == (1, 3)
    assert "wanted UTF-8" in reason


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2024-08-08T23:54:14.087896Z", 1723161254087896),
        ("2024-08-08 23:54:14+01:00", 1723157654000000),
        ("2024-08-08T23:54:14.1Z", 1723161254100000),
        ("1723161254087896", 1723161254087896),
    ],
)
def test_times_as_people_write_them(text: str, microseconds: int, tmp_path: Path) -> None:
    """ISO 8601 with a zone and integer microseconds are the same instant, at once and one by one."""
    (tmp_path / "a.csv").write_bytes(csv_bytes([{**trade(1), "timestamp": text}]))
    (part,) = source(tmp_path / "a.csv").parts(Place())
    assert at_once(part)["timestamp"].tolist() == [microseconds]
    assert row_by_row(part)[0]["timestamp"].tolist() == [microseconds]


VALUES = st.sampled_from(
    ["", "1", "-2.5", "007", "true", "0", "1e3", "+1", "paper", "2024-08-08T00:00:00Z", "é", '"', "'x", "a\nb"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=4))
@example(rows=[{"timestamp": ""}, {}])
@example(rows=[{"timestamp": "2024-08-08T00:00:00Z"}, {}])
def test_both_ways_agree(rows: list[dict[str, str]], tmp_path: Path) -> None:
    """Whatever texts a file has: where all rows are sound both ways give the same slots, and otherwise neither all.

    But for times of both forms in one batch, which are read one by one.
    """
    (tmp_path / "a.csv").write_bytes(csv_bytes([{**trade(1), **row} for row in rows]))
    (part,) = source(tmp_path / "a.csv").parts(Place())
    singly, wrong = row_by_row(part)
    try:
        together = at_once(part)
    except Unsound:
        times = [row["timestamp"] for row in ({**trade(1), **row} for row in rows) if row["timestamp"] != ""]
        assert wrong or len({str(time).isdecimal() for time in times}) == 2
    else:
        assert wrong == []
        assert same(together, singly)


def test_null_is_not_the_empty_text(tmp_path: Path) -> None:
    """An empty field is NULL, a quoted empty one the empty text."""
    content = csv_bytes([{**trade(2), "tx_signature": "EMPTY"}, {**trade(3), "tx_signature": None}])
    (tmp_path / "a.csv").write_bytes(content.replace(b"EMPTY", b'""'))
    (part,) = source(tmp_path / "a.csv").parts(Place())
    assert at_once(part)["tx_signature"]["length"].tolist() == [0, 0xFFFF]
    assert row_by_row(part)[0]["tx_signature"]["length"].tolist() == [0, 0xFFFF]


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    """Too few and too many fields, empty lines and newlines inside quotes: each row keeps the number of its line."""
    one, two, three = csv_bytes(trades(3)).split(b"\n")[1:4]
    multi = csv_bytes([{**trade(7), "metadata": "two\nlines"}]).split(b"\n", 1)[1]
    content = b"\n".join(
        [",".join(FIELDS).encode(), one, b"", b"a,b", two, multi + three, three + b",more", three, b""]
    )
    (tmp_path / "a.csv").write_bytes(content)
    (part,) = source(tmp_path / "a.csv").parts(Place())
    assert part.numbers.tolist() == [2, 5, 6, 8, 10]
    assert [(line, reason) for line, reason, _ in part.broken] == [
        (4, "got 2 fields, wanted 18"),
        (9, "got 19 fields, wanted 18"),
    ]
    assert part.broken[0][2] == "a,b"
    assert part.text(3) == three.decode()
    assert row_by_row(part)[1] == []


def test_an_open_quote_swallows_nothing(tmp_path: Path) -> None:
    """A quote that is never closed costs its own line, wherever it stands."""
    one, two = csv_bytes([trade(8), trade(9)]).split(b"\n")[1:3]
    for content, line in (([one, b'"' + two, one, two], 3), ([one, two, one, b'"' + two], 5), ([b'"' + one, two], 2)):
        path = tmp_path / "a.csv"
        path.write_bytes(b"\n".join([",".join(FIELDS).encode(), *content, b""]))
        parts = list(source(path).parts(Place()))
        numbers = [number for part in parts for number in part.numbers.tolist()]
        assert numbers == [number for number in range(2, len(content) + 2) if number != line]
        assert [(number, reason) for part in parts for number, reason, _ in part.broken] == [
            (line, "got an open quote, wanted its end")
        ]


def test_quotes_inside_fields(tmp_path: Path) -> None:
    """An inch mark in an unquoted field is a character like any other, even where two of them look like a pair."""
    rows = [{**trade(n), "trader_id": f"INCH{n}"} for n in (8, 9, 10)]
    content = csv_bytes(rows).replace(b"INCH8", b'8" disk').replace(b"INCH10", b'10" disk')
    (tmp_path / "a.csv").write_bytes(content)
    (part,) = source(tmp_path / "a.csv").parts(Place())
    assert part.numbers.tolist() == [2, 3, 4]
    assert [part.row(i)["trader_id"] for i in range(3)] == ['8" disk', "INCH9", '10" disk']


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.ndjson"])
def test_a_truncated_file_gives_what_can_be_read(name: str, packed: str, tmp_path: Path) -> None:
    """Rows come up to the line that was cut, that line is not taken for whole, and the end is told by its line."""
    path = written(tmp_path / (name + packed), trades(3000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = source(path)
    numbers = [number for part in found.parts(Place()) for number in part.numbers.tolist()]
    first = 2 if name == "a.csv" else 1
    assert numbers == list(range(first, numbers[-1] + 1))
    assert len(numbers) > 1000
    assert f"ends in the middle, behind line {numbers[-1]}" in found.broken_end


def test_a_place_leads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every place of every format the rest is read, with the same numbers; also where the file has grown."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 20_000)
    for name in ("a.csv", "a.ndjson", "a.csv.gz", "a.parquet"):
        path = written(tmp_path / name, trades(700))
        parts = list(source(path).parts(Place()))
        assert len(parts) > 1 or name == "a.parquet"
        whole = [number for part in parts for number in part.numbers.tolist()]
        if name != "a.parquet":
            written(path, trades(900))
        for part in parts:
            rest = [number for later in source(path).parts(part.after) for number in later.numbers.tolist()]
            wanted = [number for number in whole if number >= part.after.line]
            assert rest[: len(wanted)] == wanted
            assert len(rest) == len(wanted) + (0 if name == "a.parquet" else 200)


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_another_file_is_not_gone_on_with(name: str, tmp_path: Path) -> None:
    """A place in a file whose beginning has changed since is refused: positions would mean other rows."""
    path = written(tmp_path / name, trades(50))
    place = list(source(path).parts(Place()))[-1].after
    for rows in (trades(50, first=1), trades(20)):
        written(path, rows)
        with pytest.raises(FileError, match="other content before line"):
            list(source(path).parts(place))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "got an empty file"),
        (b"trader_id,mode\n", "wanted also action, base_token"),
        (b"mode,mode\n", "got column mode twice"),
        (b'"mode\n', "wanted"),
    ],
)
def test_a_header_that_does_not_fit(content: bytes, what: str, tmp_path: Path) -> None:
    """Missing and double columns, and no header at all, are errors of the whole file, with what was found."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(FileError, match=what):
        list(source(tmp_path / "a.csv").parts(Place()))


def test_columns_are_mapped(tmp_path: Path) -> None:
    """--map takes a column of another name; a field or a column that is not there is named."""
    (tmp_path / "a.csv").write_bytes(csv_bytes(trades(2)).replace(b"executed_price", b"px", 1))
    (part,) = source(tmp_path / "a.csv", executed_price="px").parts(Place())
    assert part.row(1)["executed_price"] == trade(1)["executed_price"]
    with pytest.raises(FileError, match="executed_price"):
        list(source(tmp_path / "a.csv").parts(Place()))
    with pytest.raises(FileError, match=r"executed_price \(mapped to 'price'\)"):
        list(source(tmp_path / "a.csv", executed_price="price").parts(Place()))
    with pytest.raises(RecordTypeError, match="--map: got field price"):
        source(tmp_path / "a.csv", price="px")


def test_parquet_with_other_types(tmp_path: Path) -> None:
    """Aware timestamps are taken; naive ones, and columns of another type, are rejected row by row with the reason."""
    rows = trades(3)
    table = pa.Table.from_pylist(rows)
    at = table.schema.get_field_index("timestamp")
    stamps = table.column("timestamp")
    for kind, is_sound in (
        (pa.timestamp("us", tz="UTC"), True),
        (pa.timestamp("ns", tz="UTC"), True),
        (pa.timestamp("us"), False),
    ):
        typed = (
            stamps.cast(pa.timestamp("us")).cast(kind)
            if kind.tz is None
            else stamps.cast(pa.timestamp("us", tz="UTC")).cast(kind)
        )
        pa.parquet.write_table(table.set_column(at, "timestamp", typed), tmp_path / "a.parquet")
        (part,) = source(tmp_path / "a.parquet").parts(Place())
        _, wrong = row_by_row(part)
        if is_sound:
            assert at_once(part)["timestamp"].tolist() == [row["timestamp"] for row in rows]
        else:
            assert [line for line, _ in wrong] == [1, 2, 3]
            assert "wanted a time with a zone: see --time-zone" in wrong[0][1]
    wrong_type = table.set_column(table.schema.get_field_index("mode"), "mode", pa.array([1, 2, 3]))
    pa.parquet.write_table(wrong_type, tmp_path / "a.parquet")
    (part,) = source(tmp_path / "a.parquet").parts(Place())
    assert "Trade.mode: got int 1, wanted a str" in row_by_row(part)[1][0][1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "got no JSON object"),
        (b"{broken", "got no JSON object"),
        (b"\xff", "got no JSON object"),
        (b"{}", "Trade.timestamp: got none, wanted the row's time"),
        (b'{"timestamp":1723161254087896}', "wanted also trader_id"),
    ],
)
def test_lines_that_are_no_objects(line: bytes, reason: str, tmp_path: Path) -> None:
    """A broken line, another JSON type and an object without its fields are told by line; the others are sound."""
    path = written(tmp_path / "a.ndjson", trades(2))
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n" + path.read_bytes())
    (part,) = source(path).parts(Place())
    rows, ((number, why),) = row_by_row(part)
    assert (len(rows), number) == (4, 4)
    assert reason in why


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    """Text called .parquet, a truncated Parquet file and a name without a format are named."""
    path = tmp_path / "a.parquet"
    for content in (b"trader_id\n", written(path, trades(900)).read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(FileError, match="wanted a readable Parquet file"):
            list(source(path).parts(Place()))
    with pytest.raises(FileError, match=r"wanted \.csv"):
        format_of(tmp_path / "a.txt")
    assert gzip.decompress(written(tmp_path / "a.csv.gz", trades(1)).read_bytes()) == csv_bytes(trades(1))
    assert FIRST_US < LATEST_US
