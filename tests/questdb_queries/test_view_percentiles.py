"""Latency percentiles against exact ones: through the view, its edges, and everything that can be wrong with it."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from platform_rows import Execute, Insert, is_fresh, wait_applied, wait_until

from ringlog.questdb import aggregates
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate, script
from ringlog.questdb.percentiles import nearest_rank
from ringlog.questdb.queries import Queries
from ringlog.questdb.rollups import REFRESH_US, ROLLUPS
from ringlog.questdb.statements import Plan, Statement
from ringlog.records import LatencySample, layout_of
from ringlog.settings import Settings
from ringlog.times import Bounds, Point

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
    create = (script("latency_minutes") or "").replace("REFRESH EVERY 1m", "REFRESH MANUAL DEFERRED")
    execute(create)
    insert("latencies", rows, views=False)
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "raw"
    execute("REFRESH MATERIALIZED VIEW latency_minutes INCREMENTAL")
    wait_applied(execute, "latencies")
    assert check(queries, rows, BASE, BASE + 200 * MINUTE) == "view"


@pytest.mark.usefixtures("empty")
def test_only_what_a_view_lacks_is_read_raw(insert: Insert, execute: Execute) -> None:
    """Rows that came late into an old minute, and are in no view yet: that minute alone is read from raw rows."""
    rows = samples(300, seed=8)
    insert("latencies", rows)
    late = {"timestamp": BASE + 100 * MINUTE, "service": "s0", "operation": "o", "latency_us": 7.0}
    insert("latencies", [late], views=False)
    window = Bounds(Point(BASE), Point(BASE + 180 * MINUTE))
    spans = []

    def answered(step: Statement) -> list[Any]:
        found = execute(step.sql, step.parameters)
        if "FROM latencies WHERE" in step.sql and "_minutes" not in step.sql and "_hours" not in step.sql:
            spans.append(step.parameters[:2])
        return found

    result = run(aggregates.latency_percentiles(None, "o", (50.0,), window, time.monotonic() + 30), answered)
    assert sum(row.samples for row in result) == len(rows) + 1
    edges = BASE % MINUTE
    minute = (BASE - edges + 100 * MINUTE, BASE - edges + 101 * MINUTE)
    assert sorted(spans) == sorted(
        [(BASE, BASE - edges + MINUTE), minute, (BASE - edges + 180 * MINUTE, BASE + 180 * MINUTE)]
    )


@pytest.mark.usefixtures("empty")
def test_rows_of_the_latest_minutes(queries: Queries, insert: Insert, execute: Execute) -> None:
    """Up to now: what the next refresh will take in is in the answer before it, and counts as no lack of the view."""
    ((now,),) = execute("SELECT now()::long")
    rows = [
        {"timestamp": now - age, "service": "s", "operation": "o", "latency_us": 5.0}
        for age in (*range(0, 60 * SECOND, SECOND), *range(4 * MINUTE, 200 * MINUTE, MINUTE))
    ]
    insert("latencies", rows[60:])
    insert("latencies", rows[:60], views=False)
    result = queries.get_latency_percentiles("s", "o", 4 * 3_600, percentiles=(50.0,))
    assert [row.samples for row in result] == [len(rows)]
    assert result.source == "view"


@pytest.mark.usefixtures("empty", "restored_view")
@pytest.mark.parametrize("view", ["latency_minutes", "latency_hours"])
def test_view_that_is_emptied_while_it_is_read(insert: Insert, execute: Execute, view: str) -> None:
    """REFRESH ... FULL empties a view: what is read of it then is not believed; raw rows or the finer one answer."""
    rows = samples(300, seed=6)
    insert("latencies", rows)
    window = Bounds(Point(BASE), Point(BASE + 200 * MINUTE))
    emptied = False

    def answered(step: Statement) -> list[Any]:
        nonlocal emptied, hit
        if f"FROM {view} WHERE" not in step.sql or hit:
            return execute(step.sql, step.parameters)
        hit = True
        execute(f"REFRESH MATERIALIZED VIEW {view} FULL")
        wait_until(lambda: is_emptied(execute, view) or is_settled(execute), "the view to be emptied")
        found = execute(step.sql, step.parameters)
        emptied = emptied or not [row for row in found if row[0] == 2]
        return found

    for _ in range(50):
        wait_until(lambda: is_settled(execute), "the views")
        hit = False
        result = run(aggregates.latency_percentiles(None, "o", (50.0,), window, time.monotonic() + 30), answered)
        assert sum(row.samples for row in result) == len(rows)
        if emptied:  # else it was read before or after that
            return
    pytest.fail("the view was never seen emptied: the test proves nothing")


def run(plan: Plan[Any], answered: Callable[[Statement], list[Any]]) -> Any:
    """What a plan returns whose statements `answered` answers."""
    try:
        step = next(plan)
        while True:
            step = plan.send(answered(step))
    except StopIteration as stop:
        return stop.value


def is_emptied(execute: Execute, view: str) -> bool:
    return bool(execute(f"SELECT count() FROM {view}") == [(0,)])


def is_settled(execute: Execute) -> bool:
    """Whether every view is valid and has all its rows applied; one over a view that was filled anew is made valid."""
    for view, state in execute("SELECT view_name, view_status FROM materialized_views()"):
        if state == "invalid":
            execute(f"REFRESH MATERIALIZED VIEW {view} FULL")
            return False
    return all(is_fresh(execute, rollup.view) for rollup in ROLLUPS)


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


@pytest.mark.usefixtures("empty", "restored_view")
def test_migration_beside_writes(insert: Insert, execute: Execute, settings: Settings) -> None:
    """A view is made while rows come all the time: the migration waits for those that were there before it only.

    Several times, for rows that come between the view's filling and the first look at it are but now and then.
    """
    is_over = threading.Event()

    def written() -> None:
        connection = Connection.from_settings(settings)
        for seq in itertools.count():
            if is_over.is_set():
                connection.close()
                return
            connection.execute("INSERT INTO latencies VALUES (now(), 9, %s, 's', 'o', 1.0)", (seq,))

    insert("latencies", samples(100, seed=9))
    problems = []
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(written)
        try:
            for _ in range(5):
                execute("DROP MATERIALIZED VIEW latency_minutes")
                migrations = threads.submit(migrate, settings, [layout_of(LatencySample)]).result(40)
                problems += [migration.problem for migration in migrations if migration.problem]
        finally:
            is_over.set()
    writing.result()
    assert problems == []


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
def test_the_server_refreshes_by_itself(insert: Insert, execute: Execute) -> None:
    """Nobody asks for it: within two refreshes rows are in the minutes, and within two more in the hours."""
    insert("latencies", samples(100, seed=10), views=False)
    for view in ("latency_minutes", "latency_hours"):
        taken = f"SELECT sum(samples) FROM {view}"
        wait_until(lambda taken=taken: execute(taken) == [(100,)], f"the refresh of {view}", 2.2 * REFRESH_US / 1e6)


def test_views_follow_the_connection(settings: Settings) -> None:
    """The status that the queries rely on has the columns that this server gives."""
    connection = Connection.from_settings(settings)
    rows = connection.execute("SELECT view_status, refresh_base_table_txn FROM materialized_views()")
    connection.close()
    assert len(rows) == 4
