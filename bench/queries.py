"""A day of 100 million latencies and 10 million trades: how long the typed queries take, and how exact they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.figures import Figure, Result, main, percentiles
from bench.query_data import DAY_US, OPERATIONS, SERVICES, TRADERS, fill
from bench.stack import server
from ringlog.questdb.connection import Connection
from ringlog.questdb.percentiles import nearest_rank
from ringlog.questdb.queries import Queries
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROWS = {"latencies": 100_000_000, "trades": 10_000_000, "mev_metrics": 10_000_000, "performance_metrics": 10_000_000}
TINY_DIVISOR = 1_000
CALLS = 300
RAW_CALLS = 10
ASKED = (50.0, 95.0, 99.0)
DAY_S = DAY_US // 1_000_000


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    with server(running) as questdb:
        settings = Settings(**questdb.settings(), request_timeout_ms=60_000, query_timeout_ms=30_000)
        connection = Connection.from_settings(settings)
        end_us = time.time_ns() // 1_000
        for table, rows in ROWS.items():
            fill(connection.execute, table, rows // TINY_DIVISOR if tiny else rows, end_us)
        found = measure(settings, connection, end_us, 5 if tiny else CALLS, 2 if tiny else RAW_CALLS)
        connection.close()
        return found


def measure(settings: Settings, connection: Connection, end_us: int, calls: int, raw_calls: int) -> Result:
    """Measures on a server that holds the day before `end_us`."""
    with Queries(settings) as queries:

        def percentile_call(number: int) -> Any:
            service, operation = pair(number)
            return queries.get_latency_percentiles(service, operation, DAY_S, percentiles=ASKED, end=end_us).rows()

        view = timed(percentile_call, calls)
        raw = timed(lambda number: approx_percentile(connection, number, end_us), raw_calls)
        again = timed(percentile_call, raw_calls)
        trades = timed(
            lambda number: queries.get_trades(trader_id=f"trader-{number % TRADERS}", limit=1_000).rows(), calls
        )
        mev = timed(lambda _: queries.get_mev_analysis(DAY_S, end=end_us).rows(), calls)
        metrics = timed(lambda _: queries.get_performance_metrics("latency", DAY_S, end=end_us).rows(), calls)
        errors = relative_errors(queries, connection, end_us)
        sources = {
            queries.get_latency_percentiles("service-0", "operation-0", DAY_S, end=end_us).source,
            queries.get_mev_analysis(DAY_S, end=end_us).source,
            queries.get_performance_metrics("latency", DAY_S, end=end_us).source,
        }
    ratio = statistics.median(raw) / statistics.median([*view, *again])
    stored = {table: connection.execute(f"SELECT count() FROM {table}")[0][0] for table in ROWS}
    return Result(
        benchmark="queries",
        what=f"typed queries over 24 hours of {stored['latencies']:,} latencies and {stored['trades']:,} trades",
        figures=[
            Figure(name="percentiles, 24 h, p99", value=percentiles(view)["p99"] * 1e3, unit="ms", at_most=50),
            Figure(name="percentiles, times faster than approx_percentile", value=ratio, unit="x", at_least=10),
            Figure(name="percentiles, largest relative error", value=max(errors) * 100, unit="%", at_most=1),
            Figure(
                name="last 1,000 trades of a trader, p99", value=percentiles(trades)["p99"] * 1e3, unit="ms", at_most=50
            ),
            Figure(name="MEV analysis, 24 h, p99", value=percentiles(mev)["p99"] * 1e3, unit="ms", at_most=100),
            Figure(
                name="performance metrics, 24 h, p99", value=percentiles(metrics)["p99"] * 1e3, unit="ms", at_most=100
            ),
            Figure(name="percentiles, 24 h, p50", value=percentiles(view)["p50"] * 1e3, unit="ms"),
            Figure(name="approx_percentile over raw rows, p50", value=statistics.median(raw) * 1e3, unit="ms"),
            Figure(name="last 1,000 trades of a trader, p50", value=percentiles(trades)["p50"] * 1e3, unit="ms"),
            Figure(name="MEV analysis, 24 h, p50", value=percentiles(mev)["p50"] * 1e3, unit="ms"),
            Figure(name="performance metrics, 24 h, p50", value=percentiles(metrics)["p50"] * 1e3, unit="ms"),
        ],
        details={"rows": stored, "calls": calls, "sources": sorted(sources)},
    )


def pair(number: int) -> tuple[str, str]:
    return f"service-{number % SERVICES}", f"operation-{number // SERVICES % OPERATIONS}"


def timed(call: Callable[[int], Any], calls: int) -> list[float]:
    """Seconds of each of `calls` calls, after two that are not counted."""
    seconds = []
    for number in range(-2, calls):
        began = time.perf_counter()
        call(abs(number))
        if number >= 0:
            seconds.append(time.perf_counter() - began)
    return seconds


def approx_percentile(connection: Connection, number: int, end_us: int) -> Any:
    """One percentile by the server's own approximation over the raw rows: the least that could replace the view."""
    return connection.execute(
        "SELECT approx_percentile(latency_us, 0.99, 3) FROM latencies WHERE timestamp >= cast(%s as timestamp) "
        "AND timestamp < cast(%s as timestamp) AND service = %s AND operation = %s",
        (end_us - DAY_US, end_us, *pair(number)),
    )


def relative_errors(queries: Queries, connection: Connection, end_us: int) -> list[float]:
    """Of every asked percentile of two pairs, against the exact nearest rank among the sorted raw rows."""
    errors = []
    for number in (0, 7):
        for row in queries.get_latency_percentiles(*pair(number), DAY_S, percentiles=ASKED, end=end_us):
            rank = nearest_rank(row.percentile, row.samples)
            exact = connection.execute(
                "SELECT latency_us FROM latencies WHERE timestamp >= cast(%s as timestamp) "
                "AND timestamp < cast(%s as timestamp) AND service = %s AND operation = %s "
                f"ORDER BY latency_us LIMIT {rank - 1}, {rank}",
                (end_us - DAY_US, end_us, *pair(number)),
            )[0][0]
            errors.append(abs(row.latency_us / exact - 1))
    return errors


if __name__ == "__main__":
    main(run)
