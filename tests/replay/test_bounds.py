"""Whatever a file holds, a replay's memory is bounded: by bytes, not by rows or lines."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from replay_files import csv_bytes, json_bytes, trade, trades, written
from test_sources import row_by_row, source

from ringlog.records import Record, layout_of
from ringlog.records.fields import Varchar
from ringlog.replay import lines, parquet_source
from ringlog.replay.replay import Replay
from ringlog.replay.source import Place
from ringlog.replay.unpacking import FileError
from ringlog.settings import Settings

MIB = 1 << 20

# Prints by how much the peak of its memory grew, in bytes, and what came of the file.
MEASURED = """
import json, sys
from pathlib import Path
from ringlog.records import Trade
from ringlog.replay.replay import Replay
from ringlog.settings import Settings
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def replayed(path):
    with Replay(Path(path), Trade, Settings.from_environment()) as going:
        return going.run()
replayed(sys.argv[1])
before = peak()
try:
    outcome = replayed(sys.argv[2])
    found = [outcome.accepted, outcome.rejected]
except Exception as error:
    found = str(error)
print(json.dumps([peak() - before, found]))
"""


def measured(path: Path, settings: Settings) -> tuple[int, Any]:
    """By how much a replay's peak memory grew, after a small file of the same format, and what it says."""
    small = written(path.with_name("small." + ("parquet" if "parquet" in path.name else "csv")), trades(10))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(small), str(path)],
        env={**os.environ, **settings.to_environment()}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    grown, found = json.loads(done.stdout)
    return grown, found


def bomb(path: Path, rows: int, text: str, **options: Any) -> Path:
    """Rows that all share one text of a field, which lies in the file once."""
    table = pa.Table.from_pylist(trades(rows))
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    table = table.set_column(table.schema.get_field_index("tx_signature"), "tx_signature", column)
    pa.parquet.write_table(table, path, compression="zstd", **options)
    return path


def long_line(fill: bytes) -> bytes:
    return csv_bytes(trades(3)) + fill * (100 * MIB // len(fill)) + b"\n" + csv_bytes([trade(3)]).split(b"\n", 1)[1]


def zipped(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.csv", content)

    return write


@pytest.mark.parametrize(
    "packed", ["zst", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gz", "bz2", "xz", "zip"))]
)
def test_70_a_small_file_that_unpacks_to_a_long_line(packed: str, lane_settings: Settings, tmp_path: Path) -> None:
    """100 MiB without a newline, packed to some KiB: the line is rejected by its number, the others are accepted, and
    the peak of memory grows by less than 48 MiB.

    Defence: a line is given up after RECORD_BYTES_MAX, and passed over to its end.
    """
    path = tmp_path / f"a.csv.{packed}"
    content = long_line(b"x" * 4096)
    if packed == "zip":
        zipped(content)(path)
    elif packed == "zst":
        path.write_bytes(pa.compress(content, "zstd", asbytes=True))
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[packed].compress(content))
    grown, found = measured(path, lane_settings)
    assert path.stat().st_size < 1 << 20
    assert found == [4, 1]
    assert grown < 48 * MIB


def test_70_rows_that_share_one_huge_value(lane_settings: Settings, tmp_path: Path) -> None:
    """Finding 34: 1,500 rows of a Parquet file that share a text of 8 MiB are rejected one by one, each with its number
    and the length, and the peak of memory grows by less than 256 MiB.

    Defence: texts are read as dictionaries, and a text that is too long is never copied. No patch: without it the test
    takes twelve gigabytes of whatever machine it runs on.
    """
    path = bomb(tmp_path / "a.parquet", 1500, "x" * (8 * MIB))
    assert path.stat().st_size < 200_000
    grown, found = measured(path, lane_settings)
    assert found == [0, 1500]
    assert grown < 256 * MIB
    rejects = Path(f"{path}.rejects.ndjson").read_bytes().splitlines()
    assert len(rejects) == 1500
    assert b"Trade.tx_signature: got 8388608 bytes b'xxx" in rejects[7]
    assert max(map(len, rejects)) < 2000


ENCODINGS = ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_70_values_that_are_each_huge(encoding: str, lane_settings: Settings, tmp_path: Path) -> None:
    """Finding 34: 100 texts of 4 MiB, in whatever encoding, are taken few at a time: memory grows by half of them.

    Defence: as many rows are read at once as surely fit, by the headers of the pages.
    """
    table = pa.Table.from_pylist(trades(100))
    column = pa.array(["y" * (4 * MIB) + str(number) for number in range(100)])
    table = table.set_column(table.schema.get_field_index("tx_signature"), "tx_signature", column)
    path = tmp_path / "a.parquet"
    options: Any = {"use_dictionary": False, "column_encoding": {"tx_signature": encoding}}
    pa.parquet.write_table(table, path, compression="zstd", data_page_size=MIB, write_batch_size=1, **options)
    del table, column
    grown, found = measured(path, lane_settings)
    assert found == [0, 100]
    assert grown < 200 * MIB


@pytest.mark.parametrize("encoding", [*ENCODINGS, "dictionary"])
def test_rows_at_a_time_follow_their_width(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 34: whatever the encoding, wide rows are read few at a time, each with its own values."""
    monkeypatch.setattr(parquet_source, "BATCH_BYTES", 20_000)
    rows = [{**trade(n), "metadata": f'{{"n":"{n}{"x" * (1000 if n else 10)}"}}'} for n in range(200)]
    options: Any = {"use_dictionary": False, "column_encoding": {"metadata": encoding}}
    if encoding == "dictionary":
        options = {"use_dictionary": ["metadata"]}
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, path, data_page_size=4096, write_batch_size=16, **options)
    parts = list(source(path).parts(Place()))
    assert [number for part in parts for number in part.numbers.tolist()] == list(range(1, 201))
    assert encoding == "dictionary" or max(len(part.numbers) for part in parts) < 40
    found = [part.row(i)["metadata"] for part in parts for i in range(len(part.numbers))]
    assert found == [row["metadata"] for row in rows]


def test_70_a_page_that_unpacks_to_more_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 34: a page beyond the bound is told, by its column and size, before any is unpacked.

    Defence: pages' headers are read first.
    """
    monkeypatch.setattr(parquet_source, "PAGE_BYTES_MAX", 4 * MIB)
    path = bomb(tmp_path / "a.parquet", 10, "x" * (8 * MIB))
    with pytest.raises(FileError, match=r"got a page of 8,388,6\d\d bytes in column tx_signature, wanted at most"):
        list(source(path).parts(Place()))


class Wide(Record):
    """A row whose slot is far wider than its line."""

    __table__ = "wide"

    one: Annotated[str, Varchar(32_000)]
    two: Annotated[str, Varchar(32_000)]


def test_70_short_lines_of_wide_rows(lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of short lines that would be slots of gigabytes becomes as many slots at a time as fit.

    Defence: slots are made SLOTS_BYTES_MAX at a time.
    """
    made: list[int] = []
    path = tmp_path / "a.csv"
    stamps = b"".join(b"a,b,1723161254087896\n" for _ in range(2000))
    path.write_bytes(b"one,two,timestamp\n" + stamps)
    monkeypatch.setattr("ringlog.replay.replay.SLOTS_BYTES_MAX", 20 * layout_of(Wide).dtype.itemsize)
    with Replay(path, Wide, lane_settings) as going:
        appended = going._appended

        def seen(rows: Any, passed: int) -> int:
            made.append(len(rows))
            if len(made) == 5:
                going.stop()
            return appended(rows, passed)

        monkeypatch.setattr(going, "_appended", seen)
        going.run()
    assert made
    assert max(made) <= 20


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson"])
def test_a_line_that_is_too_long(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rejected by its number, with its beginning; the rows around it are sound, also from each place on, and a
    last one that never ends is no more than that."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(lines, "RECORD_BYTES_MAX", 6000)
    path = tmp_path / name
    if name == "a.csv":
        head, body = csv_bytes(trades(20)).split(b"\n", 1)
        head += b"\n"
    else:
        head, body = b"", json_bytes(trades(20))
    long = b"z" * 50_000
    path.write_bytes(head + body + long + b"\n" + body + long + b"\n" + long + b"\n" + body + long)
    first = 2 if name == "a.csv" else 1
    bad = [first + 20, first + 41, first + 42, first + 63]
    parts = list(source(path).parts(Place()))
    assert [(number, text[:3]) for part in parts for number, _, text in part.broken] == [(n, "zzz") for n in bad]
    assert all("got a line of more than 6000 bytes" in reason for part in parts for _, reason, _ in part.broken)
    found = [number for part in parts for number in part.numbers.tolist()]
    assert found == [number for number in range(first, first + 63) if number not in bad]
    for part in parts:
        rest = [number for later in source(path).parts(part.after) for number in later.numbers.tolist()]
        assert rest == [number for number in found if number >= part.after.line]


def test_lists_in_parquet(tmp_path: Path) -> None:
    """A column of lists, of which one row may hold any number, is refused by name; one that nobody wants is not."""
    table = pa.Table.from_pylist(trades(3)).append_column("more", pa.array([[1], [2], [3]]))
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    (part,) = source(tmp_path / "a.parquet").parts(Place())
    assert row_by_row(part)[1] == []
    at = table.schema.get_field_index("metadata")
    pa.parquet.write_table(table.set_column(at, "metadata", pa.array([["a"], ["b"], []])), tmp_path / "b.parquet")
    with pytest.raises(FileError, match="got lists in column metadata"):
        list(source(tmp_path / "b.parquet").parts(Place()))


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    """A Parquet file whose pages are not what its footer says is named, and nothing of it is unpacked."""
    path = written(tmp_path / "a.parquet", trades(300))
    content = bytearray(path.read_bytes())
    content[4:600] = bytes(596)
    path.write_bytes(content)
    with pytest.raises(FileError, match="wanted a readable Parquet file"):
        list(source(path).parts(Place()))
