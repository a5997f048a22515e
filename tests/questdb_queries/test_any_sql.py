"""Any SQL can be read, whatever types its columns have, and wrong SQL is told apart from a missing table."""

from __future__ import annotations

import datetime
import decimal
import math
import random
import struct
import uuid
from typing import Any

import polars
import pyarrow
import pytest
from platform_rows import LAYOUTS, Execute, wait_applied

from ringlog.errors import QueryError, SchemaMismatch
from ringlog.questdb import pools
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.migrations import migrate
from ringlog.questdb.queries import Queries
from ringlog.settings import Settings

UTC = datetime.UTC
LONG256 = "0xa00d1bd28b153e6ab716d50da143c7b5c3fd3bfbc8f79b4e556b62a1020b5c18"
# SQL, and the value that is wanted; NULL of each type as well. The first four have no binary form.
VALUES: dict[str, Any] = {
    "null": None,
    "cast('1.2.3.4' AS ipv4)": "1.2.3.4",
    "#u33d8b12c": "u33d8b12c",
    "##0110": "0110",
    "cast(null AS ipv4)": None,
    "cast(null AS geohash(4c))": None,
    "true": True,
    "cast(-128 AS byte)": -128,
    "cast(-32768 AS short)": -32768,
    "cast(2147483647 AS int)": 2147483647,
    "cast(null AS int)": None,
    "cast(9223372036854775807 AS long)": 9223372036854775807,
    "cast(null AS long)": None,
    "cast(0.1 AS float)": struct.unpack("<f", struct.pack("<f", 0.1))[0],
    "cast(null AS float)": None,
    "0.1": 0.1,
    "-1.7976931348623157E308": -1.7976931348623157e308,
    "cast(null AS double)": None,
    "cast('x' AS char)": "x",
    "cast(null AS char)": None,
    "''": "",
    "'日本 💥 \\ %'": "日本 💥 \\ %",
    "cast('abc' AS string)": "abc",
    "cast('abc' AS varchar)": "abc",
    "cast('abc' AS symbol)": "abc",
    "cast(null AS symbol)": None,
    "cast(1760000000123 AS date)": datetime.datetime(2025, 10, 9, 8, 53, 20, 123000, tzinfo=UTC),
    "cast(-1 AS timestamp)": datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "cast(1234567890123456789 AS timestamp_ns)": datetime.datetime(2009, 2, 13, 23, 31, 30, 123456, tzinfo=UTC),
    "cast(null AS timestamp)": None,
    "cast('11111111-1111-1111-1111-111111111111' AS uuid)": uuid.UUID("11111111-1111-1111-1111-111111111111"),
    "cast(null AS uuid)": None,
    f"cast('{LONG256}' AS long256)": LONG256,
    "ARRAY[1.5, 2.5]": [1.5, 2.5],
    "ARRAY[[1.0, 2.0], [3.0, 4.0]]": [[1.0, 2.0], [3.0, 4.0]],
    "cast(null AS double[])": None,
    "interval('2024-01-01', '2024-01-02')": "('2024-01-01T00:00:00.000Z', '2024-01-02T00:00:00.000Z')",
    "cast('1.50' AS decimal(10, 2))": decimal.Decimal("1.50"),
    "cast(null AS decimal(10, 2))": None,
}


def as_frame(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value


@pytest.mark.parametrize("beside", ["1", "null"], ids=["binary", "text"])
async def test_every_type(settings: Settings, beside: str) -> None:
    """Finding 29: each type alone and beside a column without a binary form is the same value everywhere."""
    with Queries(settings) as queries:
        async with AsyncQueries(settings) as async_queries:
            for sql, wanted in VALUES.items():
                text = f"SELECT {sql} x, {beside} beside"
                for result in (queries.execute_query(text), await async_queries.execute_query(text)):
                    assert result.rows()[0].x == wanted, sql
                    assert type(result.rows()[0].x) is type(wanted)
                    assert result.to_arrow().column("x").to_pylist() == [as_frame(wanted)], sql
            everything = "SELECT " + ", ".join(f"{sql} c{index}" for index, sql in enumerate(VALUES))
            whole = queries.execute_query(everything)
            assert list(whole.rows()[0]) == list(VALUES.values())
            assert polars.DataFrame(whole).rows()[0] == tuple(map(as_frame, VALUES.values()))
            assert whole.to_pandas().iloc[0]["c1"] == "1.2.3.4"
            assert pyarrow.table(whole).num_columns == len(VALUES)


def test_numbers_as_text_are_exact(queries: Queries, execute: Execute) -> None:
    """Finding 29: doubles and floats of any bits have the same value in an answer of texts as in a binary one."""
    numbers = random.Random(29)  # noqa: S311 - not for security
    doubles = [struct.unpack("<d", numbers.randbytes(8))[0] for _ in range(500)]
    doubles = [value for value in doubles if math.isfinite(value)]
    execute("CREATE TABLE IF NOT EXISTS any_number (n INT, f FLOAT, d DOUBLE)")
    try:
        for first in range(0, len(doubles), 100):
            chunk = doubles[first : first + 100]
            rows = [(first + index, numbers.uniform(-1e6, 1e6), value) for index, value in enumerate(chunk)]
            values = [value for row in rows for value in row]
            execute(f"INSERT INTO any_number VALUES {', '.join(['(%s, %s, %s)'] * len(chunk))}", values)
        binary = queries.execute_query("SELECT f, d FROM any_number ORDER BY n").rows()
        text = queries.execute_query("SELECT f, d, cast('1.2.3.4' AS ipv4) FROM any_number ORDER BY n").rows()
    finally:
        execute("DROP TABLE any_number")
    assert [row.d for row in binary] == doubles
    assert [(row.f, row.d) for row in text] == [(row.f, row.d) for row in binary]


def test_binary_columns_beside_text(queries: Queries, execute: Execute) -> None:
    """Finding 29: a BINARY column is the same bytes in both forms, backslashes and all; and rows follow parameters."""
    execute("CREATE TABLE IF NOT EXISTS any_sql (b BINARY, ip IPV4, g GEOHASH(8b))")
    execute("INSERT INTO any_sql SELECT rnd_bin(64, 64, 0), rnd_ipv4(), rnd_geohash(8) FROM long_sequence(50)")
    try:
        binary = [row.b for row in queries.execute_query("SELECT b FROM any_sql")]
        for _ in range(3):
            text = queries.execute_query("SELECT b, ip, g FROM any_sql LIMIT %s", [50])
            assert [row.b for row in text] == binary
            assert text.to_arrow().column("b").to_pylist() == binary
            assert all(row.ip.count(".") == 3 and len(row.g) == 8 for row in text)
        assert len(binary) == 50
    finally:
        execute("DROP TABLE any_sql")


def test_a_statement_without_a_binary_form_is_asked_in_vain_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 29: what was learned of a statement is kept, and its connection goes on."""
    asked = []
    text_cursor = pools.has_no_binary_form
    monkeypatch.setattr(pools, "has_no_binary_form", lambda error: asked.append(error) or text_cursor(error))
    with Queries(settings) as queries:
        for _ in range(5):
            assert queries.execute_query("SELECT null x").rows()[0].x is None
        assert queries.execute_query("SELECT 1 x").rows()[0].x == 1
        assert queries.statistics().get("connections_lost", 0) == 0
    assert len(asked) == 1


@pytest.mark.parametrize("beside", ["1", "null"], ids=["binary", "text"])
async def test_finding_29_times_beyond_the_years_of_a_datetime(settings: Settings, beside: str) -> None:
    """Finding 29: `tables()` has such times on a server that was just migrated; their columns are texts then."""
    sql = (
        f"SELECT {beside} beside, cast(x * 4611686018427387903 + 1 AS timestamp) far, cast(x AS timestamp) near, "
        "cast(null AS timestamp) none FROM long_sequence(2)"
    )
    near = [datetime.datetime(1970, 1, 1, microsecond=each, tzinfo=UTC) for each in (1, 2)]
    far = ["148108-07-06T14:00:27.387904Z", "294247-01-10T04:00:54.775807Z"]
    with Queries(settings) as queries:
        async with AsyncQueries(settings) as async_queries:
            for found in (queries.execute_query(sql), await async_queries.execute_query(sql)):
                assert [(row.far, row.near, row.none) for row in found] == [
                    (*each, None) for each in zip(far, near, strict=True)
                ]
                assert found.to_arrow().column("near").to_pylist() == near
                assert found.to_polars()["far"].to_list() == far
                assert "294247" in repr(found)
            names = [row.table_name for row in queries.execute_query("tables()")]
            assert {layout.table for layout in LAYOUTS} <= set(names)
            assert [row.table_name for row in await async_queries.execute_query("tables()")] == names


def test_finding_29_decimals_that_polars_cannot_hold(queries: Queries) -> None:
    """Finding 29: more than 38 digits are an error by name, where Polars would panic past every `except Exception`."""
    found = queries.execute_query("SELECT cast('1234567890123456789012345678901234567890' AS decimal(76, 10)) x")
    assert found.to_arrow().column("x").to_pylist() == [found.rows()[0].x]
    with pytest.raises(QueryError, match=r"column 'x' of decimal256.*wanted at most 38 digits"):
        found.to_polars()


WRONG = {
    "selec 1": "did you mean select",
    "SELECT * FROM tradez": "did you mean trades",
    "SELECT * FROM no_such_table": "no_such_table",
    "INSERT INTO nope VALUES (1)": "nope",
    "SELECT nope FROM trades": "nope",
    "SELECT nofn(1)": "nofn",
    "SELECT 'a' + 1": "inconvertible",
    "SELECT * FROM trades WHERE": "where",
    "SELECT * FROM trades WHERE timestamp > 'garbage'": "garbage",
    "SELECT 1; SELECT 2": "unexpected",
}


@pytest.mark.parametrize("sql", WRONG)
async def test_wrong_sql_is_a_query_error(settings: Settings, sql: str) -> None:
    """Finding 30: what is wrong with the SQL is a QueryError that names it, sync and async."""
    with Queries(settings) as queries, pytest.raises(QueryError, match=WRONG[sql]) as caught:
        queries.execute_query(sql)
    assert "migrate" not in str(caught.value)
    async with AsyncQueries(settings) as async_queries:
        with pytest.raises(QueryError, match=WRONG[sql]):
            await async_queries.execute_query(sql)


async def test_a_table_that_migrate_makes_is_a_schema_mismatch(
    queries: Queries, settings: Settings, execute: Execute
) -> None:
    """Finding 30: where a table of ringlog's is missing both kinds of queries say so, and name `ringlog migrate`."""
    execute("DROP TABLE positions")
    execute("DROP TABLE retention_audit")
    try:
        async with AsyncQueries(settings) as async_queries:
            for sql in ("SELECT * FROM positions", "SELECT count() FROM retention_audit"):
                with pytest.raises(SchemaMismatch, match="ringlog migrate"):
                    queries.execute_query(sql)
                with pytest.raises(SchemaMismatch, match="ringlog migrate"):
                    await async_queries.execute_query(sql)
            with pytest.raises(SchemaMismatch, match="ringlog migrate"):
                queries.get_positions()
            with pytest.raises(SchemaMismatch, match="ringlog migrate"):
                await async_queries.get_positions()
        execute(
            "CREATE TABLE positions (timestamp TIMESTAMP, trader_id SYMBOL) TIMESTAMP(timestamp) PARTITION BY DAY WAL"
        )
        execute("INSERT INTO positions VALUES (1, 't')")
        wait_applied(execute, "positions", views=False)
        with pytest.raises(SchemaMismatch, match=r"Invalid column.*ringlog migrate"):
            queries.get_positions()
        execute("DROP TABLE positions")
    finally:
        assert not [made for made in migrate(settings, LAYOUTS) if made.problem]
