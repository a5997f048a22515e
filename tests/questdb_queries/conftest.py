"""A QuestDB with the platform's tables and views, made by the migration, and clients of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from platform_rows import LAYOUTS, TABLES, Execute, Insert, wait_applied, wait_until

from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.questdb.queries import Queries
from ringlog.questdb.rollups import ROLLUPS
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

# How long an invalid view is left to a request to fill it, which may be under way, before it is made again.
ASK_AGAIN_S = 1.0


@pytest.fixture(scope="session")
def server() -> Iterator[QuestDBServer]:
    """A QuestDB of this folder's own: its tables have fixed names. In dev mode, which lets SQL suspend a table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDB_DEV_MODE_ENABLED", "true")
        server = QuestDBServer().start()
    with server:
        assert not [m for m in migrate(Settings(**server.settings(), request_timeout_ms=10_000), LAYOUTS) if m.problem]
        yield server


@pytest.fixture
def own_server(mortal_server: QuestDBServer) -> Iterator[QuestDBServer]:
    """A server that a test may kill and stop, with the platform's tables, all of them empty."""
    settings = Settings(**mortal_server.settings(), request_timeout_ms=10_000)
    migrate(settings, LAYOUTS)
    connection = Connection.from_settings(settings)
    for table in TABLES:
        connection.execute(f"TRUNCATE TABLE {table}")
        wait_applied(connection.execute, table, views=False)
    connection.close()
    yield mortal_server
    mortal_server.continue_signal()
    mortal_server.start()


@pytest.fixture
def settings(server: QuestDBServer) -> Settings:
    """What a query has not got in its time it leaves out: a machine that is busy needs more than an executor gives."""
    return Settings(**server.settings(), request_timeout_ms=10_000, query_timeout_ms=30_000)


@pytest.fixture
def execute(settings: Settings) -> Iterator[Execute]:
    """Runs one statement on a plain connection and returns its rows."""
    connection = Connection.from_settings(settings)
    yield connection.execute
    connection.close()


@pytest.fixture
def insert(execute: Execute) -> Insert:
    """Puts rows (dicts of the table's columns, `timestamp` in microseconds) into a table, applied on return."""
    seq = itertools.count()
    lane = time.time_ns() // 1_000

    def put(table: str, rows: Sequence[dict[str, Any]], *, views: bool = True) -> None:
        columns = ["timestamp", "lane", "seq", *TABLES[table]]
        for first in range(0, len(rows), 100):
            values: list[Any] = []
            chunk = rows[first : first + 100]
            for row in chunk:
                given = {"lane": lane, "seq": next(seq), **row}
                values += [given.get(column) for column in columns]
            one = "(cast(%s as timestamp), " + ", ".join(["%s"] * (len(columns) - 1)) + ")"
            execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * len(chunk))}", values)
        wait_applied(execute, table, views=views)

    return put


def is_invalid(execute: Execute, view: str) -> bool:
    ((state,),) = execute("SELECT view_status FROM materialized_views() WHERE view_name = %s", (view,))
    return bool(state == "invalid")


def fill(execute: Execute, view: str) -> None:
    """Has the server fill a view anew, and returns once it did and that is applied.

    That a view is valid says nothing before the request was taken up, which the view's own transactions tell. Each
    request makes the view over this one invalid: none is made again while one may be under way.
    """

    def transaction() -> int:
        ((number,),) = execute("SELECT sequencerTxn FROM wal_tables() WHERE name = %s", (view,))
        return int(number)

    def ask() -> float:
        execute(f"REFRESH MATERIALIZED VIEW {view} FULL")
        return time.monotonic()

    before, asked = transaction(), ask()

    def is_filled() -> bool:
        nonlocal asked
        began, invalid = transaction() > before, is_invalid(execute, view)
        if invalid and time.monotonic() - asked > ASK_AGAIN_S:
            asked = ask()
        return began and not invalid

    wait_until(is_filled, f"{view} to be filled anew")
    wait_applied(execute, view, views=False)


def holds_rows(execute: Execute, table: str) -> bool:
    return bool(execute(f"SELECT count() FROM {table}")[0][0])


@pytest.fixture
def empty(execute: Execute) -> None:
    """All tables empty, all views valid. What is so already is left alone: a view takes most of a second to fill."""
    emptied = set()
    for table in TABLES:
        wait_applied(execute, table, views=False)
        if holds_rows(execute, table):
            execute(f"TRUNCATE TABLE {table}")
            wait_applied(execute, table, views=False)
            emptied.add(table)
    # The server notices a truncated base on its own time, and then, filling one view, that of the view over it: a
    # refresh that is asked for after the truncation was applied comes after that.
    for rollup in ROLLUPS:
        if rollup.table in emptied or is_invalid(execute, rollup.view) or holds_rows(execute, rollup.view):
            fill(execute, rollup.view)
            emptied.add(rollup.view)

    def are_valid() -> bool:
        invalid = [rollup.view for rollup in ROLLUPS if is_invalid(execute, rollup.view)]
        for view in invalid:
            fill(execute, view)
        return not invalid

    wait_until(are_valid, "valid views")
    for table in TABLES:
        wait_applied(execute, table)


@pytest.fixture
def queries(settings: Settings) -> Iterator[Queries]:
    with Queries(settings) as queries:
        yield queries
