"""Brings PostgreSQL to the newest revision: the SQL files in `schemas/postgres`, in order of their names.

A revision is a file, `0005_words.sql`; nothing else has to be written for it. Each is applied in a transaction of its
own that holds an advisory lock, so processes that start at once wait for each other, and one that is killed leaves
either the whole revision or nothing of it. Alembic keeps the revision in its table `alembic_version`.
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import sqlalchemy
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script.base import Script
from alembic.script.revision import RevisionMap
from psycopg import sql

from ringlog.errors import SchemaMismatch, ServerRefused
from ringlog.migration import Migration
from ringlog.postgres.pools import attempts, configured_connection, translated
from ringlog.postgres.sessions import Connection
from ringlog.settings import Settings

# Any fixed number: it only has to be the same in every ringlog that migrates this database.
LOCK = 0x72696E676C6F67
LOCK_TIMEOUT_MS = 60_000
STATEMENT_TIMEOUT_MS = 600_000

_NO_RIGHT = "42501"
_OWN_REVISION = re.compile(r"\d{4}_\w+")
_CREATE = re.compile(r"^create (?:unique )?(table|index|function|trigger) (\w+)", re.MULTILINE)
_CATALOGUE = """
    select 'table', relname from pg_class where relkind = 'r' and relnamespace = current_schema::regnamespace
    union all select 'index', relname from pg_class where relkind = 'i' and relnamespace = current_schema::regnamespace
    union all select 'function', proname from pg_proc where pronamespace = current_schema::regnamespace
    union all select 'trigger', tgname from pg_trigger where not tgisinternal and tgenabled <> 'D'"""


def scripts() -> dict[str, str]:
    """Name of each revision to its SQL, in order."""
    folder = importlib.resources.files("ringlog.schemas") / "postgres"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return {file.name.removesuffix(".sql"): file.read_text(encoding="utf-8") for file in files}


def migrate(settings: Settings, *, check: bool = False) -> list[Migration]:
    """Applies the revisions that are missing; with `check` nothing is changed.

    Returns one Migration a revision: `statements` names what was made (with `check`: what is missing), `problem` says
    what an applied revision made and somebody has since dropped or disabled. Raises ServerUnavailable, ServerRefused,
    and SchemaMismatch where the database is newer than this ringlog.
    """
    texts = scripts()
    for attempt in attempts(settings):
        with attempt:
            return _migrated(settings, texts, check)
    raise AssertionError("stamina ends with a result or an error")


def _migrated(settings: Settings, texts: dict[str, str], check: bool) -> list[Migration]:
    migrations = {name: Migration("postgres", name) for name in texts}
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",  # the creator knows the way: no password is ever part of a URL
        creator=lambda: _connected(settings),
        poolclass=sqlalchemy.pool.NullPool,
    )
    try:
        while not check and (name := _apply_next(engine, texts)):
            migrations[name].statements = [f"create {kind} {what}" for kind, what in _made_by(texts[name])]
        with engine.connect() as connection:
            _report(connection, texts, migrations)
    except sqlalchemy.exc.DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        failed = translated(settings, error.orig)
        if error.orig.sqlstate == _NO_RIGHT:
            role, database = settings.postgres_user, settings.postgres_database
            failed = ServerRefused(
                f"{failed}: wanted a role that may create tables: as its owner, run "
                f'`grant create on schema public to "{role}"` in database {database!r}'
            )
    else:
        return list(migrations.values())
    finally:
        engine.dispose()
    raise failed


def _connected(settings: Settings) -> Connection:
    connection = configured_connection(settings)
    connection.answer_timeout_s = None  # the server's own limits hold: those of a migration are longer
    connection.autocommit = False
    return connection


def _apply_next(engine: sqlalchemy.Engine, texts: dict[str, str]) -> str | None:
    """Applies the first missing revision and returns its name, or None where none is missing."""
    with engine.begin() as connection:
        # Before the revision is read: whoever held the lock may have applied it in the meantime.
        connection.exec_driver_sql(f"set local lock_timeout = {LOCK_TIMEOUT_MS}")
        connection.exec_driver_sql(f"set local statement_timeout = {STATEMENT_TIMEOUT_MS}")
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({LOCK})")
        missing = _missing(connection, texts)
        if not missing:
            return None
        revisions = _revisions(connection, texts)
        step = MigrationStep.upgrade_from_script(revisions, revisions.get_revision(missing[0]))  # type: ignore[arg-type]
        MigrationContext.configure(connection, opts={"fn": lambda *_: [step]}).run_migrations()
        return missing[0]


def _revisions(connection: sqlalchemy.Connection, texts: dict[str, str]) -> RevisionMap:
    """The files as alembic's revisions, each the follower of the one before it."""
    made: list[Script] = []
    for name, text in texts.items():
        module: Any = ModuleType(name, f"{name}.sql")
        module.down_revision = made[-1].revision if made else None
        module.upgrade = _upgrade(connection, text)
        made.append(Script(module, name, Path(f"{name}.sql")))
    return RevisionMap(lambda: made)


def _upgrade(connection: sqlalchemy.Connection, text: str) -> Any:
    def upgrade() -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute(sql.SQL(text))

    return upgrade


def _missing(connection: sqlalchemy.Connection, texts: dict[str, str]) -> list[str]:
    heads = MigrationContext.configure(connection).get_current_heads()
    names = list(texts)
    if len(heads) == 1 and heads[0] not in names and _OWN_REVISION.fullmatch(heads[0]):
        raise SchemaMismatch(f"PostgreSQL: got revision {heads[0]!r}, wanted one up to {names[-1]!r}: upgrade ringlog")
    if not set(heads) <= set(names) or len(heads) > 1:
        raise SchemaMismatch(
            f"PostgreSQL: table alembic_version: got {', '.join(map(repr, heads))} of another program, wanted a "
            "revision of ringlog's: give ringlog a database of its own (RINGLOG_POSTGRES_DATABASE)"
        )
    head = heads[0] if heads else None
    return names if head is None else names[names.index(head) + 1 :]


def _made_by(text: str) -> list[tuple[str, str]]:
    return _CREATE.findall(text)


def _report(connection: sqlalchemy.Connection, texts: dict[str, str], migrations: dict[str, Migration]) -> None:
    missing = _missing(connection, texts)
    present = {(kind, name) for kind, name in connection.exec_driver_sql(_CATALOGUE)}
    for name, text in texts.items():
        made = _made_by(text)
        if name in missing:
            migrations[name].statements = [f"create {kind} {what}" for kind, what in made]
        elif absent := [f"{kind} {what}" for kind, what in made if (kind, what) not in present]:
            migrations[name].problem = f"applied, but got no {', '.join(absent)}: wanted what {name}.sql makes"
