"""Brings QuestDB's tables to what the record types want, from the SQL files in `schemas/questdb`."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Iterable

from ringlog.errors import SchemaMismatch
from ringlog.migration import Migration
from ringlog.questdb import tables, views
from ringlog.questdb.audit import AUDIT_TABLE
from ringlog.questdb.connection import Connection
from ringlog.questdb.rollups import ROLLUPS, Rollup
from ringlog.questdb.taken import LANES_TABLE
from ringlog.records import RecordLayout
from ringlog.settings import Settings

_logger = logging.getLogger(__name__)

RETENTION_TABLES = (AUDIT_TABLE, LANES_TABLE)


def script(table: str) -> str | None:
    """The SQL file of a built-in table, or None for a table that has none."""
    file = importlib.resources.files("ringlog.schemas") / "questdb" / f"{table}.sql"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def migrate(settings: Settings, layouts: Iterable[RecordLayout], *, check: bool = False) -> list[Migration]:
    """Makes missing tables, views and columns, verifies all; with `check` nothing is changed.

    The views are those over the tables of `layouts`; the two tables of retention always belong to it.

    A table that differs in a way that cannot be mended safely is left as it is and reported, and the others go on.
    Raises ServerUnavailable, ServerRefused, ServerTooOld.
    """
    connection = Connection.from_settings(settings)
    try:
        layouts = list(layouts)
        found = [_migrated(connection, layout, check) for layout in layouts]
        missing = {migration.name for migration in found if migration.problem or (check and migration.statements)}
        wanted = {layout.table for layout in layouts} - missing
        refilled: set[str] = set()
        for rollup in ROLLUPS:
            if rollup.table in wanted:
                view = _migrated_view(connection, rollup, check, is_refilled=rollup.table in refilled)
                found.append(view)
                if view.statements:
                    refilled.add(rollup.view)
                if not view.problem and not (check and view.statements):
                    wanted.add(rollup.view)
        return [*found, *_migrated_retention(connection, check)]
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


def _migrated_view(connection: Connection, rollup: Rollup, check: bool, *, is_refilled: bool) -> Migration:
    migration = Migration("questdb", rollup.view)
    try:
        migration.statements = views.needed(connection, rollup, script(rollup.view) or "", is_refilled=is_refilled)
        if migration.statements and not check:
            before = views.transactions(connection, rollup)
            _apply(connection, rollup.view, migration.statements)
            # A view over this one turns invalid while this one is filled anew: it is filled anew afterwards.
            views.wait_valid(connection, rollup.view, before)
    except SchemaMismatch as error:
        migration.problem = str(error)
    return migration


def _migrated_retention(connection: Connection, check: bool) -> list[Migration]:
    there = tables.statuses(connection)
    migrations = [Migration("questdb", table) for table in RETENTION_TABLES]
    for migration in migrations:
        if migration.name not in there:
            migration.statements = [script(migration.name) or ""]
            if not check:
                _apply(connection, migration.name, migration.statements)
    return migrations


def make_retention_tables(connection: Connection) -> None:
    """Makes what retention writes into where `ringlog migrate` has not run since: a cut must not fail for that."""
    _migrated_retention(connection, check=False)


def _apply(connection: Connection, name: str, statements: list[str]) -> None:
    for statement in statements:
        connection.execute(statement, timeout_s=tables.STATEMENT_TIMEOUT_S)
        _logger.info("migrated name=%s statement=%r", name, statement)
