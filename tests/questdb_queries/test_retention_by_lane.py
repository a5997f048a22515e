"""Findings 14 and 15: what retention took is counted by lane, and excuses those records alone, on a real QuestDB."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import Child, eventually
from platform_rows import Execute, now_before_midnight, wait_applied
from writer_thread import writing

from ringlog import Producer
from ringlog.audit import Kind, Place, Report, prove
from ringlog.disk import Directory, Reserve
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance, boot_id
from ringlog.ledger import Ledger, Term
from ringlog.questdb import taken
from ringlog.questdb.connection import Connection
from ringlog.questdb.retention import Retention
from ringlog.questdb.taken import LaneRange
from ringlog.records import LatencySample
from ringlog.settings import Settings
from ringlog.spans import Span

DAY = 86_400_000_000
HOUR = DAY // 24


@pytest.fixture
def now(execute: Execute) -> int:
    """The server's clock, on a day that does not end while the test counts days from it."""
    return now_before_midnight(execute)


@pytest.fixture
def host(settings: Settings, tmp_path: Path, execute: Execute, empty: None) -> Callable[[str], Settings]:
    """`host(name)`: an instance of its own, all on one server whose tables are empty and where retention never ran."""
    for table in ("retention_audit", "retention_lanes"):
        execute(f"TRUNCATE TABLE {table}")
        wait_applied(execute, table)
    hour = (execute("SELECT now()::long")[0][0] // HOUR + 12) % 24

    def made(name: str) -> Settings:
        path = tmp_path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return msgspec.structs.replace(settings, runtime_dir=str(path), lane_linger_ms=50, retention_hour=hour)

    return made


def deliver(settings: Settings, timestamps: list[int]) -> str:
    """Appends a latency at each time through one lane, waits until all are stored and the lane is gone; its name."""
    with writing(settings):
        with Producer([LatencySample], settings=settings) as producer:
            appender = producer.appender(LatencySample)
            assert all(appender.append("s", "o", 1.0, timestamp=timestamp) for timestamp in timestamps)
            lane = appender.lane
        eventually(lambda: not cards(Instance(settings)), "the lane to be removed")
        eventually(lambda: not prove(settings).tables["latencies"].spooled, "the spool to be empty")
    assert lane is not None
    assert prove(settings).is_exact
    return f"{lane:016x}"


def command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ringlog", *arguments],
        env={**Child.environment(settings), **settings.to_environment()},
        capture_output=True,
        text=True,
        check=False,
    )


def lost(report: Report) -> list[tuple[str, int, int, int]]:
    assert report.unproved == []
    assert {(each.kind, each.place) for each in report.differences} <= {(Kind.LOST, Place.QUESTDB)}
    return [(each.lane, each.first_seq, each.last_seq, each.rows) for each in report.differences]


def gone(report: Report) -> list[tuple[str, int, int]]:
    return [(each.lane, each.first_seq, each.last_seq) for each in report.taken_by_retention]


def drop_by_hand(execute: Execute, day_us: int, rows_left: int) -> None:
    execute(
        f"ALTER TABLE latencies DROP PARTITION WHERE timestamp >= cast({day_us // DAY * DAY} as timestamp) "
        f"AND timestamp < cast({day_us // DAY * DAY + DAY} as timestamp)"
    )
    eventually(lambda: execute("SELECT count() FROM latencies") == [(rows_left,)], "the partition to go")


def test_finding_14_a_back_dated_record(host: Callable[[str], Settings], now: int) -> None:
    """A record amid its lane that is 32 days old goes with `retention run`: `audit` exits 0 and names it."""
    own = host("a")
    lane = deliver(own, [now, now - 32 * DAY, now + 1])
    ran = command(own, "retention", "run", "--json")
    assert ran.returncode == 0, ran.stderr
    audited = command(own, "audit")
    assert audited.returncode == 0, audited.stdout
    assert "1 accepted record is not in QuestDB: 1 taken by retention" in audited.stdout
    assert f"taken by retention: table=latencies lane={lane} seq=1-1 rows=1" in audited.stdout
    report = prove(own)
    assert (report.tables["latencies"].stored, report.tables["latencies"].taken_by_retention) == (2, 1)
    # What comes later than the cut expires at the writer, and is told apart.
    with Retention(own) as retention:
        cuts = type("Cuts", (), {"by_table": retention.expiry_cuts(), "close": lambda self: None})()
    with writing(own, cuts=cuts):
        with Producer([LatencySample], settings=own) as producer:
            assert producer.appender(LatencySample).append("s", "o", 1.0, timestamp=now - 32 * DAY)
        eventually(lambda: prove(own).tables["latencies"].expired == 1, "the record to expire")
    audited = command(own, "audit")
    assert audited.returncode == 0, audited.stdout
    assert "2 accepted records are not in QuestDB: 1 expired, 1 taken by retention" in audited.stdout


def test_finding_15_a_loss_of_another_host_does_not_hide(
    host: Callable[[str], Settings], execute: Execute, now: int
) -> None:
    """Retention takes rows of two hosts, somebody drops a day of one: that one's audit names each row, and exits 1."""
    first, second = host("a"), host("b")
    deliver(first, [now - 31 * DAY + number for number in range(50)] + [now])
    lane = deliver(second, [now - 31 * DAY, now - 20 * DAY, now - 20 * DAY + 1, now])
    assert command(host("cron"), "retention", "run").returncode == 0
    assert prove(first).is_exact
    assert gone(prove(second)) == [(lane, 0, 0)]
    drop_by_hand(execute, now - 20 * DAY, 2)
    assert prove(first).is_exact
    assert lost(prove(second)) == [(lane, 1, 2, 2)]
    audited = command(second, "audit")
    assert audited.returncode == 1
    assert f"lost in questdb: table=latencies lane={lane} seq=1-2 rows=2" in audited.stdout
    assert "dropped a partition" in audited.stdout


def test_finding_15_a_row_that_was_lost_before_retention_came(host: Callable[[str], Settings], now: int) -> None:
    """One row of a partition is not there when retention counts and takes the others: it alone is lost."""
    own = host("a")
    lane = deliver(own, [now - 31 * DAY + number for number in range(10)])
    directory = Directory.open(own.spool_path)
    ledger = Ledger(directory, Reserve(directory, 4096), boot_id())
    ledger.record(Term.CONFIRMED, "latencies", [Span(7, 0, 3)])
    ledger.close_lane("latencies", 7, 3)
    ledger.close()
    connection = Connection.from_settings(own)
    columns = "(timestamp, lane, seq, service, operation, latency_us)"
    for seq in (0, 2):
        connection.execute(
            f"INSERT INTO latencies {columns} VALUES ({now - 31 * DAY + 100 + seq}, 7, {seq}, 's', 'o', 1)"
        )
    wait_applied(connection.execute, "latencies")
    connection.execute(f"INSERT INTO latencies {columns} VALUES ({now}, 8, 0, 's', 'o', 1)")
    wait_applied(connection.execute, "latencies")
    connection.close()
    with Retention(own) as retention:
        assert not retention.run().failed
    report = prove(own)
    assert lost(report) == [(f"{7:016x}", 1, 1, 1)]
    assert gone(report) == [(lane, 0, 9), (f"{7:016x}", 0, 0), (f"{7:016x}", 2, 2)]


def test_records_out_of_order_over_many_days(
    host: Callable[[str], Settings], execute: Execute, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane whose records lie over forty days at random: exactly the old ones are excused, with few ranges too, and a
    loss among them is told by its number where nobody can say which it was."""
    own = host("a")
    days = random.Random(14)  # noqa: S311
    stamps = [now - days.randrange(20, 60) * DAY + number for number in range(400)]
    stamps.append(now)
    lane = deliver(own, stamps)
    old = [seq for seq, stamp in enumerate(stamps) if stamp // DAY < now // DAY - 30]
    for ranges_max, parts_max in ((1_000, 10_000), (3, 10_000), (1_000, 0)):
        monkeypatch.setattr(taken, "RANGES_MAX", ranges_max)
        monkeypatch.setattr(taken, "EXACT_PARTS_MAX", parts_max)
        connection = Connection.from_settings(own)
        counted = taken.count(connection, "latencies", (now // DAY - 30) * DAY)
        connection.close()
        assert sum(each.range.rows for each in counted) == len(old)
        assert all(each.range.is_exact for each in counted) == (ranges_max == 1_000 and parts_max > 0)
    with Retention(own) as retention:  # with the counts of the last turn, by wide ranges alone
        assert not retention.run(all_days=True).failed
    report = prove(own)
    assert report.is_exact, report.differences
    assert report.tables["latencies"].taken_by_retention == len(old)
    dropped = sum(stamp // DAY == now // DAY - 25 for stamp in stamps)
    drop_by_hand(execute, now - 25 * DAY, len(stamps) - len(old) - dropped)
    assert [(each[0], each[3]) for each in lost(prove(own))] == [(lane, dropped)]


def run_killed_after(method: str, settings: Settings) -> None:
    """`retention run` in a process of its own, killed (-9) as soon as `Retention.<method>` has returned."""
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
    environment = {**os.environ, **Child.environment(settings), **settings.to_environment()}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize("method", ["_counted", "_audit", "_remove"])
def test_a_run_that_is_killed(host: Callable[[str], Settings], execute: Execute, now: int, method: str) -> None:
    """Killed after the count, after the plan or after the cut: the audit is right before the next run and after it,
    and a day that the dead run planned and somebody else dropped is not excused twice."""
    own = host("a")
    lane = deliver(own, [now, now - 31 * DAY, now - 31 * DAY + 1, now + 1])
    run_killed_after(method, own)
    for table in ("retention_audit", "retention_lanes"):
        wait_applied(execute, table)
    report = prove(own)
    assert report.is_exact, report.differences
    is_gone = execute("SELECT count() FROM latencies") == [(2,)]
    assert is_gone == (method == "_remove")
    assert gone(report) == ([(lane, 1, 2)] if is_gone else [])
    with Retention(own) as retention:
        assert not retention.run().failed
    report = prove(own)
    assert report.is_exact, report.differences
    assert gone(report) == [(lane, 1, 2)]


def test_a_late_record_brings_a_day_back(
    host: Callable[[str], Settings], execute: Execute, insert: Any, now: int
) -> None:
    """A record that is stored in a day which a killed run has cut does not pass for that day: what went is excused."""
    own = host("a")
    lane = deliver(own, [now, now - 31 * DAY, now - 31 * DAY + 1])
    run_killed_after("_remove", own)
    insert("latencies", [{"timestamp": now - 31 * DAY + 9, "service": "s", "operation": "o", "latency_us": 1.0}])
    assert gone(prove(own)) == [(lane, 1, 2)]
    with Retention(own) as retention:
        assert not retention.run().failed
    wait_applied(execute, "retention_audit")
    assert gone(prove(own)) == [(lane, 1, 2)]
    assert execute("SELECT count() FROM latencies") == [(1,)]


def test_a_server_that_was_not_migrated(host: Callable[[str], Settings], execute: Execute, now: int) -> None:
    """A run makes the table that it counts into where `ringlog migrate` has not run since it was new."""
    own = host("a")
    execute("DROP TABLE retention_lanes")
    lane = deliver(own, [now, now - 31 * DAY])
    planned = command(own, "retention", "run", "--dry-run", "--json")
    assert planned.returncode == 0
    assert execute("SELECT count() FROM tables() WHERE table_name = 'retention_lanes'") == [(0,)]
    report = json.loads(command(own, "retention", "run", "--json").stdout)
    assert {table["outcome"] for table in report["tables"]} == {"executed"}
    assert gone(prove(own)) == [(lane, 1, 1)]


def test_ranges_are_joined_over_the_smallest_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many holes a lane has on a day, few ranges are kept of it, and their rows stay exact."""
    monkeypatch.setattr(taken, "RANGES_MAX", 2)
    ranges = [LaneRange(1, 0, 9, 10), LaneRange(1, 10, 19, 10), LaneRange(1, 22, 22, 1), LaneRange(1, 90, 99, 10)]
    assert taken._few(ranges) == [LaneRange(1, 0, 22, 21), LaneRange(1, 90, 99, 10)]
    assert taken.day_of("1970-01-03") == taken.day_of("1970-01-03T120000-000001") == 2 * DAY
