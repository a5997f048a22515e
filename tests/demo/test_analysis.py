"""The correlation analyzer: what it joins, judged by an independent computation, and that it reads every table once."""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.analyzer
from ringlog.demo import analysis, plots
from ringlog.demo.failures import Failures
from ringlog.demo.page import write_report
from ringlog.demo.report import SessionReport
from ringlog.demo.warm_up import PREFIX, WRITES_MIN, warm_up
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.questdb.queries import Queries
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
FIRST_US = 1_785_000_000_000_000
QUADRATIC = re.compile(r"Filtered AsOf Join Fast", re.IGNORECASE)


@pytest.fixture(scope="module")
def server() -> Iterator[QuestDBServer]:
    with QuestDBServer() as questdb:
        migrate(
            Settings(**questdb.settings(), request_timeout_ms=60_000),
            [layout_of(record) for record in PLATFORM_RECORDS],
        )
        yield questdb


@pytest.fixture
def settings(server: QuestDBServer) -> Settings:
    return Settings(**server.settings(), request_timeout_ms=60_000)


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    with contextlib.closing(Connection.from_settings(settings)) as found:
        bench.analyzer.empty(found)
        yield found
        bench.analyzer.empty(found)


def session() -> SessionReport:
    return SessionReport(
        market="SOL/USDC", seconds=1.0, trades=0, records={}, traders=[], limits={}, rules={}, nodes={}, simulated=0,
        missed=0,
    )  # fmt: skip


def insert(connection: Connection, table: str, columns: str, rows: list[str]) -> None:
    values = ", ".join(f"({row})" for row in rows)
    connection.execute(f"INSERT INTO {table} (timestamp, lane, seq, {columns}) VALUES {values}")
    bench.analyzer.wait_applied(connection.execute, table)


def test_ages_are_joined_as_an_independent_computation_says(settings: Settings, connection: Connection) -> None:
    """Finding 26: each trade goes with the newest age at or before it of its own trader, the last appended of several
    in one microsecond; trades before any age, of traders without one, and other operations are left out."""
    chance = random.Random(26)  # noqa: S311
    services = ["scalper-0", "swing-0", "desk-0"]
    trades = [
        (chance.randrange(400), chance.choice([*services, "load-0"]), chance.randrange(1, 1000)) for _ in range(300)
    ]
    ages = [
        # Stamps of a small range: many share one, with each other and with trades. A gap in the middle, none early.
        (time if (time := chance.randrange(40, 400)) not in range(150, 250) else 150, chance.choice(services), number)
        for number in range(250)
    ]
    others = [(chance.randrange(400), chance.choice([*services, "load-0"]), "decide") for _ in range(300)]
    insert(
        connection,
        "trades",
        "trader_id, mode, action, actual_slippage",
        [
            f"cast({FIRST_US + time} as timestamp), 1, {seq}, '{trader}', 'paper', 'buy', {-slippage / 1e6}"
            for seq, (time, trader, slippage) in enumerate(trades)
        ],
    )
    insert(
        connection,
        "latencies",
        "service, operation, latency_us",
        [
            *(
                f"cast({FIRST_US + time} as timestamp), 2, {seq}, '{trader}', 'price_age', {number * 1000.0}"
                for seq, (time, trader, number) in enumerate(ages)
            ),
            *(
                f"cast({FIRST_US + time} as timestamp), 3, {seq}, '{trader}', '{operation}', 5.0"
                for seq, (time, trader, operation) in enumerate(others)
            ),
        ],
    )
    wanted = []
    for time, trader, slippage in trades:
        before = [(at, seq, age) for seq, (at, of, age) in enumerate(ages) if of == trader and at <= time]
        if before:
            wanted.append((float(max(before)[2]), slippage / 100))
    with Queries(settings) as queries:
        found = analysis.findings(queries)
    assert 100 < len(wanted) < len(trades)
    joined = zip(found.latency["age_ms"].tolist(), found.latency["slippage_bps"].round(6).tolist(), strict=True)
    assert sorted(joined) == sorted(wanted)


def test_no_statement_scans_back_row_by_row(connection: Connection) -> None:
    """Finding 26: neither a statement of the analyzer nor the recipe of docs/integrations.md is run as a filtered ASOF
    join, which is quadratic; the same recipe without its hint is, so that this would be seen."""
    (recipe,) = re.findall(r'SLIPPAGE_BY_LATENCY = """(.+?)"""', PAGE.read_text(), re.DOTALL)
    recipe = recipe.replace("%s", "'t1'")
    statements = [
        analysis.SLIPPAGES, analysis.PRICE_AGES, analysis.PROTECTION_AGAINST_LOSS, analysis.PRICES, analysis.PROFITS,
        analysis.OPERATIONS, analysis.THROUGHPUT, recipe,
    ]  # fmt: skip

    def plan(statement: str) -> str:
        return "\n".join(str(line) for (line,) in connection.execute(f"EXPLAIN {statement}"))

    for statement in statements:
        assert not QUADRATIC.search(plan(statement)), statement
    assert QUADRATIC.search(plan(re.sub(r"/\*.*?\*/", "", recipe)))


@pytest.mark.slow
def test_the_benchmark_of_the_analyzer_runs(server: QuestDBServer) -> None:
    """It fills, analyses and reports at three sizes, and holds the growth of a trade's cost against a bar."""
    result = bench.analyzer.run(tiny=True, running=server)
    assert result.benchmark == "analyzer"
    assert [figure.name for figure in result.figures if figure.at_most] == [
        "findings: cost of a trade, 10,000 trades ÷ 1,000"
    ]


def test_the_warm_up_leaves_a_warm_server_and_nothing_else(settings: Settings, connection: Connection) -> None:
    """Finding 27: the warm-up writes often enough for its last requests to take a fraction of its first, drops its
    tables, and puts no row into the platform's."""
    written = warm_up(settings)
    assert len(written) >= 2 * WRITES_MIN
    assert statistics.median(written[-20:]) < max(written[:4]) / 2
    assert not connection.execute(f"SELECT table_name FROM tables() WHERE table_name LIKE '{PREFIX}%'")
    for table in bench.analyzer.ROWS:
        assert connection.execute(f"SELECT count() FROM {table}") == [(0,)]


def test_without_matplotlib_there_is_a_report_without_plots(
    settings: Settings, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 26: plots that cannot be drawn are named with the way to get them; the page is written all the same."""
    monkeypatch.delitem(sys.modules, "ringlog.demo.plots")
    monkeypatch.delattr("ringlog.demo.plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report, failures = session(), Failures()
    bench.analyzer.empty(connection)
    write_report(settings, report, tmp_path, failures)
    (line,) = failures.lines
    assert line.startswith("plots: ")
    assert "matplotlib" in line
    assert 'pip install "ringlog[demo]"' in line
    assert report.report_png == ""
    assert "What goes with what" in Path(report.report_html).read_text()
    assert "<svg" not in Path(report.report_html).read_text()


def test_plots_draw_no_more_points_than_can_be_told_apart() -> None:
    """Finding 26: however many rows there are, a line has at most POINTS_MAX, the last row among them."""
    for rows in (0, 1, plots.POINTS_MAX, plots.POINTS_MAX + 1, 12 * plots.POINTS_MAX + 7):
        column, same = plots.thinned(list(range(rows)), list(range(rows)))
        assert column == same
        assert len(column) <= plots.POINTS_MAX
        assert column[-1:] == list(range(rows))[-1:]
