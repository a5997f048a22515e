"""Servers that somebody else set up: PgBouncer in between, other encodings and styles, tables of other programs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import psycopg_pool
import pytest
from debian_packages import library_path, unpacked
from postgres_platform import USDC, condition, execute

from ringlog import libpq
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
from ringlog.postgres.pools import Rows, Steps, connection_options
from ringlog.settings import Secret, Settings

TOKEN = Token(address=USDC, symbol="USDC", decimals=6)


PGBOUNCER = ("pgbouncer", "libevent-2.1-7", "libc-ares2")


def _pgbouncer() -> tuple[str, dict[str, str]]:
    """PgBouncer of this machine, else out of Debian's package, and the environment that it runs in."""
    if installed := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return installed, dict(os.environ)
    place = unpacked(PGBOUNCER)
    return str(place / "usr" / "sbin" / "pgbouncer"), {**os.environ, "LD_LIBRARY_PATH": library_path(place)}


@contextlib.contextmanager
def pgbouncer(settings: Settings, directory: Path, *lines: str) -> Iterator[Settings]:
    """Settings of a PgBouncer before the server of `settings`, in transaction mode unless `lines` say otherwise."""
    program, environment = _pgbouncer()
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
        "default_pool_size = 3",  # fewer than ringlog's connections: they share, and wander
        *(lines or ("pool_mode = transaction",)),
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


@pytest.fixture(params=["transaction", "session", "transaction ignoring", "session ignoring"])
def each_mode(request: pytest.FixtureRequest, empty_database: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Through PgBouncer as it is set up in practice; `ignore_startup_parameters` is what many a guide recommends."""
    mode, *ignoring = request.param.split()
    lines = ["ignore_startup_parameters = extra_float_digits,options,search_path"] if ignoring else []
    with pgbouncer(empty_database, tmp_path, f"pool_mode = {mode}", *lines) as settings:
        yield settings


@transaction
def _limits() -> Steps[Rows]:
    return (yield Statement("select current_setting('statement_timeout')"))


def test_finding_41_everything_works_through_pgbouncer(each_mode: Settings) -> None:
    """Finding 41: migrations, repeated statements and limits through PgBouncer; nothing leaks into its connections."""
    migrate(each_mode)
    assert not any(one.statements or one.problem for one in migrate(each_mode, check=True))
    with Pool(msgspec.structs.replace(each_mode, postgres_pool_size_max=2)) as pool:
        tokens = Tokens(pool)
        tokens.save(TOKEN)
        assert all(tokens.get(USDC) == TOKEN for _ in range(30))  # more than the threshold of preparing
        assert pool.execute("select count(*) from pg_prepared_statements") == [(0,)]
        assert pool.execute("select current_setting('statement_timeout')") == [("30s",)]
        assert pool.run(_limits()) == [("30s",)]
    assert execute(each_mode, "show statement_timeout") == [("0",)]  # another client has what it had


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


STYLES = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "TimeZone": "Asia/Kathmandu",
}


async def test_finding_42_styles_of_the_database_do_not_matter(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 42: times, intervals, bytes and backslashes are read as they are meant, whatever the defaults."""
    for name, value in STYLES.items():
        execute(database, f"alter database {database.postgres_database} set {name} to '{value}'")
    bare = {**connection_options(database), "client_encoding": ""}  # as another program would see the database
    with libpq.Connection.connect(**bare) as connection:
        found = {name: connection.execute(f"show {name}").fetchall() for name in STYLES}
    assert found == {name: [(value,)] for name, value in STYLES.items()}
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=1")
    sql = (
        "select timestamptz '2026-11-30T10:00Z', interval '90 s', 'a\\nb', '日本', '\\x00ff'::bytea, date '2026-11-30'"
    )
    with Pool(database) as pool:
        ((at, lasted, *others),) = pool.execute(sql)
    assert (at.timestamp(), lasted.total_seconds()) == (1796032800, 90)
    assert others == ["a\\nb", "日本", b"\0\xff", datetime.date(2026, 11, 30)]
    async with AsyncPool(database) as async_pool:
        assert await async_pool.execute(sql) == [(at, lasted, *others)]


@pytest.mark.parametrize("revisions", [["1975ea83b712"], ["1975ea83b712", "ae1027a6acf"]])
def test_finding_42_the_revision_of_another_program_is_named(empty_database: Settings, revisions: list[str]) -> None:
    """Finding 42: a table alembic_version of somebody else is no old ringlog, and is left as it is."""
    execute(empty_database, "create table alembic_version (version_num varchar(32) primary key)")
    for revision in revisions:
        execute(empty_database, "insert into alembic_version values (%s)", (revision,))
    with pytest.raises(SchemaMismatch, match=r"alembic_version: got .*1975ea83b712.* a database of its own"):
        migrate(empty_database)
    assert execute(empty_database, "select count(*) from alembic_version") == [(len(revisions),)]


@pytest.mark.each_server
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


CUT = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What is logged about pools, by whom; whatever other tests had said, and however long this one takes."""
    monkeypatch.setattr("ringlog.pooling.NOTICE_INTERVAL_S", 600.0)
    monkeypatch.setattr("ringlog.pooling._notice._said_at", {})
    names = ("psycopg.pool", "ringlog.pooling")
    with caplog.at_level(logging.INFO):
        yield lambda: [f"{each.name} {each.getMessage()}" for each in caplog.records if each.name in names]


def test_finding_43_a_cut_pool_says_one_line(database: Settings, notices: Callable[[], list[str]]) -> None:
    """Finding 43: after every connection was cut, calls go through and psycopg_pool's lines are one of ringlog's."""
    with Pool(database) as pool:
        condition(lambda: pool.execute("select 1") == [(1,)] and pool.statistics()["pool_available"] >= 4)
        execute(database, CUT)
        assert pool.execute("select 1") == [(1,)]
        condition(lambda: pool.statistics()["pool_available"] >= 4)
    (said,) = notices()
    assert said.startswith("ringlog.pooling pool=ringlog-postgres trouble=")


async def test_finding_43_a_cut_async_pool_says_one_line(database: Settings, notices: Callable[[], list[str]]) -> None:
    """Finding 43, for asyncio."""
    async with AsyncPool(database) as pool:
        assert await pool.execute("select 1") == [(1,)]
        await asyncio.to_thread(execute, database, CUT)
        assert await pool.execute("select 1") == [(1,)]
    (said,) = notices()
    assert said.startswith("ringlog.pooling pool=ringlog-postgres trouble=")


def test_finding_43_lines_about_other_pools_pass(notices: Callable[[], list[str]]) -> None:
    """Finding 43: what psycopg_pool says of a pool that the program itself made is left to the program."""
    own = psycopg_pool.ConnectionPool("host=/nowhere", min_size=1, open=False, name="mine")
    with own as pool, pytest.raises(psycopg_pool.PoolTimeout):
        pool.wait(0.2)
    assert any(line.startswith("psycopg.pool ") and "'mine'" in line for line in notices())


CUT_SCRIPT = f"""
from ringlog.postgres import Pool
from ringlog.settings import Settings

pool = Pool(Settings.from_environment())
pool.open()
pool.execute({CUT!r})
pool.execute("select 1")
pool.execute({CUT!r})
print(pool.execute("select 1"))
"""


def test_finding_43_nothing_on_stderr(database: Settings) -> None:
    """Finding 43: a program that set up no logging, and lost its connections, prints what it prints itself."""
    environment = {**os.environ, **database.to_environment()}
    command = [sys.executable, "-c", CUT_SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[(1,)]\n", "")


@pytest.mark.each_server
def test_finding_42_each_version(empty_database: Settings, postgres_version: str) -> None:
    """Finding 42: on every version that is promised a scram login makes the tables and keeps a token."""
    assert execute(empty_database, "show server_version")[0][0].startswith(f"{postgres_version}.")
    assert execute(empty_database, "select distinct auth_method from pg_hba_file_rules") == [("scram-sha-256",)]
    assert migrate(empty_database)
    with Pool(empty_database) as pool:
        tokens = Tokens(pool)
        tokens.save(TOKEN)
        assert tokens.get(USDC) == TOKEN
    wrong = msgspec.structs.replace(empty_database, postgres_password=Secret("not-it"))
    with Pool(wrong) as pool, pytest.raises(ServerRefused, match="password authentication failed"):
        pool.execute("select 1")
