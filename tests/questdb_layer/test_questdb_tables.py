"""Tables: the SQL files, what `verify` sees, and what `migrate` mends."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator

import msgspec
import pytest
from sink_batches import Everything, fresh_layout

from ringlog.errors import SchemaMismatch
from ringlog.questdb import migrations, tables
from ringlog.questdb.connection import Connection
from ringlog.questdb.rollups import ROLLUPS
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import PLATFORM_RECORDS, Record, RecordLayout, layout_of
from ringlog.settings import Settings


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    connection = Connection.from_settings(msgspec.structs.replace(settings, request_timeout_ms=15_000))
    yield connection
    connection.close()


def without_comments(sql: str) -> str:
    return " ".join(re.sub(r"--[^\n]*", "", sql).split())


@pytest.mark.parametrize("record_type", PLATFORM_RECORDS)
def test_each_sql_file_is_what_its_record_type_wants(record_type: type[Record]) -> None:
    """schemas/questdb/TABLE.sql, comments apart, is the SQL made from the record type."""
    layout = layout_of(record_type)
    text = migrations.script(layout.table)
    assert text is not None
    assert without_comments(text) == without_comments(tables.create_table(layout))


def test_every_sql_file_is_applied_by_a_migration() -> None:
    """There is no SQL file that no migration answers for, and each column of a record type's table has a comment."""
    folder = importlib.resources.files("ringlog.schemas") / "questdb"
    files = {
        file.name.removesuffix(".sql"): file.read_text() for file in folder.iterdir() if file.name != "__pycache__"
    }
    record_tables = {record_type.__table__ for record_type in PLATFORM_RECORDS}
    assert set(files) == record_tables | {rollup.view for rollup in ROLLUPS} | {*migrations.RETENTION_TABLES}
    for table in record_tables:
        assert all("--" in line for line in files[table].splitlines() if line.startswith("    "))


def test_a_migration_makes_what_is_missing_once(own_settings: Settings, own_sink: QuestdbSink) -> None:
    """On an empty server everything built in is made from its file; a second run finds nothing to do."""
    layouts = [layout_of(record_type) for record_type in PLATFORM_RECORDS]
    views = [rollup.view for rollup in ROLLUPS]
    for name in (*views, *(layout.table for layout in layouts), *migrations.RETENTION_TABLES):
        kind = "materialized view" if name in views else "table"
        own_sink.connection.execute(f'drop {kind} if exists "{name}"')
    checked = migrations.migrate(own_settings, layouts, check=True)
    assert {migration.name for migration in checked} == {
        *(layout.table for layout in layouts),
        *migrations.RETENTION_TABLES,
    }
    assert all(len(migration.statements) == 1 and not migration.problem for migration in checked)
    assert not set(tables.statuses(own_sink.connection)) & {migration.name for migration in checked}
    made = migrations.migrate(own_settings, layouts)
    assert all(migration.statements and not migration.problem for migration in made)
    assert {migration.name for migration in made} >= {migration.name for migration in checked}
    again = migrations.migrate(own_settings, layouts)
    assert [(migration.statements, migration.problem) for migration in again] == [([], "")] * len(made)


def test_an_added_field_becomes_a_column(connection: Connection, layout: RecordLayout) -> None:
    """A field that the table lacks is added with its type, with NULL in older rows; nothing else is touched."""
    older = msgspec.structs.replace(layout, table=f"{layout.table}_older", fields=layout.fields[3:])
    newer = msgspec.structs.replace(older, fields=layout.fields)
    tables.apply(connection, older, tables.needed(connection, older))
    connection.execute(f'insert into "{older.table}" (timestamp, lane, seq) values (0, 1, 1)')
    with pytest.raises(SchemaMismatch, match=f"{older.table}.symbol: got no such column, wanted SYMBOL"):
        tables.verify(connection, newer)
    statements = tables.needed(connection, newer)
    assert len(statements) == 3
    assert all("ADD COLUMN" in statement for statement in statements)
    tables.apply(connection, newer, statements)
    tables.verify(connection, newer)
    tables.verify(connection, older)
    connection.execute(f'drop table "{older.table}"')


MISMATCHES = {
    "wrong type": ('alter table "{t}" alter column "text" type symbol', "{t}.text: got SYMBOL, wanted VARCHAR"),
    "no DEDUP": (
        'alter table "{t}" dedup disable',
        "{t}: got no DEDUP, wanted DEDUP UPSERT KEYS(timestamp, lane, seq)",
    ),
    "other keys": (
        'alter table "{t}" dedup enable upsert keys(timestamp, seq)',
        "{t}: got DEDUP UPSERT KEYS(timestamp, seq), wanted DEDUP UPSERT KEYS(timestamp, lane, seq)",
    ),
    "column dropped": ('alter table "{t}" drop column seq', "{t}.seq: got no such column, wanted LONG"),
    "no table": ('drop table "{t}"', "{t}: got no such table, wanted it made by `ringlog migrate`"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_difference_names_table_column_got_and_wanted(sink: QuestdbSink, layout: RecordLayout, name: str) -> None:
    """Each change to a verified table is a SchemaMismatch that says what is there and what was wanted, at once."""
    sink.verify(layout)
    statement, message = MISMATCHES[name]
    if name == "column dropped":
        sink.connection.execute(f'alter table "{layout.table}" dedup disable')
    sink.connection.execute(statement.format(t=layout.table))
    with pytest.raises(SchemaMismatch, match=re.escape(message.format(t=layout.table))):
        sink.verify(layout)


@pytest.mark.parametrize(
    ("settings_sql", "message"),
    [
        ('timestamp("timestamp") partition by month wal', "partitioning PARTITION BY MONTH, wanted PARTITION BY DAY"),
        ('timestamp("timestamp") partition by day bypass wal', "write-ahead log BYPASS WAL, wanted WAL"),
        ("", "designated timestamp none, wanted timestamp"),
    ],
)
def test_a_table_of_another_make_is_refused(connection: Connection, settings_sql: str, message: str) -> None:
    """Partitioning, WAL and the designated timestamp are compared too, and nothing is changed to fit."""
    layout = fresh_layout()
    definitions = ", ".join(f'"{column.name}" {column.type}' for column in tables.columns_of(layout))
    connection.execute(f'create table "{layout.table}" ({definitions}) {settings_sql}')
    with pytest.raises(SchemaMismatch, match=re.escape(message)):
        tables.needed(connection, layout)
    connection.execute(f'drop table "{layout.table}"')


def test_a_nanosecond_timestamp_is_another_type(connection: Connection) -> None:
    """TIMESTAMP_NS is refused by name: retention cuts on such a table drop nothing."""
    layout = fresh_layout()
    connection.execute(tables.create_table(layout).replace('"timestamp" TIMESTAMP', '"timestamp" TIMESTAMP_NS'))
    with pytest.raises(SchemaMismatch, match="timestamp: got TIMESTAMP_NS, wanted TIMESTAMP"):
        tables.verify(connection, layout)
    connection.execute(f'drop table "{layout.table}"')


def test_a_column_of_the_servers_own_is_left_alone(sink: QuestdbSink, layout: RecordLayout) -> None:
    """A column that no field declares, and a field's column in another place, are no difference."""
    sink.connection.execute(f'alter table "{layout.table}" add column of_someone_else double')
    assert tables.needed(sink.connection, layout) == []
    sink.verify(layout)


def test_52_only_declared_identifiers_reach_sql() -> None:
    """A layout from elsewhere (a segment's bytes) with SQL for a table or field name makes no statement.

    Defence: identifiers come from an allowlist.
    """
    layout = layout_of(Everything)
    for name in ('x"; drop table trades; --', "x'y", "", "X", "a" * 64):
        with pytest.raises(ValueError, match="wanted lower-case letters"):
            tables.create_table(msgspec.structs.replace(layout, table=name))
        field = msgspec.structs.replace(layout.fields[0], name=name)
        with pytest.raises(ValueError, match="wanted lower-case letters"):
            tables.create_table(msgspec.structs.replace(layout, fields=(field,)))
