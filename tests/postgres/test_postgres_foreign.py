"""Servers that somebody else set up: PgBouncer in between, other encodings and styles, tables of other programs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from debian_packages import debian_program
from postgres_platform import USDC, condition, execute

from ringlog.errors import SchemaMismatch, ServerRefused
from ringlog.postgres import (
    AsyncPool,
    ConfigWatch,
    Limits,
    MevProtection,
    Pool,
    Statement,
    Token,
    Tokens,
    TraderConfig,
    TraderConfigs,
    transaction,
)
from ringlog.postgres.migrations import migrate
from ringlog.postgres.pools import Rows, Steps
from ringlog.settings import Secret, Settings

TOKEN = Token(address=USDC, symbol="USDC", decimals=6)


@contextlib.contextmanager
def pgbouncer(settings: Settings, directory: Path, *lines: str) -> Iterator[Settings]:
    """Settings of a PgBouncer in transaction mode in front of the server of `settings`."""
    program, environment = debian_program("pgbouncer", "pgbouncer", "libevent-2.1-7", "libc-ares2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = settings.postgres_password.reveal()
    configuration = [
        "[databases]",
        f"* = host=127.0.0.1 port={settings.postgres_port} user={settings.postgres_user} password={password}",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        "pool_mode = transaction",
        "default_pool_size = 3",  # fewer than ringlog's connections: they share, and wander
        *lines,
    ]
    file = directory / "pgbouncer.ini"
    file.write_text("\n".join(configuration) + "\n")
    log = directory / "pgbouncer.log"
    drop_root = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    with log.open("wb") as output:
        command = [str(program), *drop_root, str(file)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        through = msgspec.structs.replace(settings, postgres_port=port, postgres_password=Secret())
        condition(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, log.read_text()
        yield through
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def through(empty_database: Settings, tmp_path: Path) -> Iterator[Settings]:
    with pgbouncer(empty_database, tmp_path) as settings:
        yield settings


@transaction
def _limits() -> Steps[Rows]:
    return (yield Statement("select current_setting('statement_timeout')"))


def test_finding_41_everything_works_through_pgbouncer_in_transaction_mode(through: Settings) -> None:
    """Finding 41: migrations, repeated statements and limits through PgBouncer; nothing leaks into its connections."""
    migrate(through)
    assert not any(one.statements or one.problem for one in migrate(through, check=True))
    with Pool(through) as pool:
        tokens = Tokens(pool)
        tokens.save(TOKEN)
        assert all(tokens.get(USDC) == TOKEN for _ in range(30))  # more than the threshold of preparing
        assert pool.execute("select count(*) from pg_prepared_statements") == [(0,)]
        assert pool.execute("select current_setting('statement_timeout')") == [("30s",)]
        assert pool.run(_limits()) == [("30s",)]
    assert execute(through, "show statement_timeout") == [("0",)]  # another client has what it had


async def test_finding_41_async_works_through_pgbouncer(through: Settings) -> None:
    """Finding 41, for asyncio."""
    async with AsyncPool(through) as pool:
        for number in range(30):
            assert await pool.execute("select %s::int", (number,)) == [(number,)]
        assert await pool.run(_limits()) == [("30s",)]


def test_finding_41_a_watch_polls_through_pgbouncer(through: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Finding 41: LISTEN can't work through a transaction pooler: the watch says so, and polls."""
    migrate(through)
    limits = Limits(position_max=Decimal(1), trade_max=Decimal(1), daily_loss_max=Decimal(1), slippage_max_bps=80)
    config = TraderConfig(trader_id="t1", limits=limits, mev_protection=MevProtection(route="public"))
    with Pool(through) as pool, caplog.at_level(logging.WARNING), ConfigWatch(through, poll_interval_s=0.1) as watch:
        saved = TraderConfigs(pool).save(config, changed_by="ann")
        assert watch.wait_until(lambda watch: bool(found := watch.current("t1")) and found.config == saved, 60)
    assert "a pooler in between" in caplog.text


def test_finding_41_a_refused_login_is_not_tried_again(postgres_settings: Settings) -> None:
    """Finding 41: what can never pass fails at once, and not after the retry timeout."""
    settings = msgspec.structs.replace(
        postgres_settings, postgres_database="nobody_made_it", postgres_retry_timeout_ms=600_000
    )
    began = time.monotonic()
    with Pool(settings) as pool, pytest.raises(ServerRefused, match="nobody_made_it"):
        pool.execute("select 1")
    assert time.monotonic() - began < 300


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_finding_42_a_database_of_another_encoding_is_refused(postgres_settings: Settings, encoding: str) -> None:
    """Finding 42: migrate and the pool name the encoding that was found, the one wanted, and the next step."""
    name = f"test_{uuid.uuid4().hex}"
    made = f"create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
    execute(postgres_settings, made)
    settings = msgspec.structs.replace(postgres_settings, postgres_database=name)
    wanted = f"got encoding {encoding}, wanted UTF8: .*RINGLOG_POSTGRES_DATABASE"
    try:
        with pytest.raises(ServerRefused, match=wanted):
            migrate(settings)
        with Pool(settings) as pool, pytest.raises(ServerRefused, match=wanted):
            pool.execute("select 1")
    finally:
        execute(postgres_settings, f"drop database {name} with (force)")


async def test_finding_42_styles_of_the_database_do_not_matter(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 42: times, intervals and backslashes are read as they are meant, whatever the database's defaults."""
    for style in ("datestyle to 'German'", "standard_conforming_strings to off", "intervalstyle to 'iso_8601'"):
        with contextlib.suppress(Exception):  # PostgreSQL 19 has no strings of the old kind any more
            execute(database, f"alter database {database.postgres_database} set {style}")
    execute(database, f"alter database {database.postgres_database} set client_encoding to 'LATIN1'")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    sql = "select timestamptz '2026-11-30T10:00Z', interval '90 s', 'a\\nb', '日本'"
    with Pool(database) as pool:
        ((at, lasted, text, japan),) = pool.execute(sql)
    assert (at.timestamp(), lasted.total_seconds(), text, japan) == (1796032800, 90, "a\\nb", "日本")
    async with AsyncPool(database) as async_pool:
        assert await async_pool.execute(sql) == [(at, lasted, text, japan)]


@pytest.mark.parametrize("revisions", [["1975ea83b712"], ["1975ea83b712", "ae1027a6acf"]])
def test_finding_42_the_revision_of_another_program_is_named(empty_database: Settings, revisions: list[str]) -> None:
    """Finding 42: a table alembic_version of somebody else is no old ringlog, and is left as it is."""
    execute(empty_database, "create table alembic_version (version_num varchar(32) primary key)")
    for revision in revisions:
        execute(empty_database, "insert into alembic_version values (%s)", (revision,))
    with pytest.raises(SchemaMismatch, match=r"alembic_version: got revision .*1975ea83b712.* a database of its own"):
        migrate(empty_database)
    assert execute(empty_database, "select count(*) from alembic_version") == [(len(revisions),)]


def test_finding_42_a_role_that_may_not_create_is_told_what_to_grant(empty_database: Settings) -> None:
    """Finding 42: since PostgreSQL 15 a role may not create tables in public unless it is told so."""
    role = f"role_{uuid.uuid4().hex}"
    execute(empty_database, f"create role {role} login password 'of-a-test'")
    settings = msgspec.structs.replace(empty_database, postgres_user=role, postgres_password=Secret("of-a-test"))
    try:
        with pytest.raises(ServerRefused, match=f'grant create on schema public to "{role}"'):
            migrate(settings)
        execute(empty_database, f"grant create on schema public to {role}")
        assert migrate(settings)
    finally:
        execute(empty_database, f"drop owned by {role}")
        execute(empty_database, f"drop role {role}")


def test_finding_43_a_cut_pool_says_one_line(database: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Finding 43: after every connection was cut, calls go through and psycopg_pool's warnings are one of ringlog's."""
    with Pool(database) as pool, caplog.at_level(logging.WARNING):
        condition(lambda: pool.execute("select 1") == [(1,)] and pool.statistics()["pool_available"] >= 4)
        execute(
            database,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()",
        )
        assert pool.execute("select 1") == [(1,)]
        condition(lambda: pool.statistics()["pool_available"] >= 4)
    assert not [record for record in caplog.records if record.name.startswith("psycopg.pool")]
    assert len([record for record in caplog.records if "postgres_pool=reconnecting" in record.getMessage()]) <= 1
