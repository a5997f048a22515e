"""Accepted means that the writer can store it: texts are UTF-8, numbers and times exact, whatever the container."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from replay_files import FIRST_US, trade, trades, written
from test_sources import at_once, row_by_row, same, shaped, source

from ringlog.cli import ringlog
from ringlog.records import Trade
from ringlog.replay.replay import Replay
from ringlog.replay.shape import Shape
from ringlog.replay.source import Place
from ringlog.replay.times import AUTO, UNITS, TimeError, Times, Unsound
from ringlog.settings import Settings

EXTRA_TEXTS = [b"fine", b"\xff\xfe", b"\xed\xa0\x80", "ÖL".encode()]  # the third is a surrogate


def parquet(path: Path, **columns: Any) -> Path:
    """A Parquet file of sound trades, with other columns in the place of some."""
    rows = len(next(iter(columns.values())))
    table = pa.Table.from_pylist(trades(rows))
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pa.parquet.write_table(table, path)
    return path


def unchecked(kind: Any) -> Any:
    """An array of EXTRA_TEXTS, whose bytes Arrow has not looked at: as a file of another program has them."""
    binary = pa.array(EXTRA_TEXTS, pa.large_binary() if kind == pa.large_string() else pa.binary())
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), binary.view(pa.string()), safe=False)
    return binary if kind == pa.binary() else binary.view(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), "dictionary"], ids=str)
@pytest.mark.parametrize("field", ["trader_id", "tx_signature", "metadata"])
def test_parquet_text_that_is_not_utf8(field: str, kind: Any, tmp_path: Path) -> None:
    """Finding 50: whatever type a text column has, rows that are not UTF-8 are rejected as in CSV, by number."""
    (part,) = source(parquet(tmp_path / "a.parquet", **{field: unchecked(kind)})).parts(Place())
    with pytest.raises(Unsound):
        at_once(part)
    rows, wrong = row_by_row(part)
    assert len(rows) == 2
    assert [number for number, _ in wrong] == [2, 3]
    assert all(f"Trade.{field}: got b'\\x" in reason and "wanted UTF-8" in reason for _, reason in wrong)
    assert "\N{REPLACEMENT CHARACTER}" in part.text(1)


def test_such_a_file_is_told_by_the_command(
    lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 50: `ringlog replay` of it accepts the other rows alone, lists those in the rejects, and exits 1."""
    for name, text in lane_settings.to_environment().items():
        monkeypatch.setenv(name, text)
    path = parquet(tmp_path / "a.parquet", tx_signature=unchecked(pa.string()))
    result = CliRunner().invoke(ringlog, ["replay", str(path), "--record", "Trade", "--json"], standalone_mode=False)
    assert (result.return_value, json.loads(result.output)["accepted"]) == (1, 2)
    rejects = [json.loads(line) for line in Path(f"{path}.rejects.ndjson").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [2, 3]


@pytest.mark.parametrize("zone", ["UTC", None])
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.ndjson"])
def test_nanoseconds_are_never_cut_in_silence(name: str, zone: str | None, tmp_path: Path) -> None:
    """Finding 33: an instant finer than a microsecond is rejected in each container, unless --time-floor cuts it."""
    stamps = [FIRST_US * 1000, FIRST_US * 1000 + 1, FIRST_US * 1000 + 999_999]
    if name == "a.parquet":
        path = parquet(tmp_path / name, timestamp=pa.array(stamps, pa.timestamp("ns", tz=zone)))
    else:
        texts = [f"{pd.Timestamp(stamp, unit='ns').isoformat()}{'Z' if zone else ''}" for stamp in stamps]
        path = written(tmp_path / name, [{**trade(n), "timestamp": text} for n, text in enumerate(texts)])
    (part,) = shaped(path, Shape(time_zone="UTC")).parts(Place())
    rows, wrong = row_by_row(part)
    assert rows["timestamp"].tolist() == [FIRST_US]
    assert [number for number, _ in wrong] == [int(number) for number in part.numbers[1:]]
    assert all("wanted whole microseconds" in reason for _, reason in wrong)
    (part,) = shaped(path, Shape(time_zone="UTC", time_floor=True)).parts(Place())
    rows, wrong = row_by_row(part)
    assert (rows["timestamp"].tolist(), wrong) == ([FIRST_US, FIRST_US, FIRST_US + 999], [])
    if part.columns is not None:
        assert same(at_once(part, Times(zone="UTC", floors=True)), rows)


NUMBERS = [
    (pa.array([1, 2**53 + 1, 2**53]), "base_amount", [1.0, None, 2.0**53]),
    (pa.array(["1", str(2**53 + 1), "0.1"]), "base_amount", [1.0, None, 0.1]),
    (pa.array(["1e3", "nan", "1,5"]), "base_amount", [1000.0, None, None]),
    (pa.array([decimal.Decimal(text) for text in ("0.10", "79.96", "12.50")]), "base_amount", [0.1, 79.96, 12.5]),
    (pa.array([decimal.Decimal(text) for text in ("5.00", "6.50", "7.00")]), "transaction_fee", [5, None, 7]),
    (pa.array([5.0, 6.5, 2.0**60]), "transaction_fee", [5, None, None]),
    (pa.array(["5", "6.0", "7.5"]), "transaction_fee", [5, 6, None]),
    (pa.array([5.0, float("nan"), 6.0]), "priority_fee", [5, "null", 6]),
    (pa.array([5.0, float("nan"), float("inf")]), "base_amount", [5.0, None, None]),
    (pa.array([0.5, float("nan"), 0.25]), "transfer_fees", [0.5, "null", 0.25]),
    (pa.array([True, False, True]), "base_amount", [None, None, None]),
    (pa.array([1.5, 0.1, 3.0], pa.float32()), "base_amount", [1.5, float(np.float32(0.1)), 3.0]),
    (pa.array(["true", "False", "yes"]), "mev_protected", [1, 0, None]),
    (pa.array(["5", "6", "5"]).dictionary_encode(), "transaction_fee", [5, 6, 5]),
]  # fmt: skip


LONG_NUMBERS = {
    "1" + "0" * 30: None,  # 10^12 ether in wei
    "1" * 50 + ".5": float("1" * 50 + ".5"),
    str(2**100): 2.0**100,
    str(2**100) + ".00": 2.0**100,
    "-" + "9" * 40 + ".00": None,
    "1e25": 1e25,
    "1.2345678901234568E+25": 1.2345678901234568e25,
}


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
@pytest.mark.parametrize("text", LONG_NUMBERS)
def test_finding_37_numbers_of_many_digits(text: str, name: str, tmp_path: Path) -> None:
    """Findings 33, 37: more digits than decimal's context has are the nearest double or a rejected row, not the end."""
    value: Any = float(text) if "e" in text.lower() else decimal.Decimal(text)
    value = value if name == "a.parquet" else text
    (part,) = source(written(tmp_path / name, [{**trades(1)[0], "base_amount": value}])).parts(Place())
    rows, wrong = row_by_row(part)
    wanted = LONG_NUMBERS[text]
    assert rows["base_amount"].tolist() == ([] if wanted is None else [wanted])
    assert len(wrong) == (wanted is None)
    assert all("Trade.base_amount: got " in reason and "float64 holds exactly" in reason for _, reason in wrong)


@pytest.mark.parametrize(("column", "field", "wanted"), NUMBERS, ids=lambda each: str(getattr(each, "type", each)))
def test_parquet_numbers_are_exact_or_rejected(column: Any, field: str, wanted: list[Any], tmp_path: Path) -> None:
    """Finding 37: decimals, numbers as texts and NaN for one that is missing; others are rejected."""
    (part,) = source(parquet(tmp_path / "a.parquet", **{field: column})).parts(Place())
    rows, wrong = row_by_row(part)
    assert [number for number, _ in wrong] == [i + 1 for i, value in enumerate(wanted) if value is None]
    found = ["null" if value == -(2**63) or math.isnan(value) else value for value in rows[field].tolist()]
    assert found == [value for value in wanted if value is not None]
    try:
        assert same(at_once(part), rows)
        assert wrong == []
    except Unsound:
        pass


@pytest.mark.parametrize(
    ("field", "token", "wanted"),
    [
        ("base_amount", '"0.1"', 0.1),
        ("base_amount", "0.1", 0.1),
        ("base_amount", "9007199254740993", None),
        ("base_amount", '"9007199254740993"', None),
        ("base_amount", "9007199254740993.0", None),
        ("base_amount", "1" * 500, None),
        ("transaction_fee", '"5000"', 5000),
        ("transaction_fee", "5000.0", 5000),
        ("transaction_fee", "5000.5", None),
        ("transaction_fee", "true", None),
        ("transaction_fee", "9" * 5000, None),
        ("mev_protected", '"True"', 1),
        ("timestamp", "1723161254087896", 1723161254087896),
        ("timestamp", '"1723161254087896"', 1723161254087896),
        ("timestamp", "null", None),
        ("timestamp", "true", None),
        ("trader_id", "7", None),
        ("trader_id", '"\\ud800"', None),
    ],
)
def test_json_numbers_are_read_as_they_stand(field: str, token: str, wanted: Any, tmp_path: Path) -> None:
    """Finding 37: a number in JSON, quoted or not, is what its digits say, or rejected by line."""
    sound = json.dumps(trade(1))
    value = json.dumps(trade(2)[field])
    line = json.dumps(trade(2)).replace(f'"{field}": {value}', f'"{field}": {token}')
    (tmp_path / "a.ndjson").write_text(f"{sound}\n{line}\n")
    (part,) = source(tmp_path / "a.ndjson").parts(Place())
    rows, wrong = row_by_row(part)
    if wanted is None:
        assert [number for number, _ in wrong] == [2]
    else:
        assert (rows[field].tolist()[1], wrong) == (wanted, [])


TIME_TEXTS = st.one_of(
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["2025-01-01", "2024-02-30", "1999-12-31", "2025-10-26", "0000-01-01", "2025-1-1"]),
            st.sampled_from(["T", " ", ""]),
            st.sampled_from(["00", "02:30", "23:59:59", "24:00:00", "10:00:60", "02:30:00.1", "10:00:00.123456"]),
            st.sampled_from(["", "", "789", "0001000"]),
            st.sampled_from(["", "Z", "+01:00", "+0130", "-05", "+24:00", "+00:60", "z", "+23:59", " Z"]),
        ),
    ),
    st.integers(-(10**19), 10**19).map(str),
    st.sampled_from([
        "", "1700000000", "1700000000.123456", "1700000000.1234567", "1700000000123", "1700000000123456", "1.7e9",
        "now", "1700000000123456000", "1700000000123456789",
        "2025-03-30T02:30:00", "20250101T000000Z", " 1700000000", "٣",
    ]),
)  # fmt: skip
TIMES = st.builds(
    Times,
    unit=st.sampled_from([*UNITS, AUTO]),
    zone=st.sampled_from(["", "UTC", "Europe/Berlin"]),
    floors=st.booleans(),
)


def one_by_one(times: Times, values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        try:
            found.append(times.of_value(value))
        except TimeError:
            found.append("wrong")
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(times=TIMES, texts=st.lists(TIME_TEXTS, min_size=1, max_size=4))
@example(times=Times(), texts=["2025-01-01 00Z"])
@example(times=Times(zone="Europe/Berlin"), texts=["2025-10-26 02:30:00"])
@example(times=Times(zone="Europe/Berlin"), texts=["2025-03-30 02:30:00"])
def test_a_time_is_judged_alike_whatever_is_beside_it(times: Times, texts: list[str]) -> None:
    """Finding 35: what a column at once takes is what its texts say one by one, to the microsecond."""
    singly = one_by_one(times, texts)
    try:
        together = times.of_column(pa.array([text.encode() for text in texts])).to_pylist()
    except (Unsound, pa.ArrowException):
        return
    low = 946_684_800_000_000
    assert ["wrong" if each is None or not low <= each <= 7_258_118_400_000_000 else each for each in together] == [
        "wrong" if each != "wrong" and not low <= each <= 7_258_118_400_000_000 else each for each in singly
    ]


@settings(max_examples=100, deadline=None)
@given(
    times=TIMES,
    values=st.lists(
        st.one_of(
            st.floats(), st.floats(min_value=9e8, max_value=7e9),
            st.integers(9 * 10**14, 7 * 10**15).map(lambda each: each / 1e6),
            st.integers(9 * 10**14, 7 * 10**15).map(lambda each: each / 1e3),
        ),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_times_as_doubles_are_judged_alike(times: Times, values: list[float]) -> None:
    """Finding 37: seconds with a fraction in a column of doubles are the microseconds that their digits say."""
    singly = one_by_one(times, values)
    try:
        together = times.of_column(pa.array(values, pa.float64())).to_pylist()
    except (Unsound, pa.ArrowException):
        return
    for one, other in zip(together, singly, strict=True):
        assert one == other or (other == "wrong" and not 946_684_800_000_000 <= one <= 7_258_118_400_000_000)


@pytest.mark.parametrize(
    ("column", "shape", "wanted"),
    [
        (["1700000000.123456"], Shape(time_unit="s"), 1_700_000_000_123_456),
        (["1700000000123"], Shape(time_unit="ms"), 1_700_000_000_123_000),
        (["1700000000123456000"], Shape(time_unit="ns"), 1_700_000_000_123_456),
        (["1.7e9"], Shape(time_unit="s"), 1_700_000_000_000_000),
        (["2023-11-14 22:13:20"], Shape(time_zone="UTC"), 1_700_000_000_000_000),
        (["2023-11-14 23:13:20"], Shape(time_zone="Europe/Berlin"), 1_700_000_000_000_000),
        (["2023-11-14T22:13:20+0000"], Shape(), 1_700_000_000_000_000),
        (["2023-11-14 22:13:20+00"], Shape(), 1_700_000_000_000_000),
        ([1_700_000_000.123456], Shape(time_unit="s"), 1_700_000_000_123_456),
        ([1_700_000_000], Shape(time_unit="auto"), 1_700_000_000_000_000),
        ([1_700_000_000_123], Shape(time_unit="auto"), 1_700_000_000_123_000),
        ([1_700_000_000_123_456], Shape(time_unit="auto"), 1_700_000_000_123_456),
        ([1_700_000_000_123_456_000], Shape(time_unit="auto"), 1_700_000_000_123_456),
        ([decimal.Decimal("1700000000.1234")], Shape(time_unit="s"), 1_700_000_000_123_400),
        ([datetime.datetime(2023, 11, 14, 22, 13, 20)], Shape(time_zone="UTC"), 1_700_000_000_000_000),
    ],
)
def test_times_in_units_and_zones(column: list[Any], shape: Shape, wanted: int, tmp_path: Path) -> None:
    """Finding 37: each unit, fractions, and times without a zone once one is named, to the exact microsecond."""
    (part,) = shaped(parquet(tmp_path / "a.parquet", timestamp=pa.array(column)), shape).parts(Place())
    rows, wrong = row_by_row(part)
    assert (rows["timestamp"].tolist(), wrong) == ([wanted], [])


def test_a_wrong_unit_is_told(tmp_path: Path) -> None:
    """Finding 37: numbers in another unit than was said are rejected with the option that they need."""
    (part,) = source(parquet(tmp_path / "a.parquet", timestamp=pa.array([1_700_000_000_123]))).parts(Place())
    ((_, reason),) = row_by_row(part)[1]
    assert "it may be in ms: see --time-unit" in reason


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_a_time_column_that_is_not_found(name: str, lane_settings: Settings, tmp_path: Path) -> None:
    """Finding 36: a file whose times have another name is refused before anything is appended, with what it has; rows
    are stamped only where that is asked for."""
    rows = [{("at" if key == "timestamp" else key): value for key, value in row.items()} for row in trades(3)]
    path = tmp_path / name
    if name == "a.csv":
        path.write_bytes(written(path, trades(3)).read_bytes().replace(b"timestamp", b"at", 1))
    else:
        written(path, rows)
    for shape in (Shape(), Shape(mapping={"timestamp": "when"}), Shape(mapping={"timestamp": "when"}, stamp_now=True)):
        if name == "a.ndjson" and shape.stamp_now:
            continue  # an object may lack any column, and then it is stamped
        with pytest.raises(Exception, match=r"got columns .*metadata, at, wanted also timestamp.*--time-column"):
            Replay(path, Trade, lane_settings, shape=shape).__enter__()
    with Replay(path, Trade, lane_settings, shape=Shape(mapping={"timestamp": "at"})) as going:
        assert going.run().accepted == 3
    with Replay(path, Trade, lane_settings, shape=Shape(stamp_now=True), mode="again") as going:
        assert going.run().accepted == 3


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_a_row_without_a_time(name: str, tmp_path: Path) -> None:
    """Finding 36: a row whose time is NULL is rejected by its number, and stamped only where that is asked for."""
    path = written(tmp_path / name, [trade(1), {**trade(2), "timestamp": None}])
    (part,) = source(path).parts(Place())
    rows, ((number, reason),) = row_by_row(part)
    assert (len(rows), number) == (1, int(part.numbers[1]))
    assert "--stamp-now" in reason
    (part,) = shaped(path, Shape(stamp_now=True)).parts(Place())
    rows, wrong = row_by_row(part)
    assert (len(rows), wrong) == (2, [])
    if part.columns is not None:
        assert len(at_once(part, Times(stamps_now=True))) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson"])
def test_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    """Finding 35: a file that begins with a byte order mark has all its rows, also from a later place on."""
    path = written(tmp_path / name, trades(3))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (part,) = source(path).parts(Place())
    assert (len(row_by_row(part)[0]), row_by_row(part)[1]) == (3, [])
    assert list(source(path).parts(part.after)) == []


def test_an_open_quote_is_shown(tmp_path: Path) -> None:
    """Finding 35: the rejected line of an open quote has its text."""
    path = written(tmp_path / "a.csv", trades(2))
    path.write_bytes(path.read_bytes() + b'"open,1\n')
    ((_, _, text),) = [broken for part in source(path).parts(Place()) for broken in part.broken]
    assert text == '"open,1'
