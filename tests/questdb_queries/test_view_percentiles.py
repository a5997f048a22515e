"""Latency percentiles against exact ones: through the view, its edges, and everything that can be wrong with it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from platform_rows import Execute, Insert, wait_applied, wait_until

from ringlog.questdb import aggregates
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate, script
from ringlog.questdb.percentiles import nearest_rank
from ringlog.questdb.queries import Queries
from ringlog.questdb.statements import Pause
from ringlog.records import LatencySample, layout_of
from ringlog.settings import Settings

BASE = 1_760_000_017_000_000
SECOND, MINUTE = 1_000_000, 60_000_000
ASKED = (0.1, 25.0, 50.0, 95.0, 99.0, 99.9, 100.0)


def samples(count: int, seed: int) -> list[dict[str, Any]]:
    """Latencies over three hours, of two services: log-normal, some zero, some negative."""
    dice = random.Random(seed)  # noqa: S311 - a seeded sample
    rows = []
    for _ in range(count):
        kind = dice.random()
        value = 0.0 if kind < 0.03 else dice.lognormvariate(6, 2) * (-1 if kind < 0.1 else 1)
        timestamp = BASE + dice.randrange(3 * 60 * MINUTE)
        rows.append({"timestamp": timestamp, "service": f"s{dice.randrange(2)}", "operation": "o", "latency_us": value})
    return rows


def check(queries: Queries, rows: list[dict[str, Any]], start: int, end: int) -> str:
    """Compares the answer for a span with the exact percentiles of `rows`; returns where the answer came from."""
    result = queries.get_latency_percentiles(None, "o", (end - start) / SECOND, percentiles=ASKED, end=end)
    assert not result.partial
    found = {(row.service, row.percentile): row for row in result}
    for service in ("s0", "s1"):
        exact = sorted(
            row["latency_us"] for row in rows if row["service"] == service and start <= row["timestamp"] < end
        )
        for percentile in ASKED:
            row = found.pop((service, percentile), None)
            if not exact:
                assert row is None
                continue
            assert row is not None
            assert row.samples == len(exact)
            wanted = exact[nearest_rank(percentile, len(exact)) - 1]
            assert abs(row.latency_us - wanted) <= 0.01 * abs(wanted)
    assert not found
    return result.source


@pytest.fixture
def restored_view(execute: Execute, settings: Settings) -> Iterator[None]:
    """Puts the view back as the migration makes it."""
    yield
    execute("DROP MATERIALIZED VIEW IF EXISTS latency_minutes")
    wait_until(lambda: not execute("SELECT * FROM tables() WHERE table_name = 'latency_minutes'"), "the view to go")
    assert not any(migration.problem for migration in migrate(settings, [layout_of(LatencySample)]))
    wait_applied(execute, "latencies")


@pytest.mark.usefixtures("empty")
def test_against_exact_percentiles(queries: Queries, insert: Insert) -> None:
    """For any span, whole minutes from the view and raw edges add up to the exact count and within 1 %."""
    rows = samples(3_000, seed=1)
    insert("latencies", rows)
    span = 3 * 60 * MINUTE

    @hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(min_value=-MINUTE, max_value=span), st.integers(min_value=1, max_value=span + MINUTE))
    def any_span(offset: int, length: int) -> None:
        source = check(queries, rows, BASE + offset, BASE + offset + length)
        assert source == "view"

    any_span()
    for offset, length in ((0, MINUTE), (-(BASE % MINUTE), MINUTE), (-(BASE % MINUTE), 10 * MINUTE), (5, 10)):
        check(queries, rows, BASE + offset, BASE + offset + length)


@pytest.mark.usefixtures("empty")
def test_late_and_resent_rows(queries: Queries, insert: Insert) -> None:
    """Rows that come late into old minutes are counted, and rows sent twice are counted once."""
    rows = samples(300, seed=2)
    for number, row in enumerate(rows):
        row |= {"lane": 5, "seq": number}
    insert("latencies", rows[100:])
    insert("latencies", rows[:200])
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "view"


@pytest.mark.usefixtures("empty", "restored_view")
def test_view_that_lags(queries: Queries, insert: Insert, execute: Execute) -> None:
    """What the view has not taken in yet is not missing from the answer; once it has, the view answers again."""
    rows = samples(200, seed=3)
    execute("DROP MATERIALIZED VIEW latency_minutes")
    create = (script("latency_minutes") or "").replace("REFRESH IMMEDIATE", "REFRESH MANUAL DEFERRED")
    execute(create)
    insert("latencies", rows, views=False)
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "raw"
    execute("REFRESH MATERIALIZED VIEW latency_minutes INCREMENTAL")
    wait_applied(execute, "latencies")
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "view"


@pytest.mark.usefixtures("empty", "restored_view")
@pytest.mark.parametrize("view", ["latency_minutes", "latency_hours"])
def test_view_that_is_emptied_while_it_is_read(insert: Insert, execute: Execute, view: str) -> None:
    """REFRESH ... FULL empties a view after it was found fresh: what was read then is not believed, and read again."""
    rows = samples(300, seed=6)
    insert("latencies", rows)
    window = aggregates.Window(200 * MINUTE, BASE + 200 * MINUTE)
    emptied = False
    for _ in range(50):
        wait_until(lambda: is_settled(execute), "the views")
        plan = aggregates.latency_percentiles(None, "o", (50.0,), window, time.monotonic() + 30)
        hit = False
        try:
            step = next(plan)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = plan.send([])
                    continue
                if f"FROM {view} WHERE" in step.sql and not hit:
                    execute(f"REFRESH MATERIALIZED VIEW {view} FULL")
                    hit = True
                    wait_until(lambda: is_emptied(execute, view) or is_settled(execute), "the view to be emptied")
                    found = execute(step.sql, step.parameters)
                    emptied = emptied or not found
                else:
                    found = execute(step.sql, step.parameters)
                step = plan.send(found)
        except StopIteration as stop:
            result = stop.value
        assert sum(row.samples for row in result) == len(rows)
        if emptied:  # else it was read before or after that, or was not used: it was behind its table again
            return
    pytest.fail("the view was never seen emptied: the test proves nothing")


def is_emptied(execute: Execute, view: str) -> bool:
    return bool(execute(f"SELECT count() FROM {view}") == [(0,)])


def is_settled(execute: Execute) -> bool:
    """Whether every view is valid and has all its rows applied; one over a view that was filled anew is made valid."""
    states = execute("SELECT view_name, view_status, refresh_base_table_txn, base_table_txn FROM materialized_views()")
    for view, state, _, _ in states:
        if state == "invalid":
            execute(f"REFRESH MATERIALIZED VIEW {view} FULL")
    if not all(state == "valid" and seen >= base for _, state, seen, base in states):
        return False
    return execute("SELECT count() FROM wal_tables() WHERE writerTxn < sequencerTxn") == [(0,)]


@pytest.mark.usefixtures("empty", "restored_view")
def test_hours_without_their_view(queries: Queries, insert: Insert, execute: Execute, settings: Settings) -> None:
    """Without the view of hours the one of minutes answers for them, exactly; the migration brings it back."""
    rows = samples(300, seed=7)
    insert("latencies", rows)
    execute("DROP MATERIALIZED VIEW latency_hours")
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "view"
    assert not any(migration.problem for migration in migrate(settings, [layout_of(LatencySample)]))
    wait_applied(execute, "latencies")
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "view"


@pytest.mark.usefixtures("empty", "restored_view")
def test_view_that_is_invalid_or_missing(
    queries: Queries, insert: Insert, execute: Execute, caplog: pytest.LogCaptureFixture
) -> None:
    """An invalid view, and a missing one, are noticed, logged with what mends them, and raw rows answer."""
    rows = samples(200, seed=4)
    insert("latencies", rows)
    # The planted fault: dropping a partition of the base table stops the view for good.
    execute("INSERT INTO latencies (timestamp, lane, seq) VALUES (cast(%s as timestamp), 1, 1)", (BASE - 10**12,))
    wait_applied(execute, "latencies")
    execute("ALTER TABLE latencies DROP PARTITION WHERE timestamp < cast(%s as timestamp)", (BASE - 10**11,))
    status = "SELECT view_status FROM materialized_views() WHERE view_name = 'latency_minutes'"
    wait_until(lambda: execute(status) == [("invalid",)], "the view to become invalid")
    with caplog.at_level(logging.WARNING):
        assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "raw"
    assert "FULL" in caplog.text
    execute("DROP MATERIALIZED VIEW latency_minutes")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "raw"
    assert "ringlog migrate" in caplog.text


@pytest.mark.usefixtures("empty", "restored_view")
def test_migration_mends_and_checks_views(insert: Insert, execute: Execute, settings: Settings) -> None:
    """The migration makes an invalid view valid, and reports a view of that name that asks something else."""
    layout = layout_of(LatencySample)
    day = 86_400 * SECOND
    insert(
        "latencies",
        [{"timestamp": BASE + i * day, "service": "s", "operation": "o", "latency_us": 1.0} for i in (0, 5)],
    )
    execute("ALTER TABLE latencies DROP PARTITION WHERE timestamp < cast(%s as timestamp)", (BASE + day,))
    status = "SELECT view_status FROM materialized_views() WHERE view_name = 'latency_minutes'"
    wait_until(lambda: execute(status) == [("invalid",)], "the view to become invalid")
    checked = {m.name: m.statements for m in migrate(settings, [layout], check=True)}
    assert checked["latency_minutes"] == ["REFRESH MATERIALIZED VIEW latency_minutes FULL"]
    migrate(settings, [layout])
    wait_until(lambda: execute(status) == [("valid",)], "the view to become valid")
    assert not any(m.statements for m in migrate(settings, [layout], check=True))
    execute("DROP MATERIALIZED VIEW latency_minutes")
    there = "SELECT view_name FROM materialized_views() WHERE view_name = 'latency_minutes'"
    wait_until(lambda: not execute(there), "the view to go")
    execute("CREATE MATERIALIZED VIEW latency_minutes AS (SELECT timestamp, count() c FROM latencies SAMPLE BY 1m)")
    problem = {m.name: m.problem for m in migrate(settings, [layout])}["latency_minutes"]
    assert "DROP MATERIALIZED VIEW latency_minutes" in problem


def test_views_follow_the_connection(settings: Settings) -> None:
    """The status that the queries rely on has the columns that this server gives."""
    connection = Connection.from_settings(settings)
    rows = connection.execute("SELECT view_status, refresh_base_table_txn FROM materialized_views()")
    connection.close()
    assert len(rows) == 4
