"""What options say of a file: where they fit, where they fit nothing, and when a replay is resumed with others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from lane_samples import Drained
from replay_files import FIELDS, csv_bytes, trade, trades, written
from test_sources import at_once, row_by_row, same, shaped, source

from ringlog.cli import ringlog
from ringlog.errors import RinglogError
from ringlog.records import Trade
from ringlog.replay import replay as replaying
from ringlog.replay.journal import JUDGING, ReplayError
from ringlog.replay.replay import Replay
from ringlog.replay.shape import Shape
from ringlog.replay.source import Place
from ringlog.replay.sources import format_of
from ringlog.replay.unpacking import FileError
from ringlog.settings import Settings


def rows_of(path: Path, shape: Shape) -> list[Any]:
    return [row for part in shaped(path, shape).parts(Place()) for row in row_by_row(part)[0].tolist()]


def body(count: int) -> bytes:
    return csv_bytes(trades(count)).split(b"\n", 1)[1]


def test_files_without_a_header(tmp_path: Path) -> None:
    """Finding 37: --columns names the columns; a first line that says the same is no row, any other line is one."""
    wanted = rows_of(written(tmp_path / "a.csv", trades(5)), Shape())
    bare = tmp_path / "b.csv"
    for content in (body(5), b"\xef\xbb\xbf" + body(5), csv_bytes(trades(5)), b"\xef\xbb\xbf" + csv_bytes(trades(5))):
        bare.write_bytes(content)
        assert str(rows_of(bare, Shape(columns=FIELDS))) == str(wanted)
    with pytest.raises(FileError, match="got columns one, two, wanted also trader_id"):
        rows_of(bare, Shape(columns=("one", "two")))


def test_lines_before_the_header(tmp_path: Path) -> None:
    """Finding 37: --skip-lines passes over a preamble, whatever quotes it has; rows keep their numbers."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'made by "somebody\n\n' + csv_bytes(trades(5)))
    (part,) = shaped(path, Shape(skip_lines=2)).parts(Place())
    assert (part.numbers.tolist(), row_by_row(part)[1]) == ([4, 5, 6, 7, 8], [])
    path.write_bytes(path.read_bytes() + body(2))
    (rest,) = shaped(path, Shape(skip_lines=2)).parts(part.after)
    assert rest.numbers.tolist() == [9, 10]
    nothing = tmp_path / "b.csv"
    nothing.write_bytes(b"one\n")
    with pytest.raises(FileError, match="got an empty file"):
        list(shaped(nothing, Shape(skip_lines=5)).parts(Place()))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters(delimiter: str, tmp_path: Path) -> None:
    """Finding 37: --delimiter stands between names and between values."""
    rows = [{**each, "metadata": None} for each in trades(5)]
    wanted = rows_of(written(tmp_path / "a.csv", rows), Shape())
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes().replace(b",", delimiter.encode()))
    assert str(rows_of(tmp_path / "b.csv", Shape(delimiter=delimiter))) == str(wanted)


def test_values_that_are_not_in_the_file(lane_settings: Settings, tmp_path: Path) -> None:
    """Finding 37: --set gives every row of a field, in each container, exactly what append takes."""
    fields = tuple(name for name in FIELDS if name not in ("mode", "transaction_fee", "mev_protected"))
    shape = Shape(constants={"mode": "paper", "transaction_fee": "7", "mev_protected": "true"})
    for name in ("a.csv", "a.ndjson", "a.parquet"):
        rows = [{field: trade(n)[field] for field in fields} for n in range(3)]
        path = tmp_path / name
        path.write_bytes(csv_bytes(rows, fields)) if name == "a.csv" else written(path, rows)
        with Replay(path, Trade, lane_settings, shape=shape) as going:
            assert going.run().accepted == 3
    found = Drained(lane_settings).drain()
    assert {(row["mode"], row["transaction_fee"], row["mev_protected"]) for row in found} == {("paper", 7, True)}
    with pytest.raises(RinglogError, match=r"Trade.mode: got 'test', wanted one of 'paper', 'live'"):
        Replay(tmp_path / "a.csv", Trade, lane_settings, shape=Shape(constants={"mode": "test"}))
    with pytest.raises(RinglogError, match=r"--set: got field moda, wanted one of Trade's.*did you mean mode"):
        Replay(tmp_path / "a.csv", Trade, lane_settings, shape=Shape(constants={"moda": "paper"}))


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content[:4000]) + gzip.compress(content[4000:]),
    "bz2": lambda content: bz2.compress(content[:4000]) + bz2.compress(content[4000:]),
    "xz": lambda content: lzma.compress(content[:4000]) + b"\0" * 4 + lzma.compress(content[4000:]),
    "zst": lambda content: zstd(content[:4000]) + zstd(content[4000:]),
}


def told(path: Path) -> tuple[int, str]:
    """How many rows a broken file has, and what is said of it."""
    found, rows = source(path), 0
    try:
        for part in found.parts(Place()):
            rows += len(part.numbers)
    except FileError as error:
        return rows, str(error)
    return rows, found.broken_end


@pytest.mark.parametrize("packed", PACKED)
def test_packed_files(packed: str, tmp_path: Path) -> None:
    """Finding 37: files of several compressed streams are read whole; of one that is cut or damaged come whole rows
    alone, and what is wrong is told."""
    path = tmp_path / f"a.csv.{packed}"
    path.write_bytes(PACKED[packed](csv_bytes(trades(300))))
    (part,) = source(path).parts(Place())
    assert (len(part.numbers), row_by_row(part)[1]) == (300, [])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:3000] + bytes(40) + whole[3040:], whole[:12]):
        path.write_bytes(content)
        rows, why = told(path)
        assert rows <= 300
        assert "ends in the middle, behind line" in why or "before a whole line, wanted a file that can be" in why


def zip_file(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_files(tmp_path: Path) -> None:
    """Finding 37: a zip of one file is that file; one of several, a cut one and a damaged one are told by name."""
    content = csv_bytes(trades(300))
    path = zip_file(tmp_path / "a.zip", {"b.csv": content, "__MACOSX/b.csv": b"x"})
    assert format_of(path) == "csv"
    (part,) = source(path).parts(Place())
    assert len(part.numbers) == 300
    with pytest.raises(FileError, match=r"got a zip of 2 files \(b.csv, c.csv\), wanted one"):
        format_of(zip_file(tmp_path / "several.zip", {"b.csv": content, "c.csv": content}))
    cut = tmp_path / "cut.csv.zip"
    cut.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileError, match="wanted a whole zip"):
        list(source(cut).parts(Place()))
    damaged = bytearray(path.read_bytes())
    damaged[2000:2004] = b"\xff\xff\xff\xff"
    (tmp_path / "damaged.csv.zip").write_bytes(damaged)
    assert "before a whole line, wanted a file that can be unpacked" in told(tmp_path / "damaged.csv.zip")[1]


def test_utf16_is_told(tmp_path: Path) -> None:
    """A file as spreadsheets save it, in UTF-16, is named for what it is."""
    (tmp_path / "a.csv").write_bytes(csv_bytes(trades(3)).decode().encode("utf-16"))
    with pytest.raises(FileError, match="got UTF-16, wanted UTF-8"):
        list(source(tmp_path / "a.csv").parts(Place()))


def test_a_struct_for_a_document(tmp_path: Path) -> None:
    """A Parquet struct becomes a document; one with bytes that are no text is rejected by its number."""
    texts = pa.array([b"fine", b"\xff"]).view(pa.string())
    table = pa.Table.from_pylist(trades(2))
    at = table.schema.get_field_index("metadata")
    column = pa.StructArray.from_arrays([texts], ["note"])
    pa.parquet.write_table(table.set_column(at, "metadata", column), tmp_path / "a.parquet")
    (part,) = source(tmp_path / "a.parquet").parts(Place())
    rows, ((number, reason),) = row_by_row(part)
    assert (len(rows), number) == (1, 2)
    assert "Trade.metadata: got a value of type struct" in reason
    assert "metadata" in part.text(1)


OTHERS = {
    "mapping": {"base_amount": "quote_amount"},
    "constants": {"mode": "live"},
    "columns": FIELDS,
    "skip_lines": 1,
    "delimiter": ";",
    "time_unit": "ms",
    "time_zone": "UTC",
    "time_floor": True,
    "stamp_now": True,
}


@pytest.mark.parametrize("option", OTHERS)
def test_another_option_is_not_resumed(option: str, lane_settings: Settings, tmp_path: Path) -> None:
    """Every option decides which rows there are, or how they are judged: a resumption with another is refused by name,
    one with the same goes on."""
    assert set(OTHERS) == set(Shape.__struct_fields__) - {"format"}
    path = written(tmp_path / "a.csv", trades(3))
    with Replay(path, Trade, lane_settings) as going:
        assert going.run().accepted == 3
    shape = Shape(**{option: OTHERS[option]})
    with pytest.raises(ReplayError, match=f"got another {option.replace('_', ' ')} than it was begun with, wanted"):
        Replay(path, Trade, lane_settings, shape=shape, mode="resume").__enter__()
    with Replay(path, Trade, lane_settings, mode="resume") as going:
        assert going.run().accepted == 3


def test_other_rules_are_not_resumed(lane_settings: Settings, tmp_path: Path) -> None:
    """A journal of a version that judged rows by other rules would be counted wrongly: it is refused by name."""
    path = written(tmp_path / "a.csv", trades(3))
    with Replay(path, Trade, lane_settings) as going:
        going.run()
    (file,) = (lane_settings.spool_path / "replays").glob("*.json")
    journal = msgspec.json.decode(file.read_bytes())
    for judging in (JUDGING - 1, JUDGING + 1, None):
        changed = {name: value for name, value in journal.items() if name != "judging"}
        file.write_bytes(msgspec.json.encode(changed if judging is None else {**changed, "judging": judging}))
        with pytest.raises(ReplayError, match=f"which judges rows by rules [0-9]+, wanted rules {JUDGING}.*--again"):
            Replay(path, Trade, lane_settings, mode="resume").__enter__()


def once(going: Replay) -> Callable[[Any, int], int]:
    """Appends what comes first, and stops the replay with what comes second."""
    appended = going._appended
    given: list[int] = []

    def append(slots: Any, passed: int) -> int:
        given.append(passed)
        if len(given) == 2:
            going.stop()
        return appended(slots, passed)

    return append


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_a_stop_between_slots_of_a_block(
    name: str, lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are made some at a time: stopped after any of them and resumed, every row comes once, and every reject."""
    monkeypatch.setattr(replaying, "SLOTS_BYTES_MAX", 40 * 1024)
    rows = [{**trade(n), **({"mode": "none"} if n % 7 == 3 else {})} for n in range(200)]
    path = written(tmp_path / name, rows)
    settings = msgspec.structs.replace(lane_settings, lane_bytes_max=64 << 20)
    for stopped in range(7):
        with Replay(path, Trade, settings, mode="resume") as going:
            if stopped < 6:
                monkeypatch.setattr(going, "_appended", once(going))
            outcome = going.run()
    sound = [n for n in range(200) if n % 7 != 3]
    assert (outcome.accepted, outcome.rejected) == (len(sound), 200 - len(sound))
    assert sorted(row["transaction_fee"] - 5000 for row in Drained(settings).drain()) == sound
    first = 2 if name == "a.csv" else 1
    lines = [json.loads(line)["line"] for line in Path(outcome.rejects).read_text().splitlines()]
    assert lines == [n + first for n in range(3, 200, 7)]


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["--time-unit", "min"], 2, "'min' is not one of 's', 'ms', 'us', 'ns', 'auto'"),
        (["--time-zone", "Europe/Berlim"], 2, "--time-zone: got 'Europe/Berlim', wanted a name such as UTC"),
        (["--delimiter", "::"], 2, "--delimiter: got '::', wanted one ASCII character, or tab"),
        (["--columns", "a,b,a"], 2, "--columns: got 'a', wanted each name once"),
        (["--skip-lines", "-1"], 2, "-1 is not in the range"),
        (["--set", "mode"], 2, "wanted FIELD=VALUE"),
        (["--set", "timestamp=1"], 2, "--set: got timestamp, wanted a field that no column is named for"),
        (["--set", "mode=paper", "--map", "mode=kind"], 2, "--set: got mode, wanted a field that no column"),
        (["--time-column", "at", "--map", "timestamp=when"], 2, "wanted one of them"),
        (["--preset", "binance"], 1, "--preset: got 'binance', wanted one of binance-spot, "),
        (["--time-column", "at"], 1, "wanted also timestamp (mapped to 'at'): --time-column names the column"),
    ],
)
def test_options_that_fit_nothing(
    arguments: list[str], status: int, what: str, lane_settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each is told by its name with what was wanted, and nothing is appended."""
    for name, text in lane_settings.to_environment().items():
        monkeypatch.setenv(name, text)
    path = written(tmp_path / "a.csv", trades(3))
    result = CliRunner().invoke(ringlog, ["replay", str(path), "--record", "Trade", *arguments])
    text = result.output + (f"{result.exception}" if isinstance(result.exception, RinglogError) else "")
    assert (result.exit_code, what in " ".join(text.replace("│", " ").split())) == (status, True), text


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_one_column_for_several_fields(name: str, tmp_path: Path) -> None:
    """Each field that is mapped to a column has its values, however many others are too."""
    path = written(tmp_path / name, trades(5))
    shape = Shape(mapping={"base_amount": "quote_amount", "executed_price": "quote_amount", "base_token": "mode"})
    (part,) = shaped(path, shape).parts(Place())
    rows, wrong = row_by_row(part)
    amounts = [trade(n)["quote_amount"] for n in range(5)]
    assert wrong == []
    for field in ("base_amount", "executed_price", "quote_amount"):
        assert rows[field].tolist() == amounts
    if part.columns is not None:
        assert same(at_once(part), rows)


def test_times_that_repeat(tmp_path: Path) -> None:
    """Finding 33: nanoseconds in a dictionary, as of a categorical column, are as exact as any others."""
    table = pa.Table.from_pylist(trades(3))
    stamps = pa.array([1_723_161_254_087_896_000, 1_723_161_254_087_896_001] * 2, pa.timestamp("ns", tz="UTC"))
    column = stamps.dictionary_encode()[:3]
    pa.parquet.write_table(table.set_column(17, "timestamp", column), tmp_path / "a.parquet")
    (part,) = source(tmp_path / "a.parquet").parts(Place())
    rows, wrong = row_by_row(part)
    assert (len(rows), [number for number, _ in wrong]) == (2, [2])
