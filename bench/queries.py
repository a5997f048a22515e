"""A day of 100 million latencies and 10 million trades: how long the typed queries take, and how exact they are.

Twice: on a server that nobody writes to, over the day that it was filled with; and while a producer and the writer put
1,000 rows/s into each of the four tables, over the 24 hours up to now, as an operator asks. All but the trades are to
be answered from the views: a quiet pass in which one is not is a benchmark of the fallback, and ends with an error.
Where a view comes after its table's writes too slowly, raw rows answer: how often has a bar of its own.

    python -m bench.queries [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from bench.figures import Figure, Result, interleaved, main, median_ratio, percentiles
from bench.load import REACHED, Flow
from bench.producers import Load, producing
from bench.query_data import DAY_US, OPERATIONS, SERVICES, TRADERS, fill, refresh
from bench.stack import instance, lanes, server, wait_for
from ringlog.questdb.connection import Connection
from ringlog.questdb.percentiles import nearest_rank
from ringlog.questdb.queries import Queries
from ringlog.questdb.rollups import ROLLUPS
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROWS = {"latencies": 100_000_000, "trades": 10_000_000, "mev_metrics": 10_000_000, "performance_metrics": 10_000_000}
TINY_DIVISOR = 1_000
CALLS = 300
RAW_CALLS = 10
ASKED = (50.0, 95.0, 99.0)
DAY_S = DAY_US // 1_000_000
LIVE_RATE = 1_000  # rows/s into each table
LIVE_PAIR = ("executor", "quote")  # what live latencies are of
SETTLED_US = 1_000_000
TRIES = 20  # until an answer comes from the view, whose error is wanted


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    calls, raw_calls = (5, 2) if tiny else (CALLS, RAW_CALLS)
    with server(running) as questdb, contextlib.ExitStack() as stack:
        settings = Settings(**questdb.settings(), request_timeout_ms=60_000, query_timeout_ms=30_000)
        connection = Connection.from_settings(settings)
        stack.callback(connection.close)
        end_us = time.time_ns() // 1_000
        for table, rows in ROWS.items():
            fill(connection.execute, table, rows // TINY_DIVISOR if tiny else rows, end_us)
        for rollup in ROLLUPS:
            refresh(connection.execute, rollup.view)
        stored = {table: connection.execute(f"SELECT count() FROM {table}")[0][0] for table in ROWS}
        queries = stack.enter_context(Queries(settings))
        figures = Pass(queries, settings, end_us).figures(calls, raw_calls, "")
        with writing(questdb) as flow:
            wait_for(lambda: settled_us(connection), "rows of the live pair")
            flow.begin()
            figures += Pass(queries, settings, None).figures(calls, raw_calls, ", rows written beside")
            reached = flow.reached()
        written, tables = reached.written_per_second, len(ROWS)
        figures.append(
            Figure(name="written beside", value=written, unit="rows/s", at_least=REACHED * tables * LIVE_RATE)
        )
        figures.append(Figure(name="refused beside", value=reached.refused, unit="rows", at_most=0))
    return Result(
        benchmark="queries",
        what=f"typed queries over 24 hours of {stored['latencies']:,} latencies and {stored['trades']:,} trades",
        figures=figures,
        details={"rows": stored, "calls": calls, "written": reached.written, "seconds": reached.seconds},
    )


@contextlib.contextmanager
def writing(questdb: QuestDBServer) -> Iterator[Flow]:
    """LIVE_RATE rows/s into each of the tables while the body runs: by a producer, its lanes and the writer."""
    with (
        instance(questdb) as settings,
        tempfile.TemporaryDirectory(prefix="ringlog-bench-") as directory,
        producing(settings, directory, Load(len(ROWS) * LIVE_RATE, producers=1, types=len(ROWS))),
        contextlib.ExitStack() as held,
    ):
        yield Flow(lanes(settings, held))


def settled_us(connection: Connection) -> int:
    """A second ago, by when all is written, once latencies of the live pair are older than that; 0 before."""
    end_us = time.time_ns() // 1_000 - SETTLED_US
    found = connection.execute(
        "SELECT count() FROM latencies WHERE service = %s AND operation = %s AND timestamp < cast(%s as timestamp)",
        (*LIVE_PAIR, end_us),
    )
    return end_us if found[0][0] else 0


class Pass:
    """The queries of one pass: over the day before `end_us`, or up to now (None) while rows are written."""

    def __init__(self, queries: Queries, settings: Settings, end_us: int | None) -> None:
        # A connection of its own, opened when it is first used: QuestDB closes one that was idle for five minutes.
        self._queries, self._connection, self._end_us = queries, Connection.from_settings(settings), end_us
        self._sources: Counter[tuple[str, str]] = Counter()

    def _made(self, name: str, result: Any) -> None:
        """Makes the rows, and counts where they came from."""
        result.rows()
        self._sources[name, result.source] += 1
        if self._end_us:
            check_from_view(result)

    def percentiles(self, number: int) -> None:
        service, operation = pair(number)
        found = self._queries.get_latency_percentiles(service, operation, DAY_S, percentiles=ASKED, end=self._end_us)
        self._made("percentiles", found)

    def trades(self, number: int) -> None:
        self._queries.get_trades(trader_id=f"trader-{number % TRADERS}", limit=1_000).rows()

    def mev(self, _: int) -> None:
        self._made("MEV analysis", self._queries.get_mev_analysis(DAY_S, end=self._end_us))

    def metrics(self, _: int) -> None:
        found = self._queries.get_performance_metrics("latency", DAY_S, end=self._end_us)
        self._made("performance metrics", found)

    def approx_percentile(self, number: int) -> None:
        """One percentile by the server's own approximation over the raw rows: the least that could replace the view."""
        end_us = self._end_us or time.time_ns() // 1_000
        self._connection.execute(
            "SELECT approx_percentile(latency_us, 0.99, 3) FROM latencies WHERE timestamp >= cast(%s as timestamp) "
            "AND timestamp < cast(%s as timestamp) AND service = %s AND operation = %s",
            (end_us - DAY_US, end_us, *pair(number)),
        )

    def errors(self) -> list[float]:
        """Of some pairs' percentiles; rows that are written are among them where there are any."""
        if self._end_us:
            return relative_errors(self._queries, self._connection, self._end_us, [pair(0), pair(7)])
        return relative_errors(self._queries, self._connection, settled_us(self._connection), [pair(0), LIVE_PAIR])

    def figures(self, calls: int, raw_calls: int, beside: str) -> list[Figure]:
        with contextlib.closing(self._connection):
            return self._figures(calls, raw_calls, beside)

    def _figures(self, calls: int, raw_calls: int, beside: str) -> list[Figure]:
        took = {
            "percentiles, 24 h": (timed(self.percentiles, calls), 50),
            "last 1,000 trades of a trader": (timed(self.trades, calls), 50),
            "MEV analysis, 24 h": (timed(self.mev, calls), 100),
            "performance metrics, 24 h": (timed(self.metrics, calls), 100),
        }
        numbers = iter(range(2 * raw_calls))  # the one and the other ask for the same pair
        contenders = {
            "view": lambda: timed(lambda _: self.percentiles(next(numbers) // 2), 1, warm=0)[0],
            "raw": lambda: timed(lambda _: self.approx_percentile(next(numbers) // 2), 1, warm=0)[0],
        }
        in_turn = interleaved(contenders, raw_calls)
        ratio, error = median_ratio(in_turn, "raw", "view"), max(self.errors()) * 100
        figures = [
            Figure(
                name=f"{name}, {at}{beside}",
                value=percentiles(seconds)[at] * 1e3,
                unit="ms",
                at_most=at_most if at == "p99" else None,
            )
            for at in ("p99", "p50")
            for name, (seconds, at_most) in took.items()
        ]
        for name in dict.fromkeys(name for name, _ in self._sources):
            of = {source: count for (of, source), count in self._sources.items() if of == name}
            part = 100 * of.get("view", 0) / sum(of.values())
            figures.append(Figure(name=f"{name}, answered from the view{beside}", value=part, unit="%", at_least=100))
        return [
            *figures,
            Figure(
                name=f"percentiles, times faster than approx_percentile{beside}", value=ratio, unit="x", at_least=10
            ),
            Figure(name=f"percentiles, largest relative error{beside}", value=error, unit="%", at_most=1),
            Figure(
                name=f"approx_percentile over raw rows, p50{beside}",
                value=statistics.median(in_turn["raw"]) * 1e3,
                unit="ms",
            ),
        ]


def check_from_view(result: Any) -> None:
    """Raises RuntimeError where the result's rows did not come from the view, or not all came."""
    if result.source != "view" or result.partial:
        raise RuntimeError(f"got source {result.source!r}, partial {result.partial}, wanted all of it from 'view'")


def pair(number: int) -> tuple[str, str]:
    return f"service-{number % SERVICES}", f"operation-{number // SERVICES % OPERATIONS}"


def timed(call: Callable[[int], None], calls: int, warm: int = 2) -> list[float]:
    """Seconds of each of `calls` calls, after some that are not counted."""
    seconds = []
    for number in range(-warm, calls):
        began = time.perf_counter()
        call(abs(number))
        if number >= 0:
            seconds.append(time.perf_counter() - began)
    return seconds


def relative_errors(queries: Queries, connection: Connection, end_us: int, pairs: list[tuple[str, str]]) -> list[float]:
    """Of every asked percentile of these pairs, against the exact nearest rank among the sorted raw rows."""
    errors = []
    for of in pairs:
        for _ in range(TRIES):
            found = queries.get_latency_percentiles(*of, DAY_S, percentiles=ASKED, end=end_us)
            if found.source == "view":
                break
        check_from_view(found)
        for row in found:
            rank = nearest_rank(row.percentile, row.samples)
            exact = connection.execute(
                "SELECT latency_us FROM latencies WHERE timestamp >= cast(%s as timestamp) "
                "AND timestamp < cast(%s as timestamp) AND service = %s AND operation = %s "
                f"ORDER BY latency_us LIMIT {rank - 1}, {rank}",
                (end_us - DAY_US, end_us, *of),
            )[0][0]
            errors.append(abs(row.latency_us / exact - 1))
    return errors


if __name__ == "__main__":
    main(run)
