"""Brings QuestDB's tables to what the record types want, from the SQL files in `schemas/questdb`."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable

from ringlog.errors import SchemaMismatch
from ringlog.migration import Migration
from ringlog.questdb import tables
from ringlog.questdb.connection import Connection
from ringlog.records import RecordLayout
from ringlog.settings import Settings


def script(table: str) -> str | None:
    """The SQL file of a built-in table, or None for a table that has none."""
    file = importlib.resources.files("ringlog.schemas") / "questdb" / f"{table}.sql"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def migrate(settings: Settings, layouts: Iterable[RecordLayout], *, check: bool = False) -> list[Migration]:
    """Makes missing tables, adds missing columns, verifies all; with `check` nothing is changed.

    A table that differs in a way that cannot be mended safely is left as it is and reported, and the others go on.
    Raises ServerUnavailable, ServerRefused, ServerTooOld.
    """
    connection = Connection.from_settings(settings)
    try:
        return [_migrated(connection, layout, check) for layout in layouts]
    finally:
        connection.close()


def _migrated(connection: Connection, layout: RecordLayout, check: bool) -> Migration:
    migration = Migration("questdb", layout.table)
    create = script(layout.table)
    try:
        needed = tables.needed(connection, layout, create)
        if not check:
            tables.apply(connection, layout, needed)
        migration.statements = needed
    except SchemaMismatch as error:
        migration.problem = str(error)
    return migration
