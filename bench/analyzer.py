"""What the demo's correlation analyzer costs a trade as its tables grow: 10,000, 100,000 and 1,000,000 trades.

Every table has as many rows as there are trades. Half of the trades are of a load that measured no price's age, and of
the latencies one in ten is such an age: an ASOF JOIN with a filtered right side would scan back over all of them.
`findings` is what reads and joins; the report is that, six plots as SVG and PNG, and the page.

    python -m bench.analyzer [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from bench.figures import Cell, Figure, Result, main
from bench.query_data import wait_applied
from bench.stack import server
from ringlog.demo.analysis import findings
from ringlog.demo.failures import Failures
from ringlog.demo.page import write_report
from ringlog.demo.report import SessionReport
from ringlog.questdb.connection import Connection
from ringlog.questdb.queries import Queries
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

SIZES = (10_000, 100_000, 1_000_000)
TINY_DIVISOR = 100
STATEMENT_SECONDS = 120.0
FIRST_US = 1_785_000_000_000_000
STEP_US = 100
# Rows of each table as expressions of `x`, the trade's number; each trade's own price age and MEV metric are beside it.
ROWS = {
    "trades": {
        "trader_id": "concat(case when x % 2 = 0 then 'scalper-' else 'load-' end, x % 8)",
        "mode": "'paper'",
        "action": "'buy'",
        "base_token": "'SOL'",
        "quote_token": "'USDC'",
        "base_amount": "x * 0.0001",
        "quote_amount": "x * 0.01",
        "executed_price": "150 + rnd_double()",
        "transaction_fee": "5000L",
        "expected_slippage": "0.001",
        "actual_slippage": "rnd_double() / 100",
        "mev_status": "'protected'",
        "mev_protected": "true",
        "metadata": "case when x % 500 = 0 then '{\"rule\":\"stop_loss\"}' else '{}' end",
    },
    "latencies": {
        "service": "case when x % 10 = 0 then concat('scalper-', x % 8) else 'executor' end",
        "operation": "case when x % 10 = 0 then 'price_age' else 'decide' end",
        "latency_us": "rnd_double() * 1000",
    },
    "positions": {
        "trader_id": "concat('scalper-', x % 4 * 2)",
        "mode": "'paper'",
        "token": "'SOL'",
        "quantity": "1.0",
        "average_entry_price": "150.0",
        "mark_price": "151.0",
        "realized_pnl": "rnd_double()",
        "unrealized_pnl": "rnd_double()",
    },
    "mev_metrics": {
        "token_pair": "'SOL/USDC'",
        "trade_size": "x * 0.0001",
        "sandwich_probability": "rnd_double()",
        "estimated_loss_bps": "rnd_double() * 80",
        "actual_loss_bps": "rnd_double() * 60",
        "protection_used": "x % 2 = 0",
        "priority_fee_lamports": "1000L",
        "avoided": "false",
    },
    "performance_metrics": {
        "metric_type": "case when x % 1000 = 0 then 'throughput' else 'latency' end",
        "operation": "case when x % 1000 = 0 then 'append.trades' else 'executor.decide' end",
        "value": "rnd_double() * 1000",
        "percentile": "case when x % 3 = 0 then 50L when x % 3 = 1 then 95L else 99L end",
    },
}


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    sizes = [size // TINY_DIVISOR for size in SIZES] if tiny else list(SIZES)
    seconds: dict[int, dict[str, float]] = {}
    with server(running) as questdb, tempfile.TemporaryDirectory(prefix="ringlog-bench-") as directory:
        settings = Settings(**questdb.settings(), request_timeout_ms=60_000)
        with contextlib.closing(Connection.from_settings(settings)) as connection:
            for size in sizes if tiny else (sizes[0], *sizes):  # the first one warms the server and matplotlib
                fill(connection, size)
                seconds[size] = {"findings": read(settings, size)}
                if not tiny or size == sizes[2]:  # its plots take seconds however little they show
                    seconds[size]["report"] = report(settings, size, Path(directory))
            empty(connection)
    us = {size: {name: 1e6 * each / size for name, each in took.items()} for size, took in seconds.items()}
    table = "By trades in the table"
    figures = [
        Figure(
            name=f"{name}, {size:,} trades", value=us[size][name], unit="us a trade",
            cell=Cell(table, f"{size:,} trades", f"{name}, us a trade"),
        )
        for size in sizes
        for name in us[size]
    ]  # fmt: skip
    for name in us[sizes[1]]:
        growth = us[sizes[2]][name] / us[sizes[1]][name]
        figures.append(
            Figure(
                name=f"{name}: cost of a trade, {sizes[2]:,} trades ÷ {sizes[1]:,}", value=growth, unit="x", at_most=2
            )
        )
    return Result(
        benchmark="analyzer",
        what=f"the demo's correlation analyzer over up to {sizes[2]:,} trades and as many latencies",
        figures=figures,
        details={"seconds": {str(size): took for size, took in seconds.items()}},
    )


def empty(connection: Connection) -> None:
    for table in ROWS:
        connection.execute(f"TRUNCATE TABLE {table}")


def fill(connection: Connection, rows: int) -> None:
    """Leaves exactly `rows` rows in every table."""
    empty(connection)
    for table, columns in ROWS.items():
        connection.execute(
            f"INSERT INTO {table} (timestamp, lane, seq, {', '.join(columns)}) "
            f"SELECT timestamp_sequence(cast({FIRST_US} as timestamp), {STEP_US}), 1, x - 1, "
            f"{', '.join(columns.values())} FROM long_sequence({rows})",
            timeout_s=STATEMENT_SECONDS,
        )
        wait_applied(connection.execute, table)


def read(settings: Settings, size: int) -> float:
    """Seconds of one analysis. Raises RuntimeError where it did not join what is there."""
    began = time.perf_counter()
    with Queries(settings) as queries:
        found = findings(queries)
    seconds = time.perf_counter() - began
    trades, joined, matched = size // 2, len(found.latency["age_ms"]), len(found.protection["quote_amount"])
    if matched != trades or not 0.9 * trades - 100 < joined <= trades:
        raise RuntimeError(f"got {joined} trades with an age and {matched} with a metric, wanted {trades} of each")
    return seconds


def report(settings: Settings, size: int, directory: Path) -> float:
    """Seconds of the whole report."""
    session = SessionReport(
        market="SOL/USDC", source="rows made for a benchmark", seconds=1.0, trades=size // 2, records={}, traders=[],
        limits={}, rules={}, nodes={}, simulated=0, missed=0,
    )  # fmt: skip
    began = time.perf_counter()
    write_report(settings, session, directory, failures := Failures())
    seconds = time.perf_counter() - began
    if failures.lines:
        raise RuntimeError("; ".join(failures.lines))
    return seconds


if __name__ == "__main__":
    main(run)
