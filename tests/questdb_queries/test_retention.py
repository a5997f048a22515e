"""Retention on a real QuestDB: what goes and what stays, views, audit rows, wrong clocks, failures, late records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from platform_rows import TABLES, Execute, Insert, now_before_midnight, trade, wait_applied, wait_until

from ringlog.errors import ConfigurationError, RetentionRunning, ServerUnavailable
from ringlog.questdb import audit, retention_window
from ringlog.questdb.connection import Connection
from ringlog.questdb.queries import Queries
from ringlog.questdb.retention import Report, Retention
from ringlog.settings import Settings

DAY = 86_400_000_000
VIEW_STATUS = "SELECT DISTINCT view_status FROM materialized_views()"


@pytest.fixture
def now(execute: Execute) -> int:
    """The server's clock, on a day that does not end while the test counts days from it."""
    return now_before_midnight(execute)


@pytest.fixture
def fresh(execute: Execute, empty: None) -> None:
    """No table has rows, and retention never ran."""
    execute("TRUNCATE TABLE retention_audit")
    wait_applied(execute, "retention_audit")


@pytest.fixture
def retention(settings: Settings, fresh: None, tmp_path: Any) -> Iterator[Retention]:
    with Retention(Settings(**{**_fields(settings), "runtime_dir": str(tmp_path)})) as retention:
        yield retention


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def latency(timestamp: int, value: float = 1.0) -> dict[str, Any]:
    return {"timestamp": timestamp, "service": "s", "operation": "o", "latency_us": value}


def days_left(execute: Execute, table: str, now: int) -> list[int]:
    """How many days ago each stored day is."""
    rows = execute(f"SELECT DISTINCT timestamp_floor('d', timestamp)::long d FROM {table} ORDER BY d")
    return [now // DAY - day // DAY for (day,) in rows]


def view_states(execute: Execute) -> list[tuple[str]]:
    """The states that views have, once none of them is just taking in what was written last."""
    found: list[tuple[str]] = []

    def at_rest() -> bool:
        found[:] = execute(VIEW_STATUS)
        return ("refreshing",) not in found

    wait_until(at_rest, "the views to be at rest")
    return found


def outcomes(report: Report) -> dict[str, str]:
    return {table.table: table.outcome for table in report.tables}


def test_cuts_every_table(retention: Retention, execute: Execute, insert: Insert, queries: Queries, now: int) -> None:
    """Whole days past the cut go from every table and view, day 30 stays, views stay valid, and each is audited."""
    kept = (0, 1, 29, 30)
    for ago in (*kept, 31, 32):
        insert("trades", [trade(now - ago * DAY)], views=False)
        insert("latencies", [latency(now - ago * DAY, 100.0 + ago)], views=False)
    for table in TABLES:
        wait_applied(execute, table)
    whole = sorted((*kept, 31, 32), reverse=True)
    for view in ("latency_minutes", "latency_hours"):
        wait_until(lambda view=view: days_left(execute, view, now) == whole, "the view to hold every day")
    planned = retention.run(dry_run=True)
    assert {t.table: len(t.partitions) for t in planned.tables if t.partitions} == {
        "trades": 2,
        "latencies": 2,
        "latency_minutes": 2,
        "latency_hours": 2,
    }
    assert days_left(execute, "trades", now) == sorted((*kept, 31, 32), reverse=True)
    assert execute("SELECT count() FROM retention_audit") == [(0,)]
    report = retention.run()
    assert set(outcomes(report).values()) == {"executed"}
    assert set(outcomes(report)) >= {*TABLES, "latency_minutes", "latency_hours", "mev_minutes", "performance_minutes"}
    for name in ("trades", "latencies", "latency_minutes", "latency_hours"):
        assert days_left(execute, name, now) == sorted(kept, reverse=True)
    assert view_states(execute) == [("valid",)]
    assert report.disk_free_bytes_before
    assert report.disk_free_bytes_after
    wait_applied(execute, "retention_audit")
    rows = execute(
        "SELECT table_name, outcome, count(), sum(rows) FROM retention_audit WHERE partition_name IS NOT NULL "
        "ORDER BY table_name, outcome"
    )
    assert rows == [
        (table, outcome, 2, 2)
        for table in ("latencies", "latency_hours", "latency_minutes", "trades")
        for outcome in ("dropped", "planned")
    ]
    summary = execute(
        "SELECT rows, disk_free_bytes_before > 0, disk_free_bytes_after > 0, bytes > 0 FROM retention_audit "
        "WHERE partition_name IS NULL AND table_name = 'trades'"
    )
    assert summary == [(2, True, True, True)]
    # No TTL is left behind, and the percentiles still come from the view and are right.
    assert execute("SELECT DISTINCT ttlValue FROM tables() WHERE walEnabled") == [(0,)]
    insert("latencies", [latency(now - DAY + 5, 500.0)])
    result = queries.get_latency_percentiles("s", "o", 40 * 86_400, percentiles=[1, 100])
    assert result.source == "view"
    assert [row.samples for row in result] == [5, 5]
    assert result.rows()[1].latency_us == pytest.approx(500.0, rel=0.01)


def test_executed_cut(retention: Retention, execute: Execute, insert: Insert, now: int) -> None:
    """The cut that the writer asks for is there once it was executed, for every table, and not before."""
    assert retention.executed_cut("trades") is None
    insert("trades", [trade(now), trade(now - 31 * DAY)])
    retention.run(dry_run=True)
    assert retention.executed_cuts() == {}
    cut = retention.run().cut_us
    wait_applied(execute, "retention_audit")
    assert retention.executed_cut("trades") == cut == (now - 30 * DAY) // DAY * DAY
    assert retention.executed_cut("latencies") == cut
    assert retention.executed_cut("no_such_table") is None


def test_45_future_rows_cost_nothing(retention: Retention, execute: Execute, insert: Insert, now: int) -> None:
    """Rows far in the future, in a table with views and in one without, move no cut.

    Defence: a cut is made from the server's clock.
    """
    for table, row in (("latencies", latency), ("trades", trade)):
        insert(table, [row(now + 90 * DAY), row(now), row(now - 29 * DAY), row(now - 31 * DAY)])
    for view in ("latency_minutes", "latency_hours"):
        wait_until(lambda view=view: days_left(execute, view, now) == [31, 29, 0, -90], "the view to hold every day")
    assert set(outcomes(retention.run()).values()) == {"executed"}
    for table in ("latencies", "trades", "latency_minutes", "latency_hours"):
        assert days_left(execute, table, now) == [29, 0, -90]
    assert view_states(execute) == [("valid",)]


def test_45_clocks_that_differ(
    retention: Retention, execute: Execute, insert: Insert, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose clock differs from this machine's by hours loses nothing: every table is refused, and audited.

    Defence: clocks that differ stop retention.
    """
    insert("trades", [trade(now), trade(now - 31 * DAY)])
    real = Retention._now_us
    monkeypatch.setattr(Retention, "_now_us", lambda self: real(self) + 60 * DAY)
    report = retention.run()
    assert set(outcomes(report).values()) == {"refused"}
    assert report.failed
    assert days_left(execute, "trades", now) == [31, 0]
    wait_applied(execute, "retention_audit")
    assert execute("SELECT DISTINCT outcome FROM retention_audit") == [("refused",)]
    assert retention.executed_cuts() == {}


def test_many_days_are_held(
    retention: Retention, execute: Execute, insert: Insert, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More days than a daily run can meet are held for most of a day, so that a wrong clock can be mended."""
    old = [trade(now - ago * DAY) for ago in (31, 32, 33, 60)]
    insert("trades", [trade(now), *old])
    assert outcomes(retention.run())["trades"] == "held"
    wait_applied(execute, "retention_audit")
    assert outcomes(retention.run())["trades"] == "held"
    assert len(days_left(execute, "trades", now)) == 5
    assert retention.executed_cut("trades") is None
    wait_applied(execute, "retention_audit")
    # The audit row is as old as it is a day later.
    monkeypatch.setattr("ringlog.questdb.retention.HELD_US", 0)
    assert outcomes(retention.run())["trades"] == "executed"
    assert days_left(execute, "trades", now) == [0]
    insert("trades", old)
    monkeypatch.setattr("ringlog.questdb.retention.HELD_US", DAY)
    wait_applied(execute, "retention_audit")
    assert outcomes(retention.run())["trades"] == "held"
    assert outcomes(retention.run(all_days=True))["trades"] == "executed"
    assert days_left(execute, "trades", now) == [0]


def test_a_young_table_is_held_too(retention: Retention, execute: Execute, insert: Insert, now: int) -> None:
    """A cut far behind the oldest day is held however few days are stored: a clock that is ahead does just that."""
    insert("trades", [trade(now), trade(now - 33 * DAY)])
    found = {table.table: table for table in retention.run().tables}["trades"]
    assert found.outcome == "held"
    assert found.reason.startswith("the oldest day is 3 days before the cut")
    assert days_left(execute, "trades", now) == [33, 0]


def test_45_what_a_wrong_clock_wrote_holds_up_nothing(
    retention: Retention, execute: Execute, insert: Insert, now: int, settings: Settings, tmp_path: Any
) -> None:
    """Audit rows of a run under a clock that was two months ahead keep no run from being due, and end no hold.

    Defence: audit rows of the future do not count yet.
    """
    insert("trades", [trade(now), *(trade(now - ago * DAY) for ago in (31, 32, 33, 34))])
    for outcome, ahead in (("held", 60), ("executed", 61)):
        execute(
            f"INSERT INTO retention_audit (timestamp, run, table_name, outcome) "
            f"VALUES (dateadd('d', {ahead}, now()), 1, 'trades', '{outcome}')"
        )
    wait_applied(execute, "retention_audit")
    connection = Connection.from_settings(settings)
    assert audit.last_run_us(connection) is None
    assert audit.held_at(connection, "trades") is None
    connection.close()
    hour = now // 3_600_000_000 % 24
    report = retention_window.run_if_due(
        Settings(**{**_fields(settings), "runtime_dir": str(tmp_path), "retention_hour": hour})
    )
    assert report is not None
    assert outcomes(report)["trades"] == "held"


def test_idle_tables(retention: Retention, execute: Execute, insert: Insert, now: int) -> None:
    """A table all of whose rows are old is emptied; under a view, what a TTL cannot reach is kept and said so."""
    insert("trades", [trade(now - 31 * DAY)])
    insert("latencies", [latency(now - 32 * DAY), latency(now - 31 * DAY)])
    report = {table.table: table for table in retention.run().tables}
    assert days_left(execute, "trades", now) == []
    assert report["trades"].rows == 1
    assert "newer row" in report["latencies"].reason
    assert view_states(execute) == [("valid",)]
    insert("latencies", [latency(now)])
    wait_applied(execute, "retention_audit")
    retention.run()
    assert days_left(execute, "latencies", now) == [0]
    assert view_states(execute) == [("valid",)]


def test_one_failure_stops_no_other(retention: Retention, execute: Execute, insert: Insert, now: int) -> None:
    """A suspended table fails, after retries, and is audited; the other tables are cut all the same."""
    for table, row in (("trades", trade), ("latencies", latency)):
        insert(table, [row(now), row(now - 31 * DAY)])
    execute("ALTER TABLE trades SUSPEND WAL")
    wait_until(lambda: execute("SELECT suspended FROM wal_tables() WHERE name = 'trades'") == [(True,)], "suspension")
    try:
        report = retention.run()
    finally:
        execute("ALTER TABLE trades RESUME WAL")
    assert outcomes(report)["trades"] == "failed"
    assert report.failed
    assert "suspended" in next(table.reason for table in report.tables if table.table == "trades")
    assert {outcome for table, outcome in outcomes(report).items() if table != "trades"} == {"executed"}
    assert days_left(execute, "latencies", now) == [0]
    wait_applied(execute, "trades")
    wait_applied(execute, "retention_audit")
    assert retention.executed_cut("trades") is None
    assert outcomes(retention.run())["trades"] == "executed"
    assert days_left(execute, "trades", now) == [0]


def environment_of(settings: Settings, runtime_dir: Any) -> dict[str, str]:
    return {
        **os.environ,
        "RINGLOG_RUNTIME_DIR": str(runtime_dir),
        "RINGLOG_QUESTDB_PG_PORT": str(settings.questdb_pg_port),
        "RINGLOG_QUESTDB_USER": settings.questdb_user,
        "RINGLOG_QUESTDB_PASSWORD": settings.questdb_password.reveal(),
        "RINGLOG_REQUEST_TIMEOUT_MS": str(settings.request_timeout_ms),
    }


def run_killed_after(method: str, settings: Settings, runtime_dir: Any) -> None:
    """A retention run in a process of its own, killed (-9) as soon as `Retention.<method>` has returned."""
    code = (
        "import os, signal\n"
        "from ringlog.questdb.retention import Retention\n"
        "from ringlog.settings import Settings\n"
        f"real = Retention.{method}\n"
        "def then_die(self, *arguments):\n"
        "    real(self, *arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Retention.{method} = then_die\n"
        "Retention(Settings.from_environment()).run()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], env=environment_of(settings, runtime_dir), check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL


def test_interrupted_run(
    retention: Retention, execute: Execute, insert: Insert, now: int, settings: Settings, tmp_path: Any
) -> None:
    """A run killed (-9) after the drop and before its audit rows is made good by the next: no day goes unrecorded."""
    insert("trades", [trade(now), trade(now - 31 * DAY)])
    run_killed_after("_remove", settings, tmp_path)
    wait_applied(execute, "retention_audit")
    assert days_left(execute, "trades", now) == [0]
    assert retention.executed_cut("trades") is None
    retention.run()
    wait_applied(execute, "retention_audit")
    rows = execute("SELECT outcome, rows FROM retention_audit WHERE partition_name IS NOT NULL ORDER BY timestamp")
    assert rows == [("planned", 1), ("dropped", 1)]
    assert retention.executed_cut("trades") is not None


def test_a_run_killed_under_its_ttl(
    retention: Retention, execute: Execute, insert: Insert, now: int, settings: Settings, tmp_path: Any
) -> None:
    """A run killed (-9) while a table with views has the TTL that takes its days: the next run takes the TTL away."""
    insert("latencies", [latency(now), latency(now - 31 * DAY)])
    run_killed_after("_set_ttl", settings, tmp_path)
    ttl = "SELECT ttlValue FROM tables() WHERE table_name = 'latencies'"
    assert execute(ttl) != [(0,)]
    wait_applied(execute, "retention_audit")
    assert set(outcomes(retention.run()).values()) == {"executed"}
    assert execute(ttl) == [(0,)]
    assert days_left(execute, "latencies", now) == [0]
    assert view_states(execute) == [("valid",)]
    rows = execute(
        "SELECT outcome, rows FROM retention_audit WHERE partition_name IS NOT NULL AND table_name = 'latencies' "
        "ORDER BY timestamp"
    )
    assert rows == [("planned", 1), ("dropped", 1)]


@pytest.mark.parametrize("is_done", [False, True])
def test_a_failure_is_tried_again(
    retention: Retention, execute: Execute, insert: Insert, now: int, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """A connection that breaks before or after the days went costs another attempt, and the audit has them once."""
    for table, row in (("trades", trade), ("latencies", latency)):
        insert(table, [row(now), row(now - 31 * DAY)])
    real, failed = Retention._remove, set[str]()

    def breaks(self: Retention, target: Any, *rest: Any) -> None:
        if is_done or target.name in failed:
            real(self, target, *rest)
        if target.name not in failed:
            failed.add(target.name)
            raise ServerUnavailable("the connection broke")

    monkeypatch.setattr(Retention, "_remove", breaks)
    report = {table.table: table for table in retention.run().tables}
    assert {"trades", "latencies"} <= failed
    for table in ("trades", "latencies"):
        assert (report[table].outcome, report[table].rows) == ("executed", 1)
        assert days_left(execute, table, now) == [0]
    wait_applied(execute, "retention_audit")
    rows = execute(
        "SELECT outcome, count() FROM retention_audit WHERE partition_name IS NOT NULL AND table_name = 'latencies' "
        "ORDER BY outcome"
    )
    assert rows == [("dropped", 1), ("planned", 1)]
    assert execute("SELECT DISTINCT ttlValue FROM tables() WHERE walEnabled") == [(0,)]


def test_one_run_at_a_time(retention: Retention, settings: Settings, tmp_path: Any) -> None:
    """While one run goes on, another on the instance is refused by name; a dry run is not."""
    from ringlog.questdb.retention import _only_run

    with _only_run(retention._settings):
        with pytest.raises(RetentionRunning, match=r"retention\.lock"):
            retention.run()
        assert retention.run(dry_run=True).dry_run
    assert not retention.run().failed


@pytest.mark.parametrize(("conf_host", "is_read"), [("127.0.0.1", True), ("questdb.example", False)])
def test_the_disk_is_that_of_the_server_spoken_to(
    settings: Settings, fresh: None, tmp_path: Any, conf_host: str, is_read: bool
) -> None:
    """A disk of this machine is reported where QDB_CLIENT_CONF names this machine, whatever questdb_host says."""
    conf = f"http::addr={conf_host}:{settings.questdb_http_port};"
    other = "192.0.2.1" if is_read else "127.0.0.1"
    changes = {"questdb_host": other, "questdb_client_conf": conf, "runtime_dir": str(tmp_path)}
    retention = Retention(Settings(**{**_fields(settings), **changes}))
    try:
        assert (retention._disk_free_bytes() is not None) == is_read
    finally:
        retention.close()


def test_settings(settings: Settings) -> None:
    """Less than a day, and an hour that is none, are refused by name."""
    with pytest.raises(ConfigurationError, match="RINGLOG_RETENTION_DAYS"):
        Retention(Settings(retention_days=0))
    with pytest.raises(ConfigurationError, match="RINGLOG_RETENTION_HOUR"):
        retention_window.window_hour(Settings(retention_hour=24), Connection.from_settings(settings), [])


def test_window() -> None:
    """The window opens in the quietest hours, also over midnight, and once a day."""
    busy = [100] * 24
    busy[23] = busy[0] = 1
    assert retention_window.quietest(busy) == 23
    assert retention_window.quietest([0] * 24) == retention_window.HOUR_DEFAULT
    hour = 3_600_000_000
    midnight = 20_000 * DAY
    assert retention_window.is_due(midnight + hour // 2, None, 23)
    assert not retention_window.is_due(midnight + 2 * hour, None, 23)
    assert not retention_window.is_due(midnight + hour // 2, midnight - hour // 2, 23)
    assert retention_window.is_due(midnight + hour // 2, midnight - 23 * hour, 23)


def test_run_if_due(fresh: None, settings: Settings, execute: Execute, insert: Insert, now: int, tmp_path: Any) -> None:
    """Inside the window it runs, once; outside it does not; the quietest hour comes from the stored rows."""
    hour_now = now // 3_600_000_000 % 24

    def at(hour: int) -> Settings:
        return Settings(**{**_fields(settings), "runtime_dir": str(tmp_path), "retention_hour": hour})

    assert retention_window.run_if_due(at((hour_now + 5) % 24)) is None
    report = retention_window.run_if_due(at(hour_now))
    assert report is not None
    wait_applied(execute, "retention_audit")
    assert retention_window.run_if_due(at(hour_now)) is None
    hour = 3_600_000_000
    quiet = (hour_now - 10) % 24
    rows = [trade(now - ago * hour) for ago in range(24) if (hour_now - ago) % 24 not in (quiet, (quiet + 1) % 24)]
    insert("trades", rows)
    connection = Connection.from_settings(settings)
    assert retention_window.window_hour(settings, connection, ["trades"]) == quiet
    assert audit.last_run_us(connection) is not None
    connection.close()
