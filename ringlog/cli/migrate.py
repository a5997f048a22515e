"""`ringlog migrate`: brings the databases' tables to what this version and its record types want."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec

from ringlog.cli import FAILED
from ringlog.cli.output import say, say_json
from ringlog.errors import RinglogError
from ringlog.migration import Migration
from ringlog.naming import did_you_mean
from ringlog.records import PLATFORM_RECORDS, Record, layout_of
from ringlog.settings import PREFIX, Settings, variable_names


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if anything is missing or differs.")
@click.option("--only", type=click.Choice(["questdb", "postgres"]), help="Leave the other database alone.")
@click.option(
    "--record", "names", multiple=True, metavar="MODULE:CLASS", help="A record type of your own; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def migrate(check: bool, only: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Make what is missing in QuestDB and PostgreSQL, and verify all.

    QuestDB gets the tables of the built-in record types and of each --record; PostgreSQL is included where a
    RINGLOG_POSTGRES_* variable says where it is, or by --only postgres. A table that differs in a way that cannot be
    mended safely is reported with table, column, got and wanted, and the others go on.
    """
    settings = Settings.from_environment()
    layouts = [layout_of(record_type) for record_type in (*PLATFORM_RECORDS, *map(record_named, names))]
    found: list[Migration] = []
    if only != "postgres":
        from ringlog.questdb import migrations as questdb

        found += attempted("questdb", lambda: questdb.migrate(settings, layouts, check=check))
    if only == "postgres" or (only is None and any(name.startswith(f"{PREFIX}POSTGRES_") for name in variable_names())):
        from ringlog.postgres import migrations as postgres

        found += attempted("postgres", lambda: postgres.migrate(settings, check=check))
    report(found, check, as_json)
    if any(one.problem or (check and one.statements) for one in found):
        raise click.exceptions.Exit(FAILED)


def record_type_of(name: str, hint: str = "--record") -> type[Record]:
    """The record type that `Trade`, `trades` or `module:Class` names; wrong usage of `hint` if there is none."""
    if ":" in name:
        return record_named(name, hint)
    for record in PLATFORM_RECORDS:
        if name in (record.__name__, record.__table__):
            return record
    known = ", ".join(record.__name__ for record in PLATFORM_RECORDS)
    names = [each for record in PLATFORM_RECORDS for each in (record.__name__, record.__table__)]
    raise click.BadParameter(
        f"got {name!r}, wanted one of {known}, their tables, or MODULE:CLASS{did_you_mean(name, names)}",
        param_hint=hint,
    )


def record_named(name: str, hint: str = "--record") -> type[Record]:
    """The record type at `module:Class`, also in the working directory; wrong usage if there is none."""
    module_name, _, class_name = name.partition(":")
    wanted = hint + ": got {!r}, wanted package.module:Class of a ringlog.records.Record ({})"
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except AttributeError as error:
        classes = [each for each, value in vars(sys.modules[module_name]).items() if isinstance(value, type)]
        raise click.UsageError(wanted.format(name, error) + did_you_mean(class_name, classes)) from None
    except (ImportError, ValueError) as error:
        raise click.UsageError(wanted.format(name, error)) from None
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, Record)):
        raise click.UsageError(wanted.format(name, f"it is {found!r}"))
    return found


def attempted(database: str, migrate_database: Callable[[], list[Migration]]) -> list[Migration]:
    """A database that cannot be asked is reported like a difference, so that the other one goes on."""
    try:
        return migrate_database()
    except RinglogError as error:
        return [Migration(database, "", problem=str(error))]


def report(found: Sequence[Migration], check: bool, as_json: bool) -> None:
    if as_json:
        say_json({"checked_only": check, "migrations": msgspec.to_builtins(found)})
        return
    for one in found:
        state = one.problem or ("; ".join(map(summary, one.statements)) if one.statements else "as wanted")
        what = "missing: " if check and one.statements and not one.problem else ""
        say(f"{one.database:<8} {one.name:<24} {what}{state}")


def summary(statement: str) -> str:
    """A statement's first line that is no comment."""
    lines = (line.strip() for line in statement.splitlines())
    return next((line.removesuffix(" (") for line in lines if line and not line.startswith("--")), "")
