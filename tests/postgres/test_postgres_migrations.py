"""`ringlog migrate` on PostgreSQL: alone, many at once, under kill -9, and with --check."""

from __future__ import annotations

import contextlib
import subprocess

import msgspec
import pytest
from postgres_platform import execute, start_python

from ringlog.errors import SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.postgres import migrations
from ringlog.postgres.migrations import migrate
from ringlog.servers import PostgresServer
from ringlog.settings import Secret, Settings

TABLES = {"tokens", "trader_configs", "trader_config_history", "order_rules", "rpc_nodes", "node_health"}
NAMES = list(migrations.scripts())


def start(settings: Settings, before: str = "") -> subprocess.Popen[bytes]:
    """Another process that migrates, after it ran `before`."""
    process = start_python(settings, f"from ringlog.postgres import migrations\n{before}\nmigrations.migrate(settings)")
    assert process.stdin is not None
    process.stdin.close()
    return process


def tables(settings: Settings) -> set[str]:
    return {row[0] for row in execute(settings, "select tablename from pg_tables where schemaname = 'public'")}


def test_migrate_makes_everything_and_a_second_run_changes_nothing(empty_database: Settings) -> None:
    """All revisions are applied in order, once; --check lists exactly what is missing before, and nothing after."""
    before = migrate(empty_database, check=True)
    assert [migration.name for migration in before] == NAMES
    assert before[0].statements[0] == "create table tokens"
    assert "alembic_version" not in tables(empty_database), "--check must change nothing"

    applied = migrate(empty_database)
    assert applied == before
    assert tables(empty_database) == TABLES | {"alembic_version"}

    for again in (migrate(empty_database), migrate(empty_database, check=True)):
        assert [(migration.statements, migration.problem) for migration in again] == [([], "")] * len(NAMES)


def test_check_names_what_was_dropped_or_disabled_later(database: Settings) -> None:
    """An index dropped and a trigger disabled by hand are named, under the revision that made them."""
    execute(database, "drop index tokens_extensions")
    execute(database, "alter table order_rules disable trigger order_rule_transition")
    problems = {migration.name: migration.problem for migration in migrate(database, check=True)}
    assert "no index tokens_extensions" in problems["0001_tokens"]
    assert "no trigger order_rule_transition" in problems["0003_orders"]
    assert not problems["0002_traders"]


@pytest.mark.slow
def test_three_processes_that_migrate_at_once_all_succeed(empty_database: Settings) -> None:
    """Starting together is safe: every process ends well, and every revision was applied exactly once."""
    with contextlib.ExitStack() as started:
        processes = [started.enter_context(start(empty_database)) for _ in range(3)]
        assert [process.wait(60) for process in processes] == [0] * 3
    assert tables(empty_database) == TABLES | {"alembic_version"}
    assert execute(empty_database, "select version_num from alembic_version") == [(NAMES[-1],)]


@pytest.mark.parametrize("revision", range(len(NAMES)))
def test_a_kill_in_the_middle_of_a_revision_leaves_all_or_nothing_of_it(
    empty_database: Settings, revision: int
) -> None:
    """kill -9 after a revision's SQL ran and before its commit: nothing of it is left, and the next run goes on."""
    process = start(
        empty_database,
        f"""
upgrade, calls = migrations._upgrade, iter(range(99))
def stopping(connection, text):
    run = upgrade(connection, text)
    def stopped():
        run()
        if text == migrations.scripts()[{NAMES[revision]!r}]:
            print("in the middle", flush=True)
            import time; time.sleep(60)
    return stopped
migrations._upgrade = stopping
""",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the middle\n"
    process.kill()
    process.wait()
    process.stdout.close()

    missing = [migration.name for migration in migrate(empty_database, check=True) if migration.statements]
    assert missing == NAMES[revision:]
    migrate(empty_database)
    assert tables(empty_database) == TABLES | {"alembic_version"}


def test_a_newer_database_is_refused_by_name(database: Settings) -> None:
    """A ringlog that is older than the database says so instead of guessing."""
    execute(database, "update alembic_version set version_num = '9999_later'")
    with pytest.raises(SchemaMismatch, match=r"9999_later.*upgrade ringlog"):
        migrate(database)


def test_an_unreachable_server_and_a_wrong_password_are_told_apart(
    postgres_settings: Settings, own_server: PostgresServer
) -> None:
    """Down is ServerUnavailable, a refused login is ServerRefused, and the password is in neither message."""
    wrong = msgspec.structs.replace(postgres_settings, postgres_password=Secret("canary-password"))
    with pytest.raises(ServerRefused, match="password authentication failed") as refused:
        migrate(wrong)
    own_server.kill()
    down = Settings(**{**own_server.settings(), "postgres_password": Secret("canary-password")})
    down = msgspec.structs.replace(down, postgres_retry_timeout_ms=100)
    with pytest.raises(ServerUnavailable) as unavailable:
        migrate(down)
    assert "canary" not in f"{refused.value}{unavailable.value}"
